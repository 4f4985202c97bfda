"""Watching an agent: the frame shows what the cell's result says, and ends when told to."""

import io
import time

import pytest
from rich.console import Console

from benchmarks.commands.watch import watch, watched_cell
from benchmarks.run.runner import run_cell

SUITE = """
seeds = 1
agents = [{ name = "eps-greedy", label = "careful", settings = { epsilon = 0.01 } }]
[[task]]
name = "queue"
env = "LLMQueue-v0"
horizon = 300
kwargs = { load = 0.9, assortment_size = 2, window = 4 }
[[task]]
name = "fleet"
env = "LLMDeploy-v0"
horizon = 90
agents = ["StageRoute"]
kwargs = { instance = { source = "synthetic", kind = "random" }, num_stages = 3, max_deployed = 4 }
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(SUITE)
    return path


def last_frame(cell, width=110, **settings):
    out = io.StringIO()
    watch(cell, float("inf"), console=Console(file=out, width=width, height=60), **settings)
    return out.getvalue()


def test_the_last_frame_of_a_queue_shows_the_cells_own_figures(suite):
    cell = watched_cell(f"{suite}:queue", "random", 3, {})
    frame, metrics = last_frame(cell), run_cell(cell.spec, cell.kwargs)["metrics"]
    assert "queue   random   seed 3   step 300 of 300" in frame
    assert f"routing regret {metrics['routing_regret']:,.2f} in all" in frame
    assert f"mean queue {metrics['mean_queue']:,.2f}" in frame
    assert "slot 300  queue length " in frame  # drawn by the environment
    assert frame.count("truth:") == 1  # no other frame before it
    assert "\x1b" not in frame  # plain text where the output is no terminal


def test_the_last_frame_of_a_deployment_shows_the_cells_own_figures(suite):
    cell = watched_cell(f"{suite}:fleet", "StageRoute", 1, {})
    frame, metrics = last_frame(cell), run_cell(cell.spec, cell.kwargs)["metrics"]
    assert "query 90 of 90" in frame  # drawn by the environment
    assert f"ledger {metrics['ledger']:.3f} a query" in frame
    assert f"regret {metrics['regret']:,.2f} in all" in frame


def test_a_terminal_gets_frames_as_it_goes_and_steps_end_it(suite):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=90, height=30)
    started = time.monotonic()
    watch(watched_cell(f"{suite}:queue", "greedy", 0, {}), 100.0, 50, console)
    assert time.monotonic() - started >= 0.4  # fifty steps at a hundred a second
    assert out.getvalue().count("truth:") > 2
    assert "step 50 of 300" in out.getvalue()


def interrupt(seconds):
    raise KeyboardInterrupt


def test_an_interrupt_leaves_the_last_frame(suite, monkeypatch):
    monkeypatch.setattr("benchmarks.commands.watch.sleep", interrupt)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(
            watched_cell(f"{suite}:queue", "greedy", 0, {}),
            1.0,
            console=Console(file=out, force_terminal=True),
        )
    assert "step 1 of 300" in out.getvalue()


def test_ctrl_c_is_exit_code_130_without_a_traceback(suite, bench, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.commands.watch._Pacer.observe", lambda *given: interrupt(0))
    assert bench("watch", f"{suite}:queue", "--agent", "greedy") == 130
    assert capsys.readouterr().err == ""


def test_labels_of_the_suite_are_agents_too(suite):
    cell = watched_cell(f"{suite}:queue", "careful", 0, {})
    assert cell.spec["agent"]["settings"] == {"epsilon": 0.01}


@pytest.mark.parametrize(
    ("task", "agent", "message"),
    [
        ("queue", "gredy", "did you mean 'greedy'"),
        ("quue", "greedy", "is in no suite"),
        ("fleet", "greedy", "it plays queueing tasks"),
    ],
)
def test_what_cannot_be_watched_is_one_line(suite, bench, capsys, task, agent, message):
    assert bench("watch", f"{suite}:{task}", "--agent", agent) == 2
    assert message in capsys.readouterr().err
