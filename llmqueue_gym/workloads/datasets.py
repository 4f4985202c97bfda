"""The published data sets by name: how each is imported, and the workloads they become.

``llmqueue-bench data import SOURCE PATH`` runs `import_dataset`; `stored` says how they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import ContextMethod, read_contexts, text_pool
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool, takes_options_of
from llmqueue_gym.workloads.prices import Step
from llmqueue_gym.workloads.sources import SOURCES as EVERY_SOURCE
from llmqueue_gym.workloads.sources import Source
from llmqueue_gym.workloads.sources.table import Parsed, parse, read_layout
from llmqueue_gym.workloads.stored import (
    POOL,
    VECTOR,
    Facts,
    Header,
    Tell,
    check_name,
    quality_and_cost,
    read_header,
    read_table,
    store,
    write_pool,
)

SOURCES: dict[str, Source] = {
    name: source for name, source in EVERY_SOURCE.items() if source.reader is not None
}
"""The published data sets."""

_LIST_PRICE = "list_price"
_CHANGES, _TIMES = "price_changes", "times"
"""Notes with the list prices of a table that was imported with ``prices``, and their changes."""

TABLE = "table"
"""Source of a table of one's own; it has no official files."""


def get_source(name: str) -> Source:
    """Return a source by name, or raise a ValueError with the nearest known name."""
    if name not in SOURCES:
        raise checks.unknown_name("source", name, SOURCES)
    return SOURCES[name]


def import_dataset(
    source: str,
    path: str | Path,
    *,
    name: str | None = None,
    prices: str | Path | None = None,
    patterns: Sequence[str] = (),
    tell: Tell | None = None,
) -> Header:
    """Convert an official file, or a folder of them, and store it for the environments.

    Parameters
    ----------
    source : str
        One of `SOURCES`: ``"routerbench"``, ``"sprout"``, ``"embedllm"`` or ``"wildchat"``.
    path : str or Path
        The file, or the folder that holds the files: those with the official names if there are
        any, else all of the right kind.
    name : str, optional
        Name to store it under, by default the source's.
    prices : str or Path, optional
        JSON file ``{LLM: [USD per million input tokens, per million output tokens]}`` in place of
        the published table, for sources that record tokens.
    patterns : sequence of str, optional
        Only the folder's files with such a name (``*`` stands for anything).
    tell : callable, optional
        Called now and then with the number of rows read so far.

    Raises
    ------
    ValueError
        If something in the file is not as it should be; the message names file, row and column.
    """
    entry = get_source(source)
    reader = entry.reader
    assert reader is not None  # so it is of all published ones
    name = check_name(source if name is None else name)
    files = _official_files(entry, Path(path).expanduser(), patterns)
    table = None if prices is None else Path(prices).expanduser()
    return store(
        name,
        source,
        files,
        lambda out: reader(files, out, table, tell),
        licence=entry.licence,
        reference=entry.reference,
    )


def import_table(
    path: str | Path,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    name: str | None = None,
    **options: Any,
) -> Header:
    """Store a table of your own for the environments, where it is a ``"dataset"``.

    Parameters
    ----------
    path : str or Path
        The file.
    quality, options
        What its columns mean: the options of `llmqueue_gym.workloads.sources.table.read_layout`.
    name : str, optional
        Name to store it under, by default that of the file without its ending.

    Raises
    ------
    ValueError
        If something in the file is not as it should be; the message names file, row and column.
    """
    layout = read_layout(str(path), quality, **options)
    source = Path(layout.path)
    if name is None:
        name = source.name.partition(".")[0].lower()
    return store(
        check_name(name),
        TABLE,
        [source],
        lambda out: _store_table(parse(layout), source, out),
        licence="your own file",
        reference=source.name,
    )


def _store_table(parsed: Parsed, source: Path, out: Path) -> Facts:
    quality, size = np.array(parsed.quality), len(parsed.quality)
    cost = np.array(parsed.cost) if parsed.cost else None
    notes: dict[str, Any] = {}
    if parsed.list_price is not None:
        notes[_LIST_PRICE] = dict(zip(parsed.llms, parsed.list_price, strict=True))
    if parsed.price_changes:
        notes |= {_CHANGES: parsed.price_changes, _TIMES: parsed.times}
    return write_pool(
        out,
        source,
        ids=[str(row) for row in range(1, size + 1)],
        texts=parsed.texts or [""] * size,
        groups=[""] * size,
        quality={llm: quality[:, j] for j, llm in enumerate(parsed.llms)},
        cost=None if cost is None else {llm: cost[:, j] for j, llm in enumerate(parsed.llms)},
        columns={llm: (llm, llm) for llm in parsed.llms},
        notes=notes,
        vectors=np.stack(parsed.vectors) if parsed.vectors else None,
    )


