"""Chat templates rendered, which come with downloaded checkpoints: sandboxed jinja2, within a time and a length.

A template that loops for minutes is interrupted, and one that would make a text of gigabytes is refused before it does.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import re
import threading
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

TODAY = datetime(2024, 7, 26)  # what templates take for today; Llama 3's own default
SECONDS = 10.0  # of rendering
LONGEST = 10**7  # characters of a text, here or on the way


class TooMuch(Exception):
    """A template takes longer, or makes more, than any conversation needs."""


class Interrupted(BaseException):
    """Past every handler of jinja2's."""


def size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 1


def check_given(name: str, *given: Any) -> None:
    """TooMuch: a function of texts may make too long a one of these: by counts, or as str.replace does."""
    if any(isinstance(x, int) and abs(x) > LONGEST for x in given) or (
        math.prod(max(1, size(x)) for x in given) > 100 * LONGEST
    ):
        raise TooMuch(f"{name} would make more than {LONGEST:,} characters")
    if "format" in name:
        check_widths(str(given[0]))


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter, within bounds."""

    @functools.wraps(function)  # with the marks by which jinja2 knows what else it wants
    def within(*args: Any, **named: Any) -> Any:
        check_given(function.__name__, *args, *named.values())
        return checked(function(*args, **named))

    return within


def checked(value: Any) -> Any:
    if size(value) > LONGEST:
        raise TooMuch(f"it makes more than {LONGEST:,} characters")
    return value


def check_widths(text: str) -> None:
    """Of fields in a format."""
    if re.search(r"\d{6}|%[^a-zA-Z%]*\*", text):
        raise TooMuch("a format has a field that is wider than any that a chat needs")


class Code(CodeGenerator):
    """a ~ b is checked too."""

    def visit_Concat(self, node: Any, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Environment(ImmutableSandboxedEnvironment):
    code_generator_class = Code
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.filters = {name: bounded(function) for name, function in self.filters.items()}

    @staticmethod
    def concat(parts: Any) -> str:
        """What blocks, macros and calls are put together by."""
        return checked("".join(parts))

    def joined(self, parts: tuple[Any, ...]) -> str:
        return checked("".join(map(str, parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        counts = [x for x in (left, right) if isinstance(x, int)]
        if operator == "**" and max(map(abs, counts), default=0) > 1000:
            raise TooMuch(f"{left} ** {right} is no number that a chat needs")
        if operator == "*" and len(counts) == 1 and size(left) * size(right) * max(counts[0], 1) > LONGEST:
            raise TooMuch(f"it makes more than {LONGEST:,} characters")
        if operator == "%" and isinstance(left, str):
            check_widths(left)
        return checked(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
        if isinstance(own := getattr(__obj, "__self__", None), str):
            check_given(__obj.__name__, own, *args, *named.values())
        return checked(super().call(__context, __obj, *args, **named))


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words, for loss masks; here it only passes."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own attribute)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)  # what is set inside stays inside


@cache
def compile_template(text: str) -> jinja2.Template:
    """jinja2.TemplateError: not a template."""

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:  # jinja2's escapes <>&
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions = [Generation, "jinja2.ext.loopcontrols"]
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = bounded(tojson)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": TODAY.strftime}
    return environment.from_string(text)


def render(text: str, **variables: Any) -> str:
    """A template's text filled in. TooMuch: it takes too long, or makes too much. What else it raises is its own."""
    thread, over, lock = threading.get_ident(), False, threading.Lock()

    def interrupt() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))

    timer = threading.Timer(SECONDS, interrupt)
    timer.daemon = True
    timer.start()
    try:
        parts, length = [], 0
        for part in compile_template(text).generate(**variables):
            parts.append(part)
            if (length := length + len(part)) > LONGEST:
                raise TooMuch(f"it makes more than {LONGEST:,} characters")
        return "".join(parts)
    except Interrupted:
        raise TooMuch(f"it takes more than {SECONDS:g} s") from None
    finally:
        with lock:
            over = True
        timer.cancel()
