"""Wrappers that Gymnasium does not have: one number per decision, for algorithms that need it.

For everything else use Gymnasium's own, which work on every environment here, or SB3's.

===================  ============================================  ==============================
you want             Gymnasium (``gymnasium.wrappers``)            with :mod:`llmqueue_gym.sb3`
===================  ============================================  ==============================
flat observations    ``FlattenObservation``                        ``"MultiInputPolicy"`` flattens
normalised           ``NormalizeObservation`` after flattening     ``VecNormalize``
  observations
scaled or            ``TransformReward``, ``NormalizeReward``;     ``VecNormalize``, or the
  normalised reward  or ``reward="departures"``, which is bounded  argument on the left
episode statistics   ``RecordEpisodeStatistics``: with the         ``VecMonitor``
                     default reward, -r / l is the mean queue
discrete actions     :class:`DiscreteActions`                      :class:`DiscreteActionsVector`
===================  ============================================  ==============================

Gymnasium's vector wrappers are in ``gymnasium.wrappers.vector``; those that change observations
refuse the SAME_STEP mode that SB3 needs.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MAX_ACTIONS = 100_000
"""Most actions a list of all decisions may have."""


def assortments(num_llms: int, assortment_size: int) -> Ints:
    """All sets of K distinct LLMs in lexicographic order, shape (C(N, K), K)."""
    return np.array(list(combinations(range(num_llms), assortment_size)), dtype=np.int64)


class _Decisions:
    """The list of all decisions (slot, set of K LLMs): action = slot C(N, K) + set."""

    def __init__(self, space: gym.Space[Any]) -> None:
        nvec = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.zeros(0)
        if nvec.ndim != 1 or len(nvec) < 2 or len(set(nvec[1:].tolist())) != 1:
            raise ValueError(
                f"env has the action space {space}; this wrapper takes LLMQueue-v0's, "
                "MultiDiscrete([W] + [N] * K)"
            )
        self.window, num_llms, size = int(nvec[0]), int(nvec[1]), len(nvec) - 1
        if size > num_llms:
            raise ValueError(
                f"assortment_size={size} exceeds the {num_llms} LLMs: no set of distinct ones"
            )
        count = self.window * comb(num_llms, size)
        if count > MAX_ACTIONS:
            raise ValueError(
                f"window={self.window} and {comb(num_llms, size)} sets of {size} of {num_llms} "
                f"LLMs make {count} actions, above {MAX_ACTIONS}; lower window or "
                "assortment_size, or use an algorithm that takes MultiDiscrete actions"
            )
        self.sets = assortments(num_llms, size)
        self.space = spaces.Discrete(count)

    def decode(self, actions: Any) -> Ints:
        """Return ``[slot, llm_1, ..., llm_K]`` of the actions, one more axis of length 1 + K."""
        values = np.asarray(actions)
        if values.dtype.kind not in "iu" or (values < 0).any() or (values >= self.space.n).any():
            raise ValueError(f"action={actions!r} must be whole numbers in [0, {self.space.n})")
        slot, which = np.divmod(values.astype(np.int64), len(self.sets))
        return np.concatenate([slot[..., None], self.sets[which]], axis=-1)

    def mask(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Turn masks of the MultiDiscrete space, last axis W + N K, into masks of this one."""
        return np.repeat(flat[..., : self.window], len(self.sets), axis=-1)


class DiscreteActions(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """LLMQueue-v0 with ``Discrete(W C(N, K))`` actions, masks included.

    Action a serves slot ``a // C(N, K)`` with the ``a % C(N, K)``-th set of K distinct LLMs in
    lexicographic order. Sets with fewer LLMs are left out.

    Parameters
    ----------
    env : gymnasium.Env
        LLMQueue-v0.

    Raises
    ------
    ValueError
        If the action space is another, or has more than 100,000 decisions.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._decisions = _Decisions(env.action_space)
        self.action_space = self._decisions.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._translate(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play one decision, a whole number."""
        observation, reward, terminated, truncated, info = self.env.step(
            self._decisions.decode(action)
        )
        return observation, float(reward), terminated, truncated, self._translate(info)

    def _translate(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {"action_mask": self._decisions.mask(info["action_mask"])}

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal decisions now, bool of length W C(N, K) (MaskablePPO's method)."""
        return self._decisions.mask(self.env.get_wrapper_attr("action_masks")())


class DiscreteActionsVector(VectorWrapper[Any, Any, Any, Any, Any]):
    """:class:`DiscreteActions` for the vector environment.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        LLMQueue-v0's native vector environment.

    Raises
    ------
    ValueError
        If the action space is another, or has more than 100,000 decisions.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._decisions = _Decisions(env.single_action_space)
        self.single_action_space = self._decisions.space
        self.action_space = spaces.MultiDiscrete(np.full(env.num_envs, self._decisions.space.n))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._translate(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play one decision in every lane; ``actions`` has shape (B,)."""
        *result, info = self.env.step(self._decisions.decode(actions))
        observation, rewards, terminated, truncated = result
        return observation, rewards, terminated, truncated, self._translate(info)

    def _translate(self, info: dict[str, Any]) -> dict[str, Any]:
        info = info | {"action_mask": self._decisions.mask(info["action_mask"])}
        if "final_info" in info:
            info["final_info"] = self._translate(info["final_info"])
        return info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal decisions of every lane, bool of shape (B, W C(N, K))."""
        return self._decisions.mask(self.env.action_masks())  # type: ignore[attr-defined]
