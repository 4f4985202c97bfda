"""``llmqueue-bench report`` and ``export``: what is written, printed and checked.

Bodies of the subcommands in `benchmarks.cli`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.export import export_run, open_results
from benchmarks.report.figure import Picture, draw_figure, file_name, main_picture, training_name
from benchmarks.report.series import training_panels
from benchmarks.report.tables import (
    board_markdown,
    board_summary,
    board_tables,
    insert_between_markers,
    plain,
)
from benchmarks.scoring import Board, load_board
from benchmarks.store import write_text


def report(results: Path | str, out: Path, readme: Path | None = None) -> Board:
    """Print the board of some results and write the page, the pictures and a README's tables."""
    board = load_board(open_results(results))
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_figure(board, out)
    page = out / "leaderboard.md"
    beside = [picture._replace(path=Path(picture.path.name)) for picture in pictures]
    write_text(page, board_markdown(board, beside))
    if readme is not None:
        _write_readme(readme, board, pictures)
    console = Console()
    for table in board_tables(board):
        console.print(table)
    for name, failure in board.failures:
        line = f"failed: {plain(name)}: {plain(failure['error'])}"
        console.print(line, markup=False, highlight=False)
    if board.missing:
        print(f"{len(board.missing)} cells were not run; the same command computes them")
    for name, reason in board.skipped.items():
        print(f"skipped {plain(name)}: {plain(reason)}")
    print("wrote " + ", ".join(str(path) for path in (page, *(p.path for p in pictures))))
    return board


def check_readme(results: Path | str, readme: Path) -> bool:
    """Whether a README shows these results; says on stderr if it does not."""
    board = load_board(open_results(results))
    text = readme.read_text(encoding="utf-8")
    if _with_tables(text, board) == text:
        print(f"{readme} shows the results of {results}")
        return True
    print(
        f"the leaderboard of {board.suite} in {readme} differs from {results}: "
        f"`llmqueue-bench report {results} --readme {readme}` writes it anew",
        file=sys.stderr,
    )
    return False


def export(results: Path | str, path: Path) -> None:
    """Write the run in a results folder into one file."""
    size = export_run(open_results(results), path)
    print(f"wrote {path} ({size / 1000:,.0f} kB)")


def _with_tables(text: str, board: Board) -> str:
    """Put the short tables between the markers of the board's suite."""
    return insert_between_markers(
        text, f"leaderboard {board.suite}", board_summary(board, _readme_pictures(board))
    )


def _readme_pictures(board: Board) -> list[Picture]:
    """One picture a section, where a README looks for it."""
    pictures = []
    for number, section in enumerate(board.sections):
        kind, protocol = section
        parts = [kind.name, *([protocol] if protocol != "online" else [])]
        name = "-".join([board.suite, *(parts if number else [])])
        path = Path("docs", "images", f"{file_name(name)}.png")
        pictures.append(Picture(path, main_picture(board, section)[1], section))
        if training_panels(board, section):
            stem, caption = training_name(section)
            path = Path("docs", "images", f"{file_name(f'{board.suite}-{stem}')}.png")
            pictures.append(Picture(path, caption, section))
    return pictures


def _write_readme(readme: Path, board: Board, pictures: list[Picture]) -> None:
    """Put the short tables between the markers of a page, with a picture a section."""
    text = _with_tables(readme.read_text(encoding="utf-8"), board)
    for shown in _readme_pictures(board):
        copy = readme.parent / shown.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        drawn = next(
            p for p in pictures if (p.section, p.caption) == (shown.section, shown.caption)
        )
        shutil.copyfile(drawn.path, copy)
    write_text(readme, text)
