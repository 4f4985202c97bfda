"""From stored cells to a board: scores, intervals, exponents, ranks and the checks on them.

Every comparison is paired by seed: an agent, the oracle and random share instance and draws.
Each kind of task and each protocol has a board of its own; `benchmarks.kinds` says what differs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from benchmarks.intervals import (
    LEVEL,
    Floats,
    Interval,
    bootstrap_iqm,
    interquartile_mean,
    percentile_interval,
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
from benchmarks.store import CorruptResultError, Store
from benchmarks.suite import PROTOCOLS, REFERENCES, canonical, kind_of, spec_key

Record = Mapping[str, Any]

LUCK_LIMIT = 6.0
"""Standard deviations of ``luck`` that no policy ignorant of the draws reaches (p < 1e-8)."""


class Section(NamedTuple):
    """What shares tables: tasks of one kind, agents of one protocol (and the references)."""

    kind: Kind
    protocol: str


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
    score : Interval or None
        Mean normalised score over seeds.
    figures : tuple of Figure
        In the order of the board's columns.
    """

    agent: str
    rank: int | None
    seeds: int
    score: Interval | None
    figures: tuple[Figure, ...]


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
        False if the score intervals of all learning agents overlap.
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

    An agent with missing cells has no rank.
    """

    section: Section
    agent: str
    rank: int | None
    score: Interval | None
    cells: int
    expected: int


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
    overall: list[OverallRow]
    tasks: list[TaskBoard]
    sweeps: list[Sweep]
    failures: list[tuple[str, Record]]
    missing: list[str]
    skipped: Mapping[str, str]
    violations: list[str]
    provenance: Mapping[str, Any]
    cells: list[Record] = field(repr=False)

    @property
    def sections(self) -> list[Section]:
        """Kinds and protocols that have tasks, each once."""
        return list(dict.fromkeys(task.section for task in self.tasks))


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
    overall: list[OverallRow] = []
    tasks: list[TaskBoard] = []
    sweeps: list[Sweep] = []
    broken: list[str] = []
    for kind in KINDS.values():
        own = [c for c in cells if kind_of(c["spec"]["task"]["env"]) == kind.name]
        broken += violations(tidy(own, kind), kind)
        for protocol in PROTOCOLS:
            section = Section(kind, protocol)
            specs = _specs_of(section, run["cells"])
            keys = {spec_key(spec) for spec in specs}
            played = [c for c in own if spec_key(c["spec"]) in keys]
            table = tidy(played, kind)
            boards = list(_task_boards(specs, table, played, section))
            headline = [b for b in boards if b.separates and b.task["headline"]]
            names = [b.task["name"] for b in headline]
            labels = list(dict.fromkeys(spec["agent"]["label"] for spec in specs))
            expected = sum(b.seeds for b in headline)
            part = table.filter(pl.col("task").is_in(names))
            overall += _overall(section, part, labels, expected)
            tasks += boards
            if protocol == "online":
                sweeps += _sweeps(boards, played)
    return Board(
        suite=run["suite"],
        overall=overall,
        tasks=tasks,
        sweeps=sweeps,
        failures=failures,
        missing=missing,
        skipped=run["skipped"],
        violations=broken,
        provenance=run["provenance"],
        cells=cells,
    )


def _specs_of(section: Section, specs: Sequence[Record]) -> list[Record]:
    """Planned cells of a section.

    The references of a task stand beside the agents of either protocol; where nobody else was
    planned, they are shown as ``online``.
    """
    own = [s for s in specs if kind_of(s["task"]["env"]) == section.kind.name]
    protocols: dict[str, set[str]] = {}
    for spec in own:
        found = protocols.setdefault(spec["task"]["name"], set())
        if spec["agent"]["label"] not in REFERENCES:
            found.add(spec["protocol"])
    here = {
        task for task, found in protocols.items() if section.protocol in (found or {PROTOCOLS[0]})
    }
    return [
        spec
        for spec in own
        if spec["task"]["name"] in here
        and (spec["agent"]["label"] in REFERENCES or spec["protocol"] == section.protocol)
    ]


def tidy(cells: Sequence[Record], kind: Kind) -> pl.DataFrame:
    """One row a cell: task, agent, seed, metrics, training, and what the coupled references did.

    ``h_oracle`` and ``h_random`` are null where the reference of that seed is missing; ``score``
    is null where the two references tie.
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
            **{name: cell["metrics"][name] for name in kind.metrics},
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
    return table.with_columns(score).sort("task", "agent", "seed")


