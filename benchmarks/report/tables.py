"""The board as text: rich tables for the terminal, Markdown for the page.

No figure is typed by hand: every table carries the command, the seeds and the version behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.scoring import Board, Interval, OverallRow, TaskBoard, TaskRow
from benchmarks.suite import REFERENCES

_TASK_COLUMNS = (
    "rank",
    "agent",
    "score",
    "mean queue",
    "tail queue",
    "tail gap",
    "decay",
    "routing regret",
    "growth",
    "p95 wait",
    "retrials / departed",
    "µs / decision",
)
_SHORT_COLUMNS = ("", "agent", "score", "queue", "tail gap", "regret", "µs")
_OVERALL_COLUMNS = ("rank", "agent", "score", "cells")

_LEGEND = """\
**How to read it.** *score*: (h(random) - h(agent)) / (h(random) - h(oracle)) with
h = log(1 + mean queue length), paired by seed; 0 is random, 1 the myopic oracle. *mean queue* and
*tail queue* (last 20% of the slots): waiting queries. *tail gap*: paired difference of the tail to
the oracle's, the queue length regret; *decay*: its exponent in t. *routing regret*: cumulative;
*growth*: its exponent in t (both fitted over the last decade of slots; "noise" where the gap is not
positive throughout). *p95 wait*: slots from arrival to departure, of departed queries.
*µs / decision*: median of act + update over slots with a waiting query. [..] are 95% intervals:
Student's t over seeds, a bootstrap over seeds for exponents, a stratified bootstrap (10,000
repetitions) for the overall interquartile mean. Agents share a rank unless a paired interval
separates them.
"""


def board_tables(board: Board) -> list[Table]:
    """Tables for the terminal, short enough for 80 columns: the overall one and one a task."""
    tables = [_rich(_overall_title(board), _OVERALL_COLUMNS, _overall_lines(board))]
    for task in board.tasks:
        lines = [_short_line(row) for row in task.rows]
        tables.append(_rich(_task_title(task), _SHORT_COLUMNS, lines))
    return tables


def _short_line(row: TaskRow) -> list[str]:
    regret = "" if row.agent == "oracle" else _number(row.routing_regret.value)
    return [
        _rank(row.rank),
        row.agent,
        _interval(row.score, 3) if row.agent not in REFERENCES else _number(_value(row.score), 3),
        _number(row.mean_queue.value),
        _number(row.queue_regret.value),
        regret,
        _number(row.decision_us),
    ]


def board_markdown(board: Board, figures: Sequence[str] = ()) -> str:
    """Return ``leaderboard.md``; ``figures`` are paths relative to it."""
    origin = _origin(board)
    parts = [f"# Leaderboard: {board.suite}\n"]
    parts += [f"**The oracle was beaten.** {text}\n" for text in board.violations]
    parts += [_markdown(_OVERALL_COLUMNS, _overall_lines(board)), f"{_overall_note(board)}\n"]
    parts += [f"{origin}\n"]
    parts += [f"![queue length and routing regret over time]({path})\n" for path in figures]
    for task in board.tasks:
        parts += [f"## {_task_title(task)}\n", _markdown(_TASK_COLUMNS, _task_lines(task))]
        parts += [f"{_seeds(task)} {origin}\n"]
    parts.append(_LEGEND)
    parts += _trouble(board)
    return "\n".join(parts)


def board_summary(board: Board, figure: str) -> str:
    """Return the short tables in Markdown, as a README shows them; ``figure`` is a path."""
    parts = [_markdown(_OVERALL_COLUMNS, _overall_lines(board)), f"{_overall_note(board)}\n"]
    parts += [f"{_origin(board)}\n", f"![queue length and routing regret over time]({figure})\n"]
    for task in board.tasks:
        parts += [f"**{_task_title(task)}**, {_seeds(task)}\n"]
        parts += [_markdown(("rank", *_SHORT_COLUMNS[1:]), [_short_line(row) for row in task.rows])]
    return "\n".join(parts)


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
        raise ValueError(f"the page needs the lines {begin} and {end}, once each, in this order")
    return f"{before}{begin}\n{content}{end}{after}"


# --- lines ----------------------------------------------------------------------------------------


def _overall_title(board: Board) -> str:
    return f"{board.suite}: interquartile mean score over {len(_headline(board))} task(s)"


def _headline(board: Board) -> list[str]:
    return [t.task["name"] for t in board.tasks if t.separates and t.task["headline"]]


def _overall_note(board: Board) -> str:
    names = ", ".join(_headline(board)) or "none: no task separates the agents"
    note = f"Interquartile mean of the score over tasks x seeds. Tasks in it: {names}."
    if tied := [t.task["name"] for t in board.tasks if not t.separates]:
        note += f" Left out because they separate nothing: {', '.join(tied)}."
    if any(row.cells < row.expected for row in board.overall):
        note += " Agents with missing cells are not ranked."
    return note


def _overall_lines(board: Board) -> list[list[str]]:
    return [_overall_line(row) for row in board.overall]


def _overall_line(row: OverallRow) -> list[str]:
    score = _interval(row.score, 3)
    return [_rank(row.rank), row.agent, score, f"{row.cells}/{row.expected}"]


def _task_title(board: TaskBoard) -> str:
    title = f"{board.task['name']} (load {board.load:.2f}, T = {board.task['horizon']:,})"
    return title if board.separates else f"{title}: separates nothing"


def _task_lines(board: TaskBoard) -> list[list[str]]:
    return [_task_line(row, board) for row in board.rows]


def _task_line(row: TaskRow, board: TaskBoard) -> list[str]:
    agent = row.agent if row.seeds == board.seeds else f"{row.agent} ({row.seeds} seeds)"
    oracle = row.agent == "oracle"
    return [
        _rank(row.rank),
        agent,
        _interval(row.score, 3) if row.agent not in REFERENCES else _number(_value(row.score), 3),
        _interval(row.mean_queue),
        _interval(row.tail_queue),
        "0" if oracle else _interval(row.queue_regret),
        "" if oracle else _exponent(row.queue_decay),
        "0" if oracle else _interval(row.routing_regret),
        "" if oracle else _exponent(row.regret_growth),
        _number(row.wait_p95, 3),
        _number(row.retrials_per_departed, 3),
        _number(row.decision_us, 3),
    ]


def _seeds(board: TaskBoard) -> str:
    return f"{board.seeds} seeds."


def _origin(board: Board) -> str:
    """Command, version, commit and machine behind a table; all commits that cells come from."""
    run: Mapping[str, Any] = board.provenance
    commits = {cell["provenance"]["commit"] for cell in board.cells} or {run["commit"]}
    commit = ", ".join(sorted(name or "no commit" for name in commits))
    machines = {cell["provenance"]["machine"] for cell in board.cells} or {run["machine"]}
    versions = f"Python {run['python']}, NumPy {run['numpy']}, Gymnasium {run['gymnasium']}"
    return (
        f"`{run['command']}`; llmqueue_gym {run['version']} ({commit}); {versions}; "
        f"{'; '.join(sorted(machines))}."
    )


def _trouble(board: Board) -> list[str]:
    """List what is not on the board, and why."""
    parts = []
    if board.failures:
        parts += ["## Failed cells\n"]
        parts += [f"- {name}: `{_one_line(record['error'])}`" for name, record in board.failures]
        parts.append("")
    if board.missing:
        parts += ["## Not run\n", "The run was interrupted; the same command computes the rest.\n"]
        parts += [f"- {name}" for name in board.missing] + [""]
    if board.skipped:
        parts += ["## Skipped\n"]
        parts += [f"- {name}: {reason}" for name, reason in board.skipped.items()] + [""]
    return parts


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


# --- numbers --------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without exponents, whole numbers above 100."""
    if value is None or np.isnan(value):
        return ""
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.{digits}f}" if digits > 2 and abs(value) < 1.995 else f"{value:.2f}"


def _interval(interval: Interval | None, digits: int = 2) -> str:
    if interval is None:
        return ""
    value, low, high = (_number(part, digits) for part in interval)
    return f"{value} [{low}, {high}]"


def _exponent(interval: Interval | None) -> str:
    return "noise" if interval is None else _interval(interval)


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _rank(rank: int | None) -> str:
    return "" if rank is None else str(rank)


# --- the two forms --------------------------------------------------------------------------------


def _rich(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name == "agent" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line, style="dim" if line[1] in REFERENCES else None)
    return table


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rules = [":---" if name == "agent" else "---:" for name in columns]
    rows = [columns, rules, *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
