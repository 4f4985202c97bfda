"""From stored cells to a board: scores, intervals, exponents, ranks and the checks on them.

Every comparison is paired by seed: an agent, the oracle and random share instance and draws.
Each kind of task and each protocol has a board of its own; `benchmarks.kinds` says what differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import floor, log10
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from benchmarks.intervals import (
    LEVEL,
    Floats,
    Interval,
    StratifiedBootstrap,
    competition_ranks,
    improvement,
    interquartile_mean,
    power_exponent,
    t_interval,
)
from benchmarks.kinds import (
    DEPLOYMENT,
    KINDS,
    TRAINING,
    Column,
    Curves,
    Evidence,
    Figure,
    Kind,
    Traffic,
)
from benchmarks.store import CorruptResultError
from benchmarks.suite import PROTOCOLS, REFERENCES, canonical, kind_of, spec_key

Record = Mapping[str, Any]

LUCK_LIMIT = 7.3
"""What ``luck`` of a policy ignorant of the draws exceeds with probability 1e-8 at most.

2 exp(-c^2 / 2) would be so from 6.2 on, for a given variance V. A policy may choose V by what came
before (stop taking risks while ahead): for each of the 317 intervals (a^k, a^(k+1)], a = 1.04, that
hold V up to 250,000 (10^6 outcomes) Freedman's inequality gives 2 exp(-c^2 / 2a), and for V <= 1,
where |D| >= c^2 / 3, it gives 5e-10; from 7.3 on, together below 1e-8.
"""

PROFILE_THRESHOLDS = np.linspace(0.0, 1.0, 51)
"""Scores at which performance profiles are taken."""


class Results(Protocol):
    """Where results come from: a `benchmarks.store.Store` or a `benchmarks.export.ExportedRun`."""

    def load_run(self) -> Record:
        """Return the plan of the last run."""
        ...

    def load_many(
        self, keys: Iterable[str]
    ) -> Iterator[tuple[str, Record | CorruptResultError | None]]:
        """Yield every key in turn with its cell's result, None, or what is wrong with it."""
        ...

    def load_failure(self, key: str) -> Record | None:
        """Return the error of a failed cell, or None."""
        ...


class Section(NamedTuple):
    """What shares tables: tasks of one kind, agents of one protocol (and the references)."""

    kind: Kind
    protocol: str


@dataclass(frozen=True)
class Origin:
    """Where the cells of a row come from; each of the tuples lists what occurs among them.

    Attributes
    ----------
    commands, versions, commits, pythons, numpys, machines : tuple of str
        Command, package version, git commit (``+``: with uncommitted changes), Python and NumPy
        versions, machine.
    seeds : tuple of int
    wall_seconds : float
        Time that the cells took together.
    keys : tuple of str
        Hashes of the cells.
    """

    commands: tuple[str, ...]
    versions: tuple[str, ...]
    commits: tuple[str, ...]
    pythons: tuple[str, ...]
    numpys: tuple[str, ...]
    machines: tuple[str, ...]
    seeds: tuple[int, ...]
    wall_seconds: float
    keys: tuple[str, ...]

    @classmethod
    def of(cls, cells: Iterable[Record]) -> Origin:
        """Collect the origins of some cells."""
        cells = list(cells)
        found = [cell["provenance"] for cell in cells]

        def distinct(name: str) -> tuple[str, ...]:
            return tuple(sorted({record[name] or "no commit" for record in found}))

        return cls(
            commands=distinct("command"),
            versions=distinct("version"),
            commits=distinct("commit"),
            pythons=distinct("python"),
            numpys=distinct("numpy"),
            machines=distinct("machine"),
            seeds=tuple(sorted({cell["spec"]["seed"] for cell in cells})),
            wall_seconds=sum(cell["timing"]["wall_seconds"] for cell in cells),
            keys=tuple(spec_key(cell["spec"]) for cell in cells),
        )


