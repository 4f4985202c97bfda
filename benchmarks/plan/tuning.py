"""Agents with a knob in a suite: a row for each of its values, the same number for every agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.plan.suite import AgentEntry

TUNE = "tune"
"""Key of an agent: ``tune = { alpha_coef = [0.01, 0.1] }``."""


def with_knobs(items: list[Any], where: str) -> list[Any]:
    """Return a suite's agents, those with a knob once for each of its values.

    Raises
    ------
    UsageError
        If a knob is none, or agents would get different budgets of trials.
    """
    found: list[Any] = []
    budgets: dict[str, int] = {}
    for item in items:
        if not isinstance(item, Mapping) or TUNE not in item:
            found.append(item)
            continue
        knobs, rest = item[TUNE], {key: value for key, value in item.items() if key != TUNE}
        single = isinstance(knobs, Mapping) and len(knobs) == 1
        values = next(iter(knobs.values())) if single else None
        if not isinstance(values, list) or len(values) < 2:
            raise UsageError(
                f"{where}: {TUNE}={knobs!r} must be one setting and its values, "
                "for example { alpha_coef = [0.01, 0.1] }"
            )
        [setting] = knobs
        usual = rest.get("settings", {})
        if not isinstance(usual, Mapping):
            raise UsageError(f"{where}: settings={usual!r} must be a table")
        label = str(rest.get("label", rest.get("name")))
        budgets[label] = len(values)
        for value in values:
            settings = {**usual, setting: value}
            found.append({**rest, "label": f"{label} {setting}={value}", "settings": settings})
    if len(set(budgets.values())) > 1:
        shown = ", ".join(f"{label} {count}" for label, count in budgets.items())
        raise UsageError(
            f"{where}: agents that are tuned get the same number of values, not {shown}"
        )
    return found


def has_knob(agents: Iterable[AgentEntry]) -> bool:
    """Whether one of the agents plays with several values of one setting."""
    own = {entry.label: entry for entry in agents if len(entry.settings) == 1}
    trials = Counter((entry.name, *entry.settings) for entry in own.values())
    return any(count > 1 for count in trials.values())
