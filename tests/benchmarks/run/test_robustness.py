"""Runs that are killed, starved, meddled with or doubled: nothing is lost, repeated or wrong.

What happens to single cells is in test_engines.py; here also whole runners are ended.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import alive, wait_until

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite, spec_key
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.store import Store, StoreWriteError

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="ends processes through Linux's /proc"),
]

TASK = {"name": "tiny", "env": "LLMQueue-v0", "horizon": 30}
KWARGS = {"load": 0.8, "assortment_size": 1}

AGENTS = '''
import os, signal, sys, time
from pathlib import Path
import numpy as np
from baselines.queueing.heuristics import RandomAgent

HERE = Path(__file__).parent

def tell(name, text):
    """Write a file whole."""
    part = HERE / f"part-{os.getpid()}"  # two cells may tell at once
    part.write_text(text)
    part.replace(HERE / name)

class Fine(RandomAgent):
    """Leaves a line a cell behind."""
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        with (HERE / "started").open("a") as log:
            log.write(f"{seed}\\n")

class Waits(RandomAgent):
    """Starts a child, tells both process ids and waits."""
    def act(self, observation):
        if not (HERE / "go").exists():
            child = os.fork()
            if not child:
                time.sleep(300)
                os._exit(0)
            tell("waiting", f"{os.getpid()} {child}")
            time.sleep(300)
        return super().act(observation)

class Stops(RandomAgent):
    def act(self, observation):
        tell("stopped", f"{os.getpid()}")
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().act(observation)

class Leaks(RandomAgent):
    kept = []
    def act(self, observation):
        while True:
            self.kept.append(np.ones(2**17))

class LeaksQuietly(Leaks):
    """Wraps the error away and goes on."""
    def act(self, observation):
        try:
            return super().act(observation)
        except MemoryError:
            raise RuntimeError("something else") from None

class Floods(RandomAgent):
    def act(self, observation):
        for _ in range(200):
            sys.stdout.write("x" * 10_000 + "\\n")
        raise ValueError("enough")

class ClosesStdout(RandomAgent):
    def act(self, observation):
        if sys.stderr is not None:
            sys.stdout.close()
            sys.stderr = None
            os.close(2)
        return super().act(observation)

class ForksAndBothGoOn(RandomAgent):
    forked = False
    def act(self, observation):
        if not self.forked:
            self.forked = True
            os.fork()
        return super().act(observation)

class LeavesAChild(RandomAgent):
    """Which holds what this process had open, and the run not up."""
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        print("x" * 100_000)
        if not os.fork():
            time.sleep(300)
            os._exit(0)

class TouchesGlobals(RandomAgent):
    """Reseeds, patches and rewires what others might share."""
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        import random
        np.random.seed(0)
        random.seed(0)
        np.random.default_rng = lambda seed=None: np.random.Generator(np.random.PCG64(1))
        np.seterr(all="ignore")
        os.environ["PYTHONHASHSEED"] = "1"
        os.chdir("/")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.setrecursionlimit(10_000)

class KillsTheForkServer(RandomAgent):
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        if not (HERE / "go").exists():
            tell("go", "")
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(300)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with odd agents, as a third party has it."""
    (tmp_path / "odd.py").write_text(AGENTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("odd", None)
    return tmp_path


def plan(*agents, seeds=1, tasks=(TASK,)):
    document = {"seeds": seeds, "agents": [], "task": [{**t, "kwargs": KWARGS} for t in tasks]}
    named = [f"odd:{name}" for name in agents]
    return make_plan(parse_suite("s", document), agents=named, trust=True)


def run(plan, store, engine, **callbacks):
    return execute(plan, store, engine, {"command": "test"}, **callbacks)


def failure(plan, store, agent):
    [cell] = [c for c in plan.cells if c.spec["agent"]["label"] == f"odd:{agent}"]
    assert store.load(cell.key) is None
    return store.load_failure(cell.key)


RESULTS = ("--results", "r")


def command(here, *arguments, suite=(TASK,), seeds=1):
    """Arguments of a runner in a process of its own."""
    lines = [f"seeds = {seeds}", "agents = []"]
    for task in suite:
        lines += ["[[task]]", *(f"{key} = {json.dumps(value)}" for key, value in task.items())]
        lines += ["[task.kwargs]", *(f"{key} = {value}" for key, value in KWARGS.items())]
    (here / "s.toml").write_text("\n".join(lines))
    return [
        sys.executable,
        "-m",
        "benchmarks.cli",
        "run",
        "s.toml",
        "--trust",
        *RESULTS,
        *arguments,
    ]


def start(here, arguments, **more):
    # Under a limit of file sizes Python would keep what it compiles cut off.
    own = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **own}
    return subprocess.Popen(
        arguments, cwd=here, env=environment, stderr=subprocess.PIPE, text=True, **more
    )


