"""The set of templates for models with a chat template, after the structure that the papers describe, in our own words.

Roles (2510.01123): author(question), refiner(question, workspace), aggregator(question, drafts), reviser(question,
draft) give a final answer in a box, or with `code_templates` a program in a code block; distiller(question, drafts) a
report; selector(question, drafts, k) a list of indices, best first.

Stages (2605.26132, after 2508.17580), in the order of the cascade:

    cycle      which question does this answer answer? Then: is it the one that was asked? (two calls a vote)
    facts      is every fact, inference and calculation right? Doubt is no error
    correct    work out a solution of your own first; is this one complete and right?

Drafts, candidates and replies are shown to others without their thinking, which ends at "</think>". Of a judge's reply
the last [[Y]] or [[N]] counts, else "verdict: no" and the like, else a last line or a first word that is one; a reply
without one is a dissent, and so is a candidate whose question nobody can infer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from reference.text.text_model import Replies, Role, Stage, Templates, after_thinking
from reference.text.tokenizer import Tokenizer

BOXED = "write the final answer, and nothing else, inside \\boxed{}."  # how an answer is to be given
PROGRAM = "write the whole program in one code block."
AUTHOR = "{question}\n\nWork through this step by step. When you are done, {given}"

DISTILLER = (
    "Problem:\n{question}\n\n{drafts}\n\n"
    "Do not solve the problem anew. Write a short report for somebody who will solve it and sees nothing else:\n"
    "Agreed: what the solutions have in common.\nDisputed: where they contradict each other, and who is right if you "
    "can tell.\nEstablished: intermediate results that you have checked.\nOpen: what is still missing.\nNext: how to "
    "go on."
)
SELECTOR = (
    "Problem:\n{question}\n\n{drafts}\n\n"
    "Which {k} of these solutions are the most likely to be right? Check them, then write their numbers, best first, "
    "separated by commas, inside \\boxed{{}}."
)
REFINER = (
    "{question}\n\n"
    "Here is what is known from earlier attempts. It may be wrong:\n\n{workspace}\n\n"
    "Check it, use what holds, correct what does not, and solve the problem step by step. When you are done, {given}"
)
ANALYST = (
    "Problem:\n{question}\n\nA solution:\n{draft}\n\n"
    "Go through the solution step by step and list its errors and gaps. Do not write a new solution."
)

INFER = (
    "Below is an answer to a question that you are not shown:\n\n{answer}\n\n"
    "Which question does it answer? Write that question down, with everything that is needed to answer it, and nothing "
    "else."
)
COMPARE = (
    "Question A:\n{question}\n\nQuestion B:\n{inferred}\n\n"
    "Do A and B ask for the same thing? Compare what they are about, what is given, what is required, and whether a "
    "complete answer to one would be a complete answer to the other. End with {verdict}."
)
FACTS = (
    "Question:\n{question}\n\nAn answer to it:\n{answer}\n\n"
    "Look for errors of fact, of logic and of calculation, step by step. Be strict about what is wrong; where you only "
    "cannot tell, give the answer the benefit of the doubt. End with {verdict}."
)
CORRECT = (
    "Question:\n{question}\n\nAn answer to it:\n{answer}\n\n"
    "First work out a solution of your own. Then decide whether the answer is completely right: one that is partial, a "
    "mere outline, short of detail, or wrong anywhere is not, and neither is one that you are less than 95 % sure of. "
    "End with {verdict}."
)
VERDICT = "[[Y]] for yes or [[N]] for no"
YES_NO = r"(y(?:es)?|no?)(?![\w'’])"
VERDICTS = [  # how it may be said; of the first form that there is, the last
    re.compile(r"\[\[\s*(y(?:es)?|no?)\s*\]\]", re.IGNORECASE),
    re.compile(rf"\b(?:verdict|answer|decision)(?:\s+is|\s*:)\W{{0,4}}{YES_NO}(?=\s*(?:[.,;!*]|\Z|\n))", re.IGNORECASE),
    re.compile(rf"\A\W*{YES_NO}\W*\Z", re.IGNORECASE),  # nothing else
    re.compile(r"\A\W*(yes|no)(?=\s*[.,;:!])(?!.*\b(?:yes|no|y|n)\b)", re.IGNORECASE | re.DOTALL),
]


def code_templates(tokenizer: Tokenizer) -> Templates:
    """For questions whose answer is a program: it is asked for in a code block, and read from the last one."""
    return chat_templates(tokenizer, PROGRAM, last_block)


def chat_templates(
    tokenizer: Tokenizer, given: str = BOXED, read: Callable[[str], str | None] | None = None
) -> Templates:
    """The roles and stages above, for one tokenizer. given, read: how a final answer is given and read (a box)."""
    read = read or last_boxed

    def ask(text: str, **fields: Any) -> list[int]:
        return tokenizer.chat_prompt([{"role": "user", "content": text.format(**fields)}])

    def author(question: str) -> list[int]:
        return ask(AUTHOR, question=question, given=given)

    def distiller(question: str, drafts: Sequence[str]) -> list[int]:
        return ask(DISTILLER, question=question, drafts=numbered(drafts))

    def selector(question: str, drafts: Sequence[str], k: int) -> list[int]:
        return ask(SELECTOR, question=question, drafts=numbered(drafts), k=k)

    def refiner(question: str, workspace: str) -> list[int]:
        return ask(REFINER, question=question, workspace=workspace, given=given)

    def aggregator(question: str, drafts: Sequence[str]) -> list[int]:
        return ask(REFINER, question=question, workspace=numbered(drafts), given=given)

    def reviser(question: str, draft: str) -> list[int]:
        return ask(REFINER, question=question, workspace=numbered([draft]), given=given)

    def indices(text: str) -> list[int] | None:
        named = [int(number) - 1 for number in re.findall(r"\d+", last_boxed(text) or "")]
        return list(dict.fromkeys(named)) or None

    def infer(question: str, candidate: str, replies: Replies) -> list[list[int]]:
        return [ask(INFER, answer=solution(candidate))]

    def compare(question: str, candidate: str, replies: Replies) -> list[list[int]]:
        inferred = solution(replies[0][0])
        return [ask(COMPARE, question=question, inferred=inferred, verdict=VERDICT)] if inferred else []

    def judge(text: str) -> Stage:
        def turn(question: str, candidate: str, replies: Replies) -> list[list[int]]:
            return [ask(text, question=question, answer=solution(candidate), verdict=VERDICT)]

        return Stage((turn,), last_reply)

    def last_reply(question: str, candidate: str, replies: Replies) -> bool | None:
        return read_verdict(replies[-1][0]) if replies[-1] else None

    return Templates(
        "chat",
        {
            "author": Role(author, read),
            "distiller": Role(distiller, solution),
            "selector": Role(selector, indices),
            "refiner": Role(refiner, read),
            "aggregator": Role(aggregator, read),
            "reviser": Role(reviser, read),
        },
        {"cycle": Stage((infer, compare), last_reply), "facts": judge(FACTS), "correct": judge(CORRECT)},
    )


def chat_analyst(tokenizer: Tokenizer) -> Stage:
    """Error analysis for `sequential_refinement`: its verdict is a workspace, the draft with what is wrong with it."""

    def analyse(question: str, candidate: str, replies: Replies) -> list[list[int]]:
        content = ANALYST.format(question=question, draft=solution(candidate))
        return [tokenizer.chat_prompt([{"role": "user", "content": content}])]

    def workspace(question: str, candidate: str, replies: Replies) -> str:
        return f"{numbered([candidate])}\n\nA critic on it:\n{solution(replies[0][0])}"

    return Stage((analyse,), workspace)


def read_verdict(text: str) -> bool | None:
    """What a reply says after its thinking: True for yes, False for no; None if that is not unmistakable."""
    said = solution(text)
    last = said.rpartition("\n")[2]
    for form, where in zip(VERDICTS, (said, said, last, said)):
        if found := form.findall(where):
            return found[-1][0] in "yY"
    return None


def solution(text: str) -> str:
    """A response without its thinking; nothing of one whose thinking has not ended."""
    return (after_thinking(text) or "").strip()


def numbered(drafts: Sequence[str]) -> str:
    return "\n\n".join(f"Solution {i}:\n{solution(draft)}" for i, draft in enumerate(drafts, 1))


def last_block(text: str) -> str | None:
    """What stands in the last code block, if it is one that ends and has something in it."""
    found = re.findall(r"```[^\n`]*\n(.*?)```", solution(text), re.DOTALL)
    return (found[-1].strip() or None) if found else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} whose braces balance, stripped; None if there is none, or nothing in it.

    \{ and \} are characters, not braces: \boxed{\{1, 2\}} gives \{1, 2\}.
    """
    answer, last, open_braces = None, -1, []  # where each open brace's content starts; -1 if it is not a box
    escaped = -1  # the place of a character that a backslash takes
    for match in re.finditer(r"(\\+)(boxed\s*\{)?|[{}]", text):
        if match[1]:
            escaped = match.end() if len(match[1]) % 2 and not match[2] else -1
        if match[2] or (match[0] == "{" and match.start() != escaped):
            open_braces.append(match.end() if match[2] else -1)
        elif match[0] == "}" and match.start() != escaped and open_braces and (start := open_braces.pop()) > last:
            answer, last = text[start : match.start()].strip() or None, start
    return answer
