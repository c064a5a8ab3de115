"""Long runs: files that are interrupted anywhere, resumed, sharded and merged have the bytes of one that was not; what
they say is counted right."""

import json
import math
import os
import random
import sys

import pytest

from reference.evaluation.evaluate import evaluate
from reference.evaluation.graders import make_grader
from reference.evaluation.report import report
from reference.evaluation.results import Results, merge, times_of
from reference.evaluation.tasks import Task

SETTINGS = {"model": "m", "method": "power", "alpha": 4.0, "seed": 0, "problems": 11}


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"{i}?", "answer": f"{i}"}) + "\n" for i in range(11)))
    return Task(path)


def method(questions, keys):
    """Writes the batch down, so that another batch writes other bytes; right on even problems."""
    return [
        {"responses": [{"text": q.strip("?") if int(q.strip("?")) % 2 == 0 else "héhé", "tokens": [1, len(questions)],
                        "logp": [-0.5, -1.0], "finished": True}],
         "cost": {"decoded_tokens": 2, "sequential_tokens": 2, "batch": keys}}
        for q in questions
    ]  # fmt: skip


def run(path, task, ask=method, settings=SETTINGS, shard=(0, 1), batch=3):
    with Results(path, settings, shard) as results:
        evaluate(ask, task, make_grader("numeric"), results, batch=batch)
    return path.read_bytes()


def test_a_file_that_ends_anywhere_is_completed(tmp_path, task):
    whole = run(tmp_path / "whole.jsonl", task)
    path, places = tmp_path / "cut.jsonl", random.Random(0).sample(range(len(whole)), 150)
    for end in [0, 1, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1, len(whole), *places]:
        path.write_bytes(whole[:end])
        assert run(path, task) == whole, end


def test_what_is_done_is_not_done_again(tmp_path, task):
    whole = run(tmp_path / "whole.jsonl", task)
    asked = []

    def listen(questions, keys):
        asked.extend(keys)
        return method(questions, keys)

    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))  # 5 results: one batch, and 2 of the next
    assert run(path, task, listen) == whole
    assert asked == [f"p{i}" for i in range(3, 11)]
    times = [json.loads(line) for line in path.with_suffix(".times.jsonl").read_text().splitlines()]
    assert [time["ids"] for time in times] == [["p5"], ["p6", "p7", "p8"], ["p9", "p10"]]
    asked.clear()
    assert run(path, task, listen) == whole and not asked


