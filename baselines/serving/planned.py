"""Planning on estimates: certainty equivalence, and the linear program's mix of replicas."""

from __future__ import annotations

from collections import deque

import numpy as np
from scipy.optimize import linprog

from baselines.interface import ServeProblem
from baselines.registry import agent
from baselines.serving.base import Pairs, Seen, ServeAgent, best_pairs
from baselines.serving.estimates import LEAST_IMPATIENCE, MAX_KINDS, Array, Floats, Ints
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.oracles import Chain, SmallProblem

PLAN_STATES = 2_500
"""States of a plan; queues beyond are dispatched as at the largest planned."""

PLAN_CAP = 60
"""Most waiting queries of a kind in a plan."""


@agent("known-value-iteration", source="certainty equivalence with the true p", known=True)
@agent("value-iteration", source="certainty equivalence, ours")
class ValueIteration(ServeAgent):
    """The optimal policy of what has been estimated, computed anew as slots grow in number.

    Kinds of query are their contexts; arrivals and patience are counted, p is a Thompson sample,
    and answers end at the estimated rate. It plays small
    problems only: few kinds, replicas of one place that keep their LLM.

    Parameters
    ----------
    problem, seed, known, explore
        As `ServeAgent`.
    first, growth : float
        Slot of the first plan, and factor from one to the next.

    Raises
    ------
    UsageError
        If the problem is not small.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        first: int = 50,
        growth: float = 1.3,
    ) -> None:
        super().__init__(problem, seed, known, explore)
        if max(problem.places) > 1 or problem.update_every:
            raise UsageError(
                f"places={list(problem.places)}, update_every={problem.update_every}: plans need "
                "replicas of one place that keep their LLM; use 'rollout'"
            )
        self._plan_at = float(checks.count("first", first))
        self.growth = checks.number("growth", growth, "(1, inf)")
        self._chain: Chain | None = None
        self._policy: Ints = np.zeros(0, dtype=np.int64)

    def dispatch(self, seen: Seen) -> Pairs:
        """Follow the plan; before the first one, and for kinds it does not know, mu p decides."""
        kinds = self.kinds.of(seen.contexts)
        planned = 0 if self._chain is None else self._chain.waiting.shape[1]
        if self.slot >= self._plan_at or (planned and kinds.max() >= planned):
            planned = self._plan(seen.hosts)
        if self._chain is None or kinds.max() >= planned:
            rates = self.service.rates(seen.hosts, np.ones_like(seen.active))
            scores = self.success.sample(seen.contexts)[:, seen.hosts] * rates
            return best_pairs(scores, seen.room, self.problem.dispatches)
        busy = np.zeros(len(seen.hosts), dtype=np.int64)
        busy[seen.active > 0] = self.kinds.of(seen.serving[seen.active > 0]) + 1
        chain = self._chain
        state = [*np.bincount(kinds, minlength=planned)[:planned], *busy]
        given = chain.serving[self._policy[chain.find(state)]]
        pairs, left = [], kinds.copy()
        for replica in np.flatnonzero(given != busy).tolist():
            slot = int(np.argmax(left == given[replica] - 1))
            left[slot] = -1
            pairs.append((slot, replica))
        return pairs

    def _plan(self, hosts: Ints) -> int:
        """Solve the estimated problem, from the last plan on; return the kinds it knows."""
        while self._plan_at <= self.slot:
            self._plan_at *= self.growth
        kinds = self.kinds
        if not kinds.few:
            raise UsageError(
                f"more than {MAX_KINDS} different contexts: plans need few kinds of query; "
                "use 'rollout'"
            )
        contexts, count = np.array(kinds.contexts), len(kinds.contexts)
        shares = (kinds.arrivals[:count] + 1.0) / (kinds.arrivals[:count] + 1.0).sum()
        theta = kinds.impatience()[:count]
        rates = self.service.rates(hosts, np.ones_like(hosts))
        rewards = self.problem.rewards
        estimated = SmallProblem(
            self.problem.arrival_rate * shares,
            np.repeat(rates[:, None], count, axis=1),
            self.success.sample(contexts)[:, hosts].T,
            np.where(theta <= LEAST_IMPATIENCE, 0.0, theta) if not self.known else theta,
            holding=rewards["holding"],
            kept=rewards["kept"],
            lost=rewards["lost"],
        )
        states = PLAN_STATES if not estimated.impatience.any() else PLAN_STATES // 4
        busy = (count + 1) ** len(hosts)
        cap = max(1, min(PLAN_CAP, int((states / busy) ** (1 / count)) - 1))
        self._chain = Chain(estimated, cap)
        _, self._policy = self._chain.solve()
        return count


@agent("known-static-mix", source="linear program with the true p", known=True)
@agent("static-mix", source="linear program on the estimates")
class StaticMix(ServeAgent):
    """Every attempt draws its replica from the least loading mix, and waits for it.

    min rho subject to sum_r x_tr mu_r p_tr >= lambda_t, sum_t x_tr <= rho: an attempt of query t
    goes to replica r with a probability in proportion to x_tr mu_r. Queries t are the last
    ``remembered`` that arrived; another one goes by that of the nearest context.

    Parameters
    ----------
    problem, seed, known, explore
        As `ServeAgent`.
    remembered : int
        Queries that the program is solved for.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        remembered: int = 64,
    ) -> None:
        super().__init__(problem, seed, known, explore)
        self.recent = deque(maxlen=checks.count("remembered", remembered))
        self._goes: dict[int, int] = {}  # number -> replica
        self._mix: Floats = np.zeros((0, problem.num_replicas))
        self._contexts: Array = np.zeros((0, problem.context_dim))
        self._solve_at = 0.0

    def dispatch(self, seen: Seen) -> Pairs:
        """Send the first who goes to each replica with room."""
        if self.slot >= self._solve_at:
            self._solve_at = max(20.0, 1.2 * self.slot)
            self._solve(seen.hosts)
        room, goes = seen.room.copy(), {}
        pairs: list[tuple[int, int]] = []
        for slot, number in enumerate(seen.numbers.tolist()):
            replica = self._goes.get(number)
            if replica is None:
                replica = self._draw(seen.contexts[slot])
            goes[number] = replica
            if room[replica] > 0 and len(pairs) < self.problem.dispatches:
                room[replica] -= 1
                pairs.append((slot, replica))
                del goes[number]  # an attempt more is drawn anew
        self._goes = goes
        return pairs

    def _draw(self, context: Array) -> int:
        nearest = int(np.square(self._contexts - context).sum(axis=1).argmin())
        return int(self.rng.choice(self._mix.shape[1], p=self._mix[nearest]))

    def _solve(self, hosts: Ints) -> None:
        """Solve the program for the queries that are remembered."""
        recent = np.array(self.recent)
        contexts, which = np.unique(recent, axis=0, return_inverse=True)
        shares = np.bincount(which.ravel()) / len(recent)
        queries, replicas = len(contexts), len(hosts)
        capacity = self.service.throughput(self.places)[np.arange(replicas), hosts]
        capacity = np.where(hosts >= 0, capacity, 0.0)
        keeps = self.success.sample(contexts)[:, hosts] * capacity  # (Q, R)
        left = np.zeros((queries + replicas, queries * replicas + 1))
        for t in range(queries):
            left[t, t * replicas : (t + 1) * replicas] = -keeps[t]
        for r in range(replicas):
            left[queries + r, r:-1:replicas] = 1.0
        left[queries:, -1] = -1.0
        right = np.concatenate([-self.problem.arrival_rate * shares, np.zeros(replicas)])
        found = linprog(np.eye(len(left[0]))[-1], A_ub=left, b_ub=right, method="highs")
        shares_of_time: Floats = np.zeros(queries * replicas) if found.x is None else found.x[:-1]
        attempts = shares_of_time.reshape(queries, replicas) * capacity + 1e-12 * (capacity > 0)
        self._mix = attempts / attempts.sum(axis=1, keepdims=True)
        self._contexts = contexts
