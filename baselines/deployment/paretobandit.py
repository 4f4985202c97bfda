"""ParetoBandit: LinUCB with forgetting, a price penalty and a budget pacer, under a stage filter.

arXiv 2604.00136; the rule written out, and the router of the authors' package
(`paretobandit`, Apache-2.0) as a peer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.deployment.base import StageAgent, features
from baselines.interface import Action, DeployProblem, Observation
from baselines.queueing.paretobandit import LEARNED
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.errors import needing

Floats = NDArray[np.float64]

PACED = ("lambda_t", "cost_ema", "n_observations")
"""Attributes of the package's pacer that change while it plays."""


@agent("ParetoBandit", source="arXiv 2604.00136")
class ParetoBandit(StageAgent):
    """The ParetoBandit rule: a disjoint LinUCB per LLM, cheaper LLMs preferred as money gets short.

    With z = (x, 1) for a query's context x (z = 1 without contexts), for t = 1, 2, ...:
      1. a newcomer with fewer than 20 plays answers (forced pulls);
      2. else argmax_m theta_m . z + alpha sqrt(z A_m^-1 z) - (lambda_c + lambda) c~_m, where
         c~_m is the price on a log scale from c1 (0) to c2 (1);
      3. forget, then learn: A <- f^dt A + z z^T, b <- f^dt b + r z, with f = 0.997 and dt the
         queries since m last learned; theta = A^-1 b;
      4. ema <- 0.95 ema + 0.05 cost;  lambda <- clip(lambda + 0.05 (ema / b - 1), 0, 5).
    (R) tau_k: LLMs that still have forced pulls to come are deployed first, then the others, each
    by the largest index at the mean context. (R) The price is the list price, or where none is
    published the mean cost paid (c1 before the first play). (R) lambda_c = 0: the pacer alone
    prices money.

    A step costs O(M d^2).

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the agent; the rule itself draws nothing.
    exploration : float
        Width of the confidence interval, alpha.
    forgetting : float
        Forgetting per query, f in (0, 1].
    forced_pulls : int
        Plays every newcomer gets.

    Raises
    ------
    ValueError
        If ``forgetting`` is not in (0, 1], or another setting negative.
    """

    def __init__(
        self,
        problem: DeployProblem,
        seed: int,
        exploration: float = 0.1,
        forgetting: float = 0.997,
        forced_pulls: int = 20,
    ) -> None:
        super().__init__(problem, seed)
        checks.number("exploration", exploration, "[0, inf)")
        checks.number("forgetting", forgetting, "(0, 1]")
        checks.count("forced_pulls", forced_pulls, 0)
        self.exploration, self.forgetting = exploration, forgetting
        self.forced_pulls = forced_pulls
        size, dim = problem.num_llms, problem.context_dim + 1
        self._gram = np.tile(np.eye(dim), (size, 1, 1))  # A_m
        self._inverse = self._gram.copy()
        self._moment = np.zeros((size, dim))  # b_m
        self._weights = np.zeros((size, dim))  # theta_m
        self._last = [0] * size
        self._price = [0.0] * size
        self._context_sum = np.zeros(dim)
        self._ema = problem.budget
        self.price_of_money = 0.0  # lambda

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Take the newcomers, then the largest indices."""
        self._price = observation["cost_prior"].tolist()
        seen = self._context_sum[-1]  # rated answers: under a delay fewer than queries
        mean = self._context_sum / seen if seen else features(observation)
        indices = dict(zip(arrived, self._indices(mean, arrived), strict=True))
        ranked = sorted(arrived, key=lambda llm: (self._known(llm), -indices[llm], llm))
        return ranked[: self.problem.max_deployed]

    def _known(self, llm: int) -> bool:
        return self.plays[llm] >= self.forced_pulls

    def route(self, observation: Observation) -> int:
        """Finish the forced pulls, then take the largest index."""
        llms = self.open_llms(observation)
        for llm in llms:
            if not self._known(llm):
                return llm
        return llms[int(np.argmax(self._indices(features(observation), llms)))]

    def _indices(self, z: Floats, llms: list[int]) -> list[float]:
        width = np.sqrt(np.einsum("d,mde,e->m", z, self._inverse[llms], z))
        means = self._weights[llms] @ z
        prices = [self.scaled_cost(self._price[llm] or self.cost[llm]) for llm in llms]
        indices = means + self.exploration * width - self.price_of_money * np.array(prices)
        return indices.tolist()  # type: ignore[no-any-return]

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Forget, learn, and move the price of money."""
        z = features(observation)
        self._context_sum += z
        kept = self.forgetting ** (self.query - self._last[llm])
        self._last[llm] = self.query
        # A unit ridge is kept, so that an LLM long unused stays invertible (R).
        eye = np.eye(z.size)
        self._gram[llm] = eye + kept * (self._gram[llm] - eye) + np.outer(z, z)
        self._moment[llm] = kept * self._moment[llm] + reward * z
        self._inverse[llm] = np.linalg.inv(self._gram[llm])
        self._weights[llm] = self._inverse[llm] @ self._moment[llm]
        self._ema += 0.05 * (cost - self._ema)
        step = 0.05 * (self._ema / self.problem.budget - 1.0)
        self.price_of_money = min(5.0, max(0.0, self.price_of_money + step))


