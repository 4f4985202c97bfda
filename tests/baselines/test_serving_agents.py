"""The serving agents: legal and repeatable play, what they estimate, and that planning pays."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environment
from baselines import make_agent, registered_agents
from baselines.interface import ServeProblem
from baselines.serving.base import best_pairs
from baselines.serving.estimates import Service
from baselines.serving.rollout import look_ahead, simulate
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.oracles import Chain, Optimum, SmallProblem, threshold

NAMES = [spec.name for spec in registered_agents() if ".serving." in spec.target]
SMALL = {"value-iteration", "known-value-iteration"}


def made(preset: str, seed: int, **settings: Any) -> tuple[Any, Any, ServeProblem]:
    """Return an environment that was reset, its observation, and the problem with its truth."""
    env: Any = gym.make("llmqueue_gym:LLMServe-v0", preset=preset, **settings)
    observation, _ = env.reset(seed=seed)
    truth = env.unwrapped.dynamics.instances[0]
    return env, observation, ServeProblem(**env.unwrapped.problem, horizon=500, truth=truth)


def play(name: str, preset: str, slots: int, seed: int = 0, **settings: Any) -> tuple[Any, float]:
    """Return the actions of a run and its mean reward; no action may be illegal."""
    env, observation, problem = made(preset, seed, **settings)
    agent = make_agent(name, problem, seed)
    actions, total = [], 0.0
    for _ in range(slots):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        assert info["illegal"] == 0
        agent.update(observation, action, float(reward), following, info)
        observation, total = following, total + float(reward)
        actions.append(action)
    return np.array(actions), total / slots


@pytest.mark.parametrize("name", NAMES)
def test_play_is_legal_and_repeatable(name: str) -> None:
    preset, slots = ("tiny-pair", 120) if name in SMALL else ("autoscale", 120)
    settings = {} if name in SMALL else {"update_every": 30, "loading": 10}
    first, _ = play(name, preset, slots, **settings)
    again, _ = play(name, preset, slots, **settings)
    np.testing.assert_array_equal(first, again)


def test_yardsticks_need_the_truth() -> None:
    *_, problem = made("tiny-pair", 0)
    blind = ServeProblem(**{**vars(problem), "truth": None})
    known = [name for name in NAMES if name.startswith("known-")]
    assert len(known) >= 10
    for name in known:
        with pytest.raises(UsageError, match="holds no truth"):
            make_agent(name, blind, 0)
    for name in set(NAMES) - set(known):
        assert not make_agent(name, problem, 0).known  # type: ignore[attr-defined]


def test_plans_are_for_small_problems() -> None:
    *_, problem = made("fleet", 0)
    with pytest.raises(UsageError, match="use 'rollout'"):
        make_agent("value-iteration", problem, 0)


def test_best_pairs_are_the_best() -> None:
    """Against all assignments; at most ``limit``, and nothing that scores nothing."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.normal(size=(4, 3)).round(1)
        room = rng.integers(0, 2, 3)
        pairs = best_pairs(scores, room, 3)
        free = np.flatnonzero(room)
        best = max(
            sum(max(scores[q, r], 0.0) for q, r in zip(order, free, strict=False))
            for order in permutations(range(4), len(free))
        )
        assert sum(scores[q, r] for q, r in pairs) == pytest.approx(best)
        assert all(scores[q, r] > 0 and room[r] for q, r in pairs)
        assert len({q for q, _ in pairs}) == len(pairs) == len({r for _, r in pairs})
    assert best_pairs(np.ones((3, 2)), np.array([0, 2]), 1) == [(0, 1)]  # the head among equals


@pytest.mark.parametrize("room", [[0, 1], [2, 1]])
def test_what_differs_by_rounding_is_equal(room: list[int]) -> None:
    """Products of equal contexts differ in their last bits with the BLAS, and with the row."""
    epsilon = np.arange(10).reshape(5, 2) * np.finfo(float).eps
    pairs = best_pairs(0.7 * np.ones((5, 2)), np.array(room), 3)
    assert sorted(query for query, _ in pairs) == list(range(sum(room)))
    for sign in (1.0, -1.0):
        assert best_pairs(0.7 + sign * epsilon, np.array(room), 3) == pairs


