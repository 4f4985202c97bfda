"""``python -m benchmarks.measure.speed``: how fast environments and agents are, in ratios.

Environments run the loops of gymnasium.utils.performance (random actions, sampling included), in
short rounds that take turns; agents are timed over whole runs, ACQB's refit against L-BFGS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, process_time_ns
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.interface import Action, Agent, Observation, QueueProblem
from baselines.registry import make_agent
from benchmarks.problems.queueing.play import public_problem
from benchmarks.run.engines import ONE_THREAD
from benchmarks.run.runner import checked_action, provenance
from benchmarks.run.store import write_text
from benchmarks.score.task_board import INSTALLED
from llmqueue_gym.errors import UsageError

Floats = NDArray[np.float64]

LANES = 1024
BATCHES = (1, 16, 64, 256, 1024)
HORIZON = 5000
ROUNDS = 12
GROWTH_LANES = 256
GROWTH = {
    "B (lanes)": [{"num_envs": lanes} for lanes in BATCHES],
    "W (window)": [{"window": window} for window in (8, 32, 128)],
    "N (LLMs)": [{"num_llms": llms} for llms in (5, 20, 100)],
    "d (context)": [{"context_dim": dim} for dim in (5, 64, 384)],
}
SCALAR, VECTOR = "LLMQueue-v0 / CartPole-v1", f"LLMQueue-v0 x{LANES} / CartPole-v1 x{LANES}"
SMALL = {"num_llms": 5, "context_dim": 5, "assortment_size": 2, "load": 0.9}
LARGE = {
    "workload": {"source": "synthetic", "kind": "lookalike", "num_llms": 11, "context_dim": 384},
    "assortment_size": 2,
    "load": 0.9,
}


# --- environments ---------------------------------------------------------------------------------


@dataclass
class Runner:
    """An environment stepped with random actions, as Gymnasium's benchmark steps it.

    Attributes
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
        The environment, reset once.
    clock : callable
        Seconds used so far. CPU time of this process does not count what other programs on the
        machine do; an environment with worker processes needs ``perf_counter``.
    """

    env: Any
    clock: Callable[[], float] = process_time

    def __post_init__(self) -> None:
        self.env.reset(seed=0)
        self.env.action_space.seed(0)
        self._vector = isinstance(self.env, gym.vector.VectorEnv)
        self.run(0.0)  # what is set up by the first step is not measured

    def run(self, seconds: float) -> float:
        """Return environment steps per second over a round of at least ``seconds``."""
        clock, step, sample = self.clock, self.env.step, self.env.action_space.sample
        steps, ended, end = 0, 0, 0.0
        start = clock()
        while end - start <= seconds:
            _, _, terminated, truncated, _ = step(sample())
            if self._vector:
                steps += self.env.num_envs - ended  # a lane's reset is no step of it
                ended = int(np.count_nonzero(terminated | truncated))
            else:
                steps += 1
                if terminated or truncated:
                    self.env.reset()
            end = clock()
        return steps / (end - start)


@contextmanager
def _vectors(makers: Mapping[str, Callable[[], Any]]) -> Iterator[dict[str, Runner]]:
    """Make the environments, and close them whatever happens; async ones run on wall time."""
    runners: dict[str, Runner] = {}
    try:
        for name, make in makers.items():
            env = make()
            wall = isinstance(env, gym.vector.AsyncVectorEnv)
            runners[name] = Runner(env, perf_counter if wall else process_time)
        yield runners
    finally:
        for runner in runners.values():
            runner.env.close()


def take_turns(
    runners: Mapping[str, Runner], seconds: float, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Return steps per second of each round; the rounds of all runners alternate.

    What else the machine does drifts slowly, so ratios within a round are far steadier than
    ratios of long runs one after the other.
    """
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            speeds[name].append(runner.run(seconds / rounds))
    return speeds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))


def _vector_env(env_id: str, lanes: int, mode: str, **kwargs: Any) -> Any:
    return gym.make_vec(env_id, num_envs=lanes, vectorization_mode=mode, **kwargs)


def cartpole_ratios(seconds: float, lanes: int = LANES) -> dict[str, float]:
    """Speeds of LLMQueue-v0 over CartPole-v1's: scalar, and native vector environments.

    Both with default arguments, so that every lane has an instance of its own.
    """
    native = "vector_entry_point"
    makers: dict[str, Callable[[], Any]] = {
        "queue": lambda: gym.make("LLMQueue-v0"),
        "cartpole": lambda: gym.make("CartPole-v1"),
        "queues": lambda: _vector_env("LLMQueue-v0", lanes, native),
        "cartpoles": lambda: _vector_env("CartPole-v1", lanes, native),
    }
    with _vectors(makers) as runners:
        speeds = take_turns(runners, seconds)
    return {
        SCALAR: median_ratio(speeds["queue"], speeds["cartpole"]),
        VECTOR: median_ratio(speeds["queues"], speeds["cartpoles"]),
    }


