r"""Where a response has its answer, and when two answers are equal.

What follows the thinking counts, and a response whose thinking was cut has no answer. In it the first of these:

    the last box                \boxed{...} whose braces balance
    behind the last "####"      the first number, or the line
    what it calls its answer    the last "answer is", "answer:", "the correct choice is": the first number behind it
                                (behind a "=" in the sentence, if there is one), letter or text
    else                        the last number, a text that is a letter alone, or the last line

Numbers as people write them are compared as they are; all else that is mathematics by math-verify. What says two
things, "3 or 5", "C, D", "true/false", gives no answer, and neither does a box that is empty or has no end.
"""

from __future__ import annotations

import logging
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
PLAIN = re.compile(
    r"([-+]?)\s*(?:\\?[$€£¥])?\s*(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:/(\d+)|[eE]([-+]?\d{1,3}))?(?:\\?[$€£¥]|°)?[.,]?"
)
MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)/([1-9]\d*)")
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SURELY = r"(?:clearly|definitely|certainly|therefore|thus|hence|indeed|probably|(?:most\s+)?likely)"
SAID = re.compile(
    r"(?:answer|(?:correct|right|best)\s+(?:choice|option))"
    rf"(?:\s+(?:(?:must|should|would|could|will)\s+)?(?:be|is)(?:\s+{SURELY})?|\s*:|>)[\s:*_]*", re.IGNORECASE,
)  # fmt: skip
SPAN = re.compile(r"(?<!\\)\$([^$]{1,999})(?<!\\)\$|\\\((.{1,999}?)\\\)", re.DOTALL)  # of mathematics
SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
LETTER = re.compile(r"\W*(?:(?:text|math)\w*|choice|option)?\W*([A-Ja-j])(?![\w'’])")
CHOSEN = re.compile(
    r"(?:\b(?i:option|choice|answer)\s+|(?:^|[\s(*]))\(?([A-J])\)?\**\s+(?i:is\s+(?:the\s+)?(?:correct|right|best))(?!\w)"
    r"|\b(?i:choose|pick|select|go\s+with)\s+(?i:option\s+|choice\s+|answer\s+)?\(?([A-J])\b"
)
OTHER = r"[\s)}*.,]*(?:,|;|\||\bor\b|\band\b|\bnot\b|/|&)\s*\W*"  # what stands between two answers


def called(text: str) -> Iterator[str]:
    """What follows "answer is", "answer:" and the like on their lines, the last first."""
    for end in [match.end() for match in SAID.finditer(text)][: -PHRASES - 1 : -1]:
        if line := text[end : end + LONGEST].partition("\n")[0].strip():
            yield line


# ---------------------------------------------------------------------------------------------------------------------
# Where it is


def box_of(said: str) -> tuple[bool, str | None]:
    """Whether a response has boxes, and the content of the last that ends: None if it is empty, or none ends, or it is
    one of two between which the response leaves the choice."""
    if "\\boxed" not in said:
        return False, None
    return True, None if re.search(r"\\boxed\s*\{[^{}]*\}\W*\bor\b\W*\\boxed", said) else last_boxed(said)


def number_of(text: str) -> str | None:
    """The number that a response gives, or the expression of one; None: there is none."""
    if (said := after_thinking(text)) is None:
        return None
    boxes, box = box_of(said)
    if boxes:
        return box
    *_, mark, behind = said.rpartition("####")
    if mark:
        line = behind.strip().partition("\n")[0]
        return None if re.match(r"(?:step|part|case)\b", line, re.IGNORECASE) else quantity(line.rpartition("=")[2])
    for line in called(said):
        sentence = SENTENCE.split(line, maxsplit=1)[0]
        if value_in(sentence, 0) is not None:
            return quantity(sentence.rpartition("=")[2]) or (None if "=" not in sentence else quantity(sentence))
    said = re.sub(r"\bnot\s+\$?\d[\d,.]*", "", signed(said[-10 * LONGEST :]))
    return scaled(said, value_in(said, -1))


def unwrapped(text: str) -> str:
    r"""Without \text{} and the like around words."""
    return re.sub(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r"\1", text)


