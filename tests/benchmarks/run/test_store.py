"""The result store: whole files or none, and damaged, edited or foreign ones are noticed."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plan.suite import spec_key
from benchmarks.run.store import (
    CorruptResultError,
    Store,
    StoreBusyError,
    StoreLinkError,
    StoreWriteError,
    _seal,
)

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


# --- the plan, and results behind a URL -----------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@given(st.lists(st.fixed_dictionaries({"task": PLAIN, "seed": PLAIN, "agent": PLAIN}), max_size=6))
def test_a_packed_plan_is_read_as_it_was(tmp_path_factory, cells):
    store = Store(tmp_path_factory.mktemp("r"))
    run = {"suite": "s", "skipped": {}, "cells": cells, "provenance": {"command": "x"}}
    store.save_run(run)
    read = store.load_run()
    del read["spec"]
    assert read == run
    assert [spec_key(cell) for cell in read["cells"]] == [spec_key(cell) for cell in cells]


def test_a_plan_writes_what_cells_share_once(store):
    task = {"name": "t", "kwargs": {"workload": "x" * 1000}}
    cells = [{"task": dict(task), "agent": {"label": "a"}, "seed": seed} for seed in range(500)]
    store.save_run({"suite": "s", "skipped": {}, "cells": cells, "provenance": {}})
    assert (store.root / "run.json").stat().st_size < 20_000
    assert store.load_run()["cells"] == cells


@pytest.fixture(params=["folder", "file", "memory"])
def any_store(request, tmp_path):
    """A store behind each kind of address."""
    if request.param == "folder":
        return Store(tmp_path / "r")
    if request.param == "file":
        return Store((tmp_path / "a folder").as_uri())
    fsspec = pytest.importorskip("fsspec", reason="needs the extra `ray`")
    fsspec.filesystem("memory").rm("/", recursive=True)
    return Store("memory://bucket/results")


def test_results_that_were_meant_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store("results/tiny").save_run({"cells": []})
    Path("kept").mkdir()
    Path("kept/rl.json.gz").touch()
    for typed, meant in (("tiny", Path("results/tiny")), ("kept/rl", Path("kept/rl.json.gz"))):
        with pytest.raises(FileNotFoundError, match=re.escape(f"did you mean {meant}?")):
            Store(typed).load_run()


def test_a_store_is_the_same_wherever_it_is(any_store):
    with pytest.raises(FileNotFoundError, match="no results in"):
        any_store.load_run()
    assert any_store.keys() == set()
    any_store.save_failure(SPEC, {"error": "boom"})
    assert any_store.load_failure(KEY)["error"] == "boom"
    any_store.save(SPEC, PAYLOAD)
    assert any_store.load_failure(KEY) is None
    assert any_store.keys() == {KEY}
    other = spec_key({**SPEC, "seed": 1})
    assert dict(any_store.load_many([KEY, other])) == {KEY: {**PAYLOAD, "spec": SPEC}, other: None}
    any_store.save_run({"suite": "s", "skipped": {}, "cells": [SPEC], "provenance": {}})
    assert any_store.load_run()["cells"] == [SPEC]
    with any_store.lock():
        any_store.save(SPEC, {"metrics": {}})
    assert any_store.load(KEY)["metrics"] == {}


def test_a_file_url_is_the_folder_it_names(tmp_path):
    store = Store((tmp_path / "a folder").as_uri())
    store.save(SPEC, PAYLOAD)
    assert store.root == tmp_path / "a folder"
    assert Store(tmp_path / "a folder").load(KEY) == {**PAYLOAD, "spec": SPEC}


def test_damage_behind_a_url_is_noticed():
    fsspec = pytest.importorskip("fsspec", reason="needs the extra `ray`")
    store = Store("memory://damaged")
    assert store.root is None
    store.save(SPEC, PAYLOAD)
    files, path = fsspec.filesystem("memory"), f"/damaged/cells/{KEY}.json"
    files.pipe_file(path, files.cat_file(path)[:-5])
    with pytest.raises(CorruptResultError, match="memory://damaged/cells/"):
        store.load(KEY)
    [(_, found)] = store.load_many([KEY])
    assert isinstance(found, CorruptResultError)


def test_a_url_without_fsspec_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r'pip install "llmqueue_gym\[ray\]"'):
        Store("s3://bucket/results")


def test_a_lock_is_held_by_one_and_ends_with_it(store):
    with (
        store.lock(),
        pytest.raises(StoreBusyError, match=f"process {os.getpid()} on"),
        Store(store.root).lock(),
    ):
        pass
    with Store(store.root).lock():
        pass


def test_a_lock_that_cannot_be_written_is_a_write_error(store, monkeypatch, tmp_path):
    def full(self, *arguments, **settings):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as then:
        then.setattr(Path, "mkdir", full)
        with (
            pytest.raises(StoreWriteError, match=r"cannot write \.lock in .*No space"),
            store.lock(),
        ):
            pass
    with pytest.raises(OSError, match="of the body"), store.lock():
        raise OSError("of the body")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), Store(tmp_path / "file").lock():
        pass


def test_a_file_url_with_a_host_is_refused():
    with pytest.raises(ValueError, match=r"names the host 'results'.*or simply results/x"):
        Store("file://results/x")


def test_a_protocol_that_is_not_installed_is_named_with_its_url(monkeypatch):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra `ray`")

    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ImportError, match="results='s3://bucket/x': Install s3fs"):
        Store("s3://bucket/x")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
class TestLinksInAResultsFolder:
    """Nothing outside the folder is read, written, truncated or deleted through a link in it."""

    @pytest.fixture
    def elsewhere(self, tmp_path):
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        for name in ("kept", ".kept.tmp", f"{KEY}.json"):
            (folder / name).write_text("precious")
        return folder

    @staticmethod
    def untouched(folder):
        return len(list(folder.iterdir())) == 3 and all(
            path.read_text() == "precious" for path in folder.iterdir()
        )

    def test_a_linked_lock_is_refused(self, store, elsewhere):
        store.root.mkdir()
        (store.root / ".lock").symlink_to(elsewhere / "kept")
        with pytest.raises(StoreLinkError, match=r"\.lock is a symbolic link"), store.lock():
            pass
        assert self.untouched(elsewhere)

    @pytest.mark.parametrize("folder", ["cells", "failed"])
    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.lock().__enter__(),
            lambda store: (store.save(SPEC, PAYLOAD), store.save_failure(SPEC, {"error": "e"})),
            lambda store: (store.load(KEY), store.load_failure(KEY)),
        ],
        ids=["lock", "save", "load"],
    )
    def test_linked_folders_are_refused(self, store, elsewhere, folder, use):
        store.root.mkdir()
        (store.root / folder).symlink_to(elsewhere)
        with pytest.raises(StoreLinkError, match=f"{folder} is a symbolic link"):
            use(store)
        assert self.untouched(elsewhere)

    def test_a_temporary_name_cannot_be_guessed(self, store, monkeypatch):
        names = []
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda old, new: (names.append(old), replace(old, new)))
        store.save(SPEC, PAYLOAD)
        store.save(SPEC, PAYLOAD)
        assert len(set(names)) == 2
        assert all(len(Path(name).name) > len(KEY) + 16 for name in names)
