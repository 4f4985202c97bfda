"""Own logs: which LLM answered which query, and whether the user kept the answer; K = 1.

`log_file` reads them; here are the outcome model that is fitted on them, and the workload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import offline_rows, read_contexts
from llmqueue_gym.workloads.outcomes import calibration, fit_mnl
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool, takes_options_of
from llmqueue_gym.workloads.prices import Step, now_over_then, usual_tokens
from llmqueue_gym.workloads.sources import Source
from llmqueue_gym.workloads.sources.log_file import Log, log_fingerprint, read_log
from llmqueue_gym.workloads.sources.retrials import rate_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_ROWS = 20
"""Requests an LLM needs, by default, to get an outcome model."""

RATE_BOUNDS = 0.01, 0.99
"""The workload's success rates are kept within."""


class OutcomeModel(NamedTuple):
    """P(kept | x, j) = 1 / (1 + exp(-x . theta_j)), fitted on a log.

    Attributes
    ----------
    theta : ndarray, shape (N, d)
        Parameters; ridge maximum likelihood, LLMs with few requests stay near the others.
    cost : ndarray, shape (N,)
        Mean cost of a request, USD; 0 where the log has none.
    """

    theta: Floats
    cost: Floats

    def rates(self, contexts: NDArray[Any]) -> Floats:
        """Probability that each LLM's answer is kept, (n, N)."""
        utilities = contexts.astype(np.float64) @ self.theta.T
        return np.asarray(np.exp(-np.logaddexp(0.0, -utilities)))


def fit_outcomes(
    log: Log, contexts: NDArray[np.float32], rows: NDArray[Any], ridge: float = 1.0
) -> OutcomeModel:
    """Fit the outcome model on some rows of a log; see `OutcomeModel`.

    Scores between 0 and 1 count as that share of an answer kept.

    Raises
    ------
    ValueError
        If all rows are kept, or all retried.
    """
    llm, reward = log.llm[rows], log.reward[rows]
    theta = fit_mnl(contexts[rows], llm, reward, len(log.llms), ridge)
    cost = np.zeros(len(log.llms))
    if log.cost is not None:
        for j in range(len(log.llms)):
            own = log.cost[rows][llm == j]
            cost[j] = own.mean() if own.size else log.cost[rows].mean()
    return OutcomeModel(theta, cost)


def judge_outcomes(log: Log, contexts: NDArray[np.float32]) -> dict[str, Any] | None:
    """Calibration of the outcome model on the last quarter of a log, fitted on the rest.

    The prediction to be better than is the share that each LLM's answers had there: if the model is
    not, contexts tell nothing. None where the log has scores in place of kept and retried answers.
    """
    if not np.isin(log.reward, (0.0, 1.0)).all():
        return None
    rows = np.arange(len(log))
    late = rows >= 3 * len(log) // 4
    model = fit_outcomes(log, contexts, rows[~late])
    chance = model.rates(contexts[late])[np.arange(int(late.sum())), log.llm[late]]
    early, count = log.llm[~late], len(log.llms)
    mean = log.reward[~late].mean()  # weighs as one answer, so that no share is 0 or 1
    share = np.bincount(early, log.reward[~late], count) + mean
    share /= np.bincount(early, minlength=count) + 1.0
    return calibration(chance, log.reward[late] > 0.5, share[log.llm[late]])


def describe_log(log: Log) -> dict[str, Any]:
    """Summary of a log: rows, times, and per LLM its share, keep rate and cost."""
    llms = []
    binary = bool(np.isin(log.reward, (0.0, 1.0)).all())
    for j, name in enumerate(log.llms):
        own = log.llm == j
        kept = float(log.reward[own].mean())
        low, high = rate_interval(int(log.reward[own].sum()), int(own.sum()))
        llms.append(
            {
                "llm": name,
                "requests": int(own.sum()),
                "kept": kept,
                "low": low if binary else None,
                "high": high if binary else None,
                "mean_cost": None if log.cost is None else float(log.cost[own].mean()),
            }
        )
    return {
        "path": log.path,
        "read_as": log.source,
        "kept_by": log.told,
        "requests": len(log),
        "queries": "vectors" if log.texts is None else len(set(log.texts)),
        "outcome": "share kept" if binary else "score",
        "kept": float(log.reward.mean()),
        "cost": None if log.cost is None else float(log.cost.sum()),
        "seconds": None if log.time is None else float(log.time[-1] - log.time[0]),
        "smallest_propensity": None if log.propensity is None else float(log.propensity.min()),
        "left_out": dict(log.left_out),
        "notes": list(log.notes),
        "llms": sorted(llms, key=lambda row: -int(str(row["requests"]))),
    }


