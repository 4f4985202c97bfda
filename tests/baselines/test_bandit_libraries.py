"""The base for bandit libraries: what it asks, serves and tells; and the libraries themselves."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from baselines import QueueProblem
from baselines.queueing.bandit_library import BanditLibraryAgent

ROOT = Path(__file__).resolve().parents[2]


class Recorder(BanditLibraryAgent):
    """Scores that are drawn, and all that was told."""

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.asked: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self.told: list[tuple[bytes, int, float]] = []

    def scores(self, contexts: NDArray[Any]) -> NDArray[Any]:
        scores = self.rng.random((len(contexts), self.problem.num_llms))
        self.asked.append((contexts.copy(), scores))
        return scores

    def learn(self, context: NDArray[Any], llm: int, reward: float) -> None:
        self.told.append((context.tobytes(), llm, reward))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_best_row_is_served_and_every_llm_shown_is_told_once(size: int) -> None:
    env: Any = gym.make("LLMQueue-v0", assortment_size=size, load=0.9, window=6)
    observation, _ = env.reset(seed=0)
    agent = Recorder(QueueProblem(**env.unwrapped.problem, horizon=400), seed=0)
    ends = {"kept": 0, "retried": 0, "idle": 0}
    for _ in range(400):
        asked, told = len(agent.asked), len(agent.told)
        action = agent.act(observation)
        assert env.action_space.contains(action)
        waiting = int(observation["waiting"].sum())
        assert len(agent.asked) - asked == (waiting > 0)
        if waiting:
            contexts, scores = agent.asked[-1]
            np.testing.assert_array_equal(contexts, observation["contexts"][:waiting])
            best = [sum(sorted(row)[-size:]) for row in scores]
            assert best[action[0]] == max(best)
            assert sorted(action[1:]) == sorted(np.argsort(scores[action[0]])[-size:])
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, float(reward), following, info)
        new = agent.told[told:]
        context = observation["contexts"][action[0]].tobytes()
        shown = action[1:].tolist() if info["served"] else []
        assert new == [(context, llm, float(llm == info["kept_llm"])) for llm in shown]
        ends["kept" if info["departed"] else "retried" if info["served"] else "idle"] += 1
        observation = following
    assert min(ends.values()) > 0


def test_equal_scores_serve_the_head() -> None:
    problem = QueueProblem(3, 2, 1, 4, 0.5, 10)
    agent = Recorder(problem, seed=0)
    agent.scores = lambda contexts: np.zeros((len(contexts), 3))  # type: ignore[method-assign]
    observation = {"waiting": np.array([1, 1, 1, 0]), "contexts": np.zeros((4, 1), np.float32)}
    assert agent.act(observation).tolist() == [0, 0, 1]


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((3, 2)), np.full((2, 3), np.nan)])
def test_scores_of_another_shape_or_not_finite_are_refused(bad: NDArray[Any]) -> None:
    agent = Recorder(QueueProblem(3, 2, 1, 4, 0.5, 10), seed=0)
    agent.scores = lambda contexts: bad  # type: ignore[method-assign]
    observation = {"waiting": np.array([1, 1, 0, 0]), "contexts": np.zeros((4, 1), np.float32)}
    message = r"Recorder returned shape .* return finite numbers of shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        agent.act(observation)


def test_mabwiser_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mabwiser", reason="pip install mabwiser")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    mean_queue = importlib.import_module("bandit").mean_queue
    found = mean_queue("bandit_mabwiser:MABWiserLinUCB", slots=400)
    assert found < 0.8 * mean_queue("random", slots=400)
    assert found == mean_queue("bandit_mabwiser:MABWiserLinUCB", slots=400)  # one seed, one result


def test_the_guide_shows_the_examples() -> None:
    text = (ROOT / "docs/guides/bandit-libraries.md").read_text("utf-8")
    shown = re.findall(r'--8<-- "(.+):agent"', text)
    assert shown == ["examples/bandit_mabwiser.py"]
    for name in shown:
        assert "# --8<-- [start:agent]" in (ROOT / name).read_text("utf-8")
