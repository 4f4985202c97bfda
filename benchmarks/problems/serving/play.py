"""A serving cell: how its run is watched with the hidden truth, and what is measured.

See `benchmarks.run.runner` for the loop, `benchmarks.problems.serving.metrics` for the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, ServeProblem
from baselines.registry import make_agent
from benchmarks.problems.interface import BrokenLawError
from benchmarks.problems.kind import measured
from benchmarks.problems.luck import outcome_luck
from benchmarks.problems.serving.metrics import METRICS, Run, Trace
from benchmarks.problems.serving.timeline import Timeline
from llmqueue_gym import workloads
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.dynamics import (
    ABANDONED,
    ACTIVE,
    ARRIVALS,
    GAVE_UP,
    IN_SERVICE,
    KEPT,
    QUEUED,
    ROW,
    SOJOURN,
    TAIL,
    THINKING,
)
from llmqueue_gym.serving.instance import ServingInstance
from llmqueue_gym.serving.lanes import ServingDynamics
from llmqueue_gym.serving.oracles import Optimum, bound, small_problem
from llmqueue_gym.workloads.arrivals import Bernoulli, arrivals_fingerprint
from llmqueue_gym.workloads.pool import file_sha256
from llmqueue_gym.workloads.sources.log_file import log_fingerprint

FIXED, CHANGING, STREAMING = "known-rollout", "known-forecast", "known-reactive"
"""The truth-knowing agents that score 1 where no optimum can be had: with a fixed fleet, with one
that changes at windows, and where LLMs arrive as well."""


SEEN = 32
"""Waiting queries that a window must show: the optimum is that of a provider who sees them all."""


def public_problem(env: gym.Env[Any, Any], horizon: int, pretrained: bool = False) -> ServeProblem:
    """Public parameters of a serving environment that has been reset."""
    unwrapped: Any = env.unwrapped
    return ServeProblem(**unwrapped.problem, horizon=horizon)


def told_all(env: gym.Env[Any, Any], public: ServeProblem) -> ServeProblem:
    """Return the public parameters with the truth beside them, for a yardstick."""
    return replace(public, truth=_dynamics(env).instances[0])


def make_oracle(env: gym.Env[Any, Any]) -> Any:
    """Return the policy that scores 1.

    The optimum where the state is small; else a reference, the best of the rules that know the
    truth, which may be beaten.
    """
    instance = _dynamics(env).instances[0]
    if is_small(env):
        return _Exact(env, instance)
    streaming = bool((instance.llm_arrives > 0).any())
    changing = STREAMING if streaming else CHANGING
    name = changing if instance.update_every else FIXED
    horizon = env.spec.max_episode_steps if env.spec else None
    return make_agent(name, told_all(env, public_problem(env, horizon or 0)), 0)


def is_small(env: gym.Env[Any, Any]) -> bool:
    """Whether the optimum can be had: it sees who waits, and arrivals have no memory either."""
    instance = _dynamics(env).instances[0]
    arrivals = env.unwrapped.task.arrivals  # type: ignore[attr-defined]
    if instance.window < SEEN or not isinstance(arrivals, Bernoulli):
        return False
    try:
        small_problem(instance)
    except UsageError:
        return False
    return True


class _Exact:
    """Plays the optimum of a small problem."""

    def __init__(self, env: gym.Env[Any, Any], instance: ServingInstance) -> None:
        self._dynamics, self._optimum = _dynamics(env), Optimum(instance)

    def act(self, observation: Mapping[str, Any]) -> Action:
        """Return the best action of the state that the truth shows."""
        state = self._dynamics.state
        rows = state.queries[0, state.served[0, :, 0], ROW]
        serving = np.where(state.replicas[0, :, ACTIVE] > 0, rows, -1).astype(np.int64)
        return self._optimum.action(self._dynamics.window_queries[0], serving)


def _dynamics(env: gym.Env[Any, Any]) -> ServingDynamics:
    dynamics: ServingDynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
    return dynamics


def assumptions(env: gym.Env[Any, Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Say so where the load is more than any policy can carry."""
    load = _dynamics(env).instances[0].load
    if load > 1.0:
        return [f"load {load:.2f}: more comes than the fleet can answer, whoever routes"]
    return []


def fingerprint(kwargs: Mapping[str, Any]) -> str | None:
    """Hash the content of the files of a workload, of a log and of traces."""
    content = ""
    queries, arrivals, tokens = (kwargs.get(key) for key in ("queries", "arrivals", "tokens"))
    log = kwargs.get("log")
    if log is not None:
        content += log_fingerprint(log["path"] if isinstance(log, Mapping) else log)
    if isinstance(queries, Mapping) and queries.get("source") not in (None, "graded"):
        content += workloads.fingerprint(queries)
    if arrivals is not None:
        content += arrivals_fingerprint(arrivals)
    if isinstance(tokens, Mapping) and "path" in tokens:
        content += file_sha256(tokens["path"])
    return content or None


