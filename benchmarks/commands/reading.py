"""How a log is read: the options that ``llmqueue-bench logs`` and ``choose`` share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands.options import read_pairs
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.embeddings import ContextMethod, read_contexts
from llmqueue_gym.workloads.encoder import TextEncoder
from llmqueue_gym.workloads.prices import load_prices
from llmqueue_gym.workloads.sources.log_file import Log, read_log


@dataclass(frozen=True)
class Reading:
    """Options of a log, as they are typed.

    Attributes
    ----------
    path : Path
    column : sequence of str
        ``FIELD=NAME``, or JSON files of such names.
    clip_scores : bool
    prices : Path, optional
        JSON file of list prices.
    contexts : str, optional
        How texts become contexts.
    """

    path: Path
    column: Sequence[str] = ()
    clip_scores: bool = False
    prices: Path | None = None
    contexts: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Fields and the names of their columns."""
        return read_columns(self.column)

    @property
    def how(self) -> ContextMethod | None:
        """How texts become contexts, checked."""
        return None if self.contexts is None else read_contexts(self.contexts)

    def read(self) -> Log:
        """Return the log."""
        listed = None if self.prices is None else load_prices(self.prices)
        if self.contexts is not None:
            read_contexts(self.contexts)  # before a long log is read
        return read_log(str(self.path), self.columns, self.clip_scores, listed)

    def vectors(self, log: Log) -> NDArray[np.float32]:
        """Return the contexts of its requests."""
        return log.contexts(how=self.how)

    def encoder(self, log: Log) -> TextEncoder | None:
        """Return what turns texts to come into such contexts; None if the log has no texts."""
        return None if log.texts is None else log.encoder(how=self.how)

    def source(self, path: str) -> dict[str, Any]:
        """Return the workload of the log's requests, at a path, for a suite."""
        found: dict[str, Any] = {"source": "logs", "path": path}
        found |= {"columns": self.columns} if self.column else {}
        found |= {"clip_scores": True} if self.clip_scores else {}
        found |= {} if self.prices is None else {"prices": load_prices(self.prices)}
        return found | ({} if self.contexts is None else {"contexts": self.contexts})

    def command(self, verb: str, *words: str) -> str:
        """Return a command about the log, to be pasted."""
        typed = [*words, *(word for item in self.column for word in ("--column", item))]
        typed += ["--clip-scores"] * self.clip_scores
        typed += [] if self.prices is None else ["--prices", str(self.prices)]
        typed += [] if self.contexts is None else ["--contexts", self.contexts]
        return f"llmqueue-bench {verb} {shlex.join([str(self.path), *typed])}"


def read_columns(items: Sequence[str]) -> dict[str, str]:
    """Return fields and the names of their columns, of pairs and of JSON files of such pairs."""
    found: dict[str, str] = {}
    for item in items:
        if item.endswith(".json") and "=" not in item:
            found |= _column_file(Path(item))
        else:
            found |= read_pairs("--column", "FIELD=NAME, for example query=prompt", [item])
    return found


def _column_file(path: Path) -> Mapping[str, str]:
    """Read a JSON object {FIELD: NAME}; `read_log` checks what it says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--column {str(path)!r}: not a JSON file ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"--column {str(path)!r}: expected {{FIELD: NAME}}")
    return found
