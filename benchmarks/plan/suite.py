"""Suites: TOML files that say which tasks, agents and seeds are run.

`benchmarks.plan.cells` expands a suite into cells.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.plan.toml import parse_toml
from benchmarks.plan.tuning import with_knobs
from benchmarks.problems import problem_of
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

REFERENCES = ("oracle", "random")
"""Policies every task runs besides its agents: the two ends of the score."""

YARDSTICK = "known-"
"""How agents are named that are told the truth: yardsticks, played like agents but not ranked."""

MARKS = ("self-reported", "replayed", "held-out")
"""What is known of a submission. Only ``held-out`` ones are ranked, on those seeds; on a board of
the public ones the mark follows the name, ``NAME (replayed)``, and keeps it from the ranks."""

PROTOCOLS = ("online", "pretrained")
"""``online``: the agent starts ignorant and is scored from its first step. ``pretrained``: it may
have been trained on the task's instance, or on the distribution of instances, and is frozen since.
"""

PUBLISHED_FIGURE = "routing_regret_per_slot"
"""The figure that a task may give as others published it."""

CONTROL = "shuffled_contexts"
"""Key of a task: which of its agents also play it with shuffled contexts."""

DEFAULTS = "defaults"
"""Key of a suite: what its tasks have unless they say otherwise."""

TAGS_WHEN = "tags_when"
"""Key of a task: tags that only some points of its matrix have."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


SuiteError = UsageError
"""The earlier name; it keeps working."""


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
        ``steps``, ``seed`` and ``settings`` of a training, once a task, before the agent plays it,
        and ``trainings``, how many there are, of seeds that follow ``seed``; its name is then a
        recipe's (``baselines.rl``) and its protocol ``pretrained``.
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
        Figures of others that the report sets beside the run's: ``source``, ``note`` and
        ``routing_regret_per_slot`` = {label: number or [mean, sd]}; empty if there are none.
    seeds : int, optional
        Number of seeds, if not the suite's.
    control_of : str, optional
        The task that this one is a copy of, with shuffled contexts: what agents lose here is what
        they owe to contexts there.
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
    seeds: int | None = None
    control_of: str | None = None


@dataclass(frozen=True)
class Suite:
    """Tasks and the number of seeds each is run with, unless it says another."""

    name: str
    description: str
    seeds: int
    tasks: tuple[Task, ...]


