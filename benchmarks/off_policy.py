"""Off-policy evaluation: what a policy would have earned on requests another policy answered.

Horvitz, Thompson (1952); Swaminathan, Joachims (NeurIPS 2015); Dudik et al. (ICML 2011).
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from benchmarks.intervals import LEVEL, Floats, Interval, t_interval


def importance_weights(target: Floats, propensity: Floats) -> Floats:
    """Weights w_i = pi(a_i | x_i) / p_i of the logged actions.

    Parameters
    ----------
    target : ndarray, shape (n,)
        Probability with which the evaluated policy takes the logged action, pi(a_i | x_i).
    propensity : ndarray, shape (n,)
        Probability with which the logging policy took it, p_i > 0.

    Raises
    ------
    ValueError
        If a probability is out of range.
    """
    if not ((target >= 0) & (target <= 1)).all():
        raise ValueError("target: probabilities must lie in [0, 1]")
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity: probabilities must lie in (0, 1]")
    return np.asarray(target / propensity)


def ips(reward: Floats, weight: Floats) -> Interval:
    """Inverse propensity scoring: mean of w r, unbiased if the propensities are right.

    The interval is Student's t over the requests, 95%.
    """
    return t_interval(weight * reward)


def self_normalised(reward: Floats, weight: Floats) -> Interval:
    """Self-normalised inverse propensity scoring: sum w r / sum w.

    Biased by O(1/n), bounded by the rewards, and blind to a constant added to them. The interval is
    the delta method's. NaN if no logged action is one of the policy's.
    """
    total = float(weight.sum())
    if total <= 0:
        return Interval(np.nan, -np.inf, np.inf)
    value = float(weight @ reward) / total
    if len(reward) < 2:
        return Interval(value, -np.inf, np.inf)
    spread = float(np.sqrt(np.sum((weight * (reward - value)) ** 2))) / total
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(reward) - 1)) * spread
    return Interval(value, value - half, value + half)


def doubly_robust(reward: Floats, weight: Floats, logged: Floats, expected: Floats) -> Interval:
    """Doubly robust estimate: mean of q(x, pi) + w (r - q(x, a)).

    Right if either the propensities or the outcome model is; the model must not have been fitted on
    these requests. The interval is Student's t over the requests, 95%.

    Parameters
    ----------
    reward, weight : ndarray, shape (n,)
        Rewards and weights of the logged actions.
    logged : ndarray, shape (n,)
        The model's prediction for the logged action, q(x_i, a_i).
    expected : ndarray, shape (n,)
        Its mean over the policy's actions, sum_a pi(a | x_i) q(x_i, a).
    """
    return t_interval(expected + weight * (reward - logged))


def effective_sample_size(weight: Floats) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2; 0 if all weights are 0."""
    squares = float(weight @ weight)
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0
