"""The leaderboard as one HTML file that works from the disk, without a network.

`page_data` is what the browser gets, as plain JSON; the template, style and script lie beside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from benchmarks.plan.suite import REFERENCES, canonical
from benchmarks.problems.kind import Panel
from benchmarks.report.instance import task_data, task_llms, task_warnings
from benchmarks.report.series import (
    HeatMap,
    heat_map,
    mean_and_error,
    panels,
    training_panels,
)
from benchmarks.report.tables import (
    INTERVALS,
    INVERTED,
    PROTOCOL_NOTES,
    PUBLISHED_COLUMNS,
    SCORE_NOTE,
    SWEEP_COLUMNS,
    duration,
    inverted_seeds,
    nothing_separates,
    published_lines,
    published_title,
    section_sweeps,
    section_tasks,
    seed_ranges,
    sweep_lines,
    sweep_title,
    task_headers,
    task_lines,
    tied_words,
)
from benchmarks.score.intervals import Floats, Interval
from benchmarks.score.scoring import Board, Sweep
from benchmarks.score.standing import PROFILE_THRESHOLDS, OverallRow, Standing
from benchmarks.score.task_board import Origin, TaskBoard, TaskRow

_POINTS = 40  # of a line on the page
_DIGITS = 4  # significant digits of what is only drawn
_HASH = 12  # digits of a cell's hash: enough to find its file

Json = dict[str, Any]


def board_page(board: Board) -> str:
    """Return the page: HTML with style, script, data and plotly.js inside."""
    folder = files("benchmarks.report") / "template"
    style, script, template = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js", "index.html.jinja")
    )
    environment = Environment(autoescape=True, keep_trailing_newline=True)
    return environment.from_string(template).render(
        suite=board.suite,
        style=style,
        script=script,
        data=script_safe(page_data(board)),
        plotly=get_plotlyjs(),
    )


def script_safe(value: Any) -> str:
    """Return JSON that may stand inside a script element whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(board: Board) -> Json:
    """Return what the page shows, JSON-plain and compact."""
    origins = _Origins()
    return {
        "suite": board.suite,
        "sections": [_section(board, standing, origins) for standing in board.standings],
        "origins": origins.listed,
        "violations": board.violations,
        "warnings": board.warnings,
        "failures": [[name, str(record["error"])] for name, record in board.failures],
        "missing": board.missing,
        "skipped": [list(pair) for pair in board.skipped.items()],
        "command": board.provenance["command"],
        "cells": len(board.cells),
        "intervals": INTERVALS,
        "inverted": INVERTED,
        "score": SCORE_NOTE,
    }


class _Origins:
    """Where cells come from, each distinct combination listed once."""

    def __init__(self) -> None:
        self.listed: list[Json] = []
        self._place: dict[str, int] = {}

    def __call__(self, origin: Origin) -> int:
        entry = {
            "command": origin.commands,
            "version": origin.versions,
            "commit": origin.commits,
            "python": origin.pythons,
            "numpy": origin.numpys,
            "machine": origin.machines,
        }
        place = self._place.setdefault(canonical(entry), len(self.listed))
        if place == len(self.listed):
            self.listed.append(entry)
        return place


# --- a section ------------------------------------------------------------------------------------


def _section(board: Board, standing: Standing, origins: _Origins) -> Json:
    section = standing.section
    tasks = section_tasks(board, section)
    agents = _agents(standing)
    training = {
        name: _panel(panel, agents) for name, panel in training_panels(board, section).items()
    }
    warned = task_warnings(board)
    legend = section.kind.legend + "\n" + PROTOCOL_NOTES.get(section.protocol, "")
    return {
        "kind": section.kind.name,
        "protocol": section.protocol,
        "agents": agents,
        "references": [label for label in agents if label in REFERENCES],
        "legend": legend,
        "headline": list(standing.tasks),
        "families": list(standing.families) if len(standing.families) > 1 else [],
        "nothing": None if standing.tasks else nothing_separates(tasks),
        "rows": [_overall_row(row, origins) for row in standing.rows if row.planned],
        "pairs": [
            [
                agents.index(p.first),
                agents.index(p.second),
                _numbers(p.difference),
                _numbers(p.improvement),
            ]
            for p in standing.comparisons
        ],
        "thresholds": [float(f"{x:.3g}") for x in PROFILE_THRESHOLDS],
        "profiles": {
            label: [
                _drawn(part) if np.isfinite(part).all() else None  # one seed: no band
                for part in (profile.share, profile.low, profile.high)
            ]
            for label, profile in standing.profiles.items()
        },
        "tags": {
            tag: {label: _numbers(interval) for label, interval in scores.items()}
            for tag, scores in standing.tags.items()
        },
        "tasks": [
            {
                **_task(task, agents, origins),
                "training": training.get(task.task["name"]),
                "warnings": warned.get(task.task["name"], []),
                "data": task_data(board, task),
                "llms": _llms(board, task),
            }
            for task in tasks
        ],
        "sweeps": [_sweep(sweep) for sweep in section_sweeps(board, section)],
    }


def _agents(standing: Standing) -> list[str]:
    """Labels in the order of the overall table, references last."""
    labels = [row.agent for row in standing.rows]
    return [a for a in labels if a not in REFERENCES] + [a for a in REFERENCES if a in labels]


