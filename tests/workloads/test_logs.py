"""Own logs: every way to write one, clear errors, off-policy values against a simulator, workload.

The simulator draws contexts and logit utilities, logs a softmax policy, and knows every value.
"""

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.interface import Agent
from benchmarks.commands.logs import show_evaluation, show_log
from benchmarks.commands.reading import Reading
from benchmarks.score.logged import evaluate, judge_policy, prepare
from llmqueue_gym.deployment.streams.sources import stream_fingerprint
from llmqueue_gym.workloads import fingerprint, make_workload
from llmqueue_gym.workloads.sources.log_file import log_fingerprint
from llmqueue_gym.workloads.sources.logs import (
    Log,
    _distinct,
    describe_log,
    fit_outcomes,
    judge_outcomes,
    read_log,
)

ROWS = [
    {"query": "a b c", "llm": "x", "kept": True, "cost": 0.1, "timestamp": 2.0, "propensity": 0.5},
    {
        "query": "d e f",
        "llm": "y",
        "kept": False,
        "cost": 0.2,
        "timestamp": 1.0,
        "propensity": 0.25,
    },
    {"query": "a b c", "llm": "y", "kept": True, "cost": 0.3, "timestamp": 3.0, "propensity": 1.0},
]


def write(path, rows):
    """Write rows as the file's name asks for."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        pl.DataFrame(rows).write_csv(path)
    return str(path)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_log_in_the_order_of_time(suffix, tmp_path):
    log = read_log(write(tmp_path / f"log.{suffix}", ROWS))
    assert log.texts == ("d e f", "a b c", "a b c")
    assert log.llms == ("x", "y")
    assert log.llm.tolist() == [1, 0, 1]
    assert log.reward.tolist() == [0.0, 1.0, 1.0]
    assert log.cost.tolist() == [0.2, 0.1, 0.3]
    assert log.time.tolist() == [1.0, 2.0, 3.0]
    assert log.propensity.tolist() == [0.25, 0.5, 1.0]


def test_only_query_llm_and_outcome_are_needed_and_columns_have_other_names(tmp_path):
    rows = [
        {"prompt": "a", "model": "x", "rating": 0.25},
        {"prompt": "b", "model": "y", "rating": 1},
    ]
    columns = {"query": "prompt", "llm": "model", "score": "rating"}
    log = read_log(write(tmp_path / "log.jsonl", rows), columns)
    assert log.reward.tolist() == [0.25, 1.0]
    assert log.cost is log.time is log.propensity is None


def test_a_log_may_bring_vectors(tmp_path):
    rows = [{"embedding": [1.0, float(i)], "llm": "x", "kept": i % 2} for i in range(4)]
    log = read_log(write(tmp_path / "log.jsonl", rows))
    assert log.texts is None
    assert log.contexts().tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]
    with pytest.raises(ValueError, match="leave context_dim"):
        log.contexts(5)


def litellm(query, session, start, **changes):
    row = {
        "request_id": f"{session}-{start}",
        "call_type": "acompletion",
        "spend": 0.001,
        "startTime": f"2026-03-01T10:00:{start:02d}.500Z",
        "model": "openai/gpt",
        "model_group": "gpt",
        "session_id": session,
        "status": "success",
        "messages": json.dumps(
            [{"role": "system", "content": "s"}, {"role": "user", "content": query}]
        ),
    }
    return row | changes


def test_litellm_spend_logs_tell_retrials_by_the_sessions_next_message(tmp_path):
    rows = [
        litellm("What is the capital city of France?", "s1", 9, model_group=None),
        litellm("what is the capital city of france", "s1", 12),
        litellm("And how many people live there today?", "s1", 20),
        litellm("What is the capital city of France?", "s2", 10),
        litellm("Write me a poem about the sea", "s3", 1, status="failure"),
        litellm([{"type": "text", "text": "in parts"}], "s4", 2),
    ]
    log = read_log(write(tmp_path / "spend.jsonl", rows))
    assert log.texts[0] == "Write me a poem about the sea"
    assert log.texts[1] == "in parts"
    assert log.reward.tolist() == [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    assert log.llms == ("gpt", "openai/gpt")
    assert [text for text, again in zip(log.texts, log.repeat, strict=True) if again] == [
        "what is the capital city of france"
    ]
    assert "what is the capital city of france" not in [log.texts[row] for row in _distinct(log)[0]]
    assert log.cost.tolist() == [0.001] * 6
    assert np.diff(log.time) == pytest.approx([1, 7, 1, 2, 8])


def test_litellm_without_prompts_says_which_switch_keeps_them(tmp_path):
    path = write(tmp_path / "spend.jsonl", [litellm("x", "s", 1, messages="{}")])
    with pytest.raises(ValueError, match=r"1 with no prompt.*store_prompts_in_spend_logs"):
        read_log(path)


BAD = [
    ({"llm": None}, "'llm' is empty"),
    ({"llm": "  "}, "'llm' is empty"),
    ({"query": 3}, "'query' must hold text"),
    ({"kept": "perhaps"}, "'kept' must be true or false"),
    ({"cost": -1}, "'cost' must be a number in"),
    ({"cost": "dear"}, "'cost' must be a number in"),
    ({"cost": "1,234"}, "'1,234', which may be thousands; write decimals with a point"),
    ({"propensity": 0}, "positive probability"),
    ({"propensity": 1.5}, "'propensity' must be a number in"),
    ({"timestamp": "noon"}, "'timestamp' must be a number or an ISO"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_errors_name_file_row_and_column(change, message, tmp_path):
    path = write(tmp_path / "log.jsonl", [ROWS[0], ROWS[1] | change])
    with pytest.raises(ValueError, match=message) as error:
        read_log(path)
    assert "log.jsonl, line 2" in str(error.value)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("query", "no column 'query' or 'embedding'"),
        ("llm", "no column 'llm'"),
        ("kept", r"no column 'kept' or 'score'.*--column kept=NAME"),
    ],
)
def test_missing_columns_are_named(drop, message, tmp_path):
    rows = [{key: value for key, value in row.items() if key != drop} for row in ROWS]
    with pytest.raises(ValueError, match=message):
        read_log(write(tmp_path / "log.csv", rows))


def test_an_export_of_a_german_excel_is_the_same_log(tmp_path):
    lines = ["Zeit;query;llm;kept;cost"]
    for row in ROWS:
        kept, cost = "WAHR" if row["kept"] else "FALSCH", str(row["cost"]).replace(".", ",")
        day = f"0{row['timestamp']:.0f}.05.2026 08:00"
        lines.append(f"{day};{row['query']};{row['llm']};{kept};{cost}")
    text = "\r\n".join([*lines, ";;;;", ""])
    (tmp_path / "log.csv").write_text(text, encoding="utf-8-sig", newline="")
    log = read_log(str(tmp_path / "log.csv"), {"timestamp": "Zeit"})
    same = read_log(write(tmp_path / "log.jsonl", ROWS))
    assert log.texts == same.texts
    assert log.reward.tolist() == same.reward.tolist()
    assert log.cost.tolist() == same.cost.tolist()
    assert np.diff(log.time).tolist() == [86_400.0, 86_400.0]


def test_wrong_column_options_are_named(tmp_path):
    path = write(tmp_path / "log.csv", ROWS)
    with pytest.raises(ValueError, match="did you mean 'query'"):
        read_log(path, {"qurey": "query"})
    with pytest.raises(ValueError, match="did you mean 'cost'"):
        read_log(path, {"cost": "costs"})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        read_log(str(tmp_path / "empty.jsonl"))


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["query", "llm", "kept", "cost"]),
            st.none()
            | st.text(max_size=5)
            | st.floats()
            | st.booleans()
            | st.lists(st.integers(), max_size=2),
        ),
        max_size=4,
    )
)
def test_any_rows_are_a_log_or_a_clear_error(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("log") / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        log = read_log(str(path))
    except ValueError as error:
        found = str(error)
    else:
        assert len(log) == len(rows)
        assert ((log.reward >= 0) & (log.reward <= 1)).all()
        found = "any.jsonl"
    assert "any.jsonl" in found


# --- a simulator ----------------------------------------------------------------------------------


def simulate(n, seed, llms=3, dim=4, logged=True):
    """A log of a softmax policy, and the true keep rates (n, N)."""
    rng = np.random.default_rng(seed)
    theta = np.random.default_rng(99).normal(size=(llms, dim))
    x = np.hstack([rng.normal(size=(n, dim - 1)), np.ones((n, 1))]).astype(np.float32)
    rates = expit(x @ theta.T)
    weights = np.exp(0.7 * x @ np.random.default_rng(7).normal(size=(dim, llms)))
    chances = weights / weights.sum(axis=1, keepdims=True)
    llm = (rng.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1).clip(max=llms - 1)
    rows = np.arange(n)
    reward = (rng.random(n) < rates[rows, llm]).astype(float)
    names = tuple("abcdef"[:llms])
    propensity = chances[rows, llm] if logged else None
    log = Log("simulated", None, x, names, llm, reward, 0.01 * (1.0 + llm), None, propensity)
    return log, rates


class Softmax(Agent):
    """A stochastic policy that does not learn."""

    def act(self, observation):
        x = observation["contexts"][0].astype(float)
        theta = np.random.default_rng(5).normal(size=(len(x), self.problem.num_llms))
        weights = np.exp(x @ theta)
        return np.array([0, self.rng.choice(len(weights), p=weights / weights.sum())])


@pytest.mark.parametrize("name", [f"{__name__}:Softmax", "greedy", "offline-ridge"])
def test_intervals_cover_the_agents_true_value(name):
    hits = dict.fromkeys(("ips", "self-normalised", "doubly robust", "gain"), 0)
    runs = 15
    for seed in range(runs):
        log, rates = simulate(500, seed)
        found = evaluate(prepare(log, log.contexts()), name, seed=seed, draws=4)
        truth = float((found.policy * rates[250:]).sum(axis=1).mean())
        for key, interval in found.estimates.items():
            hits[key] += interval.low <= truth <= interval.high
        rows = np.arange(250, 500)
        gain = truth - float(rates[rows, log.llm[250:]].mean())
        hits["gain"] += found.gain.low <= gain <= found.gain.high
    # 95% coverage gives fewer than 12 of 15 about once in 1,800.
    assert min(hits.values()) >= 12, hits


def test_an_agent_that_learns_is_worth_more_than_the_log():
    log, rates = simulate(4000, 0)
    data = prepare(log, log.contexts())
    found = evaluate(data, "offline-ridge", draws=1)
    best = rates[2000:].max(axis=1).mean()
    assert found.estimates["doubly robust"].low > found.logged.high
    assert found.estimates["doubly robust"].value == pytest.approx(best, abs=0.05)
    online = evaluate(data, "greedy", draws=1)
    assert 300 < online.trained_on < 1500  # where it agreed with the log
    assert online.estimates["doubly robust"].low > found.logged.value


def test_a_gain_is_paired_by_request():
    log, _ = simulate(2000, 0)
    data = prepare(log, log.contexts())
    mostly = np.full((1000, 3), 0.02)  # what the log did, nearly always
    mostly[np.arange(1000), log.llm[1000:]] = 0.96
    log.propensity[:] = 1.0  # of a log that is sure, so that it all but agrees with itself
    found = judge_policy(data._replace(propensity=np.ones(1000)), mostly, "the log's own")
    apart = found.logged.high - found.logged.low
    assert found.gain.high - found.gain.low < 0.3 * apart
    assert abs(found.gain.value) < 0.05
    assert found.usd_gain.low <= 0.0 <= found.usd_gain.high or abs(found.usd_gain.value) < 1e-3
    dearer = judge_policy(data, np.tile([0.0, 0.0, 1.0], (1000, 1)), "dearest")
    spent = log.cost[data.judge].mean()
    assert dearer.usd_gain.low <= 0.03 - spent <= dearer.usd_gain.high
    assert dearer.usd_gain.low > 0.0


def test_a_log_is_an_instance_of_llm_deploy(tmp_path):
    rows = [
        {"query": f"{i} {['sum', 'root', 'poem', 'verse'][i % 4]}", "llm": "ab"[i % 2]}
        | {"kept": int(i % 3 > 0), "cost": 0.01 * (1 + i % 2)}
        for i in range(200)
    ]
    path = write(tmp_path / "log.jsonl", rows)
    spec = {"source": "logs", "path": path, "context_dim": 4, "arrivals": ["a", "b"]}
    env = gym.make("LLMDeploy-v0", instance=spec, max_deployed=2, num_stages=4, horizon=100)
    assert not env.unwrapped.problem["has_prices"]
    priced = spec | {"prices": {"a": 0.02, "b": [3.0, 5.0]}, "tokens": [1000, 200]}
    env = gym.make("LLMDeploy-v0", instance=priced, max_deployed=2, num_stages=4, horizon=100)
    observation, _ = env.reset(seed=0)
    assert env.unwrapped.problem["has_prices"]
    assert observation["context"].shape == (4,)
    assert observation["cost_prior"][0] == pytest.approx(0.02)
    costs = [env.step(np.array([1, 0, 0]))[4]["cost"] for _ in range(20)]
    assert costs == pytest.approx([0.01] * 20)
    assert stream_fingerprint(spec) == log_fingerprint(path)
    for bad, words in (
        ({"prices": {"a": 1.0}}, "no price of LLM 'b'"),
        ({"prices": [1.0, 2.0]}, "say with `tokens`"),
        ({"prices": [1.0, 2.0], "tokens": ["in", "out"]}, "two numbers, those of a usual answer"),
    ):
        with pytest.raises(ValueError, match=words):
            gym.make("LLMDeploy-v0", instance=spec | bad)
    free = write(tmp_path / "free.jsonl", [{k: r[k] for k in r if k != "cost"} for r in rows])
    with pytest.raises(ValueError, match="the log has no costs"):
        gym.make("LLMDeploy-v0", instance=spec | {"path": free})


@pytest.mark.parametrize("logged", [True, False])
def test_what_a_policy_spends_is_the_mean_cost_of_its_choices(logged):
    log, _ = simulate(2000, 0, logged=logged)
    data = prepare(log, log.contexts())
    for shares in ([0.0, 0.0, 1.0], [0.5, 0.5, 0.0]):
        found = judge_policy(data, np.tile(shares, (len(data.judge), 1)), "fixed")
        truth = float(np.dot(shares, [0.01, 0.02, 0.03]))
        assert found.usd.low <= truth <= found.usd.high
        assert found.usd.value == pytest.approx(truth, abs=1e-3)
    free = prepare(replace(log, cost=None), log.contexts())
    assert judge_policy(free, np.tile(shares, (len(free.judge), 1)), "fixed").usd is None


def test_estimated_propensities_come_near_the_logged_ones():
    log, _ = simulate(6000, 1)
    bare, _ = simulate(6000, 1, logged=False)
    known, fitted = (prepare(each, each.contexts()) for each in (log, bare))
    assert fitted.estimated
    assert not known.estimated
    assert np.abs(known.propensity - fitted.propensity).mean() < 0.03


def test_the_cost_weight_takes_the_cost_off_the_reward():
    log, _ = simulate(400, 0)
    free, dear = (prepare(log, log.contexts(), cost_weight=weight) for weight in (0.0, 2.0))
    assert free.reward - dear.reward == pytest.approx(2.0 * log.cost)
    assert free.predicted - dear.predicted == pytest.approx(np.tile([0.02, 0.04, 0.06], (400, 1)))


def test_an_agent_trained_offline_knows_the_price():
    log, _ = simulate(2000, 0)
    cheap = evaluate(prepare(log, log.contexts(), cost_weight=50.0), "offline-ridge", draws=1)
    assert cheap.policy[:, 0].mean() > 0.8  # a cent is dear: the cheapest LLM answers nearly all
    free = evaluate(prepare(log, log.contexts()), "offline-ridge", draws=1)
    assert free.policy[:, 0].mean() < 0.6


def test_evaluation_follows_its_seed_and_never_looks_at_the_judging_part():
    log, _ = simulate(300, 0)
    other, _ = simulate(300, 0)
    other.reward[150:] = 1.0 - other.reward[150:]
    first, again, changed = (
        evaluate(prepare(each, each.contexts()), "ACQB", seed=3) for each in (log, log, other)
    )
    assert np.array_equal(first.policy, again.policy)
    assert first.estimates == again.estimates
    assert np.array_equal(first.policy, changed.policy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_share": 1.0}, "train_share"),
        ({"train_share": 0.01}, "too few"),
        ({"cost_weight": -1}, "cost_weight"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    log, _ = simulate(60, 0)
    with pytest.raises(ValueError, match=message):
        prepare(log, log.contexts(), **arguments)


# --- what a log cannot tell -----------------------------------------------------------------------


def made_up(llm, propensity=None, seed=0):
    """A log in which those LLMs answered; one coordinate of its contexts tells nothing."""
    rng = np.random.default_rng(seed)
    names = tuple(sorted(set(llm)))
    x = np.column_stack([rng.normal(size=len(llm)), np.ones(len(llm))]).astype(np.float32)
    index = np.array([names.index(name) for name in llm])
    reward = (rng.random(len(llm)) < 0.4 + 0.1 * index).astype(float)
    return Log("made-up", None, x, names, index, reward, None, None, propensity)


def uniform(data):
    llms = len(data.log.llms)
    return np.full((len(data.judge), llms), 1.0 / llms)


def test_an_llm_of_one_half_only_is_named_and_left_out():
    rng = np.random.default_rng(0)
    llm = [*rng.choice(["base", "v1"], 600), *rng.choice(["base", "v2"], 600)]
    llm[900] = "once"
    log = made_up(llm)
    data = prepare(log, log.contexts())
    assert [note.split()[0] for note in data.notes] == ["once", "v1", "v2"]
    assert len(data.judge) == 599
    found = judge_policy(data, np.tile([0.4, 0.1, 0.2, 0.3], (599, 1)), "mine")
    assert found.outside == pytest.approx(0.3)
    assert "30.0% of its choices" in found.warnings[0]
    for interval in found.estimates.values():
        assert interval.value == pytest.approx(4 / 7 * 0.4 + 3 / 7 * 0.7, abs=0.08)
        assert 0.05 < interval.high - interval.low < 0.2
    assert found.mean_weight == pytest.approx(1.0, abs=0.05)
    nearly_all = judge_policy(data, np.tile([0.2, 0.0, 0.7, 0.1], (599, 1)), "old")
    assert all(np.isnan(interval.value) for interval in nearly_all.estimates.values())
    assert "no estimate: 70% of its choices" in nearly_all.warnings[0]


@pytest.mark.parametrize("logged", [True, False])
def test_choices_that_do_not_overlap_are_refused(logged):
    log = made_up(["coder", "writer"] * 500, np.ones(1000) if logged else None)
    log.vectors[:, 0] = np.tile([3.0, -3.0], 500)  # a router that follows the context
    data = prepare(log, log.contexts())
    found = judge_policy(data, uniform(data), "even")
    assert found.mean_weight == pytest.approx(0.5, abs=0.05)
    assert "do not overlap" in found.warnings[0]
    assert all(np.isnan(interval.value) for interval in found.estimates.values())
    same = judge_policy(data, np.eye(2)[log.llm[data.judge]], "the same")
    assert not same.warnings
    assert same.estimates["self-normalised"].value == pytest.approx(same.logged.value, abs=0.01)


def test_answers_that_are_all_kept_teach_nothing():
    log = made_up(["a", "b"] * 50)
    log.reward[:50] = 1.0
    with pytest.raises(ValueError, match="made-up: all answers of the first 50 requests are kept"):
        prepare(log, log.contexts())


def test_a_log_of_one_llm_tells_of_no_other():
    log = made_up(["a"] * 100 + ["b"] * 3 + ["a"] * 100)
    with pytest.raises(ValueError, match="only requests answered by different LLMs tell"):
        prepare(log, log.contexts())


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_values_stay_within_what_rewards_can_be(weight):
    for seed in range(5):
        log, rates = simulate(300, seed, logged=False)
        data = prepare(log, log.contexts(), cost_weight=weight)
        best = np.eye(3)[rates[data.judge].argmax(axis=1)]
        found = judge_policy(data, best, "best")
        for interval in found.estimates.values():
            assert -0.03 * weight <= interval.low <= interval.value <= interval.high
            assert interval.high <= 1.0 - 0.01 * weight


def test_scores_a_little_outside_are_clipped_if_asked_for(tmp_path):
    rows = [{"query": "a", "llm": "x", "score": score} for score in (-0.01, 1.02, 0.5)]
    path = write(tmp_path / "log.jsonl", rows)
    with pytest.raises(ValueError, match=r"line 1: column 'score' is -0\.01, .*--clip-scores"):
        read_log(path)
    assert read_log(path, clip_scores=True).reward.tolist() == [0.0, 1.0, 0.5]
    path = write(tmp_path / "far.jsonl", [*rows, rows[0] | {"score": 1.2}])
    with pytest.raises(ValueError, match=r"line 4: column 'score' is 1\.2, .* scale the scores"):
        read_log(path, clip_scores=True)


def test_times_of_a_log_are_seconds_whatever_their_unit(tmp_path):
    for number, stamps in enumerate(
        [(1.7e12, 1.7e12 + 1500), ("2026-01-01T00:00:00+01:00", "2025-12-31T23:00:01.5Z")]
    ):
        rows = [row | {"timestamp": stamp} for row, stamp in zip(ROWS, stamps, strict=False)]
        log = read_log(write(tmp_path / f"{number}.jsonl", rows))
        assert np.diff(log.time) == pytest.approx([1.5])


# --- the outcome model and the workload -----------------------------------------------------------


def test_the_outcome_model_finds_the_simulators_rates_and_is_calibrated():
    log, rates = simulate(8000, 0)
    model = fit_outcomes(log, log.contexts(), np.arange(len(log)))
    assert np.abs(model.rates(log.contexts()) - rates).mean() < 0.04
    assert model.cost == pytest.approx([0.01, 0.02, 0.03])
    found = judge_outcomes(log, log.contexts())
    assert found["ece"] < 0.06
    assert found["log_loss"] < found["base_log_loss"]
    blind = judge_outcomes(log, np.ones((len(log), 1), np.float32))  # all it knows is the LLM
    assert blind["log_loss"] == pytest.approx(found["base_log_loss"], abs=1e-3)


def test_scores_count_as_shares_of_kept_answers():
    log, rates = simulate(3000, 0)
    log.reward[:] = rates[np.arange(len(log)), log.llm]
    model = fit_outcomes(log, log.contexts(), np.arange(len(log)), ridge=1e-3)
    assert model.rates(log.contexts()) == pytest.approx(rates, abs=0.01)
    assert judge_outcomes(log, log.contexts()) is None
    assert describe_log(log)["outcome"] == "score"


def text_log(path, rows=400):
    rng = np.random.default_rng(0)
    words = {"x": ["sum", "root", "angle", "prime"], "y": ["poem", "verse", "rhyme", "song"]}
    out = []
    for i in range(rows):
        topic, llm = rng.choice(["x", "y"]), rng.choice(["x", "y"])
        query = f"{i % 150} " + " ".join(
            np.random.default_rng(i % 150).choice(words["xy"[i % 150 % 2]], 6)
        )
        topic = "xy"[i % 150 % 2]
        kept = rng.random() < (0.9 if llm == topic else 0.2)
        out.append(
            {
                "query": query,
                "llm": str(llm),
                "kept": int(kept),
                "cost": 0.01 if llm == "x" else 0.1,
            }
        )
    return write(path, out)


def test_a_log_is_a_workload(tmp_path):
    path = text_log(tmp_path / "log.csv")
    spec = {"source": "logs", "path": path, "context_dim": 6}
    env = gym.make("LLMQueue-v0", workload=spec, load=0.8, assortment_size=1)
    env.reset(seed=0)
    dynamics = env.unwrapped.dynamics
    assert env.unwrapped.llms == ("x", "y")
    best = np.bincount(dynamics.odds[:-1].argmax(axis=1), minlength=2) / (len(dynamics.odds) - 1)
    assert best.min() > 0.3  # either LLM is the better one for its topic
    assert env.unwrapped.offline is not None
    for _ in range(20):
        env.step(env.action_space.sample())
    assert len(fingerprint(spec)) == 64
    arguments = {"num_llms": None, "context_dim": None, "assortment_size": 1}
    dear = make_workload({**spec, "cost_weight": 9.0}, **arguments)
    rng = np.random.default_rng(0)
    assert (dear.draw(rng)[1].argmax(axis=1) == 0).mean() > 0.9  # the cheap one nearly always


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rows": 1000}, "no LLM has min_rows=1000 requests"),
        ({"ridge": 0}, "ridge=0"),
        ({"columns": {"cost": "price"}}, "column 'price' is not known"),
        ({"colums": {}}, "did you mean 'columns'"),
    ],
)
def test_a_bad_workload_option_is_named(options, message, tmp_path):
    spec = {"source": "logs", "path": text_log(tmp_path / "log.csv"), "context_dim": 6, **options}
    with pytest.raises(ValueError, match=message):
        make_workload(spec, num_llms=None, context_dim=None, assortment_size=1)


def test_a_cost_weight_needs_costs_and_a_model_needs_both_outcomes(tmp_path):
    arguments = {"num_llms": None, "context_dim": None, "assortment_size": 1}
    rows = [{"embedding": [1.0, i % 3], "llm": "ab"[i % 2], "kept": 1} for i in range(60)]
    spec = {"source": "logs", "path": write(tmp_path / "log.jsonl", rows)}
    with pytest.raises(ValueError, match="all kept or all retried"):
        make_workload(spec, **arguments)
    rows[0]["kept"] = rows[1]["kept"] = 0
    write(tmp_path / "log.jsonl", rows)
    with pytest.raises(ValueError, match="needs costs"):
        make_workload({**spec, "cost_weight": 1.0}, **arguments)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def command(bench, capsys, monkeypatch):
    """Run ``llmqueue-bench logs`` in this process: exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code, printed = bench("logs", *arguments), capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_the_commands_print_tables_and_json(tmp_path, command):
    path = text_log(tmp_path / "log.csv")
    shown = json.loads(command("show", path, "--json")[1])
    assert shown["requests"] == 400
    assert {row["llm"] for row in shown["llms"]} == {"x", "y"}
    assert shown["outcome_model"]["turns"] == 100
    assert "calibration error" in command("show", path)[1]
    asked = ("evaluate", path, "--agent", "offline-ridge", "--agent", "random", "--draws", "2")
    found = json.loads(command(*asked, "--json")[1])
    routed, blind = found["agents"]
    assert found["propensities"] == "estimated"
    assert routed["doubly robust"][0] > blind["doubly robust"][2]
    assert sum(blind["shares"].values()) == pytest.approx(1.0)
    printed = command(*asked, "--each-llm")[1]
    assert "learned on the first 200 requests" in printed
    (alone,) = (line.split("│") for line in printed.splitlines() if "always x" in line)
    assert alone[4].strip() == "0.01 [0.01, 0.01]"
    assert routed["gain"][0] == pytest.approx(
        routed["doubly robust"][0] - found["logged"][0], abs=0.02
    )
    assert f"{routed['gain'][0]:+.3f}" in printed


