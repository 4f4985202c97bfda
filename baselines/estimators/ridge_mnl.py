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
State = tuple[Array, Array, Array, Array, Ints, Ints, Ints, Ints, Ints]

MAX_SHIFT = 2.0
"""Largest change of a past utility in one step: the quadratic model holds only nearby."""

MAX_UTILITY = 60.0
"""Bound on a row's utility: its odds then fit in single precision and never get stuck at 0."""

LEAST_ODDS, MOST_ODDS = math.exp(-MAX_UTILITY), math.exp(MAX_UTILITY)

MAX_SWEEPS = 20
"""Sweeps over the shown LLMs in one refit; what is left is taken up when they next appear."""

FIRST_RECOMPUTATION = 32
"""Choices of an LLM after which its inverse Hessian is first recomputed from scratch."""


# The state: theta (N, d), its inverse Hessians (N, d, d), and of every observed choice the context
# (t, d), the odds e^{x . theta_j} of the LLMs shown (t, K), and the LLM kept (t,). LLM j was shown
# in the choices `rows[j, :sizes[j]]`, at the place `places[j, i]` of each; its inverse Hessian is
# computed anew at `recompute_at[j]` of them.


@summing
def _insert(state: State, row: int, context: Array, shown: Ints, choice: int) -> None:
    """Note a choice, and add its rows to the inverse Hessians of the LLMs shown, O(K d^2)."""
    theta, inverse, contexts, odds, kept, rows, places, sizes, _ = state
    dim = len(context)
    direction = np.empty(dim)
    contexts[row] = context
    kept[row] = choice
    total = 1.0
    for place in range(len(shown)):
        utility = 0.0
        for k in range(dim):
            utility += context[k] * theta[shown[place], k]
        odds[row, place] = math.exp(max(-MAX_UTILITY, min(MAX_UTILITY, utility)))
        total += odds[row, place]
    for place in range(len(shown)):
        llm = shown[place]
        rows[llm, sizes[llm]] = row
        places[llm, sizes[llm]] = place
        sizes[llm] += 1
        square = 0.0
        direction[:] = 0.0
        for a in range(dim):
            for k in range(dim):
                direction[k] += context[a] * inverse[llm, a, k]
        for k in range(dim):
            square += context[k] * direction[k]
        probability = odds[row, place] / total
        curvature = probability * (1.0 - probability)
        scale = curvature / (1.0 + curvature * square)
        for a in range(dim):
            for k in range(dim):
                inverse[llm, a, k] -= scale * direction[a] * direction[k]


@summing
def _step(state: State, llm: int, ridge: float, tolerance: float) -> float:
    """Take a quasi-Newton step of theta_j; return the squared Newton decrement before it."""
    theta, inverse, contexts, odds, kept, rows, places, sizes, _ = state
    dim, size, most_shown = theta.shape[1], sizes[llm], odds.shape[1]
    real = theta.dtype.type  # single precision halves the traffic of memory
    gradient, direction = np.zeros(dim, theta.dtype), np.zeros(dim, theta.dtype)
    probability, slope = np.empty(size), np.empty(size)
    for i in range(size):
        row = rows[llm, i]
        total = 1.0
        for place in range(most_shown):
            total += odds[row, place]
        probability[i] = odds[row, places[llm, i]] / total
        error = real(probability[i] - (1.0 if kept[row] == llm else 0.0))
        for k in range(dim):
            gradient[k] += error * contexts[row, k]
    for k in range(dim):
        gradient[k] += ridge * theta[llm, k]
    for a in range(dim):
        for k in range(dim):
            direction[k] += gradient[a] * inverse[llm, a, k]
    decrement, straight = 0.0, 0.0
    for k in range(dim):
        decrement += gradient[k] * direction[k]
        straight += direction[k] * direction[k]
    if decrement <= tolerance:  # also where rounding has cost the inverse its definiteness
        return decrement
    curvature, steepest = ridge * straight, 1e-30
    for i in range(size):
        change = real(0.0)
        for k in range(dim):
            change += contexts[rows[llm, i], k] * direction[k]
        slope[i] = change
        curvature += probability[i] * (1.0 - probability[i]) * change * change
        steepest = max(steepest, float(abs(change)))
    length = min(decrement / curvature, MAX_SHIFT / steepest)
    for k in range(dim):
        theta[llm, k] -= length * direction[k]
    for i in range(size):
        row, place = rows[llm, i], places[llm, i]
        bounded = max(LEAST_ODDS, min(MOST_ODDS, odds[row, place]))
        odds[row, place] = bounded * math.exp(-length * slope[i])
    return decrement


