"""Plays one cell: an agent on a task under one seed, watched by the recorder of the task's kind.

All of a result but its ``timing`` depends on the cell alone.
"""

from __future__ import annotations

import inspect
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.metadata import version
from operator import lt
from pathlib import Path
from secrets import randbits
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

import llmqueue_gym
from baselines.interface import Action
from baselines.registry import make_agent
from benchmarks.plan.cells import Cell
from benchmarks.plan.players import check_agent_code, is_told
from benchmarks.problems import problem_of
from benchmarks.problems.interface import Recorder
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.wall.judge import WalledAgent

CURVE_POINTS = 200
"""Log-spaced steps at which the learning curve is stored."""

_AGENT_STREAM = 0xA6E47
"""Keeps an agent's seed apart from the environment's streams of the same seed."""


class InvalidActionError(ValueError):
    """An agent returned something outside the action space."""


def run_cell(
    spec: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    model: str | None = None,
    seed: int | None = None,
    walled: WalledAgent | None = None,
) -> dict[str, Any]:
    """Play one cell and measure it.

    Parameters
    ----------
    spec : Mapping[str, Any]
        The cell's identity (``benchmarks.plan.cells.Cell.spec``).
    kwargs : Mapping[str, Any]
        The environment's arguments on this machine.
    model : str, optional
        File of the trained agent that plays.
    seed : int, optional
        Seed of the agent; by default `agent_seed` of the cell's, behind the wall a secret one.
    walled : WalledAgent, optional
        A process that waits for an agent; it plays here without one.

    Returns
    -------
    dict
        JSON-plain ``metrics``, ``curve``, ``timing``, what else the task's kind records, the
        ``warnings`` of the instance, if there are any, and of an agent behind the wall ``wall``:
        its ``isolation`` and ``agent_seed``, and what it ``reads``.

    Raises
    ------
    InvalidActionError
        If the agent leaves the action space.
    UsageError
        If the agent's code is not the one that the cell was planned with.
    """
    started = perf_counter()
    warned: list[str] = []
    apart: dict[str, Any] = {}
    if walled is not None:
        seed = randbits(32) if seed is None else seed
    env, policy, observation, recorder = set_up(spec, kwargs, model, warned, seed, walled)
    try:
        clock = play_cell(spec, env, policy, observation, recorder)
        if policy is walled:
            reads = walled.finish()
            apart = {"isolation": walled.isolation, "agent_seed": seed, "reads": reads}
        result = recorder.result()
    finally:
        env.close()
    decisions = clock[clock >= 0]
    return {
        **result,
        **({"warnings": warned} if warned else {}),
        **({"wall": apart} if apart else {}),
        "curve": learning_curve(result["curve"]),
        "timing": {
            "decision_us_median": float(np.median(decisions)) / 1e3 if decisions.size else None,
            "decision_us_mean": float(np.mean(decisions)) / 1e3 if decisions.size else None,
            "wall_seconds": perf_counter() - started,
            "peak_memory_mb": _peak_memory_mb(),
        },
    }


def set_up(
    spec: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    model: str | None = None,
    warned: list[str] | None = None,
    seed: int | None = None,
    walled: WalledAgent | None = None,
) -> tuple[gym.Env[Any, Any], Any, Any, Recorder]:
    """Return a cell's environment after its reset, its agent, first observation and recorder.

    What the environment warns of is added to ``warned``; for the others see `run_cell`.
    """
    task, agent = spec["task"], spec["agent"]
    problem, horizon = problem_of(task["env"]), task["horizon"]
    play = problem.play
    texts = [] if warned is None else warned
    with _noting(texts):
        env = _make_env(task, kwargs)
    try:
        with _noting(texts):
            observation, info = env.reset(seed=spec["seed"])
        if agent["name"] == "oracle":
            policy = play.make_oracle(env)
        else:
            check_agent_code(agent, only_code=walled is not None)
            public = play.public_problem(env, horizon, spec["protocol"] == "pretrained")
            if is_told(agent):
                public = play.told_all(env, public)
            settings = agent["settings"]
            if model is not None:  # the very file that the cell names
                settings = {**settings, "sha256": agent["training"]["sha256"]}
            seed = agent_seed(spec["seed"]) if seed is None else seed
            if walled is None:
                policy = make_agent(model or agent["name"], public, seed, **settings)
            else:
                told = {"agent": agent, "model": model, "problem": public, "seed": seed}
                told |= {"settings": settings, "horizon": horizon, "words": problem.action_layout}
                walled.make(told, observation, info, _choices(env))
                policy = walled
        return env, policy, observation, play.Recorder(env, horizon)
    except BaseException:
        env.close()
        raise


