"""A deployment cell: how its run is watched with the hidden truth, and what is measured.

See `benchmarks.run.runner` for the loop, `benchmarks.problems.deployment.metrics` for the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, DeployProblem
from benchmarks.problems.deployment.metrics import METRICS, Run
from benchmarks.problems.kind import measured
from benchmarks.problems.luck import Luck, outcome_luck, row_luck
from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.deployment.streams import stream_fingerprint
from llmqueue_gym.deployment.streams.order import arrival_words
from llmqueue_gym.oracles import LedgerOracle, PerQueryOracle, fluid_values, ledger_bound

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def public_problem(env: gym.Env[Any, Any], horizon: int, pretrained: bool = False) -> DeployProblem:
    """Public parameters of a deployment environment; the same under both protocols."""
    return DeployProblem(**env.unwrapped.problem)  # type: ignore[attr-defined]


def told_all(env: gym.Env[Any, Any], public: DeployProblem) -> DeployProblem:
    """Return the public parameters with the truth beside them, for a yardstick."""
    dynamics: DeploymentDynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
    return replace(public, truth=dynamics.instance())


def make_oracle(env: gym.Env[Any, Any]) -> LedgerOracle:
    """Return the policy that scores 1: true means and arrivals, the whole budget planned.

    Where queries come from a table it sees the query as well.
    """
    dynamics: DeploymentDynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
    return LedgerOracle(env) if dynamics.table is None else PerQueryOracle(env)


def assumptions(env: gym.Env[Any, Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Say in which order the LLMs of a table arrive, unless its ``arrivals`` do."""
    unwrapped: Any = env.unwrapped
    dynamics: DeploymentDynamics = unwrapped.dynamics
    instance = kwargs.get("instance")
    if dynamics.table is None or (isinstance(instance, Mapping) and "arrivals" in instance):
        return []
    order = arrival_words(dynamics.instance().arrival_query.tolist(), unwrapped.llms)
    return [f"the table does not say when LLMs arrive: {', '.join(order)}"]


def fingerprint(kwargs: Mapping[str, Any]) -> str | None:
    """Hash the content of the files of a stream of LLMs."""
    return stream_fingerprint(kwargs["instance"]) if "instance" in kwargs else None


class Recorder:
    """Watches a run: which LLM answered every query, for what reward and what money."""

    def __init__(self, env: gym.Env[Any, Any], horizon: int) -> None:
        self._dynamics: DeploymentDynamics = env.unwrapped.dynamics  # type: ignore[attr-defined]
        self._llms: tuple[str, ...] = env.unwrapped.llms  # type: ignore[attr-defined]
        self._rows: list[tuple[int, float, float, float]] = []
        self._table_rows: list[int] = []

    def see(self) -> bool:
        """Every query is a decision."""
        return True

    def choose(self, t: int, action: Action) -> None:
        """Note the row of the table that the query is, which only the truth knows."""
        if self._dynamics.table is not None:
            self._table_rows.append(int(self._dynamics.table_row))

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        """Note what came of it, before the agent is told (of the reward perhaps much later)."""
        money = info["cost"] + info["switching_cost"]
        dynamics = self._dynamics
        earned = float(dynamics.total_reward), float(dynamics.ledger_score)
        self._rows.append((info["llm"], *earned, money))

    def truth(self, t: int) -> str:
        """Say what the first t queries would be scored by."""
        best = fluid_values(self._dynamics.instance(), self._dynamics.rules)[:t].sum()
        ledger = float(self._dynamics.ledger_score) / max(1, t)
        regret = float(best - self._dynamics.total_reward)
        return f"truth: ledger {ledger:.3f} a query, regret {regret:,.2f} in all"

    def result(self) -> dict[str, Any]:
        """Return ``metrics``, the cumulative sums of the learning curve, ``traffic`` and ``llms``.

        The curve of the regret takes the true means of the chosen LLMs: the same in expectation,
        with less noise.
        """
        dynamics = self._dynamics
        llm, total, ledger, money = np.array(self._rows).T
        instance, rules = dynamics.instance(), dynamics.rules
        answered = llm.astype(np.int64)
        # A table's rewards have no noise to take out: the row decides.
        drawn = np.diff(total, prepend=0.0)
        promised = drawn if instance.table is not None else _promised(instance, answered)
        best = fluid_values(instance, rules)
        run = Run(dynamics, best, promised, ledger_bound(instance, rules))
        luck = self._luck(answered, promised).as_metrics()
        return {
            "metrics": measured(METRICS, run) | luck,
            "curve": {
                "ledger": ledger,
                "spend": np.cumsum(money) / (rules.budget * rules.horizon),
                "regret": np.cumsum(best - promised),
            },
            "traffic": {
                "llms": list(self._llms),
                "arrival": instance.arrival_query.tolist(),
                "starts": rules.stage_starts.tolist(),
                "lengths": rules.stage_lengths.tolist(),
                "served": served_per_stage(
                    answered, rules.stage_lengths, dynamics.num_llms
                ).tolist(),
            },
            "llms": {
                "LLM": list(self._llms),
                "mean reward": instance.mean_reward[0].tolist(),
                "USD / query": instance.mean_cost[0].tolist(),
                "largest share of a stage": list(rules.alpha),
                "arrives at query": instance.arrival_query.tolist(),
            },
        }

    def _luck(self, answered: Ints, promised: Floats) -> Luck:
        """Luck of the rewards, which lie in [0, 1]."""
        table = self._dynamics.table
        if table is None:
            return outcome_luck(float(self._dynamics.total_reward), promised)
        rows = np.array(self._table_rows, dtype=np.int64)
        return row_luck(table.contexts.astype(np.float64), table.quality, rows, answered)


def served_per_stage(answered: Ints, lengths: Ints, num_llms: int) -> Ints:
    """Count the queries that each LLM answered in each stage, shape (K, N).

    Parameters
    ----------
    answered : ndarray, shape (T,)
        The LLM that answered every query, -1 where it was not served.
    lengths : ndarray, shape (K,)
        Queries per stage.
    num_llms : int
        N.
    """
    stage = np.repeat(np.arange(lengths.size), lengths)
    cell = (stage * num_llms + answered)[answered >= 0]
    counts = np.bincount(cell, minlength=lengths.size * num_llms)
    return counts.reshape(lengths.size, num_llms)


def _promised(instance: DeploymentInstance, answered: Ints) -> Floats:
    """Return the true mean reward of every answer, 0 where there was none; shape (T,)."""
    regime = np.searchsorted(instance.change_query, np.arange(answered.size), side="right") - 1
    return np.where(answered >= 0, instance.mean_reward[regime, answered], 0.0)
