"""The queueing agents: published constants, legal play, determinism, schedules, and learning.

Synthetic observations where no environment is needed; learning is shown on an easy task.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the environment
from baselines import QueueProblem, agent_spec, make_agent, registered_agents
from baselines.queueing.acqb import (
    ACQB,
    CQBEps,
    confidence_radius,
    exploration_constant,
    optimistic_samples,
)
from baselines.queueing.base import AssortmentCycle, best_pairing, newest
from baselines.queueing.qucb import exploration_probability

NAMES = [  # pretrained agents: test_offline_agents.py
    spec.name
    for spec in registered_agents()
    if spec.target.startswith("baselines.queueing") and spec.load().protocol == "online"
]
LEARNERS = sorted(set(NAMES) - {"random", "fifo-round-robin", "known-static-mix-queue"})
WINDOW = 6


def problem(
    num_llms: int = 4, size: int = 2, dim: int = 3, horizon: int = 100, arrival_rate: float = 0.7
) -> QueueProblem:
    truth = np.random.default_rng(0).uniform(0.1, 2.0, (20, num_llms))
    return QueueProblem(num_llms, size, dim, WINDOW, arrival_rate, horizon, truth=truth)


def observe(
    rng: np.random.Generator, task: QueueProblem, waiting: int, feedback: int = 0
) -> dict[str, Any]:
    """Make an observation of a queue with ``waiting`` visible queries and distinct ages."""
    shown = np.arange(task.window) < waiting
    ages = rng.permutation(task.window) * shown
    return {
        "contexts": (rng.normal(size=(task.window, task.context_dim)) * shown[:, None]).astype(
            np.float32
        ),
        "waiting": shown.astype(np.int8),
        "retrials": (rng.integers(0, 5, task.window) * shown).astype(np.float32),
        "age": ages.astype(np.float32),
        "wait": ages.astype(np.float32),
        "queue_length": np.array([waiting], np.float32),
        "feedback": np.int64(feedback),
    }


def play(agent: Any, task: QueueProblem, slots: int, seed: int) -> list[list[int]]:
    """Play an agent against random answers, checking that every action is legal."""
    rng = np.random.default_rng(seed)
    actions = []
    observation = observe(rng, task, 0)
    for _ in range(slots):
        waiting = int(observation["waiting"].sum())
        action = agent.act(observation)
        slot, *llms = action.tolist()
        assert action.shape == (1 + task.assortment_size,)
        assert action.dtype == np.int64
        assert 0 <= slot < max(waiting, 1)
        assert all(0 <= llm < task.num_llms for llm in llms)
        assert len(set(llms)) == task.assortment_size
        answers = [1, *(2 + llm for llm in llms)]
        feedback = int(rng.choice(answers)) if waiting else 0
        following = observe(rng, task, int(rng.integers(task.window + 1)), feedback)
        info = {"arrived": bool(rng.random() < 0.5)}
        agent.update(observation, action, -1.0, following, info)
        observation = following
        actions.append(action.tolist())
    return actions


def skip_without_package(name: str) -> None:
    if name == "paretobandit":
        pytest.importorskip("pareto_bandit", reason="the optional paretobandit package")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(
    num_llms=st.integers(1, 6),
    size=st.integers(1, 4),
    dim=st.sampled_from([1, 3, 70]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_agent_plays_legally_and_repeats_itself(
    name: str, num_llms: int, size: int, dim: int, seed: int
) -> None:
    skip_without_package(name)
    task = problem(num_llms, min(size, num_llms), dim)
    first = play(make_agent(name, task, seed), task, 40, seed)
    assert first == play(make_agent(name, task, seed), task, 40, seed)


@pytest.mark.parametrize(("size", "samples"), [(1, 1), (2, 9), (3, 14), (4, 17)])
def test_published_number_of_optimistic_samples(size: int, samples: int) -> None:
    assert optimistic_samples(size) == samples


def test_confidence_radius() -> None:
    assert confidence_radius(1, 5, 2) == pytest.approx(2 * math.sqrt(5 * math.log(1.4)) + 4)
    t, dim, size, ridge = 300, 7, 3, 2.5
    inside = dim * math.log(1 + t * size / (dim * ridge)) + 4 * math.log(t)
    expected = 4 / 2 * math.sqrt(inside) + 4 * math.sqrt(ridge)
    assert confidence_radius(t, dim, size, ridge) == pytest.approx(expected)


def test_alpha_is_anytime_or_fixed_at_the_horizon() -> None:
    task = problem(horizon=400)
    anytime = make_agent("ACQB", task, 0, alpha_coef=0.1)
    fixed = make_agent("ACQB", task, 0, alpha_coef=0.1, anytime=False)
    assert isinstance(anytime, ACQB)
    assert isinstance(fixed, ACQB)
    assert anytime.alpha() < fixed.alpha()
    anytime.slot_number = 400
    assert anytime.alpha() == fixed.alpha() == pytest.approx(0.1 * confidence_radius(400, 3, 2))


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.3])
def test_exploration_constant_meets_the_target_rate(rate: float) -> None:
    arrival_rate, horizon = 0.6, 2000
    c1 = exploration_constant(rate, arrival_rate, horizon)
    slots = np.arange(1, horizon + 1)
    assert arrival_rate * np.minimum(1, c1 / np.sqrt(slots + 1)).mean() == pytest.approx(rate)
    if c1 < math.sqrt(2):  # nothing is cut off at 1: a closed form
        expected = rate * horizon / (arrival_rate * np.sum(1 / np.sqrt(slots + 1)))
        assert c1 == pytest.approx(expected)


def test_exploration_constant_at_the_ends() -> None:
    assert exploration_constant(0.0, 0.4, 99) == 0.0
    assert exploration_constant(0.5, 0.4, 99) == pytest.approx(10.0)


@pytest.mark.parametrize(("num_llms", "size"), [(5, 1), (5, 2), (6, 4), (3, 3)])
def test_assortment_cycle_covers_all_subsets_before_it_repeats(num_llms: int, size: int) -> None:
    cycle = AssortmentCycle(num_llms, size)
    rounds = [[tuple(cycle.next()) for _ in range(math.comb(num_llms, size))] for _ in range(2)]
    assert sorted(rounds[0]) == list(combinations(range(num_llms), size))
    assert rounds[0] == rounds[1]


@given(
    queries=st.integers(1, 5),
    num_llms=st.integers(1, 5),
    size=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_best_pairing_equals_exhaustive_search(
    queries: int, num_llms: int, size: int, seed: int
) -> None:
    size = min(size, num_llms)
    utilities = np.random.default_rng(seed).normal(scale=3, size=(queries, num_llms))
    odds = np.exp(utilities)
    best = max(
        ((q, s) for q in range(queries) for s in combinations(range(num_llms), size)),
        key=lambda pair: odds[pair[0], list(pair[1])].sum(),
    )
    slot, llms = best_pairing(utilities, size)
    assert (slot, tuple(sorted(llms))) == best


def test_acqb_explores_the_newest_query_only_after_an_arrival() -> None:
    task = problem(num_llms=5)
    rng = np.random.default_rng(0)
    agent = make_agent("ACQB", task, 0, c1=1e9)  # the coin always comes up
    cycle = AssortmentCycle(5, 2)
    observation, youngest = observe(rng, task, 5), -1
    for i in range(60):
        arrived = i % 3 == 0
        action = agent.act(observation)
        after = observe(rng, task, 5, feedback=1)
        agent.update(observation, action, 0.0, after, {"arrived": arrived})
        observation = after
        if i % 3 == 1:  # a query arrived at the end of the slot before
            assert action.tolist() == [youngest, *cycle.next()]
        youngest = newest(after, 5)


def test_acqb_explores_at_the_decaying_rate() -> None:
    task = problem(horizon=4000, arrival_rate=1.0)
    agent = make_agent("ACQB", task, 3, c1=5.0)
    assert isinstance(agent, ACQB)
    rng = np.random.default_rng(0)
    empty = observe(rng, task, 0)
    coins = []
    for _ in range(task.horizon):
        agent.update(empty, agent.act(empty), 0.0, empty, {"arrived": True})
        coins.append(agent._explore)
    rates = np.minimum(1, 5 / np.sqrt(np.arange(1, task.horizon + 1) + 1))
    assert all(coins[:23])  # eta_t = 1 up to t = 24
    deviation = abs(np.sum(coins) - rates.sum()) / np.sqrt(np.sum(rates * (1 - rates)))
    assert deviation < 4


def test_acqb_default_explores_one_slot_in_a_hundred() -> None:
    task = problem(horizon=5000)
    agent = make_agent("ACQB", task, 0)
    assert isinstance(agent, ACQB)
    assert agent.c1 == exploration_constant(0.01, 0.7, 5000)


@pytest.mark.parametrize(("c1", "first"), [(0.7, 0), (2.5, 6), (1e9, 900)])
def test_cqb_eps_explores_c1_squared_slots_and_then_one_in_root_t(c1: float, first: int) -> None:
    task = problem(horizon=900)
    agent = make_agent("CQB-eps", task, 0, c1=c1)
    assert isinstance(agent, CQBEps)
    schedule = []
    for t in range(1, 901):
        agent.slot_number = t
        schedule.append(agent.exploration_probability())
    assert schedule == [1.0] * first + [1 / 30] * (900 - first)


@pytest.mark.parametrize("c1", [0.0, 1e9])
def test_cqb_eps_is_acqb_but_for_the_coin(c1: float) -> None:
    """With a coin that always comes up, or (T^{-1/2} = 1e-6) never, the two play the same slots."""
    task = problem(num_llms=5, horizon=10**12)
    plays = [play(make_agent(name, task, 4, c1=c1), task, 60, 9) for name in ("ACQB", "CQB-eps")]
    assert plays[0] == plays[1]


def test_cqb_eps_explores_only_after_an_arrival() -> None:
    task = problem(horizon=50)
    agent = make_agent("CQB-eps", task, 0, c1=1e9)
    assert isinstance(agent, CQBEps)
    empty = observe(np.random.default_rng(0), task, 0)
    for arrived in (True, False, True, False):
        agent.update(empty, agent.act(empty), 0.0, empty, {"arrived": arrived})
        assert agent._explore is arrived


def test_qucb_exploration_schedule() -> None:
    assert exploration_probability(5, 1) == 0.0
    assert exploration_probability(5, 10) == 1.0
    assert exploration_probability(5, 10_000) == pytest.approx(15 * math.log(10_000) ** 2 / 10_000)


def test_qucb_serves_the_head_and_settles_on_the_best_llm() -> None:
    task = problem(num_llms=3, size=1)
    agent = make_agent("Q-UCB", task, 0)
    rng = np.random.default_rng(0)
    chosen: Counter[int] = Counter()
    for t in range(20_000):
        before = observe(rng, task, 2)
        slot, llm = agent.act(before).tolist()
        assert slot == 0
        kept = rng.random() < (0.2, 0.8, 0.5)[llm]
        after = observe(rng, task, 2, feedback=2 + llm if kept else 1)
        agent.update(before, np.array([slot, llm]), 0.0, after, {"arrived": True})
        if t >= 15_000:
            chosen[llm] += 1
    explored = sum(exploration_probability(3, t) for t in range(15_001, 20_001))
    assert abs(chosen[1] - (5000 - explored * 2 / 3)) < 150


@pytest.mark.parametrize(
    ("name", "expected"), [("CQB-eps-ucb", 100.0), ("CQB-eta-2", 32.0), ("CQB-Opt", 0.0)]
)
def test_cqb_phases_of_pure_exploration(name: str, expected: float) -> None:
    task = problem(horizon=1000)
    agent = make_agent(name, task, 0)
    assert hasattr(agent, "exploration_probability")
    pure, schedule = 0, []
    for t in range(1, 1001):
        agent.slot_number = t  # type: ignore[attr-defined]
        schedule.append(agent.exploration_probability())
        pure += schedule[-1] == 1.0
    assert pure == expected
    late = {"CQB-eps-ucb": 1000**-0.5, "CQB-eta-2": 0.0, "CQB-Opt": 0.0}[name]
    assert schedule[-1] == late
    if name == "CQB-eta-2":
        assert schedule[200] == 0.05


@pytest.mark.parametrize(("schedule", "slot"), [("fifo", 0), ("lifo", 3), ("most-retried", 1)])
def test_scheduling_rules(schedule: str, slot: int) -> None:
    task = problem()
    observation = observe(np.random.default_rng(0), task, 4)
    observation["retrials"] = np.array([1, 5, 0, 5, 0, 0], np.float32)
    agent = make_agent("fifo-best-mean", task, 0, schedule=schedule)
    assert agent.act(observation)[0] == slot


def test_best_mean_tries_every_llm_first() -> None:
    task = problem(num_llms=4, size=1)
    agent = make_agent("fifo-best-mean", task, 0)
    observation = observe(np.random.default_rng(0), task, 2, feedback=1)
    tried = []
    for _ in range(4):
        action = agent.act(observation)
        tried.append(int(action[1]))
        feedback = 2 + action[1] if action[1] == 2 else 1
        after = {**observation, "feedback": np.int64(feedback)}
        agent.update(observation, action, 0.0, after, {"arrived": True})
    assert sorted(tried) == [0, 1, 2, 3]
    assert agent.act(observation)[1] == 2


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ACQB", {"alpha_coef": -1.0}),
        ("ACQB", {"estimator": "mlee"}),
        ("ACQB", {"exploration_rate": 2.0}),
        ("ACQB", {"ridge": 0.0}),
        ("CQB-Opt", {"beta_coef": -1.0}),
        ("CQB-eta-2", {"slack": 0.0}),
        ("OFU-MNL+", {"beta_coef": -1.0}),
        ("eps-greedy", {"epsilon": 1.5}),
        ("fifo-best-mean", {"schedule": "fife"}),
        ("fifo-best-mean", {"routing": "best"}),
        ("paretobandit", {"prices": [1.0]}),
        ("ACQB", {"no_such_setting": 1}),
    ],
)
def test_bad_settings_are_named(name: str, setting: dict[str, Any]) -> None:
    skip_without_package(name)
    with pytest.raises(ValueError, match=next(iter(setting))):
        make_agent(name, problem(), 0, **setting)


def test_unknown_agent_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="ACQB-OMD"):
        agent_spec("ACQB-OMDD")


def test_paretobandit_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pareto_bandit", None)
    with pytest.raises(ImportError, match=r"llmqueue_gym\[data\]"):
        make_agent("paretobandit", problem(), 0)


def mean_queue(name: str, seed: int, slots: int = 1500) -> float:
    """Mean queue length of an agent where one LLM is the best for most queries (K = 1)."""
    env = gym.make(
        "LLMQueue-v0",
        max_episode_steps=slots,
        workload={"source": "synthetic", "kind": "lookalike"},
        assortment_size=1,
        arrival_rate=0.58,
        instance_seed=5,
    )
    observation, _ = env.reset(seed=seed)
    agent = make_agent(name, QueueProblem(5, 1, 5, 32, 0.58, slots), seed)
    total = 0
    for _ in range(slots):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, float(reward), following, info)
        observation = following
        total += info["queue_length"]
    return total / slots


@pytest.fixture(scope="module")
def random_queue() -> float:
    return float(np.mean([mean_queue("random", seed) for seed in range(3)]))


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_beat_random_on_an_easy_task(name: str, random_queue: float) -> None:
    skip_without_package(name)
    assert np.mean([mean_queue(name, seed) for seed in range(3)]) < random_queue


def test_qucb_fills_up_with_the_best_index_while_an_llm_is_unseen():
    agent = make_agent("Q-UCB", QueueProblem(4, 2, 3, WINDOW, 0.5, 1000), 0)
    agent._shown[:] = [10, 10, 10, 0]
    agent._kept[:] = [0, 5, 9, 0]
    assert agent._best(100) == [3, 2]
