"""What the games share: spaces, masks, action checks, and the parallel games on one queue.

A game plays one single-agent environment, so dynamics, streams and rewards are not written twice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv  # type: ignore[import-untyped]

from llmqueue_gym.core.deployment import DeploymentDynamics
from llmqueue_gym.core.queue import QueueDynamics
from llmqueue_gym.envs.base import Ints, Observation
from llmqueue_gym.envs.llm_deploy import LLMDeployEnv
from llmqueue_gym.envs.llm_queue import LLMQueueEnv
from llmqueue_gym.workloads.pool import check_count

Mask = NDArray[np.int8]
Spaces = Mapping[str, spaces.Space[Any]]
ParallelStep = tuple[
    dict[str, Observation],
    dict[str, float],
    dict[str, bool],
    dict[str, bool],
    dict[str, dict[str, Any]],
]


class FlatMaskMultiDiscrete(spaces.MultiDiscrete):
    """A ``MultiDiscrete`` that samples with the flat mask observations carry.

    PettingZoo and its users call ``action_space.sample(observation["action_mask"])``; Gymnasium
    wants a tuple of masks there.
    """

    def sample(self, mask: Any = None, probability: Any = None) -> Ints:
        """Draw an action; ``mask`` is flat (int8, one entry per choice) or Gymnasium's tuple."""
        if isinstance(mask, np.ndarray):
            mask = tuple(np.split(mask, np.cumsum(self.nvec)[:-1]))
        action: Ints = super().sample(mask, probability)
        return action


class Game:
    """Named agents who play one single-agent environment together.

    Every agent observes ``{"observation": ..., "action_mask": ...}``, PettingZoo's convention; the
    mask is flat, int8, 1 where a choice is legal.

    Attributes
    ----------
    llms : tuple of str
        Names of the LLMs, in the order of the actions.
    dynamics : QueueDynamics or DeploymentDynamics
        The truth, for oracles and scoring; agents must not look.
    """

    def __init__(
        self, single: LLMQueueEnv | LLMDeployEnv, observations: Spaces, actions: Spaces
    ) -> None:
        self._single = single
        self.llms = single.llms
        self.dynamics: QueueDynamics | DeploymentDynamics = single.dynamics
        self.render_mode = single.render_mode
        self.possible_agents = list(actions)
        self.agents: list[str] = []
        self._action_spaces = dict(actions)
        self._observation_spaces = {
            agent: spaces.Dict(
                {
                    "observation": observations[agent],
                    "action_mask": spaces.MultiBinary(spaces.flatdim(space)),
                }
            )
            for agent, space in actions.items()
        }

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """Return the observation space of an agent, always the same object."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Return the action space of an agent, always the same object."""
        return self._action_spaces[agent]

    def render(self) -> str | NDArray[np.uint8] | None:
        """Draw the state as the single-agent environment does."""
        return self._single.render()

    def close(self) -> None:
        """Free the renderer."""
        self._single.close()

    def _check_running(self) -> None:
        if not self.agents:
            raise gym.error.ResetNeeded("no episode is running; call reset() before step()")

    def _checked(self, agent: str, action: Any) -> Ints:
        values = np.asarray(action)
        space = self._action_spaces[agent]
        if values.dtype.kind not in "iu" or not space.contains(values):
            raise ValueError(
                f"action={action!r} of {agent!r} is not in its action space {space}; "
                f"env.action_space({agent!r}).sample() shows one that is"
            )
        return values


def view(observation: Observation, mask: Mask) -> Observation:
    """Return what one agent sees; arrays are its own."""
    own = {key: value.copy() for key, value in observation.items()}
    return {"observation": own, "action_mask": mask}


class QueueGame(Game, ParallelEnv):  # type: ignore[misc]  # PettingZoo has no types
    """A parallel game on LLMQueue-v0: everybody acts in every slot.

    Parameters
    ----------
    single : LLMQueueEnv
        The environment to play.
    max_episode_steps : int
        Slots after which the episode is truncated for all agents.
    observations, actions : mapping of str to Space
        Spaces of every agent.
    """

    dynamics: QueueDynamics

    def __init__(
        self, single: LLMQueueEnv, max_episode_steps: int, observations: Spaces, actions: Spaces
    ) -> None:
        super().__init__(single, observations, actions)
        self._max_episode_steps = check_count("max_episode_steps", max_episode_steps)
        self._seen: Observation = {}  # the last observation of the single-agent environment

    @abstractmethod
    def _joint_action(self, actions: dict[str, Ints]) -> list[int]:
        """Return the action [slot, LLMs] of the single-agent environment."""

    @abstractmethod
    def _views(self) -> dict[str, Observation]:
        """Return what every agent sees now."""

    def _settle(
        self, reward: float, info: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """Return reward and info of every agent after a slot; by default they share both."""
        return dict.fromkeys(self.agents, reward), self._infos(info)

    def _infos(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {agent: dict(info) for agent in self.agents}

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Empty the queue and start the streams of the episode, as LLMQueue-v0 does."""
        self._seen, info = self._single.reset(seed=seed, options=options)
        del info["action_mask"]  # the joint one
        self.agents = self.possible_agents.copy()
        return self._views(), self._infos(info)

    def step(self, actions: Mapping[str, Any]) -> ParallelStep:
        """Run one slot.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset and after the last slot.
        ValueError
            If an agent's action is missing or not in its action space.
        """
        self._check_running()
        if set(actions) != set(self.agents):
            raise ValueError(
                f"actions have the keys {sorted(actions)}; give one action to each of {self.agents}"
            )
        checked = {agent: self._checked(agent, actions[agent]) for agent in self.agents}
        joint = np.array(self._joint_action(checked))
        self._seen, reward, _, _, info = self._single.step(joint)
        del info["action_mask"]
        rewards, infos = self._settle(reward, info)
        views = self._views()
        ended = bool(self.dynamics.slot[0] >= self._max_episode_steps)
        terminations, truncations = dict.fromkeys(views, False), dict.fromkeys(views, ended)
        if ended:
            self.agents = []
        return views, rewards, terminations, truncations, infos
