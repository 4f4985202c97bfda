"""A run with submissions beside it: their cells are scored like its own, but never ranked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.plan.suite import REFERENCES, canonical, spec_key
from benchmarks.run.store import CorruptResultError
from benchmarks.score.scoring import Results
from benchmarks.submissions.folder import Entry

Record = dict[str, Any]


class Beside:
    """The results of a run, and of the submissions to its suite that played the same tasks.

    A submission's reference cells are left out: the run's own score everybody.

    Parameters
    ----------
    results : Results
        The run.
    entries : Sequence[Entry]
        Submissions; those to another suite, or to another version of it, are left out.

    Attributes
    ----------
    entries : dict of Entry
        Those that are in, by the label of their rows (`label_of`).
    """

    def __init__(self, results: Results, entries: Sequence[Entry]) -> None:
        self._results = results
        self._cells: dict[str, Record] = {}
        self.entries: dict[str, Entry] = {}
        run = results.load_run()
        planned = {_world(spec) for spec in run["cells"]}
        suite = re.compile(rf"{re.escape(run['suite'])}(-\d+)?")  # frozen, with a number
        specs: list[Record] = []
        for entry in entries:
            if suite.fullmatch(entry.submission.suite) and "held_out" not in run:
                own = {_world(spec): (spec, record) for spec, record in _own_cells(entry)}
                if own and own.keys() <= planned:
                    self._cells |= {spec_key(spec): record for spec, record in own.values()}
                    specs += [spec for spec, _ in own.values()]
                    self.entries[label_of(entry)] = entry
        self._run = {**run, "cells": [*run["cells"], *specs]}

    def load_run(self) -> Record:
        """Return the plan, with the submissions' cells after its own."""
        return self._run

    def load_many(
        self, keys: Iterable[str]
    ) -> Iterator[tuple[str, Mapping[str, Any] | CorruptResultError | None]]:
        """Yield every key with the result of its cell, or what is wrong with it."""
        for key in keys:
            if (own := self._cells.get(key)) is not None:
                yield key, own
            else:
                yield from self._results.load_many([key])

    def load_failure(self, key: str) -> Mapping[str, Any] | None:
        """Return the error of a failed cell, or None."""
        return self._results.load_failure(key)


def label_of(entry: Entry) -> str:
    """Return what the row of a submission is called: ``NAME (MARK)``, which is never ranked."""
    return f"{entry.submission.name} ({entry.mark})"


def _own_cells(entry: Entry) -> Iterator[tuple[Record, Record]]:
    """Yield the cells of a submission's agent under the label of its row, with their own keys."""
    run = entry.run()
    for spec in run.load_run()["cells"]:
        agent, key = spec["agent"], spec_key(spec)
        if agent["label"] in REFERENCES or spec["protocol"] != entry.submission.protocol:
            continue
        if (record := run.load(key)) is not None:
            yield {**spec, "agent": {**agent, "label": label_of(entry)}}, {**record, "key": key}


def _world(spec: Mapping[str, Any]) -> str:
    """Return what a cell is played in: task, content of the queries, and seed."""
    return canonical([spec["task"], spec.get("workload"), spec["seed"]])
