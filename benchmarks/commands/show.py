"""Subcommands that read: report, export, list, compare, arrivals, watch, verify, logs, choose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.commands import FAILED, INTERRUPTED, OK, completion
from benchmarks.commands.options import (
    CHOICE,
    FINITE,
    LEADERBOARD,
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    SHARE,
    TIMEOUT,
    WALL,
    chosen_results,
    cores,
    read_data,
    verdict,
)
from benchmarks.plan.suite import REFERENCES, built_in_suites, load_suite
from benchmarks.terminal import add_row, print_json, show_table
from llmqueue_gym.errors import UsageError

LogFile = Annotated[Path, typer.Argument(help="CSV, TSV, JSON(L), Parquet: a row a request.")]
Renamed = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help="Another name of a column: query=prompt; or a JSON file of {FIELD: NAME}."
    ),
]
Clipped = Annotated[bool, typer.Option(help="Count scores a little outside [0, 1] as 0 or 1.")]
Listed = Annotated[
    Path | None,
    typer.Option("--prices", help="JSON of list prices, for requests that say no cost."),
]
Contexts = Annotated[
    str | None, typer.Option("--contexts", help="How texts become contexts: tfidf-svd, wordllama.")
]


def report_command(
    results: Annotated[
        str | None,
        typer.Argument(help="Results folder, URL or exported file; default: the last run."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page and pictures go.")] = LEADERBOARD,
    readme: Annotated[
        Path | None, typer.Option(help="Page whose marked part takes the short tables.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit code 1 if --readme is out of date."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the tables as JSON and write nothing.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine and open it.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of --serve; 0: a free one.")
    ] = 0,
    figure: Annotated[
        str | None,
        typer.Option(help="Write this one figure for a paper; a wrong name lists them."),
    ] = None,
    agents: Annotated[
        str, typer.Option(help="Of --figure: agents a,b,... in the order of their colours.")
    ] = "",
    labels: Annotated[str, typer.Option(help="Of --figure: what to call them, A,B,...")] = "",
    task: Annotated[
        str | None, typer.Option(help="Of --figure curves and traffic: the task.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="Of --figure: pdf or svg.")] = "pdf",
) -> None:
    """Print the leaderboard; write index.html, leaderboard.md and the pictures."""
    from benchmarks.report.command import check_readme, report, serve
    from benchmarks.report.command import figure as write_figure

    found: Path | str = chosen_results(results)
    if figure is not None:
        chosen, names = (_parts(text) for text in (agents, labels))
        write_figure(found, figure, out, agents=chosen, labels=names, task=task, form=form)
        raise typer.Exit(OK)
    if agents or labels or task:
        raise UsageError("--agents, --labels and --task belong to --figure NAME")
    if as_json:
        raise typer.Exit(_print_board(found))
    if not check:
        code = verdict(report(found, out, readme))
        if show:
            serve(out, port)
        raise typer.Exit(code)
    if readme is None:
        raise UsageError("--check needs --readme PATH: the page to compare")
    raise typer.Exit(OK if check_readme(found, readme) else FAILED)


def board_command(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Exports; of one suite, oldest release first. Default: all below "
            "benchmarks/results, those in its folders as earlier releases."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the site.")] = Path("board"),
    submissions: Annotated[Path, typer.Option(help="Folder of what was handed in.")] = Path(
        "submissions"
    ),
    repository: Annotated[
        str | None,
        typer.Option(help="https://HOST/OWNER/NAME, for links to code and results."),
    ] = None,
) -> None:
    """Write the public board: a static site of all suites, agents and submissions."""
    from benchmarks.report.site import write_board

    write_board(out, results or [], submissions, repository)


def export_command(
    results: Annotated[str, typer.Argument(help="Results folder or URL.")],
    path: Annotated[Path, typer.Argument(help="File to write, SUITE.json.gz.")],
    key: Annotated[
        Path | None, typer.Option("--sign", help="Private key that signs it: see `key new`.")
    ] = None,
) -> None:
    """Write a run into one small file that `report` reads in place of a results folder."""
    from benchmarks.report.command import export

    export(results, path, key)


def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the built-in suites and their tasks."""
    from rich.table import Table

    if as_json:
        print_json(
            {
                "suites": [
                    {
                        "name": suite.name,
                        "description": suite.description,
                        "seeds": suite.seeds,
                        "tasks": [
                            {
                                "name": task.name,
                                "env": task.env,
                                "horizon": task.horizon,
                                "agents": [*REFERENCES, *(entry.label for entry in task.agents)],
                                "tags": list(task.tags),
                                "headline": task.headline,
                            }
                            for task in suite.tasks
                        ],
                    }
                    for suite in map(load_suite, built_in_suites())
                ]
            }
        )
        return
    for name in built_in_suites():
        suite = load_suite(name)
        table = Table(title=f"{name}: {suite.description}", title_justify="left")
        for column in ("task", "T", "agents", "seeds", "tags"):
            table.add_column(column)
        for task in suite.tasks:
            count = str(len(task.agents) + len(REFERENCES))
            tags = ", ".join(task.tags)
            row = (task.name, f"{task.horizon:,}", count, str(suite.seeds), tags)
            add_row(table, *row)
        show_table(table)


