"""Own logs: which LLM answered which query, and whether the user kept the answer; K = 1.

CSV, JSONL or Parquet, a row an answered request, or LiteLLM spend logs; the schema is on the page
"Your own logs" of the documentation. Every error names the file, the row or line, and the column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.workloads.embeddings import (
    DEFAULT_CONTEXT_DIM,
    ContextMethod,
    embed_texts,
    offline_rows,
    read_contexts,
)
from llmqueue_gym.workloads.pool import (
    PoolWorkload,
    QueryPool,
    check_cost_weight,
    check_count,
    file_sha256,
    unknown_name,
)
from llmqueue_gym.workloads.sources.retrials import (
    THRESHOLD,
    rate_interval,
    similarity,
)
from llmqueue_gym.workloads.sources.table import (
    Row,
    _cell,
    _find,
    _json_cell,
    _rows,
    _show,
    _text,
    _vector,
    seconds_of,
)
from llmqueue_gym.workloads.sources.wildchat import calibration, fit_mnl

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIELDS = ("query", "embedding", "llm", "kept", "score", "cost", "timestamp", "propensity")
"""Columns of the schema."""

LITELLM = ("request_id", "spend", "startTime", "model")
"""Columns by which a LiteLLM spend log is told."""

MIN_ROWS = 20
"""Requests an LLM needs, by default, to get an outcome model."""

RATE_BOUNDS = 0.01, 0.99
"""The workload's success rates are kept within."""

_TRUE = ("true", "1", "1.0", "yes", "kept")
_FALSE = ("false", "0", "0.0", "no", "retried")


@dataclass(frozen=True, eq=False)
class Log:
    """Logged requests, in the order of time where the log has times, else of the file.

    Attributes
    ----------
    path : str
        The file.
    texts : tuple of str or None
        Queries; None where the log brings vectors.
    vectors : ndarray of float32, shape (n, d), or None
        Context vectors; None where the log brings texts.
    llms : tuple of str
        Names of the N LLMs that answered, sorted.
    llm : ndarray of int64, shape (n,)
        Which of them answered.
    reward : ndarray of float64, shape (n,)
        1 where the answer was kept and 0 where the user retried, or a score between.
    cost : ndarray of float64, shape (n,), or None
        USD.
    time : ndarray of float64, shape (n,), or None
        Seconds.
    propensity : ndarray of float64, shape (n,), or None
        Probability with which whoever logged chose that LLM for that query.
    repeat : ndarray of bool, shape (n,), or None
        Requests that ask once more, in other words perhaps, what their session just asked; None
        where the log has no sessions.
    """

    path: str
    texts: tuple[str, ...] | None
    vectors: NDArray[np.float32] | None
    llms: tuple[str, ...]
    llm: Ints
    reward: Floats
    cost: Floats | None
    time: Floats | None
    propensity: Floats | None
    repeat: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.llm)

    def contexts(
        self, context_dim: int | None = None, how: ContextMethod | None = None
    ) -> NDArray[np.float32]:
        """Contexts of the requests, (n, d); of texts, fitted on the offline quarter of them.

        By default TF-IDF contexts have 64 coordinates, or as many as there are offline texts.
        """
        if self.vectors is not None:
            if context_dim not in (None, self.vectors.shape[1]) or how is not None:
                raise ValueError(
                    f"{self.path}: the log brings vectors of length {self.vectors.shape[1]}; leave "
                    "context_dim and contexts out"
                )
            return self.vectors
        assert self.texts is not None
        distinct = sorted(set(self.texts))
        if context_dim is None and (how is None or how.method == ContextMethod().method):
            context_dim = min(DEFAULT_CONTEXT_DIM, max(2, int(offline_rows(distinct).sum())))
        place = {text: row for row, text in enumerate(distinct)}
        vectors = embed_texts(distinct, context_dim, how)
        return vectors[[place[text] for text in self.texts]]


