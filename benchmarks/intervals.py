"""Intervals, interquartile means and exponents, on arrays.

Intervals hold 95%: Student's t over seeds for a task's means and paired differences (with few
seeds a percentile bootstrap is too narrow), a stratified bootstrap for the headline, a bootstrap
over seeds for exponents.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

REPETITIONS = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    high: float


# --- intervals ------------------------------------------------------------------------------------


def t_interval(values: Sequence[float] | Floats, level: float = LEVEL) -> Interval:
    """Mean and Student's t interval; unbounded from a single value."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return Interval(mean, -np.inf, np.inf)
    half = _t_quantile(level, sample.size - 1) * float(sample.std(ddof=1)) / np.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half)


@lru_cache(maxsize=64)
def _t_quantile(level: float, freedom: int) -> float:
    """Half width of Student's t interval in standard errors."""
    return float(stats.t.ppf(0.5 + level / 2, freedom))


def interquartile_mean(values: Floats) -> Floats:
    """Mean of the middle half of the last axis (a quarter, rounded down, is cut at each end)."""
    size = values.shape[-1]
    cut = size // 4
    if cut:
        values = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    return np.asarray(values.mean(axis=-1))


def bootstrap_iqm(strata: Mapping[str, Floats], repetitions: int = REPETITIONS) -> Floats:
    """Replicates of the interquartile mean; tasks are strata, seeds are resampled.

    The draws depend on a task's name and its number of seeds only, so the replicates of two agents
    on the same cells are paired.

    Parameters
    ----------
    strata : Mapping[str, ndarray]
        Task name -> one score a seed.

    Returns
    -------
    ndarray, shape (repetitions,)
    """
    parts = [
        scores[resampled_seeds(task, scores.size, repetitions)] for task, scores in strata.items()
    ]
    return interquartile_mean(np.concatenate(parts, axis=1))


def resampled_seeds(name: str, seeds: int, repetitions: int = REPETITIONS) -> NDArray[np.int64]:
    """Bootstrap draws of seed indices, shape (repetitions, seeds), fixed by the name."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seeds])
    return rng.integers(seeds, size=(repetitions, seeds))


def percentile_interval(value: float, replicates: Floats) -> Interval:
    """Percentile interval of bootstrap replicates; infinite replicates count as such."""
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(replicates, tails, method="inverted_cdf")
    return Interval(value, float(low), float(high))


# --- exponents ------------------------------------------------------------------------------------


def growth_exponent(t: Floats, cumulative: Floats, name: str = "") -> Interval | None:
    """Exponent b of the seed mean of a cumulative regret ~ t^b over the last decade of slots.

    Parameters
    ----------
    t : ndarray, shape (L,)
        Log-spaced slots.
    cumulative : ndarray, shape (seeds, L)
        Cumulative regret.

    Returns
    -------
    Interval or None
        None if the regret is zero somewhere: there is no exponent.
    """
    last = np.flatnonzero(t >= t[-1] / 10)
    last = last[:: -max(1, last.size // 20)][::-1]  # 20 points fit as well as 80, faster
    return power_exponent(t[last], cumulative[:, last], name)


def decay_exponent(t: Floats, gap: Floats, name: str = "") -> Interval | None:
    """Exponent b of the queue length regret ~ t^b over the last decade of slots.

    ``gap`` is the cumulative difference to the oracle's queue, shape (seeds, L). Its increments
    over five log-spaced windows give mean regrets a slot; those are fitted. A bootstrap sample
    whose regret vanishes in a window counts as an infinitely fast decay.

    Returns
    -------
    Interval or None
        None if the seed mean itself is not positive in every window (lost in the noise).
    """
    last = np.flatnonzero(t >= t[-1] / 10)
    if last.size < 6:
        return None
    edges = np.unique(np.searchsorted(t, np.geomspace(t[last[0]], t[-1], 6)))
    means = np.diff(gap[:, edges], axis=1) / np.diff(t[edges])
    return power_exponent(np.sqrt(t[edges[1:]] * t[edges[:-1]]), means, name)


def power_exponent(t: Floats, curves: Floats, name: str = "") -> Interval | None:
    """Least-squares slope of log(seed mean) on log t, with a bootstrap over seeds.

    Parameters
    ----------
    t : ndarray, shape (L,)
    curves : ndarray, shape (seeds, L)

    Returns
    -------
    Interval or None
        None below three points, or if the seed mean is not positive at all of them.
    """
    if t.size < 3:
        return None
    x = np.log(t) - np.log(t).mean()
    weights = x / (x @ x)

    def fit(means: Floats) -> Floats:
        positive = np.all(means > 0, axis=-1)
        logs = np.log(np.where(positive[..., None], means, 1.0))
        return np.where(positive, logs @ weights, -np.inf)

    value = float(fit(curves.mean(axis=0)))
    if value == -np.inf:
        return None
    seeds = curves.shape[0]
    return percentile_interval(value, fit(_resampled_weights(name, seeds) @ curves))


@lru_cache(maxsize=64)  # every agent of a task asks for the same draws
def _resampled_weights(name: str, seeds: int) -> Floats:
    """Weights of the seeds in every bootstrap sample, shape (repetitions, seeds), rows sum to 1."""
    draws = resampled_seeds(name, seeds)
    counts = [np.count_nonzero(draws == seed, axis=1) for seed in range(seeds)]
    return np.stack(counts, axis=1) / seeds
