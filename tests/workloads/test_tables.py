"""Tables of one's own: true and false, a clip, prices, arrivals, Parquet bombs, the command."""

from __future__ import annotations

import csv
import inspect
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import llmqueue_gym  # noqa: F401 - registers the environments
from benchmarks.cli import build_app
from benchmarks.commands.data import as_options
from llmqueue_gym.deployment.streams import table_stream
from llmqueue_gym.deployment.streams.order import arrival_words, query_of, read_arrivals
from llmqueue_gym.envs import LLMDeployEnv
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads import fingerprint, make_workload, parquet
from llmqueue_gym.workloads.datasets import import_table
from llmqueue_gym.workloads.parquet import read_footer
from llmqueue_gym.workloads.prices import read_prices
from llmqueue_gym.workloads.rows import read_rows
from llmqueue_gym.workloads.sources.table import read_layout, table_pool, table_workload


def rows() -> list[dict[str, Any]]:
    """Three LLMs on six queries, with tokens."""
    return [
        {
            "x": [i, 1.0],
            "a": i / 5,
            "b": 1 - i / 5,
            "c": 0.5,
            "in": 100 * i,
            "out": {"a": i, "b": 2},
        }
        for i in range(6)
    ]


def write(path: Path, content: Sequence[dict[str, Any]]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(content[0])
            for row in content:
                writer.writerow(v if isinstance(v, str) else json.dumps(v) for v in row.values())
    else:
        path.write_text("\n".join(map(json.dumps, content)))
    return str(path)


def pool_of(path: str, quality: Any = ("a", "b"), **options: Any) -> Any:
    return table_pool(path, list(quality), embedding="x", **options)[0]


# --- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_true_and_false_are_scores_in_every_spelling(tmp_path: Path, suffix: str) -> None:
    words: list[Any] = [True, "FALSCH", "True", "FALSE", " true", 1]
    content = [row | {"a": word} for row, word in zip(rows(), words, strict=True)]
    pool = pool_of(write(tmp_path / f"t{suffix}", content))
    assert pool.quality[:, 0].tolist() == [1, 0, 1, 0, 1, 1]


@given(score=st.floats(-2, 2), clip=st.floats(0, 1))
def test_scores_are_clipped_as_far_as_the_option_says_and_no_farther(
    tmp_path_factory: pytest.TempPathFactory, score: float, clip: float
) -> None:
    content = rows()
    content[3]["a"] = score
    path = write(tmp_path_factory.mktemp("clip") / "t.jsonl", content)
    if -clip <= score <= 1 + clip:
        assert pool_of(path, clip=clip).quality[3, 0] == np.clip(score, 0, 1)
    else:
        with pytest.raises(
            ValueError, match=r"line 4: .*\[0, 1\]; rescale the column, or .*`clip`"
        ):
            pool_of(path, clip=clip)


@pytest.mark.parametrize("clip", [-0.1, 1.5, True, "0.1", float("nan")])
def test_a_clip_that_is_no_share_is_refused(tmp_path: Path, clip: Any) -> None:
    with pytest.raises(ValueError, match="clip="):
        pool_of(write(tmp_path / "t.jsonl", rows()), clip=clip)


# --- some of the rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ({"in": 200}, [2]),
        ({"in": ["0", 500], "c": 0.5}, [0, 5]),
        ({"c": [0.5]}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_only_the_rows_asked_for_are_read(
    tmp_path: Path, suffix: str, only: dict[str, Any], kept: list[int]
) -> None:
    path = write(tmp_path / f"t{suffix}", rows())
    assert pool_of(path, only=only).contexts[:, 0].tolist() == kept


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("math", "only='math' must be a mapping"),
        ({}, "only={} must be"),
        ({"in": []}, "must be a mapping column -> value"),
        ({"in": 7}, r"no rows with \{'in': \('7',\)\}; see the option only"),
        ({"topic": "math"}, "column .topic. is not known"),
    ],
)
def test_rows_that_nobody_can_choose_are_refused(tmp_path: Path, only: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pool_of(write(tmp_path / "t.jsonl", rows()), only=only)


# --- prices --------------------------------------------------------------------------------------


@given(
    prices=st.lists(st.floats(0, 100), min_size=2, max_size=2),
    per_query=st.floats(0, 1),
)
def test_costs_are_tokens_at_their_prices_or_the_price_of_a_query(
    tmp_path_factory: pytest.TempPathFactory, prices: list[float], per_query: float
) -> None:
    path = write(tmp_path_factory.mktemp("prices") / "t.jsonl", rows())
    spec = {"prices": {"a": prices, "b": per_query, "unused": 3}, "tokens": ["in", "out"]}
    found = pool_of(path, **spec).cost
    expected = [(100 * i * prices[0] + i * prices[1]) / 1e6 for i in range(6)]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12, atol=0)
    assert found[:, 1].tolist() == [per_query] * 6


