"""What is checked of a submission before anybody sees it on the board: six checks, in this order.

The workflow does the same as `llmqueue-bench submission check` on one's own machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import randbits
from typing import Any

import numpy as np
import polars as pl
from scipy.special import stdtrit

from benchmarks.commands.verify import as_text, verify
from benchmarks.plan.cells import Cell
from benchmarks.plan.suite import REFERENCES, load_suite, spec_key
from benchmarks.problems import problem_of
from benchmarks.problems.luck import LUCK_LIMIT
from benchmarks.run.engines import LocalEngine
from benchmarks.run.store import CorruptResultError
from benchmarks.score.export import ExportedRun, result_digest
from benchmarks.score.scoring import make_board, tables
from benchmarks.submissions.claim import (
    check_claim,
    is_own,
    isolation_of,
    planned_cells,
    tree_sha256,
)
from benchmarks.submissions.comment import TITLES, Findings, beside_the_best
from benchmarks.submissions.folder import Entry, read_entry
from benchmarks.submissions.frozen import find_frozen, frozen_name, plan_hash
from benchmarks.submissions.submit import check_fair
from benchmarks.wall.fence import NAMESPACES, PROCESS
from llmqueue_gym.errors import UsageError

Record = Mapping[str, Any]

FALSE_ALARM = 0.001
"""How often a fair agent is better on the public seeds than on fresh ones by chance alone."""

_TWICE = 2  # cells that are played twice


@dataclass(frozen=True)
class Settings:
    """How a check is made.

    Attributes
    ----------
    engine : LocalEngine
        Plays the cells.
    run_id, cells : int
        Number that draws the cells to be played again, and how many.
    suite : str, optional
        A suite's file, in place of the frozen suite that the submission names.
    data : Mapping[str, str]
        Data name -> path.
    against : Path, optional
        Published results that it is compared with.
    namespaces : bool
        Refuse where the kernel does not shut agents in.
    fresh : int
        Seeds a task, unknown until the check, on which the agent must do about as well.
    draw : callable
        Draws such a seed.
    """

    engine: LocalEngine
    run_id: int = 0
    cells: int = 20
    suite: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    against: Path | None = None
    namespaces: bool = False
    fresh: int = 5
    draw: Callable[[], int] = lambda: randbits(48)


def check(
    path: Path, how: Settings, on_note: Callable[[str], None] = lambda words: None
) -> Findings:
    """Make the six checks of a submission's TOML file; none after a first that fails."""
    found = Findings(path.name)

    def made(number: int, look: Callable[[], tuple[bool, str]]) -> bool:
        try:
            passed, words = look()
        except (UsageError, CorruptResultError) as error:
            passed, words = False, str(error)
        except Exception as error:  # whatever a stranger has put there
            passed, words = False, f"it holds what no run writes: {error!r}"
        found.note(number, passed, words)
        on_note(f"{'passed' if passed else 'REFUSED'}: {number}. {TITLES[number - 1]}: {words}")
        return passed

    claim: list[Claim] = []

    def read() -> tuple[bool, str]:
        claim.append(read_claim(path, how))
        return True, claim[0].words

    if made(1, read):
        [claimed] = claim
        made(2, partial(_played_again, claimed, how))
        plays = _play_here(claimed, how)
        made(3, partial(_isolated, claimed, plays, how))
        made(4, partial(_knows_no_more, claimed, plays))
        made(5, partial(_same_twice, plays))
        made(6, lambda: (True, beside_the_best(claimed.run, how.against)))
    return found


# --- 1: the file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A submission that is whole: the cells that its suite plans, and the results it claims."""

    entry: Entry
    planned: Sequence[Cell]
    run: ExportedRun
    records: Sequence[Record]

    @property
    def words(self) -> str:
        """What the first check says of it."""
        signed = f"signed by {self.entry.signed_by}" if self.entry.signed_by else "not signed"
        return f"{len(self.planned)} cells of {self.entry.submission.suite}, {signed}"


