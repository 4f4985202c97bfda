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


def test_third_party_agent(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("third_party_agent").main()
    queue = figures(capsys.readouterr().out)
    assert queue["third_party_agent:ShortestMemory"] < queue["random"]


def test_every_example_has_a_test() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {"bandit", "sb3_ppo", "third_party_agent"}
