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
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from baselines.rl.networks import SetScorer, SetValue, slot_features
from baselines.rl.policies import OwnActorCritic, OwnMemory, OwnNetworks, OwnQ
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


class _ServeNetworks(OwnNetworks):
    """Builds these networks."""

    _more = 0

    def __init__(
        self, *args: Any, places: Sequence[int], dispatches: int, width: int = 32, **kwargs: Any
    ) -> None:
        self._own = {"places": places, "dispatches": dispatches, "width": width}
        features = {
            "features_extractor_class": ServeFeatures,
            "features_extractor_kwargs": {"places": places},
        }
        super().__init__(*args, **{"net_arch": [], **kwargs, **features})

    def _networks(self, features: ServeFeatures) -> tuple[nn.Module, nn.Module]:
        width, more = self._own["width"], self._more
        scorer = DispatchScorer(features, self._own["dispatches"], width, more)
        sizes = features.window, features.slot_size, features.queue_size + more
        return scorer, SetValue(*sizes, width)


class MaskableServePolicy(_ServeNetworks, OwnActorCritic, MaskableActorCriticPolicy):
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


class RecurrentServePolicy(_ServeNetworks, OwnActorCritic, OwnMemory):
    """For RecurrentPPO: queries are scored with what an LSTM remembers of queue and fleet.

    Parameters as `MaskableServePolicy`.

    Parameters
    ----------
    memory : int
        Size of the LSTM.
    """

    def __init__(self, *args: Any, memory: int = 32, **kwargs: Any) -> None:
        self._more = memory
        super().__init__(*args, **kwargs)

    def _make_memory(self) -> FleetMemory:
        return FleetMemory(self.features_extractor, self._more)  # type: ignore[arg-type]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"memory": self._more}


class ServeQPolicy(_ServeNetworks, OwnQ):
    """For DQN; parameters as `MaskableServePolicy`."""


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
