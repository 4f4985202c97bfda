"""WildChat-1M (Zhao et al., arXiv 2405.01470): conversations of users who ask again, or do not.

Official files: Parquet, a row a conversation. Stored is a row a user turn; the workload is that of
`llmqueue_gym.workloads.sources.conversations`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.sources import Source
from llmqueue_gym.workloads.sources.retrials import (
    COMPARED,
    CONTINUING,
    THRESHOLD,
    normalise,
    overlap,
    trigrams,
)
from llmqueue_gym.workloads.stored import CONVERSATIONS, Facts, Tell, reading_parquet

if TYPE_CHECKING:
    import polars as pl
from llmqueue_gym.workloads.sources.conversations import wildchat_workload

BATCH = 20_000
"""Conversations that are held in memory at a time."""

AGGREGATE_SAMPLE = 1000
"""Pairs on which the difflib definition of the published aggregates is computed beside ours."""

_NEEDED = ("conversation", "model", "timestamp")

_OPTIONAL = ("conversation_hash", "language", "hashed_ip")


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
