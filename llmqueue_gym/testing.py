"""Checks that any environment of the suite must pass; run them on your own variants too.

Each raises AssertionError with what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray


def _assert_equal(expected: Any, actual: Any, where: str) -> None:
    """Compare keys, shapes, dtypes and bits."""
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or expected.keys() != actual.keys():
            found = sorted(actual) if isinstance(actual, dict) else actual
            raise AssertionError(
                f"{where} has other keys: scalar {sorted(expected)}, vector lane {found!r}"
            )
        for key in expected:
            _assert_equal(expected[key], actual[key], f"{where}[{key!r}]")
        return
    one, other = np.asarray(expected), np.asarray(actual)
    alike = one.dtype == other.dtype and one.shape == other.shape
    if alike and one.dtype != object:
        alike = one.tobytes() == other.tobytes()
    elif alike:
        alike = np.array_equal(one, other)
    if not alike:
        raise AssertionError(
            f"{where} differs: scalar {expected!r} ({one.dtype}), vector lane {actual!r} "
            f"({other.dtype})"
        )


def _lane(batch: Any, lane: int) -> Any:
    if not isinstance(batch, dict):  # a flat observation
        return batch[lane]
    return {
        key: _lane(value, lane) if isinstance(value, dict) else value[lane]
        for key, value in batch.items()
    }


def _lane_info(info: dict[str, Any], lane: int) -> dict[str, Any]:
    """Return what the key masks of Gymnasium's vector infos say a lane has."""
    own = {
        key: value
        for key, value in info.items()
        if f"_{key}" in info and info[f"_{key}"][lane] and key not in ("final_obs", "final_info")
    }
    found: dict[str, Any] = _lane(own, lane)
    return found


def check_lane_equality(
    env_id: str,
    num_envs: int = 3,
    steps: int = 400,
    max_episode_steps: int = 150,
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Check that lane i of the vector env seeded s equals the scalar env seeded s + i.

    Observations, rewards, terminations, truncations and infos are compared bit for bit under random
    actions, across episode ends: the same keys, shapes, dtypes and values.

    Parameters
    ----------
    env_id : str
        Registered id with a vector entry point.
    num_envs, steps, max_episode_steps : int
        Lanes, vector steps and slots per episode.
    autoreset_mode : AutoresetMode
        NEXT_STEP or SAME_STEP.
    seed : int
        s; it also seeds the actions.
    **kwargs
        Arguments of the environment.

    Raises
    ------
    AssertionError
        At the first difference.
    """
    vector = gym.make_vec(
        env_id,
        num_envs,
        max_episode_steps=max_episode_steps,
        autoreset_mode=autoreset_mode,
        **kwargs,
    )
    scalars = [
        gym.make(env_id, max_episode_steps=max_episode_steps, **kwargs) for _ in range(num_envs)
    ]
    observation, info = vector.reset(seed=seed)
    for lane, env in enumerate(scalars):
        first, first_info = env.reset(seed=seed + lane)
        _assert_equal(first, _lane(observation, lane), f"reset observation of lane {lane}")
        _assert_equal(first_info, _lane_info(info, lane), f"reset info of lane {lane}")
    vector.action_space.seed(seed)
    ended = [False] * num_envs
    for step in range(steps):
        actions = vector.action_space.sample()
        observation, rewards, terminations, truncations, info = vector.step(actions)
        for lane, env in enumerate(scalars):
            where = f"at step {step}, lane {lane}"
            if autoreset_mode is AutoresetMode.NEXT_STEP and ended[lane]:
                expected, expected_info = env.reset()
                reward, terminated, truncated = 0.0, False, False
            else:
                expected, raw, terminated, truncated, expected_info = env.step(actions[lane])
                reward = float(raw)
            _assert_equal(reward, rewards[lane], f"reward {where}")
            _assert_equal(terminated, terminations[lane], f"termination {where}")
            _assert_equal(truncated, truncations[lane], f"truncation {where}")
            ended[lane] = terminated or truncated
            if ended[lane] and autoreset_mode is AutoresetMode.SAME_STEP:
                _assert_equal(expected, info["final_obs"][lane], f"final_obs {where}")
                final = _lane_info(info["final_info"], lane)
                _assert_equal(expected_info, final, f"final_info {where}")
                expected, expected_info = env.reset()
            _assert_equal(expected, _lane(observation, lane), f"observation {where}")
            _assert_equal(expected_info, _lane_info(info, lane), f"info {where}")
    vector.close()
    for env in scalars:
        env.close()


def check_masks(env: gym.Env[Any, Any], steps: int = 300, seed: int = 0) -> None:
    """Check that ``action_masks()`` and ``info["action_mask"]`` agree and leave a legal action.

    Raises
    ------
    AssertionError
        If they differ, have the wrong type or length, or rule out every choice of a dimension.
    """
    space = env.action_space
    assert isinstance(space, gym.spaces.MultiDiscrete), "masks are for MultiDiscrete actions"
    splits = np.cumsum(space.nvec)[:-1]
    space.seed(seed)
    _, info = env.reset(seed=seed)
    for _ in range(steps):
        flat: NDArray[np.bool_] = env.get_wrapper_attr("action_masks")()
        mask: NDArray[np.int8] = info["action_mask"]
        assert flat.dtype == np.bool_, f"action_masks() has dtype {flat.dtype}, not bool"
        assert mask.dtype == np.int8, f"info['action_mask'] has dtype {mask.dtype}, not int8"
        assert flat.shape == (space.nvec.sum(),), f"action_masks() has shape {flat.shape}"
        assert np.array_equal(flat, mask), "action_masks() and info['action_mask'] differ"
        parts = np.split(mask, splits)
        assert all(part.any() for part in parts), f"a dimension has no legal choice: {mask}"
        _, _, terminated, truncated, info = env.step(space.sample(mask=tuple(parts)))
        if terminated or truncated:
            _, info = env.reset()


def check_coupling(
    make_env: Callable[[], gym.Env[Any, Any]],
    keys: tuple[str, ...] = ("arrived",),
    steps: int = 300,
    seed: int = 0,
) -> None:
    """Check that what the actions must not change does not change: two random policies, one seed.

    Parameters
    ----------
    make_env : callable
        Builds the environment.
    keys : tuple of str
        Entries of ``info`` that depend on the seed and the slot only.
    steps, seed : int
        Length of the run, over as many episodes as it takes, and the common seed.

    Raises
    ------
    AssertionError
        If an entry differs between the two runs.
    """
    runs = []
    for policy_seed in (1, 2):
        env = make_env()
        env.action_space.seed(policy_seed)
        env.reset(seed=seed)
        history = []
        for _ in range(steps):
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            history.append([np.asarray(info[key]).tolist() for key in keys])
            if terminated or truncated:
                env.reset()
        runs.append(history)
        env.close()
    assert runs[0] == runs[1], f"info entries {keys} depend on the actions"
