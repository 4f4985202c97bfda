"""A reset never ends a training because of the instance that it happens to draw."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.errors import DRAWS, UnplayableError, first_playable

# Of each a share of the instances cannot be played, from a tenth to nine tenths.
MIXED_LUCK: list[tuple[str, dict[str, Any]]] = [
    ("LLMQueue-v0", {"num_llms": 2, "context_dim": 3, "assortment_size": 1}),  # a slack of .1
    ("LLMQueue-v0", {"num_llms": 5, "context_dim": 1}),
    ("LLMQueue-v0", {"workload": {"source": "synthetic", "kind": "lookalike"}, "load": 0.9}),
    ("LLMServe-v0", {"slot_seconds": 0.105}),
    ("LLMServe-v0", {"slot_seconds": 0.07, "arrivals": "markov-modulated"}),
]
MIXED_LUCK[2][1]["arrivals"] = "daily"


@pytest.mark.parametrize(("env_id", "kwargs"), MIXED_LUCK)
def test_every_seed_draws_an_instance_that_can_be_played(
    env_id: str, kwargs: dict[str, Any]
) -> None:
    env: Any = gym.make(env_id, disable_env_checker=True, **kwargs)
    task = getattr(env.unwrapped, "task", None) or env.unwrapped._task
    again = 0
    for seed in range(12):
        env.reset(seed=seed)
        instance_rng = np.random.default_rng(seed).spawn(1)[0]
        try:
            first = task._draw_once(instance_rng)
        except UnplayableError:
            again += 1
            continue
        rate = first[1] if isinstance(first, tuple) else first.arrival_rate
        assert env.unwrapped.problem["arrival_rate"] == rate  # what can be played is played
    assert 0 < again < 12
    # The instance of a seed is one, whoever draws it.
    lanes = gym.make_vec(env_id, 2, **kwargs)
    lanes.reset(seed=10)
    assert lanes.unwrapped.get_attr("problem")[1] == env.unwrapped.problem  # type: ignore[attr-defined]
    gym.make(env_id, instance_seed=0, **kwargs).reset(seed=0)


def test_what_can_never_be_played_is_an_error_with_the_fix() -> None:
    draws = []

    def draw() -> None:
        draws.append(len(draws))
        raise UnplayableError("lower it")

    with pytest.raises(UnplayableError, match="lower it"):
        first_playable(draw)
    assert len(draws) == DRAWS
    env = gym.make("LLMQueue-v0", context_dim=1, assortment_size=1)  # p(x, S) <= 1 / (1 + 1 / e)
    with pytest.raises(ValueError, match="lower slack or the arrival_rate"):
        env.reset(seed=0)
