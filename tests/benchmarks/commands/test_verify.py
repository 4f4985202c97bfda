"""Stored cells come out again bit for bit, and what does not is named, with its reason."""

import json

import pytest
from made_up import tiny_suite

from benchmarks.commands.verify import _differences, verify
from benchmarks.plan import cells as plan
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import SuiteError, parse_suite
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.runner import provenance
from benchmarks.run.store import Store
from benchmarks.score.export import export_run, open_results

SUITE = tiny_suite(horizon=40)
PLAN = make_plan(parse_suite("s", SUITE))
ENGINE = LocalEngine(2)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "r")
    execute(PLAN, store, ENGINE, provenance("test"))
    return store


def tamper(store, cell, change):
    """Write a result that is well sealed, but not what its cell gives."""
    record = store.load(cell.key)
    del record["spec"]
    change(record)
    store.save(cell.spec, record)


def test_every_cell_of_an_honest_run_comes_out_again(store):
    found = verify(store, 100, engine=ENGINE)
    assert found.verified
    assert len(found.checked) == found.candidates == len(PLAN.cells)
    assert {checked.key for checked in found.checked} == {cell.key for cell in PLAN.cells}
    assert all(checked.notes == [] for checked in found.checked)


def test_the_sample_is_a_function_of_its_seed(store):
    samples = [
        [checked.key for checked in verify(store, 2, seed, engine=LocalEngine(1)).checked]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) > 1
    assert all(len(set(sample)) == 2 for sample in samples)


def test_any_changed_field_is_named_with_both_values(store):
    first, second, third = PLAN.cells[:3]

    def nudge(record):
        record["metrics"]["mean_queue"] *= 1 + 2**-52

    def bend(record):
        record["curve"]["queue"][3] += 1

    def drop(record):
        del record["metrics"]["luck"]
        record["curve"]["t"].pop()

    for cell, change in ((first, nudge), (second, bend), (third, drop)):
        tamper(store, cell, change)
    found = {checked.key: checked for checked in verify(store, 100, engine=ENGINE).checked}
    [difference] = found[first.key].differences
    assert difference["field"] == "metrics.mean_queue"
    assert difference["stored"] != difference["recomputed"]
    assert "not reproducible" in found[first.key].notes[0]
    assert [d["field"] for d in found[second.key].differences] == ["curve.queue[3]"]
    named = {d["field"]: d for d in found[third.key].differences}
    assert named["metrics.luck"]["stored"] == "missing"
    assert named["curve.t"]["stored"] == "39 entries"
    assert sum(not checked.verified for checked in found.values()) == 3


def test_clock_and_provenance_are_not_compared(store):
    def change(record):
        record["timing"]["wall_seconds"] = 1e9
        record["provenance"]["command"] = "another"

    tamper(store, PLAN.cells[0], change)
    assert verify(store, 100, engine=ENGINE).verified


def test_other_code_is_reported_and_the_cell_computed_all_the_same(tmp_path, monkeypatch):
    store = Store(tmp_path / "old")
    with monkeypatch.context() as then:
        then.setattr(plan, "code_hash", lambda: "0" * 64)
        old = make_plan(parse_suite("s", SUITE))
        execute(old, store, ENGINE, {**provenance("test"), "commit": "abc123", "numpy": "1.0"})
    for cell in old.cells:  # a metric that was dropped since
        record = {k: v for k, v in store.load(cell.key).items() if k != "spec"}
        record["metrics"]["dropped"] = 1.0
        store.save(cell.spec, record)
    found = verify(store, 1, engine=ENGINE)
    [checked] = found.checked
    assert checked.status == "same"
    notes = " / ".join(checked.notes)
    assert "no longer recorded: dropped" in notes
    assert "the code of environments, agents and runner differs: 000000000000 then" in notes
    assert "at commit abc123" in notes
    assert "numpy differs: 1.0 then" in notes


