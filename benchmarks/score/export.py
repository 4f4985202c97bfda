"""A whole run in one small file: what the reports read, fit to be committed beside the code.

`export_run` writes it from a results folder; `open_results` reads either of the two.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import llmqueue_gym
from benchmarks.plan.suite import canonical, checksum, spec_key
from benchmarks.run.store import CorruptResultError, Store, write_bytes
from benchmarks.score.intervals import fitted_points
from benchmarks.score.signing import Signature, is_signed, public_key, sign
from llmqueue_gym.errors import UsageError

Record = dict[str, Any]

FORMAT = "llmqueue-bench export"
SCHEMA = 2
"""Version of what `docs/scoring.md` says of the file. 2 added ``schema`` and the ``warnings``."""

MOST_UNPACKED = 1_000_000_000
"""Bytes that an export may unpack to."""

SIGNER = "signer"
"""What a signed run says of its key, so that a lost signature is noticed."""

_FORMAT_1 = f"{FORMAT} 1"  # of files without a schema
_MOST_COUNTS = 10_000_000  # of a cell's traffic: its file lists only those that are not 0
_NOT_ONE = (EOFError, OSError, zlib.error, ValueError, KeyError, TypeError, RecursionError)

_EARLY_POINTS = 20  # of a curve, before its last decade
_CURVE_UNITS = 1e5  # a curve is stored in whole units, at most so many
_DIGITS = 6  # significant digits of metrics


def open_results(path: Path | str) -> Store | ExportedRun:
    """Return the results at a path: a results folder (or its URL), or an exported file."""
    if "://" not in str(path) and Path(path).is_file():
        return ExportedRun(Path(path))
    return Store(path)


class ExportedRun:
    """A run read from one file; to the reports it is a results folder.

    Parameters
    ----------
    path : Path
        What `export_run` wrote.
    content : bytes, optional
        Its content, where it has been read already.
    most : int
        Bytes that it may unpack to.

    Raises
    ------
    CorruptResultError
        If the file is truncated, was edited, is no export, or one of a newer schema.
    OSError
        If it cannot be read.
    """

    def __init__(self, path: Path, content: bytes | None = None, most: int = MOST_UNPACKED) -> None:
        self.root = Path(path)
        packed = self.root.read_bytes() if content is None else content
        try:
            document = json.loads(_decompress(packed, most))
            _check_schema(path, document)
            intact = document["checksum"] == checksum(document["content"])
            self._checksum = str(document["checksum"])
            given = document.get("signature")
            self.signature = None if given is None else Signature(*map(str, given))
        except CorruptResultError:
            raise
        except _NOT_ONE as error:
            raise CorruptResultError(f"{path} is truncated or no export ({error!r})") from error
        if not intact:
            raise CorruptResultError(f"{path} was edited: its checksum does not match")
        try:
            self._run, self._cells, self._failures = _unpack(document["content"])
        except (*_NOT_ONE, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
            raise CorruptResultError(
                f"{path} does not hold what an export does: {error!r}"
            ) from error

    def load_run(self) -> Record:
        """Return the plan of the run."""
        return self._run

    def check_signature(self) -> Signature | None:
        """Return who signed the file, None if nobody did.

        Raises
        ------
        CorruptResultError
            If the signature is not that of this content, or is gone.
        """
        signature, signer = self.signature, self._run.get(SIGNER)
        if signature and not is_signed(_message(self._checksum), signature):
            raise CorruptResultError(f"{self.root} was changed after it was signed")
        if signer and (signature is None or signature.key != signer):
            raise CorruptResultError(
                f"{self.root} names the key {str(signer)[:12]}, and has no signature by it"
            )
        return signature

    def load(self, key: str) -> Record | None:
        """Return the result of a cell, or None if it has none."""
        return self._cells.get(key)

    def load_many(self, keys: Iterable[str]) -> Iterator[tuple[str, Record | None]]:
        """Yield every key with the result of its cell, or None."""
        for key in keys:
            yield key, self._cells.get(key)

    def load_failure(self, key: str) -> Record | None:
        """Return the error of a failed cell, or None."""
        return self._failures.get(key)


class Exportable(Protocol):
    """What can be exported: a `Store`, an `ExportedRun`, or a part of one."""

    def load_run(self) -> Record:
        """Return the plan of the run."""
        ...

    def load(self, key: str) -> Record | None:
        """Return the result of a cell, or None."""
        ...

    def load_failure(self, key: str) -> Record | None:
        """Return the error of a failed cell, or None."""
        ...


def export_run(
    store: Exportable, path: Path, *, digests: bool = False, key: Path | None = None
) -> int:
    """Write the last run of a results folder into one file; return its size in bytes.

    Metrics keep six significant digits, curves about 40 points (those that exponents are fitted to
    among them); errors keep their message. The same results give the same bytes.

    Parameters
    ----------
    store : Store or ExportedRun
        Where the results are.
    path : Path
        File to write.
    digests : bool
        Keep `result_digest` of every cell, so that the file can be verified bit for bit.
    key : Path, optional
        Private key that signs the file (`benchmarks.score.signing`).

    Raises
    ------
    CorruptResultError
        If a result is damaged: running the suite again computes it anew.
    """
    content = _pack(store, digests)
    if key is not None:
        content["run"][SIGNER] = public_key(key)
    own = checksum(content)
    document = {"format": FORMAT, "schema": SCHEMA, "checksum": own, "content": content}
    if key is not None:
        document["signature"] = list(sign(key, _message(own)))
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as stream:
        stream.write(canonical(document).encode())
    write_bytes(path, buffer.getvalue())
    return len(buffer.getvalue())


def _check_schema(path: Path, document: Mapping[str, Any]) -> None:
    """Refuse what this version cannot read."""
    schema = 1 if document["format"] == _FORMAT_1 else document["schema"]
    if document["format"] not in (FORMAT, _FORMAT_1) or type(schema) is not int or schema < 1:
        raise UsageError(f"format {document['format']!r}, schema {schema!r}")
    if schema > SCHEMA:
        raise CorruptResultError(
            f"{path} has the schema {schema}, and llmqueue_gym {llmqueue_gym.__version__} reads "
            f"exports up to schema {SCHEMA}: upgrade llmqueue_gym, or export the run with this "
            "version"
        )


def _message(own: str) -> bytes:
    """Return what the signature of an export is over."""
    return f"{FORMAT}\n{own}".encode()


def _decompress(packed: bytes, most: int) -> bytes:
    """Unpack a gzip file of at most so many bytes."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UsageError(f"it unpacks to more than {most:,} bytes")
    return content


