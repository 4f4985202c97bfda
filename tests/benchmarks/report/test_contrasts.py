"""What production routers leave on the table, and what breaks first: paired, from results alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import board_of, cells_of, deploy_cell, queue_cell

from benchmarks.report.command import _with_tables
from benchmarks.report.contrasts import breaks_markdown, routers_markdown

SEEDS = range(6)
IMAGES = Path("images")


def queues(levels: dict[str, float], task: str, tags: tuple[str, ...], **spec: Any) -> list[Any]:
    """Return cells whose score is the level, but for luck that all agents of a seed share."""

    def queue(level: float, seed: int) -> float:
        return math.expm1(2.0 - level + 0.05 * seed)  # h = log(1 + mean queue)

    values = {
        agent: [queue(level, seed) for seed in SEEDS]
        for agent, level in {"oracle": 1.0, "random": 0.0, **levels}.items()
    }
    return cells_of(queue_cell, values, task=task, tags=tags, **spec)


def rows(markdown: str, title: str = "|") -> dict[str, list[str]]:
    """Return the cells of the table below a title, by agent."""
    part = markdown[markdown.index(title) :].partition("|\n\n")[0] + "|"  # up to the table's end
    lines = re.findall(r"^\| (.+) \|$", part, re.M)
    return {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines}


LEVELS = {
    "routing-sampling": 0.4,
    "litellm-adaptive": 0.2,
    "knn-guard": 0.45,
    "ACQB": 0.7,
    "mine": 0.8,
    "known-static-mix-queue": 0.5,
}


def test_routers_are_set_beside_the_best_the_standard_and_the_mix() -> None:
    higher = {agent: level + 0.1 * (agent == "mine") for agent, level in LEVELS.items()}
    board = board_of([*queues(LEVELS, "a", ("synthetic",)), *queues(higher, "b", ("real-data",))])
    found = routers_markdown(board)
    every, real = rows(found, "### All tasks (2)"), rows(found, "### Real queries (1)")
    assert every["agent"] == [
        *("score", "less mine", "less ACQB", "less known-static-mix-queue"),
        "tasks ahead of / behind the mix",
    ]
    assert list(every)[2:] == sorted(LEVELS, key=lambda agent: -LEVELS[agent])
    # Luck is shared by a seed: paired, it leaves no width.
    assert every["routing-sampling"][1:] == [
        *("-0.450 [-0.450, -0.450]", "-0.300 [-0.300, -0.300]", "-0.100 [-0.100, -0.100]"),
        "0 / 2",
    ]
    assert every["mine"][1:] == ["", "0.150 [0.150, 0.150]", "0.350 [0.350, 0.350]", "2 / 0"]
    assert every["known-static-mix-queue"][-2:] == ["", ""]
    assert real["knn-guard"][1] == "-0.450 [-0.450, -0.450]"
    assert "`llmqueue-bench run s`" in found


def test_the_best_may_be_the_standard_and_names_are_no_markup() -> None:
    levels = {"routing-sampling": 0.4, "ACQB": 0.7, "[x](y)|": 0.9, "known-static-mix-queue": 0.5}
    found = routers_markdown(board_of(queues(levels, "a", ())))
    assert r"less \[x\](y)\|" in found
    del levels["[x](y)|"]
    found = rows(routers_markdown(board_of(queues(levels, "a", ()))))
    assert found["agent"][1:3] == ["less ACQB", "less known-static-mix-queue"]


def test_a_page_of_nothing_says_so() -> None:
    board = board_of(queues({"ACQB": 0.7, "mine": 0.5}, "a", ()))
    assert routers_markdown(board).startswith("No router that gateways ship")
    assert breaks_markdown(board).startswith("No task here is tagged stationary")


def test_what_breaks_first_is_bold() -> None:
    calm = {"steady": 0.8, "brittle": 0.9}
    late = {"steady": 0.75, "brittle": 0.3}
    false = {"steady": 0.77, "brittle": 0.5}
    board = board_of(
        [
            *queues(calm, "calm-s", ("queueing", "stationary", "synthetic")),
            *queues({a: v - 0.2 for a, v in calm.items()}, "calm-r", ("stationary", "real-data")),
            *queues(late, "late-s", ("queueing", "delayed", "synthetic")),
            *queues(false, "false-s", ("queueing", "poisoned", "synthetic")),
        ]
    )
    found = rows(breaks_markdown(board))
    assert found["agent"] == ["stationary", "delayed", "poisoned"]
    assert found["brittle"][0] == "0.800 [0.800, 0.800]"  # over both families
    # Against the synthetic queue alone, as it is one that is late.
    assert found["brittle"][1:] == ["**-0.600 [-0.600, -0.600]**", "-0.400 [-0.400, -0.400]"]
    assert found["steady"][1:] == ["**-0.050 [-0.050, -0.050]**", "-0.030 [-0.030, -0.030]"]


def test_a_family_without_a_calm_task_is_not_compared_with_another() -> None:
    calm = {"steady": 0.8, "brittle": 0.9}
    board = board_of(
        [
            *queues(calm, "calm-s", ("queueing", "stationary", "synthetic")),
            *queues({a: v - 0.1 for a, v in calm.items()}, "bad-s", ("poisoned", "synthetic")),
            *queues({a: v - 0.7 for a, v in calm.items()}, "bad-r", ("poisoned", "real-data")),
        ]
    )
    found = rows(breaks_markdown(board))
    assert found["steady"][1] == "**-0.100 [-0.100, -0.100]**"


def test_agents_that_lack_a_task_are_left_out() -> None:
    cells = queues(LEVELS, "a", ()) + queues(
        {agent: level for agent, level in LEVELS.items() if agent != "knn-guard"}, "b", ()
    )
    found = rows(routers_markdown(board_of(cells)))
    assert "routing-sampling" in found
    assert "knn-guard" not in found


@pytest.mark.parametrize("name", ["routers", "breaks"])
def test_a_page_takes_the_parts_it_has_markers_for(name: str) -> None:
    board = board_of(queues(LEVELS, "a", ("stationary",)) + queues(LEVELS, "b", ("poisoned",)))
    page = f"before\n<!-- {name} s: begin -->\nold\n<!-- {name} s: end -->\nafter\n"
    written = {"routers": routers_markdown, "breaks": breaks_markdown}[name](board)
    found = _with_tables(page, board, IMAGES)
    assert found == page.replace("old\n", written)
    assert _with_tables(found, board, IMAGES) == found
    both = page + "<!-- leaderboard s: begin -->\n<!-- leaderboard s: end -->\n"
    assert written in (found := _with_tables(both, board, IMAGES))
    assert "| rank |" in found


def test_streams_have_their_own_routers() -> None:
    rng = np.random.default_rng(0)
    values = {
        agent: (level + 0.01 * rng.random(6)).tolist()
        for agent, level in {
            "oracle": 0.9,
            "random": 0.1,
            "TS": 0.7,
            "routing-sampling-deploy": 0.3,
            "known-static-mix-deploy": 0.8,
        }.items()
    }
    found = rows(routers_markdown(board_of(cells_of(deploy_cell, values))))
    assert found["agent"][1:3] == ["less TS", "less known-static-mix-deploy"]
    assert found["routing-sampling-deploy"][3] == "0 / 1"
