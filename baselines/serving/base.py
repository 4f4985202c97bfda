"""What serving agents share: reading an observation, pairs of queries and places, bookkeeping.

A rule scores every waiting query at every replica; the pairs with the largest sum are dispatched.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from baselines.interface import Action, Agent, Observation, ServeProblem
from baselines.serving.estimates import (
    Array,
    Floats,
    Ints,
    Kinds,
    KnownSuccess,
    LearnedSuccess,
    Service,
)
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

SERVING = 2
"""Phase of a replica that takes queries."""

REMEMBERED = 256
"""Contexts of those who came last that an agent remembers."""

Pairs = Sequence[tuple[int, int]]
"""Dispatches: (window slot, replica)."""


class Seen(NamedTuple):
    """An observation: Q visible queries that wait, R replicas."""

    contexts: Array  # (Q, d)
    numbers: Ints  # (Q,) slot of arrival, which identifies a query
    new: list[int]  # window slots of those who are seen for the first time
    queue: int  # waiting queries, with those beyond the window
    hosts: Ints  # (R,) LLM hosted or loaded, -1: none
    active: Ints  # (R,) queries served
    room: Ints  # (R,) further queries that may be dispatched there
    serving: Array  # (R, d) mean context of the active queries
    day: Array  # (2,) sine and cosine of the hour


class ServeAgent(Agent):
    """An agent that dispatches by `dispatch`, sets the fleet by `deploy`, and keeps books.

    Parameters
    ----------
    problem : ServeProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    known : bool
        Whether it is told who keeps what: a yardstick.
    explore : float
        Scale of the Thompson samples.

    Raises
    ------
    UsageError
        If a known version is not told the truth.
    """

    kind: ClassVar[str] = "serving"
    problem: ServeProblem  # type: ignore[assignment]  # each kind of task has its own parameters

    def __init__(
        self, problem: ServeProblem, seed: int, known: bool = False, explore: float = 0.5
    ) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        checks.number("explore", explore, "[0, inf)")
        if known and problem.truth is None:
            raise UsageError(
                "known=True: the problem holds no truth, so this yardstick cannot play; "
                "use the agent that learns"
            )
        truth = problem.truth if known else None
        self.known = known
        self.success: KnownSuccess | LearnedSuccess = (
            LearnedSuccess(problem.num_llms, problem.context_dim, self.rng, explore=explore)
            if truth is None
            else KnownSuccess(truth)
        )
        self.service = Service(problem, truth)
        self.kinds = Kinds(truth)
        self.places = np.array(problem.places)
        self.slot = 0
        self.targets: Ints | None = None  # of the replicas
        self._sent: dict[int, tuple[Array, int]] = {}  # number -> context, replica
        self._waits: dict[int, int] = {}  # number of a visible query -> its kind
        self.recent: deque[Array] = deque(maxlen=REMEMBERED)  # contexts of those who came last
        self._newest = -1  # number
        self._load: Ints = np.zeros(problem.num_replicas, dtype=np.int64)
        self._hosts: Ints = self._load

    # ------------------------------------------------------------------ act

    def act(self, observation: Observation) -> Action:
        """Return ``[slot, replica] * A`` and a target for every replica, shape (2 A + R,)."""
        seen = self.read(observation)
        self._note_waiting(seen)
        stay = seen.hosts if self.targets is None else self.targets
        if self.problem.update_every and observation["until_update"].item() == 0.0:
            self.targets = stay = self.deploy(seen, stay)
            seen.room[stay != seen.hosts] = 0
        pairs: Pairs = []
        if len(seen.contexts) and seen.room.any():
            pairs = self.dispatch(seen)[: self.problem.dispatches]
        self._book(seen, pairs)
        action = np.tile([self.problem.window, 0], self.problem.dispatches)
        for i, (slot, replica) in enumerate(pairs):
            action[2 * i : 2 * i + 2] = slot, replica
        targets = np.where(stay >= 0, stay, self.problem.num_llms)
        return np.concatenate([action, targets]).astype(np.int64)

    def read(self, observation: Observation) -> Seen:
        """Read the arrays of an observation, and remember who comes."""
        waiting = int(np.count_nonzero(observation["waiting"]))
        hosted = observation["hosts"]
        active = observation["active"].astype(np.int64)
        serving = observation["phase"][:, SERVING] > 0
        contexts = observation["contexts"][:waiting]
        numbers = self.slot - observation["age"][:waiting].astype(np.int64)
        new = np.flatnonzero(numbers > self._newest).tolist()
        if new:
            self._newest = int(numbers[new[-1]])
            self.recent.extend(contexts[new])
        return Seen(
            contexts,
            numbers,
            new,
            int(observation["queue_length"].item()),
            np.where(hosted.any(axis=1), hosted.argmax(axis=1), -1),
            active,
            np.where(serving, self.places - active, 0),
            observation["serving"],
            observation["day"],
        )

    @abstractmethod
    def dispatch(self, seen: Seen) -> Pairs:
        """Choose among Q >= 1 waiting queries and the replicas with room."""

    def deploy(self, seen: Seen, targets: Ints) -> Ints:
        """Return the LLM each replica is to host, -1 for none; asked at update points only."""
        return targets

    # ------------------------------------------------------------------ learn

    def _note_waiting(self, seen: Seen) -> None:
        """Count arrivals and, of those who could be seen, who left while they waited."""
        kinds = self.kinds
        kind_of = kinds.of(seen.contexts).tolist()
        now = dict(zip(seen.numbers.tolist(), kind_of, strict=True))
        for number, kind in self._waits.items():
            kinds.waited[kind] += 1
            if number not in now and number not in self._sent:
                kinds.left[kind] += 1
        for slot in seen.new:
            kinds.arrivals[kind_of[slot]] += 1
        self._waits = now

    def _book(self, seen: Seen, pairs: Pairs) -> None:
        """Remember whom the slot serves where."""
        self._load, self._hosts = seen.active.copy(), seen.hosts
        for slot, replica in pairs:
            number = int(seen.numbers[slot])
            self._sent[number] = seen.contexts[slot].copy(), replica
            self._waits.pop(number, None)
            self._load[replica] += 1

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from the slot's answers."""
        ended = np.zeros(len(self._load), dtype=np.int64)
        for number, llm, kept in info["answers"].tolist():
            if number < 0:
                break
            context, replica = self._sent.pop(number)
            ended[replica] += 1
            self.learn(context, llm, bool(kept))
        for replica in np.flatnonzero(self._load).tolist():
            llm, active = int(self._hosts[replica]), int(self._load[replica])
            self.service.learn(replica, llm, active, int(ended[replica]))
        self.slot += 1

    def learn(self, context: Array, llm: int, kept: bool) -> None:
        """Learn from one answer."""
        self.success.learn(context, llm, kept)