@dataclass(frozen=True)
class TaskRow:
    """An agent on a task; None where a figure cannot be had.

    Attributes
    ----------
    agent : str
        Label.
    rank : int or None
        Shared by learning agents that no paired interval separates
        (`benchmarks.intervals.competition_ranks`).
    seeds : int
        Seeds that were run to the end, with oracle and random beside them.
    score : Interval or None
        Mean normalised score over seeds.
    figures : tuple of Figure
        In the order of the board's columns.
    origin : Origin
        Where the row's cells come from.
    """

    agent: str
    rank: int | None
    seeds: int
    score: Interval | None
    figures: tuple[Figure, ...]
    origin: Origin


@dataclass(frozen=True)
class TaskBoard:
    """A task's rows under one protocol, best first, and the curves behind them.

    Attributes
    ----------
    task : Mapping[str, Any]
        The task's definition.
    section : Section
        Its kind and protocol.
    rows : list[TaskRow]
        One an agent, references included.
    separates : bool
        False if the score intervals of all learning agents overlap, or if there are no scores.
    inverted : tuple of int
        Seeds on which random did no worse than the oracle; if there are any, no agent has a score.
    curves : dict[str, Curves]
        Per agent.
    traffic : dict[str, dict[int, Traffic]]
        Per agent and seed; empty for queueing.
    about : str
        Words about the instances.
    seeds : int
        Seeds planned.
    """

    task: Mapping[str, Any]
    section: Section
    rows: list[TaskRow]
    separates: bool
    inverted: tuple[int, ...]
    curves: dict[str, Curves]
    traffic: dict[str, dict[int, Traffic]]
    about: str
    seeds: int

    @property
    def kind(self) -> Kind:
        """Kind of the task."""
        return self.section.kind

    @property
    def columns(self) -> tuple[Column, ...]:
        """Figures of a row: the kind's, and under ``pretrained`` what the training cost."""
        return self.kind.columns + (TRAINING if self.section.protocol == "pretrained" else ())


