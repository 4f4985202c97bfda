"""Data sets in the project's own format: a Parquet file and a small JSON header, in the cache.

Written once by an import, whole or not at all; read by every environment afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.workloads.embeddings import _cache_dir
from llmqueue_gym.workloads.parquet import check_unpacked
from llmqueue_gym.workloads.pool import file_sha256

if TYPE_CHECKING:
    import polars as pl

Tell = Callable[[int], None]
"""Called with how many rows have been read, for progress."""

FORMAT = 1
VECTOR = "vector"
"""Column of ready context vectors."""
POOL, CONVERSATIONS = "pool", "conversations"
_PART = ".import.part"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class DatasetMissingError(FileNotFoundError):
    """A data set that has not been imported on this machine; the message says how to."""


@dataclass(frozen=True)
class Facts:
    """What an importer found, for the header.

    Attributes
    ----------
    kind : str
        ``"pool"``: a row a query with the quality (and cost) of every LLM; ``"conversations"``: a
        row a user turn with the LLM that answered it.
    llms : tuple of str
        Names of the LLMs, sorted.
    rows : int
        Rows of the Parquet file.
    units : mapping
        Unit of every kind of number in it.
    notes : mapping
        What the importer decided: missing cells by LLM, repeated ids, prices, and so on.
    """

    kind: str
    llms: tuple[str, ...]
    rows: int
    units: Mapping[str, str]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """The JSON header beside the Parquet file of a stored data set.

    Attributes
    ----------
    name, source : str
        Name it is stored under, and which importer made it.
    facts : Facts
        See there.
    licence, reference : str
        Licence of the data and where they were published.
    files : tuple of dict
        ``name``, ``bytes`` and ``sha256`` of every official file it was made from.
    parquet : dict
        The same of the Parquet file.
    version : str
        Version of this package that imported it.
    """

    name: str
    source: str
    facts: Facts
    licence: str
    reference: str
    files: tuple[dict[str, Any], ...]
    parquet: dict[str, Any]
    version: str

    @property
    def path(self) -> Path:
        """The Parquet file."""
        return dataset_folder() / str(self.parquet["name"])


def dataset_folder() -> Path:
    """Folder of the stored data sets, inside the cache folder (``LLMQUEUE_GYM_CACHE``)."""
    return _cache_dir() / "datasets"


def check_name(name: str) -> str:
    """Return the name of a data set if it can be a file's, or raise a ValueError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name={name!r} may hold lower-case letters, digits and ._- only")
    return name


def stored_names() -> list[str]:
    """Names of the data sets stored on this machine, sorted."""
    return sorted(
        path.stem for path in dataset_folder().glob("*.json") if not path.name.startswith(".")
    )


def read_header(name: str, source: str | None = None) -> Header:
    """Header of a stored data set.

    Parameters
    ----------
    name : str
        Name it is stored under.
    source : str, optional
        Where it would have to come from, for the advice if it is missing.

    Raises
    ------
    DatasetMissingError
        If there is none of this name.
    ValueError
        If the header is damaged or of another format.
    """
    path = dataset_folder() / f"{check_name(name)}.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("format") != FORMAT:
            raise UsageError("it has another format")
        facts = raw.pop("facts")
        facts["llms"] = tuple(facts["llms"])
        raw["files"] = tuple(raw["files"])
        header = Header(facts=Facts(**facts), **raw)
        if header.name != name or not isinstance(header.parquet["sha256"], str):
            raise UsageError("it belongs to another data set")
    except FileNotFoundError:
        have = ", ".join(stored_names()) or "none"
        alias = "" if name == source else f" --name {name}"
        raise DatasetMissingError(
            f"data set {name!r} is not imported on this machine (imported: {have}); "
            "get its official file and run: "
            f"llmqueue-bench data import {source or 'SOURCE'} PATH{alias}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a header of this version ({error}); import again") from error
    return header


