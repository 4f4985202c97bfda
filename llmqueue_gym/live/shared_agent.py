"""An agent that several processes teach: a snapshot and a journal, which every one of them follows.

Answers are entries of one journal, and all apply them in its order, so what the agents learn is the
same. An entry is in the file before anybody is told that it counts.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.queueing.live import live_info, live_observation
from llmqueue_gym.state import read_state, write_state

Context = NDArray[np.float32]

SNAPSHOT_EVERY = 2000
"""Entries of a journal after which the agent is written as a whole and a new one begins."""


AGAIN = 60.0
"""Seconds after which a snapshot that could not be written is tried again."""

WINDOWS = 24
"""Budget windows whose spending is known, in the order that something was last booked in them."""


class LiveAgent(Protocol):
    """What a router needs of an agent: see `baselines.interface.Agent`."""

    problem: Any
    encoder: Any

    def act(self, observation: Mapping[str, Any]) -> Any:
        """Choose a waiting query and LLMs."""

    def update(
        self, observation: Any, action: Any, reward: float, next_observation: Any, info: Any
    ) -> None:
        """Learn from one answer."""


def answer_entry(context: Context, llm: int, kept: bool, retrials: int = 0) -> dict[str, Any]:
    """Return the entry of a judged answer: the context, never the text."""
    packed = base64.b64encode(context.astype("<f4").tobytes()).decode()
    return {"context": packed, "llm": llm, "kept": int(kept), "retrials": retrials}


def _entry_of(line: bytes) -> dict[str, Any]:
    """Return a line of a journal; an empty entry, which counts as refused, if it is damaged."""
    try:
        entry = json.loads(line)
        return entry if isinstance(entry, dict) and isinstance(entry.get("seen", {}), dict) else {}
    except (ValueError, RecursionError):
        return {}


def teach(
    agent: LiveAgent,
    llms: Sequence[str],
    contexts: NDArray[np.float32],
    answered: Sequence[str],
    kept: Sequence[float],
) -> int:
    """Let an agent learn from the answers of a log, whoever chose; return how many it took.

    Parameters
    ----------
    agent : LiveAgent
        A queueing agent that shows one LLM.
    llms : sequence of str
        Names of its LLMs; answers of others are left out.
    contexts : ndarray, shape (n, d)
    answered : sequence of str
        Who answered each request.
    kept : sequence of float
        1 where the user kept the answer; scores are rounded.

    Raises
    ------
    UsageError
        If the agent cannot learn from what it did not choose, or none of its LLMs answered.
    """
    if len(answered) and not set(answered) & set(llms):
        raise UsageError(
            f"llms={list(llms)!r}: the log's answers are by {sorted(set(answered))!r}; name the "
            "same LLMs the same"
        )
    learned, places = Learned(agent, tuple(llms)), {llm: place for place, llm in enumerate(llms)}
    for context, llm, outcome in zip(contexts, answered, kept, strict=True):
        if llm in places:
            learned.apply(answer_entry(context, places[llm], outcome >= 0.5))
    if learned.refused:
        raise UsageError(f"agent: a {type(agent).__name__} cannot learn from others' choices")
    return learned.answers


@dataclass
class Learned:
    """All that is learned, and spent: what a snapshot holds.

    Attributes
    ----------
    agent : LiveAgent
    llms : tuple of str
        Names of the agent's LLMs.
    probe : ndarray, optional
        What the encoder makes of one known text: what is learned belongs to this encoder.
    entries, answers, refused : int
        Entries of the journal in it; those that are answers; those that the agent raised on, or
        that are damaged.
    calls, usd : list
        Answers paid for and their cost, by LLM.
    spent : dict of int to float
        USD by budget window, of the last `WINDOWS` that something was booked in: workers' clocks
        may be set, and need not agree.
    salt : str
        What names of sessions are hashed with, the same for all workers.
    """

    agent: LiveAgent
    llms: tuple[str, ...]
    probe: Context | None = None
    entries: int = 0
    answers: int = 0
    refused: int = 0
    calls: list[int] = field(default_factory=list)
    usd: list[float] = field(default_factory=list)
    spent: dict[int, float] = field(default_factory=dict)
    salt: str = field(default_factory=partial(secrets.token_hex, 16))

    def __post_init__(self) -> None:
        self.calls, self.usd = [0] * len(self.llms), [0.0] * len(self.llms)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if (window := self.__dict__.pop("window", None)) is not None:  # of a file from before
            self.spent = {window: state["spent"]}

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Learn from an answer or book what one cost; what an agent raises on is counted."""
        self.entries += 1
        if "seen" in entry:
            return  # it is for the routers
        try:
            if "usd" in entry:
                self._book(**entry)
                return
            self._learn(**entry)
            self.answers += 1
        except Exception:  # it would stop every worker, and every restart, at this entry
            self.refused += 1

    def _book(self, usd: float, llm: int | None, window: int) -> None:
        if llm is not None:
            self.usd[llm] += usd
            self.calls[llm] += 1
        self.spent[window] = self.spent.pop(window, 0.0) + usd  # the last place
        if len(self.spent) > WINDOWS:
            del self.spent[next(iter(self.spent))]

    def _learn(self, context: str, llm: int, kept: int, retrials: int) -> None:
        vector = np.frombuffer(base64.b64decode(context), "<f4").astype(np.float32)
        before = self.observation(vector, retrials)
        after = self.observation(vector, retrials, 2 + llm if kept else 1)
        info = live_info(llm, bool(kept))
        self.agent.update(before, np.array([0, llm]), float(kept), after, info)

    def observation(self, context: Context, retrials: int, feedback: int = 0) -> dict[str, Any]:
        """Return what the agent sees of one request."""
        window = self.agent.problem.window
        return live_observation(context[None], None, window, retrials=[retrials], feedback=feedback)


