"""Yardsticks: uniform, static, epsilon-first, and Thompson sampling.

Thompson sampling: Agrawal, Goyal, COLT 2012 (rewards in [0, 1] by Beta posteriors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.deployment.base import LPAgent, StageAgent
from baselines.interface import DeployProblem, Observation
from baselines.registry import agent
from llmqueue_gym import checks


@agent("uniform", source="lower bound of every table")
class Uniform(StageAgent):
    """A uniformly random set of M_max LLMs, and a uniformly random one of them per query."""

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Draw a set."""
        order: list[int] = self.rng.permutation(arrived).tolist()
        return order[: self.problem.max_deployed]

    def route(self, observation: Observation) -> int:
        """Draw a deployed LLM."""
        llms = self.open_llms(observation)
        return llms[int(self.rng.integers(len(llms)))]


@agent("static", source="heuristic")
class Static(LPAgent):
    """The first M_max LLMs for ever, routed by RouteOPT on their mean reward and cost.

    An LLM without plays counts as the best and cheapest, reward 1 and cost c1, so each is tried.
    A deployed LLM that is gone at an update point is replaced by the one there that was first seen
    earliest, by index among those first seen at the same update point.
    """

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._seen: dict[int, None] = {}  # in the order first seen at an update point

    def estimates(self, llm: int) -> tuple[float, float]:
        """Return mean reward and cost, optimistic before the first play."""
        if self.plays[llm] == 0:
            return 1.0, self.problem.cost_low
        return self.reward[llm], self.cost[llm]

    def select(
        self, arrived: list[int], rewards: Sequence[float], costs: Sequence[float]
    ) -> list[int]:
        """Keep what is deployed; fill up in the order of arrival."""
        self._seen.update(dict.fromkeys(arrived))
        kept = [llm for llm in self.deployed if llm in arrived]
        fresh = [llm for llm in self._seen if llm in arrived and llm not in kept]
        return (kept + fresh)[: self.problem.max_deployed]


@agent("epsilon-first", source="heuristic")
class EpsilonFirst(Static):
    """Probe each newcomer first, then trust the means.

    A share epsilon of the horizon is set aside for probing: an LLM is new until it has been
    played ceil(epsilon T / N) times, and counts as reward 1 at cost c1 in DeployOPT. A deployed
    newcomer takes all queries until it is known (R); then RouteOPT on mean rewards and costs.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the draws m ~ p*.
    epsilon : float
        Share of the queries for probing, in (0, 1].

    Raises
    ------
    ValueError
        If ``epsilon`` is not in (0, 1].
    """

    def __init__(self, problem: DeployProblem, seed: int, epsilon: float = 0.1) -> None:
        super().__init__(problem, seed)
        checks.number("epsilon", epsilon, "(0, 1]")
        self.probes = math.ceil(epsilon * problem.horizon / problem.num_llms)

    def estimates(self, llm: int) -> tuple[float, float]:
        """Return mean reward and cost, optimistic for newcomers."""
        if self.plays[llm] < self.probes:
            return 1.0, self.problem.cost_low
        return self.reward[llm], self.cost[llm]

    def select(
        self, arrived: list[int], rewards: Sequence[float], costs: Sequence[float]
    ) -> list[int]:
        """Solve DeployOPT."""
        return LPAgent.select(self, arrived, rewards, costs)

    def route(self, observation: Observation) -> int:
        """Probe the first newcomer, else RouteOPT."""
        for llm in self.open_llms(observation):
            if self.plays[llm] < self.probes:
                return llm
        return super().route(observation)


@agent("TS", source="Agrawal, Goyal: COLT 2012")
class ThompsonSampling(LPAgent):
    """DeployOPT and RouteOPT on rewards and costs sampled from their posteriors.

    Rewards from Beta(1 + sum r, 1 + n - sum r). (R) Costs, of unknown scale, from a lognormal
    around the mean cost with log-standard deviation 1 / sqrt(n), clipped to [c1, c2]; before the
    first play log-uniform on [c1, c2].
    """

    def estimates(self, llm: int) -> tuple[float, float]:
        """Sample a reward and a cost."""
        plays = self.plays[llm]
        gained = plays * self.reward[llm]
        reward = self.rng.beta(1.0 + gained, 1.0 + plays - gained)
        low, high = self.problem.cost_low, self.problem.cost_high
        if plays == 0:
            return reward, low * (high / low) ** self.rng.random()
        cost = self.cost[llm] * math.exp(self.rng.standard_normal() / math.sqrt(plays))
        return reward, min(max(cost, low), high)

    def route(self, observation: Observation) -> int:
        """Sample all deployed LLMs afresh, then RouteOPT."""
        for place, llm in enumerate(self.deployed):
            self._solver.set_bounds(place, *self.estimates(llm))
        return super().route(observation)

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Nothing to refresh: the next query samples anew."""
