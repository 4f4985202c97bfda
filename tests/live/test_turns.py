"""Calls one after the other: in their thread, or at once where nothing waits."""

import threading

import pytest

from llmqueue_gym.live import turns as live_turns
from llmqueue_gym.live.turns import Turns

LONG = 60.0
"""Seconds that nothing here takes."""


def at_once(turns, call):
    """Make a call as soon as nothing comes before it."""
    while (found := turns.at_once(call)) is None:
        pass
    return found


def test_who_calls_at_once_takes_turns_with_the_thread():
    turns, order = Turns(lambda: None), []
    begun, go = threading.Event(), threading.Event()

    def held():
        begun.set()
        order.append("held")
        return go.wait(LONG)

    first = turns.submit(held)
    assert begun.wait(LONG)
    second = turns.submit(order.append, "second")
    assert turns.at_once(order.append, "at once") is None
    go.set()
    assert first.result(LONG)
    assert second.result(LONG) is None
    with pytest.raises(ZeroDivisionError):
        at_once(turns, lambda: 1 / 0)
    assert at_once(turns, lambda: order.append("last") or threading.get_ident()) == (
        threading.get_ident()
    )
    assert order == ["held", "second", "last"]
    assert turns.submit(threading.get_ident).result(LONG) != threading.get_ident()


def test_a_pause_is_used_whoever_made_the_calls_before_it(monkeypatch):
    rests, go = threading.Semaphore(0), threading.Semaphore(0)

    def rest():
        rests.release()
        assert go.acquire(timeout=LONG)

    turns = Turns(rest)
    for call in (lambda: at_once(turns, lambda: 1), lambda: turns.submit(int).result(LONG)) * 2:
        call()
        assert rests.acquire(timeout=LONG)
        assert turns.at_once(lambda: 1) is None  # the pause has the turn
        go.release()
    assert not rests.acquire(blocking=False)  # once a pause
    monkeypatch.setattr(live_turns, "QUEUED", 0)
    assert turns.submit(int) is None
