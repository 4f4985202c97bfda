"""What RL is shown of refusals, against a plain recount of every query's own."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.rl.memory import REFUSALS, RefusalCounts, RefusalsVector
from llmqueue_gym.adapters.wrappers import DiscreteActionsVector
from llmqueue_gym.errors import UsageError

LANES, LLMS, WINDOW, EPISODE = 3, 3, 5, 25


def queues(**more: Any) -> Any:
    """Overloaded lanes, so that queries wait, retry and move beyond the window."""
    return gym.make_vec(
        "LLMQueue-v0",
        LANES,
        num_llms=LLMS,
        window=WINDOW,
        arrival_rate=0.9,
        instance_seed=0,
        max_episode_steps=EPISODE,
        **more,
    )


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_refusals_are_those_of_each_waiting_query(mode: AutoresetMode) -> None:
    env = RefusalsVector(queues(autoreset_mode=mode))
    rng = np.random.default_rng(0)
    seen, _ = env.reset(seed=0)
    refused: list[Any] = [defaultdict(lambda: np.zeros(LLMS)) for _ in range(LANES)]
    slot, most = np.zeros(LANES, dtype=np.int64), 0.0

    def check(lane: int, shown: Any, now: int) -> None:
        for place in range(WINDOW):
            query = now - int(shown["age"][place])
            expected = refused[lane][query] if shown["waiting"][place] else np.zeros(LLMS)
            np.testing.assert_array_equal(shown[REFUSALS][place], expected)

    for _ in range(3 * EPISODE):
        actions = np.column_stack([rng.integers(WINDOW, size=LANES), [[0, 1]] * LANES])
        actions[:, 2] = rng.integers(1, LLMS, size=LANES)
        before = seen
        seen, _, _, _, info = env.step(actions)
        told, ended = info.get("final_info", info), info.get("_final_obs", np.zeros(LANES, bool))
        for lane in range(LANES):
            if told["retried"][lane]:
                query = slot[lane] - int(before["age"][lane, actions[lane, 0]])
                refused[lane][query][actions[lane, 1:]] += 1.0
            slot[lane] += 1
            if ended[lane]:
                check(lane, info["final_obs"][lane], slot[lane])
            if ended[lane] or (mode is AutoresetMode.NEXT_STEP and slot[lane] > EPISODE):
                refused[lane].clear()
                slot[lane] = 0
            check(lane, {key: value[lane] for key, value in seen.items()}, slot[lane])
        most = max(most, float(seen[REFUSALS].max()))
    assert most >= 2.0
    assert env.single_observation_space.contains({k: v[0] for k, v in seen.items()})


def test_what_is_too_old_is_forgotten_and_never_given_to_a_newer_query() -> None:
    memory, one = RefusalCounts(1, 2), np.ones(1, dtype=np.bool_)
    memory.note(np.zeros(1), np.array([[0]]), one)
    for _ in range(1022):
        memory.note(np.zeros(1), np.array([[0]]), ~one)
    assert memory.of(np.array([[1023.0]]), np.ones((1, 1))).tolist() == [[[1.0, 0.0]]]
    memory.note(np.array([1023.0]), np.array([[1]]), one)  # of the same query
    assert memory.of(np.array([[1024.0, 0.0]]), np.ones((1, 2))).tolist() == [[[0.0, 0.0]] * 2]
    memory.note(np.array([1024.0]), np.array([[1]]), one)
    assert not memory.of(np.array([[1025.0, 1.0, 0.0]]), np.ones((1, 3))).any()


def test_another_environment_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="inside DiscreteActions"):
        RefusalsVector(DiscreteActionsVector(queues()))
