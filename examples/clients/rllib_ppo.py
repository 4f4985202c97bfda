"""RLlib: PPO on flat observations."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

TASK = {"load": 0.9, "instance_seed": 0, "reward": "departures", "max_episode_steps": 100}


def make(config: dict[str, Any]) -> gym.Env:
    """Make one environment; RLlib's workers call this."""
    return gym.make("llmqueue_gym:LLMQueue-v0", flat_observation=True, **config)


def main(iterations: int = 1) -> float:
    """Train for some iterations; return the departures an episode of 100 slots while training."""
    register_env("llmqueue", make)
    algorithm = (
        PPOConfig()
        .environment("llmqueue", env_config=TASK)
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=400, minibatch_size=100, num_epochs=2, gamma=0.5)
        .debugging(seed=0)
        .build_algo()
    )
    for _ in range(iterations):
        result = algorithm.train()
    algorithm.stop()
    ray.shutdown()
    return float(result["env_runners"]["episode_return_mean"])


if __name__ == "__main__":
    print(f"{main():.1f} departures an episode")
