"""Frozen names of suites, secrets of releases, and who signed an export."""

import gzip
import json
import os

import pytest
from made_up import cells_of, queue_cell

from benchmarks.plan.cells import make_plan
from benchmarks.plan.held_out import read_held_out
from benchmarks.plan.suite import load_suite, parse_suite
from benchmarks.report.command import signed_by
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score.export import ExportedRun, export_run
from benchmarks.submissions import frozen
from benchmarks.submissions.frozen import Frozen, find_frozen, frozen_name, frozen_suites, plan_hash
from benchmarks.submissions.releases import draw_secret, publish_secret, read_releases
from llmqueue_gym.errors import UsageError

TASK = {"name": "t", "env": "LLMQueue-v0", "horizon": 50, "kwargs": {"num_llms": 3}}
SUITE = {"seeds": 2, "agents": ["ACQB"], "task": [TASK]}


def hash_of(document):
    return plan_hash(make_plan(parse_suite("s", document), trust=True))


# --- names of suites ------------------------------------------------------------------------------


def test_every_frozen_suite_is_what_it_was_or_has_its_next_name():
    pytest.importorskip("sklearn", reason="tasks with real queries need the extra data")
    newest = {one.suite: one for one in frozen_suites().values()}
    for suite, one in newest.items():
        advice = (
            f"{suite} is not what {one.name} stands for. If that is not on purpose, undo it; else "
            f"add what `llmqueue-bench submission freeze {suite}` prints to frozen.toml"
        )
        plan = make_plan(load_suite(suite), trust=True)
        assert plan_hash(plan) == one.plan, advice
        assert frozen.behaviour_hash(load_suite(suite)) == one.behaviour, advice


def test_a_plan_is_its_tasks_and_seeds_and_no_agent():
    own = hash_of(SUITE)
    assert hash_of({**SUITE, "agents": ["Q-UCB"], "description": "other words"}) == own
    for other in ({"seeds": 3}, {"task": [{**TASK, "horizon": 51}]}, {"task": [TASK]}):
        assert (hash_of({**SUITE, **other}) == own) == (other == {"task": [TASK]})


def test_other_dynamics_have_another_behaviour():
    suite = parse_suite("s", SUITE)
    harder = parse_suite("s", {**SUITE, "task": [{**TASK, "kwargs": {"num_llms": 4}}]})
    assert frozen.behaviour_hash(suite) == frozen.behaviour_hash(suite)
    assert frozen.behaviour_hash(suite) != frozen.behaviour_hash(harder)


def test_the_newest_name_of_a_suite_counts(monkeypatch):
    known = {f"s-{n}": Frozen(f"s-{n}", "s", f"plan {n}", "") for n in (1, 2)}
    monkeypatch.setattr(frozen, "frozen_suites", lambda: known)
    assert frozen_name("s", "plan 2") == "s-2"
    assert frozen_name("other", "plan") == "other"
    with pytest.raises(UsageError, match="submission freeze s"):
        frozen_name("s", "plan 1")
    with pytest.raises(UsageError, match="has been replaced by 's-2'"):
        find_frozen("s-1")
    with pytest.raises(UsageError, match="did you mean 's-2'"):
        find_frozen("s-22")


# --- secrets of releases --------------------------------------------------------------------------


def test_a_secret_is_drawn_once_and_published_afterwards(tmp_path):
    secret, other = tmp_path / "a secret", tmp_path / "other"
    digest = draw_secret("0.2.0", secret, tmp_path)
    assert os.name != "posix" or secret.stat().st_mode & 0o077 == 0
    assert read_releases(tmp_path) == {"0.2.0": {"sha256": digest}}
    draw_secret("0.3.0", other, tmp_path)
    for release, file in (("0.2.0", other), ("0.4.0", secret)):
        with pytest.raises(UsageError, match="is not that of release"):
            publish_secret(release, file, tmp_path)
    with pytest.raises(UsageError, match="has its secret"):
        draw_secret("0.2.0", tmp_path / "third", tmp_path)
    publish_secret("0.2.0", secret, tmp_path)
    own = read_releases(tmp_path)
    (tmp_path / "again").write_text(own["0.2.0"]["secret"])
    assert read_held_out(tmp_path / "again").seed(3) == read_held_out(secret).seed(3)
    assert own["0.3.0"].keys() == {"sha256"}
    with pytest.raises(UsageError, match=r"must read like 0\.2\.0"):
        draw_secret('"]', tmp_path / "third", tmp_path)


# --- signed exports -------------------------------------------------------------------------------


def test_a_report_says_who_signed_an_export_and_refuses_a_changed_one(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    from benchmarks.score.signing import new_key

    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "r")
    cells = cells_of(queue_cell, {"random": [9.0], "oracle": [1.0]})
    run = {"suite": "s", "skipped": {}, "provenance": {}, "cells": [c["spec"] for c in cells]}
    store.save_run(run)
    for cell in cells:
        store.save(cell["spec"], {name: part for name, part in cell.items() if name != "spec"})
    public = new_key(tmp_path / "key")
    export_run(store, tmp_path / "plain.json.gz")
    export_run(store, tmp_path / "signed.json.gz", key=tmp_path / "key")
    assert signed_by(ExportedRun(tmp_path / "plain.json.gz")).startswith("self-reported")
    assert signed_by(store).startswith("self-reported")
    signed = ExportedRun(tmp_path / "signed.json.gz")
    assert signed_by(signed) == f"signed by an unknown key, {public[:12]}"
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / "keys.toml").write_text(f'"@me" = "{public}"\n')
    assert signed_by(signed) == "signed by @me"
    plain, mine = (
        json.loads(gzip.decompress((tmp_path / f"{name}.json.gz").read_bytes()))
        for name in ("plain", "signed")
    )
    assert mine["content"]["run"] == {**plain["content"]["run"], "signer": public}
    export_run(signed, tmp_path / "again.json.gz")
    document = json.loads(gzip.decompress((tmp_path / "again.json.gz").read_bytes()))
    value = mine["signature"][1]
    document["signature"] = [public, value[:-1] + "01"[value[-1] == "0"]]
    (tmp_path / "forged.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    with pytest.raises(CorruptResultError, match="was changed after it was signed"):
        signed_by(ExportedRun(tmp_path / "forged.json.gz"))
    del mine["signature"]  # all that is left says that there was one
    (tmp_path / "stripped.json.gz").write_bytes(gzip.compress(json.dumps(mine).encode()))
    with pytest.raises(CorruptResultError, match="has no signature by it"):
        signed_by(ExportedRun(tmp_path / "stripped.json.gz"))
