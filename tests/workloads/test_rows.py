"""Files from outside: every format gives the same rows, and every odd one a clear error."""

import gzip
import json
import math
import string
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmqueue_gym.workloads import rows as module
from llmqueue_gym.workloads.cells import is_date, number_of, seconds_of, show, time_of, unit_of
from llmqueue_gym.workloads.rows import SUFFIXES, find_file, read_rows

ROWS = [{"a": "1", "b": "x, y"}, {"a": "2", "b": 'é "quoted"\nand broken'}]


def content(kind, rows=ROWS, mark=None):
    """Rows in a format, as bytes; ``mark`` separates the cells of CSV and TSV."""
    if kind in (".csv", ".tsv"):
        mark = mark or ("," if kind == ".csv" else "\t")
        lines = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in lines]
        return "".join(mark.join(line) + "\r\n" for line in quoted).encode()
    if kind == ".json":
        return json.dumps(rows, indent=1).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path):
    return [row for _, row in read_rows(find_file(str(path)))]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(suffix, tmp_path):
    path = tmp_path / f"my.file{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(ROWS).write_parquet(path)
    else:
        write(path, content(suffix.removesuffix(".gz")))
    assert read(path) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_byte_order_mark_and_blank_lines_are_no_rows(suffix, tmp_path):
    data = content(suffix)
    for odd in (b"\xef\xbb\xbf" + data, data + b"\r\n\r\n"):
        assert read(write(tmp_path / f"odd{suffix}", odd)) == ROWS
    if suffix != ".json":
        gaps = data.replace(b"\n", b"\n\n") if suffix == ".jsonl" else b"\n" + data
        assert read(write(tmp_path / f"gaps{suffix}", gaps)) == ROWS


def test_json_may_be_a_page_of_an_api_or_lines_after_all(tmp_path):
    page = json.dumps({"data": ROWS, "total": 2}).encode()
    assert read(write(tmp_path / "page.json", page)) == ROWS
    assert read(write(tmp_path / "lines.json", content(".jsonl"))) == ROWS
    assert read(write(tmp_path / "one.json", json.dumps(ROWS[0]).encode())) == ROWS[:1]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_header_tells_what_separates_cells(suffix, mark, tmp_path):
    plain = f"\n\nid{mark}an odd name{mark}x\n1{mark}a{mark}2\n"
    expected = [{"id": "1", "an odd name": "a", "x": "2"}]
    assert read(write(tmp_path / f"plain{suffix}", plain.encode())) == expected
    quoted = f'"id ,;\t,;\t,;\t"{mark}"say ""x"""\n1{mark}"2{mark}\n"\n'
    expected = [{"id ,;\t,;\t,;\t": "1", 'say "x"': f"2{mark}\n"}]
    assert read(write(tmp_path / f"quoted{suffix}", quoted.encode())) == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".csv.gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_is_named_with_what_to_do(suffix, encoding, tmp_path):
    data = content(suffix.removesuffix(".gz"), [{"a": "1", "b": "caf\u00e9"}])
    text = json.loads(data) if suffix.startswith(".json") else data.decode()
    if suffix.startswith(".json"):
        text = json.dumps(text, ensure_ascii=False)
    path = write(tmp_path / f"t{suffix}", text.encode(encoding))
    with pytest.raises(ValueError, match="is not UTF-8; convert the file to UTF-8") as error:
        read(path)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "row 2: 3 cells for 2 columns"),
        ("t.csv", b"a,b\n1\n", "row 1: 1 cells for 2 columns"),
        ("t.csv", b"a,a\n1,2\n", "names column 'a' more than once"),
        ("t.csv", b"a;b\n1;2;3\n", "row 1: 3 cells for 2 columns"),
        ("t.csv", b'a,b\n1,"2\n', "row 1: .*cut off"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', r"line 2: not a JSON object \(wrong at character"),
        ("t.jsonl", b"[1]\n", r"line 1: expected a JSON object, not \[1\]"),
        ("t.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: a number has too many digits"),
        ("t.jsonl", b'{"a": ' + b"[" * 99_999, "line 1: the JSON is nested too deeply"),
        ("t.json", b'{"data": 3}', "expected a list of objects, not 3"),
        ("t.json", b'[{"a": 1}, 2]', "row 2: expected a JSON object, not 2"),
        ("t.json", b"[" * 99_999 + b"]" * 99_999, "nested too deeply"),
        ("t.json", b'[{"a": 1}', "not a JSON object"),
        ("t.parquet", b"PAR1", "not a complete Parquet file"),
        ("t.csv.gz", b"a,b\n", None),
    ],
)
def test_odd_files_are_refused_with_their_place(name, data, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)  # the last is no gzip at all
    with pytest.raises(ValueError, match=message or "not a complete gzip file") as error:
        read(path)
    assert name in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 200


def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path):
    data = gzip.compress(content(".jsonl", ROWS * 50))
    for length in (1, 5, 30, len(data) - 3):
        path = tmp_path / "t.jsonl.gz"
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="not a complete gzip file"):
            read(path)


