"""The Ray engine: the same cells and results as without it, also when a node is killed."""

import os
import sys
from pathlib import Path

import pytest
from made_up import tiny_suite
from waiting import alive, wait_until

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.store import Store

# Ray reads both when it is imported: nothing is reported, and nodes talk over loopback only.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
ray = pytest.importorskip("ray", reason="needs the extra `ray`")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="ends processes through Linux's /proc"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]

AGENTS = """
import os, time
from pathlib import Path
import numpy as np
from baselines.queueing.heuristics import RandomAgent

HERE = Path(__file__).parent

class Waits(RandomAgent):
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        self.name = f"{seed}-{os.getpid()}"
        (HERE / "started" / self.name).touch()
    def act(self, observation):
        while not (HERE / "go").exists():
            time.sleep(0.05)
        return super().act(observation)

class Threads(RandomAgent):
    def act(self, observation):
        threads = os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]
        assert threads == ("1", "1"), threads
        return super().act(observation)

class Exits(RandomAgent):
    def act(self, observation):
        print("leaving")
        os._exit(7)

class Hangs(RandomAgent):
    def act(self, observation):
        time.sleep(300)
"""

SUITE = tiny_suite(horizon=40)


@pytest.fixture
def agents(tmp_path, monkeypatch):
    (tmp_path / "ray_agents.py").write_text(AGENTS)
    (tmp_path / "started").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("ray_agents", None)
    return tmp_path


def plan(*labels, seeds=2):
    named = [f"ray_agents:{label}" for label in labels]
    return make_plan(parse_suite("s", SUITE), seeds=seeds, agents=named, trust=True)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; only this machine can reach them."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
    assert cluster.address.startswith("127.0.0.1:")
    cluster.second = cluster.add_node(**node)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(plan, store, engine):
    return execute(plan, store, engine, {"command": "test"})


def parents(process):
    """Process ids from the parent of a process up."""
    while process > 1:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        process = int(fields[1])
        yield process


def test_cells_keys_and_results_are_those_of_the_local_engine(agents, cluster, tmp_path):
    from benchmarks.run.ray_engine import RayEngine

    work = plan("Threads", "Exits", "Hangs", seeds=1)
    here, there = Store(tmp_path / "local"), Store("memory://ray-results")
    local = run(work, here, LocalEngine(2, timeout=4))
    spread = run(work, there, RayEngine(cluster.address, timeout=4))
    assert local == spread
    assert here.keys() == there.keys()
    assert (spread.computed, spread.failed) == (4, 2)
    for cell in work.cells:
        first, second = here.load(cell.key), there.load(cell.key)
        if first is None:
            first, second = here.load_failure(cell.key), there.load_failure(cell.key)
            assert first["error"] == second["error"]
            assert first["output"] == second["output"]
        else:
            second["provenance"].pop("machine")
            assert second["provenance"].pop("numpy")
            for record in (first, second):
                del record["timing"], record["provenance"]
            assert first == second
    assert run(work, there, RayEngine(cluster.address, timeout=4)).reused == 4


def test_a_node_that_is_killed_costs_only_what_it_was_running(agents, cluster, tmp_path):
    """One of two raylets gets SIGKILL while both run a cell."""
    from threading import Thread

    from benchmarks.run.ray_engine import RayEngine

    raylet = cluster.second.all_processes["raylet"][0].process
    work, store, tallies = plan("Waits", seeds=3), Store(tmp_path / "r"), []
    engine = RayEngine(cluster.address)
    runner = Thread(target=lambda: tallies.append(run(work, store, engine)))
    runner.start()
    started = agents / "started"
    wait_until(lambda: len(list(started.iterdir())) == 2)
    cells = {int(path.name.partition("-")[2]): path.name for path in started.iterdir()}
    [victim] = [pid for pid in cells if raylet.pid in parents(pid)]
    raylet.kill()
    raylet.wait()  # its children look whether it is still there
    wait_until(lambda: not alive(victim))
    (agents / "go").touch()
    runner.join(60)
    assert not runner.is_alive()
    assert (tallies[0].computed, tallies[0].failed) == (len(work.cells), 0)
    seeds = [path.name.partition("-")[0] for path in started.iterdir()]
    again = cells[victim].partition("-")[0]
    assert sorted(seeds) == sorted([*set(seeds), again])  # nothing else was started twice
    alone = Store(tmp_path / "alone")
    run(work, alone, LocalEngine(2))
    for cell in work.cells:
        assert store.load(cell.key)["metrics"] == alone.load(cell.key)["metrics"]


def test_a_node_with_other_code_refuses_its_cells(monkeypatch):
    from benchmarks.run import ray_engine

    [cell, *_] = plan(seeds=1).cells
    assert ray_engine._complaint(cell) is None
    ray_engine._checked.clear()
    monkeypatch.setattr("benchmarks.plan.cells.code_hash", lambda: "0" * 64)
    complaint = ray_engine._complaint(cell)
    assert "has another code than the machine that planned the run" in complaint


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"timeout": -1.0}, {"memory": 0.0}], ids=lambda s: next(iter(s))
)
def test_impossible_settings_are_refused(settings):
    from benchmarks.run.ray_engine import RayEngine

    with pytest.raises(ValueError, match="must be"):
        RayEngine(**settings)
