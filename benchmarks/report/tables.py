"""The board as text: rich tables for the terminal, Markdown for the page.

No figure is typed by hand: every table carries the command, the seeds and the version behind it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from benchmarks.plan.suite import PUBLISHED_FIGURE, REFERENCES
from benchmarks.report.figure import Picture
from benchmarks.report.instance import task_warnings
from benchmarks.score.intervals import Interval, t_interval
from benchmarks.score.scoring import Board, Sweep
from benchmarks.score.standing import OverallRow
from benchmarks.score.task_board import INSTALLED, Section, TaskBoard, TaskRow
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import printable

_ORIGIN = (
    "agent",
    "seeds",
    "wall time",
    "version",
    "commit",
    "Python",
    "NumPy",
    "machine",
    "command",
)
PUBLISHED_COLUMNS = ("agent", "published", "here", "seeds")
_README_TASKS = 4

INTERVALS = """\
[..] are 95% intervals: Student's t over seeds, a bootstrap over seeds for exponents, a stratified
bootstrap (10,000 repetitions) for what runs over several tasks; without limits where there is a
single seed. Ranks go down the table: an agent
shares the rank of the best agent in it unless the paired interval of the two lies above 0; the next
rank is the agent's place.
"""

WARNINGS_NOTE = """\
By its own 95% interval each of these agents is above the oracle; of fair agents as good as the
oracle one in forty is. None of them is at the level that is corrected for all comparisons, which
alone fails a run.
"""

SCORE_NOTE = """\
*score*: mean over families of the mean over their tasks of the mean over seeds; the families are
the tasks with *synthetic* and with *real* queries, and weigh the same. It is the score to expect,
and every task counts. *IQM*: interquartile mean over tasks x seeds, steadier against odd runs, but
it leaves out the easiest and the hardest tasks.
"""

INVERTED = "Left out, without scores, because random does no worse than the oracle on some seed"

PROTOCOL_NOTES = {
    "pretrained": """\