@pytest.mark.parametrize(
    ("options", "usd"),
    [
        ({"prices": 0.25}, 0.25),
        ({"prices": [2.0, 10.0], "tokens": [1000, 100]}, 0.003),
        ({"prices": [2.0, 10.0], "tokens": [{"a": "in", "b": "in"}, 100]}, 0.001 + 0.001),
    ],
)
def test_one_price_is_that_of_every_llm(tmp_path: Path, options: Any, usd: float) -> None:
    found = pool_of(write(tmp_path / "t.jsonl", rows()), **options).cost
    np.testing.assert_allclose(found[5], [usd, usd])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prices": {"a": 1}}, r"no price of LLM 'b'"),
        ({"prices": {}}, r"names no LLM"),
        ({"prices": [1, 2]}, r"say with `tokens`"),
        ({"prices": [1, 2], "tokens": ["in"]}, r"tokens=\['in'\] must be two"),
        ({"prices": [1, 2], "tokens": ["in", "inn"]}, r"line 1: column 'inn' .*did you mean 'in'"),
        ({"prices": [1, 2], "tokens": ["in", {"a": "in"}]}, r"tokens: LLM 'b'"),
        ({"prices": [1, 2], "tokens": [-1, 2]}, r"tokens: -1"),
        ({"prices": [1, 2], "tokens": ["x", 2]}, r"line 1: tokens of LLM 'a' in column 'x'"),
        ({"prices": {"a": [1, 2], "b": [1]}}, r"prices: 'b' has \[1\]"),
        ({"prices": {"a": -1, "b": 1}}, r"prices: 'a' has -1"),
        ({"prices": True}, r"prices has True"),
        ({"tokens": [1, 2]}, r"cost nothing without `prices`"),
    ],
)
def test_wrong_prices_name_the_llm_and_the_option(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pool_of(write(tmp_path / "t.jsonl", rows()), **options)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=2), inner)
            | st.fixed_dictionaries({"from": inner | st.dates(), "price": inner | st.just(1)})
        ),
        max_leaves=4,
    )
)
def test_any_value_is_a_price_or_refused(value: Any) -> None:
    try:
        read = read_prices(value)
    except ValueError as error:
        assert str(error).startswith("prices")  # noqa: PT017 - either outcome may be right
    else:
        for _, dated in read.prices:
            assert [since for since, _ in dated] == sorted({since for since, _ in dated})
            for _, price in dated:
                assert len(price) == len(dated[0][1]) in (1, 2)
                assert all(0 <= number < np.inf for number in price)


def test_a_table_with_prices_is_a_deployment_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", rows())
    table = {"source": "table", "path": path, "embedding": "x", "quality": ["a", "b", "c"]}
    with pytest.raises(ValueError, match=r"`cost`, or give `prices`"):
        LLMDeployEnv(table, horizon=100, num_stages=5)
    env = LLMDeployEnv(table | {"prices": 0.5}, horizon=100, num_stages=5)
    assert env.dynamics.rules.budget == 0.5


def test_agents_see_list_prices_where_a_table_has_prices_and_only_there(tmp_path: Path) -> None:
    content = [row | {"more": 2000} for row in rows()]
    path = write(tmp_path / "t.jsonl", content)
    columns = {"embedding": "x", "quality": ["a", "b"]}
    # Of six rows 250 tokens on average are read by a, 2,000 by b: 1,125 in a typical query.
    tokens = [{"a": "in", "b": "more"}, 100]
    priced = columns | {"prices": {"a": [8.0, 10.0], "b": [16.0, 0.0]}, "tokens": tokens}
    typical = [1125 * 8e-6 + 1e-3, 1125 * 16e-6]
    import_table(path, name="priced", **priced)
    import_table(path, name="bare", **columns | {"cost": {"a": "in", "b": "more"}})
    table = {"source": "table", "path": path}
    cases: list[tuple[dict[str, Any], list[float]]] = [
        (table | priced, typical),
        (table | priced | {"prices": {"a": 0.25, "b": [16.0, 0.0]}}, [0.25, 2000 * 16e-6]),
        (table | columns | {"prices": 0.5}, [0.5, 0.5]),
        ({"source": "dataset", "name": "priced"}, typical),
        (table | columns | {"cost": {"a": "in", "b": "more"}}, [0.0, 0.0]),
        ({"source": "dataset", "name": "bare"}, [0.0, 0.0]),
    ]
    cut = [{"llm": "b", "query": 50, "factor": 0.5}]
    for spec, expected in cases:
        instance = spec | {"arrivals": {"a": 0}}
        env = LLMDeployEnv(instance, horizon=100, num_stages=2, price_changes=cut)
        assert env.problem["has_prices"] == any(expected), spec
        first, _ = env.reset(seed=0)
        np.testing.assert_allclose(first["cost_prior"], expected, rtol=1e-6)
        for _ in range(60):
            later, *_ = env.step([1, 1, 0])
        np.testing.assert_allclose(later["cost_prior"], expected * np.array([1, 0.5]), rtol=1e-6)


