"""Busy replicas and returning users: one slot of B independent copies, in the order of the model.

`run_slot` is the slot; `llmqueue_gym.serving.lanes` draws and keeps the arrays.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import borrowing, part
from llmqueue_gym.serving.instance import NEVER, Floats, Ints, Singles

Arrays = tuple[Any, ...]
Stamps = NDArray[np.int32]
Masks = NDArray[np.int8]

MAX_SLOTS = 2**24
"""Slots an episode may last: float32 holds counts of slots exactly up to here."""
WHEEL = 64  # timers are sorted by their slot modulo this

CLOCK, QUEUED, IN_SERVICE, THINKING = range(4)
"""Counts of a lane: slots completed since the reset, t, queries that wait, queries that are served,
users who think."""

ROW, RETRIALS, ARRIVED, JOINED, PLACE, BEFORE, AFTER, DUE, EARLIER, LATER = range(10)
"""Fields of a query in the system: its row in the table of queries, how often its user has retried,
the slots in which it arrived and last joined the tail, where it is, its neighbours in the queue,
the slot in which its timer goes off, and its neighbours on that timer."""
FIELDS = 10

WAITS, IS_SERVED, IS_AWAY, IS_GONE = range(4)
"""Where a query is; the record of one that is gone is free. The timer of a user who waits is
patience, of one who is away the return."""

HEAD, TAIL, FREE, UNUSED = range(4)
"""The ends of the queue, the first record to use again (linked by AFTER), the first never used."""

PHASE, LLM, GOAL, LEFT, ACTIVE = range(5)
"""Fields of a replica: its phase, the LLM it hosts or loads and the one it is to host (-1: none),
the slots left to load, and the queries it serves."""
EMPTY, LOADING, SERVING, DRAINING = range(4)
PHASES = ("empty", "loading", "serving", "draining")

DONE, NEEDED = range(2)
"""Iterations a query that is served has been given, and needs."""

ARRIVALS, DISPATCHED, KEPT, NOT_KEPT, ABANDONED, GAVE_UP, LATE, ILLEGAL, SOJOURN = range(9)
"""What is counted: queries that arrived and were dispatched, answers kept and not kept, users who
lost patience and who gave up after an answer, first answers after the SLA, choices that were not
legal, and the slots in the system of all who left."""
COUNTED = 9

TOKENS, OUTCOME, PATIENCE, RETURN = range(4)
"""The four draws of a query's attempt."""


class State(NamedTuple):
    """Who is where in every lane."""

    key: Ints  # (B, 2) of the draws
    counts: Ints  # (B, 4)
    queries: Stamps  # (B, Q, FIELDS)
    ends: Stamps  # (B, 4)
    timers: Stamps  # (B, WHEEL) first query whose timer is on this spoke, -1: none
    window: Stamps  # (B, W) the first of the queue, -1: none
    replicas: Stamps  # (B, R, 5)
    served: Stamps  # (B, R, C) queries that a replica serves; who came first is first
    progress: Floats  # (B, R, C, 2)
    totals: Ints  # (B, COUNTED) since the reset
    answered: Ints  # (B, 2, N) answers of the last slot by LLM, not kept and kept
    mixed: Singles  # (B, R, d) mean context of the queries that a replica serves


class Truth(NamedTuple):
    """A `ServingInstance` as the kernels read it; contexts, success and rate may differ by lane."""

    contexts: Singles  # (rows, d)
    success: Floats  # (rows, N)
    first_row: Ints  # (B,)
    arrival_rate: Floats  # (B,)
    queries: Floats  # (P, 3) cumulative share, mean tokens, impatience
    lengths: Floats  # (n, 2) length in units of the mean (0: geometric), prompt
    llms: Floats  # (N, 3) arrival, list price, list speed
    replicas: Floats  # (R, 3) places, chunk, price
    seconds: Floats  # (2, R, N) W and H
    times: Ints  # update_every, loading, dispatches, day
    rules: Floats  # return_rate, give_up, slot_seconds
    weights: Floats  # `Rewards`


class SlotOutcome(NamedTuple):
    """What came of one slot in every lane."""

    counts: Ints  # (B, COUNTED)
    reward: Floats  # (B,)
    answers: Ints  # (B, R C, 3): slot of arrival, LLM, kept; -1 beyond the last


Seen = tuple[Singles, Masks]
"""Of every lane what a provider sees, (B, D), and which choices are legal, (B, M)."""


