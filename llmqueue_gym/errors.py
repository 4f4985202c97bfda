"""The errors that this project raises on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """What a user asked for cannot be done; the message names it, the value and the fix.

    Every deliberate message about an argument, a file or an option is one, and the command prints
    it as one line. Any other error is a fault and keeps its traceback.
    """


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
