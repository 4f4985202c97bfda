"""Speed of the agents: CPU time of a decision, and what a cell costs besides."""

from __future__ import annotations

from collections.abc import Mapping
from time import process_time_ns
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, Agent, Observation
from baselines.registry import make_agent
from benchmarks.plan.cells import make_plan
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


def agent_speed(horizon: int) -> dict[str, float]:
    """Microseconds per decision (act + update) in slots with a waiting query."""
    small = {name: decision_times(name, SMALL, horizon) for name in TIMED}
    large = decision_times("ACQB", LARGE, horizon)
    long = {name: decision_times(name, LONG, horizon) for name in ("ACQB", "LinUCB")}
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
    name: str, kwargs: Mapping[str, Any], horizon: int, keep_empty: bool = False
) -> NDArray[np.int64]:
    """Nanoseconds of every decision of a run; -1 marks slots with an empty queue if kept."""
    env = gym.make("LLMQueue-v0", horizon, disable_env_checker=True, **kwargs)
    observation, _ = env.reset(seed=0)
    agent = make_agent(name, public_problem(env, horizon), 0)
    times = _play(env, agent, observation, horizon)
    env.close()
    return times if keep_empty else times[times >= 0]


def _play(env: Any, agent: Agent, observation: Any, horizon: int) -> NDArray[np.int64]:
    """Run an agent; CPU nanoseconds of every decision, -1 where nobody waits."""
    times = np.full(horizon, -1, dtype=np.int64)
    for t in range(horizon):
        start = process_time_ns()
        action = agent.act(observation)
        spent = process_time_ns() - start
        checked_action(action, env.action_space.nvec, type(agent).__name__, t)
        following, reward, _, _, info = env.step(action)
        start = process_time_ns()
        agent.update(observation, action, float(reward), following, info)
        if observation["waiting"].any():
            times[t] = spent + process_time_ns() - start
        observation = following
    return times


class _Clocked:
    """A policy, and the CPU nanoseconds that it takes in each step."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.spent: list[int] = []

    def act(self, observation: Observation) -> Action:
        start = process_time_ns()
        action: Action = self.policy.act(observation)
        self.spent.append(process_time_ns() - start)
        return action

    def update(self, *step: Any) -> None:
        start = process_time_ns()
        self.policy.update(*step)
        self.spent[-1] += process_time_ns() - start


def cell_speed() -> dict[str, float]:
    """StageRoute's decision, and what a step of a queueing cell costs beside its agent."""
    route, _ = _play_planned("quick", "catalog*", "StageRoute")
    agent, whole = _play_planned("queueing", "published-slack0.1", "random")
    return {
        "StageRoute median us": float(np.median(route)) / 1e3,
        "a step of a queueing cell beside its agent, us": (whole - sum(agent)) / len(agent) / 1e3,
    }


def _play_planned(suite: str, task: str, label: str) -> tuple[list[int], int]:
    """Play an agent's first cell of a task twice; CPU nanoseconds of each step, and of all."""
    plan = make_plan(load_suite(suite), seeds=1, tasks=[task])
    cell = next(cell for cell in plan.cells if cell.spec["agent"]["label"] == label)
    for _ in range(2):  # the first time compiles
        start = process_time_ns()
        env, policy, observation, recorder = set_up(cell.spec, cell.kwargs, None, [])
        clocked = _Clocked(policy)
        play_cell(cell.spec, env, clocked, observation, recorder)
        recorder.result()
        env.close()
        whole = process_time_ns() - start
    return clocked.spent, whole
