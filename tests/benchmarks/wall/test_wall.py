"""Behind the wall an agent plays as it does in the judge's process, and is given bytes only."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from made_up import board_of, cells_of, queue_cell

from baselines.interface import DeployProblem, QueueProblem
from benchmarks.commands.verify import verify
from benchmarks.plan.agent_files import find_module
from benchmarks.plan.cells import make_plan
from benchmarks.plan.players import is_walled
from benchmarks.plan.suite import parse_suite
from benchmarks.report import board_markdown
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.runner import agent_seed
from benchmarks.run.store import Store
from benchmarks.score.export import ExportedRun, export_run
from benchmarks.wall import fence, wire
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import OfflineData

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the wall needs POSIX processes")

SUITE = {
    "seeds": 1,
    "agents": ["ACQB", "StageRoute", "c-mu"],
    "task": [
        {"name": "queue", "env": "LLMQueue-v0", "horizon": 300, "kwargs": {"load": 0.8}},
        {"name": "deploy", "env": "LLMDeploy-v0", "horizon": 300, "kwargs": {}},
        {"name": "serve", "env": "LLMServe-v0", "horizon": 150, "kwargs": {}},
    ],
}
COMPARED = ("metrics", "curve", "llms", "traffic")


def test_agents_of_all_problems_play_bit_for_bit_as_without_the_wall_and_verify_says_so(tmp_path):
    """The references `random` are among them; the oracles know the truth and stay inside."""
    plan, store = make_plan(parse_suite("s", SUITE), trust=False), Store(tmp_path)
    assert execute(plan, store, LocalEngine(2), {"command": "test"}).failed == 0
    apart = [cell for cell in plan.cells if cell.walled]
    assert len(apart) == 6
    assert {c.spec["agent"]["name"] for c in plan.cells} - {
        c.spec["agent"]["name"] for c in apart
    } == {"oracle"}
    stored = {cell.key: store.load(cell.key) for cell in apart}
    seeds = {key: record["wall"]["agent_seed"] for key, record in stored.items()}
    assert len({*seeds.values(), agent_seed(0)}) == len(apart) + 1
    inside = [replace(cell, walled=False, agent_seed=seeds[cell.key]) for cell in apart]
    for outcome in LocalEngine(2).run(inside):
        record = stored[outcome.cell.key]
        assert "wall" not in outcome.payload
        assert [outcome.payload.get(part) for part in COMPARED] == [record.get(p) for p in COMPARED]
    export_run(store, tmp_path / "run.json.gz")
    exported = ExportedRun(tmp_path / "run.json.gz")
    assert {key: exported.load(key)["wall"] for key in stored} == {
        key: record["wall"] for key, record in stored.items()
    }
    checked = verify(exported, sample=len(plan.cells), engine=LocalEngine(2))
    assert checked.verified
    assert checked.candidates == len(plan.cells)


def test_a_result_from_inside_is_computed_again_where_the_wall_is_asked_for(tmp_path):
    suite = parse_suite("s", {**SUITE, "agents": [], "task": SUITE["task"][:1]})
    store, engine, notes = Store(tmp_path), LocalEngine(1), []
    inside, apart = (make_plan(suite, trust=trust) for trust in (True, False))
    assert [c.key for c in inside.cells] == [c.key for c in apart.cells]
    execute(inside, store, engine, {"command": "test"})
    tally = execute(apart, store, engine, {"command": "test"}, on_note=notes.append)
    assert (tally.computed, tally.reused) == (1, 1)
    assert "was not played behind the wall" in notes[0]
    assert execute(inside, store, engine, {"command": "test"}).reused == 2


@pytest.mark.parametrize(
    ("identity", "by_default", "wanted"),
    [
        ({"name": "oracle"}, False, False),
        ({"name": "known-c-mu"}, False, False),
        ({"name": "greedy"}, False, True),
        ({"name": "mine:Agent", "code": "0" * 64}, True, True),
        ({"name": "m.zip", "training": {"sha256": ""}}, True, True),
        ({"name": "known-mine:Agent", "code": "0" * 64}, True, True),
        ({"name": "known-entry-point", "code": "0" * 64}, True, True),
        ({"name": "known-model", "training": {"sha256": ""}}, True, True),
        ({"name": "PPO", "training": {"key": "", "sha256": ""}}, False, True),
    ],
)
def test_who_plays_behind_the_wall(identity, by_default, wanted):
    found = [is_walled(identity, trust) for trust in (None, False, True)]
    assert found == [by_default, wanted, False]


def test_only_agents_of_this_project_are_told_the_truth_whatever_others_call_theirs(
    tmp_path, monkeypatch
):
    """A module may have any file name: `known-` at its beginning is no pass through the wall."""
    code = MODULE_THAT_TELLS.format(base="from baselines.interface import Agent")
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "known-mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "agents"))
    suite = parse_suite("s", {**SUITE, "agents": ["known-mine:Teller"], "task": SUITE["task"][:1]})
    plan, store = make_plan(suite), Store(tmp_path / "results")
    own = [cell for cell in plan.cells if ":" in cell.spec["agent"]["name"]]
    assert own
    assert all(cell.walled for cell in own)
    execute(plan, store, LocalEngine(1), {"command": "test"})
    for cell in own:
        assert "told: None" in store.load_failure(cell.key)["error"]


MODULE_THAT_TELLS = """
{base}

