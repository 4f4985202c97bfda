"""One serving problem: who comes, what answers are worth, and the fleet that gives them.

The hidden truth and the public parameters in plain arrays: what the dynamics, the oracles and the
scorer share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

NEVER = 2**31 - 1
"""Slot of what does not happen."""


class Rewards(NamedTuple):
    """What a slot's reward is made of: a weight each, and the SLA that ``late`` refers to."""

    kept: float = 0.0  # for every answer that is kept
    holding: float = 0.0  # against every query that waits or is served
    lost: float = 0.0  # against every user who leaves for good without an answer
    late: float = 0.0  # against every first answer later than the SLA
    price: float = 0.0  # against every USD that the replicas in use cost
    sla: float = NEVER  # slots from arrival to the first answer


@dataclass(frozen=True, eq=False)
class ServingInstance:
    """P queries that may arrive, N LLMs, R replicas: one problem instance.

    Work is counted in iterations: one a token, and with ``chunk`` ceil(l_in / chunk) before the
    first token. In a slot a replica r with n active queries of LLM m gives each of them
    v = slot_seconds / (W_rm + H_rm n) iterations. An answer that has been given its work is ready.

    With geometric lengths the work is exponential: in a slot of v iterations an answer of mean
    length l ends with probability 1 - exp(-v / l), whatever it has been given (`finish`). So a
    replica of one place that "finishes with probability q a slot" is W = slot_seconds / v with
    v = -l log(1 - q), and W = 0 is service of one slot.

    Attributes
    ----------
    contexts : ndarray of float32, shape (P, d)
        Context x of every query that may arrive.
    share : ndarray, shape (P,)
        P(an arriving query is this one).
    success : ndarray, shape (P, N)
        P(the user keeps an answer of LLM m), p_m(x). Hidden.
    mean_tokens : ndarray, shape (P,)
        Mean tokens of an answer.
    impatience : ndarray, shape (P,)
        P(a waiting user leaves for good in a slot), theta.
    lengths : ndarray, shape (n,)
        Equally likely lengths in units of the mean, increasing; none: geometric lengths.
    inputs : ndarray, shape (max(n, 1),)
        Tokens of the prompt that belong to each length.
    return_rate, give_up : float
        nu, of the geometric time for which a user thinks (1: none), and delta, the probability that
        one whose answer is not kept gives up instead.
    arrival_rate : float
        lambda, mean arrivals a slot; at most one.
    llms : tuple of str
        Names.
    llm_arrives : ndarray of int64, shape (N,)
        First slot in which an LLM can be deployed.
    list_price, list_speed : ndarray, shape (N,)
        Published USD per million output tokens and tokens a second, 0 where none is published.
    places : ndarray of int64, shape (R,)
        Queries a replica serves at once, C_r.
    hosts : ndarray of int64, shape (R,)
        LLM at the start, -1: empty.
    base_seconds, each_seconds : ndarray, shape (R, N)
        W and H: seconds of an iteration, and further ones for every active query.
    chunk : ndarray, shape (R,)
        Prompt tokens an iteration takes in; 0: prompts cost nothing.
    price : ndarray, shape (R,)
        USD a slot of a replica that is not empty.
    slot_seconds : float
    update_every : int
        Slots from one update point to the next, the first at slot 0; 0: the fleet is fixed.
    loading : int
        Slots that a replica loads an LLM.
    dispatches, window : int
        Dispatches a slot, A, and visible waiting queries, W.
    rewards : Rewards
    kinds : tuple of str
        Names of the queries, if they are few and have names.
    """

    contexts: Singles
    share: Floats
    success: Floats
    mean_tokens: Floats
    impatience: Floats
    lengths: Floats
    inputs: Floats
    return_rate: float
    give_up: float
    arrival_rate: float
    llms: tuple[str, ...]
    llm_arrives: Ints
    list_price: Floats
    list_speed: Floats
    places: Ints
    hosts: Ints
    base_seconds: Floats
    each_seconds: Floats
    chunk: Floats
    price: Floats
    slot_seconds: float
    update_every: int
    loading: int
    dispatches: int
    window: int
    rewards: Rewards
    kinds: tuple[str, ...] = ()

    @property
    def num_queries(self) -> int:
        """Queries that may arrive, P."""
        return len(self.share)

    @property
    def num_llms(self) -> int:
        """LLMs, N."""
        return len(self.llms)

    @property
    def num_replicas(self) -> int:
        """Replicas, R."""
        return len(self.places)

    @property
    def geometric(self) -> bool:
        """Whether answers are memoryless, so that who is served where is the whole state."""
        return not len(self.lengths)

    def speed(self, replica: int, llm: int, active: int) -> float:
        """Return v, the iterations a slot that each of n active queries is given."""
        seconds = self.base_seconds[replica, llm] + self.each_seconds[replica, llm] * active
        return float(self.slot_seconds / seconds) if seconds else np.inf

    def finish(self, replica: int, llm: int, active: int = 1) -> Floats:
        """P(an answer ends in a slot) with geometric lengths and no prefill, shape (P,)."""
        return -np.expm1(-self.speed(replica, llm, active) / self.mean_tokens)

    def mean_slots(self, replica: int, llm: int, active: int) -> Floats:
        """Mean slots of an answer while n queries are active throughout, shape (P,)."""
        speed, chunk = self.speed(replica, llm, active), self.chunk[replica]
        if np.isinf(speed):
            return np.ones(self.num_queries)
        prefill = np.ceil(self.inputs / chunk) if chunk else np.zeros_like(self.inputs)
        means, query = np.unique(self.mean_tokens, return_inverse=True)
        if self.geometric:
            whole = np.ceil(prefill / speed)  # slots that pass before an answer can be ready
            rest = np.exp((prefill - whole * speed) / means) / -np.expm1(-speed / means)
            return np.asarray((whole + rest)[query])
        slots = [np.ceil((mean * self.lengths + prefill) / speed).mean() for mean in means]
        return np.asarray(slots)[query]

    def throughput(self, replica: int, llm: int) -> Floats:
        """Most answers a slot that a replica gives of one LLM, mu, shape (P,)."""
        rates = [n / self.mean_slots(replica, llm, n) for n in range(1, self.places[replica] + 1)]
        return np.asarray(np.max(rates, axis=0))

    @cached_property
    def load(self) -> float:
        """Least share of their time for which the busiest replicas must work, rho.

        min rho subject to sum_rm x_trm mu_trm p_tm >= lambda_t for every query t and
        sum_tm x_trm <= rho for every replica r; a fixed fleet serves with the LLMs it
        hosts, another one with those that are there at the start. Above 1 no policy is stable, if
        nobody leaves for good and no better LLM arrives.
        """
        from scipy import sparse
        from scipy.optimize import linprog

        alike: dict[tuple[float, ...], list[int]] = {}  # replicas that differ in nothing
        for r in range(self.num_replicas):
            hosted = -1 if self.update_every else self.hosts[r]
            kind = (hosted, self.places[r], self.chunk[r])
            seconds = (*self.base_seconds[r], *self.each_seconds[r])
            alike.setdefault((*kind, *seconds), []).append(r)
        columns, owner = [], []
        for group, replicas in enumerate(alike.values()):
            first = replicas[0]
            for llm in np.flatnonzero(self.llm_arrives == 0).tolist():
                if self.update_every or llm == self.hosts[first]:
                    columns.append(self.throughput(first, llm) * self.success[:, llm])
                    owner.append(group)
        if not columns:
            return np.inf
        # Variables: x[t, column] for every query t, then rho.
        queries, width = self.num_queries, len(columns)
        rates = np.ravel(np.transpose(columns))
        served = sparse.csr_array((-rates, np.arange(len(rates)), np.arange(queries + 1) * width))
        busy = np.tile(np.asarray(owner) == np.arange(len(alike))[:, None], (1, queries))
        size = -np.array([[len(replicas)] for replicas in alike.values()], dtype=np.float64)
        # The types of SciPy know neither None here nor a sparse A_ub.
        parts: Any = [[served, None], [sparse.csr_array(busy), sparse.csr_array(size)]]
        left: Any = sparse.block_array(parts, format="csr")
        right = np.concatenate([-self.arrival_rate * self.share, np.zeros(len(size))])
        cost = np.append(np.zeros(len(rates)), 1.0)
        found = linprog(cost, A_ub=left, b_ub=right, method="highs")
        return float(found.fun or 0.0) if found.success else np.inf
