"""A queueing cell: how its run is watched with the hidden truth, and what is measured.

See `benchmarks.run.runner` for the loop, `benchmarks.problems.queueing.metrics` for the metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, QueueProblem
from benchmarks.problems.interface import BrokenLawError
from benchmarks.problems.kind import measured
from benchmarks.problems.luck import outcome_luck
from benchmarks.problems.queueing.metrics import METRICS, Run, Trace
from llmqueue_gym import workloads
from llmqueue_gym.oracles import MyopicOracle
from llmqueue_gym.queueing.lanes import QueueDynamics
from llmqueue_gym.workloads.arrivals import arrivals_fingerprint


def public_problem(env: gym.Env[Any, Any], horizon: int, pretrained: bool = False) -> QueueProblem:
    """Public parameters of a queueing environment that has been reset.

    Pretrained agents are given the queries that the workload keeps back for training.
    """
    unwrapped: Any = env.unwrapped
    offline = unwrapped.offline if pretrained else None
    return QueueProblem(**unwrapped.problem, horizon=horizon, offline=offline)


def told_all(env: gym.Env[Any, Any], public: QueueProblem) -> QueueProblem:
    """Return the public parameters with the true odds beside them, for a yardstick."""
    dynamics: QueueDynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
    return replace(public, truth=dynamics.odds[:-1].copy())  # the last row stands for nobody


def make_oracle(env: gym.Env[Any, Any]) -> MyopicOracle:
    """Return the policy that scores 1: the myopic oracle, which is the optimum."""
    return MyopicOracle(env)


def assumptions(env: gym.Env[Any, Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Nothing is assumed of a queue."""
    return []


def fingerprint(kwargs: Mapping[str, Any]) -> str | None:
    """Hash the content of the files of a workload and of a trace of arrivals."""
    if "workload" not in kwargs and "arrivals" not in kwargs:
        return None
    content = workloads.fingerprint(kwargs["workload"]) if "workload" in kwargs else ""
    return content + arrivals_fingerprint(kwargs.get("arrivals", "bernoulli"))


_Query = tuple[float, int, int]  # -p*(x), slot of arrival (at most one arrives a slot), row


class Recorder:
    """Watches a run: the truth before a slot, and what came of it.

    It keeps the queue in a book of its own and reads nothing that an agent has had in hand. A slot
    costs O(W + K log K) and amortised O(log Q) for the best of the Q waiting queries, in plain
    Python.
    """

    def __init__(self, env: gym.Env[Any, Any], horizon: int) -> None:
        dynamics: QueueDynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
        self._dynamics = dynamics
        self._names: tuple[str, ...] = env.unwrapped.llms  # type: ignore[attr-defined]
        self._cost: NDArray[np.float64] | None = env.unwrapped.cost  # type: ignore[attr-defined]
        self._usd = 0.0  # paid for answers so far
        self._odds, self._best_rate = dynamics.odds, dynamics.best_rate.tolist()
        self._window: list[_Query] = []  # the first W in service order
        self._backlog: deque[_Query] = deque()
        self._by_rate: list[_Query] = []  # a heap; who left is dropped on coming to its top
        self._left: set[int] = set()  # slots of arrival of those that left and are in the heap
        self._served: _Query | None = None
        self._shown: set[int] = set()
        self.trace = Trace.empty(horizon)

    def see(self) -> bool:
        """Return whether there is anything to decide: somebody waits."""
        return bool(self._window)

    def choose(self, t: int, action: Action) -> None:
        """Rate the action by the truth, before it is played."""
        slot, *llms = action.tolist()
        self._shown = set(llms)
        self._served = self._window[slot] if slot < len(self._window) else None
        heap, left = self._by_rate, self._left
        while heap and heap[0][1] in left:
            left.remove(heappop(heap)[1])
        if heap:
            self.trace.best_rate[t] = -heap[0][0]
        if self._served is not None:
            self.trace.departure_rate[t] = self._departure_rate(self._served[2])

    def _departure_rate(self, row: int) -> float:
        """Return p(x, S), added up from the largest odds as p*(x) is: the best has no regret."""
        odds, total = self._odds.item, 0.0
        for value in sorted([odds(row, llm) for llm in self._shown], reverse=True):
            total += value
        return total / (1.0 + total)

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        """Note what came of it, before the agent is told."""
        if self._dynamics.noise is not None:  # info is what was told
            info = {key: values[0] for key, values in self._dynamics.outcome._asdict().items()}
            info["queue_length"] = int(self._dynamics.queue_length[0])
        trace, query = self.trace, self._served
        served, kept = query is not None, info["kept_llm"] in self._shown
        # NumPy's booleans are compared in a microsecond, Python's at once.
        told = bool(info["served"]), bool(info["departed"]), bool(info["retried"])
        if told != (served, kept, served and not kept):
            raise BrokenLawError(
                f"slot {t + 1}: {dict(info)} is no answer to action {action.tolist()} with "
                f"{len(self._window)} queries in the window"
            )
        if query is not None:
            if self._cost is not None:
                paid = 0.0
                for llm in self._shown:
                    paid += self._cost.item(query[2], llm)
                self._usd += paid
            self._window.pop(action.item(0))
            if self._backlog:
                self._window.append(self._backlog.popleft())
            if kept:
                self._left.add(query[1])
                trace.departed[t], trace.sojourn[t] = True, t + 1 - query[1]
            else:
                trace.retried[t] = True
                self._join(query)
        if info["arrived"]:
            row = self._dynamics.tail_query()
            arrival = -self._best_rate[row], t + 1, row
            heappush(self._by_rate, arrival)
            self._join(arrival)
            trace.arrived[t] = True
        trace.queue_length[t] = info["queue_length"]

    def _join(self, query: _Query) -> None:
        (self._window if len(self._window) < self._dynamics.window else self._backlog).append(query)

    def truth(self, t: int) -> str:
        """Say what the first t slots would be scored by."""
        lengths, regret = self.trace.queue_length[:t], self.trace.regret[:t]
        mean = float(lengths.mean()) if t else 0.0
        return f"truth: mean queue {mean:,.2f}, routing regret {float(regret.sum()):,.2f} in all"

    def result(self) -> dict[str, Any]:
        """Return ``metrics``, the cumulative sums of the learning curve, and the ``llms``.

        Raises
        ------
        BrokenLawError
            If the run breaks a law of every queue; see `check_laws`.
        """
        dynamics, horizon = self._dynamics, self.trace.queue_length.size
        usd = None if self._cost is None else self._usd
        rates = float(dynamics.arrival_rate[0]), float(dynamics.capacity[0])
        metrics = measured(METRICS, Run(self.trace, dynamics.window, *rates, usd))
        promised = self.trace.departure_rate
        metrics |= outcome_luck(metrics["departures"] or 0, promised).as_metrics()
        curve = queue_sums(self.trace)
        visible = len(self._window)
        rows, ages = dynamics.window_queries[0][:visible], dynamics.observe()["age"][0]
        booked = [(row, horizon - arrived) for _, arrived, row in self._window]
        if dynamics.noise is not None and dynamics.noise.missed:  # ages begin anew, unseen
            ages[:visible] = [age for _, age in booked]
        if booked != list(zip(rows.tolist(), ages[:visible].tolist(), strict=True)):
            raise BrokenLawError("the window holds other queries at the end than those recorded")
        waiting = [horizon - arrived for _, arrived, _ in (*self._window, *self._backlog)]
        check_laws(self.trace, np.array(waiting, dtype=np.int64), metrics, curve)
        return {"metrics": metrics, "curve": curve, "llms": self._llms()}

    def _llms(self) -> dict[str, list[Any]]:
        """Return what each LLM is worth on the queries of the instance, by column."""
        odds = self._dynamics.odds[:-1]  # the last row stands for nobody
        columns: dict[str, list[Any]] = {
            "LLM": list(self._names),
            "keep rate, shown alone": np.mean(odds / (1.0 + odds), axis=0).tolist(),
        }
        if self._cost is not None:
            columns["USD / answer"] = self._cost.mean(axis=0).tolist()
        return columns


