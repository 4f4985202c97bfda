"""The PettingZoo games: PettingZoo's own tests, one trajectory with Gymnasium, auctions, errors."""

import doctest
import pickle
import re
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_equal

pytest.importorskip("pettingzoo", reason="needs the marl extra")
with warnings.catch_warnings():
    # PettingZoo's tests import its own games the old way.
    warnings.filterwarnings("ignore", "The old environment creation API", DeprecationWarning)
    from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.utils.conversions import aec_to_parallel, parallel_to_aec

from llmqueue_gym.errors import UsageError
from llmqueue_gym.multi_agent import (
    llm_deploy_v0,
    llm_queue_v0,
    llm_serve_v0,
    llm_servers_v0,
)

# What PettingZoo says of any game with masks, MultiDiscrete actions or agents of different kinds.
ACCEPTED_WARNINGS = (
    "Observation is not a NumPy array",
    "Observation space for each agent probably should be",
    "Action space for each agent probably should be",
    "We recommend agents to be named in the format",
    "Agents have different observation space sizes",
)
accepts_warnings = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning") for message in ACCEPTED_WARNINGS
]


def accepting(function):
    for mark in accepts_warnings:
        function = mark(function)
    return function


QUEUES = [
    {"max_episode_steps": 90},
    {"load": 0.9, "num_llms": 3, "assortment_size": 1, "max_episode_steps": 90},
    {"arrival_rate": 1.0, "window": 4, "assortment_size": 3, "max_episode_steps": 90},
]
SHORT = {"horizon": 90, "num_stages": 7}
DEPLOYMENTS = [
    SHORT,
    SHORT | {"instance": "catalog", "price_changes": "recorded"},
    SHORT
    | {
        "instance": {"source": "synthetic", "num_llms": 6},
        "alpha": [0.5, 0.5, 0.5, 1.0, 0.1, 0.2],
        "drift": 0.3,
        "reward_delay": 4,
        "budget": "hard",
        "switching_cost": 1e-3,
    },
    SHORT
    | {
        "instance": {"source": "synthetic", "kind": "late_arrival"},
        "retirements": [{"llm": "llm_0", "query": 30}],
    },
]
PARALLEL = [(llm_queue_v0, kwargs) for kwargs in QUEUES] + [
    (llm_servers_v0, kwargs | more)
    for kwargs, more in zip(
        QUEUES,
        [{}, {"reward": "shared", "schedule": "lifo"}, {"schedule": "most-retried"}],
        strict=True,
    )
]
FLEET = {"preset": "autoscale", "update_every": 30, "loading": 7, "window": 6}
PARALLEL.append((llm_serve_v0, FLEET | {"max_episode_steps": 90}))
GAMES = PARALLEL + [(llm_deploy_v0, kwargs) for kwargs in DEPLOYMENTS]


def without_mask(info):
    return {key: value for key, value in info.items() if key != "action_mask"}


def masked_sample(env, agent, observation):
    return env.action_space(agent).sample(observation["action_mask"])


def seed_actions(env, seed):
    for number, agent in enumerate(env.possible_agents):
        env.action_space(agent).seed(seed + number)


def play(env, seed, episodes=3):
    """Yield everything a game tells its agents under random legal actions, over episodes."""
    seed_actions(env, seed)
    for episode in range(episodes):
        env.reset(seed=seed if episode == 0 else None)
        for agent in env.agent_iter():
            observation, *rest = env.last()
            yield agent, observation, rest
            ended = rest[1] or rest[2]
            env.step(None if ended else masked_sample(env, agent, observation))


# ------------------------------------------------------------------ PettingZoo's tests


@accepting
@pytest.mark.parametrize("make", ["env", "raw_env"])
@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_games_pass_pettingzoos_api_test(game, kwargs, make):
    api_test(getattr(game, make)(**kwargs), num_cycles=120)


@accepting
@pytest.mark.parametrize(("game", "kwargs"), PARALLEL)
def test_parallel_games_pass_pettingzoos_parallel_api_test(game, kwargs):
    parallel_api_test(game.parallel_env(**kwargs), num_cycles=120)


@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_games_pass_pettingzoos_seed_tests(game, kwargs):
    seed_test(lambda: game.env(**kwargs), num_cycles=90)
    if hasattr(game, "parallel_env"):
        seed_test(lambda: parallel_to_aec(game.parallel_env(**kwargs)), num_cycles=90)
        parallel_seed_test(lambda: game.parallel_env(**kwargs))


