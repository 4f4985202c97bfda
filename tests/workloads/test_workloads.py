"""Workloads: the published formulas, sound tables in, clear errors out, a leak-free embedding.

The llmrouter tests look for the optional data folder beside the checkout and skip without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads import QueryPool, Synthetic, fingerprint, make_workload
from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE, embed_texts, offline_rows
from llmqueue_gym.workloads.pool import PoolWorkload, file_sha256
from llmqueue_gym.workloads.rows import read_jsonl
from llmqueue_gym.workloads.sources import paretobandit, table

LLMROUTER = (
    Path(__file__).resolve().parents[2].parent / "shared" / "data" / "llmrouter" / "queries.jsonl"
)
needs_llmrouter = pytest.mark.skipif(
    not LLMROUTER.is_file(), reason="the optional llmrouter table is not there"
)
Array = NDArray[Any]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def build(spec: Any, **changes: Any) -> Any:
    return make_workload(
        spec, **{"num_llms": None, "context_dim": None, "assortment_size": 1} | changes
    )


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, 12)) for i in range(count)]


def capacity(utilities: Array, assortment_size: int) -> float:
    """1 / E[1/p*] by enumerating nothing: the best assortment holds the largest utilities."""
    odds = np.sort(np.exp(utilities), axis=1)[:, -assortment_size:].sum(axis=1)
    return float(1.0 / np.mean((1.0 + odds) / odds))


def best_rate(utilities: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-utilities.max(axis=1))))


# --- synthetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "specialists", "lookalike", "easy-hard", "mixed"])
def test_synthetic_draw_has_the_promised_shapes_and_follows_the_generator(kind: str) -> None:
    workload = build({"source": "synthetic", "kind": kind, "pool_size": 300}, num_llms=4)
    contexts, utilities, _ = workload.draw(np.random.default_rng(3))
    assert contexts.shape == (300, workload.context_dim)
    assert contexts.dtype == np.float32
    assert utilities.shape == (300, 4)
    assert utilities.dtype == np.float64
    assert len(workload.llms) == 4
    again, *_ = workload.draw(np.random.default_rng(3))
    other, *_ = workload.draw(np.random.default_rng(4))
    assert np.array_equal(contexts, again)
    assert not np.array_equal(contexts, other)


def linear_parameters(contexts: Array, utilities: Array) -> Array:
    """theta (N, d), after checking that the utilities are linear in the contexts."""
    theta, *_ = np.linalg.lstsq(contexts.astype(np.float64), utilities, rcond=None)
    np.testing.assert_allclose(contexts @ theta, utilities, atol=1e-6)
    return np.asarray(theta.T)


def test_uniform_contexts_and_parameters_are_uniform() -> None:
    contexts, utilities, _ = Synthetic("uniform", 200, 8).draw(np.random.default_rng(0))
    for entries in (contexts, linear_parameters(contexts, utilities)):
        assert np.abs(entries).max() <= 1.0 + 1e-6
        assert abs(entries.mean()) < 0.05
        assert abs(entries.var() - 1 / 3) < 0.03


def test_specialists_are_good_at_their_cluster() -> None:
    contexts, utilities, _ = Synthetic("specialists", 10, 16).draw(np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=1), 1.0, atol=1e-6)
    slopes = linear_parameters(contexts, utilities + 1.0)  # 4 C_j - mean(C)
    centres = (slopes + slopes.sum(axis=0) / 30) / 4  # since the slopes sum to 3 N mean(C)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1.0, atol=1e-6)
    closeness = (contexts @ centres.T).max(axis=1)
    assert abs(closeness.mean() - 1 / np.sqrt(1 + 0.35**2)) < 0.02
    assert len(np.unique(utilities.argmax(axis=1))) == 10


def test_lookalike_parameters_scatter_around_a_shared_one() -> None:
    contexts, utilities, _ = Synthetic("lookalike", 300, 200).draw(np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=1), 1.0, atol=1e-5)
    assert np.all(contexts[:, -1] == contexts[0, -1])
    np.testing.assert_allclose((contexts**2).mean(axis=0), 1 / 200, rtol=0.2)
    theta = linear_parameters(contexts, utilities)
    assert abs(theta.std(axis=0).mean() - 1.2) < 0.05
    assert abs(theta.mean(axis=0).std() - 1.0) < 0.2


def test_easy_hard_queries_differ_in_a_hardness_that_all_llms_share() -> None:
    contexts, utilities, _ = Synthetic("easy-hard", 10, 16).draw(np.random.default_rng(0))
    topics, hardness, constant = np.split(contexts * np.sqrt(3.0), [14, 15], axis=1)
    np.testing.assert_allclose(np.linalg.norm(topics, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(constant, 1.0, atol=1e-6)
    assert abs(hardness.mean()) < 0.05
    assert abs(hardness.std() - 1.0) < 0.05
    centres = linear_parameters(topics, utilities - 3.0 + 2.5 * hardness)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1.0, atol=1e-3)
    assert len(np.unique(utilities.argmax(axis=1))) == 10


@pytest.mark.parametrize("explained", [0.2, 0.9, 1.0])
def test_contexts_explain_a_share_of_mixed_and_the_rest_is_the_queries_own(
    explained: float,
) -> None:
    workload = Synthetic("mixed", 40, 16, 20_000, explained)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0))
    x = contexts.astype(np.float64)
    rest = utilities - x @ np.linalg.lstsq(x, utilities, rcond=None)[0]
    assert abs(1.0 - rest.var() / utilities.var(axis=0).mean() - explained) < 0.02
    assert abs(utilities.var(axis=0).mean() - 2.5**2) < 0.2
    own, total = np.cov(rest.T)[~np.eye(40, dtype=bool)].mean(), rest.var()
    s_a, s_b = workload.spreads
    assert abs(own - s_a**2) < 0.1
    assert abs(total - own - s_b**2) < 0.1


@pytest.mark.parametrize("accept", [None, lambda u: best_rate(u) >= 0.6])
def test_shuffled_contexts_keep_the_queries_and_say_nothing_about_them(accept: Any) -> None:
    spec = {"source": "synthetic", "kind": "lookalike", "num_llms": 3, "context_dim": 6}
    own = build(spec)
    shuffled = build(spec | {"shuffle_contexts": True})
    assert (shuffled.llms, shuffled.context_dim, shuffled.pool_size) == (
        own.llms,
        own.context_dim,
        own.pool_size,
    )
    contexts, utilities, _ = own.draw(np.random.default_rng(5), accept)
    dealt, same, _ = shuffled.draw(np.random.default_rng(5), accept)
    np.testing.assert_array_equal(same, utilities)
    rows = [np.lexsort(vectors.T) for vectors in (contexts, dealt)]
    np.testing.assert_array_equal(contexts[rows[0]], dealt[rows[1]])  # the same, in another order
    for vectors, explained in ((contexts, 1.0), (dealt, 0.0)):
        theta, *_ = np.linalg.lstsq(vectors.astype(float), utilities, rcond=None)
        left = ((vectors @ theta - utilities) ** 2).sum(axis=0)
        share = 1.0 - left / ((utilities - utilities.mean(axis=0)) ** 2).sum(axis=0)
        np.testing.assert_allclose(share, explained, atol=0.02)
    again, *_ = shuffled.draw(np.random.default_rng(5), accept)
    np.testing.assert_array_equal(again, dealt)


def test_queries_kept_back_for_training_are_shuffled_too(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = [
        {"text": text, "a": i % 7 / 7, "b": i % 5 / 5} for i, text in enumerate(some_texts(300))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    spec = {
        "source": "table",
        "path": str(path),
        "text": "text",
        "quality": ["a", "b"],
        "context_dim": 4,
    }
    own, shuffled = build(spec), build(spec | {"shuffle_contexts": True})
    assert fingerprint(spec) == fingerprint(spec | {"shuffle_contexts": True})
    np.testing.assert_array_equal(own.offline.utilities, shuffled.offline.utilities)
    assert not np.array_equal(own.offline.contexts, shuffled.offline.contexts)
    rows_of = [{row.tobytes() for row in w.offline.contexts} for w in (own, shuffled)]
    assert rows_of[0] == rows_of[1]


def test_synthetic_slack_holds_for_every_query_and_keeps_the_parameters() -> None:
    workload = Synthetic()
    accepted, utilities, _ = workload.draw(np.random.default_rng(1), lambda u: best_rate(u) >= 0.8)
    assert accepted.shape == (4096, 5)
    assert best_rate(utilities).min() >= 0.8
    free = workload.draw(np.random.default_rng(1))
    np.testing.assert_allclose(
        linear_parameters(accepted, utilities),
        linear_parameters(free.contexts, free.utilities),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "workload",
    [
        Synthetic(pool_size=8),
        PoolWorkload(QueryPool(np.ones((300, 1), np.float32), np.eye(300, 2), None, ("a", "b"))),
    ],
)
def test_impossible_slack_names_slack_and_the_fix(workload: Any) -> None:
    with pytest.raises(ValueError, match=r"slack.*lower slack or the arrival_rate"):
        workload.draw(np.random.default_rng(0), lambda u: best_rate(u) > 0.9999)


# --- pools ---------------------------------------------------------------------------------------

unit_tables = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=8
    ).map(np.array)
)


def pool_of(quality: Array, cost: Array | None = None) -> QueryPool:
    llms = tuple(f"llm {j}" for j in range(quality.shape[1]))
    return QueryPool(np.ones((len(quality), 2), np.float32), quality, cost, llms)


def rates_of(utilities: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-utilities)))


@pytest.mark.parametrize("scale", ["quality", "table"])
@given(quality=unit_tables, cost_weight=st.floats(0, 1e3), seed=st.integers(0, 9))
def test_utilities_follow_the_formula_over_the_whole_table(
    scale: str, quality: Array, cost_weight: float, seed: int
) -> None:
    cost = np.random.default_rng(seed).random(quality.shape)
    value = quality - cost_weight * cost
    spans = quality if scale == "quality" else value
    if spans.max() == spans.min():
        with pytest.raises(ValueError, match="cannot be told apart"):
            pool_of(quality, cost).utilities(cost_weight, scale=scale)
        return
    utilities = pool_of(quality, cost).utilities(cost_weight, scale=scale)
    with np.errstate(over="ignore"):
        share = (value - spans.min()) / (spans.max() - spans.min())
    np.testing.assert_allclose(rates_of(utilities), 0.1 + 0.89 * share.clip(0, 1), rtol=1e-9)
    assert np.isfinite(utilities).all()


weights = st.floats(0, 1e4)


@given(quality=unit_tables, low=weights, high=weights, seed=st.integers(0, 9))
def test_a_dearer_world_is_never_easier(quality: Array, low: float, high: float, seed: int) -> None:
    """No rate rises with the cost weight; a free answer's stays as it is."""
    assume(np.ptp(quality) > 0)
    rng = np.random.default_rng(seed)
    cost = rng.exponential(0.01, quality.shape) * rng.integers(0, 2, quality.shape)
    low, high = sorted((low, high))
    cheap, dear = (pool_of(quality, cost).utilities(weight) for weight in (low, high))
    assert (dear <= cheap).all()
    np.testing.assert_array_equal(dear[cost == 0], pool_of(quality).utilities()[cost == 0])
    for size in range(1, quality.shape[1] + 1):
        assert capacity(dear, size) <= capacity(cheap, size)