def test_times_are_written_to_no_other_file(tmp_path, task):
    (own := tmp_path / "out.times.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match=r"out\.times\.jsonl is no file of times"):
        run(tmp_path / "out.jsonl", task)
    assert own.read_text() == "mine\n" and not (tmp_path / "out.jsonl").exists()


def test_results_are_on_the_disk_when_the_next_batch_is_asked(tmp_path, task):
    path, seen = tmp_path / "out.jsonl", []

    def look(questions, keys):
        seen.append(path.read_bytes().count(b"\n"))
        return method(questions, keys)

    run(path, task, look)
    assert seen == [1, 4, 7, 10]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_merged_shards_are_the_whole(n, tmp_path, task):
    whole = run(tmp_path / "whole.jsonl", task)
    paths = [tmp_path / f"{i}.jsonl" for i in range(n)]
    for i, path in enumerate(paths):
        run(path, task, shard=(i, n))
    merge([*paths[::-1], paths[0].with_suffix(".times.jsonl")], tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == whole


def test_shards_that_do_not_make_a_whole_are_refused(tmp_path, task):
    paths = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for i, path in enumerate(paths):
        run(path, task, shard=(i, 3))
    out, twice = tmp_path / "out.jsonl", tmp_path / "twice.jsonl"
    twice.write_bytes(paths[0].read_bytes())
    for these, message in (
        (paths[:2], r"shards 0/3 to 2/3 are needed, each once; these are 0/3, 1/3"),
        ([*paths, twice], r"each once"),
        ([], r"nothing to merge"),
        ([task.path], r"is no file of results"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(these, out)
    run(tmp_path / "other.jsonl", task, settings={**SETTINGS, "alpha": 2.0}, shard=(2, 3))
    with pytest.raises(ValueError, match=r"written with alpha = 2.0, and now alpha is 4.0"):
        merge([*paths[:2], tmp_path / "other.jsonl"], out)
    for i, message in ((1, "the problem at place 5 is missing"), (0, "have 10 of 11 problems")):
        kept = paths[i].read_bytes()
        paths[i].write_bytes(b"".join(kept.splitlines(keepends=True)[:-1]))
        with pytest.raises(ValueError, match=message):
            merge(paths, out)
        paths[i].write_bytes(kept)
    assert not out.exists()
    mine = run(out, task, settings={**SETTINGS, "alpha": 2.0})
    with pytest.raises(ValueError, match=r"out.jsonl was written with alpha = 2.0, and now alpha is 4.0"):
        merge(paths, out)
    assert out.read_bytes() == mine


def test_ctrl_c_says_how_far_it_is_and_nothing_is_lost(tmp_path, task, capsys):
    whole = run(tmp_path / "whole.jsonl", task)

    def interrupted(questions, keys):
        if "p6" in keys:
            raise KeyboardInterrupt
        return method(questions, keys)

    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path, task, interrupted)
    said = capsys.readouterr().err
    assert f"6 of 11 problems are in {path}; the same command goes on from there" in said
    assert run(path, task) == whole


def test_a_task_that_cannot_be_graded_is_refused_before_anything_is_decoded(tmp_path):
    task = tmp_path / "words.jsonl"
    task.write_text('{"prompt": "1?", "answer": "1"}\n{"prompt": "2?", "answer": "two"}\n')
    with pytest.raises(ValueError, match="problem 1: the answer 'two' is no number"):
        run(tmp_path / "out.jsonl", Task(task), lambda *asked: pytest.fail("it was asked"), batch=1)


def test_other_settings_are_refused_by_name(tmp_path, task):
    path = tmp_path / "out.jsonl"
    before = run(path, task)
    for change, name in (({"alpha": 2.0}, "alpha"), ({"tau": 1}, "tau"), ({"problems": 12}, "problems")):
        with pytest.raises(ValueError, match=rf"written with {name} = .*, and now {name} is"):
            run(path, task, settings={**SETTINGS, **change})
    with pytest.raises(ValueError, match='written with shard = "0/1", and now shard is "1/2"'):
        run(path, task, shard=(1, 2))
    with pytest.raises(ValueError, match=r"written with alpha = 4\.0, and now alpha is null"):
        run(path, task, settings={k: v for k, v in SETTINGS.items() if k != "alpha"})
    assert path.read_bytes() == before


def test_files_that_are_none_of_results_are_left_alone(tmp_path, task):
    path = tmp_path / "notes.txt"
    for text in (b"my notes", b"my notes\n", b"{}\n", b'{"settings": {}', b"\xff"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"is no file of results"):
            run(path, task)
        assert path.read_bytes() == text
    run(good := tmp_path / "out.jsonl", task)
    good.write_bytes(broken := good.read_bytes() + b"[1]\n")
    with pytest.raises(ValueError, match=r"line 13 is no result"):
        run(good, task)
    assert good.read_bytes() == broken
    for place in (tmp_path, tmp_path / "none" / "out.jsonl"):
        with pytest.raises(OSError):
            Results(place, SETTINGS).__enter__()


def test_two_cannot_write_one_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with Results(path, SETTINGS), pytest.raises(ValueError, match="being written by another process"):
        Results(path, SETTINGS).__enter__()
    with Results(path, SETTINGS):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# The report


def write(path, right, *, n=4, settings=(), shard=(0, 1), ids=None, tokens=10, logp=lambda i, j: -2.0):
    """A file of results: problem i has right[i] right ones of n responses; its wrong ones are unreadable, and cut."""
    with Results(path, {"model": "/a/m", "task": "t", "problems": 4, **dict(settings)}, shard) as results:
        results.append([
            {"index": i, "id": id, "prompt": "?",
             "cost": {"decoded_tokens": n * tokens, "sequential_tokens": tokens}, "responses": [
                {"text": "", "tokens": [], "logp": [-1.0, logp(i, j)], "finished": j < k,
                 "answer": "1" if j < k else None, "right": j < k} for j in range(n)]}
            for i, (id, k) in enumerate(zip(ids or range(4), right))
        ])  # fmt: skip
    return path


def test_the_report_counts_right(tmp_path):
    greedy = write(tmp_path / "g.jsonl", [1, 0, 0, 1], n=1, settings={"method": "sample", "temperature": 0.0})
    power = write(tmp_path / "p.jsonl", [4, 2, 1, 4], settings={"method": "power"}, tokens=80)
    other = write(tmp_path / "o.jsonl", [1, 1], n=1, settings={"method": "power", "task": "u"})
    made = report([power, greedy, other])
    first, base, last = made.rows
    assert first["accuracy"][0] == 11 / 16 and base["accuracy"][0] == 0.5
    assert first["pass_at"] == pytest.approx({2: (1 + 5 / 6 + 1 / 2 + 1) / 4, 4: 1.0}) and base["pass_at"] == {}
    assert first["unreadable"] == first["cut"] == 5 / 16
    assert first["total_tokens"] == 320 and first["sequential_tokens"] == 80 and first["logp"] == -3.0
    assert base["name"] == "greedy" and base["lift"] is None and last["lift"] is None  # of another task
    mean, low, high = first["lift"]["points"]
    assert mean == pytest.approx(11 / 16 - 1 / 2) and low <= mean <= high and low == 0.0 and high <= 0.5
    assert first["lift"]["percent"] == pytest.approx(37.5)
    methods, places, table = made.lifts
    assert (methods, places) == (["power"], ["m\nt"]) and table == pytest.approx(37.5)
    text = str(made)
    assert text.count("\n") == 4 and "| power | 4 | 68.8 [" in text and "| 2 of 4 |" in text and "(+37.5 %)" in text


@pytest.mark.parametrize("name", ["raw", "grader", "prompt_style", "stop", "templates", "enable_thinking", "format"])
def test_the_lift_is_over_greedy_asked_and_graded_alike(name, tmp_path):
    plain = {"method": "sample", "temperature": 0.0, "max_new_tokens": 8}
    greedy = write(tmp_path / "g.jsonl", [1, 0, 0, 1], n=1, settings=plain)
    other = write(tmp_path / "h.jsonl", [0, 0, 0, 1], n=1, settings={**plain, name: "x"})
    long = write(tmp_path / "l.jsonl", [1, 1, 1, 1], n=1, settings={**plain, "max_new_tokens": 99})
    power = write(tmp_path / "p.jsonl", [4, 4, 0, 4], settings={"method": "power", name: "x", "max_new_tokens": 8})
    again = write(tmp_path / "q.jsonl", [4, 4, 0, 4], settings={"method": "power", "max_new_tokens": 8})
    assert report([greedy, power]).rows[1]["lift"] is None
    rows = report([long, greedy, other, power, again]).rows
    assert [row["lift"] and row["lift"]["points"][0] for row in rows] == [None, None, None, 0.5, 0.25]
    never = write(tmp_path / "n.jsonl", [0, 0, 0, 0], n=1, settings={**plain, "seed": 9})
    assert "nan" not in str(report([never, again]))


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "pipe"])
def test_a_device_or_a_pipe_holds_no_results(place, tmp_path, task):
    os.mkfifo(tmp_path / "pipe")
    for use in (lambda: run(tmp_path / place, task), lambda: report([tmp_path / place]),
                lambda: merge([tmp_path / place], tmp_path / "out")):  # fmt: skip
        with pytest.raises(ValueError, match="is a device or a pipe, and results are read"):
            use()


def test_times_of_two_files_are_two():
    assert times_of("tc") != times_of("tc.jsonl")


def test_wins_are_over_draws_of_the_model_itself(tmp_path):
    """Of the pairs of each problem that both have; not over draws at another temperature, or filtered."""
    drawn = {"method": "sample", "temperature": 1.0, "top_k": None, "top_p": None}
    base = write(tmp_path / "b.jsonl", [1, 0], n=2, settings=drawn, ids="ab", logp=lambda i, j: [-2.0, -4.0][j])
    cold = write(tmp_path / "c.jsonl", [1, 0], n=1, settings={**drawn, "temperature": 0.5}, ids="ab")
    best = write(tmp_path / "d.jsonl", [1, 1, 0], n=2, settings={"method": "best-of-n"}, ids="abc",
                 logp=lambda i, j: [[-1.0, -3.0], [-2.0, -5.0], [-9.0, -9.0]][i][j])  # fmt: skip
    rows = report([base, cold, best]).rows
    assert [row["wins"] for row in rows] == [None, 0.75, ((1 + 1 + 0 + 1) / 4 + (0.5 + 1 + 0 + 0) / 4) / 2]
    text = str(report([base, cold, best]))
    assert "wins over the base |" in text and "| 75.0 % |" in text and "| 56.2 % |" in text
    top = write(tmp_path / "t.jsonl", [1, 0], n=2, settings={**drawn, "top_k": 5}, ids="ab")
    assert [row["wins"] for row in report([cold, top, best]).rows] == [None] * 3
    assert "wins" not in str(report([cold, best]))


def test_lift_is_over_the_problems_that_both_have(tmp_path):
    greedy = write(tmp_path / "g.jsonl", [1, 0], n=1, settings={"method": "sample", "temperature": 0}, ids=["a", "b"])
    power = write(tmp_path / "p.jsonl", [4, 4, 0], settings={"method": "power"}, ids=["b", "a", "c"])
    assert report([greedy, power]).rows[1]["lift"]["percent"] == pytest.approx(100.0)
    nothing = write(tmp_path / "n.jsonl", [0, 0], n=1, settings={"method": "sample", "temperature": 0, "task": "v"})
    power = write(tmp_path / "q.jsonl", [4, 4], settings={"method": "power", "task": "v"})
    assert math.isnan(report([nothing, power]).rows[1]["lift"]["percent"])


def test_shards_count_as_one_run_and_times_as_none(tmp_path):
    a = write(tmp_path / "a.jsonl", [4, 0], shard=(0, 2))
    b = write(tmp_path / "b.jsonl", [4, 4], shard=(1, 2), ids=[2, 3])
    times = tmp_path / "a.times.jsonl"
    times.write_text("{}\n")
    (row,) = report([a, b, times]).rows
    assert row["problems"] == 4 and row["whole"] and row["accuracy"][0] == 0.75
    with pytest.raises(ValueError, match="problem 0 is there twice"):
        report([a, write(tmp_path / "c.jsonl", [4], shard=(1, 2))])
    for these, message in (([times], "nothing to report"), ([write(tmp_path / "e.jsonl", [])], "has no result yet")):
        with pytest.raises(ValueError, match=message):
            report(these)


def test_runs_of_one_method_are_told_apart(tmp_path):
    paths = [write(tmp_path / f"{x}.jsonl", [1, 2, 3, 4], settings={"method": "power"}) for x in "ab"]
    assert [row["name"] for row in report(paths).rows] == ["power (a)", "power (b)"]


def test_the_picture_is_drawn(tmp_path, monkeypatch):
    greedy = write(tmp_path / "g.jsonl", [1, 0, 0, 1], n=1, settings={"method": "sample", "temperature": 0})
    power = write(tmp_path / "p.jsonl", [4, 2, 1, 4], settings={"method": "power"})
    for paths in ([power], [greedy, power]):
        report(paths).draw(tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        report([power]).draw(tmp_path / "x.png")


def test_a_line_that_was_removed_and_done_again_is_in_its_place_when_merged(tmp_path, task):
    whole = run(tmp_path / "whole.jsonl", task)
    paths = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for i, path in enumerate(paths):
        run(path, task, shard=(i, 2))
    lines = paths[0].read_bytes().splitlines(keepends=True)
    paths[0].write_bytes(b"".join(lines[:2] + lines[3:]))
    run(paths[0], task, shard=(0, 2))
    assert paths[0].read_bytes() != b"".join(lines)  # it stands at the end
    merge(paths, tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == whole


def test_names_are_shown_and_not_compared(tmp_path, task):
    """The same weights under another path, the same task under another name."""
    known = {**SETTINGS, "weights": "w", "task": "t", "task_sha256": "s"}
    run(tmp_path / "a.jsonl", task, settings=known, shard=(0, 2))
    run(tmp_path / "a.jsonl", task, settings={**known, "model": "elsewhere/m", "task": "copy"}, shard=(0, 2))
    run(tmp_path / "b.jsonl", task, settings={**known, "model": "./m"}, shard=(1, 2))
    greedy = {**known, "model": "n", "method": "sample", "temperature": 0}
    run(tmp_path / "greedy.jsonl", task, settings=greedy)
    run(tmp_path / "other.jsonl", task, settings={**greedy, "weights": "v"})
    merge([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "merged.jsonl")
    names = ("a", "b", "greedy", "other", "merged", "./merged", "greedy")
    rows = report([tmp_path / f"{name}.jsonl" for name in names]).rows
    assert [row["problems"] for row in rows] == [11, 11, 11, 11]  # each file once
    assert [row["lift"] is not None for row in rows] == [True, False, False, True]  # over the same weights only


@pytest.mark.parametrize(("name", "value"), [
    ("index", "1"), ("index", True), ("index", -1), ("id", 1.5), ("id", None), ("responses", {}), ("responses", []),
    ("responses", [3]), ("cost", 3), ("prompt", None),
    ("text", None), ("logp", [10**400]), ("tokens", [10**400]), ("index", 10**400),
    ("cost", {"decoded_tokens": "9", "sequential_tokens": 2}),
    ("right", "yes"), ("right", None), ("logp", [None]), ("logp", ["-1"]), ("logp", 3), ("tokens", "12"),
    ("finished", 1), ("answer", 3), ("logp", [float("nan")]),
])  # fmt: skip
def test_a_line_of_other_types_is_no_result(name, value, tmp_path, task):
    path = tmp_path / "a.jsonl"
    run(path, task)
    head, first, *rest = path.read_text().splitlines()
    line = json.loads(first)
    (line if name in line else line["responses"][0])[name] = value
    path.write_text("\n".join([head, json.dumps(line), *rest]))
    with pytest.raises(ValueError, match="line 2 is no result; remove it"):
        report([path])


@pytest.mark.parametrize("shard", [[0], [1, 1], ["0", "1"], 3, None, [-1, 2], [0, 1, 2]])
def test_a_header_of_other_types_is_none(shard, tmp_path):
    (path := tmp_path / "a.jsonl").write_text(json.dumps({"settings": {}, "shard": shard}) + "\n")
    with pytest.raises(ValueError, match="its first line has no settings"):
        report([path])


def test_a_run_that_fails_before_its_first_result_leaves_no_file(tmp_path, task):
    path = tmp_path / "a.jsonl"

    def fail(questions, keys):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(path, task, fail)
    assert not path.exists()
    path.touch()  # somebody's own
    with pytest.raises(ValueError, match="no"):
        run(path, task, fail)
    assert path.exists()


def test_a_bar_in_a_name_does_not_make_a_column(tmp_path, task):
    run(tmp_path / "a.jsonl", task, settings={**SETTINGS, "method": "a|b"})
    head, _, row = str(report([tmp_path / "a.jsonl"])).splitlines()
    assert head.count("|") == row.count("|") and "a&#124;b" in row
