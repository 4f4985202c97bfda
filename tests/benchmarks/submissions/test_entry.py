"""A submission's file: written and read alike, and whatever else a stranger sends is refused."""

import gzip
import json
import tomllib
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.run.store import CorruptResultError
from benchmarks.score.export import ExportedRun
from benchmarks.submissions.entry import (
    MOST_BYTES,
    Submission,
    cells_path,
    file_digest,
    load_submission,
    parse_submission,
    read_submission,
    slug,
    submission_text,
    toml_value,
    write_submission,
)
from benchmarks.submissions.folder import Entry, read_folder
from llmqueue_gym.errors import UsageError

OURS = Submission(
    name="Ours, the 1st",
    contact="@handle",
    agent="pkg.mod:Class",
    settings={"rate": 0.1, "layers": [64, 64], "deep": {"on": True, "é": 'a "b" \\ c'}},
    code_url="https://example.org/a/b",
    code_commit="0123456789" * 4,
    code_sha256="ab" * 32,
    suite="quick-1",
    plan="cd" * 32,
    version="0.1.0",
    protocol="online",
    seeds_tuned_on=(0, 1),
    tuning_runs=3,
    trained_on="nothing",
    machine="a machine, 2 cores, Linux",
    isolation="namespaces",
    wall_seconds=1e16,
    cells_sha256="ef" * 32,
)
LINES = st.text(st.characters(codec="utf-8"), max_size=12).filter(
    lambda text: all(map(str.isprintable, text))
)
PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e300, 1e300) | LINES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LINES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(
    name=LINES.map(lambda text: "x" + " ".join(text.split())),
    chosen=st.dictionaries(LINES, PLAIN, max_size=3),
    seconds=st.floats(0, 1e300),
)
def test_what_is_written_is_read_again(name, chosen, seconds):
    mine = replace(OURS, name=name, settings=chosen, wall_seconds=seconds)
    assert load_submission(submission_text(mine).encode()) == mine


def test_a_file_keeps_its_name_and_folder(tmp_path):
    path = write_submission(OURS, tmp_path)
    assert path.parent == tmp_path
    assert read_submission(path) == OURS
    path.rename(tmp_path / "theirs.toml")
    with pytest.raises(UsageError, match=r"theirs\.toml: .* is ours-the-1st\.toml"):
        read_submission(tmp_path / "theirs.toml")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Ours", "ours"),
        ("../../etc/passwd", "etc-passwd"),
        ("a b\\c:d*e", "a-b-c-d-e"),
        (".hidden", "hidden"),
        ("Über-Router 2.0", "uber-router-2.0"),
        ("\u202egnp.exe", "gnp.exe"),
    ],
)
def test_a_name_makes_a_harmless_file(name, stem):
    assert slug(name) == stem


@pytest.mark.parametrize("name", ["", "..", "///", "名前", "a\nb", "a\x1b[31m", "x" * 61, " x", 3])
def test_a_name_without_letters_or_with_control_characters_is_refused(name):
    with pytest.raises(UsageError, match="name="):
        replace(OURS, name=name)


def test_two_names_with_the_same_files_do_not_overwrite_each_other(tmp_path):
    write_submission(replace(OURS, name="A B"), tmp_path)
    write_submission(replace(OURS, name="A B", contact=""), tmp_path)
    with pytest.raises(UsageError, match="would overwrite"):
        write_submission(replace(OURS, name="a/b"), tmp_path)


WRONG = {
    "agent": ["os.system('x')", "a:b:c", "a b:C", 1],
    "code_url": ["http://example.org/a", "https://u:p@example.org/a", "file:///etc", "-oProxy=x"],
    "code_commit": ["main", "0123", "--upload-pack=x"],
    "code_folder": ["/etc", "../x", "a/../../b", "C:\\x", ""],
    "code_sha256": ["", "AB" * 32],
    "contact": ["handle", "@a b", "@a\n"],
    "suite": ["../quick", ""],
    "protocol": ["offline", None],
    "division": ["both", "closed"],
    "tuning_runs": [-1, 1.5, True],
    "seeds_tuned_on": ["0", [-1], [0.5], list(range(1001))],
    "settings": [{"a": float("nan")}, {"a": "\x1b"}, [1], {"a": "x" * 9000}],
    "wall_seconds": [-1, float("inf"), "1"],
    "key": ["ab" * 32],
    "schema": [0, 2, "1"],
    "isolation": ["none"],
}


@pytest.mark.parametrize(("key", "value"), [(key, v) for key in WRONG for v in WRONG[key]])
def test_a_wrong_value_is_refused_by_the_name_of_its_key(key, value):
    with pytest.raises(UsageError, match=key):
        parse_submission({**asdict(OURS), key: value})


@given(st.binary(max_size=300) | LINES.map(str.encode))
def test_no_file_does_more_than_be_refused(content):
    with pytest.raises(UsageError):
        load_submission(content)


@given(place=st.integers(0, 900), cut=st.integers(0, 30), put=st.binary(max_size=8))
def test_an_edited_file_is_a_submission_or_is_refused(place, cut, put):
    text = submission_text(OURS).encode()
    refused_or_read(lambda: load_submission(text[:place] + put + text[place + cut :]))


