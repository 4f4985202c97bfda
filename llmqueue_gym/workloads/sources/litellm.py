"""LiteLLM's spend logs: which calls are questions to a chat LLM, and which answers were kept.

A row is a call. Whatever is no question of a user to a chat LLM is left out and counted by its
cause; calls that go on after a tool's result belong to the question before them. Other gateways'
logs are read by the same rules (`gateways`).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import EPOCH, UNITS, Row, is_date, number_of, time_of, unit_of
from llmqueue_gym.workloads.prices import Price, Tokens, counted_tokens, usd
from llmqueue_gym.workloads.sources.failures import excuse
from llmqueue_gym.workloads.sources.retrials import asks_again, without_template

SESSIONS = ("session_id", "end_user", "user")
"""Columns that may tell which calls belong together, the best first."""

PAUSE = 1800.0
"""Seconds after which a user's next question is a new one, where only the user is known."""

TOGETHER = 0.05
"""Least share of calls that share their session with another one, for a column to tell sessions."""

EVERYBODY = 0.9
"""A value that so many of the calls have stands for everybody, not for a session."""

FEW_CALLS = 20
"""In a log with fewer calls, all of them may be one session."""

NOTE = "llmqueue_gym"
"""Key of ``spend_logs_metadata`` under which `llmqueue_gym.live.litellm` says how it chose."""

_CHAT = re.compile(r"completion|responses|messages|generate_?content|chat|pass_?through")
_TOOL_ROLES = ("tool", "function")
_TOOL_PARTS = ("tool_result", "function_call_output", "custom_tool_call_output", "function_call")
NO_PROMPT = "no prompt; LiteLLM keeps prompts only with store_prompts_in_spend_logs set to true"

FEEDBACK, LEFT_OUT = "llmqueue_gym.feedback", "llmqueue_gym.left_out"
"""Cells that `gateways` adds: a score of the answer in [0, 1], and why a row is no question."""

PriceAt = Callable[[str, float], Price | None]
"""LLM and time -> its list price then, if it has one."""


@dataclass
class Turn:
    """A question of a user and what came of it; several calls if tools were used."""

    query: str
    llm: str
    cost: float
    time: float
    end: float
    failed: bool
    session: str | None
    llms: set[str] = field(default_factory=set)
    row: int = 0  # of its first call in the file
    feedback: float = math.nan  # what the user, or whoever judged, said of the answer
    tokens: Tokens | None = None  # input and output, of all calls
    propensity: float | None = None  # of its first call, where our router chose
    candidates: int = 0  # that it chose among


class SpendLog(NamedTuple):
    """Questions of a spend log in the order of time, and what was left out of it.

    Attributes
    ----------
    turns : list of Turn
    kept : ndarray of float64, shape (n,)
        The feedback where there is any, else 0 where the call failed or the session's next question
        is nearly the same, else 1.
    repeat : ndarray of bool, shape (n,)
        Questions that ask again what their session just asked.
    left_out : mapping of str to int
        Rows that are no question, by cause.
    notes : tuple of str
        What a reader of the figures has to know.
    told : str
        How kept answers are told.
    """

    turns: list[Turn]
    kept: NDArray[np.float64]
    repeat: NDArray[np.bool_]
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    told: str


class _Call(NamedTuple):
    """One row, read."""

    query: str | None  # None where the row holds a tool's result only
    goes_on: bool  # after a tool's result
    llm: str
    failed: bool
    cost: float  # NaN where the row has none
    time: float
    sessions: tuple[str, ...]  # values of SESSIONS
    row: int
    cached: bool  # answered from the cache, at no cost
    priced: bool  # the cost is that of its tokens at the list price
    feedback: float  # in [0, 1], NaN for none
    tokens: Tokens | None
    propensity: float | None  # these two where our router chose
    candidates: int


class _LeftOutError(Exception):
    """The row is no question; the message is the cause."""


