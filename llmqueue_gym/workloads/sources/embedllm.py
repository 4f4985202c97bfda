"""EmbedLLM (Zhuang et al., arXiv 2410.02223): right or wrong, 112 LLMs on 35,673 questions.

Official files: long csv, a row a question and LLM, 2.7 GB for ``train.csv``; read as a stream.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.rows import check_utf8, read_csv
from llmqueue_gym.workloads.sources import Source
from llmqueue_gym.workloads.stored import Facts, Tell, write_pool

COLUMNS = ("prompt_id", "model_id", "prompt", "label", "model_name", "category")
_FLUSH = 1_000_000
"""Rows that are collected before they go into the table."""


def read_embedllm(
    files: Sequence[Path], out: Path, prices: Path | None = None, tell: Tell | None = None
) -> Facts:
    """Convert EmbedLLM's long csv files (``train.csv``, ``val.csv``, ``test.csv``) into one table.

    A question is a ``prompt_id`` with the text of its first row, an LLM a ``model_name``. Of
    several labels of one pair the largest counts. A pair without a label is 0, as in the paper's
    code. Costs are not recorded. Memory grows with questions x LLMs and the texts of the questions,
    not with the rows.

    Parameters
    ----------
    files : sequence of Path
        csv files.
    out : Path
        Where the Parquet goes.
    prices : Path, optional
        Not taken: the file has no tokens.
    tell : callable, optional
        Called with the number of rows read so far.

    Raises
    ------
    ValueError
        If a column or cell is not as it should be; the message names file, row and column.
    """
    if prices is not None:
        raise UsageError(f"prices={str(prices)!r}: EmbedLLM records no tokens that have a price")
    table = _Table(tell)
    for path in files:
        table.read(path)
    if not table.texts:
        raise UsageError(f"{files[0]}: the file has no rows")
    labels = table.labels()
    names = list(table.llms)
    return write_pool(
        out,
        files[0] if len(files) == 1 else files[0].parent,
        ids=list(table.rows),
        texts=table.texts,
        groups=table.groups,
        quality={name: labels[:, j] for j, name in enumerate(names)},
        cost=None,
        columns={name: ("label", "") for name in names},
        notes={"repeated_pairs": table.repeated, "conflicting_texts": table.conflicts},
    )


class _Table:
    """Labels by question and LLM, filled row by row.

    Attributes
    ----------
    rows, llms : dict
        Place of each question id and LLM in the table, in order of appearance.
    texts, groups : list of str
        Text and category of each question.
    repeated, conflicts : int
        Rows of a pair that was there before, and rows whose text is not the question's first.
    """

    def __init__(self, tell: Tell | None = None) -> None:
        self._tell, self._taken = tell, 0
        self.rows: dict[str, int] = {}
        self.llms: dict[str, int] = {}
        self.texts: list[str] = []
        self.groups: list[str] = []
        self.conflicts = 0
        self.repeated = 0
        self._labels = np.full((0, 0), np.nan)
        self._row, self._llm, self._label = array("q"), array("q"), array("d")

    def read(self, path: Path) -> None:
        """Take in all rows of a file."""
        reader = read_csv(path, COLUMNS)
        header = next(reader)
        question, text, label, llm, group = (
            header.index(name)
            for name in ("prompt_id", "prompt", "label", "model_name", "category")
        )
        rows, llms, values = self.rows, self.llms, dict[str, float]()
        for number, cells in enumerate(reader, start=1):
            i = rows.get(cells[question])
            if i is None:
                i = self._new_question(path, number, cells[question], cells[text], cells[group])
            elif self.texts[i] != cells[text]:
                self.conflicts += 1
            j = llms.get(cells[llm])
            if j is None:
                j = self._new_llm(path, number, cells[llm])
            value = values.get(cells[label])
            if value is None:
                value = values[cells[label]] = _number(cells[label], path, number)
            self._row.append(i)
            self._llm.append(j)
            self._label.append(value)
            if len(self._row) >= _FLUSH:
                self._flush()

    def labels(self) -> NDArray[np.float64]:
        """Return the labels, shape (questions, LLMs); NaN where there is none."""
        self._flush()
        return self._labels

    def _new_question(self, path: Path, row: int, name: str, text: str, group: str) -> int:
        if not name:
            raise UsageError(f"{path}, row {row}, column 'prompt_id' is empty")
        self.texts.append(check_utf8(text, path, row, "prompt"))
        self.groups.append(check_utf8(group, path, row, "category"))
        self.rows[check_utf8(name, path, row, "prompt_id")] = len(self.rows)
        return len(self.rows) - 1

    def _new_llm(self, path: Path, row: int, name: str) -> int:
        if not name:
            raise UsageError(f"{path}, row {row}, column 'model_name' is empty")
        self.llms[check_utf8(name, path, row, "model_name")] = len(self.llms)
        return len(self.llms) - 1

    def _flush(self) -> None:
        """Move the collected rows into the table, which grows as needed."""
        if not self._row:
            return
        old, shape = self._labels, (len(self.rows), len(self.llms))
        if old.shape != shape:
            self._labels = np.full(shape, np.nan)
            self._labels[: old.shape[0], : old.shape[1]] = old
        place = np.frombuffer(self._row, np.int64), np.frombuffer(self._llm, np.int64)
        distinct = np.unique(np.ravel_multi_index(place, shape))
        known = ~np.isnan(self._labels.ravel()[distinct])
        self.repeated += len(self._row) - len(distinct) + int(known.sum())
        self._taken += len(self._row)
        if self._tell is not None:
            self._tell(self._taken)
        np.fmax.at(self._labels, place, np.frombuffer(self._label))
        del place
        self._row, self._llm, self._label = array("q"), array("q"), array("d")


def _number(cell: str, path: Path, row: int) -> float:
    if not cell.strip():
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise UsageError(
            f"{path}, row {row}, column 'label': expected a number in [0, 1], not {cell[:60]!r}"
        )
    return value


SOURCE = Source(
    "embedllm",
    reader=read_embedllm,
    suffixes=(".csv",),
    repository="RZ412/EmbedLLM",
    patterns=("train.csv", "val.csv", "test.csv"),
    licence="Apache-2.0",
    reference="Zhuang et al., EmbedLLM, arXiv 2410.02223",
)
