"""text/text_model.py: roles, stages, how a template set is found, and a folder that is saved and loaded whole."""

import json
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from reference import sampling
from reference.text.chat_templates import chat_templates, code_templates, last_boxed
from reference.text.text_model import Role, Stage, Templates, TextModel, make_templates
from reference.text.tokenizer import Tokenizer
from reference.transformer import Config, Transformer

WORDS = ["<unk>", "<s>", "</s>", "solve", "judge", ":", "=", ".", *map(str, range(10))]
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}{{ eos_token }}"


def make_tokenizer(template: str | None = None) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "</s>"])
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    files = {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(config)}
    return Tokenizer({name: text.encode() for name, text in files.items()})


def relay_templates(tokenizer: Tokenizer) -> Templates:
    """A set as a world writes it: a function of the tokenizer."""

    def author(question):
        return tokenizer.encode(f"solve {question} :")

    def value(text):
        words = text.split()
        return int(words[1]) if len(words) == 3 and words[1].isdecimal() else None

    return Templates("relay", {"author": Role(author, value), "reviser": Role(author, value)})


class Successor:
    """A LanguageModel whose next token is a function of the last one: what it will say is known."""

    vocab_size, device, max_length = len(WORDS), torch.device("cpu"), None
    after = tuple({":": "=", "=": "4", "4": ".", ".": "</s>"}.get(word, "<unk>") for word in WORDS)

    def new_cache(self, rows, capacity):
        return self

    def copy_rows(self, source, target, other=None, length=None):
        pass  # nothing is remembered, so nothing is copied

    def __call__(self, tokens, positions=None, cache=None, *, logits=True):
        following = torch.tensor([WORDS.index(self.after[token]) for token in tokens.flatten().tolist()])
        return 60.0 * torch.nn.functional.one_hot(following, self.vocab_size).float().view(*tokens.shape, -1)


