"""Queueing oracles: the myopic rule is optimal, by enumeration, closed form and simulation."""

from functools import cache
from itertools import combinations

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.oracles import (
    ExactOptimum,
    MyopicOracle,
    OptimalPolicy,
    capacity,
    optimal_queue_length,
)
from llmqueue_gym.queueing.choice import best_assortment
from llmqueue_gym.queueing.lanes import Population, QueueDynamics


def geo_geo_1_mean(arrival_rate: float, rate: float) -> float:
    """Mean of Q after the arrival in the discrete queue where an arrival is served next slot.

    Balance of Q: up with lam (1 - p) (from 0: lam), down with p (1 - lam).
    """
    lam, p = arrival_rate, rate
    r = lam * (1 - p) / (p * (1 - lam))
    first = lam / (p * (1 - lam))  # pi_1 / pi_0
    pi0 = 1 / (1 + first / (1 - r))
    return pi0 * first / (1 - r) ** 2


@pytest.mark.parametrize(("lam", "p"), [(0.3, 0.5), (0.5, 0.8), (0.2, 0.9)])
def test_one_type_equals_the_closed_form_of_the_geometric_queue(lam, p):
    optimum = ExactOptimum([p], [1.0], lam, max_queue=200)
    assert optimum.average_queue_length == pytest.approx(geo_geo_1_mean(lam, p), rel=1e-6)
    assert optimal_queue_length([p], [1.0], lam) == pytest.approx(geo_geo_1_mean(lam, p))


def test_equal_types_are_one_type():
    one = ExactOptimum([0.7], [1.0], 0.5, max_queue=40)
    two = ExactOptimum([0.7, 0.7], [0.4, 0.6], 0.5, max_queue=40)
    assert two.average_queue_length == pytest.approx(one.average_queue_length, rel=1e-6)


def test_no_policy_has_a_smaller_expected_queue_in_any_slot():
    """All policies of ten slots, with every query, every assortment and idling, by recursion."""
    odds, size, arrival = ((0.3, 0.1, 0.4), (2.0, 0.2, 0.1), (0.6, 0.5, 0.9)), 2, (0.3, 0.2, 0.3)
    assortments = [s for count in (1, size) for s in combinations(range(3), count)]
    rates = [[sum(o[j] for j in s) / (1 + sum(o[j] for j in s)) for s in assortments] for o in odds]

    def change(counts, kind, by):
        return tuple(n + by * (i == kind) for i, n in enumerate(counts))

    @cache
    def expected(counts, slots, myopic):
        """E of the queue length in ``slots`` slots."""
        if not slots:
            return float(sum(counts))
        idle = (1 - sum(arrival)) * expected(counts, slots - 1, myopic) + sum(
            share * expected(change(counts, kind, 1), slots - 1, myopic)
            for kind, share in enumerate(arrival)
        )
        waiting = [kind for kind in range(3) if counts[kind]]
        actions = [(rates[kind][s], kind) for kind in waiting for s in range(len(assortments))]
        if myopic:
            actions = [max(actions)] if actions else []
        values = [] if myopic and actions else [idle]
        for rate, kind in actions:
            fewer = change(counts, kind, -1)
            gone = (1 - sum(arrival)) * expected(fewer, slots - 1, myopic) + sum(
                share * expected(change(fewer, new, 1), slots - 1, myopic)
                for new, share in enumerate(arrival)
            )
            values.append(rate * gone + (1 - rate) * idle)
        return min(values)

    for start in ((0, 0, 0), (2, 1, 3)):
        for slots in range(11):
            best = expected(start, slots, False)
            assert expected(start, slots, True) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("load", "caps"), [(0.9, (10, 20, 30)), (0.7, (10, 20, 40))])
