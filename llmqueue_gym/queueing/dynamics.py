"""The retrial queue (CQB-MNL): one slot of B independent copies, in the order of the paper.

Source: Bae, Son, Lee, "Learning to Route and Schedule LLMs from User Retrials via Contextual
Queueing Bandits" (arXiv 2602.02061). `run_slot` is the slot; who draws and
calls it, see `llmqueue_gym.queueing.lanes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import borrowing, part

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Stamps = NDArray[np.int32]
Bools = NDArray[np.bool_]

NOTHING_SERVED, RETRIED, FIRST_LLM = 0, 1, 2
"""Codes of the feedback: nothing was served, the user retried, LLM j was kept (2 + j)."""

ARRIVALS, CONTEXTS, OUTCOMES, HEARING = range(4)
NUM_STREAMS = 3
"""Arrivals, contexts and outcomes each have a stream of their own; noisy feedback has a fourth."""

NUMBER, RETRIALS, ARRIVED, JOINED = range(4)
"""Fields of a waiting query: its number in the lane's population, how often its user has retried,
the slots in which it arrived and last joined the tail."""
FIELDS = 4

SLOT, QUEUE_LENGTH, FEEDBACK, HEAD = range(4)
"""What is counted in a lane: slots completed since the reset, t; waiting queries, backlog included;
what the last served user did; the first of the backlog, modulo C."""

# Kernels take these as plain tuples: numba passes them on faster, and keeps no class in its cache,
# where a later version would look for it.
Arrays = tuple[Any, ...]


class State(NamedTuple):
    """Who waits in every lane: the first W queries in the window, the others in a ring."""

    counts: Ints  # (4, B) SLOT, QUEUE_LENGTH, FEEDBACK, HEAD
    window: Stamps  # (B, FIELDS, W) in service order
    contexts: Singles  # (B, W d) of the window, 0 where nobody waits; to gather them is slow
    backlog: Stamps  # (B, C, FIELDS) rings, with C a power of two


class Truth(NamedTuple):
    """What no agent sees: the queries that may arrive, their odds, and how often they arrive."""

    table: Floats  # (R + 1, D) a row a query: its context, as float32, and from first_odds its odds
    first_odds: int
    first_row: Ints  # (B,) where the lane's population starts
    num_queries: int  # P, of every lane
    arrival_rate: Floats  # (B,) lambda
    missed: float  # share of the retrials that nobody sees


class SlotOutcome(NamedTuple):
    """What a provider is told of one slot; arrays of shape (B,)."""

    arrived: Bools
    served: Bools
    departed: Bools
    retried: Bools
    kept_llm: Ints  # -1 where no answer was kept

    @classmethod
    def of(cls, flags: Bools, kept_llm: Ints) -> SlotOutcome:
        """Name what a slot fills: four flags of each lane, and the LLM kept."""
        return cls(flags[0], flags[1], flags[2], flags[3], kept_llm)

    @classmethod
    def nothing(cls, lanes: int) -> SlotOutcome:
        """Return what is told where nothing was done."""
        return cls.of(np.zeros((4, lanes), dtype=np.bool_), np.full(lanes, -1))


Seen = tuple[Singles, NDArray[np.int8], Singles]
"""What a provider sees of the W places in service order: contexts (B, W d), waiting (B, W), and
retrials, age and wait (3, B, W); zero where nobody waits."""


@borrowing
def run_slot(
    state: Arrays,
    truth: Arrays,
    actions: Ints,
    draws: Floats,
    position: int,
    outcome: Arrays,
    seen: Arrays,
) -> tuple[int, int, float]:
    """Run one slot in every lane, and show its end.

    ``state`` is a `State`, changed in place, and ``truth`` a `Truth`. ``actions`` (B, 1 + K) are
    the window slot to serve, where an empty one serves nobody, and the LLMs shown, a set. ``draws``
    (n, NUM_STREAMS, B), one stream more with noise, are uniform draws of several slots, of which
    this is ``position``. Filled are ``outcome``, what `SlotOutcome.of` takes, and ``seen``.

    Return the longest queue, the most slots completed, and a number that makes it read ahead.
    """
    counts, window, contexts, backlog = state
    clock, queue_length = counts[SLOT], counts[QUEUE_LENGTH]
    feedback, head = counts[FEEDBACK], counts[HEAD]
    table, _, first_row, num_queries, arrival_rate, missed = truth
    flags, all_kept = outcome
    all_arrived, all_served, all_departed, all_retried = flags[0], flags[1], flags[2], flags[3]
    rows, size, longest, latest = table.view(np.float32), window.shape[2], 0, 0
    dim, one = np.uint64(contexts.shape[1] // size), np.uint64(1)
    touched = read_ahead(state, truth, actions, draws, position)
    # 1. The chosen query is served by the chosen LLMs; 2. its user keeps an answer or retries.
    answer(state, truth, actions, draws, position, all_kept)
    for lane in range(clock.size):
        now, length, slot = clock[lane] + 1, queue_length[lane], actions[lane, 0]
        visible = min(length, size)
        first, behind = head[lane], length - visible  # the backlog

        served, kept = slot < visible, all_kept[lane]
        if served:  # 3. It leaves its place, and those behind move up.
            place, following = np.uint64(slot), np.uint64(visible - 1 - slot)
            query, retrials = window[lane, NUMBER, place], window[lane, RETRIALS, place]
            came = window[lane, ARRIVED, place]
            for field in range(FIELDS):
                for i in range(following):
                    window[lane, field, place + i] = window[lane, field, place + one + i]
            for i in range(following * dim):
                contexts[lane, place * dim + i] = contexts[lane, (place + one) * dim + i]
            visible -= 1
            # 4. If it retries, it joins the tail again; unseen, as one that has just arrived.
            if kept < 0:
                if missed > 0.0 and draws[position, HEARING, lane] < missed:
                    retrials, came = -1, now
                push(backlog, lane, first + behind, query, retrials + 1, came, now)
                behind += 1

        # 5. A query arrives with probability lambda.
        arrived = draws[position, ARRIVALS, lane] < arrival_rate[lane]
        if arrived:
            query = int(draws[position, CONTEXTS, lane] * num_queries)
            push(backlog, lane, first + behind, query, 0, now, now)
            behind += 1

        # Whom the window has room for moves up. 6. The queue length is read.
        while behind > 0 and visible < size:
            top, place = np.uint64(first & (backlog.shape[1] - 1)), np.uint64(visible)
            for field in range(FIELDS):
                window[lane, field, place] = backlog[lane, top, field]
            row = np.uint64(first_row[lane] + backlog[lane, top, NUMBER])
            for i in range(dim):
                contexts[lane, place * dim + i] = rows[row, i]
            first, behind, visible = first + 1, behind - 1, visible + 1
        if visible < size:  # perhaps just left
            for i in range(dim):
                contexts[lane, np.uint64(visible) * dim + i] = 0.0
        length = visible + behind
        clock[lane], queue_length[lane], head[lane] = now, length, first
        departed, retried = kept >= 0, served and kept < 0
        feedback[lane] = FIRST_LLM + kept if departed else RETRIED if retried else NOTHING_SERVED
        all_arrived[lane], all_served[lane], all_departed[lane] = arrived, served, departed
        all_retried[lane] = retried
        longest, latest = max(longest, length), max(latest, now)
    show(state, seen)
    return longest, latest, touched


@part
def answer(
    state: Arrays, truth: Arrays, actions: Ints, draws: Floats, position: int, all_kept: Ints
) -> None:
    """Write the LLM that the served user of each lane keeps, -1 for a retrial and for nobody.

    A loop of its own, without a branch: the processor works on the users of several lanes at once.
    """
    counts, window, _, _ = state
    queue_length, size = counts[QUEUE_LENGTH], window.shape[2]
    table, first_odds, first_row, _, _, _ = truth
    for lane in range(all_kept.size):
        slot, draw = actions[lane, 0], draws[position, OUTCOMES, lane]
        row = first_row[lane] + window[lane, NUMBER, np.uint64(slot)]
        kept = choose(table, row, first_odds, actions, lane, draw)
        all_kept[lane] = kept if slot < min(queue_length[lane], size) else -1


@part
def choose(table: Floats, row: int, first_odds: int, actions: Ints, lane: int, draw: float) -> int:
    """Return the LLM the user keeps, -1 for a retrial.

    Inverse CDF over [retry, S[0], S[1], ...] with S in increasing order; a repeat adds nothing.
    No branch depends on who is chosen: none could be predicted.
    """
    shown, num_llms = actions.shape[1] - 1, table.shape[1] - first_odds
    total, llm = 0.0, -1
    for _ in range(shown):
        llm = next_llm(actions, lane, llm, num_llms)
        total += odds(table, row, first_odds, llm)
    threshold = draw * (total + 1.0)
    total, llm, kept = 0.0, -1, -1
    for _ in range(shown):
        llm = next_llm(actions, lane, llm, num_llms)
        kept = llm if (llm < num_llms) & (threshold >= total + 1.0) else kept
        total += odds(table, row, first_odds, llm)
    return kept


@part
def odds(table: Floats, row: int, first_odds: int, llm: int) -> float:
    """Return the odds of an LLM, 0 where there is none."""
    column, last = np.uint64(first_odds + llm), np.uint64(table.shape[1] - 1)
    value = table[np.uint64(row), min(column, last)]
    return value if column <= last else 0.0


@part
def next_llm(actions: Ints, lane: int, after: int, num_llms: int) -> int:
    """Return the smallest LLM shown that is larger than ``after``, N if there is none."""
    smallest = num_llms
    for i in range(1, actions.shape[1]):
        llm = actions[lane, i]
        smallest = llm if (llm > after) & (llm < smallest) else smallest
    return smallest


@part
def push(
    backlog: Stamps, lane: int, tail: int, query: int, retrials: int, arrived: int, joined: int
) -> None:
    """Write a query behind the others of the backlog."""
    end = np.uint64(tail & (backlog.shape[1] - 1))
    backlog[lane, end, NUMBER], backlog[lane, end, RETRIALS] = query, retrials
    backlog[lane, end, ARRIVED], backlog[lane, end, JOINED] = arrived, joined


@part
def read_ahead(state: Arrays, truth: Arrays, actions: Ints, draws: Floats, position: int) -> float:
    """Read a number of each row of the table that the slot needs.

    Rows of a large table miss the cache. Without a branch on what they hold, the processor fetches
    many at a time; in the slot it would wait for each. (numba is slower at signed indices.)
    """
    counts, window, _, backlog = state
    queue_length, head = counts[QUEUE_LENGTH], counts[HEAD]
    table, first_odds, first_row, num_queries, _, _ = truth
    ring, touched = backlog.shape[1] - 1, 0.0
    for lane in range(first_row.size):
        chosen = window[lane, NUMBER, np.uint64(actions[lane, 0])]
        waiting = backlog[lane, np.uint64(head[lane] & ring), NUMBER]
        new = int(draws[position, CONTEXTS, lane] * num_queries)
        next_shown = waiting if queue_length[lane] > window.shape[2] else new
        touched += table[np.uint64(first_row[lane] + chosen), np.uint64(first_odds)]
        touched += table[np.uint64(first_row[lane] + next_shown), np.uint64(0)]
    return touched


@borrowing
def show(state: Arrays, seen: Arrays) -> None:
    """Write what waits in the window; ages are counted when they are shown."""
    counts, window, contexts, _ = state
    shown, waiting, times = seen
    retrials, age, wait = times[0], times[1], times[2]
    slot, queue_length = counts[SLOT], counts[QUEUE_LENGTH]
    size, dim = window.shape[2], contexts.shape[1] // window.shape[2]
    for lane in range(slot.size):
        now, visible = np.int32(slot[lane]), min(queue_length[lane], size)
        # All places alike: a loop that ends with the queue ends where nobody could predict.
        for place in range(size):
            waiting[lane, place] = place < visible
        for place in range(size):  # a field a loop: so they are vectorised
            retrials[lane, place] = window[lane, RETRIALS, place] if place < visible else 0
        for place in range(size):
            age[lane, place] = now - window[lane, ARRIVED, place] if place < visible else 0
        for place in range(size):
            wait[lane, place] = now - window[lane, JOINED, place] if place < visible else 0
        for i in range(size * dim):
            shown[lane, i] = contexts[lane, i]


@borrowing
def serve_best(
    state: Arrays, first_row: Ints, best_rate: Floats, best_llms: Ints, actions: Ints
) -> None:
    """Write the myopic oracle's actions (B, 1 + K): the largest p*(x) in view, first of equals.

    ``best_rate`` and ``best_llms`` have those of the table's rows, nobody's last.
    """
    counts, window, _, _ = state
    queue_length, size = counts[QUEUE_LENGTH], window.shape[2]
    for lane in range(first_row.size):
        slot, best = 0, best_rate.size - 1
        for place in range(min(queue_length[lane], size)):
            row = first_row[lane] + window[lane, NUMBER, place]
            if best_rate[row] > best_rate[best]:
                slot, best = place, row
        actions[lane, 0] = slot
        for k in range(best_llms.shape[1]):
            actions[lane, 1 + k] = best_llms[best, k]
