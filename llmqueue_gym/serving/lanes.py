"""The arrays of B copies of the serving problem: reset, stepped, seen, and read by oracles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmqueue_gym.serving.dynamics import (
    ACTIVE,
    CLOCK,
    COUNTED,
    EMPTY,
    FIELDS,
    GOAL,
    IN_SERVICE,
    LEFT,
    LLM,
    MAX_SLOTS,
    PHASE,
    PHASES,
    QUEUED,
    ROW,
    SERVING,
    THINKING,
    UNUSED,
    WHEEL,
    Seen,
    SlotOutcome,
    State,
    Truth,
    run_slot,
)
from llmqueue_gym.serving.instance import Floats, Ints, ServingInstance, Singles
from llmqueue_gym.streams import Draws, UniformStreams


class ServingDynamics:
    """B copies of the serving problem; everything but the public parameters may differ.

    A slot costs O(B (W d + R (C d + N) + events)), whatever the queue and the time: the queue and
    the timers are linked lists, so that anybody leaves from anywhere at constant cost.

    Parameters
    ----------
    num_lanes : int
        Independent copies, B.
    instance : ServingInstance
        One whose public parameters all lanes have.
    day : int
        Slots of a day, 0: none.
    shared : bool
        Whether all lanes have one table of queries.

    Attributes
    ----------
    instances : list of ServingInstance
        The hidden truth of every lane; for oracles and scoring.
    state : State
    totals : ndarray of int64, shape (B, COUNTED)
        What has been counted since the reset, by `ARRIVALS` ... `SOJOURN`.
    """

    def __init__(
        self, num_lanes: int, instance: ServingInstance, day: int = 0, shared: bool = True
    ) -> None:
        self.num_lanes, self.shared = num_lanes, shared
        self.instances = [instance] * num_lanes
        self.ready = False
        lanes, rows = num_lanes, instance.num_queries
        fleet, places = instance.num_replicas, int(instance.places.max())
        self.state = State(
            np.zeros((lanes, 2), dtype=np.int64),
            np.zeros((lanes, 4), dtype=np.int64),
            np.zeros((lanes, 64, FIELDS), dtype=np.int32),
            np.zeros((lanes, 4), dtype=np.int32),
            np.zeros((lanes, WHEEL), dtype=np.int32),
            np.zeros((lanes, instance.window), dtype=np.int32),
            np.zeros((lanes, fleet, 5), dtype=np.int32),
            np.zeros((lanes, fleet, places), dtype=np.int32),
            np.zeros((lanes, fleet, places, 2)),
            np.zeros((lanes, COUNTED), dtype=np.int64),
            np.zeros((lanes, 2, instance.num_llms), dtype=np.int64),
            np.zeros((lanes, fleet, instance.contexts.shape[1]), dtype=np.float32),
        )
        self.totals = self.state.totals
        copies = 1 if shared else lanes
        geometric = np.column_stack([np.zeros(1), instance.inputs[:1]])
        self.truth = Truth(
            np.tile(instance.contexts, (copies, 1)),
            np.tile(instance.success, (copies, 1)),
            np.zeros(lanes, dtype=np.int64) if shared else np.arange(lanes) * rows,
            np.zeros(lanes),
            np.column_stack([instance.share.cumsum(), instance.mean_tokens, instance.impatience]),
            geometric
            if instance.geometric
            else np.column_stack([instance.lengths, instance.inputs]),
            np.column_stack([instance.llm_arrives, instance.list_price, instance.list_speed]),
            np.column_stack([instance.places, instance.chunk, instance.price]),
            np.stack([instance.base_seconds, instance.each_seconds]),
            np.array([instance.update_every, instance.loading, instance.dispatches, day]),
            np.array([instance.return_rate, instance.give_up, instance.slot_seconds]),
            np.array(instance.rewards),
        )
        self._streams = UniformStreams(1, lanes)
        self._most = 0  # records that a lane may have used
        self._counted = self.nothing().counts  # in the last slot
        self._seen: Seen | None = None  # until it is asked for
        sizes = [math.prod(shape) for shape in self.shapes().values()]
        self._width = sum(sizes)
        self._parts = [
            (key, slice(end - size, end), shape, len(shape) == 1)
            for (key, shape), size, end in zip(
                self.shapes().items(), sizes, np.cumsum(sizes).tolist(), strict=True
            )
        ]
        self._mask_width = instance.dispatches * (instance.window + 1 + fleet)
        self._mask_width += fleet * (instance.num_llms + 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every key of a lane's observation, in alphabetical order."""
        instance = self.instances[0]
        window, fleet, llms = instance.window, instance.num_replicas, instance.num_llms
        dim = instance.contexts.shape[1]
        return {
            "active": (fleet,),
            "age": (window,),
            "arrived": (llms,),
            "contexts": (window, dim),
            "day": (2,),
            "hosts": (fleet, llms),
            "iterations": (fleet, int(instance.places.max())),
            "kept": (llms,),
            "list_price": (llms,),
            "list_speed": (llms,),
            "loading_left": (fleet,),
            "lost": (1,),
            "not_kept": (llms,),
            "phase": (fleet, len(PHASES)),
            "queue_length": (1,),
            "retrials": (window,),
            "serving": (fleet, dim),
            "until_update": (1,),
            "wait": (window,),
            "waiting": (window,),
        }

    def reset(
        self,
        lanes: Sequence[int],
        instances: Sequence[ServingInstance],
        arrivals: Sequence[Draws],
        generators: Sequence[np.random.Generator],
    ) -> None:
        """Empty some lanes and give them an instance and fresh draws.

        Parameters
        ----------
        lanes : sequence of int
            Lanes to reset. The first call must name all of them.
        instances : sequence of ServingInstance
            One per lane.
        arrivals : sequence of Draws
            Per lane: a slot has an arrival iff its draw is below the rate.
        generators : sequence of numpy.random.Generator
            Per lane: the key of everything else.
        """
        state, truth = self.state, self.truth
        for lane, instance, draws, generator in zip(
            lanes, instances, arrivals, generators, strict=True
        ):
            self.instances[lane] = instance
            self._streams.reset(lane, [draws])
            state.key[lane] = generator.integers(2**32, size=2)
            truth.arrival_rate[lane] = instance.arrival_rate
            block = slice(truth.first_row[lane], truth.first_row[lane] + instance.num_queries)
            truth.contexts[block], truth.success[block] = instance.contexts, instance.success
            state.replicas[lane, :, [LLM, GOAL]] = instance.hosts
            state.replicas[lane, :, PHASE] = np.where(instance.hosts >= 0, SERVING, EMPTY)
        index = np.asarray(lanes)
        state.replicas[index[:, None], :, [LEFT, ACTIVE]] = 0
        state.counts[index] = state.totals[index] = 0
        state.ends[index] = -1
        state.ends[index, UNUSED] = 0
        state.timers[index] = state.window[index] = -1
        state.answered[index] = 0
        state.mixed[index] = 0.0
        self._counted[index] = 0
        self._seen, self.ready = None, True

    def step(self, actions: Ints) -> SlotOutcome:
        """Run one slot in every lane.

        Parameters
        ----------
        actions : ndarray of int64, shape (B, 2 A + R)
            Not checked.

        Returns
        -------
        SlotOutcome
            Freshly allocated.

        Raises
        ------
        OverflowError
            If an episode has lasted longer than ``MAX_SLOTS``.
        """
        if self._most + 1 >= self.state.queries.shape[1]:
            more = np.zeros_like(self.state.queries)
            queries = np.concatenate([self.state.queries, more], axis=1)
            self.state = self.state._replace(queries=queries)
        places = self.state.served.shape[1] * self.state.served.shape[2]
        outcome = SlotOutcome(
            np.empty((self.num_lanes, COUNTED), dtype=np.int64),
            np.empty(self.num_lanes),
            np.empty((self.num_lanes, places, 3), dtype=np.int64),
        )
        self._seen = self._new_seen()
        actions = np.array(actions, dtype=np.int64, order="C")  # a type of array: compiled once
        draws, position = self._streams.advance()
        self._most, latest = self._run(actions, draws, position, outcome, self._seen)
        self._counted = outcome.counts.copy()  # the caller may change what is handed out
        if latest > MAX_SLOTS:
            raise OverflowError(f"an episode lasts at most {MAX_SLOTS} slots; reset it")
        return outcome

    def nothing(self) -> SlotOutcome:
        """Return the outcome of a slot in which nothing was done."""
        places = self.state.served.shape[1] * self.state.served.shape[2]
        return SlotOutcome(
            np.zeros((self.num_lanes, COUNTED), dtype=np.int64),
            np.zeros(self.num_lanes),
            np.full((self.num_lanes, places, 3), -1, dtype=np.int64),
        )

    def _run(
        self, actions: Ints, draws: Floats, position: int, outcome: SlotOutcome, seen: Seen
    ) -> tuple[int, int]:
        state, truth = tuple(self.state), tuple(self.truth)
        return run_slot(state, truth, actions, draws, position, tuple(outcome), seen)

    def _new_seen(self) -> Seen:
        observed = np.empty((self.num_lanes, self._width), dtype=np.float32)
        return observed, np.empty((self.num_lanes, self._mask_width), dtype=np.int8)

    def see(self) -> Seen:
        """Return the observations as vectors (B, D) and the masks (B, M), for the caller to own."""
        seen, self._seen = self._seen, None
        if seen is None:
            seen = self._new_seen()
            no_actions = np.empty((self.num_lanes, 0), dtype=np.int64)
            outcome = self.nothing()._replace(counts=self._counted)
            self._run(no_actions, np.empty((0, 1, self.num_lanes)), -1, outcome, seen)
        return seen

    def unpack(self, vectors: Singles) -> dict[str, Singles]:
        """Return what vectors hold, (D,) or (B, D), key by key; no copies."""
        lanes = vectors.shape[:-1]
        return {
            key: part if flat else part.reshape(lanes + shape)
            for key, place, shape, flat in self._parts
            for part in (vectors[..., place],)
        }

    # ------------------------------------------------- the truth, for oracles and scoring

    @property
    def slot(self) -> Ints:
        """Slots completed since the reset, t, shape (B,)."""
        return self.state.counts[:, CLOCK]

    @property
    def queue_length(self) -> Ints:
        """Queries that wait, shape (B,)."""
        return self.state.counts[:, QUEUED]

    @property
    def thinking(self) -> Ints:
        """Users who think and will come back, which no provider sees, shape (B,)."""
        return self.state.counts[:, THINKING]

    @property
    def in_service(self) -> Ints:
        """Queries that are served, shape (B,)."""
        return self.state.counts[:, IN_SERVICE]

    @property
    def window_queries(self) -> Ints:
        """Row in the instance of every visible query, -1 where none waits; shape (B, W)."""
        window = self.state.window
        rows = np.take_along_axis(self.state.queries[:, :, ROW], np.maximum(window, 0), axis=1)
        return np.where(window >= 0, rows, -1).astype(np.int64)
