"""What a Parquet file unpacks to, told by its footer before anything is unpacked.

A few kilobytes can stand for any number of rows, and for texts of any length: both are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

SMALL, MAX_RATIO = 2**30, 20
"""A file may unpack to 1 GB, or to 20 times its size."""

VALUE_BYTES = 16
"""Memory of a value, without the letters of a text."""

_MAGIC = b"PAR1"
_TAIL = 8  # length of the footer, and the magic
_NUM_ROWS, _ROW_GROUPS = 3, 4  # numbers of fields in parquet.thrift
_COLUMNS, _META_DATA, _NUM_VALUES, _UNCOMPRESSED = 1, 3, 5, 6


class Unpacked(NamedTuple):
    """Rows of a file, values in its columns (entries of lists count), bytes of its pages."""

    rows: int
    values: int
    bytes: int


def check_unpacked(path: Path) -> None:
    """Refuse a file whose footer stands for far more than its size.

    Raises
    ------
    ValueError
        If it does, or if there is no whole footer.
    """
    found = read_footer(path)
    _check(path, f"{found.rows:,} rows", VALUE_BYTES * found.values + found.bytes)


def check_texts(path: Path, scan: pl.LazyFrame) -> None:
    """Refuse a file whose texts are far longer than it, one being stored once for many rows.

    Raises
    ------
    ValueError
        If they are.
    """
    import polars as pl

    texts = [_length(pl.col(name), kind) for name, kind in scan.collect_schema().items()]
    expressions = [text.alias(str(place)) for place, text in enumerate(texts) if text is not None]
    if expressions:
        _check(path, "its texts", sum(scan.select(expressions).collect().row(0)))


def _length(column: pl.Expr, kind: Any) -> pl.Expr | None:
    """Sum of the bytes of the texts in a column, at any depth; None if it holds none."""
    import polars as pl

    if kind == pl.String:
        return column.str.len_bytes().cast(pl.Int64).sum()
    if isinstance(kind, pl.Struct):
        parts = [_length(column.struct.field(f.name), f.dtype) for f in kind.fields]
        found = [part for part in parts if part is not None]
        return pl.sum_horizontal(found) if found else None
    return _length(column.explode(), kind.inner) if isinstance(kind, pl.List | pl.Array) else None


def _check(path: Path, what: str, size: int) -> None:
    limit = max(SMALL, MAX_RATIO * path.stat().st_size)
    if size > limit:
        raise UsageError(
            f"{path}: {what} unpack to {size / 2**20:,.0f} MB, more than {limit / 2**20:,.0f} MB "
            f"and {MAX_RATIO} times the file's size; take fewer rows or columns"
        )


# --- the footer: Thrift's compact protocol --------------------------------------------------------


def read_footer(path: Path) -> Unpacked:
    """Read what the footer of a file says.

    Raises
    ------
    ValueError
        If there is no whole footer.
    """
    try:
        with path.open("rb") as file:
            meta = _struct(_footer(file))
        groups = meta[_ROW_GROUPS]
        chunks = [chunk[_META_DATA] for group in groups for chunk in group[_COLUMNS]]
        values = sum(chunk[_NUM_VALUES] for chunk in chunks)
        found = Unpacked(meta[_NUM_ROWS], values, sum(chunk[_UNCOMPRESSED] for chunk in chunks))
        if min(found) < 0:
            raise UsageError("a negative number")
    except (OSError, ValueError, LookupError, TypeError, StopIteration, RecursionError) as error:
        raise UsageError(
            f"{path}: not a complete Parquet file (its footer cannot be read); is it empty or "
            "cut off?"
        ) from error
    return found


def _footer(file: BinaryIO) -> Iterator[int]:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _TAIL, 0))
    tail = file.read()
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > end - _TAIL:
        raise UsageError("no footer")
    file.seek(end - _TAIL - length)
    return iter(file.read(length))


def _struct(data: Iterator[int]) -> dict[int, Any]:
    """Fields of a struct by their numbers."""
    fields: dict[int, Any] = {}
    number = 0
    while head := next(data):
        kind, step = head & 15, head >> 4
        number = number + step if step else _zigzag(data)
        fields[number] = kind == 1 if kind in (1, 2) else _value(kind, data)
    return fields


def _value(kind: int, data: Iterator[int]) -> Any:
    if kind in (1, 2, 3):  # true and false in a list, and bytes
        return next(data)
    if kind in (4, 5, 6):
        return _zigzag(data)
    if kind == 7:
        return bytes(islice(data, 8))
    if kind == 8:
        return bytes(islice(data, _varint(data)))
    if kind in (9, 10):
        head = next(data)
        size = head >> 4 if head >> 4 < 15 else _varint(data)
        return [_value(head & 15, data) for _ in range(size)]
    if kind == 12:
        return _struct(data)
    raise UsageError(f"a value of kind {kind}")


def _zigzag(data: Iterator[int]) -> int:
    number = _varint(data)
    return (number >> 1) ^ -(number & 1)


def _varint(data: Iterator[int]) -> int:
    number = shift = 0
    while (byte := next(data)) & 128:
        number |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise UsageError("a number of more than 64 bits")
    return number | byte << shift
