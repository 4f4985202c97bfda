"""What an agent would have earned on a log: trained on its first part, judged on the second.

See `benchmarks.score.off_policy` for the estimators and `llmqueue_gym.workloads.sources.logs` for
the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from baselines.interface import Agent, QueueProblem
from baselines.registry import make_agent, player
from benchmarks.score.intervals import Floats, Interval, t_interval
from benchmarks.score.off_policy import (
    FOLDS,
    cross_fitted_propensities,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    ips,
    self_normalised,
    weight_miss,
    within,
)
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import OfflineData
from llmqueue_gym.workloads.sources.log_file import Log
from llmqueue_gym.workloads.sources.logs import fit_outcomes

ESTIMATES = "ips", "self-normalised", "doubly robust"
"""Estimators, in the order of the table."""

FEW = 50
"""Effective requests below which a result comes with a warning."""

MIN_SUPPORT = 2 * FOLDS
"""Judged requests an LLM needs for its propensity to be estimated."""

REFUSED_MISS, REFUSED_OUTSIDE = 0.25, 0.5
"""No estimate is given if the weights miss 1, or choices lie outside what is known, by so much."""


class Evaluation(NamedTuple):
    """Off-policy value of an agent: mean reward a request, in the log's unit.

    Attributes
    ----------
    agent : str
        Its name.
    estimates : Mapping of Interval
        ``ips``, ``self-normalised`` and ``doubly robust``, within the rewards' range; NaN where the
        log cannot tell.
    logged : Interval
        Mean reward of whoever logged, on the same requests.
    usd : Interval, optional
        Mean cost a request, doubly robust; None where the log has no costs.
    gain, usd_gain : Interval
        Reward and cost a request beyond the log's own, paired by request and doubly robust.
    effective : float
        Effective number of requests behind the weights.
    mean_weight, largest_weight : float
        Mean and largest importance weight; the mean should be 1.
    outside : float
        Share of the agent's choices that fall on LLMs without support. They are left out: its other
        choices are judged in their place.
    warnings : tuple of str
        What speaks against the estimates, or why there are none.
    policy : ndarray, shape (n, N)
        Probability with which the agent picks every LLM on the evaluated requests.
    trained_on : int
        Requests of the first part that the agent learned from.
    """

    agent: str
    estimates: Mapping[str, Interval]
    logged: Interval
    usd: Interval | None
    gain: Interval
    usd_gain: Interval | None
    effective: float
    mean_weight: float
    largest_weight: float
    outside: float
    warnings: tuple[str, ...]
    policy: Floats
    trained_on: int


class Prepared(NamedTuple):
    """A log made ready for evaluation: contexts, its two parts, propensities, outcome model."""

    log: Log
    contexts: NDArray[np.float32]
    train: NDArray[np.int64]
    judge: NDArray[np.int64]
    reward: Floats  # (n,) less weighted cost
    propensity: Floats  # (len(judge),)
    estimated: bool
    predicted: Floats  # (n, N) rewards of the outcome model
    price: Floats  # (N,) mean cost, USD, on the first part
    supported: NDArray[np.bool_]  # (N,) LLMs of which the judged requests tell something
    notes: tuple[str, ...]


def prepare(
    log: Log,
    contexts: NDArray[np.float32],
    train_share: float = 0.5,
    cost_weight: float = 0.0,
) -> Prepared:
    """Split a log and fit on its first part what evaluating on the second needs.

    Parameters
    ----------
    log : Log
        In order: the first part trains, the second judges.
    contexts : ndarray, shape (n, d)
        Contexts of its requests.
    train_share : float
        Size of the first part, in (0, 1).
    cost_weight : float
        Reward given up per USD.

    Raises
    ------
    ValueError
        If an argument is out of range or a part is too small.
    """
    if not 0.0 < train_share < 1.0:
        raise UsageError(f"train_share={train_share!r} must lie between 0 and 1")
    if checks.number("cost_weight", cost_weight, "[0, inf)") and log.cost is None:
        raise UsageError(f"cost_weight={cost_weight!r} needs costs, and {log.path} has none")
    cut = round(train_share * len(log))
    train, judge = np.arange(cut), np.arange(cut, len(log))
    if min(len(train), len(judge)) < 10:
        raise UsageError(
            f"{log.path}: {len(train)} requests to train on and {len(judge)} to judge by are too "
            "few; give a longer log"
        )
    if np.ptp(log.reward[train]) == 0.0 and log.reward[0] in (0.0, 1.0):
        what = "kept" if log.reward[0] else "not kept"
        raise UsageError(
            f"{log.path}: all answers of the first {len(train)} requests are {what}, so nothing "
            f"can be learned from them. {' '.join(f'({note})' for note in log.notes)}".rstrip()
        )
    supported, notes = _support(log, train, judge)
    judge = judge[supported[log.llm[judge]]]
    cost = np.zeros(len(log)) if log.cost is None else log.cost
    model = fit_outcomes(log, contexts, train)
    return Prepared(
        log,
        contexts,
        train,
        judge,
        log.reward - cost_weight * cost,
        cross_fitted_propensities(contexts[judge], log.llm[judge])
        if log.propensity is None
        else log.propensity[judge],
        log.propensity is None,
        model.rates(contexts) - cost_weight * model.cost,
        model.cost,
        supported,
        notes,
    )


def _support(
    log: Log, train: NDArray[np.int64], judge: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Which LLMs the judged requests tell of, and what to say of the others."""
    counts = np.bincount(log.llm[judge], minlength=len(log.llms))
    before = np.bincount(log.llm[train], minlength=len(log.llms))
    supported = counts >= (MIN_SUPPORT if log.propensity is None else 1)
    notes = []
    for name, count, earlier, known in zip(log.llms, counts, before, supported, strict=True):
        if not known:
            notes.append(
                f"{name} answers {count or 'none'} of the judged requests, too few to tell: "
                "it is left out of the agents' choices"
                + (", and its requests are not judged" if count else "")
            )
        elif not earlier:
            notes.append(f"{name} answers first in the judged part: agents have not seen it before")
    if supported.sum() < 2 or counts[supported].sum() < 2 * MIN_SUPPORT:
        told = ", ".join(f"{log.llms[j]} {counts[j]}" for j in np.flatnonzero(counts))
        raise UsageError(
            f"{log.path}: only requests answered by different LLMs tell what another choice is "
            f"worth, and of the judged ones these answer: {told}; give a log in which the LLMs "
            "answer side by side, or another train_share"
        )
    return supported, tuple(notes)


