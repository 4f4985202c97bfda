"""The door's commands: submit; submission check, mark, freeze; key new; release draw, publish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from baselines.interface import AGENT_FOLDERS
from benchmarks.commands import FAILED, OK
from benchmarks.commands.options import POSITIVE, TIMEOUT, chosen_results, cores, read_data
from benchmarks.terminal import say
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.submissions.check import Settings

SUBMISSIONS = Path("submissions")

Source = Annotated[
    Path | None, typer.Option(help="Folder that holds the agent's module; default: this one.")
]
Data = Annotated[list[str] | None, typer.Option(help="Data of a task: NAME=PATH.")]
File = Annotated[Path, typer.Argument(help="submissions/NAME.toml.")]
RunId = Annotated[int, typer.Option(min=0, help="Number that draws the cells to be played again.")]
Cells = Annotated[int, typer.Option(min=1, help="Cells to play again.")]
SuiteFile = Annotated[
    str | None, typer.Option(help="Suite's TOML file, if it is none of this project.")
]
Against = Annotated[Path | None, typer.Option(help="Published results to stand beside.")]
Namespaces = Annotated[
    bool, typer.Option("--namespaces", help="Refuse where the kernel keeps no agent in.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Cells run at once; default: all cores.")]
Timeout = Annotated[float, typer.Option(help="Seconds a cell may take.", callback=POSITIVE)]


def submit_command(
    results: Annotated[str, typer.Argument(help="Results folder or URL.")],
    agent: Annotated[str, typer.Option(help="mypackage.module:MyAgent, or its label.")],
    name: Annotated[str, typer.Option(help="What the row is to be called.")],
    code: Annotated[str, typer.Option(help="https://...@COMMIT of the agent's code.")],
    folder: Annotated[
        str, typer.Option(help="Folder of that repository that holds the module.")
    ] = ".",
    licence: Annotated[str, typer.Option(help="Licence of the code: MIT, ...")] = "",
    contact: Annotated[str, typer.Option(help="@handle of who answers for it.")] = "",
    trained_on: Annotated[str, typer.Option(help="What it was trained on before.")] = "",
    tuning_runs: Annotated[
        int, typer.Option(min=0, help="Runs by which its settings were chosen.")
    ] = 0,
    seeds_tuned_on: Annotated[str, typer.Option(help="Seeds of those runs: 0-4,7.")] = "",
    division: Annotated[str, typer.Option(help="open or closed.")] = "open",
    suite: Annotated[
        str | None, typer.Option(help="Suite or TOML file; default: the one that was run.")
    ] = None,
    source: Source = None,
    data: Data = None,
    key: Annotated[Path | None, typer.Option("--sign", help="Private key that signs it.")] = None,
    out: Annotated[Path, typer.Option(help="Where the two files go.")] = SUBMISSIONS,
) -> None:
    """Write submissions/NAME.toml and NAME.cells.json.gz, which are handed in."""
    from benchmarks.submissions.entry import cells_path
    from benchmarks.submissions.submit import read_seeds, submit

    look_in(source)
    path = submit(
        chosen_results(results),
        agent,
        name=name,
        code=code,
        folder=out,
        suite=suite,
        data=read_data(data or []),
        key=key,
        code_folder=folder,
        licence=licence,
        contact=contact,
        trained_on=trained_on,
        tuning_runs=tuning_runs,
        seeds_tuned_on=read_seeds(seeds_tuned_on),
        division=division,
    )
    say(f"wrote {path} and {cells_path(path)}; `llmqueue-bench submission check` looks at them")


def check_command(
    file: File,
    run_id: RunId = 0,
    cells: Cells = 20,
    suite: SuiteFile = None,
    source: Source = None,
    data: Data = None,
    against: Against = None,
    comment: Annotated[
        Path | None, typer.Option(help="Markdown file to add the verdict to.")
    ] = None,
    namespaces: Namespaces = False,
    workers: Workers = None,
    timeout: Timeout = TIMEOUT,
) -> None:
    """Make the six checks of a submission; exit code 1 if it is refused."""
    from benchmarks.submissions.check import check
    from benchmarks.submissions.comment import markdown

    look_in(source)
    how = _settings(file, run_id, cells, suite, data, against, namespaces, workers, timeout)
    found = check(file, how, say)
    if comment is not None:
        with comment.open("a", encoding="utf-8") as stream:
            stream.write(markdown(found))
    _end(file, found.accepted)


def mark_command(
    file: File,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Make the six checks; note it if they pass.")
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="RELEASE", help="Play its held-out seeds; note the scores."),
    ] = None,
    secret: Annotated[Path | None, typer.Option(help="File of that release's secret.")] = None,
    run_id: RunId = 0,
    cells: Cells = 20,
    suite: SuiteFile = None,
    source: Source = None,
    data: Data = None,
    against: Against = None,
    namespaces: Namespaces = False,
    workers: Workers = None,
    timeout: Timeout = TIMEOUT,
) -> None:
    """Note in marks.toml, beside the file, what a maintainer has checked of it."""
    from benchmarks.plan.held_out import read_held_out
    from benchmarks.report.words import interval_text
    from benchmarks.submissions.mark import mark_held_out, mark_replayed

    if not replayed and held_out is None:
        raise UsageError("nothing to note: say --replayed, --held-out RELEASE, or both")
    if (held_out is None) != (secret is None):
        raise UsageError("--held-out RELEASE and --secret FILE belong together")
    look_in(source)
    hidden = [] if secret is None else [str(secret)]
    if held_out is not None:  # cells that play at once could tell each other what they learn
        workers = workers or 1
    how = _settings(file, run_id, cells, suite, data, against, namespaces, workers, timeout, hidden)
    if replayed and not mark_replayed(file, how, say).accepted:
        _end(file, accepted=False)
    if held_out is not None and secret is not None:
        scores = mark_held_out(file, held_out, read_held_out(secret), how)
        for problem, score in scores.items():
            say(f"{held_out}, {problem}: {interval_text(score, 3)}")
    say(f"noted in {file.with_name('marks.toml')}")


def _settings(
    file: Path,
    run_id: int,
    cells: int,
    suite: str | None,
    data: list[str] | None,
    against: Path | None,
    namespaces: bool,
    workers: int | None,
    timeout: float,
    hidden: Sequence[str] = (),
) -> Settings:
    """Return how a check is made; agents see nothing that was handed in."""
    from benchmarks.run.engines import LocalEngine
    from benchmarks.submissions.check import Settings

    if against is not None and not against.is_file():
        raise UsageError(
            f"--against {against} is no file: name published results, such as "
            "benchmarks/results/quick.json.gz of a clone of llmqueue_gym"
        )
    engine = LocalEngine(workers or cores(), timeout, hidden=[str(file.parent), *hidden])
    return Settings(engine, run_id, cells, suite, read_data(data or []), against, namespaces)


def _end(file: Path, accepted: bool) -> NoReturn:
    say(f"{file.name}: {'accepted' if accepted else 'refused'}")
    raise typer.Exit(OK if accepted else FAILED)


def freeze_command(
    suite: Annotated[str, typer.Argument(help="Built-in suite that has changed on purpose.")],
) -> None:
    """Print the lines for benchmarks/submissions/frozen.toml that freeze a suite as it is now."""
    from benchmarks.submissions.frozen import next_frozen

    say(next_frozen(suite).rstrip())


def key_new_command(
    file: Annotated[Path, typer.Argument(help="File for the private key; keep it to yourself.")],
) -> None:
    """Write a new private key, and print the public one for submissions/keys.toml."""
    from benchmarks.score.signing import new_key

    say(f'"@handle" = "{new_key(file)}"')


def release_draw_command(
    release: Annotated[str, typer.Argument(help="Version that is being released.")],
    secret: Annotated[Path, typer.Argument(help="File for the secret; keep it to yourself.")],
    folder: Annotated[Path, typer.Option(help="Where releases.toml is.")] = SUBMISSIONS,
) -> None:
    """Draw a release's secret for `run --held-out`, and note its digest in releases.toml."""
    from benchmarks.submissions.releases import draw_secret

    say(f"{release}: the SHA-256 of {secret} is {draw_secret(release, secret, folder)}")


def release_publish_command(
    release: Annotated[str, typer.Argument(help="Version that is over.")],
    secret: Annotated[Path, typer.Argument(help="File of its secret.")],
    folder: Annotated[Path, typer.Option(help="Where releases.toml is.")] = SUBMISSIONS,
) -> None:
    """Publish a release's secret in releases.toml, so that anybody plays its board again."""
    from benchmarks.submissions.releases import publish_secret

    publish_secret(release, secret, folder)
    say(f"{release}: the secret stands in {folder}, and must not be used any more")


def look_in(source: Path | None) -> None:
    """Look for an agent's module in a folder, too."""
    if source is None:
        return
    if not source.is_dir():
        raise UsageError(f"--source {source} is no folder")
    AGENT_FOLDERS.append(str(source.resolve()))
