"""What is printed: on narrow terminals, in pipes, in poor encodings, of names that are not ours."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from benchmarks.terminal import add_row, make_console, print_json, say, show_table
from llmqueue_gym.workloads.pool import printable

ALIKE = [f"a-long-name-that-differs-at-its-end-{end}" for end in ("one", "two")]
NASTY = "red\x1b[31m \r\n\x07bell \u202eright-to-left [bold]no markup[/bold] \ud800"


def table_of(names):
    table = Table("rank", "agent", "score", *(f"figure {i}" for i in range(6)))
    for name in names:
        add_row(table, "1", name, "0.732 [0.698, 0.766]", *["12,345.6"] * 6)
    return table


def shown(width, names, terminal=True):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    show_table(table_of(names), ("rank", "agent", "score"), console)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 110, 200])
def test_names_stay_whole_and_figures_give_way(width):
    text = shown(width, ALIKE)
    assert all(name in text for name in ALIKE)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("without" in text) == (width < 200)


@given(st.integers(20, 60))
def test_where_not_even_the_names_fit_they_are_folded(width):
    letters = "".join(shown(width, ALIKE).split())
    squeezed = "".join(c for c in letters if c.isalnum() or c == "-")
    assert "…" not in letters
    assert squeezed.count("1") >= 2  # both ranks
    assert max(map(len, shown(width, ALIKE).splitlines())) <= width


def test_a_pipe_cuts_nothing(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(table_of([name * 3 for name in ALIKE]))
    out = capsys.readouterr().out
    assert all(name * 3 in out for name in ALIKE)
    assert "figure 5" in out
    assert make_console().width > 1000
    monkeypatch.setenv("COLUMNS", "70")
    assert make_console().width == 70


@given(st.text())
def test_no_control_character_is_printed(text):
    assert all(c.isprintable() for c in printable(text))
    assert printable("plain µ text") == "plain µ text"


def test_a_line_keeps_its_spaces(capsys):
    say("def f():\n    return 1  # one\n\tb\x1b[31m")
    assert capsys.readouterr().out == "def f():\n    return 1  # one\n b\ufffd[31m\n"


def test_names_of_others_are_no_markup_and_no_terminal_codes(capsys):
    say(f"failed: {NASTY}")
    say(f"failed: {NASTY}", make_console(stderr=True))
    table = Table("name")
    add_row(table, NASTY)
    show_table(table)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "[bold]no markup[/bold]" in text
        assert not set(text) & set("\x1b\x07\r\u202e")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), json_values))
def test_json_has_null_for_what_is_no_number_and_leaves_words_alone(document):
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        print_json({"NaN": "Infinity NaN", "document": document})

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    found = json.loads(stream.getvalue(), parse_constant=pytest.fail)
    assert found == {"NaN": "Infinity NaN", "document": finite(document)}


def test_a_trace_s_json_keeps_the_name_of_its_file(tmp_path, capsys, bench):
    path = tmp_path / "NaNjing.csv"
    path.write_text("timestamp\n0\n1\n2\n5\n9\n")
    assert bench("arrivals", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(path)


SUITE = """
description = "tiny"
seeds = 2
agents = [{ name = "greedy", label = "гриди-µ-東京" }]
[[task]]
name = "tiny"
env = "LLMQueue-v0"
horizon = 40
tags = ["queueing", "tag"]
[task.kwargs]
load = 0.8
"""


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp932", "cp1252", "koi8-r"])
def test_every_encoding_gets_its_tables(tmp_path, monkeypatch, bench, encoding):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8")
    runs = [("list",), ("agents",)]
    if encoding == "gbk":
        runs += [("run", "suite.toml", "--workers", "1"), ("report",)]
    for arguments in runs:
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        assert bench(*arguments) == 0
        streams["stdout"].flush()
        printed = streams["stdout"].buffer.getvalue().decode(encoding)
        assert arguments[0] == "run" or len(printed) > 100
        assert "гриди" in printed or arguments[0] != "report"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("run", "quick", "--timeout", "nan"), "--timeout"),
        (("run", "quick", "--timeout", "0"), "--timeout"),
        (("run", "quick", "--memory", "-1"), "--memory"),
        (("run", "quick", "--train-timeout", "nan"), "--train-timeout"),
        (("arrivals", "x.csv", "--rate", "nan"), "--rate"),
        (("watch", "quick:x", "--agent", "greedy", "--speed", "nan"), "--speed"),
        (("verify", "x", "--timeout", "-3"), "--timeout"),
        (("logs", "evaluate", "x.csv", "--agent", "a", "--train-share", "nan"), "--train-share"),
        (("logs", "evaluate", "x.csv", "--agent", "a", "--cost-weight", "inf"), "--cost-weight"),
        (("logs", "evaluate", "x.csv", "--agent", "a", "--seed", "-1"), "--seed"),
    ],
)
def test_numeric_options_are_checked_by_the_name_they_are_typed_with(
    bench, capsys, arguments, option
):
    assert bench(*arguments) == 2
    assert option in capsys.readouterr().err
