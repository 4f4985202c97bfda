"""Offline-trained routers: supervised models of every LLM, fitted before the first slot and frozen.

They are the strong baselines that learning online is measured against, under ``pretrained``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import (
    Contexts,
    LinearPolicy,
    Pairing,
    QueueAgent,
    Remembered,
    Served,
    best_pairing,
)
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.workloads.pool import OfflineData

_SOURCE = "trained on the workload's offline split, then frozen"

Floats = NDArray[np.float64]
Predict = Callable[[Floats], Floats]
"""Contexts (n, d) -> success rates (n, N)."""

Fit = Callable[[Floats, Floats], Predict]
"""Contexts (n, d) and success rates (n, N) of the offline split -> predictor."""

OFFLINE_SPLIT = "queries that never arrive, with the quality of every LLM on them"
"""What these agents are given."""

RATE_BOUNDS = 1e-3, 1.0 - 1e-3
"""Predicted success rates are kept within, so that their odds stay finite."""


def offline_data(problem: QueueProblem, agent: str) -> OfflineData:
    """Return the offline split of a problem.

    Raises
    ------
    ValueError
        If there is none.
    """
    if problem.offline is None:
        raise UsageError(
            f"agent {agent!r} trains on queries that never arrive, and this task has none: use a "
            "workload made of texts (part of them is kept back), and the protocol 'pretrained'"
        )
    return problem.offline


@agent("offline-boosting", source=_SOURCE, predictor="boosting")
@agent("offline-logistic", source=_SOURCE, predictor="logistic")
@agent("offline-ridge", source=_SOURCE, predictor="ridge")
@agent("offline-knn", source=_SOURCE, predictor="knn")
class OfflineRouter(QueueAgent):
    """Serve the query and the LLMs with the largest departure rate that a fitted model predicts.

    The model predicts the success rate r_j(x) = P(keeps LLM j | x, {j}) of every LLM from the
    context. The decision is the myopic oracle's with the odds r / (1 - r) of the predictions. The
    model is never refitted.

    A retrial still tells something of the query that waits: the prediction was too high. With the
    predicted rate r as the mean of a Beta(s r, s (1 - r)) prior, the rate after m retrials of
    queries with this context to whom LLM j was shown is r s / (s + m). (R) The strength s is fitted
    by moments to the errors of the model's two-fold cross-validated predictions, and a retrial
    counts in full for each of the LLMs shown. Without this memory a router stays on a query that it
    wrongly holds to be the best.

    A context is predicted once and remembered, so a decision costs O(Q N) for waiting queries that
    have been seen before, and one prediction of the model for a new one.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task, with its offline split.
    seed : int
        Seed of the agent's own randomness; the models need none.
    predictor : {"knn", "ridge", "logistic", "boosting"}
        Mean over the nearest neighbours; ridge regression of r_j with its weight chosen by
        leave-one-out; logistic regression with r_j as a soft label; gradient-boosted trees on r_j.
    heed_retrials : bool
        Whether to lower the predictions for a query that was retried, until it is kept.
    neighbours : int
        Neighbours of ``knn``.
    inverse_ridge : float
        Inverse weight C of the squared norm in ``logistic``.
    trees : int
        Trees per LLM of ``boosting``.

    Attributes
    ----------
    strength : float
        Strength s of the prior.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    ValueError
        If the task has no offline split, or a setting is out of range.
    """

    protocol: ClassVar[str] = "pretrained"
    trained_on: ClassVar[str] = OFFLINE_SPLIT

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        predictor: str = "ridge",
        heed_retrials: bool = True,
        neighbours: int = 20,
        inverse_ridge: float = 1.0,
        trees: int = 100,
    ) -> None:
        super().__init__(problem, seed)
        checks.choice("predictor", predictor, FITS)
        checks.count("neighbours", neighbours)
        checks.count("trees", trees)
        checks.number("inverse_ridge", inverse_ridge, "(0, inf)")
        data = offline_data(problem, f"offline-{predictor}")
        settings = {"knn": neighbours, "logistic": inverse_ridge, "boosting": trees}
        with needing(f'agent "offline-{predictor}"', "scikit-learn", "data"):
            model = Fitted(data, predictor, settings.get(predictor))
            self.strength = model.prior_strength() if heed_retrials else np.inf
        self._model, self._rates = model, Remembered(model)
        self._retrials: dict[bytes, Floats] = {}  # of the queries that wait, by LLM shown

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Take the best pairing under the predictions."""
        return best_pairing(self.estimates(observation, waiting), self.problem.assortment_size)

    def utilities(self, contexts: Contexts) -> Floats:
        """Return the log odds of the expected success rates for contexts (Q, d), shape (Q, N)."""
        return np.asarray(logit(self.success_rates(contexts)))

    def success_rates(self, contexts: Contexts) -> Floats:
        """Return the expected success rate of every LLM for contexts (Q, d), shape (Q, N)."""
        rates: Floats = self._rates(contexts)
        if self._retrials:
            for row, context in enumerate(contexts):
                counts = self._retrials.get(context.tobytes())
                if counts is not None:
                    rates[row] /= 1.0 + counts / self.strength
        floored: Floats = np.maximum(rates, RATE_BOUNDS[0] / 10)
        return floored

    def policy(self) -> LinearPolicy:
        """Return the fitted model's numbers, of the predictors that are linear."""
        if (found := self._model.linear()) is None:
            raise UsageError(
                f"predictor={self._model.predictor!r} gives no numbers that are linear in the "
                "context; export offline-ridge or offline-logistic"
            )
        return found

    def learn(self, served: Served) -> None:
        """Remember a retrial as long as the query waits."""
        key = np.ascontiguousarray(served.context).tobytes()
        if served.kept >= 0:
            self._retrials.pop(key, None)
        else:
            counts = self._retrials.setdefault(key, np.zeros(self.problem.num_llms))
            counts[served.shown] += 1.0


