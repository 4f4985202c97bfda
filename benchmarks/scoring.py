"""From stored cells to a board: scores, intervals, exponents, ranks and the checks on them.

Every comparison is paired by seed: an agent, the oracle and random share instance and draws.
Intervals hold 95%: Student's t over seeds for a task's means and paired differences (with few
seeds a percentile bootstrap is too narrow), a stratified bootstrap for the headline, a bootstrap
over seeds for exponents.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from benchmarks.store import CorruptResultError, Store
from benchmarks.suite import REFERENCES, spec_key

Floats = NDArray[np.float64]
Record = Mapping[str, Any]

REPETITIONS = 10_000
LEVEL = 0.95
LUCK_LIMIT = 6.0
"""Standard deviations of ``luck`` that no policy ignorant of the draws reaches (p < 1e-8)."""


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskRow:
    """An agent on a task; None where a figure cannot be had.

    Attributes
    ----------
    agent : str
        Label.
    rank : int or None
        1 + the number of learning agents that are better with a paired interval above 0.
    seeds : int
        Seeds that were run to the end, with oracle and random beside them.
    score, mean_queue, tail_queue, routing_regret : Interval
        Means over seeds.
    queue_regret : Interval
        Paired difference of the tail queue to the oracle's.
    regret_growth, queue_decay : Interval or None
        Exponents of the cumulative routing regret and of the queue length regret in t.
    wait_p95, retrials_per_departed, decision_us : float or None
        Means over seeds (the median over seeds for the clock).
    """

    agent: str
    rank: int | None
    seeds: int
    score: Interval | None
    mean_queue: Interval
    tail_queue: Interval
    routing_regret: Interval
    queue_regret: Interval
    regret_growth: Interval | None
    queue_decay: Interval | None
    wait_p95: float | None
    retrials_per_departed: float | None
    decision_us: float | None


@dataclass(frozen=True)
class TaskBoard:
    """A task's rows, best first, and the curves behind them.

    Attributes
    ----------
    task : Mapping[str, Any]
        The task's definition.
    rows : list[TaskRow]
        One an agent, references included.
    separates : bool
        False if the score intervals of all learning agents overlap.
    curves : dict[str, Curves]
        Per agent.
    load : float
        Mean load rho of the instances.
    seeds : int
        Seeds planned.
    """

    task: Mapping[str, Any]
    rows: list[TaskRow]
    separates: bool
    curves: dict[str, Curves]
    load: float
    seeds: int


@dataclass(frozen=True)
class Curves:
    """Learning curves of an agent: its seeds, t (L,), cumulative queue and regret (seeds, L)."""

    seeds: NDArray[np.int64]
    t: Floats
    queue: Floats
    regret: Floats


@dataclass(frozen=True)
class OverallRow:
    """An agent's interquartile mean score over the headline tasks; no rank if cells are missing."""

    agent: str
    rank: int | None
    score: Interval | None
    cells: int
    expected: int


@dataclass(frozen=True)
class Board:
    """Everything a report shows."""

    suite: str
    overall: list[OverallRow]
    tasks: list[TaskBoard]
    failures: list[tuple[str, Record]]
    missing: list[str]
    skipped: Mapping[str, str]
    violations: list[str]
    provenance: Mapping[str, Any]
    cells: list[Record] = field(repr=False)


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
    return _slope(t[last], cumulative[:, last], name)


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
    return _slope(np.sqrt(t[edges[1:]] * t[edges[:-1]]), means, name)


def _slope(t: Floats, curves: Floats, name: str) -> Interval | None:
    """Least-squares slope of log(mean curve) on log t, with a bootstrap over seeds."""
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


# --- the board ------------------------------------------------------------------------------------


def load_board(store: Store) -> Board:
    """Score the cells of the last run in a store."""
    run = store.load_run()
    cells: list[Record] = []
    failures: list[tuple[str, Record]] = []
    missing: list[str] = []
    for spec in run["cells"]:
        key = spec_key(spec)
        name = f"{spec['task']['name']} / {spec['agent']['label']} / seed {spec['seed']}"
        try:
            record = store.load(key)
        except CorruptResultError as error:
            failures.append((name, {"error": str(error), "traceback": "", "output": ""}))
            continue
        if record is not None:
            cells.append(record)
        elif (failure := store.load_failure(key)) is not None:
            failures.append((name, failure))
        else:
            missing.append(name)
    return make_board(run, cells, failures, missing)


