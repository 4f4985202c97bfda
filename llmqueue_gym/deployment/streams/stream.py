"""What a source of LLMs is, and the stream that it draws.

A stream is the LLMs of one instance: who is released when, how good and how dear it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.deployment.instance import Z_LIMIT, QueryTable, lognormal_mean
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FACTS = "llmqueue_gym.deployment.streams"
"""Package whose folder holds the facts that come with it."""
BERNOULLI = np.array([0.0, 1.0])


class Defaults(NamedTuple):
    """Public parameters an instance is usually run with; see `DeploymentRules`."""

    horizon: int
    num_stages: int
    max_deployed: int
    alpha: float
    budget: float


class PriceChange(NamedTuple):
    """From a query on, an LLM costs a multiple of what it cost before."""

    llm: int
    query: int
    input_factor: float
    output_factor: float


@dataclass(frozen=True, eq=False)
class LLMStream:
    """The LLMs of one instance before any variant; arrays as in `DeploymentInstance`, per LLM."""

    arrival_query: Ints  # (N,)
    mean_reward: Floats  # (N,)
    input_cost: Floats  # (N,) USD
    output_cost: Floats  # (N,) USD
    log_sd: Floats  # (2, N)
    reward_atoms: Floats  # (A,)
    reward_cdf: Floats  # (N, A - 1)
    table: QueryTable | None = None
    list_price: Floats | None = None  # (N,) USD, in place of input_cost + output_cost


class StreamSource(Protocol):
    """A distribution over streams of LLMs, with what is public about it."""

    llms: tuple[str, ...]
    context_dim: int
    has_prices: bool
    fixed: bool  # every draw is the same stream
    fixed_costs: bool  # every draw has the same arrivals and costs
    defaults: Defaults
    cost_bounds: Floats  # (2, N) least and largest cost of a query, USD

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Draw the LLMs of one instance."""

    def query_of(self, day: str, horizon: int) -> int:
        """Query at which a date (ISO 8601) begins; may lie outside the run."""

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        """Price changes within the run that the source itself records."""

    def usual_price_changes(self, horizon: int) -> list[PriceChange]:
        """Price changes of a run that names none."""


class Undated:
    """A source without a calendar."""

    def query_of(self, day: str, horizon: int) -> int:
        """Refuse a date."""
        raise UsageError(
            f"date={day!r}: this instance has no calendar (the catalog has one, and a log or "
            "table with times); give a 'query' instead"
        )

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        """Refuse: nothing is recorded."""
        raise UsageError(
            "price_changes='recorded': this instance records none (the catalog does, and a log or "
            "table whose `prices` change); "
            "list your own as {'llm': ..., 'query': ..., 'factor': ...}"
        )

    def usual_price_changes(self, horizon: int) -> list[PriceChange]:
        """Return none."""
        return []


def bernoulli_cdf(mean: Floats) -> Floats:
    """Probability of reward 0, for `LLMStream.reward_cdf` over the atoms `BERNOULLI`."""
    return np.asarray(1.0 - mean)[:, None]


def lognormal_bounds(mean: Floats, log_sd: Floats) -> Floats:
    """Least and largest value of a clipped lognormal of given mean, (2, N)."""
    scale = mean / lognormal_mean(log_sd)
    return np.stack([scale * np.exp(-Z_LIMIT * log_sd), scale * np.exp(Z_LIMIT * log_sd)])


def log_sd_of(cv: Any) -> Floats:
    """Return the standard deviation of log X for a lognormal X of coefficient of variation cv."""
    return np.asarray(np.sqrt(np.log1p(np.square(np.asarray(cv, dtype=np.float64)))))
