"""LinUCB and LinTS over the queue: a linear model of whether an LLM's answer is kept.

Li et al., WWW 2010 (disjoint LinUCB); Agrawal and Goyal, ICML 2013 (LinTS).
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from baselines.estimators import RidgeRegression
from baselines.estimators.confidence import DIRECT_DIM
from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import (
    Contexts,
    LinearPolicy,
    Pairing,
    QueueAgent,
    Served,
    best_sum,
    without_intercept,
)
from baselines.registry import agent
from llmqueue_gym import checks


class _LinearAgent(QueueAgent):
    """Ridge regression of "kept" on the context per LLM, the best query and LLMs by an index.

    (R) The sources have no queue and show one arm: here every waiting query is scored by the sum
    of its K largest indices, and a shown LLM's outcome is 1 when its answer is kept, else 0.
    """

    def __init__(self, problem: QueueProblem, seed: int, ridge: float = 1.0) -> None:
        super().__init__(problem, seed)
        size, dim = problem.num_llms, problem.context_dim
        # No query comes back where one is seen at a time, as live: its norms take all factors.
        precision = "float32" if problem.window == 1 and dim > DIRECT_DIM else "float64"
        self.regression = RidgeRegression(size, dim, ridge, precision)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Serve the query whose K best indices are largest, with those LLMs."""
        indices = self._indices(observation["contexts"][:waiting])
        return best_sum(indices, self.problem.assortment_size)

    def learn(self, served: Served) -> None:
        """Regress every shown LLM's outcome on the context."""
        self.regression.update(served.context, served.shown, served.kept)

    def policy(self) -> LinearPolicy:
        """Return the estimated shares of kept answers."""
        return without_intercept(self.regression.theta, "share")

    @abstractmethod
    def _indices(self, contexts: Contexts) -> NDArray[np.float64]:
        """Return the LLMs' indices for contexts (Q, d), shape (Q, N)."""


@agent("LinUCB", source="Li et al.: WWW 2010")
class LinUCB(_LinearAgent):
    """LinUCB: index x . theta_j + alpha ||x||_{V_j^{-1}}.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    alpha : float
        Width of the confidence bound. The default is the best of five on the suite queueing-tuning.
    ridge : float
        Weight of the identity in V_j.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, alpha: float = 1.7, ridge: float = 1.0
    ) -> None:
        super().__init__(problem, seed, ridge)
        checks.number("alpha", alpha, "[0, inf)")
        self.alpha = alpha

    def _indices(self, contexts: Contexts) -> NDArray[np.float64]:
        return self.regression.confidence.bounds(self.regression.theta, contexts, self.alpha)


@agent("LinTS", source="Agrawal, Goyal: ICML 2013")
class LinTS(_LinearAgent):
    """LinTS: index x . theta~_j with one sample theta~_j ~ N(theta_j, v^2 V_j^{-1}) a slot.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    scale : float
        Standard deviation v of the sample.
    ridge : float
        Weight of the identity in V_j.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, scale: float = 0.5, ridge: float = 1.0
    ) -> None:
        super().__init__(problem, seed, ridge)
        checks.number("scale", scale, "[0, inf)")
        self.scale = scale

    def _indices(self, contexts: Contexts) -> NDArray[np.float64]:
        noise = self.regression.confidence.noise(contexts, self.rng, 1)
        return contexts @ self.regression.theta.T + self.scale * noise
