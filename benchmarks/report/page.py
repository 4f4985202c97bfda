"""The leaderboard as one HTML file that works from the disk, without a network.

`page_data` is what the browser gets, as plain JSON: the board's data with few digits, and what is
drawn. The template, style and scripts lie beside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from benchmarks.plan.suite import REFERENCES
from benchmarks.problems.kind import Fleet, Panel
from benchmarks.report.data import Json, board_data, sections
from benchmarks.report.series import heat_map, mean_and_error, panels, training_panels
from benchmarks.report.words import (
    INTERVALS,
    INVERTED,
    PUBLISHED_COLUMNS,
    SCORE_NOTE,
    SWEEP_COLUMNS,
    duration,
    seed_ranges,
)
from benchmarks.score.export import Shared
from benchmarks.score.intervals import Floats
from benchmarks.score.scoring import Board, Sweep
from benchmarks.score.standing import PROFILE_THRESHOLDS, Standing
from benchmarks.score.task_board import TaskBoard

_SCRIPTS = ("parts", "charts", "tables", "views", "routes")  # one scope, in this order
_SUMMARY = ("task", "horizon", "tags", "headline", "separates", "retired", "inverted")
_POINTS = 40  # of a line on the page
_DIGITS = 4  # significant digits of what is only drawn
_HASH = 12  # digits of a cell's hash: enough to find its file


def board_page(board: Board, data: Json | None = None) -> str:
    """Return the page: HTML with style, script, data and plotly.js inside.

    ``data`` is `benchmarks.report.data.board_data`, where it is there already.
    """
    return rendered(
        "index",
        suite=board.suite,
        style=template_text("page.css"),
        script=script_text(_SCRIPTS),
        data=script_safe(page_data(board, data)),
        plotly=get_plotlyjs(),
    )


def rendered(name: str, **context: Any) -> str:
    """Return a page of a template; whatever stands in it is escaped.

    Without ``root``, the way to the folder of shared files, style and scripts are inside.
    """
    folder = PackageLoader("benchmarks.report", "template")
    environment = Environment(autoescape=True, keep_trailing_newline=True, loader=folder)
    return environment.get_template(f"{name}.html.jinja").render(context)


def template_text(name: str) -> str:
    """Return a file that lies beside the templates."""
    return (files("benchmarks.report") / "template" / name).read_text(encoding="utf-8")


def script_text(names: Sequence[str]) -> str:
    """Return scripts in a scope of their own."""
    parts = "\n".join(template_text(f"{name}.js") for name in names)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def script_safe(value: Any) -> str:
    """Return JSON that may stand inside a script element whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def split_page(page: Json, folder: str) -> dict[str, Json]:
    """Leave of each task what the lists of tasks show; return the rest by the file to load it from.

    Each part comes with what the charts ask of its section.
    """
    parts: dict[str, Json] = {}
    for section in page["sections"]:
        shared = {name: section[name] for name in ("kind", "protocol", "agents", "references")}
        for place, task in enumerate(section["tasks"]):
            file = f"{folder}/{len(parts)}"
            parts[file] = {"section": shared, "task": task}
            rows = [
                {name: row[name] for name in ("agent", "rank", "score")} for row in task["rows"]
            ]
            summary = {name: task[name] for name in _SUMMARY}
            section["tasks"][place] = {**summary, "rows": rows, "file": file}
    return parts


def page_data(board: Board, data: Json | None = None) -> Json:
    """Return what the page shows, JSON-plain and compact; ``data`` as of `board_page`."""
    data = board_data(board) if data is None else data
    origins = Shared()
    drawn = zip(board.standings, sections(data), strict=True)
    page: Json = _compact(
        {
            "suite": data["suite"],
            "sections": [_section(board, own, *parts, origins) for own, parts in drawn],
            "origins": origins.values,
            **{name: data[name] for name in ("violations", "warnings", "missing", "cells")},
            "failures": [[failure["cell"], str(failure["error"])] for failure in data["failures"]],
            "skipped": [list(pair) for pair in data["skipped"].items()],
            "command": data["provenance"]["command"],
            "intervals": INTERVALS,
            "inverted": INVERTED,
            "score": SCORE_NOTE,
        }
    )
    return page


