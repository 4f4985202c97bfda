"""Price-aware StageRoute (ours): list prices instead of optimistic costs, a prior on newcomers.

StageRoute's two optimisers (arXiv 2506.17254) with estimates a provider really has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from baselines.deployment.stageroute import SOURCE, StageRoute
from baselines.interface import DeployProblem, Observation
from baselines.registry import agent
from llmqueue_gym import checks

Floats = NDArray[np.float64]

_NOISE = 0.25  # variance of one reward; no reward in [0, 1] has more


@agent("price-aware-paced", source=f"ours, after {SOURCE}", paced=True)
@agent("price-aware", source=f"ours, after {SOURCE}")
class PriceAware(StageRoute):
    """StageRoute that reads price lists and learns what to expect of a newcomer.

    Estimates of an LLM with n plays:
        c    = list price * (sum of paid / list price then + n0) / (n + n0), no optimism;
        mu^U = posterior mean + kappa * posterior standard deviation,
    the posterior of its mean reward under an empirical-Bayes prior. At every tau_k the rewards of
    all LLMs seen so far are regressed on (1, log list price, arrival time): newer and dearer LLMs
    tend to be better, and the spread around the regression says how far to trust it. So a
    newcomer is deployed for what it promises at its price, not for being unknown.

    A price cut moves the estimate of the cost at the next update point. (R) Without a list price
    the cost is StageRoute's c^L and the regression leaves the price out.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the draws m ~ p*.
    optimism : float
        kappa, in standard deviations of the posterior. There is no regret proof for a constant.
    prior_plays : float
        n0, how many plays the list price counts for.
    paced : bool
        Route with the money left per query left, (bT - spent) / (T - t), instead of b.

    Raises
    ------
    ValueError
        If ``optimism`` is negative or ``prior_plays`` not positive.
    """

    def __init__(
        self,
        problem: DeployProblem,
        seed: int,
        optimism: float = 1.25,
        prior_plays: float = 20.0,
        paced: bool = False,
    ) -> None:
        super().__init__(problem, seed, paced=paced)
        checks.number("optimism", optimism, "[0, inf)")
        checks.number("prior_plays", prior_plays, "(0, inf)")
        self.shrink = 0.0
        self.optimism = optimism
        self.prior_plays = prior_plays
        size = problem.num_llms
        self._price = [0.0] * size
        self._paid = [0.0] * size  # sum of paid / list price at the time
        self._first_seen: dict[int, float] = {}
        self._prior: Mapping[int, tuple[float, float]] = {}  # mean and variance
        self._spread = _FIRST_SPREAD

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Read the price list, refit the prior, then solve DeployOPT."""
        self._price = observation["cost_prior"].tolist()
        for llm in arrived:
            self._first_seen.setdefault(llm, self.query / self.problem.horizon)
        self._fit_prior(arrived)
        return super().deploy(observation, arrived)

    def _fit_prior(self, arrived: list[int]) -> None:
        features = [[1.0, self._first_seen[llm], self._log_price(llm)] for llm in arrived]
        means, variances, self._spread = fit_prior(
            np.array(features),
            np.array([self.plays[llm] for llm in arrived], dtype=np.float64),
            np.array([self.reward[llm] for llm in arrived]),
            self._spread,
        )
        pairs = zip(means.tolist(), variances.tolist(), strict=True)
        self._prior = dict(zip(arrived, pairs, strict=True))

    def _log_price(self, llm: int) -> float:
        """List price in units of the budget, on a log scale of about unit size."""
        price = self._price[llm]
        return math.log10(price / self.problem.budget) if price > 0.0 else 0.0

    def estimates(self, llm: int) -> tuple[float, float]:
        """Return the optimistic posterior reward, and the list price corrected by what was paid.

        The reward is posterior mean + kappa * posterior standard deviation, within [0, 1]. The cost
        (USD) is c^L without a list price.
        """
        plays, (mean, variance) = self.plays[llm], self._prior[llm]
        trust = variance / (variance + _NOISE / max(1, plays)) if plays else 0.0
        mean += trust * (self.reward[llm] - mean)
        reward = mean + self.optimism * math.sqrt(variance * (1.0 - trust))
        price, n0 = self._price[llm], self.prior_plays
        if price > 0.0:
            cost = price * (self._paid[llm] + n0) / (plays + n0)
        else:
            cost = super().estimates(llm)[1]
        return min(1.0, max(0.0, reward)), cost

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Count the cost in units of the list price of that query; refresh the estimates."""
        # A deployed LLM that has retired is no longer listed.
        price = float(observation["cost_prior"][llm]) or self._price[llm]
        if price > 0.0:
            self._paid[llm] += cost / price
        super().learn(observation, llm, reward, cost)


_FIRST_SPREAD = 0.2**2  # tau^2 before any data, weighed as three LLMs
_WEIGHT = 3.0
_SLOPES = 0.5**2  # prior variance of the regression's coefficients; the prior mean is 1/2


def fit_prior(
    features: Floats, plays: Floats, means: Floats, spread: float
) -> tuple[Floats, Floats, float]:
    """Fit the prior of mean rewards: theta_m ~ N(beta . x_m, tau^2), mean_m ~ N(theta_m, 1/(4n)).

    Parameters
    ----------
    features : ndarray, shape (M, F)
        x_m, the first of them 1.
    plays, means : ndarray, shape (M,)
        Plays n and mean rewards; LLMs without plays do not count.
    spread : float
        tau^2 to start from. Five steps of expectation maximisation follow.

    Returns
    -------
    tuple of ndarray, ndarray, float
        Mean and variance of the predictive prior of every LLM, (M,) each, and tau^2.
    """
    seen = plays > 0
    x, n, y = features[seen], plays[seen], means[seen]
    ridge = np.eye(features.shape[1]) / _SLOPES
    for _ in range(5):
        weights = 1.0 / (spread + _NOISE / n)
        covariance = np.linalg.inv(ridge + (x.T * weights) @ x)
        beta = covariance @ ((x.T * weights) @ y + 0.5 * ridge[0])
        # Posterior of each theta_m about the regression line.
        variance = 1.0 / (1.0 / spread + n / _NOISE)
        offset = variance * (n / _NOISE) * (y - x @ beta)
        spread = float(np.sum(offset**2 + variance) + _WEIGHT * _FIRST_SPREAD) / (n.size + _WEIGHT)
    uncertainty = np.einsum("mf,fg,mg->m", features, covariance, features)
    return features @ beta, spread + uncertainty, spread