def finish(process):
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err


# --- the runner is killed -------------------------------------------------------------------------


def test_kill_9_ends_workers_and_their_children_and_a_rerun_repeats_nothing(here):
    agents = [word for name in ("Fine", "Waits", "Stops") for word in ("--agent", f"odd:{name}")]
    runner = start(here, command(here, *agents, "--workers", "4", seeds=2))
    cells, told = here / "r" / "cells", [here / "waiting", here / "stopped"]
    wait_until(lambda: all(f.exists() for f in told) and len(list(cells.glob("*.json"))) == 6)
    pids = [int(pid) for file in told for pid in file.read_text().split()]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    runner.kill()
    runner.communicate(timeout=30)
    wait_until(lambda: not any(alive(pid) for pid in pids))
    (here / "go").touch()
    before = {file: file.stat().st_mtime_ns for file in cells.glob("*.json")}
    store, work = Store(here / "r"), plan("Fine", "Waits", seeds=2)
    assert run(work, store, LocalEngine(2)).computed == 2
    assert all(file.stat().st_mtime_ns == mtime for file, mtime in before.items())
    started = (here / "started").read_text().split()
    assert len(started) == len(set(started)) == 2


COMPILING = """
import os, subprocess, sys, time
from pathlib import Path
if len(sys.argv) == 1:  # the runner
    subprocess.run([sys.executable, __file__, "fork server"])
from benchmarks.run import warm

def play(problem):
    Path("part").write_text(f"{os.getppid()} {os.getpid()}")
    Path("part").rename("compiling")
    time.sleep(300)

warm.play = play
warm.compile_apart([None])
"""


