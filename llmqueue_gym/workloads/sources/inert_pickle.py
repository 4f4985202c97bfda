"""Read the table out of a pickled pandas DataFrame without running anything the pickle names.

A script for a subprocess, ``python -I inert_pickle.py PICKLE OUT.parquet``; see `routerbench`.

The unpickler has a list of allowed globals, and even those are never looked up: each becomes an
empty class of this file, which keeps the arguments and the state it is given. What comes out is a
tree of these records, from which the columns are read with checks. So neither pandas nor NumPy runs
on the pickle's data, pickles of every pandas from 1.3 to 3 read alike, and pandas need not be
installed. Around it: the globals are listed statically first, memory, time and file size are
limited, and an audit hook ends the process if anything but unpickling happens meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import pickletools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from llmqueue_gym.errors import UsageError

MAX_SECONDS = 600
_GIB = 2**30

_MODULES: dict[str, tuple[str, ...]] = {
    "builtins": ("object", "slice"),
    "_codecs": ("encode",),
    "copyreg": ("_reconstructor",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "pandas": ("DataFrame", "Index", "NA", "RangeIndex", "StringDtype"),
    "pandas.arrays": ("StringArray",),
    "pandas._libs.arrays": ("__pyx_unpickle_NDArrayBacked",),
    "pandas._libs.internals": ("_unpickle_block",),
    "pandas._libs.missing": ("NA",),
    "pandas.core.arrays.string_": ("StringArray", "StringArrayNumpySemantics", "StringDtype"),
    "pandas.core.frame": ("DataFrame",),
    "pandas.core.indexes.base": ("Index", "_new_Index"),
    "pandas.core.indexes.numeric": ("Float64Index", "Int64Index", "UInt64Index"),
    "pandas.core.indexes.range": ("RangeIndex",),
    "pandas.core.internals.managers": ("BlockManager",),
}
_OLD_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
ALLOWED = frozenset(f"{module}.{name}" for module, names in _MODULES.items() for name in names)


class PickleRefusedError(UsageError):
    """The pickle names something that is not allowed, or is not a table as it should be."""


class Record:
    """What stands in for an allowed global: it keeps what the pickle gives it and does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        """Keep the arguments."""
        record = object.__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep the state, in place of what unpickling would set attributes from."""
        self.state = state

    @classmethod
    def global_name(cls) -> str:
        """Return the full name of the global it stands for."""
        return cls.__qualname__


_RECORDS = {name: type("Record", (Record,), {"__qualname__": name}) for name in sorted(ALLOWED)}


def full_name(module: str, name: str) -> str:
    """Name of a global under its module's present name, fit to be printed."""
    full = f"{_OLD_MODULES.get(module, module)}.{name}"
    return full if full.isprintable() and len(full) < 200 else ascii(full[:200])


