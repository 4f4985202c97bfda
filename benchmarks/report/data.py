"""A board as plain data: `board_data` is what every report reads.

Its leaves are text, numbers and intervals. ``llmqueue-bench report --json`` prints the values
(`board_json`). What stands under ``text`` are words and tables as text, for the tables and the page
(`benchmarks.report.tables`, `benchmarks.report.page`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from benchmarks.report import words
from benchmarks.score.intervals import Interval
from benchmarks.score.scoring import Board, Sweep
from benchmarks.score.standing import OverallRow, Standing
from benchmarks.score.task_board import INSTALLED, Record, TaskBoard

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")

Json = dict[str, Any]


def board_json(board: Board) -> Json:
    """Return the values of a board, JSON-plain.

    An interval is ``{"value", "low", "high"}``; a bound that is infinite, and a figure that cannot
    be had, is null.
    """
    plain: Json = _plain(board_data(board))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items() if key != "text"}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def board_data(board: Board) -> Json:
    """Return all that a report says of a board, but for what is drawn."""
    warned = task_warnings(board)
    cells: dict[str, list[Record]] = {}
    for cell in board.cells:
        cells.setdefault(cell["spec"]["task"]["name"], []).append(cell)
    origins = [cell["provenance"] for cell in board.cells] or [board.provenance]
    return {
        "suite": board.suite,
        "provenance": dict(board.provenance),
        "cells": len(board.cells),
        "commits": sorted({origin["commit"] or INSTALLED for origin in origins}),
        "machines": sorted({origin["machine"] for origin in origins}),
        "overall": [_standing(board, standing) for standing in board.standings],
        "tasks": [
            _task(board, task, warned.get(name, []), cells.get(name, []))
            for task in board.tasks
            for name in [task.task["name"]]
        ],
        "sweeps": [_sweep(sweep) for sweep in board.sweeps],
        "failures": [{"cell": name, "error": failure["error"]} for name, failure in board.failures],
        "missing": board.missing,
        "skipped": dict(board.skipped),
        "violations": board.violations,
        "warnings": board.warnings,
    }


def sections(data: Json) -> Iterator[tuple[Json, list[Json], list[Json]]]:
    """Yield what stands together: the overall entry, the tasks and the sweeps of each section."""
    for overall in data["overall"]:
        own = {name: overall[name] for name in ("kind", "protocol")}
        tasks, sweeps = (
            [entry for entry in data[part] if own.items() <= entry.items()]
            for part in ("tasks", "sweeps")
        )
        yield overall, tasks, sweeps


# --- a section ------------------------------------------------------------------------------------


def _standing(board: Board, standing: Standing) -> Json:
    section = standing.section
    nothing = None if standing.tasks else words.nothing_separates(board.tasks_of(section))
    return {
        "kind": section.kind.name,
        "protocol": section.protocol,
        "tasks": list(standing.tasks),
        "families": list(standing.families),
        "rows": [_overall_row(row) for row in standing.rows],
        "comparisons": [
            {
                "first": pair.first,
                "second": pair.second,
                "difference": pair.difference,
                "improvement": pair.improvement,
            }
            for pair in standing.comparisons
        ],
        "tags": standing.tags,
        "text": {
            "name": words.section_name(board, section),
            "columns": words.overall_columns(standing),
            "lines": words.overall_lines(standing),
            "note": words.overall_note(board, standing),
            "nothing": nothing,
            "legend": section.kind.legend,
            "protocol": words.PROTOCOL_NOTES.get(section.protocol, ""),
        },
    }


def _overall_row(row: OverallRow) -> Json:
    return {
        "rank": row.rank,
        "agent": row.agent,
        "score": row.score,
        "families": row.families,
        "iqm": row.iqm,
        "decision_us": row.decision_us,
        "cells": row.cells,
        "planned": row.planned,
        "expected": row.expected,
        "trainings": row.trainings,
        "train_steps": row.train_steps,
        "train_seconds": row.train_seconds,
        "origin": asdict(row.origin),
    }


# --- a task ---------------------------------------------------------------------------------------


def _task(board: Board, task: TaskBoard, warned: list[str], cells: Sequence[Record]) -> Json:
    titles = [column.title for column in task.columns]
    return {
        "task": task.task["name"],
        "kind": task.kind.name,
        "protocol": task.section.protocol,
        "env": task.task["env"],
        "kwargs": task.task["kwargs"],
        "horizon": task.task["horizon"],
        "tags": list(task.task["tags"]),
        "headline": bool(task.task["headline"]),
        "about": task.about,
        "warnings": warned,
        "data": _task_data(board, task, cells),
        "llms": _task_llms(cells),
        "separates": task.separates,
        "retired": task.retired,
        "seeds_needed": task.seeds_needed,
        "inverted_seeds": list(task.inverted),
        "seeds": task.seeds,
        "rows": [
            {
                "rank": row.rank,
                "agent": row.agent,
                "seeds": row.seeds,
                "score": row.score,
                "figures": {  # those without a title are short forms of the others
                    title: figure
                    for title, figure in zip(titles, row.figures, strict=True)
                    if title
                },
                "origin": asdict(row.origin),
            }
            for row in task.rows
        ],
        "text": _task_text(task),
    }


def _task_text(task: TaskBoard) -> Json:
    published = words.published_lines(task)
    return {
        "title": words.task_title(task),
        "columns": words.task_columns(task, short=False),
        "lines": words.task_lines(task, short=False),
        "short_columns": words.task_columns(task, short=True),
        "short_lines": words.task_lines(task, short=True),
        "tied": None if task.separates or task.inverted else words.tied_words(task),
        "inverted": words.inverted_seeds(task) if task.inverted else None,
        "published": words.published_title(task) if published else None,
        "published_lines": published,
    }


def _sweep(sweep: Sweep) -> Json:
    return {
        "kind": sweep.section.kind.name,
        "protocol": sweep.section.protocol,
        "name": sweep.name,
        "axis": sweep.axis,
        "values": sweep.values.tolist(),
        "exponents": sweep.exponents,
        "text": {
            "title": words.sweep_title(sweep),
            "lines": words.sweep_lines(sweep),
            "note": sweep.note,
        },
    }


# --- an instance ----------------------------------------------------------------------------------


def task_warnings(board: Board) -> dict[str, list[str]]:
    """Warnings about the instances of every task, each once, with the seeds that have it.

    Texts that differ in their numbers only are one, with the range of each number: of 20 seeds, 12
    may say ``... in 7 of 20 stages``, some of them 6 or 8.
    """
    found: dict[str, dict[int, list[str]]] = {}
    for cell in board.cells:
        spec = cell["spec"]
        if cell.get("warnings"):  # the instance is the same whoever plays
            found.setdefault(spec["task"]["name"], {})[spec["seed"]] = cell["warnings"]
    seeds = {task.task["name"]: task.seeds for task in board.tasks}
    return {name: _merged(own, seeds[name]) for name, own in found.items() if name in seeds}


def _merged(texts: dict[int, list[str]], seeds: int) -> list[str]:
    """Merge the texts of some of the seeds."""
    alike: dict[str, dict[int, str]] = {}
    for seed in sorted(texts):
        for text in texts[seed]:
            alike.setdefault(_NUMBER.sub("#", text), {})[seed] = text
    return [
        f"{_ranges(list(own.values()))} ({len(own)} of {seeds} seeds)" for own in alike.values()
    ]


def _ranges(texts: Sequence[str]) -> str:
    """Return the first of some texts that differ in their numbers, with the range of each."""
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    spans = []
    for column in columns:
        low, high = min(column, key=float), max(column, key=float)
        spans.append(low if low == high else f"{low} to {high}")
    numbers = iter(spans)
    return _NUMBER.sub(lambda _: next(numbers), texts[0])


def _task_data(board: Board, task: TaskBoard, cells: Sequence[Record]) -> list[str]:
    """Files of a task's queries, and the SHA-256 of their content, as far as they are stored."""
    name = task.task["name"]
    files = [f"{key}: {path}" for key, path in board.data.get(name, {}).items()]
    digests = {cell["spec"].get("workload") for cell in cells}
    return files + [f"SHA-256 {digest}" for digest in sorted(filter(None, digests))]


def _task_llms(cells: Sequence[Record]) -> Json | None:
    """Say whose LLMs these are, and list them by column; None of results that do not hold them.

    Where every seed has an instance of its own, those of the lowest seed stand for all.
    """
    found = {cell["spec"]["seed"]: cell["llms"] for cell in cells if "llms" in cell}
    if not found:
        return None
    first = min(found)
    alike = all(llms == found[first] for llms in found.values())
    note = "The same on every seed." if alike else f"Of seed {first}; every seed has its own."
    return {"note": note, "columns": found[first]}
