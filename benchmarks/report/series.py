"""What the pictures and the page draw: lines over time, traffic by LLM and stage.

Numbers only; `benchmarks.report.draw` draws them with Matplotlib, `benchmarks.report.page` sends
them to the browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.plan.suite import REFERENCES
from benchmarks.problems.kind import Ints, Line, Panel, Scale, Traffic
from benchmarks.score.intervals import Floats
from benchmarks.score.scoring import Board
from benchmarks.score.task_board import Section, TaskBoard

_HEAT_LLMS = 24  # LLMs with a row of their own; the others share one


def panels(task: TaskBoard) -> list[Panel]:
    """Return the two panels of a task; empty if none of its cells was run."""
    if not task.curves:
        return []
    return task.kind.panels(task)


def mean_and_error(values: Floats) -> tuple[Floats, Floats | None]:
    """Mean over seeds and its standard error, each of shape (L,); no error of a single seed."""
    mean = values.mean(axis=0)
    seeds = values.shape[0]
    return mean, values.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else None


class HeatMap(NamedTuple):
    """Share of a stage's queries by LLM, mean over the seeds that meet the same LLMs.

    Attributes
    ----------
    names : tuple of str
        Rows: LLMs in order of arrival, and perhaps one of all others.
    edges : ndarray, shape (K + 1,)
        First query of every stage, and the end.
    absent : ndarray of bool, shape (rows, K)
        Where the LLM is not there yet.
    shares : dict of ndarray, shape (rows, K)
        Per agent.
    seeds : int
        Seeds averaged.
    others : bool
        Whether the last row is that of all others.
    """

    names: tuple[str, ...]
    edges: Ints
    absent: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
    shares: dict[str, Floats]
    seeds: int
    others: bool


def heat_map(task: TaskBoard) -> HeatMap | None:
    """Return the traffic of a deployment task, agents in the order of its rows, oracle first."""
    order = [row.agent for row in task.rows if row.agent not in REFERENCES]
    runs = _runs(
        {
            label: task.traffic[label]
            for label in ("oracle", *order, "random")
            if task.traffic.get(label)
        }
    )
    if not runs:
        return None
    first = next(iter(runs.values()))[0]
    shares = {
        label: np.mean([run.shares for run in found], axis=0) for label, found in runs.items()
    }
    # By the oracle and the best: what weak agents try would crowd out what is worth using.
    best = [shares[label] for label in [*shares][:4]]
    total = np.max([share.sum(axis=0) for share in best], axis=0)
    shown = np.sort(np.argsort(-total, kind="stable")[:_HEAT_LLMS])
    shown = shown[total[shown] > 0]
    shown = shown[np.argsort(first.arrival[shown], kind="stable")]
    used = np.max([share.sum(axis=0) for share in shares.values()], axis=0) > 0
    others = np.setdiff1d(np.flatnonzero(used), shown)
    names = [first.llms[llm] for llm in shown]
    names += [f"{others.size} others"] if others.size else []
    rows = {}
    for label, share in shares.items():
        parts = [share[:, shown]]
        parts += [share[:, others].sum(axis=1, keepdims=True)] if others.size else []
        rows[label] = np.concatenate(parts, axis=1).T
    absent = np.zeros((len(names), first.starts.size), dtype=np.bool_)
    absent[: shown.size] = first.starts[None, :] < first.arrival[shown, None]
    edges = np.append(first.starts, first.starts[-1] + first.lengths[-1])
    seeds = len(next(iter(runs.values())))
    return HeatMap(tuple(names), edges, absent, rows, seeds, bool(others.size))


def _runs(traffic: Mapping[str, Mapping[int, Traffic]]) -> dict[str, list[Traffic]]:
    """Return the runs of each agent to average; all of them meet the same LLMs at the same time.

    All runs if every seed has the same LLMs. Else those of the lowest seed that all agents have;
    if they share none, the first agent's lowest, without the agents that lack it.
    """
    every = [run for runs in traffic.values() for run in runs.values()]
    if all(_same_llms(run, every[0]) for run in every):
        return {label: [runs[seed] for seed in sorted(runs)] for label, runs in traffic.items()}
    first, *others = (runs.keys() for runs in traffic.values())
    seed = min(set(first).intersection(*others) or first)
    return {label: [runs[seed]] for label, runs in traffic.items() if seed in runs}


def _same_llms(run: Traffic, other: Traffic) -> bool:
    """Whether two runs have the same LLMs, arrivals and stages."""
    return run.llms == other.llms and all(
        np.array_equal(getattr(run, name), getattr(other, name))
        for name in ("arrival", "starts", "lengths")
    )


def training_panels(board: Board, section: Section) -> dict[str, Panel]:
    """Learning curves of a section's trained agents, a panel a task.

    Means of the policy while it explores: queue lengths, or rewards per query.
    """
    shown: dict[str, Panel] = {}
    for task in board.tasks_of(section):
        name = task.task["name"]
        runs = [
            run
            for run in board.trainings
            if run["task"] == name and run["steps"] and run["agent"] in task.curves
        ]
        if not runs:
            continue
        quantity, what, may_log = task.kind.training
        lines: dict[str, Line] = {}
        for run in runs:  # of several trainings the points of the first
            steps, own = lines.get(run["agent"], (np.array(run["steps"], np.float64), None))
            curve = np.interp(steps, run["steps"], run[quantity])[None]
            lines[run["agent"]] = steps, curve if own is None else np.concatenate([own, curve])
        x = np.concatenate([line[0] for line in lines.values()])
        y = np.concatenate([line[1].mean(axis=0) for line in lines.values()])
        log: Scale = "log" if may_log and (y > 0).all() else "linear"
        margin = 0.05 * float(np.ptp(y)) + 1e-3
        y_range = (
            (0.8 * float(y.min()), 1.3 * float(y.max()))
            if log == "log"
            else (float(y.min()) - margin, float(y.max()) + margin)
        )
        x_range = (float(x.min()), float(x.max()))
        shown[name] = Panel("environment steps", what, lines, "log", log, x_range, y_range)
    return shown
