"""LiteLLM's spend logs as they are: other calls, failures, agents, templates, useless sessions."""

import gzip
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmqueue_gym.workloads.sources.litellm import read_spend_log
from llmqueue_gym.workloads.sources.logs import describe_log, read_log
from llmqueue_gym.workloads.sources.retrials import (
    asks_again,
    confusion,
    labelled_pairs,
    may_be_templated,
    without_template,
)

TOPICS = (
    "the tides of the moon",
    "a tax on sugar",
    "why glass is clear",
    "how bees see",
    "old maps",
)


def ask(text):
    return [{"role": "user", "content": text}]


def call(number, messages, session="s", **changes):
    """A row in the shape of LiteLLM's table."""
    row = {
        "request_id": f"id-{number}",
        "call_type": "acompletion",
        "spend": 0.001,
        "startTime": f"2026-05-04T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z",
        "model": "maker/large",
        "model_group": "large",
        "user": "default_user_id",
        "end_user": "",
        "metadata": json.dumps({"status": "success"}),
        "messages": messages,
        "session_id": session,
        "status": "success",
        "proxy_server_request": "{}",
    }
    return row | changes


def read(rows):
    return read_spend_log("f", [(f"f, line {i}", row) for i, row in enumerate(rows, start=1)])


def questions(count, **changes):
    return [call(i, ask(f"{TOPICS[i % 5]} {i}"), f"s{i % 3}", **changes) for i in range(count)]


# --- prompts and rows that are none ---------------------------------------------------------------

PROMPTS = {
    "messages": {"messages": ask("hello there")},
    "text of JSON": {"messages": json.dumps(ask("hello there"))},
    "JSON of JSON": {"messages": json.dumps(json.dumps(ask("hello there")))},
    "request": {"messages": {}, "proxy_server_request": {"messages": ask("hello there")}},
    "request as text": {
        "messages": "{}",
        "proxy_server_request": json.dumps({"body": {"messages": ask("hello there")}}),
    },
    "responses": {
        "call_type": "aresponses",
        "messages": None,
        "proxy_server_request": {"input": "hello there"},
    },
    "items of responses": {
        "call_type": "aresponses",
        "messages": None,
        "proxy_server_request": {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello there"}]}]
        },
    },
    "completion": {"call_type": "atext_completion", "messages": "hello there"},
    "gemini": {
        "call_type": "agenerate_content",
        "messages": None,
        "proxy_server_request": {
            "contents": [{"role": "user", "parts": [{"text": "hello there"}]}]
        },
    },
    "anthropic": {
        "call_type": "anthropic_messages",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello there"}]}],
    },
    "picture with a text": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url"}, {"type": "text", "text": "hello there"}],
            }
        ]
    },
    "no call type": {"call_type": ""},
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_last_message_of_the_user_is_found_wherever_it_stands(name):
    found = read([call(0, ask("hello there")) | PROMPTS[name]])
    assert [turn.query for turn in found.turns] == ["hello there"]
    assert not found.left_out


LEFT_OUT = {
    "a call that is no chat (aembedding)": {"call_type": "aembedding"},
    "a call that is no chat (aimage_generation)": {"call_type": "aimage_generation"},
    "a call that is no chat (atranscription)": {"call_type": "atranscription"},
    "a message without text (image_url)": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    },
    "a message without text (empty)": {"messages": ask("  ")},
    "no message of a user, only of system": {"messages": [{"role": "system", "content": "ping"}]},
    "a prompt that is broken JSON (messages)": {"messages": '[{"role": "user", "con'},
    "no LLM": {"model": "", "model_group": None},
    "no LLM, the call failed before one was chosen": {
        "model": "",
        "model_group": "",
        "status": "failure",
    },
    "a startTime that is no time": {"startTime": None},
    "a spend that is no number of USD, 0 or more": {"spend": "much"},
    "a request_id that came before": {"request_id": "id-0"},
    "a tool's result whose question is not in the log": {
        "session_id": "another",
        "messages": [{"role": "tool", "content": "42"}],
    },
}


@pytest.mark.parametrize("cause", LEFT_OUT)
def test_rows_that_are_no_question_are_left_out_by_their_true_cause(cause):
    rows = questions(30)
    rows[7] |= LEFT_OUT[cause]
    found = read(rows)
    assert len(found.turns) == 29
    assert found.left_out == {cause: 1}
    with pytest.raises(ValueError, match=r"f: no row is a question to a chat LLM \(1 with"):
        read([rows[7], rows[7]] if "request_id" not in cause else [rows[7] | {"messages": None}])


