"""AgileRL: a population of DQN agents on the lanes; it reads the mask of ``info``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from agilerl.algorithms import DQN
from agilerl.components.replay_buffer import ReplayBuffer
from agilerl.training.train_off_policy import train_off_policy

from llmqueue_gym.adapters.wrappers import DiscreteActionsVector

TASK: dict[str, Any] = {"load": 0.9, "instance_seed": 0, "reward": "departures"}


def main(steps: int = 800, lanes: int = 8) -> list[float]:
    """Train two agents for some steps; return the departures an episode (50 slots) of each."""
    torch.manual_seed(0)
    env = gym.make_vec(
        "llmqueue_gym:LLMQueue-v0", lanes, flat_observation=True, max_episode_steps=50, **TASK
    )
    env = DiscreteActionsVector(env)
    population = DQN.population(
        size=2,
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        net_config={"encoder_config": {"hidden_size": [32]}},
        batch_size=64,
        lr=1e-3,
        gamma=0.5,
        learn_step=8,
    )
    _, fitness = train_off_policy(
        env,
        "LLMQueue-v0",
        "DQN",
        population,
        ReplayBuffer(max_size=2000),
        max_steps=steps,
        evo_steps=steps // 2,
        eval_steps=50,
        verbose=False,
    )
    return [float(departures) for departures in fitness]


if __name__ == "__main__":
    print(main())
