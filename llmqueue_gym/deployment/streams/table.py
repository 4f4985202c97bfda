"""LLMs of a table of recorded queries: a file, a package or an imported data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmqueue_gym.deployment.instance import QueryTable
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.order import Arrivals, arrival_words, query_of, read_arrivals
from llmqueue_gym.deployment.streams.stream import (
    BERNOULLI,
    Defaults,
    Ints,
    LLMStream,
    PriceChange,
    Undated,
    bernoulli_cdf,
)
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import EPOCH, time_of
from llmqueue_gym.workloads.datasets import load_pool
from llmqueue_gym.workloads.pool import QueryPool, takes_options_of
from llmqueue_gym.workloads.prices import read_prices, usual_tokens
from llmqueue_gym.workloads.sources import logs, paretobandit, table


class TableStream(Undated):
    """Recorded queries: a query is a row, its context is visible, reward and cost are the row's.

    Build it with `table_stream` or `paretobandit_stream`.

    Parameters
    ----------
    pool : QueryPool
        The table; it must have costs. Its list prices, if it has any, are shown to agents; where
        they change, a run goes through the time of the table's records and so do the prices.
    online : ndarray of int, optional
        Rows that may arrive; default all.
    arrivals : mapping or list, optional
        When LLMs arrive: a mapping LLM -> query (int) or share of the horizon (a float below 1),
        0 for those not named; or a list of all LLMs in the order of their arrival. In order (R),
        half of them, rounded up, are there at the start, the others follow at equal distances; so
        they do by default, in the order of the table.
    """

    fixed = fixed_costs = True

    def __init__(
        self,
        pool: QueryPool,
        online: Ints | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        if pool.cost is None:
            raise UsageError(
                "the table has no costs; name its cost columns with `cost`, or give `prices`"
            )
        rows = np.arange(len(pool.contexts)) if online is None else online
        cost, self._list_price = pool.cost[rows], pool.list_price
        if pool.price_changes:  # back to the prices of the start
            past = np.ones(len(pool.llms))
            for step in pool.price_changes:
                past[step.llm] /= step.factor
            cost = cost * past
            self._list_price = None if pool.list_price is None else pool.list_price * past
        self._table = QueryTable(pool.contexts[rows], pool.quality[rows], cost)
        self.llms = pool.llms
        self._changes, self._times = pool.price_changes, pool.times
        self.has_prices = pool.list_price is not None
        self.context_dim: int = pool.contexts.shape[1]
        self.cost_bounds = np.stack([self._table.cost.min(axis=0), self._table.cost.max(axis=0)])
        self._arrivals = read_arrivals(arrivals, self.llms)
        budget = float(np.median(self._table.cost.mean(axis=0)))
        if budget <= 0.0:
            raise UsageError("the table's costs are all zero for half of the LLMs; check them")
        half = (len(self.llms) + 1) // 2
        self.defaults = Defaults(10_000, 20, half, 1.0, budget)

    def query_of(self, day: str, horizon: int) -> int:
        """Query at which a date begins, by the times of the records; may lie outside the run."""
        at = time_of(day)
        if self._times is None or self._times[0] < EPOCH[0] or not math.isfinite(at):
            return super().query_of(day, horizon)
        first, last = self._times
        return math.ceil((at - first) / max(last - first, 1.0) * horizon)

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        """Return the changes of the list prices."""
        return self.usual_price_changes(horizon) or super().recorded_price_changes(horizon)

    def usual_price_changes(self, horizon: int) -> list[PriceChange]:
        """Return the changes of the list prices."""
        found = [(step, math.ceil(step.share * horizon)) for step in self._changes]
        return [
            PriceChange(step.llm, query, step.factor, step.factor)
            for step, query in found
            if query < horizon
        ]

    def arrival_words(self) -> list[str]:
        """Say when each LLM arrives, in the order in which they do."""
        return arrival_words(self._arrivals, self.llms)

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Return the stream, always the same.

        Raises
        ------
        ValueError
            If an LLM would arrive after the last query.
        """
        size, horizon = len(self.llms), rules.horizon
        arrival = np.array([query_of(at, horizon) for at in self._arrivals], dtype=np.int64)
        if arrival.max() >= horizon:
            late = int(arrival.argmax())
            raise UsageError(
                f"arrivals[{self.llms[late]!r}]={arrival[late]} is outside the run of "
                f"{horizon} queries: the LLM would never come; lower it, or raise horizon"
            )
        mean = self._table.quality.mean(axis=0)
        one, zero = np.ones(size), np.zeros(size)
        return LLMStream(
            arrival,
            mean,
            one,
            zero,
            np.zeros((2, size)),
            BERNOULLI,
            bernoulli_cdf(mean),
            self._table,
            self._list_price,
        )


@takes_options_of(table.table_pool)
def table_stream(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    arrivals: Arrivals | None = None,
    **options: Any,
) -> TableStream:
    """Stream from a file; options are those of the workload ``"table"`` and ``arrivals``."""
    pool, online = table.table_pool(path, quality, **options)
    return TableStream(pool, online, arrivals)


@takes_options_of(logs.logs_pool)
def logs_stream(path: str, *, arrivals: Arrivals | None = None, **options: Any) -> TableStream:
    """Stream of the queries of a log: rewards are keep rates as estimated, costs the LLMs' means.

    Options are those of `llmqueue_gym.workloads.sources.logs.logs_pool` and ``arrivals``.
    """
    pool, online = logs.logs_pool(path, **options)
    if pool.cost is None:
        raise UsageError(f"{path}: the log has no costs, and deploying LLMs needs them")
    return TableStream(pool, online, arrivals)


def paretobandit_stream(
    context_dim: int | None = None,
    arrivals: Arrivals | None = None,
    prices: Any = None,
    tokens: Sequence[float] | None = None,
) -> TableStream:
    """Stream of the prompts of the ``paretobandit`` package; see the workload of that name.

    ``prices`` are list prices to show, and ``tokens`` those of a usual answer.
    """
    pool, online = paretobandit._load(context_dim)
    return TableStream(_priced(pool, prices, tokens), online, arrivals)


def dataset_stream(
    name: str,
    context_dim: int | None = None,
    arrivals: Arrivals | None = None,
    prices: Any = None,
    tokens: Sequence[float] | None = None,
) -> TableStream:
    """Stream of the queries of a data set with costs that was imported under this name.

    ``prices`` are list prices to show in place of those it was imported with, and ``tokens`` those
    of a usual answer.
    """
    pool, online = load_pool(name, context_dim)
    if pool.cost is None:
        raise UsageError(f"data set {name!r} records no costs, and deploying LLMs needs them")
    return TableStream(_priced(pool, prices, tokens), online, arrivals)


def _priced(pool: QueryPool, prices: Any, tokens: Sequence[float] | None) -> QueryPool:
    """Return a pool with list prices, if any are given."""
    usual = usual_tokens(tokens)
    if prices is None:
        return pool
    listed, _ = read_prices(prices).listed(pool.llms, [usual] * len(pool.llms), None)
    return replace(pool, list_price=np.array(listed), price_changes=())
