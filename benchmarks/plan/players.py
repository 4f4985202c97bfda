"""Who plays: what cells store of an agent, so that another code or file is another cell."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plan.agent_files import find_module
from benchmarks.plan.held_out import HeldOut
from benchmarks.plan.suite import PROTOCOLS, YARDSTICK, AgentEntry
from llmqueue_gym.errors import MissingPackageError, UsageError
from llmqueue_gym.workloads.pool import file_sha256

if TYPE_CHECKING:
    from baselines.interface import AgentSpec
    from benchmarks.plan.cells import Training


_IMPORT_TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class Player:
    """An agent as cells name it, its kind of task (None for any), model file and training curve."""

    identity: Mapping[str, Any]
    protocol: str
    kind: str | None
    model: str | None = None
    curve: Mapping[str, Any] | None = None


def find_player(
    entry: AgentEntry, trust: bool | None = None, held_out: HeldOut | None = None
) -> Player:
    """Name, label and settings; the code of agents from elsewhere and a model's facts count too.

    Unless it is trusted, code from elsewhere is imported behind the wall only, where it must not
    see what is held out.
    """
    from baselines.models import read_card, training_facts
    from baselines.registry import agent_spec

    curve = None
    identity: dict[str, Any] = {"name": entry.name, "label": entry.label}
    identity["settings"] = dict(entry.settings)
    if entry.name == "oracle":
        return Player(identity, PROTOCOLS[0], None)
    spec = agent_spec(entry.name)
    module = spec.target.partition(":")[0]
    if module.split(".")[0] != "baselines":
        identity["code"] = agent_code(module, entry.name)
    apart = is_walled(identity, trust) and "code" in identity
    hidden = () if held_out is None else (str(held_out.path),)
    facts = _facts_apart(entry.name, identity["code"], hidden) if apart else _facts(spec)
    model = spec.settings.get("model")
    brought = model or facts.get("model")  # a class may name its own file
    if isinstance(brought, str):
        identity["training"] = training_facts(brought)
        curve = read_card(brought)["curve"]
    elif (declared := facts.get("training")) is not None:
        identity["training"] = dict(declared)
        if "file" in facts:  # which may be another by now
            identity["training"]["sha256"] = file_sha256(facts["file"])
    if given := facts.get("trained_on"):
        identity["trained_on"] = given
    own = "pretrained" if model else facts.get("protocol", PROTOCOLS[0])
    path = str(Path(model).resolve()) if model else None
    return Player(identity, entry.protocol or own, facts.get("kind"), path, curve)


def is_walled(identity: Mapping[str, Any], trust: bool | None) -> bool:
    """Whether an agent plays behind the wall (`benchmarks.wall`).

    Parameters
    ----------
    identity : Mapping[str, Any]
        The ``agent`` of a cell's identity.
    trust : bool, optional
        True: nobody does; False: everybody whom nobody tells the truth; None: code and model files
        that are neither this project's nor the suite's own.
    """
    knows = identity["name"] == "oracle" or is_told(identity)
    if knows or trust or not hasattr(os, "fork"):
        return False
    return trust is False or _is_from_elsewhere(identity)


def is_told(identity: Mapping[str, Any]) -> bool:
    """Whether an agent is told the truth: a yardstick of this project, whatever others call theirs.

    Parameters
    ----------
    identity : Mapping[str, Any]
        The ``agent`` of a cell's identity.
    """
    return identity["name"].startswith(YARDSTICK) and not _is_from_elsewhere(identity)


def _is_from_elsewhere(identity: Mapping[str, Any]) -> bool:
    """Whether an agent brings code, or a model file that the suite did not make."""
    brought = "training" in identity and "key" not in identity["training"]
    return "code" in identity or brought


def class_facts(cls: Any) -> dict[str, Any]:
    """Return what an agent's class says of itself, JSON-plain."""
    from baselines.models import class_training

    facts = {name: getattr(cls, name, None) for name in ("kind", "protocol", "trained_on", "model")}
    said = {name: value for name, value in facts.items() if isinstance(value, str)}
    if "model" in said:
        return said
    training = class_training(cls)
    if training is not None and "sha256" in training:
        said["file"] = str(Path(inspect.getfile(cls)).parent / cls.training["file"])
    return {**said, "training": training}


def _facts(spec: AgentSpec) -> dict[str, Any]:
    """Facts of an agent's class; none if only running it will tell what is wrong with it."""
    try:
        cls = spec.load()
    except MissingPackageError:
        return {}
    except UsageError:  # no such class: not worth the trainings and cells that come before it
        raise
    except Exception:  # somebody else's module
        return {}
    return class_facts(cls)


@cache
def _facts_apart(name: str, code: str, hidden: tuple[str, ...]) -> Mapping[str, Any]:
    """Facts of the class of an agent with that code, which is imported in another process."""
    from benchmarks.run.pool import Pool
    from benchmarks.run.worker import FAILED, class_facts_of

    pool = Pool(1, timeout=_IMPORT_TIMEOUT, method="spawn", hidden=hidden)
    [report] = pool.run([name], class_facts_of, is_walled=lambda _: True)
    if report.state != FAILED:
        return report.payload
    kind, _, words = report.payload["error"].partition(": ")
    if kind == UsageError.__name__:
        raise UsageError(words)
    return {}


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
    top, found = find_module(module.partition(".")[0]), find_module(module)
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


def check_agent_code(agent: Mapping[str, Any], only_code: bool = False) -> None:
    """Insist on the code, and a class's own model file, that a cell was planned with.

    Parameters
    ----------
    agent : Mapping[str, Any]
        The ``agent`` of a cell's identity.
    only_code : bool
        Look at the code only, of which then nothing is run.

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
    elif "training" in agent and not only_code:
        found = class_training(spec.load())
        if found is None or found.get("sha256") != agent["training"].get("sha256"):
            changed = "model file"
    if changed:
        raise UsageError(
            f"agent={name!r}: its {changed} here is not that of the plan: it was changed since, or "
            "is another on this machine; the same command plans its cells anew"
        )
