"""River as an agent: Thompson sampling on its Bayesian linear regression, one model per LLM.

Run it with ``python examples/bandit_river.py``; it needs ``pip install river``.
"""

from __future__ import annotations

from typing import Any

from bandit import mean_queue
from numpy.typing import NDArray
from river.linear_model import BayesianLinearRegression

from baselines import QueueProblem
from baselines.queueing.bandit_library import BanditLibraryAgent

# --8<-- [start:agent]


def features(context: NDArray[Any]) -> dict[int, float]:
    """Return a query's context as river wants it, with an intercept."""
    return dict(enumerate([1.0, *context.tolist()]))


class RiverThompson(BanditLibraryAgent):
    """A draw from the posterior of every query and LLM."""

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._models = [BayesianLinearRegression() for _ in range(problem.num_llms)]

    def scores(self, contexts: NDArray[Any]) -> list[list[float]]:
        """Draw from the predicted distributions with the agent's own generator."""
        rows = []
        for context in contexts:
            seen = features(context)
            found = [model.predict_one(seen, with_dist=True) for model in self._models]
            rows.append([self.rng.normal(one.mu, one.sigma) for one in found])
        return rows

    def learn(self, context: NDArray[Any], llm: int, reward: float) -> None:
        """Give the model of the LLM one answer."""
        self._models[llm].learn_one(features(context), reward)


# --8<-- [end:agent]


if __name__ == "__main__":
    for name in ("random", "ACQB", "bandit_river:RiverThompson"):
        print(f"{name} mean queue {mean_queue(name, slots=300):.2f}")
