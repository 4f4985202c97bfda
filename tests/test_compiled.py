"""What is compiled says what the same code says in plain Python."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmqueue_gym.compiled import borrowing, compiled


@compiled
def harmonic(values):
    """Sum of reciprocals, from the left."""
    total = 0.0
    for value in values:
        total += 1.0 / value
    return total


def test_sums_are_taken_in_the_order_that_is_written():
    values = np.random.default_rng(0).exponential(size=1000)
    total = 0.0
    for value in values:
        total += 1.0 / float(value)
    assert harmonic(values) == total


@borrowing
def last_row(arrays):
    """Sum of a row, by way of a view."""
    row, total = arrays[0][-1], 0.0
    for value in row:
        total += value
    return total


def test_who_borrows_an_array_neither_keeps_nor_frees_it():
    array = np.ones((2, 3))
    holders = sys.getrefcount(array)
    assert [last_row((array,)) for _ in range(5)] == [3.0] * 5
    assert sys.getrefcount(array) == holders


def test_division_by_zero_gives_infinity_as_in_numpy():
    assert harmonic(np.zeros(1)) == np.inf


def test_without_a_folder_to_write_in_it_compiles_all_the_same():
    code = (
        "from llmqueue_gym.compiled import compiled\n"
        "namespace = {}\n"
        "exec(compile('def twice(x):\\n    return 2 * x\\n', '<nowhere>', 'exec'), namespace)\n"
        "print(compiled(namespace['twice'])(21))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_a_disk_that_is_full_costs_time_and_no_result(tmp_path):
    resource = pytest.importorskip("resource")
    code = "from test_compiled import harmonic; print(harmonic((1.0, 2.0)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        # Else Python keeps what it compiles cut off as well, and a second run meets that.
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
    )
    assert (done.stdout, done.stderr) == ("1.5\n", "")
