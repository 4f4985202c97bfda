"""What pictures are drawn with: a surface of fixed size, its shapes, colours and letters.

Drawn by pygame-ce without a display; every problem's picture stands in its own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pygame

WIDTH, HEIGHT = 800, 450
BARS = "▁▂▃▄▅▆▇█"
"""From little to much, in a text."""

Colour = tuple[int, int, int]
PAPER, INK, MUTED, FAINT = (255, 255, 255), (33, 37, 41), (95, 103, 112), (214, 219, 224)
# ColorBrewer's Blues for 0, 1, 2, 3+ retrials; Okabe and Ito's green and vermilion for the user's
# choice: all told apart with any common colour blindness.
RETRIALS = ((198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
KEPT, RETRY = (0, 130, 95), (202, 84, 0)
TRACE, _TRACE_FILL = (33, 113, 181), (226, 237, 247)

TEXT_COLUMNS, NAME_LETTERS = 64, 28
"""Of a window or a trace in a text, and of a name there."""
TRACE_SLOTS = 300
"""Slots of queue length that a picture's trace goes back."""

_OVERSAMPLING = 2  # drawn twice as large and scaled down: smooth edges, even letter spacing
SMALL, MEDIUM, LARGE = 15, 18, 24
"""Font sizes."""
_NO_LETTER = "\uffff"  # a code that stands for no letter in any font
MARGIN, TITLE_LINE, RULE = 24, 30, 52
"""Left and right edge; the title's line and the rule under it, from the top."""
CHIP_HEIGHT, _CHIP_PADDING = 32, 10

Box = tuple[float, float, float, float]
Point = tuple[float, float]


