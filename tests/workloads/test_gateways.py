"""Exports of gateways and tracers: one story of eight calls, told in the shape of each of them."""

import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.sources.gateways import GATEWAYS, gateway_of, gateway_rows
from llmqueue_gym.workloads.sources.litellm import read_spend_log
from llmqueue_gym.workloads.sources.log_file import read_log
from llmqueue_gym.workloads.sources.service_log import read_service_log

START = 1_777_885_200  # 2026-05-04T09:00:00Z
STORY = [
    # seconds, session, llm, query, cost, tokens, outcome, feedback
    (0, "s1", "small", "What is the capital city of France?", 0.001, (10, 20), "ok", None),
    (60, "s1", "large", "what is the capital city of france", 0.009, (10, 20), "ok", None),
    (70, "s2", "small", "Why is glass clear to the eye?", 0.003, (9, 30), 500, None),
    (71, "s2", "large", "Why is glass clear to the eye?", 0.011, (9, 30), "ok", None),
    (80, "s3", "small", "Draw me a map of old Rome", 0.0, (8, 0), 429, None),
    (90, "s4", "small", "How do bees see the colour red?", None, None, "ok", None),
    (95, "s4", "embedder", "a passage", 0.0, (5, 0), "embedding", None),
    (120, "s5", "newcomer", "Plan two days in Lisbon", 0.02, (12, 90), "ok", 0.0),
    (180, "s5", "newcomer", "And a third one in Porto", 0.04, (12, 90), "ok", 1.0),
]
QUERIES = [call[3] for i, call in enumerate(STORY) if i not in (4, 6)]
KEPT = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
COST = [0.001, 0.009, 0.003, 0.011, 0.002, 0.02, 0.04]  # the unknown one is the mean of its LLM


def clock(second):
    """Times with Z, an offset, or neither."""
    moment = datetime.fromtimestamp(START + second, UTC)
    spellings = (
        moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        datetime.fromtimestamp(START + second).astimezone().isoformat(),
        moment.strftime("%Y-%m-%d %H:%M:%S.%f"),
    )
    return spellings[second // 10 % 3]


def chat(query):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": query}]


def litellm():
    for i, (second, session, llm, query, cost, tokens, outcome, _) in enumerate(STORY):
        failed = isinstance(outcome, int)
        error = {"error_code": str(outcome), "error_class": "RateLimitError"} if failed else {}
        yield {
            "request_id": f"r{i}",
            "call_type": "aembedding" if outcome == "embedding" else "acompletion",
            "spend": cost,
            "total_tokens": sum(tokens or ()),
            "prompt_tokens": tokens and tokens[0],
            "completion_tokens": tokens and tokens[1],
            "startTime": clock(second),
            "endTime": clock(second + 2),
            "completionStartTime": clock(second + 1),
            "model": f"maker/{llm}-2026",
            "model_id": "",
            "model_group": llm,
            "user": "default_user_id",
            "end_user": "",
            "metadata": json.dumps({"error_information": error if outcome == 429 else {}}),
            "cache_hit": "False",
            "request_tags": "[]",
            "messages": json.dumps(chat(query)),
            "response": {},
            "session_id": session,
            "status": "failure" if failed else "success",
        }


def parts(query):
    return [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": query}]},
    ]


def otel_attributes(call):
    _, session, llm, query, cost, tokens, outcome, _ = call
    found = {
        "gen_ai.operation.name": "embeddings" if outcome == "embedding" else "chat",
        "gen_ai.provider.name": "maker",
        "gen_ai.request.model": llm,
        "gen_ai.response.model": f"{llm}-2026",
        "gen_ai.conversation.id": session,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.input.messages": json.dumps(parts(query)),
    }
    if cost is not None:
        found["gen_ai.usage.cost"] = cost
    if tokens:
        found |= {
            "gen_ai.usage.input_tokens": tokens[0],
            "gen_ai.usage.output_tokens": tokens[1],
        }
    if isinstance(outcome, int):
        found["error.type"] = str(outcome)
    return found


def otel_event(score):
    label = "good" if score else "bad"
    return {"gen_ai.evaluation.name": "thumbs", "gen_ai.evaluation.score.label": label}


def otel():
    """Spans as the Python SDK writes them, feedback as an event."""
    yield {"name": "GET /", "context": {"trace_id": "t", "span_id": "root"}, "attributes": {}}
    for i, call in enumerate(STORY):
        events = []
        if call[-1] is not None:
            events = [{"name": "gen_ai.evaluation.result", "attributes": otel_event(call[-1])}]
        yield {
            "name": f"chat {call[2]}",
            "context": {"trace_id": "t", "span_id": f"{i:016x}"},
            "start_time": clock(call[0]),
            "end_time": clock(call[0] + 2),
            "status": {"status_code": "ERROR" if isinstance(call[6], int) else "UNSET"},
            "attributes": otel_attributes(call),
            "events": events,
        }


def any_value(value):
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    return {kinds[type(value)]: str(value) if isinstance(value, int) else value}


def pairs(found):
    return [{"key": key, "value": any_value(value)} for key, value in found.items()]


def otlp():
    """Lines of the collector's file exporter: a batch of spans, then one of log records."""
    spans, records = [], []
    for i, call in enumerate(STORY):
        begin = (START + call[0]) * 10**9
        spans.append(
            {
                "traceId": "t",
                "spanId": f"s{i}",
                "name": "chat",
                "startTimeUnixNano": str(begin),
                "endTimeUnixNano": str(begin + 2 * 10**9),
                "attributes": pairs(otel_attributes(call)),
                "status": {"code": 2} if isinstance(call[6], int) else {},
            }
        )
        if call[-1] is not None:
            event = pairs(otel_event(call[-1]))
            name = "gen_ai.evaluation.result"
            records.append({"spanId": f"s{i}", "eventName": name, "attributes": event})
    yield {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]}
    yield {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}


