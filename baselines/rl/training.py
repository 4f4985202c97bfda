"""Train a recipe: one call, checkpoints in one file, resumed from it.

The file is Stable-Baselines3's zip with a card (JSON) of what was trained, on what, and how.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers.vector import RescaleAction, TransformReward
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

from baselines.models import CARD, FORMAT, read_card
from baselines.rl.memory import RefusalsVector
from baselines.rl.recipes import QUEUE_ENV, SERVE_ENV, STAGE_ENV, Recipe, recipe
from llmqueue_gym import checks
from llmqueue_gym.adapters.dispatches import DispatchesVector
from llmqueue_gym.adapters.sb3 import GymnasiumVecEnv, make_vec_env
from llmqueue_gym.adapters.wrappers import DiscreteActionsVector, PreviousDecisionVector
from llmqueue_gym.errors import MissingPackageError, UsageError

_CURVE_POINTS = 100
_SECONDS_BETWEEN_REPORTS = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes
    ----------
    steps, total : int
        Environment steps done and asked for.
    reward : float
        Mean reward per step since the last report.
    seconds : float
        Wall time so far, earlier sessions included.
    """

    steps: int
    total: int
    reward: float
    seconds: float


def train(
    agent: str,
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    steps: int,
    out: str | Path,
    horizon: int | None = None,
    seed: int = 0,
    resume: bool = False,
    checkpoint_every: int = 100_000,
    tensorboard: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    num_envs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Train an agent on a task and write it to a file.

    One seed gives equal weights on one thread. A resumed training goes on with new random draws
    (and, for DQN and SAC, an empty replay buffer), so it differs from one that was not interrupted.
    Stable-Baselines3 seeds the global generators of random, NumPy and torch.

    Parameters
    ----------
    agent : str
        A recipe: PPO, A2C, DQN, MaskablePPO or RecurrentPPO on LLMQueue-v0, PPO or SAC on
        LLMDeployStage-v0, MaskablePPO, DQN or RecurrentPPO on LLMServe-v0.
    env_id : str
        The environment of the task. LLMDeploy-v0 is learned stage by stage.
    kwargs : Mapping[str, Any], optional
        Arguments of the environment. With ``instance_seed`` it learns this instance, without it
        the distribution of instances.
    steps : int
        Environment steps in total, earlier sessions included; rounded up to whole rollouts.
    out : str or Path
        The file (.zip), written at every checkpoint and at the end.
    horizon : int, optional
        Length of the task: queries of a deployment, and a bound on the queue's training episodes.
    seed : int
        Seed of networks, exploration and environments.
    resume : bool
        Go on from ``out`` if it exists.
    checkpoint_every : int
        Environment steps between checkpoints.
    tensorboard : str or Path, optional
        Folder for TensorBoard's logs.
    on_progress : callable, optional
        Told of the progress about 100 times, and once a second.
    num_envs : int, optional
        Lanes; the recipe's.
    settings : Mapping[str, Any], optional
        Hyperparameters over the recipe's.
    threads : int
        Threads of torch.

    Returns
    -------
    dict
        The card: agent, environment, steps, seconds, settings, learning curve, versions.

    Raises
    ------
    ValueError
        If there is no such recipe, an argument is wrong, or ``out`` exists and holds another
        training.
    """
    path, used = Path(out), recipe(agent, env_id)
    _check(
        path,
        steps=steps,
        checkpoint_every=checkpoint_every,
        horizon=horizon,
        num_envs=num_envs,
        threads=threads,
    )
    card = _new_card(used, dict(kwargs or {}), horizon, seed, num_envs, dict(settings or {}))
    before = _earlier(path, card, resume)
    if before is not None:
        card = before
    if tensorboard is not None and find_spec("tensorboard") is None:
        raise MissingPackageError("tensorboard=... needs TensorBoard: pip install tensorboard")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    env = _environment(used, card)
    try:
        model = _algorithm(used, card, env, tensorboard)
        card["problem"] = _shape(env, used)
        if before is not None:
            model.set_parameters(str(path), device="cpu")
            model.num_timesteps = card["steps"]
        if steps > card["steps"]:
            watch = _Watch(path, card, steps, checkpoint_every, on_progress)
            model.learn(steps - card["steps"], callback=watch, reset_num_timesteps=False)
            watch.save()
    finally:
        env.close()
        torch.set_num_threads(threads_before)
    return card


def load_class(target: str) -> Any:
    """Import ``"module:Class"``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def policy_arguments(used: Recipe, problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a recipe's policy network for a task of this shape."""
    if used.env_id == QUEUE_ENV:
        own = {key: problem[key] for key in ("num_llms", "assortment_size")}
        return {**own, **used.network}
    if used.env_id == SERVE_ENV:
        return {**{key: problem[key] for key in ("places", "dispatches")}, **used.network}
    from baselines.rl.networks import DeployFeatures

    return {
        "features_extractor_class": DeployFeatures,
        "features_extractor_kwargs": {"budget": problem["budget"]},
        **used.network,
    }


# --- the parts of a training ----------------------------------------------------------------------


def _new_card(
    used: Recipe,
    kwargs: dict[str, Any],
    horizon: int | None,
    seed: int,
    num_envs: int | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "agent": used.name,
        "env_id": used.env_id,
        "kwargs": kwargs,
        "horizon": horizon,
        "seed": seed,
        "num_envs": used.num_envs if num_envs is None else num_envs,
        "settings": {**used.settings, **settings},
        "steps": 0,
        "seconds": 0.0,
        "curve": {"steps": [], **{name: [] for name in _curves(used.env_id)}},
        "versions": {
            name: version(name) for name in ("stable-baselines3", "sb3-contrib", "torch", "numpy")
        },
    }


def _curves(env_id: str) -> tuple[str, ...]:
    """Means per step that the learning curve holds, those of the exploring policy."""
    more = {QUEUE_ENV: ("queue",), SERVE_ENV: ("waiting",)}
    return ("reward", *more.get(env_id, ()))


def _check(path: Path, **counts: int | None) -> None:
    if path.suffix != ".zip":
        raise UsageError(f"out={str(path)!r} must end in .zip")
    for name, value in counts.items():
        if value is not None:
            checks.count(name, value)


def _earlier(path: Path, card: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Return the card of the training to go on with, if any."""
    if not path.exists():
        return None
    if not resume:
        raise UsageError(f"out={str(path)!r} exists; resume it or choose another name")
    found = read_card(path)
    for key in ("agent", "env_id", "kwargs", "horizon", "seed", "num_envs", "settings"):
        expected = json.loads(json.dumps(card[key]))
        if found[key] != expected:
            raise UsageError(
                f"out={str(path)!r} holds another training: {key}={found[key]!r} there, "
                f"{expected!r} now; choose another name"
            )
    return found


def _environment(used: Recipe, card: Mapping[str, Any]) -> GymnasiumVecEnv:
    arguments = {**card["kwargs"], **used.env}
    if used.env_id == STAGE_ENV:
        if card["horizon"] is not None:
            arguments["horizon"] = card["horizon"]
    else:
        episode = used.episode or gym.spec(used.env_id).max_episode_steps or 1
        horizon = card["horizon"]
        arguments["max_episode_steps"] = episode if horizon is None else min(episode, horizon)
    wrapper: Callable[[Any], Any]
    if used.env_id == QUEUE_ENV:
        wrapper = partial(_discrete, used=used)
    elif used.env_id == SERVE_ENV:
        wrapper = partial(_serving, gamma=card["settings"]["gamma"])
    else:
        wrapper = stage_wrapper
    env = make_vec_env(used.env_id, card["num_envs"], wrapper=wrapper, monitor=False, **arguments)
    assert isinstance(env, GymnasiumVecEnv)
    return env


def _discrete(venv: Any, used: Recipe) -> Any:
    if used.recalls:
        venv = PreviousDecisionVector(venv)
    if used.remembers:
        venv = RefusalsVector(venv)
    return DiscreteActionsVector(venv)


def _serving(venv: Any, gamma: float) -> Any:
    from baselines.rl.serving import LearnedReward

    return LearnedReward(DispatchesVector(venv), gamma)


def stage_wrapper(venv: Any) -> Any:
    """Actions in [-1, 1], and the reward of a stage per query."""
    problem = venv.get_attr("problem")[0]
    length = problem["horizon"] / problem["num_stages"]
    one = np.ones(venv.single_action_space.shape, dtype=np.float32)
    return TransformReward(RescaleAction(venv, -one, one), partial(_scale, length=length))


def _scale(reward: Any, length: float) -> Any:
    return reward / length


def _shape(env: GymnasiumVecEnv, used: Recipe) -> dict[str, Any]:
    """Return what the network's shape depends on."""
    base: Any = env.venv.unwrapped
    if used.env_id == STAGE_ENV:
        problem = env.get_attr("problem")[0]
        return {"num_llms": problem["num_llms"], "budget": problem["budget"]}
    if used.env_id == SERVE_ENV:
        return serve_shape(base.task.public)
    choices = base.single_action_space.nvec
    contexts = env.observation_space["contexts"]  # type: ignore[index]
    return {
        "num_llms": int(choices[1]),
        "assortment_size": len(choices) - 1,
        "context_dim": int(contexts.shape[1]),
        "window": int(choices[0]),
    }


def serve_shape(public: Any) -> dict[str, Any]:
    """Return what the network's shape depends on of a serving task."""
    return {
        "num_llms": public.num_llms,
        "context_dim": public.contexts.shape[1],
        "window": public.window,
        "dispatches": public.dispatches,
        "places": public.places.tolist(),
    }


def _algorithm(
    used: Recipe, card: Mapping[str, Any], env: GymnasiumVecEnv, tensorboard: str | Path | None
) -> BaseAlgorithm:
    """Build the algorithm; each session draws from streams of its own.

    Raises
    ------
    ValueError
        If it refuses a setting.
    """
    stream = np.random.SeedSequence([card["seed"], card["steps"]])
    settings = dict(card["settings"])
    if used.anneal:
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
    made = load_class(used.algorithm)
    own = {
        "policy": load_class(used.policy),
        "env": VecMonitor(env),
        "policy_kwargs": policy_arguments(used, _shape(env, used)),
        "seed": int(stream.generate_state(1)[0]),
        "tensorboard_log": None if tensorboard is None else str(tensorboard),
        "device": "cpu",
    }
    known = inspect.signature(made).parameters.keys() - own.keys()
    for name in settings:
        if name not in known:
            raise checks.unknown_name(f"setting of {made.__name__}", name, sorted(known))
    try:
        algorithm: BaseAlgorithm = made(**own, **settings)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        given = card["settings"]
        raise UsageError(f"settings={given!r} are refused by {made.__name__}: {error}") from error
    if tensorboard is None:  # SB3's own leaves an empty folder in the temporary directory
        shown: list[KVWriter] = [HumanOutputFormat(sys.stdout)] if algorithm.verbose else []
        algorithm.set_logger(Logger(folder=None, output_formats=shown))
    return algorithm


class _Watch(BaseCallback):
    """Reports progress, keeps the learning curve, writes checkpoints."""

    def __init__(
        self,
        path: Path,
        card: dict[str, Any],
        total: int,
        checkpoint_every: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        super().__init__()
        self._path, self._card, self._total, self._every = path, card, total, checkpoint_every
        self._on_progress = on_progress
        self._saved = self._drawn = card["steps"]
        self._sums, self._count = dict.fromkeys(_curves(card["env_id"]), 0.0), 0
        self._started = perf_counter() - card["seconds"]
        self._told = perf_counter()

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        self._sums["reward"] += float(rewards.sum())
        seen = self.locals["new_obs"]
        if "queue" in self._sums:
            self._sums["queue"] += float(seen["queue_length"].sum())
        if "waiting" in self._sums:  # or served
            self._sums["waiting"] += float(seen["queue_length"].sum() + seen["active"].sum())
        self._count += len(rewards)
        point = self.num_timesteps - self._drawn >= self._total / _CURVE_POINTS
        if point or perf_counter() - self._told > _SECONDS_BETWEEN_REPORTS:
            self._tell()
        if point:
            self._draw()
        return True

    def _tell(self) -> None:
        self._told = perf_counter()
        if self._on_progress is not None:
            mean, seconds = self._sums["reward"] / self._count, self._told - self._started
            self._on_progress(Progress(self.num_timesteps, self._total, mean, seconds))

    def _draw(self) -> None:
        """Add a point to the learning curve."""
        curve = self._card["curve"]
        curve["steps"].append(self.num_timesteps)
        for name, total in self._sums.items():
            curve[name].append(total / self._count)
            self.logger.record(f"curve/{name}", total / self._count)
        self._drawn, self._count = self.num_timesteps, 0
        self._sums = dict.fromkeys(self._sums, 0.0)

    def _on_rollout_start(self) -> None:
        # Between two updates of the weights, so that a checkpoint is a state of the algorithm.
        if self.num_timesteps - self._saved >= self._every:
            self.save()

    def save(self) -> None:
        """Write the model and its card under a temporary name, then put them in place."""
        self._saved = self._card["steps"] = self.model.num_timesteps
        self._card["seconds"] = perf_counter() - self._started
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self.model.save(draft)
            with zipfile.ZipFile(draft, "a") as archive:
                archive.writestr(CARD, json.dumps(self._card))
            os.replace(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)
