"""ACQB: anytime contextual queueing bandits, with the exact MLE or online mirror descent.

Bae, Son, Lee, "Learning to Route and Schedule LLMs from User Retrials via Contextual Queueing
Bandits", arXiv 2602.02061. CQB-eps as their repository has it (commit 0b267317) is ACQB with
another coin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import brentq

from baselines.estimators import ConfidenceFactors, OnlineMirrorDescentMNL, RidgeMNL
from baselines.estimators.confidence import DIRECT_DIM
from baselines.interface import Action, Observation, QueueProblem
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

SOURCE = "Bae, Son, Lee: arXiv 2602.02061"

KAPPA = 4.0
"""kappa, the inverse curvature of the logistic function at 0."""


def optimistic_samples(assortment_size: int) -> int:
    """Thompson samples a slot, M = ceil(1 - log K / log(1 - 1 / (4 sqrt(e pi)))), at least 1."""
    optimistic = 1.0 / (4.0 * math.sqrt(math.e * math.pi))
    return max(1, math.ceil(1.0 - math.log(assortment_size) / math.log1p(-optimistic)))


def confidence_radius(t: int, dim: int, assortment_size: int, ridge: float = 1.0) -> float:
    """Radius (kappa/2) sqrt(d log(1 + t K / (d lambda_0)) + 4 log t) + kappa sqrt(lambda_0)."""
    grown = dim * math.log1p(t * assortment_size / (dim * ridge)) + 4.0 * math.log(t)
    return KAPPA / 2.0 * math.sqrt(grown) + KAPPA * math.sqrt(ridge)


def exploration_constant(rate: float, arrival_rate: float, horizon: int) -> float:
    """Solve lambda mean_{t <= T} min(1, c1 / sqrt(t + 1)) = rate for c1.

    A rate of lambda or more is out of reach (only arrivals are explored): c1 is then the
    smallest value that explores every arrival, sqrt(T + 1).
    """
    decay = 1.0 / np.sqrt(np.arange(1, horizon + 1) + 1.0)
    largest = math.sqrt(horizon + 1.0)
    if rate >= arrival_rate:
        return largest

    def excess(c1: float) -> float:
        return arrival_rate * float(np.minimum(1.0, c1 * decay).mean()) - rate

    return float(brentq(excess, 0.0, largest))


@agent("ACQB-OMD", source=SOURCE, estimator="omd")
@agent("ACQB", source=SOURCE)
class ACQB(QueueAgent):
    """ACQB: optimistic Thompson sampling over (query, assortment) with vanishing exploration.

    For t = 1, 2, ...:
      1. if a query arrived at the end of slot t - 1 and the coin E_{t-1} ~ Bernoulli(eta_{t-1})
         came up, eta_t = min(1, c1 / sqrt(t + 1)): serve that newest query with the next
         assortment of a round-robin over all C(N, K);
      2. else draw theta~_j^(m) = theta-hat_j + alpha_t V_j^{-1/2} g_{j,m}, m = 1..M, one set of
         draws for all queries, put u~_j(x) = max_m x . theta~_j^(m), and serve the query and
         assortment with the largest MNL departure rate under u~;
      3. observe the answer; refit theta-hat on the LLMs shown; V_j += x x^T for those.

    The newest query is the youngest visible one: with a backlog beyond the window the arrival
    itself cannot be reached. The decision costs O(Q N d (d + M)) or less (``ConfidenceFactors``);
    the exact MLE's refit grows with the number of rows of the shown LLMs (``RidgeMNL``), the
    mirror descent step does not.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    estimator : {"mle", "omd"}
        Ridge maximum likelihood over the whole history, or OFU-MNL+'s constant-time online
        mirror descent step (the variant ACQB-OMD).
    alpha_coef : float
        Tuning factor of the radius alpha_t. The default is one value for all tasks.
    anytime : bool
        Whether alpha_t uses the slot t; False puts the horizon T in its place (the published
        experiment's variant).
    exploration_rate : float
        Target share of slots spent on forced exploration over the horizon; c1 is solved from it.
    c1 : float, optional
        Constant of eta_t, instead of ``exploration_rate`` (the published default is 50).
    ridge : float
        lambda_0 of the estimator and of V_j.

    Raises
    ------
    ValueError
        If a setting is out of range or the estimator unknown.
    """

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        estimator: str = "mle",
        alpha_coef: float = 0.03,
        anytime: bool = True,
        exploration_rate: float = 0.01,
        c1: float | None = None,
        ridge: float = 1.0,
    ) -> None:
        super().__init__(problem, seed)
        check_acqb_settings(estimator, alpha_coef, exploration_rate, c1, ridge)
        size, dim, shown = problem.num_llms, problem.context_dim, problem.assortment_size
        self.estimator: RidgeMNL | OnlineMirrorDescentMNL
        if estimator == "mle":
            self.estimator = RidgeMNL(size, dim, shown, ridge, dtype="float32")
        else:
            self.estimator = OnlineMirrorDescentMNL(size, dim, shown, ridge)
        # Large factors are read and written at the speed of the memory.
        precision = "float64" if dim <= DIRECT_DIM else "float32"
        self.confidence = ConfidenceFactors(size, dim, ridge, precision)
        self.dim = dim
        self.alpha_coef = alpha_coef
        self.anytime = anytime
        self.ridge = ridge
        self.samples = optimistic_samples(problem.assortment_size)
        if c1 is None:
            c1 = exploration_constant(exploration_rate, problem.arrival_rate, problem.horizon)
        self.c1 = c1
        self._cycle = AssortmentCycle(size, problem.assortment_size)
        self._explore = False

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Explore the newest query, or take the best pairing under optimistic samples."""
        if self._explore:
            return Pairing(newest(observation, waiting), self._cycle.next())
        contexts = observation["contexts"][:waiting]
        noise = self.confidence.noise(contexts, self.rng, self.samples)
        utilities = self.estimates(observation, waiting) + self.alpha() * noise
        return best_pairing(utilities, self.problem.assortment_size)

    def utilities(self, contexts: Contexts) -> Contexts:
        """Return x . theta-hat_j of contexts (Q, d), shape (Q, N)."""
        return contexts @ self.estimator.theta.T

    def policy(self) -> LinearPolicy:
        """Return the estimated utilities."""
        return without_intercept(self.estimator.theta, "utility")

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from the answer and toss the coin E_t for the query that just arrived."""
        coin = self.rng.random() < self.exploration_probability()
        self._explore = bool(coin and info["arrived"])
        super().update(observation, action, reward, next_observation, info)

    def learn(self, served: Served) -> None:
        """Refit the LLMs shown and shrink their confidence ellipsoids."""
        self.estimator.update(served.context, served.shown, served.kept)
        self.confidence.observe(served.shown, served.context)

    def exploration_probability(self) -> float:
        """Probability eta_t that the coin of the current slot comes up."""
        return min(1.0, self.c1 / math.sqrt(self.slot_number + 1.0))

    def alpha(self) -> float:
        """Scale alpha_t of the Thompson noise."""
        problem = self.problem
        t = self.slot_number if self.anytime else problem.horizon
        radius = confidence_radius(t, self.dim, problem.assortment_size, self.ridge)
        return self.alpha_coef * radius


@agent("CQB-eps", source=f"authors' repository of {SOURCE}")
class CQBEps(ACQB):
    """CQB-eps as the authors of ACQB run it beside theirs: ACQB with another coin.

    The coin E_t comes up with probability 1 for t <= floor(c1^2) and T^{-1/2} after that, c1 as
    ACQB's and T the horizon. Everything else is ACQB's: only a query that has just arrived is
    explored, and the Thompson step chooses in all other slots. So the share of slots explored is
    about lambda T^{-1/2}, whatever ``exploration_rate``, which sets the first slots alone. The
    reconstruction of the paper that the name comes from is `baselines.queueing.mle.CQBEpsUCB`.

    Settings are those of `ACQB`.
    """

    def exploration_probability(self) -> float:
        """Return 1 up to slot floor(c1^2), T^{-1/2} after it."""
        if self.slot_number <= math.floor(self.c1**2):
            return 1.0
        return 1.0 / math.sqrt(self.problem.horizon)


def check_acqb_settings(
    estimator: str, alpha_coef: float, exploration_rate: float, c1: float | None, ridge: float
) -> None:
    """Raise the ValueError of a setting of `ACQB` that is out of range or unknown."""
    if estimator not in ("mle", "omd"):
        raise checks.unknown_name("estimator", estimator, ("mle", "omd"))
    checks.number("alpha_coef", alpha_coef, "[0, inf)")
    checks.number("exploration_rate", exploration_rate, "[0, 1]")
    if c1 is not None:
        checks.number("c1", c1, "[0, inf)")
    checks.number("ridge", ridge, "(0, inf)")
