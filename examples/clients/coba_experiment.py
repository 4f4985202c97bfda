"""coba: the queries of a workload as a simulated bandit, one interaction a query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import coba
import numpy as np

from llmqueue_gym.workloads import make_workload


class Queries(coba.Environment):
    """Which LLM to show to a query: the reward is 1 if its user keeps the answer.

    Parameters
    ----------
    workload : str
        As in LLMQueue-v0.
    seed : int
        Seeds the instance and the users.
    """

    params: Mapping[str, Any] = {}

    def __init__(self, workload: str = "synthetic", seed: int = 0) -> None:
        self.params = {"workload": workload, "seed": seed}

    def read(self) -> Iterator[coba.SimulatedInteraction]:
        """Draw the same queries and the same users at every reading."""
        rng = np.random.default_rng(self.params["seed"])
        workload = make_workload(
            self.params["workload"], num_llms=None, context_dim=None, assortment_size=1
        )
        instance = workload.draw(rng)
        keep = 1.0 / (1.0 + np.exp(-instance.utilities))
        kept = (rng.random(keep.shape) < keep).astype(int)
        llms = np.eye(len(workload.llms), dtype=int).tolist()
        for context, rewards in zip(instance.contexts.tolist(), kept.tolist(), strict=True):
            yield coba.SimulatedInteraction(context, llms, rewards)


def main() -> dict[str, float]:
    """Return the share of answers kept, by learner."""
    learners = [coba.RandomLearner(), coba.LinUCBLearner()]
    result = coba.Experiment([Queries()], learners).run(quiet=True)
    rows = list(result.interactions.to_dicts())
    return {
        name: float(np.mean([row["reward"] for row in rows if row["learner_id"] == place]))
        for place, name in enumerate(("random", "LinUCB"))
    }


if __name__ == "__main__":
    print(main())