def canonical(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


spec_key = checksum
"""Key of a cell: the checksum of its identity."""


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
    UsageError
        If there is no such suite or the file is not a valid one; the message names the place.
    """
    known, path = built_in_suites(), Path(name)
    if name not in known and not path.is_file():
        wrong = f" is neither a file nor {near(name, known)}"
        wrong = ": there is no such file" if name.endswith(".toml") else wrong
        wrong = " is a folder; name the TOML file in it" if path.is_dir() else wrong
        raise UsageError(f"suite={name!r}{wrong}")
    content = known[name].encode() if name in known else path.read_bytes()
    document = parse_toml(content, f"suite {name!r}")
    return parse_suite(name if name in known else path.stem, document)


def find_task(name: str) -> Task:
    """Find a task by ``SUITE:TASK``, or by its name alone in the built-in suites.

    ``SUITE`` is a built-in name or the path of a TOML file.

    Raises
    ------
    UsageError
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
        raise UsageError(
            f"task={name!r} is in no suite; `llmqueue-bench list` names all of them{hint}"
        )
    plays = {canonical([task.env, dict(task.kwargs), task.horizon]) for task in found.values()}
    if len(plays) > 1:
        choices = " or ".join(f"{origin}:{own}" for origin in found)
        raise UsageError(f"task={name!r} differs between suites: say {choices}")
    return next(iter(found.values()))


def parse_suite(name: str, document: Mapping[str, Any]) -> Suite:
    """Turn a parsed TOML document into a suite.

    Raises
    ------
    UsageError
        If a key is unknown, missing or of the wrong type; the message names it and the fix.
    """
    where = f"suite {name!r}"
    _only(document, where, "description", "seeds", "agents", "task", DEFAULTS)
    seeds = checks.count(f"{where}: seeds", document.get("seeds"))
    agents = _agents(document.get("agents"), f"{where}: agents")
    tables = document.get("task")
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{where}: needs at least one [[task]] table")
    usual = _table(document.get(DEFAULTS, {}), f"{where}: {DEFAULTS}")
    tasks = tuple(
        task
        for number, table in enumerate(tables, 1)
        for task in _tasks(_over(usual, table), agents, f"{where}: task {number}")
    )
    _unique((task.name for task in tasks), f"{where}: two tasks are called")
    return Suite(name, _text(document, "description", where, ""), seeds, tasks)


def _over(usual: object, own: object) -> object:
    """Return a task's table over what is usual in the suite; tables within are merged, too."""
    if not isinstance(usual, Mapping) or not isinstance(own, Mapping):
        return own
    return {**usual, **{key: _over(usual.get(key), value) for key, value in own.items()}}


def _tasks(table: object, agents: tuple[AgentEntry, ...], where: str) -> Iterable[Task]:
    """Expand one [[task]] table along its matrix."""
    table = _table(table, where)
    keys = ("name", "env", "horizon", "seeds", "tags", "headline", "requires", "data", "kwargs")
    _only(table, where, *keys, "matrix", "agents", "extra_agents", "published", CONTROL, TAGS_WHEN)
    name = _text(table, "name", where)
    where = f"{where} ({name})"
    data = _table(table.get("data", {}), f"{where}: data")
    for key in data:
        _text(data, key, f"{where}: data")
    if "agents" in table:
        agents = _agents(table["agents"], f"{where}: agents")
    extra = _agents(table.get("extra_agents", []), f"{where}: extra_agents")
    _unique((a.label for a in agents + extra), f"{where}: two agents are called")
    headline = checks.flag(f"{where}: headline", table.get("headline", True))
    axes = _table(table.get("matrix", {}), f"{where}: matrix")
    rules = _tag_rules(table.get(TAGS_WHEN, {}), axes, f"{where}: {TAGS_WHEN}")
    for point in _matrix(axes, where):
        if clash := set(point) & set(data):
            raise UsageError(f"{where}: {sorted(clash)} is both a matrix axis and a data name")
        task_name = str(fill(name, point, (), f"{where}: name"))
        if not _NAME.fullmatch(task_name):
            raise UsageError(f"{where}: name={task_name!r} may hold letters, digits and ._+- only")
        kwargs = _table(table.get("kwargs", {}), f"{where}: kwargs")
        task = Task(
            name=task_name,
            env=_text(table, "env", where),
            kwargs=fill(_plain(kwargs, f"{where}: kwargs"), point, data, f"{where}: kwargs"),
            horizon=checks.count(f"{where}: horizon", table.get("horizon")),
            tags=tuple(
                [fill(tag, point, (), where) for tag in _texts(table, "tags", where)]
                + [tag for tag, rule in rules.items() if _holds(rule, point)]
            ),
            headline=headline,
            requires=_texts(table, "requires", where),
            data=data,
            agents=agents + extra,
            published=_published(table.get("published", {}), f"{where}: published"),
            seeds=checks.count(f"{where}: seeds", table["seeds"]) if "seeds" in table else None,
        )
        yield task
        if CONTROL in table:
            yield _shuffled(task, _agents(table[CONTROL], f"{where}: {CONTROL}"), where)


def _tag_rules(value: object, axes: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Read which tags the tasks of a matrix have only at some values of its axes."""
    rules = {tag: _table(rule, f"{where}.{tag}") for tag, rule in _table(value, where).items()}
    for tag, rule in rules.items():
        for axis, values in rule.items():
            if axis not in axes:
                raise UsageError(f"{where}.{tag}: {axis!r} is not {near(axis, axes or {'(none)'})}")
            known = axes[axis] if isinstance(axes[axis], list) else []  # no axis: see `_matrix`
            if not isinstance(values, list) or any(v not in known for v in values):
                raise UsageError(
                    f"{where}.{tag}: {axis}={values!r} must be a list of values of matrix.{axis}"
                )
    return rules


def _holds(rule: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    return all(point[axis] in values for axis, values in rule.items())


def _shuffled(task: Task, agents: tuple[AgentEntry, ...], where: str) -> Task:
    """Return the copy of a task whose contexts are shuffled, for the agents that play both."""
    played = {entry.label: entry for entry in task.agents}
    for entry in agents:
        if entry.label not in played:
            raise UsageError(
                f"{where}: {CONTROL} names {entry.label!r}, which does not play the task; "
                f"it must be {near(entry.label, played or {'(none)'})}"
            )
    kwargs = problem_of(task.env).shuffled(task.kwargs)
    if kwargs is None:
        raise UsageError(
            f"{where}: {CONTROL} needs a task with contexts of its own: a kwargs.workload table, "
            'for example { source = "paretobandit" }'
        )
    return replace(
        task,
        name=f"{task.name}-shuffled",
        kwargs=kwargs,
        headline=False,
        agents=tuple(played[entry.label] for entry in agents),
        published={},
        control_of=task.name,
    )


def _published(value: object, where: str) -> dict[str, Any]:
    """Read the figures of others that a task's run is compared with."""
    table = _plain(_table(value, where), where)
    if not table:
        return {}
    _only(table, where, "source", "note", PUBLISHED_FIGURE)
    _text(table, "source", where)
    _text(table, "note", where, "")
    figures = _table(table.get(PUBLISHED_FIGURE), f"{where}: {PUBLISHED_FIGURE}")
    for label, figure in figures.items():
        parts = figure if isinstance(figure, list) and len(figure) == 2 else [figure]
        if not all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
            raise UsageError(
                f"{where}: {PUBLISHED_FIGURE}.{label}={figure!r} must be a number or [mean, sd]"
            )
    return table


def _matrix(table: object, where: str) -> Iterable[dict[str, Any]]:
    """Every combination of the matrix's axes (one empty combination without a matrix)."""
    axes = _table(table, f"{where}: matrix")
    for axis, values in axes.items():
        plain = isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)
        if not plain or not values:
            raise UsageError(f"{where}: matrix.{axis}={values!r} must be a list of plain values")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def fill(value: Any, point: Mapping[str, Any], later: Iterable[str], where: str) -> Any:
    """Replace ``{axis}`` by its value; a string that is nothing else keeps the value's type.

    Names in ``later`` stay as they are: they are data paths, known only on the running machine.
    """
    if isinstance(value, Mapping):
        return {key: fill(item, point, later, where) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, point, later, where) for item in value]
    if not isinstance(value, str):
        return value
    for name in _PLACEHOLDER.findall(value):
        if name not in point and name not in later:
            raise UsageError(f"{where}: {{{name}}} in {value!r} is no matrix axis and no data name")
    if (whole := _PLACEHOLDER.fullmatch(value)) and whole[1] in point:
        return point[whole[1]]
    return _PLACEHOLDER.sub(lambda m: str(point[m[1]]) if m[1] in point else m[0], value)


