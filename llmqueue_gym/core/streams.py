"""Seeded random streams: one generator per lane and purpose, drawn in blocks.

A draw depends on the seed and the slot only, never on the actions, so policies are coupled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
"""Slots drawn at a time; the values do not depend on it."""

NEAR = 16
"""Slots laid out for reading at a time: two cache lines of a lane's draws."""


class Draws(Protocol):
    """A source of draws, one a slot: a NumPy generator, or a process that stands in for it."""

    def random(self, *, out: Any) -> Any:
        """Fill ``out`` with the draws of the next slots."""


class UniformStreams:
    """Uniform draws in [0, 1) for every lane, one column of purposes per slot.

    All lanes share a position in the block. A lane that is reset in the middle of a block draws
    the rest of that block from its new generators, so lane i sees the same numbers whatever the
    other lanes do.

    Parameters
    ----------
    num_streams : int
        Independent purposes (arrivals, contexts, outcomes, ...).
    num_lanes : int
        Independent copies of the problem, B.

    Attributes
    ----------
    near : ndarray, shape (n, num_streams, B)
        Draws of this and the following slots that lie ready.
    place : int
        Where the current slot's draws stand in ``near``.
    chunk : int
        Counts the times ``near`` was replaced.
    """

    def __init__(self, num_streams: int, num_lanes: int) -> None:
        self._generators: list[Sequence[Draws]] = [()] * num_lanes
        # Rows a power of two apart would share a few sets of the cache.
        self._block = np.zeros((num_streams, num_lanes, BLOCK + 8))[..., :BLOCK]
        self._position = 0
        self.near: NDArray[np.float64] = np.zeros((0, num_streams, num_lanes))
        self.place = 0
        self.chunk = 0

    def reset(self, lane: int, generators: Sequence[Draws]) -> None:
        """Give a lane new generators, one per stream; its next draw is their first."""
        self._generators[lane] = generators
        self._fill(lane, self._position)
        self._forget()

    def _fill(self, lane: int, start: int) -> None:
        for stream, generator in enumerate(self._generators[lane]):
            generator.random(out=self._block[stream, lane, start:])

    def _forget(self) -> None:
        self.near = self.near[:0]

    def advance(self) -> int:
        """Move to the next slot; its draws are ``near[place]`` with the place returned."""
        if self._position == BLOCK:
            self._position = 0
            for lane in range(len(self._generators)):
                self._fill(lane, 0)
            self._forget()
        self.place += 1
        if self.place >= len(self.near):
            # Slot first: columns of the block are too far apart to be read singly.
            ahead = self._block[:, :, self._position : self._position + NEAR]
            self.near = np.empty((ahead.shape[2], *ahead.shape[:2]))
            for stream, draws in enumerate(ahead):  # NumPy turns two axes around faster than three
                self.near[:, stream] = draws.T
            self.place = 0
            self.chunk += 1
            self._near_list: list[list[float]] = []
        self._position += 1
        return self.place

    def draw(self) -> NDArray[np.float64]:
        """Return the draws of the next slot, shape (num_streams, B)."""
        place = self.advance()
        draws: NDArray[np.float64] = self.near[place]
        return draws

    def draw_single(self) -> list[float]:
        """Return the draws of the next slot of lane 0 as Python floats, one per stream."""
        place = self.advance()
        if not self._near_list:
            self._near_list = self.near[:, :, 0].tolist()
        return self._near_list[place]
