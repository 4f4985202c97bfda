"""What is measured of a deployment run and shown in the tables: a metric and its columns each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems.kind import (
    Column,
    Evidence,
    Figure,
    Metric,
    growth_of,
    interval_of,
    mean_of,
)

if TYPE_CHECKING:
    from llmqueue_gym.deployment.lanes import DeploymentDynamics
    from llmqueue_gym.deployment.oracles import LedgerBound
    from llmqueue_gym.deployment.rules import DeploymentRules

Floats = NDArray[np.float64]


class Run(NamedTuple):
    """What is recorded of a run.

    Attributes
    ----------
    dynamics : DeploymentDynamics
        At the end of the run.
    best, promised : ndarray, shape (T,)
        V(b, A_t) of every query, and the true mean reward of its answer (the reward itself where a
        table decides it).
    bound : LedgerBound
        Of all policies.
    """

    dynamics: DeploymentDynamics
    best: Floats
    promised: Floats
    bound: LedgerBound

    @property
    def rules(self) -> DeploymentRules:
        """Budget, horizon, stages and caps."""
        return self.dynamics.rules

    def per_query(self, total: float) -> float:
        """Share a total among all queries."""
        return float(total) / self.rules.horizon

    def of_budget(self, money: float) -> float:
        """Return money in units of the whole budget B = bT."""
        return float(money) / (self.rules.budget * self.rules.horizon)


def _sum(*names: str) -> Callable[[Evidence], Figure]:
    return lambda evidence: float(
        sum(float(np.mean(evidence.table[name].to_numpy())) for name in names)
    )


def _share_of_bound(evidence: Evidence) -> float | None:
    shares = (evidence.table["ledger"] / evidence.table["ledger_bound"]).drop_nulls()
    return float(shares.to_numpy().mean()) if len(shares) else None


METRICS: tuple[Metric[Run], ...] = (
    Metric(
        "ledger",
        lambda run: run.per_query(run.dynamics.ledger_score),
        (
            Column("ledger / query", "", interval_of("ledger"), 3),
            Column("", "ledger", mean_of("ledger"), 3),
        ),
    ),
    Metric(
        "reward",
        lambda run: run.per_query(run.dynamics.total_reward),
        (Column("reward / query", "", mean_of("reward"), 3),),
    ),
    Metric(
        "ledger_bound",
        lambda run: run.bound.value,
        (Column("share of bound", "", _share_of_bound, 3),),
    ),
    Metric("ledger_overshoot", lambda run: run.bound.overshoot),
    Metric(
        "spend",
        lambda run: run.of_budget(run.dynamics.spend),
        (Column("spend / b", "spend", mean_of("spend")),),
    ),
    Metric("ledger_spend", lambda run: run.of_budget(run.dynamics.ledger_spend)),
    Metric(
        "regret",  # as published, of the rewards drawn
        lambda run: float(run.best.sum() - run.dynamics.total_reward),
        (
            Column("regret", "", interval_of("regret")),
            Column("", "regret", mean_of("regret"), 3),
            Column("growth", "", growth_of, missing="none"),
        ),
    ),
    Metric("mean_regret", lambda run: float(np.sum(run.best - run.promised))),
    Metric(
        "refused",
        lambda run: int(run.dynamics.refused),
        (Column("refused", "", _sum("refused"), 0),),
    ),
    Metric(
        "violations",
        lambda run: int(run.dynamics.violations),
        (
            Column("over cap", "", _sum("violations"), 0),
            Column("", "lost", _sum("refused", "violations"), 0),
        ),
    ),
    Metric("budget", lambda run: run.rules.budget),
    Metric("num_stages", lambda run: run.rules.num_stages),
    Metric("max_deployed", lambda run: run.rules.max_deployed),
    Metric("num_llms", lambda run: run.dynamics.num_llms),
)
"""In the order of their columns."""
