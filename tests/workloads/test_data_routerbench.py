"""RouterBench: pickles of three pandas majors read alike, and no pickle can do anything.

`tests/data/routerbench/make.py` says how the small files in the official schema were made.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmqueue_gym.workloads.datasets import import_dataset
from llmqueue_gym.workloads.sources import inert_pickle
from llmqueue_gym.workloads.sources.routerbench import prompt_text
from llmqueue_gym.workloads.stored import read_table, stored_names

FILES = Path(__file__).parents[1] / "data" / "routerbench"
PICKLES = sorted(path.name for path in FILES.glob("*.pkl"))


def table(**changes: Any) -> dict[str, list[Any]]:
    """Columns of a small table in the official schema."""
    columns: dict[str, list[Any]] = {
        "sample_id": ["a.0", "a.1", "a.2"],
        "prompt": ["['one']", "['two', 'three']", "four"],
        "eval_name": ["a", "a", "b"],
        "big": [1.0, 0.5, 0.0],
        "small": [0.0, 1.0, 0.25],
        "big|model_response": ["x", "y", "z"],
        "small|model_response": ["x", "y", "z"],
        "big|total_cost": [0.1, 0.2, 0.3],
        "small|total_cost": [0.01, 0.02, 0.03],
        "oracle_model_to_route_to": ["big", "small", "small"],
    }
    columns |= changes
    return {name: values for name, values in columns.items() if values is not None}


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def rows(header: Any) -> list[dict[str, Any]]:
    return read_table(header).to_dicts()


# --- what a sound file becomes -------------------------------------------------------------------


def test_at_least_two_pandas_majors_are_tested() -> None:
    assert len({name[: len("pandas1")] for name in PICKLES}) == 3


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_and_the_csv_of_the_same_frame_become_the_same_table(name: str) -> None:
    plain = import_dataset("routerbench", FILES / "table.csv", name="plain")
    pickled = import_dataset("routerbench", FILES / name)
    assert rows(pickled) == rows(plain)
    assert pickled.facts.llms == plain.facts.llms
    asked = pickled.facts.notes["pickle_globals"]
    assert {**plain.facts.notes, "pickle_globals": asked} == pickled.facts.notes
    assert "pandas._libs.internals._unpickle_block" in asked
    assert set(asked) <= inert_pickle.ALLOWED


def test_the_table_has_the_files_scores_and_costs() -> None:
    header = import_dataset("routerbench", FILES / "table.csv")
    assert header.facts.llms == ("a-small", "m.odd", "whole", "z/big")
    assert header.facts.notes["missing_scores"] == {"m.odd": 1, "z/big": 1}
    found = read_table(header)
    texts = ["What is 2+2?", "line one\n\nline two", "not a list \u2028 here", "café \\d"]
    assert found["text"].to_list() == texts
    assert found["id"].to_list() == [f"mmlu.val.{i}" for i in range(4)]
    assert found["group"].to_list() == ["mmlu", "gsm", "mtbench", "mmlu"]
    assert found["quality:z/big"].to_list() == [1.0, 0.0, 0.0, 1.0]  # the missing one is 0
    assert found["quality:whole"].to_list() == [1.0, 0.0, 0.0, 1.0]
    assert found["cost:whole"].to_list() == [0.5, 0.25, 0.125, 1.0]
    assert found["cost:z/big"].to_list() == [0.001, 0.002, 0.003, 0.004]


def test_an_llm_without_a_single_score_is_left_out_and_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", table(big=["", "", ""]))
    facts = import_dataset("routerbench", path).facts
    assert facts.llms == ("small",)
    assert facts.notes["left_out"] == ["big"]


def test_a_repeated_id_is_another_query_and_counted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", table(sample_id=["a", "a", "a"]))
    header = import_dataset("routerbench", path)
    assert header.facts.rows == 3
    assert header.facts.notes["repeated_ids"] == 2


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_the_spelled_out_list_of_any_lines_reads_back(lines: list[str]) -> None:
    assert prompt_text(repr(lines)) == "\n".join(lines)


@given(st.text())
def test_any_prompt_cell_gives_a_text(cell: str) -> None:
    assert isinstance(prompt_text(cell), str)
    if not cell.lstrip().startswith(("[", "(")):
        assert prompt_text(cell) == cell


@pytest.mark.parametrize(
    "cell", ["[" * 5000, "[1, 2]", "['a'", "[__import__('os')]", "[" + "-" * 9999]
)
def test_a_prompt_that_spells_no_list_of_lines_stays_as_it_is(cell: str) -> None:
    assert prompt_text(cell) == cell


# --- what is wrong with a file is said with its place ---------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, ["prompt", "0 times"]),
        ({"eval_name": None}, ["eval_name"]),
        ({"sample_id": None}, ["sample_id"]),
        ({"big": None}, ["'big|total_cost' has no score column 'big'"]),
        ({"big|total_cost": None, "small|total_cost": None}, ["no column ends in"]),
        ({"big": [1.0, "high", 0.0]}, ["row 2", "'big'", "high"]),
        ({"big": [1.0, 0.5, 1.5]}, ["row 3", "'big'", "1.5"]),
        ({"small|total_cost": [0.1, -1, 0.1]}, ["row 2", "'small|total_cost'", "-1"]),
        ({"small|total_cost": [0.1, "", 0.1]}, ["row 2", "'small|total_cost'", "missing"]),
        ({"small|total_cost": [0.1, "inf", 0.1]}, ["row 2", "'small|total_cost'", "inf"]),
    ],
)
def test_an_error_names_file_row_and_column(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "wrong.csv", table(**changes))
    with pytest.raises(ValueError, match=r"wrong\.csv") as caught:
        import_dataset("routerbench", path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert stored_names() == []


def test_a_truncated_csv_names_the_row(tmp_path: Path) -> None:
    whole = write_csv(tmp_path / "t.csv", table(prompt=["a", "b", "c, d"])).read_bytes()
    for cut, row in ((-12, "row 3"), (whole.index(b'"c, d') + 3, "row 3")):
        (tmp_path / "cut.csv").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=rf"cut\.csv, {row}.*cut off"):
            import_dataset("routerbench", tmp_path / "cut.csv")


def test_bytes_that_are_not_utf8_are_found_in_their_cell(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", table(prompt=["naïve", "x", "y"]))
    path.write_bytes(path.read_bytes().replace("ï".encode(), b"\xef"))
    with pytest.raises(ValueError, match=r"row 1, column 'prompt': byte 0xef"):
        import_dataset("routerbench", path)


def test_a_byte_order_mark_and_long_cells_are_no_trouble(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", table(prompt=["x" * 200_000, "a\u2028b", "c\r\nd"]))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = read_table(import_dataset("routerbench", path))
    assert found["text"].to_list() == ["x" * 200_000, "a\u2028b", "c\r\nd"]


@pytest.mark.parametrize("content", [b"", b"sample_id,prompt,eval_name,a,a|total_cost\n"])
def test_a_file_without_rows_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv"):
        import_dataset("routerbench", tmp_path / "t.csv")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_pickle_is_refused(share: float, tmp_path: Path) -> None:
    whole = (FILES / PICKLES[0]).read_bytes()
    (tmp_path / "cut.pkl").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut\.pkl: it is broken"):
        import_dataset("routerbench", tmp_path / "cut.pkl")


def test_a_pickle_that_holds_no_table_is_refused(tmp_path: Path) -> None:
    for thing in ({"a": 1}, [1, 2], "text", None):
        (tmp_path / "t.pkl").write_bytes(pickle.dumps(thing))
        with pytest.raises(ValueError, match=r"t\.pkl: it is not a pickled table"):
            import_dataset("routerbench", tmp_path / "t.pkl")


def test_a_wrong_cell_of_a_pickle_is_named(tmp_path: Path) -> None:
    whole = (FILES / "pandas1-protocol0.pkl").read_bytes()
    text = b"V['What is 2+2?']\n"
    assert text in whole
    (tmp_path / "t.pkl").write_bytes(whole.replace(text, b"I17\n"))  # an int where text was
    with pytest.raises(ValueError, match=r"t\.pkl: row 1, column 'prompt': expected text, not 17"):
        import_dataset("routerbench", tmp_path / "t.pkl")


def test_a_prompt_that_is_a_list_already_reads_like_one_spelled_out(tmp_path: Path) -> None:
    whole = (FILES / "pandas1-protocol0.pkl").read_bytes()
    text = b"V['What is 2+2?']\n"
    (tmp_path / "t.pkl").write_bytes(whole.replace(text, b"(lp900\nVWhat is\naV2+2?\na"))
    found = read_table(import_dataset("routerbench", tmp_path / "t.pkl"))
    assert found["text"][0] == "What is\n2+2?"


# --- attacks -------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def global_pickle(module: str, name: str, *args: str) -> bytes:
    """A protocol 0 pickle that calls module.name(*args), whatever it is."""
    texts = "".join(f"V{arg}\n" for arg in args)
    return f"c{module}\n{name}\n({texts}tR.".encode()


def assert_refused(data: bytes, word: str, tmp_path: Path) -> None:
    """The importer refuses it by name, and so does the unpickler by itself."""
    path = tmp_path / "evil.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"evil\.pkl") as caught:
        import_dataset("routerbench", path)
    assert word in str(caught.value), caught.value
    with pytest.raises(Exception) as wall:  # noqa: PT011 - any error: nothing came out
        inert_pickle.InertUnpickler(io.BytesIO(data)).load()
    assert not isinstance(wall.value, AssertionError)
    assert stored_names() == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nested", [False, True])
def test_a_system_call_is_refused_by_name(protocol: int, nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil: Any = Calls(os.system, f"touch {marker}")
    if nested:
        evil = {"_mgr": [("x", {"y": [evil]})]}
    assert_refused(pickle.dumps(evil, protocol), "posix.system", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "builtins.__import__",
        "builtins.open",
        "__builtin__.eval",
        "importlib.import_module",
        "operator.attrgetter",
        "functools.partial",
        "copyreg.add_extension",
        "copyreg.__newobj__",
        "codecs.encode",
        "_codecs.decode",
        "numpy.load",
        "numpy.fromfile",
        "numpy.memmap",
        "numpy.core.multiarray.fromfile",
        "numpy._core.multiarray.scalar.__reduce__",
        "numpy.f2py.crackfortran.myeval",
        "numpy.testing._private.utils.runstring",
        "pandas.read_pickle",
        "pandas.eval",
        "pandas.DataFrame.to_pickle",
        "pandas.io.pickle.read_pickle",
        "pandas.core.frame.DataFrame.eval",
        "pandas.core.computation.eval.eval",
        "torch.load",
        "pickle.loads",
        "_pickle.loads",
        "__main__.Record",
    ],
)
def test_every_other_global_is_refused_by_name(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    shown = name.replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
    assert_refused(global_pickle(module, attribute, "id"), shown, tmp_path)


def test_a_dotted_name_does_not_reach_into_an_allowed_global(tmp_path: Path) -> None:
    name = b"DataFrame.__init__.__globals__.popitem"
    data = b"\x80\x04\x8c\x06pandas\x8c" + bytes([len(name)]) + name + b"\x93)R."
    assert_refused(data, "DataFrame.__init__", tmp_path)


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x02os\x8c\x07\x1b[2Jx\ny\x93)R."
    assert_refused(data, r"'os.\x1b[2Jx\ny'", tmp_path)


def test_names_that_come_from_the_memo_are_found(tmp_path: Path) -> None:
    # "os" and "system" are memoised, popped, and fetched again for STACK_GLOBAL
    data = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01\x93\x8c\x02id\x85R."
    assert_refused(data, "os.system", tmp_path)


def test_a_name_that_a_static_look_cannot_know_is_refused(tmp_path: Path) -> None:
    # the names are drawn out of a list: the look sees none, the unpickler sees them all
    data = b"\x80\x04]\x94(\x8c\x02os\x8c\x06systeme0\x8c\x02os\x8c\x06system(1\x93\x8c\x02id\x85R."
    path = tmp_path / "evil.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="made at run time"):
        import_dataset("routerbench", path)
    with pytest.raises(inert_pickle.PickleRefusedError, match=r"os\.system"):
        inert_pickle.InertUnpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x01\x01\x01"])
def test_extension_codes_are_refused(code: bytes, tmp_path: Path) -> None:
    assert_refused(b"\x80\x02" + code + b")R.", "copyreg extension", tmp_path)


@pytest.mark.parametrize("data", [b"Pid\n.", b"\x80\x02X\x02\x00\x00\x00idQ."])
def test_persistent_ids_are_refused(data: bytes, tmp_path: Path) -> None:
    assert_refused(data, "persistent", tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"cpandas.core.frame\nDataFrame\n}b.",  # BUILD on the class itself
        b"cpandas.core.frame\nDataFrame\n(N}V__class__\ncnumpy\nndarray\nstb.",  # and its slots
        b"\x80\x04\x8c\x06pandas\x8c\x09DataFrame\x93)}\x8c\x04data\x8c\x01xs\x92.",  # keywords
        b"(V/etc/passwd\nicpandas\n.",
        b"(cbuiltins\nobject\no.",
    ],
)
def test_an_allowed_global_cannot_be_bent(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        import_dataset("routerbench", tmp_path / "evil.pkl")
    assert inert_pickle.Record.__setstate__.__name__ == "__setstate__"


def test_allowed_globals_build_nothing_but_records() -> None:
    for name in inert_pickle.ALLOWED:
        module, _, attribute = name.rpartition(".")
        made = inert_pickle.InertUnpickler(io.BytesIO(global_pickle(module, attribute, "x"))).load()
        assert type(made).__mro__[1:] == (inert_pickle.Record, object)
        assert made.args == ("x",)


def test_memory_beyond_the_limit_is_an_error_and_not_a_full_machine(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # a memo of 2^31 entries
    with pytest.raises(ValueError, match=r"evil\.pkl: it needs more memory"):
        import_dataset("routerbench", tmp_path / "evil.pkl")


def test_a_list_that_doubles_forty_times_is_refused_quickly(tmp_path: Path) -> None:
    whole = (FILES / "pandas1-protocol0.pkl").read_bytes()
    cell = b"V['What is 2+2?']\n"
    assert cell in whole
    doubling = b"(lp100\nVx\na0" + b"".join(
        b"(lp%d\ng%d\nag%d\na0" % (100 + i, 99 + i, 99 + i) for i in range(1, 41)
    )
    (tmp_path / "evil.pkl").write_bytes(whole.replace(cell, doubling + b"g140\n"))
    with pytest.raises(ValueError, match=r"evil\.pkl: row 1, .*'prompt'.*, not a list"):
        import_dataset("routerbench", tmp_path / "evil.pkl")


def test_a_pickle_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inert_pickle, "MAX_SECONDS", 0.01)
    with pytest.raises(ValueError, match=r"more than 0\.01 s"):
        import_dataset("routerbench", FILES / PICKLES[0])


def test_whatever_happens_besides_unpickling_ends_the_process(tmp_path: Path) -> None:
    script = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("inert", sys.argv[1])
inert = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inert)
sys.addaudithook(inert._audit)
inert._watch(True)
open(sys.argv[2], "w")
print("went on")
"""
    marker = tmp_path / "marker"
    command = [sys.executable, "-I", "-c", script, inert_pickle.__file__, str(marker)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "open" in done.stderr
    assert not done.stdout
    assert not marker.exists()


def test_mutated_pickles_are_read_or_refused(tmp_path: Path) -> None:
    """300 random mutations of real files, in one limited process."""
    script = """
import importlib.util, json, random, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("inert", sys.argv[1])
inert = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inert)
import polars
inert.limit(0)
sys.addaudithook(inert._audit)
draw, folder, tally = random.Random(7), Path(sys.argv[2]), {"read": 0, "refused": 0}
files = [path.read_bytes() for path in sorted(Path(sys.argv[3]).glob("*.pkl"))]
for _ in range(300):
    data = bytearray(draw.choice(files))
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(data))
        kind = draw.randrange(3)
        if kind == 0:
            data[place] = draw.randrange(256)
        elif kind == 1:
            del data[place : place + draw.randrange(1, 9)]
        else:
            data[place:place] = data[draw.randrange(len(data)) :][: draw.randrange(1, 30)]
    path = folder / "mutated.pkl"
    path.write_bytes(data)
    try:
        inert.list_globals(path)
        inert.convert(path, folder / "out.parquet")
        tally["read"] += 1
    except BaseException as error:
        assert not isinstance(error, (KeyboardInterrupt, SystemExit)), error
        tally["refused"] += 1
print(json.dumps(tally))
"""
    command = [sys.executable, "-I", "-c", script, inert_pickle.__file__, str(tmp_path), str(FILES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)
    assert tally["read"] + tally["refused"] == 300
    assert tally["refused"] > 100


def test_pandas_is_not_needed_and_neither_is_the_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module the user's path or folder offers under a trusted name is not picked up."""
    for name in ("polars", "numpy", "pickle", "pickletools"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert import_dataset("routerbench", FILES / PICKLES[0]).facts.rows == 4


def test_a_file_in_the_current_folder_needs_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FILES / PICKLES[0], tmp_path / "routerbench_0shot.pkl")
    monkeypatch.chdir(tmp_path)
    assert import_dataset("routerbench", Path("routerbench_0shot.pkl")).facts.rows == 4


def test_one_file_is_asked_for(tmp_path: Path) -> None:
    for name in PICKLES[:2]:
        shutil.copy(FILES / name, tmp_path)
    with pytest.raises(ValueError, match="RouterBench is one file, not 2"):
        import_dataset("routerbench", tmp_path)
    with pytest.raises(ValueError, match="costs of RouterBench are in its file"):
        import_dataset("routerbench", FILES / PICKLES[0], prices=FILES / PICKLES[0])


def test_arrays_in_either_memory_order_read_alike() -> None:
    values = np.arange(6.0).reshape(2, 3)
    for array in (values, np.asfortranarray(values), values.astype(">f4"), values.astype(object)):
        for protocol in (2, 5):
            data = pickle.dumps(array, protocol)
            record = inert_pickle.InertUnpickler(io.BytesIO(data)).load()
            assert np.array_equal(inert_pickle._array(record).astype(float), values)


def test_the_written_table_is_plain_parquet() -> None:
    header = import_dataset("routerbench", FILES / PICKLES[0])
    schema = pl.read_parquet_schema(header.path)
    assert set(schema.values()) == {pl.String(), pl.Float64()}
