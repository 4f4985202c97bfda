"""Scores, intervals and exponents against closed forms and slow references; rule 8 both ways."""

import json
import re
from dataclasses import replace

import made_up
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ORIGIN, board_of, queue_cell
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.problems.queueing.board import KIND as QUEUEING
from benchmarks.report import board_markdown, board_summary, board_tables, draw_figure
from benchmarks.report.data import board_json
from benchmarks.report.figure import main_picture
from benchmarks.report.page import page_data
from benchmarks.run.runner import run_cell
from benchmarks.score import fairness, scoring, task_board
from benchmarks.score.intervals import (
    StratifiedBootstrap,
    competition_ranks,
    decay_exponent,
    family_weights,
    growth_exponent,
    improvement,
    interquartile_mean,
    percentile_limits,
    resampled_seeds,
    separated_pair,
    t_interval,
)
from benchmarks.score.standing import PROFILE_THRESHOLDS


def cells_of(queues, **spec):
    """Queueing cells from {agent: [mean queue a seed]}."""
    return made_up.cells_of(queue_cell, queues, **spec)


def tidy(cells):
    return scoring.tidy(cells, QUEUEING)


def violations(table):
    return fairness.violations(table, QUEUEING)


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


# --- intervals ------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_t_interval_is_scipys(values):
    interval = t_interval(values)
    error = stats.sem(values)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert interval == pytest.approx((np.mean(values), low, high))


def test_a_single_seed_has_an_unbounded_interval():
    assert t_interval([3.0]) == (3.0, -np.inf, np.inf)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_interquartile_mean_is_scipys_trimmed_mean(values):
    expected = stats.trim_mean(values, 0.25)
    assert interquartile_mean(np.array(values)) == pytest.approx(expected)


RNG = np.random.default_rng(0)
STRATA = {"a": 5, "b": 4, "c": 1, "d": 3}
SCORES = np.round(RNG.normal(0.5, 0.3, (3, sum(STRATA.values()))), 1)  # with ties
WEIGHTS = family_weights(["synthetic", "synthetic", "real", "synthetic"])
REPEATS = 60


def slow_samples():
    """Indices of the drawn runs in every sample, by the definition."""
    draws = {name: resampled_seeds(name, size, REPEATS) for name, size in STRATA.items()}
    for i in range(REPEATS):
        first, parts = 0, []
        for name, size in STRATA.items():
            parts.append(first + draws[name][i])
            first += size
        yield parts


def test_interquartile_means_of_the_bootstrap_equal_a_slow_reference():
    fast = StratifiedBootstrap.draw(STRATA, REPEATS).iqm(SCORES)
    for i, parts in enumerate(slow_samples()):
        for agent in range(3):
            sample = SCORES[agent][np.concatenate(parts)]
            assert fast[agent, i] == pytest.approx(stats.trim_mean(sample, 0.25))


def test_means_over_families_of_the_bootstrap_equal_a_slow_reference():
    fast = StratifiedBootstrap.draw(STRATA, REPEATS).mean(SCORES, WEIGHTS)
    for i, parts in enumerate(slow_samples()):
        for agent in range(3):
            a, b, c, d = (SCORES[agent][part].mean() for part in parts)
            assert fast[agent, i] == pytest.approx(((a + b + d) / 3 + c) / 2)


@given(st.lists(st.sampled_from(["synthetic", "real", "other"]), min_size=1, max_size=30))
def test_families_weigh_the_same_and_so_do_their_tasks(families):
    weights = family_weights(families)
    for family in set(families):
        own = weights[np.array(families) == family]
        assert own.sum() == pytest.approx(1 / len(set(families)))
        assert (own == own[0]).all()


def test_probability_of_improvement_equals_a_slow_reference():
    fast = StratifiedBootstrap.draw(STRATA, REPEATS).improvement(
        SCORES[[0, 2]], SCORES[[1, 0]], WEIGHTS
    )
    for i, parts in enumerate(slow_samples()):
        for pair, (first, second) in enumerate([(0, 1), (2, 0)]):
            chances = [
                np.mean(
                    [
                        (x > y) + 0.5 * (x == y)
                        for x in SCORES[first][part]
                        for y in SCORES[second][part]
                    ]
                )
                for part in parts
            ]
            assert fast[pair, i] == pytest.approx(WEIGHTS @ chances, rel=1e-5)


def test_probability_of_improvement_is_mann_and_whitneys():
    x, y = RNG.normal(size=7), RNG.normal(size=7)
    u = stats.mannwhitneyu(x, y).statistic
    assert improvement(x, y, [7], np.ones(1)) == pytest.approx(u / 49)
    assert improvement(x, y, [7], np.ones(1)) + improvement(y, x, [7], np.ones(1)) == pytest.approx(
        1.0
    )
    assert improvement(x, x, [3, 4], np.full(2, 0.5)) == 0.5
    assert improvement(x + 100, x, [3, 4], np.full(2, 0.5)) == 1.0


