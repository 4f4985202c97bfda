"""Q-UCB and Q-ThS: context-free queueing bandits with a schedule of forced exploration.

Krishnasamy, Sen, Johari, Shakkottai, "Learning unknown service rates in queues: a multiarmed
bandit approach", Operations Research 2021 (NIPS 2016).
"""

from __future__ import annotations

import math

import numpy as np

from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import (
    AssortmentCycle,
    LinearPolicy,
    QueueAgent,
    Served,
    largest_shares,
    top_llms,
)
from baselines.registry import agent

_SOURCE = "Krishnasamy et al.: Operations Research 2021"


def exploration_probability(num_llms: int, slot_number: int) -> float:
    """Probability of an exploring slot, min(1, 3 N log^2 t / t)."""
    log_t = math.log(slot_number)
    probability = 3.0 * num_llms * log_t * log_t / slot_number
    return probability if probability < 1.0 else 1.0


@agent("Q-UCB", source=_SOURCE)
class QUCB(QueueAgent):
    """Q-UCB: serve the head of the queue; explore on schedule, else follow the upper bounds.

    For t = 1, 2, ...:
      1. serve the head (FIFO; a retried query goes to the tail);
      2. with probability min(1, 3 N log^2 t / t) show the next assortment of a round-robin;
      3. else show the K LLMs with the largest mean_j + sqrt(log^2 t / (2 T_j)).

    The paper has K = 1. (R) For K > 1 the K largest indices are shown and an LLM scores 1 when
    its answer is kept, 0 when it is shown and not kept. (R) At t = 1 the schedule gives
    probability 0; LLMs never shown have an infinite index.
    """

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._cycle = AssortmentCycle(problem.num_llms, problem.assortment_size)
        self._kept = np.zeros(problem.num_llms)
        self._shown = np.zeros(problem.num_llms)  # T_j

    def choose(self, observation: Observation, waiting: int) -> tuple[int, list[int]]:
        """Serve the head, exploring or exploiting."""
        t = self.slot_number
        if self.rng.random() < exploration_probability(self.problem.num_llms, t):
            return 0, self._cycle.next()
        return 0, self._best(t)

    def learn(self, served: Served) -> None:
        """Count the answers shown and kept."""
        shown, kept = served.shown, served.kept
        for llm in shown:
            self._shown[llm] += 1.0
        if kept >= 0:
            self._kept[kept] += 1.0

    def policy(self) -> LinearPolicy:
        """Return the shares of kept answers, 0 for an LLM that was never shown."""
        return self.context_free(self._kept / np.maximum(self._shown, 1.0))

    def _best(self, t: int) -> list[int]:
        count = self.problem.assortment_size
        return largest_shares(self._kept, self._shown, count, math.log(t))


@agent("Q-ThS", source=_SOURCE)
class QThS(QUCB):
    """Q-ThS: Q-UCB's schedule, with Beta posterior samples in place of the upper bounds."""

    def _best(self, t: int) -> list[int]:
        samples = self.rng.beta(1.0 + self._kept, 1.0 + self._shown - self._kept)
        return top_llms(samples, self.problem.assortment_size)
