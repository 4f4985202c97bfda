"""TorchRL: PPO on all lanes at once, its distribution masked by what ``info`` says."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import DTypeCastTransform, GymWrapper
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from llmqueue_gym.adapters.wrappers import DiscreteActionsVector

TASK: dict[str, Any] = {"load": 0.9, "instance_seed": 0, "reward": "departures"}


def main(updates: int = 3, lanes: int = 8, slots: int = 32) -> dict[str, float]:
    """Train for some updates; return departures a slot and the share of decisions served."""
    torch.manual_seed(0)
    venv = gym.make_vec(
        "llmqueue_gym:LLMQueue-v0",
        lanes,
        autoreset_mode="SameStep",  # GymWrapper refuses NextStep, the default
        flat_observation=True,
        max_episode_steps=50,
        **TASK,
    )
    env = GymWrapper(DiscreteActionsVector(venv), categorical_action_encoding=True)
    env = env.append_transform(DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"]))
    env.set_seed(0)
    inputs, decisions = env.observation_spec["observation"].shape[-1], env.action_spec.n
    net = nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, decisions))
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        spec=env.action_spec,
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 1)))
    advantage = GAE(gamma=0.5, lmbda=0.9, value_network=critic)
    loss = ClipPPOLoss(actor, critic)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(updates):
        with torch.no_grad():
            data = env.rollout(slots, actor, break_when_any_done=False)
            advantage(data)
        for _ in range(2):
            parts = loss(data.reshape(-1))
            total = parts["loss_objective"] + parts["loss_critic"] + parts["loss_entropy"]
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
    departures = data["next", "reward"].float().mean()
    return {"departures": float(departures), "served": float(data["next", "served"].float().mean())}


if __name__ == "__main__":
    print(main())
