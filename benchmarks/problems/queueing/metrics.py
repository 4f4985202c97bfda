"""What is measured of a queueing run and shown in the tables: a metric and its columns each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems.kind import (
    Column,
    Evidence,
    Metric,
    curve_gaps,
    growth_of,
    interval_of,
    mean_of,
    size_of,
)
from benchmarks.score.intervals import Interval, block_means, decay_exponent
from llmqueue_gym.workloads.traces import dispersion, interarrival_cv

TAIL_SHARE = 0.2
"""Last share of the horizon that the tail of a metric is taken over."""

BURST_WINDOW = 100
"""Slots over which arrivals are counted for their index of dispersion."""


@dataclass
class Trace:
    """What happened in every slot of a run; arrays of shape (T,).

    Attributes
    ----------
    queue_length : ndarray
        Waiting queries at the end of the slot, Q_t.
    best_rate, departure_rate : ndarray
        Largest departure rate in the learner's whole queue, beyond the window too, and that of
        its choice, p(x_t, S_t).
    departed, retried : ndarray of bool
        What the served user did.
    sojourn : ndarray
        Slots the departed query spent in the system; 0 where none departed.
    arrived : ndarray of bool
        Whether a query arrived.
    """

    queue_length: NDArray[np.int64]
    best_rate: NDArray[np.float64]
    departure_rate: NDArray[np.float64]
    departed: NDArray[np.bool_]
    retried: NDArray[np.bool_]
    sojourn: NDArray[np.int64]
    arrived: NDArray[np.bool_]

    @classmethod
    def empty(cls, horizon: int) -> Trace:
        """Return a trace of ``horizon`` slots to be filled in."""
        ints = [np.zeros(horizon, dtype=np.int64) for _ in range(2)]
        floats = [np.zeros(horizon) for _ in range(2)]
        flags = [np.zeros(horizon, dtype=np.bool_) for _ in range(3)]
        return cls(ints[0], floats[0], floats[1], flags[0], flags[1], ints[1], flags[2])

    @property
    def regret(self) -> NDArray[np.float64]:
        """Routing regret of every slot: 0 with an empty queue, where both rates are 0.

        Rounding can leave an optimal choice 1e-16 above its own maximum.
        """
        return np.maximum(self.best_rate - self.departure_rate, 0.0)


class Run(NamedTuple):
    """What is recorded of a run.

    Attributes
    ----------
    trace : Trace
    window : int
        Slots of the window, W.
    arrival_rate, capacity : float
        Of the instance.
    usd : float or None
        Paid for all answers; None where costs are unknown.
    """

    trace: Trace
    window: int
    arrival_rate: float
    capacity: float
    usd: float | None = None

    @property
    def departures(self) -> int:
        """Queries that departed."""
        return int(self.trace.departed.sum())

    @property
    def retrials(self) -> int:
        """Answers that were not kept."""
        return int(self.trace.retried.sum())

    @property
    def arrivals(self) -> NDArray[np.int64]:
        """Slots with an arrival."""
        return np.flatnonzero(self.trace.arrived)

    def per_departure(self, total: float | None) -> float | None:
        """Share a total among the queries that departed."""
        return total / self.departures if self.departures and total is not None else None


def _tail_queue(run: Run) -> float:
    queue = run.trace.queue_length
    return float(queue[-max(1, round(TAIL_SHARE * queue.size)) :].mean())


def _wait_p95(run: Run) -> float | None:
    sojourns = run.trace.sojourn[run.trace.departed]
    return float(np.percentile(sojourns, 95)) if sojourns.size else None


def _mean_sojourn(run: Run) -> float | None:
    sojourns = run.trace.sojourn[run.trace.departed]
    return float(sojourns.mean()) if sojourns.size else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _queue_decay(evidence: Evidence) -> Interval | None:
    curves, oracle = evidence.curves, evidence.oracle
    if oracle is None or (gaps := curve_gaps(curves, oracle, "queue")) is None:
        return None
    blocks = evidence.blocks(np.intersect1d(curves.seeds, oracle.seeds))
    return decay_exponent(curves.t, block_means(gaps, blocks), evidence.task)


METRICS: tuple[Metric[Run], ...] = (
    Metric("arrival_rate", lambda run: run.arrival_rate),
    Metric("capacity", lambda run: run.capacity),
    Metric(
        "mean_queue",
        lambda run: float(run.trace.queue_length.mean()),
        (
            Column("mean queue", "", size_of("mean_queue")),
            Column("", "queue", mean_of("mean_queue"), 3),
        ),
    ),
    Metric(
        "tail_queue",
        _tail_queue,
        (
            Column("tail queue", "", size_of("tail_queue")),
            Column("tail gap", "", interval_of("tail_queue", "tail_queue_oracle"), oracle="0"),
            Column("", "tail gap", interval_of("tail_queue", "tail_queue_oracle"), 3),
            Column("decay", "", _queue_decay, oracle="", missing="noise"),
        ),
    ),
    Metric(
        "routing_regret",
        lambda run: float(run.trace.regret.sum()),
        (
            Column("routing regret", "", size_of("routing_regret")),
            Column("", "regret", mean_of("routing_regret"), 3),
            Column("growth", "", growth_of, oracle="", missing="noise"),
        ),
    ),
    Metric(
        "backlog_share",  # of the slots that ended with queries beyond the window
        lambda run: float(np.mean(run.trace.queue_length > run.window)),
        (Column("backlog", "", mean_of("backlog_share"), 3),),
    ),
    Metric("wait_p95", _wait_p95, (Column("p95 wait", "", mean_of("wait_p95"), 3),)),
    Metric("mean_sojourn", _mean_sojourn),
    Metric("departures", lambda run: run.departures),
    Metric("retrials", lambda run: run.retrials),
    Metric(
        "retrials_per_departed",
        lambda run: run.per_departure(run.retrials),
        (Column("retrials / departed", "", mean_of("retrials_per_departed"), 3),),
    ),
    Metric(
        "usd_per_query",
        lambda run: run.per_departure(run.usd),
        (Column("USD / query", "", mean_of("usd_per_query"), 5),),
    ),
    Metric("arrival_cv", lambda run: _finite(interarrival_cv(run.arrivals))),
    Metric("arrival_dispersion", lambda run: _finite(dispersion(run.arrivals, BURST_WINDOW))),
)
"""In the order of their columns."""
