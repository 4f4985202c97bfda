"""What the PettingZoo games share: spaces, masks, action checks.

A game plays one single-agent environment, so dynamics, streams and rewards are not written twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import HumanRendering
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.flat import FlatLayout
from llmqueue_gym.vector import Ints, Observation, SuiteEnv, check_reset

with needing("llmqueue_gym.multi_agent", "PettingZoo", "marl"):
    from pettingzoo import AECEnv, ParallelEnv  # type: ignore[import-untyped]
    from pettingzoo.utils.conversions import (  # type: ignore[import-untyped]
        parallel_to_aec,
        parallel_to_aec_wrapper,
    )
    from pettingzoo.utils.wrappers import OrderEnforcingWrapper  # type: ignore[import-untyped]

__all__ = [
    "AECEnv",
    "FlatMaskMultiDiscrete",
    "Game",
    "Mask",
    "OrderEnforcingWrapper",
    "ParallelEnv",
    "Spaces",
    "Views",
    "drawn",
    "parallel_to_aec",
    "parallel_to_aec_wrapper",
]
"""Games take PettingZoo's names from here, so that its absence is said once."""

Mask = NDArray[np.int8]
Spaces = Mapping[str, spaces.Space[Any]]
Views = dict[str, tuple[Observation, Mask]]  # what every agent sees, and its legal actions


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
    mask is flat, int8, 1 where a choice is legal. With ``flat_observation`` it observes one float32
    vector, and the mask is in ``infos[agent]["action_mask"]``, PettingZoo's other place for it.

    Attributes
    ----------
    llms : tuple of str
        Names of the LLMs, in the order of the actions.
    dynamics : QueueDynamics or DeploymentDynamics
        The truth, for oracles and scoring; agents must not look.
    state_space : gymnasium.spaces.Box
        Space of ``state()``.
    """

    def __init__(
        self,
        single: SuiteEnv,
        observations: Spaces,
        actions: Spaces,
        render_mode: str | None,
        flat_observation: bool,
        public: Spaces | None = None,
    ) -> None:
        checks.flag("flat_observation", flat_observation)
        self._single = single
        self._played: gym.Env[Any, Any] = single
        if render_mode == "human":
            self._played = HumanRendering(single)
        self.llms = single.llms
        self.dynamics = single.dynamics
        self.render_mode = render_mode
        self.possible_agents = list(actions)
        self.agents: list[str] = []
        self._seen: Observation = {}  # the last observation of the single-agent environment
        state = {**single.dict_observation_space.spaces, **(public or {})}
        self._state_layout = FlatLayout(spaces.Dict(state))
        self.state_space = self._state_layout.space
        self._action_spaces = dict(actions)
        self._layouts: dict[str, FlatLayout] = {}
        self._observation_spaces: dict[str, spaces.Space[Any]] = {}
        for agent, space in actions.items():
            if flat_observation:
                self._layouts[agent] = FlatLayout(observations[agent])
                self._observation_spaces[agent] = self._layouts[agent].space
            else:
                mask = spaces.MultiBinary(spaces.flatdim(space))
                shown = {"observation": observations[agent], "action_mask": mask}
                self._observation_spaces[agent] = spaces.Dict(shown)

    def state(self) -> NDArray[np.float32]:
        """Return what all agents see together as one vector, for centralised critics.

        That is the observation of the single-agent environment, its keys in alphabetical order.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(bool(self._seen), "state")
        return self._state_layout.flatten(self._seen | self._public())

    def _public(self) -> Observation:
        """Return entries of the state that the single-agent environment does not have."""
        return {}

    def _view(self, agent: str, observation: Observation, mask: Mask) -> Any:
        """Return what one agent sees; arrays are its own."""
        if self._layouts:
            return self._layouts[agent].flatten(observation)
        own = {key: value.copy() for key, value in observation.items()}
        return {"observation": own, "action_mask": mask.copy()}

    def _info(self, info: dict[str, Any], mask: Mask) -> dict[str, Any]:
        """Return what one agent is told, with its mask if that is not in the observation."""
        return info | {"action_mask": mask.copy()} if self._layouts else dict(info)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """Return the observation space of an agent, always the same object."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Return the action space of an agent, always the same object."""
        return self._action_spaces[agent]

    def render(self) -> str | NDArray[np.uint8] | None:
        """Draw the state as the single-agent environment does; "human" is drawn at every step."""
        return None if self.render_mode == "human" else self._single.render()

    def close(self) -> None:
        """Free the renderer."""
        self._played.close()

    def _check_running(self) -> None:
        if not self.agents:
            raise gym.error.ResetNeeded("no episode is running; call reset() before step()")

    def _checked(self, agent: str, action: Any) -> Ints:
        values = checks.array(action)
        space = self._action_spaces[agent]
        if values.dtype.kind not in "iu" or not space.contains(values):
            raise UsageError(
                f"action={action!r} of {agent!r} is not in its action space {space}; "
                f"env.action_space({agent!r}).sample() shows one that is"
            )
        return values


def described(played: type[SuiteEnv], name: str, parallel: bool) -> dict[str, Any]:
    """Return a game's ``metadata``: that of the environment, and a window to watch it in."""
    modes = ["human", *played.metadata["render_modes"]]
    about = {"render_modes": modes, "name": name, "is_parallelizable": parallel}
    return {**played.metadata, **about}


def drawn(render_mode: str | None) -> str | None:
    """Return the render mode of the environment behind a game; a window shows its pictures."""
    return "rgb_array" if render_mode == "human" else render_mode
