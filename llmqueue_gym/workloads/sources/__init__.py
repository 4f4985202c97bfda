"""Sources of queries, one file a data set.

A file of this folder with an entry ``SOURCE = Source("NAME", ...)`` is a workload by that name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmqueue_gym.errors import UsageError

if TYPE_CHECKING:
    from llmqueue_gym.workloads.stored import Facts, Tell


class Reader(Protocol):
    """Converts the official files of a data set."""

    def __call__(
        self,
        files: Sequence[Path],
        out: Path,
        prices: Path | None = None,
        tell: Tell | None = None,
    ) -> Facts:
        """Write ``out``, usually by `llmqueue_gym.workloads.stored.write_pool`."""


@dataclass(frozen=True)
class Source:
    """Where queries come from: a workload of its own, a published data set to import, or both.

    Attributes
    ----------
    name : str
        Name of the workload.
    workload : callable, optional
        Options -> workload; default the pool that the imported files hold.
    fingerprint : callable, optional
        Options -> hash of the data; default that of what was imported.
    reader : callable, optional
        Converts the official files, if there are any.
    suffixes : tuple of str
        How their names end.
    repository : str
        Id of the data set on the Hugging Face hub.
    patterns : tuple of str
        Which of the repository's files are needed.
    licence, reference : str
        As its card states them.
    """

    name: str
    workload: Callable[..., Any] | None = None
    fingerprint: Callable[..., str] | None = None
    reader: Reader | None = None
    suffixes: tuple[str, ...] = ()
    repository: str = ""
    patterns: tuple[str, ...] = ()
    licence: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if self.reader is None and (self.workload is None or self.fingerprint is None):
            raise UsageError(
                f"source {self.name!r} has no files to import; give it a reader, "
                "or a workload and its fingerprint"
            )


@cache
def sources() -> Mapping[str, Source]:
    """All entries of this folder's files by name.

    Raises
    ------
    ValueError
        If two files have the same name.
    """
    found: dict[str, Source] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        entry = getattr(importlib.import_module(module.name), "SOURCE", None)
        if isinstance(entry, Source) and found.setdefault(entry.name, entry) is not entry:
            raise UsageError(f"{module.name}: name {entry.name!r} is taken; choose another")
    return found
