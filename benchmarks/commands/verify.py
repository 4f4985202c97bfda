"""``llmqueue-bench verify``: recompute a sample of stored cells and compare bit for bit.

Everything a cell stores must come out again but its clock and its provenance; of an exported run,
what the export keeps of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan.cells import Cell, kwargs_here, spec_here
from benchmarks.plan.players import is_walled
from benchmarks.plan.suite import load_suite, spec_key
from benchmarks.run.engines import LocalEngine, Outcome
from benchmarks.run.runner import agent_seed, platform_here
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score.export import (
    NOT_COMPARED,
    ExportedRun,
    as_exported,
    open_results,
    result_digest,
)
from benchmarks.terminal import make_console, print_json, say
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]

_SHOWN = 5  # differing fields named a cell
_DECIDES = {
    "version": "the package version",
    "code": "the code of environments, agents and runner",
    "workload": "the content of the workload",
    "agent": "the code of the agent",
}


@dataclass(frozen=True)
class Checked:
    """A stored cell and what came of computing it again.

    Attributes
    ----------
    cell, key : str
        Name and key.
    status : str
        ``"same"``, ``"different"``, ``"failed"`` (to compute again) or ``"damaged"``.
    differences : list[dict]
        ``field``, ``stored`` and ``recomputed`` of the first few; ``count`` is how many differ.
    notes : list[str]
        What differs between then and now: code, versions, machine; or why it failed.
    """

    cell: str
    key: str
    status: str
    differences: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether the stored result came out again."""
        return self.status == "same"


@dataclass(frozen=True)
class Verification:
    """The cells that were checked, the number that could have been, and those that could not.

    Attributes
    ----------
    checked : list[Checked]
    candidates : int
        Cells with a result that can be computed here.
    skipped : dict[str, str]
        ``TASK`` or ``TASK / AGENT`` -> why its cells cannot be computed here.
    exported : bool
        Whether results were compared to the digits that an export keeps, not bit for bit, as are
        those that it keeps the digests of.
    """

    checked: list[Checked]
    candidates: int
    skipped: dict[str, str]
    exported: bool = False

    @property
    def precision(self) -> str:
        """How closely results were compared, in words."""
        return "to the digits that an export keeps" if self.exported else "bit for bit"

    @property
    def verified(self) -> bool:
        """Whether something was checked and all of it came out again."""
        return bool(self.checked) and all(cell.verified for cell in self.checked)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "verified": self.verified,
            "compared": self.precision,
            "checked": len(self.checked),
            "candidates": self.candidates,
            "cells": [asdict(cell) for cell in self.checked],
            "skipped": self.skipped,
        }


def verify(
    store: Store | ExportedRun,
    sample: int = 10,
    seed: int = 0,
    *,
    engine: LocalEngine,
    data: Mapping[str, str] | None = None,
    models: Path | None = None,
    trust: bool | None = None,
    on_start: Callable[[int], None] = lambda count: None,
    on_checked: Callable[[Checked], None] = lambda checked: None,
) -> Verification:
    """Recompute a random sample of the last run's results.

    Parameters
    ----------
    store : Store or ExportedRun
        Where the results are. An export keeps six digits of a metric and about 40 points of a
        curve, rounded: what is recomputed is packed likewise before it is compared.
    sample, seed : int
        Cells to check, and the seed by which they are chosen.
    engine : LocalEngine
        Runs them as the benchmark does.
    data : Mapping[str, str], optional
        Data name -> path, before the ``LLMQUEUE_GYM_DATA`` folder is looked at.
    models : Path, optional
        Folder of the suite's own trainings; by default ``models`` beside the results, or
        ``results/SUITE/models`` if those are an export or behind a URL.
    trust : bool, optional
        Who plays behind the wall, as for a run; with True nobody does. By default also whoever did
        in the run. Agents get the seeds that they had.
    on_start, on_checked : callables
        Told of the number of cells chosen and of each one checked.
    """
    if sample < 1:
        raise UsageError(f"sample={sample} must be at least 1")
    run = store.load_run()
    if models is None:
        beside = store.root if isinstance(store, Store) else None
        models = (beside or Path("results") / run["suite"]) / "models"
    cells, skipped = _cells_here(store, run, data or {}, models)
    order = np.random.default_rng(seed).permutation(len(cells))[:sample]
    chosen = [cells[place] for place in sorted(order.tolist())]
    on_start(len(chosen))
    checked: list[Checked] = []

    def note(result: Checked) -> None:
        checked.append(result)
        on_checked(result)

    whole: dict[str, tuple[Cell, Record, list[str]]] = {}
    played: list[Cell] = []
    for cell in chosen:
        try:
            record = store.load(cell.key)
            assert record is not None  # a candidate has a result
        except CorruptResultError as error:
            note(Checked(str(cell), cell.key, "damaged", notes=[str(error)]))
            continue
        here = _where_it_played(_with_code_here(cell), record, trust)
        whole[here.key] = cell, record, _changes(cell, record.get("provenance", {}))
        played.append(here)
    exported = isinstance(store, ExportedRun)
    exact = all("sha256" in record for _, record, _ in whole.values())
    for outcome in engine.run(played):
        stored, then, changes = whole[outcome.cell.key]
        note(_check(replace(outcome, cell=stored), then, changes, exported))
    return Verification(checked, len(cells), skipped, exported and not exact)


