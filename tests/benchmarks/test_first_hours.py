"""What a first run tells: wrong tasks before any cell, warnings of instances, places of errors."""

import json

import numpy as np
import pytest

from benchmarks.run.store import Store

HEAD = 'description = "t"\nseeds = 2\nagents = ["greedy"]\n'
QUEUE = '[[task]]\nname = "fine"\nenv = "LLMQueue-v0"\nhorizon = 30\ntags = ["queueing"]\n'
LOAD = "[task.kwargs]\nload = 0.8\n"
TABLE = """
[[task]]
name = "no-column"
env = "LLMQueue-v0"
horizon = 30
tags = ["queueing"]
[task.kwargs]
load = 0.8
workload = { source = "table", path = "t.csv", text = "question", quality = ["a", "b"] }
"""
TIGHT = """
description = "t"
seeds = 2
agents = ["static"]
[[task]]
name = "tight"
env = "LLMDeploy-v0"
horizon = 2000
tags = ["deployment"]
[task.kwargs]
instance = "catalog"
budget_per_query = 3e-4
max_deployed = 5
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_a_task_that_cannot_be_set_up_is_named_before_any_cell_runs(here, bench, capsys):
    (here / "t.csv").write_text("query,a,b\nhi,0.1,0.9\nho,0.3,0.2\n")
    (here / "s.toml").write_text(HEAD + QUEUE + LOAD + TABLE)
    assert bench("run", "s.toml", "--workers", 1) == 2
    error = capsys.readouterr().err
    assert error.count("task 'no-column' cannot be set up") == 1
    assert "question" in error
    assert not Store(here / "results" / "s").keys()


@pytest.mark.parametrize(
    ("load", "agent", "told"),
    [
        ("laod = 0.8", "mine:Mine", "argument of LLMQueue-v0 'laod' is not known; did you mean"),
        ("load = 0.8", "mine:Min", "'Min' in 'mine' is not a class with act(observation) and"),
    ],
    ids=["argument", "class"],
)
def test_a_misspelt_name_is_told_before_any_cell_runs(here, bench, capsys, load, agent, told):
    (here / "mine.py").write_text(
        "from baselines.queueing.heuristics import RandomAgent\nclass Mine(RandomAgent): pass\n"
    )
    (here / "s.toml").write_text(HEAD + QUEUE + f"[task.kwargs]\n{load}\n")
    assert bench("run", "s.toml", "--workers", 1, "--agent", agent) == 2
    error = capsys.readouterr().err
    assert told in error
    assert agent == "mine:Mine" or error.endswith("; its classes: Mine\n")
    assert not Store(here / "results" / "s").keys()


def test_a_log_says_how_far_a_run_is(here, bench, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.commands.run.SECONDS_A_LINE", 0.0)
    (here / "s.toml").write_text(HEAD + QUEUE + LOAD)
    assert bench("run", "s.toml", "--workers", 1) == 0
    error = capsys.readouterr().err
    assert [f"s: {done}/6 cells, 0 failed" in error for done in range(1, 6)] == [True] * 5


def test_warnings_of_an_instance_are_told_once_a_task(here, bench, capsys):
    (here / "s.toml").write_text(TIGHT)
    assert bench("run", "s.toml", "--workers", 1, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err.count("warning: task tight: budget_per_query") == 1
    assert "below the cheapest mixture in" in captured.err
    assert len(json.loads(captured.out)["warnings"]["tight"]) == 2  # both seeds


def test_an_error_names_the_last_line_of_the_agent_s_own_file(here, bench, capsys):
    (here / "mine.py").write_text(
        "import numpy as np\n"
        "from baselines.queueing.heuristics import RandomAgent\n"
        "class Mine(RandomAgent):\n"
        "    def act(self, observation):\n"
        "        return np.linalg.inv(np.zeros((2, 2)))\n"
    )
    (here / "s.toml").write_text(HEAD + QUEUE + LOAD)
    assert bench("run", "s.toml", "--workers", 1, "--agent", "mine:Mine") == 1
    assert "Singular matrix (mine.py, line 5, in act)" in capsys.readouterr().err
    assert bench("report") == 1
    assert "Singular matrix (mine.py, line 5, in act)" in capsys.readouterr().out


READER = """
from pathlib import Path
import numpy as np
from beside import SHIFT
from baselines.queueing.heuristics import RandomAgent

class Mine(RandomAgent):
    def __init__(self, problem, seed):
        super().__init__(problem, seed + SHIFT + int(np.load(Path(__file__).with_name("w.npy"))))
"""


def test_a_file_that_an_agent_reads_counts_as_its_code(here, bench, capsys):
    def computed():
        options = ("--workers", "1", "--agent", "reading:Mine", "--seeds", "1", "--json")
        capsys.readouterr()
        assert bench("run", "s.toml", *options) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out)["computed"], "was changed since" in printed.err

    (here / "reading.py").write_text(READER)
    (here / "beside.py").write_text("SHIFT = 1\n")
    np.save(here / "w.npy", 1)
    (here / "s.toml").write_text(HEAD + QUEUE + LOAD)
    assert computed() == (4, False)
    assert computed() == (0, False)
    np.save(here / "w.npy", 22)
    assert computed() == (1, True)
    (here / "beside.py").write_text("SHIFT = 77\n")
    assert computed() == (1, True)
