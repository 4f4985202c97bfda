"""What the check says under a pull request, in Markdown: each check, and the best row beside it.

Everything that a stranger wrote is shown as code, so that it neither links nor calls anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.plan.suite import REFERENCES, is_ranked, spec_key
from benchmarks.report.tables import as_code
from benchmarks.score.export import ExportedRun, open_results
from benchmarks.score.intervals import Interval
from benchmarks.score.scoring import make_board, tables
from benchmarks.score.standing import Standing
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]

TITLES = (
    "its file, its plan and every cell once",
    "cells played again, bit for bit",
    "the agent plays behind the wall",
    "the agent knows no more than it may",
    "twice the same answer",
    "beside the best row",
)
"""What the six checks look at."""

_LONGEST = 3_000  # characters of a check's words


@dataclass
class Findings:
    """What came of a check.

    Attributes
    ----------
    name : str
        What was checked.
    passed : dict of bool
        By title, in order; a check that could not be made is missing.
    words : dict of str
        By title.
    """

    name: str
    passed: dict[str, bool] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether all checks were made and passed."""
        return all(self.passed.get(title, False) for title in TITLES)

    def note(self, number: int, passed: bool, words: str) -> bool:
        """Note a check by its number from 1; return whether it passed."""
        title = TITLES[number - 1]
        self.passed[title], self.words[title] = passed, words
        return passed


def markdown(found: Findings) -> str:
    """Return a check as Markdown."""
    lines = [f"### {as_code(found.name)}: {'accepted' if found.accepted else 'refused'}", ""]
    for number, title in enumerate(TITLES, 1):
        state = {True: "passed", False: "**refused**", None: "not made"}[found.passed.get(title)]
        lines.append(f"{number}. {title}: {state}")
        words = found.words.get(title, "")[:_LONGEST]
        lines += [f"   <br>{as_code(line)}" for line in words.split("\n") if line.strip()]
    return "\n".join(lines) + "\n"


def beside_the_best(run: ExportedRun, against: Path | None = None) -> str:
    """Return a line a section: the agent's score, and its paired difference to the best row.

    Parameters
    ----------
    run : ExportedRun
        The submission's cells.
    against : Path, optional
        Published results, whose cells on the same tasks and seeds stand beside them.

    Raises
    ------
    UsageError
        If the references did something else there.
    """
    plan = run.load_run()
    specs = list(plan["cells"])
    label = next(s["agent"]["label"] for s in specs if s["agent"]["label"] not in REFERENCES)
    cells = [run.load(spec_key(spec)) for spec in specs]
    if against is not None:
        known, published = {_place(spec) for spec in specs}, open_results(against)
        there = [spec for spec in published.load_run()["cells"] if _place(spec) in known]
        _check_references(cells, [published.load(spec_key(spec)) for spec in there])
        others = (spec for spec in there if spec["agent"]["label"] != label)
        theirs = [spec for spec in others if is_ranked(spec["agent"]["label"])]
        cells += [published.load(spec_key(spec)) for spec in theirs]
        specs += theirs
    board = make_board({**plan, "cells": specs}, [cell for cell in cells if cell], [], [])
    lines = [_standing_words(standing, label) for standing in board.standings]
    return "\n".join(filter(None, lines)) or "no task separates its agents, so there is no score"


def _place(spec: Record) -> tuple[str, int]:
    return str(spec["task"]["name"]), int(spec["seed"])


def _check_references(cells: Sequence[Record | None], published: Sequence[Record | None]) -> None:
    """Insist on references that do the same in both: a weak oracle makes a high score."""
    ours, theirs = _references(cells), _references(published)
    for place in sorted(ours.keys() & theirs.keys()):
        if not np.isclose(ours[place], theirs[place], rtol=1e-5, atol=1e-8):
            task, agent, seed = place
            raise UsageError(
                f"{agent} on {task}, seed {seed}, has h = {ours[place]:.6g}, and "
                f"{theirs[place]:.6g} in the published results"
            )


def _references(cells: Sequence[Record | None]) -> dict[tuple[str, str, int], float]:
    return {
        (task, agent, seed): h
        for table in tables([cell for cell in cells if cell])
        for task, agent, seed, h in table.filter(pl.col("agent").is_in(REFERENCES))
        .select("task", "agent", "seed", "h")
        .drop_nulls()
        .iter_rows()
    }


def _standing_words(standing: Standing, label: str) -> str | None:
    ranked = [row for row in standing.rows if row.rank is not None]
    mine = next((row for row in ranked if row.agent == label), None)
    if mine is None or mine.score is None:
        return None
    kind, protocol = standing.section
    words = f"{kind.name}, {protocol}: score {_words(mine.score)}, rank {mine.rank}"
    best = next((row for row in ranked if row.agent != label), None)
    if best is None:
        return f"{words}; nobody stands beside it"
    pair = next(p for p in standing.comparisons if {p.first, p.second} == {label, best.agent})
    value, low, high = pair.difference
    difference = pair.difference if pair.first == label else Interval(-value, -high, -low)
    return f"{words}; less the best row, {best.agent}: {_words(difference)} (paired, 95%)"


def _words(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
