"""LLMServe-v0 with one number for all dispatches of a slot, for what takes no MultiDiscrete action.

The fleet stays as it is: only a task without update points can be played so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.adapters.wrappers import (
    MAX_ACTIONS,
    AnyVectorWrapper,
    LaneWrapper,
    change_final,
)
from llmqueue_gym.errors import UsageError

Ints = NDArray[np.int64]

CANDIDATES = 8
"""Queries to choose among, unless asked otherwise."""

QUEUE_KEYS = ("age", "contexts", "retrials", "wait", "waiting")
"""Keys of an observation with a row a window slot."""


class Dispatches:
    """All sets of at most A pairs (candidate, replica) of different queries, and the candidates.

    Candidates are the longest waiting query of every context, then the next one of each, and so
    on: equal queries are worth the same, so few candidates stand for a long queue. A replica of one
    place is in a set once at most. The first set is empty: to hold back.

    Parameters
    ----------
    candidates : int
        Queries to choose among, at most.
    window, dispatches : int
        W and A.
    places : sequence of int
        Queries that each replica serves at once, C_r.

    Attributes
    ----------
    candidates : int
        At most W.
    sets : ndarray, shape (S, A)
        candidate R + replica of the pairs of every set, beyond the last of them for none.
    space : gymnasium.spaces.Discrete

    Raises
    ------
    UsageError
        If there are more than 100,000 sets.
    """

    def __init__(
        self, candidates: int, window: int, dispatches: int, places: Sequence[int]
    ) -> None:
        self.candidates = min(checks.count("candidates", candidates), window)
        self.window, self.replicas = window, len(places)
        pairs = self.candidates * self.replicas
        count = sum(comb(pairs, size) for size in range(dispatches + 1))
        if count > MAX_ACTIONS:
            raise UsageError(
                f"candidates={self.candidates}, dispatches={dispatches} and {self.replicas} "
                f"replicas make up to {count} actions, above {MAX_ACTIONS}; lower candidates or "
                "dispatches, or use an algorithm that takes MultiDiscrete actions"
            )
        found = [
            (*chosen, *(pairs,) * (dispatches - size))
            for size in range(dispatches + 1)
            for chosen in combinations(range(pairs), size)
            if self._fits(chosen, places)
        ]
        self.sets = np.array(found, dtype=np.int64)
        self.space = spaces.Discrete(len(found))

    def _fits(self, chosen: Sequence[int], places: Sequence[int]) -> bool:
        queries = {pair // self.replicas for pair in chosen}
        used = [pair % self.replicas for pair in chosen]
        return len(queries) == len(used) and all(used.count(r) <= places[r] for r in used)

    def choose(self, observation: Mapping[str, Any]) -> tuple[Ints, dict[str, Any]]:
        """Return the slots of the candidates, (B, C), and the observation with them as queue.

        ``total`` is added: the sum of the contexts of the whole window, (B, d).
        """
        contexts, waiting = observation["contexts"], observation["waiting"] > 0
        # Equal contexts have equal products, and different ones hardly ever.
        key = contexts @ np.sqrt(np.arange(2.0, 2.0 + contexts.shape[2]))
        equal = (key[:, :, None] == key[:, None, :]) & waiting[:, None, :]
        before = np.tril(equal, -1).sum(axis=2) + self.window * ~waiting
        order = np.argsort(before, axis=1, kind="stable")[:, : self.candidates]
        rows = np.arange(len(order))[:, None]
        chosen = {key: observation[key][rows, order] for key in QUEUE_KEYS}
        return order, {**observation, **chosen, "total": contexts.sum(axis=1)}

    def decode(self, numbers: Any, order: Ints) -> Ints:
        """Return ``[slot, replica] * A + [0] * R`` of B numbers, given the candidates' slots."""
        values = np.asarray(numbers)
        if values.dtype.kind not in "iu" or (values < 0).any() or (values >= self.space.n).any():
            raise UsageError(f"action={numbers!r} must be whole numbers in [0, {self.space.n})")
        candidate, replica = np.divmod(self.sets[values], self.replicas)
        hold = np.full((len(order), 1), self.window)
        slot = np.take_along_axis(np.concatenate([order, hold], axis=1), candidate, axis=1)
        dispatches = np.stack([slot, replica], axis=-1).reshape(len(values), -1)
        targets = np.zeros((len(values), self.replicas), dtype=np.int64)  # never read
        return np.concatenate([dispatches, targets], axis=1)

    def mask(self, flat: NDArray[Any], order: Ints) -> NDArray[np.bool_]:
        """Turn masks of the MultiDiscrete space, (B, M), into masks of the sets, (B, S)."""
        room = flat[:, self.window + 1 : self.window + 1 + self.replicas] > 0
        return self.legal(flat[:, : self.window] > 0, room, order)

    def legal(
        self, waiting: NDArray[np.bool_], room: NDArray[np.bool_], order: Ints
    ) -> NDArray[np.bool_]:
        """Return masks of the sets, (B, S), from who waits, (B, W), and where is room, (B, R)."""
        there = np.take_along_axis(waiting, order, axis=1)
        pairs = (there[:, :, None] & room[:, None, :]).reshape(len(order), -1)
        pairs = np.concatenate([pairs, np.ones((len(order), 1), dtype=np.bool_)], axis=1)
        return np.asarray(pairs[:, self.sets].all(axis=2))