@agent("paretobandit-router", source="package paretobandit")
class ParetoBanditPackage(StageAgent):
    """``pareto_bandit.BanditRouter`` with its ``BudgetPacer``, cold start, under a stage filter.

    The router is the package's own with its default settings, no prior (``priors="none"``) and
    precomputed features (x, 1); the pacer's target is b and it sees what was really paid.

    (R) An LLM is registered when it is first seen at an update point. Its price per million tokens
    is taken as its list price for a query of 1000 tokens; where none is published, the mean cost
    paid so far, and 1 USD before the first play.
    (R) tau_k: newcomers (fewer than 20 plays) are deployed first, then the others, each by the
    router's expected reward minus its price penalty at the context of now. Only deployed LLMs with
    throughput left are shown to the router.

    Raises
    ------
    ImportError
        If the package is not installed.
    """

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._seed = seed
        self._router = self._made_router()
        self._entries: dict[int, Any] = {}  # the registry entry of every LLM seen
        self._shown: list[int] = []
        self._logs: deque[Any] = deque()  # of the answers not rated yet

    def _made_router(self) -> Any:
        """Return a router that knows no LLM."""
        with needing('agent "paretobandit-router"', "the paretobandit package", "data"):
            from pareto_bandit import BanditRouter, FeatureService
            from pareto_bandit.budget_pacer import BudgetPacer
        logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
        return BanditRouter.create(
            model_registry={},
            priors="none",
            feature_service=FeatureService.for_precomputed(self.problem.context_dim + 1),
            bandit_seed=self._seed,
            budget_pacer=BudgetPacer(self.problem.budget),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is saved: of the router prices, what it has learned, answers not rated."""
        own = {k: v for k, v in self.__dict__.items() if k not in ("_router", "_entries", "_logs")}
        bandit, pacer = self._router.bandit, self._router.budget_pacer
        return own | {
            "_router_prices": {k: entry["input_cost_per_m"] for k, entry in self._entries.items()},
            "_router_learned": {name: getattr(bandit, name) for name in LEARNED},
            "_router_paced": {name: getattr(pacer, name) for name in PACED},
            "_router_logs": [(log.context_vector, log.selected_model) for log in self._logs],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the router anew and give it what the saved one knew."""
        from pareto_bandit.types import RoutingLog

        prices, logs = state.pop("_router_prices"), state.pop("_router_logs")
        learned, pacing = state.pop("_router_learned"), state.pop("_router_paced")
        self.__dict__.update(state)
        self._router, self._entries, self._logs = self._made_router(), {}, deque()
        for llm, price in prices.items():
            self._register(llm, price)
        for owner, known in ((self._router.bandit, learned), (self._router.budget_pacer, pacing)):
            for name, value in known.items():
                setattr(owner, name, value)
        if self._shown:
            self._show()
        for number, (context, name) in enumerate(logs):
            log = RoutingLog(f"saved-{number}", 0.0, "", name, 0.0, 0.0, 0.0, context)
            self._router.log_index[log.request_id] = log
            self._logs.append(log)

    def deploy(self, observation: Observation, arrived: list[int]) -> Sequence[int]:
        """Register newcomers and rank by the router's own estimates."""
        prices = observation["cost_prior"].tolist()
        for llm in arrived:
            self._register(llm, 1e3 * (prices[llm] or self.cost[llm]) or 1.0)
        self._shown = []
        z = features(observation)
        ranked = sorted(arrived, key=lambda llm: (self.plays[llm] >= 20, -self._worth(llm, z), llm))
        return ranked[: self.problem.max_deployed]

    def _register(self, llm: int, price: float) -> None:
        name = str(llm)
        if llm not in self._entries:
            self._router.register_model(name, input_cost_per_m=price, output_cost_per_m=price)
            self._entries[llm] = self._router.registry[name]
        elif self._entries[llm]["input_cost_per_m"] != price:
            self._router.registry[name] = self._entries[llm]
            self._router.update_model_pricing(name, input_cost_per_m=price, output_cost_per_m=price)

    def _worth(self, llm: int, z: Floats) -> float:
        router = self._router
        router.registry[str(llm)] = self._entries[llm]
        price = router.cost_penalty + router.budget_pacer.lambda_t
        reward = float(router.bandit.get_expected_reward(str(llm), z))
        penalty: float = price * router._get_normalized_cost(str(llm))
        return reward - penalty

    def route(self, observation: Observation) -> int:
        """Show the router the deployed LLMs that may still answer."""
        llms = self.open_llms(observation)
        if llms != self._shown:
            self._shown = llms
            self._show()
        name, log = self._router.route(features(observation))
        self._logs.append(log)
        return int(name)

    def _show(self) -> None:
        self._router.registry.clear()
        self._router.registry.update({str(llm): self._entries[llm] for llm in self._shown})

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from the step; a query the router sent but nobody answered is not reported."""
        if info["llm"] < 0 and self.deployed:
            self._logs.pop()
        super().update(observation, action, reward, next_observation, info)

    def learn(self, observation: Observation, llm: int, reward: float, cost: float) -> None:
        """Report the answer and what was paid to the router."""
        log = self._logs.popleft()
        log.cost_usd = cost
        self._router.process_feedback(log.request_id, reward)
