"""Luck in sum over seeds and tasks, the luck of a table's rows, and the bound of all policies."""

from dataclasses import replace

import made_up
import numpy as np
import polars as pl
import pytest
from made_up import board_of, queue_cell

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.problems.deployment.board import KIND as DEPLOYMENT
from benchmarks.problems.luck import LUCK_LIMIT, Luck, left_out_residuals, outcome_luck, row_luck
from benchmarks.problems.queueing.board import KIND as QUEUEING
from benchmarks.report import board_markdown
from benchmarks.report.data import board_json
from benchmarks.report.page import page_data
from benchmarks.run.runner import run_cell
from benchmarks.score import fairness, scoring
from benchmarks.score.fairness import summed_luck, violations

TASKS, SLOTS = 8, 2_000


def table_of(lucks, kind=QUEUEING, **figures):
    """Cells as `benchmarks.score.scoring.tidy` lists them, from {agent: {(task, seed): Luck}}."""
    rows = [
        {
            "task": task,
            "agent": agent,
            "seed": seed,
            **dict.fromkeys(kind.metrics, 1.0),
            "h": 1.0,
            "h_oracle": 1.0,
            **luck.as_metrics(),
            **figures.get(agent, {}),
        }
        for agent, cells in lucks.items()
        for (task, seed), luck in cells.items()
    ]
    return pl.DataFrame(rows)


def played(rng, seeds, peeks):
    """Lucks of agents on `TASKS` tasks that share their outcome draws on a seed.

    A fair agent's success rates vary by slot; one that peeks looks at a share of the draws, and
    where that draw succeeds at the rate's upper end only, it chooses the better rate.
    """
    found = {agent: {} for agent in peeks}
    for seed in range(seeds):
        draws = rng.random(SLOTS)
        for task in range(TASKS):
            for agent, share in peeks.items():
                rate = 0.5 + 0.2 * rng.random(SLOTS)
                low, high = rate - 0.1, rate + 0.1
                chosen = np.where(rng.random(SLOTS) < 0.5, low, high)
                peeking = rng.random(SLOTS) < share
                # The better choice only where it makes the difference.
                chosen = np.where(
                    peeking, np.where((draws >= low) & (draws < high), high, low), chosen
                )
                total = np.count_nonzero(draws < chosen)
                found[agent][f"t{task}", seed] = outcome_luck(total, chosen)
    return found


def test_an_agent_that_peeks_seldom_is_caught_in_sum_and_no_run_of_it_alone():
    lucks = played(
        np.random.default_rng(0), 10, {"oracle": 0.0, "random": 0.0, "fair": 0.0, "peeks": 0.15}
    )
    figures = [abs(luck.figure) for luck in lucks["peeks"].values()]
    assert max(figures) < LUCK_LIMIT
    found = violations(table_of(lucks), QUEUEING)
    assert found
    assert all("peeks" in text for text in found)
    assert any("all tasks: peeks" in text for text in found)


def test_fair_agents_on_shared_draws_are_not_accused_though_their_tasks_are_correlated():
    """200 agents; a sum over tasks as if they were independent would accuse some of them."""
    rng = np.random.default_rng(1)
    naive = 0.0
    for _ in range(50):
        agents = dict.fromkeys(["oracle", "random", *(f"a{i}" for i in range(4))], 0.0)
        lucks = played(rng, 5, agents)
        assert violations(table_of(lucks), QUEUEING) == []
        for cells in lucks.values():
            values = [luck.figure for luck in cells.values()]
            naive = max(naive, abs(sum(values)) / len(values) ** 0.5)
    assert naive > 6.0


def test_the_luck_of_a_sum_is_that_of_one_run_for_tasks_that_are_copies():
    """Copies of a run on the same seed add nothing; independent seeds do."""
    once = Luck(30.0, 100.0)
    copies = table_of({"a": {(f"t{i}", 0): once for i in range(9)}})
    assert summed_luck(copies) == pytest.approx(once.figure)
    seeds = table_of({"a": {("t", i): once for i in range(9)}})
    assert summed_luck(seeds) == pytest.approx(Luck(270.0, 900.0).figure)


