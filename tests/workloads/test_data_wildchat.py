"""WildChat: turns, retrials and their rates from files in the official schema, and the model.

The conversations are generated: who asks again is known, so rates and model can be checked.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import llmqueue_gym  # noqa: F401 - registers the environments
from benchmarks.cli import build_app
from llmqueue_gym.workloads import make_workload, outcomes
from llmqueue_gym.workloads.datasets import import_dataset, load_pool
from llmqueue_gym.workloads.sources import conversations, retrials, wildchat
from llmqueue_gym.workloads.stored import read_header, read_table, stored_names

START = datetime(2023, 4, 9, tzinfo=UTC)
MESSAGE = {
    "content": pl.String,
    "country": pl.String,
    "hashed_ip": pl.String,
    "header": pl.Struct({"accept-language": pl.String, "user-agent": pl.String}),
    "language": pl.String,
    "redacted": pl.Boolean,
    "role": pl.String,
    "state": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "toxic": pl.Boolean,
    "turn_identifier": pl.Int64,
}
SCHEMA = {
    "conversation_hash": pl.String,
    "model": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "conversation": pl.List(pl.Struct(MESSAGE)),
    "turn": pl.Int64,
    "language": pl.String,
    "openai_moderation": pl.List(pl.Struct({"flagged": pl.Boolean})),
    "toxic": pl.Boolean,
    "redacted": pl.Boolean,
    "state": pl.String,
    "country": pl.String,
    "hashed_ip": pl.String,
    "header": pl.Struct({"accept-language": pl.String, "user-agent": pl.String}),
}
WORDS = [
    "river",
    "stone",
    "cloud",
    "garden",
    "letter",
    "window",
    "bridge",
    "summer",
    "paper",
    "forest",
    "mirror",
    "island",
]


def conversation(texts: list[str], model: str = "gpt-4-0314", minute: int = 0) -> dict[str, Any]:
    """A conversation in the official schema: user times are null, the answers' are set."""
    start = START + timedelta(minutes=minute)
    messages = []
    for i, text in enumerate(texts):
        told = start + timedelta(seconds=10 * (i + 1))
        for role, content, when in (("user", text, None), ("assistant", f"answer {i}", told)):
            messages.append({"role": role, "content": content, "timestamp": when})
    messages = [dict.fromkeys(MESSAGE) | {"turn_identifier": 1} | m for m in messages]
    known = {
        "conversation_hash": f"hash{minute}",
        "model": model,
        "timestamp": start + timedelta(hours=1),
        "conversation": messages,
        "turn": len(texts),
        "language": "English",
        "hashed_ip": f"ip{minute % 7}",
    }
    return dict.fromkeys(SCHEMA) | known


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pl.DataFrame(rows, schema=SCHEMA).write_parquet(path)
    return path


def generated(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of two LLMs: about stones "bad" fails often and "good" rarely, else both do.

    A user asks again with a word more until the answer is kept, then asks something else.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for minute in range(count):
        model = "good" if rng.random() < 0.5 else "bad"
        texts: list[str] = []
        for _ in range(int(rng.integers(1, 4))):
            stones = bool(rng.random() < 0.5)
            topic = ["stone"] * 4 if stones else ["cloud"] * 4
            text = " ".join([*topic, *rng.choice(WORDS, 5), str(rng.integers(10**6))])
            texts.append(text)
            while rng.random() < retry_chance(model, stones) and len(texts) < 12:
                texts.append(f"{texts[-1]} {rng.choice(WORDS)}"[:400])
        rows.append(conversation(texts, model, minute))
    return rows


def retry_chance(model: str, stones: bool) -> float:
    if not stones:
        return 0.2
    return 0.6 if model == "bad" else 0.05


# --- the rule ------------------------------------------------------------------------------------


def test_the_rule_finds_the_labelled_retrials() -> None:
    pairs = retrials.labelled_pairs()
    assert len(pairs) >= 60
    assert len({pair["language"] for pair in pairs}) >= 8
    chosen = retrials.confusion(retrials.halves(pairs)["test"])
    assert chosen["precision"] >= 0.9
    assert chosen["recall"] >= 0.9


def test_the_threshold_is_the_best_one_on_the_development_half() -> None:
    pairs = retrials.halves(retrials.labelled_pairs())["development"]
    scores = {t: retrials.confusion(pairs, t)["f1"] for t in np.arange(0.5, 1.0, 0.01).round(2)}
    assert scores[retrials.THRESHOLD] == max(scores.values())


def test_the_rule_beats_difflibs_ratio_at_its_best_threshold() -> None:
    from difflib import SequenceMatcher

    pairs = retrials.labelled_pairs()
    ratios = np.array([SequenceMatcher(None, p["previous"], p["next"]).ratio() for p in pairs])
    truth = np.array([pair["retrial"] for pair in pairs])

    def f1(found: Any) -> float:
        return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))

    best = max(f1(ratios >= t) for t in np.arange(0.3, 1.0, 0.01))
    assert retrials.confusion(pairs)["f1"] > best + 0.05


