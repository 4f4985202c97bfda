"""No test of workloads reads or leaves anything in the user's cache."""

from pathlib import Path

import pytest

from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"
