"""The errors that this project raises on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

Drawn = TypeVar("Drawn")

DRAWS = 200
"""Instances that a reset draws before it says that none can be played."""


class UsageError(ValueError):
    """What a user asked for cannot be done; the message names it, the value and the fix.

    Every deliberate message about an argument, a file or an option is one, and the command prints
    it as one line. Any other error is a fault and keeps its traceback.
    """


class UnplayableError(UsageError):
    """The instance that was drawn cannot be played as asked; another one may."""


def first_playable(draw: Callable[[], Drawn]) -> Drawn:
    """Return the first of at most ``DRAWS`` draws that can be played.

    So a training does not end at the reset that meets one of the few instances that cannot.
    """
    for _ in range(DRAWS - 1):
        with suppress(UnplayableError):
            return draw()
    return draw()


class MissingPackageError(UsageError, ImportError):
    """An optional package is needed and is not installed; the message says what to install."""


@contextmanager
def needing(what: str, package: str, extra: str) -> Iterator[None]:
    """Say what to install if an import inside fails: the package's extra of this project."""
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f'{what} needs {package}: pip install "llmqueue_gym[{extra}]"'
        ) from error