def test_the_length_of_answers_is_found() -> None:
    """Maximum likelihood over replicas of other speed, some much faster than an answer."""
    *_, problem = made("fleet", 0)
    service, rng = Service(problem), np.random.default_rng(0)
    true = 80.0
    for _ in range(3000):
        replica, llm, active = rng.integers(4), rng.integers(3), 3
        chance = -np.expm1(-service.speed[replica, llm, active] / true)
        service.learn(int(replica), int(llm), active, int(rng.binomial(active, chance)))
    assert service.mean_length == pytest.approx(true, rel=0.1)


def test_lost_users_tell_their_patience() -> None:
    env, observation, problem = made("impatient", 0, arrival_rate=0.15)
    agent: Any = make_agent("c-mu-theta", problem, 0)
    for _ in range(2000):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, float(reward), following, info)
        observation = following
    order = np.argsort([context.argmax() for context in agent.kinds.contexts])
    found = agent.kinds.impatience()[:2][order]
    assert found == pytest.approx(problem.truth.impatience, rel=0.35)  # type: ignore[union-attr]


def test_a_plan_on_the_truth_is_the_optimum() -> None:
    env, observation, problem = made("tiny-pair", 1, load=0.7)
    agent = make_agent("known-value-iteration", problem, 0)
    best, dynamics = Optimum(problem.truth, 20), env.unwrapped.dynamics  # type: ignore[arg-type]
    agreed = []
    for slot in range(700):
        action = agent.act(observation)
        rows = np.where(
            dynamics.state.replicas[0, :, -1] > 0,
            dynamics.state.queries[0, dynamics.state.served[0, :, 0], 0],
            -1,
        )
        optimal = best.action(dynamics.window_queries[0], rows)
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, float(reward), following, info)
        observation = following
        if slot > 300 and dynamics.queue_length[0] < 12:
            agreed.append(np.array_equal(np.sort(action[:4]), np.sort(optimal[:4])))
    assert np.mean(agreed) > 0.97  # shares of arrivals are counted, not known


def test_planning_learners_beat_maxweight_and_myopia() -> None:
    """The same users on the pair of LLMs."""
    costs = {
        name: sum(-play(name, "tiny-pair", 1500, seed, load=0.72)[1] for seed in range(6))
        for name in ("value-iteration", "maxweight", "myopic")
    }
    assert costs["value-iteration"] < 0.95 * costs["maxweight"]
    assert costs["maxweight"] < 0.95 * costs["myopic"]


@pytest.mark.parametrize("name", ["known-threshold", "known-rollout"])
def test_users_who_leave_by_themselves_are_left_to_it(name: str) -> None:
    """One server, two classes: c mu / theta is optimal, and c mu costs more than twice as much."""
    costs = {
        rule: sum(-play(rule, "impatient", 1500, seed)[1] for seed in range(2))
        for rule in (name, "known-c-mu", "known-c-mu-theta")
    }
    assert costs[name] < 1.1 * costs["known-c-mu-theta"] < 0.8 * costs["known-c-mu"]


# --- the rollout's simulation ---------------------------------------------------------------------

PAIR = SmallProblem(
    np.array([0.24, 0.072]),
    np.array([[0.5, 0.5], [0.1, 0.1]]),
    np.array([[0.9, 0.1], [0.95, 0.9]]),
    np.zeros(2),
)


