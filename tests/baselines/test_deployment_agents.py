"""Deployment agents: formulas of the papers, legal actions, pacing, and who beats whom."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import DeployAgent, DeployProblem, QueueProblem, make_agent, registered_agents
from baselines.deployment.contextual import ContextualStageRoute, RememberingStageRoute
from baselines.deployment.knapsacks import LagrangeBwK, PrimalDualBwK, UCBBwK
from baselines.deployment.price_aware import PriceAware, fit_prior
from baselines.deployment.stageroute import (
    Ratio,
    StageRoute,
    TopUCB,
    confidence_radius,
    theory_gamma,
)
from llmqueue_gym.oracles import fluid_values

NAMES = [spec.name for spec in registered_agents() if ".deployment." in spec.target]
BLIND = [name for name in NAMES if "contextual" not in name]
SYNTHETIC: dict[str, Any] = {"instance": {"source": "synthetic"}, "instance_seed": 3}


def make_env(**arguments: Any) -> Any:
    return gym.make("LLMDeploy-v0", disable_env_checker=True, **arguments).unwrapped


def told(env: Any, seed: int) -> DeployProblem:
    """Return the public parameters, and for yardsticks the truth of the episode of a seed."""
    env.reset(seed=seed)
    return DeployProblem(**env.problem, truth=env.dynamics.instance())


def play(env: Any, agent: Any, seed: int) -> list[tuple[int, float, float]]:
    """Play an episode; return (LLM, reward, cost) of every query."""
    observation, _ = env.reset(seed=seed)
    history, ended = [], False
    while not ended:
        action = agent.act(observation)
        seen, reward, _, ended, info = env.step(action)
        agent.update(observation, action, float(reward), seen, info)
        observation = seen
        history.append((info["llm"], info["rated_reward"], info["cost"]))
    return history


def run(name: str, seed: int, **arguments: Any) -> tuple[Any, Any]:
    """Run a named agent; return the dynamics at the end and the agent."""
    env = make_env(**arguments)
    agent = make_agent(name, told(env, seed), seed)
    play(env, agent, seed)
    return env.dynamics, agent


def problem(**changes: Any) -> DeployProblem:
    values: dict[str, Any] = {
        "num_llms": 3,
        "max_deployed": 2,
        "horizon": 1000,
        "num_stages": 10,
        "budget": 1e-3,
        "alpha": (0.6, 0.6, 0.6),
        "cost_low": 1e-5,
        "cost_high": 0.1,
    }
    return DeployProblem(**{**values, **changes})


def observe(**changes: Any) -> dict[str, Any]:
    """Return the first observation of a hand-made task of three LLMs."""
    values: dict[str, Any] = {
        "arrived": np.ones(3, dtype=np.int8),
        "cost_prior": np.zeros(3, dtype=np.float32),
        "throughput_left": np.full(3, 0.6, dtype=np.float32),
        "deploy_now": np.int64(1),
    }
    return {**values, **changes}


def teach(agent: Any, llm: int, rewards: list[float], cost: float, **seen: Any) -> None:
    """Let an agent see answers of one LLM to queries with the observation ``seen``."""
    for reward in rewards:
        info = {"llm": llm, "rated_llm": llm, "rated_reward": reward, "cost": cost}
        info["spend"] = agent.spent + cost
        agent.update(observe(**seen), np.zeros(4, dtype=np.int64), reward, observe(), info)


# ------------------------------------------------------------------------------- StageRoute


@pytest.mark.parametrize(("mean", "plays", "gamma"), [(0.0, 1, 0.1), (0.5, 20, 0.1), (1, 3, 16)])
def test_radius_is_the_papers(mean: float, plays: int, gamma: float) -> None:
    expected = (gamma * mean / plays) ** 0.5 + gamma / plays
    assert confidence_radius(mean, plays, gamma) == pytest.approx(expected, abs=1e-15)


def test_theory_gamma_of_the_published_setting() -> None:
    assert theory_gamma(problem(num_llms=11, horizon=36497)) == pytest.approx(15.9, abs=0.01)


def test_bounds_are_the_papers() -> None:
    agent = StageRoute(problem(), 0, gamma=0.1)
    assert agent.estimates(0) == (1.0, 1e-5)
    teach(agent, 0, [1.0, 0.0] * 50, 0.02)
    radius, scaled = confidence_radius(0.5, 100, 0.1), confidence_radius(0.2, 100, 0.1)
    assert agent.estimates(0)[0] == pytest.approx(0.5 + 2 * radius)
    assert agent.estimates(0)[1] == pytest.approx(0.02 - 2 * 0.1 * scaled)
    teach(agent, 1, [1.0], 2e-5)
    assert agent.estimates(1) == (1.0, 1e-5)  # clipped to 1 and to c1


def test_stage_counts_freeze_the_shares_of_a_stage() -> None:
    arguments = {"horizon": 600, "num_stages": 12, **SYNTHETIC}
    for counts, frozen in (("stage", True), ("all", False)):
        env = make_env(**arguments)
        agent = StageRoute(DeployProblem(**env.problem), 0, counts=counts)
        observation, _ = env.reset(seed=0)
        bounds: list[set[tuple[float, ...]]] = []
        for _ in range(600):
            action = agent.act(observation)
            if observation["deploy_now"]:
                bounds.append(set())
            bounds[-1].add(tuple(agent._solver.mu))
            seen, reward, *_, info = env.step(action)
            agent.update(observation, action, reward, seen, info)
            observation = seen
        assert all((len(values) == 1) == frozen for values in bounds)
        assert len(set.union(*bounds)) > 1


def test_over_budget_routes_by_the_cheapest_fill_and_counts() -> None:
    agent = StageRoute(problem(cost_low=1e-2, budget=1e-4), 0)
    for llm, cost in enumerate((0.03, 0.02, 0.05)):
        teach(agent, llm, [0.5] * 3000, cost)
    agent.act(observe())
    assert agent.violations == 1
    assert agent.deployed == [0, 1]
    np.testing.assert_allclose(agent._solver.p, [0.4, 0.6])


def test_under_capacity_shares_traffic_by_alpha() -> None:
    agent = StageRoute(problem(alpha=(0.3, 0.2, 0.1)), 0)
    agent.act(observe())
    assert agent.deployed == [0, 1]
    np.testing.assert_allclose(agent._solver.p, [0.6, 0.4])


def test_spare_throughput_is_all_an_agent_uses() -> None:
    agent = StageRoute(problem(), 0)
    agent.act(observe())
    left = np.zeros(3, dtype=np.float32)
    left[agent.deployed[1]] = 0.1
    observation = observe(deploy_now=np.int64(0), throughput_left=left)
    assert {int(agent.act(observation)[-1]) for _ in range(50)} == {agent.deployed[1]}


def test_pacing_spreads_the_money_left() -> None:
    agent = StageRoute(problem(), 0, paced=True)
    shrink = math.sqrt(0.1 * 0.1 / 1.0)
    assert agent.budget() == pytest.approx((1 - shrink) * 1e-3)
    teach(agent, 0, [1.0] * 100, 2e-3)
    left = (1.0 - 0.2) / 900
    assert agent.pace == pytest.approx(left)
    assert agent.budget() == pytest.approx((1 - shrink) * left)
    teach(agent, 0, [1.0], 5.0)
    assert agent.budget() == 0.0


def test_greedy_deployments_rank_as_they_say() -> None:
    arrived, rewards, costs = [0, 1, 2], (0.9, 0.8, 0.7), (0.09, 0.01, 0.02)
    assert TopUCB(problem(), 0).select(arrived, rewards, costs) == [0, 1]
    assert Ratio(problem(), 0).select(arrived, rewards, costs) == [1, 2]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("StageRoute", {"gamma": -1.0}),
        ("StageRoute", {"counts": "none"}),
        ("price-aware", {"optimism": -1.0}),
        ("price-aware", {"prior_plays": 0.0}),
        ("epsilon-first", {"epsilon": 0.0}),
        ("ParetoBandit", {"forgetting": 1.5}),
        ("static", {"no_such_setting": 1}),
    ],
)
def test_bad_settings_are_named(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        make_agent(name, problem(), 0, **setting)


def test_agents_and_tasks_must_match() -> None:
    with pytest.raises(ValueError, match="plays queueing tasks"):
        make_agent("ACQB", problem(), 0)
    queue = QueueProblem(3, 1, 2, 4, 0.5, 100)
    with pytest.raises(ValueError, match="plays deployment tasks"):
        make_agent("StageRoute", queue, 0)
    with pytest.raises(ValueError, match="context_dim=0"):
        make_agent("contextual-StageRoute", problem(), 0)
    with pytest.raises(ValueError, match="doubt"):
        make_agent("contextual-StageRoute-mixed", problem(context_dim=2), 0, doubt=0.0)


# ------------------------------------------------------------------------------ price-aware


def test_costs_start_at_the_list_price_and_follow_what_is_paid() -> None:
    agent = PriceAware(problem(has_prices=True), 0)
    prices = np.array([0.002, 0.004, 0.0], dtype=np.float32)
    agent.act(observe(cost_prior=prices))
    assert agent.estimates(0)[1] == pytest.approx(0.002)
    assert agent.estimates(2)[1] == 1e-5  # no price: c^L
    teach(agent, 0, [1.0] * 20, 0.003)
    assert agent.estimates(0)[1] == pytest.approx(0.0025)
    agent.act(observe(cost_prior=prices / 2))  # a price cut
    assert agent.estimates(0)[1] == pytest.approx(0.00125)


def test_a_price_cut_within_a_stage_counts_once() -> None:
    agent = PriceAware(problem(has_prices=True), 0)
    prices = np.array([0.002, 0.004, 0.004], dtype=np.float32)
    agent.act(observe(cost_prior=prices))
    teach(agent, 0, [1.0] * 100, 0.001, cost_prior=prices / 2)  # paid what the new list says
    assert agent._paid[0] == pytest.approx(100.0)
    teach(agent, 0, [1.0] * 100, 0.001, cost_prior=prices * 0)  # retired, no longer listed
    assert agent._paid[0] == pytest.approx(150.0)
    agent = PriceAware(problem(has_prices=True), 0)
    agent.act(observe(cost_prior=prices))
    teach(agent, 0, [1.0] * 100, 0.001, cost_prior=prices / 2)
    agent.act(observe(cost_prior=prices / 2))
    assert agent.estimates(0)[1] == pytest.approx(0.001)


def test_prior_learns_what_newer_llms_are_worth() -> None:
    features = np.column_stack([np.ones(30), np.linspace(0, 1, 30)])
    truth = 0.2 + 0.6 * features[:, 1]
    plays = np.full(30, 500.0)
    plays[-1] = 0.0
    means, variances, spread = fit_prior(features, plays, truth, 0.04)
    assert means[-1] == pytest.approx(0.8, abs=0.03)
    assert spread < 0.01
    nothing, wide, _ = fit_prior(features, np.zeros(30), np.zeros(30), 0.04)
    np.testing.assert_allclose(nothing, 0.5)
    assert (wide > variances).all()


def test_posterior_is_between_prior_and_mean_and_narrows() -> None:
    agent = PriceAware(problem(), 0, optimism=0.0)
    agent.act(observe())
    before = agent.estimates(0)[0]
    teach(agent, 0, [1.0] * 5, 1e-3)
    some = agent.estimates(0)[0]
    teach(agent, 0, [1.0] * 500, 1e-3)
    assert before == pytest.approx(0.5)
    assert before < some < agent.estimates(0)[0] < 1.0


# ---------------------------------------------------------------------------- other families


def test_primal_dual_prices_money_by_use() -> None:
    agent = PrimalDualBwK(problem(), 0)
    agent.act(observe())
    dear = agent._log_price
    assert dear < 0.0  # c^L = c1 of an LLM without plays is far below b: money gets cheaper
    teach(agent, 0, [1.0] * 3000, 0.09)
    teach(agent, 1, [1.0] * 3000, 0.09)
    teach(agent, 2, [1.0] * 3000, 0.09)
    agent.act(observe())
    assert agent._log_price > dear


def test_lagrange_price_of_money_rises_with_overspending() -> None:
    agent = LagrangeBwK(problem(), 0)
    agent.act(observe())
    teach(agent, agent.deployed[0], [1.0] * 20, 5e-3)
    assert agent._log_money > 0.0
    assert agent._log_weight[agent.deployed[0]] < agent._log_weight[agent.deployed[1]]


def test_ucb_bwk_keeps_a_budget_that_one_query_may_use_up() -> None:
    agent = make_agent("UCB-BwK", problem(cost_high=2.0), 0)  # bT = 1
    assert isinstance(agent, UCBBwK)
    assert agent.budget() == pytest.approx(0.0005 + 0.0005 * (1 - 2 * agent.shrink))
    agent.spent = 0.99
    assert agent.budget() == 0.0
    usual = UCBBwK(problem(horizon=10**6), 0)  # bT = 1000: the reserve is c2 = 0.1
    usual.spent = 999.89
    assert usual.budget() > 0.0
    usual.spent = 999.91
    assert usual.budget() == 0.0


def test_a_query_is_known_again_where_contexts_tell_nothing() -> None:
    """LLM 0 suits one query and LLM 1 the other, of one direction that no regression can part."""
    agents = [ContextualStageRoute, RememberingStageRoute]
    plain, mixed = (cls(problem(context_dim=1), 0, width=0.0) for cls in agents)
    contexts = [np.array([x], np.float32) for x in (0.0, 1e-6)]
    for agent in (plain, mixed):
        for _ in range(30):
            for query, context in enumerate(contexts):
                for llm in (0, 1):
                    seen = {"context": context}
                    agent.learn(seen, llm, 0.9 if llm == query else 0.1, 1e-3)
    for query, context in enumerate(contexts):
        z = np.append(context, 1.0).astype(np.float64)
        (same, also), _ = plain._estimates(z, [0, 1])
        rewards, costs = mixed._estimates(np.stack([z, z]), [0, 1])
        assert same == pytest.approx(also, abs=0.1)
        assert rewards[0, query] - rewards[0, 1 - query] > 0.6
        np.testing.assert_array_equal(costs, plain._estimates(np.stack([z, z]), [0, 1])[1])
    rewards, _ = mixed._estimates(np.array([0.5, 1.0]), [0, 1])  # another query
    np.testing.assert_allclose(rewards, plain._estimates(np.array([0.5, 1.0]), [0, 1])[0])


@pytest.mark.parametrize("name", ["contextual-StageRoute", "ParetoBandit"])
def test_mean_context_counts_rated_answers_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a delay the mean of z = (x, 1) still ends in 1."""
    env = make_env(instance="paretobandit", horizon=400, num_stages=8, reward_delay=120)
    agent: Any = make_agent(name, DeployProblem(**env.problem), 0)
    method = "_estimates" if name == "contextual-StageRoute" else "_indices"
    original, deploying, ends = getattr(agent, method), [False], []

    def spy(z: Any, llms: list[int]) -> Any:
        if deploying[0]:
            ends.append(z[..., -1])
        return original(z, llms)

    deploy = agent.deploy

    def watched(observation: Any, arrived: list[int]) -> Any:
        deploying[0] = True
        chosen = deploy(observation, arrived)
        deploying[0] = False
        return chosen

    monkeypatch.setattr(agent, method, spy)
    monkeypatch.setattr(agent, "deploy", watched)
    play(env, agent, 0)
    np.testing.assert_allclose(ends, 1.0)
    assert len(ends) == 8


