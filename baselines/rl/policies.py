"""Networks of our own where Stable-Baselines3 and sb3-contrib build fully connected ones."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn


class OwnNetworks:
    """Settings of these networks, which SB3 saves with its own, and what makes them of those."""

    _own: dict[str, Any]

    @abstractmethod
    def _networks(self, features: Any) -> tuple[nn.Module, nn.Module]:
        """Make what scores all decisions and what the value is linear in, of the features."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return parameters | self._own


class OwnActorCritic(OwnNetworks):
    """The part of a policy for PPO, A2C, MaskablePPO and RecurrentPPO."""

    def _build_mlp_extractor(self) -> None:
        policy: Any = self
        networks = self._networks(policy.features_extractor)
        policy.mlp_extractor = _ActorCritic(*networks, self._own["width"])

    def _build(self, lr_schedule: Any) -> None:
        policy: Any = self
        policy.ortho_init = False
        super()._build(lr_schedule)  # type: ignore[misc]
        policy.action_net = nn.Identity()  # the scores are the logits
        policy.optimizer = policy.optimizer_class(
            policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
        )


class OwnMemory(RecurrentActorCriticPolicy):
    """RecurrentPPO's policy with a memory in the place of SB3's LSTM, read beside the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "shared_lstm": True, "enable_critic_lstm": False})
        memory: Any = self._make_memory()
        self.lstm_actor = memory
        self.lstm_hidden_state_shape = (1, 1, memory.hidden_size)
        adam: Any = self.optimizer_class  # without the LSTM, with the memory
        self.optimizer = adam(self.parameters(), lr=args[2](1), **self.optimizer_kwargs)

    @abstractmethod
    def _make_memory(self) -> nn.Module:
        """Return the memory, once the rest is built."""

    def _process_sequence(  # type: ignore[override]  # SB3's is static
        self, features: Tensor, *args: Any
    ) -> tuple[Tensor, Any]:
        memory, states = RecurrentActorCriticPolicy._process_sequence(features, *args)
        return torch.cat([features, memory], dim=1), states


class OwnQ(OwnNetworks, DQNPolicy):
    """DQN's policy: the value of the state plus the score of the decision."""

    def make_q_net(self) -> QNetwork:
        """Put these networks in the place of the fully connected one."""
        network = super().make_q_net()
        networks = self._networks(network.features_extractor)
        network.q_net = _Dueling(*networks, self._own["width"])  # type: ignore[assignment]
        return network.to(self.device)


class _ActorCritic(nn.Module):
    """SB3's ``mlp_extractor``: the scores of all decisions, and the value's features."""

    def __init__(self, actor: nn.Module, critic: nn.Module, width: int) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic
        self.latent_dim_pi = self.latent_dim_vf = width

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(features), self.critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return self.actor(features)  # type: ignore[no-any-return]

    def forward_critic(self, features: Tensor) -> Tensor:
        return self.critic(features)  # type: ignore[no-any-return]


class _Dueling(nn.Module):
    """Q-values: the value of the state plus the score of the decision."""

    def __init__(self, score: nn.Module, value: nn.Module, width: int) -> None:
        super().__init__()
        self.score = score
        self.value = nn.Sequential(value, nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.value(features) + self.score(features)  # type: ignore[no-any-return]
