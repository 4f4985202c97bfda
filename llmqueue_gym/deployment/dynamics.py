"""The deployment problem, compiled: how one query is answered, for every lane and way to play it.

`answer` holds the problem; a step and a stage are loops over it. Of what the randomness consists,
and who calls it, see `llmqueue_gym.deployment.lanes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import borrowing
from llmqueue_gym.deployment.rules import MAX_COUNT, Bools, Floats, Ints

Masks = NDArray[np.int8]
Floats32 = NDArray[np.float32]

NUM_STREAMS = 4
"""Table rows, rewards, input costs and output costs each have a stream of their own."""
ROW, REWARD, INPUT = range(3)  # columns of the draws; the output costs' is the last
_TINY = 1e-300


class Terms(NamedTuple):
    """The rules as the kernels read them."""

    starts: Ints  # (K + 1,) tau_k, then T
    caps: Ints  # (K, N) queries an LLM may take in a stage
    max_deployed: int
    switching_cost: float
    budget: float  # a query, b
    limit: float  # of the ledger: b T and what adding up costs may round


class Stream(NamedTuple):
    """Which LLMs are there, at what list price, in every lane."""

    arrival: Ints  # (B, N)
    retire: Ints  # (B, N)
    change: Ints  # (B, G) first query of every regime
    list_cost: Floats32  # (B, G, N)


class Truth(NamedTuple):
    """What answers are worth and cost, in every lane; see `DeploymentInstance`."""

    input_cost: Floats  # (B, G, N)
    output_cost: Floats  # (B, G, N)
    shift: Floats  # (B, G, N)
    cdf: Floats  # (B, N, A - 1)
    atoms: Floats  # (A,)
    quality: Floats  # (P, N); no rows without a table
    cost: Floats  # (P, N)


class State(NamedTuple):
    """Where every lane stands."""

    query: Ints  # (B,) t
    stage: Ints  # (B,) k
    regime: Ints  # (B,)
    deployed: Bools  # (B, N)
    answers: Ints  # (B, N) queries answered since the reset
    used: Ints  # (B, N) and in this stage
    rated: Ints  # (B, N) rewards seen
    reward_sum: Floats  # (B, N) of those seen
    cost_sum: Floats  # (B, N)


class Pending(NamedTuple):
    """Rewards that every lane has not yet seen, at the query modulo the delay."""

    llm: Ints  # (B, delay) whose they are, -1 nobody's
    reward: Floats  # (B, delay)
    ledger_reward: Floats  # (B, delay)


class Ledger(NamedTuple):
    """What every lane has paid and earned; all of shape (B,)."""

    spend: Floats
    ledger_spend: Floats
    total_reward: Floats
    ledger_score: Floats
    exhausted: Bools
    refused: Ints
    violations: Ints
    projected: Ints


class QueryOutcome(NamedTuple):
    """What a provider sees of n queries; arrays of shape (n,).

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
    throttled: Bools  # above the cap: paid, and nothing in the ledger
    projected: Bools
    over_budget: Bools
    arrived_now: Bools  # (n, N)

    @classmethod
    def empty(cls, queries: int, num_llms: int) -> QueryOutcome:
        """Return room for the outcome of some queries, with anything in it."""
        return cls(
            np.empty(queries, np.int64),
            np.empty(queries),
            np.empty(queries),
            np.empty(queries, np.int64),
            np.empty(queries),
            np.empty(queries),
            np.empty(queries, np.bool_),
            np.empty(queries, np.bool_),
            np.empty(queries, np.bool_),
            np.empty(queries, np.bool_),
            np.empty((queries, num_llms), np.bool_),
        )

    @classmethod
    def nothing(cls, queries: int, num_llms: int) -> QueryOutcome:
        """Return the outcome in which nothing was done: nobody answered, earned or was paid."""
        outcome = cls.empty(queries, num_llms)
        for name, values in zip(cls._fields, outcome, strict=True):
            values[:] = -1 if name.endswith("llm") else 0
        return outcome


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


class Shown(NamedTuple):
    """What a provider sees before the next query of every lane."""

    arrived: Masks  # (B, N)
    deployed: Masks  # (B, N)
    cost_prior: Floats32  # (B, N)
    count: Floats32  # type: ignore[assignment]  # (B, N); a tuple has a method of that name
    mean_reward: Floats32  # (B, N)
    mean_cost: Floats32  # (B, N)
    throughput_left: Floats32  # (B, N)
    deploy_now: Ints  # (B,)
    stage_progress: Floats32  # (B, 1)
    query_progress: Floats32  # (B, 1)
    spent: Floats32  # (B, 1)
    budget_left: Floats32  # (B, 1)


@borrowing
def is_there(stream: Stream, lane: int, llm: int, query: int) -> bool:
    """Whether an LLM can be deployed at a query."""
    return bool(stream.arrival[lane, llm] <= query < stream.retire[lane, llm])