@given(st.text(max_size=80), st.text(max_size=80))
def test_similarity_is_symmetric_but_for_continuing_and_bounded(one: str, other: str) -> None:
    value = retrials.similarity(one, other)
    assert 0.0 <= value <= 1.0
    if not {retrials.normalise(one), retrials.normalise(other)} & retrials.CONTINUING:
        assert value == retrials.similarity(other, one)


@given(st.text(max_size=80))
def test_the_same_message_again_is_a_retrial_unless_it_says_nothing(text: str) -> None:
    plain = retrials.normalise(text)
    expected = 1.0 if plain and plain not in retrials.CONTINUING else 0.0
    assert retrials.similarity(text, text.upper() if text.isascii() else text) == expected


@pytest.mark.parametrize(
    "word", ["Continue.", "CONTINUE", "继续", "продолжай!", "Thank you!!", "sí"]
)
def test_words_that_ask_for_more_are_no_retrials(word: str) -> None:
    assert retrials.similarity(word, word) == 0.0


def test_wilsons_interval_is_the_closed_form() -> None:
    hits, n, z = 7, 40, norm.ppf(0.975)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert np.allclose(retrials.rate_interval(hits, n), (centre - half, centre + half))
    assert retrials.rate_interval(0, 0) == (0.0, 1.0)


# --- turns ---------------------------------------------------------------------------------------


def test_a_conversation_becomes_its_user_turns(tmp_path: Path) -> None:
    ask = "How do I sharpen a kitchen knife at home"
    texts = [ask, ask + " please", "And a pair of scissors?", "continue", "continue"]
    rows = [conversation(texts), conversation(["a\u2028b", ""], "gpt-3.5", minute=5)]
    header = import_dataset("wildchat", write(tmp_path / "train-0.parquet", rows))
    table = read_table(header)
    assert table["text"].to_list() == [*texts, "a\u2028b", ""]
    assert table["turn"].to_list() == [0, 1, 2, 3, 4, 0, 1]
    assert table["conversation"].to_list() == [0] * 5 + [1] * 2
    assert table["llm"].to_list() == ["gpt-4-0314"] * 5 + ["gpt-3.5"] * 2
    assert table["retried"].to_list() == [True] + [False] * 6
    assert table["repeat"].to_list() == [False, True] + [False] * 5
    assert table["followed"].to_list() == [True] * 4 + [False, True, False]
    assert table["similarity"].null_count() == 2
    # the time of a user turn is that of its answer
    assert table["time"][0] == START.timestamp() + 10
    assert header.facts.llms == ("gpt-3.5", "gpt-4-0314")
    assert header.facts.notes["retrials"]["gpt-4-0314"] == [1, 5, 4]
    assert header.facts.notes["conversations"] == 2
    assert conversations.arrival_times().tolist() == sorted(table.filter(~table["repeat"])["time"])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CHATS = st.lists(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), max_size=6),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CHATS)
