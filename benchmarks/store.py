"""The result store: one JSON file a cell, written atomically, checked when read.

``cells/<key>.json`` holds results, ``failed/<key>.json`` errors, ``run.json`` the last run's plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite import canonical, spec_key

Record = dict[str, Any]


class CorruptResultError(ValueError):
    """A stored file that is truncated, edited, or belongs to another cell."""


class Store:
    """Results of one benchmark run in a folder.

    Parameters
    ----------
    root : Path
        The folder; created when the first file is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def save(self, spec: Mapping[str, Any], payload: Record) -> None:
        """Store a cell's result and forget an earlier failure of it."""
        key = spec_key(spec)
        _write(self.root / "cells" / f"{key}.json", _seal(spec, payload))
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)

    def save_failure(self, spec: Mapping[str, Any], payload: Record) -> None:
        """Store why a cell has no result."""
        _write(self.root / "failed" / f"{spec_key(spec)}.json", _seal(spec, payload))

    def load(self, key: str) -> Record | None:
        """Return the result of a cell, or None if it has not been computed.

        Raises
        ------
        CorruptResultError
            If the file is not what was written for this cell.
        """
        return _read(self.root / "cells" / f"{key}.json", key)

    def load_failure(self, key: str) -> Record | None:
        """Return the error of a failed cell, or None; a damaged error file is an error."""
        try:
            return _read(self.root / "failed" / f"{key}.json", key)
        except CorruptResultError as error:
            return {"error": str(error), "traceback": "", "output": ""}

    def save_run(self, run: Record) -> None:
        """Store the plan of the last run: which cells belong to it and what was skipped."""
        _write(self.root / "run.json", _seal({"run": "plan"}, run))

    def load_run(self) -> Record:
        """Plan of the last run in this folder.

        Raises
        ------
        CorruptResultError
            If the file is damaged.
        FileNotFoundError
            If nothing was run here.
        """
        run = _read(self.root / "run.json", spec_key({"run": "plan"}))
        if run is None:
            raise FileNotFoundError(f"no results in {self.root}: `llmqueue-bench run` writes them")
        return run


def _checksum(payload: Record) -> str:
    return hashlib.sha256(canonical(payload).encode()).hexdigest()


def _seal(spec: Mapping[str, Any], payload: Record) -> Record:
    """Wrap a payload with what is needed to recognise it again."""
    return {
        "key": spec_key(spec),
        "spec": dict(spec),
        "checksum": _checksum(payload),
        "payload": payload,
    }


def _write(path: Path, record: Record) -> None:
    write_text(path, json.dumps(record, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")  # two runners never share it
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path, key: str) -> Record | None:
    """Read a sealed file; None if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise CorruptResultError(f"{path} is not text: {error}") from error
    try:
        record = json.loads(text)
        payload, spec = record["payload"], record["spec"]
        intact = record["checksum"] == _checksum(payload) and isinstance(payload, dict)
        own = record["key"] == key == spec_key(spec)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptResultError(f"{path} is truncated or not a result file ({error!r})") from error
    if not intact:
        raise CorruptResultError(f"{path} was edited: its checksum does not match")
    if not own:
        raise CorruptResultError(f"{path} holds the result of another cell")
    result: Record = {**payload, "spec": spec}
    return result
