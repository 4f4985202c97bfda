"""``llmqueue-bench``: run suites, report them, list what there is.

Typer and rich come with the ``bench`` extra; they are imported when the command starts.
"""

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from traceback import extract_tb
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from benchmarks.plan.cells import Plan, make_plan
from benchmarks.plan.suite import REFERENCES, Suite, SuiteError, built_in_suites, load_suite
from benchmarks.run.store import CorruptResultError, Store, StoreBusyError, StoreWriteError
from benchmarks.terminal import (
    add_row,
    make_console,
    print_json,
    say,
    show_table,
    tolerate_encodings,
)

if TYPE_CHECKING:
    import typer
    from rich.console import Console
    from rich.progress import Progress

    from benchmarks.run.engines import Engine, Outcome
    from benchmarks.score.scoring import Board

_EXTRA = ("typer", "rich", "polars", "matplotlib", "plotly", "jinja2")
RESULTS = Path("results")
LEADERBOARD = Path("leaderboard")
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = (
    "Exit codes: 0 all is well; 1 cells or trainings failed, an oracle was beaten, results do not "
    "verify, are damaged or could not be stored; 2 wrong usage, or the results folder is in use; "
    "130 interrupted."
)
TIMEOUT = 3600.0
"""Seconds a cell may take unless told otherwise: a hanging agent must end some day."""
TRAIN_TIMEOUT = 86_400.0
"""Seconds a training of a suite may take unless told otherwise."""


WHERE = (
    "--results",
    "--workers",
    "--engine",
    "--address",
    "--timeout",
    "--train-timeout",
    "--memory",
)
"""Options of a run that change no result; a page that others read does not say them."""