def read_log(path: str, columns: Mapping[str, str] | None = None) -> Log:
    """Read a log.

    Parameters
    ----------
    path : str
        A ``.csv``, ``.jsonl`` (``.ndjson``) or ``.parquet`` file with a row an answered request, or
        the export of LiteLLM's table of spend logs in one of these formats.
    columns : mapping of str to str, optional
        Names of columns that are called otherwise, field -> column. Fields are ``query`` (text) or
        ``embedding`` (list of numbers), ``llm``, ``kept`` (true, false, 1, 0) or ``score`` (in
        [0, 1]), and optionally ``cost`` (USD), ``timestamp`` (seconds or ISO 8601) and
        ``propensity`` (in (0, 1]).

    Raises
    ------
    ValueError
        If the file cannot be read in full, a column is missing or a value is not what it must be.
    """
    source = _find(path)
    names = tuple(sorted((columns or {}).items()))
    for field, name in names:
        if field not in FIELDS:
            raise unknown_name("columns: field", field, FIELDS)
        if not isinstance(name, str) or not name:
            raise ValueError(f"columns: {field}={name!r} must be the name of a column")
    stat = source.stat()
    return _load(str(source), names, (stat.st_mtime_ns, stat.st_size))


def log_fingerprint(path: str, **_: Any) -> str:
    """SHA-256 of the file."""
    return file_sha256(_find(path))


class _Request(NamedTuple):
    """One row, read."""

    query: Any  # text, or a vector
    llm: str
    reward: float | None  # None where the next request of the session tells
    cost: float | None
    time: float | None
    propensity: float | None
    session: str | None


@lru_cache(maxsize=4)
def _load(path: str, names: tuple[tuple[str, str], ...], _: tuple[int, int]) -> Log:
    requests: list[_Request] = []
    read = None
    for place, row in _rows(Path(path)):
        if read is None:
            read = _reader(path, row, dict(names))
        requests.append(read(place, row))
        if not isinstance(requests[0].query, str):
            first, own = requests[0].query, requests[-1].query
            if len(own) != len(first):
                raise ValueError(
                    f"{place}: column 'embedding' has a vector of length {len(own)}, but the first "
                    f"row's has {len(first)}"
                )
    if not requests:
        raise ValueError(f"{path}: the file has no rows")
    return _assemble(path, requests)


def _assemble(path: str, requests: list[_Request]) -> Log:
    timed = requests[0].time is not None
    if timed:
        requests = sorted(requests, key=lambda request: request.time or 0.0)
    rewards = repeat = None
    if requests[0].session is not None:
        rewards, repeat = _by_session(requests)
    texts = isinstance(requests[0].query, str)
    llms = tuple(sorted({request.llm for request in requests}))
    index = {llm: j for j, llm in enumerate(llms)}

    def numbers(field: str) -> Floats | None:
        values = [getattr(request, field) for request in requests]
        return None if values[0] is None else np.array(values, dtype=np.float64)

    reward = numbers("reward") if rewards is None else rewards
    assert reward is not None
    return Log(
        path,
        tuple(request.query for request in requests) if texts else None,
        None if texts else np.stack([request.query for request in requests]),
        llms,
        np.array([index[request.llm] for request in requests], dtype=np.int64),
        reward,
        numbers("cost"),
        numbers("time"),
        numbers("propensity"),
        repeat,
    )


def _by_session(requests: Sequence[_Request]) -> tuple[Floats, NDArray[np.bool_]]:
    """Rewards of requests in order, 0 if their session's next message repeats them; the repeats."""
    rewards, repeat = np.ones(len(requests)), np.zeros(len(requests), dtype=np.bool_)
    last: dict[str, int] = {}
    for row, request in enumerate(requests):
        if request.reward is not None:
            rewards[row] = request.reward
        session = request.session or ""
        if session and session in last:
            before = requests[last[session]]
            if similarity(str(before.query), str(request.query)) >= THRESHOLD:
                rewards[last[session]] = 0.0
                repeat[row] = True
        last[session] = row
    return rewards, repeat


