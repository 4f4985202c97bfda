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

from llmqueue_gym.core.choice import best_assortment
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
"""Slots an episode may last: float32 holds counts of slots exactly up to here."""

NARROW_LIMIT = 2**16 - 2
"""Largest query number and slot that 16-bit cells hold (the largest number is nobody)."""

# A waiting query takes four unsigned cells: its number in the lane's population (all bits set where
# nobody waits), how often its user has retried, the slots since its arrival and since it last
# joined the tail. In the backlog the last two are the slots since its arrival when it joined, and
# that slot. Cells are 16 bits wide until an episode or a population outgrows them: moving the
# window takes half the time.
_CELLS = 4
Cells = NDArray[np.unsignedinteger[Any]]
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
    cost : ndarray, shape (P, N), or None
        USD that an answer of LLM j to the query costs, kept or not; None where nobody knows.
    """

    contexts: NDArray[np.float32]
    utilities: Floats
    assortment_size: int
    cost: Floats | None = None

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

    A slot costs O(B (W d + K^2)), whatever the backlog and the time: the window's contexts move up
    and are shown, and the LLMs shown are sorted in K (K - 1) / 2 exchanges. One lane is stepped in
    plain Python (about 3 us), several with NumPy; both follow the same order on the same state and
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
        self._streams = UniformStreams(NUM_STREAMS, num_lanes)
        self._shared: Population | None = None  # what all lanes hold, if it is one object
        self._first_row = np.zeros(num_lanes, dtype=np.int64)
        self._rows = 0  # population size P; 0 before the first reset
        self.best_rate = np.zeros(1)
        self.best_llms = np.zeros((1, assortment_size), dtype=np.int64)
        self._table, self._num_llms = _query_table(1, context_dim, 1), 1
        # The window, a row of cells a field: NumPy is fast along long contiguous rows.
        self._dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype(np.uint16)
        self._cells: Cells = np.zeros((_CELLS, num_lanes * window), dtype=self._dtype)
        self._cells[0] = np.iinfo(self._dtype).max
        self._latest, self._limit = 0, NARROW_LIMIT  # no lane's slot is later; what cells hold
        # Contexts move with their queries: gathering them from a large table misses the cache.
        self._context = np.zeros((num_lanes, window, context_dim), dtype=np.float32)
        self._waiting = np.tri(window + 1, window, -1, dtype=np.int8)  # by visible queries
        # By the slot that frees: which slots take over their right neighbour.
        self._moving = np.tri(window, dtype=np.bool_).T.copy()
        self._moving[:, -1] = False
        self._first_slot = self._lanes * window
        self._last_slot = self._first_slot + (window - 1)
        # Rings, a power of two long, of records: NumPy moves opaque items whole.
        self._backlog = np.zeros((num_lanes, 16), dtype=(np.void, _CELLS * self._dtype.itemsize))
        self._backlog_head = np.zeros(num_lanes, dtype=np.int64)
        self._arrivals: tuple[Bools, Cells] | None = None
        self._arrivals_of = -1
        self._bind_views()

    def _bind_views(self) -> None:
        """Name the views of the state; copies and pickles bind them to their own arrays."""
        shape = self.num_lanes, self.window
        context_item = np.dtype((np.void, 4 * self.context_dim))
        self._nobody = int(np.iinfo(self._dtype).max)
        self._seen = self._cells[1:].reshape(3, *shape)  # retrials, age, wait
        self._ages = self._cells[2:]
        self._occupied = self._waiting.astype(self._dtype)
        self._moving_bits = self._moving * self._dtype.type(self._nobody)
        self._context_items = self._context.view(context_item).reshape(-1)
        self._lane = (
            self._cells[:, : self.window],
            self._context_items[: self.window],
            self._seen[:, 0],
            self._seen[1:, 0],
            self._backlog[0].view(self._dtype).reshape(-1, _CELLS),
        )
        table, width = self._table, self._table.shape[1]
        self.contexts = table.view(np.float32)[:, : self.context_dim]
        self.odds = table[:, width - self._num_llms :]
        self._flat_table = table.reshape(-1)
        self._table_rows = self._flat_table.view(np.dtype((np.void, 8 * width)))
        self._table_items = np.ndarray(len(table), context_item, table, strides=table.strides[:1])

    _VIEWS = frozenset(
        {
            "_nobody",
            "_seen",
            "_ages",
            "_occupied",
            "_moving_bits",
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
        self._seen[:, index] = 0
        self._cells[0].reshape(self.num_lanes, -1)[index] = self._nobody
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
        if self._rows > self._limit and self._dtype.itemsize == 2:
            self._widen()
        self.best_rate = np.zeros(rows)
        self.best_llms = np.zeros((rows, self.assortment_size), dtype=np.int64)
        self._bind_views()

    def _store(self, row: int, population: Population) -> None:
        block = slice(row, row + self._rows)
        self.contexts[block] = population.contexts
        self.odds[block] = population.odds
        self.best_llms[block], self.best_rate[block] = population.best

    def _widen(self) -> None:
        """Take 32 bits a cell instead of 16."""
        narrow, self._dtype, self._limit = self._dtype, np.dtype(np.uint32), MAX_SLOTS
        nobody = self._cells[0] == np.iinfo(narrow).max
        self._cells = self._cells.astype(self._dtype)
        self._cells[0, nobody] = np.iinfo(self._dtype).max
        records = self._backlog.view(narrow).astype(self._dtype)
        self._backlog = records.view((np.void, _CELLS * self._dtype.itemsize))
        self._arrivals = None
        self._bind_views()

    def _check_width(self) -> None:
        """Widen the cells before a slot, or a time waited, outgrows them."""
        self._latest = int(self.slot.max())
        if self._latest > self._limit and self._dtype.itemsize == 2:
            self._widen()

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
        self.slot += 1
        self._latest += 1
        if self._latest > self._limit:
            self._check_width()
        if self._arrivals is None or self._arrivals_of != self._streams.chunk:
            self._arrivals, self._arrivals_of = self._plan_arrivals(), self._streams.chunk
        arrived = self._arrivals[0][near].copy()
        length, window = self.queue_length, self.window
        self._ages += self._occupied.take(np.minimum(length, window), axis=0).reshape(-1)

        # 1-3. Serve: inverse CDF over [retry, S[0], S[1], ...] with S in increasing order.
        queries = np.empty((_CELLS, 2, self.num_lanes), dtype=self._dtype)  # those that may join
        place = self._first_slot + slots
        for cells, taken in zip(self._cells[:3], queries[:3, 0], strict=True):
            cells.take(place, out=taken, mode="clip")
        served = queries[0, 0] != self._nobody
        shown, cumulative = self._cumulative_odds(self._first_row + queries[0, 0], llms)
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
        queries[1, 0] += 1
        queries[0, 1] = self._arrivals[1][near]
        queries[1:, 1] = queries[3, 0] = 0
        self._close_gaps(np.where(served, slots, window - 1))
        entering = self._move_up()
        position = np.empty((2, self.num_lanes), dtype=np.int64)
        np.subtract(length, served, out=position[0])
        np.subtract(length, departed, out=position[1])
        np.add(position[1], arrived, out=length)
        self._join(joins, position, queries.reshape(_CELLS, -1), entering)
        self.feedback = code + served
        return SlotOutcome(arrived, served, departed, retried.copy(), code - 1)

    def _plan_arrivals(self) -> tuple[Bools, Cells]:
        """Say who arrives in the slots whose draws lie ready: it depends on no action."""
        near = self._streams.near
        query = (near[:, CONTEXTS] * self._rows).astype(self._dtype)
        return near[:, ARRIVALS] < self.arrival_rate, query

    def _cumulative_odds(self, rows: Ints, llms: Ints) -> tuple[Ints, Floats]:
        """Sort the LLMs of each lane and add up 1 + o_1 + ... + o_j; a repeat adds nothing.

        Rows beyond the table stand for nobody and may give anything. Returns arrays of shape
        (K, B): NumPy is slow along short rows.
        """
        shown = llms.T.copy()
        for end in range(self.assortment_size - 1, 0, -1):
            for j in range(end):
                low = np.minimum(shown[j], shown[j + 1])
                np.maximum(shown[j], shown[j + 1], out=shown[j + 1])
                shown[j] = low
        width = self._table.shape[1]
        cells = shown + (rows * width + (width - self._num_llms))
        odds = self._flat_table.take(cells, mode="clip")
        odds[1:] *= shown[1:] != shown[:-1]
        for previous, total in pairwise(odds):
            total += previous
        odds += 1.0
        return shown, odds

    def _close_gaps(self, slots: Ints) -> None:
        """Move what waits behind a slot of each lane up by one; the last slot stays as it is."""
        bits = self._moving_bits.take(slots, axis=0).reshape(-1)[:-1]
        change = self._cells[:, :-1] ^ self._cells[:, 1:]  # x ^ (x ^ y) = y where the bits are set
        change &= bits
        self._cells[:, :-1] ^= change
        moving = self._moving.take(slots, axis=0).reshape(-1)[:-1]
        # In one dimension NumPy moves in place, without a temporary copy.
        np.copyto(self._context_items[:-1], self._context_items[1:], where=moving)

    def _move_up(self) -> tuple[Cells, Ints]:
        """Return what enters the last slot of every lane: the head of the backlog, or nobody.

        With a backlog the window is full, so somebody was served and the last slot is free; in the
        other lanes nobody waits there once the served query has left. All lanes are treated alike:
        picking some of them costs more than the rest. Returns cells (4, B) and rows of the table.
        """
        waits = self.queue_length > self.window
        head, size = self._backlog_head, self._backlog.shape[1]
        records = self._backlog.reshape(-1).take(self._lanes * size + head)
        head += waits
        head &= size - 1
        entering = np.ascontiguousarray(records.view(self._dtype).reshape(-1, _CELLS).T)
        np.subtract(self.slot.astype(self._dtype), entering[3], out=entering[3])
        entering[2] += entering[3]
        rows = (self._first_row + entering[0] + 1) * waits - 1
        entering *= waits
        entering[0] -= ~waits
        return entering, rows

    def _join(
        self,
        joins: Bools,
        position: Ints,
        queries: Cells,
        entering: tuple[Cells, Ints],
    ) -> None:
        """Write what enters the last slots, then queries at their positions in their queues.

        Joins and positions have shape (2, B), queries (4, 2 B).
        """
        visible = position < self.window
        visible &= joins
        inside = visible.reshape(-1).nonzero()[0]
        place = (self._first_slot + position).reshape(-1).take(inside)
        place = np.concatenate([self._last_slot, place])  # of one place twice, the last one stays
        joining = queries.take(inside, axis=1)
        for cells, values in zip(
            self._cells, np.concatenate([entering[0], joining], axis=1), strict=True
        ):
            cells[place] = values
        first = self._first_row.take(self._both_lanes.take(inside))
        rows = np.concatenate([entering[1], first + joining[0]])
        # Reading a number of each row first overlaps the cache misses; copying rows does not.
        self._flat_table.take(rows * self._table.shape[1])
        read = self._table_rows.take(rows)
        contexts = np.ndarray(read.size, self._context_items.dtype, read, strides=read.strides)
        self._context_items[place] = contexts
        beyond = (joins > visible).reshape(-1).nonzero()[0]
        if beyond.size:
            behind = position.reshape(-1).take(beyond) - self.window
            while behind.max() >= self._backlog.shape[1]:
                self._grow_backlog()
            lanes, size = self._both_lanes.take(beyond), self._backlog.shape[1]
            tail = (self._backlog_head.take(lanes) + behind) & (size - 1)
            records = np.ascontiguousarray(queries.take(beyond, axis=1).T)
            records[:, 3] = self.slot.take(lanes)
            self._backlog.reshape(-1)[lanes * size + tail] = records.view(self._backlog.dtype)[:, 0]

    def _grow_backlog(self) -> None:
        """Double the ring buffers (amortised constant time per query)."""
        capacity = self._backlog.shape[1]
        order = (self._backlog_head[:, None] + np.arange(capacity)) & (capacity - 1)
        grown = np.zeros((self.num_lanes, 2 * capacity), dtype=self._backlog.dtype)
        grown[:, :capacity] = self._backlog[self._lanes[:, None], order]
        self._backlog, self._backlog_head = grown, np.zeros_like(self._backlog_head)
        self._bind_views()

    def step_single(self, slot: int, llms: Sequence[int]) -> tuple[bool, bool, int]:
        """Run one slot of the only lane in plain Python: `step` without array overhead.

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
        length, now = self.queue_length.item(0), self.slot.item(0) + 1
        if now > MAX_SLOTS:
            raise OverflowError(f"an episode lasts at most {MAX_SLOTS} slots; reset it")
        self.slot[0] = now
        if now > self._limit:
            self._check_width()
        cells, contexts, _, ages, backlog = self._lane  # views of lane 0
        visible = min(length, self.window)
        ages += self._occupied[visible]
        kept_llm, feedback = -1, NOTHING_SERVED
        served = slot < length
        if served:
            query, retrials, age, _ = cells[:, slot].tolist()
            last = visible - 1
            kept_llm = self._choose_single(query, llms, outcome_draw)
            feedback = kept_llm + FIRST_LLM
            if slot < last:
                cells[:, slot:last] = cells[:, slot + 1 : visible]
                contexts[slot:last] = contexts[slot + 1 : visible]
            if length > self.window:
                head = self._backlog_head.item(0)
                number, tries, since, joined = backlog[head].tolist()
                cells[:, last] = number, tries, since + now - joined, now - joined
                contexts[last] = self._table_items[number]
                self._backlog_head[0] = (head + 1) & (len(backlog) - 1)
            else:
                cells[:, last] = self._nobody, 0, 0, 0
                contexts[last] = self._table_items[-1]
            length -= 1
            if kept_llm < 0:
                self._join_single(length, query, retrials + 1, age)
                length += 1
        arrived = arrival_draw < self.arrival_rate.item(0)
        if arrived:
            self._join_single(length, int(context_draw * self._rows), 0, 0)
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

    def _join_single(self, length: int, query: int, retrials: int, age: int) -> None:
        if length < self.window:  # where nobody waits, every cell but the first is zero
            cells, contexts, _, _, _ = self._lane
            cells[0, length] = query
            if retrials:
                cells[1, length], cells[2, length] = retrials, age
            contexts[length] = self._table_items[query]
            return
        behind = length - self.window
        if behind >= self._backlog.shape[1]:
            self._grow_backlog()
        backlog = self._lane[4]
        tail = (self._backlog_head.item(0) + behind) & (len(backlog) - 1)
        backlog[tail] = query, retrials, age, self.slot.item(0)

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
        contexts = self._context.copy()  # first: the step touched it last
        retrials, age, wait = self._seen.astype(np.float32)
        visible = np.minimum(self.queue_length, self.window)
        return {
            "contexts": contexts,
            "waiting": self._waiting.take(visible, axis=0),
            "retrials": retrials,
            "age": age,
            "wait": wait,
            "queue_length": self.queue_length[:, None].astype(np.float32),
            "feedback": self.feedback.copy(),
        }

    def observe_single(self) -> dict[str, Any]:
        """Return `observe` of the only lane, without the lane axis."""
        length = self.queue_length.item(0)
        retrials, age, wait = self._lane[2].astype(np.float32)
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
    def window_queries(self) -> Ints:
        """Row of ``contexts`` in every visible slot, -1 where empty; shape (B, W)."""
        query = self._cells[0].reshape(self.num_lanes, -1)
        return np.where(query == self._nobody, -1, self._first_row[:, None] + query)

    @property
    def load(self) -> Floats:
        """Load rho = lambda / capacity of every lane, shape (B,)."""
        return self.arrival_rate / self.capacity

    def tail_query(self) -> int:
        """Return the row of ``contexts`` of the last query of the only lane; somebody waits."""
        place = self.queue_length.item(0) - 1
        cells, _, _, _, backlog = self._lane
        if place < self.window:
            return int(cells.item(0, place))
        behind = self._backlog_head.item(0) + place - self.window
        return int(backlog.item(behind & (len(backlog) - 1), 0))

    def best_actions(self) -> tuple[Ints, Ints]:
        """Return the myopic oracle's action: slots (B,) and LLMs (B, K); ties to the head.

        Of the visible queries: no action reaches the backlog.
        """
        queries = self.window_queries
        slots = self.best_rate[queries].argmax(axis=1)
        return slots, self.best_llms[queries[self._lanes, slots]]


def _query_table(rows: int, context_dim: int, num_llms: int) -> Floats:
    """Allocate a row a query: its context (float32) first, its odds last.

    Rows start at cache lines, so that serving a query finds its odds where its context was read
    when it joined: with a table per lane most reads miss the cache.
    """
    width = -(-((context_dim + 1) // 2 + num_llms) // _DOUBLES) * _DOUBLES
    memory = np.zeros(rows * width + _DOUBLES)
    first = -memory.ctypes.data % _CACHE_LINE // 8
    return memory[first : first + rows * width].reshape(rows, width)
