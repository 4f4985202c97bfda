"""The workload of stored conversations: new queries arrive, a model fitted on the turns answers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import embed_texts, offline_rows
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool
from llmqueue_gym.workloads.sources.retrials import COMPARED, rate_interval
from llmqueue_gym.workloads.stored import CONVERSATIONS, Header, read_header, read_table

if TYPE_CHECKING:
    pass
from llmqueue_gym.workloads.outcomes import calibration, fit_mnl

HELD_OUT = 4
"""Every fourth conversation of the sample only judges the outcome model."""

MIN_TURNS = 100
"""Turns an LLM needs in the sample to be in the workload."""


def retrial_rates(header: Header) -> list[dict[str, Any]]:
    """Retrial rate of each LLM, with Wilson's 95% interval, the most used LLM first.

    ``rate`` is retrials over answered turns: a user who says nothing more has kept the answer.
    """
    rates = []
    for llm, (retried, turns, followed) in header.facts.notes["retrials"].items():
        low, high = rate_interval(retried, turns)
        rates.append(
            {
                "llm": llm,
                "turns": turns,
                "followed": followed,
                "retried": retried,
                "rate": retried / turns,
                "low": low,
                "high": high,
            }
        )
    return sorted(rates, key=lambda row: -row["turns"])


def arrival_times(name: str = "wildchat") -> NDArray[np.float64]:
    """Return the times at which new queries (no retrials) arrived, in seconds, increasing."""
    header = conversations_header(name)
    table = read_table(header, ["time", "repeat"])
    times: NDArray[np.float64] = table.filter(~table["repeat"])["time"].sort().to_numpy().copy()
    return times


def conversations_header(name: str) -> Header:
    """Header of a stored data set of conversations."""
    header = read_header(name, "wildchat")
    if header.facts.kind != CONVERSATIONS:
        raise UsageError(f"data set {name!r} holds a {header.facts.kind}, not conversations")
    return header


class Outcomes(NamedTuple):
    """The fitted outcome model and how well calibrated it is.

    Attributes
    ----------
    llms : tuple of str
        LLMs with enough turns.
    theta : ndarray, shape (N, d)
        Parameters: the utility of LLM j for context x is x . theta_j.
    contexts : ndarray of float32, shape (n, d)
        Contexts of the sampled turns.
    arrives : ndarray of bool, shape (n,)
        Turns that are new queries, and whose text did not serve to fit the embedding.
    kept_back : ndarray of bool, shape (n,)
        New queries whose text did: agents may train on them. Retrials, which are nearly the same
        text as a query that may arrive, are neither.
    calibration : dict
        On held-out conversations; see `calibration`.
    """

    llms: tuple[str, ...]
    theta: NDArray[np.float64]
    contexts: NDArray[np.float32]
    arrives: NDArray[np.bool_]
    kept_back: NDArray[np.bool_]
    calibration: dict[str, Any]


@lru_cache(maxsize=4)
def fit_outcomes(name: str, sha256: str, context_dim: int, sample: int, ridge: float) -> Outcomes:
    """Fit the MNL outcome model on a sample of logged turns.

    A turn shows one answer (K = 1): it is kept with probability 1 / (1 + exp(-x . theta_j)), and a
    retrial otherwise. theta_j = theta_0 + delta_j, with the penalty ridge / 2 (|theta_0|^2 +
    sum |delta_j|^2), so LLMs with few turns stay close to the others. Three quarters of the
    conversations fit it, the others judge it.

    Parameters
    ----------
    name, sha256 : str
        Stored data set and its Parquet file's hash, which makes a new import a new fit.
    context_dim : int
        Length of a context, d.
    sample : int
        Turns taken, drawn without replacement by a fixed seed; all if there are fewer.
    ridge : float
        Penalty, positive.
    """
    columns = ["conversation", "llm", "text", "retried", "repeat"]
    header = conversations_header(name)
    rows = np.random.default_rng(0).permutation(header.facts.rows)[:sample]
    table = read_table(header, columns, rows)
    counts = table["llm"].value_counts()
    llms = tuple(sorted(counts.filter(counts["count"] >= MIN_TURNS)["llm"]))
    if not llms:
        raise UsageError(f"data set {name!r}: no LLM has {MIN_TURNS} turns in a sample of {sample}")
    table = table.filter(table["llm"].is_in(llms))
    texts = table["text"].to_list()
    contexts = embed_texts([text[:COMPARED] for text in texts], context_dim)
    llm = np.searchsorted(llms, table["llm"].to_list())
    kept = ~table["retried"].to_numpy()
    judge = table["conversation"].to_numpy() % HELD_OUT == 0
    theta = fit_mnl(contexts[~judge], llm[~judge], kept[~judge], len(llms), ridge)
    chance = _kept_chance(contexts, llm, theta)
    base = kept[~judge].mean()
    new = ~table["repeat"].to_numpy()
    offline = offline_rows([text[:COMPARED] for text in texts])
    return Outcomes(
        llms,
        theta,
        contexts,
        new & ~offline,
        new & offline,
        calibration(chance[judge], kept[judge], float(base))
        | {"llms": _by_llm(llms, llm[judge], chance[judge], kept[judge])},
    )


def _kept_chance(
    contexts: NDArray[np.float32], llm: NDArray[np.int64], theta: NDArray[np.float64]
) -> NDArray[np.float64]:
    utilities = np.einsum("nd,nd->n", contexts.astype(np.float64), theta[llm])
    return np.asarray(np.exp(-np.logaddexp(0.0, -utilities)))


def _by_llm(
    llms: tuple[str, ...],
    llm: NDArray[np.int64],
    chance: NDArray[np.float64],
    kept: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    """Predicted and observed share of kept answers of each LLM."""
    rows = []
    for j, name in enumerate(llms):
        mine = llm == j
        count, hits = int(mine.sum()), int(kept[mine].sum())
        low, high = rate_interval(hits, count)
        observed = hits / count if count else None
        predicted = float(chance[mine].mean()) if count else None
        row = {"llm": name, "turns": count, "predicted": predicted, "observed": observed}
        rows.append(row | {"low": low, "high": high})
    return rows


def outcomes_of(
    name: str = "wildchat",
    context_dim: int | None = None,
    sample: int = 20_000,
    ridge: float = 1.0,
) -> Outcomes:
    """Outcome model of a stored data set of conversations; see `wildchat_workload`."""
    sha256 = str(conversations_header(name).parquet["sha256"])
    dim = 64 if context_dim is None else checks.count("context_dim", context_dim, 2)
    if not isinstance(ridge, int | float) or not 0.0 < ridge < np.inf:
        raise UsageError(f"ridge={ridge!r} must be a positive number")
    return fit_outcomes(name, sha256, dim, checks.count("sample", sample), float(ridge))


def wildchat_workload(
    *,
    name: str = "wildchat",
    context_dim: int | None = None,
    pool_size: int = 1000,
    sample: int = 20_000,
    ridge: float = 1.0,
) -> PoolWorkload:
    """Queueing workload of logged conversations: new queries arrive, a fitted model answers.

    The queries are user turns that repeat none before. The utilities are those of the MNL model
    fitted on the logged turns (`fit_outcomes`): what an LLM that did not answer would have done is
    the model's estimate, never an observation.

    Parameters
    ----------
    name : str
        Name the conversations are stored under.
    context_dim : int, optional
        Length of a context, 64 by default.
    pool_size : int
        Queries per instance.
    sample : int
        Turns the model is fitted on and the queries are taken from.
    ridge : float
        Penalty of the fit.
    """
    model = outcomes_of(name, context_dim, sample, ridge)
    utilities = model.contexts.astype(np.float64) @ model.theta.T
    pool = QueryPool(model.contexts, 1.0 / (1.0 + np.exp(-utilities)), None, model.llms)
    return PoolWorkload(
        pool,
        np.flatnonzero(model.arrives),
        pool_size=pool_size,
        utilities=utilities,
        offline=np.flatnonzero(model.kept_back),
    )