@dataclass(frozen=True)
class OverallRow:
    """An agent's interquartile mean score over its section's headline tasks.

    Attributes
    ----------
    section : Section
    agent : str
        Label.
    rank : int or None
        As in a `TaskRow`, by the bootstrap; None for references and agents with missing cells.
    score : Interval or None
    decision_us : float or None
        Median over the cells of the median time of a decision, in microseconds.
    cells, planned, expected : int
        Cells scored, planned for the agent, and planned for an agent that plays every task.
    origin : Origin
        Where the scored cells come from.
    train_steps, train_seconds : float or None
        Environment steps and wall time of the agent's trainings for these tasks together; None
        under ``online``.
    """

    section: Section
    agent: str
    rank: int | None
    score: Interval | None
    decision_us: float | None
    cells: int
    planned: int
    expected: int
    origin: Origin
    train_steps: float | None = None
    train_seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two ranked agents of a section; the first is listed above the second.

    Attributes
    ----------
    first, second : str
        Labels.
    difference : Interval
        Of their interquartile means, paired.
    improvement : Interval
        Probability that a run of the first scores above one of the second, over the tasks.
    """

    first: str
    second: str
    difference: Interval
    improvement: Interval


@dataclass(frozen=True)
class Profile:
    """Performance profile: share of an agent's runs that score above each threshold.

    Attributes
    ----------
    share, low, high : ndarray, shape (L,)
        At `PROFILE_THRESHOLDS`, with the pointwise interval; infinite if a task has one seed.
    """

    share: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Standing:
    """The headline of a section: everything that runs over several tasks.

    Attributes
    ----------
    section : Section
    tasks : tuple of str
        The tasks in it.
    rows : list of OverallRow
        Best first; agents with missing cells are last and unranked.
    comparisons : list of Comparison
        Every pair of ranked agents.
    profiles : dict of Profile
        Per ranked agent, best first.
    tags : dict of dict of Interval
        Tag -> ranked agent -> interquartile mean over the tasks of the tag. Tags that all tasks
        have are left out.
    """

    section: Section
    tasks: tuple[str, ...]
    rows: list[OverallRow]
    comparisons: list[Comparison]
    profiles: dict[str, Profile]
    tags: dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Sweep:
    """Deployment tasks that differ in one parameter only.

    Attributes
    ----------
    axis : str
        ``"horizon"`` (K may follow T), ``"num_stages"`` or ``"max_deployed"``.
    name : str
        What the names of its tasks begin with.
    values : ndarray, shape (L,)
        The parameter, increasing.
    regret, ledger : dict of ndarray, shape (seeds, L)
        Per agent that has all cells: regret of the true means at the end, ledger score per query.
    exponents : dict of Interval or None
        Per agent, of a horizon sweep: exponent of the final regret in T; None if not positive.
    """

    axis: str
    name: str
    values: Floats
    regret: dict[str, Floats]
    ledger: dict[str, Floats]
    exponents: dict[str, Interval | None]


@dataclass(frozen=True)
class Board:
    """Everything a report shows."""

    suite: str
    standings: list[Standing]
    tasks: list[TaskBoard]
    sweeps: list[Sweep]
    failures: list[tuple[str, Record]]
    missing: list[str]
    skipped: Mapping[str, str]
    violations: list[str]
    warnings: list[str]
    provenance: Mapping[str, Any]
    cells: list[Record] = field(repr=False)
    trainings: Sequence[Record] = ()

    @property
    def sections(self) -> list[Section]:
        """Kinds and protocols that have tasks, each once."""
        return list(dict.fromkeys(task.section for task in self.tasks))

    @property
    def overall(self) -> list[OverallRow]:
        """Rows of all sections."""
        return [row for standing in self.standings for row in standing.rows]


# --- the board ------------------------------------------------------------------------------------


def load_board(store: Results) -> Board:
    """Score the cells of the last run in a store."""
    run = store.load_run()
    cells: list[Record] = []
    failures: list[tuple[str, Record]] = []
    missing: list[str] = []
    origins: dict[str, Any] = {}
    found = store.load_many(spec_key(spec) for spec in run["cells"])
    for spec, (key, record) in zip(run["cells"], found, strict=True):
        name = f"{spec['task']['name']} / {spec['agent']['label']} / seed {spec['seed']}"
        if isinstance(record, CorruptResultError):
            failures.append((name, {"error": str(record), "traceback": "", "output": ""}))
        elif record is not None:
            cells.append(_compact(record, spec, origins))
        elif (failure := store.load_failure(key)) is not None:
            failures.append((name, failure))
        else:
            missing.append(name)
    return make_board(run, cells, failures, missing)


def _compact(record: Record, spec: Record, origins: dict[str, Any]) -> Record:
    """Hold a cell in little memory: parts that cells share once, curves as arrays."""
    curve = {name: np.asarray(values, dtype=np.float64) for name, values in record["curve"].items()}
    origin = record.get("provenance", {})
    origin = origins.setdefault(canonical(origin), origin)
    return {**record, "spec": spec, "curve": curve, "provenance": origin}


def make_board(
    run: Record, cells: Sequence[Record], failures: list[tuple[str, Record]], missing: list[str]
) -> Board:
    """Score cells; ``run`` is the plan they belong to."""
    standings: list[Standing] = []
    tasks: list[TaskBoard] = []
    sweeps: list[Sweep] = []
    broken: list[str] = []
    doubtful: list[str] = []
    for kind in KINDS.values():
        planned = [s for s in run["cells"] if kind_of(s["task"]["env"]) == kind.name]
        own = [c for c in cells if kind_of(c["spec"]["task"]["env"]) == kind.name]
        checked = tidy(own, kind)
        broken += violations(checked, kind)
        doubtful += warnings(checked, kind)
        for protocol in PROTOCOLS:
            section = Section(kind, protocol)
            shown = _shown_in(protocol, planned)
            specs = [spec for spec in planned if shown(spec)]
            played = [cell for cell in own if shown(cell["spec"])]
            table = tidy(played, kind)
            boards = list(_task_boards(specs, table, played, section))
            if boards:
                standings.append(_standing(section, boards, specs, table, played))
            tasks += boards
            if protocol == "online":
                sweeps += _sweeps(boards, played)
    return Board(
        suite=run["suite"],
        standings=standings,
        tasks=tasks,
        sweeps=sweeps,
        failures=failures,
        missing=missing,
        skipped=run["skipped"],
        violations=broken,
        warnings=doubtful,
        provenance=run["provenance"],
        cells=list(cells),
        trainings=run.get("trainings", ()),
    )


def _shown_in(protocol: str, planned: Sequence[Record]) -> Callable[[Record], bool]:
    """Tell which of a kind's cells stand in the tables of a protocol.

    The references of a task stand beside the agents of either protocol; where nobody else was
    planned, they are shown as ``online``.
    """
    protocols: dict[str, set[str]] = {}
    for spec in planned:
        found = protocols.setdefault(spec["task"]["name"], set())
        if spec["agent"]["label"] not in REFERENCES:
            found.add(spec["protocol"])
    tasks = {task for task, found in protocols.items() if protocol in (found or {PROTOCOLS[0]})}

    def shown(spec: Record) -> bool:
        reference = spec["agent"]["label"] in REFERENCES
        return spec["task"]["name"] in tasks and (reference or spec["protocol"] == protocol)

    return shown


def tidy(cells: Sequence[Record], kind: Kind) -> pl.DataFrame:
    """One row a cell: task, agent, seed, metrics, training, and what the coupled references did.

    ``h_oracle`` and ``h_random`` are null where the reference of that seed is missing. So is then
    ``score``; it is null on all seeds of a task if on one of them random does no worse than the
    oracle (``inverted``): the mean over the others would be one over seeds chosen by their outcome.
    """
    schema = {
        "task": pl.String,
        "agent": pl.String,
        "seed": pl.Int64,
        "decision_us": pl.Float64,
        "train_steps": pl.Float64,
        "train_seconds": pl.Float64,
    }
    rows = [
        {
            "task": cell["spec"]["task"]["name"],
            "agent": cell["spec"]["agent"]["label"],
            "seed": cell["spec"]["seed"],
            "decision_us": cell["timing"]["decision_us_median"],
            **{
                f"train_{name}": cell["spec"]["agent"].get("training", {}).get(name)
                for name in ("steps", "seconds")
            },
            **{name: cell["metrics"].get(name) for name in kind.metrics},  # older ones lack some
        }
        for cell in cells
    ]
    table = pl.DataFrame(rows, schema={**schema, **dict.fromkeys(kind.metrics, pl.Float64)})
    table = table.with_columns(h=kind.h)
    for name in REFERENCES:
        columns = [pl.col(column).alias(f"{column}_{name}") for column in ("h", *kind.reference)]
        reference = table.filter(pl.col("agent") == name).select("task", "seed", *columns)
        table = table.join(reference, on=["task", "seed"], how="left")
    # In NumPy: Polars divides by multiplying with the reciprocal, which makes 1 - 1e-16 of 1.
    h, low, high = (table[name].to_numpy() for name in ("h", "h_oracle", "h_random"))
    span = np.where(high - low > 0, high - low, np.nan)
    score = pl.Series("score", (high - h) / span, dtype=pl.Float64).fill_nan(None)
    inverted = pl.col("h_random") <= pl.col("h_oracle")
    table = table.with_columns(score, inverted.fill_null(value=False).alias("inverted"))
    fair = pl.when(~pl.col("inverted").any().over("task")).then(pl.col("score"))
    return table.with_columns(score=fair).sort("task", "agent", "seed")


def _task_boards(
    specs: Sequence[Record], table: pl.DataFrame, cells: Sequence[Record], section: Section
) -> Iterator[TaskBoard]:
    """Score every task of a section, in the order of the plan."""
    planned = {spec["task"]["name"]: spec["task"] for spec in specs}
    seeds: dict[str, set[int]] = {name: set() for name in planned}
    own: dict[str, list[Record]] = {name: [] for name in planned}
    for spec in specs:
        seeds[spec["task"]["name"]].add(spec["seed"])
    for cell in cells:
        own[cell["spec"]["task"]["name"]].append(cell)
    parts = table.partition_by("task", as_dict=True)
    for name, task in planned.items():
        part = parts.get((name,), table.clear())
        yield _task_board(task, part, own[name], len(seeds[name]), section)


def _task_board(
    task: Mapping[str, Any],
    table: pl.DataFrame,
    cells: Sequence[Record],
    seeds: int,
    section: Section,
) -> TaskBoard:
    """Score one task."""
    curves, traffic = _curves(cells), _traffic(cells)
    inverted = tuple(table.filter(pl.col("inverted"))["seed"].unique().sort().to_list())
    board = TaskBoard(task, section, [], False, inverted, curves, traffic, "", seeds)
    scored = table.filter(pl.col("h_oracle").is_not_null())
    parts = {
        str(label): own for (label,), own in scored.partition_by("agent", as_dict=True).items()
    }
    scores = {label: _by_seed(own) for label, own in parts.items()}
    ordered = []
    for label, group in _by_agent(cells).items():
        if (own := parts.get(label)) is not None:
            evidence = Evidence(
                task["name"],
                own,
                curves[label],
                curves.get("oracle"),
                traffic.get(label, {}),
                traffic.get("oracle", {}),
            )
            row = _task_row(label, evidence, board.columns, Origin.of(group))
            key = (-row.score.value if row.score else np.inf, float(own["h"].to_numpy().mean()))
            ordered.append((key, row))
    rows = [row for _, row in sorted(ordered, key=lambda pair: pair[0])]
    learning = {row.agent: row.score for row in rows if row.score and row.agent not in REFERENCES}
    ranked = list(learning)
    ranks = competition_ranks(
        len(ranked), lambda i, j: _better(scores[ranked[i]], scores[ranked[j]])
    )
    rank_of = dict(zip(ranked, ranks, strict=True))
    rows = [replace(row, rank=rank_of.get(row.agent)) for row in rows]
    about = section.kind.about(table) if table.height else ""
    return replace(board, rows=rows, separates=_separates([*learning.values()]), about=about)


def _task_row(label: str, evidence: Evidence, columns: Sequence[Column], origin: Origin) -> TaskRow:
    scores = evidence.table["score"].drop_nulls().to_numpy()
    return TaskRow(
        agent=label,
        rank=None,
        seeds=evidence.table.height,
        score=t_interval(scores) if scores.size else None,
        figures=tuple(column.figure(evidence) for column in columns),
        origin=origin,
    )


def _by_agent(cells: Sequence[Record]) -> dict[str, list[Record]]:
    """Cells of a task by agent, seeds in order."""
    grouped: dict[str, list[Record]] = {}
    for cell in sorted(cells, key=lambda cell: int(cell["spec"]["seed"])):
        grouped.setdefault(cell["spec"]["agent"]["label"], []).append(cell)
    return grouped


def _curves(cells: Sequence[Record]) -> dict[str, Curves]:
    """Learning curves of a task by agent."""
    return {
        label: Curves(
            np.array([cell["spec"]["seed"] for cell in group], dtype=np.int64),
            np.array(group[0]["curve"]["t"], dtype=np.float64),
            {
                name: np.array([cell["curve"][name] for cell in group], dtype=np.float64)
                for name in group[0]["curve"]
                if name != "t"
            },
        )
        for label, group in _by_agent(cells).items()
    }


def _traffic(cells: Sequence[Record]) -> dict[str, dict[int, Traffic]]:
    """Traffic of a deployment task by agent and seed; empty for queueing."""
    return {
        label: {
            cell["spec"]["seed"]: Traffic(
                tuple(cell["traffic"]["llms"]),
                *(
                    np.array(cell["traffic"][name], dtype=np.int64)
                    for name in ("arrival", "starts", "lengths", "served")
                ),
            )
            for cell in group
            if "traffic" in cell
        }
        for label, group in _by_agent(cells).items()
    }


def _by_seed(own: pl.DataFrame) -> dict[int, float]:
    """Scores of an agent by seed."""
    seeds, scores = own["seed"].to_list(), own["score"].to_list()
    return {seed: score for seed, score in zip(seeds, scores, strict=True) if score is not None}


def _better(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    """Whether the first agent's paired difference lies above 0 with its whole interval."""
    common = sorted(first.keys() & second.keys())
    return bool(common) and t_interval([first[s] - second[s] for s in common]).low > 0


