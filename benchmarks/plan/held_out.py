"""Held-out seeds: drawn from a secret, so that no agent can rebuild its world beforehand.

The public seeds 0, 1, ... are known, and so is every suite: an agent may make its own copy of what
it will meet, behind any wall. Whoever has the secret later computes the same seeds.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from llmqueue_gym.errors import UsageError

_LEAST = 16  # bytes of a secret
_BITS = 53  # of a seed: JSON readers keep such integers exactly


@dataclass(frozen=True)
class HeldOut:
    """A secret, and the file it is in.

    Attributes
    ----------
    path : Path
        The file, which agents must not see.
    secret : bytes
        Its content, without white space at the ends.
    """

    path: Path
    secret: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the secret: names it before it is published."""
        return hashlib.sha256(self.secret).hexdigest()

    def seed(self, number: int) -> int:
        """Return the seed that stands for the public seed ``number``, in every task."""
        return self._number(str(number))

    def disguise(self, task: str) -> int:
        """Return the number of a task's held-out variant (`llmqueue_gym.workloads.disguise`)."""
        return self._number(f"disguise {task}")

    def _number(self, words: str) -> int:
        drawn = hmac.new(self.secret, words.encode(), hashlib.sha256).digest()
        return int.from_bytes(drawn[:8], "big") >> (64 - _BITS)


def read_held_out(path: Path) -> HeldOut:
    """Read a secret.

    Raises
    ------
    UsageError
        If there is no such file, or it holds too little to be one.
    """
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"held_out={str(path)!r} cannot be read: {error}") from error
    if len(secret) < _LEAST:
        raise UsageError(
            f"held_out={str(path)!r} holds {len(secret)} bytes: a secret has at least {_LEAST}, "
            "for example those of `openssl rand -hex 32`"
        )
    return HeldOut(path.resolve(), secret)
