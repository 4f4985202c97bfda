"""All submissions of a folder, as a board shows them: each with its mark and who signed it.

Marks are given by maintainers, in ``marks.toml``, and bound to the bytes that were checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.plan.suite import MARKS, canonical
from benchmarks.plan.toml import parse_toml
from benchmarks.run.store import write_text
from benchmarks.score.export import ExportedRun
from benchmarks.score.intervals import Interval
from benchmarks.score.signing import KEYS, Signature, is_signed, read_keys, signer
from benchmarks.submissions.entry import (
    Submission,
    cells_path,
    file_digest,
    read_limited,
    read_submission,
    toml_line,
    toml_value,
)
from benchmarks.submissions.releases import RELEASES
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

MARKS_FILE = "marks.toml"

_WRITTEN = "`llmqueue-bench submission mark` writes it"
_HEAD = """\
# What maintainers have checked, by the file's name; `llmqueue-bench submission mark` writes it. A
# changed byte of the file, and its marks are gone. A score on held-out seeds and its interval stand
# by release and problem.
"""

MOST_CELLS_BYTES = 8_000_000
"""Of a submission's cells, as they are packed."""

MOST_UNPACKED = 64_000_000
"""Bytes of a submission's cells when they are unpacked."""


@dataclass(frozen=True)
class Entry:
    """A submission in its folder.

    Attributes
    ----------
    submission : Submission
        What it says of itself.
    path : Path
        Its TOML file.
    mark : str
        One of `MARKS`.
    signed_by : str or None
        Name of the key that signed it, words for a key that is not in ``keys.toml``; None if it is
        not signed.
    replayed_by : str
        Which check played it again, for example the workflow's run; empty if none did.
    held_out : Mapping of str
        Release -> problem -> score on that release's held-out seeds, oldest first.
    """

    submission: Submission
    path: Path
    mark: str = MARKS[0]
    signed_by: str | None = None
    replayed_by: str = ""
    held_out: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)

    @property
    def ranked(self) -> bool:
        """Whether the row takes part in the ranking."""
        return self.mark == MARKS[-1]

    def run(self) -> ExportedRun:
        """Read the cells that it claims: the agent's, and the references' on the same seeds.

        Raises
        ------
        UsageError
            If they are not the bytes that the submission names.
        CorruptResultError
            If they are no export.
        """
        path = cells_path(self.path)
        try:
            content = read_limited(path, MOST_CELLS_BYTES)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        if file_digest(content) != self.submission.cells_sha256:
            raise UsageError(f"{path} is not the file that {self.path.name} names: it was changed")
        return ExportedRun(path, content, MOST_UNPACKED)


def read_folder(folder: Path) -> list[Entry]:
    """Read all submissions of a folder, by the names of their files.

    Raises
    ------
    UsageError
        If a file is no submission, or was changed after it was signed.
    """
    others = (KEYS, MARKS_FILE, RELEASES)
    names = sorted(path for path in folder.glob("*.toml") if path.name not in others)
    known, marks = read_keys(folder / KEYS), _read_marks(folder / MARKS_FILE)
    return [_marked(read_entry(path, known), marks.get(path.stem, {})) for path in names]


def read_entry(path: Path, known: Mapping[str, str] | None = None) -> Entry:
    """Read one submission, without its mark; ``known`` are the keys beside it.

    Raises
    ------
    UsageError
        If it is none, was changed after it was signed, or is in the name of somebody who has a key
        and did not sign it.
    """
    submission, signed_by = read_submission(path), None
    known = read_keys(path.parent / KEYS) if known is None else known
    if submission.signature:
        signature = Signature(submission.key, submission.signature)
        if not is_signed(message_of(submission), signature):
            raise UsageError(f"{path} was changed after it was signed: sign it again")
        signed_by = signer(signature, known)
    if signed_by != submission.contact and submission.contact in known.values():
        raise UsageError(
            f"{path}: {submission.contact} has a key in {KEYS}, and has not signed this: sign it "
            "by --sign"
        )
    return Entry(submission, path, signed_by=signed_by)


def message_of(submission: Submission) -> bytes:
    """Return what a submission's signature is over: all its keys but the signature."""
    return b"llmqueue-bench submission\n" + canonical(submission.facts()).encode()


# --- marks ----------------------------------------------------------------------------------------


def _read_marks(path: Path) -> dict[str, Any]:
    marks = parse_toml(path.read_bytes(), str(path)) if path.is_file() else {}
    for name, mark in marks.items():
        if not isinstance(mark, dict):
            raise UsageError(f"{path}: {name} = {mark!r} is no mark: {_WRITTEN}")
    return marks


def note_mark(path: Path, **given: Any) -> None:
    """Note what a maintainer has checked: ``replayed``, or ``held_out`` of one more release.

    Marks that were given to other bytes of the file are gone.
    """
    marks = _read_marks(path.parent / MARKS_FILE)
    own = marks.get(path.stem, {})
    if not _holds(own, path):
        own = {"sha256": file_digest(path.read_bytes())}
    held_out = {**own.get("held_out", {}), **given.pop("held_out", {})}
    marks[path.stem] = {**own, **given} | ({"held_out": held_out} if held_out else {})
    tables = (
        f"\n[{toml_value(name)}]\n{''.join(map(toml_line, own.items()))}"
        for name, own in sorted(marks.items())
    )
    write_text(path.parent / MARKS_FILE, _HEAD + "".join(tables))


def _holds(mark: Mapping[str, Any], path: Path) -> bool:
    """Whether a mark was given to the bytes of a file."""
    return bool(mark.get("sha256") == file_digest(path.read_bytes()))


def _marked(entry: Entry, mark: Mapping[str, Any]) -> Entry:
    """Return an entry with its mark; none if it was changed since it was given."""
    if not _holds(mark, entry.path):
        return entry
    for key in mark:
        checks.choice(f"{MARKS_FILE}: key", key, ("sha256", "replayed", "held_out"))
    try:
        held_out = {
            release: {problem: Interval(*map(float, found)) for problem, found in own.items()}
            for release, own in mark.get("held_out", {}).items()
        }
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{MARKS_FILE}: held_out of {entry.path.stem} holds no scores: {_WRITTEN}"
        ) from error
    replayed = str(mark.get("replayed", ""))
    given = MARKS[2] if held_out else MARKS[1] if replayed else MARKS[0]
    return replace(entry, mark=given, replayed_by=replayed, held_out=held_out)