def _separates(intervals: Sequence[Interval]) -> bool:
    """Whether some two of the intervals do not overlap (true for a single agent)."""
    if len(intervals) < 2:
        return bool(intervals)
    return bool(max(i.low for i in intervals) > min(i.high for i in intervals))


# --- over several tasks ---------------------------------------------------------------------------


def _standing(
    section: Section,
    boards: Sequence[TaskBoard],
    specs: Sequence[Record],
    table: pl.DataFrame,
    cells: Sequence[Record],
) -> Standing:
    """Aggregate a section's headline tasks; agents with missing cells are not ranked."""
    headline = {b.task["name"]: b for b in boards if b.separates and b.task["headline"]}
    expected = sum(board.seeds for board in headline.values())
    part = table.filter(pl.col("task").is_in(list(headline)) & pl.col("score").is_not_null())
    groups = {str(label): own for (label,), own in part.group_by("agent", maintain_order=True)}
    cells_of: dict[str, list[Record]] = {}
    for cell in cells:
        if cell["spec"]["task"]["name"] in headline:
            cells_of.setdefault(cell["spec"]["agent"]["label"], []).append(cell)
    complete = [label for label, own in groups.items() if own.height == expected]
    scores = {label: own["score"].to_numpy() for label, own in groups.items()}
    bootstrap = StratifiedBootstrap.draw(_seeds_of(groups[complete[0]])) if complete else None
    replicates: dict[str, Floats] = {}
    if bootstrap is not None:
        samples = bootstrap.iqm(np.stack([scores[label] for label in complete]))
        replicates = dict(zip(complete, samples, strict=True))
    intervals: dict[str, Interval] = {}
    for label in groups:
        own, sample = bootstrap, replicates.get(label)
        if own is None or sample is None:  # what there is of an incomplete agent
            own = StratifiedBootstrap.draw(_seeds_of(groups[label]))
            sample = own.iqm(scores[label][None])[0]
        intervals[label] = own.interval(float(interquartile_mean(scores[label])), sample)
    rows = []
    planned: dict[str, int] = {}
    for spec in specs:
        here = spec["task"]["name"] in headline
        planned[spec["agent"]["label"]] = planned.get(spec["agent"]["label"], 0) + here
    for label in planned:
        clock = groups[label]["decision_us"].median() if label in groups else None
        count = groups[label].height if label in groups else 0
        origin = Origin.of(cells_of.get(label, []))
        row = OverallRow(
            section,
            label,
            None,
            intervals.get(label),
            _number(clock),
            count,
            planned[label],
            expected,
            origin,
        )
        if section.protocol == "pretrained" and label in groups and label not in REFERENCES:
            steps, seconds = _training(groups[label])
            row = replace(row, train_steps=steps, train_seconds=seconds)
        rows.append(row)
    rows.sort(key=lambda r: (r.cells < expected, -r.score.value if r.score else np.inf, r.agent))
    ranked = [row.agent for row in rows if row.agent in complete and row.agent not in REFERENCES]
    if bootstrap is None or not ranked:
        return Standing(section, tuple(headline), rows, [], {}, {})
    board = np.stack([scores[label] for label in ranked])
    comparisons = _comparisons(ranked, board, groups[ranked[0]], bootstrap, replicates)
    beaten = {(pair.first, pair.second) for pair in comparisons if pair.difference.low > 0}
    ranks = competition_ranks(len(ranked), lambda i, j: (ranked[i], ranked[j]) in beaten)
    rank_of = dict(zip(ranked, ranks, strict=True))
    return Standing(
        section=section,
        tasks=tuple(headline),
        rows=[replace(row, rank=rank_of.get(row.agent)) for row in rows],
        comparisons=comparisons,
        profiles=_profiles(ranked, board, bootstrap),
        tags=_tags(ranked, board, headline, bootstrap),
    )


