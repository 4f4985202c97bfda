"""RouteOPT: how deployed LLMs share the traffic within the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmqueue_gym.compiled import borrowing, part
from llmqueue_gym.errors import UsageError

Status = Literal["optimal", "over_budget", "under_capacity"]

FEASIBILITY_TOL = 1e-12
"""Slack of the verdicts: relative to the budget, and absolute on ``sum(alpha) >= 1``."""

_UNIQUE_MARGIN = 1e-9  # how clear of a tie (in reward and in share) a reused basis must be
_ROUNDING = 1e-15  # relative gain below which a secant step is only noise
DUST = 1e-14  # a share this small is a rounding error


class RouteSolution(NamedTuple):
    """Optimal traffic shares.

    Attributes
    ----------
    p : NDArray[np.float64]
        Share of the traffic of each LLM, (M,), sums to 1.
    value : float
        Expected reward of a query, ``mu @ p``.
    spend : float
        Expected cost of a query, ``cost @ p``.
    status : {"optimal", "over_budget", "under_capacity"}
        ``"over_budget"``: every feasible share costs more than the budget, ``p`` is the cheapest.
        ``"under_capacity"``: ``sum(alpha) < 1``, ``p = alpha / sum(alpha)`` whatever it costs.
    """

    p: NDArray[np.float64]
    value: float
    spend: float
    status: Status


def route_opt(
    mu: ArrayLike, cost: ArrayLike, alpha: ArrayLike | float, budget: float
) -> RouteSolution:
    """Solve RouteOPT: max ``mu @ p`` s.t. ``cost @ p <= b``, ``sum(p) = 1``, ``0 <= p <= alpha``.

    Among equal LLMs the cheaper, then the lower index, is filled first; so where the budget does
    not bind, the answer is the cheapest of the optimal ones. Infeasible cases (R): see
    `RouteSolution.status`.

    Parameters
    ----------
    mu : array_like
        Reward of a query, or its upper confidence bound mu^U, (M,).
    cost : array_like
        Cost of a query, or its lower confidence bound c^L, (M,), >= 0.
    alpha : array_like or float
        Largest share of the traffic, (M,) or one for all, in (0, 1].
    budget : float
        Average cost allowed per query, b >= 0.

    Raises
    ------
    ValueError
        If an argument has a wrong shape or is out of range.

    Notes
    -----
    Source: RouteOPT of Li & Li, arXiv 2506.17254. Method: one Lagrange multiplier for the budget;
    the optimum mixes the two greedy fills on either side of the breakpoint, which secant steps
    reach exactly in a handful of sorts.

    Examples
    --------
    >>> route_opt([0.9, 0.5], [0.010, 0.001], 1.0, budget=0.0055).p
    array([0.5, 0.5])
    """
    solver = RouteOpt(mu, cost, alpha, budget)
    p = solver.solve()
    return RouteSolution(np.array(p), solver.value, solver.spend, solver.status)


class RouteOpt:
    """RouteOPT for a hot loop: one LLM's bounds move a little at each query.

    `solve` first tries the last basis (which LLMs are full, partial and empty). It is kept only if
    it proves the optimum is unique, so the answer never depends on what was solved before; all
    else, ties included, is solved from scratch. Arguments, errors, tie-breaking and infeasible
    cases are those of `route_opt`.

    Attributes
    ----------
    mu, cost, alpha : ndarray
        The problem, M entries each. Entries of mu and cost may be assigned, unvalidated; another
        alpha needs another solver.
    budget : float
        b, free to change between solves (pacing); a negative one is over budget.
    p : list of float
        Shares of the last `solve` or `draw`.
    status : {"optimal", "over_budget", "under_capacity"}
        Outcome of the last of them.
    """

    __slots__ = ("_basis", "_columns", "budget", "status")

    def __init__(
        self, mu: ArrayLike, cost: ArrayLike, alpha: ArrayLike | float, budget: float
    ) -> None:
        *columns, self.budget = validated(mu, cost, alpha, budget)
        self._columns = np.array([*columns, [0.0] * len(columns[0])])  # mu, cost, alpha and p
        self.status: Status = "optimal"
        self._basis: NDArray[np.int64] | None = None

    @property
    def mu(self) -> NDArray[np.float64]:
        """Rewards of a query."""
        return np.asarray(self._columns[0])

    @property
    def cost(self) -> NDArray[np.float64]:
        """Costs of a query."""
        return np.asarray(self._columns[1])

    @property
    def alpha(self) -> NDArray[np.float64]:
        """Largest shares of the traffic."""
        return np.asarray(self._columns[2])

    @property
    def p(self) -> list[float]:
        """Shares of the traffic."""
        shares: list[float] = self._columns[3].tolist()
        return shares

    @property
    def value(self) -> float:
        """Expected reward of a query under the last solution."""
        return float(sum(map(mul, self.mu.tolist(), self.p)))

    @property
    def spend(self) -> float:
        """Expected cost of a query under the last solution."""
        return float(sum(map(mul, self.cost.tolist(), self.p)))

    def set_bounds(self, llm: int, mu: float, cost: float) -> None:
        """Replace the bounds mu^U and c^L of one LLM (not validated)."""
        self._columns[0, llm] = mu
        self._columns[1, llm] = cost

    def solve(self) -> list[float]:
        """Return the optimal shares p, M floats."""
        self.draw(0.0)
        return self.p

    def draw(self, point: float) -> int:
        """Solve, and return the LLM on whose share the point in [0, 1) falls."""
        if self._basis is not None:
            llm = _draw(self._columns, self.budget, self._basis, point)
            if llm >= 0:
                return llm
        self._solve_afresh()
        return _place(self._columns[3], point)

    def _solve_afresh(self) -> None:
        """Set p, the basis and the status."""
        self.status, self._basis = "optimal", None
        mu, cost, alpha, _ = self._columns.tolist()
        capacity = sum(alpha)
        if capacity < 1.0 - FEASIBILITY_TOL:
            self.status = "under_capacity"
            self._columns[3] = [a / capacity for a in alpha]
            return
        excess = [c - self.budget for c in cost]
        tol = FEASIBILITY_TOL * self.budget
        _, p, price = greedy_mixture(mu, excess, alpha, 1.0, 0.0, tol)
        if price == math.inf:
            self.status = "over_budget"
        else:
            basis = _basis_of(p, alpha, mu, cost, price)
            # Re-solving from the new basis makes a first solve equal a later warm one bit for bit.
            if basis is not None and _draw(self._columns, self.budget, basis, 0.0) >= 0:
                self._basis = basis
                return
        self._columns[3] = p


# Where the LLMs stand at a vertex, the basis, is an array: how many are full, the partial one of
# lower cost, the one of higher cost (-1 where the budget does not bind), the full, the empty.


@part
def _solve_basis(columns: NDArray[np.float64], budget: float, basis: NDArray[np.int64]) -> bool:
    """Set p from a basis, and tell whether that is provably the unique optimum."""
    mu, cost, alpha, p = columns
    low, high = basis[1], basis[2]
    full, empty = basis[3 : 3 + basis[0]], basis[3 + basis[0] :]
    p[:] = 0.0
    left, room = 1.0, 0.0
    for k in full:
        p[k] = share = alpha[k]
        left -= share
        room -= share * (cost[k] - budget)
    room -= left * (cost[low] - budget)
    price = extra = 0.0
    if high < 0:
        if room < 0.0:
            return False
    else:
        gap = cost[high] - cost[low]
        rise = mu[high] - mu[low]
        if gap <= 0.0 or rise <= _UNIQUE_MARGIN:
            return False
        price = rise / gap
        extra = room / gap
        if not (
            _UNIQUE_MARGIN < extra < alpha[high] - _UNIQUE_MARGIN
            and _UNIQUE_MARGIN < left - extra < alpha[low] - _UNIQUE_MARGIN
        ):
            return False
    worth = mu[low] - price * cost[low]
    above, below = worth + _UNIQUE_MARGIN, worth - _UNIQUE_MARGIN
    for k in full:
        if mu[k] - price * cost[k] <= above:
            return False
    for k in empty:
        if mu[k] - price * cost[k] >= below:
            return False
    p[low] = left - extra
    if high >= 0:
        p[high] = extra
    return True


@borrowing
def _place(shares: NDArray[np.float64], point: float) -> int:
    """Return on which of the shares the point in [0, 1) falls."""
    for place in range(len(shares)):
        point -= shares[place]
        if point < 0.0:
            return place
    return len(shares) - 1


@borrowing
def _draw(
    columns: NDArray[np.float64], budget: float, basis: NDArray[np.int64], point: float
) -> int:
    """Return where the point falls on the shares of a basis; -1: it need not be the optimum."""
    return _place(columns[3], point) if _solve_basis(columns, budget, basis) else -1


def _basis_of(
    p: list[float], alpha: list[float], mu: list[float], cost: list[float], price: float
) -> NDArray[np.int64] | None:
    """Read the basis off a solution; None for a degenerate one."""
    models = range(len(p))
    full = [k for k in models if p[k] >= alpha[k] - DUST]
    empty = [k for k in models if p[k] <= DUST]
    partial = [k for k in models if DUST < p[k] < alpha[k] - DUST]
    if price == 0.0:
        if not partial:
            partial = [min(full, key=mu.__getitem__)]
            full.remove(partial[0])
        partial.append(-1)
    if len(partial) != 2:
        return None
    low, high = partial if price == 0.0 else sorted(partial, key=cost.__getitem__)
    return np.array([len(full), low, high, *full, *empty])


def _fill(
    order: list[tuple[float, float, int]],
    mu: list[float],
    excess: list[float],
    alpha: list[float],
    mass: float,
) -> tuple[float, float, list[float]]:
    """Fill LLMs to alpha in the sorted order until ``mass`` is placed: value, excess spend, p."""
    p = [0.0] * len(mu)
    value = spend = 0.0
    for _, _, k in order:
        share = alpha[k]
        if share > mass:
            share = mass
        p[k] = share
        value += share * mu[k]
        spend += share * excess[k]
        mass -= share
        if mass <= DUST:  # rounding, as 1 - 1/3 - 1/3 - 1/3; no reason to pay one more LLM
            break
    return value, spend, p


def greedy_mixture(
    mu: list[float],
    excess: list[float],
    alpha: list[float],
    mass: float,
    room: float,
    tol: float,
) -> tuple[float, list[float], float]:
    """Maximise ``mu @ p`` s.t. ``excess @ p <= room``, ``sum(p) = mass``, ``0 <= p <= alpha``.

    Costs come as excess over the budget, so that the budget row loses no digits when all costs are
    near it. ``sum(alpha) >= mass`` is the caller's to check. Returns the value, p and the budget's
    Lagrange multiplier lambda: 0 where the budget does not bind, inf where even the cheapest fill,
    then returned, breaks it.
    """
    models = range(len(mu))
    value_hi, spend_hi, p_hi = _fill(
        sorted(zip([-m for m in mu], excess, models, strict=True)), mu, excess, alpha, mass
    )
    if spend_hi <= room + tol:
        return value_hi, p_hi, 0.0
    value_lo, spend_lo, p_lo = _fill(
        sorted(zip(excess, [-m for m in mu], models, strict=True)), mu, excess, alpha, mass
    )
    if spend_lo > room + tol:
        return value_lo, p_lo, math.inf
    while True:
        # The dual line through both fills: any fill above it is a better end of the mixture.
        price = (value_hi - value_lo) / (spend_hi - spend_lo)
        order = sorted([(price * e - m, e, k) for m, e, k in zip(mu, excess, models, strict=True)])
        value, spend, p = _fill(order, mu, excess, alpha, mass)
        gain = value - value_lo - price * (spend - spend_lo)
        if gain <= _ROUNDING * (abs(value_lo) + abs(value_hi)) or not spend_lo < spend < spend_hi:
            break
        if spend > room:
            value_hi, spend_hi, p_hi = value, spend, p
        else:
            value_lo, spend_lo, p_lo = value, spend, p
    weight = max(0.0, (room - spend_lo) / (spend_hi - spend_lo))
    mixture = [x + weight * (y - x) for x, y in zip(p_lo, p_hi, strict=True)]
    return value_lo + weight * (value_hi - value_lo), mixture, price


def validated(
    mu: ArrayLike, cost: ArrayLike, alpha: ArrayLike | float, budget: float
) -> tuple[list[float], list[float], list[float], float]:
    """Check a problem and return it as plain Python numbers."""
    rewards = np.asarray(mu, dtype=np.float64)
    if rewards.ndim != 1 or rewards.size == 0:
        raise UsageError(f"mu has shape {rewards.shape}; give one reward an LLM, at least one LLM")
    costs = np.asarray(cost, dtype=np.float64)
    if costs.shape != rewards.shape:
        raise UsageError(f"cost has shape {costs.shape}; give one cost an LLM, {rewards.shape}")
    caps = np.asarray(alpha, dtype=np.float64)
    if caps.ndim and caps.shape != rewards.shape:
        raise UsageError(f"alpha has shape {caps.shape}; give one for all or {rewards.shape}")
    caps = np.broadcast_to(caps, rewards.shape)
    _require("mu", rewards, np.isfinite(rewards), "be finite")
    _require("cost", costs, np.isfinite(costs) & (costs >= 0.0), "be finite and >= 0")
    _require("alpha", caps, (caps > 0.0) & (caps <= 1.0), "lie in (0, 1]; 1 means no cap")
    if not (math.isfinite(budget) and budget >= 0.0):
        raise UsageError(f"budget={budget!r} must be finite and >= 0; clip a spent one at 0")
    return rewards.tolist(), costs.tolist(), caps.tolist(), float(budget)


def _require(name: str, values: NDArray[np.float64], good: NDArray[np.bool_], rule: str) -> None:
    """Raise a ValueError that names the first bad entry."""
    bad: Sequence[int] = np.flatnonzero(~good).tolist()
    if bad:
        raise UsageError(f"{name}[{bad[0]}]={values[bad[0]]} must {rule}")
