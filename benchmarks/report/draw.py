"""What pictures are made of: panels, names, legends, heat maps; the same for papers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    SymmetricalLogLocator,
)
from scipy.optimize import isotonic_regression

from benchmarks.problems.kind import Panel, Scale
from benchmarks.report.series import HeatMap, mean_and_error
from benchmarks.score.intervals import Floats
from benchmarks.score.scoring import Sweep
from benchmarks.score.standing import PROFILE_THRESHOLDS, OverallRow, Standing
from benchmarks.score.task_board import TaskBoard
from llmqueue_gym.workloads.pool import printable

Style = dict[str, object]

# Okabe and Ito's colour-blind-safe palette, black kept for the oracle and yellow left out (too
# pale on white). More agents than colours could not be told apart: the rest is thin and grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REST: Style = {"color": "#C9CDD4", "linestyle": "-", "linewidth": 0.8, "zorder": 1.5}
_GREY = "#6E6E6E"  # names, points and marks, which are too small to be as pale as wide lines
_WIDE = "#BDBDBD"  # of random, a wide line
_NAME_GAP = 0.05  # least distance of names beside a panel, in heights of it
_OUTSIDE = 0.01  # how far beyond the panel a line ends that is marked, in heights of it
_LEADER = {
    "arrowstyle": "-",
    "linestyle": (0, (1, 1)),
    "linewidth": 0.8,
    "shrinkA": 1,
    "shrinkB": 0,
    "relpos": (0, 0.5),  # from the middle of the name's left side
}


def picture_text(text: str, longest: int = 110) -> str:
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
    return picture_text(label, 36)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that makes room for what is written in it."""
    figure = Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def styles_of(learning: Sequence[str]) -> dict[str, Style]:
    """Line style of each of some agents, and of the references: the first ones have colours."""
    styles: dict[str, Style] = dict.fromkeys(learning, REST)
    for label, colour in zip(learning, COLOURS, strict=False):
        styles[label] = {"color": colour, "linestyle": "-", "linewidth": 1.6}
    styles["oracle"] = {"color": "black", "linestyle": "--", "linewidth": 1.6, "zorder": 5}
    # Wide and behind the rest: it stays visible under an agent that does no better.
    styles["random"] = {"color": _WIDE, "linestyle": "-", "linewidth": 4.5, "zorder": 1}
    return styles


def styles_on(task: TaskBoard, styles: dict[str, Style]) -> dict[str, Style]:
    """Return the styles on a task's panels: colours that none of its agents has go to its best."""
    own = {label: styles[label] for label in [row.agent for row in task.rows] if label in styles}
    free = [c for c in COLOURS if all(style["color"] != c for style in own.values())]
    rest = [label for label, style in own.items() if style is REST]
    return styles | {
        label: {"color": colour, "linestyle": "-", "linewidth": 1.6}
        for label, colour in zip(rest, free, strict=False)
    }


@FuncFormatter
def plain(value: float, _: int | None = None) -> str:
    """Write a number of an axis without exponents."""
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


EARNED, REGRET = "ledger score per query\n(more is better)", "regret\n(reward; less is better)"
"""What the two panels of a sweep show."""