def _seeds_of(own: pl.DataFrame) -> dict[str, int]:
    """Task -> seeds of an agent, in the order of its scores."""
    counts = own.group_by("task", maintain_order=True).len()
    return dict(zip(counts["task"].to_list(), counts["len"].to_list(), strict=True))


def _training(own: pl.DataFrame) -> tuple[float | None, float | None]:
    """Return steps and seconds of an agent's trainings, one a task; all its seeds share it."""
    known = own.drop_nulls(["train_steps", "train_seconds"])
    if not known.height:
        return None, None
    tasks = known.group_by("task").agg(pl.col("train_steps", "train_seconds").mean())
    return float(tasks["train_steps"].sum()), float(tasks["train_seconds"].sum())


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _comparisons(
    labels: Sequence[str],
    board: Floats,
    own: pl.DataFrame,
    bootstrap: StratifiedBootstrap,
    replicates: Mapping[str, Floats],
) -> list[Comparison]:
    """Every pair of agents, better first; ``board`` holds their scores, shape (A, runs)."""
    pairs = list(combinations(range(len(labels)), 2))
    if not pairs:
        return []
    first, second = np.array(pairs).T
    sizes = list(_seeds_of(own).values())
    chances = bootstrap.improvement(board[first], board[second])
    means = interquartile_mean(board)
    return [
        Comparison(
            labels[i],
            labels[j],
            bootstrap.interval(
                float(means[i] - means[j]), replicates[labels[i]] - replicates[labels[j]]
            ),
            bootstrap.interval(improvement(board[i], board[j], sizes), chance),
        )
        for (i, j), chance in zip(pairs, chances, strict=True)
    ]


