"""Saved agents play on bit for bit; files that are damaged or not theirs meet one clear error."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import DeployProblem, QueueProblem, load_agent, make_agent, registered_agents
from baselines.interface import Agent, ServeProblem
from baselines.queueing.heuristics import RandomAgent
from llmqueue_gym.errors import UsageError
from llmqueue_gym.state import HEADER, read_state, write_state
from llmqueue_gym.workloads.pool import OfflineData

AGENTS = [spec for spec in registered_agents() if ".rl." not in spec.target]
FAST: dict[str, dict[str, Any]] = {
    "ACQB-CL": {"epochs": 0, "hidden": 4},
    "offline-boosting": {"trees": 2},
    "value-iteration": {"first": 20, "growth": 9.0},
    "known-value-iteration": {"first": 20, "growth": 9.0},
}


def made(name: str, kind: str) -> tuple[Any, Any]:
    """Return an environment and the problem of an agent."""
    rng = np.random.default_rng(0)
    env: Any
    if kind == "queueing":
        env = gym.make("LLMQueue-v0", num_llms=4, context_dim=6, load=0.8)
        env.reset(seed=0)
        offline = OfflineData(rng.normal(size=(60, 6)).astype(np.float32), rng.normal(size=(60, 4)))
        public = QueueProblem(**env.unwrapped.problem, horizon=300, offline=offline)
        return env, replace(public, truth=env.unwrapped.dynamics.odds[:-1].copy())
    if kind == "deployment":
        env = gym.make("LLMDeploy-v0", disable_env_checker=True)
        env.reset(seed=0)
        open_, truth = DeployProblem(**env.unwrapped.problem), env.unwrapped.dynamics.instance()
        return env, replace(open_, context_dim=2, truth=truth)
    small = name.endswith("value-iteration")
    fleet = {} if small else {"update_every": 20, "loading": 5}
    env = gym.make("LLMServe-v0", preset="tiny-pair" if small else "autoscale", **fleet)
    env.reset(seed=0)
    truth = env.unwrapped.dynamics.instances[0]
    return env, ServeProblem(**env.unwrapped.problem, horizon=300, truth=truth)


class Play:
    """A run that goes on where it stopped, with as many agents as act alike."""

    def __init__(self, env: Any, kind: str) -> None:
        self.env, self.deployment = env, kind == "deployment"
        self.rng = np.random.default_rng(1)
        self.seen = self._with_context(env.reset(seed=0)[0])

    def _with_context(self, seen: Any) -> Any:
        return {**seen, "context": self.rng.random(2)} if self.deployment else seen

    def on(self, steps: int, *agents: Agent) -> None:
        for _ in range(steps):
            action, *others = (agent.act(self.seen) for agent in agents)
            for other in others:
                np.testing.assert_array_equal(action, other)
            following, reward, _, _, info = self.env.step(action)
            following = self._with_context(following)
            for agent in agents:
                agent.update(self.seen, action, float(reward), following, info)
            self.seen = following


@pytest.mark.parametrize("name", [spec.name for spec in AGENTS])
def test_a_saved_agent_plays_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    kind = next(spec.load().kind for spec in AGENTS if spec.name == name)
    env, problem = made(name, kind)
    try:
        agent = make_agent(name, problem, 3, **FAST.get(name, {}))
    except ImportError as error:
        pytest.skip(str(error))
    play = Play(env, kind)
    play.on(50, agent)
    path = tmp_path / "agent.zip"
    agent.save(path)
    again = load_agent(path, problem)
    play.on(50, agent, again)
    agent.save(path)
    again.save(tmp_path / "again.zip")
    assert path.read_bytes() == (tmp_path / "again.zip").read_bytes()  # all that is kept is equal


def test_a_router_of_another_package_remembers_what_is_not_judged_yet(tmp_path: Path) -> None:
    pytest.importorskip("pareto_bandit")
    env: Any = gym.make("LLMQueue-v0", num_llms=4, context_dim=6, load=0.8, feedback={"delay": 3})
    env.reset(seed=0)
    problem = QueueProblem(**env.unwrapped.problem, horizon=300)
    agent: Any = make_agent("paretobandit", problem, 3, prices=[1.0, 2.0, 4.0, 8.0])
    play = Play(env, "queueing")
    play.on(60, agent)
    while not agent._requests:
        play.on(1, agent)
    agent.save(tmp_path / "agent.zip")
    again: Any = load_agent(tmp_path / "agent.zip", problem)
    play.on(60, agent, again)
    for name, matrix in agent._router.bandit.A.items():
        np.testing.assert_array_equal(matrix, again._router.bandit.A[name])
        assert matrix.trace() > 7.0


def test_a_router_that_paces_a_budget_remembers_what_is_not_rated_yet(tmp_path: Path) -> None:
    pytest.importorskip("pareto_bandit")
    env: Any = gym.make("LLMDeploy-v0", reward_delay=30, disable_env_checker=True)
    env.reset(seed=0)
    problem = replace(DeployProblem(**env.unwrapped.problem), context_dim=2)
    agent: Any = make_agent("paretobandit-router", problem, 3)
    play = Play(env, "deployment")
    play.on(60, agent)
    assert len(agent._logs) == 30
    agent.save(tmp_path / "agent.zip")
    again: Any = load_agent(tmp_path / "agent.zip", problem)
    play.on(60, agent, again)
    assert again._router.budget_pacer.n_observations == 90
    for name, matrix in agent._router.bandit.A.items():
        np.testing.assert_array_equal(matrix, again._router.bandit.A[name])


class Odd(Agent):
    """Holds one of everything that can be kept, some of it twice."""

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        shared = np.arange(6.0).reshape(2, 3)
        self.things = [shared, shared.T, np.float32(0.1), -0.0, float("inf"), 2**90, b"\x00\xff"]
        self.twice = {"a": shared, (1, None): [True, {3, 4}, frozenset({5}), np.array([], "i2")]}
        self.twice["self"] = [self.twice]
        self.generators = [
            np.random.Generator(kind(7))
            for kind in (np.random.MT19937, np.random.Philox, np.random.SFC64)
        ]

    def act(self, observation: Any) -> Any:
        """Draw."""
        drawn = [rng.normal() for rng in (self.rng, *self.generators)]
        return np.array([*drawn, *(child.random() for child in self.rng.spawn(2))])


def test_every_kind_of_content_comes_back_as_it_was(tmp_path: Path) -> None:
    agent = Odd(QueueProblem(2, 1, 3, 4, 0.5, 10), 0)
    agent.act({})
    agent.save(tmp_path / "odd")
    with pytest.raises(UsageError, match=r"names the class .*packages=\['"):
        load_agent(tmp_path / "odd")
    again: Any = load_agent(tmp_path / "odd", packages=[__name__.partition(".")[0]])
    np.testing.assert_array_equal(agent.act({}), again.act({}))
    for own, other in zip(agent.things, again.things, strict=True):
        assert type(own) is type(other)
        np.testing.assert_array_equal(own, other)
    assert again.things[1].flags.f_contiguous
    assert str(again.things[3]) == "-0.0"
    assert again.twice["a"] is again.things[0]
    assert again.twice["self"][0] is again.twice
    kept: Any = again.twice[1, None]
    assert kept[:3] == [True, {3, 4}, frozenset({5})]
    assert kept[3].dtype == np.int16


def test_what_cannot_be_kept_is_named_by_its_place(tmp_path: Path) -> None:
    agent: Any = RandomAgent(QueueProblem(2, 1, 3, 4, 0.5, 10), 0)
    for thing, kind in (
        (iter([]), "iterator"),
        (lambda: 0, "function"),
        (np.array(["a"]), "array"),
    ):
        agent.inner = {"x": [0, thing]}
        with pytest.raises(UsageError, match=rf"^agent\.inner\['x'\]\[1\] is a .*{kind}.* cannot"):
            agent.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    agent.inner = 0
    with pytest.raises(UsageError, match="cannot be written"):
        agent.save(tmp_path / "nowhere" / "a")


def test_a_file_of_another_kind_shape_or_version_is_refused(tmp_path: Path) -> None:
    path, problem = tmp_path / "a", QueueProblem(2, 1, 3, 4, 0.5, 10)
    RandomAgent(problem, 0).save(path)
    with pytest.raises(UsageError, match="no such file"):
        load_agent(tmp_path / "b")
    with pytest.raises(UsageError, match=r"made for {'num_llms': 2}, the problem has {'num_llms'"):
        load_agent(path, replace(problem, num_llms=5))
    assert load_agent(path, replace(problem, horizon=77)).problem == problem
    with pytest.raises(UsageError, match="plays queueing tasks, not deployment"):
        load_agent(path, DeployProblem(2, 2, 9, 1, 0.5, (1.0, 1.0), 0.1, 1.0))
    write_state(path, {"a": 1}, "agent")
    with pytest.raises(UsageError, match="dict, which is no agent"):
        load_agent(path)
    write_state(path, {"a": 1}, "pipeline")
    with pytest.raises(UsageError, match="a saved pipeline, not a saved agent"):
        load_agent(path)
    for header, words in (({"version": "9"}, "saved by llmqueue_gym 9"), ({"format": 0}, "format")):
        path.write_bytes(changed(AGENT, lambda found, header=header: {**found, **header}))
        with pytest.raises(UsageError, match=words):
            load_agent(path)


def changed(content: bytes, change: Any) -> bytes:
    """Return a saved file with another header."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files[HEADER] = json.dumps(change(json.loads(files[HEADER]))).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    return out.getvalue()


