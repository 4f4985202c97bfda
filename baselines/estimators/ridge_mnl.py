"""Ridge maximum likelihood for the MNL model over the whole history, refit as choices arrive.

The estimator of ACQB and the CQB family; the only one whose update grows with the history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri

from llmqueue_gym import checks
from llmqueue_gym.compiled import summing

Array = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
State = tuple[Array, Array, Array, Array, Array, NDArray[np.uint32], Ints, Ints, Ints, Ints]

BLOCK = 128
"""Answers of an LLM that lie side by side, so that a kernel computes several at a time."""

MAX_SHIFT = 2.0
"""Largest change of a past utility in one step: the quadratic model holds only nearby."""

MAX_UTILITY = 60.0
"""Bound on a row's utility: its odds then fit in single precision and never get stuck at 0."""

LEAST_ODDS, MOST_ODDS = math.exp(-MAX_UTILITY), math.exp(MAX_UTILITY)

MAX_SWEEPS = 20
"""Sweeps over the shown LLMs in one refit; what is left is taken up when they next appear."""

CHEAP_DIM = 64
"""Up to this many dimensions a gradient costs no more than to tell that it must be small."""

FIRST_RECOMPUTATION = 32
"""Choices of an LLM after which its inverse Hessian is first recomputed from scratch."""

EXPONENTIAL = np.array([1.0 / math.factorial(n) for n in range(24)])
"""Taylor coefficients of e^x, enough for double precision where |x| <= MAX_SHIFT."""


# The state: theta (N, d), the lower triangles of its inverse Hessians (N, d, d), and all answers
# shown, in blocks of one LLM each. Answer i of LLM j, of `sizes[j]`, is column i % BLOCK of block
# `blocks[j, i // BLOCK]`: there stand the context (d, BLOCK), the odds e^{x . theta_j}, in `facts`
# (3, BLOCK) whether it was kept, its weight w in the inverse Hessian and the probability expected
# of it, and in `beside` (K - 1, BLOCK) where the answers shown with it stand (block * BLOCK +
# column). Block 0 is nobody's: its odds, 0, stand beside answers shown with fewer others. `used[0]`
# blocks are in use. An inverse Hessian, of ridge I + sum of w x x^T, is computed anew at
# `recompute_at[j]` answers.


@summing
def _times(inverse: Array, vector: Array) -> Array:
    """Multiply a symmetric matrix, of which the lower triangle is kept."""
    product = np.zeros(len(vector), inverse.dtype)
    for a in range(len(vector)):
        entry, along = vector[a], inverse[a, a] * vector[a]
        for k in range(a):
            product[k] += entry * inverse[a, k]
            along += inverse[a, k] * vector[k]
        product[a] += along
    return product


@summing
def _insert(state: State, context: Array, shown: Ints, choice: int) -> None:
    """Note a choice, and add its answers to the inverse Hessians of the LLMs shown, O(K d^2)."""
    theta, inverse, contexts, odds, facts, beside, blocks, sizes, used, _ = state
    dim = len(context)
    places, real = np.empty(len(shown), np.int64), theta.dtype.type
    total = 1.0
    for number in range(len(shown)):
        llm = shown[number]
        row, column = divmod(sizes[llm], BLOCK)
        if column == 0:
            blocks[llm, row] = used[0]
            used[0] += 1
        block = blocks[llm, row]
        utility = 0.0
        for k in range(dim):
            contexts[block, k, column] = context[k]
            utility += context[k] * theta[llm, k]
        odds[block, column] = math.exp(max(-MAX_UTILITY, min(MAX_UTILITY, utility)))
        facts[block, 0, column] = 1.0 if llm == choice else 0.0
        total += odds[block, column]
        places[number] = block * BLOCK + column
        sizes[llm] += 1
    for number in range(len(shown)):
        llm, (block, column) = shown[number], divmod(places[number], BLOCK)
        for other in range(len(shown) - 1):
            beside[block, other, column] = places[other if other < number else other + 1]
        square = 0.0
        direction = _times(inverse[llm], context)
        for k in range(dim):
            square += context[k] * direction[k]
        probability = odds[block, column] / total
        curvature = probability * (1.0 - probability)
        facts[block, 1, column] = curvature
        scale = real(curvature / (1.0 + curvature * square))
        for a in range(dim):
            along = scale * direction[a]
            for k in range(a + 1):
                inverse[llm, a, k] -= along * direction[k]


