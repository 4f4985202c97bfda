"""What a report shows of a problem: its score's h, its columns and panels, how to read them.

A column is one entry of a table; scoring, terminal and page know no figure by name. Workers import
this for their metrics, so it is light: no polars, no statistics of SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.score.intervals import (
    Floats,
    Interval,
    block_means,
    growth_exponent,
    t_interval,
)

if TYPE_CHECKING:
    import polars as pl

    from benchmarks.score.task_board import TaskBoard

Run = TypeVar("Run")

Scale = Literal["linear", "log", "symlog"]
Line = tuple[Floats, Floats]
"""x of shape (L,) and values of shape (seeds, L)."""

Ints = NDArray[np.int64]
Figure = Interval | float | None


@dataclass(frozen=True)
class Curves:
    """Learning curves of an agent: its seeds, t (L,), and cumulative sums (seeds, L) by name."""

    seeds: Ints
    t: Floats
    sums: Mapping[str, Floats]


@dataclass(frozen=True)
class Traffic:
    """Which LLM answered, stage by stage, in one run.

    Attributes
    ----------
    llms : tuple[str, ...]
        Names of the N LLMs.
    arrival : ndarray, shape (N,)
        First query at which each is there.
    starts, lengths : ndarray, shape (K,)
        First query and number of queries of every stage.
    served : ndarray, shape (K, N)
        Queries answered.
    """

    llms: tuple[str, ...]
    arrival: Ints
    starts: Ints
    lengths: Ints
    served: Ints

    @property
    def shares(self) -> Floats:
        """Share of a stage's queries per LLM, shape (K, N); a row sums to 1 if all are served."""
        return np.asarray(self.served / self.lengths[:, None])


@dataclass(frozen=True)
class Fleet:
    """What a fleet of replicas did in one run, over time.

    Attributes
    ----------
    seed : int
    replicas, llms : tuple of str
        Names of the R replicas and N LLMs.
    edges : ndarray, shape (B + 1,)
        Slots between which the bins lie.
    hosts : ndarray of int64, shape (R, B)
        LLM of a replica in most of a bin's slots; -1 nothing, -2 it is loading one.
    load : ndarray, shape (R, B)
        Share of a replica's places in use.
    people : Mapping of ndarray, shape (B,)
        Mean numbers of users by where they are.
    """

    seed: int
    replicas: tuple[str, ...]
    llms: tuple[str, ...]
    edges: Ints
    hosts: Ints
    load: Floats
    people: Mapping[str, Floats]


@dataclass(frozen=True)
class Spent:
    """Where the users of a run spent their time.

    Attributes
    ----------
    places : tuple of str
        Where one can be.
    groups : tuple of str
        Users, or attempts of theirs, that are told apart.
    slots : ndarray, shape (seeds, groups, places)
        Mean slots a user of the run.
    """

    places: tuple[str, ...]
    groups: tuple[str, ...]
    slots: Floats


class Evidence(NamedTuple):
    """All there is about an agent on a task, for the figures of its row."""

    task: str
    table: pl.DataFrame  # a row a seed, with the references' figures beside
    curves: Curves
    oracle: Curves | None
    traffic: Mapping[int, Traffic]  # by seed
    oracle_traffic: Mapping[int, Traffic]

    def blocks(self, seeds: Ints) -> list[int]:
        """Blocks of some seeds (`benchmarks.score.scoring.seed_blocks`)."""
        block = dict(zip(self.table["seed"].to_list(), self.table["block"].to_list(), strict=True))
        return [block.get(seed, seed) for seed in seeds.tolist()]


@dataclass(frozen=True)
class Column:
    """One figure of a row.

    Attributes
    ----------
    title, short : str
        Header on the page and in the short tables; empty where it is not shown.
    figure : callable
        Evidence -> an interval, a number, or None if it cannot be had.
    digits : int
        Digits after the point of small numbers; 0 for counts.
    oracle : str, optional
        What stands in the oracle's row instead.
    missing : str
        What stands for None.
    """

    title: str
    short: str
    figure: Callable[[Evidence], Figure]
    digits: int = 2
    oracle: str | None = None
    missing: str = ""


