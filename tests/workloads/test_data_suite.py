"""The suite `datasets`: what is imported is played, the rest skipped; published figures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from baselines import QueueProblem, make_agent
from baselines.queueing.acqb import ACQB, confidence_radius, exploration_constant
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import SuiteError, load_suite, parse_suite
from benchmarks.report import board_markdown, board_tables
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.runner import provenance
from benchmarks.run.store import Store
from benchmarks.score.scoring import load_board
from llmqueue_gym.workloads import embeddings
from llmqueue_gym.workloads.datasets import import_dataset
from llmqueue_gym.workloads.embeddings import TRANSFORMER, read_contexts

ROWS = 320


@pytest.fixture
def routerbench(tmp_path: Path) -> None:
    """Import an invented table in RouterBench's schema: each of three LLMs is good at one topic."""
    rng = np.random.default_rng(0)
    llms, topics = ("a", "b", "c"), ("algebra sums", "old wars", "python loops")
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        costs = [f"{llm}|total_cost" for llm in llms]
        writer.writerow(["sample_id", "prompt", "eval_name", *llms, *costs])
        for i in range(ROWS):
            text = f"{topics[i % 3]} {' '.join(rng.choice(list('abcdefgh'), 5))} {i}"
            scores = [int(rng.random() < (0.95 if j == i % 3 else 0.2)) for j in range(3)]
            writer.writerow([i, repr([text]), topics[i % 3], *scores, 0.001, 0.002, 0.003])
    import_dataset("routerbench", path)


def test_without_data_every_task_is_skipped_and_the_reason_says_how_to_import() -> None:
    suite = load_suite("datasets")
    plan = make_plan(suite)
    assert not plan.cells
    skipped = {task.name: plan.skipped[task.name] for task in suite.tasks}
    for source in ("routerbench", "sprout", "embedllm", "wildchat"):
        mine = {name: reason for name, reason in skipped.items() if name.startswith(source)}
        assert mine
        for name, reason in mine.items():
            if "-reproduction-" not in name:  # which may be skipped for its package first
                assert f"llmqueue-bench data import {source} PATH" in reason


def test_the_reproductions_have_the_settings_of_the_authors() -> None:
    suite = load_suite("datasets")
    tasks = [task for task in suite.tasks if "reproduction" in task.tags]
    assert suite.seeds == 10
    points = [(t.kwargs["arrival_rate"], t.kwargs["workload"]["cost_weight"]) for t in tasks]
    assert points == [(0.5, 0), (0.5, 1), (0.5, 5), (0.6, 0)]
    for task in tasks:
        assert task.horizon == 5000
        assert not task.headline
        assert task.kwargs["assortment_size"] == 2
        workload = task.kwargs["workload"]
        assert workload["pool_size"] == 1000
        assert workload["scale"] == "pool"
        assert read_contexts(workload["contexts"]).constant is False
        assert [entry.name for entry in task.agents] == ["ACQB", "CQB-eps"]
        problem = QueueProblem(11, 2, 384, 32, task.kwargs["arrival_rate"], task.horizon)
        for entry in task.agents:
            agent = make_agent(entry.name, problem, 0, **entry.settings)
            assert isinstance(agent, ACQB)
            assert agent.alpha() == 1e-4 * confidence_radius(5000, 384, 2)
            assert agent.c1 == exploration_constant(0.01, problem.arrival_rate, 5000)
        labels = {"random", *(entry.label for entry in task.agents)}
        assert set(task.published["routing_regret_per_slot"]) <= labels
        assert "authors' repository" in task.published["source"]


