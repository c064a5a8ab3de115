"""From a function's signature to a command: its options, their help, and how it is run.

Nothing is said twice. The parameters of a command (a function of `reference/cli/commands.py`) are settings, plain or in
dataclasses, and each becomes an option: its name, type and default are the field's, its help is the comment beside the
field in the source. Names are the papers' (--alpha, --block, --steps); where Hugging Face has a name for the same thing
it comes first (--max-new-tokens for a horizon, --num-samples for n). What every command needs, `Asked` and `Checkpoint`
of `reference/cli/asking.py`, are dataclasses like the rest.

A setting of tokens that was not given is cut to what the model's context allows: all but 1024 positions, or half of a
shorter context, which are the prompt's. All seeds of a command are one --seed, but that of a task's shuffled choices.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import textwrap
import time
import tokenize
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from reference.cli import commands as module
from reference.cli import listing
from reference.cli.asking import Answers, Asked, Checkpoint, Method, Output, show

NAMES = {"n": "num_samples", "samples": "num_samples", "path": "task"}  # Hugging Face's, and one of ours
OLD = {"max_new_tokens": ("horizon", "tokens"), "cascade_max_new_tokens": ("cascade_tokens",)}  # other spellings
TOKENS = ("max_new_tokens", "workspace")  # settings that the context limits
ELSEWHERE = ("asked", "output", "stream", "candidate")  # settings of a method for which evaluate has its own, or no use
POSITIONAL = {"prompt": "?", "files": "+"}
METAVARS = {"whole number": "N", "number": "X", "text": "TEXT"}
GROUPS = {
    "checkpoint": "model",
    "asked": "prompts",
    "given": "prompts",
    "output": "output",
    "out": "output",
}  # by parameter
SHORT = {"num_samples": "-n", "out": "-o", "file": "-f", "model": "-m"}


# ---------------------------------------------------------------------------------------------------------------------
# Options


@dataclass(frozen=True)
class Option:
    path: tuple[str, ...]  # from the parameter to the field; one that ends in "" switches a whole dataclass on
    hint: Any
    default: Any  # MISSING: must be given
    about: str

    @property
    def dest(self) -> str:
        return ".".join(self.path)


def parameters(function: Callable, skip: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """Name, type and default of what a function is given."""
    hints, found = typing.get_type_hints(function), inspect.signature(function).parameters.values()
    kept = [each for each in found if each.name not in skip]
    return [(each.name, hints[each.name], MISSING if each.default is each.empty else each.default) for each in kept]


def parts(kind: Any, default: Any) -> list[tuple[str, Any, Any]]:
    """The same of a dataclass's fields; where a dataclass is the default, it has the defaults."""
    hints, made = typing.get_type_hints(kind), is_dataclass(default)
    found = []
    for each in (each for each in fields(kind) if each.init):
        own = each.default if each.default_factory is MISSING else each.default_factory()
        found.append((each.name, hints[each.name], getattr(default, each.name) if made else own))
    return found


def options_of(function: Callable, skip: Sequence[str] = ()) -> list[Option]:
    """All settings that a function is given, those in dataclasses one by one."""

    def leaves(path: tuple[str, ...], hint: Any, default: Any, about: str) -> list[Option]:
        kind, optional = without_none(hint)
        if not settings_in(kind):
            return [Option(path, hint, default, about)]
        found = [Option((*path, ""), bool, True, about)] if optional else []
        for name, of, own in parts(kind, default):
            found += leaves((*path, name), of, own, comments(kind).get(name, ""))
        return found

    given = parameters(function, skip)
    return [each for name, hint, own in given for each in leaves((name,), hint, own, comments(function).get(name, ""))]


