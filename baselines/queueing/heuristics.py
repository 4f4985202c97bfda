"""Simple rules: random, and a scheduling rule crossed with a context-free routing rule.

They bound every table from below and tell what scheduling alone is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import AssortmentCycle, Pairing, QueueAgent, Served, top_llms
from baselines.registry import agent
from llmqueue_gym import checks

Rule = TypeVar("Rule")


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
        schedules: dict[str, Callable[[Observation, int], int]] = {
            "fifo": lambda observation, waiting: 0,
            "lifo": lambda observation, waiting: waiting - 1,
            "random": lambda observation, waiting: int(self.rng.integers(waiting)),
            "most-retried": lambda observation, waiting: int(
                observation["retrials"][:waiting].argmax()
            ),
        }
        routings: dict[str, Callable[[], list[int]]] = {
            "best-mean": self._best_mean,
            "round-robin": AssortmentCycle(problem.num_llms, problem.assortment_size).next,
            "random": self._random,
        }
        self._schedule = _pick("schedule", schedule, schedules)
        self._route = _pick("routing", routing, routings)
        self._kept = np.zeros(problem.num_llms)
        self._shown = np.zeros(problem.num_llms)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Apply both rules."""
        return Pairing(self._schedule(observation, waiting), self._route())

    def learn(self, served: Served) -> None:
        """Count the answers shown and kept."""
        self._shown[served.shown] += 1
        if served.kept >= 0:
            self._kept[served.kept] += 1

    def _best_mean(self) -> list[int]:
        untried = self._shown == 0
        mean = np.where(untried, np.inf, self._kept / np.maximum(self._shown, 1))
        return top_llms(mean, self.problem.assortment_size)

    def _random(self) -> list[int]:
        llms = self.rng.permutation(self.problem.num_llms)[: self.problem.assortment_size]
        return llms.tolist()  # type: ignore[no-any-return]


def _pick(argument: str, name: str, rules: dict[str, Rule]) -> Rule:
    if name not in rules:
        raise checks.unknown_name(argument, name, rules)
    return rules[name]
