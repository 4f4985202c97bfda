"""Serving: LLMServe-v0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.problems.interface import Problem


def _disguised(kwargs: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    return {**kwargs, "disguise": number}


SERVING = Problem(
    name="serving",
    package=__name__,
    env_ids=("LLMServe-v0",),
    references={"oracle": "oracle", "random": "random-dispatch"},
    oracle="optimum, or the best rule",
    horizon_argument="max_episode_steps",
    disguised=_disguised,
    action_layout="[window slot, replica] * A + [LLM] * R",
    warm=("random-dispatch",),
)