def logs_pool(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    clip_scores: bool = False,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
    prices: Any = None,
    tokens: Sequence[float] | None = None,
    min_rows: int = MIN_ROWS,
    ridge: float = 1.0,
) -> tuple[QueryPool, Ints | None]:
    """Read the queries of a log, and which rows arrive; an outcome model says what users keep.

    Parameters
    ----------
    path, columns, clip_scores
        See `read_log`.
    context_dim : int, optional
        Length of a context; see `Log.contexts`.
    contexts : str or mapping, optional
        How texts become contexts; see `llmqueue_gym.workloads.embeddings.read_contexts`.
    prices : mapping, pair or number, optional
        List prices, which agents of LLMDeploy-v0 see; by default those of the log's own column. See
        `read_log`.
    tokens : sequence of float, optional
        Input and output tokens of a usual answer, which prices of tokens need; by default the mean
        of the log, if it counts them.
    min_rows : int
        Requests an LLM must have; the others are left out.
    ridge : float
        Penalty of the fit, positive.

    Raises
    ------
    ValueError
        If the log cannot be read, or no outcome model can be fitted.
    """
    log = read_log(path, columns, clip_scores, prices)
    how = None if contexts is None else read_contexts(contexts)
    vectors = log.contexts(context_dim, how)
    counts = np.bincount(log.llm, minlength=len(log.llms))
    enough = counts >= checks.count("min_rows", min_rows)
    if not enough.any():
        raise UsageError(
            f"{log.path}: no LLM has min_rows={min_rows} requests (the most has {counts.max()}); "
            "give more rows or lower it"
        )
    checks.number("ridge", ridge, "(0, inf)")
    rows = np.flatnonzero(enough[log.llm])
    llms = tuple(name for name, use in zip(log.llms, enough, strict=True) if use)
    listed, changes = _listed(log, llms, tokens)
    if changes and log.cost is not None and log.time is not None:  # at the last prices
        places = [llms.index(name) if name in llms else 0 for name in log.llms]
        ratio = now_over_then(changes, log.time, llms)[
            np.arange(len(log)), np.array(places)[log.llm]
        ]
        log = replace(log, cost=log.cost * ratio)
    model = fit_outcomes(log, vectors, rows, ridge)
    distinct, online = _distinct(log)
    cost = None if log.cost is None else np.tile(model.cost[enough], (len(distinct), 1))
    rates = model.rates(vectors[distinct])[:, enough]
    times = None if log.time is None else (float(log.time.min()), float(log.time.max()))
    return QueryPool(vectors[distinct], rates, cost, llms, listed, changes, times), online


def _listed(
    log: Log, llms: Sequence[str], tokens: Sequence[float] | None
) -> tuple[Floats | None, tuple[Step, ...]]:
    """Return the list price of a usual answer of every LLM when the log ends, and its changes."""
    if log.prices is None:
        if tokens is not None:
            raise UsageError(f"tokens={tokens!r} cost nothing without `prices`; give both")
        return None, ()
    if tokens is None and log.tokens is not None:
        tokens = np.nanmean(log.tokens, axis=0).tolist()
    usual = usual_tokens(tokens)
    listed, changes = log.prices.listed(llms, [usual] * len(llms), log.time)
    return np.array(listed), changes


@takes_options_of(logs_pool)
def logs_workload(
    path: str, *, cost_weight: float = 0.0, pool_size: int = 1000, **options: Any
) -> PoolWorkload:
    """Workload of the queries of a log; an outcome model fitted on it says what users keep.

    What an LLM that did not answer would have done is the model's estimate, never an observation:
    look at its calibration with ``llmqueue-bench logs show``. The success rate of an LLM is the
    model's, less ``cost_weight`` times its mean cost, kept within [0.01, 0.99].

    Parameters
    ----------
    path, options
        See `logs_pool`.
    cost_weight : float
        Keep rate given up per USD.
    pool_size : int
        Queries per instance.

    Raises
    ------
    ValueError
        If the log cannot be read, or no outcome model can be fitted.
    """
    checks.number("cost_weight", cost_weight, "[0, inf)")
    pool, online = logs_pool(path, **options)
    if cost_weight and pool.cost is None:
        raise UsageError(f"cost_weight={cost_weight!r} needs costs, and {path} has none")
    spent = 0.0 if pool.cost is None else cost_weight * pool.cost
    value = np.clip(pool.quality - spent, *RATE_BOUNDS)
    utilities = np.log(value / (1.0 - value))
    return PoolWorkload(pool, online, pool_size=pool_size, utilities=utilities)


def _distinct(log: Log) -> tuple[Ints, Ints | None]:
    """First rows of the distinct queries, repeats left out, and which of these arrive (or all)."""
    if log.texts is None:
        return np.arange(len(log)), None
    repeat = np.zeros(len(log), dtype=np.bool_) if log.repeat is None else log.repeat
    first: dict[str, int] = {}
    for row in np.flatnonzero(~repeat):
        first.setdefault(log.texts[row], int(row))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    return rows, np.flatnonzero(~offline_rows([log.texts[row] for row in rows]))


SOURCE = Source("logs", workload=logs_workload, fingerprint=log_fingerprint)