def read_claim(path: Path, how: Settings) -> Claim:
    """Read a submission and insist on what it must hold.

    Raises
    ------
    UsageError, CorruptResultError
        If something is missing or not what it should be.
    """
    entry = read_entry(path)
    mine, run = entry.submission, entry.run()
    if (here := tree_sha256(mine.agent)) != mine.code_sha256:
        raise UsageError(
            f"the source tree of {mine.agent} here has the SHA-256 {here}, not that of the "
            f"submission: check out {mine.code_url} at {mine.code_commit} and name it by --source"
        )
    suite = load_suite(how.suite or find_frozen(mine.suite).suite)
    plan, planned = planned_cells(suite, mine.agent, how.data, mine.settings)
    here = plan_hash(plan)
    if (frozen_name(suite.name, here), here) != (mine.suite, mine.plan):
        raise UsageError(
            f"suite={mine.suite!r}, plan={mine.plan} is not {suite.name} as it is here, {here}: "
            "run the suite again"
        )
    claimed = run.load_run()
    tasks = {cell.spec["task"]["name"] for cell in planned}
    if claimed["data"] != {task: dict(plan.data[task]) for task in plan.data if task in tasks}:
        raise UsageError("it names other data files than its suite")
    check_claim(claimed["cells"], planned)
    records = [_whole(spec, run.load(spec_key(spec))) for spec in claimed["cells"]]
    said = {(spec["version"], spec["protocol"]) for spec in claimed["cells"] if is_own(spec)}
    if said != {(mine.version, mine.protocol)}:
        raise UsageError(f"its cells say {sorted(said)}, not {(mine.version, mine.protocol)}")
    make_board(claimed, records, [], [])
    return Claim(entry, planned, run, records)


def _whole(spec: Record, record: Record | None) -> Record:
    """Insist on a result whose figures are numbers, with its digest."""
    where = f"{spec['task']['name']} / {spec['agent']['label']} / seed {spec['seed']}"
    if record is None:
        raise UsageError(f"{where} has no result")
    for part in ("metrics", "timing"):
        for name, value in record[part].items():
            if value is not None and not _is_number(value):
                raise UsageError(f"{where}: {part}.{name}={value!r} is no number")
    if missing := set(problem_of(spec["task"]["env"]).kind.metrics) - record["metrics"].keys():
        raise UsageError(f"{where}: metrics lack {', '.join(sorted(missing))}")
    if not isinstance(record.get("sha256"), str):
        raise UsageError(f"{where} has no digest: `llmqueue-bench submit` writes it")
    wall = record.get("wall", {"agent_seed": 0})
    if type(seed := wall["agent_seed"]) is not int or not 0 <= seed < 2**32:
        raise UsageError(f"{where}: agent_seed={seed!r} is no seed")
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


# --- 2: played again ------------------------------------------------------------------------------


def _played_again(claim: Claim, how: Settings) -> tuple[bool, str]:
    again = verify(claim.run, how.cells, how.run_id, engine=how.engine, data=how.data)
    wrong = [as_text(cell) for cell in again.checked if not cell.verified]
    words = f"{len(again.checked)} of {len(claim.planned)} cells, drawn by {how.run_id}"
    complete = len(again.checked) == min(how.cells, len(claim.planned))
    return complete and not wrong, "\n".join([words, *wrong])


# --- 3 to 5: played here --------------------------------------------------------------------------


