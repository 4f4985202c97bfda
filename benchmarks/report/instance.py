"""What a report says of a task's instance: its warnings, its data and its LLMs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.score.scoring import Board
from benchmarks.score.task_board import TaskBoard

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")


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


def task_data(board: Board, task: TaskBoard) -> list[str]:
    """Files of a task's queries, and the SHA-256 of their content, as far as they are stored."""
    name = task.task["name"]
    files = [f"{key}: {path}" for key, path in board.data.get(name, {}).items()]
    digests = {
        cell["spec"].get("workload") for cell in board.cells if cell["spec"]["task"]["name"] == name
    }
    return files + [f"SHA-256 {digest}" for digest in sorted(filter(None, digests))]


def task_llms(board: Board, task: TaskBoard) -> tuple[str, dict[str, list[Any]]] | None:
    """Say whose LLMs these are, and list them by column; None of results that do not hold them.

    Where every seed has an instance of its own, those of the lowest seed stand for all.
    """
    name = task.task["name"]
    found = {
        cell["spec"]["seed"]: cell["llms"]
        for cell in board.cells
        if cell["spec"]["task"]["name"] == name and "llms" in cell
    }
    if not found:
        return None
    first = min(found)
    alike = all(llms == found[first] for llms in found.values())
    whose = "The same on every seed." if alike else f"Of seed {first}; every seed has its own."
    return whose, found[first]
