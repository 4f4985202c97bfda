"""The SB3 adapter and the discrete wrapper: equal to SB3's own lane-by-lane stepping.

Also that Gymnasium's wrappers named in llmqueue_gym.adapters.wrappers work here.
"""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from math import comb
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers as gym_wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_equal

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecVideoRecorder
from stable_baselines3.common.vec_env.base_vec_env import tile_images

from llmqueue_gym.adapters.sb3 import GymnasiumVecEnv, make_vec_env
from llmqueue_gym.adapters.wrappers import (
    DiscreteActions,
    DiscreteActionsVector,
    FlatObservation,
    PreviousDecision,
    PreviousDecisionVector,
    assortments,
)
from llmqueue_gym.errors import UsageError

QUEUE: dict[str, Any] = {"window": 4, "num_llms": 3, "assortment_size": 2, "max_episode_steps": 25}
DEPLOY: dict[str, Any] = {"horizon": 40, "num_stages": 4}


@pytest.mark.parametrize(
    ("env_id", "kwargs", "discrete"),
    [
        ("LLMQueue-v0", QUEUE, False),
        ("LLMQueue-v0", QUEUE, True),
        ("LLMDeploy-v0", DEPLOY, False),
        ("LLMDeployStage-v0", DEPLOY, False),
    ],
)
def test_equals_dummy_vec_env(env_id: str, kwargs: dict[str, Any], discrete: bool) -> None:
    def one() -> gym.Env[Any, Any]:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
        return DiscreteActions(env) if discrete else env

    wrapper = DiscreteActionsVector if discrete else None
    ours = make_vec_env(env_id, 3, seed=5, wrapper=wrapper, monitor=False, **kwargs)
    theirs = DummyVecEnv([one] * 3)
    theirs.seed(5)
    assert_equal(ours.reset(), theirs.reset(), "reset")
    space = theirs.action_space
    space.seed(0)
    ends = 0
    for step in range(90):
        actions = np.stack([space.sample() for _ in range(3)])
        mine, other = ours.step(actions), theirs.step(actions)
        names = ("observation", "reward", "done")
        for name, a, b in zip(names, mine[:3], other[:3], strict=True):
            assert_equal(a, b, f"{name} at step {step}")
        for lane in range(3):
            assert_equal(mine[3][lane], other[3][lane], f"info of lane {lane} at step {step}")
        ends += int(mine[2].sum())
        if hasattr(theirs.envs[0].unwrapped, "action_masks"):
            np.testing.assert_array_equal(get_action_masks(ours), get_action_masks(theirs))
    assert ends >= 3
    ours.close()
    theirs.close()


def test_truncation_is_told_from_the_end_of_the_problem() -> None:
    env = make_vec_env("LLMQueue-v0", 2, seed=0, **QUEUE)
    env.reset()
    for step in range(25):
        _, _, dones, infos = env.step(np.zeros((2, 3), dtype=np.int64))
        assert [info["TimeLimit.truncated"] for info in infos] == dones.tolist()
        assert dones.all() == (step == 24)
    assert infos[0]["terminal_observation"]["contexts"].shape == (4, 5)
    assert env.reset_infos[0]["queue_length"] == 0


def test_masked_training_serves_whenever_somebody_waits() -> None:
    torch.set_num_threads(1)  # more than the machine has to spare stalls such small networks
    env = make_vec_env("LLMQueue-v0", 4, wrapper=DiscreteActionsVector, **QUEUE)
    assert is_masking_supported(env)
    model = MaskablePPO("MultiInputPolicy", env, n_steps=16, batch_size=64, seed=0)
    model.learn(128)
    assert len(model.ep_info_buffer or ()) > 0  # monitored: the ends of episodes are seen
    observation = env.reset()
    for _ in range(60):
        waiting = observation["queue_length"][:, 0] > 0
        actions, _ = model.predict(observation, action_masks=get_action_masks(env))
        observation, _, _, infos = env.step(actions)
        assert [info["served"] for info in infos] == waiting.tolist()


def test_attributes_and_methods_by_lane() -> None:
    env = make_vec_env("LLMQueue-v0", 3, seed=0, **QUEUE)
    env.reset()
    assert env.get_attr("llms", indices=[0, 2]) == [("llm-0", "llm-1", "llm-2")] * 2
    assert len(env.env_method("action_masks", indices=1)) == 1
    assert not env.has_attr("no_such_thing")
    assert env.env_is_wrapped(Monitor) == [False] * 3
    env.set_attr("label", "x")
    assert env.get_attr("label") == ["x"] * 3
    with pytest.raises(ValueError, match="one object"):
        env.set_attr("label", "y", indices=0)
    stage = make_vec_env("LLMDeployStage-v0", 2, **DEPLOY)
    assert stage.get_attr("problem", indices=0)[0]["horizon"] == 40
    stage.set_attr("label", "x")
    assert stage.get_attr("label") == ["x"] * 2


