"""MABWiser as an agent: LinUCB of the library, one model per LLM.

Run it with ``python examples/bandit_mabwiser.py``; it needs ``pip install mabwiser``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from bandit import mean_queue
from mabwiser.mab import MAB, LearningPolicy
from numpy.typing import NDArray

from baselines import QueueProblem
from baselines.queueing.bandit_library import BanditLibraryAgent

# --8<-- [start:agent]


class MABWiserLinUCB(BanditLibraryAgent):
    """Upper confidence bounds of MABWiser's LinUCB."""

    def __init__(self, problem: QueueProblem, seed: int, alpha: float = 0.3) -> None:
        super().__init__(problem, seed)
        arms = list(range(problem.num_llms))
        self._mab = MAB(arms, LearningPolicy.LinUCB(alpha=alpha), seed=seed)
        zeros = np.zeros((len(arms), problem.context_dim + 1))
        self._mab.fit(arms, [0] * len(arms), zeros)  # it asks for a fit first; zeros teach nothing

    def scores(self, contexts: NDArray[Any]) -> list[list[float]]:
        """Return the upper bounds, which come as a dict a query (or one dict for one query)."""
        found = self._mab.predict_expectations(
            np.pad(contexts, ((0, 0), (0, 1)), constant_values=1)
        )
        rows = [found] if isinstance(found, dict) else found
        return [[row[llm] for llm in range(self.problem.num_llms)] for row in rows]

    def learn(self, context: NDArray[Any], llm: int, reward: float) -> None:
        """Give the library one row; the constant 1 is the intercept."""
        self._mab.partial_fit([llm], [reward], [np.append(context, 1.0)])


# --8<-- [end:agent]


if __name__ == "__main__":
    for name in ("random", "ACQB", "bandit_mabwiser:MABWiserLinUCB"):
        print(f"{name} mean queue {mean_queue(name, slots=300):.2f}")
