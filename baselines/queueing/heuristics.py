"""Simple rules: random, and a scheduling rule crossed with a context-free routing rule.

They bound every table from below and tell what scheduling alone is worth.
"""

from __future__ import annotations

import numpy as np

from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import (
    AssortmentCycle,
    LinearPolicy,
    Pairing,
    QueueAgent,
    Served,
    largest_shares,
)
from baselines.registry import agent
from llmqueue_gym import checks

SCHEDULES = ("fifo", "lifo", "random", "most-retried")
ROUTINGS = ("best-mean", "round-robin", "random")


@agent("random", source="lower bound of every table")
class RandomAgent(QueueAgent):
    """A uniformly random waiting query, shown a uniformly random assortment."""

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Draw a query and an assortment."""
        llms = self.rng.permutation(self.problem.num_llms)[: self.problem.assortment_size]
        return Pairing(int(self.rng.integers(waiting)), llms.tolist())


@agent("fifo-round-robin", source="heuristic", schedule="fifo", routing="round-robin")
@agent("most-retried-best-mean", source="heuristic", schedule="most-retried", routing="best-mean")
@agent("lifo-best-mean", source="heuristic", schedule="lifo", routing="best-mean")
@agent("fifo-best-mean", source="heuristic", schedule="fifo", routing="best-mean")
class Scheduled(QueueAgent):
    """A scheduling rule that ignores contexts, crossed with a routing rule that does too.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    schedule : {"fifo", "lifo", "random", "most-retried"}
        Whom to serve: the head of the queue, its (visible) tail, anybody, or the query that was
        retried most often (the one nearest the head among equals).
    routing : {"best-mean", "round-robin", "random"}
        Which LLMs: the K with the best running share of kept answers, each LLM being tried
        first; the next assortment of a round-robin; or a random assortment.

    Raises
    ------
    ValueError
        If a rule's name is unknown.
    """

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        schedule: str = "fifo",
        routing: str = "best-mean",
    ) -> None:
        super().__init__(problem, seed)
        self.schedule = checks.choice("schedule", schedule, SCHEDULES)
        self.routing = checks.choice("routing", routing, ROUTINGS)
        self._cycle = AssortmentCycle(problem.num_llms, problem.assortment_size)
        self._kept = np.zeros(problem.num_llms)
        self._shown = np.zeros(problem.num_llms)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Apply both rules."""
        return Pairing(self._slot(observation, waiting), self._llms())

    def learn(self, served: Served) -> None:
        """Count the answers shown and kept."""
        for llm in served.shown:
            self._shown[llm] += 1
        if served.kept >= 0:
            self._kept[served.kept] += 1

    def policy(self) -> LinearPolicy:
        """Return the running shares of kept answers, 0 for an LLM that was never shown."""
        if self.routing != "best-mean":
            return super().policy()
        return self.context_free(self._kept / np.maximum(self._shown, 1.0))

    def _slot(self, observation: Observation, waiting: int) -> int:
        if self.schedule == "random":
            return int(self.rng.integers(waiting))
        if self.schedule == "most-retried":
            return int(observation["retrials"][:waiting].argmax())
        return 0 if self.schedule == "fifo" else waiting - 1

    def _llms(self) -> list[int]:
        size = self.problem.assortment_size
        if self.routing == "round-robin":
            return self._cycle.next()
        if self.routing == "random":
            llms: list[int] = self.rng.permutation(self.problem.num_llms)[:size].tolist()
            return llms
        return largest_shares(self._kept, self._shown, size)


class Always(QueueAgent):
    """The head of the queue, always shown the same LLM (and the next ones of the list, if K > 1).

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Not used.
    llm : int
        Index of the LLM.
    """

    def __init__(self, problem: QueueProblem, seed: int, llm: int = 0) -> None:
        super().__init__(problem, seed)
        first = checks.count("llm", llm, 0)
        self.llms = [(first + k) % problem.num_llms for k in range(problem.assortment_size)]

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Serve the head."""
        return Pairing(0, list(self.llms))