# --- the slot -------------------------------------------------------------------------------------


@borrowing
def run_slot(
    state: Arrays,
    truth: Arrays,
    actions: Ints,
    draws: Floats,
    position: int,
    outcome: Arrays,
    seen: Seen,
) -> tuple[int, int]:
    """Run one slot in every lane, and show its end.

    Parameters
    ----------
    state, truth : tuple
        A `State`, changed in place, and a `Truth`.
    actions : ndarray of int64, shape (B, 2 A + R)
        Window slot and replica of every dispatch, then the target of every replica.
    draws : ndarray, shape (n, 1, B)
        Uniform draws of several slots: a query arrives where it is below the rate.
    position : int
        Which of them is this one; -1: no slot is run, only shown. Another function for it would
        compile what shows a second time.
    outcome, seen : tuple
        A `SlotOutcome` and `Seen`; filled.

    Returns
    -------
    most, latest : int
        The most records in use and the largest number of slots completed.
    """
    counts, ends, totals, answered = state[1], state[3], state[9], state[10]
    counted, reward, answers = outcome
    most, latest = 0, 0
    if position >= 0:
        answered[:] = 0
        answers[:] = -1
        for lane in range(counts.shape[0]):
            counts[lane, CLOCK] += 1
            for i in range(totals.shape[1]):
                counted[lane, i] = -totals[lane, i]
        # 1. Queries are dispatched, and replicas are given targets.
        act(state, truth, actions)
        # 2. Queries that are served get on. Users keep an answer, give up, or think and come back.
        work(state, truth, answers)
        return_users(state, truth)
        # 3. Waiting users whose patience is over leave.
        lose_patience(state)
        # 4. Queries arrive.
        arrive(state, truth, draws[position, 0])
        # 5. The state is read, the reward paid.
        for lane in range(counts.shape[0]):
            for i in range(totals.shape[1]):
                counted[lane, i] += totals[lane, i]
            most, latest = max(most, ends[lane, UNUSED]), max(latest, counts[lane, CLOCK])
        pay(state, truth, counted, reward)
    find_window(state)
    observe(state, truth, counted, seen[0])
    allow(state, truth, seen[1])
    return most, latest


@part
def act(state: Arrays, truth: Arrays, actions: Ints) -> None:
    """1. Queries are dispatched; then, at an update point, every replica is given a target."""
    counts, totals, times = state[1], state[9], truth[9]
    update_every, dispatches, num_replicas = times[0], times[2], state[6].shape[1]
    for lane in range(counts.shape[0]):
        for i in range(dispatches):
            slot, r = actions[lane, 2 * i], actions[lane, 2 * i + 1]
            if slot < state[5].shape[1]:  # else the policy holds back
                done = dispatch(state, truth, lane, slot, r)
                totals[lane, DISPATCHED if done else ILLEGAL] += 1
        if update_every > 0 and (counts[lane, CLOCK] - 1) % update_every == 0:
            for r in range(num_replicas):
                set_target(state, truth, lane, r, actions[lane, 2 * dispatches + r])


@part
def dispatch(state: Arrays, truth: Arrays, lane: int, slot: int, r: int) -> bool:
    """Let a replica serve a query of the window; return whether that was possible."""
    key, counts, queries, _, _, window, replicas, served, progress, _, _, _ = state
    _, _, _, _, table, lengths, _, fleet, _, _, _, _ = truth
    query, place = window[lane, slot], replicas[lane, r, ACTIVE]
    room = replicas[lane, r, PHASE] == SERVING and place < fleet[r, 0]
    if query < 0 or queries[lane, query, PLACE] != WAITS or not room:
        return False
    leave_queue(state, lane, query)
    unset_timer(state, lane, query)
    record = queries[lane, query]
    record[PLACE] = IS_SERVED
    draw = draws_of(key, lane, record)[TOKENS]
    at, mean = int(draw * lengths.shape[0]), table[record[ROW], 1]
    needed = mean * lengths[at, 0] if lengths[at, 0] > 0.0 else -mean * math.log1p(-draw)
    if fleet[r, 1] > 0.0:
        needed += math.ceil(lengths[at, 1] / fleet[r, 1])
    served[lane, r, place] = query
    progress[lane, r, place, DONE], progress[lane, r, place, NEEDED] = 0.0, needed
    replicas[lane, r, ACTIVE] += 1
    counts[lane, IN_SERVICE] += 1
    mix(state, truth, lane, r)
    return True


