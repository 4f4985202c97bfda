"""The examples run in seconds and show what they claim to show."""

from __future__ import annotations

import gc
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER / "clients"))


def figures(text: str) -> dict[str, float]:
    """Read the lines ``label mean queue figure``."""
    lines = re.findall(r"^(.+?):? +mean queue ([\d.]+)$", text, re.MULTILINE)
    return {label: float(figure) for label, figure in lines}


def test_bandit(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("bandit").main()
    queue = figures(capsys.readouterr().out)
    assert queue["ACQB"] < queue["random"] / 2


def test_sb3_ppo(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3")
    importlib.import_module("sb3_ppo").main(steps=10_240)
    queue = figures(capsys.readouterr().out)
    assert queue["after 10240 steps"] < queue["before"]


def test_ppo_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    main = importlib.import_module("ppo_one_file").main
    main(["--total-steps", "20480"])
    queue = figures(capsys.readouterr().out)
    assert queue["PPO after 20480 steps"] < queue["random"] / 2
    printed = []
    for _ in range(2):
        main(["--total-steps", "2048"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]  # one seed, one result


def test_third_party_agent(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("third_party_agent").main()
    queue = figures(capsys.readouterr().out)
    assert queue["third_party_agent:ShortestMemory"] < queue["random"]


def test_every_example_has_a_test() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "bandit",
        "bandit_mabwiser",  # tests/baselines/test_bandit_libraries.py
        "evaluate_policy",  # tests/baselines/test_policy.py
        "my_router",  # .ci/submission sample
        "ppo_one_file",
        "sb3_ppo",
        "third_party_agent",
    }


# Recipe, the package it needs, and what its figures must show. Random decisions on this task keep
# some 37 of 100 slots' queries, masked ones some 60.
CLIENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "agilerl_dqn": ("agilerl", lambda found: len(found) == 2 and min(found) > 20),
    "coba_experiment": ("coba", lambda found: found["LinUCB"] > found["random"] + 0.1),
    "d3rlpy_offline": ("d3rlpy", lambda departures: departures > 90),
    "minari_data_set": (
        "minari",
        lambda dataset: (
            dataset.total_steps == 600
            and dataset[0].infos["served"].any()
            and dataset.recover_environment().spec.max_episode_steps == 200
        ),
    ),
    "mo_gymnasium_weights": (
        "mo_gymnasium",
        lambda found: (
            found["quality"] > 0
            and found["weighted"]
            == pytest.approx(found["quality"] + 100 * found["minus cost"], rel=1e-4)
        ),
    ),
    "rllib_ppo": ("tree", lambda departures: departures > 25),
    "sb3_contrib_ppo": (
        "sb3_contrib",
        lambda found: found["MaskablePPO"] > found["RecurrentPPO"] > 12,
    ),
    "skrl_ppo": ("skrl", lambda moved: moved > 0),
    "supersuit_ppo": ("supersuit", lambda steps: steps == 500),
    "tianshou_dqn": ("tianshou", lambda departures: departures > 20),
    "torchrl_ppo": ("torchrl", lambda found: found["departures"] > 0.4 and found["served"] > 0.6),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:agilerl")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # Minari's folder
@pytest.mark.parametrize("recipe", CLIENTS)
def test_client(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, shows = CLIENTS[recipe]
    pytest.importorskip(package, reason="runs once a week, with its package installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    found = importlib.import_module(recipe).main()
    assert shows(found), found
    gc.collect()


@pytest.mark.parametrize("env_id", ["LLMQueue-v0", "LLMDeployStage-v0"])
def test_rl_zoo3(env_id: str, tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3", reason="runs once a week, with its package installed")
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "ppo", "--env", env_id]
    command += ["--gym-packages", "llmqueue_gym", "--n-timesteps", "1024", "--eval-freq", "-1"]
    command += ["--conf-file", str(FOLDER / "clients" / "rl_zoo3_ppo.yml")]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert list(tmp_path.glob(f"logs/ppo/{env_id}_1/{env_id}.zip"))


def test_every_recipe_has_a_test_and_a_line_in_the_page() -> None:
    page = (FOLDER.parent / "docs" / "clients.md").read_text("utf-8")
    recipes = {path.stem for path in (FOLDER / "clients").glob("*.py")}
    assert recipes == set(CLIENTS)
    for name in recipes:
        assert f"`{name}.py`" in page
