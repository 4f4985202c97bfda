"""Suites: TOML files that say which tasks, agents and seeds are run, and the cells they expand to.

A cell is task x agent x seed x protocol; its key is the SHA-256 of all that decides its result.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import itertools
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.agent import AgentSpec

REFERENCES = ("oracle", "random")
"""Policies every task runs besides its agents: the two ends of the score."""

REFERENCE_AGENTS = {
    "queueing": {"oracle": "oracle", "random": "random"},
    "deployment": {"oracle": "oracle", "random": "uniform"},
}
"""The agent behind each reference, per kind of task."""

DATA_VARIABLE = "LLMQUEUE_GYM_DATA"
"""Environment variable naming the folder in which a task's data files are looked for."""

RL = ("stable-baselines3", "sb3-contrib")
"""Distributions without which nothing is trained."""

PROTOCOLS = ("online", "pretrained")
"""``online``: the agent starts ignorant and is scored from its first step. ``pretrained``: it may
have been trained on the task's instance, or on the distribution of instances, and is frozen since.
"""

PUBLISHED_FIGURE = "routing_regret_per_slot"
"""The figure that a task may give as its paper published it."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class SuiteError(ValueError):
    """A suite file, or a choice made from it, that cannot be run; the message says why."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent as a suite lists it.

    Attributes
    ----------
    name : str
        Registered name or ``"module:Class"``.
    label : str
        Name on the leaderboard; the agent's name unless two settings of it are compared.
    settings : Mapping[str, Any]
        Keyword settings over the registered ones.
    requires : tuple[str, ...]
        Distributions without which the agent is skipped.
    protocol : str, optional
        One of ``PROTOCOLS``; None takes what the agent's class says (``online`` if nothing).
    train : Mapping[str, Any], optional
        ``steps``, ``seed`` and ``settings`` of a training, once a task, before the agent plays it;
        its name is then a recipe's (``baselines.rl``) and its protocol ``pretrained``.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    protocol: str | None = None
    train: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        plain = canonical([self.settings, self.protocol, self.train])
        return hash((self.name, self.label, plain))


@dataclass(frozen=True)
class Task:
    """An environment id with plain kwargs, a horizon and tags.

    Attributes
    ----------
    name, env : str
        Name on the leaderboard and Gymnasium id.
    kwargs : Mapping[str, Any]
        Arguments of the environment; the string ``"{NAME}"`` stands for the path of data ``NAME``.
    horizon : int
        Slots or queries of one run, T.
    tags : tuple[str, ...]
        What kind of task it is.
    headline : bool
        Whether the task counts in the overall score (every agent of the suite must then play it).
    requires : tuple[str, ...]
        Distributions without which the task is skipped.
    data : Mapping[str, str]
        Data name -> default path inside the ``LLMQUEUE_GYM_DATA`` folder.
    agents : tuple[AgentEntry, ...]
        Agents listed for the task, the references not counted; those of another kind do not play.
    published : Mapping[str, Any]
        Figures of a paper that the report sets beside the run's: ``source``, ``note`` and
        ``routing_regret_per_slot`` = {label: number}; empty if there are none.
    """

    name: str
    env: str
    kwargs: Mapping[str, Any]
    horizon: int
    tags: tuple[str, ...]
    headline: bool
    requires: tuple[str, ...]
    data: Mapping[str, str]
    agents: tuple[AgentEntry, ...]
    published: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Tasks and the number of seeds each is run with."""

    name: str
    description: str
    seeds: int
    tasks: tuple[Task, ...]


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
    """

    spec: Mapping[str, Any]
    kwargs: Mapping[str, Any]
    model: str | None = None

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
        return f"{self.task} / {self.label}"


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


def kind_of(env: str) -> str:
    """Kind of the tasks of a Gymnasium id: ``"queueing"`` or ``"deployment"``."""
    return "deployment" if env.rpartition(":")[2].startswith("LLMDeploy-") else "queueing"