def signed(text: str) -> str:
    """With every minus in front of a number as "-", and no currency behind it."""
    text = re.sub(r"\*\*(?!\d)|(?<!\d)\*\*", "", text)
    text = re.sub(r"\b(?:negative|minus)\s+(?=[$€£¥]?\d)", "-", text.replace("−", "-").replace("–", "-"))
    return re.sub(r"-\s?\\?[$€£¥](?=\d)", "-", re.sub(r"(?<![\w])_+(?=\d)|(?<=\d)_+(?!\w)", "", text))


def scaled(text: str, value: str | None) -> str | None:
    """The last number of a text, with a word behind it that makes it larger, or a power of ten."""
    behind = text.rpartition(value)[2] if value else ""
    if value and (word := re.match(r"\s*(thousand|million|billion|trillion)\b", behind, re.IGNORECASE)):
        return f"{value}e{SCALES[word[1].lower()]}"
    if value and (power := re.match(r"\s*(?:\\times|×|\*|x)\s*10\s*\^\s*\{?(-?\d{1,3})\b", behind)):
        return f"{value}e{power[1]}"
    return value + more[0] if value and (more := re.match(r"[eE][-+]?\d{1,3}(?![\w.])", behind)) else value


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


MEASURE = r"(?:hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|days?|weeks?|years?|degrees?|kg|km|m)"
SECOND = re.compile(  # what makes of a number one of two, a time, or a part of a word
    rf"\s*\$?\s*(?:\bor\b|\band\b|\bto\b|,|;|-|\.\.)\s*\\?[$€£]?\s*-?\d|:\d|\s*{MEASURE}\s+(?:and\s+)?\d|[xyznabπ√²³!](?![a-z])"
)
OPERATES = re.compile(r"\s*(?:[+*/×·÷^²³!√π]|\\(?:times|cdot|div|pi)\b|-\s)")
RUN = re.compile(r"[\d\s.,+\-*/×·÷^²³!√π(){}]+|\\(?:times|cdot|div|pi|sqrt|d?frac)\b")
WRITTEN = {"×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "²": "^2", "³": "^3", "√": r"\sqrt ", "π": r"\pi "}


def quantity(text: str) -> str | None:
    """The first number of a text that says one, or the arithmetic that begins with it; None: it says none, or two."""
    text = signed(text)
    value = value_in(text, 0)
    for span in SPAN.finditer(text):  # mathematics between dollars
        if value in (span[1], span[2]):
            return None if re.match(r"\s*(?:or|and|,|;)\s*[$\\\d]", text[span.end() :]) else value
    if value is None:
        return None
    at = text.index(value)
    before, behind = text[:at], text[at + len(value) :]
    if re.search(r"(?:\bnot|√|\b[a-z]+\s*\(|≠)\s*\$?$", before):
        return None
    if fraction := re.match(r"\\[dt]?frac\{[^{}]*\}\{[^{}]*\}", text[max(0, before.rfind("\\")) :]):
        return fraction[0]
    if value.isdecimal() and (part := re.match(r"\s+(\d+/\d+)(?![\d/])", behind)):
        return f"{value} {part[1]}"
    if (larger := scaled(text[: at + len(value)] + behind.partition("\n")[0], value)) != value and text.count(
        value
    ) == 1:
        return larger
    if OPERATES.match(behind):
        run, end = value, 0
        while found := RUN.match(behind, end):
            end = found.end()
        run += behind[:end]
        for sign, command in WRITTEN.items():
            run = run.replace(sign, command)
        return run.strip(" .,\n")
    return None if SECOND.match(behind) else value


def letter_of(text: str) -> str | None:
    """The one letter that a response chooses."""
    if (said := after_thinking(text)) is None:
        return None
    boxes, box = box_of(said)
    if boxes:
        return one_letter(box or "", boxed=True)
    for line in called(said):
        if letter := one_letter(line):
            return letter
        if LETTER.match(line) and re.match(r"\W*[A-J]\b", line):
            return None  # two, or a word that begins with one
    if chosen := CHOSEN.findall(re.sub(r"\bnot\s+\(?[A-J]\b", "", said[-LONGEST:])):
        return next(filter(None, chosen[-1]))
    last = said.strip().rpartition("\n")[2]
    alone = re.fullmatch(r"\W*([A-J])\W*|\W*\(([a-j])\)\W*", last)
    if alone is None and last == said.strip():  # "B. Paris", and nothing else
        alone = re.match(r"\W*([A-J])[.)]\W*\s(?=\W*\S)", last)
    return next(filter(None, alone.groups())).upper() if alone else None


def one_letter(text: str, boxed: bool = False) -> str | None:
    text = unwrapped(text).strip()
    match = LETTER.match(text)
    if match is None:
        return None
    letter, rest = match[1], text[match.end() :]
    sentence = SENTENCE.split(rest, maxsplit=1)[0]
    if boxed and not re.fullmatch(r"[\s)}$*]*|[\s})$*]*[).:,][\s)}$*]*(?:\S.*)?", rest, re.DOTALL):
        return None
    if (
        not boxed
        and letter.islower()
        and (rest.strip(" .)*_") or re.match(r"\W*option|\W*choice", text, re.IGNORECASE))
    ):
        return None
    if not boxed and letter in "AI" and re.match(r"\s+(?!because|since|as\b|\()\w", rest):
        return None  # an article, a pronoun
    if re.match(r"\s*[-+#=*^_]\s*[\w+#]|[+#]|[.]\s+[a-z]", rest) or re.match(rf"{OTHER}([A-Ja-j])(?![\w'’])", rest):
        return None
    if re.search(r"\b(?:no|not|rather|or|wait)\b\W*(?:rather\s+)?\(?[A-J](?![\w'’])", sentence):
        return None
    return letter.upper()


def truth_of(text: str) -> str | None:
    """ "True" or "False", as a response calls its answer, or says at its end."""
    if (said := after_thinking(text)) is None:
        return None
    boxes, box = box_of(said)
    if boxes:
        plain = unwrapped(box or "")
        found = re.fullmatch(r"[\s$*_]*(true|false)[\s.!$*_]*", plain, re.IGNORECASE)
        return found[1].capitalize() if found else None
    last = re.split(r"(?<=[.!?])\s+|\n", said.strip())[-1][-LONGEST:]
    for line in [*called(said), last]:
        named = {word.capitalize() for word in re.findall(r"\b(?:true|false)\b", line, re.IGNORECASE)}
        ends = re.search(
            r"(?:^|\b(?:is|be|definitely|so|thus|therefore)\b)\W*(?:true|false)(?![\w-])\W*?(?:$|[.,!*]|\s(?:since|because|as)\b)",
            line,
            re.IGNORECASE,
        )
        if len(named) == 1 and ends and not re.search(r"\b(?:not|neither|whether|if)\b|n['’]t\b|\?", line):
            return named.pop()
        if named:
            return None
    return None


def mathematics_of(text: str) -> str | None:
    """The expression that a response gives, which may be any mathematics."""
    if (said := after_thinking(text)) is None:
        return None
    boxes, box = box_of(said)
    if boxes:
        return box
    *_, mark, behind = said.rpartition("####")
    if mark:
        return expression_in(behind.strip().partition("\n")[0])
    return expression_in(line) if (line := next(called(said), None)) else value_in(said, -1)


def expression_in(line: str) -> str | None:
    """What a line begins with: mathematics between dollars, a number with words behind it, or all of its sentence."""
    line = line.strip(" *_")
    if (span := SPAN.match(line)) and not re.match(r"\s*\.?\s*(?:or|and)\b", line[span.end() :]):
        return next(filter(None, span.groups()))
    sentence = SENTENCE.split(line, maxsplit=1)[0].strip(" *_")
    number = NUMBER.match(sentence)
    if number and re.match(
        r"\**,?\s+(?!or\b|and\b)[A-Za-z]{2}|\**,\s+(?:as|not|since)\b",
        sentence[number.end() - number[0].endswith(",") :],
    ):
        return number[0].rstrip(",")
    return sentence or None


def text_of(text: str) -> str | None:
    """The answer in words."""
    if (said := after_thinking(text)) is None:
        return None
    boxes, box = box_of(said)
    if boxes:
        return box
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    _, mark, behind = said.rpartition("####")
    marked = behind.strip().partition("\n")[0] or None if mark else None
    return marked or next(called(said), None) or next(reversed(lines), None)


# ---------------------------------------------------------------------------------------------------------------------
# When two are equal


def as_number(text: str) -> Fraction | None:
    """A number as people write them: 1,000 = 1000.0 = $1000, 1/2 = 0.5 = .5, 1 1/2, 6e3; None: it is none."""
    if len(text) > LONGEST:
        return None
    if mixed := MIXED.fullmatch(text.strip()):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return -value if mixed[1] == "-" else value
    match = PLAIN.fullmatch(text.strip())
    if match is None or not (match[2] or match[3]) or (match[4] and not int(match[4])):
        return None
    value = Fraction((match[2] or "0").replace(",", "") + (match[3] or "")) / int(match[4] or 1)
    value *= Fraction(10) ** int(match[5] or 0)
    return -value if match[1] == "-" else value


def same_number(given: str | None, answer: str) -> bool:
    """Equal as numbers, to nine digits, or as mathematics."""
    if given is None:
        return False
    a, b = as_number(given), as_number(answer)
    if a is not None and b is not None:
        return abs(a - b) <= max(abs(a), abs(b)) / 10**9
    if re.search(
        r"[<>≤≥≠:;]|\\(?:leq?|geq?|neq?|lt|gt)\b|\d\s*,\s*-?\d", re.sub(r"(?<=\d)(?:\{,\}|,)(?=\d{3}(?!\d))", "", given)
    ):
        return False
    return same_mathematics(given, answer)


def same_text(given: str | None, answer: str) -> bool:
    """Equal but for case, blanks (not those between digits), emphasis, quotes and dollar signs around, a final stop."""

    def plain(text: str) -> str:
        text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", cleaned(text).lower())
        return text.strip("$*_\"“”'`").rstrip(".").strip("$*_\"“”'`")

    return given is not None and plain(given) == plain(answer)


def same_mathematics(given: str, answer: str) -> bool:
    """By math-verify, within seconds. ImportError: it is not installed."""
    from math_verify import parse, verify

    left, right = cleaned(given), cleaned(answer)
    if len(left) > LONGEST or says_another_thing(left, right):
        return False
    seconds = 3 if threading.current_thread() is threading.main_thread() else None  # they are kept by a signal
    how: dict[str, Any] = {"parsing_timeout": seconds}
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # of a timeout it shows the text
    return bool(
        verify(parse(f"\\boxed{{{right}}}", **how), parse(f"\\boxed{{{left}}}", **how), timeout_seconds=seconds)
    )


def says_another_thing(given: str, answer: str) -> bool:
    """What math-verify would let pass: two numbers in a row, an equation for its right side, one of several, another
    unit, base, or kind of bracket."""
    bare = re.sub(r"\\(?:text|mathrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?", " ", given)
    if re.search(r"\d\s+\d", bare) or (re.search(r"\bor\b", given) and not re.search(r"\bor\b", answer)):
        return True
    if "=" in given and "=" not in answer:
        name = given.rpartition("=")[0].strip().strip("\\").strip()
        if not re.fullmatch(r"[^\d=+*/^]{1,40}(?:\([^()=]*\)|_\{?\w+\}?)?|[\d\s.+*/()\-]+(?:=[\d\s.+*/()\-]+)*", name):
            return True
    ours, theirs = ([*re.findall(r"_\{?(\d+)\}?$", text)] for text in (given, answer))
    if ours and theirs and ours != theirs:
        return True
    ours, theirs = (re.findall(r"\d\s*\\text\{\s*([^{}]*?)s?\.?\s*\}", text.lower()) for text in (given, answer))
    if ours and theirs and ours != theirs:
        return True
    ends = [re.sub(r"\\(?:left|right)\s*", "", text) for text in (given, answer)]
    kinds = [(re.match(r"\\\{|[(\[]", end), re.search(r"\\\}$|[)\]]$", end)) for end in ends]
    if all(mark for kind in kinds for mark in kind) and "," in given:
        return [mark[0] for mark in kinds[0] if mark] != [mark[0] for mark in kinds[1] if mark]
    return False


UNIT = r"(?:mm|cm|dm|m|km|in|ft|yd|mi|mg|g|kg|lb|oz|ms|s|min|h|hr|ml|mL|L|mph|dollars?|cents?|degrees?|units?)"


def cleaned(text: str) -> str:
    """Without what separates thousands, a text around a number, and a final stop."""
    text = re.sub(r"(?<=\d)(?:\\[,!;: ]|~|\{,\}|\s)+(?=\d{3}(?!\d))", "", text.strip().replace("−", "-"))
    text = re.sub(rf"(?<=\d)\s*(?:°|{UNIT}(?:\^\{{?\d\}}?)?)$", "", text.rstrip(".,"))
    text = re.sub(r"\\text\{\\?\$\}", "", text)
    return re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}$", r"\1", text)
