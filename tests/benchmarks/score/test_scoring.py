"""Scores, ranks, what stands in which table; rule 8 both ways."""

import json
import re

import made_up
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ORIGIN, board_of, queue_cell
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.problems.queueing.board import KIND as QUEUEING
from benchmarks.report import board_markdown, board_summary, board_tables, draw_figure
from benchmarks.report.data import board_json
from benchmarks.report.figure import main_picture
from benchmarks.report.page import page_data
from benchmarks.score import scoring, task_board
from benchmarks.score.intervals import (
    separated_pair,
    t_interval,
)
from benchmarks.score.standing import PROFILE_THRESHOLDS


def cells_of(queues, **spec):
    """Queueing cells from {agent: [mean queue a seed]}."""
    return made_up.cells_of(queue_cell, queues, **spec)


def tidy(cells):
    return scoring.tidy(cells, QUEUEING)


# --- the score ------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.floats(0.1, 5.0),
    st.floats(10.0, 5000.0),
    st.floats(0.0, 1.0),
)
def test_score_is_0_for_random_1_for_the_oracle_and_linear_in_h(oracle, random, share):
    h = share * np.log1p(oracle) + (1 - share) * np.log1p(random)
    queues = {"oracle": [oracle], "random": [random], "a": [float(np.expm1(h))]}
    table = tidy(cells_of(queues))
    scores = dict(zip(table["agent"], table["score"], strict=True))
    assert scores["oracle"] == 1.0
    assert scores["random"] == 0.0
    assert scores["a"] == pytest.approx(share, abs=1e-9)


def test_no_score_without_references_or_where_they_tie():
    tie = tidy(cells_of({"oracle": [2.0], "random": [2.0], "a": [3.0]}))
    alone = tidy(cells_of({"random": [2.0], "a": [3.0]}))
    assert tie["score"].null_count() == 3
    assert alone["score"].null_count() == 2


# --- ranks and tasks that separate nothing --------------------------------------------------------

REFERENCES = {"oracle": [1.0, 1.1, 0.9, 1.0, 1.2], "random": [90.0, 110.0, 100.0, 95.0, 105.0]}


def test_ranks_are_shared_where_the_paired_interval_covers_0():
    board = board_of(
        cells_of(
            {
                **REFERENCES,
                "good": [2.0, 2.2, 1.8, 2.0, 2.3],
                "twin": [2.1, 2.1, 1.9, 1.9, 2.3],
                "poor": [30.0, 33.0, 28.0, 31.0, 35.0],
            }
        )
    )
    ranks = {row.agent: row.rank for row in board.tasks[0].rows}
    assert ranks == {"oracle": None, "good": 1, "twin": 1, "poor": 3, "random": None}
    assert {row.agent: row.rank for row in board.overall} == ranks
    assert board.tasks[0].separates


def test_a_task_on_which_no_pair_is_separated_is_left_out_of_the_headline_and_ranks_nobody():
    """An interval that is not corrected for the number of pairs would rank c behind a."""
    a = [2.0, 2.5, 1.5, 2.1, 1.8]
    queues = {"a": a, "b": [2.1, 2.4, 1.6, 2.0, 1.9], "c": [q + 0.1 + 0.4 * (q > 2) for q in a]}
    easy = cells_of({**REFERENCES, **queues}, task="easy")
    table = tidy(easy)
    score = {name: table.filter(pl.col("agent") == name)["score"].to_numpy() for name in "ac"}
    assert t_interval(score["a"] - score["c"]).low > 0
    hard = cells_of({**REFERENCES, "a": [2.0] * 5, "b": [40.0] * 5}, task="hard")
    board = board_of(easy + hard)
    assert {t.task["name"]: t.separates for t in board.tasks} == {"easy": False, "hard": True}
    assert {row.agent: row.cells for row in board.overall}["a"] == 5
    assert {row.rank for row in board.tasks[0].rows if row.agent in queues} == {1}


