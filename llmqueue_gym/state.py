"""Objects as files of arrays and JSON: what agents and context pipelines are saved by.

Nothing is pickled: reading a file builds objects of known classes and runs no code of the file's.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import llmqueue_gym
from llmqueue_gym.errors import UsageError

FORMAT = 1
HEADER = "state.json"
MAX_HEADER, MAX_UNPACKED = 256 * 2**20, 4 * 2**30
"""Bytes that a file's header, and all of it, may unpack to."""

OURS = ("baselines", "llmqueue_gym")
"""Packages whose classes a file may always name."""

_KINDS = "biufc"  # of arrays: numbers only
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_SEEDS = ("entropy", "spawn_key", "n_children_spawned")
_SEQUENCES: Mapping[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAKERS = {name: kind for kind, name in _SEQUENCES.items()}


def write_state(path: str | Path, root: object, what: str, **facts: Any) -> None:
    """Save an object and all it refers to.

    Numbers, texts, bytes, lists, tuples, dicts, sets, deques, arrays of numbers, NumPy's generators
    and objects of classes are kept; what is referred to twice is kept once. An object is asked for
    its state by ``__getstate__``, its attributes by default, and given it back by ``__setstate__``.
    Arrays that overlap otherwise than by being the same object become copies.

    Parameters
    ----------
    path : str or Path
        The file; it is replaced in one step.
    root : object
    what : str
        What it is, in one word; `read_state` checks it.
    facts
        JSON-plain, for whoever reads the header.

    Raises
    ------
    UsageError
        If something cannot be kept (a function, an iterator, ...); the message says where it is.
    """
    writer = _Writer((*OURS, type(root).__module__.partition(".")[0]))
    header = {
        "format": FORMAT,
        "what": what,
        "version": llmqueue_gym.__version__,
        **facts,
        "root": writer.node(root, what),
    }
    path = Path(path)
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            with zipfile.ZipFile(file, "w") as archive:
                _add(archive, HEADER, json.dumps(header, allow_nan=False).encode())
                for dtype, parts in writer.parts.items():
                    buffer = io.BytesIO()
                    np.save(buffer, np.concatenate(parts), allow_pickle=False)
                    _add(archive, f"{dtype}.npy", buffer.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UsageError(f"path={str(path)!r} cannot be written ({error})") from error


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with a fixed date: the same state is the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content)


class _Writer:
    """Turns objects into nodes of JSON, and gathers the arrays."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages
        self.parts: dict[str, list[Any]] = {}  # dtype -> arrays, flat
        self._sizes: dict[str, int] = {}
        self._numbers: dict[int, int] = {}  # id -> number of what can be referred to
        self._alive: list[object] = []  # an id is reused once its object is gone

    def node(self, value: Any, place: str) -> Any:
        """Return the node of a value; ``place`` is how to get to it."""
        if value is None or isinstance(value, bool) or type(value) in (int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if type(value) is bytes:
            return ["bytes", value.hex()]
        if isinstance(value, np.generic):
            if value.dtype.kind not in _KINDS:
                raise _unkept(value, place)
            return ["scalar", value.dtype.str, value.tobytes().hex()]
        if type(value) is tuple or type(value) is frozenset:
            return [_SEQUENCES[type(value)], *self._items(value, place)]
        if isinstance(value, tuple) and hasattr(type(value), "_fields"):
            return ["named", self._name(value, place), *self._items(value, place)]
        if id(value) in self._numbers:
            return ["again", self._numbers[id(value)]]
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        return self._first(value, place)

    def _first(self, value: Any, place: str) -> Any:
        """Return the node of what can be referred to, met for the first time."""
        if type(value) in (list, set):
            return [_SEQUENCES[type(value)], *self._items(value, place)]
        if type(value) is deque:
            return ["deque", value.maxlen, *self._items(value, place)]
        if type(value) is dict:
            pairs = value.items()
            return ["dict", *([self.node(k, place), self.node(v, f"{place}[{k!r}]")]
                              for k, v in pairs)]  # fmt: skip
        if type(value) is np.ndarray:
            return self._array(value, place)
        if type(value) is np.random.Generator:
            source = value.bit_generator
            seeds: Any = source.seed_seq
            seed = None
            if isinstance(seeds, np.random.SeedSequence):  # what `spawn` goes on from
                kept: dict[str, Any] = {**seeds.state}
                seed = {name: kept[name] for name in _SEEDS}
            parts = [self.node(part, place) for part in (seed, dict(source.state))]
            return ["generator", type(source).__name__, *parts]
        name = self._name(value, place)
        state = value.__getstate__()
        if isinstance(state, dict):
            entries = {k: self.node(v, f"{place}.{k}") for k, v in state.items()}
            return ["object", name, entries]
        return ["object", name, self.node(state, place)]

    def _items(self, values: Any, place: str) -> Iterator[Any]:
        return (self.node(value, f"{place}[{i}]") for i, value in enumerate(values))

    def _array(self, array: Any, place: str) -> Any:
        if array.dtype.kind not in _KINDS:
            raise _unkept(array, place)
        order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
        dtype = array.dtype.newbyteorder("<").str.strip("<|")
        start = self._sizes.get(dtype, 0)
        self._sizes[dtype] = start + array.size
        flat = array.astype(array.dtype.newbyteorder("<")).ravel(order)
        self.parts.setdefault(dtype, []).append(flat)
        return ["array", dtype, start, list(array.shape), order, bool(array.flags.writeable)]

    def _name(self, value: object, place: str) -> str:
        """Return "module:Class" of an object that is kept by its state."""
        cls = type(value)
        if cls.__module__.partition(".")[0] not in self._packages or "<" in cls.__qualname__:
            raise _unkept(value, place)
        return f"{cls.__module__}:{cls.__qualname__}"


def _unkept(value: object, place: str) -> UsageError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return UsageError(
        f"{place} is a {kind}, which cannot be saved; keep arrays, numbers, texts and containers "
        "of them, or give its owner __getstate__ and __setstate__"
    )


def read_state(
    path: str | Path, what: str, packages: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Read an object that `write_state` saved; return it and the facts of the header.

    Parameters
    ----------
    path : str or Path
    what : str
        What it must be.
    packages : sequence of str
        Your own top-level modules whose classes the file may name, besides those of this project.

    Raises
    ------
    UsageError
        If it is no such file, is damaged, was saved by another version, or names other classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if sum(sizes.values()) > MAX_UNPACKED or sizes.get(HEADER, 0) > MAX_HEADER:
                raise UsageError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
            header = json.loads(archive.read(HEADER))
            _check_header(header, what)
            files = {name.removesuffix(".npy"): archive.read(name) for name in sizes}
        arrays = {name: _flat(file, name) for name, file in files.items() if name != HEADER}
        root = _Reader(arrays, (*OURS, *packages)).value(header.pop("root"))
    except FileNotFoundError:
        raise UsageError(f"path={str(path)!r}: there is no such file") from None
    except UsageError as error:
        raise UsageError(f"path={str(path)!r}: {error}") from error
    except Exception as error:  # a damaged file may fail anywhere
        cause = f"{type(error).__name__}: {error}"
        raise UsageError(f"path={str(path)!r} is no saved {what}, or damaged ({cause})") from error
    return root, header


def _check_header(header: Any, what: str) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UsageError(f"it has another format than {FORMAT}; save it again")
    if header.get("what") != what:
        raise UsageError(f"it is a saved {header.get('what')}, not a saved {what}")
    if header.get("version") != llmqueue_gym.__version__:
        raise UsageError(
            f"it was saved by llmqueue_gym {header.get('version')}, this is "
            f"{llmqueue_gym.__version__}; install that version, or train and save it again"
        )


def _flat(file: bytes, name: str) -> Any:
    """Return the numbers of a .npy file; its header is held against its size before it is read."""
    stream = io.BytesIO(file)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name}.npy has another version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in _KINDS or len(shape) != 1:
        raise ValueError(f"{name}.npy holds no row of numbers")
    return np.frombuffer(file, dtype, shape[0], stream.tell())


class _Reader:
    """Builds objects from nodes."""

    def __init__(self, arrays: Mapping[str, Any], packages: Sequence[str]) -> None:
        self._arrays = arrays
        self._packages = packages
        self._known: list[Any] = []

    def value(self, node: Any) -> Any:
        """Return what a node stands for."""
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if not isinstance(node, list) or not node or not isinstance(node[0], str):
            raise ValueError("a node of its header is none")
        tag, *rest = node
        if tag in _MAKERS or tag == "deque":
            return self._sequence(tag, rest)
        return getattr(self, f"_of_{tag}")(*rest)

    def _place(self) -> int:
        """Return the number of what is met next; what it holds gets later ones."""
        self._known.append(_UNFINISHED)
        return len(self._known) - 1

    def _sequence(self, tag: str, nodes: list[Any]) -> Any:
        if tag in ("tuple", "frozenset"):
            return _MAKERS[tag](map(self.value, nodes))
        found: Any = _MAKERS[tag]() if tag in _MAKERS else deque(maxlen=nodes.pop(0))
        self._known.append(found)
        add = found.add if tag == "set" else found.append
        for node in nodes:
            add(self.value(node))
        return found

    def _of_float(self, text: str) -> float:
        return float(text)

    def _of_bytes(self, text: str) -> bytes:
        return bytes.fromhex(text)

    def _of_scalar(self, dtype: str, text: str) -> Any:
        return np.frombuffer(bytes.fromhex(text), _number_type(dtype))[0]

    def _of_again(self, number: int) -> Any:
        found = self._known[number] if number >= 0 else _UNFINISHED
        if found is _UNFINISHED:
            raise ValueError("it refers to what is not there")
        return found

    def _of_dict(self, *pairs: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        self._known.append(found)
        for key, value in pairs:
            found[self.value(key)] = self.value(value)
        return found

    def _of_array(
        self, dtype: str, start: int, shape: list[int], order: Any, writeable: bool
    ) -> Any:
        size = math.prod(shape)
        if start < 0 or min(shape, default=0) < 0 or order not in ("C", "F"):
            raise ValueError("an array has no such place or shape")
        part = self._arrays[dtype][start : start + size]
        array = part.astype(part.dtype.newbyteorder("=")).reshape(shape, order=order)
        array.flags.writeable = bool(writeable)
        self._known.append(array)
        return array

    def _of_generator(self, name: str, seed: Any, state: Any) -> np.random.Generator:
        if name not in _BIT_GENERATORS:
            raise ValueError(f"{name!r} is no bit generator")
        place = self._place()
        seeds = self.value(seed)
        if seeds is not None and (*seeds,) != _SEEDS:
            raise ValueError("a generator has no such seeds")
        source = getattr(np.random, name)(0 if seeds is None else np.random.SeedSequence(**seeds))
        source.state = self.value(state)
        self._known[place] = generator = np.random.Generator(source)
        return generator

    def _of_named(self, name: str, *nodes: Any) -> Any:
        return self._class(name)(*map(self.value, nodes))

    def _of_object(self, name: str, node: Any) -> Any:
        cls = self._class(name)
        found = object.__new__(cls)
        self._known.append(found)
        state = (
            {k: self.value(v) for k, v in node.items()}
            if isinstance(node, dict)
            else self.value(node)
        )
        if hasattr(cls, "__setstate__"):
            found.__setstate__(state)
            return found
        for part in state if isinstance(state, tuple) else (state,):
            for key, value in (part or {}).items():
                object.__setattr__(found, key, value)
        return found

    def _class(self, name: str) -> Any:
        module_name, _, qualname = name.partition(":")
        if module_name.partition(".")[0] not in self._packages:
            raise UsageError(
                f"it names the class {name!r}; if that is your own, pass "
                f"packages=[{module_name.partition('.')[0]!r}]"
            )
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = vars(found)[part]
        if not isinstance(found, type) or found.__module__ != module_name:
            raise ValueError(f"{name!r} is no class of that module")
        return found


_UNFINISHED = object()


def _number_type(name: str) -> Any:
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS:
        raise ValueError(f"{name!r} is no type of numbers")
    return dtype
