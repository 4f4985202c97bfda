"""The result store: whole files or none, and damaged, edited or foreign ones are noticed."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.store import CorruptResultError, Store, _seal
from benchmarks.suite import spec_key

SPEC = {"task": {"name": "t"}, "agent": {"label": "a"}, "seed": 0}
KEY = spec_key(SPEC)
PAYLOAD = {"metrics": {"mean_queue": 1 / 3, "wait_p95": None}, "curve": {"t": [1, 2]}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def path(store):
    return store.root / "cells" / f"{KEY}.json"


def test_what_is_saved_is_loaded_exactly(store):
    assert store.load(KEY) is None
    store.save(SPEC, PAYLOAD)
    assert store.load(KEY) == {**PAYLOAD, "spec": SPEC}


def test_success_removes_an_earlier_failure(store):
    store.save_failure(SPEC, {"error": "boom"})
    assert store.load_failure(KEY)["error"] == "boom"
    store.save(SPEC, PAYLOAD)
    assert store.load_failure(KEY) is None


def test_any_truncation_is_noticed(store):
    store.save(SPEC, PAYLOAD)
    whole = path(store).read_bytes()
    for length in range(len(whole)):
        path(store).write_bytes(whole[:length])
        with pytest.raises(CorruptResultError):
            store.load(KEY)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_noticed(tmp_path_factory, content):
    store = Store(tmp_path_factory.mktemp("r"))
    path(store).parent.mkdir()
    path(store).write_bytes(content)
    with pytest.raises(CorruptResultError):
        store.load(KEY)


def test_an_edited_number_is_noticed(store):
    store.save(SPEC, PAYLOAD)
    record = json.loads(path(store).read_text())
    record["payload"]["metrics"]["mean_queue"] = 0.0
    path(store).write_text(json.dumps(record))
    with pytest.raises(CorruptResultError, match="was edited"):
        store.load(KEY)


def test_another_cells_file_and_an_edited_spec_are_noticed(store):
    other = {**SPEC, "seed": 1}
    store.save(other, PAYLOAD)
    (store.root / "cells" / f"{spec_key(other)}.json").rename(path(store))
    with pytest.raises(CorruptResultError, match="another cell"):
        store.load(KEY)
    store.save(SPEC, PAYLOAD)
    record = json.loads(path(store).read_text())
    record["spec"]["seed"] = 5
    path(store).write_text(json.dumps(record))
    with pytest.raises(CorruptResultError, match="another cell"):
        store.load(KEY)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(store, monkeypatch):
    store.save(SPEC, PAYLOAD)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(SPEC, {"metrics": {}})
    assert store.load(KEY) == {**PAYLOAD, "spec": SPEC}
    assert [file.name for file in path(store).parent.iterdir()] == [path(store).name]


def test_nan_is_never_stored(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(SPEC, {"x": float("nan")})
    assert store.load(KEY) is None


def test_a_folder_without_a_run_says_what_to_type(store):
    with pytest.raises(FileNotFoundError, match="llmqueue-bench run"):
        store.load_run()


def test_a_plan_of_another_version_is_named_and_not_misread(store):
    spec = {"run": "plan"}
    plan = {"suite": "s", "skipped": {}, "provenance": {}, "cells": [SPEC]}  # a list of old
    store._write("run.json", _seal(spec, spec_key(spec), plan))
    with pytest.raises(CorruptResultError, match=r"run\.json has a plan of another version"):
        store.load_run()
