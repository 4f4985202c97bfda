"""Serving: networks that score each pair of a waiting query and a replica, and their reward.

A decision is a set of dispatches (`llmqueue_gym.adapters.dispatches`); its score is the sum of its
pairs', whatever the order of the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from baselines.rl.networks import SetScorer, SetValue, slot_features
from llmqueue_gym.adapters.dispatches import Dispatches
from llmqueue_gym.adapters.wrappers import AnyVectorWrapper, LaneWrapper
from llmqueue_gym.serving.dynamics import SERVING

_FULL = -50.0
"""Score of a pair that cannot be: near where a mask would put it."""


class ServeFeatures(BaseFeaturesExtractor):
    """Flat features of LLMServe-v0: W slots of F numbers, then G numbers about queue and fleet.

    A slot is as in `QueueFeatures`. Queue and fleet are: whether each replica has room, how many it
    serves and their mean context, the answers kept and not kept in the last slot by LLM, and the
    length and the sum of the contexts of the queue. Counts and sums are logarithms. Where contexts
    name kinds of query, the sum is how many of each kind wait. Nothing is learned here.

    Parameters
    ----------
    observation_space : gymnasium.spaces.Dict
        LLMServe-v0's.
    places : sequence of int
        Queries that each replica serves at once.
    """

    def __init__(self, observation_space: spaces.Dict, places: Sequence[int]) -> None:
        window, dim = observation_space["contexts"].shape  # type: ignore[misc]
        llms = observation_space["kept"].shape[0]  # type: ignore[index]
        self.window, self.slot_size, self.replicas = window, dim + 4, len(places)
        self.queue_size = self.replicas * (2 + dim) + 2 * llms + 1 + dim
        super().__init__(observation_space, window * self.slot_size + self.queue_size)
        self.places: Tensor
        self.register_buffer("places", torch.tensor(places, dtype=torch.float32))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return shape (B, W F + G)."""
        total = observation["total"]
        active = observation["active"]
        room = (observation["phase"][:, :, SERVING] > 0) & (active < self.places)
        parts = [
            slot_features(observation),
            room.float(),
            torch.log1p(active),
            observation["serving"].flatten(1),
            observation["kept"],
            observation["not_kept"],
            torch.log1p(observation["queue_length"]),
            total.sign() * torch.log1p(total.abs()),
        ]
        return torch.cat(parts, dim=1)