def _agents(value: object, where: str) -> tuple[AgentEntry, ...]:
    """Read a list of agent names or tables."""
    if not isinstance(value, list):
        raise UsageError(f"{where} must be a list of names or {{name = ..., settings = {{...}}}}")
    entries = [agent_entry(item, where) for item in with_knobs(value, where)]
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
        raise UsageError(f"{where}: label={label!r} is kept for the reference policy")
    told = name == REFERENCES[0] or (name.startswith(YARDSTICK) and ":" not in name)
    if told and name != label and is_ranked(label):
        raise UsageError(f"{where}: label={label!r} would rank {name!r}, which is told the truth")
    protocol = table.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(f"{where}: protocol={protocol!r} is not {near(str(protocol), PROTOCOLS)}")
    train = None
    if "train" in table:
        if protocol == "online":
            raise UsageError(f"{where}: protocol='online' agents are not trained before they play")
        train = _train_entry(table["train"], f"{where}: train")
    return AgentEntry(name, label, settings, _texts(table, "requires", where), protocol, train)


def _train_entry(value: object, where: str) -> dict[str, Any]:
    """Read how an agent is to be trained."""
    table = _table(value, where)
    _only(table, where, "steps", "seed", "settings", "trainings")
    settings = _plain(_table(table.get("settings", {}), f"{where}: settings"), f"{where}: settings")
    return {
        "steps": checks.count(f"{where}: steps", table.get("steps")),
        "seed": checks.count(f"{where}: seed", table.get("seed", 0), 0),
        "settings": settings,
        "trainings": checks.count(f"{where}: trainings", table.get("trainings", 1)),
    }


# --- small checks ---------------------------------------------------------------------------------


def is_ranked(label: str) -> bool:
    """Whether an agent takes part in rankings: no reference, yardstick or submission does."""
    known = label in REFERENCES or label.startswith(YARDSTICK)
    return not known and not label.endswith(tuple(f" ({mark})" for mark in MARKS))


def near(name: str, known: Iterable[str]) -> str:
    """``one of a, b; did you mean a?`` for an unknown name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"one of {', '.join(known)}{hint}"


def _only(table: Mapping[str, Any], where: str, *keys: str) -> None:
    for key in table:
        if key not in keys:
            raise UsageError(f"{where}: {key!r} is not {near(str(key), keys)}")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a table, not {value!r}")
    return dict(value)


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise UsageError(f"{where}: {key}={value!r} must be a non-empty string")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UsageError(f"{where}: {key}={value!r} must be a list of strings")
    return tuple(value)


def _plain(table: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        canonical(table)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where} must be JSON-plain (no dates, no nan): {error}") from error
    return table


def _unique(names: Iterable[str], message: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{message} {name!r}; give one of them another name")
        seen.add(name)
