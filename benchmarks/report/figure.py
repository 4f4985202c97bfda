"""The picture of a board: queue length and cumulative routing regret over time, per task."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from benchmarks.scoring import Board, Curves, TaskBoard
from benchmarks.suite import REFERENCES

Floats = NDArray[np.float64]
Style = dict[str, object]

# Okabe and Ito's colour-blind-safe palette, black kept for the oracle and yellow left out (too
# pale on white); further agents repeat the colours with another dash.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FBF")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)))
_ROWS = 4  # tasks a figure
_LOG_ABOVE = 30.0  # queue lengths beyond this get a logarithmic axis
_WINDOWS = 28  # means of the queue length are taken over so many log-spaced windows


def draw_figure(board: Board, folder: Path) -> list[Path]:
    """Write ``leaderboard.png`` and ``.svg`` into ``folder`` and return their paths.

    One row a task: left the queue length over time, right the cumulative routing regret; lines are
    means over seeds, bands one standard error. Further tasks go to ``leaderboard-2`` and so on.
    """
    boards = [task for task in board.tasks if task.curves]
    styles = _styles(board)
    paths = []
    for first in range(0, len(boards), _ROWS):
        number = first // _ROWS + 1
        figure = _page(board.suite, boards[first : first + _ROWS], styles)
        name = "leaderboard" if number == 1 else f"leaderboard-{number}"
        for suffix in ("png", "svg"):
            paths.append(folder / f"{name}.{suffix}")
            temporary = folder / f".{name}.{suffix}.tmp"
            figure.savefig(temporary, dpi=160, format=suffix)
            os.replace(temporary, paths[-1])
    return paths


def _page(suite: str, boards: list[TaskBoard], styles: dict[str, Style]) -> Figure:
    """One row of panels a task above a shared legend."""
    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(11, 3.6 * len(boards) + 1.2), layout=engine)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(boards), 2, squeeze=False)
    for row, task in zip(axes, boards, strict=True):
        _queue_panel(row[0], task, styles)
        _regret_panel(row[1], task, styles)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    order = [label for label in styles if label in lines]
    columns = -(-len(order) // -(-len(order) // 6))  # full rows of at most six
    figure.legend(
        [lines[label] for label in order],
        order,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    seeds = max(task.seeds for task in boards)
    figure.suptitle(f"{suite}: mean over {seeds} seeds, band one standard error", fontsize=11)
    return figure


def _styles(board: Board) -> dict[str, Style]:
    """Line style per agent, in the order of the overall ranking, references last."""
    styles: dict[str, Style] = {}
    learning = [row.agent for row in board.overall if row.agent not in REFERENCES]
    for number, label in enumerate(learning):
        turn, colour = divmod(number, len(_COLOURS))
        dash = _DASHES[turn % len(_DASHES)]
        styles[label] = {"color": _COLOURS[colour], "linestyle": dash, "linewidth": 1.6}
    styles["oracle"] = {"color": "black", "linestyle": "--", "linewidth": 1.6, "zorder": 5}
    # Wide and behind the rest: it stays visible under an agent that does no better.
    styles["random"] = {"color": "#BDBDBD", "linestyle": "-", "linewidth": 4.5, "zorder": 1}
    return styles


def _queue_panel(axis: Axes, task: TaskBoard, styles: dict[str, Style]) -> None:
    highest = 0.0
    for label, curves in task.curves.items():
        slots, means = windowed_means(curves)
        _band(axis, slots, means, label, styles[label])
        highest = max(highest, float(means.mean(axis=0).max()))
    if highest > _LOG_ABOVE:
        axis.set_yscale("symlog", linthresh=1.0, linscale=0.5)
        axis.yaxis.set_major_formatter(_plain)
    axis.set_ylim(bottom=0)
    _dress(axis, task, "queue length")
    axis.set_title(
        f"{task.task['name']}  (load {task.load:.2f})", loc="left", fontsize=11, fontweight="bold"
    )


def _regret_panel(axis: Axes, task: TaskBoard, styles: dict[str, Style]) -> None:
    visible = []
    for label, curves in task.curves.items():
        if label != "oracle":  # its regret is 0
            _band(axis, curves.t, curves.regret, label, styles[label])
            visible.append(curves.regret.mean(axis=0)[curves.t >= _first_slot(task)])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_plain)
    shown = np.concatenate([np.zeros(0), *visible])
    if (shown > 0).any():
        axis.set_ylim(0.8 * shown[shown > 0].min(), 1.5 * shown.max())
    _dress(axis, task, "cumulative routing regret")


def _first_slot(task: TaskBoard) -> int:
    """Two decades are shown: earlier slots tell nothing apart and would fill half a log axis."""
    return max(1, int(task.task["horizon"]) // 100)


@FuncFormatter
def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:g}"


def windowed_means(curves: Curves) -> tuple[Floats, Floats]:
    """Mean queue length in log-spaced windows: centres (L,) and means (seeds, L)."""
    t = np.concatenate([[0.0], curves.t])
    total = np.concatenate([np.zeros((curves.queue.shape[0], 1)), curves.queue], axis=1)
    wanted = np.geomspace(1, curves.t[-1], _WINDOWS)
    edges = np.unique(np.concatenate([[0], np.searchsorted(t, wanted)]))
    means = np.diff(total[:, edges], axis=1) / np.diff(t[edges])
    return np.sqrt(np.maximum(t[edges[:-1]], 1.0) * t[edges[1:]]), means


def _band(axis: Axes, slots: Floats, values: Floats, label: str, style: Style) -> None:
    mean = values.mean(axis=0)
    axis.plot(slots, mean, label=label, **style)  # type: ignore[arg-type]
    if values.shape[0] > 1:
        error = values.std(axis=0, ddof=1) / np.sqrt(values.shape[0])
        colour = str(style["color"])
        axis.fill_between(slots, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)


def _dress(axis: Axes, task: TaskBoard, quantity: str) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(_plain)
    axis.set_xlim(_first_slot(task), task.task["horizon"])
    axis.set_xlabel("slot t")
    axis.set_ylabel(quantity)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)
