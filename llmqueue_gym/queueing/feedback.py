"""Noise in what a provider is told of the answers: unseen, false, silent and late.

The queue itself is the same; `llmqueue_gym.queueing.dynamics.run_slot` only needs to know which
retrials come back unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.dynamics import (
    FIRST_LLM,
    NOTHING_SERVED,
    RETRIED,
    Floats,
    Ints,
    SlotOutcome,
)


@dataclass(frozen=True)
class Noise:
    """How wrong and late feedback is; one uniform draw u a slot decides, whatever the action.

    Attributes
    ----------
    missed : float
        A retrial with u < missed is seen by nobody: feedback says that the first LLM shown was
        kept, and the query comes back as one that has just arrived (``retrials`` and ``age`` 0).
    false : float
        A kept answer with u < false is taken for a refused one: the user goes on to something else,
        which looks like a retrial. The query is gone all the same.
    silent : float
        Of an answer with u >= 1 - silent nothing is heard: feedback says that nothing was served.
    delay : int
        Slots until an answer is judged: feedback of slot t is told at the end of slot t + delay.
    """

    missed: float = 0.0
    false: float = 0.0
    silent: float = 0.0
    delay: int = 0


KEYS = ("missed", "false", "silent", "delay")


def read_feedback(feedback: Mapping[str, Any] | None) -> Noise | None:
    """Return the argument ``feedback``, checked; None where it changes nothing.

    Raises
    ------
    UsageError
        If a key is unknown, a share none, or shares exclude each other.
    """
    if feedback is None:
        return None
    if not isinstance(feedback, Mapping):
        raise UsageError(f'feedback={feedback!r} must be a dict such as {{"missed": 0.1}}, or None')
    for key in feedback:
        if key not in KEYS:
            raise checks.unknown_name("feedback key", key, KEYS)
    shares = {
        key: checks.number(f"feedback[{key!r}]", feedback.get(key, 0.0), "[0, 1]")
        for key in KEYS[:3]
    }
    for key in ("missed", "false"):
        if shares[key] + shares["silent"] > 1.0:
            raise UsageError(
                f"feedback[{key!r}]={shares[key]} and feedback['silent']={shares['silent']} are "
                "shares of the same answers; their sum must be at most 1"
            )
    delay = checks.count("feedback['delay']", feedback.get("delay", 0), 0)
    noise = Noise(**shares, delay=delay)
    return None if noise == Noise() else noise


class Hearsay:
    """What B lanes are told, from what happened.

    Parameters
    ----------
    noise : Noise
    num_lanes : int
    """

    def __init__(self, noise: Noise, num_lanes: int) -> None:
        self.noise = noise
        self._late = np.full((num_lanes, noise.delay), NOTHING_SERVED, dtype=np.int64)
        self._place = 0

    def reset(self, lanes: Ints) -> None:
        """Forget what some lanes have not been told yet."""
        self._late[lanes] = NOTHING_SERVED

    def tell(
        self, outcome: SlotOutcome, feedback: Ints, actions: Ints, draws: Floats
    ) -> tuple[SlotOutcome, Ints]:
        """Return outcome and feedback as told.

        Parameters
        ----------
        outcome : SlotOutcome
        feedback : ndarray, shape (B,)
            Codes of what happened.
        actions : ndarray, shape (B, 1 + K)
        draws : ndarray, shape (B,)
            u of every lane.
        """
        noise = self.noise
        missed = outcome.retried & (draws < noise.missed)
        code = np.where(missed, FIRST_LLM + actions[:, 1], feedback)
        code[outcome.departed & (draws < noise.false)] = RETRIED
        code[draws >= 1.0 - noise.silent] = NOTHING_SERVED
        if noise.delay:
            late: NDArray[np.int64] = self._late[:, self._place].copy()
            self._late[:, self._place] = code
            self._place = (self._place + 1) % noise.delay
            code = late
        departed = code >= FIRST_LLM
        told = SlotOutcome(
            outcome.arrived | missed,
            outcome.served.copy(),
            departed,
            code == RETRIED,
            np.where(departed, code - FIRST_LLM, -1),
        )
        return told, code
