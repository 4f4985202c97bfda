"""One stream of LLMs and the truth about them: what an episode of the deployment problem hides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.deployment.rules import Bools, Floats, Ints

Z_LIMIT = 3.0
"""Log-costs are clipped at this many standard deviations (R), which bounds the costs."""

NEVER = np.iinfo(np.int64).max
"""Query at which an LLM retires that does not."""


def lognormal_mean(log_sd: Floats) -> Floats:
    """E[exp(s Z)] for a standard normal Z clipped at +-`Z_LIMIT`, s = ``log_sd`` of any shape."""
    s = np.asarray(log_sd, dtype=np.float64)
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0)), otypes=[np.float64])
    inner = np.exp(0.5 * s * s) * (cdf(Z_LIMIT - s) - cdf(-Z_LIMIT - s))
    ends = (np.exp(s * Z_LIMIT) + np.exp(-s * Z_LIMIT)) * cdf(-Z_LIMIT)
    return np.asarray(inner + ends)


@dataclass(frozen=True, eq=False)
class QueryTable:
    """Recorded queries; each query of the stream is one of the rows, uniformly.

    Attributes
    ----------
    contexts : ndarray of float32, shape (P, d)
    quality : ndarray, shape (P, N)
        Reward of every LLM on every row, in [0, 1].
    cost : ndarray, shape (P, N)
        Its cost in USD.
    """

    contexts: NDArray[np.float32]
    quality: Floats
    cost: Floats


@dataclass(frozen=True, eq=False)
class DeploymentInstance:
    """One stream of LLMs and the truth about them.

    The truth is constant between change points; regime g holds from query ``change_query[g]`` on.

    Attributes
    ----------
    arrival_query, retire_query : ndarray of int64, shape (N,)
        First query at which an LLM is there, and at which it is gone again.
    change_query : ndarray of int64, shape (G,)
        First query of every regime, increasing from 0.
    mean_reward : ndarray, shape (G, N)
        mu_m in [0, 1].
    input_cost, output_cost : ndarray, shape (G, N)
        Mean USD per query for the tokens in and out. With a table: the factor on its costs, and 0.
    list_cost : ndarray, shape (G, N)
        Published USD per query (list price at mean token counts), 0 where none is published.
    log_sd : ndarray, shape (2, N)
        Standard deviations of the logarithms of the input and the output cost.
    reward_atoms : ndarray, shape (A,)
        Values a reward takes, increasing from 0 to 1. Unused with a table.
    reward_cdf : ndarray, shape (N, A - 1)
        P(reward <= atom) before any drift, without the last atom.
    base_reward : ndarray, shape (N,)
        Mean reward before any drift.
    table : QueryTable, optional
        Recorded queries. Lanes must share one table.
    """

    arrival_query: Ints
    retire_query: Ints
    change_query: Ints
    mean_reward: Floats
    input_cost: Floats
    output_cost: Floats
    list_cost: Floats
    log_sd: Floats
    reward_atoms: Floats
    reward_cdf: Floats
    base_reward: Floats
    table: QueryTable | None = None

    @cached_property
    def mean_cost(self) -> Floats:
        """c_m in USD per query, shape (G, N)."""
        if self.table is not None:
            return np.asarray(self.input_cost * self.table.cost.mean(axis=0))
        return self.input_cost + self.output_cost

    @cached_property
    def max_cost(self) -> Floats:
        """Largest cost of a query over all regimes, in USD, shape (N,)."""
        if self.table is not None:
            return np.asarray((self.input_cost * self.table.cost.max(axis=0)).max(axis=0))
        largest = np.exp(Z_LIMIT * self.log_sd) / lognormal_mean(self.log_sd)
        costs = self.input_cost * largest[0] + self.output_cost * largest[1]
        return np.asarray(costs.max(axis=0))

    @cached_property
    def shift(self) -> Floats:
        """Drift w, shape (G, N): the reward becomes 1 (w > 0) or 0 (w < 0) with probability |w|."""
        change = self.mean_reward - self.base_reward
        room = np.where(change > 0.0, 1.0 - self.base_reward, self.base_reward)
        return np.asarray(np.divide(change, room, out=np.zeros_like(change), where=room > 0.0))

    def available(self, query: int) -> Bools:
        """Whether each LLM can be deployed at a query, shape (N,)."""
        return np.asarray((self.arrival_query <= query) & (query < self.retire_query))

    def regime(self, query: int) -> int:
        """Return the regime that holds at a query."""
        return int(np.searchsorted(self.change_query, query, side="right")) - 1
