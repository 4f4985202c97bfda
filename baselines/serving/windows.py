"""Fleets that change at update points: how many replicas work, and which LLMs they host.

Between update points all of them dispatch by the threshold rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from baselines.deployment.stageroute import GAMMA, confidence_radius
from baselines.deployment.stageroute import SOURCE as STAGEROUTE
from baselines.interface import Action, Observation, ServeProblem
from baselines.registry import agent
from baselines.serving.base import Seen
from baselines.serving.estimates import Array, Floats, Ints
from baselines.serving.index import Threshold
from llmqueue_gym import checks
from llmqueue_gym.deployment.routing import deploy_opt

STAY = 1.1
"""An LLM that a replica hosts is replaced by one that is better by this factor only."""

PRIOR_SLOTS = 200.0
"""Slots for which the public arrival rate speaks before a day is known."""


class Fleet(Threshold):
    """A fleet with room for a rate of arrivals that subclasses foresee.

    At an update point replicas are given LLMs one after the other, until there is room for the
    rate: each time the pair of an idle replica and an arrived LLM that gives most kept answers a
    slot, for its price if prices count. Kept answers are mu, the most answers a slot, times the
    mean p over those who came last (a Thompson sample). Other replicas are emptied.

    Parameters
    ----------
    problem, seed, known, explore
        As `Threshold`.
    utilisation : float
        Share of their time for which replicas are to work.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        utilisation: float = 0.7,
    ) -> None:
        super().__init__(problem, seed, known, explore)
        self.utilisation = checks.number("utilisation", utilisation, "(0, 1]")
        self._arrived = np.zeros(problem.num_llms, dtype=np.bool_)
        self._at_once = 0  # who came in the last slot
        self._since_update = 0.0

    def read(self, observation: Observation) -> Seen:
        """Note which LLMs there are."""
        self._arrived = observation["arrived"] > 0
        return super().read(observation)

    def deploy(self, seen: Seen, targets: Ints) -> Ints:
        """Return the LLM of every replica, -1 for none."""
        needed = self.foresee(seen) / self.utilisation
        gives = self.service.throughput(self.places) * self.value()
        gives[:, ~self._arrived] = 0.0
        hosted = np.flatnonzero(targets >= 0)
        worth = gives.copy()
        worth[hosted, targets[hosted]] *= STAY
        if self.problem.rewards["price"] > 0.0:
            worth /= np.maximum(np.array(self.problem.price), 1e-12)[:, None]
        chosen, room = np.full(len(targets), -1), 0.0
        while room < needed and (chosen < 0).any():
            replica, llm = np.unravel_index(int(worth.argmax()), worth.shape)
            if worth[replica, llm] <= 0.0:
                break
            chosen[replica] = llm
            room += gives[replica, llm]
            worth[replica] = 0.0
        self._since_update = 0.0
        return chosen

    def value(self) -> Floats:
        """Return the mean p of every LLM, shape (N,)."""
        if not self.recent:
            return np.full(self.problem.num_llms, 0.5)
        return np.asarray(self.success.sample(np.array(self.recent)[-64:]).mean(axis=0))

    def foresee(self, seen: Seen) -> float:
        """Return the arrivals a slot to have room for: here all there can be."""
        return np.inf

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Count who comes."""
        super().update(observation, action, reward, next_observation, info)
        self._at_once = int(info["arrived"])
        self._since_update += self._at_once


@agent("known-static-fleet", source="heuristic with the true p", known=True)
@agent("static-fleet", source="heuristic")
class StaticFleet(Fleet):
    """All replicas work; after the first update points their LLMs are left alone.

    Settings are those of `Fleet`, and ``settle``: update points at which LLMs are chosen.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        settle: int = 5,
    ) -> None:
        super().__init__(problem, seed, known, explore)
        self.settle = checks.count("settle", settle)

    def deploy(self, seen: Seen, targets: Ints) -> Ints:
        """Choose at the first update points only."""
        if self.slot >= self.settle * self.problem.update_every:
            return targets
        return super().deploy(seen, targets)


@agent("known-reactive", source="heuristic with the true p", known=True)
@agent("reactive", source="heuristic, as cluster autoscalers do")
class Reactive(Fleet):
    """The fleet for what came since the last update point and still waits."""

    def foresee(self, seen: Seen) -> float:
        """Return arrivals since the last update point and the queue, a slot."""
        if self.slot == 0:
            return self.problem.arrival_rate
        return (self._since_update + seen.queue) / self.problem.update_every