def test_performance_profiles_equal_a_slow_reference():
    thresholds = np.array([0.0, 0.4, 0.5, 1.0])
    fast = StratifiedBootstrap.draw(STRATA, REPEATS).profile(SCORES, thresholds, WEIGHTS)
    for i, parts in enumerate(slow_samples()):
        for agent in range(3):
            expected = [
                sum(
                    weight * (SCORES[agent][part] > threshold).mean()
                    for part, weight in zip(parts, WEIGHTS, strict=True)
                )
                for threshold in thresholds
            ]
            np.testing.assert_allclose(fast[agent, :, i], expected, rtol=1e-6)


def test_bootstrap_of_a_mean_has_the_textbook_standard_error():
    """Three values a stratum cut nothing, so the IQM is the mean: se = sd / sqrt(n)."""
    values = np.array([0.0, 1.0, 5.0])
    samples = StratifiedBootstrap.draw({"t": 3}).iqm(values[None])
    assert samples.std() == pytest.approx(values.std() / 3**0.5, rel=0.03)


def test_bootstrap_of_a_profile_has_the_binomial_standard_error():
    values = np.arange(10.0)
    samples = StratifiedBootstrap.draw({"t": 10}).profile(
        values[None], np.array([6.5]), np.ones(1)
    )[0, 0]
    assert samples.mean() == pytest.approx(0.3, abs=0.01)
    assert samples.std() == pytest.approx((0.3 * 0.7 / 10) ** 0.5, rel=0.03)


def test_strata_of_one_seed_leave_nothing_to_resample():
    bootstrap = StratifiedBootstrap.draw({"a": 1, "b": 1}, REPEATS)
    np.testing.assert_allclose(bootstrap.iqm(np.array([[0.2, 0.6]])), 0.4)


@pytest.mark.parametrize(("seeds", "bounded"), [((3, 2), True), ((3, 1), False), ((1, 1), False)])
def test_intervals_over_tasks_are_unbounded_where_a_task_has_one_seed(seeds, bounded):
    bootstrap = StratifiedBootstrap.draw(dict(zip("ab", seeds, strict=True)), REPEATS)
    scores = RNG.normal(size=(2, sum(seeds)))
    samples = [
        bootstrap.iqm(scores),
        bootstrap.improvement(scores[:1], scores[1:], np.full(2, 0.5)),
    ]
    samples.append(bootstrap.profile(scores, np.array([0.0, 0.5]), np.full(2, 0.5)))
    for sample in samples:
        low, high = bootstrap.limits(sample)
        assert low.shape == high.shape == sample.shape[:-1]
        assert (np.isfinite(low) == bounded).all()
        assert bounded or (low == -high).all()
    assert np.isfinite(bootstrap.interval(0.5, samples[0][0])[1:]).all() == bounded
    part, runs = bootstrap.select(["a"])
    assert np.isfinite(part.limits(part.iqm(scores[:, runs]))[0]).all() == (seeds[0] > 1)


def test_draws_of_two_agents_on_the_same_cells_are_paired():
    scores = RNG.normal(size=6)
    samples = StratifiedBootstrap.draw({"t": 6}).iqm(np.stack([scores + 0.25, scores]))
    np.testing.assert_allclose(samples[0] - samples[1], 0.25)


def test_some_tasks_of_a_bootstrap_are_drawn_as_they_are_alone():
    part, runs = StratifiedBootstrap.draw(STRATA, REPEATS).select(["d", "b"])
    alone = StratifiedBootstrap.draw({"b": 4, "d": 3}, REPEATS)
    assert runs.tolist() == [5, 6, 7, 8, 10, 11, 12]
    np.testing.assert_array_equal(part.iqm(SCORES[:, runs]), alone.iqm(SCORES[:, runs]))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_percentile_limits_are_quantiles_of_the_empirical_distribution(values):
    expected = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    np.testing.assert_array_equal(percentile_limits(np.array(values)), expected)


# --- shared ranks ---------------------------------------------------------------------------------


@given(st.integers(0, 8), st.randoms(use_true_random=False))
def test_ranks_never_fall_are_places_and_their_leaders_are_separated(size, random):
    table = [[random.random() < 0.5 for _ in range(size)] for _ in range(size)]
    ranks = competition_ranks(size, lambda i, j: table[i][j])
    assert ranks == sorted(ranks)
    assert ranks[:1] == [1][:size]
    for agent, rank in enumerate(ranks):
        leader = rank - 1
        assert ranks[leader] == rank  # the place of the rank's first agent
        assert agent == leader or not table[leader][agent]
        assert leader == 0 or table[ranks[leader - 1] - 1][leader]


def test_ranks_where_being_separated_is_not_transitive():
    """The last agent's interval is wide: only the first two are separated from the third."""
    separated = {(0, 2), (1, 2)}
    assert competition_ranks(4, lambda i, j: (i, j) in separated) == [1, 1, 3, 3]


# --- exponents ------------------------------------------------------------------------------------