class Even(Formatter):
    """Numbers of an axis with as many digits after the point as one of them needs."""

    def __call__(self, value: float, _: int | None = None) -> str:
        """Write one number."""
        return plain(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Write all numbers of an axis."""
        short = [f"{value:g}" for value in values]
        if any("e" in text for text in short):
            return [plain(value) for value in values]
        digits = max((len(text.partition(".")[2]) for text in short), default=0)
        return [f"{value:,.{digits}f}" for value in values]


def _band(axis: Axes, x: Floats, values: Floats, label: str, style: Style) -> None:
    mean, error = mean_and_error(values)
    axis.plot(x, mean, label=label, **style)  # type: ignore[arg-type]
    if error is not None and style is not REST:
        colour = str(style["color"])
        axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)


def _dress(axis: Axes, across: str, quantity: str) -> None:
    axis.set_xlabel(across, fontsize=9)
    axis.set_ylabel(quantity, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)


def draw_panel(axis: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    """Draw a panel and name its lines, but for those that are one of many."""
    for x, values in panel.marks:
        flat = len(set(values[0].tolist())) == 1
        dash: object = "-" if flat else (0, (2, 2))
        axis.plot(x, values[0], color=_GREY, linewidth=1.0, linestyle=dash, label="_")
    for label, (x, values) in panel.lines.items():
        _band(axis, x, values, label, styles[label])
    axis.set_xlim(*panel.x_range)
    axis.set_ylim(*panel.y_range)
    _scale(axis, "x", panel.x_scale)
    _scale(axis, "y", panel.y_scale, panel.linear_below)
    _dress(axis, panel.across, panel.quantity)
    _name_ends(axis, panel, styles)


def _name_ends(axis: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    """Write names beside the panel, each with a thin line from where its own line ends.

    They stand as near to the ends as names apart from each other can (least squares), in the order
    of the lines, and with an arrow where a line ends above or below the panel.
    """
    named = [label for label in panel.lines if styles[label] is not REST]
    if not named:
        return
    place = axis.transScale + axis.transLimits  # data -> shares of the panel
    ends = [(panel.lines[label][0][-1], panel.lines[label][1].mean(axis=0)[-1]) for label in named]
    order = np.argsort(place.transform(ends)[:, 1], kind="stable").tolist()
    points = place.transform(ends)[order]
    inside = np.clip(points, 0.0, 1.0)
    gaps = min(_NAME_GAP, 1.0 / len(named)) * np.arange(len(named))
    near = isotonic_regression(inside[:, 1] - gaps).x
    heights = np.clip(near, 0.0, 1.0 - gaps[-1]) + gaps
    for number, end, height, beyond in zip(
        order, inside.tolist(), heights.tolist(), (points - inside)[:, 1], strict=True
    ):
        colour = _ink(styles[named[number]])
        arrow = " ↑" if beyond > _OUTSIDE else " ↓" if beyond < -_OUTSIDE else ""
        axis.annotate(
            _name(named[number]) + arrow,
            end,
            xycoords="axes fraction",
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={**_LEADER, "color": colour},
        )


def _ink(style: Style) -> str:
    """Return the colour of a line for its name and its points."""
    return _GREY if style is REST or style["color"] == _WIDE else str(style["color"])


def _scale(axis: Axes, name: str, scale: Scale, linear_below: float = 1.0) -> None:
    """Set an axis' scale, with plain numbers on it."""
    linear = {"linthresh": linear_below} if scale == "symlog" else {}
    (axis.set_xscale if name == "x" else axis.set_yscale)(scale, **linear)
    ticks = getattr(axis, f"{name}axis")
    low, high = ticks.get_view_interval()
    if scale == "symlog":  # a rounded logarithm would put ticks into the linear part
        ticks.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1.01 * linear_below))
    elif scale == "log" and high < 4 * low:
        ticks.set_major_locator(MaxNLocator(4))
        ticks.set_minor_locator(NullLocator())
    elif scale == "log" and high < (30 if name == "x" else 100) * low:  # else powers of ten do
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif scale == "linear" and name == "x":
        ticks.set_major_locator(MaxNLocator(4))
    ticks.set_major_formatter(Even() if scale == "linear" else plain)
    ticks.set_minor_formatter(NullFormatter())


def draw_legend(figure: Figure, styles: dict[str, Style]) -> None:
    """Legend of the lines with a colour of their own, below the panels."""
    lines = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
    order = [label for label, style in styles.items() if label in lines and style is not REST]
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


# --- over several tasks ---------------------------------------------------------------------------


def draw_scores(axis: Axes, rows: Sequence[OverallRow], styles: dict[str, Style]) -> None:
    """Draw overall scores with their intervals, the first row on top."""
    for place, row in enumerate(rows):
        if row.score is not None:
            colour, limits = _ink(styles[row.agent]), (row.score.low, row.score.high)
            axis.plot(limits, [place] * 2, color=colour, linewidth=2, label="_")
            axis.plot(row.score.value, place, "o", color=colour, label="_")
    axis.set_yticks(range(len(rows)), [_name(row.agent) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    _dress(axis, "score, 95% interval\n(0 random, 1 oracle; more is better)", "")


def draw_times(axis: Axes, rows: Sequence[OverallRow], styles: dict[str, Style]) -> None:
    """Draw the times of decisions on the rows of `draw_scores`, whose axis this one shares."""
    for place, row in enumerate(rows):
        if row.decision_us is not None:
            axis.plot(row.decision_us, place, "o", color=_ink(styles[row.agent]), label="_")
    axis.margins(x=0.1)
    _scale(axis, "x", "log")
    axis.tick_params(axis="y", labelleft=False)
    _dress(axis, "time of a decision, µs\n(less is better)", "")


def draw_profiles(axis: Axes, standing: Standing, styles: dict[str, Style]) -> None:
    """Draw the performance profiles of the agents that have a colour of their own."""
    for label, style in styles.items():
        if style is REST or label not in standing.profiles:
            continue
        profile = standing.profiles[label]
        axis.plot(PROFILE_THRESHOLDS, profile.share, label=label, **style)  # type: ignore[arg-type]
        if np.isfinite(profile.low).all():
            colour = str(style["color"])
            band = PROFILE_THRESHOLDS, profile.low, profile.high
            axis.fill_between(*band, color=colour, alpha=0.12, linewidth=0)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.01)
    _dress(axis, "score x", "share of runs that score above x\n(more is better)")


# --- traffic and sweeps ---------------------------------------------------------------------------


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
    axis.xaxis.set_major_formatter(plain)
    axis.set_xticks(np.linspace(edges[0], edges[-1], 3))
    axis.set_xlabel("query", fontsize=9)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set(color="#D5D5D5", linewidth=0.5)
    return mesh


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