@pytest.mark.usefixtures("routerbench")
def test_the_reproductions_can_be_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an encoder that is made up: 384 numbers, the rates of the pool from .1 to .99."""

    def encode(texts: list[str]) -> Any:
        return np.random.default_rng(0).normal(size=(len(texts), 384))

    made_up = {TRANSFORMER: lambda model: embeddings.Encoder([str(model)], lambda: encode)}
    monkeypatch.setattr(embeddings, "_ENCODERS", made_up)
    for task in load_suite("datasets").tasks:
        if "reproduction" in task.tags:
            env: Any = gym.make(task.env, **task.kwargs)
            observation, _ = env.reset(seed=0)
            while not observation["waiting"].any():
                observation, *_ = env.step(env.action_space.sample())
            context = observation["contexts"][0]
            assert context.shape == (384,)
            assert np.linalg.norm(context) == pytest.approx(1.0, abs=1e-5)
            odds = env.unwrapped.dynamics.odds[:-1]
            rates = odds / (1 + odds)
            assert (rates.min(), rates.max()) == (pytest.approx(0.1), pytest.approx(0.99))


@pytest.mark.usefixtures("routerbench")
def test_an_imported_data_set_is_played_and_its_content_is_part_of_the_cells(
    tmp_path: Path,
) -> None:
    plan = make_plan(load_suite("datasets"), seeds=1, tasks=["routerbench-load*", "sprout-*"])
    assert {cell.spec["task"]["name"] for cell in plan.cells} == {
        f"routerbench-load{load}-k{k}-cost{weight}{copy}"
        for load in (0.8, 0.95)
        for k in (1, 2)
        for weight in (0, 1, 5)
        for copy in ("", "-shuffled")
    }
    assert sum(name.startswith("sprout") for name in plan.skipped) == 2 * 12
    before = {cell.key for cell in plan.cells}
    table = (tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_text(table.replace("0.003", "0.004"))
    import_dataset("routerbench", tmp_path / "table.csv")
    again = make_plan(load_suite("datasets"), seeds=1, tasks=["routerbench-load*"])
    assert not before & {cell.key for cell in again.cells}


DOCUMENT: dict[str, Any] = {
    "seeds": 2,
    "agents": ["greedy"],
    "task": [
        {
            "name": "mini",
            "env": "LLMQueue-v0",
            "horizon": 60,
            "kwargs": {
                "arrival_rate": 0.5,
                "assortment_size": 2,
                "workload": {"source": "routerbench", "pool_size": 100, "context_dim": 8},
            },
            "published": {
                "source": "a paper | of 2026",
                "note": "There something was different.",
                "routing_regret_per_slot": {"greedy": 0.125, "random": [0.25, 0.03], "absent": 1},
            },
        }
    ],
}


@pytest.mark.usefixtures("routerbench")
def test_the_report_sets_published_figures_beside_those_of_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    plan = make_plan(parse_suite("mini", DOCUMENT))
    execute(plan, store, LocalEngine(1), provenance("test"))
    board = load_board(store)
    page = board_markdown(board)
    part = page[page.index("mini: routing regret per slot beside") :].partition("#")[0]
    assert "There something was different." in part
    cells = [c for c in board.cells if c["spec"]["agent"]["label"] == "greedy"]
    own = float(np.mean([cell["metrics"]["routing_regret"] / 60 for cell in cells]))
    rows = {line.split("|")[1].strip(): line for line in part.splitlines() if line.startswith("| ")}
    assert "0.1250" in rows["greedy"]
    assert f"{own:.4f} [" in rows["greedy"]
    assert "0.2500 ± 0.0300" in rows["random"]
    assert "oracle" not in rows  # the paper says nothing about it
    assert len(board_tables(board)) == 3


def test_tasks_without_published_figures_keep_their_identity() -> None:
    task = {key: value for key, value in DOCUMENT["task"][0].items() if key != "published"}
    task["kwargs"] = {"load": 0.5, "workload": "synthetic"}
    plan = make_plan(parse_suite("mini", {**DOCUMENT, "task": [task]}))
    assert all("published" not in cell.spec["task"] for cell in plan.cells)


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"source": "x"}, "routing_regret_per_slot"),
        ({"routing_regret_per_slot": {"a": 1}}, "source"),
        ({"source": "x", "routing_regret_per_slot": {"a": "high"}}, "'high' must be a number"),
        ({"source": "x", "routing_regret_per_slot": {"a": [1, 2, 3]}}, "must be a number or"),
        ({"source": "x", "regret": {}}, "'regret' is not one of"),
    ],
)
def test_wrong_published_figures_are_refused(published: Any, words: str) -> None:
    task = DOCUMENT["task"][0] | {"published": published}
    with pytest.raises(SuiteError, match=words):
        parse_suite("mini", {**DOCUMENT, "task": [task]})
