"""Wrappers that Gymnasium does not have: flat observations, discrete decisions, a memory of one.

For everything else use Gymnasium's own, which work on every environment here, or SB3's.

| you want | Gymnasium (`gymnasium.wrappers`) | with `llmqueue_gym.adapters.sb3` |
|---|---|---|
| one flat float32 observation | `FlatObservation`, or `flat_observation=True` | `FlatObservationVector`, or `flat_observation=True` |
| normalised observations | `NormalizeObservation` after flattening | `VecNormalize` with `norm_obs_keys`, or after flattening |
| the time as an observation | `TimeAwareObservation` | |
| normalised reward | `NormalizeReward`, or `reward="departures"` | `VecNormalize` |
| episode statistics | `RecordEpisodeStatistics` (-r / l is the mean queue) | monitored (`VecMonitor`) |
| discrete actions | `DiscreteActions` | `DiscreteActionsVector` |
| the decision before, for a memory | `PreviousDecision` | `PreviousDecisionVector` |

Gymnasium's vector wrappers are in ``gymnasium.wrappers.vector``; those that change observations
refuse the SAME_STEP mode that SB3 needs. Its ``FlattenObservation`` gives float64.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.flat import FlatLayout

if TYPE_CHECKING:
    AnyVectorWrapper = VectorWrapper[Any, Any, Any, Any, Any]
else:
    AnyVectorWrapper = VectorWrapper  # not generic before Gymnasium 1.4

Ints = NDArray[np.int64]

MAX_ACTIONS = 100_000
"""Most actions a list of all decisions may have."""


def assortments(num_llms: int, assortment_size: int) -> Ints:
    """All sets of K distinct LLMs in lexicographic order, shape (C(N, K), K)."""
    return np.array(list(combinations(range(num_llms), assortment_size)), dtype=np.int64)


class _Decisions:
    """The list of all decisions (slot, set of K LLMs): action = slot C(N, K) + set."""

    def __init__(self, space: gym.Space[Any], observed: gym.Space[Any]) -> None:
        nvec = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.zeros(0)
        if nvec.ndim != 1 or len(nvec) < 2 or len(set(nvec[1:].tolist())) != 1:
            raise UsageError(
                f"env has the action space {space}; this wrapper takes LLMQueue-v0's, "
                "MultiDiscrete([W] + [N] * K)"
            )
        # The numbers alone do not tell: LLMDeploy-v0 with two LLMs has MultiDiscrete([2, 2, 2]),
        # LLMServe-v0 with two replicas of one LLM MultiDiscrete([33, 2, 2, 2]).
        shown = set(observed.spaces) if isinstance(observed, spaces.Dict) else set()
        if not {"contexts", "feedback"} <= shown:
            raise UsageError(
                f"env has the observation space {observed} without 'contexts' and 'feedback'; this "
                "wrapper takes LLMQueue-v0"
            )
        self.window, num_llms, size = int(nvec[0]), int(nvec[1]), len(nvec) - 1
        if size > num_llms:
            raise UsageError(
                f"assortment_size={size} exceeds the {num_llms} LLMs: no set of distinct ones"
            )
        count = self.window * comb(num_llms, size)
        if count > MAX_ACTIONS:
            raise UsageError(
                f"window={self.window} and {comb(num_llms, size)} sets of {size} of {num_llms} "
                f"LLMs make {count} actions, above {MAX_ACTIONS}; lower window or "
                "assortment_size, or use an algorithm that takes MultiDiscrete actions"
            )
        self.sets = assortments(num_llms, size)
        self.space = spaces.Discrete(count)

    def decode(self, actions: Any) -> Ints:
        """Return ``[slot, llm_1, ..., llm_K]`` of the actions, one more axis of length 1 + K."""
        values = checks.array(actions)
        if values.dtype.kind not in "iu" or (values < 0).any() or (values >= self.space.n).any():
            raise UsageError(f"action={actions!r} must be whole numbers in [0, {self.space.n})")
        slot, which = np.divmod(values.astype(np.int64), len(self.sets))
        return np.concatenate([slot[..., None], self.sets[which]], axis=-1)

    def mask(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Turn masks of the MultiDiscrete space, last axis W + N K, into masks of this one."""
        return np.repeat(flat[..., : self.window], len(self.sets), axis=-1)


def change_final(info: dict[str, Any], change: Callable[[int, Any], Any]) -> dict[str, Any]:
    """Return an ``info`` whose last observations are changed, of lanes that begin anew in a step.

    ``change(lane, observation)`` gives the new one. Only in ``SAME_STEP`` mode are there any.
    """
    if "final_obs" not in info:
        return info
    final = info["final_obs"].copy()
    for lane in np.flatnonzero(info["_final_obs"]).tolist():
        final[lane] = change(lane, final[lane])
    return info | {"final_obs": final}


