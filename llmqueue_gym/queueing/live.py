"""Live requests as observations of LLMQueue-v0: what a gateway shows an agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.encoder import TextEncoder
from llmqueue_gym.workloads.pool import check_contexts


def live_observation(
    waiting: str | Sequence[str] | NDArray[np.floating[Any]],
    encoder: TextEncoder | None = None,
    window: int = 1,
    *,
    retrials: Sequence[float] = (),
    ages: Sequence[float] = (),
    waits: Sequence[float] = (),
    feedback: int = 0,
) -> dict[str, NDArray[Any]]:
    """Return the observation of the requests that wait now, as LLMQueue-v0 gives it.

    Parameters
    ----------
    waiting : str, sequence of str, or ndarray of shape (Q, d)
        Text of the one request that waits; texts, in service order; or their contexts.
    encoder : TextEncoder, optional
        What turns texts into contexts; not needed for contexts.
    window : int
        Visible slots, W. Requests beyond it count in ``queue_length`` only.
    retrials, ages, waits : sequence of float
        Of each request: times its user has retried, slots since it arrived, and since it joined
        the tail last. By default 0, 0, and the ages.
    feedback : int
        What came of the last request: 0 nothing served, 1 retried, 2 + j LLM j's answer kept.

    Raises
    ------
    UsageError
        If texts come without an encoder, a sequence has another length than the queue, or a context
        is not finite or beyond 1e6.
    """
    if isinstance(waiting, np.ndarray):
        contexts = waiting
    elif encoder is None:
        raise UsageError("encoder=None: texts need the encoder that the agent was trained with")
    else:
        texts = [waiting] if isinstance(waiting, str) else list(waiting)
        contexts = encoder.encode(texts) if texts else np.zeros((0, encoder.context_dim))
    if contexts.ndim != 2:
        raise UsageError(f"waiting has shape {contexts.shape}; give contexts of shape (Q, d)")
    if contexts is waiting:
        check_contexts("waiting", contexts, contexts)
    length = len(contexts)
    shown = min(length, window)
    padded = np.zeros((window, contexts.shape[1]), np.float32)
    padded[:shown] = contexts[:shown]

    def column(name: str, values: Sequence[float]) -> NDArray[np.float32]:
        if len(values) not in (0, length):
            raise UsageError(f"{name} has {len(values)} entries for {length} waiting requests")
        row = np.zeros(window, np.float32)
        row[: min(len(values), window)] = values[:window]
        return row

    return {
        "contexts": padded,
        "waiting": (np.arange(window) < shown).astype(np.int8),
        "retrials": column("retrials", retrials),
        "age": column("ages", ages),
        "wait": column("waits", waits or ages),
        "queue_length": np.array([length], np.float32),
        "feedback": np.array(feedback, np.int64),
    }


def live_info(llm: int, kept: bool) -> dict[str, Any]:
    """Return ``info``, as LLMQueue-v0 gives it, of one request that LLM ``llm`` has answered."""
    return {
        "arrived": True,
        "served": True,
        "departed": kept,
        "retried": not kept,
        "kept_llm": llm if kept else -1,
        "queue_length": 1,
    }