def scores_of(cells):
    """Scores of the overall table by agent."""
    return {row.agent: row for row in board_of(cells).overall}


def exact(score):
    """Mean queues of four seeds with this score, between an oracle at 0 and random at 99."""
    return [float(np.expm1((1 - score) * np.log(100)))] * 4


def families_of(scores):
    """Cells of agents ``a`` (scores by task) and ``b`` (0.1 throughout); ``real-`` has the tag."""
    ends = {"oracle": exact(1.0), "random": exact(0.0), "b": exact(0.1)}
    return [
        made
        for task, score in scores.items()
        for made in cells_of(
            {**ends, "a": exact(score)},
            task=task,
            tags=("real-data",) if task.startswith("real") else ("synthetic",),
        )
    ]


def test_families_of_unequal_size_weigh_the_same():
    """Three synthetic tasks and one with real queries, exact scores: closed forms."""
    scores = {"s1": 0.9, "s2": 0.6, "s3": 0.3, "real1": 0.2}
    board = board_of(families_of(scores))
    row = {row.agent: row for row in board.overall}["a"]
    assert row.score == pytest.approx((0.4,) * 3)
    assert row.families == {
        "synthetic": pytest.approx((0.6,) * 3),
        "real": pytest.approx((0.2,) * 3),
    }
    assert row.iqm == pytest.approx((0.45, 0.45, 0.45))
    [standing] = board.standings
    assert standing.families == ("synthetic", "real")
    assert standing.comparisons[0].difference == pytest.approx((0.3,) * 3)
    assert "| rank | agent | score | synthetic | real | IQM | cells |" in board_markdown(board)
    shown = board_json(board)["overall"][0]
    assert [r["families"]["real"]["value"] for r in shown["rows"] if r["agent"] == "a"] == [
        pytest.approx(0.2)
    ]
    [section] = page_data(board)["sections"]
    assert section["families"] == ["synthetic", "real"]
    area = standing.profiles["a"].share.mean()  # of scores between 0 and 1
    assert area == pytest.approx(0.4, abs=0.02)


def test_one_family_has_no_column_of_its_own():
    board = board_of(families_of({"s1": 0.9, "s2": 0.6}))
    assert "| rank | agent | score | IQM | cells |" in board_markdown(board)
    assert all(row.families == {} for row in board.overall)


@pytest.mark.parametrize("task", ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "real1"])
def test_no_task_can_be_dropped_from_the_headline(task):
    """Moving an agent by 0.08 on one task moves its score by that times the task's weight."""
    scores = {f"s{i}": 0.12 * i + 0.05 for i in range(1, 8)} | {"real1": 0.99}
    before = scores_of(families_of(scores))["a"]
    after = scores_of(families_of(scores | {task: scores[task] - 0.08}))["a"]
    weight = 1 / 2 if task == "real1" else 1 / 14
    assert before.score.value - after.score.value == pytest.approx(0.08 * weight)


def test_the_interquartile_mean_drops_the_hardest_task_and_the_headline_does_not():
    scores = {"s1": 0.2, "s2": 0.6, "s3": 0.6, "s4": 0.9}
    easy = scores_of(families_of(scores))["a"]
    lost = scores_of(families_of(scores | {"s1": -4.0}))["a"]
    assert lost.iqm == easy.iqm
    assert easy.score.value - lost.score.value == pytest.approx(4.2 / 4)


def test_agents_that_are_equally_good_are_seldom_separated():
    """However many agents: at most one task in twenty, beyond the noise of 200 tasks."""
    rng = np.random.default_rng(3)
    found = sum(
        separated_pair([dict(enumerate(rng.normal(size=5))) for _ in range(12)])[0]
        for _ in range(200)
    )
    assert found <= 20


def test_a_difference_that_pairing_shows_separates_though_the_marginal_intervals_overlap():
    luck = {seed: float(seed) for seed in range(6)}
    better = {seed: value + 0.1 + 0.001 * seed for seed, value in luck.items()}
    first, second = (t_interval([*scores.values()]) for scores in (better, luck))
    assert first.low < second.high
    assert separated_pair([luck, better]) == (True, None)