@contextmanager
def _noting(texts: list[str]) -> Iterator[None]:
    """Add what an instance warns of to ``texts``, each once; other warnings go on their way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is not UserWarning:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif (text := str(warning.message)) not in texts:
            texts.append(text)


def _make_env(task: Mapping[str, Any], kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    horizon = {problem_of(task["env"]).horizon_argument: task["horizon"]}
    return gym.make(task["env"], disable_env_checker=True, **kwargs, **horizon)


def _check_arguments(env_id: str, kwargs: Mapping[str, Any]) -> None:
    """Insist on arguments that the environment's class takes, or `gymnasium.make` itself."""
    entry = gym.spec(env_id).entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    if creator is None:
        return
    takes = inspect.signature(creator).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values()):
        return
    for name in kwargs:
        if name not in takes and name not in inspect.signature(gym.make).parameters:
            raise checks.unknown_name(f"argument of {env_id}", name, takes)


def check_tasks(cells: Iterable[Cell], on_note: Callable[[str], None]) -> None:
    """Set up each task once, before any of its cells runs.

    What is assumed of its instance, as the problem tells, is passed on to ``on_note``.

    Raises
    ------
    UsageError
        If a task cannot be: a column is missing, an argument is out of range, ...
    """
    first = {str(cell.spec["task"]["name"]): cell for cell in reversed(list(cells))}
    for name, cell in sorted(first.items()):
        problem = problem_of(cell.spec["task"]["env"])
        try:
            with _noting([]):  # the cells keep them
                _check_arguments(cell.spec["task"]["env"], cell.kwargs)
                env = _make_env(cell.spec["task"], cell.kwargs)
                with closing(env):
                    env.reset(seed=cell.spec["seed"])
                    for text in problem.play.assumptions(env, cell.kwargs):
                        on_note(f"task {name}: {text}")
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise UsageError(f"task {name!r} cannot be set up: {error}") from error


def play_cell(
    spec: Mapping[str, Any],
    env: gym.Env[Any, Any],
    policy: Any,
    observation: Any,
    recorder: Recorder,
) -> NDArray[np.int64]:
    """Play what `set_up` returned to the end; nanoseconds of every decision."""
    task, label = spec["task"], spec["agent"]["label"]
    layout = problem_of(task["env"]).action_layout
    return play(env, policy, observation, task["horizon"], recorder, label, layout)


def agent_seed(seed: int) -> int:
    """Seed of an agent's own randomness on the task seed ``seed``."""
    return int(np.random.SeedSequence([seed, _AGENT_STREAM]).generate_state(1)[0])


