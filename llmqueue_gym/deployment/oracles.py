"""Deployment oracles: policies that know the true means, and the values they are measured by.

They act through the same interface as every agent: deployment bits and one LLM per query.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.deployment.routing import deploy_opt, route_opt
from llmqueue_gym.deployment.rules import DeploymentRules, stage_schedule
from llmqueue_gym.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ROUNDING = 1e-12  # relative gain below which a step of the dual is only noise


class LedgerBound(NamedTuple):
    """The best ledger score that any policy can expect.

    Attributes
    ----------
    value : float
        Mean reward per query, an upper bound.
    price : float
        Lagrange multiplier lambda of the budget: reward lost per USD less per query.
    stage_budget : ndarray, shape (K,)
        Mean USD per query that the optimum spends in every stage.
    overshoot : float
        What the query that ends the ledger may add: no policy expects more than value + overshoot.
        At most lambda c2 / T.
    """

    value: float
    price: float
    stage_budget: Floats
    overshoot: float = 0.0


def fluid_values(instance: DeploymentInstance, rules: DeploymentRules) -> Floats:
    """Return the published benchmark V(b, A_t) of every query, shape (T,).

    V(b, A) is the best mean reward of a query with at most M_max of the LLMs A, throughput alpha
    and an average cost of b in every query; A_t are the LLMs there at query t. It needs no stages
    and saves no money for later, so a policy that shifts money between stages can exceed it:
    `ledger_bound` is the one that holds. 0 where no LLM is there.
    """
    values = np.zeros(rules.horizon)
    events = np.concatenate([instance.arrival_query, instance.retire_query, instance.change_query])
    starts = np.unique(np.append(events[(events >= 0) & (events < rules.horizon)], 0))
    for start, end in zip(starts, np.append(starts[1:], rules.horizon), strict=True):
        mu, cost = _means(instance, int(start))
        there = np.flatnonzero(instance.available(int(start)))
        if there.size:
            values[start:end] = deploy_opt(
                mu[there],
                cost[there],
                np.array(rules.alpha)[there],
                rules.budget,
                rules.max_deployed,
            ).value
    return values


def staged_value(instance: DeploymentInstance, rules: DeploymentRules) -> float:
    """Return the expected reward per query of `StagedOracle` without a ledger.

    The deployment is optimal at every tau_k with budget b in every query, and fixed in between.
    """
    total = 0.0
    for k, length in enumerate(rules.stage_lengths.tolist()):
        mu, cost = _stage_means(instance, rules, k)
        there = np.flatnonzero(instance.available(int(rules.stage_starts[k])))
        if there.size:
            alpha = np.array(rules.alpha)[there]
            best = deploy_opt(mu[there], cost[there], alpha, rules.budget, rules.max_deployed)
            total += length * best.value
    return total / rules.horizon


def static_value(instance: DeploymentInstance, rules: DeploymentRules) -> tuple[float, Ints]:
    """Return the reward per query of a good fixed set of M_max LLMs, and the set.

    In hindsight: each LLM of the set serves from the first update point after its arrival, with
    budget b in every query; what the budget does not cover is refused. (R) The set is found
    greedily and improved by swaps, so the value is a yardstick and may be a little below the best
    set's.
    """
    alpha = np.array(rules.alpha)
    means: dict[bytes, Floats] = {}  # distinct mean rewards and costs of a stage, (2, N) each
    queries: Counter[tuple[bytes, bytes]] = Counter()  # of the stages of one kind
    for k, (start, length) in enumerate(
        zip(rules.stage_starts.tolist(), rules.stage_lengths.tolist(), strict=True)
    ):
        stage = np.array(_stage_means(instance, rules, k))
        means[stage.tobytes()] = stage
        queries[stage.tobytes(), instance.available(start).tobytes()] += length

    @cache
    def reward(kind: bytes, llms: tuple[int, ...]) -> float:
        mu, cost = means[kind][:, llms]
        # A null LLM refuses what the budget or the throughput does not cover.
        best = route_opt(
            np.append(mu, 0.0),
            np.append(cost, 0.0),
            np.append(alpha[[*llms]], 1.0),
            rules.budget,
        )
        return best.value

    @cache
    def value(chosen: frozenset[int]) -> float:
        total = 0.0
        for (kind, available), count in queries.items():
            llms = tuple(llm for llm in sorted(chosen) if available[llm])
            if llms:
                total += count * reward(kind, llms)
        return total / rules.horizon

    llms = range(len(alpha))
    best: frozenset[int] = frozenset()
    for _ in range(min(rules.max_deployed, len(alpha))):
        best = max((best | {llm} for llm in llms if llm not in best), key=value)
    while True:
        swaps = (best - {out} | {llm} for out in best for llm in llms if llm not in best)
        better = max(swaps, key=value, default=best)
        if value(better) <= value(best) + 1e-12:
            return value(best), np.array(sorted(best), dtype=np.int64)
        best = better


def ledger_bound(instance: DeploymentInstance, rules: DeploymentRules) -> LedgerBound:
    """Return the reference of the leaderboard: no policy expects a larger ledger score per query.

    Strictly, none expects more than ``value + overshoot``; see below.

    The hard budget bT may be spread over the stages at will, and refusing a query saves its cost.
    Weak duality over all policies, adaptive ones included: for every price lambda >= 0 the value
    is at most

        lambda b + 1/T sum_k L_k max_{S, p} sum_{m in S} (mu_m - lambda c_m)^+ p_m,

    |S| <= M_max of the LLMs there at tau_k, p_m <= ceil(alpha_m L_k) / L_k, sum p <= 1; and the
    smallest over lambda is returned. It is attained up to the budget of one stage and rounding.
    (With unequal alpha the maximum may use one LLM more than M_max where nothing is refused.)
    With a table, a policy may see the query: then each query goes to the LLM best for it at price
    lambda, and neither M_max nor throughput binds, which makes the bound looser.

    It holds for policies that ignore the caps too. A policy
    chooses before it sees a query's draws, so an answer of m adds (mu_m - lambda c_m) 1{within the
    cap} - lambda c_m 1{above it} in expectation to what the ledger earns less lambda times what it
    pays: an answer above the cap is paid and earns nothing, so it adds nothing positive. At most
    ceil(alpha_m L_k) answers of m in stage k are within the cap, and all of them go to at most
    M_max LLMs, so a stage adds no more than the maximum above.

    The query that ends the ledger is not paid, so a policy that stakes its last money on an LLM
    with a heavy tail of costs gets its cheap answers for less than their mean cost. The money of
    all queries up to that one is at most bT + c2, c2 the largest cost of a query: the same bound
    at this budget holds strictly, and ``overshoot`` is what it adds, at most lambda c2 / T.
    (Costs of switching are paid from bT besides, which only lowers the score.)
    """
    fill = _mean_fill if instance.table is None else _table_fill
    bound = _spread_budget(instance, rules, fill, 0, 0.0)
    there = np.any([instance.available(start) for start in rules.stage_starts.tolist()], axis=0)
    largest = float(instance.max_cost[there].max(initial=0.0))
    strict = _spread_budget(instance, rules, fill, 0, -largest)
    return bound._replace(overshoot=max(0.0, strict.value - bound.value))


def _spread_budget(
    instance: DeploymentInstance, rules: DeploymentRules, fill: _Fill, stage: int, spent: float
) -> LedgerBound:
    """Spread the money left after ``spent`` USD over the stages from ``stage`` on.

    The optimum mixes two plans that are both best at one price lambda of money, one above and one
    below the money left; secant steps reach it exactly. The value is per query left.
    """
    parts, stages, lengths, kinds = _segment_kinds(instance, rules)
    first = int(np.searchsorted(stages, stage))
    stages, lengths, kinds = stages[first:], lengths[first:], kinds[first:]
    queries, present = int(lengths.sum()), np.unique(kinds).tolist()
    total = max(0.0, rules.budget * rules.horizon - spent)

    def solve(price: float) -> tuple[float, Floats]:
        """Reward and spend per stage of the Lagrangian's optimum, summed over queries."""
        found = np.zeros((len(parts), 2))
        for kind in present:
            found[kind] = fill(instance, rules, parts[kind], price)
        gained, paid = found[kinds].T * lengths
        spend = np.zeros(rules.num_stages)
        np.add.at(spend, stages, paid)
        return float(gained.sum()), spend

    price, most, least = 0.0, solve(0.0), (0.0, np.zeros(rules.num_stages))
    if most[1].sum() <= total:
        return LedgerBound(most[0] / queries, 0.0, most[1] / rules.stage_lengths)
    while True:
        # The price at which both ends of the mixture are worth the same; a better plan there
        # replaces one of them.
        price = (most[0] - least[0]) / float(most[1].sum() - least[1].sum())
        trial = solve(price)
        gain = trial[0] - least[0] - price * float(trial[1].sum() - least[1].sum())
        if gain <= _ROUNDING * most[0]:
            break
        if trial[1].sum() > total:
            most = trial
        else:
            least = trial
    room = total - float(least[1].sum())
    spend = least[1] + room / float(most[1].sum() - least[1].sum()) * (most[1] - least[1])
    value = (least[0] + price * room) / queries
    return LedgerBound(value, price, spend / rules.stage_lengths)