@pytest.mark.parametrize("effect", [0.02, 0.1, 0.5, 0.9])
def test_the_seeds_that_a_task_would_need_are_the_first_that_separate(effect):
    gaps = np.tile([effect - 1, effect + 1], 2)
    gaps = effect + (gaps - effect) / gaps.std(ddof=1)  # mean over sd is the effect
    separates, needed = separated_pair([dict(enumerate(gaps)), dict.fromkeys(range(4), 0.0)])
    assert not separates
    for seeds, enough in ((needed - 1, False), (needed, True)):
        half = stats.t.ppf(0.975, seeds - 1) / seeds**0.5
        assert (effect > half) == enough


def test_the_seeds_needed_are_unknown_without_a_difference_or_a_second_seed():
    assert separated_pair([{0: 1.0}, {0: 2.0}]) == (False, None)
    assert separated_pair([{0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}]) == (False, None)
    assert separated_pair([{0: 1.0}]) == (True, None)
    assert separated_pair([]) == (False, None)


@pytest.mark.parametrize(
    ("seeds", "words"), [(5, r"about [\d,]+ seeds in place of 5"), (1, "run two seeds or more")]
)
def test_a_section_that_separates_nothing_says_so_in_words_and_shows_no_empty_table(
    seeds, words, tmp_path
):
    queues = {**REFERENCES, "a": [2.0, 2.5, 1.5, 2.1, 1.8], "b": [2.1, 2.4, 1.6, 2.0, 1.95]}
    board = board_of(cells_of({agent: values[:seeds] for agent, values in queues.items()}))
    printed = [part for part in board_tables(board) if isinstance(part, str)]
    for text in (board_markdown(board), board_summary(board, []), *printed):
        assert "No task separates the agents" in text
        assert "a longer horizon" in text
        assert re.search(words, text)
    assert len(printed) == 1
    assert "| cells |" not in board_markdown(board)
    [section] = page_data(board)["sections"]
    assert "No task separates the agents" in section["nothing"]
    assert "It separates nothing" in section["tasks"][0]["tied"]
    draw_figure(board, tmp_path)


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_a_task_on_which_random_beats_the_oracle_once_is_left_out_and_unranks_nobody(
    share, tmp_path
):
    queues = {**REFERENCES, "a": [2.0] * 5, "b": [40.0] * 5}
    odd = {**queues, "random": [share * REFERENCES["oracle"][0], *REFERENCES["random"][1:]]}
    board = board_of(cells_of(queues, task="fair") + cells_of(odd, task="odd"))
    fair, task = board.tasks
    assert (fair.inverted, task.inverted, task.separates) == ((), (0,), False)
    assert all((row.score, row.rank) == (None, None) for row in task.rows)
    assert [row.agent for row in task.rows][-1] == "random"  # the mean h decides
    ranked = {row.agent: (row.rank, row.cells, row.expected) for row in board.overall}
    assert (ranked["a"], ranked["b"]) == ((1, 5, 5), (2, 5, 5))
    assert len(board.standings[0].comparisons) == 1
    for text in (board_markdown(board), board_summary(board, [])):
        assert "random does no worse than the oracle on some seed: odd (seed 0)." in text
        assert "no pair of agents is separated" not in text
        assert "not ranked" not in text
    assert board_json(board)["tasks"][1]["inverted_seeds"] == [0]
    assert board_json(board)["tasks"][1]["rows"][0]["score"] is None
    draw_figure(board, tmp_path)


def test_a_seed_without_the_oracle_inverts_nothing():
    board = board_of(
        [
            c
            for c in cells_of({**REFERENCES, "a": [2.0] * 5})
            if c["spec"]["seed"] or c["spec"]["agent"]["label"] != "oracle"
        ]
    )
    assert board.tasks[0].inverted == ()
    assert board.tasks[0].rows[0].seeds == 4