@pytest.mark.parametrize("wrapper_class", [None, DiscreteActions, FlatObservation])
@pytest.mark.parametrize("kwargs", [{}, {"load": 0.8}], ids=["lanes-alike", "lanes-differ"])
def test_attributes_are_those_of_environments_of_their_own(
    kwargs: dict[str, Any], wrapper_class: Any
) -> None:
    """What a lane has of its own too; with a load the lanes' arrival rates differ."""
    kwargs = QUEUE | kwargs
    native = make_vec_env("LLMQueue-v0", 3, seed=5, wrapper_class=wrapper_class, **kwargs)
    own = DummyVecEnv(
        [lambda: (wrapper_class or gym.Wrapper)(gym.make("LLMQueue-v0", **kwargs))] * 3
    )
    own.seed(5)
    own.reset()
    native.reset()
    names = ("observation_space", "action_space", "llms", "np_random_seed", "render_mode")
    for name in names:
        assert native.get_attr(name) == own.get_attr(name), name
    assert [lane.unwrapped.problem for lane in own.envs] == native.get_attr("problem")
    assert native.has_attr("problem")
    states = [lane.unwrapped.np_random.bit_generator.state for lane in own.envs]
    found = native.get_attr("np_random", indices=[2, 0])
    assert [generator.bit_generator.state for generator in found] == [states[2], states[0]]


def test_seeds_are_used_once() -> None:
    env = make_vec_env("LLMQueue-v0", 2, seed=3, **QUEUE)
    first: list[Any] = [env.reset(), *(env.step(np.zeros((2, 3), np.int64))[0] for _ in range(9))]
    env.reset()
    again = make_vec_env("LLMQueue-v0", 2, seed=3, **QUEUE)
    second: list[Any] = [
        again.reset(),
        *(again.step(np.zeros((2, 3), np.int64))[0] for _ in range(9)),
    ]
    assert_equal(first, second, "same seed")
    later: list[Any] = [env.step(np.zeros((2, 3), np.int64))[0] for _ in range(9)]
    assert not np.array_equal([o["contexts"] for o in later], [o["contexts"] for o in first[1:]])


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [("LLMQueue-v0", QUEUE), ("LLMDeploy-v0", DEPLOY), ("LLMDeployStage-v0", DEPLOY)],
)
@pytest.mark.parametrize("monitor", [True, False])
def test_a_pickled_vector_environment_goes_on_as_the_original(
    env_id: str, kwargs: dict[str, Any], monitor: bool
) -> None:
    pickle.loads(pickle.dumps(make_vec_env(env_id, 2, monitor=monitor, **kwargs)))
    env = make_vec_env(env_id, 2, seed=0, monitor=monitor, **kwargs)
    env.reset()
    twin = pickle.loads(pickle.dumps(env))
    assert twin.get_attr("llms") == env.get_attr("llms")
    env.action_space.seed(0)
    for _ in range(45):
        actions = np.stack([env.action_space.sample() for _ in range(2)])
        mine, other = env.step(actions), twin.step(actions)
        assert_equal(mine[0], other[0], "observation")
        np.testing.assert_array_equal(mine[1], other[1])
        assert [info.get("episode", {}).get("r") for info in mine[3]] == [
            info.get("episode", {}).get("r") for info in other[3]
        ]