def flat_spans():
    """A table of spans with a column an attribute, feedback too."""
    for i, call in enumerate(STORY):
        row = {"trace_id": "t", "span_id": f"{i}", "start_time": clock(call[0]), "end_time": None}
        event = {} if call[-1] is None else {"gen_ai.evaluation.score.value": call[-1]}
        yield row | dict.fromkeys(otel_attributes(STORY[2])) | otel_attributes(call) | event


def langfuse():
    for i, (second, session, llm, query, cost, tokens, outcome, score) in enumerate(STORY):
        failed = isinstance(outcome, int)
        usage = {"input": tokens[0], "output": tokens[1], "total": sum(tokens)} if tokens else {}
        yield {
            "id": f"o{i}",
            "trace_id": f"t{i}",
            "type": "EMBEDDING" if outcome == "embedding" else "GENERATION",
            "start_time": clock(second),
            "end_time": clock(second + 2),
            "name": "answer",
            "metadata": "{}",
            "level": "ERROR" if failed else "DEFAULT",
            "status_message": f"Error code: {outcome}" if failed else None,
            "input": json.dumps({"messages": chat(query)}),
            "output": "an answer",
            "provided_model_name": llm,
            "usage_details": usage,
            "cost_details": {},
            "total_cost": cost,
            "latency": 2.0,
            "time_to_first_token": 1.0,
            "user_id": None,
            "session_id": session,
        }
        if score is not None:
            yield {
                "id": f"score {i}",
                "trace_id": f"t{i}",
                "observation_id": None,
                "name": "thumbs",
                "data_type": "BOOLEAN",
                "value": score,
                "string_value": str(bool(score)),
            }
    yield {"trace_id": "t0", "name": "length", "data_type": "NUMERIC", "value": 812}


def camel(rows):
    def name(text):
        head, *tail = text.split("_")
        return head + "".join(part.title() for part in tail)

    return ({name(key): value for key, value in row.items()} for row in rows)


def helicone():
    for i, (second, session, llm, query, cost, tokens, outcome, score) in enumerate(STORY):
        if outcome == "embedding":
            continue
        yield {
            "request_id": f"r{i}",
            "request_created_at": clock(second),
            "request_model": llm,
            "request_user_id": "",
            "request_body": {"model": llm, "messages": chat(query)},
            "response_model": f"{llm}-2026",
            "response_status": outcome if isinstance(outcome, int) else 200,
            "delay_ms": 2000,
            "time_to_first_token": 1000,
            "prompt_tokens": tokens and tokens[0],
            "completion_tokens": tokens and tokens[1],
            "costUSD": cost,
            "feedback_rating": None if score is None else bool(score),
            "scores": {"length": {"value": 812, "valueType": "number"}},
            "properties": {"Helicone-Session-Id": session},
        }
    yield {"request_id": "x", "request_created_at": clock(200), "response_status": -3}


