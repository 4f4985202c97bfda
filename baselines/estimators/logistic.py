"""Ridge logistic regression over the whole history, refit as outcomes arrive.

The estimator of serving agents: whether an answer of an LLM is kept, one theta_j per LLM.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.estimators.ridge_mnl import (
    FIRST_RECOMPUTATION,
    LEAST_ODDS,
    MAX_SHIFT,
    MAX_SWEEPS,
    MAX_UTILITY,
    MOST_ODDS,
    inverse_hessian,
)
from llmqueue_gym.compiled import summing

Floats = NDArray[np.float64]
History = tuple[Floats, Floats, NDArray[np.bool_]]
"""Of every answer the context (n, d), the odds e^{x . theta} and whether it was kept, (n,)."""


@summing
def _insert(theta: Floats, inverse: Floats, x: Floats) -> float:
    """Add an outcome to the inverse Hessian, O(d^2); return its odds e^{x . theta}."""
    dim = len(x)
    direction = np.zeros(dim)
    utility = square = 0.0
    for k in range(dim):
        utility += x[k] * theta[k]
    odds = math.exp(max(-MAX_UTILITY, min(MAX_UTILITY, utility)))
    for a in range(dim):
        for k in range(dim):
            direction[k] += x[a] * inverse[a, k]
    for k in range(dim):
        square += x[k] * direction[k]
    probability = odds / (1.0 + odds)
    curvature = probability * (1.0 - probability)
    scale = curvature / (1.0 + curvature * square)
    for a in range(dim):
        for k in range(dim):
            inverse[a, k] -= scale * direction[a] * direction[k]
    return odds


@summing
def _step(
    theta: Floats, inverse: Floats, history: History, ridge: float, tolerance: float
) -> float:
    """Take a quasi-Newton step of theta; return the squared Newton decrement before it."""
    contexts, odds, kept = history
    size, dim = contexts.shape
    gradient, direction = np.zeros(dim), np.zeros(dim)
    probability, slope = np.empty(size), np.empty(size)
    for i in range(size):
        probability[i] = odds[i] / (1.0 + odds[i])
        error = probability[i] - (1.0 if kept[i] else 0.0)
        for k in range(dim):
            gradient[k] += error * contexts[i, k]
    for k in range(dim):
        gradient[k] += ridge * theta[k]
    for a in range(dim):
        for k in range(dim):
            direction[k] += gradient[a] * inverse[a, k]
    decrement, straight = 0.0, 0.0
    for k in range(dim):
        decrement += gradient[k] * direction[k]
        straight += direction[k] * direction[k]
    if decrement <= tolerance:  # also where rounding has cost the inverse its definiteness
        return decrement
    curvature, steepest = ridge * straight, 1e-30
    for i in range(size):
        change = 0.0
        for k in range(dim):
            change += contexts[i, k] * direction[k]
        slope[i] = change
        curvature += probability[i] * (1.0 - probability[i]) * change * change
        steepest = max(steepest, abs(change))
    length = min(decrement / curvature, MAX_SHIFT / steepest)
    for k in range(dim):
        theta[k] -= length * direction[k]
    for i in range(size):
        bounded = max(LEAST_ODDS, min(MOST_ODDS, odds[i]))
        odds[i] = bounded * math.exp(-length * slope[i])
    return decrement


@summing
def _refit(
    theta: Floats, inverse: Floats, history: History, ridge: float, tolerance: float
) -> bool:
    """Step until theta moves no more; return whether rounding has spoilt the inverse."""
    for _ in range(MAX_SWEEPS):
        decrement = _step(theta, inverse, history, ridge, tolerance)
        if decrement <= tolerance:
            return decrement < 0.0
    return False


class RidgeLogistic:
    """Ridge maximum likelihood of "kept" given the context, one theta_j per LLM.

    `RidgeMNL` for assortments of one, in double precision: the LLMs have nothing in common.

    Parameters
    ----------
    num_llms, dim : int
        N and d.
    ridge, tolerance : float
        As `RidgeMNL`.
    """

    def __init__(
        self, num_llms: int, dim: int, ridge: float = 1.0, tolerance: float = 1e-3
    ) -> None:
        self.ridge = ridge
        self.tolerance = tolerance
        self.theta = np.zeros((num_llms, dim))
        self._inverse = np.repeat(np.eye(dim)[None] / ridge, num_llms, axis=0)
        self._contexts = np.zeros((num_llms, 16, dim))
        self._odds = np.zeros((num_llms, 16))
        self._kept = np.zeros((num_llms, 16), np.bool_)
        self._sizes = [0] * num_llms
        self._recompute_at = [FIRST_RECOMPUTATION] * num_llms

    def update(self, context: NDArray[np.floating[Any]], llm: int, kept: bool) -> None:
        """Learn from one answer of LLM ``llm`` to a context x, shape (d,)."""
        if self._sizes[llm] == self._odds.shape[1]:
            for name in ("_contexts", "_odds", "_kept"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)], axis=1))
        row, x = self._sizes[llm], context.astype(np.float64)
        self._contexts[llm, row], self._kept[llm, row] = x, kept
        self._odds[llm, row] = _insert(self.theta[llm], self._inverse[llm], x)
        self._sizes[llm] = size = row + 1
        history = self._contexts[llm, :size], self._odds[llm, :size], self._kept[llm, :size]
        spoilt = size >= self._recompute_at[llm]
        for _ in range(MAX_SWEEPS):
            if spoilt:
                contexts, odds, _ = history
                odds[:] = np.exp((contexts @ self.theta[llm]).clip(-MAX_UTILITY, MAX_UTILITY))
                probability = odds / (1.0 + odds)
                weight = probability * (1.0 - probability)
                self._inverse[llm] = inverse_hessian(contexts, weight, self.ridge)
                self._recompute_at[llm] = max(2 * size, FIRST_RECOMPUTATION)
            parts = self.theta[llm], self._inverse[llm]
            spoilt = _refit(*parts, history, self.ridge, self.tolerance)
            if not spoilt:
                break
