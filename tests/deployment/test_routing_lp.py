"""RouteOPT and DeployOPT against HiGHS, brute force and the published tables.

Laws: exact optima, feasible shares, documented fallbacks.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from llmqueue_gym.deployment.routing import RouteOpt, RouteSolution, deploy_opt, route_opt

Floats = NDArray[np.float64]
Problem = tuple[Floats, Floats, Floats, float]

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def highs_route(mu: Floats, cost: Floats, alpha: Floats, budget: float) -> float | None:
    """Optimal value by HiGHS, None if infeasible; the budget row is scaled to unit costs."""
    scale = cost.max() or 1.0
    result = linprog(
        -mu,
        A_ub=cost[None] / scale,
        b_ub=[budget / scale],
        A_eq=np.ones((1, mu.size)),
        b_eq=[1.0],
        bounds=np.c_[np.zeros(mu.size), alpha],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert result.status in (0, 2)
    return float(-result.fun) if result.status == 0 else None  # type: ignore[operator]


def highs_deploy(problem: Problem, max_deployed: int) -> tuple[float, NDArray[np.bool_]] | None:
    """Dual bound on the optimal value and the chosen LLMs by HiGHS, None if infeasible."""
    mu, cost, alpha, budget = problem
    n, scale = mu.size, cost.max() or 1.0
    zeros, ones = np.zeros(n), np.ones(n)
    rows = np.vstack(
        [
            np.r_[cost / scale, zeros],
            np.r_[ones, zeros],
            np.r_[zeros, ones],
            np.hstack([np.eye(n), -np.diag(alpha)]),
        ]
    )
    slots = min(max_deployed, n)
    result = milp(
        -np.r_[mu, zeros],
        integrality=np.r_[zeros, ones],
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(
            rows,
            np.r_[-np.inf, 1.0, slots, np.full(n, -np.inf)],
            np.r_[budget / scale, 1.0, slots, zeros],
        ),
        options={"mip_rel_gap": 0.0},
    )
    assert result.status in (0, 2)
    return (-result.mip_dual_bound, result.x[n:] > 0.5) if result.status == 0 else None


def random_problem(rng: np.random.Generator) -> Problem:
    """A generic instance in the units of the data: rewards in [0, 1], USD a query."""
    m = int(rng.integers(1, 13))
    cost = 10.0 ** rng.uniform(-5, -1, m)
    budget = float(rng.choice([*cost, cost.mean(), np.median(cost) * rng.uniform(0.2, 3)]))
    alpha = rng.uniform(0.02, 1, m) if rng.random() < 0.5 else np.full(m, rng.uniform(0.1, 1))
    return rng.random(m), cost, alpha, budget


def degenerate_problem(rng: np.random.Generator) -> Problem:
    """An instance full of ties: coarse grids, equal columns, zero costs and budgets, one LLM."""
    m = int(rng.integers(1, 11))
    mu = rng.choice([0.0, 0.25, 0.5, 1.0], m) if rng.random() < 0.7 else np.full(m, 0.5)
    cost = 1e-3 * rng.choice([0.0, 0.1, 0.2, 0.5, 1.0], m)
    if rng.random() < 0.3:
        cost = np.full(m, rng.choice([0.0, 5e-4]))
    caps = [1.0, 0.5, 0.4, 0.25, 0.2, 0.1, 1 / 3, 1 / m]  # 1 / m: the alphas sum to 1 just so
    alpha = np.full(m, rng.choice(caps)) if rng.random() < 0.5 else rng.choice(caps, m)
    budget = float(1e-3 * rng.choice([0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0]))
    return mu, cost, alpha, budget


def assert_is_optimum(problem: Problem, solution: RouteSolution) -> None:
    """Same verdict and value as HiGHS, and shares that keep every row."""
    mu, cost, alpha, budget = problem
    p, value, spend, status = solution
    best = highs_route(*problem)
    assert (status == "optimal") == (best is not None)
    assert abs(p.sum() - 1.0) <= 1e-12
    assert p.min() >= 0.0
    assert value == pytest.approx(mu @ p, abs=1e-12)
    assert spend == pytest.approx(cost @ p, abs=1e-12)
    if best is not None:
        assert value == pytest.approx(best, abs=1e-9)
        assert (p <= alpha + 1e-12).all()
        assert spend <= budget * (1 + 1e-11)
    elif status == "under_capacity":
        assert alpha.sum() < 1.0
        np.testing.assert_allclose(p, alpha / alpha.sum(), rtol=1e-12)
    else:
        cheapest = highs_route(-cost, cost, alpha, cost.max())
        assert cheapest is not None
        assert budget < spend
        assert spend == pytest.approx(-cheapest, rel=1e-9)
        assert (p <= alpha + 1e-12).all()


@pytest.mark.parametrize("draw", [random_problem, degenerate_problem])
def test_route_opt_equals_highs(draw: Any) -> None:
    rng = np.random.default_rng(1)
    verdicts = set()
    for _ in range(1500):
        problem = draw(rng)
        solution = route_opt(*problem)
        assert_is_optimum(problem, solution)
        verdicts.add(solution.status)
    assert verdicts == {"optimal", "over_budget", "under_capacity"}


def grid(step: float, most: int) -> st.SearchStrategy[float]:
    return st.integers(0, most).map(lambda k: k * step)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    m = draw(st.integers(1, 8))

    def column(values: st.SearchStrategy[float]) -> Floats:
        return np.array(draw(st.lists(values, min_size=m, max_size=m)))

    alpha = column(st.integers(1, 20).map(lambda k: k / 20))
    return column(grid(0.05, 20)), column(grid(1e-4, 30)), alpha, draw(grid(5e-5, 60))


@given(problems())
@settings(max_examples=300)
def test_route_opt_equals_highs_on_hostile_grids(problem: Problem) -> None:
    assert_is_optimum(problem, route_opt(*problem))


@given(problems(), st.data())
@settings(max_examples=100)
def test_a_warm_solver_never_differs_from_a_fresh_one(
    problem: Problem, data: st.DataObject
) -> None:
    mu, cost, alpha, budget = problem
    warm = RouteOpt(*problem)
    for _ in range(8):
        llm = data.draw(st.integers(0, mu.size - 1))
        mu[llm], cost[llm] = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 3e-3))
        warm.set_bounds(llm, mu[llm], cost[llm])
        warm.budget = budget = data.draw(st.sampled_from([budget, 0.98 * budget]))
        fresh = RouteOpt(mu, cost, alpha, budget)
        assert warm.solve() == fresh.solve()
        assert (warm.status, warm.value, warm.spend) == (fresh.status, fresh.value, fresh.spend)


def test_the_warm_basis_is_reused_and_right() -> None:
    """A random walk of one LLM's bounds a step, as in StageRoute: mostly warm, always optimal."""
    rng = np.random.default_rng(2)
    mu, cost = rng.random(8), 10.0 ** rng.uniform(-4, -2, 8)
    solver = RouteOpt(mu, cost, 0.3, float(np.median(cost)))
    kept = 0
    for step in range(1500):
        llm = int(rng.integers(8))
        mu[llm] = np.clip(mu[llm] + 0.01 * rng.normal(), 0, 1)
        cost[llm] *= np.exp(0.01 * rng.normal())
        solver.set_bounds(llm, mu[llm], cost[llm])
        before = solver._basis
        p = np.array(solver.solve())
        kept += before is not None and solver._basis is before
        if step % 5 == 0:
            solution = RouteSolution(p, solver.value, solver.spend, solver.status)
            assert_is_optimum((mu, cost, np.full(8, 0.3), solver.budget), solution)
    assert kept > 1000