def semantic_router():
    for i, (second, session, llm, query, cost, tokens, outcome, score) in enumerate(STORY):
        if outcome == "embedding":
            continue
        status = outcome if isinstance(outcome, int) else 200
        verdict = None if score is None else "overprovisioned" if score else "underpowered"
        own = [{"source": "user", "target": "model", "target_ref": llm, "verdict": verdict}]
        adaptation = {
            "candidate_set": "small|large",
            "strategy": "routing_sampling",
            "base_model": "small",
            "proposal_model": llm,
            "sampling": {"used": True, "seed": 7},
            "scores": {llm: {"score": 0.4, "posterior_mean": 0.5}},
        }
        yield {
            "id": f"replay-{i}",
            "timestamp": clock(second),
            "session_id": session,
            "original_model": "auto",
            "selected_model": llm,
            "signals": {"domain": ["math"]},
            "learning": {"adaptation": adaptation},
            "outcomes": own if verdict and i % 2 else [],
            "request_body": '{"messages": [{"role": "us' if i % 3 else json.dumps(chat(query)),
            "prompt": query,
            "response_status": status,
            "lifecycle_state": "completed" if status == 200 else "failed",
            "from_cache": False,
            "prompt_tokens": tokens and tokens[0],
            "completion_tokens": tokens and tokens[1],
            "actual_cost": cost,
            "currency": "USD",
        }
        if verdict and not i % 2:  # a file of outcomes, behind the replays
            yield {"replay_id": f"replay-{i}"} | own[0]
    yield {"id": "x", "timestamp": clock(200), "signals": {}, "selected_model": "small"} | {
        "lifecycle_state": "aborted"
    }


SHAPES = {
    "LiteLLM": litellm,
    "OpenTelemetry": otel,
    "OTLP": otlp,
    "a table of spans": flat_spans,
    "Langfuse": langfuse,
    "Langfuse, API": lambda: camel(langfuse()),
    "Helicone": helicone,
    "vLLM Semantic Router": semantic_router,
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_source_tells_the_same_story(shape, tmp_path):
    path = write(tmp_path / "log.jsonl", SHAPES[shape]())
    log = read_log(path)
    assert shape.split()[0].strip(",") in log.source or shape in ("OTLP", "a table of spans")
    assert list(log.texts) == QUERIES
    assert [log.llms[j] for j in log.llm] == [
        call[2] for i, call in enumerate(STORY) if i not in (4, 6)
    ]
    heard = shape != "LiteLLM"
    assert log.reward.tolist() == (KEPT if heard else [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert log.cost == pytest.approx(COST)
    assert log.time == pytest.approx(
        [START + call[0] for i, call in enumerate(STORY) if i not in (4, 6)]
    )
    assert log.left_out["no answer: the provider's rate limit (429)"] == 1
    assert len(log.left_out) == (2 if shape not in ("OpenTelemetry",) else 3)
    assert log.told.startswith("feedback on 2 of 7 answers, else " if heard else "retrials in")
    assert "retrials in the same" in log.told
    assert any("1 requests without spend" in note for note in log.notes)


@pytest.mark.parametrize("shape", ["LiteLLM", "Langfuse", "Helicone"])
def test_what_says_when_it_was_served_is_a_log_of_service(shape, tmp_path):
    log = read_service_log(write(tmp_path / "log.jsonl", SHAPES[shape]()))
    assert log.llms == ("large", "newcomer", "small")
    assert len(log.llm) == 5  # neither what failed nor the stream without counts
    assert log.first_token - log.start == pytest.approx([1.0] * 5)
    assert log.end - log.start == pytest.approx([2.0] * 5)
    assert log.output_tokens.tolist() == [20, 20, 30, 90, 90]
    told = [{key: cell for key, cell in row.items() if cell is not None} for row in SHAPES[shape]()]
    same = read_service_log(write(tmp_path / "log.jsonl", told))  # as many exports leave out nulls
    assert same.output_tokens.tolist() == log.output_tokens.tolist()


def test_formats_that_hold_text_only_give_the_same_log(tmp_path):
    rows = [
        {
            key: json.dumps(cell) if isinstance(cell, dict | list) else cell
            for key, cell in r.items()
        }
        for r in helicone()
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(tmp_path / "log.csv")
    pl.DataFrame(list(flat_spans()), infer_schema_length=None).write_parquet(
        tmp_path / "log.parquet"
    )
    both = [row | {"cost_details": "{}"} for row in langfuse()]
    pl.DataFrame(both, infer_schema_length=None, strict=False).write_parquet(
        tmp_path / "both.parquet"
    )
    for name in ("log.csv", "log.parquet", "both.parquet"):
        log = read_log(str(tmp_path / name))
        assert list(log.texts) == QUERIES
        assert log.reward.tolist() == KEPT


def test_feedback_may_be_told_by_its_name_and_a_trace_knows_whose_it_is(tmp_path):
    rows = list(langfuse())
    for row in langfuse():
        if row.get("data_type") == "BOOLEAN":
            rows.append(row | {"name": "judge", "value": 1 - row["value"], "string_value": None})
    path = write(tmp_path / "log.jsonl", rows)
    assert read_log(path).reward.tolist()[-2:] == [0.5, 0.5]
    assert read_log(path, {"score": "judge"}).reward.tolist()[-2:] == [1.0, 0.0]
    old = [row | {"session_id": None} if "type" in row else row for row in langfuse()]
    old += [{"id": f"t{i}", "timestamp": "", "session_id": s[1]} for i, s in enumerate(STORY)]
    assert read_log(write(tmp_path / "old.jsonl", old)).reward.tolist() == KEPT
    with pytest.raises(UsageError, match="Langfuse are read by their own columns"):
        read_log(path, {"llm": "name"})


def test_tool_calls_of_spans_belong_to_their_question(tmp_path):
    steps = [
        parts("Fix the failing test"),
        [
            *parts("Fix the failing test"),
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "read"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "result": "x"}]},
        ],
    ]
    rows = [
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.conversation.id": "c",
            "gen_ai.input.messages": messages,
            "start_time": clock(i),
        }
        for i, messages in enumerate(steps)
    ]
    log = read_log(write(tmp_path / "log.jsonl", rows))
    assert log.texts == ("Fix the failing test",)
    assert log.reward.tolist() == [1.0]
    assert log.cost is None  # nobody says what it cost
    assert any("no request says what it cost" in note for note in log.notes)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_log_without_prompts_names_the_switch_that_keeps_them(shape, tmp_path):
    prompts = ("messages", "gen_ai.input.messages", "input", "request_body", "prompt")
    rows = [
        {key: cell for key, cell in row.items() if key not in prompts} for row in SHAPES[shape]()
    ]
    if shape == "OTLP":
        text = json.dumps(rows).replace("gen_ai.input.messages", "other")
        rows = json.loads(text)
    elif shape == "OpenTelemetry":
        for row in rows:
            row["attributes"].pop("gen_ai.input.messages", None)
    with pytest.raises(
        UsageError, match=r"with no prompt; .*(store_prompts|CAPTURE|export|replay)"
    ):
        read_log(write(tmp_path / "log.jsonl", rows))


