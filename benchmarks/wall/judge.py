"""The judge's side of the wall: to the runner, an agent like any other."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TYPE_CHECKING, Any

from benchmarks.wall import fence, wire

if TYPE_CHECKING:
    from numpy.typing import NDArray


class AgentError(RuntimeError):
    """An agent behind the wall has failed, or its process has ended.

    Attributes
    ----------
    traceback : str
        Its own, from the other side.
    """

    def __init__(self, error: str, traceback: str = "") -> None:
        super().__init__(error)
        self.traceback = traceback


@dataclass(frozen=True)
class Fence:
    """What a process for an agent is made with.

    Attributes
    ----------
    hidden : tuple of str
        Files and folders that it must not see.
    folder : str
        Empty folder to work in.
    """

    hidden: tuple[str, ...]
    folder: str


def start_agent(wanted: Fence, memory: float | None) -> WalledAgent:
    """Fork the process of an agent, which waits to be told what to play.

    What the caller knows by now, the agent can find in its memory.
    """
    requests, asking = os.pipe()
    answering, replies = os.pipe()
    shared = mmap(-1, wire.SHARED)
    process = os.fork()
    if process == 0:
        fence.end_with_parent()
        fence.limit_environment(os.environ)
        first, second = sorted((requests, replies))
        for gap in ((3, first), (first + 1, second), (second + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(*gap)
        from benchmarks.wall.agent import serve

        serve(requests, replies, shared, memory, wanted.hidden, wanted.folder)
    os.close(requests)
    os.close(replies)
    fence.keep_closed()
    return WalledAgent(process, asking, answering, shared)


class WalledAgent:
    """An agent in another process.

    An action costs one round trip: with the observation comes what the agent learns from the step
    before.

    Parameters
    ----------
    process : int
        Its id.
    requests, replies : int
        The ends of the pipes that are written to and read from.
    shared : mmap
        Memory that it reads the steps from.
    """

    def __init__(self, process: int, requests: int, replies: int, shared: mmap) -> None:
        self._process, self._requests, self._replies = process, requests, replies
        self._shared = shared
        self.isolation = fence.PROCESS

    def enclose(self, model: str | None = None) -> None:
        """Have its process shut in, which may take its time: nobody waits for it here.

        Parameters
        ----------
        model : str, optional
            A file that it must see.
        """
        self._make_room(1)
        self._write_words(model)

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the agent's class says of itself (`benchmarks.plan.players.class_facts`)."""
        self.enclose()
        self._tell({"agent": {"name": name}}, 1)
        return dict(self._expect("facts"))

    def make(
        self,
        told: Mapping[str, Any],
        observation: Any,
        info: Mapping[str, Any],
        choices: NDArray[Any],
    ) -> None:
        """Have the agent built, once `enclose` was called.

        Parameters
        ----------
        told : Mapping of str
            ``agent`` (of the cell's identity), ``model``, ``problem``, ``seed``, ``settings``,
            ``horizon`` and ``words`` (the layout of an action, for an error).
        observation, info : Any
            Of the reset: they show the layout of those to come.
        choices : ndarray, shape (D,)
            Number of choices of every entry of an action.
        """
        self._layout = wire.parts_of(observation), wire.parts_of(info)
        self._block = wire.Block(self._shared, *self._layout)
        self._whole = not isinstance(observation, Mapping)
        self._last: Any = None
        self._tell({**told, "layout": self._layout}, choices.size, choices)
        self._expect("ready")

    def act(self, observation: Any) -> NDArray[Any]:
        """Return the agent's action, unchecked."""
        self._ask(wire.GO_ON, observation)
        if (words := self._receive()) is not None:
            raise self._wrong(words)
        return self._action

    def update(
        self,
        observation: Any,
        action: Any,
        reward: float,
        following: Any,
        info: Mapping[str, Any],
    ) -> None:
        """Note what the agent will learn from, when it is asked again."""
        if self._last is None and self._layout != (wire.parts_of(following), wire.parts_of(info)):
            raise TypeError("observation or info has another layout after a step than at the reset")
        self._last = following
        self._block.reward[0] = reward
        for name, view in self._block.info:
            view[...] = info[name]

    def finish(self) -> list[str]:
        """Let the agent learn from the last step; return what it says it has read.

        Those are names of files below the folder of its module.
        """
        self._ask(wire.END, self._last)
        names = self._expect("reads")
        os.close(self._requests)
        os.close(self._replies)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._wrong({"reads": names})
        return names

    # --- pipes --------------------------------------------------------------------------------

    def _tell(self, told: Mapping[str, Any], room: int, choices: Any = None) -> None:
        self.isolation = str(self._expect("isolation"))
        self._make_room(room)
        limits = self._action if choices is None else choices
        core = fence.this_core()
        fence.stay_on_core(core)
        self._write_words({**told, "choices": limits, "core": core})

    def _make_room(self, room: int) -> None:
        import numpy as np

        self._frame: NDArray[np.int64] = np.zeros(room + 1, dtype=np.int64)
        self._room, self._action = self._frame.data.cast("B"), self._frame[1:]

    def _ask(self, what: bytes, observation: Any) -> None:
        if self._whole:
            observation = {"": observation}
        for name, view in self._block.observation:
            view[...] = observation[name]
        self._write(what)

    def _write_words(self, told: Any) -> None:
        content = wire.pack(told)
        self._write(len(content).to_bytes(8, sys.byteorder) + content)

    def _write(self, content: bytes) -> None:
        try:
            wire.write_all(self._requests, content)
        except BrokenPipeError:
            # What it said before it ended says why.
            words = self._receive()
            raise self._wrong(words or {}) from None

    def _expect(self, key: str) -> Any:
        words = self._receive()
        if words is None or key not in words:
            raise self._wrong(words or {})
        return words[key]

    def _receive(self) -> dict[str, Any] | None:
        """Return the words that the agent answers, None if it is an action in the frame."""
        frame = self._frame
        if not wire.read_into(self._replies, self._room):
            raise self._ended()
        kind, size = frame.item(0), frame.item(1)
        if kind == wire.ACTION:
            return None
        room = frame.nbytes - 16
        if kind != wire.WORDS or not room <= size <= wire.MAX_WORDS + room:
            raise AgentError("the agent's process sent something that is no answer")
        rest = bytearray(size - room)
        if rest and not wire.read_into(self._replies, memoryview(rest)):
            raise self._ended()
        try:
            words = json.loads(frame.tobytes()[16:] + rest)
        except (ValueError, RecursionError):
            words = None
        if not isinstance(words, dict):
            raise AgentError("the agent's process sent something that is no answer")
        return words

    def _wrong(self, words: Mapping[str, Any]) -> AgentError:
        if "error" in words:
            return AgentError(str(words["error"]), str(words.get("traceback", "")))
        return AgentError("the agent's process sent something that is no answer")

    def _ended(self) -> AgentError:
        """Say how the agent's process has ended."""
        _, status = os.waitpid(self._process, 0)
        code = os.waitstatus_to_exitcode(status)
        number = -code if code < 0 else code - 128
        if number <= 0:
            return AgentError(f"the agent's process left with exit code {code} and no answer")
        try:
            name = signal.Signals(number).name
        except ValueError:  # a real-time signal
            name = f"signal {number}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return AgentError(f"the agent's process was killed by {name}{hint}")
