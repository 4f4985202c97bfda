"""Engines: how cells are spread over processes, and the loop that stores what they return.

Every cell runs in a process of its own, so whatever an agent does costs that cell only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import site
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from baselines.registry import agent_spec
from benchmarks.plan.agent_files import changed_file
from benchmarks.plan.cells import Cell, Plan, code_hash
from benchmarks.problems import problem_of
from benchmarks.run.runner import check_tasks
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.run.worker import SAFE_PATH, work
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_KERNEL_FOLDERS = 8  # versions of the code whose compiled kernels are kept
_OUTPUT_TAIL = 4000  # bytes of an agent's output kept with its error


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
        elif name := changed_file(cell.spec["agent"], found.get("reads", {})):
            on_note(f"{name} was changed since {cell} read it; computing it again")
            yield cell


# --- the local engine -----------------------------------------------------------------------------


@dataclass
class _Running:
    cell: Cell
    process: Any
    results: Connection
    output: Connection | None  # None at its end
    deadline: float
    tail: bytes = b""

    def drain(self) -> None:
        """Read what the worker printed and keep the end of it."""
        for _ in range(16):  # a worker that prints without end must not keep us here
            if self.output is None:
                return
            try:
                read = os.read(self.output.fileno(), 1 << 16)
            except BlockingIOError:
                return
            self.tail = (self.tail + read)[-_OUTPUT_TAIL:]
            if not read:
                self.output.close()
                self.output = None


class LocalEngine:
    """Runs up to ``workers`` cells at once, each in a fresh process with single-threaded algebra.

    Results therefore do not depend on the number of workers, and a cell that crashes, hangs, is
    killed or changes global state harms no other. Starting a process costs about 20 ms where the
    fork server exists (Linux, macOS); elsewhere processes are spawned and pay the imports. When a
    cell ends, so do the processes its agent started, unless they have left its process group.

    Parameters
    ----------
    workers : int
        Cells run at once.
    timeout : float, optional
        Seconds after which a cell is stopped and counted as failed.
    memory : float, optional
        Megabytes of data a cell may hold; beyond them its allocations fail (Linux).
    """

    def __init__(
        self, workers: int, timeout: float | None = None, memory: float | None = None
    ) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers} must be at least 1")
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout={timeout} must be a positive number of seconds")
        if memory is not None and not 0 < memory < float("inf"):
            raise UsageError(f"memory={memory} must be a positive number of megabytes")
        if memory is not None and sys.platform != "linux":
            raise UsageError(f"memory={memory}: only Linux limits the memory of a process")
        self.workers = workers
        self.timeout = float("inf") if timeout is None else timeout
        self.memory = memory
        server = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if server else "spawn")

    def run(self, cells: Sequence[Cell]) -> Generator[Outcome]:
        """Run the cells and yield outcomes in order of completion."""
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(_preloaded(cells))
        running: list[_Running] = []
        queue = iter(cells)
        with _worker_environment():
            try:
                while True:
                    while len(running) < self.workers and (cell := next(queue, None)) is not None:
                        running.append(self._start(cell))
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

    def _start(self, cell: Cell) -> _Running:
        results, sender = self._context.Pipe(duplex=False)
        output = printer = None
        if sys.platform != "win32":  # whose pipes cannot stand in for stdout
            output, printer = self._context.Pipe(duplex=False)
            os.set_blocking(output.fileno(), False)
        process = self._context.Process(
            target=work,
            args=(cell, dict(os.environ), sender, printer, self.memory),
        )
        _start(process)
        sender.close()  # so that the worker's death ends the pipes
        if printer is not None:
            printer.close()
        return _Running(cell, process, results, output, monotonic() + self.timeout)

    def _outcome(self, job: _Running) -> Outcome | None:
        """Return the job's outcome, or None while it is still running."""
        ended = not job.process.is_alive()  # first: what it has sent by then is in the pipe
        job.drain()
        error = None
        if job.results.poll():
            try:
                message = json.loads(job.results.recv_bytes())
                if not message["failed"]:
                    return Outcome(job.cell, message["payload"], failed=False)
                return _failure(job, **message["payload"])
            except (EOFError, OSError):
                job.process.join(5)
                error = self._cause_of_death(job.process.exitcode)
            except (ValueError, KeyError, TypeError) as wrong:  # an agent that found the pipe
                error = f"the worker sent something that is no result ({wrong!r})"
        elif ended:
            error = self._cause_of_death(job.process.exitcode)
        elif monotonic() >= job.deadline:
            error = f"stopped after the timeout of {self.timeout:g} s (--timeout allows more)"
        return None if error is None else _failure(job, error, "")

    def _cause_of_death(self, code: int | None) -> str:
        if code is None or code >= 0:
            return f"the worker left with exit code {code} and no result"
        try:
            name = signal.Signals(-code).name
        except ValueError:  # a real-time signal
            name = f"signal {-code}"
        limit = "" if self.memory is None else f" the limit is {self.memory:g} MB"
        hint = f" (out of memory?{limit})" if limit or name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"


