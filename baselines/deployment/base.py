"""What deployment agents share: plays so far, the frozen deployment, drawing an LLM from shares.

An agent deploys LLMs at update points and sends every query to one of the deployed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.interface import Action, DeployAgent, DeployProblem, Observation
from llmqueue_gym.deployment.routing import RouteOpt, deploy_opt

_CHEAPEST = 1e-9  # least c1 in units of c2


def features(observation: Observation) -> NDArray[np.float64]:
    """Return z = (x, 1) of a query with context x, or (1) without contexts."""
    if "context" not in observation:
        return np.ones(1)
    return np.append(observation["context"].astype(np.float64), 1.0)


class StageAgent(DeployAgent):
    """An agent that deploys, routes and counts; subclasses say what to deploy and how to route.

    (R) Routing never exceeds the throughput left in the stage, so no query is refused by a rate
    limit: an LLM at its cap is passed over. (R) Agents take c1 as at least c2 / 10^9, so that free
    queries do not make an LLM infinitely good value.

    Attributes
    ----------
    plays, reward, cost : list
        Number of answers of each LLM and their mean reward and cost (USD), N entries each. They
        persist while an LLM is not deployed.
    query : int
        Queries answered so far, t.
    spent : float
        Money spent so far, USD.
    deployed : list of int
        LLMs of the current stage, in increasing order.
    """

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        floor = _CHEAPEST * problem.cost_high
        problem = replace(problem, cost_low=max(problem.cost_low, floor))
        super().__init__(problem, seed)
        size = problem.num_llms
        self.plays = [0] * size
        self.reward = [0.0] * size
        self.cost = [0.0] * size
        self.query = 0
        self.spent = 0.0
        self.deployed: list[int] = []
        self._bits = np.zeros(size + 1, dtype=np.int64)
        self._unrated: deque[tuple[Observation, int, float]] = deque()

    def act(self, observation: Observation) -> Action:
        """Return N deployment bits and the LLM that answers, shape (N + 1,)."""
        if observation["deploy_now"]:
            arrived: list[int] = np.flatnonzero(observation["arrived"]).tolist()
            self.deployed = sorted(self.deploy(observation, arrived)) if arrived else []
            self._bits[:] = 0
            self._bits[self.deployed] = 1
        action = self._bits.copy()
        action[-1] = self.route(observation) if self.deployed else 0
        return action

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Pay the answer; count it when its reward is seen, which is at once without a delay."""
        self.query += 1
        self.spent = float(info["spend"])
        answered = int(info["llm"])
        if answered >= 0:
            self._unrated.append((observation, answered, float(info["cost"])))
        if info["rated_llm"] < 0:
            return
        seen, llm, cost = self._unrated.popleft()
        self.plays[llm] = plays = self.plays[llm] + 1
        rated = float(info["rated_reward"])
        self.reward[llm] += (rated - self.reward[llm]) / plays
        self.cost[llm] += (cost - self.cost[llm]) / plays
        self.learn(seen, llm, rated, cost)

    @abstractmethod
    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Choose at most M_max of the arrived LLMs for the stage that starts now."""

    @abstractmethod
    def route(self, observation: Observation) -> int:
        """Choose the deployed LLM that answers the query."""

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Learn from one answer to ``observation``; the statistics above already count it."""

    @property
    def pace(self) -> float:
        """Money left per query left, USD: b_t = max(0, (bT - spent) / (T - t))."""
        problem = self.problem
        left = problem.budget * problem.horizon - self.spent
        return max(0.0, left / max(1, problem.horizon - self.query))

    def draw(self, observation: Observation, shares: Sequence[float]) -> int:
        """Draw a deployed LLM with the probabilities ``shares``, given in the order of deployed."""
        llm = self.pick(self.deployed, shares)
        if observation["throughput_left"][llm] > 0.0:
            return llm
        return self.next_open(observation, shares, llm)

    def next_open(self, observation: Observation, shares: Sequence[float], llm: int) -> int:
        """Return the deployed LLM of largest share that may take queries, ``llm`` if none may."""
        left = observation["throughput_left"]
        ranked = sorted(zip(shares, self.deployed, strict=True), reverse=True)
        return next((other for _, other in ranked if left[other] > 0.0), llm)

    def pick(self, llms: Sequence[int], shares: Sequence[float]) -> int:
        """Draw one of the LLMs with the probabilities ``shares``."""
        point = self.rng.random()
        for place, share in enumerate(shares):
            point -= share
            if point < 0.0:
                return llms[place]
        return llms[-1]

    def top(self, arrived: Iterable[int], worth: Callable[[int], float]) -> list[int]:
        """Return the M_max LLMs worth most, the least played among equals, then by index."""
        ranked = sorted(arrived, key=lambda llm: (-worth(llm), self.plays[llm], llm))
        return ranked[: self.problem.max_deployed]

    def scaled_cost(self, cost: float) -> float:
        """Return a cost on a log scale from c1 (0) to c2 (1); 0 if all costs are equal."""
        low, high = self.problem.cost_low, self.problem.cost_high
        if high <= low:
            return 0.0
        return math.log(min(max(cost, low), high) / low) / math.log(high / low)

    def open_llms(self, observation: Observation) -> list[int]:
        """Deployed LLMs that may still take queries in this stage; all of them if none may."""
        left = observation["throughput_left"]
        return [llm for llm in self.deployed if left[llm] > 0.0] or self.deployed


