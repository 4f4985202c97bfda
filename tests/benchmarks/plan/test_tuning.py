"""Agents with a knob: the same budget for all, the default beside the best of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import typer
from made_up import board_of, cells_of, queue_cell

from benchmarks.commands import FAILED, OK, run
from benchmarks.plan.suite import built_in_suites, load_suite, parse_suite
from benchmarks.report.contrasts import default_of, tuned_markdown
from benchmarks.score import scoring
from llmqueue_gym.errors import UsageError

TASK = {"name": "t", "env": "LLMQueue-v0", "horizon": 10}


def suite(*agents: Any) -> Any:
    return parse_suite("s", {"seeds": 1, "agents": list(agents), "task": [TASK]})


def test_a_knob_is_a_row_for_each_of_its_values() -> None:
    tuned = {"name": "CQB-Opt", "label": "mine", "settings": {"ridge": 2.0}}
    tuned["tune"] = {"beta_coef": [0.1, 1]}
    entries = suite("Q-UCB", tuned).tasks[0].agents
    assert [(own.label, dict(own.settings)) for own in entries] == [
        ("Q-UCB", {}),
        ("mine beta_coef=0.1", {"ridge": 2.0, "beta_coef": 0.1}),
        ("mine beta_coef=1", {"ridge": 2.0, "beta_coef": 1}),
    ]


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ([{"name": "ACQB", "tune": 3}], "tune=3 must be one setting and its values"),
        ([{"name": "ACQB", "tune": {"alpha_coef": [1]}}], "must be one setting and its values"),
        ([{"name": "ACQB", "tune": {"a": [1, 2], "b": [1, 2]}}], "must be one setting"),
        (
            [
                {"name": "ACQB", "tune": {"alpha_coef": [1, 2]}},
                {"name": "CQB-Opt", "tune": {"beta_coef": [1, 2, 3]}},
            ],
            "the same number of values, not ACQB 2, CQB-Opt 3",
        ),
    ],
)
def test_a_bad_knob_or_an_unfair_budget_is_named(agents: list[Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        suite(*agents)


def test_every_default_is_among_the_values_and_no_other_suite_has_the_tasks() -> None:
    tuning = load_suite("queueing-tuning")
    entries = tuning.tasks[0].agents
    for name in {own.name for own in entries}:
        own = [entry.settings for entry in entries if entry.name == name]
        [knob] = own[0]
        assert len(own) == 5
        assert default_of(name, knob) in [settings[knob] for settings in own]
    others = [load_suite(name) for name in built_in_suites() if name != tuning.name]
    played = [(task.env, task.kwargs) for other in others for task in other.tasks]
    assert not [task.name for task in tuning.tasks if (task.env, task.kwargs) in played]


def queues(level: float) -> list[float]:
    """Return mean queues of six seeds whose score is the level."""
    return [math.expm1(2.0 - level + 0.05 * seed) for seed in range(6)]


def tuned_board() -> Any:
    """Return a board of two agents with three values of a knob; the default of both is 0.03."""
    trials = {
        "ACQB": ("alpha_coef", {0.003: 0.3, 0.03: 0.5, 0.3: 0.9}),
        "CQB-Opt": ("beta_coef", {0.003: 0.2, 0.03: 0.7, 0.3: 0.6}),
    }
    cells = []
    for agent, level in {"oracle": 1.0, "random": 0.0}.items():
        cells += cells_of(queue_cell, {agent: queues(level)})
    for agent, (knob, levels) in trials.items():
        for value, level in levels.items():
            own = cells_of(queue_cell, {agent: queues(level)})
            for cell in own:
                cell["spec"]["agent"] |= {"label": f"{agent} {value}", "settings": {knob: value}}
            cells += own
    return board_of(cells)


def test_the_best_of_the_budget_stands_beside_the_default() -> None:
    lines = [line.strip("| ").split(" | ") for line in tuned_markdown(tuned_board()).split("\n")]
    acqb, opt = (next(line for line in lines if line[0] == own) for own in ("ACQB", "CQB-Opt"))
    assert acqb[:5] == ["ACQB", "alpha_coef", "0.03", "0.500 [0.500, 0.500]", "2"]
    assert acqb[5:] == ["0.3", "3", "0.900 [0.900, 0.900]", "1", "0.400 [0.400, 0.400]"]
    assert opt[4:] == ["1", "0.03", "3", "0.700 [0.700, 0.700]", "2", "0.000 [0.000, 0.000]"]


@pytest.mark.parametrize("code", [OK, FAILED])
def test_tune_runs_the_suite_and_shows_it(
    code: int, bench: Any, capsys: Any, monkeypatch: Any
) -> None:
    asked = []

    def ran(suite: str, **options: Any) -> None:
        asked.append((suite, options))
        raise typer.Exit(code)

    monkeypatch.setattr(run, "run_command", ran)
    monkeypatch.setattr(scoring, "load_board", lambda store: tuned_board())
    assert bench("tune", "--seeds", "3") == code
    assert asked == [("queueing-tuning", {"seeds": 3, "workers": None, "results": None})]
    assert ("| ACQB | alpha_coef | 0.03 |" in capsys.readouterr().out) == (code == OK)
