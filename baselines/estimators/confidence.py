"""Confidence ellipsoids, one per LLM, kept as a factor of the inverse Gram matrix.

Norms and Thompson noise are read off the factor, which rank-one updates keep exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.compiled import summing

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DIRECT_DIM = 64
"""Up to this many dimensions contexts are projected anew each slot; beyond it once a query."""

JITTER = {"float64": 1e-9, "float32": 1e-6}
"""Relative weight added to the diagonal of a covariance before its Cholesky factor is taken."""


@summing
def project(factor: Array, context: Array) -> Array:
    """Return v = A^T x, shape (d,)."""
    projected = np.zeros(len(factor), factor.dtype)
    for a in range(len(factor)):
        for k in range(len(factor)):
            projected[k] += context[a] * factor[a, k]
    return projected


@summing
def shrink(factor: Array, v: Array) -> None:
    """Set A <- A - b (A v) v^T with b = 1 / (r (r + 1)), r = sqrt(1 + |v|^2)."""
    square = 1.0
    for k in range(len(v)):
        square += v[k] * v[k]
    root = math.sqrt(square)
    scale = 1.0 / (root * (root + 1.0))
    for a in range(len(v)):
        along = 0.0
        for k in range(len(v)):
            along += factor[a, k] * v[k]
        for k in range(len(v)):
            factor[a, k] -= scale * along * v[k]


@summing
def _observe(factors: Array, shown: Ints, context: Array) -> None:
    for llm in shown:
        shrink(factors[llm], project(factors[llm], context))


@summing
def _direct_norms(factors: Array, contexts: Array) -> Floats:
    """Return |A_j^T x|, shape (Q, N)."""
    norms = np.empty((len(contexts), len(factors)))
    v = np.empty(contexts.shape[1])
    for j in range(len(factors)):
        for q in range(len(contexts)):
            v[:] = 0.0
            for a in range(len(v)):
                for k in range(len(v)):
                    v[k] += contexts[q, a] * factors[j, a, k]
            square = 0.0
            for k in range(len(v)):
                square += v[k] * v[k]
            norms[q, j] = math.sqrt(square)
    return norms


@summing
def _direct_noise(factors: Array, contexts: Array, draws: Floats) -> Floats:
    """Return max_m x^T A_j g_{j,m}, shape (Q, N), for draws of shape (N, d, M)."""
    num_llms, dim, samples = draws.shape
    largest = np.empty((len(contexts), num_llms))
    offsets, noise = np.empty((dim, samples)), np.empty(samples)
    for j in range(num_llms):
        offsets[:] = 0.0
        for a in range(dim):
            for k in range(dim):
                for m in range(samples):
                    offsets[a, m] += factors[j, a, k] * draws[j, k, m]
        for q in range(len(contexts)):
            noise[:] = 0.0
            for a in range(dim):
                for m in range(samples):
                    noise[m] += contexts[q, a] * offsets[a, m]
            largest[q, j] = noise.max()
    return largest


class ConfidenceFactors:
    r"""Factors A_j with V_j^{-1} = A_j A_j^T, where V_j = ridge I + sum of w x x^T.

    With v = A^T x the rank-one update of the Gram matrix is exactly

        A <- A - b (A v) v^T,    b = 1 / (r (r + 1)),    r = sqrt(1 + |v|^2),

    because (I - b v v^T)^2 = (I + v v^T)^{-1}. Then ||x||_{V^{-1}} = |A^T x|, and x^T A g with
    g ~ N(0, I) is Gaussian noise of covariance x^T V^{-1} x.

    Costs, all flat in the number of updates: an update is O(d^2). Up to ``DIRECT_DIM`` dimensions
    norms of Q queries are O(Q N d^2). Above that the projections A_j^T x of the waiting queries
    and their inner products x^T V_j^{-1} x' are computed when a query is first seen,
    O(N d (d + Q)), and kept current by the same rank-one formula, so norms are O(Q N), noise
    O(N Q^3) and an update O(d^2 + Q d).

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    ridge : float
        Weight of the identity in V_j, lambda_0.
    dtype : {"float64", "float32"}
        Storage of the factors. Single precision halves the memory traffic, which is the cost at
        large d; A_j A_j^T stays positive definite whatever the rounding.

    Raises
    ------
    ValueError
        If ``ridge`` is not positive.
    """

    def __init__(self, num_llms: int, dim: int, ridge: float = 1.0, dtype: str = "float64") -> None:
        checks.number("ridge", ridge, "(0, inf)")
        self.factors: Array = np.zeros((num_llms, dim, dim), dtype)  # A_j
        self.factors[:, np.arange(dim), np.arange(dim)] = ridge**-0.5
        self._direct = dim <= DIRECT_DIM
        self._rows: dict[bytes, int] = {}  # context bytes -> row of self._kept
        self._kept: Array = np.zeros((num_llms, 0, dim), dtype)  # A_j^T x of the waiting queries
        self._products = np.zeros((num_llms, 0, 0))  # x^T V_j^{-1} x' of the waiting queries

    def project(self, llm: int, context: Array) -> Array:
        """Return v = A_j^T x, shape (d,), for one LLM and one context."""
        if not self._direct:
            row = self._rows.get(context.tobytes())
            if row is not None:
                kept: Array = self._kept[llm, row].copy()
                return kept
        return project(self.factors[llm], context)

    def update(self, llm: int, context: Array, weight: float = 1.0) -> None:
        """Add ``weight`` x x^T to V_j."""
        v = self.project(llm, context)
        if weight != 1.0:
            v *= weight**0.5
        shrink(self.factors[llm], v)
        self.follow(llm, v)

    def observe(self, shown: Sequence[int], context: Array) -> None:
        """Add x x^T to the V_j of the LLMs shown."""
        if self._direct:
            _observe(self.factors, np.array(shown, np.int64), context)
        else:
            for llm in shown:
                self.update(llm, context)

    def follow(self, llm: int, v: Array) -> None:
        """Keep what is known of the waiting queries current after `shrink` of A_j by v."""
        if self._rows:
            kept, products = self._kept[llm], self._products[llm]
            square = 1.0 + float(v @ v)
            root = square**0.5
            scale = 1.0 / (root * (root + 1.0))
            along = kept @ v
            kept -= np.multiply.outer(along, scale * v)
            products -= np.multiply.outer(along / square, along)

    def norms(self, contexts: Array) -> Floats:
        """Return ||x||_{V_j^{-1}}, shape (Q, N), for contexts of shape (Q, d)."""
        if self._direct:
            return _direct_norms(self.factors, contexts)
        rows = self._waiting(contexts)
        squares: NDArray[np.float64] = self._products[:, rows, rows].T.clip(0.0)
        return np.asarray(np.sqrt(squares))

    def noise(self, contexts: Array, rng: np.random.Generator, samples: int) -> Floats:
        """Draw max_m x^T A_j g_{j,m}, shape (Q, N), for contexts of shape (Q, d).

        The draws g_{j,m} ~ N(0, I_d), m = 1..M, are shared by all the queries. Above
        ``DIRECT_DIM`` dimensions the same Gaussian is drawn from its Q x Q covariance instead.
        """
        num_llms, dim, _ = self.factors.shape
        if self._direct:
            draws = rng.standard_normal((num_llms, dim, samples))
            return _direct_noise(self.factors, contexts, draws)
        rows, queries = np.unique(self._waiting(contexts), return_inverse=True)
        draws = rng.standard_normal((num_llms, len(rows), samples))
        try:
            roots = self._covariance_roots(rows)
        except np.linalg.LinAlgError:  # rounding has built up in products kept for very long
            self._rows = {}
            rows, queries = np.unique(self._waiting(contexts), return_inverse=True)
            roots = self._covariance_roots(rows)
        noise: Floats = np.matmul(roots, draws).max(axis=2)[:, queries]
        return noise.T

    def _covariance_roots(self, rows: NDArray[np.intp]) -> Floats:
        """Cholesky factors of x^T V_j^{-1} x' over distinct waiting queries, shape (N, Q, Q)."""
        covariance = self._products[:, rows[:, None], rows]
        # Contexts that are nearly equal make it nearly singular; alpha could not resolve this.
        jitter = JITTER[self.factors.dtype.name]
        covariance += (jitter * covariance.max() + jitter**2) * np.eye(len(rows))
        return np.asarray(np.linalg.cholesky(covariance), np.float64)

    def _waiting(self, contexts: Array) -> NDArray[np.intp]:
        """Rows of the waiting queries in what is kept of them from slot to slot, shape (Q,)."""
        keys = [context.tobytes() for context in contexts]
        new = {key: i for i, key in enumerate(keys) if key not in self._rows}
        if new:
            waiting = set(keys)
            self._rows = {key: row for key, row in self._rows.items() if key in waiting}
            taken = set(self._rows.values())
            size = self._kept.shape[1]
            free = [row for row in range(size) if row not in taken]
            missing = len(new) - len(free)
            if missing > 0:
                free.extend(range(size, size + missing))
                self._kept = np.pad(self._kept, ((0, 0), (0, missing), (0, 0)))
                self._products = np.pad(self._products, ((0, 0), (0, missing), (0, missing)))
            rows = free[: len(new)]
            fresh = contexts[list(new.values())] @ self.factors  # (N, new, d)
            self._kept[:, rows] = fresh
            products = np.matmul(fresh, self._kept.transpose(0, 2, 1))  # (N, new, R)
            self._products[:, rows] = products
            self._products[:, :, rows] = products.transpose(0, 2, 1)
            self._rows.update(zip(new, rows, strict=True))
        return np.array([self._rows[key] for key in keys])
