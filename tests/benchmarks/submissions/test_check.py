"""The six checks of a submission: an honest one passes them, a forged one fails at each."""

import gzip
import json
import os
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.held_out import read_held_out
from benchmarks.plan.suite import canonical, load_suite
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.store import Store
from benchmarks.score.export import export_run
from benchmarks.submissions.check import Settings, check, gain_of_known_seeds
from benchmarks.submissions.comment import TITLES, markdown
from benchmarks.submissions.entry import (
    cells_path,
    file_digest,
    read_submission,
    submission_text,
    write_submission,
)
from benchmarks.submissions.folder import note_mark, read_folder
from benchmarks.submissions.mark import mark_held_out, mark_replayed
from benchmarks.submissions.releases import draw_secret, publish_secret
from benchmarks.submissions.submit import read_seeds, submit
from llmqueue_gym.errors import UsageError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the wall needs POSIX processes")

SUITE = """
seeds = 3
agents = []

[[task]]
name = "small"
env = "LLMQueue-v0"
horizon = 600

[task.kwargs]
load = 0.9
num_llms = 4
assortment_size = 1
window = 8
"""
AGENTS = """

class KnowsSeeds(GuessesSeeds):
    def __init__(self, problem, seed):
        Cheat.__init__(self, problem, seed)
        self.envs = [gym.make("LLMQueue-v0", **TOLD["kwargs"]) for _ in range(3)]
        for number, env in enumerate(self.envs):
            env.reset(seed=number)


class Unsure(RandomAgent):
    def __init__(self, problem, seed):
        super().__init__(problem, int.from_bytes(os.urandom(4), "big"))
"""
CODE = "https://example.org/a/b@" + "0123456789" * 4
CHEATS = Path(__file__).parents[1] / "wall" / "cheats.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a folder with spaces: results ``r`` of an honest agent, a cheat and an unsure one."""
    folder = tmp_path_factory.mktemp("a b") / "with spaces"
    folder.mkdir()
    (folder / "tiny.toml").write_text(SUITE)
    (folder / "handed_in.py").write_text(CHEATS.read_text("utf-8") + AGENTS)
    kwargs = {"load": 0.9, "num_llms": 4, "assortment_size": 1, "window": 8}
    (folder / "told.json").write_text(json.dumps({"kwargs": kwargs}))
    sys.path.append(str(folder))
    agents = [f"handed_in:{name}" for name in ("Cheat", "KnowsSeeds", "Unsure")]
    plan = make_plan(load_suite(str(folder / "tiny.toml")), agents=agents)
    tally = execute(plan, Store(folder / "r"), LocalEngine(2), {**ORIGIN, "command": "c"})
    assert tally.failed == 0
    yield folder
    sys.path.remove(str(folder))


ORIGIN = {"commit": None, "python": "3", "numpy": "2", "machine": "m", "version": "0"}


def hand_in(results, out, agent="Cheat", **said):
    suite, agent = str(results / "tiny.toml"), f"handed_in:{agent}"
    own = {"name": "My agent / 1", "code": CODE, "folder": out, "suite": suite, **said}
    return submit(results / "r", agent, **own)


def settings(results, **how):
    draw = partial(Random(0).getrandbits, 40)
    return Settings(
        LocalEngine(2), suite=str(results / "tiny.toml"), **{"fresh": 2, "draw": draw, **how}
    )


def forge(path, change):
    """Edit the cells of a submission as a forger would: all checksums are right again."""
    document = json.loads(gzip.decompress(cells_path(path).read_bytes()))
    change(document["content"])
    document["checksum"] = file_digest(canonical(document["content"]).encode())
    cells_path(path).write_bytes(gzip.compress(json.dumps(document).encode()))
    digest = file_digest(cells_path(path).read_bytes())
    path.write_text(submission_text(replace(read_submission(path), cells_sha256=digest)))


def refused(found):
    return [TITLES.index(title) + 1 for title, passed in found.passed.items() if not passed]


def own_group(content):
    """Return the group of the agent's cells."""
    names = [content["shared"][group["spec"]["agent"]]["label"] for group in content["groups"]]
    return content["groups"][[":" in name for name in names].index(True)]


# --- an honest one, and cheats --------------------------------------------------------------------


def test_an_honest_submission_passes_and_its_references_are_the_published_ones(results, tmp_path):
    path = hand_in(results, tmp_path / "sub missions")
    assert path.name == "my-agent-1.toml"
    export_run(Store(results / "r"), tmp_path / "published.json.gz")
    how = settings(results, cells=3, against=tmp_path / "published.json.gz")
    found = mark_replayed(path, how)
    assert found.accepted, found.words
    [entry] = read_folder(path.parent)
    assert entry.mark == "replayed"
    assert entry.replayed_by.startswith("3 cells drawn by 0")
    assert "less the best row, handed_in:KnowsSeeds: -" in found.words[TITLES[5]]
    text = markdown(found)
    assert text.startswith("### `my-agent-1.toml`: accepted")
    assert text.count(": passed") == 6


