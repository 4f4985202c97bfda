"""``python -m benchmarks.speed``: how fast environments and agents are, as ratios in one process.

Environments are compared with CartPole-v1 by gymnasium.utils.performance (random actions, sampling
included); agents are timed over whole runs, ACQB's refit against L-BFGS on the same history.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import performance
from numpy.typing import NDArray
from scipy.optimize import minimize

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.agent import Action, Agent, Observation, QueueProblem, make_agent
from benchmarks.engines import ONE_THREAD
from benchmarks.queueing import Recorder, public_problem
from benchmarks.runner import play, provenance

Floats = NDArray[np.float64]

LANES = 1024
HORIZON = 5000
SMALL = {"num_llms": 5, "context_dim": 5, "assortment_size": 2, "load": 0.9}
LARGE = {
    "workload": {"source": "synthetic", "kind": "lookalike", "num_llms": 11, "context_dim": 384},
    "assortment_size": 2,
    "load": 0.9,
}


def environment_speed(seconds: int) -> dict[str, float]:
    """Compare LLMQueue-v0 with CartPole-v1, and its vector form with SyncVectorEnv of itself.

    Raises
    ------
    RuntimeError
        If the installed Gymnasium cannot time vector environments.
    """
    if not hasattr(performance, "benchmark_vector_step"):
        raise RuntimeError(f"gymnasium {gym.__version__} has no benchmark_vector_step; upgrade it")

    def scalar(env_id: str) -> float:
        return float(performance.benchmark_step(gym.make(env_id), seconds, seed=0))

    def vector(env_id: str, mode: str, **kwargs: Any) -> float:
        envs = gym.make_vec(env_id, num_envs=LANES, vectorization_mode=mode, **kwargs)
        speed = float(performance.benchmark_vector_step(envs, seconds, seed=0))
        envs.close()
        return speed

    cartpole, queue = scalar("CartPole-v1"), scalar("LLMQueue-v0")
    lanes = vector("LLMQueue-v0", "vector_entry_point", instance_seed=0)
    own = vector("LLMQueue-v0", "vector_entry_point")
    cartpoles = vector("CartPole-v1", "vector_entry_point")
    return {
        "CartPole-v1 steps/s": cartpole,
        "LLMQueue-v0 steps/s": queue,
        "LLMQueue-v0 / CartPole-v1": queue / cartpole,
        f"CartPole-v1 x{LANES} steps/s": cartpoles,
        f"LLMQueue-v0 x{LANES} (one instance) steps/s": lanes,
        f"LLMQueue-v0 x{LANES} (one instance) / CartPole-v1 x{LANES}": lanes / cartpoles,
        f"LLMQueue-v0 x{LANES} (an instance per lane) / CartPole-v1 x{LANES}": own / cartpoles,
        f"LLMQueue-v0 x{LANES} / SyncVectorEnv of it": lanes
        / vector("LLMQueue-v0", "sync", instance_seed=0),
    }


def agent_speed(horizon: int) -> dict[str, float]:
    """Microseconds per decision (act + update) in slots with a waiting query."""
    small = {name: decision_times(name, SMALL, horizon) for name in ("Q-UCB", "LinUCB", "ACQB")}
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
    times = play(env, agent, observation, horizon, Recorder(env, horizon))
    env.close()
    return times if keep_empty else times[times >= 0]


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
    play(env, recorder, observation, horizon, Recorder(env, horizon))
    env.close()
    acqb = float(np.mean(decision_times("ACQB", LARGE, horizon))) / 1e3
    contexts, shown = np.stack(recorder.contexts), np.array(recorder.shown)
    kept = np.array(recorder.kept)

    def lbfgs(warm: bool) -> float:
        clock = perf_counter()
        for length, before in recorder.estimates.items():
            start = before if warm else np.zeros_like(before)
            theta = full_refit(contexts[:length], shown[:length], kept[:length], start)
            best_pair_by_enumeration(contexts[length - 1 : length + problem.window - 1] @ theta.T)
        return (perf_counter() - clock) * 1e6 / len(recorder.estimates)

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


def _restart_with_one_thread() -> None:
    """Run this program again with one BLAS thread, as the workers of a benchmark run do."""
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):
        environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
        arguments = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]]
        raise SystemExit(subprocess.run(arguments, env=environment, check=False).returncode)


def main() -> None:
    """Measure and print a table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="per environment measurement")
    parser.add_argument("--horizon", type=int, default=HORIZON, help="slots of an agent's run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.seconds < 1 or options.horizon < 100:
        parser.error("--seconds must be at least 1 and --horizon at least 100")
    _restart_with_one_thread()
    figures = {
        **environment_speed(options.seconds),
        **agent_speed(options.horizon),
        **refit_speed(options.horizon),
    }
    if options.json:
        command = " ".join(["python -m benchmarks.speed", *sys.argv[1:]])
        print(json.dumps({"figures": figures, "provenance": provenance(command)}, indent=2))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>14,.2f}")


if __name__ == "__main__":
    main()