class LPAgent(StageAgent):
    """Deploy by DeployOPT and route by RouteOPT, on whatever estimates a subclass provides.

    For k = 1, ..., K (update point tau_k):
      1. solve DeployOPT over the arrived LLMs with their estimates (mu_m, c_m); deploy {z = 1};
      for every query of the stage:
      2. solve RouteOPT over the deployed with the estimates of now; send it to m ~ p*;
      3. observe reward and cost; update the estimates of m.

    (R) Infeasible programmes: see `llmqueue_gym.deployment.routing`; where no shares meet the
    budget the cheapest fill is played and ``violations`` counts it.
    """

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.violations = 0
        self._solver = RouteOpt([1.0], [0.0], 1.0, 0.0)

    @abstractmethod
    def estimates(self, llm: int) -> tuple[float, float]:
        """Return the reward and the cost (USD) of an LLM that the programmes are solved with."""

    def budget(self) -> float:
        """Return the budget of the next query, USD."""
        return self.problem.budget

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Solve DeployOPT and hand the deployed LLMs to RouteOPT."""
        rewards, costs = zip(*map(self.estimates, arrived), strict=True)
        chosen = sorted(self.select(arrived, rewards, costs))
        rows = [arrived.index(llm) for llm in chosen]
        self._solver = RouteOpt(
            [rewards[i] for i in rows],
            [costs[i] for i in rows],
            [self.problem.alpha[llm] for llm in chosen],
            self.budget(),
        )
        return chosen

    def select(
        self, arrived: list[int], rewards: Sequence[float], costs: Sequence[float]
    ) -> list[int]:
        """Choose the LLMs to deploy from the estimates of the arrived ones."""
        best = deploy_opt(
            rewards,
            costs,
            [self.problem.alpha[llm] for llm in arrived],
            self.budget(),
            self.problem.max_deployed,
            samples=[self.plays[llm] for llm in arrived],
            incumbent=[llm in self.deployed for llm in arrived],
        )
        return [arrived[i] for i in np.flatnonzero(best.deployed)]

    def route(self, observation: Observation) -> int:
        """Solve RouteOPT and draw from its shares."""
        solver = self._solver
        solver.budget = self.budget()
        llm = self.deployed[solver.draw(self.rng.random())]
        if solver.status == "over_budget":
            self.violations += 1
        if observation["throughput_left"][llm] > 0.0:
            return llm
        return self.next_open(observation, solver.p, llm)

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Refresh the estimates of the LLM that answered."""
        if llm in self.deployed:
            mu, cost = self.estimates(llm)
            self._solver.set_bounds(self.deployed.index(llm), mu, cost)
