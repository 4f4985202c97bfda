"""Memory of answers: its mode is the posterior's, and it acts only where answers ask for it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

import llmqueue_gym  # noqa: F401 - registers the environment
from baselines import make_agent
from baselines.estimators import query_effects
from baselines.estimators.query_effects import QueryEffects, effects_mode
from benchmarks.problems.queueing.play import public_problem
from llmqueue_gym.workloads import Synthetic


@pytest.mark.parametrize(("s_a", "s_b"), [(0.0, 2.0), (2.0, 0.5), (1.0, 4.0)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_effects_are_the_mode_of_the_posterior(size: int, s_a: float, s_b: float) -> None:
    rng = np.random.default_rng(size)
    utilities, num_llms = rng.normal(0.0, 3.0, 5), 5
    shown = np.array([rng.permutation(num_llms)[:size] for _ in range(3)])
    counts, kept = np.array([1, 4, 2]), np.zeros(num_llms, np.int64)
    kept[shown[1, 0]] += 3
    kept[shown[2, -1]] += 1
    precision = np.linalg.inv(s_a**2 + s_b**2 * np.eye(num_llms))

    def loss(e: np.ndarray) -> float:
        odds = np.exp(utilities + e)[shown].sum(axis=1)
        return float(e @ precision @ e / 2 + counts @ np.log1p(odds) - kept @ e)

    effects = np.zeros(num_llms)
    effects_mode(utilities, shown, counts, kept, s_a, s_b, effects)
    found = minimize(loss, np.zeros(num_llms), tol=1e-10)
    np.testing.assert_allclose(effects, found.x, atol=1e-4)


def test_after_answers_the_utilities_of_mixed_queries_are_what_the_posterior_says() -> None:
    workload = Synthetic("mixed", 2, 3, 60_000, explained=0.2)
    rng = np.random.default_rng(0)
    contexts, truth, _ = workload.draw(rng)
    x = contexts.astype(np.float64)
    known = x @ np.linalg.lstsq(x, truth, rcond=None)[0]
    # LLM 0 was refused twice by one user and kept by another.
    answers = rng.random((len(truth), 3)) > expit(truth[:, :1])
    chosen = answers[:, 0] & answers[:, 1] & ~answers[:, 2]
    known, true_effects = known[chosen], (truth - known)[chosen]

    s_a, s_b = workload.spreads
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    a, b = np.meshgrid(s_a * nodes, s_b * nodes)
    prior = np.multiply.outer(weights, weights)
    keeping = expit(known[:, 0, None, None] + a + b)
    posterior = prior * (1.0 - keeping) ** 2 * keeping
    posterior /= posterior.sum(axis=(1, 2), keepdims=True)
    exact = np.stack([np.sum(posterior * (a + b), (1, 2)), np.sum(posterior * a, (1, 2))], axis=1)
    error = (true_effects - exact).mean(axis=0)
    assert np.all(np.abs(error) < 4 * true_effects.std(axis=0) / np.sqrt(chosen.sum()))

    modes, counts, kept = np.zeros((500, 2)), np.array([3]), np.array([1, 0])
    for utilities, mode in zip(known, modes, strict=False):
        effects_mode(utilities, np.array([[0]]), counts, kept, s_a, s_b, mode)
    assert np.abs(modes - exact[:500]).max() < 0.4  # a mode is no mean: the posterior leans


@pytest.mark.parametrize("users", [1, 4])
def test_answers_tell_whether_anything_persists(users: int) -> None:
    """Users who ask the same tell it sooner than one who tries again and again."""
    needed = []
    for s_b in (0.0, 4.0):
        rng = np.random.default_rng(1)
        memory = QueryEffects(4)
        for number in range(600):
            context, utilities = np.array([number], np.float32), np.zeros(4)
            truth = rng.normal(0.0, s_b, 4) if s_b else utilities
            for time, llm in enumerate((0, 1, 0, 1)):
                kept = llm if rng.random() < 1.0 / (1.0 + np.exp(-truth[llm])) else -1
                arrival = number if users == 1 else time
                memory.judge(context, arrival, utilities, [llm], kept)
                memory.note(context, arrival, utilities, [llm], kept)
            if memory.spread[1] >= 2.0:
                needed.append(number)
        assert bool(memory.spread[1]) == bool(s_b)
    assert needed[-1] == 599
    assert (needed[0] > 100) == (users == 1)


def context(number: int) -> np.ndarray:
    return np.array([1.0, number], np.float32)


def test_a_query_is_known_again_by_its_context() -> None:
    memory = QueryEffects(3)
    memory.evidence[-1] = np.inf
    memory.note(context(7), 0, np.zeros(3), [2, 0], -1)
    memory.note(context(9), 0, np.zeros(3), [1], 1)
    utilities = np.zeros((3, 3))
    memory.add_to(utilities, np.stack([context(5), context(7), context(9)]))
    assert not utilities[0].any()
    assert utilities[1, 0] == pytest.approx(utilities[1, 2])  # shown together
    assert utilities[1, 0] < utilities[1, 1] < 0.0  # and a little of it is the query's own
    assert utilities[2, 1] > utilities[2, 0] > 0.0


def test_the_query_answered_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_effects, "MAX_QUERIES", 40)
    memory, alone = QueryEffects(2), QueryEffects(2)
    memory.evidence[-1] = alone.evidence[-1] = np.inf
    for number in (0, *range(40), 0, 40, 41):  # 0 was answered again, so 1 and 2 are forgotten
        memory.note(context(number), 0, np.zeros(2), [number % 2], -1)
    alone.note(context(0), 0, np.zeros(2), [1], -1)  # a row that was another's starts anew
    alone.note(context(41), 0, np.zeros(2), [1], -1)
    seen, expected = np.zeros((5, 2)), np.zeros((1, 2))
    memory.add_to(seen, np.stack([context(n) for n in (0, 1, 2, 3, 41)]))
    alone.add_to(expected, context(41)[None])
    assert seen.any(axis=1).tolist() == [True, False, False, True, True]
    np.testing.assert_allclose(seen[4], expected[0])


@pytest.mark.parametrize("name", ["ACQB", "CQB-Opt"])
def test_where_nothing_persists_the_decisions_are_the_twins(name: str) -> None:
    actions = []
    for agent_name in (name, f"{name}-mixed"):
        env = gym.make("LLMQueue-v0", 400, num_llms=4, context_dim=5, load=0.8, slack=None)
        observation, _ = env.reset(seed=3)
        agent = make_agent(agent_name, public_problem(env, 400), 0)
        if agent_name != name:
            agent.memory.evidence[0] = np.inf
        for _ in range(400):
            action = agent.act(observation)
            following, reward, _, _, info = env.step(action)
            agent.update(observation, action, float(reward), following, info)
            observation = following
            actions.append(action.tolist())
        env.close()
    assert agent.memory._rows  # it did remember
    assert actions[:400] == actions[400:]