def test_comparisons_profiles_and_tags_of_a_board():
    """Two tasks, one tagged; agents whose scores are exact by construction."""
    queues = {"oracle": [0.0] * 4, "random": [99.0] * 4, "a": [3.0] * 4, "b": [9.0] * 4}
    board = board_of(
        cells_of(queues, task="t", tags=("all",))
        + cells_of({**queues, "b": [0.0] * 4}, task="u", tags=("all", "real"))
    )
    [standing] = board.standings
    a, b = 1 - np.log(4) / np.log(100), 1 - np.log(10) / np.log(100)
    assert (standing.tasks, list(standing.profiles)) == (("t", "u"), ["b", "a"])
    [pair] = standing.comparisons
    assert (pair.first, pair.second) == ("b", "a")
    np.testing.assert_allclose(pair.difference, (b + 1) / 2 - a)
    np.testing.assert_allclose(pair.improvement, 0.5)  # b wins one task, a the other
    np.testing.assert_allclose(standing.profiles["a"].share, a > PROFILE_THRESHOLDS)
    assert list(standing.tags) == ["real"]  # what all tasks have says nothing
    np.testing.assert_allclose(standing.tags["real"]["a"], a)
    np.testing.assert_allclose(standing.tags["real"]["b"], 1.0)


def test_a_readme_shows_the_tasks_of_a_small_section_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda self, stream, **_: None)
    queues = {**REFERENCES, "a": [2.0] * 5, "b": [40.0] * 5}
    for count in (4, 5):
        cells = [c for i in range(count) for c in cells_of(queues, task=f"t{i}", tags=())]
        board = board_of(cells)
        text = board_summary(board, [])
        assert text.count("| rank |") == (5 if count == 4 else 1)
        drawn = {picture.path.name for picture in draw_figure(board, tmp_path)}
        assert main_picture(board, board.sections[0])[0] in drawn


def test_an_overall_row_of_a_trained_agent_says_what_its_trainings_cost():
    """One training a task, whatever the number of seeds."""
    trained = []
    for task, steps in (("t", 1000), ("u", 3000)):
        trained += cells_of(REFERENCES, task=task) + cells_of({"plain": [9.0] * 5}, task=task)
        for c in cells_of({"a": [2.0] * 5, "b": [40.0] * 5}, task=task, protocol="pretrained"):
            training = {"steps": steps, "seconds": steps / 10}
            c["spec"]["agent"] = {**c["spec"]["agent"], "training": training}
            trained.append(c)
    board = board_of(trained)
    rows = {(row.section.protocol, row.agent): row for row in board.overall}
    assert rows["pretrained", "a"].train_steps == 4000
    assert rows["pretrained", "a"].train_seconds == 400
    for reference in ("oracle", "random"):
        assert rows["pretrained", reference].train_steps is None
    assert rows["online", "plain"].train_steps is None
    page = board_markdown(board)
    assert re.search(r"\| a \| .* \| 10/10 \| 4,000 \| 6 min 40 s \|", page)


def test_a_row_says_where_its_cells_come_from():
    cells = cells_of({**REFERENCES, "a": [2.0] * 5, "b": [40.0] * 5})
    late = {**ORIGIN, "commit": "0123456789ab+", "command": "llmqueue-bench run s --agent a"}
    cells = [{**c, "provenance": late} if c["spec"]["agent"]["label"] == "a" else c for c in cells]
    cells[-1] = {**cells[-1], "provenance": {**ORIGIN, "python": "3.12"}}
    board = board_of(cells)
    for rows in (board.overall, board.tasks[0].rows):
        origins = {row.agent: row.origin for row in rows}
        assert origins["a"].commits == ("0123456789ab+",)
        assert origins["a"].commands == ("llmqueue-bench run s --agent a",)
        assert origins["b"].pythons == ("3", "3.12")
        assert origins["b"].seeds == (0, 1, 2, 3, 4)
        assert origins["b"].wall_seconds == pytest.approx(2.5)
        assert len(set(origins["b"].keys)) == 5