@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_a_seed_repeats_whole_episodes_and_another_seed_does_not(game, kwargs):
    first, second = play(game.env(**kwargs), 7), play(game.env(**kwargs), 7)
    turns = 0
    for one, other in zip(first, second, strict=True):
        turns += 1
        assert one[0] == other[0]
        assert_equal(one[1], other[1])
        assert_equal(one[2][:3], other[2][:3])
        assert_equal(one[2][3], other[2][3])
    assert turns > 3 * 90

    def rewards(seed):
        return [rest[0] for _, _, rest in play(game.env(**kwargs), seed, episodes=1)]

    assert rewards(7) != rewards(8)


@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_observations_and_masks_are_in_their_spaces(game, kwargs):
    env = game.env(**kwargs)
    for agent, observation, _ in play(env, 3, episodes=1):
        assert observation in env.observation_space(agent)
        assert observation["action_mask"].dtype == np.int8


@accepting
@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_flat_observations_are_the_same_numbers_and_masks_are_in_info(game, kwargs):
    flat, plain = game.env(flat_observation=True, **kwargs), game.env(**kwargs)
    api_test(game.env(flat_observation=True, **kwargs), num_cycles=60)
    flat.reset(seed=2)
    for agent, observation, rest in play(plain, 2, episodes=1):
        vector, *others = flat.last()
        assert flat.agent_selection == agent
        assert vector in flat.observation_space(agent)
        space = plain.observation_space(agent)["observation"]
        expected = gym.spaces.flatten(space, observation["observation"])
        np.testing.assert_array_equal(vector, expected.astype(np.float32))
        assert others[:3] == rest[:3]
        assert_equal(without_mask(others[3]), rest[3])
        assert_equal(others[3]["action_mask"], observation["action_mask"])
        flat.step(_played(plain, agent, observation, rest))


def _played(env, agent, observation, rest):
    """The action that `play` draws next, from a copy of its generator."""
    if rest[1] or rest[2]:
        return None
    space = pickle.loads(pickle.dumps(env.action_space(agent)))
    return space.sample(observation["action_mask"])


@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_the_state_is_what_all_agents_see_together(game, kwargs):
    with pytest.raises(gym.error.ResetNeeded, match="before state"):
        game.raw_env(**kwargs).state()
    env = game.env(**kwargs)
    states = []
    for _ in play(env, 0, episodes=1):
        raw = env.unwrapped
        states.append(env.state())
        assert states[-1] in env.state_space
        assert states[-1].dtype == np.float32
        layout, seen = raw._state_layout, raw._seen
        for key in raw._single.dict_observation_space:
            expected = gym.spaces.flatten(raw._single.dict_observation_space[key], seen[key])
            np.testing.assert_array_equal(states[-1][layout.slices[key]], expected)
    assert len(np.unique(states, axis=0)) > 50
    if game is llm_servers_v0:
        shown = np.array(states)[:, env.unwrapped._state_layout.slices["shown"]]
        assert set(shown.sum(axis=1)) == {0.0, float(env.unwrapped.dynamics.assortment_size)}


@pytest.mark.parametrize("flat_observation", [False, True])
@pytest.mark.parametrize("make", ["env", "raw_env", "parallel_env"])
@pytest.mark.parametrize(("game", "kwargs"), GAMES)
def test_a_pickled_game_goes_on_as_the_original(game, kwargs, make, flat_observation):
    if not hasattr(game, make):
        return
    env = getattr(game, make)(flat_observation=flat_observation, **kwargs)
    pickle.loads(pickle.dumps(env))  # before the first reset, too
    env.reset(seed=0)
    twin = pickle.loads(pickle.dumps(env))
    seed_actions(env, 0)
    for _ in range(40):
        if make == "parallel_env":
            actions = {agent: env.action_space(agent).sample() for agent in env.agents}
            for mine, other in zip(env.step(actions), twin.step(actions), strict=True):
                assert_equal(mine, other)
        else:
            action = env.action_space(env.agent_selection).sample()
            env.step(action)
            twin.step(action)
            for mine, other in zip(env.last(), twin.last(), strict=True):
                assert_equal(mine, other)
        assert_equal(env.state(), twin.state())