def test_log_scale_of_costs() -> None:
    agent = StageRoute(problem(cost_low=1e-4, cost_high=1e-2), 0)
    np.testing.assert_allclose([agent.scaled_cost(c) for c in (0, 1e-4, 1e-3, 1)], [0, 0, 0.5, 1])
    assert StageRoute(problem(cost_low=1e-3, cost_high=1e-3), 0).scaled_cost(1e-3) == 0.0
    free = StageRoute(problem(cost_low=0.0), 0)
    assert free.estimates(0)[1] == pytest.approx(1e-10)


def test_epsilon_first_probes_every_newcomer_deployed() -> None:
    _, agent = run("epsilon-first", 0, horizon=2000, num_stages=10, **SYNTHETIC)
    plays = np.array(agent.plays)
    assert (plays[plays > 0] >= agent.probes).sum() >= 4


def test_static_never_changes_its_deployment() -> None:
    dynamics, agent = run("static", 0, horizon=600, num_stages=6, instance="routerbench")
    assert agent.deployed == [0, 1, 2, 3, 4]
    assert dynamics.count[0, 5:].sum() == 0


def test_static_replaces_an_llm_by_the_earliest_not_by_index() -> None:
    agent: Any = make_agent("static", problem(max_deployed=1), 0)
    deployed = []
    for arrived in ([0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 1]):
        agent.act(observe(arrived=np.array(arrived, dtype=np.int8)))
        deployed.append(agent.deployed)
    assert deployed == [[2], [2], [2], [1], [2]]


