"""Production routers and controls: the formulas they ship, and what a fixed mix cannot beat."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import DeployProblem, QueueProblem, make_agent
from baselines.estimators.neighbours import Neighbours, guarded_gains
from baselines.queueing.base import Served
from baselines.queueing.fixed_mix import least_attempts
from baselines.queueing.routers import NUM_TYPES, Types, fit_posterior
from benchmarks.problems import problem_of
from llmqueue_gym.errors import UsageError

QUEUE = QueueProblem(3, 1, 2, 4, 0.5, 100)
CONTEXT = np.array([1.0, -1.0], dtype=np.float32)


def seen(context: Any = CONTEXT, retrials: int = 0) -> dict[str, Any]:
    """Return an observation of one waiting query."""
    contexts = np.zeros((4, 2), np.float32)
    contexts[0] = context
    waiting, count = np.array([1, 0, 0, 0], np.int8), np.array([retrials, 0, 0, 0], np.float32)
    return {"contexts": contexts, "waiting": waiting, "retrials": count, "age": count}


# ------------------------------------------------------------------ routing_sampling


def test_routing_sampling_counts_fits_and_misfits() -> None:
    agent: Any = make_agent("routing-sampling", QueueProblem(3, 2, 2, 4, 0.5, 100), 0)
    for kept in (0, 0, -1, 1):
        agent.learn(Served(CONTEXT, [0, 1], kept))
    alpha, beta = fit_posterior(agent._good, agent._under)
    assert alpha.tolist() == [4.0, 3.0, 2.0]  # 2 * .5 + good + 1
    assert beta.tolist() == [4.0, 5.0, 2.0]
    assert agent.choose(seen(), 1).llms[0] == 2  # without outcomes: before all others


def test_routing_sampling_plays_an_llm_as_often_as_its_sample_is_the_largest() -> None:
    agent: Any = make_agent("routing-sampling", QueueProblem(2, 1, 2, 4, 0.5, 100), 0)
    agent._good[:], agent._under[:] = (6, 3), (3, 3)
    rng = np.random.default_rng(1)
    expected = np.mean(rng.beta(8, 5, 50_000) > rng.beta(5, 5, 50_000))
    chosen = [agent.choose(seen(), 1).llms[0] == 0 for _ in range(4000)]
    assert np.mean(chosen) == pytest.approx(expected, abs=0.03)


def test_routing_sampling_charges_for_prices() -> None:
    agent: Any = make_agent("routing-sampling-deploy", deploy_problem(), 0)
    agent.plays = [100_000] * 3
    agent.reward = [0.5, 0.55, 0.5]
    observation = {"cost_prior": np.array([0.001, 0.01, 0.005])}
    scores = agent._scores(observation, [0, 1, 2])
    assert scores == pytest.approx([0.5 - 0.004, 0.55 - 0.04, 0.5 - 0.02], abs=0.006)
    agent.plays[2] = 0
    assert agent._scores(observation, [0, 2])[1] == np.inf


def deploy_problem(**more: Any) -> DeployProblem:
    return DeployProblem(3, 2, 100, 4, 0.01, (1.0, 1.0, 1.0), 0.001, 0.1, **more)


# ------------------------------------------------------------------ adaptive_router


@pytest.mark.parametrize(
    ("similarity", "counted"),
    [(1.0, 0), (0.45, 0), (0.449, 1), (0.01, 1), (0.0, 0)],  # 0 < J < .45; a verbatim one has J = 1
)
def test_a_retrial_counts_where_its_words_are_similar_but_not_too_much(
    similarity: float, counted: int
) -> None:
    agent: Any = make_agent("litellm-adaptive", QUEUE, 0, similarity=similarity)
    agent.choose(seen(), 1)
    agent.learn(Served(CONTEXT, [1], -1))
    assert agent.beta.sum() == 5.0 * agent.beta.size + counted
    assert agent.beta[0, 1] == 5.0 + counted
    assert (agent.alpha == 5.0).all()


def test_as_shipped_a_refusal_is_not_seen_and_reworded_it_is() -> None:
    for name, learns in (("litellm-adaptive", False), ("litellm-adaptive-retrials", True)):
        agent: Any = make_agent(name, QUEUE, 0)
        agent.choose(seen(), 1)
        agent.learn(Served(CONTEXT, [1], -1))
        assert bool((agent.beta > 5.0).any()) == learns


@pytest.mark.parametrize(("retrials", "thanked"), [(0, 0), (1, 1), (5, 1)])
def test_thanks_count_from_the_third_turn_on(retrials: int, thanked: int) -> None:
    agent: Any = make_agent("litellm-adaptive", QUEUE, 0)
    agent.choose(seen(retrials=retrials), 1)
    agent.learn(Served(CONTEXT, [2], 2))
    assert agent.alpha.sum() == 5.0 * agent.alpha.size + thanked


def test_updates_are_dropped_at_the_limit() -> None:
    agent: Any = make_agent("litellm-adaptive-retrials", QUEUE, 0)
    for _ in range(300):
        agent.choose(seen(), 1)
        agent.learn(Served(CONTEXT, [1], -1))
    assert agent.alpha[0, 1] + agent.beta[0, 1] == 200.0
    assert agent.alpha[0, 0] + agent.beta[0, 0] == 10.0


def test_seven_different_contexts_are_seven_types() -> None:
    types, rng = Types(2), np.random.default_rng(0)
    contexts = rng.normal(size=(NUM_TYPES, 2))
    assert [types.of(context, new=True) for context in contexts] == list(range(NUM_TYPES))
    assert [types.of(context, new=False) for context in contexts] == list(range(NUM_TYPES))
    more = rng.normal(size=(50, 2))
    assert {types.of(context, new=True) for context in more} <= set(range(NUM_TYPES))


# ------------------------------------------------------------------ neighbours with a guard


def test_neighbours_are_the_nearest_of_each_llm_and_old_ones_are_forgotten() -> None:
    rng = np.random.default_rng(0)
    near = Neighbours(3, 2, neighbours=4, memory=30)
    contexts = rng.normal(size=(70, 2)).astype(np.float32)
    llms, outcomes = rng.integers(0, 2, 70), rng.random(70)  # LLM 2 never answers
    for context, llm, outcome in zip(contexts, llms, outcomes, strict=True):
        near.observe(context, int(llm), float(outcome))
    means, counts = near.look_up(CONTEXT)
    for llm in range(2):
        rows = np.flatnonzero(llms[40:] == llm) + 40
        distances = np.square(contexts[rows] - CONTEXT).sum(axis=1)
        best = rows[np.argsort(distances)[:4]]
        assert means[llm] == pytest.approx(outcomes[best].mean())
    assert counts.tolist() == [4.0, 4.0, 0.0]


def test_a_gain_is_sure_by_hoeffding() -> None:
    means, counts = np.array([0.5, 0.9, 0.8]), np.array([8.0, 8.0, 0.0])
    gains = guarded_gains(means, counts, 0, error=0.1)
    assert gains[0] == 0.0
    assert gains[1] == pytest.approx(0.4 - np.sqrt(np.log(10) / 2 * (1 / 8 + 1 / 8)))
    assert gains[2] == -np.inf


@pytest.mark.parametrize("answers", [2, 40])
def test_the_guard_departs_only_with_enough_answers(answers: int) -> None:
    agent: Any = make_agent("knn-guard", QUEUE, 0, explore=0.0)
    here, there = np.array([4.0, 0.0], np.float32), np.array([0.0, 4.0], np.float32)
    for _ in range(answers):  # LLM 0 is best on the whole, LLM 1 where few queries come from
        for context, llm, kept in ((there, 1, 1), (there, 0, 0), (here, 1, 0), (here, 2, 0)):
            agent.learn(Served(context, [llm], llm if kept else -1))
        for _ in range(3):
            agent.learn(Served(here, [0], 0))
    assert agent.choose(seen(here), 1).llms == [0]
    assert agent.choose(seen(there), 1).llms == [1 if answers == 40 else 0]


def test_the_guard_of_a_stream_keeps_to_what_is_affordable() -> None:
    agent: Any = make_agent("knn-guard-deploy", deploy_problem(context_dim=2), 0, explore=0.0)
    agent.deployed = [0, 1, 2]
    agent.plays, agent.reward = [50] * 3, [0.9, 0.6, 0.2]
    agent.cost = [0.05, 0.009, 0.001]  # b = .01
    observation = {"context": CONTEXT, "throughput_left": np.ones(3)}
    assert agent.route(observation) == 1
    for _ in range(40):
        agent._near.observe(np.append(CONTEXT, 1.0), 1, 0.0)
        agent._near.observe(np.append(CONTEXT, 1.0), 2, 1.0)
    assert agent.route(observation) == 2


# ------------------------------------------------------------------ restarts


def test_a_restart_forgets_all_and_only_once() -> None:
    agent: Any = make_agent("restarted", QUEUE, 0, agent="routing-sampling", at=0.5)
    for slot in range(100):
        first = agent.agent
        agent.update(seen(), agent.act(seen()), -1.0, {"feedback": 2}, {})
        assert (agent.agent is first) == (slot != 49)
        if slot in (48, 50):  # nothing before the restart is known after it
            assert first._good.sum() + first._under.sum() == {48: 49, 50: 1}[slot]


# ------------------------------------------------------------------ fixed mixes, by the truth


def test_the_mix_of_two_specialists_is_even() -> None:
    shares, attempts = least_attempts(np.array([[0.9, 0.1, 0.3], [0.1, 0.9, 0.3]]), 1e-6)
    assert shares == pytest.approx([0.5, 0.5, 0.0], abs=2e-3)
    assert attempts == pytest.approx(2.0, rel=1e-5)  # either alone: (1 / .9 + 1 / .1) / 2


def test_no_other_mix_takes_fewer_attempts() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.05, 0.95, (60, 40))
    shares, attempts = least_attempts(rates)
    assert shares.sum() == pytest.approx(1.0)
    assert attempts == pytest.approx(np.mean(1.0 / (rates @ shares)))
    others = np.vstack([rng.dirichlet(np.full(40, 0.2), 500), np.eye(40)])
    assert np.mean(1.0 / (rates @ others.T), axis=0).min() > (1.0 - 1e-3) * attempts


def test_a_fixed_mix_takes_as_many_attempts_as_its_program_says() -> None:
    env: Any = gym.make("LLMQueue-v0", load=0.5, num_llms=4, assortment_size=2, instance_seed=1)
    observation, _ = env.reset(seed=0)
    play = problem_of("LLMQueue-v0").play
    told = play.told_all(env, play.public_problem(env, 2500))
    agent: Any = make_agent("known-static-mix-queue", told, 0)
    odds = told.truth[:, agent._assortments].sum(axis=2)
    expected = np.mean(1.0 / (odds / (1.0 + odds) @ agent.shares))
    served = departed = 0
    for _ in range(2500):
        observation, _, _, _, info = env.step(agent.act(observation))
        served, departed = served + int(info["served"]), departed + int(info["departed"])
    assert served / departed == pytest.approx(expected, rel=0.05)


def test_yardsticks_are_told_the_truth_and_need_it() -> None:
    env: Any = gym.make("LLMDeploy-v0", instance="routerbench", horizon=50, num_stages=5)
    env.reset(seed=0)
    play = problem_of("LLMDeploy-v0").play
    agent: Any = make_agent(
        "known-static-mix-deploy", play.told_all(env, play.public_problem(env, 50)), 0
    )
    instance = env.unwrapped.dynamics.instance()
    assert agent.estimates(2) == (instance.mean_reward[0, 2], instance.mean_cost[0, 2])
    for name, blind in (
        ("known-static-mix-queue", QUEUE),
        ("known-static-mix-deploy", deploy_problem()),
    ):
        with pytest.raises(UsageError, match="truth=None"):
            make_agent(name, blind, 0)
    large = QueueProblem(200, 4, 2, 4, 0.5, 9, truth=np.ones((9, 200)))
    with pytest.raises(UsageError, match=r"num_llms=200, assortment_size=4"):
        make_agent("known-static-mix-queue", large, 0)
