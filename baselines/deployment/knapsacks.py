"""Bandits with knapsacks: the three general algorithms, with a deployment in front.

PrimalDualBwK: Badanidiyuru, Kleinberg, Slivkins, "Bandits with Knapsacks", JACM 2018. UCB-BwK:
Agrawal, Devanur, EC 2014. LagrangeBwK: Immorlica, Sankararaman, Schapire, Slivkins, JACM 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.deployment.base import StageAgent
from baselines.deployment.stageroute import GAMMA, StageRoute
from baselines.interface import DeployProblem, Observation
from baselines.registry import agent

_LOG_MAX = 300.0  # a price of e^300 already forbids everything but the cheapest


@agent("UCB-BwK", source="Agrawal, Devanur: EC 2014")
class UCBBwK(StageRoute):
    """UCB-BwK: StageRoute's bounds and programmes with the budget (1 - eps) b, until it is gone.

    eps = sqrt(gamma c2 / (bT)), at most 1/2. (R) The null action, here a refusal, is not used: once
    less than min(c2, eps bT) is left, the cheapest deployed LLM answers. The second term is for
    budgets that c2 would use up from the start.
    """

    def budget(self) -> float:
        """Return (1 - eps) b, or 0 once the budget is gone."""
        problem = self.problem
        total = problem.budget * problem.horizon
        if self.spent > total - min(problem.cost_high, self.shrink * total):
            return 0.0
        return (1.0 - self.shrink) * problem.budget


@agent("PrimalDualBwK", source="Badanidiyuru, Kleinberg, Slivkins: JACM 2018")
class PrimalDualBwK(StageRoute):
    """PrimalDualBwK: the best bang per buck, at prices that grow with use.

    Resources money and time in units of c2: a play uses c^L / c2 of money and b / c2 of time, and
    both budgets are B = bT / c2. Start with v = (1, 1). For t = 1, 2, ...:
      1. play argmax_m mu^U_m / (v . L_m);
      2. v_i <- v_i (1 + eps)^(L_i of the LLM played), eps = sqrt(ln 2 / B), at most 1/2.
    (R) tau_k: deploy the M_max largest ratios, the least played among equals.
    """

    def __init__(self, problem: DeployProblem, seed: int, gamma: float | None = GAMMA) -> None:
        super().__init__(problem, seed, gamma=gamma)
        total = problem.budget * problem.horizon / problem.cost_high
        self._step = math.log1p(min(0.5, math.sqrt(math.log(2.0) / total)))
        self._time = problem.budget / problem.cost_high
        self._log_price = 0.0  # ln(v_money / v_time): only the ratio of prices matters

    def ratio(self, llm: int) -> float:
        """Return mu^U / (v . L), up to the factor v_time common to all LLMs."""
        reward, cost = self.estimates(llm)
        money = cost / self.problem.cost_high
        return reward / (math.exp(self._log_price) * money + self._time)

    def select(
        self, arrived: list[int], rewards: Sequence[float], costs: Sequence[float]
    ) -> list[int]:
        """Take the largest ratios."""
        return self.top(arrived, self.ratio)

    def route(self, observation: Observation) -> int:
        """Play the largest ratio and raise the prices of what it uses."""
        llm = max(self.open_llms(observation), key=self.ratio)
        money = self.estimates(llm)[1] / self.problem.cost_high
        self._log_price = min(_LOG_MAX, self._log_price + self._step * (money - self._time))
        return llm

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Nothing to refresh: ratios are computed from the statistics."""


@agent("LagrangeBwK", source="Immorlica, Sankararaman, Schapire, Slivkins: JACM 2022")
class LagrangeBwK(StageAgent):
    """LagrangeBwK: a bandit for the plays against Hedge for the prices.

    Both players see the Lagrangian r + sum_i lambda_i (1 - (T/B) c_i) over money and time, where
    the term of time is 0: r + lambda (1 - c/b), lambda the probability of money. For t = 1, 2, ...:
      1. draw m among the deployed with the weights of EXP3-IX and observe r, c;
      2. weight of m: exp(-eta * loss / (probability + eta/2)), the Lagrangian as a loss in [0, 1];
      3. weight of money: exp(-eta' (1 - c/b)).
    eta = sqrt(2 ln M / (M T)), eta' = sqrt(ln 2 / T) / 2.

    (R) c/b is clipped at 3, so the Lagrangian lies in [-2, 2]. (R) tau_k: the M_max largest weights
    are deployed, the least played among equals; a newcomer starts with the largest weight.
    """

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        super().__init__(problem, seed)
        slots = min(problem.max_deployed, problem.num_llms)
        self._rate = math.sqrt(2.0 * math.log(max(2, slots)) / (slots * problem.horizon))
        self._dual_rate = math.sqrt(math.log(2.0) / problem.horizon) / 2.0
        self._log_weight: dict[int, float] = {}
        self._log_money = 0.0  # ln(weight of money / weight of time)

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Take the largest weights."""
        best = max(self._log_weight.values(), default=0.0)
        for llm in arrived:
            self._log_weight.setdefault(llm, best)
        return self.top(arrived, self._log_weight.__getitem__)

    def route(self, observation: Observation) -> int:
        """Draw by the weights of the deployed."""
        llms = self.open_llms(observation)
        return self.pick(llms, self._chances(llms))

    def _chances(self, llms: list[int]) -> list[float]:
        best = max(self._log_weight[llm] for llm in llms)
        weights = [math.exp(self._log_weight[llm] - best) for llm in llms]
        total = sum(weights)
        return [weight / total for weight in weights]

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Update the weights of the LLM and of money."""
        slack = 1.0 - min(3.0, cost / self.problem.budget)
        price = 1.0 / (1.0 + math.exp(-self._log_money))
        loss = (2.0 - reward - price * slack) / 4.0
        rivals = self.open_llms(observation)
        chance = self._chances([llm, *(other for other in rivals if other != llm)])[0]
        self._log_weight[llm] -= self._rate * loss / (chance + self._rate / 2.0)
        self._log_money = max(-_LOG_MAX, self._log_money - self._dual_rate * slack)