def test_an_agent_that_knows_the_public_seeds_is_refused_at_the_fourth_check(results, tmp_path):
    found = check(hand_in(results, tmp_path, "KnowsSeeds"), settings(results, cells=1, fresh=5))
    assert refused(found) == [4], found.words
    assert "on public seeds less that on fresh ones" in found.words[TITLES[3]]


def test_an_agent_with_random_numbers_of_its_own_is_refused_at_the_fifth(results, tmp_path):
    found = mark_replayed(hand_in(results, tmp_path, "Unsure"), settings(results, cells=4))
    assert refused(found) == [2, 5]
    assert [entry.mark for entry in read_folder(tmp_path)] == ["self-reported"]
    assert "2 of 2 cells differ" in found.words[TITLES[4]]


def test_better_figures_no_wall_and_a_weak_oracle_are_refused_at_2_3_and_6(results, tmp_path):
    path = hand_in(results, tmp_path / "s")

    def change(content):
        group = own_group(content)
        group["metrics"]["mean_queue"][0] *= 0.999
        group["wall"][-1] = None

    forge(path, change)
    export_run(Store(results / "r"), tmp_path / "p.json.gz")
    document = json.loads(gzip.decompress((tmp_path / "p.json.gz").read_bytes()))
    for group in document["content"]["groups"]:
        group["metrics"]["mean_queue"] = [2 * value for value in group["metrics"]["mean_queue"]]
    document["checksum"] = file_digest(canonical(document["content"]).encode())
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    found = check(path, settings(results, against=tmp_path / "p.json.gz"))
    assert {2, 3, 6} <= set(refused(found))
    assert "metrics.mean_queue: stored" in found.words[TITLES[1]]
    assert "did not play behind the wall" in found.words[TITLES[2]]
    assert "in the published results" in found.words[TITLES[5]]
    assert not found.accepted


# --- the first check ------------------------------------------------------------------------------


def twice(content):
    own_group(content)["seeds"].append(0)


def less(content):
    content["groups"].remove(own_group(content))


def other_task(content):
    place = own_group(content)["spec"]["task"]
    content["shared"][place] = {**content["shared"][place], "horizon": 10}


def words(content):
    own_group(content)["metrics"]["mean_queue"][0] = "<script>"


def not_finite(content):
    own_group(content)["metrics"]["mean_queue"][0] = 1e999


def no_wall_that_is_one(content):
    own_group(content)["wall"][0] = ["namespaces"]


def seeds_of_no_agent(content):
    own_group(content)["wall"][0]["agent_seed"] = -1


def other_files(content):
    content["run"]["data"] = {"small": {"x": "../../etc/passwd"}}


def nothing(content):
    content["groups"][0] = {}


FORGED = {
    twice: "there twice: small / handed_in:Cheat / seed 0",
    less: "missing",
    other_task: "not planned by the suite",
    words: "is no number",
    not_finite: "not JSON compliant|is no number|truncated",
    no_wall_that_is_one: "what no run writes",
    seeds_of_no_agent: "is no seed",
    other_files: "other data files",
    nothing: "does not hold what an export does",
}


@pytest.mark.parametrize("change", FORGED)
def test_cells_that_are_not_those_of_the_plan_are_refused_at_the_first_check(
    results, tmp_path, change
):
    path = hand_in(results, tmp_path)
    try:
        forge(path, change)
    except ValueError:
        assert change is not_finite  # not even a checksum of it can be made
        return
    found = check(path, settings(results))
    assert list(found.passed.values()) == [False]
    assert any(part in found.words[TITLES[0]] for part in FORGED[change].split("|"))


CLAIMS = {
    "plan": ("ab" * 32, "run the suite again"),
    "suite": ("quick-9", "run the suite again"),
    "code_sha256": ("ab" * 32, "check out https://example.org/a/b"),
    "protocol": ("pretrained", "its cells say"),
    "version": ("9.9", "its cells say"),
    "agent": ("handed_in:Unsure", "not planned by the suite"),
    "cells_sha256": ("ab" * 32, "it was changed"),
}


@pytest.mark.parametrize("key", CLAIMS)
def test_a_claim_that_is_not_so_is_refused_at_the_first_check(results, tmp_path, key):
    value, said = CLAIMS[key]
    path = hand_in(results, tmp_path)
    write_submission(replace(read_submission(path), **{key: value}), tmp_path)
    found = check(path, settings(results))
    assert list(found.passed.values()) == [False]
    assert said in found.words[TITLES[0]]


