"""What libraries on top ask for: flat observations, info, lanes, limits, pickles and frames."""

import importlib
import pickle
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.adapters.wrappers import (
    DiscreteActions,
    DiscreteActionsVector,
    FlatObservation,
    FlatObservationVector,
    PreviousDecision,
    PreviousDecisionVector,
)
from llmqueue_gym.envs import LLMQueueVectorEnv
from llmqueue_gym.flat import FlatLayout
from llmqueue_gym.registration import ENVIRONMENTS, QUEUE_EPISODE_STEPS
from llmqueue_gym.testing import check_lane_equality

SMALL = {
    "LLMQueue-v0": {"arrival_rate": 0.9, "window": 4},
    "LLMServe-v0": {"preset": "autoscale", "update_every": 30, "loading": 7, "window": 4},
    "LLMDeploy-v0": {"horizon": 60, "num_stages": 5},
    "LLMDeployStage-v0": {"horizon": 60, "num_stages": 5},
}
NATIVE = [env_id for env_id, spec in ENVIRONMENTS.items() if "vector_entry_point" in spec]
RESETTING = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def make(env_id, **kwargs):
    return gym.make(env_id, **SMALL[env_id], **kwargs)


def make_vec(env_id, lanes=3, **kwargs):
    return gym.make_vec(env_id, lanes, **SMALL[env_id], **kwargs)


def steps(env, number, seed=0):
    """Reset, then play random actions: yields (observation, info) first, then what steps return."""
    env.action_space.seed(seed)
    yield env.reset(seed=seed)
    ended = False
    for _ in range(number):
        if ended and not hasattr(env, "num_envs"):
            ended = False
            yield env.reset()
            continue
        result = env.step(env.action_space.sample())
        ended = np.any(result[3])
        yield result


