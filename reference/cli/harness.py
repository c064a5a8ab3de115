"""lm-evaluation-harness (lm_eval 0.4.13, the extra [lm-eval]) with any method here: a model class for its tasks.

    sharpen lm-eval --model_args pretrained=smollm2,method=power,alpha=4 --tasks gsm8k

`generate_until` is answered by the method. "sample" takes temperature, top-k and top-p from the task unless they are
given, so that a greedy task is what its own `hf` model makes of it; the others have distributions of their own. A
response is cut before the first of the task's stop strings *after* it was drawn. Randomness is addressed by the context
and how often it came, so it depends neither on the batch nor on --limit. Log-likelihoods are the model's own.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from reference.cli.asking import Checkpoint, Method, before
from reference.cli.command_line import TOKENS, load
from reference.cli.listing import commands

AT_A_TIME = 64  # requests
COMPOSE = ("refine", "verify")  # methods that compose prompts in words of their own


@register_model("sharpening")
class SharpeningLM(TemplateLM):
    """Arguments beside those here are the method's settings. ValueError: a method or a setting that there is not."""

    def __init__(
        self, pretrained: str = "toy", method: str = "sample", seed: int = 0, slots: int | None = None,
        templates: str | None = None, dtype: str = "auto", device: str | None = None, max_length: int | None = None,
        batch_size: int | str | None = None, max_batch_size: int | None = None, **settings: Any,
    ):  # fmt: skip
        super().__init__()
        if method not in (known := commands()["methods"]):
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(known)}")
        function = load(method)
        hints = typing.get_type_hints(function)
        absent = str(device).startswith("cuda") and not torch.cuda.is_available()  # cuda:0 is the command's default
        place = "auto" if device is None or absent else str(device)
        checkpoint = Checkpoint(str(pretrained), templates, dtype, place, max_length)
        self.asked = hints["asked"](seed=seed, slots=slots, checkpoint=checkpoint)
        self.name, self.function, self.kind, self.settings = method, function, hints["config"], settings
        self.make({})  # what is wrong is found before a model is loaded
        self.speaker = self.asked.speaker

    def make(self, more: Mapping[str, Any]) -> Any:
        """The method's settings: those given, then the task's, then as many tokens as there is room for."""
        given = {**more, **self.settings}
        config = build(self.kind, given, self.asked.checkpoint.room())
        if given:
            raise ValueError(f"{self.name} has no setting {next(iter(given))!r}; sharpen {self.name} --help shows all")
        return config

    # -- What the harness asks of a model

    @property
    def eot_token_id(self) -> int:
        stops = self.speaker.tokenizer.special_tokens
        eos = stops.get("eos_token")
        own = self.speaker.tokenizer.backend.token_to_id(str(eos)) if eos else None
        return min(self.speaker.stop_ids) if own is None else own

    @property
    def max_length(self) -> int:
        return self.speaker.model.max_length or 1 << 30

    @property
    def tokenizer_name(self) -> str:
        return str(self.asked.checkpoint.model).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        bos = str(self.speaker.tokenizer.special_tokens.get("bos_token") or "")
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        return self.speaker.tokenizer.encode(string, special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if self.name in COMPOSE:
            raise ValueError(f"{self.name} composes prompts in words of its own; drop --apply_chat_template")
        more = {} if add_generation_prompt else {"continue_final_message": True}
        return self.speaker.tokenizer.render_chat(chat_history, add_generation_prompt, **more)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        name = chat_template if isinstance(chat_template, str) else "default"
        return self.speaker.tokenizer.chat_templates.get(name) if chat_template else None

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        came, groups = Counter[str](), dict[str, list[tuple[int, str, str, dict[str, Any]]]]()
        for i, (context, asked) in enumerate(request.args for request in requests):
            came[context] += 1
            key = context if came[context] == 1 else f"{context}\n{came[context]}"
            told = dict(normalize_gen_kwargs(asked, 256))
            groups.setdefault(repr(sorted(told.items(), key=repr)), []).append((i, context, key, told))
        said = [""] * len(requests)
        with tqdm(total=len(requests), desc=self.name, disable=disable_tqdm) as bar:
            for group in groups.values():
                for at in range(0, len(group), AT_A_TIME):
                    part = group[at : at + AT_A_TIME]
                    texts = self.answer(
                        [context for _, context, _, _ in part], [key for _, _, key, _ in part], part[0][3]
                    )
                    for (i, context, _, told), text in zip(part, texts, strict=True):
                        said[i] = text
                        self.cache_hook.add_partial("generate_until", (context, told), text)
                    bar.update(len(part))
        return said

    def answer(self, contexts: list[str], keys: list[str], told: Mapping[str, Any]) -> list[str]:
        law = {"max_new_tokens": told["max_gen_toks"]}
        if self.name == "sample":
            law |= {name: told[name] for name in ("temperature", "top_k", "top_p") if told.get(name) is not None}
            if told.get("do_sample") and "temperature" not in told:
                law["temperature"] = 1.0
        config = self.make(law)
        most = self.max_length - config.max_new_tokens
        if most < 1:
            raise ValueError(f"max_new_tokens is {config.max_new_tokens}, and the model's context {self.max_length}; "
                             "give fewer by max_new_tokens in --model_args")  # fmt: skip
        now = self.asked.about(contexts, keys)
        if self.name not in COMPOSE:
            now.__dict__["prompts"] = [self.tok_encode(context)[-most:] for context in contexts]
        answers = Method(self.name, self.function, config)(now)
        texts = [self.speaker.tokenizer.decode(answers.samples.sample(i, 0).tokens) for i in range(len(contexts))]
        return [before(text, told["until"]) for text in texts]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.need_likelihoods()
        return super().loglikelihood(requests, disable_tqdm)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        found = []
        for _asked, context, continuation in tqdm(requests, desc="log-likelihoods", disable=disable_tqdm):
            ids = torch.tensor([*context, *continuation])[-self.max_length - 1 :].to(self.speaker.model.device)
            own = min(len(continuation), len(ids) - 1)
            logp = self.speaker.model(ids[None, :-1])[0, -own:].log_softmax(-1)
            chosen = ids[-own:]
            greedy = bool((logp.argmax(-1) == chosen).all())
            found.append((float(logp.gather(-1, chosen[:, None]).double().sum()), greedy))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        self.need_likelihoods()
        totals = []
        for (text,) in tqdm([request.args for request in requests], desc="log-likelihoods", disable=disable_tqdm):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            pairs = [((None, None), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(logp for logp, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
        return totals

    def need_likelihoods(self) -> None:
        if self.name != "sample":
            raise ValueError(
                f"this task asks for log-likelihoods, and {self.name} draws responses and has none; give method=sample "
                "(the model's own), or tasks whose output_type is generate_until"
            )


def build(kind: Any, given: dict[str, Any], room: int) -> Any:
    """Settings of a kind, and of the kinds in its fields; what it takes is taken out of `given`. room: most tokens that
    a setting has which was not given."""
    own = {}
    for field in fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if is_dataclass(default):
            own[field.name] = build(type(default), given, room)
        elif field.name in given:
            value = given.pop(field.name)
            own[field.name] = (value,) if isinstance(default, tuple) and not isinstance(value, tuple) else value
        elif field.name in TOKENS and isinstance(default, int):
            own[field.name] = min(default, room)
    return kind(**own)
