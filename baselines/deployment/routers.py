"""Routers that gateways ship, nearest neighbours with a guard, and the best mix by the truth.

routing-sampling: vLLM Semantic Router, `pkg/extproc` (github.com/vllm-project/semantic-router).
Nearest neighbours: Li, arXiv 2505.12601; the guard is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from baselines.deployment.base import LPAgent, StageAgent, features
from baselines.estimators.neighbours import Neighbours, guarded_gains
from baselines.interface import DeployProblem, Observation
from baselines.queueing.routers import fit_posterior
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

COST_WEIGHT = 0.04
"""routing-sampling: what the dearest candidate is charged."""


@agent("routing-sampling-deploy", source="vLLM Semantic Router, routing_sampling")
class RoutingSampling(StageAgent):
    """routing_sampling of the vLLM Semantic Router: Thompson sampling, a small charge for prices.

    A query goes to the deployed LLM of largest

        sample of Beta(w q + good + 1, w (1 - q) + under + 1) - .04 cost / max cost,

    q = .5, w = 2; an LLM without outcomes is tried before all others. Its other terms, for
    failures, latency and caches, see nothing here (`baselines.queueing.routers`). It knows no
    budget.

    (R) A reward r counts as r of a good fit and 1 - r of an underpowered one. The cost is the list
    price, or where none is published the mean paid. (R) tau_k: the M_max largest scores are
    deployed.
    """

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Take the largest scores."""
        scores = dict(zip(arrived, self._scores(observation, arrived), strict=True))
        return self.top(arrived, scores.__getitem__)

    def route(self, observation: Observation) -> int:
        """Take the largest score."""
        llms = self.open_llms(observation)
        return llms[int(np.argmax(self._scores(observation, llms)))]

    def _scores(self, observation: Observation, llms: list[int]) -> list[float]:
        plays = np.array([self.plays[llm] for llm in llms], dtype=float)
        good = plays * [self.reward[llm] for llm in llms]
        prices = observation["cost_prior"]
        costs = np.array([float(prices[llm]) or self.cost[llm] for llm in llms])
        scores = self.rng.beta(*fit_posterior(good, plays - good))
        scores -= COST_WEIGHT * costs / max(costs.max(), 1e-300)
        scores[plays == 0] = np.inf
        return scores.tolist()  # type: ignore[no-any-return]


@agent("knn-guard-deploy", source="kNN: Li, arXiv 2505.12601; the guard: ours")
class KnnGuard(StageAgent):
    """Nearest neighbours that depart from the best single LLM only where a bound says so.

    Candidates are the deployed LLMs whose mean cost is at most the money left per query left, b_t,
    or else the cheapest. The best of them by mean reward answers, unless another surely does better
    with such queries: the mean over its k most similar queries, less that of the best, is positive
    with confidence 1 - ``error`` (`guarded_gains`). tau_k: the largest mean rewards are deployed;
    an LLM without plays is worth 1 at no cost.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    neighbours : int
        k.
    memory : int
        Answers remembered.
    error : float
        Probability that a departure is a mistake, at most.
    explore : float
        Probability of a random candidate, without which neighbours of other LLMs are rare.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        problem: DeployProblem,
        seed: int,
        neighbours: int = 16,
        memory: int = 2048,
        error: float = 0.1,
        explore: float = 0.05,
    ) -> None:
        super().__init__(problem, seed)
        checks.count("neighbours", neighbours)
        checks.count("memory", memory)
        self.error = checks.number("error", error, "(0, 1)")
        self.explore = checks.number("explore", explore, "[0, 1]")
        dim = problem.context_dim + 1
        self._near = Neighbours(problem.num_llms, dim, neighbours, memory)

    def _worth(self, llm: int) -> float:
        return self.reward[llm] if self.plays[llm] else 1.0

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Take the largest mean rewards."""
        return self.top(arrived, self._worth)

    def route(self, observation: Observation) -> int:
        """Send the query to the best affordable LLM, or to one that is surely better here."""
        there = self.open_llms(observation)
        llms = [llm for llm in there if self.cost[llm] <= self.pace]
        llms = llms or [min(there, key=self.cost.__getitem__)]
        if self.rng.random() < self.explore:
            return llms[int(self.rng.integers(len(llms)))]
        best = max(llms, key=self._worth)
        if self.plays[best] == 0:
            return best
        gains = guarded_gains(*self._near.look_up(features(observation)), best, self.error)
        return max(llms, key=lambda llm: (gains[llm], llm == best))

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Remember the answer."""
        self._near.observe(features(observation), llm, reward)


@agent("known-static-mix-deploy", source="ours, with the true means")
class StaticMix(LPAgent):
    """The best fixed distribution over LLMs within each stage, by the truth.

    DeployOPT and RouteOPT on the true mean rewards and costs of now, with the money left per query
    left: a control that knows no queries and plans no stage ahead.

    Raises
    ------
    UsageError
        If the problem lacks the truth, which only yardsticks are given.
    """

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        super().__init__(problem, seed)
        if problem.truth is None:
            raise UsageError("truth=None: known-static-mix-deploy must be told the true means")
        self._truth = problem.truth

    def estimates(self, llm: int) -> tuple[float, float]:
        """Return the true mean reward and cost."""
        regime = self._truth.regime(self.query)
        means, costs = self._truth.mean_reward, self._truth.mean_cost
        return float(means[regime, llm]), float(costs[regime, llm])

    def budget(self) -> float:
        """Return the money left per query left."""
        return self.pace