The agents of this table were trained before the runs that are scored, on the task's instance or,
where every seed has an instance of its own, on the distribution of instances, and learn no more:
*training steps* and *minutes* (*steps*, *min*) are what that cost. Agents trained offline, named
above, never played it: they are given queries that never arrive with the quality of every LLM on
them (ACQB-CL refines contexts by them and goes on learning). Agents that start
ignorant have their own tables.
"""
}


def board_tables(board: Board) -> list[Table | str]:
    """Tables for the terminal: per kind the overall one, or why there is none, and one a task."""
    tables: list[Table | str] = []
    for section in board.sections:
        name = section_name(board, section)
        part = f"{board.suite}, {name}" if name else board.suite
        title = f"{part}: mean score over {len(_headline(board, section))} task(s)"
        if lines := _overall_lines(board, section):
            tables.append(_rich(title, _overall_headers(board, section), lines))
        else:
            tables.append(f"{part}: {nothing_separates(section_tasks(board, section))}")
        for task in section_tasks(board, section):
            tables.append(
                _rich(_task_title(task), task_headers(task, short=True), task_lines(task, True))
            )
            if lines := published_lines(task):
                tables.append(_rich(published_title(task), PUBLISHED_COLUMNS, lines))
    for sweep in board.sweeps:
        tables.append(_rich(sweep_title(sweep), SWEEP_COLUMNS, sweep_lines(sweep)))
    return tables


def board_markdown(board: Board, figures: Sequence[Picture] = ()) -> str:
    """Return ``leaderboard.md``, beside which the pictures lie."""
    origin = _origin(board)
    warned = task_warnings(board)
    parts = [f"# Leaderboard: {_escaped(board.suite)}\n"]
    parts += [f"**The oracle was beaten.** {_escaped(text)}\n" for text in board.violations]
    mark = "##" if len(board.sections) < 2 else "###"
    for section in board.sections:
        kind = section.kind
        if name := section_name(board, section):
            parts += [f"## {name.capitalize()}\n"]
        if lines := _overall_lines(board, section):
            parts += [_markdown(_overall_headers(board, section), lines)]
        parts += [f"{_overall_note(board, section)}\n", f"{origin}\n"]
        parts += [_image(figure) for figure in figures if figure.section == section]
        for sweep in section_sweeps(board, section):
            lines = sweep_lines(sweep)
            parts += [f"{mark} {_escaped(sweep_title(sweep))}\n", _markdown(SWEEP_COLUMNS, lines)]
            parts += [f"{sweep.note}\n{origin}\n"]
        for task in section_tasks(board, section):
            parts += [f"{mark} {_escaped(_task_title(task))}\n"]
            parts += [_markdown(task_headers(task, short=False), task_lines(task, False))]
            parts += [f"{_seeds(task)} {origin}\n"]
            parts += [f"Warning: {_escaped(text)}.\n" for text in warned.get(task.task["name"], ())]
            if lines := published_lines(task):
                parts += [f"{_escaped(published_title(task))}\n"]
                parts += [_markdown(PUBLISHED_COLUMNS, lines)]
        lines = [_origin_line(row) for row in board.overall if row.section == section and row.cells]
        if lines:
            parts += [f"{mark} Where the overall rows come from\n", _markdown(_ORIGIN, lines)]
        note = PROTOCOL_NOTES.get(section.protocol, "")
        parts += [f"**How to read it.** {kind.legend}\n{SCORE_NOTE}{note}{INTERVALS}"]
    parts += _trouble(board)
    return "\n".join(parts)


def board_summary(board: Board, figures: Sequence[Picture]) -> str:
    """Return the short tables in Markdown, as a README shows them; paths as in ``figures``.

    Sweeps have theirs; a section of at most four tasks has a table of each, folded away.
    """
    parts = []
    for section in board.sections:
        if name := section_name(board, section):
            parts += [f"### {name.capitalize()}\n"]
        if lines := _overall_lines(board, section):
            parts += [_markdown(_overall_headers(board, section), lines)]
        parts += [f"{_overall_note(board, section)}\n"]
        parts += [_image(figure) for figure in figures if figure.section == section]
        sweeps = section_sweeps(board, section)
        for sweep in sweeps:
            parts += [f"**{_escaped(sweep_title(sweep))}**\n"]
            parts += [_markdown(SWEEP_COLUMNS, sweep_lines(sweep))]
        parts += [sweeps[0].note] if sweeps else []
        tasks = section_tasks(board, section)
        if len(tasks) <= _README_TASKS:
            names = ", ".join(_escaped(task.task["name"]) for task in tasks)
            parts += [f"<details><summary>Task by task: {names}</summary>\n"]
            for task in tasks:
                headers = ("rank", *task_headers(task, short=True)[1:])
                parts += [f"**{_escaped(_task_title(task))}**, {_seeds(task)}\n"]
                parts += [_markdown(headers, task_lines(task, True))]
            parts += ["</details>\n"]
    return "\n".join([*parts, f"{_origin(board)}\n"])


def insert_between_markers(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Raises
    ------
    ValueError
        If the markers are not there, once each and in this order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in after or end in after:
        raise UsageError(f"the page needs the lines {begin} and {end}, once each, in this order")
    return f"{before}{begin}\n{content}{end}{after}"


# --- lines ----------------------------------------------------------------------------------------


def section_name(board: Board, section: Section) -> str:
    """Kind and protocol of a section, as far as they tell it from the board's others."""
    sections = board.sections
    parts = []
    if len({s.kind.name for s in sections}) > 1:
        parts.append(section.kind.name)
    if len({s.protocol for s in sections}) > 1 or section.protocol != "online":
        parts.append(section.protocol)
    return ", ".join(parts)


def section_tasks(board: Board, section: Section) -> list[TaskBoard]:
    """Tasks of a section."""
    return [task for task in board.tasks if task.section == section]


def section_sweeps(board: Board, section: Section) -> list[Sweep]:
    """Sweeps of a section."""
    return [sweep for sweep in board.sweeps if sweep.section == section]


def _headline(board: Board, section: Section) -> list[str]:
    return [
        t.task["name"] for t in section_tasks(board, section) if t.separates and t.task["headline"]
    ]


