"""From a function's signature to a command, by tyro.

Nothing is said twice. What a command (a function of `methods.py`, `training.py` or `more.py`) is given are dataclasses,
and each field is an option: its name, type and default are the field's, its help is the comment beside it. Names are
the papers' (--alpha, --block, --steps), or Hugging Face's where it has one for the same thing (--max-new-tokens for a
horizon, --num-samples for n).

A setting of tokens that was not given is cut to what the model's context allows: all but 1024 positions, or half of a
shorter context, which are the prompt's. All seeds of a command are one --seed, but that of a task's shuffled choices.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, is_dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Suppress, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from reference.cascade import CascadeConfig
from reference.cli import listing
from reference.cli.asking import Answers, Asked, Checkpoint, Input, Method, Output, show
from reference.evaluation.results import times_of
from reference.evaluation.tasks import Task
from reference.training.loop import FitConfig
from reference.training.lora import LoRAConfig

TOKENS = ("max_new_tokens", "workspace")  # settings that the context limits
TITLES = {"asked": "prompts", "given": "prompts", "config": "settings"}  # of groups, by parameter
NAMES: dict[str, Any] = {  # options whose names are not those of their fields
    "n": arg(name="num-samples", aliases=("-n",)),
    "max_new_tokens": arg(aliases=("--horizon", "--tokens")),
    "cascade_max_new_tokens": arg(aliases=("--cascade-tokens",)),
    "path": arg(name="task"),
    "model": arg(aliases=("-m",)),
    "file": arg(aliases=("-f",)),
    "out": arg(aliases=("-o",)),
    **{name: arg(name=title) for name, title in TITLES.items()},
}
PREFIXES = {CascadeConfig: "cascade", FitConfig: "fitting", Task: "task"}  # of a name that is taken already


class Refused(Exception):
    """Around what a dataclass of settings refuses, so that it is reported in the dataclass's own words."""


# ---------------------------------------------------------------------------------------------------------------------
# What tyro is told of our types


def rules(room: int | None, hidden: Sequence[type] = ()) -> ConstructorRegistry:
    """room: most tokens that a setting has which was not given. hidden: classes of which only `raw` is an option."""
    registry, taken, inner = ConstructorRegistry(), dict[str, type](), [False]

    @registry.struct_rule
    def settings(info: StructTypeInfo) -> StructConstructorSpec | None:
        """tyro's own rule for dataclasses, with our names, defaults and errors."""
        if inner[0] or not is_dataclass(info.type):
            return None
        inner[0] = True
        try:
            spec: Any = ConstructorRegistry.get_struct_spec(info)
        finally:
            inner[0] = False
        kind: Any = info.type

        def option(each: Any) -> Any:
            cut = each.name in TOKENS and room is not None and isinstance(each.default, int)
            each = replace(each, default=min(each.default, room) if cut else each.default)
            if (each.name == "seed" and not issubclass(kind, Asked | Task)) or (kind in hidden and each.name != "raw"):
                return replace(each, type=Annotated[each.type, Suppress])
            name = f"lora_{each.name}" if kind is LoRAConfig else each.name
            if not is_dataclass(each.type) and taken.setdefault(name, kind) is not kind:
                name = f"{PREFIXES[kind]}_{name}"
            return replace(each, type=Annotated[each.type, arg(name=name), NAMES.get(name, arg())])

        return replace(spec, fields=tuple(map(option, spec.fields)), instantiate=partial(make, spec.instantiate))

    @registry.primitive_rule
    def value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        """Lists with commas, "none" for None, and text where a function may be given too."""
        union = isinstance(info.type, types.UnionType) or typing.get_origin(info.type) is typing.Union
        kinds = list(typing.get_args(info.type)) if union else [info.type]
        kind = str if str in kinds else next((each for each in kinds if each is not type(None)), None)
        many = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
        if not many and not union:
            return None
        optional = type(None) in kinds and kind is not str

        def read(texts: list[str]) -> Any:
            (text,) = texts
            if optional and text.lower() == "none":
                return None
            if not many:
                return kind(text)  # type: ignore[misc]
            parts = [many[0](part) for part in text.split(",") if part.strip() or (part and many[0] is str)]
            return tuple(parts) if parts or many[0] is not str else (text,)  # a comma alone is one

        def write(given: Any) -> list[str]:
            return [",".join(map(str, given)) if isinstance(given, tuple) else "none" if given is None else str(given)]

        metavar = "A,B,.." if many else getattr(kind, "__name__", "str").upper()
        return PrimitiveConstructorSpec(1, metavar + "|none" * optional, read, lambda given: True, write)

    return registry


def make(kind: Callable[..., Any], **values: Any) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        raise Refused from error


# ---------------------------------------------------------------------------------------------------------------------
# A command's options


def options_of(function: Callable, method: Callable | None = None) -> type:
    """A dataclass of what a command is given; a `Method` stands for what that method is given."""
    hints = typing.get_type_hints(function, include_extras=True)
    given = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    if is_method(function) and "output" not in given:
        hints["output"], given["output"] = Output, inspect.Parameter.empty
    if method is not None:
        own = typing.get_type_hints(method)
        del given["method"]
        given = {"asked": inspect.Parameter.empty, "config": inspect.Parameter.empty} | given
        hints |= {"asked": own["asked"], "config": own["config"]}
    return make_dataclass("Options", [
        (name, hints[name], field(default=MISSING if default is inspect.Parameter.empty else default))
        for name, default in sorted(given.items(), key=lambda each: each[0] != "config")
    ], kw_only=True)  # fmt: skip


