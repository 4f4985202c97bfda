"""What a report shows of each kind of task: its score's h, its columns and how to read them.

A column is one entry of a table here; scoring, terminal and page know no figure by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.intervals import (
    Floats,
    Interval,
    decay_exponent,
    growth_exponent,
    t_interval,
)

Ints = NDArray[np.int64]
Figure = Interval | float | None

ADOPTED_SHARE = 0.05
"""Part of a stage's queries from which on the oracle counts as using an LLM."""


@dataclass(frozen=True)
class Curves:
    """Learning curves of an agent: its seeds, t (L,), and cumulative sums (seeds, L) by name."""

    seeds: Ints
    t: Floats
    sums: Mapping[str, Floats]


@dataclass(frozen=True)
class Traffic:
    """Which LLM answered, stage by stage, in one run.

    Attributes
    ----------
    llms : tuple[str, ...]
        Names of the N LLMs.
    arrival : ndarray, shape (N,)
        First query at which each is there.
    starts, lengths : ndarray, shape (K,)
        First query and number of queries of every stage.
    served : ndarray, shape (K, N)
        Queries answered.
    """

    llms: tuple[str, ...]
    arrival: Ints
    starts: Ints
    lengths: Ints
    served: Ints

    @property
    def shares(self) -> Floats:
        """Share of a stage's queries per LLM, shape (K, N); a row sums to 1 if all are served."""
        return np.asarray(self.served / self.lengths[:, None])


class Evidence(NamedTuple):
    """All there is about an agent on a task, for the figures of its row."""

    task: str
    table: pl.DataFrame  # a row a seed, with the references' figures beside
    curves: Curves
    oracle: Curves | None
    traffic: Mapping[int, Traffic]  # by seed
    oracle_traffic: Mapping[int, Traffic]


@dataclass(frozen=True)
class Column:
    """One figure of a row.

    Attributes
    ----------
    title, short : str
        Header on the page and in the short tables; empty where it is not shown.
    figure : callable
        Evidence -> an interval, a number, or None if it cannot be had.
    digits : int
        Digits after the point of small numbers; 0 for counts.
    oracle : str, optional
        What stands in the oracle's row instead.
    missing : str
        What stands for None.
    """

    title: str
    short: str
    figure: Callable[[Evidence], Figure]
    digits: int = 2
    oracle: str | None = None
    missing: str = ""


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of task.

    Attributes
    ----------
    name : str
        As in ``benchmarks.suite.kind_of``.
    metrics : tuple[str, ...]
        What is read from a cell's metrics.
    h : polars.Expr
        What the score compares; smaller is better.
    h_name, luck_name : str
        Words for h and for what ``luck`` compares, in messages.
    bound : polars.Expr, optional
        What h of no policy can be expected to fall below; null where that does not hold of a run.
    blind : tuple[str, ...]
        References that do not know the draws: their luck is judged like the agents'.
    reference : tuple[str, ...]
        Metrics of the references that columns compare with: ``NAME_oracle``, ``NAME_random``.
    about : callable
        Table of a task -> words about its instances.
    columns : tuple[Column, ...]
        Figures besides rank, agent and score.
    legend : str
        How to read the columns.
    """

    name: str
    metrics: tuple[str, ...]
    h: pl.Expr
    h_name: str
    luck_name: str
    bound: pl.Expr | None
    blind: tuple[str, ...]
    reference: tuple[str, ...]
    about: Callable[[pl.DataFrame], str]
    columns: tuple[Column, ...]
    legend: str


# --- figures --------------------------------------------------------------------------------------


def _mean(name: str) -> Callable[[Evidence], Figure]:
    def figure(evidence: Evidence) -> float | None:
        value = evidence.table[name].mean()
        return None if value is None else float(value)  # type: ignore[arg-type]

    return figure


def _interval(name: str, less: str | None = None) -> Callable[[Evidence], Figure]:
    """Interval of a metric, or of its paired difference to another."""

    def figure(evidence: Evidence) -> Interval:
        values = evidence.table[name]
        return t_interval((values if less is None else values - evidence.table[less]).to_numpy())

    return figure


def _size(name: str) -> Callable[[Evidence], Figure]:
    """Interval of a metric that cannot be negative: it does not reach below 0."""

    def figure(evidence: Evidence) -> Interval:
        value, low, high = t_interval(evidence.table[name].to_numpy())
        return Interval(value, max(low, 0.0), high)

    return figure


def _decision(evidence: Evidence) -> float | None:
    value = evidence.table["decision_us"].median()
    return None if value is None else float(value)  # type: ignore[arg-type]


def _growth(evidence: Evidence) -> Interval | None:
    curves = evidence.curves
    return growth_exponent(curves.t, curves.sums["regret"], evidence.task)


_BURSTY = 1.5
"""Burstiness from which on it is named; one run of Bernoulli arrivals varies around 1."""

_LUCK = ("luck", "luck_deviation", "luck_variance")

_CLOCK = Column("µs / decision", "µs", _decision, 3)


def _minutes(evidence: Evidence) -> float | None:
    seconds = evidence.table["train_seconds"].mean()
    return None if seconds is None else float(seconds) / 60  # type: ignore[arg-type]


TRAINING = (
    Column("training steps", "steps", _mean("train_steps"), 0),
    Column("training minutes", "min", _minutes, 2),
)
"""Further columns of the ``pretrained`` tables: environment steps and wall time of the training."""


def _contexts(evidence: Evidence) -> Interval | None:
    """Score less what it is on the same seeds with shuffled contexts."""
    gaps = (evidence.table["score"] - evidence.table["score_shuffled"]).drop_nulls()
    return t_interval(gaps.to_numpy()) if gaps.len() else None


CONTEXTS = (Column("worth of contexts", "contexts", _contexts, 3, oracle=""),)
"""Further column of a task that some agents also play with shuffled contexts."""


# --- queueing -------------------------------------------------------------------------------------


def _queue_decay(evidence: Evidence) -> Interval | None:
    gaps = curve_gaps(evidence.curves, evidence.oracle, "queue")
    return None if gaps is None else decay_exponent(evidence.curves.t, gaps, evidence.task)


def curve_gaps(own: Curves, oracle: Curves | None, name: str) -> Floats | None:
    """Difference to the oracle's cumulative sum on the seeds both have, shape (seeds, L)."""
    if oracle is None:
        return None
    _, mine, theirs = np.intersect1d(own.seeds, oracle.seeds, return_indices=True)
    return own.sums[name][mine] - oracle.sums[name][theirs] if mine.size else None