def test_earlier_shares_survive_later_solves() -> None:
    solver = RouteOpt([0.9, 0.5], [0.01, 0.001], 1.0, 0.005)
    first = solver.solve()
    snapshot = list(first)
    solver.set_bounds(0, 0.8, 0.02)
    solver.solve()
    assert first == snapshot


def test_a_mixture_spends_the_budget_in_closed_form() -> None:
    p, value, spend, status = route_opt([0.9, 0.5], [0.010, 0.001], 1.0, 0.004)
    assert p[0] == pytest.approx((0.004 - 0.001) / (0.010 - 0.001), abs=1e-14)
    assert value == pytest.approx(0.5 + 0.4 / 3, abs=1e-14)
    assert spend == pytest.approx(0.004, abs=1e-16)
    assert status == "optimal"


def test_ties_go_to_the_cheaper_then_to_the_lower_index() -> None:
    free = route_opt([0.5, 0.5, 0.5], [0.3, 0.1, 0.1], 0.6, 1.0)
    assert free.p.tolist() == [0.0, 0.6, 0.4]
    broke = route_opt([0.2, 0.9, 0.9], [0.1, 0.1, 0.1], 0.6, 0.0)
    assert broke.status == "over_budget"
    assert broke.p.tolist() == [0.0, 0.6, 0.4]


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_costs_that_hardly_differ_lose_no_digits(gap: float) -> None:
    dear, budget = 1.0 + gap, 1.0 + gap / 4
    p, value, _, status = route_opt([0.0, 1.0], [1.0, dear], 1.0, budget)
    assert status == "optimal"
    assert value == p[1] == pytest.approx((budget - 1.0) / (dear - 1.0), rel=1e-12)


