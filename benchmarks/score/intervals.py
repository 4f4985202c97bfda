"""Intervals, shared ranks and exponents, on arrays.

Intervals hold 95%: Student's t over seeds for a task's means and paired differences (with few
seeds a percentile bootstrap is too narrow), a bootstrap over seeds for whatever runs over several
tasks (`benchmarks.score.bootstrap`), a bootstrap over seeds for exponents; all are unbounded where
there is one seed. Aggregates follow Agarwal et al., *Deep Reinforcement Learning at the Edge of the
Statistical Precipice* (NeurIPS 2021).
"""

from __future__ import annotations

import itertools
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

REPETITIONS = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return plain values; what has no bound is None."""
        return {name: float(x) if np.isfinite(x) else None for name, x in self._asdict().items()}


# --- intervals ------------------------------------------------------------------------------------


def t_interval(
    values: Sequence[float] | Floats, level: float = LEVEL, blocks: Iterable[int] | None = None
) -> Interval:
    """Mean and Student's t interval; unbounded from a single value.

    Parameters
    ----------
    values : sequence of float, shape (n,)
    level : float
    blocks : iterable of int, shape (n,), optional
        Values of one block depend on each other, as runs of one training do: then the interval is
        that of the means of M blocks, with M - 1 degrees of freedom. It covers how blocks differ
        and how values differ within them. Unbounded from a single block.
    """
    sample: Floats = np.asarray(values, dtype=np.float64)
    mean, units = float(sample.mean()), sample.size
    own = [] if blocks is None else list(blocks)
    if own and (several := len(set(own))) < units:
        _, which = np.unique(own, return_inverse=True)
        sums = np.bincount(which, sample - mean).astype(np.float64)
        sample, units = sums * (several / units), several
    if units < 2:
        return Interval(mean, -np.inf, np.inf)
    half = t_quantile(level, units - 1) * float(sample.std(ddof=1)) / np.sqrt(units)
    return Interval(mean, mean - half, mean + half)


@lru_cache(maxsize=4096)
def t_quantile(level: float, freedom: int) -> float:
    """Half width of Student's t interval in standard errors."""
    return float(stdtrit(freedom, 0.5 + level / 2))


def separated_pair(
    scores: Sequence[Mapping[int, float]], blocks: Mapping[int, int] | None = None
) -> tuple[bool, int | None]:
    """Whether some pair of agents differs on a task, and about how many seeds would show it.

    Paired by seed, with Student's t interval of every pair at the level 1 - 0.05 / pairs
    (Bonferroni): of tasks on which all agents are equally good, at most one in twenty is said to
    separate them, however many agents there are.

    Parameters
    ----------
    scores : Sequence of Mapping[int, float]
        Per agent, score by seed.
    blocks : Mapping[int, int], optional
        Block of every seed (`t_interval`).

    Returns
    -------
    separates : bool
        True for a single agent.
    needed : int or None
        The smallest number of seeds with which one of these pairs would be separated if its mean
        difference and its standard deviation stayed what they are; None if it separates, if no
        pair has two seeds in common, if more than 10,000 would be needed, or with blocks of several
        seeds, of which more are needed as well.
    """
    pairs = list(itertools.combinations(scores, 2))
    if not pairs:
        return bool(scores), None
    level = 1 - (1 - LEVEL) / len(pairs)
    needed: int | None = None
    for first, second in pairs:
        common = sorted(first.keys() & second.keys())
        if len(common) < 2:
            continue
        gaps = np.array([first[seed] - second[seed] for seed in common])
        own = common if blocks is None else [blocks[seed] for seed in common]
        gap = t_interval(gaps, level, own)
        if gap.low > 0 or gap.high < 0:
            return True, None
        if len(set(own)) < len(common):
            continue
        effect = abs(gap.value) / float(gaps.std(ddof=1)) if gap.value else 0.0
        needed = _seeds_needed(effect, level, (needed or _MOST_SEEDS + 1) - 1) or needed
    return False, needed


_MOST_SEEDS = 10_000


def _seeds_needed(effect: float, level: float, most: int) -> int | None:
    """Seeds from which on a paired interval leaves out 0, given |mean| / sd; None above ``most``.

    Bisection: the half width over the standard deviation falls with the number of seeds.
    """

    def enough(seeds: int) -> bool:
        return effect * float(np.sqrt(seeds)) > t_quantile(level, seeds - 1)

    if most < 2 or not enough(most):
        return None
    return 2 + bisect_left(range(2, most), True, key=enough)


