"""Ridge regression per LLM: the estimator of LinUCB and LinTS.

Kept current by rank-one updates through the confidence factors; flat in time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.estimators.confidence import ConfidenceFactors


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
        v = self.confidence.project(llm, context)
        error = outcome - float(context @ self.theta[llm])
        # V_new^{-1} x = A v / (1 + |v|^2), with the factor A from before the update.
        gain = self.confidence.factors[llm] @ v / (1.0 + float(v @ v))
        self.theta[llm] += error * gain
        self.confidence.update_projected(llm, v)