def test_an_agent_that_cannot_play_is_refused_before_the_log_is_read():
    with pytest.raises(ValueError, match="'myopic' plays serving tasks"):
        show_evaluation(Reading(Path("nowhere.csv")), ["random", "myopic"])


def test_columns_may_be_named_in_a_file(tmp_path, capsys):
    renamed = [{"prompt": row["query"], "model": row["llm"], "kept": row["kept"]} for row in ROWS]
    path = Path(write(tmp_path / "log.csv", renamed))
    columns = tmp_path / "columns.json"
    columns.write_text('{"query": "prompt", "llm": "other"}')
    show_log(Reading(path, [str(columns), "llm=model"]), as_json=True)
    assert json.loads(capsys.readouterr().out)["requests"] == 3
    for text in ('["query"]', "query=prompt"):
        columns.write_text(text)
        with pytest.raises(ValueError, match=r"--column '.*columns.json'"):
            show_log(Reading(path, [str(columns)]), as_json=True)
    with pytest.raises(ValueError, match="the field stands first: query=prompt"):
        show_log(Reading(path, ["prompt=query"]), as_json=True)


def test_names_from_outside_never_reach_the_terminal_raw(tmp_path, command):
    odd = "evil\x1b]0;title\x07[red]"
    rows = [
        {"embedding": [i % 7, 1.0], "llm": odd if i % 2 else "plain", "kept": i % 3 == 0}
        for i in range(80)
    ]
    path = write(tmp_path / "log.jsonl", rows)
    for asked in (("show", path), ("evaluate", path, "--agent", "random", "--draws", "1")):
        code, out, err = command(*asked)
        assert code == 0, err
        assert not {"\x1b", "\x07"} & set(out + err)
    assert "evil\ufffd]0;title\ufffd[red]" in command("show", path)[1]
    bad = write(tmp_path / "bad.jsonl", [{odd: 1}])
    assert "\x1b" not in command("show", bad)[2]


def test_a_bad_log_is_one_line_on_stderr(tmp_path, command):
    path = write(tmp_path / "log.csv", [ROWS[0], ROWS[1] | {"cost": -3}])
    code, _, err = command("show", path)
    assert code == 2
    assert "log.csv, row 2: column 'cost'" in err
    assert "Traceback" not in err
