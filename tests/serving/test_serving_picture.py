"""Text and pictures of LLMServe-v0: what replicas serve and who waits is what is shown."""

import re

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments

ODD = "maker/\x1b[31m" + "long-name-" * 9


def play(env, steps):
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    for _ in range(steps):
        parts = np.split(info["action_mask"], np.cumsum(env.action_space.nvec)[:-1])
        observation, *_, info = env.step(env.action_space.sample(mask=tuple(parts)))
    return observation, info


def test_the_text_says_what_is_observed():
    env = gym.make("LLMServe-v0", preset="autoscale", render_mode="ansi", impatience=0.005)
    observation, info = play(env, 730)
    text = env.render()
    rows = re.findall(r"^(\S+) +(empty|loading|serving|draining) *(\d*) +\[(.*)\]$", text, re.M)
    assert len(rows) == 4
    names = [*env.unwrapped.llms, "-"]
    for r, (name, phase, left, places) in enumerate(rows):
        hosted = observation["hosts"][r]
        assert name == names[hosted.argmax() if hosted.any() else -1]
        assert (
            phase == ("empty", "loading", "serving", "draining")[observation["phase"][r].argmax()]
        )
        assert int(left or 0) == observation["loading_left"][r]
        assert len(places) == 4
        assert len(places.rstrip(".")) == observation["active"][r]
    assert f"waiting {info['queue_length']}  in service {info['in_service']}" in text
    head = re.search(r"^head \[(.*)\]", text, re.M)[1]
    shown = int(observation["waiting"].sum())
    assert head == "".join(f"{int(n)}" for n in observation["retrials"][:shown]).ljust(32, ".")
    assert f"next update: {-730 % 100} slots" in text


@pytest.mark.parametrize(
    "kwargs",
    [
        {"preset": "tiny-pair"},
        {"preset": "autoscale"},
        {
            "llms": [ODD, "b"],
            "replicas": [
                {"gpu": "H100", "hosts": ODD, "places": 256},
                {"gpu": "A10G", "hosts": "b", "places": 3, "count": 11},
            ],
            "arrival_rate": 1.0,
            "window": 70,
            "slot_seconds": 1.0,
        },
    ],
)
def test_pictures_fit_and_change_and_names_are_harmless(kwargs):
    pytest.importorskip("pygame", reason="needs the render extra")
    env = gym.make("LLMServe-v0", render_mode="rgb_array", **kwargs)
    env.reset(seed=0)
    first = env.render()
    play(env, 150)
    later = env.render()
    assert first.shape == later.shape == (450, 800, 3)
    assert (first != later).any()
    for edge in (later[0], later[-1], later[:, 0], later[:, -1]):
        assert (edge == 255).all()
    text = gym.make("LLMServe-v0", render_mode="ansi", **kwargs)
    play(text, 150)
    assert "\x1b" not in text.render()
    assert max(map(len, text.render().splitlines())) < 110


def test_lane_0_of_the_vector_environment_is_drawn_as_the_scalar_one():
    env = gym.make("LLMServe-v0", render_mode="ansi", window=4)
    lanes = gym.make_vec("LLMServe-v0", 2, render_mode="ansi", window=4)
    env.reset(seed=5)
    lanes.reset(seed=5)
    lanes.action_space.seed(0)
    for _ in range(50):
        actions = lanes.action_space.sample()
        env.step(actions[0])
        lanes.step(actions)
    assert lanes.render() == (env.render(), "")
