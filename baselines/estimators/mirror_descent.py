"""Online mirror descent for the MNL model: the constant-time estimator of OFU-MNL+.

Lee and Oh, "Nearly Minimax Optimal Regret for Multinomial Logistic Bandit", NeurIPS 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.estimators.confidence import Array, ConfidenceFactors, project, shrink
from llmqueue_gym.compiled import summing

Ints = NDArray[np.int64]


class OnlineMirrorDescentMNL:
    r"""One second-order mirror descent step per observed choice, one theta_j per LLM.

    With the loss l_s = -log P(y_s | x_s, S_s, theta) and eta = log(K + 1) / 2 + 2 the step is

        theta <- argmin <grad l_s(theta_s), theta> + |theta - theta_s|^2_{H~} / (2 eta),
        H~ = H + eta G_s(theta_s),    H <- H + G_s(theta_{s+1}).

    (R) The paper shares one theta among the items; here every LLM has its own, and H is kept
    block-diagonal with the blocks p_j (1 - p_j) x x^T of the Hessian, so that the step has the
    closed form theta_j -= eta (p_j - y_j) H_j^{-1} x / (1 + eta w ||x||^2_{H_j^{-1}}),
    w = p_j (1 - p_j). (R) The projection onto a ball of known radius is left out: no bound on
    |theta| is public here; eta's "+ 2" is the paper's B + 1 for a bound B = 1 (R). An update is
    O(K d^2), flat in time.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    assortment_size : int
        LLMs shown at a time, K; sets the step size eta.
    ridge : float
        Weight of the identity in H, lambda. (R) The paper's 84 sqrt(2) d eta serves the proof;
        the default 1 is the value the other estimators use.
    """

    def __init__(
        self, num_llms: int, dim: int, assortment_size: int = 1, ridge: float = 1.0
    ) -> None:
        self.theta = np.zeros((num_llms, dim))
        self.step_size = 0.5 * math.log(assortment_size + 1) + 2.0
        self.confidence = ConfidenceFactors(num_llms, dim, ridge)  # H_j^{-1}

    def update(self, context: NDArray[np.floating[Any]], shown: Sequence[int], kept: int) -> None:
        """Learn from one user: the context (d,), the LLMs shown and the one kept (-1 none)."""
        llms = np.array(shown, np.int64)
        factors = self.confidence.factors
        lost = _descend(self.theta, factors, context, llms, kept, self.step_size)
        self.confidence.follow(shown, lost)


@summing
def choice_probabilities(utilities: Array) -> Array:
    """MNL choice probabilities of the shown LLMs, the outside option having utility 0."""
    shift = max(0.0, utilities.max())
    odds = np.exp(utilities - shift)
    choice: Array = odds / (math.exp(-shift) + odds.sum())
    return choice


@summing
def _choice(theta: Array, context: Array, shown: Ints) -> Array:
    utilities = np.zeros(len(shown))
    for place in range(len(shown)):
        for k in range(len(context)):
            utilities[place] += context[k] * theta[shown[place], k]
    return choice_probabilities(utilities)


@summing
def _descend(
    theta: Array, factors: Array, context: Array, shown: Ints, kept: int, eta: float
) -> Array:
    """Take the step, add the new curvature to H, and return what each H_j^{-1} loses, (K, d)."""
    choice = _choice(theta, context, shown)
    projections = np.empty((len(shown), len(context)))
    for place in range(len(shown)):
        llm, probability = shown[place], choice[place]
        v = project(factors[llm], context)
        projections[place] = v
        square = 0.0
        for k in range(len(v)):
            square += v[k] * v[k]
        error = probability - (1.0 if llm == kept else 0.0)
        step = eta * error / (1.0 + eta * probability * (1.0 - probability) * square)
        for k in range(len(v)):
            for a in range(k + 1):
                theta[llm, a] -= step * v[k] * factors[llm, k, a]
    choice = _choice(theta, context, shown)
    for place in range(len(shown)):
        v = projections[place] * math.sqrt(choice[place] * (1.0 - choice[place]))
        projections[place] = shrink(factors[shown[place]], v)
    return projections
