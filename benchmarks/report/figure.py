"""The pictures of a board: what happens over time, which LLM gets the traffic, sweeps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.plan.suite import REFERENCES, is_ranked
from benchmarks.problems.kind import Panel
from benchmarks.report.draw import (
    EARNED,
    REGRET,
    REST,
    Style,
    draw_legend,
    draw_panel,
    draw_profiles,
    draw_scores,
    draw_sweep,
    draw_times,
    draw_traffic,
    new_figure,
    picture_text,
    plain,
    styles_of,
    styles_on,
)
from benchmarks.report.series import HeatMap, heat_map, panels, training_panels
from benchmarks.run.store import write_bytes
from benchmarks.score.scoring import Board
from benchmarks.score.standing import Standing
from benchmarks.score.task_board import Section, TaskBoard

_WIDTH = 10  # inches of a figure
_ROWS = 4  # tasks a figure
_MOST_AGENTS = 30  # rows of a picture of scores
_PROFILES = 3.8  # inches of performance profiles
_HEAT_AGENTS = 3  # learning agents in a heat map, beside the oracle


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
    overall scores, decision times and performance profiles. ``traffic-TASK``: share of every
    LLM by stage, the oracle's and the best agents'. ``sweeps``: score and regret against the
    swept parameter. ``training-KIND``: learning curves of the trained agents.
    """
    pictures = []
    for standing in board.standings:
        section = standing.section
        styles = _styles(board, section)
        boards = [task for task in board.tasks_of(section) if task.curves]
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
            figure = _training_page(board.suite, trained, boards, styles)
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
    count = len(board.tasks_of(section))
    name, caption = (
        _overall_name(section) if standing.profiles and count > _ROWS else _curves_name(section)
    )
    return f"{name}.png", caption


def _curves_name(section: Section) -> tuple[str, str]:
    return _named(section, *section.kind.picture)


def _overall_name(section: Section) -> tuple[str, str]:
    caption = "overall score, decision time, performance profiles"
    return _named(section, f"overall-{section.kind.name}", caption)


def _named(section: Section, name: str, caption: str) -> tuple[str, str]:
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


def _save(figure: Figure, folder: Path, name: str, caption: str, section: Section) -> Picture:
    name = file_name(name)
    for suffix in ("svg", "png"):
        buffer = BytesIO()
        figure.savefig(buffer, dpi=160, format=suffix)
        write_bytes(folder / f"{name}.{suffix}", buffer.getvalue())
    return Picture(folder / f"{name}.png", caption, section)


def _page(suite: str, boards: list[TaskBoard], styles: dict[str, Style]) -> Figure:
    """One row of panels a task, lines named at their ends."""
    figure = new_figure(_WIDTH, 3.4 * len(boards) + 1.2)
    axes = figure.subplots(len(boards), 2, squeeze=False)
    drawn: list[Style] = []
    for row, task in zip(axes, boards, strict=True):
        own = styles_on(task, styles)
        drawn += [own[label] for label in task.curves]
        for axis, panel in zip(row, panels(task), strict=True):
            draw_panel(axis, panel, own)
        title = f"{task.task['name']}  ({task.about})"
        row[0].set_title(picture_text(title), loc="left", fontsize=10, fontweight="bold")
    figure.suptitle(_suptitle(suite, [task.seeds for task in boards], drawn), fontsize=11)
    return figure