def _about_queue(table: pl.DataFrame) -> str:
    load = float((table["arrival_rate"] / table["capacity"]).to_numpy().mean())
    seen = table.filter(pl.col("arrival_dispersion").is_not_null())
    bursts = (seen["arrival_dispersion"] / (1.0 - seen["arrival_rate"])).to_numpy()
    bursty = bursts.size and bursts.mean() > _BURSTY
    return f"load {load:.2f}" + (f", burstiness {bursts.mean():.1f}" if bursty else "")


QUEUEING = Kind(
    name="queueing",
    metrics=(
        "mean_queue",
        "tail_queue",
        "wait_p95",
        "retrials_per_departed",
        "usd_per_query",
        "backlog_share",
        "routing_regret",
        *_LUCK,
        "arrival_rate",
        "arrival_dispersion",
        "capacity",
    ),
    h=pl.col("mean_queue").log1p(),
    h_name="log(1 + mean queue)",
    luck_name="departures",
    bound=None,  # the oracle's h is the optimum itself
    blind=("oracle", "random"),
    reference=("tail_queue",),
    about=_about_queue,
    columns=(
        Column("mean queue", "", _size("mean_queue")),
        Column("", "queue", _mean("mean_queue"), 3),
        Column("tail queue", "", _size("tail_queue")),
        Column("tail gap", "", _interval("tail_queue", "tail_queue_oracle"), oracle="0"),
        Column("", "tail gap", _interval("tail_queue", "tail_queue_oracle"), 3),
        Column("decay", "", _queue_decay, oracle="", missing="noise"),
        Column("routing regret", "", _size("routing_regret")),
        Column("", "regret", _mean("routing_regret"), 3),
        Column("growth", "", _growth, oracle="", missing="noise"),
        Column("backlog", "", _mean("backlog_share"), 3),
        Column("p95 wait", "", _mean("wait_p95"), 3),
        Column("retrials / departed", "", _mean("retrials_per_departed"), 3),
        Column("USD / query", "", _mean("usd_per_query"), 5),
        _CLOCK,
    ),
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
)


# --- deployment -----------------------------------------------------------------------------------


def adoption_delays(own: Traffic, oracle: Traffic) -> list[tuple[int, bool]]:
    """Count queries from the arrival of each better LLM to its adoption, and say if it was.

    A better LLM arrives after the first query and gets at least ``ADOPTED_SHARE`` of some stage
    from the oracle of the same seed. It is adopted at the start of the first such stage in which
    the agent gives it at least half of what the oracle does. If there is none, the delay runs to
    the end of the last such stage: it is at least that long.
    """
    mine, theirs = own.shares, oracle.shares
    delays = []
    for llm in np.flatnonzero(own.arrival > 0):
        used = np.flatnonzero(theirs[:, llm] >= ADOPTED_SHARE)
        if used.size:
            hits = used[mine[used, llm] >= theirs[used, llm] / 2]
            last = int(used[-1])
            end = int(own.starts[hits[0]] if hits.size else own.starts[last] + own.lengths[last])
            delays.append((end - int(own.arrival[llm]), bool(hits.size)))
    return delays


