"""What the subcommands share: exit codes, defaults, checks of numbers, ``NAME=PATH``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from benchmarks.commands import FAILED, OK
from benchmarks.terminal import say
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.score.scoring import Board

RESULTS = Path("results")
LEADERBOARD = Path("leaderboard")
CHOICE = Path("choice")
WALL = typer.Option(
    "--wall/--trust",
    help="Every agent plays behind the wall, or none; default: those from elsewhere do.",
)
TIMEOUT = 3600.0
"""Seconds a cell may take unless told otherwise: a hanging agent must end some day."""
TRAIN_TIMEOUT = 86_400.0
"""Seconds a training of a suite may take unless told otherwise."""


def within(allowed: str) -> Callable[[float | None], float | None]:
    """Return the check of a numeric option against an interval; typer's ``min`` lets nan pass."""

    def check(value: float | None) -> float | None:
        if value is not None and not checks.within(value, allowed):
            raise typer.BadParameter(f"{value} is not in {allowed}")
        return value

    return check


POSITIVE, FINITE, NOT_NEGATIVE = within("(0, inf]"), within("(0, inf)"), within("[0, inf)")
SHARE, PART = within("(0, 1]"), within("(0, 1)")


def read_data(items: list[str]) -> dict[str, str]:
    """Read ``NAME=PATH`` pairs."""
    return read_pairs("--data", "NAME=PATH", items)


def read_pairs(option: str, form: str, items: Sequence[str]) -> dict[str, str]:
    """Read what a repeated option says, each of the ``form`` LEFT=RIGHT."""
    pairs = {}
    for item in items:
        left, mark, right = item.partition("=")
        if not (left and mark and right):
            raise UsageError(f"{option} {item!r} must read {form}")
        pairs[left] = right
    return pairs


def verdict(board: Board) -> int:
    """Exit code of a board; says on stderr what is wrong."""
    return exit_code(board.failures, board.violations)


def exit_code(failures: Sequence[object], violations: Sequence[str]) -> int:
    """Exit code of a run; says on stderr which oracles were beaten."""
    for text in violations:
        say(f"ORACLE BEATEN: {text}", stderr=True)
    return FAILED if failures or violations else OK


def chosen_results(name: str | None) -> Path | str:
    """Results of a folder, file or URL, of a suite under ``results/``, or of the latest run."""
    if name is None:
        return _last_results()
    suite = RESULTS / name
    return suite if (suite / "run.json").is_file() and not Path(name).exists() else name


def _last_results() -> Path:
    """Folder of the latest run under ``results/``."""
    runs = sorted(RESULTS.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise FileNotFoundError(f"no results under {RESULTS}/: run `llmqueue-bench run quick`")
    return runs[-1].parent


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