@pytest.fixture
def text_model():
    tokenizer = make_tokenizer()
    return TextModel(Successor(), tokenizer, tokenizer.stop_ids, relay_templates(tokenizer))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with random weights; `extra` goes into its config.json."""

    def write(template=None, **extra):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = {"model_type": "llama", "vocab_size": len(WORDS), "max_position_embeddings": 64, **sizes, **extra}
        model = Transformer(Config.from_dict(config))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(tmp_path)
        make_tokenizer(template).save(tmp_path)
        return tmp_path

    return write


# ---------------------------------------------------------------------------------------------------------------------
# Roles and stages


def test_a_role_is_asked_and_its_reply_read(text_model):
    fields = [{"question": "3"}, {"question": "1 2"}]
    texts, generation = text_model.ask("author", fields, max_new_tokens=8, samples_per_prompt=2, temperature=0)
    assert texts == [["= 4 ."] * 2] * 2
    assert text_model.parse("author", texts[0][0]) == 4
    assert text_model.parse("author", "= four .") is None
    sample = generation.samples[0][0]
    assert sample.finished and sample.tokens.tolist() == [WORDS.index(word) for word in ("=", "4", ".", "</s>")]
    assert generation.cost.calls == 4 and generation.cost.prompt_tokens == 2 * 3 + 2 * 4
    assert text_model.prompt("author", question="3") == [WORDS.index(word) for word in ("solve", "3", ":")]


def test_settings_reach_generate(text_model):
    dot = WORDS.index(".")
    texts, generation = text_model.reply([[WORDS.index(":")]], max_new_tokens=8, stop_ids=[dot], temperature=0)
    assert texts == [["= 4 ."]] and generation.samples[0][0].tokens[-1] == dot  # one token before the usual stop
    unstopped = replace(text_model, stop_ids=frozenset())
    assert not unstopped.reply([[WORDS.index(":")]], max_new_tokens=5, temperature=0)[1].samples[0][0].finished


@pytest.mark.parametrize("templates", [Templates("empty"), None])
def test_an_absent_role_is_named(templates, text_model):
    text_model = text_model if templates is None else replace(text_model, templates=templates)
    has = "none at all" if templates else "author, reviser"
    for ask in (
        lambda: text_model.prompt("distiller", question="3"),
        lambda: text_model.parse("distiller", ""),
        lambda: text_model.ask("distiller", [{}], max_new_tokens=1),
    ):
        with pytest.raises(ValueError, match=f"has no role 'distiller', only: {has}"):
            ask()
    with pytest.raises(ValueError, match="has no stage 'cycle', only: none at all"):
        text_model.templates.stage("cycle")


def test_judges_cycles_and_reviews_are_all_stages(text_model):
    """One driver, three shapes of stages: what the verification cascade will do with them."""
    encode = text_model.tokenizer.encode

    def run(stage, question, candidate):
        replies, asked = [], []
        for turn in stage.turns:
            prompts = turn(question, candidate, replies)
            asked.append([text_model.tokenizer.decode(prompt) for prompt in prompts])
            replies.append([f"re {prompt}" for prompt in asked[-1]])
        return stage.verdict(question, candidate, replies), asked

    judge = Stage((lambda q, c, replies: [encode(f"judge {q} = {c}")],), lambda q, c, r: r[0][0].endswith("= 4"))
    cycle = Stage(
        (
            lambda q, c, replies: [encode(f"judge {c}")],
            lambda q, c, replies: [encode(f"judge {replies[0][0].split()[-1]} {q}")],
        ),
        lambda q, c, replies: replies[1][0] == f"re judge {c} {q}",
    )
    review = Stage(
        (lambda q, c, replies: [encode(f"judge {step}") for step in c.split()],),
        lambda q, c, replies: all(reply == f"re judge {step}" for reply, step in zip(replies[0], c.split())),
    )
    assert run(judge, "3", "4") == (True, [["judge 3 = 4"]])
    assert run(judge, "3", "5") == (False, [["judge 3 = 5"]])
    assert run(cycle, "3", "4") == (True, [["judge 4"], ["judge 4 3"]])
    assert run(review, "3", "1 2 3") == (True, [["judge 1", "judge 2", "judge 3"]])
    templates = Templates("all", stages={"cycle": cycle, "steps": review, "whole": judge})
    assert list(templates.stages) == ["cycle", "steps", "whole"]  # the order of the cascade
    assert templates.stage("steps") is review


# ---------------------------------------------------------------------------------------------------------------------
# Finding a set


def test_a_set_is_made_from_the_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "far_world.py").write_text(
        "from reference.text.text_model import Role, Templates\n"
        "READY = Templates('ready')\n"
        "def TEMPLATES(tokenizer):\n"
        "    return Templates('far', {'author': Role(lambda question: tokenizer.encode(question), str)})\n"
        "def WRONG(tokenizer): return 3\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = make_tokenizer()
    far = make_templates("far_world:TEMPLATES", tokenizer)
    assert far.name == "far" and far.role("author").prompt(question="3") == tokenizer.encode("3")
    assert make_templates("far_world:READY", tokenizer).name == "ready"
    assert make_templates(relay_templates, tokenizer).name == "relay"
    assert make_templates(far, tokenizer) is far
    for name, message in {
        "far_world": "'far_world' cannot be found .* give 'module:object'",
        "no_such_world:TEMPLATES": "No module named 'no_such_world'",
        "far_world:ABSENT": "has no attribute 'ABSENT'",
        ":TEMPLATES": "cannot be found",
        "far_world:WRONG": "gave a int; it must be a Templates",
        "far_world:NUMBER": "gave a int; it must be a Templates",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_templates(name, tokenizer)


def test_which_set_a_folder_gets(folder, tmp_path, monkeypatch):
    """The argument, else config.json's key, else the chat set, else none."""
    (tmp_path / "near_world.py").write_text(
        "from reference.text.text_model import Templates\ndef TEMPLATES(tokenizer): return Templates('near')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def name(path, **settings):
        return TextModel.from_pretrained(path, **settings).templates.name

    assert name(folder()) == "none"
    assert name(folder(CHAT)) == "chat"
    assert name(folder(CHAT, templates="toy.relay:TEMPLATES")) == "relay"
    with pytest.raises(ValueError, match="names the template set 'near_world:TEMPLATES', which is none of those"):
        name(folder(CHAT, templates="near_world:TEMPLATES"))  # a checkpoint does not choose what is imported
    assert name(folder(CHAT, templates="near_world:TEMPLATES"), templates="near_world:TEMPLATES") == "near"
    assert name(folder(CHAT, templates="near_world:TEMPLATES"), templates=relay_templates) == "relay"
    assert name(folder(), templates="near_world:TEMPLATES") == "near"
    with pytest.raises(ValueError, match="templates 'gone:TEMPLATES' cannot be found"):
        name(folder(), templates="gone:TEMPLATES")


# ---------------------------------------------------------------------------------------------------------------------
# Whole folders


def test_a_saved_folder_loads_and_says_the_same(folder, tmp_path):
    """Loading takes the settings through to the model; saving keeps words, stop ids, and the named set."""
    path = folder(CHAT, eos_token_id=WORDS.index("."))
    first = TextModel.from_pretrained(path, dtype=torch.float64, max_length=40)
    assert first.model.dtype == torch.float64 and first.model.max_length == 40
    assert first.stop_ids == {WORDS.index("."), WORDS.index("</s>")}
    settings = {"max_new_tokens": 6, "samples_per_prompt": 4, "seed": 3}
    said = first.ask("author", [{"question": "1 2"}], **settings)[0]
    assert len(set(said[0])) > 1
    copy = tmp_path / "copy"
    first.save_pretrained(copy)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} == {
        each.name for each in copy.iterdir()
    }
    second = TextModel.from_pretrained(copy, max_length=40)
    assert second.stop_ids == first.stop_ids and second.templates.name == "chat"
    assert second.ask("author", [{"question": "1 2"}], **settings)[0] == said
    assert second.ask("author", [{"question": "1 3"}], **settings)[0] != said  # the question is heard


