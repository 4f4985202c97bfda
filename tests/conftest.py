"""What several test modules need."""

import os
import sys

import hypothesis
import pytest

# The same examples at every run, however slow the machine; `HYPOTHESIS_PROFILE=explore` draws
# new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def bench(monkeypatch):
    """Run ``llmqueue-bench`` in this process: its exit code."""
    cli = pytest.importorskip("benchmarks.cli")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmqueue-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0

    return run
