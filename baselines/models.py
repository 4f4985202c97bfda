"""Model files: what they say about themselves, and the folder in which they are agents by name.

Reading a card executes nothing and needs neither torch nor Stable-Baselines3.
"""

from __future__ import annotations

import inspect
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from baselines.interface import AgentSpec, DeployProblem, QueueProblem, ServeProblem
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import file_sha256

CARD = "llmqueue_gym.json"
FORMAT = 1
MODELS_VARIABLE = "LLMQUEUE_GYM_MODELS"
"""Environment variable naming the folder of trained agents; ``models`` where it is not set."""

MAX_UNPACKED, MAX_CARD = 2 * 2**30, 16 * 2**20
"""Bytes that a model file and its card may unpack to."""

OWN_FILES = "a model file decides what it does: load only files of your own"

_AGENTS = {
    "LLMQueue-v0": "baselines.rl.agents:TrainedQueueAgent",
    "LLMDeployStage-v0": "baselines.rl.agents:TrainedDeployAgent",
    "LLMServe-v0": "baselines.rl.agents:TrainedServeAgent",
}
"""What plays a model, by the environment it was trained on."""

_KINDS = {
    "LLMQueue-v0": QueueProblem.kind,
    "LLMDeployStage-v0": DeployProblem.kind,
    "LLMServe-v0": ServeProblem.kind,
}

_FIELDS: Mapping[str, Any] = {
    "agent": str,
    "env_id": str,
    "kwargs": dict,
    "horizon": int | None,
    "seed": int,
    "num_envs": int,
    "settings": dict,
    "steps": int,
    "seconds": int | float,
    "curve": dict,
    "problem": dict,
}
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "LLMQueue-v0": dict.fromkeys(("num_llms", "assortment_size", "context_dim", "window"), int),
    "LLMDeployStage-v0": {"num_llms": int, "budget": int | float},
    "LLMServe-v0": {
        **dict.fromkeys(("num_llms", "context_dim", "window", "dispatches"), int),
        "places": list,
    },
}
"""Types of a card's entries, and of its entry ``problem``."""


def models_folder() -> Path:
    """Folder whose files ``NAME.zip`` are agents by name."""
    return Path(os.environ.get(MODELS_VARIABLE) or "models")