def test_the_same_as_by_hand(folder):
    """`ask` is encode, generate, decode and nothing else."""
    text_model = TextModel.from_pretrained(folder(), templates=relay_templates)
    prompt = text_model.tokenizer.encode("solve 7 :")
    settings = {"max_new_tokens": 6, "samples_per_prompt": 3, "seed": 1}
    generation = sampling.generate(text_model.model, [prompt], stop_ids=text_model.stop_ids, **settings)
    texts = [text_model.tokenizer.decode(sample.tokens) for sample in generation.samples[0]]
    assert text_model.ask("author", [{"question": "7"}], **settings)[0] == [texts]


def test_what_cannot_be_loaded_or_saved_is_named(folder, tmp_path, text_model):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TextModel.from_pretrained(tmp_path / "nowhere")
    path = folder()
    (path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json does not exist"):
        TextModel.from_pretrained(path)
    with pytest.raises(ValueError, match="a Successor has no files to save"):
        text_model.save_pretrained(tmp_path / "new")


# ---------------------------------------------------------------------------------------------------------------------
# The chat set


def test_the_chat_author_asks_through_the_chat_template():
    tokenizer = make_tokenizer(CHAT)
    author = chat_templates(tokenizer).role("author")
    seen = []
    tokenizer.chat_prompt = lambda messages: seen.append(messages) or [1]
    assert author.prompt(question=r"What is {x} in \frac{1}{2}?") == [1]
    [[message]] = seen
    assert message["role"] == "user" and message["content"].startswith(r"What is {x} in \frac{1}{2}?")
    assert message["content"].endswith(r"\boxed{}.") and "step by step" in message["content"]
    assert author.parse(r"so \boxed{5}") == "5" and author.parse("so 5") is None


def test_the_code_set_asks_for_a_program_and_reads_it():
    tokenizer, seen = make_tokenizer(CHAT), []
    tokenizer.chat_prompt = lambda messages: seen.append(messages[0]["content"]) or [1]
    chat = code_templates(tokenizer)
    chat.role("author").prompt(question="Write f(x) = {x}.")
    chat.role("refiner").prompt(question="Write f.", workspace="w")
    chat.role("aggregator").prompt(question="Write f.", drafts=["a"])
    chat.role("reviser").prompt(question="Write f.", draft="a")
    assert all("code block" in content and "boxed" not in content for content in seen)
    reply = "Try:\n```python\nx = 1\n```\nNo, so:\n```py\ndef f(x):\n    return x\n```\nDone."
    for role in ("author", "refiner", "aggregator", "reviser"):
        assert chat.role(role).parse(reply) == "def f(x):\n    return x"
    for text in ("def f(x): return x", "```python\ndef f(x):", "<think>```\nx\n```", "```\n\n```", r"\boxed{1}"):
        assert chat.role("author").parse(text) is None, text
    assert list(chat.stages) == ["cycle", "facts", "correct"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \text{a {b} c} } {d}", r"\text{a {b} c}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),  # an escaped brace closes nothing
        (r"} { \boxed {7} }", "7"),
        (r"\boxed{1} but then \boxed{2", "1"),  # cut at the horizon
        (r"\boxed{\boxed{3}", "3"),
        (r"\boxed{x = \boxed{4}}", "4"),
        (r"line \\\boxed{8}", "8"),
        ("\\boxed{\n9\n}", "9"),
        (r"\boxed{5} as asked, in \boxed{}", None),
        (r"\boxed{", None),
        (r"boxed{5} \fbox{5} \boxed 5", None),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


def test_last_boxed_takes_linear_time():
    assert last_boxed(r"\boxed{" * 100_000 + "1}") == "1"
    assert last_boxed(r"\boxed{2}" + r"\boxed{" * 100_000) == "2"
