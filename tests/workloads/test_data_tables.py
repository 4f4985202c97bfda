"""SPROUT and EmbedLLM: small files in exactly their schemas, sound and spoiled."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmqueue_gym.workloads import make_workload
from llmqueue_gym.workloads.datasets import import_dataset
from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE
from llmqueue_gym.workloads.sources.embedllm import COLUMNS, read_embedllm
from llmqueue_gym.workloads.sources.sprout import PRICES, read_sprout
from llmqueue_gym.workloads.stored import read_table, stored_names

# --- SPROUT --------------------------------------------------------------------------------------

BIG, SMALL = "openai-gpt-4o", "wxai-llama-3-2-1b-instruct"


def answer(score: Any, read: Any = 1000, written: Any = 100) -> dict[str, Any]:
    return {
        "num_input_tokens": read,
        "num_output_tokens": written,
        "response": "…",
        "score": score,
    }


def sprout(**changes: Any) -> dict[str, list[Any]]:
    columns: dict[str, Any] = {
        "key": ["k0", "k1"],
        "dataset": ["math", "gpqa"],
        "dataset_level": ["1", "2"],
        "dataset_idx": [0, 1],
        "prompt": ["What is\u2028this?", "naïve 数"],
        "golden_answer": ["a", "b"],
        BIG: [answer(1.0), answer(0.5, 2000, 0)],
        SMALL: [answer(0.0), answer(0.25, 10, 20)],
    }
    columns |= changes
    return {name: values for name, values in columns.items() if values is not None}


def write_split(folder: Path, name: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-00000-of-00001.parquet"
    pl.DataFrame(sprout(**changes)).write_parquet(path)
    return path


def test_sprouts_splits_become_one_table_with_costs_from_the_price_table(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_split(folder, "train")
    write_split(folder, "test")
    header = import_dataset("sprout", folder)
    found = read_table(header)
    assert found["id"].to_list() == ["test/k0", "test/k1", "train/k0", "train/k1"]
    assert found["text"].to_list()[:2] == ["What is\u2028this?", "naïve 数"]
    assert found["group"].to_list()[:2] == ["math", "gpqa"]
    assert header.facts.llms == (BIG, SMALL)
    assert found[f"quality:{SMALL}"].to_list()[:2] == [0.0, 0.25]
    # 1000 tokens at 2.5 and 100 at 10 USD per million
    assert np.allclose(found[f"cost:{BIG}"][:2], [(1000 * 2.5 + 100 * 10) / 1e6, 2000 * 2.5 / 1e6])
    assert header.facts.notes["prices"][BIG] == [2.5, 10.0]
    assert [file["name"][:4] for file in header.files] == ["test", "trai"]


def test_the_published_prices_name_thirteen_llms() -> None:
    assert len(PRICES) == 13
    assert all(0 < read <= written for read, written in PRICES.values())


def test_another_price_table_can_be_given(tmp_path: Path) -> None:
    path = write_split(tmp_path, "test", **{"openai-o3-mini": [answer(1.0), answer(1.0)]})
    with pytest.raises(ValueError, match=r"no price for LLM 'openai-o3-mini'.*--prices"):
        import_dataset("sprout", path)
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({BIG: [1, 2], SMALL: [0, 0], "openai-o3-mini": [1.1, 4.4]}))
    found = read_table(import_dataset("sprout", path, prices=prices))
    assert np.isclose(found["cost:openai-o3-mini"][0], (1000 * 1.1 + 100 * 4.4) / 1e6)
    prices.write_text(json.dumps({BIG: [1, 2]}))
    with pytest.raises(ValueError, match=rf"prices=.*there is no '{SMALL}'"):
        import_dataset("sprout", path, prices=prices)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": 1}', '{"a": [1]}', '{"a": [1, -1]}', '{"a": [true, 1]}', '{"a": [1, NaN]}'],
)
def test_a_wrong_price_table_is_refused(text: str, tmp_path: Path) -> None:
    path = write_split(tmp_path, "test")
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(ValueError, match="prices="):
        import_dataset("sprout", path, prices=tmp_path / "prices.json")


def test_a_missing_answer_counts_as_a_failed_one(tmp_path: Path) -> None:
    path = write_split(tmp_path, "test", **{SMALL: [answer(None, None, None), answer(1.0)]})
    header = import_dataset("sprout", path)
    found = read_table(header)
    assert found[f"quality:{SMALL}"].to_list() == [0.0, 1.0]
    assert found[f"cost:{SMALL}"][0] == 0.0
    assert header.facts.notes["missing_scores"] == {SMALL: 1}


def test_an_llm_without_data_is_left_out(tmp_path: Path) -> None:
    path = write_split(tmp_path, "test", **{SMALL: [answer(None), answer(None)]})
    facts = import_dataset("sprout", path).facts
    assert facts.llms == (BIG,)
    assert facts.notes["left_out"] == [SMALL]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, ["no column 'prompt'"]),
        ({"key": None}, ["no column 'key'"]),
        ({"prompt": [1, 2]}, ["'prompt'", "expected text"]),
        ({"prompt": ["a", None]}, ["row 2", "'prompt'", "empty"]),
        ({BIG: None, SMALL: None}, ["no column holds structs"]),
        ({BIG: [{"score": 1.0}, {"score": 1.0}]}, [BIG, "no field 'num_input_tokens'"]),
        ({BIG: [answer("yes"), answer("no")]}, [f"'{BIG}.score'", "expected numbers"]),
        ({BIG: [answer(1.0), answer(1.5)]}, ["row 2", f"'{BIG}.score'", "1.5"]),
        ({BIG: [answer(1.0), answer(1.0, -4)]}, ["row 2", f"'{BIG}.num_input_tokens'", "-4"]),
        ({BIG: [answer(1.0, 1, None), answer(1.0)]}, ["row 1", f"'{BIG}.num_output_tokens'"]),
        ({"key": [], "dataset": [], "prompt": []}, ["no rows"]),
    ],
)
def test_errors_in_sprout_name_file_row_and_column(
    changes: dict[str, Any], words: Sequence[str], tmp_path: Path
) -> None:
    columns = sprout(**changes)
    rows = min(len(values) for values in columns.values())
    frame = pl.DataFrame(sprout()) if not rows else pl.DataFrame(columns)
    path = tmp_path / "test.parquet"
    frame.head(rows).write_parquet(path)
    with pytest.raises(ValueError, match=r"test\.parquet|tmp") as caught:
        import_dataset("sprout", path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert stored_names() == []


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_split(tmp_path, "test")
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a complete Parquet file"):
            import_dataset("sprout", path)


CELLS = st.tuples(
    st.none() | st.floats(-0.5, 1.5) | st.just(float("nan")),
    st.none() | st.integers(-5, 10**6),
    st.none() | st.integers(-5, 10**6),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CELLS, min_size=1, max_size=6))
def test_any_numbers_in_sprout_are_costed_or_refused(
    tmp_path: Path, cells: list[tuple[float | None, int | None, int | None]]
) -> None:
    n = len(cells)
    columns = {
        "key": [str(i) for i in range(n)],
        "dataset": ["d"] * n,
        "prompt": ["p"] * n,
        SMALL: [answer(*cell) for cell in cells],
        BIG: [answer(1.0)] * n,
    }
    kinds = {"score": pl.Float64, "num_input_tokens": pl.Int64, "num_output_tokens": pl.Int64}
    struct = pl.Struct({"response": pl.String, **kinds})
    path, out = tmp_path / "test.parquet", tmp_path / "out.parquet"
    pl.DataFrame(columns, schema_overrides={SMALL: struct, BIG: struct}).write_parquet(path)

    def sound(score: float | None, read: int | None, written: int | None) -> bool:
        tokens = [t for t in (read, written) if t is not None]
        known = score is not None and not np.isnan(score)
        whole = not known or len(tokens) == 2
        return whole and all(t >= 0 for t in tokens) and (not known or 0 <= score <= 1)  # type: ignore[operator]

    if not all(sound(*cell) for cell in cells):
        with pytest.raises(ValueError, match=r"test\.parquet, row \d+, column"):
            read_sprout([path], out)
        return
    facts = read_sprout([path], out)
    found = pl.read_parquet(out)
    scores = [0.0 if cell[0] is None or np.isnan(cell[0]) else cell[0] for cell in cells]
    if SMALL in facts.llms:
        assert found[f"quality:{SMALL}"].to_list() == scores
        assert np.isfinite(found[f"cost:{SMALL}"].to_numpy()).all()
    else:
        assert all(cell[0] is None or np.isnan(cell[0]) for cell in cells)


def test_splits_with_other_llms_do_not_mix(tmp_path: Path) -> None:
    write_split(tmp_path / "d", "train")
    write_split(tmp_path / "d", "test", **{SMALL: None})
    with pytest.raises(ValueError, match=f"LLMs are not those of.*{SMALL}"):
        import_dataset("sprout", tmp_path / "d")


# --- EmbedLLM ------------------------------------------------------------------------------------

Row = tuple[Any, Any, str, Any, str, str]


def write_rows(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def many_rows(questions: int) -> list[Row]:
    """Every question to 112 LLMs; every 50th question twice."""
    return [
        (question, llm, f"Question {question}, with a comma: ".ljust(60, "x"), *label)
        for question in range(questions)
        for _ in range(2 if question % 50 == 0 else 1)
        for llm in range(112)
        for label in [((question * llm) % 3 // 2, f"maker/model-{llm}", "mmlu")]
    ]


def long_rows() -> list[Row]:
    """Two questions, two LLMs; one pair twice with different labels, one pair missing."""
    return [
        (7, 0, "first,\u2028with a comma", 0, "maker/a", "mmlu"),
        (7, 1, "first,\u2028with a comma", 1, "maker/b", "mmlu"),
        (3, 0, 'second "quoted"\nline', 1, "maker/a", "gsm8k"),
        (7, 0, "first,\u2028with a comma", 1, "maker/a", "mmlu"),
    ]


def test_a_long_csv_becomes_a_table_of_the_largest_labels(tmp_path: Path) -> None:
    header = import_dataset("embedllm", write_rows(tmp_path / "train.csv", long_rows()))
    found = read_table(header)
    assert found["id"].to_list() == ["7", "3"]
    assert found["text"].to_list() == ["first,\u2028with a comma", 'second "quoted"\nline']
    assert found["group"].to_list() == ["mmlu", "gsm8k"]
    assert found["quality:maker/a"].to_list() == [1.0, 1.0]
    assert found["quality:maker/b"].to_list() == [1.0, 0.0]
    assert header.facts.notes["missing_scores"] == {"maker/b": 1}
    assert header.facts.notes["repeated_pairs"] == 1
    assert "cost" not in header.facts.units


def test_several_files_are_one_table(tmp_path: Path) -> None:
    rows = long_rows()
    folder = tmp_path / "d"
    folder.mkdir()
    write_rows(folder / "test.csv", rows[:2])
    write_rows(folder / "train.csv", rows[2:])
    whole = write_rows(tmp_path / "all.csv", rows)
    split = read_table(import_dataset("embedllm", folder))
    assert split.equals(read_table(import_dataset("embedllm", whole, name="whole")))


def test_a_text_that_changes_is_counted_and_the_first_kept(tmp_path: Path) -> None:
    rows = [*long_rows(), (7, 1, "changed", 1, "maker/b", "mmlu")]
    header = import_dataset("embedllm", write_rows(tmp_path / "train.csv", rows))
    assert header.facts.notes["conflicting_texts"] == 1
    assert read_table(header)["text"][0] == "first,\u2028with a comma"


def test_an_environment_of_embedllm_has_no_costs_to_weigh(tmp_path: Path) -> None:
    import_dataset("embedllm", write_rows(tmp_path / "train.csv", many_rows(120)))
    sizes = {"num_llms": 112, "context_dim": 8, "assortment_size": 2}
    workload = make_workload("embedllm", **sizes)  # type: ignore[arg-type]
    assert len(workload.llms) == 112
    with pytest.raises(ValueError, match="cost_weight=1 needs costs"):
        make_workload({"source": "embedllm", "cost_weight": 1}, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, "", ["row 2", "prompt_id"]),
        (3, "right", ["row 2", "'label'", "right"]),
        (3, "2", ["row 2", "'label'"]),
        (3, "nan", ["row 2", "'label'"]),
        (4, "", ["row 2", "model_name"]),
    ],
)
def test_errors_in_embedllm_name_file_row_and_column(
    place: int, value: str, words: Sequence[str], tmp_path: Path
) -> None:
    rows: list[Any] = [list(row) for row in long_rows()]
    rows[1][place] = value
    with pytest.raises(ValueError, match=r"train\.csv") as caught:
        import_dataset("embedllm", write_rows(tmp_path / "train.csv", rows))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("column", ["prompt_id", "prompt", "label", "model_name", "category"])
def test_a_missing_column_of_embedllm_is_named(column: str, tmp_path: Path) -> None:
    header = [name if name != column else "other" for name in COLUMNS]
    path = write_rows(tmp_path / "train.csv", long_rows(), header)
    with pytest.raises(ValueError, match=f"{column!r} 0 times"):
        import_dataset("embedllm", path)


def test_mixed_encodings_are_found_in_their_row(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.csv", long_rows())
    path.write_bytes(path.read_bytes().replace(b"second", "façade".encode("latin-1")))
    with pytest.raises(ValueError, match=r"row 3, column 'prompt': byte 0xe7"):
        import_dataset("embedllm", path)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=20)
PAIRS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from([0, 1])),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PAIRS, TEXT)
def test_any_rows_give_the_largest_label_of_each_pair(
    tmp_path: Path, pairs: list[tuple[int, int, int]], text: str
) -> None:
    rows = [(q, m, f"{text}{q}", label, f"llm{m}", text) for q, m, label in pairs]
    path = write_rows(tmp_path / "train.csv", rows)
    facts = read_embedllm([path], tmp_path / "out.parquet")
    found = pl.read_parquet(tmp_path / "out.parquet")
    best: dict[tuple[str, str], float] = {}
    for q, m, label in pairs:
        key = (str(q), f"llm{m}")
        best[key] = max(label, best.get(key, 0))
    for row in found.iter_rows(named=True):
        assert row["text"] == f"{text}{row['id']}"
        for llm in facts.llms:
            assert row[f"quality:{llm}"] == best.get((row["id"], llm), 0)
    assert facts.notes["repeated_pairs"] == len(pairs) - len(best)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120))
def test_any_bytes_after_a_header_are_read_or_refused_with_the_files_name(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(",".join(COLUMNS).encode() + b"\n" + content)
    message = "train.csv"
    try:
        read_embedllm([path], tmp_path / "out.parquet")
    except ValueError as error:
        message = str(error)
    assert "train.csv" in message


PEAK = """
import json, resource, sys
from pathlib import Path
from llmqueue_gym.workloads.datasets import import_dataset
facts = import_dataset("embedllm", sys.argv[1]).facts
if sys.platform == "linux":  # getrusage counts what the parent held when it started this process
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([facts.rows, peak / 1e6]))
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Ten million rows of questions to 112 LLMs stay under 1 GB, by the slope."""

    def imported(questions: int) -> tuple[int, float]:
        path = write_rows(tmp_path / f"{questions}.csv", many_rows(questions))
        env = os.environ | {CACHE_VARIABLE: str(tmp_path / f"cache{questions}")}
        command = [sys.executable, "-c", PEAK, str(path)]
        done = subprocess.run(command, env=env, check=True, capture_output=True)
        rows, megabytes = json.loads(done.stdout)
        return rows, megabytes

    (few, small), (many, large) = imported(900), imported(4500)
    assert (few, many) == (900, 4500)
    slope = (large - small) / ((4500 - 900) * 112 * 1.02)  # MB a row of the csv
    assert small + 10e6 * slope < 1000