def canonical(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_key(spec: object) -> str:
    """SHA-256 (hex) of the canonical JSON of a cell's identity."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


# --- reading a suite ------------------------------------------------------------------------------


def built_in_suites() -> dict[str, str]:
    """Text of the suites shipped with the package, by name."""
    folder = files("benchmarks") / "suites"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {
        e.name.removesuffix(".toml"): e.read_text(encoding="utf-8") for e in sorted(found, key=str)
    }


def load_suite(name: str) -> Suite:
    """Read a suite by built-in name or from the path of a TOML file.

    Raises
    ------
    SuiteError
        If there is no such suite or the file is not a valid one; the message names the place.
    """
    known = built_in_suites()
    if name in known:
        text, origin = known[name], name
    elif Path(name).is_file():
        text, origin = Path(name).read_text(encoding="utf-8"), Path(name).stem
    else:
        raise SuiteError(f"suite={name!r} is neither a file nor {_near(name, known)}")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"suite {name!r} is not valid TOML: {error}") from error
    return parse_suite(origin, document)


def find_task(name: str) -> Task:
    """Find a task by ``SUITE:TASK``, or by its name alone in the built-in suites.

    ``SUITE`` is a built-in name or the path of a TOML file.

    Raises
    ------
    SuiteError
        If there is no such task, or suites define different ones under the name.
    """
    suite, mark, own = name.rpartition(":")
    suites = [suite] if mark else list(built_in_suites())
    tasks = {origin: load_suite(origin).tasks for origin in suites}
    found = {origin: t for origin, own_tasks in tasks.items() for t in own_tasks if t.name == own}
    if not found:
        known = {task.name for own_tasks in tasks.values() for task in own_tasks}
        near = difflib.get_close_matches(own, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise SuiteError(
            f"task={name!r} is in no suite; `llmqueue-bench list` names all of them{hint}"
        )
    plays = {canonical([task.env, dict(task.kwargs), task.horizon]) for task in found.values()}
    if len(plays) > 1:
        choices = " or ".join(f"{origin}:{own}" for origin in found)
        raise SuiteError(f"task={name!r} differs between suites: say {choices}")
    return next(iter(found.values()))


def parse_suite(name: str, document: Mapping[str, Any]) -> Suite:
    """Turn a parsed TOML document into a suite.

    Raises
    ------
    SuiteError
        If a key is unknown, missing or of the wrong type; the message names it and the fix.
    """
    where = f"suite {name!r}"
    _only(document, where, "description", "seeds", "agents", "task")
    seeds = _positive(document, "seeds", where)
    agents = _agents(document.get("agents"), f"{where}: agents")
    tables = document.get("task")
    if not isinstance(tables, list) or not tables:
        raise SuiteError(f"{where}: needs at least one [[task]] table")
    tasks = tuple(
        task
        for number, table in enumerate(tables, 1)
        for task in _tasks(table, agents, f"{where}: task {number}")
    )
    _unique((task.name for task in tasks), f"{where}: two tasks are called")
    return Suite(name, _text(document, "description", where, ""), seeds, tasks)


def _tasks(table: object, agents: tuple[AgentEntry, ...], where: str) -> Iterable[Task]:
    """Expand one [[task]] table along its matrix."""
    table = _table(table, where)
    keys = ("name", "env", "horizon", "tags", "headline", "requires", "data")
    _only(table, where, *keys, "kwargs", "matrix", "agents", "extra_agents", "published")
    name = _text(table, "name", where)
    where = f"{where} ({name})"
    data = _table(table.get("data", {}), f"{where}: data")
    for key in data:
        _text(data, key, f"{where}: data")
    if "agents" in table:
        agents = _agents(table["agents"], f"{where}: agents")
    extra = _agents(table.get("extra_agents", []), f"{where}: extra_agents")
    _unique((a.label for a in agents + extra), f"{where}: two agents are called")
    headline = table.get("headline", True)
    if not isinstance(headline, bool):
        raise SuiteError(f"{where}: headline={headline!r} must be true or false")
    for point in _matrix(table.get("matrix", {}), where):
        if clash := set(point) & set(data):
            raise SuiteError(f"{where}: {sorted(clash)} is both a matrix axis and a data name")
        task_name = str(_fill(name, point, (), f"{where}: name"))
        if not _NAME.fullmatch(task_name):
            raise SuiteError(f"{where}: name={task_name!r} may hold letters, digits and ._+- only")
        kwargs = _table(table.get("kwargs", {}), f"{where}: kwargs")
        yield Task(
            name=task_name,
            env=_text(table, "env", where),
            kwargs=_fill(_plain(kwargs, f"{where}: kwargs"), point, data, f"{where}: kwargs"),
            horizon=_positive(table, "horizon", where),
            tags=tuple(_fill(tag, point, (), where) for tag in _texts(table, "tags", where)),
            headline=headline,
            requires=_texts(table, "requires", where),
            data=data,
            agents=agents + extra,
            published=_published(table.get("published", {}), f"{where}: published"),
        )


def _published(value: object, where: str) -> dict[str, Any]:
    """Read the figures of a paper that a task's run is compared with."""
    table = _plain(_table(value, where), where)
    if not table:
        return {}
    _only(table, where, "source", "note", PUBLISHED_FIGURE)
    _text(table, "source", where)
    _text(table, "note", where, "")
    figures = _table(table.get(PUBLISHED_FIGURE), f"{where}: {PUBLISHED_FIGURE}")
    for label, figure in figures.items():
        if not isinstance(figure, int | float) or isinstance(figure, bool):
            raise SuiteError(f"{where}: {PUBLISHED_FIGURE}.{label}={figure!r} must be a number")
    return table


def _matrix(table: object, where: str) -> Iterable[dict[str, Any]]:
    """Every combination of the matrix's axes (one empty combination without a matrix)."""
    axes = _table(table, f"{where}: matrix")
    for axis, values in axes.items():
        plain = isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)
        if not plain or not values:
            raise SuiteError(f"{where}: matrix.{axis}={values!r} must be a list of plain values")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _fill(value: Any, point: Mapping[str, Any], later: Iterable[str], where: str) -> Any:
    """Replace ``{axis}`` by its value; a string that is nothing else keeps the value's type.

    Names in ``later`` stay as they are: they are data paths, known only on the running machine.
    """
    if isinstance(value, Mapping):
        return {key: _fill(item, point, later, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, point, later, where) for item in value]
    if not isinstance(value, str):
        return value
    for name in _PLACEHOLDER.findall(value):
        if name not in point and name not in later:
            raise SuiteError(f"{where}: {{{name}}} in {value!r} is no matrix axis and no data name")
    if (whole := _PLACEHOLDER.fullmatch(value)) and whole[1] in point:
        return point[whole[1]]
    return _PLACEHOLDER.sub(lambda m: str(point[m[1]]) if m[1] in point else m[0], value)