def _profiles(
    labels: Sequence[str], board: Floats, bootstrap: StratifiedBootstrap
) -> dict[str, Profile]:
    shares = (board[:, None, :] > PROFILE_THRESHOLDS[:, None]).mean(axis=-1)
    low, high = bootstrap.limits(bootstrap.profile(board, PROFILE_THRESHOLDS))
    return {label: Profile(*parts) for label, *parts in zip(labels, shares, low, high, strict=True)}


def _tags(
    labels: Sequence[str],
    board: Floats,
    headline: Mapping[str, TaskBoard],
    bootstrap: StratifiedBootstrap,
) -> dict[str, dict[str, Interval]]:
    """Interquartile means over the tasks of each tag that some tasks have and others lack."""
    found = dict.fromkeys(tag for task in headline.values() for tag in task.task["tags"])
    result = {}
    for tag in found:
        names = [name for name, task in headline.items() if tag in task.task["tags"]]
        if len(names) < len(headline):
            part, runs = bootstrap.select(names)
            own = board[:, runs]
            result[tag] = {
                label: part.interval(float(value), sample)
                for label, value, sample in zip(
                    labels, interquartile_mean(own), part.iqm(own), strict=True
                )
            }
    return result


# --- sweeps ---------------------------------------------------------------------------------------