def _training_page(
    suite: str, shown: dict[str, Panel], boards: list[TaskBoard], styles: dict[str, Style]
) -> Figure:
    """Learning curves, a panel a task, two a row, lines named at their ends."""
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(_WIDTH if columns > 1 else 6, 3.4 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    tasks = {task.task["name"]: task for task in boards}
    for axis, (name, panel) in zip(axes, shown.items(), strict=False):
        draw_panel(axis, panel, styles_on(tasks[name], styles))
        axis.set_title(picture_text(name), loc="left", fontsize=10, fontweight="bold")
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    several = any(len(y) > 1 for panel in shown.values() for _, y in panel.lines.values())
    what = "mean over trainings, band one standard error" if several else "one training each"
    figure.suptitle(picture_text(f"{suite}: learning curves, {what}"), fontsize=11)
    return figure


def _suptitle(suite: str, seeds: Sequence[int], drawn: Iterable[Style]) -> str:
    """Say what lines of the given styles are, over so many seeds a panel."""
    least, most = min(seeds), max(seeds)
    count = f"{most}" if least == most else f"{least} to {most}"
    what = f"mean over {count} seeds, band one standard error" if most > 1 else "one seed"
    if any(style is REST for style in drawn):
        what += "; thin grey: agents ranked lower"
    return picture_text(f"{suite}: {what}")


def _styles(board: Board, section: Section) -> dict[str, Style]:
    """Line style per agent, in the order of the overall ranking, yardsticks and references last."""
    learning = [
        row.agent for row in board.overall if row.section == section and row.agent not in REFERENCES
    ]
    return styles_of(sorted(learning, key=lambda label: not is_ranked(label)))


def _overall_page(suite: str, standing: Standing, styles: dict[str, Style]) -> Figure:
    """Overall scores beside the times of decisions, a row an agent; performance profiles."""
    ranked = [row for row in standing.rows if row.rank is not None]
    rows = ranked[:_MOST_AGENTS]
    height = max(_PROFILES, 1.8 + 0.24 * len(rows))
    figure = new_figure(_WIDTH, height)
    tall = height > 1.5 * _PROFILES  # profiles need not be as high as many rows
    parts = (_PROFILES, height - _PROFILES)[: 1 + tall]
    grid = figure.add_gridspec(len(parts), 3, height_ratios=parts, width_ratios=(6, 4, 7))
    scores = figure.add_subplot(grid[:, 0])
    draw_scores(scores, rows, styles)
    draw_times(figure.add_subplot(grid[:, 1], sharey=scores), rows, styles)
    profiles = figure.add_subplot(grid[0, 2])
    draw_profiles(profiles, standing, {row.agent: styles[row.agent] for row in rows})
    draw_legend(figure, {label: styles[label] for label in standing.profiles})
    tasks = len(standing.tasks)
    kind = standing.section.kind.name
    whose = suite if suite == kind else f"{suite}, {kind}"
    title = f"{whose}: mean over {tasks} task{'s' if tasks > 1 else ''}, bands 95% intervals"
    if len(ranked) > len(rows):
        title += f"; the best {len(rows)} of {len(ranked)} agents"
    figure.suptitle(picture_text(title), fontsize=11)
    return figure


def _traffic_page(task: TaskBoard, traffic: HeatMap) -> Figure:
    """Heat maps side by side: the oracle's traffic and that of the best agents."""
    learning = [label for label in traffic.shares if label not in REFERENCES]
    labels = [name for name in ("oracle", *learning[:_HEAT_AGENTS]) if name in traffic.shares]
    figure = draw_traffic(traffic, labels or list(traffic.shares)[:1])
    which = f"mean over {traffic.seeds} seeds" if traffic.seeds > 1 else "one seed"
    title = f"{task.task['name']}: traffic by LLM and stage, {which}"
    order = "LLMs in order of arrival; grey: not there yet"
    figure.suptitle(picture_text(f"{title}; {order}"), fontsize=11)
    return figure


def _sweep_page(board: Board, section: Section, styles: dict[str, Style]) -> Figure:
    """One row a sweep: ledger score per query and regret at the end."""
    sweeps = board.sweeps_of(section)
    figure = new_figure(_WIDTH, 3.4 * len(sweeps) + 1.2)
    axes = figure.subplots(len(sweeps), 2, squeeze=False)
    for row, sweep in zip(axes, sweeps, strict=True):
        draw_sweep(row[0], sweep, sweep.ledger, styles, EARNED)
        regrets = {label: part for label, part in sweep.regret.items() if label != "oracle"}
        draw_sweep(row[1], sweep, regrets, styles, REGRET)
        row[1].set_yscale("symlog", linthresh=10.0, linscale=0.5)  # overspending can pay: below 0
        row[1].yaxis.set_major_formatter(plain)
        means = np.concatenate([np.zeros(1), *(part.mean(axis=0) for part in regrets.values())])
        row[1].set_ylim(1.5 * float(means.min()), 1.5 * float(means.max()) + 1.0)
        row[0].set_title(picture_text(sweep.name), loc="left", fontsize=10, fontweight="bold")
    draw_legend(figure, styles)
    seeds = [part.shape[0] for sweep in sweeps for part in sweep.regret.values()]
    drawn = [styles[label] for sweep in sweeps for label in sweep.regret]
    figure.suptitle(_suptitle(board.suite, seeds, drawn), fontsize=11)
    return figure
