"""Serving cells: what is scored, who is ranked, and what the truth is told to."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import polars as pl
import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import is_ranked, parse_suite
from benchmarks.problems.serving import play
from benchmarks.problems.serving.metrics import Trace, compared
from benchmarks.problems.serving.play import BrokenLawError, check_laws, fingerprint
from benchmarks.problems.serving.timeline import Timeline
from benchmarks.report.draw import styles_of, styles_on
from benchmarks.run.engines import Outcome, execute
from benchmarks.run.runner import provenance, run_cell, set_up
from benchmarks.run.store import Store
from benchmarks.score.export import export_run, open_results
from benchmarks.score.fairness import violations
from benchmarks.score.scoring import load_board
from llmqueue_gym.serving.dynamics import ARRIVALS, KEPT, QUEUED, SOJOURN

TASK = {
    "name": "pair",
    "env": "LLMServe-v0",
    "horizon": 1500,
    "kwargs": {"preset": "tiny-pair", "load": 0.7},
}
SUITE = {"seeds": 4, "agents": ["maxweight", "known-maxweight"], "task": [TASK]}


class Here:
    """Runs cells in this process."""

    def run(self, cells):
        for cell in cells:
            yield Outcome(cell, run_cell(cell.spec, cell.kwargs), failed=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    plan = make_plan(parse_suite("s", SUITE))
    store = Store(tmp_path_factory.mktemp("serving"))
    execute(plan, store, Here(), provenance("run"))
    return store


def test_the_optimum_scores_one_and_is_beaten_by_nobody(results):
    board = load_board(results)
    (task,) = board.tasks
    rows = {row.agent: row for row in task.rows}
    assert rows["oracle"].score.value == 1.0
    assert rows["random"].score.value == 0.0
    assert 0.3 < rows["maxweight"].score.value < 1.0
    assert not board.violations


def test_regret_is_what_control_and_what_learning_cost(results):
    board = load_board(results)
    (task,) = board.tasks
    titles = [column.title for column in task.columns]
    shown = {row.agent: dict(zip(titles, row.figures, strict=True)) for row in task.rows}
    mine, told = shown["maxweight"], shown["known-maxweight"]
    control, learning = mine["of it control"], mine["of it learning"]
    assert control == told["behind the oracle"]
    assert control.value + learning.value == pytest.approx(mine["behind the oracle"].value)
    rewards = {
        name: np.array([c["metrics"]["mean_reward"] for c in board.cells if _label(c) == name])
        for name in ("maxweight", "known-maxweight", "oracle")
    }
    gaps = rewards["known-maxweight"] - rewards["maxweight"]
    assert learning.value == pytest.approx(gaps.mean())
    gaps = rewards["oracle"] - rewards["known-maxweight"]
    assert control.value == pytest.approx(gaps.mean())
    assert told["of it control"] is told["of it learning"] is None


def _label(cell):
    return cell["spec"]["agent"]["label"]


def test_users_spend_their_time_where_the_counts_say(results, tmp_path):
    export_run(results, tmp_path / "s.json.gz")
    (task,) = load_board(results).tasks
    (again,) = load_board(open_results(tmp_path / "s.json.gz")).tasks
    for label, spent in task.spent.items():
        np.testing.assert_array_equal(spent.slots, again.spent[label].slots)
        assert (len(spent.groups), *spent.groups[5:]) == (7, "easy", "hard")
        everybody = spent.slots[:, 0]
        for part in (slice(1, 5), slice(5, 7)):
            parts = spent.slots[:, part].sum(axis=1)
            np.testing.assert_allclose(parts, everybody, rtol=1e-3, atol=1e-3)
        # Little's law: mean numbers are the rate of arrivals times the mean slots a user.
        fleet = again.fleets[label]
        assert fleet.seed == 0
        rate = 0.7 / 0.587 * 0.26
        numbers = [fleet.people[place].mean() for place in spent.places]
        np.testing.assert_allclose(numbers, rate * everybody[0], rtol=0.15, atol=0.02)
        # With one place each, who is served is the load of the two replicas.
        np.testing.assert_allclose(fleet.load.sum(axis=0), fleet.people["in service"], atol=0.02)
        assert (fleet.hosts == np.arange(2)[:, None]).all()


def test_panels_show_costs_and_what_is_paid_for_not_being_the_oracle(results):
    (task,) = load_board(results).tasks
    costs, behind = task.kind.panels(task)
    assert behind.lines.keys() == costs.lines.keys()
    assert not behind.lines["oracle"][1].any()
    t, mean = costs.lines["maxweight"]
    expected = (mean - costs.lines["oracle"][1]) * t
    np.testing.assert_allclose(behind.lines["maxweight"][1], expected, atol=1e-6)
    # Every agent has a colour where they are few, though yardsticks come last in the ranking.
    styles = styles_of([f"other {k}" for k in range(6)] + ["maxweight", "known-maxweight"])
    colours = {str(styles_on(task, styles)[label]["color"]) for label in costs.lines}
    assert len(colours) == 4


def test_who_is_better_than_the_oracle_is_seen(results):
    (task,) = load_board(results).tasks
    oracle = task.curves["oracle"]
    better = replace(oracle, sums=oracle.sums | {"cost": 0.9 * oracle.sums["cost"]})
    panel = task.kind.panels(replace(task, curves=task.curves | {"better": better}))[1]
    low, high = panel.y_range
    for label, (t, gaps) in panel.lines.items():
        means = gaps.mean(axis=0)[t >= panel.x_range[0]]
        assert low < means.min() <= means.max() < high, label
    assert panel.lines["better"][1].mean(axis=0)[-1] < 0.0
    assert panel.y_scale == "symlog"  # on a logarithmic one 0 and less have no place


def test_a_timeline_tells_what_replicas_host_load_and_leave():
    env = gym.make("LLMServe-v0", preset="autoscale", instance_seed=0, update_every=60, loading=60)
    env.reset(seed=0)
    dynamics = env.unwrapped.dynamics
    timeline = Timeline(dynamics.instances[0], 180)
    for t in range(180):
        targets = [[2, 2, 3, 3], [2, 2, 1, 3], [3, 2, 1, 3]][t // 60]
        env.step([32, 0] * 2 + targets)
        timeline.note(t, dynamics)
    fleet = timeline.fleet()
    assert fleet["llms"] == ["medium", "large"]
    assert len(fleet["edges"]) == 61
    loads, third = [-2] * 20, 20
    assert fleet["hosts"][0] == loads + [1] * third + [-1] * third
    assert fleet["hosts"][1] == loads + [1] * 2 * third
    assert fleet["hosts"][2] == [-1] * third + loads + [0] * third
    assert fleet["hosts"][3] == [-1] * 60


def test_a_yardstick_is_shown_and_not_ranked(results):
    (task,) = load_board(results).tasks
    ranks = {row.agent: row.rank for row in task.rows}
    assert ranks == {"oracle": None, "random": None, "known-maxweight": None, "maxweight": 1}
    assert is_ranked("maxweight")
    assert not is_ranked("known-maxweight")


@pytest.mark.parametrize(("name", "told"), [("maxweight", False), ("known-maxweight", True)])
def test_the_truth_is_told_to_yardsticks_alone(name, told):
    plan = make_plan(parse_suite("s", {**SUITE, "agents": [name]}))
    cell = next(cell for cell in plan.cells if cell.spec["agent"]["name"] == name)
    env, policy, _, _ = set_up(cell.spec, cell.kwargs)
    env.close()
    assert (policy.problem.truth is not None) == told


def test_settings_do_not_make_a_yardstick_of_an_agent():
    agents = [{"name": "maxweight", "label": "mine", "settings": {"known": True}}]
    cells = make_plan(parse_suite("s", {**SUITE, "agents": agents})).cells
    cell = next(cell for cell in cells if cell.spec["agent"]["label"] == "mine")
    with pytest.raises(ValueError, match="known=True"):
        set_up(cell.spec, cell.kwargs)


def test_costs_are_compared_by_their_logarithm_and_earnings_as_they_are():
    assert compared(-3.0, earns=False) == pytest.approx(np.log(4.0))
    assert compared(2.5, earns=True) == -2.5


def test_a_run_that_loses_somebody_breaks_a_law():
    trace = Trace.empty(3)
    trace.totals[:, ARRIVALS], trace.counts[:, QUEUED] = (1, 2, 2), (1, 2, 1)
    trace.totals[2, KEPT], trace.totals[2, SOJOURN] = 1, 2
    check_laws(trace)
    trace.totals[2, SOJOURN] = 9
    with pytest.raises(BrokenLawError, match="Little"):
        check_laws(trace)
    trace.totals[2, KEPT] = 0
    with pytest.raises(BrokenLawError, match="slot 3: 2 arrivals"):
        check_laws(trace)


@pytest.mark.parametrize("form", ["tokens", "log", "log with settings"])
def test_a_file_is_part_of_the_key_of_a_cell(tmp_path, form):
    path = tmp_path / "lengths.csv"
    path.write_text("tokens\n3\n5\n")
    kwargs = {
        "tokens": {"tokens": {"law": "trace", "path": str(path)}},
        "log": {"preset": "from-log", "log": str(path)},
        "log with settings": {"preset": "from-log", "log": {"path": str(path)}},
    }[form]
    before = fingerprint(kwargs)
    path.write_text("tokens\n3\n6\n")
    assert before != fingerprint(kwargs)
    assert fingerprint({"preset": "fleet"}) is None


@pytest.mark.parametrize(
    ("more", "exact"),
    [
        ({}, True),
        ({"window": 1}, False),
        ({"arrivals": {"process": "daily", "day": 200, "swing": 0.3}}, False),
    ],
)
def test_the_oracle_is_the_optimum_only_where_it_sees_who_waits_and_arrivals_forget(more, exact):
    """With a window of one it cost 5.02 a slot, where 2.74 are the least of who sees everybody."""
    env = gym.make("LLMServe-v0", preset="tiny-pair", load=0.7, **more)
    env.reset(seed=0)
    assert play.is_small(env) is exact
    assert (type(play.make_oracle(env)).__name__ == "_Exact") is exact
    assert play.Recorder(env, 10)._exact is exact


@pytest.mark.parametrize(("exact", "accused"), [(1.0, True), (0.0, False)])
def test_a_reference_may_be_beaten_and_an_optimum_may_not(results, exact, accused):
    kind = load_board(results).tasks[0].section.kind
    seeds = range(6)
    rows = {
        "task": ["t"] * 6,
        "agent": ["a"] * 6,
        "seed": list(seeds),
        "h": [1.0 + seed / 100 for seed in seeds],
        "h_oracle": [2.0] * 6,
        "h_bound": [0.0] * 6,
        "exact": [exact] * 6,
        "luck": [0.0] * 6,
        "luck_deviation": [0.0] * 6,
        "luck_variance": [1.0] * 6,
    }
    assert bool(violations(pl.DataFrame(rows), kind)) == accused
