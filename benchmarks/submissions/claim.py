"""The cells of a submission: those that its suite plans for the agent and the two references."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan.agent_files import find_module
from benchmarks.plan.cells import Cell, Plan, make_plan
from benchmarks.plan.held_out import HeldOut
from benchmarks.plan.suite import REFERENCES, Suite, canonical
from benchmarks.submissions.frozen import check_whole
from benchmarks.wall.fence import NAMESPACES, PROCESS
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]

_SHOWN = 3  # cells that an error names
_MOST_SOURCE = 100_000_000  # bytes of an agent's source tree


def planned_cells(
    suite: Suite,
    agent: str,
    data: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    held_out: HeldOut | None = None,
) -> tuple[Plan, list[Cell]]:
    """Return the plan of a suite with an agent, and its cells that make a submission of it.

    Parameters
    ----------
    suite : Suite
        What is played.
    agent : str
        Name or label.
    data : Mapping[str, str], optional
        Data name -> path.
    settings : Mapping[str, Any], optional
        Only the agent with these settings.
    held_out : HeldOut, optional
        Secret that seeds and variants follow from; by default the public ones.

    Raises
    ------
    UsageError
        If a task cannot run here, the agent plays none, or the suite has several of the name.
    """
    plan = make_plan(suite, agents=[agent], data=data, held_out=held_out)
    check_whole(suite, plan)
    own = [
        cell
        for cell in plan.cells
        if agent in names_of(cell.spec) and settings in (None, cell.spec["agent"]["settings"])
    ]
    if len(labels := {cell.spec["agent"]["label"] for cell in own}) > 1:
        raise UsageError(f"agent={agent!r} has several rows: name one of {sorted(labels)}")
    if not own:
        raise UsageError(f"agent={agent!r} plays no task of {suite.name}: {dict(plan.skipped)}")
    tasks = {cell.spec["task"]["name"] for cell in own}
    references = [
        cell
        for cell in plan.cells
        if cell.spec["agent"]["label"] in REFERENCES and cell.spec["task"]["name"] in tasks
    ]
    return plan, [*references, *own]


def names_of(spec: Record) -> tuple[str, str]:
    """Return the label and the name of a cell's agent."""
    return spec["agent"]["label"], spec["agent"]["name"]


def is_own(spec: Record) -> bool:
    """Whether a cell of a submission is its agent's, not a reference's."""
    return spec["agent"]["label"] not in REFERENCES


def check_claim(specs: Sequence[Record], planned: Sequence[Cell]) -> None:
    """Insist on every planned cell once, and no other.

    The version and code of this project may differ: playing again shows whether they matter.

    Raises
    ------
    UsageError
        If a cell is missing, there twice, or not planned; or is of other code of the agent.
    """
    claimed = Counter(map(_identity, specs))
    wanted = {_identity(cell.spec): cell for cell in planned}
    twice = [name for name, times in claimed.items() if times > 1]
    _none_of(map(_words, twice), "there twice")
    _none_of((_words(name) for name in claimed if name not in wanted), "not planned by the suite")
    missing = (str(cell) for name, cell in wanted.items() if name not in claimed)
    _none_of(missing, "missing: the run that made the results lacks it")
    code = {cell.spec["agent"].get("code") for cell in planned if is_own(cell.spec)}
    if {spec["agent"].get("code") for spec in specs if is_own(spec)} != code:
        raise UsageError(
            "the cells were played by other code of the agent than is here: run the suite again"
        )


def _identity(spec: Record) -> str:
    agent = {name: value for name, value in spec["agent"].items() if name != "code"}
    return canonical([spec["task"], agent, spec["seed"], spec["protocol"], spec["workload"]])


def _words(identity: str) -> str:
    task, agent, seed, *_ = json.loads(identity)
    return f"{task['name']} / {agent['label']} / seed {seed}"


def _none_of(names: Iterable[str], what: str) -> None:
    found = list(names)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(f"cells {what}: {'; '.join(found[:_SHOWN])}{more}")


def isolation_of(records: Iterable[Record]) -> str:
    """Return how the agent was kept in, the weakest way of its cells.

    Raises
    ------
    UsageError
        If it was not behind the wall in one of them.
    """
    ways = {str(record.get("wall", {}).get("isolation")) for record in records}
    if not ways <= {NAMESPACES, PROCESS}:
        raise UsageError(
            "the agent did not play behind the wall: run the suite with --wall, on Linux or macOS"
        )
    return PROCESS if PROCESS in ways else NAMESPACES


def tree_sha256(agent: str) -> str:
    """SHA-256 of an agent's source tree: all files of the package it lies in, or its one module.

    Nothing is imported. Caches and hidden files do not count.

    Parameters
    ----------
    agent : str
        ``"pkg.mod:Class"``, or a name of this project's, whose package is then ``baselines``.

    Raises
    ------
    UsageError
        If there is no such module, or it holds links or more than 100 MB.
    """
    from baselines.registry import agent_spec

    top = agent_spec(agent).target.partition(":")[0].partition(".")[0]
    found = find_module(top)
    if found is None or found.origin is None:
        raise UsageError(f"agent={agent!r}: there is no module {top!r} here; see --source")
    folder = next(iter(found.submodule_search_locations or ()), None)
    root = Path(folder or found.origin).parent
    paths = sorted(_source_files(Path(folder))) if folder else [Path(found.origin)]
    if sum(path.stat().st_size for path in paths) > _MOST_SOURCE:
        raise UsageError(f"agent={agent!r}: {top} holds more than {_MOST_SOURCE:,} bytes")
    digest = hashlib.sha256()
    for path in paths:
        content, name = path.read_bytes(), path.relative_to(root).as_posix()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _source_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts):
            continue
        if path.is_symlink():
            raise UsageError(f"{path} is a symbolic link: hand in what it leads to")
        if path.is_file():
            yield path
