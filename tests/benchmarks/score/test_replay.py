"""Agents of deployment tasks on a log, budgets, and policies compared on the same requests."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from benchmarks.score.intervals import Interval
from benchmarks.score.logged import evaluate, judge_policy, lead, prepare, under_budget
from benchmarks.score.replay import play_paced
from llmqueue_gym.workloads.sources.log_file import Log

PRICES = np.array([0.001, 0.003, 0.01])


def simulate(n, seed=0, logged=True):
    """A log of three LLMs that are better the dearer they are, and the true keep rates (n, 3)."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=n), np.ones(n)]).astype(np.float32)
    rates = expit(x @ np.array([[0.8, -1.0], [0.0, 0.2], [-0.4, 1.2]]).T)
    chances = np.tile([0.5, 0.3, 0.2], (n, 1))
    llm = rng.choice(3, n, p=chances[0])
    rows = np.arange(n)
    reward = (rng.random(n) < rates[rows, llm]).astype(float)
    cost = PRICES[llm] * rng.uniform(0.8, 1.2, n)
    propensity = chances[rows, llm] if logged else None
    return Log("simulated", None, x, ("a", "b", "c"), llm, reward, cost, None, propensity), rates


@pytest.fixture(scope="module")
def data():
    log, _ = simulate(800)
    return prepare(log, log.contexts())


@pytest.fixture(scope="module")
def even(data):
    return judge_policy(data, np.full((len(data.judge), 3), 1 / 3), "even")


def test_intervals_cover_what_a_paced_agent_earns_and_spends():
    hits, runs = np.zeros(3), 8
    for seed in range(runs):
        log, rates = simulate(400, seed)
        name = ("ParetoBandit", "price-aware-paced")[seed % 2]  # the first reads contexts
        found = evaluate(prepare(log, log.contexts()), name, seed=seed, draws=2, budget=0.004)
        truth = float((found.policy * rates[200:]).sum(axis=1).mean())
        mine = float(rates[np.arange(200, 400), log.llm[200:]].mean())
        told = found.estimates["doubly robust"], found.usd, found.gain
        values = truth, float((found.policy @ PRICES).mean()), truth - mine
        hits += [one.low <= value <= one.high for one, value in zip(told, values, strict=True)]
    assert hits.min() >= 5  # of 8 at 95%: fewer less than once in 2,500


def test_a_paced_agent_keeps_its_budget_and_earns_more_with_more(data):
    found = [evaluate(data, "StageRoute-paced", draws=2, budget=b) for b in (0.002, 0.008)]
    for row, budget in zip(found, (0.002, 0.008), strict=True):
        kept, earned = under_budget(row, budget)
        assert kept
        assert earned == row.estimates["doubly robust"]
    assert found[0].estimates["doubly robust"].high < found[1].estimates["doubly robust"].low


def test_choices_on_the_judged_part_never_depend_on_what_came_of_it():
    log, _ = simulate(400)
    other = replace(log, reward=log.reward.copy(), cost=log.cost.copy())
    other.reward[200:] = 1.0 - log.reward[200:]
    other.cost[200:] *= 3.0
    first, again = (
        play_paced(prepare(each, each.contexts()), "TS", 0.004, seed=3, draws=2)
        for each in (log, other)
    )
    assert np.array_equal(first[0], again[0])
    assert 0 < first[1] == again[1] < 200  # told what the log says where it agreed


def test_an_llm_the_log_cannot_tell_of_is_never_there():
    log, _ = simulate(400)
    log.llm[200:][log.llm[200:] == 2] = 1
    found = evaluate(prepare(log, log.contexts()), "TS", draws=2, budget=0.02)
    assert not found.policy[:, 2].any()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (None, "--budget"),
        (0.0, "budget"),
        (float("nan"), "budget"),
        (0.0005, r"cheapest LLM costs, a at 0\.00\d+ USD"),
    ],
)
def test_wrong_budgets_are_refused(data, budget, message):
    with pytest.raises(ValueError, match=message):
        evaluate(data, "TS", budget=budget)


def test_a_budget_needs_costs():
    log, _ = simulate(100)
    free = replace(log, cost=None)
    with pytest.raises(ValueError, match="has none"):
        evaluate(prepare(free, free.contexts()), "TS", budget=1.0)


@given(st.floats(0.0, 1.0), st.floats(1e-5, 1.0), st.floats(1e-5, 1.0), st.floats(0.0, 0.5))
def test_what_is_earned_within_a_budget_is_never_more(even, value, spent, budget, half):
    estimates = {**even.estimates, "doubly robust": Interval(value, value - half, value + half)}
    usd = Interval(spent, spent - half, spent + half)
    kept, earned = under_budget(even._replace(estimates=estimates, usd=usd), budget)
    assert 0.0 <= earned.value <= value
    assert (earned.value == value) == (spent <= budget or value == 0.0)
    assert kept is not (spent > budget)  # never said of what the estimate itself contradicts


@pytest.mark.parametrize("logged", [True, False])
def test_a_lead_is_antisymmetric_and_over_the_log_it_is_the_gain(logged):
    log, _ = simulate(600, 1, logged)
    data = prepare(log, log.contexts())
    policies = np.random.default_rng(0).dirichlet(np.ones(3), (2, 300))
    first, second = policies
    over, under = lead(data, first, second), lead(data, second, first)
    assert over.value == pytest.approx(-under.value)
    assert over.high == pytest.approx(-under.low)
    assert lead(data, first, first) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert lead(data, first) == pytest.approx(judge_policy(data, first, "first").gain)
    wide = lead(data, first, second, 0.999)
    assert wide.low < over.low < over.high < wide.high


def test_the_command_takes_deployment_agents_and_a_budget(tmp_path, bench, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    log, _ = simulate(300)
    path = tmp_path / "log.jsonl"
    with path.open("w") as file:
        for row in range(len(log)):
            request = {
                "embedding": log.vectors[row].tolist(),
                "llm": log.llms[log.llm[row]],
                "kept": int(log.reward[row]),
                "cost": log.cost[row],
                "propensity": log.propensity[row],
            }
            file.write(json.dumps(request) + "\n")
    asked = ("logs", "evaluate", path, "--agent", "TS", "--each-llm", "--draws", "1")
    assert bench(*asked) == 2
    assert "--budget" in capsys.readouterr().err
    assert bench(*asked, "--budget", "0.004", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budget"] == 0.004
    told = {row["agent"]: row for row in found["agents"]}
    assert told["always c"]["within_budget"] is False
    value, *_ = told["always c"]["doubly robust"]
    assert told["always c"]["earned_within_budget"][0] == pytest.approx(0.4 * value, rel=0.1)
    assert told["always a"]["within_budget"] is True
    assert bench(*asked, "--budget", "0.004") == 0
    assert "within 0.004 USD" in capsys.readouterr().out
