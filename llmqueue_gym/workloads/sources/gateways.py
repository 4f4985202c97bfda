"""Logs of gateways and tracers: told by their columns, and read by the rules of `litellm`.

Each source turns its rows into those of a spend log. Explicit feedback, which may stand in rows of
its own, is joined to the answers it is of.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from llmqueue_gym.workloads.cells import Row, number_of, truth_of
from llmqueue_gym.workloads.sources.litellm import (
    FEEDBACK,
    LEFT_OUT,
    NO_PROMPT,
    SESSIONS,
    decoded,
    moment,
)

_GOOD = "1|yes|good|up|thumbs_up|positive|pass|passed|correct|relevant|satisfied|resolved|accepted"
_BAD = "0|no|bad|down|thumbs_down|negative|fail|failed|incorrect|irrelevant|not_relevant|rejected"
_WORDS = dict.fromkeys(_GOOD.split("|"), 1.0) | dict.fromkeys(_BAD.split("|"), 0.0)
_VERDICTS = {"good_fit": 1.0, "overprovisioned": 1.0, "underpowered": 0.0, "failed": 0.0}
_LIMIT = re.compile(r"\b429\b|rate.?limit|too many requests", re.IGNORECASE)
_EVALUATION = "gen_ai.evaluation.result"
_NOBODY = "00000000-0000-0000-0000-000000000000"


class Joined:
    """What rows of their own say of other rows: scores of answers, sessions of traces.

    Parameters
    ----------
    only : str, optional
        The scores of that name count; by default all.
    """

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._scores: dict[str, list[float]] = {}
        self.sessions: dict[str, tuple[str, str]] = {}
        self.names: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()

    def add(self, key: object, name: object, value: object, label: object = None) -> None:
        """Take a score in; one that is neither in [0, 1] nor a known word is counted as unused."""
        named, at = _text(name) or "score", _text(key)
        score = _score(value)
        score = _score(label) if math.isnan(score) else score
        if math.isnan(score) or not at or self._only not in (None, named):
            self.unused[named] += 1
            return
        self.names[named] += 1
        self._scores.setdefault(at, []).append(score)

    def of(self, keys: Iterable[str]) -> float | None:
        """Return the mean score of the first key that has any."""
        for key in keys:
            if found := self._scores.get(key):
                return math.fsum(found) / len(found)
        return None

    def notes(self) -> list[str]:
        """Say which scores count and which do not."""
        said = []
        if self.names:
            said.append(f"feedback counts: {_counted(self.names)}")
        if self.unused:
            why = "in [0, 1]" if self._only is None else f"named {self._only!r} and in [0, 1]"
            said.append(f"feedback that is not {why} does not count: {_counted(self.unused)}")
        return said


Calls = Iterator[tuple[Row, tuple[str, ...]]]
"""Rows of a spend log, each with the keys that feedback on it may have."""


class Gateway(NamedTuple):
    """A source of logs.

    Attributes
    ----------
    name : str
    tells : callable
        Whether a row is one of this source.
    translate : callable
        (row, `Joined`) -> the calls of a row.
    sessions : tuple of str
        What the source calls `SESSIONS`.
    no_prompt : str
        Why a row has no prompt, and which switch keeps it.
    """

    name: str
    tells: Callable[[Row], bool]
    translate: Callable[[Row, Joined], Calls] | None
    sessions: tuple[str, ...]
    no_prompt: str


def gateway_of(row: Row) -> Gateway | None:
    """Return the source that a file is of, by its first row; None for the schema of our own."""
    return next((gateway for gateway in GATEWAYS if gateway.tells(row)), None)


def gateway_rows(
    gateway: Gateway, rows: Iterable[tuple[str, Row]], only: str | None = None
) -> tuple[Iterable[tuple[str, Row]], list[str]]:
    """Return the rows of a spend log, and what there is to say of the feedback in them."""
    translate = gateway.translate
    if translate is None:
        return rows, []
    joined = Joined(only)
    found = [(place, call, keys) for place, row in rows for call, keys in translate(row, joined)]
    for _, call, keys in found:
        call[FEEDBACK] = joined.of(keys)
        for key in keys:
            if not call["session_id"] and key in joined.sessions:
                call["session_id"], call["end_user"] = joined.sessions[key]
    return [(place, call) for place, call, _ in found], joined.notes()


def _call(start: object, end: float = math.nan, **fields: Any) -> Row:
    """Return a row of a spend log."""
    call: Row = dict.fromkeys(
        (
            *("request_id", "call_type", "spend", "model", "status", "metadata", "cache_hit"),
            *("messages", "proxy_server_request", "prompt_tokens", "completion_tokens", *SESSIONS),
        )
    )
    begun = moment(start)
    first = fields.pop("wait", math.nan)
    call |= {"startTime": begun, "endTime": None if math.isnan(end) else end}
    call["completionStartTime"] = None if math.isnan(first) else begun + first
    return call | fields


def _outcome(failed: bool, limited: bool) -> Row:
    """Return the cells that say how a call went."""
    if not failed:
        return {"status": "success"}
    error = {"error_information": {"error_code": "429"}} if limited else {}
    return {"status": "failure", "metadata": error}


# --- cells ----------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if isinstance(value, str | int | float):
        return str(value).strip()
    return ""


def _first(row: Row, *names: str) -> Any:
    """Return the first cell that is filled."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _mapping(value: object) -> Row:
    found = decoded(value)
    return {str(key): cell for key, cell in found.items()} if isinstance(found, Mapping) else {}


