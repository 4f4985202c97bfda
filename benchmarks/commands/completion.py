"""What a shell completes after ``llmqueue-bench``: suites, tasks, agents and results by name.

``llmqueue-bench --install-completion`` switches it on. Nothing here imports an environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.plan.suite import built_in_suites, load_suite
from llmqueue_gym.errors import UsageError


def suites(incomplete: str) -> list[str]:
    """Complete a built-in suite, or a TOML file of the folder."""
    files = (path.name for path in Path().glob("*.toml") if path.name != "pyproject.toml")
    return _matching([*built_in_suites(), *sorted(files)], incomplete)


def tasks_of_suite(ctx: Any, incomplete: str) -> list[str]:
    """Complete a task of the suite that stands on the command line before it."""
    # The parser stops at the option without a value that is being completed.
    named = [ctx.params.get("suite"), *ctx.args]
    for suite in filter(None, named):
        try:
            return _matching(_tasks(suite), incomplete)
        except UsageError:
            continue
    return []


def tasks(incomplete: str) -> list[str]:
    """Complete a task of any built-in suite, or ``SUITE:TASK`` once a suite is named."""
    suite, mark, _ = incomplete.partition(":")
    if not mark:
        return _matching((task for name in built_in_suites() for task in _tasks(name)), incomplete)
    try:
        return _matching((f"{suite}:{task}" for task in _tasks(suite)), incomplete)
    except UsageError:
        return []


def agents(incomplete: str) -> list[str]:
    """Complete a registered agent or reference policy."""
    from baselines.registry import registered_agents

    return _matching(["oracle", *(spec.name for spec in registered_agents())], incomplete)


def _tasks(suite: str) -> Iterator[str]:
    return (task.name for task in load_suite(suite).tasks)


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
