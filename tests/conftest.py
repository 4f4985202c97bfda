"""What several test modules need."""

import sys

import pytest


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
