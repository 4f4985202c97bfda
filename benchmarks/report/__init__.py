"""Reports: the board as a table in the terminal, ``leaderboard.md``, pictures and a page."""

from benchmarks.report.figure import Picture, draw_figure
from benchmarks.report.tables import (
    board_markdown,
    board_summary,
    board_tables,
    insert_between_markers,
)

__all__ = [
    "Picture",
    "board_markdown",
    "board_summary",
    "board_tables",
    "draw_figure",
    "insert_between_markers",
]