def check_env_wrapped(env):
    """Run Gymnasium's checker, which warns of every wrapper."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        check_env(env, skip_render_check=True)


# ------------------------------------------------------------------ flat observations


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_flat_observation_is_gymnasiums_in_float32(env_id):
    plain, flat = make(env_id), make(env_id, flat_observation=True)
    wrapped = FlatObservation(make(env_id))
    space = plain.observation_space
    assert flat.observation_space == wrapped.observation_space
    assert isinstance(flat.observation_space, spaces.Box)
    assert flat.observation_space.dtype == np.float32
    assert np.isfinite([flat.observation_space.low, flat.observation_space.high]).all()
    assert flat.unwrapped.dict_observation_space == space
    for shown, vector, other in zip(
        steps(plain, 150), steps(flat, 150), steps(wrapped, 150), strict=True
    ):
        expected = spaces.flatten(space, shown[0]).astype(np.float32)
        assert vector[0].tobytes() == other[0].tobytes() == expected.tobytes()
        assert vector[0] in flat.observation_space
        back = spaces.unflatten(space, vector[0])
        for key, value in shown[0].items():
            np.testing.assert_array_equal(back[key], value)
            place = flat.unwrapped.layout.slices[key]
            np.testing.assert_array_equal(vector[0][place], spaces.flatten(space[key], value))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_flat_observations_pass_gymnasiums_checker(env_id):
    check_env(make(env_id, flat_observation=True).unwrapped, skip_render_check=True)
    check_env_wrapped(FlatObservation(make(env_id)))


@pytest.mark.parametrize("env_id", NATIVE)
@pytest.mark.parametrize("mode", RESETTING)
def test_flat_lanes_equal_flat_environments(env_id, mode):
    check_lane_equality(
        env_id,
        steps=120,
        max_episode_steps=50,
        autoreset_mode=mode,
        flat_observation=True,
        **SMALL[env_id],
    )


@pytest.mark.parametrize("env_id", NATIVE)
@pytest.mark.parametrize("mode", RESETTING)
def test_the_vector_wrapper_equals_the_option(env_id, mode):
    option = make_vec(env_id, max_episode_steps=40, autoreset_mode=mode, flat_observation=True)
    wrapped = FlatObservationVector(make_vec(env_id, max_episode_steps=40, autoreset_mode=mode))
    assert option.observation_space == wrapped.observation_space
    assert option.single_observation_space == wrapped.single_observation_space
    ends = 0
    for one, other in zip(steps(option, 100), steps(wrapped, 100), strict=True):
        assert one[0] in option.observation_space
        assert one[0].tobytes() == other[0].tobytes()
        for lane in np.flatnonzero(one[-1].get("_final_obs", [])):
            last = one[-1]["final_obs"][lane], other[-1]["final_obs"][lane]
            assert last[0].tobytes() == last[1].tobytes()
            ends += 1
        np.testing.assert_array_equal(option.unwrapped.action_masks(), wrapped.action_masks())
    assert bool(ends) == (mode is AutoresetMode.SAME_STEP)


def test_flat_observations_with_the_other_wrappers():
    env = FlatObservation(DiscreteActions(PreviousDecision(make("LLMQueue-v0"))))
    assert {"previous_context", "previous_llms"} <= set(env.layout.slices)
    assert isinstance(env.action_space, spaces.Discrete)
    check_env_wrapped(env)
    mode = AutoresetMode.SAME_STEP
    venv = PreviousDecisionVector(
        make_vec("LLMQueue-v0", autoreset_mode=mode, max_episode_steps=20)
    )
    venv = FlatObservationVector(DiscreteActionsVector(venv))
    for observation, *_ in steps(venv, 50):
        assert observation in venv.observation_space
    flat = DiscreteActions(make("LLMQueue-v0", flat_observation=True))
    assert isinstance(flat.observation_space, spaces.Box)
    vector = DiscreteActionsVector(make_vec("LLMQueue-v0", flat_observation=True))
    assert isinstance(vector.single_observation_space, spaces.Box)


def test_what_cannot_be_flattened_is_named():
    with pytest.raises(ValueError, match="MultiDiscrete"):
        FlatLayout(spaces.Dict({"pair": spaces.MultiDiscrete([2, 3])}))
    with pytest.raises(ValueError, match="only a Dict"):
        FlatObservation(make("LLMQueue-v0", flat_observation=True))
    with pytest.raises(ValueError, match="flat_observation='yes' must be true or false"):
        make("LLMDeploy-v0", flat_observation="yes")


# ------------------------------------------------------------------------------- info


def shapes(info):
    return {key: (value.dtype, value.shape) for key, value in info.items()}


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_info_has_the_same_keys_and_types_after_a_reset_and_a_step(env_id):
    env = make(env_id)
    (_, first), *results = steps(env, 30)
    assert "reward" not in first
    assert all(isinstance(value, np.ndarray | np.generic) for value in first.values())
    for *_, info in results:
        assert shapes(info) == shapes(first)


@pytest.mark.parametrize("env_id", NATIVE)
@pytest.mark.parametrize("mode", RESETTING)
def test_a_lanes_info_has_the_keys_of_the_scalar_environment(env_id, mode):
    _, scalar = make(env_id).reset(seed=0)
    for *_, info in steps(make_vec(env_id, autoreset_mode=mode, max_episode_steps=10), 25):
        own = {key: value for key, value in info.items() if not re.match(r"_|final_", key)}
        assert set(own) == set(scalar)
        assert all(info[f"_{key}"].all() for key in own)
        for key, value in own.items():
            assert value.dtype == scalar[key].dtype
            assert value.shape == (3, *scalar[key].shape)


# ------------------------------------------------------------------ the native vector form


@pytest.mark.parametrize("env_id", NATIVE)
def test_lanes_answer_as_gymnasiums_sync_vector_env(env_id):
    native = make_vec(env_id)
    sync = SyncVectorEnv([lambda: make(env_id)] * 3)
    for env in (native, sync):
        env.reset(seed=[5, 9, 2])
    for name in ("np_random_seed", "problem", "llms", "observation_space", "action_space"):
        assert native.get_attr(name) == sync.get_attr(name), name
    assert native.np_random_seed == sync.np_random_seed == (5, 9, 2)
    for one, other in zip(native.np_random, sync.np_random, strict=True):
        assert one.bit_generator.state == other.bit_generator.state
    np.testing.assert_array_equal(native.call("action_masks"), sync.call("action_masks"))
    assert native.autoreset_mode is sync.autoreset_mode
    native.set_attr("note", ["same", "same", "same"])
    assert native.get_attr("note") == ("same",) * 3
    with pytest.raises(ValueError, match="one object"):
        native.set_attr("note", [1, 2, 3])
    with pytest.raises(ValueError, match="2 entries for 3 lanes"):
        native.set_attr("note", [1, 1])


@pytest.mark.parametrize("mode", RESETTING)
@pytest.mark.parametrize(
    ("vector_form", "scalar_form"),
    [
        (DiscreteActionsVector, DiscreteActions),
        (FlatObservationVector, FlatObservation),
        (PreviousDecisionVector, PreviousDecision),
    ],
)
def test_wrapped_lanes_answer_as_lanes_of_wrapped_environments(vector_form, scalar_form, mode):
    native = vector_form(make_vec("LLMQueue-v0", autoreset_mode=mode))
    copies = SyncVectorEnv([lambda: scalar_form(make("LLMQueue-v0"))] * 3, autoreset_mode=mode)
    for env in (native, copies):
        env.reset(seed=4)
    assert native.autoreset_mode is copies.autoreset_mode is mode
    for name in ("observation_space", "action_space", "np_random_seed", "problem"):
        assert native.get_attr(name) == copies.get_attr(name), name
    np.testing.assert_array_equal(native.call("action_masks"), copies.call("action_masks"))
    native.set_attr("note", "same")
    assert native.get_attr("note") == ("same",) * 3


def test_what_an_environment_is_shows_in_its_direct_bases():
    """Skrl looks there, and no further."""
    made = [make_vec(env_id) for env_id in NATIVE]
    queue = make_vec("LLMQueue-v0")
    made += [form(queue) for form in (DiscreteActionsVector, FlatObservationVector)]
    made += [PreviousDecisionVector(queue), *map(make, ENVIRONMENTS)]
    for env in made:
        assert any(base.__module__.startswith("gymnasium.") for base in type(env).__bases__), env
    pytest.importorskip("pettingzoo", reason="the games need the extra marl")
    for name in ("llm_queue_v0", "llm_servers_v0"):
        game = importlib.import_module(f"llmqueue_gym.multi_agent.{name}").parallel_env()
        assert any(base.__module__ == "pettingzoo.utils.env" for base in type(game).__bases__)


def test_lanes_without_a_render_mode_draw_nothing():
    env = make_vec("LLMQueue-v0")
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="draws nothing"):
        assert env.call("render") == (None,) * 3


@pytest.mark.parametrize("env_id", NATIVE)
def test_the_seed_of_a_lane_is_the_seed_it_was_drawn_from(env_id):
    env = make_vec(env_id)
    first, _ = env.reset()
    seeds = env.np_random_seed
    assert len(set(seeds)) == 3
    again, _ = env.reset(seed=list(seeds))
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])


def test_the_problem_of_lanes_that_differ_is_told_by_lane():
    same = gym.make_vec("LLMQueue-v0", 2, load=0.8, instance_seed=0)
    same.reset(seed=0)
    assert same.problem == same.get_attr("problem")[1]
    differ = gym.make_vec("LLMQueue-v0", 2, load=0.8)
    with pytest.raises(gym.error.ResetNeeded, match="before problem is read"):
        differ.get_attr("problem")
    differ.reset(seed=0)
    one, other = differ.get_attr("problem")
    assert one["arrival_rate"] != other["arrival_rate"]
    with pytest.raises(ValueError, match="differ in arrival_rate"):
        _ = differ.problem


@pytest.mark.parametrize("limit", [None, -1, 7])
@pytest.mark.parametrize("env_id", NATIVE)
def test_the_step_limit_means_what_it_does_for_one_environment(env_id, limit):
    env, lanes = make(env_id, max_episode_steps=limit), make_vec(env_id, max_episode_steps=limit)
    env.reset(seed=0)
    lanes.reset(seed=0)
    horizon = 60 if env_id == "LLMDeploy-v0" else QUEUE_EPISODE_STEPS
    expected = limit or horizon
    if env_id != "LLMDeploy-v0" and limit == -1:
        expected = None  # never
    elif limit == -1:
        expected = horizon
    action = np.zeros(env.action_space.shape, dtype=np.int64)
    actions = np.tile(action, (3, 1))
    for step in range(1, 1 + (expected or 2 * QUEUE_EPISODE_STEPS // 10 + QUEUE_EPISODE_STEPS)):
        *_, truncated, _ = env.step(action)
        *_, truncations, _ = lanes.step(actions)
        assert truncated == truncations.all() == truncations.any() == (step == expected)


@pytest.mark.parametrize("limit", [0, -2, 2.5, True, "long"])
def test_other_step_limits_are_refused(limit):
    with pytest.raises(ValueError, match="max_episode_steps="):
        LLMQueueVectorEnv(2, max_episode_steps=limit)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_the_spec_says_when_an_episode_ends(env_id):
    plain = make(env_id)
    env = gym.wrappers.TimeAwareObservation(make(env_id), flatten=False)
    limit = {"LLMDeploy-v0": 60, "LLMDeployStage-v0": 5}.get(env_id, QUEUE_EPISODE_STEPS)
    assert plain.spec.max_episode_steps == env.max_timesteps == limit
    assert gym.make(plain.spec).spec.max_episode_steps == limit
    assert make(env_id, max_episode_steps=3).spec.max_episode_steps == 3
    assert gym.spec(env_id).max_episode_steps == ENVIRONMENTS[env_id].get("max_episode_steps")
    if env_id in NATIVE:
        assert make_vec(env_id).spec.max_episode_steps == limit


# ------------------------------------------------------------------------------ pickles


def assert_alike(one, other):
    """Compare what two environments return, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, tuple | list):
        for first, second in zip(one, other, strict=True):
            assert_alike(first, second)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert_alike(list(one), list(other))
    else:
        first, second = np.asarray(one), np.asarray(other)
        assert first.dtype == second.dtype
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_pickled_environment_goes_on_as_the_original(env_id, flat):
    makers = [make]
    if env_id in NATIVE:
        makers += [lambda env_id, **kw: make_vec(env_id, autoreset_mode="SAME_STEP", **kw)]
    for maker in makers:
        env = maker(env_id, flat_observation=flat)
        *_, _ = steps(env, 3)
        twin = pickle.loads(pickle.dumps(env))
        twin.action_space.seed(1)
        env.action_space.seed(1)
        length = 1 if maker is make else 80
        for _ in range(length):
            action = env.action_space.sample()
            assert_alike(action, twin.action_space.sample())
            assert_alike(env.step(action), twin.step(action))
        assert_alike(env.reset(), twin.reset())
        pickle.loads(pickle.dumps(maker(env_id)))  # before the first reset, too