def _agents(value: object, where: str) -> tuple[AgentEntry, ...]:
    """Read a list of agent names or tables."""
    if not isinstance(value, list):
        raise SuiteError(f"{where} must be a list of names or {{name = ..., settings = {{...}}}}")
    entries = [agent_entry(item, where) for item in value]
    _unique((entry.label for entry in entries), f"{where}: two agents are called")
    return tuple(entry for entry in entries if entry.label not in REFERENCES)


def agent_entry(item: object, where: str = "agent") -> AgentEntry:
    """Read one agent: a name, or a table with name, label, settings and requires."""
    if isinstance(item, str) and item:
        return AgentEntry(item, item)
    table = _table(item, where)
    _only(table, where, "name", "label", "settings", "requires", "protocol", "train")
    name = _text(table, "name", where)
    settings = _plain(_table(table.get("settings", {}), f"{where}: settings"), f"{where}: settings")
    label = _text(table, "label", where, name)
    if label in REFERENCES and (name != label or settings):
        raise SuiteError(f"{where}: label={label!r} is kept for the reference policy")
    protocol = table.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise SuiteError(f"{where}: protocol={protocol!r} is not {_near(str(protocol), PROTOCOLS)}")
    train = None
    if "train" in table:
        if protocol == "online":
            raise SuiteError(f"{where}: protocol='online' agents are not trained before they play")
        train = _train_entry(table["train"], f"{where}: train")
    return AgentEntry(name, label, settings, _texts(table, "requires", where), protocol, train)


def _train_entry(value: object, where: str) -> dict[str, Any]:
    """Read how an agent is to be trained."""
    table = _table(value, where)
    _only(table, where, "steps", "seed", "settings")
    seed = table.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SuiteError(f"{where}: seed={seed!r} must be a whole number of at least 0")
    settings = _plain(_table(table.get("settings", {}), f"{where}: settings"), f"{where}: settings")
    return {"steps": _positive(table, "steps", where), "seed": seed, "settings": settings}