class SharedAgent:
    """An agent in a file, learned from by all who open it.

    ``PATH`` is the snapshot, without the agent's encoder of texts; ``PATH.journal-N`` holds the
    entries after the first N as lines of JSON, ``PATH.lock`` is held while something is added. What
    `add` returned from survives the end of the process; a machine that loses power may lose its
    last seconds.

    Parameters
    ----------
    path : str or Path, optional
        The file. If it exists, its agent goes on in place of the one given. Without a path nothing
        is kept.
    agent : LiveAgent
    llms : sequence of str
    probe : ndarray, optional
        See `Learned`.
    every : int
        Entries a snapshot.

    Attributes
    ----------
    learned : Learned
    seen : dict of str to float
        When a worker saw a question of a session that it had not open, by the session's key, since
        the router has last emptied it.

    Raises
    ------
    UsageError
        If the file is damaged, or is of other LLMs, another encoder or another class of agent.
    """

    def __init__(
        self,
        path: str | Path | None,
        agent: LiveAgent,
        llms: Sequence[str],
        probe: Context | None = None,
        every: int = SNAPSHOT_EVERY,
    ) -> None:
        self.learned = Learned(agent, tuple(llms), probe)
        self.seen: dict[str, float] = {}
        self._path = None if path is None else Path(path)
        self._every = every
        self._lock: AbstractContextManager[Any] = nullcontext()
        self._start = self._offset = 0  # of the journal: entries before it, bytes read
        self._next = 0.0  # try to write a snapshot, by `time.monotonic`
        if self._path is None:
            return
        with needing("state=", "filelock", "litellm"):
            from filelock import FileLock
        self._lock = FileLock(f"{self._path}.lock")
        self._packages = [type(agent).__module__.partition(".")[0]]
        with self._lock:
            if self._path.exists():
                self._restore()
            else:
                self._clear()  # of an agent that was deleted
                self._snapshot()

    def add(self, *entries: Mapping[str, Any]) -> None:
        """Write entries, then apply them, after those that others wrote before."""
        if self._path is None:
            for entry in entries:
                self.learned.apply(entry)
            return
        lines = [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries]
        with self._lock:
            self.catch_up()
            with self._segment(self._start).open("ab") as file:
                file.truncate(self._offset)  # a line that somebody died over
                file.write(b"".join(lines))
            self.catch_up()
            due = self.learned.entries - self._start >= self._every or not self._path.exists()
            if due and time.monotonic() >= self._next:
                try:
                    self._snapshot()
                except UsageError as error:  # the entries are in the journal, which goes on
                    self._next = time.monotonic() + AGAIN
                    warnings.warn(f"the journal grows: {error}", RuntimeWarning, stacklevel=2)

    def catch_up(self) -> None:
        """Apply what others have added."""
        while self._path is not None:
            try:
                size = self._segment(self._start).stat().st_size
                if size < self._offset:  # somebody cut it
                    raise FileNotFoundError
                if size > self._offset:
                    with self._segment(self._start).open("rb") as file:
                        file.seek(self._offset)
                        new = file.read()
                    whole = new[: new.rfind(b"\n") + 1]
                    for line in whole.splitlines():
                        entry = _entry_of(line)
                        self.learned.apply(entry)
                        self.seen |= entry.get("seen", {})
                    self._offset += len(whole)
            except FileNotFoundError:
                with self._lock:
                    self._find()
            end = self.learned.entries
            if end == self._start or not self._segment(end).exists():
                return
            self._start, self._offset = end, 0

    def _segment(self, start: int) -> Path:
        return Path(f"{self._path}.journal-{start}")

    def _segments(self) -> list[int]:
        """Entries before every journal that there is."""
        assert self._path is not None
        found = self._path.parent.glob(f"{self._path.name}.journal-*")
        return sorted(int(file.name.rpartition("-")[2]) for file in found)

    def _find(self) -> None:
        """Go on where the others are, or begin a new journal; the lock is held.

        Others may have made two snapshots since. If not, the journal was deleted or cut: what is
        known here is more than what is in the files.
        """
        assert self._path is not None
        if self._path.exists() and max(self._segments(), default=-1) >= self.learned.entries:
            self._restore()
        else:
            self._clear()
            self._snapshot()

    def _clear(self) -> None:
        """Delete the journals; the lock is held. Those who follow one look for the next."""
        for start in self._segments():
            self._segment(start).unlink(missing_ok=True)

    def _restore(self) -> None:
        """Read the snapshot and apply the journal after it; the lock is held."""
        assert self._path is not None
        found, _ = read_state(self._path, "router", self._packages)
        if not isinstance(found, Learned) or found.llms != self.learned.llms:
            raise UsageError(
                f"state={str(self._path)!r} is of llms={list(getattr(found, 'llms', ()))}, not "
                f"{list(self.learned.llms)}; name another file for other LLMs"
            )
        if type(found.agent) is not type(self.learned.agent):
            raise UsageError(
                f"state={str(self._path)!r} is of a {type(found.agent).__name__}, not of a "
                f"{type(self.learned.agent).__name__}; name another file for another agent"
            )
        if self._is_another(found.probe):
            raise UsageError(
                f"state={str(self._path)!r} was learned with another encoder of texts; give the "
                "one it was learned with, or name another file"
            )
        found.agent.encoder = getattr(self.learned.agent, "encoder", None)
        self.learned = found
        done = found.entries
        self._start = max((start for start in self._segments() if start <= done), default=done)
        self._offset = 0
        journal = self._segment(self._start)
        journal.touch()
        if known := done - self._start:  # whoever wrote the snapshot died before the new journal
            lines = journal.read_bytes().splitlines(keepends=True)
            self._offset = sum(map(len, lines[:known]))
        self.catch_up()

    def _is_another(self, probe: Context | None) -> bool:
        mine = self.learned.probe
        if probe is None or mine is None or probe.shape != mine.shape:
            return probe is not mine
        return not np.allclose(probe, mine, atol=1e-4)

    def _snapshot(self) -> None:
        """Write all as it is and begin a new journal; the lock is held."""
        assert self._path is not None
        agent = self.learned.agent
        encoder, agent.encoder = getattr(agent, "encoder", None), None  # large, and never changes
        try:
            write_state(self._path, self.learned, "router")
        finally:
            agent.encoder = encoder
        before, self._start, self._offset = self._start, self.learned.entries, 0
        self._segment(self._start).touch()
        for start in self._segments():
            if start < before:  # the last one stays for those who are not through with it
                self._segment(start).unlink(missing_ok=True)
