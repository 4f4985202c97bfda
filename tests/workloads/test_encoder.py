"""The encoder of live texts: the contexts that workloads give, for any text; saved and live."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.live import live_observation
from llmqueue_gym.workloads import embeddings
from llmqueue_gym.workloads.embeddings import WORDLLAMA, embed_texts, read_contexts
from llmqueue_gym.workloads.encoder import TextEncoder
from llmqueue_gym.workloads.fitted import Tfidf, with_constant
from llmqueue_gym.workloads.ngrams import FEATURES, NGRAMS, counts_of, utf8
from llmqueue_gym.workloads.sources.log_file import read_log

pytest.importorskip("sklearn", reason="turning texts into contexts needs the extra data")

SPECS: list[Any] = [
    None,
    {"method": "tfidf-svd", "reduce": "whiten"},
    {"method": "tfidf-svd", "constant": False},
    {"method": "wordllama"},
    {"method": "wordllama", "reduce": "whiten"},
    {"method": "wordllama", "reduce": "none", "constant": False},
]
RNG = np.random.default_rng(0)
TEXTS = [
    f"{i} " + " ".join(RNG.choice(["alpha", "beta", "gamma", "\ud800"], 6)) for i in range(200)
]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for an encoder: vectors follow from the text alone."""

    def encode(texts: list[str]) -> Any:
        seeds = [hashlib.sha256(text.encode()).digest()[:4] for text in texts]
        return np.array([np.random.default_rng([*seed]).normal(size=12) for seed in seeds])

    made_up = {WORDLLAMA: lambda model: embeddings.Encoder([str(model)], lambda: encode)}
    monkeypatch.setattr(embeddings, "_ENCODERS", made_up)


@given(st.lists(st.text(st.characters(codec=None), max_size=30), max_size=4))
@example(["", "ab", "abc", "  A \t\n b  ", "\u0130I\u00df \ud800", "\U0001f600" * 7, "x" * 300])
def test_n_grams_are_counted_as_scikit_learn_does(texts: list[str]) -> None:
    from sklearn.feature_extraction.text import HashingVectorizer

    options = {"ngram_range": NGRAMS, "n_features": FEATURES, "alternate_sign": False}
    vectorizer = HashingVectorizer(analyzer="char", norm=None, **options)
    found = counts_of(texts).sparse()
    assert found.shape == (len(texts), FEATURES)
    if texts:
        expected = vectorizer.transform([utf8(text).decode() for text in texts])
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


def test_weights_are_the_tf_idf_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = counts_of(TEXTS)
    fitted = Tfidf(counts.sparse()[:100], 5)
    weighing = TfidfTransformer(sublinear_tf=True).fit(counts.sparse()[:100])
    expected = weighing.transform(counts.sparse()) @ fitted.directions
    np.testing.assert_allclose(fitted(counts), expected, rtol=1e-12, atol=1e-12)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 127, 128, 129, 136, 143, 257, 1023])
