"""What the parallel games share: everybody acts in every slot."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmqueue_gym import checks
from llmqueue_gym.adapters.pettingzoo import Game, ParallelEnv, Spaces, Views, drawn
from llmqueue_gym.errors import UsageError
from llmqueue_gym.registration import QUEUE_EPISODE_STEPS
from llmqueue_gym.vector import Ints, Observation, SuiteEnv

ParallelStep = tuple[
    dict[str, Observation],
    dict[str, float],
    dict[str, bool],
    dict[str, bool],
    dict[str, dict[str, Any]],
]


class QueueGame(Game, ParallelEnv):  # type: ignore[misc]  # PettingZoo has no types
    """A parallel game on an environment with a queue: everybody acts in every slot.

    Parameters
    ----------
    max_episode_steps : int
        Slots after which the episode is truncated for all agents.
    max_cycles : int, optional
        PettingZoo's name for it; wins.
    render_mode, flat_observation
        As every game has them.
    **kwargs
        Arguments of the environment.
    """

    played: type[SuiteEnv]
    """The environment to play; its ``dynamics.slot`` counts the slots."""

    dynamics: Any  # of the environment

    def __init__(
        self,
        max_episode_steps: int = QUEUE_EPISODE_STEPS,
        max_cycles: int | None = None,
        render_mode: str | None = None,
        flat_observation: bool = False,
        **kwargs: Any,
    ) -> None:
        single = self.played(render_mode=drawn(render_mode), **kwargs)  # type: ignore[call-arg]
        observations, actions, public = self._cast(single)
        super().__init__(single, observations, actions, render_mode, flat_observation, public)
        if max_cycles is None:
            self._num_slots = checks.count("max_episode_steps", max_episode_steps)
        else:
            self._num_slots = checks.count("max_cycles", max_cycles)

    @abstractmethod
    def _cast(self, single: Any) -> tuple[Spaces, Spaces, Spaces]:
        """Return what every agent observes and does, and what the state has besides."""

    @abstractmethod
    def _joint_action(self, actions: dict[str, Ints]) -> list[int]:
        """Return the action of the single-agent environment."""

    @abstractmethod
    def _views(self) -> Views:
        """Return what every agent sees now, and its legal actions."""

    def _rewards(self, reward: float, info: dict[str, Any]) -> dict[str, float]:
        """Return the reward of every agent after a slot; by default they share it."""
        return dict.fromkeys(self.agents, reward)

    def _own(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return what every agent is told; by default they are told the same."""
        return dict.fromkeys(self.possible_agents, info)

    def _told(
        self, info: dict[str, Any]
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Return the observations and the infos of all agents."""
        del info["action_mask"]  # the joint one
        views, own = self._views(), self._own(info)
        observations = {agent: self._view(agent, *view) for agent, view in views.items()}
        infos = {agent: self._info(own[agent], mask) for agent, (_, mask) in views.items()}
        return observations, infos

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Empty the queue and start the streams of the episode, as the environment does."""
        self._seen, info = self._played.reset(seed=seed, options=options)
        self.agents = self.possible_agents.copy()
        return self._told(info)

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
        if not isinstance(actions, Mapping) or set(actions) != set(self.agents):
            raise UsageError(
                f"actions={actions!r} must be a dict with one action to each of {self.agents}; "
                "{agent: env.action_space(agent).sample() for agent in env.agents} is one"
            )
        checked = {agent: self._checked(agent, actions[agent]) for agent in self.agents}
        joint = np.array(self._joint_action(checked))
        self._seen, reward, _, _, info = self._played.step(joint)
        rewards = self._rewards(float(reward), info)
        observations, infos = self._told(info)
        ended = bool(self.dynamics.slot[0] >= self._num_slots)
        terminations = dict.fromkeys(observations, False)
        truncations = dict.fromkeys(observations, ended)
        if ended:
            self.agents = []
        return observations, rewards, terminations, truncations, infos
