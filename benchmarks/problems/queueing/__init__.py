"""Queueing with retrials: LLMQueue-v0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.problems.interface import Problem


def _shuffled(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    workload = kwargs.get("workload")
    if not isinstance(workload, Mapping):
        return None
    return {**kwargs, "workload": {**workload, "shuffle_contexts": True}}


def _disguised(kwargs: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    workload = kwargs.get("workload", "synthetic")
    spec = {"source": workload} if isinstance(workload, str) else workload
    if spec["source"] == "synthetic" and kwargs.get("instance_seed") is None:
        return kwargs  # drawn anew with every seed
    return {**kwargs, "workload": {**spec, "disguise": number}}


def _new_llms(kwargs: Mapping[str, Any]) -> bool:
    # Queries of a data set are drawn anew too, but its LLMs stay what they are.
    workload = kwargs.get("workload", "synthetic")
    source = workload if isinstance(workload, str) else workload.get("source")
    return source == "synthetic" and kwargs.get("instance_seed") is None


QUEUEING = Problem(
    name="queueing",
    package=__name__,
    env_ids=("LLMQueue-v0",),
    references={"oracle": "oracle", "random": "random"},
    oracle="myopic",
    horizon_argument="max_episode_steps",
    action_layout="[slot, llm_1, ..., llm_K]",
    shuffled=_shuffled,
    disguised=_disguised,
    new_llms=_new_llms,
    warm=("ACQB-mixed", "ACQB-OMD", "CQB-Opt", "LinTS"),
    shipped=("routing-sampling", "litellm-adaptive", "litellm-adaptive-retrials"),
    controls=("knn-guard", "fifo-best-mean"),
    rivals=("ACQB", "known-static-mix-queue"),
)
