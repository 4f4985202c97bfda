"""The bodies of ``llmqueue-bench data``: import, list, show and download published data sets.

What is computed here is about a stored data set as such; environments read it through workloads.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from benchmarks.terminal import add_row, make_console, print_json, say, show_table
from llmqueue_gym.deployment.streams.order import arrival_words, read_arrivals
from llmqueue_gym.errors import UsageError
from llmqueue_gym.oracles import capacity
from llmqueue_gym.workloads.datasets import (
    SOURCES,
    TABLE,
    get_source,
    import_dataset,
)
from llmqueue_gym.workloads.pool import QueryPool, printable
from llmqueue_gym.workloads.rows import SUFFIXES
from llmqueue_gym.workloads.sources import retrials
from llmqueue_gym.workloads.sources.wildchat import outcomes_of, retrial_rates
from llmqueue_gym.workloads.stored import (
    POOL,
    Header,
    clear_leftovers,
    quality_and_cost,
    read_header,
    read_table,
    remove,
    stored_names,
)

if TYPE_CHECKING:
    import typer
    from rich.table import Table

ASSORTMENT_SIZES = (1, 2)
"""Assortment sizes K for which `show` gives the capacity."""


def build_data_app() -> "typer.Typer":
    """Return the subcommands of ``llmqueue-bench data``."""
    import typer

    from benchmarks.commands.table_file import (
        Clip,
        Cost,
        Embedding,
        Prices,
        Quality,
        Text,
        Tokens,
        as_options,
        run_table_import,
        show_file,
        table_options,
    )

    app = typer.Typer(
        help="Import published data sets once, and see what is there.", no_args_is_help=True
    )
    sources = ", ".join(SOURCES)

    @app.command("import")
    def import_command(
        source: Annotated[str, typer.Argument(help=f"Data set: {sources}, or table: your own.")],
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

    @app.command("download")
    def download_command(
        source: Annotated[str, typer.Argument(help=f"Data set: {sources}.")],
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

    @app.command("list")
    def list_command(
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List the imported data sets, and those that can be."""
        list_datasets(as_json)

    @app.command("show")
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
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show what an imported data set, or the file of a table, holds."""
        columns = table_options(quality, text, embedding, cost, prices, tokens, clip)
        with as_options():
            if name.lower().endswith(SUFFIXES):
                show_file(name, columns, as_json)
                return
            if columns:
                option, endings = next(iter(columns)), ", ".join(SUFFIXES)
                raise UsageError(
                    f"`{option}` is an option of a file; {name!r} does not end in one of {endings}"
                )
            show(name, as_json)

    @app.command("remove")
    def remove_command(
        name: Annotated[str, typer.Argument(help="Name it was imported under.")],
    ) -> None:
        """Delete an imported data set from the cache folder; official files stay."""
        remove(name)
        say(f"removed {name}")

    @app.command("outcomes")
    def outcomes_command(
        name: Annotated[str, typer.Argument(help="Imported conversations.")] = "wildchat",
        context_dim: Annotated[int, typer.Option(min=2, help="Length of a context.")] = 64,
        sample: Annotated[int, typer.Option(min=1, help="Turns the model is fitted on.")] = 20_000,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Fit the outcome model of logged conversations and show its calibration."""
        show_outcomes(name, context_dim, sample, as_json)

    @app.command("retrials")
    def retrials_command(
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Judge the rule that finds retrials by its hand-labelled pairs."""
        show_retrials(as_json)

    return app


def run_import(
    source: str,
    path: Path,
    name: str | None,
    prices: Path | None,
    patterns: tuple[str, ...] = (),
) -> Header:
    """Import official files and say what came of it."""
    from rich.markup import escape

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
    for note in _note_lines(facts.notes):
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
        raise UsageError(
            'downloading needs huggingface_hub: pip install "llmqueue_gym[hub]"; or download the '
            "file yourself and run: llmqueue-bench data import SOURCE PATH"
        ) from error
    return snapshot_download


def list_datasets(as_json: bool = False) -> None:
    """Print the stored data sets and the sources that are not imported."""
    from rich.table import Table

    clear_leftovers()
    headers, damaged = [], {}
    for name in stored_names():
        try:
            headers.append(read_header(name))
        except ValueError as error:
            damaged[name] = str(error)
    missing = {name: entry for name, entry in SOURCES.items() if name not in stored_names()}
    if as_json:
        print_json(
            {
                "imported": list(map(_facts, headers)),
                "damaged": damaged,
                "not_imported": {
                    name: {"reference": entry.reference, "repository": entry.repository}
                    for name, entry in missing.items()
                },
            }
        )
        return
    for problem in damaged.values():
        say(f"damaged: {problem}")
    table = Table("name", "source", "rows", "LLMs", "costs", "licence", "file")
    for header in headers:
        facts = header.facts
        costs = "yes" if "cost" in facts.units else "no"
        files = ", ".join(file["name"] for file in header.files[:3])
        counts = (f"{facts.rows:,}", str(len(facts.llms)))
        add_row(table, header.name, header.source, *counts, costs, header.licence, files)
    if headers:
        show_table(table)
    for source, entry in missing.items():
        say(f"not imported: {source} ({entry.reference}; hub data set {entry.repository})")


def show(name: str, as_json: bool) -> None:
    """Print what a stored data set holds, as tables or JSON."""
    summary = summarise(read_header(name))
    if as_json:
        print_json(summary)
        return
    print_summary(summary)


def _facts(header: Header) -> dict[str, Any]:
    """Return what a stored data set says about itself, as plain JSON."""
    return {
        "name": header.name,
        "source": header.source,
        "reference": header.reference,
        "licence": header.licence,
        "rows": header.facts.rows,
        "llms": list(header.facts.llms),
        "units": dict(header.facts.units),
        "files": list(header.files),
        "notes": dict(header.facts.notes),
    }


def summarise(header: Header) -> dict[str, Any]:
    """Facts about a stored data set, as plain JSON."""
    about = _facts(header)
    if header.facts.kind != POOL:
        return about | {"retrial_rates": retrial_rates(header)}
    table = read_table(header)
    quality, cost = quality_and_cost(header, table)
    return about | pool_summary(header.facts.llms, quality, cost)


def pool_summary(llms: tuple[str, ...], quality: Any, cost: Any) -> dict[str, Any]:
    """Quality, complementarity, capacity and cost spread of a pool.

    Parameters
    ----------
    llms : tuple of str
        Names of the N LLMs.
    quality, cost : ndarray, shape (P, N)
        Scores in [0, 1] and USD; cost may be None.

    Returns
    -------
    dict
        ``best_llm`` is the LLM with the largest mean quality, ``oracle`` the mean over queries of
        the best quality, ``complementarity`` what routing could gain at most: oracle minus best
        LLM; ``beaten`` is the share of queries on which another LLM does strictly better than it.
        ``capacity`` is 1 / E[1 / p*] by K at cost weight 0; None if all qualities are equal.
        ``cost_spread`` is the ratio of the largest to the smallest positive mean cost of an LLM,
        ``arrivals`` the order in which LLMDeploy lets them arrive unless told otherwise.
    """
    mean = quality.mean(axis=0)
    best = int(mean.argmax())
    oracle = quality.max(axis=1)
    sizes = [k for k in ASSORTMENT_SIZES if k <= len(llms)]
    found: dict[str, Any] = {
        "best_llm": llms[best],
        "best_quality": float(mean[best]),
        "oracle": float(oracle.mean()),
        "complementarity": float(oracle.mean() - mean[best]),
        "beaten": float((oracle > quality[:, best]).mean()),
        "capacity": {str(k): None for k in sizes},
        "quality": dict(zip(llms, mean.tolist(), strict=True)),
    }
    if quality.min() < quality.max():
        contexts = np.zeros((len(quality), 1), dtype=np.float32)
        utilities = QueryPool(contexts, quality, cost, llms).utilities()
        found["capacity"] = {str(k): capacity(utilities, k) for k in sizes}
    if cost is not None:
        spent = cost.mean(axis=0)
        paid = spent[spent > 0]
        found["cost"] = dict(zip(llms, spent.tolist(), strict=True))
        found["cost_spread"] = float(paid.max() / paid.min()) if paid.size else None
        found["cost_range"] = [float(spent.min()), float(spent.max())]
        found["arrivals"] = arrival_words(read_arrivals(None, llms), llms)
    return found


def print_summary(summary: dict[str, Any]) -> None:
    """Print what `summarise` or a table's file gives."""
    lines: dict[str, str] = {
        "reference": summary["reference"],
        "licence": summary["licence"],
        "rows": f"{summary['rows']:,}",
        "LLMs": str(len(summary["llms"])),
        "units": ", ".join(f"{key}: {unit}" for key, unit in summary["units"].items()),
        "files": ", ".join(f"{f['name']} (SHA-256 {f['sha256'][:12]}…)" for f in summary["files"]),
    }
    if "oracle" in summary:
        lines |= {
            "best single LLM": f"{summary['best_llm']} ({summary['best_quality']:.4f})",
            "per-query oracle": f"{summary['oracle']:.4f}",
            "complementarity": f"{summary['complementarity']:.4f} (another LLM is better on "
            f"{summary['beaten']:.1%} of the queries)",
        }
        for k, value in summary["capacity"].items():
            lines[f"capacity, K = {k}"] = "none" if value is None else f"{value:.3f} queries / slot"
    if summary.get("cost_spread"):
        low, high = summary["cost_range"]
        lines["cost spread"] = f"x{summary['cost_spread']:,.0f} ({low:.3g} to {high:.3g} USD)"
    if "arrivals" in summary:
        lines["LLMs arrive (LLMDeploy, unless `arrivals` says otherwise)"] = ", ".join(
            summary["arrivals"]
        )
    say(f"{summary['name']} ({summary['source']})")
    for key, text in lines.items():
        say(f"  {key}: {text}")
    if "retrial_rates" in summary:
        _print_conversations(summary)
        return
    for note in _note_lines(summary["notes"]):
        say(f"  note: {note}")
    if "quality" in summary:
        show_table(_llm_table(summary))


def _print_conversations(summary: dict[str, Any]) -> None:
    from rich.table import Table

    notes = summary["notes"]
    found, seen = notes["difflib_sample"]
    by_turn = ", ".join(
        f"{turn}: {retried / followed:.3f}"
        for turn, (retried, followed) in notes["retrials_by_turn"].items()
    )
    runs = ", ".join(f"{length}: {count}" for length, count in notes["retrial_run_lengths"].items())
    lines = {
        "conversations": f"{notes['conversations']:,}",
        "a retrial": f"next user turn with similarity of at least {notes['threshold']}",
        "retrials per followed turn, by turn (6: and later)": by_turn or "none",
        "lengths of runs of retrials": runs or "none",
        "by difflib's ratio > 0.6 instead (first pairs)": f"{found} of {seen}",
    }
    for key, text in lines.items():
        say(f"  {key}: {text}")
    table = Table("LLM", "turns", "retrials", "rate", "95% (Wilson)")
    for row in summary["retrial_rates"]:
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        counts = (f"{row['turns']:,}", f"{row['retried']:,}")
        add_row(table, row["llm"], *counts, f"{row['rate']:.4f}", interval)
    show_table(table)


def show_outcomes(name: str, context_dim: int, sample: int, as_json: bool) -> None:
    """Print the calibration of the outcome model of logged conversations."""
    from rich.table import Table

    model = outcomes_of(name, context_dim, sample)
    found = model.calibration
    if as_json:
        print_json(found)
        return
    say(
        f"held out: {found['turns']:,} turns of conversations that did not fit the model\n"
        f"expected calibration error: {found['ece']:.4f}\n"
        f"log loss: {found['log_loss']:.4f} (always the mean: {found['base_log_loss']:.4f})\n"
        f"Brier score: {found['brier']:.4f} (always the mean: {found['base_brier']:.4f})\n"
        f"area under the curve: {found['auc'] or float('nan'):.3f}"
    )
    for title, key in (("by predicted chance that the answer is kept", "table"), ("", "llms")):
        table = Table(*(["LLM"] if key == "llms" else []), "turns", "predicted", "observed", "95%")
        table.title = title or "by LLM"
        for row in found[key]:
            first = [row["llm"]] if key == "llms" else []
            numbers = ["" if row[k] is None else f"{row[k]:.4f}" for k in ("predicted", "observed")]
            interval = f"{row['low']:.4f} to {row['high']:.4f}"
            add_row(table, *first, f"{row['turns']:,}", *numbers, interval)
        show_table(table)


def show_retrials(as_json: bool) -> None:
    """Print how well the rule finds the retrials among the labelled pairs."""
    from rich.table import Table

    pairs = retrials.labelled_pairs()
    sets = retrials.halves(pairs) | {"all": pairs}
    found = {name: retrials.confusion(chosen) for name, chosen in sets.items()}
    if as_json:
        print_json({"threshold": retrials.THRESHOLD, "pairs": found})
        return
    table = Table("pairs", "retrials", "others", "precision", "recall", "F1")
    table.title = f"similarity of at least {retrials.THRESHOLD}"
    for name, row in found.items():
        positive = row["retrials_found"] + row["retrials_missed"]
        negative = row["false_alarms"] + row["others"]
        scores = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        add_row(table, name, str(positive), str(negative), *scores)
    show_table(table)
    for pair in pairs:
        likeness = retrials.similarity(pair["previous"], pair["next"])
        if (likeness >= retrials.THRESHOLD) != pair["retrial"]:
            what = "missed" if pair["retrial"] else "false alarm"
            say(f"{what} ({likeness:.2f}): {pair['previous'][:50]!r} -> {pair['next'][:50]!r}")


def _llm_table(summary: dict[str, Any]) -> "Table":
    from rich.table import Table

    cost = summary.get("cost")
    table = Table("LLM", "mean quality", *(["mean cost, USD"] if cost else []), "missing scores")
    missing = summary["notes"].get("missing_scores", {})
    for llm, quality in sorted(summary["quality"].items(), key=lambda item: -item[1]):
        price = [f"{cost[llm]:.3g}"] if cost else []
        add_row(table, llm, f"{quality:.4f}", *price, str(missing.get(llm, 0)))
    return table


_NOTES = {
    "missing_scores": "missing scores, counted as 0",
    "left_out": "LLMs without a single score, left out",
    "repeated_ids": "repeated ids, kept as queries of their own",
    "repeated_pairs": "further labels of a pair, of which the largest counts",
    "conflicting_texts": "rows whose text is not their question's first",
    "prices": "costs from a price table",
    "list_price": "list prices shown to agents of LLMDeploy-v0",
}


def _note_lines(notes: Any) -> list[str]:
    """Return what an importer decided, in words; nothing for what did not occur."""
    lines = []
    for key, words in _NOTES.items():
        value = notes.get(key)
        if isinstance(value, dict) and value:
            whole = all(isinstance(item, int) for item in value.values())
            count = f"{sum(value.values()):,} in " if whole else ""
            lines.append(f"{words}: {count}{len(value)} LLMs")
        elif value:
            lines.append(f"{words}: {', '.join(value) if isinstance(value, list) else value}")
    return lines
