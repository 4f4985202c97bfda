"""Calls one after the other, in a thread of their own; what is quick and harmless where it is."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

PAUSE = 0.01
"""Seconds without a call after which ``afterwards`` is done: whoever waits for a choice has it."""

QUEUED = 256
"""Calls that wait beyond which new ones are refused."""

BRIEFLY = 0.002
"""Seconds that the event loop itself waits for a call, several times what a choice takes."""

_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Turns:
    """Runs calls one after the other in a thread, and ``afterwards`` in a pause between them.

    The thread is daemonic, so that a call that hangs stops nobody. To hand a call over and its
    result back takes longer than many a call, most of all on an idle machine: `at_once` spares it.
    """

    def __init__(self, afterwards: Callable[[], None]) -> None:
        self._afterwards = afterwards
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()  # None: wake up
        self._counting = threading.Lock()
        self._unfinished = 0  # calls of the thread's
        self._turn = threading.Lock()  # held by whoever runs a call
        self._last = 0.0  # when a call was made at once
        self._resting = True  # the thread, until something is called
        self._slow = False  # nothing was done since somebody waited in vain
        threading.Thread(target=self._run, name="llmqueue_gym", daemon=True).start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any] | None:
        """Return the future of a call; None if too many wait."""
        with self._counting:
            if self._unfinished >= QUEUED:
                return None
            self._unfinished += 1
        future: Future[Any] = Future()
        self._calls.put((future, call, arguments))
        return future

    def at_once(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call returns, made here and now; None, and no call, if others come first.

        Nobody can give it up: it must be one that computes and waits for nothing.
        """
        if self._unfinished or not self._turn.acquire(blocking=False):
            return None
        try:
            return call(*arguments)
        finally:
            self._last = time.monotonic()
            if self._resting:
                self._resting = False
                self._calls.put(None)
            self._turn.release()

    async def result(self, future: Future[Any], within: float) -> Any:
        """Return what a call returns; TimeoutError is raised after ``within`` seconds.

        For `BRIEFLY` the event loop stands still. Python runs one thread at a time: a loop that
        goes on with other requests keeps this one from the call for up to 5 ms at a time.
        """
        if not self._slow:
            briefly = min(BRIEFLY, within)
            try:
                return future.result(briefly)
            except TimeoutError:
                if future.done():
                    return future.result()
            self._slow, within = True, within - briefly
        async with asyncio.timeout(within):
            return await asyncio.wrap_future(future)

    def _run(self) -> None:
        pause: float | None = None
        while True:
            try:
                waiting = self._calls.get(timeout=pause)
            except queue.Empty:
                with self._turn:
                    pause = self._last + PAUSE - time.monotonic()
                    if pause <= 0.0:
                        pause, self._resting = None, True
                        self._afterwards()
                continue
            pause, self._resting = PAUSE, False
            if waiting is None:
                continue
            future, call, arguments = waiting
            with self._turn:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(call(*arguments))
                    except BaseException as error:
                        future.set_exception(error)
                    self._slow = False
            with self._counting:
                self._unfinished -= 1
