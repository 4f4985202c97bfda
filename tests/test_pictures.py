"""What the texts and pictures of all environments have in common."""

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_equal

import llmqueue_gym  # noqa: F401 - registers the ids

SHORT = {"horizon": 90, "num_stages": 45}
ENVIRONMENTS = {
    "LLMQueue-v0": {},
    "LLMDeploy-v0": SHORT,
    "LLMDeployStage-v0": SHORT,
    "LLMServe-v0": {"preset": "autoscale"},
}
each = pytest.mark.parametrize("env_id", ENVIRONMENTS)


def make(env_id, mode):
    env = gym.make(env_id, render_mode=mode, **ENVIRONMENTS[env_id])
    env.action_space.seed(4)
    env.reset(seed=4)
    return env


@each
@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_gymnasiums_checker_accepts_every_render_mode(env_id, mode):
    pytest.importorskip("pygame")
    check_env(make(env_id, mode).unwrapped)


@each
def test_reset_forgets_the_last_episode(env_id):
    env = make(env_id, "ansi")
    fresh = env.render()
    for _ in range(40):
        env.step(env.action_space.sample())
    assert env.render() != fresh
    env.reset(seed=4)
    assert env.render() == fresh


@each
def test_pictures_are_deterministic_and_change_nothing(env_id):
    pytest.importorskip("pygame")
    plain, drawn, again = (make(env_id, mode) for mode in (None, "rgb_array", "rgb_array"))
    for _ in range(40):
        action = plain.action_space.sample()
        expected, *_ = plain.step(action)
        observation, *_ = drawn.step(action)
        again.step(action)
        first, second = drawn.render(), drawn.render()
        assert (first == second).all()
        assert first is not second
        assert_equal(observation, expected)
    assert (again.render() == first).all()
