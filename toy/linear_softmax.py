"""Linear softmax models, the worlds in which drawing and exploring part ways (2412.01951, §4.3, Appendices H and J).

    π_θ(y|x) ∝ m(y) exp⟨φ(x, y), θ⟩,   ‖φ‖ ≤ 1,   ‖θ‖ ≤ B                                         (Definition J.3)

Sharpening stays in the class: π_θ^(1+1/β) is π_{(1+1/β)θ}. A `LinearSoftmax` is a `TabularLM` whose logits are linear
in a trainable θ, so the distribution may also be a product over the tokens of a response. The worlds:

    hypercube     responses {±1/√d}^d, φ(y) = y, as d tokens of one bit each: bit i is + with probability σ(2θ_i/√d).
                  C_cov = (1 + e^(−2/d))^d → 2^d/e at θ = y*: drawing needs exponentially many samples, exploring d
    packing       points of the unit sphere at least `distance` apart, φ(y) = y: the paper's Example J.1
    needle        e^s "dull" responses with φ = 0 and 2d others with φ = ±e_i. The dull ones are one token with
                  m = e^s, so that s = 200 costs what s = 10 does. One θ = log 2·(±e_j) doubles one of the 2d
    lower bound   Theorem 3.1's class: each of d rare prompts hides one response of M, a table, nothing shared

A prompt is one token, its number; responses to an atomic world (all but the hypercube) are one token too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reference.interface import Samples
from toy.tabular import TabularLM


class LinearSoftmax(TabularLM):
    """logits[state, v] = ⟨features[state, v], θ⟩ + offset[state, v], all float64. offset: log m, or -inf where a token
    cannot be. `radius`: B; a longer θ counts as its projection on the ball: no optimiser can leave the class."""

    def __init__(
        self, features: Tensor, transition: Tensor, offset: Tensor, theta: Tensor, radius: float = math.inf,
        max_length: int | None = None,
    ):  # fmt: skip
        nn.Module.__init__(self)
        self.features: Tensor
        self.transition: Tensor
        self.offset: Tensor
        for name, table in (("features", features), ("transition", transition), ("offset", offset)):
            self.register_buffer(name, table)
        self.theta = nn.Parameter(theta.double().clone(), requires_grad=False)
        self.radius, self.vocab_size, self.max_length = radius, features.shape[1], max_length

    @property
    def parameter(self) -> Tensor:
        """θ in the ball, [dim]."""
        if self.radius == math.inf:
            return self.theta
        return self.theta * (self.radius / self.theta.norm().clamp(min=self.radius))

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return self.features @ self.parameter + self.offset

    def at(self, theta: Tensor, radius: float | None = None) -> LinearSoftmax:
        """The same world's policy with another θ (and ball)."""
        policy = copy.copy(self)
        policy._parameters = {"theta": nn.Parameter(theta.double().clone(), requires_grad=False)}
        policy.radius = self.radius if radius is None else radius
        return policy

    @torch.no_grad()
    def law(self, prompt: int = 0) -> Tensor:
        """Log-probabilities of the tokens of an atomic world, float64 [vocab]: of atoms, multiplicity included."""
        return self.logits[1 + prompt].log_softmax(-1)

    # -- the worlds ---------------------------------------------------------------------------------------------------

    @classmethod
    def hypercube(cls, theta: Tensor, signs: Tensor | None = None, radius: float = math.inf) -> LinearSoftmax:
        """d bits (token 1 is +) after each prompt. signs [prompts, d] of ±1: prompts share θ, φ(x, y) = signs[x]∘y."""
        d = len(theta)
        signs = torch.ones(1, d, dtype=torch.float64) if signs is None else signs.double()
        prompts, vocab = len(signs), max(2, len(signs))
        features = torch.zeros(1 + prompts * d, vocab, d, dtype=torch.float64)  # state 1 + x·d + i: bit i comes next
        offset = torch.zeros(1 + prompts * d, vocab, dtype=torch.float64)
        offset[1:, 2:] = -math.inf
        transition = torch.zeros(offset.shape, dtype=torch.int64)
        transition[0, :prompts] = 1 + d * torch.arange(prompts)
        for i in range(d):
            states = 1 + d * torch.arange(prompts) + i
            features[states, 0, i], features[states, 1, i] = -signs[:, i] / math.sqrt(d), signs[:, i] / math.sqrt(d)
            transition[states] = (states + 1)[:, None] if i + 1 < d else 0
        return cls(features, transition, offset, theta, radius, max_length=1 + d)

    @classmethod
    def atoms(cls, features: Tensor, offset: Tensor, theta: Tensor, radius: float = math.inf) -> LinearSoftmax:
        """Responses of one token: features [prompts, responses, dim], offset [prompts, responses]."""
        prompts, responses, dim = features.shape
        vocab = max(prompts, responses)
        table = torch.zeros(1 + prompts, vocab, dim, dtype=torch.float64)
        table[1:, :responses] = features
        shifts = torch.full((1 + prompts, vocab), -math.inf, dtype=torch.float64)
        shifts[0], shifts[1:, :responses] = 0.0, offset
        transition = torch.zeros((1 + prompts, vocab), dtype=torch.int64)
        transition[0, :prompts] = 1 + torch.arange(prompts)
        return cls(table, transition, shifts, theta, radius, max_length=2)

    @classmethod
    def packing(cls, points: Tensor, theta: Tensor, radius: float = math.inf) -> LinearSoftmax:
        """One prompt whose responses are points [n, d] of the unit sphere."""
        return cls.atoms(points[None], torch.zeros(1, len(points), dtype=torch.float64), theta, radius)

    @classmethod
    def needle(cls, d: int, s: float, theta: Tensor, prompts: int = 1, radius: float = math.inf) -> LinearSoftmax:
        """Token 0: the e^s dull responses; token 1 + i: +e_i; token 1 + d + i: −e_i. Several prompts share θ, their
        coordinates rotated: at prompt x token 1 + i has the feature e_{(i + x) mod d}."""
        axes = torch.eye(d, dtype=torch.float64)
        features = torch.zeros(prompts, 1 + 2 * d, d, dtype=torch.float64)
        offset = torch.zeros(prompts, 1 + 2 * d, dtype=torch.float64)
        offset[:, 0] = s
        for x in range(prompts):
            features[x, 1:] = torch.cat((axes, -axes)).roll(x, 1)
        return cls.atoms(features, offset, theta, radius)

    @classmethod
    def lower_bound(cls, hidden: Sequence[int], m: int, gamma: float = 0.5) -> LinearSoftmax:
        """Theorem 3.1's base model (App. H): prompt 0 has one response, token 0; prompt i hides token hidden[i-1] among
        the tokens 1..m, with 1/((1−γ)m); the others have (1 − γ/((m−1)(1−γ)))/m each."""
        d = len(hidden)
        logp = torch.full((d, m), math.log((1 - gamma / ((m - 1) * (1 - gamma))) / m), dtype=torch.float64)
        logp[torch.arange(d), torch.tensor(hidden) - 1] = -math.log((1 - gamma) * m)
        features = torch.zeros(1 + d, 1 + m, d * m, dtype=torch.float64)
        features[1:, 1:] = torch.eye(d * m, dtype=torch.float64).view(d, m, d * m)
        offset = torch.full((1 + d, 1 + m), -math.inf, dtype=torch.float64)
        offset[0, 0], offset[1:, 1:] = 0.0, 0.0
        return cls.atoms(features, offset, logp.flatten())