class LaneWrapper(AnyVectorWrapper):
    """A vector wrapper that is asked like the environment inside, as libraries on top do.

    Gymnasium's own forwards no ``autoreset_mode``, ``call``, ``get_attr`` and ``set_attr``. What
    derives from this names Gymnasium's class as well: skrl knows a wrapper by its direct bases.
    """

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """When lanes that ended are reset."""
        return AutoresetMode(self.metadata["autoreset_mode"])

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of every lane, or what its method returns, as seen from here."""
        if name == "action_masks":
            return tuple(self.action_masks())
        if name in ("observation_space", "action_space"):
            return (getattr(self, f"single_{name}"),) * self.num_envs
        found: tuple[Any, ...] = self.unwrapped.call(name, *args, **kwargs)  # type: ignore[attr-defined]
        return found

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every lane."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of all lanes of the environment inside."""
        self.unwrapped.set_attr(name, values)  # type: ignore[attr-defined]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions of every lane, as the environment does."""
        masks: NDArray[np.bool_] = self.env.action_masks()  # type: ignore[attr-defined]
        return masks


class FlatObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """A Dict observation as one float32 vector, whatever wrappers added to it.

    The keys follow each other in alphabetical order, arrays row by row, a ``Discrete(n)`` as n
    numbers of which one is 1: ``gymnasium.spaces.flatten`` in float32 throughout. Without other
    wrappers below it, ``gym.make(..., flat_observation=True)`` is the same, and faster.

    Parameters
    ----------
    env : gymnasium.Env
        An environment that observes a Dict of ``Box``, ``MultiBinary`` and ``Discrete`` entries.

    Attributes
    ----------
    layout : llmqueue_gym.flat.FlatLayout
        Where each key stands: ``layout.slices["waiting"]``.

    Raises
    ------
    ValueError
        If it observes something else.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.layout = FlatLayout(env.observation_space)
        self.observation_space = self.layout.space

    def observation(self, observation: Any) -> Any:
        """Return it as a vector."""
        return self.layout.flatten(observation)


class FlatObservationVector(LaneWrapper, AnyVectorWrapper):
    """`FlatObservation` for vector environments, in every autoreset mode.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        A vector environment whose lanes observe a Dict of ``Box``, ``MultiBinary`` and
        ``Discrete`` entries.

    Attributes
    ----------
    layout : llmqueue_gym.flat.FlatLayout
        Where each key stands.

    Raises
    ------
    ValueError
        If they observe something else.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.layout = FlatLayout(env.single_observation_space)
        self.single_observation_space = self.layout.space
        self.observation_space = gym.vector.utils.batch_space(self.layout.space, env.num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self.layout.flatten_lanes(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every lane."""
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        info = change_final(info, lambda _, final: self.layout.flatten(final))
        flat = self.layout.flatten_lanes(observation)
        return flat, rewards, terminated, truncated, info


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
        If it is another environment, or has more than 100,000 decisions.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        base = env.unwrapped
        observed = getattr(base, "dict_observation_space", base.observation_space)
        self._decisions = _Decisions(env.action_space, observed)
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


class DiscreteActionsVector(LaneWrapper, AnyVectorWrapper):
    """`DiscreteActions` for the vector environment.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        LLMQueue-v0's native vector environment.

    Raises
    ------
    ValueError
        If it is another environment, or has more than 100,000 decisions.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        base = env.unwrapped
        observed = getattr(base, "dict_observation_space", base.single_observation_space)
        self._decisions = _Decisions(env.single_action_space, observed)
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


def previous_decision(
    contexts: NDArray[Any], action: NDArray[Any], served: bool, num_llms: int
) -> dict[str, NDArray[Any]]:
    """Return what `PreviousDecision` adds to the observation that follows a decision.

    Parameters
    ----------
    contexts : ndarray of float32, shape (W, d)
        Contexts of the visible queries when it was made.
    action : ndarray of int, shape (1 + K,)
        Slot and LLMs.
    served : bool
        Whether there was a query to serve.
    num_llms : int
        Number of LLMs, N.
    """
    llms = np.zeros(num_llms, dtype=np.int8)
    llms[action[1:]] = served
    return {
        "previous_context": contexts[action[0]] * np.float32(served),
        "previous_llms": llms,
    }


class PreviousDecision(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """LLMQueue-v0 that also shows the query served in the slot before and the LLMs it was shown.

    ``feedback`` says how that query's user answered, but not which query it was: with both, a
    recurrent policy can learn an instance within the episode (RL^2, Duan et al. 2016). Added keys:

    | Key | Shape | Type | Meaning |
    |-----|-------|------|---------|
    | previous_context | (d,) | float32 | context of the query served in the slot before |
    | previous_llms | (N,) | int8 | 1 for the LLMs it was shown |

    Both are zero after a reset and where nothing was served. Put it inside
    `DiscreteActions`, not around it.

    Parameters
    ----------
    env : gymnasium.Env
        LLMQueue-v0.

    Raises
    ------
    ValueError
        If it is another environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.observation_space = _with_previous(env.observation_space, env.action_space)
        self._contexts: NDArray[Any] = np.zeros(0)
        self._num_llms = _shape(self.observation_space, "previous_llms")[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; nothing was decided yet."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._contexts = observation["contexts"].copy()
        nothing = np.zeros(1, dtype=np.int64)
        return observation | previous_decision(self._contexts, nothing, False, self._num_llms), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Serve one query and remember which."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        own = previous_decision(self._contexts, np.asarray(action), info["served"], self._num_llms)
        self._contexts = observation["contexts"].copy()
        return observation | own, float(reward), terminated, truncated, info


class PreviousDecisionVector(LaneWrapper, AnyVectorWrapper):
    """`PreviousDecision` for the vector environment.

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
        single = _with_previous(env.single_observation_space, env.single_action_space)
        self.single_observation_space = single
        self.observation_space = gym.vector.utils.batch_space(single, env.num_envs)
        self._context = np.zeros((env.num_envs, *_shape(single, "previous_context")), np.float32)
        self._llms = np.zeros((env.num_envs, *_shape(single, "previous_llms")), np.int8)
        self._contexts: NDArray[Any] = np.zeros(0)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes (all, or those of ``options["reset_mask"]``)."""
        observation, info = self.env.reset(seed=seed, options=options)
        lanes = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        self._forget(lanes)
        return self._with(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Serve one query in every lane and remember which."""
        chosen = checks.array(actions)
        observation, rewards, terminated, truncated, info = self.env.step(chosen)
        served = info.get("final_info", info)["served"]  # in SAME_STEP mode that of the last slot
        lanes = np.arange(self.num_envs)
        self._context = self._contexts[lanes, chosen[:, 0]] * served[:, None].astype(np.float32)
        self._llms = np.zeros_like(self._llms)
        for column in chosen.T[1:]:
            self._llms[lanes, column] = served
        info = change_final(info, self._with_own)
        if "_final_obs" in info:
            self._forget(info["_final_obs"])
        return self._with(observation), rewards, terminated, truncated, info

    def _with_own(self, lane: int, final: dict[str, Any]) -> dict[str, Any]:
        own = {"previous_context": self._context[lane], "previous_llms": self._llms[lane]}
        return final | {key: value.copy() for key, value in own.items()}

    def _forget(self, lanes: NDArray[np.bool_]) -> None:
        self._context[lanes], self._llms[lanes] = 0.0, 0

    def _with(self, observation: dict[str, Any]) -> dict[str, Any]:
        self._contexts = observation["contexts"].copy()  # what is handed out may be changed
        own = {"previous_context": self._context.copy(), "previous_llms": self._llms.copy()}
        return observation | own


def check_queue_spaces(observed: Any, played: Any) -> None:
    """Refuse the spaces of anything but LLMQueue-v0."""
    queue = isinstance(observed, spaces.Dict) and "contexts" in observed.spaces
    if not queue or not isinstance(played, spaces.MultiDiscrete):
        raise UsageError(
            f"env has the spaces {observed} and {played}; this wrapper takes LLMQueue-v0's, "
            "inside DiscreteActions and FlatObservation"
        )


def _with_previous(observed: Any, played: Any) -> spaces.Dict:
    """Observation space with the two keys of `PreviousDecision`."""
    check_queue_spaces(observed, played)
    context = observed["contexts"]
    low, high = float(context.low.min()), float(context.high.max())
    own: dict[str, gym.Space[Any]] = {
        "previous_context": spaces.Box(low, high, context.shape[1:], np.float32),
        "previous_llms": spaces.MultiBinary(int(played.nvec[1])),
    }
    return spaces.Dict({**observed.spaces, **own})


def _shape(space: spaces.Dict, key: str) -> tuple[int, ...]:
    shape = space[key].shape
    assert shape is not None
    return shape
