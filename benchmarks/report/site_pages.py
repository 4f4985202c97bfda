"""What the board's plain pages say: the front page, and one an agent.

A name or an address of a stranger is text here; the templates escape it, and only https leads away.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from baselines.registry import agent_spec
from benchmarks.plan.suite import REFERENCES, canonical
from benchmarks.problems import PROBLEMS
from benchmarks.report.figure import file_name
from benchmarks.report.page import script_safe
from benchmarks.report.words import interval_text
from benchmarks.score.intervals import Interval, competition_ranks
from benchmarks.score.scoring import Board
from benchmarks.score.standing import OverallRow, Standing
from benchmarks.submissions.beside import label_of
from benchmarks.submissions.entry import DIVISIONS, cells_path
from benchmarks.submissions.folder import Entry
from llmqueue_gym.errors import UsageError

_FIRST = 3  # agents of a shared rank that are named

Link = tuple[str, str | None]
"""Text, and where it leads, if anywhere."""

Facts = list[tuple[str, Sequence[Link]]]


class Cell(NamedTuple):
    """A cell of a table: links one after the other, what it sorts by, and words beside it."""

    links: Sequence[Link]
    sort: float | None = None
    note: str = ""


Row = tuple[str, Sequence[Cell]]
"""Class of a line, and its cells."""


@dataclass(frozen=True, eq=False)
class Suite:
    """A suite on the board.

    Attributes
    ----------
    name : str
    source : Path
        The export of today.
    boards : tuple of Board
        One a release, oldest first; today's is the last, with submissions on it.
    entries : Mapping of Entry
        Those submissions, by the label of their rows.
    signed_by : str
        Who vouches for the export.
    """

    name: str
    source: Path
    boards: tuple[Board, ...]
    entries: Mapping[str, Entry]
    signed_by: str

    @property
    def today(self) -> Board:
        """The last release."""
        return self.boards[-1]

    def address(self, root: str, standing: Standing, *view: str) -> str:
        """Address of a view of a section (`routes.js`), from a page that is ``root`` away."""
        place = standing.section.kind.name, standing.section.protocol, *(view or ("overview",))
        parts = "/".join(quote(part, safe="!'()*") for part in place)  # as encodeURIComponent
        return f"{root}suites/{file_name(self.name)}.html#/{parts}"


class Found(NamedTuple):
    """An agent's row in a section of one release of a suite."""

    suite: Suite
    board: Board
    standing: Standing
    row: OverallRow

    @property
    def is_today(self) -> bool:
        """Whether it is of the last release."""
        return self.board is self.suite.today


