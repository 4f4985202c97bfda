"""Discrete dispatches of LLMServe-v0: every number is a legal action or masked, candidates stand
for the whole queue, and wrong environments are refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.adapters.dispatches import Dispatches, DispatchesVector
from llmqueue_gym.adapters.sb3 import make_vec_env
from llmqueue_gym.errors import UsageError


@pytest.mark.parametrize("preset", ["tiny-pair", "impatient", "fleet"])
def test_a_number_is_legal_if_and_only_if_its_mask_says_so(preset: str) -> None:
    """Legal numbers dispatch all their pairs, and any other one has a choice that does nothing."""
    lanes = 16
    venv: Any = gym.make_vec(
        "LLMServe-v0", lanes, autoreset_mode="SameStep", max_episode_steps=60, preset=preset
    )
    env = DispatchesVector(venv)
    _, info = env.reset(seed=0)
    rng, sets = np.random.default_rng(0), env.dispatches.sets
    none = env.dispatches.candidates * env.dispatches.replicas
    served = np.zeros(2, dtype=np.int64)
    for slot in range(150):
        legal = info["action_mask"]
        np.testing.assert_array_equal(legal, env.action_masks())
        assert legal[:, 0].all()
        hold = slot % 30 < 10  # so that somebody waits
        actions = np.array([0 if hold else rng.choice(np.flatnonzero(row)) for row in legal])
        wrong = rng.integers(len(sets), size=lanes)
        odd = rng.random(lanes) < 0.2
        actions = np.where(odd & ~hold, wrong, actions)
        allowed = legal[np.arange(lanes), actions] > 0
        pairs = (sets[actions] < none).sum(axis=1)
        observation, _, _, truncated, info = env.step(actions)
        assert observation["age"].shape == (lanes, env.dispatches.candidates)
        for key, shown in observation.items():
            assert shown.shape[1:] == env.single_observation_space[key].shape  # type: ignore[index]
        if not truncated.any():
            roomy = venv.unwrapped.task.public.places.max() > 1  # room for one, not for two
            fine = info["dispatched"] == pairs
            assert (fine | roomy)[allowed].all()
            assert not fine[~allowed].any()
            served += [np.count_nonzero(fine & (pairs > 0)), np.count_nonzero(~allowed)]
    assert (served > 20).all()


def test_candidates_are_the_longest_waiting_of_every_context_in_turn() -> None:
    """Three equal queries, then two others: their first ones, their second ones, then the third."""
    contexts = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], dtype=np.float32)
    waiting = np.array([1, 1, 1, 1, 1, 0], dtype=np.float32)
    rows = {key: np.arange(6.0)[None] for key in ("age", "retrials", "wait")}
    seen = {"contexts": contexts[None], "waiting": waiting[None], **rows}
    order, shown = Dispatches(4, 6, 1, [1]).choose(seen)
    assert order.tolist() == [[0, 3, 1, 4]]
    assert shown["age"].tolist() == order.tolist()
    assert shown["total"].tolist() == [[3.0, 2.0]]
    assert Dispatches(9, 6, 1, [1]).choose(seen)[0].tolist() == [[0, 3, 1, 4, 2, 5]]


def test_what_it_cannot_play_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"LLMServe-v0's vector environment"):
        DispatchesVector(gym.make_vec("LLMQueue-v0", 1))
    with pytest.raises(UsageError, match=r"update_every=\d+: here the fleet stays"):
        make_vec_env("LLMServe-v0", 1, wrapper=DispatchesVector, preset="autoscale")
    with pytest.raises(UsageError, match="candidates=0"):
        Dispatches(0, 6, 1, [1])
    with pytest.raises(UsageError, match=r"make up to \d+ actions, above 100000; lower cand"):
        Dispatches(32, 32, 3, [1] * 8)
    with pytest.raises(UsageError, match=r"action=.*must be whole numbers in \[0, 5\)"):
        Dispatches(4, 6, 1, [1]).decode(np.array([5]), np.zeros((1, 4), dtype=np.int64))
