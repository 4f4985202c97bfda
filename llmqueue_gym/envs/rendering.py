"""Text and pictures of LLMQueue-v0: what a provider sees, and nothing of the hidden truth.

The text needs no dependency; the picture is drawn by pygame-ce on a surface without a display,
which `deploy_rendering` shares.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from llmqueue_gym.queueing.dynamics import QueueDynamics
from llmqueue_gym.workloads.pool import printable

if TYPE_CHECKING:
    import pygame

WIDTH, HEIGHT = 800, 450
TRACE_SLOTS = 300
"""Slots of queue length that the picture's trace goes back."""

_TEXT_COLUMNS = 64
_BARS = "▁▂▃▄▅▆▇█"

Colour = tuple[int, int, int]
_PAPER, _INK, _MUTED, _FAINT = (255, 255, 255), (33, 37, 41), (95, 103, 112), (214, 219, 224)
# ColorBrewer's Blues for 0, 1, 2, 3+ retrials; Okabe and Ito's green and vermilion for the user's
# choice: all told apart with any common colour blindness.
_RETRIALS = ((198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
_KEPT, _RETRY = (0, 130, 95), (202, 84, 0)
_TRACE, _TRACE_FILL = (33, 113, 181), (226, 237, 247)

_OVERSAMPLING = 2  # drawn twice as large and scaled down: smooth edges, even letter spacing
_SMALL, _MEDIUM, _LARGE = 15, 18, 24  # font sizes
_NO_LETTER = "\uffff"  # a code that stands for no letter in any font
_MARGIN = 24
_TITLE_LINE, _RULE, _QUEUE_LINE, _LAST_LINE = 30, 52, 74, 228
_TILES_LEFT, _TILES_TOP, _TILES_WIDTH, _TILES_HEIGHT = 72, 96, 640, 112
_LARGEST_PITCH, _SMALLEST_PITCH, _MAX_ROWS, _ROW_GAP = 38, 10, 4, 6
_CHIPS_TOP, _CHIP_HEIGHT, _CHIP_GAP, _CHIP_PADDING, _MAX_CHIPS = 246, 32, 10, 10, 4
_TRACE_LEFT, _TRACE_TOP, _TRACE_RIGHT, _TRACE_BOTTOM = 72, 326, 696, 414


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
        length, window, last = self._lengths[-1], self._dynamics.window, self._last
        tiles = "".join(str(count) if count <= 9 else "+" for count in self._retrials)
        tiles = tiles.ljust(window, ".")
        rows = [tiles[i : i + _TEXT_COLUMNS] for i in range(0, window, _TEXT_COLUMNS)]
        backlog = length - len(self._retrials)
        rows[-1] += f"]  +{backlog} in the backlog" if backlog else "]"
        recent = list(self._lengths)[-_TEXT_COLUMNS:]
        top = max(1, *recent)
        bars = "".join(_BARS[value * (len(_BARS) - 1) // top] for value in recent)
        return "\n".join(
            [
                f"slot {self._dynamics.slot[0]}  queue length {length}  "
                f"arrivals {self._arrivals}  departures {self._departures}  "
                f"retrials {self._retried}",
                "head [" + "\n      ".join(rows),
                f"last: {last.words(with_names=True) if last else 'no slot has run yet'}",
                f"trace {bars} (0 to {top}, one bar a slot)",
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
        canvas = _Canvas()
        self._draw_title(canvas)
        self._draw_queue(canvas)
        self._draw_last_slot(canvas)
        self._draw_trace(canvas)
        return canvas.pixels()

    def _draw_title(self, canvas: _Canvas) -> None:
        x = canvas.text("LLMQueue-v0", _MARGIN, _TITLE_LINE, size=_LARGE)
        canvas.text(f"slot {self._dynamics.slot[0]:,}", x + 14, _TITLE_LINE + 2, _MUTED, _MEDIUM)
        totals = (
            f"arrivals {self._arrivals:,}    departures {self._departures:,}    "
            f"retrials {self._retried:,}"
        )
        canvas.text(totals, WIDTH - _MARGIN, _TITLE_LINE + 2, _MUTED, align="right")
        canvas.line((_MARGIN, _RULE), (WIDTH - _MARGIN, _RULE), _FAINT)

    def _draw_queue(self, canvas: _Canvas) -> None:
        length, last = self._lengths[-1], self._last
        canvas.text(f"{length:,} waiting", _MARGIN, _QUEUE_LINE, size=_MEDIUM)
        self._draw_legend(canvas)
        grid = _Grid(self._dynamics.window)
        middle = grid.size // 2
        canvas.text("head", _TILES_LEFT - 8, _TILES_TOP + middle, _MUTED, align="right")
        shown = self._retrials[: grid.count]
        for slot in range(grid.count):
            canvas.tile(grid.box(slot), shown[slot] if slot < len(shown) else None)
        if last is not None and last.served and last.slot < grid.count:
            x, y, size, _ = grid.box(last.slot)
            canvas.triangle((x + size // 2, y + size), _INK)
        if last is not None and last.retried:
            tail = length - 1 - last.arrived
            if tail < grid.count:
                canvas.outline(grid.box(tail), _RETRY, 3)
        if length > len(shown):
            x, y, size, _ = grid.box(grid.count - 1)
            canvas.text(f"+{length - len(shown):,}", x + size + 8, y + middle)

    @staticmethod
    def _draw_legend(canvas: _Canvas) -> None:
        x, y = WIDTH - _MARGIN, _QUEUE_LINE
        for label, colour in zip(("3+", "2", "1", "0"), reversed(_RETRIALS), strict=True):
            x = canvas.text(label, x, y, _MUTED, align="right") - 18
            canvas.box((x, y - 7, 14, 14), colour)
            x -= 10
        x = canvas.text("retrials", x, y, _MUTED, align="right") - 24
        x = canvas.text("just retried", x, y, _MUTED, align="right") - 18
        canvas.outline((x, y - 7, 14, 14), _RETRY, 3)
        x = canvas.text("served from here", x - 24, y, _MUTED, align="right") - 10
        canvas.triangle((x, y - 3), _INK)

    def _draw_last_slot(self, canvas: _Canvas) -> None:
        last = self._last
        x = canvas.text("Last slot", _MARGIN, _LAST_LINE, size=_MEDIUM) + 14
        if last is None:
            canvas.text("none yet", x, _LAST_LINE + 1, _MUTED)
            return
        canvas.text(last.words(with_names=False), x, _LAST_LINE + 1, _MUTED)
        if not last.served:
            return
        canvas.tile((_MARGIN, _CHIPS_TOP, _CHIP_HEIGHT, _CHIP_HEIGHT), last.served_retrials)
        x = _MARGIN + _CHIP_HEIGHT + 10
        canvas.arrow((x, _CHIPS_TOP + _CHIP_HEIGHT // 2), 16)
        x += 26
        names = list(last.llms[:_MAX_CHIPS])
        if last.kept and last.kept not in names:
            names[-1] = last.kept
        hidden = len(last.llms) - len(names)
        ends = [f"+{hidden}", "retry"] if hidden else ["retry"]
        # Whatever the names, all chips fit on the line.
        room = WIDTH - _MARGIN - x - sum(canvas.chip_width(end) + _CHIP_GAP for end in ends)
        widest = room // len(names) - _CHIP_GAP
        for name in names:
            fill = _KEPT if name == last.kept else None
            x = canvas.chip(name, (x, _CHIPS_TOP), fill, widest) + _CHIP_GAP
        for end in ends:
            fill = _RETRY if end == "retry" and last.retried else None
            x = canvas.chip(end, (x, _CHIPS_TOP), fill) + _CHIP_GAP

    def _draw_trace(self, canvas: _Canvas) -> None:
        left, top, right, bottom = _TRACE_LEFT, _TRACE_TOP, _TRACE_RIGHT, _TRACE_BOTTOM
        canvas.text("Queue length", _MARGIN, top - 24, size=_MEDIUM)
        now, highest = int(self._dynamics.slot[0]), _axis_top(max(self._lengths))
        first = max(0, now - TRACE_SLOTS)

        def point(slot: int, length: int) -> tuple[float, float]:
            x = left + (slot - first) * (right - left) / TRACE_SLOTS
            return x, bottom - length * (bottom - top) / highest

        for tick in (0, highest // 2, highest):
            _, y = point(first, tick)
            canvas.line((left, y), (right, y), _FAINT)
            canvas.text(f"{tick:,}", left - 8, y, _MUTED, align="right")
        for slot in range(-(-first // 100) * 100, first + TRACE_SLOTS + 1, 100):
            canvas.text(f"{slot:,}", point(slot, 0)[0], bottom + 15, _MUTED, align="centre")
        canvas.text("slot", WIDTH - _MARGIN, bottom + 15, _MUTED, align="right")
        steps: list[tuple[float, float]] = []
        for slot, length in enumerate(self._lengths, now - len(self._lengths) + 1):
            x, y = point(slot, length)
            if steps:
                steps.append((x, steps[-1][1]))
            steps.append((x, y))
        canvas.curve(steps, bottom)
        x, y = steps[-1]
        canvas.dot((x, y), _TRACE)
        canvas.text(f"{self._lengths[-1]:,}", x + 10, y, _TRACE, _MEDIUM)


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


def _axis_top(highest: int) -> int:
    """Round up to 4, 10, 20, 40, 100, 200, ...: even numbers, so that half is a tick too."""
    scale = 1
    while True:
        for top in (4, 10, 20):
            if highest <= top * scale:
                return top * scale
        scale *= 10


Box = tuple[float, float, float, float]
Point = tuple[float, float]


class _Canvas:
    """A pygame surface of fixed size with the few shapes that the picture is made of.

    Positions and sizes are in pixels of the finished picture.
    """

    _known: ClassVar[dict[str, bool]] = {}  # whether the font, always the same, has a letter

    def __init__(self) -> None:
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                'render_mode="rgb_array" needs pygame: pip install "llmqueue_gym[render]"'
            ) from error
        self._pygame = pygame
        # Anyone may call pygame.quit() between two pictures (HumanRendering.close does), which
        # kills its fonts; so each picture loads its own.
        pygame.font.init()
        self._fonts: dict[int, pygame.font.Font] = {}
        self._surface = pygame.Surface((WIDTH * _OVERSAMPLING, HEIGHT * _OVERSAMPLING), 0, 32)
        self._surface.fill(_PAPER)

    def pixels(self) -> NDArray[np.uint8]:
        picture = self._pygame.transform.smoothscale(self._surface, (WIDTH, HEIGHT))
        pixels = self._pygame.surfarray.array3d(picture)
        return np.ascontiguousarray(pixels.transpose(1, 0, 2), dtype=np.uint8)

    def text_width(self, text: str, size: int = _SMALL) -> int:
        return -(-self._font(size).size(self._drawable(text))[0] // _OVERSAMPLING)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        colour: Colour = _INK,
        size: int = _SMALL,
        align: str = "left",
    ) -> int:
        """Write a line centred on y; return the x where it ends (with ``right``: begins)."""
        image = self._font(size).render(self._drawable(text), True, colour)
        width = self.text_width(text, size)
        left = round(x) - {"left": 0, "centre": width // 2, "right": width}[align]
        top = round(y * _OVERSAMPLING) - image.get_height() // 2
        self._surface.blit(image, (left * _OVERSAMPLING, top))
        return left if align == "right" else left + width

    def shorten(self, name: str, widest: int) -> str:
        """Make a name fit a width: drop the provider, then the middle."""
        if self.text_width(name) > widest:
            name = name.rsplit("/", 1)[-1]
        short, keep = name, len(name)
        while self.text_width(short) > widest and keep > 2:
            keep -= 1
            short = name[: (keep + 1) // 2] + "…" + name[-(keep // 2) :]
        return short

    def _drawable(self, text: str) -> str:
        """Replace the letters that the font lacks, which it would draw as boxes, by ``?``."""
        return "".join(letter if self._has(letter) else "?" for letter in text)

    def _has(self, letter: str) -> bool:
        if letter.isascii():
            return True
        if letter not in self._known:
            font, bytes_of = self._font(_SMALL), self._pygame.image.tobytes
            texts = (f"|{letter}", f"|{_NO_LETTER}", "|")  # alone, nothing at all is an error
            drawn, *lacking = (bytes_of(font.render(text, True, _INK), "RGBA") for text in texts)
            self._known[letter] = drawn not in lacking
        return self._known[letter]

    def line(self, start: Point, end: Point, colour: Colour, width: int = 1) -> None:
        self._pygame.draw.line(
            self._surface, colour, _enlarged(start), _enlarged(end), width * _OVERSAMPLING
        )

    def box(self, box: Box, colour: Colour) -> None:
        self.outline(box, colour, 0)

    def outline(self, box: Box, colour: Colour, width: int) -> None:
        """Draw a rounded frame; width 0 fills it."""
        radius = round(min(4.0, box[2] / 5)) * _OVERSAMPLING
        self._pygame.draw.rect(
            self._surface, colour, _enlarged(box), width * _OVERSAMPLING, border_radius=radius
        )

    def tile(self, box: Box, retrials: int | None) -> None:
        """Draw a query with its number of retrials, or an empty slot."""
        if retrials is None:
            self.outline(box, _FAINT, 1)
            return
        x, y, size, _ = box
        shade = min(retrials, len(_RETRIALS) - 1)
        self.box(box, _RETRIALS[shade])
        font_size = _SMALL if size > 24 else 12
        if self.text_width(str(retrials), font_size) <= size - 3:
            colour = _INK if shade < 2 else _PAPER
            self.text(str(retrials), x + size / 2, y + size / 2, colour, font_size, "centre")

    def chip_width(self, name: str) -> int:
        return self.text_width(name) + 2 * _CHIP_PADDING

    def chip(
        self, name: str, corner: tuple[int, int], fill: Colour | None, widest: int = WIDTH
    ) -> int:
        """Draw a name in a box, filled if it is what the user chose; return its right end."""
        name = self.shorten(name, widest - 2 * _CHIP_PADDING)
        x, y = corner
        width = self.chip_width(name)
        self.outline((x, y, width, _CHIP_HEIGHT), fill or _FAINT, 0 if fill else 1)
        self.text(name, x + _CHIP_PADDING, y + _CHIP_HEIGHT / 2, _PAPER if fill else _MUTED)
        return x + width

    def arrow(self, start: Point, length: int) -> None:
        x, y = start
        self.line(start, (x + length - 4, y), _MUTED)
        self._polygon([(x + length, y), (x + length - 6, y - 4), (x + length - 6, y + 4)], _MUTED)

    def triangle(self, tip: Point, colour: Colour) -> None:
        x, y = tip
        self._polygon([(x, y), (x - 5, y + 7), (x + 5, y + 7)], colour)

    def dot(self, centre: Point, colour: Colour, radius: int = 4) -> None:
        self._pygame.draw.circle(self._surface, colour, _enlarged(centre), radius * _OVERSAMPLING)

    def curve(self, points: list[Point], bottom: int) -> None:
        """Draw a curve and shade the area under it."""
        if len(points) < 2:
            return
        self._polygon([(points[0][0], bottom), *points, (points[-1][0], bottom)], _TRACE_FILL)
        corners = [_enlarged(point) for point in points]
        self._pygame.draw.lines(self._surface, _TRACE, False, corners, 2 * _OVERSAMPLING)

    def _polygon(self, corners: list[Point], colour: Colour) -> None:
        self._pygame.draw.polygon(self._surface, colour, [_enlarged(point) for point in corners])

    def _font(self, size: int) -> pygame.font.Font:
        if size not in self._fonts:
            self._fonts[size] = self._pygame.font.Font(None, size * _OVERSAMPLING)
        return self._fonts[size]


def _enlarged(position: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(value * _OVERSAMPLING) for value in position)