class Recorder:
    """Watches a run: the truth after every slot, in arrays that no agent has had in hand."""

    def __init__(self, env: gym.Env[Any, Any], horizon: int) -> None:
        self._dynamics = _dynamics(env)
        self._instance = instance = self._dynamics.instances[0]
        self._exact = is_small(env)
        self.trace = Trace.empty(horizon)
        self.timeline = Timeline(instance, horizon)
        self._rows: dict[int, int] = {}  # slot of arrival -> row, of queries in the system
        self._promised: list[float] = []
        self._answered: NDArray[np.int64] = np.zeros((instance.num_llms, 2), dtype=np.int64)
        self._t = 0

    def see(self) -> bool:
        """Return whether there is anything to decide: somebody waits, or the fleet may change."""
        counts, every = self._dynamics.state.counts[0], self._instance.update_every
        return bool(counts[QUEUED]) or bool(every and self._t % every == 0)

    def choose(self, t: int, action: Action) -> None:
        """Nothing of an action is judged before it is played."""

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        """Note what came of it, before the agent is told."""
        self._t = t + 1
        state = self._dynamics.state
        self.trace.note(t, self._dynamics, self._instance.price)
        self.timeline.note(t, self._dynamics)
        for number, llm, kept in info["answers"].tolist():
            if number < 0:
                break
            self._promised.append(float(self._instance.success[self._rows[number], llm]))
            self._answered[llm, kept] += 1
        if info["arrived"]:
            self._rows[t + 1] = int(state.queries[0, state.ends[0, TAIL], ROW])

    def truth(self, t: int) -> str:
        """Say what the first t slots would be scored by."""
        reward = self.trace.reward(self._instance.rewards)[:t]
        mean = float(reward.mean()) if t else 0.0
        return f"truth: mean reward {mean:,.3f} a slot, load {self._instance.load:.2f}"

    def result(self) -> dict[str, Any]:
        """Return ``metrics``, the cumulative sums of the learning curve, and what is drawn.

        Raises
        ------
        BrokenLawError
            If the run breaks a law of every system; see `check_laws`.
        """
        instance, trace = self._instance, self.trace
        own = instance.load, instance.slot_seconds, bound(instance), self._exact
        run = Run(trace, instance.rewards, *own)
        metrics = measured(METRICS, run)
        promised = np.array(self._promised)
        metrics |= outcome_luck(float(run.total(KEPT)), promised).as_metrics()
        check_laws(trace)
        here = trace.counts[:, QUEUED] + trace.counts[:, IN_SERVICE]
        curve = {
            "cost": -np.cumsum(trace.reward(instance.rewards)),
            "waiting": np.cumsum(here),
        }
        return {
            "metrics": metrics,
            "curve": curve,
            "llms": self._llms(),
            "fleet": self.timeline.fleet(),
            "spent": self.timeline.spent(run.total(ARRIVALS)),
        }

    def _llms(self) -> dict[str, list[Any]]:
        """Return what each LLM is worth on the queries of the instance, by column."""
        instance = self._instance
        return {
            "LLM": list(instance.llms),
            "keep rate": (instance.share @ instance.success).tolist(),
            "replicas at the start": [
                int(np.sum(instance.hosts == llm)) for llm in range(instance.num_llms)
            ],
            "answers": self._answered.sum(axis=1).tolist(),
        }


def check_laws(trace: Trace) -> None:
    """Hold a recorded run against what is true of every system that starts empty.

    * Conservation, in every slot: arrivals = kept + lost + waiting + in service + thinking.
    * Little's law, exact over a finite horizon: the slots spent in the system by those who left are
      at most the sum over slots of who was there, and fall short of it by the time spent so far by
      those who are still there, which is at most (number there) x T.

    Raises
    ------
    BrokenLawError
        If one of them does not hold.
    """
    totals, counts = trace.totals, trace.counts
    left = totals[:, KEPT] + totals[:, ABANDONED] + totals[:, GAVE_UP]
    there = counts[:, QUEUED] + counts[:, IN_SERVICE] + counts[:, THINKING]
    off = np.flatnonzero(totals[:, ARRIVALS] != left + there)
    if off.size:
        t = int(off[0])
        raise BrokenLawError(
            f"slot {t + 1}: {totals[t, ARRIVALS]} arrivals are not {left[t]} who left and "
            f"{there[t]} who are there"
        )
    horizon = len(there)
    spent, total = int(totals[-1, SOJOURN]), int(there.sum())
    if not total - int(there[-1]) * horizon <= spent <= total:
        raise BrokenLawError(
            f"Little's law: {spent} slots of those who left do not agree with {total} slots in all"
        )
