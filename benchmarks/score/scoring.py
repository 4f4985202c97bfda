"""From stored cells to a board: the scoring of a run.

Every comparison is paired by seed: an agent, the oracle and random share instance and draws.
Each problem and each protocol has a board of its own; `benchmarks.problems` says what differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import polars as pl

from benchmarks.plan.suite import PROTOCOLS, REFERENCES, YARDSTICK, canonical, spec_key
from benchmarks.problems import PROBLEMS, problem_of
from benchmarks.problems.kind import Kind, Sweeps, Traffic, is_stuck
from benchmarks.run.store import CorruptResultError
from benchmarks.score.fairness import violations, warnings
from benchmarks.score.intervals import Floats, Interval, power_exponent
from benchmarks.score.standing import OverallRow, Standing, make_standing
from benchmarks.score.task_board import Record, Section, TaskBoard, task_boards


class Results(Protocol):
    """Where results come from: a store, or an exported run (`benchmarks.score.export`)."""

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


@dataclass(frozen=True)
class Sweep:
    """Tasks that differ in one parameter only.

    Attributes
    ----------
    section : Section
    axis, across, note : str
        The parameter, words for it, and how to read the table (`benchmarks.problems.kind.Sweeps`).
    name : str
        What the names of its tasks begin with.
    values : ndarray, shape (L,)
        The parameter, increasing.
    regret, ledger : dict of ndarray, shape (seeds, L)
        Per agent that has all cells: regret of the true means at the end, ledger score per query.
    exponents : dict of Interval or None
        Per agent, of a horizon sweep: exponent of the final regret in T; None if not positive.
    stuck : dict of ndarray, shape (seeds, L)
        Per agent, of a horizon sweep: 1 where a run is stuck (`benchmarks.problems.kind`).
    """

    section: Section
    axis: str
    across: str
    note: str
    name: str
    values: Floats
    regret: dict[str, Floats]
    ledger: dict[str, Floats]
    exponents: dict[str, Interval | None]
    stuck: dict[str, Floats]


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
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # files, by task

    @property
    def sections(self) -> list[Section]:
        """Kinds and protocols that have tasks, each once."""
        return list(dict.fromkeys(task.section for task in self.tasks))

    def tasks_of(self, section: Section) -> list[TaskBoard]:
        """Tasks of a section."""
        return [task for task in self.tasks if task.section == section]

    def sweeps_of(self, section: Section) -> list[Sweep]:
        """Sweeps of a section."""
        return [sweep for sweep in self.sweeps if sweep.section == section]

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
            cells.append({**_compact(record, spec, origins), "key": key})
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
    for problem in PROBLEMS.values():
        planned = [s for s in run["cells"] if problem_of(s["task"]["env"]) is problem]
        own = [c for c in cells if problem_of(c["spec"]["task"]["env"]) is problem]
        if not planned:
            continue
        kind = problem.kind
        checked = tidy(own, kind)
        broken += violations(checked, kind)
        doubtful += warnings(checked, kind)
        for protocol in PROTOCOLS:
            section = Section(kind, protocol)
            shown = _shown_in(protocol, planned)
            specs = [spec for spec in planned if shown(spec)]
            played = [cell for cell in own if shown(cell["spec"])]
            table = tidy(played, kind)
            boards = list(task_boards(specs, table, played, section))
            if boards:
                standings.append(make_standing(section, boards, specs, table, played))
            tasks += boards
            if protocol == "online" and kind.sweeps is not None:
                sweeps += _sweeps(boards, played, section, kind.sweeps)
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
        data=run.get("data", {}),
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
    ``NAME_known`` is a reference metric of the yardstick that plays the same rule with the truth.
    ``score_shuffled`` is that of the same seed on the task's copy with shuffled contexts, if any.
    ``block`` is the same on seeds that share a training (`seed_blocks`).
    """
    schema = {
        "task": pl.String,
        "agent": pl.String,
        "seed": pl.Int64,
        "block": pl.Int64,
        "decision_us": pl.Float64,
        "training": pl.String,
        "train_steps": pl.Float64,
        "train_seconds": pl.Float64,
    }
    blocks = seed_blocks(cells)
    rows = [
        {
            "task": cell["spec"]["task"]["name"],
            "agent": cell["spec"]["agent"]["label"],
            "seed": cell["spec"]["seed"],
            "block": blocks[cell["spec"]["task"]["name"], cell["spec"]["seed"]],
            "training": cell["spec"]["agent"].get("training", {}).get("sha256"),
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
    table = _with_twins(table, kind)
    # In NumPy: Polars divides by multiplying with the reciprocal, which makes 1 - 1e-16 of 1.
    h, low, high = (table[name].to_numpy() for name in ("h", "h_oracle", "h_random"))
    span = np.where(high - low > 0, high - low, np.nan)
    score = pl.Series("score", (high - h) / span, dtype=pl.Float64).fill_nan(None)
    inverted = pl.col("h_random") <= pl.col("h_oracle")
    table = table.with_columns(score, inverted.fill_null(value=False).alias("inverted"))
    fair = pl.when(~pl.col("inverted").any().over("task")).then(pl.col("score"))
    table = table.with_columns(score=fair)
    copies = {c["spec"]["task"]["name"]: c["spec"]["task"].get("control_of") for c in cells}
    shuffled = table.select(
        pl.col("task").replace_strict(copies, default=None, return_dtype=pl.String),
        "agent",
        "seed",
        pl.col("score").alias("score_shuffled"),
    ).drop_nulls("task")
    table = table.join(shuffled, on=["task", "agent", "seed"], how="left")
    return table.sort("task", "agent", "seed")


def tables(cells: Sequence[Record]) -> Iterator[pl.DataFrame]:
    """Yield the rows (`tidy`) of each problem's cells, if it has any."""
    for problem in PROBLEMS.values():
        own = [cell for cell in cells if problem_of(cell["spec"]["task"]["env"]) is problem]
        if own:
            yield tidy(own, problem.kind)


def seed_blocks(cells: Iterable[Record]) -> dict[tuple[str, int], int]:
    """Return the block of every (task, seed), named by its lowest seed.

    Of an agent with several trainings each plays some of the seeds; those are a block, and runs of
    different blocks are independent. An agent with one training, or none, makes no blocks: how
    another training would differ is then unknown. Blocks that overlap are one.
    """
    played: dict[str, dict[str, dict[str | None, set[int]]]] = {}
    for spec in (cell["spec"] for cell in cells):
        own = played.setdefault(spec["task"]["name"], {}).setdefault(spec["agent"]["label"], {})
        own.setdefault(spec["agent"].get("training", {}).get("sha256"), set()).add(spec["seed"])
    found: dict[tuple[str, int], int] = {}
    for task, agents in played.items():
        block = {seed: seed for own in agents.values() for seeds in own.values() for seed in seeds}
        for seeds in (s for own in agents.values() if len(own) > 1 for s in own.values()):
            joined = {block[seed] for seed in seeds}
            block |= {seed: min(joined) for seed, name in block.items() if name in joined}
        found |= {(task, seed): name for seed, name in block.items()}
    return found


def _with_twins(table: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    """Add what the same agent did that is told the truth, ``NAME_known``."""
    columns = [pl.col(column).alias(f"{column}_known") for column in kind.reference]
    twins = table.select("task", "seed", pl.col("agent").alias("twin"), *columns)
    table = table.with_columns((YARDSTICK + pl.col("agent")).alias("twin"))
    return table.join(twins, on=["task", "seed", "twin"], how="left").drop("twin")


# --- sweeps ---------------------------------------------------------------------------------------


def _sweeps(
    boards: Sequence[TaskBoard], cells: Sequence[Record], section: Section, swept: Sweeps
) -> Iterator[Sweep]:
    """Find tasks, three or more, that differ in one parameter only."""
    for axis in swept.axes:
        groups: dict[str, list[TaskBoard]] = {}
        for board in boards:
            arguments = {**board.task["kwargs"], "horizon": board.task["horizon"]}
            if arguments.pop(axis, None) is not None:
                for name in swept.following.get(axis, ()):
                    arguments.pop(name, None)
                groups.setdefault(canonical([board.task["env"], arguments]), []).append(board)
        for group in groups.values():
            values = {(board.task["kwargs"] | board.task)[axis] for board in group}
            if len(group) == len(values) >= 3:  # else something that follows the axis differs
                sweep = _sweep(axis, group, cells, section, swept)
                if sweep.regret:  # some agent has been run at every value
                    yield sweep


def _sweep(
    axis: str,
    boards: Sequence[TaskBoard],
    cells: Sequence[Record],
    section: Section,
    swept: Sweeps,
) -> Sweep:
    """Line up the cells of a group of tasks."""
    place = {board.task["name"]: board.task["kwargs"] | board.task for board in boards}
    names = sorted(place, key=lambda name: float(place[name][axis]))
    found: dict[str, dict[tuple[int, str], Record]] = {}
    for cell in cells:
        spec = cell["spec"]
        if spec["task"]["name"] in place:
            own = found.setdefault(spec["agent"]["label"], {})
            own[spec["seed"], spec["task"]["name"]] = cell["metrics"]
    regret, ledger, stuck = {}, {}, {}
    traffic = {board.task["name"]: board.traffic for board in boards}
    for label, own in found.items():
        seeds = sorted({seed for seed, _ in own})
        seeds = [seed for seed in seeds if all((seed, name) in own for name in names)]
        if seeds:
            regret[label], ledger[label] = (
                np.array([[own[seed, name][metric] for name in names] for seed in seeds])
                for metric in (swept.regret, swept.earned)
            )
            ends = [[_stuck(traffic[name], label, seed) for name in names] for seed in seeds]
            if axis == "horizon" and not any(None in row for row in ends):
                stuck[label] = np.array(ends, dtype=np.float64)
    values = np.array([float(place[name][axis]) for name in names])
    exponents = (
        {label: power_exponent(values, final, axis) for label, final in regret.items()}
        if axis == "horizon"
        else {}
    )
    prefix = os.path.commonprefix(names).rpartition("-")[0]  # noqa: RUF071 - names, not paths
    return Sweep(
        section,
        axis,
        swept.axes[axis],
        swept.note,
        prefix or names[0],
        values,
        regret,
        ledger,
        exponents,
        stuck,
    )


def _stuck(traffic: Mapping[str, Mapping[int, Traffic]], label: str, seed: int) -> bool | None:
    """Whether a run of a task ended on worse LLMs than the oracle's; None without the oracle's."""
    oracle = traffic.get("oracle", {}).get(seed)
    return None if oracle is None else is_stuck(traffic[label][seed], oracle)