# --- packing --------------------------------------------------------------------------------------


class Shared:
    """Values that many cells or rows share, each listed once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._place: dict[str, int] = {}

    def __call__(self, value: Any) -> int:
        """Return the place of a value in the list."""
        place = self._place.setdefault(canonical(value), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def _pack(store: Exportable, digests: bool) -> Record:
    """Group the cells that differ in the seed only; a figure of a group is a list over seeds."""
    run = store.load_run()
    shared = Shared()
    groups: dict[str, list[Record]] = {}
    for spec in run["cells"]:
        own = {name: value for name, value in spec.items() if name != "seed"}
        groups.setdefault(canonical(own), []).append(spec)
    packed = [_pack_group(specs, store, shared, digests) for specs in groups.values()]
    trainings = [_rounded_lists(training) for training in run.get("trainings", [])]
    kept = {name: value for name, value in run.items() if name not in ("cells", "spec", SIGNER)}
    return {
        "run": kept | ({"trainings": trainings} if trainings else {}),
        "shared": shared.values,
        "groups": packed,
    }


def _pack_group(
    specs: Sequence[Mapping[str, Any]], store: Exportable, shared: Shared, digests: bool
) -> Record:
    spec = {name: shared(value) for name, value in sorted(specs[0].items()) if name != "seed"}
    group: Record = {"spec": spec, "seeds": [s["seed"] for s in specs], "done": [], "failed": []}
    records = []
    for one in specs:
        key = spec_key(one)
        if (record := store.load(key)) is not None:
            group["done"].append(one["seed"])
            records.append(record)
        elif (failure := store.load_failure(key)) is not None:
            origin = shared(failure.get("provenance"))
            group["failed"].append([one["seed"], failure["error"], origin])
    if records:
        group["provenance"] = [shared(record["provenance"]) for record in records]
        for part in ("metrics", "timing"):
            group[part] = {
                name: [rounded(record[part][name]) for record in records]
                for name in records[0][part]
            }
        t = np.array(records[0]["curve"]["t"])
        kept = _kept_points(t)
        group["t"] = shared(t[kept].tolist())
        group["curve"] = {
            name: [_pack_curve(np.array(record["curve"][name])[kept]) for record in records]
            for name in records[0]["curve"]
            if name != "t"
        }
        if "traffic" in records[0]:
            group["traffic"] = [_pack_traffic(record["traffic"], shared) for record in records]
        if any("warnings" in record for record in records):
            group["warnings"] = [shared(record.get("warnings", [])) for record in records]
        if any("wall" in record for record in records):
            group["wall"] = [record.get("wall") for record in records]
        if digests or "sha256" in records[0]:
            group["sha256"] = [r.get("sha256") or result_digest(r) for r in records]
        if "llms" in records[0]:
            group["llms"] = [shared(_rounded_lists(record["llms"])) for record in records]
        if "spent" in records[0]:
            group["spent"] = [shared(record["spent"]["slots"]) for record in records]
            parts = {name: records[0]["spent"][name] for name in ("places", "groups")}
            group["of_spent"] = shared(parts)
        if "fleet" in records[0]:  # what one run looks like; of the others it is not kept
            group["fleet"] = shared(records[0]["fleet"])
    return group


NOT_COMPARED = ("spec", "timing", "provenance", "reads", "llms", "wall", "sha256")
"""Parts of a result that are not the same again, or say where it comes from."""


def result_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of all of a result that must come out again, bit for bit."""
    return checksum({name: part for name, part in record.items() if name not in NOT_COMPARED})


