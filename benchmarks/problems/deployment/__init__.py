"""Streaming deployment: LLMDeploy-v0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.problems.interface import Problem


def _disguised(kwargs: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    instance = kwargs.get("instance", "routerbench")
    spec = {"source": instance} if isinstance(instance, str) else instance
    return {**kwargs, "instance": {**spec, "disguise": number}}


DEPLOYMENT = Problem(
    name="deployment",
    package=__name__,
    env_ids=("LLMDeploy-v0",),
    references={"oracle": "oracle", "random": "uniform"},
    oracle="whole budget",
    horizon_argument="horizon",
    disguised=_disguised,
    action_layout="[N deployment bits, LLM]",
    shipped=("routing-sampling-deploy",),
    controls=("epsilon-first",),
    rivals=("StageRoute-paced", "known-static-mix-deploy"),
)