@pytest.mark.parametrize(("game", "kwargs"), [*PARALLEL[:4:3], GAMES[-4]])
def test_an_episode_has_max_cycles(game, kwargs):
    kwargs = {key: value for key, value in kwargs.items() if key != "max_episode_steps"}
    env = game.env(max_cycles=12, **kwargs)
    turns = [agent for agent, *_ in play(env, 0, episodes=1)]
    last = env.possible_agents[-1]
    assert turns.count(last) == 12 + 1  # the last turn is the one that hears of the end
    with pytest.raises(ValueError, match="max_cycles=0"):
        game.env(max_cycles=0, **kwargs)


def test_the_routers_mask_leaves_one_entry_where_nobody_waits():
    env = llm_queue_v0.parallel_env(window=4, arrival_rate=1.0)
    observations, _ = env.reset(seed=0)
    for _ in range(30):
        waiting = observations["router"]["observation"]["waiting"]
        mask = observations["router"]["action_mask"].reshape(4, 2, 5)
        assert_equal(mask[waiting == 1], np.ones((waiting.sum(), 2, 5)))
        assert_equal(mask[waiting == 0], np.tile([1, 0, 0, 0, 0], (4 - waiting.sum(), 2, 1)))
        observations, *_ = env.step({"scheduler": 0, "router": [0, 1] * 4})
    assert waiting.all()


@pytest.mark.parametrize("game", [llm_deploy_v0, llm_queue_v0, llm_serve_v0, llm_servers_v0])
def test_a_game_is_shown_in_a_window(game, monkeypatch):
    pytest.importorskip("pygame", reason="needs the render extra")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = game.env(render_mode="human", max_cycles=5)
    assert "human" in env.metadata["render_modes"]
    assert env.render_mode == "human"
    env.reset(seed=0)
    raw = env.unwrapped
    window = raw._played.window
    assert window.get_size() == raw._single.render().shape[1::-1]
    assert env.render() is None
    env.close()


def test_conversions_give_the_games_back():
    parallel = llm_queue_v0.parallel_env()
    assert aec_to_parallel(parallel_to_aec(parallel)) is parallel
    env = aec_to_parallel(llm_servers_v0.env(num_llms=3))
    assert env.possible_agents == ["server_0", "server_1", "server_2"]
    with pytest.raises(AssertionError, match="is_parallelizable"):
        aec_to_parallel(llm_deploy_v0.env())


# --------------------------------------------- one trajectory with the single-agent environments


@pytest.mark.parametrize("reward", ["queue_length", "departures"])
@pytest.mark.parametrize("kwargs", QUEUES)
def test_scheduler_and_router_play_the_trajectory_of_llm_queue(kwargs, reward):
    single = gym.make("LLMQueue-v0", reward=reward, **kwargs)
    env = llm_queue_v0.parallel_env(reward=reward, **kwargs)
    single.action_space.seed(0)
    rng = np.random.default_rng(0)
    window, *llms = single.action_space.nvec.tolist()
    for seed in (5, None):  # the second episode continues the generator of the first
        expected, expected_info = single.reset(seed=seed)
        observations, infos = env.reset(seed=seed)
        truncated = False
        while not truncated:
            for agent in env.agents:
                assert_equal(expected, observations[agent]["observation"])
                assert_equal(without_mask(expected_info), infos[agent])
            scheduler_mask = observations["scheduler"]["action_mask"]
            assert_equal(expected_info["action_mask"][:window], scheduler_mask)
            slot, *shown = action = single.action_space.sample()
            # The rows of the other slots are not read.
            plan = rng.integers(llms[0], size=(window, len(llms)))
            plan[slot] = shown
            expected, value, _, truncated, expected_info = single.step(action)
            observations, rewards, terminations, truncations, infos = env.step(
                {"scheduler": slot, "router": plan.ravel()}
            )
            assert set(rewards.values()) == {value}
            assert set(truncations.values()) == {truncated}
            assert not any(terminations.values())
        assert env.agents == []