def test_an_agent_with_missing_cells_is_listed_last_without_a_rank():
    cells = cells_of({**REFERENCES, "a": [2.0] * 5, "b": [40.0] * 5, "c": [1.5] * 5})
    lost = cells.pop()
    board = board_of(cells, failures=[(lost["spec"], {"error": "boom"})])
    row = board.overall[-1]
    assert (row.agent, row.rank, row.cells, row.expected) == ("c", None, 4, 5)
    assert board.failures[0][1]["error"] == "boom"


def test_nobody_gains_a_rank_on_a_task_by_failing_where_it_plays_badly():
    queues = {**REFERENCES, "fair": [5.0, 6.0, 5.0, 6.0, 5.5], "picky": [3.0, 3.2, 40.0, 50.0, 3.1]}
    cells = cells_of(queues)
    assert [row.rank for row in board_of(cells).tasks[0].rows] == [None, 1, 1, None]
    own = [c for c in cells if c["spec"]["agent"]["label"] == "picky"]
    bad = [c for c in own if c["spec"]["seed"] in (2, 3)]
    rest = [c for c in cells if c not in bad]
    task = board_of(rest, failures=[(c["spec"], {"error": "boom"}) for c in bad]).tasks[0]
    assert {row.agent: row.rank for row in task.rows if row.rank} == {"fair": 1}
    assert next(row.seeds for row in task.rows if row.agent == "picky") == 3


def test_an_unfinished_run_separates_by_what_there_is_and_ranks_nobody():
    cells = cells_of({**REFERENCES, "a": [2.0, 2.1, 2.0], "b": [40.0, 41.0, 40.0]})
    later = [{**c["spec"], "seed": 3} for c in cells if c["spec"]["seed"] == 0]
    [task] = board_of(cells, failures=[(spec, {"error": ""}) for spec in later]).tasks
    assert task.separates
    assert not any(row.rank for row in task.rows)


def test_a_task_outside_the_headline_has_its_own_table_only():
    side = cells_of({**REFERENCES, "a": [2.0] * 5, "b": [9.0] * 5}, task="s", headline=False)
    board = board_of(side)
    assert board.overall[0].expected == 0
    assert board.tasks[0].rows[1].rank == 1


def test_an_agent_that_plays_no_headline_task_is_drawn_but_not_in_the_overall_table(tmp_path):
    played = {**REFERENCES, "a": [2.0] * 5, "b": [9.0] * 5}
    side = cells_of({**REFERENCES, "guest": [3.0] * 5}, task="s", headline=False)
    board = board_of(cells_of(played) + side)
    overall = {row.agent: row.planned for row in board.overall}
    assert (overall["a"], overall["guest"]) == (5, 0)
    assert board_markdown(board).count("| guest |") == 1  # in the task's own table
    assert "Agents without all cells" not in board_markdown(board)
    assert draw_figure(board, tmp_path)


def trained(queues, trainings):
    """Cells of pretrained agents of which each training plays every ``trainings``-th seed."""
    cells = cells_of(queues, protocol="pretrained")
    for spec in (cell["spec"] for cell in cells):
        agent = spec["agent"]
        sha256 = f"{agent['label']}{spec['seed'] % trainings}"
        agent["training"] = {"sha256": sha256, "steps": 100, "seconds": 60.0}
    return cells