# ----------------------------------------------------------------------------- every agent


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_is_legal_and_repeatable(name: str) -> None:
    def once() -> tuple[list[tuple[int, float, float]], Any]:
        env = make_env(instance="paretobandit", horizon=300, num_stages=6)
        agent = make_agent(name, told(env, 4), 4)
        assert isinstance(agent, DeployAgent)
        return play(env, agent, 4), env.dynamics

    history, dynamics = once()
    assert dynamics.refused == dynamics.violations == dynamics.projected == 0
    assert dynamics.ledger_spend <= dynamics.budget * dynamics.horizon * (1 + 1e-12)
    assert once()[0] == history


@pytest.mark.parametrize("name", BLIND)
def test_equal_costs_and_stages_without_llms_are_survived(name: str) -> None:
    late = {"source": "synthetic", "kind": "late_arrival"}
    run(name, 0, instance=late, horizon=60, num_stages=5)
    gap: dict[str, Any] = {"source": "synthetic", "num_llms": 2, "initial": 1}
    retired = [{"llm": "llm_0", "query": 5}]
    with pytest.warns(UserWarning, match="depends on the draw"):
        env = make_env(instance=gap, horizon=60, num_stages=10, retirements=retired, reward_delay=3)
    for seed in range(4):
        play(env, make_agent(name, told(env, seed), seed), seed)


