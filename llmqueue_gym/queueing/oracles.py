"""Queueing oracles: the myopic oracle, which is optimal, and what it achieves.

They act through the same window as every agent, but know the utilities.

Why the myopic rule is optimal: LLMQueue-v0 is one server that may turn to another query in every
slot, with a holding cost of 1 a query. Served with S, the query x leaves with probability
p(x, S) <= p*(x). To serve the largest p*(x) with its best assortment is the c mu rule, optimal with
geometric service (Buyukkoc, Varaiya, Walrand, "The c mu rule revisited", Advances in Applied
Probability 1985). Why it holds with assortments too, and over every finite horizon:

* Give a query x, on arrival, a number of best services that it needs, geometric with mean
  1 / p*(x); a service with S is one of them with probability p(x, S) / p*(x). So every policy is
  one of best services that sometimes idles, and whatever happened, what a waiting query still needs
  has the mean 1 / p*(x).
* V_A(t), the services that the waiting queries of a set A still need, falls by at most 1 a slot.
  On every path and at every t it is smallest if A is served before all others without idling.
* Sort the query types by p_1 >= ... >= p_n, p_{n+1} = 0, with L_k(t) waiting of type k. Then
  E Q_t = sum_k E L_k(t) = sum_k (p_k - p_{k+1}) E V_{1..k}(t), and to serve the largest p* first
  makes every V_{1..k}(t) smallest at once.

So no policy that does not know the coming draws has a smaller E Q_t in any slot t, nor a smaller
expected mean over any horizon, whatever the arrivals, if they do not depend on the actions. The
whole queue must be in reach: where it outgrows the window, nobody can serve the rest, and the rule
takes the best of what is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.choice import best_assortment
from llmqueue_gym.queueing.lanes import QueueDynamics

MAX_STATES = 20_000_000
MAX_CAP_SHARE = 1e-4
"""Largest share of slots at its cap with which the capped optimum is taken for the optimum."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def capacity(utilities: ArrayLike, assortment_size: int) -> float:
    """Return the largest stable arrival rate 1 / E[1 / p*(x)] of equally likely queries.

    Parameters
    ----------
    utilities : array_like, shape (P, N)
        MNL utilities of every LLM for every query.
    assortment_size : int
        LLMs shown at a time, K.
    """
    _, rate = best_assortment(np.exp(np.asarray(utilities, dtype=np.float64)), assortment_size)
    return float(1.0 / np.mean(1.0 / rate))


def _queue_dynamics(env: gym.Env[Any, Any]) -> QueueDynamics:
    dynamics = getattr(env.unwrapped, "dynamics", None)
    if not isinstance(dynamics, QueueDynamics):
        raise UsageError(f"env={env}: the queueing oracles need LLMQueue-v0")
    return dynamics