@summing
def _still(state: State, llm: int, close: float, tolerance: float) -> bool:
    """Tell whether the squared Newton decrement is at most ``tolerance`` for sure; read no context.

    Its root is at most ``close`` if the probabilities are those expected. Where they differ by e,
    the gradient has sum of e x more, of which the decrement is at most the sum of e^2 / w: w x x^T
    is a part of the Hessian.
    """
    _, _, _, odds, facts, beside, blocks, sizes, _, _ = state
    lane, everyone, away = np.empty(BLOCK, odds.dtype), odds.ravel(), 0.0
    least = odds.dtype.type(LEAST_ODDS)  # where there is no answer yet, e and w are 0
    if close**2 > tolerance:
        return False
    for row in range((sizes[llm] + BLOCK - 1) // BLOCK):
        block = blocks[llm, row]
        own, others, weight, share = odds[block], beside[block], facts[block, 1], facts[block, 2]
        total = odds.dtype.type(0.0)
        for i in range(BLOCK):
            lane[i] = odds.dtype.type(1.0) + own[i]
        for other in range(len(others)):
            for i in range(BLOCK):
                lane[i] += everyone[others[other, i]]
        for i in range(BLOCK):
            error = own[i] / lane[i] - share[i]
            total += error * error / max(least, weight[i])
        away += float(total)
    return bool((close + math.sqrt(away)) ** 2 <= tolerance)


@summing
def _step(state: State, llm: int, ridge: float, tolerance: float) -> tuple[float, float]:
    """Take a quasi-Newton step of theta_j; return the squared Newton decrement before it.

    And the root of the decrement after it, if probabilities change as the inverse Hessian has it.
    """
    theta, inverse, contexts, odds, facts, beside, blocks, sizes, _, _ = state
    dim, rows = theta.shape[1], (sizes[llm] + BLOCK - 1) // BLOCK
    real = theta.dtype.type  # single precision: twice as many numbers at a time
    one, zero = real(1.0), real(0.0)
    gradient = np.zeros(dim, theta.dtype)
    probability, slope = np.empty((2, rows, BLOCK), theta.dtype)
    lane, steep = np.empty(BLOCK, theta.dtype), np.zeros(BLOCK, theta.dtype)
    everyone = odds.ravel()
    for row in range(rows):  # what a block has no answer for yet has x = 0, and adds nothing
        block = blocks[llm, row]
        x, own, outcome, others = contexts[block], odds[block], facts[block, 0], beside[block]
        share = probability[row]
        for i in range(BLOCK):
            lane[i] = one + own[i]
        for other in range(len(others)):
            for i in range(BLOCK):
                lane[i] += everyone[others[other, i]]
        for i in range(BLOCK):
            share[i] = own[i] / lane[i]
            lane[i] = share[i] - outcome[i]
        for k in range(dim):
            total = zero
            for i in range(BLOCK):
                total += lane[i] * x[k, i]
            gradient[k] += total
    for k in range(dim):
        gradient[k] += real(ridge) * theta[llm, k]
    direction = _times(inverse[llm], gradient)
    decrement = straight = 0.0
    for k in range(dim):
        decrement += gradient[k] * direction[k]
        straight += direction[k] * direction[k]
    if decrement <= tolerance:  # also where rounding has cost the inverse its definiteness
        if dim > CHEAP_DIM:
            for row in range(rows):
                facts[blocks[llm, row], 2, :] = probability[row]
        return decrement, math.sqrt(max(0.0, decrement))
    curvature, steepest = ridge * straight, 1e-30
    for row in range(rows):
        x, share, change = contexts[blocks[llm, row]], probability[row], slope[row]
        change[:] = zero
        for k in range(dim):
            along = direction[k]
            for i in range(BLOCK):
                change[i] += along * x[k, i]
        total = zero
        for i in range(BLOCK):
            total += share[i] * (one - share[i]) * change[i] * change[i]
            steep[i] = max(steep[i], abs(change[i]))
        curvature += float(total)
    for i in range(BLOCK):
        steepest = max(steepest, float(steep[i]))
    length = real(min(decrement / curvature, MAX_SHIFT / steepest))
    for k in range(dim):
        theta[llm, k] -= length * direction[k]
    least, most = real(LEAST_ODDS), real(MOST_ODDS)
    for row in range(rows):
        block, change = blocks[llm, row], slope[row]
        own, weight, share = odds[block], facts[block, 1], facts[block, 2]
        if dim > CHEAP_DIM:
            for i in range(BLOCK):
                share[i] = probability[row, i] - length * weight[i] * change[i]
        for i in range(BLOCK):
            shift, power = -length * change[i], zero
            for n in range(len(EXPONENTIAL) - 1, -1, -1):
                power = power * shift + real(EXPONENTIAL[n])
            own[i] = max(least, min(most, own[i])) * power
    return decrement, abs(1.0 - float(length)) * math.sqrt(decrement)


@summing
def _refit(state: State, shown: Ints, ridge: float, tolerance: float) -> int:
    """Step each LLM shown in turn until none moves; return one whose inverse is spoilt, else -1."""
    still, close, costly = 0, np.full(len(shown), np.inf), state[0].shape[1] > CHEAP_DIM
    for turn in range(MAX_SWEEPS * len(shown)):
        place = turn % len(shown)
        llm, decrement = shown[place], 0.0
        if not costly or not _still(state, llm, close[place], tolerance):
            decrement, close[place] = _step(state, llm, ridge, tolerance)
        if decrement < 0.0:
            return int(llm)
        still = still + 1 if decrement <= tolerance else 0
        if still == len(shown):
            break
    return -1


@summing
def _learn(
    state: State, context: Array, shown: Ints, choice: int, ridge: float, tolerance: float
) -> int:
    """Note a choice and refit; return an LLM whose inverse must be recomputed first, else -1."""
    _insert(state, context, shown, choice)
    sizes, recompute_at = state[7], state[9]
    for llm in shown:
        if sizes[llm] >= recompute_at[llm]:
            return int(llm)
    return _refit(state, shown, ridge, tolerance)


class RidgeMNL:
    r"""Ridge maximum likelihood estimate with one theta_j per LLM.

    theta-hat = argmin sum_s -log P(y_s | x_s, S_s, theta) + (ridge / 2) |theta|^2, starting from
    zero and warm-started at every choice.

    ``update`` refits only the LLMs shown (the active set), one after the other, by quasi-Newton
    steps with an exact line step: the inverse Hessian of an LLM is kept by the Sherman-Morrison
    formula with each row's weight p (1 - p) at its insertion, and recomputed when the LLM's
    number of rows has doubled. It stops when the squared Newton decrement g^T H^{-1} g of every
    shown LLM is at most ``tolerance``, so each active block's loss is within about half of that
    of its optimum given the others. LLMs not shown keep their theta until they are shown again;
    the joint loss then stays within ten times ``tolerance`` per LLM of the joint optimum's (a
    test asserts it; estimation error costs d / 2 per LLM). ``solve`` closes the distance.

    Growth: a refit reads each shown LLM's answers two to four times, O(n_j d) a slot, with n_j the
    number of times LLM j was shown; memory is O(K t d). A recomputation is O(n_j d^2 + d^3), at
    doublings only.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    assortment_size : int
        Most LLMs shown at a time, K.
    ridge : float
        Weight lambda_0 of the squared norm.
    tolerance : float
        Squared Newton decrement at which an LLM's refit stops.
    dtype : {"float64", "float32"}
        Storage of the history. Single precision halves the memory traffic, which is the cost of
        a slot at large d; contexts come in single precision anyway.

    Raises
    ------
    ValueError
        If ``ridge`` is not positive or ``tolerance`` negative.
    """

    def __init__(
        self,
        num_llms: int,
        dim: int,
        assortment_size: int = 1,
        ridge: float = 1.0,
        tolerance: float = 1e-3,
        dtype: str = "float64",
    ) -> None:
        checks.number("ridge", ridge, "(0, inf)")
        checks.number("tolerance", tolerance, "[0, inf)")
        self.ridge = ridge
        self.tolerance = tolerance
        self.theta: Array = np.zeros((num_llms, dim), dtype)
        inverse = np.repeat(np.eye(dim, dtype=dtype)[None] / ridge, num_llms, axis=0)
        self._inverse: Array = inverse.astype(dtype)
        self._contexts: Array = np.zeros((8, dim, BLOCK), dtype)
        self._odds: Array = np.zeros((8, BLOCK), dtype)
        self._facts: Array = np.zeros((8, 3, BLOCK), dtype)
        self._beside = np.zeros((8, assortment_size - 1, BLOCK), np.uint32)
        self._blocks = np.zeros((num_llms, 8), np.int64)
        self._sizes = np.zeros(num_llms, np.int64)  # n_j
        self._used = np.ones(1, np.int64)
        self._recompute_at = np.full(num_llms, FIRST_RECOMPUTATION)

    def update(self, context: Array, shown: Sequence[int], kept: int) -> None:
        """Learn from one user: the context (d,), the LLMs shown and the one kept (-1 none)."""
        while self._used[0] + len(shown) > len(self._contexts):
            self._make_room()
        llms, weights = np.array(shown, np.int64), (self.ridge, self.tolerance)
        context, state = np.asarray(context, self.theta.dtype), self._state
        stale = _learn(state, context, llms, kept, *weights)
        for _ in range(MAX_SWEEPS):
            if stale < 0:
                break
            for llm in shown:
                if llm == stale or self._sizes[llm] >= self._recompute_at[llm]:
                    self._recompute(llm)
            stale = _refit(state, llms, *weights)

    @property
    def _state(self) -> State:
        """The arrays of the kernels, in their order."""
        return (
            *(self.theta, self._inverse, self._contexts, self._odds, self._facts, self._beside),
            *(self._blocks, self._sizes, self._used, self._recompute_at),
        )

    def _make_room(self) -> None:
        """Double the room for answers."""
        for name in ("contexts", "odds", "facts", "beside", "blocks"):
            old, axis = getattr(self, f"_{name}"), int(name == "blocks")
            setattr(self, f"_{name}", np.concatenate([old, np.zeros_like(old)], axis=axis))

    def solve(self, tolerance: float = 1e-20, max_sweeps: int = 1000) -> None:
        """Move all LLMs to the joint optimum, recomputing every Hessian: the exact estimate.

        Raises
        ------
        RuntimeError
            If ``max_sweeps`` sweeps do not reach ``tolerance``.
        """
        for _ in range(max_sweeps):
            decrements = []
            for llm in range(len(self.theta)):
                self._recompute(llm)
                decrements.append(_step(self._state, llm, self.ridge, tolerance)[0])
            if max(decrements) <= tolerance:
                return
        raise RuntimeError(f"solve: squared Newton decrement {max(decrements):.1e} > {tolerance}")

    def _recompute(self, llm: int) -> None:
        """Recompute an LLM's odds and inverse Hessian, clearing what rounding has built up."""
        rows, columns = np.divmod(np.arange(self._sizes[llm]), BLOCK)
        blocks = self._blocks[llm, rows]
        contexts = self._contexts[blocks, :, columns]
        odds = np.exp((contexts @ self.theta[llm]).clip(-MAX_UTILITY, MAX_UTILITY))
        self._odds[blocks, columns] = odds
        others = self._odds.ravel()[self._beside[blocks, :, columns]]
        probability = odds / (1.0 + odds + others.sum(axis=1))
        weight = probability * (1.0 - probability)
        self._facts[blocks, 1, columns] = weight
        self._inverse[llm] = inverse_hessian(contexts, weight, self.ridge)
        self._recompute_at[llm] = max(2 * len(rows), FIRST_RECOMPUTATION)


def inverse_hessian(contexts: Array, weight: Array, ridge: float) -> NDArray[np.float64]:
    """Return the inverse of ridge I + sum of w x x^T over contexts (n, d) of weights w (n,).

    With the rows Z = sqrt(w) x it is also (I - Z^T (ridge I + Z Z^T)^{-1} Z) / ridge, which takes
    less of few rows.
    """
    # In double precision: large collinear contexts lose the ridge in single precision.
    rows = contexts.astype(np.float64)
    if 0 < 2 * len(rows) < rows.shape[1]:
        rows *= np.sqrt(weight.astype(np.float64))[:, None]
        small = _inverse(rows @ rows.T, ridge)
        if small is None:
            return _inverse_of_rows(rows, ridge)
        inverse = rows.T @ (small @ rows) / -ridge
        inverse.flat[:: len(inverse) + 1] += 1.0 / ridge
        return np.asarray(inverse)
    whole = _inverse((rows * weight[:, None].astype(np.float64)).T @ rows, ridge)
    if whole is None:
        return _inverse_of_rows(rows * np.sqrt(weight.astype(np.float64))[:, None], ridge)
    return whole


def _inverse(matrix: NDArray[np.float64], ridge: float) -> NDArray[np.float64] | None:
    """Return the inverse of ridge I + ``matrix``, which is overwritten; None if rounding ate it."""
    matrix.flat[:: len(matrix) + 1] += ridge
    factor, failed = dpotrf(matrix, overwrite_a=1)
    if failed:
        return None
    upper, _ = dpotri(factor, overwrite_c=1)  # the upper triangle of the inverse
    return np.asarray(np.triu(upper) + np.triu(upper, 1).T)


def _inverse_of_rows(rows: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Return the inverse of ridge I + Z^T Z for rows Z of lengths so different that Z^T Z loses it.

    The singular values of Z are the roots of what Z^T Z would have to hold.
    """
    triangle = np.linalg.qr(rows, mode="r")  # (min(n, d), d)
    _, values, axes = np.linalg.svd(triangle)
    stretch = np.full(rows.shape[1], float(ridge))
    stretch[: len(values)] += values**2
    return np.asarray((axes.T / stretch) @ axes)