@given(quality=unit_tables, weight=weights, outlier=st.floats(0, 1e6), seed=st.integers(0, 9))
def test_one_dear_answer_leaves_the_rates_of_the_others_alone(
    quality: Array, weight: float, outlier: float, seed: int
) -> None:
    assume(np.ptp(quality) > 0)
    cost = np.random.default_rng(seed).random(quality.shape)
    more = np.full((1, quality.shape[1]), outlier)
    both = pool_of(np.vstack([quality, quality[:1]]), np.vstack([cost, more]))
    np.testing.assert_array_equal(
        both.utilities(weight)[:-1], pool_of(quality, cost).utilities(weight)
    )


def test_on_the_published_scale_one_dear_answer_lifts_all_others() -> None:
    """Why it is not the default: .16 USD once, and every other rate rises with the weight."""
    quality, cost = np.tile([0.9, 0.5], (20, 1)), np.tile([1e-5, 1e-5], (20, 1))
    quality[0, 1], cost[0, 0] = 0.0, 0.16
    cheap, dear = (
        rates_of(pool_of(quality, cost).utilities(weight, scale="table"))[1:, 1].mean()
        for weight in (0.0, 100.0)
    )
    assert dear > cheap + 0.3


def test_pool_utilities_reject_bad_parameters() -> None:
    quality = np.array([[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"cost_weight=2\.0 needs costs"):
        pool_of(quality).utilities(2.0)
    for weight in (-1.0, np.nan, np.inf, "1", True):
        with pytest.raises(ValueError, match="cost_weight"):
            pool_of(quality, quality).utilities(weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        pool_of(quality, quality * 1e300).utilities(1e300)
    with pytest.raises(ValueError, match="scale 'tabel' is not known; did you mean 'table'"):
        pool_of(quality).utilities(scale="tabel")
    with pytest.raises(ValueError, match="scale 'tabel' is not known"):
        PoolWorkload(pool_of(quality), scale="tabel")
    with pytest.raises(ValueError, match=r"r_lo=0\.5, r_hi=0\.5"):
        pool_of(quality).utilities(0.0, 0.5, 0.5)


@given(quality=unit_tables, data=st.data())
def test_pool_names_the_row_and_llm_of_a_bad_number(quality: Array, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, quality.shape[0] - 1))
    column = data.draw(st.integers(0, quality.shape[1] - 1))
    bad = quality.copy()
    bad[row, column] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, -0.1, 1.5]))
    with pytest.raises(ValueError, match=rf"quality of row {row}, LLM 'llm {column}'"):
        pool_of(bad)
    bad[row, column] = data.draw(st.sampled_from([np.nan, np.inf, -0.1]))
    with pytest.raises(ValueError, match=rf"cost of row {row}, LLM 'llm {column}'"):
        pool_of(quality, bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llms": ("a", "a")}, "'a' appears more than once"),
        ({"llms": ()}, "non-empty names"),
        ({"llms": ("a", "")}, "non-empty names"),
        ({"llms": ("a", "b", "c")}, r"quality has shape \(3, 2\), expected \(3, 3\)"),
        ({"contexts": np.ones((2, 4))}, r"quality has shape \(3, 2\), expected \(2, 2\)"),
        ({"contexts": np.ones((0, 4))}, "not empty"),
        ({"contexts": np.full((3, 4), 1e39)}, "contexts of row 0, coordinate 0"),
        (
            {"contexts": np.diag([1.0, -1e9, 1.0])},
            r"contexts of row 1, coordinate 1, is -1000000000.0: .* \[-1e\+06, 1e\+06\]; scale",
        ),
        ({"cost": np.ones((3, 1))}, "cost has shape"),
    ],
)
def test_pool_rejects_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "contexts": np.ones((3, 4)),
        "quality": np.ones((3, 2)),
        "cost": None,
        "llms": ("a", "b"),
    }
    QueryPool(**good)
    with pytest.raises(ValueError, match=message):
        QueryPool(**good | changes)