# --- rows -----------------------------------------------------------------------------------------


def _reader(path: str, first: Row, names: dict[str, str]) -> Any:
    """Return the function that reads a row, by the columns of the first one."""
    plain = any(names.get(field, field) in first for field in ("kept", "score"))
    if not plain and all(name in first for name in LITELLM):
        return _read_litellm
    column = {field: names.get(field, field) for field in FIELDS}
    for field in names:
        if column[field] not in first:
            raise unknown_name(f"{path}: column", column[field], first)
    for options in (("query", "embedding"), ("llm",), ("kept", "score")):
        if not any(column[field] in first for field in options):
            wanted = " or ".join(repr(column[field]) for field in options)
            raise ValueError(
                f"{path}: there is no column {wanted}; it has {', '.join(map(str, first))}. Name a "
                "column that is called otherwise with `columns`"
            )
    vectors = column["query"] not in first
    scored = column["kept"] not in first
    optional = [f for f in ("cost", "timestamp", "propensity") if column[f] in first]

    def read(place: str, row: Row) -> _Request:
        found = {field: _optional(row, field, column[field], place) for field in optional}
        return _Request(
            query=_vector(row, column["embedding"], place)
            if vectors
            else _text(row, column["query"], place),
            llm=_name(row, column["llm"], place),
            reward=_number(row, column["score"], place, 0.0, 1.0)
            if scored
            else _kept(row, column["kept"], place),
            cost=found.get("cost"),
            time=found.get("timestamp"),
            propensity=found.get("propensity"),
            session=None,
        )

    return read


def _optional(row: Row, field: str, column: str, place: str) -> float:
    if field == "timestamp":
        return _time(row, column, place)
    if field == "propensity":
        value = _number(row, column, place, 0.0, 1.0)
        if value <= 0.0:
            raise ValueError(
                f"{place}: column {column!r} is {value}; a logged choice has a positive probability"
            )
        return value
    return _number(row, column, place, 0.0, math.inf)


def _name(row: Row, column: str, place: str) -> str:
    cell = _text(row, column, place)
    if not cell.strip():
        raise ValueError(f"{place}: column {column!r} is empty")
    return cell


def _kept(row: Row, column: str, place: str) -> float:
    cell = _cell(row, column, place)
    text = str(cell).strip().lower()
    if text in _TRUE:
        return 1.0
    if text in _FALSE:
        return 0.0
    raise ValueError(
        f"{place}: column {column!r} must be true or false, or 1 or 0, not {_show(cell)}"
    )


def _number(row: Row, column: str, place: str, low: float, high: float) -> float:
    cell = _cell(row, column, place)
    try:
        number = float("nan") if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(
            f"{place}: column {column!r} must be a number in [{low:g}, {high:g}], not {_show(cell)}"
        )
    return number


def _time(row: Row, column: str, place: str) -> float:
    cell = _cell(row, column, place)
    seconds = math.nan if isinstance(cell, bool) else seconds_of(cell)
    if not math.isfinite(seconds):
        raise ValueError(
            f"{place}: column {column!r} must be seconds or an ISO 8601 time, not {_show(cell)}"
        )
    return seconds


def _read_litellm(place: str, row: Row) -> _Request:
    """Read a row of LiteLLM's spend logs; the next request of its session tells a retrial.

    The query is the last user message; a failed call is an answer that was not kept.
    """
    llm = row.get("model_group") or _name(row, "model", place)
    session = row.get("session_id") or row.get("end_user") or row.get("user") or ""
    failed = str(row.get("status") or "").lower() == "failure"
    return _Request(
        query=_last_message(row, place),
        llm=str(llm),
        reward=0.0 if failed else None,
        cost=_number(row, "spend", place, 0.0, math.inf),
        time=_time(row, "startTime", place),
        propensity=None,
        session=str(session),
    )


