"""B lanes of the retrial queue: what draws the randomness, keeps the arrays and steps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.choice import best_assortment
from llmqueue_gym.queueing.dynamics import (
    FEEDBACK,
    FIELDS,
    HEAD,
    HEARING,
    NOTHING_SERVED,
    NUM_STREAMS,
    NUMBER,
    QUEUE_LENGTH,
    SLOT,
    Floats,
    Ints,
    Seen,
    Singles,
    SlotOutcome,
    State,
    Truth,
    run_slot,
    serve_best,
    show,
)
from llmqueue_gym.queueing.feedback import Hearsay, Noise
from llmqueue_gym.streams import Draws, UniformStreams

MAX_UTILITY = 600.0
MAX_SLOTS = 2**24
"""Slots an episode may last: float32 holds counts of slots exactly up to here."""

_LINE = 8  # doubles of a cache line


@dataclass(frozen=True)
class Population:
    """The queries that may arrive, and the truth about every LLM on them: one problem instance.

    Attributes
    ----------
    contexts : ndarray of float32, shape (P, d)
        Context x of every query; an arrival is one of them, uniformly.
    utilities : ndarray, shape (P, N)
        Hidden MNL utilities u_j(x).
    assortment_size : int
        LLMs shown at a time, K.
    cost : ndarray, shape (P, N), or None
        USD that an answer of LLM j to the query costs, kept or not; None where nobody knows.
    """

    contexts: Singles
    utilities: Floats
    assortment_size: int
    cost: Floats | None = None

    def __post_init__(self) -> None:
        if not np.all(np.abs(self.utilities) <= MAX_UTILITY):  # also false for NaN
            raise UsageError(
                f"utilities must be finite and within +-{MAX_UTILITY:g}, or their odds overflow"
            )

    @cached_property
    def odds(self) -> Floats:
        """Odds o_j(x) = exp(u_j(x)), shape (P, N)."""
        return np.exp(self.utilities)

    @cached_property
    def best(self) -> tuple[Ints, Floats]:
        """Best assortment (P, K) and its departure rate p*(x) (P,) for every query."""
        return best_assortment(self.odds, self.assortment_size)

    @cached_property
    def capacity(self) -> float:
        """Largest stable arrival rate 1 / E[1 / p*(x)], in queries per slot."""
        return float(1.0 / np.mean(1.0 / self.best[1]))


class QueueDynamics:
    """B copies of the retrial queue, seen through a window of W slots.

    A slot runs in this order: the chosen query is served by the chosen LLMs; the user keeps an
    answer and leaves, or retries and joins the tail again; a query arrives with probability
    lambda; the queue length is read.

    The window holds the first W waiting queries in service order (slot 0 is the head). Later ones
    wait in an unbounded FIFO backlog and move up as slots free.

    A slot costs O(B (W d + K^2)), whatever the backlog and the time: the window's contexts move up
    and are shown. The draws are NumPy's; everything else is `run_slot`, which every environment,
    game and oracle steps.

    Parameters
    ----------
    num_lanes : int
        Independent copies, B.
    window : int
        Visible slots, W.
    assortment_size : int
        LLMs shown at a time, K.
    context_dim : int
        Length of a context, d.
    noise : Noise, optional
        What is wrong with the feedback.

    Attributes
    ----------
    outcome : SlotOutcome
        What happened in the last slot, where `step` returns what is told.
    best_rate, best_llms : ndarrays, shapes (R + 1,), (R + 1, K)
        Hidden truth per row of ``contexts``: p*(x) and the best assortment; the last row stands for
        no query.
    arrival_rate, capacity : ndarrays, shape (B,)
        lambda and 1 / E[1 / p*] of every lane.
    """

    def __init__(
        self,
        num_lanes: int,
        window: int,
        assortment_size: int,
        context_dim: int,
        noise: Noise | None = None,
    ) -> None:
        self.num_lanes = num_lanes
        self.window = window
        self.assortment_size = assortment_size
        self.context_dim = context_dim
        self.arrival_rate = np.zeros(num_lanes)
        self.capacity = np.zeros(num_lanes)
        self._state = State(
            np.zeros((4, num_lanes), dtype=np.int64),
            np.zeros((num_lanes, FIELDS, window), dtype=np.int32),
            np.zeros((num_lanes, window * context_dim), dtype=np.float32),
            np.zeros((num_lanes, 16, FIELDS), dtype=np.int32),
        )
        self._longest = 0  # no queue is longer
        self.outcome = SlotOutcome.nothing(num_lanes)
        self.noise = noise
        self._hearsay = Hearsay(noise, num_lanes) if noise else None
        self._streams = UniformStreams(NUM_STREAMS + (noise is not None), num_lanes)
        self._shared: Population | None = None  # what all lanes hold, if it is one object
        self._first_row = np.zeros(num_lanes, dtype=np.int64)
        self._rows = 0  # population size P; 0 before the first reset
        self.best_rate = np.zeros(0)
        self._seen: Seen | None = None  # what the last slot has shown, until it is asked for

    # ------------------------------------------------------------------ reset

    def reset(
        self,
        lanes: Sequence[int],
        populations: Sequence[Population],
        arrival_rates: Sequence[float],
        generators: Sequence[Sequence[Draws]],
    ) -> None:
        """Empty the queues of some lanes and give them a population and fresh streams.

        Parameters
        ----------
        lanes : sequence of int
            Lanes to reset. The first call must name all of them.
        populations : sequence of Population
            One per lane, all of one size; pass the same object to share it.
        arrival_rates : sequence of float
            lambda per lane.
        generators : sequence of sequences of Draws
            Per lane: arrivals, contexts, outcomes, and with noise what is heard. A slot has an
            arrival iff its draw is below the rate.
        """
        for lane, population, rate, streams in zip(
            lanes, populations, arrival_rates, generators, strict=True
        ):
            self._streams.reset(lane, streams)
            self.arrival_rate[lane] = rate
            self.capacity[lane] = population.capacity
        index = np.asarray(lanes)
        self._state.counts[:, index] = 0
        self.feedback[index] = NOTHING_SERVED
        self._state.window[index] = 0
        self._state.contexts[index] = 0.0
        if self._hearsay is not None:
            self._hearsay.reset(index)
        self._seen = None
        self._load_tables(index, populations)

    @property
    def slot(self) -> Ints:
        """Slots completed since the lane's reset, t; shape (B,)."""
        slot: Ints = self._state.counts[SLOT]
        return slot

    @property
    def queue_length(self) -> Ints:
        """Waiting queries, backlog included; shape (B,)."""
        queue_length: Ints = self._state.counts[QUEUE_LENGTH]
        return queue_length

    @property
    def feedback(self) -> Ints:
        """What the last served user did, (B,): 0 nothing served, 1 retried, 2 + j kept LLM j."""
        feedback: Ints = self._state.counts[FEEDBACK]
        return feedback

    @property
    def ready(self) -> bool:
        """Whether the lanes have been reset."""
        return self._rows > 0

    def _load_tables(self, lanes: Ints, populations: Sequence[Population]) -> None:
        """Lay the populations of the lanes behind each other, or share one table."""
        first = populations[0]
        if self._shared is not None and all(p is self._shared for p in populations):
            return
        everywhere = lanes.size == self.num_lanes
        assert everywhere or self.ready, "the first reset must name every lane"
        if everywhere and all(p is first for p in populations):
            self._allocate(first, 1)
            self._store(0, first)
            self._shared, self._first_row[:] = first, 0
            return
        shared, self._shared = self._shared, None
        if shared is not None or len(self.best_rate) != len(first.contexts) * self.num_lanes + 1:
            self._allocate(first, self.num_lanes)
            self._first_row[:] = np.arange(self.num_lanes) * self._rows
            if shared is not None:
                for row in self._first_row.tolist():
                    self._store(row, shared)
        for lane, population in zip(lanes, populations, strict=True):
            self._store(self._first_row[lane], population)

    def _allocate(self, like: Population, copies: int) -> None:
        self._rows, num_llms = like.utilities.shape
        rows = self._rows * copies + 1
        table = _query_table(rows, self.context_dim, num_llms)
        first_odds = table.shape[1] - num_llms
        missed = self.noise.missed if self.noise else 0.0
        self._truth = Truth(
            table, first_odds, self._first_row, self._rows, self.arrival_rate, missed
        )
        self.best_rate = np.zeros(rows)
        self.best_llms = np.zeros((rows, self.assortment_size), dtype=np.int64)

    def _store(self, row: int, population: Population) -> None:
        block = slice(row, row + self._rows)
        self.contexts[block] = population.contexts
        self.odds[block] = population.odds
        self.best_llms[block], self.best_rate[block] = population.best

    # ------------------------------------------------------- step and observe

    def step(self, actions: Ints) -> SlotOutcome:
        """Run one slot in every lane.

        Parameters
        ----------
        actions : ndarray of int64, shape (B, 1 + K)
            Window slot to serve, where an empty one serves nobody, and the LLMs shown, read as a
            set: a repeat shrinks the assortment. They are not checked.

        Returns
        -------
        SlotOutcome
            What a provider is told, in freshly allocated arrays.

        Raises
        ------
        OverflowError
            If an episode has lasted longer than ``MAX_SLOTS``.
        """
        if self._longest + 2 > self.window + self._state.backlog.shape[1]:
            self._grow_backlog()
        flags = np.empty((4, self.num_lanes), dtype=np.bool_)
        kept_llm = np.empty(self.num_lanes, dtype=np.int64)
        self._seen = seen = self._new_seen()
        actions = np.array(actions, dtype=np.int64, order="C")  # a type of array: compiled once
        near, position = self._streams.advance()
        state, truth = tuple(self._state), tuple(self._truth)
        self._longest, latest, _ = run_slot(
            state, truth, actions, near, position, (flags, kept_llm), seen
        )
        if latest > MAX_SLOTS:
            raise OverflowError(f"an episode lasts at most {MAX_SLOTS} slots; reset it")
        self.outcome = outcome = SlotOutcome.of(flags, kept_llm)
        if self._hearsay is None:
            return outcome
        heard = near[position, HEARING]
        told, self.feedback[:] = self._hearsay.tell(outcome, self.feedback, actions, heard)
        return told

    def _grow_backlog(self) -> None:
        """Double the rings (amortised constant time per query)."""
        old, head = self._state.backlog, self._state.counts[HEAD]
        size = old.shape[1]
        grown = np.zeros((self.num_lanes, 2 * size, FIELDS), dtype=old.dtype)
        order = (head[:, None] + np.arange(size)) & (size - 1)
        grown[:, :size] = np.take_along_axis(old, order[..., None], axis=1)
        head[:] = 0
        self._state = self._state._replace(backlog=grown)

    def _new_seen(self) -> Seen:
        lanes, window = self.num_lanes, self.window
        contexts = np.empty((lanes, window * self.context_dim), dtype=np.float32)
        waiting = np.empty((lanes, window), dtype=np.int8)
        return contexts, waiting, np.empty((3, lanes, window), dtype=np.float32)

    def observe(self, lanes: slice | int = slice(None)) -> dict[str, NDArray[np.generic]]:
        """Return what the provider sees now, freshly allocated.

        Parameters
        ----------
        lanes : slice or int
            Of which lanes; of a single one without the axis B.

        Returns
        -------
        dict of ndarrays
            ``contexts`` (B, W, d) float32, ``waiting`` (B, W) int8, ``retrials``, ``age``,
            ``wait`` (B, W) float32 (``age`` and ``wait`` in slots), ``queue_length`` (B, 1)
            float32, ``feedback`` (B,) int64. Empty slots are zero.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            seen = self._new_seen()
            show(tuple(self._state), seen)
        contexts, waiting, times = seen
        counts = self._state.counts
        return {
            "contexts": contexts.reshape(self.num_lanes, self.window, self.context_dim)[lanes],
            "waiting": waiting[lanes],
            "retrials": times[0, lanes],
            "age": times[1, lanes],
            "wait": times[2, lanes],
            "queue_length": counts[QUEUE_LENGTH, lanes, None].astype(np.float32),
            "feedback": counts[FEEDBACK].copy()[lanes],  # to copy a number takes longer
        }

    # ------------------------------------------------- the truth, for oracles

    @property
    def contexts(self) -> Singles:
        """Contexts of the populations of all lanes, then a row of zeros; shape (R + 1, d)."""
        return self._truth.table.view(np.float32)[:, : self.context_dim]

    @property
    def odds(self) -> Floats:
        """Odds of every LLM for each of ``contexts``, shape (R + 1, N)."""
        return self._truth.table[:, self._truth.first_odds :]

    @property
    def window_queries(self) -> Ints:
        """Row of ``contexts`` in every visible slot, -1 where empty; shape (B, W)."""
        waiting = np.arange(self.window) < self.queue_length[:, None]
        return np.where(waiting, self._first_row[:, None] + self._state.window[:, NUMBER], -1)

    @property
    def load(self) -> Floats:
        """Load rho = lambda / capacity of every lane, shape (B,)."""
        return self.arrival_rate / self.capacity

    def tail_query(self) -> int:
        """Return the row of ``contexts`` of the last query of the only lane; somebody waits."""
        state, place = self._state, self.queue_length.item(0) - 1
        if place < self.window:
            return int(state.window.item(0, NUMBER, place))
        tail = state.counts.item(HEAD, 0) + place - self.window
        return int(state.backlog.item(0, tail & (state.backlog.shape[1] - 1), NUMBER))

    def best_actions(self) -> tuple[Ints, Ints]:
        """Return the myopic oracle's action: slots (B,) and LLMs (B, K); ties to the head.

        Of the visible queries: no action reaches the backlog.
        """
        actions = np.empty((self.num_lanes, 1 + self.assortment_size), dtype=np.int64)
        rates, llms = self.best_rate, self.best_llms
        serve_best(tuple(self._state), self._first_row, rates, llms, actions)
        return actions[:, 0], actions[:, 1:]


def _query_table(rows: int, context_dim: int, num_llms: int) -> Floats:
    """Allocate a row a query: its context (float32) first, its odds last.

    Rows start at cache lines, so that most reads of a query miss the cache once.
    """
    width = -(-((context_dim + 1) // 2 + num_llms) // _LINE) * _LINE
    memory = np.zeros(rows * width + _LINE)
    first = -memory.ctypes.data // memory.itemsize % _LINE
    return memory[first : first + rows * width].reshape(rows, width)
