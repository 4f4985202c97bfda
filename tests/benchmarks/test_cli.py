"""The command: exit codes, one-line errors, and a page and picture from a third party's run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import TINY_TOML
from waiting import alive, wait_until

from benchmarks.commands import run
from benchmarks.plan.suite import spec_key
from benchmarks.report import board_markdown, board_tables, draw_figure
from benchmarks.run.store import Store
from benchmarks.score.scoring import load_board

ROOT = Path(__file__).resolve().parents[2]

AGENTS = """
import os
import time
from pathlib import Path

from baselines.queueing.heuristics import RandomAgent

class Fine(RandomAgent):
    pass

class Waits(RandomAgent):
    def act(self, observation):
        path = Path(__file__).with_name("worker.pid")
        path.with_suffix(".part").write_text(str(os.getpid()))
        path.with_suffix(".part").replace(path)
        time.sleep(120)

class Raises(RandomAgent):
    def act(self, observation):
        raise RuntimeError("out of ideas | today")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An own folder with a suite and an agent module, as a third party has it."""
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    (tmp_path / "my_cli_agents.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_and_report_with_a_third_party_agent(here, bench, capsys, monkeypatch):
    served = []
    monkeypatch.setattr("benchmarks.report.command.serve", lambda *given: served.append(given))
    assert bench("run", "tiny.toml", "--agent", "my_cli_agents:Fine") == 0
    assert bench("report", "--serve", "--port", "8000") == 0
    assert served == [(Path("leaderboard"), 8000)]
    printed = capsys.readouterr()
    assert "10 cells computed, 0 taken" in printed.err
    assert "my_cli_agents:Fine" in printed.out
    page = (here / "leaderboard" / "leaderboard.md").read_text()
    assert "llmqueue-bench run tiny.toml --agent my_cli_agents:Fine" in page
    assert "![queue length and routing regret over time](leaderboard.png)" in page
    for name in ("leaderboard.png", "leaderboard.svg"):
        assert (here / "leaderboard" / name).stat().st_size > 10_000
    assert bench("run", "tiny.toml", "--agent", "my_cli_agents:Fine") == 0
    assert "0 cells computed, 10 taken" in capsys.readouterr().err


def test_a_readme_takes_the_tables_between_its_markers_and_keeps_the_rest(here, bench, capsys):
    assert bench("run", "tiny.toml", "--workers", "1") == 0
    page = here / "README.md"
    page.write_text(
        "# Mine\n<!-- leaderboard tiny: begin -->\nold\n<!-- leaderboard tiny: end -->\nend\n"
    )
    for _ in range(2):
        assert bench("report", "results/tiny", "--readme", "README.md") == 0
        text = page.read_text()
        # The task separates nothing, so there is no mean over tasks, only its own table.
        assert text.startswith("# Mine\n<!-- leaderboard tiny: begin -->\nNo overall score")
        assert text.endswith("<!-- leaderboard tiny: end -->\nend\n")
        assert "old" not in text
        assert text.count("| greedy |") == 1
        assert "(docs/images/tiny.png)" in text
    assert (here / "docs/images/tiny.png").stat().st_size > 1000
    other = here / "docs/leaderboards/tiny.md"
    other.parent.mkdir()
    other.write_text("<!-- leaderboard tiny: begin -->\n<!-- leaderboard tiny: end -->\n")
    assert bench("report", "tiny", "--readme", "docs/leaderboards/tiny.md") == 0
    assert "(../images/tiny.png)" in other.read_text()
    assert bench("export", "results/tiny", "kept/tiny.json.gz") == 0
    check = ("report", "kept/tiny.json.gz", "--readme", "README.md", "--check")
    assert bench(*check) == 0
    capsys.readouterr()
    page.write_text(text.replace("| greedy |", "| greedier |", 1))
    assert bench(*check) == 1
    assert "differs from kept/tiny.json.gz" in capsys.readouterr().err
    assert "greedier" in page.read_text()
    assert bench("report", "kept/tiny.json.gz", "--readme", "README.md") == 0
    assert page.read_text() == text
    assert bench("report", "results/tiny", "--check") == 2
    assert "--check needs --readme" in capsys.readouterr().err
    page.write_text("no markers\n")
    assert bench("report", "results/tiny", "--readme", "README.md") == 2
    assert "leaderboard tiny: begin" in capsys.readouterr().err
    assert page.read_text() == "no markers\n"


def test_a_failed_cell_is_exit_code_1_and_named_on_the_page(here, bench, capsys):
    arguments = ("run", "tiny.toml", "--seeds", "1", "--agent", "my_cli_agents:Raises")
    assert bench(*arguments, "--results", "r") == 1
    assert "tiny / my_cli_agents:Raises / seed 0: RuntimeError" in capsys.readouterr().err
    assert bench("report", "r", "--out", "page") == 1
    page = (here / "page" / "leaderboard.md").read_text()
    assert "RuntimeError: out of ideas | today" in page


def test_a_beaten_oracle_is_exit_code_1_and_names_task_agent_and_reason(here, bench, capsys):
    assert bench("run", "tiny.toml", "--results", "r") == 0
    store = Store(Path("r"))
    for spec in store.load_run()["cells"]:
        if spec["agent"]["label"] == "greedy":
            record = store.load(spec_key(spec))
            record["metrics"]["luck"] = 9.0
            del record["spec"]
            store.save(spec, record)
    capsys.readouterr()
    assert bench("report", "r") == 1
    err = capsys.readouterr().err
    assert "ORACLE BEATEN: task tiny: greedy (seed 0)" in err
    page = Path("leaderboard/leaderboard.md").read_text()
    assert "**The oracle was beaten.**" in page


def test_an_interrupted_run_is_reported_as_such(here, bench, capsys):
    assert bench("run", "tiny.toml", "--results", "r") == 0
    next((here / "r" / "cells").iterdir()).unlink()
    assert bench("report", "r") == 0
    assert "1 cells were not run" in capsys.readouterr().out
    assert "## Not run" in Path("leaderboard/leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such-suite"], "no-such-suite"),
        (["run", "tiny.toml", "--agent", "gredy"], "did you mean 'greedy'"),
        (["run", "tiny.toml", "--agent", "nowhere:Agent"], "no module 'nowhere'"),
        (["run", "tiny.toml", "--task", "big"], "matches no task"),
        (["run", "tiny.toml", "--data", "x"], "NAME=PATH"),
        (["run", "tiny.toml", "--timeout", "-1"], "timeout"),
        (["run", "tiny.toml", "--seeds", "0"], "seeds"),
        (["run", "tiny.toml", "--results", "tiny.toml"], "'tiny.toml': is a file, where a folder"),
        (["run", "missing.toml"], "there is no such file"),
        (["run", "folder"], "is a folder"),
        (["run", "latin.toml"], "not UTF-8"),
        (["run", "quick", "--task", "nosuch"], "tiny-pair-load0.59\n"),  # nothing is near it
        (["tune", "tiny.toml"], "no agent with a knob"),
        (["report", "nothing-here"], "no results in nothing-here"),
        (["report", "none.json.gz"], "no results in none.json.gz"),
        (["board", "none.json.gz"], "'none.json.gz': there is no such file"),
        (["export", "nothing-here", "folder"], "no results in nothing-here"),
        (["logs", "show", "folder"], "is a folder"),
        (["logs", "show", "log.csv", "--contexts", "none"], "'none' is not known"),
        (["logs", "show", "log.csv", "--column", "llm=query"], "(--column kept=NAME)"),
        (["report"], "llmqueue-bench run quick"),
        (["runn"], "runn"),
    ],
)
def test_user_errors_are_exit_code_2_without_a_traceback(here, bench, capsys, arguments, message):
    (here / "folder").mkdir()
    (here / "latin.toml").write_bytes(b'description = "caf\xe9"')
    (here / "log.csv").write_text("query,llm\nhello,a\n")
    assert bench(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (here / "results").exists()


def test_lists(bench, capsys):
    assert bench("list") == 0
    assert bench("agents") == 0
    out = capsys.readouterr().out
    for name in ("quick", "queueing", "oracle", "ACQB-OMD"):
        assert name in out


HELP = """
import sys
from typer.testing import CliRunner
from benchmarks.cli import build_app
shown = CliRunner().invoke(build_app(), sys.argv[1:])
assert shown.exit_code == 0, shown.output
slow = {"numba", "polars", "matplotlib", "plotly", "scipy.optimize", "scipy.stats", "sklearn"}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"]])
def test_help_and_lists_wait_for_no_compiler_and_no_plots(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", HELP, *arguments], check=True, env=environment)


def test_the_subcommands_of_data_are_listed_when_they_are_asked_for(bench, capsys):
    assert bench("data", "--help") == 0
    shown = capsys.readouterr().out
    assert "Import published data sets once, and see what is there." in shown
    assert all(name in shown for name in ("import", "download", "list", "show", "remove"))


def test_missing_extras_are_one_line_that_says_what_to_install():
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "missing = 'typer', 'rich', 'polars', 'matplotlib'\n"
        "u.find_spec = lambda name, *a: None if name in missing else find(name, *a)\n"
        "sys.modules.update(dict.fromkeys(missing))\n"
        "from benchmarks.cli import main; sys.argv = ['llmqueue-bench', 'list']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    names = "typer, rich, polars, matplotlib"
    assert done.stderr == f'llmqueue-bench needs {names}: pip install "llmqueue_gym[bench]"\n'


def test_an_empty_board_is_still_a_page(here, bench, tmp_path):
    assert bench("run", "tiny.toml", "--results", "r") == 0
    for file in (here / "r" / "cells").iterdir():
        file.unlink()
    (here / "README.md").write_text("<!-- leaderboard tiny: begin -->\n")
    assert bench("report", "r", "--readme", "README.md", "--check") == 2
    board = load_board(Store(Path("r")))
    assert len(board.missing) == 8
    assert "## Not run" in board_markdown(board)
    sentence, _ = board_tables(board)  # and the task's; no task makes a mean over tasks
    assert "No task separates the agents" in sentence
    assert draw_figure(board, tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_ends_the_workers_and_keeps_what_is_done(here, bench):
    command = [sys.executable, "-m", "benchmarks.cli", "run", "tiny.toml", "--seeds", "1"]
    command += ["--trust"]
    runner = subprocess.Popen(
        [*command, "--agent", "my_cli_agents:Waits", "--results", "r", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pid, cells = here / "worker.pid", here / "r" / "cells"
    wait_until(lambda: pid.exists() and len(list(cells.glob("*.json"))) == 4)
    worker = int(pid.read_text())
    runner.send_signal(signal.SIGINT)
    _, err = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "Traceback" not in err
    assert "interrupted: finished cells are kept" in err
    wait_until(lambda: not alive(worker))
    again = ("run", "tiny.toml", "--trust", "--seeds", "1", "--agent", "my_cli_agents:Waits")
    assert bench(*again, "--results", "r", "--timeout", "1") == 1
    assert len(list(cells.glob("*.json"))) == 4


def test_the_recorded_command_is_what_gives_the_results_and_not_where_they_were_kept(monkeypatch):
    words = "run quick --seeds 2 --results /home/me/x --workers=3 --agent greedy --engine ray"
    monkeypatch.setattr(sys, "argv", ["llmqueue-bench", *words.split()])
    assert run.command_line() == "llmqueue-bench run quick --seeds 2 --agent greedy"
