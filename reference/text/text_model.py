"""A language model with its words: model, tokenizer, stop ids, and the templates by which algorithms speak to it.

The algorithms that compose prompts in words (parallel-distill-refine, self-verified distillation) know roles and
stages; how a role speaks is a matter of the world that the model lives in. So each world has a set of templates:

    Role(prompt, parse)     prompt(**fields) -> ids, parse(reply's text) -> value, or None if it has none
    Stage(turns, verdict)   turn(question, candidate, replies) -> prompts, verdict(question, candidate, replies) -> bool

A stage verifies a candidate in as many turns as it has functions. A turn gives any number of prompts, none included,
and all of them are asked side by side; `replies[t][i]` is the reply's text to prompt i of turn t. So these fit alike:

    a judge             one turn of one prompt; the verdict reads replies[0][0]
    cycle consistency   turn 0 asks for the question behind the candidate; turn 1 compares it, replies[0][0], with the
                        true one; the verdict reads replies[1][0]
    review by steps     one turn of one prompt for each step; the verdict goes over replies[0]

**Templates are made from a tokenizer**, since prompts are ids: a set is written as a function of the tokenizer,

    def TEMPLATES(tokenizer: Tokenizer) -> Templates: ...

and named "module:function", in the key "templates" of a checkpoint's config.json or by the caller. A `Templates` that
is made already is taken as it is.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reference import sampling
from reference.sampling import Generation, LanguageModel, Samples
from reference.text.tokenizer import Tokenizer
from reference.transformer import Transformer, find_folder, read_json

Replies = Sequence[Sequence[str]]  # [turn][prompt]
Turn = Callable[[str, str, Replies], Sequence[Sequence[int]]]
Ask = Callable[[int, list[list[Sequence[int]]]], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Role:
    """One way of speaking to the model."""

    prompt: Callable[..., Sequence[int]]  # (**fields) -> ids
    parse: Callable[[str], Any]  # a reply's text -> what the algorithm wants of it; None: it cannot be used


@dataclass(frozen=True)
class Stage:
    """One way of verifying a candidate, in turns that may build on the replies so far."""

    turns: tuple[Turn, ...]
    verdict: Callable[[str, str, Replies], Any]  # a bool, or None: it cannot be read, which is a rejection

    def judge(self, cases: Sequence[tuple[str, str]], ask: Ask) -> list[Any]:
        """The verdict on each (question, candidate), whose turns are asked side by side: ask(turn, prompts[case]) gives
        the replies[case], one for each prompt."""
        heard: list[list[Sequence[str]]] = [[] for _ in cases]  # [case][turn][prompt]
        for t, turn in enumerate(self.turns):
            prompts = [list(turn(*case, replies)) for case, replies in zip(cases, heard)]
            for replies, said in zip(heard, ask(t, prompts)):
                replies.append(said)
        return [self.verdict(*case, replies) for case, replies in zip(cases, heard)]


@dataclass(frozen=True)
class Templates:
    """How one world speaks: roles by name, and stages by name in the order of the cascade. Any may be absent."""

    name: str = "none"
    roles: Mapping[str, Role] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)

    def role(self, name: str) -> Role:
        return self.find("role", self.roles, name)

    def stage(self, name: str) -> Stage:
        return self.find("stage", self.stages, name)

    def find(self, kind: str, named: Mapping[str, Any], name: str) -> Any:
        if name not in named:
            raise ValueError(
                f"the template set {self.name!r} has no {kind} {name!r}, only: {', '.join(named) or 'none at all'}; "
                "name a set that has it (templates='module:object')"
            )
        return named[name]


KNOWN = ("reference.text.chat_templates:chat_templates", "toy.relay:TEMPLATES")  # sets that a checkpoint may name
TemplatesLike = Templates | Callable[[Tokenizer], Templates] | str


@dataclass(frozen=True)
class TextModel:
    """A model that is spoken to in roles. `model` is anything with the interface of `reference.sampling`."""

    model: LanguageModel
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    templates: Templates = Templates()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        max_length: int | None = None,
        templates: TemplatesLike | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> TextModel:
        """Load a checkpoint's folder, or (with a network) a repository "owner/name"; see `Transformer.from_pretrained`.

        templates: the set to use; else the one that config.json names; else, with a chat template, the chat models'
        set; else a set with no roles. A named set is imported: what a folder names must be installed here.
        variables: what its chat template is told, such as enable_thinking.
        FileNotFoundError, ValueError: as for the model and the tokenizer, and for a set that cannot be found.
        """
        folder = find_folder(path)
        tokenizer = Tokenizer.from_pretrained(folder)
        tokenizer.tell(**(variables or {}))
        named = templates or read_json(folder / "config.json").get("templates")
        if templates is None and named is not None and named not in KNOWN:
            raise ValueError(
                f"{folder} names the template set {named!r}, which is none of those that a checkpoint may import "
                f"({', '.join(KNOWN)}); name it yourself (templates={named!r}) if you trust it"
            )
        if named is None:
            named = "reference.text.chat_templates:chat_templates" if tokenizer.chat_templates else Templates()
        made = make_templates(named, tokenizer)  # before the model: a wrong name should not cost minutes
        model = Transformer.from_pretrained(folder, dtype=dtype, device=device, max_length=max_length)
        return cls(model, tokenizer, tokenizer.stop_ids, made)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write a complete folder: the model's files and the tokenizer's. A template set that only the caller named is
        not written; config.json keeps the one that it names."""
        if not hasattr(self.model, "save_pretrained"):
            raise ValueError(f"a {type(self.model).__name__} has no files to save; only a Transformer has")
        self.model.save_pretrained(path)
        self.tokenizer.save(path)

    def prompt(self, role: str, **fields: Any) -> list[int]:
        """The ids by which the role is asked."""
        return list(self.templates.role(role).prompt(**fields))

    def parse(self, role: str, text: str) -> Any:
        """What the role's reply says; None if it cannot be used."""
        return self.templates.role(role).parse(text)

    def texts(self, samples: Samples) -> list[list[str]]:
        """The responses in words, without special tokens: texts[prompt][i]."""
        both = zip(samples.tokens.cpu(), samples.lengths.tolist())
        return [[self.tokenizer.decode(row[:length]) for row, length in zip(*own)] for own in both]

    def reply(self, prompts: Sequence[Sequence[int]], **settings: Any) -> tuple[list[list[str]], Generation]:
        """Ask the prompts: texts[prompt][i] of their responses, without special tokens, and the `Generation` itself.

        settings: those of `sampling.generate` (max_new_tokens, temperature, samples_per_prompt, seed, ...).
        """
        generation = sampling.generate(self.model, prompts, **{"stop_ids": self.stop_ids, **settings})
        texts = self.texts(generation.samples)
        return [[self.opening(prompt) + text for text in own] for prompt, own in zip(prompts, texts)], generation

    def opening(self, prompt: Sequence[int]) -> str:
        """What of its response a prompt has said already: "<think>", where the template opens the thinking."""
        if not getattr(self.tokenizer, "chat_templates", None):
            return ""
        tail = self.tokenizer.decode(list(prompt)[-8:], skip_special_tokens=False)
        return "<think>" if tail.rstrip().endswith("<think>") else ""

    def ask(
        self, role: str, fields: Sequence[Mapping[str, Any]], **settings: Any
    ) -> tuple[list[list[str]], Generation]:
        """`reply` to the role's prompts, one for each set of fields."""
        return self.reply([self.prompt(role, **each) for each in fields], **settings)


