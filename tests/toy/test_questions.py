"""Questions for a real model: different ones, answers that are right, and how a response is read."""

import re

import pytest

from toy.questions import CAPITALS, FAMILIES, Question, questions, read, right, stop_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_two_hundred_different_questions(family):
    asked = questions(family, 200)
    assert len({question.question for question in asked}) == len({question.id for question in asked}) == 200
    assert all(question.family == family and question.answer for question in asked)
    assert questions(family, 20) == asked[:20] and questions(family, 20, seed=1) != asked[:20]


def test_answers_are_right():
    operations = {"times": "*", "plus": "+", "minus": "-"}
    for family in ("products", "sums"):
        for question in questions(family, 200):
            a, word, b = re.fullmatch(r"What is (\d+) (\w+) (\d+)\?", question.question).groups()
            assert int(question.answer) == eval(f"{a} {operations[word]} {b}")
    for question in questions("largest", 200):
        assert int(question.answer) == max(map(int, re.findall(r"\d+", question.question)))
    for question in questions("letters", 200):
        assert question.answer == question.question.split('"')[1][0]
    for question in questions("stories", 200):
        a, b = map(int, re.findall(r"\d+", question.question))
        expected = {"more": a + b, "each. How": a * b, "equally": a / b, "away": a - b}
        assert int(question.answer) == next(n for word, n in expected.items() if word in question.question)


def test_capitals_are_asked_both_ways():
    asked = questions("capitals", 200)
    forth = [question for question in asked if question.question.startswith("What is the capital")]
    assert 50 < len(forth) < 150
    assert all(
        CAPITALS[question.question[len("What is the capital of ") : -1]] == question.answer for question in forth
    )
    assert not any("capital Mexico City" in question.question for question in asked)


@pytest.mark.parametrize(("family", "question", "text", "answer"), [
    ("products", "What is 7 times 12?", "7 times 12 is 84.", "84"),
    ("products", "What is 7 times 12?", " 1,084", "1084"),
    ("products", "What is 7 times 12?", "It is 84.0", "84"),
    ("products", "What is 7 times 12?", "many", None),
    ("letters", 'What is the first letter of the word "horse"?', 'The first letter of "horse" is "h".', "h"),
    ("letters", 'What is the first letter of the word "horse"?', " H", "h"),
    ("letters", 'What is the first letter of the word "apple"?', " a", "a"),
    ("letters", 'What is the first letter of the word "apple"?', "It is a vowel", None),
    ("capitals", "What is the capital of Peru?", "The capital of Peru is Lima, not Quito.", "Lima"),
    ("capitals", "What is the capital of Mexico?", "The capital of Mexico is Mexico City.", "Mexico City"),
    ("capitals", "What is the capital of Tunisia?", "Tunis", "Tunis"),
    ("capitals", "Which country has the capital Lima?", "Lima is in Peru", "Peru"),
    ("capitals", "What is the capital of Nigeria?", "nowhere", None),
])  # fmt: skip
def test_how_a_response_is_read(family, question, text, answer):
    asked = Question(f"{family}-0-0", question, "x")
    assert read(asked, text) == answer
    assert answer is None or right(Question(asked.id, question, answer), text)
    assert not right(asked, text)


def test_bad_families_are_named():
    with pytest.raises(ValueError, match="there is no family 'riddles'"):
        questions("riddles", 1)
    with pytest.raises(ValueError, match="letters has 211 questions, not 500"):
        questions("letters", 500)


def test_a_raw_response_ends_with_its_line():
    class Tokens:
        vocab_size = 4

        def decode(self, ids, skip_special_tokens=True):
            return ["a", "\n", " b\n\n", "c"][ids[0]]

    class Speaker:
        tokenizer, stop_ids = Tokens(), {3}

    assert stop_ids(Speaker(), "raw") == [1, 2, 3] and stop_ids(Speaker(), "chat") == [3]
