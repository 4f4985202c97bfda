"""What the refusals of a waiting query tell of its utilities: the mode of a mixed logit.

Ours. Contexts explain a part of what users like; the rest persists as long as a query waits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import compiled

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPREADS = np.array([[0.0, 0.0], [0.25, 1.0], [0.5, 2.0], [1.0, 4.0]])
"""Pairs (s_a, s_b) that the answers choose among."""

PRIOR = 2.0
"""Nats a unit of s_b by which a pair must predict answers better than (0, 0)."""

MAX_QUERIES = 65536
"""Queries beyond which the oldest is forgotten: it may have left without a word."""

MAX_NEWTON = 50
MAX_STEP = 2.0  # of an effect: the quadratic model holds only nearby


@compiled
def effects_mode(
    utilities: Floats, refused: Ints, counts: Ints, s_a: float, s_b: float, effects: Floats
) -> None:
    """Move the effects e, shape (N,), to their posterior mode after refusals.

    It minimises 1/2 e' C^-1 e + sum_k counts_k log(1 + sum_{j in S_k} exp(u_j + e_j)) with
    C = s_a^2 11' + s_b^2 I, by Newton steps (I + C H) d = -(e + C g): g holds the summed choice
    probabilities, H their summed diag(p) - p p'. Only the LLMs that were refused need a row: the
    effect of all others is -s_a^2 1'g. O(n K^2 + R^3) a step for R of them.

    Parameters
    ----------
    utilities : ndarray
        Utilities u without the effects, shape (N,).
    refused, counts : ndarray
        Assortments S_k that were refused, shape (n, K), and how often, shape (n,).
    s_a, s_b : float
        Standard deviations of the query's own effect and of those of (query, LLM).
    effects : ndarray
        Where to start, and the result.
    """
    llms = np.unique(refused)
    rows = np.searchsorted(llms, refused)
    size, shown = len(llms), refused.shape[1]
    e, odds = effects[llms], np.empty(shown)
    gradient, hessian = np.empty(size), np.empty((size, size))
    for _ in range(MAX_NEWTON):
        gradient[:], hessian[:] = 0.0, 0.0
        for k in range(len(counts)):
            total = 1.0
            for i in range(shown):
                odds[i] = math.exp(min(60.0, utilities[refused[k, i]] + e[rows[k, i]]))
                total += odds[i]
            for i in range(shown):
                p = counts[k] * odds[i] / total
                gradient[rows[k, i]] += p
                hessian[rows[k, i], rows[k, i]] += p
                for j in range(shown):
                    hessian[rows[k, i], rows[k, j]] -= p * odds[j] / total
        system, right = np.eye(size) + s_b**2 * hessian, np.empty(size)
        for i in range(size):
            system[:, i] += s_a**2 * hessian[:, i].sum()
            right[i] = -(e[i] + s_a**2 * gradient.sum() + s_b**2 * gradient[i])
        step = np.linalg.solve(system, right)
        longest = np.abs(step).max()
        e += step * min(1.0, MAX_STEP / max(longest, MAX_STEP))
        if longest < 1e-6:
            break
    effects[:] = -(s_a**2) * gradient.sum()
    effects[llms] = e


class Refusals:
    r"""Utilities of waiting queries, given what they refused before.

    The mixed logit u_j = x . theta_j + a + b_j, with a ~ N(0, s_a^2) a query's own difficulty and
    b_j ~ N(0, s_b^2) what LLM j makes of it; `effects_mode` is what refusals tell of e = a + b.

    (s_a, s_b) is chosen from ``SPREADS``: the pair under which the answers of queries that had
    been refused before were likeliest, the mode taken for the truth, and with an exponential prior
    of s_b. (0, 0) changes nothing. (R) s_a is a quarter of s_b: an error of theta that all LLMs
    share would pass for the query's own difficulty.

    A query is known by the slot it arrived in. A refusal costs a few Newton steps for each pair.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.

    Attributes
    ----------
    evidence : ndarray
        Log likelihood of the answers under each pair of ``SPREADS``, the prior included.
    """

    def __init__(self, num_llms: int) -> None:
        self.evidence = -PRIOR * SPREADS[:, 1]
        self._num_llms = num_llms
        self._effects: dict[int, Floats] = {}  # slot of arrival -> (pairs, N)
        self._refused: dict[int, dict[tuple[int, ...], int]] = {}  # assortments and how often

    @property
    def spread(self) -> tuple[float, float]:
        """The chosen pair (s_a, s_b)."""
        s_a, s_b = SPREADS[self.evidence.argmax()].tolist()
        return s_a, s_b

    def add_to(self, utilities: Array, arrivals: Ints) -> None:
        """Add the effects of the queries that arrived in these slots (Q,) to utilities (Q, N)."""
        chosen = self.evidence.argmax()
        if SPREADS[chosen].any():
            for row, arrival in enumerate(arrivals.tolist()):
                if (effects := self._effects.get(arrival)) is not None:
                    utilities[row] += effects[chosen]

    def judge(self, arrival: int, utilities: Array, shown: list[int], kept: int) -> None:
        """Count the answer of a query that had refused before, before it is learned from."""
        if (effects := self._effects.get(arrival)) is not None:
            expected = utilities[shown] + effects[:, shown]
            total = np.log1p(np.exp(expected.clip(max=60.0)).sum(axis=1))
            self.evidence -= total if kept < 0 else total - expected[:, shown.index(kept)]

    def note(self, arrival: int, utilities: Array, shown: list[int], kept: int) -> None:
        """Remember a refusal; forget a query that left."""
        if kept >= 0:
            self._effects.pop(arrival, None)
            self._refused.pop(arrival, None)
            return
        if len(self._effects) > MAX_QUERIES:
            oldest = next(iter(self._effects))
            del self._effects[oldest], self._refused[oldest]
        effects = self._effects.setdefault(arrival, np.zeros((len(SPREADS), self._num_llms)))
        refused = self._refused.setdefault(arrival, {})
        assortment = tuple(sorted(shown))
        refused[assortment] = refused.get(assortment, 0) + 1
        base = np.asarray(utilities, np.float64)
        sets, counts = np.array(list(refused)), np.array(list(refused.values()))
        for row, (s_a, s_b) in zip(effects, SPREADS.tolist(), strict=True):
            if s_a or s_b:
                effects_mode(base, sets, counts, s_a, s_b, row)
