"""Plays one cell: an agent on a queueing task under one seed, scored with the hidden truth.

Everything in ``metrics`` and ``curve`` depends on the cell alone; clocks and machines stand apart.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import llmqueue_gym
from baselines.agent import Action, QueueProblem, make_agent

CURVE_POINTS = 200
"""Log-spaced slots at which the learning curve is stored."""

TAIL_SHARE = 0.2
"""Last share of the horizon that the tail of a metric is taken over."""

_AGENT_STREAM = 0xA6E47
"""Keeps an agent's seed apart from the environment's streams of the same seed."""


class InvalidActionError(ValueError):
    """An agent returned something outside the action space."""


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
    decision_ns : ndarray
        Time of act and update; -1 where no query waited and there was nothing to decide.
    """

    queue_length: NDArray[np.int64]
    best_rate: NDArray[np.float64]
    departure_rate: NDArray[np.float64]
    departed: NDArray[np.bool_]
    retried: NDArray[np.bool_]
    sojourn: NDArray[np.int64]
    decision_ns: NDArray[np.int64]

    @classmethod
    def empty(cls, horizon: int) -> Trace:
        """Return a trace of ``horizon`` slots to be filled in."""
        ints = [np.zeros(horizon, dtype=np.int64) for _ in range(3)]
        floats = [np.zeros(horizon) for _ in range(2)]
        flags = [np.zeros(horizon, dtype=np.bool_) for _ in range(2)]
        return cls(ints[0], floats[0], floats[1], flags[0], flags[1], ints[1], ints[2])


