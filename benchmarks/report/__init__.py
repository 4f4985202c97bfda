"""Reports: the board as a table in the terminal, ``leaderboard.md`` and a figure."""

from benchmarks.report.figure import draw_figure
from benchmarks.report.tables import board_markdown, board_tables

__all__ = ["board_markdown", "board_tables", "draw_figure"]
