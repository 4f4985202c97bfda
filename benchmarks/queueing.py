"""A queueing cell: how its run is watched with the hidden truth, and what is measured.

See `benchmarks.runner` for the loop; `benchmarks.kinds` says what a report shows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.agent import Action, Observation, QueueProblem
from llmqueue_gym.oracles import MyopicOracle
from llmqueue_gym.workloads.arrivals import dispersion, interarrival_cv

HORIZON_ARGUMENT = "max_episode_steps"
ACTION_LAYOUT = "[slot, llm_1, ..., llm_K]"

TAIL_SHARE = 0.2
"""Last share of the horizon that the tail of a metric is taken over."""

BURST_WINDOW = 100
"""Slots over which arrivals are counted for their index of dispersion."""


@dataclass
class Trace:
    """What happened in every slot of a run; arrays of shape (T,).

    Attributes
    ----------
    queue_length : ndarray
        Waiting queries at the end of the slot, Q_t.
    best_rate, departure_rate : ndarray
        Largest departure rate in the learner's queue and that of its choice, p(x_t, S_t).
    departed, retried : ndarray of bool
        What the served user did.
    sojourn : ndarray
        Slots the departed query spent in the system; 0 where none departed.
    arrived : ndarray of bool
        Whether a query arrived.
    """

    queue_length: NDArray[np.int64]
    best_rate: NDArray[np.float64]
    departure_rate: NDArray[np.float64]
    departed: NDArray[np.bool_]
    retried: NDArray[np.bool_]
    sojourn: NDArray[np.int64]
    arrived: NDArray[np.bool_]

    @classmethod
    def empty(cls, horizon: int) -> Trace:
        """Return a trace of ``horizon`` slots to be filled in."""
        ints = [np.zeros(horizon, dtype=np.int64) for _ in range(2)]
        floats = [np.zeros(horizon) for _ in range(2)]
        flags = [np.zeros(horizon, dtype=np.bool_) for _ in range(3)]
        return cls(ints[0], floats[0], floats[1], flags[0], flags[1], ints[1], flags[2])


def public_problem(env: gym.Env[Any, Any], horizon: int, pretrained: bool = False) -> QueueProblem:
    """Public parameters of a queueing environment that has been reset.

    Pretrained agents are given the queries that the workload keeps back for training.
    """
    unwrapped: Any = env.unwrapped
    offline = unwrapped.offline if pretrained else None
    return QueueProblem(**unwrapped.problem, horizon=horizon, offline=offline)


def make_oracle(env: gym.Env[Any, Any]) -> MyopicOracle:
    """Return the policy that scores 1: the myopic oracle."""
    return MyopicOracle(env)


class Recorder:
    """Watches a run: the truth before a slot, and what came of it."""

    def __init__(self, env: gym.Env[Any, Any], horizon: int) -> None:
        self._dynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
        self._age: NDArray[Any] = np.zeros(0)
        self.trace = Trace.empty(horizon)

    def see(self, observation: Observation) -> bool:
        """Look before the agent does; return whether there is anything to decide."""
        self._age = observation["age"].copy()  # the agent may scribble over what it is given
        return bool(self._dynamics.queue_length[0])

    def choose(self, t: int, action: Action) -> None:
        """Rate the action by the truth, before it is played."""
        self.trace.best_rate[t] = self._dynamics.best_waiting_rate()[0]
        self.trace.departure_rate[t] = self._dynamics.departure_rate(action[:1], action[None, 1:])[
            0
        ]

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        """Note what came of it, before the agent is told."""
        trace = self.trace
        trace.queue_length[t] = info["queue_length"]
        trace.departed[t], trace.retried[t] = info["departed"], info["retried"]
        trace.arrived[t] = info["arrived"]
        trace.sojourn[t] = self._age[action[0]] + 1 if info["departed"] else 0

    def result(self) -> dict[str, Any]:
        """Return ``metrics`` and the cumulative sums of the learning curve."""
        instance = {
            "arrival_rate": float(self._dynamics.arrival_rate[0]),
            "capacity": float(self._dynamics.capacity[0]),
        }
        return {
            "metrics": {**instance, **queue_metrics(self.trace)},
            "curve": queue_sums(self.trace),
        }


def queue_metrics(trace: Trace) -> dict[str, float | int | None]:
    """Summary figures of a run.

    ``luck`` is that of the departures, given the departure rates p(x_t, S_t) that were chosen.
    ``arrival_cv`` and ``arrival_dispersion`` (in windows of 100 slots) are the run's burstiness.
    """
    queue, rate = trace.queue_length, trace.departure_rate
    departures, retrials = int(trace.departed.sum()), int(trace.retried.sum())
    sojourns = trace.sojourn[trace.departed]
    tail = max(1, round(TAIL_SHARE * queue.size))
    return {
        "mean_queue": float(queue.mean()),
        "tail_queue": float(queue[-tail:].mean()),
        "wait_p95": float(np.percentile(sojourns, 95)) if departures else None,
        "mean_sojourn": float(sojourns.mean()) if departures else None,
        "departures": departures,
        "retrials": retrials,
        "retrials_per_departed": retrials / departures if departures else None,
        "routing_regret": float(_regret(trace).sum()),
        "arrival_cv": _finite(interarrival_cv(np.flatnonzero(trace.arrived))),
        "arrival_dispersion": _finite(dispersion(np.flatnonzero(trace.arrived), BURST_WINDOW)),
        "luck": luck(departures, rate),
    }


def luck(total: float, promised: NDArray[np.float64]) -> float:
    """Return how far a sum of outcomes in [0, 1] is from what the choices promised.

    D / sqrt(V + |D| / 3), where D is the sum of the outcomes less that of their means, given all
    that came before, and V the sum of p (1 - p), the largest variance of an outcome of mean p.
    Beyond c with probability 2 exp(-c^2 / 2) at most (Bernstein; Freedman 1975 for choices that
    depend on what came before and a given V), however sure the outcomes are: a plain D / sqrt(V)
    is far from normal where V is small.

    Parameters
    ----------
    total : float
        Sum of the outcomes.
    promised : ndarray, shape (T,)
        Mean of every outcome.

    Returns
    -------
    float
        0 where every outcome was the promised one.
    """
    deviation = float(total - promised.sum())
    scale = float(np.sum(promised * (1.0 - promised))) + abs(deviation) / 3.0
    return deviation / float(np.sqrt(scale)) if scale > 0 else 0.0


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def queue_sums(trace: Trace) -> dict[str, NDArray[Any]]:
    """Cumulative queue length and routing regret, shape (T,) each."""
    return {"queue": np.cumsum(trace.queue_length), "regret": np.cumsum(_regret(trace))}


def _regret(trace: Trace) -> NDArray[np.float64]:
    """Routing regret increments: 0 in slots with an empty queue, where both rates are 0.

    Rounding can leave an optimal choice 1e-16 above its own maximum.
    """
    return np.maximum(trace.best_rate - trace.departure_rate, 0.0)
