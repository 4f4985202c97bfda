"""Reinforcement learning inside the scored run: ignorant at the first slot, like every bandit.

The algorithms are Stable-Baselines3's own; only their loop over an environment is taken apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import obs_as_tensor

from baselines.interface import Action, Agent, Observation, QueueProblem
from baselines.queueing.base import FIRST_KEPT
from baselines.rl.agents import legal_decisions, queue_spaces
from baselines.rl.networks import MaskableSetPolicy, SetQPolicy
from llmqueue_gym import checks
from llmqueue_gym.adapters.wrappers import assortments
from llmqueue_gym.errors import UsageError


class _Spaces(gym.Env[Any, Any]):
    """What SB3's constructors ask of an environment; never stepped."""

    def __init__(self, problem: QueueProblem) -> None:
        self.observation_space, self.action_space = queue_spaces(problem)


_NUMPY: Any = np.random  # NumPy's type stubs leave out the two functions for the bit generator


class _OwnGenerators:
    """The global generators of random, NumPy and torch, an agent's own while it is entered.

    SB3 seeds and draws from the global ones. Here they are put in place for its calls and the
    host's are put back untouched, so that neither changes what the other draws. Entering costs
    tens of microseconds, nearly all for a copy of NumPy's state.
    """

    def __init__(self) -> None:
        self._python = random.Random(0).getstate()
        self._numpy = np.random.MT19937(0)
        self._torch = torch.Generator().manual_seed(0).get_state()

    def __enter__(self) -> None:
        self._host = (
            random.getstate(),
            _NUMPY.get_bit_generator(),
            np.random.get_state(legacy=False),  # noqa: NPY002 - the host may draw from it
            torch.get_rng_state(),
        )
        random.setstate(self._python)
        _NUMPY.set_bit_generator(self._numpy)
        torch.set_rng_state(self._torch)

    def __exit__(self, *_: object) -> None:
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        python, generator, state, tensors = self._host
        random.setstate(python)
        _NUMPY.set_bit_generator(generator)
        if state["has_gauss"]:  # the second of a pair of normal draws, which NumPy keeps apart
            np.random.set_state(state)  # noqa: NPY002
        torch.set_rng_state(tensors)


class _OnlineAgent(Agent):
    """Plays decisions (slot, set of LLMs) and is told what came of them.

    Whatever draws from SB3's generators is called with ``_generators`` entered.
    """

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._sets = assortments(problem.num_llms, problem.assortment_size)
        self._network = {
            "num_llms": problem.num_llms,
            "assortment_size": problem.assortment_size,
        }
        self._arguments: dict[str, Any] = {"seed": seed % 2**32, "device": "cpu"}
        self._generators = _OwnGenerators()
        self._decision = 0
        self._time = 0

    def __getstate__(self) -> dict[str, Any]:
        raise UsageError(
            f"{type(self).__name__} learns in the run by Stable-Baselines3 and cannot be saved; "
            "`llmqueue-bench train` makes agents that can"
        )

    def act(self, observation: Observation) -> Action:
        """Return ``[slot, llm_1, ..., llm_K]``, shape (1 + K,)."""
        self._decision = self._decide(observation, legal_decisions(observation, len(self._sets)))
        slot, which = divmod(self._decision, len(self._sets))
        return np.array([slot, *self._sets[which]], dtype=np.int64)

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from one slot; the reward learned from is 1 per departure (see the recipes)."""
        self._time += 1
        self._learn(
            observation, float(next_observation["feedback"] >= FIRST_KEPT), next_observation
        )

    def _decide(self, observation: Observation, legal: NDArray[np.bool_]) -> int:
        raise NotImplementedError

    def _learn(self, observation: Observation, reward: float, following: Observation) -> None:
        raise NotImplementedError


class OnlineDQN(_OnlineAgent):
    """DQN on the set network, one gradient step every few slots; milliseconds a slot.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task; its horizon sets the schedules.
    seed : int
        Seed of the agent's own randomness.
    gamma, learning_rate : float
        Discount and step size.
    batch_size, train_freq : int
        Transitions per gradient step, and slots between two.
    exploration_fraction, exploration_final_eps : float
        Share of the horizon in which the exploration probability falls from 1, and to what.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        gamma: float = 0.5,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        train_freq: int = 2,
        exploration_fraction: float = 0.05,
        exploration_final_eps: float = 0.01,
    ) -> None:
        super().__init__(problem, seed)
        checks.number("gamma", gamma, "[0, 1]")
        checks.number("learning_rate", learning_rate, "(0, inf)")
        checks.count("batch_size", batch_size)
        checks.count("train_freq", train_freq)
        checks.number("exploration_fraction", exploration_fraction, "(0, 1]")
        checks.number("exploration_final_eps", exploration_final_eps, "[0, 1]")
        with self._generators:
            self._model = DQN(
                SetQPolicy,
                _Spaces(problem),
                buffer_size=problem.horizon,
                learning_starts=batch_size,
                batch_size=batch_size,
                gamma=gamma,
                learning_rate=learning_rate,
                target_update_interval=200,
                exploration_fraction=exploration_fraction,
                exploration_final_eps=exploration_final_eps,
                policy_kwargs=self._network,
                **self._arguments,
            )
        self._model.set_logger(Logger(folder=None, output_formats=[]))
        self._model.exploration_rate = 1.0
        self._train_freq = train_freq

    def _decide(self, observation: Observation, legal: NDArray[np.bool_]) -> int:
        if self.rng.random() < self._model.exploration_rate:
            return int(self.rng.choice(np.flatnonzero(legal)))
        tensors = obs_as_tensor(_batch(observation), self._model.device)
        with torch.no_grad():
            values = self._model.q_net(tensors)[0].numpy()
        return int(np.where(legal, values, -np.inf).argmax())

    def _learn(self, observation: Observation, reward: float, following: Observation) -> None:
        model = self._model
        assert isinstance(model.replay_buffer, DictReplayBuffer)
        model.replay_buffer.add(
            _batch(observation),
            _batch(following),
            np.array([[self._decision]]),
            np.array([reward]),
            np.zeros(1),
            [{}],
        )
        model._update_current_progress_remaining(self._time, self.problem.horizon)
        model._on_step()
        if self._time > model.learning_starts and self._time % self._train_freq == 0:
            with self._generators:
                model.train(gradient_steps=1, batch_size=model.batch_size)


