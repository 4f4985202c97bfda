"""``llmqueue-bench run`` and ``train``: what a plan lacks is trained, played and stored."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic as clock
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.commands import INTERRUPTED, OK, completion
from benchmarks.commands.options import (
    FINITE,
    POSITIVE,
    RESULTS,
    TIMEOUT,
    TRAIN_TIMEOUT,
    WALL,
    cores,
    exit_code,
    read_data,
)
from benchmarks.plan.cells import Plan, make_plan
from benchmarks.plan.held_out import read_held_out
from benchmarks.plan.suite import REFERENCES, load_suite
from benchmarks.plan.tuning import has_knob
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.terminal import make_console, print_json, say
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

    from benchmarks.run.engines import Engine, Outcome

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

SECONDS_A_LINE = 60.0
"""A log, which shows no bar, gets a line at most so often."""


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
        typer.Option(help="Seconds a cell may take; inf for no limit.", callback=POSITIVE),
    ] = TIMEOUT,
    train_timeout: Annotated[
        float,
        typer.Option(help="Seconds a training may take; inf for no limit.", callback=POSITIVE),
    ] = TRAIN_TIMEOUT,
    memory: Annotated[
        float | None,
        typer.Option(
            help="Megabytes of data a cell may hold beside the program itself; Linux.",
            callback=FINITE,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="Where cells run: local or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: HOST:PORT or auto; default: a new one.")
    ] = None,
    wall: Annotated[bool | None, WALL] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="File with a secret that seeds are drawn from.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Run the cells of a suite that have no result yet; train first what has to be trained."""
    chosen = load_suite(suite)
    store = Store(results or RESULTS / chosen.name)
    models = (store.root or RESULTS / chosen.name) / "models"
    secret = None if held_out is None else read_held_out(held_out)
    hidden = [str(path) for path in (store.root, held_out) if path is not None]
    runner = _engine(engine, address, workers, timeout, memory, hidden)
    trust = None if wall is None else not wall
    plan_now = partial(
        make_plan,
        chosen,
        seeds=seeds,
        tasks=task or [],
        agents=agent or [],
        data=read_data(data or []),
        models=models,
        trust=trust,
        held_out=secret,
    )
    plan = plan_now()
    untrained: dict[str, str] = {}
    if plan.trainings:
        failed = _train(plan, store, models, workers or cores(), train_timeout)
        if failed is None:
            raise typer.Exit(INTERRUPTED)
        plan = plan_now()
        untrained = {str(t): failed.get(str(t), "it did not finish") for t in plan.trainings}
        skipped = {name: f"not trained: {reason}" for name, reason in untrained.items()}
        plan = replace(plan, skipped={**plan.skipped, **skipped})
    raise typer.Exit(run(plan, store, runner, as_json, untrained))


def tune_command(
    suite: Annotated[
        str, typer.Argument(help="Suite with agents that have a knob, or its TOML file.")
    ] = "queueing-tuning",
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds a task.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells run at once; default: all cores.")
    ] = None,
    results: Annotated[
        str | None, typer.Option(help="Results folder or URL; default: results/SUITE.")
    ] = None,
) -> None:
    """Run a tuning suite; print agents at their default beside the best of the same budget."""
    if not has_knob(agent for task in load_suite(suite).tasks for agent in task.agents):
        raise UsageError(
            f"suite={suite!r} has no agent with a knob: "
            'agents = [{ name = "ACQB", tune = { alpha_coef = [0.01, 0.1] } }]'
        )
    try:
        run_command(suite, seeds=seeds, workers=workers, results=results)
    except typer.Exit as ended:
        if ended.exit_code != OK:
            raise
    from benchmarks.report.contrasts import tuned_markdown
    from benchmarks.score.scoring import load_board

    say(tuned_markdown(load_board(Store(results or RESULTS / load_suite(suite).name))))


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
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's logs.")] = None,
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
            data=read_data(data or []),
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            console=make_console(stderr=True),
        )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _train(
    plan: Plan, store: Store, models: Path, workers: int, timeout: float
) -> dict[str, str] | None:
    """Train what a plan needs: training -> why it failed, or None if it was interrupted."""
    from benchmarks.run.training import train_plan

    console = make_console(stderr=True)
    if not console.is_terminal:  # bars are drawn there when all is over
        several = Counter((t.task, t.label, t.spec["steps"]) for t in plan.trainings)
        first = (
            f"{task} / {label} ({f'{count} x ' if count > 1 else ''}{steps:,} steps)"
            for (task, label, steps), count in several.items()
        )
        say(f"training first: {', '.join(first)}", console)
    try:
        with store.lock():
            return train_plan(plan, models, workers, console, timeout)
    except KeyboardInterrupt:
        kept = sum(training.path(models).exists() for training in plan.trainings)
        say(
            f"interrupted: {kept} of {len(plan.trainings)} trainings have a checkpoint; "
            "the same command goes on from there",
            stderr=True,
        )
        return None