# --- small checks ---------------------------------------------------------------------------------


def _near(name: str, known: Iterable[str]) -> str:
    """``one of a, b; did you mean a?`` for an unknown name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"one of {', '.join(known)}{hint}"


def _only(table: Mapping[str, Any], where: str, *keys: str) -> None:
    for key in table:
        if key not in keys:
            raise SuiteError(f"{where}: {key!r} is not {_near(str(key), keys)}")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SuiteError(f"{where} must be a table, not {value!r}")
    return dict(value)


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise SuiteError(f"{where}: {key}={value!r} must be a non-empty string")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise SuiteError(f"{where}: {key}={value!r} must be a list of strings")
    return tuple(value)


def _positive(table: Mapping[str, Any], key: str, where: str) -> int:
    value = table.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SuiteError(f"{where}: {key}={value!r} must be a whole number of at least 1")
    return value


def _plain(table: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        canonical(table)
    except (TypeError, ValueError) as error:
        raise SuiteError(f"{where} must be JSON-plain (no dates, no nan): {error}") from error
    return table


def _unique(names: Iterable[str], message: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SuiteError(f"{message} {name!r}; give one of them another name")
        seen.add(name)


# --- from a suite to cells ------------------------------------------------------------------------


def make_plan(
    suite: Suite,
    *,
    seeds: int | None = None,
    tasks: Sequence[str] = (),
    agents: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
    models: Path | None = None,
) -> Plan:
    """Expand a suite into cells.

    Parameters
    ----------
    suite : Suite
        What to run.
    seeds : int, optional
        Number of seeds in place of the suite's own.
    tasks : Sequence[str]
        Names or patterns (``*``) of the tasks to keep; all when empty.
    agents : Sequence[str]
        Names or ``"module:Class"`` of agents that play every task besides the suite's own.
    data : Mapping[str, str], optional
        Data name -> path, before the ``LLMQUEUE_GYM_DATA`` folder is looked at.
    models : Path, optional
        Folder of the suite's own trainings. Agents whose training is not finished there are listed
        in the plan's ``trainings`` and have no cells.

    Raises
    ------
    SuiteError
        If a task pattern matches nothing, an agent is unknown or a task's arguments are wrong.
    """
    chosen = _chosen_tasks(suite, tasks)
    known_data = {name for task in suite.tasks for name in task.data}
    for name in data or {}:
        if name not in known_data:
            raise SuiteError(f"data={name!r} is not {_near(name, known_data or {'(none)'})}")
    added = tuple(agent_entry(name) for name in dict.fromkeys(agents))
    players: dict[AgentEntry, _Player] = {}
    trainings: dict[str, Training] = {}
    curves: list[Mapping[str, Any]] = []
    played: set[AgentEntry] = set()
    skipped: dict[str, str] = {}
    cells: list[Cell] = []
    for task in chosen:
        paths, reason = _data_paths(task.data, data or {})
        reason = reason or _missing_package(task.requires)
        if reason is None:
            kwargs = _fill(dict(task.kwargs), paths, (), f"task {task.name!r}")
            content, reason = _fingerprint(task.env, task.name, kwargs)
        if reason is not None:
            skipped[task.name] = reason
            continue
        kind, identity = kind_of(task.env), _task_identity(task)
        labels = {entry.label for entry in task.agents}
        entries = [AgentEntry(name, label) for label, name in REFERENCE_AGENTS[kind].items()]
        entries += task.agents
        entries += [entry for entry in added if entry.label not in {*labels, *REFERENCES}]
        for entry in entries:
            if missing := _missing_package(entry.requires + (RL if entry.train else ())):
                skipped[entry.label] = missing
                continue
            player: _Player | None
            if entry.train is not None:
                training = _training(task, entry, kwargs, content)
                player = _trained_player(entry, training, kind, models)
                if player is None:
                    trainings[training.key] = training
                    continue
            else:
                if entry not in players:
                    players[entry] = _player(entry)
                player = players[entry]
            if player.kind not in (None, kind):
                continue
            played.add(entry)
            if player.curve is not None:
                curves.append({"task": task.name, "agent": entry.label, **player.curve})
            for seed in range(seeds or suite.seeds):
                cells.append(
                    Cell(
                        _spec(identity, player.identity, seed, player.protocol, content),
                        kwargs,
                        player.model,
                    )
                )
    for entry in players.keys() - played:
        skipped[entry.label] = f"it plays {players[entry].kind} tasks and none of those was chosen"
    cells.sort(key=lambda cell: cell.spec["agent"]["label"] not in REFERENCES)
    reading = {task.name: task.data for task in chosen if task.data and task.name not in skipped}
    return Plan(
        suite.name, tuple(cells), skipped, tuple(trainings.values()), reading, tuple(curves)
    )


def task_arguments(task: Task, data: Mapping[str, str]) -> dict[str, Any]:
    """Return a task's arguments as the environment receives them on this machine.

    Raises
    ------
    SuiteError
        If a package or data file it needs is not here.
    """
    paths, reason = _data_paths(task.data, data)
    reason = reason or _missing_package(task.requires)
    if reason is not None:
        raise SuiteError(f"task {task.name!r}: {reason}")
    filled: dict[str, Any] = _fill(dict(task.kwargs), paths, (), f"task {task.name!r}")
    return filled


def _chosen_tasks(suite: Suite, patterns: Sequence[str]) -> list[Task]:
    names = [task.name for task in suite.tasks]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SuiteError(f"task={pattern!r} matches no task: {_near(pattern, names)}")
    keep = patterns or ["*"]
    return [t for t in suite.tasks if any(fnmatchcase(t.name, pattern) for pattern in keep)]


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
    SuiteError
        If the agent or the workload is not to be had here.
    """
    task, agent = spec["task"], spec["agent"]
    content, reason = _fingerprint(task["env"], task["name"], kwargs)
    if reason is not None:
        raise SuiteError(f"task {task['name']!r}: {reason}")
    if "training" in agent:  # whoever plays the model insists on the file with this digest
        identity = agent
    else:
        entry = AgentEntry(agent["name"], agent["label"], agent["settings"])
        identity = _player(entry).identity
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
    SuiteError
        If a file is missing.
    """
    paths, reason = _data_paths(defaults, data)
    if reason is not None:
        raise SuiteError(f"task {task['name']!r}: {reason}")
    filled: dict[str, Any] = _fill(dict(task["kwargs"]), paths, (), f"task {task['name']!r}")
    return filled


def _task_identity(task: Task) -> dict[str, Any]:
    identity = {
        "name": task.name,
        "env": task.env,
        "kwargs": dict(task.kwargs),
        "horizon": task.horizon,
        "tags": list(task.tags),
        "headline": task.headline,
    }
    return identity | ({"published": dict(task.published)} if task.published else {})


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
        "code": _code_hash(),
        "workload": workload,
    }


@cache
def _code_hash() -> str:
    """SHA-256 of the code that decides a result: environments, agents and the runner.

    Within a version the code changes in a checkout; a result of other code is never reused.
    """
    import baselines
    import llmqueue_gym

    own = [Path(__file__).parent / name for name in ("runner.py", "queueing.py", "deployment.py")]
    return _files_hash(own, _root(llmqueue_gym).rglob("*.py"), _root(baselines).rglob("*.py"))


@cache
def _training_code_hash() -> str:
    """SHA-256 of the code that decides a training; other agents may change."""
    import baselines
    import llmqueue_gym

    own = [_root(baselines) / "rl" / f"{name}.py" for name in ("networks", "recipes", "training")]
    return _files_hash(own, _root(llmqueue_gym).rglob("*.py"))


def _root(package: ModuleType) -> Path:
    return Path(str(package.__file__)).parent


def _files_hash(*groups: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in itertools.chain(*map(sorted, groups)):
        digest.update(f"{path.parent.name}/{path.name}".encode() + path.read_bytes())
    return digest.hexdigest()


# --- who plays ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Player:
    """An agent as cells name it, its kind of task (None for any), model file and training curve."""

    identity: Mapping[str, Any]
    protocol: str
    kind: str | None
    model: str | None = None
    curve: Mapping[str, Any] | None = None


def _player(entry: AgentEntry) -> _Player:
    """Name, label and settings; the code of agents from elsewhere and a model's facts count too."""
    from baselines.agent import agent_spec
    from baselines.models import read_card, training_facts

    curve = None
    identity = {"name": entry.name, "label": entry.label, "settings": dict(entry.settings)}
    if entry.name == "oracle":
        return _Player(identity, PROTOCOLS[0], None)
    try:
        spec = agent_spec(entry.name)
        module = spec.target.partition(":")[0]
        if module.split(".")[0] != "baselines":
            identity["code"] = _module_hash(module, entry.name)
        cls = _loaded(spec)
        model = spec.settings.get("model")
        brought = model or getattr(cls, "model", None)  # a class may name its own file
        if isinstance(brought, str):
            identity["training"] = training_facts(brought)
            curve = read_card(brought)["curve"]
        if given := getattr(cls, "trained_on", ""):
            identity["trained_on"] = given
    except ValueError as error:
        raise SuiteError(str(error)) from error
    own = "pretrained" if model else getattr(cls, "protocol", PROTOCOLS[0])
    path = str(Path(model).resolve()) if model else None
    return _Player(identity, entry.protocol or own, getattr(cls, "kind", None), path, curve)


