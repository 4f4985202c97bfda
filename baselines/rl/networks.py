"""The queue as a set: one encoder for every slot, pooled, and a score per slot and LLM.

Policies for Stable-Baselines3 whose decisions do not depend on the order of the slots.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from baselines.rl.memory import REFUSALS
from baselines.rl.policies import OwnActorCritic, OwnMemory, OwnNetworks, OwnQ

PREVIOUS = ("previous_context", "previous_llms")
_SLOT_COUNTS = ("retrials", "age", "wait")

_EMPTY_SCALE = 10.0
"""Most slots are empty: without masks, their common score must fall fast and far."""
_EMPTY_LOGIT = -5.0
"""In units of the scale: a policy starts where a mask would put it, on queries that wait."""


class QueueFeatures(BaseFeaturesExtractor):
    """Flat features of LLMQueue-v0: W slots of F numbers, then G numbers about the queue.

    A slot is its context, log(1 + refusals) by LLM where they are seen (`baselines.rl.memory`),
    log(1 + retrials), log(1 + age), log(1 + wait) and ``waiting``; the queue is log(1 + its length)
    and the feedback, one-hot, and with ``llmqueue_gym.adapters.wrappers.PreviousDecision`` the
    context served before and the LLMs it was shown. Nothing is learned here.

    Parameters
    ----------
    observation_space : gymnasium.spaces.Dict
        LLMQueue-v0's.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        window, dim = observation_space["contexts"].shape  # type: ignore[misc]
        codes = int(observation_space["feedback"].n)  # type: ignore[attr-defined]
        self.window, self.slot_size, self.queue_size = window, dim + 4, 1 + codes
        self.refusals = REFUSALS in observation_space.spaces
        if self.refusals:
            self.slot_size += observation_space[REFUSALS].shape[1]  # type: ignore[index]
        self.previous = [key for key in PREVIOUS if key in observation_space.spaces]
        self.queue_size += sum(int(spaces.flatdim(observation_space[k])) for k in self.previous)
        super().__init__(observation_space, window * self.slot_size + self.queue_size)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return shape (B, W F + G)."""
        length = torch.log1p(observation["queue_length"])
        queue = [length, observation["feedback"].flatten(1)]
        queue += [observation[key].float() for key in self.previous]
        return torch.cat([slot_features(observation), *queue], dim=-1)


def slot_features(observation: dict[str, Tensor]) -> Tensor:
    """Return the features of the window's slots, flat, shape (B, W F)."""
    counts = [torch.log1p(observation[key]) for key in _SLOT_COUNTS]
    columns = torch.stack([*counts, observation["waiting"].float()], dim=-1)
    seen = [torch.log1p(observation[REFUSALS])] if REFUSALS in observation else []
    return torch.cat([observation["contexts"], *seen, columns], dim=-1).flatten(1)