@agent("known-forecast", source="ours, with the true p", known=True)
@agent("forecast", source="ours")
class Forecast(Fleet):
    """The fleet for the largest rate until what the next update point loads would be ready.

    The rate is a + b sin + c cos of the hour, by least squares with the public mean as prior.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        utilisation: float = 0.7,
    ) -> None:
        super().__init__(problem, seed, known, explore, utilisation)
        self._gram = PRIOR_SLOTS * np.eye(3)
        self._sums = PRIOR_SLOTS * problem.arrival_rate * np.eye(3)[0]
        self._angle, self._turn = 0.0, 0.0  # of the hour, and how much a slot adds to it

    def read(self, observation: Observation) -> Seen:
        """Read the hour."""
        seen = super().read(observation)
        angle = float(np.arctan2(*seen.day))
        if self.slot:
            self._turn = (angle - self._angle) % (2.0 * np.pi)
        self._angle = angle
        return seen

    def foresee(self, seen: Seen) -> float:
        """Return the largest estimated rate, and the queue on top."""
        problem = self.problem
        ahead = np.arange(problem.loading + problem.update_every)
        a, b, c = np.linalg.solve(self._gram, self._sums)
        angles = self._angle + self._turn * ahead
        rates = a + b * np.sin(angles) + c * np.cos(angles)
        return float(max(rates.max(), 0.0)) + seen.queue / problem.update_every

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Add the slot to the least squares."""
        super().update(observation, action, reward, next_observation, info)
        features = np.array([1.0, np.sin(self._angle), np.cos(self._angle)])
        self._gram += np.outer(features, features)
        self._sums += self._at_once * features


@agent("StageRoute-fleet", source=f"DeployOPT of {STAGEROUTE}")
class StageRouteFleet(Fleet):
    """All replicas host what DeployOPT deploys on StageRoute's optimistic value of each LLM.

    mu^U = min(1, mean + 2 f_rad(mean, n)) over the n answers of an LLM, 1 if n = 0, instead of a
    model of contexts. An LLM may be deployed on several replicas (R): it stands in DeployOPT once
    for each, with the share of the answers that one replica can give as its cap alpha. Time is what
    is scarce, so costs and budget are 0.
    """

    def __init__(self, problem: ServeProblem, seed: int, gamma: float = GAMMA) -> None:
        super().__init__(problem, seed)
        self.gamma = checks.number("gamma", gamma, "[0, inf)")
        self._plays, self._kept = np.zeros((2, problem.num_llms))
        self._plays_before = 0.0  # the last update point

    def deploy(self, seen: Seen, targets: Ints) -> Ints:
        """Solve DeployOPT; a replica keeps its LLM if that stays deployed."""
        replicas, llms = len(targets), np.flatnonzero(self._arrived)
        columns = np.repeat(llms, replicas)
        answers = max(self._plays.sum() - self._plays_before, self._since_update) + seen.queue
        rate = answers / self.problem.update_every if self.slot else self.problem.arrival_rate
        gives = self.utilisation * self.service.throughput(self.places).mean(axis=0)
        hosted = np.bincount(targets[targets >= 0], minlength=self.problem.num_llms)
        found = deploy_opt(
            self.value()[columns],
            np.zeros(len(columns)),
            np.minimum(gives[columns] / max(rate, 1e-9), 1.0),
            0.0,
            replicas,
            samples=self._plays[columns],
            incumbent=np.tile(np.arange(replicas), len(llms)) < hosted[columns],
        )
        left = np.bincount(columns[found.deployed], minlength=self.problem.num_llms)
        chosen = np.full(replicas, -1)
        for replica, llm in enumerate(targets.tolist()):
            if llm >= 0 and left[llm]:
                chosen[replica], left[llm] = llm, left[llm] - 1
        chosen[chosen < 0] = np.repeat(np.arange(len(left)), left)
        self._since_update, self._plays_before = 0.0, self._plays.sum()
        return chosen

    def value(self) -> Floats:
        """Return mu^U, shape (N,)."""
        bounds = np.ones(self.problem.num_llms)
        for llm in np.flatnonzero(self._plays).tolist():
            plays = int(self._plays[llm])
            mean = self._kept[llm] / plays
            bounds[llm] = min(1.0, mean + 2.0 * confidence_radius(mean, plays, self.gamma))
        return bounds

    def learn(self, context: Array, llm: int, kept: bool) -> None:
        """Count answers."""
        super().learn(context, llm, kept)
        self._plays[llm] += 1
        self._kept[llm] += kept
