"""Rows of the schema of own logs: a row is a request that one LLM answered.

The schema is on the page "Your own logs" of the documentation. Every error names the file, the row
or line, and the column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import (
    Row,
    cell_of,
    number_cell,
    number_of,
    show,
    text_cell,
    truth_of,
    vector_cell,
)
from llmqueue_gym.workloads.pool import printable
from llmqueue_gym.workloads.prices import Price, PriceList, Tokens, counted_tokens, price_cell

FIELDS = ("query", "embedding", "llm", "kept", "score", "cost", "timestamp", "propensity", "price")
"""Columns of the schema."""

OF_SERVICE = (
    *("asked", "start", "first_token", "end"),
    *("input_tokens", "output_tokens", "session", "replica"),
)
"""Further columns, of logs of service; a row without a start is of a user whom nobody answered."""

SLACK = 0.05
"""How far outside [0, 1] a score may lie where scores are clipped."""

_TRUE = ("1", "1.0", "yes", "kept")

_FALSE = ("0", "0.0", "no", "retried")


class Request(NamedTuple):
    """One row, read."""

    query: Any  # text, or a vector
    llm: str
    reward: float
    cost: float | None
    timestamp: Any
    propensity: float | None
    tokens: Tokens | None
    price: Price | None


def reader_of(
    path: str, first: Row, names: dict[str, str], clip_scores: bool, prices: PriceList | None
) -> Callable[[str, Row], Request]:
    """Return the function that reads a row, by the columns of the first one."""
    column = {field_: names.get(field_, field_) for field_ in FIELDS}
    for field_ in names:
        if column[field_] not in first:
            raise checks.unknown_name(f"{path}: column", column[field_], first)
    for options in (("query", "embedding"), ("llm",), ("kept", "score")):
        if not any(column[field_] in first for field_ in options):
            wanted = " or ".join(repr(column[field_]) for field_ in options)
            has = printable(", ".join(map(str, list(first)[:40])))
            raise UsageError(
                f"{path}: there is no column {wanted}; it has {has}. Name a column that is called "
                f"otherwise with `columns` (--column {options[0]}=NAME)"
            )
    vectors = column["query"] not in first
    scored = column["kept"] not in first
    optional = ("cost", "timestamp", "propensity", "price")
    there = {field_ for field_ in optional if column[field_] in first}
    if prices is not None and "price" in there:
        raise UsageError(f"{path}: prices are given, and in column {column['price']!r}; drop one")
    priced = prices is not None or "price" in there
    counted = [names.get(field_, field_) for field_ in ("input_tokens", "output_tokens")]

    def read(place: str, row: Row) -> Request:
        return Request(
            query=vector_cell(row, column["embedding"], place)
            if vectors
            else text_cell(row, column["query"], place),
            llm=name_cell(row, column["llm"], place),
            reward=_score(row, column["score"], place, clip_scores)
            if scored
            else kept_cell(row, column["kept"], place),
            cost=_cost(row, column["cost"], place, priced) if "cost" in there else None,
            timestamp=cell_of(row, column["timestamp"], place) if "timestamp" in there else None,
            propensity=_propensity(row, column["propensity"], place)
            if "propensity" in there
            else None,
            tokens=counted_tokens(*(row.get(name) for name in counted)),
            price=price_cell(
                cell_of(row, column["price"], place), f"{place}: column {column['price']!r}"
            )
            if "price" in there
            else None,
        )

    return read


def _cost(row: Row, column: str, place: str, priced: bool) -> float:
    """Return the cost of a row; NaN where it is empty and prices may tell."""
    if priced and row.get(column) in (None, ""):
        return math.nan
    return number_cell(row, column, place, 0.0, math.inf)


def _propensity(row: Row, column: str, place: str) -> float:
    value = number_cell(row, column, place, 0.0, 1.0)
    if value <= 0.0:
        raise UsageError(
            f"{place}: column {column!r} is {value}; a logged choice has a positive probability"
        )
    return value


def name_cell(row: Row, column: str, place: str) -> str:
    """Return the name of a cell."""
    name = text_cell(row, column, place)
    if not name.strip():
        raise UsageError(f"{place}: column {column!r} is empty")
    return name


def unanswered(row: Row, column: str) -> bool:
    """Whether a row of a log of service is of a user who left before an answer began."""
    return column in row and row[column] in (None, "")


def kept_cell(row: Row, column: str, place: str) -> float:
    """Return 1 if the answer was kept, 0 if not."""
    value = cell_of(row, column, place)
    text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if text in _TRUE or truth_of(text):
        return 1.0
    if text in _FALSE or truth_of(text) is False:
        return 0.0
    raise UsageError(
        f"{place}: column {column!r} must be true or false, or 1 or 0, not {show(value)}"
    )


def _score(row: Row, column: str, place: str, clip: bool) -> float:
    value = number_of(cell_of(row, column, place))
    if -SLACK <= value <= 1.0 + SLACK and not 0.0 <= value <= 1.0:
        if not clip:
            raise UsageError(
                f"{place}: column {column!r} is {value:g}, a little outside [0, 1]; ask for scores "
                "to be clipped (clip_scores, --clip-scores), or scale them"
            )
        return min(1.0, max(0.0, value))
    if math.isfinite(value) and not 0.0 <= value <= 1.0:
        raise UsageError(
            f"{place}: column {column!r} is {value:g}, outside [0, 1]; scale the scores, ratings r "
            "of 1 to 5 as (r - 1) / 4, or make a column of kept, true or false"
        )
    return number_cell(row, column, place, 0.0, 1.0)
