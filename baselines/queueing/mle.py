"""Agents on the ridge MNL maximum likelihood estimate: greedy, eps-greedy and the CQB family.

CQB-eps-ucb, CQB-Opt: Bae, Kang, Lee, "Queue Length Regret Bounds for Contextual Queueing Bandits",
ICLR 2026 (arXiv 2601.19300). CQB-eta-2: arXiv 2606.09668.
"""

from __future__ import annotations

import math

import numpy as np

from baselines.estimators import ConfidenceFactors, RidgeMNL
from baselines.interface import Observation, QueueProblem
from baselines.queueing.acqb import confidence_radius
from baselines.queueing.base import (
    AssortmentCycle,
    Contexts,
    LinearPolicy,
    Pairing,
    QueueAgent,
    Served,
    best_pairing,
    newest,
    without_intercept,
)
from baselines.registry import agent
from llmqueue_gym import checks

_CQB = "Bae, Kang, Lee: ICLR 2026, arXiv 2601.19300"


@agent("eps-greedy", source="greedy with exploration", epsilon=0.03)
@agent("greedy", source="greedy on the ridge MNL estimate")
class GreedyMLE(QueueAgent):
    """Greedy, or epsilon-greedy, on the ridge MNL maximum likelihood estimate.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    epsilon : float
        Probability of a slot that serves the newest query with the next assortment of a
        round-robin instead; eps-greedy has the best of five on the suite queueing-tuning.
    ridge : float
        Weight lambda_0 of the squared norm.

    Raises
    ------
    ValueError
        If ``epsilon`` is no probability, or ``ridge`` not positive.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, epsilon: float = 0.0, ridge: float = 1.0
    ) -> None:
        super().__init__(problem, seed)
        checks.number("epsilon", epsilon, "[0, 1]")
        self.epsilon = epsilon
        size, dim, shown = problem.num_llms, problem.context_dim, problem.assortment_size
        self.estimator = RidgeMNL(size, dim, shown, ridge, dtype="float32")
        self._cycle = AssortmentCycle(size, shown)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Explore with the scheduled probability, else take the best pairing."""
        probability = self.exploration_probability()
        if probability > 0 and self.rng.random() < probability:
            return Pairing(newest(observation, waiting), self._cycle.next())
        return self.exploit(observation, waiting)

    def exploration_probability(self) -> float:
        """Probability that the current slot explores."""
        return self.epsilon

    def exploit(self, observation: Observation, waiting: int) -> Pairing:
        """Best pairing under the estimate."""
        return best_pairing(self.estimates(observation, waiting), self.problem.assortment_size)

    def utilities(self, contexts: Contexts) -> Contexts:
        """Return x . theta-hat_j of contexts (Q, d), shape (Q, N)."""
        return contexts @ self.estimator.theta.T

    def policy(self) -> LinearPolicy:
        """Return the estimated utilities."""
        return without_intercept(self.estimator.theta, "utility")

    def learn(self, served: Served) -> None:
        """Refit the LLMs shown."""
        self.estimator.update(served.context, served.shown, served.kept)


@agent("CQB-Opt", source=_CQB)
class CQBOpt(GreedyMLE):
    """CQB-Opt: the upper confidence rule from the first slot, no forced exploration (R).

    K = 1: argmax over (x, j) of mu(x . theta-hat_j) + beta_t ||x||_{V_j^{-1}}, mu the logistic
    function. (R) K > 1: the largest MNL departure rate under the utilities
    x . theta-hat_j + beta_t ||x||_{V_j^{-1}}. (R) beta_t is ACQB's radius with K = 1 times
    ``beta_coef``.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    beta_coef : float
        Tuning factor of beta_t.
    ridge : float
        lambda_0 of the estimator and of V_j.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, beta_coef: float = 0.03, ridge: float = 1.0
    ) -> None:
        super().__init__(problem, seed, ridge=ridge)
        checks.number("beta_coef", beta_coef, "[0, inf)")
        self.beta_coef = beta_coef
        self.confidence = ConfidenceFactors(problem.num_llms, problem.context_dim, ridge)

    def exploit(self, observation: Observation, waiting: int) -> Pairing:
        """Best pairing under upper confidence bounds."""
        problem = self.problem
        radius = confidence_radius(self.slot_number, problem.context_dim, 1, self.estimator.ridge)
        scores = self.estimates(observation, waiting).astype(np.float64)
        if problem.assortment_size == 1:
            scores = 0.5 + 0.5 * np.tanh(0.5 * scores)  # mu
        norms = self.confidence.norms(observation["contexts"][:waiting])
        scores += self.beta_coef * radius * norms
        return best_pairing(scores, problem.assortment_size)

    def learn(self, served: Served) -> None:
        """Refit the LLMs shown and shrink their confidence ellipsoids."""
        super().learn(served)
        self.confidence.observe(served.shown, served.context)


@agent("CQB-eps-ucb", source=f"(R) {_CQB}")
class CQBEpsUCB(CQBOpt):
    """CQB-eps reconstructed from its paper (R): much exploration first, then the UCB rule.

    For t <= tau = T / 10 (R), and after that with probability T^{-1/2}: serve the newest query with
    the next assortment of a round-robin, whether or not a query has just arrived. Else the upper
    confidence rule of ``CQBOpt`` (R). The agent that the authors of ACQB compare with under the
    name CQB-eps is another: `baselines.queueing.acqb.CQBEps`.
    """

    def exploration_probability(self) -> float:
        """Return 1 up to slot tau, T^{-1/2} after it."""
        horizon = self.problem.horizon
        return 1.0 if self.slot_number <= horizon / 10 else horizon**-0.5


@agent("CQB-eta-2", source="arXiv 2606.09668")
class CQBEta2(CQBOpt):
    """CQB-eta-2 (R): tau_1 slots of exploration, eta-exploration and UCB, at last pure UCB.

    For t <= tau_1 = ceil(sqrt(T)) (R): explore as ``CQBEpsUCB`` does. Then, up to
    T_c = T - C log T / eps^2, explore with probability eta = eps / 2, else follow the upper
    confidence rule; after T_c only that. eps is the traffic slack.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    slack : float
        Traffic slack eps the schedule assumes (0.1 in the published instances).
    cutoff : float
        Constant C of the last phase (R).
    beta_coef : float
        Tuning factor of beta_t.
    ridge : float
        lambda_0 of the estimator and of V_j.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        slack: float = 0.1,
        cutoff: float = 1.0,
        beta_coef: float = 0.03,
        ridge: float = 1.0,
    ) -> None:
        super().__init__(problem, seed, beta_coef, ridge)
        checks.number("slack", slack, "(0, 1]")
        checks.number("cutoff", cutoff, "[0, inf)")
        horizon = problem.horizon
        self.slack = slack
        self._first = math.ceil(math.sqrt(horizon))  # tau_1
        self._last = horizon - cutoff * math.log(horizon) / slack**2  # T_c

    def exploration_probability(self) -> float:
        """Return 1 up to tau_1, eta up to T_c, then 0."""
        if self.slot_number <= self._first:
            return 1.0
        return self.slack / 2.0 if self.slot_number <= self._last else 0.0
