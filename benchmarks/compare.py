"""``llmqueue-bench compare``: two agents of a run, task by task, paired by seed.

Pairs may cross protocols: the command is for asking what one ingredient changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.intervals import Interval, t_interval
from benchmarks.store import Store
from benchmarks.suite import SuiteError, spec_key

FIGURES = {
    "queueing": ("mean_queue", "tail_queue", "routing_regret", "retrials_per_departed", "wait_p95"),
    "deployment": ("ledger", "reward", "regret", "spend"),
}
"""Metrics that are compared, per kind of task."""


def compare(store: Store, first: str, second: str) -> dict[str, dict[str, Any]]:
    """Paired differences ``first - second`` of every figure, by task.

    Returns
    -------
    dict
        Task -> ``seeds`` and, a figure, its mean under both agents and the interval (Student's t,
        95%) of the paired difference; tasks without a common seed are left out.

    Raises
    ------
    ValueError
        If an agent is not in the run, or no task has both.
    """
    cells: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for spec in store.load_run()["cells"]:
        record = store.load(spec_key(spec))
        if record is not None:
            agents = cells.setdefault(spec["task"]["name"], {})
            agents.setdefault(spec["agent"]["label"], {})[spec["seed"]] = record["metrics"]
    known = sorted({label for agents in cells.values() for label in agents})
    for label in (first, second):
        if label not in known:
            raise SuiteError(f"agent={label!r} has no result here; there are {', '.join(known)}")
    found = {}
    for task, agents in cells.items():
        seeds = sorted(agents.get(first, {}).keys() & agents.get(second, {}).keys())
        if seeds:
            one, other = ([agents[label][seed] for seed in seeds] for label in (first, second))
            found[task] = {"seeds": seeds, **_differences(one, other)}
    if not found:
        raise SuiteError(f"no task has results of both {first!r} and {second!r} on a common seed")
    return found


def _differences(
    one: list[Mapping[str, Any]], other: list[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    figures = FIGURES["queueing" if "mean_queue" in one[0] else "deployment"]
    result = {}
    for name in figures:
        pairs = [
            (a[name], b[name])
            for a, b in zip(one, other, strict=True)
            if a.get(name) is not None and b.get(name) is not None
        ]
        if pairs:
            gap: Interval = t_interval([a - b for a, b in pairs])
            result[name] = {
                "first": sum(a for a, _ in pairs) / len(pairs),
                "second": sum(b for _, b in pairs) / len(pairs),
                "difference": list(gap) if len(pairs) > 1 else [gap.value, None, None],
            }
    return result


def show_comparison(folder: Path, first: str, second: str, as_json: bool) -> None:
    """Print what `compare` finds; an interval that leaves out 0 is marked."""
    found = compare(Store(folder), first, second)
    if as_json:
        print(json.dumps({"first": first, "second": second, "tasks": found}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    for task, row in found.items():
        table = Table(title=f"{task}: {len(row['seeds'])} paired seeds", title_justify="left")
        for name in ("", first, second, "difference", "95% interval", ""):
            table.add_column(name, justify="left" if not name else "right")
        for name, figure in row.items():
            if name == "seeds":
                continue
            value, low, high = figure["difference"]
            clear = low is not None and (low > 0 or high < 0)
            table.add_row(
                name.replace("_", " "),
                f"{figure['first']:.4g}",
                f"{figure['second']:.4g}",
                f"{value:+.3g}",
                "" if low is None else f"[{low:+.3g}, {high:+.3g}]".replace("[", r"\["),
                "*" if clear else "",
            )
        Console().print(table)
    print("*: the interval leaves out 0. Smaller is better, but for ledger and reward.")