@pytest.mark.parametrize("name", NAMES)
def test_free_queries_are_survived(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["prompt,a,b,ca,cb"]
    for row in range(60):
        cost = 0.0 if row % 30 == 0 else 0.01
        lines.append(f"hello {row},{rng.random():.3f},{rng.random():.3f},{cost},0.02")
    path = tmp_path / "queries.csv"
    path.write_text("\n".join(lines))
    table: dict[str, Any] = {"source": "table", "path": str(path), "text": "prompt"}
    table |= {"quality": ["a", "b"], "cost": ["ca", "cb"], "context_dim": 4}
    arguments = {"horizon": 200, "num_stages": 5, "budget_per_query": 0.0102, "max_deployed": 2}
    dynamics, _ = run(name, 0, instance=table, **arguments)
    assert dynamics.refused == 0


@settings(max_examples=15)
@given(
    name=st.sampled_from(BLIND),
    seed=st.integers(0, 99),
    stages=st.integers(1, 12),
    slots=st.integers(1, 6),
    alpha=st.sampled_from([0.17, 0.35, 1.0]),
    delay=st.sampled_from([0, 7]),
    budget=st.sampled_from([5e-3, 2e-2]),
)
def test_actions_are_legal_whatever_the_task(
    name: str,
    seed: int,
    stages: int,
    slots: int,
    alpha: float,
    delay: int,
    budget: float,
) -> None:
    env = make_env(
        instance={"source": "synthetic"},
        horizon=120,
        num_stages=stages,
        max_deployed=slots,
        alpha=max(alpha, 1.0 / slots),
        reward_delay=delay,
        budget_per_query=budget,
    )
    agent: Any = make_agent(name, told(env, seed), seed)
    observation, info = env.reset(seed=seed)
    for _ in range(120):
        action = agent.act(observation)
        assert env.action_space.contains(action)
        size = env.problem["num_llms"]
        mask = info["action_mask"]
        assert mask[np.arange(size) * 2 + action[:-1]].all() or not observation["deploy_now"]
        assert mask[2 * size + action[-1]]
        seen, reward, _, _, info = env.step(action)
        agent.update(observation, action, reward, seen, info)
        observation = seen
    dynamics = env.dynamics
    assert dynamics.refused == dynamics.projected == dynamics.violations == 0
    assert dynamics.ledger_spend <= budget * 120 * (1 + 1e-12)
    assert agent.spent == pytest.approx(dynamics.spend)
    if delay == 0:
        assert agent.plays == dynamics.count[0].tolist()


def test_stageroute_regret_is_sublinear() -> None:
    """Mean regret to V(b, A_t) falls by more than a third from T to 8 T."""

    def regret(horizon: int) -> float:
        lost = []
        for seed in range(3):
            dynamics, _ = run(
                "StageRoute",
                seed,
                horizon=horizon,
                num_stages=round(horizon ** (1 / 3)),
                budget_per_query=1.0,  # never binds, so nothing is won by overspending
                **SYNTHETIC,
            )
            best = fluid_values(dynamics.instance(), dynamics.rules).mean()
            lost.append(best - dynamics.total_reward / horizon)
        return float(np.mean(lost))

    assert 0.0 < regret(8000) < 0.65 * regret(1000)
