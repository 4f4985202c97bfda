"""Text to context vectors: TF-IDF of hashed character n-grams, then a truncated SVD.

Fitted on an offline split only, needs no download, and is cached on disk by content.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.workloads.pool import QueryPool, check_count

DEFAULT_CONTEXT_DIM = 64
CACHE_VARIABLE = "LLMQUEUE_GYM_CACHE"

_PIPELINE: dict[str, Any] = {
    "version": 1,
    "ngram_range": (3, 5),
    "n_features": 2**15,
    "sublinear_tf": True,
    "random_state": 0,
}
_NEEDS_DATA = 'turning text into contexts needs {}: pip install "llmqueue_gym[data]"'


def offline_rows(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which rows belong to the offline split, shape (n,): about a quarter of the texts.

    A row's side depends on its text alone (its SHA-256), never on its position or the other rows;
    equal texts land on the same side.
    """
    return np.array(
        [hashlib.sha256(_utf8(text)).digest()[0] < 64 for text in texts], dtype=np.bool_
    )


def text_pool(
    texts: Sequence[str],
    quality: NDArray[np.float64],
    cost: NDArray[np.float64] | None,
    llms: tuple[str, ...],
    context_dim: int | None = None,
) -> tuple[QueryPool, NDArray[np.int64]]:
    """Make a pool of texts; return it and its online rows (those the embedding never saw)."""
    dim = DEFAULT_CONTEXT_DIM if context_dim is None else context_dim
    contexts = embed_texts(texts, dim)
    return QueryPool(contexts, quality, cost, llms), np.flatnonzero(~offline_rows(texts))


def embed_texts(texts: Sequence[str], context_dim: int) -> NDArray[np.float32]:
    """Context vectors of all texts, fitted on the offline ones, from the cache if it has them.

    A context is (z, 1) / sqrt(2): z the ``context_dim - 1`` leading singular directions of the
    TF-IDF vector scaled to norm 1, and a constant that gives linear models an intercept. So every
    context has norm 1; a text with no weight on those directions is (0, ..., 0, 1).

    Parameters
    ----------
    texts : sequence of str
        One text a query.
    context_dim : int
        Length of a context, d, at least 2.

    Returns
    -------
    ndarray of float32, shape (n, d)

    Raises
    ------
    ValueError
        If the offline split has fewer than d texts.
    ImportError
        If scikit-learn or platformdirs is not installed.
    """
    offline = offline_rows(texts)
    check_count("context_dim", context_dim, 2)
    if offline.sum() < context_dim:
        raise ValueError(
            f"context_dim={context_dim} needs at least as many texts in the offline split, which "
            f"holds {offline.sum()} of the {len(texts)} texts; pass a smaller context_dim, give "
            "more queries, or bring your own vectors with `embedding`"
        )
    path = _cache_dir() / f"contexts-{_cache_key(texts, context_dim)}.npz"
    contexts = _read(path, (len(texts), context_dim))
    if contexts is None:
        contexts = _fit_transform(texts, offline, context_dim)
        _write(path, contexts)
    return contexts


def _utf8(text: str) -> bytes:
    # JSON can smuggle in lone surrogates, which are not UTF-8
    return text.encode("utf-8", "replace")


def _fit_transform(
    texts: Sequence[str], offline: NDArray[np.bool_], context_dim: int
) -> NDArray[np.float32]:
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(_NEEDS_DATA.format("scikit-learn")) from error
    seed = _PIPELINE["random_state"]
    counts = HashingVectorizer(
        analyzer="char",
        ngram_range=_PIPELINE["ngram_range"],
        n_features=_PIPELINE["n_features"],
        norm=None,
        alternate_sign=False,
    ).transform(_utf8(text).decode() for text in texts)
    tfidf = TfidfTransformer(sublinear_tf=_PIPELINE["sublinear_tf"]).fit(counts[offline])
    weights = tfidf.transform(counts)
    # One BLAS thread, so that the bits do not depend on the machine's load or worker settings;
    # the division that may be 0/0 is the explained variance ratio, which is not used.
    with threadpool_limits(1), np.errstate(divide="ignore", invalid="ignore"):
        svd = TruncatedSVD(context_dim - 1, random_state=seed).fit(weights[offline])
        directions = svd.transform(weights)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    norms[norms < 1e-9] = np.inf
    contexts = np.hstack([directions / norms, np.ones((len(directions), 1))])
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    return contexts.astype(np.float32)


def _cache_dir() -> Path:
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override)
    try:
        from platformdirs import user_cache_dir
    except ImportError as error:
        raise ImportError(_NEEDS_DATA.format("platformdirs")) from error
    return Path(user_cache_dir("llmqueue_gym"))


def _cache_key(texts: Sequence[str], context_dim: int) -> str:
    try:
        sklearn = version("scikit-learn")  # read from the metadata: importing it takes a second
    except PackageNotFoundError as error:
        raise ImportError(_NEEDS_DATA.format("scikit-learn")) from error
    digest = hashlib.sha256(json.dumps([_PIPELINE, sklearn, context_dim]).encode())
    for text in texts:
        data = _utf8(text)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Contexts from a cache file, or None if there is none worth reading."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            contexts: NDArray[np.float32] = archive["contexts"]
    except Exception:  # whatever is wrong with a cache file, the answer is to compute it again
        return None
    sound = contexts.shape == shape and contexts.dtype == np.float32
    return contexts if sound and np.isfinite(contexts).all() else None


def _write(path: Path, contexts: NDArray[np.float32]) -> None:
    """Write a cache file atomically: of racing processes the last one wins, with the same bits."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, contexts=contexts)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(
            f"could not cache contexts in {path.parent} ({error}); they are computed again next "
            f"time. Set {CACHE_VARIABLE} to a folder you can write to.",
            stacklevel=2,
        )
