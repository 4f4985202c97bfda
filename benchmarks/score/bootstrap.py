"""Means over tasks and comparisons of agents, with a bootstrap over seeds."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.score.intervals import (
    LEVEL,
    REPETITIONS,
    Floats,
    Interval,
    percentile_limits,
    resampled_counts,
    t_quantile,
)


def interquartile_mean(values: Floats) -> Floats:
    """Mean of the middle half of the last axis (a quarter, rounded down, is cut at each end)."""
    size = values.shape[-1]
    cut = size // 4
    if cut:
        values = np.partition(values, (cut, size - cut - 1), axis=-1)[..., cut : size - cut]
    return np.asarray(values.mean(axis=-1))


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


class SeedBootstrap:
    """Bootstrap samples of the runs of several tasks: a seed is drawn with its runs of all tasks.

    Tasks of one seed meet the same draws, so what an agent is worth on them goes up and down
    together: a seed is one observation, however many tasks there are. (Tasks of unlike numbers of
    seeds are drawn apart.) So are the seeds that trainings share: blocks are drawn whole.

    Seeds are few, and the percentiles of so few are too narrow: intervals are widened about the
    replicates' mean by what Student's t with M - 1 degrees of freedom is wider than the bootstrap
    of M normal values, M the fewest seeds or blocks of a task.

    A sample is a row of counts, how often each run was drawn, so that every aggregate is a product
    of matrices. All agents get the same samples: their replicates are paired.

    Parameters
    ----------
    seeds : Mapping[str, int]
        Task name -> number of seeds. Scores list the runs task by task in this order.
    counts : ndarray, shape (runs, R)
        How often each run is in each of R samples.
    units : Mapping[str, int]
        Task name -> number of blocks, which is that of its seeds where each is one of its own.

    Attributes
    ----------
    seeds : dict of int
        As given.
    """

    def __init__(
        self,
        seeds: Mapping[str, int],
        counts: NDArray[np.float32],
        units: Mapping[str, int],
    ) -> None:
        self.seeds, self._units = dict(seeds), dict(units)
        self._tasks = _slices(list(seeds.values()))
        self._counts = counts

    @classmethod
    def draw(
        cls,
        seeds: Mapping[str, int],
        repetitions: int = REPETITIONS,
        blocks: Mapping[str, Sequence[int]] | None = None,
    ) -> SeedBootstrap:
        """Draw the samples; a task's depend on its number of seeds or blocks only.

        Parameters
        ----------
        seeds : Mapping[str, int]
            Task name -> number of seeds.
        repetitions : int
            Number of samples.
        blocks : Mapping[str, sequence of int], optional
            Task name -> block of each of its runs; without, every run is one of its own.
        """
        counts = np.empty((sum(seeds.values()), repetitions), dtype=np.float32)
        units: dict[str, int] = {}
        drawn: dict[int, NDArray[np.int64]] = {}  # of so many seeds or blocks
        for part, (name, size) in zip(_slices(list(seeds.values())), seeds.items(), strict=True):
            own = range(size) if blocks is None else blocks[name]
            _, which = np.unique(own, return_inverse=True)
            units[name] = several = int(which.max()) + 1
            if several not in drawn:
                drawn[several] = resampled_counts("seeds", several, repetitions)
            own_counts = drawn[several][which]
            counts[part] = own_counts * (size / own_counts.sum(axis=0))
        return cls(seeds, counts, units)

    def select(self, names: Iterable[str]) -> tuple[SeedBootstrap, NDArray[np.int64]]:
        """Return the same samples of some of the tasks, and which runs belong to them."""
        chosen = {name: self.seeds[name] for name in self.seeds if name in set(names)}
        parts = dict(zip(self.seeds, self._tasks, strict=True))
        runs = np.concatenate([np.arange(parts[n].start, parts[n].stop) for n in chosen])
        units = {name: self._units[name] for name in chosen}
        return SeedBootstrap(chosen, self._counts[runs], units), runs

    def interval(self, value: float, replicates: NDArray[np.floating]) -> Interval:
        """Interval of one agent's or pair's replicates, shape (R,)."""
        low, high = self.limits(replicates)
        return Interval(value, float(low), float(high))

    def limits(self, replicates: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Both ends of the intervals along the last axis.

        Infinite if some task has a single seed or block: how its runs vary is unknown.
        """
        size = min(self._units.values())
        if size < 2:
            ends = np.full(replicates.shape[:-1], np.inf)
            return -ends, ends
        low, high = percentile_limits(replicates)
        middle = replicates.mean(axis=-1)
        wider = t_quantile(LEVEL, size - 1) / t_quantile(LEVEL, 10**9) * np.sqrt(size / (size - 1))
        return middle + (low - middle) * wider, middle + (high - middle) * wider

    def share_limits(self, replicates: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Both ends of the intervals of shares, which lie within 0 and 1 unless infinite."""
        ends = self.limits(replicates)
        low, high = (np.where(np.isfinite(end), np.clip(end, 0.0, 1.0), end) for end in ends)
        return low, high

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
