"""What waiting queries have refused, as an observation: counts per query and LLM.

Contexts do not tell all that a user likes; as long as a query waits, its refusals tell more.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from llmqueue_gym.adapters.wrappers import (
    AnyVectorWrapper,
    LaneWrapper,
    change_final,
    check_queue_spaces,
)

Floats32 = NDArray[np.float32]

REFUSALS = "refusals"
"""The key that is added."""

_SLOTS = 1024


class RefusalCounts:
    """Refusals of the queries that wait, lane by lane; a query is known by its slot of arrival.

    Those of queries older than 1,024 slots are forgotten.

    Parameters
    ----------
    lanes, num_llms : int
        B and N.
    """

    def __init__(self, lanes: int, num_llms: int) -> None:
        self._counts = np.zeros((lanes, _SLOTS, num_llms), dtype=np.float32)
        self._now = np.zeros((lanes, 1), dtype=np.int64)

    def forget(self, lanes: NDArray[np.bool_]) -> None:
        """Start anew in some lanes, (B,)."""
        self._counts[lanes], self._now[lanes] = 0.0, 0

    def of(self, ages: NDArray[Any], waiting: NDArray[Any], lanes: slice = slice(None)) -> Floats32:
        """Return the counts of the queries in the window, (B, W, N), from ages and waiting (B, W).

        Empty slots, and queries too old, have zeros. ``lanes`` are those that are asked for.
        """
        places = (self._now[lanes] - ages.astype(np.int64)) % _SLOTS
        known = waiting.astype(np.bool_) & (ages < _SLOTS)
        found: Floats32 = np.take_along_axis(self._counts[lanes], places[..., None], axis=1)
        return found * known[..., None]

    def note(self, ages: NDArray[Any], llms: NDArray[Any], retried: NDArray[np.bool_]) -> None:
        """Count the refusals of a slot, and go on to the next.

        Parameters
        ----------
        ages : ndarray, shape (B,)
            Age of the query that was served, when the slot began.
        llms : ndarray, shape (B, K)
            LLMs that it was shown, a set.
        retried : ndarray of bool, shape (B,)
            Whether it was served and retried.
        """
        lanes = np.flatnonzero(retried & (ages < _SLOTS))
        places = (self._now[lanes, 0] - ages[lanes].astype(np.int64)) % _SLOTS
        for column in llms[lanes].T:
            self._counts[lanes, places, column] += 1.0
        self._now += 1
        self._counts[np.arange(len(self._now)), self._now[:, 0] % _SLOTS] = 0.0


class RefusalsVector(LaneWrapper, AnyVectorWrapper):
    """LLMQueue-v0's vector environment, which also shows what every waiting query has refused.

    | Key | Shape | Type | Meaning |
    |-----|-------|------|---------|
    | refusals | (W, N) | float32 | times the query in the slot refused an assortment with the LLM |

    Put it inside `DiscreteActionsVector`, not around it.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        LLMQueue-v0's native vector environment.

    Raises
    ------
    ValueError
        If it is another environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        observed: Any = env.single_observation_space
        played: Any = env.single_action_space
        check_queue_spaces(observed, played)
        window, num_llms = played.nvec[:2].tolist()
        own = spaces.Box(0.0, 2.0**24, (window, num_llms), np.float32)
        self.single_observation_space = spaces.Dict({**observed.spaces, REFUSALS: own})
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, env.num_envs
        )
        self._memory = RefusalCounts(env.num_envs, num_llms)
        self._ages: NDArray[Any] = np.zeros((env.num_envs, window))
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)  # reset in the step that follows

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes (all, or those of ``options["reset_mask"]``)."""
        observation, info = self.env.reset(seed=seed, options=options)
        lanes = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        self._memory.forget(lanes)
        self._ended &= ~lanes
        return self._with(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Serve one query in every lane, and remember if it refused."""
        chosen = np.asarray(actions)
        observation, rewards, terminated, truncated, info = self.env.step(chosen)
        retried = info.get("final_info", info)["retried"]  # in SAME_STEP mode of the last slot
        ages = self._ages[np.arange(self.num_envs), chosen[:, 0]]
        self._memory.note(ages, chosen[:, 1:], retried)
        info = change_final(info, self._with_own)
        if "_final_obs" in info:
            self._memory.forget(info["_final_obs"])
        elif self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._memory.forget(self._ended)
            self._ended = terminated | truncated
        return self._with(observation), rewards, terminated, truncated, info

    def _with_own(self, lane: int, final: dict[str, Any]) -> dict[str, Any]:
        window = final["age"][None], final["waiting"][None]
        return final | {REFUSALS: self._memory.of(*window, slice(lane, lane + 1))[0]}

    def _with(self, observation: dict[str, Any]) -> dict[str, Any]:
        self._ages = observation["age"]
        return observation | {REFUSALS: self._memory.of(observation["age"], observation["waiting"])}
