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
    """

    def __init__(self, num_streams: int, num_lanes: int) -> None:
        self._generators: list[Sequence[Draws]] = [()] * num_lanes
        # Rows a power of two apart would share a few sets of the cache.
        self._block = np.zeros((num_streams, num_lanes, BLOCK + 8))[..., :BLOCK]
        self._position = 0
        self._near: NDArray[np.float64] = np.zeros((0, num_streams, num_lanes))
        self._place = 0

    def reset(self, lane: int, generators: Sequence[Draws]) -> None:
        """Give a lane new generators, one per stream; its next draw is their first."""
        self._generators[lane] = generators
        self._fill(lane, self._position)
        self._near = self._near[:0]

    def _fill(self, lane: int, start: int) -> None:
        for stream, generator in enumerate(self._generators[lane]):
            generator.random(out=self._block[stream, lane, start:])

    def advance(self) -> tuple[NDArray[np.float64], int]:
        """Move to the next slot.

        Returns
        -------
        near : ndarray, shape (n, num_streams, B)
            Draws of some slots.
        place : int
            Which of them is this slot.
        """
        if self._position == BLOCK:
            self._position = 0
            for lane in range(len(self._generators)):
                self._fill(lane, 0)
        self._place += 1
        if self._place >= len(self._near):
            # Slot first: columns of the block are too far apart to be read singly.
            ahead = self._block[:, :, self._position : self._position + NEAR]
            self._near = np.empty((ahead.shape[2], *ahead.shape[:2]))
            for stream, draws in enumerate(ahead):  # NumPy turns two axes around faster than three
                self._near[:, stream] = draws.T
            self._place = 0
        self._position += 1
        return self._near, self._place
