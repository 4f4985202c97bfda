"""The retrial queue (CQB-MNL): one slot of B independent copies, in the order of the paper.

Source: Bae, Son, Lee, "Learning to Route and Schedule LLMs from User Retrials via Contextual
Queueing Bandits" (arXiv 2602.02061).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.core.choice import best_assortment, departure_rate
from llmqueue_gym.core.streams import Draws, UniformStreams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOTHING_SERVED, RETRIED, FIRST_LLM = 0, 1, 2
"""Codes of the feedback: nothing was served, the user retried, LLM j was kept (2 + j)."""

NUM_STREAMS = 3
"""Arrivals, contexts and outcomes each have a stream of their own."""


MAX_UTILITY = 600.0
MAX_SLOTS = 2**24
"""Slots an episode may last: float32 holds stamps and counts exactly up to here."""

# One waiting query; stamps are slots.
_RECORD = np.dtype([("query", "i4"), ("retrials", "f4"), ("arrived", "f4"), ("joined", "f4")])
_EMPTY = np.array((-1, 0.0, 0.0, 0.0), dtype=_RECORD)
# NumPy moves opaque items whole, structured ones field by field.
_ITEM = np.dtype((np.void, _RECORD.itemsize))
_EMPTY_ITEM = _EMPTY.view(_ITEM)[()]


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
    """

    contexts: NDArray[np.float32]
    utilities: Floats
    assortment_size: int

    def __post_init__(self) -> None:
        if not np.all(np.abs(self.utilities) <= MAX_UTILITY):  # also false for NaN
            raise ValueError(
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


@dataclass(frozen=True)
class SlotOutcome:
    """What a provider sees of one slot; arrays of shape (B,)."""

    arrived: Bools
    served: Bools
    departed: Bools
    retried: Bools
    kept_llm: Ints  # -1 where no answer was kept


class QueueDynamics:
    """B copies of the retrial queue, seen through a window of W slots.

    A slot runs in this order: the chosen query is served by the chosen LLMs; the user keeps an
    answer and leaves, or retries and joins the tail again; a query arrives with probability
    lambda; the queue length is read.

    The window holds the first W waiting queries in service order (slot 0 is the head). Later ones
    wait in an unbounded FIFO backlog and move up as slots free.

    A slot costs O(B (W + K)), whatever the backlog and the time. One lane is stepped in plain
    Python (about 3 us), several with NumPy; both follow the same order on the same state and
    streams, and a test holds them equal bit for bit.

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

    Attributes
    ----------
    slot : ndarray of int64, shape (B,)
        Slots completed since the lane's reset, t.
    queue_length : ndarray of int64, shape (B,)
        Waiting queries, backlog included.
    feedback : ndarray of int64, shape (B,)
        What the last served user did: 0 nothing served, 1 retried, 2 + j kept LLM j.
    contexts : ndarray of float32, shape (R + 1, d)
        Contexts of the populations of all lanes; the last row is zero and stands for no query.
    odds, best_rate, best_llms : ndarrays, shapes (R + 1, N), (R + 1,), (R + 1, K)
        Hidden truth per row of ``contexts``: odds, p*(x) and the best assortment.
    arrival_rate, capacity : ndarrays, shape (B,)
        lambda and 1 / E[1 / p*] of every lane.
    """

    def __init__(self, num_lanes: int, window: int, assortment_size: int, context_dim: int) -> None:
        self.num_lanes = num_lanes
        self.window = window
        self.assortment_size = assortment_size
        self.context_dim = context_dim
        self.slot = np.zeros(num_lanes, dtype=np.int64)
        self.queue_length = np.zeros(num_lanes, dtype=np.int64)
        self.feedback = np.zeros(num_lanes, dtype=np.int64)
        self.arrival_rate = np.zeros(num_lanes)
        self.capacity = np.zeros(num_lanes)
        self._lanes = np.arange(num_lanes)
        self._streams = UniformStreams(NUM_STREAMS, num_lanes)
        self._shared: Population | None = None  # what all lanes hold, if it is one object
        self._first_row = np.zeros(num_lanes, dtype=np.int64)
        self._rows = 0  # population size P; 0 before the first reset
        self.contexts = np.zeros((1, context_dim), dtype=np.float32)
        self.odds = np.zeros((1, 1))
        self.best_rate = np.zeros(1)
        self.best_llms = np.zeros((1, assortment_size), dtype=np.int64)
        # Column W is scratch: what moves into the window when a slot frees.
        self._slots = np.full((num_lanes, window + 1), _EMPTY)
        # Contexts move with their queries: gathering them from a large table misses the cache.
        self._context = np.zeros((num_lanes, window + 1, context_dim), dtype=np.float32)
        self._waiting = np.tri(window + 1, window, -1, dtype=np.int8)  # by visible queries
        self._occupied = self._waiting.astype(np.float32)
        self._keep = np.ones((num_lanes, window + 1), dtype=np.bool_)
        self._first_slot = self._lanes * (window + 1)
        self._backlog = np.zeros((num_lanes, 16), dtype=_ITEM)  # rings, a power of two long
        self._backlog_head = np.zeros(num_lanes, dtype=np.int64)
        self._bind_views()

    def _bind_views(self) -> None:
        """Name the views of the state; copies and pickles bind them to their own arrays."""
        slots, window = self._slots, self.window
        context_item = np.dtype((np.void, 4 * self.context_dim))
        self._items = slots.view(_ITEM)
        self._query = slots["query"][:, :window]
        self._retrials = slots["retrials"][:, :window]
        self._arrived = slots["arrived"][:, :window]
        self._joined = slots["joined"][:, :window]
        self._context_items = self._context.view(context_item)[..., 0]
        self._table_items = self.contexts.view(context_item)[:, 0]
        self._flat_items = self._items.reshape(-1)
        self._flat_contexts = self._context_items.reshape(-1)
        self._flat_keep = self._keep.reshape(-1)
        self._lane = slots[0], self._items[0], self._context_items[0]

    _VIEWS = frozenset(
        {
            "_items",
            "_query",
            "_retrials",
            "_arrived",
            "_joined",
            "_context_items",
            "_table_items",
            "_flat_items",
            "_flat_contexts",
            "_flat_keep",
            "_lane",
        }
    )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in self._VIEWS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind_views()

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
            Per lane: arrivals, contexts, outcomes. A slot has an arrival iff its draw is below
            the rate.
        """
        for lane, population, rate, streams in zip(
            lanes, populations, arrival_rates, generators, strict=True
        ):
            self._streams.reset(lane, streams)
            self.arrival_rate[lane] = rate
            self.capacity[lane] = population.capacity
        index = np.asarray(lanes)
        self.slot[index] = 0
        self.queue_length[index] = 0
        self.feedback[index] = NOTHING_SERVED
        self._slots[index] = _EMPTY
        self._context[index] = 0.0
        self._backlog_head[index] = 0
        self._load_tables(index, populations)

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
        if shared is not None or len(self.contexts) != len(first.contexts) * self.num_lanes + 1:
            self._allocate(first, self.num_lanes)
            self._first_row[:] = self._lanes * self._rows
            if shared is not None:
                for row in self._first_row.tolist():
                    self._store(row, shared)
        for lane, population in zip(lanes, populations, strict=True):
            self._store(self._first_row[lane], population)

    def _allocate(self, like: Population, copies: int) -> None:
        self._rows = len(like.contexts)
        rows = self._rows * copies + 1
        self.contexts = np.zeros((rows, self.context_dim), dtype=np.float32)
        self.odds = np.zeros((rows, like.utilities.shape[1]))
        self.best_rate = np.zeros(rows)
        self.best_llms = np.zeros((rows, self.assortment_size), dtype=np.int64)
        self._bind_views()

    def _store(self, row: int, population: Population) -> None:
        block = slice(row, row + self._rows)
        self.contexts[block] = population.contexts
        self.odds[block] = population.odds
        self.best_llms[block], self.best_rate[block] = population.best

    # ------------------------------------------------------------------- step

    def step(self, slots: Ints, llms: Ints) -> SlotOutcome:
        """Run one slot in every lane.

        Parameters
        ----------
        slots : ndarray of int64, shape (B,)
            Window slot to serve; an empty one serves nobody.
        llms : ndarray of int64, shape (B, K)
            LLMs shown, read as a set: a repeat shrinks the assortment.

        Returns
        -------
        SlotOutcome
            Freshly allocated arrays.
        """
        arrival_draw, context_draw, outcome_draw = self._streams.draw()
        window = self.window
        self.slot += 1

        # 1-3. Serve: inverse CDF over [retry, S[0], S[1], ...] with S in increasing order.
        place = self._first_slot + slots
        item, context = self._flat_items.take(place), self._flat_contexts.take(place)
        record = item.view(_RECORD)
        query = record["query"].astype(np.int64)
        served = query >= 0
        shown, cumulative = self._cumulative_odds(query, llms)
        threshold = outcome_draw * cumulative[-1]
        departed = threshold >= 1.0
        departed &= served
        choice = shown[-1]
        for llm, upper in zip(shown[-2::-1], cumulative[-2::-1], strict=True):
            choice = np.where(threshold < upper, llm, choice)
        kept_llm = (choice + 1) * departed - 1
        retried = served & ~departed

        # 4. The served query leaves its slot; the head of the backlog moves up; a retried query
        # joins the tail.
        self._move_up(served)
        removed = self._first_slot + np.where(served, slots, window)
        self._flat_keep[removed] = False
        for array in (self._items, self._context_items):
            array[:, :window] = array[self._keep].reshape(-1, window)
        self._flat_keep[removed] = True
        self.queue_length -= served
        record["retrials"] += 1.0
        record["joined"] = self.slot
        self._join(retried, item, context)

        # 5. A query arrives at the end of the slot.
        arrived = arrival_draw < self.arrival_rate
        record["query"] = rows = self._first_row + (context_draw * self._rows).astype(np.int64)
        record["retrials"] = 0.0
        record["arrived"] = self.slot
        self._join(arrived, item, self._table_items.take(rows))

        self._items[:, window] = _EMPTY_ITEM
        self._context_items[:, window] = self._table_items[-1]
        self.feedback = np.where(served, kept_llm + FIRST_LLM, NOTHING_SERVED)
        return SlotOutcome(arrived, served, departed, retried, kept_llm)

    def _cumulative_odds(self, query: Ints, llms: Ints) -> tuple[list[Ints], list[Floats]]:
        """Sort the LLMs of each lane and add up 1 + o_1 + ... + o_j; a repeat adds nothing.

        Works on columns of shape (B,): K is small, and NumPy is slow along short rows.
        """
        shown = [llms[:, column] for column in range(self.assortment_size)]
        for end in range(self.assortment_size - 1, 0, -1):
            for j in range(end):
                low, high = shown[j], shown[j + 1]
                shown[j], shown[j + 1] = np.minimum(low, high), np.maximum(low, high)
        odds, first = self.odds.reshape(-1), query * self.odds.shape[1]
        total = odds.take(first + shown[0])
        cumulative = [total + 1.0]
        for previous, llm in pairwise(shown):
            total = total + odds.take(first + llm) * (llm != previous)
            cumulative.append(total + 1.0)
        return shown, cumulative

    def _move_up(self, served: Bools) -> None:
        """Put the head of the backlog where it enters the window when a query is served."""
        lanes = np.flatnonzero(served & (self.queue_length > self.window))
        if lanes.size:
            head = self._backlog_head.take(lanes)
            item = self._backlog.reshape(-1).take(lanes * self._backlog.shape[1] + head)
            place = self._first_slot.take(lanes) + self.window
            self._flat_items[place] = item
            self._flat_contexts[place] = self._table_items.take(item.view(_RECORD)["query"])
            self._backlog_head[lanes] = (head + 1) & (self._backlog.shape[1] - 1)

    def _join(self, joining: Bools, item: NDArray[np.void], context: NDArray[np.void]) -> None:
        """Append the query of every joining lane to its tail, in the window or the backlog."""
        position = self.queue_length
        visible = joining & (position < self.window)
        lanes = np.flatnonzero(visible)
        if lanes.size:
            place = (self._first_slot + position).take(lanes)
            self._flat_items[place] = item.take(lanes)
            self._flat_contexts[place] = context.take(lanes)
        lanes = np.flatnonzero(joining > visible)
        if lanes.size:
            behind = position.take(lanes) - self.window
            if behind.max() >= self._backlog.shape[1]:
                self._grow_backlog()
            size = self._backlog.shape[1]
            tail = (self._backlog_head.take(lanes) + behind) & (size - 1)
            self._backlog.reshape(-1)[lanes * size + tail] = item.take(lanes)
        self.queue_length += joining

    def _grow_backlog(self) -> None:
        """Double the ring buffers (amortised constant time per query)."""
        capacity = self._backlog.shape[1]
        order = (self._backlog_head[:, None] + np.arange(capacity)) & (capacity - 1)
        grown = np.zeros((self.num_lanes, 2 * capacity), dtype=_ITEM)
        grown[:, :capacity] = self._backlog[self._lanes[:, None], order]
        self._backlog, self._backlog_head = grown, np.zeros_like(self._backlog_head)

    def step_single(self, slot: int, llms: Sequence[int]) -> tuple[bool, bool, int]:
        """Run one slot of the only lane in plain Python: :meth:`step` without array overhead.

        Parameters
        ----------
        slot : int
            Window slot to serve.
        llms : sequence of int, length K
            LLMs shown, read as a set.

        Returns
        -------
        arrived, served : bool
        kept_llm : int
            The LLM whose answer was kept, -1 where none was.
        """
        arrival_draw, context_draw, outcome_draw = self._streams.draw_single()
        slots, items, contexts = self._lane  # views of lane 0
        length, now = self.queue_length.item(0), self.slot.item(0) + 1
        if now > MAX_SLOTS:
            raise OverflowError(f"an episode lasts at most {MAX_SLOTS} slots; reset it")
        self.slot[0] = now
        kept_llm, feedback = -1, NOTHING_SERVED
        served = slot < length
        if served:
            query, retrials, arrived_at, _ = slots.item(slot)
            kept_llm = self._choose_single(query, llms, outcome_draw)
            feedback = kept_llm + FIRST_LLM
            last = min(length, self.window) - 1
            if slot < last:
                items[slot:last] = items[slot + 1 : last + 1]
                contexts[slot:last] = contexts[slot + 1 : last + 1]
            if length > self.window:
                head = self._backlog_head.item(0)
                items[last] = self._backlog[0, head]
                contexts[last] = self._table_items[self._query.item(last)]
                self._backlog_head[0] = (head + 1) & (self._backlog.shape[1] - 1)
            else:
                items[last] = _EMPTY_ITEM
                contexts[last] = self._table_items[-1]
            length -= 1
            if kept_llm < 0:
                self._join_single(length, (query, retrials + 1.0, arrived_at, now))
                length += 1
        arrived = arrival_draw < self.arrival_rate.item(0)
        if arrived:
            self._join_single(length, (int(context_draw * self._rows), 0.0, now, now))
            length += 1
        self.queue_length[0] = length
        self.feedback[0] = feedback
        return arrived, served, kept_llm

    def _choose_single(self, query: int, llms: Sequence[int], outcome_draw: float) -> int:
        """Return the LLM the user keeps, -1 for a retrial."""
        shown, odds, total = sorted(set(llms)), self.odds.item, 0.0
        for llm in shown:
            total += odds(query, llm)
        threshold = outcome_draw * (total + 1.0)
        if threshold < 1.0:
            return -1
        total = 0.0
        for llm in shown[:-1]:
            total += odds(query, llm)
            if threshold < total + 1.0:
                return llm
        return shown[-1]

    def _join_single(self, length: int, record: tuple[int, float, float, float]) -> None:
        if length < self.window:
            slots, _, contexts = self._lane
            slots[length] = record
            contexts[length] = self._table_items[record[0]]
            return
        behind = length - self.window
        if behind >= self._backlog.shape[1]:
            self._grow_backlog()
        tail = (self._backlog_head.item(0) + behind) & (self._backlog.shape[1] - 1)
        self._backlog.view(_RECORD)[0, tail] = record

    # ---------------------------------------------------------------- observe

    def observe(self) -> dict[str, NDArray[np.generic]]:
        """Return what the provider sees now, freshly allocated.

        Returns
        -------
        dict of ndarrays
            ``contexts`` (B, W, d) float32, ``waiting`` (B, W) int8, ``retrials``, ``age``,
            ``wait`` (B, W) float32 (``age`` and ``wait`` in slots), ``queue_length`` (B, 1)
            float32, ``feedback`` (B,) int64. Empty slots are zero.
        """
        visible = np.minimum(self.queue_length, self.window)
        occupied = self._occupied.take(visible, axis=0)
        now = self.slot.astype(np.float32)[:, None]
        age, wait = now - self._arrived, now - self._joined
        age *= occupied
        wait *= occupied
        return {
            "contexts": self._context[:, : self.window].copy(),
            "waiting": self._waiting.take(visible, axis=0),
            "retrials": self._retrials.copy(),
            "age": age,
            "wait": wait,
            "queue_length": self.queue_length[:, None].astype(np.float32),
            "feedback": self.feedback.copy(),
        }

    def observe_single(self) -> dict[str, Any]:
        """Return :meth:`observe` of the only lane, without the lane axis."""
        length, now = self.queue_length.item(0), float(self.slot.item(0))
        visible = min(length, self.window)
        age, wait = now - self._arrived[0], now - self._joined[0]
        age *= self._occupied[visible]
        wait *= self._occupied[visible]
        return {
            "contexts": self._context[0, : self.window].copy(),
            "waiting": self._waiting[visible].copy(),
            "retrials": self._retrials[0].copy(),
            "age": age,
            "wait": wait,
            "queue_length": np.array([length], dtype=np.float32),
            "feedback": self.feedback[0],
        }

    # ------------------------------------------------- the truth, for oracles

    @property
    def window_queries(self) -> NDArray[np.int32]:
        """Row of ``contexts`` in every visible slot, -1 where empty; shape (B, W)."""
        return self._query

    @property
    def load(self) -> Floats:
        """Load rho = lambda / capacity of every lane, shape (B,)."""
        return self.arrival_rate / self.capacity

    def departure_rate(self, slots: Ints, llms: Ints) -> Floats:
        """Return the true p(x, S) of an action in every lane, 0 for an empty slot; shape (B,)."""
        shown = np.sort(llms, axis=1)
        odds = self.odds[self._query[self._lanes, slots][:, None], shown]
        odds[:, 1:] *= shown[:, 1:] != shown[:, :-1]
        return departure_rate(odds)

    def best_waiting_rate(self) -> Floats:
        """Return max p*(x) over the visible queries, 0 where nobody waits; shape (B,)."""
        return np.asarray(self.best_rate[self._query].max(axis=1))

    def best_actions(self) -> tuple[Ints, Ints]:
        """Return the myopic oracle's action: slots (B,) and LLMs (B, K); ties to the head."""
        slots = self.best_rate[self._query].argmax(axis=1)
        return slots, self.best_llms[self._query[self._lanes, slots]]
