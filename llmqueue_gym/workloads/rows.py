"""Rows of a file that came from outside: CSV, TSV, JSON, JSONL or Parquet, plain or gzipped.

Cells of CSV and TSV stand between commas, semicolons or tabs, as the header shows.

Every error names the file and the row (CSV, Parquet, JSON) or line (JSONL), counted from 1; rows of
a CSV file are counted after the header, by record, so a line break inside quotes counts none.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.workloads.cells import Row, show
from llmqueue_gym.workloads.parquet import check_texts, check_unpacked

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
"""Formats that are text; each may be gzipped."""

SUFFIXES = (*TEXT_SUFFIXES, ".parquet", *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
"""How the name of a file may end."""

MAX_LINE = 2**26
"""Longest line of a JSONL file and longest CSV cell: 64 MB, above any prompt."""

MAX_JSON = 2**28
"""Largest JSON file, which is held in memory whole: 256 MB."""

MAX_ROWS = 2**25
"""Rows of a Parquet file: a small one can stand for any number."""

SMALL, MAX_RATIO = 2**26, 100
"""A gzipped file may unpack to 64 MB, or to 100 times its size."""

_SEPARATORS = (",", ";", "\t")
_BLOCK = 2**20
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def find_file(path: object) -> Path:
    """Return the file of that name, if it is there and of a known format.

    Raises
    ------
    ValueError
        If it is not.
    """
    try:
        found = Path(path).expanduser() if isinstance(path, str) else None
        if found is not None and found.is_dir():
            raise UsageError(f"path={path!r} is a folder; name a file in it")
        if found is None or not found.is_file():
            raise UsageError(f"path={path!r}: there is no such file")
    except (OSError, RuntimeError) as error:  # no home folder, a name that is too long
        raise UsageError(f"path={path!r}: there is no such file") from error
    if not found.name.lower().endswith(SUFFIXES):
        raise UsageError(f"path={path!r}: the name must end in one of {', '.join(SUFFIXES)}")
    return found.resolve()


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a file of any of the formats; blank lines and empty rows are skipped.

    Cells of CSV are text, or None where they are empty.

    Raises
    ------
    ValueError
        If the file cannot be read in full; the message names the place and what to do.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1] == ".gz" else suffixes[-1]
    if kind == ".parquet":
        return _parquet_rows(path)
    if kind in (".csv", ".tsv"):
        return _csv_rows(path)
    return _json_rows(path) if kind == ".json" else read_jsonl(path)


# --- bytes ----------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a text file, unpacked, whose encoding may be UTF-8 and which is no bomb."""
    zipped = path.suffix.lower() == ".gz"
    try:
        if zipped:
            _check_unpacked(path)
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            head = file.read(4)
            for mark, name in _BYTE_ORDER_MARKS.items():
                if head.startswith(mark):
                    raise UsageError(_not_utf8(path, f"the file is {name}, which is not UTF-8"))
            if head[1:2] == b"\0" or head[:1] == b"\0":
                raise UsageError(_not_utf8(path, "the file looks like UTF-16, which is not UTF-8"))
            file.seek(0)
            yield cast(BinaryIO, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: not a complete gzip file; is it cut off?") from error
    except OSError as error:
        raise UsageError(f"{path}: the file cannot be read ({error.strerror})") from error


def _check_unpacked(path: Path) -> None:
    limit = max(SMALL, MAX_RATIO * path.stat().st_size)
    size = 0
    with gzip.open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            if size > limit:
                raise UsageError(
                    f"{path}: it unpacks to more than {limit / 2**20:,.0f} MB, over {MAX_RATIO} "
                    "times its size; unpack it yourself if you trust it"
                )


def _not_utf8(place: str | Path, what: str) -> str:
    return f"{place}: {what}; convert the file to UTF-8"


# --- CSV ------------------------------------------------------------------------------------------


def read_csv(path: Path, needed: Sequence[str]) -> Iterator[list[str]]:
    """Yield the header, then every row as a list of cells, streamed; blank lines are skipped.

    What stands between two cells, a comma, a semicolon or a tab, is told by the header.

    Bytes that are not UTF-8 arrive as lone surrogates, so that reading goes on and `check_utf8`
    can say in which cell they are.

    Parameters
    ----------
    path : Path
    needed : sequence of str
        Columns that must be there.

    Raises
    ------
    ValueError
        If a needed column is missing or repeated, a row has another number of cells than the
        header, or the file ends inside a quoted cell; the message names the file and the row.
    """
    before = csv.field_size_limit(min(MAX_LINE, sys.maxsize))
    try:
        with _opened(path) as binary:
            file = io.TextIOWrapper(
                binary, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            start, delimiter = _header_line(file)
            reader = csv.reader(itertools.chain(start, file), strict=True, delimiter=delimiter)
            yield from _checked_rows(path, reader, needed)
    finally:
        csv.field_size_limit(before)


def _header_line(file: TextIO) -> tuple[list[str], str]:
    """Lines up to the first that is not blank, and which separator stands there most often.

    Separators inside quotes do not count; where there is none, it is a comma.
    """
    start = []
    for line in file:
        start.append(line)
        if line.strip("\r\n"):
            break
    header = re.sub(r'"[^"]*"?', "", start[-1]) if start else ""
    return start, max(_SEPARATORS, key=header.count)


def _checked_rows(
    path: Path, reader: Iterator[list[str]], needed: Sequence[str]
) -> Iterator[list[str]]:
    number = 0
    header: list[str] = []
    try:
        header = next(reader, [])
        while not header and (following := next(reader, None)) is not None:
            header = following
        for name in needed:
            if header.count(name) != 1:
                raise UsageError(
                    f"{path}: the header names column {name!r} {header.count(name)} times, "
                    f"expected once; it has: {', '.join(header[:20]) or 'nothing'}"
                )
        yield header
        for row in reader:
            if not row:
                continue
            number += 1
            if len(row) != len(header):
                raise UsageError(
                    f"{path}, row {number}: {len(row)} cells for {len(header)} columns; "
                    "is the file cut off?"
                )
            yield row
    except csv.Error as error:
        raise UsageError(f"{path}, row {number + 1}: {error}; is the file cut off?") from error


def check_utf8(cell: str, path: Path, row: int, column: str) -> str:
    """Return the cell, or raise a ValueError if its bytes were not UTF-8."""
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        byte = ord(cell[error.start]) - 0xDC00
        place = f"{path}, row {row}, column {column!r}"
        raise UsageError(_not_utf8(place, f"byte {byte:#04x} is not UTF-8")) from error
    return cell


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    rows = read_csv(path, ())
    header = [
        check_utf8(name, path, 0, name.encode("ascii", "replace").decode()) for name in next(rows)
    ]
    repeated = [name for name in header if name and header.count(name) > 1]
    if repeated:
        raise UsageError(f"{path}: the header names column {repeated[0]!r} more than once")
    place = f"{path}, row "
    for number, cells in enumerate(rows, start=1):
        if joined := "".join(cells):
            if not joined.isascii():
                for name, cell in zip(header, cells, strict=True):
                    check_utf8(cell, path, number, name)
            yield (
                f"{place}{number}",
                {name: cell or None for name, cell in zip(header, cells, strict=True)},
            )


# --- JSON -----------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    r"""Yield (place, object) for the lines of a JSONL file, split on "\n" only; blank lines skip.

    Other line separators, such as U+2028, may stand unescaped inside a JSON string.
    """
    with _opened(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            place = f"{path}, line {number}"
            if len(line) > MAX_LINE:
                raise UsageError(f"{place}: the line is longer than {MAX_LINE >> 20} MB")
            if line.strip():
                yield place, _object(_parsed(line, place, number == 1), place)


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a list of objects, of ``{"data": [...]}``, or of what is JSONL after all."""
    with _opened(path) as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise UsageError(
            f"{path}: a .json file of more than {MAX_JSON >> 20} MB; write an object a line and "
            "call it .jsonl"
        )
    try:
        value = _parsed(content, str(path), True)
    except ValueError:
        first, _, rest = content.strip().partition(b"\n")
        if not (first.lstrip(b"\xef\xbb\xbf").startswith(b"{") and first.rstrip().endswith(b"}")):
            raise
        if not rest:
            raise
        yield from read_jsonl(path)
        return
    if isinstance(value, dict):
        value = value.get("data", [value])
    if not isinstance(value, list):
        raise UsageError(f"{path}: expected a list of objects, not {show(value)}")
    for number, record in enumerate(value, start=1):
        place = f"{path}, row {number}"
        yield place, _object(record, place)


def _parsed(content: bytes, place: str, first: bool) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UsageError(_not_utf8(place, f"byte {byte:#04x} is not UTF-8")) from error
    except RecursionError as error:
        raise UsageError(f"{place}: the JSON is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{place}: not a JSON object (wrong at character {error.pos + 1}); is the file cut off?"
        ) from error
    except ValueError as error:
        raise UsageError(f"{place}: a number has too many digits") from error


def _object(record: Any, place: str) -> Row:
    if not isinstance(record, dict):
        raise UsageError(f"{place}: expected a JSON object, not {show(record)}")
    return record


# --- Parquet --------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with needing(f"reading {path.name}", "polars", "data"):
        import polars as pl
    check_unpacked(path)
    try:
        scan = pl.scan_parquet(path)
        check_texts(path, scan)
        rows = int(scan.select(pl.len()).collect().item())
        frame = scan.head(MAX_ROWS).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UsageError(f"{path}: not a complete Parquet file; is it empty or cut off?") from error
    if rows > MAX_ROWS:
        raise UsageError(f"{path}: {rows:,} rows are more than {MAX_ROWS:,}; split the file")
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield f"{path}, row {number}", row
