"""``llmqueue-bench``: run suites, report them, list what there is.

Typer and rich come with the ``bench`` extra; they are imported when the command starts.
"""

import errno
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from baselines.interface import AGENT_FOLDERS
from benchmarks.commands import EXIT_CODES, FAILED, USAGE
from benchmarks.run.store import CorruptResultError, StoreWriteError
from benchmarks.terminal import say, tolerate_encodings
from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    import typer

_EXTRA = ("typer", "rich", "polars", "matplotlib", "plotly", "jinja2", "threadpoolctl")


def main() -> None:
    """Run the command; what a user did wrong is one line on stderr."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        say(f'llmqueue-bench needs {names}: pip install "llmqueue_gym[bench]"', stderr=True)
        raise SystemExit(USAGE)
    tolerate_encodings()
    _use_one_thread()
    if os.getcwd() not in sys.path:
        AGENT_FOLDERS.append(os.getcwd())  # a console script's path lacks the user's own folder
    try:
        build_app()(prog_name="llmqueue-bench")
    except StoreWriteError as error:
        say(
            f"llmqueue-bench: {error.strerror}; finished cells are kept, "
            "the same command computes the rest",
            stderr=True,
        )
        raise SystemExit(FAILED) from None
    except (UsageError, OSError, CorruptResultError) as error:  # any other is a fault of ours
        say(f"llmqueue-bench: {_told(error)}", stderr=True)
        raise SystemExit(USAGE if _is_of_the_user(error) else FAILED) from None


def _use_one_thread() -> None:
    """Keep algebra to one thread, unless OMP_NUM_THREADS says otherwise.

    What a command computes by itself is small: threads wait for each other longer than they work,
    and by how many share a product its last bits differ.
    """
    from threadpoolctl import threadpool_limits

    if os.environ.setdefault("OMP_NUM_THREADS", "1") == "1":  # of what is loaded from now on
        threadpool_limits(1)


_MEANT = {
    errno.EEXIST: "is a file, where a folder is meant; name another one",
    errno.ENOTDIR: "lies in a file, where a folder is meant; name another one",
    errno.EISDIR: "is a folder, where a file is meant; name a file",
    errno.ENOENT: "there is no such file or folder",
    errno.EACCES: "may not be read or written by you",
}


def _told(error: Exception) -> str:
    """Return an error in words: which path, and what is meant to be there."""
    if isinstance(error, OSError) and error.errno in _MEANT and error.filename is not None:
        path = error.filename if error.filename2 is None else error.filename2
        return f"{str(path)!r}: {_MEANT[error.errno]}"
    return str(error)


def _is_of_the_user(error: Exception) -> bool:
    """Whether a name or an option is wrong, rather than a disk or what lies on it."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
    of_the_disk = isinstance(error, OSError) and error.errno in full
    return not (of_the_disk or isinstance(error, CorruptResultError))


def build_app() -> "typer.Typer":
    """Return the command with its subcommands."""
    import typer

    from benchmarks.commands import policy, run, show, submission

    app = typer.Typer(
        help="Run benchmark suites of llmqueue_gym and report them.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.command("run")(run.run_command)
    app.command("tune")(run.tune_command)
    app.command("train")(run.train_command)
    for name in (
        "report",
        "board",
        "export",
        "list",
        "compare",
        "arrivals",
        "watch",
        "verify",
        "agents",
        "choose",
    ):
        app.command(name)(getattr(show, f"{name}_command"))
    app.command("export-policy")(policy.export_policy_command)
    app.command("submit")(submission.submit_command)
    app.add_typer(_data_app(), name="data")
    logs = typer.Typer(help="Your own logs: what they hold, what an agent would have earned.")
    logs.command("show")(show.logs_show)
    logs.command("evaluate")(show.logs_evaluate)
    app.add_typer(logs, name="logs", no_args_is_help=True)
    for name, words, own in (
        (
            "submission",
            "What was handed in.",
            {"check": "check", "mark": "mark", "freeze": "freeze"},
        ),
        ("key", "Keys that sign exports and submissions.", {"new": "key_new"}),
        (
            "release",
            "Secrets of held-out runs.",
            {"draw": "release_draw", "publish": "release_publish"},
        ),
    ):
        group = typer.Typer(help=words)
        group.callback()(lambda: None)  # a single subcommand has its name, too
        for word, function in own.items():
            group.command(word)(getattr(submission, f"{function}_command"))
        app.add_typer(group, name=name, no_args_is_help=True)
    return app


def _data_app() -> "typer.Typer":
    """Return ``llmqueue-bench data``, whose subcommands come when they are asked for.

    They bring the readers of all data sets and numba, for which no other command should wait.
    """
    import typer
    from typer.core import TyperGroup

    class DataGroup(TyperGroup):
        """The subcommands of `benchmarks.commands.data`."""

        def list_commands(self, ctx: Any) -> list[str]:
            """Return their names, in the order of the help."""
            self._load()
            return super().list_commands(ctx)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """Return one, or None if there is none of this name."""
            self._load()
            return super().get_command(ctx, cmd_name)

        def _load(self) -> None:
            if not self.commands:
                from benchmarks.commands.data import build_data_app

                group: Any = typer.main.get_command(build_data_app())
                self.commands.update(group.commands)

    words = "Import published data sets once, and see what is there."
    return typer.Typer(cls=DataGroup, help=words, no_args_is_help=True)


if __name__ == "__main__":
    main()
