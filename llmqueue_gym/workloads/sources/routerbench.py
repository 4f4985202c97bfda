"""RouterBench (Hu et al., arXiv 2403.12031): 36,497 queries, 11 LLMs, recorded scores and costs.

Official files: ``routerbench_0shot.pkl`` and ``routerbench_5shot.pkl``, or the same table as csv.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.rows import check_utf8, read_csv
from llmqueue_gym.workloads.sources import Source, inert_pickle
from llmqueue_gym.workloads.stored import Facts, Tell, write_pool

COST_SUFFIX = "|total_cost"
TEXT_COLUMNS = ("sample_id", "prompt", "eval_name")

Texts = dict[str, list[str | None]]
Numbers = dict[str, NDArray[np.float64]]


def read_routerbench(
    files: Sequence[Path], out: Path, prices: Path | None = None, tell: Tell | None = None
) -> Facts:
    """Convert a RouterBench file.

    The LLMs are those with a ``<llm>|total_cost`` column. A missing score is a failed call and
    counts as 0; costs (USD) are the file's, never computed. A row is a query, also if its
    ``sample_id`` was there before.

    Parameters
    ----------
    files : sequence of Path
        One ``.pkl`` or ``.csv`` file.
    out : Path
        Where the Parquet goes.
    prices : Path, optional
        Not taken: the costs are in the file.
    tell : callable, optional
        Not called: the file is read at once.

    Raises
    ------
    ValueError
        If the pickle is refused, or a column or cell is not as it should be; the message names the
        file, the row (from 1) and the column.
    """
    if prices is not None:
        raise UsageError(f"prices={str(prices)!r}: the costs of RouterBench are in its file")
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"RouterBench is one file, not {len(files)} ({names}): name the one")
    path = files[0]
    if path.suffix.lower() == ".csv":
        texts, numbers = _read_csv(path)
        return _convert(path, texts, numbers, out, {})
    texts, numbers, asked = _read_pickle(path)
    return _convert(path, texts, numbers, out, {"pickle_globals": asked})


def prompt_text(cell: str) -> str:
    """Text of a ``prompt`` cell: the lines of the list it spells out, or the cell as it is."""
    if not cell.lstrip().startswith(("[", "(")):
        return cell
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\\d" in a prompt is no concern of ours
            parts = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return cell
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return cell
    return "\n".join(parts).encode("utf-8", "replace").decode()


def _read_pickle(path: Path) -> tuple[Texts, Numbers, list[str]]:
    """Columns of a pickled table and the globals it asks for; see `inert_pickle`."""
    import polars as pl

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.parquet"
        # -I: neither the environment nor the current folder can slip in another module
        script = Path(inert_pickle.__file__).resolve()  # the process runs in a folder of its own
        command = [sys.executable, "-I", str(script), str(path.resolve()), str(table)]
        # one thread each, because threads would count against the memory limit
        env = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        env |= {"POLARS_MAX_THREADS": "1"}
        env |= {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
        try:
            done = subprocess.run(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=folder,
                timeout=inert_pickle.MAX_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(
                f"{path}: unpickling took more than {inert_pickle.MAX_SECONDS} s; "
                "a pickled table takes seconds"
            ) from error
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            answer = {"error": f"reading it ended with exit code {done.returncode} ({said})"}
        if "error" in answer:
            raise UsageError(f"{path}: {answer['error']}")
        frame = pl.read_parquet(table)
    texts = {name: frame[name].to_list() for name in TEXT_COLUMNS if name in frame.columns}
    numbers = {
        name: frame[name].to_numpy().astype(np.float64)
        for name in frame.columns
        if name not in TEXT_COLUMNS
    }
    return texts, numbers, answer["globals"]


def _read_csv(path: Path) -> tuple[Texts, Numbers]:
    rows = read_csv(path, TEXT_COLUMNS)
    header = next(rows)
    wanted = {name for name in header if name.endswith(COST_SUFFIX)}
    wanted |= {name.removesuffix(COST_SUFFIX) for name in wanted}
    for name in wanted:
        if header.count(name) > 1:
            raise UsageError(f"{path}: the header names column {name!r} more than once")
    texts: Texts = {name: [] for name in TEXT_COLUMNS}
    numbers = {name: array("d") for name in header if name in wanted}
    places = {name: header.index(name) for name in (*TEXT_COLUMNS, *numbers)}
    for row, cells in enumerate(rows, start=1):
        for name, column in texts.items():
            column.append(check_utf8(cells[places[name]], path, row, name))
        for name, values in numbers.items():
            values.append(_number(cells[places[name]], path, row, name))
    return texts, {name: np.frombuffer(values) for name, values in numbers.items() if values}


def _number(cell: str, path: Path, row: int, column: str) -> float:
    if not cell.strip():
        return np.nan
    try:
        return float(cell)
    except ValueError:
        raise UsageError(
            f"{path}, row {row}, column {column!r}: expected a number, not {cell[:60]!r}"
        ) from None


def _convert(
    path: Path, texts: Texts, numbers: Numbers, out: Path, notes: dict[str, list[str]]
) -> Facts:
    llms = sorted(n.removesuffix(COST_SUFFIX) for n in numbers if n.endswith(COST_SUFFIX))
    for name in ("prompt", "eval_name", "sample_id"):
        if name not in texts:
            raise UsageError(f"{path}: there is no column {name!r}; is it a RouterBench table?")
    if not texts["prompt"]:
        raise UsageError(f"{path}: the file has no rows")
    if not llms:
        raise UsageError(f"{path}: no column ends in {COST_SUFFIX!r}; is it a RouterBench table?")
    for llm in llms:
        if llm not in numbers:
            raise UsageError(f"{path}: column {llm + COST_SUFFIX!r} has no score column {llm!r}")
    prompts = [
        prompt_text(_required(text, path, row, "prompt"))
        for row, text in enumerate(texts["prompt"], start=1)
    ]
    return write_pool(
        out,
        path,
        ids=[text or "" for text in texts["sample_id"]],
        texts=prompts,
        groups=[text or "" for text in texts["eval_name"]],
        quality={llm: numbers[llm] for llm in llms},
        cost={llm: numbers[llm + COST_SUFFIX] for llm in llms},
        columns={llm: (llm, llm + COST_SUFFIX) for llm in llms},
        notes=notes,
    )


def _required(text: str | None, path: Path, row: int, column: str) -> str:
    if text is None:
        raise UsageError(f"{path}, row {row}, column {column!r} is empty")
    return text


SOURCE = Source(
    "routerbench",
    reader=read_routerbench,
    suffixes=(".pkl", ".csv"),
    repository="withmartian/routerbench",
    patterns=("routerbench_0shot.pkl",),
    licence="not stated on its card",
    reference="Hu et al., RouterBench, arXiv 2403.12031",
)
