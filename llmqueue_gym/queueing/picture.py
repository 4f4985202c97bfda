"""Text and pictures of LLMQueue-v0: what a provider sees, and nothing of the hidden truth.

The text needs no dependency, the picture pygame-ce.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.canvas import (
    CHIP_HEIGHT,
    INK,
    KEPT,
    MARGIN,
    MEDIUM,
    MUTED,
    RETRY,
    TRACE_SLOTS,
    WIDTH,
    Canvas,
    trace_line,
    window_lines,
)
from llmqueue_gym.queueing.lanes import QueueDynamics
from llmqueue_gym.workloads.pool import printable

_QUEUE_LINE, _LAST_LINE = 74, 228
_TILES_LEFT, _TILES_TOP, _TILES_WIDTH, _TILES_HEIGHT = 72, 96, 640, 112
_LARGEST_PITCH, _SMALLEST_PITCH, _MAX_ROWS, _ROW_GAP = 38, 10, 4, 6
_CHIPS_TOP, _CHIP_GAP, _MAX_CHIPS = 246, 10, 4
_TRACE = (72, 326, 696, 414)  # left, top, right, bottom


@dataclass(frozen=True)
class _LastSlot:
    """What was done in the last slot and what the user did."""

    slot: int
    llms: tuple[str, ...]
    served_retrials: int
    served: bool
    kept: str | None
    arrived: bool

    @property
    def retried(self) -> bool:
        return self.served and self.kept is None

    def words(self, with_names: bool) -> str:
        if not self.served:
            words = f"slot {self.slot} was empty, nobody was served"
        else:
            count = self.served_retrials
            words = f"served slot {self.slot} ({count} earlier retrial{'s' * (count != 1)})"
            words += f" with {', '.join(self.llms)}" if with_names else ""
            kept = self.kept if with_names else "an answer"
            words += ": the user retried" if self.retried else f": the user kept {kept}"
        return words + ("; a query arrived" if self.arrived else "")


class QueueRenderer:
    """Draws lane 0 of the queue from what the provider sees.

    Recording a slot costs O(W d); a picture takes about 10 ms, whatever the backlog and the time.

    Parameters
    ----------
    dynamics : QueueDynamics
        The queue; lane 0 is drawn.
    llms : sequence of str, length N
        Names of the LLMs.
    """

    def __init__(self, dynamics: QueueDynamics, llms: Sequence[str]) -> None:
        self._dynamics = dynamics
        self._llms = tuple(map(printable, llms))
        self._lengths: deque[int] = deque(maxlen=TRACE_SLOTS + 1)
        self.start()

    def start(self) -> None:
        """Forget the past: an episode begins."""
        self._lengths.clear()
        self._lengths.append(int(self._dynamics.queue_length[0]))
        self._arrivals = self._departures = self._retried = 0
        self._last: _LastSlot | None = None
        self._retrials = self._visible_retrials()

    def record(self, slot: int, llms: Sequence[int], info: Mapping[str, Any]) -> None:
        """Take note of a slot that has just run.

        Parameters
        ----------
        slot : int
            Window slot chosen.
        llms : sequence of int, length K
            LLMs chosen; a repeat counts once.
        info : mapping
            The step's ``info``.
        """
        served, kept_llm = bool(info["served"]), int(info["kept_llm"])
        self._last = _LastSlot(
            slot=slot,
            llms=tuple(self._llms[llm] for llm in dict.fromkeys(llms)),
            served_retrials=self._retrials[slot] if served else 0,
            served=served,
            kept=self._llms[kept_llm] if kept_llm >= 0 else None,
            arrived=bool(info["arrived"]),
        )
        self._arrivals += bool(info["arrived"])
        self._departures += bool(info["departed"])
        self._retried += bool(info["retried"])
        self._lengths.append(int(info["queue_length"]))
        self._retrials = self._visible_retrials()

    def _visible_retrials(self) -> list[int]:
        """Retrials of the visible queries, head first."""
        visible = min(int(self._dynamics.queue_length[0]), self._dynamics.window)
        return [int(count) for count in self._dynamics.observe()["retrials"][0, :visible]]

    # ------------------------------------------------------------------- text

    def text(self) -> str:
        """Describe the queue in a few lines.

        Returns
        -------
        str
            Totals; the window as digits, head first (retrials of each query, ``+`` above 9, ``.``
            for an empty slot); the last slot in words; a sparkline of the queue length.
        """
        length, last = self._lengths[-1], self._last
        backlog = length - len(self._retrials)
        beyond = f"{backlog} in the backlog" if backlog else ""
        return "\n".join(
            [
                f"slot {self._dynamics.slot[0]}  queue length {length}  "
                f"arrivals {self._arrivals}  departures {self._departures}  "
                f"retrials {self._retried}",
                window_lines(self._retrials, self._dynamics.window, beyond),
                f"last: {last.words(with_names=True) if last else 'no slot has run yet'}",
                trace_line(self._lengths),
                "",
            ]
        )

    # ---------------------------------------------------------------- picture

    def picture(self) -> NDArray[np.uint8]:
        """Draw the queue, the last assortment and the queue-length trace.

        Returns
        -------
        ndarray of uint8, shape (450, 800, 3)

        Raises
        ------
        gymnasium.error.DependencyNotInstalled
            If pygame is not installed.
        """
        canvas = Canvas()
        totals = (
            f"arrivals {self._arrivals:,}    departures {self._departures:,}    "
            f"retrials {self._retried:,}"
        )
        canvas.title("LLMQueue-v0", f"slot {self._dynamics.slot[0]:,}", totals)
        self._draw_queue(canvas)
        self._draw_last_slot(canvas)
        self._draw_trace(canvas)
        return canvas.pixels()

    def _draw_queue(self, canvas: Canvas) -> None:
        length, last = self._lengths[-1], self._last
        canvas.text(f"{length:,} waiting", MARGIN, _QUEUE_LINE, size=MEDIUM)
        self._draw_legend(canvas)
        grid = _Grid(self._dynamics.window)
        middle = grid.size // 2
        canvas.text("head", _TILES_LEFT - 8, _TILES_TOP + middle, MUTED, align="right")
        shown = self._retrials[: grid.count]
        for slot in range(grid.count):
            canvas.tile(grid.box(slot), shown[slot] if slot < len(shown) else None)
        if last is not None and last.served and last.slot < grid.count:
            x, y, size, _ = grid.box(last.slot)
            canvas.triangle((x + size // 2, y + size), INK)
        if last is not None and last.retried:
            tail = length - 1 - last.arrived
            if tail < grid.count:
                canvas.outline(grid.box(tail), RETRY, 3)
        if length > len(shown):
            x, y, size, _ = grid.box(grid.count - 1)
            canvas.text(f"+{length - len(shown):,}", x + size + 8, y + middle)

    @staticmethod
    def _draw_legend(canvas: Canvas) -> None:
        y = _QUEUE_LINE
        x = canvas.retrials_legend(y) - 24
        x = canvas.text("just retried", x, y, MUTED, align="right") - 18
        canvas.outline((x, y - 7, 14, 14), RETRY, 3)
        x = canvas.text("served from here", x - 24, y, MUTED, align="right") - 10
        canvas.triangle((x, y - 3), INK)

    def _draw_last_slot(self, canvas: Canvas) -> None:
        last = self._last
        x = canvas.text("Last slot", MARGIN, _LAST_LINE, size=MEDIUM) + 14
        if last is None:
            canvas.text("none yet", x, _LAST_LINE + 1, MUTED)
            return
        canvas.text(last.words(with_names=False), x, _LAST_LINE + 1, MUTED)
        if not last.served:
            return
        canvas.tile((MARGIN, _CHIPS_TOP, CHIP_HEIGHT, CHIP_HEIGHT), last.served_retrials)
        x = MARGIN + CHIP_HEIGHT + 10
        canvas.arrow((x, _CHIPS_TOP + CHIP_HEIGHT // 2), 16)
        x += 26
        names = list(last.llms[:_MAX_CHIPS])
        if last.kept and last.kept not in names:
            names[-1] = last.kept
        hidden = len(last.llms) - len(names)
        ends = [f"+{hidden}", "retry"] if hidden else ["retry"]
        # Whatever the names, all chips fit on the line.
        room = WIDTH - MARGIN - x - sum(canvas.chip_width(end) + _CHIP_GAP for end in ends)
        widest = room // len(names) - _CHIP_GAP
        for name in names:
            fill = KEPT if name == last.kept else None
            x = canvas.chip(name, (x, _CHIPS_TOP), fill, widest) + _CHIP_GAP
        for end in ends:
            fill = RETRY if end == "retry" and last.retried else None
            x = canvas.chip(end, (x, _CHIPS_TOP), fill) + _CHIP_GAP

    def _draw_trace(self, canvas: Canvas) -> None:
        canvas.text("Queue length", MARGIN, _TRACE[1] - 24, size=MEDIUM)
        canvas.text("slot", WIDTH - MARGIN, _TRACE[3] + 15, MUTED, align="right")
        canvas.trace(self._lengths, int(self._dynamics.slot[0]), _TRACE)


class _Grid:
    """Where the tiles of a window of W slots go: the rows that make them largest, head first."""

    def __init__(self, window: int) -> None:
        most = _MAX_ROWS * (_TILES_WIDTH // _SMALLEST_PITCH)
        self.count = min(window, most)
        rows = max(range(1, _MAX_ROWS + 1), key=self._pitch)  # the fewest of equals
        self.columns = -(-self.count // rows)
        self.pitch = self._pitch(rows)
        self.size = self.pitch - (4 if self.pitch > 24 else 2)

    def box(self, slot: int) -> tuple[int, int, int, int]:
        row, column = divmod(slot, self.columns)
        x, y = _TILES_LEFT + column * self.pitch, _TILES_TOP + row * (self.pitch + _ROW_GAP)
        return x, y, self.size, self.size

    def _pitch(self, rows: int) -> int:
        columns = -(-self.count // rows)
        height = _TILES_HEIGHT // rows - _ROW_GAP
        return min(_LARGEST_PITCH, _TILES_WIDTH // columns, height)