def test_rows_of_several_trainings_have_intervals_over_trainings():
    """A training that plays badly does so on all of its seeds, which are one observation."""
    seeds = range(20)
    references = cells_of({"oracle": [1.0] * 20, "random": [99.0] * 20})
    queues = {
        "wild": [2.0 + 3.0 * (seed % 5) + 0.01 * seed for seed in seeds],
        "calm": [3.0 + 0.01 * seed for seed in seeds],
    }
    board = board_of(references + trained(queues, 5))
    [task], [standing] = board.tasks, board.standings
    rows = {row.agent: row for row in task.rows}
    scores = {
        label: [(np.log(100) - np.log1p(q)) / np.log(50) for q in own]
        for label, own in queues.items()
    }
    for label, own in scores.items():
        means = np.reshape(own, (4, 5)).mean(axis=0)
        assert rows[label].score == pytest.approx(t_interval(means))
    assert rows["wild"].score.high - rows["wild"].score.low > 0.3
    gaps = np.subtract(scores["calm"], scores["wild"])
    assert t_interval(gaps).low > 0.0
    assert {rows["wild"].rank, rows["calm"].rank} == {1}  # by blocks nothing is separated
    assert (task.separates, task.seeds_needed) == (False, None)
    assert standing.rows[0].trainings is None  # the task counts in no score
    assert [column.short for column in task.columns][-3:] == ["trainings", "steps", "min"]
    assert rows["wild"].figures[-3:] == (5.0, 100.0, 1.0)
    easy = {
        "good": [2.0 + 0.1 * (s % 5) for s in seeds],
        "bad": [9.0 - 0.1 * (s % 5) for s in seeds],
    }
    board = board_of(references + trained(easy, 5))
    [standing] = board.standings
    assert "| 20/20 | 5 | 100 | 1 min 0 s |" in board_markdown(board)
    own = {row.agent: row for row in standing.rows}
    assert (own["good"].trainings, own["good"].rank, own["bad"].rank) == (5, 1, 2)
    assert own["oracle"].trainings is None
    [pair] = standing.comparisons
    assert pair.improvement == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)
    assert pair.improvement.high <= 1.0


def test_seeds_that_share_a_training_are_a_block_and_overlapping_ones_are_one():
    def blocks(cells):
        return [block for _, block in sorted(scoring.seed_blocks(cells).items())]

    six = {"a": [2.0] * 6}
    assert blocks(cells_of(six)) == [0, 1, 2, 3, 4, 5]
    assert blocks(trained(six, 1)) == [0, 1, 2, 3, 4, 5]  # one training says nothing of others
    assert blocks(trained(six, 3)) == [0, 1, 2, 0, 1, 2]
    assert blocks(trained(six, 3) + trained({"b": [2.0] * 6}, 1)) == [0, 1, 2, 0, 1, 2]
    assert blocks(trained(six, 3) + trained({"b": [2.0] * 6}, 2)) == [0] * 6
    assert blocks(trained(six, 3)[1:] + cells_of({"b": [2.0]})) == [0, 1, 2, 3, 1, 2]


def test_one_seed_separates_nobody_and_shows_it_everywhere(tmp_path, monkeypatch):
    """Tasks of one seed count if forced to: otherwise their t intervals already leave them out."""
    monkeypatch.setattr(task_board, "separated_pair", lambda *_: (True, None))
    queues = {"oracle": [0.0], "random": [99.0], "a": [3.0], "b": [9.0]}
    board = board_of(
        cells_of(queues, task="t", tags=("x",)) + cells_of(queues, task="u", tags=("y",))
    )
    [standing] = board.standings
    rows = {row.agent: row for row in standing.rows}
    score = 1 - np.log(4) / np.log(100)
    assert rows["a"].score == pytest.approx((score, -np.inf, np.inf))
    assert rows["a"].rank == rows["b"].rank == 1
    [pair] = standing.comparisons
    for interval in (pair.difference, pair.improvement, standing.tags["x"]["a"]):
        assert interval[1:] == (-np.inf, np.inf)
    assert np.isinf(standing.profiles["a"].low).all()
    assert f"| {score:.3f} [-∞, ∞] |" in board_markdown(board)
    shown = board_json(board)["overall"][0]
    assert shown["comparisons"][0]["difference"]["low"] is None
    json.dumps(shown, allow_nan=False)
    [section] = page_data(board)["sections"]
    assert section["profiles"]["a"][1:] == [None, None]
    assert section["tags"]["x"]["a"][1:] == [None, None]
    assert any(picture.path.name.startswith("overall") for picture in draw_figure(board, tmp_path))


