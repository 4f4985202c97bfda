"""Speed of the agents: CPU time of a decision, ACQB against a full refit, and a cell besides."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from time import process_time, process_time_ns
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from baselines.interface import Action, Agent, Observation, QueueProblem
from baselines.registry import make_agent
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import load_suite
from benchmarks.problems.queueing.play import public_problem
from benchmarks.run.runner import checked_action, play_cell, set_up

Floats = NDArray[np.float64]

TIMED = ("Q-UCB", "LinUCB", "OFU-MNL+", "ACQB")
SMALL = {"num_llms": 5, "context_dim": 5, "assortment_size": 2, "load": 0.9}
LARGE = {
    "workload": {"source": "synthetic", "kind": "lookalike", "num_llms": 11, "context_dim": 384},
    "assortment_size": 2,
    "load": 0.9,
}


def agent_speed(horizon: int) -> dict[str, float]:
    """Microseconds per decision (act + update) in slots with a waiting query."""
    small = {name: decision_times(name, SMALL, horizon) for name in TIMED}
    omd = decision_times("ACQB-OMD", SMALL, horizon, keep_empty=True)
    early, late = horizon // 10, horizon

    def around(slot: int) -> float:
        part = omd[max(0, slot - horizon // 20) : slot + horizon // 20]
        return float(np.median(part[part >= 0])) / 1e3

    return {
        **{f"{name} d=5 N=5 K=2 median us": float(np.median(t)) / 1e3 for name, t in small.items()},
        f"ACQB-OMD d=5 N=5 K=2 median us at t={early}": around(early),
        f"ACQB-OMD d=5 N=5 K=2 median us at t={late}": around(late),
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


# --- ACQB against a full refit --------------------------------------------------------------------


class _RecordingACQB(Agent):
    """ACQB, keeping every served query, its answer, and now and then the estimate before it."""

    def __init__(self, problem: QueueProblem, seed: int, every: int) -> None:
        super().__init__(problem, seed)
        self.every = every
        self.estimates: dict[int, Floats] = {}
        self.agent = make_agent("ACQB", problem, seed)
        self.contexts: list[Floats] = []
        self.shown: list[list[int]] = []
        self.kept: list[int] = []

    def act(self, observation: Observation) -> Action:
        """Choose as ACQB does."""
        return self.agent.act(observation)

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn as ACQB does."""
        if info["served"]:
            if (len(self.kept) + 1) % self.every == 0:
                theta = self.agent.estimator.theta  # type: ignore[attr-defined]
                self.estimates[len(self.kept) + 1] = np.array(theta, dtype=np.float64)
            self.contexts.append(observation["contexts"][action[0]].astype(np.float64))
            self.shown.append(action[1:].tolist())
            self.kept.append(info["kept_llm"])
        self.agent.update(observation, action, reward, next_observation, info)


def refit_speed(horizon: int, samples: int = 8) -> dict[str, float]:
    """ACQB's decision at d=384, N=11, K=2 against L-BFGS over the history and a search of pairs.

    Both are averaged over the run, L-BFGS over evenly spaced lengths of its history. It is started
    from zero and, most kindly, from ACQB's own estimate of the slot before.
    """
    env = gym.make("LLMQueue-v0", horizon, disable_env_checker=True, **LARGE)
    observation, _ = env.reset(seed=0)
    problem = public_problem(env, horizon)
    recorder = _RecordingACQB(problem, 0, max(1, horizon // (samples + 2)))
    _play(env, recorder, observation, horizon)
    env.close()
    acqb = float(np.mean(decision_times("ACQB", LARGE, horizon))) / 1e3
    contexts, shown = np.stack(recorder.contexts), np.array(recorder.shown)
    kept = np.array(recorder.kept)

    def lbfgs(warm: bool) -> float:
        clock = process_time()
        for length, before in recorder.estimates.items():
            start = before if warm else np.zeros_like(before)
            theta = full_refit(contexts[:length], shown[:length], kept[:length], start)
            best_pair_by_enumeration(contexts[length - 1 : length + problem.window - 1] @ theta.T)
        return (process_time() - clock) * 1e6 / len(recorder.estimates)

    cold, warm = lbfgs(warm=False), lbfgs(warm=True)
    return {
        "ACQB d=384 N=11 K=2 mean us": acqb,
        "L-BFGS from zero, and pair search, mean us": cold,
        "L-BFGS from zero / ACQB": cold / acqb,
        "L-BFGS warm, and pair search, mean us": warm,
        "L-BFGS warm / ACQB": warm / acqb,
    }


def full_refit(
    contexts: Floats, shown: NDArray[np.int64], kept: NDArray[np.int64], start: Floats
) -> Floats:
    """Ridge MNL maximum likelihood of all parameters by L-BFGS, shape (N, d); ridge 1."""
    rows = np.arange(len(kept))
    offered = np.zeros((len(kept), len(start)))
    offered[rows[:, None], shown] = 1.0
    answers = np.zeros_like(offered)
    answers[rows[kept >= 0], kept[kept >= 0]] = 1.0

    def loss(flat: Floats) -> tuple[float, Floats]:
        theta = flat.reshape(start.shape)
        utilities = contexts @ theta.T
        odds = offered * np.exp(utilities)
        total = 1.0 + odds.sum(axis=1)
        value = np.log(total).sum() - np.sum(answers * utilities) + 0.5 * flat @ flat
        gradient = (odds / total[:, None] - answers).T @ contexts + theta
        return float(value), gradient.ravel()

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, dtype=np.float64).reshape(start.shape)


def best_pair_by_enumeration(utilities: Floats) -> tuple[int, tuple[int, ...]]:
    """Query and pair with the largest departure rate, by trying them all."""
    pairs = list(itertools.combinations(range(utilities.shape[1]), 2))
    odds = np.exp(utilities)
    total = odds[:, [a for a, _ in pairs]] + odds[:, [b for _, b in pairs]]
    query, pair = np.unravel_index(np.argmax(total / (1.0 + total)), total.shape)
    return int(query), pairs[int(pair)]