def per_response(world: LinearSoftmax) -> Callable[[Samples], Tensor]:
    """The self-reward of an atomic world, log π_base of *one* response: an atom's score less its log-multiplicity.
    (Samples -> float64 [prompts, n]; the multiplicity must be the same at every prompt.)"""
    return lambda samples: samples.total_logp() - world.offset[1][samples.tokens[..., 0]]


def needle_class(world: LinearSoftmax, beta: float) -> list[LinearSoftmax]:
    """The needle's finite class of 4d policies: θ = a(±e_j), a = log 2, the base among them, and the sharpened
    θ = (1+1/β)a(±e_j), the base's π*_β among them."""
    axes = torch.eye(len(world.theta), dtype=torch.float64)
    signed = torch.cat((axes, -axes)) * math.log(2)
    return [world.at(theta) for theta in torch.cat((signed, (1 + 1 / beta) * signed))]


def greedy_packing(d: int, distance: float, candidates: int, seed: int = 0) -> Tensor:
    """Points [n, d] of the unit sphere, no two nearer than `distance`: of random candidates each that fits."""
    normal = torch.randn(candidates, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kept = torch.empty(0, d, dtype=torch.float64)
    for point in normal / normal.norm(dim=1, keepdim=True):
        if not len(kept) or (kept - point).norm(dim=1).min() >= distance:
            kept = torch.cat((kept, point[None]))
    return kept