def rounded(value: Any) -> Any:
    """Return a metric as an export keeps it."""
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


_WHOLE = ("traffic", "warnings", "spent", "fleet")
"""What is kept as it is; a ``fleet`` of one cell of a group only."""


def as_exported(record: Mapping[str, Any]) -> Record:
    """Return what an export keeps of a result, as it is read again."""
    t = np.array(record["curve"]["t"])
    kept = _kept_points(t)
    curve = {
        name: _unpack_curve(_pack_curve(np.array(values)[kept]))
        for name, values in record["curve"].items()
        if name != "t"
    }
    return {
        "metrics": {name: rounded(value) for name, value in record["metrics"].items()},
        "curve": {"t": t[kept].tolist(), **curve},
        **{name: record[name] for name in _WHOLE if name in record},
    }


def _rounded_lists(record: Mapping[str, Any]) -> Record:
    return {
        name: [rounded(item) for item in value] if isinstance(value, list) else value
        for name, value in record.items()
    }


def _kept_points(t: np.ndarray[Any, Any]) -> list[int]:
    """Places of the points that are kept: those of the fits, and log-spaced ones before."""
    fitted = fitted_points(t)
    early = np.flatnonzero(t < t[-1] / 10)
    step = max(1, -(-early.size // _EARLY_POINTS))
    return [*early[::step].tolist(), *fitted.tolist()]


def _pack_curve(values: np.ndarray[Any, Any]) -> list[int]:
    """Decimal exponent of the unit, and the increments in whole units.

    The unit is the smallest power of ten of which the curve's size is at most ``_CURVE_UNITS``;
    1 where the values are whole and small enough.
    """
    size = float(np.abs(values).max())
    exponent = int(np.ceil(np.log10(size / _CURVE_UNITS))) if size > 1e-280 else 0
    if exponent < 0 and np.array_equal(values, np.rint(values)):
        exponent = 0
    units = np.rint(values / 10.0**exponent).astype(np.int64)
    return [exponent, *np.diff(units, prepend=0).tolist()]


def _pack_traffic(traffic: Mapping[str, Any], shared: Shared) -> Record:
    """Share what cells have in common; of the counts, list those that are not 0 with their gaps."""
    served = np.array(traffic["served"], dtype=np.int64).reshape(-1)
    places = np.flatnonzero(served)
    common = {name: value for name, value in traffic.items() if name != "served"}
    return {
        "common": shared(common),
        "gaps": np.diff(places, prepend=0).tolist(),
        "counts": served[places].tolist(),
    }


# --- unpacking ------------------------------------------------------------------------------------


def _unpack(content: Record) -> tuple[Record, dict[str, Record], dict[str, Record]]:
    """Return the plan, the results and the errors, both by key."""
    shared = content["shared"]
    specs: list[Record] = []
    cells: dict[str, Record] = {}
    failures: dict[str, Record] = {}
    for group in content["groups"]:
        own = {name: shared[place] for name, place in group["spec"].items()}
        specs += [{**own, "seed": seed} for seed in group["seeds"]]
        for number, seed in enumerate(group["done"]):
            spec = {**own, "seed": seed}
            cells[spec_key(spec)] = {**_unpack_cell(group, number, shared), "spec": spec}
        for seed, error, origin in group["failed"]:
            failures[spec_key({**own, "seed": seed})] = {
                "error": error,
                "traceback": "",
                "output": "",
                "provenance": shared[origin],
            }
    run = {**content["run"], "cells": specs}
    return run, cells, failures


def _unpack_cell(group: Record, number: int, shared: Sequence[Any]) -> Record:
    cell: Record = {
        part: {name: values[number] for name, values in group[part].items()}
        for part in ("metrics", "timing")
    }
    cell["provenance"] = shared[group["provenance"][number]]
    cell["curve"] = {
        "t": shared[group["t"]],
        **{name: _unpack_curve(curves[number]) for name, curves in group["curve"].items()},
    }
    if "traffic" in group:
        cell["traffic"] = _unpack_traffic(group["traffic"][number], shared)
    if "warnings" in group and (warned := shared[group["warnings"][number]]):
        cell["warnings"] = warned
    if "wall" in group and (apart := group["wall"][number]):
        cell["wall"] = apart
    if "sha256" in group:
        cell["sha256"] = group["sha256"][number]
    if "llms" in group:
        cell["llms"] = shared[group["llms"][number]]
    if "spent" in group:
        cell["spent"] = shared[group["of_spent"]] | {"slots": shared[group["spent"][number]]}
    if "fleet" in group and number == 0:
        cell["fleet"] = shared[group["fleet"]]
    return cell


def _unpack_curve(packed: Sequence[int]) -> list[float]:
    exponent, *steps = packed
    units = np.cumsum(steps)
    scaled = units * 10.0**exponent if exponent >= 0 else units / 10.0**-exponent
    return [float(value) for value in scaled]


def _unpack_traffic(packed: Record, shared: Sequence[Any]) -> Record:
    common = shared[packed["common"]]
    if len(common["starts"]) * len(common["llms"]) > _MOST_COUNTS:
        raise ValueError("its traffic has more counts than any run's")
    served = np.zeros((len(common["starts"]), len(common["llms"])), dtype=np.int64)
    served.reshape(-1)[np.cumsum(packed["gaps"], dtype=np.int64)] = packed["counts"]
    return {**common, "served": served.tolist()}
