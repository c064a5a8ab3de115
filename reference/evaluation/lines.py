"""Files of prompts and of problems, as people have them: JSON lines, a JSON array, one object; plain or gzipped.

Lines end at \\n, \\r\\n or \\r, and nowhere else: U+2028 may stand in a text. UTF-8, with or without byte-order mark.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

QUESTIONS = ("prompt", "problem", "question")  # what a prompt's field is called
BOM, GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"


def read_objects(path: str | Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """A file's objects, each with where it stands ("tasks.jsonl, line 3") and its number from 1, counting empty lines;
    JSON lines are streamed. ValueError: what is no JSON, no object, no UTF-8; a broken gzip file."""
    with unpacked(path) as file:
        yield from objects(str(path), file)


@contextlib.contextmanager
def unpacked(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to read from, gunzipped if it is gzipped."""
    with open(path, "rb") as file:
        try:
            yield gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file  # type: ignore[misc]
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a broken gzip file ({error}); fetch it again") from None


def read_prompts(name: str, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a file of prompts has: objects with a "prompt", "problem" or "question", or a text on each line; each with
    where it stands. By its name or its beginning it is one or the other. ValueError: no line; a line without prompt."""
    lines = [line for line in re.split(rb"\r?\n" if b"\n" in data else rb"\r", data.removeprefix(BOM)) if line.strip()]
    if not lines:
        raise ValueError(f"{name} has no line; put a prompt on each")
    if re.search(r"\.jsonl?(\.gz)?$", name.lower()) or begins_objects(lines[0]):
        found = [(place, fields) for place, _, fields in objects(name, io.BytesIO(data))]
    else:
        found = [(f"{name}, line {i}", {"prompt": decode(f"{name}, line {i}", line)})
                 for i, line in enumerate(lines, 1)]  # fmt: skip
    for place, fields in found:
        prompt = next((fields[key] for key in QUESTIONS if key in fields), None)
        if not isinstance(prompt, str):
            raise ValueError(f'{place} is not an object with a "prompt", "problem" or "question"')
        if not prompt.strip():
            raise ValueError(f"{place}: the prompt is empty")
        yield place, {**fields, "prompt": prompt}


def begins_objects(line: bytes) -> bool:
    """A text may begin with a brace too; an object that has a prompt it is not."""
    try:
        found = json.loads(line)
        rows = found if isinstance(found, list) else [found]
        return any(isinstance(row, dict) and any(key in row for key in QUESTIONS) for row in rows)
    except (ValueError, RecursionError):
        return re.fullmatch(rb"\s*(\{|\[(\s*\{.*)?)\s*", line) is not None and line.count(b'"') % 2 == 0


def objects(name: str, file: Iterable[bytes]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    lines = enumerate((part for line in file for part in line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")), 1)
    begun = False
    for number, line in lines:
        if not line.strip() or line == BOM:
            continue
        text = decode(f"{name}, line {number}", line)
        if not begun and (text.lstrip().startswith("[") or text.strip() == "{"):  # an array, or an object on many lines
            whole = "\n".join([text, *(decode(f"{name}, line {n}", more) for n, more in lines)])
            found = parse(f"{name}, line {number}", whole)
            yield from ((f"{name}, entry {n}", n, as_object(f"{name}, entry {n}", each))
                        for n, each in enumerate(found if isinstance(found, list) else [found], 1))  # fmt: skip
            return
        begun, place = True, f"{name}, line {number}"
        yield place, number, as_object(place, parse(place, text))


def decode(place: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None


def parse(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error})") from None


def as_object(place: str, found: Any) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    raise ValueError(f"{place} is not an object but a {type(found).__name__}")


def check_id(place: str, id: Any) -> None:
    """ValueError: what cannot address a problem's random numbers."""
    if isinstance(id, str):
        try:
            id.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place}: the id {id!a} has half a surrogate pair; give it another") from None
    elif not isinstance(id, int) or isinstance(id, bool) or abs(id) >> 63:
        raise ValueError(f"{place}: the id {id!r} is neither a text nor a whole number of 63 bits")
