"""The agent's side of the wall: the process that plays.

It is forked before the judge knows what is played, and shut in before the agent's code is imported:
all it knows is what the judge writes into its pipe and the memory that they share.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from mmap import mmap
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from baselines.interface import open_agent_folders
from baselines.registry import agent_spec, make_agent
from benchmarks.plan.agent_files import agent_folder, watch_folder
from benchmarks.plan.players import check_agent_code, class_facts
from benchmarks.run.runner import checked_action
from benchmarks.run.worker import error_words
from benchmarks.wall import fence, wire


def serve(
    requests: int,
    replies: int,
    shared: mmap,
    memory: float | None,
    hidden: tuple[str, ...],
    folder: str,
) -> NoReturn:
    """Do what the judge asks for, from being shut in to the last step."""
    name, room = "", 1
    try:
        model = wire.unpack(_words(requests))
        open_agent_folders()
        sys.path[:] = map(os.path.abspath, sys.path)  # the folder to work in will be another
        kept = [*sys.path, sys.prefix, sys.base_prefix, *filter(None, [model])]
        _say(replies, room, {"isolation": fence.enclose(hidden, kept, folder)})
        told = wire.unpack(_words(requests))
        name, room = told["agent"]["name"], told["choices"].size
        fence.stay_on_core(told["core"])
        if "problem" in told:
            _play(told, requests, replies, shared)
        else:
            _say(replies, room, {"facts": class_facts(agent_spec(name).load())})
        code = 0
    except BaseException as error:  # whatever an agent raises, SystemExit included
        words = error_words(error, name, memory)
        with suppress(OSError):
            _say(replies, room, words | {"traceback": traceback.format_exc()})
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the agent may have closed or replaced it
            stream.flush()
    os._exit(code)


def _words(handle: int) -> bytes:
    size = bytearray(8)
    if not wire.read_into(handle, memoryview(size)):
        os._exit(0)  # the judge has ended, or plays without
    words = bytearray(int.from_bytes(size, sys.byteorder))
    wire.read_into(handle, memoryview(words))
    return bytes(words)


def _say(handle: int, room: int, words: dict[str, Any]) -> None:
    """Answer in JSON, not shorter than an action."""
    content = json.dumps(words).encode()[: wire.MAX_WORDS].ljust(8 * room)
    header = np.array([wire.WORDS, len(content)], dtype=np.int64).tobytes()
    wire.write_all(handle, header + content)


def _readers(parts: Sequence[tuple[str, NDArray[Any]]]) -> list[tuple[str, Callable[[], Any]]]:
    """Return what reads every part: a copy of an array, a scalar where it has no dimensions."""
    return [
        (name, view.copy if view.ndim else partial(view.__getitem__, ())) for name, view in parts
    ]


def _play(told: dict[str, Any], requests: int, replies: int, shared: mmap) -> None:
    agent, choices = told["agent"], told["choices"]
    folder = agent_folder(agent)
    reads = watch_folder(folder) if folder else dict
    check_agent_code(agent)
    name = told["model"] or agent["name"]
    policy = make_agent(name, told["problem"], told["seed"], **told["settings"])
    _say(replies, choices.size, {"ready": True})

    block = wire.Block(shared, *told["layout"])
    seen, told_of = _readers(block.observation), _readers(block.info)
    whole = "" in dict(seen)
    frame: NDArray[np.int64] = np.full(choices.size + 1, wire.ACTION, dtype=np.int64)
    answer, chosen, shape = frame.data.cast("B"), frame[1:], choices.shape
    observation: Any = None
    action: Any = None
    for t in range(told["horizon"] + 1):
        if not (asked := os.read(requests, 1)):
            return
        following: Any = {name: read() for name, read in seen}
        if whole:
            following = following[""]
        if t:
            info = {name: read() for name, read in told_of}
            policy.update(observation, action, block.reward.item(), following, info)
        observation = following
        if asked == wire.END:
            break
        action = policy.act(observation)
        if type(action) is np.ndarray and action.dtype == np.int64 and action.shape == shape:
            action = action.copy()  # the judge checks its entries
        else:
            action = checked_action(action, choices, agent["label"], t, told["words"])
        chosen[:] = action
        wire.write_all(replies, answer)
    _say(replies, choices.size, {"reads": list(reads())})
