"""LLMServe-v0: spaces, masks, lanes, presets, load, and one clear error for each bad argument."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.adapters.wrappers import DiscreteActions
from llmqueue_gym.serving.env import LLMServeEnv
from llmqueue_gym.serving.presets import DEFAULTS, PRESETS
from llmqueue_gym.serving.task import ServingTask
from llmqueue_gym.testing import check_coupling, check_lane_equality, check_masks

LEAVING = {"preset": "fleet", "impatience": 0.02, "give_up": 0.1, "window": 5}
VARIANTS = [
    {"preset": "tiny-pair", "load": 0.7},
    LEAVING,
    {"preset": "autoscale", "update_every": 40, "loading": 25, "instance_seed": 3, "window": 5},
    {"preset": "streaming", "dispatches": 1, "window": 3, "disguise": 2},
]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_json_plain_and_pass_the_checkers(preset):
    assert json.loads(json.dumps(PRESETS[preset])) == PRESETS[preset]
    assert PRESETS[preset].keys() <= DEFAULTS.keys()
    check_env(LLMServeEnv(preset), skip_render_check=True)
    env = gym.make("LLMServe-v0", preset=preset)
    check_masks(env, steps=250)
    json.dumps(env.unwrapped.problem)
    check_coupling(lambda: gym.make("LLMServe-v0", preset=preset))


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_lanes_equal_scalar_environments(kwargs, mode):
    check_lane_equality("LLMServe-v0", autoreset_mode=mode, **kwargs)


def test_stable_baselines3_trains_on_the_lanes():
    pytest.importorskip("stable_baselines3", reason="needs the rl extra")
    from stable_baselines3 import PPO

    from llmqueue_gym.adapters.sb3 import make_vec_env

    env = make_vec_env("LLMServe-v0", 2, seed=0, max_episode_steps=20, **LEAVING)
    env.reset()
    assert np.shape(env.env_method("action_masks")) == (2, int(env.action_space.nvec.sum()))
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    model.learn(64)
    assert model.num_timesteps == 64


def test_the_load_is_the_linear_programmes():
    """With x = f of the hard queries on the fast LLM: f = .00714, and both replicas work .587."""
    base = ServingTask("tiny-pair").public
    assert base.load == pytest.approx(0.58730, abs=5e-5)
    for load in (0.0, 0.5, 0.99):
        task = ServingTask("tiny-pair", load=load).public
        assert task.load == pytest.approx(load)
        assert task.arrival_rate == pytest.approx(0.26 * load / base.load)
    # A fleet that may change hosts the best LLM everywhere: 2 x .5 x .9 keeps a slot.
    free = ServingTask(
        "tiny-pair",
        queries=[{"keep": [0.9, 0.95]}],
        replicas=[{"hosts": "fast", "finish": 0.5, "count": 2}],
        arrival_rate=0.5,
        update_every=60,
    ).public
    assert free.load == pytest.approx(0.5 / (2 * 0.5 * 0.95))


def test_mean_slots_are_those_of_the_law(tmp_path):
    """E[slots] of an answer by simulation of its work, with prompts, for every law."""
    trace = tmp_path / "trace.csv"
    lengths = np.random.default_rng(0).integers(1, 300, (50, 2))
    rows = [f"{prompt},{tokens}" for prompt, tokens in lengths]
    trace.write_text("\n".join(["ContextTokens,GeneratedTokens", *rows]))
    laws = [
        {"law": "geometric", "mean": 30.0, "input": 600.0},
        {"law": "lognormal", "mean": 30.0, "sigma": 0.8, "input": 600.0},
        {"law": "trace", "path": str(trace)},
    ]
    for tokens in laws:
        replicas = [{"hosts": "llm", "gpu": "A10G", "places": 1}]
        env = gym.make_vec(
            "LLMServe-v0",
            64,
            preset=None,
            replicas=replicas,
            tokens=tokens,
            slot_seconds=0.05,
            arrival_rate=1.0,
            window=1,
            max_episode_steps=-1,
        )
        env.reset(seed=0)
        dynamics = env.unwrapped.dynamics
        for _ in range(1500):
            env.step(np.tile([0, 0, 0], (64, 1)))
        kept = dynamics.totals[:, 2]  # the replica is never idle
        expected = dynamics.instances[0].mean_slots(0, 0, 1)[0]
        error = 1500 / kept.mean() ** 2 * kept.std() / 8.0
        assert abs(1499 / kept.mean() - expected) < 4.0 * error + 1.0 / kept.mean() * expected
        assert error < 0.03 * expected
        assert dynamics.instances[0].throughput(0, 0)[0] == pytest.approx(1.0 / expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "fleets"}, "did you mean 'fleet'"),
        ({"preset": None}, "arrival_rate and load are both missing"),
        ({"load": 0.5, "arrival_rate": 0.1}, "give only one"),
        ({"load": 1.2}, "load=1.2 must be below 1"),
        ({"load": 0.9, "slot_seconds": 0.5}, "lower slot_seconds"),
        ({"arrival_rate": 1.2}, r"arrival_rate=1.2 must be a number in \[0, 1\]"),
        ({"update_every": 30, "loading": 60}, "update_every=30 is shorter than loading=60"),
        ({"return_rate": 0.0}, "return_rate=0.0"),
        ({"give_up": -0.1}, "give_up=-0.1"),
        ({"impatience": 2}, "impatience=2"),
        ({"slot_seconds": 0}, "slot_seconds=0"),
        ({"dispatches": 0}, "dispatches=0"),
        ({"window": 1.5}, "window=1.5"),
        ({"instance_seed": -1}, "instance_seed=-1"),
        ({"disguise": -1}, "disguise=-1"),
        ({"flat_observation": 1}, "flat_observation=1"),
        ({"render_mode": "human"}, "render_mode='human'"),
        ({"rewards": {"keeps": 1.0}}, "did you mean 'kept'"),
        ({"rewards": {"late": 1.0}}, "'late' and 'sla'"),
        ({"rewards": {"kept": float("nan")}}, "rewards: kept=nan"),
        ({"llms": []}, "llms="),
        ({"llms": ["a", "a"]}, "a name twice"),
        ({"llms": [{"name": "a", "sizes": 1}]}, "did you mean 'size'"),
        ({"llms": [{"name": "a", "quality": 1.0}]}, r"quality=1.0 must be a number in \(0, 1\)"),
        ({"replicas": []}, "replicas="),
        ({"replicas": [{"hosts": "small"}]}, "exactly one of gpu, finish, base_seconds"),
        ({"replicas": [{"gpu": "H200", "hosts": "small"}]}, "did you mean 'H100'"),
        ({"replicas": [{"gpu": "H100"}]}, "hosts nothing, and with update_every=0"),
        ({"replicas": [{"gpu": "H100", "hosts": "smal"}]}, "did you mean 'small'"),
        ({"replicas": [{"gpu": "H100", "hosts": "small", "places": 0}]}, "places=0"),
        ({"replicas": [{"finish": 0.0, "hosts": "small"}]}, "finish=0.0"),
        (
            {
                "llms": [{"name": "a", "arrives": 9}],
                "replicas": [{"gpu": "A10G", "hosts": "a"}],
                "update_every": 100,
            },
            "arrives at slot 9 only",
        ),
        (
            {"llms": ["small", "medium", "large", {"name": "a", "arrives": 9}]},
            "'a' arrives at slot 9, and with update_every=0",
        ),
        ({"replicas": [{"finish": 0.5, "hosts": "small"}]}, "law='lognormal' contradicts a replic"),
        ({"replicas": [{"gpu": "H100", "each_seconds": 1}]}, "belongs to base_seconds"),
        ({"queries": [{"keep": [0.5]}]}, "each of 3 LLMs"),
        ({"queries": [{"keep": [0.5, 0.5, 1.5]}]}, "keep=1.5"),
        ({"queries": {"source": "nowhere"}}, "workload source 'nowhere'"),
        ({"tokens": {"law": "geometric"}}, "tokens: mean=None"),
        ({"tokens": {"law": "normal", "mean": 3.0}}, "law"),
        ({"tokens": {"law": "trace", "path": "nowhere.csv"}}, "there is no such file"),
        ({"arrivals": {"process": "daily", "swing": 0.9}, "arrival_rate": 0.9}, "1.71 arrivals"),
    ],
)
def test_a_bad_argument_has_one_clear_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LLMServeEnv(**{"preset": "fleet"} | kwargs).reset(seed=0)


@pytest.mark.parametrize(
    "action", [[33, 0] * 2 + [0] * 4, [0, 4, 0, 0, 0, 0, 0, 0], [0, 0], [-1] * 8]
)
def test_an_action_outside_the_space_is_an_error(action):
    env, lanes = LLMServeEnv(), gym.make_vec("LLMServe-v0", 2)
    env.reset(seed=0)
    lanes.reset(seed=0)
    with pytest.raises(ValueError, match="is not in the action space"):
        env.step(np.array(action))
    with pytest.raises(ValueError, match="is not in the action space"):
        lanes.step(np.array([action, action]))
    with pytest.raises(gym.error.ResetNeeded):
        LLMServeEnv().step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded):
        _ = LLMServeEnv().problem


def test_a_wrapper_of_llm_queue_refuses_it():
    env = gym.make(
        "LLMServe-v0", preset="slow-server", dispatches=1
    )  # MultiDiscrete([33, 2, 2, 2])
    with pytest.raises(ValueError, match="takes LLMQueue-v0"):
        DiscreteActions(env)