def brute_force(problem: Problem, max_deployed: int) -> tuple[str, float, float]:
    """Status, value and spend of the best subset, every subset solved by RouteOPT.

    Ranks feasible sets by value, sets over budget by spend, and looks at the sets of largest
    capacity only where none carries the traffic.
    """
    mu, cost, alpha, budget = problem
    slots = min(max_deployed, mu.size)
    sets = [list(s) for s in itertools.combinations(range(mu.size), slots)]
    most = max(alpha[s].sum() for s in sets)
    solved = []
    for s in sets:
        caps, raised = alpha, most < 1 - 1e-12
        if raised:
            caps = np.minimum(alpha / most, 1.0)
        solution = route_opt(mu[s], cost[s], caps[s], budget)
        if solution.status != "under_capacity":
            solved.append((solution.status == "optimal", solution))
    best = max((sol for ok, sol in solved if ok), key=lambda sol: sol.value, default=None) or min(
        (sol for _, sol in solved), key=lambda sol: sol.spend
    )
    return ("under_capacity" if raised else best.status), best.value, best.spend


@pytest.mark.parametrize("draw", [random_problem, degenerate_problem])
def test_deploy_opt_equals_brute_force(draw: Any) -> None:
    rng = np.random.default_rng(3)
    verdicts = set()
    for _ in range(300):
        problem = draw(rng)
        mu, cost, alpha = (column[:7] for column in problem[:3])
        budget, slots = problem[3], int(rng.integers(1, 6))
        problem = (mu, cost, alpha, budget)
        solution = deploy_opt(mu, cost, alpha, budget, slots)
        status, value, spend = brute_force(problem, slots)
        assert solution.status == status
        assert solution.deployed.sum() == min(slots, mu.size)
        if spend <= budget * (1 + 1e-12):
            assert solution.value == pytest.approx(value, abs=1e-12)
        else:
            assert solution.spend == pytest.approx(spend, rel=1e-12)
        assert solution.d[~solution.deployed].sum() == 0.0
        assert solution.d.sum() == pytest.approx(1.0, abs=1e-12)
        assert status == "under_capacity" or (solution.d <= alpha + 1e-12).all()
        verdicts.add(status)
    assert verdicts == {"optimal", "over_budget", "under_capacity"}


@pytest.mark.parametrize("caps", [0.4, 0.25, 0.13, 0.125, None])
def test_deploy_opt_equals_highs_at_catalog_size(caps: float | None) -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        cost = 10.0 ** rng.uniform(-4.5, -1.5, 88)
        mu = np.clip(0.85 + 0.15 * np.log10(cost) + rng.normal(0, 0.1, 88), 0, 1)
        alpha = rng.uniform(0.05, 0.3, 88) if caps is None else np.full(88, caps)
        problem = (mu, cost, alpha, float(np.median(cost)))
        solution, highs = deploy_opt(*problem, 8), highs_deploy(problem, 8)
        assert highs is not None
        chosen = highs[1]
        theirs = route_opt(mu[chosen], cost[chosen], alpha[chosen], problem[3])
        assert theirs.value - 1e-9 <= solution.value <= highs[0] + 1e-6


