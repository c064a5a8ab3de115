"""What a command is given, prompts and a model, and how its result is shown.

Each field is an option of the commands that are given it, with the comment beside it as its help
(`reference/cli/command_line.py`).
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tyro.conf import FlagCreatePairsOff, Positional

from reference.checkpoints import find_folder, is_stream, read_json, stored_dtype, weight_files, write_whole
from reference.evaluation.lines import check_id, read_prompts, unpacked
from reference.evaluation.results import is_results
from reference.evaluation.tasks import FORMATS, Task
from reference.interface import Cost, Samples
from reference.sampling import check_settings, child_seed, key_of
from reference.text.identity import VERSION, digest, files_digest, flat, module_digest
from reference.text.text_model import TextModel
from reference.text.tokenizer import tokenizer_files
from reference.transformer import Config

CODE = "reference.text.chat_templates:code_templates"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


# ---------------------------------------------------------------------------------------------------------------------
# What a command is given


@dataclass(frozen=True)
class Checkpoint:
    model: str = "toy"  # a checkpoint's folder, or "owner/name"; toy: shipped; smollm2: see make smollm2
    templates: str | None = None  # how the model is spoken to, "module:object"; none: what its folder says
    dtype: str = "auto"  # of the weights: float32, bfloat16, float16 or float64; auto: as they are stored
    device: str = "auto"  # cpu, cuda, cuda:1, ..; auto: a GPU if there is one
    max_length: int | None = None  # longest text that will be asked for (it fixes longrope); none: the model's own
    thinking: FlagCreatePairsOff[bool] = False  # tell the chat template to open the thinking (enable_thinking)
    no_thinking: FlagCreatePairsOff[bool] = False  # tell it to leave the thinking out; neither: as it does by itself

    @cached_property
    def folder(self) -> Path:
        """FileNotFoundError: there is no such folder or repository."""
        return find_folder(self.model)

    def room(self) -> int:
        """The tokens that a response may have if nobody says how many."""
        most = self.max_length or Config.from_json(self.folder / "config.json").max_position_embeddings
        return max(1, most - min(1024, most // 2))

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}; it must be auto, {', '.join(DTYPES)}")
        if self.thinking and self.no_thinking:
            raise ValueError("--thinking and --no-thinking were given; give one of them")

    @property
    def variables(self) -> dict[str, bool]:
        """What chat templates are told."""
        return {"enable_thinking": self.thinking} if self.thinking or self.no_thinking else {}

    def for_programs(self) -> Checkpoint:
        """Asked for programs in its own words, unless other templates are named."""
        own = self.templates or read_json(self.folder / "config.json").get("templates")
        return self if own else replace(self, templates=CODE)

    def stored_dtype(self) -> torch.dtype:
        """The weights' dtype: that of the files unless another was asked for."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        try:
            return stored_dtype(self.folder)
        except FileNotFoundError:  # a folder with a config.json alone: what it says
            source = read_json(self.folder / "config.json")
            return DTYPES.get(str(source.get("dtype") or source.get("torch_dtype")), torch.float32)

    def identity(self) -> dict[str, Any]:
        """What the model is: its weights, and how it is read and spoken to. Reads the files, but loads nothing."""
        return {
            "weights": files_digest(self.folder, weight_files(self.folder)),
            "tokenizer and stop ids": files_digest(self.folder, tokenizer_files(self.folder)),
            "dtype": str(self.stored_dtype()).removeprefix("torch."), "templates": self.templates,
            "the templates' module": module_digest(self.templates), "max_length": self.max_length,
            **self.variables,
        }  # fmt: skip

    def load(self) -> TextModel:
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        device = gpu if self.device == "auto" else self.device
        try:
            if torch.empty(0, device=device).is_meta:
                raise ValueError("it holds no numbers")
        except Exception as error:  # torch raises what it likes
            raise ValueError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]})") from None
        dtype, variables = DTYPES.get(self.dtype), self.variables
        return TextModel.from_pretrained(self.folder, dtype, device, self.max_length, self.templates, variables)