def test_is_called_as_sb3s_own() -> None:
    """The same arguments give the same lanes as SB3's ``make_vec_env``, monitored."""
    task = {key: value for key, value in QUEUE.items() if key != "max_episode_steps"}
    for wrapper_class, wrapper_kwargs in (
        (None, None),
        (DiscreteActions, None),
        (FlatObservation, None),
        (gym.wrappers.TimeAwareObservation, {"flatten": False}),
    ):
        given: dict[str, Any] = {
            "n_envs": 3,
            "seed": 4,
            "env_kwargs": {**task, "max_episode_steps": 25},
            "wrapper_class": wrapper_class,
            "wrapper_kwargs": wrapper_kwargs,
        }
        ours = make_vec_env("llmqueue_gym:LLMQueue-v0", **given)
        theirs = sb3_make_vec_env("llmqueue_gym:LLMQueue-v0", **given)
        assert ours.action_space == theirs.action_space
        assert ours.observation_space == theirs.observation_space
        assert_equal(ours.reset(), theirs.reset(), "reset")
        ours.action_space.seed(0)
        episodes = []
        for _ in range(30):
            actions = np.stack([ours.action_space.sample() for _ in range(3)])
            mine, other = ours.step(actions), theirs.step(actions)
            assert_equal(mine[0], other[0], "observation")
            assert_equal(mine[1], other[1], "reward")
            for one, two in zip(mine[3], other[3], strict=True):
                assert ("episode" in one) == ("episode" in two)
                episodes += [(one["episode"], two["episode"])] if "episode" in one else []
        assert len(episodes) == 3
        for one, two in episodes:
            assert one["l"] == two["l"]
            assert one["r"] == pytest.approx(two["r"])
        for env in (ours, theirs):
            env.close()


def test_a_wrapper_of_our_own_keeps_the_native_environment() -> None:
    for wrapper_class, native in ((DiscreteActions, True), (gym.wrappers.TransformReward, False)):
        more = {} if native else {"wrapper_kwargs": {"func": abs}}
        env: Any = make_vec_env(
            "LLMQueue-v0", 2, wrapper_class=wrapper_class, monitor=False, **more, **QUEUE
        )
        assert isinstance(env.venv.unwrapped, SyncVectorEnv) != native
    for wrong, message in (
        ({"wrapper_class": DiscreteActionsVector}, "give it as wrapper"),
        ({"wrapper": DiscreteActions}, "give it as wrapper_class"),
        ({"num_envs": 2}, "num_envs=2: .* n_envs"),
    ):
        with pytest.raises(UsageError, match=message):
            make_vec_env("LLMQueue-v0", **wrong)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        make_vec_env("no_such_module:LLMQueue-v0")


def test_observations_are_normalised_by_the_keys_that_the_docstring_names() -> None:
    keys = re.findall(r'"(\w+)"', str(make_vec_env.__doc__).split("norm_obs_keys=")[1][:80])
    assert len(keys) == 5
    env = VecNormalize(make_vec_env("LLMQueue-v0", 4, seed=0, **QUEUE), norm_obs_keys=keys)
    env.reset()
    for _ in range(200):
        observation, *_ = env.step(np.tile([0, 0, 1], (4, 1)))
    assert isinstance(observation, dict)
    assert abs(observation["age"]).max() <= 10.0
    assert env.obs_rms["queue_length"].mean != 0.0  # type: ignore[index]


def test_refuses_other_autoreset_modes() -> None:
    venv = gym.make_vec("LLMQueue-v0", 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="SAME_STEP"):
        GymnasiumVecEnv(venv)


def test_names_the_extra_without_sb3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stable_baselines3", "stable_baselines3.common.vec_env"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "llmqueue_gym.adapters.sb3")
    with pytest.raises(ImportError, match=r"llmqueue_gym\[rl\]"):
        importlib.import_module("llmqueue_gym.adapters.sb3")


@pytest.mark.parametrize(
    ("env_id", "kwargs", "drawn"),
    [("LLMQueue-v0", QUEUE, 1), ("LLMDeploy-v0", DEPLOY, 1), ("LLMDeployStage-v0", DEPLOY, 2)],
)
def test_sb3s_video_recorder_gets_the_pictures_that_sb3s_own_lanes_give(
    env_id: str,
    kwargs: dict[str, Any],
    drawn: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pygame", reason="needs the render extra")
    saved: dict[str, Any] = {}

    class Clip:  # only moviepy's half, which writes the file, is left out
        def __init__(self, frames: list[Any], fps: int) -> None:
            saved.update(frames=frames, fps=fps)

        def write_videofile(self, path: str) -> None:
            saved.update(path=path)

    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    writer = ModuleType("moviepy.video.io.ImageSequenceClip")
    writer.ImageSequenceClip = Clip  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, writer.__name__, writer)

    task = {**kwargs, "render_mode": "rgb_array"}
    ours = make_vec_env(env_id, 2, seed=1, **task)
    theirs = DummyVecEnv([lambda: gym.make(env_id, disable_env_checker=True, **task)] * 2)
    theirs.seed(1)
    recorder = VecVideoRecorder(ours, str(tmp_path), lambda step: step == 0, video_length=2)
    recorder.reset()
    theirs.reset()
    expected = [theirs.get_images()[:drawn]]
    ours.action_space.seed(0)
    for _ in range(2):
        actions = np.stack([ours.action_space.sample() for _ in range(2)])
        recorder.step(actions)
        theirs.step(actions)
        expected.append(theirs.get_images()[:drawn])
    assert saved["fps"] == theirs.get_attr("metadata")[0]["render_fps"]
    assert Path(saved["path"]).parent == tmp_path
    for frame, pictures in zip(saved["frames"], expected, strict=True):
        np.testing.assert_array_equal(frame, tile_images(pictures))
    assert make_vec_env(env_id, 2, **kwargs).get_images() == [None, None]