@dataclass(frozen=True)
class Metric(Generic[Run]):
    """A number that is measured when a run is played, and shown by reports.

    Attributes
    ----------
    name : str
        Its name in stored results.
    measure : callable
        What was recorded of a run -> the number; None where it cannot be had.
    columns : tuple of Column
        What it adds to the tables.
    """

    name: str
    measure: Callable[[Run], float | int | None]
    columns: tuple[Column, ...] = ()


def measured(metrics: Iterable[Metric[Run]], run: Run) -> dict[str, float | int | None]:
    """Measure a run."""
    return {metric.name: metric.measure(run) for metric in metrics}


@dataclass(frozen=True)
class Panel:
    """One quantity over time, a line an agent.

    Attributes
    ----------
    across, quantity : str
        What the axes show; a second line of the latter is its unit, and what is better.
    lines : dict of Line
        Per agent.
    x_scale, y_scale : str
        ``"linear"``, ``"log"``, or ``"symlog"``.
    x_range, y_range : tuple of float
        What is worth seeing; data may lie outside.
    marks : tuple of Line
        Lines to compare with, as x (2,) and y (1, 2).
    linear_below : float
        Where a ``symlog`` axis of y is linear: from minus this value to it.
    """

    across: str
    quantity: str
    lines: dict[str, Line]
    x_scale: Scale
    y_scale: Scale
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    marks: tuple[Line, ...] = field(default=())
    linear_below: float = 1.0


class TrainingCurve(NamedTuple):
    """A quantity of a training's record, words for it, and whether its axis is logarithmic."""

    quantity: str
    words: str
    log: bool = False


@dataclass(frozen=True)
class Sweeps:
    """Tasks that differ in one parameter only.

    Attributes
    ----------
    axes : Mapping of str
        Parameter -> words for its axis.
    following : Mapping of tuple
        Parameter -> arguments that may change with it.
    regret, earned : str
        Metrics that are shown against the parameter.
    note : str
        How to read the table.
    """

    axes: Mapping[str, str]
    following: Mapping[str, tuple[str, ...]]
    regret: str
    earned: str
    note: str


@dataclass(frozen=True, eq=False)
class Kind:
    """The board of a problem.

    Attributes
    ----------
    name : str
        That of its problem.
    metrics : tuple[str, ...]
        What is read from a cell's metrics.
    h : polars.Expr
        What the score compares; smaller is better.
    h_name, luck_name : str
        Words for h and for what ``luck`` compares, in messages.
    bound : polars.Expr, optional
        What h of no policy can be expected to fall below; null where that does not hold of a run.
    blind : tuple[str, ...]
        References that do not know the draws: their luck is judged like the agents'.
    reference : tuple[str, ...]
        Metrics of the references that columns compare with: ``NAME_oracle``, ``NAME_random``, and
        ``NAME_known`` of the same agent told the truth.
    about : callable
        Table of a task -> words about its instances.
    columns : tuple[Column, ...]
        Figures besides rank, agent and score.
    legend : str
        How to read the columns.
    compared : tuple[str, ...]
        Metrics by which two agents, or two results of one, are compared.
    picture : tuple[str, str]
        File name and caption of the pictures of its panels.
    panels : callable
        Board of a task that was run -> two panels.
    training : TrainingCurve
        What is shown of a training.
    exact : polars.Expr, optional
        Whether the oracle of a cell's task is the optimum, if that is not so of all of them;
        elsewhere it may be beaten.
    sweeps : Sweeps, optional
        Parameters that tasks may differ in.
    """

    name: str
    metrics: tuple[str, ...]
    h: pl.Expr
    h_name: str
    luck_name: str
    bound: pl.Expr | None
    blind: tuple[str, ...]
    reference: tuple[str, ...]
    about: Callable[[pl.DataFrame], str]
    columns: tuple[Column, ...]
    legend: str
    compared: tuple[str, ...]
    picture: tuple[str, str]
    panels: Callable[[TaskBoard], list[Panel]]
    training: TrainingCurve
    exact: pl.Expr | None = None
    sweeps: Sweeps | None = None


# --- figures --------------------------------------------------------------------------------------


