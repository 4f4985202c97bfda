"""The speed bench: rounds take turns, its guard fails below half, its figures come out."""

import json

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.measure import speed
from benchmarks.measure.agents import agent_speed
from benchmarks.measure.environments import (
    Runner,
    cartpole_ratios,
    environment_speed,
    growth_speed,
    median_ratio,
    take_turns,
)
from benchmarks.measure.speed import comparison, guard, read_baseline, slowdowns, write_baseline
from benchmarks.run.runner import provenance
from llmqueue_gym.errors import UsageError


def test_agents_are_timed():
    figures = agent_speed(100)
    assert len(figures) == 9
    assert all(value == pytest.approx(value) and value > 0 for value in figures.values())


def test_every_line_says_what_it_was_and_what_is_aimed_at(monkeypatch):
    now = {name: 1.0 for name in speed.TARGETS} | {"other": 2000.0}
    header, first, *_, last = comparison(now, {speed.SCALAR: 0.5, "gone": 1.0})
    assert header[1:] == ["before", "now", "target"]
    assert first == [speed.SCALAR, "0.50", "1.00", ">= 0.55"]
    assert last == ["other", "", "2,000", ""]
    monkeypatch.setattr("benchmarks.measure.agents._play_planned", lambda *_: ([1, 3], 9.0))
    cells = speed.cell_speed()
    assert cells["StageRoute median us"] == 0.002
    assert cells["a step of a queueing cell beside its agent, us"] == 9.0
    lanes = {name for name in environment_speed(0.01, lanes=2) if "x2" in name}
    measured = {name.replace("x2", "x1024") for name in lanes} | {speed.SCALAR}
    measured |= agent_speed(100).keys() | speed.cell_speed().keys()
    assert speed.TARGETS.keys() <= measured


def test_one_size_of_the_environment_is_varied_at_a_time(monkeypatch):
    monkeypatch.setattr("benchmarks.measure.environments.USUAL", {"B": 4, "W": 3, "N": 5, "d": 5})
    monkeypatch.setattr("benchmarks.measure.environments.VARIED", {"B": (2,), "d": (6,)})
    grown = growth_speed(0.01)
    sizes = ["B=4, W=3, N=5, d=5", "B=2, W=3, N=5, d=5", "B=4, W=3, N=5, d=6"]
    assert list(grown) == [f"a lane and step, {size}, us" for size in sizes]
    assert min(grown.values()) > 0


def test_the_table_stands_between_the_marks_of_the_page():
    text = "before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n"
    written = speed.page(text, comparison({"a": 2.0}, {"a": 1.0}), provenance("python -m x"))
    assert "| a | 1.00 | 2.00 |  |" in written
    assert "`python -m x` at commit" in written
    assert "old" not in written
    assert written.startswith("before")
    assert written.endswith("after\n")


def test_a_commit_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"--before 'nonsense' cannot be measured: .*nonsense"):
        speed.figures_before("nonsense", 0.01, 100)


class FakeClock:
    """A clock that advances by a fixed price at every step of an environment."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Priced(gym.Env):
    """An environment whose step costs ``price`` seconds and whose episodes last three steps."""

    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, clock, price):
        self.clock, self.price, self.steps, self.resets = clock, price, 0, 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return 0, {}

    def step(self, action):
        self.clock.now += self.price
        self.steps += 1
        return 0, 0.0, self.steps % 3 == 0, False, {}


def test_rounds_take_turns_and_ratios_are_taken_within_a_round():
    clock = FakeClock()
    envs = {"slow": Priced(clock, 0.02), "fast": Priced(clock, 0.005)}
    runners = {name: Runner(env, clock) for name, env in envs.items()}
    speeds = take_turns(runners, seconds=3.0, rounds=3)
    assert {name: len(values) for name, values in speeds.items()} == {"slow": 3, "fast": 3}
    assert speeds["slow"] == pytest.approx([50.0] * 3)
    assert median_ratio(speeds["fast"], speeds["slow"]) == pytest.approx(4.0)
    assert envs["slow"].resets == 1 + envs["slow"].steps // 3
    # The machine is three times slower in one round: the ratio does not see it.
    assert median_ratio([100.0, 30.0, 100.0], [50.0, 15.0, 50.0]) == 2.0


def test_a_vector_environments_resets_are_no_steps():
    clock = FakeClock()

    class Lanes(gym.vector.VectorEnv):
        num_envs = 4
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return 0, {}

        def step(self, actions):
            clock.now += 1.0
            ended = np.array([True, False, False, True])
            return 0, 0, ended, np.zeros(4, dtype=bool), {}

    runner = Runner(Lanes(), clock)
    assert runner.run(2.5) == pytest.approx((4 + 2 + 2) / 3)


def test_the_guard_fails_below_half_only(tmp_path, monkeypatch, capsys):
    path = tmp_path / "baseline.json"
    write_baseline(path, {"scalar": 0.5, "vector": 0.2}, "a command")
    assert read_baseline(path) == {"scalar": 0.5, "vector": 0.2}
    assert json.loads(path.read_text())["provenance"]["command"] == "a command"
    assert slowdowns(read_baseline(path), {"scalar": 0.25, "vector": 9.0}) == []
    for measured, code in (
        ({"scalar": 0.26, "vector": 0.11}, 0),
        ({"scalar": 0.26, "vector": 0.09}, 1),
        ({"scalar": float("nan"), "vector": 0.2}, 1),
        ({"scalar": 0.26}, 2),
    ):
        monkeypatch.setattr(speed, "cartpole_ratios", lambda seconds, figures=measured: figures)
        assert guard(path, 0.1) == code
    assert "vector: 0.090 is below half of 0.200" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", '{"ratios": {}}', '{"ratios": {"a": 0}}', "[1]"])
def test_a_damaged_baseline_is_named_with_the_fix(tmp_path, text, capsys):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    assert guard(path, 0.1) == 2
    assert "--write-baseline" in capsys.readouterr().err
    with pytest.raises(ValueError, match="baseline"):
        read_baseline(tmp_path / "missing.json")


def test_the_committed_baseline_names_what_is_measured():
    baseline = read_baseline(speed.Path(speed.__file__).with_name("speed_baseline.json"))
    assert slowdowns(baseline, baseline) == []
    assert baseline.keys() == cartpole_ratios(0.01, lanes=2).keys()
