"""LLMDeploy-v0: deploy a few of the LLMs that stream in, within a budget, query by query.

The scalar and the vector environment are thin shells over one `DeploymentDynamics`; see also
`llmqueue_gym.deployment.stage_env`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.deployment.dynamics import QueryOutcome, StageOutcome
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.deployment.task import Task
from llmqueue_gym.errors import UsageError
from llmqueue_gym.vector import Ints, LaneVectorEnv, Observation, SuiteEnv, check_reset


def _with_steps(spec: EnvSpec | None, steps: int) -> EnvSpec | None:
    """Return a spec that says after how many steps the environment truncates itself, if it can.

    A smaller limit, that of a ``TimeLimit``, stays.
    """
    if spec is None:
        return None
    limit = spec.max_episode_steps
    if limit is not None and 0 <= limit <= steps:
        return spec
    spec = deepcopy(spec)  # gymnasium.make goes on with the original, which asks for no TimeLimit
    spec.max_episode_steps = steps
    return spec


def info_names(outcome: type[QueryOutcome | StageOutcome]) -> tuple[str, ...]:
    """Return what ``info`` calls the parts of an outcome."""
    return tuple("rated_reward" if name == "reward" else name for name in outcome._fields)


_OF_QUERY = info_names(QueryOutcome)


class DeployEnv(SuiteEnv):
    """One lane of the deployment problem, whatever a step is."""

    def __init__(
        self,
        instance: str | Mapping[str, Any] = "routerbench",
        horizon: int | None = None,
        num_stages: int | None = None,
        max_deployed: int | None = None,
        alpha: float | Sequence[float] | None = None,
        budget_per_query: float | None = None,
        budget: str = "soft",
        price_changes: str | Sequence[Mapping[str, Any]] | None = None,
        retirements: Sequence[Mapping[str, Any]] | None = None,
        switching_cost: float = 0.0,
        reward_delay: int = 0,
        drift: float = 0.0,
        instance_seed: int | None = None,
        render_mode: str | None = None,
        flat_observation: bool = False,
    ) -> None:
        self._task = task = Task(
            instance=instance,
            horizon=horizon,
            num_stages=num_stages,
            max_deployed=max_deployed,
            alpha=alpha,
            budget_per_query=budget_per_query,
            budget=budget,
            price_changes=price_changes,
            retirements=retirements,
            switching_cost=switching_cost,
            reward_delay=reward_delay,
            drift=drift,
            instance_seed=instance_seed,
        )
        self._set_render_mode(render_mode)
        self.dynamics: DeploymentDynamics = task.dynamics(1)
        space, self.action_space = self._spaces()
        self._set_observation_space(space, flat_observation)
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """The environment's spec; ``max_episode_steps`` is where it truncates itself."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = _with_steps(spec, self._num_steps)

    @property
    def _num_steps(self) -> int:
        """Steps of an episode."""
        return self._task.rules.horizon

    def _spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        raise NotImplementedError

    def _no_outcome(self) -> dict[str, Any]:
        """Return what ``info`` says of a step in which nothing was done."""
        raise NotImplementedError

    def _state_info(self) -> dict[str, Any]:
        """Return what ``info`` says of the state."""
        return {"spend": np.float64(self.dynamics.spend)}

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""
        return self._task.llms

    @property
    def problem(self) -> dict[str, Any]:
        """Public parameters, JSON-plain; ``DeployProblem(**env.unwrapped.problem)``."""
        return self._task.problem()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode: nothing deployed, nothing spent."""
        super().reset(seed=seed)
        instance, streams = self._task.start(self.np_random)
        self.dynamics.reset([0], [instance], [streams])
        self._start_rendering()
        return self._shown(), self._no_outcome() | self._state_info()

    def _result(self, info: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return what a step returns, of what ``info`` says that was done."""
        observation = self._shown()
        info |= self._state_info()
        reward = float(info["ledger_reward" if self._task.hard_budget else "rated_reward"])
        if self._renderer is not None:
            self._renderer.record(info)
        return observation, reward, False, self._ended, info

    @property
    def _ended(self) -> bool:
        return bool(self.dynamics.query[0] >= self._task.rules.horizon)

    def _check_ready(self, name: str) -> None:
        check_reset(self.dynamics.ready, name)

    def _check_running(self) -> None:
        self._check_ready("step")
        if self._ended:
            raise UsageError(
                f"the episode has ended after {self._task.rules.horizon} queries; call reset()"
            )

    def _make_renderer(self) -> Any:
        from llmqueue_gym.deployment.picture import DeployRenderer

        return DeployRenderer(self.dynamics, self.llms)


