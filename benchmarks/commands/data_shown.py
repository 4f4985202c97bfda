"""What is printed of data sets and tables: their rows, LLMs, qualities, costs and conversations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.terminal import add_row, print_json, say, show_table
from llmqueue_gym.deployment.streams.order import arrival_words, read_arrivals
from llmqueue_gym.oracles import capacity
from llmqueue_gym.workloads.cells import show as shorten
from llmqueue_gym.workloads.datasets import SOURCES, TABLE
from llmqueue_gym.workloads.pool import QueryPool
from llmqueue_gym.workloads.rows import find_file, read_rows
from llmqueue_gym.workloads.sources import retrials
from llmqueue_gym.workloads.sources.conversations import outcomes_of, retrial_rates
from llmqueue_gym.workloads.sources.table import parse, read_layout
from llmqueue_gym.workloads.stored import (
    POOL,
    Header,
    clear_leftovers,
    file_facts,
    quality_and_cost,
    read_header,
    read_table,
    stored_names,
)

ASSORTMENT_SIZES = (1, 2)
"""Assortment sizes K for which `show` gives the capacity."""


def list_datasets(as_json: bool = False) -> None:
    """Print the stored data sets and the sources that are not imported."""
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


def show_dataset(name: str, as_json: bool) -> None:
    """Print what a stored data set holds, as tables or JSON."""
    summary = summarise(read_header(name))
    if as_json:
        print_json(summary)
        return
    print_summary(summary)


def show_file(path: str, columns: Mapping[str, Any], as_json: bool) -> None:
    """Print what the file of a table holds: its columns, and the LLMs if scores are named."""
    if not columns:
        _show_columns(path, as_json)
        return
    layout = read_layout(path, **columns)
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
    for note in note_lines(summary["notes"]):
        say(f"  note: {note}")
    if "quality" in summary:
        show_table(_llm_table(summary))


def _print_conversations(summary: dict[str, Any]) -> None:
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


def _llm_table(summary: dict[str, Any]) -> Table:
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


def note_lines(notes: Any) -> list[str]:
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


def show_outcomes(name: str, context_dim: int, sample: int, as_json: bool) -> None:
    """Print the calibration of the outcome model of logged conversations."""
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
