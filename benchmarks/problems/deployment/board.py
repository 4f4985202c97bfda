"""What a report shows of deployment: its score, its columns and panels, and how to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.problems.deployment.metrics import METRICS
from benchmarks.problems.kind import (
    CLOCK,
    LUCK,
    Column,
    Evidence,
    Kind,
    Line,
    Panel,
    Sweeps,
    Traffic,
    TrainingCurve,
    first_shown,
)

if TYPE_CHECKING:
    from benchmarks.score.task_board import TaskBoard

ADOPTED_SHARE = 0.05
"""Part of a stage's queries from which on the oracle counts as using an LLM."""

_MOST_SPEND = 2.0  # money axis, in budgets


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


def _about_deployment(table: pl.DataFrame) -> str:
    row = table.row(0, named=True)
    return (
        f"b = {row['budget']:.3g} USD a query, N = {row['num_llms']:.0f} LLMs, "
        f"M_max = {row['max_deployed']:.0f} deployed, K = {row['num_stages']:.0f} stages"
    )


def _ledger_panel(task: TaskBoard) -> Panel:
    """Cumulative ledger reward over the oracle's at the same query."""
    oracle = task.curves.get("oracle")
    horizon = float(task.task["horizon"])
    lines: dict[str, Line] = {}
    extremes = [1.0]
    for label, curves in task.curves.items():
        if oracle is None:
            continue
        _, mine, theirs = np.intersect1d(curves.seeds, oracle.seeds, return_indices=True)
        late = curves.t >= first_shown(task)  # a ratio of a few rewards tells nothing
        reference = oracle.sums["ledger"][theirs][:, late]
        if mine.size and (reference > 0).all():
            ratio = curves.sums["ledger"][mine][:, late] / reference
            lines[label] = (curves.t[late], ratio)
            extremes += ratio.mean(axis=0)[curves.t[late] >= horizon / 10].tolist()
    low, high = min(extremes), max(extremes)
    room = 0.15 * (high - low) + 0.005
    return Panel(
        "query t",
        "ledger reward so far / oracle's\n(more is better)",
        lines,
        "linear",
        "linear",
        (0.0, horizon),
        (max(0.0, low - room), high + room),
    )


def _spend_panel(task: TaskBoard) -> Panel:
    """Money spent, in units of the whole budget B = bT."""
    horizon = float(task.task["horizon"])
    lines = {}
    for label, curves in task.curves.items():
        start = np.zeros((curves.seeds.size, 1))
        spend = np.concatenate([start, curves.sums["spend"]], axis=1)
        lines[label] = (np.append(0.0, curves.t), spend)
    highest = max([1.0, *(float(spend[:, -1].mean()) for _, spend in lines.values())])
    ends = np.array([0.0, horizon])
    return Panel(
        "query t",
        "money spent / whole budget\n(dotted: spent evenly)",
        lines,
        "linear",
        "linear",
        (0.0, horizon),
        (0.0, min(_MOST_SPEND, 1.08 * highest)),
        ((ends, np.array([[0.0, 1.0]])), (ends, np.array([[1.0, 1.0]]))),
    )


KIND = Kind(
    name="deployment",
    metrics=(*(metric.name for metric in METRICS), *LUCK),
    h=-pl.col("ledger"),
    h_name="minus the ledger score",
    luck_name="a total reward",
    bound=-pl.col("ledger_bound") - pl.col("ledger_overshoot"),
    blind=("random",),  # with a table the oracle sees the row
    reference=(),
    about=_about_deployment,
    columns=(
        *(column for metric in METRICS for column in metric.columns),
        Column("adoption delay", "delay", _delay, 0),
        Column("adopted", "", _adopted),
        CLOCK,
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
    compared=("ledger", "reward", "regret", "spend"),
    picture=("deployment", "ledger reward and money spent over time"),
    panels=lambda task: [_ledger_panel(task), _spend_panel(task)],
    training=TrainingCurve("reward", "reward per query while training\n(more is better)"),
    sweeps=Sweeps(
        axes={
            "horizon": "queries of the run, T",
            "num_stages": "stages, K",
            "max_deployed": "LLMs deployed at a time, M_max",
        },
        following={"horizon": ("num_stages",)},
        regret="mean_regret",
        earned="ledger",
        note="""\
*regret* (of the true means) and *ledger / query*: means over seeds at the smallest and the largest
value. *exponent of regret*: of the regret at the end in T, least squares over the tasks of the
sweep with a bootstrap over seeds ("none" where it is not positive); published for StageRoute with
K ~ T^(1/3): at most 2/3. *stuck*: share of the seeds that over the last tenth of the stages (at
least one) send less than half of the queries to the LLMs the oracle of the same seed sends them to,
at the smallest and the largest T: they end on worse LLMs, or still search.
""",
    ),
)
