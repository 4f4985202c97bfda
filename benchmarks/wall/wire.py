"""What goes between judge and agent: JSON before and after, arrays in shared memory in between.

Nothing is pickled. The judge only writes into the memory; what an agent has to say comes through a
pipe, numbers and JSON, and the judge checks both.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError

GO_ON, END = b"\0", b"\1"
"""What the judge asks for, once it has filled the block: an action; to learn for the last time."""

ACTION, WORDS = range(2)
"""What the agent answers: an action, or JSON."""

SHARED = 2**26
"""Bytes of memory that judge and agent share; only those in use take room."""

MAX_WORDS = 2**22
"""Bytes of JSON that are read from an agent."""

Part = tuple[str, str, Sequence[int]]
"""Name, dtype and shape of an array."""


class Block:
    """A reward and named arrays at fixed places of memory.

    Parameters
    ----------
    memory : writable buffer
        Where they are.
    observation, info : sequence of Part
        What the arrays are; an empty name stands for an observation that is no mapping.
    """

    def __init__(self, memory: Any, observation: Sequence[Part], info: Sequence[Part]) -> None:
        sizes = [
            np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
            for _, dtype, shape in (*observation, *info)
        ]
        ends = np.cumsum([8, *(-(-size // 8) * 8 for size in sizes)]).tolist()
        if ends[-1] > len(memory):
            raise UsageError(
                f"an observation of {ends[-1]:,} bytes does not fit into the {len(memory):,} that "
                "go through the wall: --trust lets the agent play inside"
            )
        room: NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)
        self.reward: NDArray[Any] = room[:8].view(np.float64)
        views = [
            (name, room[start : start + size].view(dtype).reshape(tuple(shape)))
            for (name, dtype, shape), start, size in zip(
                (*observation, *info), ends, sizes, strict=False
            )
        ]
        self.observation = views[: len(observation)]
        self.info = views[len(observation) :]


def parts_of(values: Any) -> list[Part]:
    """Return the layout of an observation or of ``info``."""
    named = values if isinstance(values, Mapping) else {"": values}
    arrays = {name: np.asarray(value) for name, value in named.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"{name or 'observation'}={named[name]!r} is no array of numbers")
    return [(name, array.dtype.str, array.shape) for name, array in arrays.items()]


def read_into(handle: int, room: memoryview) -> bool:
    """Fill bytes from a pipe; False if the pipe ended first."""
    read = os.readv(handle, [room])
    while read < len(room):
        more = os.readv(handle, [room[read:]])
        if not more:
            return False
        read += more
    return True


def write_all(handle: int, content: bytes | memoryview) -> None:
    """Write bytes into a pipe."""
    written = os.write(handle, content)
    while written < len(content):
        written += os.write(handle, content[written:])


# --- JSON -----------------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """Return a value of plain parts as JSON; `unpack` gives it back with the very same bits."""
    return json.dumps(_plain(value)).encode()


def unpack(content: bytes) -> Any:
    """Return what `pack` was given. Only for what the judge has written: it names classes."""
    return _whole(json.loads(content))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            raise TypeError(f"an array of objects cannot be handed to an agent: {value!r}")
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _of_class(value, value._asdict())
    if isinstance(value, tuple):
        return {"tuple": [_plain(entry) for entry in value]}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {"items": [[_plain(key), _plain(entry)] for key, entry in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        return _of_class(value, {f.name: getattr(value, f.name) for f in fields(value)})
    raise TypeError(f"{value!r} cannot be handed to an agent: it is neither plain nor an array")


def _of_class(value: Any, entries: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    return {"class": name, "fields": {key: _plain(entry) for key, entry in entries.items()}}


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        data = bytearray(base64.b64decode(value["array"]))  # writable
        return np.frombuffer(data, dtype=value["dtype"]).reshape(value["shape"])[()]
    if "tuple" in value:
        return tuple(_whole(entry) for entry in value["tuple"])
    if "items" in value:
        return {_whole(key): _whole(entry) for key, entry in value["items"]}
    module, _, name = value["class"].partition(":")
    made: Any = import_module(module)
    for part in name.split("."):
        made = getattr(made, part)
    return made(**{key: _whole(entry) for key, entry in value["fields"].items()})