# ------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("mode", [*RESETTING, AutoresetMode.DISABLED])
@pytest.mark.parametrize("env_id", NATIVE)
def test_a_vector_environment_draws_lane_0_as_the_scalar_one_is_drawn(env_id, mode):
    pytest.importorskip("pygame", reason="needs the render extra")
    for render_mode in ("ansi", "rgb_array"):
        env = make(env_id, render_mode=render_mode, max_episode_steps=6)
        lanes = make_vec(env_id, render_mode=render_mode, max_episode_steps=6, autoreset_mode=mode)
        assert lanes.metadata["render_fps"] == env.metadata["render_fps"]
        env.reset(seed=3)
        lanes.reset(seed=3)
        lanes.action_space.seed(0)
        ended = False
        for _ in range(15):
            actions = lanes.action_space.sample()
            if ended and mode is AutoresetMode.DISABLED:
                lanes.reset(options={"reset_mask": np.ones(3, dtype=np.bool_)})
                env.reset()
                ended = False
            elif ended:
                lanes.step(actions)
                env.reset()
                ended = False
            else:
                lanes.step(actions)
                *_, ended, _ = env.step(actions[0])
                if ended and mode is AutoresetMode.SAME_STEP:
                    env.reset()
                    ended = False
            frames = lanes.render()
            assert len(frames) == 3
            np.testing.assert_array_equal(frames[0], env.render())
            assert not any(
                np.any(frame) if render_mode != "ansi" else frame for frame in frames[1:]
            )
        lanes.close()


