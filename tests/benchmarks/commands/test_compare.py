"""Paired comparison of two agents of a run: the differences of coupled seeds and their errors."""

import json

import numpy as np
import pytest

from benchmarks.commands.compare import compare, show_comparison
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite, spec_key
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.store import Store
from benchmarks.score.export import export_run
from benchmarks.score.intervals import t_interval

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
    seeds, figures = compare(store, "random", "oracle")["small"]
    cells = [store.load(path.stem) for path in (store.root / "cells").glob("*.json")]
    by = {(c["spec"]["agent"]["label"], c["spec"]["seed"]): c["metrics"] for c in cells}
    gaps = [by["oracle", s]["mean_queue"] - by["random", s]["mean_queue"] for s in range(3)]
    assert seeds == [0, 1, 2]
    row = figures["mean_queue"]
    assert row.difference == pytest.approx(t_interval(gaps))
    assert row.second - row.first == pytest.approx(np.mean(gaps))


def test_an_agent_is_its_twin_under_the_other_protocol(store):
    _, figures = compare(store, "greedy", "twin")["small"]
    assert figures["routing_regret"].difference == (0.0, 0.0, 0.0)


def test_unknown_agents_are_named(store):
    with pytest.raises(ValueError, match=r"agent='gredy' has no result.*greedy, oracle"):
        compare(store, "gredy", "oracle")


def test_it_prints_a_table_or_json(store, capsys):
    show_comparison(store.root, "random", "oracle", False)
    out = capsys.readouterr().out
    assert "3 paired seeds" in out
    assert "difference: oracle - random" in out
    show_comparison(store.root, "random", "oracle", True)
    assert json.loads(capsys.readouterr().out)["tasks"]["small"]["seeds"] == [0, 1, 2]


def test_agents_and_results_are_compared_alike(store, tmp_path, bench, capsys):
    """One sign, and one shape: results in which ``random`` plays under the oracle's name."""
    other = Store(tmp_path / "r")
    specs = []
    for spec in store.load_run()["cells"]:
        if spec["agent"]["label"] == "oracle":
            played = {**spec, "agent": {**spec["agent"], "name": "random", "label": "random"}}
            record = store.load(spec_key(played))
            del record["spec"]
            other.save(spec, record)
            specs.append(spec)
    other.save_run({"suite": "s", "skipped": {}, "cells": specs, "provenance": {}, "data": {}})
    assert bench("compare", store.root, other.root, "--json") == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    export_run(store, tmp_path / "run.json.gz")
    places = (store.root, tmp_path / "run.json.gz", store.root.as_uri())
    for place, digits in zip(places, (1e-12, 1e-5, 1e-12), strict=True):
        assert bench("compare", "oracle", "random", "--results", place, "--json") == 0
        task = json.loads(capsys.readouterr().out)["tasks"]["small"]
        found = task["mean_queue"]["difference"]
        assert found == pytest.approx(row["figures"]["mean_queue"]["difference"], rel=digits)
        assert found.keys() == {"value", "low", "high"}
        assert found["value"] > 0
