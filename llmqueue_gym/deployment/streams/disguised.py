"""A stream of LLMs in disguise: in a private order, and a little better or worse than they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llmqueue_gym.deployment.instance import QueryTable
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.stream import Defaults, Floats, LLMStream, PriceChange
from llmqueue_gym.workloads.disguise import QUALITY_SHIFT, llm_order


class DisguisedStream:
    """A source whose LLMs stand in a private order, with moved rewards.

    When LLMs come and what they cost stays: it is public, so an LLM can still be recognised, but
    neither by its number nor, among those that are nearly as good, as the best one.

    Parameters
    ----------
    source : StreamSource
        Where streams come from.
    number : int
        The disguise; see `llmqueue_gym.workloads.disguise`.
    """

    def __init__(self, source: Any, number: int) -> None:
        self._source = source
        self._order = order = llm_order(number, len(source.llms))
        self.llms: tuple[str, ...] = tuple(source.llms[llm] for llm in order)
        self.context_dim: int = source.context_dim
        self.has_prices: bool = source.has_prices
        self.fixed: bool = source.fixed
        self.fixed_costs: bool = source.fixed_costs
        self.defaults: Defaults = source.defaults
        self.cost_bounds: Floats = source.cost_bounds[:, order]
        self._shift = np.random.default_rng([number, 1]).uniform(-1, 1, order.size) * QUALITY_SHIFT

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Draw the LLMs of one instance."""
        drawn: LLMStream = self._source.draw(rng, rules)
        order, shift = self._order, self._shift
        cdf = drawn.reward_cdf[order] * (1 - np.abs(shift[:, None]))
        price = drawn.list_price
        return replace(
            drawn,
            arrival_query=drawn.arrival_query[order],
            mean_reward=_shifted(drawn.mean_reward[order], shift),
            input_cost=drawn.input_cost[order],
            output_cost=drawn.output_cost[order],
            log_sd=drawn.log_sd[:, order],
            reward_cdf=cdf + np.maximum(-shift, 0)[:, None],
            table=None if drawn.table is None else self._table(drawn.table),
            list_price=None if price is None else price[order],
        )

    def _table(self, table: QueryTable) -> QueryTable:
        quality = _shifted(table.quality[:, self._order], self._shift)
        return QueryTable(table.contexts, quality, table.cost[:, self._order])

    def query_of(self, day: str, horizon: int) -> int:
        """Query at which a date (ISO 8601) begins; may lie outside the run."""
        return int(self._source.query_of(day, horizon))

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        """Price changes within the run that the source itself records."""
        return self._moved(self._source.recorded_price_changes(horizon))

    def usual_price_changes(self, horizon: int) -> list[PriceChange]:
        """Price changes of a run that names none."""
        return self._moved(self._source.usual_price_changes(horizon))

    def _moved(self, changes: list[PriceChange]) -> list[PriceChange]:
        place = np.argsort(self._order)
        return [change._replace(llm=int(place[change.llm])) for change in changes]


def _shifted(reward: Floats, shift: Floats) -> Floats:
    """Return rewards of which a share becomes 1 (shift > 0) or 0 (shift < 0)."""
    return np.asarray(reward * (1 - np.abs(shift)) + np.maximum(shift, 0))
