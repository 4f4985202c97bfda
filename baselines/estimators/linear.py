"""Ridge regression per LLM: the estimator of LinUCB and LinTS.

Kept current by rank-one updates through the confidence factors; flat in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from baselines.estimators.confidence import Array, ConfidenceFactors, Ints, project, shrink
from llmqueue_gym.compiled import summing


class RidgeRegression:
    """Least squares of an outcome in {0, 1} on the context, one theta_j per LLM.

    theta_j = V_j^{-1} sum_s y_s x_s with V_j = ridge I + sum_s x_s x_s^T, over the users shown LLM
    j; y is 1 for the LLM kept and 0 for the others. An update is O(K d^2).

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    ridge : float
        Weight of the squared norm, lambda.
    dtype : {"float64", "float32"}
        Storage of the factors; theta is kept in double precision.
    """

    def __init__(self, num_llms: int, dim: int, ridge: float = 1.0, dtype: str = "float64") -> None:
        self.theta = np.zeros((num_llms, dim))
        self.confidence = ConfidenceFactors(num_llms, dim, ridge, dtype)

    def update(self, context: Array, shown: Sequence[int], kept: int) -> None:
        """Learn from one user: the context (d,), the LLMs shown and the one kept (-1 none)."""
        llms = np.array(shown, np.int64)
        lost = _regress(self.theta, self.confidence.factors, context, llms, kept)
        self.confidence.follow(shown, lost)


@summing
def _regress(theta: Array, factors: Array, context: Array, shown: Ints, kept: int) -> Array:
    """Learn y of x for the LLMs shown; return what each V_j^{-1} loses, shape (K, d).

    It loses p p^T, and V_new^{-1} x = p / sqrt(1 + |v|^2).
    """
    lost = np.empty((len(shown), len(context)))
    for place in range(len(shown)):
        llm = shown[place]
        v = project(factors[llm], context)
        error, square = 1.0 if llm == kept else 0.0, 1.0
        for k in range(len(v)):
            error -= context[k] * theta[llm, k]
            square += v[k] * v[k]
        lost[place] = shrink(factors[llm], v)
        for k in range(len(v)):
            theta[llm, k] += error / math.sqrt(square) * lost[place, k]
    return lost
