"""``llmqueue-bench report`` and ``export``: what is written, printed and checked.

Bodies of the subcommands in `benchmarks.cli`.
"""

from __future__ import annotations

import shutil
import webbrowser
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast, get_args

from benchmarks.report.contrasts import breaks_markdown, routers_markdown, tuned_markdown
from benchmarks.report.data import board_data
from benchmarks.report.figure import Picture, draw_figure, file_name, main_picture, training_name
from benchmarks.report.page import board_page
from benchmarks.report.paper import Format, write_figure
from benchmarks.report.series import training_panels
from benchmarks.report.tables import (
    board_markdown,
    board_summary,
    board_tables,
    insert_between_markers,
)
from benchmarks.run.store import Store, write_text
from benchmarks.score.export import ExportedRun, export_run, open_results
from benchmarks.score.scoring import Board, load_board
from benchmarks.score.signing import KEYS, read_keys, signer
from benchmarks.terminal import make_console, say, show_table
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError


def report(results: Path | str, out: Path, readme: Path | None = None) -> Board:
    """Print the board of some results and write the page, the pictures and a README's tables."""
    store = open_results(results)
    who = signed_by(store)
    board = load_board(store)
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_figure(board, out)
    data = board_data(board)
    page = out / "leaderboard.md"
    beside = [picture._replace(path=Path(picture.path.name)) for picture in pictures]
    write_text(page, board_markdown(board, beside, data))
    html = out / "index.html"
    write_text(html, board_page(board, data))
    if readme is not None:
        _write_readme(readme, board, pictures)
    console = make_console()
    for part in board_tables(board, data):
        if isinstance(part, str):
            say(part, console)
        else:
            show_table(part, ("rank", "agent", "score"), console)
    say(who, console)
    for text in board.warnings:
        say(f"above the oracle, perhaps by chance: {text}", console)
    for name, failure in board.failures:
        say(f"failed: {name}: {failure['error']}", console)
    if board.missing:
        say(f"{len(board.missing)} cells were not run; the same command computes them")
    for name, reason in board.skipped.items():
        say(f"skipped {name}: {reason}")
    say("wrote " + ", ".join(str(path) for path in (html, page, *(p.path for p in pictures))))
    return board


def signed_by(store: Store | ExportedRun) -> str:
    """Say who vouches for results: the key that signed an export, else nobody.

    Raises
    ------
    CorruptResultError
        If they were changed after they were signed.
    """
    signature = store.check_signature() if isinstance(store, ExportedRun) else None
    if signature is None:
        return "self-reported: nobody has signed these results"
    return f"signed by {signer(signature, read_keys(Path('submissions') / KEYS))}"


def figure(
    results: Path | str,
    name: str,
    out: Path,
    *,
    agents: Sequence[str] = (),
    labels: Sequence[str] = (),
    task: str | None = None,
    form: str = "pdf",
) -> None:
    """Write one figure for a paper; see `benchmarks.report.paper.write_figure`."""
    checks.choice("--format", form, get_args(Format))
    board = load_board(open_results(results))
    paths = write_figure(
        board, name, out, agents=agents, labels=labels, task=task, form=cast("Format", form)
    )
    say("wrote " + ", ".join(str(path) for path in paths))


def check_readme(results: Path | str, readme: Path) -> bool:
    """Whether a README shows these results; says on stderr if it does not."""
    board = load_board(open_results(results))
    text = readme.read_text(encoding="utf-8")
    if _with_tables(text, board, _images(readme)) == text:
        say(f"{readme} shows the results of {results}")
        return True
    say(
        f"the leaderboard of {board.suite} in {readme} differs from {results}: "
        f"`llmqueue-bench report {results} --readme {readme}` writes it anew",
        stderr=True,
    )
    return False


def export(results: Path | str, path: Path, key: Path | None = None) -> None:
    """Write the run in a results folder into one file, signed by a private key if there is one."""
    size = export_run(open_results(results), path, key=key)
    say(f"wrote {path} ({size / 1000:,.0f} kB)")


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a line on the terminal for each."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a folder that only this machine can reach; port 0 takes a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))


def serve(folder: Path, port: int = 0) -> None:
    """Serve a report and open it in the browser, until Ctrl-C."""
    with make_server(folder, port) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        say(f"serving {folder} at {url} (Ctrl-C ends it)")
        webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _with_tables(text: str, board: Board, images: Path) -> str:
    """Put what a page wants between its markers of the board's suite, pictures from ``images``.

    ``leaderboard``: the short tables; ``routers``: what production routers leave on the table;
    ``breaks``: what breaks first; ``tuned``: defaults beside the best of a budget.

    Raises
    ------
    ValueError
        If there is nothing to show, or no markers.
    """
    if not board.cells:
        raise UsageError(f"no cell of {board.suite} has a result: a page would show empty tables")
    for name, written in _OTHER_PARTS.items():
        if f"<!-- {name} {board.suite}: begin -->" in text:
            text = insert_between_markers(text, f"{name} {board.suite}", written(board))
            if not _has_leaderboard(text, board):
                return text
    shown = list(_readme_pictures(board, images).values())
    return insert_between_markers(text, f"leaderboard {board.suite}", board_summary(board, shown))


_OTHER_PARTS = {
    "routers": routers_markdown,
    "breaks": breaks_markdown,
    "tuned": tuned_markdown,
}


def _has_leaderboard(text: str, board: Board) -> bool:
    return f"<!-- leaderboard {board.suite}: begin -->" in text


def _images(page: Path) -> Path:
    """Folder of a page's pictures, from the page: a README's is docs/images, others' ../images."""
    return Path("docs", "images") if page.stem == "README" else Path("..", "images")


def _readme_pictures(board: Board, images: Path) -> dict[str, Picture]:
    """Pictures of each section where a page looks for them, by the name they are drawn under."""
    pictures = {}
    for number, section in enumerate(board.sections):
        kind, protocol = section
        parts = [kind.name, *([protocol] if protocol != "online" else [])]
        name = "-".join([board.suite, *(parts if number else [])])
        drawn, caption = main_picture(board, section)
        pictures[drawn] = Picture(images / f"{file_name(name)}.png", caption, section)
        if training_panels(board, section):
            stem, caption = training_name(section)
            path = images / f"{file_name(f'{board.suite}-{stem}')}.png"
            pictures[f"{stem}.png"] = Picture(path, caption, section)
    return pictures


def _write_readme(readme: Path, board: Board, pictures: list[Picture]) -> None:
    """Put the short tables between the markers of a page, with the pictures of each section."""
    images = _images(readme)
    text = _with_tables(readme.read_text(encoding="utf-8"), board, images)
    if not _has_leaderboard(text, board):
        pictures = []
    drawn = {picture.path.name: picture.path for picture in pictures}
    for name, shown in _readme_pictures(board, images).items():
        if name not in drawn:  # a section of which nothing was run has no picture
            continue
        copy = readme.parent / shown.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn[name], copy)
    write_text(readme, text)
