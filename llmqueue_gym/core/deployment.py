"""Streaming deployment: LLMs arrive, a few are deployed per stage, every query has a budget.

Source: Li & Li, "Near-Optimal Online Deployment and Routing for Streaming LLMs" (arXiv 2506.17254).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NUM_STREAMS = 4
"""Table rows, rewards, input costs and output costs each have a stream of their own."""
Z_LIMIT = 3.0
"""Log-costs are clipped at this many standard deviations (R), which bounds the costs."""
MAX_COUNT = 2.0**24
"""Bound of counts in observations: float32 holds integers exactly up to here."""

NEVER = np.iinfo(np.int64).max
"""Query at which an LLM retires that does not."""
_TINY = 1e-300
_DUST = 1e-9  # rounding in alpha * stage length, far below one query


def lognormal_mean(log_sd: Floats) -> Floats:
    """E[exp(s Z)] for a standard normal Z clipped at +-`Z_LIMIT`, s = ``log_sd`` of any shape."""
    s = np.asarray(log_sd, dtype=np.float64)
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0)), otypes=[np.float64])
    inner = np.exp(0.5 * s * s) * (cdf(Z_LIMIT - s) - cdf(-Z_LIMIT - s))
    ends = (np.exp(s * Z_LIMIT) + np.exp(-s * Z_LIMIT)) * cdf(-Z_LIMIT)
    return np.asarray(inner + ends)


@dataclass(frozen=True)
class DeploymentRules:
    """What the provider knows before the first query, besides the LLMs.

    Attributes
    ----------
    horizon : int
        Queries of an episode, T.
    num_stages : int
        Stages of (nearly) equal length, K <= T; stage k starts at query floor(k T / K), tau_k.
    max_deployed : int
        Most LLMs deployed at a time, M_max.
    alpha : tuple of float
        Largest share of a stage's queries per LLM, N entries in (0, 1].
    budget : float
        Average cost allowed per query, b, in USD.
    throughput : {"soft", "hard"}
        Queries above ceil(alpha_m * stage length) are counted or not served; the ledger gives
        nothing for them either way.
    switching_cost : float
        USD charged per LLM that joins the deployment, the first stage excepted (R).
    reward_delay : int
        Queries until a reward is seen.
    """

    horizon: int
    num_stages: int
    max_deployed: int
    alpha: tuple[float, ...]
    budget: float
    throughput: Literal["soft", "hard"] = "soft"
    switching_cost: float = 0.0
    reward_delay: int = 0

    @cached_property
    def stage_starts(self) -> Ints:
        """First query of every stage, tau_k, shape (K,)."""
        starts = [stage * self.horizon // self.num_stages for stage in range(self.num_stages)]
        return np.array(starts, dtype=np.int64)

    @cached_property
    def stage_lengths(self) -> Ints:
        """Queries of every stage, shape (K,)."""
        ends: Ints = np.append(self.stage_starts[1:], self.horizon)
        lengths: Ints = ends - self.stage_starts
        return lengths

    @cached_property
    def caps(self) -> Ints:
        """Queries an LLM may take in a stage, ceil(alpha_m * stage length), shape (K, N)."""
        load = self.stage_lengths[:, None] * np.array(self.alpha)
        return np.asarray(np.ceil(load - _DUST), dtype=np.int64)


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


def stage_schedule(p: Floats, length: int) -> Ints:
    """Turn traffic shares into one LLM per query of a stage, evenly interleaved (R).

    LLM m gets p_m * length queries, rounded by largest remainders, so never more than
    ceil(p_m * length). Deterministic, so that a policy can be replayed query by query.

    Parameters
    ----------
    p : ndarray, shape (N,)
        Shares, sum 1.
    length : int
        Queries of the stage, L.

    Returns
    -------
    ndarray of int64, shape (L,)
        Index of the LLM per query.
    """
    quota = p * length
    count = np.floor(quota + _DUST).astype(np.int64)
    remainder = quota - count
    missing = length - int(count.sum())
    count[np.argsort(-remainder, kind="stable")[:missing]] += 1
    llms = np.repeat(np.arange(len(p)), count)
    rank = np.arange(length) - np.repeat(np.cumsum(count) - count, count)
    place = (rank + 0.5) / count[llms]
    return llms[np.argsort(place, kind="stable")]


def project_to_capped_simplex(weights: Floats, caps: Floats) -> Floats:
    """Euclidean projection onto {p : sum p = 1, 0 <= p <= caps}, shapes (M,).

    If the caps sum to less than 1 the result is caps / sum(caps), which breaks them (R).

    Notes
    -----
    p = clip(weights - theta, 0, caps) with the theta that makes it sum to 1: exact, by sorting the
    breakpoints of this piecewise linear function of theta.
    """
    if caps.sum() <= 1.0:
        return np.asarray(caps / caps.sum())
    breaks = np.sort(np.concatenate([weights, weights - caps]))
    mass = np.clip(weights - breaks[:, None], 0.0, caps).sum(axis=1)  # decreases
    right = int(np.searchsorted(-mass, -1.0))
    if mass[right] == 1.0:
        theta = breaks[right]
    else:
        share = (mass[right - 1] - 1.0) / (mass[right - 1] - mass[right])
        theta = breaks[right - 1] + share * (breaks[right] - breaks[right - 1])
    p = np.clip(weights - theta, 0.0, caps)
    return np.asarray(p / p.sum())


def stage_plan(action: Floats, there: Bools, rules: DeploymentRules) -> tuple[Bools, Floats]:
    """Read an action of LLMDeployStage-v0: deployment bits and traffic shares, both (N,).

    The M_max best scores of the LLMs that are there are deployed, ties to the lowest index; the
    weights are projected onto the shares within alpha. With no LLM there all queries go to LLM 0,
    which refuses them.

    Parameters
    ----------
    action : ndarray, shape (2 N,)
        Deployment scores and routing weights, in [0, 1].
    there : ndarray of bool, shape (N,)
        LLMs that can be deployed.
    rules : DeploymentRules
        The public parameters.
    """
    size = len(there)
    rank = np.argsort(np.where(there, -action[:size], 1.0), kind="stable")
    chosen = np.sort(rank[: min(rules.max_deployed, int(there.sum()))])
    bits, shares = np.zeros(size, dtype=np.bool_), np.zeros(size)
    if not chosen.size:
        shares[0] = 1.0
        return bits, shares
    bits[chosen] = True
    caps = np.array(rules.alpha)[chosen]
    shares[chosen] = project_to_capped_simplex(action[size:][chosen], caps)
    return bits, shares


class QueryOutcome(NamedTuple):
    """What a provider sees of one query; arrays of shape (n,) for n stepped lanes.

    ``reward`` and ``ledger_reward`` belong to the query seen now, answered by ``rated_llm``: this
    one, or the one ``reward_delay`` queries ago (-1: none).
    """

    llm: Ints  # -1 where the query was not served
    reward: Floats
    ledger_reward: Floats
    rated_llm: Ints
    cost: Floats  # of the answer, in USD
    switching_cost: Floats
    refused: Bools
    throttled: Bools  # above the cap: not served if it is hard, nothing in the ledger if soft
    projected: Bools
    over_budget: Bools
    arrived_now: Bools  # (n, N)


class LaneOutcome(NamedTuple):
    """`QueryOutcome` of one lane as plain Python numbers."""

    llm: int
    reward: float
    ledger_reward: float
    rated_llm: int
    cost: float
    switching_cost: float
    refused: bool
    throttled: bool
    projected: bool
    over_budget: bool
    arrived_now: Bools  # (N,)


class StageOutcome(NamedTuple):
    """What a provider sees of one stage of one lane; sums over its queries."""

    reward: float
    ledger_reward: float
    cost: float  # of the answers, in USD
    switching_cost: float
    served: Ints  # (N,) queries answered per LLM
    refused: int
    throttled: int
    projected: bool
    over_budget: bool
    arrived_now: Bools  # (N,)


class DeploymentDynamics:
    """B copies of the deployment problem.

    At the first query of a stage (`deploy_now`) at most M_max of the LLMs that are there are
    deployed and stay for the stage, even if they retire in it. Every query goes to one LLM.
    One that is not deployed refuses: reward and cost 0. With hard throughput an LLM that has taken
    ceil(alpha_m * stage length) queries does not serve either.

    Every query has one draw each for the table row, the reward, the input and the output cost,
    shared by all LLMs: the outcome depends on the seed, the query and the LLM only.

    The ledger is the bandits-with-knapsacks rule with budget B = b T: the query whose cost would
    exceed it, and every later one, earns 0 and is not paid. What the sum of T costs may round up,
    a share of T machine epsilons, far below one query, does not count. An answer above an LLM's
    throughput cap earns 0 in the ledger too, else the caps would bind nobody, but is paid: with
    soft throughput the LLM did answer and its provider charges for it. So exceeding a cap is never
    better than refusing the query, which is free (hard throughput refuses it).

    One lane is stepped in plain Python (`step_single`), several with NumPy (`step`), a whole stage
    of one lane at once (`run_stage`); tests hold the three equal bit for bit. A query costs O(N)
    for the observation, whatever T.

    Parameters
    ----------
    num_lanes : int
        Independent copies, B.
    num_llms : int
        N.
    rules : DeploymentRules
        The public parameters.
    context_dim : int
        Length of a context, d; 0 without contexts.

    Attributes
    ----------
    query, stage : ndarray of int64, shape (B,)
        Queries done, t, and the current stage, k.
    deployed, available : ndarray of bool, shape (B, N)
        The deployment, and the LLMs that can be deployed now.
    count, used : ndarray of int64, shape (B, N)
        Queries answered by every LLM since the reset, and in this stage.
    """

    def __init__(
        self, num_lanes: int, num_llms: int, rules: DeploymentRules, context_dim: int = 0
    ) -> None:
        self.num_lanes, self.num_llms = num_lanes, num_llms
        self.rules, self.context_dim = rules, context_dim
        self._hard = rules.throughput == "hard"
        self._lanes = np.arange(num_lanes)
        self._llms = np.arange(num_llms)
        self._instances: list[DeploymentInstance | None] = [None] * num_lanes
        self._generators: list[Sequence[np.random.Generator]] = [()] * num_lanes
        self._table: QueryTable | None = None
        self._regimes = 0  # regimes of an instance, G; 0 before the first reset
        self._limit = rules.budget * rules.horizon
        self._ledger_limit = self._limit * (1.0 + rules.horizon * float(np.finfo(np.float64).eps))
        self._draws = np.zeros((num_lanes, int(rules.stage_lengths.max()), NUM_STREAMS))
        self._rows: list[list[float]] = []  # the same as plain floats, for one lane

        def lane(dtype: type) -> NDArray[Any]:
            return np.zeros(num_lanes, dtype=dtype)

        def llm(dtype: type) -> NDArray[Any]:
            return np.zeros((num_lanes, num_llms), dtype=dtype)

        self.query, self.stage, self._start, self._length = (lane(np.int64) for _ in range(4))
        self._regime, self._next_event = lane(np.int64), lane(np.int64)
        self._totals = {
            name: lane(np.float64) for name in ("spend", "ledger_spend", "reward", "ledger_score")
        }
        self._exhausted = lane(np.bool_)
        self._counters = {
            name: lane(np.int64) for name in ("refused", "throttled", "violations", "projected")
        }
        self.deployed, self.available = llm(np.bool_), llm(np.bool_)
        self.count, self.used, self._rated, self._cap = (llm(np.int64) for _ in range(4))
        self._reward_sum, self._cost_sum = llm(np.float64), llm(np.float64)
        # What an observation shows, kept up to date: copying is all a step has to do.
        self._seen = {
            name: llm(np.float32)
            for name in ("cost_prior", "count", "mean_reward", "mean_cost", "throughput_left")
        }
        self._masks = np.ones((num_lanes, 3 * num_llms), dtype=np.int8)
        delay = rules.reward_delay
        self._pending_llm = np.full((num_lanes, delay), -1, dtype=np.int64)
        self._pending = np.zeros((num_lanes, delay, 2))  # reward and ledger reward

    # ------------------------------------------------------------------ reset

    def reset(
        self,
        lanes: Sequence[int],
        instances: Sequence[DeploymentInstance],
        generators: Sequence[Sequence[np.random.Generator]],
    ) -> None:
        """Start an episode in some lanes.

        Parameters
        ----------
        lanes : sequence of int
            Lanes to reset. The first call must name all of them.
        instances : sequence of DeploymentInstance
            One per lane, all of one number of regimes and with one table.
        generators : sequence of sequences of Generator
            Per lane: table rows, rewards, input costs, output costs.
        """
        if self._regimes == 0:
            self._allocate(instances[0])
        for lane, instance, streams in zip(lanes, instances, generators, strict=True):
            self._generators[lane] = streams
            if instance is not self._instances[lane]:
                self._load(lane, instance)
        index = np.asarray(lanes)
        for array in (self.query, self._exhausted, self.deployed, self.available, self.count):
            array[index] = 0
        for array in (self._rated, self._reward_sum, self._cost_sum, self._pending):
            array[index] = 0
        for group in (self._totals, self._counters, self._seen):
            for array in group.values():
                array[index] = 0
        self._pending_llm[index] = -1
        self.stage[index] = -1
        self._enter_stage(index)
        self._apply_events(index)

    def _allocate(self, first: DeploymentInstance) -> None:
        """Make room for the truth about every lane."""
        self._regimes, n = len(first.change_query), self.num_llms
        self._table, self._atoms = first.table, first.reward_atoms
        by_regime = (self.num_lanes, self._regimes, n)
        self._change = np.zeros(by_regime[:2], dtype=np.int64)
        self._arrival = np.zeros((self.num_lanes, n), dtype=np.int64)
        self._retire = np.zeros((self.num_lanes, n), dtype=np.int64)
        self._truth_reward, self._truth_cost = np.zeros(by_regime), np.zeros(by_regime)
        self._input, self._output, self._shift = (np.zeros(by_regime) for _ in range(3))
        self._list_cost = np.zeros(by_regime, dtype=np.float32)
        self._sd, self._log_mean = (np.zeros((self.num_lanes, 2, n)) for _ in range(2))
        self._cdf = np.zeros((self.num_lanes, *first.reward_cdf.shape))

    def _load(self, lane: int, instance: DeploymentInstance) -> None:
        assert instance.table is self._table, "lanes must share one table"
        self._instances[lane] = instance
        self._change[lane] = instance.change_query
        self._arrival[lane], self._retire[lane] = instance.arrival_query, instance.retire_query
        self._truth_reward[lane], self._truth_cost[lane] = instance.mean_reward, instance.mean_cost
        self._input[lane], self._output[lane] = instance.input_cost, instance.output_cost
        self._shift[lane], self._list_cost[lane] = instance.shift, instance.list_cost
        self._sd[lane] = instance.log_sd
        self._log_mean[lane] = np.log(lognormal_mean(instance.log_sd))
        self._cdf[lane] = instance.reward_cdf
        if self.num_lanes == 1:
            self._cdf_rows: list[list[float]] = instance.reward_cdf.tolist()

    def _enter_stage(self, lanes: Ints) -> None:
        """Begin the next stage of some lanes: draw its queries and free the throughput."""
        self.stage[lanes] += 1
        stage = self.stage[lanes]
        self._start[lanes] = self.rules.stage_starts[stage]
        self._length[lanes] = self.rules.stage_lengths[stage]
        self._cap[lanes] = self.rules.caps[stage]
        self.used[lanes] = 0
        for lane, length in zip(lanes, self._length[lanes], strict=True):
            rows, rewards, inputs, outputs = self._generators[lane]
            draws = self._draws[lane, :length]
            draws[:, 0], draws[:, 1] = rows.random(length), rewards.random(length)
            for column, normal in ((2, inputs), (3, outputs)):
                draws[:, column] = np.clip(normal.standard_normal(length), -Z_LIMIT, Z_LIMIT)
        if self.num_lanes == 1:
            self._rows = self._draws[0].tolist()
        self._refresh(lanes)

    def _apply_events(self, lanes: Ints) -> None:
        """Bring arrivals, retirements and the regime up to the current query."""
        now = self.query[lanes][:, None]
        arrival, retire, change = self._arrival[lanes], self._retire[lanes], self._change[lanes]
        self.available[lanes] = available = (arrival <= now) & (now < retire)
        self._regime[lanes] = regime = (change <= now).sum(axis=1) - 1
        self._seen["cost_prior"][lanes] = self._list_cost[lanes, regime] * available
        events = np.concatenate([arrival, retire, change], axis=1)
        self._next_event[lanes] = np.where(events > now, events, NEVER).min(axis=1)
        self._refresh(lanes)

    def _refresh(self, lanes: Ints) -> None:
        """Recompute what changes with the stage, the deployment or an arrival."""
        available, n = self.available[lanes], self.num_llms
        left = np.maximum(self._cap[lanes] - self.used[lanes], 0) / self._length[lanes][:, None]
        updating = (self.query[lanes] == self._start[lanes])[:, None]
        # A deployed LLM that retires serves to the end of the stage.
        serving = available | (self.deployed[lanes] & ~updating)
        self._seen["throughput_left"][lanes] = left * serving
        routable = np.where(updating, available, self.deployed[lanes])
        routable[:, 0] |= ~routable.any(axis=1)  # one action stays legal
        masks = np.ones((len(available), 3 * n), dtype=np.int8)
        masks[:, 1 : 2 * n : 2] = available
        masks[:, 2 * n :] = routable
        self._masks[lanes] = masks

    # ------------------------------------------------------------------- step

    def allowed(self, bits: Bools, lanes: Ints | None = None) -> Bools:
        """Return the deployment that bits come to now, shape (n, N).

        LLMs that are not there are dropped, then all beyond the first M_max by index.

        Parameters
        ----------
        bits : ndarray of bool, shape (n, N)
            LLMs to deploy.
        lanes : ndarray of int64, shape (n,), optional
            Their lanes, by default all.
        """
        available = self.available if lanes is None else self.available[lanes]
        kept: Bools = bits & available
        kept &= np.cumsum(kept, axis=1) <= self.rules.max_deployed
        return kept

    def _deploy(self, lanes: Ints, bits: Bools) -> tuple[Bools, Floats]:
        """Deploy at an update point: (projected, switching cost in USD), shapes (n,)."""
        allowed = self.allowed(bits, lanes)
        joining = (allowed & ~self.deployed[lanes]).sum(axis=1)
        charge = self.rules.switching_cost * joining * (self.stage[lanes] > 0)
        self.deployed[lanes] = allowed
        projected = (bits != allowed).any(axis=1)
        self._counters["projected"][lanes] += projected
        return projected, charge

    def _outcomes(self, lane: Any, regime: Any, llm: Ints, draws: Floats) -> tuple[Floats, Floats]:
        """Reward and cost of n queries: indices broadcast to (n,), draws (n, NUM_STREAMS)."""
        shift = self._shift[lane, regime, llm]
        x = (draws[:, 1] - np.maximum(-shift, 0.0)) / np.maximum(1.0 - np.abs(shift), _TINY)
        price = self._input[lane, regime, llm]
        if self._table is not None:
            row = (draws[:, 0] * len(self._table.quality)).astype(np.int64)
            reward, cost = self._table.quality[row, llm], price * self._table.cost[row, llm]
        else:
            reward = self._atoms[(self._cdf[lane, llm] <= x[:, None]).sum(axis=1)]
            sd, log_mean = self._sd[lane, :, llm], self._log_mean[lane, :, llm]
            factor = np.exp(sd * draws[:, 2:] - log_mean)
            cost = price * factor[:, 0] + self._output[lane, regime, llm] * factor[:, 1]
        return np.where(x < 0.0, 0.0, np.where(x >= 1.0, 1.0, reward)), cost

    def step(self, bits: Bools, llms: Ints, lanes: Ints | None = None) -> QueryOutcome:
        """Answer one query in every lane, or in n of them.

        Parameters
        ----------
        bits : ndarray of bool, shape (n, N)
            LLMs to deploy; read at update points only.
        llms : ndarray of int64, shape (n,)
            The LLM that answers.
        lanes : ndarray of int64, shape (n,), optional
            Lanes to step; none of them may have ended.
        """
        lanes = self._lanes if lanes is None else lanes
        position = self.query[lanes] - self._start[lanes]
        projected, switching = np.zeros(len(lanes), dtype=np.bool_), np.zeros(len(lanes))
        updating = position == 0
        if updating.any():
            projected[updating], switching[updating] = self._deploy(lanes[updating], bits[updating])
        refused = ~self.deployed[lanes, llms]
        throttled = ~refused & (self.used[lanes, llms] >= self._cap[lanes, llms])
        served = ~refused & ~throttled if self._hard else ~refused
        reward, cost = self._outcomes(
            lanes, self._regime[lanes], llms, self._draws[lanes, position]
        )
        reward, cost = np.where(served, reward, 0.0), np.where(served, cost, 0.0)
        self._counters["refused"][lanes] += refused
        self._counters["throttled" if self._hard else "violations"][lanes] += throttled

        charge = cost + switching
        totals = self._totals
        totals["spend"][lanes] += charge
        self._exhausted[lanes] |= totals["ledger_spend"][lanes] + charge > self._ledger_limit
        over = self._exhausted[lanes]
        totals["ledger_spend"][lanes] += np.where(over, 0.0, charge)
        ledger_reward = np.where(over | throttled, 0.0, reward)
        totals["reward"][lanes] += reward
        totals["ledger_score"][lanes] += ledger_reward

        self._pay(lanes[served], llms[served], cost[served])
        llm = np.where(served, llms, -1)
        rated_llm, reward, ledger_reward = self._reveal(lanes, llm, reward, ledger_reward)
        rated = rated_llm >= 0
        self._rate(lanes[rated], rated_llm[rated], reward[rated])
        arrived_now = self._advance(lanes, 1, updating.any())
        return QueryOutcome(
            llm,
            reward,
            ledger_reward,
            rated_llm,
            cost,
            switching,
            refused,
            throttled,
            projected,
            over,
            arrived_now,
        )

    def _pay(self, lanes: Ints, llms: Ints, cost: Floats) -> None:
        """Book one paid answer in each of some lanes."""
        self.count[lanes, llms] += 1
        self.used[lanes, llms] += 1
        self._cost_sum[lanes, llms] += cost
        count, seen = self.count[lanes, llms], self._seen
        seen["count"][lanes, llms] = count
        seen["mean_cost"][lanes, llms] = self._cost_sum[lanes, llms] / count
        left = np.maximum(self._cap[lanes, llms] - self.used[lanes, llms], 0)
        seen["throughput_left"][lanes, llms] = left / self._length[lanes]

    def _rate(self, lanes: Ints, llms: Ints, reward: Floats) -> None:
        """Book one seen reward in each of some lanes."""
        self._rated[lanes, llms] += 1
        self._reward_sum[lanes, llms] += reward
        mean = self._reward_sum[lanes, llms] / self._rated[lanes, llms]
        self._seen["mean_reward"][lanes, llms] = mean

    def _reveal(
        self, lanes: Ints, llm: Ints, reward: Floats, ledger_reward: Floats
    ) -> tuple[Ints, Floats, Floats]:
        """Swap this query's reward for the one that is due now."""
        delay = self.rules.reward_delay
        if delay == 0:
            return llm, reward, ledger_reward
        slot = self.query[lanes] % delay
        due_llm, due = self._pending_llm[lanes, slot], self._pending[lanes, slot]
        self._pending_llm[lanes, slot] = llm
        self._pending[lanes, slot, 0], self._pending[lanes, slot, 1] = reward, ledger_reward
        return due_llm, due[:, 0].copy(), due[:, 1].copy()

    def _advance(self, lanes: Ints, queries: int, deployed: bool | np.bool_) -> Bools:
        """Move the clock; return the LLMs that arrived on the way, shape (n, N)."""
        self.query[lanes] += queries
        query = self.query[lanes]
        done = query == self._start[lanes] + self._length[lanes]
        done &= query < self.rules.horizon
        if done.any():
            self._enter_stage(lanes[done])
        if deployed:
            self._refresh(lanes)
        arrived_now = np.zeros((len(lanes), self.num_llms), dtype=np.bool_)
        event = query >= self._next_event[lanes]
        if event.any():
            before = self.available[lanes[event]]
            self._apply_events(lanes[event])
            arrived_now[event] = self.available[lanes[event]] & ~before
        return arrived_now

    # -------------------------------------------------------- one lane, plain

    def step_single(self, bits: Sequence[int], llm: int) -> LaneOutcome:
        """Answer one query of the only lane: `step` without array overhead."""
        query, start = self.query.item(0), self._start.item(0)
        updating = query == start
        projected, switching = False, 0.0
        if updating:
            wanted = np.array([bits], dtype=np.bool_)
            moved, charge = self._deploy(self._lanes, wanted)
            projected, switching = moved.item(), charge.item()
        refused = not self.deployed.item(llm)
        throttled = not refused and self.used.item(llm) >= self._cap.item(llm)
        reward = cost = 0.0
        served = not refused and not (throttled and self._hard)
        if served:
            reward, cost = self._outcome_single(llm, self._rows[query - start])
            self._pay_single(llm, cost)
        elif refused:
            self._counters["refused"][0] += 1
        if throttled:
            self._counters["throttled" if self._hard else "violations"][0] += 1
        earned = 0.0 if throttled else reward
        over, ledger_reward = self._charge_single(reward, earned, cost + switching)
        answered = rated_llm = llm if served else -1
        if self.rules.reward_delay:
            rated_llm, reward, ledger_reward = self._reveal_single(
                query, answered, reward, ledger_reward
            )
        if rated_llm >= 0:
            self._rated[0, rated_llm] += 1
            self._reward_sum[0, rated_llm] += reward
            mean = self._reward_sum.item(rated_llm) / self._rated.item(rated_llm)
            self._seen["mean_reward"][0, rated_llm] = mean
        query += 1
        if updating or query == start + self._length.item(0) or query >= self._next_event.item(0):
            arrived_now = self._advance(self._lanes, 1, updating)[0]
        else:
            self.query[0] = query
            arrived_now = np.zeros(self.num_llms, dtype=np.bool_)
        return LaneOutcome(
            answered,
            reward,
            ledger_reward,
            rated_llm,
            cost,
            switching,
            refused,
            throttled,
            projected,
            over,
            arrived_now,
        )

    def _outcome_single(self, llm: int, draws: list[float]) -> tuple[float, float]:
        at = self._regime.item(0) * self.num_llms + llm
        row, draw, z_input, z_output = draws
        shift, price = self._shift.item(at), self._input.item(at)
        x = (draw - max(-shift, 0.0)) / max(1.0 - abs(shift), _TINY)
        if self._table is not None:
            index = int(row * len(self._table.quality))
            reward = self._table.quality.item(index, llm)
            cost = price * self._table.cost.item(index, llm)
        else:
            reward = self._atoms.item(bisect_right(self._cdf_rows[llm], x))
            sd, log_mean, n = self._sd.item, self._log_mean.item, self.num_llms
            # np.exp, because math.exp may round differently from step().
            factor = np.exp(
                [
                    sd(llm) * z_input - log_mean(llm),
                    sd(n + llm) * z_output - log_mean(n + llm),
                ]
            )
            cost = price * factor.item(0) + self._output.item(at) * factor.item(1)
        return (0.0 if x < 0.0 else 1.0 if x >= 1.0 else reward), cost

    def _pay_single(self, llm: int, cost: float) -> None:
        seen = self._seen
        count, used = self.count.item(llm) + 1, self.used.item(llm) + 1
        total = self._cost_sum.item(llm) + cost
        self.count[0, llm], self.used[0, llm], self._cost_sum[0, llm] = count, used, total
        seen["count"][0, llm] = count
        seen["mean_cost"][0, llm] = total / count
        left = max(self._cap.item(llm) - used, 0) / self._length.item(0)
        seen["throughput_left"][0, llm] = left

    def _charge_single(self, reward: float, earned: float, charge: float) -> tuple[bool, float]:
        """Book a query that earns ``earned`` if the budget lasts.

        Return whether the ledger is exhausted, and the ledger's reward.
        """
        totals = self._totals
        totals["spend"][0] += charge
        totals["reward"][0] += reward
        paid = totals["ledger_spend"].item(0) + charge
        if self._exhausted.item(0) or paid > self._ledger_limit:
            self._exhausted[0] = True
            return True, 0.0
        totals["ledger_spend"][0] = paid
        totals["ledger_score"][0] += earned
        return False, earned

    def _reveal_single(
        self, query: int, llm: int, reward: float, ledger_reward: float
    ) -> tuple[int, float, float]:
        slot = query % self.rules.reward_delay
        due_llm = self._pending_llm.item(slot)
        due, due_ledger = self._pending[0, slot].tolist()
        self._pending_llm[0, slot] = llm
        self._pending[0, slot] = reward, ledger_reward
        return due_llm, due, due_ledger

    # ------------------------------------------------------- one lane, a stage

    def run_stage(self, bits: Bools, llms: Ints) -> StageOutcome:
        """Run a whole stage of the only lane, vectorised over its queries.

        Parameters
        ----------
        bits : ndarray of bool, shape (N,)
            LLMs to deploy.
        llms : ndarray of int64, shape (L,)
            The LLM that answers each query of the stage.
        """
        lane, length = self._lanes, self._length.item(0)
        assert self.query.item(0) == self._start.item(0), "a stage runs from its first query"
        moved, switching = self._deploy(lane, bits[None])
        refused = ~self.deployed[0, llms]
        throttled = ~refused & (self._turn(llms) >= self._cap[0, llms])
        served = ~refused & ~throttled if self._hard else ~refused
        regime = np.searchsorted(
            self._change[0], self.query.item(0) + np.arange(length), side="right"
        )
        reward, cost = self._outcomes(0, regime - 1, llms, self._draws[0, :length])
        reward, cost = np.where(served, reward, 0.0), np.where(served, cost, 0.0)
        self._counters["refused"][0] += refused.sum()
        self._counters["throttled" if self._hard else "violations"][0] += throttled.sum()

        charge = cost.copy()
        charge[0] += switching.item()
        earned = np.where(throttled, 0.0, reward)
        over = self._charge_stage(reward, earned, charge)
        ledger_reward = np.where(over, 0.0, earned)
        rated_llm, reward, ledger_reward = self._reveal_stage(
            np.where(served, llms, -1), reward, ledger_reward
        )
        self._book_stage(llms[served], cost[served], rated_llm, reward)
        taken = np.bincount(llms[served], minlength=self.num_llms)
        arrived_now = self._advance(lane, length, True)[0]
        return StageOutcome(
            _running_sum(0.0, reward)[-1].item(),
            _running_sum(0.0, ledger_reward)[-1].item(),
            _running_sum(0.0, cost)[-1].item(),
            switching.item(),
            taken,
            int(refused.sum()),
            int(throttled.sum()),
            moved.item(),
            bool(over[-1]),
            arrived_now,
        )

    def _turn(self, llms: Ints) -> Ints:
        """How many earlier queries of the stage went to the same LLM, shape (L,)."""
        order = np.argsort(llms, kind="stable")
        counts = np.bincount(llms, minlength=self.num_llms)
        turn = np.empty_like(llms)
        turn[order] = np.arange(len(llms)) - np.repeat(np.cumsum(counts) - counts, counts)
        return turn

    def _charge_stage(self, reward: Floats, earned: Floats, charge: Floats) -> Bools:
        """Book the queries of a stage in order, which earn ``earned`` while the budget lasts.

        Return where the ledger is exhausted.
        """
        totals = self._totals
        for name, values in (("spend", charge), ("reward", reward)):
            totals[name][0] = _running_sum(totals[name].item(0), values)[-1]
        paid = _running_sum(totals["ledger_spend"].item(0), charge)
        over: Bools = (paid[1:] > self._ledger_limit) | self._exhausted.item(0)
        totals["ledger_spend"][0] = paid[int((~over).sum())]
        score = totals["ledger_score"]
        score[0] = _running_sum(score.item(0), earned[~over])[-1]
        self._exhausted[0] = over[-1]
        return over

    def _reveal_stage(
        self, llm: Ints, reward: Floats, ledger_reward: Floats
    ) -> tuple[Ints, Floats, Floats]:
        """Swap a stage's rewards for those due in it."""
        delay = self.rules.reward_delay
        if delay == 0:
            return llm, reward, ledger_reward
        length = len(llm)
        slots = (self.query.item(0) + np.arange(delay)) % delay
        llm = np.concatenate([self._pending_llm[0, slots], llm])
        both = np.column_stack([reward, ledger_reward])
        both = np.concatenate([self._pending[0, slots], both])
        slots = (self.query.item(0) + length + np.arange(delay)) % delay
        self._pending_llm[0, slots], self._pending[0, slots] = llm[length:], both[length:]
        return llm[:length], both[:length, 0], both[:length, 1]

    def _book_stage(self, llms: Ints, cost: Floats, rated_llm: Ints, reward: Floats) -> None:
        """Book the paid answers and the seen rewards of a stage, in the order of its queries."""
        taken = np.bincount(llms, minlength=self.num_llms)
        self.count[0] += taken
        self.used[0] += taken
        np.add.at(self._cost_sum[0], llms, cost)
        rated = rated_llm >= 0
        self._rated[0] += np.bincount(rated_llm[rated], minlength=self.num_llms)
        np.add.at(self._reward_sum[0], rated_llm[rated], reward[rated])
        self._seen["count"][0] = self.count[0]
        for name, total, count in (
            ("mean_cost", self._cost_sum, self.count),
            ("mean_reward", self._reward_sum, self._rated),
        ):
            self._seen[name][0] = total[0] / np.maximum(count[0], 1)

    # ---------------------------------------------------------------- observe

    @property
    def ready(self) -> bool:
        """Whether every lane has an episode, which the first reset begins."""
        return self._regimes > 0

    @property
    def deploy_now(self) -> Bools:
        """Whether the next query is an update point, shape (B,)."""
        return np.asarray(self.query == self._start)

    @property
    def ended(self) -> Bools:
        """Whether all T queries are done, shape (B,)."""
        return np.asarray(self.query >= self.rules.horizon)

    def observe(self) -> dict[str, NDArray[np.generic]]:
        """Return what the provider sees now, freshly allocated; leading axis B.

        Returns
        -------
        dict of ndarrays
            See the observation table of ``LLMDeployEnv``; ``deploy_now`` has shape (B,).
        """
        rules, query = self.rules, self.query
        left = rules.horizon - query
        spend = self._totals["spend"]
        budget_left = np.divide(
            (self._limit - spend) / rules.budget, left, out=np.zeros(self.num_lanes), where=left > 0
        )
        observation: dict[str, NDArray[np.generic]] = {
            "arrived": self.available.astype(np.int8),
            "deployed": self.deployed.astype(np.int8),
            **{name: array.copy() for name, array in self._seen.items()},
            "deploy_now": self.deploy_now.astype(np.int64),
        }
        for name, value in (
            ("stage_progress", (query - self._start) / self._length),
            ("query_progress", query / rules.horizon),
            ("spent", spend / self._limit),
            ("budget_left", np.clip(budget_left, -MAX_COUNT, MAX_COUNT)),
        ):
            observation[name] = value.astype(np.float32)[:, None]
        if self.context_dim:
            observation["context"] = self._context()
        return observation

    def _context(self) -> NDArray[np.float32]:
        """Contexts of the queries to route next, zero after the last; shape (B, d)."""
        assert self._table is not None
        context: NDArray[np.float32] = self._table.contexts[self._next_row()]
        context[self.ended] = 0.0
        return context

    def _next_row(self) -> Ints:
        """Table rows of the queries to route next; shape (B,)."""
        assert self._table is not None
        position = np.minimum(self.query - self._start, self._length - 1)
        row = self._draws[self._lanes, position, 0] * len(self._table.contexts)
        return np.asarray(row, dtype=np.int64)

    def observe_single(self) -> dict[str, Any]:
        """Return the observation of the only lane, without the leading axis."""
        rules, query, start = self.rules, self.query.item(0), self._start.item(0)
        left, spend = rules.horizon - query, self._totals["spend"].item(0)
        budget_left = (self._limit - spend) / rules.budget / left if left else 0.0
        observation: dict[str, Any] = {
            "arrived": self.available[0].astype(np.int8),
            "deployed": self.deployed[0].astype(np.int8),
        }
        for name, array in self._seen.items():
            observation[name] = array[0].copy()
        observation["deploy_now"] = np.int64(query == start)
        for name, value in (
            ("stage_progress", (query - start) / self._length.item(0)),
            ("query_progress", query / rules.horizon),
            ("spent", spend / self._limit),
            ("budget_left", min(max(budget_left, -MAX_COUNT), MAX_COUNT)),
        ):
            observation[name] = np.array([value], dtype=np.float32)
        if self.context_dim:
            observation["context"] = self._context()[0]
        return observation

    def action_masks(self) -> NDArray[np.int8]:
        """Legal actions, shape (B, 2 N + N): two entries per deployment bit, then the routing."""
        return self._masks.copy()

    # ------------------------------------------------- the truth, for oracles

    def _per_lane(self, values: NDArray[Any]) -> Any:
        """Drop the lane axis where there is only one lane."""
        return values[0] if self.num_lanes == 1 else values

    def instance(self, lane: int = 0) -> DeploymentInstance:
        """Return the whole truth about a lane, future LLMs and regimes included."""
        instance = self._instances[lane]
        assert instance is not None, "reset first"
        return instance

    @property
    def mean_reward(self) -> Floats:
        """mu_m of every LLM now, those still to come included; (N,), several lanes (B, N)."""
        return np.array(self._per_lane(self._truth_reward[self._lanes, self._regime]))

    @property
    def mean_cost(self) -> Floats:
        """c_m in USD per query now; (N,), several lanes (B, N)."""
        return np.array(self._per_lane(self._truth_cost[self._lanes, self._regime]))

    @property
    def arrival_query(self) -> Ints:
        """First query at which each LLM is there; (N,), several lanes (B, N)."""
        return np.array(self._per_lane(self._arrival))

    @property
    def retire_query(self) -> Ints:
        """First query at which each LLM is gone; (N,), several lanes (B, N)."""
        return np.array(self._per_lane(self._retire))

    @property
    def table(self) -> QueryTable | None:
        """The recorded queries, None without a table."""
        return self._table

    @property
    def table_row(self) -> Any:
        """Row of ``table`` that the next query is; a number, several lanes (B,)."""
        return self._per_lane(self._next_row())

    @property
    def alpha(self) -> Floats:
        """alpha_m, shape (N,)."""
        return np.array(self.rules.alpha)

    @property
    def budget(self) -> float:
        """Average USD allowed per query, b."""
        return self.rules.budget

    @property
    def horizon(self) -> int:
        """Queries of an episode, T."""
        return self.rules.horizon

    @property
    def stage_starts(self) -> Ints:
        """First query of every stage, tau_k, shape (K,)."""
        return self.rules.stage_starts.copy()

    @property
    def max_deployed(self) -> int:
        """M_max."""
        return self.rules.max_deployed

    @property
    def spend(self) -> Any:
        """USD spent, after the ledger's end too; a number, several lanes (B,)."""
        return self._per_lane(self._totals["spend"].copy())

    @property
    def ledger_spend(self) -> Any:
        """USD paid within the ledger, at most b T and rounding; a number, several lanes (B,)."""
        return self._per_lane(self._totals["ledger_spend"].copy())

    @property
    def total_reward(self) -> Any:
        """Sum of all rewards, seen or not; a number, several lanes (B,)."""
        return self._per_lane(self._totals["reward"].copy())

    @property
    def ledger_score(self) -> Any:
        """Sum of the rewards within the ledger; divide by T for the mean. A number or (B,)."""
        return self._per_lane(self._totals["ledger_score"].copy())

    @property
    def refused(self) -> Any:
        """Queries routed to an LLM that was not deployed; a number, several lanes (B,)."""
        return self._per_lane(self._counters["refused"].copy())

    @property
    def throttled(self) -> Any:
        """Queries not served for the hard throughput; a number, several lanes (B,)."""
        return self._per_lane(self._counters["throttled"].copy())

    @property
    def violations(self) -> Any:
        """Queries served, and paid, above the soft throughput; a number, several lanes (B,)."""
        return self._per_lane(self._counters["violations"].copy())

    @property
    def projected(self) -> Any:
        """Update points whose bits were projected; a number, several lanes (B,)."""
        return self._per_lane(self._counters["projected"].copy())


def _running_sum(start: float, values: Floats) -> Floats:
    """Return start, start + values[0], ..., added in order like a loop would; (L + 1,)."""
    return np.add.accumulate(np.concatenate([[start], values]))
