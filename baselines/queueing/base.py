"""What queueing agents share: reading an observation, the best pairing, the assortment cycle.

An agent chooses a waiting query (a slot of the visible queue) and K distinct LLMs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, Agent, Observation, QueueProblem
from llmqueue_gym.compiled import borrowing, compiled
from llmqueue_gym.errors import UsageError

Contexts = NDArray[np.floating[Any]]
Counts = NDArray[np.float64]

FIRST_KEPT = 2
"""``feedback`` of LLM 0's answer being kept; 1 is a retrial, 0 nothing served."""


MAX_REMEMBERED = 4096
"""Queries beyond which `Remembered` forgets those that do not wait."""


class Served(NamedTuple):
    """One user's answer: the context (d,), the LLMs shown, and the one kept (-1 for a retrial).

    ``age`` is that of the query when it was served: slots since its arrival.
    """

    context: Contexts
    shown: list[int]
    kept: int
    age: int = 0


def read_answer(
    observation: Observation, action: Action, next_observation: Observation
) -> Served | None:
    """Return what the user served by ``action`` did; None where nothing is heard."""
    feedback = int(next_observation["feedback"])
    if feedback == 0:
        return None
    slot, *llms = action.tolist()
    shown = llms if len(set(llms)) == len(llms) else list(dict.fromkeys(llms))
    kept = feedback - FIRST_KEPT if feedback >= FIRST_KEPT else -1
    age = int(observation["age"].item(slot))
    return Served(observation["contexts"][slot], shown, kept, age)


class LinearPolicy(NamedTuple):
    """What an agent decides on once it explores no longer: x . weights_j + intercept_j of LLM j.

    Attributes
    ----------
    weights : ndarray, shape (N, d)
    intercept : ndarray, shape (N,)
    scale : {"utility", "log_odds", "share"}
        What the numbers estimate: MNL utilities, log odds of being kept, shares of kept answers.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    scale: str


def without_intercept(theta: NDArray[np.floating[Any]], scale: str) -> LinearPolicy:
    """Return the policy x . theta_j."""
    return LinearPolicy(theta.astype(np.float64), np.zeros(len(theta)), scale)


class Answers:
    """What users did, told together with whom and what they were shown.

    Parameters
    ----------
    delay : int
        Slots until an answer is judged.
    """

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._unjudged: deque[tuple[Observation, Action]] = deque()

    def read(
        self, observation: Observation, action: Action, next_observation: Observation
    ) -> Served | None:
        """Take a slot; return the answer that is judged after it, None where nothing is heard."""
        if self.delay == 0:
            return read_answer(observation, action, next_observation)
        self._unjudged.append((observation, action))
        if len(self._unjudged) <= self.delay:
            return None
        return read_answer(*self._unjudged.popleft(), next_observation)


class Pairing(NamedTuple):
    """A decision: a slot of the visible queue and the LLMs shown to its user."""

    slot: int
    llms: list[int]


class QueueAgent(Agent):
    """An agent that serves whoever waits; subclasses say whom, with which LLMs, and learn.

    ``act`` calls ``choose`` when somebody waits and plays slot 0 otherwise (nothing happens
    then). ``update`` counts the slots and calls ``learn`` with the answer that is judged.
    """

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.slot_number = 1  # t
        self._answers = Answers(problem.feedback_delay)
        self._idle = np.array([0, *range(problem.assortment_size)], dtype=np.int64)

    def act(self, observation: Observation) -> Action:
        """Return ``[slot, llm_1, ..., llm_K]``, shape (1 + K,)."""
        waiting = int(np.count_nonzero(observation["waiting"]))
        if waiting == 0:
            return self._idle.copy()
        slot, llms = self.choose(observation, waiting)
        return np.array([slot, *llms], dtype=np.int64)

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from the answer that is judged now and move on to the next slot."""
        read = self._answers.read if self._answers.delay else read_answer
        served = read(observation, action, next_observation)
        if served is not None:
            self.learn(served)
        self.slot_number += 1

    @property
    def judged_slot(self) -> int:
        """Slot of the answer that ``learn`` is given."""
        return self.slot_number - self.problem.feedback_delay

    @abstractmethod
    def choose(self, observation: Observation, waiting: int) -> tuple[int, list[int]]:
        """Choose a `Pairing` of the ``waiting`` >= 1 visible queries, slots 0 to ``waiting`` - 1.

        A plain pair will do.
        """

    def learn(self, served: Served) -> None:
        """Learn from one served user; agents that do not learn have nothing to do here."""

    def utilities(self, contexts: Contexts) -> Contexts:
        """Return estimated utilities of contexts (Q, d), shape (Q, N), of agents that have them."""
        raise NotImplementedError(f"{type(self).__name__} estimates no utilities")

    def policy(self) -> LinearPolicy:
        """Return what it decides on when it explores no longer, if that is linear in the context.

        Raises
        ------
        UsageError
            If it is not.
        """
        raise UsageError(
            f"{type(self).__name__} does not decide on numbers that are linear in the context; "
            "export one that does, such as ACQB, CQB-Opt, greedy, LinUCB or offline-ridge"
        )

    def context_free(self, shares: NDArray[np.float64]) -> LinearPolicy:
        """Return the policy of shares (N,) that no context changes."""
        return LinearPolicy(np.zeros((len(shares), self.problem.context_dim)), shares, "share")

    def estimates(self, observation: Observation, waiting: int) -> Contexts:
        """Estimated utilities of the waiting queries, shape (Q, N), a new array."""
        return self.utilities(observation["contexts"][:waiting])