THINKING = {  # what opens a model's thinking, and what ends it
    "<think>": "</think>", "<thinking>": "</thinking>", "<thought>": "</thought>", "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]", "<seed:think>": "</seed:think>", "<|begin_of_thought|>": "<|end_of_thought|>",
}  # fmt: skip


def after_thinking(text: str) -> str | None:
    """What a response says once its thinking has ended, the last of it; None if it was cut before."""
    ends = [at + len(end) for end in THINKING.values() if (at := text.rfind(end)) >= 0]
    said = text[max(ends, default=0) :]
    return None if any(begin in said for begin in THINKING) else said


def make_templates(templates: TemplatesLike, tokenizer: Tokenizer) -> Templates:
    """A set from its name "module:object", its function of the tokenizer, or itself. ValueError: none of these."""
    made: Any = templates
    if isinstance(made, str):
        module, _, attribute = made.partition(":")
        try:
            made = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(
                f"templates {templates!r} cannot be found ({error}); give 'module:object' with a module that can be "
                "imported here"
            ) from None
    if callable(made):
        try:
            made = made(tokenizer)
        except TypeError as error:
            raise ValueError(f"templates {templates!r} is no function of a tokenizer ({error})") from None
    if not isinstance(made, Templates):
        raise ValueError(
            f"templates {templates!r} gave a {type(made).__name__}; it must be a Templates, or a function of the "
            "tokenizer that returns one"
        )
    return made