def _overall_note(board: Board, section: Section) -> str:
    """Say which tasks an overall table is over."""
    headline = [_escaped(name) for name in _headline(board, section)]
    tasks = section_tasks(board, section)
    tied = [_escaped(t.task["name"]) for t in tasks if not t.separates and not t.inverted]
    inverted = [_escaped(inverted_seeds(t)) for t in tasks if t.inverted]
    names = ", ".join(headline)
    if len(headline) > 12:
        names = f"{len(headline)} of {len(tasks)}"
    families = _families(board, section)
    over = f"the families {' and '.join(families)} of the mean over their" if families else "the"
    note = f"Score: mean over {over} tasks. Tasks in it: {names}."
    if not headline:
        note = f"No overall score. {_escaped(nothing_separates(tasks))}"
    elif tied:
        note += f" Left out because no pair of agents is separated on them: {', '.join(tied)}."
    if inverted:
        note += f" {INVERTED}: {', '.join(inverted)}."
    if any(row.cells < row.expected for row in _overall_rows(board, section)):
        note += " Agents without all cells are not ranked."
    given: dict[str, set[str]] = {}
    for cell in board.cells:
        agent = cell["spec"]["agent"]
        if "trained_on" in agent and cell["spec"]["protocol"] == section.protocol:
            given.setdefault(agent["trained_on"], set()).add(agent["label"])
    for what, labels in given.items():
        names = ", ".join(_escaped(label) for label in sorted(labels))
        note += f" Trained beforehand on {_escaped(what)}: {names}."
    return note


def inverted_seeds(board: TaskBoard) -> str:
    """Name of a task and the seeds on which there is no score."""
    word = "seed" if len(board.inverted) == 1 else "seeds"
    return f"{board.task['name']} ({word} {seed_ranges(board.inverted)})"


def nothing_separates(tasks: Sequence[TaskBoard]) -> str:
    """Say in words that no task of a section separates its agents, and what to do about it."""
    tied = [task for task in tasks if not task.separates and not task.inverted]
    counted = [task for task in tied if task.task["headline"]] or tied
    if not counted and all(task.inverted for task in tasks):
        return (
            "On every task random does no worse than the oracle on some seed, so that there is "
            "nothing to score against. What helps: a longer horizon; a higher load, or a tighter "
            "budget; LLMs that differ more."
        )
    if not counted:
        return (
            "None of its tasks counts towards one: take `headline = false` from a task whose "
            "agents differ."
        )
    seeds = max(task.seeds for task in counted)
    known = [task for task in counted if task.seeds_needed is not None]
    if seeds < 2:
        more = "run two seeds or more (--seeds), which intervals need"
    elif known:
        least = min(known, key=lambda task: task.seeds_needed or 0)
        more = (
            f"about {least.seeds_needed:,} seeds in place of {least.seeds} (--seeds) would "
            f"separate two agents on {least.task['name']}, if the differences seen there are the "
            "true ones"
        )
    else:
        more = "more seeds (--seeds) alone will hardly do"
    return (
        "No task separates the agents: of no pair does the paired interval, corrected for the "
        f"number of pairs, leave out 0. What helps: {more}; a longer horizon; a higher load, or a "
        "tighter budget."
    )


def tied_words(task: TaskBoard) -> str:
    """Say that a task separates nothing, and how many seeds it would take."""
    words = "It separates nothing: no pair of agents has a paired interval that leaves out 0"
    if task.seeds_needed is None:
        return f"{words}."
    return f"{words}; about {task.seeds_needed:,} seeds would, at the differences seen here."


def _families(board: Board, section: Section) -> tuple[str, ...]:
    """Families of the overall score, where there are several."""
    for standing in board.standings:
        if standing.section == section and len(standing.families) > 1:
            return standing.families
    return ()


def _overall_headers(board: Board, section: Section) -> tuple[str, ...]:
    """Headers of an overall table; a trained agent's row says what its trainings cost."""
    cost = ("training steps", "training time") if section.protocol == "pretrained" else ()
    return ("rank", "agent", "score", *_families(board, section), "IQM", "cells", *cost)


def _overall_lines(board: Board, section: Section) -> list[list[str]]:
    if not _headline(board, section):
        return []  # there is nothing to take a mean of
    families = _families(board, section)
    return [_overall_line(row, families) for row in _overall_rows(board, section)]


def _overall_rows(board: Board, section: Section) -> list[OverallRow]:
    """Rows of the agents that play a task of the overall score."""
    return [row for row in board.overall if row.section == section and row.planned]