def test_any_messages_give_their_user_turns_in_order(
    tmp_path: Path, chats: list[list[tuple[str, str]]]
) -> None:
    rows = []
    for minute, messages in enumerate(chats):
        row = conversation([], minute=minute)
        row["conversation"] = [
            dict.fromkeys(MESSAGE) | {"role": role, "content": text} for role, text in messages
        ]
        rows.append(row)
    path, out = write(tmp_path / "t.parquet", rows), tmp_path / "out.parquet"
    expected = [[text for role, text in messages if role == "user"] for messages in chats]
    if not any(expected):
        with pytest.raises(ValueError, match=r"t\.parquet: no conversation has a user turn"):
            wildchat.read_wildchat([path], out)
        return
    facts = wildchat.read_wildchat([path], out)
    table = pl.read_parquet(out)
    assert table["text"].to_list() == [text for texts in expected for text in texts]
    assert table["turn"].to_list() == [i for texts in expected for i in range(len(texts))]
    likeness = [retrials.similarity(*pair) for texts in expected for pair in pairwise(texts)]
    assert table["similarity"].drop_nulls().to_list() == likeness
    assert table["retried"].sum() == sum(value >= retrials.THRESHOLD for value in likeness)
    assert table["repeat"].to_list() == [False, *table["retried"].to_list()[:-1]]
    assert facts.rows == len(table)


def test_batches_and_files_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = generated(60)
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder / "train-0.parquet", rows[:25])
    write(folder / "train-1.parquet", rows[25:])
    whole = import_dataset("wildchat", write(tmp_path / "all.parquet", rows), name="whole")
    monkeypatch.setattr(wildchat, "BATCH", 7)
    split = import_dataset("wildchat", folder)
    assert read_table(split).equals(read_table(whole))
    assert split.facts == whole.facts


def test_turns_without_times_take_the_conversations(tmp_path: Path) -> None:
    row = conversation(["one", "two"])
    for message in row["conversation"]:
        message["timestamp"] = None
    table = read_table(import_dataset("wildchat", write(tmp_path / "t.parquet", [row])))
    assert table["time"].to_list() == [row["timestamp"].timestamp()] * 2


