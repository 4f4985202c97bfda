"""llm_deploy_v0: LLMDeploy-v0 as a turn-based game of a deployer and a router.

They act at different paces (once a stage, once a query) on one shared budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from llmqueue_gym import checks
from llmqueue_gym.adapters.pettingzoo import (
    AECEnv,
    FlatMaskMultiDiscrete,
    Game,
    Mask,
    OrderEnforcingWrapper,
    described,
    drawn,
)
from llmqueue_gym.deployment.env import LLMDeployEnv
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.vector import Ints, Observation, check_reset


class LLMDeployAECEnv(Game, AECEnv):  # type: ignore[misc]  # PettingZoo has no types
    """A deployer and a router share one budget while LLMs stream in.

    ## Description

    The problem, the arguments and the draws are those of `llmqueue_gym.envs.LLMDeployEnv`. At an
    update point the ``deployer`` chooses the LLMs of the stage, then the ``router`` answers the
    query with one of them; between update points only the router acts. The clock moves when the
    router acts. The same deployments and routings give the same trajectory as in LLMDeploy-v0.

    The two want the same but see different things at different times: the deployer must leave the
    router LLMs to explore and a mixture that fits the budget, the router must learn what they are
    worth before the next update point.

    ## Agents

    ``deployer`` (K turns an episode) and ``router`` (T turns), in one order: the deployer before
    the router at an update point. Not parallelizable.

    ## Action Spaces

    | Agent | Space | Meaning |
    |-------|-------|---------|
    | deployer | MultiDiscrete([2] * N) | deploy LLM j? Projected as in LLMDeploy-v0 |
    | router | Discrete(N) | LLM that answers this query |

    ## Observation Spaces

    ``Dict`` of ``observation``, that of LLMDeploy-v0 for both agents, and ``action_mask``, int8:

    | Agent | Length of action_mask | Rules out |
    |-------|-----------------------|-----------|
    | deployer | 2N, two entries a bit | to deploy LLMs that are not there |
    | router | N | LLMs that are not deployed |

    After the deployer's turn the router sees the new deployment: its ``deployed`` and mask are
    those that answer this query. With nothing deployed LLM 0 stays legal; it refuses.
    ``action_space(agent).sample(observation["action_mask"])`` draws a legal action. With
    ``flat_observation`` the observation is one float32 vector, and the mask is in
    ``infos[agent]["action_mask"]``. ``state()`` is that vector, too.

    ## Rewards

    Shared: both get the reward of the query. As usual in PettingZoo, rewards add up between an
    agent's turns, so ``last()`` gives the deployer the sum over the stage.

    ## Episode End

    Truncated for both after T queries, or after ``max_cycles``; never terminates.

    ## Information

    That of the last query in LLMDeploy-v0, without ``action_mask``, the same for both agents.
    After a reset the same keys.

    ## Arguments

    | Name | Default | Meaning |
    |------|---------|---------|
    | max_cycles | None | queries after which an episode is truncated, if fewer than T |
    | render_mode | None | "human" (a window), "rgb_array" or "ansi" |
    | flat_observation | False | observe one float32 vector |
    | **kwargs | | other arguments of `LLMDeployEnv` |

    ```python
    >>> from llmqueue_gym.multi_agent import llm_deploy_v0
    >>> env = llm_deploy_v0.env(horizon=1000, num_stages=10)
    >>> env.reset(seed=0)
    >>> env.agent_selection
    'deployer'
    >>> env.step([1, 1, 1, 0, 0] + [0] * 6)
    >>> observation, reward, termination, truncation, info = env.last()
    >>> env.agent_selection, observation["action_mask"].tolist()
    ('router', [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    >>> env.step(2)
    >>> int(env.infos["router"]["llm"]), env.agent_selection
    (2, 'router')

    ```

    ## Version History

    * v0: initial version
    """

    metadata = described(LLMDeployEnv, "llm_deploy_v0", parallel=False)

    _single: LLMDeployEnv
    dynamics: DeploymentDynamics

    def __init__(
        self,
        max_cycles: int | None = None,
        render_mode: str | None = None,
        flat_observation: bool = False,
        **kwargs: Any,
    ) -> None:
        single = LLMDeployEnv(render_mode=drawn(render_mode), **kwargs)
        horizon = single.problem["horizon"]
        self._last = horizon
        if max_cycles is not None:
            self._last = min(horizon, checks.count("max_cycles", max_cycles))
        num_llms = len(single.llms)
        actions = {
            "deployer": FlatMaskMultiDiscrete([2] * num_llms),
            "router": spaces.Discrete(num_llms),
        }
        observations = dict.fromkeys(actions, single.observation_space)
        super().__init__(single, observations, actions, render_mode, flat_observation)
        self._masks: dict[str, Mask] = {}
        self._bits: Ints = np.zeros(num_llms, dtype=np.int64)

    @property
    def problem(self) -> dict[str, Any]:
        """Public parameters, JSON-plain; ``DeployProblem(**env.unwrapped.problem)``."""
        return self._single.problem

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start an episode: nothing deployed, nothing spent; the deployer acts first."""
        seen, info = self._played.reset(seed=seed, options=options)
        self.agents = self.possible_agents.copy()
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self._turn(seen, info)

    def step(self, action: Any) -> None:
        """Take the turn of ``agent_selection``; the router's answers a query.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset and after the episode.
        ValueError
            If the action is not in the agent's action space.
        """
        self._check_running()
        agent = self.agent_selection
        if self.truncations[agent]:
            self._was_dead_step(action)
            return
        values = self._checked(agent, action)
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        if agent == "deployer":
            self._deploy(values)
            return
        joint = np.append(self._bits, values)
        seen, reward, _, _, info = self._played.step(joint)
        self.rewards = dict.fromkeys(self.agents, float(reward))
        truncated = bool(self.dynamics.query[0] >= self._last)
        self.truncations = dict.fromkeys(self.agents, truncated)
        self._accumulate_rewards()
        self._turn(seen, info)

    def _turn(self, seen: Observation, info: dict[str, Any]) -> None:
        """Show both agents the query to come and say whose turn it is."""
        deployer, router = np.split(info.pop("action_mask"), [2 * len(self.llms)])
        self._seen, self._masks = seen, {"deployer": deployer, "router": router}
        self.infos = {agent: self._info(info, self._masks[agent]) for agent in self.agents}
        self.agent_selection = "deployer" if seen["deploy_now"] else "router"

    def _deploy(self, bits: Ints) -> None:
        """Keep the deployment for the router's action, and show it as the dynamics will read it."""
        self._bits = bits.copy()
        allowed = self.dynamics.allowed(bits[None] == 1)[0]
        self._seen["deployed"] = allowed.astype(np.int8)
        mask = allowed.astype(np.int8)
        mask[0] |= not allowed.any()  # one action stays legal
        self._masks["router"] = mask
        if self._layouts:
            self.infos["router"]["action_mask"] = mask.copy()
        self.agent_selection = "router"

    def observe(self, agent: str) -> Any:
        """Return what an agent sees now.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(bool(self._seen), "observe")
        return self._view(agent, self._seen, self._masks[agent])


def raw_env(**kwargs: Any) -> LLMDeployAECEnv:
    """Make the game without PettingZoo's checks of the order; arguments of `LLMDeployEnv`."""
    return LLMDeployAECEnv(**kwargs)


def env(**kwargs: Any) -> AECEnv:
    """Make the game; arguments of `LLMDeployEnv`."""
    return OrderEnforcingWrapper(raw_env(**kwargs))
