"""Text and pictures of LLMServe-v0: what replicas host and serve, who waits, thinks and is lost.

The text needs no dependency. Of what is hidden only the number of users who think is shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.canvas import (
    FAINT,
    INK,
    MARGIN,
    MEDIUM,
    MUTED,
    NAME_LETTERS,
    RETRIALS,
    RETRY,
    RULE,
    TRACE,
    TRACE_SLOTS,
    WIDTH,
    Canvas,
    digits,
    short_name,
    trace_line,
    window_lines,
)
from llmqueue_gym.serving import dynamics as fields
from llmqueue_gym.serving.dynamics import PHASES
from llmqueue_gym.serving.lanes import ServingDynamics
from llmqueue_gym.workloads.pool import printable

MAX_ROWS = 8
"""Replicas that are shown one by one."""

_PLACES = 40
_ROWS_TOP, _ROWS_HEIGHT, _LARGEST_ROW = 88, 168, 36
_PHASE_LEFT, _PLACES_LEFT, _PLACES_RIGHT = 214, 296, 730
_QUEUE_LINE, _QUEUE_TOP, _TILE, _TILES_RIGHT = 280, 298, 20, 730
_TRACE = _LEFT, _TOP, _, _ = 72, 350, 480, 418
_CLOCK_LEFT, _CLOCK_RIGHT = 540, 776


class ServingRenderer:
    """Draws lane 0.

    Parameters
    ----------
    dynamics : ServingDynamics
    """

    def __init__(self, dynamics: ServingDynamics) -> None:
        self._dynamics = dynamics
        self._llms = tuple(map(printable, dynamics.instances[0].llms))
        self._lengths: deque[int] = deque(maxlen=TRACE_SLOTS + 1)
        self.start()

    def start(self) -> None:
        """Forget the past: an episode begins."""
        self._lengths.clear()
        self._lengths.append(int(self._dynamics.queue_length[0]))
        self._last = "no slot has run yet"

    def record(self, info: Mapping[str, Any]) -> None:
        """Take note of a slot that has just run.

        Parameters
        ----------
        info : mapping
            The step's ``info``.
        """
        self._lengths.append(int(self._dynamics.queue_length[0]))
        words = [
            f"{int(info[key]):,} {label}"
            for key, label in (
                ("dispatched", "dispatched"),
                ("illegal", "illegal"),
                ("kept", "kept"),
                ("not_kept", "not kept"),
                ("abandoned", "lost patience"),
            )
            if info[key]
        ]
        words += ["a query arrived"] if info["arrived"] else []
        self._last = ", ".join(words) or "nothing happened"

    # ------------------------------------------------------- what both show

    def _replica(self, r: int) -> tuple[str, str, list[int], int]:
        """Return the LLM, the phase, the retrials of the queries served and the places."""
        state, instance = self._dynamics.state, self._dynamics.instances[0]
        phase, llm, _, left, active = state.replicas[0, r].tolist()
        name = self._llms[llm] if llm >= 0 else "-"
        served = state.served[0, r, :active]
        retrials = state.queries[0, served, fields.RETRIALS].tolist()
        words = f"{PHASES[phase]} {left}" if left else PHASES[phase]
        return name, words, retrials, int(instance.places[r])

    def _waiting(self) -> list[int]:
        """Return the retrials of the visible queries, head first."""
        state = self._dynamics.state
        window = state.window[0][state.window[0] >= 0]
        found: list[int] = state.queries[0, window, fields.RETRIALS].tolist()
        return found

    def _rows(self) -> int:
        """Return how many replicas are shown one by one."""
        count = self._dynamics.instances[0].num_replicas
        return count if count <= MAX_ROWS else MAX_ROWS - 1

    def _totals(self) -> dict[str, int]:
        totals = self._dynamics.totals[0]
        return {
            "arrivals": int(totals[fields.ARRIVALS]),
            "kept": int(totals[fields.KEPT]),
            "not kept": int(totals[fields.NOT_KEPT]),
            "lost": int(totals[fields.ABANDONED] + totals[fields.GAVE_UP]),
        }

    def _clock(self) -> tuple[float, str]:
        """Return the share of the period that has passed, and in words what is left of it."""
        every, slot = self._dynamics.instances[0].update_every, int(self._dynamics.slot[0])
        if not every:
            return 0.0, "the fleet is fixed"
        left = -slot % every
        return 1.0 - left / every, f"{left:,} slots" if left else "now"

    # ------------------------------------------------------------------- text

    def text(self) -> str:
        """Describe the system in a few lines.

        Returns
        -------
        str
            Totals; a line a replica with its LLM, its phase and its places (retrials of each query
            served, ``+`` above 9, ``.`` for a free place); the window likewise, head first; the
            clock to the next update point; the last slot; a sparkline of the queue length.
        """
        dynamics, instance = self._dynamics, self._dynamics.instances[0]
        totals = "  ".join(f"{label} {count}" for label, count in self._totals().items())
        lines = [
            f"slot {dynamics.slot[0]}  {totals}",
            f"waiting {dynamics.queue_length[0]}  in service {dynamics.in_service[0]}  "
            f"thinking {dynamics.thinking[0]}",
        ]
        for r in range(self._rows()):
            name, phase, retrials, places = self._replica(r)
            tiles = digits(retrials, places)
            if places > _PLACES:
                tiles = f"{tiles[:_PLACES]} {len(retrials)} of {places}"
            lines.append(f"{short_name(name):{NAME_LETTERS}}  {phase:11}  [{tiles}]")
        if self._rows() < instance.num_replicas:
            lines.append(f"+{instance.num_replicas - self._rows()} more replicas")
        waiting = self._waiting()
        hidden = int(dynamics.queue_length[0]) - len(waiting)
        beyond = f"{hidden} beyond the window" if hidden else ""
        return "\n".join(
            [
                *lines,
                window_lines(waiting, instance.window, beyond),
                f"next update: {self._clock()[1]}",
                f"last: {self._last}",
                trace_line(self._lengths),
                "",
            ]
        )

    # ---------------------------------------------------------------- picture

    def picture(self) -> NDArray[np.uint8]:
        """Draw the replicas, the queue, its length over time and the clock.

        Returns
        -------
        ndarray of uint8, shape (450, 800, 3)

        Raises
        ------
        gymnasium.error.DependencyNotInstalled
            If pygame is not installed.
        """
        canvas = Canvas()
        totals = "    ".join(f"{label} {count:,}" for label, count in self._totals().items())
        canvas.title("LLMServe-v0", f"slot {self._dynamics.slot[0]:,}", totals)
        self._draw_replicas(canvas)
        self._draw_queue(canvas)
        canvas.text("Queue length", MARGIN, _TOP - 14, size=MEDIUM)
        canvas.trace(self._lengths, int(self._dynamics.slot[0]), _TRACE)
        self._draw_clock(canvas)
        return canvas.pixels()

    def _draw_replicas(self, canvas: Canvas) -> None:
        instance = self._dynamics.instances[0]
        canvas.text("Replicas", MARGIN, RULE + 18, size=MEDIUM)
        canvas.retrials_legend(RULE + 18)
        rows = min(instance.num_replicas, MAX_ROWS)
        pitch = min(_LARGEST_ROW, _ROWS_HEIGHT / rows)
        for r in range(self._rows()):
            y = _ROWS_TOP + (r + 0.5) * pitch
            name, phase, retrials, places = self._replica(r)
            name = canvas.shorten(name, _PHASE_LEFT - MARGIN - 12)
            idle = phase == PHASES[fields.EMPTY]
            canvas.text(name, MARGIN, y, MUTED if idle else INK)
            draining = phase == PHASES[fields.DRAINING]
            canvas.text(phase, _PHASE_LEFT, y, RETRY if draining else MUTED)
            left = int(self._dynamics.state.replicas[0, r, fields.LEFT])
            if left:
                width = _PLACES_RIGHT - _PLACES_LEFT
                canvas.box((_PLACES_LEFT, y - 3, width, 6), FAINT)
                done = width * (1.0 - left / instance.loading)
                canvas.box((_PLACES_LEFT, y - 3, max(done, 2.0), 6), TRACE)
            else:
                self._draw_places(canvas, y, pitch - 6, retrials, places)
            served = f"{len(retrials)} / {places}"
            canvas.text(served, WIDTH - MARGIN, y, MUTED, align="right")
        if self._rows() < instance.num_replicas:
            y = _ROWS_TOP + (rows - 0.5) * pitch
            canvas.text(f"+{instance.num_replicas - self._rows():,} more", MARGIN, y, MUTED)

    @staticmethod
    def _draw_places(
        canvas: Canvas, y: float, size: float, retrials: list[int], places: int
    ) -> None:
        """Draw a tile a place; many become narrow, without a frame."""
        pitch = min(size + 4, (_PLACES_RIGHT - _PLACES_LEFT) / places)
        gap = 4 if pitch > 12 else 1 if pitch > 3 else 0
        for place in range(places):
            box = (_PLACES_LEFT + place * pitch, y - size / 2, pitch - gap, size)
            if place < len(retrials):
                canvas.box(box, RETRIALS[min(retrials[place], len(RETRIALS) - 1)])
            elif pitch > 6:
                canvas.outline(box, FAINT, 1)

    def _draw_queue(self, canvas: Canvas) -> None:
        length, waiting = int(self._dynamics.queue_length[0]), self._waiting()
        x = canvas.text(f"{length:,} waiting", MARGIN, _QUEUE_LINE, size=MEDIUM) + 16
        thinking = f"{self._dynamics.thinking[0]:,} think and will come back"
        x = canvas.text(thinking, x, _QUEUE_LINE + 1, MUTED) + 16
        lost = self._totals()["lost"]
        canvas.text(f"{lost:,} lost", x, _QUEUE_LINE + 1, RETRY if lost else MUTED)
        canvas.text("head", MARGIN, _QUEUE_TOP + _TILE / 2, MUTED)
        window = self._dynamics.instances[0].window
        most = int((_TILES_RIGHT - _LEFT) // (_TILE + 2))
        for place in range(min(window, most)):
            box = (_LEFT + place * (_TILE + 2), _QUEUE_TOP, _TILE, _TILE)
            canvas.tile(box, waiting[place] if place < len(waiting) else None)
        if length > min(window, most):
            beyond = f"+{length - min(window, most):,}"
            x = _LEFT + min(window, most) * (_TILE + 2) + 6
            canvas.text(beyond, x, _QUEUE_TOP + _TILE / 2)

    def _draw_clock(self, canvas: Canvas) -> None:
        share, words = self._clock()
        left, right, y = _CLOCK_LEFT, _CLOCK_RIGHT, _TOP + 12
        canvas.text("Next update", left, _TOP - 14, size=MEDIUM)
        canvas.text(words, right, _TOP - 13, MUTED, align="right")
        canvas.box((left, y - 5, right - left, 10), FAINT)
        if share > 0.0:
            canvas.box((left, y - 5, (right - left) * share, 10), TRACE)
        canvas.text("Last slot", left, y + 30, size=MEDIUM)
        canvas.text(canvas.shorten(self._last, right - left), left, y + 50, MUTED)