class _Segment(NamedTuple):
    """Queries of one stage and one regime."""

    stage: int
    query: int  # the first of them
    length: int


_Fill = Callable[[DeploymentInstance, DeploymentRules, _Segment, float], tuple[float, float]]
"""Reward and cost per query of a segment's optimum at a price of money."""


def _segments(instance: DeploymentInstance, rules: DeploymentRules, stage: int) -> list[_Segment]:
    start = int(rules.stage_starts[stage])
    end = start + int(rules.stage_lengths[stage])
    changes = instance.change_query
    inside = slice(*np.searchsorted(changes, [start + 1, end]))
    cuts = [start, *changes[inside].tolist(), end]
    return [_Segment(stage, first, last - first) for first, last in pairwise(cuts)]


@lru_cache(maxsize=2)
def _segment_kinds(
    instance: DeploymentInstance, rules: DeploymentRules
) -> tuple[list[_Segment], Ints, Ints, Ints]:
    """Return one segment of each kind, and the stage, length and kind of all segments in order.

    Segments of a kind have the same LLMs, means and throughput, so the same optimum.
    """
    kinds: dict[tuple[int, int, bytes, bytes], int] = {}
    parts: list[_Segment] = []
    rows: list[tuple[int, int, int]] = []
    for stage, start in enumerate(rules.stage_starts.tolist()):
        there, caps = instance.available(start).tobytes(), rules.caps[stage].tobytes()
        for part in _segments(instance, rules, stage):
            key = instance.regime(part.query), part.length, there, caps
            if kinds.setdefault(key, len(parts)) == len(parts):
                parts.append(part)
            rows.append((stage, part.length, kinds[key]))
    stages, lengths, kind = np.array(rows, dtype=np.int64).T
    return parts, stages, lengths, kind


