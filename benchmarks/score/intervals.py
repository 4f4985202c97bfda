"""Intervals, means over tasks, comparisons of agents and exponents, on arrays.

Intervals hold 95%: Student's t over seeds for a task's means and paired differences (with few
seeds a percentile bootstrap is too narrow), a stratified bootstrap for whatever runs over several
tasks, a bootstrap over seeds for exponents; all are unbounded where there is one seed. Aggregates
follow Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*
(NeurIPS 2021).
"""

from __future__ import annotations

import itertools
import zlib
from bisect import bisect_left
from collections import Counter
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


def t_interval(values: Sequence[float] | Floats, level: float = LEVEL) -> Interval:
    """Mean and Student's t interval; unbounded from a single value."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return Interval(mean, -np.inf, np.inf)
    half = _t_quantile(level, sample.size - 1) * float(sample.std(ddof=1)) / np.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half)


@lru_cache(maxsize=4096)
def _t_quantile(level: float, freedom: int) -> float:
    """Half width of Student's t interval in standard errors."""
    return float(stdtrit(freedom, 0.5 + level / 2))


def separated_pair(scores: Sequence[Mapping[int, float]]) -> tuple[bool, int | None]:
    """Whether some pair of agents differs on a task, and about how many seeds would show it.

    Paired by seed, with Student's t interval of every pair at the level 1 - 0.05 / pairs
    (Bonferroni): of tasks on which all agents are equally good, at most one in twenty is said to
    separate them, however many agents there are.

    Parameters
    ----------
    scores : Sequence of Mapping[int, float]
        Per agent, score by seed.

    Returns
    -------
    separates : bool
        True for a single agent.
    needed : int or None
        The smallest number of seeds with which one of these pairs would be separated if its mean
        difference and its standard deviation stayed what they are; None if it separates, if no
        pair has two seeds in common, or if more than 10,000 would be needed.
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
        gap = t_interval(gaps, level)
        if gap.low > 0 or gap.high < 0:
            return True, None
        effect = abs(gap.value) / float(gaps.std(ddof=1)) if gap.value else 0.0
        needed = _seeds_needed(effect, level, (needed or _MOST_SEEDS + 1) - 1) or needed
    return False, needed


_MOST_SEEDS = 10_000


def _seeds_needed(effect: float, level: float, most: int) -> int | None:
    """Seeds from which on a paired interval leaves out 0, given |mean| / sd; None above ``most``.

    Bisection: the half width over the standard deviation falls with the number of seeds.
    """

    def enough(seeds: int) -> bool:
        return effect * float(np.sqrt(seeds)) > _t_quantile(level, seeds - 1)

    if most < 2 or not enough(most):
        return None
    return 2 + bisect_left(range(2, most), True, key=enough)


def interquartile_mean(values: Floats) -> Floats:
    """Mean of the middle half of the last axis (a quarter, rounded down, is cut at each end)."""
    size = values.shape[-1]
    cut = size // 4
    if cut:
        values = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    return np.asarray(values.mean(axis=-1))


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


# --- several agents on several tasks --------------------------------------------------------------


def family_weights(families: Sequence[str]) -> Floats:
    """Weights of tasks under which families weigh the same, and the tasks of a family too.

    Parameters
    ----------
    families : Sequence[str]
        Family of every task.

    Returns
    -------
    ndarray, shape (tasks,)
        Positive, sum 1.
    """
    sizes = Counter(families)
    return np.array([1.0 / (len(sizes) * sizes[family]) for family in families])


def run_weights(weights: Floats, seeds: Iterable[int]) -> Floats:
    """Weights of the runs of tasks with the given weights: the seeds of a task weigh the same."""
    sizes = np.array([*seeds])
    return np.repeat(weights / sizes, sizes)


_CHUNK = 500  # repetitions handled at once: the arrays of a step then stay in the cache


class StratifiedBootstrap:
    """Bootstrap samples of the runs of several tasks: tasks are strata, seeds are resampled.

    A sample is a row of counts, how often each run was drawn, so that every aggregate is a product
    of matrices. All agents get the same samples: their replicates are paired.

    Parameters
    ----------
    seeds : Mapping[str, int]
        Task name -> number of seeds. Scores list the runs task by task in this order.
    counts : ndarray, shape (runs, R)
        How often each run is in each of R samples.

    Attributes
    ----------
    seeds : dict of int
        As given.
    """

    def __init__(self, seeds: Mapping[str, int], counts: NDArray[np.float32]) -> None:
        self.seeds = dict(seeds)
        self._tasks = _slices(list(seeds.values()))
        self._counts = counts

    @classmethod
    def draw(cls, seeds: Mapping[str, int], repetitions: int = REPETITIONS) -> StratifiedBootstrap:
        """Draw the samples; a task's depend on its name and its number of seeds only."""
        counts = np.empty((sum(seeds.values()), repetitions), dtype=np.float32)
        for part, (name, size) in zip(_slices(list(seeds.values())), seeds.items(), strict=True):
            counts[part] = _resampled_counts(name, size, repetitions)
        return cls(seeds, counts)

    def select(self, names: Iterable[str]) -> tuple[StratifiedBootstrap, NDArray[np.int64]]:
        """Return the same samples of some of the tasks, and which runs belong to them."""
        chosen = {name: self.seeds[name] for name in self.seeds if name in set(names)}
        parts = dict(zip(self.seeds, self._tasks, strict=True))
        runs = np.concatenate([np.arange(parts[n].start, parts[n].stop) for n in chosen])
        return StratifiedBootstrap(chosen, self._counts[runs]), runs

    def interval(self, value: float, replicates: NDArray[np.floating]) -> Interval:
        """Percentile interval of one agent's or pair's replicates, shape (R,)."""
        low, high = self.limits(replicates)
        return Interval(value, float(low), float(high))

    def limits(self, replicates: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Both ends of the percentile intervals along the last axis.

        Infinite if some task has a single seed: how its runs vary is unknown.
        """
        if min(self.seeds.values()) < 2:
            ends = np.full(replicates.shape[:-1], np.inf)
            return -ends, ends
        return percentile_limits(replicates)

    def iqm(self, scores: Floats) -> Floats:
        """Replicates of the interquartile mean, shape (A, R).

        With runs in the order of their scores v and N_j draws among the first j, the sum of the
        middle half is v_last N_last - sum_j N_j (v_{j+1} - v_j), N clipped to the middle half.

        Parameters
        ----------
        scores : ndarray, shape (A, runs)
        """
        size, repetitions = self._counts.shape
        cut = size // 4
        order = np.argsort(scores, axis=1)
        ordered = np.take_along_axis(scores, order, axis=1)
        ends = ordered[:, -1] * (size - cut) - ordered[:, 0] * cut
        steps = np.diff(ordered, axis=1)
        sums = np.empty((len(scores), repetitions))
        for start in range(0, repetitions, _CHUNK):
            counts = np.ascontiguousarray(self._counts[:, start : start + _CHUNK])
            for agent in range(len(scores)):
                drawn = np.cumsum(counts[order[agent, :-1]], axis=0)
                np.clip(drawn, cut, size - cut, out=drawn)
                sums[agent, start : start + _CHUNK] = ends[agent] - steps[agent] @ drawn
        return np.asarray(sums / (size - 2 * cut))

    def mean(self, scores: Floats, weights: Floats) -> Floats:
        """Replicates of the weighted mean over tasks of the mean over their seeds, shape (A, R).

        Parameters
        ----------
        scores : ndarray, shape (A, runs)
        weights : ndarray, shape (tasks,)
            Sum 1.
        """
        return np.asarray((scores * self._run_weights(weights)) @ self._counts)

    def _run_weights(self, weights: Floats) -> Floats:
        return run_weights(weights, self.seeds.values())

    def improvement(self, first: Floats, second: Floats, weights: Floats) -> NDArray[np.float32]:
        """Replicates of the probability that a run of ``first`` scores above one of ``second``.

        The weighted mean over tasks of the share of pairs of seeds in which it does, a tie counting
        half (Mann and Whitney's U over its maximum).

        Parameters
        ----------
        first, second : ndarray, shape (P, runs)
            Scores of P pairs of agents.
        weights : ndarray, shape (tasks,)
            Sum 1.

        Returns
        -------
        ndarray, shape (P, R)
        """
        total = np.zeros((len(first), self._counts.shape[1]), dtype=np.float32)
        for part, weight in zip(self._tasks, weights.tolist(), strict=True):
            wins = _wins(first[:, part], second[:, part]) * weight / (part.stop - part.start) ** 2
            counts = self._counts[part]
            i, j = np.triu_indices(len(counts))
            # Both agents draw the same seeds, so that (i, j) and (j, i) are drawn equally often.
            both = np.where(i == j, wins[:, i, j], wins[:, i, j] + wins[:, j, i])
            total += both.astype(np.float32) @ (counts[i] * counts[j])
        return total

    def profile(self, scores: Floats, thresholds: Floats, weights: Floats) -> NDArray[np.float32]:
        """Replicates of the share of runs that score above each threshold, shape (A, L, R).

        Parameters
        ----------
        scores : ndarray, shape (A, runs)
        thresholds : ndarray, shape (L,)
        weights : ndarray, shape (tasks,)
            Sum 1.
        """
        above = (scores[:, None, :] > thresholds[:, None]) * self._run_weights(weights)
        shares = above.reshape(-1, scores.shape[1]).astype(np.float32) @ self._counts
        return np.asarray(shares.reshape(len(scores), len(thresholds), -1))


def improvement(first: Floats, second: Floats, seeds: Sequence[int], weights: Floats) -> float:
    """Probability that a run of the first agent scores above one of the second; see above.

    Parameters
    ----------
    first, second : ndarray, shape (runs,)
        Scores task by task.
    seeds : Sequence[int]
        Seeds of each task.
    weights : ndarray, shape (tasks,)
        Sum 1.
    """
    chances = [_wins(first[part], second[part]).mean() for part in _slices(seeds)]
    return float(weights @ chances)


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Consecutive slices of the given sizes."""
    edges = np.cumsum([0, *sizes]).tolist()
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _wins(first: Floats, second: Floats) -> Floats:
    """1 where a seed of the first scores above one of the second, 1/2 in a tie; (..., n, n)."""
    mine, theirs = first[..., :, None], second[..., None, :]
    return np.asarray((mine > theirs) + 0.5 * (mine == theirs))


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
    return _resampled_counts(name, seeds, REPETITIONS) / seeds


def _resampled_counts(name: str, seeds: int, repetitions: int) -> NDArray[np.int64]:
    """How often each seed is in every bootstrap sample, shape (seeds, repetitions)."""
    draws = resampled_seeds(name, seeds, repetitions)
    return np.stack([np.count_nonzero(draws == seed, axis=1) for seed in range(seeds)])