def _list(value: object) -> list[Any]:
    found = decoded(value)
    return found if isinstance(found, list) else []


def _score(value: object) -> float:
    """Return a score in [0, 1], of a number, a truth or a word; NaN for anything else."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        word = value.strip().lower().replace(" ", "_").replace("-", "_")
        truth = truth_of(word)
        if truth is not None or word in _WORDS:
            return _WORDS[word] if truth is None else float(truth)
    number = number_of(value)
    return number if 0.0 <= number <= 1.0 else math.nan


def _counted(names: Counter[str]) -> str:
    shown = [f"{count:,} of {name[:40]!r}" for name, count in names.most_common(5)]
    return ", ".join(shown) + (" and others" if len(names) > 5 else "")


# --- OpenTelemetry --------------------------------------------------------------------------------

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
        yield _mapping(row.get("context")) | row | own
        return
    for outer, scope, records in _OTLP:
        for resource in _list(row.get(outer)):
            for part in _list(_mapping(resource).get(scope)):
                for record in _list(_mapping(part).get(records)):
                    yield from _records(_mapping(record))


def _attributes(value: object) -> Row:
    """Attributes of a mapping, or of OTLP's list of keys and values."""
    found = decoded(value)
    if isinstance(found, list):
        pairs = [item for item in found if isinstance(item, Mapping) and "key" in item]
        return {str(item["key"]): _any_value(item.get("value")) for item in pairs}
    return _mapping(found)