def mean_of(name: str) -> Callable[[Evidence], Figure]:
    """Return the mean of a metric over seeds."""

    def figure(evidence: Evidence) -> float | None:
        value = evidence.table[name].mean()
        return None if value is None else float(value)  # type: ignore[arg-type]

    return figure


def interval_of(name: str, less: str | None = None) -> Callable[[Evidence], Figure]:
    """Interval of a metric, or of its paired difference to another."""

    def figure(evidence: Evidence) -> Interval:
        values = evidence.table[name]
        gaps = values if less is None else values - evidence.table[less]
        return t_interval(gaps.to_numpy(), blocks=evidence.table["block"])

    return figure


def size_of(name: str) -> Callable[[Evidence], Figure]:
    """Interval of a metric that cannot be negative: it does not reach below 0."""

    def figure(evidence: Evidence) -> Interval:
        table = evidence.table
        value, low, high = t_interval(table[name].to_numpy(), blocks=table["block"])
        return Interval(value, max(low, 0.0), high)

    return figure


def gap_of(evidence: Evidence, first: str, second: str) -> Interval | None:
    """Interval of a paired difference on the seeds that have both; None where none has."""
    own = evidence.table.drop_nulls([first, second])
    gaps = own[first] - own[second]
    return t_interval(gaps.to_numpy(), blocks=own["block"]) if gaps.len() else None


def _decision(evidence: Evidence) -> float | None:
    value = evidence.table["decision_us"].median()
    return None if value is None else float(value)  # type: ignore[arg-type]


def growth_of(evidence: Evidence) -> Interval | None:
    """Exponent of the cumulative regret in t."""
    curves = evidence.curves
    regret = block_means(curves.sums["regret"], evidence.blocks(curves.seeds))
    return growth_exponent(curves.t, regret, evidence.task)


LUCK = ("luck", "luck_deviation", "luck_variance")
"""Metrics of every problem (`benchmarks.problems.luck`)."""

CLOCK = Column("µs / decision", "µs", _decision, 3)


def _minutes(evidence: Evidence) -> float | None:
    seconds = evidence.table["train_seconds"].mean()
    return None if seconds is None else float(seconds) / 60  # type: ignore[arg-type]


TRAINING = (
    Column("training steps", "steps", mean_of("train_steps"), 0),
    Column("training minutes", "min", _minutes, 2),
)
"""Further columns of the ``pretrained`` tables: environment steps and wall time of a training."""


def _trainings(evidence: Evidence) -> float | None:
    return float(evidence.table["training"].n_unique()) if _minutes(evidence) else None


TRAININGS = (Column("trainings", "trainings", _trainings, 0),)
"""Further column where some agent was trained more than once: trainings that a row stands for."""


def _contexts(evidence: Evidence) -> Interval | None:
    """Score less what it is on the same seeds with shuffled contexts."""
    return gap_of(evidence, "score", "score_shuffled")


CONTEXTS = (Column("worth of contexts", "contexts", _contexts, 3, oracle=""),)
"""Further column of a task that some agents also play with shuffled contexts."""


def curve_gaps(own: Curves, oracle: Curves | None, name: str) -> Floats | None:
    """Difference to the oracle's cumulative sum on the seeds both have, shape (seeds, L)."""
    if oracle is None:
        return None
    _, mine, theirs = np.intersect1d(own.seeds, oracle.seeds, return_indices=True)
    return own.sums[name][mine] - oracle.sums[name][theirs] if mine.size else None


def is_stuck(own: Traffic, oracle: Traffic) -> bool:
    """Whether a run ends on worse LLMs, or is still searching.

    So it is if over the last tenth of the stages (at least one) less than half of the queries went
    where the oracle of the same seed sent them: LLM by LLM and stage by stage, the smaller of both
    counts is what they share. The oracle uses LLMs that are there, so the better ones are.
    """
    last = slice(-max(1, own.starts.size // 10), None)
    shared = np.minimum(own.served[last], oracle.served[last]).sum()
    return bool(2 * shared < own.lengths[last].sum())


def first_shown(task: TaskBoard) -> float:
    """First step on an axis of time.

    Two decades are shown: earlier steps tell nothing apart and would fill half a log axis.
    """
    return float(max(1, int(task.task["horizon"]) // 100))
