"""What is fitted to offline texts: TF-IDF with a truncated SVD, and principal directions.

Each turns a batch or a single text or vector into the same bits, and is saved as its arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.compiled import compiled
from llmqueue_gym.errors import needing
from llmqueue_gym.workloads.ngrams import FEATURES, NGRAMS, Counts, directed

Floats = NDArray[np.float64]

NEEDED_FOR = "turning text into contexts"
LEAST = 1e-9
"""Norm of a row below which it counts as zeros."""

PIPELINE: dict[str, Any] = {
    "version": 1,
    "ngram_range": NGRAMS,
    "n_features": FEATURES,
    "sublinear_tf": True,
    "random_state": 0,
}


class Tfidf:
    """TF-IDF of hashed n-grams of characters, in its leading singular directions.

    Parameters
    ----------
    counts : sparse matrix, shape (n, features)
        Of the texts to fit.
    dim : int
        Directions.
    """

    def __init__(self, counts: Any, dim: int) -> None:
        with needing(NEEDED_FOR, "scikit-learn", "data"):
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import TfidfTransformer
            from threadpoolctl import threadpool_limits
        weighing = TfidfTransformer(sublinear_tf=PIPELINE["sublinear_tf"]).fit(counts)
        # One BLAS thread, so that the bits do not depend on the machine's load or worker settings;
        # the division that may be 0/0 is the explained variance ratio, which is not used.
        with threadpool_limits(1), np.errstate(divide="ignore", invalid="ignore"):
            svd = TruncatedSVD(dim, random_state=PIPELINE["random_state"])
            svd.fit(weighing.transform(counts))
        self.idf: Floats = np.asarray(weighing.idf_)
        self.directions: Floats = np.ascontiguousarray(svd.components_.T)  # (features, dim)

    def __call__(self, counts: Counts) -> Floats:
        """Return directions, shape (n, dim)."""
        weights = (np.log(counts.counts) + 1.0) * self.idf[counts.features]
        return directed(weights, counts.features, counts.starts, self.directions)

    def as_json(self) -> dict[str, Any]:
        """Return what is fitted, JSON-plain; directions of features that no text had are None."""
        known: list[bool] = (np.abs(self.directions).sum(axis=1) > 0.0).tolist()
        rows = zip(self.directions.tolist(), known, strict=True)
        return {
            "ngrams": list(NGRAMS),
            "features": FEATURES,
            "dim": self.directions.shape[1],
            "idf": self.idf.tolist(),
            "directions": [row if there else None for row, there in rows],
        }


class Principal:
    """Leading principal directions, of unit variance if whitened.

    Parameters
    ----------
    vectors : ndarray, shape (n, D)
        To fit.
    dim : int
        Directions.
    whiten : bool
    """

    def __init__(self, vectors: NDArray[Any], dim: int, whiten: bool) -> None:
        with needing(NEEDED_FOR, "scikit-learn", "data"):
            from sklearn.decomposition import PCA
            from threadpoolctl import threadpool_limits
        with threadpool_limits(1):  # the bits do not depend on the machine's load
            pca = PCA(dim, whiten=whiten, svd_solver="full").fit(vectors.astype(np.float64))
        self.whiten = whiten
        self.mean, self.directions = pca.mean_, pca.components_
        self.variance = pca.explained_variance_

    def __call__(self, vectors: NDArray[Any]) -> Floats:
        """Return directions, shape (n, dim)."""
        with needing(NEEDED_FOR, "scikit-learn", "data"):
            from sklearn.decomposition import PCA
        pca = PCA(len(self.directions), whiten=self.whiten)
        pca.mean_, pca.components_ = self.mean, self.directions
        pca.explained_variance_ = self.variance
        return np.asarray(pca.transform(vectors.astype(np.float64)))


def unit(directions: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows to norm 1; a row of zeros stays."""
    return np.asarray(directions / _norms(directions), dtype=np.float32)


def with_constant(directions: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows to norm 1, append the constant, scale again."""
    rows, dim = directions.shape
    if rows == 1 and directions.dtype == np.float64:
        return _one_with_constant(directions[0])
    contexts = np.ones((rows, dim + 1))
    np.divide(directions, _norms(directions), out=contexts[:, :dim])
    contexts /= _norms(contexts)
    return contexts.astype(np.float32)


def _norms(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return the norms of rows, shape (n, 1); infinity for a row of zeros."""
    norms = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
    norms[norms < LEAST] = np.inf
    return norms


@compiled
def _one_with_constant(directions: Floats) -> NDArray[np.float32]:
    """Return what `with_constant` makes of one row, to the last bit in a tenth of the time."""
    size = len(directions)
    row, context = np.ones(size + 1), np.empty((1, size + 1), np.float32)
    norm = np.sqrt(_square(directions))
    if norm < LEAST:
        norm = np.inf
    for k in range(size):
        row[k] = directions[k] / norm
    norm = np.sqrt(_square(row))
    for k in range(size + 1):
        context[0, k] = row[k] / norm
    return context


@compiled
def _square(row: Floats) -> float:
    """Return the sum of squares in NumPy's order: halves of more than 128 terms, then by eights."""
    size, total = len(row), 0.0
    if size > 128:
        half = size // 16 * 8
        return _square(row[:half]) + _square(row[half:])
    eights = size - size % 8
    if eights:
        sums = np.zeros(8)
        for k in range(eights):
            sums[k % 8] += row[k] * row[k]
        total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + (
            (sums[4] + sums[5]) + (sums[6] + sums[7])
        )
    for k in range(eights, size):
        total += row[k] * row[k]
    return total
