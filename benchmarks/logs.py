"""``llmqueue-bench logs``: what a log holds, and what an agent would have earned on its requests.

See `benchmarks.off_policy` for the estimators and `llmqueue_gym.workloads.sources.logs` for the
schema.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from baselines.agent import Agent, QueueProblem, agent_spec, make_agent
from benchmarks.intervals import Floats, Interval, t_interval
from benchmarks.off_policy import (
    doubly_robust,
    effective_sample_size,
    importance_weights,
    ips,
    self_normalised,
)
from llmqueue_gym.workloads.embeddings import read_contexts
from llmqueue_gym.workloads.pool import OfflineData, check_cost_weight, check_count
from llmqueue_gym.workloads.sources.logs import (
    Log,
    describe_log,
    fit_outcomes,
    judge_outcomes,
    read_log,
)

SMALLEST_PROPENSITY = 1e-3
"""Estimated propensities are kept above; logged ones are taken as they are."""

FEW = 50
"""Effective requests below which a result comes with a warning."""


class Evaluation(NamedTuple):
    """Off-policy value of an agent: mean reward a request, in the log's unit.

    Attributes
    ----------
    agent : str
        Its name.
    estimates : Mapping of Interval
        ``ips``, ``self-normalised`` and ``doubly robust``.
    logged : Interval
        Mean reward of whoever logged, on the same requests.
    effective : float
        Effective number of requests behind the weights.
    largest_weight : float
        Largest importance weight.
    policy : ndarray, shape (n, N)
        Probability with which the agent picks every LLM on the evaluated requests.
    trained_on : int
        Requests of the first part that the agent learned from.
    """

    agent: str
    estimates: Mapping[str, Interval]
    logged: Interval
    effective: float
    largest_weight: float
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
        raise ValueError(f"train_share={train_share!r} must lie between 0 and 1")
    if check_cost_weight(cost_weight) and log.cost is None:
        raise ValueError(f"cost_weight={cost_weight!r} needs costs, and {log.path} has none")
    cut = round(train_share * len(log))
    train, judge = np.arange(cut), np.arange(cut, len(log))
    if min(len(train), len(judge)) < 10:
        raise ValueError(
            f"{log.path}: {len(train)} requests to train on and {len(judge)} to judge by are too "
            "few; give a longer log"
        )
    cost = np.zeros(len(log)) if log.cost is None else log.cost
    model = fit_outcomes(log, contexts, train)
    estimated = log.propensity is None
    return Prepared(
        log,
        contexts,
        train,
        judge,
        log.reward - cost_weight * cost,
        _estimated_propensity(log, contexts, train, judge)
        if log.propensity is None
        else log.propensity[judge],
        estimated,
        model.rates(contexts) - cost_weight * model.cost,
    )


def _estimated_propensity(
    log: Log, contexts: NDArray[np.float32], train: NDArray[Any], judge: NDArray[Any]
) -> Floats:
    """Probability of the logged LLM by a multinomial logistic regression on the context."""
    seen = np.unique(log.llm[train])
    found = np.full(len(judge), SMALLEST_PROPENSITY)
    if seen.size == 1:
        found[log.llm[judge] == seen[0]] = 1.0
        return found
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            'a log without propensities needs scikit-learn: pip install "llmqueue_gym[data]"'
        ) from error
    model = LogisticRegression(max_iter=1000).fit(contexts[train], log.llm[train])
    chances = model.predict_proba(contexts[judge])
    column = np.searchsorted(seen, log.llm[judge]).clip(max=seen.size - 1)
    known = seen[column] == log.llm[judge]
    found[known] = np.maximum(chances[np.arange(len(judge)), column][known], SMALLEST_PROPENSITY)
    return found


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
    check_count("draws", draws)
    spec = agent_spec(name)
    log, contexts = data.log, data.contexts
    offline = None
    if getattr(spec.load(), "protocol", "online") == "pretrained":
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
    rows, llm, reward = np.arange(len(data.judge)), log.llm[data.judge], data.reward[data.judge]
    weight = importance_weights(policy[rows, llm].clip(0.0, 1.0), data.propensity)
    predicted = data.predicted[data.judge]
    expected = (policy * predicted).sum(axis=1)
    return Evaluation(
        name,
        {
            "ips": ips(reward, weight),
            "self-normalised": self_normalised(reward, weight),
            "doubly robust": doubly_robust(reward, weight, predicted[rows, llm], expected),
        },
        t_interval(reward),
        effective_sample_size(weight),
        float(weight.max()),
        policy,
        trained_on,
    )


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


# --- the commands ---------------------------------------------------------------------------------


def show_log(path: Path, columns: Sequence[str], as_json: bool) -> None:
    """Print what a log holds and how well an outcome model fits it."""
    log = read_log(str(path), _columns(columns))
    found: dict[str, Any] = describe_log(log)
    try:
        found["outcome_model"] = judge_outcomes(log, log.contexts())
    except ValueError as error:
        found["outcome_model"] = {"none": str(error)}
    if as_json:
        print(json.dumps(_finite(found), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("LLM", "requests", found["outcome"], "95% interval", "USD a request")
    for row in found["llms"]:
        table.add_row(
            row["llm"].replace("[", r"\["),
            f"{row['requests']:,}",
            f"{row['kept']:.3f}",
            "" if row["low"] is None else rf"\[{row['low']:.3f}, {row['high']:.3f}]",
            "" if row["mean_cost"] is None else f"{row['mean_cost']:.3g}",
        )
    distinct = found["queries"] if log.texts is None else f"{found['queries']:,} distinct texts"
    print(f"{path}: {found['requests']:,} requests, {distinct}")
    Console().print(table)
    print(
        "propensities: none, they are estimated from the contexts"
        if log.propensity is None
        else f"propensities: logged, the smallest is {log.propensity.min():.3g}"
    )
    _print_model(found["outcome_model"])


def _print_model(found: Mapping[str, Any] | None) -> None:
    if found is None:
        print("outcome model: its calibration is shown for kept and retried answers only")
    elif "none" in found:
        print(f"outcome model: none ({found['none']})")
    else:
        print(
            f"outcome model, on the last {found['turns']:,} requests: log loss "
            f"{found['log_loss']:.4f} (the share kept alone: {found['base_log_loss']:.4f}), "
            f"calibration error {found['ece']:.3f}"
        )


def show_evaluation(
    path: Path,
    agents: Sequence[str],
    *,
    columns: Sequence[str] = (),
    train_share: float = 0.5,
    cost_weight: float = 0.0,
    contexts: str | None = None,
    seed: int = 0,
    draws: int = 10,
    as_json: bool = False,
) -> None:
    """Print the off-policy values of agents."""
    log = read_log(str(path), _columns(columns))
    vectors = log.contexts(how=None if contexts is None else read_contexts(contexts))
    data = prepare(log, vectors, train_share, cost_weight)
    found = _with_progress(data, agents, seed, draws)
    if as_json:
        record = {
            "path": str(path),
            "requests": len(data.judge),
            "trained_on": len(data.train),
            "propensities": "estimated" if data.estimated else "logged",
            "cost_weight": cost_weight,
            "seed": seed,
            "logged": list(found[0].logged),
            "agents": [
                {
                    "agent": row.agent,
                    **{name: list(value) for name, value in row.estimates.items()},
                    "effective_requests": row.effective,
                    "largest_weight": row.largest_weight,
                    "replayed": row.trained_on,
                    "shares": dict(zip(log.llms, row.policy.mean(axis=0).tolist(), strict=True)),
                }
                for row in found
            ],
        }
        print(json.dumps(_finite(record), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    names = ("agent", "IPS", "self-normalised", "doubly robust", "effective requests")
    table = Table(*names, title=f"{path.name}: value of a request", title_justify="left")
    table.add_row("the log itself", "", _shown(found[0].logged), "", f"{len(data.judge):,}")
    for row in found:
        cells = [_shown(value) for value in row.estimates.values()]
        table.add_row(row.agent, *cells, f"{row.effective:,.0f}")
    Console().print(table)
    print(
        f"learned on the first {len(data.train):,} requests, judged on the other "
        f"{len(data.judge):,}; 95% intervals; propensities "
        + (
            "estimated: right only if the contexts explain the choices"
            if data.estimated
            else "logged"
        )
    )
    for row in found:
        if row.effective < FEW:
            print(
                f"warning: {row.agent} seldom does what was logged ({row.effective:.0f} effective "
                "requests): trust no estimate of it"
            )


def _with_progress(
    data: Prepared, agents: Sequence[str], seed: int, draws: int
) -> list[Evaluation]:
    """Evaluate one agent after the other, with a bar on the terminal."""
    from rich.console import Console
    from rich.progress import Progress

    found = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in agents:
            bar = progress.add_task(name, total=len(data.log))
            found.append(
                evaluate(
                    data,
                    name,
                    seed=seed,
                    draws=draws,
                    advance=functools.partial(progress.advance, bar),
                )
            )
    return found


def _shown(interval: Interval) -> str:
    return rf"{interval.value:.3f} \[{interval.low:.3f}, {interval.high:.3f}]"


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _columns(items: Sequence[str]) -> dict[str, str]:
    columns = {}
    for item in items:
        field, mark, name = item.partition("=")
        if not (field and mark and name):
            raise ValueError(f"--column {item!r} must read FIELD=NAME, for example query=prompt")
        columns[field] = name
    return columns