class Teller(Agent):
    def act(self, observation):
        raise RuntimeError(f"told: {{self.problem.truth}}")

    def update(self, *parts):
        pass
"""


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"wall": {"isolation": "namespaces", "agent_seed": 7}}, "In a process apart (namespaces)"),
        ({}, "Trusted, in one process with the truth"),
    ],
)
def test_a_report_says_who_played_behind_the_wall(part, words):
    cells = cells_of(queue_cell, {"oracle": [1.0, 1.1], "random": [90.0, 91.0], "mine": [5.0, 6.0]})
    for cell in cells[-2:]:
        cell["spec"]["agent"]["code"] = "0" * 64
        cell.update(part)
    assert f"{words}: mine." in board_markdown(board_of(cells))


# --- what goes through it -------------------------------------------------------------------------


def test_problems_go_through_with_the_same_bits():
    offline = OfflineData(np.ones((3, 2), np.float32), np.full((3, 4), 0.1))
    queue = QueueProblem(4, 1, 2, 8, 0.1 + 0.2, 10, offline)
    deploy = DeployProblem(2, 1, 9, 3, 0.1, (0.5, 1 / 3), 0.0, float("inf"))
    for problem in (queue, deploy, {"a": [1, (2.5, None)], "b": np.int64(3)}):
        found = wire.unpack(wire.pack(problem))
        assert type(found) is type(problem)
        assert found == problem
    found = wire.unpack(wire.pack(queue)).offline
    assert found.contexts.dtype == np.float32
    np.testing.assert_array_equal(found.utilities, offline.utilities)
    assert found.utilities.flags.writeable


@pytest.mark.parametrize("value", [object(), {"env": sys}, np.array([None])])
def test_what_is_neither_plain_nor_an_array_does_not_go_through(value):
    with pytest.raises(TypeError, match="cannot be handed to an agent"):
        wire.pack(value)


def test_a_block_holds_every_array_at_a_place_of_its_own():
    parts = [("a", "<f4", (3, 2)), ("b", "|i1", (5,)), ("c", "<f8", ())]
    memory = bytearray(64)
    blocks = [wire.Block(memory, parts[:2], parts[2:]) for _ in ("judge's", "agent's")]
    views, seen = ([b.reward, *(view for _, view in b.observation + b.info)] for b in blocks)
    assert [(v.dtype.str, v.shape) for v in views[1:]] == [(d, s) for _, d, s in parts]
    for number, view in enumerate(views):
        view[...] = number + 1
    assert [sorted(set(view.flat)) for view in seen] == [[1], [2], [3], [4]]
    assert wire.parts_of(np.zeros(2)) == [("", "<f8", (2,))]
    with pytest.raises(UsageError, match="80 bytes does not fit into the 64"):
        wire.Block(memory, [("a", "<f8", (9,))], [])


def test_a_module_is_found_and_nothing_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud/__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "loud/agents.py").write_text("")
    assert find_module("loud.agents").origin == str(tmp_path / "loud/agents.py")
    assert [find_module(name) for name in ("loud.none", "nowhere.at.all", "math.pi")] == [None] * 3
    assert "loud" not in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is hidden")
def test_a_folder_of_everybodys_files_is_not_shown_because_it_is_on_the_path(tmp_path):
    """There lie the sockets of other runs, whose fork servers start whatever they are sent."""
    (tmp_path / "same").symlink_to("/tmp")
    with pytest.raises(UsageError, match="/tmp is on Python's path"):
        fence.enclose((), [str(tmp_path / "same")], str(tmp_path))


def test_only_named_variables_are_passed_on(monkeypatch):
    monkeypatch.setattr(os, "environ", {"AWS_SECRET_ACCESS_KEY": "s", "PATH": "/bin"})
    monkeypatch.setattr(sys, "argv", ["llmqueue-bench", "--results", "r"])
    fence.limit_environment(dict(os.environ))
    assert os.environ == {"PATH": "/bin"}
    assert sys.argv == ["agent"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to a core")
def test_judge_and_agent_share_a_core() -> None:
    code = (
        "import os; from benchmarks.wall import fence; fence.stay_on_core(fence.this_core());"
        "print(len(os.sched_getaffinity(0)), os.sched_getaffinity(0) <= set(range(os.cpu_count())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]
