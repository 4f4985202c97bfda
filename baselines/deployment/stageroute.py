"""StageRoute, its repairs, and the two greedy deployments it is compared with.

Li, Li, "Near-Optimal Online Deployment and Routing for Streaming LLMs", ICLR 2026,
arXiv 2506.17254; confidence radius of Agrawal, Devanur, "Bandits with concave rewards and convex
knapsacks", EC 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baselines.deployment.base import LPAgent
from baselines.interface import DeployProblem, Observation
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.compiled import borrowing, part

SOURCE = "Li, Li: ICLR 2026, arXiv 2506.17254"
GAMMA = 0.1
"""Default size of the confidence radius; `StageRoute` says where it comes from."""


def confidence_radius(mean: float, plays: int, gamma: float) -> float:
    """Return f_rad(v, n) = sqrt(gamma v / n) + gamma / n of a mean in [0, 1] of n >= 1 plays."""
    return math.sqrt(gamma * mean / plays) + gamma / plays


_radius = part(confidence_radius)


@borrowing
def _bounds(
    mean: float, cost: float, plays: int, gamma: float, low: float, high: float
) -> tuple[float, float]:
    """Return mu^U and c^L of an LLM, `StageRoute`; costs lie between ``low`` and ``high``, USD."""
    reward = mean + 2.0 * _radius(mean, plays, gamma)
    bound = cost - 2.0 * high * _radius(cost / high, plays, gamma)
    return min(1.0, reward), min(max(bound, low), high)


def theory_gamma(problem: DeployProblem, delta: float = 0.05) -> float:
    """Return gamma = log(N T / delta), the size of the radius for which regret is proved."""
    return math.log(problem.num_llms * problem.horizon / delta)


@agent("StageRoute-paced", source=f"ours, after {SOURCE}", paced=True)
@agent("StageRoute-stage-counts", source=SOURCE, counts="stage")
@agent("StageRoute-theory", source=SOURCE, gamma=None)
@agent("StageRoute", source=SOURCE)
class StageRoute(LPAgent):
    """StageRoute: optimistic deployment at update points, optimistic routing in between.

    Estimates of an LLM with n plays (values scaled to [0, 1], costs by c2):
        mu^U = clip(mean + 2 f_rad(mean, n), 0, 1)        (1 if n = 0)
        c^L  = clip(cost - 2 f_rad(cost, n), c1, c2)      (c1 if n = 0)
    in DeployOPT at tau_k and in RouteOPT at every query; see `LPAgent` for the loop.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the draws m ~ p*.
    gamma : float or None
        Size of the radius. None takes log(N T / delta), delta = 0.05, for which regret is proved.
        The default 0.1 (R) has no proof and at a fixed gap a regret that grows like T: it has the
        largest mean score, by a hair, on the suite ``deployment-tuning``, whose instances no other
        suite plays. Much smaller values earn more under a tight budget, larger ones are surer to
        find a better newcomer; docs/environments/llm-deploy.md, "What gamma costs", has figures.
    counts : {"all", "stage"}
        (R) Which plays the bounds of stage k use: ``"all"`` plays so far, refreshed after every
        query; ``"stage"`` the plays of the stages before k, frozen at tau_k, so that the bounds
        and hence p* change at update points only and a newcomer stays fully optimistic for its
        first stage. Both persist when an LLM leaves and returns.
    paced : bool
        Repair of the budget (R): replace b by (1 - eps) (bT - spent) / (T - t), with the shrink
        eps = sqrt(gamma c2 / (bT)) of bandits with knapsacks, at most 1/2.

    Raises
    ------
    ValueError
        If ``gamma`` is negative or ``counts`` unknown.
    """

    def __init__(
        self,
        problem: DeployProblem,
        seed: int,
        gamma: float | None = GAMMA,
        counts: str = "all",
        paced: bool = False,
    ) -> None:
        super().__init__(problem, seed)
        if gamma is not None:
            checks.number("gamma", gamma, "[0, inf)")
        if counts not in ("all", "stage"):
            raise checks.unknown_name("counts", counts, ("all", "stage"))
        self.gamma = theory_gamma(problem) if gamma is None else gamma
        self.paced = paced
        total = problem.budget * problem.horizon
        self.shrink = min(0.5, math.sqrt(self.gamma * problem.cost_high / total))
        self._frozen = counts == "stage"

    def estimates(self, llm: int) -> tuple[float, float]:
        """Return mu^U and c^L."""
        problem, plays = self.problem, self.plays[llm]
        if plays == 0:
            return 1.0, problem.cost_low
        mean, cost = self.reward[llm], self.cost[llm]
        return _bounds(mean, cost, plays, self.gamma, problem.cost_low, problem.cost_high)

    def budget(self) -> float:
        """Return b, or the shrunk money left per query left."""
        return (1.0 - self.shrink) * self.pace if self.paced else self.problem.budget

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Refresh the bounds of the LLM that answered, unless they are frozen for the stage."""
        if not self._frozen:
            super().learn(observation, llm, reward, cost)


@agent("top-UCB", source="heuristic")
class TopUCB(StageRoute):
    """Deploy the M_max largest mu^U whatever they cost; route by RouteOPT. Settings: StageRoute."""

    def select(
        self, arrived: list[int], rewards: Sequence[float], costs: Sequence[float]
    ) -> list[int]:
        """Take the largest mu^U, the least played among equals."""
        return self.top(arrived, dict(zip(arrived, rewards, strict=True)).__getitem__)


@agent("ratio", source="heuristic")
class Ratio(StageRoute):
    """Deploy the M_max largest mu^U / c^L; route by RouteOPT. Settings: StageRoute."""

    def select(
        self, arrived: list[int], rewards: Sequence[float], costs: Sequence[float]
    ) -> list[int]:
        """Take the largest ratios, the least played among equals."""
        rows = zip(arrived, rewards, costs, strict=True)
        return self.top(arrived, {llm: mu / cost for llm, mu, cost in rows}.__getitem__)