def play(
    env: gym.Env[Any, Any],
    policy: Any,
    observation: Any,
    horizon: int,
    recorder: Recorder,
    label: str = "policy",
    layout: str = "",
) -> NDArray[np.int64]:
    """Run the policy for ``horizon`` steps.

    Returns
    -------
    ndarray, shape (T,)
        Nanoseconds of act and update; -1 where there was nothing to decide. Reading the action
        is part of act: the work may wait there. Of an agent behind the wall it is the time until
        its answer: the update of the step before, the action and a round trip.
    """
    choices = _choices(env)
    update = getattr(policy, "update", None)  # the oracle has nothing to learn
    clock = np.full(horizon, -1, dtype=np.int64)
    for t in range(horizon):
        deciding = recorder.see()
        start = perf_counter_ns()
        action = checked_action(policy.act(observation), choices, label, t, layout)
        spent = perf_counter_ns() - start
        recorder.choose(t, action)
        following, reward, terminated, truncated, info = env.step(action)
        recorder.observe(t, action, info)
        if update is not None:
            start = perf_counter_ns()
            update(observation, action, float(reward), following, info)
            spent += perf_counter_ns() - start
        if deciding:
            clock[t] = spent
        observation = following
        if terminated or (truncated and t + 1 < horizon):
            raise RuntimeError(f"the environment ended in step {t + 1} of {horizon}")
    return clock


def _choices(env: gym.Env[Any, Any]) -> NDArray[Any]:
    return np.asarray(env.action_space.nvec)  # type: ignore[attr-defined]


def checked_action(
    chosen: object, choices: NDArray[Any], label: str, step: int, layout: str = ""
) -> Action:
    """Return an own copy of the agent's action.

    Parameters
    ----------
    chosen : object
        What the agent returned: an integer `numpy.ndarray`, or a list or tuple of whole numbers.
        Nothing else is taken, nor their subclasses: an object that turns itself into an array can
        do its work whenever it is asked to.
    choices : ndarray, shape (D,)
        Number of choices of every entry.
    label, step, layout : str, int, str
        Named in the error.

    Raises
    ------
    InvalidActionError
        If it is anything else, or not within ``[0, choices)``.
    """
    own, limits = _whole_numbers(chosen), choices.tolist()
    if own is not None and own.shape == choices.shape:
        values = own.tolist()
        if min(values) >= 0 and all(map(lt, values, limits)):
            return own
    raise InvalidActionError(
        f"agent {label!r} returned {chosen!r} in step {step}, a "
        f"{type(chosen).__name__}; an action is an integer numpy.ndarray, a list or a tuple "
        f"{layout} of shape {choices.shape} with entries from 0 to below {limits}"
    )


def _whole_numbers(chosen: object) -> Action | None:
    """Return a copy of an action's entries; None if it is not of the types that are taken."""
    if type(chosen) is np.ndarray:
        return chosen.astype(np.int64) if chosen.dtype.kind in "iu" else None
    if type(chosen) is not list and type(chosen) is not tuple:
        return None
    if not all(type(entry) is int or isinstance(entry, np.integer) for entry in chosen):
        return None
    try:
        return np.array([int(entry) for entry in chosen], dtype=np.int64)
    except OverflowError:
        return None


def learning_curve(sums: Mapping[str, NDArray[Any]]) -> dict[str, list[float]]:
    """Cumulative sums at log-spaced steps, the last one included."""
    points = curve_steps(next(iter(sums.values())).size)
    return {"t": points.tolist(), **{key: sums[key][points - 1].tolist() for key in sums}}


def curve_steps(horizon: int) -> NDArray[np.int64]:
    """About ``CURVE_POINTS`` log-spaced steps 1..T."""
    return np.unique(np.rint(np.geomspace(1, horizon, CURVE_POINTS)).astype(np.int64))


# --- where it was measured ------------------------------------------------------------------------


def provenance(command: str) -> dict[str, Any]:
    """Versions, commit, machine and the command of a run."""
    return {
        "command": command,
        "version": llmqueue_gym.__version__,
        "commit": _git_commit(),
        **platform_here(),
    }


def platform_here() -> dict[str, str]:
    """Versions and machine that may change a result in its last bits, or its timing."""
    packages = ("numpy", "scipy", "gymnasium")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _git_commit() -> str | None:
    """Commit of the checkout this file belongs to, ``+`` marking uncommitted changes."""
    root = Path(__file__).resolve().parents[2]
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