def saved(tmp: Path) -> bytes:
    """Return the bytes of an agent that has learned a little."""
    env, problem = made("ACQB", "queueing")
    agent = make_agent("ACQB", problem, 0)
    Play(env, "queueing").on(30, agent)
    agent.save(tmp)
    return tmp.read_bytes()


@pytest.fixture(scope="module", autouse=True)
def _one_saved(tmp_path_factory: pytest.TempPathFactory) -> None:
    global AGENT, DRAFT, PROBLEM
    DRAFT = tmp_path_factory.mktemp("saved") / "draft"
    AGENT, PROBLEM = saved(DRAFT), made("ACQB", "queueing")[1]


AGENT, DRAFT = b"", Path()
PROBLEM: Any = None


def survives(content: bytes) -> None:
    """Whatever a file holds, reading it gives an agent or the one error."""
    DRAFT.write_bytes(content)
    try:
        found: Any = load_agent(DRAFT, PROBLEM)
    except UsageError as error:
        found = error
    assert isinstance(found, Agent) or str(found).startswith(f"path={str(DRAFT)!r}")


@given(st.integers(0, 10**9), st.integers(0, 255), st.booleans())
def test_a_damaged_file_meets_one_error(place: int, byte: int, cut: bool) -> None:
    at = place % len(AGENT)
    survives(AGENT[:at] if cut else AGENT[:at] + bytes([byte]) + AGENT[at + 1 :])


