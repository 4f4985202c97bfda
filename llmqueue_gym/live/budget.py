"""What may be spent on answers in an hour or a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

PERIODS = {"hour": 3600, "day": 86_400}


class OverBudgetError(RuntimeError):
    """No LLM that could answer costs less than what is left of the budget."""


class Budget(NamedTuple):
    """USD an ``"hour"`` or a ``"day"`` (UTC), and each LLM's usual cost of an answer, USD."""

    usd: float
    per: str
    prices: Mapping[str, float]


def checked_budget(budget: Budget, llms: Sequence[str]) -> Budget:
    """Return a budget that has a price for each of the LLMs.

    Raises
    ------
    UsageError
        If a price is missing or a number is out of range.
    """
    usd, per, prices = budget
    checks.number("budget.usd", usd, "(0, inf)")
    checks.choice("budget.per", per, PERIODS)
    for llm in llms:
        if llm not in prices:
            raise UsageError(
                f"budget.prices has no {llm!r}; give the usual cost of an answer in USD of each LLM"
            )
        checks.number(f"budget.prices[{llm!r}]", prices[llm], "[0, inf)")
    return budget
