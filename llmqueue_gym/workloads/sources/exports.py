"""What readers of gateways' exports share: rows of a spend log, feedback that is joined to them.

`gateways` has the list of the sources.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from llmqueue_gym.workloads.cells import Row, number_of, truth_of
from llmqueue_gym.workloads.sources.litellm import SESSIONS, decoded, moment

_GOOD = "1|yes|good|up|thumbs_up|positive|pass|passed|correct|relevant|satisfied|resolved|accepted"
_BAD = "0|no|bad|down|thumbs_down|negative|fail|failed|incorrect|irrelevant|not_relevant|rejected"
_WORDS = dict.fromkeys(_GOOD.split("|"), 1.0) | dict.fromkeys(_BAD.split("|"), 0.0)
_LIMIT = re.compile(r"\b429\b|rate.?limit|too many requests", re.IGNORECASE)


class Joined:
    """What rows of their own say of other rows: scores of answers, sessions of traces.

    Parameters
    ----------
    only : str, optional
        The scores of that name count; by default all.
    """

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._scores: dict[str, list[float]] = {}
        self.sessions: dict[str, tuple[str, str]] = {}
        self.names: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()

    def add(self, key: object, name: object, value: object, label: object = None) -> None:
        """Take a score in; one that is neither in [0, 1] nor a known word is counted as unused."""
        named, at = text_of(name) or "score", text_of(key)
        score = _score(value)
        score = _score(label) if math.isnan(score) else score
        if math.isnan(score) or not at or self._only not in (None, named):
            self.unused[named] += 1
            return
        self.names[named] += 1
        self._scores.setdefault(at, []).append(score)

    def of(self, keys: Iterable[str]) -> float | None:
        """Return the mean score of the first key that has any."""
        for key in keys:
            if found := self._scores.get(key):
                return math.fsum(found) / len(found)
        return None

    def notes(self) -> list[str]:
        """Say which scores count and which do not."""
        said = []
        if self.names:
            said.append(f"feedback counts: {_counted(self.names)}")
        if self.unused:
            why = "in [0, 1]" if self._only is None else f"named {self._only!r} and in [0, 1]"
            said.append(f"feedback that is not {why} does not count: {_counted(self.unused)}")
        return said


Calls = Iterator[tuple[Row, tuple[str, ...]]]
"""Rows of a spend log, each with the keys that feedback on it may have."""


class Gateway(NamedTuple):
    """A source of logs.

    Attributes
    ----------
    name : str
    tells : callable
        Whether a row is one of this source.
    translate : callable
        (row, `Joined`) -> the calls of a row.
    sessions : tuple of str
        What the source calls `SESSIONS`.
    no_prompt : str
        Why a row has no prompt, and which switch keeps it.
    """

    name: str
    tells: Callable[[Row], bool]
    translate: Callable[[Row, Joined], Calls] | None
    sessions: tuple[str, ...]
    no_prompt: str


def call_row(start: object, end: float = math.nan, **fields: Any) -> Row:
    """Return a row of a spend log."""
    call: Row = dict.fromkeys(
        (
            *("request_id", "call_type", "spend", "model", "status", "metadata", "cache_hit"),
            *("messages", "proxy_server_request", "prompt_tokens", "completion_tokens", *SESSIONS),
        )
    )
    begun = moment(start)
    first = fields.pop("wait", math.nan)
    call |= {"startTime": begun, "endTime": None if math.isnan(end) else end}
    call["completionStartTime"] = None if math.isnan(first) else begun + first
    return call | fields


def is_limit(error: str) -> bool:
    """Whether an error is that of one request too many."""
    return bool(_LIMIT.search(error))


def outcome_of(failed: bool, limited: bool) -> Row:
    """Return the cells that say how a call went."""
    if not failed:
        return {"status": "success"}
    error = {"error_information": {"error_code": "429"}} if limited else {}
    return {"status": "failure", "metadata": error}


# --- cells ----------------------------------------------------------------------------------------


def text_of(value: object) -> str:
    """Return a text or number as text; nothing for anything else."""
    if isinstance(value, str | int | float):
        return str(value).strip()
    return ""


def first_of(row: Row, *names: str) -> Any:
    """Return the first cell that is filled."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def mapping_of(value: object) -> Row:
    """Return a mapping, or JSON of one; an empty one for anything else."""
    found = decoded(value)
    return {str(key): cell for key, cell in found.items()} if isinstance(found, Mapping) else {}


def list_of(value: object) -> list[Any]:
    """Return a list, or JSON of one; an empty one for anything else."""
    found = decoded(value)
    return found if isinstance(found, list) else []


def _score(value: object) -> float:
    """Return a score in [0, 1], of a number, a truth or a word; NaN for anything else."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        word = value.strip().lower().replace(" ", "_").replace("-", "_")
        truth = truth_of(word)
        if truth is not None or word in _WORDS:
            return _WORDS[word] if truth is None else float(truth)
    number = number_of(value)
    return number if 0.0 <= number <= 1.0 else math.nan


def _counted(names: Counter[str]) -> str:
    shown = [f"{count:,} of {name[:40]!r}" for name, count in names.most_common(5)]
    return ", ".join(shown) + (" and others" if len(names) > 5 else "")
