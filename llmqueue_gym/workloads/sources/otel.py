"""Spans of OpenTelemetry's GenAI conventions, however they are exported, as calls of a spend log.

A column an attribute, the JSON of the SDK, OTLP's batches of spans and log records, ClickHouse's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmqueue_gym.workloads.cells import Row
from llmqueue_gym.workloads.sources.exports import (
    Calls,
    Gateway,
    Joined,
    call_row,
    first_of,
    is_limit,
    list_of,
    mapping_of,
    outcome_of,
    text_of,
)
from llmqueue_gym.workloads.sources.litellm import decoded, moment

_EVALUATION = "gen_ai.evaluation.result"
_OTLP = (("resourceSpans", "scopeSpans", "spans"), ("resourceLogs", "scopeLogs", "logRecords"))


def _is_otel(row: Row) -> bool:
    if any(outer in row for outer, _, _ in _OTLP) or "SpanAttributes" in row:
        return True
    spans = "attributes" in row and any(n in row for n in ("context", "trace_id", "traceId"))
    return spans or any(name.startswith("gen_ai.") for name in row if isinstance(name, str))


def _records(row: Row) -> Iterator[Row]:
    """Spans and log records of a row, attributes beside their own fields."""
    if not any(outer in row for outer, _, _ in _OTLP):
        own = _attributes(row.get("attributes")) | _attributes(row.get("SpanAttributes"))
        yield mapping_of(row.get("context")) | row | own
        return
    for outer, scope, records in _OTLP:
        for resource in list_of(row.get(outer)):
            for part in list_of(mapping_of(resource).get(scope)):
                for record in list_of(mapping_of(part).get(records)):
                    yield from _records(mapping_of(record))


def _attributes(value: object) -> Row:
    """Attributes of a mapping, or of OTLP's list of keys and values."""
    found = decoded(value)
    if isinstance(found, list):
        pairs = [item for item in found if isinstance(item, Mapping) and "key" in item]
        return {str(item["key"]): _any_value(item.get("value")) for item in pairs}
    return mapping_of(found)


def _any_value(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    [(kind, inner)] = value.items()
    if kind == "arrayValue":
        return [_any_value(item) for item in list_of(mapping_of(inner).get("values"))]
    if kind == "kvlistValue":
        return _attributes(mapping_of(inner).get("values"))
    return inner if str(kind).endswith("Value") else value


def _otel(row: Row, joined: Joined) -> Calls:
    for span in _records(row):
        name = text_of(first_of(span, "span_id", "spanId", "SpanId"))
        answer = text_of(span.get("gen_ai.response.id"))
        _evaluate(span, answer or name, joined)
        for event in list_of(span.get("events")):
            said = _attributes(mapping_of(event).get("attributes"))
            _evaluate(said, name or answer, joined)
            span.setdefault("gen_ai.input.messages", said.get("gen_ai.input.messages"))
        event_name = first_of(span, "event.name", "eventName", "event_name", "name")
        if event_name == _EVALUATION and "gen_ai.input.messages" not in span:
            continue
        yield _span(span, name), (name, answer)


def _evaluate(fields: Row, key: str, joined: Joined) -> None:
    """Take in a feedback event."""
    value, label = (fields.get(f"gen_ai.evaluation.score.{part}") for part in ("value", "label"))
    if value is not None or label is not None:
        joined.add(key, fields.get("gen_ai.evaluation.name"), value, label)


def _span(span: Row, name: str) -> Row:
    """Return the call of a span of the GenAI conventions."""
    start = first_of(
        span, "start_time", "startTimeUnixNano", "start_time_unix_nano", "StartTime", "Timestamp"
    )
    end = moment(first_of(span, "end_time", "endTimeUnixNano", "end_time_unix_nano", "EndTime"))
    status = first_of(span, "status", "StatusCode", "status_code", "status.code")
    if isinstance(status, Mapping):
        status = first_of(mapping_of(status), "status_code", "code")
    error = text_of(span.get("error.type"))
    failed = bool(error) or "ERROR" in text_of(status).upper() or text_of(status) == "2"
    code = text_of(first_of(span, "http.response.status_code", "http.status_code"))
    trace = text_of(first_of(span, "trace_id", "traceId", "TraceId"))
    operation = text_of(span.get("gen_ai.operation.name"))
    model = first_of(span, "gen_ai.request.model", "gen_ai.response.model")
    return call_row(
        start,
        end,
        request_id=f"{trace}/{name}" if name else None,
        call_type=operation or ("chat" if model else "span of something else"),
        model=model,
        spend=span.get("gen_ai.usage.cost"),
        prompt_tokens=span.get("gen_ai.usage.input_tokens"),
        completion_tokens=span.get("gen_ai.usage.output_tokens"),
        messages=_chat_messages(span.get("gen_ai.input.messages")),
        session_id=text_of(first_of(span, "gen_ai.conversation.id", "session.id")),
        end_user=text_of(first_of(span, "user.id", "enduser.id")),
        **outcome_of(failed, is_limit(f"{error} {code}")),
    )


def _chat_messages(value: object) -> Any:
    """Messages of the conventions, which have parts, as those of a chat, which have content."""
    found = decoded(value)
    return [_chat_message(item) for item in found] if isinstance(found, list) else value


def _chat_message(message: Any) -> Any:
    parts = message.get("parts") if isinstance(message, Mapping) else None
    if not isinstance(parts, list):
        return message
    parts = [mapping_of(part) for part in parts]
    kinds = {text_of(part.get("type")) for part in parts}
    role = "tool" if "tool_call_response" in kinds else message.get("role")
    content = [part | {"text": part.get("content")} for part in parts]
    return {"role": role, "content": content, "tool_calls": "tool_call" in kinds}


OTEL = Gateway(
    "spans of OpenTelemetry's GenAI conventions",
    _is_otel,
    _otel,
    ("gen_ai.conversation.id", "user.id"),
    "no prompt; instrumentations record gen_ai.input.messages only if told to "
    "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT)",
)
"""The source."""
