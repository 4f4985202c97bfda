"""What an agent would have earned on a log: trained on its first part, judged on the second.

See `benchmarks.score.off_policy` for the estimators and `llmqueue_gym.workloads.sources.logs` for
the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.interface import DeployProblem
from benchmarks.score.intervals import LEVEL, Floats, Interval, t_interval
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
from benchmarks.score.replay import agent_kind, frozen_choices, play_paced, train
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
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
    budget: float | None = None,
) -> Evaluation:
    """Train an agent on the first part of a log, freeze it, and estimate its value on the second.

    The agent meets one request at a time, K = 1. On the first part it learns by replay (Li et al.,
    WSDM 2011): where its choice is the logged one it is told what the user did, elsewhere nothing
    happens. Agents of the protocol ``pretrained`` are given the contexts of the first part with the
    utilities of the outcome model fitted on it, less the weighted cost. On the second part it
    learns nothing, and its probabilities are the shares of ``draws`` decisions, which leaves the
    estimates unbiased. Agents of deployment tasks play the whole log under the budget
    (`benchmarks.score.replay.play_paced`).

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
    budget : float, optional
        USD a request, which agents of deployment tasks keep.
    """
    if agent_kind(name) == DeployProblem.kind:
        policy, trained_on, _ = play_paced(data, name, budget, settings, seed, draws, advance)
        return judge_policy(data, policy, name, trained_on)
    agent, trained_on = train(data, name, settings, seed, advance)
    return judge_policy(data, frozen_choices(data, agent, draws, advance), name, trained_on)


def judge_policy(data: Prepared, policy: Floats, name: str, trained_on: int = 0) -> Evaluation:
    """Estimate the value of a policy, (len(data.judge), N) probabilities that add up to 1."""
    told, chances = _told(data, policy)
    outside = 1.0 - float(policy[:, data.supported].sum(axis=1).mean())
    requests, chances = data.judge[told], chances[told]
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


def _told(data: Prepared, policy: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Tell which requests the log tells of, and a policy's probabilities over LLMs it tells of."""
    inside = policy[:, data.supported].sum(axis=1)
    return inside > 0.0, policy * data.supported / np.where(inside > 0.0, inside, 1.0)[:, None]


def lead(
    data: Prepared, first: Floats, second: Floats | None = None, level: float = LEVEL
) -> Interval:
    """Reward a request of one policy beyond another's, paired by request and doubly robust.

    Parameters
    ----------
    data : Prepared
        See `prepare`.
    first, second : ndarray, shape (len(data.judge), N)
        Probabilities of the policies; without ``second`` the other is whoever logged.
    level : float
        Of the interval.
    """
    own, chances = _told(data, first)
    other, others = (own, None) if second is None else _told(data, second)
    told = own & other
    requests = data.judge[told]
    llm, rows = data.log.llm[requests], np.arange(len(requests))
    logged = data.predicted[requests, llm]
    beyond, error = np.zeros(len(requests)), 0.0
    for sign, shares in ((1.0, chances), (-1.0, others)):
        if shares is None:
            beyond += sign * data.reward[requests]
            continue
        weight = importance_weights(shares[told][rows, llm].clip(0.0, 1.0), data.propensity[told])
        correction = weight * (data.reward[requests] - logged)
        beyond += sign * ((shares[told] * data.predicted[requests]).sum(axis=1) + correction)
        if data.estimated and weight.any():
            error += sign * (weight.mean() - 1.0) * float(correction.sum() / weight.sum())
    found = t_interval(beyond, level)
    half = float(np.hypot(found.high - found.value, error))
    return Interval(found.value, found.value - half, found.value + half)


def under_budget(found: Evaluation, budget: float) -> tuple[bool | None, Interval]:
    """Tell whether a policy keeps a budget, and what it earns before the money is gone.

    Kept or exceeded is what the interval of the spending leaves no doubt of, None all else. Where
    the estimated spending is above the budget, only the share of the requests that the money
    suffices for earns something.
    """
    usd = found.usd or Interval(np.nan, -np.inf, np.inf)
    kept = True if usd.high <= budget else False if usd.low > budget else None
    share = min(1.0, budget / usd.value) if usd.value > 0.0 else 1.0
    return kept, Interval(*(share * part for part in found.estimates["doubly robust"]))


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