def test_kill_9_ends_the_fork_server_and_the_child_that_compiles_for_it(here):
    (here / "compiling.py").write_text(COMPILING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(here / "kernels")}
    runner = subprocess.Popen([sys.executable, "compiling.py"], cwd=here, env=environment)
    wait_until((here / "compiling").exists)
    pids = [int(pid) for pid in (here / "compiling").read_text().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    runner.kill()
    runner.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_what_a_killed_runner_left_half_written_is_cleared_away(here):
    store = Store(here / "r")
    litter = here / "r" / "cells" / ".abc.123.tmp"
    litter.parent.mkdir(parents=True)
    litter.write_text("{")
    run(plan(), store, LocalEngine(1))
    assert not litter.exists()
    assert store.keys() == {cell.key for cell in plan().cells}


# --- two runners ----------------------------------------------------------------------------------


def test_a_second_runner_on_the_folder_is_refused_until_the_first_has_ended(here, bench, capsys):
    first = start(here, command(here, "--agent", "odd:Waits"))
    wait_until((here / "waiting").exists)
    again = ("run", "s.toml", "--trust", *RESULTS, "--agent", "odd:Fine", "--workers", "1")
    assert bench(*again) == 2
    error = capsys.readouterr().err
    assert f"results folder r is in use by process {first.pid} on " in error
    assert "choose another --results" in error
    assert not (here / "started").exists()
    first.kill()  # its lock goes with it
    first.communicate(timeout=30)
    assert bench(*again) == 0
    assert "1 cells computed, 2 taken" in " ".join(capsys.readouterr().err.split())


# --- the disk is full -----------------------------------------------------------------------------

SMALL_AND_LARGE = ({**TASK, "horizon": 5}, {**TASK, "name": "large", "horizon": 3000})


def check_a_stop_for_lack_of_space(here, code, err, free_space):
    assert code == 1
    assert "cannot write cells/" in err
    assert "finished cells are kept" in err
    store, work = Store(here / "r"), plan(tasks=SMALL_AND_LARGE)
    keys = store.keys()
    small = {c.key for c in work.cells if c.spec["task"]["name"] == "tiny"}
    assert small <= keys < {c.key for c in work.cells}
    assert all(store.load(key) is not None for key in keys)
    assert not [file for file in (here / "r").rglob("*.tmp")]
    free_space()
    tally = run(work, store, LocalEngine(1))
    assert (tally.computed, tally.reused, tally.failed) == (4 - len(keys), len(keys), 0)


def test_a_file_that_cannot_grow_stops_the_run_with_what_is_done_kept(here):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    arguments = command(here, "--workers", "1", suite=SMALL_AND_LARGE)
    stopped = finish(start(here, arguments, preexec_fn=limit))
    check_a_stop_for_lack_of_space(here, *stopped, lambda: None)


def test_a_full_disk_stops_the_run_with_what_is_done_kept(here, bench, capsys):
    folder = here / "r"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        command(here, suite=SMALL_AND_LARGE)
        remount = ["mount", "-o", "remount,size=1m", str(folder)]
        code = bench("run", "s.toml", "--results", "r", "--workers", "1")
        err = " ".join(capsys.readouterr().err.split())
        check_a_stop_for_lack_of_space(here, code, err, lambda: subprocess.run(remount, check=True))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_write_error_names_file_and_reason(here, monkeypatch):
    store = Store(here / "r")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError, match=r"cannot write run\.json in .*No space left"):
        run(plan(), store, LocalEngine(1))


def test_a_damaged_result_is_computed_again_with_a_note(here):
    store, work, notes = Store(here / "r"), plan(), []
    run(work, store, LocalEngine(1))
    first, second = (here / "r" / "cells" / f"{cell.key}.json" for cell in work.cells)
    second.write_bytes(first.read_bytes())
    first.write_bytes(first.read_bytes()[:-1])
    assert run(work, store, LocalEngine(1), on_note=notes.append).computed == 2
    assert "computing tiny / oracle / seed 0 again" in notes[0]
    assert "holds the result of another cell" in notes[1]


# --- agents that misbehave ------------------------------------------------------------------------


def test_a_leaking_agent_meets_the_memory_limit_and_others_do_not(here):
    store, work = Store(here / "r"), plan("Leaks", "LeaksQuietly", "Fine")
    tally = run(work, store, LocalEngine(2, timeout=60, memory=400))
    assert (tally.computed, tally.failed) == (3, 2)
    error = failure(work, store, "Leaks")
    assert error["error"].startswith("out of memory within the limit of 400 MB (")
    assert "np.ones" in error["traceback"]
    assert "RuntimeError: something else" in failure(work, store, "LeaksQuietly")["error"]