def _last_message(row: Row, place: str) -> str:
    cell = _json_cell(row, "messages", place) if row.get("messages") else None
    messages = cell if isinstance(cell, list) else []
    for message in reversed(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = [part.get("text") for part in content if isinstance(part, Mapping)]
                content = "\n".join(part for part in parts if isinstance(part, str))
            if isinstance(content, str) and content:
                return content
    raise ValueError(
        f"{place}: column 'messages' holds no message of a user; LiteLLM keeps them only with "
        "store_prompts_in_spend_logs set to true"
    )


# --- the outcome model ----------------------------------------------------------------------------


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

    None where the log has scores in place of kept and retried answers.
    """
    if not np.isin(log.reward, (0.0, 1.0)).all():
        return None
    rows = np.arange(len(log))
    late = rows >= 3 * len(log) // 4
    model = fit_outcomes(log, contexts, rows[~late])
    chance = model.rates(contexts[late])[np.arange(int(late.sum())), log.llm[late]]
    return calibration(chance, log.reward[late] > 0.5, float(log.reward[~late].mean()))


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
        "requests": len(log),
        "queries": "vectors" if log.texts is None else len(set(log.texts)),
        "outcome": "share kept" if binary else "score",
        "kept": float(log.reward.mean()),
        "cost": None if log.cost is None else float(log.cost.sum()),
        "seconds": None if log.time is None else float(log.time[-1] - log.time[0]),
        "smallest_propensity": None if log.propensity is None else float(log.propensity.min()),
        "llms": sorted(llms, key=lambda row: -int(str(row["requests"]))),
    }


# --- the workload ---------------------------------------------------------------------------------


def logs_workload(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
    cost_weight: float = 0.0,
    pool_size: int = 1000,
    min_rows: int = MIN_ROWS,
    ridge: float = 1.0,
) -> PoolWorkload:
    """Workload of the queries of a log; an outcome model fitted on it says what users keep.

    What an LLM that did not answer would have done is the model's estimate, never an observation:
    look at its calibration with ``llmqueue-bench logs show``. The success rate of an LLM is the
    model's, less ``cost_weight`` times its mean cost, kept within [0.01, 0.99].

    Parameters
    ----------
    path, columns
        See `read_log`.
    context_dim : int, optional
        Length of a context; see `Log.contexts`.
    contexts : str or mapping, optional
        How texts become contexts; see `llmqueue_gym.workloads.embeddings.read_contexts`.
    cost_weight : float
        Keep rate given up per USD.
    pool_size : int
        Queries per instance.
    min_rows : int
        Requests an LLM must have; the others are left out.
    ridge : float
        Penalty of the fit, positive.

    Raises
    ------
    ValueError
        If the log cannot be read, or no outcome model can be fitted.
    """
    log = read_log(path, columns)
    how = None if contexts is None else read_contexts(contexts)
    vectors = log.contexts(context_dim, how)
    counts = np.bincount(log.llm, minlength=len(log.llms))
    enough = counts >= check_count("min_rows", min_rows)
    if not enough.any():
        raise ValueError(
            f"{log.path}: no LLM has min_rows={min_rows} requests (the most has {counts.max()}); "
            "give more rows or lower it"
        )
    if not isinstance(ridge, int | float) or isinstance(ridge, bool) or not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge!r} must be a positive number")
    if check_cost_weight(cost_weight) and log.cost is None:
        raise ValueError(f"cost_weight={cost_weight!r} needs costs, and {log.path} has none")
    rows = np.flatnonzero(enough[log.llm])
    model = fit_outcomes(log, vectors, rows, ridge)
    distinct, online = _distinct(log)
    pool_vectors = vectors[distinct]
    rates = model.rates(pool_vectors)[:, enough]
    cost = np.tile(model.cost[enough], (len(distinct), 1))
    value = np.clip(rates - cost_weight * cost, *RATE_BOUNDS)
    llms = tuple(name for name, use in zip(log.llms, enough, strict=True) if use)
    pool = QueryPool(pool_vectors, rates, cost if log.cost is not None else None, llms)
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
