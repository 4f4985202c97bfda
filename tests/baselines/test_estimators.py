"""The estimators: optimum against SciPy, factor identities, noise covariance, mirror descent.

Synthetic choices only; every check is a closed form or an independent solver.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from baselines.estimators import (
    ConfidenceFactors,
    OnlineMirrorDescentMNL,
    QueryEffects,
    RidgeMNL,
    RidgeRegression,
)
from baselines.estimators.mirror_descent import choice_probabilities
from baselines.estimators.neighbours import Neighbours
from baselines.estimators.ridge_mnl import CHEAP_DIM, _step, inverse_hessian
from llmqueue_gym.workloads.cells import MAX_CONTEXT

Choice = tuple[NDArray[np.float32], list[int], int]


def draw_choices(
    rounds: int, num_llms: int, dim: int, size: int, seed: int, scale: float = 1.0
) -> tuple[list[Choice], NDArray[np.float64]]:
    """Choices of users who follow an MNL model, assortments drawn at random."""
    rng = np.random.default_rng(seed)
    theta = scale * rng.uniform(-1, 1, (num_llms, dim))
    choices: list[Choice] = []
    for _ in range(rounds):
        context = rng.uniform(-1, 1, dim).astype(np.float32)
        shown = rng.permutation(num_llms)[:size].tolist()
        probabilities = choice_probabilities(np.array([context @ theta[j] for j in shown]))
        draw = rng.random() - np.cumsum(probabilities)
        kept = next((j for j, d in zip(shown, draw, strict=True) if d < 0), -1)
        choices.append((context, shown, kept))
    return choices, theta


def loss(theta: NDArray[Any], choices: list[Choice], ridge: float) -> float:
    """Ridge negative log-likelihood, written from the definition."""
    total = 0.5 * ridge * float(np.sum(theta**2))
    for context, shown, kept in choices:
        utilities = theta[shown] @ context
        total += float(np.logaddexp.reduce(np.append(utilities, 0.0)))
        if kept >= 0:
            total -= float(theta[kept] @ context)
    return total


def scipy_optimum(choices: list[Choice], num_llms: int, dim: int, ridge: float) -> NDArray[Any]:
    """Joint optimum by SciPy, with gradients from the definition."""

    def objective(flat: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        theta = flat.reshape(num_llms, dim)
        gradient = ridge * theta
        for context, shown, kept in choices:
            probabilities = choice_probabilities(theta[shown] @ context)
            for llm, probability in zip(shown, probabilities, strict=True):
                gradient[llm] += (probability - (llm == kept)) * context.astype(np.float64)
        return loss(theta, choices, ridge), gradient.ravel()

    options = {"gtol": 1e-9, "ftol": 1e-16, "maxiter": 5000}
    start = np.zeros(num_llms * dim)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x).reshape(num_llms, dim)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_solve_reaches_the_joint_optimum(size: int) -> None:
    choices, _ = draw_choices(250, 4, 3, size, seed=size)
    estimator = RidgeMNL(4, 3, size, ridge=0.7)
    for choice in choices:
        estimator.update(*choice)
    estimator.solve()
    np.testing.assert_allclose(estimator.theta, scipy_optimum(choices, 4, 3, 0.7), atol=1e-6)


@pytest.mark.parametrize(("size", "dtype"), [(1, "float64"), (2, "float64"), (3, "float32")])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_online_refit_stays_near_the_joint_optimum(size: int, dtype: str, scale: float) -> None:
    num_llms, dim = 5, 4
    choices, _ = draw_choices(600, num_llms, dim, size, seed=10, scale=scale)
    online = RidgeMNL(num_llms, dim, size, dtype=dtype)
    exact = RidgeMNL(num_llms, dim, size)
    for i, choice in enumerate(choices):
        online.update(*choice)
        exact.update(*choice)
        if i in (20, 100, 599):
            exact.solve()
            seen = choices[: i + 1]
            excess = loss(online.theta, seen, 1.0) - loss(exact.theta, seen, 1.0)
            # The documented distance; the statistical scale is d / 2 = 2 per LLM.
            assert excess <= 10 * num_llms * online.tolerance


def test_assortments_may_be_smaller_than_the_largest() -> None:
    choices, _ = draw_choices(150, 4, 3, 1, seed=12)
    exact, usual = RidgeMNL(4, 3, 3), RidgeMNL(4, 3, 1)
    for choice in choices:
        exact.update(*choice)
        usual.update(*choice)
    np.testing.assert_allclose(exact.theta, usual.theta, rtol=1e-9)


def test_refit_moves_only_the_llms_shown() -> None:
    choices, _ = draw_choices(50, 5, 3, 2, seed=3)
    estimator = RidgeMNL(5, 3, 2)
    for context, shown, kept in choices:
        before = estimator.theta.copy()
        estimator.update(context, shown, kept)
        others = np.setdiff1d(np.arange(5), shown)
        np.testing.assert_array_equal(estimator.theta[others], before[others])


def test_tolerance_bounds_the_newton_decrement_of_the_active_set() -> None:
    choices, _ = draw_choices(200, 3, 3, 2, seed=4)
    estimator = RidgeMNL(3, 3, 2, tolerance=1e-12)
    for choice in choices:
        estimator.update(*choice)
    shown = choices[-1][1]
    gradient = np.zeros((3, 3))
    for context, llms, kept in choices:
        utilities = [float(context @ estimator.theta[j]) for j in llms]
        for llm, probability in zip(llms, choice_probabilities(np.array(utilities)), strict=True):
            gradient[llm] += (probability - (llm == kept)) * context.astype(np.float64)
    gradient += estimator.theta
    assert np.abs(gradient[shown]).max() < 1e-4


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_refit_that_reads_no_more_contexts_is_done(scale: float) -> None:
    dim = CHEAP_DIM + 10
    choices, _ = draw_choices(150, 4, dim, 2, seed=9, scale=scale)
    estimator = RidgeMNL(4, dim, 2)
    for context, shown, kept in choices:
        estimator.update(context, shown, kept)
        for llm in shown:
            decrement, root = _step(estimator._state, llm, 1.0, np.inf)
            assert 0.0 <= decrement <= estimator.tolerance
            assert root == pytest.approx(decrement**0.5)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 50])
def test_inverse_hessian_of_few_and_of_many_rows(count: int) -> None:
    rng = np.random.default_rng(count)
    contexts, weight = rng.normal(size=(count, 20)), rng.uniform(0.0, 0.25, count)
    hessian = 0.3 * np.eye(20) + (contexts.T * weight) @ contexts
    inverse = inverse_hessian(contexts, weight, 0.3)
    np.testing.assert_allclose(inverse @ hessian, np.eye(20), atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 12, 50])
def test_the_inverse_hessian_survives_rows_of_very_different_lengths(count: int) -> None:
    """The ridge is below the last bit of their Gram matrix, which then has no Cholesky factor.

    Beside one long row x it is the inverse of the others on what is orthogonal to x, and 0 along x.
    """
    rng = np.random.default_rng(count)
    contexts = rng.normal(size=(count, 8))
    direction = rng.normal(size=8) / 3.0
    long = np.concatenate([contexts, 1e12 * direction[None]])
    inverse = inverse_hessian(long, np.full(count + 1, 0.25), 0.3)
    basis = np.linalg.svd(direction[None])[2][1:]  # (7, d)
    flat = contexts @ basis.T
    expected = basis.T @ np.linalg.inv(0.3 * np.eye(7) + 0.25 * flat.T @ flat) @ basis
    np.testing.assert_allclose(inverse, expected, atol=1e-3)


CONTEXTS = {
    "tiny": lambda rows: 1e-9 * rows,
    "not normal numbers": lambda rows: 1e-40 * rows,
    "huge": lambda rows: MAX_CONTEXT * rows,
    "one is huge": lambda rows: np.where(np.arange(len(rows))[:, None] == 40, MAX_CONTEXT, rows),
    "some are huge": lambda rows: np.where(np.arange(len(rows))[:, None] % 5, rows, MAX_CONTEXT),
    "one coordinate is huge": lambda rows: rows * np.append(MAX_CONTEXT, np.ones(len(rows[0]) - 1)),
    "zeros": lambda rows: 0.0 * rows,
    "equal": lambda rows: rows[:1] + 0.0 * rows,
    "one-hot": lambda rows: np.eye(len(rows[0]))[np.arange(len(rows)) % len(rows[0])],
}


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("dim", [1, 4, CHEAP_DIM + 16])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_whatever_contexts_a_pool_takes_every_estimate_stays_finite(
    kind: str, dim: int, dtype: str
) -> None:
    rng = np.random.default_rng(dim)
    contexts = CONTEXTS[kind](rng.uniform(-1, 1, (150, dim))).astype(np.float32)
    logit, linear = RidgeMNL(3, dim, 2, dtype=dtype), RidgeRegression(3, dim, dtype=dtype)
    mirror, gram = OnlineMirrorDescentMNL(3, dim, 2), ConfidenceFactors(3, dim, dtype=dtype)
    effects, near, utilities = QueryEffects(3), Neighbours(3, dim, 2, 60), np.zeros(3)
    for t, context in enumerate(contexts):
        shown = rng.permutation(3)[:2].tolist()
        kept = int(rng.choice([*shown, -1]))
        for estimator in (logit, linear, mirror):
            estimator.update(context, shown, kept)
        gram.observe(shown, context)
        near.observe(context, shown[0], float(kept == shown[0]))
        effects.judge(context, t, utilities, shown, kept)
        effects.note(context, t, utilities, shown, kept)
        waiting, found = contexts[max(0, t - 3) : t + 1], np.zeros((1, 3))
        effects.add_to(found, context[None])
        seen = [logit.theta, linear.theta, mirror.theta, *near.look_up(context), found]
        for factors in (gram, linear.confidence, mirror.confidence):
            norms = factors.norms(waiting)
            assert (norms >= 0.0).all()
            seen += [norms, factors.factors, factors.noise(waiting, rng, 2)]
        assert all(np.isfinite(numbers).all() for numbers in seen), t


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_contexts_of_any_length_keep_the_estimate_finite(dtype: str) -> None:
    choices, _ = draw_choices(150, 3, 3, 2, seed=8)
    estimator = RidgeMNL(3, 3, 2, dtype=dtype)
    mirror = OnlineMirrorDescentMNL(3, 3, 2)
    for i, (context, shown, kept) in enumerate(choices):
        long = context * np.float32(1000 if i % 2 else 0)
        estimator.update(long, shown, kept)
        mirror.update(long, shown, kept)
    assert np.isfinite(estimator.theta).all()
    assert np.isfinite(mirror.theta).all()


def test_solve_that_runs_out_of_sweeps_says_so() -> None:
    choices, _ = draw_choices(50, 3, 3, 2, seed=5)
    estimator = RidgeMNL(3, 3, 2)
    for choice in choices:
        estimator.update(*choice)
    with pytest.raises(RuntimeError, match="decrement"):
        estimator.solve(max_sweeps=1)


@pytest.mark.parametrize("dim", [4, 70])
def test_factors_give_the_inverse_gram_matrix(dim: int) -> None:
    rng = np.random.default_rng(0)
    confidence = ConfidenceFactors(2, dim, ridge=0.5)
    gram = np.stack([0.5 * np.eye(dim)] * 2)
    for _ in range(300):
        llm, weight = int(rng.integers(2)), float(rng.uniform(0.1, 3.0))
        context = rng.normal(size=dim)
        confidence.update(llm, context, weight)
        gram[llm] += weight * np.outer(context, context)
    for factor, matrix in zip(confidence.factors, gram, strict=True):
        np.testing.assert_allclose(factor.T @ factor @ matrix, np.eye(dim), atol=1e-9)
    contexts = rng.normal(size=(3, dim))
    inverse = np.linalg.inv(gram)
    expected = np.sqrt(np.einsum("qd,nde,qe->qn", contexts, inverse, contexts))
    np.testing.assert_allclose(confidence.norms(contexts), expected, rtol=1e-9)


def test_what_is_kept_of_the_waiting_queries_follows_the_factors() -> None:
    """Norms kept from slot to slot equal those of the definition, in any queue."""
    rng = np.random.default_rng(1)
    for dim in (3, 70):
        confidence = ConfidenceFactors(3, dim)
        pool, theta = rng.normal(size=(12, dim)).astype(np.float32), rng.normal(size=(3, dim))
        for _ in range(120):
            rows = rng.choice(12, size=int(rng.integers(1, 8)))  # with repeated contexts
            queue = pool[rows]
            fresh = np.einsum("qd,ned->qne", queue, confidence.factors)
            expected = np.linalg.norm(fresh, axis=2)
            norms = confidence.norms(queue)
            np.testing.assert_allclose(norms, expected, rtol=1e-9)
            np.testing.assert_array_equal(norms, norms[[rows.tolist().index(row) for row in rows]])
            bounds = confidence.bounds(theta, queue, 0.7)
            np.testing.assert_allclose(bounds, queue @ theta.T + 0.7 * expected, rtol=1e-9)
            if rng.random() < 0.5:
                confidence.update(int(rng.integers(3)), queue[0], float(rng.uniform(0.1, 3.0)))
            else:
                confidence.observe([2, 0], queue[-1])


def test_single_precision_factors_stay_close_to_double_ones() -> None:
    rng = np.random.default_rng(4)
    dim = 80
    double, single = (ConfidenceFactors(2, dim, dtype=name) for name in ("float64", "float32"))
    queue = rng.normal(size=(40, dim)).astype(np.float32) / dim**0.5
    for step in range(2000):
        context = queue[step % 40]
        for confidence in (double, single):
            confidence.update(step % 2, context)
        if step % 100 == 0:  # projections are kept from slot to slot
            np.testing.assert_allclose(single.norms(queue), double.norms(queue), rtol=1e-3)
    assert single.factors.dtype == np.float32
    np.testing.assert_allclose(single.norms(queue), double.norms(queue), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equal_and_nearly_equal_contexts_get_equal_noise(dtype: str) -> None:
    rng = np.random.default_rng(5)
    dim = 70
    confidence = ConfidenceFactors(2, dim, dtype=dtype)
    context = rng.normal(size=dim).astype(np.float32)
    queue = np.stack([context, context, np.nextafter(context, np.float32(9)), -context])
    for _ in range(300):
        confidence.update(int(rng.integers(2)), context + rng.normal(size=dim).astype(np.float32))
        noise = confidence.noise(queue, rng, 1)
        np.testing.assert_array_equal(noise[0], noise[1])
        scale = confidence.norms(queue)[0].max()
        assert np.abs(noise[0] - noise[2]).max() < 0.02 * scale
        assert np.abs(noise[0] + noise[3]).max() < 0.02 * scale


@pytest.mark.parametrize("dim", [3, 70])
def test_thompson_noise_has_the_covariance_of_the_ellipsoid(dim: int) -> None:
    rng = np.random.default_rng(2)
    confidence = ConfidenceFactors(2, dim)
    for _ in range(20):
        confidence.update(0, rng.normal(size=dim))
    contexts = rng.normal(size=(3, dim)) / dim**0.5
    samples = 40_000 if dim < 10 else 8_000
    noise = np.stack([confidence.noise(contexts, rng, 1) for _ in range(samples)], axis=2)
    for llm, factor in enumerate(confidence.factors):
        expected = contexts @ factor.T @ factor @ contexts.T
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        error = (noise[:, llm] @ noise[:, llm].T / samples - expected) / scale
        assert np.abs(error).max() < 6 / samples**0.5  # 6 standard errors and more
    across = noise[0, 0] @ noise[0, 1] / samples
    bound = 6 * np.prod(confidence.norms(contexts)[0]) / samples**0.5
    assert abs(across) < bound  # the LLMs' draws are independent


@pytest.mark.parametrize("dim", [3, 70])
def test_the_largest_of_many_draws_is_shared_by_the_queries(dim: int) -> None:
    rng = np.random.default_rng(4)
    confidence = ConfidenceFactors(2, dim, ridge=4.0)
    contexts = np.eye(dim)[:2]
    largest = np.stack([confidence.noise(contexts, rng, 5) for _ in range(4_000)])
    expected = 1.16296 / 2.0  # of 5 standard normals; the norm of each context is 1 / sqrt(4)
    assert np.abs(largest.mean(axis=0) - expected).max() < 6 * 0.7 / 2.0 / 4_000**0.5


@pytest.mark.parametrize(("dim", "dtype", "error"), [(4, "float64", 1e-10), (70, "float32", 1e-4)])
def test_ridge_regression_matches_the_normal_equations(dim, dtype, error) -> None:
    rng = np.random.default_rng(3)
    regression = RidgeRegression(2, dim, 0.3, dtype)
    contexts = rng.normal(size=(20 * dim, dim))
    outcomes = rng.integers(0, 2, len(contexts)).astype(float)
    for context, outcome in zip(contexts, outcomes, strict=True):
        regression.update(context, [1], 1 if outcome else -1)
    gram = contexts.T @ contexts + 0.3 * np.eye(dim)
    expected = np.linalg.solve(gram, contexts.T @ outcomes)
    np.testing.assert_allclose(regression.theta[1], expected, atol=error)
    assert not regression.theta[0].any()
    norms = np.sqrt(np.einsum("qd,de,qe->q", contexts, np.linalg.inv(gram), contexts))
    bounds = regression.confidence.bounds(regression.theta, contexts, 1.0)[:, 1]
    np.testing.assert_allclose(bounds, contexts @ expected + norms, atol=error, rtol=error)


def test_mirror_descent_step_solves_its_proximal_problem() -> None:
    choices, _ = draw_choices(30, 3, 3, 2, seed=6)
    estimator = OnlineMirrorDescentMNL(3, 3, assortment_size=2)
    hessian = np.stack([np.eye(3)] * 3)
    eta = 0.5 * np.log(3) + 2.0
    for context, shown, kept in choices:
        x = context.astype(np.float64)
        before = estimator.theta.copy()
        choice = choice_probabilities(before[shown] @ x)
        estimator.update(context, shown, kept)
        after = choice_probabilities(estimator.theta[shown] @ x)
        for llm, p, q in zip(shown, choice, after, strict=True):
            metric = hessian[llm] + eta * p * (1 - p) * np.outer(x, x)
            step = eta * np.linalg.solve(metric, (p - (llm == kept)) * x)
            np.testing.assert_allclose(estimator.theta[llm], before[llm] - step, atol=1e-8)
            hessian[llm] += q * (1 - q) * np.outer(x, x)


@pytest.mark.parametrize("size", [1, 2])
def test_mirror_descent_learns(size: int) -> None:
    choices, theta = draw_choices(6000, 3, 3, size, seed=7)
    estimator = OnlineMirrorDescentMNL(3, 3, size)
    for choice in choices:
        estimator.update(*choice)
    assert np.abs(estimator.theta - theta).max() < 0.5 * np.abs(theta).max()


def test_choice_probabilities_survive_large_utilities() -> None:
    assert choice_probabilities(np.array([800.0, -800.0])) == pytest.approx([1.0, 0.0])
    assert choice_probabilities(np.array([0.0, 0.0])) == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize(
    "contexts",
    [
        np.full((400, 3), 1e4),
        1000.0 + np.random.default_rng(0).standard_normal((400, 8)),
        1e4 + np.random.default_rng(1).standard_normal((400, 8)),
    ],
)
def test_large_collinear_contexts_do_not_break_single_precision(contexts):
    estimator = RidgeMNL(3, contexts.shape[1], 2, dtype="float32")
    rng = np.random.default_rng(2)
    for context in contexts.astype(np.float32):
        shown = rng.permutation(3)[:2].tolist()
        estimator.update(context, shown, shown[0] if rng.random() < 0.5 else -1)
    assert np.isfinite(estimator.theta).all()