def run_cell(spec: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Play one cell and measure it.

    Parameters
    ----------
    spec : Mapping[str, Any]
        The cell's identity (``benchmarks.suite.Cell.spec``).
    kwargs : Mapping[str, Any]
        The environment's arguments on this machine.

    Returns
    -------
    dict
        JSON-plain ``metrics``, ``curve``, ``timing``.

    Raises
    ------
    InvalidActionError
        If the agent leaves the action space.
    """
    task, agent = spec["task"], spec["agent"]
    started = perf_counter()
    env = gym.make(
        task["env"], max_episode_steps=task["horizon"], disable_env_checker=True, **kwargs
    )
    try:
        observation, _ = env.reset(seed=spec["seed"])
        policy = make_policy(agent, env, spec["seed"], task["horizon"])
        trace = play(env, policy, observation, task["horizon"], agent["label"])
        dynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
        instance = {
            "arrival_rate": float(dynamics.arrival_rate[0]),
            "capacity": float(dynamics.capacity[0]),
        }
    finally:
        env.close()
    decisions = trace.decision_ns[trace.decision_ns >= 0]
    return {
        "metrics": {**instance, **queue_metrics(trace)},
        "curve": learning_curve(trace),
        "timing": {
            "decision_us_median": float(np.median(decisions)) / 1e3 if decisions.size else None,
            "decision_us_mean": float(np.mean(decisions)) / 1e3 if decisions.size else None,
            "wall_seconds": perf_counter() - started,
            "peak_memory_mb": _peak_memory_mb(),
        },
    }


def queue_problem(env: gym.Env[Any, Any], horizon: int) -> QueueProblem:
    """Public parameters of a queueing environment that has been reset."""
    choices = np.asarray(env.action_space.nvec)  # type: ignore[attr-defined]
    contexts = env.observation_space["contexts"]  # type: ignore[index]
    return QueueProblem(
        num_llms=int(choices[1]),
        assortment_size=len(choices) - 1,
        context_dim=int(contexts.shape[1]),
        window=int(choices[0]),
        arrival_rate=float(env.unwrapped.dynamics.arrival_rate[0]),  # type: ignore[attr-defined]
        horizon=horizon,
    )


def agent_seed(seed: int) -> int:
    """Seed of an agent's own randomness on the task seed ``seed``."""
    return int(np.random.SeedSequence([seed, _AGENT_STREAM]).generate_state(1)[0])


def make_policy(agent: Mapping[str, Any], env: gym.Env[Any, Any], seed: int, horizon: int) -> Any:
    """Build the cell's policy: the myopic oracle sees the environment, an agent the problem."""
    if agent["name"] == "oracle":
        from llmqueue_gym.oracles import MyopicOracle

        return MyopicOracle(env)
    problem = queue_problem(env, horizon)
    return make_agent(agent["name"], problem, agent_seed(seed), **agent["settings"])


def play(env: gym.Env[Any, Any], policy: Any, observation: Any, horizon: int, label: str) -> Trace:
    """Run the policy for ``horizon`` slots."""
    dynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
    choices = np.asarray(env.action_space.nvec)  # type: ignore[attr-defined]
    update = getattr(policy, "update", None)  # the oracle has nothing to learn
    trace = Trace.empty(horizon)
    for t in range(horizon):
        age = observation["age"].copy()  # the agent may scribble over what it is given
        waiting = bool(dynamics.queue_length[0])
        clock = perf_counter_ns()
        chosen = policy.act(observation)
        spent = perf_counter_ns() - clock
        action = checked_action(chosen, choices, label, t)
        trace.best_rate[t] = dynamics.best_waiting_rate()[0]
        trace.departure_rate[t] = dynamics.departure_rate(action[:1], action[None, 1:])[0]
        following, reward, terminated, truncated, info = env.step(action)
        trace.queue_length[t] = info["queue_length"]
        trace.departed[t], trace.retried[t] = info["departed"], info["retried"]
        trace.sojourn[t] = age[action[0]] + 1 if info["departed"] else 0
        if update is not None:
            clock = perf_counter_ns()
            update(observation, action, float(reward), following, info)
            spent += perf_counter_ns() - clock
        trace.decision_ns[t] = spent if waiting else -1
        observation = following
        if terminated or (truncated and t + 1 < horizon):
            raise RuntimeError(f"the environment ended in slot {t + 1} of {horizon}")
    return trace


def checked_action(chosen: object, choices: NDArray[Any], label: str, slot: int) -> Action:
    """Return an own copy of the agent's action.

    Raises
    ------
    InvalidActionError
        If it is no array of whole numbers within ``[0, choices)``.
    """
    try:
        action = np.array(chosen)
    except ValueError:  # ragged sequences
        action = np.empty(0)
    right = action.shape == choices.shape and action.dtype.kind in "iu"
    if not right or (action < 0).any() or (action >= choices).any():
        raise InvalidActionError(
            f"agent {label!r} returned {chosen!r} in slot {slot}; an action is an integer array "
            f"[slot, llm_1, ..., llm_K] of shape {choices.shape} with entries below "
            f"{choices.tolist()}"
        )
    return action.astype(np.int64, copy=False)


# --- what is measured -----------------------------------------------------------------------------


def queue_metrics(trace: Trace) -> dict[str, float | int | None]:
    """Summary figures of a run.

    ``luck`` is the martingale sum (departed - p(x_t, S_t)) in standard deviations: near a standard
    normal for every policy that does not know the outcome draws, whatever else it knows.
    """
    queue, rate = trace.queue_length, trace.departure_rate
    departures, retrials = int(trace.departed.sum()), int(trace.retried.sum())
    sojourns = trace.sojourn[trace.departed]
    spread = float(np.sqrt(np.sum(rate * (1.0 - rate))))
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
        "luck": float((departures - rate.sum()) / spread) if spread > 0 else 0.0,
    }


def learning_curve(trace: Trace) -> dict[str, list[float]]:
    """Cumulative queue length and routing regret at log-spaced slots, the last one included."""
    points = curve_slots(trace.queue_length.size)
    return {
        "t": points.tolist(),
        "queue": np.cumsum(trace.queue_length)[points - 1].tolist(),
        "regret": np.cumsum(_regret(trace))[points - 1].tolist(),
    }


def curve_slots(horizon: int) -> NDArray[np.int64]:
    """About ``CURVE_POINTS`` log-spaced slots 1..T."""
    return np.unique(np.rint(np.geomspace(1, horizon, CURVE_POINTS)).astype(np.int64))


def _regret(trace: Trace) -> NDArray[np.float64]:
    """Routing regret increments: 0 in slots with an empty queue, where both rates are 0.

    Rounding can leave an optimal choice 1e-16 above its own maximum.
    """
    return np.maximum(trace.best_rate - trace.departure_rate, 0.0)


# --- where it was measured ------------------------------------------------------------------------


def provenance(command: str) -> dict[str, Any]:
    """Versions, commit, machine and the command of a run."""
    packages = ("numpy", "scipy", "gymnasium")
    return {
        "command": command,
        "version": llmqueue_gym.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "commit": _git_commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _git_commit() -> str | None:
    """Commit of the checkout this file belongs to, ``+`` marking uncommitted changes."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _peak_memory_mb() -> float | None:
    """Largest resident size of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
