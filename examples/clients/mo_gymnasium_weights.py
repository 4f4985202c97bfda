"""MO-Gymnasium: quality and cost as a vector reward, traded off by weights."""

from __future__ import annotations

import mo_gymnasium as mo
import numpy as np

import llmqueue_gym  # noqa: F401 - registers the environments


def main(steps: int = 200) -> dict[str, float]:
    """Return the weighted sum that random decisions earn, and both of its parts."""
    env = mo.make("LLMDeployMO-v0", horizon=steps, num_stages=4)
    env = mo.wrappers.MORecordEpisodeStatistics(env)
    env = mo.wrappers.LinearReward(env, weight=np.array([1.0, 100.0]))  # .01 USD weighs like 1
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    total, truncated = 0.0, False
    while not truncated:
        _, reward, _, truncated, info = env.step(env.action_space.sample())
        total += float(reward)
    quality, cost = info["episode"]["r"]
    return {"weighted": total, "quality": float(quality), "minus cost": float(cost)}


if __name__ == "__main__":
    print(main())
