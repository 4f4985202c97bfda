"""LLMDeployStage-v0: one step a stage and a continuous action, for RL."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.deployment.dynamics import StageOutcome
from llmqueue_gym.deployment.env import DeployEnv, info_names
from llmqueue_gym.deployment.rules import stage_plan, stage_schedule
from llmqueue_gym.errors import UsageError
from llmqueue_gym.vector import Observation

_OF_STAGE = info_names(StageOutcome)


class LLMDeployStageEnv(DeployEnv):
    """LLMDeploy-v0 with one step per stage and a continuous action, for RL.

    ## Description

    The problem, the arguments, the draws and the totals are those of `LLMDeployEnv`; only the
    interface differs. The queries of a stage run vectorised.

    ## Action Space

    ``Box(0, 1, (2N,))``:

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0..N-1 | deployment scores: the M_max best of the LLMs that are there are deployed, ties to the lowest index | 0 | 1 |
    | N..2N-1 | routing weights, projected (Euclidean) onto the shares p of the deployed LLMs with 0 <= p <= alpha and sum 1 | 0 | 1 |

    If the alphas of the deployed LLMs sum to less than 1, p = alpha / sum(alpha). LLM m answers
    p_m L of the stage's L queries, evenly interleaved (`llmqueue_gym.deployment.rules.
    stage_schedule`); the same schedule played in LLMDeploy-v0 gives the same totals.

    ## Observation Space

    ``Dict`` as in LLMDeploy-v0 without ``deploy_now``, ``stage_progress`` and ``context``.

    ## Rewards

    The sum of the rewards of the stage's queries.

    ## Episode End

    Truncated after K stages.

    ## Information

    Of the stage: ``rated_reward``, ``ledger_reward``, ``cost``, ``switching_cost`` (sums), ``served``
    ((N,) queries answered), ``refused``, ``throttled`` (numbers of queries), ``projected``,
    ``over_budget``, ``arrived_now``, ``shares`` ((N,) the projected weights), ``spend``. After a
    reset the same keys: nothing was done.

    ```python
    >>> import gymnasium as gym, numpy as np
    >>> env = gym.make("llmqueue_gym:LLMDeployStage-v0", horizon=1000, num_stages=10)
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(np.ones(22, dtype=np.float32))
    >>> info["served"].tolist()
    [20, 20, 20, 20, 20, 0, 0, 0, 0, 0, 0]

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    def _spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        task = self._task
        shown = dict(task.observation_space())
        for key in ("deploy_now", "stage_progress", "context"):
            shown.pop(key, None)
        return spaces.Dict(shown), spaces.Box(0.0, 1.0, (2 * task.num_llms,), np.float32)

    @property
    def _num_steps(self) -> int:
        return self._task.rules.num_stages

    def _no_outcome(self) -> dict[str, Any]:
        n = self._task.num_llms
        served, nobody = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        outcome = StageOutcome(0.0, 0.0, 0.0, 0.0, served, 0, 0, False, False, nobody)
        return self._outcome_info(outcome) | {"shares": np.zeros(n)}

    @staticmethod
    def _outcome_info(outcome: StageOutcome) -> dict[str, Any]:
        """Return what ``info`` says of a stage: NumPy's scalars, which have a dtype."""
        pairs = zip(_OF_STAGE, outcome, strict=True)
        return {name: np.asarray(value)[()] for name, value in pairs}

    def step(self, action: NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Deploy, then answer all queries of a stage.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        ValueError
            If the action is not in the action space, or the episode has ended.
        """
        task, dynamics = self._task, self.dynamics
        values = checks.array(action)
        if values.shape != (2 * task.num_llms,) or values.dtype.kind not in "fiu":
            raise self._invalid_stage_action(action)
        values = values.astype(np.float64)
        if not ((values >= 0.0) & (values <= 1.0)).all():
            raise self._invalid_stage_action(action)
        self._check_running()
        bits, shares = self.plan(values)
        length = int(task.rules.stage_lengths[dynamics.stage[0]])
        outcome = dynamics.run_stage(bits, stage_schedule(shares, length))
        return self._result(self._outcome_info(outcome) | {"shares": shares})

    def plan(self, action: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return what an action means now: deployment bits and traffic shares, both (N,).

        With no LLM to deploy all queries go to LLM 0 and are refused.
        """
        self._check_ready("plan")
        return stage_plan(action, self.dynamics.available[0], self._task.rules)

    def _invalid_stage_action(self, action: Any) -> UsageError:
        n = self._task.num_llms
        return UsageError(
            f"action={action!r} is not in the action space: it takes {2 * n} numbers in [0, 1], "
            f"{n} deployment scores and {n} routing weights"
        )

    def _observe(self) -> Observation:
        observation = self.dynamics.observe_first()
        for key in ("deploy_now", "stage_progress", "context"):
            observation.pop(key, None)
        return observation