@borrowing
def allow(stream: Stream, most: int, lane: int, query: int, bits: Bools, allowed: Bools) -> None:
    """Drop the bits of LLMs that are not there, then all beyond the first ``most`` by index."""
    left = most
    for llm in range(len(bits)):
        allowed[llm] = bits[llm] and left > 0 and is_there(stream, lane, llm, query)
        left -= allowed[llm]


@borrowing
def deploy(deployed: Bools, lane: int, bits: Bools, allowed: Bools) -> tuple[int, bool]:
    """Deploy what is allowed; return how many LLMs join, and whether other bits were given."""
    joining, projected = 0, False
    for llm in range(len(bits)):
        projected |= bits[llm] != allowed[llm]
        joining += allowed[llm] and not deployed[lane, llm]
        deployed[lane, llm] = allowed[llm]
    return joining, projected


@borrowing
def exchange(
    pending: Pending, lane: int, slot: int, llm: int, reward: float, ledger_reward: float
) -> tuple[int, float, float]:
    """Put a reward where the one that is due now stands, and return that."""
    due = pending.llm[lane, slot], pending.reward[lane, slot], pending.ledger_reward[lane, slot]
    pending.llm[lane, slot] = llm
    pending.reward[lane, slot], pending.ledger_reward[lane, slot] = reward, ledger_reward
    return due


@borrowing
def log_costs(
    position: Ints,
    draws: Floats,
    lanes: Ints,
    llms: Ints,
    sd: Floats,
    mean: Floats,
    out: Floats,
) -> None:
    """Write the logarithms of the factors on the input and the output cost of n answers, (n, 2).

    ``position`` (B,) in the stage is counted up, for lanes that answer several queries. The caller
    takes ``np.exp`` of what is written: a compiled ``math.exp`` may differ in the last bit.
    """
    for i in range(len(lanes)):
        lane, llm = lanes[i], llms[i]
        for part in range(2):
            z = draws[lane, position[lane], INPUT + part]
            out[i, part] = sd[lane, llm, part] * z - mean[lane, llm, part]
        position[lane] += 1


@borrowing
def draw_answer(
    truth: Truth, lane: int, regime: int, llm: int, row: float, uniform: float, factors: Floats
) -> tuple[float, float]:
    """Return the reward and the cost of one LLM's answer.

    Drift w takes the reward to 1 with probability w, or to 0 with probability -w: so the largest
    draws, or the smallest, and the others are stretched over what is left.
    """
    shift, price = truth.shift[lane, regime, llm], truth.input_cost[lane, regime, llm]
    x = (uniform - max(-shift, 0.0)) / max(1.0 - abs(shift), _TINY)
    if len(truth.quality):
        at = int(row * len(truth.quality))
        reward, cost = truth.quality[at, llm], price * truth.cost[at, llm]
    else:
        atom = 0
        while atom < truth.cdf.shape[2] and truth.cdf[lane, llm, atom] <= x:
            atom += 1
        reward = truth.atoms[atom]
        cost = price * factors[0] + truth.output_cost[lane, regime, llm] * factors[1]
    if x < 0.0:
        reward = 0.0
    elif x >= 1.0:
        reward = 1.0
    return reward, cost


# `answer` takes plain tuples and names their entries itself: to read the names of as many arrays
# from Python takes numba longer than a query.
Arrays = tuple[Any, ...]
Problem = tuple[Arrays, Arrays, Arrays]
"""What `Terms`, `Stream` and `Truth` hold."""
Queries = tuple[Ints, Bools, Ints, Floats]
"""Lanes (n,), deployment bits (n, N), LLMs that answer (n,), factors on their costs (n, 2)."""
Record = tuple[Arrays, Arrays, Arrays]
"""What `State`, `Pending` and `Ledger` hold."""
Seen = tuple[Arrays, Arrays, Masks]
"""What `QueryOutcome` and `Shown` hold, and the legal actions."""


