"""Rows of a CSV file, streamed: any size in little memory, and every error names its row.

Rows are counted from 1 after the header, by record, so a line break inside quotes counts none.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_FIELD_LIMIT = 2**30
"""Longest cell in characters; the csv module's own limit of 131,072 is less than some prompts."""


def read_csv(path: Path, needed: Sequence[str]) -> Iterator[list[str]]:
    """Yield the header, then every row as a list of cells; blank lines are skipped.

    Bytes that are not UTF-8 arrive as lone surrogates, so that reading goes on and `check_utf8`
    can say in which cell they are.

    Raises
    ------
    ValueError
        If a needed column is missing or repeated, a row has another number of cells than the
        header, or the file ends inside a quoted cell; the message names the file and the row.
    """
    before = csv.field_size_limit(min(_FIELD_LIMIT, sys.maxsize))
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _rows(path, csv.reader(file, strict=True), needed)
    finally:
        csv.field_size_limit(before)


def _rows(path: Path, reader: Iterator[list[str]], needed: Sequence[str]) -> Iterator[list[str]]:
    number = 0
    header: list[str] = []
    try:
        header = next(reader, [])
        for name in needed:
            if header.count(name) != 1:
                raise ValueError(
                    f"{path}: the header names column {name!r} {header.count(name)} times, "
                    f"expected once; it has: {', '.join(header[:20]) or 'nothing'}"
                )
        yield header
        for row in reader:
            if not row:
                continue
            number += 1
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, row {number}: {len(row)} cells for {len(header)} columns; "
                    "is the file cut off?"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, row {number + 1}: {error}; is the file cut off?") from error


def check_utf8(cell: str, path: Path, row: int, column: str) -> str:
    """Return the cell, or raise a ValueError if its bytes were not UTF-8."""
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        byte = ord(cell[error.start]) - 0xDC00
        raise ValueError(
            f"{path}, row {row}, column {column!r}: byte {byte:#04x} is not UTF-8; "
            "convert the file to UTF-8"
        ) from error
    return cell