def check_laws(
    trace: Trace,
    ages: NDArray[np.int64],
    metrics: Mapping[str, Any],
    curve: Mapping[str, NDArray[Any]],
) -> None:
    """Hold a recorded run against what is true of every queue that starts empty.

    * Conservation, in every slot: Q_t = arrivals - departures so far.
    * Little's law, exact over a finite horizon: sum_t Q_t = slots spent in the system by those who
      departed and by those who still wait. Q_t is read after the arrival of slot t, so a query that
      arrives in slot a and departs in slot e is in Q_a, ..., Q_{e-1}: e - a slots; one that waits
      at the end has the age T - a and is in T - a + 1 of them.
    * The curves end at T times the mean queue, and at the routing regret.

    Parameters
    ----------
    trace : Trace
        The run.
    ages : ndarray of int64
        Slots since their arrival of the queries that wait at the end.
    metrics, curve : Mapping
        What is reported of it.

    Raises
    ------
    BrokenLawError
        If one of them does not hold.
    """
    horizon, queue = trace.queue_length.size, trace.queue_length
    balance = np.cumsum(trace.arrived, dtype=np.int64) - np.cumsum(trace.departed, dtype=np.int64)
    off = np.flatnonzero(balance != queue)
    first = int(off[0]) if off.size else horizon - 1
    slots = int(trace.sojourn.sum()) + int(ages.sum()) + ages.size
    laws = (
        (f"arrivals - departures = queue length in slot {first + 1}", balance[first], queue[first]),
        ("arrivals = departures + waiting", trace.arrived.sum(), trace.departed.sum() + ages.size),
        ("Little's law: sum of queue lengths = slots spent in the system", queue.sum(), slots),
        ("end of the queue curve = T x mean", curve["queue"][-1], horizon * metrics["mean_queue"]),
        (
            "end of the regret curve = routing regret",
            curve["regret"][-1],
            metrics["routing_regret"],
        ),
    )
    for law, left, right in laws:
        if not np.isclose(left, right, rtol=1e-9, atol=1e-9):
            raise BrokenLawError(f"a recorded run breaks {law}: {left} is not {right}")


def queue_sums(trace: Trace) -> dict[str, NDArray[Any]]:
    """Cumulative queue length and routing regret, shape (T,) each."""
    return {"queue": np.cumsum(trace.queue_length), "regret": np.cumsum(trace.regret)}