class Site:
    """The board's plain pages.

    Parameters
    ----------
    suites : Sequence[Suite]
        Suites in the order of the pages.
    entries : Sequence[Entry]
        All submissions, also those of no suite here.
    repository : str, optional
        Where the project's files are, ``https://HOST/OWNER/NAME``; without it the code and results
        of the agents that come with it are named and not linked.

    Attributes
    ----------
    entries : dict of Entry
        By label.
    pages : dict of str
        Path of each agent's page, by label.
    """

    def __init__(
        self, suites: Sequence[Suite], entries: Sequence[Entry] = (), repository: str | None = None
    ) -> None:
        self.suites = suites
        self.entries = {label_of(entry): entry for entry in entries}
        self._repository = repository
        self._found: dict[str, list[Found]] = {}
        for suite in suites:
            for board in reversed(suite.boards):
                for standing in board.standings:
                    for row in standing.rows:
                        found = Found(suite, board, standing, row)
                        self._found.setdefault(row.agent, []).append(found)
        self.pages = dict(self._pages())

    def _pages(self) -> Iterator[tuple[str, str]]:
        used: set[str] = set()
        for label in sorted(self._found.keys() - self.entries.keys()):
            stem = file_name(label)[:80]
            while stem.lower() in used:  # names that differ in what a path cannot hold
                stem += "_"
            used.add(stem.lower())
            yield label, f"agents/{stem}.html"
        for label, entry in self.entries.items():
            yield label, f"submissions/{entry.path.stem}.html"

    # --- the front page -----------------------------------------------------------------------

    def home(self) -> dict[str, Any]:
        """Return what the front page shows."""
        problems = {name: list(self._problem(name)) for name in PROBLEMS}
        divisions = {name: list(self._division(name)) for name in DIVISIONS}
        own = [label for label in self._found if label not in (*REFERENCES, *self.entries)]
        return {
            "data": script_safe({}),
            "problems": {name: rows for name, rows in problems.items() if rows},
            "divisions": {name: rows for name, rows in divisions.items() if rows},
            "held_out": list(self._held_out()),
            "agents": [("", self._agent_line(label)) for label in sorted(own, key=str.lower)],
            "guide": self._file("docs/guides/submit.md", "HEAD"),
            "suites": len(self.suites),
            "submissions": len(self.entries),
        }

    def _problem(self, name: str) -> Iterator[Row]:
        """Yield a line for each suite and protocol of a problem."""
        for suite in self.suites:
            for standing in suite.today.standings:
                if standing.section.kind.name != name:
                    continue
                tasks = suite.today.tasks_of(standing.section)
                ranked = [row for row in standing.rows if row.rank is not None]
                first = [(row.agent, self.pages[row.agent]) for row in ranked if row.rank == 1]
                more = f"and {len(first) - _FIRST} more" if len(first) > _FIRST else ""
                origins = [row.origin for row in standing.rows]
                cells = [
                    Cell([(suite.name, suite.address("", standing))]),
                    Cell(first[:_FIRST], None, more or ("" if first else "nobody is ranked")),
                    _score(ranked[0].score if ranked else None),
                    _plain(standing.section.protocol),
                    *map(_number, (len(ranked), len(tasks), sum(task.retired for task in tasks))),
                    _plain(_distinct(origin.versions for origin in origins)),
                    _plain(_distinct(origin.commits for origin in origins)),
                    _plain(suite.signed_by),
                ]
                yield "", cells

    def _agent_line(self, label: str) -> list[Cell]:
        """Return an agent's problems, and where it stands today."""
        own = [found for found in self._found[label] if found.is_today]
        problems = dict.fromkeys(found.standing.section.kind.name for found in own)
        places = [
            (
                f"{found.suite.name} {found.row.rank or ''}".rstrip(),
                found.suite.address("", found.standing),
            )
            for found in own
        ]
        return [Cell([(label, self.pages[label])]), _plain(", ".join(problems)), Cell(places)]

    def _division(self, name: str) -> Iterator[Row]:
        """Yield the submissions of a division, a line a problem."""
        for label, entry in self.entries.items():
            own = entry.submission
            if own.division != name:
                continue
            scores = [
                (found.suite.name, found.standing.section.kind.name, found.row.score)
                for found in self._found.get(label, [])
            ]
            for suite, problem, score in scores or [(own.suite, "another version of it", None)]:
                cells = [
                    Cell([(label, self.pages[label])]),
                    _score(score),
                    _plain(suite),
                    _plain(problem),
                    _number(own.tuning_runs),
                    _plain(own.trained_on or "nothing said"),
                    Cell([_code(entry)]),
                    Cell([("cells", f"submissions/{cells_path(entry.path).name}")]),
                    _plain(entry.signed_by or "nobody"),
                ]
                yield entry.mark, cells

    def _held_out(self) -> Iterator[Row]:
        """Yield the ranked rows: a rank ends where an interval lies below its leader's."""
        tables: dict[tuple[str, str, str], list[tuple[Interval, str]]] = {}
        for label, entry in self.entries.items():
            for release, scores in entry.held_out.items():
                for problem, score in scores.items():
                    place = release, problem, entry.submission.division
                    tables.setdefault(place, []).append((score, label))
        for words, own in tables.items():
            own.sort(key=lambda pair: (-pair[0].value, pair[1]))
            ranks = _unpaired_ranks([score for score, _ in own])
            for rank, (score, label) in zip(ranks, own, strict=True):
                name = Cell([(label, self.pages[label])])
                yield "", [_number(rank), name, _score(score), *map(_plain, words)]

    # --- an agent -----------------------------------------------------------------------------

    def submission(self, label: str) -> dict[str, Any]:
        """Return what a suite's page says of a submission."""
        entry = self.entries[label]
        return {"mark": entry.mark, "facts": _submission_facts(entry, "../submissions/")}

    def agent(self, label: str) -> dict[str, Any]:
        """Return what an agent's page shows."""
        entry, own = self.entries.get(label), self._found.get(label, [])
        curves = [curve for suite in self.suites for curve in _curves(suite, label)]
        today = [found for found in own if found.is_today]
        return {
            "label": label,
            "data": script_safe({"agent": label, "curves": curves, "base": "../suites/"}),
            "facts": _submission_facts(entry, "") if entry else self._built_in_facts(label),
            "commands": _commands(entry) if entry else _built_in_commands(today),
            "standings": [_standing_line(found) for found in own],
            "tasks": [line for found in today for line in _task_lines(found)],
            "curves": bool(curves),
        }

    def _built_in_facts(self, label: str) -> Facts:
        """Say what plays under a label, whose it is, and where its code and cells are."""
        played: dict[str, tuple[str, set[str]]] = {}
        for suite in self.suites:
            for cell in suite.today.cells:
                agent, commit = cell["spec"]["agent"], cell["provenance"]["commit"]
                if agent["label"] == label:
                    settings = canonical(agent["settings"]) if agent.get("settings") else ""
                    name = f"{agent['name']} {settings}".rstrip()
                    played.setdefault(name, (agent["name"], set()))[1].add(commit or "")
        facts: Facts = []
        for shown, (name, commits) in played.items():
            try:
                spec = agent_spec(name)
            except UsageError:  # a reference, or an agent of an earlier release
                continue
            path = f"{spec.target.partition(':')[0].replace('.', '/')}.py"
            code = [(f"{path}@{commit}", self._file(path, commit)) for commit in sorted(commits)]
            facts += [("Agent", [(shown, None)]), ("Source", [(spec.source, None)]), ("Code", code)]
        suites = dict.fromkeys(found.suite for found in self._found[label])
        for suite in suites:
            path = _shown(suite.source)
            text = f"{path}, signed by {suite.signed_by}"
            facts.append(("Cells", [(text, self._file(path, "HEAD"))]))
        distinct = {canonical(fact): fact for fact in facts if fact[1][0][0]}
        return list(distinct.values())

    def _file(self, path: str, commit: str) -> str | None:
        """Address of one of the project's files, if it has one."""
        if self._repository is None or not commit or "/" not in path:
            return None
        return f"{self._repository}/blob/{quote(commit.rstrip('+'))}/{quote(path)}"


