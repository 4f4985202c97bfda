"""What a report shows of serving: its score, its columns and panels, and how to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.problems.kind import CLOCK, LUCK, Kind, Panel, TrainingCurve, first_shown
from benchmarks.problems.serving.metrics import METRICS

if TYPE_CHECKING:
    from benchmarks.score.task_board import TaskBoard


def _about_serving(table: pl.DataFrame) -> str:
    return f"load {float(table['load'].to_numpy().mean()):.2f}"


def _panel(task: TaskBoard, name: str, quantity: str) -> Panel:
    lines = {
        label: (curves.t, curves.sums[name] / curves.t) for label, curves in task.curves.items()
    }
    first, last = first_shown(task), float(task.task["horizon"])
    shown = np.concatenate([mean.mean(axis=0)[t >= first] for t, mean in lines.values()])
    low, high = float(shown.min(initial=0.0)), float(shown.max(initial=0.01))
    return Panel("slot t", quantity, lines, "log", "linear", (first, last), (low, 1.05 * high))


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
*known-* agents know who keeps what and are outside the ranking: the oracle less known-X is what
control costs, known-X less X what learning costs. *behind the oracle*: paired difference of the
reward a slot. *waiting*, *in service*, *thinking*: mean numbers; who thinks is not seen by an
agent. *lost*: share of the users who left without an answer they keep. *illegal*: dispatches that
did nothing.""",
    compared=("mean_reward", "mean_waiting", "retrials_per_kept", "lost_share"),
    picture=("serving", "cost a slot and queries in the system over time"),
    panels=lambda task: [
        _panel(task, "cost", "mean cost a slot so far"),
        _panel(task, "waiting", "mean number in the system so far"),
    ],
    exact=pl.col("exact") == 1.0,
    training=TrainingCurve("waiting", "number in the system while training", log=True),
)
