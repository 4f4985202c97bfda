"""Any table of queries: CSV, JSONL or Parquet with a text or embedding column and scores per LLM.

Every error names the file, the row (CSV, Parquet) or line (JSONL), counted from 1, and the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import Row, cell_of, seconds_of, text_cell, vector_cell
from llmqueue_gym.workloads.columns import (
    Columns,
    label_of,
    numbers_of,
    read_columns,
    scores_of,
)
from llmqueue_gym.workloads.embeddings import ContextMethod, read_contexts, text_pool
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool, file_sha256, takes_options_of
from llmqueue_gym.workloads.prices import Bills, Step, Tariff, now_over_then, read_tariff
from llmqueue_gym.workloads.rows import find_file, read_rows
from llmqueue_gym.workloads.sources import Source


def read_layout(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    text: str | None = None,
    embedding: str | None = None,
    cost: Mapping[str, str] | Sequence[str] | str | None = None,
    prices: Any = None,
    tokens: Sequence[Any] | None = None,
    timestamp: str | None = None,
    clip: float = 0.0,
    only: Mapping[str, Any] | None = None,
) -> Layout:
    """Check the options that say what the columns of a file mean.

    Parameters
    ----------
    path : str
        A file of one of `llmqueue_gym.workloads.rows.SUFFIXES`.
    quality : mapping, list of str or str
        Where the quality of each LLM is, in [0, 1], or true or false: a mapping LLM -> column, a
        list of columns named like the LLMs, or the name of one column of JSON objects (structs)
        {LLM: score}. A list sets the order of the LLMs; otherwise they are sorted by name.
    text : str, optional
        Column of the queries' texts; see `llmqueue_gym.workloads.embeddings`. About a quarter of
        the texts only serve to fit the embedding; the rest arrive.
    embedding : str, optional
        Column of ready context vectors, used as they are: lists of numbers (in CSV a JSON list).
        Exactly one of ``text`` and ``embedding`` is given. Nothing is fitted, so all rows arrive.
    cost : mapping, list of str or str, optional
        Likewise the cost in USD; a list follows the order of the list ``quality``.
    prices : mapping, pair, number or str, optional
        List prices: USD a query (a number), or USD per million input and output tokens (a pair); a
        mapping LLM -> price, or one price of all LLMs. A price that changes is a list of
        ``{"from": date, "price": price}``. A column of objects {LLM: price}, or a mapping LLM ->
        column, holds those of each row. Without ``cost`` they are what answers cost, at the prices
        when the table ends. They are public: ``LLMDeploy-v0`` shows them, those of tokens for a
        query of as many tokens as the table's answers have on average, over all LLMs.
    tokens : pair, optional
        Input and output tokens, for prices of tokens. Each is a number of tokens a query, a
        mapping LLM -> column, or the name of one column, of numbers (the same for all LLMs) or of
        JSON objects (structs) {LLM: number}.
    timestamp : str, optional
        Column of the rows' times, for prices that change.
    clip : float
        Scores at most so far outside [0, 1] count as 0 or 1; those farther outside are an error.
    only : mapping, optional
        Column -> value, or list of values: other rows are left out. Values are compared as text.

    Raises
    ------
    ValueError
        If an option is not what it must be, or there is no such file.
    """
    source = find_file(path)
    if (text is None) == (embedding is None):
        raise UsageError(
            f"text={text!r}, embedding={embedding!r}: name exactly one of the two columns"
        )
    pairs = read_columns("quality", quality)
    costs = None if cost is None else read_columns("cost", cost)
    if isinstance(cost, list | tuple) and costs is not None:
        if not isinstance(quality, list | tuple) or len(quality) != len(cost):
            raise UsageError(
                f"cost={cost!r}: a list needs a list `quality` of the same length; "
                "give a mapping LLM -> column instead"
            )
        costs = tuple(zip(quality, cost, strict=True))
    clip = checks.number("clip", clip, "[0, 1]")
    tariff = read_tariff(prices, tokens)
    kept = _read_only(only)
    return Layout(str(source), text, embedding, pairs, costs, tariff, timestamp, clip, kept)


def _read_only(only: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Bring ``only`` into a hashable form."""
    if only is None:
        return ()
    kept = []
    if isinstance(only, Mapping):
        for column, values in only.items():
            listed = values if isinstance(values, list | tuple) else [values]
            kept.append((column, tuple(str(value) for value in listed)))
    if not kept or not all(isinstance(column, str) and values for column, values in kept):
        raise UsageError(
            f"only={only!r} must be a mapping column -> value or list of values, such as "
            "{'task': ['math', 'code']}"
        )
    return tuple(kept)