def test_rates_by_llm_cover_the_truth_and_are_counted_right(tmp_path: Path) -> None:
    header = import_dataset("wildchat", write(tmp_path / "t.parquet", generated(1500)))
    rates = {row["llm"]: row for row in conversations.retrial_rates(header)}
    table = read_table(header)
    for llm in ("good", "bad"):
        mine = table.filter(table["llm"] == llm)
        row = rates[llm]
        assert row["turns"] == len(mine)
        assert row["retried"] == mine["retried"].sum()
        # the rate is a mixture over the two topics, weighed by how many turns each makes
        chance = np.array([retry_chance(llm, stones) for stones in (True, False)])
        weight = 1 / (1 - chance)
        assert row["low"] - 0.02 < float(chance @ weight / weight.sum()) < row["high"] + 0.02
    assert rates["bad"]["low"] > rates["good"]["high"]
    followed = sum(n for _, n in header.facts.notes["retrials_by_turn"].values())
    assert followed == table["followed"].sum()
    runs = header.facts.notes["retrial_run_lengths"]
    assert sum(int(length) * n for length, n in runs.items()) == table["retried"].sum()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.drop("conversation"), ["no column 'conversation'"]),
        (lambda f: f.drop("model"), ["no column 'model'"]),
        (lambda f: f.drop("timestamp"), ["no column 'timestamp'"]),
        (lambda f: f.with_columns(model=pl.lit(3)), ["'model'", "expected text"]),
        (lambda f: f.with_columns(timestamp=pl.lit("x")), ["timestamp", "expected a time"]),
        (lambda f: f.with_columns(conversation=pl.lit("x")), ["'conversation'", "role"]),
        (
            lambda f: f.with_columns(model=pl.Series([None, "x"], dtype=pl.String)),
            ["row 1", "'model'", "empty"],
        ),
        (lambda f: f.head(0), ["no conversation has a user turn"]),
    ],
)
def test_errors_name_file_row_and_column(spoil: Any, words: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [conversation(["a"]), conversation(["b"])])
    spoil(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(ValueError, match=r"train\.parquet") as caught:
        import_dataset("wildchat", path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert stored_names() == []


def test_a_truncated_file_is_refused_and_nothing_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", generated(30))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a complete Parquet file"):
        import_dataset("wildchat", path)
    assert not list((tmp_path / "cache").rglob("*.parquet"))


# --- the outcome model ---------------------------------------------------------------------------


def test_the_fit_recovers_known_parameters() -> None:
    rng = np.random.default_rng(0)
    n, d, llms = 40_000, 4, 3
    contexts = rng.normal(size=(n, d)).astype(np.float32)
    theta = rng.normal(size=(llms, d))
    llm = rng.integers(llms, size=n)
    chance = 1 / (1 + np.exp(-np.einsum("nd,nd->n", contexts, theta[llm])))
    kept = rng.random(n) < chance
    found = outcomes.fit_mnl(contexts, llm, kept, llms, 1.0)
    # the standard error of a coefficient is about 1 / sqrt(n / llms * p(1-p)) = 0.025
    assert np.abs(found - theta).max() < 0.12
    measured = outcomes.calibration(chance, kept, float(kept.mean()))
    assert measured["ece"] < 0.02
    assert measured["log_loss"] < measured["base_log_loss"]
    assert sum(row["low"] <= row["predicted"] <= row["high"] for row in measured["table"]) >= 8


def test_an_llm_with_few_turns_stays_close_to_the_others() -> None:
    rng = np.random.default_rng(1)
    contexts = np.ones((1002, 1), dtype=np.float32)
    llm = np.append(np.zeros(1000, dtype=int), [1, 1])
    kept = np.append(rng.random(1000) < 0.8, [False, False])
    theta = outcomes.fit_mnl(contexts, llm, kept, 2, 1.0)
    assert 1.0 < theta[0, 0] < 1.6  # logit(0.8) = 1.39
    assert -0.5 < theta[1, 0] < theta[0, 0]  # alone, two failures would send it below


def test_outcomes_that_never_differ_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="all kept or all retried"):
        outcomes.fit_mnl(np.ones((4, 1), np.float32), np.zeros(4, int), np.ones(4, bool), 1, 1.0)


def test_calibration_of_a_wrong_prediction_is_its_error() -> None:
    kept = np.arange(1000) % 4 > 0  # three quarters are kept
    found = outcomes.calibration(np.full(1000, 0.5), kept, 0.75)
    assert np.isclose(found["ece"], 0.25)
    assert np.isclose(found["brier"], 0.25)
    assert np.isclose(found["auc"], 0.5)
    assert found["log_loss"] > found["base_log_loss"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    return write(folder / "t.parquet", generated(2500, seed=3))


def test_the_workload_knows_which_llm_fails_at_what(chats: Path) -> None:
    import_dataset("wildchat", chats)
    model = conversations.outcomes_of(context_dim=16)
    assert model.llms == ("bad", "good")
    measured = model.calibration
    assert measured["ece"] < 0.05
    assert measured["log_loss"] < measured["base_log_loss"] - 0.02
    assert measured["turns"] > 500
    table = read_table(read_header("wildchat"))
    stones = table["text"].str.starts_with("stone").to_numpy()
    chance = 1 / (1 + np.exp(-model.contexts @ model.theta.T))
    for mask, topic in ((stones, True), (~stones, False)):
        for j, llm in enumerate(model.llms):
            assert abs(chance[mask, j].mean() - (1 - retry_chance(llm, topic))) < 0.06


def test_an_environment_plays_logged_conversations(chats: Path) -> None:
    import_dataset("wildchat", chats)
    spec = {"source": "wildchat", "context_dim": 8, "pool_size": 200}
    env = gym.make("LLMQueue-v0", workload=spec, load=0.9, assortment_size=1)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    workload = make_workload(spec, num_llms=2, context_dim=None, assortment_size=1)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0))
    assert contexts.shape == (200, 8)
    model = conversations.outcomes_of(context_dim=8)
    assert np.allclose(utilities, contexts.astype(np.float64) @ model.theta.T)
    table = read_table(read_header("wildchat"))
    assert not table["repeat"].to_numpy()[model.arrives].any()  # retrials do not arrive anew
    assert not table["repeat"].to_numpy()[model.kept_back].any()  # nor tell of what may arrive
    assert len(workload.offline.contexts) == model.kept_back.sum() > 0
    with pytest.raises(ValueError, match="holds conversations, not scores"):
        load_pool("wildchat")


