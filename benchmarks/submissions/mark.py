"""What a maintainer notes of a submission: that it was played again, and its held-out scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import llmqueue_gym
from benchmarks.plan.cells import Cell
from benchmarks.plan.held_out import HeldOut
from benchmarks.plan.suite import load_suite
from benchmarks.score.intervals import Interval
from benchmarks.score.scoring import make_board
from benchmarks.submissions.check import Settings, check, read_claim
from benchmarks.submissions.claim import is_own, planned_cells
from benchmarks.submissions.comment import Findings
from benchmarks.submissions.folder import note_mark, read_folder
from benchmarks.submissions.frozen import find_frozen
from benchmarks.submissions.releases import read_releases
from llmqueue_gym.errors import UsageError

_DIGITS = 4  # of a score


def mark_replayed(
    path: Path, how: Settings, on_note: Callable[[str], None] = lambda words: None
) -> Findings:
    """Make the six checks of a submission; note that it was played again if all of them pass."""
    found = check(path, how, on_note)
    if found.accepted:
        version = llmqueue_gym.__version__
        note_mark(path, replayed=f"{how.cells} cells drawn by {how.run_id}, version {version}")
    return found


def mark_held_out(path: Path, release: str, secret: HeldOut, how: Settings) -> dict[str, Interval]:
    """Play a submission on the held-out seeds of a release; note its scores, and nothing else.

    Returns
    -------
    dict of Interval
        Score by problem.

    Raises
    ------
    UsageError
        If it has not been played again, the secret is not that of the release or is public, a cell
        fails, or an oracle is beaten.
    """
    claim = read_claim(path, how)
    _check_marked(path)
    _check_secret(path.parent, release, secret)
    mine = claim.entry.submission
    suite = load_suite(how.suite or find_frozen(mine.suite).suite)
    _, planned = planned_cells(suite, mine.agent, how.data, mine.settings, secret)
    scores = _played(planned, suite.name, how)
    shown = {
        problem: [round(float(value), _DIGITS) for value in score]
        for problem, score in scores.items()
    }
    note_mark(path, held_out={release: shown})
    return scores


def _check_marked(path: Path) -> None:
    [entry] = [entry for entry in read_folder(path.parent) if entry.path == path]
    if not entry.replayed_by:
        raise UsageError(f"{path} has not been played again: mark it --replayed first, or with it")


def _check_secret(folder: Path, release: str, secret: HeldOut) -> None:
    known = read_releases(folder).get(release, {})
    if known.get("sha256") != secret.digest:
        raise UsageError(
            f"secret={str(secret.path)!r} is not that of release {release!r}: "
            "`llmqueue-bench release draw` makes one"
        )
    if "secret" in known:
        raise UsageError(f"release={release!r} is over, and its secret public: play a later one")


def _played(planned: list[Cell], suite: str, how: Settings) -> dict[str, Interval]:
    """Play cells, the agent behind the wall, and return its score by problem."""
    cells = [replace(cell, walled=is_own(cell.spec)) for cell in planned]
    records = []
    for outcome in how.engine.run(cells):
        if outcome.failed:
            raise UsageError(f"{outcome.cell} failed: {outcome.payload['error']}")
        records.append({**outcome.payload, "spec": outcome.cell.spec, "provenance": _NOWHERE})
    run = {"suite": suite, "skipped": {}, "provenance": {}, "cells": [c.spec for c in cells]}
    board = make_board(run, records, [], [])
    if board.violations:
        raise UsageError("; ".join(board.violations))
    [label] = {cell.spec["agent"]["label"] for cell in cells if is_own(cell.spec)}
    scores = {
        standing.section.kind.name: row.score
        for standing in board.standings
        for row in standing.rows
        if row.agent == label and row.score is not None
    }
    if not scores:
        raise UsageError(f"{suite} has no task that counts: there is no score to note")
    return scores


_NOWHERE: Mapping[str, str] = dict.fromkeys(
    ("command", "version", "commit", "python", "numpy", "machine"), ""
)
