"""skrl: PPO on the lanes of the native vector environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import Tensor, nn

from llmqueue_gym.adapters.wrappers import DiscreteActionsVector

TASK: dict[str, Any] = {"load": 0.9, "instance_seed": 0, "reward": "departures"}


class Policy(CategoricalMixin, Model):
    """Logits of all decisions; skrl reads no masks, an empty slot serves nobody."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(
            nn.Linear(self.num_observations, 32), nn.Tanh(), nn.Linear(32, self.num_actions)
        )

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Return the logits."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """The value of an observation."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 32), nn.Tanh(), nn.Linear(32, 1))

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Return the value."""
        return self.net(inputs["observations"]), {}


def main(steps: int = 64, lanes: int = 8) -> float:
    """Train for some steps of all lanes; return how far the policy's weights moved."""
    set_seed(0)
    env = gym.make_vec(
        "llmqueue_gym:LLMQueue-v0", lanes, flat_observation=True, max_episode_steps=50, **TASK
    )
    env = wrap_env(DiscreteActionsVector(env))
    spaces = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "device": "cpu",
    }
    models = {"policy": Policy(**spaces), "value": Value(**spaces)}
    before = nn.utils.parameters_to_vector(models["policy"].parameters()).detach().clone()
    off = {"write_interval": 0, "checkpoint_interval": 0}
    agent = PPO(
        models=models,
        memory=RandomMemory(memory_size=16, num_envs=lanes, device="cpu"),
        cfg={"rollouts": 16, "learning_epochs": 2, "discount_factor": 0.5, "experiment": off},
        **spaces,
    )
    cfg = {
        "timesteps": steps,
        "headless": True,
        "disable_progressbar": True,
        "close_environment_at_exit": False,
    }
    SequentialTrainer(env=env, agents=agent, cfg=cfg).train()
    env.close()
    after = nn.utils.parameters_to_vector(models["policy"].parameters()).detach()
    return float(torch.linalg.vector_norm(after - before))


if __name__ == "__main__":
    print(f"the policy's weights moved by {main():.3f}")
