"""Agents by name: the names beside their classes, installed entry points, trained models.

``@agent("NAME", source="...")`` above a class in any file of a folder of this package names it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from baselines.interface import Agent, AgentSpec, DeployProblem, QueueProblem, ServeProblem
from baselines.models import model_spec, saved_model, saved_model_names, saved_models
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

ENTRY_POINT_GROUP = "llmqueue_gym.agents"

AgentClass = TypeVar("AgentClass", bound=type[Agent])

_REGISTRY: dict[str, AgentSpec] = {}


def agent(name: str, *, source: str = "", **settings: Any) -> Callable[[AgentClass], AgentClass]:
    """Name the agent class below; several names of one class differ in their settings.

    Parameters
    ----------
    name : str
        Name on the leaderboard.
    source : str
        The paper or package the agent comes from.
    settings
        Keyword settings passed to the class, JSON-plain.

    Raises
    ------
    ValueError
        If the name is taken.
    """

    def named(cls: AgentClass) -> AgentClass:
        target = f"{cls.__module__}:{cls.__qualname__}"
        register(name, target, source, kind=cls.kind, **settings)
        return cls

    return named


def register(name: str, target: str, source: str = "", *, kind: str = "", **settings: Any) -> None:
    """Name an agent by its ``"module:Class"``, which is imported only when the agent is made.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    spec = AgentSpec(name, target, settings, source, kind)
    if _REGISTRY.setdefault(name, spec) != spec:
        raise UsageError(
            f"agent name {name!r} is taken by {_REGISTRY[name].target}; choose another"
        )


# Their module imports torch, so that their names stand here and not beside the classes.
_SB3 = "Stable-Baselines3"
register(
    "DQN-online",
    "baselines.rl.online:OnlineDQN",
    f"{_SB3}, learns in the run",
    kind=QueueProblem.kind,
)
register(
    "PPO-online",
    "baselines.rl.online:OnlinePPO",
    f"{_SB3} (MaskablePPO), learns in the run",
    kind=QueueProblem.kind,
)


@cache
def _named() -> dict[str, AgentSpec]:
    """All names of this package, once every file of its folders but ``rl`` is imported."""
    package = importlib.import_module("baselines")
    for room in pkgutil.iter_modules(package.__path__, "baselines."):
        if room.ispkg and room.name != "baselines.rl":
            folder = importlib.import_module(room.name)
            for module in pkgutil.iter_modules(folder.__path__, f"{room.name}."):
                importlib.import_module(module.name)
    return _REGISTRY


def registered_agents() -> Iterator[AgentSpec]:
    """All agents by name: built-in ones, those of installed entry points, trained models.

    Only the cards of the models are read: their ``settings`` hold no digest, `agent_spec` adds it.
    """
    known = dict(_named())
    for spec in (*_installed(), *saved_models()):
        known.setdefault(spec.name, spec)
    yield from known.values()


def _installed() -> Iterator[AgentSpec]:
    """Agents of entry points."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        yield AgentSpec(point.name, point.value, {}, f"entry point of {point.module}")


def agent_spec(name: str) -> AgentSpec:
    """Look an agent up by its name, by ``"module:Class"`` or by the path of a model file (.zip).

    Of the trained models only the one asked for is read.

    Raises
    ------
    ValueError
        If no agent has that name (the message names the nearest known one), or the file is no
        model.
    """
    if ":" in name and not name.endswith(".zip"):
        return AgentSpec(name, name, {}, "third party")
    if name in _named():
        return _named()[name]
    for spec in _installed():
        if spec.name == name:
            return spec
    if (path := saved_model(name)) is not None:
        return model_spec(path)
    known = [*_named(), *(spec.name for spec in _installed()), *saved_model_names()]
    raise UsageError(
        f"{checks.unknown_name('agent', name, known)}; 'module:Class' takes your own, "
        "`llmqueue-bench train` makes RL agents"
    )


def player(name: str, kind: str) -> Any:
    """Return the class of an agent by name, which must play tasks of that kind.

    Raises
    ------
    ValueError
        If the name is unknown, or the agent plays another kind of task.
    """
    cls: Any = agent_spec(name).load()
    if getattr(cls, "kind", kind) != kind:
        raise UsageError(f"agent={name!r} plays {cls.kind} tasks; this task is a {kind} one")
    return cls


def make_agent(
    name: str, problem: QueueProblem | DeployProblem | ServeProblem, seed: int, **settings: Any
) -> Agent:
    """Build an agent by name; ``settings`` override the registered ones.

    Raises
    ------
    ValueError
        If the name is unknown, the agent plays another kind of task, or a setting is not one the
        agent takes.
    """
    cls = player(name, problem.kind)
    arguments = {**agent_spec(name).settings, **settings}
    try:
        inspect.signature(cls).bind(problem, seed, **arguments)
    except TypeError as error:
        raise UsageError(f"agent={name!r}: {error}") from error
    agent: Agent = cls(problem, seed, **arguments)
    return agent
