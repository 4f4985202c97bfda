import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import HumanRendering
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the ids
from llmqueue_gym import canvas as shapes
from llmqueue_gym.queueing import picture as drawing
from llmqueue_gym.queueing.picture import QueueRenderer
from llmqueue_gym.workloads.pool import printable

LONG = tuple(f"provider-{j}/a-model-with-a-rather-long-name-{j}b-instruct" for j in range(112))


def make(mode="ansi", **kwargs):
    return gym.make("LLMQueue-v0", render_mode=mode, **kwargs)


def play(env, steps, seed=0):
    """Serve a random waiting query with random LLMs; return the last observation, action, info."""
    observation, info = env.reset(seed=seed)
    rng, action = np.random.default_rng(seed), None
    for _ in range(steps):
        action = rng.integers(env.action_space.nvec)
        action[0] = rng.integers(max(1, int(observation["waiting"].sum())))
        observation, _, _, _, info = env.step(action)
    return observation, action, info


def tiles_of(text):
    return "".join(re.search(r"\[(.*?)\]", text, re.DOTALL).group(1).split())


# ---------------------------------------------------------------------- names


@example([" ", "\u202e"])
@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_names_are_shown_without_control_characters(names):
    env = gym.make("LLMQueue-v0", num_llms=2, assortment_size=2, arrival_rate=1.0)
    env.reset(seed=0)
    renderer = QueueRenderer(env.unwrapped.dynamics, names)
    for _ in range(2):
        renderer.record(0, [0, 1], env.step(np.array([0, 0, 1]))[-1])
    text = renderer.text()
    assert all(line.isprintable() for line in text.split("\n"))
    assert ", ".join(map(printable, names)) in text
    assert renderer.picture().shape == (shapes.HEIGHT, shapes.WIDTH, 3)


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8))
def test_letters_that_the_font_lacks_are_drawn_as_question_marks(name):
    canvas, plain = shapes.Canvas(), shapes.Canvas()
    lacking = {letter for letter in name if not canvas._has(letter)}
    shown = "".join("?" if letter in lacking else letter for letter in name)
    assert canvas.text(name, 10, 10) == plain.text(shown, 10, 10)
    np.testing.assert_array_equal(canvas.pixels(), plain.pixels())


def test_the_font_has_latin_and_cyrillic_and_no_chinese():
    canvas = shapes.Canvas()
    assert [canvas._has(letter) for letter in "aéя…数🎉\u202e"] == [True] * 4 + [False] * 3


# ----------------------------------------------------------------------- text


@pytest.mark.parametrize("window", [1, 32, 128])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_text_shows_the_window_and_balances_the_books(window, rate):
    env = make(window=window, arrival_rate=rate, num_llms=3)
    observation, _, info = play(env, 150)
    text = env.render()
    numbers = [int(n) for n in re.findall(r"\d+", text.splitlines()[0])]
    slot, length, arrivals, departures, retrials = numbers
    assert (slot, length) == (150, info["queue_length"])
    assert arrivals - departures == length  # nobody is lost
    assert 0 < departures + retrials <= slot
    waiting = observation["retrials"][observation["waiting"] == 1].astype(int)
    shown = "".join(str(count) if count <= 9 else "+" for count in waiting)
    assert tiles_of(text) == shown.ljust(window, ".")
    hidden = length - len(waiting)
    assert (f"+{hidden} in the backlog" in text) == (hidden > 0)


def test_text_tells_each_outcome_in_words():
    env = make(num_llms=4, arrival_rate=0.9, instance_seed=1)
    env.reset(seed=0)
    assert "no slot has run yet" in env.render()
    seen = set()
    for _ in range(200):
        before, last = env.unwrapped.dynamics.observe()["retrials"][0], env.render()
        assert last.endswith("\n")
        _, _, _, _, info = env.step([0, 2, 1])
        words = env.render().splitlines()[-2]
        assert words.endswith("; a query arrived") == info["arrived"]
        if not info["served"]:
            assert "slot 0 was empty, nobody was served" in words
        else:
            assert f"served slot 0 ({int(before[0])} earlier retrial" in words
            assert "with llm-2, llm-1: the user" in words
            kept = f"the user kept llm-{info['kept_llm']}"
            assert (kept if info["departed"] else "the user retried") in words
        seen.add((info["served"], info["departed"]))
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_repeated_llm_is_named_once():
    env = make(assortment_size=3, arrival_rate=1.0)
    env.reset(seed=0)
    env.step([0, 1, 1, 1])
    env.step([0, 1, 4, 1])
    assert "with llm-1, llm-4:" in env.render()


