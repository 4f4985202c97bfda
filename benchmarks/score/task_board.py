"""A task's board: its rows under one protocol, ranked, and whether it separates the agents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from benchmarks.plan.suite import is_ranked, spec_key
from benchmarks.problems.kind import (
    CONTEXTS,
    TRAINING,
    TRAININGS,
    Column,
    Curves,
    Evidence,
    Figure,
    Fleet,
    Kind,
    Spent,
    Traffic,
)
from benchmarks.score.intervals import Interval, competition_ranks, separated_pair, t_interval

Record = Mapping[str, Any]

INSTALLED = "installed package"
"""Stands for the commit of code that was not run from a checkout."""


RETIRED_FROM = 0.95
"""Least lower end of the best score's interval where a task retires: what may be left is a
twentieth. A wider interval reaches 1 because little is known."""


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
            return tuple(sorted({record[name] or INSTALLED for record in found}))

        return cls(
            commands=distinct("command"),
            versions=distinct("version"),
            commits=distinct("commit"),
            pythons=distinct("python"),
            numpys=distinct("numpy"),
            machines=distinct("machine"),
            seeds=tuple(sorted({cell["spec"]["seed"] for cell in cells})),
            wall_seconds=sum(cell["timing"]["wall_seconds"] for cell in cells),
            keys=tuple(cell.get("key") or spec_key(cell["spec"]) for cell in cells),
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
        (`benchmarks.score.intervals.competition_ranks`); 1 for all if the task separates nothing.
        None for references, and for agents without a score on each seed: a mean over the others
        would be one over seeds that may have been chosen by their outcome.
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
        Whether the paired interval of some two learning agents leaves out 0, corrected for the
        number of pairs (`benchmarks.score.intervals.separated_pair`); False if there are no scores.
        Agents without a score on each seed count only where nobody has one.
    seeds_needed : int or None
        Of a task that does not: about how many seeds it would take; None if that is unknown.
    inverted : tuple of int
        Seeds on which random did no worse than the oracle; if there are any, no agent has a score.
    curves : dict[str, Curves]
        Per agent.
    traffic : dict[str, dict[int, Traffic]]
        Per agent and seed; empty where the problem records none.
    fleets : dict[str, Fleet]
        Per agent, of its lowest seed; empty where the problem records none.
    spent : dict[str, Spent]
        Per agent; empty where the problem records none.
    about : str
        Words about the instances.
    seeds : int
        Seeds planned.
    controlled : bool
        Whether agents also play it with shuffled contexts.
    retrained : bool
        Whether some agent was trained more than once for it.
    """

    task: Mapping[str, Any]
    section: Section
    rows: list[TaskRow]
    separates: bool
    seeds_needed: int | None
    inverted: tuple[int, ...]
    curves: dict[str, Curves]
    traffic: dict[str, dict[int, Traffic]]
    fleets: dict[str, Fleet]
    spent: dict[str, Spent]
    about: str
    seeds: int
    controlled: bool = False
    retrained: bool = False

    @property
    def kind(self) -> Kind:
        """Kind of the task."""
        return self.section.kind

    @property
    def retired(self) -> bool:
        """Whether nothing is left to win: the best ranked score reaches 1, and not by its width."""
        ranked = (row.score for row in self.rows if row.rank is not None and row.score)
        best = max(ranked, default=None)
        return best is not None and bool(best.low >= RETIRED_FROM and best.high >= 1.0)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The kind's, what contexts are worth if that is known, and what a training cost."""
        columns = self.kind.columns + (CONTEXTS if self.controlled else ())
        columns += TRAININGS if self.retrained else ()
        return columns + (TRAINING if self.section.protocol == "pretrained" else ())


def task_boards(
    specs: Sequence[Record], table: pl.DataFrame, cells: Sequence[Record], section: Section
) -> Iterator[TaskBoard]:
    """Score every task of a section, in the order of the plan.

    A copy with shuffled contexts is a column of its task and no board, unless it is run alone.
    """
    planned = {spec["task"]["name"]: spec["task"] for spec in specs}
    seeds: dict[str, set[int]] = {name: set() for name in planned}
    own: dict[str, list[Record]] = {name: [] for name in planned}
    for spec in specs:
        seeds[spec["task"]["name"]].add(spec["seed"])
    for cell in cells:
        own[cell["spec"]["task"]["name"]].append(cell)
    parts = table.partition_by("task", as_dict=True)
    controlled = {task.get("control_of") for task in planned.values()}
    for name, task in planned.items():
        if task.get("control_of") not in planned:
            part = parts.get((name,), table.clear())
            count = len(seeds[name])
            yield _task_board(task, part, own[name], count, section, name in controlled)


