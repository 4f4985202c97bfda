"""Agents on a log: how they learn from its first part, and what they choose on the second.

What their choices would have earned is `benchmarks.score.logged`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.special import logit

from baselines.interface import Agent, DeployAgent, DeployProblem, QueueProblem
from baselines.registry import agent_spec, make_agent, player
from benchmarks.score.intervals import Floats
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.live import live_info, live_observation
from llmqueue_gym.workloads.pool import OfflineData

if TYPE_CHECKING:
    from benchmarks.score.logged import Prepared

KINDS = QueueProblem.kind, DeployProblem.kind
"""Kinds of agents that a log can judge."""

PACED_OVER, STAGE = 1_000_000, 100
"""Requests that a deployment agent spreads its money over, and of one of its stages."""


def agent_kind(name: str) -> str:
    """Return the kind of tasks that an agent plays, which a log must be able to judge."""
    kind = str(getattr(agent_spec(name).load(), "kind", QueueProblem.kind))
    if kind not in KINDS:
        raise UsageError(f"agent={name!r} plays {kind} tasks; a log judges {' and '.join(KINDS)}")
    return kind


# --- agents of queueing tasks ---------------------------------------------------------------------


def train(
    data: Prepared,
    name: str,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Agent, int]:
    """Return the agent that learned on the first part, and from how many requests.

    See `benchmarks.score.logged.evaluate`.
    """
    log, contexts = data.log, data.contexts
    offline = None
    if getattr(player(name, QueueProblem.kind), "protocol", "online") == "pretrained":
        offline = OfflineData(
            contexts[data.train], logit(data.predicted[data.train].clip(0.01, 0.99))
        )
    problem = QueueProblem(
        len(log.llms), 1, contexts.shape[1], 1, 1.0, max(1, len(data.train)), offline
    )
    agent = make_agent(name, problem, seed, **(settings or {}))
    return agent, _replay(agent, data, np.random.default_rng([seed, len(log)]), advance)


def frozen_choices(
    data: Prepared, agent: Agent, draws: int = 10, advance: Callable[[], object] = lambda: None
) -> Floats:
    """Return the shares of an agent's choices on the judged requests, of which it learns nothing.

    Parameters
    ----------
    data, agent, advance
        See `benchmarks.score.logged.evaluate`.
    draws : int
        Decisions a request.
    """
    checks.count("draws", draws)
    policy = np.zeros((len(data.judge), len(data.log.llms)))
    for row, request in enumerate(data.judge):
        observation = live_observation(data.contexts[[request]])
        for _ in range(draws):
            policy[row, int(agent.act(observation)[1])] += 1.0 / draws
        advance()
    policy /= policy.sum(axis=1, keepdims=True)  # shares of draws add up to 1 but for rounding
    return policy


def _replay(
    agent: Agent, data: Prepared, rng: np.random.Generator, advance: Callable[[], object]
) -> int:
    """Let the agent learn where it agrees with the log; return how often that was."""
    log, agreed = data.log, 0
    for request in data.train:
        advance()
        observation = live_observation(data.contexts[[request]])
        action = agent.act(observation)
        llm = int(log.llm[request])
        if int(action[1]) != llm:
            continue
        kept = bool(rng.random() < log.reward[request])
        feedback = 2 + llm if kept else 1
        following = live_observation(data.contexts[[request]], feedback=feedback)
        agent.update(observation, action, float(kept), following, live_info(llm, kept))
        agreed += 1
    return agreed


# --- agents of deployment tasks -------------------------------------------------------------------


def play_paced(
    data: Prepared,
    name: str,
    budget: float | None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    draws: int = 10,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Floats, int, DeployAgent]:
    """Have a deployment agent answer a whole log under a budget; return what it chose.

    All LLMs of which the judged requests tell are there from the start and may all be deployed,
    without caps; the list price of an LLM is its mean cost in the first part. The agent answers
    every request, so that what it spends is its own doing. On the first part it is told what the
    log says where its choice is the logged one; everywhere else, and on all of the second part,
    an outcome drawn from the outcome model, at the list price. So its choices on the second part
    never depend on what came of those requests there, which is what the estimators ask for. Money
    is paced over `PACED_OVER` requests, of which the log is the beginning: the log's end is no
    reason to save or to spend. Where the outcome model is wrong the agent has learned what is
    wrong; its choices are judged by the log all the same.

    Parameters
    ----------
    data, name, settings, seed, advance
        See `benchmarks.score.logged.evaluate`.
    budget : float
        USD a request.
    draws : int
        Runs, each with a seed of its own; a policy is the share of the runs that choose an LLM.

    Returns
    -------
    policy : ndarray, shape (len(data.judge), N)
    trained_on : int
        Requests of which an agent was told what the log says, mean over runs.
    agent : DeployAgent
        That of the first run.

    Raises
    ------
    UsageError
        If there is no budget, or the log has no costs.
    """
    checks.count("draws", draws)
    if budget is None:
        raise UsageError(f"budget=None: agent {name!r} needs a budget, USD a request (--budget)")
    check_budget(data, budget)
    runs = [_Paced(data, name, budget, settings, seed + run) for run in range(draws)]
    policy = np.zeros((len(data.judge), len(data.log.llms)))
    for request in data.train:
        for run in runs:
            run.answer(int(request), judged=False)
        advance()
    for row, request in enumerate(data.judge):
        for run in runs:
            policy[row, run.answer(int(request), judged=True)] += 1.0 / draws
        advance()
    policy /= policy.sum(axis=1, keepdims=True)
    return policy, round(np.mean([run.agreed for run in runs])), runs[0].agent


def check_budget(data: Prepared, budget: float) -> None:
    """Refuse a budget that no LLM keeps, and one where the log has no costs."""
    checks.number("budget", budget, "(0, inf)", " (USD a request)")
    if data.log.cost is None or not data.price[data.supported].max() > 0.0:
        raise UsageError(f"budget={budget!r} needs costs, and {data.log.path} has none")
    prices = np.where(data.supported, data.price, np.inf)
    if prices.min() > budget:
        raise UsageError(
            f"budget={budget!r} is below what the cheapest LLM costs, "
            f"{data.log.llms[int(prices.argmin())]} at {prices.min():.3g} USD a request; raise it"
        )


class _Paced:
    """One run of a deployment agent over a log, and what its gateway counts."""

    def __init__(
        self,
        data: Prepared,
        name: str,
        budget: float,
        settings: Mapping[str, Any] | None,
        seed: int,
    ) -> None:
        log, size = data.log, len(data.log.llms)
        assert log.cost is not None
        paid = log.cost[data.train]
        problem = DeployProblem(
            num_llms=size,
            max_deployed=size,
            horizon=PACED_OVER,
            num_stages=PACED_OVER // STAGE,
            budget=budget,
            alpha=(1.0,) * size,
            cost_low=float(paid.min()),
            cost_high=float(paid.max()),
            context_dim=data.contexts.shape[1],
            has_prices=True,
        )
        self.agent = cast("DeployAgent", make_agent(name, problem, seed, **(settings or {})))
        self.agreed, self.spent, self.query = 0, 0.0, 0
        self._data, self._budget = data, budget
        self._rng = np.random.default_rng([seed, len(log)])
        self._count, self._gained, self._paid = np.zeros((3, size))

    def answer(self, request: int, judged: bool) -> int:
        """Have the agent answer a request and tell it what came of it; return the LLM it chose."""
        log, observation = self._data.log, self._observation(request)
        action = self.agent.act(observation)
        llm = int(action[-1])
        rate, cost = float(self._data.predicted[request, llm]), float(self._data.price[llm])
        if not judged and llm == log.llm[request] and log.cost is not None:
            self.agreed += 1
            rate, cost = float(self._data.reward[request]), float(log.cost[request])
        reward = float(self._rng.random() < rate)
        self.query += 1
        self.spent += cost
        self._count[llm] += 1
        self._gained[llm] += reward
        self._paid[llm] += cost
        info = {
            "llm": llm,
            "rated_llm": llm,
            "rated_reward": reward,
            "ledger_reward": reward,
            "cost": cost,
            "switching_cost": 0.0,
            **dict.fromkeys(("refused", "throttled", "projected", "over_budget"), False),
            "arrived_now": np.zeros(len(log.llms), np.bool_),
            "spend": self.spent,
        }
        following = self._observation(min(request + 1, len(log) - 1))
        self.agent.update(observation, action, reward, following, info)
        return llm

    def _observation(self, request: int) -> dict[str, Any]:
        """Return what LLMDeploy-v0 shows before a request."""
        data, played = self._data, np.maximum(self._count, 1.0)
        total = self._budget * PACED_OVER
        left = (total - self.spent) / max(1, PACED_OVER - self.query) / self._budget
        there = data.supported.astype(np.int8)
        return {
            "arrived": there,
            "deployed": there,
            "cost_prior": (data.price * there).astype(np.float32),
            "count": self._count.astype(np.float32),
            "mean_reward": (self._gained / played).astype(np.float32),
            "mean_cost": (self._paid / played).astype(np.float32),
            "throughput_left": there.astype(np.float32),
            "deploy_now": np.int64(self.query % STAGE == 0),
            "stage_progress": np.array([self.query % STAGE / STAGE], np.float32),
            "query_progress": np.array([self.query / PACED_OVER], np.float32),
            "spent": np.array([self.spent / total], np.float32),
            "budget_left": np.array([left], np.float32),
            "context": data.contexts[request].copy(),
        }