SLOTS = np.unique(np.rint(np.geomspace(1, 50_000, 200)))


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
def test_growth_exponent_of_a_power_law(power):
    curves = np.array([[2.0], [3.0], [5.0]]) * SLOTS**power
    fitted = growth_exponent(SLOTS, curves)
    np.testing.assert_allclose(fitted, power, atol=1e-9)


def test_growth_exponents_interval_covers_the_truth_between_seeds():
    curves = np.stack([SLOTS**power for power in (0.4, 0.5, 0.6)])
    value, low, high = growth_exponent(SLOTS, curves)
    assert 0.4 - 1e-9 <= low < value < high <= 0.6 + 1e-9
    assert low < 0.5 < high


def test_exponents_of_a_single_seed_are_unbounded():
    assert growth_exponent(SLOTS, SLOTS[None] ** 0.5) == pytest.approx((0.5, -np.inf, np.inf))
    fitted = decay_exponent(SLOTS, SLOTS[None] ** 0.5)
    assert fitted == pytest.approx((-0.5, -np.inf, np.inf), abs=0.01)


@pytest.mark.parametrize("power", [-0.25, -0.5, 0.5])
def test_decay_exponent_of_a_power_law(power):
    """A gap of t^b a slot has the cumulative t^(1 + b) / (1 + b)."""
    gap = np.array([[1.0], [2.0]]) * SLOTS ** (1 + power) / (1 + power)
    fitted = decay_exponent(SLOTS, gap)
    np.testing.assert_allclose(fitted, power, atol=0.01)


def test_no_exponent_where_there_is_no_regret():
    zero = np.zeros((3, SLOTS.size))
    assert growth_exponent(SLOTS, zero) is None
    assert decay_exponent(SLOTS, zero) is None
    assert decay_exponent(SLOTS, -SLOTS[None]) is None


def test_seeds_lost_in_noise_leave_the_decay_unbounded_below():
    gap = np.stack([SLOTS**0.5, SLOTS**0.5, -0.5 * SLOTS**0.5])
    value, low, high = decay_exponent(SLOTS, gap)
    assert low == -np.inf
    assert value == pytest.approx(-0.5, abs=0.01)
    assert high == pytest.approx(-0.5, abs=0.01)


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


def test_a_task_on_which_no_pair_is_separated_is_left_out_of_the_headline():
    easy = cells_of(
        {**REFERENCES, "a": [2.0, 2.5, 1.5, 2.1, 1.8], "b": [2.1, 2.4, 1.6, 2.0, 1.9]}, task="easy"
    )
    hard = cells_of({**REFERENCES, "a": [2.0] * 5, "b": [40.0] * 5}, task="hard")
    board = board_of(easy + hard)
    assert {t.task["name"]: t.separates for t in board.tasks} == {"easy": False, "hard": True}
    assert {row.agent: row.cells for row in board.overall}["a"] == 5


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


def test_one_seed_separates_nobody_and_shows_it_everywhere(tmp_path, monkeypatch):
    """Tasks of one seed count if forced to: otherwise their t intervals already leave them out."""
    monkeypatch.setattr(task_board, "separated_pair", lambda scores: (True, None))
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


# --- rule 8 ---------------------------------------------------------------------------------------


def test_one_lucky_seed_does_not_beat_the_oracle():
    lucky = {**REFERENCES, "a": [0.2, 1.2, 1.0, 1.1, 1.3]}
    assert violations(tidy(cells_of(lucky))) == []


def test_beating_the_oracle_on_every_seed_is_named_with_its_interval():
    found = violations(tidy(cells_of({**REFERENCES, "a": [0.5, 0.55, 0.45, 0.5, 0.6]})))
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
        accused += bool(violations(tidy(cells_of(queues))))
    assert accused <= 3


@pytest.mark.parametrize("luck", [7.5, -7.5])
def test_departures_that_the_truth_does_not_explain_are_named(luck):
    cells = cells_of(REFERENCES)
    cells.append(queue_cell("a", 0, 5.0, luck=luck))
    [text] = violations(tidy(cells))
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
    found = violations(tidy(records))
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
    violations(tidy(cells_of({**REFERENCES, "a": [2.0] * 5, "b": [3.0] * 5})))
    assert set(levels) == {0.95, 0.975, 1 - fairness.FALSE_ALARM / 2}
    assert levels.count(0.975) == levels.count(1 - fairness.FALSE_ALARM / 2) == 2


def test_above_the_oracle_at_95_percent_only_is_a_warning_and_fails_nothing():
    """The same agent alone is a violation; among 300 comparisons it is no more than a warning."""
    better = cells_of({**REFERENCES, "a": [0.8, 0.95, 0.5, 0.85, 0.9]})
    alone = tidy(better)
    assert [len(violations(alone)), fairness.warnings(alone, QUEUEING)] == [1, []]
    others = {f"x{i}": [2.0, 2.2, 1.9, 2.0, 2.1] for i in range(299)}
    many = tidy(better + cells_of(others))
    assert violations(many) == []
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