_SWEPT = {"horizon": ("num_stages",), "num_stages": (), "max_deployed": ()}
"""Parameter of a sweep -> arguments that may change with it."""


def _sweeps(boards: Sequence[TaskBoard], cells: Sequence[Record]) -> Iterator[Sweep]:
    """Find deployment tasks, three or more, that differ in one parameter only."""
    for axis, following in _SWEPT.items():
        groups: dict[str, list[TaskBoard]] = {}
        for board in boards:
            arguments = {**board.task["kwargs"], "horizon": board.task["horizon"]}
            if board.kind is DEPLOYMENT and arguments.pop(axis, None) is not None:
                for name in following:
                    arguments.pop(name, None)
                groups.setdefault(canonical([board.task["env"], arguments]), []).append(board)
        for group in groups.values():
            values = {(board.task["kwargs"] | board.task)[axis] for board in group}
            if len(group) == len(values) >= 3:  # else something that follows the axis differs
                sweep = _sweep(axis, group, cells)
                if sweep.regret:  # some agent has been run at every value
                    yield sweep


def _sweep(axis: str, boards: Sequence[TaskBoard], cells: Sequence[Record]) -> Sweep:
    """Line up the cells of a group of tasks."""
    place = {board.task["name"]: board.task["kwargs"] | board.task for board in boards}
    names = sorted(place, key=lambda name: float(place[name][axis]))
    found: dict[str, dict[tuple[int, str], Record]] = {}
    for cell in cells:
        spec = cell["spec"]
        if spec["task"]["name"] in place:
            own = found.setdefault(spec["agent"]["label"], {})
            own[spec["seed"], spec["task"]["name"]] = cell["metrics"]
    regret, ledger = {}, {}
    for label, own in found.items():
        seeds = sorted({seed for seed, _ in own})
        seeds = [seed for seed in seeds if all((seed, name) in own for name in names)]
        if seeds:
            regret[label], ledger[label] = (
                np.array([[own[seed, name][metric] for name in names] for seed in seeds])
                for metric in ("mean_regret", "ledger")
            )
    values = np.array([float(place[name][axis]) for name in names])
    exponents = (
        {label: power_exponent(values, final, axis) for label, final in regret.items()}
        if axis == "horizon"
        else {}
    )
    prefix = os.path.commonprefix(names).rpartition("-")[0]  # noqa: RUF071 - names, not paths
    return Sweep(axis, prefix or names[0], values, regret, ledger, exponents)