# --- held-out scores ------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "played"), [([], 1), (["--workers", "2"], 2)])
def test_held_out_cells_play_one_at_a_time_and_cannot_talk(
    bench, tmp_path, monkeypatch, asked, played
):
    secret, found = tmp_path / "secret", []
    secret.write_text("0" * 64)

    def mark(path, release, drawn, how):
        found.append(how.engine._pool.workers)
        return {}

    monkeypatch.setattr("benchmarks.submissions.mark.mark_held_out", mark)
    file = str(tmp_path / "x.toml")
    held_out = ["--held-out", "0.2.0", "--secret", str(secret)]
    assert bench("submission", "mark", file, *held_out, *asked) == 0
    assert found == [played]


def test_only_scores_on_held_out_seeds_are_noted_and_only_of_what_was_replayed(results, tmp_path):
    path, file = hand_in(results, tmp_path / "s"), tmp_path / "secret"
    other = tmp_path / "other"
    how, _ = settings(results), draw_secret("0.2.0", file, path.parent)
    draw_secret("0.3.0", other, path.parent)
    secret = read_held_out(file)
    with pytest.raises(UsageError, match="mark it --replayed first"):
        mark_held_out(path, "0.2.0", secret, how)
    note_mark(path, replayed="run 7")
    for release in ("0.3.0", "0.4.0"):
        with pytest.raises(UsageError, match=f"is not that of release '{release}'"):
            mark_held_out(path, release, secret, how)
    scores = mark_held_out(path, "0.2.0", secret, how)
    publish_secret("0.3.0", other, path.parent)
    with pytest.raises(UsageError, match=r"'0\.3\.0' is over"):
        mark_held_out(path, "0.3.0", read_held_out(other), how)
    [entry] = read_folder(path.parent)
    assert (entry.mark, entry.replayed_by) == ("held-out", "run 7")
    assert entry.held_out["0.2.0"].keys() == scores.keys() == {"queueing"}
    assert entry.held_out["0.2.0"]["queueing"] == pytest.approx(scores["queueing"], abs=1e-4)
    low, high = scores["queueing"][1:]
    assert low < 0.5 < 1.0 > high  # it plays like random, whose seeds are other ones
    told = (path.parent / "marks.toml").read_text("utf-8")
    assert str(secret.seed(0)) not in told
    note_mark(path, held_out={"0.1.0": {"queueing": [0.5, 0.4, 0.6]}})
    assert read_folder(path.parent)[0].held_out.keys() == {"0.1.0", "0.2.0"}
    write_submission(replace(read_submission(path), tuning_runs=1), path.parent)
    note_mark(path, replayed="run 8")  # of other bytes, so the scores are gone
    assert read_folder(path.parent)[0].mark == "replayed"


# --- submit ---------------------------------------------------------------------------------------


def test_what_was_not_run_whole_and_behind_the_wall_is_not_written(results, tmp_path):
    suite = load_suite(str(results / "tiny.toml"))
    agents = ["handed_in:Cheat"]
    run = {"suite": "tiny", "skipped": {}, "provenance": {"command": ""}, "data": {}}
    plan = make_plan(suite, agents=agents)
    store = Store(tmp_path / "r")
    store.save_run({**run, "cells": [cell.spec for cell in plan.cells]})
    own = {"name": "n", "code": CODE, "folder": tmp_path, "suite": str(results / "tiny.toml")}
    with pytest.raises(UsageError, match="has no result"):
        submit(tmp_path / "r", *agents, **own)
    store.save_run({**run, "cells": [cell.spec for cell in plan.cells[1:]]})
    with pytest.raises(UsageError, match="cells missing: the run"):
        submit(tmp_path / "r", *agents, **own)
    shutil.copytree(results / "r", tmp_path / "trusted")
    for file in (tmp_path / "trusted" / "cells").iterdir():
        record = json.loads(file.read_text("utf-8"))
        record["payload"].pop("wall", None)
        record["checksum"] = file_digest(canonical(record["payload"]).encode())
        file.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="run the suite with --wall"):
        submit(tmp_path / "trusted", *agents, **own)
    assert not list(tmp_path.glob("*.toml"))


def test_seeds_are_read_as_they_are_typed():
    assert read_seeds("") == ()
    assert read_seeds("0-2, 7") == (0, 1, 2, 7)
    for text in ("a", "1-", "0-99999", "-1", "1;2"):
        with pytest.raises(UsageError, match="seeds="):
            read_seeds(text)


def test_a_fair_agent_is_seldom_accused_and_one_that_knows_its_seeds_is():
    rng = np.random.default_rng(0)
    tasks = [f"t{number}" for number in range(4)]

    def scores(shift, seeds):
        return {task: rng.normal(shift, 0.1 + k / 10, seeds) for k, task in enumerate(tasks)}

    accused = [
        gain > limit
        for gain, limit in (gain_of_known_seeds(scores(0, 5), scores(0, 5)) for _ in range(2000))
    ]
    assert sum(accused) <= 10
    gain, limit = gain_of_known_seeds(scores(1, 5), scores(0, 5))
    assert gain > limit
    assert gain_of_known_seeds({"t": [1.0]}, {"t": [0.0, 0.0]}) == (1.0, np.inf)
