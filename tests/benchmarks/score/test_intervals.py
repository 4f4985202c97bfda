"""Intervals, aggregates, ranks and exponents against closed forms and slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.score.bootstrap import (
    SeedBootstrap,
    family_weights,
    improvement,
    interquartile_mean,
)
from benchmarks.score.intervals import (
    block_means,
    competition_ranks,
    decay_exponent,
    growth_exponent,
    percentile_limits,
    resampled_seeds,
    t_interval,
)

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


def test_the_interval_of_blocks_is_that_of_their_means():
    values = RNG.normal(size=(5, 4))
    blocks = np.repeat(range(5), 4)
    found = t_interval(values.ravel(), blocks=blocks)
    assert found == pytest.approx(t_interval(values.mean(axis=1)))
    assert t_interval(values.ravel(), blocks=range(20)) == t_interval(values.ravel())
    assert t_interval(values[0], blocks=[7] * 4)[1:] == (-np.inf, np.inf)
    assert block_means(values.reshape(20, 1), blocks).ravel() == pytest.approx(values.mean(axis=1))


@pytest.mark.parametrize(("training", "play"), [(1.0, 1.0), (1.0, 0.1), (0.0, 1.0)])
def test_intervals_over_trainings_cover_the_variation_of_both(training, play):
    """Known components of variance, 5 trainings that play 4 of 20 seeds each: 95% of the time.

    The mean has the variance training^2 / 5 + play^2 / 20. To take the 20 runs for independent
    covers it far less often where trainings differ.
    """
    rng, runs = np.random.default_rng(1), 1500
    blocks = np.arange(20) % 5
    scores = training * rng.normal(size=(runs, 5))[:, blocks] + play * rng.normal(size=(runs, 20))
    assert scores.mean(axis=1).var() == pytest.approx(training**2 / 5 + play**2 / 20, rel=0.15)
    found = np.array([t_interval(own, blocks=blocks) for own in scores])
    naive = np.array([t_interval(own) for own in scores])
    bootstrap = SeedBootstrap.draw({"t": 20}, 2000, {"t": blocks.tolist()})
    low, high = bootstrap.limits(bootstrap.mean(scores, np.ones(1)))
    exact = np.mean((found[:, 1] < 0) & (found[:, 2] > 0))
    assert exact == pytest.approx(0.95, abs=0.02)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.025)
    assert (np.mean((naive[:, 1] < 0) & (naive[:, 2] > 0)) < 0.85) == (training > 0)


@pytest.mark.parametrize("tasks", [1, 2, 12])
@pytest.mark.parametrize("shared", [0.0, 0.5, 2.0])
def test_intervals_over_tasks_cover_what_tasks_of_a_seed_share(tasks, shared):
    """Ten seeds, each with an effect on all its tasks: 95% of the time, however many tasks.

    The mean has the variance shared^2 / 10 + 1 / (10 tasks).
    """
    rng, runs, seeds = np.random.default_rng(2), 1500, 10
    scores = shared * rng.normal(size=(runs, 1, seeds)) + rng.normal(size=(runs, tasks, seeds))
    scores = scores.reshape(runs, tasks * seeds)
    bootstrap = SeedBootstrap.draw({f"t{i}": seeds for i in range(tasks)}, 2000)
    low, high = bootstrap.limits(bootstrap.mean(scores, np.full(tasks, 1.0 / tasks)))
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.02)
    exact = np.array([t_interval(own.reshape(tasks, seeds).mean(axis=0)) for own in scores])
    assert np.median((high - low) / (exact[:, 2] - exact[:, 1])) == pytest.approx(1.0, abs=0.03)


def test_blocks_are_resampled_whole_and_uneven_ones_keep_the_weight_of_a_sample():
    seeds, blocks = {"t": 5, "u": 2}, {"t": [0, 1, 0, 1, 0], "u": [0, 1]}
    bootstrap = SeedBootstrap.draw(seeds, REPEATS, blocks)
    ones = bootstrap.mean(np.ones((1, 7)), np.array([0.5, 0.5]))
    assert ones == pytest.approx(np.ones((1, REPEATS)))
    first = bootstrap.mean(np.array([[1.0, 0, 1, 0, 1, 0, 0]]), np.array([1.0, 0.0]))[0]
    assert {round(float(share), 6) for share in first} == {0.0, 0.6, 1.0}
    part, runs = bootstrap.select(["u"])
    plain = SeedBootstrap.draw({"u": 2}, REPEATS)
    values = np.array([0.3, 0.8])
    assert runs.tolist() == [5, 6]
    assert part.limits(part.mean(values[None], np.ones(1))) == plain.limits(
        plain.mean(values[None], np.ones(1))
    )


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
    draws = {name: resampled_seeds("seeds", size, REPEATS) for name, size in STRATA.items()}
    for i in range(REPEATS):
        first, parts = 0, []
        for name, size in STRATA.items():
            parts.append(first + draws[name][i])
            first += size
        yield parts


def test_interquartile_means_of_the_bootstrap_equal_a_slow_reference():
    fast = SeedBootstrap.draw(STRATA, REPEATS).iqm(SCORES)
    for i, parts in enumerate(slow_samples()):
        for agent in range(3):
            sample = SCORES[agent][np.concatenate(parts)]
            assert fast[agent, i] == pytest.approx(stats.trim_mean(sample, 0.25))


def test_means_over_families_of_the_bootstrap_equal_a_slow_reference():
    fast = SeedBootstrap.draw(STRATA, REPEATS).mean(SCORES, WEIGHTS)
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
    fast = SeedBootstrap.draw(STRATA, REPEATS).improvement(SCORES[[0, 2]], SCORES[[1, 0]], WEIGHTS)
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
    fast = SeedBootstrap.draw(STRATA, REPEATS).profile(SCORES, thresholds, WEIGHTS)
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
    samples = SeedBootstrap.draw({"t": 3}).iqm(values[None])
    assert samples.std() == pytest.approx(values.std() / 3**0.5, rel=0.03)


def test_bootstrap_of_a_profile_has_the_binomial_standard_error():
    values = np.arange(10.0)
    samples = SeedBootstrap.draw({"t": 10}).profile(values[None], np.array([6.5]), np.ones(1))[0, 0]
    assert samples.mean() == pytest.approx(0.3, abs=0.01)
    assert samples.std() == pytest.approx((0.3 * 0.7 / 10) ** 0.5, rel=0.03)


def test_strata_of_one_seed_leave_nothing_to_resample():
    bootstrap = SeedBootstrap.draw({"a": 1, "b": 1}, REPEATS)
    np.testing.assert_allclose(bootstrap.iqm(np.array([[0.2, 0.6]])), 0.4)


@pytest.mark.parametrize(("seeds", "bounded"), [((3, 2), True), ((3, 1), False), ((1, 1), False)])
def test_intervals_over_tasks_are_unbounded_where_a_task_has_one_seed(seeds, bounded):
    bootstrap = SeedBootstrap.draw(dict(zip("ab", seeds, strict=True)), REPEATS)
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
    samples = SeedBootstrap.draw({"t": 6}).iqm(np.stack([scores + 0.25, scores]))
    np.testing.assert_allclose(samples[0] - samples[1], 0.25)


def test_some_tasks_of_a_bootstrap_are_drawn_as_they_are_alone():
    part, runs = SeedBootstrap.draw(STRATA, REPEATS).select(["d", "b"])
    alone = SeedBootstrap.draw({"b": 4, "d": 3}, REPEATS)
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
