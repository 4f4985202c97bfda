"""The queue as a set: one encoder for every slot, pooled, and a score per slot and LLM.

Policies for Stable-Baselines3 whose decisions do not depend on the order of the slots.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

_SLOT_COUNTS = ("retrials", "age", "wait")

_EMPTY_SCALE = 10.0
"""Most slots are empty: without masks, their common score must fall fast and far."""


class QueueFeatures(BaseFeaturesExtractor):
    """Flat features of LLMQueue-v0: W slots of F numbers, then G numbers about the queue.

    A slot is its context, log(1 + retrials), log(1 + age), log(1 + wait) and ``waiting``; the
    queue is log(1 + its length) and the feedback, one-hot. Nothing is learned here.

    Parameters
    ----------
    observation_space : gymnasium.spaces.Dict
        LLMQueue-v0's.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        window, dim = observation_space["contexts"].shape  # type: ignore[misc]
        codes = int(observation_space["feedback"].n)  # type: ignore[attr-defined]
        self.window, self.slot_size, self.queue_size = window, dim + 4, 1 + codes
        super().__init__(observation_space, window * self.slot_size + self.queue_size)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return shape (B, W F + G)."""
        counts = [torch.log1p(observation[key]) for key in _SLOT_COUNTS]
        columns = torch.stack([*counts, observation["waiting"].float()], dim=-1)
        slots = torch.cat([observation["contexts"], columns], dim=-1)
        length = torch.log1p(observation["queue_length"])
        feedback = observation["feedback"].flatten(1)
        return torch.cat([slots.flatten(1), length, feedback], dim=-1)


class SetEncoder(nn.Module):
    """Slots (B, W F + G) -> their codes, and the mean code of those that wait.

    Only waiting slots are encoded, so a short queue is cheap.

    Parameters
    ----------
    window, slot_size, queue_size : int
        W, F and G of :class:`QueueFeatures`.
    width : int
        Length of a code, H.
    """

    def __init__(self, window: int, slot_size: int, queue_size: int, width: int) -> None:
        super().__init__()
        self.window, self.slot_size = window, slot_size
        self.pooled_size = width + queue_size
        self.encode = nn.Sequential(
            nn.Linear(slot_size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return codes (R, H), rows (R,), slots (R,) of R waiting slots, and pooled (B, H + G)."""
        flat = self.window * self.slot_size
        slots = features[:, :flat].view(-1, self.window, self.slot_size)
        rows, places = torch.nonzero(slots[:, :, -1], as_tuple=True)
        codes = self.encode(slots[rows, places])
        total = codes.new_zeros(len(features), codes.shape[1]).index_add(0, rows, codes)
        mean = total / slots[:, :, -1].sum(dim=1, keepdim=True).clamp(min=1.0)
        return codes, rows, places, torch.cat([mean, features[:, flat:]], dim=1)


class SetScorer(nn.Module):
    """A score per decision (slot i, LLMs S): s_i + sum over j in S of l_ij, shape (B, W C(N, K)).

    s_i and the l_ij come from the slot's code and the pooled queue; the decisions are in the
    order of ``llmqueue_gym.wrappers.DiscreteActions``. An empty slot scores as one learned number.

    Parameters
    ----------
    window, slot_size, queue_size : int
        W, F and G of :class:`QueueFeatures`.
    num_llms, assortment_size : int
        N and K.
    width : int
        Length of a code.
    """

    members: Tensor

    def __init__(
        self,
        window: int,
        slot_size: int,
        queue_size: int,
        num_llms: int,
        assortment_size: int,
        width: int,
    ) -> None:
        super().__init__()
        self.encoder = SetEncoder(window, slot_size, queue_size, width)
        self.from_code = nn.Linear(width, width)
        self.from_pool = nn.Linear(self.encoder.pooled_size, width, bias=False)
        self.head = nn.Linear(width, 1 + num_llms)
        self.empty = nn.Parameter(torch.zeros(1))
        sets = list(combinations(range(num_llms), assortment_size))
        members = torch.zeros(num_llms, len(sets))
        for column, llms in enumerate(sets):
            members[list(llms), column] = 1.0
        self.register_buffer("members", members)
        with torch.no_grad():  # start near the uniform policy
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Score all decisions."""
        codes, rows, places, pooled = self.encoder(features)
        hidden = torch.tanh(self.from_code(codes) + self.from_pool(pooled)[rows])
        scores = self.head(hidden)
        decisions = scores[:, :1] + scores[:, 1:] @ self.members
        empty = _EMPTY_SCALE * self.empty
        table = empty.expand(len(features), self.encoder.window, self.members.shape[1])
        return table.index_put((rows, places), decisions).flatten(1)


class SetValue(nn.Module):
    """The value of a queue from its pooled codes, shape (B, width) before SB3's last layer."""

    def __init__(self, window: int, slot_size: int, queue_size: int, width: int) -> None:
        super().__init__()
        self.encoder = SetEncoder(window, slot_size, queue_size, width)
        self.head = nn.Sequential(nn.Linear(self.encoder.pooled_size, width), nn.Tanh())

    def forward(self, features: Tensor) -> Tensor:
        """Return what the value is linear in."""
        pooled = self.encoder(features)[3]
        return self.head(pooled)  # type: ignore[no-any-return]