class DispatchesVector(LaneWrapper, AnyVectorWrapper):
    """LLMServe-v0's native vector environment with ``Discrete`` actions, masks included.

    Action a is the a-th set of `Dispatches`; the observation's queue are its candidates, in their
    order, with the sum of the contexts of the whole window as ``total``.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        LLMServe-v0's vector environment, of a fleet that does not change.
    candidates : int
        Queries to choose among, at most.

    Raises
    ------
    UsageError
        If it is another environment, its fleet changes, or there are more than 100,000 actions.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], candidates: int = CANDIDATES) -> None:
        super().__init__(env)
        public: Any = getattr(getattr(env.unwrapped, "task", None), "public", None)
        if not hasattr(public, "dispatches"):
            raise UsageError(f"env={env.unwrapped} is not LLMServe-v0's vector environment")
        if public.update_every:
            raise UsageError(
                f"update_every={public.update_every}: here the fleet stays as it is; set it to 0, "
                "or use an algorithm that takes MultiDiscrete actions"
            )
        places = public.places.tolist()
        self.dispatches = Dispatches(candidates, public.window, public.dispatches, places)
        shown = candidate_space(env.single_observation_space, self.dispatches.candidates)
        self.single_observation_space, self.single_action_space = shown, self.dispatches.space
        self.observation_space = gym.vector.utils.batch_space(shown, env.num_envs)
        self.action_space = spaces.MultiDiscrete(np.full(env.num_envs, self.dispatches.space.n))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._order, observation = self.dispatches.choose(observation)
        return observation, info | {"action_mask": self.action_masks().astype(np.int8)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play one number in every lane; ``actions`` has shape (B,)."""
        actions = self.dispatches.decode(actions, self._order)
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        self._order, observation = self.dispatches.choose(observation)
        info = info | {"action_mask": self.action_masks().astype(np.int8)}
        info = change_final(info, self._chosen)
        return observation, rewards, terminated, truncated, info

    def _chosen(self, lane: int, final: dict[str, Any]) -> dict[str, Any]:
        _, shown = self.dispatches.choose({key: value[None] for key, value in final.items()})
        return {key: value[0] for key, value in shown.items()}

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal sets of every lane, bool of shape (B, S)."""
        return self.dispatches.mask(self.env.action_masks(), self._order)  # type: ignore[attr-defined]


def candidate_space(space: Any, candidates: int) -> spaces.Dict:
    """Return the space of an observation whose queue are the candidates."""
    shown = dict(space.spaces)
    for key in QUEUE_KEYS:
        box = shown[key]
        low, high = box.low[:candidates], box.high[:candidates]
        shown[key] = spaces.Box(low, high, dtype=np.float32)
    shown["total"] = spaces.Box(-np.inf, np.inf, shown["contexts"].shape[1:], np.float32)
    return spaces.Dict(shown)
