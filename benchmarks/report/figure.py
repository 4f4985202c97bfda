"""The pictures of a board: what happens over time, which LLM gets the traffic, sweeps."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox

from benchmarks.plan.suite import REFERENCES
from benchmarks.problems.kind import Panel, Scale
from benchmarks.report.series import (
    HeatMap,
    heat_map,
    mean_and_error,
    panels,
    training_panels,
)
from benchmarks.score.intervals import Floats
from benchmarks.score.scoring import Board, Sweep
from benchmarks.score.standing import PROFILE_THRESHOLDS, OverallRow, Standing
from benchmarks.score.task_board import Section, TaskBoard
from llmqueue_gym.workloads.pool import printable

Style = dict[str, object]

# Okabe and Ito's colour-blind-safe palette, black kept for the oracle and yellow left out (too
# pale on white). More agents than colours could not be told apart: the rest is thin and grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_REST: Style = {"color": "#C9CDD4", "linestyle": "-", "linewidth": 0.8, "zorder": 1.5}
_ROWS = 4  # tasks a figure
_HEAT_AGENTS = 3  # learning agents in a heat map, beside the oracle
_NAME_HEIGHT = 9.5  # points from one name to the next
_POINT = 6  # pixels from the middle of a point to its edge
_NAME_GAP = 0.05  # least distance of names beside a panel, in heights of it


class Picture(NamedTuple):
    """A PNG that was written (an SVG of the same name lies beside it), and what it shows."""

    path: Path
    caption: str
    section: Section


def draw_figure(board: Board, folder: Path) -> list[Picture]:
    """Write the pictures of a board into ``folder``.

    ``leaderboard``: queueing, one row a task, queue length and cumulative routing regret over time;
    ``deployment``: ledger reward against the oracle's and money spent; lines are means over seeds,
    bands one standard error, further tasks go to ``leaderboard-2`` and so on. ``overall``: the
    overall scores, performance profiles, and score against decision time. ``traffic-TASK``:
    share of every LLM by stage, the oracle's and the best agents'. ``sweeps``: score and regret
    against the swept parameter. ``training-KIND``: learning curves of the trained agents.
    """
    pictures = []
    for standing in board.standings:
        section = standing.section
        styles = _styles(board, section)
        boards = [task for task in board.tasks if task.section == section and task.curves]
        name, caption = _curves_name(section)
        for first in range(0, len(boards), _ROWS):
            number = f"-{first // _ROWS + 1}" if first else ""
            figure = _page(board.suite, boards[first : first + _ROWS], styles)
            pictures.append(_save(figure, folder, f"{name}{number}", caption, section))
        if standing.profiles:
            name, caption = _overall_name(section)
            figure = _overall_page(board.suite, standing, styles)
            pictures.append(_save(figure, folder, name, caption, section))
        if trained := training_panels(board, section):
            name, caption = training_name(section)
            figure = _training_page(board.suite, trained, styles)
            pictures.append(_save(figure, folder, name, caption, section))
    for section in dict.fromkeys(sweep.section for sweep in board.sweeps):
        figure = _sweep_page(board, section, _styles(board, section))
        caption = "ledger score and regret against the swept parameter"
        pictures.append(_save(figure, folder, _sweeps_name(board, section), caption, section))
    for task in board.tasks:
        traffic = heat_map(task) if task.rows else None
        if traffic is not None:
            name = task.task["name"]
            caption = f"{name}: share of the queries by LLM and stage"
            figure = _traffic_page(task, traffic)
            if task.section.protocol != "online":
                name = f"{name}-{task.section.protocol}"
            pictures.append(_save(figure, folder, f"traffic-{name}", caption, task.section))
    return pictures


def agents_svg(board: Board, task: TaskBoard, agents: Collection[str]) -> bytes:
    """Draw the curves of a task for some agents beside the references; return the SVG."""
    shown = {label: task.curves[label] for label in task.curves if label in {*agents, *REFERENCES}}
    styles = _styles(board, task.section)
    figure = _page(board.suite, [replace(task, curves=shown)], styles)
    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()


def main_picture(board: Board, section: Section) -> tuple[str, str]:
    """File name and caption of the picture that shows a section best.

    The curves of its tasks if they fit one picture, else what is said of all tasks together.
    """
    standing = next(s for s in board.standings if s.section == section)
    count = sum(task.section == section for task in board.tasks)
    name, caption = (
        _overall_name(section) if standing.profiles and count > _ROWS else _curves_name(section)
    )
    return f"{name}.png", caption


def _curves_name(section: Section) -> tuple[str, str]:
    name, caption = section.kind.picture
    if section.protocol == "online":
        return name, caption
    return f"{name}-{section.protocol}", f"{section.protocol}: {caption}"


def _overall_name(section: Section) -> tuple[str, str]:
    name = f"overall-{section.kind.name}"
    caption = "overall score, performance profiles, score against decision time"
    if section.protocol == "online":
        return name, caption
    return f"{name}-{section.protocol}", f"{section.protocol}: {caption}"


def _sweeps_name(board: Board, section: Section) -> str:
    several = len({sweep.section for sweep in board.sweeps}) > 1
    return f"sweeps-{section.kind.name}" if several else "sweeps"


def training_name(section: Section) -> tuple[str, str]:
    """File name and caption of the picture of a section's learning curves."""
    return f"training-{section.kind.name}", "learning curves of the trainings"


