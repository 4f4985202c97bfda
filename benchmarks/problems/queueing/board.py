"""What a report shows of queueing: its score, its columns and panels, and how to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.problems.kind import (
    CLOCK,
    LUCK,
    Curves,
    Kind,
    Line,
    Panel,
    TrainingCurve,
    first_shown,
)
from benchmarks.problems.queueing.metrics import METRICS

if TYPE_CHECKING:
    from benchmarks.score.task_board import TaskBoard

_BURSTY = 1.5
"""Burstiness from which on it is named; one run of Bernoulli arrivals varies around 1."""

_LOG_ABOVE = 30.0  # queue lengths beyond this get a logarithmic axis
_WINDOWS = 28  # means of the queue length are taken over so many log-spaced windows


def _about_queue(table: pl.DataFrame) -> str:
    load = float((table["arrival_rate"] / table["capacity"]).to_numpy().mean())
    seen = table.filter(pl.col("arrival_dispersion").is_not_null())
    bursts = (seen["arrival_dispersion"] / (1.0 - seen["arrival_rate"])).to_numpy()
    bursty = bursts.size and bursts.mean() > _BURSTY
    return f"load {load:.2f}" + (f", burstiness {bursts.mean():.1f}" if bursty else "")


def _queue_panel(task: TaskBoard) -> Panel:
    lines = {label: windowed_means(curves) for label, curves in task.curves.items()}
    highest = max(float(means.mean(axis=0).max()) for _, means in lines.values())
    return Panel(
        "slot t",
        "queue length\n(queries; less is better)",
        lines,
        "log",
        "symlog" if highest > _LOG_ABOVE else "linear",
        (first_shown(task), float(task.task["horizon"])),
        (0.0, (1.5 if highest > _LOG_ABOVE else 1.05) * highest + 0.01),
    )


def _regret_panel(task: TaskBoard) -> Panel:
    first = first_shown(task)
    lines = {
        label: (curves.t, curves.sums["regret"])
        for label, curves in task.curves.items()
        if label != "oracle" or curves.sums["regret"].any()  # 0 where the window never binds
    }
    shown = np.concatenate(
        [np.zeros(0), *(regret.mean(axis=0)[t >= first] for t, regret in lines.values())]
    )
    positive = shown[shown > 0]
    return Panel(
        "slot t",
        "cumulative routing regret\n(departures; less is better)",
        lines,
        "log",
        "log",
        (first, float(task.task["horizon"])),
        (0.8 * float(positive.min()), 1.5 * float(positive.max())) if positive.size else (0.1, 1.0),
    )


def windowed_means(curves: Curves) -> Line:
    """Mean queue length in log-spaced windows: centres (L,) and means (seeds, L)."""
    t = np.concatenate([[0.0], curves.t])
    queue = curves.sums["queue"]
    total = np.concatenate([np.zeros((queue.shape[0], 1)), queue], axis=1)
    wanted = np.geomspace(1, curves.t[-1], _WINDOWS)
    edges = np.unique(np.concatenate([[0], np.searchsorted(t, wanted)]))
    means = np.diff(total[:, edges], axis=1) / np.diff(t[edges])
    return np.sqrt(np.maximum(t[edges[:-1]], 1.0) * t[edges[1:]]), means


KIND = Kind(
    name="queueing",
    metrics=(*(metric.name for metric in METRICS), *LUCK),
    h=pl.col("mean_queue").log1p(),
    h_name="log(1 + mean queue)",
    luck_name="departures",
    bound=None,  # the oracle's h is the optimum itself
    blind=("oracle", "random"),
    reference=("tail_queue",),
    about=_about_queue,
    columns=(*(column for metric in METRICS for column in metric.columns), CLOCK),
    legend="""\
*score*: (h(random) - h(agent)) / (h(random) - h(oracle)) with
h = log(1 + mean queue length), paired by seed; 0 is random, 1 the optimum (c mu). *burstiness*:
variance of the arrivals in 100 slots over that of Bernoulli arrivals. *mean queue* and
*tail queue* (last 20% of the slots): waiting queries. *tail gap*: paired difference of the tail to
the oracle's, the queue length regret; *decay*: its exponent in t. *routing regret*: cumulative, and
not 0 even of the oracle where a better query waits beyond the window; *growth*: its exponent in t
(both fitted over the last decade of slots; "noise" where the gap is not positive throughout).
*backlog*: share of slots in which more queries wait than the window shows. *p95 wait*: slots from
arrival to departure, of departed queries.
*USD / query*: cost of all answers served, those of retrials too, over the queries that departed
(empty where the workload records no costs). *worth of contexts* (*contexts*): paired difference of
the score to that on the same task with contexts shuffled among its queries, which can then be
recognised but not judged by them; of the agents that play both. *µs / decision*: median of act +
update over slots with a waiting query.""",
    compared=(
        "mean_queue",
        "tail_queue",
        "routing_regret",
        "retrials_per_departed",
        "wait_p95",
    ),
    picture=("leaderboard", "queue length and routing regret over time"),
    panels=lambda task: [_queue_panel(task), _regret_panel(task)],
    training=TrainingCurve(
        "queue", "queue length while training\n(less is better; dips: new episodes)", log=True
    ),
)
