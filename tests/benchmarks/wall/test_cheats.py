"""Every cheat of the panel plays like `random` behind the wall, bit for bit, or fails."""

import json
import os
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.held_out import read_held_out
from benchmarks.plan.suite import parse_suite
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.store import Store
from benchmarks.wall import fence

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the wall needs POSIX processes")

KWARGS = {"load": 0.9, "num_llms": 4, "assortment_size": 1, "window": 8}
TASK = {"name": "cheat", "env": "LLMQueue-v0", "horizon": 150, "kwargs": KWARGS}
SECRET = b"0123456789abcdef" * 2

SEE_THE_WORLD = ("WalksTheStack", "ReadsTheHeap", "GuessesSeeds")
HARMLESS = (
    *("ImportsTheOracle", "ScribblesOnArrays", "ScribblesOnSharedMemory", "PatchesModules"),
    "SleepsBetweenSteps",
)
NEED_NAMESPACES = ("RewritesResults", "RemembersOnDisk", "Forks", "CallsOut", "Undoes")
FAIL = {"PrintsEscapes": "red", "ForgesAnswers": "something that is no answer"}


@pytest.fixture
def panel(tmp_path, monkeypatch):
    """Return a function that plays cheats by name: {name: [outcome a seed]}, and of `random`."""
    shutil.copy(Path(__file__).with_name("cheats.py"), tmp_path / "panel_of_cheats.py")
    (tmp_path / "secret").write_bytes(SECRET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "panel_of_cheats", raising=False)
    results, engines = tmp_path / "r", []
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = {"kwargs": KWARGS, "results": str(results), "secret": str(tmp_path / "secret")}
        told["port"] = server.getsockname()[1]
        (tmp_path / "told.json").write_text(json.dumps(told))

        def play(names, held_out=True, trust=None):
            suite = parse_suite("s", {"seeds": 2, "agents": [], "task": [TASK]})
            secret = read_held_out(tmp_path / "secret") if held_out else None
            agents = ["panel_of_cheats:Cheat"]
            plan = make_plan(suite, agents=agents, trust=trust, held_out=secret)
            execute(replace(plan, cells=plan.cells[:1]), Store(results), engine(), {"command": ""})
            first = [c for c in plan.cells if c.spec["agent"]["name"] == agents[0]]
            cells = [
                replace(cell, spec={**cell.spec, "agent": {**cell.spec["agent"], **named}})
                for name in names
                for named in [{"name": f"panel_of_cheats:{name}", "label": name}]
                for cell in first
            ]
            found = {name: [] for name in names}
            for outcome in engine().run(cells):
                found[outcome.cell.spec["agent"]["label"]].append(outcome)
            return found

        def engine():
            hidden = (str(results), str(tmp_path / "secret"))
            engines.append(LocalEngine(2, hidden=hidden))
            return engines[-1]

        play.results = results
        yield play


def honest(outcomes):
    """Return what `random` does on the same seeds, playing inside."""
    cells = [
        replace(
            o.cell,
            walled=False,
            agent_seed=o.payload["wall"]["agent_seed"],
            spec={**o.cell.spec, "agent": {"name": "random", "label": str(n), "settings": {}}},
        )
        for n, o in enumerate(outcomes)
    ]
    found = {o.cell.spec["agent"]["label"]: o.payload for o in LocalEngine(2).run(cells)}
    return [found[str(n)] for n in range(len(outcomes))]


def test_every_cheat_plays_like_random_or_fails_by_name(panel):
    names = [*SEE_THE_WORLD, *HARMLESS, *NEED_NAMESPACES, *FAIL]
    found = panel(names)
    kept_in = {o.payload["wall"]["isolation"] for o in found["WalksTheStack"]}
    fenced = kept_in == {fence.NAMESPACES}
    playing = [n for n in names if n not in FAIL and (fenced or n not in NEED_NAMESPACES)]
    outcomes = [outcome for name in playing for outcome in found[name]]
    assert {f"{o.cell}: {o.payload['error']}" for o in outcomes if o.failed} == set()
    for outcome, floor in zip(outcomes, honest(outcomes), strict=True):
        assert outcome.payload["metrics"] == floor["metrics"], str(outcome.cell)
        assert outcome.payload["curve"] == floor["curve"], str(outcome.cell)
    for name, words in FAIL.items():
        for outcome in found[name]:
            assert outcome.failed
            assert words in outcome.payload["error"]
            assert len(outcome.payload["output"]) <= 4_000
    slow = [o.payload["timing"]["decision_us_mean"] for o in found["SleepsBetweenSteps"]]
    assert min(slow) > 2_000  # a step is decided only where somebody waits
    assert [path.name for path in (panel.results / "cells").iterdir()] != ["forged.json"]
    assert len(list((panel.results / "cells").iterdir())) == 1
    assert Store(panel.results).load_run()["suite"] == "s"


def test_without_the_wall_or_secret_seeds_the_same_cheats_see_the_world(panel):
    """So the panel's tests can fail; and only held-out seeds stop one that rebuilds the world."""
    inside = panel(SEE_THE_WORLD[:2], trust=True)
    known = panel(SEE_THE_WORLD[2:], held_out=False)
    for name, outcomes in {**inside, **known}.items():
        assert [o.payload.get("error") for o in outcomes] == [None, None], name
        regrets = [o.payload["metrics"]["routing_regret"] for o in outcomes]
        assert max(regrets) < 0.5, name
