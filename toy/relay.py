"""The relay task: a running value in Z_p, L operations, and people who are imperfect in known ways.

A question is a start value and L operations; a draft restates each operation, writes the value after it, and ends with
a final line. All arithmetic is modulo p = 11, and one token is one number, so every step is a look-up that a small
model can truly learn:

    question   3 + 4 x 2 + 5 x 7 + 1                 ((((3 + 4) x 2) + 5) x 7) + 1
    draft      + 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 2 .   "+ 4 makes 7, x 2 makes 3, ..., the answer is 2"
    shortcut   = 6 .                                 a guess, with no steps at all

The corpus that `toy/pretrain.py` trains on is written by *demonstrators* who err at the rates of `Rates`; nothing else
in this project ever sees the truth, but for grading. **The gap between generating and verifying is put into the corpus
on purpose**: reviewers are more careful than authors, as the papers assume of language models. What the methods then
make of it is not put in. Three classes of problems teach three lessons:

    plain      the right draft is the most likely response, token by token: any sharpening helps
    tempting   the first two operations are alike (+ + or x x), and most authors guess at once: the most likely first
               token has many poor futures, so sharpening tokens hurts and sharpening whole responses helps
    hard       some "x k" has k in the hard set, where most authors add k instead: the wrong draft is the most likely,
               so sharpening of any kind hurts, and only verification and refinement help
               (a problem that is both hard and tempting counts as hard; its authors are tempted all the same)

Roles, all played by one model; each is a format `word ... :` with a response that ends in ".":

    solve Q :                  -> draft        the author
    review Q :                 -> draft        the reviewer solves the question again, more carefully
    check 7 x 2 :              -> 3 .          the reviewer re-derives one step of a draft from the value before it
    ask DRAFT :                -> Q .          which question does this draft answer? ("? ." if it shows no steps)
    distill Q | V | V | V | V : -> V .         four drafts' values into a workspace: values, or "?" where unsure
    refine Q | V :             -> draft        an author who is given a workspace V = v_1 .. v_L, "?" for unknown
    revise Q | V = v :         -> draft        an author who is given one earlier draft's values and final answer

In numpy code a question, a draft or a prompt is a row of token ids, and a batch of them a matrix; a number's id is the
number itself. Rows of drafts are filled up with NOTHING (-1) after the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reference.text.text_model import Replies, Role, Stage, Templates
from reference.text.tokenizer import Tokenizer

NOTHING = -1  # fills rows after their end; never a token


@dataclass(frozen=True)
class Rates:
    """How the demonstrators err. Every number is a probability."""

    # The author
    slip: float = 0.05  # per step: writes another value than the one derived
    misread: float = 0.03  # per step: reads another operand k than the question's, and restates it so
    final_slip: float = 0.06  # writes another final answer than the last value
    misconception: float = 0.70  # of authors believe that x k means + k, for every k in the hard set
    shortcut_tempting: float = 0.62  # of authors answer at once, by a uniform guess, on tempting problems
    shortcut_elsewhere: float = 0.30  # ... and on all others
    # The reviewer: solves again, checks steps, infers questions, and distills
    review_slip: float = 0.01
    review_misread: float = 0.005
    review_final_slip: float = 0.005
    review_misconception: float = 0.30
    # The distiller is a reviewer who may only write what some draft wrote
    distill_checks: float = 1.0  # of distillers check the drafts; the others write each step's most frequent value
    distill_guess: float = 0.15  # where a checking distiller is unsure: writes the most frequent value instead of "?"
    # The refiner and the reviser are authors with something to build on; it changes nothing else about them
    refine_trust: float = 0.99  # copies a workspace's value that differs from the one believed
    revise_trust: float = 0.40  # copies an earlier draft's value that differs from the one believed


@dataclass(frozen=True)
class World:
    """One relay task: its size and its demonstrators."""

    p: int = 11  # values are 0 .. p - 1; a prime
    steps: int = 5  # L
    hard: tuple[int, ...] = (3, 8)  # the k for which "x k" is widely misunderstood
    drafts: int = 4  # drafts that one distiller reads
    rates: Rates = field(default_factory=Rates)

    @property
    def words(self) -> list[str]:
        """The vocabulary; a word's id is its place."""
        return [str(v) for v in range(self.p)] + [*"+x=?.:|", *ROLES]

    def id(self, word: str) -> int:
        return self.words.index(word)

    @property
    def signs(self) -> tuple[int, ...]:
        """The ids of + x = ? . : | in this order."""
        return tuple(range(self.p, self.p + 7))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text whose words are separated by spaces."""
        index = {word: i for i, word in enumerate(self.words)}
        if unknown := [word for word in text.split() if word not in index]:
            raise ValueError(f"{unknown[0]!r} in {text!r} is not a word of this world; it has {' '.join(self.words)}")
        return [index[word] for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        words = self.words
        return " ".join(words[i] for i in ids if i != NOTHING)

    @property
    def draft_length(self) -> int:
        return 3 * self.steps + 3


WORLDS = {
    "relay": World(),
    # Null worlds, in which a method must lose its effect if it has it for the reason that it says
    "careless": World(rates=Rates(review_slip=0.05, review_misread=0.03, review_final_slip=0.06,
                                  review_misconception=0.7)),
    "plurality": World(rates=Rates(distill_checks=0.0)),
    "misguided": World(rates=Rates(review_misconception=0.9)),
    # For a GPU
    "large": World(p=97, steps=10, hard=tuple(range(3, 97, 10))),
}  # fmt: skip
ROLES = ("solve", "review", "check", "ask", "distill", "refine", "revise")

# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic and problems


def apply(world: World, sign, k, x, misconceived=False):
    """The value after operation `sign k` on x; the misconceived read x k as + k where k is in the hard set."""
    plus = np.asarray(sign) == world.signs[0]
    adds = plus | (np.asarray(misconceived) & np.isin(k, world.hard))
    return np.where(adds, x + k, x * k) % world.p


def solve(world: World, questions: np.ndarray) -> np.ndarray:
    """The true values after each step, [n, L]."""
    values, x = [], questions[:, 0]
    for t in range(world.steps):
        x = apply(world, questions[:, 2 * t + 1], questions[:, 2 * t + 2], x)
        values.append(x)
    return np.stack(values, 1)


def is_tempting(world: World, questions: np.ndarray) -> np.ndarray:
    return questions[:, 1] == questions[:, 3]


def is_hard(world: World, questions: np.ndarray) -> np.ndarray:
    return ((questions[:, 1::2] == world.signs[1]) & np.isin(questions[:, 2::2], world.hard)).any(1)


def problem_class(world: World, questions: np.ndarray) -> np.ndarray:
    """Names, [n]: "hard", "tempting" or "plain"."""
    kinds = np.where(is_tempting(world, questions), "tempting", "plain")
    return np.where(is_hard(world, questions), "hard", kinds)


SPLITS = {"heldout": (0,), "seeds": (1,), "pretrain": tuple(range(2, 16))}  # which residues of the question's hash


def split_of(questions: np.ndarray) -> np.ndarray:
    """A residue in 0..15 for each question: a fixed 64-bit hash of its ids decides who may see it."""
    h = np.full(len(questions), 0x9E3779B97F4A7C15, np.uint64)
    for column in questions.T:
        h = (h ^ column.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(29)
    return (h >> np.uint64(60)).astype(np.int64)


def make_questions(world: World, n: int, rng: np.random.Generator, split: str = "pretrain") -> np.ndarray:
    """n questions of one split ("pretrain", "seeds" or "heldout"; disjoint), int64 [n, 1 + 2 L]."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist; there are {', '.join(SPLITS)}")
    kept, plus, times = np.empty((0, 1 + 2 * world.steps), np.int64), *world.signs[:2]
    while len(kept) < n:
        m = 64 + 17 * n // len(SPLITS[split])  # a few more than are likely to be needed
        q = np.empty((m, 1 + 2 * world.steps), np.int64)
        q[:, 0] = rng.integers(0, world.p, m)
        q[:, 1::2] = rng.choice((plus, times), (m, world.steps))
        # + k for k in 1..p-1, x k for k in 2..p-1: nothing that leaves every value as it is
        q[:, 2::2] = np.where(q[:, 1::2] == plus, rng.integers(1, world.p, (m, world.steps)),
                              rng.integers(2, world.p, (m, world.steps)))  # fmt: skip
        kept = np.concatenate((kept, q[np.isin(split_of(q), SPLITS[split])]))
    return kept[:n]