def read_spend_log(
    path: str,
    rows: Iterable[tuple[str, Row]],
    price_at: PriceAt | None = None,
    names: Sequence[str] = SESSIONS,
    no_prompt: str = NO_PROMPT,
) -> SpendLog:
    """Read the rows of LiteLLM's table of spend logs, or of one in its shape.

    Parameters
    ----------
    path : str
        The file, for errors.
    rows : iterable of (str, mapping)
        Places and rows.
    price_at : callable, optional
        List prices, for calls that say no cost.
    names : sequence of str
        What the source calls the columns `SESSIONS`.
    no_prompt : str
        What to say of rows without a prompt.

    Raises
    ------
    ValueError
        If no row is a question; the message counts the causes.
    """
    left_out: Counter[str] = Counter()
    calls = sorted(_calls(rows, left_out, price_at), key=lambda call: call.time)
    if NO_PROMPT in left_out:
        left_out[no_prompt] = left_out.pop(NO_PROMPT)
    sessions, pause, told, notes = _sessions(calls, names)
    turns = _turns(calls, sessions, left_out, notes)
    if cached := sum(call.cached for call in calls):
        notes.append(f"{cached:,} answers came from the cache: what they cost says nothing")
    if priced := sum(call.priced for call in calls):
        notes.append(f"{priced:,} calls without spend cost their tokens at the list price")
    if not turns:
        causes = "; ".join(f"{count:,} with {cause}" for cause, count in left_out.most_common())
        raise UsageError(f"{path}: no row is a question to a chat LLM ({causes or 'no rows'})")
    kept, repeat = _judge(turns, pause)
    if judged := sum(not math.isnan(turn.feedback) for turn in turns):
        told = f"feedback on {judged:,} of {len(turns):,} answers, else {told}"
    return SpendLog(turns, kept, repeat, dict(left_out.most_common()), tuple(notes), told)


# --- rows -----------------------------------------------------------------------------------------


def _calls(
    rows: Iterable[tuple[str, Row]], left_out: Counter[str], price_at: PriceAt | None
) -> Iterator[_Call]:
    seen: set[str] = set()
    for number, (_, row) in enumerate(rows):
        name = str(row.get("request_id") or "")
        if name in seen:
            left_out["a request_id that came before"] += 1
            continue
        if name:
            seen.add(name)
        try:
            yield _call(row, number, price_at)
        except _LeftOutError as cause:
            left_out[str(cause)] += 1


def _call(row: Row, number: int, price_at: PriceAt | None) -> _Call:
    if row.get(LEFT_OUT):
        raise _LeftOutError(str(row[LEFT_OUT]))
    kind = str(row.get("call_type") or "")
    if kind and not _CHAT.search(kind.lower()):
        raise _LeftOutError(f"a call that is no chat ({kind[:40]})")
    failed = _failed(row)
    note = _note(row)
    llm = str(note.get("llm") or row.get("model_group") or row.get("model") or "").strip()
    if not llm:
        raise _LeftOutError(f"no LLM{', the call failed before one was chosen' if failed else ''}")
    if failed and (why := _excuse(row)):
        raise _LeftOutError(f"no answer: {why}")
    query, goes_on = _question(row)
    time = moment(row.get("startTime"))
    if math.isnan(time):
        raise _LeftOutError("a startTime that is no time")
    spend = row.get("spend")
    cost = math.nan if spend in (None, "") else number_of(spend)
    if spend not in (None, "") and not 0.0 <= cost < math.inf:
        raise _LeftOutError("a spend that is no number of USD, 0 or more")
    cached = str(row.get("cache_hit")).strip().lower() == "true"
    if cached:
        cost = math.nan  # what the answer would have cost is not known
    tokens, price = counted_tokens(row.get("prompt_tokens"), row.get("completion_tokens")), None
    if math.isnan(cost) and price_at is not None:
        price = price_at(llm, time)
    priced = price is not None and (len(price) == 1 or tokens is not None)
    if priced and price is not None:
        cost = usd(price, tokens)
    sessions = tuple(str(row.get(name) or "") for name in SESSIONS)
    feedback = number_of(row.get(FEEDBACK))
    propensity = number_of(note.get("propensity"))
    chosen = propensity if 0.0 < propensity <= 1.0 else None
    among = note.get("candidates")
    candidates = len(among) if isinstance(among, list) else 0
    return _Call(
        *(query, goes_on, llm, failed, cost, time, sessions, number, cached, priced),
        feedback,
        tokens,
        chosen,
        candidates,
    )