def read_table(
    header: Header, columns: Sequence[str] | None = None, rows: NDArray[np.int64] | None = None
) -> pl.DataFrame:
    """Rows of a stored data set, after a check of the file's SHA-256.

    Parameters
    ----------
    header : Header
        Of the data set; see `read_header`.
    columns : sequence of str, optional
        Only these columns.
    rows : ndarray of int, optional
        Only these rows, in the order of the file; the others are never all in memory.

    Raises
    ------
    ValueError
        If the Parquet file is missing or is not the one that was imported.
    ImportError
        If polars is not installed.
    """
    polars = _polars()
    if not header.path.is_file() or file_facts(header.path)["sha256"] != header.parquet["sha256"]:
        raise UsageError(f"{header.path} is missing or was changed; import {header.name!r} again")
    scan = polars.scan_parquet(header.path)
    if columns is not None:
        scan = scan.select(columns)
    if rows is not None:
        wanted = polars.Series(rows).implode()
        scan = scan.with_row_index("_row").filter(polars.col("_row").is_in(wanted)).drop("_row")
    table: pl.DataFrame = scan.collect(engine="streaming")
    return table


def quality_and_cost(
    header: Header, table: pl.DataFrame
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Quality and cost (None if not recorded) of a pool, shape (rows, LLMs) each."""
    llms = header.facts.llms
    quality = table.select(f"quality:{llm}" for llm in llms).to_numpy().astype(np.float64)
    if "cost" not in header.facts.units:
        return quality, None
    return quality, table.select(f"cost:{llm}" for llm in llms).to_numpy().astype(np.float64)


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Refuse a file that unpacks to far too much, and name the file in polars' errors.

    Raises
    ------
    ValueError
        If the file is either.
    """
    polars = _polars()
    check_unpacked(path)
    try:
        yield
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError) as error:
        raise UsageError(f"{path}: not a complete Parquet file; is it cut off?") from error


# --- writing --------------------------------------------------------------------------------------


def write_pool(
    out: Path,
    source: Path,
    *,
    ids: Sequence[str],
    texts: Sequence[str],
    groups: Sequence[str],
    quality: Mapping[str, NDArray[np.float64]],
    cost: Mapping[str, NDArray[np.float64]] | None,
    columns: Mapping[str, tuple[str, str]],
    notes: Mapping[str, Any] | None = None,
    vectors: NDArray[np.float32] | None = None,
) -> Facts:
    """Check a table of scores and write it as Parquet; see `Facts`.

    A missing score (NaN) is 0, as is the cost beside it; how many there are goes into the notes. An
    LLM without a single score is left out, and named there.

    Parameters
    ----------
    out, source : Path
        Where the Parquet goes, and the official file, for messages.
    ids, texts, groups : sequence of str
        Id, text and benchmark of each query.
    quality, cost : mapping of str to ndarray
        Scores in [0, 1] and costs in USD (None: not recorded) of each LLM, shape (rows,).
    columns : mapping of str to (str, str)
        Names of an LLM's two columns in the official file, for messages.
    notes : mapping, optional
        More notes for the header.
    vectors : ndarray of float32, shape (rows, d), optional
        Ready context vectors; where there are none, contexts are made of the texts.

    Raises
    ------
    ValueError
        If a score or cost is out of range; the message names file, row and column.
    """
    pl = _polars()
    left_out = [llm for llm, values in quality.items() if np.isnan(values).all()]
    llms = tuple(llm for llm in sorted(quality) if llm not in left_out)
    if not llms:
        raise UsageError(f"{source}: no LLM has a single score")
    series = [pl.Series("id", ids), pl.Series("text", texts), pl.Series("group", groups)]
    if vectors is not None:
        kind = pl.List(pl.Float32)
        series.append(pl.Series(VECTOR, vectors.tolist(), dtype=kind))
    missing = {}
    for llm in llms:
        absent = np.isnan(quality[llm])
        missing[llm] = int(absent.sum())
        scores = np.where(absent, 0.0, quality[llm])
        _check(scores, 1.0, source, columns[llm][0])
        series.append(pl.Series(f"quality:{llm}", scores))
        if cost is not None:
            prices = np.where(absent & np.isnan(cost[llm]), 0.0, cost[llm])
            _check(prices, np.inf, source, columns[llm][1])
            series.append(pl.Series(f"cost:{llm}", prices))
    pl.DataFrame(series).write_parquet(out)
    units = {"quality": "score in [0, 1]"} | ({} if cost is None else {"cost": "USD per query"})
    found = {
        "missing_scores": {llm: count for llm, count in missing.items() if count},
        "left_out": sorted(left_out),
        "repeated_ids": sum(count - 1 for count in Counter(ids).values()),
    }
    return Facts(POOL, llms, len(ids), units, {**found, **(notes or {})})


