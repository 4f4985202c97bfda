"""WildChat-1M (Zhao et al., arXiv 2405.01470): conversations of users who ask again, or do not.

Official files: Parquet, a row a conversation. Stored is a row a user turn; the workload's outcome
model, which says how likely each LLM's answer is kept, is fitted on them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import embed_texts, offline_rows
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool
from llmqueue_gym.workloads.sources import Source
from llmqueue_gym.workloads.sources.retrials import (
    COMPARED,
    CONTINUING,
    THRESHOLD,
    normalise,
    overlap,
    rate_interval,
    trigrams,
)
from llmqueue_gym.workloads.stored import (
    CONVERSATIONS,
    Facts,
    Header,
    Tell,
    read_header,
    read_table,
    reading_parquet,
)

if TYPE_CHECKING:
    import polars as pl

BATCH = 20_000
"""Conversations that are held in memory at a time."""

AGGREGATE_SAMPLE = 1000
"""Pairs on which the difflib definition of the published aggregates is computed beside ours."""

HELD_OUT = 4
"""Every fourth conversation of the sample only judges the outcome model."""

MIN_TURNS = 100
"""Turns an LLM needs in the sample to be in the workload."""

_NEEDED = ("conversation", "model", "timestamp")
_OPTIONAL = ("conversation_hash", "language", "hashed_ip")


# --- import ---------------------------------------------------------------------------------------


def read_wildchat(
    files: Sequence[Path], out: Path, prices: Path | None = None, tell: Tell | None = None
) -> Facts:
    """Convert WildChat's Parquet files into a row a user turn, in batches of conversations.

    Columns: ``conversation`` (number), ``hash``, ``user`` (hashed IP), ``language``, ``turn`` (from
    0, user turns only), ``llm``, ``text``, ``time`` (seconds since 1970, UTC), ``followed`` (is
    there a next user turn), ``similarity`` to the next one (null if none), ``retried`` (the next
    one is nearly the same, see `retrials`), ``repeat`` (this one is a retrial of the one before).
    The time of a user turn is its own, else that of the answer, else the conversation's.

    Parameters
    ----------
    files : sequence of Path
        Parquet files.
    out : Path
        Where the Parquet goes.
    prices : Path, optional
        Not taken: WildChat records no tokens.
    tell : callable, optional
        Called with the number of conversations read so far.

    Raises
    ------
    ValueError
        If a column or cell is not as it should be; the message names file, row and column.
    """
    import polars as pl

    if prices is not None:
        raise UsageError(f"prices={str(prices)!r}: WildChat records no tokens that have a price")
    parts: list[Path] = []
    conversations, pairs = 0, _PairSample()
    for path in files:
        for batch, row in _batches(path):
            turns = _user_turns(batch, path, row, conversations)
            conversations += len(batch)
            if tell is not None:
                tell(conversations)
            if len(turns):
                parts.append(out.with_name(f"part-{len(parts):05d}.parquet"))
                _judge(turns, pairs).write_parquet(parts[-1])
    if not parts:
        raise UsageError(f"{files[0]}: no conversation has a user turn")
    pl.scan_parquet(parts).sink_parquet(out)
    for part in parts:
        part.unlink()
    return _facts(pl.scan_parquet(out), conversations, pairs)


def _batches(path: Path) -> Iterator[tuple[pl.DataFrame, int]]:
    """Conversations of a file in batches, each with the number of rows before it."""
    import polars as pl

    with reading_parquet(path):
        schema = pl.read_parquet_schema(path)
        _check_schema(schema, path)
        columns = [*_NEEDED, *(name for name in _OPTIONAL if name in schema)]
        scan = pl.scan_parquet(path).select(columns)
        rows = int(scan.select(pl.len()).collect().item())
        for start in range(0, rows, BATCH):
            yield scan.slice(start, BATCH).collect(), start


def _check_schema(schema: Any, path: Path) -> None:
    import polars as pl

    for name in _NEEDED:
        if name not in schema:
            raise UsageError(f"{path}: there is no column {name!r}; is it WildChat-1M?")
    for name in ("model", *_OPTIONAL):
        if name in schema and schema[name] not in (pl.String, pl.Null):
            raise UsageError(f"{path}: column {name!r} holds {schema[name]}, expected text")
    turns = schema["conversation"]
    inner = turns.inner if isinstance(turns, pl.List) else None
    fields = {field.name: field.dtype for field in getattr(inner, "fields", ())}
    for name in ("role", "content"):
        if fields.get(name) != pl.String:
            raise UsageError(
                f"{path}: column 'conversation' must hold lists of {{role, content, ...}}; "
                f"its field {name!r} is {fields.get(name)}, expected text"
            )
    for where, kind in (("timestamp", schema["timestamp"]), ("turn", fields.get("timestamp"))):
        if kind is not None and not isinstance(kind, pl.Datetime) and kind != pl.Null:
            raise UsageError(f"{path}: the timestamp ({where}) is {kind}, expected a time")


def _user_turns(batch: pl.DataFrame, path: Path, row: int, number: int) -> pl.DataFrame:
    """One row per user turn of a batch."""
    import polars as pl

    for name in ("model", "timestamp"):
        empty = batch[name].is_null()
        if empty.any():
            place = row + (empty.arg_max() or 0) + 1
            raise UsageError(f"{path}, row {place}, column {name!r} is empty")
    absent = [pl.lit(None, pl.String).alias(n) for n in _OPTIONAL if n not in batch.columns]
    turns = batch.with_columns(*absent).with_row_index("number", number).explode("conversation")
    message, utc = pl.col("conversation").struct, pl.Datetime("us", "UTC")
    kind = turns.schema["conversation"]
    timed = isinstance(kind, pl.Struct) and "timestamp" in {field.name for field in kind.fields}
    own = message.field("timestamp") if timed else pl.lit(None)
    answered = own.cast(utc).fill_null(strategy="backward").over("number")
    return (
        turns.with_columns(answered.fill_null(pl.col("timestamp").cast(utc)).alias("time"))
        .filter(message.field("role") == "user")
        .select(
            pl.col("number").cast(pl.Int64).alias("conversation"),
            pl.col("conversation_hash").alias("hash"),
            pl.col("hashed_ip").alias("user"),
            "language",
            pl.int_range(pl.len()).over("number").alias("turn"),
            pl.col("model").alias("llm"),
            message.field("content").fill_null("").alias("text"),
            (pl.col("time").dt.timestamp("us") / 1e6).alias("time"),
        )
    )


class _PairSample:
    """How often the definition of the published aggregates finds a retrial, on the first pairs."""

    def __init__(self) -> None:
        self.seen = self.found = 0

    def note(self, previous: str, following: str) -> None:
        """Judge a pair, unless enough were."""
        if self.seen < AGGREGATE_SAMPLE:
            self.seen += 1
            ratio = difflib.SequenceMatcher(None, previous[:COMPARED], following[:COMPARED]).ratio()
            self.found += ratio > 0.6


def _judge(turns: pl.DataFrame, pairs: _PairSample) -> pl.DataFrame:
    """Add which turn is followed by nearly the same one."""
    import polars as pl

    conversation = turns["conversation"].to_numpy()
    followed = np.append(conversation[1:] == conversation[:-1], False)
    texts = turns["text"].to_list()
    similar: list[float | None] = []
    before, grams = "", frozenset[str]()
    for i, text in enumerate(texts):
        plain = normalise(text)
        mine = trigrams(plain)
        if i and followed[i - 1]:
            similar.append(0.0 if plain in CONTINUING else overlap(grams, mine))
            pairs.note(before, text)
        elif i:
            similar.append(None)
        before, grams = text, mine
    similar.append(None)
    column = pl.Series("similarity", similar, pl.Float64)
    retried = (column >= THRESHOLD).fill_null(False)
    return turns.with_columns(
        pl.Series("followed", followed),
        column,
        retried.alias("retried"),
        retried.shift(1, fill_value=False).alias("repeat"),
    )


def _facts(table: pl.LazyFrame, conversations: int, pairs: _PairSample) -> Facts:
    import polars as pl

    by_llm = (
        table.group_by("llm")
        .agg(pl.col("retried").sum(), pl.len().alias("turns"), pl.col("followed").sum())
        .sort("llm")
        .collect()
    )
    by_turn = (
        table.filter("followed")
        .group_by((pl.col("turn") + 1).clip(upper_bound=6))
        .agg(pl.col("retried").sum(), pl.len().alias("followed"))
        .sort("turn")
        .collect()
    )
    runs = (
        table.select("conversation", "retried")
        .with_columns(pl.col("retried").rle_id().over("conversation").alias("run"))
        .filter("retried")
        .group_by("conversation", "run")
        .len()
        .group_by("len")
        .agg(pl.len().alias("runs"))
        .sort("len")
        .collect()
    )
    return Facts(
        CONVERSATIONS,
        tuple(by_llm["llm"]),
        int(by_llm["turns"].sum()),
        {"time": "seconds since 1970, UTC", "similarity": "overlap of trigrams in [0, 1]"},
        {
            "conversations": conversations,
            "threshold": THRESHOLD,
            "retrials": {row[0]: list(row[1:]) for row in by_llm.iter_rows()},
            "retrials_by_turn": {str(turn): [r, n] for turn, r, n in by_turn.iter_rows()},
            "retrial_run_lengths": {str(length): n for length, n in runs.iter_rows()},
            "difflib_sample": [pairs.found, pairs.seen],
        },
    )


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


# --- outcome model --------------------------------------------------------------------------------


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


def fit_mnl(
    contexts: NDArray[np.float32],
    llm: NDArray[np.int64],
    kept: NDArray[np.bool_] | NDArray[np.float64],
    num_llms: int,
    ridge: float,
) -> NDArray[np.float64]:
    """Ridge maximum likelihood of theta (N, d) from logged pairs; see `fit_outcomes`.

    Parameters
    ----------
    contexts : ndarray, shape (n, d)
    llm : ndarray of int, shape (n,)
        LLM whose answer was shown.
    kept : ndarray of bool or float64, shape (n,)
        Whether the answer was kept, or a score in [0, 1] that counts as that share of it.
    num_llms : int
        N.
    ridge : float
        Penalty, positive.
    """
    from scipy.optimize import minimize

    share = kept.astype(np.float64)
    if (share == 1.0).all() or (share == 0.0).all():
        raise UsageError("the logged turns are all kept or all retried: nothing can be fitted")
    x = contexts.astype(np.float64)
    groups = [np.flatnonzero(llm == j) for j in range(num_llms)]
    shape = (num_llms + 1, x.shape[1])  # row 0 is theta_0, row j + 1 is delta_j

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = flat.reshape(shape)
        slope, value = ridge * parameters, 0.5 * ridge * float(flat @ flat)
        for j, rows in enumerate(groups):
            utility = x[rows] @ (parameters[0] + parameters[j + 1])
            value += float((np.logaddexp(0.0, utility) - share[rows] * utility).sum())
            pull = x[rows].T @ (np.exp(-np.logaddexp(0.0, -utility)) - share[rows])
            slope[0] += pull
            slope[j + 1] += pull
        return value, slope.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B")
    parameters = found.x.reshape(shape)
    return np.asarray(parameters[0] + parameters[1:])


def _kept_chance(
    contexts: NDArray[np.float32], llm: NDArray[np.int64], theta: NDArray[np.float64]
) -> NDArray[np.float64]:
    utilities = np.einsum("nd,nd->n", contexts.astype(np.float64), theta[llm])
    return np.asarray(np.exp(-np.logaddexp(0.0, -utilities)))


def calibration(
    chance: NDArray[np.float64], kept: NDArray[np.bool_], base: float, bins: int = 10
) -> dict[str, Any]:
    """How well predicted chances agree with what happened.

    Parameters
    ----------
    chance : ndarray, shape (n,)
        Predicted probability that the answer is kept.
    kept : ndarray of bool, shape (n,)
    base : float
        Share that was kept in the training data: the prediction to be better than.
    bins : int
        Bins of equally many turns, by predicted chance.

    Returns
    -------
    dict
        ``ece``: mean over turns of |predicted - observed| of their bin; ``table``: the bins with
        Wilson's interval of the observed share; ``log_loss``, ``brier`` and those of ``base``;
        ``auc``: chance that a kept turn is predicted higher than a retried one.
    """
    order = np.argsort(chance, kind="stable")
    table, ece = [], 0.0
    for part in np.array_split(order, min(bins, len(order))):
        predicted, hits = float(chance[part].mean()), int(kept[part].sum())
        low, high = rate_interval(hits, len(part))
        ece += abs(predicted - hits / len(part)) * len(part) / len(order)
        table.append(
            {
                "turns": len(part),
                "predicted": predicted,
                "observed": hits / len(part),
                "low": low,
                "high": high,
            }
        )

    def losses(p: NDArray[np.float64]) -> tuple[float, float]:
        p = np.clip(p, 1e-12, 1 - 1e-12)
        log_loss = -np.where(kept, np.log(p), np.log1p(-p)).mean()
        return float(log_loss), float(np.square(p - kept).mean())

    log_loss, brier = losses(chance)
    base_log_loss, base_brier = losses(np.full(len(kept), base))
    return {
        "turns": len(kept),
        "ece": ece,
        "log_loss": log_loss,
        "base_log_loss": base_log_loss,
        "brier": brier,
        "base_brier": base_brier,
        "auc": _auc(chance, kept),
        "table": table,
    }


def _auc(chance: NDArray[np.float64], kept: NDArray[np.bool_]) -> float | None:
    from scipy.stats import rankdata

    yes, no = int(kept.sum()), int((~kept).sum())
    if not yes or not no:
        return None
    ranks = rankdata(chance)
    return float((ranks[kept].sum() - yes * (yes + 1) / 2) / (yes * no))


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


# --- workload -------------------------------------------------------------------------------------


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


SOURCE = Source(
    "wildchat",
    workload=wildchat_workload,
    reader=read_wildchat,
    suffixes=(".parquet",),
    repository="allenai/WildChat-1M",
    patterns=("data/train-*.parquet",),
    licence="ODC-BY",
    reference="Zhao et al., WildChat, arXiv 2405.01470",
)
