"""The serving oracles: published values, a second version in plain Python, bounds, and errors.

Tables: the slow server of Lin, Kumar, "Optimal control of a queueing system with two heterogeneous
servers", IEEE TAC 1984; two classes that abandon of Atar, Giat, Shimkin, "The c mu / theta rule for
many-server queues with abandonment", Operations Research 2010. The figures are value iterations of
the continuous-time problems, made apart from this package; so are those of the pair of LLMs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environment
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.dynamics import ACTIVE, ROW
from llmqueue_gym.serving.instance import Rewards, ServingInstance
from llmqueue_gym.serving.oracles import (
    Chain,
    Optimum,
    SmallProblem,
    bound,
    c_mu,
    c_mu_theta,
    max_weight,
    most_successful,
    myopic,
    small_problem,
    threshold,
)
from llmqueue_gym.serving.task import ServingTask


def instance(preset: str, **settings: object) -> ServingInstance:
    return ServingTask(preset, **settings).draw(np.random.default_rng(0))


def cost(chain: Chain, rule: object) -> float:
    return chain.evaluate(chain.follow(rule))[0]  # type: ignore[arg-type]


# --- published values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "load", "cap", "best", "weighed", "greedy"),
    [
        (1.0, 0.5873, 25, 1.820, 2.156, 2.447),
        (1.2, 0.7048, 32, 2.739, 3.345, 5.316),
        (1.4, 0.8222, 40, 4.590, 5.736, None),
    ],
)
def test_a_fast_weak_and_a_slow_strong_llm(
    scale: float, load: float, cap: int, best: float, weighed: float, greedy: float | None
) -> None:
    pair = instance("tiny-pair", arrival_rate=0.26 * scale)
    assert pair.load == pytest.approx(load, abs=1e-4)
    chain = Chain(small_problem(pair)[0], cap)
    assert chain.solve()[0] == pytest.approx(best, abs=1e-3)
    assert cost(chain, max_weight) == pytest.approx(weighed, abs=2e-3)
    if greedy is not None:
        assert cost(chain, myopic) == pytest.approx(greedy, rel=6e-3)  # the cap cuts its tail
    else:  # it has no mean: the queue fills whatever room there is
        small = Chain(chain.problem, 20)
        assert cost(chain, myopic) > 28.0 > 2.0 * cost(small, myopic)
    if scale == 1.0:
        assert cost(chain, most_successful) == pytest.approx(2.79, abs=1e-2)


@pytest.mark.parametrize(
    ("arrival", "slow", "level", "best", "never_idle", "fast_only"),
    [
        (0.5, 0.5, 1, 0.71053, 0.71053, 1.0),
        (0.5, 0.2, 3, 0.92399, 1.06404, 1.0),
        (0.5, 0.1, 5, 0.98895, 1.36094, 1.0),
        (0.8, 0.2, 2, 2.40399, 2.51163, 4.0),
        (0.8, 0.1, 4, 3.08696, 3.35476, 4.0),
        (1.0, 0.2, 2, 5.50207, 5.58621, None),
        (0.3, 0.1, 7, 0.42852, 0.70999, 0.42857),
    ],
)
def test_a_slow_server(
    arrival: float, slow: float, level: int, best: float, never_idle: float, fast_only: float | None
) -> None:
    """Short slots, and what they tend to: the error is linear in the slot."""
    found = []
    for slot in (0.02, 0.01):
        rates = np.array([[slot], [slow * slot]])
        chain = Chain(
            SmallProblem(np.array([arrival * slot]), rates, np.ones((2, 1)), np.zeros(1)), 250
        )
        costs = [cost(chain, threshold(m)) for m in range(1, level + 3)]
        assert int(np.argmin(costs)) == level - 1
        assert chain.solve()[0] == pytest.approx(min(costs), rel=1e-9)
        found.append([min(costs), costs[0], cost(chain, threshold(10**6))])
    limit = 2.0 * np.array(found[1]) - found[0]
    assert limit[:2] == pytest.approx([best, never_idle], rel=3e-4)
    if fast_only is not None:
        assert limit[2] == pytest.approx(fast_only, rel=3e-4)


@pytest.mark.parametrize(
    ("arrival", "patient", "impatient", "by_c_mu", "by_theta"),
    [(0.7, 0.05, 1.0, 5.3195, 2.2817), (0.6, 0.05, 0.5, 3.8782, 2.0982)],
)
def test_users_of_other_patience(
    arrival: float, patient: float, impatient: float, by_c_mu: float, by_theta: float
) -> None:
    """A server that may turn to another user in every slot: an answer a slot, kept or not."""
    found = []
    for slot in (0.1, 0.05):
        problem = SmallProblem(
            np.full(2, arrival * slot),
            np.ones((1, 2)),
            np.array([[slot, 1.2 * slot]]),
            np.array([patient, impatient]) * slot,
        )
        chain = Chain(problem, 22)
        found.append([cost(chain, c_mu), cost(chain, c_mu_theta)])
    assert chain.solve(chain.follow(c_mu))[0] == pytest.approx(found[1][1], rel=1e-9)
    assert 2.0 * np.array(found[1]) - found[0] == pytest.approx([by_c_mu, by_theta], rel=4e-3)


# --- a second version -----------------------------------------------------------------------------


def second_version(problem: SmallProblem, cap: int, rounds: int) -> float:
    """Relative value iteration in plain Python: every event of a slot one after the other."""
    replicas, kinds = problem.finish.shape
    states = list(product(*[range(cap + 1)] * kinds, *[range(kinds + 1)] * replicas))

    def events(state: tuple[int, ...]) -> dict[tuple[tuple[int, ...], float], float]:
        """Return (next state, cost) -> probability, from a state after the action."""
        held = problem.holding * (sum(state[:kinds]) + sum(s > 0 for s in state[kinds:]))
        now = {(state, held): 1.0}

        def happens(branch: object) -> None:
            nonlocal now
            later: dict[tuple[tuple[int, ...], float], float] = {}
            for (before, paid), chance in now.items():
                for share, after, more in branch(before):  # type: ignore[operator]
                    key = (after, paid + more)
                    later[key] = later.get(key, 0.0) + chance * share
            now = later

        def add(s: tuple[int, ...], entry: int, by: int) -> tuple[int, ...]:
            return (*s[:entry], min(s[entry] + by, cap), *s[entry + 1 :])

        for t in range(kinds):
            for _ in range(state[t]):
                theta = problem.impatience[t]
                happens(lambda s, t=t, q=theta: [(1 - q, s, 0.0), (q, add(s, t, -1), problem.lost)])
        for r in range(replicas):
            if state[kinds + r]:
                t = state[kinds + r] - 1
                f, p, d = problem.finish[r, t], problem.success[r, t], problem.give_up

                def served(s: tuple[int, ...], r: int = r, t: int = t) -> list[object]:
                    free = (*s[: kinds + r], 0, *s[kinds + r + 1 :])
                    return [
                        (1 - f, s, 0.0),  # noqa: B023 - used at once
                        (f * p, free, -problem.kept),  # noqa: B023
                        (f * (1 - p) * d, free, problem.lost),  # noqa: B023
                        (f * (1 - p) * (1 - d), add(free, t, 1), 0.0),  # noqa: B023
                    ]

                happens(served)
        rates = [*problem.arrival, 1.0 - problem.arrival.sum()]
        happens(lambda s: [(a, add(s, t, 1) if t < kinds else s, 0.0) for t, a in enumerate(rates)])
        return now

    def reached(state: tuple[int, ...]) -> list[tuple[int, ...]]:
        found = [state]
        for r in range(replicas):
            for s in list(found):
                found += [
                    (*s[:t], s[t] - 1, *s[t + 1 : kinds + r], t + 1, *s[kinds + r + 1 :])
                    for t in range(kinds)
                    if s[t] and not state[kinds + r]
                ]
        return found

    slots = {state: events(state) for state in states}
    actions = {state: reached(state) for state in states}
    values = dict.fromkeys(states, 0.0)
    for _ in range(rounds):
        ahead = {
            s: sum(chance * (paid + values[after]) for (after, paid), chance in slots[s].items())
            for s in states
        }
        new = {s: min(ahead[a] for a in actions[s]) for s in states}
        change = [new[s] - values[s] for s in states]
        values = {s: new[s] - new[states[0]] for s in states}
    assert max(change) - min(change) < 1e-9
    return float(np.mean(change))


def test_every_event_of_a_slot() -> None:
    """Two kinds, two replicas; users lose patience, give up, and come back."""
    problem = SmallProblem(
        np.array([0.3, 0.2]),
        np.array([[0.6, 0.5], [0.3, 0.9]]),
        np.array([[0.7, 0.2], [0.5, 0.6]]),
        np.array([0.1, 0.25]),
        give_up=0.3,
        holding=0.7,
        kept=2.0,
        lost=1.5,
    )
    found, policy = Chain(problem, 2).solve()
    assert found == pytest.approx(second_version(problem, 2, 250), abs=1e-8)
    assert Chain(problem, 2).evaluate(policy)[0] == pytest.approx(found, abs=1e-12)


# --- the optimum as a policy, bounds, errors ------------------------------------------------------


def test_the_optimum_reserves_the_strong_llm() -> None:
    best = Optimum(instance("tiny-pair"), 20)
    easy, hard, nobody = 0, 1, -1
    waiting = np.full(32, nobody)

    def pairs(queue: list[int], *serving: int) -> set[tuple[int, int]]:
        seen = waiting.copy()
        seen[: len(queue)] = queue
        action = best.action(seen, np.array(serving))
        assert action[4:].tolist() == [0, 1]  # the fleet stays
        return {(slot, r) for slot, r in action[:4].reshape(2, 2).tolist() if slot < 32}

    assert pairs([], nobody, nobody) == set()
    assert pairs([easy] * 4, easy, nobody) == set()  # idle beside four who wait
    assert pairs([easy, hard], nobody, nobody) == {(0, 0), (1, 1)}
    assert pairs([hard, easy], nobody, hard) == {(1, 0)}


def test_no_rule_beats_the_bound() -> None:
    for preset in ("tiny-pair", "slow-server"):
        task = instance(preset)
        assert Optimum(task, 20).cost >= -bound(task) > 0.0
    worth = Rewards(kept=1.0, lost=2.0)
    pair = replace(instance("tiny-pair"), rewards=worth, give_up=0.25, impatience=np.full(2, 0.01))
    best, limit = Optimum(pair, 12), bound(pair)
    assert -best.cost <= limit <= pair.arrival_rate
    assert limit < -best.cost + 0.05


def test_the_bound_in_closed_form() -> None:
    """One LLM and one kind: answers are worth lambda, and no more than a server can give."""
    alone = {
        "replicas": [{"hosts": "llm", "finish": 0.5}],
        "queries": [{"name": "q", "keep": [0.8]}],
    }
    for rate, expected in ((0.3, 0.3), (0.9, 0.4)):
        task = instance("slow-server", **alone, arrival_rate=rate, rewards={"kept": 1.0})
        assert bound(task) == pytest.approx(expected)
        assert task.load == pytest.approx(rate / 0.4)
    held = instance("slow-server", **alone, arrival_rate=0.3, rewards={"holding": 1.0})
    assert -bound(held) == pytest.approx(0.3 / 0.8 / 0.5)  # attempts, slots of each


def test_priced_replicas_work_only_where_it_pays() -> None:
    base = instance("autoscale")
    free = replace(base, rewards=base.rewards._replace(price=0.0))
    dear = replace(base, rewards=base.rewards._replace(price=1e6))
    assert bound(free) > bound(base) > bound(dear)


def test_what_is_no_small_problem() -> None:
    pair = instance("tiny-pair")
    for change, words in (
        ({"places": np.array([1, 2])}, "several places"),
        ({"return_rate": 0.5}, "users who think"),
        ({"update_every": 10}, "a fleet that changes"),
        ({"dispatches": 1}, "fewer dispatches"),
        ({"lengths": np.ones(3)}, "lengths with memory"),
        ({"rewards": Rewards(holding=1.0, late=1.0, sla=5)}, "late"),
    ):
        with pytest.raises(UsageError, match=words):
            Optimum(replace(pair, **change))
    with pytest.raises(UsageError, match="cap=100: 2 kinds of query and 2 replicas make 91,809"):
        Chain(small_problem(pair)[0], 100)


# --- the environment ------------------------------------------------------------------------------


def test_the_environment_costs_what_the_chain_says() -> None:
    """The optimum, played: no rounding or order of events apart between kernel and matrix."""
    env = gym.make("llmqueue_gym:LLMServe-v0", preset="tiny-pair", load=0.6)
    env.reset(seed=0)
    dynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
    best, costs = Optimum(dynamics.instances[0], 25), np.zeros(12_000)
    for slot in range(costs.size):
        state = dynamics.state
        busy = state.replicas[0, :, ACTIVE] > 0
        serving = np.where(busy, state.queries[0, state.served[0, :, 0], ROW], -1)
        action = best.action(dynamics.window_queries[0], serving)
        _, reward, _, _, info = env.step(action)
        assert info["illegal"] == 0
        costs[slot] = -float(reward)
    batches = costs.reshape(20, -1).mean(axis=1)
    error = batches.std(ddof=1) / np.sqrt(len(batches))
    assert abs(costs.mean() - best.cost) < 3.5 * error
    assert error < 0.1 * best.cost
