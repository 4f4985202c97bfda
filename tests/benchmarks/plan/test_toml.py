"""Whoever reads TOML from outside refuses with one error whatever is in it."""

import pytest

from benchmarks.plan.suite import load_suite, parse_suite
from benchmarks.plan.toml import DEEPEST, parse_toml
from benchmarks.score.signing import read_keys
from benchmarks.submissions.entry import read_submission
from benchmarks.submissions.folder import read_folder
from benchmarks.submissions.releases import read_releases
from llmqueue_gym.errors import UsageError

READERS = {
    "suite.toml": lambda path: load_suite(str(path)),
    "mine.toml": read_submission,
    "keys.toml": read_keys,
    "marks.toml": lambda path: read_folder(path.parent),
    "releases.toml": lambda path: read_releases(path.parent),
}
BAD = {
    "no TOML": b"a = ",
    "not UTF-8": b'a = "\xa0"',
    "too many digits": b"a = " + b"9" * 5000,
    "deep lists": b"a = " + b"[" * 5000 + b"]" * 5000,
    "deep tables": b"a" + b".a" * 5000 + b" = 1",
    "deep header": b"[a" + b".a" * 5000 + b"]",
    "cut off": b"a = " + b"[" * 5000,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_toml_is_refused_by_the_name_of_the_file(reader, content, tmp_path):
    path = tmp_path / reader
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not valid TOML: ") as raised:
        READERS[reader](path)
    assert reader in str(raised.value)


def test_the_limit_of_depth_counts_tables_and_lists():
    inner = b"[" * (DEEPEST - 2) + b"]" * (DEEPEST - 2)
    assert parse_toml(b"a.b = " + inner[1:-1], "f")["a"]["b"]
    with pytest.raises(UsageError, match="nested too deeply"):
        parse_toml(b"a.b.c = [" + inner + b"]", "f")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"matrix": {"load": "0.5"}, "tags_when": {"light": {"load": [0.5]}}}, "matrix.load|load="),
        ({"agents": [{"name": "ACQB", "settings": 3, "tune": {"c": [1, 2]}}]}, "settings"),
        ({"agents": [{"name": "known-c-mu", "label": "mine"}]}, "would rank 'known-c-mu'"),
        ({"agents": [{"name": "oracle", "label": "mine"}]}, "would rank 'oracle'"),
    ],
)
def test_a_wrong_table_in_a_suite_is_named(task, words):
    whole = {"name": "t", "env": "LLMQueue-v0", "horizon": 9, **task}
    with pytest.raises(UsageError, match=words):
        parse_suite("s", {"seeds": 1, "agents": [], "task": [whole]})
