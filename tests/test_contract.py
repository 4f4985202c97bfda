"""What holds of every environment: wrong actions, and what is done with the arrays it hands out."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_equal

from llmqueue_gym.errors import UsageError
from llmqueue_gym.registration import ENVIRONMENTS

SHORT: dict[str, dict[str, Any]] = {
    env_id: {"horizon": 200, "num_stages": 20} if "Deploy" in env_id else {}
    for env_id in ENVIRONMENTS
}
PLAYED = [(env_id, lanes) for env_id in ENVIRONMENTS for lanes in (0, 3)]
PLAYED.remove(("LLMDeployStage-v0", 3))  # it has no vector form


def outside(good: Any) -> dict[str, Any]:
    """Actions of every kind that no space holds."""

    def with_first(value: Any, dtype: Any) -> Any:
        action = good.astype(dtype)
        action.flat[0] = value
        return action

    bad = {
        "nan": with_first(np.nan, float),
        "infinite": with_first(np.inf, float),
        "negative": with_first(-1, np.int64),
        "large": with_first(10**9, np.int64),
        "unsigned": with_first(2**63, np.uint64),
        "short": good[..., :-1],
        "long": np.concatenate([good, good], axis=-1),
        "bool": good.astype(bool),
        "object": good.astype(object),
        "complex": good.astype(complex),
        "of words": [str(entry) for entry in good.flat],
        "an axis more": good[None],
        "rows of several lengths": [[1], [2, 3]],
    }
    if good.dtype.kind == "i":
        bad["real"] = good.astype(float)
    return bad | {"empty": [], "none": None, "word": "serve", "dict": {}, "number": 0}


MASKED = [(env_id, lanes) for env_id, lanes in PLAYED if env_id != "LLMDeployStage-v0"]


@pytest.mark.parametrize(("env_id", "lanes"), MASKED)
def test_before_the_first_reset_nothing_is_legal_yet_and_the_error_says_so(
    env_id: str, lanes: int
) -> None:
    """As for a step: there is no state to have a mask of. Everywhere alike."""
    kwargs = SHORT[env_id]
    env: Any = gym.make_vec(env_id, lanes, **kwargs) if lanes else gym.make(env_id, **kwargs)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before action_masks\(\)"):
        env.unwrapped.action_masks()
    env.reset(seed=0)
    assert env.unwrapped.action_masks().dtype == np.bool_


@pytest.mark.parametrize(("env_id", "lanes"), PLAYED)
def test_it_is_refused_in_words_and_changes_nothing(env_id: str, lanes: int) -> None:
    kwargs = SHORT[env_id]
    env, twin = (
        gym.make_vec(env_id, lanes, **kwargs) if lanes else gym.make(env_id, **kwargs).unwrapped
        for _ in range(2)
    )
    for each in (env, twin):
        each.reset(seed=0)
    env.action_space.seed(0)
    for kind, action in outside(env.action_space.sample()).items():
        with pytest.raises(UsageError, match="is not in the action space"):
            env.step(action)
        good = env.action_space.sample()
        own, other = env.step(good), twin.step(good)
        assert_equal(own[:4], other[:4], err_msg=kind)


@pytest.mark.parametrize("env_id", [env_id for env_id, lanes in PLAYED if lanes])
def test_a_wrong_seed_leaves_every_lane_as_it_is(env_id: str) -> None:
    env: Any = gym.make_vec(env_id, 3, **SHORT[env_id])
    env.reset(seed=0)
    states = [generator.bit_generator.state for generator in env.np_random]
    with pytest.raises(gym.error.Error):
        env.reset(seed=[5, 6, -1])
    assert [generator.bit_generator.state for generator in env.np_random] == states
    assert env.np_random_seed == (0, 1, 2)


def copied(given: Any) -> Any:
    """Copy what is given, with lists in place of arrays of objects."""
    if isinstance(given, dict):
        return {key: copied(value) for key, value in given.items()}
    if isinstance(given, tuple) or (isinstance(given, np.ndarray) and given.dtype == object):
        return [copied(value) for value in given]
    return np.array(given)


def ruin(given: Any) -> None:
    """Overwrite every array."""
    for value in given.values() if isinstance(given, dict) else given:
        if isinstance(value, dict) or (isinstance(value, np.ndarray) and value.dtype == object):
            ruin(value)
        elif np.ndim(value):
            value[...] = 1


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize(("env_id", "lanes"), PLAYED)
def test_what_is_handed_out_is_the_callers(env_id: str, lanes: int, mode: str, flat: bool) -> None:
    """Whoever overwrites it, and the action after the step, changes nothing."""
    kwargs = SHORT[env_id] | {"flat_observation": flat, "max_episode_steps": 15}
    runs: list[list[Any]] = []
    for ruining in (False, True):
        env: Any = (
            gym.make_vec(env_id, lanes, autoreset_mode=mode, **kwargs)
            if lanes
            else gym.make(env_id, **kwargs)
        )
        env.action_space.seed(0)
        history = [copied(env.reset(seed=0))]
        for _ in range(40):
            action = env.action_space.sample()
            given = env.step(action)
            history.append(copied(given))
            if ruining:
                ruin([action, *given])
            seen = env.unwrapped._observe()
            history.append(copied(seen))
            if ruining:
                ruin(seen)
            if not lanes and given[3]:
                history.append(copied(env.reset()))
        runs.append(history)
    assert_equal(runs[1], runs[0])
