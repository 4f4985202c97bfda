"""How long the report of a full board takes: ``python -m benchmarks.measure.report_speed``.

Every task and agent of the queueing suite with 10 seeds, results made up: the statistics with
10,000 repetitions, the scoring around them, the page.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.plan.cells import task_identity
from benchmarks.plan.suite import REFERENCES, load_suite
from benchmarks.report.page import board_page
from benchmarks.run.runner import curve_steps
from benchmarks.score.intervals import (
    REPETITIONS,
    StratifiedBootstrap,
    family_weights,
    percentile_limits,
)
from benchmarks.score.scoring import make_board
from benchmarks.score.standing import FAMILIES, PROFILE_THRESHOLDS

Record = dict[str, Any]

_ORIGIN = {
    "command": "python -m benchmarks.measure.report_speed",
    "version": "made up",
    "commit": None,
    "python": "3",
    "numpy": "2",
    "gymnasium": "1",
    "machine": "none",
}


def statistics_seconds(tasks: int, agents: int, seeds: int) -> dict[str, float]:
    """Return seconds by step of the bootstrap on scores drawn at random."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (agents, 1)) + rng.normal(0, 0.2, (agents, tasks * seeds))
    first, second = np.array(list(combinations(range(agents), 2))).T
    clock = [perf_counter()]
    bootstrap = StratifiedBootstrap.draw({f"task{i}": seeds for i in range(tasks)})
    clock.append(perf_counter())
    weights = family_weights([FAMILIES[i % 2] for i in range(tasks)])
    samples = bootstrap.mean(scores, weights)
    percentile_limits(samples)
    clock.append(perf_counter())
    percentile_limits(bootstrap.iqm(scores))
    clock.append(perf_counter())
    percentile_limits(samples[first] - samples[second])
    clock.append(perf_counter())
    percentile_limits(bootstrap.improvement(scores[first], scores[second], weights))
    clock.append(perf_counter())
    percentile_limits(bootstrap.profile(scores, PROFILE_THRESHOLDS, weights))
    clock.append(perf_counter())
    names = (
        "samples",
        "means over families of tasks",
        "interquartile means",
        "paired differences",
        "probabilities of improvement",
        "performance profiles",
    )
    return dict(zip(names, np.diff(clock).tolist(), strict=True))


def made_up_run(name: str, seeds: int) -> tuple[Record, list[Record]]:
    """Return the plan and the results of a queueing suite whose figures are drawn at random."""
    rng = np.random.default_rng(1)
    suite = load_suite(name)
    quality: dict[str, float] = {"oracle": 0.0, "random": 1.0}
    cells = []
    for task in suite.tasks:
        body = task_identity(task)
        t = curve_steps(task.horizon)
        steps = np.diff(t, prepend=0)
        for label in (*REFERENCES, *(entry.label for entry in task.agents)):
            level = quality.setdefault(label, float(rng.uniform(0.1, 0.8)))
            level = min(1.0, max(0.0, level + float(rng.normal(0, 0.05)) * (0 < level < 1)))
            for seed in range(seeds):
                mean = float(np.expm1(np.log(2.5) + 3 * level + rng.normal(0, 0.1)))
                queue = np.cumsum(rng.poisson(mean, t.size) * steps)
                regret = np.cumsum(rng.uniform(0, level, t.size) * steps / np.sqrt(t))
                agent = {"name": label, "label": label, "settings": {}}
                spec = {"task": body, "agent": agent, "seed": seed, "protocol": "online"}
                metrics = {
                    "mean_queue": queue[-1] / task.horizon,
                    "tail_queue": mean,
                    "wait_p95": 3 * mean,
                    "retrials_per_departed": level,
                    "routing_regret": regret[-1],
                    "luck": 0.0,
                    "arrival_rate": 0.8,
                    "capacity": 0.9,
                }
                cells.append(
                    {
                        "spec": spec,
                        "metrics": metrics,
                        "curve": {
                            "t": t.tolist(),
                            "queue": queue.tolist(),
                            "regret": regret.tolist(),
                        },
                        "timing": {"decision_us_median": 5 + 99 * level, "wall_seconds": 0.4},
                        "provenance": _ORIGIN,
                    }
                )
    run = {"suite": name, "cells": [c["spec"] for c in cells], "skipped": {}, "provenance": _ORIGIN}
    return run, cells


def main() -> None:
    """Print seconds and sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="queueing", help="a queueing suite")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="where the page is kept")
    given = parser.parse_args()
    run, cells = made_up_run(given.suite, given.seeds)
    tasks = len({spec["task"]["name"] for spec in run["cells"]})
    agents = len({spec["agent"]["label"] for spec in run["cells"]})
    print(f"{tasks} tasks x {agents} agents x {given.seeds} seeds, {REPETITIONS:,} repetitions")
    found = statistics_seconds(tasks, agents, given.seeds)
    found["all statistics"] = sum(found.values())
    clock = perf_counter()
    board = make_board(run, cells, [], [])
    found["whole board, exponents included"] = perf_counter() - clock
    clock = perf_counter()
    page = board_page(board)
    found["page"] = perf_counter() - clock
    for name, seconds in found.items():
        print(f"  {name:<33}{seconds:6.2f} s")
    print(f"  page: {len(page.encode()) / 1e6:.2f} MB")
    if given.out is not None:
        given.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
