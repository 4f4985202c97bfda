"""Speed of the agents: the time of a decision, and what a cell costs besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter_ns, process_time_ns
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, Agent, Observation
from baselines.registry import make_agent
from benchmarks.plan.cells import Cell, make_plan
from benchmarks.plan.suite import load_suite
from benchmarks.problems.queueing.play import public_problem
from benchmarks.run.runner import checked_action, play_cell, set_up

TIMED = ("Q-UCB", "LinUCB", "OFU-MNL+", "ACQB")
SMALL = {"num_llms": 5, "context_dim": 5, "assortment_size": 2, "load": 0.9}
LARGE = {
    "workload": {"source": "synthetic", "kind": "lookalike", "num_llms": 11, "context_dim": 384},
    "assortment_size": 2,
    "load": 0.9,
}
LONG = {
    "workload": {"source": "synthetic", "kind": "uniform", "num_llms": 50, "context_dim": 16},
    "assortment_size": 1,
    "load": 0.95,
    "window": 512,
}
"""Up to 450 queries wait for the choice."""
CELLS = (
    ("queueing", "published-slack0.1", "random"),
    ("deployment", "routerbench-b0.001", "random"),
    ("serving", "tiny-pair-load0.7", "join-shortest-queue"),
)
"""Suite, task and agent whose cells are timed."""


def agent_speed(horizon: int) -> dict[str, float]:
    """Microseconds per decision (act + update) in slots with a waiting query."""
    small = {name: decision_times(name, SMALL, horizon) for name in TIMED}
    large = decision_times("ACQB", LARGE, horizon, clock=process_time_ns)
    long = {
        name: decision_times(name, LONG, horizon, clock=process_time_ns)
        for name in ("ACQB", "LinUCB")
    }
    omd = decision_times("ACQB-OMD", SMALL, horizon, keep_empty=True)
    early, late = horizon // 10, horizon

    def around(slot: int) -> float:
        part = omd[max(0, slot - horizon // 20) : slot + horizon // 20]
        return float(np.median(part[part >= 0])) / 1e3

    return {
        **{f"{name} d=5 N=5 K=2 median us": float(np.median(t)) / 1e3 for name, t in small.items()},
        f"ACQB-OMD d=5 N=5 K=2 median us at t={early}": around(early),
        f"ACQB-OMD d=5 N=5 K=2 median us at t={late}": around(late),
        "ACQB d=384 N=11 K=2 mean us": float(np.mean(large)) / 1e3,
        **{
            f"{name} N=50, a long queue, mean us": float(np.mean(t)) / 1e3
            for name, t in long.items()
        },
    }


def decision_times(
    name: str,
    kwargs: Mapping[str, Any],
    horizon: int,
    keep_empty: bool = False,
    clock: Callable[[], int] = perf_counter_ns,
) -> NDArray[np.int64]:
    """Nanoseconds of every decision of a run; -1 marks slots with an empty queue if kept.

    The run is played twice, and the second one told: the first compiles what it comes across.
    Of a mean the CPU time is told, which other programs do not add to; of a median the time that
    has passed: to ask for the CPU time takes 0.6 us each time.
    """
    env = gym.make("LLMQueue-v0", horizon, disable_env_checker=True, **kwargs)
    for _ in range(2):
        observation, _ = env.reset(seed=0)
        agent = make_agent(name, public_problem(env, horizon), 0)
        times = _play(env, agent, observation, horizon, clock)
    env.close()
    return times if keep_empty else times[times >= 0]


def _play(
    env: Any, agent: Agent, observation: Any, horizon: int, clock: Callable[[], int]
) -> NDArray[np.int64]:
    """Run an agent; nanoseconds of every decision, -1 where nobody waits."""
    times = np.full(horizon, -1, dtype=np.int64)
    for t in range(horizon):
        start = clock()
        action = agent.act(observation)
        spent = clock() - start
        checked_action(action, env.action_space.nvec, type(agent).__name__, t)
        following, reward, _, _, info = env.step(action)
        start = clock()
        agent.update(observation, action, float(reward), following, info)
        spent += clock() - start
        if observation["waiting"].any():
            times[t] = spent
        observation = following
    return times


class _Clocked:
    """A policy, the nanoseconds that it takes in each step, and what it does."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.spent: list[int] = []
        self.actions: list[Action] = []

    def act(self, observation: Observation) -> Action:
        start = perf_counter_ns()
        action: Action = self.policy.act(observation)
        self.spent.append(perf_counter_ns() - start)
        self.actions.append(action)
        return action

    def update(self, *step: Any) -> None:
        start = perf_counter_ns()
        self.policy.update(*step)
        self.spent[-1] += perf_counter_ns() - start


class _Again:
    """Acts as before, without a thought."""

    def __init__(self, actions: Iterable[Action]) -> None:
        self._next = iter(actions).__next__

    def act(self, observation: Observation) -> Action:
        return self._next()


def cell_speed() -> dict[str, float]:
    """StageRoute's decision, and what a step of a cell of each problem costs beside its agent.

    That is the CPU time of a whole cell whose actions are known, from `set_up` to the result: the
    least of some runs, for other programs only ever add to it.
    """
    route, _ = _play_planned("quick", "catalog*", "StageRoute")
    return {
        "StageRoute median us": float(np.median(route)) / 1e3,
        **{
            f"a step of a {suite} cell beside its agent, us": _play_planned(suite, task, label)[1]
            for suite, task, label in CELLS
        },
    }


def _play_planned(suite: str, task: str, label: str, rounds: int = 5) -> tuple[list[int], float]:
    """Play an agent's first cell of a task; ns of its decisions, us of a step beside them."""
    plan = make_plan(load_suite(suite), seeds=1, tasks=[task])
    cell = next(cell for cell in plan.cells if cell.spec["agent"]["label"] == label)
    for _ in range(2):  # the first time compiles
        clocked, _ = _play_whole(cell, _Clocked)
    again = [_play_whole(cell, lambda _: _Again(clocked.actions)) for _ in range(rounds)]
    return clocked.spent, min(whole for _, whole in again) / len(clocked.actions) / 1e3


def _play_whole(cell: Cell, player: Callable[[Any], Any]) -> tuple[Any, int]:
    """Play a cell by what ``player`` makes of its agent; CPU nanoseconds of it all."""
    start = process_time_ns()
    env, policy, observation, recorder = set_up(cell.spec, cell.kwargs, None, [])
    played = player(policy)
    play_cell(cell.spec, env, played, observation, recorder)
    recorder.result()
    env.close()
    return played, process_time_ns() - start