def test_sparkline_follows_the_queue_length():
    env = make(arrival_rate=1.0)
    env.reset(seed=0)
    lengths = [0] + [env.step([31, 0, 0])[4]["queue_length"] for _ in range(20)]  # serves nobody
    line = env.render().splitlines()[-1]
    bars = line.split()[1]
    assert len(bars) == len(lengths)
    assert list(bars) == sorted(bars)
    assert (bars[0], bars[-1]) == ("▁", "█")
    assert "(0 to 20," in line


# -------------------------------------------------------------------- picture


@pytest.mark.parametrize("window", [1, 5, 32, 63, 128, 1000])
@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("length", [0, 10**6])
def test_nothing_runs_off_the_picture(window, size, length):
    pytest.importorskip("pygame")
    env = make(window=window, assortment_size=size, num_llms=112, arrival_rate=1.0)
    env.reset(seed=0)
    renderer = QueueRenderer(env.unwrapped.dynamics, LONG)
    for slot in [0, 0, 0, window - 1]:
        action = [slot, *range(100, 100 + size)]
        *_, info = env.step(action)
        renderer.record(slot, action[1:], {**info, "queue_length": length or info["queue_length"]})
    picture = renderer.picture()
    assert picture.shape == (shapes.HEIGHT, shapes.WIDTH, 3)
    assert picture.dtype == np.uint8
    assert (picture != 255).any()
    picture[4:-4, 4:-4] = 255
    assert (picture == 255).all()  # a text that is cut off would leave ink on the border


@pytest.mark.parametrize("window", [1, 32, 128])
def test_tiles_are_coloured_by_retrials(window):
    pytest.importorskip("pygame")
    env = make("rgb_array", window=window, num_llms=3, arrival_rate=0.9)
    observation, _, info = play(env, 200, seed=2)
    picture, grid = env.render(), drawing._Grid(window)
    for slot in range(window):
        x, y, size, _ = grid.box(slot)
        colour = tuple(picture[y + 4, x + size // 2])  # inside the frame, above the digit
        retrials = min(int(observation["retrials"][slot]), 3)
        waiting = observation["waiting"][slot]
        assert colour == (shapes.RETRIALS[retrials] if waiting else shapes.PAPER)
    assert len(set(shapes.RETRIALS)) == 4
    assert info["queue_length"] > 0


def test_the_users_choice_has_the_colour_of_the_outcome():
    pytest.importorskip("pygame")
    env = make("rgb_array", arrival_rate=0.9)
    env.reset(seed=0)
    seen = set()
    for _ in range(60):
        *_, info = env.step([0, 0, 1])
        top = drawing._CHIPS_TOP
        chips = env.render()[top : top + shapes.CHIP_HEIGHT].reshape(-1, 3)
        assert (chips == shapes.KEPT).all(axis=1).any() == info["departed"]
        assert (chips == shapes.RETRY).all(axis=1).any() == info["retried"]
        seen.add((info["served"], info["departed"]))
    assert seen == {(False, False), (True, False), (True, True)}


def test_the_hidden_truth_is_not_drawn():
    pytest.importorskip("pygame")
    env = make("rgb_array", arrival_rate=0.9)
    play(env, 50)
    renderer, dynamics = env.unwrapped._renderer, env.unwrapped.dynamics
    picture, text = renderer.picture(), renderer.text()
    for name in ("odds", "best_rate", "best_llms", "contexts", "arrival_rate", "capacity"):
        getattr(dynamics, name)[...] = 0
    assert (renderer.picture() == picture).all()
    assert renderer.text() == text


def test_human_rendering_shows_the_pictures(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = HumanRendering(make("rgb_array"))
    env.reset(seed=0)
    env.step(np.array([0, 0, 1]))
    shown = pygame.surfarray.array3d(env.window).transpose(1, 0, 2)
    assert (shown == env.env.render()).all()
    env.close()


def test_pictures_survive_another_window_that_closes():
    pygame = pytest.importorskip("pygame")
    env = make("rgb_array")
    env.reset(seed=0)
    before = env.render()
    pygame.quit()  # HumanRendering.close does this
    assert (env.render() == before).all()


def test_missing_pygame_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = make("rgb_array")
    env.reset(seed=0)
    with pytest.raises(DependencyNotInstalled, match=r'pip install "llmqueue_gym\[render\]"'):
        env.render()
    text = make("ansi")
    text.reset(seed=0)
    assert text.render().startswith("slot 0 ")


@pytest.mark.parametrize("highest", [0, 1, 4, 5, 17, 633, 99_999])
def test_axis_holds_the_trace_and_halves_evenly(highest):
    top = shapes._axis_top(highest)
    assert top >= highest
    assert top % 2 == 0
    assert top == 4 or top <= 2.5 * highest