def _official_files(source: Source, path: Path, patterns: Sequence[str] = ()) -> list[Path]:
    """Return the file, or a folder's: by the patterns, else by the official names, else all."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in source.suffixes)
        for wanted in (patterns, source.patterns):
            names = {pattern.rpartition("/")[2] for pattern in wanted}
            named = [p for p in found if any(fnmatchcase(p.name, name) for name in names)]
            if named or patterns:
                found = named
                break
        if not found:
            expected = " or ".join(patterns or source.suffixes)
            raise UsageError(f"path={str(path)!r}: no {expected} file in it")
        return found
    if not path.is_file():
        raise UsageError(f"path={str(path)!r}: there is no such file")
    if path.suffix.lower() not in source.suffixes:
        raise UsageError(f"path={str(path)!r}: expected a {' or '.join(source.suffixes)} file")
    return [path]


# --- workloads ------------------------------------------------------------------------------------


def stored_header(source: str, name: str | None) -> Header:
    """Header of a stored data set that comes from ``source``."""
    header = read_header(source if name is None else name, source)
    if header.source != source:
        workload = header.source if header.source in SOURCES else "dataset"
        raise UsageError(
            f"name={name!r} was imported from {header.source!r}, not from {source!r}; "
            f"use workload {workload!r}"
        )
    return header


def pool_header(name: str) -> Header:
    """Header of a stored pool, whatever it comes from.

    Raises
    ------
    DatasetMissingError
        If it has not been imported.
    ValueError
        If it holds conversations and no pool.
    """
    header = read_header(name, name if name in SOURCES else None)
    if header.facts.kind != POOL:
        raise UsageError(f"data set {name!r} holds {header.facts.kind}, not scores of every LLM")
    return header


def load_pool(
    name: str, context_dim: int | None = None, how: ContextMethod | None = None
) -> tuple[QueryPool, NDArray[np.int64]]:
    """Pool and online rows of a stored data set; the embedding is fitted on the other rows.

    Parameters
    ----------
    name : str
        Name it is stored under.
    context_dim : int, optional
        Length of a context, 64 by default.
    how : ContextMethod, optional
        How texts become contexts.

    Raises
    ------
    DatasetMissingError
        If it has not been imported.
    ValueError
        If it holds conversations and no pool, or its files were changed.
    """
    header = pool_header(name)
    return _load_pool(header.name, header.parquet["sha256"], context_dim, how)


@lru_cache(maxsize=4)
def _load_pool(
    name: str, sha256: str, context_dim: int | None, how: ContextMethod | None
) -> tuple[QueryPool, NDArray[np.int64]]:
    header = read_header(name)
    table = read_table(header)
    quality, cost = quality_and_cost(header, table)
    llms = header.facts.llms
    if VECTOR in table.columns:
        vectors = np.array(table[VECTOR].to_list(), dtype=np.float32)
        if context_dim not in (None, vectors.shape[1]) or how not in (None, ContextMethod()):
            raise UsageError(
                f"data set {name!r} brings context vectors of length {vectors.shape[1]}; leave "
                "context_dim and contexts out"
            )
        pool, online = QueryPool(vectors, quality, cost, llms), np.arange(len(vectors))
    else:
        pool, online = text_pool(table["text"].to_list(), quality, cost, llms, context_dim, how)
    notes = header.facts.notes
    prices = notes.get(_LIST_PRICE)
    listed = replace(
        pool,
        list_price=prices and np.array([prices[llm] for llm in llms]),
        price_changes=tuple(Step(*step) for step in notes.get(_CHANGES) or ()),
        times=notes.get(_TIMES) and tuple(notes[_TIMES]),
    )
    return listed, online


def dataset_workload(
    name: str,
    *,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
    cost_weight: float = 0.0,
    pool_size: int = 1000,
    scale: str = "quality",
) -> PoolWorkload:
    """Workload of a stored pool, wherever it comes from.

    Parameters
    ----------
    name : str
        Name it is stored under.
    context_dim : int, optional
        Length of a context, 64 by default.
    contexts : str or mapping, optional
        How texts become contexts; see `llmqueue_gym.workloads.embeddings.read_contexts`.
    cost_weight, pool_size, scale
        See `llmqueue_gym.workloads.pool.PoolWorkload`.
    """
    pool, online = load_pool(name, context_dim, read_contexts(contexts))
    return PoolWorkload(pool, online, cost_weight=cost_weight, pool_size=pool_size, scale=scale)


@takes_options_of(dataset_workload)
def pool_workload(source: str, *, name: str | None = None, **options: Any) -> PoolWorkload:
    """Workload of the pool of a source, stored under its name or another one."""
    return dataset_workload(stored_header(source, name).name, **options)


def dataset_fingerprint(source: str, *, name: str | None = None, **_: object) -> str:
    """SHA-256 of the stored Parquet file."""
    return str(stored_header(source, name).parquet["sha256"])


def stored_fingerprint(name: str, **_: object) -> str:
    """SHA-256 of the Parquet file of a stored pool."""
    return str(pool_header(name).parquet["sha256"])


def dataset_workloads() -> dict[str, tuple[Callable[..., Any], Callable[..., str]]]:
    """Workload and fingerprint of every source by name, and of any stored pool (``dataset``)."""
    found: dict[str, tuple[Callable[..., Any], Callable[..., str]]] = {
        name: (
            source.workload or partial(pool_workload, name),
            source.fingerprint or partial(dataset_fingerprint, name),
        )
        for name, source in EVERY_SOURCE.items()
    }
    return found | {"dataset": (dataset_workload, stored_fingerprint)}