def test_a_prompt_that_was_not_stored_is_told_with_the_switch():
    found = read([*questions(9), call(50, {}), call(51, None, proxy_server_request=None)])
    [(cause, count)] = found.left_out.items()
    assert count == 2
    assert "store_prompts_in_spend_logs" in cause


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failure"},
        {"status": None, "metadata": json.dumps({"status": "failure"})},
        {"status": "", "metadata": {"status": "failure", "error_information": {}}},
        {"status": None, "metadata": json.dumps(json.dumps({"status": "failure"}))},
    ],
)
def test_a_failed_call_is_not_kept_wherever_it_is_told(changes):
    rows = questions(30)
    rows[4] |= changes
    assert read(rows).kept.tolist() == [float(i != 4) for i in range(30)]
    rows[4] |= {"metadata": "{broken", "status": None}
    assert read(rows).kept.all()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "jsonl.gz"])
def test_every_format_of_an_export_gives_the_same_log(suffix, tmp_path):
    rows = chats(lambda i, _: f"s{i}", lambda _: "")
    rows[5] |= {"messages": [{"role": "system", "content": "ping"}]}
    rows[6] |= {"status": None, "metadata": json.dumps({"status": "failure"})}
    path = tmp_path / f"spend.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    elif suffix == "csv":
        pl.DataFrame([row | {"messages": json.dumps(row["messages"])} for row in rows]).write_csv(
            path
        )
    elif suffix == "json":
        path.write_text(json.dumps({"data": rows, "total": len(rows)}))
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    log, truth = read_log(str(path)), read(rows)
    assert log.texts == tuple(turn.query for turn in truth.turns)
    assert log.reward.tolist() == truth.kept.tolist()
    assert log.left_out == truth.left_out == {"no message of a user, only of system": 1}
    assert log.repeat.sum() == 10


def test_times_and_spend_of_any_shape(tmp_path):
    starts = ["2026-05-04T11:00:00+02:00", "2026-05-04 09:00:01", 1777885202000, "1777885203.0"]
    rows = [
        call(i, ask(f"{TOPICS[i]} {i}"), startTime=start, spend=spend)
        for i, (start, spend) in enumerate(zip(starts, [0.5, None, "0.1", 0], strict=True))
    ]
    rows[1]["model_group"] = "other"
    path = tmp_path / "spend.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log(str(path))
    assert np.diff(log.time).tolist() == [1.0, 1.0, 1.0]
    assert log.cost == pytest.approx([0.5, 0.2, 0.1, 0.0])  # an unknown one is the mean
    assert any("1 requests without spend" in note for note in log.notes)
    assert describe_log(log)["notes"] == list(log.notes)


# --- what asks again ------------------------------------------------------------------------------


def tool_turn(style, question, steps):
    """Messages of an agent after some steps, in one of the three APIs' shapes."""
    messages = ask(question)
    for step in range(steps):
        if style == "openai":
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [{"id": f"c{step}"}]},
                {"role": "tool", "tool_call_id": f"c{step}", "content": f"line {step}"},
            ]
        elif style == "anthropic":
            messages += [
                {"role": "assistant", "content": [{"type": "tool_use", "id": f"c{step}"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "content": "line"},
                        {"type": "text", "text": "a reminder that the client adds"},
                    ],
                },
            ]
        else:
            messages += [
                {"type": "function_call", "name": "read"},
                {"type": "function_call_output", "output": f"line {step}"},
            ]
    return messages


@pytest.mark.parametrize("style", ["openai", "anthropic", "responses"])
@pytest.mark.parametrize("sessions", ["one a task", "one a request"])
def test_calls_after_a_tools_result_belong_to_their_question(style, sessions):
    rows = []
    for task in range(8):
        for step in range(5):
            number = 10 * task + step
            session = f"t{task}" if sessions == "one a task" else f"r{number}"
            question = f"Fix the failing test number {task} of the parser"
            rows.append(call(number, tool_turn(style, question, step), session))
    found = read(rows)
    assert len(found.turns) == 8
    assert found.kept.all()
    assert not found.repeat.any()
    assert [turn.cost for turn in found.turns] == pytest.approx([0.005] * 8)
    assert any(note.startswith("32 calls go on after a tool's result") for note in found.notes)


def test_who_asks_an_agent_again_is_still_heard_and_a_failed_last_step_counts():
    rows = []
    for task in range(8):
        question = f"Fix the failing test number {task} of the parser"
        for step in range(3):
            rows.append(call(100 * task + step, tool_turn("openai", question, step), f"t{task}"))
        answered = [*tool_turn("openai", question, 2), {"role": "assistant", "content": "done"}]
        if task == 1:
            rows.append(call(100 * task + 50, [*answered, *ask(question + "!")], f"t{task}"))
        if task == 2:
            rows[-1]["status"] = "failure"
        if task == 3:
            rows[-2]["status"] = "failure"  # a step that was tried again
    found = read(rows)
    assert len(found.turns) == 9
    assert np.flatnonzero(found.kept == 0.0).tolist() == [1, 3]
    assert np.flatnonzero(found.repeat).tolist() == [2]