def test_the_capped_optimum_is_below_the_myopic_rule_only_by_its_cap(load, caps):
    """Blocked arrivals pay for a full queue; with the cap out of reach nothing is left."""
    rates, shares = np.array([0.358, 0.485]), np.array([0.5, 0.5])
    arrival_rate = load / np.sum(shares / rates)
    exact = optimal_queue_length(rates, shares, arrival_rate)
    gaps, errors, at_cap = [], [], []
    for cap in caps:
        optimum = ExactOptimum(rates, shares, arrival_rate, cap)
        myopic = optimum.myopic_queue_length()
        gaps.append(myopic / optimum.average_queue_length - 1)
        errors.append(1 - optimum.average_queue_length / exact)
        at_cap.append(optimum.cap_share)
    for series in (gaps, errors, at_cap):
        assert series[0] > series[1] > series[2] > 0
    assert gaps[0] > 0.002
    if load == 0.7:
        assert gaps[2] < 1e-5
        assert errors[2] < 1e-5


def test_the_closed_form_is_the_exact_optimum_of_several_types():
    instance = [0.35, 0.6, 0.9], [0.3, 0.3, 0.4], 0.25
    exact = ExactOptimum(*instance, max_queue=22, tolerance=1e-7).average_queue_length
    assert optimal_queue_length(*instance) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_simulated_mean_queue_of_the_myopic_oracle_is_the_closed_form(size):
    kwargs = {"assortment_size": size, "load": 0.8, "window": 256, "instance_seed": 1}
    env = gym.make("LLMQueue-v0", max_episode_steps=10**9, **kwargs)
    env.reset(seed=3)
    best = env.unwrapped.dynamics.best_rate[:-1]
    shares = np.full(best.size, 1 / best.size)
    expected = optimal_queue_length(best, shares, env.unwrapped.dynamics.arrival_rate[0])
    low, high = batch_means_interval(simulate(env, MyopicOracle(env)))
    assert low <= expected <= high
    assert high - low < 0.3 * expected


def test_optimum_serves_the_largest_rate_first():
    optimum = ExactOptimum([0.35, 0.6, 0.9], [0.3, 0.3, 0.4], 0.35, max_queue=22)
    # Near the cap, where arrivals are blocked, a full queue has a value of its own.
    states = np.argwhere(np.indices((23,) * 3).sum(axis=0) <= 11)
    for state in states[1:]:
        expected = max(kind for kind in range(3) if state[kind] > 0)
        assert optimum.best_type[tuple(state)] == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rates": [0.5], "probabilities": [1.0], "arrival_rate": 0.6}, "below 1"),
        ({"rates": [0.0], "probabilities": [1.0], "arrival_rate": 0.1}, "rates="),
        ({"rates": [0.5], "probabilities": [0.7], "arrival_rate": 0.1}, "sum to 1"),
        ({"rates": [0.5] * 8, "probabilities": [0.125] * 8, "arrival_rate": 0.1}, "states"),
        ({"rates": [0.5] * 900, "probabilities": [1 / 900] * 900, "arrival_rate": 0.1}, "fewer"),
        (
            {"rates": [0.5], "probabilities": [1.0], "arrival_rate": 0.1, "max_queue": 0},
            "max_queue",
        ),
        ({"rates": [0.5], "probabilities": [0.5, 0.5], "arrival_rate": 0.1}, "one length"),
    ],
)
def test_bad_instances_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ExactOptimum(**kwargs)
    if message not in ("states", "fewer", "max_queue"):  # these are about the cap
        with pytest.raises(ValueError, match=message):
            optimal_queue_length(**kwargs)


def finite_env(
    seed: int, arrival_rate: float = 0.35, rates: tuple[float, ...] = (0.4, 0.4, 0.65, 0.9)
) -> gym.Env:
    """LLMQueue-v0 over a population of few query types: two of these four queries are of one."""
    env = gym.make("LLMQueue-v0", num_llms=3, context_dim=2, window=64, max_episode_steps=10**9)
    env.reset(seed=seed)
    utilities = np.full((len(rates), 3), -8.0)
    utilities[:, 0] = np.log(np.array(rates) / (1 - np.array(rates)))
    population = Population(np.zeros((len(rates), 2), dtype=np.float32), utilities, 2)
    dynamics = env.unwrapped.dynamics
    streams = np.random.default_rng(seed).spawn(3)
    env.unwrapped.dynamics = fresh = QueueDynamics(1, 64, 2, dynamics.context_dim)
    fresh.reset([0], [population], [arrival_rate], [streams])
    return env