# --- lines ----------------------------------------------------------------------------------------


def _standing_line(found: Found) -> Row:
    """Line of an agent's history."""
    suite, board, standing, row = found
    alike = [task.task for task in board.tasks] == [task.task for task in suite.today.tasks]
    release = "today" if found.is_today else "same tasks" if alike else "other tasks"
    cells = [
        Cell([(suite.name, suite.address("../", standing) if found.is_today else None)]),
        _number(row.rank),
        _score(row.score),
        _plain(standing.section.kind.name),
        _plain(standing.section.protocol),
        _plain(release),
        _plain(f"{row.cells} of {row.expected}" if row.planned else "no task that counts"),
        _plain(", ".join(row.origin.versions)),
        _plain(", ".join(row.origin.commits)),
    ]
    return "" if found.is_today else "earlier", cells


def _task_lines(found: Found) -> Iterator[Row]:
    """Yield an agent's lines of a section, a task each."""
    for task in found.board.tasks_of(found.standing.section):
        name = task.task["name"]
        state = "retired" if task.retired else "" if task.separates else "separates nothing"
        address = found.suite.address("../", found.standing, "task", name)
        for row in task.rows:
            if row.agent == found.row.agent:
                words = _plain(found.suite.name), _plain(found.standing.section.protocol)
                link = Cell([(name, address)], None, state)
                yield "", [link, _number(row.rank), _score(row.score), *words]


