"""Luck: how far the outcomes of a run are from what its choices promised.

`benchmarks.score.fairness` judges it, run by run and in sum over an agent's runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LUCK_LIMIT = 7.3
"""What ``luck`` of a policy ignorant of the draws exceeds with probability 1e-8 at most.

2 exp(-c^2 / 2) would be so from 6.2 on, for a given variance V. A policy may choose V by what came
before (stop taking risks while ahead): for each of the 529 intervals (a^k, a^(k+1)], a = 1.04, that
hold V up to 10^9 (4 x 10^9 outcomes) Freedman's inequality gives 2 exp(-c^2 / 2a), and for V <= 1,
where |D| >= c^2 / 3, it gives 5e-10; from 7.3 on, together below 1e-8.
"""


class Luck(NamedTuple):
    """What a sum of outcomes in [0, 1] is beyond what the choices promised.

    Attributes
    ----------
    deviation : float
        D: the sum of the outcomes less that of their means, given all that came before.
    variance : float
        V: a bound of the sum of the variances of the outcomes, given all that came before.
    """

    deviation: float
    variance: float

    @property
    def figure(self) -> float:
        """D / sqrt(V + |D| / 3): beyond c with probability 2 exp(-c^2 / 2) at most.

        So by Bernstein, and Freedman (1975) for choices that depend on what came before and a given
        V, however sure the outcomes are: a plain D / sqrt(V) is far from normal where V is small.
        0 where every outcome was the promised one.
        """
        scale = self.variance + abs(self.deviation) / 3.0
        return self.deviation / float(np.sqrt(scale)) if scale > 0 else 0.0

    def as_metrics(self) -> dict[str, float]:
        """Return the metrics of a cell."""
        return {
            "luck": self.figure,
            "luck_deviation": self.deviation,
            "luck_variance": self.variance,
        }


def outcome_luck(total: float, promised: Floats) -> Luck:
    """Luck of outcomes in [0, 1] whose means are known.

    Parameters
    ----------
    total : float
        Sum of the outcomes.
    promised : ndarray, shape (T,)
        Mean p of every outcome; its variance is at most p (1 - p).
    """
    variance = float(np.sum(promised * (1.0 - promised)))
    return Luck(float(total - promised.sum()), variance)


def row_luck(contexts: Floats, quality: Floats, rows: Ints, llms: Ints) -> Luck:
    """Luck of answers that are read from a table.

    Given the row an answer has no noise: what an agent must not know is the row. So only the first
    query of every context counts (later ones an agent has been told about), and an answer is held
    against a prediction from the context that has seen every other row with the quality of every
    LLM, far more than an agent is ever told: ridge regression, each row left out of its own fit. To
    that is added the mean of what is left over (the residual) on the contexts still to come:
    for choices that ignore the context this makes D a martingale, whatever the prediction. V is
    the sum of the mean squared residuals of the LLMs chosen.

    An assumption remains: no fair agent predicts residuals from contexts. A better model than the
    ridge could, by a little; knowing the row is worth many times that.

    Parameters
    ----------
    contexts : ndarray, shape (P, d)
        Of the table.
    quality : ndarray, shape (P, N)
        Of every LLM on every row, in [0, 1].
    rows : ndarray, shape (T,)
        Row of every query.
    llms : ndarray, shape (T,)
        The LLM that answered it, -1 where none did.
    """
    residual = left_out_residuals(contexts, quality)
    _, groups = np.unique(contexts, axis=0, return_inverse=True)
    groups = groups.ravel()  # a column in NumPy 2.0
    _, first = np.unique(groups[rows], return_index=True)
    first = np.sort(first)
    seen, chosen = residual[rows[first]], llms[first]
    # Rows of a context that was seen are no longer to come.
    total = np.zeros((int(groups.max()) + 1, quality.shape[1]))
    np.add.at(total, groups, residual)
    sizes = np.bincount(groups)
    past = groups[rows[first]]
    left = residual.sum(axis=0) - np.cumsum(total[past], axis=0) + total[past]
    count = len(contexts) - np.cumsum(sizes[past]) + sizes[past]
    gain = seen - left / count[:, None]
    answered = np.flatnonzero(chosen >= 0)
    llm = chosen[answered]
    return Luck(float(gain[answered, llm].sum()), float(np.mean(residual**2, axis=0)[llm].sum()))


def left_out_residuals(contexts: Floats, quality: Floats) -> Floats:
    """Quality less its prediction by ridge regression on the other rows; shape (P, N).

    Contexts are standardised, a constant is added and the penalty is 1. A row's residual without
    itself is its residual over 1 - its leverage.
    """
    centred = contexts - contexts.mean(axis=0)
    spread = centred.std(axis=0)
    x = np.column_stack([np.ones(len(contexts)), centred / np.where(spread > 0, spread, 1.0)])
    penalty = np.eye(x.shape[1])
    penalty[0, 0] = 1e-9  # not on the constant
    solved = np.linalg.solve(x.T @ x + penalty, x.T)
    leverage = np.einsum("ij,ji->i", x, solved)
    return np.asarray((quality - x @ (solved @ quality)) / (1.0 - leverage)[:, None])
