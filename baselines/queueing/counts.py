"""Tried and left out: refusals of a waiting query as features of its context."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from baselines.queueing.acqb import ACQB
from baselines.registry import agent
from baselines.rl.memory import RefusalCounts


@agent("ACQB-counts", source="ours, tried")
class ACQBCounts(ACQB):
    """ACQB on contexts with log(1 + refusals) of every LLM beside them, (d + N,)."""

    def __init__(self, problem: Any, seed: int) -> None:
        self._memory = RefusalCounts(1, problem.num_llms)
        super().__init__(replace(problem, context_dim=problem.context_dim + problem.num_llms), seed)

    def _with(self, observation: Any) -> Any:
        scale = np.float32(os.environ.get("COUNT_SCALE", "0.3"))
        waiting = observation["waiting"][None]
        counts = self._memory.of(observation["age"][None], waiting)[0]
        contexts = np.concatenate([observation["contexts"], scale * np.log1p(counts)], axis=1)
        return {**observation, "contexts": contexts}

    def act(self, observation: Any) -> Any:
        return super().act(self._with(observation))

    def update(self, observation: Any, action: Any, reward: float, following: Any, info: Any) -> None:
        super().update(self._with(observation), action, reward, following, info)
        served = observation["waiting"][action[0]] > 0
        retried = np.array([served and int(following["feedback"]) == 1])
        self._memory.note(observation["age"][[action[0]]], np.asarray(action)[None, 1:], retried)
