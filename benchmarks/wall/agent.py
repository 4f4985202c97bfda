"""The agent's side of the wall: the process that plays.

It is forked before the judge knows what is played, and shut in before the agent's code is imported:
all it knows is what the judge writes into its pipe.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from baselines.registry import agent_spec, make_agent
from benchmarks.plan.agent_files import agent_folder, watch_folder
from benchmarks.plan.players import check_agent_code, class_facts
from benchmarks.run.runner import checked_action
from benchmarks.run.worker import error_words
from benchmarks.wall import fence, wire


def serve(
    requests: int, replies: int, memory: float | None, hidden: tuple[str, ...], folder: str
) -> NoReturn:
    """Do what the judge asks for, from the first block to the last."""
    told = wire.unpack(_words(requests))
    name, room = told["agent"]["name"], told["choices"].size
    try:
        sys.path[:] = map(os.path.abspath, sys.path)  # the folder to work in will be another
        kept = [*sys.path, sys.prefix, sys.base_prefix, *filter(None, [told["model"]])]
        _say(replies, room, {"isolation": fence.enclose(hidden, kept, folder)})
        if "problem" in told:
            _play(told, requests, replies)
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
    size: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    if not wire.read_into(handle, size):
        os._exit(0)  # the judge has ended, or plays without
    words = np.zeros(int(size[0]), dtype=np.uint8)
    wire.read_into(handle, words)
    return words.tobytes()


def _say(handle: int, room: int, words: dict[str, Any]) -> None:
    """Answer in JSON, not shorter than an action."""
    content = json.dumps(words).encode()[: wire.MAX_WORDS].ljust(8 * room)
    header = np.array([wire.WORDS, len(content)], dtype=np.int64).tobytes()
    wire.write_all(handle, header + content)


def _play(told: dict[str, Any], requests: int, replies: int) -> None:
    agent, choices = told["agent"], told["choices"]
    folder = agent_folder(agent)
    reads = watch_folder(folder) if folder else dict
    check_agent_code(agent)
    name = told["model"] or agent["name"]
    policy = make_agent(name, told["problem"], told["seed"], **told["settings"])
    _say(replies, choices.size, {"ready": True})

    block = wire.Block(*told["layout"])
    content, asked, reward = block.bytes, block.asked, block.reward
    whole = "" in dict(block.observation)
    frame: NDArray[np.int64] = np.full(choices.size + 1, wire.ACTION, dtype=np.int64)
    chosen: NDArray[np.int64] = frame[1:]
    observation: Any = None
    action: Any = None
    for t in range(told["horizon"] + 1):
        if not wire.read_into(requests, content):
            return
        following: Any = {name: view.copy() for name, view in block.observation}
        if whole:
            following = following[""]
        if t:
            info = {name: view.copy() if view.ndim else view[()] for name, view in block.info}
            policy.update(observation, action, reward.item(), following, info)
        observation = following
        if asked.item() == wire.END:
            break
        action = checked_action(policy.act(observation), choices, agent["label"], t, told["words"])
        chosen[:] = action
        wire.write_all(replies, frame)
    _say(replies, choices.size, {"reads": list(reads())})
