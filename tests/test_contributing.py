"""CONTRIBUTING's examples, followed to the letter in a copy of the packages: a file each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("llmqueue_gym", "baselines", "benchmarks")
EXAMPLE = re.compile(r"^`(\S+)`:\n\n```(\w+)\n(.*?)^```", re.DOTALL | re.M)

FOLLOW = """
import contextlib, sys
from benchmarks.cli import main
for words in (
    ["data", "import", "sums", "sums.csv"],
    ["run", "sums", "--workers", "1"],
    ["report", "results/sums", "--json"],
):
    sys.argv = ["llmqueue-bench", *words]
    with open("printed", "w") as printed, contextlib.redirect_stdout(printed):
        try:
            main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
"""


def examples() -> dict[str, list[tuple[str, str, str]]]:
    """Files of CONTRIBUTING's examples by the section they stand in: (path, language, text)."""
    sections = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.M)
    found = {text.partition("\n")[0]: EXAMPLE.findall(text) for text in sections}
    return {title: files for title, files in found.items() if files}


def patched(text: str, lines: list[str]) -> str:
    """Insert the lines of a diff that begin with + after those, with a space, that are there."""
    old = "".join(line[1:] for line in lines if line[0] == " ")
    assert text.count(old) == 1, f"CONTRIBUTING edits what is not there once: {old!r}"
    return text.replace(old, "".join(line[1:] for line in lines))


def test_each_example_touches_one_file():
    assert {title: len(files) for title, files in examples().items()} == {
        "A new agent": 1,
        "A new data set": 1,
        "A new task": 1,
        "A new metric": 1,
    }


def test_a_suite_made_by_contributing_alone(tmp_path):
    pytest.importorskip("sklearn", reason="texts become contexts: data extra")
    pytest.importorskip("typer", reason="a suite is run by the command: bench extra")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("results")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    for files in examples().values():
        for path, language, text in files:
            place = tmp_path / path
            assert place.exists() == (language == "diff"), f"CONTRIBUTING.md: {path}"
            if language == "diff":
                text = patched(place.read_text("utf-8"), text.splitlines(keepends=True))
            place.write_text(text, "utf-8")
    rng = np.random.default_rng(0)
    with (tmp_path / "sums.csv").open("w", encoding="utf-8") as file:
        file.write("question,small,large\n")
        for number in range(120):
            hard = int(rng.integers(2))
            file.write(f"{number} {'integral' if hard else 'sum'},{1 - hard},{hard}\n")
    variables = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "LLMQUEUE_GYM_CACHE": str(tmp_path / "cache"),
        "NUMBA_DISABLE_JIT": "1",  # a copy would compile everything anew
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FOLLOW],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [task] = json.loads((tmp_path / "printed").read_text("utf-8"))["tasks"]
    [row] = (row for row in task["rows"] if row["agent"] == "last-kept")
    assert row["figures"]["longest queue"]["value"] >= 1.0