@part
def mix(state: Arrays, truth: Arrays, lane: int, r: int) -> None:
    """Average the contexts of the queries that a replica serves, when they have changed."""
    queries, served, mixed = state[2], state[7], state[11]
    contexts, first_row, active = truth[0], truth[2][lane], state[6][lane, r, ACTIVE]
    mixed[lane, r] = 0.0
    for place in range(active):
        row = first_row + queries[lane, served[lane, r, place], ROW]
        for i in range(contexts.shape[1]):
            mixed[lane, r, i] += contexts[row, i]
    for i in range(contexts.shape[1]):
        mixed[lane, r, i] /= max(active, 1)


@part
def set_target(state: Arrays, truth: Arrays, lane: int, r: int, target: int) -> None:
    """Let a replica host another LLM: at once if it is idle, else when its last query has left."""
    replica, totals, llms = state[6][lane, r], state[9], truth[6]
    if target == llms.shape[0]:
        target = -1
    elif llms[target, 0] >= state[1][lane, CLOCK] and target != replica[GOAL]:
        totals[lane, ILLEGAL] += 1
        return
    replica[GOAL] = target
    if replica[PHASE] == SERVING or replica[PHASE] == DRAINING:
        replica[PHASE] = SERVING if target == replica[LLM] else DRAINING
    if target != replica[LLM] and replica[ACTIVE] == 0:
        switch(replica, truth[9][1])


@part
def switch(replica: Stamps, loading: int) -> None:
    """Empty a replica that serves nobody, and begin to load the LLM it is to host."""
    replica[LLM], replica[LEFT] = replica[GOAL], 0
    if replica[GOAL] < 0:
        replica[PHASE] = EMPTY
    elif loading == 0:
        replica[PHASE] = SERVING
    else:
        replica[PHASE], replica[LEFT] = LOADING, loading


@part
def work(state: Arrays, truth: Arrays, answers: Ints) -> None:
    """2. Every query that is served is given its iterations; one that has enough is answered."""
    _, counts, queries, _, _, _, replicas, served, progress, _, _, _ = state
    seconds, loading, slot_seconds = truth[8], truth[9][1], truth[10][2]
    for lane in range(replicas.shape[0]):
        count = 0
        for r in range(replicas.shape[1]):
            replica, stay = replicas[lane, r], 0
            if replica[PHASE] == LOADING:
                replica[LEFT] -= 1
                if replica[LEFT] == 0:
                    replica[PHASE] = SERVING
                continue
            llm, active = replica[LLM], replica[ACTIVE]
            if active == 0:
                continue
            lasts = seconds[0, r, llm] + seconds[1, r, llm] * active
            given = slot_seconds / lasts if lasts > 0.0 else math.inf
            for place in range(active):
                query, needed = served[lane, r, place], progress[lane, r, place, NEEDED]
                done = progress[lane, r, place, DONE] + given
                if done < needed * (1.0 - 1e-12):  # a sum is rounded
                    served[lane, r, stay] = query
                    progress[lane, r, stay, DONE], progress[lane, r, stay, NEEDED] = done, needed
                    stay += 1
                    continue
                answers[lane, count, 0] = queries[lane, query, ARRIVED]
                answers[lane, count, 1] = llm
                answers[lane, count, 2] = answer(state, truth, lane, query, llm)
                count += 1
            replica[ACTIVE] = stay
            if stay < active:
                mix(state, truth, lane, r)
            if replica[PHASE] == DRAINING and stay == 0:
                switch(replica, loading)
        counts[lane, IN_SERVICE] -= count


@part
def answer(state: Arrays, truth: Arrays, lane: int, query: int, llm: int) -> int:
    """Let a user keep an answer (1) or not (0), and then give up, or think and come back."""
    key, counts, queries, _, _, _, _, _, _, totals, answered, _ = state
    success, first_row, rules, sla = truth[1], truth[2], truth[10], truth[11][5]
    record, now = queries[lane, query], counts[lane, CLOCK]
    if record[RETRIALS] == 0 and now - record[ARRIVED] > sla:
        totals[lane, LATE] += 1
    draws = draws_of(key, lane, record)
    if draws[OUTCOME] < success[first_row[lane] + record[ROW], llm]:
        answered[lane, 1, llm] += 1
        totals[lane, KEPT] += 1
        leave(state, lane, query)
        return 1
    answered[lane, 0, llm] += 1
    totals[lane, NOT_KEPT] += 1
    draw = draws[RETURN]
    if draw < rules[1]:
        totals[lane, GAVE_UP] += 1
        leave(state, lane, query)
        return 0
    record[RETRIALS] += 1
    thinks = geometric((draw - rules[1]) / (1.0 - rules[1]), rules[0])
    if thinks == 1:
        join(state, truth, lane, query)
    else:
        record[PLACE] = IS_AWAY
        counts[lane, THINKING] += 1
        set_timer(state, lane, query, now + thinks - 1)
    return 0