class DispatchScorer(nn.Module):
    """A score per set of dispatches, the sum over its pairs, shape (B, S).

    Parameters
    ----------
    features : ServeFeatures
    dispatches : int
        Dispatches a slot, A.
    width : int
        Length of a query's code.
    more : int
        Numbers behind the features.
    """

    members: Tensor

    def __init__(self, features: ServeFeatures, dispatches: int, width: int, more: int = 0) -> None:
        super().__init__()
        window, replicas = features.window, features.replicas
        self.fleet = slice(window * features.slot_size, window * features.slot_size + replicas)
        self.pairs = SetScorer(
            window, features.slot_size, features.queue_size + more, replicas, 1, width, _FULL / 10
        )
        sets = torch.from_numpy(
            Dispatches(window, window, dispatches, features.places.tolist()).sets
        )
        members = torch.zeros(window * replicas + 1, len(sets))
        for column in sets.T:
            members[column, torch.arange(len(sets))] = 1.0
        self.register_buffer("members", members[:-1], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Score all sets; the first, to hold back, scores 0."""
        table = self.pairs(features)
        full = (1.0 - features[:, self.fleet]) * _FULL
        return torch.matmul(table + full.tile(1, table.shape[1] // full.shape[1]), self.members)


class _ServeActorCritic(nn.Module):
    """SB3's ``mlp_extractor``: the scores of all decisions, and the value's features."""

    def __init__(self, features: ServeFeatures, dispatches: int, width: int, more: int = 0) -> None:
        super().__init__()
        self.actor = DispatchScorer(features, dispatches, width, more)
        sizes = features.window, features.slot_size, features.queue_size + more
        self.critic = SetValue(*sizes, width)
        self.latent_dim_pi = self.latent_dim_vf = width

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(features), self.critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return self.actor(features)  # type: ignore[no-any-return]

    def forward_critic(self, features: Tensor) -> Tensor:
        return self.critic(features)  # type: ignore[no-any-return]


class _ServePolicyMixin:
    """Builds these networks where SB3 builds its fully connected ones."""

    _more = 0

    def __init__(
        self, *args: Any, places: Sequence[int], dispatches: int, width: int = 32, **kwargs: Any
    ) -> None:
        self._own: dict[str, Any] = {"places": places, "dispatches": dispatches, "width": width}
        kwargs["features_extractor_class"] = ServeFeatures
        kwargs["features_extractor_kwargs"] = {"places": places}
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        policy: Any = self
        policy.mlp_extractor = _ServeActorCritic(
            policy.features_extractor, self._own["dispatches"], self._own["width"], self._more
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
        parameters: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return parameters | self._own


class MaskableServePolicy(_ServePolicyMixin, MaskableActorCriticPolicy):
    """For MaskablePPO on the sets of `Dispatches`.

    Parameters
    ----------
    places, dispatches
        Of the task.
    width : int
        Length of a query's code.
    """


class FleetMemory(nn.Module):
    """An LSTM over the numbers about queue and fleet; SB3's would read every slot of the window."""

    num_layers = 1

    def __init__(self, features: ServeFeatures, size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = features.features_dim, size
        self._first = features.features_dim - features.queue_size
        self.lstm = nn.LSTM(features.queue_size, size)

    def forward(
        self, features: Tensor, states: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence (T, B, features)."""
        return self.lstm(features[..., self._first :], states)  # type: ignore[no-any-return]


class RecurrentServePolicy(_ServePolicyMixin, RecurrentActorCriticPolicy):
    """For RecurrentPPO: queries are scored with what an LSTM remembers of queue and fleet.

    Parameters as `MaskableServePolicy`.

    Parameters
    ----------
    memory : int
        Size of the LSTM.
    """

    def __init__(self, *args: Any, memory: int = 32, **kwargs: Any) -> None:
        self._more = memory
        super().__init__(*args, **{**kwargs, "shared_lstm": True, "enable_critic_lstm": False})
        self.lstm_actor = FleetMemory(self.features_extractor, memory)  # type: ignore[assignment, arg-type]
        self.lstm_hidden_state_shape = (1, 1, memory)
        adam: Any = self.optimizer_class
        self.optimizer = adam(self.parameters(), lr=args[2](1), **self.optimizer_kwargs)

    def _process_sequence(  # type: ignore[override]  # SB3's is static
        self, features: Tensor, *args: Any
    ) -> tuple[Tensor, Any]:
        memory, states = RecurrentActorCriticPolicy._process_sequence(features, *args)
        return torch.cat([features, memory], dim=1), states

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"memory": self._more}


class _DuelingServe(nn.Module):
    """Q-values: the value of the state plus the score of the decision."""

    def __init__(self, features: ServeFeatures, dispatches: int, width: int) -> None:
        super().__init__()
        sizes = features.window, features.slot_size, features.queue_size
        self.score = DispatchScorer(features, dispatches, width)
        self.value = nn.Sequential(SetValue(*sizes, width), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.value(features) + self.score(features)  # type: ignore[no-any-return]


class ServeQPolicy(DQNPolicy):
    """For DQN; parameters as `MaskableServePolicy`."""

    def __init__(
        self, *args: Any, places: Sequence[int], dispatches: int, width: int = 32, **kwargs: Any
    ) -> None:
        self._own: dict[str, Any] = {"places": places, "dispatches": dispatches, "width": width}
        kwargs["features_extractor_class"] = ServeFeatures
        kwargs["features_extractor_kwargs"] = {"places": places}
        super().__init__(*args, **{"net_arch": [], **kwargs})

    def make_q_net(self) -> QNetwork:
        """Put this network in the place of the fully connected one."""
        network = super().make_q_net()
        features = network.features_extractor
        assert isinstance(features, ServeFeatures)
        network.q_net = _DuelingServe(  # type: ignore[assignment]
            features, self._own["dispatches"], self._own["width"]
        )
        return network.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._own


class LegalDQN(DQN):
    """DQN that explores among legal decisions only: nearly all others are to hold back."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Return decisions, random legal ones with the rate of exploration."""
        decisions, state = self.policy.predict(observation, state, episode_start, True)
        if not deterministic:
            masks = np.stack(self.env.env_method("action_masks"))  # type: ignore[union-attr]
            draws = torch.rand(masks.shape).numpy() * masks
            explore = torch.rand(len(masks)).numpy() < self.exploration_rate
            decisions = np.where(explore, draws.argmax(axis=1), decisions)
        return decisions, state


class LearnedReward(LaneWrapper, AnyVectorWrapper):
    """What is learned from: the reward with what holding costs shaped by a potential.

    With h the cost of a query in the system for a slot and n their number, the potential
    -h n / (1 - gamma) (Ng, Harada, Russell: ICML 1999) turns -h n' into h (n - n') / (1 - gamma):
    who leaves is worth what his staying for ever would cost. The best policies are the same, and
    it is bounded, while a queue is not. Arrivals, which no policy changes, are added, and all is
    scaled by 1 - gamma.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        LLMServe-v0's, in SAME_STEP mode.
    gamma : float
        Discount of the algorithm.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], gamma: float) -> None:
        super().__init__(env)
        self.gamma = gamma
        public = env.unwrapped.task.public  # type: ignore[attr-defined]
        self._holding, self._rate = public.rewards.holding, public.arrival_rate
        self._there = np.zeros(env.num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._there = _there(info)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every lane."""
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        there, arrived = _there(info), info["arrived"].copy()
        if "final_info" in info:
            ended = terminated | truncated
            last = info["final_info"]
            there[ended], arrived[ended] = _there(last)[ended], last["arrived"][ended]
        gone = self._there - there + arrived - self._rate
        rewards = (1.0 - self.gamma) * (rewards + self._holding * there) + self._holding * gone
        self._there = _there(info)
        return observation, rewards, terminated, truncated, info


def _there(info: dict[str, Any]) -> Any:
    return (info["queue_length"] + info["in_service"]).astype(np.float64)