def _loaded(spec: AgentSpec) -> type | None:
    """Class of an agent, or None if only running it will tell what is wrong with it."""
    try:
        return spec.load()
    except Exception:  # somebody else's module
        return None


def _training(
    task: Task, entry: AgentEntry, kwargs: Mapping[str, Any], workload: str | None
) -> Training:
    """Return the training an entry asks for on a task."""
    import llmqueue_gym
    from baselines.rl import recipe

    try:
        recipe(entry.name, task.env)
    except ValueError as error:
        raise SuiteError(f"task {task.name!r}: {error}") from error
    assert entry.train is not None
    spec = {
        "agent": entry.name,
        "env": task.env,
        "kwargs": dict(task.kwargs),
        "horizon": task.horizon,
        **entry.train,
        "version": llmqueue_gym.__version__,
        "code": _training_code_hash(),
        "workload": workload,
    }
    return Training(spec, kwargs, task.name, entry.label)


def _trained_player(
    entry: AgentEntry, training: Training, kind: str, models: Path | None
) -> _Player | None:
    """Return the agent that a finished training made, or None."""
    from baselines.models import read_card, training_facts

    if models is None:
        return None
    path = training.path(models)
    try:
        facts = training_facts(path)
    except ValueError:  # none yet, or a damaged one: it is trained again
        return None
    if facts["steps"] < training.spec["steps"]:
        return None
    identity = {
        "name": entry.name,
        "label": entry.label,
        "settings": dict(entry.settings),
        "training": {"key": training.key, **facts},
    }
    return _Player(identity, "pretrained", kind, str(path.resolve()), read_card(path)["curve"])


