"""Model files as agents by name: what a card must hold, and which files a lookup reads.

The files here hold a card only; those with weights are in test_rl_baselines.py.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from baselines import QueueProblem, agent_spec, make_agent, models, registered_agents
from baselines.models import CARD, MAX_CARD, MODELS_VARIABLE, read_card

QUEUE: dict[str, Any] = {
    "format": 1,
    "agent": "PPO",
    "env_id": "LLMQueue-v0",
    "kwargs": {"load": 0.9},
    "horizon": None,
    "seed": 0,
    "num_envs": 4,
    "settings": {"n_steps": 64},
    "steps": 4096,
    "seconds": 1.5,
    "curve": {"steps": []},
    "problem": {"num_llms": 3, "assortment_size": 2, "context_dim": 5, "window": 6},
}
STAGE = {
    **QUEUE,
    "env_id": "LLMDeployStage-v0",
    "horizon": 500,
    "problem": {"num_llms": 3, "budget": 0.5},
}
SERVE = {
    **QUEUE,
    "env_id": "LLMServe-v0",
    "problem": {"num_llms": 2, "context_dim": 2, "window": 6, "dispatches": 2, "places": [1, 1]},
}
ODD = {"format": 1, "agent": "PPO", "env_id": "LLMQueue-v0"}


def write(path: Path, card: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CARD, json.dumps(card))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    return tmp_path


def test_an_odd_file_breaks_neither_other_agents_nor_the_list(folder: Path) -> None:
    write(folder / "odd.zip", ODD)
    good = write(folder / "good.zip", QUEUE)
    make_agent("random", QueueProblem(3, 2, 5, 6, 0.5, 60), 0)
    assert agent_spec("good").settings["model"] == str(good)
    names = [spec.name for spec in registered_agents()]
    assert names.count("good") == 1
    assert "odd" not in names
    with pytest.raises(ValueError, match=r"odd\.zip.*kwargs is missing"):
        agent_spec("odd")
    with pytest.raises(ValueError, match=r"did you mean 'good'"):
        agent_spec("goood")


def test_a_lookup_reads_the_model_asked_for_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write(folder / f"{name}.zip", STAGE | {"seed": len(name)})
    read = []
    monkeypatch.setattr(models, "read_card", lambda path: read.append(Path(path).stem) or STAGE)
    assert agent_spec("greedy").target.endswith("GreedyMLE")
    assert agent_spec("own:Agent").target == "own:Agent"
    with pytest.raises(ValueError, match="did you mean 'greedy'"):
        agent_spec("greddy")
    assert read == []
    spec = agent_spec("two")
    assert read == ["two"]
    assert spec.settings["sha256"] == hashlib.sha256((folder / "two.zip").read_bytes()).hexdigest()
    assert spec == agent_spec(str(folder / "two.zip"))


def test_a_model_does_not_hide_a_built_in_agent(folder: Path) -> None:
    write(folder / "greedy.zip", QUEUE)
    assert agent_spec("greedy").target == "baselines.queueing.mle:GreedyMLE"
    assert [spec.target for spec in registered_agents() if spec.name == "greedy"] == [
        "baselines.queueing.mle:GreedyMLE"
    ]


@pytest.mark.parametrize("card", [QUEUE, STAGE, SERVE], ids=["queue", "stage", "serve"])
def test_every_entry_of_a_card_is_needed_and_has_its_type(
    card: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.zip"
    assert read_card(write(path, card)) == card
    shape = card["problem"]
    wrong: list[tuple[str, dict[str, Any]]] = []
    for key in set(card) - {"format"}:
        wrong.append((key, {k: v for k, v in card.items() if k != key}))
        wrong += [(key, card | {key: value}) for value in ([], True)]
    for key in shape:
        rest = {k: v for k, v in shape.items() if k != key}
        wrong += [(f"problem.{key}", card | {"problem": rest})]
        wrong += [(f"problem.{key}", card | {"problem": rest | {key: "3"}})]
    wrong.append(("env_id", card | {"env_id": "CartPole-v1"}))
    for key, entries in wrong:
        with pytest.raises(ValueError, match=rf"model\.zip.*{key}"):
            read_card(write(path, entries))


def test_what_a_model_file_unpacks_to_is_limited_before_it_is_read(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CARD, b" " * (MAX_CARD + 1))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to"):
        read_card(path)


def test_a_card_nested_too_deep_is_refused_by_name(tmp_path):
    path = tmp_path / "deep.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CARD, "[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.zip' is not a model"):
        read_card(path)
