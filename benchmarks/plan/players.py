"""Who plays: what cells store of an agent, so that another code or file is another cell."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plan.suite import PROTOCOLS, AgentEntry
from llmqueue_gym.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from baselines.interface import AgentSpec
    from benchmarks.plan.cells import Training


@dataclass(frozen=True)
class Player:
    """An agent as cells name it, its kind of task (None for any), model file and training curve."""

    identity: Mapping[str, Any]
    protocol: str
    kind: str | None
    model: str | None = None
    curve: Mapping[str, Any] | None = None


def find_player(entry: AgentEntry) -> Player:
    """Name, label and settings; the code of agents from elsewhere and a model's facts count too."""
    from baselines.models import class_training, read_card, training_facts
    from baselines.registry import agent_spec

    curve = None
    identity = {"name": entry.name, "label": entry.label, "settings": dict(entry.settings)}
    if entry.name == "oracle":
        return Player(identity, PROTOCOLS[0], None)
    spec = agent_spec(entry.name)
    module = spec.target.partition(":")[0]
    if module.split(".")[0] != "baselines":
        identity["code"] = agent_code(module, entry.name)
    cls = _loaded(spec)
    model = spec.settings.get("model")
    brought = model or getattr(cls, "model", None)  # a class may name its own file
    if isinstance(brought, str):
        identity["training"] = training_facts(brought)
        curve = read_card(brought)["curve"]
    elif cls is not None and (declared := class_training(cls)) is not None:
        identity["training"] = declared
    if given := getattr(cls, "trained_on", ""):
        identity["trained_on"] = given
    own = "pretrained" if model else getattr(cls, "protocol", PROTOCOLS[0])
    path = str(Path(model).resolve()) if model else None
    return Player(identity, entry.protocol or own, getattr(cls, "kind", None), path, curve)


def _loaded(spec: AgentSpec) -> type | None:
    """Class of an agent, or None if only running it will tell what is wrong with its module."""
    try:
        return spec.load()
    except MissingPackageError:
        return None
    except UsageError:  # no such class: not worth the trainings and cells that come before it
        raise
    except Exception:  # somebody else's module
        return None


def trained_player(
    entry: AgentEntry, training: Training, kind: str, models: Path | None
) -> Player | None:
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
    return Player(identity, "pretrained", kind, str(path.resolve()), read_card(path)["curve"])


def agent_code(module: str, agent: str) -> str:
    """SHA-256 of an agent's code: its module, and all Python files of the package it lies in.

    A module outside packages is hashed alone, without what it imports from beside it.

    Raises
    ------
    UsageError
        If there is no such module.
    """
    try:
        top = importlib.util.find_spec(module.partition(".")[0])
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        top = found = None
    if top is None or found is None or found.origin is None or not Path(found.origin).is_file():
        raise UsageError(
            f"agent={agent!r}: there is no module {module!r}; "
            "install it or run from the folder that holds it"
        )
    digest = hashlib.sha256(Path(found.origin).read_bytes())
    for folder in map(Path, top.submodule_search_locations or ()):
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def check_agent_code(agent: Mapping[str, Any]) -> None:
    """Insist on the code, and a class's own model file, that a cell was planned with.

    Parameters
    ----------
    agent : Mapping[str, Any]
        The ``agent`` of a cell's identity.

    Raises
    ------
    UsageError
        If the code of an agent from elsewhere, or the file its class names, is another here.
    """
    from baselines.models import class_training
    from baselines.registry import agent_spec

    if "code" not in agent:
        return
    name, changed = agent["name"], ""
    spec = agent_spec(name)
    if agent_code(spec.target.partition(":")[0], name) != agent["code"]:
        changed = "code"
    elif "training" in agent:
        found = class_training(spec.load())
        if found is None or found.get("sha256") != agent["training"].get("sha256"):
            changed = "model file"
    if changed:
        raise UsageError(
            f"agent={name!r}: its {changed} here is not that of the plan: it was changed since, or "
            "is another on this machine; the same command plans its cells anew"
        )
