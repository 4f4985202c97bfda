"""What serving agents learn: who keeps which answer, how long answers are, who loses patience.

The known versions are told instead; they are yardsticks outside the ranking.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.estimators import ConfidenceFactors, RidgeMNL
from baselines.interface import ServeProblem
from llmqueue_gym.serving.instance import ServingInstance

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_CURVATURE = 0.01
"""An answer that was all but certain still says this much."""

LEAST_IMPATIENCE = 1e-3
"""Kinds of which nobody leaves are alike."""

MAX_KINDS = 8
"""Different contexts up to which a query's kind is its context."""


class LearnedSuccess:
    """P(an answer of LLM m is kept) by ridge logistic regression, with Thompson samples.

    theta_m ~ N(theta-hat_m, explore^2 H_m^{-1}) with the Hessian H_m of the penalised likelihood.

    Parameters
    ----------
    num_llms, dim : int
        N and d.
    rng : numpy.random.Generator
        Of the samples.
    ridge, explore : float
        Weight of |theta|^2 / 2, and scale of the samples; 0: none.
    """

    def __init__(
        self,
        num_llms: int,
        dim: int,
        rng: np.random.Generator,
        ridge: float = 0.3,
        explore: float = 0.5,
    ) -> None:
        self.explore = explore
        self.rng = rng
        self.estimator = RidgeMNL(num_llms, dim, 1, ridge)
        self.confidence = ConfidenceFactors(num_llms, dim, ridge)

    def mean(self, contexts: Array) -> Floats:
        """Return the estimate, shape (Q, N), for contexts (Q, d)."""
        return _logistic(contexts @ self.estimator.theta.T)

    def sample(self, contexts: Array) -> Floats:
        """Return a Thompson sample, one for all the queries."""
        if self.explore == 0.0:
            return self.mean(contexts)
        noise = self.confidence.noise(contexts, self.rng, 1)
        return _logistic(contexts @ self.estimator.theta.T + self.explore * noise)

    def learn(self, context: Array, llm: int, kept: bool) -> None:
        """Learn from one answer."""
        self.estimator.update(context, [llm], llm if kept else -1)
        p = float(_logistic(context @ self.estimator.theta[llm]))
        self.confidence.update(llm, context, max(p * (1.0 - p), LEAST_CURVATURE))


class KnownSuccess:
    """The true P(an answer of LLM m is kept)."""

    def __init__(self, truth: ServingInstance) -> None:
        self._success = truth.success
        self._row = {context.tobytes(): row for row, context in enumerate(truth.contexts)}

    def mean(self, contexts: Array) -> Floats:
        """Return the truth, shape (Q, N)."""
        rows = [self._row[context.tobytes()] for context in contexts]
        return np.asarray(self._success[rows])

    sample = mean

    def learn(self, context: Array, llm: int, kept: bool) -> None:
        """There is nothing to learn."""


