"""Engines: how cells are spread over processes, and the loop that stores what they return.

Every cell runs in a process of its own, so whatever an agent does costs that cell only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from baselines.agent import agent_spec
from benchmarks.store import CorruptResultError, Store
from benchmarks.suite import Cell, Plan, canonical

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OUTPUT_TAIL = 4000  # characters of an agent's output kept with its error


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
    """

    cell: Cell
    payload: dict[str, Any]
    failed: bool


class Engine(Protocol):
    """Runs cells in any order and yields each one's outcome when it is there."""

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run the cells; closing the iterator stops those still running."""
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
    on_damage: Callable[[str], None] = lambda message: None,
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
        Kept with each result (``benchmarks.runner.provenance``).
    on_outcome, on_damage, on_start : callables
        Told of each outcome, each damaged file (it is recomputed) and the number of cells to run.
    """
    store.save_run(
        {
            "suite": plan.suite,
            "skipped": dict(plan.skipped),
            "cells": [dict(cell.spec) for cell in plan.cells],
            "provenance": provenance,
        }
    )
    missing = list(_missing(plan.cells, store, on_damage))
    on_start(len(missing))
    failed = 0
    for outcome in engine.run(missing):
        record = {**outcome.payload, "provenance": provenance}
        save = store.save_failure if outcome.failed else store.save
        save(outcome.cell.spec, record)
        failed += outcome.failed
        on_outcome(outcome)
    return Tally(len(missing) - failed, len(plan.cells) - len(missing), failed)


def _missing(
    cells: Iterable[Cell], store: Store, on_damage: Callable[[str], None]
) -> Iterator[Cell]:
    for cell in cells:
        try:
            if store.load(cell.key) is None:
                yield cell
        except CorruptResultError as error:
            on_damage(f"{error}; computing {cell} again")
            yield cell


# --- the local engine -----------------------------------------------------------------------------


@dataclass
class _Running:
    cell: Cell
    process: Any
    results: Connection
    output: Path
    deadline: float


class LocalEngine:
    """Runs up to ``workers`` cells at once, each in a fresh process with single-threaded algebra.

    Results therefore do not depend on the number of workers, and a cell that crashes, hangs, is
    killed or changes global state harms no other. Starting a process costs about 20 ms where the
    fork server exists (Linux, macOS); elsewhere processes are spawned and pay the imports.

    Parameters
    ----------
    workers : int
        Cells run at once.
    timeout : float, optional
        Seconds after which a cell is stopped and counted as failed.
    """

    def __init__(self, workers: int, timeout: float | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout={timeout} must be a positive number of seconds")
        self.workers = workers
        self.timeout = timeout
        server = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if server else "spawn")

    def run(self, cells: Sequence[Cell]) -> Iterator[Outcome]:
        """Run the cells and yield outcomes in order of completion."""
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(_preloaded(cells))
        running: list[_Running] = []
        queue = iter(cells)
        with tempfile.TemporaryDirectory(prefix="llmqueue-bench-") as folder, _single_threaded():
            try:
                while True:
                    while len(running) < self.workers and (cell := next(queue, None)) is not None:
                        running.append(self._start(cell, Path(folder)))
                    if not running:
                        return
                    _wait(running)
                    for job in list(running):
                        if (outcome := self._outcome(job)) is not None:
                            running.remove(job)
                            _stop(job)
                            yield outcome
            finally:
                for job in running:
                    _stop(job)

    def _start(self, cell: Cell, folder: Path) -> _Running:
        results, sender = self._context.Pipe(duplex=False)
        output = folder / f"{cell.key}.out"
        process = self._context.Process(
            target=_work, args=(dict(cell.spec), dict(cell.kwargs), cell.model, sender, str(output))
        )
        process.start()
        sender.close()  # so that the worker's death ends the pipe
        limit = float("inf") if self.timeout is None else monotonic() + self.timeout
        return _Running(cell, process, results, output, limit)

    def _outcome(self, job: _Running) -> Outcome | None:
        """Return the job's outcome, or None while it is still running."""
        error = None
        if job.results.poll():
            try:
                message = json.loads(job.results.recv_bytes())
                if not message["failed"]:
                    return Outcome(job.cell, message["payload"], failed=False)
                return _failure(job, **message["payload"])
            except (EOFError, OSError):
                job.process.join(5)
                error = _cause_of_death(job.process.exitcode)
        elif not job.process.is_alive():
            error = _cause_of_death(job.process.exitcode)
        elif monotonic() >= job.deadline:
            error = f"stopped after the timeout of {self.timeout:g} s"
        return None if error is None else _failure(job, error, "")


def _failure(job: _Running, error: str, traceback: str) -> Outcome:
    """Return a failed outcome with the end of what the worker printed."""
    output = ""
    with suppress(OSError):
        output = job.output.read_text(encoding="utf-8", errors="replace")[-_OUTPUT_TAIL:]
    payload = {"error": error, "traceback": traceback, "output": output}
    return Outcome(job.cell, payload, failed=True)


def _wait(running: Sequence[_Running]) -> None:
    """Sleep until a job reports, dies or reaches its deadline."""
    left = min(job.deadline for job in running) - monotonic()
    handles = [handle for job in running for handle in (job.results, job.process.sentinel)]
    wait(handles, None if left == float("inf") else max(0.0, left))


def _stop(job: _Running) -> None:
    """End a job and the processes it may have started, and free its handles."""
    job.results.close()
    job.process.join(0.2)  # a worker that has reported is about to leave by itself
    if job.process.is_alive():
        job.process.kill()
    if hasattr(os, "killpg") and job.process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, signal.SIGKILL)
    job.process.join()
    job.process.close()
    job.output.unlink(missing_ok=True)


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker left with exit code {code} and no result"


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Workers inherit one algebra thread each: sums are then the same on every machine load."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _preloaded(cells: Sequence[Cell]) -> list[str]:
    """Modules the fork server imports once: the runner and those of this project's agents at play.

    Others stay out: torch alone would cost seconds.
    """
    names = {cell.model or cell.spec["agent"]["name"] for cell in cells} - {"oracle"}
    modules = {agent_spec(name).target.partition(":")[0] for name in names}
    own = sorted(module for module in modules if module.split(".")[0] == "baselines")
    return ["benchmarks.runner", "benchmarks.engines", "llmqueue_gym.oracles", *own]


# --- inside a worker ------------------------------------------------------------------------------


def _work(
    spec: dict[str, Any], kwargs: dict[str, Any], model: str | None, sender: Connection, output: str
) -> None:
    """Run one cell and send its result as JSON."""
    _detach(output)
    try:
        from benchmarks.runner import run_cell

        message = {"failed": False, "payload": run_cell(spec, kwargs, model)}
        text = canonical(message)
    except BaseException as error:  # whatever an agent raises, SystemExit included
        summary = f"{type(error).__name__}: {error}"
        payload = {"error": summary, "traceback": traceback.format_exc()}
        text = canonical({"failed": True, "payload": payload})
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(BrokenPipeError):
        sender.send_bytes(text.encode())
    sender.close()


def _detach(output: str) -> None:
    """Own process group, output to a file, and no life without the parent."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone; children of the agent can be ended
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