def test_dispatcher_and_manager_play_the_trajectory_of_llm_serve():
    single = gym.make("LLMServe-v0", max_episode_steps=90, **FLEET)
    env = llm_serve_v0.parallel_env(max_episode_steps=90, **FLEET)
    single.action_space.seed(0)
    for seed in (5, None):
        expected, expected_info = single.reset(seed=seed)
        observations, infos = env.reset(seed=seed)
        while env.agents:
            masks = [observations[agent]["action_mask"] for agent in env.agents]
            assert_equal(expected_info["action_mask"], np.concatenate(masks))
            for agent in env.agents:
                assert_equal(expected, observations[agent]["observation"])
                assert_equal(without_mask(expected_info), infos[agent])
            action = single.action_space.sample()
            expected, value, _, truncated, expected_info = single.step(action)
            joint = {"dispatcher": action[:4], "manager": action[4:]}
            observations, rewards, _, truncations, infos = env.step(joint)
            assert set(rewards.values()) == {value}
            assert set(truncations.values()) == {truncated}


@pytest.mark.parametrize("kwargs", DEPLOYMENTS)
def test_deployer_and_router_play_the_trajectory_of_llm_deploy(kwargs):
    single = gym.make("LLMDeploy-v0", **kwargs)
    env = llm_deploy_v0.env(**kwargs)
    single.action_space.seed(0)
    for seed in (5, None):
        expected, expected_info = single.reset(seed=seed)
        env.reset(seed=seed)
        stage_reward, truncated = 0.0, False
        while not truncated:
            for agent in env.agents:
                assert_equal(expected, env.observe(agent)["observation"])
                assert_equal(without_mask(expected_info), env.infos[agent])
            masks = [env.observe(agent)["action_mask"] for agent in env.agents]
            assert_equal(expected_info["action_mask"], np.concatenate(masks))
            *bits, llm = single.action_space.sample().tolist()
            updating = bool(expected["deploy_now"])
            assert env.agent_selection == ("deployer" if updating else "router")
            if updating:
                assert env.last()[1] == pytest.approx(stage_reward, abs=1e-12)
                stage_reward = 0.0
                env.step(bits)
                shown = env.observe("router")
                assert env.agent_selection == "router"
            expected, value, _, truncated, expected_info = single.step([*bits, llm])
            env.step(llm)
            stage_reward += value
            assert env.rewards == {"deployer": value, "router": value}
            assert env.truncations == {"deployer": truncated, "router": truncated}
            if updating:  # the router saw the deployment that answered
                assert_equal(shown["observation"]["deployed"], expected["deployed"])


@pytest.mark.parametrize("kwargs", QUEUES)
@pytest.mark.parametrize("schedule", ["fifo", "lifo", "most-retried"])
def test_servers_play_the_trajectory_of_llm_queue(kwargs, schedule):
    single = gym.make("LLMQueue-v0", **kwargs)
    env = llm_servers_v0.parallel_env(schedule=schedule, reward="shared", **kwargs)
    seed_actions(env, 0)
    size = len(single.action_space.nvec) - 1
    for seed in (5, None):
        expected, expected_info = single.reset(seed=seed)
        observations, infos = env.reset(seed=seed)
        shown, price, truncated = [], 0.0, False
        while not truncated:
            waiting = int(expected["waiting"].sum())
            slot = {
                "fifo": 0,
                "lifo": max(waiting - 1, 0),
                "most-retried": int(expected["retrials"].argmax()),
            }[schedule]
            for number, agent in enumerate(env.agents):
                seen = observations[agent]["observation"]
                assert_equal(expected["contexts"][slot], seen["context"])
                for key in ("retrials", "age", "wait"):
                    assert_equal(expected[key][slot : slot + 1], seen[key])
                for key in ("queue_length", "feedback"):
                    assert_equal(expected[key], seen[key])
                assert seen["shown"] == (number in shown)
                assert seen["price"][0] == np.float32(price)
                result = {"shown": number in shown, "price": price}
                assert infos[agent] == without_mask(expected_info) | result
                legal = observations[agent]["action_mask"]
                assert legal.tolist() == [1] + [int(waiting > 0)] * 10
            bids = {agent: masked_sample(env, agent, seen) for agent, seen in observations.items()}
            ranking = sorted(range(len(bids)), key=lambda j, b=bids: (-b[f"server_{j}"], j))
            shown = ranking[:size] if waiting else []
            losers = ranking[size:] if waiting else []
            price = max((bids[f"server_{j}"] / 10 for j in losers), default=0.0)
            expected, value, _, truncated, expected_info = single.step([slot, *ranking[:size]])
            observations, rewards, _, _, infos = env.step(bids)
            assert set(rewards.values()) == {value}


# ------------------------------------------------------------------------------ the games