def test_runs_stored_without_the_parts_of_their_luck_have_no_sum():
    table = table_of({"a": {("t", 0): Luck(3.0, 10.0), ("t", 1): Luck(3.0, 10.0)}})
    old = table.with_columns(luck_variance=pl.lit(None, dtype=pl.Float64))
    assert summed_luck(old) is None
    assert violations(old, QUEUEING) == []


def test_an_oracle_that_sees_the_row_is_not_judged_and_an_agent_is():
    lucky = {("t", seed): Luck(90.0, 50.0) for seed in range(5)}
    fair = {("t", seed): Luck((-1.0) ** seed, 50.0) for seed in range(5)}
    references = {"oracle": lucky, "random": fair}
    assert violations(table_of(references, DEPLOYMENT), DEPLOYMENT) == []
    found = violations(table_of({**references, "a": lucky, "b": fair}, DEPLOYMENT), DEPLOYMENT)
    assert found
    assert all(": a (" in text for text in found)


@pytest.mark.parametrize(("ledger", "beyond"), [(0.51, False), (0.55, True)])
def test_nobody_passes_the_bound_of_all_policies_though_the_oracle_does_no_better(ledger, beyond):
    lucks = {name: {("t", s): Luck(0.0, 50.0) for s in range(5)} for name in ("oracle", "a")}
    cells = {"ledger_bound": 0.5, "ledger_overshoot": 0.02}
    figures = {name: {**cells, "h": -ledger, "h_oracle": -ledger} for name in lucks}
    found = violations(table_of(lucks, DEPLOYMENT, **figures), DEPLOYMENT)
    assert [("beyond the bound of all policies" in text) for text in found] == [True] * 2 * beyond


# --- tables ---------------------------------------------------------------------------------------


def drawn_table(rng, rows=600, dim=5, llms=3):
    """Contexts and qualities in [0, 1], partly linear in the context, partly unpredictable."""
    contexts = rng.normal(size=(rows, dim))
    signal = contexts @ rng.normal(0, 0.05, (dim, llms))
    return contexts, np.clip(0.5 + signal + rng.normal(0, 0.15, (rows, llms)), 0, 1)


def test_left_out_residuals_are_those_of_fits_without_the_row():
    contexts, quality = drawn_table(np.random.default_rng(0), rows=40)
    scaled = (contexts - contexts.mean(axis=0)) / contexts.std(axis=0)
    x = np.column_stack([np.ones(40), scaled])
    penalty = np.diag([1e-9] + [1.0] * 5)
    found = left_out_residuals(contexts, quality)
    for row in (0, 17, 39):
        rest = np.delete(np.arange(40), row)
        fit = np.linalg.solve(x[rest].T @ x[rest] + penalty, x[rest].T @ quality[rest])
        np.testing.assert_allclose(found[row], quality[row] - x[row] @ fit)


def learner(contexts, quality, rows):
    """Fitted anew, now and then, to all labels of the rows so far: more than an agent is told."""
    x = np.column_stack([np.ones(len(contexts)), contexts])
    chosen = np.zeros(len(rows), dtype=np.int64)
    for start in range(50, len(rows), 50):
        seen = np.unique(rows[:start])
        fit = np.linalg.solve(x[seen].T @ x[seen] + np.eye(x.shape[1]), x[seen].T @ quality[seen])
        now = slice(start, start + 50)
        chosen[now] = (x[rows[now]] @ fit).argmax(axis=1)
    return chosen


