"""Exported runs: what a report reads comes back, files are small, repeatable and checked."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plan.suite import spec_key
from benchmarks.report import board_markdown
from benchmarks.report.data import task_warnings
from benchmarks.report.page import page_data
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score import export
from benchmarks.score.export import ExportedRun, export_run, open_results
from benchmarks.score.intervals import decay_exponent, fitted_points, growth_exponent
from benchmarks.score.scoring import load_board

ROOT = Path(__file__).resolve().parents[3]
T = np.unique(np.rint(np.geomspace(1, 5000, 200)))
ORIGIN = {
    "command": "llmqueue-bench run s",
    "version": "0",
    "commit": "c+",
    "python": "3",
    "numpy": "2",
    "gymnasium": "1",
    "machine": "m",
}


def spec(task, agent, seed):
    kind = "LLMDeploy-v0" if task == "deploy" else "LLMQueue-v0"
    body = {"name": task, "env": kind, "kwargs": {}, "horizon": 5000, "headline": True, "tags": []}
    return {
        "task": body,
        "agent": {"name": agent, "label": agent, "settings": {}},
        "seed": seed,
        "protocol": "online",
        "version": "0",
    }


def payload(one, rng):
    quality = {"oracle": 1.0, "good": 1.3, "poor": 3.0, "random": 9.0}[one["agent"]["label"]]
    sums = np.cumsum(rng.poisson(quality, T.size) * np.diff(T, prepend=0))
    record = {
        "provenance": ORIGIN,
        "timing": {"decision_us_median": rng.uniform(1, 9), "wall_seconds": rng.uniform(1, 9)},
    }
    if one["task"]["name"] != "deploy":
        metrics = {"mean_queue": sums[-1] / 5000, "tail_queue": quality, "wait_p95": None}
        metrics |= {"retrials_per_departed": rng.uniform(), "routing_regret": rng.uniform(1, 99)}
        metrics |= {"luck": 0.1, "arrival_rate": 0.5, "capacity": 0.7}
        return record | {
            "metrics": metrics,
            "llms": {"LLM": ["a", "b"], "keep rate, shown alone": [0.5, 0.1 * one["seed"]]},
            "curve": {
                "t": T.tolist(),
                "queue": sums.tolist(),
                "regret": (T**0.5 * rng.uniform(1, 2)).tolist(),
            },
        }
    names = ("ledger", "reward", "regret", "spend", "luck", "budget", "mean_regret")
    counts = ("refused", "violations", "num_stages", "max_deployed", "num_llms")
    metrics = {n: rng.uniform() / quality for n in names} | dict.fromkeys(counts, 2)
    served = rng.integers(0, 9, (5, 4)) * (rng.uniform(size=(5, 4)) < 0.4)
    return record | {
        "metrics": metrics,
        "curve": {"t": T.tolist(), **{n: (T / 7000).tolist() for n in ("ledger", "spend")}}
        | {"regret": (T**0.6).tolist()},
        "traffic": {
            "llms": ["a", "b", "c", "d"],
            "arrival": [0, 0, 10, 20],
            "starts": [0, 10, 20, 30, 40],
            "lengths": [10] * 5,
            "served": served.tolist(),
        },
    }


@pytest.fixture
def store(tmp_path):
    """A run with both kinds, one failed cell and one that is missing."""
    rng = np.random.default_rng(0)
    store = Store(tmp_path / "results")
    agents = ("oracle", "random", "good", "poor")
    cells = [spec(t, a, s) for t in ("queue", "deploy") for a in agents for s in range(4)]
    for one in cells[:-2]:
        warned = one["task"]["name"] == "queue" and one["seed"] < 3
        text = f"over budget in {one['seed'] + 2} of 20 stages"
        store.save(one, payload(one, rng) | ({"warnings": [text]} if warned else {}))
    store.save_failure(cells[-1], {"error": "boom", "traceback": "long", "output": "x"})
    run = {"suite": "s", "skipped": {"that": "why"}, "cells": cells, "provenance": ORIGIN}
    run["trainings"] = []
    store.save_run(run)
    return store


def test_a_report_of_the_export_is_that_of_the_folder(store, tmp_path):
    export_run(store, tmp_path / "s.json.gz")
    back = open_results(tmp_path / "s.json.gz")
    assert isinstance(back, ExportedRun)
    assert isinstance(open_results(store.root), Store)
    assert store.load_run().items() >= back.load_run().items()
    mine, theirs = load_board(back), load_board(store)
    assert board_markdown(mine) == board_markdown(theirs)
    assert mine.failures[0][1]["error"] == "boom"
    shown = {t["task"]: t["llms"] for s in page_data(mine)["sections"] for t in s["tasks"]}
    columns = ["LLM", "keep rate, shown alone"]
    note = "Of seed 0; every seed has its own."
    assert shown["queue"] == {"note": note, "columns": columns, "lines": [["a", "0.5"], ["b", "0"]]}
    assert shown["deploy"] is None  # of results that do not hold them
    assert mine.missing == theirs.missing != []


def test_metrics_keep_six_digits_and_traffic_everything(store, tmp_path):
    export_run(store, tmp_path / "s.json.gz")
    back = open_results(tmp_path / "s.json.gz")
    for one in store.load_run()["cells"][:-2]:
        mine, theirs = back.load(spec_key(one)), store.load(spec_key(one))
        assert mine["spec"] == theirs["spec"] == one
        assert mine["provenance"] == ORIGIN
        assert mine.get("traffic") == theirs.get("traffic")
        for part in ("metrics", "timing"):
            for name, value in theirs[part].items():
                assert mine[part][name] == (None if value is None else pytest.approx(value, 1e-5))
        assert 30 <= len(mine["curve"]["t"]) <= 45


@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=60).map(np.cumsum)
    | st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60).map(np.array)
    | st.lists(st.integers(0, 50), min_size=1, max_size=60).map(np.cumsum)
)
def test_a_curve_comes_back_within_half_a_unit(values):
    values = values.astype(float)
    back = np.array(export._unpack_curve(export._pack_curve(values)))
    limit = float(np.abs(values).max()) / 1e4  # ten units: the power of ten is rounded up
    assert np.abs(back - values).max() <= limit / 2 * (1 + 1e-9) + 1e-280
    if np.array_equal(values, np.rint(values)) and limit <= 10:
        np.testing.assert_array_equal(back, values)


def test_exponents_of_a_thinned_curve_are_those_of_the_whole(store, tmp_path):
    rng = np.random.default_rng(1)
    kept = export._kept_points(T)
    curves = np.cumsum(rng.uniform(0, 2, (3, T.size)) * np.diff(T, prepend=0) ** 0.7, axis=1)
    assert growth_exponent(T[kept], curves[:, kept]) == growth_exponent(T, curves)
    assert decay_exponent(T[kept], curves[:, kept]) == decay_exponent(T, curves)
    assert 11 <= fitted_points(T).size <= 20


def test_the_same_results_give_the_same_bytes(store, tmp_path):
    size = export_run(store, tmp_path / "a.json.gz")
    export_run(store, tmp_path / "b.json.gz")
    content = (tmp_path / "a.json.gz").read_bytes()
    assert content == (tmp_path / "b.json.gz").read_bytes()
    assert len(content) == size < 20_000
    assert [p.name for p in tmp_path.glob(".*")] == []


def edited(path, change):
    document = json.loads(gzip.decompress(path.read_bytes()))
    change(document)
    path.write_bytes(gzip.compress(json.dumps(document).encode()))


def test_damaged_files_are_named_and_never_read(store, tmp_path):
    path = tmp_path / "s.json.gz"
    export_run(store, path)
    whole = path.read_bytes()
    for content in (b"", whole[:-9], b"text", gzip.compress(b"[1]"), gzip.compress(b"{}")):
        path.write_bytes(content)
        with pytest.raises(CorruptResultError, match="truncated or no export"):
            open_results(path)
    path.write_bytes(whole)
    edited(path, lambda d: d["content"]["groups"][0]["metrics"]["luck"].reverse())
    edited(path, lambda d: d["content"]["run"].update(suite="other"))
    with pytest.raises(CorruptResultError, match="edited"):
        open_results(path)
    edited(path, lambda d: d.update(format="other"))
    with pytest.raises(CorruptResultError, match=r"no export.*'other'"):
        open_results(path)


def test_a_newer_schema_is_refused_with_what_to_do(store, tmp_path):
    path = tmp_path / "s.json.gz"
    export_run(store, path)
    assert json.loads(gzip.decompress(path.read_bytes()))["schema"] == export.SCHEMA
    newer = export.SCHEMA + 1
    edited(path, lambda d: d.update(schema=newer, content={"what": "nobody knows yet"}))
    with pytest.raises(CorruptResultError, match=f"schema {newer}.*up to schema.*upgrade"):
        open_results(path)
    for wrong in (0, "2", None, True):
        edited(path, lambda d, wrong=wrong: d.update(schema=wrong))
        with pytest.raises(CorruptResultError, match="no export"):
            open_results(path)


def test_files_of_the_first_schema_are_still_read(store, tmp_path):
    path = tmp_path / "s.json.gz"
    export_run(store, path)
    edited(path, lambda d: (d.pop("schema"), d.update(format="llmqueue-bench export 1")))
    assert board_markdown(load_board(open_results(path))) == board_markdown(load_board(store))


def test_every_field_of_the_file_is_documented(store, tmp_path):
    text = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    _, _, schema = text.partition("## The export schema")
    export_run(store, tmp_path / "s.json.gz")
    document = json.loads(gzip.decompress((tmp_path / "s.json.gz").read_bytes()))
    content = document["content"]
    fields = {*document, *content, *content["run"]}
    fields |= {name for group in content["groups"] for name in group}
    fields |= {name for group in content["groups"] for name in group["spec"]}
    fields |= {
        name for group in content["groups"] for run in group.get("traffic", ()) for name in run
    }
    assert {name for name in fields if f"`{name}`" not in schema} == set()
    assert f"schema `{export.SCHEMA}`" in schema


def test_warnings_of_an_instance_come_back_and_are_shown_once(store, tmp_path):
    export_run(store, tmp_path / "s.json.gz")
    back = open_results(tmp_path / "s.json.gz")
    for one in store.load_run()["cells"][:-2]:
        mine, theirs = back.load(spec_key(one)), store.load(spec_key(one))
        assert mine.get("warnings") == theirs.get("warnings")
    board = load_board(back)
    text = "over budget in 2 to 4 of 20 stages (3 of 4 seeds)"
    assert task_warnings(board) == {"queue": [text]}
    assert board_markdown(board).count(f"Warning: {text}.") == 1
    assert [task["warnings"] for task in page_data(board)["sections"][0]["tasks"]] == [[text]]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("run"),
        lambda c: c["groups"][0].pop("spec"),
        lambda c: c["groups"][0].update(t=10**6),
        lambda c: c["groups"][0]["metrics"].update(luck=[]),
        lambda c: c["groups"][0]["curve"].update(queue=["abc"] * 4),
        lambda c: c["groups"][4]["traffic"][0].update(gaps=[10**6]),
        lambda c: c.update(groups=3),
    ],
)
def test_an_export_of_another_shape_is_an_error_in_words(store, tmp_path, change):
    path = tmp_path / "s.json.gz"
    export_run(store, path)

    def forged(document):
        change(document["content"])
        document["checksum"] = export.checksum(document["content"])

    edited(path, forged)
    with pytest.raises(CorruptResultError, match="does not hold"):
        open_results(path)


def test_a_damaged_result_is_not_exported(store, tmp_path):
    victim = next((store.root / "cells").iterdir())
    victim.write_text(victim.read_text()[:-30])
    with pytest.raises(CorruptResultError, match=victim.name):
        export_run(store, tmp_path / "s.json.gz")
    assert not (tmp_path / "s.json.gz").exists()