def pair_model(level: float, theta: float = 0.0) -> Any:
    """The pair of LLMs as the rollout has it: two queries, then a hundred of those who may come."""
    success = PAIR.success.T[np.repeat([0, 1, 0, 1], [1, 1, 77, 23])]
    kinds = np.repeat([0, 1, 0, 1], [1, 1, 77, 23])
    rates = np.repeat(PAIR.finish[:, :1], 3, axis=1)
    levels = np.array([[0.0, level], [level, 0.0]])[kinds]
    numbers = np.array([PAIR.arrival.sum(), 1.0, 1.0, 0.0, 2.0, 2.0, 3.0])
    return success, rates, levels, kinds, numbers, np.ones(len(kinds)), theta * kinds


@pytest.mark.parametrize("theta", [0.0, 0.1])
def test_the_simulation_costs_what_the_chain_says(theta: float) -> None:
    slots, rng = 60_000, np.random.default_rng(0)
    queue, out = np.empty((2, slots + 50, 2), dtype=np.int64)
    busy = np.full((2, 1, 2), -1)
    draws = rng.random(1_000_003)
    model = pair_model(4.0, theta)
    found = simulate(queue, 0, busy, out, 0, 2, model, np.zeros(2), draws, 0, slots)
    problem = replace(PAIR, impatience=np.array([0.0, theta]), lost=3.0)
    chain = Chain(problem, 20 if theta else 40)
    expected = chain.evaluate(chain.follow(threshold(4)))[0]
    assert found / slots == pytest.approx(expected, rel=0.1)


def test_the_look_ahead_reserves_the_strong_llm() -> None:
    """An easy query waits while the fast LLM works: a rule that never idles is overruled."""
    draws = np.random.default_rng(0).random(65_537)
    waiting = np.array([[0, 0]])
    away = np.empty((0, 2), dtype=np.int64)
    served = np.array([[[0, 2]], [[-1, -1]]])
    option = look_ahead(waiting, served, away, 2, pair_model(1.0), draws, 0, 400, 100, 3.0)
    assert option == -1
    hard = np.array([[1, 0]])
    option = look_ahead(hard, served, away, 2, pair_model(1.0), draws, 0, 400, 100, 3.0)
    assert option == 1  # place 0, replica 1


@pytest.mark.parametrize("hour", [0.0, 0.1, 0.35, 0.6])
def test_a_forecast_is_of_the_largest_rate_that_the_fleet_will_meet(hour: float) -> None:
    # A day of 1,000 slots; what the next update point loads is ready after 200. It has seen
    # thousands of days, in which the rate was 0.2 (1 + 0.8 sin).
    _, observation, problem = made("autoscale", 0)
    agent: Any = make_agent("known-forecast", problem, 0)
    agent._gram, agent._sums = 1e6 * np.eye(3), 1e6 * np.array([0.2, 0.16, 0.0])
    agent._turn, agent._angle = 2.0 * np.pi / 1000, 2.0 * np.pi * hour
    seen = agent.read(observation)._replace(queue=0)
    agent._angle = 2.0 * np.pi * hour
    hours = np.linspace(hour, hour + 0.2, 2001)
    expected = 0.2 * (1.0 + 0.8 * np.sin(2.0 * np.pi * hours).max())
    assert agent.foresee(seen) == pytest.approx(expected, rel=1e-3)


def test_a_fleet_by_deploy_opt_takes_the_best_llm_as_far_as_it_can_answer() -> None:
    _, observation, problem = made("autoscale", 0)
    agent: Any = make_agent("StageRoute-fleet", problem, 0)
    agent._plays[:], agent._kept[:] = 1e6, [5e5, 6.5e5, 8e5]
    seen, targets = agent.read(observation), np.array([-1, 2, 0, 2])
    agent._plays_before, agent.slot = 3e6, problem.update_every
    assert agent.deploy(seen, targets).tolist() == [2, 2, 2, 2]
    # More answers than the large LLM can give: as many replicas of a faster one as are needed.
    gives = 0.7 * agent.service.throughput(agent.places).mean(axis=0)
    agent._plays_before -= problem.update_every * float(3 * gives[2] + 0.5 * gives[1])
    assert agent.deploy(seen, np.array([0, 2, 0, 2])).tolist() == [1, 2, 2, 2]
