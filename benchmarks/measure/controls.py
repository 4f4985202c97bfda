"""What each half of queueing is worth: truth-knowing policies that only route, or only schedule.

A task tests both if each half alone scores clearly below 1:

    python -m benchmarks.measure.controls queueing --task "easy-hard-*"
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action
from baselines.registry import make_agent
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import load_suite
from benchmarks.problems import problem_of
from benchmarks.problems.queueing import QUEUEING
from benchmarks.problems.queueing.play import Recorder, make_oracle, public_problem
from benchmarks.run.runner import agent_seed, play
from benchmarks.score.intervals import Interval, t_interval
from llmqueue_gym.queueing.choice import departure_rate

Floats = NDArray[np.float64]


class RouteOnly:
    """The head of the queue, by the LLMs that are best for it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._dynamics: Any = env.unwrapped.dynamics  # type: ignore[attr-defined]

    def act(self, observation: Mapping[str, Any]) -> Action:
        """Return the action; only the truth is looked at."""
        query = self._dynamics.window_queries[0, 0]
        return np.array([0, *self._dynamics.best_llms[query]], dtype=np.int64)


class ScheduleOnly:
    """One assortment for all, that of the largest capacity; whom it satisfies first goes first."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._dynamics: Any = env.unwrapped.dynamics  # type: ignore[attr-defined]
        odds = self._dynamics.odds[:-1]  # the last row stands for nobody
        size = self._dynamics.best_llms.shape[1]
        rates = {s: departure_rate(odds[:, s]) for s in combinations(range(odds.shape[1]), size)}
        self._llms = min(rates, key=lambda llms: float(np.mean(1.0 / rates[llms])))
        self._rate = np.append(rates[self._llms], 0.0)

    def act(self, observation: Mapping[str, Any]) -> Action:
        """Return the action; only the truth is looked at."""
        slot = self._rate[self._dynamics.window_queries[0]].argmax()
        return np.array([slot, *self._llms], dtype=np.int64)


HALVES = {"route only": RouteOnly, "schedule only": ScheduleOnly}


def half_scores(env_id: str, kwargs: Mapping[str, Any], horizon: int, seed: int) -> list[float]:
    """Score of every half on one seed, coupled with the oracle and random."""
    heights = []
    for make in (make_oracle, None, *HALVES.values()):
        env = gym.make(
            env_id, disable_env_checker=True, **kwargs, **{QUEUEING.horizon_argument: horizon}
        )
        observation, _ = env.reset(seed=seed)
        if make is None:
            policy: Any = make_agent("random", public_problem(env, horizon), agent_seed(seed))
        else:
            policy = make(env)
        recorder = Recorder(env, horizon)
        play(env, policy, observation, horizon, recorder)
        heights.append(np.log1p(recorder.trace.queue_length.mean()))
        env.close()
    oracle, random, *halves = heights
    return [float((random - h) / (random - oracle)) for h in halves]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of both halves on every queueing task of a suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("--task", action="append", default=[], help="name or pattern")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    plan = make_plan(load_suite(options.suite), tasks=options.task, seeds=1)
    tasks = {cell.spec["task"]["name"]: cell for cell in plan.cells}
    print(f"{'task':40}" + "".join(f"{name:>24}" for name in HALVES))
    for name, cell in tasks.items():
        task = cell.spec["task"]
        if problem_of(task["env"]) is not QUEUEING:
            continue
        scores = [
            half_scores(task["env"], cell.kwargs, task["horizon"], seed)
            for seed in range(options.seeds)
        ]
        print(f"{name:40}" + "".join(_cell(t_interval(own)) for own in zip(*scores, strict=True)))


def _cell(score: Interval) -> str:
    return f"{score.value:8.3f} [{score.low:.3f}, {score.high:.3f}]"


if __name__ == "__main__":
    main()
