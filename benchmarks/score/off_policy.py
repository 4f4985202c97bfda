"""Off-policy evaluation: what a policy would have earned on requests another policy answered.

Horvitz, Thompson (1952); Swaminathan, Joachims (NeurIPS 2015); Dudik et al. (ICML 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize

from benchmarks.score.intervals import LEVEL, Floats, Interval, t_interval
from llmqueue_gym.errors import UsageError

SMALLEST_PROPENSITY = 1e-3
"""Estimated propensities are kept above; logged ones are taken as they are."""

FOLDS = 5
"""Parts of the requests; the propensities of each are fitted on the others."""

MISS = 0.1
"""How far from 1 the weights may average before this is worth a word."""


def cross_fitted_propensities(
    contexts: NDArray[np.float32], action: NDArray[np.int64], folds: int = FOLDS
) -> Floats:
    """Probability of each logged action given its context, by a multinomial logistic regression.

    No request helps to fit its own (Chernozhukov et al., *Double/debiased machine learning*, 2018).

    Parameters
    ----------
    contexts : ndarray, shape (n, d)
    action : ndarray of int, shape (n,)
        Logged actions, each at least ``folds`` times.
    """
    actions, label = np.unique(action, return_inverse=True)
    x = contexts.astype(np.float64)
    # The requests of each action are dealt out in a random order, so every fold has its share.
    order = np.random.default_rng(0).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    fold = np.empty(len(label), dtype=np.int64)
    fold[order] = np.arange(len(label)) % folds
    found = np.empty(len(label))
    for part in range(folds):
        own = fold == part
        theta = _fit_choices(x[~own], label[~own], len(actions))
        chances, _ = _chances(x[own] @ theta)
        found[own] = chances[np.arange(int(own.sum())), label[own]]
    return found.clip(SMALLEST_PROPENSITY, 1.0)


def _fit_choices(x: Floats, label: NDArray[np.int64], count: int) -> Floats:
    """Multinomial logistic regression, (d, count), with the penalty |theta|^2 / 2."""
    shape = (x.shape[1], count)
    chosen = x.T @ np.eye(count)[label]

    def loss(flat: Floats) -> tuple[float, Floats]:
        theta = flat.reshape(shape)
        chances, total = _chances(x @ theta)
        slope = x.T @ chances - chosen + theta
        return total - float(chosen.ravel() @ flat) + 0.5 * float(flat @ flat), slope.ravel()

    found = minimize(loss, np.zeros(shape[0] * count), jac=True, method="L-BFGS-B")
    return np.asarray(found.x.reshape(shape))


def _chances(utility: Floats) -> tuple[Floats, float]:
    """Softmax of every row, and the sum of the logarithms of the denominators."""
    top = utility.max(axis=1, keepdims=True)  # SciPy's softmax and logsumexp take ten times as long
    weight = np.exp(utility - top)
    total = weight.sum(axis=1, keepdims=True)
    return weight / total, float((top + np.log(total)).sum())


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
        raise UsageError("target: probabilities must lie in [0, 1]")
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise UsageError("propensity: probabilities must lie in (0, 1]")
    return np.asarray(target / propensity)


def ips(reward: Floats, weight: Floats, estimated: bool = False) -> Interval:
    """Inverse propensity scoring: mean of w r, unbiased if the propensities are right.

    The interval is Student's t over the requests, 95%. Where propensities are estimated it is as
    wide as the self-normalised estimate's, and wider by what the two differ: as far as the weights
    are from averaging 1, the propensities are wrong.

    Parameters
    ----------
    reward, weight : ndarray, shape (n,)
        Rewards and weights of the logged actions.
    estimated : bool
        Whether the propensities are.
    """
    found = t_interval(weight * reward)
    if not estimated:
        return found
    sure = self_normalised(reward, weight)
    half = sure.high - sure.value + abs(sure.value - found.value)
    return Interval(found.value, found.value - half, found.value + half)


def self_normalised(reward: Floats, weight: Floats) -> Interval:
    """Self-normalised inverse propensity scoring: sum w r / sum w.

    Biased by O(1/n), bounded by the rewards, and blind to a constant added to them, and to a factor
    by which propensities are wrong. The interval is the delta method's with the residuals divided
    by one minus their share of the weights (as HC3 does), and as many degrees of freedom as there
    are effective requests, less one. NaN if no logged action is one of the policy's.
    """
    total = float(weight.sum())
    if total <= 0:
        return Interval(np.nan, -np.inf, np.inf)
    value = float(weight @ reward) / total
    if np.count_nonzero(weight) < 2:
        return Interval(value, -np.inf, np.inf)
    freedom = max(1.0, effective_sample_size(weight) - 1.0)
    share = weight / total
    residual = share * (reward - value) / np.maximum(1.0 - share, 1e-9)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * float(np.sqrt(residual @ residual))
    return Interval(value, value - half, value + half)


def doubly_robust(
    reward: Floats, weight: Floats, logged: Floats, expected: Floats, estimated: bool = False
) -> Interval:
    """Doubly robust estimate: mean of q(x, pi) + w (r - q(x, a)).

    Right if either the propensities or the outcome model is; the model must not have been fitted on
    these requests. The interval is Student's t over the requests, 95%. Where propensities are
    estimated, the part of the correction by which their weights miss a mean of 1 is added in
    squares.

    Parameters
    ----------
    reward, weight : ndarray, shape (n,)
        Rewards and weights of the logged actions.
    logged : ndarray, shape (n,)
        The model's prediction for the logged action, q(x_i, a_i).
    expected : ndarray, shape (n,)
        Its mean over the policy's actions, sum_a pi(a | x_i) q(x_i, a).
    estimated : bool
        Whether the propensities are.
    """
    found = t_interval(expected + weight * (reward - logged))
    total = float(weight.sum())
    if not estimated or total <= 0:
        return found
    error = (float(weight.mean()) - 1.0) * float(weight @ (reward - logged)) / total
    half = float(np.hypot(found.high - found.value, error))
    return Interval(found.value, found.value - half, found.value + half)


def within(found: Interval, low: float, high: float) -> Interval:
    """Cut an estimate and its interval to the range of the rewards; NaN if it lies outside."""
    if found.high < low or found.low > high:
        return Interval(np.nan, -np.inf, np.inf)
    value, bottom, top = (float(np.clip(number, low, high)) for number in found)
    return Interval(value, bottom, top)


def weight_miss(weight: Floats) -> float:
    """How far from 1 the weights average; 0 where chance alone may explain it.

    Right weights average 1 where the logged choices cover the policy's; anything up to three
    standard errors, or `MISS`, is no miss.
    """
    miss = abs(float(weight.mean()) - 1.0)
    chance = 3.0 * float(weight.std(ddof=1)) / np.sqrt(len(weight)) if len(weight) > 1 else np.inf
    return miss if miss > max(MISS, chance) else 0.0


def effective_sample_size(weight: Floats) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2; 0 if all weights are 0."""
    squares = float(weight @ weight)
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0
