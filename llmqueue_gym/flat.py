"""A Dict observation as one float32 vector, of one environment or of all lanes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError

Vector = NDArray[np.float32]


class FlatLayout:
    """Where each key of a Dict observation stands in one float32 vector of length D.

    The keys follow each other in the order of the Dict space, which is alphabetical; arrays row by
    row, a ``Discrete(n)`` as n numbers of which one is 1. It is ``gymnasium.spaces.flatten`` in
    float32 throughout, so ``gymnasium.spaces.unflatten(space, vector)`` gives the dict back.

    Parameters
    ----------
    observed : gymnasium.spaces.Dict
        A space of ``Box``, ``MultiBinary`` and ``Discrete`` entries.

    Attributes
    ----------
    slices : dict of str to slice
        Place of each key in the vector.
    space : gymnasium.spaces.Box
        The space of the vector, shape (D,), with the bounds of its parts.

    Raises
    ------
    ValueError
        If the space is another one.
    """

    def __init__(self, observed: spaces.Space[Any]) -> None:
        entries = observed.spaces if isinstance(observed, spaces.Dict) else {"": observed}
        for key, space in entries.items():
            if not key or not isinstance(space, spaces.Box | spaces.MultiBinary | spaces.Discrete):
                raise UsageError(
                    f"env has the observation space {observed}; only a Dict of Box, MultiBinary "
                    "and Discrete entries is flattened"
                )
        self.slices: dict[str, slice] = {}
        self._parts: list[tuple[str, slice, int | None]] = []
        low, high, end = [], [], 0
        for key, space in entries.items():
            box = spaces.flatten_space(space)
            assert isinstance(box, spaces.Box)
            low.append(box.low)
            high.append(box.high)
            place = slice(end, end + box.shape[0])
            end = place.stop
            self.slices[key] = place
            # A Discrete's number, counted from here, is the place of its 1.
            one = place.start - int(space.start) if isinstance(space, spaces.Discrete) else None
            self._parts.append((key, place, one))
        self._size = end
        self.space = spaces.Box(
            np.concatenate(low).astype(np.float32),
            np.concatenate(high).astype(np.float32),
            dtype=np.float32,
        )

    def flatten(self, observation: dict[str, Any]) -> Vector:
        """Return one observation as a vector, shape (D,)."""
        vector = np.zeros(self._size, dtype=np.float32)
        for key, place, one in self._parts:
            if one is None:
                vector[place] = observation[key].ravel()
            else:
                vector[one + observation[key]] = 1.0
        return vector

    def flatten_lanes(self, observation: dict[str, Any]) -> Vector:
        """Return the observations of B lanes as vectors, shape (B, D)."""
        lanes = len(observation[self._parts[0][0]])
        vectors = np.zeros((lanes, self._size), dtype=np.float32)
        for key, place, one in self._parts:
            if one is None:
                vectors[:, place] = observation[key].reshape(lanes, -1)
            else:
                vectors[np.arange(lanes), one + observation[key]] = 1.0
        return vectors
