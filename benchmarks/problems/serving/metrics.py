"""What is measured of a serving run and shown in the tables: a metric and its columns each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems.kind import (
    Column,
    Evidence,
    Metric,
    gap_of,
    interval_of,
    mean_of,
    size_of,
)
from benchmarks.score.intervals import Interval
from llmqueue_gym.serving.dynamics import (
    ABANDONED,
    ARRIVALS,
    COUNTED,
    EMPTY,
    GAVE_UP,
    ILLEGAL,
    IN_SERVICE,
    KEPT,
    LATE,
    NOT_KEPT,
    PHASE,
    QUEUED,
    SOJOURN,
    THINKING,
)
from llmqueue_gym.serving.instance import Rewards
from llmqueue_gym.serving.lanes import ServingDynamics

ORACLE, KNOWN = "mean_reward_oracle", "mean_reward_known"
"""What the oracle, and the same rule told the truth, earned on the same seed."""


@dataclass
class Trace:
    """What was there at the end of every slot of a run; arrays of T rows.

    Attributes
    ----------
    counts : ndarray, shape (T, 4)
        As `ServingDynamics` counts: clock, waiting, in service, thinking.
    totals : ndarray, shape (T, COUNTED)
        What has been counted since the start.
    in_use : ndarray, shape (T,)
        USD of the slot for the replicas that are not empty.
    """

    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    in_use: NDArray[np.float64]

    @classmethod
    def empty(cls, horizon: int) -> Trace:
        """Return a trace of ``horizon`` slots to be filled in."""
        return cls(
            np.zeros((horizon, 4), dtype=np.int64),
            np.zeros((horizon, COUNTED), dtype=np.int64),
            np.zeros(horizon),
        )

    def note(self, t: int, dynamics: ServingDynamics, price: NDArray[np.float64]) -> None:
        """Note the end of slot t."""
        state = dynamics.state
        self.counts[t], self.totals[t] = state.counts[0], state.totals[0]
        self.in_use[t] = price[state.replicas[0, :, PHASE] != EMPTY].sum()

    def reward(self, rewards: Rewards) -> NDArray[np.float64]:
        """Return what every slot was worth, shape (T,): a second version of what is paid."""
        slots = np.diff(self.totals, axis=0, prepend=0)
        here = self.counts[:, QUEUED] + self.counts[:, IN_SERVICE]
        lost = slots[:, ABANDONED] + slots[:, GAVE_UP]
        return np.asarray(
            rewards.kept * slots[:, KEPT]
            - rewards.holding * here
            - rewards.lost * lost
            - rewards.late * slots[:, LATE]
            - rewards.price * self.in_use
        )


@dataclass
class Run:
    """What is recorded of a run.

    Attributes
    ----------
    trace : Trace
    rewards : Rewards
        Weights of the reward.
    load, slot_seconds : float
        Of the instance.
    bound : float
        Mean reward a slot that no policy is expected to exceed.
    exact : bool
        Whether the oracle is the optimum.
    """

    trace: Trace
    rewards: Rewards
    load: float
    slot_seconds: float
    bound: float
    exact: bool

    @property
    def mean_reward(self) -> float:
        """Mean reward a slot."""
        return float(self.trace.reward(self.rewards).mean())

    @property
    def earns(self) -> bool:
        """Whether answers are worth something, so that rewards are not costs alone."""
        return self.rewards.kept > 0.0

    def total(self, what: int) -> int:
        """Return a count of the whole run."""
        return int(self.trace.totals[-1, what])

    def share(self, what: int, of: int) -> float | None:
        """Return one count over another."""
        return self.total(what) / self.total(of) if self.total(of) else None


def compared(reward: float, earns: bool) -> float:
    """Return h: log(1 + cost), or minus the reward where answers earn something."""
    return -reward if earns else float(np.log1p(max(0.0, -reward)))


def _lost(run: Run) -> float | None:
    arrivals = run.total(ARRIVALS)
    return (run.total(ABANDONED) + run.total(GAVE_UP)) / arrivals if arrivals else None


def _sojourn(run: Run) -> float | None:
    left = run.total(KEPT) + run.total(ABANDONED) + run.total(GAVE_UP)
    return run.slot_seconds * run.total(SOJOURN) / left if left else None


def _usd_per_kept(run: Run) -> float | None:
    kept = run.total(KEPT)
    return float(run.trace.in_use.sum()) / kept if kept and run.trace.in_use.any() else None


def _mean(what: int) -> Metric[Run]:
    names = {QUEUED: "mean_waiting", IN_SERVICE: "mean_in_service", THINKING: "mean_thinking"}
    titles = {QUEUED: "waiting", IN_SERVICE: "in service", THINKING: "thinking"}
    column = Column(titles[what], "waiting" if what == QUEUED else "", size_of(names[what]), 3)
    return Metric(names[what], lambda run: float(run.trace.counts[:, what].mean()), (column,))


def _behind(better: str, worse: str = "mean_reward") -> Callable[[Evidence], Interval | None]:
    """Reward a slot that one earns beyond the other, paired by seed; None where one is missing."""
    return lambda evidence: gap_of(evidence, better, worse)


METRICS: tuple[Metric[Run], ...] = (
    Metric("load", lambda run: run.load),
    Metric("exact", lambda run: float(run.exact)),
    Metric("earns", lambda run: float(run.earns)),
    Metric(
        "mean_reward",
        lambda run: run.mean_reward,
        (
            Column("reward / slot", "reward", interval_of("mean_reward"), 3),
            Column("behind the oracle", "", _behind(ORACLE), 3, oracle="0"),
            Column("of it control", "", _behind(ORACLE, KNOWN), 3, oracle=""),
            Column("of it learning", "", _behind(KNOWN), 3, oracle=""),
        ),
    ),
    Metric("h", lambda run: compared(run.mean_reward, run.earns)),
    Metric("h_bound", lambda run: compared(run.bound, run.earns)),
    _mean(QUEUED),
    _mean(IN_SERVICE),
    _mean(THINKING),
    Metric(
        "retrials_per_kept",
        lambda run: run.share(NOT_KEPT, KEPT),
        (Column("not kept / kept", "", mean_of("retrials_per_kept"), 3),),
    ),
    Metric("lost_share", _lost, (Column("lost", "lost", mean_of("lost_share"), 3),)),
    Metric(
        "seconds_in_system", _sojourn, (Column("s in system", "", mean_of("seconds_in_system"), 3),)
    ),
    Metric("usd_per_kept", _usd_per_kept, (Column("USD / kept", "", mean_of("usd_per_kept"), 5),)),
    Metric(
        "illegal",
        lambda run: run.total(ILLEGAL),
        (Column("illegal", "", mean_of("illegal"), 0),),
    ),
    Metric("kept", lambda run: run.total(KEPT)),
)
"""In the order of their columns."""
