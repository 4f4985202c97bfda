"""The board as text: rich tables for the terminal, Markdown for the page.

Every table carries the command, the seeds and the version behind it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from benchmarks.plan.suite import REFERENCES
from benchmarks.report.data import Json, board_data, sections
from benchmarks.report.figure import Picture
from benchmarks.report.words import (
    INTERVALS,
    PUBLISHED_COLUMNS,
    SCORE_NOTE,
    SWEEP_COLUMNS,
    WARNINGS_NOTE,
    duration,
    seed_ranges,
    task_columns,
    task_lines,
)
from benchmarks.score.scoring import Board
from benchmarks.score.task_board import TaskBoard
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
_README_TASKS = 4


def board_tables(board: Board, data: Json | None = None) -> list[Table | str]:
    """Tables for the terminal: per kind the overall one, or why there is none, and one a task.

    ``data`` is `benchmarks.report.data.board_data`, where it is there already.
    """
    data = board_data(board) if data is None else data
    tables: list[Table | str] = []
    for overall, tasks, _ in sections(data):
        text = overall["text"]
        part = ", ".join(filter(None, (data["suite"], text["name"])))
        if text["lines"]:
            title = f"{part}: mean score over {len(overall['tasks'])} task(s)"
            tables.append(rich_table(title, text["columns"], text["lines"]))
        else:
            tables.append(f"{part}: {text['nothing']}")
        for task in (task["text"] for task in tasks):
            tables.append(rich_table(task["title"], task["short_columns"], task["short_lines"]))
            if task["published"]:
                lines = task["published_lines"]
                tables.append(rich_table(task["published"], PUBLISHED_COLUMNS, lines))
    for sweep in (sweep["text"] for sweep in data["sweeps"]):
        tables.append(rich_table(sweep["title"], SWEEP_COLUMNS, sweep["lines"]))
    return tables


def board_markdown(board: Board, figures: Sequence[Picture] = (), data: Json | None = None) -> str:
    """Return ``leaderboard.md``, beside which the pictures lie; ``data`` as of `board_tables`."""
    data = board_data(board) if data is None else data
    origin = origin_text(data)
    parts = [f"# Leaderboard: {escaped(data['suite'])}\n"]
    parts += [f"**The oracle was beaten.** {escaped(text)}\n" for text in data["violations"]]
    mark = "##" if len(data["overall"]) < 2 else "###"
    for overall, tasks, sweeps in sections(data):
        parts += [*_overall(overall, "##"), f"{origin}\n", *_images(overall, figures)]
        for sweep in (sweep["text"] for sweep in sweeps):
            parts += [f"{mark} {escaped(sweep['title'])}\n"]
            parts += [markdown_table(SWEEP_COLUMNS, sweep["lines"]), f"{sweep['note']}\n{origin}\n"]
        for task in tasks:
            text = task["text"]
            parts += [f"{mark} {escaped(text['title'])}\n"]
            parts += [markdown_table(text["columns"], text["lines"]), f"{_seeds(task)} {origin}\n"]
            parts += [f"Warning: {escaped(warning)}.\n" for warning in task["warnings"]]
            if text["published"]:
                parts += [f"{escaped(text['published'])}\n"]
                parts += [markdown_table(PUBLISHED_COLUMNS, text["published_lines"])]
        if lines := [_origin_line(row) for row in overall["rows"] if row["cells"]]:
            parts += [f"{mark} Where the overall rows come from\n", markdown_table(_ORIGIN, lines)]
        text = overall["text"]
        notes = f"{SCORE_NOTE}{text['protocol']}{INTERVALS}"
        parts += [f"**How to read it.** {text['legend']}\n{notes}"]
    return "\n".join([*parts, *_trouble(data)])


def board_summary(board: Board, figures: Sequence[Picture]) -> str:
    """Return the short tables in Markdown, as a README shows them; paths as in ``figures``.

    Sweeps have theirs; a section of at most four tasks has a table of each, folded away.
    """
    data = board_data(board)
    parts = []
    for overall, tasks, sweeps in sections(data):
        parts += [*_overall(overall, "###"), *_images(overall, figures)]
        for sweep in (sweep["text"] for sweep in sweeps):
            parts += [f"**{escaped(sweep['title'])}**\n"]
            parts += [markdown_table(SWEEP_COLUMNS, sweep["lines"])]
        parts += [sweeps[0]["text"]["note"]] if sweeps else []
        if len(tasks) <= _README_TASKS:
            names = ", ".join(escaped(task["task"]) for task in tasks)
            parts += [f"<details><summary>Task by task: {names}</summary>\n"]
            for task in tasks:
                text = task["text"]
                columns = ("rank", *text["short_columns"][1:])
                parts += [f"**{escaped(text['title'])}**, {_seeds(task)}\n"]
                parts += [markdown_table(columns, text["short_lines"])]
            parts += ["</details>\n"]
    return "\n".join([*parts, f"{origin_text(data)}\n"])


def agents_markdown(board: TaskBoard, agents: Collection[str]) -> str:
    """Markdown table of some agents of a task beside the references."""
    shown = [row.agent in {*agents, *REFERENCES} for row in board.rows]
    lines = [line for line, own in zip(task_lines(board, short=True), shown, strict=True) if own]
    return markdown_table(task_columns(board, short=True), lines)


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


# --- parts ----------------------------------------------------------------------------------------


def _overall(overall: Json, mark: str) -> list[str]:
    """Name of a section, its overall table and what it is over."""
    text = overall["text"]
    parts = [f"{mark} {text['name'].capitalize()}\n"] if text["name"] else []
    parts += [markdown_table(text["columns"], text["lines"])] if text["lines"] else []
    return [*parts, f"{escaped(text['note'])}\n"]


def _images(overall: Json, figures: Sequence[Picture]) -> list[str]:
    """Pictures of a section."""
    own = overall["kind"], overall["protocol"]
    return [
        f"![{escaped(figure.caption)}]({figure.path.as_posix()})\n"
        for figure in figures
        if (figure.section.kind.name, figure.section.protocol) == own
    ]


def _seeds(task: Json) -> str:
    return f"{task['seeds']} seeds."


def origin_text(data: Json) -> str:
    """Command, version, commit and machine behind a table; all commits that cells come from."""
    run = data["provenance"]
    versions = f"Python {run['python']}, NumPy {run['numpy']}, Gymnasium {run['gymnasium']}"
    return (
        f"{as_code(run['command'])}; llmqueue_gym {run['version']} ({', '.join(data['commits'])}); "
        f"{versions}; {escaped('; '.join(data['machines']))}."
    )


def _origin_line(row: Json) -> list[str]:
    origin = row["origin"]
    lists = ("versions", "commits", "pythons", "numpys", "machines")
    return [
        row["agent"],
        seed_ranges(origin["seeds"]),
        duration(origin["wall_seconds"]),
        *(", ".join(escaped(part) for part in origin[name]) for name in lists),
        ", ".join(as_code(part) for part in origin["commands"]),
    ]


def _trouble(data: Json) -> list[str]:
    """List what is not on the board, and why."""
    parts = []
    if data["warnings"]:
        parts += ["## Above the oracle, perhaps by chance\n", WARNINGS_NOTE]
        parts += [f"- {escaped(text)}" for text in data["warnings"]] + [""]
    if data["failures"]:
        parts += ["## Failed cells\n"]
        parts += [
            f"- {escaped(failure['cell'])}: {as_code(failure['error'])}"
            for failure in data["failures"]
        ]
        parts.append("")
    if data["missing"]:
        parts += ["## Not run\n", "The run was interrupted; the same command computes the rest.\n"]
        parts += [f"- {escaped(name)}" for name in data["missing"]] + [""]
    if data["skipped"]:
        parts += ["## Skipped\n"]
        parts += [
            f"- {escaped(name)}: {escaped(reason)}" for name, reason in data["skipped"].items()
        ]
        parts.append("")
    return parts


# --- text that others wrote -----------------------------------------------------------------------


def escaped(text: str) -> str:
    """Return text that Markdown and the HTML made of it show as it is."""
    marks = r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))"  # no `_` within a word, which is none
    return re.sub(marks, r"\\\1", html.escape(printable(text), quote=False))


def as_code(text: str) -> str:
    """Return text as code, which neither links nor calls anybody."""
    return "`" + printable(text).replace("`", "'") + "`"


# --- the two forms --------------------------------------------------------------------------------


def rich_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Return a table for the terminal, and for what is no terminal."""
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


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table; agents are other people's text, all else is escaped where it comes from."""
    rules = [":---" if name in ("agent", "command", "figure") else "---:" for name in columns]
    rows = [
        [
            escaped(cell) if name == "agent" else cell.replace("|", "\\|")
            for name, cell in zip(columns, line, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rules, *rows]) + "\n"