def test_selfish_servers_pay_the_highest_bid_that_was_not_shown():
    env = llm_servers_v0.parallel_env(num_llms=4, assortment_size=2, bid_levels=21, load=0.95)
    observations, _ = env.reset(seed=1)
    seed_actions(env, 1)
    served, departed, feedback = 0, 0, set()
    for _ in range(600):
        waits = observations["server_0"]["observation"]["queue_length"][0] > 0
        bids = {agent: masked_sample(env, agent, observations[agent]) for agent in env.agents}
        observations, rewards, _, _, infos = env.step(bids)
        public = infos["server_0"]
        price = sorted(bids.values())[-3] / 20 if waits else 0.0
        assert public["served"] == waits
        assert public["price"] == price
        for llm, agent in enumerate(env.agents):
            kept = public["kept_llm"] == llm
            if infos[agent]["shown"]:
                assert bids[agent] / 20 >= price
                assert rewards[agent] == kept - price
            else:
                assert rewards[agent] == 0.0
                assert not kept
        assert sum(info["shown"] for info in infos.values()) == 2 * waits
        assert sum(rewards.values()) == pytest.approx(public["departed"] - 2 * price)
        served, departed = served + public["served"], departed + public["departed"]
        feedback.add(int(observations["server_0"]["observation"]["feedback"]))
    assert 0 < departed < served
    assert feedback == set(range(6))


def test_ties_go_to_the_lower_index_and_everybody_shown_pays_nothing():
    for num_llms, price in ((3, 0.5), (2, 0.0)):
        env = llm_servers_v0.parallel_env(num_llms=num_llms, arrival_rate=1.0)
        env.reset(seed=0)
        for _ in range(3):
            *_, infos = env.step(dict.fromkeys(env.agents, 5))
        assert [info["shown"] for info in infos.values()] == [True, True, False][:num_llms]
        assert {info["price"] for info in infos.values()} == {price}


def test_masked_play_serves_whenever_somebody_waits_and_never_routes_to_an_absent_llm():
    queue = llm_queue_v0.parallel_env(window=4)
    observations, _ = queue.reset(seed=0)
    seed_actions(queue, 0)
    for _ in range(300):
        waits = observations["router"]["observation"]["queue_length"][0] > 0
        actions = {
            agent: masked_sample(queue, agent, observations[agent]) for agent in queue.agents
        }
        observations, *_, infos = queue.step(actions)
        assert infos["router"]["served"] == waits
    env = llm_deploy_v0.env(horizon=300, num_stages=30)
    empty = 0
    for agent, observation, (_, _, truncated, _) in play(env, 0, episodes=1):
        if agent == "router" and not truncated:
            (legal,) = np.nonzero(observation["action_mask"])
            deployed = observation["observation"]["deployed"]
            empty += not deployed.any()
            assert_equal(legal, np.flatnonzero(deployed) if deployed.any() else [0])
    refused = env.unwrapped.dynamics.refused
    assert refused == empty


def test_an_agent_may_write_on_what_it_sees():
    queue = llm_queue_v0.parallel_env(arrival_rate=1.0)
    queue.reset(seed=0)
    actions = {"scheduler": 0, "router": np.zeros(64, dtype=np.int64)}
    observations, *_ = queue.step(actions)
    observations["scheduler"]["observation"]["contexts"][:] = 9.0
    observations["scheduler"]["action_mask"][:] = 0
    assert not (observations["router"]["observation"]["contexts"] == 9.0).any()
    after, *_ = queue.step(actions)
    assert after["scheduler"]["action_mask"].any()
    assert not (after["scheduler"]["observation"]["contexts"] == 9.0).any()
    deploy = llm_deploy_v0.env()
    deploy.reset(seed=0)
    deploy.observe("deployer")["action_mask"][:] = 0
    assert deploy.observe("deployer")["action_mask"].any()
    bits = np.ones(11, dtype=np.int64)
    deploy.step(bits)
    bits[:] = 0
    deploy.step(0)
    assert not deploy.infos["router"]["refused"]


def test_games_render_like_the_single_agent_environments():
    for game, kwargs in ((llm_queue_v0, QUEUES[2]), (llm_deploy_v0, SHORT)):
        env = game.env(render_mode="ansi", **kwargs)
        env.reset(seed=0)
        assert isinstance(env.render(), str)
        assert env.metadata["name"] == game.__name__.split(".")[-1]
        env.close()