def test_the_options_of_a_table_are_those_of_every_form_of_it() -> None:
    layout = set(inspect.signature(read_layout).parameters)
    for function in (table_pool, table_workload, table_stream):
        assert layout < set(inspect.signature(function).parameters)
        assert "options" not in inspect.signature(function).parameters


# --- arrivals ------------------------------------------------------------------------------------

LLMS = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=8, unique=True)


@given(llms=LLMS, horizon=st.integers(1, 10**6), data=st.data())
def test_an_order_is_kept_half_come_at_once_and_the_last_before_the_end(
    llms: list[str], horizon: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(llms))
    times = dict(zip(llms, read_arrivals(order, tuple(llms)), strict=True))
    queries = [query_of(times[llm], horizon) for llm in order]
    assert queries == sorted(queries)
    assert queries[: (len(llms) + 1) // 2] == [0] * ((len(llms) + 1) // 2)
    assert queries[-1] < horizon
    assert read_arrivals(None, tuple(llms)) == read_arrivals(llms, tuple(llms))


@given(
    horizon=st.integers(1, 2**24),
    share=st.floats(0, 1, exclude_max=True),
    query=st.integers(0, 2**24),
)
def test_a_share_lies_inside_every_run_and_a_query_is_itself(
    horizon: int, share: float, query: int
) -> None:
    read = read_arrivals({"b": share, "c": query}, ("a", "b", "c"))
    assert [query_of(at, horizon) for at in read] == [0, int(Fraction(share) * horizon), query]
    assert 0 <= query_of(read[1], horizon) < horizon


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (["a"], r"does not name 'b'"),
        (["a", "b", "a"], r"names 'a' more than once"),
        (["a", "bb"], r"LLM 'bb' is not known; did you mean 'b'"),
        ({"a": 1.0}, r"arrivals\['a'\]=1.0 must be a query .* share"),
        ({"a": -0.5}, r"arrivals\['a'\]=-0.5"),
        ({"a": float("nan")}, r"arrivals\['a'\]=nan"),
        ({"a": True}, r"arrivals\['a'\]=True"),
        ({"a": "0.5"}, r"arrivals\['a'\]='0.5'"),
        ("a", r"arrivals='a' must be a mapping"),
    ],
)
def test_wrong_arrivals_are_named(arrivals: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_arrivals(arrivals, ("a", "b"))


def test_arrivals_in_words_are_in_order() -> None:
    llms = ("a", "b", "c")
    assert arrival_words(read_arrivals(["c", "a", "b"], llms), llms) == [
        "a (at the start)",
        "c (at the start)",
        "b (after 50%)",
    ]


# --- Parquet -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    rows=st.integers(0, 50),
    columns=st.integers(1, 4),
    text=st.text(max_size=20),
    length=st.integers(0, 5),
)
def test_a_footer_counts_rows_values_and_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, text: str, length: int
) -> None:
    path = tmp_path_factory.mktemp("footer") / "t.parquet"
    frame = pl.DataFrame(
        {f"{text}{j}": [float(i) for i in range(rows)] for j in range(columns)}
        | {"l": pl.Series([[i] * (length + 1) for i in range(rows)], dtype=pl.List(pl.Int64))}
    )
    frame.write_parquet(path, row_group_size=7)
    found = read_footer(path)
    assert found.rows == rows
    assert found.values == rows * (columns + length + 1)
    assert found.bytes > 0 or not rows