@dataclass
class _Plays:
    """Cells that were played here: on fresh seeds, and some of the claimed ones twice.

    Attributes
    ----------
    fresh : list of dict
        Results on seeds that were drawn now, with their ``spec``.
    twice : dict of list
        Key -> digests of a cell that was played twice.
    failures : list of str
        Errors of cells.
    isolations : set of str
        How the agent was kept in.
    """

    fresh: list[Record] = field(default_factory=list)
    twice: dict[str, list[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    isolations: set[str] = field(default_factory=set)


def _play_here(claim: Claim, how: Settings) -> _Plays:
    seeds = [how.draw() for _ in range(how.fresh)]
    first = {
        (cell.spec["task"]["name"], cell.spec["agent"]["label"]): cell for cell in claim.planned
    }
    cells = [
        replace(cell, spec={**cell.spec, "seed": seed}, walled=is_own(cell.spec))
        for cell in first.values()
        for seed in seeds
    ]
    own = [cell for cell in claim.planned if is_own(cell.spec)]
    drawn = np.random.default_rng(how.run_id).permutation(len(own))[:_TWICE].tolist()
    some = [replace(own[place], walled=True, agent_seed=place) for place in drawn]
    plays = _Plays()
    for outcome in how.engine.run([*cells, *some, *some]):
        cell, payload = outcome.cell, outcome.payload
        if outcome.failed:
            plays.failures.append(f"{cell}: {payload['error']}")
            continue
        if is_own(cell.spec):
            plays.isolations.add(payload.get("wall", {}).get("isolation", "nothing"))
        if cell.agent_seed is None:
            plays.fresh.append({**payload, "spec": cell.spec})
        else:
            plays.twice.setdefault(cell.key, []).append(result_digest(payload))
    return plays


def _isolated(claim: Claim, plays: _Plays, how: Settings) -> tuple[bool, str]:
    said = isolation_of(record for record in claim.records if is_own(record["spec"]))
    if said != claim.entry.submission.isolation:
        return False, f"isolation={claim.entry.submission.isolation!r}, but its cells say {said!r}"
    allowed = {NAMESPACES} if how.namespaces else {NAMESPACES, PROCESS}
    words = f"kept in by {', '.join(sorted(plays.isolations)) or 'nothing'}"
    if plays.isolations and plays.isolations <= allowed:
        return True, words
    return False, "; ".join([f"{words}, not by {' or '.join(sorted(allowed))}", *plays.failures])


def _knows_no_more(claim: Claim, plays: _Plays) -> tuple[bool, str]:
    """Tell whether a cheat works: outcomes too lucky, or public seeds that it knows."""
    check_fair(claim.run)
    if plays.failures:
        return False, "; ".join(plays.failures)
    lucky = [
        f"luck {record['metrics']['luck']:+.1f} on a fresh seed of {record['spec']['task']['name']}"
        for record in plays.fresh
        if is_own(record["spec"]) and abs(record["metrics"].get("luck") or 0.0) > LUCK_LIMIT
    ]
    if lucky:
        return False, "; ".join(lucky)
    gain, limit = gain_of_known_seeds(_scores(claim.records), _scores(plays.fresh))
    words = f"its score is {gain:+.3f} on public seeds less that on fresh ones"
    return gain <= limit, f"{words}; chance allows up to {limit:+.3f}"


def _scores(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return the agent's scores by task."""
    found: dict[str, list[float]] = {}
    for table in tables(records):
        agents = table.filter(~pl.col("agent").is_in(REFERENCES))
        for task, score in agents.select("task", "score").drop_nulls().iter_rows():
            found.setdefault(task, []).append(score)
    return found


def gain_of_known_seeds(
    public: Mapping[str, Sequence[float]], fresh: Mapping[str, Sequence[float]]
) -> tuple[float, float]:
    """Compare scores on public and on fresh seeds, a mean over tasks.

    Returns
    -------
    gain : float
        Mean of the differences public - fresh.
    limit : float
        What a gain of nothing exceeds with probability `FALSE_ALARM` (Welch, one-sided): variances
        are those within a task and kind of seeds, added up.
    """
    tasks = sorted(public.keys() & fresh.keys())
    samples = [np.asarray(part[task], dtype=float) for task in tasks for part in (public, fresh)]
    if not samples:
        return 0.0, np.inf
    means = [float(sample.mean()) for sample in samples]
    gain = (sum(means[::2]) - sum(means[1::2])) / len(tasks)
    if min(sample.size for sample in samples) < 2:
        return gain, np.inf
    parts = np.array([sample.var(ddof=1) / sample.size for sample in samples]) / len(tasks) ** 2
    total = float(parts.sum())
    if total == 0.0:
        return gain, 0.0
    freedom = total**2 / sum(parts**2 / [sample.size - 1 for sample in samples])
    return gain, float(stdtrit(freedom, 1 - FALSE_ALARM)) * total**0.5


def _same_twice(plays: _Plays) -> tuple[bool, str]:
    other = sum(len(set(digests)) > 1 for digests in plays.twice.values())
    if plays.failures or other or not plays.twice:
        what = "; ".join(plays.failures) or f"{other} of {len(plays.twice)} cells differ"
        return False, f"{what}: draw from the seed that the agent is given, and from nothing else"
    return True, f"{len(plays.twice)} cells, each played twice with the same seeds"