@pytest.mark.parametrize("game", [llm_deploy_v0, llm_queue_v0, llm_servers_v0])
def test_the_examples_of_the_docstrings_run(game):
    result = doctest.testmod(game)
    assert result.attempted > 5
    assert result.failed == 0


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("game", "kwargs", "message"),
    [
        (llm_queue_v0, {"window": 0}, "window=0"),
        (llm_queue_v0, {"max_episode_steps": 0}, "max_episode_steps=0"),
        (llm_queue_v0, {"reward": "shared"}, "reward='shared'"),
        (llm_servers_v0, {"reward": "share"}, "did you mean 'shared'"),
        (llm_servers_v0, {"schedule": "fif"}, "did you mean 'fifo'"),
        (llm_servers_v0, {"bid_levels": 1}, "bid_levels=1"),
        (llm_servers_v0, {"load": 1.0}, "load=1.0"),
        (llm_deploy_v0, {"alpha": 0.0}, "alpha=0.0"),
        (llm_deploy_v0, {"instance": "rooterbench"}, "routerbench"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_the_fix(game, kwargs, message):
    with pytest.raises(ValueError, match=message):
        game.env(**kwargs)


@pytest.mark.parametrize(
    ("agent", "action"),
    [
        ("scheduler", 32),
        ("scheduler", -1),
        ("scheduler", 0.0),
        ("scheduler", [0]),
        ("scheduler", None),
        ("router", [0, 1]),
        ("router", [5] * 64),
        ("router", [0.0] * 64),
        ("router", "all"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(agent, action):
    env = llm_queue_v0.parallel_env()
    env.reset(seed=0)
    actions = {"scheduler": 0, "router": [0] * 64}
    with pytest.raises(ValueError, match=f"of '{agent}' is not in its action space"):
        env.step(actions | {agent: action})
    assert env.dynamics.slot[0] == 0
    with pytest.raises(ValueError, match="one action to each of"):
        env.step({agent: actions[agent]})
    everybody = re.escape("one action to each of ['scheduler', 'router']")
    for wrong in (None, [0, 1], {}, actions | {"server_0": 0}, actions | {0: 0}, {agent}, 7):
        with pytest.raises(UsageError, match=re.escape(f"actions={wrong!r}") + f".*{everybody}"):
            env.step(wrong)
    assert env.dynamics.slot[0] == 0
    env.step(actions)


def test_bad_turns_are_refused_and_change_nothing():
    env = llm_deploy_v0.env(horizon=20, num_stages=2)
    env.reset(seed=0)
    for action in ([2] + [0] * 10, [0] * 10, [0.5] * 11, 3, None):
        with pytest.raises(ValueError, match="of 'deployer' is not in its action space"):
            env.step(action)
    env.step([1] * 11)
    for action in (11, -1, 1.0, [0] * 11, None):
        with pytest.raises(ValueError, match="of 'router' is not in its action space"):
            env.step(action)
    assert env.unwrapped.dynamics.query[0] == 0
    env.step(0)
    assert env.unwrapped.dynamics.query[0] == 1


def test_steps_outside_an_episode_are_refused():
    queue = llm_queue_v0.parallel_env(max_episode_steps=1)
    actions = {"scheduler": 0, "router": [0] * 64}
    with pytest.raises(gym.error.ResetNeeded):
        queue.step(actions)
    queue.reset(seed=0)
    queue.step(actions)
    with pytest.raises(gym.error.ResetNeeded):
        queue.step(actions)
    deploy = llm_deploy_v0.raw_env(horizon=1, num_stages=1)
    with pytest.raises(gym.error.ResetNeeded):
        deploy.step(0)
    with pytest.raises(gym.error.ResetNeeded, match="before observe"):
        deploy.observe("router")
    deploy.reset(seed=0)
    deploy.step([1] * 11)
    deploy.step(0)
    with pytest.raises(ValueError, match="dead"):
        deploy.step(0)
    deploy.step(None)
    deploy.step(None)
    with pytest.raises(gym.error.ResetNeeded):
        deploy.step(None)


def test_without_pettingzoo_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['pettingzoo'] = None\n"
        "import llmqueue_gym\n"
        "try:\n"
        "    from llmqueue_gym.multi_agent import llm_queue_v0\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "llmqueue_gym[marl]"' in out.stdout