@settings(max_examples=200)
@given(data=st.binary(max_size=60))
def test_any_footer_is_read_or_refused_with_the_files_name(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "t.parquet"
    path.write_bytes(b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1")
    try:
        found = read_footer(path)
    except ValueError as error:
        assert "t.parquet" in str(error)  # noqa: PT017 - either outcome may be right
    else:
        assert min(found) >= 0


def test_a_small_file_of_many_rows_or_long_texts_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "SMALL", 2**20)
    many, long, sound = (tmp_path / f"{name}.parquet" for name in ("many", "long", "sound"))
    pl.DataFrame({"a": np.zeros(10**6)}).write_parquet(many)
    frame = pl.DataFrame({"q": [{"t": ["a" * 1000]}] * 2000})
    frame.write_parquet(long)
    frame.head(200).write_parquet(sound)
    assert max(many.stat().st_size, long.stat().st_size) < 50_000
    with pytest.raises(ValueError, match=r"many.parquet: 1,000,000 rows unpack to .* MB"):
        next(read_rows(many))
    with pytest.raises(ValueError, match=r"long.parquet: .* unpack to 2 MB"):
        next(read_rows(long))
    with pytest.raises(ValueError, match=r"long.parquet: its texts unpack to 2 MB"):
        parquet.check_texts(long, pl.scan_parquet(long))
    assert len(list(read_rows(sound))) == 200


# --- the command ---------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    done = CliRunner().invoke(build_app(), ["data", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_file_is_shown_with_its_columns_and_then_with_its_llms(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", rows())
    columns = command("show", path)
    assert "6 rows" in columns
    assert all(name in columns for name in ("x", "out", "dict", "--quality"))
    assert json.loads(command("show", path, "--json"))["columns"][1]["filled"] == 6
    named = ["--embedding", "x", "--quality", "one=a", "--quality", "two=b"]
    (tmp_path / "p.json").write_text('{"one": [1, 2], "two": 0.5}')
    priced = [*named, "--prices", str(tmp_path / "p.json"), "--tokens", "in", "--tokens", "7"]
    found = json.loads(command("show", path, *priced, "--json"))
    assert found["llms"] == ["one", "two"]
    assert found["quality"]["one"] == pytest.approx(0.5)
    assert found["cost"]["two"] == 0.5
    assert found["arrivals"] == ["one (at the start)", "two (after 50%)"]
    assert "two (after 50%)" in command("show", path, *priced)


@pytest.mark.parametrize("column", ["--text", "--embedding"])
def test_a_table_is_stored_under_a_name_and_plays_as_the_file_does(
    tmp_path: Path, column: str
) -> None:
    words = ("alpha beta", "gamma delta", "kappa sigma")
    content = [
        {"t": f"{words[i % 3]} {i} {i * i}", "x": [i / 9, 1.0], "s": {"b": i % 2, "a": i % 3 / 2}}
        for i in range(120)
    ]
    path = write(tmp_path / "Mine.jsonl", content)
    name = {"--text": "t", "--embedding": "x"}[column]
    said = command("import", "table", path, column, name, "--quality", "s")
    assert '{"source": "dataset", "name": "mine"}' in said
    assert "mine" in command("list")
    assert json.loads(command("show", "mine", "--json"))["rows"] == 120
    options = {"pool_size": 50, "context_dim": 4 if column == "--text" else 2}
    spec = {"source": "table", "path": path, column[2:]: name, "quality": "s"}
    build = {"num_llms": None, "context_dim": None, "assortment_size": 1}
    file, stored = (
        make_workload(given | options, **build).draw(np.random.default_rng(0))  # type: ignore[arg-type]
        for given in (spec, {"source": "dataset", "name": "mine"})
    )
    np.testing.assert_array_equal(file.contexts, stored.contexts)
    np.testing.assert_array_equal(file.utilities, stored.utilities)
    assert len(fingerprint({"source": "dataset", "name": "mine"})) == 64
    with pytest.raises(ValueError, match=r"imported from 'table', .* use workload 'dataset'"):
        fingerprint({"source": "sprout", "name": "mine"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "FILE", "--text", "t"), "say with --quality which"),
        (("show", "FILE", "--quality", "a", "--quality", "b"), "--text None, --embedding None"),
        (("import", "sprout", "FILE", "--quality", "a"), "--quality is an option of a table"),
        (("show", "mine", "--quality", "a"), "--quality is an option of a file"),
        (
            ("import", "table", "nowhere.csv", "--quality", "a", "--text", "t"),
            "^'nowhere.csv': there",
        ),
        (
            ("import", "table", "FILE", "--quality", "q", "--embedding", "x", "--name", "A b"),
            "--name 'A b' may hold",
        ),
        (
            ("show", "FILE", "--quality", "in=in", "--embedding", "x"),
            "or let --clip count",
        ),
    ],
)
def test_errors_of_the_command_name_its_options(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path / "f.jsonl", rows())
    with pytest.raises(ValueError, match=message):
        command(*(path if word == "FILE" else word for word in arguments))


def test_only_names_of_options_are_spelled_as_options() -> None:
    with (
        pytest.raises(ValueError, match=r"^/data/text=x.csv: --clip 'text=1', `other`$"),
        as_options(),
    ):
        raise UsageError("/data/text=x.csv: clip='text=1', `other`")
