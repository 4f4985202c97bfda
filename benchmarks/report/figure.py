"""The pictures of a board: what happens over time, which LLM gets the traffic, sweeps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.intervals import Floats
from benchmarks.kinds import DEPLOYMENT, QUEUEING, Curves, Traffic
from benchmarks.scoring import Board, Section, Sweep, TaskBoard
from benchmarks.suite import REFERENCES

Style = dict[str, object]
Panel = Callable[[Axes, TaskBoard, dict[str, Style]], None]

# Okabe and Ito's colour-blind-safe palette, black kept for the oracle and yellow left out (too
# pale on white); further agents repeat the colours with another dash.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FBF")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)))
_ROWS = 4  # tasks a figure
_LOG_ABOVE = 30.0  # queue lengths beyond this get a logarithmic axis
_WINDOWS = 28  # means of the queue length are taken over so many log-spaced windows
_HEAT_AGENTS = 3  # learning agents in a heat map, beside the oracle
_HEAT_LLMS = 24  # LLMs with a row of their own; the others share one
_MOST_SPEND = 2.0  # money axis, in budgets


class Picture(NamedTuple):
    """A PNG that was written (an SVG of the same name lies beside it), and what it shows."""

    path: Path
    caption: str
    section: Section


def draw_figure(board: Board, folder: Path) -> list[Picture]:
    """Write the pictures of a board into ``folder``.

    ``leaderboard``: queueing, one row a task, queue length and cumulative routing regret over time;
    ``deployment``: ledger reward against the oracle's and money spent; lines are means over seeds,
    bands one standard error, further tasks go to ``leaderboard-2`` and so on. ``traffic-TASK``:
    share of every LLM by stage, the oracle's and the best agents'. ``sweeps``: score and regret
    against the swept parameter.
    """
    pictures = []
    for section in board.sections:
        name, caption, panels = _PAGES[section.kind.name]
        if section.protocol != "online":
            name, caption = f"{name}-{section.protocol}", f"{section.protocol}: {caption}"
        boards = [task for task in board.tasks if task.section == section and task.curves]
        styles = _styles(board, section)
        for first in range(0, len(boards), _ROWS):
            number = f"-{first // _ROWS + 1}" if first else ""
            figure = _page(board.suite, boards[first : first + _ROWS], styles, panels)
            pictures.append(_save(figure, folder, f"{name}{number}", caption, section))
    if board.sweeps:
        section = Section(DEPLOYMENT, "online")
        figure = _sweep_page(board, _styles(board, section))
        caption = "ledger score and regret against the swept parameter"
        pictures.append(_save(figure, folder, "sweeps", caption, section))
    for task in board.tasks:
        if any(task.traffic.values()) and task.rows:
            name = task.task["name"]
            caption = f"{name}: share of the queries by LLM and stage"
            figure = _traffic_page(task)
            if task.section.protocol != "online":
                name = f"{name}-{task.section.protocol}"
            pictures.append(_save(figure, folder, f"traffic-{name}", caption, task.section))
    return pictures


def _save(figure: Figure, folder: Path, name: str, caption: str, section: Section) -> Picture:
    for suffix in ("svg", "png"):
        temporary = folder / f".{name}.{suffix}.tmp"
        figure.savefig(temporary, dpi=160, format=suffix)
        os.replace(temporary, folder / f"{name}.{suffix}")
    return Picture(folder / f"{name}.png", caption, section)


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _page(
    suite: str, boards: list[TaskBoard], styles: dict[str, Style], panels: tuple[Panel, Panel]
) -> Figure:
    """One row of panels a task above a shared legend."""
    figure = _new_figure(11, 3.6 * len(boards) + 1.2)
    axes = figure.subplots(len(boards), 2, squeeze=False)
    for row, task in zip(axes, boards, strict=True):
        for axis, panel in zip(row, panels, strict=True):
            panel(axis, task, styles)
        title = f"{task.task['name']}  ({task.about})"
        row[0].set_title(title, loc="left", fontsize=11, fontweight="bold")
    _legend(figure, styles)
    figure.suptitle(_suptitle(suite, max(task.seeds for task in boards)), fontsize=11)
    return figure


def _suptitle(suite: str, seeds: int) -> str:
    what = f"mean over {seeds} seeds, band one standard error" if seeds > 1 else "one seed"
    return f"{suite}: {what}"


def _legend(figure: Figure, styles: dict[str, Style]) -> None:
    """Legend of all lines below the panels."""
    lines = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
    order = [label for label in styles if label in lines]
    columns = -(-len(order) // -(-len(order) // 6))  # full rows of at most six
    figure.legend(
        [lines[label] for label in order],
        order,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def _styles(board: Board, section: Section) -> dict[str, Style]:
    """Line style per agent, in the order of the overall ranking, references last."""
    styles: dict[str, Style] = {}
    learning = [
        row.agent for row in board.overall if row.section == section and row.agent not in REFERENCES
    ]
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
    _dress_slots(axis, task, "queue length")


def _regret_panel(axis: Axes, task: TaskBoard, styles: dict[str, Style]) -> None:
    visible = []
    for label, curves in task.curves.items():
        if label != "oracle":  # its regret is 0
            regret = curves.sums["regret"]
            _band(axis, curves.t, regret, label, styles[label])
            visible.append(regret.mean(axis=0)[curves.t >= _first_slot(task)])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_plain)
    shown = np.concatenate([np.zeros(0), *visible])
    if (shown > 0).any():
        axis.set_ylim(0.8 * shown[shown > 0].min(), 1.5 * shown.max())
    _dress_slots(axis, task, "cumulative routing regret")


def _first_slot(task: TaskBoard) -> int:
    """Two decades are shown: earlier slots tell nothing apart and would fill half a log axis."""
    return max(1, int(task.task["horizon"]) // 100)


@FuncFormatter
def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:g}"


def windowed_means(curves: Curves) -> tuple[Floats, Floats]:
    """Mean queue length in log-spaced windows: centres (L,) and means (seeds, L)."""
    t = np.concatenate([[0.0], curves.t])
    queue = curves.sums["queue"]
    total = np.concatenate([np.zeros((queue.shape[0], 1)), queue], axis=1)
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


def _dress_slots(axis: Axes, task: TaskBoard, quantity: str) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(_plain)
    axis.set_xlim(_first_slot(task), task.task["horizon"])
    _dress(axis, "slot t", quantity)


def _dress(axis: Axes, across: str, quantity: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(quantity)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)


_QUEUE_PANELS: tuple[Panel, Panel] = (_queue_panel, _regret_panel)


# --- deployment -----------------------------------------------------------------------------------


def _ledger_panel(axis: Axes, task: TaskBoard, styles: dict[str, Style]) -> None:
    """Cumulative ledger reward over the oracle's at the same query."""
    oracle = task.curves.get("oracle")
    extremes = [1.0]
    for label, curves in task.curves.items():
        if oracle is None:
            continue
        _, mine, theirs = np.intersect1d(curves.seeds, oracle.seeds, return_indices=True)
        reference = oracle.sums["ledger"][theirs]
        own = curves.sums["ledger"][mine]
        late = curves.t >= _first_slot(task)  # a ratio of a few rewards tells nothing
        ratio = own[:, late] / reference[:, late]
        _band(axis, curves.t[late], ratio, label, styles[label])
        extremes += ratio.mean(axis=0)[curves.t[late] >= task.task["horizon"] / 10].tolist()
    low, high = min(extremes), max(extremes)
    axis.set_ylim(max(0.0, low - 0.15 * (high - low) - 0.005), high + 0.15 * (high - low) + 0.005)
    _dress_queries(axis, task, "ledger reward so far / oracle's")


