"""B lanes of the deployment problem: what draws the randomness, keeps the arrays and steps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.deployment.dynamics import (
    INPUT,
    NUM_STREAMS,
    REWARD,
    ROW,
    Floats32,
    Ledger,
    Masks,
    Pending,
    QueryOutcome,
    Shown,
    StageOutcome,
    State,
    Stream,
    Terms,
    Truth,
    allow,
    answer,
    log_costs,
    show,
)
from llmqueue_gym.deployment.instance import (
    Z_LIMIT,
    DeploymentInstance,
    QueryTable,
    lognormal_mean,
)
from llmqueue_gym.deployment.rules import Bools, DeploymentRules, Floats, Ints


def _booked(name: str) -> Any:
    """Return the property that reads an account of the ledger."""

    def read(lanes: DeploymentDynamics) -> Any:
        values = getattr(lanes._ledger, name)
        return values[0] if lanes.num_lanes == 1 else values.copy()

    return property(read)


class DeploymentDynamics:
    """B copies of the deployment problem.

    At the first query of a stage (`deploy_now`) at most M_max of the LLMs that are there are
    deployed and stay for the stage, even if they retire in it. Every query goes to one LLM.
    One that is not deployed refuses: reward and cost 0.

    Every query has one draw each for the table row, the reward, the input and the output cost,
    shared by all LLMs: the outcome depends on the seed, the query and the LLM only.

    The ledger is the bandits-with-knapsacks rule with budget B = b T: the query whose cost would
    exceed it, and every later one, earns 0 and is not paid. What the sum of T costs may round up,
    a share of T machine epsilons, far below one query, does not count. An answer above an LLM's
    throughput cap of ceil(alpha_m * stage length) queries earns 0 in the ledger too, else the caps
    would bind nobody, but is paid: the LLM did answer and its provider charges for it. So exceeding
    a cap is never better than refusing the query, which is free.

    A query costs O(N) for the observation, whatever T.

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
    deployed : ndarray of bool, shape (B, N)
        The deployment.
    count, used : ndarray of int64, shape (B, N)
        Queries answered by every LLM since the reset, and in this stage.
    """

    def __init__(
        self, num_lanes: int, num_llms: int, rules: DeploymentRules, context_dim: int = 0
    ) -> None:
        self.num_lanes, self.num_llms = num_lanes, num_llms
        self.rules, self.context_dim = rules, context_dim
        total, rounding = rules.budget * rules.horizon, float(np.finfo(np.float64).eps)
        self._terms = Terms(
            np.append(rules.stage_starts, rules.horizon),
            np.ascontiguousarray(rules.caps),
            rules.max_deployed,
            rules.switching_cost,
            rules.budget,
            total * (1.0 + rules.horizon * rounding),
        )

        def ints(*more: int) -> Ints:
            return np.zeros((num_lanes, *more), dtype=np.int64)

        def floats(*more: int) -> Floats:
            return np.zeros((num_lanes, *more))

        def bools(*more: int) -> Bools:
            return np.zeros((num_lanes, *more), dtype=np.bool_)

        n, delay = num_llms, rules.reward_delay
        self._state = State(
            ints(), ints(), ints(), bools(n), ints(n), ints(n), ints(n), floats(n), floats(n)
        )
        self._pending = Pending(ints(delay), floats(delay), floats(delay))
        self._ledger = Ledger(
            floats(), floats(), floats(), floats(), bools(), ints(), ints(), ints()
        )
        self._record = tuple(self._state), tuple(self._pending), tuple(self._ledger)
        self.query, self.stage = self._state.query, self._state.stage
        self.deployed = self._state.deployed
        self.count, self.used = self._state.answers, self._state.used
        self._lanes = np.arange(num_lanes)
        self._instances: list[DeploymentInstance | None] = [None] * num_lanes
        self._generators: list[Sequence[np.random.Generator]] = [()] * num_lanes
        self._table: QueryTable | None = None
        self._stream: Stream | None = None  # before the first reset
        # What `show` says of the state, as long as it is true; handed out once.
        self._shown: Shown | None = None
        self._masks: Masks | None = None
        self._draws = np.zeros((num_lanes, int(rules.stage_lengths.max()), NUM_STREAMS))

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
        if self._stream is None:
            self._allocate(instances[0])
        index = np.asarray(lanes)
        for array in (*self._state, *self._pending, *self._ledger):
            array[index] = 0
        self._pending.llm[index] = -1
        for lane, instance, streams in zip(lanes, instances, generators, strict=True):
            self._generators[lane] = streams
            if instance is not self._instances[lane]:
                self._load(lane, instance)
            self._state.regime[lane] = instance.regime(0)
        self._draw(index)
        self._shown = self._masks = None

    def _allocate(self, first: DeploymentInstance) -> None:
        """Make room for the truth about every lane."""
        lanes, n = self.num_lanes, self.num_llms
        by_regime = (lanes, len(first.change_query), n)
        self._stream = Stream(
            np.zeros((lanes, n), dtype=np.int64),
            np.zeros((lanes, n), dtype=np.int64),
            np.zeros(by_regime[:2], dtype=np.int64),
            np.zeros(by_regime, dtype=np.float32),
        )
        self._table = first.table
        none = np.zeros((0, n))
        self._truth = Truth(
            np.zeros(by_regime),
            np.zeros(by_regime),
            np.zeros(by_regime),
            np.zeros((lanes, *first.reward_cdf.shape)),
            np.array(first.reward_atoms),
            none if self._table is None else np.ascontiguousarray(self._table.quality),
            none if self._table is None else np.ascontiguousarray(self._table.cost),
        )
        self._log_sd, self._log_mean = (np.zeros((lanes, n, 2)) for _ in range(2))

    def _load(self, lane: int, instance: DeploymentInstance) -> None:
        stream, truth = self._stream, self._truth
        assert stream is not None
        assert instance.table is self._table, "lanes must share one table"
        self._instances[lane] = instance
        stream.arrival[lane], stream.retire[lane] = instance.arrival_query, instance.retire_query
        stream.change[lane], stream.list_cost[lane] = instance.change_query, instance.list_cost
        truth.input_cost[lane], truth.output_cost[lane] = instance.input_cost, instance.output_cost
        truth.shift[lane], truth.cdf[lane] = instance.shift, instance.reward_cdf
        self._log_sd[lane] = instance.log_sd.T
        self._log_mean[lane] = np.log(lognormal_mean(instance.log_sd)).T

    def _draw(self, lanes: Ints) -> None:
        """Draw the queries of the stage that some lanes begin."""
        lengths = self.rules.stage_lengths[self.stage[lanes]]
        for lane, length in zip(lanes.tolist(), lengths.tolist(), strict=True):
            rows, rewards, *costs = self._generators[lane]
            draws = self._draws[lane, :length]
            draws[:, ROW], draws[:, REWARD] = rows.random(length), rewards.random(length)
            for column, normal in enumerate(costs, INPUT):
                draws[:, column] = np.clip(normal.standard_normal(length), -Z_LIMIT, Z_LIMIT)

    # ------------------------------------------------------------------- step

    def allowed(self, bits: Bools) -> Bools:
        """Return the deployment that bits come to now, shape (B, N).

        LLMs that are not there are dropped, then all beyond the first M_max by index.

        Parameters
        ----------
        bits : ndarray of bool, shape (B, N)
            LLMs to deploy.
        """
        assert self._stream is not None, "reset first"
        allowed = np.zeros_like(bits)
        for lane, query in enumerate(self.query):
            allow(self._stream, self._terms.max_deployed, lane, query, bits[lane], allowed[lane])
        return allowed

    def step(self, bits: Bools, llms: Ints, lanes: Ints | None = None) -> QueryOutcome:
        """Answer one query in every lane, or n queries in some.

        Parameters
        ----------
        bits : ndarray of bool, shape (n, N)
            LLMs to deploy; read at update points only.
        llms : ndarray of int64, shape (n,)
            The LLM that answers.
        lanes : ndarray of int64, shape (n,), optional
            The lane of each query; none of them may have ended. One that stands there several
            times answers several queries, within its stage.
        """
        assert self._stream is not None, "reset first"
        lanes = self._lanes if lanes is None else lanes
        bits, llms = np.ascontiguousarray(bits), np.ascontiguousarray(llms)
        terms, factors = self._terms, np.empty((len(lanes), 2))
        if self._table is None:
            position = self.query - terms.starts[self.stage]
            log_costs(position, self._draws, lanes, llms, self._log_sd, self._log_mean, factors)
            np.exp(factors, out=factors)
        outcome = QueryOutcome.empty(len(lanes), self.num_llms)
        self._shown, self._masks = shown, masks = self._room()
        begun = answer(
            (tuple(terms), tuple(self._stream), tuple(self._truth)),
            self._draws,
            (lanes, bits, llms, factors),
            self._record,
            (tuple(outcome), tuple(shown), masks),
        )
        if begun:
            self._draw(np.unique(lanes[self.deploy_now[lanes]]))
        return outcome

    def run_stage(self, bits: Bools, llms: Ints) -> StageOutcome:
        """Answer all queries of a stage of the only lane.

        Parameters
        ----------
        bits : ndarray of bool, shape (N,)
            LLMs to deploy.
        llms : ndarray of int64, shape (L,)
            The LLM that answers each query of the stage.
        """
        assert self.deploy_now[0], "a stage runs from its first query"
        length, before = len(llms), self.available[0]
        queries = self.step(np.tile(bits, (length, 1)), llms, np.zeros(length, dtype=np.int64))
        return StageOutcome(
            _total(queries.reward),
            _total(queries.ledger_reward),
            _total(queries.cost),
            float(queries.switching_cost[0]),
            np.bincount(queries.llm[queries.llm >= 0], minlength=self.num_llms),
            int(queries.refused.sum()),
            int(queries.throttled.sum()),
            bool(queries.projected[0]),
            bool(queries.over_budget[-1]),
            self.available[0] & ~before,
        )

    # ---------------------------------------------------------------- observe

    @property
    def ready(self) -> bool:
        """Whether every lane has an episode, which the first reset begins."""
        return self._stream is not None

    @property
    def available(self) -> Bools:
        """LLMs that can be deployed now, shape (B, N); none before the first reset."""
        if self._stream is None:
            return np.zeros_like(self.deployed)
        query = self.query[:, None]
        return np.asarray((self._stream.arrival <= query) & (query < self._stream.retire))

    @property
    def deploy_now(self) -> Bools:
        """Whether the next query is an update point, shape (B,)."""
        return np.asarray(self.query == self._terms.starts[self.stage])

    @property
    def ended(self) -> Bools:
        """Whether all T queries are done, shape (B,)."""
        return np.asarray(self.query >= self.rules.horizon)

    def _room(self) -> tuple[Shown, Masks]:
        """Return new arrays for `show` to write in."""
        lanes, n = self.num_lanes, self.num_llms
        shown = Shown(
            np.empty((lanes, n), np.int8),
            np.empty((lanes, n), np.int8),
            np.empty((lanes, n), np.float32),
            np.empty((lanes, n), np.float32),
            np.empty((lanes, n), np.float32),
            np.empty((lanes, n), np.float32),
            np.empty((lanes, n), np.float32),
            np.empty(lanes, np.int64),
            np.empty((lanes, 1), np.float32),
            np.empty((lanes, 1), np.float32),
            np.empty((lanes, 1), np.float32),
            np.empty((lanes, 1), np.float32),
        )
        return shown, np.empty((lanes, 3 * n), np.int8)

    def _look(self) -> tuple[Shown, Masks]:
        """Return what `show` says of the state now."""
        if self._shown is None or self._masks is None:
            assert self._stream is not None, "reset first"
            self._shown, self._masks = self._room()
            spend = self._ledger.spend
            show(self._terms, self._stream, self._state, spend, self._shown, self._masks)
        return self._shown, self._masks

    def observe_first(self) -> dict[str, Any]:
        """Return what the provider of the first lane sees; see `observe`."""
        return {name: values[0] for name, values in self.observe().items()}

    def observe(self) -> dict[str, NDArray[Any]]:
        """Return what the provider sees now, freshly allocated; leading axis B.

        Returns
        -------
        dict of ndarrays
            See the observation table of ``LLMDeployEnv``; ``deploy_now`` has shape (B,).
        """
        shown, _ = self._look()
        self._shown = None
        observation: dict[str, NDArray[Any]] = dict(zip(Shown._fields, shown, strict=True))
        if self._table is not None and self.context_dim:
            context: Floats32 = self._table.contexts[self._next_row()]
            context[self.ended] = 0.0
            observation["context"] = context
        return observation

    def _next_row(self) -> Ints:
        """Table rows of the queries to route next, any after the last; shape (B,)."""
        assert self._table is not None
        position = self.query - self._terms.starts[self.stage]
        position = np.minimum(position, self.rules.stage_lengths[self.stage] - 1)
        row = self._draws[self._lanes, position, ROW] * len(self._table.contexts)
        return np.asarray(row, dtype=np.int64)

    def action_masks(self) -> Masks:
        """Legal actions, shape (B, 2 N + N): two entries per deployment bit, then the routing."""
        if self._masks is None:
            self._look()
        assert self._masks is not None
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

    def _of_regime(self, means: Callable[[DeploymentInstance], Floats]) -> Floats:
        """Return what stands now in a table by regime, for every LLM."""
        regimes = enumerate(self._state.regime)
        now = [means(self.instance(lane))[regime] for lane, regime in regimes]
        return np.array(self._per_lane(np.array(now)))

    @property
    def mean_reward(self) -> Floats:
        """mu_m of every LLM now, those still to come included; (N,), several lanes (B, N)."""
        return self._of_regime(lambda instance: instance.mean_reward)

    @property
    def mean_cost(self) -> Floats:
        """c_m in USD per query now; (N,), several lanes (B, N)."""
        return self._of_regime(lambda instance: instance.mean_cost)

    @property
    def arrival_query(self) -> Ints:
        """First query at which each LLM is there; (N,), several lanes (B, N)."""
        assert self._stream is not None, "reset first"
        return np.array(self._per_lane(self._stream.arrival))

    @property
    def retire_query(self) -> Ints:
        """First query at which each LLM is gone; (N,), several lanes (B, N)."""
        assert self._stream is not None, "reset first"
        return np.array(self._per_lane(self._stream.retire))

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

    spend = _booked("spend")
    """USD spent, after the ledger's end too; a number, several lanes (B,)."""
    ledger_spend = _booked("ledger_spend")
    """USD paid within the ledger, at most b T and rounding; a number, several lanes (B,)."""
    total_reward = _booked("total_reward")
    """Sum of all rewards, seen or not; a number, several lanes (B,)."""
    ledger_score = _booked("ledger_score")
    """Sum of the rewards within the ledger; divide by T for the mean. A number or (B,)."""
    refused = _booked("refused")
    """Queries routed to an LLM that was not deployed; a number, several lanes (B,)."""
    violations = _booked("violations")
    """Queries served, and paid, above an LLM's throughput cap; a number, several lanes (B,)."""
    projected = _booked("projected")
    """Update points whose bits were projected; a number, several lanes (B,)."""


def _total(values: Floats) -> float:
    """Return the sum, added up in order like the totals; NumPy's ``sum`` takes another."""
    return float(np.add.accumulate(values)[-1])
