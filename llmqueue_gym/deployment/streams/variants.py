"""What a run adds to a stream: price changes, retirements and drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llmqueue_gym import checks
from llmqueue_gym.deployment.instance import NEVER, DeploymentInstance
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.stream import Ints, PriceChange, StreamSource
from llmqueue_gym.errors import UsageError


def read_price_changes(value: Any, source: StreamSource, horizon: int) -> list[PriceChange]:
    """Read the argument ``price_changes``: None, ``"recorded"`` or a list of mappings.

    None is what the source says of itself: none, but for tables whose list prices change.

    A mapping has ``llm``, ``query`` or ``date``, and ``factor`` (new price over old).
    """
    if value is None:
        return source.usual_price_changes(horizon)
    if value == "recorded":
        return source.recorded_price_changes(horizon)
    changes = []
    for entry, llm, query in _dated("price_changes", value, source, horizon, {"factor"}):
        factor = checks.number(
            f"price_changes: factor of {entry['llm']!r}", entry["factor"], "(0, inf)"
        )
        changes.append(PriceChange(llm, query, factor, factor))
    for earlier, later in pairwise(changes):
        if later.query < earlier.query:
            raise UsageError(
                f"price_changes: query {later.query} stands after query {earlier.query}; "
                "dates are out of order, sort the list"
            )
    return changes


def read_retirements(value: Any, source: StreamSource, horizon: int) -> Ints:
    """Read the argument ``retirements``: None or a list of mappings with ``llm`` and ``query`` or
    ``date``. Returns the query each LLM retires at, `NEVER` for none, shape (N,).
    """  # noqa: D205
    retire = np.full(len(source.llms), NEVER, dtype=np.int64)
    for entry, llm, query in _dated(
        "retirements", [] if value is None else value, source, horizon, set()
    ):
        if retire[llm] != NEVER:
            raise UsageError(f"retirements: {entry['llm']!r} is named more than once")
        retire[llm] = query
    return retire


def _dated(
    name: str, value: Any, source: StreamSource, horizon: int, more: set[str]
) -> list[tuple[Mapping[str, Any], int, int]]:
    """Read a list of dated events of LLMs: (entry, LLM, query)."""
    keys = " and ".join(["llm", "query (or date)", *more])
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name}={value!r} must be a list of mappings with {keys}")
    events = []
    for entry in value:
        given = set(entry) if isinstance(entry, Mapping) else set()
        if given - {"query", "date"} != {"llm"} | more or len(given & {"query", "date"}) != 1:
            raise UsageError(f"{name}: {entry!r} must be a mapping with {keys}")
        if entry["llm"] not in source.llms:
            raise checks.unknown_name(f"{name}: LLM", entry["llm"], source.llms)
        if "date" in entry:
            query = source.query_of(entry["date"], horizon)
        else:
            query = checks.count(f"{name}: query of {entry['llm']!r}", entry["query"], 0)
        if not 0 <= query < horizon:
            raise UsageError(f"{name}: {entry!r} is query {query}, outside the run [0, {horizon})")
        events.append((entry, source.llms.index(entry["llm"]), query))
    return events


def build_instance(
    source: StreamSource,
    rules: DeploymentRules,
    rng: np.random.Generator,
    *,
    price_changes: Sequence[PriceChange] = (),
    retire_query: Ints,
    drift: float = 0.0,
) -> DeploymentInstance:
    """Draw a stream and apply the variants to it.

    Parameters
    ----------
    source : StreamSource
    rules : DeploymentRules
    rng : numpy.random.Generator
        Source of the stream and of the drift.
    price_changes : sequence of PriceChange
        Multiply what an LLM costs, and its list price, from a query on.
    retire_query : ndarray of int64, shape (N,)
        First query at which an LLM is gone.
    drift : float
        Standard deviation, over the horizon, of the random walk that every mean reward makes, one
        step per stage, kept in [0, 1] (R).
    """
    stream = source.draw(rng, rules)
    starts = rules.stage_starts if drift else rules.stage_starts[:1]
    change = np.unique(np.concatenate([starts, [c.query for c in price_changes]])).astype(np.int64)
    size = len(source.llms)
    factor = np.ones((2, len(change), size))
    for event in price_changes:
        later = change >= event.query
        factor[0, later, event.llm] *= event.input_factor
        factor[1, later, event.llm] *= event.output_factor
    mean = np.repeat(stream.mean_reward[None], len(change), axis=0)
    if drift:
        steps = rng.normal(0.0, drift / math.sqrt(len(starts)), (len(starts), size))
        steps[0] = 0.0
        walk = stream.mean_reward.copy()
        walks = np.empty_like(steps)
        for stage, step in enumerate(steps):
            walk = np.clip(walk + step, 0.0, 1.0)
            walks[stage] = walk
        mean = walks[np.searchsorted(starts, change, side="right") - 1]
    input_cost, output_cost = stream.input_cost * factor[0], stream.output_cost * factor[1]
    list_cost = np.zeros_like(input_cost)
    if source.has_prices:
        own = stream.list_price
        list_cost = input_cost + output_cost if own is None else own * input_cost
    return DeploymentInstance(
        stream.arrival_query,
        retire_query,
        change,
        mean,
        input_cost,
        output_cost,
        list_cost,
        stream.log_sd,
        stream.reward_atoms,
        stream.reward_cdf,
        stream.mean_reward,
        stream.table,
    )


def cost_range(source: StreamSource, price_changes: Sequence[PriceChange]) -> tuple[float, float]:
    """Least and largest cost of a query, c1 and c2 in USD, over all prices of the run."""
    low, high = source.cost_bounds[0].min(), source.cost_bounds[1].max()
    running: dict[int, tuple[float, float]] = {}
    for change in sorted(price_changes, key=lambda change: change.query):
        before = running.get(change.llm, (1.0, 1.0))
        factors = before[0] * change.input_factor, before[1] * change.output_factor
        running[change.llm] = factors
        low = min(low, source.cost_bounds[0, change.llm] * min(factors))
        high = max(high, source.cost_bounds[1, change.llm] * max(factors))
    return float(low), float(high)