@dataclass(frozen=True)
class Input:
    prompt: Positional[str | None] = None  # the question, or with --raw the text to continue; none: see --file
    file: str | None = None  # text with a prompt on each line, or .jsonl of objects; "-", or no prompt: stdin
    format: str | None = None  # of --file, if it is a task: plain, math500, gsm8k, .., see evaluate
    raw: bool = False  # continue the text as it is, without role or chat template

    def __post_init__(self) -> None:
        if self.prompt is not None and self.file is not None:
            raise ValueError("a prompt and --file were given; give one of them")
        if self.format is not None and self.file in (None, "-"):
            raise ValueError(f"format is {self.format!r}, but there is no --file of that format; name one")
        if self.file not in (None, "-") and not is_stream(Path(str(self.file))):
            open(str(self.file), "rb").close()  # is it there?

    def lines(self) -> list[dict[str, Any]]:
        """Objects with "prompt" and, where the input has one, "id". ValueError: a line that is none; no line at all."""
        if self.prompt is not None:
            if not self.prompt.strip():
                raise ValueError("the prompt is empty; give a text")
            return [{"prompt": self.prompt}]
        if self.format is not None:
            return [vars(problem) for problem in Task(str(self.file), self.format)]
        if self.file in (None, "-"):
            if sys.stdin is None or sys.stdin.isatty():
                raise ValueError("there is no prompt; give one as an argument, by --file, or on stdin")
            buffer = getattr(sys.stdin, "buffer", None)
            name, data = "stdin", buffer.read() if buffer else sys.stdin.read().encode("utf-8", "surrogatepass")
        else:
            name = str(self.file)
            with unpacked(name) as file:
                data = file.read()
        return [fields for _, fields in read_prompts(name, data)]


@dataclass(frozen=True)
class Grading:
    grader: str | None = None  # exact, numeric, choice, math, truth, code, ..; none: the format's usual one
    allow_code_execution: bool = False  # run code that the model wrote, with limits that are no security boundary


