"""The command line: `python -m reference COMMAND`, or `sharpen COMMAND` where the package is installed.

A command is a function of `methods.py`, `training.py` or `more.py` in `reference/cli`, and nothing else: this list of
them is read from the source, so that it answers without importing torch, and a command's options are read from its
signature (`reference/cli/command_line.py`).
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

from reference.cli.listing import commands


def overview() -> str:
    lines = ["usage: sharpen COMMAND [OPTION ...]    (or: python -m reference COMMAND)", ""]
    for kind, named in commands().items():
        lines += [f"{kind}:", *(f"  {name:13}{about}" for name, about in named.items()), ""]
    lines += ["sharpen COMMAND --help shows a command's options, an example and the method's page.",
              "sharpen COMMAND --traceback ... shows where an error comes from."]  # fmt: skip
    return "\n".join(lines)


def find(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name and the rest. ValueError: there is none of that name."""
    known = [name for kind in commands().values() for name in kind]
    for words in (2, 1):
        if (name := " ".join(arguments[:words])) in known:
            return name, list(arguments[words:])
    begun = [name for name in known if name.startswith(f"{arguments[0]} ")]
    given = " ".join(arguments[: 2 if begun else 1])
    raise ValueError(f"there is no command {given!r}; there are {', '.join(begun or known)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 2 after a user's mistake (one line on stderr), 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        open_streams()
    warnings.formatwarning = lambda message, *_, **__: f"sharpen: {explain(message)}\n"
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no α
    resume = ""
    try:
        if not given or given[0] in ("-h", "--help", "help"):
            print(overview())
            return 0
        name, rest = find([word for word in given if word != "--traceback"])
        if name.startswith("train "):
            resume = "; the same command goes on from where it was"
        from reference.cli.command_line import run  # torch

        run(name, rest)
        return 0
    except KeyboardInterrupt:
        print(f"\nsharpen: interrupted{resume}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone (head, less): nothing is left to be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if "--traceback" in given or (isinstance(error, RuntimeError) and not is_memory(error)):
            raise
        print(f"sharpen: {explain(error)}".encode(errors="backslashreplace").decode(), file=sys.stderr)
        return 2


def open_streams() -> None:
    """Whoever closed stdout or stderr does not want to read them; a file of ours must not get their numbers."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 (it stays)


def is_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def explain(error: BaseException) -> str:
    """One line."""
    if isinstance(error, MemoryError) or is_memory(error):
        return "out of memory; ask for fewer at a time (--slots), a smaller --dtype or fewer --max-new-tokens"
    if isinstance(error, OSError) and error.filename:
        name = str(error.filename)
        return f"{name if name.isprintable() else repr(name)}: {error.strerror}"
    return " ".join((str(error).strip() or type(error).__name__).split())


if __name__ == "__main__":
    sys.exit(main())
