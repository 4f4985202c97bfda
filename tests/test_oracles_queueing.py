"""Queueing oracles: exact optimum against closed forms and simulation, myopic against optimum."""

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.core.choice import best_assortment
from llmqueue_gym.core.queue import Population, QueueDynamics
from llmqueue_gym.oracles import ExactOptimum, MyopicOracle, OptimalPolicy, capacity


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


def test_equal_types_are_one_type():
    one = ExactOptimum([0.7], [1.0], 0.5, max_queue=40)
    two = ExactOptimum([0.7, 0.7], [0.4, 0.6], 0.5, max_queue=40)
    assert two.average_queue_length == pytest.approx(one.average_queue_length, rel=1e-6)


def test_optimum_serves_the_largest_rate_first():
    """The myopic rule is optimal for this preemptive model: shown by the exact solution."""
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


def finite_env(seed: int, arrival_rate: float = 0.35) -> gym.Env:
    """LLMQueue-v0 over a population of three query types (2, 1 and 1 of four queries)."""
    env = gym.make("LLMQueue-v0", num_llms=3, context_dim=2, window=64, max_episode_steps=10**9)
    env.reset(seed=seed)
    rates = np.array([0.4, 0.4, 0.65, 0.9])
    utilities = np.full((4, 3), -8.0)
    utilities[:, 0] = np.log(rates / (1 - rates))
    population = Population(np.zeros((4, 2), dtype=np.float32), utilities, 2)
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
        slot, *llms = policy.act({}).tolist()
        dynamics.step_single(slot, llms)
        if step >= 0:
            lengths[step] = dynamics.queue_length[0]
    return lengths


def test_simulated_mean_queue_of_the_optimal_policy_is_the_computed_optimum():
    env = finite_env(seed=0)
    policy = OptimalPolicy(env, max_queue=30)
    low, high = batch_means_interval(simulate(env, policy))
    assert low <= policy.optimum.average_queue_length <= high
    assert high - low < 0.25 * policy.optimum.average_queue_length


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
