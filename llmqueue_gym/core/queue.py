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

ARRIVALS, CONTEXTS, OUTCOMES = range(3)
NUM_STREAMS = 3
"""Arrivals, contexts and outcomes each have a stream of their own."""

MAX_UTILITY = 600.0
MAX_SLOTS = 2**24
"""Slots an episode may last: float32 holds stamps and counts exactly up to here."""

# A waiting query takes four 32-bit cells: its row (int32, -1 where nobody waits), how often its
# user has retried, the slots since its arrival and since it last joined the tail (float32). In the
# backlog the last two are the slots since its arrival when it joined, and that slot.
_CELLS = 4
_EMPTY = np.array([-1, 0, 0, 0], dtype=np.int32).view(np.uint32)
# NumPy moves opaque items whole.
_RECORD = np.dtype((np.void, 4 * _CELLS))
_CACHE_LINE = 64
_DOUBLES = _CACHE_LINE // 8


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
        self._both_lanes = np.tile(self._lanes, 2)
        self._now = np.zeros(num_lanes, dtype=np.float32)  # the slot, for stamps
        self._streams = UniformStreams(NUM_STREAMS, num_lanes)
        self._shared: Population | None = None  # what all lanes hold, if it is one object
        self._first_row = np.zeros(num_lanes, dtype=np.int64)
        self._rows = 0  # population size P; 0 before the first reset
        self.best_rate = np.zeros(1)
        self.best_llms = np.zeros((1, assortment_size), dtype=np.int64)
        self._table, self._num_llms = _query_table(1, context_dim, 1), 1
        # The window, a row of cells a field: NumPy is fast along long contiguous rows.
        self._cells = np.repeat(_EMPTY[:, None], num_lanes * window, axis=1)
        # Contexts move with their queries: gathering them from a large table misses the cache.
        self._context = np.zeros((num_lanes, window, context_dim), dtype=np.float32)
        self._waiting = np.tri(window + 1, window, -1, dtype=np.int8)  # by visible queries
        # By the slot that frees: which slots take over their right neighbour.
        self._moving = np.tri(window, dtype=np.bool_).T.copy()
        self._moving[:, -1] = False
        self._moving_bits = np.where(self._moving, np.uint32(0xFFFFFFFF), np.uint32(0))
        self._occupied = self._waiting.astype(np.float32)
        self._first_slot = self._lanes * window
        self._backlog = np.zeros((num_lanes, 16), dtype=_RECORD)  # rings, a power of two long
        self._backlog_head = np.zeros(num_lanes, dtype=np.int64)
        self._arrivals: tuple[Bools, NDArray[np.uint32]] | None = None
        self._arrivals_of = -1
        self._bind_views()

    def _bind_views(self) -> None:
        """Name the views of the state; copies and pickles bind them to their own arrays."""
        shape = self.num_lanes, self.window
        context_item = np.dtype((np.void, 4 * self.context_dim))
        fields = self._cells.view(np.float32)
        self._flat_query = self._cells[0].view(np.int32)
        self._query = self._flat_query.reshape(shape)
        self._seen = fields[1:].reshape(3, *shape)  # retrials, age, wait
        self._ages = fields[2:]
        self._context_items = self._context.view(context_item).reshape(-1)
        self._lane = (
            self._cells[:, : self.window],
            fields[:, : self.window],
            self._context_items[: self.window],
            self._seen[:, 0],
            self._seen[1:, 0],
        )
        table, width = self._table, self._table.shape[1]
        self.contexts = table.view(np.float32)[:, : self.context_dim]
        self.odds = table[:, width - self._num_llms :]
        self._flat_table = table.reshape(-1)
        self._table_rows = self._flat_table.view(np.dtype((np.void, 8 * width)))
        self._table_items = np.ndarray(len(table), context_item, table, strides=table.strides[:1])

    _VIEWS = frozenset(
        {
            "_flat_query",
            "_query",
            "_seen",
            "_ages",
            "_context_items",
            "_lane",
            "contexts",
            "odds",
            "_flat_table",
            "_table_rows",
            "_table_items",
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
        self._cells.reshape(_CELLS, self.num_lanes, -1)[:, index] = _EMPTY[:, None, None]
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
        self._rows, self._num_llms = like.utilities.shape
        rows = self._rows * copies + 1
        self._table = _query_table(rows, self.context_dim, self._num_llms)
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
        near = self._streams.advance()
        if self._arrivals is None or self._arrivals_of != self._streams.chunk:
            self._arrivals, self._arrivals_of = self._plan_arrivals(), self._streams.chunk
        arrived = self._arrivals[0][near].copy()
        length, window = self.queue_length, self.window
        self.slot += 1
        self._now[:] = self.slot
        self._ages += self._occupied.take(np.minimum(length, window), axis=0).reshape(-1)

        # 1-3. Serve: inverse CDF over [retry, S[0], S[1], ...] with S in increasing order.
        queries = np.empty((_CELLS, 2, self.num_lanes), dtype=np.uint32)  # those that may join
        place = self._first_slot + slots
        for cells, taken in zip(self._cells[:3], queries[:3, 0], strict=True):
            cells.take(place, out=taken, mode="clip")
        query = queries[0, 0].view(np.int32).astype(np.int64)
        served = query >= 0
        shown, cumulative = self._cumulative_odds(query, llms)
        threshold = self._streams.near[near, OUTCOMES] * cumulative[-1]
        departed = threshold >= 1.0
        departed &= served
        choice = shown[-1]
        for llm, upper in zip(shown[-2::-1], cumulative[-2::-1], strict=True):
            # np.where is slow on conditions that look random.
            choice = choice + (llm - choice) * (threshold < upper)
        code = (choice + 1) * departed

        # 4. The served query leaves its slot and the head of the backlog moves up; a query that
        # retries joins the tail. 5. A query that arrives at the end of the slot joins it.
        joins = np.empty((2, self.num_lanes), dtype=np.bool_)
        retried = np.greater(served, departed, out=joins[0])
        joins[1] = arrived
        fields = queries.view(np.float32)
        fields[1, 0] += 1.0
        fields[3, 0] = 0.0
        queries[:, 1] = self._arrivals[1][:, near]
        self._close_gaps(np.where(served, slots, window - 1))
        entering = self._move_up(served)
        position = np.empty((2, self.num_lanes), dtype=np.int64)
        np.subtract(length, served, out=position[0])
        np.subtract(length, departed, out=position[1])
        np.add(position[1], arrived, out=length)
        self._join(joins, position, queries.reshape(_CELLS, -1), entering)
        self.feedback = code + served
        return SlotOutcome(arrived, served, departed, retried.copy(), code - 1)

    def _plan_arrivals(self) -> tuple[Bools, NDArray[np.uint32]]:
        """Prepare the arrivals of the slots whose draws lie ready: they depend on no action."""
        near = self._streams.near
        cells = np.zeros((_CELLS, len(near), self.num_lanes), dtype=np.uint32)
        cells[0] = self._first_row + (near[:, CONTEXTS] * self._rows).astype(np.int64)
        return near[:, ARRIVALS] < self.arrival_rate, cells

    def _cumulative_odds(self, query: Ints, llms: Ints) -> tuple[Ints, Floats]:
        """Sort the LLMs of each lane and add up 1 + o_1 + ... + o_j; a repeat adds nothing.

        Returns arrays of shape (K, B): NumPy is slow along short rows.
        """
        shown = llms.T.copy()
        for end in range(self.assortment_size - 1, 0, -1):
            for j in range(end):
                low = np.minimum(shown[j], shown[j + 1])
                np.maximum(shown[j], shown[j + 1], out=shown[j + 1])
                shown[j] = low
        width = self._table.shape[1]
        odds = self._flat_table.take(shown + (query * width + (width - self._num_llms)))
        odds[1:] *= shown[1:] != shown[:-1]
        for previous, total in pairwise(odds):
            total += previous
        odds += 1.0
        return shown, odds

    def _close_gaps(self, slots: Ints) -> None:
        """Move what waits behind a slot of each lane up by one; the last slot stays as it is."""
        bits = self._moving_bits.take(slots, axis=0).reshape(-1)[:-1]
        change = np.empty_like(bits)
        for cells in self._cells:  # x ^ (x ^ y) = y where the bits are set
            np.bitwise_xor(cells[:-1], cells[1:], out=change)
            change &= bits
            cells[:-1] ^= change
        moving = self._moving.take(slots, axis=0).reshape(-1)[:-1]
        # In one dimension NumPy moves in place, without a temporary copy.
        np.copyto(self._context_items[:-1], self._context_items[1:], where=moving)

    def _move_up(self, served: Bools) -> tuple[Ints, NDArray[np.uint32]]:
        """Return what enters the last slot of full windows: the head of the backlog, or nobody."""
        lanes = (served & (self.queue_length >= self.window)).nonzero()[0]
        waits = self.queue_length.take(lanes) > self.window
        head, size = self._backlog_head.take(lanes), self._backlog.shape[1]
        records = self._backlog.reshape(-1).take(lanes * size + head)
        self._backlog_head[lanes] = (head + waits) & (size - 1)
        entering = np.ascontiguousarray(records.view(np.uint32).reshape(-1, _CELLS).T)
        fields = entering.view(np.float32)
        np.subtract(self._now.take(lanes), fields[3], out=fields[3])
        fields[2] += fields[3]
        entering *= waits
        entering[0] -= ~waits  # -1: nobody
        return self._first_slot.take(lanes) + (self.window - 1), entering

    def _join(
        self,
        joins: Bools,
        position: Ints,
        queries: NDArray[np.uint32],
        entering: tuple[Ints, NDArray[np.uint32]],
    ) -> None:
        """Write what enters full windows, then queries at their positions in their queues.

        Joins and positions have shape (2, B), queries (4, 2 B).
        """
        visible = position < self.window
        visible &= joins
        inside = visible.reshape(-1).nonzero()[0]
        place = (self._first_slot + position).reshape(-1).take(inside)
        place = np.concatenate([entering[0], place])  # of one place twice, the last value stays
        written = np.concatenate([entering[1], queries.take(inside, axis=1)], axis=1)
        for cells, values in zip(self._cells, written, strict=True):
            cells[place] = values
        rows = written[0].view(np.int32).astype(np.int64)
        # Reading a number of each row first overlaps the cache misses; copying rows does not.
        self._flat_table.take(rows * self._table.shape[1])
        rows = self._table_rows.take(rows)
        contexts = np.ndarray(rows.size, self._context_items.dtype, rows, strides=rows.strides)
        self._context_items[place] = contexts
        beyond = (joins > visible).reshape(-1).nonzero()[0]
        if beyond.size:
            behind = position.reshape(-1).take(beyond) - self.window
            while behind.max() >= self._backlog.shape[1]:
                self._grow_backlog()
            lanes, size = self._both_lanes.take(beyond), self._backlog.shape[1]
            tail = (self._backlog_head.take(lanes) + behind) & (size - 1)
            records = np.empty((beyond.size, _CELLS), dtype=np.uint32)
            queries.take(beyond, axis=1, out=records.T, mode="clip")
            records.view(np.float32)[:, 3] = self._now.take(lanes)
            self._backlog.reshape(-1)[lanes * size + tail] = records.view(_RECORD)[:, 0]

    def _grow_backlog(self) -> None:
        """Double the ring buffers (amortised constant time per query)."""
        capacity = self._backlog.shape[1]
        order = (self._backlog_head[:, None] + np.arange(capacity)) & (capacity - 1)
        grown = np.zeros((self.num_lanes, 2 * capacity), dtype=_RECORD)
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
        cells, fields, contexts, _, ages = self._lane  # views of lane 0
        length, now = self.queue_length.item(0), self.slot.item(0) + 1
        if now > MAX_SLOTS:
            raise OverflowError(f"an episode lasts at most {MAX_SLOTS} slots; reset it")
        self.slot[0] = now
        visible = min(length, self.window)
        ages += self._occupied[visible]
        kept_llm, feedback = -1, NOTHING_SERVED
        served = slot < length
        if served:
            query, last = self._flat_query.item(slot), visible - 1
            retrials, age = fields.item(1, slot), fields.item(2, slot)
            kept_llm = self._choose_single(query, llms, outcome_draw)
            feedback = kept_llm + FIRST_LLM
            if slot < last:
                cells[:, slot:last] = cells[:, slot + 1 : visible]
                contexts[slot:last] = contexts[slot + 1 : visible]
            if length > self.window:
                head = self._backlog_head.item(0)
                cells[:, last] = self._backlog[0, head : head + 1].view(np.uint32)
                elapsed = now - fields.item(3, last)
                fields[2, last] += elapsed
                fields[3, last] = elapsed
                contexts[last] = self._table_items[self._flat_query.item(last)]
                self._backlog_head[0] = (head + 1) & (self._backlog.shape[1] - 1)
            else:
                cells[:, last] = _EMPTY
                contexts[last] = self._table_items[-1]
            length -= 1
            if kept_llm < 0:
                self._join_single(length, query, retrials + 1.0, age)
                length += 1
        arrived = arrival_draw < self.arrival_rate.item(0)
        if arrived:
            self._join_single(length, int(context_draw * self._rows), 0.0, 0.0)
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

    def _join_single(self, length: int, query: int, retrials: float, age: float) -> None:
        if length < self.window:  # where nobody waits, every cell but the row is zero
            _, fields, contexts, _, _ = self._lane
            self._flat_query[length] = query
            if retrials:
                fields[1, length], fields[2, length] = retrials, age
            contexts[length] = self._table_items[query]
            return
        behind = length - self.window
        if behind >= self._backlog.shape[1]:
            self._grow_backlog()
        tail = (self._backlog_head.item(0) + behind) & (self._backlog.shape[1] - 1)
        record = self._backlog[0, tail : tail + 1]
        record.view(np.int32)[0] = query
        record.view(np.float32)[1:] = retrials, age, self.slot.item(0)

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
        retrials, age, wait = self._seen.copy()
        visible = np.minimum(self.queue_length, self.window)
        return {
            "contexts": self._context.copy(),
            "waiting": self._waiting.take(visible, axis=0),
            "retrials": retrials,
            "age": age,
            "wait": wait,
            "queue_length": self.queue_length[:, None].astype(np.float32),
            "feedback": self.feedback.copy(),
        }

    def observe_single(self) -> dict[str, Any]:
        """Return :meth:`observe` of the only lane, without the lane axis."""
        length = self.queue_length.item(0)
        retrials, age, wait = self._lane[3].copy()
        return {
            "contexts": self._context[0].copy(),
            "waiting": self._waiting[min(length, self.window)].copy(),
            "retrials": retrials,
            "age": age,
            "wait": wait,
            "queue_length": np.array([length], dtype=np.float32),
            "feedback": self.feedback[0],
        }

    # ------------------------------------------------- the truth, for oracles

    @property
    def window_queries(self) -> NDArray[np.int32]:
        """Row of ``contexts`` in every visible slot, -1 where empty; shape (B, W)."""
        queries: NDArray[np.int32] = self._query
        return queries

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


def _query_table(rows: int, context_dim: int, num_llms: int) -> Floats:
    """Allocate a row a query: its context (float32) first, its odds last.

    Rows start at cache lines, so that serving a query finds its odds where its context was read
    when it joined: with a table per lane most reads miss the cache.
    """
    width = -(-((context_dim + 1) // 2 + num_llms) // _DOUBLES) * _DOUBLES
    memory = np.zeros(rows * width + _DOUBLES)
    first = -memory.ctypes.data % _CACHE_LINE // 8
    return memory[first : first + rows * width].reshape(rows, width)
