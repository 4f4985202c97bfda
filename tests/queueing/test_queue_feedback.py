"""Noise in the feedback of LLMQueue-v0: the queue does not change, what is told does, as said."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from baselines import QueueProblem, make_agent, registered_agents
from baselines.queueing.base import Pairing, QueueAgent
from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.env import LLMQueueVectorEnv
from llmqueue_gym.testing import check_lane_equality

NOISY = {"missed": 0.3, "false": 0.2, "silent": 0.4, "delay": 3}


def history(feedback: Any, slots: int = 600, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Return queue lengths with the truth, and what is told, under actions that know neither."""
    env: Any = gym.make("LLMQueue-v0", load=0.9, window=8, instance_seed=1, feedback=feedback)
    env.reset(seed=seed)
    rng, happened, told = np.random.default_rng(1), [], []
    for _ in range(slots):
        slot = int(rng.integers(3)) if env.unwrapped.dynamics.queue_length[0] >= 3 else 0
        observation, _, _, _, info = env.step([slot, *rng.permutation(5)[:2]])
        truth = env.unwrapped.dynamics.outcome
        happened.append((info["queue_length"], truth.departed[0], truth.retried[0]))
        told.append((int(observation["feedback"]), info["departed"], info["retried"]))
    return happened, told


@pytest.mark.parametrize("feedback", [NOISY, {"missed": 1.0}, {"false": 1}, {"delay": 40}])
def test_the_queue_is_the_same_whatever_is_told(feedback: dict[str, Any]) -> None:
    happened, told = history(None)
    again, misheard = history(feedback)
    assert happened == again
    assert told != misheard


@pytest.mark.parametrize("feedback", [{}, {"missed": 0, "false": 0.0, "delay": 0}])
def test_no_noise_is_no_noise(feedback: dict[str, Any]) -> None:
    assert history(feedback) == history(None)


def test_answers_are_misheard_as_often_as_said() -> None:
    happened, told = history({"missed": 0.3, "false": 0.2, "silent": 0.4}, slots=8000)
    codes = np.array([code for code, *_ in told])
    _, departed, retried = np.array(happened).T.astype(bool)
    assert np.mean(codes[retried] >= 2) == pytest.approx(0.3, abs=0.03)
    assert np.mean(codes[departed] == 1) == pytest.approx(0.2, abs=0.03)
    assert np.mean(codes[departed | retried] == 0) == pytest.approx(0.4, abs=0.03)
    assert [(code >= 2, code == 1) for code, *_ in told] == [own[1:] for own in told]


def test_late_feedback_is_early_feedback_later() -> None:
    _, at_once = history({"false": 0.3})
    _, late = history({"false": 0.3, "delay": 7})
    assert late[7:] == at_once[:-7]
    assert late[:7] == [(0, False, False)] * 7


def test_lanes_hear_what_scalar_environments_hear() -> None:
    check_lane_equality("LLMQueue-v0", load=0.9, window=4, feedback=NOISY)


def test_a_lane_that_starts_anew_hears_nothing_of_before() -> None:
    envs = LLMQueueVectorEnv(2, max_episode_steps=20, arrival_rate=1.0, feedback={"delay": 5})
    observation, _ = envs.reset(seed=0)
    for t in range(60):
        observation, *_ = envs.step(np.tile([0, 0, 1], (2, 1)))
        slot = t % 21  # one step of every episode is the reset
        assert (observation["feedback"] == 0).all() or 5 < slot <= 19


class Listener(QueueAgent):
    """Serve the head with LLMs in turn; keep what is to be learnt."""

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.served: dict[int, Any] = {}
        self.heard: list[Any] = []

    def choose(self, observation: Any, waiting: int) -> Pairing:
        llms = [self.slot_number % 5, (self.slot_number + 1) % 5]
        self.served[self.slot_number] = (observation["contexts"][0].tolist(), llms)
        return Pairing(0, llms)

    def learn(self, served: Any) -> None:
        assert self.served[self.judged_slot] == (served.context.tolist(), served.shown)
        assert served.kept in (-1, *served.shown)
        self.heard.append(self.judged_slot)


@pytest.mark.parametrize("delay", [0, 1, 9])
def test_an_agent_learns_from_the_answer_that_is_judged(delay: int) -> None:
    feedback = {"missed": 0.2, "false": 0.1, "silent": 0.3, "delay": delay}
    env: Any = gym.make("LLMQueue-v0", load=0.8, feedback=feedback)
    observation, _ = env.reset(seed=0)
    assert env.unwrapped.problem["feedback_delay"] == delay
    agent = Listener(QueueProblem(**env.unwrapped.problem, horizon=300), 0)
    for _ in range(300):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, reward, following, info)
        observation = following
    assert 0.6 < len(agent.heard) / len(agent.served) < 0.8


@pytest.mark.parametrize(
    "name",
    [
        spec.name
        for spec in registered_agents()
        if spec.target.startswith("baselines.queueing")
        and spec.load().protocol == "online"
        and not spec.name.startswith("known-")
    ],
)
def test_every_agent_survives_noise(name: str) -> None:
    env: Any = gym.make("LLMQueue-v0", load=0.9, window=6, feedback=NOISY)
    observation, _ = env.reset(seed=0)
    try:
        agent = make_agent(name, QueueProblem(**env.unwrapped.problem, horizon=150), 0)
    except ImportError as error:
        pytest.skip(str(error))
    for _ in range(150):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, reward, following, info)
        observation = following


@pytest.mark.parametrize(
    ("feedback", "words"),
    [
        (0.1, r'feedback=0.1 must be a dict such as \{"missed": 0.1\}, or None'),
        ({"mised": 0.1}, "feedback key 'mised' is not known; did you mean 'missed'"),
        ({"false": 1.2}, r"feedback\['false'\]=1.2 must be a number in \[0, 1\]"),
        ({"missed": float("nan")}, r"feedback\['missed'\]=nan must be a number in \[0, 1\]"),
        ({"delay": 1.5}, r"feedback\['delay'\]=1.5 must be an integer of at least 0"),
        ({"missed": 0.7, "silent": 0.4}, r"feedback\['missed'\]=0.7 and .* must be at most 1"),
    ],
)
def test_bad_feedback_is_named(feedback: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gym.make("LLMQueue-v0", feedback=feedback)