def _task_boards(
    specs: Sequence[Record], table: pl.DataFrame, cells: Sequence[Record], section: Section
) -> Iterator[TaskBoard]:
    """Score every task of a section, in the order of the plan."""
    planned = {spec["task"]["name"]: spec["task"] for spec in specs}
    for name, task in planned.items():
        seeds = len({spec["seed"] for spec in specs if spec["task"]["name"] == name})
        own = [cell for cell in cells if cell["spec"]["task"]["name"] == name]
        yield _task_board(task, table.filter(pl.col("task") == name), own, seeds, section)


def _task_board(
    task: Mapping[str, Any],
    table: pl.DataFrame,
    cells: Sequence[Record],
    seeds: int,
    section: Section,
) -> TaskBoard:
    """Score one task."""
    board = TaskBoard(task, section, [], False, _curves(cells), _traffic(cells), "", seeds)
    curves, traffic = board.curves, board.traffic
    labels = table["agent"].unique(maintain_order=True).to_list()
    learning = [label for label in labels if label not in REFERENCES]
    scores = {label: _by_seed(table, label, "score") for label in labels}
    ranks = {
        label: 1 + sum(_better(scores[other], scores[label]) for other in learning)
        for label in learning
        if scores[label]
    }
    ordered = []
    for label in labels:
        own = table.filter((pl.col("agent") == label) & pl.col("h_oracle").is_not_null())
        if own.height:
            evidence = Evidence(
                task["name"],
                own,
                curves[label],
                curves.get("oracle"),
                traffic.get(label, {}),
                traffic.get("oracle", {}),
            )
            row = _task_row(label, ranks.get(label), evidence, board.columns)
            key = (-row.score.value if row.score else np.inf, float(own["h"].to_numpy().mean()))
            ordered.append((key, row))
    rows = [row for _, row in sorted(ordered, key=lambda pair: pair[0])]
    intervals = [r.score for r in rows if r.score is not None and r.agent in learning]
    about = section.kind.about(table) if table.height else ""
    return replace(board, rows=rows, separates=_separates(intervals), about=about)


def _task_row(
    label: str, rank: int | None, evidence: Evidence, columns: Sequence[Column]
) -> TaskRow:
    scores = evidence.table["score"].drop_nulls().to_numpy()
    return TaskRow(
        agent=label,
        rank=rank,
        seeds=evidence.table.height,
        score=t_interval(scores) if scores.size else None,
        figures=tuple(column.figure(evidence) for column in columns),
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


def _overall(
    section: Section, table: pl.DataFrame, labels: Sequence[str], expected: int
) -> list[OverallRow]:
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
        rows.append(OverallRow(section, label, None, score, own.height, expected))
    ranked = []
    for row in rows:
        rank = None
        if row.agent in replicates:
            mine = replicates[row.agent]
            tail = (1 - LEVEL) / 2
            rank = 1 + sum(bool(np.quantile(r - mine, tail) > 0) for r in replicates.values())
        ranked.append(replace(row, rank=rank))
    return sorted(
        ranked,
        key=lambda r: (r.cells < r.expected, -r.score.value if r.score else np.inf, r.agent),
    )


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
                yield _sweep(axis, group, cells)


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


def violations(table: pl.DataFrame, kind: Kind) -> list[str]:
    """Agents that cannot have played fair, or truths that cannot be right.

    Two checks. Across seeds: the paired interval of h(agent) - h(oracle) lies below 0; the level is
    Bonferroni-corrected for all comparisons of the table, so that a run of hundreds of them does
    not fail by chance. A single run may well be luckier than the oracle's on the same seed, so no
    seed is judged by its h. Within a run: departures (or the total reward) are more than
    ``LUCK_LIMIT`` standard deviations from the sum of the departure rates (or mean rewards) that
    were chosen; only knowing the outcome draws, or a wrong truth, does that.
    """
    found = [
        f"task {row['task']}: {row['agent']} (seed {row['seed']}) had {kind.luck_name} "
        f"{row['luck']:+.1f} standard deviations from what its choices promise; "
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
                f"task {task}: {agent} beats the oracle: paired gap in {kind.h_name} "
                f"{gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] over {part.height} seeds "
                f"({level:.2%} interval)"
            )
    return found