def evaluate(
    data: Prepared,
    name: str,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    draws: int = 10,
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Train an agent on the first part of a log, freeze it, and estimate its value on the second.

    The agent meets one request at a time, K = 1. On the first part it learns by replay (Li et al.,
    WSDM 2011): where its choice is the logged one it is told what the user did, elsewhere nothing
    happens. Agents of the protocol ``pretrained`` are given the contexts of the first part with the
    utilities of the outcome model fitted on it, less the weighted cost. On the second part it
    learns nothing, and its probabilities are the shares of ``draws`` decisions, which leaves the
    estimates unbiased.

    Parameters
    ----------
    data : Prepared
        See `prepare`.
    name : str
        Registered agent, or ``"module:Class"``.
    settings : mapping, optional
        Its settings.
    seed : int
        Seed of the agent and of the answers drawn from scores.
    draws : int
        Decisions a request.
    advance : callable
        Called after every request of the log.
    """
    checks.count("draws", draws)
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
    trained_on = _replay(agent, data, np.random.default_rng([seed, len(log)]), advance)
    policy = np.zeros((len(data.judge), len(log.llms)))
    for row, request in enumerate(data.judge):
        for _ in range(draws):
            policy[row, int(agent.act(_observation(contexts[request]))[1])] += 1.0 / draws
        advance()
    policy /= policy.sum(axis=1, keepdims=True)  # shares of draws add up to 1 but for rounding
    return judge_policy(data, policy, name, trained_on)


def judge_policy(data: Prepared, policy: Floats, name: str, trained_on: int = 0) -> Evaluation:
    """Estimate the value of a policy, (len(data.judge), N) probabilities that add up to 1."""
    inside = policy[:, data.supported].sum(axis=1)
    outside = 1.0 - float(inside.mean())
    told = inside > 0.0
    requests, chances = data.judge[told], policy[told] * data.supported / inside[told, None]
    rows, llm = np.arange(len(requests)), data.log.llm[requests]
    reward, predicted = data.reward[requests], data.predicted[requests]
    weight = importance_weights(chances[rows, llm].clip(0.0, 1.0), data.propensity[told])
    expected = (chances * predicted).sum(axis=1)
    spare = data.reward[data.judge] - data.log.reward[data.judge]  # less the weighted cost
    low, high = float(spare.min()), 1.0 + float(spare.max())
    refusal = _refusal(weight, outside)
    nothing = Interval(np.nan, -np.inf, np.inf)
    gain, usd_gain = nothing, None
    if refusal:
        found = dict.fromkeys(ESTIMATES, nothing)
    else:
        model = predicted[rows, llm], expected
        estimates = (
            ips(reward, weight, data.estimated),
            self_normalised(reward, weight),
            doubly_robust(reward, weight, *model, data.estimated),
        )
        found = {
            key: within(estimate, low, high)
            for key, estimate in zip(ESTIMATES, estimates, strict=True)
        }
        beyond = expected - reward
        gain = doubly_robust(reward, weight, predicted[rows, llm], beyond, data.estimated)
        gain = within(gain, low - high, high - low)
    effective = effective_sample_size(weight)
    usd = None
    if data.log.cost is not None:
        cost, price = data.log.cost[requests], data.price
        usd, usd_gain = Interval(np.nan, 0.0, np.inf), nothing
        if not refusal:
            mean, most = chances @ price, float(data.log.cost.max())
            usd = doubly_robust(cost, weight, price[llm], mean, data.estimated)
            usd = within(usd, 0.0, most)
            usd_gain = doubly_robust(cost, weight, price[llm], mean - cost, data.estimated)
            usd_gain = within(usd_gain, -most, most)
    return Evaluation(
        name,
        found,
        within(t_interval(data.reward[data.judge]), low, high),
        usd,
        gain,
        usd_gain,
        effective,
        float(weight.mean()) if weight.size else 0.0,
        float(weight.max(initial=0.0)),
        outside,
        (refusal,) if refusal else _doubts(found, weight, effective, outside),
        policy,
        trained_on,
    )


def _refusal(weight: Floats, outside: float) -> str:
    """Why the log tells nothing of a policy; empty if it does."""
    if outside >= REFUSED_OUTSIDE or not weight.size:
        return f"no estimate: {outside:.0%} of its choices are LLMs of which the log cannot tell"
    if weight_miss(weight) > REFUSED_MISS:
        return (
            "no estimate: its choices and the logged ones do not overlap (the weights average "
            f"{weight.mean():.2f} in place of 1)"
        )
    return ""


def _doubts(
    found: Mapping[str, Interval], weight: Floats, effective: float, outside: float
) -> tuple[str, ...]:
    doubts = []
    if outside > 0.0:
        doubts.append(
            f"{outside:.1%} of its choices are LLMs of which the log cannot tell; the others are "
            "judged in their place"
        )
    if weight_miss(weight):
        doubts.append(
            "its choices and the logged ones overlap in part only (the weights average "
            f"{weight.mean():.2f} in place of 1): trust no estimate of it"
        )
    if effective < FEW:
        doubts.append(
            f"it seldom does what was logged ({effective:.0f} effective requests): trust no "
            "estimate of it"
        )
    for key, interval in found.items():
        if not np.isfinite(interval.value):
            doubts.append(f"{key} lies outside what rewards can be, and is left out")
    return tuple(doubts)


def _replay(
    agent: Agent, data: Prepared, rng: np.random.Generator, advance: Callable[[], object]
) -> int:
    """Let the agent learn where it agrees with the log; return how often that was."""
    log, agreed = data.log, 0
    for request in data.train:
        advance()
        observation = _observation(data.contexts[request])
        action = agent.act(observation)
        llm = int(log.llm[request])
        if int(action[1]) != llm:
            continue
        kept = bool(rng.random() < log.reward[request])
        following = _observation(data.contexts[request], 2 + llm if kept else 1)
        info = {
            "arrived": True,
            "served": True,
            "departed": kept,
            "retried": not kept,
            "kept_llm": llm if kept else -1,
            "queue_length": 1,
        }
        agent.update(observation, action, float(kept), following, info)
        agreed += 1
    return agreed


def _observation(context: NDArray[np.float32], feedback: int = 0) -> dict[str, Any]:
    """Return what LLMQueue-v0 shows of a queue of one fresh query, W = 1."""
    zero = np.zeros(1, np.float32)
    return {
        "contexts": context[None].copy(),
        "waiting": np.ones(1, np.int8),
        "retrials": zero,
        "age": zero,
        "wait": zero,
        "queue_length": np.ones(1, np.float32),
        "feedback": np.int64(feedback),
    }
