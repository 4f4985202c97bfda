"""Seeds drawn from a secret: the same for who has it, unknown to others, and paired over tasks."""

import hashlib
import hmac

import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.held_out import read_held_out
from benchmarks.plan.suite import parse_suite
from llmqueue_gym.errors import UsageError

TASK = {"env": "LLMQueue-v0", "horizon": 10, "kwargs": {}}
SUITE = {"seeds": 3, "agents": [], "task": [{**TASK, "name": name} for name in ("a", "b")]}


def test_a_plan_has_the_seeds_of_its_secret_and_names_it_by_a_digest(tmp_path):
    (tmp_path / "secret").write_bytes(b"  sixteen bytes and more\n")
    held_out = read_held_out(tmp_path / "secret")
    plan = make_plan(parse_suite("s", SUITE), held_out=held_out)
    by_task = {}
    for cell in plan.cells:
        by_task.setdefault(cell.spec["task"]["name"], []).append(cell.spec["seed"])
    assert by_task["a"] == by_task["b"]
    assert len(set(by_task["a"])) == 3
    drawn = hmac.new(b"sixteen bytes and more", b"2", hashlib.sha256).hexdigest()
    assert by_task["a"][2] == int(drawn, 16) >> (256 - 53)
    assert plan.held_out.digest == hashlib.sha256(b"sixteen bytes and more").hexdigest()
    public = make_plan(parse_suite("s", SUITE))
    assert not {c.key for c in public.cells} & {c.key for c in plan.cells}


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_a_file_that_is_no_secret_is_refused(tmp_path, content):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"held_out='.*secret' (cannot be read|holds \d bytes)"):
        read_held_out(path)