INSTRUCTION = "You sort support tickets. Answer billing, login, outage or other. " * 11


@pytest.mark.parametrize("where", ["before", "after", "around"])
@pytest.mark.parametrize("sessions", [1, 4])
def test_a_template_does_not_make_tickets_alike(where, sessions):
    rng = np.random.default_rng(0)
    tickets = [f"{TOPICS[rng.integers(5)]}, case {rng.integers(10**6)}" for _ in range(120)]
    begin = INSTRUCTION if where != "after" else ""
    end = INSTRUCTION[::-1] if where != "before" else ""
    rows = [
        call(i, ask(f"{begin}\n\n{ticket}\n\n{end}"), f"worker-{i * sessions // 120}")
        for i, ticket in enumerate(tickets)
    ]
    assert read(rows).kept.all()
    # A ticket that is sent again is asked again, if sessions are told at all.
    rows[50] = rows[50] | {"messages": rows[49]["messages"]}
    assert np.flatnonzero(read(rows).repeat).tolist() == ([50] if sessions > 1 else [])


def test_a_few_long_messages_that_differ_in_a_piece_are_different():
    begin = INSTRUCTION + "The ticket: "
    assert not asks_again(
        begin + "the invoice of May is wrong", begin + "your site is down in Rome"
    )
    assert asks_again(begin + "the invoice of May is wrong", begin + "the invoice of May is wrong!")
    assert asks_again(begin + "the invoice", begin + "the invoice, please answer quickly")
    assert not asks_again("go on", "go on")
    assert not asks_again("Write chapter 1 of my novel", "Write chapter 2 of my novel")


def test_the_rule_is_no_worse_on_the_labelled_pairs_than_without_its_additions():
    pairs = labelled_pairs()
    right = sum(asks_again(pair["previous"], pair["next"]) == pair["retrial"] for pair in pairs)
    found = confusion(pairs)
    assert right >= found["retrials_found"] + found["others"]


TEMPLATE = "An instruction that everybody gets, of sixty letters and more: "


@given(
    st.lists(st.text("abc ", min_size=1, max_size=9), min_size=6, max_size=12, unique=True),
    st.sampled_from(["", TEMPLATE]),
)
@example(["a", " ", " a", "  ", " b", " aa"], TEMPLATE)
@example(
    [f"{variant} {word}" for variant in "ab" for word in ("a", "b", "c", "aa", "bb")], TEMPLATE
)
def test_what_is_left_of_a_text_is_a_part_of_it_and_holds_what_differs(texts, begin):
    full = [f"{begin}({text})" for text in texts]
    bare = without_template(full)
    assert all(part in text for part, text in zip(bare, full, strict=True))
    assert len(set(bare)) == len(texts)
    assert (bare == full) == (begin == "")


FRAMED = [(begin, end) for begin in ("", TEMPLATE) for end in ("", TEMPLATE[::-1])]


@given(
    st.lists(
        st.tuples(st.sampled_from(FRAMED), st.text("abc ", max_size=9)), min_size=1, max_size=14
    )
)
@example([(FRAMED[1], word) for word in "abcde"])
@example([(FRAMED[2], word) for word in "abcde"])
def test_only_what_may_be_templated_is_cut(parts):
    texts = [begin + text + end for (begin, end), text in parts]
    for text, bare in zip(texts, without_template(texts), strict=True):
        assert bare == text or may_be_templated(text, texts)
    assert not any(may_be_templated(text, texts[:4]) for text in texts)


# --- sessions -------------------------------------------------------------------------------------


def chats(session, user, count=40):
    """Two requests a user, one minute apart, the second the first again for every fourth user."""
    rows = []
    for i in range(count):
        for again in range(2):
            text = f"Tell me of {TOPICS[i % 5]}, my friend" + " please" * (again and not i % 4)
            if again and i % 4:
                text = f"{i} And now for something else, {TOPICS[(i + 2) % 5]}"
            rows.append(call(100 * i + 60 * again, ask(text), session(i, again), end_user=user(i)))
    return rows


def test_sessions_are_used_where_they_tell():
    found = read(chats(lambda i, _: f"s{i}", lambda _: ""))
    assert found.repeat.sum() == 10
    assert not found.notes


@pytest.mark.parametrize(
    ("session", "why"),
    [
        (lambda i, again: f"{i}-{again}", "another one for nearly every request"),
        (lambda *_: "default", "the same for everybody"),
        (lambda *_: None, "empty"),
    ],
)
def test_sessions_of_no_use_give_way_to_the_end_user_or_to_a_warning(session, why):
    found = read(chats(session, lambda i: f"u{i}"))
    assert found.repeat.sum() == 10
    assert found.notes == (
        f"session_id is {why}: requests of the same end_user within 30 minutes count as a session",
    )
    late = [
        row | {"startTime": row["startTime"].replace("05-04", f"05-{i % 2 + 10}")}
        for i, row in enumerate(chats(session, lambda i: f"u{i}"))
    ]
    assert not read(late).repeat.any()  # a day later is another question
    [note] = read(chats(session, lambda _: "")).notes
    assert note.startswith(
        f"warning: no retrial can be told (session_id is {why}; end_user is empty"
    )