def environment_speed(seconds: float, lanes: int = LANES) -> dict[str, float]:
    """Compare LLMQueue-v0 with CartPole-v1, and its vector form with SyncVectorEnv of itself."""
    native = "vector_entry_point"
    makers: dict[str, Callable[[], Any]] = {
        "CartPole-v1": lambda: gym.make("CartPole-v1"),
        "LLMQueue-v0": lambda: gym.make("LLMQueue-v0"),
        f"CartPole-v1 x{lanes}": lambda: _vector_env("CartPole-v1", lanes, native),
        f"LLMQueue-v0 x{lanes}": lambda: _vector_env("LLMQueue-v0", lanes, native),
        f"LLMQueue-v0 x{lanes} (one instance)": lambda: _vector_env(
            "LLMQueue-v0", lanes, native, instance_seed=0
        ),
        f"SyncVectorEnv x{lanes} (one instance)": lambda: _vector_env(
            "LLMQueue-v0", lanes, "sync", instance_seed=0
        ),
    }
    with _vectors(makers) as runners:
        speeds = take_turns(runners, seconds)
    scalar_cart, scalar, cart, own, one, sync = speeds
    ratios = [(scalar, scalar_cart), (own, cart), (one, cart), (one, sync)]
    return {
        **{f"{name} steps/s": median(values) for name, values in speeds.items()},
        **{f"{a} / {b}": median_ratio(speeds[a], speeds[b]) for a, b in ratios},
    }


def vector_table(seconds: float, batches: Sequence[int] = BATCHES) -> list[list[str]]:
    """Steps/s of the native vector environment, its Sync and Async forms and CartPole's, by B."""
    kinds = {
        "native": ("LLMQueue-v0", "vector_entry_point"),
        "SyncVectorEnv": ("LLMQueue-v0", "sync"),
        "AsyncVectorEnv": ("LLMQueue-v0", "async"),
        "CartPole-v1": ("CartPole-v1", "vector_entry_point"),
    }
    table = [["B", *kinds, "native / Sync", "native / CartPole-v1"]]
    for lanes in batches:
        # A process a lane: more than this says nothing about the environment.
        chosen = {name: kind for name, kind in kinds.items() if "Async" not in name or lanes <= 16}
        makers = {
            name: partial(_vector_env, env_id, lanes, mode)
            for name, (env_id, mode) in chosen.items()
        }
        with _vectors(makers) as runners:
            speeds = take_turns(runners, seconds, rounds=6)
        table.append(
            [
                f"{lanes}",
                *(f"{median(speeds[name]):,.0f}" if name in speeds else "" for name in kinds),
                f"{median_ratio(speeds['native'], speeds['SyncVectorEnv']):.1f}",
                f"{median_ratio(speeds['native'], speeds['CartPole-v1']):.2f}",
            ]
        )
    return table


def growth_table(seconds: float, lanes: int = GROWTH_LANES) -> list[list[str]]:
    """Microseconds of a native vector step, varying B, W, N and d one at a time."""
    table = [["varied", "value", "us a step", "us a lane and step"]]
    for varied, settings in GROWTH.items():
        for setting in settings:
            arguments: dict[str, Any] = {"load": 0.9, "instance_seed": 0, **setting}
            env = _vector_env(
                "LLMQueue-v0", arguments.pop("num_envs", lanes), "vector_entry_point", **arguments
            )
            microseconds = 1e6 / Runner(env).run(seconds) * env.num_envs
            env.close()
            value = next(iter(setting.values()))
            each = microseconds / env.num_envs
            table.append([varied, f"{value}", f"{microseconds:,.0f}", f"{each:.2f}"])
    return table


# --- agents ---------------------------------------------------------------------------------------


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


# --- the guard ------------------------------------------------------------------------------------