def agents_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the agents by name, with their sources."""
    from rich.table import Table

    from baselines.registry import registered_agents
    from benchmarks.problems import PROBLEMS

    policies = (f"{problem.oracle} ({problem.name})" for problem in PROBLEMS.values())
    truth = f"knows the truth: {', '.join(policies)}"
    if as_json:
        agents: list[dict[str, Any]] = [
            {"name": "oracle", "kind": "", "settings": {}, "source": truth}
        ]
        agents += [
            {
                "name": spec.name,
                "kind": spec.kind,
                "settings": dict(spec.settings),
                "source": spec.source,
            }
            for spec in registered_agents()
        ]
        print_json({"agents": agents})
        return
    table = Table("agent", "plays", "settings", "source")
    table.add_row("oracle", "", "", truth)
    for spec in registered_agents():
        settings = ", ".join(f"{key}={value}" for key, value in spec.settings.items())
        add_row(table, spec.name, spec.kind, settings, spec.source)
    show_table(table)


def compare_command(
    first: Annotated[str, typer.Argument(help="Results (folder, export, URL), or an agent.")],
    second: Annotated[str, typer.Argument(help="What it is compared with.")],
    results: Annotated[
        str | None,
        typer.Option(help="Of two agents: results folder, export, URL; default: the last run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which cells changed between two results, or how two agents of a run differ.

    Differences are SECOND - FIRST.

    Cells are paired by task, agent, seed and protocol; FOLDER@X takes the cells of version X
    (or of a code hash or commit that begins with X) from a folder that holds several.
    """
    from benchmarks.commands.compare import is_results, show_agents, show_changes

    there = [name for name in (first, second) if is_results(name)]
    if results is None and len(there) == 2:
        show_changes(first, second, as_json)
    elif results is None and there:
        [other] = {first, second} - set(there)
        raise UsageError(f"{there[0]} is a folder of results, and there is no {other}")
    else:
        show_agents(chosen_results(results), first, second, as_json)


