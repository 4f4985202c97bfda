"""TOML that came from outside: one reader, and one error for all that can be wrong with it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from llmqueue_gym.errors import UsageError

DEEPEST = 32
"""Tables and lists inside each other: deeper ones are refused before anybody walks them."""


def parse_toml(content: bytes, what: str) -> dict[str, Any]:
    """Turn the content of a TOML file into a document.

    Parameters
    ----------
    content : bytes
    what : str
        What an error calls the file.

    Raises
    ------
    UsageError
        If it is not UTF-8, not TOML, nested too deeply, or has a number of too many digits.
    """
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not valid TOML: it is not UTF-8 ({error})") from error
    except RecursionError as error:
        raise _too_deep(what) from error
    except ValueError as error:  # TOMLDecodeError too
        raise UsageError(f"{what} is not valid TOML: {error}") from error
    inside: list[Any] = [document]
    for _ in range(DEEPEST):
        inside = [part for value in inside for part in _parts(value)]
    if inside:
        raise _too_deep(what)
    return document


def _parts(value: object) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep(what: str) -> UsageError:
    return UsageError(
        f"{what} is not valid TOML: it is nested too deeply (at most {DEEPEST} tables and lists)"
    )