def settings_in(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def without_none(hint: Any) -> tuple[Any, bool]:
    """float | None -> (float, True)."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kept = [part for part in parts if part is not type(None)]
    return kept[0], len(kept) < len(parts)


@cache
def comments(thing: Callable | type) -> dict[str, str]:
    """The comments beside the fields of a dataclass (its bases' too), or beside the parameters of a function."""
    found: dict[str, str] = {}
    if isinstance(thing, type):
        for base in thing.__mro__[1:-1]:
            if is_dataclass(base):
                found |= comments(base)
    source = textwrap.dedent(inspect.getsource(thing))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    node = ast.parse(source).body[0]
    if isinstance(node, ast.ClassDef):
        ends = {ast.unparse(part.target): part.end_lineno for part in node.body if isinstance(part, ast.AnnAssign)}
    else:
        assert isinstance(node, ast.FunctionDef)
        ends = {part.arg: part.end_lineno for part in (*node.args.args, *node.args.kwonlyargs)}
    return found | {
        name: beside[line].lstrip("# ") for name, line in ends.items() if line in beside and "fmt:" not in beside[line]
    }


def reader(hint: Any) -> Callable[[str], Any]:
    """How an option's text is read."""
    kind, optional = without_none(hint)

    def read(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        if typing.get_origin(kind) is tuple:
            return tuple(typing.get_args(kind)[0](part) for part in text.split(",") if part.strip())
        return kind(text)

    names = {int: "whole number", float: "number", str: "text"}
    read.__name__ = names.get(kind, "list (with commas)")  # how argparse names it in its errors
    return read


def say(option: Option) -> str:
    """An option's help."""
    value = option.default
    if value is MISSING:
        shown = "required"
    elif isinstance(value, tuple):
        shown = f"default: {','.join(map(str, value)) or 'none at all'}"
    else:
        shown = f"default: {str(value).lower() if value is None or isinstance(value, bool) else value}"
        shown += ", or what the context leaves" if option.path[-1] in TOKENS else ""
    return f"{option.about} ({shown})".strip().replace("%", "%%")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{self.prog.partition(' ')[2]}: {message}; see {self.prog} --help")


def make_parser(name: str, text: str, options: Sequence[Option]) -> tuple[Parser, dict[str, list[str]]]:
    """The parser, and which paths each of its values is for."""
    notes, example, page = read_docstring(text)
    parser = Parser(
        f"sharpen {name}", usage=f"sharpen {name} [OPTION ...]", allow_abbrev=False, add_help=False,
        description="\n".join((*notes, "", "example:", textwrap.indent(example, "  "))),
        epilog=pages_of(page),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=120, max_help_position=28),
    )  # fmt: skip
    groups = {title: parser.add_argument_group(title) for title in ("settings", "prompts", "model", "output", "more")}
    switched = [option.path[:-1] for option in options if not option.path[-1]]
    leaves = {option.path[-1] for option in options}
    taken: dict[str, list[str]] = {}
    for option in options:
        leaf = option.path[-1] or option.path[-2]
        named = NAMES.get(leaf, leaf) if option.path != ("task", "seed") else "task_seed"  # choices stay as they are
        if named == "seed" and "seed" in taken:
            taken["seed"].append(option.dest)
            continue
        if named in taken or (option.path[-1] and option.path[:-1] in switched):
            named = f"{option.path[-2]}_{leaf}"
        taken[named] = [option.dest]
        group = groups[next((title for part, title in GROUPS.items() if part in option.path), "settings")]
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": say(option)}
        if leaf in POSITIONAL:
            group.add_argument(named, nargs=POSITIONAL[leaf], metavar=leaf.upper(), **common)
            continue
        spelled = [named, *(old for old in OLD.get(named, ()) if old not in leaves)]
        flags = [f"--{each.replace('_', '-')}" for each in spelled]
        if option.hint is bool:
            kind = argparse.BooleanOptionalAction if option.default else "store_true"
            group.add_argument(*flags, action=kind, dest=named, **common)
            continue
        read = reader(option.hint)
        common |= {"type": read, "required": option.default is MISSING, "metavar": METAVARS.get(read.__name__, "LIST")}
        group.add_argument(*([SHORT[named]] if named in SHORT else []), *flags, dest=named, **common)
    groups["more"].add_argument("-h", "--help", action="help", help="show this text")
    groups["more"].add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help="of an error")
    return parser, taken


def read_docstring(text: str) -> tuple[list[str], str, str]:
    """A command's docstring: what it says, the line that begins with "Example:", and the one with "Page:"."""
    lines = inspect.cleandoc(text).splitlines()
    marked = {mark: "\n".join(x.removeprefix(mark).strip() for x in lines if x.startswith(mark))
              for mark in ("Example:", "Page:")}  # fmt: skip
    return [x for x in lines if x and not x.startswith(tuple(marked))], marked["Example:"], marked["Page:"]


def pages_of(modules: str) -> str:
    """A method's pages: the docstrings of its files."""
    files = [Path(__file__).parents[1] / f"{name}.py" for name in modules.replace(",", " ").split()]
    return "".join(f"\n{'-' * 119}\n{ast.get_docstring(ast.parse(file.read_text('utf-8')))}\n" for file in files)


def build(function: Callable, given: Mapping[str, Any], room: int | None, skip: Sequence[str] = ()) -> dict[str, Any]:
    """A function's arguments, from the options that were given, by path. ValueError: a setting out of range."""

    def value(path: tuple[str, ...], hint: Any, default: Any) -> Any:
        kind, optional = without_none(hint)
        dotted = ".".join(path)
        if not settings_in(kind):
            cut = path[-1] in TOKENS and dotted not in given and room is not None and default is not None
            return min(default, room) if cut else given.get(dotted, default)
        if optional and not given.get(f"{dotted}.", True):
            return None
        made = kind(**{name: value((*path, name), of, own) for name, of, own in parts(kind, default)})
        if callable(check := getattr(made, "check", None)):
            check()
        return made

    return {name: value((name,), hint, default) for name, hint, default in parameters(function, skip)}


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run(name: str, arguments: Sequence[str]) -> None:
    """Read a command's options and do what it says."""
    known, rest = commands(), list(arguments)
    function, method = known[name], None
    parts: list[tuple[Callable, Sequence[str]]] = [(function, ())]  # whose settings are options, but for some
    if "method" in inspect.signature(function).parameters:
        methods = [each for each, of in known.items() if is_method(of)]
        if not rest or rest[0] not in (*methods, "-h", "--help"):
            raise ValueError(f"{name}: give a method first, one of {', '.join(methods)}")
        parts = [(function, ("method",))]
        if rest[0] in methods:
            method = rest.pop(0)
            name, parts = f"{name} {method}", [(known[method], ELSEWHERE), *parts]
    elif is_method(function) and "output" not in inspect.signature(function).parameters:
        parts.append((printing, ()))
    options = [option for part in parts for option in options_of(*part)]
    counts = [option.path for option in options if NAMES.get(option.path[-1]) == "num_samples"]
    if len(counts) > 1 or not is_method(function):  # a method's own n stands for it; others than methods have no use
        options = [option for option in options if option.path != ("asked", "n")]
    if len(counts) > 1:
        options = [option for option in options if option.path != ("samples",)]
    parser, paths = make_parser(name, function.__doc__ or "", options)
    chosen = vars(parser.parse_args(rest))
    given = {path: value for named, value in chosen.items() for path in paths.get(named, ())}

    made = [build(of, given, None, skip) for of, skip in parts]  # what is wrong is found before a model is looked for
    models = [x for own in made for x in own.values() if isinstance(x, Asked | Checkpoint)]
    checkpoints = [x.checkpoint if isinstance(x, Asked) else x for x in models]
    room = checkpoints[0].room() if checkpoints else None
    made = [build(of, given, room, skip) for of, skip in parts]
    if method:
        function(method=Method(method, known[method], made[0]), **made[1])
        return
    begin = time.perf_counter()
    answers = function(**made[0])
    if is_method(function) and answers is not None:
        output = next(own["output"] for own in made if "output" in own)
        show(made[0]["asked"], answers, output, time.perf_counter() - begin)


def is_method(function: Callable) -> bool:
    return typing.get_type_hints(function).get("return") in (Answers, Answers | None)


def printing(output: Output) -> None:
    """What every method has besides its own settings."""


def commands() -> dict[str, Callable]:
    """The functions of `reference/cli/commands.py` by the names of `listing.py`."""

    names = [name for kind in listing.commands().values() for name in kind]
    return {name: getattr(module, name.replace(" ", "_").replace("-", "_")) for name in names}
