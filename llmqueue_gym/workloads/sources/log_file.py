"""Reading own logs: a file with a row an answered request, or what a gateway or tracer exports.

The schema is on the page "Your own logs" of the documentation. Every error names the file, the row
or line, and the column.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import (
    Row,
    seconds_of,
)
from llmqueue_gym.workloads.embeddings import ContextMethod, embed_texts
from llmqueue_gym.workloads.encoder import TextEncoder
from llmqueue_gym.workloads.pool import file_sha256
from llmqueue_gym.workloads.prices import (
    Price,
    PriceList,
    Tokens,
    read_prices,
    recorded_prices,
    usd,
)
from llmqueue_gym.workloads.rows import find_file, read_rows
from llmqueue_gym.workloads.sources.exports import Gateway
from llmqueue_gym.workloads.sources.gateways import LITELLM, gateway_of, gateway_rows
from llmqueue_gym.workloads.sources.litellm import SpendLog, read_spend_log
from llmqueue_gym.workloads.sources.own_rows import (
    FIELDS,
    OF_SERVICE,
    Request,
    reader_of,
    unanswered,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_REWARDS = 10
"""Requests from which on a keep rate near 0 or 1 is worth a warning."""

ONE_SIDED = 0.005
"""A keep rate that is so near 0 or 1 comes with a warning."""

OWN = "a row an answered request"
"""What a log of our own schema is read as."""


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
    prices : PriceList, optional
        List prices of LLMs, as given or in the column ``price``.
    tokens : ndarray of float64, shape (n, 2), or None
        Input and output tokens, NaN where the log does not count them.
    time : ndarray of float64, shape (n,), or None
        Seconds.
    propensity : ndarray of float64, shape (n,), or None
        Probability with which whoever logged chose that LLM for that query.
    repeat : ndarray of bool, shape (n,), or None
        Requests that ask once more, in other words perhaps, what their session just asked; None
        where the log has no sessions.
    left_out : mapping of str to int
        Rows that are no question to a chat LLM, by cause.
    notes : tuple of str
        What a reader of the figures has to know.
    source : str
        What the file was read as.
    told : str
        How kept answers are told.
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
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = OWN
    told: str = ""
    prices: PriceList | None = None
    tokens: Floats | None = None

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
                raise UsageError(
                    f"{self.path}: the log brings vectors of length {self.vectors.shape[1]}; leave "
                    "context_dim and contexts out"
                )
            return self.vectors
        assert self.texts is not None
        distinct = sorted(set(self.texts))
        place = {text: row for row, text in enumerate(distinct)}
        vectors = embed_texts(distinct, context_dim, how)
        return vectors[[place[text] for text in self.texts]]

    def encoder(
        self, context_dim: int | None = None, how: ContextMethod | None = None
    ) -> TextEncoder:
        """Return the encoder that gives the same `contexts`, and those of texts to come."""
        if self.texts is None:
            raise UsageError(f"{self.path}: the log brings vectors, so there is no text to encode")
        return TextEncoder(sorted(set(self.texts)), context_dim, how)


def read_log(
    path: str,
    columns: Mapping[str, str] | None = None,
    clip_scores: bool = False,
    prices: Any = None,
) -> Log:
    """Read a log.

    Parameters
    ----------
    path : str
        A file of `llmqueue_gym.workloads.rows.SUFFIXES` with a row an answered request, or in one
        of these formats what one of `llmqueue_gym.workloads.sources.gateways.GATEWAYS` exports.
    columns : mapping of str to str, optional
        Names of columns that are called otherwise, field -> column. Fields are ``query`` (text) or
        ``embedding`` (list of numbers), ``llm``, ``kept`` (true, false, 1, 0) or ``score`` (in
        [0, 1]), and optionally ``cost`` (USD), ``timestamp`` (a number or ISO 8601), ``propensity``
        (in (0, 1]) and ``price`` (the list price of the LLM then). Of a gateway's export only
        ``score`` may be named: the feedback that counts, where there are several kinds of it.
    clip_scores : bool
        Whether scores up to 0.05 outside [0, 1] count as 0 or 1.
    prices : mapping, pair or number, optional
        List prices: USD a query, or [USD per million input tokens, USD per million output tokens],
        or a list of ``{"from": date, "price": price}``; of each LLM, or one for all. Requests that
        do not say what they cost cost their tokens by them.

    Raises
    ------
    ValueError
        If the file cannot be read in full, a column is missing or a value is not what it must be.
    """
    source = find_file(path)
    names = tuple(sorted((columns or {}).items()))
    for field_, name in names:
        if field_ not in (*FIELDS, *OF_SERVICE):
            turned = name in FIELDS and f"; the field stands first: {name}={field_}"
            raise UsageError(
                f"{checks.unknown_name('columns: field', field_, FIELDS)}{turned or ''}"
            )
        if not isinstance(name, str) or not name:
            raise UsageError(f"columns: {field_}={name!r} must be the name of a column")
    stat = source.stat()
    listed = None if prices is None else read_prices(prices)
    return _load(str(source), names, clip_scores, listed, (stat.st_mtime_ns, stat.st_size))


def log_fingerprint(path: str, **_: Any) -> str:
    """SHA-256 of the file."""
    return file_sha256(find_file(path))


@lru_cache(maxsize=4)
def _load(
    path: str,
    names: tuple[tuple[str, str], ...],
    clip_scores: bool,
    prices: PriceList | None,
    _: tuple[int, int],
) -> Log:
    rows = iter(read_rows(Path(path)))
    start = next(rows, None)
    if start is None:
        raise UsageError(f"{path}: the file has no rows")
    first, renamed = start[1], dict(names)
    every = itertools.chain([start], rows)
    gateway = gateway_of(first)
    rated = any(renamed.get(field_, field_) in first for field_ in ("kept", "score"))
    if gateway is None or (rated and "verdict" not in first):
        return _of_own(path, every, renamed, clip_scores, prices)
    only = renamed.pop("score", None)
    if renamed or (only is not None and gateway is LITELLM):
        raise UsageError(
            f"columns={dict(names)!r}: {gateway.name} are read by their own columns; leave columns "
            "out, or name one that the file has for 'kept' or 'score'"
        )
    return _of_gateway(path, gateway, every, only, prices)


def _of_own(
    path: str,
    rows: Iterable[tuple[str, Row]],
    names: dict[str, str],
    clip_scores: bool,
    prices: PriceList | None,
) -> Log:
    """Log of the schema."""
    requests: list[Request] = []
    places: list[str] = []
    read, left, told = None, 0, ""
    for place, row in rows:
        if read is None:
            read = reader_of(path, row, names, clip_scores, prices)
            columns = (names.get(field_, field_) for field_ in ("kept", "score"))
            told = next(f"column {column!r}" for column in columns if column in row)
        if unanswered(row, names.get("start", "start")):
            left += 1
            continue
        requests.append(read(place, row))
        places.append(place)
        if not isinstance(requests[0].query, str):
            first, own = requests[0].query, requests[-1].query
            if len(own) != len(first):
                raise UsageError(
                    f"{place}: column 'embedding' has a vector of length {len(own)}, but the first "
                    f"row's has {len(first)}"
                )
    if not requests:
        raise UsageError(f"{path}: no request was answered")
    times = None
    order = np.arange(len(requests))
    if requests[0].timestamp is not None:
        column = names.get("timestamp", "timestamp")
        times = seconds_of([request.timestamp for request in requests], places, column)
        order = np.argsort(times, kind="stable")
    requests = [requests[row] for row in order]
    queries = [request.query for request in requests]
    texts = isinstance(queries[0], str)
    llms, llm = _indexed([request.llm for request in requests])
    if times is not None:
        times = times[order]
    notes: list[str] = []
    if requests[0].price is not None:
        prices = _recorded(path, requests, times)
    if prices is not None:
        filled = [_filled(each, k, times, prices) for k, each in enumerate(requests)]
        if priced := sum(new is not old for new, old in zip(filled, requests, strict=True)):
            notes.append(f"{priced:,} requests without a cost cost their tokens at the list price")
        requests = filled
        lacking = next((r.llm for r in requests if r.cost is None or math.isnan(r.cost)), None)
        if lacking is not None and any(r.cost is not None for r in requests):
            raise UsageError(
                f"{path}: a request to {lacking!r} has no cost, and no price or tokens to tell it; "
                "add them, or leave the row out"
            )

    def numbers(name: str) -> Floats | None:
        values = [getattr(request, name) for request in requests]
        return None if values[0] is None else np.array(values, dtype=np.float64)

    reward = numbers("reward")
    assert reward is not None
    return Log(
        path,
        tuple(queries) if texts else None,
        None if texts else np.stack(queries),
        llms,
        llm,
        reward,
        numbers("cost"),
        times,
        numbers("propensity"),
        left_out={"no start: nobody answered": left} if left else {},
        notes=(*notes, *_one_sided(reward, "kept")),
        told=told,
        prices=prices,
        tokens=_counts([request.tokens for request in requests]),
    )


def _recorded(path: str, requests: Sequence[Request], times: Floats | None) -> PriceList:
    """Return the list prices that the column ``price`` holds."""
    at = np.zeros(len(requests)) if times is None else times
    seen: dict[str, list[tuple[float, Price]]] = {}
    for time, request in zip(at.tolist(), requests, strict=True):
        if request.price is not None:
            seen.setdefault(request.llm, []).append((time, request.price))
    found = recorded_prices(seen)
    if times is None and found.changes:
        raise UsageError(f"{path}: the prices change, so a column 'timestamp' must say when")
    return found


def _filled(request: Request, row: int, times: Floats | None, prices: PriceList) -> Request:
    """Return the request with its cost at the list price of the time, if it has none."""
    if request.cost is not None and not math.isnan(request.cost):
        return request
    price = prices.at(request.llm, math.inf if times is None else float(times[row]))
    if price is None or (len(price) == 2 and request.tokens is None):
        return request
    return request._replace(cost=usd(price, request.tokens))


def _counts(tokens: Sequence[Tokens | None]) -> Floats | None:
    """Return tokens as an array, NaN where they are not counted; None where nobody counts."""
    counts = np.array([(math.nan, math.nan) if pair is None else pair for pair in tokens])
    return None if np.isnan(counts).all() else counts


def _of_gateway(
    path: str,
    gateway: Gateway,
    rows: Iterable[tuple[str, Row]],
    only: str | None,
    prices: PriceList | None,
) -> Log:
    """Log of what a gateway exports."""
    calls, heard = gateway_rows(gateway, rows, only)
    price_at = None if prices is None else prices.at
    found = read_spend_log(path, calls, price_at, gateway.sessions, gateway.no_prompt)
    found, propensity = _of_our_router(found)
    turns = found.turns
    llms, llm = _indexed([turn.llm for turn in turns])
    notes = [*heard, *found.notes]
    cost = _costs(found, llm, notes)
    if not any(note.startswith("warning: no retrial") for note in notes):
        notes += _one_sided(found.kept, f"kept by {found.told}")
    return Log(
        path,
        tuple(turn.query for turn in turns),
        None,
        llms,
        llm,
        found.kept,
        cost,
        np.array([turn.time for turn in turns], dtype=np.float64),
        propensity,
        found.repeat,
        found.left_out,
        tuple(notes),
        gateway.name,
        told=found.told,
        prices=prices,
        tokens=_counts([turn.tokens for turn in turns]),
    )


def _of_our_router(found: SpendLog) -> tuple[SpendLog, Floats | None]:
    """Where `llmqueue_gym.live` chose for some: these requests only, and their propensities."""
    rows = [row for row, turn in enumerate(found.turns) if turn.propensity is not None]
    if not rows:
        return found, None
    turns = [found.turns[row] for row in rows]
    left_out, notes = dict(found.left_out), found.notes
    if dropped := len(found.turns) - len(rows):
        left_out["no propensity: the gateway chose"] = dropped
    number = len({turn.llm for turn in turns})
    if fewer := sum(0 < turn.candidates < number for turn in turns):
        notes += (
            f"{fewer:,} requests had fewer candidates than there are LLMs (one was down, or the "
            "budget was short): they do not tell what the others would have earned",
        )
    propensity = np.array([turn.propensity for turn in turns], dtype=np.float64)
    kept, repeat = found.kept[rows], found.repeat[rows]
    return SpendLog(turns, kept, repeat, left_out, notes, found.told), propensity


def _costs(found: SpendLog, llm: Ints, notes: list[str]) -> Floats | None:
    """Return what the answers cost; those of unknown cost count as the mean of their LLM."""
    cost = np.array([turn.cost for turn in found.turns], dtype=np.float64)
    unknown = np.isnan(cost)
    if unknown.all():
        notes.append("no request says what it cost: prices (--prices) and tokens would tell")
        return None
    if unknown.any():
        notes.append(f"{int(unknown.sum()):,} requests without spend count as their LLM's mean")
        for j in range(int(llm.max()) + 1):
            own = cost[(llm == j) & ~unknown]
            cost[(llm == j) & unknown] = (own if own.size else cost[~unknown]).mean()
    return cost


def _indexed(names: Sequence[str]) -> tuple[tuple[str, ...], Ints]:
    """Distinct names, sorted, and which of them each is."""
    llms = tuple(sorted(set(names)))
    index = {llm: j for j, llm in enumerate(llms)}
    return llms, np.array([index[name] for name in names], dtype=np.int64)


def _one_sided(reward: Floats, what: str) -> tuple[str, ...]:
    """Warn where nearly all answers, or nearly none, are kept."""
    share = float(reward.mean())
    if len(reward) < MIN_REWARDS or min(share, 1.0 - share) > ONE_SIDED:
        return ()
    return (
        f"warning: {share:.1%} of the answers are {what}, which says little of the LLMs; is that "
        "what your users did?",
    )
