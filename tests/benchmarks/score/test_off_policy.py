"""Off-policy estimators: closed forms, both robustnesses, and coverage where the truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.score.intervals import Interval
from benchmarks.score.off_policy import (
    cross_fitted_propensities,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    ips,
    self_normalised,
    weight_miss,
    within,
)


def simulate(n, seed, slope=1.5):
    """Logged data of a softmax policy over three LLMs, a target policy, and its true value.

    Returns context (n,), action, reward, propensities and target probabilities (n, 3), rates (n, 3)
    and the target's value, exact for the distribution of contexts (a grid).
    """
    rng = np.random.default_rng(seed)
    grid = np.linspace(-1.0, 1.0, 41)
    x = rng.choice(grid, n)
    direction = np.array([1.0, -1.0, 0.3])

    def policy(context, sharpness):
        weights = np.exp(sharpness * context[:, None] * direction)
        return weights / weights.sum(axis=1, keepdims=True)

    def rate(context):
        return 1.0 / (1.0 + np.exp(-(slope * context[:, None] * direction + [0.2, 0.4, 0.0])))

    propensity, target, rates = policy(x, 0.8), policy(x, 3.0), rate(x)
    action = (rng.random(n)[:, None] > propensity.cumsum(axis=1)).sum(axis=1)
    reward = (rng.random(n) < rates[np.arange(n), action]).astype(float)
    truth = float((policy(grid, 3.0) * rate(grid)).sum(axis=1).mean())
    return x, action, reward, propensity, target, rates, truth


def estimates(n, seed, model):
    """The three intervals and the truth; ``model`` maps true rates to those of a wrong model."""
    _, action, reward, propensity, target, rates, truth = simulate(n, seed)
    rows = np.arange(n)
    weight = importance_weights(target[rows, action], propensity[rows, action])
    q = model(rates)
    found = {
        "ips": ips(reward, weight),
        "snips": self_normalised(reward, weight),
        "dr": doubly_robust(reward, weight, q[rows, action], (target * q).sum(axis=1)),
    }
    return found, truth


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_intervals_cover_the_truth_as_often_as_they_say(name):
    runs = 400
    hits = 0
    for seed in range(runs):
        found, truth = estimates(600, seed, lambda rates: 0.5 * rates + 0.3)
        hits += found[name].low <= truth <= found[name].high
    # 95% coverage gives fewer than 92% or all of 400 runs less than once in 300.
    assert stats.binom.ppf(0.001, runs, 0.95) <= hits < runs


@pytest.mark.parametrize("noise", [0, 12])
def test_intervals_cover_the_truth_where_propensities_are_estimated(noise):
    """From four coordinates and, with noise, twelve more that explain nothing."""
    runs = 400
    hits = dict.fromkeys(("ips", "snips", "dr"), 0)
    for seed in range(runs):
        x, action, reward, _, target, rates, truth = simulate(400, seed)
        more = np.random.default_rng([seed, 1]).normal(size=(len(x), noise))
        contexts = np.column_stack([x, x**2, np.ones_like(x), more]).astype(np.float32)
        rows = np.arange(len(x))
        weight = importance_weights(
            target[rows, action], cross_fitted_propensities(contexts, action)
        )
        q = 0.5 * rates + 0.3
        model = q[rows, action], (target * q).sum(axis=1)
        found = {
            "ips": ips(reward, weight, estimated=True),
            "snips": self_normalised(reward, weight),
            "dr": doubly_robust(reward, weight, *model, estimated=True),
        }
        for name, interval in found.items():
            hits[name] += interval.low <= truth <= interval.high
    for name, count in hits.items():  # and not more than 99%, which would be too wide
        assert stats.binom.ppf(0.001, runs, 0.95) <= count <= 0.99 * runs, (name, hits)


def test_no_request_helps_to_fit_its_own_propensity():
    x, action, *_ = simulate(200, 3)
    contexts = np.column_stack([x, np.ones_like(x)]).astype(np.float32)
    found = cross_fitted_propensities(contexts, action)
    other = action.copy()
    row = int(np.flatnonzero(action == 0)[0])
    other[row], contexts[row, 0] = 0, 50.0  # moved far away, with the same label
    moved = cross_fitted_propensities(contexts, other)
    assert ((found > 0) & (found <= 1)).all()
    changed = np.flatnonzero(found != moved)
    assert row in changed
    assert 0.7 * len(x) < len(changed) < 0.9 * len(x)  # the other folds, and the row itself


def test_weights_that_do_not_average_1_are_told_from_chance():
    rng = np.random.default_rng(0)
    assert weight_miss(np.full(500, 0.52)) == pytest.approx(0.48)  # half of what is chosen
    assert weight_miss(rng.exponential(size=500)) == 0.0
    assert weight_miss(np.full(500, 0.95)) == 0.0  # too little to speak of
    assert weight_miss(np.array([0.0, 0.5])) == 0.0  # of two requests nothing can be said


def test_an_error_of_the_propensities_widens_the_interval_and_nothing_leaves_the_range():
    rng = np.random.default_rng(1)
    reward, weight = (rng.random(300) < 0.9).astype(float), rng.gamma(5.0, 0.2, 300)
    sure = self_normalised(reward, weight)
    for factor in (1.0, 1.3):
        wide = ips(reward, factor * weight, estimated=True)
        assert wide.value == ips(reward, factor * weight).value
        assert wide.low <= sure.low + 1e-12
        assert wide.high >= sure.high - 1e-12  # whatever factor the weights are wrong by
    for expected in (np.zeros(300), np.full(300, 0.3)):
        plain, wide = (
            doubly_robust(reward, 1.3 * weight, 0.5 * reward, expected, estimated=e)
            for e in (False, True)
        )
        error = (1.3 * weight.mean() - 1.0) * self_normalised(0.5 * reward, weight).value
        assert wide.high - wide.value == pytest.approx(np.hypot(plain.high - plain.value, error))
    wide = ips(reward, 1.3 * weight, estimated=True)
    assert within(wide, 0.0, 1.0).high == 1.0
    assert within(Interval(1.1, 0.9, 1.3), 0.0, 1.0) == Interval(1.0, 0.9, 1.0)
    assert np.isnan(within(Interval(1.2, 1.1, 1.3), 0.0, 1.0).value)


def test_estimates_are_unbiased_and_the_right_model_is_worth_having():
    runs = [estimates(400, seed, lambda rates: rates) for seed in range(300)]
    spread = {}
    for name in ("ips", "snips", "dr"):
        errors = np.array([found[name].value - truth for found, truth in runs])
        assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors))
        spread[name] = errors.std()
    assert spread["dr"] < spread["ips"]


def test_doubly_robust_survives_either_mistake():
    n = 200_000
    _, action, reward, propensity, target, rates, truth = simulate(n, 0)
    rows = np.arange(n)
    right, wrong = propensity[rows, action], np.full(n, 1 / 3)
    for p, q in ((right, np.full_like(rates, 0.9)), (wrong, rates)):
        weight = importance_weights(target[rows, action], p)
        value = doubly_robust(reward, weight, q[rows, action], (target * q).sum(axis=1)).value
        assert value == pytest.approx(truth, abs=0.01)
    biased = ips(reward, importance_weights(target[rows, action], wrong)).value
    assert abs(biased - truth) > 0.05  # which is why propensities matter


def test_closed_forms():
    reward = np.array([1.0, 0.0, 1.0, 1.0])
    match = np.array([1.0, 0.0, 1.0, 0.0])
    weight = importance_weights(match, np.full(4, 0.5))
    assert ips(reward, weight).value == 1.0  # 2 matches that count twice, of 4
    assert self_normalised(reward, weight).value == 1.0
    same = importance_weights(np.full(4, 0.5), np.full(4, 0.5))  # on policy: all agree
    for found in (ips(reward, same), self_normalised(reward, same)):
        assert found.value == reward.mean()
    zero = np.zeros(4)
    assert doubly_robust(reward, weight, zero, zero) == ips(reward, weight)
    assert effective_sample_size(same) == 4.0
    assert effective_sample_size(weight) == 2.0


@given(st.lists(st.floats(0.01, 50), min_size=2, max_size=30), st.floats(-5, 5))
def test_self_normalised_returns_a_constant_exactly(weights, constant):
    weight = np.array(weights)
    found = self_normalised(np.full(len(weight), constant), weight)
    assert found.value == pytest.approx(constant, abs=1e-9)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-6)
    assert 1.0 - 1e-9 <= effective_sample_size(weight) <= len(weight) + 1e-9


def test_a_policy_that_never_agrees_with_the_log_has_no_estimate():
    nothing = self_normalised(np.ones(3), np.zeros(3))
    assert np.isnan(nothing.value)
    assert effective_sample_size(np.zeros(3)) == 0.0
    assert ips(np.ones(3), np.zeros(3)).value == 0.0


@pytest.mark.parametrize(
    ("target", "propensity"), [(1.2, 0.5), (-0.1, 0.5), (0.5, 0.0), (0.5, 1.5)]
)
def test_probabilities_are_checked(target, propensity):
    with pytest.raises(ValueError, match="probabilities must lie"):
        importance_weights(np.array([target]), np.array([propensity]))