@summing
def _refit(state: State, shown: Ints, ridge: float, tolerance: float) -> int:
    """Sweep over the LLMs shown; return one whose inverse rounding has spoilt, else -1."""
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for llm in shown:
            decrement = _step(state, llm, ridge, tolerance)
            if decrement < 0.0:
                return int(llm)
            largest = max(largest, decrement)
        if largest <= tolerance:
            break
    return -1


@summing
def _learn(
    state: State, row: int, context: Array, shown: Ints, choice: int, ridge: float, tolerance: float
) -> int:
    """Note a choice and refit; return an LLM whose inverse must be recomputed first, else -1."""
    _insert(state, row, context, shown, choice)
    sizes, recompute_at = state[7], state[8]
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

    Growth: a refit reads each shown LLM's rows two to four times, O(n_j d) a slot, with n_j the
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
        self._contexts: Array = np.zeros((64, dim), dtype)
        self._odds: Array = np.zeros((64, assortment_size), dtype)
        self._kept = np.zeros(64, np.int64)
        self._rows, self._places = np.zeros((2, num_llms, 64), np.int64)
        self._sizes = np.zeros(num_llms, np.int64)  # n_j
        self._observed = 0
        self._recompute_at = np.full(num_llms, FIRST_RECOMPUTATION)

    def update(self, context: Array, shown: Sequence[int], kept: int) -> None:
        """Learn from one user: the context (d,), the LLMs shown and the one kept (-1 none)."""
        if self._observed == len(self._kept):
            self._make_room()
        row, llms = self._observed, np.array(shown, np.int64)
        context = np.asarray(context, self.theta.dtype)
        state, weights = self._state, (self.ridge, self.tolerance)
        self._observed += 1
        stale = _learn(state, row, context, llms, kept, *weights)
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
            *(self.theta, self._inverse, self._contexts, self._odds, self._kept),
            *(self._rows, self._places, self._sizes, self._recompute_at),
        )

    def _make_room(self) -> None:
        """Double the room for observed choices."""
        for name in ("_contexts", "_odds", "_kept"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        for name in ("_rows", "_places"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)], axis=1))

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
                decrements.append(_step(self._state, llm, self.ridge, tolerance))
            if max(decrements) <= tolerance:
                return
        raise RuntimeError(f"solve: squared Newton decrement {max(decrements):.1e} > {tolerance}")

    def _recompute(self, llm: int) -> None:
        """Recompute an LLM's odds and inverse Hessian, clearing what rounding has built up."""
        size = int(self._sizes[llm])
        rows, places = self._rows[llm, :size], self._places[llm, :size]
        contexts = self._contexts[rows]
        odds = np.exp((contexts @ self.theta[llm]).clip(-MAX_UTILITY, MAX_UTILITY))
        self._odds[rows, places] = odds
        probability = odds / (1.0 + self._odds[rows].sum(axis=1))
        weight = probability * (1.0 - probability)
        # In double precision: large collinear contexts lose the ridge in single precision.
        rows = contexts.astype(np.float64)
        hessian = (rows * weight[:, None].astype(np.float64)).T @ rows
        hessian.flat[:: len(hessian) + 1] += self.ridge
        factor, failed = dpotrf(hessian, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError("an LLM's Hessian is not positive definite")
        upper, _ = dpotri(factor, overwrite_c=1)  # the upper triangle of the inverse
        self._inverse[llm] = np.triu(upper) + np.triu(upper, 1).T
        self._recompute_at[llm] = max(2 * size, FIRST_RECOMPUTATION)
