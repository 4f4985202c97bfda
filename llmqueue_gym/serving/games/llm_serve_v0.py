"""llm_serve_v0: LLMServe-v0 as a parallel game of a dispatcher and a fleet manager.

The dispatcher says who is served where, the manager what the replicas host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from llmqueue_gym.adapters.pettingzoo import (
    AECEnv,
    FlatMaskMultiDiscrete,
    ParallelEnv,
    Spaces,
    Views,
    described,
    parallel_to_aec,
    parallel_to_aec_wrapper,
)
from llmqueue_gym.queueing.games.parallel import QueueGame
from llmqueue_gym.serving.env import LLMServeEnv
from llmqueue_gym.vector import Ints


class LLMServeParallelEnv(QueueGame, ParallelEnv):  # type: ignore[misc]  # PettingZoo has no types
    """A dispatcher and a fleet manager run replicas for users who come back.

    ## Description

    The problem, the arguments and the draws are those of `LLMServeEnv`. In every slot the
    ``dispatcher`` sends waiting queries to replicas while the ``manager`` names the LLM that each
    replica is to host, which is read at update points only. Neither sees the other's action of the
    slot. The same joint actions give the same trajectory as LLMServe-v0.

    ## Agents

    ``dispatcher`` and ``manager``; both act in every slot.

    ## Action Spaces

    | Agent | Space | Meaning |
    |-------|-------|---------|
    | dispatcher | MultiDiscrete([W + 1, R] * A) | window slot (W holds back) and replica of every dispatch |
    | manager | MultiDiscrete([N + 1] * R) | LLM that each replica is to host; N empties it |

    ## Observation Spaces

    ``Dict`` of ``observation``, that of LLMServe-v0 for both agents, and ``action_mask``, int8: the
    agent's part of LLMServe-v0's. ``action_space(agent).sample(observation["action_mask"])`` draws
    a legal action. With ``flat_observation`` the observation is one float32 vector, and the mask is
    in ``infos[agent]["action_mask"]``. ``state()`` is that vector, too.

    ## Rewards

    Shared: both get the reward of LLMServe-v0.

    ## Episode End

    Never terminates; truncated for both agents after ``max_episode_steps``.

    ## Information

    That of LLMServe-v0 without ``action_mask``, the same for both agents.

    ## Arguments

    | Name | Default | Meaning |
    |------|---------|---------|
    | max_episode_steps | 5000 | slots of an episode |
    | max_cycles | None | PettingZoo's name for it; wins |
    | render_mode | None | "human" (a window), "rgb_array" or "ansi" |
    | flat_observation | False | observe one float32 vector |
    | **kwargs | | other arguments of `LLMServeEnv` |

    ```python
    >>> from llmqueue_gym.multi_agent import llm_serve_v0
    >>> env = llm_serve_v0.parallel_env(preset="autoscale", window=4, dispatches=1)
    >>> observations, infos = env.reset(seed=0)
    >>> observations["dispatcher"]["action_mask"].tolist()
    [0, 0, 0, 0, 1, 1, 0, 0, 0]
    >>> actions = {"dispatcher": [4, 0], "manager": [0, 1, 3, 3]}
    >>> observations, rewards, terminations, truncations, infos = env.step(actions)
    >>> observations["manager"]["observation"]["loading_left"].tolist()
    [0.0, 59.0, 0.0, 0.0]

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    metadata = described(LLMServeEnv, "llm_serve_v0", parallel=True)

    played = LLMServeEnv
    _single: LLMServeEnv

    def _cast(self, single: LLMServeEnv) -> tuple[Spaces, Spaces, Spaces]:
        sizes, own = single.task.action_sizes(), 2 * single.task.public.dispatches
        actions = {
            "dispatcher": FlatMaskMultiDiscrete(sizes[:own]),
            "manager": FlatMaskMultiDiscrete(sizes[own:]),
        }
        return dict.fromkeys(actions, single.observation_space), actions, {}

    def _joint_action(self, actions: dict[str, Ints]) -> list[int]:
        joint: list[int] = np.concatenate([actions["dispatcher"], actions["manager"]]).tolist()
        return joint

    def _views(self) -> Views:
        mask = self._single.action_masks().astype(np.int8)
        own, rest = np.split(mask, [spaces.flatdim(self.action_space("dispatcher"))])
        return {"dispatcher": (self._seen, own), "manager": (self._seen, rest)}


def parallel_env(**kwargs: Any) -> LLMServeParallelEnv:
    """Make the parallel game; arguments of `LLMServeParallelEnv`."""
    return LLMServeParallelEnv(**kwargs)


def raw_env(**kwargs: Any) -> AECEnv:
    """Make the game with agents acting in turn, without PettingZoo's checks of the order."""
    return parallel_to_aec_wrapper(parallel_env(**kwargs))


def env(**kwargs: Any) -> AECEnv:
    """Make the game with agents acting in turn; arguments of `LLMServeParallelEnv`."""
    return parallel_to_aec(parallel_env(**kwargs))