def test_an_agent_whose_code_has_changed_is_computed_again_with_a_note(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "verified_agent.py"
    path.write_text(
        "from baselines.queueing.heuristics import RandomAgent\n"
        "class Mine(RandomAgent):\n    pass\n"
    )
    store = Store(tmp_path / "r")
    suite = parse_suite("s", {**SUITE, "agents": []})
    execute(make_plan(suite, agents=["verified_agent:Mine"]), store, ENGINE, provenance("test"))
    path.write_text(path.read_text() + "# a remark\n")
    checked = verify(store, 100, engine=ENGINE).checked
    assert {cell.status for cell in checked} == {"same"}
    noted = [cell for cell in checked if cell.notes]
    assert {cell.cell.split(" / ")[1] for cell in noted} == {"verified_agent:Mine"}
    assert "the code of the agent differs" in noted[0].notes[0]


def test_a_damaged_file_and_an_empty_folder_do_not_verify(store, tmp_path):
    path = store.root / "cells" / f"{PLAN.cells[0].key}.json"
    path.write_text(path.read_text()[:-9])
    found = verify(store, 100, engine=ENGINE)
    assert not found.verified
    assert [checked.status for checked in found.checked].count("damaged") == 1
    for file in (store.root / "cells").iterdir():
        file.unlink()
    nothing = verify(store, 100, engine=ENGINE)
    assert (nothing.checked, nothing.verified) == ([], False)


def test_tasks_whose_data_are_not_here_are_named_and_left_out(store, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.commands.verify.kwargs_here",
        lambda *_: (_ for _ in ()).throw(SuiteError("no file")),
    )
    found = verify(store, 100, engine=ENGINE)
    assert found.skipped == {"tiny": "no file"}
    assert not found.verified


def test_an_export_is_verified_to_the_digits_it_keeps(store, tmp_path):
    path = tmp_path / "run.json.gz"
    export_run(store, path)
    found = verify(open_results(path), 100, engine=ENGINE)
    assert found.verified
    assert len(found.checked) == len(PLAN.cells)

    def change(record):
        record["metrics"]["mean_queue"] *= 1.001

    def bend(record):
        record["curve"]["queue"][-1] += 1

    tamper(store, PLAN.cells[0], change)
    tamper(store, PLAN.cells[1], bend)
    export_run(store, path)
    found = verify(open_results(path), 100, engine=ENGINE)
    fields = {c.key: [d["field"] for d in c.differences] for c in found.checked if not c.verified}
    assert fields.keys() == {cell.key for cell in PLAN.cells[:2]}
    assert fields[PLAN.cells[0].key] == ["metrics.mean_queue"]
    [bent] = fields[PLAN.cells[1].key]
    assert bent.startswith("curve.queue[")


def test_the_command_says_how_closely_it_compares(store, tmp_path, bench, capsys):
    path = tmp_path / "run.json.gz"
    export_run(store, path)
    for results, words in (
        (path, "to the digits that an export keeps"),
        (store.root, "bit for bit"),
    ):
        assert bench("verify", results, "--sample", "1") == 0
        assert f"came out again, {words}" in capsys.readouterr().out
        assert bench("verify", results, "--sample", "1", "--json") == 0
        assert json.loads(capsys.readouterr().out)["compared"] == words


def test_the_command_says_what_differs_and_fails(store, bench, capsys):
    folder = str(store.root)
    assert bench("verify", folder, "--sample", "2", "--seed", "5") == 0
    assert "2 of 2 cells came out again" in capsys.readouterr().out
    tamper(store, PLAN.cells[0], lambda record: record["metrics"].update(retrials=-1))
    assert bench("verify", folder, "--sample", "100") == 1
    out = capsys.readouterr().out
    assert "DIFFERENT: tiny / oracle / seed 0" in out
    assert "metrics.retrials: stored -1, recomputed" in out
    assert bench("verify", folder, "--sample", "100", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is False
    assert [c["status"] for c in document["cells"]].count("different") == 1
    assert bench("verify", str(store.root / "nowhere")) == 2
    assert bench("verify", folder, "--sample", "0") == 2


@pytest.mark.parametrize(
    ("stored", "recomputed", "fields"),
    [
        ({"a": 1}, {"a": 1.0}, ["a"]),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": 0}]}, ["a[1].b"]),
        ({"a": True}, {"a": 1}, ["a"]),
        ({"a": {}}, {"a": {"b": 1}}, ["a.b"]),
        ({"a": []}, {"a": {}}, ["a"]),
    ],
)
def test_differences_are_exact_and_go_to_the_leaf(stored, recomputed, fields):
    assert [entry["field"] for entry in _differences(stored, recomputed)] == fields
    assert list(_differences(stored, stored)) == []