@takes_options_of(read_layout)
def table_pool(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[QueryPool, NDArray[np.int64] | None]:
    """Read the queries of a file and the rows that may arrive, None for all; once while unchanged.

    Parameters
    ----------
    path, quality, options
        See `read_layout`.
    context_dim : int, optional
        Length of a context; for text 64 by default, fewer where the offline split holds fewer
        texts; given by the column for an embedding.
    contexts : str or mapping, optional
        How texts become contexts; see `llmqueue_gym.workloads.embeddings.read_contexts`.

    Raises
    ------
    ValueError
        If the file cannot be read in full, a column is missing or a value is not what it must be.
    ImportError
        If reading the format, or embedding its text, needs a package that is not installed.
    """
    layout = read_layout(path, quality, **options)
    if contexts is not None and layout.text is None:
        raise UsageError(
            f"contexts={contexts!r} says how texts become contexts, but this table brings vectors"
        )
    stat = Path(layout.path).stat()
    changed = stat.st_mtime_ns, stat.st_size
    return _load(layout, context_dim, changed, read_contexts(contexts))


@takes_options_of(table_pool)
def table_workload(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    cost_weight: float = 0.0,
    pool_size: int = 1000,
    scale: str = "quality",
    **options: Any,
) -> PoolWorkload:
    """Workload of the queries in a file.

    Parameters
    ----------
    path, quality, options
        See `read_layout` and `table_pool`.
    cost_weight, pool_size, scale
        See `llmqueue_gym.workloads.pool.PoolWorkload`.
    """
    pool, online = table_pool(path, quality, **options)
    return PoolWorkload(pool, online, cost_weight=cost_weight, pool_size=pool_size, scale=scale)


def table_fingerprint(path: str, **_: Any) -> str:
    """SHA-256 of the file."""
    return file_sha256(find_file(path))


@dataclass(frozen=True)
class Layout:
    """Which file, and what its columns mean."""

    path: str
    text: str | None
    embedding: str | None
    quality: Columns
    cost: Columns | None = None
    tariff: Tariff | None = None
    timestamp: str | None = None
    clip: float = 0.0
    only: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass
class Parsed:
    """What a file holds, one entry a row; ``cost`` is empty where there is none.

    ``list_price`` has one entry an LLM; see ``prices``. ``times`` are the first and the last.
    """

    texts: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    quality: list[list[float]] = field(default_factory=list)
    cost: list[list[float]] = field(default_factory=list)
    llms: tuple[str, ...] = ()
    list_price: list[float] | None = None
    price_changes: tuple[Step, ...] = ()
    times: tuple[float, float] | None = None


@lru_cache(maxsize=8)
def _load(
    layout: Layout,
    context_dim: int | None,
    stamp: tuple[int, int],
    how: ContextMethod,
) -> tuple[QueryPool, NDArray[np.int64] | None]:
    """Pool and online rows (None: all); the stamp makes a changed file a new cache entry."""
    parsed = parse(layout)
    quality = np.array(parsed.quality, dtype=np.float64)
    cost = np.array(parsed.cost, dtype=np.float64) if parsed.cost else None
    if layout.text is not None:
        pool, online = text_pool(parsed.texts, quality, cost, parsed.llms, context_dim, how)
        return _listed(pool, parsed), online
    vectors = np.stack(parsed.vectors)
    if context_dim is not None and context_dim != vectors.shape[1]:
        raise UsageError(
            f"context_dim={context_dim}, but the vectors in column {layout.embedding!r} of "
            f"{layout.path} have length {vectors.shape[1]}; leave context_dim out"
        )
    return _listed(QueryPool(vectors, quality, cost, parsed.llms), parsed), None


def _listed(pool: QueryPool, parsed: Parsed) -> QueryPool:
    """Return the pool with the list prices of its table."""
    price = None if parsed.list_price is None else np.array(parsed.list_price)
    changes, times = parsed.price_changes, parsed.times
    return replace(pool, list_price=price, price_changes=changes, times=times)


def parse(layout: Layout) -> Parsed:
    """Read the rows of a file."""
    parsed = Parsed()
    bills = None if layout.tariff is None else Bills(layout.tariff)
    stamps: list[object] = []
    places: list[str] = []
    seen = False
    for place, row in read_rows(Path(layout.path)):
        seen = True
        if any(str(cell_of(row, column, place)) not in values for column, values in layout.only):
            continue
        if layout.text is not None:
            parsed.texts.append(text_cell(row, layout.text, place))
        if layout.embedding is not None:
            vector = vector_cell(row, layout.embedding, place)
            if parsed.vectors and len(vector) != len(parsed.vectors[0]):
                raise UsageError(
                    f"{place}: column {layout.embedding!r} has a vector of length {len(vector)}, "
                    f"but the first row's has {len(parsed.vectors[0])}"
                )
            parsed.vectors.append(vector)
        found = scores_of(row, layout.quality, place)
        if not parsed.llms:
            ordered = found if not isinstance(layout.quality, str) else sorted(found)
            parsed.llms = tuple(ordered)
        numbers = numbers_of(found, parsed.llms, layout.quality, place)
        parsed.quality.append(_in_unit_interval(numbers, parsed.llms, layout, place))
        if layout.cost is not None:
            found = scores_of(row, layout.cost, place)
            parsed.cost.append(_costs(found, parsed.llms, layout.cost, place))
        if layout.timestamp is not None:
            stamps.append(cell_of(row, layout.timestamp, place))
            places.append(place)
        if bills is not None:
            bills.add(row, parsed.llms, place)
    if not parsed.quality:
        wanted = f" with {dict(layout.only)}; see the option only" if seen else ""
        raise UsageError(f"{layout.path}: the file has no rows{wanted}")
    times = None
    if layout.timestamp is not None:
        times = seconds_of(stamps, places, layout.timestamp)
        parsed.times = float(times.min()), float(times.max())
    if bills is not None:
        bill = bills.total(parsed.llms, times)
        parsed.list_price, parsed.price_changes = bill.listed, bill.changes
        if layout.cost is None:
            parsed.cost = bill.costs
        elif times is not None:
            ratio = now_over_then(bill.changes, times, parsed.llms)
            parsed.cost = (np.array(parsed.cost) * ratio).tolist()
    return parsed


def _in_unit_interval(
    numbers: list[float], llms: tuple[str, ...], layout: Layout, place: str
) -> list[float]:
    """Return the qualities of a row, clipped where they are as little outside as may be."""
    if min(numbers) >= 0.0 and max(numbers) <= 1.0:
        return numbers
    for llm, number in zip(llms, numbers, strict=True):
        if not -layout.clip <= number <= 1.0 + layout.clip:
            raise UsageError(
                f"{label_of(llm, layout.quality, place)} is {number}, expected a number in [0, 1]; "
                "rescale the column, or let `clip` count what is a little outside as 0 or 1"
            )
    return [min(max(number, 0.0), 1.0) for number in numbers]


def _costs(found: Row, llms: tuple[str, ...], columns: Columns, place: str) -> list[float]:
    numbers = numbers_of(found, llms, columns, place, "cost")
    for llm, number in zip(llms, numbers, strict=True):
        if number < 0.0:
            label = label_of(llm, columns, place, "cost")
            raise UsageError(f"{label} is {number}, expected a number in [0, inf]")
    return numbers


SOURCE = Source("table", workload=table_workload, fingerprint=table_fingerprint)
