"""What a report shows of serving: its score, its columns and panels, and how to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.problems.kind import (
    CLOCK,
    LUCK,
    Kind,
    Line,
    Panel,
    Scale,
    TrainingCurve,
    curve_gaps,
    first_shown,
)
from benchmarks.problems.serving.metrics import METRICS

if TYPE_CHECKING:
    from benchmarks.score.task_board import TaskBoard


def _about_serving(table: pl.DataFrame) -> str:
    return f"load {float(table['load'].to_numpy().mean()):.2f}"


def _panels(task: TaskBoard) -> list[Panel]:
    """Return what a slot costs and what is paid for not being the oracle; or what is earned."""
    oracle = task.curves.get("oracle")
    weighted = "rewards" in task.task["kwargs"]  # presets pay 1 a user here, or earn 1 an answer
    costs = {label: (curves.t, curves.sums["cost"]) for label, curves in task.curves.items()}
    if oracle is not None and oracle.sums["cost"][:, -1].mean() < 0.0:
        rewards = {label: (t, -sums / t) for label, (t, sums) in costs.items()}
        waiting = {label: (c.t, c.sums["waiting"] / c.t) for label, c in task.curves.items()}
        unit = "as weighted" if weighted else "answer kept = 1"
        return [
            _panel(task, f"mean reward a slot so far\n({unit}; more is better)", rewards, "linear"),
            _panel(task, "mean users in the system so far\n(less is better)", waiting, "log"),
        ]
    gaps = {
        label: (curves.t, gap)
        for label, curves in task.curves.items()
        if (gap := curve_gaps(curves, oracle, "cost")) is not None
    }
    means = {label: (t, sums / t) for label, (t, sums) in costs.items()}
    unit, total = ("as weighted", "as weighted") if weighted else ("users", "user slots")
    return [
        _panel(task, f"mean cost a slot so far\n({unit}; less is better)", means, "log"),
        _panel(task, f"cost beyond the oracle's so far\n({total}; less is better)", gaps, "symlog"),
    ]


def _panel(task: TaskBoard, quantity: str, lines: dict[str, Line], scale: Scale) -> Panel:
    """Return a panel over time; on a linear axis what is random may lie outside.

    A symlog axis is linear as far as means lie below 0, and shows what lies there.
    """
    first, last = first_shown(task), float(task.task["horizon"])
    shown = [
        values.mean(axis=0)[t >= first]
        for label, (t, values) in lines.items()
        if scale != "linear" or label != "random"
    ]
    heights = np.concatenate([np.zeros(0), *shown])
    if scale == "log":
        heights = heights[heights > 0.0]
    if not heights.size:
        heights = np.ones(1)
    low, high = float(heights.min()), float(heights.max())
    room = 0.08 * (high - low) + 1e-3
    linear = 10.0 ** np.ceil(np.log10(max(-low, 10.0)))
    span = {
        "linear": (low - room, high + room),
        "log": (max(0.8 * low, 1e-4 * high), 1.3 * high),
        "symlog": (-1.2 * linear if low < 0.0 else -0.2 * linear, 1.3 * max(high, linear)),
    }[scale]
    return Panel("slot t", quantity, lines, "log", scale, (first, last), span, (), linear)


KIND = Kind(
    name="serving",
    metrics=(*(metric.name for metric in METRICS), *LUCK),
    h=pl.col("h"),
    h_name="log(1 + mean cost), or minus the mean reward where answers earn",
    luck_name="kept answers",
    bound=pl.col("h_bound"),
    blind=("oracle", "random"),
    reference=("mean_reward",),
    about=_about_serving,
    columns=(*(column for metric in METRICS for column in metric.columns), CLOCK),
    legend="""\
*score*: (h(random) - h(agent)) / (h(random) - h(oracle)), paired by seed, with h = log(1 + mean
cost a slot), or minus the mean reward where kept answers earn something. 1 is the exact optimum
where the state is small (tiny-pair, slow-server, impatient: relative values over all states), else
a reference that knows who keeps what (known-rollout; with windows known-forecast, and where LLMs
arrive known-reactive), which may be beaten; the run fails if the bound of a linear program is.
*known-* agents know who keeps what and are outside the ranking. *behind the oracle*: paired
difference of the reward a slot. It is the sum of what *control* costs, the oracle less known-X, and
what *learning* costs, known-X less X, for every X that has such a twin. *waiting*, *in service*,
*thinking*: mean numbers; who thinks is not seen by an agent. *lost*: share of the users who left
without an answer they keep. *illegal*: dispatches that did nothing.""",
    compared=("mean_reward", "mean_waiting", "retrials_per_kept", "lost_share"),
    picture=("serving", "cost a slot, and beyond the oracle's, over time"),
    panels=_panels,
    exact=pl.col("exact") == 1.0,
    training=TrainingCurve(
        "waiting",
        "users in the system while training\n(less is better; dips: new episodes)",
        log=True,
    ),
)