@part
def return_users(state: Arrays, truth: Arrays) -> None:
    """Let the users who have thought long enough join the tail again."""
    counts, queries, timers = state[1], state[2], state[4]
    for lane in range(counts.shape[0]):
        now = counts[lane, CLOCK]
        query = timers[lane, now % WHEEL]
        while query >= 0:
            following = queries[lane, query, LATER]
            if queries[lane, query, DUE] == now and queries[lane, query, PLACE] == IS_AWAY:
                unset_timer(state, lane, query)
                counts[lane, THINKING] -= 1
                join(state, truth, lane, query)
            query = following


@part
def lose_patience(state: Arrays) -> None:
    """3. A waiting user whose patience is over leaves for good."""
    counts, queries, timers, totals = state[1], state[2], state[4], state[9]
    for lane in range(counts.shape[0]):
        now = counts[lane, CLOCK]
        query = timers[lane, now % WHEEL]
        while query >= 0:
            following = queries[lane, query, LATER]
            if queries[lane, query, DUE] == now and queries[lane, query, PLACE] == WAITS:
                unset_timer(state, lane, query)
                leave_queue(state, lane, query)
                totals[lane, ABANDONED] += 1
                leave(state, lane, query)
            query = following


@part
def arrive(state: Arrays, truth: Arrays, draws: Floats) -> None:
    """4. A query arrives; its number is the slot, in which no other one arrives."""
    key, counts, queries, ends, totals = state[0], state[1], state[2], state[3], state[9]
    arrival_rate, table = truth[3], truth[4]
    for lane in range(counts.shape[0]):
        if draws[lane] >= arrival_rate[lane]:
            continue
        query = ends[lane, FREE]
        if query < 0:
            query = ends[lane, UNUSED]
            ends[lane, UNUSED] += 1
        else:
            ends[lane, FREE] = queries[lane, query, AFTER]
        record = queries[lane, query]
        record[ARRIVED], record[RETRIALS] = counts[lane, CLOCK], -1
        draw = draws_of(key, lane, record)[0]
        row, last = 0, table.shape[0] - 1
        while row < last:  # the first whose cumulative share is larger
            middle = (row + last) // 2
            row, last = (row, middle) if table[middle, 0] > draw else (middle + 1, last)
        record[ROW], record[RETRIALS] = row, 0
        totals[lane, ARRIVALS] += 1
        join(state, truth, lane, query)


@part
def pay(state: Arrays, truth: Arrays, counted: Ints, reward: Floats) -> None:
    """5. What the slot is worth."""
    counts, replicas, fleet, weights = state[1], state[6], truth[7], truth[11]
    for lane in range(counts.shape[0]):
        here, price = counts[lane, QUEUED] + counts[lane, IN_SERVICE], 0.0
        for r in range(replicas.shape[1]):
            if replicas[lane, r, PHASE] != EMPTY:
                price += fleet[r, 2]
        lost = counted[lane, ABANDONED] + counted[lane, GAVE_UP]
        gain = weights[0] * counted[lane, KEPT] - weights[1] * here - weights[2] * lost
        reward[lane] = gain - weights[3] * counted[lane, LATE] - weights[4] * price


# --- the queue, the timers and the draws ----------------------------------------------------------


@part
def join(state: Arrays, truth: Arrays, lane: int, query: int) -> None:
    """Let a query join the tail; its user's patience begins."""
    key, counts, queries, ends = state[0], state[1], state[2], state[3]
    record, tail, now = queries[lane, query], ends[lane, TAIL], counts[lane, CLOCK]
    record[PLACE], record[JOINED], record[BEFORE], record[AFTER] = WAITS, now, tail, -1
    if tail < 0:
        ends[lane, HEAD] = query
    else:
        queries[lane, tail, AFTER] = query
    ends[lane, TAIL] = query
    counts[lane, QUEUED] += 1
    record[DUE] = NEVER
    impatience = truth[4][record[ROW], 2]
    if impatience > 0.0:
        draw = draws_of(key, lane, record)[PATIENCE]
        set_timer(state, lane, query, now + geometric(draw, impatience))