class Remembered:
    """A frozen model of queries, asked once for a query: later answers are the same bits.

    Parameters
    ----------
    model : callable
        Contexts (n, d) -> one row for each, (n, ...).
    """

    def __init__(self, model: Callable[[Contexts], NDArray[Any]]) -> None:
        self.model = model
        self._rows: dict[bytes, NDArray[Any]] = {}  # context bytes -> row

    def __call__(self, contexts: Contexts) -> NDArray[Any]:
        """Return the rows of contexts (n, d)."""
        keys = [context.tobytes() for context in contexts]
        if len(self._rows) > MAX_REMEMBERED:
            self._rows = {key: self._rows[key] for key in keys if key in self._rows}
        new = {key: place for place, key in enumerate(keys) if key not in self._rows}
        if new:
            self._rows.update(zip(new, self.model(contexts[list(new.values())]), strict=True))
        return np.stack([self._rows[key] for key in keys])


class AssortmentCycle:
    """A fixed round-robin over all C(N, K) assortments, in lexicographic order.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    assortment_size : int
        LLMs shown at a time, K.
    """

    def __init__(self, num_llms: int, assortment_size: int) -> None:
        self._num_llms = num_llms
        self._next = list(range(assortment_size))

    def next(self) -> list[int]:
        """Return the next assortment."""
        llms, size = self._next, len(self._next)
        place = size - 1
        while place >= 0 and llms[place] == self._num_llms - size + place:
            place -= 1  # this one and those after it have come to their last
        first = llms[place] + 1 if place >= 0 else 0
        kept = llms[: max(place, 0)]
        self._next = [*kept, *range(first, first + size - len(kept))]
        return llms


def newest(observation: Observation, waiting: int) -> int:
    """Slot of the youngest visible query (the newest arrival unless it is in the backlog)."""
    return int(observation["age"][:waiting].argmin())


def top_llms(scores: NDArray[np.floating[Any]], count: int) -> list[int]:
    """Return the ``count`` LLMs with the largest scores, shape (N,), best first."""
    numbers: list[float] = scores.tolist()
    return sorted(range(len(numbers)), key=numbers.__getitem__, reverse=True)[:count]


def largest_shares(kept: Counts, shown: Counts, count: int, width: float = 0.0) -> list[int]:
    """Return the ``count`` LLMs of largest kept_j / T_j + ``width`` / sqrt(2 T_j), best first.

    T_j is how often LLM j was shown; those never shown come before all others.
    """
    largest = np.empty(count, np.int64)
    _largest_shares(kept, shown, width, largest)
    llms: list[int] = largest.tolist()
    return llms


@borrowing
def _largest_shares(kept: Counts, shown: Counts, width: float, llms: NDArray[np.int64]) -> None:
    for place in range(len(llms)):
        largest = -np.inf
        for j in range(len(shown)):
            bound = np.inf
            if shown[j] > 0.0:
                bound = kept[j] / shown[j] + width / math.sqrt(2.0 * shown[j])
            if bound > largest and j not in llms[:place]:
                llms[place], largest = j, bound


def best_pairing(utilities: NDArray[np.floating[Any]], count: int) -> Pairing:
    """Return the query and assortment with the largest MNL departure rate.

    All odds e^u are positive, so the best assortment of a query is its K largest utilities, and
    the best query is the one where those have the largest sum of odds: nothing is enumerated.

    Parameters
    ----------
    utilities : ndarray
        Utilities u_j(x) of the waiting queries, shape (Q, N).
    count : int
        LLMs shown at a time, K.
    """
    return _best_of(utilities, count, True)


def best_sum(indices: NDArray[np.floating[Any]], count: int) -> Pairing:
    """Return the query whose ``count`` largest indices, of (Q, N), have the largest sum."""
    return _best_of(indices, count, False)


def _best_of(values: NDArray[np.floating[Any]], count: int, as_odds: bool) -> Pairing:
    if count == 1:
        slot, llm = divmod(int(values.argmax()), values.shape[1])
        return Pairing(slot, [llm])
    slot, llms = _best(values, count, as_odds)
    return Pairing(slot, llms.tolist())


@compiled
def _best(
    values: NDArray[np.floating[Any]], count: int, as_odds: bool
) -> tuple[int, NDArray[np.int64]]:
    """Return the query whose ``count`` largest values, or odds, sum to the most; and those LLMs."""
    best = np.zeros((len(values), count), np.int64)  # best first, the first of equals
    for q in range(len(values)):
        for llm in range(values.shape[1]):
            place = min(llm, count)
            while place > 0 and values[q, llm] > values[q, best[q, place - 1]]:
                if place < count:
                    best[q, place] = best[q, place - 1]
                place -= 1
            if place < count:
                best[q, place] = llm
    highest = values[0, best[0, 0]]
    for q in range(len(values)):
        highest = max(highest, values[q, best[q, 0]])
    slot, most = 0, -np.inf
    for q in range(len(values)):
        total = 0.0
        for llm in best[q]:
            total += math.exp(values[q, llm] - highest) if as_odds else values[q, llm]
        if total > most:
            slot, most = q, total
    return slot, best[slot]