class Service:
    """How fast replicas answer: public speeds, and the mean length of an answer, learned.

    An answer is taken to end with probability 1 - exp(-v / l) in a slot of v iterations: l is the
    maximum likelihood estimate from all slots in which a query was served, whatever its length.

    Attributes
    ----------
    speed : ndarray, shape (R, N, C + 2)
        Iterations a slot of each of n active queries, v; row n = 0 is that of n = 1.
    mean_length : float
        Iterations of an answer, l.
    """

    def __init__(self, problem: ServeProblem, truth: ServingInstance | None = None) -> None:
        active = np.maximum(np.arange(max(problem.places) + 2), 1)
        base, each = np.array(problem.base_seconds), np.array(problem.each_seconds)
        with np.errstate(divide="ignore"):
            self.speed = problem.slot_seconds / (base[..., None] + each[..., None] * active)
        finite = self.speed[np.isfinite(self.speed)]
        self.mean_length = 10.0 * float(np.median(finite)) if finite.size else 1.0
        self.served = np.zeros(self.speed.shape)  # query slots
        self.answers = np.zeros(self.speed.shape)
        self._fit_at = 4.0
        if truth is not None:
            prefill = np.ceil(truth.inputs / max(truth.chunk.max(), 1.0)).mean()
            prefill *= float(truth.chunk.any())
            self.mean_length = float(truth.share @ truth.mean_tokens + prefill)
            self._fit_at = np.inf

    def rates(self, hosts: Ints, active: Ints) -> Floats:
        """P(an answer ends in a slot) with n active queries, (R,); 0 where nothing is hosted."""
        speed = self.speed[np.arange(len(hosts)), hosts, active]
        return np.where(hosts >= 0, -np.expm1(-speed / self.mean_length), 0.0)

    def throughput(self, places: Ints) -> Floats:
        """Return the most answers a slot of every replica and LLM, shape (R, N)."""
        active = np.arange(self.speed.shape[2])
        rates = active * -np.expm1(-self.speed / self.mean_length)
        return np.asarray(np.where(active <= places[:, None, None], rates, 0.0).max(axis=2))

    def learn(self, replica: int, llm: int, active: int, answers: int) -> None:
        """Note a slot in which a replica served n queries and ended some answers."""
        self.served[replica, llm, active] += active
        self.answers[replica, llm, active] += answers
        if answers and self.answers.sum() >= self._fit_at:
            self._fit_at *= 1.1
            self._fit()

    def _fit(self) -> None:
        """Solve sum a v / (exp(v / l) - 1) = sum (s - a) v for l by bisection of log l."""
        use = (self.served > 0) & np.isfinite(self.speed)
        v, a, s = self.speed[use], self.answers[use], self.served[use]
        if not a.sum() or not np.any(s > a):
            return
        low, high = np.log(v.min() * 1e-3), np.log(s.sum() * v.max() * 10.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            ended = float(np.sum(a * v / np.expm1(np.minimum(v * np.exp(-middle), 500.0))))
            low, high = (middle, high) if ended < np.sum((s - a) * v) else (low, middle)
        self.mean_length = float(np.exp(0.5 * (low + high)))


class Kinds:
    """Queries by their context, while there are few different ones, and what is seen of each kind.

    Attributes
    ----------
    contexts : list of ndarray
        Of every kind seen so far.
    few : bool
        Whether there are at most `MAX_KINDS`.
    arrivals, waited, left : ndarray, shape (MAX_KINDS,)
        Queries that arrived; query slots waited, and how many left while they waited.
    """

    def __init__(self, truth: ServingInstance | None = None) -> None:
        self.contexts: list[Array] = []
        self.few = True
        self._of: dict[bytes, int] = {}
        self.arrivals, self.waited, self.left = np.zeros((3, MAX_KINDS))
        self._truth = truth
        if truth is not None:
            self.of(truth.contexts[: MAX_KINDS + 1])

    def of(self, contexts: Array) -> Ints:
        """Return the kind of each query, shape (Q,); all are of kind 0 where there are many."""
        if self.few:
            for context in contexts:
                key = context.tobytes()
                if key not in self._of:
                    self._of[key] = len(self._of)
                    self.contexts.append(context.copy())
            self.few = len(self._of) <= MAX_KINDS
        if not self.few:
            return np.zeros(len(contexts), dtype=np.int64)
        return np.array([self._of[context.tobytes()] for context in contexts], dtype=np.int64)

    def impatience(self) -> Floats:
        """Return theta of every kind: leaving in a slot; a weak prior keeps it above 0."""
        if self._truth is not None:
            size = MAX_KINDS if self.few else 1
            theta = np.full(MAX_KINDS, self._truth.impatience.mean())
            theta[: len(self._truth.impatience[:size])] = self._truth.impatience[:size]
            return theta
        seen = (self.left + 0.01) / (self.waited + 10.0)
        return np.asarray(np.maximum(seen, LEAST_IMPATIENCE))


def _logistic(utilities: Array) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(utilities, -60.0, 60.0))))