# --- protocols ------------------------------------------------------------------------------------


def test_protocols_never_share_a_table():
    online = cells_of({**REFERENCES, "bandit": [2.0, 2.1, 2.2, 2.1, 2.0]})
    trained = cells_of({"PPO": [1.2, 1.3, 1.2, 1.1, 1.2]}, protocol="pretrained")
    for made in trained:
        made["spec"]["agent"]["training"] = {"steps": 1000, "seconds": 90.0}
    board = board_of(online + trained)
    assert [section.protocol for section in board.sections] == ["online", "pretrained"]
    shown = {b.section.protocol: {row.agent for row in b.rows} for b in board.tasks}
    assert shown == {
        "online": {"oracle", "random", "bandit"},
        "pretrained": {"oracle", "random", "PPO"},
    }
    for row in board.overall:
        assert row.agent in shown[row.section.protocol]
    ranked = [(row.agent, row.rank) for row in board.overall if row.rank is not None]
    assert sorted(ranked) == [("PPO", 1), ("bandit", 1)]  # each first among its own
    titles = [column.title for column in board.tasks[1].columns]
    [row] = [row for row in board.tasks[1].rows if row.agent == "PPO"]
    figures = dict(zip(titles, row.figures, strict=True))
    assert figures["training steps"] == 1000
    assert figures["training minutes"] == pytest.approx(1.5)
    assert "training steps" not in [column.title for column in board.tasks[0].columns]
    page = board_markdown(board)
    assert page.count("| training steps |") == 2  # the overall and the task's
    assert "## Online" in page
    assert "## Pretrained" in page


def test_a_run_of_the_references_alone_is_shown_once():
    board = board_of(cells_of(REFERENCES))
    assert [section.protocol for section in board.sections] == ["online"]


# --- shuffled contexts ----------------------------------------------------------------------------


def contexts_column(board):
    """{agent: worth of contexts}."""
    place = [column.title for column in board.columns].index("worth of contexts")
    return {row.agent: row.figures[place] for row in board.rows}


def test_contexts_are_worth_the_paired_difference_to_the_score_without_them():
    references = {"oracle": [1.0, 1.2, 1.1], "random": [50.0, 60.0, 80.0]}
    own = cells_of({**references, "a": [3.0, 4.0, 5.0], "b": [9.0, 8.0, 7.0]})
    twin = {**references, "a": [6.0, 5.0, 9.0]}
    twin = cells_of(twin, task="t-shuffled", control_of="t", headline=False)
    scores = [
        table.filter(pl.col("agent") == "a")["score"].to_numpy()
        for table in (tidy(own), tidy(twin))
    ]
    (board,) = board_of(own + twin).tasks  # the copy has no table
    worth = contexts_column(board)
    assert worth["a"] == t_interval(scores[0] - scores[1])
    assert worth["b"] is None  # plays no copy
    (row,) = (row for row in board.rows if row.agent == "a")
    assert row.score == t_interval(scores[0])  # the copy changes nothing else


def test_contexts_are_compared_on_common_seeds_only():
    queues = {"oracle": [1.0] * 3, "random": [50.0] * 3, "a": [3.0, 4.0, 5.0]}
    twin = {name: values[:2] for name, values in queues.items()}
    twin = cells_of(twin, task="t-shuffled", control_of="t")
    (board,) = board_of(cells_of(queues) + twin).tasks
    assert contexts_column(board)["a"] == t_interval([0.0, 0.0])


def test_without_a_copy_there_is_no_column_and_a_copy_alone_has_a_table():
    queues = {"oracle": [1.0] * 2, "random": [50.0] * 2, "a": [3.0, 4.0]}
    (own,) = board_of(cells_of(queues)).tasks
    (alone,) = board_of(cells_of(queues, task="t-shuffled", control_of="t")).tasks
    for board in (own, alone):
        assert "worth of contexts" not in [column.title for column in board.columns]
        assert [row.agent for row in board.rows] == ["oracle", "a", "random"]
