"""Jobs that share a process, one after another: what happens to one costs nobody else."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.run import pool as pools
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.pool import Pool
from benchmarks.run.store import Store
from benchmarks.run.worker import DONE, FAILED
from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE

JOBS = '''
import os, time
from llmqueue_gym.compiled import NEWLY_KEPT
from benchmarks.run.runner import _peak_memory_mb

def do(job, tell):
    """Do what the job's first word says."""
    print(f"this is {job}")
    word = job.split()[0]
    if word == "leaves":
        os._exit(3)
    if word == "raises":
        raise ValueError(job)
    if word == "hangs":
        time.sleep(60)
    if word == "naps":
        time.sleep(0.8)
    if word == "forks" and not os.fork():
        return {}
    if word in ("compiles", "always"):
        with open(job.split()[1], "a") as plays:
            plays.write(f"{os.getpid()} ")
        if word == "always" or len(open(job.split()[1]).read().split()) == 1:
            NEWLY_KEPT.append("a kernel")
    if word == "grows":
        bytearray(300 << 20)
    return {"process": os.getpid(), "peak": _peak_memory_mb()}
'''

SHARED = {"alone": None, "unlike": 2}


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Run jobs by what their names say; those that are not `alone` may share a process."""
    (tmp_path / "odd_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("odd_jobs", None)
    from odd_jobs import do as task

    def run(pool, *jobs, **more):
        return pool.run(jobs, task, shares_with=lambda job: SHARED.get(job.split()[0], 1), **more)

    return run


def processes(reports):
    assert [report.state for report in reports] == [DONE] * len(reports)
    return [report.payload["process"] for report in reports]


def test_jobs_that_may_share_take_turns_in_a_process_and_report_in_order(do):
    reports = list(do(Pool(1), "first", "second", "third"))
    assert [report.job for report in reports] == ["first", "second", "third"]
    assert len(set(processes(reports))) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_like_jobs_share_and_others_have_a_process_of_their_own(do, workers):
    jobs = ["first", "alone 1", "unlike 1", "alone 2", "unlike 2", "last"]
    reports = list(do(Pool(workers), *jobs))
    in_order = sorted(reports, key=lambda report: jobs.index(report.job))
    first, alone, unlike, apart, like, last = processes(in_order)
    if workers == 1:
        assert (first, unlike) == (last, like)
    assert len({first, last} & {unlike, like}) == 0
    assert len({first, last, alone, apart, unlike, like}) == 4 + (first != last) + (unlike != like)


@pytest.mark.parametrize("own", ["time is up", "memory is limited"])
def test_no_process_is_shared_when_its_time_is_up_or_memory_is_limited(do, monkeypatch, own):
    if own == "time is up":
        monkeypatch.setattr(pools, "_SHARED_SECONDS", 0.0)
    elif sys.platform != "linux":
        pytest.skip("only Linux limits the memory of a process")
    pool = Pool(1, memory=None if own == "time is up" else 500)
    assert len(set(processes(list(do(pool, "first", "second", "third"))))) == 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("bad", "words"),
    [("leaves", "exit code 3"), ("raises", "ValueError: raises"), ("hangs", "the timeout of 4 s")],
)
def test_a_job_that_fails_in_a_shared_process_fails_alone(do, workers, bad, words):
    jobs = ["first", "second", bad, "third", "fourth"]
    reports = {report.job: report for report in do(Pool(workers, timeout=4), *jobs)}
    assert {job for job, report in reports.items() if report.state == FAILED} == {bad}
    assert len(reports) == 5
    failure = reports[bad].payload
    assert words in failure["error"]
    assert "this is first" not in failure["output"]  # what others printed
    if bad == "raises":
        assert failure["output"] == "this is raises\n"


def test_each_job_has_the_whole_timeout(do):
    reports = list(do(Pool(1, timeout=4), *(f"naps {number}" for number in range(6))))
    assert len(set(processes(reports))) == 1  # together they take longer than one of them may


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_a_child_that_a_job_lets_go_on_takes_no_other_job(do):
    reports = list(do(Pool(1), "forks", "second", "third"))
    assert len(set(processes(reports))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_of_a_jobs_memory_is_its_own(do):
    before, large, after = (
        report.payload["peak"] for report in do(Pool(1), "first", "grows", "third")
    )
    assert large > before + 250
    assert after < before + 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_closing_ends_a_shared_process_at_its_next_job(do):
    with closing(do(Pool(1), "first", "hangs", "third")) as reports:
        process = next(reports).payload["process"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


TASK = {
    "name": "tiny",
    "env": "LLMQueue-v0",
    "horizon": 60,
    "kwargs": {"load": 0.8, "assortment_size": 2},
}
AGENTS = ["greedy", "LinTS", "CQB-Opt", "litellm-adaptive"]
DEPLOY = {**TASK, "name": "deploy", "env": "LLMDeploy-v0", "kwargs": {}, "agents": ["StageRoute"]}


def plan(seeds=2):
    suite = {"seeds": seeds, "agents": AGENTS, "task": [TASK, DEPLOY]}
    return make_plan(parse_suite("s", suite))


def played(cells, workers):
    outcomes = {outcome.cell.key: outcome for outcome in LocalEngine(workers).run(cells)}
    assert not any(outcome.failed for outcome in outcomes.values())
    return {
        key: {name: part for name, part in outcome.payload.items() if name != "timing"}
        for key, outcome in outcomes.items()
    }


def test_a_cells_result_does_not_depend_on_what_its_process_played_before(monkeypatch):
    cells = plan().cells
    forwards, backwards = played(cells, 1), played(cells[::-1], 2)
    monkeypatch.setattr(pools, "_SHARED_SECONDS", 0.0)
    assert forwards == backwards == played(cells, 2)


def test_an_interrupt_among_shared_cells_keeps_what_is_done_and_a_rerun_does_the_rest(tmp_path):
    store, work, seen = Store(tmp_path), plan(1), []

    def interrupt(outcome):
        seen.append(outcome.cell.key)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(work, store, LocalEngine(2), {}, on_outcome=interrupt)
    assert store.keys() == set(seen)
    tally = execute(work, store, LocalEngine(2), {})
    assert (tally.computed, tally.reused, tally.failed) == (len(work.cells) - 5, 5, 0)


@pytest.mark.parametrize("word", ["compiles", "always"])
def test_what_compiled_kernels_is_done_once_more_where_they_are_loaded(do, tmp_path, word):
    """Compiled and loaded kernels may round in other ways: the first run must equal later ones."""
    plays = tmp_path / "plays"
    job = f"{word} {plays}"
    compiled, other = do(Pool(1), job, "other", load_kernels=True)
    assert (compiled.job, compiled.state, other.state) == (job, DONE, DONE)
    first, second = plays.read_text().split()  # and no third, though it compile again
    assert compiled.payload["process"] == int(second) != int(first)


def test_a_training_that_compiles_kernels_is_not_done_twice(do, tmp_path):
    plays = tmp_path / "plays"
    assert [report.state for report in do(Pool(1), f"compiles {plays}")] == [DONE]
    assert len(plays.read_text().split()) == 1


def test_the_fork_server_has_loaded_its_kernels_and_compiled_none(tmp_path):
    """Else every process it starts would play with compiled ones, and every cell twice.

    What is kept may be that of another checkout of the same code, or have become too old.
    """
    (tmp_path / "what_is_kept.py").write_text(
        "from llmqueue_gym.compiled import NEWLY_KEPT\n"
        "def task(job, tell): return {'kept': len(NEWLY_KEPT)}\n"
    )
    program = tmp_path / "program.py"
    program.write_text(
        "from benchmarks.run.pool import Pool\n"
        "from what_is_kept import task\n"
        "if __name__ == '__main__':\n"
        "    (report,) = Pool(1).run(['job'], task, ['benchmarks.problems.queueing.play'])\n"
        "    print(report.payload['kept'])\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(pools.__file__).parents[2])])
    environment = os.environ | {CACHE_VARIABLE: str(tmp_path / "cache"), "PYTHONPATH": path}
    command = [sys.executable, str(program)]
    for _ in range(2):
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["0"]
        (kernels,) = (tmp_path / "cache" / "kernels").iterdir()
        kept = list(kernels.glob("queueing_*/*.show-*"))
        assert kept
        for file in kept:
            file.unlink()