def _note(row: Row) -> Mapping[str, Any]:
    """Return what our router wrote of its choice; nothing where it was not at work."""
    metadata = decoded(row.get("metadata"))
    kept = metadata.get("spend_logs_metadata") if isinstance(metadata, Mapping) else None
    note = kept.get(NOTE) if isinstance(kept, Mapping) else None
    return note if isinstance(note, Mapping) else {}


def _failed(row: Row) -> bool:
    """Whether a call failed; rows before May 2025 tell it in their metadata only."""
    status = row.get("status")
    if not status:
        metadata = decoded(row.get("metadata"))
        status = metadata.get("status") if isinstance(metadata, Mapping) else None
    return str(status or "").lower().startswith(("fail", "error"))


def _excuse(row: Row) -> str | None:
    """Return why a failed call says nothing of the LLM, by LiteLLM's words on its error."""
    metadata = decoded(row.get("metadata"))
    error = metadata.get("error_information") if isinstance(metadata, Mapping) else None
    error = error if isinstance(error, Mapping) else {}
    return excuse(error.get("error_code"), str(error.get("error_class")))


def moment(value: object) -> float:
    """Seconds since 1970 of a date, or of a number in whatever unit; NaN for anything else."""
    seconds = time_of(value)
    if not is_date(value):
        seconds *= UNITS[unit_of(np.array([seconds]))]
    return seconds if EPOCH[0] <= seconds <= EPOCH[1] else math.nan