class Canvas:
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
        self._surface.fill(PAPER)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the finished picture, shape (HEIGHT, WIDTH, 3)."""
        picture = self._pygame.transform.smoothscale(self._surface, (WIDTH, HEIGHT))
        pixels = self._pygame.surfarray.array3d(picture)
        return np.ascontiguousarray(pixels.transpose(1, 0, 2), dtype=np.uint8)

    def title(self, name: str, clock: str, totals: str, size: int = MEDIUM) -> None:
        """Write the first line, with a rule under it."""
        x = self.text(name, MARGIN, TITLE_LINE, size=LARGE)
        self.text(clock, x + 14, TITLE_LINE + 2, MUTED, size)
        self.text(totals, WIDTH - MARGIN, TITLE_LINE + 2, MUTED, align="right")
        self.line((MARGIN, RULE), (WIDTH - MARGIN, RULE), FAINT)

    def text_width(self, text: str, size: int = SMALL) -> int:
        """Return how wide a text is, rounded up."""
        return -(-self._font(size).size(self._drawable(text))[0] // _OVERSAMPLING)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        colour: Colour = INK,
        size: int = SMALL,
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
            font, bytes_of = self._font(SMALL), self._pygame.image.tobytes
            texts = (f"|{letter}", f"|{_NO_LETTER}", "|")  # alone, nothing at all is an error
            drawn, *lacking = (bytes_of(font.render(text, True, INK), "RGBA") for text in texts)
            self._known[letter] = drawn not in lacking
        return self._known[letter]

    def line(self, start: Point, end: Point, colour: Colour, width: int = 1) -> None:
        """Draw a straight line."""
        self._pygame.draw.line(
            self._surface, colour, _enlarged(start), _enlarged(end), width * _OVERSAMPLING
        )

    def box(self, box: Box, colour: Colour) -> None:
        """Fill a rounded box."""
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
            self.outline(box, FAINT, 1)
            return
        x, y, size, _ = box
        shade = min(retrials, len(RETRIALS) - 1)
        self.box(box, RETRIALS[shade])
        font_size = SMALL if size > 24 else 12
        if self.text_width(str(retrials), font_size) <= size - 3:
            colour = INK if shade < 2 else PAPER
            self.text(str(retrials), x + size / 2, y + size / 2, colour, font_size, "centre")

    def retrials_legend(self, y: float) -> int:
        """Name the colours of tiles at the right edge; return where that begins."""
        x = WIDTH - MARGIN
        for label, colour in zip(("3+", "2", "1", "0"), reversed(RETRIALS), strict=True):
            x = self.text(label, x, y, MUTED, align="right") - 18
            self.box((x, y - 7, 14, 14), colour)
            x -= 10
        return self.text("retrials", x, y, MUTED, align="right")

    def chip_width(self, name: str) -> int:
        """Return how wide the box of a name is."""
        return self.text_width(name) + 2 * _CHIP_PADDING

    def chip(
        self, name: str, corner: tuple[int, int], fill: Colour | None, widest: int = WIDTH
    ) -> int:
        """Draw a name in a box, filled if it is what the user chose; return its right end."""
        name = self.shorten(name, widest - 2 * _CHIP_PADDING)
        x, y = corner
        width = self.chip_width(name)
        self.outline((x, y, width, CHIP_HEIGHT), fill or FAINT, 0 if fill else 1)
        self.text(name, x + _CHIP_PADDING, y + CHIP_HEIGHT / 2, PAPER if fill else MUTED)
        return x + width

    def arrow(self, start: Point, length: int) -> None:
        """Draw an arrow to the right."""
        x, y = start
        self.line(start, (x + length - 4, y), MUTED)
        self._polygon([(x + length, y), (x + length - 6, y - 4), (x + length - 6, y + 4)], MUTED)

    def triangle(self, tip: Point, colour: Colour) -> None:
        """Draw a mark that points up to a place."""
        x, y = tip
        self._polygon([(x, y), (x - 5, y + 7), (x + 5, y + 7)], colour)

    def dot(self, centre: Point, colour: Colour, radius: int = 4) -> None:
        """Draw a filled circle."""
        self._pygame.draw.circle(self._surface, colour, _enlarged(centre), radius * _OVERSAMPLING)

    def curve(self, points: list[Point], bottom: int) -> None:
        """Draw a curve and shade the area under it."""
        if len(points) < 2:
            return
        self._polygon([(points[0][0], bottom), *points, (points[-1][0], bottom)], _TRACE_FILL)
        corners = [_enlarged(point) for point in points]
        self._pygame.draw.lines(self._surface, TRACE, False, corners, 2 * _OVERSAMPLING)

    def trace(self, lengths: Sequence[int], now: int, frame: tuple[int, int, int, int]) -> None:
        """Draw the queue's lengths, the last one at slot ``now``, with axes around the frame."""
        left, top, right, bottom = frame
        highest, first = _axis_top(max(lengths)), max(0, now - TRACE_SLOTS)

        def point(slot: int, length: int) -> Point:
            x = left + (slot - first) * (right - left) / TRACE_SLOTS
            return x, bottom - length * (bottom - top) / highest

        for tick in (0, highest // 2, highest):
            _, y = point(first, tick)
            self.line((left, y), (right, y), FAINT)
            self.text(f"{tick:,}", left - 8, y, MUTED, align="right")
        for slot in range(-(-first // 100) * 100, first + TRACE_SLOTS + 1, 100):
            self.text(f"{slot:,}", point(slot, 0)[0], bottom + 15, MUTED, align="centre")
        steps: list[Point] = []
        for slot, length in enumerate(lengths, now - len(lengths) + 1):
            x, y = point(slot, length)
            if steps:
                steps.append((x, steps[-1][1]))
            steps.append((x, y))
        self.curve(steps, bottom)
        x, y = steps[-1]
        self.dot((x, y), TRACE)
        self.text(f"{lengths[-1]:,}", x + 10, y, TRACE, MEDIUM)

    def _polygon(self, corners: list[Point], colour: Colour) -> None:
        self._pygame.draw.polygon(self._surface, colour, [_enlarged(point) for point in corners])

    def _font(self, size: int) -> pygame.font.Font:
        if size not in self._fonts:
            self._fonts[size] = self._pygame.font.Font(None, size * _OVERSAMPLING)
        return self._fonts[size]


def _enlarged(position: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(value * _OVERSAMPLING) for value in position)


def _axis_top(highest: int) -> int:
    """Round up to 4, 10, 20, 40, 100, 200, ...: even numbers, so that half is a tick too."""
    scale = 1
    while True:
        for top in (4, 10, 20):
            if highest <= top * scale:
                return top * scale
        scale *= 10


def short_name(name: str) -> str:
    """Make a name fit its column of a text."""
    half = (NAME_LETTERS - 1) // 2
    return name if len(name) <= NAME_LETTERS else f"{name[:half]}…{name[-half:]}"


def digits(retrials: Sequence[int], places: int) -> str:
    """Write a digit a query, ``+`` above 9, and ``.`` for every free place."""
    return "".join(str(count) if count <= 9 else "+" for count in retrials).ljust(places, ".")


def window_lines(retrials: Sequence[int], window: int, beyond: str) -> str:
    """Write a window, head first, over as many lines as it takes; ``beyond`` says what it hides."""
    tiles = digits(retrials, window)
    rows = [tiles[i : i + TEXT_COLUMNS] for i in range(0, window, TEXT_COLUMNS)]
    return "head [" + "\n      ".join(rows) + "]" + (f"  +{beyond}" if beyond else "")


def trace_line(lengths: Sequence[int]) -> str:
    """Write the last lengths of the queue as bars."""
    recent = list(lengths)[-TEXT_COLUMNS:]
    top = max(1, *recent)
    bars = "".join(BARS[value * (len(BARS) - 1) // top] for value in recent)
    return f"trace {bars} (0 to {top}, one bar a slot)"