def arrivals_command(
    path: Annotated[Path, typer.Argument(help="Trace: CSV, TSV, JSON(L) or Parquet.")],
    rate: Annotated[float, typer.Option(help="Mean arrivals a slot.", callback=SHARE)] = 0.5,
    column: Annotated[str | None, typer.Option(help="Column of the times.")] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of numbers: s, ms, us or ns.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how bursty a trace is, before and after it is laid on slots."""
    from benchmarks.commands.logs import show_trace

    show_trace(path, rate, column, unit, as_json)


def watch_command(
    task: Annotated[
        str,
        typer.Argument(
            help="SUITE:TASK, or a task of a built-in suite.", autocompletion=completion.tasks
        ),
    ],
    agent: Annotated[
        str,
        typer.Option(help="A name or mypackage.module:MyAgent.", autocompletion=completion.agents),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
    speed: Annotated[
        float, typer.Option(help="Steps a second; inf for no pause.", callback=POSITIVE)
    ] = 20.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many; default: the whole run.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data of a task: NAME=PATH.")] = None,
) -> None:
    """Show an agent at play, as its environment draws it, and the truth in a line.

    Ctrl-C ends it. Where the output is no terminal, only the last frame is printed.
    """
    from benchmarks.commands.watch import watch, watched_cell

    cell = watched_cell(task, agent, seed, read_data(data or []))
    try:
        watch(cell, speed, steps)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def verify_command(
    results: Annotated[
        str | None, typer.Argument(help="Results folder, URL or export; default: the last run.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Cells to compute again.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed by which they are chosen.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells run at once; default: all cores.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data of a task: NAME=PATH.")] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the suite's trained models; default: models beside the results, "
            "results/SUITE/models for an export or a URL."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds a cell may take.", callback=POSITIVE)
    ] = TIMEOUT,
    wall: Annotated[bool | None, WALL] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute a sample of stored cells again and compare bit for bit; 1 if one differs.

    Of an export, to the digits that it keeps.
    """
    from benchmarks.commands.verify import show_verification
    from benchmarks.run.engines import LocalEngine

    where = chosen_results(results)
    engine = LocalEngine(workers or cores(), timeout, hidden=[str(where)])
    trust = None if wall is None else not wall
    arguments = (sample, seed, engine, read_data(data or []), as_json, models, trust)
    verified = show_verification(where, *arguments)
    raise typer.Exit(OK if verified else FAILED)


def logs_show(
    file: LogFile,
    column: Renamed = None,
    clip_scores: Clipped = False,
    serving: Annotated[
        bool, typer.Option("--serving", help="Fit service times, lengths, patience, returns.")
    ] = False,
    prices: Listed = None,
    contexts: Contexts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a log's LLMs, their keep rates and costs, and how well they can be predicted."""
    from benchmarks.commands.logs import show_log, show_serving
    from benchmarks.commands.reading import Reading

    if serving:
        show_serving(file, column or [], as_json)
        return
    show_log(Reading(file, column or (), clip_scores, prices, contexts), as_json)


def logs_evaluate(
    file: LogFile,
    agent: Annotated[list[str], typer.Option(help="Agent: a name or mypackage.module:MyAgent.")],
    column: Renamed = None,
    clip_scores: Clipped = False,
    prices: Listed = None,
    contexts: Contexts = None,
    train_share: Annotated[
        float, typer.Option(help="Part that agents learn from.", callback=PART)
    ] = 0.5,
    cost_weight: Annotated[
        float, typer.Option(help="Reward given up per USD.", callback=NOT_NEGATIVE)
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the agents.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Decisions a request.")] = 10,
    each_llm: Annotated[
        bool, typer.Option("--each-llm", help="Judge every LLM alone as well.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(help="USD a request: is it kept? Agents of deployment tasks need it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what agents would have earned: IPS, self-normalised and doubly robust."""
    from benchmarks.commands.logs import show_evaluation
    from benchmarks.commands.reading import Reading

    show_evaluation(
        Reading(file, column or (), clip_scores, prices, contexts),
        agent,
        train_share=train_share,
        cost_weight=cost_weight,
        seed=seed,
        draws=draws,
        each_llm=each_llm,
        budget=budget,
        as_json=as_json,
    )


def choose_command(
    file: LogFile,
    budget: Annotated[
        float | None,
        typer.Option(help="USD a request; policies above it are paced or out.", callback=FINITE),
    ] = None,
    load: Annotated[
        float | None,
        typer.Option(
            help="Load to play at; default: the log's, if it tells, or 0.8.", callback=PART
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page and all behind it go.")] = CHOICE,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="Also judge this agent: a name or mypackage.module:MyAgent."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds under load.")] = 5,
    horizon: Annotated[int, typer.Option(min=100, help="Slots of a run under load.")] = 5000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells run at once; default: all cores.")
    ] = None,
    column: Renamed = None,
    clip_scores: Clipped = False,
    prices: Listed = None,
    contexts: Contexts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Recommend a policy for the traffic of a log, or say why it cannot (exit code 1).

    Judges policies on the log, plays them under load, and writes choice.html and choice.md.
    """
    from benchmarks.commands.choose import Asked, choose_from_log
    from benchmarks.commands.reading import Reading

    reading = Reading(file, column or (), clip_scores, prices, contexts)
    asked = Asked(reading, out, budget, load, agent or (), seeds, horizon, workers or cores())
    raise typer.Exit(choose_from_log(asked, as_json))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print_board(results: Path | str) -> int:
    """Print the board of some results as JSON; return the exit code."""
    from benchmarks.report.data import board_json
    from benchmarks.score.export import open_results
    from benchmarks.score.scoring import load_board

    board = load_board(open_results(results))
    print_json(board_json(board))
    return verdict(board)
