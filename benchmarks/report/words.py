"""What a board says in words: sentences, and the lines of its tables as text.

`benchmarks.report.data` puts them beside the values; no figure is typed by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.plan.suite import PUBLISHED_FIGURE, REFERENCES
from benchmarks.score.intervals import Interval, t_interval
from benchmarks.score.scoring import Board, Sweep
from benchmarks.score.standing import OverallRow, Standing
from benchmarks.score.task_board import Section, TaskBoard, TaskRow

Lines = list[list[str]]

PUBLISHED_COLUMNS = ("agent", "published", "here", "seeds")
SWEEP_COLUMNS = ("agent", "exponent of regret", "stuck", "regret", "ledger / query")

INTERVALS = """\
[..] are 95% intervals: Student's t over seeds; for exponents a bootstrap over seeds; for what runs
over several tasks one of whole seeds (10,000 repetitions), widened as Student's t is; without
limits where there is a single seed. Ranks go down the table: an agent shares the rank of the best
agent in it unless the paired interval of the two lies above 0; the next rank is the agent's place.
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
*training steps* and *minutes* (*steps*, *min*) are what that cost. Of several *trainings* each
played some of the seeds, and intervals are over trainings. Agents trained offline, named above,
never played it: they are given queries that never arrive with the quality of every LLM on them
(ACQB-CL refines contexts by them and goes on learning). Agents that start ignorant have their own
tables.
"""
}


# --- a section ------------------------------------------------------------------------------------


def section_name(board: Board, section: Section) -> str:
    """Kind and protocol of a section, as far as they tell it from the board's others."""
    sections = board.sections
    parts = []
    if len({s.kind.name for s in sections}) > 1:
        parts.append(section.kind.name)
    if len({s.protocol for s in sections}) > 1 or section.protocol != "online":
        parts.append(section.protocol)
    return ", ".join(parts)


def overall_note(board: Board, standing: Standing) -> str:
    """Say which tasks an overall table is over."""
    section = standing.section
    tasks = board.tasks_of(section)
    tied = [t.task["name"] for t in tasks if not t.separates and not t.inverted]
    inverted = [inverted_seeds(t) for t in tasks if t.inverted]
    names = ", ".join(standing.tasks)
    if len(standing.tasks) > 12:
        names = f"{len(standing.tasks)} of {len(tasks)}"
    families = _families(standing)
    over = f"the families {' and '.join(families)} of the mean over their" if families else "the"
    note = f"Score: mean over {over} tasks. Tasks in it: {names}."
    if not standing.tasks:
        note = f"No overall score. {nothing_separates(tasks)}"
    elif tied:
        note += f" Left out because no pair of agents is separated on them: {', '.join(tied)}."
    if inverted:
        note += f" {INVERTED}: {', '.join(inverted)}."
    if any(row.cells < row.expected for row in standing.rows if row.planned):
        note += " Agents without all cells are not ranked."
    given: dict[str, set[str]] = {}
    for cell in board.cells:
        agent = cell["spec"]["agent"]
        if "trained_on" in agent and cell["spec"]["protocol"] == section.protocol:
            given.setdefault(agent["trained_on"], set()).add(agent["label"])
    for what, labels in given.items():
        note += f" Trained beforehand on {what}: {', '.join(sorted(labels))}."
    return note + _walls(board, section.protocol)


def _walls(board: Board, protocol: str) -> str:
    """Say who played behind the wall (`benchmarks.wall`), and whose code from elsewhere did not."""
    places: dict[str, set[str]] = {}
    for cell in board.cells:
        agent = cell["spec"]["agent"]
        if cell["spec"]["protocol"] != protocol:
            continue
        if "wall" in cell:
            place = f"In a process apart ({cell['wall']['isolation']})"
            places.setdefault(place, set()).add(agent["label"])
        elif "code" in agent:
            places.setdefault("Trusted, in one process with the truth", set()).add(agent["label"])
    return "".join(f" {where}: {', '.join(sorted(who))}." for where, who in sorted(places.items()))


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


def _families(standing: Standing) -> tuple[str, ...]:
    """Families of the overall score, where there are several."""
    return standing.families if len(standing.families) > 1 else ()


def overall_columns(standing: Standing) -> list[str]:
    """Headers of an overall table; a trained agent's row says what its trainings cost."""
    trained = standing.section.protocol == "pretrained"
    cost = ("training steps", "training time") if trained else ()
    if _retrained(standing):
        cost = ("trainings", *cost)
    return ["rank", "agent", "score", *_families(standing), "IQM", "cells", *cost]