def best_pairs(scores: Floats, room: Ints, limit: int) -> Pairs:
    """Return the pairs of queries and places with the largest sum of positive scores.

    Among equals whoever waits nearer to the head; the best ones where there are more than
    ``limit``.

    Parameters
    ----------
    scores : ndarray, shape (Q, R)
    room : ndarray of int, shape (R,)
        Places that are free.
    limit : int
        Dispatches a slot, A.
    """
    replicas = np.repeat(np.arange(len(room)), np.minimum(room, limit))
    offered = scores[:, replicas]
    top = float(offered.max(initial=0.0))
    if top <= 0.0:
        return []
    # Rounded: among what is equal on paper the last bits of a BLAS must not choose.
    gains = np.maximum(np.round(offered / top, 12), 0.0) - 1e-9 * np.arange(len(scores))[:, None]
    if len(replicas) == 1:
        return [(int(gains[:, 0].argmax()), int(replicas[0]))]
    rows, columns = linear_sum_assignment(gains, maximize=True)
    order = np.argsort(-gains[rows, columns], kind="stable")[:limit]
    pairs = zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    return [(row, int(replicas[column])) for row, column in pairs if offered[row, column] > 0.0]


class Ranked(ServeAgent):
    """An agent that scores every query at every replica, and dispatches the best pairs."""

    def dispatch(self, seen: Seen) -> Pairs:
        """Return the pairs with the largest sum of scores."""
        return best_pairs(self.scores(seen), seen.room, self.problem.dispatches)

    @abstractmethod
    def scores(self, seen: Seen) -> Floats:
        """Return a score of every pair, shape (Q, R); only positive ones are dispatched."""

    def success_at(self, seen: Seen) -> Floats:
        """P(an answer of the replica's LLM is kept), p, shape (Q, R): a Thompson sample."""
        return self.success.sample(seen.contexts)[:, seen.hosts]

    def keeps(self, seen: Seen) -> Floats:
        """P(an answer ends in the slot and is kept), mu p, with one query more; shape (Q, R)."""
        return self.success_at(seen) * self.service.rates(seen.hosts, seen.active + 1)

    def worth(self, contexts: Array, queue: int) -> Floats:
        """Return what it saves to serve a query now, relative to one without patience, (Q,).

        Who is left to wait costs holding until he is served or his patience is over, and then what
        a lost user costs. He is served after w slots, for which the queue of now waits on average
        (Little): w = queue / lambda.
        """
        theta = self.kinds.impatience()[self.kinds.of(contexts)]
        rewards, rate = self.problem.rewards, self.problem.arrival_rate
        wait = max(queue / max(rate, 1e-9), 1.0)
        leaves = -np.expm1(wait * np.log1p(-np.minimum(theta, 1.0 - 1e-9)))
        held = np.where(theta > 0.0, leaves / np.maximum(theta, 1e-300), wait)
        saves = rewards["holding"] * held + (rewards["lost"] + rewards["kept"]) * leaves
        return np.asarray(saves / saves.max()) if saves.any() else np.ones(len(saves))

    def kinds_of(self, contexts: Array, keeps: Floats) -> Ints:
        """Return the kind of each query: its context if there are few, else its best replica."""
        return self.kinds.of(contexts) if self.kinds.few else keeps.argmax(axis=1)
