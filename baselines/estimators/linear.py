"""Ridge regression per LLM: the estimator of LinUCB and LinTS.

Kept current by rank-one updates through the confidence factors; flat in time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.estimators.confidence import Array, ConfidenceFactors, project, shrink
from llmqueue_gym.compiled import summing


class RidgeRegression:
    """Least squares of an outcome in {0, 1} on the context, one theta_j per LLM.

    theta_j = V_j^{-1} sum_s y_s x_s with V_j = ridge I + sum_s x_s x_s^T. An update is O(d^2).

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    ridge : float
        Weight of the squared norm, lambda.
    """

    def __init__(self, num_llms: int, dim: int, ridge: float = 1.0) -> None:
        self.theta = np.zeros((num_llms, dim))
        self.confidence = ConfidenceFactors(num_llms, dim, ridge)

    def update(self, context: NDArray[np.floating[Any]], llm: int, outcome: float) -> None:
        """Learn from one outcome y of LLM ``llm`` on a context x, shape (d,)."""
        lost = _regress(self.theta[llm], self.confidence.factors[llm], context, outcome)
        self.confidence.follow(llm, lost)


@summing
def _regress(theta: Array, factor: Array, context: Array, outcome: float) -> Array:
    """Learn y of x and return p: V_new^{-1} x = p / sqrt(1 + |v|^2), where V^{-1} loses p p^T."""
    v = project(factor, context)
    error, square = outcome, 1.0
    for k in range(len(v)):
        error -= context[k] * theta[k]
        square += v[k] * v[k]
    lost = shrink(factor, v)
    for k in range(len(v)):
        theta[k] += error / math.sqrt(square) * lost[k]
    return lost