@part
def leave_queue(state: Arrays, lane: int, query: int) -> None:
    """Take a query out of the queue, wherever it stands."""
    counts, queries, ends = state[1], state[2], state[3]
    before, after = queries[lane, query, BEFORE], queries[lane, query, AFTER]
    if before < 0:
        ends[lane, HEAD] = after
    else:
        queries[lane, before, AFTER] = after
    if after < 0:
        ends[lane, TAIL] = before
    else:
        queries[lane, after, BEFORE] = before
    counts[lane, QUEUED] -= 1


@part
def leave(state: Arrays, lane: int, query: int) -> None:
    """Let a query leave the system for good: its record is free."""
    counts, queries, ends, totals = state[1], state[2], state[3], state[9]
    totals[lane, SOJOURN] += counts[lane, CLOCK] - queries[lane, query, ARRIVED]
    queries[lane, query, AFTER], queries[lane, query, PLACE] = ends[lane, FREE], IS_GONE
    ends[lane, FREE] = query


@part
def set_timer(state: Arrays, lane: int, query: int, due: int) -> None:
    """Put a query on the spoke of the wheel that holds the slot in which it is due."""
    queries, timers = state[2], state[4]
    queries[lane, query, DUE] = min(due, NEVER)
    if due >= NEVER:
        return
    first = timers[lane, due % WHEEL]
    queries[lane, query, EARLIER], queries[lane, query, LATER] = -1, first
    if first >= 0:
        queries[lane, first, EARLIER] = query
    timers[lane, due % WHEEL] = query


@part
def unset_timer(state: Arrays, lane: int, query: int) -> None:
    """Take a query off the wheel, if it is on it."""
    queries, timers = state[2], state[4]
    due, earlier = queries[lane, query, DUE], queries[lane, query, EARLIER]
    if due == NEVER:
        return
    later = queries[lane, query, LATER]
    if earlier < 0:
        timers[lane, due % WHEEL] = later
    else:
        queries[lane, earlier, LATER] = later
    if later >= 0:
        queries[lane, later, EARLIER] = earlier
    queries[lane, query, DUE] = NEVER


@part
def geometric(draw: float, chance: float) -> int:
    """Return the first success, 1, 2, ..., of trials with this chance, by inverse CDF."""
    if chance >= 1.0:
        return 1
    return int(min(math.log1p(-draw) / math.log1p(-chance), 1.0 * NEVER)) + 1


@borrowing
def draws_of(key: Ints, lane: int, record: Stamps) -> tuple[float, float, float, float]:
    """Return the draws in (0, 1) of a query's attempt: Philox 4x32-10 (Salmon et al., SC 2011).

    It is a hash of arrival and attempt: whoever serves whom and when, the same users are met.
    Numbers are masked to 32 bits, in which Python's integers agree with compiled ones, whose
    products wrap at 64.
    """
    low, size = 0xFFFFFFFF, 4294967296.0
    a, b, c, d = int(record[ARRIVED]) & low, int(record[RETRIALS]) & low, 0, 0
    k, m = int(key[lane, 0]), int(key[lane, 1])
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = ((q >> 32) & low) ^ b ^ k, q & low, ((p >> 32) & low) ^ d ^ m, p & low
        k, m = (k + 0x9E3779B9) & low, (m + 0xBB67AE85) & low
    return (a + 0.5) / size, (b + 0.5) / size, (c + 0.5) / size, (d + 0.5) / size


# --- what a provider sees -------------------------------------------------------------------------


@part
def find_window(state: Arrays) -> None:
    """Find the first W queries of the queue."""
    queries, ends, window = state[2], state[3], state[5]
    for lane in range(window.shape[0]):
        query, place = ends[lane, HEAD], 0
        while place < window.shape[1] and query >= 0:
            window[lane, place] = query
            query, place = queries[lane, query, AFTER], place + 1
        window[lane, place:] = -1