def _mean_fill(
    instance: DeploymentInstance, rules: DeploymentRules, segment: _Segment, price: float
) -> tuple[float, float]:
    """Reward and cost per query of the best deployment and shares at a price of money."""
    mu, cost = _means(instance, segment.query)
    worth = mu - price * cost
    there = np.flatnonzero(instance.available(int(rules.stage_starts[segment.stage])))
    there = there[worth[there] > 0.0]
    if not there.size:
        return 0.0, 0.0
    there = there[np.argsort(-worth[there], kind="stable")]
    cap = np.minimum(1.0, rules.caps[segment.stage, there] / segment.length)
    # Filling up from the best is optimal within M_max slots, and with equal caps beyond them.
    shares = np.minimum(np.cumsum(cap), 1.0)
    shares[1:] -= shares[:-1].copy()
    slots = rules.max_deployed
    if (shares[slots:] > 0.0).any():
        if (cap == cap[0]).all():
            shares[slots:] = 0.0
        else:
            # A null LLM with a slot of its own stands for refused queries.
            worths, caps = np.append(worth[there], 0.0), np.append(cap, 1.0)
            shares = deploy_opt(worths, np.zeros(caps.size), caps, 0.0, slots + 1).d[:-1]
    return float(mu[there] @ shares), float(cost[there] @ shares)


def _table_fill(
    instance: DeploymentInstance, rules: DeploymentRules, segment: _Segment, price: float
) -> tuple[float, float]:
    """Reward and cost per query if every row of the table goes to its best LLM at a price."""
    there = np.flatnonzero(instance.available(int(rules.stage_starts[segment.stage])))
    if not there.size:
        return 0.0, 0.0
    quality, cost = (values[:, there] for values in _row_means(instance, segment.query))
    worth = quality - price * cost
    rows, best = np.arange(len(worth)), worth.argmax(axis=1)
    served = worth[rows, best] > 0.0
    reward = np.where(served, quality[rows, best], 0.0)
    paid = np.where(served, cost[rows, best], 0.0)
    return float(reward.mean()), float(paid.mean())


def _row_means(instance: DeploymentInstance, query: int) -> tuple[Floats, Floats]:
    """Return mean reward and cost of every LLM on every row of the table at a query, (P, N)."""
    table, regime = instance.table, instance.regime(query)
    assert table is not None
    shift = instance.shift[regime]
    quality = (1.0 - np.abs(shift)) * table.quality + np.maximum(shift, 0.0)
    return quality, table.cost * instance.input_cost[regime]


def _means(instance: DeploymentInstance, query: int) -> tuple[Floats, Floats]:
    """Return the true mean reward and cost of every LLM at a query, (N,) each."""
    regime = instance.regime(query)
    return instance.mean_reward[regime], instance.mean_cost[regime]


def _stage_means(
    instance: DeploymentInstance, rules: DeploymentRules, stage: int
) -> tuple[Floats, Floats]:
    """Return the true mean reward and cost of every LLM over a stage, (N,) each."""
    parts = _segments(instance, rules, stage)
    weights = np.array([part.length for part in parts]) / sum(part.length for part in parts)
    means = np.array([_means(instance, part.query) for part in parts])  # (parts, 2, N)
    mu, cost = np.tensordot(weights, means, axes=1)
    return mu, cost


