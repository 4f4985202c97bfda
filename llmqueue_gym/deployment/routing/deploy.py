"""DeployOPT: which LLMs to deploy, by branch and bound on RouteOPT."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmqueue_gym.deployment.routing.route import (
    DUST,
    FEASIBILITY_TOL,
    RouteOpt,
    Status,
    greedy_mixture,
    validated,
)
from llmqueue_gym.errors import UsageError

_T = TypeVar("_T")

_PRUNE_GAP = 1e-13  # relative gain not worth another branch


class DeploySolution(NamedTuple):
    """Optimal deployment.

    Attributes
    ----------
    deployed : NDArray[np.bool_]
        The deployed LLMs z, (N,), exactly ``min(max_deployed, N)`` of them.
    d : NDArray[np.float64]
        RouteOPT's shares over the deployed LLMs, (N,), 0 elsewhere.
    value : float
        Expected reward of a query, ``mu @ d``.
    spend : float
        Expected cost of a query, ``cost @ d``.
    status : {"optimal", "over_budget", "under_capacity"}
        As in `RouteSolution`: no deployment meets the budget, or no deployment carries the traffic.
    """

    deployed: NDArray[np.bool_]
    d: NDArray[np.float64]
    value: float
    spend: float
    status: Status


def deploy_opt(
    mu: ArrayLike,
    cost: ArrayLike,
    alpha: ArrayLike | float,
    budget: float,
    max_deployed: int,
    *,
    samples: ArrayLike | None = None,
    incumbent: ArrayLike | None = None,
) -> DeploySolution:
    """Solve DeployOPT: RouteOPT over the best set of ``min(max_deployed, N)`` LLMs.

    max ``mu @ d`` s.t. ``cost @ d <= b``, ``sum(d) = 1``, ``0 <= d <= alpha * z``, z binary,
    ``sum(z) = min(M_max, N)``. Ties (R): LLMs rank by highest mu^U, fewest samples, incumbents
    first, lowest index. Slots the optimum leaves unused go down this rank, and between LLMs of
    equal mu and cost the optimum takes the first in rank. Between other optimal supports of equal
    value the choice is deterministic, but need not maximise the summed mu^U of the deployed.

    Infeasible cases (R). No set has ``sum(alpha) >= 1``: all caps are raised by the one factor
    that makes the largest sets just suffice, hence a set of largest capacity is deployed, the best
    one within the budget. No set meets the budget: the set with the cheapest fill is deployed.

    Parameters
    ----------
    mu, cost, alpha, budget
        As in `route_opt`, over the N arrived LLMs.
    max_deployed : int
        Most LLMs deployed at a time, M_max >= 1.
    samples : array_like, optional
        How often each LLM was observed, (N,), for ties only; default 0.
    incumbent : array_like, optional
        Whether each LLM is deployed now, (N,), for ties only; default False.

    Raises
    ------
    ValueError
        If an argument has a wrong shape or is out of range.

    Notes
    -----
    Source: DeployOPT of Li & Li, arXiv 2506.17254. Method: branch and bound on RouteOPT. With
    equal alpha the cap binds only if ``M_max * alpha < 1 + alpha``, and otherwise the first
    relaxation is the answer; the worst case (unequal small alpha) is exponential in N.
    """
    mus, costs, alphas, budget = validated(mu, cost, alpha, budget)
    size = len(mus)
    if not isinstance(max_deployed, (int, np.integer)) or max_deployed < 1:
        raise UsageError(f"max_deployed={max_deployed!r} must be an integer >= 1")
    slots = min(int(max_deployed), size)
    counts = _tie_column("samples", samples, size)
    keep = _tie_column("incumbent", incumbent, size)
    rank = sorted(range(size), key=lambda k: (-mus[k], counts[k], -keep[k], k))

    used = _best_set(_pick(mus, rank), _pick(costs, rank), _pick(alphas, rank), budget, slots)
    spare = [k for k in range(size) if k not in used]
    llms = _pick(rank, sorted(used + spare[: slots - len(used)]))
    final = RouteOpt(_pick(mus, llms), _pick(costs, llms), _pick(alphas, llms), budget)
    deployed, d = np.zeros(size, dtype=np.bool_), np.zeros(size)
    deployed[llms] = True
    d[llms] = final.solve()
    return DeploySolution(deployed, d, final.value, final.spend, final.status)


def _best_set(
    mu: list[float], cost: list[float], alpha: list[float], budget: float, slots: int
) -> list[int]:
    """Return the LLMs that an optimal deployment uses, at most ``slots``, or the fallback's."""
    capacity = sum(sorted(alpha)[-slots:])
    if capacity < 1.0 - FEASIBILITY_TOL:
        alpha = [a / capacity for a in alpha]
    chosen = _branch_and_bound(mu, cost, alpha, budget, slots)
    if chosen is None:
        chosen = _branch_and_bound([-c for c in cost], cost, alpha, max(cost), slots)
    assert chosen is not None  # a budget of max(cost) binds nobody
    return chosen