def _spend_panel(axis: Axes, task: TaskBoard, styles: dict[str, Style]) -> None:
    """Money spent, in units of the whole budget B = bT."""
    horizon, highest = task.task["horizon"], 1.0
    axis.plot([0, horizon], [0, 1], color="#9A9A9A", linewidth=1.0, linestyle=(0, (2, 2)))
    axis.axhline(1.0, color="#9A9A9A", linewidth=1.0)
    for label, curves in task.curves.items():
        start = np.zeros((curves.seeds.size, 1))
        spend = np.concatenate([start, curves.sums["spend"]], axis=1)
        _band(axis, np.append(0.0, curves.t), spend, label, styles[label])
        highest = max(highest, float(spend[:, -1].mean()))
    axis.set_ylim(0, min(_MOST_SPEND, 1.08 * highest))
    axis.annotate(
        "budget",
        (0.01, 1.01),
        xycoords=("axes fraction", "data"),
        size=8,
        bbox={"pad": 0.5, "facecolor": "white", "edgecolor": "none"},
    )
    _dress_queries(axis, task, "money spent / budget (dotted: b t)")


def _dress_queries(axis: Axes, task: TaskBoard, quantity: str) -> None:
    axis.xaxis.set_major_formatter(_plain)
    axis.set_xlim(0, task.task["horizon"])
    _dress(axis, "query t", quantity)


_DEPLOY_PANELS: tuple[Panel, Panel] = (_ledger_panel, _spend_panel)

_PAGES = {
    QUEUEING.name: ("leaderboard", "queue length and routing regret over time", _QUEUE_PANELS),
    DEPLOYMENT.name: ("deployment", "ledger reward and money spent over time", _DEPLOY_PANELS),
}
"""Kind -> file name, caption and panels of its pages."""


