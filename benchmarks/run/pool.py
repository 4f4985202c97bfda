"""A pool of processes for cells and trainings: started, limited, watched and ended in one way.

Whatever a job does costs that job only: a process has one at a time. Jobs that are alike and known
to leave nothing behind may take turns in one; all others have a process of their own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import site
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from baselines.interface import AGENT_FOLDERS
from benchmarks.plan.cells import code_hash
from benchmarks.run.worker import AGAIN, DONE, FAILED, PROGRESS, SAFE_PATH, work
from benchmarks.wall.judge import Fence
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_KERNEL_FOLDERS = 8  # versions of the code whose compiled kernels are kept
_OUTPUT_TAIL = 4000  # bytes of a job's output kept with its error
_SHARED_SECONDS = 30.0  # in which a process takes further jobs: to start one and to load kernels
# and tables costs some 130 ms, and whatever a job leaves behind all the same has an end
_PRELOADED = ("benchmarks.run.runner", "benchmarks.wall.agent")
_WARM = "benchmarks.run.warm"  # comes last: it looks at what is loaded

Job = TypeVar("Job")


@dataclass(frozen=True)
class Report(Generic[Job]):
    """What a job has sent: how far it is, its result, or the error in its place.

    Attributes
    ----------
    job : Job
        The job.
    state : str
        ``"progress"``, ``"done"`` or ``"failed"``; the last two end the job.
    payload : dict
        What was sent; of a failed job ``error``, ``traceback`` and ``output``.
    """

    job: Job
    state: str
    payload: dict[str, Any]


@dataclass
class _Running(Generic[Job]):
    job: Job
    process: Any
    results: Connection
    output: Connection | None  # None at its end
    deadline: float
    folder: str | None = None  # of the agent behind the wall
    like: object = None  # what those have in common that may follow
    shared_until: float = 0.0
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

    def failure(self, error: str, traceback: str = "") -> Report[Job]:
        """Return the error with the end of what the worker printed."""
        self.drain()
        output = self.tail.decode(errors="replace")
        payload = {"error": error, "traceback": traceback, "output": output}
        return Report(self.job, FAILED, payload)


class Pool:
    """Runs up to ``workers`` jobs at once, each in a process with single-threaded algebra.

    Results therefore do not depend on the number of workers, and a job that crashes, hangs or is
    killed harms no other. Nor does one that changes global state: its process is a fresh one and
    ends with it, unless it is known to change none and takes turns with its like. Starting a
    process costs about 20 ms where the fork server exists (Linux, macOS); elsewhere processes are
    spawned and pay the imports. When a process ends, so do those it started, unless they have left
    its process group.

    Parameters
    ----------
    workers : int
        Jobs run at once.
    timeout : float, optional
        Seconds after which a job is stopped and counted as failed.
    memory : float, optional
        Megabytes of data a job may hold beside the program itself; beyond them its allocations
        fail (Linux). No process is shared then.
    option : str
        What the user calls the timeout.
    method : str, optional
        How processes are started; "spawn" leaves the fork server alone.
    hidden : Sequence of str
        Files and folders that agents behind the wall must not see.
    """

    def __init__(
        self,
        workers: int,
        timeout: float | None = None,
        memory: float | None = None,
        option: str = "timeout",
        method: str | None = None,
        hidden: Sequence[str] = (),
    ) -> None:
        self._hidden = (*map(os.path.abspath, hidden), get_temp_dir())  # there listens the server
        self.workers = checks.count("workers", workers)
        self.timeout = float("inf") if timeout is None else timeout
        checks.number(option, self.timeout, "(0, inf]", " (seconds)")
        if memory is not None:
            checks.number("memory", memory, "(0, inf)", " (megabytes)")
            if sys.platform != "linux":
                raise UsageError(f"memory={memory}: only Linux limits the memory of a process")
        self.memory, self._option = memory, option
        server = "forkserver" in multiprocessing.get_all_start_methods()
        method = method or ("forkserver" if server else "spawn")
        self._context: Any = multiprocessing.get_context(method)

    def run(
        self,
        jobs: Iterable[Job],
        task: Callable[..., dict[str, Any]],
        preload: Sequence[str] = (),
        is_walled: Callable[[Job], bool] = lambda job: False,
        shares_with: Callable[[Job], object] = lambda job: None,
        load_kernels: bool = False,
    ) -> Generator[Report[Job]]:
        """Run the jobs and yield what they report; closing the generator stops those at work.

        Parameters
        ----------
        jobs : Iterable
            What is to be done.
        task : callable
            Does a job in its process and returns its result, JSON-plain; of the job, a
            function to tell of its progress and, for those behind the wall, a `WalledAgent`.
        preload : Sequence[str]
            Modules that a fork server imports once for all jobs, besides the runner.
        is_walled : callable
            Whether a job needs a process for an agent.
        shares_with : callable
            What a job has in common with those that may follow it in its process: they see no
            trace of it. None: nobody may.
        load_kernels : bool
            Do a job that had to compile kernels once more in a process that loads them: both may
            round in other ways (`llmqueue_gym.compiled.NEWLY_KEPT`).
        """
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload([*_PRELOADED, *preload, _WARM])
        running: list[_Running[Job]] = []
        waiting: dict[object, deque[Job]] = {}  # by what they share
        for job in jobs:
            like = shares_with(job) if self.memory is None else None
            waiting.setdefault(object() if like is None else like, deque()).append(job)

        def take(like: object) -> Job:
            job = waiting[like].popleft()
            if not waiting[like]:
                del waiting[like]
            return job

        with _worker_environment():
            try:
                while running or waiting:
                    while waiting and len(running) < self.workers:
                        played = {at_work.like for at_work in running}
                        like = next((one for one in waiting if one not in played), None)
                        like = next(iter(waiting)) if like is None else like
                        job = take(like)
                        walled = is_walled(job)
                        running.append(self._start(job, like, task, walled, load_kernels))
                    _wait(running)
                    for at_work in list(running):
                        report = self._report(at_work)
                        if report is None:
                            continue
                        if report.state == AGAIN:
                            running.remove(at_work)
                            _stop(at_work)
                            job, walled = at_work.job, is_walled(at_work.job)
                            running.append(self._start(job, at_work.like, task, walled, False))
                            continue
                        young = monotonic() < at_work.shared_until
                        if report.state == DONE and young and at_work.like in waiting:
                            self._give(at_work, take(at_work.like), load_kernels)
                        elif report.state != PROGRESS:
                            running.remove(at_work)
                            _stop(at_work)
                        yield report
            finally:
                for at_work in running:
                    _stop(at_work)

    def _start(
        self,
        job: Job,
        like: object,
        task: Callable[..., dict[str, Any]],
        is_walled: bool,
        may_repeat: bool,
    ) -> _Running[Job]:
        results, sender = self._context.Pipe()
        output = printer = None
        if sys.platform != "win32":  # whose pipes cannot stand in for stdout
            output, printer = self._context.Pipe(duplex=False)
            os.set_blocking(output.fileno(), False)
        fence = Fence(self._hidden, mkdtemp(prefix="llmqueue-agent-")) if is_walled else None
        arguments = (task, sender, printer, self.memory, fence, tuple(AGENT_FOLDERS))
        process = self._context.Process(target=work, args=arguments)
        _start(process)
        sender.close()  # so that the worker's death ends the pipes
        if printer is not None:
            printer.close()
        folder = None if fence is None else fence.folder
        until = monotonic() + _SHARED_SECONDS
        at_work = _Running(job, process, results, output, float("inf"), folder, like, until)
        self._give(at_work, job, may_repeat)
        return at_work

    def _give(self, at_work: _Running[Job], job: Job, may_repeat: bool) -> None:
        """Send a process that has nothing to do a job."""
        at_work.drain()
        at_work.job, at_work.tail = job, b""
        with suppress(OSError):  # it is gone already, which its report will say
            at_work.results.send((job, dict(os.environ), may_repeat))
        at_work.deadline = monotonic() + self.timeout

    def _report(self, at_work: _Running[Job]) -> Report[Job] | None:
        """Return what a job has to say, or None."""
        ended = not at_work.process.is_alive()  # first: what it has sent by then is in the pipe
        at_work.drain()
        if at_work.results.poll():
            try:
                message = json.loads(at_work.results.recv_bytes())
                state, payload = message["state"], message["payload"]
                if state == FAILED:
                    return at_work.failure(payload["error"], payload["traceback"])
                if state in (DONE, PROGRESS, AGAIN):
                    return Report(at_work.job, state, payload)
                wrong: object = state
            except (EOFError, OSError):
                at_work.process.join(5)
                return at_work.failure(self._cause_of_death(at_work.process.exitcode))
            except (ValueError, KeyError, TypeError) as error:  # an agent that found the pipe
                wrong = error
            return at_work.failure(f"the worker sent something that is no result ({wrong!r})")
        if ended:
            return at_work.failure(self._cause_of_death(at_work.process.exitcode))
        if monotonic() >= at_work.deadline:
            allow = f"(--{self._option} allows more)"
            return at_work.failure(f"stopped after the timeout of {self.timeout:g} s {allow}")
        return None

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
    """Keep workers from importing the main module, which may cost more than the job."""
    main: Any = sys.modules["__main__"]
    own = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in own:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(main, name, value)


def _wait(running: Sequence[_Running[Job]]) -> None:
    """Sleep until a job reports, prints, dies or reaches its deadline, or for a day."""
    left = min(job.deadline for job in running) - monotonic()
    handles = [handle for job in running for handle in (job.results, job.process.sentinel)]
    handles += [job.output for job in running if job.output is not None]
    wait(handles, min(max(0.0, left), 86_400.0))  # more is too much for some systems' clocks


def _stop(job: _Running[Job]) -> None:
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
    if job.folder is not None:
        shutil.rmtree(job.folder, ignore_errors=True)


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
    wanted["NUMBA_CACHE_DIR"] = str(_make_kernel_folder())
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


def kernel_folder() -> Path:
    """Where the kernels are kept that were compiled of this code."""
    cache = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llmqueue_gym"
    return Path(cache) / "kernels" / code_hash()[:16]


def _make_kernel_folder() -> Path:
    """Folder of the kernels that were compiled of this code; those of the oldest code go."""
    folder = kernel_folder()
    with suppress(OSError):  # numba then compiles at every start
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        last_used = sorted(folder.parent.iterdir(), key=lambda path: -path.stat().st_mtime)
        for old in last_used[_KERNEL_FOLDERS:]:
            shutil.rmtree(old, ignore_errors=True)
    return folder
