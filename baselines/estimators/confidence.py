"""Confidence ellipsoids, one per LLM, kept as a factor of the inverse Gram matrix.

Norms and Thompson noise are read off the factor, which rank-one updates keep exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs

Array = NDArray[np.floating[Any]]

DIRECT_DIM = 64
"""Up to this many dimensions contexts are projected anew each slot; beyond it once a query."""

JITTER = 1e-9
"""Relative weight added to the diagonal of a covariance before its Cholesky factor is taken."""


class ConfidenceFactors:
    r"""Factors A_j with V_j^{-1} = A_j A_j^T, where V_j = ridge I + sum of w x x^T.

    With v = A^T x the rank-one update of the Gram matrix is exactly

        A <- A - b (A v) v^T,    b = 1 / (r (r + 1)),    r = sqrt(1 + |v|^2),

    because (I - b v v^T)^2 = (I + v v^T)^{-1}. Then ||x||_{V^{-1}} = |A^T x|, and x^T A g with
    g ~ N(0, I) is Gaussian noise of covariance x^T V^{-1} x.

    Costs, all flat in the number of updates: an update is O(d^2). Up to ``DIRECT_DIM`` dimensions
    norms of Q queries are O(Q N d^2). Above that the projections A_j^T x of the waiting queries
    are computed when a query is first seen (O(N d^2)) and kept current by the same rank-one
    formula, so norms are O(Q N d), noise O(N (Q^2 d + Q^3)) and an update O(d^2 + Q d).

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    ridge : float
        Weight of the identity in V_j, lambda_0.
    """

    def __init__(self, num_llms: int, dim: int, ridge: float = 1.0) -> None:
        self.factors = np.zeros((num_llms, dim, dim))  # A_j
        self.factors[:, np.arange(dim), np.arange(dim)] = ridge**-0.5
        # A_j is C-ordered and BLAS reads it as A_j^T in Fortran order, so ger works in place.
        self._transposed = [factor.T for factor in self.factors]
        self._ger = get_blas_funcs("ger", (self.factors,))
        self._direct = dim <= DIRECT_DIM
        self._rows: dict[bytes, int] = {}  # context bytes -> row of self._kept
        self._kept = np.zeros((0, num_llms, dim))  # A_j^T x of the waiting queries

    def project(self, llm: int, context: Array) -> NDArray[np.float64]:
        """Return v = A_j^T x, shape (d,), for one LLM and one context."""
        if not self._direct:
            row = self._rows.get(context.tobytes())
            if row is not None:
                kept: NDArray[np.float64] = self._kept[row, llm].copy()
                return kept
        projected: NDArray[np.float64] = np.matmul(context, self.factors[llm])
        return projected

    def update(self, llm: int, context: Array, weight: float = 1.0) -> None:
        """Add ``weight`` x x^T to V_j."""
        self.update_projected(llm, self.project(llm, context), weight)

    def update_projected(
        self, llm: int, projection: NDArray[np.float64], weight: float = 1.0
    ) -> None:
        """Add ``weight`` x x^T to V_j, given v = A_j^T x."""
        v = projection if weight == 1.0 else projection * weight**0.5
        root = (1.0 + float(v @ v)) ** 0.5
        scale = 1.0 / (root * (root + 1.0))
        direction = self.factors[llm] @ v
        self._ger(-scale, v, direction, a=self._transposed[llm], overwrite_a=1)
        if self._rows:
            kept = self._kept[:, llm]
            kept -= np.multiply.outer(kept @ v, scale * v)

    def norms(self, contexts: Array) -> NDArray[np.float64]:
        """Return ||x||_{V_j^{-1}}, shape (Q, N), for contexts of shape (Q, d)."""
        if self._direct:
            projected = contexts @ self.factors  # (N, Q, d)
            squares: NDArray[np.float64] = np.einsum("nqd,nqd->qn", projected, projected)
        else:
            kept = self._waiting(contexts)
            squares = np.einsum("qnd,qnd->qn", kept, kept)
        return np.asarray(np.sqrt(squares))

    def noise(self, contexts: Array, rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
        """Draw x^T A_j g_{j,m}, shape (Q, N, M), for contexts of shape (Q, d).

        The draws g_{j,m} ~ N(0, I_d), m = 1..M, are shared by all the queries. Above
        ``DIRECT_DIM`` dimensions the same Gaussian is drawn from its Q x Q covariance instead.
        """
        num_llms, dim, _ = self.factors.shape
        if self._direct:
            draws = rng.standard_normal((num_llms, dim, samples))
            offsets = (self.factors @ draws).transpose(1, 0, 2).reshape(dim, -1)
            noise: NDArray[np.float64] = np.matmul(contexts, offsets)
            return noise.reshape(len(contexts), num_llms, samples)
        kept = self._waiting(contexts).transpose(1, 0, 2)
        covariance = np.matmul(kept, kept.transpose(0, 2, 1))
        # Equal contexts make it singular; the jitter is far below what alpha could resolve.
        covariance += (JITTER * covariance.max() + JITTER**2) * np.eye(len(contexts))
        draws = rng.standard_normal((num_llms, len(contexts), samples))
        noise = np.matmul(np.linalg.cholesky(covariance), draws)
        return noise.transpose(1, 0, 2)

    def _waiting(self, contexts: Array) -> NDArray[np.float64]:
        """Projections (Q, N, d) of the waiting queries, kept from slot to slot."""
        keys = [context.tobytes() for context in contexts]
        new = {key: i for i, key in enumerate(keys) if key not in self._rows}
        if new:
            waiting = set(keys)
            self._rows = {key: row for key, row in self._rows.items() if key in waiting}
            taken = set(self._rows.values())
            free = [row for row in range(len(self._kept)) if row not in taken]
            missing = len(new) - len(free)
            if missing > 0:
                free.extend(range(len(self._kept), len(self._kept) + missing))
                spare = np.zeros((missing, *self._kept.shape[1:]))
                self._kept = np.concatenate([self._kept, spare])
            rows = free[: len(new)]
            fresh = contexts[list(new.values())] @ self.factors  # (N, new, d)
            self._kept[rows] = fresh.transpose(1, 0, 2)
            self._rows.update(zip(new, rows, strict=True))
        return self._kept[[self._rows[key] for key in keys]]
