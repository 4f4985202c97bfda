"""Logs of gateways and tracers: told by their columns, and read by the rules of `litellm`.

Each source turns its rows into those of a spend log. Explicit feedback, which may stand in rows of
its own, is joined to the answers it is of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from llmqueue_gym.workloads.cells import Row, number_of
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
from llmqueue_gym.workloads.sources.litellm import (
    FEEDBACK,
    LEFT_OUT,
    NO_PROMPT,
    SESSIONS,
    moment,
)
from llmqueue_gym.workloads.sources.otel import OTEL

_VERDICTS = {"good_fit": 1.0, "overprovisioned": 1.0, "underpowered": 0.0, "failed": 0.0}
_NOBODY = "00000000-0000-0000-0000-000000000000"


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


# --- Langfuse -------------------------------------------------------------------------------------


def _snake(name: object) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", str(name)).lower()


def _is_langfuse(row: Row) -> bool:
    names = {_snake(name) for name in row}
    return {"trace_id", "type", "start_time"} <= names or {"trace_id", "data_type"} <= names


def _langfuse(row: Row, joined: Joined) -> Calls:
    row = {_snake(name): cell for name, cell in row.items()}
    trace = text_of(row.get("trace_id"))
    if row.get("data_type") not in (None, ""):
        key = text_of(row.get("observation_id")) or trace
        joined.add(key, row.get("name"), row.get("value"), row.get("string_value"))
        return
    if row.get("type") in (None, ""):  # a trace of the older export, which alone knows whose it is
        whose = text_of(row.get("session_id")), text_of(row.get("user_id"))
        joined.sessions[text_of(row.get("id"))] = whose
        return
    kind = text_of(row.get("type")).lower()
    usage, costs = mapping_of(row.get("usage_details")), mapping_of(row.get("cost_details"))
    cost = first_of(row, "total_cost", "calculated_total_cost")
    failed = text_of(row.get("level")).upper() == "ERROR"
    call = call_row(
        row.get("start_time"),
        moment(row.get("end_time")),
        wait=number_of(row.get("time_to_first_token")),
        request_id=row.get("id"),
        call_type="completion" if kind == "generation" else kind or "observation",
        model=first_of(row, "provided_model_name", "model"),
        spend=costs.get("total") if cost is None else cost,
        prompt_tokens=_sum_of(usage, "input"),
        completion_tokens=_sum_of(usage, "output"),
        messages=row.get("input"),
        session_id=text_of(row.get("session_id")),
        end_user=text_of(row.get("user_id")),
        **outcome_of(failed, is_limit(text_of(row.get("status_message")))),
    )
    yield call, (text_of(row.get("id")), trace)


def _sum_of(usage: Row, kind: str) -> float | None:
    """Tokens of all kinds of input, or of output (cached, reasoning, ...)."""
    numbers = [number_of(cell) for name, cell in usage.items() if name.startswith(kind)]
    return math.fsum(numbers) if numbers and all(map(math.isfinite, numbers)) else None


# --- Helicone -------------------------------------------------------------------------------------


def _is_helicone(row: Row) -> bool:
    return {"request_created_at", "response_status"} <= row.keys()


def _helicone(row: Row, joined: Joined) -> Calls:
    name = text_of(first_of(row, "request_id", "response_id"))
    status = number_of(row.get("response_status"))
    properties = mapping_of(first_of(row, "properties", "request_properties"))
    for score, cell in mapping_of(row.get("scores")).items():
        joined.add(name, score, cell.get("value") if isinstance(cell, Mapping) else cell)
    if row.get("feedback_rating") not in (None, ""):
        joined.add(name, "feedback_rating", row["feedback_rating"])
    start = moment(row.get("request_created_at"))
    cached = text_of(row.get("cache_reference_id")) not in ("", _NOBODY)
    call = call_row(
        start,
        start + number_of(row.get("delay_ms")) / 1e3,
        wait=number_of(row.get("time_to_first_token")) / 1e3,
        request_id=name,
        model=first_of(row, "model_override", "request_model", "response_model", "model"),
        spend=row.get("costUSD"),
        prompt_tokens=row.get("prompt_tokens"),
        completion_tokens=row.get("completion_tokens"),
        messages=row.get("request_body"),
        cache_hit=cached,
        session_id=text_of(properties.get("Helicone-Session-Id")),
        end_user=text_of(row.get("request_user_id")),
        **outcome_of(status >= 400, status == 429),
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
        _take_outcome(row, text_of(row.get("replay_id")), "", joined)
        return
    name = text_of(row.get("id"))
    learned = mapping_of(row.get("adaptation") or mapping_of(row.get("learning")).get("adaptation"))
    model = row.get("selected_model") or first_of(learned, "proposal_model", "base_model")
    for outcome in list_of(row.get("outcomes")):
        _take_outcome(mapping_of(outcome), name, text_of(model), joined)
    status, state = number_of(row.get("response_status")), text_of(row.get("lifecycle_state"))
    start = moment(row.get("timestamp"))
    paid = text_of(row.get("currency")).upper() in ("", "USD")
    call = call_row(
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
        session_id=text_of(first_of(row, "session_id", "conversation_id")),
        **outcome_of(status >= 400 or state == "failed", status == 429),
    )
    if state in ("aborted", "in_progress"):
        call[LEFT_OUT] = f"no answer: lifecycle_state is {state}"
    yield call, (name,)


def _take_outcome(outcome: Row, name: str, model: str, joined: Joined) -> None:
    """Take in an outcome: the verdict says whether the answer was good enough.

    Routers leave a score of 0 out, so a score only counts where the verdict is none of the four.
    """
    about = text_of(outcome.get("target_ref"))
    if text_of(outcome.get("target")) == "model" and about and model and about != model:
        return
    verdict = text_of(outcome.get("verdict"))
    joined.add(name, verdict or "verdict", _VERDICTS.get(verdict, outcome.get("score")))


# --- all of them ----------------------------------------------------------------------------------


def _is_litellm(row: Row) -> bool:
    return {"request_id", "spend", "startTime", "model"} <= row.keys()


LITELLM = Gateway("LiteLLM's spend logs", _is_litellm, None, SESSIONS, NO_PROMPT)

GATEWAYS = (
    LITELLM,
    OTEL,
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