def main() -> None:
    """Run the command; what a user did wrong is one line on stderr."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        say(f'llmqueue-bench needs {names}: pip install "llmqueue_gym[bench]"', stderr=True)
        raise SystemExit(USAGE)
    tolerate_encodings()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script's path lacks the user's own folder
    try:
        build_app()()
    except StoreWriteError as error:
        say(
            f"llmqueue-bench: {error.strerror}; finished cells are kept, "
            "the same command computes the rest",
            stderr=True,
        )
        raise SystemExit(FAILED) from None
    except CorruptResultError as error:
        say(f"llmqueue-bench: {error}", stderr=True)
        raise SystemExit(FAILED) from None
    except (ValueError, OSError, ImportError, StoreBusyError) as error:
        if isinstance(error, ModuleNotFoundError) or not _is_of_the_user(error):
            raise  # a fault of an installation or of ours
        say(f"llmqueue-bench: {error}", stderr=True)
        raise SystemExit(FAILED if _is_of_the_disk(error) else USAGE) from None


def _is_of_the_user(error: Exception) -> bool:
    """Whether an error says what a user did wrong, and is not a fault that we ran into.

    So are files that cannot be read, and what this project raises by a statement of its own, as
    all checks of arguments do. NumPy's or Polars' errors come from other files, or from no
    statement.
    """
    if isinstance(error, (OSError, UnicodeError, json.JSONDecodeError)):
        return True
    *_, last = extract_tb(error.__traceback__)
    own = [Path(__file__).parents[1] / name for name in ("benchmarks", "baselines", "llmqueue_gym")]
    raised = (last.line or "").startswith("raise ")
    return raised and any(Path(last.filename).is_relative_to(folder) for folder in own)


def _is_of_the_disk(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
    return isinstance(error, OSError) and error.errno in full


def build_app() -> "typer.Typer":
    """Return the command with its subcommands."""
    import typer

    from benchmarks.commands import completion

    app = typer.Typer(
        help="Run benchmark suites of llmqueue_gym and report them.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )

    positive, finite = _within("(0, inf]"), _within("[0, inf)")
    share, part = _within("(0, 1]"), _within("(0, 1)")

    @app.command("run")
    def run_command(
        suite: Annotated[
            str,
            typer.Argument(
                help="Built-in suite, or path of a TOML file.", autocompletion=completion.suites
            ),
        ],
        agent: Annotated[
            list[str] | None,
            typer.Option(
                help="Also run this agent: a name or mypackage.module:MyAgent.",
                autocompletion=completion.agents,
            ),
        ] = None,
        task: Annotated[
            list[str] | None,
            typer.Option(
                help="Only tasks of this name or pattern (*).",
                autocompletion=completion.tasks_of_suite,
            ),
        ] = None,
        seeds: Annotated[int | None, typer.Option(min=1, help="Seeds a task.")] = None,
        workers: Annotated[
            int | None, typer.Option(min=1, help="Cells run at once; default: all cores.")
        ] = None,
        results: Annotated[
            str | None,
            typer.Option(help="Results folder or URL (s3://...); default: results/SUITE."),
        ] = None,
        data: Annotated[list[str] | None, typer.Option(help="Data of a task: NAME=PATH.")] = None,
        timeout: Annotated[
            float,
            typer.Option(help="Seconds a cell may take; inf for no limit.", callback=positive),
        ] = TIMEOUT,
        train_timeout: Annotated[
            float,
            typer.Option(help="Seconds a training may take; inf for no limit.", callback=positive),
        ] = TRAIN_TIMEOUT,
        memory: Annotated[
            float | None,
            typer.Option(
                help="Megabytes of data a cell may hold (an idle one has 200); Linux.",
                callback=_within("(0, inf)"),
            ),
        ] = None,
        engine: Annotated[str, typer.Option(help="Where cells run: local or ray.")] = "local",
        address: Annotated[
            str | None, typer.Option(help="Ray cluster: HOST:PORT or auto; default: a new one.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    ) -> None:
        """Run the cells of a suite that have no result yet; train first what has to be trained."""
        chosen = load_suite(suite)
        store = Store(results or RESULTS / chosen.name)
        models = (store.root or RESULTS / chosen.name) / "models"
        runner = _engine(engine, address, workers, timeout, memory)
        arguments = (chosen, agent or [], task or [], seeds, data or [], models)
        plan = _plan(*arguments)
        untrained: dict[str, str] = {}
        if plan.trainings:
            failed = _train(plan, store, models, workers or _cores(), train_timeout)
            if failed is None:
                raise typer.Exit(INTERRUPTED)
            plan = _plan(*arguments)
            untrained = {str(t): failed.get(str(t), "it did not finish") for t in plan.trainings}
            skipped = {name: f"not trained: {reason}" for name, reason in untrained.items()}
            plan = replace(plan, skipped={**plan.skipped, **skipped})
        raise typer.Exit(run(plan, store, runner, as_json, untrained))

    @app.command("train")
    def train_command(
        agent: Annotated[str, typer.Argument(help="Recipe: PPO, MaskablePPO, DQN, A2C, ...")],
        task: Annotated[
            str,
            typer.Argument(
                help="Task of a suite (NAME or SUITE:NAME), or environment id.",
                autocompletion=completion.tasks,
            ),
        ],
        steps: Annotated[int, typer.Option(min=1, help="Environment steps in all.")],
        out: Annotated[
            Path | None, typer.Option(help="Model file; default: models/AGENT-TASK.zip.")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Seed of networks and environments.")] = 0,
        kwargs: Annotated[
            str | None, typer.Option(help="Arguments of the environment, a JSON object.")
        ] = None,
        horizon: Annotated[
            int | None, typer.Option(min=1, help="Length of a run, with an environment id.")
        ] = None,
        settings: Annotated[
            str | None, typer.Option(help="Hyperparameters over the recipe's, a JSON object.")
        ] = None,
        data: Annotated[list[str] | None, typer.Option(help="Data of a task: NAME=PATH.")] = None,
        checkpoint_every: Annotated[
            int, typer.Option(min=1, help="Steps between two checkpoints.")
        ] = 50_000,
        tensorboard: Annotated[
            Path | None, typer.Option(help="Folder for TensorBoard's logs.")
        ] = None,
    ) -> None:
        """Train an RL agent; the same command resumes it. Afterwards it is an agent by name."""
        from benchmarks.run.training import train_agent

        try:
            train_agent(
                agent,
                task,
                steps=steps,
                out=out,
                seed=seed,
                kwargs=kwargs,
                horizon=horizon,
                settings=settings,
                data=_data(data or []),
                checkpoint_every=checkpoint_every,
                tensorboard=tensorboard,
                console=make_console(stderr=True),
            )
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    @app.command("report")
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

        found: Path | str = results or _last_results()
        if figure is not None:
            chosen, names = (
                [part for part in text.split(",") if part] for text in (agents, labels)
            )
            write_figure(found, figure, out, agents=chosen, labels=names, task=task, form=form)
            raise typer.Exit(OK)
        if agents or labels or task:
            raise ValueError("--agents, --labels and --task belong to --figure NAME")
        if as_json:
            raise typer.Exit(_print_board(found))
        if not check:
            verdict = _verdict(report(found, out, readme))
            if show:
                serve(out, port)
            raise typer.Exit(verdict)
        if readme is None:
            raise ValueError("--check needs --readme PATH: the page to compare")
        raise typer.Exit(OK if check_readme(found, readme) else FAILED)

    @app.command("export")
    def export_command(
        results: Annotated[str, typer.Argument(help="Results folder or URL.")],
        path: Annotated[Path, typer.Argument(help="File to write, SUITE.json.gz.")],
    ) -> None:
        """Write a run into one small file that `report` reads in place of a results folder."""
        from benchmarks.report.command import export

        export(results, path)

    @app.command("list")
    def list_command(
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List the built-in suites and their tasks."""
        list_suites(as_json)

    @app.command("compare")
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
        from benchmarks.commands.changes import is_results, show_changes
        from benchmarks.commands.compare import show_comparison

        there = [name for name in (first, second) if is_results(name)]
        if results is None and len(there) == 2:
            show_changes(first, second, as_json)
        elif results is None and there:
            [other] = {first, second} - set(there)
            raise ValueError(f"{there[0]} is a folder of results, and there is no {other}")
        else:
            show_comparison(results or _last_results(), first, second, as_json)

    @app.command("arrivals")
    def arrivals_command(
        path: Annotated[Path, typer.Argument(help="Trace: CSV, TSV, JSON(L) or Parquet.")],
        rate: Annotated[float, typer.Option(help="Mean arrivals a slot.", callback=share)] = 0.5,
        column: Annotated[str | None, typer.Option(help="Column of the times.")] = None,
        unit: Annotated[str | None, typer.Option(help="Unit of numbers: s, ms, us or ns.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show how bursty a trace is, before and after it is laid on slots."""
        from benchmarks.commands.arrivals import show_trace

        show_trace(path, rate, column, unit, as_json)

    @app.command("watch")
    def watch_command(
        task: Annotated[
            str,
            typer.Argument(
                help="SUITE:TASK, or a task of a built-in suite.", autocompletion=completion.tasks
            ),
        ],
        agent: Annotated[
            str,
            typer.Option(
                help="A name or mypackage.module:MyAgent.", autocompletion=completion.agents
            ),
        ],
        seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
        speed: Annotated[
            float, typer.Option(help="Steps a second; inf for no pause.", callback=positive)
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

        cell = watched_cell(task, agent, seed, _data(data or []))
        try:
            watch(cell, speed, steps)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    @app.command("verify")
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
            float, typer.Option(help="Seconds a cell may take.", callback=positive)
        ] = TIMEOUT,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Compute a sample of stored cells again and compare bit for bit; 1 if one differs.

        Of an export, to the digits that it keeps.
        """
        from benchmarks.commands.verify import show_verification
        from benchmarks.run.engines import LocalEngine

        engine = LocalEngine(workers or _cores(), timeout)
        verified = show_verification(
            results or _last_results(), sample, seed, engine, _data(data or []), as_json, models
        )
        raise typer.Exit(OK if verified else FAILED)

    from benchmarks.commands.data import build_data_app

    app.add_typer(build_data_app(), name="data")

    logs = typer.Typer(help="Your own logs: what they hold, what an agent would have earned.")
    app.add_typer(logs, name="logs", no_args_is_help=True)
    log_file = Annotated[Path, typer.Argument(help="CSV, TSV, JSON(L), Parquet: a row a request.")]
    renamed = Annotated[
        list[str] | None, typer.Option("--column", help="Another name of a column: query=prompt.")
    ]

    clipped = Annotated[bool, typer.Option(help="Count scores a little outside [0, 1] as 0 or 1.")]

    @logs.command("show")
    def logs_show(
        file: log_file,
        column: renamed = None,
        clip_scores: clipped = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show a log's LLMs, their keep rates and costs, and how well they can be predicted."""
        from benchmarks.commands.logs import show_log

        show_log(file, column or [], as_json, clip_scores)

    @logs.command("evaluate")
    def logs_evaluate(
        file: log_file,
        agent: Annotated[
            list[str], typer.Option(help="Agent: a name or mypackage.module:MyAgent.")
        ],
        column: renamed = None,
        clip_scores: clipped = False,
        train_share: Annotated[
            float, typer.Option(help="Part that agents learn from.", callback=part)
        ] = 0.5,
        cost_weight: Annotated[
            float, typer.Option(help="Reward given up per USD.", callback=finite)
        ] = 0.0,
        contexts: Annotated[str | None, typer.Option(help="tfidf-svd, wordllama, ...")] = None,
        seed: Annotated[int, typer.Option(min=0, help="Seed of the agents.")] = 0,
        draws: Annotated[int, typer.Option(min=1, help="Decisions a request.")] = 10,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Estimate what agents would have earned: IPS, self-normalised and doubly robust."""
        from benchmarks.commands.logs import show_evaluation

        show_evaluation(
            file,
            agent,
            columns=column or [],
            clip_scores=clip_scores,
            train_share=train_share,
            cost_weight=cost_weight,
            contexts=contexts,
            seed=seed,
            draws=draws,
            as_json=as_json,
        )

    @app.command("agents")
    def agents_command(
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List the agents by name, with their sources."""
        list_agents(as_json)

    return app


def _train(
    plan: Plan, store: Store, models: Path, workers: int, timeout: float
) -> dict[str, str] | None:
    """Train what a plan needs: training -> why it failed, or None if it was interrupted."""
    from benchmarks.run.training import train_plan

    console = make_console(stderr=True)
    try:
        with store.lock():
            return train_plan(plan, models, workers, console, timeout)
    except KeyboardInterrupt:
        say("interrupted: checkpoints are kept, the same command goes on from them", stderr=True)
        return None


def run(
    plan: Plan,
    store: Store,
    engine: "Engine",
    as_json: bool = False,
    untrained: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run a plan with a progress bar; return the exit code.

    Trainings that failed (``untrained``: name -> reason) count as failures.
    """
    from baselines.models import OWN_FILES
    from benchmarks.run.engines import execute
    from benchmarks.run.runner import provenance

    console = make_console(stderr=True)
    for name, reason in plan.skipped.items():
        if name not in untrained:
            say(f"skipped {name}: {reason}", console)
    brought = {  # a suite's own trainings have a key
        c.model for c in plan.cells if c.model and "key" not in c.spec["agent"]["training"]
    }
    for model in sorted(brought):
        say(f"{model}: {OWN_FILES}", console)
    with _progress(console) as progress:
        bar = progress.add_task(plan.suite, total=None, failed=0)

        def note(message: str) -> None:
            say(message, progress.console)

        def step(outcome: "Outcome") -> None:
            progress.advance(bar)
            if outcome.failed:
                progress.update(bar, failed=progress.tasks[0].fields["failed"] + 1)
                note(f"failed: {outcome.cell}: {outcome.payload['error']}")

        try:
            tally = execute(
                plan,
                store,
                engine,
                provenance(_command()),
                on_outcome=step,
                on_note=note,
                on_start=lambda missing: progress.update(bar, total=missing),
            )
        except KeyboardInterrupt:
            note("interrupted: finished cells are kept, the same command computes the rest")
            return INTERRUPTED
    for name, reason in untrained.items():
        say(f"failed: training {name}: {reason}", console)
    trainings = f"; trainings that failed: {len(untrained)}" if untrained else ""
    say(
        f"{tally.computed} cells computed, {tally.reused} taken from {store}, "
        f"{tally.failed} failed{trainings}",
        console,
    )
    failed, violations, warned = check_run(plan, store)
    for name, texts in warned.items():
        seeds = "" if len(texts) == 1 else f" (and on {len(texts) - 1} more seeds)"
        say(f"warning: task {name}: {texts[0]}{seeds}", console)
    failures = [{"training": name, "error": reason} for name, reason in untrained.items()]
    failures += [{"cell": name, "error": reason} for name, reason in failed.items()]
    code = _exit_code(failures, violations)
    if as_json:
        print_json(
            {
                "suite": plan.suite,
                "results": str(store),
                "computed": tally.computed,
                "reused": tally.reused,
                "failed": tally.failed + len(untrained),
                "failures": failures,
                "skipped": {k: v for k, v in plan.skipped.items() if k not in untrained},
                "violations": violations,
                "warnings": warned,
                "exit_code": code,
            }
        )
    return code


_BATCH = 10_000  # cells held at once, beyond those of one task


def check_run(plan: Plan, store: Store) -> tuple[dict[str, str], list[str], dict[str, list[str]]]:
    """Look through the results of a plan for what its exit code depends on.

    Results are read task by task and only their figures kept, so that a million cells fit into
    memory; nothing else of a board is made.

    Returns
    -------
    failures : dict
        Cell -> error.
    violations : list of str
        See `benchmarks.score.fairness.violations`.
    warned : dict
        Task -> the warnings of its instances, one an affected seed.
    """
    import polars as pl

    from benchmarks.problems import PROBLEMS, problem_of
    from benchmarks.score.fairness import violations
    from benchmarks.score.scoring import tidy

    failures: dict[str, str] = {}
    warned: dict[str, list[str]] = {}
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in PROBLEMS}
    batch: dict[str, list[dict[str, Any]]] = {name: [] for name in PROBLEMS}

    def flush() -> None:
        for name, problem in PROBLEMS.items():
            if batch[name]:
                tables[name].append(tidy(batch[name], problem.kind))
                batch[name].clear()

    cells = sorted(plan.cells, key=lambda cell: str(cell.spec["task"]["name"]))
    found = store.load_many(cell.key for cell in cells)
    pairs = zip(cells, found, strict=True)
    for _, own in groupby(pairs, key=lambda pair: str(pair[0].spec["task"]["name"])):
        for cell, (key, record) in own:
            if isinstance(record, CorruptResultError):
                failures[str(cell)] = str(record)
            elif record is not None:
                if cell.spec["agent"]["label"] == REFERENCES[0] and "warnings" in record:
                    name = str(cell.spec["task"]["name"])
                    warned.setdefault(name, []).append("; ".join(record["warnings"]))
                figures = {part: record[part] for part in ("metrics", "timing")}
                batch[problem_of(cell.spec["task"]["env"]).name].append(
                    {"spec": cell.spec, **figures}
                )
            elif (failure := store.load_failure(key)) is not None:
                failures[str(cell)] = failure["error"]
        if sum(map(len, batch.values())) >= _BATCH:  # a task's references stay beside its agents
            flush()
    flush()
    beaten = [
        text
        for name, problem in PROBLEMS.items()
        if tables[name]
        for text in violations(pl.concat(tables[name]), problem.kind)
    ]
    return failures, beaten, warned


def _engine(
    name: str,
    address: str | None,
    workers: int | None,
    timeout: float,
    memory: float | None,
) -> "Engine":
    from benchmarks.run.engines import LocalEngine

    if name == "local":
        if address is not None:
            raise ValueError(f"--address {address} belongs to --engine ray")
        return LocalEngine(workers or _cores(), timeout, memory)
    if name != "ray":
        raise ValueError(f"--engine {name!r} is not one of local, ray")
    from benchmarks.run.ray_engine import RayEngine

    return RayEngine(address, workers, timeout, memory)


def _print_board(results: Path | str) -> int:
    """Print the board of some results as JSON; return the exit code."""
    from benchmarks.report.as_json import board_json
    from benchmarks.score.export import open_results
    from benchmarks.score.scoring import load_board

    board = load_board(open_results(results))
    print_json(board_json(board))
    return _verdict(board)


def _progress(console: "Console") -> "Progress":
    """Progress bar: cells done and failed, time spent and left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )


def list_suites(as_json: bool = False) -> None:
    """Print the built-in suites and their tasks."""
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


def list_agents(as_json: bool = False) -> None:
    """Print the registered agents and where they come from."""
    from rich.table import Table

    from baselines.agent import registered_agents
    from benchmarks.problems import PROBLEMS

    policies = (f"{problem.oracle} ({problem.name})" for problem in PROBLEMS.values())
    truth = f"knows the truth: {', '.join(policies)}"
    if as_json:
        agents: list[dict[str, Any]] = [{"name": "oracle", "settings": {}, "source": truth}]
        agents += [
            {"name": spec.name, "settings": dict(spec.settings), "source": spec.source}
            for spec in registered_agents()
        ]
        print_json({"agents": agents})
        return
    table = Table("agent", "settings", "source")
    table.add_row("oracle", "", truth)
    for spec in registered_agents():
        settings = ", ".join(f"{key}={value}" for key, value in spec.settings.items())
        add_row(table, spec.name, settings, spec.source)
    show_table(table)


# --- small parts ----------------------------------------------------------------------------------


def _within(allowed: str) -> Callable[[float | None], float | None]:
    """Return the check of a numeric option against an interval; typer's ``min`` lets nan pass."""
    import typer

    low, high = (float(end) for end in allowed[1:-1].split(","))

    def check(value: float | None) -> float | None:
        if value is not None:
            above = value > low or (value == low and allowed[0] == "[")
            below = value < high or (value == high and allowed[-1] == "]")
            if not (above and below):
                raise typer.BadParameter(f"{value} is not in {allowed}")
        return value

    return check


def _plan(
    suite: Suite,
    agents: list[str],
    tasks: list[str],
    seeds: int | None,
    data: list[str],
    models: Path,
) -> Plan:
    paths = _data(data)
    return make_plan(suite, seeds=seeds, tasks=tasks, agents=agents, data=paths, models=models)


def _data(items: list[str]) -> dict[str, str]:
    """Read ``NAME=PATH`` pairs."""
    paths = {}
    for item in items:
        name, mark, path = item.partition("=")
        if not (name and mark and path):
            raise SuiteError(f"--data {item!r} must read NAME=PATH")
        paths[name] = path
    return paths


def _verdict(board: "Board") -> int:
    """Exit code of a board; says on stderr what is wrong."""
    return _exit_code(board.failures, board.violations)


def _exit_code(failures: Sequence[object], violations: Sequence[str]) -> int:
    for text in violations:
        say(f"ORACLE BEATEN: {text}", stderr=True)
    return FAILED if failures or violations else OK


def _last_results() -> Path:
    """Folder of the latest run under ``results/``."""
    runs = sorted(RESULTS.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise FileNotFoundError(f"no results under {RESULTS}/: run `llmqueue-bench run quick`")
    return runs[-1].parent


def _command() -> str:
    """Return the command line that gives the same results, less where it ran and wrote."""
    words = ["llmqueue-bench"]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        option, equals, _ = word.partition("=")
        if option not in WHERE:
            words.append(word)
        elif not equals:
            next(arguments, None)
    return shlex.join(words)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