def test_pool_copies_its_arrays_and_is_read_only() -> None:
    quality = np.array([[0.0, 1.0]])
    pool = pool_of(quality)
    quality[0, 0] = np.nan
    assert pool.quality[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        pool.quality[0, 0] = 0.5


def numbered_pool(rows: int) -> QueryPool:
    quality = np.column_stack([np.linspace(0, 1, rows), np.zeros(rows)])
    return QueryPool(np.arange(rows, dtype=np.float32)[:, None], quality, None, ("a", "b"))


@pytest.mark.parametrize(("rows", "size"), [(50, 20), (50, 50), (50, 400)])
def test_pool_instances_are_distinct_rows_of_the_online_split(rows: int, size: int) -> None:
    online = np.arange(0, rows, 2)
    workload = PoolWorkload(numbered_pool(rows), online, pool_size=size)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0))
    assert len(contexts) == len(utilities) == workload.pool_size == min(size, 25)
    drawn = contexts[:, 0].astype(int)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(online)
    np.testing.assert_array_equal(utilities, numbered_pool(rows).utilities()[drawn])


def test_the_scale_pool_is_that_of_the_drawn_rows() -> None:
    """The published runs scale by the 1000 rows of a run: an instance is a table of its own."""
    rng = np.random.default_rng(0)
    quality, cost = rng.random((200, 3)), rng.random((200, 3))
    pool = QueryPool(np.arange(200.0)[:, None], quality, cost, ("a", "b", "c"))
    workload = PoolWorkload(pool, cost_weight=0.5, pool_size=20, scale="pool")
    for seed in range(3):
        contexts, utilities, paid = workload.draw(np.random.default_rng(seed))
        rows = contexts[:, 0].astype(int)
        alone = QueryPool(pool.contexts[rows], quality[rows], cost[rows], pool.llms)
        np.testing.assert_array_equal(utilities, alone.utilities(0.5, scale="table"))
        np.testing.assert_array_equal(paid, cost[rows])
        rates = rates_of(utilities)
        assert (rates.min(), rates.max()) == (pytest.approx(0.1), pytest.approx(0.99))
    with pytest.raises(ValueError, match=r"slack .* scale='pool'"):
        workload.draw(np.random.default_rng(0), lambda u: best_rate(u) >= 0.5)