def make_board(
    run: Record, cells: list[Record], failures: list[tuple[str, Record]], missing: list[str]
) -> Board:
    """Score cells; ``run`` is the plan they belong to."""
    table = tidy(cells)
    planned: dict[str, Mapping[str, Any]] = {}
    agents: dict[str, None] = {}
    seeds: dict[str, set[int]] = {}
    for spec in run["cells"]:
        task, label = spec["task"], spec["agent"]["label"]
        planned[task["name"]] = task
        agents[label] = None
        seeds.setdefault(task["name"], set()).add(spec["seed"])
    tasks = [
        _task_board(task, table.filter(pl.col("task") == name), cells, len(seeds[name]))
        for name, task in planned.items()
    ]
    headline = [b.task["name"] for b in tasks if b.separates and b.task["headline"]]
    expected = sum(len(seeds[name]) for name in headline)
    overall = _overall(table.filter(pl.col("task").is_in(headline)), list(agents), expected)
    return Board(
        suite=run["suite"],
        overall=overall,
        tasks=tasks,
        failures=failures,
        missing=missing,
        skipped=run["skipped"],
        violations=violations(table),
        provenance=run["provenance"],
        cells=cells,
    )


_METRICS = (
    "mean_queue",
    "tail_queue",
    "wait_p95",
    "retrials_per_departed",
    "routing_regret",
    "luck",
    "arrival_rate",
    "capacity",
)


def tidy(cells: Sequence[Record]) -> pl.DataFrame:
    """One row a cell: task, agent, seed, metrics, and what the coupled references did.

    ``h`` is log(1 + mean queue); ``h_oracle``, ``h_random``, ``oracle_tail`` are null where the
    reference of that seed is missing; ``score`` is null where the two references tie.
    """
    schema = {"task": pl.String, "agent": pl.String, "seed": pl.Int64, "decision_us": pl.Float64}
    rows = [
        {
            "task": cell["spec"]["task"]["name"],
            "agent": cell["spec"]["agent"]["label"],
            "seed": cell["spec"]["seed"],
            "decision_us": cell["timing"]["decision_us_median"],
            **{name: cell["metrics"][name] for name in _METRICS},
        }
        for cell in cells
    ]
    table = pl.DataFrame(rows, schema={**schema, **dict.fromkeys(_METRICS, pl.Float64)})
    table = table.with_columns(h=pl.col("mean_queue").log1p())
    for name in REFERENCES:
        reference = table.filter(pl.col("agent") == name).select(
            "task",
            "seed",
            pl.col("h").alias(f"h_{name}"),
            pl.col("tail_queue").alias(f"tail_{name}"),
        )
        table = table.join(reference, on=["task", "seed"], how="left")
    # In NumPy: Polars divides by multiplying with the reciprocal, which makes 1 - 1e-16 of 1.
    h, low, high = (table[name].to_numpy() for name in ("h", "h_oracle", "h_random"))
    span = np.where(high - low > 0, high - low, np.nan)
    score = pl.Series("score", (high - h) / span, dtype=pl.Float64).fill_nan(None)
    return table.with_columns(score).sort("task", "agent", "seed")


def _task_board(
    task: Mapping[str, Any], table: pl.DataFrame, cells: Sequence[Record], seeds: int
) -> TaskBoard:
    """Score one task."""
    curves = _curves(task["name"], cells)
    labels = table["agent"].unique(maintain_order=True).to_list()
    learning = [label for label in labels if label not in REFERENCES]
    scores = {label: _by_seed(table, label, "score") for label in labels}
    ranks = {
        label: 1 + sum(_better(scores[other], scores[label]) for other in learning)
        for label in learning
        if scores[label]
    }
    rows = [
        _task_row(task["name"], label, ranks.get(label), table, curves)
        for label in labels
        if _by_seed(table, label, "tail_oracle")
    ]
    rows.sort(key=lambda row: (-row.score.value if row.score else np.inf, row.mean_queue.value))
    intervals = [r.score for r in rows if r.score is not None and r.agent in learning]
    loads = (table["arrival_rate"] / table["capacity"]).to_numpy()
    load = float(loads.mean()) if loads.size else float("nan")
    return TaskBoard(task, rows, _separates(intervals), curves, load, seeds)


def _task_row(
    task: str, label: str, rank: int | None, table: pl.DataFrame, curves: Mapping[str, Curves]
) -> TaskRow:
    own = table.filter((pl.col("agent") == label) & pl.col("tail_oracle").is_not_null())
    curve = curves[label]
    scores = own["score"].drop_nulls().to_numpy()

    def mean(name: str) -> float | None:
        value = own[name].mean()
        return None if value is None else float(value)  # type: ignore[arg-type]

    def interval(name: str) -> Interval:
        return t_interval(own[name].to_numpy())

    gap = own["tail_queue"] - own["tail_oracle"]
    decision = own["decision_us"].median()
    gaps = _queue_gaps(curve, curves.get("oracle"))
    return TaskRow(
        agent=label,
        rank=rank,
        seeds=own.height,
        score=t_interval(scores) if scores.size else None,
        mean_queue=interval("mean_queue"),
        tail_queue=interval("tail_queue"),
        routing_regret=interval("routing_regret"),
        queue_regret=t_interval(gap.to_numpy()),
        regret_growth=growth_exponent(curve.t, curve.regret, task),
        queue_decay=None if gaps is None else decay_exponent(curve.t, gaps, task),
        wait_p95=mean("wait_p95"),
        retrials_per_departed=mean("retrials_per_departed"),
        decision_us=None if decision is None else float(decision),  # type: ignore[arg-type]
    )


