"""Workers that die, hang, raise or misbehave cost their own cell; nothing else depends on them."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
from made_up import tiny_suite

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite, spec_key
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.pool import Pool, Report, _Running
from benchmarks.run.store import Store

AGENTS = '''
import os, sys, time
from pathlib import Path
import numpy as np
from baselines.queueing.heuristics import RandomAgent

class Fine(RandomAgent):
    pass

class Raises(RandomAgent):
    def act(self, observation):
        print("about to divide")
        return 1 / 0

class Garbage(RandomAgent):
    def act(self, observation):
        return "no action"

class Hangs(RandomAgent):
    def act(self, observation):
        while True:
            time.sleep(0.01)

class Waits(RandomAgent):
    """Leaves its process id behind and waits to be killed."""
    def act(self, observation):
        path = Path(__file__).with_name("pid")
        path.with_suffix(".part").write_text(str(os.getpid()))
        path.with_suffix(".part").replace(path)
        time.sleep(60)

class Tells(RandomAgent):
    def act(self, observation):
        raise ValueError("the variable is " + os.environ["LLMQUEUE_GYM_DATA"])

class Exits(RandomAgent):
    def act(self, observation):
        os._exit(3)

class RealTimeSignal(RandomAgent):
    def act(self, observation):
        os.kill(os.getpid(), 40)
        time.sleep(60)

class SysExits(RandomAgent):
    def act(self, observation):
        sys.exit("leaving")
'''

SUITE = tiny_suite(horizon=60)


@pytest.fixture
def agents(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_agents.py").write_text(AGENTS)
    return tmp_path


def plan(*labels, seeds=1, trust=True):
    """Agents that play in the workers' own processes, unless they are not trusted."""
    suite, agents = parse_suite("s", {**SUITE, "agents": []}), [f"odd_agents:{a}" for a in labels]
    return make_plan(suite, seeds=seeds, agents=agents, trust=trust)


def run(plan, store, engine, **callbacks):
    return execute(plan, store, engine, {"command": "test"}, **callbacks)


def failure(store, label):
    run = store.load_run()
    [spec] = [s for s in run["cells"] if s["agent"]["label"] == f"odd_agents:{label}"]
    assert store.load(spec_key(spec)) is None
    return store.load_failure(spec_key(spec))


def test_bad_agents_fail_alone_with_their_error(agents, tmp_path):
    store = Store(tmp_path / "r")
    engine = LocalEngine(2, timeout=5)
    tally = run(plan("Raises", "Garbage", "Exits", "SysExits", "Hangs", "Fine"), store, engine)
    assert (tally.computed, tally.failed) == (3, 5)
    raised = failure(store, "Raises")
    assert raised["error"].startswith("ZeroDivisionError: division by zero (odd_agents.py, line ")
    assert "return 1 / 0" in raised["traceback"]
    assert "about to divide" in raised["output"]
    assert "'no action' in step 0" in failure(store, "Garbage")["error"]
    assert "exit code 3" in failure(store, "Exits")["error"]
    assert "SystemExit: leaving" in failure(store, "SysExits")["error"]
    assert "timeout of 5 s" in failure(store, "Hangs")["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs real-time signals")
def test_a_real_time_signal_and_a_timeout_of_months_end_no_run(agents, tmp_path):
    store = Store(tmp_path / "r")
    tally = run(plan("RealTimeSignal", "Fine"), store, LocalEngine(2, timeout=3e9))
    assert (tally.computed, tally.failed) == (3, 1)
    assert "killed by signal 40" in failure(store, "RealTimeSignal")["error"]


def test_a_worker_that_sends_and_leaves_between_two_looks_has_a_result():
    """It is asked for its result before it has sent it, and whether it lives after it has left."""
    results, sender = multiprocessing.Pipe(duplex=False)

    class Results:
        def poll(self):
            there = results.poll()
            if not there:
                sender.send_bytes(b'{"state": "done", "payload": {"metrics": {}}}')
                process.alive = False
            return there

        def recv_bytes(self):
            return results.recv_bytes()

    class Process:
        alive, exitcode = True, 0

        def is_alive(self):
            return self.alive

    process, pool = Process(), Pool(1)
    at_work = _Running("job", process, Results(), None, float("inf"))
    reports = [pool._report(at_work), pool._report(at_work)]
    assert reports == [None, Report("job", "done", {"metrics": {}})]


