"""The compiled slot on a fresh machine, and that no benchmark plays an old one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FIRST_STEP = """
import gymnasium as gym
env = gym.make("llmqueue_gym:LLMQueue-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
"""

PLAY = """
from benchmarks.run.engines import LocalEngine
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
TASK = {"name": "t", "env": "LLMQueue-v0", "horizon": 300, "tags": ["queueing"]}
TASK["kwargs"] = {"arrival_rate": 0.5}
SUITE = {"description": "", "seeds": 1, "agents": ["random"], "task": [TASK]}
cell = next(c for c in make_plan(parse_suite("s", SUITE)).cells if "random" in str(c.spec["agent"]))
[outcome] = LocalEngine(1).run([cell])
print(outcome.payload["metrics"]["departures"])
"""


def python(code, **environment):
    """Run code in a process of its own, outside the checkout, where warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=environment["HOME"],
        env=os.environ | environment,
    )


def test_the_first_step_on_a_fresh_machine_says_nothing(tmp_path):
    place = {"HOME": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = python(FIRST_STEP, **place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*.nbc")), "what was compiled is kept"
    later = (
        "import sys\nassert 'numba.np.arraymath' not in sys.modules, 'it is not only loaded'\n"
        "assert 'llmqueue_gym.workloads.datasets' not in sys.modules, 'it reads no files'"
    )
    done = python(FIRST_STEP + later, **place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_benchmark_plays_the_code_as_it_is_whatever_numba_has_kept(tmp_path):
    """numba misses an edit in another file than the kernel's, here of the same size and time."""
    pytest.importorskip("benchmarks.run.engines")
    for package in ("llmqueue_gym", "baselines", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    kernel, limit = tmp_path / "llmqueue_gym/queueing/dynamics.py", tmp_path / "llmqueue_gym/lim.py"
    (tmp_path / "benchmarks/run/warm.py").write_text("")  # only what the cell needs is compiled
    source = kernel.read_text()
    for old, new in (
        (
            "import borrowing, part\n",
            "import borrowing, part\nfrom llmqueue_gym.lim import LIMIT\n",
        ),
        ("threshold >= total + 1.0", "threshold >= total + LIMIT"),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    kernel.write_text(source)
    place = {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    place["LLMQUEUE_GYM_CACHE"] = str(tmp_path / "cache")
    place["PYTHONDONTWRITEBYTECODE"] = "1"  # Python itself would take such an edit for none
    departures = []
    for value in ("1.0", "9e9"):  # with the second everybody retries
        limit.write_text(f"LIMIT = {value}\n")
        os.utime(limit, (0, 0))
        done = python(PLAY, **place)
        assert done.stderr == ""
        departures.append(int(done.stdout))
    assert departures[0] > 0
    assert departures[1] == 0
