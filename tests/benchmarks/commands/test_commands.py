"""What scripts and shells read of the command: JSON, completion, exit codes."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_up import TINY_TOML

from benchmarks import cli
from benchmarks.commands import run
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import built_in_suites, load_suite
from benchmarks.run.store import Store
from benchmarks.score.scoring import load_board


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    (tmp_path / "my_raising.py").write_text(
        "from baselines.queueing.heuristics import RandomAgent\n"
        "class Raises(RandomAgent):\n"
        "    def act(self, observation):\n"
        "        raise RuntimeError('out of ideas')\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def output_of(bench, capsys):
    """Exit code of the command run in this process, and what it printed."""
    return lambda *arguments: (bench(*arguments), capsys.readouterr().out)


def test_a_run_and_its_report_as_json(here, output_of):
    code, out = output_of("run", "tiny.toml", "--results", "r", "--json")
    run = json.loads(out)
    assert (code, run["exit_code"]) == (0, 0)
    assert (run["computed"], run["reused"], run["failed"]) == (8, 0, 0)
    assert (run["suite"], run["results"], run["failures"]) == ("tiny", "r", [])
    again = json.loads(output_of("run", "tiny.toml", "--results", "r", "--json")[1])
    assert (again["computed"], again["reused"]) == (0, 8)
    code, out = output_of("report", "r", "--json")
    report, board = json.loads(out), load_board(Store("r"))
    assert code == 0
    assert not (here / "leaderboard").exists()
    [task] = report["tasks"]
    for row, expected in zip(task["rows"], board.tasks[0].rows, strict=True):
        assert row["agent"] == expected.agent
        assert row["score"]["value"] == expected.score.value
        assert row["figures"]["mean queue"]["value"] == expected.figures[0].value
    [overall] = report["overall"]
    assert {row["agent"] for row in overall["rows"]} >= {"greedy", "Q-UCB"}
    assert (overall["kind"], overall["protocol"]) == ("queueing", "online")


def test_results_behind_a_url_are_run_reported_exported_and_verified(here, output_of):
    pytest.importorskip("fsspec", reason="needs the extra `ray`")
    url = "memory://commands/results"
    run = json.loads(output_of("run", "tiny.toml", "--results", url, "--json")[1])
    assert (run["results"], run["computed"]) == (url, 8)
    assert json.loads(output_of("run", "tiny.toml", "--results", url, "--json")[1])["reused"] == 8
    report = json.loads(output_of("report", url, "--json")[1])
    assert [task["task"] for task in report["tasks"]] == ["tiny"]
    assert output_of("export", url, "tiny.json.gz")[0] == 0
    assert output_of("verify", url, "--sample", "2")[0] == 0
    compared = json.loads(output_of("compare", url, "tiny.json.gz", "--json")[1])
    assert (compared["cells"], compared["changed"]) == (8, 0)
    assert not (here / "memory:").exists()


def test_failures_are_in_the_json_and_in_the_exit_code(here, output_of):
    arguments = ("--seeds", "1", "--agent", "my_raising:Raises", "--results", "r", "--json")
    code, out = output_of("run", "tiny.toml", *arguments)
    run = json.loads(out)
    assert (code, run["exit_code"], run["failed"]) == (1, 1, 1)
    assert run["failures"] == [
        {
            "cell": "tiny / my_raising:Raises / seed 0",
            "error": "RuntimeError: out of ideas (my_raising.py, line 4, in act)",
        }
    ]
    code, out = output_of("report", "r", "--json")
    assert code == 1
    assert json.loads(out)["failures"] == run["failures"]


def test_one_cause_is_told_once_and_counted(here, bench, capsys):
    bench("run", "tiny.toml", "--agent", "my_raising:Raises", "--results", "r")
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("failed: tiny / my_raising:Raises / seed") == 1
    assert "failed alike, one more cell: RuntimeError: out of ideas" in told


def test_what_decides_the_exit_code_is_that_of_the_board(here, output_of, monkeypatch):
    """Read task by task, without a board: failures, damage, luck and beaten oracles."""
    tables = "".join(
        TINY_TOML[TINY_TOML.index("[[task]]") :].replace('"tiny"', f'"{name}"')
        for name in ("b", "a", "c")
    )
    (here / "three.toml").write_text(TINY_TOML[: TINY_TOML.index("[[task]]")] + tables)
    monkeypatch.setattr("benchmarks.score.scoring.load_board", None)
    arguments = ("run", "three.toml", "--agent", "my_raising:Raises", "--results", "r")
    assert output_of(*arguments)[0] == 1
    plan = make_plan(load_suite("three.toml"), agents=["my_raising:Raises"])
    store = Store("r")
    done = [cell for cell in plan.cells if store.load(cell.key) is not None]
    oracle = {
        cell.spec["seed"]: store.load(cell.key)["metrics"]["mean_queue"]
        for cell in done
        if (cell.spec["agent"]["label"], cell.spec["task"]["name"]) == ("oracle", "b")
    }
    for cell in done:
        record = store.load(cell.key)
        del record["spec"]
        if (cell.spec["agent"]["label"], cell.spec["task"]["name"]) == ("greedy", "b"):
            record["metrics"]["mean_queue"] = (1 + oracle[cell.spec["seed"]]) / 2 - 1
        if (cell.spec["agent"]["label"], cell.spec["seed"]) == ("Q-UCB", 1):
            record["metrics"]["luck"] = 9.0
        store.save(cell.spec, record)
    damaged = here / "r" / "cells" / f"{done[-1].key}.json"
    damaged.write_text(damaged.read_text()[:-5])
    board = load_board(store)
    expected = {name: failure["error"] for name, failure in board.failures}
    assert len(expected) == 7
    assert sum("beats the oracle" in text for text in board.violations) == 1
    assert sum("Q-UCB (seed 1) had departures" in text for text in board.violations) >= 2
    for batch in (1, 10_000):
        monkeypatch.setattr(run, "_BATCH", batch)
        assert run.check_run(plan, store) == (expected, board.violations, {})


def test_lists_as_json(output_of):
    suites = {
        suite["name"]: suite for suite in json.loads(output_of("list", "--json")[1])["suites"]
    }
    assert suites.keys() == built_in_suites().keys()
    quick = load_suite("quick")
    assert [task["name"] for task in suites["quick"]["tasks"]] == [t.name for t in quick.tasks]
    agents = {
        agent["name"]: agent for agent in json.loads(output_of("agents", "--json")[1])["agents"]
    }
    kinds = {"oracle": "", "ACQB": "queueing", "DQN-online": "queueing", "TS": "deployment"}
    assert {name: agents[name]["kind"] for name in kinds} == kinds


def test_the_help_says_what_exit_codes_mean(output_of):
    code, out = output_of("--help")
    words = " ".join(out.split())
    assert code == 0
    assert cli.EXIT_CODES in words
    assert "--install-completion" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "spark"], "--engine 'spark' is not one of local, ray"),
        (["--address", "auto"], "--address auto belongs to --engine ray"),
        (["--memory", "0"], "--memory"),
        (["--memory", "inf"], "inf is not in (0, inf)"),
        (["--timeout", "0"], "--timeout"),
        (["--results", "nowhere://x"], "nowhere"),
        (["--results", "file://results/x"], "file:///PATH"),
        (["--results", "tiny.toml"], "tiny.toml"),
    ],
)
def test_wrong_choices_are_exit_code_2(here, bench, capsys, arguments, message):
    assert bench("run", "tiny.toml", *arguments) == 2
    assert message in capsys.readouterr().err


def broadcast():
    np.zeros(2) + np.zeros(3)


def convert():
    np.asarray([[1], [2, 3]], dtype=float)


def join():
    pl.Series("a", [1]).append(pl.Series("b", ["x"]).cast(pl.Int64))


@pytest.mark.parametrize(
    "fault", [broadcast, convert, join, lambda: int("many"), lambda: [].index(1)]
)
def test_our_own_faults_are_no_wrong_usage(here, bench, monkeypatch, fault):
    monkeypatch.setattr("benchmarks.commands.show.built_in_suites", fault)
    monkeypatch.setattr(sys, "argv", ["llmqueue-bench", "list"])
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Python prints it and leaves with 1
        cli.main()
    assert not isinstance(caught.value, SystemExit)


def test_damage_and_a_disk_that_takes_nothing_are_exit_code_1(here, bench, capsys, monkeypatch):
    assert bench("run", "tiny.toml", "--results", "r") == 0
    (here / "broken.json.gz").write_bytes(b"nothing")
    (here / "r" / "run.json").write_text("{")
    for damaged in ("broken.json.gz", "r"):
        capsys.readouterr()
        assert bench("report", damaged) == 1
        assert "is truncated" in capsys.readouterr().err

    def full(self, *arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    assert bench("run", "tiny.toml", "--results", "other") == 1
    err = capsys.readouterr().err
    assert "cannot write .lock in other" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("llmqueue-bench ver", {"verify"}),
        ("llmqueue-bench run qui", {"quick"}),
        ("llmqueue-bench run ti", {"tiny.toml"}),
        ("llmqueue-bench run tiny.toml --task t", {"tiny"}),
        ("llmqueue-bench run quick --task cata", {"catalog-b0.001"}),
        ("llmqueue-bench run quick --agent ACQB-O", {"ACQB-OMD"}),
        ("llmqueue-bench watch quick:cata", {"quick:catalog-b0.001"}),
        ("llmqueue-bench watch exp", {"exponents"}),
        ("llmqueue-bench watch exponents --agent orac", {"oracle"}),
        ("llmqueue-bench run nonsense --task t", set()),
    ],
)
def test_shells_complete_names(here, bench, capsys, monkeypatch, words, expected):
    monkeypatch.setenv("_LLMQUEUE_BENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
    assert bench() == 0
    assert set(capsys.readouterr().out.split()) == expected


def test_names_between_commas_may_have_blanks(output_of, monkeypatch):
    asked = {}
    monkeypatch.setattr("benchmarks.report.command.figure", lambda *_, **given: asked.update(given))
    options = ("--agents", "ACQB, m:Mine,", "--labels", "A,Our own")
    assert output_of("report", "x", "--figure", "scores", *options)[0] == 0
    assert (asked["agents"], asked["labels"]) == (["ACQB", "m:Mine"], ["A", "Our own"])
