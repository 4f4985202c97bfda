"""Streaming deployment: LLMDeploy-v0."""

from __future__ import annotations

from benchmarks.problems.interface import Problem

DEPLOYMENT = Problem(
    name="deployment",
    package=__name__,
    env_ids=("LLMDeploy-v0",),
    references={"oracle": "oracle", "random": "uniform"},
    oracle="whole budget",
    horizon_argument="horizon",
    action_layout="[N deployment bits, LLM]",
    shipped=("routing-sampling-deploy",),
    controls=("epsilon-first",),
    rivals=("StageRoute-paced", "known-static-mix-deploy"),
)
