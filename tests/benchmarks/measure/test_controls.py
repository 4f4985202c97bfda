"""What truth-knowing policies that only route, or only schedule, score: what a task tests."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.measure.controls import half_scores, main


def mean_scores(kind: str) -> list[float]:
    kwargs = {
        "load": 0.95,
        "assortment_size": 1,
        "window": 128,
        "workload": {"source": "synthetic", "kind": kind, "num_llms": 10, "context_dim": 16},
    }
    runs = [half_scores("LLMQueue-v0", kwargs, 5000, seed) for seed in range(10)]
    return [float(score) for score in np.mean(runs, axis=0)]


def test_easy_hard_needs_both_routing_and_scheduling() -> None:
    route, schedule = mean_scores("easy-hard")
    assert 0.3 < route < 0.8
    assert 0.3 < schedule < 0.8


def test_with_one_llm_routing_is_nothing_and_scheduling_everything() -> None:
    workload = {"source": "synthetic", "kind": "easy-hard", "num_llms": 1, "context_dim": 16}
    kwargs = {"load": 0.9, "assortment_size": 1, "workload": workload}
    route, schedule = half_scores("LLMQueue-v0", kwargs, 2000, seed=0)
    assert route < 1.0
    assert schedule == pytest.approx(1.0)


def test_the_script_prints_a_line_a_queueing_task(capsys: pytest.CaptureFixture[str]) -> None:
    main(["queueing", "--task", "published-slack0.1", "--seeds", "2"])
    header, line = capsys.readouterr().out.splitlines()
    assert "route only" in header
    assert "schedule only" in header
    assert line.startswith("published-slack0.1 ")
