"""The best fixed distribution over assortments, by the truth: what routing without contexts can do.

A control outside the rankings: a router that learns and does worse has learnt nothing of use.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import Pairing, QueueAgent
from baselines.registry import agent
from llmqueue_gym.errors import UsageError

Floats = NDArray[np.float64]

MAX_CELLS = 50_000_000
"""Queries times assortments of the largest program that is solved."""


@agent("known-static-mix-queue", source="ours, with the true odds")
class StaticMix(QueueAgent):
    """Every attempt of the head of the queue draws its assortment from one fixed distribution.

    Query x takes 1 / sum_S pi_S p(x, S) attempts on average, and pi minimises their mean over
    queries, a convex program (`least_attempts`): of all fixed distributions pi carries the largest
    load. It knows the true odds and no contexts.

    Raises
    ------
    UsageError
        If the problem lacks the truth, which only yardsticks are given, or is too large.
    """

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        odds, size = problem.truth, problem.assortment_size
        if odds is None:
            raise UsageError("truth=None: known-static-mix-queue must be told the true odds")
        cells = len(odds) * comb(problem.num_llms, size)
        if cells > MAX_CELLS:
            raise UsageError(
                f"num_llms={problem.num_llms}, assortment_size={size}: {cells:,} pairs of query "
                f"and assortment are more than {MAX_CELLS:,}; take fewer queries or LLMs"
            )
        self._assortments = np.array(list(combinations(range(problem.num_llms), size)))
        total = np.sum([odds[:, column] for column in self._assortments.T], axis=0)
        self.shares, _ = least_attempts(total / (1.0 + total))
        self._cumulative = self.shares.cumsum()

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Draw an assortment for the head."""
        point = self.rng.random() * self._cumulative[-1]
        drawn = int(self._cumulative.searchsorted(point, side="right"))
        return Pairing(0, self._assortments[drawn].tolist())


def least_attempts(rates: Floats, tolerance: float = 1e-3) -> tuple[Floats, float]:
    """Return the shares pi with the least mean of 1 / sum_S pi_S p(x, S), and that mean f.

    f is convex with slope -g_S = -mean p(x, S) / (rates pi)_x^2, and sum_S pi_S g_S = f: it is
    within max g - f of its minimum. As long as that is too far, the columns of largest g join those
    that have a share.

    Parameters
    ----------
    rates : ndarray, shape (P, S)
        Departure rates p(x, S) > 0.
    tolerance : float
        Gap at which to stop, as a share of f.
    """
    columns = np.array([int(rates.mean(axis=0).argmax())])
    weights = np.ones(1)
    while True:
        weights = _descended(rates[:, columns], weights, tolerance / 2.0)
        reached = rates[:, columns] @ weights
        mean, gradient = float(np.mean(1.0 / reached)), _gradient(rates, reached)
        if gradient.max() <= (1.0 + tolerance) * mean:
            break
        steepest = np.argsort(-gradient)[:_JOINING]
        joining = steepest[~np.isin(steepest, columns)]
        if joining.size:
            columns = np.concatenate([columns, joining])
            share = np.full(joining.size, _SHARE / joining.size)
            weights = np.append((1.0 - _SHARE) * weights, share)
    shares = np.zeros(rates.shape[1])
    shares[columns] = weights
    return shares, mean


_JOINING, _SHARE = 16, 0.1  # columns that join at a time, and what they share at first
_ROUNDS = 2000


def _gradient(rates: Floats, reached: Floats) -> Floats:
    return np.asarray((reached**-2.0) @ rates / len(rates))


def _descended(rates: Floats, shares: Floats, tolerance: float) -> Floats:
    """Return shares whose f is within a gap of its minimum.

    Each round pi_S <- pi_S sqrt(g_S), scaled to sum 1, never increases f: it minimises the bound on
    f that Cauchy and Schwarz give at pi.
    """
    for _ in range(_ROUNDS):
        reached = rates @ shares
        gradient = _gradient(rates, reached)
        if gradient.max() <= (1.0 + tolerance) * np.mean(1.0 / reached):
            break
        shares = shares * np.sqrt(gradient)
        shares = shares / shares.sum()
    return shares
