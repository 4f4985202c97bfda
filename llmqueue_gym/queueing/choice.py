"""Multinomial logit (MNL) choice: how a user picks among the answers shown, or retries.

Shapes are batched: leading axes are independent queries, the last axis runs over LLMs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmqueue_gym.compiled import borrowing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def choice_probabilities(utilities: ArrayLike) -> Floats:
    """Return the MNL choice probabilities of an assortment, outside option first.

    Parameters
    ----------
    utilities : array_like, shape (..., K)
        Utilities u_j(x) of the LLMs shown.

    Returns
    -------
    ndarray, shape (..., K + 1)
        ``[P(retry), P(keeps S[0]), ..., P(keeps S[K - 1])]``, summing to 1 along the last axis.

    Notes
    -----
    P(keeps j | x, S) = o_j / (1 + sum_S o) with odds o_j = exp(u_j), computed without overflow.
    """
    u = np.asarray(utilities, dtype=np.float64)
    with_outside = np.concatenate([np.zeros((*u.shape[:-1], 1)), u], axis=-1)
    with_outside -= with_outside.max(axis=-1, keepdims=True)
    odds = np.exp(with_outside)
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def departure_rate(odds: ArrayLike) -> Floats:
    """Return p(x, S) = sum_S o / (1 + sum_S o) from the odds of the LLMs shown.

    Parameters
    ----------
    odds : array_like, shape (..., K)
        Odds o_j(x) = exp(u_j(x)); zeros stand for LLMs that are not shown.

    Returns
    -------
    ndarray, shape (...)
        Probability that the user keeps one of the answers.
    """
    total = np.asarray(odds, dtype=np.float64).sum(axis=-1)
    return np.asarray(total / (1.0 + total))


def best_assortment(odds: Floats, size: int) -> tuple[Ints, Floats]:
    """Return the assortment with the largest departure rate for each query.

    Odds are positive, so the best assortment is the ``size`` LLMs with the largest utilities and
    no subset has to be enumerated. Ties go to the lower index.

    Parameters
    ----------
    odds : ndarray, shape (P, N)
        Odds of every LLM for every query.
    size : int
        LLMs shown at a time, K.

    Returns
    -------
    llms : ndarray of int64, shape (P, size)
        Best LLMs, best first.
    rate : ndarray, shape (P,)
        p*(x) = max_S p(x, S).
    """
    llms, rate = np.empty((len(odds), size), dtype=np.int64), np.zeros(len(odds))
    _rank(odds.T.copy(), llms, rate, np.empty(len(odds), dtype=np.int64), np.empty(len(odds)))
    return llms, rate


@borrowing
def _rank(left: Floats, llms: Ints, rate: Floats, best: Ints, most: Floats) -> None:
    """Fill the best LLMs (P, K), best first, and the departure rates (P,), which are zero.

    ``left`` (N, P) has the odds, and -inf in the end where an LLM is taken; ``best`` and ``most``
    (P,) are room to work in. An LLM at a time, the processor compares several queries at once.
    """
    for place in range(llms.shape[1]):
        for query in range(len(rate)):
            best[query], most[query] = 0, left[0, query]
        for llm in range(1, len(left)):
            for query in range(len(rate)):
                value = left[llm, query]
                better = value > most[query]
                best[query] = llm if better else best[query]
                most[query] = value if better else most[query]
        for query in range(len(rate)):
            llms[query, place] = best[query]
            left[best[query], query] = -np.inf
            rate[query] += most[query]
    for query in range(len(rate)):
        rate[query] /= 1.0 + rate[query]
