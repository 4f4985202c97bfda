"""llm_queue_v0: LLMQueue-v0 as a parallel game of a scheduler and a router.

The scheduler says who is served, the router by which LLMs; they decide at the same time.
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
from llmqueue_gym.queueing.env import LLMQueueEnv
from llmqueue_gym.queueing.games.parallel import QueueGame
from llmqueue_gym.vector import Ints


class LLMQueueParallelEnv(QueueGame, ParallelEnv):  # type: ignore[misc]  # PettingZoo has no types
    """A scheduler and a router serve one queue of queries whose unsatisfied users retry.

    ## Description

    The problem, the arguments and the draws are those of `llmqueue_gym.envs.LLMQueueEnv`. In every
    slot the ``scheduler`` picks a waiting query while the ``router`` writes a plan: the LLMs it
    would show to each visible query. The chosen query is served by its row of the plan. Neither
    sees the other's action of the slot.

    No policy of LLMQueue-v0 is lost: one that draws the slot with probability P(slot) and then the
    LLMs with probability P(LLMs | slot) is played by a scheduler that draws from P(slot) and a
    router whose row ``slot`` is drawn from P(LLMs | slot), without a shared coin. The same joint
    actions give the same trajectory.

    ## Agents

    ``scheduler`` and ``router``; both act in every slot.

    ## Action Spaces

    | Agent | Space | Meaning |
    |-------|-------|---------|
    | scheduler | Discrete(W) | window slot of the query to serve, 0 is the head of the queue |
    | router | MultiDiscrete([N] * W K) | entries s K .. s K + K - 1: LLMs for the query in slot s, read as a set |

    An empty slot serves nobody; rows of other slots are not read.

    ## Observation Spaces

    ``Dict`` of ``observation``, that of LLMQueue-v0 for both agents, and ``action_mask``, int8:

    | Agent | Length of action_mask | Rules out |
    |-------|-----------------------|-----------|
    | scheduler | W | empty slots; with an empty queue slot 0 stays legal |
    | router | W K N, N entries per entry of the plan | all but LLM 0 in the rows of empty slots, which are not read |

    ``action_space(agent).sample(observation["action_mask"])`` draws a legal action. With
    ``flat_observation`` the observation is one float32 vector, and the mask is in
    ``infos[agent]["action_mask"]``. ``state()`` is that vector, too.

    ## Rewards

    Shared: both get the reward of LLMQueue-v0, minus the queue length or 1 per departure.

    ## Episode End

    Never terminates; truncated for both agents after ``max_episode_steps``.

    ## Information

    That of LLMQueue-v0 without ``action_mask``, the same for both agents.

    ## Arguments

    | Name | Default | Meaning |
    |------|---------|---------|
    | max_episode_steps | 5000 | slots of an episode |
    | max_cycles | None | PettingZoo's name for it; wins |
    | render_mode | None | "human" (a window), "rgb_array" or "ansi" |
    | flat_observation | False | observe one float32 vector |
    | **kwargs | | other arguments of `LLMQueueEnv` |

    ```python
    >>> from llmqueue_gym.multi_agent import llm_queue_v0
    >>> env = llm_queue_v0.parallel_env(window=4, num_llms=3)
    >>> observations, infos = env.reset(seed=0)
    >>> observations["scheduler"]["action_mask"].tolist()
    [1, 0, 0, 0]
    >>> actions = {"scheduler": 0, "router": [0, 1, 1, 2, 0, 2, 0, 0]}
    >>> observations, rewards, terminations, truncations, infos = env.step(actions)
    >>> sorted(rewards), bool(infos["router"]["served"])
    (['router', 'scheduler'], False)

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    metadata = described(LLMQueueEnv, "llm_queue_v0", parallel=True)

    played = LLMQueueEnv

    def _cast(self, single: LLMQueueEnv) -> tuple[Spaces, Spaces, Spaces]:
        window, size = single.dynamics.window, single.dynamics.assortment_size
        actions = {
            "scheduler": spaces.Discrete(window),
            "router": FlatMaskMultiDiscrete([len(single.llms)] * (window * size)),
        }
        return dict.fromkeys(actions, single.observation_space), actions, {}

    def _joint_action(self, actions: dict[str, Ints]) -> list[int]:
        slot = int(actions["scheduler"])
        plan = actions["router"].reshape(-1, self.dynamics.assortment_size)
        return [slot, *plan[slot].tolist()]

    def _views(self) -> Views:
        waiting = self._seen["waiting"]
        slots = waiting.copy()
        slots[0] = 1  # an empty queue keeps one legal action
        plan = np.repeat(waiting, self.dynamics.assortment_size * len(self.llms))
        plan[:: len(self.llms)] = 1  # rows that are not read have one legal entry, too
        return {"scheduler": (self._seen, slots), "router": (self._seen, plan)}


def parallel_env(**kwargs: Any) -> LLMQueueParallelEnv:
    """Make the parallel game; arguments of `LLMQueueParallelEnv`."""
    return LLMQueueParallelEnv(**kwargs)


def raw_env(**kwargs: Any) -> AECEnv:
    """Make the game with agents acting in turn, without PettingZoo's checks of the order."""
    return parallel_to_aec_wrapper(parallel_env(**kwargs))


def env(**kwargs: Any) -> AECEnv:
    """Make the game with agents acting in turn; arguments of `LLMQueueParallelEnv`."""
    return parallel_to_aec(parallel_env(**kwargs))
