"""The Ray engine: the same cells as tasks of a Ray cluster, on this machine or on many.

Ray finds the machines, spreads the tasks and repeats those of a node that died; a task hands its
cell to a `LocalEngine`, so it runs in the same kind of process as without Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from baselines.interface import AGENT_FOLDERS
from benchmarks.plan.cells import Cell
from benchmarks.plan.suite import canonical
from benchmarks.run.engines import LocalEngine, Outcome
from llmqueue_gym.errors import needing

RETRIES = 3
"""Times a cell is started again after its node, or Ray's process on it, died."""

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_OBJECT_STORE = 80 * 2**20  # bytes; a result is some kilobytes and travels without it


class RayEngine:
    """Runs cells as Ray tasks of one core each, on a cluster that is there or on this machine.

    The project must be installed on every node, in the same version and with the same code, and a
    task's data under the same path; a node where something differs fails its cells with a message
    that says what. A node that dies costs the cells it was running: Ray starts them elsewhere.

    Parameters
    ----------
    address : str, optional
        ``HOST:PORT`` of a cluster, or ``"auto"`` to find the one this machine is part of; without
        it a cluster of one node is started on this machine and ended with the run.
    workers : int, optional
        Cells run at once; all cores of the cluster, also of nodes that join later, when not given.
    timeout, memory, hidden
        As for the local engine.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        timeout: float | None = None,
        memory: float | None = None,
        hidden: Sequence[str] = (),
    ) -> None:
        LocalEngine(
            1 if workers is None else workers, timeout, memory
        )  # refuses impossible settings here and now
        self.hidden = tuple(hidden)
        self.address = address
        self.workers = workers
        self.timeout = timeout
        self.memory = memory
        _ray()

    def run(self, cells: Sequence[Cell]) -> Generator[Outcome]:
        """Run the cells and yield outcomes in order of completion."""
        if not cells:
            return
        ray, queue = _ray(), iter(cells)
        running: dict[Any, Cell] = {}
        with self._connected(ray):
            task = ray.remote(_run).options(num_cpus=1, max_retries=RETRIES)
            try:
                while True:
                    # A few tasks more than cores: no core waits for this process, and an
                    # autoscaler sees that there is work, but a million are not queued at once.
                    limit = self.workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
                    while len(running) < limit and (cell := next(queue, None)) is not None:
                        settings = self.timeout, self.memory, self.hidden
                        folders = sys.path, AGENT_FOLDERS
                        running[task.remote(cell, settings, *folders)] = cell
                    if not running:
                        return
                    for job in ray.wait(list(running), num_returns=1)[0]:
                        yield _outcome(ray, running.pop(job), job)
            finally:
                for job in running:
                    ray.cancel(job, force=True)

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        """Join the cluster, or start one that only this machine can reach."""
        if ray.is_initialized():  # the caller's own
            yield
            return
        if self.address is None:
            start_here(self.workers)
        else:
            ray.init(address=self.address, **_QUIET)
        try:
            yield
        finally:
            ray.shutdown()


def start_here(workers: int | None = None) -> None:
    """Start a cluster of one node that only this machine can reach; `ray.shutdown` ends it."""
    _ray().init(
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        _node_ip_address="127.0.0.1",
        **_QUIET,
    )


def _ray() -> Any:
    """Import Ray, with its reports to its makers switched off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise send the driver's accelerator variables along and warn about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with needing("the ray engine", "Ray", "ray"):
        import ray
    return ray


def _outcome(ray: Any, cell: Cell, job: Any) -> Outcome:
    try:
        payload, failed, where = ray.get(job)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        summary = f"Ray gave up on the cell: {type(error).__name__}: {reason}"
        return Outcome(cell, {"error": summary, "traceback": str(error), "output": ""}, True)
    return Outcome(cell, payload, failed, where)


# --- on a node ------------------------------------------------------------------------------------

_checked: set[str] = set()


def _run(
    cell: Cell,
    settings: tuple[float | None, float | None, Sequence[str]],
    path: list[str],
    agent_folders: list[str],
) -> tuple[dict[str, Any], bool, Mapping[str, str]]:
    """Run one cell in a process of its own; return payload, whether it failed, and where."""
    from benchmarks.run.runner import platform_here

    sys.path += [folder for folder in path if folder not in sys.path and os.path.isdir(folder)]
    AGENT_FOLDERS[:] = filter(os.path.isdir, agent_folders)
    if complaint := _complaint(cell):
        return {"error": complaint, "traceback": "", "output": ""}, True, platform_here()
    [outcome] = LocalEngine(1, *settings).run([cell])
    return outcome.payload, outcome.failed, platform_here()


def _complaint(cell: Cell) -> str | None:
    """Say what would make this node's result another one; None if nothing does."""
    from benchmarks.plan.cells import spec_here
    from llmqueue_gym.errors import UsageError

    spec = cell.spec
    known = canonical([{**spec, "seed": None}, dict(cell.kwargs)])
    if known in _checked:
        return None
    node = f"node {os.uname().nodename}" if hasattr(os, "uname") else "a node"
    try:
        here = spec_here(spec, cell.kwargs)
    except UsageError as error:
        return f"{node} cannot run it: {error}"
    if different := [name for name in spec if spec[name] != here[name]]:
        return f"{node} has another {', '.join(different)} than the machine that planned the run"
    _checked.add(known)
    return None
