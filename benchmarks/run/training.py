"""Trainings behind the command: ``llmqueue-bench train``, and those a suite asks for.

A training is an artefact like a cell: keyed by its content, stored whole, resumed where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from baselines.models import OWN_FILES, models_folder, read_card
from benchmarks.plan.cells import Plan, Training, task_arguments
from benchmarks.plan.suite import find_task
from benchmarks.problems import PROBLEMS
from benchmarks.run.pool import Pool
from benchmarks.run.worker import FAILED, PROGRESS, train_model
from benchmarks.terminal import say
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from baselines.rl import Progress

_CHECKPOINT_EVERY = 20_000  # steps of a suite's training
_KEPT = "; its checkpoint is kept"


def train_agent(
    agent: str,
    task: str,
    *,
    steps: int,
    out: Path | None = None,
    seed: int = 0,
    kwargs: str | None = None,
    horizon: int | None = None,
    settings: str | None = None,
    data: Mapping[str, str] | None = None,
    checkpoint_every: int = 50_000,
    tensorboard: Path | None = None,
    console: Console,
) -> Path:
    """Train an agent on a task, with a progress bar; the same call goes on where it stopped.

    Parameters
    ----------
    agent : str
        A recipe: ``PPO``, ``MaskablePPO``, ...
    task : str
        Task of a suite (``NAME`` or ``SUITE:NAME``), or the id of an environment.
    steps, seed, checkpoint_every, tensorboard
        See `baselines.rl.train`.
    out : Path, optional
        The file; ``models/AGENT-TASK.zip`` by default, which makes it an agent by that name.
    kwargs, settings : str, optional
        JSON objects: arguments over the task's, hyperparameters over the recipe's.
    horizon : int, optional
        Length of a run where ``task`` is an environment's id.
    data : Mapping[str, str], optional
        Paths of the task's data.
    console : Console
        Where the progress is shown.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        If an argument is wrong, or the file holds another training.
    """
    from baselines.rl import recipe, train

    name, env_id, arguments, length = _what(task, horizon, data or {})
    arguments |= _json_object(kwargs, "kwargs")
    used = recipe(agent, env_id)
    path = out or models_folder() / f"{agent}-{name}.zip"
    _check_name(path)
    if not used.recalls and _draws_llms(env_id, arguments):
        say(_NO_INSTANCE, console)
    before = read_card(path)["steps"] if path.exists() else 0
    title = f"{agent} on {name}" + (f", resumed at {before:,}" if before else "")
    with progress_bars(console) as bars:
        bar = bars.add_task(title, total=steps, completed=before, **_NO_FIGURES)
        try:
            card = train(
                agent,
                used.env_id,
                arguments,
                steps=steps,
                out=path,
                horizon=length,
                seed=seed,
                resume=True,
                checkpoint_every=checkpoint_every,
                tensorboard=tensorboard,
                on_progress=partial(_update, bars, bar),
                settings=_json_object(settings, "settings"),
            )
        except KeyboardInterrupt:
            say(_kept(path), console)
            raise
        bars.update(bar, completed=steps)
    _say_done(path, card, console)
    return path


def _say_done(path: Path, card: Mapping[str, Any], console: Console) -> None:
    say(f"wrote {path}: {card['steps']:,} steps in {card['seconds']:,.0f} s", console)
    where = path.stem if path.parent == models_folder() else str(path)
    say(f"play it: llmqueue-bench run SUITE --agent {where} ({OWN_FILES})", console)


def _what(
    task: str, horizon: int | None, data: Mapping[str, str]
) -> tuple[str, str, dict[str, Any], int | None]:
    """Name, environment id, arguments and horizon of what is trained on."""
    name = task.removeprefix("llmqueue_gym:")
    if name != task or name in gym.registry:
        return name, name, {}, horizon
    found = find_task(task)
    if horizon is not None:
        raise UsageError(f"horizon={horizon}: the task {task!r} has its own, {found.horizon}")
    return found.name, found.env, task_arguments(found, data), found.horizon


def _check_name(path: Path) -> None:
    """Refuse a file whose name is an agent's of which it is not the model."""
    from baselines.registry import registered_agents

    taken = {spec.name for spec in registered_agents() if spec.settings.get("model") != str(path)}
    if path.stem in taken:
        raise UsageError(
            f"out={str(path)!r}: {path.stem!r} is another agent's name; choose another"
        )


