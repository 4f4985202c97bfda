"""``llmqueue-bench compare``: two agents of a run, task by task, paired by seed.

Pairs may cross protocols: the command is for asking what one ingredient changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan.suite import spec_key
from benchmarks.problems import problem_of
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score.export import ExportedRun, open_results
from benchmarks.score.intervals import Interval, t_interval
from benchmarks.terminal import print_json, say, show_table
from llmqueue_gym.errors import UsageError


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


def paired(pairs: Sequence[tuple[float, float]]) -> Paired:
    """Compare values of the first and the second side."""
    first, second = np.array(pairs, dtype=np.float64).T
    return Paired(float(first.mean()), float(second.mean()), t_interval(second - first))


def compare(
    store: Store | ExportedRun, first: str, second: str
) -> dict[str, tuple[list[int], dict[str, Paired]]]:
    """Paired differences ``second - first`` of every figure, by task.

    Returns
    -------
    dict
        Task -> the common seeds and, by figure, its mean under both agents and the interval
        (Student's t, 95%) of the paired difference; tasks without a common seed are left out.

    Raises
    ------
    ValueError
        If an agent is not in the run, or no task has both.
    """
    cells: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    compared: dict[str, tuple[str, ...]] = {}
    specs = store.load_run()["cells"]
    results = store.load_many(spec_key(spec) for spec in specs)
    for spec, (_, record) in zip(specs, results, strict=True):
        if isinstance(record, CorruptResultError):
            raise record
        if record is not None:
            agents = cells.setdefault(spec["task"]["name"], {})
            agents.setdefault(spec["agent"]["label"], {})[spec["seed"]] = record["metrics"]
            compared[spec["task"]["name"]] = problem_of(spec["task"]["env"]).kind.compared
    known = sorted({label for agents in cells.values() for label in agents})
    for label in (first, second):
        if label not in known:
            raise UsageError(f"agent={label!r} has no result here; there are {', '.join(known)}")
    found = {}
    for task, agents in cells.items():
        seeds = sorted(agents.get(first, {}).keys() & agents.get(second, {}).keys())
        if seeds:
            one, other = ([agents[label][seed] for seed in seeds] for label in (first, second))
            found[task] = seeds, _differences(one, other, compared[task])
    if not found:
        raise UsageError(f"no task has results of both {first!r} and {second!r} on a common seed")
    return found


def _differences(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Paired]:
    result = {}
    for name in names:
        pairs = [
            (a[name], b[name])
            for a, b in zip(one, other, strict=True)
            if a.get(name) is not None and b.get(name) is not None
        ]
        if pairs:
            result[name] = paired(pairs)
    return result


def show_comparison(results: Path | str, first: str, second: str, as_json: bool) -> None:
    """Print what `compare` finds; an interval that leaves out 0 is marked."""
    found = compare(open_results(results), first, second)
    if as_json:
        tasks = {
            task: {"seeds": seeds, **{name: row.as_json() for name, row in figures.items()}}
            for task, (seeds, figures) in found.items()
        }
        document = {"first": first, "second": second, "tasks": tasks}
        print_json(document)
        return
    from rich.table import Table

    for task, (seeds, figures) in found.items():
        table = Table(title=f"{task}: {len(seeds)} paired seeds", title_justify="left")
        for name in ("", first, second, "difference", "95% interval", ""):
            table.add_column(name, justify="left" if not name else "right")
        for name, row in figures.items():
            value, low, high = row.difference
            bounded = bool(np.isfinite(low))
            table.add_row(
                name.replace("_", " "),
                f"{row.first:.4g}",
                f"{row.second:.4g}",
                f"{value:+.3g}",
                f"[{low:+.3g}, {high:+.3g}]".replace("[", r"\[") if bounded else "",
                "*" if bounded and (low > 0 or high < 0) else "",
            )
        show_table(table)
    say(
        f"difference: {second} - {first}; *: its interval leaves out 0. "
        "Smaller is better, but for ledger and reward."
    )
