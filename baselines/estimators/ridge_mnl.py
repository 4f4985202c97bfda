"""Ridge maximum likelihood for the MNL model over the whole history, refit as choices arrive.

The estimator of ACQB and the CQB family; the only one whose update grows with the history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs
from scipy.linalg.lapack import dpotrf, dpotri

from llmqueue_gym import checks

Array = NDArray[np.floating[Any]]

MAX_SHIFT = 2.0
"""Largest change of a past utility in one step: the quadratic model holds only nearby."""

MAX_UTILITY = 60.0
"""Bound on a row's utility: its odds then fit in single precision and never get stuck at 0."""

ODDS_BOUNDS = (math.exp(-MAX_UTILITY), math.exp(MAX_UTILITY))

MAX_SWEEPS = 20
"""Sweeps over the shown LLMs in one refit; what is left is taken up when they next appear."""

FIRST_RECOMPUTATION = 32
"""Choices of an LLM after which its inverse Hessian is first recomputed from scratch."""


class _History:
    """What one LLM was shown for: growing buffers with room for twice the rows in use."""

    def __init__(self, dim: int, ridge: float, dtype: np.dtype[Any]) -> None:
        self.size = 0  # n_j
        self.contexts = np.zeros((16, dim), dtype)
        self.rounds = np.zeros(16, np.intp)  # which observed choice a row belongs to
        self.cells = np.zeros(16, np.intp)  # where the row's odds stand in the table of odds
        self.kept = np.zeros(16, dtype)  # 1 where this LLM's answer was kept
        self.odds = np.zeros(16, dtype)  # e^{x . theta_j} at the current estimate
        self.inverse_hessian = np.asfortranarray(np.eye(dim, dtype=dtype) / dtype.type(ridge))
        self.recompute_at = FIRST_RECOMPUTATION

    def append(self, context: Array, observed: int, cell: int, kept: bool, odds: float) -> None:
        """Add one row, O(d) amortised."""
        row = self.size
        if row == len(self.rounds):
            for name in ("contexts", "rounds", "cells", "kept", "odds"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self.contexts[row] = context
        self.rounds[row] = observed
        self.cells[row] = cell
        self.kept[row] = kept
        self.odds[row] = odds
        self.size = row + 1


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
        self._dtype = np.dtype(dtype)
        self.theta: Array = np.zeros((num_llms, dim), self._dtype)
        self._observed = 0
        # Odds of the LLMs shown, a row an observed choice; a table of sums would cancel.
        self._odds = np.zeros((64, assortment_size), self._dtype)
        self._ones = np.ones(assortment_size, self._dtype)
        self._histories = [_History(dim, ridge, self._dtype) for _ in range(num_llms)]
        self._ger = get_blas_funcs("ger", (self._histories[0].inverse_hessian,))

    def update(self, context: Array, shown: Sequence[int], kept: int) -> None:
        """Learn from one user: the context (d,), the LLMs shown and the one kept (-1 none)."""
        context = np.asarray(context, self._dtype)
        self._insert(context, shown, kept)
        for llm in shown:
            if self._histories[llm].size >= self._histories[llm].recompute_at:
                self._recompute(llm)
        for _ in range(MAX_SWEEPS):
            if max([self._step(llm, self.tolerance) for llm in shown]) <= self.tolerance:
                break

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
                decrements.append(self._step(llm, tolerance))
            if max(decrements) <= tolerance:
                return
        raise RuntimeError(f"solve: squared Newton decrement {max(decrements):.1e} > {tolerance}")

    def _insert(self, context: Array, shown: Sequence[int], kept: int) -> None:
        """Append the choice to the histories and to the shown LLMs' inverse Hessians."""
        row = self._observed
        if row == len(self._odds):
            self._odds = np.concatenate([self._odds, np.zeros_like(self._odds)])
        utilities = [float(context @ self.theta[llm]) for llm in shown]
        odds = [math.exp(max(-MAX_UTILITY, min(MAX_UTILITY, u))) for u in utilities]
        total = 1.0 + sum(odds)
        self._odds[row, : len(odds)] = odds
        self._observed = row + 1
        first_cell = row * self._odds.shape[1]
        for cell, (llm, weight) in enumerate(zip(shown, odds, strict=True), first_cell):
            history = self._histories[llm]
            history.append(context, row, cell, llm == kept, weight)
            probability = weight / total
            direction = history.inverse_hessian @ context
            curvature = probability * (1.0 - probability)
            scale = curvature / (1.0 + curvature * float(context @ direction))
            self._ger(-scale, direction, direction, a=history.inverse_hessian, overwrite_a=1)

    def _step(self, llm: int, tolerance: float) -> float:
        """Take a quasi-Newton step of theta_j; return the squared Newton decrement before it."""
        history = self._histories[llm]
        size = history.size
        contexts = history.contexts[:size]
        odds = history.odds[:size]
        probability = odds / self._totals(history)
        gradient = (probability - history.kept[:size]) @ contexts + self.ridge * self.theta[llm]
        direction = history.inverse_hessian @ gradient
        decrement = float(gradient @ direction)
        if decrement < 0.0:  # rounding has cost the inverse its definiteness
            self._recompute(llm)
            direction = history.inverse_hessian @ gradient
            decrement = float(gradient @ direction)
        if decrement <= tolerance:
            return decrement
        # OpenBLAS' kernels read past the end of a short single-precision vector, throw away what
        # they make of it, and leave the flag of an invalid operation behind.
        with np.errstate(invalid="ignore"):
            slope = contexts @ direction  # change of the rows' utilities along the step
        weight = probability * (1.0 - probability)
        curvature = float((weight * slope) @ slope) + self.ridge * float(direction @ direction)
        length = min(decrement / curvature, MAX_SHIFT / float(np.abs(slope).max(initial=1e-30)))
        self.theta[llm] -= self._dtype.type(length) * direction
        moved = odds.clip(*ODDS_BOUNDS) * np.exp(self._dtype.type(-length) * slope)
        self._set_odds(history, moved)
        return decrement

    def _totals(self, history: _History) -> Array:
        """Return 1 + the odds of the LLMs shown, one entry a row of the history."""
        shown: Array = self._odds.take(history.rounds[: history.size], axis=0)
        totals: Array = shown @ self._ones
        totals += 1
        return totals

    def _set_odds(self, history: _History, odds: Array) -> None:
        """Note an LLM's odds at its new estimate, in its history and for the other LLMs."""
        history.odds[: history.size] = odds
        self._odds.reshape(-1)[history.cells[: history.size]] = odds

    def _recompute(self, llm: int) -> None:
        """Recompute an LLM's odds and inverse Hessian, clearing what rounding has built up."""
        history = self._histories[llm]
        size = history.size
        contexts = history.contexts[:size]
        odds = np.exp((contexts @ self.theta[llm]).clip(-MAX_UTILITY, MAX_UTILITY))
        self._set_odds(history, odds)
        probability = odds / self._totals(history)
        weight = probability * (1.0 - probability)
        # In double precision: large collinear contexts lose the ridge in single precision.
        rows = contexts.astype(np.float64)
        hessian = (rows * weight[:, None].astype(np.float64)).T @ rows
        hessian.flat[:: len(hessian) + 1] += self.ridge
        factor, failed = dpotrf(hessian, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError("an LLM's Hessian is not positive definite")
        upper, _ = dpotri(factor, overwrite_c=1)  # the upper triangle of the inverse
        inverse = np.triu(upper).astype(self._dtype)
        inverse += np.triu(inverse, 1).T
        history.inverse_hessian = np.asfortranarray(inverse)
        history.recompute_at = max(2 * size, FIRST_RECOMPUTATION)
