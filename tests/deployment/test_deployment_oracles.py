"""Deployment oracles: values of the literature's tables, bounds that hold, policies that act."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import DeployProblem, make_agent
from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.deployment.routing import route_opt
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.oracles import (
    LedgerOracle,
    PerQueryOracle,
    StagedOracle,
    fluid_values,
    ledger_bound,
    staged_value,
    static_value,
)

Policy = type[StagedOracle] | type[LedgerOracle]


def make_env(**arguments: Any) -> Any:
    return gym.make("LLMDeploy-v0", disable_env_checker=True, **arguments).unwrapped


def truth(env: Any) -> tuple[DeploymentInstance, DeploymentRules]:
    env.reset(seed=0)
    return StagedOracle(env).instance, env.dynamics.rules


def follow(env: Any, policy: Any, seed: int) -> Any:
    """Play an episode with an oracle; return the dynamics at its end."""
    observation, _ = env.reset(seed=seed)
    policy, ended = policy(env), False
    while not ended:
        observation, _, _, ended, _ = env.step(policy.act(observation))
    return env.dynamics


def learn(env: Any, name: str, seed: int) -> Any:
    """Play an episode with an agent; return the dynamics at its end."""
    agent = make_agent(name, DeployProblem(**env.problem), seed)
    observation, _ = env.reset(seed=seed)
    ended = False
    while not ended:
        action = agent.act(observation)
        seen, reward, _, ended, info = env.step(action)
        agent.update(observation, action, float(reward), seen, info)
        observation = seen
    return env.dynamics


def small(
    mu: list[list[float]],
    cost: list[list[float]],
    arrival: list[int],
    change: list[int],
    **rules: Any,
) -> tuple[DeploymentInstance, DeploymentRules]:
    """Make an instance from means per regime (G, N)."""
    size = len(arrival)
    means, costs = np.array(mu), np.array(cost)
    instance = DeploymentInstance(
        arrival_query=np.array(arrival),
        retire_query=np.full(size, 10**9),
        change_query=np.array(change),
        mean_reward=means,
        input_cost=costs,
        output_cost=np.zeros_like(costs),
        list_cost=np.zeros_like(costs),
        log_sd=np.zeros((2, size)),
        reward_atoms=np.array([0.0, 1.0]),
        reward_cdf=1.0 - means[0][:, None],
        base_reward=means[0],
    )
    values: dict[str, Any] = {
        "horizon": 400,
        "num_stages": 4,
        "max_deployed": 2,
        "alpha": (1.0,) * size,
        "budget": 0.5,
    }
    return instance, DeploymentRules(**{**values, **rules})


@pytest.mark.parametrize(
    ("alpha", "slots", "budget", "value"),
    [
        (1.0, 2, 1e-3, 0.6827),
        (0.5, 3, 2e-4, 0.6239),
        (0.4, 3, 5e-4, 0.6264),
        (0.25, 5, 2e-3, 0.6737),
    ],
)
def test_fluid_values_end_at_the_reference_table(
    alpha: float, slots: int, budget: float, value: float
) -> None:
    env = make_env(instance="routerbench", alpha=alpha, max_deployed=slots, budget_per_query=budget)
    values = fluid_values(*truth(env))
    assert values.shape == (36497,)
    assert values[-1] == pytest.approx(value, abs=6e-5)
    assert (np.diff(values) >= -1e-12).all()  # LLMs only arrive


def test_stages_only_lose_value() -> None:
    """A stage cannot use what arrives inside it; one query per stage loses nothing."""
    env = make_env(instance="catalog", horizon=800, num_stages=10, budget_per_query=5e-3)
    instance, rules = truth(env)
    fluid = fluid_values(instance, rules).mean()
    assert staged_value(instance, rules) < fluid
    every_query = dataclasses.replace(rules, num_stages=rules.horizon)
    assert staged_value(instance, every_query) == pytest.approx(fluid, abs=1e-12)


def test_static_set_is_the_best_where_all_are_there() -> None:
    env = make_env(instance="routerbench", horizon=40, num_stages=4, max_deployed=3, alpha=0.5)
    instance, rules = truth(env)
    instance = dataclasses.replace(instance, arrival_query=np.zeros(11, dtype=np.int64))
    value, chosen = static_value(instance, rules)
    mu, cost = instance.mean_reward[0], instance.mean_cost[0]
    best = max(
        solution.value
        for llms in itertools.combinations(range(11), 3)
        if (solution := route_opt(mu[[*llms]], cost[[*llms]], 0.5, 1e-3)).status == "optimal"
    )
    assert value == pytest.approx(best, abs=1e-12)
    assert chosen.size == 3
    assert value <= staged_value(instance, rules) + 1e-12


def test_bound_saves_money_for_better_days() -> None:
    """Reward per dollar is 1 before the good LLM arrives and 2 after: everything is spent then."""
    instance, rules = small([[0.5, 1.0]], [[0.5, 0.5]], [0, 200], [0], budget=0.25)
    bound = ledger_bound(instance, rules)
    assert bound.value == pytest.approx(0.5)
    assert bound.price >= 1.0
    np.testing.assert_allclose(bound.stage_budget, [0.0, 0.0, 0.5, 0.5], atol=1e-9)


def test_bound_of_a_loose_budget_is_the_best_reward() -> None:
    instance, rules = small([[0.5, 0.8]], [[0.1, 0.2]], [0, 0], [0], alpha=(1.0, 0.25), budget=9.0)
    bound = ledger_bound(instance, rules)
    assert (bound.value, bound.price) == (pytest.approx(0.25 * 0.8 + 0.75 * 0.5), 0.0)


def test_bound_equals_the_lp_over_stages() -> None:
    """With M_max no constraint, the dual is exact: HiGHS finds the same value."""
    from scipy.optimize import linprog

    mu = [[0.3, 0.6, 0.9], [0.4, 0.5, 0.9]]
    cost = [[0.1, 0.3, 0.9], [0.1, 0.2, 0.5]]
    alpha = (0.7, 0.6, 0.5)
    instance, rules = small(
        mu, cost, [0, 0, 150], [0, 200], alpha=alpha, max_deployed=3, budget=0.25
    )
    rewards = np.array([mu[k >= 2] for k in range(4)])
    costs = np.array([cost[k >= 2] for k in range(4)])
    there = np.array([[1, 1, k >= 2] for k in range(4)])
    exact = linprog(
        -rewards.ravel() / 4,
        A_ub=np.vstack([costs.ravel()[None] / 4, np.kron(np.eye(4), np.ones(3))]),
        b_ub=[0.25, 1, 1, 1, 1],
        bounds=[(0, a * t) for a, t in zip(np.tile(alpha, 4), there.ravel(), strict=True)],
    )
    assert ledger_bound(instance, rules).value == pytest.approx(-exact.fun, abs=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 4), loose=st.floats(0.2, 3.0))
def test_bound_exceeds_any_feasible_plan(seed: int, slots: int, loose: float) -> None:
    """Random deployments and shares per stage, scaled into the budget, stay below the bound."""
    rng = np.random.default_rng(seed)
    mu, cost = rng.random((1, 5)), rng.exponential(size=(1, 5))
    arrival = rng.integers(0, 300, 5)
    arrival[0] = 0
    alpha = tuple(rng.uniform(0.2, 1.0, 5))
    instance, rules = small(
        mu.tolist(),
        cost.tolist(),
        arrival.tolist(),
        [0],
        alpha=alpha,
        max_deployed=slots,
        budget=loose * float(cost.mean()) / 2,
    )
    bound = ledger_bound(instance, rules)
    assert (bound.stage_budget @ rules.stage_lengths) <= rules.budget * 400 * (1 + 1e-9)
    for _ in range(20):
        shares = np.zeros((4, 5))
        for k, start in enumerate(rules.stage_starts):
            there = np.flatnonzero(instance.available(int(start)))
            chosen = rng.permutation(there)[:slots]
            raw = rng.random(chosen.size) * np.array(alpha)[chosen]
            shares[k, chosen] = raw / max(1.0, raw.sum())
        shares *= min(1.0, rules.budget * 4 / max(1e-12, float((shares @ cost[0]).sum())))
        assert float((shares @ mu[0]).mean()) <= bound.value + 1e-9


INSTANCES: list[dict[str, Any]] = [
    {"instance": "routerbench", "horizon": 1500, "num_stages": 10},
    {"instance": "catalog", "horizon": 1500, "num_stages": 15, "budget_per_query": 2e-3},
    {
        "instance": {"source": "synthetic"},
        "instance_seed": 2,
        "horizon": 1500,
        "budget_per_query": 5e-4,
    },
]


@pytest.mark.parametrize("arguments", INSTANCES, ids=["routerbench", "catalog", "synthetic"])
@pytest.mark.parametrize("policy", [StagedOracle, LedgerOracle])
def test_oracles_keep_every_rule(policy: Policy, arguments: dict[str, Any]) -> None:
    env = make_env(**arguments)
    dynamics = follow(env, policy, 1)
    counters = (dynamics.refused, dynamics.violations, dynamics.projected)
    assert counters == (0, 0, 0)
    assert dynamics.ledger_spend <= dynamics.budget * dynamics.horizon


@pytest.mark.parametrize("arguments", INSTANCES, ids=["routerbench", "catalog", "synthetic"])
def test_ledger_oracle_attains_its_bound(arguments: dict[str, Any]) -> None:
    env = make_env(**arguments)
    bound = ledger_bound(*truth(env)).value
    scores = [follow(env, LedgerOracle, seed).ledger_score / 1500 for seed in range(8)]
    error = np.std(scores, ddof=1) / np.sqrt(8)
    assert bound - 0.03 - 3 * error < np.mean(scores) < bound + 3 * error


@pytest.mark.parametrize("arguments", INSTANCES, ids=["routerbench", "catalog", "synthetic"])
def test_no_agent_beats_the_oracle(arguments: dict[str, Any]) -> None:
    """Paired by seed, the ledger oracle is ahead of every agent, and the mean below the bound."""
    env = make_env(**arguments)
    bound = ledger_bound(*truth(env)).value
    best = np.array([follow(env, LedgerOracle, seed).ledger_score / 1500 for seed in range(4)])
    names = ("StageRoute", "StageRoute-paced", "price-aware-paced", "TS", "ratio", "ParetoBandit")
    for name in names:
        scores = np.array([learn(env, name, seed).ledger_score / 1500 for seed in range(4)])
        ahead = best - scores
        assert ahead.mean() > -2 * ahead.std(ddof=1) / 2, name
        assert scores.mean() < bound + 0.02, name


@pytest.mark.parametrize("arguments", INSTANCES, ids=["routerbench", "catalog", "synthetic"])
def test_no_policy_gains_by_ignoring_the_caps(arguments: dict[str, Any]) -> None:
    """The best plan of a world without caps, played where there are caps: below the bound."""
    capped, free = make_env(**arguments), make_env(**{**arguments, "alpha": 1.0})
    bound = ledger_bound(*truth(capped)).value
    scores = []
    for seed in range(8):
        observation, _ = free.reset(seed=seed)
        capped.reset(seed=seed)
        policy, ended = LedgerOracle(free), False
        while not ended:
            action = policy.act(observation)
            capped.step(action)
            observation, _, _, ended, _ = free.step(action)
        assert capped.dynamics.violations > 0
        # Each answer is paid, with or without a cap.
        assert capped.dynamics.spend == free.dynamics.spend
        scores.append(capped.dynamics.ledger_score / 1500)
    error = np.std(scores, ddof=1) / np.sqrt(8)
    assert np.mean(scores) < bound + 3 * error


def test_seeing_the_query_is_worth_something() -> None:
    env = make_env(instance="paretobandit", horizon=2000, num_stages=8)
    bound = ledger_bound(*truth(env)).value
    seeing = np.array([follow(env, PerQueryOracle, seed).ledger_score / 2000 for seed in range(4)])
    blind = np.array([follow(env, LedgerOracle, seed).ledger_score / 2000 for seed in range(4)])
    assert (seeing > blind).all()
    assert bound - 0.02 < seeing.mean() < bound + 0.01
    agent = np.array(
        [learn(env, "contextual-StageRoute", seed).ledger_score / 2000 for seed in range(4)]
    )
    assert (seeing > agent).all()


def test_bound_of_a_drifting_table_follows_the_drift() -> None:
    """Deploying the LLM of best true mean alone is a policy: with money for it, it stays below."""
    env = make_env(
        instance="paretobandit",
        horizon=2000,
        num_stages=10,
        drift=0.5,
        alpha=1.0,
        budget_per_query=0.05,
        instance_seed=1,
    )
    instance, rules = truth(env)
    best = [
        np.where(instance.available(int(start)), instance.mean_reward[regime], 0.0).max()
        for regime, start in enumerate(rules.stage_starts)
    ]
    bound = ledger_bound(instance, rules)
    assert np.mean(best) <= bound.value
    seeing = [follow(env, PerQueryOracle, seed).ledger_score / 2000 for seed in range(3)]
    error = np.std(seeing, ddof=1) / np.sqrt(3)
    assert np.mean(best) - 0.01 < np.mean(seeing) < bound.value + bound.overshoot + 3 * error


@pytest.mark.parametrize(("horizon", "budget"), [(1, 3e-4), (10, 1e-4), (30, 5e-5)])
def test_bound_with_overshoot_holds_for_the_last_query(
    tmp_path: Path, horizon: int, budget: float
) -> None:
    """Staking the last money on a heavy tail beats ``value``, but not ``value + overshoot``."""
    price = {"release_date": "2024-01-01", "input_usd_per_mtok": 1e-6, "output_usd_per_mtok": 1e-6}
    dear = price | {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1e-9}
    models = [{"id": "cheap", "quality": 0.01, **price}, {"id": "dear", "quality": 1.0, **dear}]
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"models": models}))
    source = {"source": "catalog", "path": str(path), "start_day": 0, "token_cv": [5.0, 0.1]}
    env = make_env(
        instance=source,
        horizon=horizon,
        num_stages=1,
        max_deployed=2,
        alpha=1.0,
        budget_per_query=budget,
    )
    instance, rules = truth(env)
    bound = ledger_bound(instance, rules)
    c2 = env.problem["cost_high"]
    assert instance.max_cost.max() == pytest.approx(c2)
    assert 0.0 < bound.overshoot <= bound.price * c2 / horizon * (1 + 1e-9)
    scores = np.zeros(400)
    for seed in range(400):
        env.reset(seed=seed)
        for _ in range(horizon):
            env.step([1, 1, 1])
        scores[seed] = env.dynamics.ledger_score / horizon
    error = scores.std(ddof=1) / 20
    assert bound.value + 3 * error < scores.mean() < bound.value + bound.overshoot + 3 * error


def test_price_cut_moves_the_oracle() -> None:
    """The stage after a cut spends less on what got cheaper, or more of it: value goes up."""
    cut = [{"llm": "gpt-4-1106-preview", "query": 200, "factor": 0.1}]
    before = staged_value(*truth(make_env(instance="routerbench", horizon=400, num_stages=4)))
    env = make_env(instance="routerbench", horizon=400, num_stages=4, price_changes=cut)
    assert staged_value(*truth(env)) > before + 0.01


def test_wrong_environments_are_named() -> None:
    with pytest.raises(ValueError, match="LLMDeploy-v0"):
        StagedOracle(gym.make("LLMQueue-v0", disable_env_checker=True))
    env = make_env(instance="routerbench", horizon=100, num_stages=2)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="table"):
        PerQueryOracle(env).act(observation)
