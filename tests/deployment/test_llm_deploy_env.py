"""LLMDeploy-v0 and LLMDeployStage-v0: the Gymnasium contract, lane equality, totals, errors."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.deployment.rules import stage_schedule
from llmqueue_gym.envs import LLMDeployEnv, LLMDeployStageEnv, LLMDeployVectorEnv
from llmqueue_gym.testing import check_coupling, check_lane_equality, check_masks
from llmqueue_gym.workloads import make_workload
from llmqueue_gym.workloads.sources import table as sources_table

SHORT = {"horizon": 90, "num_stages": 7}
VARIANTS = [
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
        "instance_seed": 3,
        "retirements": [{"llm": "llm_0", "query": 30}],
    },
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """An instance of recorded queries: LLM a is good at even contexts, b at odd ones."""
    path = tmp_path_factory.mktemp("table") / "queries.jsonl"
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for row in range(50):
            scores = {"a": 1.0 - row % 2, "b": float(row % 2), "c": 0.5}
            costs = {"a": 1e-3, "b": 2e-3, "c": float(rng.uniform(1e-4, 2e-4))}
            json.dump({"x": [row % 2, row], "quality": scores, "cost": costs}, file)
            file.write("\n")
    return {
        "source": "table",
        "path": str(path),
        "quality": "quality",
        "cost": "cost",
        "embedding": "x",
    }


def checked(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize("cls", [LLMDeployEnv, LLMDeployStageEnv])
@pytest.mark.parametrize("kwargs", VARIANTS)
def test_variants_pass_gymnasiums_checker(cls, kwargs):
    checked(cls(**kwargs))


def test_table_instances_pass_gymnasiums_checker_and_show_the_context(table):
    checked(LLMDeployStageEnv(table))
    checked(env := LLMDeployEnv(table, horizon=40, num_stages=1, max_deployed=3))
    observation, _ = env.reset(seed=0)
    assert env.problem["context_dim"] == 2
    for _ in range(40):
        parity, row = observation["context"].astype(int)
        assert row == env.dynamics.table_row
        observation, reward, _, truncated, info = env.step([1, 1, 0, parity])
        assert (reward, info["cost"]) == (1.0, [1e-3, 2e-3][parity])
    assert truncated
    assert not observation["context"].any()


def test_stable_baselines3_checker_has_no_warning():
    checker = pytest.importorskip(
        "stable_baselines3.common.env_checker", reason="needs the rl extra"
    )
    checker.check_env(LLMDeployEnv(), warn=True)
    checker.check_env(gym.wrappers.FlattenObservation(LLMDeployEnv()), warn=True)
    with warnings.catch_warnings():
        # Scores and weights live in [0, 1]; RescaleAction makes them symmetric.
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric")
        checker.check_env(LLMDeployStageEnv(), warn=True)
    rescaled = gym.wrappers.RescaleAction(LLMDeployStageEnv(), np.float32(-1.0), np.float32(1.0))
    checker.check_env(rescaled, warn=True)


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_lanes_equal_scalar_environments(kwargs, mode):
    check_lane_equality("LLMDeploy-v0", autoreset_mode=mode, **kwargs)


def test_vector_lanes_of_tables_and_of_cut_episodes_equal_scalar_environments(table):
    check_lane_equality("LLMDeploy-v0", instance=table, **SHORT)
    check_lane_equality("LLMDeploy-v0", max_episode_steps=50, **SHORT)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_masks_and_coupling(kwargs):
    env = gym.make("LLMDeploy-v0", **kwargs)
    check_masks(env)
    check_coupling(lambda: gym.make("LLMDeploy-v0", **kwargs), ("arrived_now",), steps=90)
    # Between update points a masked routing is never refused.
    env.reset(seed=0)
    env.action_space.seed(0)
    n, info = len(env.unwrapped.llms), env.reset(seed=0)[1]
    for _ in range(90):
        start = env.unwrapped.dynamics.deploy_now[0]
        parts = np.split(info["action_mask"], np.arange(2, 2 * n + 1, 2))
        action = env.action_space.sample(mask=tuple(parts))
        there = env.unwrapped.dynamics.available[0].copy()
        deployed = env.unwrapped.dynamics.deployed[0].any()
        info = env.step(action)[-1]
        assert not (action[:-1] > there).any()
        assert start or not deployed or not info["refused"]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20), kwargs=st.sampled_from(VARIANTS))
def test_a_policy_has_the_same_totals_by_stage_and_by_query(seed, kwargs):
    stages, queries = LLMDeployStageEnv(**kwargs), LLMDeployEnv(**kwargs)
    stages.reset(seed=seed)
    observation, _ = queries.reset(seed=seed)
    rng = np.random.default_rng(seed)
    n, truncated = len(stages.llms), False
    while not truncated:
        action = rng.random(2 * n).astype(np.float32)
        bits, shares = stages.plan(action.astype(np.float64))
        length = int(stages.dynamics.rules.stage_lengths[stages.dynamics.stage[0]])
        by_stage, total, _, truncated, info = stages.step(action)
        np.testing.assert_array_equal(shares, info["shares"])
        assert observation["deploy_now"] == 1
        reward = 0.0
        for llm in stage_schedule(shares, length):
            observation, one, _, ended, last = queries.step([*bits.astype(int), llm])
            reward += one
        assert ended == truncated
        assert (reward, last["spend"]) == (total, info["spend"])
        for key, value in by_stage.items():
            np.testing.assert_array_equal(value, observation[key], err_msg=key)
    for name in ("spend", "ledger_spend", "ledger_score", "total_reward", "refused", "violations"):
        assert getattr(stages.dynamics, name) == getattr(queries.dynamics, name)


def test_a_stage_deploys_the_best_scores_that_are_there_and_routes_by_weight():
    env = LLMDeployStageEnv(horizon=1000, num_stages=10, max_deployed=3)
    env.reset(seed=0)
    action = np.zeros(22)
    action[:11] = [0.5, 0.9, 0.5, 0.1, 0.5, 1, 1, 1, 1, 1, 1]  # the last six are still to come
    action[11:] = 1.0
    action[13] = 0.4  # theta = 0.6: (1, 1, .4) -> (.4, .4, .2) after the caps of 0.4
    observation, _, _, _, info = env.step(action)
    assert np.flatnonzero(observation["deployed"]).tolist() == [0, 1, 2]
    assert info["served"].tolist() == [40, 40, 20, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (info["refused"], info["throttled"]) == (0, 0)
    assert (info["served"] <= np.ceil(0.4 * 100)).all()


def test_prices_are_shown_from_the_release_on_and_only_if_published():
    env = LLMDeployEnv("catalog", horizon=1000, num_stages=10)
    observation, _ = env.reset(seed=0)
    there = observation["arrived"] == 1
    assert there.sum() == 7
    assert (observation["cost_prior"][there] > 0).all()
    assert not observation["cost_prior"][~there].any()
    assert env.problem["has_prices"]
    bare = LLMDeployEnv()
    assert not bare.reset(seed=0)[0]["cost_prior"].any()
    assert not bare.problem["has_prices"]
    json.dumps(bare.problem)


def test_an_infeasible_budget_warns_where_it_binds_in_early_stages_only():
    with pytest.warns(UserWarning, match="cheapest mixture in .* of 33 stages"):
        LLMDeployEnv("catalog", budget_per_query=3e-4)


def test_registration_kwargs_are_json_plain_and_the_spec_round_trips():
    kwargs = SHORT | {
        "instance": {"source": "synthetic", "num_llms": 8},
        "retirements": [{"llm": "llm_3", "query": 50}],
        "price_changes": [{"llm": "llm_1", "query": 20, "factor": 0.5}],
    }
    for env_id in ("LLMDeploy-v0", "LLMDeployStage-v0"):
        env = gym.make(env_id, **kwargs)
        spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
        again = gym.make(spec)
        env.reset(seed=1)
        again.reset(seed=1)
        assert json.dumps(env.spec.kwargs) == json.dumps(again.spec.kwargs)
        np.testing.assert_array_equal(
            env.unwrapped.dynamics.mean_cost, again.unwrapped.dynamics.mean_cost
        )


def test_core_dependencies_suffice():
    code = (
        "import sys, gymnasium as gym\n"
        "for env_id in ('LLMQueue-v0', 'LLMServe-v0', 'LLMDeploy-v0', 'LLMDeployStage-v0'):\n"
        "    env = gym.make('llmqueue_gym:' + env_id)\n"
        "    env.reset(seed=0); env.step(env.action_space.sample())\n"
        "vec = gym.make_vec('LLMDeploy-v0', num_envs=2)\n"
        "extras = 'polars sklearn platformdirs pareto_bandit matplotlib rich typer torch pygame'\n"
        "print(type(vec.unwrapped).__name__, [x for x in extras.split() if x in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "LLMDeployVectorEnv []"


@pytest.mark.parametrize("budget", [1e-4, 1.04e-4, 3e-4])
@pytest.mark.parametrize("initial", [1, 2])
def test_what_the_constructor_accepts_never_fails_at_a_reset(budget, initial):
    source = {"source": "synthetic", "num_llms": 4, "initial": initial}
    env = LLMDeployEnv(source, alpha=1.0, budget_per_query=budget, horizon=100)
    for seed in range(30):
        env.reset(seed=seed)
        cost = env.dynamics.mean_cost
        assert cost[:initial].min() <= budget * (1 + 1e-6)
        assert ((cost >= 1e-4 * (1 - 1e-9)) & (cost <= 1e-2)).all()


def test_retirements_that_may_leave_a_stage_empty_warn():
    kwargs = {
        "instance": {"source": "synthetic", "num_llms": 2, "initial": 1},
        "retirements": [{"llm": "llm_0", "query": 5}],
    }
    with pytest.warns(UserWarning, match="depends on the draw"):
        env = LLMDeployEnv(horizon=60, num_stages=10, **kwargs)
    empty = 0
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        for _ in range(60):
            action = [*observation["arrived"], int(observation["arrived"][1])]
            there = observation["arrived"].any() or observation["deployed"].any()
            observation, _, _, _, info = env.step(action)
            assert there or info["refused"]
            empty += not there
    assert empty > 0
    kwargs["retirements"] = [{"llm": "llm_0", "query": 0}]
    with pytest.raises(ValueError, match="retirements: no LLM is there at query 0"):
        LLMDeployEnv(horizon=60, num_stages=10, **kwargs)


def test_a_small_catalog_runs_with_the_defaults(tmp_path):
    price = {"input_usd_per_mtok": 0.5, "output_usd_per_mtok": 0.5, "quality": 0.5}
    models = [{"id": f"m{k}", "release_date": "2024-01-01", **price} for k in range(3)]
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"models": models}))
    env = LLMDeployEnv({"source": "catalog", "path": str(path), "start_day": 0})
    assert env.problem["max_deployed"] == 3
    env.reset(seed=0)


def test_a_table_is_parsed_once_for_an_environment(table, tmp_path, monkeypatch):
    path = tmp_path / "copy.jsonl"
    path.write_bytes(Path(table["path"]).read_bytes())
    parse, parsed = sources_table.parse, []
    monkeypatch.setattr(
        sources_table, "parse", lambda layout: parsed.append(layout) or parse(layout)
    )
    gym.make("LLMDeploy-v0", instance=table | {"path": str(path)})
    assert len(parsed) == 1
    make_workload(table | {"path": str(path)}, num_llms=None, context_dim=None, assortment_size=1)
    assert len(parsed) == 1


def test_llms_of_one_quality_and_several_costs_are_a_deployment_problem(tmp_path):
    path = tmp_path / "equal.jsonl"
    rows = [{"x": [row, 1], "a": 0.5, "b": 0.5, "ca": 1e-3, "cb": 2e-3} for row in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"source": "table", "path": str(path), "embedding": "x"}
    env = LLMDeployEnv(spec | {"quality": ["a", "b"], "cost": ["ca", "cb"]}, horizon=50)
    env.reset(seed=0)
    np.testing.assert_allclose(env.dynamics.mean_cost, [1e-3, 2e-3])
    with pytest.raises(ValueError, match="list `quality` of the same length"):
        LLMDeployEnv(spec | {"quality": ["a", "b"], "cost": ["ca"]})


@pytest.mark.parametrize("cls", [LLMDeployEnv, LLMDeployStageEnv])
def test_the_instance_does_not_share_its_stream_with_an_agent_of_the_same_seed(cls):
    for seed in (0, 5):
        env = cls({"source": "synthetic", "num_llms": 6}, instance_seed=seed)
        env.reset(seed=seed)
        guess = np.random.default_rng(seed).uniform(0.2, 0.9, 6)  # what Agent.rng would draw
        assert not np.isclose(env.dynamics.mean_reward, guess).any()


@pytest.mark.parametrize("cls", [LLMDeployEnv, LLMDeployStageEnv])
def test_nothing_is_answered_before_the_first_reset(cls):
    env = cls(**SHORT)
    action = env.action_space.sample()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(action)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.action_masks() if cls is LLMDeployEnv else env.plan(action)
    env.reset(seed=0)
    env.step(action)


def test_no_lane_is_answered_before_the_first_reset():
    env = LLMDeployVectorEnv(2, **SHORT)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.action_masks()


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        ({"a": 50, "b": 60, "c": 70}, r"arrivals: .*query 0.*first comes at query 50"),
        ({"a": 5000}, r"arrivals\['a'\]=5000 .*run of 100 queries"),
        ({"a": 100}, r"arrivals\['a'\]=100 .*horizon"),
    ],
)
def test_arrivals_that_leave_nobody_there_or_never_come_are_named(table, arrivals, message):
    with pytest.raises(ValueError, match=message):
        LLMDeployEnv(table | {"arrivals": arrivals}, horizon=100, num_stages=5)
    LLMDeployEnv(table | {"arrivals": {"a": 99}}, horizon=100, num_stages=5)


def test_retirements_that_leave_nobody_there_are_named(table):
    retirements = [{"llm": name, "query": 50} for name in "abc"]
    arrivals = {"a": 0, "b": 10, "c": 10}
    with pytest.raises(ValueError, match=r"retirements: .*query 60.*retired"):
        LLMDeployEnv(
            table | {"arrivals": arrivals}, horizon=100, num_stages=5, retirements=retirements
        )


LLM = "claude-v1"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"instance": "routerbensh"}, "did you mean 'routerbench'"),
        ({"instance": {"source": "catalog", "start": 3}}, "start_day"),
        ({"instance": {"source": "catalog", "start_day": 900}}, "start_day=900"),
        ({"instance": {"source": "catalog", "token_cv": [0.5]}}, "two numbers"),
        ({"instance": {"source": "synthetic", "kind": "randm"}}, "random"),
        ({"instance": {"source": "synthetic", "initial": 30}}, "initial=30"),
        ({"instance": {"source": "table", "path": "x"}}, "needs the option 'quality'"),
        ({"instance": {"source": ["table"]}}, r"instance source \['table'\] is not known"),
        ({"instance": 3}, "instance=3"),
        ({"horizon": 0}, "horizon=0"),
        ({"horizon": 10, "num_stages": 11}, "num_stages=11"),
        ({"max_deployed": 12}, "max_deployed=12"),
        ({"max_deployed": 2}, "alpha sum to less than 1"),
        ({"alpha": 0.1}, "alpha sum to less than 1"),
        ({"instance": "synthetic", "alpha": 0.2}, "alpha sum to less than 1"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha": [0.5, 0.5]}, "2 entries for 11 LLMs"),
        ({"budget_per_query": float("nan")}, "budget_per_query=nan"),
        ({"budget_per_query": 0}, r"budget_per_query=0 must be a number in \[1e-12"),
        ({"budget_per_query": 1e-310}, r"budget_per_query=1e-310 must be"),
        (
            {"instance": {"source": "synthetic", "kind": "late_arrival"}, "budget_per_query": 1e-9},
            "cheapest mixture of every stage",
        ),
        ({"horizon": 10**13}, "horizon=10000000000000 is more than 16777216"),
        ({"reward_delay": 10**13}, "reward_delay=10000000000000 is more than 16777216"),
        ({"budget_per_query": 1e-5}, "cheapest mixture of every stage"),
        ({"instance": "synthetic", "budget_per_query": 1e-5}, "cheapest mixture"),
        ({"budget": 1e-3}, "budget_per_query"),
        ({"price_changes": "recorded"}, "this instance records none"),
        ({"price_changes": [{"llm": LLM, "query": 5}]}, "factor"),
        ({"price_changes": [{"llm": LLM, "query": 5, "factor": float("nan")}]}, "factor"),
        ({"price_changes": [{"llm": "claude-v7", "query": 5, "factor": 1}]}, LLM),
        ({"price_changes": [{"llm": LLM, "date": "2024-01-01", "factor": 1}]}, "calendar"),
        (
            {"price_changes": [{"llm": LLM, "query": q, "factor": 0.5} for q in (9, 5)]},
            "out of order",
        ),
        ({"retirements": [{"llm": LLM, "query": 10**6}]}, "outside the run"),
        ({"retirements": [{"llm": LLM, "query": 0}]}, "before it arrives"),
        ({"retirements": [{"llm": LLM, "query": 5}] * 2}, "more than once"),
        ({"retirements": "soon"}, "must be a list"),
        (
            {"instance": "catalog", "retirements": [{"llm": "gpt-4-0613", "date": "soon"}]},
            "date='soon'",
        ),
        ({"switching_cost": -1}, "switching_cost=-1"),
        ({"reward_delay": 1.5}, "reward_delay=1.5"),
        ({"reward_delay": 50, "horizon": 50}, "reward_delay=50 .*horizon of 50.*lower it"),
        ({"drift": float("nan")}, "drift=nan"),
        ({"instance_seed": -1}, "instance_seed=-1"),
        ({"render_mode": "human"}, "render_mode='human'"),
    ],
)
def test_bad_arguments_are_named_with_their_value_and_the_fix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LLMDeployEnv(**kwargs)


def test_a_table_without_costs_is_refused(table):
    with pytest.raises(ValueError, match="name its cost columns with `cost`, or give `prices`"):
        LLMDeployEnv({key: value for key, value in table.items() if key != "cost"})
    with pytest.raises(ValueError, match=r"arrivals: LLM 'd'"):
        LLMDeployEnv(table | {"arrivals": {"d": 3}})


BAD = [[0] * 11, [2] + [0] * 11, [0] * 11 + [11], [0] * 11 + [-1], [0.5] * 12, None, "go", [[0]]]
BAD_STAGES = [[0.5] * 21, [1.5] * 22, [np.nan] * 22, None, "go"]


@pytest.mark.parametrize(
    ("kind", "action"),
    [(LLMDeployEnv, a) for a in BAD] + [(LLMDeployStageEnv, a) for a in BAD_STAGES],
)
def test_bad_actions_are_refused_and_change_nothing(kind, action):
    env = kind()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action="):
        env.step(action)
    assert env.dynamics.query[0] == 0
