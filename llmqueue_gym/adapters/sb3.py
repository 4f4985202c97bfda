"""Stable-Baselines3 on the native vector environments, which it would refuse by itself.

One process, all lanes stepped at once; import this module only where SB3 is installed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.adapters.wrappers import (
    DiscreteActions,
    DiscreteActionsVector,
    FlatObservation,
    FlatObservationVector,
    PreviousDecision,
    PreviousDecisionVector,
)
from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.vector import BY_LANE, LaneVectorEnv

with needing("llmqueue_gym.adapters.sb3", "Stable-Baselines3", "rl"):
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor

Indices = int | Iterable[int] | None

VECTOR_FORMS: dict[Any, Callable[[Any], VectorEnv[Any, Any, Any]]] = {
    DiscreteActions: DiscreteActionsVector,
    FlatObservation: FlatObservationVector,
    PreviousDecision: PreviousDecisionVector,
}
"""Wrappers of one environment that all lanes can be wrapped in at once."""


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    wrapper: Callable[[Any], VectorEnv[Any, Any, Any]] | None = None,
    wrapper_class: Callable[..., gym.Env[Any, Any]] | None = None,
    wrapper_kwargs: Mapping[str, Any] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    monitor: bool = True,
    **kwargs: Any,
) -> VecEnv:
    """Build a vector environment for SB3; the native one where the environment has one.

    It takes what SB3's own ``make_vec_env`` is usually given, and more. To normalise observations,
    name the keys, as two of them are no numbers: ``VecNormalize(env, norm_obs_keys=["contexts",
    "retrials", "age", "wait", "queue_length"])``.

    Parameters
    ----------
    env_id : str
        ``"LLMQueue-v0"``, ``"LLMDeploy-v0"``, ...; ``"module:LLMQueue-v0"`` imports the module
        first. LLMDeployStage-v0 has no native vector environment; its copies are stepped one by
        one.
    n_envs : int
        Lanes, B.
    seed : int, optional
        Lane i is seeded seed + i at the first reset. SB3's algorithms set it from their own seed.
    wrapper : callable, optional
        Takes the Gymnasium vector environment and returns it wrapped, e.g.
        `llmqueue_gym.adapters.wrappers.DiscreteActionsVector` (DQN needs it) or one of
        ``gymnasium.wrappers.vector``.
    wrapper_class : callable, optional
        Takes one environment and returns it wrapped, as in SB3. The wrappers of
        `llmqueue_gym.adapters.wrappers` are replaced by their vector forms; with any other the
        copies are stepped one by one. Applied before ``wrapper``.
    wrapper_kwargs : mapping, optional
        Arguments of ``wrapper_class``.
    env_kwargs : mapping, optional
        Arguments of the environment, as in SB3; the same as naming them.
    monitor : bool
        Whether ``info["episode"]`` tells the return and the length of an episode that ends
        (SB3's ``VecMonitor``).
    **kwargs
        Arguments of the environment, ``max_episode_steps`` included.

    Returns
    -------
    VecEnv
        A `GymnasiumVecEnv`, monitored. Masks are there for MaskablePPO:
        ``env_method("action_masks")``.

    Raises
    ------
    ValueError
        If an argument is wrong.
    """
    module, _, _ = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    given: Any = wrapper_class
    if isinstance(given, type) and issubclass(given, VectorWrapper):
        raise UsageError(
            f"wrapper_class={given.__name__} wraps all lanes; wrapper_class wraps each "
            "environment: give it as wrapper"
        )
    single: Any = wrapper
    if isinstance(single, type) and issubclass(single, gym.Wrapper):
        raise UsageError(
            f"wrapper={single.__name__} wraps one environment; wrapper wraps all lanes at once: "
            "give it as wrapper_class"
        )
    arguments = {**(env_kwargs or {}), **kwargs}
    if "num_envs" in arguments:
        raise UsageError(f"num_envs={arguments['num_envs']!r}: here, as in SB3, it is n_envs")
    venv = _make_lanes(env_id, n_envs, arguments, wrapper_class, dict(wrapper_kwargs or {}))
    env = GymnasiumVecEnv(venv if wrapper is None else wrapper(venv))
    if seed is not None:
        env.seed(seed)
    return _Monitor(env) if monitor else env


def _make_lanes(
    env_id: str,
    n_envs: int,
    arguments: dict[str, Any],
    wrapper_class: Callable[..., gym.Env[Any, Any]] | None,
    wrapper_kwargs: dict[str, Any],
) -> VectorEnv[Any, Any, Any]:
    """Make the lanes, natively where environment and wrapper have a vector form."""
    mode = AutoresetMode.SAME_STEP
    all_lanes = None if wrapper_kwargs else VECTOR_FORMS.get(wrapper_class)
    native = gym.spec(env_id.rpartition(":")[2]).vector_entry_point is not None
    if native and (wrapper_class is None or all_lanes is not None):
        venv = gym.make_vec(env_id, n_envs, autoreset_mode=mode, **arguments)
        return venv if all_lanes is None else all_lanes(venv)
    make = partial(_make_one, env_id, arguments, wrapper_class, wrapper_kwargs)
    return SyncVectorEnv([make] * n_envs, autoreset_mode=mode)


def _make_one(
    env_id: str,
    arguments: dict[str, Any],
    wrapper_class: Callable[..., gym.Env[Any, Any]] | None,
    wrapper_kwargs: dict[str, Any],
) -> gym.Env[Any, Any]:
    env = gym.make(env_id, disable_env_checker=True, **arguments)
    return env if wrapper_class is None else wrapper_class(env, **wrapper_kwargs)


class _Monitor(VecMonitor):
    """SB3's monitor, with the infos of resets, and without what cannot be pickled."""

    def reset(self) -> Any:
        observation = super().reset()
        self.reset_infos = self.venv.reset_infos
        return observation

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, class_attributes=dict(inspect.getmembers(type(self))))


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment in SAME_STEP mode behind SB3's interface.

    An episode's end shows as SB3 expects: the observation is the next episode's, and the lane's
    info holds ``terminal_observation`` and ``TimeLimit.truncated``. With
    ``render_mode="rgb_array"`` SB3's ``VecVideoRecorder`` records lane 0.

    Parameters
    ----------
    venv : gymnasium.vector.VectorEnv
        The environment.

    Raises
    ------
    ValueError
        If its autoreset mode is not SAME_STEP.
    """

    def __init__(self, venv: VectorEnv[Any, Any, Any]) -> None:
        mode = venv.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise UsageError(
                f"autoreset_mode={mode}: SB3 needs the lanes reset in the step that ends them; "
                "make the environment with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.venv = venv
        self._actions: Any = None
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)
        self.metadata["render_fps"] = venv.metadata["render_fps"]  # VecVideoRecorder reads it

    def reset(self) -> Any:
        """Reset all lanes with the seeds of ``seed()``, which are used once."""
        seeds: Any = None if all(s is None for s in self._seeds) else self._seeds
        options = self._options[0] or None
        if any(other != self._options[0] for other in self._options):
            raise UsageError("options: all lanes are reset with the same ones; set_options(dict)")
        observation, info = self.venv.reset(seed=seeds, options=options)
        self.reset_infos = _lane_infos(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: Any) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Step all lanes; return observations, rewards (B,), dones (B,) and a dict a lane."""
        observation, rewards, terminated, truncated, info = self.venv.step(self._actions)
        dones = terminated | truncated
        infos = _lane_infos(info, self.num_envs)
        for lane_info in infos:
            lane_info["TimeLimit.truncated"] = False
        if dones.any():
            last = _lane_infos(info["final_info"], self.num_envs)
            for lane in np.flatnonzero(dones):
                self.reset_infos[lane] = infos[lane]
                infos[lane] = last[lane] | {
                    "terminal_observation": info["final_obs"][lane],
                    "TimeLimit.truncated": bool(truncated[lane] and not terminated[lane]),
                }
        return observation, np.asarray(rewards, dtype=np.float32), dones, infos

    def close(self) -> None:
        """Close the environment."""
        self.venv.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of each lane, as SB3 finds it in an environment of its own."""
        base: Any = self.venv.unwrapped
        if attr_name in ("observation_space", "action_space"):
            values: Sequence[Any] = [getattr(self, attr_name)] * self.num_envs
        elif isinstance(base, SyncVectorEnv):  # whose own get_attr calls methods
            values = [env.get_wrapper_attr(attr_name) for env in base.envs]
        elif isinstance(base, LaneVectorEnv) and attr_name in BY_LANE:
            values = base.get_attr(attr_name)
        else:
            values = [self._find(attr_name)] * self.num_envs
        return [values[lane] for lane in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, for all lanes.

        Raises
        ------
        ValueError
            If only some lanes are meant: they are one object.
        """
        if indices is not None and len(list(self._get_indices(indices))) != self.num_envs:
            raise UsageError(
                f"indices={indices!r}: the lanes are one object; set {attr_name!r} for all of them"
            )
        if isinstance(self.venv.unwrapped, SyncVectorEnv):
            self.venv.unwrapped.set_attr(attr_name, value)
        else:
            setattr(self.venv.unwrapped, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method that returns one row a lane, such as ``action_masks``."""
        if isinstance(self.venv.unwrapped, SyncVectorEnv):
            rows: Any = self.venv.unwrapped.call(method_name, *method_args, **method_kwargs)
        else:
            rows = self._find(method_name)(*method_args, **method_kwargs)
        return [rows[lane] for lane in self._get_indices(indices)]

    def _find(self, name: str) -> Any:
        """Return an attribute of the outermost layer that has it; vector wrappers forward none."""
        layer = self.venv
        while isinstance(layer, VectorWrapper) and not hasattr(layer, name):
            layer = layer.env
        return getattr(layer, name)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Return False for every lane: `make_vec_env` monitors all of them at once."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> list[NDArray[np.uint8] | None]:
        """Return the pictures of the lanes that are drawn; of a native environment, lane 0's."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        frames: Any = self.venv.render()
        copies = isinstance(self.venv.unwrapped, SyncVectorEnv)
        return list(frames if copies else frames[:1])  # the others are blank


def _lane_infos(info: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Split Gymnasium's dict of arrays into a dict a lane; what a lane lacks is left out.

    Keys that all lanes have, which is the rule, are dealt out at the speed of ``zip``.
    """
    common: dict[str, Any] = {}
    partial: list[tuple[str, Any, list[bool]]] = []
    for key, values in info.items():
        if key.startswith("_") or key in ("final_obs", "final_info"):
            continue
        rows = values.tolist() if values.ndim == 1 else list(values)
        present = info[f"_{key}"]
        if present.all():
            common[key] = rows
        else:
            partial.append((key, rows, present.tolist()))
    if not common:
        lanes: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    else:
        keys = tuple(common)
        lanes = [dict(zip(keys, row, strict=True)) for row in zip(*common.values(), strict=True)]
    for key, rows, flags in partial:
        for lane, row, there in zip(lanes, rows, flags, strict=True):
            if there:
                lane[key] = row
    return lanes