def is_stuck(own: Traffic, oracle: Traffic) -> bool:
    """Whether a run ends on worse LLMs, or is still searching.

    So it is if over the last tenth of the stages (at least one) less than half of the queries went
    where the oracle of the same seed sent them: LLM by LLM and stage by stage, the smaller of both
    counts is what they share. The oracle uses LLMs that are there, so the better ones are.
    """
    last = slice(-max(1, own.starts.size // 10), None)
    shared = np.minimum(own.served[last], oracle.served[last]).sum()
    return bool(2 * shared < own.lengths[last].sum())


def _adoption(evidence: Evidence) -> list[tuple[int, bool]]:
    return [
        pair
        for seed in evidence.traffic.keys() & evidence.oracle_traffic.keys()
        for pair in adoption_delays(evidence.traffic[seed], evidence.oracle_traffic[seed])
    ]


def _delay(evidence: Evidence) -> float | None:
    delays = [delay for delay, _ in _adoption(evidence)]
    return float(np.mean(delays)) if delays else None


def _adopted(evidence: Evidence) -> float | None:
    adopted = [found for _, found in _adoption(evidence)]
    return float(np.mean(adopted)) if adopted else None


def _sum(*names: str) -> Callable[[Evidence], Figure]:
    return lambda evidence: float(
        sum(float(np.mean(evidence.table[name].to_numpy())) for name in names)
    )


def _share_of_bound(evidence: Evidence) -> float | None:
    shares = (evidence.table["ledger"] / evidence.table["ledger_bound"]).drop_nulls()
    return float(shares.to_numpy().mean()) if len(shares) else None


def _about_deployment(table: pl.DataFrame) -> str:
    row = table.row(0, named=True)
    return (
        f"b = {row['budget']:.3g} USD, N = {row['num_llms']:.0f}, "
        f"M_max = {row['max_deployed']:.0f}, K = {row['num_stages']:.0f}"
    )


DEPLOYMENT = Kind(
    name="deployment",
    metrics=(
        "ledger",
        "reward",
        "regret",
        "spend",
        "refused",
        "throttled",
        "violations",
        "ledger_bound",
        "ledger_overshoot",
        *_LUCK,
        "budget",
        "num_stages",
        "max_deployed",
        "num_llms",
    ),
    h=-pl.col("ledger"),
    h_name="minus the ledger score",
    luck_name="a total reward",
    bound=-pl.col("ledger_bound") - pl.col("ledger_overshoot"),
    blind=("random",),  # with a table the oracle sees the row
    reference=(),
    about=_about_deployment,
    columns=(
        Column("ledger / query", "", _interval("ledger"), 3),
        Column("", "ledger", _mean("ledger"), 3),
        Column("reward / query", "", _mean("reward"), 3),
        Column("share of bound", "", _share_of_bound, 3),
        Column("spend / b", "spend", _mean("spend")),
        Column("regret", "", _interval("regret")),
        Column("", "regret", _mean("regret"), 3),
        Column("growth", "", _growth, missing="none"),
        Column("refused", "", _sum("refused", "throttled"), 0),
        Column("over cap", "", _sum("violations"), 0),
        Column("", "lost", _sum("refused", "throttled", "violations"), 0),
        Column("adoption delay", "delay", _delay, 0),
        Column("adopted", "", _adopted),
        _CLOCK,
    ),
    legend="""\
*score*: (h(random) - h(agent)) / (h(random) - h(oracle)) with h = minus the ledger score, paired by
seed; 0 is the uniformly random policy, 1 the oracle that knows all means and arrivals and plans the
whole budget: close to the optimum, but not it. *share of bound*: ledger score over a bound that no
policy can expect to pass; the optimum lies between the oracle's row and 1. *ledger*: reward per
query under a hard budget B = bT; the query that would exceed it, and every later one, earns 0, as
does an answer above an LLM's throughput. *reward*: without these rules. *spend / b*: money spent
over B; above 1
the reward was bought with money that was not there. *regret*: sum of V(b, A_t) - r_t as published;
negative if overspending paid; *growth*: its exponent in t over the last decade of queries, fitted
with the true means of the chosen LLMs in place of r_t ("none" where it is not positive). *refused*:
queries nobody answered, *over cap*: queries served above an LLM's throughput (*lost*: both).
*adoption delay*: queries from the arrival of an LLM to which the oracle gives at least 5% of a
stage, to the first such stage in which the agent gives it half as much (never: to the last such
stage's end); *adopted*: share of those LLMs for which there is one. *µs / decision*: median of act
+ update.""",
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (QUEUEING, DEPLOYMENT)}
