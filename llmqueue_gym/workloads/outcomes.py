"""Who keeps an answer: the MNL model fitted on logged answers, and how well calibrated it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.sources.retrials import rate_interval

if TYPE_CHECKING:
    pass


def fit_mnl(
    contexts: NDArray[np.float32],
    llm: NDArray[np.int64],
    kept: NDArray[np.bool_] | NDArray[np.float64],
    num_llms: int,
    ridge: float,
) -> NDArray[np.float64]:
    """Ridge maximum likelihood of theta (N, d) from logged pairs; see `fit_outcomes`.

    Parameters
    ----------
    contexts : ndarray, shape (n, d)
    llm : ndarray of int, shape (n,)
        LLM whose answer was shown.
    kept : ndarray of bool or float64, shape (n,)
        Whether the answer was kept, or a score in [0, 1] that counts as that share of it.
    num_llms : int
        N.
    ridge : float
        Penalty, positive.
    """
    from scipy.optimize import minimize

    share = kept.astype(np.float64)
    if (share == 1.0).all() or (share == 0.0).all():
        raise UsageError("the logged turns are all kept or all retried: nothing can be fitted")
    x = contexts.astype(np.float64)
    groups = [np.flatnonzero(llm == j) for j in range(num_llms)]
    shape = (num_llms + 1, x.shape[1])  # row 0 is theta_0, row j + 1 is delta_j

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = flat.reshape(shape)
        slope, value = ridge * parameters, 0.5 * ridge * float(flat @ flat)
        for j, rows in enumerate(groups):
            utility = x[rows] @ (parameters[0] + parameters[j + 1])
            value += float((np.logaddexp(0.0, utility) - share[rows] * utility).sum())
            pull = x[rows].T @ (np.exp(-np.logaddexp(0.0, -utility)) - share[rows])
            slope[0] += pull
            slope[j + 1] += pull
        return value, slope.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B")
    parameters = found.x.reshape(shape)
    return np.asarray(parameters[0] + parameters[1:])


def calibration(
    chance: NDArray[np.float64],
    kept: NDArray[np.bool_],
    base: float | NDArray[np.float64],
    bins: int = 10,
) -> dict[str, Any]:
    """How well predicted chances agree with what happened.

    Parameters
    ----------
    chance : ndarray, shape (n,)
        Predicted probability that the answer is kept.
    kept : ndarray of bool, shape (n,)
    base : float, or ndarray of shape (n,)
        Share that was kept in the training data, of all or each LLM's: the prediction to be better
        than.
    bins : int
        Bins of equally many turns, by predicted chance.

    Returns
    -------
    dict
        ``ece``: mean over turns of |predicted - observed| of their bin; ``table``: the bins with
        Wilson's interval of the observed share; ``log_loss``, ``brier`` and those of ``base``;
        ``auc``: chance that a kept turn is predicted higher than a retried one.
    """
    order = np.argsort(chance, kind="stable")
    table, ece = [], 0.0
    for part in np.array_split(order, min(bins, len(order))):
        predicted, hits = float(chance[part].mean()), int(kept[part].sum())
        low, high = rate_interval(hits, len(part))
        ece += abs(predicted - hits / len(part)) * len(part) / len(order)
        table.append(
            {
                "turns": len(part),
                "predicted": predicted,
                "observed": hits / len(part),
                "low": low,
                "high": high,
            }
        )

    def losses(p: NDArray[np.float64]) -> tuple[float, float]:
        p = np.clip(p, 1e-12, 1 - 1e-12)
        log_loss = -np.where(kept, np.log(p), np.log1p(-p)).mean()
        return float(log_loss), float(np.square(p - kept).mean())

    log_loss, brier = losses(chance)
    base_log_loss, base_brier = losses(np.full(len(kept), base))
    return {
        "turns": len(kept),
        "ece": ece,
        "log_loss": log_loss,
        "base_log_loss": base_log_loss,
        "brier": brier,
        "base_brier": base_brier,
        "auc": _auc(chance, kept),
        "table": table,
    }


def _auc(chance: NDArray[np.float64], kept: NDArray[np.bool_]) -> float | None:
    from scipy.stats import rankdata

    yes, no = int(kept.sum()), int((~kept).sum())
    if not yes or not no:
        return None
    ranks = rankdata(chance)
    return float((ranks[kept].sum() - yes * (yes + 1) / 2) / (yes * no))
