"""Text and pictures of LLMDeploy-v0: what was deployed, routed and paid is what is shown."""

import re

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the ids
from llmqueue_gym import canvas
from llmqueue_gym.deployment import picture as drawing
from llmqueue_gym.deployment.picture import MAX_COLUMNS, MAX_ROWS, DeployRenderer
from llmqueue_gym.deployment.rules import stage_schedule

SHORT = {"horizon": 90, "num_stages": 7}
SYNTHETIC = {"source": "synthetic", "num_llms": 3}
CASES = [
    SHORT,
    {"instance": "catalog", "horizon": 900, "num_stages": 9, "max_deployed": 8},
    SHORT | {"instance": SYNTHETIC, "max_deployed": 2, "alpha": 0.6},
    SHORT | {"retirements": [{"llm": "claude-v1", "query": 40}], "reward_delay": 5},
    {"horizon": 1000, "num_stages": 365},
]


def make(mode="ansi", name="LLMDeploy-v0", **kwargs):
    return gym.make(name, render_mode=mode, **kwargs)


def play(env, steps, seed=0):
    """Deploy and route at random; return per query the stage, the deployment and the LLM."""
    env.reset(seed=seed)
    rng, dynamics, past = np.random.default_rng(seed), env.unwrapped.dynamics, []
    n = dynamics.num_llms
    for _ in range(steps):
        stage = int(dynamics.stage[0])
        routable = np.flatnonzero(env.unwrapped.action_masks()[2 * n :])
        # A skewed choice, so that shares differ; some queries are refused.
        llm = rng.choice(routable) if rng.random() < 0.5 else routable[0]
        info = env.step(np.append(rng.random(n) < 0.3, llm).astype(np.int64))[-1]
        past.append((stage, dynamics.deployed[0].copy(), info["llm"]))
    return past


def rows_of(text):
    """Bars and numbers by row name."""
    found = re.finditer(r"^(\S.*?) +\|(.*)\|(.*)$", text, re.MULTILINE)
    return {row[1]: (row[2], row[3].split()) for row in found}


# ---------------------------------------------------------------------- names


def test_control_characters_in_names_are_replaced():
    names = ["maker/a\x1b[31m", "maker/b\n\u202ec", "maker/d\x00"]
    env = make(**SHORT, instance=SYNTHETIC, max_deployed=2)
    env.reset(seed=0)
    renderer = DeployRenderer(env.unwrapped.dynamics, names)
    assert all(line.isprintable() for line in renderer.text().split("\n"))
    assert "a\ufffd[31m" in renderer.text()
    assert renderer.picture().any()


# ----------------------------------------------------------------------- text


@pytest.mark.parametrize("kwargs", [CASES[0], CASES[2], CASES[3]])
@pytest.mark.parametrize("steps", [0, 1, 31, 90])
def test_text_shows_what_was_deployed_and_the_traffic(kwargs, steps):
    env = make(**kwargs)
    past = play(env, steps)
    dynamics, rows = env.unwrapped.dynamics, rows_of(env.render())
    arrival, starts = dynamics.arrival_query, [*dynamics.stage_starts, dynamics.horizon]
    known = [llm for llm in range(dynamics.num_llms) if arrival[llm] <= steps]
    assert len(rows) == len(known)
    top = max(dynamics.rules.alpha)
    for llm, (bars, numbers) in zip(known, rows.values(), strict=True):
        for stage in range(7):
            queries = [query for query in past if query[0] == stage]
            if any(deployed[llm] for _, deployed, _ in queries):
                share = sum(query[2] == llm for query in queries) / len(queries)
                level = min(int(np.ceil(share / top * 7)), 7)
                assert bars[stage] == canvas.BARS[level]
            else:
                until = min(steps, dynamics.retire_query[llm])
                there = arrival[llm] < starts[stage + 1] and starts[stage] < until
                assert bars[stage] == ("." if there else " ")
        count = sum(query[2] == llm for query in past)
        assert count == dynamics.count[0, llm]
        assert (numbers == ["-", "-", "-"]) == (count == 0)
        if count / max(steps, 1) > 0.005:
            assert numbers[0] == f"{count / steps:.0%}"