HOLDS_MUCH = """
from benchmarks.run.worker import _limit_memory
program = bytearray(600 << 20)  # as the fork server that had to compile the kernels
_limit_memory(400)
bytearray(300 << 20)
try:
    bytearray(500 << 20)
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_what_the_program_itself_holds_does_not_count_as_a_cells_memory():
    done = subprocess.run([sys.executable, "-c", HOLDS_MUCH], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("limited\n", 0), done.stderr


@pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) < (2, 4),
    reason="before NumPy 2.4, OpenBLAS asks for memory again and again",
)
def test_the_smallest_limit_still_leaves_room_to_say_that_it_was_reached(here):
    # In a process of its own: a fork server that has imported much has freed memory to hand out.
    code, _ = finish(start(here, command(here, "--memory", "1", "--agent", "odd:Leaks")))
    assert code == 1
    assert "memory" in failure(plan("Leaks"), Store(here / "r"), "Leaks")["error"]


def test_a_flood_of_output_is_kept_to_its_end(here):
    store, work = Store(here / "r"), plan("Floods")
    assert run(work, store, LocalEngine(1, timeout=60)).failed == 1
    error = failure(work, store, "Floods")
    assert error["error"].startswith("ValueError: enough (odd.py, line ")
    assert 1000 < len(error["output"]) <= 4000


def test_a_stopped_worker_meets_the_timeout(here):
    store, work = Store(here / "r"), plan("Stops", "Fine")
    tally = run(work, store, LocalEngine(2, timeout=3))
    assert (tally.computed, tally.failed) == (3, 1)
    assert "stopped after the timeout of 3 s" in failure(work, store, "Stops")["error"]
    assert not alive(int((here / "stopped").read_text()))


@pytest.mark.parametrize(
    "agent", ["ClosesStdout", "ForksAndBothGoOn", "LeavesAChild", "TouchesGlobals"]
)
def test_an_agent_that_meddles_gets_its_result_and_changes_no_other(here, agent):
    alone, beside = Store(here / "a"), Store(here / "b")
    run(plan("Fine"), alone, LocalEngine(1))
    work = plan(agent, "Fine")
    tally = run(work, beside, LocalEngine(2, timeout=60))
    assert tally.failed == 0
    own = {c.spec["agent"]["label"]: beside.load(c.key) for c in work.cells}
    for cell in plan("Fine").cells:
        mine, theirs = alone.load(cell.key), beside.load(cell.key)
        assert (mine["metrics"], mine["curve"]) == (theirs["metrics"], theirs["curve"])
    if agent != "TouchesGlobals":  # they play like `random`, which Fine is as well
        assert own[f"odd:{agent}"]["metrics"] == own["odd:Fine"]["metrics"]


def test_the_end_of_the_fork_server_costs_only_what_was_running(here):
    store, work = Store(here / "r"), plan("KillsTheForkServer", "Fine", seeds=3)
    first = run(work, store, LocalEngine(2, timeout=60))
    assert first.computed >= 10
    assert first.computed + first.failed == 12
    again = run(work, store, LocalEngine(2, timeout=60))
    assert (again.computed, again.reused, again.failed) == (first.failed, first.computed, 0)
    assert not any(store.load_failure(spec_key(c.spec)) for c in work.cells)


def test_a_script_without_a_guard_is_not_run_by_its_cells_nor_modules_beside_it(here):
    """A worker would import the main module, which would start the run again.

    And the fork server looks into the current folder first unless it is told not to.
    """
    for name in ("benchmarks", "baselines", "llmqueue_gym"):
        (here / name).mkdir()
        (here / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    script = here / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from benchmarks.run.engines import LocalEngine, execute\n"
        "from benchmarks.run.store import Store\n"
        "from benchmarks.plan.cells import make_plan\n"
        "from benchmarks.plan.suite import load_suite\n"
        "open('lines', 'a').write('once')\n"
        "plan = make_plan(load_suite('s.toml'))\n"
        "tally = execute(plan, Store('r'), LocalEngine(2), {'command': 'script'})\n"
        "assert (tally.computed, tally.failed) == (2, 0), tally\n"
        "assert __file__.endswith('script.py')\n"
    )
    command(here)
    code, err = finish(start(here, [sys.executable, str(script)]))
    assert code == 0, err
    assert (here / "lines").read_text() == "once"