def _curves(suite: Suite, label: str) -> Iterator[tuple[str, str]]:
    """Yield the tasks that an agent played, and the file of each (`split_page`)."""
    sections = [standing.section for standing in suite.today.standings]
    tasks = chain.from_iterable(suite.today.tasks_of(section) for section in sections)
    for number, task in enumerate(tasks):
        if label in task.curves:
            name = f"{suite.name}: {task.task['name']}"
            protocol = task.section.protocol
            shown = name if protocol == "online" else f"{name}, {protocol}"
            yield shown, f"{file_name(suite.name)}/{number}"


def _submission_facts(entry: Entry, root: str) -> Facts:
    """Return what a submission says of itself, and what is known of it."""
    own = entry.submission
    held_out = [
        f"{release}, {problem}: {interval_text(score, 3)}"
        for release, scores in entry.held_out.items()
        for problem, score in scores.items()
    ]
    facts = {
        "Mark": entry.mark,
        "Replayed by": entry.replayed_by,
        "Held-out seeds": "; ".join(held_out),
        "Division": own.division,
        "Suite": f"{own.suite}, llmqueue_gym {own.version}, {own.protocol}",
        "Agent": f"{own.agent} {canonical(own.settings) if own.settings else ''}".rstrip(),
        "Tuning runs": str(own.tuning_runs),
        "Seeds tuned on": ", ".join(map(str, own.seeds_tuned_on)) or "none",
        "Trained on": own.trained_on or "nothing said",
        "Signed by": entry.signed_by or "nobody",
        "Handed in by": own.contact,
        "Licence": own.licence,
        "Played": f"{own.machine}; kept apart by {own.isolation}",
    }
    names = cells_path(entry.path).name, entry.path.name
    files = [(name, root + name) for name in names]
    linked: Facts = [("Code", [_code(entry)]), ("Cells", files)]
    return linked + [(name, [(text, None)]) for name, text in facts.items() if text]


def _commands(entry: Entry) -> list[str]:
    """Return the lines that play a submission again."""
    own = entry.submission
    file, source = f"submissions/{entry.path.name}", Path("agent", own.code_folder).as_posix()
    return [
        f"git clone {shlex.quote(own.code_url)} agent && git -C agent checkout {own.code_commit}",
        f"llmqueue-bench submission check {file} --source {shlex.quote(source)}",
    ]


def _built_in_commands(today: Sequence[Found]) -> list[str]:
    suites = dict.fromkeys(found.suite for found in today)
    return [
        line
        for suite in suites
        for line in (
            f"llmqueue-bench run {shlex.quote(suite.today.suite)}",
            f"llmqueue-bench verify {shlex.quote(_shown(suite.source))}",
        )
    ]


# --- cells ----------------------------------------------------------------------------------------


def _unpaired_ranks(scores: Sequence[Interval]) -> list[int]:
    """Ranks of scores in their order: what is known of them are intervals, no pairs of runs."""
    return competition_ranks(len(scores), lambda i, j: scores[i].low > scores[j].high)


def _code(entry: Entry) -> Link:
    """Return a submission's code at its commit; nothing but https leads there."""
    own = entry.submission
    url = own.code_url.removesuffix(".git")
    host, _, name = url.removeprefix("https://").partition("/")
    at = f"{url}/tree/{own.code_commit}" if host in ("github.com", "gitlab.com") else own.code_url
    return f"{name}@{own.code_commit[:12]}", at if at.startswith("https://") else None


def _shown(path: Path) -> str:
    """Return a path as it may be published: a machine's own folders are nobody's business."""
    return path.name if path.is_absolute() else path.as_posix()


def _plain(text: str) -> Cell:
    return Cell([(text, None)])


def _number(value: int | None) -> Cell:
    return Cell([("" if value is None else str(value), None)], value)


def _score(score: Interval | None) -> Cell:
    value, _, limits = interval_text(score, 3).partition(" ")
    return Cell([(value, None)], None if score is None else score.value, limits)


def _distinct(parts: Iterator[Sequence[str]]) -> str:
    return ", ".join(sorted(set(chain.from_iterable(parts))))