def test_pool_slack_filters_and_fills_up_evenly() -> None:
    workload = PoolWorkload(numbered_pool(100), pool_size=50)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0), lambda u: best_rate(u) >= 0.9)
    assert len(contexts) == 50
    assert best_rate(utilities).min() >= 0.9
    counts = np.unique(contexts[:, 0], return_counts=True)[1]
    assert len(counts) == 11  # 0.1 + 0.89 i/99 >= 0.9 for i = 89 .. 99
    assert np.ptp(counts) <= 1


# --- text to contexts ----------------------------------------------------------------------------


def test_split_is_a_quarter_follows_the_text_and_ignores_position() -> None:
    texts = some_texts(3000)
    offline = offline_rows(texts)
    assert 0.22 < offline.mean() < 0.28
    np.testing.assert_array_equal(offline_rows(texts[::-1]), offline[::-1])
    np.testing.assert_array_equal(offline_rows(texts + texts)[3000:], offline)


def test_contexts_have_norm_one_and_a_constant() -> None:
    contexts = embed_texts([*some_texts(80), ""], 8)
    assert contexts.shape == (81, 8)
    assert contexts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(contexts[:-1, -1], np.sqrt(0.5), atol=1e-6)
    np.testing.assert_allclose(contexts[-1], np.eye(8)[-1])