def test_a_share_of_retrials_near_0_or_1_is_a_warning(tmp_path):
    for name, repeated in (("none", False), ("all", True)):
        rows = [
            call(
                i,
                ask("the very same question" if repeated else f"{TOPICS[i % 5]} {i}"),
                f"s{i % 2}",
            )
            for i in range(600)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        [warning] = read_log(str(path)).notes
        assert warning.startswith(f"warning: {'0.3' if repeated else '100.0'}% of the answers")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "messages", "body", "status"]),
            inner | st.sampled_from(["user", "tool", "text", "tool_result", "failure"]),
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.lists(st.dictionaries(st.sampled_from(list(call(0, []))), json_values), max_size=5))
def test_no_row_refuses_a_log(changes):
    rows = [call(100 + i, ask("x y z")) | change for i, change in enumerate(changes)]
    found = read([call(0, ask("a question")), *rows])
    followed = [note.split()[0] for note in found.notes if "go on after a tool" in note]
    assert len(found.turns) + sum(found.left_out.values()) + sum(map(int, followed)) == 1 + len(
        rows
    )
    assert set(found.kept) <= {0.0, 1.0}
    assert all(turn.cost >= 0.0 or np.isnan(turn.cost) for turn in found.turns)


# --- the cache and the rate limit -----------------------------------------------------------------


def test_answers_of_the_cache_are_no_bargain_and_refusals_of_the_provider_no_failure(tmp_path):
    limit = {"error_information": {"error_code": "429", "error_class": "RateLimitError"}}
    broken = {"error_information": {"error_code": "500", "error_class": "InternalServerError"}}
    rows = questions(40)
    for i in range(10):
        rows[i] |= {"cache_hit": "True", "spend": 0.0}
    for i, error in ((20, limit), (21, broken)):
        rows[i] |= {"status": "failure", "metadata": json.dumps(error)}
    found = read(rows)
    assert found.left_out == {"no answer: the provider's rate limit (429)": 1}
    assert len(found.turns) == 39
    assert found.kept.sum() == 38
    path = tmp_path / "spend.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    log = read_log(str(path))
    assert log.cost == pytest.approx([0.001] * 39)
    assert any("10 answers came from the cache" in note for note in log.notes)
    again = [call(0, ask("why is glass clear"), status="failure", metadata=limit)]
    again.append(call(5, ask("why is glass clear")))  # the next deployment, not a retrial
    assert read(again).kept.tolist() == [1.0]
    assert not read(again).repeat.any()


# --- where our router chose -----------------------------------------------------------------------


def noted(number, propensity, candidates=("a", "b", "c"), llm="maker/small", **changes):
    note = {"request": number, "by": "chosen", "llm": llm, "candidates": list(candidates)}
    note |= {} if propensity is None else {"propensity": propensity}
    metadata = {"status": "success", "spend_logs_metadata": {"llmqueue_gym": note}}
    return call(number, ask(f"{TOPICS[number % 5]} {number}"), f"s{number % 3}") | {
        "metadata": json.dumps(metadata) if number % 2 else metadata,
        **changes,
    }


def test_the_propensity_and_the_llm_are_those_that_the_router_wrote(tmp_path):
    rows = [noted(i, 0.5, ("a", "b"), f"maker/{'ab'[i % 2]}") for i in range(30)]
    rows += [noted(30, 0.25), noted(31, None), call(32, ask("the moon"))]  # LiteLLM chose two
    rows += [noted(33, None, metadata="{broken"), noted(34, "much"), noted(35, 1.5)]
    rows += [noted(36, 0.5, metadata={"spend_logs_metadata": {"llmqueue_gym": 7}})]
    path = tmp_path / "spend.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    log = read_log(str(path))
    assert log.llms == ("maker/a", "maker/b", "maker/small")
    np.testing.assert_array_equal(log.propensity, [0.5] * 30 + [0.25])
    assert log.left_out == {"no propensity: the gateway chose": 6}
    assert len(log.repeat) == len(log.time) == len(log.reward) == 31
    assert any("30 requests had fewer candidates" in note for note in log.notes)


def test_a_log_without_our_router_keeps_all_its_rows(tmp_path):
    path = tmp_path / "spend.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in questions(30)))
    log = read_log(str(path))
    assert log.propensity is None
    assert (len(log), log.llms) == (30, ("large",))
