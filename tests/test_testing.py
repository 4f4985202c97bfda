"""The checkers for third parties find what they say they find."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from llmqueue_gym.envs import LLMQueueEnv, LLMQueueVectorEnv
from llmqueue_gym.testing import check_coupling, check_lane_equality


class Ending(LLMQueueEnv):
    """An episode that terminates when six queries wait."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, bool(self.dynamics.queue_length[0] >= 6), truncated, info


def broken(change, at_reset=True):
    """A vector environment class of which ``change`` spoils what is returned."""

    class Broken(LLMQueueVectorEnv):
        def reset(self, **kwargs):
            result = [*super().reset(**kwargs)]
            if at_reset:
                change(observation=result[0], info=result[-1])
            return tuple(result)

        def step(self, actions):
            result = [*super().step(actions)]
            change(observation=result[0], info=result[-1])
            return tuple(result)

    return Broken


def check(vector, scalar=LLMQueueEnv, **kwargs):
    name = "Checked-v0"
    gym.register(name, entry_point=scalar, vector_entry_point=vector)
    try:
        check_lane_equality(name, num_envs=2, steps=60, max_episode_steps=25, **kwargs)
    finally:
        gym.registry.pop(name)


def more_observation(observation, info):
    observation["secret"] = observation["waiting"].copy()


def less_observation(observation, info):
    del observation["age"]


def wide_observation(observation, info):
    observation["age"] = observation["age"].astype(np.float64)


def negative_zero(observation, info):
    observation["age"] = np.where(observation["age"] == 0, np.float32(-0.0), observation["age"])


def more_info(observation, info):
    info["truth"], info["_truth"] = np.zeros(2), np.ones(2, dtype=np.bool_)


def wide_info(observation, info):
    info["queue_length"] = info["queue_length"].astype(np.float64)


def unmasked_info(observation, info):
    info["_queue_length"] = np.zeros(2, dtype=np.bool_)


@pytest.mark.parametrize("at_reset", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        more_observation,
        less_observation,
        wide_observation,
        negative_zero,
        more_info,
        wide_info,
        unmasked_info,
    ],
)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_whatever_differs_between_a_lane_and_its_environment_is_found(change, at_reset, mode):
    with pytest.raises(AssertionError, match=r"reset|at step"):
        check(broken(change, at_reset), autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equal_lanes_pass(mode):
    check(LLMQueueVectorEnv, autoreset_mode=mode)


def test_a_missed_termination_is_found():
    with pytest.raises(AssertionError, match="termination at step"):
        check(LLMQueueVectorEnv, scalar=Ending)


def test_a_termination_both_know_passes():
    def make_vec(num_envs, max_episode_steps, autoreset_mode, **kwargs):
        def one():
            return gym.wrappers.TimeLimit(Ending(**kwargs), max_episode_steps)

        return gym.vector.SyncVectorEnv([one] * num_envs, autoreset_mode=autoreset_mode)

    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        check(make_vec, scalar=Ending, autoreset_mode=mode)


def test_coupling_is_checked_across_the_ends_of_episodes():
    def make_env():
        return gym.make("llmqueue_gym:LLMDeploy-v0", horizon=20, num_stages=2)

    check_coupling(make_env, ("arrived_now",), steps=50)
    check_coupling(lambda: gym.wrappers.TimeLimit(Ending(), 15), ("arrived",), steps=14)
    with pytest.raises(AssertionError, match="depend on the actions"):
        check_coupling(make_env, ("llm",), steps=50)
