"""Stable-Baselines3 on the native vector environment: PPO, and then how it plays.

Run it with ``python examples/sb3_ppo.py``; it needs ``pip install ".[rl]"``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from baselines.rl.networks import SetPolicy
from llmqueue_gym.adapters.sb3 import make_vec_env
from llmqueue_gym.adapters.wrappers import DiscreteActionsVector

TASK: dict[str, Any] = {"load": 0.9, "instance_seed": 0}


def mean_queue(model: PPO, slots: int = 500, lanes: int = 8) -> float:
    """Play a model in some lanes and return the mean number of waiting queries."""
    env = make_vec_env("LLMQueue-v0", lanes, seed=0, wrapper=DiscreteActionsVector, **TASK)
    observation, total = env.reset(), 0.0
    for _ in range(slots):
        actions, _ = model.predict(observation, deterministic=True)
        observation, rewards, _, _ = env.step(actions)
        total -= float(np.mean(rewards))
    env.close()
    return total / slots


def main(steps: int = 20_000) -> None:
    """Train for a few seconds; the reward is 1 per departure, bounded while a queue is not."""
    torch.set_num_threads(1)  # these networks are too small for more
    env = make_vec_env(
        "LLMQueue-v0",
        32,
        wrapper=DiscreteActionsVector,
        reward="departures",
        max_episode_steps=500,
        **TASK,
    )
    model = PPO(
        SetPolicy,  # the queue as a set; "MultiInputPolicy" works too, only less well
        env,
        n_steps=32,
        batch_size=128,
        n_epochs=4,
        gamma=0.5,
        learning_rate=2e-3,
        policy_kwargs={"num_llms": 5, "assortment_size": 2},
        seed=0,
        device="cpu",
    )
    print(f"before: mean queue {mean_queue(model):.2f}")
    model.learn(steps)
    print(f"after {steps} steps: mean queue {mean_queue(model):.2f}")


if __name__ == "__main__":
    main()
