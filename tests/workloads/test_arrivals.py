"""Arrival processes: closed forms, the mapping of traces onto slots, the rule of the streams.

The Azure traces are optional data beside the checkout; their test skips without them.
"""

import copy
import json
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.commands.logs import describe_trace, show_trace
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from llmqueue_gym.envs import LLMQueueEnv
from llmqueue_gym.testing import check_coupling, check_lane_equality
from llmqueue_gym.workloads.arrivals import (
    Bernoulli,
    MarkovModulated,
    Trace,
    make_arrivals,
    map_to_slots,
)
from llmqueue_gym.workloads.traces import burstiness, dispersion, interarrival_cv, read_times

AZURE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "azure_llm_2023"


def draw(process, rate, slots, seed=0, block=None):
    """Slots (bool) with an arrival."""
    stream = process.stream(rate, np.random.default_rng(seed))
    parts, left = [], slots
    while left:
        part = np.empty(min(left, block or left))
        stream.random(out=part)
        parts.append(part)
        left -= len(part)
    return np.concatenate(parts) < rate


@pytest.fixture
def trace(tmp_path):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(size=400) * rng.choice([0.05, 3.0], 400))
    path = tmp_path / "requests.csv"
    path.write_text("Timestamp,Model\n" + "".join(f"{t},x\n" for t in times))
    return path


# --- processes ------------------------------------------------------------------------------------


def test_bernoulli_counts_and_gaps_have_their_closed_forms():
    slots = np.flatnonzero(draw(Bernoulli(), 0.4, 200_000))
    assert interarrival_cv(slots) == pytest.approx(math.sqrt(0.6), rel=0.02)
    for window in (10, 100):
        assert dispersion(slots, window) == pytest.approx(0.6, rel=0.1)


def test_a_markov_modulated_process_has_its_mean_and_its_dispersion():
    rate, stay = 0.3, 50.0
    process = MarkovModulated([0.0, 1.0], [stay, stay])
    arrived = draw(process, rate, 2_000_000)
    assert arrived.mean() == pytest.approx(rate, rel=0.03)
    # Probabilities 0 and 2 rate in turn: their covariance at lag k is rate^2 (1 - 2 / stay)^k, so
    # counts in long windows have Var / mean = (rate (1 - rate) + 2 sum_k of it) / rate.
    decay = 1.0 - 2.0 / stay
    variance = rate * (1.0 - rate) + 2.0 * rate**2 * decay / (1.0 - decay)
    assert dispersion(np.flatnonzero(arrived), 5000) == pytest.approx(variance / rate, rel=0.15)


def test_equal_rates_in_all_states_are_a_bernoulli_process():
    slots = np.flatnonzero(draw(MarkovModulated([1, 1, 1], [5, 9, 2]), 0.4, 100_000))
    assert dispersion(slots, 100) == pytest.approx(0.6, rel=0.15)


def test_the_share_of_time_in_a_state_is_its_share_of_the_sojourns():
    stream = MarkovModulated([0.0, 1.0, 0.0], [10, 30, 20]).stream(0.5, np.random.default_rng(1))
    out = np.empty(400_000)
    stream.random(out=out)  # the busy half of the time every slot has an arrival
    assert (out < 0.5).mean() == pytest.approx(0.5, rel=0.03)
    assert stream._rates.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["bernoulli", "markov-modulated", "daily", "trace"])
def test_draws_depend_on_seed_and_slot_only_not_on_the_block(kind, trace):
    spec = {"process": kind} | ({"path": str(trace)} if kind == "trace" else {})
    process = make_arrivals(spec)
    whole = draw(process, 0.5, 3000, seed=4)
    assert np.array_equal(whole, draw(process, 0.5, 3000, seed=4, block=7))
    assert not np.array_equal(whole, draw(process, 0.5, 3000, seed=5))


def test_a_daily_cycle_has_its_mean_and_its_swing():
    stream = make_arrivals({"process": "daily", "day": 100, "swing": 0.8}).stream(
        0.4, np.random.default_rng(2)
    )
    days = np.empty((8000, 100))
    for day in days:
        stream.random(out=day)
    rates = (days < 0.4).mean(axis=0)
    expected = 0.4 * (1.0 + 0.8 * np.sin(2.0 * np.pi * np.arange(1, 101) / 100))
    errors = (rates - expected) / np.sqrt(np.maximum(expected * (1.0 - expected), 1e-3) / 8000)
    assert np.abs(errors).max() < 5.0


def test_a_stream_is_copied_with_its_state(trace):
    for process in (MarkovModulated(), make_arrivals("daily"), Trace(str(trace))):
        stream = process.stream(0.5, np.random.default_rng(0))
        stream.random(out=np.empty(100))
        twin, first, second = copy.deepcopy(stream), np.empty(500), np.empty(500)
        assert np.array_equal(stream.random(out=first), twin.random(out=second))


