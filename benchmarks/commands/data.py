"""``llmqueue-bench data``: import, list, show and download published data sets, and tables.

What is shown of them is in `benchmarks.commands.data_shown`; environments read them as workloads.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from benchmarks.commands.data_shown import (
    list_datasets,
    note_lines,
    show_dataset,
    show_file,
    show_outcomes,
    show_retrials,
)
from benchmarks.terminal import make_console, say
from llmqueue_gym.errors import MissingPackageError, UsageError
from llmqueue_gym.workloads.datasets import (
    SOURCES,
    TABLE,
    get_source,
    import_dataset,
    import_table,
)
from llmqueue_gym.workloads.pool import printable
from llmqueue_gym.workloads.prices import load_prices
from llmqueue_gym.workloads.rows import SUFFIXES
from llmqueue_gym.workloads.stored import Header, remove

# --- the subcommands ------------------------------------------------------------------------------

_SOURCES = ", ".join(SOURCES)
SourceOrTable = Annotated[str, typer.Argument(help=f"Data set: {_SOURCES}, or table: your own.")]
Stored = Annotated[str, typer.Argument(help="Name it was imported under.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
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


def build_data_app() -> typer.Typer:
    """Return the subcommands of ``llmqueue-bench data``."""
    app = typer.Typer()
    for command in (
        import_command,
        download_command,
        list_command,
        show_command,
        remove_command,
        outcomes_command,
        retrials_command,
    ):
        app.command(command.__name__.removesuffix("_command"))(command)
    return app


def import_command(
    source: SourceOrTable,
    path: Annotated[Path, typer.Argument(help="Its official file, or the folder of them.")],
    name: Annotated[
        str | None, typer.Option(help="Name to store it under; default: SOURCE, or the file's.")
    ] = None,
    prices: Prices = None,
    quality: Quality = None,
    text: Text = None,
    embedding: Embedding = None,
    cost: Cost = None,
    tokens: Tokens = None,
    clip: Clip = 0.0,
) -> None:
    """Convert an official file, or a table, into the project's own format, in the cache."""
    columns = table_options(quality, text, embedding, cost, prices, tokens, clip)
    with as_options():
        if source == TABLE:
            run_table_import(path, name, columns)
            return
        given = [option for option in columns if option != "prices"]
        if given:
            raise UsageError(f"`{given[0]}` is an option of a table, not of {source!r}")
        run_import(source, path, name, prices)


def download_command(
    source: Annotated[str, typer.Argument(help=f"Data set: {_SOURCES}.")],
    name: Annotated[
        str | None, typer.Option(help="Name to store it under; default: SOURCE.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="As for import.")] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="These files of its repository instead.")
    ] = None,
) -> None:
    """Download the official files from the Hugging Face hub, then import them."""
    with as_options():
        run_download(source, name, prices, tuple(file or ()))


def list_command(as_json: AsJson = False) -> None:
    """List the imported data sets, and those that can be."""
    list_datasets(as_json)


def show_command(
    name: Annotated[
        str, typer.Argument(help="Name it was imported under, or the file of a table.")
    ],
    prices: Prices = None,
    quality: Quality = None,
    text: Text = None,
    embedding: Embedding = None,
    cost: Cost = None,
    tokens: Tokens = None,
    clip: Clip = 0.0,
    as_json: AsJson = False,
) -> None:
    """Show what an imported data set, or the file of a table, holds."""
    columns = table_options(quality, text, embedding, cost, prices, tokens, clip)
    with as_options():
        if name.lower().endswith(SUFFIXES):
            show_file(name, _with_prices(columns) if columns else {}, as_json)
            return
        if columns:
            option, endings = next(iter(columns)), ", ".join(SUFFIXES)
            raise UsageError(
                f"`{option}` is an option of a file; {name!r} does not end in one of {endings}"
            )
        show_dataset(name, as_json)


def remove_command(name: Stored) -> None:
    """Delete an imported data set from the cache folder; official files stay."""
    remove(name)
    say(f"removed {name}")


def outcomes_command(
    name: Annotated[str, typer.Argument(help="Imported conversations.")] = "wildchat",
    context_dim: Annotated[int, typer.Option(min=2, help="Length of a context.")] = 64,
    sample: Annotated[int, typer.Option(min=1, help="Turns the model is fitted on.")] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Fit the outcome model of logged conversations and show its calibration."""
    show_outcomes(name, context_dim, sample, as_json)


def retrials_command(as_json: AsJson = False) -> None:
    """Judge the rule that finds retrials by its hand-labelled pairs."""
    show_retrials(as_json)


# --- importing ------------------------------------------------------------------------------------


def run_import(
    source: str,
    path: Path,
    name: str | None,
    prices: Path | None,
    patterns: tuple[str, ...] = (),
) -> Header:
    """Import official files and say what came of it."""
    shown = escape(printable(str(path)))
    with make_console(stderr=True).status(f"importing {shown}") as status:
        header = import_dataset(
            source,
            path,
            name=name,
            prices=prices,
            patterns=patterns,
            tell=lambda rows: status.update(f"importing {shown}: {rows:,} rows"),
        )
    facts = header.facts
    say(f"imported {header.name}: {facts.rows:,} rows, {len(facts.llms)} LLMs, {header.path}")
    for note in note_lines(facts.notes):
        say(f"note: {note}")
    return header


def run_download(
    source: str, name: str | None, prices: Path | None, files: tuple[str, ...] = ()
) -> Header:
    """Download the official files of a source into the hub's own cache and import them."""
    entry = get_source(source)
    if not entry.repository:
        raise UsageError(
            f"source={source!r} is on no hub; get its files yourself and run: "
            f"llmqueue-bench data import {source} PATH"
        )
    wanted = files or entry.patterns
    folder = _snapshot_download()(
        repo_id=entry.repository, repo_type="dataset", allow_patterns=list(wanted)
    )
    return run_import(source, Path(folder), name, prices, wanted)


def _snapshot_download() -> Callable[..., str]:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingPackageError(
            'downloading needs huggingface_hub: pip install "llmqueue_gym[hub]"; or download the '
            "file yourself and run: llmqueue-bench data import SOURCE PATH"
        ) from error
    return snapshot_download


def run_table_import(path: Path, name: str | None, columns: dict[str, Any]) -> Header:
    """Import a table of the user's own and say what came of it."""
    header = import_table(path, name=name, **_with_prices(columns))
    facts = header.facts
    say(f"imported {header.name}: {facts.rows:,} rows, {len(facts.llms)} LLMs, {header.path}")
    say(f'use it as {{"source": "dataset", "name": "{header.name}"}}')
    return header


# --- options of a table ---------------------------------------------------------------------------

_OPTIONS = ("quality", "text", "embedding", "cost", "prices", "tokens", "clip", "name")


@contextmanager
def as_options() -> Iterator[None]:
    """Have errors call arguments what the command calls them: ``prices=`` is ``--prices``."""
    try:
        yield
    except UsageError as error:
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
