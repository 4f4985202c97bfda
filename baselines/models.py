"""Model files: what they say about themselves, and the folder in which they are agents by name.

Reading a card executes nothing and needs neither torch nor Stable-Baselines3.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baselines.agent import AgentSpec
from llmqueue_gym.workloads.pool import file_sha256

CARD = "llmqueue_gym.json"
FORMAT = 1
MODELS_VARIABLE = "LLMQUEUE_GYM_MODELS"
"""Environment variable naming the folder of trained agents; ``models`` where it is not set."""

OWN_FILES = "a model file decides what it does: load only files of your own"

_AGENTS = "baselines.rl.agents"


def models_folder() -> Path:
    """Folder whose files ``NAME.zip`` are agents by name."""
    return Path(os.environ.get(MODELS_VARIABLE) or "models")


def read_card(path: str | Path) -> dict[str, Any]:
    """Read what a model file says about itself; nothing in it is executed.

    Raises
    ------
    ValueError
        If it is no file written by ``baselines.rl.train``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            card: dict[str, Any] = json.loads(archive.read(CARD))
    except FileNotFoundError:
        raise ValueError(f"model={str(path)!r}: there is no such file") from None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"model={str(path)!r} is not a model written by baselines.rl.train ({error})"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"model={str(path)!r} has another format; train it again")
    return card


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


def model_spec(path: str | Path) -> AgentSpec:
    """Return the agent that a model file is.

    Raises
    ------
    ValueError
        If the file is no model.
    """
    facts = training_facts(path)
    name = "TrainedQueueAgent" if facts["env_id"] == "LLMQueue-v0" else "TrainedDeployAgent"
    return AgentSpec(
        name=Path(path).stem,
        target=f"{_AGENTS}:{name}",
        settings={"model": str(path), "sha256": facts["sha256"]},
        source=f"{facts['agent']}, {facts['steps']:,} steps on {facts['env_id']}",
    )


def saved_model(name: str) -> Path | None:
    """Model file that an agent's name stands for: a path ending in .zip, or one of the folder."""
    if name.endswith(".zip"):
        return Path(name)
    path = models_folder() / f"{name}.zip"
    return path if path.is_file() else None


def saved_models() -> Iterator[AgentSpec]:
    """Agents of the models folder; files that are no models are passed over."""
    for path in sorted(models_folder().glob("*.zip")):
        try:
            yield model_spec(path)
        except ValueError:
            continue