def decoded(value: object) -> Any:
    """Return the value of a cell that may be JSON, or JSON of JSON; None where it is broken."""
    for _ in range(2):
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{", '"'):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
    return value


def _question(row: Row) -> tuple[str | None, bool]:
    """Last message of the user, and whether the call goes on after a tool's result.

    Prompts stand in ``messages``, since April 2025 in ``proxy_server_request``.
    """
    cause = NO_PROMPT
    for name in ("messages", "proxy_server_request"):
        cell = row.get(name)
        value = decoded(cell)
        if cell and value is None:
            cause = f"a prompt that is broken JSON ({name})"
            continue
        messages = _messages(value)
        if not messages:
            continue
        try:
            return _last_of_user(messages)
        except _LeftOutError as error:
            cause = str(error)
    raise _LeftOutError(cause)


def question_in(request: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return a live request's question, None without one, and whether a tool was used since."""
    try:
        return _last_of_user(_messages(request))
    except _LeftOutError:
        return None, False


def _messages(value: object) -> list[Any]:
    """Messages of a prompt, wherever the API called puts them."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        for name in ("body", "messages", "input", "prompt", "contents"):
            if found := _messages(value.get(name)):
                return found
    return []


def _last_of_user(messages: Sequence[Any]) -> tuple[str | None, bool]:
    goes_on = False
    for item in reversed(messages):
        message = {"role": "user", "content": item} if isinstance(item, str) else item
        if not isinstance(message, Mapping):
            continue
        if _is_tool_use(message):
            goes_on = True
        elif message.get("role") == "user":
            content = message.get("content", message.get("parts"))
            parts = content if isinstance(content, list) else [content]
            if any(isinstance(part, Mapping) and _is_tool_part(part) for part in parts):
                goes_on = True  # Anthropic's API sends a tool's result as the user's message
                continue
            text = "\n".join(filter(None, map(_text, parts)))
            if text.strip():
                return text, goes_on
            kinds = {
                str(part.get("type") or "unknown")[:40] for part in parts if isinstance(part, dict)
            }
            raise _LeftOutError(f"a message without text ({', '.join(sorted(kinds)) or 'empty'})")
    if goes_on:
        return None, True
    roles = {str(m.get("role"))[:40] for m in messages if isinstance(m, Mapping) and m.get("role")}
    raise _LeftOutError(
        f"no message of a user, only of {', '.join(sorted(roles))}" if roles else NO_PROMPT
    )


def _is_tool_use(message: Mapping[Any, Any]) -> bool:
    return (
        message.get("role") in _TOOL_ROLES
        or _is_tool_part(message)
        or bool(message.get("tool_calls") or message.get("function_call"))
    )


def _is_tool_part(part: Mapping[Any, Any]) -> bool:
    return part.get("type") in _TOOL_PARTS or bool(part.get("functionResponse"))


def _text(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


# --- sessions -------------------------------------------------------------------------------------


def _sessions(
    calls: Sequence[_Call], names: Sequence[str]
) -> tuple[list[str] | None, float, str, list[str]]:
    """Session of every call by the first column that tells it, or None.

    With the longest pause within a session, how retrials are told, and what to say about it.
    """
    reasons: list[str] = []
    for place, name in enumerate(names):
        values = [call.sessions[place] for call in calls]
        reason = _useless(values)
        if reason is None:
            told = f"{'; '.join(reasons)}: requests of the same {name} within "
            if not reasons:
                return values, math.inf, f"retrials in the same {name}", []
            note = f"{told}{PAUSE / 60:.0f} minutes count as a session"
            return values, PAUSE, f"retrials of the same {name}", [note]
        reasons.append(f"{name} {reason}")
    told = "; ".join(reasons)
    heard = "feedback and " if any(not math.isnan(call.feedback) for call in calls) else ""
    warning = f"warning: no retrial can be told ({told}): only {heard}failed calls tell"
    return None, math.inf, "failed calls alone", [warning]


def _useless(values: Sequence[str]) -> str | None:
    """Why a column does not tell sessions; None if it does."""
    counts = Counter(value for value in values if value)
    if not counts:
        return "is empty"
    [(_, most)] = counts.most_common(1)
    if len(values) >= FEW_CALLS and most >= EVERYBODY * len(values):
        return "is the same for everybody"
    together = sum(count for count in counts.values() if count > 1)
    if together < max(2.0, TOGETHER * len(values)):
        return "is another one for nearly every request"
    return None


def _turns(
    calls: Sequence[_Call],
    sessions: Sequence[str] | None,
    left_out: Counter[str],
    notes: list[str],
) -> list[Turn]:
    """Questions, each with all its calls."""
    turns: list[Turn] = []
    asked: dict[tuple[str, str], Turn] = {}
    last: dict[str, Turn] = {}
    followed = 0
    for place, call in enumerate(calls):
        session = "" if sessions is None else sessions[place]
        if call.goes_on:
            known = last.get(session) if session else None
            turn = known if call.query is None else asked.get((session, call.query))
            if turn is not None:
                turn.cost += call.cost
                turn.end, turn.failed = call.time, call.failed
                turn.llms.add(call.llm)
                turn.feedback = turn.feedback if math.isnan(call.feedback) else call.feedback
                turn.tokens = _added(turn.tokens, call.tokens)
                followed += 1
                continue
        if call.query is None:
            left_out["a tool's result whose question is not in the log"] += 1
            continue
        turn = Turn(
            call.query,
            call.llm,
            call.cost,
            call.time,
            call.time,
            call.failed,
            session or None,
            {call.llm},
            call.row,
            call.feedback,
            call.tokens,
            call.propensity,
            call.candidates,
        )
        turns.append(turn)
        last[session] = asked[session, call.query] = turn
    if followed:
        mixed = sum(len(turn.llms) > 1 for turn in turns)
        notes.append(
            f"{followed:,} calls go on after a tool's result and belong to the question before"
            + (f"; {mixed:,} questions count for the first of their LLMs" if mixed else "")
        )
    return turns


def _added(one: Tokens | None, other: Tokens | None) -> Tokens | None:
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


def _judge(turns: Sequence[Turn], pause: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Which answers were kept, and which questions ask again; see `SpendLog`."""
    kept = np.array([not turn.failed for turn in turns], dtype=np.float64)
    repeat = np.zeros(len(turns), dtype=np.bool_)
    bare = without_template([turn.query for turn in turns])
    last: dict[str, int] = {}
    for row, turn in enumerate(turns):
        if turn.session is None:
            continue
        before = last.get(turn.session)
        last[turn.session] = row
        if before is None or turn.time - turns[before].end > pause:
            continue
        same = turn.query == turns[before].query
        if asks_again(bare[before], bare[row]) or (same and asks_again(turn.query, turn.query)):
            kept[before] = 0.0
            repeat[row] = True
    said = np.array([turn.feedback for turn in turns])
    return np.where(np.isnan(said), kept, said), repeat
