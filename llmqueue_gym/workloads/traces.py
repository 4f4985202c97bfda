"""Times of requests: read from a trace or from imported conversations, and how bursty they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import EPOCH, UNITS, is_date, seconds_of, time_of, unit_of
from llmqueue_gym.workloads.rows import find_file, read_rows

Floats = NDArray[np.float64]


class Times(NamedTuple):
    """Times of a trace, hashable by what they came from; ``unit`` is None where all are dates."""

    key: tuple[Any, ...]
    seconds: Floats
    unit: str | None

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Times) and self.key == other.key

    def __ne__(self, other: object) -> bool:
        return not self == other


_COLUMNS = ("TIMESTAMP", "Timestamp", "timestamp", "startTime")
_HASHED = "hash_ids"
_CHAT = "chat_id"

PLAUSIBLE = 0.01, 200.0
"""Requests a second of a trace with hashes of blocks, by which its unit is told."""


def read_times(path: str, column: str | None = None, unit: str | None = None) -> Times:
    """Read the times of a trace in seconds since its first request, increasing; see `Trace`."""
    source = find_file(path)
    if unit is not None and (not isinstance(unit, str) or unit not in UNITS):
        raise checks.unknown_name("arrivals: unit", unit, UNITS)
    stat = source.stat()
    key = (str(source), stat.st_mtime_ns, stat.st_size, column, unit)
    return Times(key, *_load_times(*key))


def logged_times(name: str) -> Times:
    """Return the times at which new queries of an imported data set came, from the first on."""
    from llmqueue_gym.workloads.sources.conversations import conversations_header

    key = (name, conversations_header(name).parquet["sha256"])
    return Times(key, _load_logged_times(*key), None)


@lru_cache(maxsize=4)
def _load_logged_times(name: str, _sha256: str) -> Floats:
    from llmqueue_gym.workloads.sources.conversations import arrival_times

    times = arrival_times(name)
    if len(times) < 2 or times[0] == times[-1]:
        raise UsageError(f"data set {name!r} needs at least two different times")
    times -= times[0]
    times.flags.writeable = False
    return times


@lru_cache(maxsize=4)
def _load_times(
    path: str, _changed: int, _size: int, column: str | None, unit: str | None
) -> tuple[Floats, str | None]:
    cells: list[Any] = []
    places: list[str] = []
    name, hashed, chats = "", False, False
    for place, row in read_rows(Path(path)):
        if not cells:
            name = _column(path, list(row), column)
            hashed, chats = _HASHED in row, _CHAT in row
        if name not in row:
            raise UsageError(f"{place}: there is no {name!r}")
        cells.append(row[name])
        places.append(place)
    numbers = np.array([time_of(cell) for cell in cells if not is_date(cell)], dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if unit is None:
        unit = _hashed_unit(numbers, chats) if hashed else unit_of(numbers)
    times = np.sort(seconds_of(cells, places, name, unit))
    if len(times) < 2 or times[0] == times[-1]:
        raise UsageError(
            f"{path}: {f'column {name!r}' if name else 'the file'} needs at least two different "
            "times"
        )
    times -= times[0]
    times.flags.writeable = False
    return times, unit if len(numbers) else None


def _hashed_unit(times: Floats, chats: bool) -> str:
    """Tell the unit of a trace with ``hash_ids``: Mooncake has milliseconds, Qwen seconds.

    Qwen's (Bailian) have a ``chat_id`` or decimals. Whichever unit comes first gives way to the
    other if only the other makes a plausible number of requests a second.
    """
    if not len(times) or times.min() >= EPOCH[0]:
        return unit_of(times)
    seconds_first = chats or bool((times % 1.0 != 0.0).any())
    units = ("s", "ms") if seconds_first else ("ms", "s")
    span = float(times.max()) - float(times.min())
    for unit in units:
        if span > 0 and PLAUSIBLE[0] <= len(times) / (span * UNITS[unit]) <= PLAUSIBLE[1]:
            return unit
    return units[0]


def _column(path: str, names: Sequence[str], column: str | None) -> str:
    if column is not None:
        if column not in names:
            raise checks.unknown_name(f"{path}: column", column, names)
        return column
    for name in _COLUMNS:
        if name in names:
            return name
    raise UsageError(
        f"{path}: none of the columns {', '.join(map(str, names))} is {' or '.join(_COLUMNS)}; "
        "name the column of the times with `column` (--column)"
    )


WINDOWS = (1, 10, 100, 1000)
"""Windows of counts that are reported, in mean interarrival times."""


def interarrival_cv(times: NDArray[Any]) -> float:
    """Coefficient of variation of the interarrival times: 1 for Poisson; NaN below three times."""
    if len(times) < 3:
        return math.nan
    gaps = np.diff(times.astype(np.float64))
    return float(gaps.std() / gaps.mean())


def dispersion(times: NDArray[Any], window: float) -> float:
    """Index of dispersion of counts: variance over mean of the arrivals in windows of that length.

    1 for Poisson at every length, 1 - rate for Bernoulli; it grows with the length where rates are
    correlated. NaN with fewer than two whole windows.

    Parameters
    ----------
    times : ndarray, shape (n,)
        Arrival times, increasing.
    window : float
        Length of a window, in the unit of the times.
    """
    whole = int((times[-1] - times[0]) // window) if len(times) else 0
    if whole < 2:
        return math.nan
    edges = times[0] + window * np.arange(whole + 1)
    counts = np.diff(np.searchsorted(times, edges))
    return float(counts.var() / counts.mean())


def burstiness(times: NDArray[Any]) -> dict[str, float]:
    """Figures of burstiness: ``cv`` and, a window w of `WINDOWS`, ``dispersion_w``.

    Windows last w mean interarrival times, so traces of any speed compare.
    """
    mean = float(times[-1] - times[0]) / (len(times) - 1)
    figures = {f"dispersion_{w}": dispersion(times, w * mean) for w in WINDOWS}
    return {"cv": interarrival_cv(times), **figures}