# --- traces on slots ------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=80).filter(lambda t: max(t) - min(t) > 1e-3),
    st.floats(0.01, 1.0),
)
def test_every_request_enters_once_in_order_and_the_mean_rate_is_kept(times, rate):
    times = np.sort(times)
    arrivals, delays = map_to_slots(times, rate)
    length = max(len(times), round(len(times) / rate))
    assert len(arrivals) == length
    assert arrivals.sum() == len(times)
    assert (delays >= 0).all()
    span = float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    slots = np.floor((times - times[0]) * (length / span)).astype(int)
    entered = slots + delays
    assert (np.diff(entered) >= 1).all()
    assert entered[-1] - entered[0] < length
    # Nobody waits while a slot before them is free: a delayed request follows another at once.
    on_cycle = set((entered % length).tolist())
    for slot, delay in zip(slots, delays, strict=True):
        assert all((slot + k) % length in on_cycle for k in range(delay))


def test_requests_of_one_slot_spill_into_the_next_ones():
    times = np.array([0.0, 0.1, 0.2, 5.0, 9.0])  # ten slots of 11.25 / 10 each
    arrivals, delays = map_to_slots(times, 0.5)
    assert np.flatnonzero(arrivals).tolist() == [0, 1, 2, 4, 8]
    assert delays.tolist() == [0, 1, 2, 0, 0]


def test_what_spills_over_the_end_of_a_trace_enters_at_its_start():
    times = np.array([0.0, 7.9, 7.95, 8.0])  # 8 slots of 10.67 / 8: three requests in slot 5
    arrivals, delays = map_to_slots(times, 0.5)
    assert np.flatnonzero(arrivals).tolist() == [0, 5, 6, 7]
    arrivals, delays = map_to_slots(times, 1.0)
    assert arrivals.all()
    assert delays.tolist() == [1, 0, 1, 1]  # the last one enters in slot 0, before the first


def test_an_episode_replays_the_trace_in_order_and_round_its_end(trace):
    times = read_times(str(trace)).seconds
    cycle = map_to_slots(times, 0.4).arrivals
    arrived = draw(Trace(str(trace)), 0.4, 3 * len(cycle), seed=2)
    assert np.array_equal(arrived[: len(cycle)], arrived[len(cycle) : 2 * len(cycle)])
    offset = int(np.random.default_rng(2).integers(len(cycle)))
    assert np.array_equal(arrived[: len(cycle)], np.roll(cycle, -offset))


def test_poisson_times_have_unit_dispersion():
    figures = burstiness(np.cumsum(np.random.default_rng(0).exponential(size=200_000)))
    assert figures["cv"] == pytest.approx(1.0, rel=0.02)
    assert figures["dispersion_100"] == pytest.approx(1.0, rel=0.1)


# --- layouts --------------------------------------------------------------------------------------

