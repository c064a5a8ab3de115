r"""Where a response has its answer, and when two answers are equal.

What follows the thinking counts, and a response whose thinking was cut has no answer. In it the first of these:

    the last box                \boxed{...} whose braces balance
    behind the last "####"      the first number, or the line
    what it calls its answer    the last "answer is", "answer:", "the correct choice is": the first number behind it
                                (behind a "=" in the sentence, if there is one), letter or text
    else                        the last number, a text that is a letter alone, or the last line

Numbers as people write them are compared as they are; all else that is mathematics by math-verify. 2,4,6 is no number,
"C or D" no letter, and "A complicated .." neither.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from reference.text.chat_templates import last_boxed
from reference.text.text_model import after_thinking

LONGEST = 1000  # characters of an answer
PHRASES = 32  # that call something the answer: so many are looked at, from the last one on
NUMBER = re.compile(r"(?<![\w.\\])(?:(?<![)\]}])-|(?:(?<==)|(?<==\s)|^)-\s)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")
PLAIN = re.compile(r"([-+]?)\s*(?:\\?\$)?\s*(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:/(\d+))?(?:\\?\$)?\.?")
SAID = re.compile(r"(?:answer|(?:correct|right|best)\s+(?:choice|option))(?:\s+is|\s*:)[\s:*]*", re.IGNORECASE)
SPAN = re.compile(r"(?<!\\)\$([^$]{1,999})(?<!\\)\$|\\\((.{1,999}?)\\\)", re.DOTALL)  # of mathematics
SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
LETTER = re.compile(r"\W*(?:(?:text|math)\w*|choice|option)?\W*([A-Ja-j])(?![\w'’])")


def called(text: str) -> Iterator[str]:
    """What follows "answer is", "answer:" and the like on their lines, the last first."""
    for end in [match.end() for match in SAID.finditer(text)][: -PHRASES - 1 : -1]:
        if line := text[end : end + LONGEST].partition("\n")[0].strip():
            yield line


# ---------------------------------------------------------------------------------------------------------------------
# Where it is


def number_of(text: str) -> str | None:
    """The number that a response gives, or the expression of one; None: there is none."""
    if (said := after_thinking(text)) is None:
        return None
    if (box := last_boxed(said)) is not None:
        return box
    *_, mark, behind = said.rpartition("####")
    if mark:
        return value_in(behind, 0)
    for line in called(said):
        sentence = SENTENCE.split(line, maxsplit=1)[0]
        if (value := value_in(sentence.rpartition("=")[2], 0) or value_in(sentence, 0)) is not None:
            return value
    return value_in(said, -1)


def value_in(text: str, which: int) -> str | None:
    """The first (0) or last (-1) number of a text, or the mathematics that it is part of."""
    spans = [match for match in SPAN.finditer(text) if re.search(r"[\\^_]", match[0])]
    numbers = [*NUMBER.finditer(text)]
    if not numbers:
        return next((next(filter(None, span.groups())) for span in spans[which:][:1]), None)
    chosen = numbers[which]
    for span in spans:
        if span.start() <= chosen.start() < span.end():
            return next(filter(None, span.groups()))
    return chosen[0].rstrip(",")


def letter_of(text: str) -> str | None:
    """The one letter that a response chooses."""
    if (said := after_thinking(text)) is None:
        return None
    if (box := last_boxed(said)) is not None:
        return one_letter(box, boxed=True)
    for line in called(said):
        if letter := one_letter(line):
            return letter
    alone = re.fullmatch(r"\W*([A-J])\W*", said)
    return alone[1] if alone else None


def one_letter(text: str, boxed: bool = False) -> str | None:
    text = re.sub(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r"\1", text)
    match = LETTER.match(text)
    if match is None:
        return None
    letter, rest = match[1], text[match.end() :]
    if not boxed and (letter.islower() or (letter in "AI" and re.match(r"\s+(?!because|since|as\b|\()\w", rest))):
        return None  # an article, a pronoun, a word
    others = re.match(r"[\s)}*.,]*(?:,|or|and|/|&)\s*\W*([A-Ja-j])(?![\w'’])", rest)
    return None if others else letter.upper()


def truth_of(text: str) -> str | None:
    """ "True" or "False", as a response calls its answer, or says in its last line."""
    if (said := after_thinking(text)) is None:
        return None
    box, last = last_boxed(said), said.strip().rpartition("\n")[2]
    alone = [last] if re.fullmatch(r"\W*\w+\W*", last) else []
    for line in [box] if box is not None else [*called(said), *alone]:
        match = re.match(r"(?i)\W*(?:\\?(?:text|math)\w*\W*)?(true|false)(?!\w)", line)
        if match and not re.search(r"(?i)(?:\bor|\band|/)\s*(?:true|false)\b", line):
            return match[1].capitalize()
    return None


def mathematics_of(text: str) -> str | None:
    """The expression that a response gives, which may be any mathematics: no mark is looked for, and no sentence."""
    if (said := after_thinking(text)) is None:
        return None
    return last_boxed(said) or next(called(said), None) or value_in(said, -1)


def text_of(text: str) -> str | None:
    """The answer in words."""
    if (said := after_thinking(text)) is None:
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    _, mark, behind = said.rpartition("####")
    marked = behind.strip().partition("\n")[0] or None if mark else None
    return last_boxed(said) or marked or next(called(said), None) or next(reversed(lines), None)


# ---------------------------------------------------------------------------------------------------------------------
# When two are equal


def as_number(text: str) -> Fraction | None:
    """A number as people write them: 1,000 = 1000.0 = $1000, 1/2 = 0.5 = .5; None: it is none."""
    match = PLAIN.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None or not (match[2] or match[3]) or (match[4] and not int(match[4])):
        return None
    value = Fraction((match[2] or "0").replace(",", "") + (match[3] or "")) / int(match[4] or 1)
    return -value if match[1] == "-" else value


def same_number(given: str | None, answer: str) -> bool:
    """Equal as numbers, to nine digits, or as mathematics."""
    if given is None:
        return False
    a, b = as_number(given), as_number(answer)
    if a is not None and b is not None:
        return abs(a - b) <= max(abs(a), abs(b)) / 10**9
    return same_mathematics(given, answer)


def same_text(given: str | None, answer: str) -> bool:
    """Equal but for case, blanks, dollar signs around and a final stop."""
    plain = ("".join(cleaned(text).lower().split()).strip("$") for text in (given or "", answer))
    return given is not None and len({*plain}) == 1


def same_mathematics(given: str, answer: str) -> bool:
    """By math-verify, within seconds. ImportError: it is not installed."""
    from math_verify import parse, verify

    left, right = cleaned(given), cleaned(answer)
    if len(left) > LONGEST or re.search(r"\d\s+\d", left):
        return False
    seconds = 3 if threading.current_thread() is threading.main_thread() else None  # they are kept by a signal
    how: dict[str, Any] = {"parsing_timeout": seconds}
    return bool(
        verify(parse(f"\\boxed{{{right}}}", **how), parse(f"\\boxed{{{left}}}", **how), timeout_seconds=seconds)
    )


def cleaned(text: str) -> str:
    """Without what separates thousands, a text around a number, and a final stop."""
    text = re.sub(r"(?<=\d)(?:\\[,!;: ]|~|\{,\}|\s)+(?=\d{3}(?!\d))", "", text.strip()).rstrip(".")
    text = re.sub(r"\\text\{\\?\$\}", "", text)
    return re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}$", r"\1", text)