def _compact(value: Any) -> Any:
    """Return plain JSON: few digits, arrays and intervals as lists, None for what is infinite."""
    if isinstance(value, float):
        return _digits(value)
    if isinstance(value, np.ndarray):
        return _compact(value.tolist())
    if isinstance(value, Mapping):
        return {key: _compact(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(part) for part in value]
    return value


def _digits(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = value if value.is_integer() else float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() else short


def _origin(origin: Json, shared: Shared) -> Json:
    """Return where a row comes from; what many rows have in common by its place."""
    lists = ("commands", "versions", "commits", "pythons", "numpys", "machines")
    return {
        "origin": shared({name: origin[name] for name in lists}),
        "seeds": seed_ranges(origin["seeds"]),
        "wall": duration(origin["wall_seconds"]),
    }


# --- a section ------------------------------------------------------------------------------------


def _section(
    board: Board,
    standing: Standing,
    overall: Json,
    tasks: list[Json],
    sweeps: list[Json],
    origins: Shared,
) -> Json:
    text, families = overall["text"], overall["families"]
    labels = [row["agent"] for row in overall["rows"]]  # in the order of the table
    references = [label for label in REFERENCES if label in labels]
    training = training_panels(board, standing.section)
    return {
        **{name: overall[name] for name in ("kind", "protocol", "comparisons", "tags")},
        "agents": [label for label in labels if label not in REFERENCES] + references,
        "references": references,
        "legend": f"{text['legend']}\n{text['protocol']}",
        "headline": overall["tasks"],
        "families": families if len(families) > 1 else [],
        "nothing": text["nothing"],
        "rows": [_overall_row(row, origins) for row in overall["rows"] if row["planned"]],
        "thresholds": PROFILE_THRESHOLDS,
        "profiles": {
            label: [
                part if np.isfinite(part).all() else None  # one seed: no band
                for part in (profile.share, profile.low, profile.high)
            ]
            for label, profile in standing.profiles.items()
        },
        "tasks": [
            {**_task(entry, origins), **_drawings(task, training.get(entry["task"]))}
            for entry, task in zip(tasks, board.tasks_of(standing.section), strict=True)
        ],
        "sweeps": [
            _sweep(entry, sweep)
            for entry, sweep in zip(sweeps, board.sweeps_of(standing.section), strict=True)
        ],
    }


def _overall_row(row: Json, origins: Shared) -> Json:
    seconds = row["train_seconds"]
    return {
        **row,
        "train_time": None if seconds is None else duration(seconds),
        **_origin(row["origin"], origins),
    }


def _task(task: Json, origins: Shared) -> Json:
    text = task["text"]
    words = ("tied", "inverted", "published", "published_lines")
    return {
        **{name: value for name, value in task.items() if name != "text"},
        **{name: text[name] for name in words},
        "published_columns": PUBLISHED_COLUMNS,
        "kwargs": json.dumps(task["kwargs"], ensure_ascii=False),
        "llms": _llms(task["llms"]),
        "columns": text["columns"][3:],
        "rows": [
            {
                **row,
                "figures": line[3:],
                "keys": [key[:_HASH] for key in row["origin"]["keys"]],
                **_origin(row["origin"], origins),
            }
            for row, line in zip(task["rows"], text["lines"], strict=True)
        ],
    }


def _llms(llms: Json | None) -> Json | None:
    """Table of a task's LLMs as text."""
    if llms is None:
        return None
    lines = [
        [value if isinstance(value, str) else f"{value:,.4g}" for value in row]
        for row in zip(*llms["columns"].values(), strict=True)
    ]
    return {"note": llms["note"], "columns": list(llms["columns"]), "lines": lines}


# --- what is drawn --------------------------------------------------------------------------------


def _drawings(task: TaskBoard, training: Panel | None) -> Json:
    return {
        "panels": [_panel(panel) for panel in panels(task)],
        "training": None if training is None else _panel(training),
        "heat": _heat(task),
        "fleets": {label: _fleet(fleet) for label, fleet in task.fleets.items()},
        "spent": _spent(task),
    }


def _fleet(fleet: Fleet) -> Json:
    """Load in percent."""
    return {
        "seed": fleet.seed,
        "replicas": fleet.replicas,
        "llms": fleet.llms,
        "edges": fleet.edges,
        "hosts": fleet.hosts,
        "load": np.rint(100 * fleet.load),
        "people": fleet.people,
    }


def _spent(task: TaskBoard) -> Json | None:
    """Mean over seeds of the slots a user spends in each place, by agent and group."""
    if not task.spent:
        return None
    first = next(iter(task.spent.values()))
    slots = {label: spent.slots.mean(axis=0) for label, spent in task.spent.items()}
    return {"places": first.places, "groups": first.groups, "slots": slots}


def _panel(panel: Panel) -> Json:
    """One x for all lines where they share it, as those of a task do."""
    lines: dict[str, list[Any]] = {}
    shared: list[float] | None = None
    for label, (x, values) in panel.lines.items():
        kept = _kept(x, panel.x_range)
        own = x[kept].tolist()
        shared = own if shared is None else shared
        lines[label] = [*mean_and_error(values[:, kept]), *([] if own == shared else [own])]
    return {
        "across": panel.across,
        "quantity": panel.quantity,
        "xScale": panel.x_scale,
        "yScale": panel.y_scale,
        "xRange": panel.x_range,
        "yRange": panel.y_range,
        "linearBelow": panel.linear_below,
        "x": shared or [],
        "lines": lines,
        "marks": [[x, values[0]] for x, values in panel.marks],
    }


def _kept(x: Floats, limits: tuple[float, float]) -> list[int]:
    """Places of at most about ``_POINTS`` points within the limits, the last among them."""
    inside = np.flatnonzero((x >= limits[0] * 0.999) & (x <= limits[1] * 1.001))
    return [int(i) for i in inside[:: -max(1, -(-inside.size // _POINTS))][::-1]]


def _heat(task: TaskBoard) -> Json | None:
    """Shares in tenths of a percent; -1 where the LLM is not there yet."""
    traffic = heat_map(task) if task.rows else None
    if traffic is None:
        return None
    return {
        "names": traffic.names,
        "edges": traffic.edges,
        "seeds": traffic.seeds,
        "others": traffic.others,
        "shares": {
            label: np.where(traffic.absent, -1, np.rint(1000 * share)).astype(int)
            for label, share in traffic.shares.items()
        },
    }


def _sweep(entry: Json, sweep: Sweep) -> Json:
    return {
        **entry["text"],
        "columns": SWEEP_COLUMNS,
        "across": sweep.across,
        "values": sweep.values,
        "ledger": {label: mean_and_error(values) for label, values in sweep.ledger.items()},
        "regret": {label: mean_and_error(values) for label, values in sweep.regret.items()},
    }
