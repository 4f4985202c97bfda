"""Time the exact RouteOPT and DeployOPT solvers against HiGHS through SciPy, in one process.

Run ``python -m benchmarks.measure.solver_speed``; it prints medians in microseconds and ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from llmqueue_gym.deployment.routing import RouteOpt, deploy_opt, route_opt

Problem = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]


def median_microseconds(call: Callable[[int], object], repetitions: int) -> float:
    """Median wall time of ``call(i)`` over i = 0, 1, ..., after one untimed call."""
    call(0)
    times = []
    for i in range(repetitions):
        start = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def random_problem(rng: np.random.Generator, size: int, alpha: float | None) -> Problem:
    """Draw LLMs whose quality rises with price, as list prices do; ``alpha=None``: unequal caps."""
    cost = 10.0 ** rng.uniform(-4.5, -1.5, size)
    mu = np.clip(0.85 + 0.15 * np.log10(cost) + rng.normal(0.0, 0.1, size), 0.0, 1.0)
    caps = rng.uniform(0.02, 0.25, size) if alpha is None else np.full(size, alpha)
    return mu, cost, caps, float(np.quantile(cost, 0.5))


def linprog_route(
    mu: NDArray[np.float64], cost: NDArray[np.float64], alpha: float, b: float
) -> object:
    """RouteOPT by HiGHS."""
    return linprog(
        -mu, A_ub=cost[None], b_ub=[b], A_eq=np.ones((1, mu.size)), b_eq=[1.0], bounds=(0.0, alpha)
    )


def milp_deploy(problem: Problem, max_deployed: int) -> object:
    """DeployOPT by HiGHS, to optimality."""
    mu, cost, alpha, budget = problem
    n = mu.size
    zeros, ones, scale = np.zeros(n), np.ones(n), cost.max()
    rows = np.vstack(
        [
            np.r_[cost / scale, zeros],
            np.r_[ones, zeros],
            np.r_[zeros, ones],
            np.hstack([np.eye(n), -np.diag(alpha)]),
        ]
    )
    slots = min(max_deployed, n)
    lower = np.r_[-np.inf, 1.0, slots, np.full(n, -np.inf)]
    upper = np.r_[budget / scale, 1.0, slots, zeros]
    return milp(
        -np.r_[mu, zeros],
        integrality=np.r_[zeros, ones],
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(rows, lower, upper),
        options={"mip_rel_gap": 0.0},
    )


def report_route(size: int, alpha: float, rng: np.random.Generator) -> None:
    """Print RouteOPT's times: from scratch, warm after one LLM's bounds moved, and HiGHS."""
    problems = [random_problem(rng, size, alpha) for _ in range(200)]
    cold_solvers = [RouteOpt(*problem) for problem in problems]
    cold = median_microseconds(lambda i: cold_solvers[i].solve(), len(problems))
    checked = median_microseconds(lambda i: route_opt(*problems[i]), len(problems))
    highs = median_microseconds(
        lambda i: linprog_route(problems[i][0], problems[i][1], alpha, problems[i][3]), 100
    )

    mu, cost, caps, budget = problems[0]
    warm_solver = RouteOpt(mu, cost, caps, budget)
    llms = rng.integers(size, size=2000).tolist()
    moves = rng.normal(1.0, 0.002, (2000, 2)).tolist()

    def warm(i: int) -> None:
        llm = llms[i]
        warm_solver.set_bounds(llm, mu[llm] * moves[i][0], cost[llm] * moves[i][1])
        warm_solver.solve()

    after_move = median_microseconds(warm, len(llms))
    print(
        f"RouteOPT M={size:<3d} alpha={alpha:<5g} warm {after_move:7.1f} us   "
        f"cold {cold:7.1f} us   validated {checked:7.1f} us   linprog {highs:8.1f} us   "
        f"ratio warm {highs / after_move:5.0f}x  cold {highs / cold:5.0f}x"
    )


def report_deploy(size: int, slots: int, alpha: float | None, rng: np.random.Generator) -> None:
    """Print DeployOPT's times over random instances and HiGHS's on the same."""
    problems = [random_problem(rng, size, alpha) for _ in range(20)]
    own, highs = [], []
    for problem in problems:
        own.append(median_microseconds(lambda _, p=problem: deploy_opt(*p, slots), 1))  # type: ignore[misc]
        highs.append(median_microseconds(lambda _, p=problem: milp_deploy(p, slots), 1))  # type: ignore[misc]
    ratios = sorted(h / o for h, o in zip(highs, own, strict=True))
    caps = "unequal" if alpha is None else f"{alpha:g}"
    print(
        f"DeployOPT N={size:<3d} M_max={slots} alpha={caps:<7s} "
        f"median {statistics.median(own):8.0f} us (worst {max(own):8.0f})   "
        f"milp {statistics.median(highs):8.0f} us (worst {max(highs):8.0f})   "
        f"ratio median {statistics.median(ratios):6.1f}x  worst {ratios[0]:5.1f}x"
    )


def main() -> None:
    """Print both tables."""
    rng = np.random.default_rng(0)
    for size, alpha in ((5, 0.4), (8, 0.4), (8, 0.25), (16, 0.25), (32, 0.125)):
        report_route(size, alpha, rng)
    caps: list[float | None] = [0.4, 0.25, 0.13, 0.125, None]
    report_deploy(32, 8, 0.25, rng)
    report_deploy(88, 4, 0.25, rng)
    for cap in caps:
        report_deploy(88, 8, cap, rng)


if __name__ == "__main__":
    main()
