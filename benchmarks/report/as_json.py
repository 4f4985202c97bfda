"""A board as plain values, for scripts: ``llmqueue-bench report --json``.

An interval is ``{"value", "low", "high"}``; a bound that is infinite, and a figure that cannot be
had, is null.
"""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from benchmarks.problems.kind import Figure
from benchmarks.score.intervals import Interval
from benchmarks.score.scoring import Board
from benchmarks.score.standing import Standing
from benchmarks.score.task_board import TaskBoard


def board_json(board: Board) -> dict[str, Any]:
    """Return what the tables of a board say."""
    return {
        "suite": board.suite,
        "provenance": dict(board.provenance),
        "overall": [_standing(standing) for standing in board.standings],
        "tasks": [_task(task) for task in board.tasks],
        "failures": [{"cell": name, "error": failure["error"]} for name, failure in board.failures],
        "missing": board.missing,
        "skipped": dict(board.skipped),
        "violations": board.violations,
        "warnings": board.warnings,
    }


def _standing(standing: Standing) -> dict[str, Any]:
    rows = [
        {
            "rank": row.rank,
            "agent": row.agent,
            "score": _figure(row.score),
            "families": {name: _figure(score) for name, score in row.families.items()},
            "iqm": _figure(row.iqm),
            "decision_us": _figure(row.decision_us),
            "cells": row.cells,
            "expected": row.expected,
            "train_steps": row.train_steps,
            "train_seconds": row.train_seconds,
            "origin": asdict(row.origin),
        }
        for row in standing.rows
    ]
    return {
        "kind": standing.section.kind.name,
        "protocol": standing.section.protocol,
        "tasks": list(standing.tasks),
        "families": list(standing.families),
        "rows": rows,
        "comparisons": [
            {
                "first": pair.first,
                "second": pair.second,
                "difference": _figure(pair.difference),
                "improvement": _figure(pair.improvement),
            }
            for pair in standing.comparisons
        ],
    }


def _task(board: TaskBoard) -> dict[str, Any]:
    titles = [column.title for column in board.columns]
    rows = [
        {
            "rank": row.rank,
            "agent": row.agent,
            "seeds": row.seeds,
            "score": _figure(row.score),
            "figures": {
                title: _figure(figure)
                for title, figure in zip(titles, row.figures, strict=True)
                if title  # the others are short forms of these
            },
        }
        for row in board.rows
    ]
    return {
        "task": board.task["name"],
        "kind": board.kind.name,
        "protocol": board.section.protocol,
        "separates": board.separates,
        "seeds_needed": board.seeds_needed,
        "inverted_seeds": list(board.inverted),
        "seeds": board.seeds,
        "rows": rows,
    }


def _figure(figure: Figure) -> Any:
    if isinstance(figure, Interval):
        return figure.as_json()
    return figure if figure is not None and isfinite(figure) else None