def test_spare_slots_go_by_reward_then_samples_then_incumbents_then_index() -> None:
    mu = [0.9, 0.7, 0.8, 0.7, 0.7, 0.7]
    cost = [0.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    samples = [5, 3, 9, 2, 2, 2]
    incumbent = [False, True, False, False, True, False]

    def deployed(slots: int) -> list[int]:
        solution = deploy_opt(mu, cost, 1.0, 0.0, slots, samples=samples, incumbent=incumbent)
        return np.flatnonzero(solution.deployed).tolist()

    order = [0, 2, 4, 3, 5, 1]
    assert [deployed(k) for k in range(1, 7)] == [sorted(order[:k]) for k in range(1, 7)]


def test_unseen_llms_are_all_equal_and_rank_decides() -> None:
    """Before any sample mu^U = 1 and c^L = c1 for all: the optimum is a tie of every set."""
    equal = np.ones(88)
    samples = np.r_[np.full(80, 3), np.zeros(8)]
    solution = deploy_opt(equal, 1e-5 * equal, 0.4, 1e-3, 8, samples=samples)
    assert np.flatnonzero(solution.deployed).tolist() == list(range(80, 88))
    assert solution.value == pytest.approx(1.0)


def test_no_set_carries_the_traffic() -> None:
    """The fallback keeps the largest capacity, the budget where it can, and routes by alpha."""
    mu, cost, alpha = [0.9, 0.8, 0.5, 0.99], [9.0, 2.0, 1.0, 0.0], [0.4, 0.4, 0.4, 0.1]
    solution = deploy_opt(mu, cost, alpha, 2.0, 2)
    assert solution.status == "under_capacity"
    assert solution.deployed.tolist() == [False, True, True, False]
    assert solution.d.tolist() == [0.0, 0.5, 0.5, 0.0]


def test_no_set_meets_the_budget() -> None:
    solution = deploy_opt([0.9, 0.5, 0.4], [3.0, 2.0, 1.0], 0.5, 0.1, 2)
    assert solution.status == "over_budget"
    assert solution.deployed.tolist() == [False, True, True]
    assert solution.spend == pytest.approx(1.5)


GOOD: dict[str, Any] = {"mu": [0.5, 0.6], "cost": [0.1, 0.2], "alpha": 1.0, "budget": 0.1}
BAD = [
    ("mu", [], "mu has shape (0,)"),
    ("mu", [[0.1]], "mu has shape (1, 1)"),
    ("mu", [0.5, float("nan")], "mu[1]=nan must be finite"),
    ("mu", [float("inf"), 0.5], "mu[0]=inf"),
    ("cost", [0.1], "cost has shape (1,)"),
    ("cost", [0.1, -1e-9], "cost[1]=-1e-09 must be finite and >= 0"),
    ("cost", [float("nan"), 0.1], "cost[0]=nan"),
    ("alpha", 0.0, "alpha[0]=0.0 must lie in (0, 1]"),
    ("alpha", [0.5, 1.5], "alpha[1]=1.5"),
    ("alpha", [0.5, 0.5, 0.5], "alpha has shape (3,)"),
    ("alpha", float("nan"), "alpha[0]=nan"),
    ("budget", -1e-3, "budget=-0.001 must be finite and >= 0"),
    ("budget", float("nan"), "budget=nan"),
    ("budget", float("inf"), "budget=inf"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_problems_are_refused_by_name(name: str, value: Any, message: str) -> None:
    arguments: dict[str, Any] = {**GOOD, name: value}
    for call in (route_opt, RouteOpt):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(**arguments)
    with pytest.raises(ValueError, match=re.escape(message)):
        deploy_opt(**arguments, max_deployed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_deployed": 0}, "max_deployed=0 must be an integer >= 1"),
        ({"max_deployed": 1.5}, "max_deployed=1.5"),
        ({"max_deployed": 1, "samples": [1]}, "samples has shape (1,)"),
        ({"max_deployed": 1, "samples": [1, float("nan")]}, "samples"),
        ({"max_deployed": 1, "incumbent": [True] * 3}, "incumbent has shape (3,)"),
    ],
)
def test_bad_deployment_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        deploy_opt(**GOOD, **arguments)


ROUTERBENCH_BUDGETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
NAN = float("nan")
ROUTERBENCH = [
    (1.0, range(2, 12), (0.4832, 0.6482, 0.6611, 0.6827, 0.7257, 0.7814)),
    (0.5, range(2, 3), (0.4266, 0.5974, 0.6334, 0.6334, 0.7145, 0.7145)),
    (0.5, range(3, 12), (0.4789, 0.6239, 0.6486, 0.6752, 0.7145, 0.7145)),
    (0.4, range(3, 4), (0.4621, 0.6162, 0.6264, 0.6721, 0.6988, 0.6988)),
    (0.4, range(5, 12), (0.4717, 0.6170, 0.6433, 0.6721, 0.6988, 0.6988)),
    (0.25, range(5, 12), (NAN, 0.6032, 0.6254, 0.6619, 0.6737, 0.6737)),
    (0.4, range(2, 3), (NAN,) * 6),
    (0.25, range(2, 4), (NAN,) * 6),
]


def read(name: str) -> dict[str, Any]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} from the project's data folder")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize(("alpha", "caps", "row"), ROUTERBENCH)
def test_routerbench_reference_values(alpha: float, caps: range, row: tuple[float, ...]) -> None:
    models = read("routerbench_models.json")["models"]
    mu = [m["mean_reward"] for m in models]
    cost = [m["mean_cost_usd"] for m in models]
    for max_deployed in caps:
        for budget, value in zip(ROUTERBENCH_BUDGETS, row, strict=True):
            solution = deploy_opt(mu, cost, alpha, budget, max_deployed)
            assert (solution.status == "optimal") == (value == value)
            if value == value:
                assert solution.value == pytest.approx(value, abs=5.1e-5)
