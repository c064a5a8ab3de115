"""Files of prompts and problems in every shape that people have them in."""

import gzip
import json
import os
import threading

import pytest

from reference.cli.asking import Input
from reference.evaluation.lines import read_objects, read_prompts
from reference.evaluation.tasks import Task

ROWS = [{"question": "one\u2028two", "answer": "1", "id": "a"}, {"question": "three", "answer": "2", "id": "b"}]
LINES = "\n".join(map(json.dumps, ROWS))
SHAPES = {
    "lines": LINES, "lines, at the end one more": LINES + "\n", "Windows": LINES.replace("\n", "\r\n") + "\r\n",
    "old Mac": LINES.replace("\n", "\r"), "empty lines": f"\n  \n{LINES}\n\n", "byte-order mark": "\ufeff" + LINES,
    "unescaped": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "array": json.dumps(ROWS), "pretty array": json.dumps(ROWS, indent=2),
    "array, CRLF": json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_same_problems(shape, packed, tmp_path):
    data = SHAPES[shape].encode()
    file = tmp_path / ("task.jsonl.gz" if packed else "task.jsonl")
    file.write_bytes(gzip.compress(data) if packed else data)
    assert [fields for _, _, fields in read_objects(file)] == ROWS
    assert [(problem.id, problem.prompt) for problem in Task(file)] == [("a", "one\u2028two"), ("b", "three")]
    lines = Input(file=str(file)).lines()
    assert [(line["id"], line["prompt"]) for line in lines] == [("a", "one\u2028two"), ("b", "three")]


def test_one_object_on_many_lines(tmp_path):
    (file := tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=1))
    assert [fields for _, _, fields in read_objects(file)] == ROWS[:1]
    assert Input(file=str(file)).lines()[0]["prompt"] == "one\u2028two"


@pytest.mark.parametrize(("name", "text", "prompts"), [
    ("a.txt", "hello\r\nthere\r\n", ["hello", "there"]), ("a.txt", "hello\rthere", ["hello", "there"]),
    ("a.txt", "\ufeffone\x0ctwo\u2028three\u0085four", ["one\x0ctwo\u2028three\u0085four"]),
    ("a.txt", '{"prompt": "p"}\n{"prompt": "q"}', ["p", "q"]),  # whatever its name
    ("stdin", '[{"prompt": "p"},\n{"prompt": "q"}]', ["p", "q"]),
    ("a.txt", '[{"prompt": "p"}, {"prompt": "q"}]', ["p", "q"]),
    ("stdin", '[\n{"prompt": "p"}]', ["p"]),
    ("a.txt", '{"a": 1} is what type?\nnext', ['{"a": 1} is what type?', "next"]),
    ("a.txt", "[1, 2] + [3] in Python?", ["[1, 2] + [3] in Python?"]), ("a.txt", "{x | x > 0}", ["{x | x > 0}"]),
    ("a.txt", "[3]", ["[3]"]), ("a.txt", '{"a": 1}', ['{"a": 1}']),
])  # fmt: skip
def test_prompts_are_texts_or_objects(name, text, prompts):
    assert [fields["prompt"] for _, fields in read_prompts(name, text.encode())] == prompts


@pytest.mark.parametrize(("data", "message"), [
    (b'{"question": "a"}\n\xff\xfe', r"task\.jsonl, line 2 is not UTF-8 \(invalid start byte at byte 0\)"),
    (LINES.encode()[:-3], r"task\.jsonl, line 2 is not JSON"), (b'[{"a": 1},', r"line 1 is not JSON"),
    (b"[1]", r"entry 1 is not an object but a int"),
    (gzip.compress(LINES.encode(), mtime=0)[:-9], r"is a broken gzip file"),
    (gzip.compress(LINES.encode(), mtime=0)[:30] + b"x" * 30, r"is a broken gzip file"),
    (LINES.encode("utf-16"), r"is not UTF-8"),
])  # fmt: skip
def test_what_is_broken_is_named(data, message, tmp_path):
    (file := tmp_path / "task.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_objects(file))


def test_a_pipe_is_read_once_and_is_no_task(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    threading.Thread(target=pipe.write_text, args=("1 + 1\n2 + 2\n",), daemon=True).start()
    assert [line["prompt"] for line in Input(file=str(pipe)).lines()] == ["1 + 1", "2 + 2"]
    with pytest.raises(ValueError, match="is a pipe, and a task is read several times; write it to a file first"):
        Task(pipe).check()