def _kept(path: Path) -> str:
    """Say what an interrupted training leaves."""
    if kept := read_card(path)["steps"] if path.exists() else 0:
        return f"interrupted: {path} keeps {kept:,} steps; the same command goes on from there"
    return "interrupted before the first checkpoint: nothing is kept"


def train_plan(
    plan: Plan, folder: Path, workers: int, console: Console, timeout: float = float("inf")
) -> dict[str, str]:
    """Train what a plan still needs, up to ``workers`` at once, with a progress bar each.

    Each training runs in a process of its own with one thread, so that its result does not depend
    on how many run. What was interrupted is resumed from its last checkpoint; one that takes longer
    than ``timeout`` seconds is stopped and counted as failed.

    Returns
    -------
    dict
        Training -> why it failed.
    """
    with progress_bars(console) as bars:
        shown = {
            training.key: bars.add_task(
                f"train {training}", total=training.spec["steps"], start=False, **_NO_FIGURES
            )
            for training in plan.trainings
        }

        def show(training: Training, progress: Progress) -> None:
            bars.start_task(shown[training.key])
            _update(bars, shown[training.key], progress)

        def note(message: str) -> None:
            say(message, bars.console)

        return train_all(plan.trainings, folder, workers, show, note, timeout)


def train_all(
    trainings: Sequence[Training],
    folder: Path,
    workers: int,
    on_progress: Callable[[Training, Progress], None],
    on_damage: Callable[[str], None],
    timeout: float = float("inf"),
) -> dict[str, str]:
    """Run trainings in processes; see `train_plan`."""
    from baselines.rl import Progress

    pool = Pool(workers, timeout, option="train-timeout")
    for leftover in folder.glob(".*.tmp"):  # of a training that was killed while writing
        leftover.unlink(missing_ok=True)
    for training in trainings:
        _discard_damaged(training.path(folder), on_damage)
    errors = {}
    work = partial(train_model, folder=folder, checkpoint_every=_CHECKPOINT_EVERY)
    with closing(pool.run(trainings, work, ["baselines.rl", "torch._dynamo"])) as reports:
        for report in reports:
            if report.state == PROGRESS:
                on_progress(report.job, Progress(**report.payload))
            elif report.state == FAILED:
                kept = report.job.path(folder).exists()
                errors[str(report.job)] = report.payload["error"] + (_KEPT if kept else "")
    return errors


def _discard_damaged(path: Path, on_damage: Callable[[str], None]) -> None:
    if path.exists():
        try:
            read_card(path)
        except ValueError as error:
            on_damage(f"{error}; training it again")
            path.unlink()


_NO_INSTANCE = (
    "note: the instance changes at every reset: a policy without memory can only learn what all "
    "instances share; fix it (--kwargs '{\"instance_seed\": 0}') or train RecurrentPPO"
)


def _draws_llms(env_id: str, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether the LLMs differ from episode to episode."""
    return any(env_id in p.env_ids and p.new_llms(kwargs) for p in PROBLEMS.values())


# --- what is shown --------------------------------------------------------------------------------

_NO_FIGURES: dict[str, Any] = {"rate": "", "reward": ""}


@contextmanager
def progress_bars(console: Console) -> Iterator[Bars]:
    """Bars with steps, steps per second, the mean reward, time spent and time left."""
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[reward]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=120,
    ) as bars:
        yield bars


def _update(bars: Bars, bar: TaskID, progress: Progress) -> None:
    rate = progress.steps / max(progress.seconds, 1e-9)
    bars.update(
        bar,
        completed=min(progress.steps, progress.total),
        rate=f"{rate:,.0f} steps/s",
        reward=f"reward {progress.reward:.3f}",
    )


def _json_object(text: str | None, name: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name}={text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f'{name}={text!r} must be a JSON object such as {{"load": 0.9}}')
    return value
