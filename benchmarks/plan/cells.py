"""What a run consists of: the cells and trainings that a suite expands to.

A cell is task x agent x seed x protocol; its key is the SHA-256 of all that decides its result.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.plan.held_out import HeldOut
from benchmarks.plan.players import Player, find_player, is_walled, trained_player
from benchmarks.plan.suite import (
    REFERENCES,
    AgentEntry,
    Suite,
    Task,
    agent_entry,
    fill,
    near,
    spec_key,
)
from benchmarks.problems import PROBLEMS, problem_of
from benchmarks.problems.interface import Problem
from llmqueue_gym.errors import UsageError

DATA_VARIABLE = "LLMQUEUE_GYM_DATA"
"""Environment variable naming the folder in which a task's data files are looked for."""

RL = ("stable-baselines3", "sb3-contrib")
"""Distributions without which nothing is trained."""


@dataclass(frozen=True)
class Cell:
    """One run: its identity and the environment's arguments with the data paths filled in.

    Attributes
    ----------
    spec : Mapping[str, Any]
        JSON-plain identity: task, agent, seed, protocol, version, code, workload fingerprint.
    kwargs : Mapping[str, Any]
        The task's kwargs as the environment receives them on this machine.
    model : str, optional
        File of a trained agent on this machine; its digest is part of ``spec``.
    walled : bool
        Whether the agent plays behind the wall (`benchmarks.wall`); no part of ``spec``.
    agent_seed : int, optional
        Seed of the agent, of a cell that is computed again.
    """

    spec: Mapping[str, Any]
    kwargs: Mapping[str, Any]
    model: str | None = None
    walled: bool = False
    agent_seed: int | None = None

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of ``spec``."""
        return spec_key(self.spec)

    def __str__(self) -> str:
        spec = self.spec
        return f"{spec['task']['name']} / {spec['agent']['label']} / seed {spec['seed']}"


@dataclass(frozen=True)
class Training:
    """A training that a suite asks for: once a task and training seed, shared by all seeds.

    Attributes
    ----------
    spec : Mapping[str, Any]
        JSON-plain identity: recipe, environment, horizon, steps, seed, version, code, workload.
    kwargs : Mapping[str, Any]
        The environment's arguments on this machine.
    task, label : str
        What it is for.
    """

    spec: Mapping[str, Any]
    kwargs: Mapping[str, Any]
    task: str
    label: str

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of ``spec``; names the file."""
        return spec_key(self.spec)

    def path(self, folder: Path) -> Path:
        """Where its model is kept."""
        return folder / f"{self.key}.zip"

    def __str__(self) -> str:
        number = f" / training {seed}" if (seed := self.spec["seed"]) else ""
        return f"{self.task} / {self.label}{number}"


@dataclass(frozen=True)
class Plan:
    """The cells of a run, references first, and what is skipped (name -> reason).

    Agents of ``trainings`` have no cells yet: train them, and plan again. ``curves`` holds learning
    curves of the trained agents at play: ``task``, ``agent`` (label) and lists by name.
    ``data`` holds the data names and default paths of the tasks that read files, by task.
    """

    suite: str
    cells: tuple[Cell, ...]
    skipped: Mapping[str, str]
    trainings: tuple[Training, ...] = ()
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    curves: tuple[Mapping[str, Any], ...] = ()
    held_out: HeldOut | None = None


