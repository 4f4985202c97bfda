"""When the LLMs of a table of queries arrive, which such a table does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

Arrivals = Mapping[str, int | float] | Sequence[str]
"""When LLMs arrive: LLM -> query or share of the horizon, or the LLMs in order."""


def read_arrivals(arrivals: Arrivals | None, llms: tuple[str, ...]) -> list[int | Fraction]:
    """Read when each LLM arrives, a query or a share of the horizon.

    A mapping names LLMs that come later than at the start. A list orders all LLMs: half of them,
    rounded up, are there at the start, the others follow at equal distances (R). Without either,
    they come so in the order they have.

    Raises
    ------
    ValueError
        If an LLM is not known or not named, or a value is neither a query nor a share.
    """
    if arrivals is None or isinstance(arrivals, list | tuple):
        order = llms if arrivals is None else _order("arrivals", arrivals, llms)
        half = (len(llms) + 1) // 2
        shares = {
            llm: Fraction(max(place - half + 1, 0), len(llms) - half + 1)
            for place, llm in enumerate(order)
        }
        return [shares[llm] for llm in llms]
    if not isinstance(arrivals, Mapping):
        raise UsageError(
            f"arrivals={arrivals!r} must be a mapping LLM -> query or share of the horizon, or a "
            "list of the LLMs in order"
        )
    times: dict[str, int | Fraction] = dict.fromkeys(llms, 0)
    for llm, value in arrivals.items():
        if llm not in times:
            raise checks.unknown_name("arrivals: LLM", llm, llms)
        if isinstance(value, float):
            if not 0.0 <= value < 1.0:
                raise UsageError(
                    f"arrivals[{llm!r}]={value!r} must be a query (an integer) or a share of the "
                    "horizon, in [0, 1)"
                )
            times[llm] = Fraction(value)
        else:
            times[llm] = checks.count(f"arrivals[{llm!r}]", value, 0)
    return [times[llm] for llm in llms]


def _order(option: str, value: Sequence[str], llms: tuple[str, ...]) -> tuple[str, ...]:
    """Check that a list names every LLM once."""
    for llm in value:
        if llm not in llms:
            raise checks.unknown_name(f"{option}: LLM", llm, llms)
        if list(value).count(llm) > 1:
            raise UsageError(f"{option}={list(value)!r} names {llm!r} more than once")
    absent = [llm for llm in llms if llm not in value]
    if absent:
        raise UsageError(f"{option}={list(value)!r} does not name {absent[0]!r}; list all LLMs")
    return tuple(value)


def query_of(arrival: int | Fraction, horizon: int) -> int:
    """Return the query at which an LLM arrives in a run of ``horizon`` queries."""
    return math.floor(arrival * horizon) if isinstance(arrival, Fraction) else arrival


def arrival_words(arrivals: Sequence[int | Fraction], llms: Sequence[str]) -> list[str]:
    """Say when each LLM arrives, in the order in which they do."""
    order = sorted(range(len(llms)), key=lambda llm: query_of(arrivals[llm], 2**24))
    return [f"{llms[llm]} ({_words(arrivals[llm])})" for llm in order]


def _words(arrival: int | Fraction) -> str:
    if not arrival:
        return "at the start"
    return f"query {arrival:,}" if isinstance(arrival, int) else f"after {float(arrival):.0%}"
