"""Index rules: a score of each query at each replica, from p and the rate mu of its answers.

They look one slot or one queue ahead; what a replica should be kept free for they cannot say.
"""

from __future__ import annotations

import numpy as np

from baselines.interface import ServeProblem
from baselines.registry import agent
from baselines.serving.base import Ranked, Seen
from baselines.serving.estimates import Array, Floats
from llmqueue_gym import checks

C_MU = "Cox, Smith 1961; Buyukkoc, Varaiya, Walrand 1985"
C_MU_THETA = "Atar, Giat, Shimkin 2010"
MAX_WEIGHT = "Tassiulas, Ephremides 1992"
THRESHOLD = "Lin, Kumar 1984"


@agent("known-myopic", source="heuristic with the true p", known=True)
@agent("myopic", source="heuristic")
class Myopic(Ranked):
    """Most answers kept in the next slot: what the new query adds, less what it slows down."""

    def scores(self, seen: Seen) -> Floats:
        """Return p mu(n + 1) - n p-bar (mu(n) - mu(n + 1)), p-bar that of the mean context."""
        replicas, active = np.arange(len(seen.hosts)), seen.active
        slowed = self.service.rates(seen.hosts, active) - self.service.rates(seen.hosts, active + 1)
        served = np.zeros(len(replicas))
        if busy := np.flatnonzero((active > 0) & (slowed > 0)).tolist():
            served[busy] = self.served_success(seen)[busy]
        return self.keeps(seen) - active * served * slowed

    def served_success(self, seen: Seen) -> Floats:
        """P(the answers that a replica is at work on are kept), on average, shape (R,)."""
        means = np.zeros(len(seen.hosts))
        for replica in range(len(means)):
            contexts = [context for context, r in self._sent.values() if r == replica]
            if contexts:
                llm = seen.hosts[replica]
                means[replica] = self.success.mean(np.array(contexts))[:, llm].mean()
        return means


@agent("known-c-mu", source=f"{C_MU}; true p", known=True)
@agent("c-mu", source=C_MU)
class CMu(Ranked):
    """C mu: what the query costs a slot while it waits, times mu p."""

    def scores(self, seen: Seen) -> Floats:
        """Return (holding + lost theta) mu p."""
        return self.cost(seen)[:, None] * self.keeps(seen)

    def cost(self, seen: Seen) -> Floats:
        """Return what each query costs a slot, shape (Q,); 1 where nothing does."""
        rewards, theta = self.problem.rewards, self.theta(seen)
        cost = rewards["holding"] + (rewards["lost"] + rewards["kept"]) * theta
        return np.where(cost > 0.0, cost, 1.0)

    def theta(self, seen: Seen) -> Floats:
        """P(a waiting user leaves in a slot), shape (Q,)."""
        return self.kinds.impatience()[self.kinds.of(seen.contexts)]


@agent("known-c-mu-theta", source=f"{C_MU_THETA}; true p", known=True)
@agent("c-mu-theta", source=C_MU_THETA)
class CMuTheta(CMu):
    """C mu / theta: under overload those who leave by themselves are left to it."""

    def scores(self, seen: Seen) -> Floats:
        """Return (holding + lost theta) mu p / theta."""
        return super().scores(seen) / np.maximum(self.theta(seen), 1e-6)[:, None]


@agent("known-maxweight", source=f"{MAX_WEIGHT}; true p", known=True)
@agent("maxweight", source=MAX_WEIGHT)
class MaxWeight(Ranked):
    """MaxWeight: how many of the query's kind wait, times mu p."""

    def scores(self, seen: Seen) -> Floats:
        """Return n mu p."""
        keeps = self.keeps(seen)
        kinds = self.kinds_of(seen.contexts, keeps)
        return np.bincount(kinds)[kinds][:, None] * keeps


@agent("known-threshold", source=f"{THRESHOLD}; true p", known=True)
@agent("threshold", source=THRESHOLD)
class Threshold(Ranked):
    """A replica that is not the best for a query takes it only while enough of its kind wait.

    Parameters
    ----------
    problem, seed, known, explore
        As `ServeAgent`.
    level : float, optional
        m: as many of the kind must wait, besides one whom the best replica takes now. The default
        goes by the estimates: with mu p of the best and of the replica, their ratio times the share
        of the best that the kind's arrivals leave idle, at least 1 (R): who waits for m - 1 others
        at the best replica is then as soon served as at the slower one.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        level: float | None = None,
    ) -> None:
        super().__init__(problem, seed, known, explore)
        if level is not None:
            checks.number("level", level, "(0, inf)")
        self.level = level

    def scores(self, seen: Seen) -> Floats:
        """Return 1 + mu p at the best replica, mu p elsewhere if enough wait; by what it saves."""
        success = self.success_at(seen)
        alone = success * self.service.rates(seen.hosts, np.ones_like(seen.active))
        level = self.levels(seen.contexts, alone)
        taken = ((level == 0.0) & (seen.room > 0)).any(axis=1)  # one by the best replica
        kinds = self.kinds_of(seen.contexts, alone)
        left = (np.bincount(kinds)[kinds] - taken)[:, None]
        keeps = success * self.service.rates(seen.hosts, seen.active + 1)
        keeps = keeps * self.worth(seen.contexts, seen.queue)[:, None]
        return np.where(level == 0.0, 1.0 + keeps, np.where(left >= level, keeps, 0.0))

    def levels(self, contexts: Array, alone: Floats) -> Floats:
        """Return how many of the kind must wait, (Q, R), given mu p alone; 0 at the best."""
        fastest = alone.max(axis=1, keepdims=True)
        if self.level is not None:
            levels = np.full(alone.shape, self.level)
        else:
            idle: Floats = np.ones((len(contexts), 1))
            if self.kinds.few:
                arrivals = self.kinds.arrivals[self.kinds.of(contexts)] / max(self.slot, 1)
                power = fastest[:, 0] * self.places[alone.argmax(axis=1)]
                idle[:, 0] = np.maximum(1.0 - arrivals / np.maximum(power, 1e-9), 0.0)
            levels = np.maximum(fastest / np.maximum(alone, 1e-9) * idle, 1.0)
        levels[alone >= fastest * (1.0 - 1e-9)] = 0.0
        return levels