def _overall_row(row: OverallRow, origins: _Origins) -> Json:
    return {
        "agent": row.agent,
        "rank": row.rank,
        "score": _numbers(row.score),
        "families": {name: _numbers(score) for name, score in row.families.items()},
        "iqm": _numbers(row.iqm),
        "us": None if row.decision_us is None else _digits(row.decision_us),
        "cells": row.cells,
        "expected": row.expected,
        "steps": row.train_steps,
        "trained": None if row.train_seconds is None else duration(row.train_seconds),
        "seconds": row.train_seconds,
        **_origin(row.origin, origins),
    }


def _origin(origin: Origin, origins: _Origins) -> Json:
    return {
        "origin": origins(origin),
        "seeds": seed_ranges(origin.seeds),
        "wall": duration(origin.wall_seconds),
    }


def _task(task: TaskBoard, agents: Sequence[str], origins: _Origins) -> Json:
    headers = task_headers(task, short=False)
    traffic = heat_map(task) if task.rows else None
    published = published_lines(task)
    return {
        "name": task.task["name"],
        "about": task.about,
        "env": task.task["env"],
        "kwargs": json.dumps(task.task["kwargs"], ensure_ascii=False),
        "horizon": task.task["horizon"],
        "tags": list(task.task["tags"]),
        "seeds": task.seeds,
        "separates": task.separates,
        "tied": None if task.separates or task.inverted else tied_words(task),
        "inverted": inverted_seeds(task) if task.inverted else None,
        "headline": bool(task.task["headline"]),
        "headers": list(headers[3:]),
        "rows": [
            _task_row(row, line[3:], origins)
            for row, line in zip(task.rows, task_lines(task, False), strict=True)
        ],
        "published": [published_title(task), list(PUBLISHED_COLUMNS), published]
        if published
        else None,
        "panels": [_panel(panel, agents) for panel in panels(task)],
        "heat": None if traffic is None else _heat(traffic),
    }


def _llms(board: Board, task: TaskBoard) -> Json | None:
    """Table of a task's LLMs."""
    if (found := task_llms(board, task)) is None:
        return None
    whose, columns = found
    lines = [
        [value if isinstance(value, str) else f"{value:,.4g}" for value in row]
        for row in zip(*columns.values(), strict=True)
    ]
    return {"note": whose, "columns": list(columns), "lines": lines}


def _task_row(row: TaskRow, figures: Sequence[str], origins: _Origins) -> Json:
    return {
        "agent": row.agent,
        "rank": row.rank,
        "score": _numbers(row.score),
        "figures": list(figures),
        "keys": [key[:_HASH] for key in row.origin.keys],
        **_origin(row.origin, origins),
    }


# --- what is drawn --------------------------------------------------------------------------------


def _panel(panel: Panel, agents: Sequence[str]) -> Json:
    """One x for all lines where they share it, as those of a task do."""
    lines = {}
    shared: list[float | int | None] | None = None
    for label, (x, values) in panel.lines.items():
        kept = _kept(x, panel.x_range)
        mean, error = mean_and_error(values[:, kept])
        own = _drawn(x[kept])
        shared = own if shared is None else shared
        line = [_drawn(mean), None if error is None else _drawn(error)]
        lines[agents.index(label)] = line if own == shared else [*line, own]
    return {
        "across": panel.across,
        "quantity": panel.quantity,
        "xScale": panel.x_scale,
        "yScale": panel.y_scale,
        "xRange": panel.x_range,
        "yRange": [_digits(y) for y in panel.y_range],
        "x": shared or [],
        "lines": lines,
        "marks": [[x.tolist(), values[0].tolist()] for x, values in panel.marks],
    }


def _kept(x: Floats, limits: tuple[float, float]) -> list[int]:
    """Places of at most about ``_POINTS`` points within the limits, the last among them."""
    inside = np.flatnonzero((x >= limits[0] * 0.999) & (x <= limits[1] * 1.001))
    return [int(i) for i in inside[:: -max(1, -(-inside.size // _POINTS))][::-1]]


def _heat(traffic: HeatMap) -> Json:
    """Shares in tenths of a percent; -1 where the LLM is not there yet."""
    return {
        "names": list(traffic.names),
        "edges": traffic.edges.tolist(),
        "seeds": traffic.seeds,
        "others": traffic.others,
        "shares": {
            label: np.where(traffic.absent, -1, np.rint(1000 * share)).astype(int).tolist()
            for label, share in traffic.shares.items()
        },
    }


def _sweep(sweep: Sweep) -> Json:
    return {
        "title": sweep_title(sweep),
        "note": sweep.note,
        "across": sweep.across,
        "values": sweep.values.tolist(),
        **{
            name: {
                label: [
                    _drawn(mean),
                    None if error is None else _drawn(error),
                ]
                for label, values in parts.items()
                for mean, error in [mean_and_error(values)]
            }
            for name, parts in (("ledger", sweep.ledger), ("regret", sweep.regret))
        },
        "columns": list(SWEEP_COLUMNS),
        "lines": sweep_lines(sweep),
    }


# --- numbers --------------------------------------------------------------------------------------


def _digits(value: float) -> float | int | None:
    """Few significant digits; None in place of what JSON does not know."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() else short


def _drawn(values: Iterable[float]) -> list[float | int | None]:
    return [_digits(float(value)) for value in values]


def _numbers(interval: Interval | None) -> list[float | int | None] | None:
    """Value, low, high; an unbounded end is None."""
    return None if interval is None else _drawn(interval)
