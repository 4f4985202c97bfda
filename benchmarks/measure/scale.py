"""``python -m benchmarks.measure.scale``: what a sweep costs as cells, workers, machines come.

Planning, storing, resuming and reporting are measured on stored copies of one real result, each
step in a process of its own; the engines on real cells. Writes the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks.plan.cells import Cell, Plan, make_plan
from benchmarks.plan.suite import Suite, parse_suite
from benchmarks.report.tables import insert_between_markers
from benchmarks.run.engines import Engine, LocalEngine, Outcome, execute
from benchmarks.run.runner import platform_here, provenance, run_cell
from benchmarks.run.store import Store, write_text
from benchmarks.score.scoring import load_board

COUNTS = (1_000, 10_000)
TARGET = 1_000_000
SEEDS = 10
AGENTS = ("eps-greedy", "greedy", "LinTS", "LinUCB", "OFU-MNL+", "Q-ThS", "Q-UCB", "ACQB")
STEPS = ("plan", "store", "resume", "report")
CELLS = 12  # of the measured efficiency
WORKERS = (1, 2)
_HORIZON = 5000  # of the cell whose result is copied
_MARK = "scale"


def main() -> None:
    """Measure and write the tables, or run one step in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure.scale", description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--markdown", type=Path, help="page whose marked part takes the tables")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measure(arguments.step, arguments.cells[0], arguments.folder)))
        return
    command = f"python -m benchmarks.measure.scale --cells {' '.join(map(str, arguments.cells))}"
    busy = os.getloadavg()[0]
    engines = measure_engines()
    sizes = [measure_size(cells) for cells in sorted(arguments.cells)]
    text = tables(command, busy, sizes, engines)
    if arguments.markdown is None:
        print(text)
    else:
        page = arguments.markdown.read_text(encoding="utf-8")
        write_text(arguments.markdown, insert_between_markers(page, _MARK, text))


# --- cells by the thousand ------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Processor seconds and memory (MB) of every step, and bytes on the disk, for cells."""

    cells: int
    seconds: dict[str, float]
    memory: dict[str, float]
    plan_bytes: int
    cell_bytes: int


