"""The examples run in seconds and show what they claim to show."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


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
        "bandit_mabwiser",  # tests/test_bandit_libraries.py
        "ppo_one_file",
        "sb3_ppo",
        "third_party_agent",
    }