def _task_board(
    task: Mapping[str, Any],
    table: pl.DataFrame,
    cells: Sequence[Record],
    seeds: int,
    section: Section,
    controlled: bool,
) -> TaskBoard:
    """Score one task."""
    curves, traffic = _curves(cells), _traffic(cells)
    inverted = tuple(table.filter(pl.col("inverted"))["seed"].unique().sort().to_list())
    drawn = curves, traffic, _fleets(cells), _spent(cells)
    blocks: dict[int, int] = dict(table.select("seed", "block").iter_rows())
    several = len(set(blocks.values())) < len(blocks)
    board = TaskBoard(
        task, section, [], False, None, inverted, *drawn, "", seeds, controlled, several
    )
    beside = table.filter(pl.col("h_oracle").is_not_null())
    parts = {
        str(label): own for (label,), own in beside.partition_by("agent", as_dict=True).items()
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
    scored = [row.agent for row in rows if row.score and is_ranked(row.agent)]
    ranked = [label for label in scored if len(scores[label]) == seeds]
    separates, needed = separated_pair([scores[label] for label in ranked or scored], blocks)

    def better(i: int, j: int) -> bool:
        return separates and _better(scores[ranked[i]], scores[ranked[j]], blocks)

    ranks = competition_ranks(len(ranked), better)
    rank_of = dict(zip(ranked, ranks, strict=True))
    rows = [replace(row, rank=rank_of.get(row.agent)) for row in rows]
    about = section.kind.about(table) if table.height else ""
    return replace(board, rows=rows, separates=separates, seeds_needed=needed, about=about)


def _task_row(label: str, evidence: Evidence, columns: Sequence[Column], origin: Origin) -> TaskRow:
    table = evidence.table
    own = table.drop_nulls("score") if table["score"].null_count() else table
    return TaskRow(
        agent=label,
        rank=None,
        seeds=table.height,
        score=t_interval(own["score"].to_numpy(), blocks=own["block"]) if own.height else None,
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
    """Traffic of a task by agent and seed; empty where the problem records none."""
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


def _fleets(cells: Sequence[Record]) -> dict[str, Fleet]:
    """Return what the fleet did in the first run of each agent."""
    fleets = {}
    for label, (cell, *_) in _by_agent(cells).items():
        if (found := cell.get("fleet")) is not None:
            fleets[label] = Fleet(
                cell["spec"]["seed"],
                tuple(found["replicas"]),
                tuple(found["llms"]),
                np.array(found["edges"], dtype=np.int64),
                np.array(found["hosts"], dtype=np.int64),
                np.array(found["load"], dtype=np.float64),
                {name: np.array(values) for name, values in found["people"].items()},
            )
    return fleets


def _spent(cells: Sequence[Record]) -> dict[str, Spent]:
    """Return where each agent's users spent their time."""
    spent = {}
    for label, group in _by_agent(cells).items():
        if found := [cell["spent"] for cell in group if "spent" in cell]:
            slots = np.array([one["slots"] for one in found], dtype=np.float64)
            spent[label] = Spent(tuple(found[0]["places"]), tuple(found[0]["groups"]), slots)
    return spent


def _by_seed(own: pl.DataFrame) -> dict[int, float]:
    """Scores of an agent by seed."""
    seeds, scores = own["seed"].to_list(), own["score"].to_list()
    return {seed: score for seed, score in zip(seeds, scores, strict=True) if score is not None}


def _better(
    first: Mapping[int, float], second: Mapping[int, float], blocks: Mapping[int, int]
) -> bool:
    """Whether the first agent's paired difference lies above 0 with its whole interval."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return False
    gaps = [first[seed] - second[seed] for seed in common]
    return t_interval(gaps, blocks=[blocks[seed] for seed in common]).low > 0