def make_plan(
    suite: Suite,
    *,
    seeds: int | None = None,
    tasks: Sequence[str] = (),
    agents: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
    models: Path | None = None,
    trust: bool | None = None,
    held_out: HeldOut | None = None,
) -> Plan:
    """Expand a suite into cells.

    Parameters
    ----------
    suite : Suite
        What to run.
    seeds : int, optional
        Number of seeds in place of the suite's and its tasks' own.
    tasks : Sequence[str]
        Names or patterns (``*``) of the tasks to keep; all when empty.
    agents : Sequence[str]
        Names or ``"module:Class"`` of agents that play every task besides the suite's own.
    data : Mapping[str, str], optional
        Data name -> path, before the ``LLMQUEUE_GYM_DATA`` folder is looked at.
    models : Path, optional
        Folder of the suite's own trainings. Agents whose training is not finished there are listed
        in the plan's ``trainings`` and have no cells.
    trust : bool, optional
        Who plays behind the wall (`benchmarks.plan.players.is_walled`).
    held_out : HeldOut, optional
        Secret that makes the seeds, in place of 0, 1, ..., and variants of data that are fixed.

    Raises
    ------
    UsageError
        If a task pattern matches nothing, an agent is unknown or a task's arguments are wrong.
    """
    chosen = _chosen_tasks(suite, tasks, held_out)
    _check_data(suite, data or {})
    added = tuple(map(agent_entry, dict.fromkeys(agents)))
    players: dict[AgentEntry, Player] = {}
    trainings: dict[str, Training] = {}
    curves: list[Mapping[str, Any]] = []
    played: set[AgentEntry] = set()
    skipped: dict[str, str] = {}
    cells: list[Cell] = []
    for task in chosen:
        kwargs, content, reason = _task_here(task, data or {})
        if reason is not None:
            skipped[task.name] = reason
            continue
        kind, identity = problem_of(task.env).name, task_identity(task)
        for entry in _entries(task, added):
            if missing := _missing_package(entry.requires + (RL if entry.train else ())):
                skipped[entry.label] = missing
                continue
            own_seeds = _seeds(seeds or task.seeds or suite.seeds, held_out)
            if entry.train is None:
                players[entry] = players.get(entry) or find_player(entry, trust, held_out)
                line_up = [players[entry]]
            else:
                wanted = _trainings(task, entry, kwargs, content)[: len(own_seeds)]
                line_up, lacking = _finished(wanted, entry, kind, models)
                trainings |= lacking
            if not line_up or line_up[0].kind not in (None, kind):
                continue
            played.add(entry)
            own = {"task": task.name, "agent": entry.label}
            curves += [{**own, **p.curve} for p in line_up if p.curve is not None]
            for seed, player in zip(own_seeds, itertools.cycle(line_up), strict=False):
                spec = _spec(identity, player.identity, seed, player.protocol, content)
                cells.append(Cell(spec, kwargs, player.model, is_walled(player.identity, trust)))
    for entry in players.keys() - played:
        skipped[entry.label] = f"it plays {players[entry].kind} tasks and none of those was chosen"
    cells.sort(key=lambda cell: cell.spec["agent"]["label"] not in REFERENCES)
    reading = {task.name: task.data for task in chosen if task.data and task.name not in skipped}
    trained = tuple(trainings.values())
    return Plan(suite.name, tuple(cells), skipped, trained, reading, tuple(curves), held_out)


def _in_disguise(task: Task, held_out: HeldOut | None) -> Task:
    """Return the held-out variant of a task, that of a task and its control being the same."""
    if held_out is None:
        return task
    number = held_out.disguise(task.control_of or task.name)
    return replace(task, kwargs=problem_of(task.env).disguised(task.kwargs, number))


def _seeds(count: int, held_out: HeldOut | None) -> list[int]:
    return [number if held_out is None else held_out.seed(number) for number in range(count)]


def _task_here(
    task: Task, data: Mapping[str, str]
) -> tuple[dict[str, Any], str | None, str | None]:
    """Arguments and workload hash of a task on this machine, or the reason why it cannot run."""
    paths, reason = _data_paths(task.data, data)
    reason = reason or _missing_package(task.requires)
    if reason is not None:
        return {}, None, reason
    kwargs = fill(dict(task.kwargs), paths, (), f"task {task.name!r}")
    return kwargs, *_fingerprint(task.env, task.name, kwargs)


def _check_data(suite: Suite, data: Mapping[str, str]) -> None:
    known = {name for task in suite.tasks for name in task.data}
    for name in data:
        if name not in known:
            raise UsageError(f"data={name!r} is not {near(name, known or {'(none)'})}")


