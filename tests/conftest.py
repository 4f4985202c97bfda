"""What several test modules need."""

import os
import sys

import hypothesis
import pytest

# One thread a process, as cells have: BLAS threads that share cores with another test wait for each
# other (on a busy machine a test of intervals took 172 s, not 24). Before NumPy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples at every run, however slow the machine; `HYPOTHESIS_PROFILE=explore` draws
# new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def bench(monkeypatch, tmp_path_factory):
    """Run ``llmqueue-bench`` in this process: its exit code."""
    cli = pytest.importorskip("benchmarks.cli")
    monkeypatch.setattr(sys, "path", list(sys.path))
    searched = list(cli.AGENT_FOLDERS)
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):  # agents of other tests, under the same name
        if str(getattr(module, "__file__", None)).startswith(folder):
            monkeypatch.delitem(sys.modules, name)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmqueue-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0

    yield run
    cli.AGENT_FOLDERS[:] = searched


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Give a test a cache of its own, but for compiled kernels: those take half a minute."""
    pool = pytest.importorskip("benchmarks.run.pool")
    kernels = pool.kernel_folder().parent
    kernels.mkdir(parents=True, exist_ok=True)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(kernels, target_is_directory=True)
    monkeypatch.setenv(pool.CACHE_VARIABLE, str(cache))
