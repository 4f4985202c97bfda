"""Trainings behind the command: ``llmqueue-bench train``, and those a suite asks for.

A training is an artefact like a cell: keyed by its content, stored whole, resumed where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

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
from benchmarks.run.engines import _worker_environment, within_a_day
from benchmarks.terminal import say
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from baselines.rl import Progress

_CHECKPOINT_EVERY = 20_000  # steps of a suite's training


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
    steps : int
        Environment steps in all.
    out : Path, optional
        The file; ``models/AGENT-TASK.zip`` by default, which makes it an agent by that name.
    seed : int
        Seed of networks, exploration and environments.
    kwargs, settings : str, optional
        JSON objects: arguments of the environment, over the task's; hyperparameters, over the
        recipe's.
    horizon : int, optional
        Length of a run where ``task`` is an environment's id.
    data : Mapping[str, str], optional
        Paths of the task's data.
    checkpoint_every : int
        Environment steps between two writings of the file.
    tensorboard : Path, optional
        Folder of TensorBoard's logs.
    console : Console
        Where the progress is shown.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If an argument is wrong, or the file holds another training.
    """
    from baselines.registry import registered_agents
    from baselines.rl import recipe, train

    name, env_id, arguments, length = _what(task, horizon, data or {})
    arguments |= _json_object(kwargs, "kwargs")
    used = recipe(agent, env_id)
    path = out or models_folder() / f"{agent}-{name}.zip"
    taken = {spec.name for spec in registered_agents() if spec.settings.get("model") != str(path)}
    if path.stem in taken:
        raise UsageError(
            f"out={str(path)!r}: {path.stem!r} is another agent's name; choose another"
        )
    before = read_card(path)["steps"] if path.exists() else 0
    title = f"{agent} on {name}" + (f", resumed at {before:,}" if before else "")
    if not used.recalls and _draws_llms(env_id, arguments):
        say(_NO_INSTANCE, console)
    with progress_bars(console) as bars:
        bar = bars.add_task(title, total=steps, completed=before, **_NO_FIGURES)

        def show(progress: Progress) -> None:
            _update(bars, bar, progress)

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
                on_progress=show,
                settings=_json_object(settings, "settings"),
            )
        except KeyboardInterrupt:
            say(_kept(path), bars.console)
            raise
        bars.update(bar, completed=steps)
    say(f"wrote {path}: {card['steps']:,} steps in {card['seconds']:,.0f} s", console)
    where = path.stem if path.parent == models_folder() else str(path)
    say(f"play it: llmqueue-bench run SUITE --agent {where} ({OWN_FILES})", console)
    return path


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
    if not timeout > 0:
        raise UsageError(f"train-timeout={timeout} must be a positive number of seconds")
    context = multiprocessing.get_context("spawn")
    for litter in folder.glob(".*.tmp"):  # of a training that was killed while writing
        litter.unlink(missing_ok=True)
    waiting, errors = iter(trainings), dict[str, str]()
    running: dict[Connection, tuple[Training, Any, float]] = {}
    with _worker_environment():
        try:
            while True:
                while len(running) < workers and (training := next(waiting, None)) is not None:
                    _discard_damaged(training.path(folder), on_damage)
                    results, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(training, folder, sender))
                    process.start()
                    sender.close()  # so that the worker's death ends the pipe
                    running[results] = (training, process, monotonic() + timeout)
                if not running:
                    return errors
                left = min(deadline for *_, deadline in running.values()) - monotonic()
                for ready in wait(list(running), within_a_day(left)):
                    results = cast(Connection, ready)
                    training, process, _ = running[results]
                    try:
                        message = results.recv()
                    except EOFError:
                        process.join()
                        del running[results]
                        if process.exitcode:
                            errors.setdefault(
                                str(training), f"the training ended with code {process.exitcode}"
                            )
                        continue
                    if isinstance(message, str):
                        errors[str(training)] = message
                    else:
                        on_progress(training, message)
                for results, (training, process, deadline) in list(running.items()):
                    if monotonic() >= deadline:
                        process.kill()
                        process.join()
                        results.close()
                        del running[results]
                        errors[str(training)] = (
                            f"stopped after the timeout of {timeout:g} s "
                            "(--train-timeout allows more); its checkpoint is kept"
                        )
        finally:
            for _, process, _ in running.values():
                process.kill()
                process.join()


def _work(training: Training, folder: Path, sender: Connection) -> None:
    """Train in a worker process; what it sends is progress, or why it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    from baselines.rl import recipe, train

    spec = training.spec
    try:
        train(
            spec["agent"],
            recipe(spec["agent"], spec["env"]).env_id,
            training.kwargs,
            steps=spec["steps"],
            out=training.path(folder),
            horizon=spec["horizon"],
            seed=spec["seed"],
            settings=spec["settings"],
            resume=True,
            checkpoint_every=_CHECKPOINT_EVERY,
            on_progress=sender.send,
        )
    except BrokenPipeError:
        return  # the parent was ended
    except Exception as error:  # a failed training costs its own cells only
        sender.send(f"{type(error).__name__}: {error}")


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
