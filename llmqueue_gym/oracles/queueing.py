"""Queueing oracles: the myopic oracle and the exact optimum of a finite instance.

They act through the same window as every agent, but know the utilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmqueue_gym.core.choice import best_assortment
from llmqueue_gym.core.queue import QueueDynamics

MAX_STATES = 20_000_000
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
        raise ValueError(f"env={env}: the queueing oracles need LLMQueue-v0")
    return dynamics


class MyopicOracle:
    """Serve the waiting query and assortment with the largest departure rate p(x, S).

    Published as optimal for the preemptive model; `ExactOptimum` measures how far it is.

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


class ExactOptimum:
    """The policy with the smallest average queue length, by relative value iteration.

    The state counts the waiting queries of each type. A larger departure rate is never worse, so
    an action is the type to serve, with its best assortment. Arrivals that would lift the queue
    over ``max_queue`` are blocked; choose it so large that this is rare.

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
        self.rates = np.asarray(rates, dtype=np.float64)
        self.probabilities = np.asarray(probabilities, dtype=np.float64)
        self.arrival_rate = arrival_rate
        self.max_queue = max_queue
        self._check()
        self._prepare()
        self._solve(tolerance)

    def _check(self) -> None:
        n = self.rates.size
        if self.rates.shape != self.probabilities.shape or self.rates.ndim != 1 or n == 0:
            raise ValueError(
                f"rates {self.rates.shape} and probabilities {self.probabilities.shape} "
                "must be vectors of one length"
            )
        if not (np.all(self.rates > 0) and np.all(self.rates <= 1)):
            raise ValueError(f"rates={self.rates} must lie in (0, 1]")
        if np.any(self.probabilities < 0) or abs(self.probabilities.sum() - 1) > 1e-9:
            raise ValueError(f"probabilities={self.probabilities} must be shares that sum to 1")
        load = self.arrival_rate * float(np.sum(self.probabilities / self.rates))
        if not 0 <= load < 1:
            raise ValueError(
                f"arrival_rate={self.arrival_rate} gives load {load:.3f}; it must be below 1"
            )
        if self.max_queue < 1:
            raise ValueError(f"max_queue={self.max_queue} must be at least 1")
        if n * np.log(self.max_queue + 1.0) > np.log(MAX_STATES):
            raise ValueError(
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

    def _options(self, values: Floats) -> Floats:
        """Return the value of serving each type, infinite where none waits; (n, states)."""
        after = self._arrive(self._total + values)
        options = np.full((self.rates.size, *values.shape), np.inf)
        for kind, rate in enumerate(self.rates):
            gone = np.roll(after, 1, axis=kind)
            served = rate * gone + (1.0 - rate) * after
            options[kind] = np.where(self._present[kind], served, np.inf)
        options[(0,) + (0,) * self.rates.size] = after[(0,) * self.rates.size]
        return options

    def _solve(self, tolerance: float) -> None:
        values = np.zeros(self._total.shape)
        origin = (0,) * self.rates.size
        for _ in range(1_000_000):
            improved = np.where(self._legal, self._options(values).min(axis=0), 0.0)
            change = (improved - values)[self._legal]
            values = np.where(self._legal, improved - improved[origin], 0.0)
            if change.max() - change.min() < tolerance:
                break
        else:
            raise ValueError(f"tolerance={tolerance} was not reached; raise it or lower max_queue")
        self.average_queue_length = float((change.max() + change.min()) / 2)
        self.best_type = self._options(values).argmin(axis=0)


class OptimalPolicy:
    """Act by the exact optimum in an environment whose population has few distinct queries.

    Queries of one type share their best departure rate. Counts beyond ``max_queue`` are clipped.

    Parameters
    ----------
    env : gymnasium.Env
        An LLMQueue-v0 environment that has been reset.
    max_queue : int
        See `ExactOptimum`.
    """

    def __init__(self, env: gym.Env[Any, Any], max_queue: int = 40) -> None:
        self._dynamics = dynamics = _queue_dynamics(env)
        population_rates = dynamics.best_rate[:-1]
        rates, self._type_of_row = np.unique(population_rates, return_inverse=True)
        shares = np.bincount(self._type_of_row) / population_rates.size
        self.optimum = ExactOptimum(rates, shares, float(dynamics.arrival_rate[0]), max_queue)

    def act(self, observation: Mapping[str, Any]) -> Ints:
        """Return the optimal action; the observation is not needed."""
        queries = self._dynamics.window_queries[0]
        waiting = queries[queries >= 0]
        types = self._type_of_row[waiting]
        counts = np.bincount(types, minlength=self.optimum.rates.size)
        while counts.sum() > self.optimum.max_queue:
            counts[counts.argmax()] -= 1
        best = self.optimum.best_type[tuple(counts)]
        slot = int(np.argmax(types == best)) if waiting.size else 0
        row = queries[slot]
        return np.concatenate([[slot], self._dynamics.best_llms[row]]).astype(np.int64)