def _start(process: Any) -> None:
    """Start a process; the fork server may be gone, and found to be so a moment later."""
    with _without_main():
        for pause in (0.01, 0.1, 1.0):
            try:
                process.start()
                return
            except (ConnectionError, EOFError):
                sleep(pause)
        process.start()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep workers from importing the main module, which may cost more than the cell."""
    main: Any = sys.modules["__main__"]
    own = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in own:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(main, name, value)


def _failure(job: _Running, error: str, traceback: str) -> Outcome:
    """Return a failed outcome with the end of what the worker printed."""
    job.drain()
    output = job.tail.decode(errors="replace")
    payload = {"error": error, "traceback": traceback, "output": output}
    return Outcome(job.cell, payload, failed=True)


def _wait(running: Sequence[_Running]) -> None:
    """Sleep until a job reports, prints, dies or reaches its deadline."""
    left = within_a_day(min(job.deadline for job in running) - monotonic())
    handles = [handle for job in running for handle in (job.results, job.process.sentinel)]
    handles += [job.output for job in running if job.output is not None]
    wait(handles, left)


def within_a_day(seconds: float) -> float:
    """Return a waiting time that every system's clock takes; whoever waits looks again then."""
    return min(max(0.0, seconds), 86_400.0)


def _stop(job: _Running) -> None:
    """End a job and the processes it may have started, and free its handles."""
    job.results.close()
    if job.output is not None:
        job.output.close()
    job.process.join(0.2)  # a worker that has reported is about to leave by itself
    if job.process.is_alive():
        job.process.kill()
    if hasattr(os, "killpg") and job.process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, signal.SIGKILL)
    job.process.join()
    job.process.close()


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Let workers inherit one algebra thread each, and this very code, compiled too.

    With one thread sums are the same on every machine load. The fork server would look for modules
    in the current folder first, and might find some other ``benchmarks`` or ``baselines`` there.
    numba misses an edit in another file than a kernel's: what it keeps lies in a folder named by
    the code.
    """
    root = str(Path(__file__).resolve().parents[2])
    roots = [] if root in site.getsitepackages() else [root]  # an installed one is found anyway
    path = os.pathsep.join(filter(None, [*roots, os.environ.get("PYTHONPATH", "")]))
    wanted = {**dict.fromkeys(ONE_THREAD, "1"), "PYTHONPATH": path, SAFE_PATH: "1"}
    wanted["NUMBA_CACHE_DIR"] = str(_kernel_folder())
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _kernel_folder() -> Path:
    """Folder of the kernels that were compiled of this code; those of the oldest code go."""
    cache = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llmqueue_gym"
    folder = Path(cache) / "kernels" / code_hash()[:16]
    with suppress(OSError):  # numba then compiles at every start
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        last_used = sorted(folder.parent.iterdir(), key=lambda path: -path.stat().st_mtime)
        for old in last_used[_KERNEL_FOLDERS:]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _preloaded(cells: Sequence[Cell]) -> list[str]:
    """Modules the fork server imports once: the runner and those of this project's agents at play.

    Others stay out: torch alone would cost seconds. The kernels are loaded there, too.
    """
    names = {cell.model or cell.spec["agent"]["name"] for cell in cells} - {"oracle"}
    modules = {agent_spec(name).target.partition(":")[0] for name in names}
    own = sorted(module for module in modules if module.split(".")[0] == "baselines")
    if any(module.startswith("baselines.rl.") for module in own):
        own.append("torch._dynamo")  # the first optimiser of a process would import it for seconds
    played = {f"{problem_of(cell.spec['task']['env']).package}.play" for cell in cells}
    shared = [
        "benchmarks.run.runner",
        "benchmarks.run.engines",
        "benchmarks.run.warm",
        *sorted(played),
    ]
    return [*shared, *own]