@part
def observe(state: Arrays, truth: Arrays, counted: Ints, observed: Singles) -> None:
    """Write the observation, key after key in the order of `shapes`; 0 where there is nothing."""
    _, counts, queries, _, _, window, replicas, served, progress, _, answered, mixed = state
    contexts, _, first_row, _, _, _, llms, _, _, times, _, _ = truth
    num_replicas, num_llms, size = replicas.shape[1], llms.shape[0], window.shape[1]
    dim = contexts.shape[1]
    for lane in range(window.shape[0]):
        out, at = observed[lane], 0
        out[:] = 0.0
        now, row0, shown = counts[lane, CLOCK], first_row[lane], min(counts[lane, QUEUED], size)
        for r in range(num_replicas):
            out[at + r] = replicas[lane, r, ACTIVE]
        at += num_replicas
        for i in range(shown):
            out[at + i] = now - queries[lane, window[lane, i], ARRIVED]  # age
        at += size
        for m in range(num_llms):
            out[at + m] = llms[m, 0] <= now  # arrived
        at += num_llms
        for i in range(shown):
            row = row0 + queries[lane, window[lane, i], ROW]
            for j in range(dim):
                out[at + j] = contexts[row, j]
            at += dim
        at += (size - shown) * dim
        if times[3] > 0:
            angle = 2.0 * math.pi * ((now + 1) % times[3]) / times[3]
            out[at], out[at + 1] = math.sin(angle), math.cos(angle)  # day
        at += 2
        for r in range(num_replicas):
            if replicas[lane, r, LLM] >= 0:
                out[at + replicas[lane, r, LLM]] = 1.0  # hosts
            at += num_llms
        for r in range(num_replicas):
            for place in range(replicas[lane, r, ACTIVE]):
                out[at + place] = progress[lane, r, place, DONE]  # iterations
            at += served.shape[2]
        for m in range(num_llms):
            out[at + m] = answered[lane, 1, m]  # kept
            if llms[m, 0] <= now:
                out[at + num_llms + m] = llms[m, 1]  # list_price
                out[at + 2 * num_llms + m] = llms[m, 2]  # list_speed
        at += 3 * num_llms
        for r in range(num_replicas):
            out[at + r] = replicas[lane, r, LEFT]  # loading_left
        at += num_replicas
        out[at] = counted[lane, ABANDONED]  # lost
        for m in range(num_llms):
            out[at + 1 + m] = answered[lane, 0, m]  # not_kept
        at += 1 + num_llms
        for r in range(num_replicas):
            out[at + replicas[lane, r, PHASE]] = 1.0  # phase
            at += 4
        out[at] = counts[lane, QUEUED]  # queue_length
        for i in range(shown):
            out[at + 1 + i] = queries[lane, window[lane, i], RETRIALS]
        at += 1 + size
        for r in range(num_replicas):
            for j in range(dim):
                out[at + j] = mixed[lane, r, j]  # serving
            at += dim
        out[at] = 1.0 if times[0] == 0 else (-now % times[0]) / times[0]  # until_update
        for i in range(shown):
            out[at + 1 + i] = now - queries[lane, window[lane, i], JOINED]  # wait
            out[at + 1 + size + i] = 1.0  # waiting


@part
def allow(state: Arrays, truth: Arrays, masks: Masks) -> None:
    """Mark the legal choices with 1, at least one of every dimension."""
    counts, window, replicas = state[1], state[5], state[6]
    llms, fleet, times = truth[6], truth[7], truth[9]
    size, num_llms, num_replicas = window.shape[1], llms.shape[0], replicas.shape[1]
    for lane in range(window.shape[0]):
        mask, now, at, room = masks[lane], counts[lane, CLOCK], 0, False
        mask[:] = 0
        for r in range(num_replicas):
            free = replicas[lane, r, PHASE] == SERVING and replicas[lane, r, ACTIVE] < fleet[r, 0]
            for i in range(times[2]):
                mask[i * (size + 1 + num_replicas) + size + 1 + r] = free
            room = room or free
        for _ in range(times[2]):
            for slot in range(size):
                mask[at + slot] = room and slot < counts[lane, QUEUED]
            mask[at + size] = 1  # to hold back
            mask[at + size + 1] |= not room
            at += size + 1 + num_replicas
        updating = times[0] > 0 and now % times[0] == 0
        for r in range(num_replicas):
            for m in range(num_llms):
                mask[at + m] = updating and llms[m, 0] <= now
            mask[at + num_llms] = updating
            goal = replicas[lane, r, GOAL]
            mask[at + (goal if goal >= 0 else num_llms)] = 1  # to leave it as it is
            at += num_llms + 1