def _any_value(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    [(kind, inner)] = value.items()
    if kind == "arrayValue":
        return [_any_value(item) for item in _list(_mapping(inner).get("values"))]
    if kind == "kvlistValue":
        return _attributes(_mapping(inner).get("values"))
    return inner if str(kind).endswith("Value") else value


def _otel(row: Row, joined: Joined) -> Calls:
    for span in _records(row):
        name = _text(_first(span, "span_id", "spanId", "SpanId"))
        answer = _text(span.get("gen_ai.response.id"))
        _evaluate(span, answer or name, joined)
        for event in _list(span.get("events")):
            said = _attributes(_mapping(event).get("attributes"))
            _evaluate(said, name or answer, joined)
            span.setdefault("gen_ai.input.messages", said.get("gen_ai.input.messages"))
        event_name = _first(span, "event.name", "eventName", "event_name", "name")
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
    start = _first(
        span, "start_time", "startTimeUnixNano", "start_time_unix_nano", "StartTime", "Timestamp"
    )
    end = moment(_first(span, "end_time", "endTimeUnixNano", "end_time_unix_nano", "EndTime"))
    status = _first(span, "status", "StatusCode", "status_code", "status.code")
    if isinstance(status, Mapping):
        status = _first(_mapping(status), "status_code", "code")
    error = _text(span.get("error.type"))
    failed = bool(error) or "ERROR" in _text(status).upper() or _text(status) == "2"
    code = _text(_first(span, "http.response.status_code", "http.status_code"))
    operation = _text(span.get("gen_ai.operation.name"))
    model = _first(span, "gen_ai.request.model", "gen_ai.response.model")
    return _call(
        start,
        end,
        request_id=f"{_text(_first(span, 'trace_id', 'traceId', 'TraceId'))}/{name}" * bool(name),
        call_type=operation or ("chat" if model else "span of something else"),
        model=model,
        spend=span.get("gen_ai.usage.cost"),
        prompt_tokens=span.get("gen_ai.usage.input_tokens"),
        completion_tokens=span.get("gen_ai.usage.output_tokens"),
        messages=_chat_messages(span.get("gen_ai.input.messages")),
        session_id=_text(_first(span, "gen_ai.conversation.id", "session.id")),
        end_user=_text(_first(span, "user.id", "enduser.id")),
        **_outcome(failed, bool(_LIMIT.search(f"{error} {code}"))),
    )


def _chat_messages(value: object) -> Any:
    """Messages of the conventions, which have parts, as those of a chat, which have content."""
    found = decoded(value)
    return [_chat_message(item) for item in found] if isinstance(found, list) else value


def _chat_message(message: Any) -> Any:
    parts = message.get("parts") if isinstance(message, Mapping) else None
    if not isinstance(parts, list):
        return message
    parts = [_mapping(part) for part in parts]
    kinds = {_text(part.get("type")) for part in parts}
    role = "tool" if "tool_call_response" in kinds else message.get("role")
    content = [part | {"text": part.get("content")} for part in parts]
    return {"role": role, "content": content, "tool_calls": "tool_call" in kinds}


# --- Langfuse -------------------------------------------------------------------------------------


def _snake(name: object) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", str(name)).lower()


def _is_langfuse(row: Row) -> bool:
    names = {_snake(name) for name in row}
    return {"trace_id", "type", "start_time"} <= names or {"trace_id", "data_type"} <= names


def _langfuse(row: Row, joined: Joined) -> Calls:
    row = {_snake(name): cell for name, cell in row.items()}
    trace = _text(row.get("trace_id"))
    if row.get("data_type") not in (None, ""):
        key = _text(row.get("observation_id")) or trace
        joined.add(key, row.get("name"), row.get("value"), row.get("string_value"))
        return
    if row.get("type") in (None, ""):  # a trace of the older export, which alone knows whose it is
        whose = _text(row.get("session_id")), _text(row.get("user_id"))
        joined.sessions[_text(row.get("id"))] = whose
        return
    kind = _text(row.get("type")).lower()
    usage, costs = _mapping(row.get("usage_details")), _mapping(row.get("cost_details"))
    cost = _first(row, "total_cost", "calculated_total_cost")
    failed = _text(row.get("level")).upper() == "ERROR"
    call = _call(
        row.get("start_time"),
        moment(row.get("end_time")),
        wait=number_of(row.get("time_to_first_token")),
        request_id=row.get("id"),
        call_type="completion" if kind == "generation" else kind or "observation",
        model=_first(row, "provided_model_name", "model"),
        spend=costs.get("total") if cost is None else cost,
        prompt_tokens=_sum_of(usage, "input"),
        completion_tokens=_sum_of(usage, "output"),
        messages=row.get("input"),
        session_id=_text(row.get("session_id")),
        end_user=_text(row.get("user_id")),
        **_outcome(failed, bool(_LIMIT.search(_text(row.get("status_message"))))),
    )
    yield call, (_text(row.get("id")), trace)


def _sum_of(usage: Row, kind: str) -> float | None:
    """Tokens of all kinds of input, or of output (cached, reasoning, ...)."""
    numbers = [number_of(cell) for name, cell in usage.items() if name.startswith(kind)]
    return math.fsum(numbers) if numbers and all(map(math.isfinite, numbers)) else None


# --- Helicone -------------------------------------------------------------------------------------


def _is_helicone(row: Row) -> bool:
    return {"request_created_at", "response_status"} <= row.keys()


def _helicone(row: Row, joined: Joined) -> Calls:
    name = _text(_first(row, "request_id", "response_id"))
    status = number_of(row.get("response_status"))
    properties = _mapping(_first(row, "properties", "request_properties"))
    joined_names = _mapping(row.get("scores"))
    for score, cell in joined_names.items():
        joined.add(name, score, cell.get("value") if isinstance(cell, Mapping) else cell)
    if row.get("feedback_rating") not in (None, ""):
        joined.add(name, "feedback_rating", row["feedback_rating"])
    start = moment(row.get("request_created_at"))
    cached = _text(row.get("cache_reference_id")) not in ("", _NOBODY)
    call = _call(
        start,
        start + number_of(row.get("delay_ms")) / 1e3,
        wait=number_of(row.get("time_to_first_token")) / 1e3,
        request_id=name,
        model=_first(row, "model_override", "request_model", "response_model", "model"),
        spend=row.get("costUSD"),
        prompt_tokens=row.get("prompt_tokens"),
        completion_tokens=row.get("completion_tokens"),
        messages=row.get("request_body"),
        cache_hit=cached,
        session_id=_text(properties.get("Helicone-Session-Id")),
        end_user=_text(row.get("request_user_id")),
        **_outcome(status >= 400, status == 429),
    )
    if not status >= 100:
        call[LEFT_OUT] = "no answer: pending, cancelled or blocked (response_status)"
    yield call, (name,)


# --- vLLM Semantic Router -------------------------------------------------------------------------


def _is_semantic_router(row: Row) -> bool:
    record = "selected_model" in row and ("signals" in row or "learning" in row)
    return record or "adaptation" in row or {"replay_id", "verdict"} <= row.keys()


def _semantic_router(row: Row, joined: Joined) -> Calls:
    if row.get("verdict") not in (None, ""):
        _take_outcome(row, _text(row.get("replay_id")), "", joined)
        return
    name = _text(row.get("id"))
    learned = _mapping(row.get("adaptation") or _mapping(row.get("learning")).get("adaptation"))
    model = row.get("selected_model") or _first(learned, "proposal_model", "base_model")
    for outcome in _list(row.get("outcomes")):
        _take_outcome(_mapping(outcome), name, _text(model), joined)
    status, state = number_of(row.get("response_status")), _text(row.get("lifecycle_state"))
    start = moment(row.get("timestamp"))
    paid = _text(row.get("currency")).upper() in ("", "USD")
    call = _call(
        start,
        start + number_of(row.get("duration_ms")) / 1e3,
        request_id=name,
        model=model,
        spend=row.get("actual_cost") if paid else None,
        prompt_tokens=row.get("prompt_tokens"),
        completion_tokens=row.get("completion_tokens"),
        messages=row.get("request_body"),
        proxy_server_request=row.get("prompt"),
        cache_hit=row.get("from_cache"),
        session_id=_text(_first(row, "session_id", "conversation_id")),
        **_outcome(status >= 400 or state == "failed", status == 429),
    )
    if state in ("aborted", "in_progress"):
        call[LEFT_OUT] = f"no answer: lifecycle_state is {state}"
    yield call, (name,)


def _take_outcome(outcome: Row, name: str, model: str, joined: Joined) -> None:
    """Take in an outcome: the verdict says whether the answer was good enough.

    Routers leave a score of 0 out, so a score only counts where the verdict is none of the four.
    """
    about = _text(outcome.get("target_ref"))
    if _text(outcome.get("target")) == "model" and about and model and about != model:
        return
    verdict = _text(outcome.get("verdict"))
    joined.add(name, verdict or "verdict", _VERDICTS.get(verdict, outcome.get("score")))


# --- all of them ----------------------------------------------------------------------------------


def _is_litellm(row: Row) -> bool:
    return {"request_id", "spend", "startTime", "model"} <= row.keys()


LITELLM = Gateway("LiteLLM's spend logs", _is_litellm, None, SESSIONS, NO_PROMPT)

GATEWAYS = (
    LITELLM,
    Gateway(
        "spans of OpenTelemetry's GenAI conventions",
        _is_otel,
        _otel,
        ("gen_ai.conversation.id", "user.id"),
        "no prompt; instrumentations record gen_ai.input.messages only if told to "
        "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT)",
    ),
    Gateway(
        "an export of Langfuse",
        _is_langfuse,
        _langfuse,
        ("session_id", "user_id"),
        "no prompt; export the observations with their input",
    ),
    Gateway(
        "an export of Helicone",
        _is_helicone,
        _helicone,
        ("Helicone-Session-Id", "request_user_id"),
        "no prompt; export with --include-body",
    ),
    Gateway(
        "replays of vLLM Semantic Router",
        _is_semantic_router,
        _semantic_router,
        ("session_id",),
        "no prompt; the router keeps it only if the replay plugin captures request bodies",
    ),
)
"""All sources, the first that knows a row counts."""