def _overall_line(row: OverallRow, families: Sequence[str]) -> list[str]:
    scores = [row.score, *(row.families.get(family) for family in families), row.iqm]
    line = [_rank(row.rank), row.agent, *(_interval(score, 3) for score in scores)]
    line.append(f"{row.cells}/{row.expected}")
    if row.section.protocol == "pretrained":
        line.append(_number(row.train_steps, 0))
        line.append("" if row.train_seconds is None else duration(row.train_seconds))
    return line


def _task_title(board: TaskBoard) -> str:
    """Name of a task with its instance and horizon."""
    about = f"{board.about}, " if board.about else ""
    title = f"{board.task['name']} ({about}T = {board.task['horizon']:,})"
    return title if board.separates else f"{title}: separates nothing"


def task_headers(board: TaskBoard, *, short: bool) -> tuple[str, ...]:
    """Headers of a task's table: the short one, or the page's."""
    titles = (
        board.columns[place].short if short else board.columns[place].title
        for place in _shown(board, short)
    )
    return ("" if short else "rank", "agent", "score", *titles)


def _shown(board: TaskBoard, short: bool) -> list[int]:
    """Places of the columns of a table; one without a single figure is left out."""
    return [
        place
        for place, column in enumerate(board.columns)
        if (column.short if short else column.title)
        and (
            column.missing
            or not board.rows
            or any(row.figures[place] is not None for row in board.rows)
        )
    ]


def task_lines(board: TaskBoard, short: bool) -> list[list[str]]:
    """Rows of a task's table as text."""
    return [_line(row, board, short) for row in board.rows]


def agents_markdown(board: TaskBoard, agents: Collection[str]) -> str:
    """Markdown table of some agents of a task beside the references."""
    rows = [row for row in board.rows if row.agent in {*agents, *REFERENCES}]
    lines = [_line(row, board, short=True) for row in rows]
    return _markdown(task_headers(board, short=True), lines)


def _line(row: TaskRow, board: TaskBoard, short: bool) -> list[str]:
    """One agent; short lines show the value of an interval only."""
    missing = "" if short or row.seeds == board.seeds else f" ({row.seeds} seeds)"
    score = _number(_value(row.score)) if row.agent in REFERENCES else _interval(row.score, 3)
    line = [_rank(row.rank), row.agent + missing, score]
    for place in _shown(board, short):
        column, figure = board.columns[place], row.figures[place]
        if row.agent == "oracle" and column.oracle is not None:
            line.append(column.oracle)
        elif figure is None:
            line.append(column.missing)
        elif isinstance(figure, Interval):
            digits = column.digits
            line.append(_number(figure.value, digits) if short else _interval(figure, digits))
        else:
            line.append(_number(figure, column.digits))
    return line


SWEEP_COLUMNS = ("agent", "exponent of regret", "stuck", "regret", "ledger / query")


def published_title(board: TaskBoard) -> str:
    """Say what is compared, whose figures they are, and what is known to differ."""
    published = board.task["published"]
    figure = PUBLISHED_FIGURE.replace("_", " ")
    note = f" {published['note']}" if published.get("note") else ""
    return f"{board.task['name']}: {figure} beside {published['source']}.{note}"


def published_lines(board: TaskBoard) -> list[list[str]]:
    """Figures of others beside the run's, by agent; empty if the task gives none."""
    figures = board.task.get("published", {}).get(PUBLISHED_FIGURE, {})
    lines = []
    for row in board.rows:
        curves = board.curves.get(row.agent)
        if curves is None or "regret" not in curves.sums:
            continue
        own = t_interval(curves.sums["regret"][:, -1] / curves.t[-1])
        if row.agent in figures:
            given = " ± ".join(f"{part:.4f}" for part in np.atleast_1d(figures[row.agent]))
            lines.append([row.agent, given, _interval(own, 4), str(row.seeds)])
    return lines


def sweep_title(sweep: Sweep) -> str:
    """Say what is swept, from where to where."""
    low, high = (f"{value:,.0f}" for value in (sweep.values[0], sweep.values[-1]))
    return f"{sweep.name}: {sweep.axis} from {low} to {high}"


def sweep_lines(sweep: Sweep) -> list[list[str]]:
    """One line an agent: exponent, and the ends of the sweep."""
    lines = []
    for label, regret in sweep.regret.items():
        exponent = sweep.exponents.get(label)
        line = [label, _interval(exponent) if exponent else "none" if sweep.exponents else ""]
        for part in (sweep.stuck.get(label), regret, sweep.ledger[label]):
            if part is None:
                line.append("")
                continue
            low, *_, high = part.mean(axis=0).tolist()
            line.append(f"{_number(low)} to {_number(high)}")
        lines.append(line)
    return lines


