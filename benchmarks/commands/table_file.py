"""Tables of one's own in ``llmqueue-bench data``: their options, their import, what they hold."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.commands.data import pool_summary, print_summary
from benchmarks.terminal import add_row, print_json, say, show_table
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import show as shorten
from llmqueue_gym.workloads.datasets import TABLE, import_table
from llmqueue_gym.workloads.prices import load_prices
from llmqueue_gym.workloads.rows import find_file, read_rows
from llmqueue_gym.workloads.sources.table import parse, read_layout
from llmqueue_gym.workloads.stored import Header, file_facts

Prices = Annotated[
    Path | None,
    typer.Option(
        help="JSON {LLM: [USD per million input, output tokens]}; of a table also USD a query."
    ),
]
Quality = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of an LLM's scores (COLUMN, or LLM=COLUMN), repeated; or one of objects."
    ),
]
Text = Annotated[str | None, typer.Option(help="Column of a table's texts.")]
Embedding = Annotated[str | None, typer.Option(help="Column of ready vectors instead.")]
Cost = Annotated[
    list[str] | None, typer.Option(help="Column of an LLM's costs in USD, as --quality.")
]
Tokens = Annotated[
    list[str] | None,
    typer.Option(help="Column or number of input tokens; once more: of output tokens."),
]
Clip = Annotated[float, typer.Option(help="Scores at most so far outside [0, 1] count as 0 or 1.")]


_OPTIONS = ("quality", "text", "embedding", "cost", "prices", "tokens", "clip", "name")


@contextmanager
def as_options() -> Iterator[None]:
    """Have errors call arguments what the command calls them: ``prices=`` is ``--prices``."""
    try:
        yield
    except ValueError as error:
        words = "|".join(_OPTIONS)
        text = re.sub(rf"(?<![\w'\"/.-])({words})=", r"--\1 ", str(error).removeprefix("path="))
        text = re.sub(rf"^({words}):", r"--\1:", text)
        text = re.sub(rf"`({words})`", r"--\1", text)
        if text == str(error):
            raise
        raise UsageError(text) from error


def table_options(
    quality: list[str] | None,
    text: str | None,
    embedding: str | None,
    cost: list[str] | None,
    prices: Path | None,
    tokens: list[str] | None,
    clip: float,
) -> dict[str, Any]:
    """Return the options of a table that were given, as `read_layout` takes them."""
    options = {
        "quality": _columns(quality),
        "text": text,
        "embedding": embedding,
        "cost": _columns(cost),
        "prices": prices,
        "tokens": None if tokens is None else [_column_or_number(value) for value in tokens],
        "clip": clip or None,
    }
    return {option: value for option, value in options.items() if value is not None}


def _columns(values: list[str] | None) -> dict[str, str] | list[str] | str | None:
    """Read ``LLM=COLUMN`` of all, or columns; a single one is that of objects."""
    if not values:
        return None
    pairs = [value.partition("=") for value in values]
    if all(mark for _, mark, _ in pairs):
        return {llm: column for llm, _, column in pairs}
    return values[0] if len(values) == 1 else values


def _column_or_number(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def _with_prices(columns: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a table with the prices that their file holds."""
    if "quality" not in columns:
        raise UsageError("say with `quality` which columns hold the scores")
    if "prices" not in columns:
        return columns
    return columns | {"prices": load_prices(columns["prices"])}


def run_table_import(path: Path, name: str | None, columns: dict[str, Any]) -> Header:
    """Import a table of the user's own and say what came of it."""
    header = import_table(path, name=name, **_with_prices(columns))
    facts = header.facts
    say(f"imported {header.name}: {facts.rows:,} rows, {len(facts.llms)} LLMs, {header.path}")
    say(f'use it as {{"source": "dataset", "name": "{header.name}"}}')
    return header


def show_file(path: str, columns: dict[str, Any], as_json: bool) -> None:
    """Print what the file of a table holds: its columns, and the LLMs if scores are named."""
    if not columns:
        _show_columns(path, as_json)
        return
    layout = read_layout(path, **_with_prices(columns))
    parsed = parse(layout)
    quality, cost = np.array(parsed.quality), np.array(parsed.cost) if parsed.cost else None
    source = Path(layout.path)
    units = {"quality": "score in [0, 1]"} | ({} if cost is None else {"cost": "USD per query"})
    summary = {
        "name": source.name,
        "source": TABLE,
        "reference": "a file that is not imported",
        "licence": "your own file",
        "rows": len(quality),
        "llms": list(parsed.llms),
        "units": units,
        "files": [file_facts(source)],
        "notes": {},
    } | pool_summary(parsed.llms, quality, cost)
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


def _show_columns(path: str, as_json: bool) -> None:
    """Print the columns of a file, how many rows fill them, and what stands in the first one."""
    from rich.table import Table

    filled: dict[str, int] = {}
    first: dict[str, str] = {}
    rows = 0
    for _, row in read_rows(find_file(path)):
        rows += 1
        for column, value in row.items():
            filled[column] = filled.get(column, 0) + (value is not None)
            if value is not None:
                first.setdefault(column, f"{type(value).__name__}: {shorten(value)}")
    if as_json:
        columns = [
            {"name": name, "filled": count, "first": first.get(name)}
            for name, count in filled.items()
        ]
        print_json({"path": path, "rows": rows, "columns": columns})
        return
    table = Table("column", "filled", "first")
    for name, count in filled.items():
        add_row(table, name, f"{count:,}", first.get(name, ""))
    say(f"{path}: {rows:,} rows")
    show_table(table)
    say("name the columns of scores with --quality, and of texts with --text, to see its LLMs")