LAYOUTS = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
    "2023-11-16 18:17:05.9799600,1,1\n",
    "burstgpt-1.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n5.052,GPT-4,1,1,2,API log\n7,ChatGPT,1,1,2,API log\n",
    "burstgpt-2.csv": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,"
    "Total tokens,Log Type\n5,1,3,ChatGPT,472,18,490,Conversation log\n"
    "5.052,,2,GPT-4,1,1,2,API log\n7,1,2,ChatGPT,1,1,2,Conversation log\n",
    "mooncake.jsonl": "".join(
        json.dumps({"timestamp": t, "input_length": 6, "output_length": 5, "hash_ids": [0]}) + "\n"
        for t in (27482, 27534, 29482)
    ),
    "own.jsonl": "".join(
        json.dumps({"timestamp": t, "llm": "a"}) + "\n"
        for t in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.052Z", "2026-01-02T03:04:07Z")
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_seconds_since_the_first_request(name, tmp_path):
    path = tmp_path / name
    path.write_text(LAYOUTS[name])
    np.testing.assert_allclose(read_times(str(path)).seconds, [0.0, 0.052, 2.0], atol=1e-6)


def hashed(times, **more):
    """A trace with hashes of blocks, as JSONL."""
    return "".join(json.dumps({"timestamp": t, "hash_ids": [0], **more}) + "\n" for t in times)


@pytest.mark.parametrize(
    ("times", "more", "unit"),
    [
        ([0, 512, 1020, 3999], {}, "ms"),  # Mooncake
        ([0.25, 1.5, 2.125, 9.0], {}, "s"),  # decimals: Qwen's Bailian
        ([0, 1, 1, 2, 9], {"chat_id": 1}, "s"),
        ([0, 1, 1, 2, 3, 3, 4], {}, "s"),  # in milliseconds more requests than anybody has
        ([0.5, 90_000.5, 180_000.5, 400_000.5], {"chat_id": 1}, "ms"),  # in seconds too few
        ([1.75e12, 1.75e12 + 500], {}, "ms"),
        ([1.75e9, 1.75e9 + 500], {}, "s"),
    ],
)
def test_the_unit_of_hashed_traces_is_the_plausible_one(times, more, unit, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(hashed(times, **more))
    found = read_times(str(path))
    assert found.unit == unit
    scale = {"s": 1.0, "ms": 1e-3}[unit]
    assert found.seconds == pytest.approx((np.array(times) - times[0]) * scale, abs=1e-6)
    assert read_times(str(path), unit="s").unit == "s"  # who says it is believed


@given(st.sampled_from([0, 3, 6, 9]), st.lists(st.integers(0, 10**6), min_size=2, unique=True))
@settings(max_examples=20)
def test_times_since_1970_are_read_in_any_unit(tmp_path_factory, digits, seconds):
    path = tmp_path_factory.mktemp("epoch") / "t.csv"
    rows = [str((1_760_000_000 + second) * 10**digits) for second in seconds]
    path.write_text("timestamp\n" + "\n".join(rows))
    found = read_times(str(path))
    assert found.unit == {0: "s", 3: "ms", 6: "us", 9: "ns"}[digits]
    assert found.seconds == pytest.approx(np.sort(seconds) - min(seconds), abs=1e-3)


def test_offsets_move_a_time_and_name_the_same_instant(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "startTime\n2026-05-04T09:00:00Z\n2026-05-04 11:00:01+02:00\n2026-05-04T04:30:02-0430\n"
        "2026-05-04 09:00:03 UTC\n2026-05-04 09:00:04.5 +0000\n2026-05-04 09:00:05+00\n"
    )
    assert read_times(str(path)).seconds.tolist() == [0.0, 1.0, 2.0, 3.0, 4.5, 5.0]


def test_times_that_last_longer_than_any_log_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("timestamp\n3\n2026-05-04T09:00:00Z\n4\n")
    with pytest.raises(ValueError, match=r"t\.csv, row 2: column 'timestamp' .* thirty years"):
        read_times(str(path))


def test_parquet_columns_and_units_can_be_named(tmp_path):
    path = tmp_path / "requests.parquet"
    pl.DataFrame({"at": [3000, 1000, 2000], "n": [1, 2, 3]}).write_parquet(path)
    assert read_times(str(path), "at", "ms").seconds.tolist() == [0.0, 1.0, 2.0]
    assert read_times(str(path), "at").seconds.tolist() == [0.0, 1000.0, 2000.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Timestamp\n1\nsoon\n3\n", "row 2: column 'Timestamp' must be a number"),
        ("Timestamp\n1\n2,3\n", "row 2: 2 cells for 1 columns"),
        ("when\n1\n2\n", "name the column"),
        ("Timestamp\n", "two different times"),
        ("Timestamp\n1\n1e308\n-1e308\n", "row 2: .* more than thirty years after row 3"),
        ("", "two different times"),
    ],
)
def test_bad_traces_are_named_with_row_and_column(text, message, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Trace(str(path))
    assert "bad.csv" in str(error.value)


@settings(max_examples=60)
@given(st.text(max_size=60))
def test_any_text_is_a_trace_or_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("trace") / "any.csv"
    path.write_bytes(("Timestamp\n" + text).encode("utf-8", "replace"))
    try:
        times = read_times(str(path)).seconds
    except ValueError:
        with pytest.raises(ValueError, match=r"any\.csv"):
            read_times(str(path))
    else:
        assert np.isfinite(times).all()
        assert times[0] == 0.0


# --- the environment ------------------------------------------------------------------------------


def specs(trace):
    return [
        {"process": "markov-modulated", "rates": [0.2, 1.8], "sojourns": [30, 30]},
        {"process": "trace", "path": str(trace)},
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_lanes_are_equal_and_policies_coupled_under_any_process(number, trace):
    arguments = {"arrivals": specs(trace)[number], "load": 0.5, "num_llms": 3}
    check_lane_equality("LLMQueue-v0", **arguments)
    check_coupling(lambda: gym.make("LLMQueue-v0", **arguments))


@pytest.mark.parametrize("number", [0, 1])
def test_the_load_sets_the_mean_of_every_process(number, trace):
    env = LLMQueueEnv(load=0.5, arrivals=specs(trace)[number], instance_seed=0)
    env.reset(seed=0)
    slots = 20_000
    arrived = [env.step(np.array([0, 0, 1]))[4]["arrived"] for _ in range(slots)]
    rate = float(env.dynamics.arrival_rate[0])
    assert env.dynamics.load[0] == pytest.approx(0.5)
    assert np.mean(arrived) == pytest.approx(rate, rel=0.1)


def test_bernoulli_by_name_is_the_default():
    runs = []
    for arrivals in ("bernoulli", {"process": "bernoulli"}, None):
        env = LLMQueueEnv(**({} if arrivals is None else {"arrivals": arrivals}))
        env.reset(seed=1)
        runs.append([env.step(np.array([0, 0, 1]))[1] for _ in range(300)])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        ("poisson", "arrivals process 'poisson' is not known"),
        ("markov", "did you mean 'markov-modulated'"),
        (3, "name of a process"),
        ({"process": "bernoulli", "rates": [1]}, "option of arrivals 'bernoulli'"),
        ({"process": "daily", "swing": 1.5}, "swing=1.5"),
        ({"process": "markov-modulated", "rate": [1, 2]}, "did you mean 'rates'"),
        ({"process": "markov-modulated", "rates": [1, -2]}, "rates="),
        ({"process": "markov-modulated", "rates": "12"}, "rates="),
        ({"process": "markov-modulated", "sojourns": [0.5, 2]}, "sojourns="),
        ({"process": "markov-modulated", "rates": [1, 2, 3]}, "one entry per state"),
        ({"process": "markov-modulated", "rates": [0, 0]}, "are all 0"),
        ({"process": "markov-modulated", "rates": [0, 1]}, "busiest state has 1.4"),
        ({"process": "trace"}, "needs the option 'path'"),
        ({"process": ["trace"]}, r"arrivals process \['trace'\] is not known"),
        ({"process": "trace", "path": "nowhere.csv"}, "no such file"),
    ],
)
def test_a_bad_spec_is_named_at_construction(arrivals, message):
    with pytest.raises(ValueError, match=message):
        LLMQueueEnv(arrival_rate=0.7, arrivals=arrivals)


def test_a_unit_that_is_no_name_is_named(trace):
    with pytest.raises(ValueError, match=r"unit \['s'\] is not known"):
        make_arrivals({"process": "trace", "path": str(trace), "unit": ["s"]})


def test_a_load_that_overfills_a_state_is_named_at_construction_where_the_instance_is_fixed():
    arrivals = {"process": "markov-modulated", "rates": [0.1, 10.0], "sojourns": [500, 500]}
    with pytest.raises(ValueError, match="busiest state has"):
        LLMQueueEnv(load=0.95, instance_seed=0, arrivals=arrivals)
    LLMQueueEnv(load=0.05, instance_seed=0, arrivals=arrivals).reset(seed=0)


def test_a_changed_trace_is_another_workload_to_the_benchmark(trace):
    arrivals = {"process": "trace", "path": str(trace)}
    task = {"name": "t", "env": "LLMQueue-v0", "horizon": 9, "kwargs": {"arrivals": arrivals}}
    suite = parse_suite("s", {"seeds": 1, "agents": ["random"], "task": [task]})
    before = {cell.key for cell in make_plan(suite).cells}
    assert before == {cell.key for cell in make_plan(suite).cells}
    trace.write_text(trace.read_text() + "9999,x\n")
    assert not before & {cell.key for cell in make_plan(suite).cells}


def test_the_command_takes_a_column_as_the_logs_do_and_leaves_out_what_it_cannot_know(
    tmp_path, capsys
):
    (tmp_path / "t.csv").write_text("ts\n1748851200000\n1748851201000\n1748851203000\n")
    for column in ("ts", "timestamp=ts"):
        show_trace(tmp_path / "t.csv", 0.5, column, None, as_json=False)
        shown = capsys.readouterr().out
        assert "3 requests in 3 s" in shown
        assert "nan" not in shown


def test_describe_trace_reports_both_sides(trace):
    found = describe_trace(str(trace), 0.5)
    assert found["requests"] == 400
    assert found["slots"]["rate"] == pytest.approx(0.5, abs=0.002)
    assert found["trace"]["cv"] > 1.0


@pytest.mark.skipif(not AZURE.is_dir(), reason="the optional Azure traces are not there")
def test_the_azure_traces_are_burstier_than_poisson():
    for name in ("code", "conv"):
        found = describe_trace(str(AZURE / f"AzureLLMInferenceTrace_{name}.csv"), 0.45)
        assert found["seconds"] == pytest.approx(3500, rel=0.03)  # about an hour
        assert found["trace"]["dispersion_1000"] > 10.0
        assert found["slots"]["dispersion_1000"] > 10.0