def _curves(task: str, cells: Sequence[Record]) -> dict[str, Curves]:
    """Learning curves of the task by agent, seeds in order."""
    own = [cell for cell in cells if cell["spec"]["task"]["name"] == task]
    own.sort(key=lambda cell: cell["spec"]["seed"])
    grouped: dict[str, list[Record]] = {}
    for cell in own:
        grouped.setdefault(cell["spec"]["agent"]["label"], []).append(cell)
    return {
        label: Curves(
            np.array([cell["spec"]["seed"] for cell in group], dtype=np.int64),
            np.array(group[0]["curve"]["t"], dtype=np.float64),
            np.array([cell["curve"]["queue"] for cell in group], dtype=np.float64),
            np.array([cell["curve"]["regret"] for cell in group], dtype=np.float64),
        )
        for label, group in grouped.items()
    }


def _queue_gaps(own: Curves, oracle: Curves | None) -> Floats | None:
    """Cumulative queue length regret on the seeds that both have, shape (seeds, L)."""
    if oracle is None:
        return None
    _, mine, theirs = np.intersect1d(own.seeds, oracle.seeds, return_indices=True)
    return own.queue[mine] - oracle.queue[theirs] if mine.size else None


def _by_seed(table: pl.DataFrame, label: str, column: str) -> dict[int, float]:
    own = table.filter((pl.col("agent") == label) & pl.col(column).is_not_null())
    return dict(zip(own["seed"].to_list(), own[column].to_list(), strict=True))


def _better(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    """Whether the first agent's paired difference lies above 0 with its whole interval."""
    common = sorted(first.keys() & second.keys())
    return bool(common) and t_interval([first[s] - second[s] for s in common]).low > 0


def _separates(intervals: Sequence[Interval]) -> bool:
    """Whether some two of the intervals do not overlap (true for a single agent)."""
    if len(intervals) < 2:
        return bool(intervals)
    return max(i.low for i in intervals) > min(i.high for i in intervals)


def _overall(table: pl.DataFrame, labels: Sequence[str], expected: int) -> list[OverallRow]:
    """Interquartile means over the headline tasks; agents with missing cells are not ranked."""
    rows: list[OverallRow] = []
    replicates: dict[str, Floats] = {}
    for label in labels:
        own = table.filter((pl.col("agent") == label) & pl.col("score").is_not_null())
        strata = {str(name): part["score"].to_numpy() for (name,), part in own.group_by("task")}
        strata = dict(sorted(strata.items()))
        score = None
        if strata:
            sample = bootstrap_iqm(strata)
            value = float(interquartile_mean(np.concatenate(list(strata.values()))))
            score = percentile_interval(value, sample)
            if own.height == expected and label not in REFERENCES:
                replicates[label] = sample
        rows.append(OverallRow(label, None, score, own.height, expected))
    ranked = []
    for row in rows:
        rank = None
        if row.agent in replicates:
            mine = replicates[row.agent]
            tail = (1 - LEVEL) / 2
            rank = 1 + sum(bool(np.quantile(r - mine, tail) > 0) for r in replicates.values())
        ranked.append(OverallRow(row.agent, rank, row.score, row.cells, row.expected))
    return sorted(
        ranked,
        key=lambda r: (r.cells < r.expected, -r.score.value if r.score else np.inf, r.agent),
    )


# --- rule 8: nobody beats the oracle --------------------------------------------------------------


def violations(table: pl.DataFrame) -> list[str]:
    """Agents that cannot have played fair, or truths that cannot be right.

    Two checks. Across seeds: the paired interval of h(agent) - h(oracle), h = log(1 + mean queue),
    lies below 0; the level is Bonferroni-corrected for all comparisons of the table, so that a run
    of hundreds of them does not fail by chance. A single run may well be luckier than the oracle's
    on the same seed, so no seed is judged by its queue. Within a run: departures exceed the sum of
    the departure rates chosen by more than ``LUCK_LIMIT`` standard deviations (either way); only
    knowing the outcome draws, or a wrong truth, does that.
    """
    found = [
        f"task {row['task']}: {row['agent']} (seed {row['seed']}) had departures "
        f"{row['luck']:+.1f} standard deviations from the sum of its true departure rates; "
        "it knows the outcome draws, or the environment's truth is wrong"
        for row in table.filter(pl.col("luck").abs() > LUCK_LIMIT).iter_rows(named=True)
    ]
    judged = table.filter(~pl.col("agent").is_in(REFERENCES) & pl.col("h_oracle").is_not_null())
    groups = list(judged.group_by(["task", "agent"], maintain_order=True))
    level = 1 - (1 - LEVEL) / max(1, len(groups))
    for (task, agent), part in groups:
        gap = t_interval((part["h"] - part["h_oracle"]).to_numpy(), level)
        if gap.high < 0:
            found.append(
                f"task {task}: {agent} beats the oracle: paired gap in log(1 + mean queue) "
                f"{gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] over {part.height} seeds "
                f"({level:.2%} interval)"
            )
    return found
