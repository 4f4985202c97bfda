"""Figures for papers: one at a time, of chosen agents under chosen names, as PDF or SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.plan.suite import REFERENCES
from benchmarks.problems.kind import Panel
from benchmarks.report.draw import (
    COLOURS,
    EARNED,
    REGRET,
    Style,
    draw_panel,
    draw_profiles,
    draw_scores,
    draw_sweep,
    draw_times,
    draw_traffic,
    new_figure,
    styles_of,
)
from benchmarks.report.figure import file_name
from benchmarks.report.series import heat_map, panels, training_panels
from benchmarks.run.store import write_bytes
from benchmarks.score.scoring import Board
from benchmarks.score.standing import OverallRow, Standing
from benchmarks.score.task_board import Section, TaskBoard
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

Format = Literal["pdf", "svg"]
Names = Mapping[str, str]
"""Agent's label on the board -> name in the figure."""

_UNDATED: Mapping[Format, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_FEW = 5  # agents where none are named
_ENDS = 2  # inches for the names of lines


def write_figure(
    board: Board,
    figure: str,
    folder: Path,
    *,
    agents: Sequence[str] = (),
    labels: Sequence[str] = (),
    task: str | None = None,
    form: Format = "pdf",
) -> list[Path]:
    """Write one figure of a board, without a title, once per kind of task and protocol.

    Parameters
    ----------
    board : Board
    figure : str
        One of `FIGURES`.
    folder : Path
    agents : Sequence[str]
        Labels on the board, in the order of their colours; by default the best five, and the
        references.
    labels : Sequence[str]
        What to call them in the figure.
    task : str, optional
        The task that ``curves`` and ``traffic`` show; for the others, what they are of is fixed.
    form : {"pdf", "svg"}
        Text stays text in both.

    Raises
    ------
    ValueError
        If there is no such figure, task or agent, or nothing to draw.
    """
    if figure not in FIGURES:
        listed = "; ".join(f"{name}: {what}" for name, (what, _) in FIGURES.items())
        raise UsageError(f"--figure {figure!r} is none of {listed}")
    tasks = list(dict.fromkeys(task.task["name"] for task in board.tasks))
    if task is not None:
        checks.choice("--task", task, tasks)
    elif figure in _OF_A_TASK:
        raise UsageError(f"--figure {figure} needs --task NAME: one of {', '.join(tasks)}")
    named = _named(board, agents, labels)

    def names(section: Section) -> Names:
        return named or _best(board, section)

    drawn = list(FIGURES[figure][1](board, task or "", names))
    if not drawn:
        raise UsageError(f"--figure {figure}: these results hold nothing of it for these agents")
    paths = []
    for part, picture in drawn:
        stem = "-".join([figure, *([task] if task else []), *([part] if len(drawn) > 1 else [])])
        path = folder / f"{file_name(stem)}.{form}"
        buffer = BytesIO()
        # Text stays text, and names of parts do not change.
        with rc_context(
            {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "llmqueue_gym"}
        ):
            picture.savefig(buffer, format=form, metadata=_UNDATED[form])
        write_bytes(path, buffer.getvalue())
        paths.append(path)
    return paths


def _named(board: Board, agents: Sequence[str], labels: Sequence[str]) -> Names:
    """Return the agents that were asked for, with their names."""
    known = list(dict.fromkeys(row.agent for row in board.overall))
    for agent in agents:
        checks.choice("--agents", agent, known)
    if labels and len(labels) != len(agents):
        raise UsageError(
            f"--labels has {len(labels)} names for {len(agents)} --agents; give one each"
        )
    if len(set(labels)) < len(labels) or len(set(agents)) < len(agents):
        raise UsageError("--agents and --labels must name each agent once, each by another name")
    if len(set(agents) - {*REFERENCES}) > len(COLOURS):
        raise UsageError(
            f"--agents names {len(agents)} agents; more than {len(COLOURS)} besides "
            f"{' and '.join(REFERENCES)} cannot be told apart: leave some out"
        )
    return dict(zip(agents, labels or agents, strict=True))


def _best(board: Board, section: Section) -> Names:
    """Return the best agents of a section and the references."""
    rows = [row.agent for row in board.overall if row.section == section]
    best = [agent for agent in rows if agent not in REFERENCES][:_FEW]
    return {agent: agent for agent in (*best, *REFERENCES)}


def _styles(names: Names) -> dict[str, Style]:
    """Line styles by name in the figure."""
    styles = styles_of([agent for agent in names if agent not in REFERENCES])
    return {name: styles[agent] for agent, name in names.items()}


def _part(board: TaskBoard | Standing) -> str:
    """Tell apart what is drawn once per kind and protocol."""
    return f"{board.section.kind.name}-{board.section.protocol}"


# --- the figures ----------------------------------------------------------------------------------

Drawn = Iterator[tuple[str, Figure]]
Choice = Callable[[Section], Names]


def _renamed(panel: Panel, names: Names) -> Panel:
    lines = {name: panel.lines[agent] for agent, name in names.items() if agent in panel.lines}
    return replace(panel, lines=lines)


def _curves(board: Board, task: str, choose: Choice) -> Drawn:
    for shown in (own for own in board.tasks if own.task["name"] == task):
        names = choose(shown.section)
        # The oracle is what a ledger is compared with, drawn or not.
        curves = {a: own for a, own in shown.curves.items() if a in names or a == "oracle"}
        if curves.keys() & names.keys():
            yield _part(shown), _panels(panels(replace(shown, curves=curves)), names)


def _panels(shown: Sequence[Panel], names: Names) -> Figure:
    figure = new_figure(2.7 * len(shown) + _ENDS, 2.8)
    for axis, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_panel(axis, _renamed(panel, names), _styles(names))
    return figure


def _traffic(board: Board, task: str, choose: Choice) -> Drawn:
    for shown in (own for own in board.tasks if own.task["name"] == task and own.rows):
        names, traffic = choose(shown.section), heat_map(shown)
        if traffic is None or not traffic.shares.keys() & names.keys():
            continue
        shares = {name: traffic.shares[a] for a, name in names.items() if a in traffic.shares}
        yield _part(shown), draw_traffic(traffic._replace(shares=shares), list(shares))


def _standings(board: Board, choose: Choice) -> Iterator[tuple[Standing, Names, list[OverallRow]]]:
    """Yield what is ranked, the chosen agents, and their rows under their names."""
    for standing in board.standings:
        names = choose(standing.section)
        rows = [
            replace(row, agent=names[row.agent])
            for row in standing.rows
            if row.agent in names and row.rank is not None
        ]
        if rows:
            yield standing, names, rows


def _scores(board: Board, task: str, choose: Choice) -> Drawn:
    for standing, names, rows in _standings(board, choose):
        figure = new_figure(4.5, 0.8 + 0.25 * len(rows))
        draw_scores(figure.subplots(), rows, _styles(names))
        yield _part(standing), figure


def _profiles(board: Board, task: str, choose: Choice) -> Drawn:
    for standing, names, rows in _standings(board, choose):
        profiles = {
            name: standing.profiles[a] for a, name in names.items() if a in standing.profiles
        }
        figure = new_figure(3.5, 2.8)
        axis = figure.subplots()
        styles = {row.agent: _styles(names)[row.agent] for row in rows}
        draw_profiles(axis, replace(standing, profiles=profiles), styles)
        axis.legend(frameon=False, fontsize=8)
        yield _part(standing), figure


def _decision_time(board: Board, task: str, choose: Choice) -> Drawn:
    for standing, names, rows in _standings(board, choose):
        figure = new_figure(6.0, 1.0 + 0.25 * len(rows))
        scores, times = figure.subplots(1, 2, sharey=True)
        draw_scores(scores, rows, _styles(names))
        draw_times(times, rows, _styles(names))
        yield _part(standing), figure


def _training(board: Board, task: str, choose: Choice) -> Drawn:
    for standing in board.standings:
        names, found = choose(standing.section), training_panels(board, standing.section)
        shown = [panel for panel in found.values() if panel.lines.keys() & names.keys()]
        if shown:
            yield _part(standing), _panels(shown, names)


def _sweeps(board: Board, task: str, choose: Choice) -> Drawn:
    for sweep in board.sweeps:
        names = choose(sweep.section)
        figure = new_figure(7.4, 2.8)
        parts = ((sweep.ledger, EARNED), (sweep.regret, REGRET))
        for axis, (values, quantity) in zip(figure.subplots(1, 2), parts, strict=True):
            shown = {name: values[a] for a, name in names.items() if a in values}
            draw_sweep(axis, sweep, shown, _styles(names), quantity)
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        yield f"{sweep.name}-{sweep.axis}", figure


_OF_A_TASK = ("curves", "traffic")

FIGURES: Mapping[str, tuple[str, Callable[[Board, str, Choice], Drawn]]] = {
    "curves": ("what happens over time on --task", _curves),
    "traffic": ("share of the queries by LLM and stage of --task", _traffic),
    "scores": ("overall scores with intervals", _scores),
    "profiles": ("share of runs that score above x", _profiles),
    "decision-time": ("overall score beside the time of a decision", _decision_time),
    "training": ("learning curves of the trainings", _training),
    "sweeps": ("score and regret against the swept parameter", _sweeps),
}
"""Name of a figure -> what it shows, and what draws it."""
