"""Contextual StageRoute (ours): per-query estimates of reward and cost in StageRoute's optimisers.

The published model (arXiv 2506.17254) routes all queries alike; its queries carry no context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baselines.deployment.base import StageAgent, features
from baselines.deployment.stageroute import SOURCE
from baselines.interface import DeployProblem, Observation
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.deployment.routing import deploy_opt
from llmqueue_gym.errors import UsageError

Floats = NDArray[np.float64]


@agent("contextual-StageRoute", source=f"ours, after {SOURCE}")
class ContextualStageRoute(StageAgent):
    """StageRoute on ridge estimates mu_m(x), c_m(x) instead of means.

    With z = (x, 1), A_m = I + sum z z^T over the plays of m, and w = sqrt(z A_m^-1 z); rewards are
    regressed as r - 1, so that an LLM without plays is worth 1, as in StageRoute:
      1. tau_k: DeployOPT on mu^U and c of the average context seen so far;
      2. query: m = argmax mu_m(z) + beta w - lambda c_m(z) - nu_m over the deployed;
      3. learn from reward and cost; nu_m <- max(0, nu_m + s (1{m answered} - alpha_m)); and every
         50 queries set lambda to the smallest price at which step 2 would spend at most
         b_t = (bT - spent) / (T - t) on average over the last 128 contexts.

    (R) Step 2 is RouteOPT over the stream of queries: its caps hold on average, not per query, so
    lambda and nu are its multipliers for budget and throughput, and a query that needs an expensive
    LLM gets it. With a cap met in every query the context would hardly matter. (R) Costs get no
    optimism; before the first play the list price counts, or c1 where none is published.

    A step costs O(M d^2), that with a new lambda 128 times as much.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the agent; the rule itself draws nothing.
    width : float
        beta, size of the confidence interval of the reward.
    step : float
        Step s of the multipliers of throughput.

    Raises
    ------
    ValueError
        If the task has no contexts, or a setting is negative.
    """

    def __init__(
        self, problem: DeployProblem, seed: int, width: float = 0.25, step: float = 0.01
    ) -> None:
        super().__init__(problem, seed)
        if problem.context_dim < 1:
            raise UsageError(
                f"context_dim={problem.context_dim}: contextual-StageRoute needs queries with "
                "contexts (a table instance); use StageRoute or price-aware"
            )
        checks.number("width", width, "[0, inf)")
        checks.number("step", step, "[0, inf)")
        self.width, self.step = width, step
        size, dim = problem.num_llms, problem.context_dim + 1
        self._inverse = np.tile(np.eye(dim), (size, 1, 1))  # A_m^-1
        self._moments = np.zeros((size, dim, 2))  # sums of reward z and cost z
        self._weights = np.zeros((size, dim, 2))
        self._context_sum = np.zeros(dim)
        self._alpha = np.array(problem.alpha)
        self._price = np.zeros(size)
        self._recent = np.zeros((_WINDOW, dim))
        self.price_of_money = 0.0  # lambda, reward per USD
        self.price_of_traffic = np.zeros(size)  # nu

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Solve DeployOPT at the average context."""
        self._price = np.maximum(observation["cost_prior"], self.problem.cost_low).astype(float)
        seen = self._context_sum[-1]  # rated answers: under a delay fewer than queries
        mean = self._context_sum / seen if seen else features(observation)
        rewards, costs = self._estimates(mean, arrived)
        best = deploy_opt(
            rewards,
            costs,
            self._alpha[arrived],
            self.pace,
            self.problem.max_deployed,
            samples=[self.plays[llm] for llm in arrived],
            incumbent=[llm in self.deployed for llm in arrived],
        )
        return [arrived[i] for i in np.flatnonzero(best.deployed)]

    def _estimates(self, z: Floats, llms: list[int]) -> tuple[Floats, Floats]:
        """Return mu^U(z) in [0, 1] and c(z) in [c1, c2], (..., M) for z of shape (..., d + 1)."""
        problem = self.problem
        means = z @ self._weights[llms]  # (M, ..., 2)
        rewards, costs = means[..., 0].T, means[..., 1].T
        width = np.sqrt(((z @ self._inverse[llms]) * z).sum(axis=-1)).T  # inverse is symmetric
        rewards = np.clip(1.0 + rewards + self.width * width, 0.0, 1.0)
        played = np.array([self.plays[llm] > 0 for llm in llms])
        costs = np.where(played, costs, self._price[llms])
        return rewards, np.clip(costs, problem.cost_low, problem.cost_high)

    def route(self, observation: Observation) -> int:
        """Take the best value for money and traffic."""
        z = features(observation)
        self._recent[self.query % _WINDOW] = z
        if self.query < _REFRESH or self.query % _REFRESH == 0:
            self.price_of_money = self._clearing_price()
        llms = self.open_llms(observation)
        rewards, costs = self._estimates(z, llms)
        values = rewards - self.price_of_money * costs - self.price_of_traffic[llms]
        return llms[int(values.argmax())]

    def _clearing_price(self) -> float:
        """Return the smallest lambda at which the recent contexts would cost at most b_t each."""
        contexts = self._recent[: min(self.query + 1, _WINDOW)]
        rewards, costs = self._estimates(contexts, self.deployed)
        values, rows = rewards - self.price_of_traffic[self.deployed], np.arange(len(contexts))

        def affordable(price: float) -> bool:
            chosen = (values - price * costs).argmax(axis=1)
            return bool(costs[rows, chosen].mean() <= self.pace)

        if affordable(0.0):
            return 0.0
        low, high = 0.0, 1.0 / self.problem.budget
        while not affordable(high) and high < _DEAREST / self.problem.cost_low:
            low, high = high, 4.0 * high
        for _ in range(15):
            price = (low + high) / 2.0
            low, high = (low, price) if affordable(price) else (price, high)
        return high

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Update the ridge regressions of the LLM and the prices of traffic."""
        z = features(observation)
        self._context_sum += z
        inverse = self._inverse[llm]
        gain = inverse @ z
        inverse -= np.outer(gain, gain) / (1.0 + z @ gain)
        self._moments[llm] += np.outer(z, (reward - 1.0, cost))
        self._weights[llm] = inverse @ self._moments[llm]
        for other in self.deployed:
            used = float(other == llm) - self.problem.alpha[other]
            price = self.price_of_traffic[other] + self.step * used
            self.price_of_traffic[other] = max(0.0, price)


@agent("contextual-StageRoute-mixed", source="ours")
class RememberingStageRoute(ContextualStageRoute):
    """Contextual StageRoute that knows a query again by its context.

    What an LLM earned at a query beyond the regression's estimate belongs to the two of them: an
    effect of variance s^2 in rewards of variance v, so its posterior mean, the sum of the n
    residuals / (n + v / s^2), is added to the reward of that query. Costs stay the regression's.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the agent; the rule itself draws nothing.
    width, step : float
        As `ContextualStageRoute`.
    doubt : float
        v / s^2.

    Raises
    ------
    ValueError
        If the task has no contexts, or a setting is out of range.
    """

    def __init__(
        self,
        problem: DeployProblem,
        seed: int,
        width: float = 0.25,
        step: float = 0.01,
        doubt: float = 3.0,
    ) -> None:
        super().__init__(problem, seed, width, step)
        self.doubt = checks.number("doubt", doubt, "(0, inf)")
        self._residuals: dict[bytes, Floats] = {}  # context -> (sums, numbers) x LLMs

    def _estimates(self, z: Floats, llms: list[int]) -> tuple[Floats, Floats]:
        """Return the regression's estimates, rewards moved by what was seen of these queries."""
        rewards, costs = super()._estimates(z, llms)
        known = [self._residuals.get(row.tobytes()) for row in np.atleast_2d(z)]
        for row, seen in zip(np.atleast_2d(rewards), known, strict=True):
            if seen is not None:
                row += seen[0, llms] / (seen[1, llms] + self.doubt)
        return np.clip(rewards, 0.0, 1.0), costs

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Learn as contextual StageRoute does, and remember how far off its estimate was."""
        z = features(observation)
        key, none = z.tobytes(), np.zeros((2, self.problem.num_llms))
        seen = self._residuals[key] = self._residuals.pop(key, none)
        seen[:, llm] += np.array([reward - 1.0 - z @ self._weights[llm, :, 0], 1.0])
        if len(self._residuals) > _MOST_QUERIES:
            del self._residuals[next(iter(self._residuals))]
        super().learn(observation, llm, reward, cost)


_MOST_QUERIES = 16384  # beyond which the one answered longest ago is forgotten
_WINDOW = 128  # contexts that lambda is computed on
_REFRESH = 50  # queries between two computations
_DEAREST = 1e3  # a price at which only the cheapest LLM is worth its cost