# ------------------------------------------------------------------------ vector rewards


@pytest.mark.parametrize("budget", ["soft", "hard"])
def test_a_vector_reward_is_the_reward_and_minus_what_was_paid(budget):
    task = {
        "instance": "catalog",
        "horizon": 90,
        "num_stages": 9,
        "budget": budget,
        "switching_cost": 1e-3,
        "price_changes": [{"llm": "gpt-3.5-turbo-0125", "query": 30, "factor": 3.0}],
    }
    plain, vector = gym.make("LLMDeploy-v0", **task), gym.make("LLMDeployMO-v0", **task)
    space, paid = vector.unwrapped.reward_space, 0.0
    for one, other in zip(steps(plain, 90), steps(vector, 90), strict=True):
        assert_alike((one[0], one[-1]), (other[0], other[-1]))
        if len(one) == 2:
            continue
        reward = other[1]
        assert reward in space
        assert reward[0] == np.float32(one[1])
        assert reward[1] <= 0.0
        paid -= float(reward[1])
        assert one[2:4] == other[2:4]
    assert paid == pytest.approx(one[-1]["spend"], rel=1e-5)
    assert paid > 0.0


def test_a_vector_reward_is_as_mo_gymnasium_has_it():
    mo = pytest.importorskip("mo_gymnasium", reason="runs once a week")
    from mo_gymnasium.wrappers.vector import MOSyncVectorEnv

    def make_one():
        return mo.make("LLMDeployMO-v0", horizon=30, num_stages=3)

    env = mo.wrappers.MONormalizeReward(mo.wrappers.MOClipReward(make_one(), 1, -1e-3, 0.0), 1)
    env = mo.wrappers.MORecordEpisodeStatistics(env, gamma=0.9)
    *_, (_, _, _, truncated, info) = steps(env, 30)
    assert truncated
    assert info["episode"]["r"].shape == (2,)
    weights = np.array([1.0, 100.0])
    env = mo.wrappers.LinearReward(make_one(), weights)
    *_, (_, reward, _, _, info) = steps(env, 3)
    assert reward == pytest.approx(info["vector_reward"] @ weights)
    lanes = MOSyncVectorEnv([make_one] * 2)
    _, (_, rewards, *_) = steps(lanes, 1)
    assert rewards.shape == (2, 2)