# --- rule 8: nobody beats the oracle --------------------------------------------------------------


class Gap(NamedTuple):
    """An agent's paired gap in h to the oracle on a task, over seeds; negative is better."""

    words: str
    single: Interval  # at LEVEL
    corrected: Interval
    level: float  # of the corrected interval


def violations(table: pl.DataFrame, kind: Kind) -> list[str]:
    """Agents that cannot have played fair, or truths that cannot be right.

    Two checks. Across seeds: the paired interval of h(agent) - h(oracle) lies below 0; the level is
    Bonferroni-corrected for all comparisons of the table, so that a run of hundreds of them does
    not fail by chance. A single run may well be luckier than the oracle's on the same seed, so no
    seed is judged by its h. Within a run: departures (or the total reward) are further from the
    sum of the departure rates (or mean rewards) that were chosen than ``LUCK_LIMIT`` allows
    (`benchmarks.queueing.luck`); only knowing the outcome draws, or a wrong truth, does that.
    """
    found = [
        f"task {row['task']}: {row['agent']} (seed {row['seed']}) had {kind.luck_name} that its "
        f"choices do not explain (luck {row['luck']:+.1f}, beyond {LUCK_LIMIT:g}: p < 1e-8); it "
        "knows the outcome draws, or the environment's truth is wrong"
        for row in table.filter(pl.col("luck").abs() > LUCK_LIMIT).iter_rows(named=True)
    ]
    return found + [
        f"{gap.words} beats the oracle: {_gap_words(gap.corrected, gap.level, kind)}"
        for gap in _gaps(table)
        if gap.corrected.high < 0
    ]


def warnings(table: pl.DataFrame, kind: Kind) -> list[str]:
    """Agents above the oracle by the interval of their comparison alone, but by no violation.

    Of fair policies as good as the oracle, one in forty is.
    """
    return [
        f"{gap.words} is above the oracle: {_gap_words(gap.single, LEVEL, kind)}; not at the "
        f"{_percent(gap.level)} that allows for all comparisons"
        for gap in _gaps(table)
        if gap.single.high < 0 <= gap.corrected.high
    ]


def _gaps(table: pl.DataFrame) -> Iterator[Gap]:
    judged = table.filter(~pl.col("agent").is_in(REFERENCES) & pl.col("h_oracle").is_not_null())
    groups = list(judged.group_by(["task", "agent"], maintain_order=True))
    level = 1 - (1 - LEVEL) / max(1, len(groups))
    for (task, agent), part in groups:
        gaps = (part["h"] - part["h_oracle"]).to_numpy()
        words = f"task {task}: {agent} ({part.height} seeds)"
        yield Gap(words, t_interval(gaps), t_interval(gaps, level), level)


def _gap_words(gap: Interval, level: float, kind: Kind) -> str:
    return (
        f"paired gap in {kind.h_name} {gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] "
        f"({_percent(level)} interval)"
    )


def _percent(level: float) -> str:
    """Write a level with two digits of what is missing to 100%: 95%, 99.983%."""
    return f"{100 * level:.{max(0, 1 - floor(log10(100 * (1 - level))))}f}".removesuffix(".0") + "%"
