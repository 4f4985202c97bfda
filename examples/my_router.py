"""An agent to hand in (docs/guides/submit.md): Thompson sampling of the LLMs' keep rates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines import Agent, QueueProblem


class MyRouter(Agent):
    """Serve the head of the queue with the LLMs whose drawn keep rates are the largest."""

    kind = "queueing"

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.kept = np.ones(problem.num_llms)
        self.refused = np.ones(problem.num_llms)

    def act(self, observation: Any) -> NDArray[np.int64]:
        """Choose slot 0 and K LLMs."""
        drawn = self.rng.beta(self.kept, self.refused)
        return np.array([0, *np.argsort(-drawn)[: self.problem.assortment_size]])

    def update(
        self, observation: Any, action: Any, reward: float, following: Any, info: Any
    ) -> None:
        """Count who was kept, and who was refused."""
        if info["served"]:
            shown = action[1:]
            self.refused[shown] += shown != info["kept_llm"]
            self.kept[shown] += shown == info["kept_llm"]
