"""``llmqueue-bench compare A B``: which cells changed between two runs, and by how much.

Cells are matched by task, agent, seed and protocol, whatever version and code computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.commands.compare import Paired, paired
from benchmarks.commands.verify import NOT_COMPARED
from benchmarks.plan.suite import REFERENCES, canonical, spec_key
from benchmarks.problems import PROBLEMS, problem_of
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score.export import ExportedRun, open_results, rounded
from benchmarks.score.intervals import Interval
from benchmarks.score.scoring import tidy
from benchmarks.terminal import print_json, say, show_table
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]


class Match(NamedTuple):
    """What a cell is matched by."""

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
class Change:
    """An agent on a task, on both sides.

    Attributes
    ----------
    task, agent, protocol : str
        What was matched.
    cells, changed : int
        Seeds that both sides have, and how many of them have another result.
    figures : dict[str, Paired]
        ``score`` where both sides have the references, and the metrics of the kind of task.
    notes : tuple[str, ...]
        What else differs: the task's definition, its data, the agent's settings, versions.
    """

    task: str
    agent: str
    protocol: str
    cells: int
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
            {**asdict(row), "figures": {k: v.as_json() for k, v in row.figures.items()}}
            for row in self.rows
        ]
        return {
            "first": self.first,
            "second": self.second,
            "cells": sum(row.cells for row in self.rows),
            "changed": sum(row.changed for row in self.rows),
            "rows": rows,
            "only_first": [match._asdict() for match in self.only_first],
            "only_second": [match._asdict() for match in self.only_second],
        }


def is_results(name: str) -> bool:
    """Whether a name is that of results: a folder, a URL, an export, or ``FOLDER@VERSION``."""
    return "://" in name or Path(name).exists() or Path(name.rpartition("@")[0] or name).is_dir()


def load_side(name: str) -> Side:
    """Read the results a name stands for.

    ``FOLDER`` is its last run. ``FOLDER@X`` is every cell in the folder, of earlier runs too, whose
    package version is X, or whose code hash or git commit begins with X.

    Raises
    ------
    ValueError
        If nothing is there, or X does not say which of two results of a cell is meant.
    """
    folder, mark, version = name.rpartition("@")
    if mark and "://" not in version and not Path(name).exists():
        store = Store(folder)
        keys, wanted = sorted(store.keys()), version
    else:
        wanted, opened = None, open_results(name)
        if isinstance(opened, ExportedRun):
            specs = [spec for spec in opened.load_run()["cells"]]
            found = [opened.load(spec_key(spec)) for spec in specs]
            return _side(name, (record for record in found if record is not None), exported=True)
        store = opened
        keys = [spec_key(spec) for spec in store.load_run()["cells"]]
    return _side(name, _records(store, keys, wanted), exported=False)


def _records(store: Store, keys: Sequence[str], wanted: str | None) -> Iterator[Record]:
    for _, record in store.load_many(keys):
        if isinstance(record, CorruptResultError):
            raise record
        if record is not None and (wanted is None or _is_of(record, wanted)):
            yield record


def _is_of(record: Record, version: str) -> bool:
    spec, commit = record["spec"], record.get("provenance", {}).get("commit") or ""
    return bool(
        spec["version"] == version or spec["code"].startswith(version) or commit.startswith(version)
    )


def _side(name: str, records: Iterator[Record], exported: bool) -> Side:
    cells: dict[Match, Record] = {}
    for record in records:
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
    return Side(name, cells, exported)


def find_changes(first: Side, second: Side) -> Changes:
    """Compare the cells that both sides have."""
    scores = _scores(first), _scores(second)
    groups: dict[tuple[str, str, str], list[Match]] = {}
    for match in first.cells.keys() & second.cells.keys():
        groups.setdefault(match[:3], []).append(match)
    look = _metrics_only if first.exported or second.exported else _everything
    rows = []
    for (task, agent, protocol), matches in sorted(groups.items()):
        pairs = [(first.cells[match], second.cells[match]) for match in sorted(matches)]
        figures = {}
        scored = [match for match in matches if match in scores[0] and match in scores[1]]
        if scored:
            figures["score"] = paired([(scores[0][m], scores[1][m]) for m in scored])
        for name in problem_of(pairs[0][0]["spec"]["task"]["env"]).kind.compared:
            values = [(a["metrics"].get(name), b["metrics"].get(name)) for a, b in pairs]
            known = [(a, b) for a, b in values if a is not None and b is not None]
            if known:
                figures[name] = paired(known)
        changed = sum(look(a) != look(b) for a, b in pairs)
        notes = tuple(_notes(*pairs[0]))
        rows.append(Change(task, agent, protocol, len(pairs), changed, figures, notes))
    return Changes(
        first.name,
        second.name,
        rows,
        sorted(first.cells.keys() - second.cells.keys()),
        sorted(second.cells.keys() - first.cells.keys()),
    )


def _everything(record: Record) -> str:
    return canonical({name: part for name, part in record.items() if name not in NOT_COMPARED})


def _metrics_only(record: Record) -> str:
    return canonical({name: rounded(value) for name, value in record["metrics"].items()})


def _scores(side: Side) -> dict[Match, float]:
    """Normalised scores of the cells whose references are there."""
    found = {}
    for protocol in {match.protocol for match in side.cells}:
        for problem in PROBLEMS.values():
            own = [
                record
                for match, record in side.cells.items()
                if (match.protocol == protocol or match.agent in REFERENCES)
                and problem_of(record["spec"]["task"]["env"]) is problem
            ]
            if own:
                table = tidy(own, problem.kind).select("task", "agent", "seed", "score")
                for task, agent, seed, score in table.iter_rows():
                    match = Match(task, agent, protocol, seed)
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

_SHOWN = 20  # cells of one side only that are named


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
        names = list(row.figures)
        score = row.figures.get("score")
        main = next((name for name in names if name != "score"), None)
        table.add_row(
            row.task,
            row.agent if row.protocol == "online" else f"{row.agent} ({row.protocol})",
            f"{row.changed}/{row.cells}",
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
    changed, cells = sum(row.changed for row in found.rows), sum(row.cells for row in found.rows)
    say(f"{changed} of {cells} common cells have another result")


def _interval(found: Interval) -> str:
    if not np.isfinite(found.low):
        return f"{found.value:+.3g}"
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
