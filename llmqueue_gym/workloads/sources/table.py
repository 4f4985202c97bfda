"""Any table of queries: CSV, JSONL or Parquet with a text or embedding column and scores per LLM.

Every error names the file, the row (CSV, Parquet) or line (JSONL), counted from 1, and the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.workloads.cells import Row, cell_of, json_cell, show, text_cell, vector_cell
from llmqueue_gym.workloads.embeddings import ContextMethod, read_contexts, text_pool
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool, file_sha256, unknown_name
from llmqueue_gym.workloads.rows import find_file, read_rows

Columns = str | tuple[tuple[str, str], ...]
"""Where scores are: the name of one column of {LLM: score} objects, or (LLM, column) pairs."""


def table_workload(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    text: str | None = None,
    embedding: str | None = None,
    cost: Mapping[str, str] | Sequence[str] | str | None = None,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
    cost_weight: float = 0.0,
    pool_size: int = 1000,
    scale: str = "quality",
) -> PoolWorkload:
    """Workload of the queries in a file.

    Parameters
    ----------
    path : str
        A ``.csv``, ``.jsonl`` (``.ndjson``) or ``.parquet`` file.
    quality : mapping, list of str or str
        Where the quality of each LLM is, in [0, 1]: a mapping LLM -> column, a list of columns
        named like the LLMs, or the name of one column of JSON objects (structs) {LLM: score}.
        A list sets the order of the LLMs; otherwise they are sorted by name.
    text : str, optional
        Column of the queries' texts; see `llmqueue_gym.workloads.embeddings`. About a quarter of
        the texts only serve to fit the embedding; the rest arrive.
    embedding : str, optional
        Column of ready context vectors, used as they are: lists of numbers (in CSV a JSON list).
        Exactly one of ``text`` and ``embedding`` is given. Nothing is fitted, so all rows arrive.
    cost : mapping, list of str or str, optional
        Likewise the cost in USD; a list follows the order of the list ``quality``.
    context_dim : int, optional
        Length of a context; 64 by default for text, given by the column for an embedding.
    contexts : str or mapping, optional
        How texts become contexts; see `llmqueue_gym.workloads.embeddings.read_contexts`.
    cost_weight, pool_size, scale
        See `llmqueue_gym.workloads.pool.PoolWorkload`.

    Raises
    ------
    ValueError
        If the file cannot be read in full, a column is missing or a value is not what it must be.
    ImportError
        If reading the format, or embedding its text, needs a package that is not installed.
    """
    pool, online = table_pool(
        path,
        quality,
        text=text,
        embedding=embedding,
        cost=cost,
        context_dim=context_dim,
        contexts=contexts,
    )
    return PoolWorkload(pool, online, cost_weight=cost_weight, pool_size=pool_size, scale=scale)


def table_pool(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    text: str | None = None,
    embedding: str | None = None,
    cost: Mapping[str, str] | Sequence[str] | str | None = None,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
) -> tuple[QueryPool, NDArray[np.int64] | None]:
    """Read the queries of a file and the rows that may arrive, None for all; once while unchanged.

    Parameters and errors are those of `table_workload`.
    """
    source = find_file(path)
    if (text is None) == (embedding is None):
        raise ValueError(
            f"text={text!r}, embedding={embedding!r}: name exactly one of the two columns"
        )
    pairs = _columns("quality", quality)
    costs = None if cost is None else _columns("cost", cost)
    if isinstance(cost, list | tuple) and costs is not None:
        if not isinstance(quality, list | tuple) or len(quality) != len(cost):
            raise ValueError(
                f"cost={cost!r}: a list needs a list `quality` of the same length; "
                "give a mapping LLM -> column instead"
            )
        costs = tuple(zip(quality, cost, strict=True))
    layout = _Layout(str(source), text, embedding, pairs, costs)
    if contexts is not None and text is None:
        raise ValueError(
            f"contexts={contexts!r} says how texts become contexts, but this table brings vectors"
        )
    stat = source.stat()
    changed = stat.st_mtime_ns, stat.st_size
    return _load(layout, context_dim, changed, read_contexts(contexts))


def table_fingerprint(path: str, **_: Any) -> str:
    """SHA-256 of the file."""
    return file_sha256(find_file(path))


@dataclass(frozen=True)
class _Layout:
    """Which file, and what its columns mean."""

    path: str
    text: str | None
    embedding: str | None
    quality: Columns
    cost: Columns | None


@dataclass
class _Parsed:
    """What has been read so far, one entry a row."""

    texts: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    quality: list[list[float]] = field(default_factory=list)
    cost: list[list[float]] = field(default_factory=list)
    llms: tuple[str, ...] = ()


@lru_cache(maxsize=8)
def _load(
    layout: _Layout,
    context_dim: int | None,
    stamp: tuple[int, int],
    how: ContextMethod,
) -> tuple[QueryPool, NDArray[np.int64] | None]:
    """Pool and online rows (None: all); the stamp makes a changed file a new cache entry."""
    parsed = _parse(layout)
    quality = np.array(parsed.quality, dtype=np.float64)
    cost = None if layout.cost is None else np.array(parsed.cost, dtype=np.float64)
    if layout.text is not None:
        return text_pool(parsed.texts, quality, cost, parsed.llms, context_dim, how)
    vectors = np.stack(parsed.vectors)
    if context_dim is not None and context_dim != vectors.shape[1]:
        raise ValueError(
            f"context_dim={context_dim}, but the vectors in column {layout.embedding!r} of "
            f"{layout.path} have length {vectors.shape[1]}; leave context_dim out"
        )
    return QueryPool(vectors, quality, cost, parsed.llms), None


def _parse(layout: _Layout) -> _Parsed:
    parsed = _Parsed()
    for place, row in read_rows(Path(layout.path)):
        if layout.text is not None:
            parsed.texts.append(text_cell(row, layout.text, place))
        if layout.embedding is not None:
            vector = vector_cell(row, layout.embedding, place)
            if parsed.vectors and len(vector) != len(parsed.vectors[0]):
                raise ValueError(
                    f"{place}: column {layout.embedding!r} has a vector of length {len(vector)}, "
                    f"but the first row's has {len(parsed.vectors[0])}"
                )
            parsed.vectors.append(vector)
        found = _scores(row, layout.quality, place)
        if not parsed.llms:
            ordered = found if not isinstance(layout.quality, str) else sorted(found)
            parsed.llms = tuple(ordered)
        parsed.quality.append(_numbers(found, parsed.llms, layout.quality, place, 1.0))
        if layout.cost is not None:
            found = _scores(row, layout.cost, place)
            parsed.cost.append(_numbers(found, parsed.llms, layout.cost, place, np.inf))
    if not parsed.quality:
        raise ValueError(f"{layout.path}: the file has no rows")
    return parsed


def _columns(option: str, value: object) -> Columns:
    """Bring the three ways to name score columns into one hashable form."""
    pairs: tuple[tuple[Any, Any], ...]
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping):
        pairs = tuple(value.items())
    elif isinstance(value, list | tuple):
        pairs = tuple((name, name) for name in value)
    else:
        pairs = ()
    if not pairs or not all(isinstance(name, str) and name for pair in pairs for name in pair):
        raise ValueError(
            f"{option}={value!r} must be a mapping LLM -> column, a list of columns, or one column"
        )
    llms = [llm for llm, _ in pairs]
    repeated = [llm for llm in llms if llms.count(llm) > 1]
    if repeated:
        raise ValueError(f"{option}={value!r} names {repeated[0]!r} more than once")
    return tuple(sorted(pairs)) if isinstance(value, Mapping) else pairs


def _scores(row: Row, columns: Columns, place: str) -> Row:
    """Raw scores {LLM: value} of one row."""
    if not isinstance(columns, str):
        return {llm: cell_of(row, column, place) for llm, column in columns}
    found = json_cell(row, columns, place)
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{place}: column {columns!r} must be an object {{LLM: score}}, not {show(found)}"
        )
    return found


def _numbers(
    found: Row, llms: tuple[str, ...], columns: Columns, place: str, high: float
) -> list[float]:
    """Scores of one row in the order of ``llms``, each a number in [0, high]."""
    extra = sorted(set(found) - set(llms))
    if extra:
        raise unknown_name(f"{place}: LLM", extra[0], llms)
    numbers = []
    for llm in llms:
        where = columns if isinstance(columns, str) else dict(columns).get(llm)
        label = f"{place}: score of LLM {llm!r} in column {where!r}"
        if found.get(llm) is None:
            raise ValueError(f"{label} is missing")
        try:
            number = float(found[llm])
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{label} is not a number: {show(found[llm])}") from None
        if not np.isfinite(number) or not 0.0 <= number <= high:
            raise ValueError(f"{label} is {number}, expected a number in [0, {high:g}]")
        numbers.append(number)
    return numbers