@given(key=st.sampled_from(sorted(asdict(OURS))), value=PLAIN | st.none() | st.dates())
def test_no_value_does_more_than_be_refused(key, value):
    refused_or_read(lambda: parse_submission({**asdict(OURS), key: value}))


def refused_or_read(read):
    try:
        found = read()
    except UsageError:
        return
    assert load_submission(submission_text(found).encode()) == found


def test_keys_that_are_unknown_or_missing_are_named():
    with pytest.raises(UsageError, match="'mark' is not known"):
        parse_submission({**asdict(OURS), "mark": "held-out"})
    with pytest.raises(UsageError, match="plan is missing"):
        parse_submission({key: value for key, value in asdict(OURS).items() if key != "plan"})


@pytest.mark.parametrize("content", [b"a = " + b"[" * 20_000, b"#" * (MOST_BYTES + 1)])
def test_a_deep_or_long_file_is_refused(tmp_path, content):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"TOML|bytes"):
        read_submission(tmp_path / "x.toml")


# --- the cells ------------------------------------------------------------------------------------


def test_cells_are_those_that_are_named_and_unpack_to_so_much_only(tmp_path):
    content = gzip.compress(b" " * 10**7)
    mine = replace(OURS, cells_sha256=file_digest(content))
    entry = Entry(mine, write_submission(mine, tmp_path))
    cells_path(entry.path).write_bytes(content)
    with pytest.raises(CorruptResultError, match="unpacks to more than 1,000 bytes"):
        ExportedRun(cells_path(entry.path), content, 1_000)
    with pytest.raises(CorruptResultError, match="no export"):
        entry.run()
    cells_path(entry.path).write_bytes(content + b"x")
    with pytest.raises(UsageError, match="was changed"):
        entry.run()


@pytest.mark.parametrize("content", [[], {}, {"run": {}, "shared": [], "groups": [{}]}, 3, None])
def test_an_export_of_nonsense_is_refused_in_words(tmp_path, content):
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    document = {"format": "llmqueue-bench export", "schema": 2, "content": content}
    document["checksum"] = file_digest(text.encode())
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    with pytest.raises(CorruptResultError, match=r"x\.json\.gz"):
        ExportedRun(path)


# --- the folder -----------------------------------------------------------------------------------


def test_a_mark_holds_for_the_bytes_that_were_checked(tmp_path):
    path = write_submission(OURS, tmp_path)
    assert [entry.mark for entry in read_folder(tmp_path)] == ["self-reported"]
    marks = f'[{path.stem}]\nsha256 = "{file_digest(path.read_bytes())}"\nreplayed = "run 7"\n'
    (tmp_path / "marks.toml").write_text(marks)
    [entry] = read_folder(tmp_path)
    assert (entry.mark, entry.replayed_by, entry.ranked) == ("replayed", "run 7", False)
    held = f'[{path.stem}.held_out."0.2.0"]\nqueueing = [0.7, 0.6, 0.8]\n'
    for wrong in ("held_out = 3", 'held_out = { "0.2.0" = 3 }', "held_out = { r = { q = [1] } }"):
        (tmp_path / "marks.toml").write_text(f"{marks}{wrong}\n")
        with pytest.raises(UsageError, match="holds no scores"):
            read_folder(tmp_path)
    (tmp_path / "marks.toml").write_text(marks + held)
    [entry] = read_folder(tmp_path)
    assert entry.ranked
    assert entry.held_out["0.2.0"]["queueing"].low == 0.6
    write_submission(replace(OURS, tuning_runs=0), tmp_path)
    assert [entry.mark for entry in read_folder(tmp_path)] == ["self-reported"]
    assert tomllib.loads(path.read_text("utf-8"))["tuning_runs"] == 0


def test_a_changed_byte_of_a_signed_submission_is_noticed(tmp_path):
    pytest.importorskip("cryptography")
    from benchmarks.score.signing import new_key, public_key, sign
    from benchmarks.submissions.folder import message_of

    (tmp_path / "s").mkdir()
    public = new_key(tmp_path / "my key")
    mine = replace(OURS, key=public_key(tmp_path / "my key"), signature="0" * 128)
    mine = replace(mine, signature=sign(tmp_path / "my key", message_of(mine)).value)
    path = write_submission(mine, tmp_path / "s")
    assert read_folder(tmp_path / "s")[0].signed_by == f"an unknown key, {public[:12]}"
    (tmp_path / "s" / "keys.toml").write_text(f'"@handle" = "{public}"\n')
    assert read_folder(tmp_path / "s")[0].signed_by == "@handle"
    unsigned = write_submission(replace(OURS, name="Theirs"), tmp_path / "s")
    with pytest.raises(UsageError, match=r"@handle has a key in keys\.toml, and has"):
        read_folder(tmp_path / "s")
    unsigned.unlink()
    path.write_text(path.read_text("utf-8").replace("tuning_runs = 3", "tuning_runs = 2"), "utf-8")
    with pytest.raises(UsageError, match="was changed after it was signed"):
        read_folder(tmp_path / "s")
    with pytest.raises(UsageError, match="is there already"):
        new_key(tmp_path / "my key")
    with pytest.raises(UsageError, match="is no key"):
        sign(path, b"")


_PLAIN = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=8,
)


@given(_PLAIN)
def test_a_plain_value_comes_back_from_toml(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value