def parse(options: type, name: str, docstring: str, arguments: Sequence[str], registry: ConstructorRegistry) -> Any:
    """ValueError: the arguments are no such options, in one line."""
    text, example, pages = read_docstring(docstring)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                options, prog=f"sharpen {name}", description=f"{text}\n\nexample:\n{example}", args=arguments,
                config=(tyro.conf.OmitArgPrefixes,), registry=registry,
            )  # fmt: skip
    except Refused as error:
        raise error.__cause__ from None  # type: ignore[misc]
    except SystemExit as done:
        if done.code:
            raise ValueError(f"{one_line(said.getvalue())}; see sharpen {name} --help") from None
        print(pages)
        raise


def one_line(box: str) -> str:
    """What tyro says in a box, up to its first ruler."""
    rows = [row.strip("╭╮╰╯│ ") for row in box.splitlines()]
    title, said = rows[0].strip("─ "), []
    for row in rows[1:]:
        if not row.strip("─"):
            break
        said.append(row)
    text = " ".join(" ".join(said).split())
    return text if title.split()[0] in text or title == "Value error" else f"{title}: {text}"


def read_docstring(text: str) -> tuple[str, str, str]:
    """A command's docstring: what it says, its examples, and the docstrings of the files after "Page:"."""
    lines = inspect.cleandoc(text).splitlines()
    marked = {mark: [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]
              for mark in ("Example:", "Page:")}  # fmt: skip
    said = "\n".join(line for line in lines if not line.startswith(tuple(marked)))
    files = [Path(__file__).parents[1] / f"{name}.py" for name in re.findall(r"[\w/]+", " ".join(marked["Page:"]))]
    pages = [f"\n{'-' * 119}\n{ast.get_docstring(ast.parse(file.read_text('utf-8')))}" for file in files]
    return said.strip(), "\n".join(f"  {each}" for each in marked["Example:"]), "\n".join(pages)


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run(name: str, arguments: Sequence[str]) -> None:
    """Read a command's options and do what it says."""
    function, rest, method, hidden = load(name), list(arguments), None, list[type]()
    if "arguments" in inspect.signature(function).parameters:  # a foreign command's own
        if rest in (["-h"], ["--help"]):
            text, example, pages = read_docstring(function.__doc__ or "")
            print(f"usage: sharpen {name} [its own options]\n\n{text}\n\nexample:\n{example}\n{pages}")
            raise SystemExit(0)
        return function(rest)
    if "method" in inspect.signature(function).parameters:
        methods = [*listing.commands()["methods"]]
        if not rest or rest[0] not in (*methods, "-h", "--help"):
            raise ValueError(f"{name}: give a method first, one of {', '.join(methods)}")
        method = rest.pop(0) if rest[0] in methods else methods[0]
        name, hidden = f"{name} {method}", [Input]
    options = options_of(function, load(method) if method else None)
    read = partial(parse, options, name, function.__doc__ or "", rest)
    given = vars(read(rules(None, hidden)))  # what is wrong is found before a model is looked for
    asked = given.get("asked")
    checkpoint: Checkpoint | None = asked.checkpoint if asked else given.get("checkpoint")
    if checkpoint:
        given = vars(read(rules(checkpoint.room(), hidden)))
    if asked:
        given = {name: seeded(x, asked.seed) for name, x in given.items()}
    if method:
        given["method"] = Method(method, load(method), given.pop("config"))
    output = given["output"] if "output" in inspect.signature(function).parameters else given.pop("output", None)
    check_apart(given, output)
    begin = time.perf_counter()
    answers = function(**given)
    if is_method(function) and answers is not None:
        show(given["asked"], answers, output, time.perf_counter() - begin)


def check_apart(given: Mapping[str, Any], output: Any) -> None:
    """ValueError: what is to be written is what is to be read, or is written twice."""
    inputs = [getattr(getattr(given.get("asked"), "input", given.get("given")), "file", None)]
    inputs += [getattr(given.get("task"), "path", None), *(given.get("files") or ())]
    outputs = [getattr(output, "out", None), *map(given.get, ("merge", "picture", "alpaca_eval"))]
    outputs += [given.get("out"), times_of(given["out"]) if given.get("out") and "task" in given else None]
    taken = {Path(place).resolve() for place in inputs if place not in (None, "-")}
    for place in outputs:
        if place is not None and (at := Path(place).resolve()) in taken:
            raise ValueError(f"{place} is read or written by this command already; name another file to write to")
        elif place is not None and (at.is_file() or not at.exists()):  # two outputs may be one device
            taken.add(at)


def seeded(settings: Any, seed: int) -> Any:
    """Settings, and settings in them, with the command's seed."""
    if not is_dataclass(settings) or isinstance(settings, type | Asked | Task):
        return settings
    own = {name: seed if name == "seed" else seeded(value, seed) for name, value in vars(settings).items()}
    return replace(settings, **own)


def load(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(listing.module_of(name)), name.replace(" ", "_").replace("-", "_"))


def is_method(function: Callable) -> bool:
    return typing.get_type_hints(function).get("return") in (Answers, Answers | None)