def test_a_row_alone_is_scaled_to_the_bits_it_has_in_company(size: int) -> None:
    rows = np.random.default_rng(size).normal(size=(20, size)) * np.logspace(-12, 3, 20)[:, None]
    rows[3] = 0.0
    together = with_constant(rows)
    for row, expected in zip(rows, together, strict=True):
        assert with_constant(row[None]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_gives_the_contexts_of_the_workload(spec: Any, tmp_path: Path) -> None:
    dim = 12 if spec and spec.get("reduce") == "none" else 8
    expected = embed_texts(TEXTS, dim, read_contexts(spec))
    encoder = TextEncoder(TEXTS, dim, spec)
    assert encoder.context_dim == dim == expected.shape[1]
    exact = not spec or ("reduce" not in spec and spec["method"] == "tfidf-svd")
    same: Any = np.testing.assert_array_equal if exact else np.testing.assert_allclose
    tolerance = {} if exact else {"atol": 1e-6}
    same(encoder.encode(TEXTS), expected, **tolerance)
    same(encoder(TEXTS[7]), expected[7], **tolerance)  # alone as in company
    encoder.save(tmp_path / "e")
    again = TextEncoder.load(tmp_path / "e")
    np.testing.assert_array_equal(again("never seen"), encoder("never seen"))
    assert "alpha" not in (tmp_path / "e").read_bytes().decode("latin-1")


def test_another_model_of_the_same_name_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TextEncoder(TEXTS, 8, WORDLLAMA).save(tmp_path / "e")
    again = TextEncoder.load(tmp_path / "e")
    other = {WORDLLAMA: lambda model: embeddings.Encoder(["other"], lambda: len)}
    monkeypatch.setattr(embeddings, "_ENCODERS", other)
    with pytest.raises(UsageError, match=r"fitted to vectors of \['l2_supercat'\].*\['other'\]"):
        again("text")
    with pytest.raises(UsageError, match="is one text"):
        again.encode("text")
    with pytest.raises(UsageError, match="context_dim=400 needs at least as many"):
        TextEncoder(TEXTS, 400)


def test_a_logs_encoder_gives_the_logs_contexts(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    words = [text.replace("\ud800", "delta") for text in TEXTS]
    rows = "\n".join(f"{text},{'ab'[i % 2]},{i % 2}" for i, text in enumerate([*words, words[0]]))
    path.write_text(f"query,llm,kept\n{rows}\n")
    log = read_log(str(path))
    np.testing.assert_array_equal(log.encoder().encode(log.texts or ()), log.contexts())
    path.write_text('query,llm,kept\n"[1,0]",a,1\n'.replace("query", "embedding"))
    with pytest.raises(UsageError, match="there is no text to encode"):
        read_log(str(path)).encoder()


@pytest.mark.parametrize("window", [2, 16])
def test_a_live_observation_is_the_environments(window: int) -> None:
    env: Any = gym.make("LLMQueue-v0", num_llms=3, load=0.95, window=window)
    seen, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    longest = 0
    for _ in range(300):
        llms = rng.permutation(3)[:2]
        seen, *_ = env.step(np.array([0, *llms]))
        shown, length = int(seen["waiting"].sum()), int(seen["queue_length"][0])
        longest = max(longest, length)
        beyond = np.zeros(length - shown)
        columns = {"retrials": "retrials", "ages": "age", "waits": "wait"}
        given: Any = {name: [*seen[key][:shown], *beyond] for name, key in columns.items()}
        contexts = np.concatenate([seen["contexts"][:shown], np.zeros((len(beyond), 5))])
        live = live_observation(contexts, None, window, **given, feedback=int(seen["feedback"]))
        assert live.keys() == seen.keys()
        assert env.observation_space.contains(live)
        for key, value in seen.items():
            np.testing.assert_array_equal(live[key], value)
    assert longest > 2


def test_live_texts_and_wrong_usage() -> None:
    encoder = TextEncoder(TEXTS, 8)
    one = live_observation("alpha beta", encoder, retrials=[2])
    np.testing.assert_array_equal(one["contexts"][0], encoder("alpha beta"))
    assert one["retrials"].tolist() == [2.0]
    assert live_observation([], encoder, 4)["waiting"].sum() == 0
    with pytest.raises(UsageError, match="texts need the encoder"):
        live_observation("alpha")
    with pytest.raises(UsageError, match="ages has 2 entries for 1 waiting"):
        live_observation("alpha", encoder, ages=[1, 2])
    with pytest.raises(UsageError, match=r"shape \(8,\); give contexts"):
        live_observation(encoder("alpha"))
    for wrong in (np.nan, np.inf, -1e9):  # one would make all that an agent knows no number
        with pytest.raises(UsageError, match="waiting of row 1, coordinate 0, is"):
            live_observation(np.array([[1.0], [wrong]]))
