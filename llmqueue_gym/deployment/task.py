"""LLMDeploy-v0's arguments, validated: the rules, the spaces, and how an instance is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from llmqueue_gym import checks
from llmqueue_gym.deployment.dynamics import NUM_STREAMS
from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.deployment.rules import MAX_COUNT, DeploymentRules
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
from llmqueue_gym.vector import INSTANCE_TAG

MIN_BUDGET = 1e-12
"""Least budget in USD per query: shares of it stay within float32."""
BUDGETS = ("soft", "hard")


class Task:
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
        """Return lanes of this problem, not yet reset."""
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
        """Return the space of what a provider sees."""
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
        """Return the error for an action outside the space."""
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