def file_name(name: str) -> str:
    """Return a name without characters that mean something in a path."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "_"


def _text(text: str, longest: int = 110) -> str:
    """Return text that Matplotlib takes as it is: no formulas, no labels hidden by a ``_``.

    Letters that its font lacks, which it would draw as boxes and warn of, become ``?``.
    """
    line = printable(text)
    short = line if len(line) <= longest else line[: longest - 1] + "…"
    line = "".join(letter if _drawable(letter) else "?" for letter in short).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def _drawable(letter: str) -> bool:
    return all(font.get_char_index(ord(letter)) for font in _fonts())


@cache
def _fonts() -> tuple[FT2Font, ...]:
    """Return the fonts of the pictures, regular and bold."""
    weights = ("normal", "bold")
    return tuple(get_font(findfont(FontProperties(weight=weight))) for weight in weights)


def _name(label: str) -> str:
    """Return the name of an agent or LLM, as long as a label may be."""
    return _text(label, 36)


def _save(figure: Figure, folder: Path, name: str, caption: str, section: Section) -> Picture:
    name = file_name(name)
    for suffix in ("svg", "png"):
        temporary = folder / f".{name}.{suffix}.tmp"
        figure.savefig(temporary, dpi=160, format=suffix)
        os.replace(temporary, folder / f"{name}.{suffix}")
    return Picture(folder / f"{name}.png", caption, section)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that makes room for what is written in it."""
    figure = Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _page(suite: str, boards: list[TaskBoard], styles: dict[str, Style]) -> Figure:
    """One row of panels a task, lines named at their ends."""
    figure = new_figure(11, 3.6 * len(boards) + 1.2)
    axes = figure.subplots(len(boards), 2, squeeze=False)
    for row, task in zip(axes, boards, strict=True):
        for axis, panel in zip(row, panels(task), strict=True):
            draw_panel(axis, panel, styles)
        title = f"{task.task['name']}  ({task.about})"
        row[0].set_title(_text(title), loc="left", fontsize=11, fontweight="bold")
    figure.suptitle(_suptitle(suite, max(task.seeds for task in boards)), fontsize=11)
    return figure


def _training_page(suite: str, shown: dict[str, Panel], styles: dict[str, Style]) -> Figure:
    """Learning curves, a panel a task, lines named at their ends."""
    figure = new_figure(5.5 * len(shown), 4.6)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (name, panel) in zip(axes, shown.items(), strict=True):
        draw_panel(axis, panel, styles)
        axis.set_title(_text(name), loc="left", fontsize=11, fontweight="bold")
    figure.suptitle(_text(f"{suite}: learning curves, one training each"), fontsize=11)
    return figure