def _branch_and_bound(
    mu: list[float], cost: list[float], alpha: list[float], budget: float, slots: int
) -> list[int] | None:
    """Return the support of an optimal d with at most ``slots`` LLMs; None if infeasible.

    Depth first, branching on the LLM with the largest share, inside before outside.
    """
    excess = [c - budget for c in cost]
    tol = FEASIBILITY_TOL * budget
    best_set, cutoff = None, -math.inf
    stack: list[tuple[list[int], list[int]]] = [([], _undominated(mu, cost, alpha, slots))]
    while stack:
        inside, free = stack.pop()
        bound = _relaxation(mu, excess, alpha, tol, inside, free, slots - len(inside))
        if bound is None or bound[0] <= cutoff:
            continue
        support = sorted(
            ((bound[1][k], -k) for k in free if bound[1].get(k, 0.0) > DUST), reverse=True
        )
        used = [-k for _, k in support[: slots - len(inside)]]
        rounded = bound
        if len(used) < len(support):
            # The cap on deployed LLMs is broken: branch, after trying the largest shares alone.
            rest = [k for k in free if k != used[0]]
            stack += [(inside, rest), ([*inside, used[0]], rest)]
            trial = _relaxation(mu, excess, alpha, tol, inside + used, [], 0)
            if trial is None:
                continue
            rounded = trial
        if rounded[0] > cutoff:
            best_set = [k for k, share in rounded[1].items() if share > DUST]
            cutoff = rounded[0] + _PRUNE_GAP * abs(rounded[0])
    return best_set


def _relaxation(
    mu: list[float],
    excess: list[float],
    alpha: list[float],
    tol: float,
    inside: list[int],
    free: list[int],
    slots: int,
) -> tuple[float, dict[int, float]] | None:
    """RouteOPT over ``inside`` and ``free`` without the cap: value and shares; None if infeasible.

    What the other deployed LLMs cannot carry, an LLM inside must: a lower bound on its share, valid
    with the cap and often far above 0, which makes the relaxation tight.
    """
    capacity = sum(alpha[k] for k in inside)
    if slots:
        capacity += sum(sorted([alpha[k] for k in free])[-slots:])
    else:
        free = []
    if capacity < 1.0 - FEASIBILITY_TOL:
        return None
    floor = [min(alpha[k], max(0.0, 1.0 - capacity + alpha[k])) for k in inside]
    llms = inside + free
    span = [alpha[k] for k in llms]
    value, mass, room = 0.0, 1.0, 0.0
    for i, (k, share) in enumerate(zip(inside, floor, strict=True)):
        span[i] -= share
        mass -= share
        room -= share * excess[k]
        value += share * mu[k]
    gained, p, price = greedy_mixture(
        [mu[k] for k in llms], [excess[k] for k in llms], span, max(0.0, mass), room, tol
    )
    if price == math.inf:
        return None
    for i, share in enumerate(floor):
        p[i] += share
    return value + gained, dict(zip(llms, p, strict=True))


def _undominated(mu: list[float], cost: list[float], alpha: list[float], slots: int) -> list[int]:
    """LLMs with fewer than ``slots`` others at least as good in mu, cost and alpha.

    Any other can be swapped for an undeployed one of its betters, so an optimum without it exists.
    """
    m, c, a = np.array(mu), np.array(cost), np.array(alpha)
    better = (m[:, None] >= m) & (c[:, None] <= c) & (a[:, None] >= a)
    # Of two equals the earlier one counts as better, and none is better than itself.
    better &= ~better.T | np.tri(len(mu), k=-1, dtype=np.bool_).T
    return [int(k) for k in np.flatnonzero(better.sum(axis=0) < slots)]


def _pick(column: list[_T], llms: list[int]) -> list[_T]:
    """Entries of a column, in the order of ``llms``."""
    return [column[k] for k in llms]


def _tie_column(name: str, values: ArrayLike | None, size: int) -> list[float]:
    """One number an LLM for ranking ties."""
    if values is None:
        return [0.0] * size
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (size,):
        raise UsageError(f"{name} has shape {column.shape}; give one entry an LLM, ({size},)")
    if not np.isfinite(column).all():
        raise UsageError(f"{name}={column.tolist()} must be finite")
    numbers: list[float] = column.tolist()
    return numbers
