"""Nearest neighbours per LLM: how its answers to the most similar earlier queries went.

A compiled pass over a ring of the latest answers, so that a decision costs the same at any time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import compiled, summing

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


class Neighbours:
    """The latest answers, and the mean outcome of each LLM's nearest ones to a query.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    neighbours : int
        Answers of an LLM that its mean is taken over, k.
    memory : int
        Answers remembered, M; the oldest is forgotten first. A look-up costs O(M (d + k)).
    """

    def __init__(self, num_llms: int, dim: int, neighbours: int, memory: int) -> None:
        self.num_llms, self.neighbours = num_llms, neighbours
        self._contexts = np.zeros((memory, dim), dtype=np.float32)
        self._llms = np.zeros(memory, dtype=np.int64)
        self._outcomes = np.zeros(memory)
        self._seen = 0

    def observe(self, context: NDArray[np.floating[Any]], llm: int, outcome: float) -> None:
        """Remember one outcome of LLM ``llm`` on a context (d,)."""
        place = self._seen % len(self._llms)
        self._contexts[place], self._llms[place] = context, llm
        self._outcomes[place] = outcome
        self._seen += 1

    def look_up(self, context: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
        """Return mean outcome (0 where none) and number of each LLM's nearest answers, (N,)."""
        known = min(self._seen, len(self._llms))
        return _nearest(
            self._contexts[:known],
            self._llms[:known],
            self._outcomes[:known],
            np.ascontiguousarray(context, dtype=np.float32),
            self.num_llms,
            self.neighbours,
        )


@summing
def _distance(one: Singles, other: Singles) -> float:
    """Return the squared distance."""
    distance = 0.0
    for i in range(one.size):
        difference = one[i] - other[i]
        distance += difference * difference
    return distance


@compiled
def _nearest(
    contexts: Singles,
    llms: NDArray[np.int64],
    outcomes: Floats,
    context: Singles,
    num_llms: int,
    neighbours: int,
) -> tuple[Floats, Floats]:
    """Keep the k nearest of each LLM in order of distance; of equal ones the earlier remembered."""
    distances = np.full((num_llms, neighbours), np.inf)
    nearest = np.zeros((num_llms, neighbours))
    for row in range(len(llms)):
        llm, distance = llms[row], _distance(contexts[row], context)
        if distance >= distances[llm, neighbours - 1]:
            continue
        place = neighbours - 1
        while place > 0 and distances[llm, place - 1] > distance:
            distances[llm, place] = distances[llm, place - 1]
            nearest[llm, place] = nearest[llm, place - 1]
            place -= 1
        distances[llm, place], nearest[llm, place] = distance, outcomes[row]
    means, counts = np.zeros(num_llms), np.zeros(num_llms)
    for llm in range(num_llms):
        for place in range(neighbours):
            if distances[llm, place] < np.inf:
                counts[llm] += 1.0
                means[llm] += nearest[llm, place]
        means[llm] /= max(counts[llm], 1.0)
    return means, counts


@compiled
def guarded_gains(means: Floats, counts: Floats, best: int, error: float) -> Floats:
    """Return a lower confidence bound of each LLM's mean less that of LLM ``best``, (N,).

    Hoeffding's inequality for outcomes in [0, 1]: the difference of two means exceeds its
    expectation by sqrt(log(1/error) / 2 (1/n + 1/n_best)) with probability ``error`` at most. No
    answers, no bound: -inf; 0 for ``best`` itself.
    """
    gains, doubt = np.empty(len(means)), math.log(1.0 / error) / 2.0
    for llm in range(len(means)):
        radius = math.sqrt(doubt * (1.0 / counts[llm] + 1.0 / counts[best]))
        gains[llm] = means[llm] - means[best] - radius
    gains[best] = 0.0
    return gains
