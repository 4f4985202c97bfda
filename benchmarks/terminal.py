"""What every command prints with: plain lines, tables that fit, JSON.

Names and errors come from other people's files and code, and the output may be a narrow terminal,
a pipe, or an encoding that lacks most letters. So control characters are replaced, names stay
whole while figures give way, and a letter that cannot be written becomes ``?``.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmqueue_gym.workloads.pool import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 10_000  # columns of an output that is no terminal: nothing there is cut


def tolerate_encodings() -> None:
    """Have standard output and error replace what their encoding cannot write."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def make_console(stderr: bool = False) -> "Console":
    """Return a console; what is no terminal, and has no ``COLUMNS``, is as wide as its tables."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def say(text: str, console: "Console | None" = None, stderr: bool = False) -> None:
    """Print lines as they are, but for control characters; above a progress bar, if one runs."""
    lines = "\n".join(map(_as_it_is, text.split("\n")))
    if console is None:
        print(lines, file=sys.stderr if stderr else sys.stdout, flush=True)
    else:
        console.print(lines, markup=False, highlight=False, soft_wrap=True)


def _as_it_is(line: str) -> str:
    """Return a line with its spaces, without control characters."""
    plain = (" " if letter.isspace() else letter for letter in line)
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in plain).rstrip()


def show_table(table: "Table", names: Sequence[str] = (), console: "Console | None" = None) -> None:
    """Print a table whose names stay whole.

    Where it is too wide, columns of figures are left out from the right, and a line says which;
    only if the names alone do not fit are they folded.

    Parameters
    ----------
    table : rich.table.Table
    names : sequence of str
        Titles of the columns that identify a row; the first column when not given.
    console : rich.console.Console, optional
        Where to; standard output when not given.
    """
    from rich.measure import Measurement

    console = console or make_console()
    kept = set(names) or {str(table.columns[0].header)}
    for column in table.columns:
        column.no_wrap = True
    left_out: list[str] = []
    unbounded = console.options.update(width=_PIPE_WIDTH)
    while Measurement.get(console, unbounded, table).maximum > console.width:
        figures = [c for c in table.columns if str(c.header) not in kept]
        if not figures:
            break
        left_out.insert(0, str(figures[-1].header))
        table.columns.remove(figures[-1])
    for column in table.columns:
        if str(column.header) in kept:
            column.no_wrap, column.overflow = False, "fold"
    console.print(table)
    if left_out:
        words = f"({console.width} columns: without {', '.join(left_out)})"
        console.print(words, markup=False, highlight=False)


def add_row(table: "Table", *cells: str, style: str | None = None) -> None:
    """Add a row of plain text, control characters replaced: markup in a name is part of it."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print plain values as JSON; a number that JSON has no word for is null."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