def test_on_a_table_fair_agents_have_ordinary_luck_and_one_that_knows_the_row_is_caught():
    figures = {"first": [], "any": [], "learner": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        contexts, quality = drawn_table(rng)
        rows = rng.integers(len(contexts), size=3_000)
        choices = {
            "first": np.zeros(len(rows), dtype=np.int64),
            "any": rng.integers(-1, 3, size=len(rows)),  # some not answered
            "learner": learner(contexts, quality, rows),
        }
        for name, llms in choices.items():
            figures[name].append(row_luck(contexts, quality, rows, llms).figure)
        knowing = row_luck(contexts, quality, rows, quality[rows].argmax(axis=1))
        assert knowing.figure > LUCK_LIMIT
    for values in figures.values():
        assert abs(np.mean(values)) < 4 / len(values) ** 0.5
        assert np.max(np.abs(values)) < 4.0


def test_what_an_agent_was_told_of_a_context_is_no_luck():
    """From the second query of a context on, an agent may know every answer."""
    rng = np.random.default_rng(5)
    contexts, quality = drawn_table(rng, rows=100)
    contexts = np.repeat(contexts, 2, axis=0)  # two rows a context
    quality = np.repeat(quality, 2, axis=0)
    rows = np.concatenate([rng.permutation(200), rng.integers(200, size=2_000)])
    known: set[int] = set()
    llms = np.zeros(len(rows), dtype=np.int64)
    for query, row in enumerate(rows.tolist()):
        if row // 2 in known:
            llms[query] = quality[row].argmax()
        known.add(row // 2)
    blind = row_luck(contexts, quality, rows, np.zeros(len(rows), dtype=np.int64))
    assert row_luck(contexts, quality, rows, llms) == blind


def test_choices_that_ignore_the_context_have_luck_of_mean_0_and_the_stated_spread():
    """Over the order of the rows, for one table: the deviation is a martingale."""
    rng = np.random.default_rng(9)
    contexts, quality = drawn_table(rng, rows=200)
    found = [
        row_luck(contexts, quality, rng.permutation(200)[:100], np.ones(100, dtype=np.int64))
        for _ in range(2_000)
    ]
    deviations = np.array([luck.deviation for luck in found])
    assert abs(deviations.mean()) < 4 * deviations.std() / len(found) ** 0.5
    assert deviations.var() == pytest.approx(found[0].variance, rel=0.15)


# --- cells ----------------------------------------------------------------------------------------

REFERENCES = {"oracle": [1.0, 1.1, 0.9, 1.0, 1.2], "random": [90.0, 110.0, 100.0, 95.0, 105.0]}


def cells_of(queues):
    """Queueing cells from {agent: [mean queue a seed]}."""
    return made_up.cells_of(queue_cell, queues)


def tidy(cells):
    return scoring.tidy(cells, QUEUEING)


def violations_of(table):
    return violations(table, QUEUEING)


def test_one_lucky_seed_does_not_beat_the_oracle():
    lucky = {**REFERENCES, "a": [0.2, 1.2, 1.0, 1.1, 1.3]}
    assert violations_of(tidy(cells_of(lucky))) == []


def test_beating_the_oracle_on_every_seed_is_named_with_its_interval():
    found = violations_of(tidy(cells_of({**REFERENCES, "a": [0.5, 0.55, 0.45, 0.5, 0.6]})))
    assert len(found) == 1
    assert "task t: a (5 seeds) beats the oracle" in found[0]
    assert "(95% interval)" in found[0]
    assert "[-" in found[0]


def test_a_policy_as_good_as_the_oracle_is_seldom_accused():
    """With 100 comparisons of policies that tie, a run fails in at most about 5% of the cases."""
    rng = np.random.default_rng(0)
    accused = 0
    for _ in range(20):
        queues = {"oracle": rng.gamma(4.0, 0.5, 5), "random": np.full(5, 50.0)}
        queues |= {f"a{i}": rng.gamma(4.0, 0.5, 5) for i in range(20)}
        accused += bool(violations_of(tidy(cells_of(queues))))
    assert accused <= 3


@pytest.mark.parametrize("luck", [7.5, -7.5])
def test_departures_that_the_truth_does_not_explain_are_named(luck):
    cells = cells_of(REFERENCES)
    cells.append(queue_cell("a", 0, 5.0, luck=luck))
    [text] = violations_of(tidy(cells))
    assert "a (seed 0)" in text
    assert "outcome draws" in text


def cheater_module(kind):
    """An agent that finds the environment in memory; ``draws`` also reads the outcome stream."""
    return f'''
import copy, sys
import numpy as np

class Cheater:
    """Serves only queries that the coming draw lets go."""
    def __init__(self, problem, seed):
        frame = sys._getframe()
        while "env" not in frame.f_locals:  # up to the runner
            frame = frame.f_back
        self.dynamics = frame.f_locals["env"].unwrapped.dynamics
        self.problem = problem
    def act(self, observation):
        waiting = int(min(self.dynamics.queue_length[0], self.problem.window))
        if {kind == "draws"}:
            for slot in range(waiting):
                for llm in range(self.problem.num_llms):
                    future = copy.deepcopy(self.dynamics)
                    if future.step(np.array([[slot, llm]])).departed[0]:
                        return np.array([slot, llm])
            return np.array([self.problem.window - 1, 0])
        slots, llms = self.dynamics.best_actions()
        return np.array([slots[0], *llms[0]])
    def update(self, *step):
        pass
'''


SUITE = {
    "seeds": 5,
    "agents": [],
    "task": [
        {
            "name": "cheat",
            "env": "LLMQueue-v0",
            "horizon": 150,
            "kwargs": {
                "load": 0.9,
                "assortment_size": 1,
                "workload": {"source": "synthetic", "num_llms": 3, "pool_size": 64},
            },
        }
    ],
}


@pytest.mark.parametrize("kind", ["draws", "rates"])
def test_a_cheater_that_knows_the_draws_fails_and_one_that_equals_the_oracle_does_not(
    kind, tmp_path, monkeypatch
):
    name = f"cheater_{kind}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(cheater_module(kind))
    plan = make_plan(parse_suite("s", SUITE), agents=[f"{name}:Cheater"])
    records = [{**run_cell(c.spec, c.kwargs), "spec": c.spec} for c in plan.cells]
    found = violations_of(tidy(records))
    if kind == "draws":
        assert any("beats the oracle" in text and "task cheat" in text for text in found)
        assert any("outcome draws" in text for text in found)
    else:
        assert found == []


def test_the_level_is_corrected_for_the_number_of_comparisons(monkeypatch):
    levels = []
    original = fairness.t_interval

    def spy(values, level=fairness.LEVEL):
        levels.append(level)
        return original(values, level)

    monkeypatch.setattr(fairness, "t_interval", spy)
    violations_of(tidy(cells_of({**REFERENCES, "a": [2.0] * 5, "b": [3.0] * 5})))
    assert set(levels) == {0.95, 0.975, 1 - fairness.FALSE_ALARM / 2}
    assert levels.count(0.975) == levels.count(1 - fairness.FALSE_ALARM / 2) == 2


def test_above_the_oracle_at_95_percent_only_is_a_warning_and_fails_nothing():
    """The same agent alone is a violation; among 300 comparisons it is no more than a warning."""
    better = cells_of({**REFERENCES, "a": [0.8, 0.95, 0.5, 0.85, 0.9]})
    alone = tidy(better)
    assert [len(violations_of(alone)), fairness.warnings(alone, QUEUEING)] == [1, []]
    others = {f"x{i}": [2.0, 2.2, 1.9, 2.0, 2.1] for i in range(299)}
    many = tidy(better + cells_of(others))
    assert violations_of(many) == []
    [text] = fairness.warnings(many, QUEUEING)
    assert "task t: a (5 seeds) is above the oracle" in text
    assert "(95% interval)" in text
    assert "not at the 99.983%" in text
    board = replace(board_of(better), warnings=[text])
    assert text in board_markdown(board).replace("\\", "")
    assert board_json(board)["warnings"] == page_data(board)["warnings"] == [text]


@pytest.mark.parametrize(("count", "text"), [(1, "95%"), (2, "97.5%"), (300, "99.983%")])
def test_a_level_is_never_printed_as_certainty(count, text):
    assert fairness._percent(1 - 0.05 / count) == text
