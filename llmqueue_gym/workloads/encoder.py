"""The encoder of live texts: the contexts that `embed_texts` gives, fitted once and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.state import read_state, write_state
from llmqueue_gym.workloads import embeddings
from llmqueue_gym.workloads.embeddings import (
    TFIDF,
    ContextMethod,
    as_contexts,
    offline_rows,
    read_contexts,
    reduced_dim,
    usual_dim,
)
from llmqueue_gym.workloads.fitted import Principal, Tfidf, unit, with_constant
from llmqueue_gym.workloads.ngrams import counts_of, utf8

Contexts = NDArray[np.float32]


class TextEncoder:
    """Turns any text into the context that it has, or would have, among the texts fitted to.

    It holds n-gram weights and directions, no text.

    Parameters
    ----------
    texts : sequence of str
        As `embed_texts` is given them: their offline quarter is fitted to.
    context_dim : int, optional
        Length of a context, d.
    contexts : str or mapping, optional
        Which vectors; see `llmqueue_gym.workloads.embeddings.read_contexts`.

    Attributes
    ----------
    context_dim : int
        Length of a context, d.

    Raises
    ------
    UsageError
        As `embed_texts`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        context_dim: int | None = None,
        contexts: str | Mapping[str, Any] | ContextMethod | None = None,
    ) -> None:
        self.how = how = read_contexts(contexts)
        offline = offline_rows(texts)
        known = [texts[row] for row in np.flatnonzero(offline).tolist()]
        self._tfidf: Tfidf | None = None
        self._principal: Principal | None = None
        self._identity: list[str] = []  # of an encoder's model
        self._encode: Any = None
        if how.method == TFIDF:
            self.context_dim = usual_dim(offline, context_dim)
            dim = self.context_dim - how.constant
            self._tfidf = Tfidf(counts_of(known).sparse(), dim)
            if how.reduce == "whiten":
                self._principal = Principal(self._raw(known), dim, whiten=True)
            return
        self._identity = embeddings.encoder_of(how).identity
        raw = embeddings.encodings(texts, offline, how)
        reduced = reduced_dim(raw.shape[1], context_dim, how, offline)
        self.context_dim = (raw.shape[1] if reduced is None else reduced) + how.constant
        if reduced is not None:
            self._principal = Principal(raw[offline], reduced, how.reduce == "whiten")

    def _raw(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the vectors before the reduction."""
        if self._tfidf is not None:
            return with_constant(self._tfidf(counts_of(texts)))[:, :-1]
        if self._encode is None:
            encoder = embeddings.encoder_of(self.how)
            if encoder.identity != self._identity:
                raise UsageError(
                    f"contexts: fitted to vectors of {self._identity}, but what is installed is "
                    f"{encoder.identity}; install that, or fit and train anew"
                )
            self._encode = encoder.load()
        return np.asarray(self._encode([utf8(text).decode() for text in texts]), np.float32)

    def encode(self, texts: Sequence[str]) -> Contexts:
        """Return the contexts of texts, (n, d)."""
        if isinstance(texts, str):
            raise UsageError("texts is one text; call the encoder itself with it")
        if self._tfidf is not None and self._principal is None:
            directions = self._tfidf(counts_of(texts))
            if self.how.constant:
                return with_constant(directions)
            return unit(with_constant(directions)[:, :-1])
        raw = self._raw(texts)
        return as_contexts(raw if self._principal is None else self._principal(raw), self.how)

    def __call__(self, text: str) -> Contexts:
        """Return the context of one text, (d,)."""
        context: Contexts = self.encode([text])[0]
        return context

    def as_json(self) -> dict[str, Any]:
        """Return the pipeline JSON-plain, for those who turn texts into contexts elsewhere.

        Raises
        ------
        UsageError
            If it is not TF-IDF and its singular directions alone.
        """
        if self._tfidf is None or self._principal is not None or not self.how.constant:
            raise UsageError(
                f"contexts={self.how!r} cannot be written as JSON; fit the agent on the usual "
                "contexts, 'tfidf-svd' with its constant and no further reduction"
            )
        return self._tfidf.as_json()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}

    def save(self, path: str | Path) -> None:
        """Save it: arrays and JSON, nothing pickled."""
        write_state(path, self, "encoder", context_dim=self.context_dim)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        UsageError
            If it is no saved encoder, is damaged, or was saved by another version.
        """
        found, _ = read_state(path, "encoder")
        if not isinstance(found, cls):
            raise UsageError(f"path={str(path)!r} holds a {type(found).__name__}, no encoder")
        return found