def _traffic_page(task: TaskBoard) -> Figure:
    """Heat maps side by side: the oracle's traffic and that of the best agents."""
    learning = [row.agent for row in task.rows if row.agent not in REFERENCES]
    labels = [name for name in ("oracle", *learning[:_HEAT_AGENTS]) if task.traffic.get(name)]
    runs = {label: _runs(task.traffic[label]) for label in labels}
    first = runs[labels[0]][0]
    shares = {
        label: np.mean([run.shares for run in found], axis=0) for label, found in runs.items()
    }
    total = np.max([share.sum(axis=0) for share in shares.values()], axis=0)
    shown = np.sort(np.argsort(-total, kind="stable")[:_HEAT_LLMS])
    shown = shown[total[shown] > 0]
    shown = shown[np.argsort(first.arrival[shown], kind="stable")]
    others = np.setdiff1d(np.flatnonzero(total > 0), shown)
    names = [first.llms[llm] for llm in shown]
    names += [f"{others.size} others"] if others.size else []
    figure = _new_figure(2.6 + 2.7 * len(labels), 1.3 + max(1.8, 0.24 * len(names)))
    axes = figure.subplots(1, len(labels), squeeze=False, sharey=True)[0]
    highest = max(float(share[:, shown].max()) for share in shares.values())
    for axis, (label, share) in zip(axes, shares.items(), strict=True):
        parts = [share[:, shown]]
        parts += [share[:, others].sum(axis=1, keepdims=True)] if others.size else []
        mesh = _heat_map(axis, np.concatenate(parts, axis=1).T, first, shown, highest)
        axis.set_title(label, fontsize=10, fontweight="bold")
    axes[0].set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    axes[0].invert_yaxis()
    bar = figure.colorbar(
        mesh,
        ax=axes,
        format=PercentFormatter(1.0, 0),
        extend="max" if others.size else "neither",  # together they may take more than any one LLM
        pad=0.01,
        aspect=30,
    )
    bar.set_label("share of the stage's queries", fontsize=9)
    bar.outline.set_visible(False)
    seeds = len(runs[labels[0]])
    which = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    title = f"{task.task['name']}: traffic by LLM (in order of arrival) and stage, {which}"
    figure.suptitle(title, fontsize=11)
    return figure


def _runs(traffic: dict[int, Traffic]) -> list[Traffic]:
    """Return the runs to average: all if every seed has the same LLMs, else the first."""
    runs = [traffic[seed] for seed in sorted(traffic)]
    same = all(np.array_equal(run.arrival, runs[0].arrival) for run in runs)
    return runs if same else runs[:1]


def _heat_map(
    axis: Axes, shares: Floats, stages: Traffic, llms: Floats, highest: float
) -> QuadMesh:
    """Draw shares (rows LLMs, columns stages); grey before an LLM is there."""
    edges = np.append(stages.starts, stages.starts[-1] + stages.lengths[-1])
    early = np.zeros_like(shares, dtype=np.bool_)
    early[: len(llms)] = stages.starts[None, :] < stages.arrival[llms, None]
    colours = colormaps["Blues"].with_extremes(bad="#E9E9E9", over="black")
    values = np.ma.masked_array(shares, early)
    rows = np.arange(len(shares) + 1)
    mesh = axis.pcolormesh(edges, rows, values, cmap=colours, vmin=0.0, vmax=highest)
    mesh.set_rasterized(True)  # an SVG of thousands of cells shows seams
    axis.hlines(rows, edges[0], edges[-1], colors="#D5D5D5", linewidth=0.5)
    axis.xaxis.set_major_formatter(_plain)
    axis.set_xticks(np.linspace(edges[0], edges[-1], 3))
    axis.set_xlabel("query", fontsize=9)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set(color="#D5D5D5", linewidth=0.5)
    return mesh


# --- sweeps ---------------------------------------------------------------------------------------

_AXIS_NAMES = {
    "horizon": "queries of the run, T",
    "num_stages": "stages, K",
    "max_deployed": "LLMs deployed at a time, M_max",
}


def _sweep_page(board: Board, styles: dict[str, Style]) -> Figure:
    """One row a sweep: ledger score per query and regret at the end."""
    figure = _new_figure(11, 3.6 * len(board.sweeps) + 1.2)
    axes = figure.subplots(len(board.sweeps), 2, squeeze=False)
    for row, sweep in zip(axes, board.sweeps, strict=True):
        _sweep_panel(row[0], sweep, sweep.ledger, styles, "ledger score per query")
        regrets = {label: part for label, part in sweep.regret.items() if label != "oracle"}
        _sweep_panel(row[1], sweep, regrets, styles, "regret")
        row[1].set_yscale("symlog", linthresh=10.0, linscale=0.5)  # overspending can pay: below 0
        row[1].yaxis.set_major_formatter(_plain)
        means = np.concatenate([np.zeros(1), *(part.mean(axis=0) for part in regrets.values())])
        row[1].set_ylim(1.5 * float(means.min()), 1.5 * float(means.max()) + 1.0)
        row[0].set_title(sweep.name, loc="left", fontsize=11, fontweight="bold")
    _legend(figure, styles)
    seeds = max(part.shape[0] for sweep in board.sweeps for part in sweep.regret.values())
    figure.suptitle(_suptitle(board.suite, seeds), fontsize=11)
    return figure


def _sweep_panel(
    axis: Axes, sweep: Sweep, parts: dict[str, Floats], styles: dict[str, Style], quantity: str
) -> None:
    for label, values in parts.items():
        _band(axis, sweep.values, values, label, styles[label])
    axis.set_xscale("log")
    axis.set_xticks(sweep.values, [f"{value:,.0f}" for value in sweep.values])
    axis.minorticks_off()
    _dress(axis, _AXIS_NAMES[sweep.axis], quantity)
