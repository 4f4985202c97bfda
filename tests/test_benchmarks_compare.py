"""Paired comparison of two agents of a run: the differences of coupled seeds and their errors."""

import json

import numpy as np
import pytest

from benchmarks.compare import compare, show_comparison
from benchmarks.engines import LocalEngine, execute
from benchmarks.intervals import t_interval
from benchmarks.plan import make_plan
from benchmarks.store import Store
from benchmarks.suite import parse_suite

SUITE = {
    "seeds": 3,
    "agents": ["greedy", {"name": "greedy", "label": "twin", "protocol": "pretrained"}],
    "task": [
        {"name": "small", "env": "LLMQueue-v0", "horizon": 60, "kwargs": {"load": 0.8}},
    ],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("results"))
    execute(make_plan(parse_suite("s", SUITE)), store, LocalEngine(2), {"command": "c"})
    return store


def test_differences_are_those_of_coupled_seeds(store):
    found = compare(store, "random", "oracle")["small"]
    cells = [store.load(path.stem) for path in (store.root / "cells").glob("*.json")]
    by = {(c["spec"]["agent"]["label"], c["spec"]["seed"]): c["metrics"] for c in cells}
    gaps = [by["random", s]["mean_queue"] - by["oracle", s]["mean_queue"] for s in range(3)]
    assert found["seeds"] == [0, 1, 2]
    assert found["mean_queue"]["difference"] == pytest.approx(list(t_interval(gaps)))
    assert found["mean_queue"]["first"] - found["mean_queue"]["second"] == pytest.approx(
        np.mean(gaps)
    )


def test_an_agent_is_its_twin_under_the_other_protocol(store):
    row = compare(store, "greedy", "twin")["small"]
    assert row["routing_regret"]["difference"] == [0.0, 0.0, 0.0]


def test_unknown_agents_are_named(store):
    with pytest.raises(ValueError, match=r"agent='gredy' has no result.*greedy, oracle"):
        compare(store, "gredy", "oracle")


def test_it_prints_a_table_or_json(store, capsys):
    show_comparison(store.root, "random", "oracle", False)
    assert "3 paired seeds" in capsys.readouterr().out
    show_comparison(store.root, "random", "oracle", True)
    assert json.loads(capsys.readouterr().out)["tasks"]["small"]["seeds"] == [0, 1, 2]