def _cells_here(
    store: Store | ExportedRun, run: Record, data: Mapping[str, str], models: Path
) -> tuple[list[Cell], dict[str, str]]:
    """Find the stored cells that this machine can compute; and why it cannot compute the others."""
    stored = store.keys() if isinstance(store, Store) else None
    defaults = _data_defaults(run)
    arguments: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    cells = []
    for spec in run["cells"]:
        task, agent = spec["task"]["name"], spec["agent"]["label"]
        key = spec_key(spec)
        if (key not in stored) if stored is not None else store.load(key) is None:
            continue
        if task not in arguments and task not in skipped:
            try:
                arguments[task] = kwargs_here(spec["task"], defaults.get(task, {}), data)
            except UsageError as error:
                skipped[task] = str(error)
        name = f"{task} / {agent}"
        if task in skipped or name in skipped:
            continue
        try:
            model = _model(spec["agent"], models)
        except UsageError as error:
            skipped[name] = str(error)
            continue
        cells.append(Cell(spec, arguments[task], model))
    return cells, skipped


def _data_defaults(run: Record) -> Mapping[str, Mapping[str, str]]:
    """Find the data names and default paths by task, as the run noted or the suite names them."""
    if "data" in run:
        noted: Mapping[str, Mapping[str, str]] = run["data"]
        return noted
    try:
        return {task.name: task.data for task in load_suite(run["suite"]).tasks}
    except UsageError:  # somebody's own file; --data names the paths
        return {}


def _model(agent: Record, models: Path) -> str | None:
    """Path of the model that a trained agent plays, None for other agents."""
    from baselines.registry import agent_spec

    if "training" not in agent:
        return None
    if (key := agent["training"].get("key")) is None:
        found = agent_spec(agent["name"]).settings.get("model")
        return None if found is None else str(Path(found).resolve())
    path = models / f"{key}.zip"
    if not path.is_file():
        raise UsageError(f"its model {path} is not here; --models names another folder")
    return str(path.resolve())


def _with_code_here(cell: Cell) -> Cell:
    """Return the cell with the code that its agent has now: workers insist on what they are told.

    It is computed all the same where that code has changed, and the change is named.
    """
    agent = cell.spec["agent"]
    if "code" not in agent:
        return cell
    try:
        code = spec_here(cell.spec, cell.kwargs)["agent"].get("code")
    except UsageError:  # nor will it run: computing it says why
        return cell
    return replace(cell, spec={**cell.spec, "agent": {**agent, "code": code}})


def _where_it_played(cell: Cell, record: Record, trust: bool | None) -> Cell:
    """Return the cell with the seed that its agent had, and behind the wall if it was there."""
    agent, apart = cell.spec["agent"], record.get("wall")
    walled = is_walled(agent, trust) or (trust is None and apart is not None)
    seed = agent_seed(cell.spec["seed"]) if apart is None else apart["agent_seed"]
    return replace(cell, walled=walled, agent_seed=seed)


def _changes(cell: Cell, provenance: Record) -> list[str]:
    """Say what has changed since a cell was computed: its code, then versions and machine."""
    notes = []
    try:
        here = spec_here(cell.spec, cell.kwargs)
    except UsageError as error:
        notes.append(f"it cannot be planned here: {error}")
    else:
        for name, words in _DECIDES.items():
            if cell.spec[name] != here[name]:
                then, now = _short(name, cell.spec[name]), _short(name, here[name])
                notes.append(f"{words} differs: {then} then, {now} now")
    if notes and provenance.get("commit"):
        notes.append(f"it was computed at commit {provenance['commit']}")
    notes += [
        f"{name} differs: {provenance[name]} then, {now} now"
        for name, now in platform_here().items()
        if name in provenance and provenance[name] != now
    ]
    return notes