@pytest.mark.parametrize("steps", [0, 200, 899, 900])
def test_of_many_llms_the_deployed_and_the_most_used_have_rows(steps):
    env = make(**CASES[1])
    play(env, steps)
    dynamics, text = env.unwrapped.dynamics, env.render()
    rows = rows_of(text)
    released = int((dynamics.arrival_query <= steps).sum())
    more = [int(name[1:-5]) for name in rows if name.endswith(" more")]
    assert len(rows) == min(released, MAX_ROWS)
    assert len(rows) - len(more) + sum(more) == released
    assert (f"{88 - released} to come" in text) == (released < 88)
    shown, others = env.unwrapped._renderer._rows()
    assert dynamics.deployed[0].sum() == dynamics.deployed[0, shown].sum()
    if others:
        idle = [llm for llm in shown if not dynamics.deployed[0, llm]]
        assert dynamics.count[0, idle].min() >= dynamics.count[0, others].max()
        part = dynamics.count[0, others].sum() / steps
        expected = "<1%" if 0.0 < part < 0.005 else f"{part:.0%}"
        assert rows[f"+{more[0]} more"][1] == [expected]


def test_money_and_totals_are_those_of_the_episode():
    env = make(**SHORT, budget_per_query=6e-4)
    env.reset(seed=0)
    rewards, infos = [], []
    for _ in range(90):
        _, reward, *_, info = env.step([1, 0, 1] + [0] * 8 + [len(infos) % 3])
        rewards.append(reward)
        infos.append(info)
    text, spend = env.render(), infos[-1]["spend"]
    assert f"reward {np.mean(rewards):.3f}" in text
    assert f"ledger {np.mean([info['ledger_reward'] for info in infos]):.3f}" in text
    assert f"refused {sum(info['refused'] for info in infos)} " in text
    assert f"{spend / (6e-4 * 90):.0%} of the budget in 100% of the queries" in text
    over = [info["over_budget"] for info in infos].index(True)
    assert f"ledger exhausted at query {over + 1}\n" in text


def test_a_policy_reads_the_same_by_stage_and_by_query():
    # LLMs arrive when stages start, so neither sees one earlier.
    kwargs = {"horizon": 160, "num_stages": 8}
    stages, queries = make(name="LLMDeployStage-v0", **kwargs), make(**kwargs)
    stages.reset(seed=3)
    queries.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(8):
        action = rng.random(22).astype(np.float32)
        bits, shares = stages.unwrapped.plan(action.astype(np.float64))
        stages.step(action)
        for llm in stage_schedule(shares, 20):
            queries.step(np.append(bits, llm).astype(np.int64))
        assert stages.render() == queries.render()


def test_the_future_and_the_hidden_truth_are_not_shown():
    pytest.importorskip("pygame")
    env = make("rgb_array", horizon=800, num_stages=8)
    play(env, 300)
    renderer, dynamics = env.unwrapped._renderer, env.unwrapped.dynamics
    picture, text = renderer.picture(), renderer.text()
    for llm, name in enumerate(env.unwrapped.llms):
        assert (name.split("/")[-1] in text) == (dynamics.arrival_query[llm] <= 300)
    for hidden in (*dynamics._stream, *dynamics._truth):
        hidden[...] = 0
    assert (renderer.picture() == picture).all()
    assert renderer.text() == text


# -------------------------------------------------------------------- picture


