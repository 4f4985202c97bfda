"""``llmqueue-bench compare A B``: two results, or two agents of one, paired seed by seed.

Two results are matched by task, agent, seed and protocol, whatever version and code computed them.
Two agents are matched by task and seed: their pairs may cross protocols, since the question is what
one ingredient changes. Differences are second - first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.plan.suite import REFERENCES, spec_key
from benchmarks.problems import problem_of
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score.export import ExportedRun, open_results, result_digest, rounded
from benchmarks.score.intervals import Interval, t_interval
from benchmarks.score.scoring import seed_blocks, tables
from benchmarks.terminal import add_row, print_json, say, show_table
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]

_SHOWN = 20  # cells of one side only that are named


class Match(NamedTuple):
    """What a cell is matched by; agents that are compared have no name and no protocol here."""

    task: str
    agent: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} / {self.agent} / seed {self.seed}"


@dataclass(frozen=True)
class Side:
    """The results of one side, and whether they were rounded when they were exported."""

    name: str
    cells: Mapping[Match, Record]
    exported: bool


@dataclass(frozen=True)
class Paired:
    """A figure on the cells that both sides have: means, and ``second - first`` by seed."""

    first: float
    second: float
    difference: Interval

    def as_json(self) -> dict[str, Any]:
        """Return plain values; an interval without a bound has null there."""
        difference = self.difference.as_json()
        return {"first": self.first, "second": self.second, "difference": difference}


@dataclass(frozen=True)
class Change:
    """An agent on a task, or two agents on it: what both sides have.

    Attributes
    ----------
    task, agent, protocol : str
        What was matched.
    seeds : list[int]
        Seeds that both sides have.
    changed : int
        How many of them have another result.
    figures : dict[str, Paired]
        ``score`` where both sides have the references, and the metrics of the kind of task: means
        under both, and the interval (Student's t, 95%) of the paired difference.
    notes : tuple[str, ...]
        What else differs: the task's definition, its data, the agent's settings, versions.
    """

    task: str
    agent: str
    protocol: str
    seeds: list[int]
    changed: int
    figures: dict[str, Paired]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """Everything a comparison shows."""

    first: str
    second: str
    rows: list[Change]
    only_first: list[Match]
    only_second: list[Match]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        rows = [
            {
                "task": row.task,
                "agent": row.agent,
                "protocol": row.protocol,
                "cells": len(row.seeds),
                "changed": row.changed,
                "figures": {name: pair.as_json() for name, pair in row.figures.items()},
                "notes": row.notes,
            }
            for row in self.rows
        ]
        return {
            "first": self.first,
            "second": self.second,
            "cells": sum(len(row.seeds) for row in self.rows),
            "changed": sum(row.changed for row in self.rows),
            "rows": rows,
            "only_first": [match._asdict() for match in self.only_first],
            "only_second": [match._asdict() for match in self.only_second],
        }


# --- the two sides --------------------------------------------------------------------------------


def is_results(name: str) -> bool:
    """Whether a name is that of results: a folder, a URL, an export, or ``FOLDER@VERSION``."""
    return "://" in name or Path(name).exists() or Path(name.rpartition("@")[0] or name).is_dir()


def load_side(name: str) -> Side:
    """Read the results a name stands for.

    ``FOLDER`` is its last run. ``FOLDER@X`` is every cell in the folder, of earlier runs too, whose
    package version is X, or whose code hash or git commit begins with X.

    Raises
    ------
    UsageError
        If nothing is there, or X does not say which of two results of a cell is meant.
    """
    folder, mark, version = name.rpartition("@")
    if mark and "://" not in version and not Path(name).exists():
        store: Store | ExportedRun = Store(folder)
        found = [r for r in _records(store, sorted(Store(folder).keys())) if _is_of(r, version)]
    else:
        store = open_results(name)
        found = list(_records(store, [spec_key(spec) for spec in store.load_run()["cells"]]))
    cells: dict[Match, Record] = {}
    for record in found:
        spec = record["spec"]
        match = Match(spec["task"]["name"], spec["agent"]["label"], spec["protocol"], spec["seed"])
        if match in cells:
            raise UsageError(
                f"{name} holds two results of {match}: name one by a code hash or commit, as in "
                f"FOLDER@{spec['code'][:8]}"
            )
        cells[match] = record
    if not cells:
        raise UsageError(f"there is no result in {name}")
    return Side(name, cells, isinstance(store, ExportedRun))


def agent_side(store: Store | ExportedRun, agent: str) -> Side:
    """Read the results of one agent of a run.

    Raises
    ------
    UsageError
        If it has none.
    """
    specs = store.load_run()["cells"]
    own = [spec_key(spec) for spec in specs if spec["agent"]["label"] == agent]
    cells = {
        Match(record["spec"]["task"]["name"], "", "", record["spec"]["seed"]): record
        for record in _records(store, own)
    }
    if not cells:
        known = ", ".join(sorted({spec["agent"]["label"] for spec in specs}))
        raise UsageError(f"agent={agent!r} has no result here; there are {known}")
    return Side(agent, cells, isinstance(store, ExportedRun))


def _records(store: Store | ExportedRun, keys: Iterable[str]) -> Iterator[Record]:
    for _, record in store.load_many(keys):
        if isinstance(record, CorruptResultError):
            raise record
        if record is not None:
            yield record


def _is_of(record: Record, version: str) -> bool:
    spec, commit = record["spec"], record.get("provenance", {}).get("commit") or ""
    return bool(
        spec["version"] == version or spec["code"].startswith(version) or commit.startswith(version)
    )


# --- the comparison -------------------------------------------------------------------------------


def find_changes(first: Side, second: Side) -> Changes:
    """Compare the cells that both sides have."""
    scores = _scores(first), _scores(second)
    groups: dict[tuple[str, str, str], list[Match]] = {}
    for match in sorted(first.cells.keys() & second.cells.keys()):
        groups.setdefault(match[:3], []).append(match)
    same = _equal_metrics if first.exported or second.exported else _equal
    rows = []
    for group, matches in sorted(groups.items()):
        pairs = [(first.cells[match], second.cells[match]) for match in matches]
        kind = problem_of(pairs[0][0]["spec"]["task"]["env"]).kind
        values = {"score": [(scores[0].get(m), scores[1].get(m)) for m in matches]} | {
            name: [(a["metrics"].get(name), b["metrics"].get(name)) for a, b in pairs]
            for name in kind.compared
        }
        blocks = _blocks(pairs)
        figures = {name: found for name in values if (found := _paired(values[name], blocks))}
        changed = sum(not same(a, b) for a, b in pairs)
        seeds, notes = [match.seed for match in matches], tuple(_notes(*pairs[0]))
        rows.append(Change(*group, seeds, changed, figures, notes))
    return Changes(
        first.name,
        second.name,
        rows,
        sorted(first.cells.keys() - second.cells.keys()),
        sorted(second.cells.keys() - first.cells.keys()),
    )


def _blocks(pairs: Sequence[tuple[Record, Record]]) -> list[int]:
    """Blocks of the pairs' seeds, those of the side with fewer: seeds that share a training."""
    sides = []
    for cells in zip(*pairs, strict=True):
        found = {seed: block for (_, seed), block in seed_blocks(cells).items()}
        sides.append([found[cell["spec"]["seed"]] for cell in cells])
    return min(sides, key=lambda blocks: len(set(blocks)))


def _paired(
    pairs: Sequence[tuple[float | None, float | None]], blocks: Sequence[int]
) -> Paired | None:
    """Compare the values of both sides where both have one."""
    known = [(*pair, block) for pair, block in zip(pairs, blocks, strict=True) if None not in pair]
    if not known:
        return None
    first, second, own = np.array(known, dtype=np.float64).T
    gap = t_interval(second - first, blocks=own.astype(np.int64).tolist())
    return Paired(float(first.mean()), float(second.mean()), gap)


def _equal(first: Record, second: Record) -> bool:
    return result_digest(first) == result_digest(second)


def _equal_metrics(first: Record, second: Record) -> bool:
    """Compare the metrics that both have, to the digits that an export keeps."""
    a, b = first["metrics"], second["metrics"]
    return all(rounded(a[name]) == rounded(b[name]) for name in a.keys() & b.keys())


def _scores(side: Side) -> dict[Match, float]:
    """Normalised scores of the cells whose references are there."""
    found = {}
    for protocol in {match.protocol for match in side.cells}:
        own = [
            record
            for match, record in side.cells.items()
            if match.protocol == protocol or match.agent in REFERENCES
        ]
        for table in tables(own):
            for *place, score in table.select("task", "agent", "seed", "score").iter_rows():
                match = Match(place[0], place[1], protocol, place[2])
                if score is not None and match in side.cells:
                    found[match] = score
    return found


_LOOKED_AT: Mapping[str, Callable[[Record], Any]] = {
    "another definition of the task": lambda spec: (
        spec["task"]["env"],
        spec["task"]["kwargs"],
        spec["task"]["horizon"],
    ),
    "other data": lambda spec: spec["workload"],
    "other settings of the agent": lambda spec: (spec["agent"]["name"], spec["agent"]["settings"]),
    "another training": lambda spec: spec["agent"].get("training", {}).get("sha256"),
    "another code of the agent": lambda spec: spec["agent"].get("code"),
}


def _notes(first: Record, second: Record) -> Iterator[str]:
    for words, look in _LOOKED_AT.items():
        if look(first["spec"]) != look(second["spec"]):
            yield words
    if first["spec"]["code"] != second["spec"]["code"]:
        versions = [_version(record) for record in (first, second)]
        yield f"code {versions[0]} -> {versions[1]}"


def _version(record: Record) -> str:
    spec, commit = record["spec"], record.get("provenance", {}).get("commit")
    return f"{spec['version']} ({commit or spec['code'][:8]})"


# --- the command ----------------------------------------------------------------------------------


def show_changes(first: str, second: str, as_json: bool) -> None:
    """Print what changed between two results."""
    from rich.table import Table

    found = find_changes(load_side(first), load_side(second))
    if as_json:
        print_json(found.as_json())
        return
    table = Table("task", "agent", title=f"{first} -> {second}", title_justify="left")
    for column in ("changed", "score", "change of score", "figure", "change of it"):
        table.add_column(column, justify="right")
    table.add_column("why it may differ")
    for row in found.rows:
        score = row.figures.get("score")
        main = next((name for name in row.figures if name != "score"), None)
        add_row(
            table,
            row.task,
            row.agent if row.protocol == "online" else f"{row.agent} ({row.protocol})",
            f"{row.changed}/{len(row.seeds)}",
            f"{score.first:.3f}" if score else "",
            _interval(score.difference) if score and row.changed else "",
            f"{main} {row.figures[main].first:.4g}" if main else "",
            _interval(row.figures[main].difference) if main and row.changed else "",
            "; ".join(row.notes),
            style="bold" if row.changed else None,
        )
    show_table(table, ("task", "agent"))
    for side, only in ((first, found.only_first), (second, found.only_second)):
        for match in only[:_SHOWN]:
            say(f"only in {side}: {match}")
        if len(only) > _SHOWN:
            say(f"only in {side}: {len(only) - _SHOWN} more cells")
    changed, cells = sum(r.changed for r in found.rows), sum(len(r.seeds) for r in found.rows)
    say(f"{changed} of {cells} common cells have another result")


def show_agents(results: Path | str, first: str, second: str, as_json: bool) -> None:
    """Print how two agents of a run differ; an interval that leaves out 0 is marked."""
    store = open_results(results)
    found = find_changes(agent_side(store, first), agent_side(store, second))
    if not found.rows:
        raise UsageError(f"no task has results of both {first!r} and {second!r} on a common seed")
    if as_json:
        tasks = {
            row.task: {
                "seeds": row.seeds,
                **{name: pair.as_json() for name, pair in row.figures.items()},
            }
            for row in found.rows
        }
        print_json({"first": first, "second": second, "tasks": tasks})
        return
    from rich.table import Table

    for row in found.rows:
        title = f"{row.task}: {len(row.seeds)} paired seeds"
        table = Table("", title=title, title_justify="left")
        for name in (first, second, "difference, 95% interval", ""):
            table.add_column(name, justify="right" if name else "left")
        for name, pair in row.figures.items():
            _, low, high = pair.difference
            apart = np.isfinite(low) and (low > 0 or high < 0)
            figures = f"{pair.first:.4g}", f"{pair.second:.4g}", _interval(pair.difference)
            add_row(table, name.replace("_", " "), *figures, "*" if apart else "")
        show_table(table)
    say(
        f"difference: {second} - {first}; *: its interval leaves out 0. "
        "Smaller is better, but for ledger and reward."
    )


def _interval(found: Interval) -> str:
    if not np.isfinite(found.low):
        return f"{found.value:+.3g}"
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