def test_the_commands_show_rates_calibration_and_the_rule(chats: Path) -> None:
    from typer.testing import CliRunner

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(build_app(), ["data", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    run("import", "wildchat", str(chats))
    shown = json.loads(run("show", "wildchat", "--json"))
    assert {row["llm"] for row in shown["retrial_rates"]} == {"bad", "good"}
    assert "Wilson" in run("show", "wildchat")
    fitted = json.loads(run("outcomes", "wildchat", "--context-dim", "8", "--json"))
    assert len(fitted["table"]) == 10
    assert "expected calibration error" in run("outcomes", "wildchat", "--context-dim", "8")
    judged = json.loads(run("retrials", "--json"))
    assert judged["pairs"]["test"]["precision"] >= 0.9
    assert "missed" in run("retrials")


def test_arrivals_are_replayed_by_the_conversations_times(chats: Path) -> None:
    """The trace of the stored data set is that of a file of its first askings."""
    from llmqueue_gym.workloads.arrivals import arrivals_fingerprint, make_arrivals

    header = import_dataset("wildchat", chats)
    times = conversations.arrival_times()
    written = chats.with_name("times.parquet")
    pl.DataFrame({"timestamp": times}).write_parquet(written)
    draws = []
    spec = {"process": "trace", "dataset": "wildchat"}
    for one in (spec, {"process": "trace", "path": str(written)}):
        out = np.empty(5000)
        draws.append(make_arrivals(one).stream(0.4, np.random.default_rng(0)).random(out=out))
    assert np.array_equal(*draws)
    assert arrivals_fingerprint(spec) == header.parquet["sha256"]
    with pytest.raises(ValueError, match="'path' and 'dataset'"):
        make_arrivals(spec | {"path": str(written)})
    env = gym.make("LLMQueue-v0", workload="wildchat", arrivals=spec, load=0.8)
    env.reset(seed=0)


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wildchat, "BATCH", 4)
    told: list[int] = []
    path = write(tmp_path / "t.parquet", generated(10))
    import_dataset("wildchat", path, tell=told.append)
    assert told == [4, 8, 10]


AGGREGATES = (
    Path(__file__).resolve().parents[2].parent
    / "shared"
    / "data"
    / "wildchat"
    / "wildchat_retry_aggregates.json"
)


@pytest.mark.skipif(not AGGREGATES.is_file(), reason="the optional aggregates are not there")
def test_the_header_says_what_the_published_aggregates_say(chats: Path) -> None:
    """Same keys and shapes, so that a user can lay them side by side."""
    notes = import_dataset("wildchat", chats).facts.notes
    published = json.loads(AGGREGATES.read_text())
    rates = published["near_duplicate_followup_rate_by_turn(1..6+)"]
    assert notes["retrials_by_turn"].keys() <= rates.keys()
    for retried, followed, rate in rates.values():
        assert abs(retried / followed - rate) < 1e-3
    assert list(notes["retrial_run_lengths"]) == sorted(notes["retrial_run_lengths"], key=int)
    found, seen = notes["difflib_sample"]
    assert 0 < found <= seen