JUNK = st.recursive(
    st.none()
    | st.integers(-2, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", "__class__", "PCG64", "f8", "<f8", "O", "C", "baselines.interface:Agent"]
    ),
    lambda nodes: st.tuples(
        st.sampled_from(
            ["list", "tuple", "dict", "array", "object", "named", "again", "generator"]
        ),
        nodes,
        nodes,
    ).map(list),
    max_leaves=6,
)


@given(st.integers(0, 10**9), JUNK)
def test_a_header_with_other_nodes_meets_one_error(number: int, junk: Any) -> None:
    def nodes(found: Any) -> list[tuple[Any, Any]]:
        inner = found.items() if isinstance(found, dict) else enumerate(found)
        pairs = [(found, key) for key, _ in inner]
        below = [value for value in (found[key] for _, key in pairs) if type(value) in (list, dict)]
        return pairs + [pair for value in below for pair in nodes(value)]

    def change(header: Any) -> Any:
        pairs = nodes(header)
        owner, key = pairs[number % len(pairs)]
        owner[key] = junk
        return header

    survives(changed(AGENT, change))


@pytest.mark.parametrize("gone", ["context_dim", "num_llms", None])
def test_an_agent_without_its_problem_or_a_part_of_it_is_refused(gone: str | None) -> None:
    def without(header: Any) -> Any:
        state = header["root"][2]
        if gone is None:
            del state["problem"]
        else:
            del state["problem"][2][gone]
        return header

    DRAFT.write_bytes(changed(AGENT, without))
    with pytest.raises(UsageError, match=r"made for|no problem"):
        load_agent(DRAFT, PROBLEM)


def test_sizes_are_checked_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmqueue_gym.state.MAX_UNPACKED", len(AGENT) // 2)
    DRAFT.write_bytes(AGENT)
    with pytest.raises(UsageError, match="unpacks to more than"):
        read_state(DRAFT, "agent")


def test_arrays_of_objects_are_never_unpickled() -> None:
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    out = io.BytesIO(AGENT)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("O.npy", pickled.getvalue())
    DRAFT.write_bytes(out.getvalue())
    with pytest.raises(UsageError, match="no row of numbers"):
        load_agent(DRAFT)
