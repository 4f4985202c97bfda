"""Sources of queries, one file a data set.

A file NAME.py of this folder with an entry ``SOURCE = Source("NAME", ...)`` is a workload.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


class Sources(Mapping[str, Source]):
    """The entries of this folder's files by name, each file imported when its entry is asked for.

    Queries from a formula need no reader of files: to import them all takes as long as Gymnasium.

    Raises
    ------
    ValueError
        Of a file whose entry has another name than it.
    """

    def __init__(self) -> None:
        self._files = [module.name for module in pkgutil.iter_modules(__path__)]

    def __getitem__(self, name: str) -> Source:
        file = importlib.import_module(f"{__name__}.{name}") if name in self._files else None
        entry = getattr(file, "SOURCE", None)
        if not isinstance(entry, Source):
            raise KeyError(name)
        if entry.name != name:
            raise UsageError(f"{name}.py: its source has the name {entry.name!r}; use {name!r}")
        return entry

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._files if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


SOURCES = Sources()