def resampled_seeds(name: str, seeds: int, repetitions: int = REPETITIONS) -> NDArray[np.int64]:
    """Bootstrap draws of seed indices, shape (repetitions, seeds), fixed by the name."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seeds])
    return rng.integers(seeds, size=(repetitions, seeds))


def percentile_interval(value: float, replicates: Floats) -> Interval:
    """Percentile interval of bootstrap replicates; infinite replicates count as such."""
    low, high = percentile_limits(replicates)
    return Interval(value, float(low), float(high))


def percentile_limits(replicates: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Both ends of the percentile intervals along the last axis: replicates, never between two."""
    size = replicates.shape[-1]
    ends = [max(0, int(np.ceil(size * q)) - 1) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)]
    low, high = np.moveaxis(np.partition(replicates, ends, axis=-1)[..., ends], -1, 0)
    return low, high


def competition_ranks(size: int, better: Callable[[int, int], bool]) -> list[int]:
    """Shared ranks of ``size`` agents in the order of their estimates, best first.

    The first agent leads rank 1. Each next one shares its leader's rank, unless the leader is
    better than it beyond the interval; then it leads the next rank, which is its place in the
    order. Ranks therefore never fall down the table, a rank is 1 + the number of agents listed
    in better ones, and every leader is separated from the leader before. Being separated is not
    transitive: two agents of one rank may be separated from each other, and an agent of the next
    rank may not be from the last of this one; the pairwise comparisons say which.

    Parameters
    ----------
    size : int
        Number of agents.
    better : callable
        ``better(i, j)``: whether the paired interval of agent i minus agent j lies above 0.
    """
    ranks: list[int] = []
    leader = 0
    for agent in range(size):
        if agent and better(leader, agent):
            leader = agent
        ranks.append(leader + 1)
    return ranks


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
    last = fitted_points(t)
    return power_exponent(t[last], cumulative[:, last], name)


def fitted_points(t: Floats) -> NDArray[np.int64]:
    """Return the at most 20 points of the last decade that exponents are fitted to.

    20 fit as well as 80, faster; and of a curve that was thinned to them all are taken again.
    """
    last = np.flatnonzero(t >= t[-1] / 10)
    return last[:: -max(1, -(-last.size // 20))][::-1]


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
    last = fitted_points(t)
    if last.size < 6:
        return None
    edges = last[np.unique(np.searchsorted(t[last], np.geomspace(t[last[0]], t[-1], 6)))]
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
        None below three points, or if the seed mean is not positive at all of them. Unbounded from
        a single seed.
    """
    if t.size < 3:
        return None
    x = np.log(t) - np.log(t).mean()
    slope = x / (x @ x)

    def fit(means: Floats) -> Floats:
        """Exponents of the columns of ``means``, shape (L, R), which is overwritten."""
        lost = ~(means.min(axis=0) > 0)
        means[:, lost] = 1.0
        exponents = np.asarray(slope @ np.log(means, out=means))
        exponents[lost] = -np.inf
        return exponents

    value = float(fit(curves.mean(axis=0)[:, None])[0])
    if value == -np.inf:
        return None
    if len(curves) < 2:
        return Interval(value, -np.inf, np.inf)
    return percentile_interval(value, fit(curves.T @ _resampled_weights(name, len(curves))))


@lru_cache(maxsize=64)  # every agent of a task asks for the same draws
def _resampled_weights(name: str, seeds: int) -> Floats:
    """Weights of the seeds in every bootstrap sample, shape (seeds, R); columns sum to 1."""
    return resampled_counts(name, seeds, REPETITIONS) / seeds


def block_means(curves: Floats, blocks: Sequence[int]) -> Floats:
    """Means over the seeds of a block of curves (seeds, L), shape (blocks, L)."""
    _, which, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(sizes) == len(curves):
        return curves
    return np.asarray(np.eye(len(sizes))[:, which] @ curves / sizes[:, None])


def resampled_counts(name: str, seeds: int, repetitions: int) -> NDArray[np.int64]:
    """How often each seed is in every bootstrap sample, shape (seeds, repetitions)."""
    draws = resampled_seeds(name, seeds, repetitions)
    return np.stack([np.count_nonzero(draws == seed, axis=1) for seed in range(seeds)])
