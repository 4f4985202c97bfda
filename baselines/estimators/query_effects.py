"""What the answers to a query tell of its utilities: the mode of a mixed logit.

Ours. Contexts explain a part of what users like; the rest belongs to the query, and comes back with
it: when its user tries again, and when another user asks the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import borrowing, compiled

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPREADS = np.array([[0.0, 0.0], [0.25, 1.0], [0.5, 2.0], [1.0, 4.0]])
"""Pairs (s_a, s_b) that the answers choose among."""

PRIOR = 2.0
"""Nats a unit of s_b by which a pair must predict answers better than (0, 0)."""

DOUBT = 25.0
"""Nats a unit of s_b that retrials may gain where nothing persists.

(R) Twice what they gained at most in suite queueing-tuning, in kinds with nothing that persists.
"""

MAX_QUERIES = 16384
"""Queries beyond which the one that was answered longest ago is forgotten."""

MAX_NEWTON = 50
MAX_STEP = 2.0  # of an effect: the quadratic model holds only nearby


@compiled
def _solve(system: Floats, right: Floats) -> None:
    """Solve a small system, in the place of ``right``: Gauss' elimination with row pivots.

    To call LAPACK takes longer for a few LLMs.
    """
    size = len(right)
    for i in range(size):
        pivot = i + np.abs(system[i:, i]).argmax()
        for k in range(i, size):
            system[i, k], system[pivot, k] = system[pivot, k], system[i, k]
        right[i], right[pivot] = right[pivot], right[i]
        for row in range(i + 1, size):
            factor = system[row, i] / system[i, i]
            for k in range(i + 1, size):
                system[row, k] -= factor * system[i, k]
            right[row] -= factor * right[i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            right[i] -= system[i, k] * right[k]
        right[i] /= system[i, i]


@compiled
def effects_mode(
    utilities: Floats,
    shown: Ints,
    counts: Ints,
    kept: Ints,
    s_a: float,
    s_b: float,
    effects: Floats,
) -> None:
    """Move the effects e, shape (N,), to their posterior mode after answers.

    It minimises 1/2 e' C^-1 e - sum_j kept_j e_j + sum_k counts_k log(1 + sum_{j in S_k}
    exp(u_j + e_j)) with C = s_a^2 11' + s_b^2 I, by Newton steps (I + C H) d = -(e + C g): g holds
    the summed choice probabilities less the choices, H their summed diag(p) - p p'. Only the LLMs
    that were shown need a row: the effect of all others is -s_a^2 1'g. O(n K^2 + R^3) a step for R
    of them.

    Parameters
    ----------
    utilities : ndarray
        Utilities u without the effects, shape (N,).
    shown, counts : ndarray
        Assortments S_k that were shown, shape (n, K), and how often, shape (n,).
    kept : ndarray
        How often each LLM's answer was kept, shape (N,).
    s_a, s_b : float
        Standard deviations of the query's own effect and of those of (query, LLM).
    effects : ndarray
        Where to start, and the result.
    """
    llms = np.unique(shown)
    rows = np.searchsorted(llms, shown)
    size, beside = len(llms), shown.shape[1]
    e, odds = effects[llms], np.empty(beside)
    gradient, hessian = np.empty(size), np.empty((size, size))
    step, system = np.empty(size), np.empty((size, size))
    for _ in range(MAX_NEWTON):
        for i in range(size):
            gradient[i] = -kept[llms[i]]
        hessian[:] = 0.0
        for k in range(len(counts)):
            total = 1.0
            for i in range(beside):
                odds[i] = math.exp(min(60.0, utilities[shown[k, i]] + e[rows[k, i]]))
                total += odds[i]
            for i in range(beside):
                p = counts[k] * odds[i] / total
                gradient[rows[k, i]] += p
                hessian[rows[k, i], rows[k, i]] += p
                for j in range(beside):
                    hessian[rows[k, i], rows[k, j]] -= p * odds[j] / total
        slope = gradient.sum()
        for i in range(size):
            steep = hessian[:, i].sum()
            for j in range(size):
                system[j, i] = (i == j) + s_b**2 * hessian[j, i] + s_a**2 * steep
            step[i] = -(e[i] + s_a**2 * slope + s_b**2 * gradient[i])
        _solve(system, step)
        longest = np.abs(step).max()
        for i in range(size):
            e[i] += step[i] * min(1.0, MAX_STEP / max(longest, MAX_STEP))
        if longest < 1e-6:
            break
    effects[:] = -(s_a**2) * gradient.sum()
    effects[llms] = e


@compiled
def _effects_modes(
    utilities: Floats, shown: Ints, counts: Ints, kept: Ints, spreads: Floats, effects: Floats
) -> None:
    """Move the effects under each pair of spreads, shape (pairs, N), to their posterior modes."""
    for pair, (s_a, s_b) in enumerate(spreads):
        if s_a > 0.0 or s_b > 0.0:
            effects_mode(utilities, shown, counts, kept, s_a, s_b, effects[pair])


@borrowing
def _count(
    utilities: Array, effects: Floats, shown: Ints, kept: int, log_likelihood: Floats
) -> None:
    """Add how much likelier than under (0, 0) an answer is under each pair of spreads."""
    loss_without = 0.0
    for pair in range(len(effects)):
        odds, own = 0.0, 0.0
        for llm in shown:
            expected = utilities[llm] + effects[pair, llm]
            odds += math.exp(min(60.0, expected))
            own = expected if llm == kept else own
        loss = math.log1p(odds) - own
        loss_without = loss if pair == 0 else loss_without
        log_likelihood[pair] += loss_without - loss


@borrowing
def _add(utilities: Array, effects: Floats, rows: Ints, pair: int) -> None:
    """Add the effects of queries under a pair of spreads; of those in row -1 nothing is known."""
    for q in range(len(rows)):
        if rows[q] >= 0:
            for llm in range(utilities.shape[1]):
                utilities[q, llm] += effects[rows[q], pair, llm]


class QueryEffects:
    r"""Utilities of queries, given how they were answered before.

    The mixed logit u_j = x . theta_j + a + b_j, with a ~ N(0, s_a^2) a query's own difficulty and
    b_j ~ N(0, s_b^2) what LLM j makes of it; `effects_mode` is what answers tell of e = a + b.

    A query is known by its context: the same numbers are the same query, whoever asks. An answer
    costs a few Newton steps for each pair.

    (s_a, s_b) is chosen from ``SPREADS``: the pair under which the answers to queries that had
    been answered before were likeliest, the mode taken for the truth, and with an exponential prior
    of s_b. (0, 0) changes nothing. (R) s_a is a quarter of s_b: an error of theta that all LLMs
    share would pass for the query's own difficulty.

    (R) The answers that count are those to users who ask what another asked before. A user who
    tries again waits because theta was wrong there, and as long as it is, a retrial is likelier
    with effects also where there are none; so what retrials gain counts beyond ``DOUBT`` only.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.

    Attributes
    ----------
    evidence : ndarray
        Log likelihood of the first answers to users beside that under (0, 0), the prior included,
        for each pair of ``SPREADS``.
    doubtful : ndarray
        The same of the answers to users who tried again, less the doubt.
    """

    def __init__(self, num_llms: int) -> None:
        self.evidence = -PRIOR * SPREADS[:, 1]
        self.doubtful = -DOUBT * SPREADS[:, 1]
        self._rows: dict[bytes, int] = {}  # context -> row, the query answered last at the end
        self._effects = np.zeros((16, len(SPREADS), num_llms))
        self._kept = np.zeros((16, num_llms), np.int64)
        self._arrivals = np.zeros(16, np.int64)  # of the user answered last
        self._shown: list[dict[tuple[int, ...], int]] = []  # assortments and how often

    @property
    def chosen(self) -> int:
        """Number of the pair that all answers speak for."""
        pairs = zip(self.evidence.tolist(), self.doubtful.tolist(), strict=True)
        speaking = [evidence + max(doubtful, 0.0) for evidence, doubtful in pairs]
        return speaking.index(max(speaking))

    @property
    def spread(self) -> tuple[float, float]:
        """The chosen pair (s_a, s_b)."""
        s_a, s_b = SPREADS[self.chosen].tolist()
        return s_a, s_b

    def add_to(self, utilities: Array, contexts: Array) -> None:
        """Add the effects of the queries with contexts (Q, d) to utilities (Q, N)."""
        chosen = self.chosen
        if chosen > 0:
            keys, size = contexts.tobytes(), contexts.itemsize * contexts.shape[1]
            found = [self._rows.get(keys[i : i + size], -1) for i in range(0, len(keys), size)]
            _add(utilities, self._effects, np.array(found), chosen)

    def judge(
        self, context: Array, arrival: int, utilities: Array, shown: list[int], kept: int
    ) -> None:
        """Count the answer of a query that had been answered before, before it is learned from.

        Its user is known by the slot of arrival.
        """
        row = self._rows.get(context.tobytes())
        if row is not None:
            tried_again = self._arrivals[row] == arrival
            told = self.doubtful if tried_again else self.evidence
            _count(utilities, self._effects[row], np.array(shown), kept, told)

    def note(
        self, context: Array, arrival: int, utilities: Array, shown: list[int], kept: int
    ) -> None:
        """Remember an answer: the LLMs shown to a query and the one kept (-1 none)."""
        row = self._row(context.tobytes())
        self._arrivals[row] = arrival
        answers, assortment = self._shown[row], tuple(sorted(shown))
        answers[assortment] = answers.get(assortment, 0) + 1
        if kept >= 0:
            self._kept[row, kept] += 1
        sets, counts = np.array(list(answers)), np.array(list(answers.values()))
        base = np.asarray(utilities, np.float64)
        _effects_modes(base, sets, counts, self._kept[row], SPREADS, self._effects[row])

    def _row(self, key: bytes) -> int:
        """Return the row of a query that is answered now, a new one if it is not remembered."""
        row = self._rows.pop(key, None)
        if row is None and len(self._rows) == MAX_QUERIES:
            row = self._rows.pop(next(iter(self._rows)))
            self._effects[row], self._kept[row], self._shown[row] = 0.0, 0, {}
        elif row is None:
            row = len(self._rows)
            self._shown.append({})
            if row == len(self._kept):
                for name in ("_effects", "_kept", "_arrivals"):
                    old = getattr(self, name)
                    setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self._rows[key] = row
        return row
