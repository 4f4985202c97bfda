"""Two results or two agents compared: what is matched, changes counted, paired differences."""

import json

import numpy as np
import pytest
from made_up import tiny_suite

from benchmarks.commands.compare import Match, agent_side, find_changes, load_side
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite, spec_key
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.store import Store
from benchmarks.score.export import export_run
from benchmarks.score.intervals import t_interval

SUITE = tiny_suite(
    seeds=3,
    agents=["greedy", {"name": "greedy", "label": "twin", "protocol": "pretrained"}],
    horizon=40,
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """One run; every test compares changed copies of it."""
    store = Store(tmp_path_factory.mktemp("honest"))
    plan = make_plan(parse_suite("s", SUITE))
    execute(plan, store, LocalEngine(2), {"command": "test", "commit": "aaaa1111"})
    return store, plan


def copy(honest, folder, change=lambda spec, record: None, keep=lambda spec: True):
    """Write a run like the first, with other code, each record changed."""
    store, plan = honest
    target, specs = Store(folder), []
    for cell in plan.cells:
        record = store.load(cell.key)
        spec = {**record.pop("spec"), "code": "f" * 64, "version": "9.9"}
        if keep(spec):
            record["provenance"] = {"command": "test", "commit": "bbbb2222"}
            change(spec, record)
            target.save(spec, record)
            specs.append(spec)
    run = {"suite": "s", "skipped": {}, "cells": specs, "provenance": {}, "data": {}}
    target.save_run(run)
    return target


def changes(first, second):
    return find_changes(load_side(str(first)), load_side(str(second)))


def row(found, agent):
    [one] = [row for row in found.rows if row.agent == agent]
    return one


def test_other_code_with_equal_results_changes_nothing(honest, tmp_path):
    found = changes(honest[0], copy(honest, tmp_path / "b"))
    assert [r.agent for r in found.rows] == ["greedy", "oracle", "random", "twin"]
    assert all((len(r.seeds), r.changed) == (3, 0) for r in found.rows)
    assert all(f.difference == (0, 0, 0) for r in found.rows for f in r.figures.values())
    assert "-> 9.9 (bbbb2222)" in found.rows[0].notes[0]
    assert found.only_first == found.only_second == []


def test_differences_are_paired_by_seed(honest, tmp_path):
    shifts = {0: 1.0, 1: 2.0, 2: 4.5}

    def change(spec, record):
        if spec["agent"]["label"] == "greedy":
            record["metrics"]["mean_queue"] += shifts[spec["seed"]]

    found = changes(honest[0], copy(honest, tmp_path / "b", change))
    greedy = row(found, "greedy")
    assert greedy.changed == 3
    assert greedy.figures["mean_queue"].difference == pytest.approx(t_interval([1.0, 2.0, 4.5]))
    assert greedy.figures["score"].difference.value < 0
    assert row(found, "oracle").changed == 0


def test_seeds_that_share_a_training_are_compared_as_one(honest, tmp_path):
    """Two trainings play three seeds: the interval of the differences is over the trainings."""
    shifts = {0: 1.0, 1: 2.0, 2: 4.5}

    def trained(spec, record):
        training = {"sha256": str(spec["seed"] % 2), "steps": 1, "seconds": 1.0}
        spec["agent"] = {**spec["agent"], "training": training}
        record["metrics"]["mean_queue"] += shifts[spec["seed"]]

    found = row(changes(honest[0], copy(honest, tmp_path / "b", trained)), "greedy")
    expected = t_interval([*shifts.values()], blocks=[0, 1, 0])
    assert found.figures["mean_queue"].difference == pytest.approx(expected)
    assert expected.high - expected.low > 5.0


def test_cells_of_one_side_only_are_named(honest, tmp_path):
    def keep(spec):
        return (spec["agent"]["label"], spec["seed"]) != ("greedy", 1)

    b = copy(honest, tmp_path / "b", keep=keep)
    alone = [Match("tiny", "greedy", "online", 1)]
    assert changes(honest[0], b).only_first == alone
    assert changes(b, honest[0]).only_second == alone
    assert row(changes(b, honest[0]), "greedy").seeds == [0, 2]


def test_what_else_differs_is_noted(honest, tmp_path):
    def change(spec, record):
        spec["task"] = {**spec["task"], "horizon": 41}
        spec["workload"] = "other"
        spec["agent"] = {**spec["agent"], "settings": {"x": 1}}

    notes = changes(honest[0], copy(honest, tmp_path / "b", change)).rows[0].notes
    assert notes[:3] == (
        "another definition of the task",
        "other data",
        "other settings of the agent",
    )


def test_clock_and_provenance_are_no_change_but_a_curve_is(honest, tmp_path):
    def tick(spec, record):
        record["timing"]["wall_seconds"] += 1
        if spec["agent"]["label"] == "random":
            record["curve"]["queue"][0] += 1

    found = changes(honest[0], copy(honest, tmp_path / "b", tick))
    assert [r.changed for r in found.rows] == [0, 0, 3, 0]


def test_an_export_is_compared_to_the_digits_it_keeps(honest, tmp_path):
    path = tmp_path / "run.json.gz"
    export_run(honest[0], path)
    assert all(r.changed == 0 for r in changes(honest[0], path).rows)

    def change(spec, record):
        record["metrics"]["mean_queue"] += 0.5

    other = copy(honest, tmp_path / "b", change)
    assert all(r.changed == len(r.seeds) for r in changes(path, other).rows)


def test_two_versions_in_one_folder(honest, tmp_path):
    folder = tmp_path / "both"
    copy(honest, folder, lambda spec, record: record["metrics"].update(retrials=-1))
    both, (store, plan) = Store(folder), honest
    for cell in plan.cells:
        record = store.load(cell.key)
        both.save(record.pop("spec"), record)
    version = plan.cells[0].spec["version"]
    found = changes(f"{folder}@{version}", f"{folder}@9.9")
    assert all(r.changed == len(r.seeds) == 3 for r in found.rows)
    by_commit = changes(f"{folder}@aaaa", f"{folder}@{'f' * 8}")
    assert [r.changed for r in by_commit.rows] == [3, 3, 3, 3]
    with pytest.raises(ValueError, match="there is no result in"):
        load_side(f"{folder}@7.7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.plan.cells.code_hash", lambda: "e" * 64)
        again = make_plan(parse_suite("s", SUITE))
    record = store.load(plan.cells[0].key)
    del record["spec"]
    both.save(again.cells[0].spec, record)
    with pytest.raises(ValueError, match="holds two results of tiny / oracle / seed 0"):
        load_side(f"{folder}@{version}")


def test_the_command_prints_a_table_or_json(honest, tmp_path, bench, capsys):
    a, b = str(honest[0]), str(copy(honest, tmp_path / "b", keep=lambda s: s["seed"] < 2))
    assert bench("compare", a, b) == 0
    out = capsys.readouterr().out
    assert "0 of 8 common cells have another result" in out
    assert f"only in {a}: tiny / greedy / seed 2" in out.replace("\n", "")
    assert bench("compare", a, b, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cells"], document["changed"]) == (8, 0)
    assert {row["agent"] for row in document["rows"]} == {"greedy", "oracle", "random", "twin"}
    assert bench("compare", a, str(tmp_path / "nowhere")) == 2
    assert "there is no" in capsys.readouterr().err
    assert bench("compare", "random", "oracle", "--results", a) == 0
    out = capsys.readouterr().out
    assert "3 paired seeds" in out
    assert "mean queue" in out
    assert "difference: oracle - random" in out


# --- two agents of a run --------------------------------------------------------------------------


def agents(store, first, second):
    [row] = find_changes(agent_side(store, first), agent_side(store, second)).rows
    return row


def test_differences_of_agents_are_those_of_coupled_seeds(honest):
    store, plan = honest
    by = {
        (cell.spec["agent"]["label"], cell.spec["seed"]): store.load(cell.key)["metrics"]
        for cell in plan.cells
    }
    gaps = [by["oracle", s]["mean_queue"] - by["random", s]["mean_queue"] for s in range(3)]
    found = agents(store, "random", "oracle")
    assert found.seeds == [0, 1, 2]
    pair = found.figures["mean_queue"]
    assert pair.difference == pytest.approx(t_interval(gaps))
    assert pair.second - pair.first == pytest.approx(np.mean(gaps))


def test_an_agent_is_its_twin_under_the_other_protocol(honest):
    found = agents(honest[0], "greedy", "twin")
    assert found.changed == 0
    assert found.figures["routing_regret"].difference == (0.0, 0.0, 0.0)


def test_unknown_agents_are_named(honest):
    with pytest.raises(ValueError, match=r"agent='gredy' has no result.*greedy, oracle"):
        agent_side(honest[0], "gredy")


def test_agents_and_results_are_compared_alike(honest, tmp_path, bench, capsys):
    """One sign, and one shape: results in which ``random`` plays under the oracle's name."""
    store, other = honest[0], Store(tmp_path / "r")
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
        task = json.loads(capsys.readouterr().out)["tasks"]["tiny"]
        found = task["mean_queue"]["difference"]
        assert found == pytest.approx(row["figures"]["mean_queue"]["difference"], rel=digits)
        assert found.keys() == {"value", "low", "high"}
        assert found["value"] > 0
