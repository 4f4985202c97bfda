"""LLMDeploy-v0 and LLMDeployStage-v0: deploy a few of the LLMs that stream in, within a budget.

Query by query, batched, and stage by stage: thin shells over one DeploymentDynamics.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.deployment.dynamics import NUM_STREAMS, QueryOutcome, StageOutcome
from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.deployment.rules import (
    MAX_COUNT,
    DeploymentRules,
    stage_plan,
    stage_schedule,
)
from llmqueue_gym.deployment.streams import (
    UNSERVED,
    build_instance,
    cost_range,
    make_source,
    read_price_changes,
    read_retirements,
    stage_verdicts,
)
from llmqueue_gym.errors import UsageError
from llmqueue_gym.vector import (
    INSTANCE_TAG,
    LaneVectorEnv,
    Observation,
    SuiteEnv,
    VectorStep,
)

MIN_BUDGET = 1e-12
"""Least budget in USD per query: shares of it stay within float32."""
BUDGETS = ("soft", "hard")
THROUGHPUTS = ("soft", "hard")


class _Task:
    """Validated arguments of LLMDeploy-v0: the rules, the spaces, and how an instance is drawn."""

    def __init__(
        self,
        *,
        instance: str | Mapping[str, Any],
        horizon: int | None,
        num_stages: int | None,
        max_deployed: int | None,
        alpha: float | Sequence[float] | None,
        budget_per_query: float | None,
        budget: str,
        throughput: str,
        price_changes: str | Sequence[Mapping[str, Any]] | None,
        retirements: Sequence[Mapping[str, Any]] | None,
        switching_cost: float,
        reward_delay: int,
        drift: float,
        instance_seed: int | None,
    ) -> None:
        self.source = source = make_source(instance)
        self.llms = source.llms
        self.num_llms = len(source.llms)
        hint = "; the USD per query are budget_per_query"
        self.hard_budget = checks.choice("budget", budget, BUDGETS, hint) == "hard"
        checks.choice("throughput", throughput, THROUGHPUTS)
        if instance_seed is not None:
            checks.count("instance_seed", instance_seed, minimum=0)
        usual = source.defaults
        steps = _limited("horizon", usual.horizon if horizon is None else horizon)
        if num_stages is None:
            num_stages = min(usual.num_stages, steps)
        stages = checks.count("num_stages", num_stages)
        if stages > steps:
            raise UsageError(f"num_stages={stages} is more than the horizon of {steps} queries")
        if max_deployed is None:
            max_deployed = min(usual.max_deployed, self.num_llms)
        slots = checks.count("max_deployed", max_deployed)
        if slots > self.num_llms:
            raise UsageError(
                f"max_deployed={slots} is more than the instance's {self.num_llms} LLMs; lower it"
            )
        self.rules = DeploymentRules(
            steps,
            stages,
            slots,
            self._read_alpha(usual.alpha if alpha is None else alpha),
            self._read_budget(usual.budget if budget_per_query is None else budget_per_query),
            throughput,  # type: ignore[arg-type]  # checked above
            checks.number("switching_cost", switching_cost, "[0, 1e9]", " (USD)"),
            self._read_delay(reward_delay, steps),
        )
        self._drift = checks.number("drift", drift, "[0, 1]")
        self._price_changes = read_price_changes(price_changes, source, steps)
        self._retire_query = read_retirements(retirements, source, steps)
        self.cost_low, self.cost_high = cost_range(source, self._price_changes)
        self._fixed: DeploymentInstance | None = None
        if instance_seed is not None or (source.fixed and not self._drift):
            # The tag keeps the instance apart from everything else that is seeded with a number.
            self._fixed = self._draw(np.random.default_rng([instance_seed or 0, INSTANCE_TAG]))
        example = self._fixed or self._draw(np.random.default_rng(0))
        if source.fixed_costs or instance_seed is not None:
            self._check_instance(example)
        else:
            self._check_capacity_of_any(example)

    def _read_alpha(self, alpha: Any) -> tuple[float, ...]:
        hint = "; 1 means no limit"
        if isinstance(alpha, (list, tuple, np.ndarray)):
            if len(alpha) != self.num_llms:
                raise UsageError(
                    f"alpha has {len(alpha)} entries for {self.num_llms} LLMs; give one each, "
                    "or one number for all"
                )
            shares = [checks.number(f"alpha[{k}]", a, "[0, 1]", hint) for k, a in enumerate(alpha)]
        else:
            shares = [checks.number("alpha", alpha, "[0, 1]", hint)] * self.num_llms
        if min(shares) <= 0.0:
            raise UsageError(f"alpha={alpha!r} must be above 0{hint}")
        return tuple(shares)

    @staticmethod
    def _read_delay(delay: Any, horizon: int) -> int:
        if _limited("reward_delay", delay, minimum=0) >= horizon:
            raise UsageError(
                f"reward_delay={delay!r} within a horizon of {horizon} queries shows no reward at "
                "all; lower it, or raise horizon"
            )
        return int(delay)

    @staticmethod
    def _read_budget(budget: Any) -> float:
        return checks.number("budget_per_query", budget, f"[{MIN_BUDGET:g}, 1e9]", " (USD)")

    def _check_instance(self, instance: DeploymentInstance) -> None:
        """Refuse what no policy can serve; warn where the budget cannot hold in single stages."""
        early = np.flatnonzero(self._retire_query <= instance.arrival_query)
        if early.size:
            name, arrival = self.llms[early[0]], instance.arrival_query[early[0]]
            raise UsageError(
                f"retirements: {name!r} retires at query {self._retire_query[early[0]]}, "
                f"before it arrives at {arrival}; dates are out of order"
            )
        verdicts, rules = stage_verdicts(instance, self.rules), self.rules
        error = self._unserved(instance, verdicts)
        if error is not None:
            raise error
        dear = verdicts.count("over_budget")
        if dear == len(verdicts):
            raise UsageError(
                f"budget_per_query={rules.budget!r} USD is below the cheapest mixture of every "
                "stage; raise it, alpha or max_deployed"
            )
        if dear:
            warnings.warn(
                f"budget_per_query={rules.budget!r} USD is below the cheapest mixture in {dear} of "
                f"{len(verdicts)} stages (first: {verdicts.index('over_budget')}): there every "
                "policy overspends or refuses queries",
                UserWarning,
                stacklevel=4,
            )

    def _check_capacity_of_any(self, instance: DeploymentInstance) -> None:
        """Refuse what no draw of the later arrivals can serve; warn of what some cannot."""
        later = instance.arrival_query > 0
        for arrival in (1, self.rules.horizon):  # all as soon as can be, all too late
            case = replace(instance, arrival_query=np.where(later, arrival, 0))
            verdicts = stage_verdicts(case, self.rules)
            error = self._unserved(case, verdicts)
            if error is None:
                continue
            if arrival == 1:
                raise error
            stage = next(k for k, verdict in enumerate(verdicts) if verdict in UNSERVED)
            warnings.warn(
                f"retirements: from stage {stage} on the LLMs there can carry all traffic only if "
                "others have arrived, which depends on the draw; where they have not, queries are "
                "refused or exceed the throughput",
                UserWarning,
                stacklevel=4,
            )

    def _unserved(self, instance: DeploymentInstance, verdicts: Sequence[str]) -> UsageError | None:
        """Return the error for the first stage in which no policy can serve all traffic."""
        stage = next((k for k, verdict in enumerate(verdicts) if verdict in UNSERVED), None)
        if stage is None:
            return None
        if verdicts[stage] == "nobody_there":
            start, arrival = int(self.rules.stage_starts[stage]), instance.arrival_query
            where = f"no LLM is there at query {start}, where stage {stage} begins"
            if (arrival <= start).any():
                return UsageError(
                    f"retirements: {where}: all that had arrived have retired; retire one of them "
                    "later, or not at all"
                )
            return UsageError(
                f"arrivals: {where}: the first comes at query {arrival.min()}; let one arrive at 0"
            )
        return UsageError(
            f"alpha: in stage {stage} the {self.rules.max_deployed} LLMs of largest alpha that can "
            "be deployed carry less than all traffic (their alpha sum to less than 1); raise alpha "
            "or max_deployed"
        )

    def _draw(self, rng: np.random.Generator) -> DeploymentInstance:
        return build_instance(
            self.source,
            self.rules,
            rng,
            price_changes=self._price_changes,
            retire_query=self._retire_query,
            drift=self._drift,
        )

    def start(
        self, np_random: np.random.Generator
    ) -> tuple[DeploymentInstance, list[np.random.Generator]]:
        """Draw what one episode needs: the instance and the streams."""
        instance, *streams = np_random.spawn(1 + NUM_STREAMS)
        return self._fixed or self._draw(instance), streams

    def dynamics(self, num_lanes: int) -> DeploymentDynamics:
        return DeploymentDynamics(num_lanes, self.num_llms, self.rules, self.source.context_dim)

    def problem(self) -> dict[str, Any]:
        """Public parameters, JSON-plain: the fields of an agent's deployment problem."""
        rules = self.rules
        return {
            "num_llms": self.num_llms,
            "max_deployed": rules.max_deployed,
            "horizon": rules.horizon,
            "num_stages": rules.num_stages,
            "budget": rules.budget,
            "alpha": rules.alpha,
            "cost_low": self.cost_low,
            "cost_high": self.cost_high,
            "context_dim": self.source.context_dim,
            "has_prices": self.source.has_prices,
        }

    def observation_space(self) -> spaces.Dict:
        n, largest = self.num_llms, float(np.finfo(np.float32).max)

        def box(low: float, high: float, size: int = 1) -> spaces.Box:
            return spaces.Box(low, high, (size,), np.float32)

        space: dict[str, spaces.Space[Any]] = {
            "arrived": spaces.MultiBinary(n),
            "deployed": spaces.MultiBinary(n),
            "cost_prior": box(0.0, largest, n),
            "count": box(0.0, MAX_COUNT, n),
            "mean_reward": box(0.0, 1.0, n),
            "mean_cost": box(0.0, largest, n),
            "throughput_left": box(0.0, 1.0, n),
            "deploy_now": spaces.Discrete(2),
            "stage_progress": box(0.0, 1.0),
            "query_progress": box(0.0, 1.0),
            "spent": box(0.0, largest),
            "budget_left": box(-MAX_COUNT, MAX_COUNT),
        }
        if self.source.context_dim:
            space["context"] = box(-largest, largest, self.source.context_dim)
        return spaces.Dict(space)

    def invalid_action(self, action: Any, rows: str = "") -> UsageError:
        n = self.num_llms
        return UsageError(
            f"action={action!r} is not in the action space: it takes {rows}integers [{n} "
            f"deployment bits, 1 LLM] with bits 0 or 1 and the LLM in [0, {n})"
        )