def run(
    plan: Plan,
    store: Store,
    engine: Engine,
    as_json: bool = False,
    untrained: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run a plan with a progress bar; return the exit code.

    Trainings that failed (``untrained``: name -> reason) count as failures.
    """
    from baselines.models import OWN_FILES
    from benchmarks.run.engines import LocalEngine, execute
    from benchmarks.run.pool import kernel_folder
    from benchmarks.run.runner import provenance

    console = make_console(stderr=True)
    if isinstance(engine, LocalEngine) and not kernel_folder().exists():
        say("first run of this code: its kernels are compiled, about half a minute", console)
    for name, reason in plan.skipped.items():
        if name not in untrained:
            say(f"skipped {name}: {reason}", console)
    brought = {  # a suite's own trainings have a key
        c.model for c in plan.cells if c.model and "key" not in c.spec["agent"]["training"]
    }
    for model in sorted(brought):
        say(f"{model}: {OWN_FILES}", console)
    with _progress(console) as progress:
        bar, told = progress.add_task(plan.suite, total=None, failed=0), clock()
        causes: Counter[str] = Counter()

        def note(message: str) -> None:
            say(message, progress.console)

        def step(outcome: Outcome) -> None:
            nonlocal told
            progress.advance(bar)
            [now] = progress.tasks
            if outcome.failed:
                progress.update(bar, failed=now.fields["failed"] + 1)
                cause = str(outcome.payload["error"])
                if cause not in causes:
                    note(f"failed: {outcome.cell}: {cause}")
                causes[cause] += 1
            if not console.is_terminal and not now.finished and clock() - told >= SECONDS_A_LINE:
                told = clock()
                note(f"{plan.suite}: {now.completed:.0f}/{now.total or 0:.0f} cells, {_spent(now)}")

        try:
            tally = execute(
                plan,
                store,
                engine,
                provenance(command_line()),
                on_outcome=step,
                on_note=note,
                on_start=lambda missing: progress.update(bar, total=missing),
            )
        except KeyboardInterrupt:
            note("interrupted: finished cells are kept, the same command computes the rest")
            return INTERRUPTED
    for cause, times in causes.items():
        if times > 1:
            more = "one more cell" if times == 2 else f"{times - 1} more cells"
            say(f"failed alike, {more}: {cause}", console)
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
    code = exit_code(failures, violations)
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
    hidden: list[str],
) -> Engine:
    from benchmarks.run.engines import LocalEngine

    if name == "local":
        if address is not None:
            raise UsageError(f"--address {address} belongs to --engine ray")
        return LocalEngine(workers or cores(), timeout, memory, hidden)
    if name != "ray":
        raise UsageError(f"--engine {name!r} is not one of local, ray")
    from benchmarks.run.ray_engine import RayEngine

    return RayEngine(address, workers, timeout, memory, hidden)


def _progress(console: Console) -> Progress:
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


def _spent(bar: Task) -> str:
    """Say in words what the bar shows behind its cells."""
    left = "" if bar.time_remaining is None else f", {bar.time_remaining / 60:.0f} min left"
    return f"{bar.fields['failed']} failed, {(bar.elapsed or 0.0) / 60:.0f} min{left}"


def command_line() -> str:
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