def _image(figure: Picture) -> str:
    return f"![{_escaped(figure.caption)}]({figure.path.as_posix()})\n"


def _seeds(board: TaskBoard) -> str:
    return f"{board.seeds} seeds."


def _origin(board: Board) -> str:
    """Command, version, commit and machine behind a table; all commits that cells come from."""
    run: Mapping[str, Any] = board.provenance
    commits = {cell["provenance"]["commit"] for cell in board.cells} or {run["commit"]}
    commit = ", ".join(sorted(name or INSTALLED for name in commits))
    machines = {cell["provenance"]["machine"] for cell in board.cells} or {run["machine"]}
    versions = f"Python {run['python']}, NumPy {run['numpy']}, Gymnasium {run['gymnasium']}"
    return (
        f"{_code(run['command'])}; llmqueue_gym {run['version']} ({commit}); {versions}; "
        f"{_escaped('; '.join(sorted(machines)))}."
    )


def _origin_line(row: OverallRow) -> list[str]:
    origin = row.origin
    return [
        row.agent,
        seed_ranges(origin.seeds),
        duration(origin.wall_seconds),
        *(
            ", ".join(_escaped(part) for part in parts)
            for parts in (
                origin.versions,
                origin.commits,
                origin.pythons,
                origin.numpys,
                origin.machines,
            )
        ),
        ", ".join(_code(part) for part in origin.commands),
    ]


def _trouble(board: Board) -> list[str]:
    """List what is not on the board, and why."""
    parts = []
    if board.warnings:
        parts += ["## Above the oracle, perhaps by chance\n", WARNINGS_NOTE]
        parts += [f"- {_escaped(text)}" for text in board.warnings] + [""]
    if board.failures:
        parts += ["## Failed cells\n"]
        parts += [
            f"- {_escaped(name)}: {_code(record['error'])}" for name, record in board.failures
        ]
        parts.append("")
    if board.missing:
        parts += ["## Not run\n", "The run was interrupted; the same command computes the rest.\n"]
        parts += [f"- {_escaped(name)}" for name in board.missing] + [""]
    if board.skipped:
        parts += ["## Skipped\n"]
        parts += [
            f"- {_escaped(name)}: {_escaped(reason)}" for name, reason in board.skipped.items()
        ]
        parts.append("")
    return parts


# --- text that others wrote -----------------------------------------------------------------------


def _escaped(text: str) -> str:
    """Return text that Markdown and the HTML made of it show as it is."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(printable(text), quote=False))


def _code(text: str) -> str:
    """Return text as code."""
    return "`" + printable(text).replace("`", "'") + "`"


# --- numbers --------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without exponents, whole numbers above 100."""
    if value is None or np.isnan(value):
        return ""
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 100 or (digits == 0 and value.is_integer()):
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.{digits}f}" if digits > 2 and abs(value) < 1.995 else f"{value:.2f}"


def _interval(interval: Interval | None, digits: int = 2) -> str:
    if interval is None:
        return ""
    value, low, high = (_number(part, digits) for part in interval)
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    """Time in the two largest units that say something."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def seed_ranges(seeds: Sequence[int]) -> str:
    """Seeds as ``0-9`` or ``0-4, 7``."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _rank(rank: int | None) -> str:
    return "" if rank is None else str(rank)


# --- the two forms --------------------------------------------------------------------------------


def _rich(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(
        title=Text(printable(title), style="table.title"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    for name in columns:
        justify: Literal["left", "right"] = "left" if name == "agent" else "right"
        table.add_column(name, justify=justify)
    for line in lines:
        cells = [Text(printable(cell)) for cell in line]  # a name is no markup
        table.add_row(*cells, style="dim" if set(line[:2]) & set(REFERENCES) else None)
    return table


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table; agents are other people's text, all else is escaped where it comes from."""
    rules = [":---" if name in ("agent", "command") else "---:" for name in columns]
    rows = [
        [
            _escaped(cell) if name == "agent" else cell.replace("|", "\\|")
            for name, cell in zip(columns, line, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rules, *rows]) + "\n"