def overall_lines(standing: Standing) -> Lines:
    """Rows of an overall table; none where no task counts."""
    shown = [row for row in standing.rows if row.planned] if standing.tasks else []
    retrained = _retrained(standing)
    return [_overall_line(row, _families(standing), retrained) for row in shown]


def _retrained(standing: Standing) -> bool:
    return any((row.trainings or 1) > 1 for row in standing.rows)


def _overall_line(row: OverallRow, families: Sequence[str], retrained: bool) -> list[str]:
    scores = [row.score, *(row.families.get(family) for family in families), row.iqm]
    line = [_rank(row.rank), row.agent, *(interval_text(score, 3) for score in scores)]
    line.append(f"{row.cells}/{row.expected}")
    if retrained:
        line.append("" if row.trainings is None else str(row.trainings))
    if row.section.protocol == "pretrained":
        line.append(_number(row.train_steps, 0))
        line.append("" if row.train_seconds is None else duration(row.train_seconds))
    return line


# --- a task ---------------------------------------------------------------------------------------


def task_title(board: TaskBoard) -> str:
    """Name of a task with its instance and horizon."""
    about = f"{board.about}, " if board.about else ""
    title = f"{board.task['name']} ({about}T = {board.task['horizon']:,})"
    return title if board.separates else f"{title}: separates nothing"


def task_columns(board: TaskBoard, *, short: bool) -> list[str]:
    """Headers of a task's table: the short one, or the page's."""
    titles = (
        board.columns[place].short if short else board.columns[place].title
        for place in _shown(board, short)
    )
    return ["" if short else "rank", "agent", "score", *titles]


def task_lines(board: TaskBoard, *, short: bool) -> Lines:
    """Rows of a task's table as text; short lines show the value of an interval only."""
    return [_task_line(row, board, short) for row in board.rows]


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


def _task_line(row: TaskRow, board: TaskBoard, short: bool) -> list[str]:
    missing = "" if short or row.seeds == board.seeds else f" ({row.seeds} seeds)"
    score = (
        _number(row.score and row.score.value)
        if row.agent in REFERENCES
        else interval_text(row.score, 3)
    )
    line = [_rank(row.rank), row.agent + missing, score]
    for place in _shown(board, short):
        column, figure = board.columns[place], row.figures[place]
        if row.agent == "oracle" and column.oracle is not None:
            line.append(column.oracle)
        elif figure is None:
            line.append(column.missing)
        elif isinstance(figure, Interval):
            digits = column.digits
            line.append(_number(figure.value, digits) if short else interval_text(figure, digits))
        else:
            line.append(_number(figure, column.digits))
    return line


def published_title(board: TaskBoard) -> str:
    """Say what is compared, whose figures they are, and what is known to differ."""
    published = board.task["published"]
    figure = PUBLISHED_FIGURE.replace("_", " ")
    note = f" {published['note']}" if published.get("note") else ""
    return f"{board.task['name']}: {figure} beside {published['source']}.{note}"


def published_lines(board: TaskBoard) -> Lines:
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
            lines.append([row.agent, given, interval_text(own, 4), str(row.seeds)])
    return lines


# --- a sweep --------------------------------------------------------------------------------------


def sweep_title(sweep: Sweep) -> str:
    """Say what is swept, from where to where."""
    low, high = (f"{value:,.0f}" for value in (sweep.values[0], sweep.values[-1]))
    return f"{sweep.name}: {sweep.axis} from {low} to {high}"


def sweep_lines(sweep: Sweep) -> Lines:
    """One line an agent: exponent, and the ends of the sweep."""
    lines = []
    for label, regret in sweep.regret.items():
        exponent = sweep.exponents.get(label)
        line = [label, interval_text(exponent) if exponent else "none" if sweep.exponents else ""]
        for part in (sweep.stuck.get(label), regret, sweep.ledger[label]):
            if part is None:
                line.append("")
                continue
            low, *_, high = part.mean(axis=0).tolist()
            line.append(f"{_number(low)} to {_number(high)}")
        lines.append(line)
    return lines


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


def interval_text(interval: Interval | None, digits: int = 2) -> str:
    """Return ``value [low, high]``; "" where there is none."""
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


def _rank(rank: int | None) -> str:
    return "" if rank is None else str(rank)