def test_sizes_are_limited_before_anything_is_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 10_000)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + b"1\n" * 500_000))
    with pytest.raises(ValueError, match=r"bomb\.csv\.gz: it unpacks to more than"):
        read(path)
    monkeypatch.setattr(module, "MAX_LINE", 1000)
    for name, data in (
        ("t.jsonl", b'{"a": "' + b"x" * 2000 + b'"}'),
        ("t.csv", b"a\n" + b"x" * 2000),
    ):
        with pytest.raises(ValueError, match=rf"{name}, .* 1: .*(longer|larger) than"):
            read(write(tmp_path / name, data))
    monkeypatch.setattr(module, "MAX_JSON", 1000)
    with pytest.raises(ValueError, match=r"call it \.jsonl"):
        read(write(tmp_path / "t.json", b'[{"a": "' + b"x" * 2000 + b'"}]'))
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    pl.DataFrame({"a": [1] * 4}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="4 rows are more than 3"):
        read(tmp_path / "t.parquet")


def test_a_name_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "t.csv").mkdir()
    for name in (str(tmp_path / "t.csv"), "nowhere.csv", 3, None, "x" * 9999 + ".csv", "a\0b.csv"):
        with pytest.raises(ValueError, match="path="):
            find_file(name)
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in one of \.csv, \.tsv"):
        find_file(str(tmp_path / "t.xlsx"))


@settings(max_examples=200)
@given(
    st.binary(max_size=80) | st.text(alphabet='",\n\r[]{}:a1 \t', max_size=60).map(str.encode),
    st.sampled_from(SUFFIXES),
)
def test_any_bytes_are_rows_or_an_error_with_the_files_name(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("any") / f"t{suffix}"
    write(path, data)
    try:
        found = read(path)
    except ValueError as error:
        assert path.name in str(error)  # noqa: PT017 - either outcome may be right
    else:
        assert all(isinstance(row, dict) for row in found)


cells = st.text(alphabet=string.printable + "\u00e9\u2028\u4e2d", min_size=1, max_size=8).filter(
    lambda text: "\r" not in text
)


@settings(max_examples=100)
@given(
    st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), min_size=1, max_size=5),
    st.sampled_from([s for s in SUFFIXES if s != ".parquet"]),
    st.sampled_from(",;\t"),
)
def test_any_cells_survive_every_format(tmp_path_factory, rows, suffix, mark):
    path = tmp_path_factory.mktemp("cells") / f"t{suffix}"
    assert read(write(path, content(suffix.removesuffix(".gz"), rows, mark))) == rows


# --- cells ----------------------------------------------------------------------------------------


@given(
    st.datetimes(datetime(2002, 1, 1), datetime(2098, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["T", " "]),
)
def test_any_offset_names_the_same_instant(moment, minutes, mark):
    truth = moment.replace(tzinfo=UTC).timestamp()
    local = moment + timedelta(minutes=minutes)
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    for colon in ("", ":"):
        text = f"{local.isoformat(mark)}{sign}{hours:02d}{colon}{rest:02d}"
        assert time_of(text) == pytest.approx(truth, abs=1e-5)
    for text in (moment.isoformat(mark), moment.isoformat(mark) + "Z", moment):
        assert time_of(text) == pytest.approx(truth, abs=1e-5)


def test_times_of_other_kinds_and_no_times():
    assert time_of("2023-11-16 18:17:03.9799600") % 60 == pytest.approx(3.97996)  # Azure's seven
    assert time_of(date(1970, 1, 2)) == time_of("1970-01-02") == 86_400.0
    assert time_of(timedelta(seconds=1.5)) == time_of("1.5") == 1.5
    for wrong in (
        True,
        None,
        "soon",
        "",
        "2026-13-01",
        "31.02.2026",
        "05/04/2026",  # the fourth of May, or the fifth of April
        "1,234",  # a thousand, or a little more than one
        "1.234,5",
        [1],
        {},
        b"x",
        10**400,
    ):
        assert not math.isfinite(time_of(wrong)), wrong


def test_dates_with_points_begin_with_the_day():
    for text in ("04.05.2026 09:30:00", "4.5.2026 9:30", "04.05.2026, 09:30:00,000"):
        assert time_of(text) == time_of("2026-05-04 09:30:00")
        assert is_date(text)
    assert time_of("4.5.2026") == time_of("2026-05-04")


@given(st.decimals(-(10**6), 10**6, places=6) | st.decimals("-.999", ".999", places=3))
def test_a_decimal_comma_is_read_where_it_can_be_no_mark_of_thousands(number):
    text = f"{number:f}"
    assert number_of(text.replace(".", ",")) == float(number)


def test_the_unit_of_dates_is_told_by_their_size():
    seconds = np.array([1.7e9, 1.8e9])
    for unit, factor in {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}.items():
        assert unit_of(seconds * factor) == unit
    assert unit_of(np.array([0.0, 1.7e12])) == "s"  # no dates
    assert unit_of(np.array([])) == "s"
    with pytest.raises(ValueError, match="row 2: column 't' must be a number or an ISO 8601"):
        seconds_of([1, "x"], ["f, row 1", "f, row 2"], "t")


def test_a_value_is_shown_in_one_short_line_whatever_it_is():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 10**7, deep, 10**5000, list(range(10**5)), {"a": "\x1b[31m\n"}, "\x1b\n"):
        text = show(value)
        assert len(text) <= 60
        assert text.isprintable()
