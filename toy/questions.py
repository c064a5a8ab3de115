"""Questions in plain English, of which a small language model gets some right and some wrong: six families.

    products    What is 7 times 12?                      largest     Which number is the largest: 34, 87 or 52?
    sums        What is 14 plus 8? .. 17 minus 9?        letters     What is the first letter of the word "horse"?
    stories     Tom has 12 apples and buys 5 more. ..    capitals    What is the capital of Peru? and back

Made from a seed: no data set is shipped. A question is asked as *chat*, the user's turn of the model's chat template,
or *raw*, "Question: ...\\nAnswer:", where a line's end is the response's end. A number is read as graders do, the last
one of the response; a letter must stand alone; of places the first counts that the question has not named.

    python -m toy.questions products capitals --n 200 --seed 7 > task.jsonl         (for sharpen evaluate --task)
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from reference.evaluation.answers import as_number, value_in
from reference.text.text_model import TextModel

FORMS = ("chat", "raw")
SYSTEM_SEED = 0  # of the questions that the figures ask


@dataclass(frozen=True)
class Question:
    id: str  # family and number: what addresses its randomness
    question: str
    answer: str

    @property
    def family(self) -> str:
        return self.id.partition("-")[0]


# ---------------------------------------------------------------------------------------------------------------------
# What is asked

NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Maria", "Jack", "Emma")
THINGS = ("apples", "books", "pencils", "marbles", "stamps", "coins", "cookies", "cards")
WORDS = """
apple banana cherry lemon orange grape melon peach carrot potato tomato onion garlic pepper cabbage spinach bread
butter cheese sugar honey coffee table chair window door garden kitchen bedroom ceiling carpet mirror pillow blanket
candle basket bottle bucket hammer ladder needle thread button pocket jacket sweater shirt trousers gloves scarf shoe
boot mountain river forest desert island ocean valley meadow village city street bridge tunnel castle church school
hospital library museum theater station airport harbor market bakery farmer teacher doctor nurse lawyer baker painter
singer dancer writer soldier sailor pilot driver captain engineer king queen prince princess horse rabbit squirrel
elephant tiger lion monkey giraffe zebra camel donkey sheep goat chicken duck goose turkey eagle sparrow pigeon parrot
penguin dolphin whale shark salmon turtle lizard snake frog spider butterfly beetle mosquito flower tree branch leaf
root seed summer winter autumn spring morning evening midnight yesterday tomorrow weekend birthday holiday journey
ticket suitcase passport compass map camera computer keyboard telephone television radio newspaper magazine dictionary
alphabet sentence paragraph chapter poem story picture painting sculpture music guitar piano violin trumpet drum
circle square triangle rectangle number minute hour second calendar weather thunder lightning rainbow cloud snow ice
fire smoke shadow light silver gold copper iron steel glass paper plastic leather cotton wool silk
""".split()  # noqa: SIM905
CAPITALS = {
    "Afghanistan": "Kabul", "Albania": "Tirana", "Algeria": "Algiers", "Angola": "Luanda",
    "Argentina": "Buenos Aires", "Armenia": "Yerevan", "Australia": "Canberra", "Austria": "Vienna",
    "Azerbaijan": "Baku", "Bangladesh": "Dhaka", "Belarus": "Minsk", "Belgium": "Brussels", "Bolivia": "Sucre",
    "Botswana": "Gaborone", "Brazil": "Brasilia", "Bulgaria": "Sofia", "Cambodia": "Phnom Penh",
    "Cameroon": "Yaounde", "Canada": "Ottawa", "Chad": "N'Djamena", "Chile": "Santiago", "China": "Beijing",
    "Colombia": "Bogota", "Croatia": "Zagreb", "Cuba": "Havana", "Cyprus": "Nicosia", "Denmark": "Copenhagen",
    "Ecuador": "Quito", "Egypt": "Cairo", "Estonia": "Tallinn", "Ethiopia": "Addis Ababa", "Fiji": "Suva",
    "Finland": "Helsinki", "France": "Paris", "Gabon": "Libreville", "Georgia": "Tbilisi", "Germany": "Berlin",
    "Ghana": "Accra", "Greece": "Athens", "Haiti": "Port-au-Prince", "Honduras": "Tegucigalpa", "Hungary": "Budapest",
    "Iceland": "Reykjavik", "India": "New Delhi", "Indonesia": "Jakarta", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Italy": "Rome", "Jamaica": "Kingston", "Japan": "Tokyo", "Jordan": "Amman",
    "Kazakhstan": "Astana", "Kenya": "Nairobi", "Kuwait": "Kuwait City", "Laos": "Vientiane", "Latvia": "Riga",
    "Lebanon": "Beirut", "Liberia": "Monrovia", "Libya": "Tripoli", "Lithuania": "Vilnius",
    "Madagascar": "Antananarivo", "Malawi": "Lilongwe", "Malaysia": "Kuala Lumpur", "Mali": "Bamako",
    "Malta": "Valletta", "Mexico": "Mexico City", "Moldova": "Chisinau", "Mongolia": "Ulaanbaatar",
    "Morocco": "Rabat", "Mozambique": "Maputo", "Namibia": "Windhoek", "Nepal": "Kathmandu",
    "Netherlands": "Amsterdam", "New Zealand": "Wellington", "Nicaragua": "Managua", "Niger": "Niamey",
    "Nigeria": "Abuja", "Norway": "Oslo", "Oman": "Muscat", "Pakistan": "Islamabad", "Panama": "Panama City",
    "Paraguay": "Asuncion", "Peru": "Lima", "Philippines": "Manila", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Qatar": "Doha", "Romania": "Bucharest", "Russia": "Moscow", "Rwanda": "Kigali", "Saudi Arabia": "Riyadh",
    "Senegal": "Dakar", "Serbia": "Belgrade", "Slovakia": "Bratislava", "Slovenia": "Ljubljana",
    "Somalia": "Mogadishu", "South Korea": "Seoul", "Spain": "Madrid", "Sudan": "Khartoum", "Sweden": "Stockholm",
    "Syria": "Damascus", "Tanzania": "Dodoma", "Thailand": "Bangkok", "Tunisia": "Tunis", "Turkey": "Ankara",
    "Uganda": "Kampala", "Ukraine": "Kyiv", "United Kingdom": "London", "United States": "Washington",
    "Uruguay": "Montevideo", "Uzbekistan": "Tashkent", "Venezuela": "Caracas", "Vietnam": "Hanoi", "Yemen": "Sanaa",
    "Zambia": "Lusaka", "Zimbabwe": "Harare",
}  # fmt: skip


def products() -> Iterator[tuple[str, object]]:
    yield from ((f"What is {a} times {b}?", a * b) for a in range(2, 13) for b in range(2, 21))


def sums() -> Iterator[tuple[str, object]]:
    yield from ((f"What is {a} plus {b}?", a + b) for a in range(2, 21) for b in range(2, 21))
    yield from ((f"What is {a} minus {b}?", a - b) for a in range(4, 31) for b in range(2, min(a, 21)))


def stories() -> Iterator[tuple[str, object]]:
    for a in range(2, 13):
        for b in range(2, 10):
            who, what = NAMES[(a + b) % len(NAMES)], THINGS[(3 * a + b) % len(THINGS)]
            yield f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?", a + b
            yield f"There are {a} boxes with {b} {what} each. How many {what} are there in all?", a * b
            yield f"{a * b} {what} are shared equally among {b} friends. How many {what} does each friend get?", a
            if a > b:
                yield f"{who} has {a} {what} and gives away {b}. How many {what} does {who} have left?", a - b


def largest() -> Iterator[tuple[str, object]]:
    for a in range(11, 100, 4):
        for b in range(12, 100, 5):
            for c in range(13, 100, 7):
                if len({a, b, c}) == 3:
                    yield f"Which number is the largest: {a}, {b} or {c}?", max(a, b, c)


def letters() -> Iterator[tuple[str, object]]:
    yield from ((f'What is the first letter of the word "{word}"?', word[0]) for word in WORDS)


def capitals() -> Iterator[tuple[str, object]]:
    for country, capital in CAPITALS.items():
        yield f"What is the capital of {country}?", capital
        if country not in capital:  # "Mexico City" tells
            yield f"Which country has the capital {capital}?", country


FAMILIES: dict[str, Callable[[], Iterator[tuple[str, object]]]] = {
    make.__name__: make for make in (products, sums, stories, largest, letters, capitals)
}


def questions(family: str, n: int, seed: int = SYSTEM_SEED) -> list[Question]:
    """n different questions. ValueError: no such family, or it has fewer."""
    if family not in FAMILIES:
        raise ValueError(f"there is no family {family!r}; there are {', '.join(FAMILIES)}")
    known = sorted({question: str(answer) for question, answer in FAMILIES[family]()}.items())
    if n > len(known):
        raise ValueError(f"{family} has {len(known)} questions, not {n}")
    order = np.random.default_rng([seed, [*FAMILIES].index(family)]).permutation(len(known))
    return [Question(f"{family}-{seed}-{i}", *known[at]) for i, at in enumerate(order[:n].tolist())]


# ---------------------------------------------------------------------------------------------------------------------
# How it is asked, and what is right


def prompt_of(speaker: TextModel, question: Question, form: str) -> list[int]:
    """As chat or raw."""
    if form == "chat":
        return speaker.tokenizer.chat_prompt([{"role": "user", "content": question.question}])
    return speaker.tokenizer.encode(f"Question: {question.question}\nAnswer:")


def stop_ids(speaker: TextModel, form: str) -> list[int]:
    """The model's own; a raw response also ends with its line."""
    if form == "chat":
        return sorted(speaker.stop_ids)
    tokenizer = speaker.tokenizer
    lines = [i for i in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([i], skip_special_tokens=False)]
    return sorted({*speaker.stop_ids, *lines})


PLACES = re.compile(rf"\b(?:{'|'.join(sorted({*CAPITALS, *CAPITALS.values()}, key=len, reverse=True))})\b")


def read(question: Question, text: str) -> str | None:
    """The answer in a response: its last number; the last letter that stands alone, quoted ones before others; or the
    first capital or country that the question has not named."""
    if question.family == "capitals":
        asked = {*PLACES.findall(question.question)}
        return next((place for place in PLACES.findall(text) if place not in asked), None)
    if question.family == "letters":
        alone = re.findall(r"[\"'“‘]([A-Za-z])[.,]?[\"'”’]", text) or re.findall(r"\b(?!I\b|a \w)([A-Za-z])\b", text)
        return alone[-1].lower() if alone else None
    number = as_number(value_in(text, -1) or "")
    return None if number is None else f"{float(number):g}"


def right(question: Question, text: str) -> bool:
    return read(question, text) == question.answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy.questions", description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="+", choices=FAMILIES, metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--n", type=int, default=200, help="questions of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=SYSTEM_SEED)
    arguments = parser.parse_args()
    for family in arguments.families:
        for question in questions(family, arguments.n, arguments.seed):
            print(json.dumps(asdict(question)))


if __name__ == "__main__":
    main()
