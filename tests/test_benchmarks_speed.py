"""The speed bench's own reference computations, and that its agent figures come out."""

import numpy as np
import pytest

from benchmarks.speed import agent_speed, best_pair_by_enumeration, full_refit


def test_the_full_refit_is_the_maximum():
    """At the optimum the gradient of the penalised log likelihood vanishes."""
    rng = np.random.default_rng(0)
    contexts = rng.normal(size=(300, 4))
    shown = np.array([rng.permutation(3)[:2] for _ in range(300)])
    kept = np.where(rng.random(300) < 0.6, shown[:, 0], -1)
    theta = full_refit(contexts, shown, kept, np.zeros((3, 4)))
    gradient = theta.copy()
    for x, pair, answer in zip(contexts, shown, kept, strict=True):
        odds = np.exp(theta[pair] @ x)
        gradient[pair] += np.outer(odds / (1 + odds.sum()), x)
        if answer >= 0:
            gradient[answer] -= x
    np.testing.assert_allclose(gradient, 0.0, atol=0.01)


def test_the_best_pair_is_the_two_best_llms_of_the_best_query():
    utilities = np.random.default_rng(1).normal(size=(6, 5))
    query, pair = best_pair_by_enumeration(utilities)
    top = np.sort(np.exp(utilities), axis=1)[:, -2:].sum(axis=1)
    assert query == np.argmax(top)
    assert set(pair) == set(np.argsort(utilities[query])[-2:].tolist())


def test_agents_are_timed():
    figures = agent_speed(100)
    assert len(figures) == 5
    assert all(value == pytest.approx(value) and value > 0 for value in figures.values())
