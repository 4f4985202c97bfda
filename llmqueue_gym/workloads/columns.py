"""Where a table keeps a number per LLM, and the numbers of a row.

Every error names the place (file and row), the LLM and the column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import (
    Row,
    cell_of,
    comma_hint,
    json_cell,
    number_of,
    show,
    truth_of,
)

Columns = str | tuple[tuple[str, str], ...]
"""Where scores are: the name of one column of {LLM: score} objects, or (LLM, column) pairs."""


def read_columns(option: str, value: object) -> Columns:
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
        raise UsageError(
            f"{option}={value!r} must be a mapping LLM -> column, a list of columns, or one column"
        )
    llms = [llm for llm, _ in pairs]
    repeated = [llm for llm in llms if llms.count(llm) > 1]
    if repeated:
        raise UsageError(f"{option}={value!r} names {repeated[0]!r} more than once")
    return tuple(sorted(pairs)) if isinstance(value, Mapping) else pairs


def scores_of(row: Row, columns: Columns, place: str) -> Row:
    """Raw scores {LLM: value} of one row."""
    if not isinstance(columns, str):
        return {llm: cell_of(row, column, place) for llm, column in columns}
    found = json_cell(row, columns, place)
    if not isinstance(found, dict) or not found:
        raise UsageError(
            f"{place}: column {columns!r} must be an object {{LLM: number}}, not {show(found)}; "
            "where every LLM has a column of its own, name them all, as LLM -> column"
        )
    return found


def label_of(llm: str, columns: Columns, place: str, what: str = "score") -> str:
    """Name the score, or what else it is, of an LLM, for errors."""
    where = columns if isinstance(columns, str) else dict(columns).get(llm)
    named = "" if where is None else f" in column {where!r}"
    return f"{place}: {what} of LLM {llm!r}{named}"


def numbers_of(
    found: Row, llms: tuple[str, ...], columns: Columns, place: str, what: str = "score"
) -> list[float]:
    """Scores, or costs, of one row in the order of ``llms``, each a finite number."""
    extra = found.keys() - llms
    if extra:
        raise checks.unknown_name(f"{place}: LLM", min(extra), llms)
    numbers = []
    for llm in llms:
        number = _score(found.get(llm))
        if number is None or not math.isfinite(number):
            raise _no_number(found.get(llm), number, label_of(llm, columns, place, what))
        numbers.append(number)
    return numbers


def _no_number(value: object, number: float | None, label: str) -> UsageError:
    if value is None:
        return UsageError(f"{label} is missing")
    if number is None:
        return UsageError(f"{label} is not a number: {show(value)}{comma_hint(value)}")
    return UsageError(f"{label} is {number}, expected a finite number")


def _score(value: object) -> float | None:
    """Turn a number, true or false, or the text of one into a float; None for anything else."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        truth = truth_of(value) if isinstance(value, str) else None
        number = number_of(value) if truth is None else float(truth)
        return None if math.isnan(number) else number