cells = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["2026-05-04T09:00:00Z", "1e400", "nan", "{", "[1", '{"key": 1}', "-1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("key", "value", "stringValue", "arrayValue", "values", "kvlistValue"),
                    *("scopeSpans", "spans", "scopeLogs", "logRecords", "attributes", "parts"),
                    *("role", "content", "type", "text", "status_code", "total", "adaptation"),
                    *("verdict", "target", "target_ref", "score"),
                ]
            ),
            inner | st.sampled_from(["user", "text", "tool_call", "model"]),
            max_size=4,
        )
    ),
    max_leaves=5,
)
COLUMNS = sorted({key for shape in SHAPES.values() for row in shape() for key in row})
STORIES = [list(shape()) for shape in SHAPES.values()]


def dear(llm, time):
    """Return a list price that overflows if tokens may be anything."""
    return 1e12, 1e12


@settings(max_examples=40)
@given(
    st.sampled_from(STORIES),
    st.lists(st.dictionaries(st.sampled_from(COLUMNS), cells, max_size=6), max_size=3),
)
def test_no_row_refuses_a_log_and_no_number_of_it_is_nan(story, changes):
    rows = [story[(i + 1) % len(story)] | change for i, change in enumerate(changes)]
    gateway = gateway_of(story[0])
    placed = [(f"line {i}", row) for i, row in enumerate([*story, *rows])]
    calls, notes = gateway_rows(gateway, placed)
    found = read_spend_log("f", calls, dear, gateway.sessions, gateway.no_prompt)
    assert all(0.0 <= kept <= 1.0 for kept in found.kept)
    assert all(np.isfinite(turn.time) for turn in found.turns)
    assert all(0.0 <= turn.cost < np.inf or np.isnan(turn.cost) for turn in found.turns)
    assert all(isinstance(turn.query, str) and turn.llm for turn in found.turns)
    assert all(map(str.isprintable, notes))
    assert sum(found.left_out.values()) < len(list(calls)) + 1


def test_sources_are_told_apart_by_their_first_row():
    for shape, rows in SHAPES.items():
        row = next(iter(rows()))
        told = [gateway.name for gateway in GATEWAYS if gateway.tells(row)]
        assert len(told) == 1, (shape, told)
    assert gateway_of({"query": "q", "llm": "x", "kept": 1, "cost": 0.1}) is None
