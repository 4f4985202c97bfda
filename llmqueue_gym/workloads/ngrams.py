"""Hashed n-grams of characters: how often a text has each, and the sum of their directions.

The counts are those of scikit-learn's HashingVectorizer (MurmurHash3 of 32 bits, seed 0), which
takes five times as long for one text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

NGRAMS = (3, 5)
"""Characters of the shortest and of the longest n-gram."""

FEATURES = 2**15
"""Places that n-grams are hashed to."""

_SPACES = re.compile(r"\s\s+")


class Counts(NamedTuple):
    """How often texts have each feature: text i has entries ``starts[i]`` to ``starts[i + 1]``."""

    counts: Floats
    features: Ints
    starts: Ints

    def sparse(self) -> Any:
        """Return them as a sparse matrix, shape (texts, features)."""
        from scipy import sparse  # a sixth of the time that a program takes to start

        return sparse.csr_matrix(self, shape=(len(self.starts) - 1, FEATURES))


def utf8(text: str) -> bytes:
    """Return the bytes of a text; JSON can smuggle in lone surrogates, which are not UTF-8."""
    return text.encode("utf-8", "replace")


def counts_of(texts: Sequence[str]) -> Counts:
    """Return how often each hashed n-gram of characters is in the texts."""
    if len(texts) == 1:
        return _counts_of(texts[0])
    each = [_counts_of(text) for text in ("", *texts)]  # at least one
    counts, features, _ = map(np.concatenate, zip(*each, strict=True))
    starts = np.cumsum([len(found.counts) for found in each], dtype=np.int32)
    return Counts(counts, features, starts)


def _counts_of(text: str) -> Counts:
    plain = _SPACES.sub(" ", utf8(text).decode().lower()).encode()
    hashed = _features(np.frombuffer(plain, np.uint8), *NGRAMS)
    hashed.sort()
    return Counts(*_counted(hashed))


@compiled
def _features(text: NDArray[np.uint8], shortest: int, longest: int) -> Ints:
    """Return the feature of every n-gram of a text in UTF-8."""
    begins = np.flatnonzero((text & 0xC0) != 0x80)  # of characters
    size = len(begins)
    total = 0
    for n in range(shortest, longest + 1):
        total += max(size - n + 1, 0)
    found = np.empty(total, np.int32)
    filled = 0
    for n in range(shortest, longest + 1):
        for i in range(size - n + 1):
            end = begins[i + n] if i + n < size else len(text)
            found[filled] = _hash(text, begins[i], end)
            filled += 1
    return found


@compiled
def _hash(text: NDArray[np.uint8], begin: int, end: int) -> int:
    """Return the feature of the bytes ``begin`` to ``end``: |MurmurHash3| modulo `FEATURES`."""
    low = 0xFFFFFFFF  # of 64 bits, which a product may leave: its lower 32 stay right
    value, block, filled = 0, 0, 0
    for place in range(begin, end):
        block |= int(text[place]) << (8 * filled)
        filled += 1
        if filled < 4 and place + 1 < end:
            continue
        block = block * 0xCC9E2D51 & low
        block = (block << 15 | block >> 17) * 0x1B873593 & low
        value ^= block
        if filled == 4:
            value = ((value << 13 | value >> 19) & low) * 5 + 0xE6546B64 & low
        block, filled = 0, 0
    value ^= int(end - begin)
    value = (value ^ value >> 16) * 0x85EBCA6B & low
    value = (value ^ value >> 13) * 0xC2B2AE35 & low
    value ^= value >> 16
    return (value if value < 2**31 else 2**32 - value) % FEATURES


@compiled
def _counted(ordered: Ints) -> tuple[Floats, Ints, Ints]:
    """Return how often each of a text's sorted features is there, these, and the two starts."""
    features, counts = np.empty(len(ordered), np.int32), np.zeros(len(ordered))
    last = -1
    for feature in ordered:
        if last < 0 or features[last] != feature:
            last += 1
            features[last] = feature
        counts[last] += 1.0
    starts = np.array([0, last + 1], np.int32)
    return counts[: last + 1], features[: last + 1], starts


@compiled
def directed(weights: Floats, features: Ints, starts: Ints, directions: Floats) -> Floats:
    """Return each text's weights, scaled to norm 1, times the directions, shape (texts, dim)."""
    found = np.zeros((len(starts) - 1, directions.shape[1]))
    for text in range(len(found)):
        square = 0.0
        for entry in range(starts[text], starts[text + 1]):
            square += weights[entry] * weights[entry]
        norm = np.sqrt(square)
        for entry in range(starts[text], starts[text + 1]):
            weight = weights[entry] / norm
            row = directions[features[entry]]
            for k in range(len(row)):
                found[text, k] += weight * row[k]
    return found
