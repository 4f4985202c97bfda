"""OFU-MNL+ over the queue: optimism on a constant-time mirror descent estimate.

Lee and Oh, "Nearly Minimax Optimal Regret for Multinomial Logistic Bandit", NeurIPS 2024.
"""

from __future__ import annotations

import math

from baselines.estimators import OnlineMirrorDescentMNL
from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import (
    LinearPolicy,
    Pairing,
    QueueAgent,
    Served,
    best_pairing,
    without_intercept,
)
from baselines.registry import agent
from llmqueue_gym import checks


@agent("OFU-MNL+", source="Lee, Oh: NeurIPS 2024")
class OFUMNLPlus(QueueAgent):
    """OFU-MNL+: the best pairing under optimistic utilities x . theta_j + beta_t ||x||_{H_j^{-1}}.

    (R) The source has no queue: here the pairing is also maximised over the waiting queries.
    (R) The paper's radius beta_t = O(sqrt(d) log t log K) comes with constants for the proof;
    beta_t = ``beta_coef`` sqrt(d) log(t + 1) log(K + 1) here. Flat in time.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    beta_coef : float
        Tuning factor of beta_t.
    ridge : float
        Weight of the identity in H, lambda.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, beta_coef: float = 0.05, ridge: float = 1.0
    ) -> None:
        super().__init__(problem, seed)
        checks.number("beta_coef", beta_coef, "[0, inf)")
        size, dim, shown = problem.num_llms, problem.context_dim, problem.assortment_size
        self.estimator = OnlineMirrorDescentMNL(size, dim, shown, ridge)
        self._scale = beta_coef * math.sqrt(dim) * math.log(shown + 1)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Take the best pairing under optimistic utilities."""
        contexts = observation["contexts"][:waiting]
        beta = self._scale * math.log(self.slot_number + 1)
        utilities = self.estimator.confidence.bounds(self.estimator.theta, contexts, beta)
        return best_pairing(utilities, self.problem.assortment_size)

    def policy(self) -> LinearPolicy:
        """Return the estimated utilities."""
        return without_intercept(self.estimator.theta, "utility")

    def learn(self, served: Served) -> None:
        """Take one mirror descent step."""
        self.estimator.update(served.context, served.shown, served.kept)
