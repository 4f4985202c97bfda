"""tianshou: DQN, which reads the mask beside the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

from llmqueue_gym.adapters.wrappers import DiscreteActions, FlatObservation

TASK: dict[str, Any] = {"load": 0.9, "instance_seed": 0, "reward": "departures"}


class Masked(gym.ObservationWrapper):
    """Observe {"obs": ..., "mask": ...}, as tianshou's policies want it."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        mask = spaces.MultiBinary(int(env.action_space.n))
        self.observation_space = spaces.Dict({"obs": env.observation_space, "mask": mask})

    def observation(self, observation: Any) -> dict[str, Any]:
        """Add the mask."""
        masks = self.env.get_wrapper_attr("action_masks")()
        return {"obs": observation, "mask": masks.astype(np.int8)}


def make() -> gym.Env:
    """Make one environment."""
    env = gym.make("llmqueue_gym:LLMQueue-v0", max_episode_steps=50, **TASK)
    return Masked(FlatObservation(DiscreteActions(env)))


def main(steps: int = 400) -> float:
    """Train for some steps; return the mean departures an episode of 50 slots afterwards."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - tianshou explores with it
    env = make()
    net = Net(
        state_shape=env.observation_space["obs"].shape,
        action_shape=env.action_space.n,
        hidden_sizes=[32],
    )
    policy = DiscreteQLearningPolicy(model=net, action_space=env.action_space, eps_training=0.1)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.5)
    lanes, tests = DummyVectorEnv([make] * 4), DummyVectorEnv([make] * 2)
    lanes.seed(0)
    tests.seed(1000)
    result = algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=Collector(algorithm, lanes, VectorReplayBuffer(2000, 4)),
            test_collector=Collector(algorithm, tests),
            max_epochs=1,
            epoch_num_steps=steps,
            collection_step_num_env_steps=40,
            update_step_num_gradient_steps_per_sample=0.25,
            test_step_num_episodes=2,
            batch_size=64,
            verbose=False,
            show_progress=False,
        )
    )
    return float(result.best_reward)


if __name__ == "__main__":
    print(f"{main():.1f} departures an episode")