def measure_size(cells: int) -> Size:
    """Run the steps one after the other, each in a fresh process."""
    seconds, memory = {}, {}
    with tempfile.TemporaryDirectory(prefix="llmqueue-scale-") as folder:
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.measure.scale", "--cells", str(cells)]
            done = subprocess.run(
                [*command, "--step", step, "--folder", folder],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found = json.loads(done.stdout)
            seconds[step], memory[step] = found["seconds"], found["memory_mb"]
            print(f"{cells:,} cells, {step}: {seconds[step]:.1f} s", file=sys.stderr)
        plan_bytes = (Path(folder) / "run.json").stat().st_size
        files = (Path(folder) / "cells").iterdir()
        cell_bytes = sum(file.stat().st_size for file in files)
    return Size(cells, seconds, memory, plan_bytes, cell_bytes)


def measure(step: str, cells: int, folder: Path) -> dict[str, float]:
    """Run one step: processor seconds it took, and the memory that its result holds."""
    sweep(1)  # imports
    before, started = _resident_mb(), process_time()
    plan = sweep(cells)
    if step == "plan":
        seconds = process_time() - started
    else:
        actions: dict[str, Callable[[], Any]] = {
            "store": lambda: execute(plan, Store(folder), Copies(), provenance("scale")),
            "resume": lambda: execute(plan, Store(folder), Copies(), provenance("scale")),
            "report": lambda: load_board(Store(folder)),
        }
        started = process_time()
        result = actions[step]()  # noqa: F841 - its memory is measured
        seconds = process_time() - started
    return {"seconds": seconds, "memory_mb": _resident_mb() - before}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def sweep(cells: int) -> Plan:
    """Plan of so many cells: tasks of many loads, ten agents (references included), ten seeds."""
    tasks = -(-cells // (SEEDS * (len(AGENTS) + 2)))
    plan = make_plan(_suite(tasks, _HORIZON, AGENTS, SEEDS))
    return Plan(plan.suite, plan.cells[:cells], plan.skipped)


def _suite(tasks: int, horizon: int, agents: Sequence[str], seeds: int) -> Suite:
    table = {
        "env": "LLMQueue-v0",
        "horizon": horizon,
        "tags": ["queueing", "synthetic"],
        "kwargs": {"num_llms": 10, "assortment_size": 1, "workload": "synthetic"},
    }
    loads = [round(0.5 + 0.45 * place / tasks, 9) for place in range(tasks)]
    document = {
        "seeds": seeds,
        "agents": list(agents),
        "task": [
            {**table, "name": f"load{load}", "kwargs": {**table["kwargs"], "load": load}}  # type: ignore[dict-item]
            for load in loads
        ],
    }
    return parse_suite("scale", document)


class Copies:
    """An engine that returns one real result for every cell, so that only the rest is measured."""

    def run(self, cells: Sequence[Cell]) -> Generator[Outcome]:
        """Yield the copies."""
        if cells:
            payload = run_cell(cells[-1].spec, cells[-1].kwargs)  # the first is the oracle's
            for cell in cells:
                yield Outcome(cell, payload, failed=False)


# --- engines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """An engine on real cells.

    Attributes
    ----------
    name, workers
        Engine and cells at once.
    seconds : float
        From the first cell handed out to the last one stored, on the warm engine.
    busy : float
        Seconds that the workers were in cells, together.
    start : float
        Seconds that a run of a few empty cells takes on the cold engine.
    overhead_ms : float
        Time of an empty cell, per worker.
    driver_ms : float
        Processor time a cell costs the process that hands out and stores.
    """

    name: str
    workers: int
    seconds: float
    busy: float
    start: float
    overhead_ms: float
    driver_ms: float


@dataclass(frozen=True)
class Engines:
    """All of them, and what the cells take one after the other in one process."""

    alone: float
    cells: int
    speeds: list[Speed]


def measure_engines() -> Engines:
    """Time the engines on equal cells, and on cells that do nothing."""
    work = make_plan(_suite(1, 10_000, ["LinTS"], CELLS // 3)).cells
    empty = make_plan(_suite(1, 1, ["random"], CELLS // 2)).cells
    run_cell(work[0].spec, work[0].kwargs)  # imports
    started = perf_counter()
    for cell in work:
        run_cell(cell.spec, cell.kwargs)
    alone = perf_counter() - started
    speeds = []
    for workers in WORKERS:
        speeds.append(_speed("local", workers, LocalEngine(workers), work, empty))
    if find_spec("ray") is not None:
        import ray

        from benchmarks.run.ray_engine import RayEngine, start_here

        for workers in WORKERS:
            start_here(workers)
            try:
                speeds.append(_speed("ray", workers, RayEngine(workers=workers), work, empty))
            finally:
                ray.shutdown()
    return Engines(alone, len(work), speeds)


def _speed(
    name: str, workers: int, engine: Engine, work: Sequence[Cell], empty: Sequence[Cell]
) -> Speed:
    start, _, _ = _timed(engine, empty[: 2 * workers])
    overhead, _, driver = _timed(engine, empty)
    seconds, busy, _ = _timed(engine, work)
    print(f"{name}, {workers} workers: {seconds:.1f} s", file=sys.stderr)
    return Speed(
        name,
        workers,
        seconds,
        busy,
        start,
        1e3 * overhead * workers / len(empty),
        1e3 * driver / len(empty),
    )


def _timed(engine: Engine, cells: Sequence[Cell]) -> tuple[float, float, float]:
    """Run and store some cells: seconds, seconds in cells, processor seconds of this process."""
    inside: list[float] = []

    def note(outcome: Outcome) -> None:
        if outcome.failed:
            raise RuntimeError(f"{outcome.cell}: {outcome.payload['error']}")
        inside.append(outcome.payload["timing"]["wall_seconds"])

    with tempfile.TemporaryDirectory(prefix="llmqueue-scale-") as folder:
        plan, store = Plan("scale", tuple(cells), {}), Store(folder)
        started, used = perf_counter(), process_time()
        execute(plan, store, engine, provenance("scale"), on_outcome=note)
        return perf_counter() - started, sum(inside), process_time() - used


# --- the page -------------------------------------------------------------------------------------


def tables(command: str, busy: float, sizes: Sequence[Size], engines: Engines) -> str:
    """Return the generated part of the page."""
    here = platform_here()
    versions = ", ".join(f"{key} {value}" for key, value in here.items() if key != "machine")
    lines = [
        "",
        f"Measured by `{command}`, {versions}, on {here['machine']}, where {busy:.1f} other",
        "processes wanted to run (more than 0 makes the times of the workers worse than they are).",
        "",
        "### Cells",
        "",
        f"Cells of {_HORIZON:,} slots with learning curves of 200 points; processor time. The last",
        "row grows the largest measured one in proportion.",
        "",
        "| cells | planning | storing | looking up | scoring | memory to plan | to score "
        "| run.json | files | disk |",
        "| ---: |" + " ---: |" * 9,
    ]
    lines += [_size_row(f"{size.cells:,}", size, 1.0) for size in sizes]
    largest = max(sizes, key=lambda size: size.cells)
    factor = TARGET / largest.cells
    lines.append(_size_row(f"**{TARGET:,}**, projected", largest, factor))
    efficiency = engines.alone / engines.cells
    lines += [
        "",
        "### Workers",
        "",
        f"{engines.cells} cells of {efficiency:.2f} s each (measured in one process, one after the",
        "other). Efficiency: share of the workers' time spent in cells. Overhead: what an empty",
        "cell takes a worker, the process of its own included. Driver: processor time of the",
        "process that hands out cells and stores results; the limit is the number of cores at",
        "which it is the bottleneck, for cells of 1 s and of 60 s.",
        "",
        "| engine | workers | time | efficiency | start | overhead | driver | limit, 1 s cells "
        "| limit, 60 s cells |",
        "| :--- | ---: |" + " ---: |" * 7,
    ]
    for speed in engines.speeds:
        share = speed.busy / (speed.workers * speed.seconds)
        limits = [1e3 * seconds / speed.driver_ms for seconds in (1, 60)]
        lines.append(
            f"| {speed.name} | {speed.workers} | {speed.seconds:.1f} s | {share:.0%} "
            f"| {speed.start:.1f} s | {speed.overhead_ms:.0f} ms | {speed.driver_ms:.1f} ms "
            f"| {limits[0]:,.0f} cores | {limits[1]:,.0f} cores |"
        )
    return "\n".join([*lines, "", ""])


def _size_row(name: str, size: Size, factor: float) -> str:
    times = " | ".join(_time(size.seconds[step] * factor) for step in STEPS)
    memory = " | ".join(_bytes(size.memory[step] * factor * 2**20) for step in ("plan", "report"))
    disk = f"{_bytes(size.plan_bytes * factor)} | {size.cells * factor:,.0f} "
    return f"| {name} | {times} | {memory} | {disk}| {_bytes(size.cell_bytes * factor)} |"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _bytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MB" if count < 2**30 else f"{count / 2**30:,.1f} GB"


if __name__ == "__main__":
    main()