def _short(name: str, value: Any) -> str:
    value = value.get("code") if name == "agent" else value
    return str(value)[:12]


def _check(outcome: Outcome, record: Record, changes: Sequence[str], exported: bool) -> Checked:
    cell = outcome.cell
    if outcome.failed:
        notes = [f"computing it again failed: {outcome.payload['error']}", *changes]
        return Checked(str(cell), cell.key, "failed", notes=notes)
    payload = as_exported(outcome.payload) if exported else outcome.payload
    left_out = {*NOT_COMPARED, *({"fleet"} - set(record))}  # an export keeps one of several
    stored, recomputed = (
        {name: value for name, value in part.items() if name not in left_out}
        for part in (record, payload)
    )
    notes = list(changes)
    if changes and (gone := stored["metrics"].keys() - recomputed["metrics"].keys()):
        notes.append(f"no longer recorded: {', '.join(sorted(gone))}")
        stored["metrics"] = {n: v for n, v in stored["metrics"].items() if n not in gone}
    found = list(_differences(stored, recomputed))
    digest = record.get("sha256")
    if digest and not found and record["metrics"].keys() != outcome.payload["metrics"].keys():
        notes.append("other metrics are recorded now: compared to the digits of an export only")
    elif digest and not found and digest != (again := result_digest(outcome.payload)):
        found.append({"field": "sha256", "stored": digest, "recomputed": again})
    if found and not changes:
        notes.append(
            "same code, same versions, same machine: the stored result is not reproducible"
        )
    return Checked(
        cell=str(cell),
        key=cell.key,
        status="different" if found else "same",
        differences=found[:_SHOWN],
        count=len(found),
        notes=notes,
    )


def _differences(stored: Any, recomputed: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Fields in which two JSON values differ, by path: ``metrics.mean_queue``, ``curve.t[3]``."""
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        for name in dict.fromkeys([*stored, *recomputed]):
            own = f"{path}.{name}" if path else str(name)
            if name in stored and name in recomputed:
                yield from _differences(stored[name], recomputed[name], own)
            else:
                sides = stored.get(name, "missing"), recomputed.get(name, "missing")
                yield {"field": own, "stored": sides[0], "recomputed": sides[1]}
    elif isinstance(stored, list) and isinstance(recomputed, list):
        if len(stored) != len(recomputed):
            lengths = f"{len(stored)} entries", f"{len(recomputed)} entries"
            yield {"field": path, "stored": lengths[0], "recomputed": lengths[1]}
            return
        for place, (first, second) in enumerate(zip(stored, recomputed, strict=True)):
            yield from _differences(first, second, f"{path}[{place}]")
    elif type(stored) is not type(recomputed) or stored != recomputed:
        yield {"field": path, "stored": stored, "recomputed": recomputed}


# --- the command ----------------------------------------------------------------------------------


def show_verification(
    results: Path | str,
    sample: int,
    seed: int,
    engine: LocalEngine,
    data: Mapping[str, str],
    as_json: bool,
    models: Path | None = None,
    trust: bool | None = None,
) -> bool:
    """Verify results and print what came of it, cells as they come; return whether all is well."""
    from rich.progress import Progress

    store = open_results(results)
    console = make_console(stderr=as_json)
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        bar = progress.add_task("computing again", total=None)

        def note(checked: Checked) -> None:
            progress.advance(bar)
            say(as_text(checked), console)

        found = verify(
            store,
            sample,
            seed,
            engine=engine,
            data=data,
            models=models,
            trust=trust,
            on_start=lambda count: progress.update(bar, total=count),
            on_checked=note,
        )
    for name, reason in found.skipped.items():
        say(f"not checked: {name}: {reason}", console)
    same = sum(cell.verified for cell in found.checked)
    say(
        f"{same} of {len(found.checked)} cells came out again, {found.precision} "
        f"({found.candidates} could be checked, seed {seed})",
        console,
    )
    if as_json:
        print_json(found.as_json())
    return found.verified


def as_text(checked: Checked) -> str:
    """Return a checked cell as lines of text; one that came out again with no news is one line."""
    words = {"same": "verified", "different": "DIFFERENT", "failed": "FAILED", "damaged": "DAMAGED"}
    lines = [f"{words[checked.status]}: {checked.cell}"]
    lines += [
        f"    {entry['field']}: stored {entry['stored']!r}, recomputed {entry['recomputed']!r}"
        for entry in checked.differences
    ]
    if checked.count > len(checked.differences):
        lines.append(f"    ... {checked.count} fields differ in all")
    lines += [f"    {note}" for note in checked.notes]
    return "\n".join(lines)
