"""An agent of your own: two methods, and the benchmark scores it by its import path.

Run it with ``python examples/third_party_agent.py``, or, from this folder, score it with
``llmqueue-bench run quick --agent third_party_agent:ShortestMemory``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines import Agent, QueueProblem, make_agent


class ShortestMemory(Agent):
    """Serve the newest query with the LLMs kept last; after a retrial with random ones."""

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._llms = self._random()

    def _random(self) -> NDArray[np.int64]:
        return self.rng.permutation(self.problem.num_llms)[: self.problem.assortment_size]

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Return ``[slot, llm_1, ..., llm_K]``; slots 0, 1, ... hold the queries that wait."""
        newest = max(int(observation["waiting"].sum()) - 1, 0)
        return np.array([newest, *self._llms])

    def update(
        self,
        observation: Mapping[str, NDArray[Any]],
        action: NDArray[np.int64],
        reward: float,
        next_observation: Mapping[str, NDArray[Any]],
        info: Mapping[str, Any],
    ) -> None:
        """Learn from one slot: what a provider sees is in ``info``."""
        if info["retried"]:
            self._llms = self._random()


def main(slots: int = 1000) -> None:
    """Play it against a random policy on one seed."""
    for name in ("random", f"{__name__}:ShortestMemory"):
        env = gym.make("llmqueue_gym:LLMQueue-v0", instance_seed=0, max_episode_steps=slots)
        observation, _ = env.reset(seed=0)
        problem = QueueProblem(**env.unwrapped.problem, horizon=slots)  # type: ignore[attr-defined]
        agent, total = make_agent(name, problem, seed=0), 0
        for _ in range(slots):
            action = agent.act(observation)
            following, reward, _, _, info = env.step(action)
            agent.update(observation, action, float(reward), following, info)
            observation = following
            total += info["queue_length"]
        env.close()
        print(f"{name:<24} mean queue {total / slots:.2f}")


if __name__ == "__main__":
    main()