class InertUnpickler(pickle.Unpickler):
    """An unpickler whose globals are records; one that is not allowed ends it with its name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the record class of an allowed global."""
        full = full_name(module, name)
        if full not in _RECORDS:
            raise PickleRefusedError(f"it asks for {full}, which is not on the list of a DataFrame")
        return _RECORDS[full]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse persistent ids."""
        raise PickleRefusedError("it asks for a persistent object")


def list_globals(path: Path) -> list[str]:
    """Names of the globals a pickle asks for, found without running it.

    A pickle can be written so that a static look misses a name; `InertUnpickler` is what refuses.
    """
    found: set[str] = set()
    memo: dict[Any, Any] = {}
    recent: list[Any] = []  # what the last pushes left on the stack, as far as it is text
    with path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                found.add(full_name(*str(argument).split(" ", 1)))
                recent.append(None)
            elif name == "STACK_GLOBAL":
                module, attribute = (recent or [None])[-2:][0], (recent or [None])[-1]
                known = isinstance(module, str) and isinstance(attribute, str)
                found.add(full_name(module, attribute) if known else "(a name made at run time)")
                recent.append(None)
            elif name in ("EXT1", "EXT2", "EXT4"):
                found.add(f"copyreg extension {argument}")
                recent.append(None)
            elif name in ("PERSID", "BINPERSID"):
                found.add("(a persistent object)")
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else argument] = recent[-1] if recent else None
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                recent.append(memo.get(argument))
            elif "UNICODE" in name or "STRING" in name:
                short = isinstance(argument, str) and len(argument) < 200
                recent.append(argument if short else None)
            elif name not in ("PROTO", "FRAME"):
                recent.append(None)
            del recent[:-2]
    return sorted(found)


# --- from records to columns ----------------------------------------------------------------------


def _fail(what: str) -> PickleRefusedError:
    return PickleRefusedError(
        f"it is not a pickled table as pandas 1.3 to 3 write it ({what}); "
        "save it as csv with DataFrame.to_csv(index=False) and import that"
    )


def _is(value: Any, *names: str) -> TypeGuard[Record]:
    return isinstance(value, Record) and value.global_name().rpartition(".")[2] in names


def _bytes(value: Any) -> bytes:
    if _is(value, "encode") and len(value.args) == 2 and isinstance(value.args[0], str):
        return value.args[0].encode("latin1")  # how protocols 0 to 2 spell bytes
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise _fail("an array without data")


def _dtype(value: Any) -> str:
    """Type of a plain array: "O", or a code such as "<f8"."""
    if not (_is(value, "dtype") and value.args and isinstance(value.args[0], str)):
        raise _fail("an array without a type")
    code = value.args[0].lstrip("|=<>")
    if code in ("O", "O8"):
        return "O"
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    if not re.fullmatch("[fiu][1248]|b1", code) or order not in ("<", ">", "|", "="):
        raise _fail(f"an array of type {str(value.args[0])[:20]!r}")
    return ("" if order in "|=" else order) + code


def _shape(value: Any) -> tuple[int, ...]:
    plain = isinstance(value, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in value)
    if not plain or not 1 <= len(value) <= 2:
        raise _fail("an array of an odd shape")
    return tuple(value)


def _array(value: Any) -> Any:
    """NumPy array from the record of one; an extension array of text gives its objects."""
    import numpy as np

    if _is(value, "__pyx_unpickle_NDArrayBacked", "StringArray", "StringArrayNumpySemantics"):
        parts = value.state if isinstance(value.state, tuple) else ()
        inner = [part for part in parts if _is(part, "_reconstruct", "_frombuffer")]
        if len(inner) != 1:
            raise _fail("a text column without values")
        return _array(inner[0])
    if _is(value, "_frombuffer") and len(value.args) in (4, 5):
        data, dtype, shape, order = value.args[:4]
        axes = value.args[4] if len(value.args) == 5 else None
        if order not in ("C", "F") or axes is not None:
            raise _fail("an array with permuted axes")
    elif _is(value, "_reconstruct") and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, data = value.state
        order = "F" if fortran else "C"
    else:
        raise _fail("a column that is not an array")
    shape, code = _shape(shape), _dtype(dtype)
    if code == "O":
        if type(data) is not list or len(data) != math.prod(shape):
            raise _fail("an array whose data do not fill it")
        out = np.empty(len(data), dtype=object)
        for i, item in enumerate(data):  # item by item: NumPy would unpack nested lists
            out[i] = item
        return out.reshape(shape)  # object data are listed in C order whatever the memory order
    raw, kind = _bytes(data), np.dtype(code)
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise _fail("an array whose data do not fill it")
    return np.frombuffer(raw, dtype=kind).reshape(shape, order=order)


def _placement(value: Any, width: int) -> list[int]:
    if _is(value, "slice") and len(value.args) == 3:
        start, stop, step = value.args
        if all(type(n) is int for n in value.args) and step and abs(stop - start) <= 10**6:
            return list(range(start, stop, step))
    elif isinstance(value, Record):
        places = _array(value)
        if places.ndim == 1 and places.dtype.kind in "iu":
            return [int(n) for n in places]
    raise _fail(f"a block of {width} columns without their places")


def _labels(axis: Any) -> list[str]:
    if not (_is(axis, "_new_Index") and len(axis.args) == 2 and isinstance(axis.args[1], dict)):
        raise _fail("no column names")
    names = list(_array(axis.args[1].get("data")))
    if not all(type(name) is str for name in names):
        raise _fail("column names that are not text")
    return names


def columns_of(frame: Any) -> dict[str, Any]:
    """Columns of a table's record, as NumPy arrays by name."""
    manager = frame.state.get("_mgr") if isinstance(getattr(frame, "state", 0), dict) else None
    if not (_is(manager, "BlockManager") and len(manager.args) == 2):
        raise _fail("no block manager")
    blocks, axes = manager.args
    if type(axes) not in (list, tuple) or len(axes) != 2 or type(blocks) not in (list, tuple):
        raise _fail("no two axes")
    labels = _labels(axes[0])
    found: dict[str, Any] = {}
    for block in blocks:
        if not (_is(block, "_unpickle_block") and len(block.args) == 3):
            raise _fail("a block that is none")
        values = _array(block.args[0])
        rows = values[None] if values.ndim == 1 else values
        places = _placement(block.args[1], len(rows))
        if len(places) != len(rows) or not all(0 <= place < len(labels) for place in places):
            raise _fail("a block in the wrong place")
        for place, row in zip(places, rows, strict=True):
            if labels[place] in found:
                raise PickleRefusedError(f"column {labels[place]!r} is there twice")
            found[labels[place]] = row
    if len(found) != len(labels) or len({len(column) for column in found.values()}) > 1:
        raise _fail("columns of different lengths")
    return {label: found[label] for label in labels}