def write_baseline(path: Path, ratios: Mapping[str, float], command: str) -> None:
    """Write the ratios that the guard compares with, and where they come from."""
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    content = {"ratios": rounded, "provenance": provenance(command)}
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_baseline(path: Path) -> dict[str, float]:
    """Read the committed ratios.

    Raises
    ------
    ValueError
        If the file is missing, damaged or holds no positive ratios.
    """
    fix = f"write it anew with `python -m benchmarks.measure.speed --write-baseline {path}`"
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))["ratios"]
        baseline = {str(name): float(ratio) for name, ratio in ratios.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no speed baseline ({error!r}); {fix}") from error
    if not baseline or not all(0 < ratio < np.inf for ratio in baseline.values()):
        raise UsageError(f"{path} holds no positive ratios; {fix}")
    return baseline


def slowdowns(baseline: Mapping[str, float], measured: Mapping[str, float]) -> list[str]:
    """Say which ratios fell below half of the committed ones.

    Raises
    ------
    ValueError
        If the two do not name the same ratios.
    """
    if baseline.keys() != measured.keys():
        raise UsageError(
            f"the baseline holds {sorted(baseline)} and the bench measures {sorted(measured)}; "
            "write the baseline anew with --write-baseline"
        )
    return [
        f"{name}: {measured[name]:.3f} is below half of {ratio:.3f}"
        for name, ratio in baseline.items()
        if not measured[name] >= ratio / 2
    ]


# --- output ---------------------------------------------------------------------------------------


def markdown(seconds: float, batches: Sequence[int] = BATCHES) -> str:
    """Return the page with the tables of vector speeds and of growth."""
    command = " ".join(["python -m benchmarks.measure.speed", *sys.argv[1:]])
    source = provenance(command)
    versions = ", ".join(
        f"{name} {source[name]}" for name in ("python", "numpy", "scipy", "gymnasium")
    )
    return f"""# Speed

<!-- Generated by `{command}`; do not edit. -->

Measured by `{command}`,
llmqueue_gym {source["version"]} ({source["commit"] or INSTALLED}), {versions},
on {source["machine"]}.
Random actions, sampling included, on the CPU time of the process (AsyncVectorEnv: wall time),
medians of rounds that take turns. Ratios say more than steps/s: they compare two environments in
one process at one time.

## Vector environments

Environment steps per second of `LLMQueue-v0` with default arguments, an instance per lane:

{_table(vector_table(seconds, batches))}

AsyncVectorEnv runs a process per lane; it is measured up to 16.

## How a step grows

A step of the native vector environment with B = {GROWTH_LANES}, W = 32, N = 5, d = 5, K = 2 and
one instance, and with one of them varied:

{_table(growth_table(seconds))}

A step is O(B (W d + N K)) whatever the backlog and the time. For small B it is the fixed price of
about 110 NumPy calls; for large B or W d it is writing the observation, which is allocated anew
in every step.
"""


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " ---: |" * len(rows[0]), *body])


def _restart_with_one_thread() -> None:
    """Run this program again with one BLAS thread, as the workers of a benchmark run do."""
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):
        environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
        arguments = [sys.executable, "-m", "benchmarks.measure.speed", *sys.argv[1:]]
        raise SystemExit(subprocess.run(arguments, env=environment, check=False).returncode)


def main() -> None:
    """Measure and print a table, or what the options say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure.speed", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per environment measured")
    parser.add_argument("--horizon", type=int, default=HORIZON, help="slots of an agent's run")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the page with the vector tables"
    )
    output.add_argument(
        "--guard",
        type=Path,
        metavar="FILE",
        help="fail if a ratio to CartPole-v1 is below half of the one in this baseline",
    )
    output.add_argument(
        "--write-baseline", type=Path, metavar="FILE", help="measure and write the baseline"
    )
    options = parser.parse_args()
    if not options.seconds > 0 or options.horizon < 100:
        parser.error("--seconds must be positive and --horizon at least 100")
    _restart_with_one_thread()
    command = " ".join(["python -m benchmarks.measure.speed", *sys.argv[1:]])
    if options.markdown:
        write_text(options.markdown, markdown(options.seconds))
    elif options.write_baseline:
        write_baseline(options.write_baseline, cartpole_ratios(options.seconds), command)
    elif options.guard:
        raise SystemExit(guard(options.guard, options.seconds))
    else:
        figures = {
            **environment_speed(options.seconds),
            **agent_speed(options.horizon),
            **refit_speed(options.horizon),
        }
        if options.json:
            print(json.dumps({"figures": figures, "provenance": provenance(command)}, indent=2))
            return
        width = max(map(len, figures))
        for name, value in figures.items():
            print(f"{name:<{width}}  {value:>14,.2f}")


def guard(path: Path, seconds: float) -> int:
    """Measure and compare; return the exit code: 0, 1 if a ratio is too low, 2 if none is known."""
    try:
        baseline = read_baseline(path)
        measured = cartpole_ratios(seconds)
        slow = slowdowns(baseline, measured)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, ratio in measured.items():
        print(f"{name}: {ratio:.3f} (committed {baseline[name]:.3f})")
    for message in slow:
        print(message, file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    main()