def _limited(name: str, value: Any, minimum: int = 1) -> int:
    """Check a number of queries, which counts in observations must be able to show."""
    count = checks.count(name, value, minimum)
    if count > MAX_COUNT:
        raise UsageError(f"{name}={value!r} is more than {int(MAX_COUNT)} queries (2^24); lower it")
    return count


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


def _info_names(outcome: type[QueryOutcome | StageOutcome]) -> tuple[str, ...]:
    return tuple("rated_reward" if name == "reward" else name for name in outcome._fields)


_OF_QUERY, _OF_STAGE = _info_names(QueryOutcome), _info_names(StageOutcome)
"""What ``info`` calls the parts of an outcome."""


class _DeployEnv(SuiteEnv):
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
        throughput: str = "soft",
        price_changes: str | Sequence[Mapping[str, Any]] | None = None,
        retirements: Sequence[Mapping[str, Any]] | None = None,
        switching_cost: float = 0.0,
        reward_delay: int = 0,
        drift: float = 0.0,
        instance_seed: int | None = None,
        render_mode: str | None = None,
        flat_observation: bool = False,
    ) -> None:
        self._task = task = _Task(
            instance=instance,
            horizon=horizon,
            num_stages=num_stages,
            max_deployed=max_deployed,
            alpha=alpha,
            budget_per_query=budget_per_query,
            budget=budget,
            throughput=throughput,
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
        if not self.dynamics.ready:
            raise gym.error.ResetNeeded(f"call reset() before {name}()")

    def _check_running(self) -> None:
        self._check_ready("step")
        if self._ended:
            raise UsageError(
                f"the episode has ended after {self._task.rules.horizon} queries; call reset()"
            )

    def _make_renderer(self) -> Any:
        from llmqueue_gym.deployment.picture import DeployRenderer

        return DeployRenderer(self.dynamics, self.llms)


class LLMDeployEnv(_DeployEnv):
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
    | cost_prior | (N,) | float32 | list price of a query in USD, 0 where none is published | 0 | 3.4e38 |
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
    | instance | "routerbench" | where the LLMs come from: a name ("routerbench", "catalog", "synthetic", "table", "paretobandit", "dataset"), or a dict with a "source" and options |
    | horizon | None | T, at most 2^24 [36497 / 36000 / 10000 / 10000] |
    | num_stages | None | K [33 / 33 / 20 / 20] |
    | max_deployed | None | M_max, at most N [5 / 5 / 4 / half of the LLMs] |
    | alpha | None | largest share of a stage's queries per LLM, a number or one per LLM [0.4 / 0.4 / 0.4, 1 for "late_arrival" and "fixed_gap" / 1] |
    | budget_per_query | None | b in USD, at least 1e-12 [1e-3 / 1e-3 / 1e-3 / median of the LLMs' mean costs] |
    | budget | "soft" | "hard": the reward is the ledger's |
    | throughput | "soft" | "soft" serves and counts queries above ceil(alpha * stage length), which are paid and earn nothing in the ledger; "hard" does not serve them: reward 0, cost 0 |
    | price_changes | None | "recorded" (catalog), or a list of {"llm", "query" or "date", "factor"} |
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
        values = np.asarray(action)
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


class LLMDeployStageEnv(_DeployEnv):
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
        values = np.asarray(action)
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
        super().__init__(single, num_envs, autoreset_mode)
        self._task = task = single._task
        self._last = task.rules.horizon
        if max_episode_steps is not None and max_episode_steps != -1:
            self._last = min(self._last, checks.count("max_episode_steps", max_episode_steps))
        self.dynamics = task.dynamics(num_envs)
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """The environment's spec; ``max_episode_steps`` is where lanes are truncated."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = _with_steps(spec, self._last)

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""
        return self._task.llms

    def _problem(self, lane: int) -> dict[str, Any]:
        return self._task.problem()

    def _make_renderer(self) -> Any:
        from llmqueue_gym.deployment.picture import DeployRenderer

        return DeployRenderer(self.dynamics, self.llms)

    def _start_lanes(self, lanes: NDArray[np.int64], generators: list[np.random.Generator]) -> None:
        starts = [self._task.start(generator) for generator in generators]
        instances, streams = zip(*starts, strict=True)
        self.dynamics.reset(lanes.tolist(), instances, streams)

    def _observe(self) -> Observation:
        return self.dynamics.observe()

    def step(self, actions: NDArray[np.int64]) -> VectorStep:
        """Answer one query in every lane; ``actions`` has shape (B, N + 1).

        Raises
        ------
        ValueError
            If an action is not in the action space.
        """
        task, dynamics = self._task, self.dynamics
        checked = self._checked_actions(actions)
        if checked is None:
            raise task.invalid_action(actions, f"{self.num_envs} rows of ")
        running, truncated = ~self._ended, np.zeros(self.num_envs, dtype=np.bool_)
        if not running.all():
            self._reset_lanes(np.flatnonzero(self._ended))
        lanes = np.flatnonzero(running)
        rewards = np.zeros(self.num_envs)
        info = self._no_outcome()
        if lanes.size:
            outcome = dynamics.step(checked[lanes, :-1] == 1, checked[lanes, -1], lanes)
            rewards[lanes] = outcome.ledger_reward if task.hard_budget else outcome.reward
            truncated = running & (dynamics.query >= self._last)
            info = self._spread(outcome, lanes)
        if self._renderer is not None and running[0]:
            self._renderer.record(
                {key: values[0] for key, values in (info | self._state_info()).items()}
            )
        return self._end_step(rewards, truncated, info)

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
        if not self.dynamics.ready:
            raise gym.error.ResetNeeded("call reset() before action_masks()")
        return self.dynamics.action_masks().astype(np.bool_)