def split_questions(world: World, n: int, seed: int = 0, split: str = "heldout") -> np.ndarray:
    """The first n of a split's endless list of questions; the list is a function of the seed."""
    rng, blocks = np.random.default_rng([seed, *split.encode()]), -(-n // 1000)
    # In blocks, so that a longer list begins like a shorter one
    return np.concatenate([make_questions(world, 1000, rng, split) for _ in range(blocks)])[:n]


# ---------------------------------------------------------------------------------------------------------------------
# The demonstrators


@dataclass(frozen=True)
class Habits:
    """One person's rates; see `Rates`."""

    slip: float
    misread: float
    final_slip: float
    misconception: float


def author_habits(r: Rates) -> Habits:
    return Habits(r.slip, r.misread, r.final_slip, r.misconception)


def reviewer_habits(r: Rates) -> Habits:
    return Habits(r.review_slip, r.review_misread, r.review_final_slip, r.review_misconception)


def mistake(value: np.ndarray, rate: float, rng, low: int, high: int) -> np.ndarray:
    """`value`, but with probability `rate` uniformly another number of low..high-1."""
    n = value.shape
    other = low + (value - low + rng.integers(1, high - low, n)) % (high - low)
    return np.where(rng.random(n) < rate, other, value)


def read_operand(world: World, sign, k, rate: float, rng) -> np.ndarray:
    """k as read from the question: a misreader sees another operand that such an operation can have."""
    return np.where(sign == world.signs[0], mistake(k, rate, rng, 1, world.p), mistake(k, rate, rng, 2, world.p))


def write_drafts(
    world: World, questions: np.ndarray, habits: Habits, rng, given: np.ndarray | None = None, trust: float = 0.0
) -> np.ndarray:
    """Worked drafts, ids [n, 3 L + 3]. `given` [n, L]: values that lie before the writer, "?" where there is none.

    At each step the writer reads the operation, derives the value that it would make, and writes it, or slips. A given
    value that is equal to the derived one is copied (so there is no slip); one that differs is copied with
    probability `trust`.
    """
    n, (_, _, equals, unknown, end, *_) = len(questions), world.signs
    believes = rng.random(n) < habits.misconception
    drafts, x = np.empty((n, world.draft_length), np.int64), questions[:, 0]
    for t in range(world.steps):
        sign = questions[:, 2 * t + 1]
        k = read_operand(world, sign, questions[:, 2 * t + 2], habits.misread, rng)
        derived = apply(world, sign, k, x, believes)
        x = mistake(derived, habits.slip, rng, 0, world.p)
        if given is not None:
            copies = (given[:, t] == derived) | (rng.random(n) < trust)
            x = np.where((given[:, t] != unknown) & copies, given[:, t], x)
        drafts[:, 3 * t], drafts[:, 3 * t + 1], drafts[:, 3 * t + 2] = sign, k, x
    drafts[:, -3], drafts[:, -2], drafts[:, -1] = equals, mistake(x, habits.final_slip, rng, 0, world.p), end
    return drafts


def take_shortcuts(world: World, questions: np.ndarray, drafts: np.ndarray, rng, may=True) -> np.ndarray:
    """The same drafts, but that the hasty among those who `may` guess instead: "= v ." and nothing else."""
    r = world.rates
    rate = np.where(is_tempting(world, questions), r.shortcut_tempting, r.shortcut_elsewhere)
    hasty = (rng.random(len(questions)) < rate) & may
    return np.where(hasty[:, None], guess_answers(world, drafts, rng), drafts)


def guess_answers(world: World, drafts: np.ndarray, rng) -> np.ndarray:
    """A uniform guess in place of each draft: "= v ."."""
    guesses = np.full_like(drafts, NOTHING)
    guesses[:, 0], guesses[:, 1], guesses[:, 2] = world.id("="), rng.integers(0, world.p, len(drafts)), world.id(".")
    return guesses


def author_drafts(world: World, questions: np.ndarray, rng) -> np.ndarray:
    return take_shortcuts(world, questions, write_drafts(world, questions, author_habits(world.rates), rng), rng)


def review_drafts(world: World, questions: np.ndarray, rng) -> np.ndarray:
    return write_drafts(world, questions, reviewer_habits(world.rates), rng)


def refine_drafts(world: World, questions: np.ndarray, workspaces: np.ndarray, rng) -> np.ndarray:
    """Authors who are given workspaces [n, L]; an empty one ("?" only) leaves the author, haste included."""
    drafts = write_drafts(world, questions, author_habits(world.rates), rng, workspaces, world.rates.refine_trust)
    return take_shortcuts(world, questions, drafts, rng, (workspaces == world.signs[3]).all(1))


def revise_drafts(world: World, questions: np.ndarray, earlier: np.ndarray, rng) -> np.ndarray:
    """Authors who are given the values [n, L] of an earlier draft. They always show their steps."""
    return write_drafts(world, questions, author_habits(world.rates), rng, earlier, world.rates.revise_trust)


def check_steps(world: World, sign, k, x, rng) -> np.ndarray:
    """A reviewer's value for the single step `x sign k`."""
    h = reviewer_habits(world.rates)
    value = apply(world, sign, k, x, rng.random(x.shape) < h.misconception)
    return mistake(value, h.slip, rng, 0, world.p)


def values_of(world: World, drafts: np.ndarray) -> np.ndarray:
    """The values [n, L] that drafts show after each step; "?" for a draft without steps."""
    worked = drafts[:, :1] != world.signs[2]
    return np.where(worked, drafts[:, 2 : 3 * world.steps : 3], world.signs[3])


def final_of(world: World, drafts: np.ndarray) -> np.ndarray:
    return np.where(drafts[:, 0] == world.signs[2], drafts[:, 1], drafts[:, -2])


def infer_questions(world: World, drafts: np.ndarray, rng) -> np.ndarray:
    """Reviewers who read a draft and undo its first step: questions and ".", ids [n, 2 + 2 L]; "? ." without steps."""
    n, (plus, _, equals, unknown, end, *_) = len(drafts), world.signs
    h, out = reviewer_habits(world.rates), np.full((n, 2 + 2 * world.steps), NOTHING, np.int64)
    signs, ks = drafts[:, 0 : 3 * world.steps : 3], drafts[:, 1 : 3 * world.steps : 3]
    k, y = ks[:, 0], drafts[:, 2]
    adds = (signs[:, 0] == plus) | ((rng.random(n) < h.misconception) & np.isin(k, world.hard))
    inverse = np.array([pow(int(v), -1, world.p) if v else 0 for v in range(world.p)])
    start = np.where(adds, y - k, y * inverse[k % world.p]) % world.p
    out[:, 0] = mistake(start, h.slip, rng, 0, world.p)
    out[:, 1:-1:2] = signs
    out[:, 2:-1:2] = read_operand(world, signs, ks, h.misread, rng)
    out[:, -1] = end
    silent = drafts[:, 0] == equals
    out[silent] = NOTHING
    out[silent, 0], out[silent, 1] = unknown, end
    return out


def most_frequent(world: World, values: np.ndarray) -> np.ndarray:
    """Of each row of values [n, M], "?" not counted: the most frequent, the smallest of several; "?" if none."""
    counts = (values[:, :, None] == np.arange(world.p)).sum(1)  # [n, p]
    return np.where(counts.any(1), counts.argmax(1), world.signs[3])


def distill_values(world: World, questions: np.ndarray, values: np.ndarray, rng) -> np.ndarray:
    """Distillers: the values [n, M, L] of M drafts -> workspaces [n, L].

    A distiller walks along the question as a reviewer does: derives the next value from the last one in the workspace
    and writes it down if some draft has it there. Where none has, the trail is lost: from there on "?", or now and
    then the most frequent value. (Those who do not check write the most frequent value everywhere.)
    """
    n, r, h, unknown = len(questions), world.rates, reviewer_habits(world.rates), world.signs[3]
    workspace, x = np.empty((n, world.steps), np.int64), questions[:, 0]
    believes = rng.random(n) < h.misconception
    checks = rng.random(n) < r.distill_checks
    sure = checks.copy()
    for t in range(world.steps):
        sign = questions[:, 2 * t + 1]
        k = read_operand(world, sign, questions[:, 2 * t + 2], h.misread, rng)
        x = mistake(apply(world, sign, k, x, believes), h.slip, rng, 0, world.p)
        sure &= (values[:, :, t] == x[:, None]).any(1)
        guesses = ~checks | (rng.random(n) < r.distill_guess)
        workspace[:, t] = np.where(sure, x, np.where(guesses, most_frequent(world, values[:, :, t]), unknown))
    return workspace


# ---------------------------------------------------------------------------------------------------------------------
# The author's exact distribution: what a perfect model of `author_drafts` would predict


def author_law(world: World, questions: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """P(next token | question, prefix) for authors, float64 [n, vocabulary]; prefix ids [n, t], t < 3 L + 3.

    Authors are a mixture (some hold the misconception), so this weighs both kinds by what the prefix says about them.
    """
    n, t, r, (_, _, equals, _, end, *_) = len(questions), prefix.shape[1], world.rates, world.signs
    law = np.zeros((n, len(world.words)))
    rows = np.arange(n)
    if t == 0:
        hasty = np.where(is_tempting(world, questions), r.shortcut_tempting, r.shortcut_elsewhere)
        law[rows, equals], law[rows, questions[:, 1]] = hasty, 1 - hasty
        return law

    def around(value, rate, low, high):  # [n, p]: `value`, or with probability `rate` another one of low..high-1
        numbers = np.arange(world.p)
        allowed = (numbers >= low) & (numbers < high)
        return np.where(numbers == value[:, None], 1 - rate, allowed * rate / (high - low - 1))

    weights = np.array([[1 - r.misconception, r.misconception]]).repeat(n, 0)  # of both kinds of author
    x = questions[:, 0]
    for step in range(min(t // 3 + 1, world.steps)):
        sign, k_true = questions[:, 2 * step + 1], questions[:, 2 * step + 2]
        at = t - 3 * step  # which token of this step is next
        if at == 0:
            law[rows, sign] = 1
        elif at == 1:
            law[:, : world.p] = np.where((sign == world.signs[0])[:, None], around(k_true, r.misread, 1, world.p),
                                         around(k_true, r.misread, 2, world.p))  # fmt: skip
        else:
            k = prefix[:, 3 * step + 1] % len(world.words)
            kinds = np.stack([around(apply(world, sign, k, x, b), r.slip, 0, world.p) for b in (False, True)], 1)
            if at == 2:
                law[:, : world.p] = (weights[:, :, None] * kinds).sum(1) / weights.sum(1, keepdims=True)
            else:
                x = prefix[:, 3 * step + 2] % world.p
                weights = weights * kinds[rows, :, x]
                weights = np.where(weights.sum(1, keepdims=True) > 0, weights, 1)
    if t == 3 * world.steps:
        law[rows, equals] = 1
    elif t == 3 * world.steps + 1:
        law[:, : world.p] = around(x, r.final_slip, 0, world.p)
    elif t == 3 * world.steps + 2:
        law[rows, end] = 1
    hasty = prefix[:, 0] == equals
    law[hasty] = 0
    if t == 1:
        law[hasty, : world.p] = 1 / world.p
    else:
        law[hasty, end] = 1
    return law


def sample_author_law(world: World, questions: np.ndarray, rng, temperature: float = 1.0):
    """Drafts from the author's distribution, each token's distribution sharpened to p^(1/temperature) (0 = greedy) ->
    drafts, logp [n].

    logp is the response's log-probability at temperature 1.
    """
    n, equals = len(questions), world.id("=")
    drafts, logp = np.empty((n, 0), np.int64), np.zeros(n)
    for t in range(world.draft_length):
        law = author_law(world, questions, drafts)
        done = (drafts[:, 0] == equals) & (t >= 3) if t else np.zeros(n, bool)
        if temperature == 0:
            token = law.argmax(1)
        else:
            sharp = law ** (1 / temperature)
            cdf = sharp.cumsum(1)
            token = (cdf < rng.random(n)[:, None] * cdf[:, -1:]).sum(1)
        logp += np.where(done, 0, np.log(law[np.arange(n), token]))
        drafts = np.concatenate((drafts, np.where(done, NOTHING, token)[:, None]), 1)
    return drafts, logp


# ---------------------------------------------------------------------------------------------------------------------
# Grading: what only the experimenter sees

ERRORS = ("right", "slip", "misread", "final line", "misconception", "shortcut", "malformed")


def classify(world: World, questions: np.ndarray, drafts: np.ndarray) -> np.ndarray:
    """Each draft's class: the index in ERRORS of its first error in reading order (0: none). drafts: ids [n, any].

    A step is misread if it restates another operation than the question's; a misconception if it has the value of + k
    for a hard x k; a slip if it has any other wrong value. Each step is judged from the value before it, as written.
    A shortcut is one even if its guess is lucky.
    """
    L, (plus, times, equals, _, end, *_) = world.steps, world.signs
    padded = np.full((len(drafts), max(world.draft_length, drafts.shape[1])), NOTHING)
    padded[:, : drafts.shape[1]] = drafts
    drafts, excess = padded[:, : world.draft_length], (padded[:, world.draft_length :] != NOTHING).any(1)
    number = (drafts >= 0) & (drafts < world.p)
    signs, ks, values = (drafts[:, i : 3 * L : 3] for i in range(3))
    shortcut = (drafts[:, 0] == equals) & number[:, 1] & (drafts[:, 2] == end) & (drafts[:, 3:] == NOTHING).all(1)
    worked = (
        ((signs == plus) | (signs == times)).all(1) & number[:, 1 : 3 * L : 3].all(1) & number[:, 2 : 3 * L : 3].all(1)
        & (drafts[:, -3] == equals) & number[:, -2] & (drafts[:, -1] == end) & ~excess
    )  # fmt: skip
    before = np.concatenate((questions[:, :1], values[:, :-1]), 1)
    misread = (signs != questions[:, 1::2]) | (ks != questions[:, 2::2])
    wrong = values != apply(world, signs, ks, before)
    misconceived = wrong & (values == apply(world, signs, ks, before, True))
    step = np.select([misread, misconceived, wrong], [ERRORS.index(e) for e in ("misread", "misconception", "slip")], 0)
    first = step[np.arange(len(step)), (step > 0).argmax(1)]
    final = np.where(drafts[:, -2] != values[:, -1], ERRORS.index("final line"), 0)
    kind = np.where(first > 0, first, final)
    return np.select([shortcut, ~worked], [ERRORS.index("shortcut"), ERRORS.index("malformed")], kind)


def answers_of(world: World, drafts: np.ndarray) -> np.ndarray:
    """The number between "=" and "." at each draft's end, [n]; NOTHING if there is none."""
    _, _, equals, _, end, *_ = world.signs
    length = (drafts != NOTHING).sum(1)
    at = np.arange(len(drafts))
    last = [np.where(length > i, drafts[at, length - 1 - i], NOTHING) for i in range(3)]
    return np.where((last[0] == end) & (last[1] < world.p) & (last[2] == equals), last[1], NOTHING)


@dataclass(frozen=True)
class Problem:
    """A question with what the experimenter knows about it."""

    id: str
    question: str  # "3 + 4 x 2 + 5 x 7 + 1"
    answer: str  # "2"
    kind: str  # plain, tempting or hard


def make_problems(n: int, seed: int = 0, split: str = "heldout", world: World | None = None) -> list[Problem]:
    """n problems of a split, a function of the arguments."""
    world = world or World()
    if n < 1:
        raise ValueError(f"{n} problems were asked for; ask for at least 1")
    questions = split_questions(world, n, seed, split)
    truth, kinds = solve(world, questions)[:, -1], problem_class(world, questions)
    return [Problem(f"{split}-{seed}-{i}", world.decode(q), str(x), str(kind))
            for i, (q, x, kind) in enumerate(zip(questions, truth, kinds))]  # fmt: skip


def answer(text: str) -> str | None:
    """A draft's final answer, the number of a last line "= v ."; None if it has none. The grader compares it."""
    words = text.split()
    if words[-1:] == ["."]:
        words.pop()
    return words[-1] if len(words) >= 2 and words[-2] == "=" and words[-1].isdecimal() else None


# ---------------------------------------------------------------------------------------------------------------------
# How the model is spoken to


def show_values(question: str, draft: str) -> str:
    """The values that a draft shows after each step, as distillers and revisers see them; "?" where it shows none."""
    steps = (len(question.split()) - 1) // 2
    words = draft.split("=")[0].split()
    worked = len(words) == 3 * steps and set(words[0::3]) <= {"+", "x"} and all(w.isdecimal() for w in words[2::3])
    return " ".join(words[2::3] if worked else ["?"] * steps)


def read_reply(text: str) -> str:
    return text.removesuffix(".").strip()


def read_workspace(text: str) -> str | None:
    """Values and "?" alone, or None."""
    words = read_reply(text).split()
    return " ".join(words) if words and all(word == "?" or word.isdecimal() for word in words) else None


def TEMPLATES(tokenizer: Tokenizer, most: int = World.drafts) -> Templates:
    """The relay world's roles and stages. Questions, drafts and workspaces are texts as shown above.

    Roles: author(question), reviewer(question), refiner(question, workspace), reviser(question, draft) give a final
    answer; distiller(question, drafts: at most 4) gives a workspace. One that has not a value or "?" for each step is
    taken as empty, None and "" among them.
    Stages, in the order of the cascade: cycle (is the question that the draft seems to answer the one asked?), facts
    (is each step, derived again, the same?), correct (does a new solution have the same answer?).
    """

    def encode(*parts: str) -> list[int]:
        text = " ".join(parts)
        try:
            return tokenizer.encode(text)
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{text!r} has a word that the relay world has not; see toy/relay.py: {error}") from None

    def author(question: str) -> list[int]:
        return encode("solve", question, ":")

    def reviewer(question: str) -> list[int]:
        return encode("review", question, ":")

    def empty(question: str) -> str:
        return show_values(question, "")

    def distiller(question: str, drafts: Sequence[str]) -> list[int]:
        if not 0 < len(drafts) <= most:
            raise ValueError(f"a relay distiller reads 1 to {most} drafts, not {len(drafts)}; give it fewer at a time")
        shown = [show_values(question, draft) for draft in drafts] + [empty(question)] * (most - len(drafts))
        return encode("distill", question, *("| " + values for values in shown), ":")

    def refiner(question: str, workspace: str | None = "") -> list[int]:
        nothing = empty(question)
        fits = workspace is not None and len(workspace.split()) == len(nothing.split())
        return encode("refine", question, "|", workspace if workspace and fits else nothing, ":")

    def reviser(question: str, draft: str) -> list[int]:
        return encode("revise", question, "|", show_values(question, draft), "=", answer(draft) or "?", ":")

    def ask(question: str, candidate: str, replies) -> list[list[int]]:
        return [encode("ask", read_reply(candidate), ". :")] if answer(candidate) else []

    def check(question: str, candidate: str, replies) -> list[list[int]]:
        """One prompt for each step, from the value before it as the draft has it."""
        values = show_values(question, candidate).split()
        if "?" in values:
            return []
        words = candidate.split()
        before = [question.split()[0], *values]
        return [encode("check", before[t], words[3 * t], words[3 * t + 1], ":") for t in range(len(values))]

    def review(question: str, candidate: str, replies) -> list[list[int]]:
        return [encode("review", question, ":")] if answer(candidate) else []

    def same_question(question: str, candidate: str, replies) -> bool:
        return bool(replies[0]) and read_reply(replies[0][0]) == question

    def same_steps(question: str, candidate: str, replies) -> bool:
        checked = " ".join(read_reply(reply) for reply in replies[0])
        return bool(replies[0]) and checked == show_values(question, candidate)

    def same_answer(question: str, candidate: str, replies) -> bool:
        return bool(replies[0]) and answer(replies[0][0]) == answer(candidate)

    return Templates(
        "relay",
        roles={
            "author": Role(author, answer),
            "reviewer": Role(reviewer, answer),
            "distiller": Role(distiller, read_workspace),
            "refiner": Role(refiner, answer),
            "reviser": Role(reviser, answer),
        },
        stages={
            "cycle": Stage((ask,), same_question),
            "facts": Stage((check,), same_steps),
            "correct": Stage((review,), same_answer),
        },
    )  # fmt: skip


def analyst(templates: Templates) -> Stage:
    """Error analysis: the reviewer checks each step; the workspace has the values before the first one in doubt."""

    def confirmed(question: str, candidate: str, replies: Replies) -> str:
        values = show_values(question, candidate).split()
        checked = [read_reply(reply) for reply in replies[0]]
        sure = next((t for t, pair in enumerate(zip(values, checked)) if pair[0] != pair[1]), len(checked))
        return " ".join(values[:sure] + ["?"] * (len(values) - sure))

    return Stage(templates.stage("facts").turns[:1], confirmed)