def batch_means_interval(lengths: np.ndarray, batches: int = 40) -> tuple[float, float]:
    means = lengths.reshape(batches, -1).mean(axis=1)
    half = stats.t.ppf(0.9995, batches - 1) * means.std(ddof=1) / np.sqrt(batches)
    return means.mean() - half, means.mean() + half


def simulate(env: gym.Env, policy, steps: int = 120_000, warmup: int = 2_000) -> np.ndarray:
    dynamics = env.unwrapped.dynamics
    lengths = np.empty(steps)
    for step in range(-warmup, steps):
        dynamics.step(policy.act({})[None])
        if step >= 0:
            lengths[step] = dynamics.queue_length[0]
    return lengths


def test_simulated_mean_queue_of_the_optimal_policy_is_the_computed_optimum():
    env = finite_env(seed=0)
    policy = OptimalPolicy(env, max_queue=30)
    low, high = batch_means_interval(simulate(env, policy))
    optimum = policy.optimum
    assert low <= optimum.average_queue_length <= high
    assert high - low < 0.25 * optimum.average_queue_length
    exact = optimal_queue_length(optimum.rates, optimum.probabilities, optimum.arrival_rate)
    assert optimum.average_queue_length == pytest.approx(exact, rel=1e-3)


def test_a_cap_that_binds_is_refused_with_its_share_and_the_fix():
    """Its claim would be far below what any policy reaches in the queue without a cap."""
    rates = np.array([0.1, 0.9])
    arrival_rate = 0.9 / np.mean(1 / rates)
    capped = ExactOptimum(rates, [0.5, 0.5], arrival_rate, 15, tolerance=1e-7)
    assert capped.average_queue_length < 0.7 * optimal_queue_length(rates, [0.5] * 2, arrival_rate)
    env = finite_env(0, arrival_rate, rates=(0.1, 0.9))
    with pytest.raises(
        ValueError, match=r"max_queue=15.* in \d\.\d\d% of the slots.*raise max_queue"
    ):
        OptimalPolicy(env, max_queue=15)


def test_beyond_its_cap_or_the_window_the_optimal_policy_acts_as_the_myopic_oracle():
    env = finite_env(seed=2, arrival_rate=0.1)
    dynamics = env.unwrapped.dynamics
    policy, myopic = OptimalPolicy(env, max_queue=8), MyopicOracle(env)
    while dynamics.queue_length[0] < 80:
        dynamics.step(np.array([[63, 1, 2]]))  # nobody, or one who retries
        if dynamics.queue_length[0] > 8:
            action = policy.act({})
            np.testing.assert_array_equal(action, myopic.act({}))
            served = dynamics.best_rate[dynamics.window_queries[0, action[0]]]
            assert served == dynamics.best_rate[dynamics.window_queries[0]].max()


def test_myopic_oracle_makes_the_choices_of_the_optimum_on_one_seed():
    first, second = finite_env(seed=1), finite_env(seed=1)
    optimal, myopic = OptimalPolicy(first, max_queue=30), MyopicOracle(second)
    a = simulate(first, optimal, steps=20_000)
    b = simulate(second, myopic, steps=20_000)
    np.testing.assert_array_equal(a, b)


def test_capacity_is_the_edge_of_stability():
    utilities = np.random.default_rng(0).normal(size=(50, 4))
    rate = best_assortment(np.exp(utilities), 2)[1]
    assert capacity(utilities, 2) == pytest.approx(1 / np.mean(1 / rate))
    env = gym.make("LLMQueue-v0", arrival_rate=0.7)
    env.reset(seed=0)
    dynamics = env.unwrapped.dynamics
    assert capacity(np.log(dynamics.odds[:-1]), 2) == pytest.approx(dynamics.capacity[0])


def test_oracles_refuse_other_environments():
    with pytest.raises(ValueError, match="LLMQueue-v0"):
        MyopicOracle(gym.make("CartPole-v1"))