@dataclass
class Asked:
    """Prompts and the model that they are for, which is loaded when it is first looked at."""

    n = 1  # responses to each prompt, if the command has no such setting

    input: Input = field(default_factory=Input)
    seed: int = 0  # what all randomness follows from
    slots: int | None = None  # requests decoded at a time; none: as many as fit the memory
    stop: tuple[str, ...] = ()  # texts before which a response is cut once it was drawn; \\n is a new line
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        check_settings(self, least={"n": 1, "slots": 1})
        if self.input.format is not None and FORMATS[self.input.format].grader == "code":
            self.checkpoint = self.checkpoint.for_programs()
        self.stop = tuple(stop.replace("\\n", "\n").replace("\\t", "\t") for stop in self.stop)

    @cached_property
    def speaker(self) -> TextModel:
        return self.checkpoint.load()

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        return self.input.lines()

    @cached_property
    def questions(self) -> list[str]:
        return [line["prompt"] for line in self.lines]

    @cached_property
    def keys(self) -> list[int | str]:
        """What addresses a prompt's randomness: its id, or its place; among ids a place is no id. ValueError: no id."""
        some, first = any("id" in line for line in self.lines), dict[str, int]()
        keys = [line.get("id", f"line {i + 1}" if some else i) for i, line in enumerate(self.lines)]
        for i, key in enumerate(keys, 1):
            check_id(f"prompt {i}", key)
            if first.setdefault(str(key), i) != i:
                raise ValueError(f"prompt {i} has the id {key!r} of prompt {first[str(key)]}; ids must differ")
        return keys

    @cached_property
    def prompts(self) -> list[list[int]]:
        return [prompt_ids(self.speaker, question, self.input.raw) for question in self.questions]

    def about(self, questions: Sequence[str], keys: Sequence[int | str]) -> Asked:
        """The same model asked something else."""
        other = replace(self)
        other.__dict__ |= {"speaker": self.speaker, "questions": list(questions), "keys": list(keys)}
        return other

    def draw(self, sampler: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """A sampler of responses to ids, such as `generate` or `power_sample`, on the prompts."""
        return sampler(self.speaker.model, self.prompts, *args, **self.drawing, **settings)

    def identity(self, command: str, **settings: Any) -> dict[str, Any]:
        """What a result of this command depends on (`reference/text/identity.py`)."""
        return {
            "version": VERSION, "command": command, **flat(settings), "seed": self.seed, "raw": self.input.raw,
            "stop": list(self.stop), "prompts": digest(self.questions), "keys": digest(self.keys),
            **self.checkpoint.identity(),
        }  # fmt: skip

    @property
    def drawing(self) -> dict[str, Any]:
        """What all samplers are told."""
        return {"stop_ids": self.speaker.stop_ids, "seed": self.seed, "keys": self.keys, "slots": self.slots}

    def need_words(self) -> None:
        """ValueError: the prompts are to be continued as they are."""
        if self.input.raw:
            raise ValueError("this method composes prompts in words; drop --raw")

    def discuss(self, algorithm: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """An algorithm that composes prompts in words and answers once, asked n times about each question."""
        self.need_words()
        questions = [question for question in self.questions for _ in range(self.n)]
        keys = [child_seed(key_of(key), j) if j else key for key in self.keys for j in range(self.n)]
        settings |= {"seed": self.seed, "keys": keys, "slots": self.slots}
        return algorithm(self.speaker, questions, *args, **settings)


@dataclass
class AskedOften(Asked):
    n: int = 1  # responses to each prompt


def prompt_ids(speaker: TextModel, question: str, raw: bool = False) -> list[int]:
    """By the role "author" of a world's templates; of a chat model, by its chat template as the user's turn."""
    if raw:
        return speaker.tokenizer.encode(question)
    if "author" in speaker.templates.roles and speaker.templates.name != "chat":
        return speaker.prompt("author", question=question)
    if not speaker.tokenizer.chat_templates:
        raise ValueError(f"{speaker.tokenizer.source}: the model has no chat template and no role 'author'; use --raw")
    return speaker.tokenizer.chat_prompt([{"role": "user", "content": question}])


# ---------------------------------------------------------------------------------------------------------------------
# How a result is shown


class Answers(Protocol):
    """What a method returns: any result of `reference`, as they all have these two."""

    samples: Samples
    costs: list[Cost]


@dataclass(frozen=True)
class Output:
    out: str | None = None  # a file to write to; none: stdout
    json: bool = False  # a line of JSON for each prompt: texts, tokens, log-probabilities, costs

    def __post_init__(self) -> None:
        if self.out is not None:
            check_writable(self.out)

    def write(self, text: str) -> None:
        if self.out is None:
            print(text)
        else:
            try:
                write_whole(Path(self.out), lambda part: part.write_text(text + "\n", encoding="utf-8"))
            except OSError as error:
                print(text)
                raise OSError(f"{self.out} cannot be written ({error.strerror}); the answers stand above") from None


def check_writable(path: str | Path, results: bool = False) -> None:
    """OSError: a file cannot be written there; ValueError: it holds results (unless it may) or weights. Nothing is left
    behind, or changed."""
    if not str(path):
        raise ValueError("the name of a file to write to is empty; give one")
    path = Path(path).resolve()  # a link may lead to a file that is not there yet
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: {path.parent} is no folder; make it first")
    if is_stream(path):
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    existed = path.exists()
    open(path, "a").close()
    if existed and (path.suffix in (".safetensors", ".gguf") or (is_results(path) and not results)):
        raise ValueError(f"{path} holds results of an evaluation, or weights; name another file")
    if not existed:
        path.unlink()


def records(asked: Asked, answers: Answers) -> list[dict[str, Any]]:
    """For each prompt what is known of it, as plain values."""
    P = len(asked.questions)
    answers_by_prompt = [answers.samples.sample(*divmod(i, answers.samples.tokens.shape[1]))
                         for i in range(answers.samples.lengths.numel())]  # fmt: skip
    n = len(answers_by_prompt) // P  # a method that was asked n times about each question has n · P prompts
    found = []
    opens = bool(asked.speaker.tokenizer.chat_templates)
    for i, (question, key) in enumerate(zip(asked.questions, asked.keys)):
        opening = asked.speaker.opening(asked.prompts[i]) if opens else ""
        own = slice(i * n, (i + 1) * n)
        costs = answers.costs[i * len(answers.costs) // P : (i + 1) * len(answers.costs) // P]
        cuts = [cut(asked.speaker, sample.tokens.tolist(), asked.stop) for sample in answers_by_prompt[own]]
        responses = [
            {
                "text": opening + text, "finished": sample.finished or count is not None,
                "tokens": sample.tokens.tolist()[:count], "logp": [round(x, 6) for x in sample.logp.tolist()[:count]],
                "logq": [round(x, 6) for x in sample.logq.tolist()[:count]],
            }
            for sample, (text, count) in zip(answers_by_prompt[own], cuts)
        ]  # fmt: skip
        line = {"id": key, "prompt": question, "responses": responses, "cost": asdict(Cost.parallel(costs))}
        found.append(line | {name: values[own] for name, values in details(answers, n * P).items()})
    return found


def cut(speaker: TextModel, tokens: list[int], stops: Sequence[str]) -> tuple[str, int | None]:
    """A response's text before the first of the stop strings, and the number of tokens up to that string's end; None:
    none of them is in it."""
    decode = speaker.tokenizer.decode

    def ended(count: int) -> bool:
        return len(before(text := decode(tokens[:count]), stops)) < len(text)

    text = decode(tokens)
    count = bisect_left(range(len(tokens)), True, key=ended) if ended(len(tokens)) else None
    return before(text, stops), count


def before(text: str, stops: Sequence[str]) -> str:
    """A text before the first of the stop strings."""
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


def details(answers: Answers, count: int) -> dict[str, list]:
    """What else the result knows: one number, or text, for each response."""
    known: dict[str, list] = {}
    for name, value in vars(answers).items():
        if isinstance(value, Tensor) and value.numel() == count and value.dim() <= 2:
            known[name] = value.flatten().tolist()
        elif isinstance(value, list) and len(value) == count and all(x is None or isinstance(x, str) for x in value):
            known[name] = value
    return {name: values for name, values in known.items() if name != "texts"}


def show(asked: Asked, answers: Answers, output: Output, seconds: float) -> None:
    """Print or write a method's result, and what it cost on stderr."""
    lines = records(asked, answers)
    if output.json:
        output.write("\n".join(map(json.dumps, lines)))
    else:
        several = sum(len(line["responses"]) for line in lines) > 1
        parts = []
        for i, line in enumerate(lines, 1):
            for j, response in enumerate(line["responses"], 1):
                head = f"[{i}.{j}]  log p {sum(response['logp']):.2f}, {len(response['tokens'])} tokens\n"
                parts.append(head * several + response["text"])
        output.write("\n".join(parts))
    if remark := getattr(answers, "remark", None):
        print(remark, file=sys.stderr)
    cost = Cost.parallel(answers.costs)
    print(
        f"{cost.calls} calls, {cost.prompt_tokens} tokens in, {cost.decoded_tokens} decoded "
        f"({cost.sequential_tokens} in a row), {seconds:.1f} s", file=sys.stderr,
    )  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A method by its name, with its settings: what `evaluate` is told to evaluate."""

    name: str
    function: Callable[..., Answers]
    config: Any

    def __call__(self, asked: Asked) -> Answers:
        more = {"output": Output()} if "output" in inspect.signature(self.function).parameters else {}
        return self.function(asked, self.config, **more)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the method, by name: what makes two runs the same."""
        found: dict[str, Any] = {"method": self.name}
        for name, value in asdict(self.config).items():
            found |= {f"{name}.{part}": x for part, x in value.items()} if isinstance(value, dict) else {name: value}
        return json.loads(json.dumps(found))
