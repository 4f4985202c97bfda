"""``llmqueue-bench arrivals``: how bursty a trace of requests is, and what it becomes on slots.

See `llmqueue_gym.workloads.arrivals` for the mapping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.terminal import print_json, say, show_table
from llmqueue_gym import checks
from llmqueue_gym.workloads.arrivals import map_to_slots
from llmqueue_gym.workloads.pool import printable
from llmqueue_gym.workloads.traces import WINDOWS, burstiness, read_times


def describe_trace(
    path: str, rate: float, column: str | None = None, unit: str | None = None
) -> dict[str, Any]:
    """Figures of a trace before and after it is laid on slots at a mean rate.

    Parameters
    ----------
    path, column, unit
        See `llmqueue_gym.workloads.arrivals.Trace`.
    rate : float
        Mean arrivals a slot, in (0, 1].
    """
    checks.number("rate", rate, "[1e-6, 1]", " (arrivals per slot)")
    trace = read_times(path, column, unit)
    times = trace.seconds
    mapped = map_to_slots(times, rate)
    slots = np.flatnonzero(mapped.arrivals)
    return {
        "path": path,
        "requests": len(times),
        "unit": trace.unit,
        "seconds": float(times[-1]),
        "requests_per_second": (len(times) - 1) / float(times[-1]),
        "trace": burstiness(times),
        "slots": {
            "rate": float(mapped.arrivals.mean()),
            "count": len(mapped.arrivals),
            "seconds_per_slot": float(times[-1]) * len(times) / (len(times) - 1) / len(mapped[0]),
            **burstiness(slots),
            "spilled": float((mapped.delays > 0).mean()),
            "mean_delay": float(mapped.delays.mean()),
            "longest_delay": int(mapped.delays.max()),
        },
        "bernoulli": {
            "cv": float(np.sqrt(1.0 - rate)),
            **{f"dispersion_{window}": 1.0 - rate for window in WINDOWS},
        },
    }


def show_trace(
    path: Path, rate: float, column: str | None, unit: str | None, as_json: bool
) -> None:
    """Print what `describe_trace` finds."""
    column = column and column.removeprefix("timestamp=")  # as the commands of logs spell it
    found = describe_trace(str(path), rate, column, unit)
    if as_json:
        print_json(found)
        return
    from rich.markup import escape
    from rich.table import Table

    slots = found["slots"]
    table = Table(
        title=f"{escape(printable(path.name))}: {found['requests']:,} requests in "
        f"{found['seconds']:,.0f} s, {found['requests_per_second']:.4g} a second"
        + ("" if found["unit"] is None else f" (times read as {found['unit']})"),
        title_justify="left",
    )
    for name in ("", "trace", f"on slots at rate {slots['rate']:.3g}", "Bernoulli"):
        table.add_column(name, justify="left" if not name else "right")
    for key in ("cv", *(f"dispersion_{window}" for window in WINDOWS)):
        label = (
            "CV of interarrival times"
            if key == "cv"
            else f"dispersion of counts, {key.partition('_')[2]} interarrivals"
        )
        cells = [found[part][key] for part in ("trace", "slots", "bernoulli")]
        table.add_row(label, *("" if np.isnan(cell) else f"{cell:.3g}" for cell in cells))
    show_table(table)
    say(
        f"{slots['count']:,} slots of {slots['seconds_per_slot']:.4g} s; "
        f"{slots['spilled']:.1%} of the requests spill into a later slot "
        f"({slots['mean_delay']:.3g} slots later on average, {slots['longest_delay']} at most)"
    )
