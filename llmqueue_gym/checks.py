"""Checks of arguments: one spelling each; all raise a `UsageError` that names the argument."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError


def within(value: float, allowed: str) -> bool:
    """Whether a number lies in an interval such as ``"[0, 1)"``; nan lies in none."""
    low, high = (float(end) for end in allowed[1:-1].split(","))
    above = value > low or (value == low and allowed[0] == "[")
    below = value < high or (value == high and allowed[-1] == "]")
    return bool(above and below)


def number(name: str, value: Any, allowed: str, hint: str = "") -> float:
    """Return the value as a float if it is a number of an interval such as ``"(0, inf)"``."""
    real = isinstance(value, int | float | np.integer | np.floating)
    try:
        found = float(value) if real and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond all floats
        found = math.inf if value > 0 else -math.inf
    if not within(found, allowed):
        raise UsageError(f"{name}={value!r} must be a number in {allowed}{hint}")
    return found


def count(name: str, value: Any, minimum: int = 1) -> int:
    """Return the value as an int of at least ``minimum``."""
    try:
        found = operator.index(value)
    except TypeError:
        found = minimum - 1
    if isinstance(value, bool) or found < minimum:
        raise UsageError(f"{name}={value!r} must be an integer of at least {minimum}")
    return found


def array(value: Any) -> NDArray[Any]:
    """Return the value as an array; one of objects where rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array(None, dtype=object)


def flag(name: str, value: Any) -> bool:
    """Return the value if it is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value!r} must be true or false")
    return value


def choice(name: str, value: Any, known: Iterable[str], hint: str = "") -> str:
    """Return the value if it is one of the known names."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise unknown_name(name, value, names, hint)
    return value


def unknown_name(what: str, name: object, known: Iterable[str], hint: str = "") -> UsageError:
    """Return the error for a name that is not known; the message gives the nearest known one."""
    names = list(known)
    plain = {known.lower(): known for known in reversed(names)}
    word = str(name).lower()
    near = difflib.get_close_matches(word, plain, n=1)
    if not near:  # half of it will do where it begins alike
        alike = [own for own in plain if own[:1] == word[:1]]
        near = difflib.get_close_matches(word, alike, n=1, cutoff=0.5)
    meant = f"did you mean {plain[near[0]]!r}? " if near else ""
    return UsageError(f"{what} {name!r} is not known; {meant}known: {', '.join(names)}{hint}")
