"""One cell: Little's law, coupling, the regret's definition, and what agents may not do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.plan import make_plan
from benchmarks.queueing import Trace, luck, queue_metrics, queue_sums
from benchmarks.runner import (
    InvalidActionError,
    agent_seed,
    checked_action,
    curve_steps,
    learning_curve,
    run_cell,
)
from benchmarks.scoring import LUCK_LIMIT
from benchmarks.suite import parse_suite

SUITE = {
    "seeds": 2,
    "agents": ["greedy", "Q-UCB"],
    "task": [
        {
            "name": "tiny",
            "env": "LLMQueue-v0",
            "horizon": 400,
            "kwargs": {"load": 0.8, "assortment_size": 1},
        }
    ],
}
CELLS = {
    (cell.spec["agent"]["label"], cell.spec["seed"]): cell
    for cell in make_plan(parse_suite("s", SUITE)).cells
}


def play(label, seed=0):
    cell = CELLS[label, seed]
    return run_cell(cell.spec, cell.kwargs)


def trace(queue, best, rate, departed, retried, sojourn):
    arrays = [np.asarray(a) for a in (queue, best, rate, departed, retried, sojourn)]
    return Trace(*arrays, arrived=np.zeros(len(queue), dtype=bool))


def test_metrics_in_closed_form():
    metrics = queue_metrics(
        trace(
            queue=[0, 1, 2, 1, 4],
            best=[0.0, 0.9, 0.9, 0.8, 0.8],
            rate=[0.0, 0.5, 0.9, 0.0, 0.8],
            departed=[False, True, False, False, True],
            retried=[False, False, True, False, False],
            sojourn=[0, 1, 0, 0, 3],
        )
    )
    assert metrics["mean_queue"] == 1.6
    assert metrics["tail_queue"] == 4.0
    assert metrics["routing_regret"] == pytest.approx(0.4 + 0.8)
    assert metrics["mean_sojourn"] == 2.0
    assert metrics["retrials_per_departed"] == 0.5
    variance = 0.25 + 0.09 + 0.16
    assert metrics["luck"] == pytest.approx((2 - 2.2) / (variance + 0.2 / 3) ** 0.5)


@pytest.mark.parametrize("horizon", [1, 100, 1000, 100_000])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.05, 0.5, 0.9, 0.9999, 1 - 1e-6])
def test_luck_of_independent_outcomes_keeps_its_bound_however_sure_they_are(rate, horizon):
    """The exact binomial tail; (departed - mean) / sd is beyond 6 in 0.5% of some of these."""
    counts = np.arange(horizon + 1)
    deviation = counts - horizon * rate
    values = deviation / np.sqrt(horizon * rate * (1 - rate) + np.abs(deviation) / 3)
    for count in {0, int(horizon * rate), horizon}:
        found = luck(count, np.full(horizon, rate))
        assert found == pytest.approx(values[count], rel=1e-6, abs=1e-6)
    for limit in (2.0, 4.0, 6.0, LUCK_LIMIT):
        beyond = stats.binom.pmf(counts[np.abs(values) > limit], horizon, rate).sum()
        assert beyond <= 2 * np.exp(-(limit**2) / 2)
    assert 2 * np.exp(-(LUCK_LIMIT**2) / 2) < 1e-8


def test_the_limit_of_luck_holds_for_variances_that_a_policy_chooses():
    """The union over intervals of V that `LUCK_LIMIT` names, at its best ratio."""
    ratio, square = 1.04, LUCK_LIMIT**2
    intervals = np.ceil(np.log(250_000) / np.log(ratio))
    small = np.exp(-((square / 3) ** 2) / (2 * (1 + square / 9)))
    assert 2 * (intervals * np.exp(-square / (2 * ratio)) + small) < 1e-8


def test_outcomes_that_cannot_be_are_luck_without_bound():
    assert luck(0, np.zeros(50)) == luck(50, np.ones(50)) == 0.0
    assert luck(50, np.zeros(50)) == pytest.approx(150**0.5)
    assert luck(0, np.ones(50)) == pytest.approx(-(150**0.5))


def test_a_run_without_departures_has_no_waiting_time():
    no = [False] * 2
    metrics = queue_metrics(trace([1, 2], [0.5, 0.5], [0.5, 0.5], no, [True] * 2, [0, 0]))
    assert metrics["wait_p95"] is None
    assert metrics["retrials_per_departed"] is None


@pytest.mark.parametrize("label", ["oracle", "random", "greedy"])
def test_littles_law(label):
    """Sum of Q_t = slots spent by the departed + slots spent so far by those still waiting."""
    metrics = play(label)["metrics"]
    total = metrics["mean_queue"] * 400
    departed = metrics["mean_sojourn"] * metrics["departures"]
    assert departed <= total
    if label == "oracle":  # few are left at the end
        assert departed == pytest.approx(total, rel=0.05)


def test_a_cell_is_a_function_of_its_seed():
    first, second, other = play("greedy"), play("greedy"), play("greedy", 1)
    assert (first["metrics"], first["curve"]) == (second["metrics"], second["curve"])
    assert first["metrics"] != other["metrics"]


def test_policies_of_one_seed_meet_one_instance():
    runs = [play(label)["metrics"] for label in ("oracle", "random", "greedy", "Q-UCB")]
    assert len({(run["capacity"], run["arrival_rate"]) for run in runs}) == 1
    assert runs[0]["capacity"] != play("oracle", 1)["metrics"]["capacity"]


def test_the_oracle_has_no_routing_regret_and_random_has():
    assert play("oracle")["metrics"]["routing_regret"] == 0.0
    assert play("random")["metrics"]["routing_regret"] > 10.0


def test_the_curve_ends_at_the_horizon_with_the_totals():
    result = play("random")
    curve, metrics = result["curve"], result["metrics"]
    assert curve["t"][0] == 1
    assert curve["t"][-1] == 400
    assert curve["queue"][-1] == pytest.approx(metrics["mean_queue"] * 400)
    assert curve["regret"][-1] == pytest.approx(metrics["routing_regret"])


@given(st.integers(1, 100_000))
def test_curve_steps_are_increasing_and_complete(horizon):
    slots = curve_steps(horizon)
    assert slots[0] == 1
    assert slots[-1] == horizon
    assert (np.diff(slots) > 0).all()
    assert slots.size <= 200


def test_curve_of_a_constant_queue_is_linear():
    zeros = np.zeros(1000)
    flags = zeros.astype(bool)
    curve = learning_curve(queue_sums(trace(np.full(1000, 3), zeros, zeros, flags, flags, zeros)))
    assert curve["queue"] == [3 * t for t in curve["t"]]


def test_agent_seed_differs_from_the_environments():
    assert len({agent_seed(seed) for seed in range(100)} | set(range(100))) == 200


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        3,
        [0],
        [0, 1, 2],
        [0.0, 1.0],
        [0, -1],
        [32, 0],
        [0, 5],
        "ab",
        [[0], [0, 1]],
        [True, 0.5],
    ],
)
def test_actions_outside_the_space_are_refused_with_agent_step_and_value(garbage):
    with pytest.raises(InvalidActionError) as caught:
        checked_action(garbage, np.array([32, 5]), "my-agent", 17)
    message = str(caught.value)
    assert "'my-agent'" in message
    assert "step 17" in message
    assert repr(garbage) in message


def test_a_valid_action_is_copied():
    action = np.array([3, 4])
    checked = checked_action(action, np.array([32, 5]), "a", 0)
    action[:] = 0
    assert checked.tolist() == [3, 4]


def test_an_agent_that_scribbles_on_its_observation_changes_nothing_but_itself(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scribbler.py").write_text(
        "from baselines.queueing.heuristics import Scheduled\n"
        "class Scribbler(Scheduled):\n"
        "    def act(self, observation):\n"
        "        action = super().act(observation)\n"
        "        for array in observation.values():\n"
        "            if getattr(array, 'ndim', 0): array[...] = 7\n"
        "        return action\n"
        "    def update(self, observation, action, reward, following, info):\n"
        "        info.clear()\n"
    )
    document = {**SUITE, "seeds": 1, "agents": []}
    plan = make_plan(parse_suite("s", document), agents=["scribbler:Scribbler"])
    [cell] = [c for c in plan.cells if ":" in c.spec["agent"]["name"]]
    metrics = run_cell(cell.spec, cell.kwargs)["metrics"]
    assert metrics["wait_p95"] < 400
    assert metrics["mean_sojourn"] * metrics["departures"] <= metrics["mean_queue"] * 400 + 1e-6
