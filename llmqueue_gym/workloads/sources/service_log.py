"""Reading logs of service: when each request was asked, started and answered, and by whom.

The schema is on the page "Your own logs" of the documentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import Row, is_date, number_cell, seconds_of, time_of, unit_of
from llmqueue_gym.workloads.pool import printable
from llmqueue_gym.workloads.rows import find_file, read_rows
from llmqueue_gym.workloads.sources.exports import Gateway
from llmqueue_gym.workloads.sources.gateways import gateway_of, gateway_rows
from llmqueue_gym.workloads.sources.litellm import read_spend_log
from llmqueue_gym.workloads.sources.own_rows import (
    FIELDS,
    OF_SERVICE,
    kept_cell,
    name_cell,
    unanswered,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIMES = ("asked", "start", "first_token", "end")
NEEDED = ("llm", "output_tokens", "start", "first_token", "end", "kept")
MOST_TOKENS = 1e8

OF_SPEND = {
    "start": "startTime",
    "first_token": "completionStartTime",
    "end": "endTime",
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
}


@dataclass(frozen=True, eq=False)
class ServiceLog:
    """Requests in the order in which they were asked; arrays of shape (n,), times in seconds.

    Attributes
    ----------
    path : str
        The file.
    llms, replicas : tuple of str
        Names; where the log tells no replicas, each LLM is one.
    llm, replica : ndarray of int64
        Who answered, -1: nobody, the user left before.
    asked, start, first_token, end : ndarray
        Start and first token are NaN where nobody answered; ``end`` is when the user left then.
    input_tokens, output_tokens : ndarray
    kept : ndarray of bool
    session : ndarray of int64 or None
        Requests of one user have the same; None where the log does not tell.
    told : frozenset of str
        Columns of the schema that the log has.
    """

    path: str
    llms: tuple[str, ...]
    replicas: tuple[str, ...]
    llm: Ints
    replica: Ints
    asked: Floats
    start: Floats
    first_token: Floats
    end: Floats
    input_tokens: Floats
    output_tokens: Floats
    kept: NDArray[np.bool_]
    session: Ints | None
    told: frozenset[str]


def read_service_log(path: str, columns: Mapping[str, str] | None = None) -> ServiceLog:
    """Read a log of service.

    Parameters
    ----------
    path : str
        A file of `llmqueue_gym.workloads.rows.SUFFIXES` with a row a request, or what one of
        `llmqueue_gym.workloads.sources.gateways.GATEWAYS` exports.
    columns : mapping of str to str, optional
        Names of columns that are called otherwise, field -> column.

    Raises
    ------
    UsageError
        If a column is missing, or a value is not what it must be.
    """
    source, column = find_file(path), {name: name for name in (*FIELDS, *OF_SERVICE)}
    for field, name in (columns or {}).items():
        column[checks.choice("columns: field", field, column)] = name
    table = list(read_rows(source))
    if not table:
        raise UsageError(f"{source}: the file has no rows")
    there = table[0][1]
    gateway = gateway_of(there)
    if column["kept"] not in there and gateway is not None:
        return _of_gateway(str(source), gateway, table)
    told = frozenset(field for field, name in column.items() if name in there)
    _require(str(source), there, [column[field] for field in NEEDED])
    rows = [row for _, row in table]
    left = [unanswered(row, column["start"]) for row in rows]
    if any(left) and "asked" not in told:
        raise UsageError(
            f"{table[left.index(True)][0]}: column {column['start']!r} is empty; of a user who "
            f"left before an answer began, a column {column['asked']!r} must say when they came"
        )
    answered = [(place, row) for (place, row), lost in zip(table, left, strict=True) if not lost]
    llm = [name_cell(row, column["llm"], place) for place, row in answered]
    replica = llm
    if "replica" in told:
        names = [str(row.get(column["replica"])) for _, row in answered]
        replica = [f"{name} on {where}" for name, where in zip(llm, names, strict=True)]
    kept = [kept_cell(row, column["kept"], place) for place, row in answered]
    session = [row.get(column["session"]) for row in rows] if "session" in told else None
    return _log(str(source), table, np.array(left), column, (llm, replica, kept), session, told)


def _of_gateway(path: str, gateway: Gateway, table: Sequence[tuple[str, Row]]) -> ServiceLog:
    """Log of the questions of a gateway's export; of each, its first call is what is served.

    Calls that failed, or that do not say when their first token came or how many there were, as
    some streams do not, are left out.
    """
    calls = list(gateway_rows(gateway, table)[0])
    _require(path, calls[0][1] if calls else {}, OF_SPEND.values())
    spend = read_spend_log(path, calls, None, gateway.sessions, gateway.no_prompt)
    pairs = zip(spend.turns, (spend.kept > 0.5).tolist(), strict=True)
    found = [
        (turn, float(kept))
        for turn, kept in pairs
        if not turn.failed
        and all(calls[turn.row][1].get(name) not in (None, "") for name in OF_SPEND.values())
    ]
    if not found:
        needs = ", ".join(OF_SPEND)
        raise UsageError(f"{path}: every request failed or does not tell {needs}")
    llm = [turn.llm for turn, _ in found]
    sessions = [turn.session for turn, _ in found]
    return _log(
        path,
        [calls[turn.row] for turn, _ in found],
        np.zeros(len(found), dtype=np.bool_),
        OF_SPEND,
        (llm, llm, [kept for _, kept in found]),
        sessions if any(sessions) else None,
        frozenset((*OF_SPEND, "query")),
    )


def _require(path: str, there: Row, names: Any) -> None:
    missing = [name for name in names if name not in there]
    if missing:
        has = printable(", ".join(map(str, list(there)[:40])))
        raise UsageError(
            f"{path}: there is no column {' or '.join(map(repr, missing))}, which a fit of serving "
            f"needs; it has {has}. Name a column that is called otherwise with `columns` "
            f"(--column {missing[0]}=NAME)"
        )


def _log(
    path: str,
    table: Sequence[tuple[str, Row]],
    left: NDArray[np.bool_],
    column: Mapping[str, str],
    answers: tuple[list[str], list[str], list[float]],
    session: Sequence[Any] | None,
    told: frozenset[str],
) -> ServiceLog:
    """Put a log together, in order; ``answers`` are LLM, replica and kept of who was answered."""
    count, there = len(table), np.flatnonzero(~left)
    times = _times(table, left, {name: column[name] for name in TIMES if name in told})
    times.setdefault("asked", times["start"])
    tokens = {"input_tokens": np.zeros(count), "output_tokens": np.zeros(count)}
    for name in tokens.keys() & told:
        for k in there.tolist():
            place, row = table[k]
            tokens[name][k] = number_cell(row, column[name], place, 0.0, MOST_TOKENS)
    indexed = []
    for names in answers[:2]:
        known = sorted(set(names))
        index = np.full(count, -1, dtype=np.int64)
        index[there] = np.searchsorted(known, names)
        indexed.append((tuple(known), index))
    kept = np.zeros(count, dtype=np.bool_)
    kept[there] = np.array(answers[2]) > 0.5
    sessions = None
    if session is not None:
        # A row without a session is a user of its own.
        names = [
            f"row {k}" if name in (None, "") else f"= {name}" for k, name in enumerate(session)
        ]
        sessions = np.unique(names, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(times["asked"], kind="stable")
    (llms, llm), (replicas, replica) = indexed
    return ServiceLog(
        path,
        llms,
        replicas,
        llm[order],
        replica[order],
        **{name: times[name][order] for name in TIMES},
        **{name: values[order] for name, values in tokens.items()},
        kept=kept[order],
        session=None if sessions is None else sessions[order],
        told=told,
    )


def _times(
    table: Sequence[tuple[str, Row]], left: NDArray[np.bool_], column: Mapping[str, str]
) -> dict[str, Floats]:
    """Read the columns of times, which all have one unit, and check their order in each row."""
    needed = {name: np.flatnonzero(~left | (name in ("asked", "end"))).tolist() for name in column}
    cells = {name: [table[k][1].get(column[name]) for k in rows] for name, rows in needed.items()}
    numbers = [time_of(cell) for each in cells.values() for cell in each if not is_date(cell)]
    finite = np.array([number for number in numbers if math.isfinite(number)])
    found = {}
    for name, rows in needed.items():
        found[name] = np.full(len(table), np.nan)
        places = [table[k][0] for k in rows]
        found[name][rows] = seconds_of(cells[name], places, column[name], unit_of(finite))
    for before, after in zip(list(column)[:-1], list(column)[1:], strict=True):
        late = np.flatnonzero(found[before] > found[after])
        if late.size:
            raise UsageError(
                f"{table[late[0]][0]}: column {column[before]!r} lies after column "
                f"{column[after]!r}; a request is asked, started, given a first token and ended "
                "in this order"
            )
    return found