def read_card(path: str | Path | BinaryIO) -> dict[str, Any]:
    """Read what a model file says about itself; nothing in it is executed.

    Raises
    ------
    ValueError
        If it is no file written by ``baselines.rl.train``; the message names the file, and what
        is wrong with the card.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_sizes(archive)
            card: dict[str, Any] = json.loads(archive.read(CARD))
    except FileNotFoundError:
        raise UsageError(f"model={str(path)!r}: there is no such file") from None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise UsageError(
            f"model={str(path)!r} is not a model written by baselines.rl.train ({error})"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UsageError(f"model={str(path)!r} has another format; train it again")
    _check_types(path, card, _FIELDS)
    if card["env_id"] not in _AGENTS:
        known = ", ".join(_AGENTS)
        raise UsageError(
            f"model={str(path)!r}: env_id={card['env_id']!r} in its card is none of {known}"
        )
    _check_types(path, card["problem"], _SHAPES[card["env_id"]], "problem.")
    return card


def check_sizes(archive: zipfile.ZipFile) -> None:
    """Check what a model file says it unpacks to, before anything of it is read.

    ``zipfile`` itself never unpacks more of an entry than its header states.

    Raises
    ------
    ValueError
        If it is more than `MAX_UNPACKED` bytes, or the card more than `MAX_CARD`.
    """
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    if sum(sizes.values()) > MAX_UNPACKED or sizes.get(CARD, 0) > MAX_CARD:
        raise UsageError(
            f"it unpacks to {sum(sizes.values()):,} bytes, its card to {sizes.get(CARD, 0):,}; "
            f"at most {MAX_UNPACKED:,} and {MAX_CARD:,} are read"
        )


def _check_types(
    path: object, entries: Mapping[str, Any], types: Mapping[str, Any], place: str = ""
) -> None:
    for key, expected in types.items():
        value = entries.get(key, _ABSENT)
        if isinstance(value, bool) or not isinstance(value, expected):
            found = "is missing in" if value is _ABSENT else f"is {value!r} in"
            raise UsageError(
                f"model={str(path)!r}: {place}{key} {found} its card, "
                f"not {getattr(expected, '__name__', expected)}; train it again"
            )


_ABSENT = object()
_DECLARED = {"steps", "seconds", "file"}


def training_facts(path: str | Path) -> dict[str, Any]:
    """Return what decides how a model plays and what it cost: digest, recipe, steps, seconds, seed.

    Raises
    ------
    ValueError
        If the file is no model.
    """
    card = read_card(path)
    facts = {key: card[key] for key in ("agent", "env_id", "steps", "seconds", "seed")}
    return {"sha256": file_sha256(path), **facts}


def class_training(cls: type) -> dict[str, Any] | None:
    """Return what an agent's class says of its training, None if it says nothing.

    That is the card of the model file it names (``model``), or what it declares (``training``):
    the digest of a declared file is taken here, so that other weights are another agent.

    Raises
    ------
    ValueError
        If a file cannot be read or a declaration is wrong; the message names the entry.
    """
    model, declared = getattr(cls, "model", None), getattr(cls, "training", None)
    if isinstance(model, str):
        return training_facts(model)
    if declared is None:
        return None
    place = f"training={declared!r} of {cls.__name__}"
    if not isinstance(declared, Mapping) or not {"steps", "seconds"} <= set(declared) <= _DECLARED:
        raise UsageError(
            f"{place} must be a dict with 'steps', 'seconds' and, if there is one, 'file'"
        )
    if getattr(cls, "protocol", None) != "pretrained":
        raise UsageError(f"{place}: only agents with protocol = 'pretrained' are trained before")
    facts: dict[str, Any] = {}
    for name in ("steps", "seconds"):
        checks.number(f"{place}: {name}", declared[name], "(0, inf)")
        facts[name] = np.asarray(declared[name]).item()  # plain: it becomes a part of a cell's key
    if (file := declared.get("file")) is not None:
        if not isinstance(file, str):
            raise UsageError(f"{place}: file={file!r} must be a path from the folder of its module")
        facts["sha256"] = file_sha256(Path(inspect.getfile(cls)).parent / file)
    return facts


def model_spec(path: str | Path) -> AgentSpec:
    """Return the agent that a model file is.

    Raises
    ------
    ValueError
        If the file is no model.
    """
    facts = training_facts(path)
    return _spec(Path(path), facts, {"sha256": facts["sha256"]})


def _spec(path: Path, card: Mapping[str, Any], digest: Mapping[str, str]) -> AgentSpec:
    return AgentSpec(
        name=path.stem,
        target=_AGENTS[card["env_id"]],
        settings={"model": str(path), **digest},
        source=f"{card['agent']}, {card['steps']:,} steps on {card['env_id']}",
        kind=_KINDS[card["env_id"]],
    )


def saved_model(name: str) -> Path | None:
    """Model file that an agent's name stands for: a path ending in .zip, or one of the folder."""
    if name.endswith(".zip"):
        return Path(name)
    path = models_folder() / f"{name}.zip"
    return path if path.is_file() else None


def saved_model_names() -> list[str]:
    """Names of the files in the models folder; none of them is read."""
    return sorted(path.stem for path in models_folder().glob("*.zip"))


def saved_models() -> Iterator[AgentSpec]:
    """Agents of the models folder, without digests; files that are no models are passed over."""
    for name in saved_model_names():
        path = models_folder() / f"{name}.zip"
        try:
            yield _spec(path, read_card(path), {})
        except ValueError:
            continue