def test_changing_an_online_text_leaves_every_other_context_alone() -> None:
    texts = some_texts(120)
    before = embed_texts(texts, 8)
    row = int(np.flatnonzero(~offline_rows(texts))[0])
    changed = list(texts)
    changed[row] = next(t for t in some_texts(99, seed=7) if not offline_rows([t])[0])
    after = embed_texts(changed, 8)
    others = np.arange(120) != row
    np.testing.assert_array_equal(after[others], before[others])
    assert not np.array_equal(after[row], before[row])


def test_changing_an_offline_text_changes_the_fit() -> None:
    texts = some_texts(120)
    row = int(np.flatnonzero(offline_rows(texts))[0])
    changed = list(texts)
    changed[row] = next(t for t in some_texts(99, seed=7) if offline_rows([t])[0])
    online = ~offline_rows(texts)
    assert not np.array_equal(embed_texts(texts, 8)[online], embed_texts(changed, 8)[online])


def test_degenerate_texts_give_finite_contexts() -> None:
    offline = next(text for text in some_texts(99) if offline_rows([text])[0])
    contexts = embed_texts([offline] * 10 + ["\ud800 lone surrogate"], 4)
    assert np.isfinite(contexts).all()
    np.testing.assert_allclose(np.linalg.norm(contexts, axis=1), 1.0, atol=1e-6)


def test_a_small_table_of_texts_has_short_contexts() -> None:
    texts = some_texts(100)
    assert embed_texts(texts).shape == (100, offline_rows(texts).sum())


def test_too_few_texts_name_the_context_dim() -> None:
    with pytest.raises(ValueError, match="context_dim=64 needs at least as many texts"):
        embed_texts(some_texts(100), 64)


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_cache_returns_the_bits_that_were_computed(cache: Path) -> None:
    texts = some_texts(100)
    computed = embed_texts(texts, 8)
    (file,) = cache_files(cache)
    stamp = file.stat().st_mtime_ns
    np.testing.assert_array_equal(embed_texts(texts, 8), computed)
    assert file.stat().st_mtime_ns == stamp
    file.unlink()
    np.testing.assert_array_equal(embed_texts(texts, 8), computed)
    embed_texts(texts, 9)
    embed_texts(texts[::-1], 8)
    assert len(cache_files(cache)) == 3


def damaged(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    return {"empty": b"", "cut": data[: len(data) // 2], "flipped": bytes(flipped), "text": b"hi"}


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "shape", "nan", "pickle"])
def test_damaged_cache_file_is_replaced(cache: Path, damage: str) -> None:
    texts = some_texts(100)
    computed = embed_texts(texts, 8)
    (file,) = cache_files(cache)
    sound = file.read_bytes()
    arrays = {
        "shape": np.ones((3, 8), np.float32),
        "nan": np.full((100, 8), np.nan, np.float32),
        "pickle": np.array([[{}]], dtype=object),
    }
    if damage in arrays:
        np.savez(file, contexts=arrays[damage])
    else:
        file.write_bytes(damaged(sound)[damage])
    np.testing.assert_array_equal(embed_texts(texts, 8), computed)
    assert cache_files(cache) == [file]
    with np.load(file, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["contexts"], computed)


def test_unwritable_cache_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match=CACHE_VARIABLE):
        assert embed_texts(some_texts(60), 4).shape == (60, 4)


SCRIPT = """
import hashlib, json, sys
from llmqueue_gym.workloads.embeddings import embed_texts
contexts = embed_texts(json.load(sys.stdin), 8)
print(hashlib.sha256(contexts.tobytes()).hexdigest(), "sklearn" in sys.modules)
"""


