"""Engines: who runs the cells, and the loop that stores what they return."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

from baselines.registry import agent_spec
from benchmarks.plan.agent_files import changed_file
from benchmarks.plan.cells import Cell, Plan
from benchmarks.problems import problem_of
from benchmarks.run.pool import Pool
from benchmarks.run.runner import check_tasks
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.run.worker import FAILED, play


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: a result, or the error in its place.

    Attributes
    ----------
    cell : Cell
        The cell.
    payload : dict
        The result of ``run_cell``, or ``error``, ``traceback`` and ``output``.
    failed : bool
        Which of the two it is.
    provenance : Mapping[str, Any]
        Where it was computed, if not in the process that stores it.
    """

    cell: Cell
    payload: dict[str, Any]
    failed: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Runs cells in any order and yields each one's outcome when it is there."""

    def run(self, cells: Sequence[Cell]) -> Generator[Outcome]:
        """Run the cells; closing the generator stops those still running."""
        ...


@dataclass(frozen=True)
class Tally:
    """What a run did: cells computed, taken from the store, failed."""

    computed: int
    reused: int
    failed: int


def execute(
    plan: Plan,
    store: Store,
    engine: Engine,
    provenance: dict[str, Any],
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_note: Callable[[str], None] = lambda message: None,
    on_start: Callable[[int], None] = lambda missing: None,
) -> Tally:
    """Compute the cells of a plan that the store does not hold yet.

    Parameters
    ----------
    plan : Plan
        The cells that make up the run.
    store : Store
        Where results are looked up and kept; a cell is stored as soon as it is done.
    engine : Engine
        How cells are run.
    provenance : dict
        Kept with each result (``benchmarks.run.runner.provenance``).
    on_outcome, on_note, on_start : callables
        Told of each outcome; of each damaged file (it is recomputed) and what is assumed of a
        task's instance; and of the number of cells to run.

    Raises
    ------
    StoreBusyError
        If another runner is at work on the store.
    UsageError
        If a task cannot be set up; no cell was run.
    StoreWriteError
        If a result cannot be stored; those stored before it are kept.
    """
    with store.lock():
        missing = list(_missing(plan.cells, store, on_note))
        check_tasks(missing, on_note)
        store.save_run(
            {
                "suite": plan.suite,
                "skipped": dict(plan.skipped),
                "trainings": [dict(curve) for curve in plan.curves],
                "cells": [cell.spec for cell in plan.cells],
                "data": {name: dict(paths) for name, paths in plan.data.items()},
                "provenance": provenance,
                **({"held_out": plan.held_out.digest} if plan.held_out else {}),
            }
        )
        on_start(len(missing))
        failed = 0
        with closing(engine.run(missing)) as outcomes:
            for outcome in outcomes:
                record = {**outcome.payload, "provenance": {**provenance, **outcome.provenance}}
                save = store.save_failure if outcome.failed else store.save
                save(outcome.cell.spec, record)
                failed += outcome.failed
                on_outcome(outcome)
    return Tally(len(missing) - failed, len(plan.cells) - len(missing), failed)


def _missing(cells: Sequence[Cell], store: Store, on_note: Callable[[str], None]) -> Iterator[Cell]:
    stored = store.load_many(cell.key for cell in cells)
    for cell, (_, found) in zip(cells, stored, strict=True):
        if isinstance(found, CorruptResultError):
            on_note(f"{found}; computing {cell} again")
            yield cell
        elif found is None:
            yield cell
        elif cell.walled and "wall" not in found:
            on_note(f"{cell} was not played behind the wall; computing it again")
            yield cell
        elif name := changed_file(cell.spec["agent"], found.get("reads", {})):
            on_note(f"{name} was changed since {cell} read it; computing it again")
            yield cell


# --- the local engine -----------------------------------------------------------------------------


class LocalEngine:
    """Runs up to ``workers`` cells at once on this machine.

    The seeds of a task take turns in a process with an agent of this project, which leaves nothing
    behind. Other agents have a process a cell.

    Parameters
    ----------
    workers, timeout, memory, hidden
        See `benchmarks.run.pool.Pool`.
    """

    def __init__(
        self,
        workers: int,
        timeout: float | None = None,
        memory: float | None = None,
        hidden: Sequence[str] = (),
    ) -> None:
        self._pool = Pool(workers, timeout, memory, hidden=hidden)

    def run(self, cells: Sequence[Cell]) -> Generator[Outcome]:
        """Run the cells and yield outcomes in order of completion."""
        walled = attrgetter("walled")
        preload = _preloaded(cells)
        reports = self._pool.run(cells, play, preload, walled, _shares_with, load_kernels=True)
        with closing(reports):
            for report in reports:
                yield Outcome(report.job, report.payload, report.state == FAILED)


def _shares_with(cell: Cell) -> tuple[str, str] | None:
    """Task and agent: the seeds beside a cell may share its process.

    Another agent may not, though it leaves nothing behind but loaded kernels. Those that sum in any
    order (`llmqueue_gym.compiled.summing`) may contain the same function, compiled a little
    differently in each; which of the copies all of them call depends on who was loaded first.
    """
    agent = cell.spec["agent"]
    if cell.walled or "code" in agent:
        return None
    return cell.spec["task"]["name"], agent["label"]


def _preloaded(cells: Sequence[Cell]) -> list[str]:
    """Modules of the problems and of this project's agents at play, for the fork server.

    Others stay out: torch alone would cost seconds. The kernels are loaded there, too.
    """
    names = {cell.model or cell.spec["agent"]["name"] for cell in cells} - {"oracle"}
    modules = {agent_spec(name).target.partition(":")[0] for name in names}
    own = sorted(module for module in modules if module.split(".")[0] == "baselines")
    if any(module.startswith("baselines.rl.") for module in own):
        own.append("torch._dynamo")  # the first optimiser of a process would import it for seconds
    played = {f"{problem_of(cell.spec['task']['env']).package}.play" for cell in cells}
    return [*sorted(played), *own]