def _module_hash(module: str, agent: str) -> str:
    """SHA-256 of a module's source file."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise SuiteError(
            f"agent={agent!r}: there is no module {module!r}; "
            "install it or run from the folder that holds it"
        )
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def _data_paths(
    defaults: Mapping[str, str], given: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """Where a task's data files are, or the reason why the task cannot run here."""
    paths = {}
    folder = os.environ.get(DATA_VARIABLE)
    for name, default in defaults.items():
        if name in given:
            if not Path(given[name]).exists():
                raise SuiteError(f"data {name}={given[name]!r}: there is no such file")
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
    argument = "instance" if kind_of(env) == "deployment" else "workload"
    if argument not in kwargs and "arrivals" not in kwargs:
        return None, None
    from llmqueue_gym import workloads
    from llmqueue_gym.workloads.arrivals import arrivals_fingerprint
    from llmqueue_gym.workloads.catalog import stream_fingerprint

    fingerprint: Callable[[Any], str] = (
        stream_fingerprint if argument == "instance" else workloads.fingerprint
    )
    try:
        content = fingerprint(kwargs[argument]) if argument in kwargs else ""
        return content + arrivals_fingerprint(kwargs.get("arrivals", "bernoulli")), None
    except (ImportError, OSError) as error:
        return None, str(error)
    except ValueError as error:
        raise SuiteError(f"task {task!r}: {error}") from error
