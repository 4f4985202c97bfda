"""Serving oracles: the exact optimum of a small problem, what rules cost there, and a bound.

A problem is small if its state is who waits and who is served, by kind of query: lengths without
memory, replicas of one place that keep their LLM, users who do not think. `optimum` then solves it
exactly. Whatever the size, `bound` says what no policy can earn (a linear program), and
`ServingInstance.load` (another one) whether any policy is stable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.optimize import linprog
from scipy.sparse.linalg import splu

from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.instance import Floats, Ints, ServingInstance

MAX_STATES = 50_000
USUAL_STATES, IMPATIENT_STATES, USUAL_CAP = 16_000, 2_000, 400
"""Unless asked otherwise the cap is at most `USUAL_CAP` and makes at most so many states; fewer
where users lose patience: then many leave at once, the matrix is dense, and queues are short."""

Rule = Callable[["Chain"], Floats]
"""Chain -> the score of each (state, replica, kind), shape (S, R, T) or one that fits it."""


# --- small problems -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallProblem:
    """T kinds of query and R replicas of one place; everything in a slot is without memory.

    Attributes
    ----------
    arrival : ndarray, shape (T,)
        P(a query of the kind arrives in a slot); at most one arrives.
    finish, success : ndarray, shape (R, T)
        P(an answer ends in a slot), P(the user keeps it).
    impatience : ndarray, shape (T,)
        P(a waiting user leaves for good in a slot), theta.
    give_up : float
        P(a user whose answer is not kept leaves for good), delta; others join the queue again.
    holding, kept, lost : float
        Cost of a query in the system for a slot, worth of a kept answer, cost of a lost user.
    """

    arrival: Floats
    finish: Floats
    success: Floats
    impatience: Floats
    give_up: float = 0.0
    holding: float = 1.0
    kept: float = 0.0
    lost: float = 0.0

    @cached_property
    def keeps(self) -> Floats:
        """P(an answer ends in a slot and is kept), mu p, shape (R, T)."""
        return self.finish * self.success


def small_problem(instance: ServingInstance) -> tuple[SmallProblem, Ints]:
    """Return the small problem that an instance is, and the kind of each of its queries, (P,).

    Raises
    ------
    UsageError
        If its state is more than who waits and who is served, or a reward asks for more.
    """
    fixed = not instance.update_every and bool(np.all(instance.hosts >= 0))
    rewards = instance.rewards
    for wrong, what in (
        (not instance.geometric or bool(np.any(instance.chunk > 0)), "lengths with memory"),
        (bool(np.any(instance.places != 1)), "replicas of several places"),
        (not fixed, "a fleet that changes"),
        (instance.return_rate < 1.0, "users who think"),
        (rewards.late != 0.0, "a cost of late answers"),
        (instance.dispatches < instance.num_replicas, "fewer dispatches than replicas"),
    ):
        if wrong:
            raise UsageError(f"no exact optimum with {what}; see `bound` and the known- agents")
    replicas = range(instance.num_replicas)
    finish = np.stack([instance.finish(r, int(instance.hosts[r])) for r in replicas])
    success = instance.success[:, instance.hosts].T
    alike = np.vstack([finish, success, instance.impatience[None]])
    _, first, kind = np.unique(alike, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)  # of their first appearance
    first, kind = first[order], np.argsort(order)[kind.ravel()]
    small = SmallProblem(
        np.asarray(instance.arrival_rate * np.bincount(kind, instance.share)),
        finish[:, first],
        success[:, first],
        instance.impatience[first],
        instance.give_up,
        rewards.holding,
        rewards.kept,
        rewards.lost,
    )
    return small, kind


class Chain:
    """A small problem with at most ``cap`` waiting queries of a kind, as a decision process.

    A state is (n_1, ..., n_T, s_1, ..., s_R): how many of each kind wait, and what each replica
    serves, 0 for nothing and t + 1 for kind t. An action moves queries from the queue to idle
    replicas: what it leads to is a state too, and what happens next depends on that state alone.
    So one matrix holds all there is to know of chance. Whoever would join a queue at its cap is
    turned away.

    Parameters
    ----------
    problem : SmallProblem
    cap : int, optional
        The default goes by the number of states: `USUAL_STATES`, `IMPATIENT_STATES`.

    Attributes
    ----------
    states : ndarray, shape (S, T + R)
        Every state, in the order of its number.
    actions : ndarray, shape (A, R)
        Every action: the kind + 1 that each replica is given, 0 for none; the first gives nothing.
    moves : ndarray, shape (A, S)
        The state that an action leads to, -1 where it is illegal.
    step : sparse matrix, shape (S, S)
        P(next state | state after the action).
    cost : ndarray, shape (S,)
        Expected cost of the slot, given the state after the action.

    Raises
    ------
    UsageError
        If there are more than ``MAX_STATES`` states.
    """

    def __init__(self, problem: SmallProblem, cap: int | None = None) -> None:
        replicas, kinds = problem.finish.shape
        busy = (kinds + 1) ** replicas
        if cap is None:
            most = IMPATIENT_STATES if problem.impatience.any() else USUAL_STATES
            cap = max(1, min(USUAL_CAP, int((most / busy) ** (1 / kinds)) - 1))
        size = busy * (cap + 1) ** kinds
        if size > MAX_STATES:
            raise UsageError(
                f"cap={cap}: {kinds} kinds of query and {replicas} replicas make {size:,} "
                f"states; at most {MAX_STATES:,} are solved, so use a smaller cap"
            )
        dims = (cap + 1,) * kinds + (kinds + 1,) * replicas
        self.problem, self.cap = problem, cap
        self._after = np.array([int(np.prod(dims[entry + 1 :])) for entry in range(len(dims))])
        self.states = np.stack(np.unravel_index(np.arange(size), dims), axis=1)
        self.waiting, self.serving = self.states[:, :kinds], self.states[:, kinds:]
        self.actions = np.array(list(product(range(kinds + 1), repeat=replicas)))
        self.moves = np.stack([self._move(action) for action in self.actions])
        self.step, self.cost = self._slot()

    def __getstate__(self) -> tuple[SmallProblem, int]:
        return self.problem, self.cap

    def __setstate__(self, state: tuple[SmallProblem, int]) -> None:
        Chain.__init__(self, *state)

    def _move(self, action: Ints) -> Ints:
        """Return the state that an action leads to, -1 where it is illegal."""
        taken = np.bincount(action, minlength=self.waiting.shape[1] + 1)[1:]
        legal = (self.waiting >= taken).all(axis=1)
        legal &= ((self.serving == 0) | (action == 0)).all(axis=1)
        change = int(np.concatenate([-taken, action]) @ self._after)
        return np.where(legal, np.arange(len(legal)) + change, -1)

    def _slot(self) -> tuple[sp.csr_array, Floats]:
        """Multiply what happens in a slot after the action, in its order; add up what it costs."""
        from scipy.stats import binom  # half a second, for which not every command should wait

        problem, count = self.problem, np.arange(self.cap + 1)
        replicas, kinds = problem.finish.shape
        step, one_more = (
            sp.eye_array(len(self.states), format="csr"),
            np.minimum(count + 1, self.cap),
        )
        join = [self._along(kind, np.eye(self.cap + 1)[one_more]) for kind in range(kinds)]
        cost = problem.holding * (self.waiting.sum(axis=1) + (self.serving > 0).sum(axis=1))
        cost = cost + problem.lost * (self.waiting @ problem.impatience)
        for kind in np.flatnonzero(problem.impatience).tolist():
            leave = binom.pmf(count[:, None] - count, count[:, None], problem.impatience[kind])
            step = step @ self._along(kind, np.asarray(leave))
        gone = problem.success + (1.0 - problem.success) * problem.give_up
        worth = problem.kept * problem.success - problem.lost * (gone - problem.success)
        for r in range(replicas):
            ends = np.append(0.0, problem.finish[r])
            cost = cost - (ends * np.append(0.0, worth[r]))[self.serving[:, r]]
            stays_or_leaves = np.diag(1.0 - ends)
            stays_or_leaves[1:, 0] = ends[1:] * gone[r]
            stays_or_leaves[0, 0] = 1.0
            answered = self._along(kinds + r, stays_or_leaves)
            for kind in range(kinds):
                back = np.zeros((kinds + 1, kinds + 1))
                back[kind + 1, 0] = ends[kind + 1] * (1.0 - gone[r, kind])
                answered = answered + self._along(kinds + r, back) @ join[kind]
            step = step @ answered
        arrive = (1.0 - problem.arrival.sum()) * sp.eye_array(len(self.states))
        for chance, joins in zip(problem.arrival, join, strict=True):
            arrive = arrive + chance * joins
        return sp.csr_array(step @ arrive), np.asarray(cost)

    def _along(self, entry: int, matrix: Floats) -> sp.csr_array:
        """Return the matrix on states that acts on one entry of a state."""
        after = int(self._after[entry])
        inner = sp.kron(sp.csr_array(matrix), sp.eye_array(after))
        return sp.csr_array(sp.kron(sp.eye_array(len(self.states) // inner.shape[0]), inner))

    def evaluate(self, policy: Ints) -> tuple[float, Floats]:
        """Return the mean cost a slot of a policy, and its relative values h, h(empty) = 0.

        h = c + P h - g is solved exactly: g is the cost between two visits of the empty system
        over the slots between them. ``policy`` is the state that each state is led to, shape (S,).
        """
        step, cost = self.step[policy], self.cost[policy]
        away, right = sp.eye_array(len(cost) - 1) - step[1:, 1:], np.ones((len(cost) - 1, 2))
        right[:, 0] = cost[1:]
        if self.problem.impatience.any():
            costs, slots = np.linalg.solve(away.toarray(), right).T
        else:
            order: dict[str, Any] = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0}
            factor = splu(sp.csc_array(away), **order, options={"SymmetricMode": True})
            costs, slots = factor.solve(right).T
        leave = step[[0], 1:].toarray()[0]
        mean = float((cost[0] + leave @ costs) / (1.0 + leave @ slots))
        return mean, np.append(0.0, costs - mean * slots)

    def solve(self, policy: Ints | None = None) -> tuple[float, Ints]:
        """Return the smallest mean cost a slot and a policy that has it, shape (S,).

        Policy iteration, from MaxWeight unless told otherwise: each round takes, state by state,
        the actions that are best if the last policy follows, until a round gains nothing.
        """
        policy = self.follow(max_weight) if policy is None else policy
        mean, values = self.evaluate(policy)
        while True:
            ahead = self.cost + self.step @ values
            choices = np.where(self.moves >= 0, ahead[self.moves], np.inf)
            best = self.moves[choices.argmin(axis=0), np.arange(len(ahead))]
            better = ahead[best] < ahead[policy] - 1e-9 * (1.0 + np.abs(ahead[policy]))
            policy, last = np.where(better, best, policy), mean
            mean, values = self.evaluate(policy)
            if mean > last - 1e-10 * (1.0 + abs(last)):
                return mean, policy

    def follow(self, rule: Rule) -> Ints:
        """Return the policy of a rule: in every state the legal action with the largest score."""
        replicas, kinds = self.problem.finish.shape
        scores = np.zeros((len(self.states), replicas, kinds + 1))
        scores[:, :, 1:] = rule(self)
        total = scores[:, np.arange(replicas), self.actions].sum(axis=2).T
        total = np.where(self.moves >= 0, total, -np.inf)
        best = (total >= total.max(axis=0) - 1e-9).argmax(axis=0)  # the first of equal ones
        return np.asarray(self.moves[best, np.arange(len(best))])

    def find(self, state: ArrayLike) -> int:
        """Return the number of a state; a queue beyond the cap counts as one at its cap."""
        entries = np.array(state)
        kinds = self.waiting.shape[1]
        entries[:kinds] = np.minimum(entries[:kinds], self.cap)
        return int(entries @ self._after)


# --- rules: the score of giving a replica a query of a kind, added up over replicas -------------


def max_weight(chain: Chain) -> Floats:
    """Return mu p times how many of the kind wait."""
    return np.asarray(chain.waiting[:, None] * chain.problem.keeps)


def myopic(chain: Chain) -> Floats:
    """Return mu p, the answers that are kept in the next slot."""
    return chain.problem.keeps


def most_successful(chain: Chain) -> Floats:
    """Return p, P(an answer is kept)."""
    return chain.problem.success


def c_mu(chain: Chain) -> Floats:
    """Return mu p times what a waiting user of the kind costs a slot, loss included."""
    problem = chain.problem
    return np.asarray((problem.holding + problem.lost * problem.impatience) * problem.keeps)


def c_mu_theta(chain: Chain) -> Floats:
    """Return c mu over theta; kinds whose users never leave come first."""
    return np.asarray(c_mu(chain) / np.maximum(chain.problem.impatience, 1e-9))


def threshold(level: int) -> Rule:
    """Use a replica that is not the best for a kind only while at least ``level`` of it wait.

    Whoever the best replica takes in the same slot does not count.
    """

    def rule(chain: Chain) -> Floats:
        keeps = chain.problem.keeps
        best = keeps.argmax(axis=0)
        left = chain.waiting - (chain.serving[:, best] == 0)
        first = np.arange(len(keeps))[:, None] == best
        return np.where(first, 1.0 + keeps, np.where((left >= level)[:, None], keeps, -1.0))

    return rule


# --- the optimum as a policy ----------------------------------------------------------------------


class Optimum:
    """The best policy of a small problem, exact but for the cap.

    Parameters
    ----------
    instance : ServingInstance
    cap : int, optional
        Most queries of a kind that wait; see `Chain`.

    Attributes
    ----------
    cost : float
        Mean cost a slot: the reward with another sign.
    chain : Chain
    policy : ndarray, shape (S,)
        The state that each state is led to.

    Raises
    ------
    UsageError
        If the problem is not small.
    """

    def __init__(self, instance: ServingInstance, cap: int | None = None) -> None:
        problem, self._kind = small_problem(instance)
        self._instance = instance
        self.chain = Chain(problem, cap)
        self.cost, self.policy = self.chain.solve()

    def action(self, waiting: Ints, serving: Ints) -> Ints:
        """Return the best action, shape (2 A + R,).

        Parameters
        ----------
        waiting : ndarray, shape (W,)
            Row in the instance of each visible query, -1 where none waits.
        serving : ndarray, shape (R,)
            Row of the query that each replica serves, -1 where it is idle.
        """
        instance, kinds = self._instance, self.chain.waiting.shape[1]
        kind = np.where(waiting >= 0, self._kind[waiting], kinds)
        busy = np.where(serving >= 0, self._kind[serving] + 1, 0)
        state = [*np.bincount(kind, minlength=kinds)[:kinds], *busy]
        given = self.chain.serving[self.policy[self.chain.find(state)]]
        pairs = np.tile([instance.window, 0], (instance.dispatches, 1))
        for i, replica in enumerate(np.flatnonzero(given != busy)):
            slot = int(np.argmax(kind == given[replica] - 1))
            kind[slot] = kinds
            pairs[i] = slot, replica
        return np.concatenate([pairs.ravel(), instance.hosts])


# --- a bound for every size -----------------------------------------------------------------------


def bound(instance: ServingInstance) -> float:
    """Return a mean reward a slot that no policy exceeds in the long run: a linear program.

    Maximise the worth of kept answers less what is lost, held and paid, over the attempts a slot
    y_trm of query t at replica r with LLM m and the users l_t who leave unanswered, subject to

    * sum_rm y_trm (1 - (1 - p_tm) (1 - delta)) + l_t = lambda_t: whoever comes leaves in the end
      (at most, where waiting costs nothing, or where even that takes more than there is);
    * sum_tm y_trm / mu_trm <= 1 for every replica r.

    An attempt is held for the slots that it takes alone, at least, and a replica that changes is
    paid for while it works. Nobody waits longer than needed, so the bound is wide where holding is
    most of the cost. A run that starts empty can be above it by what it does not pay at its end, of
    the order of 1 / T. Users who think are not held: where they think for about as long as the run
    lasts, few come back before its end, and the run can be well above.
    """
    rewards, share = instance.rewards, instance.arrival_rate * instance.share
    changes = instance.update_every > 0
    leaves, work, gains, owner = [], [], [], []
    groups: dict[tuple[Any, ...], list[int]] = {}  # replicas that differ in nothing
    for r in range(instance.num_replicas):
        speeds = (*instance.base_seconds[r], *instance.each_seconds[r])
        hosted = -1 if changes else int(instance.hosts[r])
        alike = (hosted, instance.places[r], instance.chunk[r], instance.price[r], *speeds)
        groups.setdefault(alike, []).append(r)
    for group, (r, *_) in enumerate(groups.values()):
        for llm in range(instance.num_llms) if changes else [instance.hosts[r]]:
            success, rate = instance.success[:, llm], _most_answers(instance, r, llm)
            gives_up = (1.0 - success) * instance.give_up
            paid = rewards.price * instance.price[r] / rate if changes else 0.0
            held = rewards.holding * instance.mean_slots(r, llm, 1)
            gains.append(rewards.kept * success - rewards.lost * gives_up - held - paid)
            leaves.append(success + gives_up)
            work.append(1.0 / rate)
            owner.append(group)
    queries, columns = len(share), len(owner)
    everybody = sp.hstack([sp.diags_array(column) for column in leaves] + [sp.eye_array(queries)])
    busy = sp.kron(np.arange(len(groups))[:, None] == owner, np.ones((1, queries)), format="csr")
    busy = busy @ sp.diags_array(np.concatenate(work))
    busy = sp.hstack([busy, sp.csr_array((len(groups), queries))])
    unanswered = np.full(queries, rewards.lost + rewards.holding)
    limits: list[tuple[float, float | None]] = [(0.0, None)] * (columns * queries)
    limits += [(0.0, None if leaves_alone else 0.0) for leaves_alone in instance.impatience > 0.0]
    size = np.array([len(replicas) for replicas in groups.values()], dtype=np.float64)
    cost = np.concatenate([*(-gain for gain in gains), unanswered])
    program: dict[str, Any] = {"c": cost, "bounds": limits, "method": "highs"}
    found = None
    if rewards.holding > 0.0:
        equal = {"A_ub": busy, "b_ub": size, "A_eq": everybody, "b_eq": share}
        found = linprog(**(program | equal))
    if found is None or not found.success:
        upper = {"A_ub": sp.vstack([busy, everybody]), "b_ub": np.concatenate([size, share])}
        found = linprog(**(program | upper))
    fixed = 0.0 if changes else rewards.price * float(instance.price.sum())
    return -float(found.fun) - fixed


def _most_answers(instance: ServingInstance, replica: int, llm: int) -> Floats:
    """Return answers a slot that a replica cannot exceed, shape (P,), however its load changes."""
    memoryless = instance.geometric and not instance.chunk[replica]
    chunk, most = instance.chunk[replica], np.zeros(instance.num_queries)
    prefill = float(np.ceil(instance.inputs / chunk).mean()) if chunk else 0.0
    for active in range(1, int(instance.places[replica]) + 1):
        if memoryless:  # no answer is nearer to its end than another
            rate = active * instance.finish(replica, llm, active)
        else:
            given = active * instance.speed(replica, llm, active)
            rate = np.minimum(given / (instance.mean_tokens + prefill), active)
        most = np.maximum(most, rate)
    return most