def test_racing_processes_agree_and_readers_do_without_sklearn(cache: Path) -> None:
    texts = json.dumps(some_texts(150))

    def start(threads: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        assert process.stdin is not None
        process.stdin.write(texts)
        process.stdin.close()
        process.stdin = None
        return process

    racers = [start(1), start(2)]
    answers = {process.communicate(timeout=120)[0].split()[0] for process in racers}
    assert all(process.returncode == 0 for process in racers)
    assert len(answers) == 1
    assert [file.suffix for file in cache_files(cache)] == [".npz"]
    assert start(1).communicate(timeout=120)[0].split() == [*answers, "False"]


# --- tables --------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_bytes("\n".join([*lines, ""]).encode())
        return str(path)
    import polars as pl

    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        plain = [
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            for row in rows
        ]
        pl.DataFrame(plain).write_csv(path)
    return str(path)


SUFFIXES = st.sampled_from([".csv", ".jsonl", ".parquet"])


@settings(max_examples=60)
@given(
    quality=unit_tables.filter(lambda q: q.min() < q.max()),
    suffix=SUFFIXES,
    layout=st.sampled_from(["mapping", "list", "object"]),
    weight=st.sampled_from([0.0, 0.5]),
)
def test_every_format_and_layout_gives_the_same_table(
    tmp_path_factory: pytest.TempPathFactory,
    quality: Array,
    suffix: str,
    layout: str,
    weight: float,
) -> None:
    names = [f"llm{j}" for j in range(quality.shape[1])]
    cost = np.random.default_rng(0).random(quality.shape)
    rows: list[dict[str, Any]] = []
    for i, (scores, prices) in enumerate(zip(quality.tolist(), cost.tolist(), strict=True)):
        row: dict[str, Any] = {"x": [float(i), 1.0]}
        if layout == "object":
            row |= {"q": dict(zip(names, scores, strict=True))}
            row |= {"c": dict(zip(names, prices, strict=True))}
        else:
            row |= dict(zip(names, scores, strict=True))
            row |= {f"{name} $": price for name, price in zip(names, prices, strict=True)}
        rows.append(row)
    columns: dict[str, tuple[Any, Any]] = {
        "object": ("q", "c"),
        "list": (names, [f"{name} $" for name in names]),
        "mapping": ({n: n for n in names[::-1]}, {n: f"{n} $" for n in names}),
    }
    path = write_table(tmp_path_factory.mktemp("table") / f"t{suffix}", rows)
    workload = build(
        {
            "source": "table",
            "path": path,
            "embedding": "x",
            "quality": columns[layout][0],
            "cost": columns[layout][1],
            "cost_weight": weight,
        },
        num_llms=len(names),
        context_dim=2,
    )
    assert workload.llms == tuple(names)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0))
    order = np.argsort(contexts[:, 0])
    np.testing.assert_allclose(
        utilities[order], pool_of(quality, cost).utilities(weight), rtol=1e-9, atol=1e-9
    )


def small_rows(count: int = 6) -> list[dict[str, Any]]:
    return [{"x": [float(i), 1.0], "a": i / 9, "b": 0.5} for i in range(count)]