class Fitted:
    """A model of the offline split: contexts (n, d) -> success rates (n, N) within `RATE_BOUNDS`.

    A saved one is fitted again to the same split.

    Parameters
    ----------
    data : OfflineData
        The split.
    predictor : str
        One of `FITS`.
    setting : float, optional
        Its setting, where it has one.
    """

    def __init__(self, data: OfflineData, predictor: str, setting: float | None) -> None:
        self.data, self.predictor, self.setting = data, predictor, setting
        self._predict = self._fit(*self._split())

    def _fit(self, contexts: Floats, rates: Floats) -> Predict:
        own = () if self.setting is None else (self.setting,)
        return FITS[self.predictor](contexts, rates, *own)

    def _split(self) -> tuple[Floats, Floats]:
        return self.data.contexts.astype(np.float64), expit(self.data.utilities)

    def __call__(self, contexts: Contexts) -> Floats:
        """Predict."""
        return np.clip(self._predict(contexts.astype(np.float64)), *RATE_BOUNDS)

    def linear(self) -> LinearPolicy | None:
        """Return the model as numbers that are linear in the context; None where it is not."""
        if self.predictor not in ("ridge", "logistic"):
            return None
        dim = self.data.contexts.shape[1]
        values = self._predict(np.vstack([np.zeros(dim), np.eye(dim)]))
        scale = "share"
        if self.predictor == "logistic":
            values, scale = np.asarray(logit(values)), "log_odds"
        return LinearPolicy((values[1:] - values[0]).T, values[0], scale)

    def prior_strength(self) -> float:
        """Return the strength of the prior around its predictions."""
        return prior_strength(*self._split(), self._fit)

    def __getstate__(self) -> tuple[OfflineData, str, float | None]:
        return self.data, self.predictor, self.setting

    def __setstate__(self, state: tuple[OfflineData, str, float | None]) -> None:
        Fitted.__init__(self, *state)


def prior_strength(contexts: Floats, rates: Floats, fit: Fit) -> float:
    """Strength s of a Beta prior around predictions: Var(r | prediction p) = p (1 - p) / (s + 1).

    By moments over the queries and LLMs of two-fold cross-validation; kept within [0.01, 1000].
    """
    fold = np.arange(len(contexts)) % 2
    predicted = np.empty_like(rates)
    for side in (0, 1):
        model = fit(contexts[fold != side], rates[fold != side])
        predicted[fold == side] = np.clip(model(contexts[fold == side]), *RATE_BOUNDS)
    spread = float(np.mean((rates - predicted) ** 2))
    binary = float(np.mean(predicted * (1.0 - predicted)))
    return float(np.clip(binary / max(spread, 1e-12) - 1.0, 0.01, 1000.0))


# --- models ---------------------------------------------------------------------------------------


def fit_knn(contexts: Floats, rates: Floats, neighbours: int) -> Predict:
    """Mean success rates of the nearest offline queries (all of them, if there are fewer)."""
    from sklearn.neighbors import KNeighborsRegressor

    model = KNeighborsRegressor(n_neighbors=min(neighbours, len(contexts)), algorithm="brute")
    model.fit(contexts, rates)
    return lambda x: np.asarray(model.predict(x)).reshape(len(x), -1)


def fit_ridge(contexts: Floats, rates: Floats) -> Predict:
    """Ridge regression per LLM, the weight of each chosen by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas=np.logspace(-3, 3, 13), alpha_per_target=rates.shape[1] > 1)
    model.fit(contexts, rates)
    return lambda x: np.asarray(model.predict(x)).reshape(len(x), -1)


def fit_logistic(contexts: Floats, rates: Floats, inverse_ridge: float) -> Predict:
    """Logistic regression per LLM; a rate is a label 1 of that weight and a 0 of the rest."""
    from sklearn.linear_model import LogisticRegression

    twice = np.concatenate([contexts, contexts])
    labels = np.repeat([1, 0], len(contexts))
    models = [
        LogisticRegression(C=inverse_ridge, max_iter=1000).fit(
            twice, labels, np.concatenate([column, 1.0 - column])
        )
        for column in rates.T
    ]
    return lambda x: np.stack([model.predict_proba(x)[:, 1] for model in models], axis=1)


def fit_boosting(contexts: Floats, rates: Floats, trees: int) -> Predict:
    """Histogram gradient boosting per LLM, without a random part."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    settings: dict[str, Any] = {
        "max_iter": trees,
        "learning_rate": 0.05,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 10,
        "early_stopping": False,
        "random_state": 0,
    }
    with threadpool_limits(1):  # small data: a second thread costs more than it gives
        models = [HistGradientBoostingRegressor(**settings).fit(contexts, c) for c in rates.T]

    def predict(x: Floats) -> Floats:
        with threadpool_limits(1):
            return np.stack([model.predict(x) for model in models], axis=1)

    return predict


FITS: Mapping[str, Callable[..., Predict]] = {
    "knn": fit_knn,
    "ridge": fit_ridge,
    "logistic": fit_logistic,
    "boosting": fit_boosting,
}
"""By their names; the third argument is the setting of those that have one."""