@pytest.mark.parametrize("kwargs", CASES)
@pytest.mark.parametrize("switching_cost", [0.0, 1e9])
@pytest.mark.parametrize("long", [False, True])
def test_nothing_runs_off_the_picture(kwargs, switching_cost, long):
    pytest.importorskip("pygame")
    env = make("rgb_array", switching_cost=switching_cost, **kwargs)
    env.reset(seed=0)
    if long:
        names = [f"provider-{j}/a-model-with-a-rather-long-name-{j}b-instruct" for j in range(88)]
        dynamics = env.unwrapped.dynamics
        env.unwrapped._renderer = DeployRenderer(dynamics, names[: dynamics.num_llms])
    for steps in (0, 1, kwargs["horizon"] // 2, kwargs["horizon"]):
        play(env, steps)
        picture = env.render()
        assert picture.shape == (450, 800, 3)
        assert picture.dtype == np.uint8
        # The names end before the timeline, and it ends before the numbers.
        rows = slice(drawing._LEGEND_LINE + 12, drawing._ROWS_TOP + 30)
        assert (picture[rows, drawing._LEFT - 9 : drawing._LEFT - 3] == 255).all()
        assert (picture[rows, drawing._RIGHT + 3 : drawing._RIGHT + 9] == 255).all()
        picture[4:-4, 20:-20] = 255
        assert (picture == 255).all()  # a text that is cut off would leave ink on the border


@pytest.mark.parametrize("kwargs", CASES)
def test_boxes_are_coloured_by_traffic_share(kwargs):
    pytest.importorskip("pygame")
    env = make("rgb_array", **kwargs)
    horizon = kwargs["horizon"]
    past = play(env, horizon)
    picture, renderer, dynamics = env.render(), env.unwrapped._renderer, env.unwrapped.dynamics
    assert len(renderer._edges) - 1 <= MAX_COLUMNS
    shown, _ = renderer._rows()
    pitch = min(30, drawing._ROWS_HEIGHT / min(dynamics.num_llms, MAX_ROWS))
    group, seen = -(-kwargs["num_stages"] // MAX_COLUMNS), set()
    for column, (start, end) in enumerate(
        zip(renderer._edges[:-1], renderer._edges[1:], strict=True)
    ):
        queries = [query for query in past if query[0] // group == column]
        x = (drawing._LEFT + (drawing._RIGHT - drawing._LEFT) * (start + end) / 2 / horizon) - 0.5
        for row, llm in enumerate(shown):
            y = drawing._ROWS_TOP + (row + 0.5) * pitch - 8 + 3
            deployed = any(query[1][llm] for query in queries)
            share = sum(query[2] == llm for query in queries) / len(queries)
            expected = drawing._shade(share / max(dynamics.rules.alpha))
            colour = tuple(picture[int(y), int(x)].tolist())
            assert colour == (expected if deployed else (255, 255, 255))
            seen.add(deployed)
    assert seen == {False, True}


def test_shades_darken_with_the_share():
    lightness = [sum(drawing._shade(share)) for share in np.linspace(0.0, 1.0, 101)]
    assert (np.diff(lightness) < 0).all()
    assert drawing._shade(7.0) == drawing._shade(1.0)


def test_the_end_of_the_ledger_is_marked():
    pytest.importorskip("pygame")
    env = make("rgb_array", **SHORT, budget_per_query=6e-4)
    env.reset(seed=0)
    seen = set()
    for _ in range(90):
        *_, info = env.step([1, 0, 1] + [0] * 8 + [2])
        marked = (env.render().reshape(-1, 3) == canvas.RETRY).all(axis=1).any()
        assert marked == info["over_budget"]
        seen.add(info["over_budget"])
    assert seen == {False, True}


# ----------------------------------------------------------------------- rest


def test_names_keep_their_provider_only_where_they_need_it():
    assert drawing._without_provider(["a/x", "b/y"]) == ("x", "y")
    assert drawing._without_provider(["a/x", "b/x"]) == ("a/x", "b/x")
    assert len(canvas.short_name("n" * 90)) <= canvas.NAME_LETTERS


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_three_digits_are_short_and_true(number):
    text = drawing._three_digits(number)
    assert len(text) <= 10
    assert float(text.replace(",", "")) == pytest.approx(number, rel=0.05 if "e" in text else 5e-3)