def draw_panel(axis: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    """Draw a panel and name its lines, but for those that are one of many."""
    for x, values in panel.marks:
        flat = len(set(values[0].tolist())) == 1
        dash: object = "-" if flat else (0, (2, 2))
        axis.plot(x, values[0], color="#9A9A9A", linewidth=1.0, linestyle=dash, label="_")
    for label, (x, values) in panel.lines.items():
        _band(axis, x, values, label, styles[label])
    axis.set_xlim(*panel.x_range)
    axis.set_ylim(*panel.y_range)
    _scale(axis, "x", panel.x_scale)
    _scale(axis, "y", panel.y_scale)
    _dress(axis, panel.across, panel.quantity)
    _name_ends(axis, panel, styles)


def _name_ends(axis: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    """Write names beside the ends of their lines, apart from each other."""
    place = axis.transScale + axis.transLimits  # data -> shares of the panel
    named = [label for label in panel.lines if styles[label] is not _REST]
    ends = [(panel.lines[label][0][-1], panel.lines[label][1].mean(axis=0)[-1]) for label in named]
    heights = [float(np.clip(place.transform(end)[1], 0.0, 1.0)) for end in ends]
    gap = min(_NAME_GAP, 1.0 / max(1, len(named) - 1))
    order = np.argsort(heights, kind="stable").tolist()
    spread = np.maximum.accumulate(np.array(heights)[order] - gap * np.arange(len(order)))
    spread += gap * np.arange(len(order))
    top = 1.0 - gap * np.arange(len(order))[::-1]
    for number, height in zip(order, np.minimum(spread, top), strict=True):
        axis.annotate(
            _name(named[number]),
            (1.0, float(height)),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#6E6E6E" if named[number] == "random" else str(styles[named[number]]["color"]),
        )


def _scale(axis: Axes, name: str, scale: Scale) -> None:
    """Set an axis' scale, with plain numbers on it."""
    linear = {"linthresh": 1.0, "linscale": 0.5} if scale == "symlog" else {}
    (axis.set_xscale if name == "x" else axis.set_yscale)(scale, **linear)
    ticks = getattr(axis, f"{name}axis")
    low, high = ticks.get_view_interval()
    if scale == "log" and high < 30 * low:  # powers of ten alone would be too few
        ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ticks.set_major_formatter(_plain)
    ticks.set_minor_formatter(NullFormatter())


def _suptitle(suite: str, seeds: int) -> str:
    what = f"mean over {seeds} seeds, band one standard error" if seeds > 1 else "one seed"
    what += "; grey without a name: the agents ranked lower"
    return _text(f"{suite}: {what}")


def _legend(figure: Figure, styles: dict[str, Style]) -> None:
    """Legend of the lines with a colour of their own, below the panels."""
    lines = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
    order = [label for label, style in styles.items() if label in lines and style is not _REST]
    if not order:
        return
    names = [_name(label) for label in order]
    for rows in range(-(-len(order) // 6), len(order) + 1):  # of at most six, until they fit
        legend = figure.legend(
            [lines[label] for label in order],
            names,
            loc="outside lower center",
            ncols=-(-len(order) // rows),
            frameon=False,
        )
        if rows == len(order) or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _styles(board: Board, section: Section) -> dict[str, Style]:
    """Line style per agent, in the order of the overall ranking, references last."""
    learning = [
        row.agent for row in board.overall if row.section == section and row.agent not in REFERENCES
    ]
    return styles_of(learning)


def styles_of(learning: Sequence[str]) -> dict[str, Style]:
    """Line style of each of some agents, and of the references: the first ones have colours."""
    styles: dict[str, Style] = dict.fromkeys(learning, _REST)
    for label, colour in zip(learning, COLOURS, strict=False):
        styles[label] = {"color": colour, "linestyle": "-", "linewidth": 1.6}
    styles["oracle"] = {"color": "black", "linestyle": "--", "linewidth": 1.6, "zorder": 5}
    # Wide and behind the rest: it stays visible under an agent that does no better.
    styles["random"] = {"color": "#BDBDBD", "linestyle": "-", "linewidth": 4.5, "zorder": 1}
    return styles


@FuncFormatter
def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def _band(axis: Axes, x: Floats, values: Floats, label: str, style: Style) -> None:
    mean, error = mean_and_error(values)
    axis.plot(x, mean, label=label, **style)  # type: ignore[arg-type]
    if error is not None and style is not _REST:
        colour = str(style["color"])
        axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)


def _dress(axis: Axes, across: str, quantity: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(quantity)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)


# --- over several tasks ---------------------------------------------------------------------------


def _overall_page(suite: str, standing: Standing, styles: dict[str, Style]) -> Figure:
    """Overall scores, performance profiles, score against decision time."""
    rows = [row for row in standing.rows if row.rank is not None]
    figure = new_figure(12.5, max(3.6, 1.6 + 0.27 * len(rows)))
    scores, profiles, clocks = figure.subplots(1, 3)
    draw_scores(scores, rows, styles)
    draw_profiles(profiles, standing, {row.agent: styles[row.agent] for row in rows})
    names = draw_clock(clocks, rows, styles)
    _legend(figure, {label: styles[label] for label in standing.profiles})
    tasks = len(standing.tasks)
    kind = standing.section.kind.name
    whose = suite if suite == kind else f"{suite}, {kind}"
    title = f"{whose}: mean over {tasks} task{'s' if tasks > 1 else ''}"
    figure.suptitle(_text(title), fontsize=11)
    spread(figure, clocks, names)
    return figure


def draw_scores(axis: Axes, rows: Sequence[OverallRow], styles: dict[str, Style]) -> None:
    """Draw overall scores with their intervals, the first row on top."""
    for place, row in enumerate(rows):
        _score_line(axis, row, float(place), styles[row.agent])
    axis.set_yticks(range(len(rows)), [_name(row.agent) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    _dress(axis, "score, 95% interval", "")


def draw_profiles(axis: Axes, standing: Standing, styles: dict[str, Style]) -> None:
    """Draw the performance profiles of the agents that have a colour of their own."""
    for label, style in styles.items():
        if style is _REST or label not in standing.profiles:
            continue
        profile = standing.profiles[label]
        axis.plot(PROFILE_THRESHOLDS, profile.share, label=label, **style)  # type: ignore[arg-type]
        if np.isfinite(profile.low).all():
            colour = str(style["color"])
            band = PROFILE_THRESHOLDS, profile.low, profile.high
            axis.fill_between(*band, color=colour, alpha=0.12, linewidth=0)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.01)
    _dress(axis, "score x", "share of runs that score above x")


def draw_clock(
    axis: Axes, rows: Sequence[OverallRow], styles: dict[str, Style]
) -> list[Annotation]:
    """Draw scores against decision times; return the names, which `spread` puts into place."""
    names = []
    for row in rows:
        if row.score is not None and row.decision_us is not None:
            colour = str(styles[row.agent]["color"])
            point = row.decision_us, row.score.value
            axis.plot(*point, "o", color=colour, label="_")
            name = axis.annotate(
                _name(row.agent),
                point,
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colour,
                    "linewidth": 0.6,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
                zorder=1,
            )
            names.append(name)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(_plain)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.15, y=0.1)
    _dress(axis, "µs a decision", "score")
    return names


def spread(figure: Figure, axis: Axes, names: list[Annotation]) -> None:
    """Put names beside, above or below their points, where they cover no name and no point."""
    figure.draw_without_rendering()  # only then is it known where the points are
    points = axis.transData.transform([name.xy for name in names]) if names else np.zeros((0, 2))
    taken = [Bbox.from_bounds(x - _POINT, y - _POINT, 2 * _POINT, 2 * _POINT) for x, y in points]
    rises = _NAME_HEIGHT * np.array([0, 1, -1, 2, -2, 3, -3, 4, -4])
    places: list[tuple[Literal["left", "center", "right"], float, float]]
    places = [("center", 0.0, rise) for rise in rises[1:3]]
    for rise in rises:
        places += [("left", 6.0, rise), ("right", -6.0, rise)]
    places.sort(key=lambda place: abs(place[2]))
    for name in names:
        for side, shift, rise in [*places, places[0]]:
            name.set_horizontalalignment(side)
            name.set_position((shift, rise))
            box = Text.get_window_extent(name)  # without the line to the point
            free = not any(box.overlaps(other) for other in taken)
            if free and axis.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1:
                break
        taken.append(box)


def _score_line(axis: Axes, row: OverallRow, place: float, style: Style) -> None:
    if row.score is not None:
        colour = str(style["color"])
        axis.plot(
            [row.score.low, row.score.high], [place] * 2, color=colour, linewidth=2, label="_"
        )
        axis.plot(row.score.value, place, "o", color=colour, label="_")


# --- deployment -----------------------------------------------------------------------------------


def _traffic_page(task: TaskBoard, traffic: HeatMap) -> Figure:
    """Heat maps side by side: the oracle's traffic and that of the best agents."""
    learning = [label for label in traffic.shares if label not in REFERENCES]
    labels = [name for name in ("oracle", *learning[:_HEAT_AGENTS]) if name in traffic.shares]
    figure = draw_traffic(traffic, labels or list(traffic.shares)[:1])
    which = f"mean over {traffic.seeds} seeds" if traffic.seeds > 1 else "one seed"
    title = f"{task.task['name']}: traffic by LLM (in order of arrival) and stage, {which}"
    figure.suptitle(_text(title), fontsize=11)
    return figure


def draw_traffic(traffic: HeatMap, labels: Sequence[str]) -> Figure:
    """Heat maps of some agents side by side, LLMs in order of arrival."""
    rows = len(traffic.names)
    figure = new_figure(2.6 + 2.7 * len(labels), 1.3 + max(1.8, 0.24 * rows))
    axes = figure.subplots(1, len(labels), squeeze=False, sharey=True)[0]
    single = rows - 1 if traffic.others and rows > 1 else rows
    highest = max(float(traffic.shares[label][:single].max()) for label in labels)
    for axis, label in zip(axes, labels, strict=True):
        mesh = _heat_map(axis, traffic, traffic.shares[label], max(highest, 1e-9))
        axis.set_title(_name(label), fontsize=10, fontweight="bold")
    axes[0].set_yticks(np.arange(rows) + 0.5, [_name(name) for name in traffic.names], fontsize=8)
    axes[0].invert_yaxis()
    bar = figure.colorbar(
        mesh,
        ax=axes,
        format=PercentFormatter(1.0, 0),
        extend="max" if traffic.others else "neither",  # together they may exceed any one LLM
        pad=0.01,
        aspect=30,
    )
    bar.set_label("share of the stage's queries", fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _heat_map(axis: Axes, traffic: HeatMap, shares: Floats, highest: float) -> QuadMesh:
    """Draw shares (rows LLMs, columns stages); grey before an LLM is there."""
    edges = traffic.edges
    colours = colormaps["Blues"].with_extremes(bad="#E9E9E9", over="black")
    values = np.ma.masked_array(shares, traffic.absent)
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


def _sweep_page(board: Board, section: Section, styles: dict[str, Style]) -> Figure:
    """One row a sweep: ledger score per query and regret at the end."""
    sweeps = [sweep for sweep in board.sweeps if sweep.section == section]
    figure = new_figure(11, 3.6 * len(sweeps) + 1.2)
    axes = figure.subplots(len(sweeps), 2, squeeze=False)
    for row, sweep in zip(axes, sweeps, strict=True):
        draw_sweep(row[0], sweep, sweep.ledger, styles, "ledger score per query")
        regrets = {label: part for label, part in sweep.regret.items() if label != "oracle"}
        draw_sweep(row[1], sweep, regrets, styles, "regret")
        row[1].set_yscale("symlog", linthresh=10.0, linscale=0.5)  # overspending can pay: below 0
        row[1].yaxis.set_major_formatter(_plain)
        means = np.concatenate([np.zeros(1), *(part.mean(axis=0) for part in regrets.values())])
        row[1].set_ylim(1.5 * float(means.min()), 1.5 * float(means.max()) + 1.0)
        row[0].set_title(_text(sweep.name), loc="left", fontsize=11, fontweight="bold")
    _legend(figure, styles)
    seeds = max(part.shape[0] for sweep in sweeps for part in sweep.regret.values())
    figure.suptitle(_suptitle(board.suite, seeds), fontsize=11)
    return figure


def draw_sweep(
    axis: Axes, sweep: Sweep, parts: dict[str, Floats], styles: dict[str, Style], quantity: str
) -> None:
    """Draw a quantity against the swept parameter."""
    for label, values in parts.items():
        _band(axis, sweep.values, values, label, styles[label])
    axis.set_xscale("log")
    axis.set_xticks(sweep.values, [f"{value:,.0f}" for value in sweep.values])
    axis.minorticks_off()
    _dress(axis, sweep.across, quantity)