# --- discrete actions -----------------------------------------------------------------------------


@settings(max_examples=25)
@given(window=st.integers(1, 5), num_llms=st.integers(1, 5), data=st.data())
def test_actions_are_the_pairs_of_a_slot_and_a_set(
    window: int, num_llms: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, num_llms))
    kwargs: dict[str, Any] = {
        "window": window,
        "num_llms": num_llms,
        "assortment_size": size,
        "load": 0.5,
    }
    env = DiscreteActions(gym.make("LLMQueue-v0", disable_env_checker=True, **kwargs))
    count = window * comb(num_llms, size)
    assert env.action_space == gym.spaces.Discrete(count)
    decoded = env._decisions.decode(np.arange(count))
    slots, sets = decoded[:, 0], [frozenset(row) for row in decoded[:, 1:].tolist()]
    assert len(set(zip(slots.tolist(), sets, strict=True))) == count
    assert all(len(llms) == size for llms in sets)
    assert len(assortments(num_llms, size)) == comb(num_llms, size)


def test_a_legal_sample_serves_somebody() -> None:
    env = DiscreteActions(gym.make("LLMQueue-v0", **QUEUE))
    observation, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(25):
        np.testing.assert_array_equal(info["action_mask"], env.action_masks())
        waiting = observation["queue_length"][0] > 0
        observation, _, _, _, info = env.step(env.action_space.sample(mask=info["action_mask"]))
        assert info["served"] == waiting


def test_discrete_actions_refuse_what_they_cannot_list() -> None:
    with pytest.raises(ValueError, match="LLMQueue-v0"):
        DiscreteActions(gym.make("LLMDeploy-v0", **DEPLOY))
    two = {"instance": {"source": "synthetic", "num_llms": 2}, "horizon": 20, "num_stages": 2}
    with pytest.raises(ValueError, match="LLMQueue-v0"):  # its nvec, [2, 2, 2], would do
        DiscreteActions(gym.make("LLMDeploy-v0", **two))
    with pytest.raises(ValueError, match="LLMQueue-v0"):
        DiscreteActionsVector(gym.make_vec("LLMDeploy-v0", 2, **two))
    flat = gym.wrappers.FlattenObservation(gym.make("LLMQueue-v0", **QUEUE))
    assert DiscreteActions(flat).action_space.n > 1
    with pytest.raises(ValueError, match="lower window"):
        DiscreteActions(gym.make("LLMQueue-v0", num_llms=50, assortment_size=4))
    env = DiscreteActions(gym.make("LLMQueue-v0", **QUEUE))
    env.reset(seed=0)
    for bad in (-1, 12, 0.5):
        with pytest.raises(ValueError, match="whole numbers"):
            env.step(bad)


# --- the previous decision ------------------------------------------------------------------------


def test_the_previous_decision_is_the_one_that_was_made() -> None:
    env = PreviousDecision(gym.make("LLMQueue-v0", load=0.9, num_llms=4, window=5))
    observation, _ = env.reset(seed=0)
    env.action_space.seed(1)
    assert not observation["previous_context"].any()
    for _ in range(60):
        action = env.action_space.sample()
        contexts = observation["contexts"]
        observation, _, _, _, info = env.step(action)
        assert observation in env.observation_space
        shown = np.isin(np.arange(4), action[1:]) & info["served"]
        np.testing.assert_array_equal(observation["previous_llms"], shown)
        expected = contexts[action[0]] * info["served"]
        np.testing.assert_array_equal(observation["previous_context"], expected)
    again, _ = env.reset()
    assert not again["previous_context"].any()
    assert not again["previous_llms"].any()


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_the_previous_decision_passes_gymnasiums_checker() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(PreviousDecision(gym.make("LLMQueue-v0", **QUEUE)), skip_render_check=True)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_lanes_remember_what_the_scalar_wrapper_does(mode: AutoresetMode) -> None:
    kwargs = {**QUEUE, "max_episode_steps": 7}
    lanes = PreviousDecisionVector(gym.make_vec("LLMQueue-v0", 3, autoreset_mode=mode, **kwargs))
    copies = SyncVectorEnv(
        [lambda: PreviousDecision(gym.make("LLMQueue-v0", disable_env_checker=True, **kwargs))] * 3,
        autoreset_mode=mode,
    )
    assert lanes.single_observation_space == copies.single_observation_space
    observation, _ = lanes.reset(seed=2)
    assert_equal(observation, copies.reset(seed=2)[0], "reset")
    copies.action_space.seed(0)
    for step in range(40):
        actions = copies.action_space.sample()
        ours, theirs = lanes.step(actions), copies.step(actions)
        assert_equal(ours[0], theirs[0], f"observation at step {step}")
        if "final_obs" in theirs[4]:
            for lane in range(3):
                mine, other = ours[4]["final_obs"][lane], theirs[4]["final_obs"][lane]
                assert_equal(mine, other, f"last observation of lane {lane} at step {step}")


