"""``llmqueue-bench arrivals`` and ``logs``: what traces and logs hold, and agents on the latter."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from benchmarks.commands.reading import Reading, read_columns
from benchmarks.score.intervals import Interval, t_interval
from benchmarks.score.logged import (
    ESTIMATES,
    Evaluation,
    Prepared,
    evaluate,
    judge_policy,
    prepare,
    under_budget,
)
from benchmarks.score.replay import agent_kind, check_budget
from benchmarks.terminal import add_row, make_console, print_json, say, show_table
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.fit import fit_serving
from llmqueue_gym.workloads.arrivals import map_to_slots
from llmqueue_gym.workloads.pool import printable
from llmqueue_gym.workloads.sources.log_file import Log
from llmqueue_gym.workloads.sources.logs import describe_log, judge_outcomes
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


def show_log(reading: Reading, as_json: bool) -> None:
    """Print what a log holds and how well an outcome model fits it."""
    log = reading.read()
    found: dict[str, Any] = describe_log(log)
    try:
        found["outcome_model"] = judge_outcomes(log, reading.vectors(log))
    except UsageError as error:
        found["outcome_model"] = {"none": str(error)}
    if as_json:
        print_json(found)
        return
    table = Table("LLM", "requests", found["outcome"], "95% interval", "USD a request")
    for row in found["llms"]:
        add_row(
            table,
            row["llm"],
            f"{row['requests']:,}",
            f"{row['kept']:.3f}",
            "" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]",
            "" if row["mean_cost"] is None else f"{row['mean_cost']:.3g}",
        )
    distinct = found["queries"] if log.texts is None else f"{found['queries']:,} distinct texts"
    say(f"{reading.path}: {found['requests']:,} requests, {distinct}; read as {log.source}")
    say(f"kept answers are told by {log.told}")
    show_table(table)
    _say_notes(log)
    say(
        "propensities: none, they are estimated from the contexts"
        if log.propensity is None
        else f"propensities: logged, the smallest is {log.propensity.min():.3g}"
    )
    _print_model(found["outcome_model"])


def show_serving(path: Path, columns: Sequence[str], as_json: bool) -> None:
    """Print what a log says of a serving problem, and how well it fits."""
    fit = fit_serving(str(path), read_columns(columns))
    if as_json:
        rows = [each._asdict() for each in fit.estimates]
        settings = fit.settings()
        print_json({"path": str(path), "estimates": rows, "notes": fit.notes, "settings": settings})
        return
    table = Table("parameter", "LLM", "estimate", "std. error", "unit", "n", "fit")
    for each in fit.estimates:
        add_row(
            table,
            each.parameter,
            each.of,
            f"{each.value:.4g}",
            f"{each.error:.2g}",
            each.unit,
            f"{each.n:,}",
            f"{each.measure} {each.quality:.3f}" if each.measure else "",
        )
    show_table(table)
    say(
        "R2: of the regression; KS: largest distance from the observed distribution (Kaplan and "
        "Meier's where some users were not watched to the end)"
    )
    for note in fit.notes:
        say(f"note: {note}")
    log = str(path) if not columns else {"path": str(path), "columns": read_columns(columns)}
    say(fit.recipe(log))


def _say_notes(log: Log) -> None:
    """Say what was left out of a log and what else has to be known of it."""
    for cause, count in log.left_out.items():
        say(f"left out: {count:,} row{'s' if count > 1 else ''} with {cause}")
    for note in log.notes:
        say(note if note.startswith("warning") else f"note: {note}")


def _print_model(found: Mapping[str, Any] | None) -> None:
    if found is None:
        say("outcome model: its calibration is shown for kept and retried answers only")
    elif "none" in found:
        say(f"outcome model: none ({found['none']})")
    else:
        say(
            f"outcome model, on the last {found['turns']:,} requests: log loss "
            f"{found['log_loss']:.4f} (each LLM's share alone: {found['base_log_loss']:.4f}), "
            f"calibration error {found['ece']:.3f}"
        )


def show_evaluation(
    reading: Reading,
    agents: Sequence[str],
    *,
    train_share: float = 0.5,
    cost_weight: float = 0.0,
    seed: int = 0,
    draws: int = 10,
    each_llm: bool = False,
    budget: float | None = None,
    as_json: bool = False,
) -> None:
    """Print the off-policy values of agents, and of each LLM alone if asked to."""
    for name in agents:
        agent_kind(name)  # before a long log is read
    log = reading.read()
    data = prepare(log, reading.vectors(log), train_share, cost_weight)
    if budget is not None:
        check_budget(data, budget)
    found = _with_progress(data, agents, seed, draws, budget)
    if each_llm:
        for llm in np.flatnonzero(data.supported):
            alone = np.tile(np.eye(len(log.llms))[llm], (len(data.judge), 1))
            found.append(judge_policy(data, alone, f"always {log.llms[llm]}"))
    if as_json:
        print_json(_as_json(reading.path, data, found, cost_weight, seed, budget))
        return
    _show_values(reading.path, data, found, budget)
    say(
        f"learned on the first {len(data.train):,} requests, judged on {len(data.judge):,} "
        "of the others; 95% intervals; propensities "
        + (
            "estimated: right only if the contexts explain the choices"
            if data.estimated
            else "logged"
        )
    )
    _say_notes(log)
    for note in data.notes:
        say(f"note: {note}")
    for row in found:
        for warning in row.warnings:
            say(f"warning: {row.agent}: {warning}")


def _show_values(
    path: Path, data: Prepared, found: Sequence[Evaluation], budget: float | None
) -> None:
    """Print the table of what the log itself and every agent is worth."""
    money = () if budget is None else (f"within {budget:.3g} USD", "earned within")
    names = ("agent", "doubly robust", "gain on the log", "USD a request", *money)
    names += ("effective requests", "self-normalised", "IPS")
    table = Table(*names, title=f"{escape(printable(path.name))}: value of a request")
    table.title_justify = "left"
    cost, logged = data.log.cost, found[0].logged
    spent = "" if cost is None else f"{cost[data.judge].mean():.3g}"
    cells = [_shown(logged), "", spent, *("" for _ in money), f"{len(data.judge):,}"]
    add_row(table, "the log itself", *cells, _shown(logged), "")
    for row in found:
        plain, normalised, robust = (_shown(row.estimates[key]) for key in ESTIMATES)
        usd = "" if row.usd is None else _shown(row.usd, spec=".3g")
        cells = [robust, _shown(row.gain, "+.3f"), usd]
        if budget is not None:
            kept, earned = under_budget(row, budget)
            cells += [{True: "yes", False: "no", None: "unsure"}[kept], _shown(earned)]
        add_row(table, row.agent, *cells, f"{row.effective:,.0f}", normalised, plain)
    show_table(table)


def _as_json(
    path: Path,
    data: Prepared,
    found: Sequence[Evaluation],
    cost_weight: float,
    seed: int,
    budget: float | None,
) -> dict[str, Any]:
    return {
        "path": str(path),
        "requests": len(data.judge),
        "trained_on": len(data.train),
        "propensities": "estimated" if data.estimated else "logged",
        "cost_weight": cost_weight,
        "budget": budget,
        "seed": seed,
        "left_out": dict(data.log.left_out),
        "notes": [*data.log.notes, *data.notes],
        "logged": list(found[0].logged),
        "logged_usd": None
        if data.log.cost is None
        else list(t_interval(data.log.cost[data.judge])),
        "agents": [evaluation_json(data, row, budget) for row in found],
    }


def evaluation_json(data: Prepared, row: Evaluation, budget: float | None) -> dict[str, Any]:
    """Return what is known of a policy, JSON-plain."""
    found = {
        "agent": row.agent,
        **{name: list(value) for name, value in row.estimates.items()},
        "usd": None if row.usd is None else list(row.usd),
        "gain": list(row.gain),
        "usd_gain": None if row.usd_gain is None else list(row.usd_gain),
        "effective_requests": row.effective,
        "mean_weight": row.mean_weight,
        "largest_weight": row.largest_weight,
        "outside": row.outside,
        "warnings": list(row.warnings),
        "replayed": row.trained_on,
        "shares": dict(zip(data.log.llms, row.policy.mean(axis=0).tolist(), strict=True)),
    }
    if budget is not None:
        kept, earned = under_budget(row, budget)
        found |= {"within_budget": kept, "earned_within_budget": list(earned)}
    return found


def _with_progress(
    data: Prepared, agents: Sequence[str], seed: int, draws: int, budget: float | None
) -> list[Evaluation]:
    """Evaluate one agent after the other, with a bar on the terminal."""
    found = []
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        for name in agents:
            bar = progress.add_task(escape(printable(name)), total=len(data.log))
            found.append(
                evaluate(
                    data,
                    name,
                    seed=seed,
                    draws=draws,
                    advance=functools.partial(progress.advance, bar),
                    budget=budget,
                )
            )
    return found


def _shown(interval: Interval, spec: str = ".3f") -> str:
    if not np.isfinite(interval.value):
        return "none"
    value, low, high = (f"{number:{spec}}" for number in interval)
    return f"{value} [{low}, {high}]"