@pytest.mark.parametrize("value", ["first", "second"])  # the fork server outlives a run
def test_workers_see_the_environment_of_their_run(agents, tmp_path, monkeypatch, value):
    monkeypatch.setenv("LLMQUEUE_GYM_DATA", value)
    store = Store(tmp_path / "r")
    run(plan("Tells"), store, LocalEngine(1))
    told = f"ValueError: the variable is {value} (odd_agents.py, "
    assert failure(store, "Tells")["error"].startswith(told)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_a_killed_worker_costs_its_cell_only_and_is_run_again(agents, tmp_path):
    mark = agents / "pid"

    def kill():
        deadline = time.monotonic() + 30
        while not mark.exists():
            if time.monotonic() > deadline:
                return  # the worker never came that far: the assertions below say so
            time.sleep(0.01)
        os.kill(int(mark.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    store = Store(tmp_path / "r")
    tally = run(plan("Waits", "Fine"), store, LocalEngine(2, timeout=30))
    killer.join()
    assert (tally.computed, tally.failed) == (3, 1)
    assert "killed by SIGKILL" in failure(store, "Waits")["error"]
    again = run(plan("Waits", "Fine"), store, LocalEngine(2, timeout=1))
    assert (again.computed, again.reused, again.failed) == (0, 3, 1)


def test_results_are_equal_for_any_number_of_workers(tmp_path):
    work = make_plan(parse_suite("s", SUITE))
    stores = {workers: Store(tmp_path / str(workers)) for workers in (1, 2)}
    for workers, store in stores.items():
        assert run(work, store, LocalEngine(workers)).computed == len(work.cells)
    for cell in work.cells:
        first, second = (store.load(cell.key) for store in stores.values())
        assert (first["metrics"], first["curve"]) == (second["metrics"], second["curve"])


def test_a_rerun_computes_only_what_is_missing_or_damaged(tmp_path):
    store = Store(tmp_path)
    few = make_plan(parse_suite("s", SUITE), seeds=1)
    all_ = make_plan(parse_suite("s", SUITE))
    run(few, store, LocalEngine(2))
    tally = run(all_, store, LocalEngine(2))
    assert (tally.computed, tally.reused) == (3, 3)
    damaged = store.root / "cells" / f"{all_.cells[0].key}.json"
    damaged.write_text(damaged.read_text()[:-20])
    notes = []
    tally = run(all_, store, LocalEngine(2), on_note=notes.append)
    assert (tally.computed, tally.reused) == (1, 5)
    assert "truncated" in notes[0]
    assert damaged.name in notes[0]


def test_an_interrupt_keeps_what_is_done_and_stops_the_workers(agents, tmp_path):
    store = Store(tmp_path / "r")
    seen = []

    def interrupt(outcome):
        seen.append(outcome)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan("Hangs"), store, LocalEngine(2), on_outcome=interrupt)
    assert store.load(seen[0].cell.key) is not None
    again = run(plan("Hangs"), store, LocalEngine(2, timeout=1))
    assert again.reused >= 1
    assert again.failed == 1


@pytest.mark.parametrize(
    ("workers", "timeout", "memory"),
    [
        (0, None, None),
        (1, 0.0, None),
        (1, -1.0, None),
        (1, float("nan"), None),
        (1, None, float("inf")),
        (1, None, float("nan")),
    ],
)
def test_impossible_settings_are_refused(workers, timeout, memory):
    with pytest.raises(ValueError, match="must be"):
        LocalEngine(workers, timeout, memory)


@pytest.mark.parametrize("edited", ["changing/agent.py", "changing/helper.py"])
def test_code_that_is_edited_during_a_run_gives_no_result_under_the_old_key(
    tmp_path, monkeypatch, edited
):
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "changing"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "changing").mkdir()
    (tmp_path / "changing/helper.py").write_text("SKIP = 0\n")
    (tmp_path / "changing/agent.py").write_text(
        "from baselines.queueing.heuristics import RandomAgent\n"
        "from changing import helper\n"
        "class Mine(RandomAgent):\n    pass\n"
    )
    name = "changing.agent:Mine"
    work = make_plan(parse_suite("s", {**SUITE, "agents": []}), seeds=2, agents=[name])
    store, path = Store(tmp_path / "r"), tmp_path / edited

    def edit(outcome):
        if outcome.cell.spec["agent"]["name"] == name:
            path.write_text(path.read_text() + "LATER = True\n")

    tally = run(work, store, LocalEngine(1), on_outcome=edit)
    assert (tally.computed, tally.failed) == (5, 1)
    second = next(c for c in reversed(work.cells) if c.spec["agent"]["name"] == name)
    assert store.load(second.key) is None
    assert "its code here is not that of the plan" in store.load_failure(second.key)["error"]
