"""Cells of rows that came from outside: text, numbers, times, JSON, vectors, each checked.

Every error names the place (file and row) and the column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

MAX_CONTEXT = 1e6
"""Largest entry of a context: agents take fourth powers of its length in single precision."""

Row = dict[str, Any]

SHOWN = 60
"""Characters of a value that an error message shows."""

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Units of time that are a number, in seconds."""

EPOCH = 1e9, 4.1e9
"""Seconds since 1970 of the years 2001 to 2099: numbers in there, in some unit, are dates."""

_COMMA = re.compile(r"\s*[+-]?\d+,\d+([eE][+-]?\d+)?\s*")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
_DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:,?\s+(\d{1,2})(:.*))?")

_TRUE = {"true", "wahr", "vrai", "vero", "verdadero", "verdadeiro", "waar"}
_FALSE = {"false", "falsch", "faux", "falso", "onwaar"}

LONGEST = 30 * 365.25 * 86_400
"""No file of requests lasts thirty years; from 0 to a date since 1970 it is more. In seconds."""


def show(value: object) -> str:
    """Begin of a value for an error message, one line, however large or deep it is."""
    if isinstance(value, str):
        text = repr(value[: SHOWN + 1])
    elif isinstance(value, dict | list | tuple) and len(value) > SHOWN:
        text = f"{type(value).__name__} of {len(value):,} entries"
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # an integer of thousands of digits, a deep list
            text = f"what is too large a {type(value).__name__} to be shown"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def cell_of(row: Row, column: str, place: str) -> Any:
    """Value of a column, which must be there and filled."""
    if column not in row:
        raise checks.unknown_name(f"{place}: column", column, row)
    if row[column] is None:
        raise UsageError(f"{place}: column {column!r} is empty")
    return row[column]


def json_cell(row: Row, column: str, place: str) -> Any:
    """Value of a cell that may hold JSON as a string, as CSV cells do."""
    value = cell_of(row, column, place)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: column {column!r} is not JSON: {show(value)}") from error


def text_cell(row: Row, column: str, place: str) -> str:
    """Text of a cell."""
    value = cell_of(row, column, place)
    if not isinstance(value, str):
        raise UsageError(f"{place}: column {column!r} must hold text, not {show(value)}")
    return value


def number_of(value: object) -> float:
    """Turn a number or its text into a float; NaN for anything else, True and False too.

    A decimal comma is read where it can be no mark of thousands: 0,0004 and 12,5, but not 1,234.
    """
    if isinstance(value, str) and _COMMA.fullmatch(value) and not _THOUSANDS.fullmatch(value):
        value = value.replace(",", ".")
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def number_cell(row: Row, column: str, place: str, low: float, high: float) -> float:
    """Return the finite number of a cell, in [low, high]."""
    value = cell_of(row, column, place)
    number = number_of(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise UsageError(
            f"{place}: column {column!r} must be a number in [{low:g}, {high:g}], "
            f"not {show(value)}{comma_hint(value)}"
        )
    return number


def comma_hint(value: object) -> str:
    """Words for the error about a number whose comma cannot be read; else none."""
    thousands = isinstance(value, str) and _THOUSANDS.fullmatch(value)
    return ", which may be thousands; write decimals with a point" if thousands else ""


def truth_of(text: str) -> bool | None:
    """Read true or false, in any spelling and as Excel writes them in other languages."""
    word = text.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def vector_cell(row: Row, column: str, place: str) -> NDArray[np.float32]:
    """Return the vector of a cell, a context: a list of numbers, or JSON of one."""
    value = json_cell(row, column, place)
    try:
        with np.errstate(over="ignore"):
            vector = np.asarray(value, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        vector = np.empty((0, 0), dtype=np.float32)
    if vector.ndim != 1 or not vector.size or not (np.abs(vector) <= MAX_CONTEXT).all():
        raise UsageError(
            f"{place}: column {column!r} must be a list of finite numbers in "
            f"[-{MAX_CONTEXT:g}, {MAX_CONTEXT:g}], best of about 1, not {show(value)}"
        )
    return vector


# --- times ----------------------------------------------------------------------------------------


def time_of(value: object) -> float:
    """Return a number as it is, and the seconds since 1970 of a date; NaN for anything else.

    Dates are ISO 8601, with ``T`` or a space, any number of decimals and any offset; without an
    offset they are UTC. With points they begin with the day: 04.05.2026 09:30.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return _epoch(value)
    if isinstance(value, date):
        return _epoch(datetime(value.year, value.month, value.day))
    number = number_of(value)
    if not isinstance(value, str) or not math.isnan(number):
        return number
    for spell in (str, _plain_time):
        try:
            return _epoch(datetime.fromisoformat(spell(value)))
        except ValueError:
            pass
    return math.nan


def _plain_time(text: str) -> str:
    """Spell a time as ISO 8601 does: year first, no zone's name, no space before an offset."""
    text = re.sub(r"\s*(UTC|GMT)$", "", text.strip().upper())
    if found := _DAY_FIRST.fullmatch(text):
        day, month, year, hour, rest = found.groups()
        text = f"{year}-{month:0>2}-{day:0>2}" + (f" {hour:0>2}{rest}" if hour else "")
    return re.sub(r"\s+(?=[+-]\d\d:?\d\d$|[+-]\d\d$|Z$)", "", text)


def is_date(value: object) -> bool:
    """Whether `time_of` reads a date, seconds since 1970, rather than a number in some unit."""
    return isinstance(value, date) or (isinstance(value, str) and math.isnan(number_of(value)))


def _epoch(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def unit_of(times: NDArray[np.float64]) -> str:
    """Tell the unit of times that are numbers: dates since 1970 by their size, else seconds."""
    for unit, scale in UNITS.items():
        if len(times) and EPOCH[0] <= times.min() * scale and times.max() * scale <= EPOCH[1]:
            return unit
    return "s"


def seconds_of(
    values: Sequence[object], places: Sequence[str], column: str, unit: str | None = None
) -> NDArray[np.float64]:
    """Seconds of all cells of a column of times: numbers in one unit, or dates.

    Parameters
    ----------
    values : sequence
        The cells.
    places : sequence of str
        Where each stands.
    column : str
        Name of the column.
    unit : str, optional
        Unit of numbers, one of `UNITS`; by default seconds, or what the size of dates tells.

    Raises
    ------
    ValueError
        If a cell is no time, or the times last longer than any log.
    """
    times = np.array([time_of(value) for value in values], dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(times))
    if wrong.size:
        row = int(wrong[0])
        raise UsageError(
            f"{places[row]}: column {column!r} must be a number or an ISO 8601 time "
            f"(2026-05-04 09:30:00; or 04.05.2026 09:30), not {show(values[row])}"
        )
    dates = np.array([is_date(value) for value in values], dtype=np.bool_)
    times[~dates] *= UNITS[unit or unit_of(times[~dates])]
    if len(times) and float(times.max()) - float(times.min()) > LONGEST:
        low, high = int(np.argmin(times)), int(np.argmax(times))
        raise UsageError(
            f"{places[high]}: column {column!r} would lie more than thirty years after "
            f"{places[low].rpartition(', ')[2]} ({show(values[high])} and {show(values[low])}); "
            "give every row a time of the same kind, numbers in one unit or dates"
        )
    return times
