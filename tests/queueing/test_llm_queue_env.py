"""LLMQueue-v0: the Gymnasium contract, lane equality, masks, coupling and its errors."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import QueueProblem
from llmqueue_gym.envs import LLMQueueEnv, LLMQueueVectorEnv
from llmqueue_gym.registration import ENVIRONMENTS
from llmqueue_gym.testing import check_coupling, check_lane_equality, check_masks

VARIANTS = [
    {},
    {"load": 0.9, "num_llms": 3, "assortment_size": 1, "reward": "departures"},
    {"arrival_rate": 1.0, "window": 4, "instance_seed": 3, "assortment_size": 3},
    {"workload": {"source": "synthetic", "kind": "specialists"}, "load": 0.8, "context_dim": 16},
]


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_environment_passes_gymnasiums_checker(env_id):
    env = gym.make(env_id, disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_variants_pass_gymnasiums_checker(kwargs):
    check_env(LLMQueueEnv(**kwargs), skip_render_check=True)


def test_stable_baselines3_checker_has_no_warning():
    checker = pytest.importorskip(
        "stable_baselines3.common.env_checker", reason="needs the rl extra"
    )
    with warnings.catch_warnings():
        # contexts are (W, d): SB3 recommends one dimension and flattens them itself.
        warnings.filterwarnings("ignore", "Your observation contexts has an unconventional shape")
        checker.check_env(LLMQueueEnv(), warn=True)
    checker.check_env(gym.wrappers.FlattenObservation(LLMQueueEnv()), warn=True)


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_lanes_equal_scalar_environments(kwargs, mode):
    check_lane_equality("LLMQueue-v0", autoreset_mode=mode, **kwargs)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_masks_and_coupling(kwargs):
    check_masks(gym.make("LLMQueue-v0", **kwargs))
    check_coupling(lambda: gym.make("LLMQueue-v0", **kwargs))


def test_reward_and_info_say_what_the_queue_did():
    for reward in ("queue_length", "departures"):
        env = gym.make("LLMQueue-v0", reward=reward, arrival_rate=0.6)
        observation, info = env.reset(seed=4)
        env.action_space.seed(4)
        length = 0
        for _ in range(500):
            observation, value, _, _, info = env.step(env.action_space.sample())
            length += int(info["arrived"]) - int(info["departed"])
            assert info["queue_length"] == length == observation["queue_length"][0]
            assert value == (-length if reward == "queue_length" else float(info["departed"]))
            assert info["served"] == (info["departed"] or info["retried"])
            code = 0 if not info["served"] else 1 if info["retried"] else 2 + info["kept_llm"]
            assert observation["feedback"] == code
            assert not (info["departed"] and info["retried"])
            assert observation in env.observation_space


def test_instance_seed_fixes_the_instance_and_its_absence_draws_a_new_one():
    fixed = gym.make("LLMQueue-v0", instance_seed=5)
    fixed.reset(seed=0)
    first = fixed.unwrapped.dynamics.odds.copy()
    fixed.reset(seed=1)
    np.testing.assert_array_equal(first, fixed.unwrapped.dynamics.odds)
    free = gym.make("LLMQueue-v0")
    free.reset(seed=0)
    first = free.unwrapped.dynamics.odds.copy()
    free.reset()
    assert not np.array_equal(first, free.unwrapped.dynamics.odds)
    free.reset(seed=0)
    np.testing.assert_array_equal(first, free.unwrapped.dynamics.odds)


def test_load_and_slack_mean_what_they_say():
    env = gym.make("LLMQueue-v0", load=0.83)
    env.reset(seed=0)
    dynamics = env.unwrapped.dynamics
    np.testing.assert_allclose(dynamics.load, 0.83)
    expected = 0.83 / np.mean(1 / dynamics.best_rate[:-1])
    np.testing.assert_allclose(dynamics.arrival_rate, expected)
    env = gym.make("LLMQueue-v0", assortment_size=1)  # the published instance
    env.reset(seed=0)
    dynamics = env.unwrapped.dynamics
    assert dynamics.arrival_rate[0] == 0.7
    assert dynamics.best_rate[:-1].min() >= 0.8
    overloaded = gym.make("LLMQueue-v0", arrival_rate=1.0)
    overloaded.reset(seed=0)
    assert overloaded.unwrapped.dynamics.load[0] > 1


def test_disabled_autoreset_resets_by_mask_only():
    env = gym.make_vec("LLMQueue-v0", 3, max_episode_steps=5, autoreset_mode="DISABLED")
    env.reset(seed=0)
    actions = np.zeros((3, 3), dtype=np.int64)
    for _ in range(5):
        *_, truncated, _ = env.step(actions)
    assert truncated.all()
    with pytest.raises(ValueError, match="reset_mask"):
        env.step(actions)
    mask = np.array([True, False, True])
    env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(env.unwrapped.dynamics.slot, [0, 5, 0])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(3, dtype=bool)})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"load": 1.0}, "arrival_rate instead"),
        ({"load": 1.3}, "overload"),
        ({"load": np.float32(1.0)}, "overload"),
        ({"load": np.int64(1)}, "overload"),
        ({"load": float("nan")}, "load=nan"),
        ({"load": "high"}, "load='high'"),
        ({"load": 0.5, "arrival_rate": 0.5}, "only one"),
        ({"load": 0.5, "slack": 0.1}, "slack=0.1"),
        ({"arrival_rate": 1.5}, "arrival_rate=1.5"),
        ({"arrival_rate": -0.1}, "arrival_rate=-0.1"),
        ({"arrival_rate": 0.7, "slack": 0.3}, "below 1"),
        ({"arrival_rate": 0.8, "slack": 0.199, "assortment_size": 1}, "slack"),
        ({"window": 0}, "window=0"),
        ({"window": 2.5}, "window=2.5"),
        ({"assortment_size": 6}, "assortment_size=6"),
        ({"num_llms": 0}, "num_llms=0"),
        ({"context_dim": True}, "context_dim=True"),
        ({"reward": "departure"}, "departures"),
        ({"instance_seed": -1}, "instance_seed=-1"),
        ({"workload": "syntetic"}, "synthetic"),
        ({"workload": {"source": "synthetic", "kind": "specialist"}}, "specialists"),
        ({"workload": {"source": "synthetic", "knd": "uniform"}}, "kind"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_the_fix(kwargs, message):
    def build():
        env = LLMQueueEnv(**kwargs)
        env.reset(seed=0)

    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "action",
    [[32, 0, 0], [-1, 0, 0], [0, 5, 0], [0, 0, -1], [0, 0], [0.0, 1.0, 2.0], None, "serve", [[0]]],
)
def test_bad_actions_are_refused_and_change_nothing(action):
    env = LLMQueueEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action="):
        env.step(action)
    assert env.dynamics.slot[0] == 0
    vector = LLMQueueVectorEnv(2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="2 rows of integers"):
        vector.step([action, action])
    assert vector.dynamics.slot[0] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_actions_of_any_integer_type_do_the_same(dtype):
    envs = [LLMQueueVectorEnv(8, arrival_rate=0.9, window=4) for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    envs[0].action_space.seed(0)
    for _ in range(30):
        actions = envs[0].action_space.sample()
        steps = [env.step(a) for env, a in zip(envs, (actions, actions.astype(dtype)), strict=True)]
        for key, value in steps[0][4].items():
            np.testing.assert_array_equal(value, steps[1][4][key], err_msg=key)


def test_vector_environment_names_bad_arguments():
    with pytest.raises(ValueError, match="NEXT_STEP"):
        LLMQueueVectorEnv(2, autoreset_mode="sometimes")
    with pytest.raises(ValueError, match="2 entries for 3 lanes"):
        LLMQueueVectorEnv(3).reset(seed=[1, 2])


def test_the_instance_does_not_share_its_stream_with_an_agent_of_the_same_seed():
    env = LLMQueueEnv(
        workload={"source": "synthetic", "kind": "lookalike"}, load=0.9, instance_seed=0
    )
    env.reset(seed=0)
    contexts = env.dynamics.contexts[:-1].astype(float)
    normals = np.random.default_rng(0).standard_normal((6, 5))
    guess = contexts @ (normals[0] + 1.2 * normals[1:]).T
    assert not np.allclose(np.log(env.dynamics.odds[:-1]), guess)


def test_step_before_reset_is_refused():
    for env in (LLMQueueEnv(), LLMQueueVectorEnv(2)):
        with pytest.raises(gym.error.ResetNeeded):
            env.step(env.action_space.sample())


def test_slack_zero_still_asks_for_the_arrival_rate():
    env = LLMQueueEnv(arrival_rate=0.7, slack=0.0, assortment_size=1)
    env.reset(seed=0)
    assert env.dynamics.best_rate[:-1].min() >= 0.7


def test_the_problem_is_what_an_agent_is_made_of():
    env = gym.make("LLMQueue-v0", num_llms=4, context_dim=3, window=6, load=0.8).unwrapped
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        _ = env.problem
    env.reset(seed=1)
    problem = QueueProblem(**env.problem, horizon=50)
    assert (problem.num_llms, problem.assortment_size, problem.context_dim) == (4, 2, 3)
    assert (problem.window, problem.arrival_rate) == (6, float(env.dynamics.arrival_rate[0]))