def small_table(path: Path) -> dict[str, Any]:
    written = write_table(path, small_rows())
    return {"source": "table", "path": written, "embedding": "x", "quality": ["a", "b"]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_file_cut_anywhere_is_an_error_or_a_whole_number_of_rows(
    tmp_path: Path, suffix: str
) -> None:
    spec = small_table(tmp_path / f"whole{suffix}")
    data = Path(spec["path"]).read_bytes()
    step = max(1, len(data) // 150)
    for length in range(0, len(data), step):
        cut = tmp_path / f"cut-{length}{suffix}"
        cut.write_bytes(data[:length])
        try:
            contexts, _, _ = build(spec | {"path": str(cut)}).draw(np.random.default_rng(0))
        except ValueError as error:
            apart = "cannot be told apart" in str(error)  # the one row left, cut inside a number
            assert apart or cut.name in str(error)  # noqa: PT017 - either outcome may be right
        else:
            # a row that is whole, or a CSV number cut between two digits, cannot be told apart
            assert suffix != ".parquet"
            assert sorted(contexts[:, 0]) == list(range(len(contexts)))


@given(data=st.binary(max_size=60), suffix=SUFFIXES)
def test_arbitrary_bytes_never_raise_anything_but_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"t{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=path.name):
        build({"source": "table", "path": str(path), "embedding": "x", "quality": "q"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(value=json_values, column=st.sampled_from(["x", "a", "q"]))
def test_a_strange_cell_is_named_or_a_number_in_range(
    tmp_path_factory: pytest.TempPathFactory, value: Any, column: str
) -> None:
    rows = [{"x": [0.0], "a": 0.25, "q": {"b": 1.0}}, {"x": [1.0], "a": 0.0, "q": {"b": 0.5}}]
    rows[1][column] = {"b": value} if column == "q" else value
    path = tmp_path_factory.mktemp("cell") / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    quality = "q" if column == "q" else ["a"]
    try:
        build({"source": "table", "path": str(path), "embedding": "x", "quality": quality})
    except ValueError as error:
        apart = "cannot be told apart" in str(error)
        assert (  # noqa: PT017 - either outcome may be right
            apart
            or (f"line 2: column {column!r}" in str(error))
            or ("line 2: score of LLM" in str(error) and f"column {column!r}" in str(error))
        )
    else:
        numbers = json.loads(value) if column == "x" and isinstance(value, str) else value
        assert np.isfinite(np.asarray(numbers, dtype=float)).all()


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({"quality": ["a", "bb"]}, {}, r"line 1: column 'bb' .*did you mean 'b'"),
        ({"embedding": "xx"}, {}, r"line 1: column 'xx' .*did you mean 'x'"),
        ({}, {"a": None}, r"line 4: column 'a' is empty"),
        ({}, {"a": float("nan")}, r"line 4: score of LLM 'a' in column 'a' is nan"),
        ({}, {"b": "good"}, r"line 4: .*LLM 'b'.* is not a number: 'good'"),
        ({}, {"b": "1,000"}, r"line 4: .*LLM 'b'.*'1,000', which may be thousands; write dec"),
        ({"cost": {"a": "a", "b": "b"}}, {"b": "x"}, r"line 4: .*LLM 'b' .*not a number"),
        ({}, {"b": 87}, r"line 4: .*LLM 'b'.* is 87.0, expected a number in \[0, 1\]"),
        ({}, {"x": [1.0]}, r"line 4: .*length 1, but the first row's has 2"),
        ({}, {"x": [1.0, None]}, r"line 4: .*finite numbers"),
        ({"quality": "q"}, {"q": {"a": 1.0}}, r"line 4: .*LLM 'b' in column 'q' is missing"),
        ({"quality": "q"}, {"q": {"a": 1.0, "b": 0.5, "c": 0.5}}, r"line 4: LLM 'c' is not known"),
        ({"quality": "q"}, {"q": [1.0]}, r"line 4: column 'q' must be an object"),
        ({"cost": {"a": "b"}}, {}, r"line 1: cost of LLM 'b' is missing"),
        ({"cost": {"a": "a", "b": "b"}}, {"b": -0.1}, r"line 4: .*-0.1"),
        ({"quality": ["a", "a"]}, {}, r"quality=.* names 'a' more than once"),
        ({"quality": []}, {}, r"quality=\[\] must be"),
        ({"cost": ["a"]}, {}, r"cost=\['a'\]: a list needs"),
        ({"text": "a"}, {}, r"exactly one"),
        ({"embedding": None}, {}, r"exactly one"),
        ({"embedding": None, "text": "a"}, {}, r"line 1: column 'a' must hold text"),
        ({"path": "nowhere.csv"}, {}, r"path='nowhere.csv': there is no such file"),
        ({"path": __file__}, {}, r"must end in one of .csv"),
    ],
)
def test_table_errors_name_the_place_and_the_fix(
    tmp_path: Path, changes: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    rows = [values | {"q": {"a": values["a"], "b": 0.5}} for values in small_rows()]
    rows[3] |= row
    path = write_table(tmp_path / "t.jsonl", rows)
    spec = {"source": "table", "path": path, "embedding": "x", "quality": ["a", "b"]}
    with pytest.raises(UsageError, match=message):
        build(spec | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,a,b\n", "the file has no rows"),
        ("x,a,a\n[1],0,1\n", "names column 'a' more than once"),
        ("x,a,b\n[1],0\n", "row 1: 2 cells for 3 columns"),
        ('x,a,b\n"[1, 2",0,1\n', "row 1: column 'x' is not JSON"),
    ],
)
def test_csv_errors(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    spec = {"source": "table", "path": str(path), "embedding": "x", "quality": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_constant_table_is_an_error_not_a_nan(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.jsonl", [{"x": [1.0], "a": 0.5}, {"x": [2.0], "a": 0.5}])
    with pytest.raises(ValueError, match="cannot be told apart"):
        build({"source": "table", "path": path, "embedding": "x", "quality": ["a"]})


def test_jsonl_is_split_on_newlines_only(tmp_path: Path) -> None:
    separators = "a\u2028b\u2029c\u0085d\u000be"
    texts = [f"{separators} {text}" for text in some_texts(99)]
    rows = [{"t": text, "q": {"m": i / 99}} for i, text in enumerate(texts)]
    path = Path(write_table(tmp_path / "t.jsonl", rows))
    assert len(list(read_jsonl(path))) == 99
    spec = {"source": "table", "path": str(path), "text": "t", "quality": "q", "context_dim": 4}
    workload = build(spec)
    assert workload.context_dim == 4
    assert workload.pool_size == int((~offline_rows(texts)).sum())


def test_a_table_is_parsed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    spec = small_table(tmp_path / "t.csv")
    misses = table._load.cache_info().misses
    first = fingerprint(spec)
    for _ in range(20):
        assert build(spec).pool_size == 6
    assert table._load.cache_info().misses == misses + 1
    write_table(tmp_path / "t.csv", small_rows(7))
    assert build(spec).pool_size == 7
    assert fingerprint(spec) != first


def test_a_missing_file_has_no_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"abc")
    assert file_sha256(file) == file_sha256(str(file)) == hashlib.sha256(b"abc").hexdigest()
    for missing in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(ValueError, match=r"path='.*': .*file"):
            file_sha256(missing)


# --- specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ("syntetic", {}, "workload source 'syntetic' is not known; did you mean 'synthetic'"),
        ({"kind": "uniform"}, {}, "with the key 'source'"),
        ({"source": ["table"]}, {}, "workload source"),
        (3, {}, "workload=3 must be"),
        ({"source": "synthetic", "knd": "uniform"}, {}, "'knd' is not known; did you mean 'kind'"),
        ({"source": "synthetic", "kind": "lookalikes"}, {}, "did you mean 'lookalike'"),
        ({"source": "synthetic", "kind": "lookalike"}, {"context_dim": 1}, "context_dim=1"),
        ({"source": "synthetic", "kind": "easy-hard"}, {"context_dim": 2}, "at least 3"),
        (
            {"source": "synthetic", "kind": "mixed", "explained": 1.1},
            {},
            r"explained=1.1 .* \[0, 1\]",
        ),
        (
            {"source": "synthetic", "explained": 0.2},
            {},
            "explained=0.2 belongs to the kind 'mixed'",
        ),
        ({"source": "paretobandit", "shuffle_contexts": "yes"}, {}, "must be true or false"),
        ({"source": "synthetic", "kind": ["uniform"]}, {}, r"kind \['uniform'\] is not known"),
        ({"source": "synthetic", "pool_size": 0}, {}, "pool_size=0"),
        ({"source": "synthetic", "pool_size": 2.5}, {}, "pool_size=2.5"),
        ({"source": "synthetic", "num_llms": 4}, {"num_llms": 5}, "num_llms=5, but the workload"),
        ("synthetic", {"num_llms": 0}, "num_llms=0"),
        ("synthetic", {"assortment_size": 6}, "assortment_size=6 exceeds the 5 LLMs"),
        ("synthetic", {"assortment_size": 0}, "assortment_size=0"),
        ({"source": "table", "path": "x.csv"}, {}, "needs the option 'quality'"),
    ],
)
def test_bad_specs(spec: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(spec, **changes)


def test_table_sizes_must_agree_with_the_request(tmp_path: Path) -> None:
    spec = small_table(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"num_llms=3, but workload 'table' has 2 LLMs \(a, b\)"):
        build(spec, num_llms=3)
    with pytest.raises(ValueError, match=r"context_dim=5, but .* have length 2"):
        build(spec, context_dim=5)


@pytest.mark.parametrize(
    "module", ["polars", "pareto_bandit", "sklearn.decomposition", "platformdirs"]
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    rows = [{"t": text, "q": i / 99} for i, text in enumerate(some_texts(99))]
    path = write_table(tmp_path / ("t.parquet" if module == "polars" else "t.csv"), rows)
    spec = {"source": "table", "path": path, "text": "t", "quality": ["q"], "context_dim": 4}
    if module == "platformdirs":
        monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setitem(sys.modules, module, None)
    paretobandit._load.cache_clear()
    call = fingerprint if module == "pareto_bandit" else build
    with pytest.raises(ImportError, match=r'pip install "llmqueue_gym\[data\]"'):
        call("paretobandit" if module == "pareto_bandit" else spec)


def test_synthetic_data_need_no_fingerprint() -> None:
    assert fingerprint("synthetic") == fingerprint({"source": "synthetic", "num_llms": 7}) == ""


# --- real data -----------------------------------------------------------------------------------


def test_paretobandit_facts() -> None:
    workload = build("paretobandit", num_llms=3)
    assert (workload.context_dim, workload.pool_size) == (64, 1000)
    pool, online = paretobandit._load(None)
    assert pool.contexts.shape == (3609, 64)
    assert 0.70 < len(online) / 3609 < 0.80
    assert pool.cost is not None
    assert pool.cost.max() < 1.0  # USD a query
    assert capacity(pool.utilities(), 1) == pytest.approx(0.954, abs=5e-4)
    assert capacity(pool.utilities(5.0), 1) < 0.954
    assert fingerprint("paretobandit") == fingerprint({"source": "paretobandit", "pool_size": 9})


def llmrouter_spec(**options: Any) -> dict[str, Any]:
    spec = {"source": "table", "path": str(LLMROUTER), "text": "query", "quality": "scores"}
    return spec | options


@needs_llmrouter
def test_llmrouter_facts() -> None:
    parsed = table.parse(table.Layout(str(LLMROUTER), "query", None, "scores", None))
    pool = QueryPool(np.ones((5541, 1), np.float32), np.array(parsed.quality), None, parsed.llms)
    assert len(pool.llms) == 9
    assert capacity(pool.utilities(), 2) == pytest.approx(0.561, abs=5e-4)


@needs_llmrouter
def test_llmrouter_contexts_predict_scores_of_unseen_queries() -> None:
    workload = build(llmrouter_spec(pool_size=10_000), num_llms=9)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0))
    x, seen = contexts.astype(np.float64), np.arange(len(contexts)) < 2000
    rate = 1.0 / (1.0 + np.exp(-utilities))
    gram = x[seen].T @ x[seen] + np.eye(x.shape[1])
    error = rate[~seen] - x[~seen] @ np.linalg.solve(gram, x[seen].T @ rate[seen])
    r2 = 1.0 - (error**2).mean(axis=0) / rate[~seen].var(axis=0)
    assert r2.mean() > 0.12
    assert r2.min() > 0.0