def _check(values: NDArray[np.float64], high: float, source: Path, column: str) -> None:
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0) & (values <= high)))
    if wrong.size:
        value = values[wrong[0]]
        what = "is missing" if np.isnan(value) else f"is {value}, expected a number in [0, {high}]"
        raise UsageError(f"{source}, row {wrong[0] + 1}, column {column!r}: the value {what}")


def store(
    name: str,
    source: str,
    files: Sequence[Path],
    convert: Callable[[Path], Facts],
    *,
    licence: str,
    reference: str,
) -> Header:
    """Convert official files and store the result under a name, whole or not at all.

    The header is written last and by a rename: until then nobody sees anything. What a killed
    import leaves is cleared away by the next one (and by `clear_leftovers`); an interrupted or
    terminated one clears up itself. A data set of the same name is replaced.

    Parameters
    ----------
    name, source : str
        See `Header`.
    files : sequence of Path
        The official files.
    convert : callable
        Writes the Parquet file at the path it is given and returns the facts.
    licence, reference : str
        See `Header`.
    """
    from llmqueue_gym import __version__

    folder = dataset_folder()
    with _lock(folder, name), _cleared(folder / _PART) as part:
        table = part / "table.parquet"
        facts = convert(table)
        made = file_facts(table)
        made["name"] = f"{check_name(name)}-{made['sha256'][:16]}.parquet"
        header = Header(
            name=name,
            source=source,
            facts=facts,
            licence=licence,
            reference=reference,
            files=tuple(file_facts(path) for path in files),
            parquet=made,
            version=__version__,
        )
        draft = part / "header.json"
        draft.write_text(json.dumps({"format": FORMAT} | asdict(header), indent=1) + "\n", "utf-8")
        os.replace(table, header.path)
        os.replace(draft, folder / f"{name}.json")
        _sweep(folder)
    return header


def remove(name: str) -> None:
    """Delete a stored data set."""
    header = read_header(name)
    with _lock(dataset_folder(), name):
        (dataset_folder() / f"{name}.json").unlink()
        header.path.unlink(missing_ok=True)


def clear_leftovers() -> None:
    """Delete what killed imports left behind, unless an import is running right now."""
    folder = dataset_folder()
    if not folder.is_dir():
        return
    try:
        with _lock(folder, ""):
            shutil.rmtree(folder / _PART, ignore_errors=True)
            _sweep(folder)
    except OSError:  # an import is running, or the folder is not ours to write to
        return


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sweep(folder: Path) -> None:
    """Delete Parquet files that no header names."""
    named = set()
    for name in stored_names():
        try:
            named.add(read_header(name).parquet["name"])
        except ValueError:
            return  # a header that cannot be read may name any of them
    for path in folder.glob("*.parquet"):
        if path.name not in named:
            path.unlink(missing_ok=True)


@contextmanager
def _cleared(part: Path) -> Iterator[Path]:
    """Give an empty working folder and remove it afterwards, also on SIGTERM."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _terminated(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """One import at a time: whoever holds the lock may clear the working folder."""
    with needing("a stored data set", "filelock", "data"):
        from filelock import FileLock, Timeout
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another import is running in {folder}; import {name!r} when it is done"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _polars() -> Any:
    with needing("a stored data set", "polars", "data"):
        import polars
    return polars
