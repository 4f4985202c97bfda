"""LLMDeployMO-v0: LLMDeploy-v0 with a vector reward, (quality, -cost), as MO-Gymnasium has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmqueue_gym.deployment.env import LLMDeployEnv


class LLMDeployMOEnv(LLMDeployEnv):
    """LLMDeploy-v0 with a vector reward: the quality of an answer, and minus what it cost.

    ## Description

    The problem, the arguments, the draws, spaces and ``info`` are those of `LLMDeployEnv`; only the
    reward differs. It follows the interface of MO-Gymnasium, which is not needed to make it:
    ``mo_gymnasium.make``, its wrappers and the agents built on it read ``unwrapped.reward_space``.

    ## Rewards

    float32 of shape (2,), in ``reward_space``:

    | Num | Reward | Min | Max |
    |-----|--------|-----|-----|
    | 0 | the reward of LLMDeploy-v0 | 0 | 1 |
    | 1 | minus the cost of the answer and of switching, in USD | -(c2 + M_max switching_cost) | 0 |

    The costs are some 1e-3 USD: scale them (``MONormalizeReward(env, 1)``) or weigh them in their
    unit, e.g. ``LinearReward(env, np.array([1.0, 100.0]))`` for an answer worth .01 USD.
    ``budget="hard"`` still ends the first reward when the money is gone.

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("llmqueue_gym:LLMDeployMO-v0", horizon=1000, num_stages=10)
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step([1, 1, 1, 0, 0] + [0] * 6 + [2])
    >>> reward.shape, bool(reward[1] == -np.float32(info["cost"]))
    ((2,), True)

    ```

    ## Version History

    * v0: initial version
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rules = self._task.rules
        dearest = self._task.cost_high + rules.max_deployed * rules.switching_cost
        low, high = np.array([0.0, -dearest], np.float32), np.array([1.0, 0.0], np.float32)
        self.reward_space = spaces.Box(low, high, dtype=np.float32)

    def step(  # type: ignore[override]  # a vector reward, as in MO-Gymnasium
        self, action: NDArray[np.int64]
    ) -> tuple[Any, NDArray[np.float32], bool, bool, dict[str, Any]]:
        """Deploy at an update point, then answer one query.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        ValueError
            If the action is not in the action space, or the episode has ended.
        """
        observation, reward, terminated, truncated, info = super().step(action)
        paid = info["cost"] + info["switching_cost"]
        return observation, np.array([reward, -paid], np.float32), terminated, truncated, info