class MyopicOracle:
    """Serve the visible query and assortment with the largest departure rate p(x, S).

    No policy has a smaller expected queue in any slot while the queue fits the window: the c mu
    rule (Buyukkoc, Varaiya, Walrand 1985); the module says why. `optimal_queue_length` is its mean.

    Parameters
    ----------
    env : gymnasium.Env
        The environment it acts in; it reads the truth there.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._dynamics = _queue_dynamics(env)

    def act(self, observation: Mapping[str, Any]) -> Ints:
        """Return the action; the observation is not needed."""
        slots, llms = self._dynamics.best_actions()
        return np.concatenate([slots[:1], llms[0]])


def optimal_queue_length(rates: ArrayLike, probabilities: ArrayLike, arrival_rate: float) -> float:
    """Return the long-run mean queue length of the optimum under Bernoulli arrivals.

    In closed form for any number of query types: with V_{1..k} as in the module, and B the services
    that arrive in a slot for the types 1..k, V' = V - 1{V > 0} + B, so in the long run
    E V = (r + E B^2 - 2 r^2) / (2 (1 - r)) with r = E B. O(n log n).

    Parameters
    ----------
    rates : array_like, shape (n,)
        Best departure rate p* of every query type.
    probabilities : array_like, shape (n,)
        Share of every type among the arrivals.
    arrival_rate : float
        lambda, queries per slot.

    Returns
    -------
    float
        Mean of the queue length read after the arrival.

    Raises
    ------
    ValueError
        If the rates or shares are not those of a stable queue.
    """
    p, shares = _checked_types(rates, probabilities, arrival_rate)
    order = np.argsort(-p, kind="stable")
    p, arrivals = p[order], arrival_rate * shares[order]
    load, square = np.cumsum(arrivals / p), np.cumsum(arrivals * (2.0 - p) / p**2)
    work = (load + square - 2.0 * load**2) / (2.0 * (1.0 - load))
    return float(np.sum(p * np.diff(work, prepend=0.0)))


def _checked_types(
    rates: ArrayLike, probabilities: ArrayLike, arrival_rate: float
) -> tuple[Floats, Floats]:
    """Return rates and shares as vectors if they are those of a stable queue."""
    p = np.asarray(rates, dtype=np.float64)
    shares = np.asarray(probabilities, dtype=np.float64)
    if p.shape != shares.shape or p.ndim != 1 or p.size == 0:
        raise UsageError(
            f"rates {p.shape} and probabilities {shares.shape} must be vectors of one length"
        )
    if not (np.all(p > 0) and np.all(p <= 1)):
        raise UsageError(f"rates={p} must lie in (0, 1]")
    if np.any(shares < 0) or abs(shares.sum() - 1) > 1e-9:
        raise UsageError(f"probabilities={shares} must be shares that sum to 1")
    load = arrival_rate * float(np.sum(shares / p))
    if not 0 <= load < 1:
        raise UsageError(f"arrival_rate={arrival_rate} gives load {load:.3f}; it must be below 1")
    return p, shares


class ExactOptimum:
    """The optimum of a queue with a cap, by relative value iteration: a check of the myopic rule.

    The state counts the waiting queries of each type. A larger departure rate is never worse, so
    an action is the type to serve, with its best assortment. Arrivals that would lift the queue
    over ``max_queue`` are blocked, which LLMQueue-v0 never does: near the cap it pays to keep the
    queue full, so the optimum leaves the myopic rule there, and its average is too low. Choose the
    cap so large that ``cap_share`` is negligible; `optimal_queue_length` needs none.

    Memory and time per sweep grow as (max_queue + 1)^n.

    Parameters
    ----------
    rates : array_like, shape (n,)
        Best departure rate p* of every query type.
    probabilities : array_like, shape (n,)
        Share of every type among the arrivals.
    arrival_rate : float
        lambda, queries per slot.
    max_queue : int
        Largest number of waiting queries in a state.
    tolerance : float
        Accuracy of the average queue length.

    Attributes
    ----------
    average_queue_length : float
        Optimal long-run mean of the queue length read after the arrival.
    best_type : ndarray of int64, shape (max_queue + 1,) * n
        Type to serve in every state (0 in the empty one).

    Raises
    ------
    ValueError
        If the rates or shares are not those of a stable queue, or the state space is too large.
    """

    def __init__(
        self,
        rates: ArrayLike,
        probabilities: ArrayLike,
        arrival_rate: float,
        max_queue: int = 40,
        tolerance: float = 1e-9,
    ) -> None:
        self.rates, self.probabilities = _checked_types(rates, probabilities, arrival_rate)
        self.arrival_rate = arrival_rate
        self.max_queue = max_queue
        self._tolerance = tolerance
        self._check()
        self._prepare()
        self.average_queue_length, values = self._average(self._total)
        self.best_type = self._options(self._total, values).argmin(axis=0)

    def _check(self) -> None:
        n = self.rates.size
        if self.max_queue < 1:
            raise UsageError(f"max_queue={self.max_queue} must be at least 1")
        if n * np.log(self.max_queue + 1.0) > np.log(MAX_STATES):
            raise UsageError(
                f"max_queue={self.max_queue} with {n} query types has ({self.max_queue} + 1)^{n} "
                f"states, more than {MAX_STATES}; lower it or take fewer types"
            )

    def _prepare(self) -> None:
        n, cap = self.rates.size, self.max_queue
        counts = np.indices((cap + 1,) * n)
        self._total = counts.sum(axis=0)
        self._legal = self._total <= cap
        self._present = counts > 0

    def _arrive(self, values: Floats) -> Floats:
        """Return the expected cost-to-go after the arrival of the slot, blocked at the cap."""
        expected = (1.0 - self.arrival_rate) * values
        room = self._total < self.max_queue
        for kind, share in enumerate(self.probabilities):
            arrived = np.roll(values, -1, axis=kind)
            expected += self.arrival_rate * share * np.where(room, arrived, values)
        return np.asarray(expected)

    def _options(self, cost: NDArray[Any], values: Floats) -> Floats:
        """Return the value of serving each type, infinite where none waits; (n, states)."""
        after = self._arrive(cost + values)
        options = np.full((self.rates.size, *values.shape), np.inf)
        for kind, rate in enumerate(self.rates):
            gone = np.roll(after, 1, axis=kind)
            served = rate * gone + (1.0 - rate) * after
            options[kind] = np.where(self._present[kind], served, np.inf)
        options[(slice(None),) + (0,) * self.rates.size] = after[(0,) * self.rates.size]
        return options

    def _average(self, cost: NDArray[Any], types: Ints | None = None) -> tuple[float, Floats]:
        """Return the long-run mean of a cost of the state after the arrival, and the values.

        Under the policy that serves ``types``, or the one with the smallest mean if not given.
        """
        values = np.zeros(self._total.shape)
        origin = (0,) * self.rates.size
        for _ in range(1_000_000):
            options = self._options(cost, values)
            if types is None:
                improved = options.min(axis=0)
            else:
                improved = np.take_along_axis(options, types[None], axis=0)[0]
            change = (improved - values)[self._legal]
            values = np.where(self._legal, improved - improved[origin], 0.0)
            if change.max() - change.min() < self._tolerance:
                return float((change.max() + change.min()) / 2), values
        raise UsageError(
            f"tolerance={self._tolerance} was not reached; raise it or lower max_queue"
        )

    @cached_property
    def cap_share(self) -> float:
        """Long-run share of slots that end with ``max_queue`` queries, under ``best_type``."""
        return self._average(self._total == self.max_queue, self.best_type)[0]

    def myopic_queue_length(self) -> float:
        """Return the long-run mean queue length of the myopic rule in the same capped queue."""
        rates = self.rates.reshape(-1, *(1,) * self.rates.size)
        average, _ = self._average(self._total, np.where(self._present, rates, 0.0).argmax(axis=0))
        return average


class OptimalPolicy:
    """Act by the exact optimum in an environment whose population has few distinct queries.

    Queries of one type share their best departure rate. With more than ``max_queue`` queries, or
    some beyond the window, it acts as `MyopicOracle` does, which is optimal and needs no cap: this
    policy is there to check it.

    Parameters
    ----------
    env : gymnasium.Env
        An LLMQueue-v0 environment that has been reset.
    max_queue : int
        See `ExactOptimum`.

    Raises
    ------
    ValueError
        If the queue is at the cap in more than ``MAX_CAP_SHARE`` of the slots.
    """

    def __init__(self, env: gym.Env[Any, Any], max_queue: int = 40) -> None:
        self._dynamics = dynamics = _queue_dynamics(env)
        self._myopic = MyopicOracle(env)
        population_rates = dynamics.best_rate[:-1]
        rates, self._type_of_row = np.unique(population_rates, return_inverse=True)
        shares = np.bincount(self._type_of_row) / population_rates.size
        self.optimum = ExactOptimum(rates, shares, float(dynamics.arrival_rate[0]), max_queue)
        if self.optimum.cap_share > MAX_CAP_SHARE:
            raise UsageError(
                f"max_queue={max_queue}: the queue is at this cap in {self.optimum.cap_share:.2%} "
                f"of the slots, more than {MAX_CAP_SHARE:.2%}, so its optimum is not that of the "
                "environment, which has no cap; raise max_queue, or take MyopicOracle, which is "
                "optimal and needs none"
            )

    def act(self, observation: Mapping[str, Any]) -> Ints:
        """Return the optimal action; the observation is not needed."""
        dynamics, optimum = self._dynamics, self.optimum
        if dynamics.queue_length[0] > min(optimum.max_queue, dynamics.window):
            return self._myopic.act(observation)
        queries = dynamics.window_queries[0]
        waiting = queries[queries >= 0]
        types = self._type_of_row[waiting]
        best = optimum.best_type[tuple(np.bincount(types, minlength=optimum.rates.size))]
        slot = int(np.argmax(types == best)) if waiting.size else 0
        row = queries[slot]
        return np.concatenate([[slot], dynamics.best_llms[row]]).astype(np.int64)