class SetEncoder(nn.Module):
    """Slots (B, W F + G) -> their codes, and the mean code of those that wait.

    Only waiting slots are encoded, so a short queue is cheap.

    Parameters
    ----------
    window, slot_size, queue_size : int
        W, F and G of `QueueFeatures`.
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
    order of ``llmqueue_gym.adapters.wrappers.DiscreteActions``. An empty slot scores as one
    learned number. Where refusals are seen, l_ij falls with those of query i by LLM j, at a rate
    that is learned, the same for all LLMs.

    Parameters
    ----------
    window, slot_size, queue_size : int
        W, F and G of `QueueFeatures`.
    num_llms, assortment_size : int
        N and K.
    width : int
        Length of a code.
    empty : float
        Where the score of empty slots starts.
    refusals : bool
        Whether slots hold refusals.
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
        empty: float = 0.0,
        refusals: bool = False,
    ) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(1)) if refusals else None
        self.encoder = SetEncoder(window, slot_size, queue_size, width)
        self.from_code = nn.Linear(width, width)
        self.from_pool = nn.Linear(self.encoder.pooled_size, width, bias=False)
        self.head = nn.Linear(width, 1 + num_llms)
        self.empty = nn.Parameter(torch.full((1,), empty))
        sets = list(combinations(range(num_llms), assortment_size))
        members = torch.zeros(num_llms, len(sets))
        for column, llms in enumerate(sets):
            members[list(llms), column] = 1.0
        self.register_buffer("members", members)
        with torch.no_grad():  # start near the uniform policy
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()

    def forward(self, features: Tensor, llms: Tensor | None = None) -> Tensor:
        """Score all decisions; ``llms``, shape (R, N), stands for the l_ij of R waiting slots."""
        codes, rows, places, pooled = self.encoder(features)
        hidden = torch.tanh(self.from_code(codes) + self.from_pool(pooled)[rows])
        scores = self.head(hidden)
        own = scores[:, 1:] if llms is None else llms
        if self.rate is not None:
            encoder, num_llms = self.encoder, len(self.members)
            flat = features[:, : encoder.window * encoder.slot_size]
            slots = flat.view(-1, encoder.window, encoder.slot_size)[rows, places]
            own = own - self.rate * slots[:, -4 - num_llms : -4]
        decisions = scores[:, :1] + own @ self.members
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


class _SetNetworks(OwnNetworks):
    """Builds the set networks."""

    _empty = _EMPTY_LOGIT

    def __init__(
        self, *args: Any, num_llms: int, assortment_size: int, width: int = 32, **kwargs: Any
    ) -> None:
        self._own = {"num_llms": num_llms, "assortment_size": assortment_size, "width": width}
        features = {"features_extractor_class": QueueFeatures}
        super().__init__(*args, **{"net_arch": [], **kwargs, **features})

    def _networks(self, features: QueueFeatures) -> tuple[nn.Module, nn.Module]:
        sizes = (features.window, features.slot_size, features.queue_size)
        return self._scorer_and_value(sizes, features.refusals)

    def _scorer_and_value(
        self, sizes: tuple[int, int, int], refusals: bool = False
    ) -> tuple[SetScorer, SetValue]:
        num_llms, assortment_size, width = self._own.values()
        llms = num_llms, assortment_size
        scorer = SetScorer(*sizes, *llms, width, self._empty, refusals)
        return scorer, SetValue(*sizes, width)


class SetPolicy(_SetNetworks, OwnActorCritic, ActorCriticPolicy):
    """For PPO and A2C on ``Discrete(W C(N, K))``.

    Parameters
    ----------
    num_llms, assortment_size : int
        N and K of the environment.
    width : int
        Length of a slot's code.
    """


class MaskableSetPolicy(_SetNetworks, OwnActorCritic, MaskableActorCriticPolicy):
    """For MaskablePPO; parameters as `SetPolicy`."""


class LeastSquaresMemory(nn.Module):
    """A recurrent cell that keeps, per LLM, the sums of a least-squares fit in a learned space.

    With phi(x) = (P x, 1) the embedding of the context served before, in R^k, and an answer of kind
    a (this LLM's answer kept, another one's, none), the state of every LLM shown changes by ::

        V <- V + w_a phi phi^T,        b <- b + w_a v_a phi

    and a waiting query x reads, per LLM, its prediction phi(x) . (V + l I)^-1 b and its width
    sqrt(phi(x)^T (V + l I)^-1 phi(x)). P, w, v and l are learned by gradient through the reads; no
    LLM has parameters of its own, so the cell does not depend on their order. An episode starts
    with zeros. It takes the place of Stable-Baselines3's LSTM: ``h`` is the state, ``c`` unused.

    Parameters
    ----------
    features : QueueFeatures
        Of observations with the previous decision.
    num_llms : int
        N.
    dim : int
        Most dimensions of the embedding, k - 1; contexts of more are projected.
    """

    num_layers = 1

    def __init__(self, features: QueueFeatures, num_llms: int, dim: int) -> None:
        super().__init__()
        self.input_size = features.features_dim
        self.context_dim = features.slot_size - 4
        self.num_llms, self.size = num_llms, min(dim, self.context_dim) + 1
        self.hidden_size = num_llms * self.size * (self.size + 1)
        self.project = nn.Linear(self.context_dim, self.size - 1, bias=False)
        nn.init.orthogonal_(self.project.weight)
        self.value = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        self.log_weight = nn.Parameter(torch.tensor([0.0, -2.0, 0.0]))
        self.log_ridge = nn.Parameter(torch.zeros(()))

    def embed(self, contexts: Tensor) -> Tensor:
        """Return phi, shape (..., k)."""
        return torch.cat([self.project(contexts), torch.ones_like(contexts[..., :1])], dim=-1)

    def increments(self, features: Tensor) -> Tensor:
        """Return what the previous decision adds to the state, shape (..., N k (k + 1))."""
        start = self.input_size - self.context_dim - 2 * self.num_llms - 2
        codes = 2 + self.num_llms  # nothing served, retried, kept LLM j
        last = features[..., start:]
        feedback, context, shown = torch.tensor_split(
            last, (codes, codes + self.context_dim), dim=-1
        )
        retried, kept = feedback[..., 1:2] * shown, feedback[..., 2:] * shown
        other = feedback[..., 2:].sum(dim=-1, keepdim=True) * shown - kept
        answers = torch.stack([kept, other, retried], dim=-1) * self.log_weight.exp()
        phi = self.embed(context)
        row = torch.cat(
            [
                answers.sum(dim=-1, keepdim=True) * phi.unsqueeze(-2),
                (answers @ self.value).unsqueeze(-1),
            ],
            dim=-1,
        )
        return (phi[..., None, :, None] * row[..., :, None, :]).flatten(-3)

    def read(self, state: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Predict contexts (B, W, d) from states (B, N k (k + 1)): means and widths (B, W, N)."""
        table = state.view(-1, self.num_llms, self.size, self.size + 1)
        ridge = self.log_ridge.exp() * torch.eye(self.size)
        inverse = torch.linalg.inv(table[..., :-1] + ridge)  # (B, N, k, k)
        theta = (inverse @ table[..., -1:]).squeeze(-1)  # (B, N, k)
        phi = self.embed(contexts)  # (B, W, k)
        mean = phi @ theta.transpose(1, 2)
        spread = ((phi.unsqueeze(1) @ inverse) * phi.unsqueeze(1)).sum(dim=-1)  # (B, N, W)
        return mean, spread.transpose(1, 2).clamp(min=1e-12).sqrt()

    def forward(
        self, features: Tensor, states: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence (T, B, features): the state after every step, and the last one."""
        memory = states[0] + self.increments(features).cumsum(dim=0)
        return memory, (memory[-1:], states[1])


class _Recall:
    """Splits SB3's latent (features, memory) and reads the memory for the waiting slots."""

    def __init__(self, features: QueueFeatures, memory: LeastSquaresMemory) -> None:
        self._shape, self._memory = features, memory

    def __call__(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return features, and what R waiting slots read, shape (R, N, 2).

        The features have three more numbers a slot, and of the queue its length only: the rest
        names single LLMs.
        """
        shape, memory = self._shape, self._memory
        features, state = torch.tensor_split(latent, (shape.features_dim,), dim=1)
        flat = shape.window * shape.slot_size
        slots = features[:, :flat].view(-1, shape.window, shape.slot_size)
        mean, width = memory.read(state, slots[..., : memory.context_dim])
        waiting = slots[..., -1:]
        summary = torch.stack([mean.amax(dim=2), mean.mean(dim=2), width.mean(dim=2)], dim=2)
        slots = torch.cat([summary * waiting, slots], dim=-1)  # ``waiting`` stays last
        reads = torch.stack([mean, width], dim=-1)[waiting[..., 0].bool()]
        return torch.cat([slots.flatten(1), features[:, flat : flat + 1]], dim=1), reads


class _RecallScorer(nn.Module):
    """A score per decision: s_i + sum over j in S of l(mean_ij, width_ij), shape (B, W C(N, K))."""

    def __init__(self, recall: _Recall, scorer: SetScorer, width: int) -> None:
        super().__init__()
        self.recall, self.scorer = recall, scorer
        self.llm = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, latent: Tensor) -> Tensor:
        features, reads = self.recall(latent)
        return self.scorer(features, self.llm(reads).squeeze(-1))  # type: ignore[no-any-return]


class _RecallValue(nn.Module):
    """The value's features from the same reads, which it does not train."""

    def __init__(self, recall: _Recall, value: SetValue) -> None:
        super().__init__()
        self.recall, self.value = recall, value

    def forward(self, latent: Tensor) -> Tensor:
        with torch.no_grad():
            features, _ = self.recall(latent)
        return self.value(features)  # type: ignore[no-any-return]


class RecurrentSetPolicy(_SetNetworks, OwnActorCritic, OwnMemory):
    """For RecurrentPPO: learns to learn a new instance from the answers within the episode (RL^2).

    Needs ``llmqueue_gym.adapters.wrappers.PreviousDecision``: the recurrent cell, a
    `LeastSquaresMemory`, is fed with the context served before, the LLMs shown and the
    answer. The scores of a slot read it; they do not depend on the order of slots or LLMs.
    Parameters as `SetPolicy`.

    Parameters
    ----------
    memory_dim : int
        Most dimensions of the embedding in memory; the state takes O(N memory_dim^2) numbers and a
        step O(N memory_dim^3) operations.
    """

    def __init__(self, *args: Any, memory_dim: int = 16, **kwargs: Any) -> None:
        self._memory_dim = memory_dim
        super().__init__(*args, **kwargs)

    def _networks(self, features: QueueFeatures) -> tuple[nn.Module, nn.Module]:
        self._memory = LeastSquaresMemory(features, self._own["num_llms"], self._memory_dim)
        recall = _Recall(features, self._memory)
        scorer, value = self._scorer_and_value((features.window, features.slot_size + 3, 1))
        return _RecallScorer(recall, scorer, 16), _RecallValue(recall, value)

    def _make_memory(self) -> LeastSquaresMemory:
        return self._memory

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"memory_dim": self._memory_dim}


class SetQPolicy(_SetNetworks, OwnQ):
    """For DQN; parameters as `SetPolicy`."""

    _empty = 0.0


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
