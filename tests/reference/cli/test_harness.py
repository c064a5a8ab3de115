"""lm-evaluation-harness with the methods here, on tasks of our own, without a network (the extra [lm-eval])."""

import json

import pytest

import reference.__main__ as command
from tests.conftest import ROOT
from toy.relay import make_problems

harness = pytest.importorskip("reference.cli.harness", reason="pip install 'sharpening[lm-eval]'")

pytestmark = pytest.mark.slow  # the harness takes seconds to begin

HEAD = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/relay.jsonl}}
test_split: test
doc_to_text: "{{question}}"
"""
TASKS = {
    "relay": """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {max_gen_toks: 24, do_sample: false, until: ["."]}
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "choices": """
output_type: multiple_choice
doc_to_choice: ["1", "2"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """evaluate(task, model_args, ..) -> the samples' responses."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    rows = [{"question": p.question, "answer": p.answer} for p in make_problems(6, seed=1000)]
    (tmp_path / "relay.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text((HEAD + text).replace("NAME", name).replace("FOLDER", str(tmp_path)))

    def run(task, model_args, *more, code=0):
        out = tmp_path / "out" / str(len(list((tmp_path / "out").glob("*"))) if (tmp_path / "out").exists() else 0)
        arguments = ["lm-eval", "--model_args", model_args, "--tasks", task, "--include_path", str(tmp_path)]
        assert command.main([*arguments, "--output_path", str(out), "--log_samples", *more]) == code
        if code:
            return capsys.readouterr().err.splitlines()[-1]
        (samples,) = out.rglob(f"samples_{task}_*.jsonl")
        return [json.loads(line)["resps"][0] for line in samples.read_text().splitlines()]

    return run


def test_greedy_decoding_is_the_model_s(evaluate, capsys, tmp_path):
    found = evaluate("relay", "pretrained=toy")
    capsys.readouterr()
    for question, (response,) in zip(map(json.loads, (tmp_path / "relay.jsonl").read_text().splitlines()), found):
        assert (
            command.main(["sample", "--raw", question["question"], "--temperature", "0", "--max-new-tokens", "24"]) == 0
        )
        assert response == capsys.readouterr().out.rstrip("\n").partition(".")[0]


@pytest.mark.parametrize("method", [
    "power,alpha=4,steps=2,block=12", "best-of-n,n=3,temperature=0.8", "smc,particles=3",
    "temper,rungs=2,steps=2,block=12", "multiple-try,tries=2,steps=1,block=12",
    "lookahead,candidates=2,rollouts=1,chunk=12", "refine,drafts=2",
    "verify,n=2,votes=2",
])  # fmt: skip
def test_every_method_answers_and_does_so_again(method, evaluate):
    first = evaluate("relay", f"pretrained=toy,method={method}")
    assert len(first) == 6 and all(isinstance(text, str) for (text,) in first) and any(text for (text,) in first)
    assert evaluate("relay", f"pretrained=toy,method={method}", "--limit", "3") == first[:3]  # whoever is beside it


def test_log_likelihoods_are_the_model_s_own(evaluate, tmp_path):
    found = evaluate("choices", "pretrained=toy")
    from reference.sampling import score
    from reference.text.text_model import TextModel

    speaker = TextModel.from_pretrained(ROOT / "toy" / "checkpoint")
    encode = speaker.tokenizer.encode
    for row, each in zip(map(json.loads, (tmp_path / "relay.jsonl").read_text().splitlines()), found):
        whole, prompt = encode(row["question"] + " 1"), encode(row["question"])
        (logp,) = score(speaker.model, [prompt], [whole[len(prompt):]])  # fmt: skip
        assert abs(float(each[0][0]) - float(logp.sum())) < 1e-4


@pytest.mark.parametrize(("task", "model_args", "message"), [
    ("choices", "method=power", "this task asks for log-likelihoods, and power draws responses and has none"),
    ("relay", "method=powr", "method is 'powr'; it must be one of sample"),
    ("relay", "method=power,nonsense=3", "power has no setting 'nonsense'; sharpen power --help"),
    ("relay", "method=power,alpha=-1", "alpha is -1"), ("relay", "pretrained=./nowhere", "no such folder: ./nowhere"),
    ("relay", "max_new_tokens=100000", "give fewer by max_new_tokens"), ("nonsense", "method=power", "Tasks not found"),
])  # fmt: skip
def test_what_cannot_be_served_is_one_line(task, model_args, message, evaluate):
    assert message in evaluate(task, model_args, code=2)


@pytest.mark.parametrize(("text", "stops", "left"), [
    ("a\n\nb", ["\n\n"], "a"), ("abc", ["c", "b"], "a"), ("abc", [], "abc"), ("abc", ["", "x"], "abc"),
    ("abc", ["a"], ""),
])  # fmt: skip
def test_a_response_ends_before_the_first_stop_string(text, stops, left):
    assert harness.before(text, stops) == left