@borrowing
def answer(problem: Problem, draws: Floats, queries: Queries, record: Record, seen: Seen) -> int:
    """Answer the next query of ``lanes[0]``, then of ``lanes[1]``, and so on.

    The bits (n, N) are read at update points. A lane that stands there several times answers
    several queries, at most to the end of its stage: the draws hold no more. Then `show` every
    lane. Return how many lanes began a stage, whose queries are to be drawn.
    """
    terms, stream, truth = Terms(*problem[0]), Stream(*problem[1]), Truth(*problem[2])
    lanes, bits, llms, factors = queries
    state, pending, ledger = State(*record[0]), Pending(*record[1]), Ledger(*record[2])
    outcome, shown, masks = QueryOutcome(*seen[0]), Shown(*seen[1]), seen[2]
    begun, delay = 0, pending.llm.shape[1]
    for i in range(len(lanes)):
        lane, llm = lanes[i], llms[i]
        query, stage, regime = state.query[lane], state.stage[lane], state.regime[lane]
        position = query - terms.starts[stage]

        # At an update point: deploy. Each LLM that joins costs, the first stage excepted.
        switching, projected = 0.0, False
        if position == 0:
            allowed = outcome.arrived_now[i]  # whose room is free until the clock moves
            allow(stream, terms.max_deployed, lane, query, bits[i], allowed)
            joining, projected = deploy(state.deployed, lane, bits[i], allowed)
            ledger.projected[lane] += projected
            switching = terms.switching_cost * joining if stage > 0 else 0.0

        # Route: an LLM that is not deployed refuses; above its cap it serves in vain.
        refused = not state.deployed[lane, llm]
        throttled = not refused and state.used[lane, llm] >= terms.caps[stage, llm]
        reward, cost, answered = 0.0, 0.0, -1
        if not refused:
            answered = llm
            row, uniform = draws[lane, position, ROW], draws[lane, position, REWARD]
            reward, cost = draw_answer(truth, lane, regime, llm, row, uniform, factors[i])
            state.answers[lane, llm] += 1
            state.used[lane, llm] += 1
            state.cost_sum[lane, llm] += cost
        ledger.refused[lane] += refused
        ledger.violations[lane] += throttled

        # Charge: the query that would exceed the budget, and every later one, earns nothing.
        charge = cost + switching
        ledger.spend[lane] += charge
        ledger.total_reward[lane] += reward
        ledger.exhausted[lane] |= ledger.ledger_spend[lane] + charge > terms.limit
        ledger_reward = 0.0
        if not ledger.exhausted[lane]:
            ledger_reward = 0.0 if throttled else reward
            ledger.ledger_spend[lane] += charge
            ledger.ledger_score[lane] += ledger_reward

        # Show this query's reward, or under a delay the one that is due now.
        rated = answered
        if delay:
            due = exchange(pending, lane, query % delay, answered, reward, ledger_reward)
            rated, reward, ledger_reward = due
        if rated >= 0:
            state.rated[lane, rated] += 1
            state.reward_sum[lane, rated] += reward

        # The clock moves: LLMs arrive, prices and means change, a stage begins.
        state.query[lane] = query = query + 1
        for m in range(state.deployed.shape[1]):
            outcome.arrived_now[i, m] = stream.arrival[lane, m] == query < stream.retire[lane, m]
        while regime + 1 < stream.change.shape[1] and stream.change[lane, regime + 1] <= query:
            regime += 1
        state.regime[lane] = regime
        if terms.starts[stage + 1] == query < terms.starts[-1]:
            state.stage[lane] += 1
            state.used[lane] = 0
            begun += 1
        outcome.llm[i], outcome.rated_llm[i] = answered, rated
        outcome.reward[i], outcome.ledger_reward[i] = reward, ledger_reward
        outcome.cost[i], outcome.switching_cost[i] = cost, switching
        outcome.refused[i], outcome.throttled[i] = refused, throttled
        outcome.projected[i], outcome.over_budget[i] = projected, ledger.exhausted[lane]
    show(terms, stream, state, ledger.spend, shown, masks)
    return begun


@borrowing
def show(
    terms: Terms, stream: Stream, state: State, spend: Floats, shown: Shown, masks: Masks
) -> None:
    """Write what a provider sees before the next query, and the legal actions (B, 2 N + N)."""
    num_llms = state.deployed.shape[1]
    horizon = terms.starts[-1]
    for lane in range(len(state.query)):
        query, stage, regime = state.query[lane], state.stage[lane], state.regime[lane]
        start, length = terms.starts[stage], terms.starts[stage + 1] - terms.starts[stage]
        updating = query == start
        anyone = False
        for llm in range(num_llms):
            there = is_there(stream, lane, llm, query)
            deployed = state.deployed[lane, llm]
            count, rated = state.answers[lane, llm], state.rated[lane, llm]
            shown.arrived[lane, llm], shown.deployed[lane, llm] = there, deployed
            shown.cost_prior[lane, llm] = stream.list_cost[lane, regime, llm] if there else 0.0
            shown.count[lane, llm] = count
            shown.mean_reward[lane, llm] = state.reward_sum[lane, llm] / max(rated, 1)
            shown.mean_cost[lane, llm] = state.cost_sum[lane, llm] / max(count, 1)
            left = 0
            if there or (deployed and not updating):  # one that retires serves to the stage's end
                left = max(terms.caps[stage, llm] - state.used[lane, llm], 0)
            shown.throughput_left[lane, llm] = left / length
            routable = there if updating else deployed
            anyone = anyone or routable
            masks[lane, 2 * llm], masks[lane, 2 * llm + 1] = 1, there
            masks[lane, 2 * num_llms + llm] = routable
        if not anyone:
            masks[lane, 2 * num_llms] = 1  # one action stays legal
        shown.deploy_now[lane] = updating
        shown.stage_progress[lane, 0] = (query - start) / length
        shown.query_progress[lane, 0] = query / horizon
        shown.spent[lane, 0] = spend[lane] / (terms.budget * horizon)
        budget_left = 0.0
        if query < horizon:
            budget_left = (terms.budget * horizon - spend[lane]) / terms.budget / (horizon - query)
        shown.budget_left[lane, 0] = min(max(budget_left, -MAX_COUNT), MAX_COUNT)
