"""Serving: LLMServe-v0."""

from __future__ import annotations

from benchmarks.problems.interface import Problem

SERVING = Problem(
    name="serving",
    package=__name__,
    env_ids=("LLMServe-v0",),
    references={"oracle": "oracle", "random": "random-dispatch"},
    oracle="optimum, or the best rule",
    horizon_argument="max_episode_steps",
    action_layout="[window slot, replica] * A + [LLM] * R",
    warm=("random-dispatch",),
)
