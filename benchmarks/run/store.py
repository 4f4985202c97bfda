"""The result store: one JSON file a cell, written whole or not at all, checked when read.

``cells/<key>.json`` holds results, ``failed/<key>.json`` errors, ``run.json`` the last run's plan.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from secrets import token_hex
from time import strftime
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from benchmarks.plan.suite import canonical, checksum, spec_key
from llmqueue_gym.errors import MissingPackageError, UsageError

Record = dict[str, Any]

_BATCH = 500  # files asked for at once: hides the latency of an object store


class CorruptResultError(ValueError):
    """A stored file that is truncated, edited, or belongs to another cell."""


class StoreBusyError(UsageError):
    """Another runner is at work on the store."""


class StoreLinkError(OSError):
    """A symbolic link in a results folder where the store's own file or folder should be."""


class StoreWriteError(OSError):
    """A result that could not be stored: disk full, no permission, connection lost."""


class Store:
    """Results of one benchmark run in a folder, here or behind a URL.

    A file is written whole or not at all: to a temporary name, then renamed, in a folder; with one
    PUT in an object store, which is as atomic. On any other remote file system a write that breaks
    off may leave a part; like every damaged file it is noticed by its checksum and recomputed.

    Parameters
    ----------
    root : Path or str
        A folder, created when the first file is written, or a URL that fsspec knows
        (``s3://bucket/folder``; ``file://`` is the folder it names).
    """

    def __init__(self, root: Path | str) -> None:
        text = str(root)
        scheme = text.partition("://")[0] if "://" in text else ""
        self._files: _Files
        if scheme in ("", "file"):
            self._files = _Folder(_path_of(text) if scheme else Path(root))
        else:
            self._files = _Remote(text)

    def __str__(self) -> str:
        return str(self._files)

    @property
    def root(self) -> Path | None:
        """The folder, or None if the store is behind a URL."""
        return self._files.path if isinstance(self._files, _Folder) else None

    # --- results ------------------------------------------------------------------------------

    def save(self, spec: Mapping[str, Any], payload: Record) -> None:
        """Store a cell's result and forget an earlier failure of it."""
        key = spec_key(spec)
        self._write(f"cells/{key}.json", _seal(spec, key, payload))
        self._files.remove(f"failed/{key}.json")

    def save_failure(self, spec: Mapping[str, Any], payload: Record) -> None:
        """Store why a cell has no result."""
        key = spec_key(spec)
        self._write(f"failed/{key}.json", _seal(spec, key, payload))

    def load(self, key: str) -> Record | None:
        """Return the result of a cell, or None if it has not been computed.

        Raises
        ------
        CorruptResultError
            If the file is not what was written for this cell.
        """
        name = f"cells/{key}.json"
        return self._open(name, self._files.read([name])[0], key)

    def load_many(
        self, keys: Iterable[str]
    ) -> Iterator[tuple[str, Record | CorruptResultError | None]]:
        """Yield every key with what `load` returns for it, or the error it raises."""
        known = self.keys()
        rest = iter(keys)
        while batch := list(islice(rest, _BATCH)):
            here = [key for key in batch if key in known]
            texts = dict(
                zip(here, self._files.read([f"cells/{key}.json" for key in here]), strict=True)
            )
            for key in batch:
                try:
                    yield key, self._open(f"cells/{key}.json", texts.get(key), key)
                except CorruptResultError as error:
                    yield key, error

    def load_failure(self, key: str) -> Record | None:
        """Return the error of a failed cell, or None; a damaged error file is an error."""
        name = f"failed/{key}.json"
        try:
            return self._open(name, self._files.read([name])[0], key)
        except CorruptResultError as error:
            return {"error": str(error), "traceback": "", "output": ""}

    def keys(self) -> set[str]:
        """Keys of all stored results, of this run and of earlier ones."""
        return self._files.stems("cells")

    # --- the run ------------------------------------------------------------------------------

    def save_run(self, run: Record) -> None:
        """Store the plan of the last run: which cells belong to it and what was skipped."""
        packed = {**run, "cells": _pack(run["cells"])}
        self._write("run.json", _seal(_RUN, spec_key(_RUN), packed))

    def load_run(self) -> Record:
        """Plan of the last run in this folder.

        Raises
        ------
        CorruptResultError
            If the file is damaged.
        FileNotFoundError
            If nothing was run here.
        """
        run = self._open("run.json", self._files.read(["run.json"])[0], spec_key(_RUN))
        if run is None:
            named, packed = Path("results", str(self)), Path(f"{self}.json.gz")
            hint = "`llmqueue-bench run` writes them"
            if (named / "run.json").is_file():
                hint = f"did you mean {named}?"  # a suite's name
            elif packed.is_file():
                hint = f"did you mean {packed}?"  # an exported run
            raise FileNotFoundError(f"no results in {self}: {hint}")
        try:
            return {**run, "cells": _unpack(run["cells"])}
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise CorruptResultError(
                f"{self}/run.json has a plan of another version: the same `llmqueue-bench run` "
                "writes it again, and computes only what is missing"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runners out while this one is at work.

        The operating system frees the lock of a process that ends, however it ends. Object stores
        have no locks: two runners on one of them may compute a cell twice, with equal results.

        Raises
        ------
        StoreBusyError
            If another runner is at work; the message says which.
        StoreWriteError
            If nothing can be written there.
        """
        with self._files.lock():
            yield

    # --- files --------------------------------------------------------------------------------

    def _write(self, name: str, record: Record) -> None:
        text = json.dumps(record, allow_nan=False)
        try:
            self._files.write(name, text)
        except StoreLinkError:
            raise
        except OSError as error:
            raise StoreWriteError(error.errno, f"cannot write {name} in {self}: {error}") from error

    def _open(self, name: str, content: bytes | None, key: str) -> Record | None:
        """Break the seal of a file's content; None if there is none."""
        if content is None:
            return None
        path = f"{self}/{name}"
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise CorruptResultError(f"{path} is not text: {error}") from error
        try:
            record = json.loads(text)
            payload, spec = record["payload"], record["spec"]
            intact = record["checksum"] == checksum(payload) and isinstance(payload, dict)
            own = record["key"] == key == spec_key(spec)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptResultError(
                f"{path} is truncated or not a result file ({error!r})"
            ) from error
        if not intact:
            raise CorruptResultError(f"{path} was edited: its checksum does not match")
        if not own:
            raise CorruptResultError(f"{path} holds the result of another cell")
        result: Record = {**payload, "spec": spec}
        return result


def _path_of(url: str) -> Path:
    """Return the folder that a ``file://`` URL names."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(
            f"results={url!r} names the host {parts.netloc!r}: a folder of this machine is "
            f"file:///PATH with three slashes, or simply {parts.netloc}{parts.path}"
        )
    return Path(url2pathname(parts.path))


_RUN = {"run": "plan"}


def _seal(spec: Mapping[str, Any], key: str, payload: Record) -> Record:
    """Wrap a payload with what is needed to recognise it again."""
    return {"key": key, "spec": dict(spec), "checksum": checksum(payload), "payload": payload}


def _pack(specs: Sequence[Mapping[str, Any]]) -> Record:
    """Write every distinct value once: a million cells share a few tasks and agents."""
    fields = sorted({field for spec in specs for field in spec})
    values: list[Any] = []
    place: dict[str, int] = {}
    seen: dict[int, int] = {}  # by identity: the specs of a plan share their parts
    rows = []
    for spec in specs:
        row = []
        for field in fields:
            value = spec.get(field)
            if (number := seen.get(id(value))) is None:
                text = canonical(value)
                if (number := place.get(text)) is None:
                    number = place[text] = len(values)
                    values.append(value)
                seen[id(value)] = number
            row.append(number)
        rows.append(row)
    return {"fields": fields, "values": values, "rows": rows}


def _unpack(packed: Record) -> list[Record]:
    fields, values = packed["fields"], packed["values"]
    return [dict(zip(fields, map(values.__getitem__, row), strict=True)) for row in packed["rows"]]


# --- where the files are --------------------------------------------------------------------------


class _Files(Protocol):
    """Text files below a root; names have forward slashes."""

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Contents, None where there is no such file."""
        ...

    def write(self, name: str, text: str) -> None: ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def stems(self, folder: str) -> set[str]:
        """Names of the folder's ``.json`` files without the ending."""
        ...

    def lock(self) -> Any: ...


class _Folder:
    """A folder on this machine.

    What runs in a cell, and whoever shares the folder, may put links there: neither the lock nor
    ``cells`` or ``failed`` is followed elsewhere, and temporary names cannot be guessed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._read(self._own(name)) for name in names]

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        write_text(self._own(name), text)

    def remove(self, name: str) -> None:
        self._own(name).unlink(missing_ok=True)

    def stems(self, folder: str) -> set[str]:
        try:
            with os.scandir(self._own(f"{folder}/")) as entries:
                return {
                    entry.name[:-5]
                    for entry in entries
                    if entry.name.endswith(".json") and not entry.name.startswith(".")
                }
        except FileNotFoundError:
            return set()

    @contextmanager
    def lock(self) -> Iterator[None]:
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            handle = self._open_lock()
        with handle:
            try:
                _lock(handle.fileno())
            except OSError:
                handle.seek(0)
                holder = handle.read().decode(errors="replace").strip()
                raise StoreBusyError(
                    f"results folder {self} is in use by {holder or 'a runner'}: "
                    "wait for it, or choose another --results"
                ) from None
            with self._writing():
                handle.truncate(0)
                started = strftime("%Y-%m-%d %H:%M:%S")
                holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}\n"
                handle.write(holder.encode())
                for folder in map(self._own, ("", "cells/", "failed/")):
                    for litter in folder.glob(".*.tmp"):  # of a runner killed while writing
                        litter.unlink(missing_ok=True)
            yield

    def _own(self, name: str) -> Path:
        """Return the path of a file or, with a slash at its end, of a folder of the store."""
        parent = name.rpartition("/")[0]
        if parent and (self.path / parent).is_symlink():
            raise StoreLinkError(
                f"{self.path / parent} is a symbolic link, which would lead out of the results "
                "folder: remove it, or choose another --results"
            )
        return self.path / name

    def _open_lock(self) -> BinaryIO:
        path = self.path / ".lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        try:
            return os.fdopen(os.open(path, flags, 0o666), "a+b", buffering=0)
        except OSError as error:
            if path.is_symlink():
                raise StoreLinkError(
                    f"{path} is a symbolic link, which would lead out of the results folder: "
                    "remove it, or choose another --results"
                ) from error
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError, StoreLinkError):  # another folder is meant
            raise
        except OSError as error:
            message = f"cannot write .lock in {self}: {error}"
            raise StoreWriteError(error.errno, message) from error


def _lock(handle: int) -> None:
    """Lock an open file or raise OSError if somebody else holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class _Remote:
    """A folder behind a URL, through fsspec."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingPackageError(
                f"results at {url} need fsspec and the package of its protocol: "
                'pip install "llmqueue_gym[ray]" (and s3fs, gcsfs, adlfs, ...)'
            ) from error
        self.url = url.rstrip("/")
        try:
            self._fs, self._base = fsspec.core.url_to_fs(self.url)
        except ValueError as error:
            raise UsageError(f"results={url!r}: {error}") from error
        except ImportError as error:  # the protocol's package
            raise MissingPackageError(f"results={url!r}: {error}") from error

    def __str__(self) -> str:
        return self.url

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        paths = [f"{self._base}/{name}" for name in names]
        if not paths:
            return []
        found = self._fs.cat(paths, on_error="return")
        return [self._content(found.get(path)) for path in paths]

    @staticmethod
    def _content(found: bytes | Exception | None) -> bytes | None:
        if isinstance(found, Exception):
            if isinstance(found, FileNotFoundError):
                return None
            raise found
        return found

    def write(self, name: str, text: str) -> None:
        path = f"{self._base}/{name}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, text.encode())

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError, KeyError):
            self._fs.rm_file(f"{self._base}/{name}")

    def stems(self, folder: str) -> set[str]:
        self._fs.invalidate_cache()
        try:
            names = self._fs.ls(f"{self._base}/{folder}", detail=False)
        except FileNotFoundError:
            return set()
        return {
            name.rpartition("/")[2].removesuffix(".json")
            for name in names
            if name.endswith(".json")
        }

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield


def write_text(path: Path, text: str) -> None:
    """Write text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:  # never a file or link that is there
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