class OnlinePPO(_OnlineAgent):
    """MaskablePPO on the set network, updated every ``n_steps`` slots.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    n_steps, batch_size, n_epochs : int
        Slots per update, transitions per gradient step, passes over them.
    gamma, gae_lambda, learning_rate : float
        Discount, lambda of the advantages, step size.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        n_steps: int = 128,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.5,
        gae_lambda: float = 0.9,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__(problem, seed)
        checks.count("n_steps", n_steps, 2)
        checks.count("batch_size", batch_size, 2)
        if n_steps % batch_size == 1:  # advantages are scaled by their standard deviation
            raise UsageError(
                f"batch_size={batch_size!r} leaves one transition of n_steps={n_steps!r} alone; "
                "use one that divides it"
            )
        checks.count("n_epochs", n_epochs)
        checks.number("gamma", gamma, "[0, 1]")
        checks.number("gae_lambda", gae_lambda, "[0, 1]")
        checks.number("learning_rate", learning_rate, "(0, inf)")
        with self._generators:
            self._model = MaskablePPO(
                MaskableSetPolicy,
                _Spaces(problem),
                n_steps=n_steps,
                batch_size=batch_size,
                n_epochs=n_epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                learning_rate=learning_rate,
                policy_kwargs=self._network,
                **self._arguments,
            )
        self._model.set_logger(Logger(folder=None, output_formats=[]))
        self._value = self._log_prob = torch.zeros(1)
        self._legal: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def _decide(self, observation: Observation, legal: NDArray[np.bool_]) -> int:
        self._legal = legal
        tensors: Any = obs_as_tensor(_batch(observation), self._model.device)
        with torch.no_grad(), self._generators:
            action, self._value, self._log_prob = self._model.policy(tensors, action_masks=legal)
        return int(action)

    def _learn(self, observation: Observation, reward: float, following: Observation) -> None:
        model = self._model
        buffer: Any = model.rollout_buffer
        buffer.add(
            _batch(observation),
            np.array([[self._decision]]),
            np.array([reward]),
            np.array([self._time == 1]),
            self._value,
            self._log_prob,
            action_masks=self._legal,
        )
        if buffer.full:
            tensors: Any = obs_as_tensor(_batch(following), model.device)
            with torch.no_grad():
                last = model.policy.predict_values(tensors)
            buffer.compute_returns_and_advantage(last_values=last, dones=np.zeros(1))
            with self._generators:
                model.train()
            buffer.reset()


def _batch(observation: Observation) -> dict[str, NDArray[Any]]:
    """Return the observation as a batch of one."""
    return {key: np.asarray(value)[None] for key, value in observation.items()}