class _ActorCritic(nn.Module):
    """SB3's ``mlp_extractor``: the scores of all decisions, and the value's features."""

    def __init__(
        self, window: int, slot_size: int, queue_size: int, llms: tuple[int, int], width: int
    ) -> None:
        super().__init__()
        self.actor = SetScorer(window, slot_size, queue_size, *llms, width)
        self.critic = SetValue(window, slot_size, queue_size, width)
        self.latent_dim_pi = self.latent_dim_vf = width

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(features), self.critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return self.actor(features)  # type: ignore[no-any-return]

    def forward_critic(self, features: Tensor) -> Tensor:
        return self.critic(features)  # type: ignore[no-any-return]


class _SetPolicyMixin:
    """Builds the set networks where SB3 builds its fully connected ones."""

    def __init__(
        self, *args: Any, num_llms: int, assortment_size: int, width: int = 32, **kwargs: Any
    ) -> None:
        self._llms, self._width = (num_llms, assortment_size), width
        kwargs["features_extractor_class"] = QueueFeatures
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        policy: Any = self
        shape = policy.features_extractor
        policy.mlp_extractor = _ActorCritic(
            shape.window, shape.slot_size, shape.queue_size, self._llms, self._width
        )

    def _build(self, lr_schedule: Any) -> None:
        policy: Any = self
        policy.ortho_init = False
        super()._build(lr_schedule)  # type: ignore[misc]
        policy.action_net = nn.Identity()  # the scores are the logits
        policy.optimizer = policy.optimizer_class(
            policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        num_llms, assortment_size = self._llms
        own = {"num_llms": num_llms, "assortment_size": assortment_size, "width": self._width}
        parameters: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return parameters | own


class SetPolicy(_SetPolicyMixin, ActorCriticPolicy):
    """For PPO and A2C on ``Discrete(W C(N, K))``.

    Parameters
    ----------
    num_llms, assortment_size : int
        N and K of the environment.
    width : int
        Length of a slot's code.
    """


class MaskableSetPolicy(_SetPolicyMixin, MaskableActorCriticPolicy):
    """For MaskablePPO; parameters as :class:`SetPolicy`."""


class RecurrentSetPolicy(_SetPolicyMixin, RecurrentActorCriticPolicy):
    """For RecurrentPPO: an LSTM reads the mean slot and the feedback; the scores read its state.

    The slots themselves go past the memory, so the decision is order-independent as well.
    Parameters as :class:`SetPolicy`, besides ``lstm_hidden_size``.
    """

    def _build_mlp_extractor(self) -> None:
        policy: Any = self
        shape = policy.features_extractor
        read = shape.slot_size + shape.queue_size
        policy.mlp_extractor = _ActorCritic(
            shape.window,
            shape.slot_size,
            shape.queue_size + self.lstm_output_dim,
            self._llms,
            self._width,
        )
        policy.features_dim = read  # SB3 sizes its LSTMs by this next

    def _process_sequence(  # type: ignore[override]  # SB3's is static
        self, features: Tensor, *args: Any
    ) -> tuple[Tensor, Any]:
        shape: Any = self.features_extractor
        flat = shape.window * shape.slot_size
        slots = features[:, :flat].view(-1, shape.window, shape.slot_size)
        summary = torch.cat([slots.mean(dim=1), features[:, flat:]], dim=1)
        memory, states = RecurrentActorCriticPolicy._process_sequence(summary, *args)
        return torch.cat([features, memory], dim=1), states


class _DuelingSet(nn.Module):
    """Q-values: the value of the queue plus the score of the decision."""

    def __init__(self, features: QueueFeatures, llms: tuple[int, int], width: int) -> None:
        super().__init__()
        shape = (features.window, features.slot_size, features.queue_size)
        self.score = SetScorer(*shape, *llms, width)
        self.value = nn.Sequential(SetValue(*shape, width), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.value(features) + self.score(features)  # type: ignore[no-any-return]


class SetQPolicy(DQNPolicy):
    """For DQN; parameters as :class:`SetPolicy`."""

    def __init__(
        self, *args: Any, num_llms: int, assortment_size: int, width: int = 32, **kwargs: Any
    ) -> None:
        self._llms, self._width = (num_llms, assortment_size), width
        kwargs["features_extractor_class"] = QueueFeatures
        super().__init__(*args, **{"net_arch": [], **kwargs})

    def make_q_net(self) -> QNetwork:
        """Put the set network in the place of the fully connected one."""
        network = super().make_q_net()
        features = network.features_extractor
        assert isinstance(features, QueueFeatures)
        network.q_net = _DuelingSet(features, self._llms, self._width)  # type: ignore[assignment]
        return network.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        num_llms, assortment_size = self._llms
        own = {"num_llms": num_llms, "assortment_size": assortment_size, "width": self._width}
        return super()._get_constructor_parameters() | own


class DeployFeatures(BaseFeaturesExtractor):
    """Flat features of LLMDeployStage-v0, money in units of the budget per query.

    Parameters
    ----------
    observation_space : gymnasium.spaces.Dict
        LLMDeployStage-v0's.
    budget : float
        b, USD.
    """

    def __init__(self, observation_space: spaces.Dict, budget: float) -> None:
        self.budget = budget
        self.keys = sorted(observation_space.spaces)
        size = sum(int(spaces.flatdim(observation_space[key])) for key in self.keys)
        super().__init__(observation_space, size)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return shape (B, entries)."""
        columns = []
        for key in self.keys:
            value = observation[key].float()
            if key in ("cost_prior", "mean_cost"):
                value = torch.log1p(value / self.budget)
            elif key == "count":
                value = torch.log1p(value) / 10.0
            elif key == "budget_left":
                value = value.clamp(-5.0, 5.0)
            columns.append(value)
        return torch.cat(columns, dim=1)
