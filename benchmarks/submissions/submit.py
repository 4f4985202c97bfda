"""``llmqueue-bench submit``: from a results folder to the two files that are handed in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llmqueue_gym
from benchmarks.plan.cells import Cell, Plan
from benchmarks.plan.suite import load_suite, spec_key
from benchmarks.run.store import CorruptResultError, Store
from benchmarks.score.export import ExportedRun, export_run
from benchmarks.score.scoring import make_board
from benchmarks.score.signing import public_key, sign
from benchmarks.submissions.claim import (
    check_claim,
    is_own,
    isolation_of,
    planned_cells,
    tree_sha256,
)
from benchmarks.submissions.entry import (
    Submission,
    cells_path,
    file_digest,
    submission_path,
    write_submission,
)
from benchmarks.submissions.folder import message_of
from benchmarks.submissions.frozen import frozen_name, plan_hash
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Some cells of a run, to be exported or scored by themselves."""

    run: dict[str, Any]
    records: Mapping[str, dict[str, Any]]

    def load_run(self) -> dict[str, Any]:
        """Return the plan, of these cells alone."""
        return self.run

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the result of a cell, or None."""
        return self.records.get(key)

    def load_failure(self, key: str) -> dict[str, Any] | None:
        """Return None: cells without a result are no part."""
        return None


def submit(
    results: Path | str,
    agent: str,
    *,
    name: str,
    code: str,
    folder: Path,
    suite: str | None = None,
    data: Mapping[str, str] | None = None,
    key: Path | None = None,
    **said: Any,
) -> Path:
    """Write the two files of a submission; return the path of the TOML file.

    Parameters
    ----------
    results : Path or str
        Results folder or URL.
    agent : str
        ``"pkg.mod:Class"``, or the label that the suite gives it.
    name : str
        What the row is to be called.
    code : str
        ``URL@COMMIT`` of the agent's code.
    folder : Path
        Where the files go.
    suite : str, optional
        Built-in suite or TOML file; by default the one that was run.
    data : Mapping[str, str], optional
        Data name -> path.
    key : Path, optional
        Private key that signs the submission.
    **said
        Other attributes of `Submission` that only its author knows.

    Raises
    ------
    UsageError
        If a planned cell is missing or there twice, the agent was not behind the wall, or an oracle
        was beaten.
    """
    url, mark, commit = code.rpartition("@")
    if not mark:
        raise UsageError(f"code={code!r} must read URL@COMMIT")
    store = Store(results)
    run = store.load_run()
    if "held_out" in run:
        raise UsageError(f"{results} were played on held-out seeds: hand in those of public ones")
    chosen = load_suite(suite or run["suite"])
    plan, planned = planned_cells(chosen, agent, data)
    part = _part(store, run, plan, planned)
    own = [record for record in part.records.values() if is_own(record["spec"])]
    spec, plan_id = own[0]["spec"], plan_hash(plan)
    mine = Submission(
        name=name,
        agent=spec["agent"]["name"],
        settings=spec["agent"]["settings"],
        code_url=url,
        code_commit=commit,
        code_sha256=tree_sha256(spec["agent"]["name"]),
        suite=frozen_name(chosen.name, plan_id),
        plan=plan_id,
        version=llmqueue_gym.__version__,
        protocol=spec["protocol"],
        machine=str(own[0]["provenance"].get("machine", "")),
        isolation=isolation_of(own),
        wall_seconds=round(sum(record["timing"]["wall_seconds"] for record in own), 1),
        cells_sha256="0" * 64,
        **said,
    )
    check_fair(part)
    path = submission_path(mine, folder)
    export_run(part, cells_path(path), digests=True)
    mine = replace(mine, cells_sha256=file_digest(cells_path(path).read_bytes()))
    return write_submission(signed(mine, key) if key else mine, folder)


def signed(submission: Submission, key: Path) -> Submission:
    """Return a submission with the signature of a private key."""
    named = replace(submission, key=public_key(key), signature="0" * 128)
    return replace(named, signature=sign(key, message_of(named)).value)


def _part(store: Store, run: Record, plan: Plan, planned: Sequence[Cell]) -> Part:
    """Read the results of the planned cells.

    Raises
    ------
    UsageError
        If one is missing, there twice, or has no result.
    """
    labels = {cell.spec["agent"]["label"] for cell in planned}
    tasks = {cell.spec["task"]["name"] for cell in planned}
    specs = [
        spec
        for spec in run["cells"]
        if spec["agent"]["label"] in labels and spec["task"]["name"] in tasks
    ]
    check_claim(specs, planned)
    records = {}
    for key, record in store.load_many([spec_key(spec) for spec in specs]):
        if isinstance(record, CorruptResultError):
            raise record
        if record is None:
            why = (store.load_failure(key) or {}).get("error", "it was not played")
            raise UsageError(f"a planned cell has no result: {why}; the same run computes the rest")
        records[key] = record
    data = {task: dict(plan.data[task]) for task in plan.data if task in tasks}
    kept = {"suite": run["suite"], "skipped": {}, "data": data, "cells": specs}
    return Part({**kept, "provenance": run["provenance"]}, records)


def check_fair(part: Part | ExportedRun) -> None:
    """Insist on an agent that beats no oracle, and is no luckier than its choices allow.

    Raises
    ------
    UsageError
        If it does, or is.
    """
    run = part.load_run()
    found = [part.load(spec_key(spec)) for spec in run["cells"]]
    board = make_board(run, [record for record in found if record is not None], [], [])
    if board.violations:
        raise UsageError("; ".join(board.violations))


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds as they are typed: ``0-4,7``.

    Raises
    ------
    UsageError
        If it is not that.
    """
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*(\d{1,15})(?:-(\d{1,15}))?\s*", part, re.ASCII)
        if match is None or int(match[2] or match[1]) - int(match[1]) > 1000:
            raise UsageError(f"seeds={text!r} must read like 0-4,7")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(seeds)