def _entries(task: Task, added: Sequence[AgentEntry]) -> list[AgentEntry]:
    """Who plays a task: references first, the suite's agents, and those asked for besides."""
    labels = {entry.label for entry in task.agents} | {*REFERENCES}
    references = problem_of(task.env).references.items()
    return [
        *(AgentEntry(name, label) for label, name in references),
        *task.agents,
        *(entry for entry in added if entry.label not in labels),
    ]


def task_arguments(task: Task, data: Mapping[str, str]) -> dict[str, Any]:
    """Return a task's arguments as the environment receives them on this machine.

    Raises
    ------
    UsageError
        If a package or data file it needs is not here.
    """
    if reason := _missing_package(task.requires):
        raise UsageError(f"task {task.name!r}: {reason}")
    return kwargs_here(task_identity(task), task.data, data)


def _chosen_tasks(suite: Suite, patterns: Sequence[str], held_out: HeldOut | None) -> list[Task]:
    names = [task.name for task in suite.tasks]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"task={pattern!r} matches no task: {near(pattern, names)}")
    keep = patterns or ["*"]
    chosen = (t for t in suite.tasks if any(fnmatchcase(t.name, pattern) for pattern in keep))
    return [_in_disguise(task, held_out) for task in chosen]


def spec_here(spec: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's identity as it would be planned here and now.

    It differs from ``spec`` where the version, the code or the workload's content does.

    Parameters
    ----------
    spec : Mapping[str, Any]
        Identity of a cell planned earlier or elsewhere.
    kwargs : Mapping[str, Any]
        The environment's arguments on this machine.

    Raises
    ------
    UsageError
        If the agent or the workload is not to be had here.
    """
    task, agent = spec["task"], spec["agent"]
    content, reason = _fingerprint(task["env"], task["name"], kwargs)
    if reason is not None:
        raise UsageError(f"task {task['name']!r}: {reason}")
    if "training" in agent:  # whoever plays the model insists on the file with this digest
        identity = agent
    else:
        entry = AgentEntry(agent["name"], agent["label"], agent["settings"])
        identity = find_player(entry).identity
    return _spec(task, identity, spec["seed"], spec["protocol"], content)


def kwargs_here(
    task: Mapping[str, Any], defaults: Mapping[str, str], data: Mapping[str, str]
) -> dict[str, Any]:
    """Return the environment's arguments of a stored task on this machine.

    Parameters
    ----------
    task : Mapping[str, Any]
        The ``task`` of a cell's identity.
    defaults, data : Mapping[str, str]
        Data name -> path inside the ``LLMQUEUE_GYM_DATA`` folder, and -> path chosen instead.

    Raises
    ------
    UsageError
        If a file is missing.
    """
    paths, reason = _data_paths(defaults, data)
    if reason is not None:
        raise UsageError(f"task {task['name']!r}: {reason}")
    filled: dict[str, Any] = fill(dict(task["kwargs"]), paths, (), f"task {task['name']!r}")
    return filled


def task_identity(task: Task) -> dict[str, Any]:
    """Return what cells store of a task: all that decides a result, and its tags."""
    identity = {
        "name": task.name,
        "env": task.env,
        "kwargs": dict(task.kwargs),
        "horizon": task.horizon,
        "tags": list(task.tags),
        "headline": task.headline,
    }
    if task.published:
        identity["published"] = dict(task.published)
    if task.control_of:
        identity["control_of"] = task.control_of
    return identity


def _spec(
    task: Mapping[str, Any],
    agent: Mapping[str, Any],
    seed: int,
    protocol: str,
    workload: str | None,
) -> dict[str, Any]:
    """Everything that decides a cell's result, as plain JSON."""
    import llmqueue_gym

    return {
        "task": task,
        "agent": agent,
        "seed": seed,
        "protocol": protocol,
        "version": llmqueue_gym.__version__,
        "code": code_hash(),
        "workload": workload,
    }


@cache
def code_hash() -> str:
    """SHA-256 of the code that decides a result: environments, agents and the runner.

    Within a version the code changes in a checkout; a result of other code is never reused.
    """
    import baselines
    import llmqueue_gym

    own = [
        Path(__file__).parents[1] / "run" / "runner.py",
        *(path for problem in PROBLEMS.values() for path in _play_files(problem)),
    ]
    return _files_hash(own, _root(llmqueue_gym).rglob("*.py"), _root(baselines).rglob("*.py"))


@cache
def _training_code_hash() -> str:
    """SHA-256 of the code that decides a training; other agents may change."""
    import baselines
    import llmqueue_gym

    others = ("__init__", "agents", "online")  # who plays, and who learns in the run
    own = sorted(p for p in (_root(baselines) / "rl").glob("*.py") if p.stem not in others)
    return _files_hash(own, _root(llmqueue_gym).rglob("*.py"))


def _play_files(problem: Problem) -> list[Path]:
    """Files of a problem that decide what is recorded: ``play.py`` and ``metrics.py``."""
    play = Path(str(sys.modules[problem.play.Recorder.__module__].__file__))
    return [path for path in (play, play.with_name("metrics.py")) if path.exists()]


def _root(package: ModuleType) -> Path:
    return Path(str(package.__file__)).parent


def _files_hash(*groups: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in itertools.chain(*map(sorted, groups)):
        digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()


# --- trainings, data, packages --------------------------------------------------------------------


def _finished(
    wanted: Sequence[Training], entry: AgentEntry, kind: str, models: Path | None
) -> tuple[list[Player], dict[str, Training]]:
    """Return the agents that trainings made, or by key the trainings that are not finished."""
    made = [(training, trained_player(entry, training, kind, models)) for training in wanted]
    lacking = {training.key: training for training, player in made if player is None}
    return [] if lacking else [player for _, player in made if player is not None], lacking


def _trainings(
    task: Task, entry: AgentEntry, kwargs: Mapping[str, Any], workload: str | None
) -> list[Training]:
    """Return the trainings an entry asks for on a task; the i-th of M plays seeds i, i + M, ..."""
    import llmqueue_gym
    from baselines.rl import recipe

    try:
        recipe(entry.name, task.env)
    except UsageError as error:
        raise UsageError(f"task {task.name!r}: {error}") from error
    assert entry.train is not None
    asked = {name: value for name, value in entry.train.items() if name != "trainings"}
    spec = {
        "agent": entry.name,
        "env": task.env,
        "kwargs": dict(task.kwargs),
        "horizon": task.horizon,
        **asked,
        "version": llmqueue_gym.__version__,
        "code": _training_code_hash(),
        "workload": workload,
    }
    numbers = range(asked["seed"], asked["seed"] + entry.train["trainings"])
    return [Training({**spec, "seed": n}, kwargs, task.name, entry.label) for n in numbers]


def _data_paths(
    defaults: Mapping[str, str], given: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """Where a task's data files are, or the reason why the task cannot run here."""
    paths = {}
    folder = os.environ.get(DATA_VARIABLE)
    for name, default in defaults.items():
        if name in given:
            if not Path(given[name]).exists():
                raise UsageError(f"data {name}={given[name]!r}: there is no such file")
            paths[name] = str(Path(given[name]).resolve())
        elif folder and (Path(folder) / default).exists():
            paths[name] = str((Path(folder) / default).resolve())
        else:
            return {}, (
                f"data {name!r} not found: give --data {name}=PATH, or set {DATA_VARIABLE} "
                f"to the folder that holds {default}"
            )
    return paths, None


def _missing_package(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            distribution(name)
        except PackageNotFoundError:
            extra = "rl" if name in RL else "data"
            return (
                f"needs the package {name}: "
                f'pip install "llmqueue_gym[{extra}]" or pip install {name}'
            )
    return None


def _fingerprint(env: str, task: str, kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Content hash of a task's workload, or the reason why it is not to be had here."""
    try:
        return problem_of(env).play.fingerprint(kwargs), None
    except (ImportError, OSError) as error:
        return None, str(error)
    except ValueError as error:
        raise UsageError(f"task {task!r}: {error}") from error
