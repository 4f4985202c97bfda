"""Inside a worker: a job is done and its result sent as JSON, until no other one comes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baselines.interface import AGENT_FOLDERS
from baselines.registry import agent_spec
from benchmarks.plan.agent_files import agent_folder, digests, watch_folder
from benchmarks.plan.cells import Cell, Training
from benchmarks.plan.suite import canonical
from benchmarks.wall.judge import AgentError, Fence, WalledAgent, start_agent
from llmqueue_gym.compiled import NEWLY_KEPT

SAFE_PATH = "PYTHONSAFEPATH"
"""Variable that keeps the current folder from coming before the installed packages."""

_SPARE_MEMORY = 64  # MB on top of a limit, to say that it was reached


DONE, FAILED, PROGRESS, AGAIN = "done", "failed", "progress", "again"
"""States that a worker reports; the last asks for a process in which nothing is compiled."""

Tell = Callable[[dict[str, Any]], None]
"""Reports the progress of a job, JSON-plain."""


def work(
    task: Callable[..., dict[str, Any]],
    sender: Connection,
    printer: Connection | None,
    memory: float | None,
    fence: Fence | None,
    folders: Sequence[str] = (),
) -> None:
    """Do the jobs that are sent, send the result of each as JSON, and leave at once after the last.

    With a fence the process of an agent is forked before the job is there, so that it cannot be
    found in its memory.
    """
    own = os.getpid()
    AGENT_FOLDERS[:] = folders
    _detach(printer)
    if memory is not None:
        _limit_memory(memory)
    partners = [] if fence is None else [start_agent(fence, memory)]

    def send(state: str, payload: dict[str, Any]) -> None:
        if os.getpid() == own:  # else a child that the agent forked and let go on
            sender.send_bytes(json.dumps({"state": state, "payload": payload}).encode())

    with suppress(EOFError, OSError):  # of the pipe, at its end
        while os.getpid() == own:
            job, environment, may_repeat = sender.recv()
            os.environ.clear()  # the fork server's is that of the first run of its parent
            os.environ.update(environment)
            os.environ.pop(SAFE_PATH, None)  # an agent's subprocesses are its own affair
            _forget_peak_memory()
            state, payload = _do(
                job, partial(task, job, partial(send, PROGRESS), *partners), memory
            )
            if os.getpid() == own:
                for stream in (sys.stdout, sys.stderr):
                    with suppress(Exception):  # the agent may have closed or replaced it
                        stream.flush()
            if may_repeat and state == DONE and NEWLY_KEPT:
                state, payload = AGAIN, {}  # others do it with kernels that were loaded
            send(state, payload)
    os._exit(0)


def _do(
    job: Any, task: Callable[[], dict[str, Any]], memory: float | None
) -> tuple[str, dict[str, Any]]:
    """Return what a job reports at its end: state and payload."""
    try:
        payload = task()
        canonical(payload)  # refuses what is not JSON-plain
        return DONE, payload
    except BaseException as error:  # whatever an agent raises, SystemExit included
        name = job.spec["agent"]["name"] if isinstance(job, Cell) else ""
        payload = error_words(error, name, memory)
        payload["traceback"] = traceback.format_exc()
        if isinstance(error, AgentError):
            payload |= {"error": str(error), "traceback": error.traceback}
        return FAILED, payload


def play(cell: Cell, tell: Tell, walled: WalledAgent | None = None) -> dict[str, Any]:
    """Run a cell, its agent behind the wall if there is one."""
    from benchmarks.run.runner import run_cell

    folder = agent_folder(cell.spec["agent"])
    reads = watch_folder(folder) if folder and walled is None else dict
    if walled is not None:
        walled.enclose(cell.model)
    payload = run_cell(cell.spec, cell.kwargs, cell.model, cell.agent_seed, walled)
    found = reads()
    if "wall" in payload and (names := payload["wall"].pop("reads")):
        assert folder is not None
        found = digests(folder, names)
    return payload | ({"reads": found} if found else {})


def class_facts_of(name: str, tell: Tell, walled: WalledAgent) -> dict[str, Any]:
    """Return what the class of an agent says of itself."""
    return walled.facts(name)


def train_model(
    training: Training, tell: Tell, folder: Path, checkpoint_every: int
) -> dict[str, Any]:
    """Train what a suite asks for, or go on with it, and write it into a folder."""
    from baselines.rl import recipe, train

    spec = training.spec
    card = train(
        spec["agent"],
        recipe(spec["agent"], spec["env"]).env_id,
        training.kwargs,
        steps=spec["steps"],
        out=training.path(folder),
        horizon=spec["horizon"],
        seed=spec["seed"],
        settings=spec["settings"],
        resume=True,
        checkpoint_every=checkpoint_every,
        on_progress=lambda progress: tell(asdict(progress)),
    )
    return {"steps": card["steps"]}


def error_words(error: BaseException, agent: str, memory: float | None) -> dict[str, Any]:
    """Return the ``error`` of a job in words, with its place in the agent's file if it has one."""
    if memory is not None:
        _grant_spare_memory()
    return {"error": _summary(error, memory) + (_place(error, agent) if agent else "")}


def _summary(error: BaseException, memory: float | None) -> str:
    summary = f"{type(error).__name__}: {error}"
    starved = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if starved or "can't allocate memory" in str(error):  # the last is torch's RuntimeError
        limit = "" if memory is None else f" within the limit of {memory:g} MB"
        return f"out of memory{limit} ({summary})"
    return summary


def _place(error: BaseException, agent: str) -> str:
    """Return the last line of the agent's own file that an error came through, in brackets."""
    with suppress(Exception):  # an agent that cannot be found is the error itself
        module = sys.modules[agent_spec(agent).target.partition(":")[0]]
        frames = traceback.extract_tb(error.__traceback__)
        *_, last = (frame for frame in frames if frame.filename == module.__file__)
        return f" ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
    return ""


def _limit_memory(megabytes: float) -> None:
    """Limit the data of this process to so much more than it holds now.

    What it holds is the program itself, 200 to 600 MB: a fork server that had to compile the
    kernels keeps what that took.
    """
    import resource

    status = Path("/proc/self/status").read_text()
    held = int(status.split("VmData:")[1].split()[0]) * 2**10
    soft, hard = (held + int(size * 2**20) for size in (megabytes, megabytes + _SPARE_MEMORY))
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _grant_spare_memory() -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _forget_peak_memory() -> None:
    """Let the peak of a job's memory be its own, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _detach(printer: Connection | None) -> None:
    """Own process group, output to the pipe if there is one, and no life without the parent."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone; children of the agent can be ended
    target = os.open(os.devnull, os.O_WRONLY) if printer is None else printer.fileno()
    for handle in (1, 2):
        os.dup2(target, handle)
    if printer is not None:
        printer.close()
    _end_with_parent()


def _end_with_parent() -> None:
    """Have this process group killed when the parent is gone, however it went."""
    parent: Any = multiprocessing.parent_process()
    if sys.platform == "linux":  # where the kernel does it, even to what is stopped or busy in C
        import fcntl

        handle = parent.sentinel
        with suppress(OSError):
            fcntl.fcntl(handle, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_ASYNC)
            if parent.is_alive():
                return

    def follow() -> None:
        parent.join()
        if hasattr(os, "killpg"):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