def _missing(value: Any) -> bool:
    return value is None or value != value or value is _RECORDS["pandas._libs.missing.NA"]


def _number(value: Any, row: int, column: str) -> float:
    if _is(value, "scalar") and len(value.args) == 2:  # a NumPy number in a column of objects
        import numpy as np

        dtype, data = value.args
        code, raw = _dtype(dtype), _bytes(data)
        if code != "O" and len(raw) == np.dtype(code).itemsize:
            return float(np.frombuffer(raw, dtype=code)[0])
    if isinstance(value, int | float) and abs(value) < 1e300:
        return float(value)
    if _missing(value):
        return float("nan")
    raise PickleRefusedError(f"row {row}, column {column!r}: expected a number, not {_show(value)}")


def _text(value: Any, row: int, column: str) -> str | None:
    if type(value) is str:
        return value.encode("utf-8", "replace").decode()  # a lone surrogate is not UTF-8
    if type(value) is list and all(type(line) is str for line in value):
        return _text(repr(value), row, column)  # the lines of a prompt, not spelled out yet
    if _missing(value):
        return None
    raise PickleRefusedError(f"row {row}, column {column!r}: expected text, not {_show(value)}")


def _show(value: Any) -> str:
    if isinstance(value, Record):
        return value.global_name()
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"  # the text of a nested list can be endless
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _cells(column: Any) -> Iterator[tuple[int, Any]]:
    """Yield the number and the plain Python value of every row."""
    yield from enumerate(column.tolist(), start=1)


def convert(path: Path, out: Path) -> int:
    """Write the columns that matter as Parquet; return the number of rows."""
    import polars as pl

    with path.open("rb") as file:
        _watch(True)
        try:
            frame = InertUnpickler(file).load()
        finally:
            _watch(False)
    columns = columns_of(frame)
    costs = [name for name in columns if name.endswith("|total_cost")]
    numbers = [n for cost in costs for n in (cost, cost.removesuffix("|total_cost"))]
    texts = [name for name in ("sample_id", "prompt", "eval_name") if name in columns]
    series = [
        pl.Series(name, [_text(v, i, name) for i, v in _cells(columns[name])], pl.String)
        for name in texts
    ] + [
        pl.Series(name, [_number(v, i, name) for i, v in _cells(columns[name])], pl.Float64)
        for name in numbers
        if name in columns
    ]
    pl.DataFrame(series).write_parquet(out)
    return len(next(iter(columns.values()), ()))


# --- the process ----------------------------------------------------------------------------------

_watching = False


def _watch(on: bool) -> None:
    global _watching
    _watching = on


def _audit(event: str, _: Any) -> None:
    if _watching:  # unpickling records opens, imports, compiles and starts nothing
        os.write(2, f"the pickle caused {event}\n".encode())
        os._exit(3)


def limit(size: int) -> None:
    """Limit memory, processor time, file size and core dumps (not on Windows, which has none)."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, max(8 * _GIB, 24 * size)),
        (resource.RLIMIT_CPU, MAX_SECONDS),
        (resource.RLIMIT_FSIZE, max(_GIB, 4 * size)),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        cap = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (cap, cap))
        except (ValueError, OSError):  # macOS has no limit of the address space
            continue


def main(path: Path, out: Path) -> dict[str, Any]:
    """Do it and say how it went."""
    limit(path.stat().st_size)
    sys.addaudithook(_audit)
    try:
        asked = list_globals(path)
        refused = [name for name in asked if name not in ALLOWED]
        if refused:
            named = ", ".join(refused[:10]) + (", ..." if len(refused) > 10 else "")
            return {"error": f"it asks for {named}; a DataFrame has no use for that"}
        import polars  # noqa: F401 - here, so that nothing is imported while the hook watches

        return {"rows": convert(path, out), "globals": asked}
    except PickleRefusedError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "it needs more memory than a table of its size should"}
    except Exception as error:  # whatever a broken pickle raises: its reason is the answer
        return {
            "error": f"it is broken ({type(error).__name__}: {str(error)[:200]}); is it cut off?"
        }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