class LLMDeployEnv(DeployEnv):
    """Deploy a few of the LLMs that stream in, and route every query to one, within a budget.

    ## Description

    LLMs are released over time. T queries come in K stages; at the start of a stage the policy
    chooses at most M_max of the LLMs released so far and keeps them deployed for the stage. Every
    query goes to one deployed LLM; its reward (quality of the answer, 0 to 1) and its cost (USD)
    are seen, those of the other LLMs are not. The cost may average b per query, and an LLM takes at
    most a share alpha of a stage's queries. This is the streaming deployment problem of Li and Li
    (ICLR 2026, arXiv 2506.17254).

    Outcome draws depend on the seed, the query and the LLM only, so policies run on one seed are
    coupled: those that choose the same LLM for a query get the same reward and cost.

    Reward alone can be gamed by overspending. The ledger is the score that cannot: a hard budget
    B = b T; the query that would exceed it, and every later one, earns 0. So does an answer above
    an LLM's throughput cap, which is paid all the same.

    ## Action Space

    ``MultiDiscrete([2] * N + [N])``:

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0..N-1 | deploy LLM j? Read only when ``deploy_now`` is 1 | 0 | 1 |
    | N | LLM that answers this query, after the deployment | 0 | N - 1 |

    Bits of LLMs that are not there are dropped, then all beyond the first M_max by index:
    ``info["projected"]``. A query sent to an LLM that is not deployed is refused, with reward 0 and
    cost 0: ``info["refused"]``. ``action_masks()`` (bool) and ``info["action_mask"]`` (int8) are
    flat, of length 2N + N (two entries a bit), and rule out LLMs that are not there, and between
    update points LLMs that are not deployed.

    ## Observation Space

    ``Dict``; entries of LLMs still to come are 0:

    | Key | Shape | Type | Meaning | Min | Max |
    |-----|-------|------|---------|-----|-----|
    | arrived | (N,) | int8 | 1 where an LLM can be deployed: released, not retired | 0 | 1 |
    | deployed | (N,) | int8 | current deployment | 0 | 1 |
    | cost_prior | (N,) | float32 | list price of a query in USD, in `catalog` exactly its mean cost; 0 where none is published | 0 | 3.4e38 |
    | count | (N,) | float32 | queries answered | 0 | 2^24 |
    | mean_reward | (N,) | float32 | mean reward seen | 0 | 1 |
    | mean_cost | (N,) | float32 | mean cost paid, USD | 0 | 3.4e38 |
    | throughput_left | (N,) | float32 | queries an LLM may still take in the stage, share of its length | 0 | 1 |
    | deploy_now | () | int64 | 1: the deployment bits are read now | 0 | 1 |
    | stage_progress | (1,) | float32 | share of the stage's queries done | 0 | 1 |
    | query_progress | (1,) | float32 | t / T | 0 | 1 |
    | spent | (1,) | float32 | money spent, share of B = b T | 0 | 3.4e38 |
    | budget_left | (1,) | float32 | remaining budget per remaining query, in units of b | -2^24 | 2^24 |
    | context | (d,) | float32 | context of this query, only where the instance has them | -3.4e38 | 3.4e38 |

    ## Rewards

    The query's reward. With ``budget="hard"`` the ledger's: 0 once the budget is gone, and 0 for
    an answer above an LLM's throughput cap.

    ## Starting State

    No LLM is deployed, the first query is an update point. ``synthetic`` instances, and drift, are
    redrawn at every reset unless ``instance_seed`` is given.

    ## Episode End

    Truncated after T queries; never terminates.

    ## Information

    Only what a provider sees: ``llm`` (that answered, -1: none), ``rated_reward`` (the reward seen
    now), ``ledger_reward``, ``rated_llm`` (whose reward it is: ``llm``, or under a delay that of an
    earlier query, -1: none yet), ``cost`` and ``switching_cost`` (USD), ``refused``, ``throttled`` (above ceil(alpha * stage
    length)), ``projected``, ``over_budget`` (the ledger is exhausted), ``arrived_now`` (bool (N,):
    LLMs that arrived before the next query), ``spend`` (USD, total), ``action_mask``; NumPy scalars
    and arrays. After a reset the same keys: nothing was done.

    ## Arguments

    All JSON-plain; a bad one raises ``ValueError`` with the fix. Defaults in brackets are those of
    ``routerbench`` / ``catalog`` / ``synthetic`` / ``table``.

    | Name | Default | Meaning |
    |------|---------|---------|
    | instance | "routerbench" | where the LLMs come from: a name ("routerbench", "catalog", "synthetic", "table", "paretobandit", "dataset", "logs"), or a dict with a "source" and options |
    | horizon | None | T, at most 2^24 [36497 / 36000 / 10000 / 10000] |
    | num_stages | None | K [33 / 33 / 20 / 20] |
    | max_deployed | None | M_max, at most N [5 / 5 / 4 / half of the LLMs] |
    | alpha | None | largest share of a stage's queries per LLM, a number or one per LLM [0.4 / 0.4 / 0.4, 1 for "late_arrival", "fixed_gap" and up to 4 LLMs / 1] |
    | budget_per_query | None | b in USD, at least 1e-12 [1e-3 / 1e-3 / 1e-3 / median of the LLMs' mean costs] |
    | budget | "soft" | "hard": the reward is the ledger's |
    | price_changes | None | None: those of the table's own list prices; "recorded" (catalog), or a list of {"llm", "query" or "date", "factor"} |
    | retirements | None | list of {"llm", "query" or "date"}; a deployed LLM stays to the end of the stage |
    | switching_cost | 0.0 | USD per LLM that joins the deployment, after the first stage |
    | reward_delay | 0 | queries until a reward is seen, below T; the last ones are never seen |
    | drift | 0.0 | sd over the horizon of the random walk of every mean reward, a step per stage |
    | instance_seed | None | fixes the instance |
    | flat_observation | False | observe one float32 vector: the keys in alphabetical order, ``deploy_now`` as two numbers (`llmqueue_gym.flat.FlatLayout`) |

    A budget below the cheapest mixture is an error if it is so in every stage, else a warning
    (``catalog`` at b = 3e-4: the first LLMs are too dear); checked where arrivals and costs are the
    same at every reset. Alphas that cannot carry all traffic are an error; where that depends on the
    draw (retirements from a ``synthetic`` instance), a warning: a stage may then have too few LLMs
    or none, and queries are refused.

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("llmqueue_gym:LLMDeploy-v0", horizon=1000, num_stages=10)
    >>> observation, info = env.reset(seed=0)
    >>> int(observation["deploy_now"]), int(observation["arrived"].sum())
    (1, 5)
    >>> observation, reward, terminated, truncated, info = env.step([1, 1, 1, 0, 0] + [0] * 6 + [2])
    >>> int(info["llm"]), bool(info["refused"]), int(observation["deployed"].sum())
    (2, False, 3)

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    def _spaces(self) -> tuple[spaces.Dict, spaces.Space[Any]]:
        n = self._task.num_llms
        return self._task.observation_space(), spaces.MultiDiscrete([2] * n + [n])

    def _no_outcome(self) -> dict[str, Any]:
        return self._outcome_info(QueryOutcome.nothing(1, self._task.num_llms))

    @staticmethod
    def _outcome_info(outcome: QueryOutcome) -> dict[str, Any]:
        """Return what ``info`` says of the only query: NumPy's scalars, which have a dtype."""
        return {name: values[0] for name, values in zip(_OF_QUERY, outcome, strict=True)}

    def step(self, action: NDArray[np.int64]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Deploy at an update point, then answer one query.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        ValueError
            If the action is not in the action space, or the episode has ended.
        """
        task = self._task
        values = checks.array(action)
        if values.shape != (task.num_llms + 1,) or values.dtype.kind not in "iu":
            raise task.invalid_action(action)
        *bits, llm = values.tolist()
        if not 0 <= llm < task.num_llms or min(bits) < 0 or max(bits) > 1:
            raise task.invalid_action(action)
        self._check_running()
        wanted, llms = values[None, :-1] == 1, values[-1:].astype(np.int64)
        return self._result(self._outcome_info(self.dynamics.step(wanted, llms)))

    def _observe(self) -> Observation:
        return self.dynamics.observe_first()

    def _state_info(self) -> dict[str, Any]:
        return super()._state_info() | {"action_mask": self.dynamics.action_masks()[0]}

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions now, flat bool of length 2N + N (MaskablePPO's method).

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        self._check_ready("action_masks")
        return np.array(self.dynamics.action_masks()[0], dtype=np.bool_)


class LLMDeployVectorEnv(LaneVectorEnv, VectorEnv[Any, NDArray[np.int64], NDArray[Any]]):
    """B copies of LLMDeploy-v0 stepped at once; lane i seeded s equals the scalar env seeded s + i.

    A step costs O(B N), mostly writing the observation; at the start of a stage a lane also draws
    the randomness of its queries.

    Parameters
    ----------
    num_envs : int
        Lanes, B.
    max_episode_steps : int, optional
        Truncates earlier than after T queries; None and -1: after T queries.
    autoreset_mode : AutoresetMode or str
        ``NEXT_STEP``, ``SAME_STEP`` or ``DISABLED``; see `LaneVectorEnv`.
    **kwargs
        Arguments of `LLMDeployEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        single = LLMDeployEnv(**kwargs)
        self._task = task = single._task
        queries = task.rules.horizon
        super().__init__(single, num_envs, max_episode_steps, autoreset_mode, queries, queries)
        self.dynamics = task.dynamics(num_envs)
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """The environment's spec; ``max_episode_steps`` is where lanes are truncated."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = _with_steps(spec, self._last)

    def _problem(self, lane: int) -> dict[str, Any]:
        return self._task.problem()

    def _start_lanes(self, lanes: NDArray[np.int64], generators: list[np.random.Generator]) -> None:
        starts = [self._task.start(generator) for generator in generators]
        instances, streams = zip(*starts, strict=True)
        self.dynamics.reset(lanes.tolist(), instances, streams)

    def _observe(self) -> Observation:
        return self.dynamics.observe()

    def _play(self, actions: Ints) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        lanes, rewards = np.flatnonzero(~self._ended), np.zeros(self.num_envs)
        if not lanes.size:
            return self._no_outcome(), rewards
        outcome = self.dynamics.step(actions[lanes, :-1] == 1, actions[lanes, -1], lanes)
        rewards[lanes] = outcome.ledger_reward if self._task.hard_budget else outcome.reward
        return self._spread(outcome, lanes), rewards

    def _steps_done(self) -> Ints:
        return self.dynamics.query

    def _invalid_action(self, actions: Any) -> UsageError:
        return self._task.invalid_action(actions, f"{self.num_envs} rows of ")

    def _spread(self, outcome: QueryOutcome, lanes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Spread the outcome of the stepped lanes over all lanes."""
        info = dict(zip(_OF_QUERY, outcome, strict=True))
        if len(lanes) == self.num_envs:
            return info
        spread = self._no_outcome()
        for key, values in info.items():
            spread[key][lanes] = values
        return spread

    def _no_outcome(self) -> dict[str, NDArray[Any]]:
        nothing = QueryOutcome.nothing(self.num_envs, self._task.num_llms)
        return dict(zip(_OF_QUERY, nothing, strict=True))

    def _state_info(self) -> dict[str, NDArray[Any]]:
        return {
            "spend": np.atleast_1d(self.dynamics.spend),
            "action_mask": self.dynamics.action_masks(),
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions of every lane, bool of shape (B, 2N + N).

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(self._started, "action_masks")
        return self.dynamics.action_masks().astype(np.bool_)