class _StagePlanner(ABC):
    """A policy that fixes the deployment and the traffic shares of a stage at its first query.

    Shares become one LLM per query, evenly interleaved, so throughput is kept to the query.

    Parameters
    ----------
    env : gymnasium.Env
        The ``LLMDeploy-v0`` it acts in, which has been reset; it reads the truth there.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        dynamics = getattr(env.unwrapped, "dynamics", None)
        if not isinstance(dynamics, DeploymentDynamics):
            raise UsageError(f"env={env}: the deployment oracles need LLMDeploy-v0")
        self._dynamics = dynamics
        self._bits = np.zeros(dynamics.num_llms + 1, dtype=np.int64)
        self._schedule: list[int] = []

    @property
    def instance(self) -> DeploymentInstance:
        """The truth of the episode that runs."""
        return self._dynamics.instance()

    def act(self, observation: Mapping[str, Any]) -> Ints:
        """Return the action; of the observation only ``deploy_now`` is needed."""
        if observation["deploy_now"]:
            self._plan_stage(int(self._dynamics.stage[0]))
        action = self._bits.copy()
        action[-1] = self._schedule.pop() if self._schedule else 0
        return action

    def _plan_stage(self, stage: int) -> None:
        rules = self._dynamics.rules
        self._bits[:] = 0
        there = np.flatnonzero(self.instance.available(int(rules.stage_starts[stage])))
        if not there.size:
            return
        mu, cost = _stage_means(self.instance, rules, stage)
        alpha = np.array(rules.alpha)[there]
        budget = self.budget(stage)
        best = deploy_opt(mu[there], cost[there], alpha, budget, rules.max_deployed)
        self._bits[there] = best.deployed
        llms = there[stage_schedule(best.d, int(rules.stage_lengths[stage]))]
        self._schedule = llms[::-1].tolist()

    @abstractmethod
    def budget(self, stage: int) -> float:
        """Return the mean USD per query of the stage that starts now."""


class StagedOracle(_StagePlanner):
    """True means, DeployOPT at every tau_k, RouteOPT's shares per query: budget b in every stage.

    The published comparator (R). `LedgerOracle` does better by moving money between stages.
    """

    def budget(self, stage: int) -> float:
        """Return b."""
        return self._dynamics.rules.budget


class LedgerOracle(_StagePlanner):
    """True means and arrivals: the whole budget spread over the stages, planned at every tau_k.

    Without a table it is the acting counterpart of `ledger_bound`, short of it by rounding and by
    the noise of costs. With a table it routes blindly; `PerQueryOracle` sees the query.
    """

    def budget(self, stage: int) -> float:
        """Return the stage's part of the money left."""
        rules, spent = self._dynamics.rules, float(self._dynamics.spend)
        plan = _spread_budget(self.instance, rules, _mean_fill, stage, spent)
        return float(plan.stage_budget[stage])


class PerQueryOracle(LedgerOracle):
    """For instances with a table: each query goes to the deployed LLM that is best for it.

    Best by reward minus lambda times cost on the query's own row, at the price lambda of money of
    `ledger_bound`, planned again at every tau_k; an LLM at its throughput cap is passed over. (R)
    The deployment is chosen greedily by that value over the table.

    Raises
    ------
    ValueError
        If the instance has no table.
    """

    def act(self, observation: Mapping[str, Any]) -> Ints:
        """Return the action for the query that comes now."""
        if observation["deploy_now"]:
            self._plan_stage(int(self._dynamics.stage[0]))
        action = self._bits.copy()
        dynamics, deployed = self._dynamics, self._bits[:-1] == 1
        worth = self._worth[int(dynamics.table_row)]
        spare = deployed & (dynamics.used[0] < dynamics.rules.caps[dynamics.stage[0]])
        # A query that costs more than it is worth goes to an LLM outside, that is, is refused.
        action[-1] = np.where(spare, worth, np.where(deployed, -np.inf, 0.0)).argmax()
        return action

    def _plan_stage(self, stage: int) -> None:
        instance, rules = self.instance, self._dynamics.rules
        start = int(rules.stage_starts[stage])
        if instance.table is None:
            raise UsageError("PerQueryOracle needs an instance with a table; use LedgerOracle")
        plan = _spread_budget(instance, rules, _table_fill, stage, float(self._dynamics.spend))
        quality, cost = _row_means(instance, start)
        self._worth = quality - plan.price * cost
        self._bits[:] = 0
        best = np.zeros(len(cost))
        there = np.flatnonzero(instance.available(start)).tolist()
        for _ in range(min(rules.max_deployed, len(there))):
            gains = {llm: float(np.maximum(best, self._worth[:, llm]).mean()) for llm in there}
            llm = max(there, key=gains.__getitem__)
            there.remove(llm)
            best = np.maximum(best, self._worth[:, llm])
            self._bits[llm] = 1