def test_the_previous_decision_refuses_other_environments() -> None:
    with pytest.raises(ValueError, match="LLMQueue-v0"):
        PreviousDecision(gym.make("LLMDeploy-v0", **DEPLOY))
    with pytest.raises(ValueError, match="inside DiscreteActions"):
        PreviousDecision(DiscreteActions(gym.make("LLMQueue-v0", **QUEUE)))


@pytest.mark.parametrize("env_id", ["LLMQueue-v0", "LLMDeploy-v0", "LLMServe-v0"])
@pytest.mark.parametrize("wrapper", [None, gym_wrappers.TransformReward])
def test_masks_are_known_to_be_there_before_the_first_reset(env_id: str, wrapper: Any) -> None:
    """MaskablePPO's evaluate_policy asks so, of lanes and of copies alike."""
    own: dict[str, Any] = {} if wrapper is None else {"wrapper_kwargs": {"func": float}}
    env = make_vec_env(env_id, 2, wrapper_class=wrapper, **own)
    assert is_masking_supported(env)
    with pytest.raises(gym.error.ResetNeeded):
        get_action_masks(env)
    env.reset()
    assert get_action_masks(env).any(axis=1).all()
    assert not env.has_attr("no_such_attribute")
    env.close()


# --- Gymnasium's own ------------------------------------------------------------------------------


def test_gymnasium_wrappers_named_in_the_module() -> None:
    env: gym.Env[Any, Any] = gym.make("LLMQueue-v0", **QUEUE)
    env = gym_wrappers.RecordEpisodeStatistics(env)
    env = gym_wrappers.NormalizeReward(
        gym_wrappers.NormalizeObservation(gym_wrappers.FlattenObservation(env))
    )
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    lengths = []
    for _ in range(25):
        *_, info = env.step(np.array([0, 0, 1]))
        lengths.append(info["queue_length"])
    assert -info["episode"]["r"] / info["episode"]["l"] == pytest.approx(np.mean(lengths))


def test_gymnasium_vector_wrappers_under_sb3() -> None:
    def wrap(venv: Any) -> Any:
        return vector_wrappers.TransformReward(
            DiscreteActionsVector(venv), lambda rewards: rewards / 10.0
        )

    env = make_vec_env("LLMQueue-v0", 2, seed=0, wrapper=wrap, **QUEUE)
    env.reset()
    _, rewards, _, infos = env.step(np.array([0, 1]))
    np.testing.assert_allclose(rewards, [-info["queue_length"] / 10.0 for info in infos])
    assert len(env.env_method("action_masks")) == 2


@pytest.mark.parametrize("lanes", [0, 2])
def test_the_decision_before_is_as_it_was_whoever_changes_the_observation(lanes: int) -> None:
    """A learner that scales the observation in place must not scale what is shown next."""

    def played(change: bool) -> list[Any]:
        env: Any = (
            PreviousDecisionVector(gym.make_vec("LLMQueue-v0", lanes, arrival_rate=0.9))
            if lanes
            else PreviousDecision(gym.make("LLMQueue-v0", arrival_rate=0.9))
        )
        env.action_space.seed(0)
        seen, shown = env.reset(seed=0)[0], []
        for _ in range(20):
            shown.append({key: np.array(value) for key, value in seen.items()})
            if change:
                for value in filter(np.ndim, seen.values()):
                    value[...] = 0
            seen = env.step(env.action_space.sample())[0]
        return shown

    assert_equal(played(change=True), played(change=False))
