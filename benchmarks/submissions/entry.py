"""A submission: a small TOML file, and beside it the cells that it claims (an export).

Both come from strangers: sizes are looked at before anything is read, and nothing is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.plan.suite import PROTOCOLS, canonical
from benchmarks.plan.toml import parse_toml
from benchmarks.run.store import write_text
from benchmarks.wall.fence import NAMESPACES, PROCESS
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import printable

SCHEMA = 1
"""Version of `Submission`: another one is refused in words."""

DIVISIONS = ("open", "closed")
"""``open``: tuned on the public seeds, any training data. ``closed``: the default settings over all
tasks, tuned on nothing of the suite."""

MOST_BYTES = 64_000
"""Of a submission's TOML file; a longer one is not read."""

_MOST_SETTINGS = 8_000  # characters of JSON
_MOST_SEEDS = 1_000


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What ``submissions/NAME.toml`` says; each attribute is a key of the file.

    Attributes
    ----------
    name : str
        What the row is called; `slug` of it names the files.
    contact : str
        ``@handle`` of who answers for it; may be empty.
    agent : str
        ``"pkg.mod:Class"`` below `code_folder`.
    settings : Mapping[str, Any]
        Keyword settings of the agent; empty for its defaults.
    code_url, code_commit : str
        Where the code is: an https URL that git clones, and the commit.
    code_folder : str
        Folder of that repository to put onto Python's path, ``"."`` for its top.
    code_sha256 : str
        SHA-256 of the agent's source tree (`benchmarks.submissions.submit.tree_sha256`).
    licence : str
        Of the code, as its SPDX name; may be empty.
    suite, plan : str
        Frozen name of the suite, ``"quick-1"``, and the hash of its plan
        (`benchmarks.submissions.frozen`).
    version : str
        Of llmqueue_gym, as the cells were played.
    protocol : str
        ``"online"`` or ``"pretrained"``.
    division : str
        One of `DIVISIONS`.
    trained_on : str
        The leakage field: what the agent was trained on before, in words; may be empty.
    tuning_runs : int
        Runs of the suite by which its settings were chosen.
    seeds_tuned_on : tuple of int
        Seeds of those runs.
    machine : str
        Where it was played.
    isolation : str
        How the agent was kept in: ``"namespaces"`` or ``"process"``.
    wall_seconds : float
        Time of the agent's cells, added up.
    cells_sha256 : str
        SHA-256 of the file ``NAME.cells.json.gz``.
    key, signature : str
        Public key of who signed it and the signature (ed25519, hexadecimal), or both empty.
    schema : int
        `SCHEMA`.
    """

    name: str
    contact: str = ""
    agent: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    code_url: str
    code_commit: str
    code_folder: str = "."
    code_sha256: str
    licence: str = ""
    suite: str
    plan: str
    version: str
    protocol: str
    division: str = "open"
    trained_on: str = ""
    tuning_runs: int = 0
    seeds_tuned_on: tuple[int, ...] = ()
    machine: str
    isolation: str
    wall_seconds: float
    cells_sha256: str
    key: str = ""
    signature: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        schema = checks.count("schema", self.schema)
        if schema != SCHEMA:
            raise UsageError(
                f"schema={schema} is not {SCHEMA}, which this llmqueue_gym reads: use the version "
                "that wrote it"
            )
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if bool(self.key) != bool(self.signature):
            raise UsageError("key and signature belong together: give both or neither")
        if self.division == "closed" and (self.settings or self.seeds_tuned_on or self.tuning_runs):
            raise UsageError(
                "division='closed' is for default settings, tuned on nothing of the suite: leave "
                "out settings, tuning_runs and seeds_tuned_on, or say division='open'"
            )
        slug(self.name)

    def facts(self) -> dict[str, Any]:
        """Return all keys of the file but the signature, which is over these."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "signature"}
        return {**own, "settings": dict(self.settings), "seeds_tuned_on": list(self.seeds_tuned_on)}


def slug(name: str) -> str:
    """Return the name of a submission's files: ASCII letters, digits and ``._+-``.

    Raises
    ------
    UsageError
        If nothing is left of the name.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^a-z0-9._+-]+", "-", plain.lower()).strip("-._+")
    if not stem:
        raise UsageError(f"name={name!r} must hold a letter from a to z, or a digit")
    return stem


# --- reading and writing --------------------------------------------------------------------------


def read_submission(path: Path) -> Submission:
    """Read a submission's TOML file.

    Raises
    ------
    UsageError
        If it is too long, no TOML, or says something else than a submission does.
    """
    try:
        submission = load_submission(read_limited(path, MOST_BYTES))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if path.name != f"{slug(submission.name)}.toml":
        raise UsageError(f"{path}: a submission of this name is {slug(submission.name)}.toml")
    return submission


def load_submission(content: bytes) -> Submission:
    """Turn the content of a submission's TOML file into a submission; see `read_submission`."""
    return parse_submission(parse_toml(content, "the file"))


def parse_submission(document: Mapping[str, Any]) -> Submission:
    """Turn a parsed TOML document into a submission.

    Raises
    ------
    UsageError
        If a key is unknown, missing or holds something else than `Submission` says.
    """
    known = {one.name: one for one in fields(Submission)}
    for key in document:
        if key not in known:
            raise checks.unknown_name("key", key, known)
    for name in (*_NEEDED, "schema"):
        if name not in document:
            raise UsageError(f"{name} is missing: `llmqueue-bench submit` writes all keys")
    return Submission(**document)


def write_submission(submission: Submission, folder: Path) -> Path:
    """Write ``NAME.toml`` into a folder; return its path.

    Raises
    ------
    UsageError
        If another name has the same files there.
    """
    path = submission_path(submission, folder)
    write_text(path, submission_text(submission))
    return path


def submission_path(submission: Submission, folder: Path) -> Path:
    """Return where ``NAME.toml`` goes in a folder; see `write_submission`."""
    path = folder / f"{slug(submission.name)}.toml"
    if path.exists() and (there := read_submission(path).name) != submission.name:
        raise UsageError(f"name={submission.name!r} would overwrite {path}, which is {there!r}")
    return path


def submission_text(submission: Submission) -> str:
    """Return the TOML file of a submission."""
    head = "# Written by `llmqueue-bench submit`; every byte counts for its signature and marks.\n"
    own = {**submission.facts(), "signature": submission.signature}
    return head + "".join(map(toml_line, own.items()))


def cells_path(toml: Path) -> Path:
    """Return the path of the cells that belong to a submission's TOML file."""
    return toml.with_name(f"{toml.name.removesuffix('.toml')}.cells.json.gz")


def read_limited(path: Path, most: int) -> bytes:
    """Read a file of at most so many bytes, and nothing of a longer one or of what is no file."""
    try:
        if not path.is_file():
            raise UsageError("there is no such file")
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise UsageError(f"it cannot be read: {error}") from error
    if len(content) > most:
        raise UsageError(f"it has more than {most:,} bytes, and is not read")
    return content


def file_digest(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def toml_line(pair: tuple[str, Any]) -> str:
    """Return a key and its checked value as a line of TOML."""
    return f"{pair[0]} = {toml_value(pair[1])}\n"


def toml_value(value: Any) -> str:
    """Return a plain value as TOML, in one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{toml_value(str(key))} = {toml_value(part)}" for key, part in value.items()
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return float.__repr__(value)  # inf and nan as well
    text = json.dumps(value, ensure_ascii=False)  # the rest TOML writes as JSON does, but for DEL
    return text.replace("\x7f", "\\u007f")


# --- checks of one key each -----------------------------------------------------------------------


def _text(name: str, value: Any, pattern: str, hint: str, most: int = 200) -> str:
    """Insist on one short line without control characters that matches a pattern."""
    plain = isinstance(value, str) and len(value) <= most and printable(value) == value
    if not plain or not re.fullmatch(pattern, value, re.ASCII):
        shown = value if not isinstance(value, str) else value[:80]
        raise UsageError(f"{name}={shown!r} must be {hint}, one line of at most {most} characters")
    return str(value)


def _matching(pattern: str, hint: str, most: int = 200) -> Callable[[str, Any], str]:
    return partial(_text, pattern=pattern, hint=hint, most=most)


def _folder(name: str, value: Any) -> str:
    text = _text(name, value, r"[^\\]+", "a path inside the repository")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or ":" in text:
        raise UsageError(f"{name}={text!r} must stay inside the repository")
    return text


def _settings(name: str, value: Any) -> dict[str, Any]:
    try:
        text = canonical(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} must be a table of plain values: {error}") from error
    if len(text) > _MOST_SETTINGS or not all(map(_is_plain, _parts(value))):
        raise UsageError(
            f"{name} must be a table of printable texts, numbers, lists and tables of at most "
            f"{_MOST_SETTINGS:,} characters"
        )
    return dict(value)


def _parts(value: Any) -> list[Any]:
    """Return what a nested value holds: keys and leaves."""
    if isinstance(value, Mapping):
        return [*value, *(part for entry in value.values() for part in _parts(entry))]
    if isinstance(value, list | tuple):
        return [part for entry in value for part in _parts(entry)]
    return [value]


def _is_plain(part: Any) -> bool:
    if isinstance(part, str):
        return all(letter.isprintable() for letter in part)
    return isinstance(part, bool | int | float)


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > _MOST_SEEDS:
        raise UsageError(f"{name} must be a list of at most {_MOST_SEEDS:,} seeds")
    return tuple(checks.count(f"{name}[{place}]", seed, 0) for place, seed in enumerate(value))


def _number(name: str, value: Any) -> float:
    return checks.number(name, value, "[0, inf)")


_DIGEST = _matching(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal")
_MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"

_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": _matching(r".*\S.*", "a name", 60),
    "contact": _matching(r"(@[\w.-]+)?", "@handle, or empty", 60),
    "agent": _matching(rf"{_MODULE}:[A-Za-z_]\w*|[\w.+-]+", "pkg.mod:Class"),
    "settings": _settings,
    "code_url": _matching(r"https://[\w.-]+/[\w./~+-]+", "an https:// URL that git clones"),
    "code_commit": _matching(r"[0-9a-f]{40}([0-9a-f]{24})?", "the whole hash of a commit"),
    "code_folder": _folder,
    "code_sha256": _DIGEST,
    "licence": _matching(r"[\w.+() -]*", "an SPDX name such as MIT, or empty", 60),
    "suite": _matching(r"[A-Za-z0-9][\w.+-]*", "the name of a suite", 60),
    "plan": _DIGEST,
    "version": _matching(r"[\w.+-]+", "a version of llmqueue_gym", 60),
    "protocol": partial(checks.choice, known=PROTOCOLS),
    "division": partial(checks.choice, known=DIVISIONS),
    "trained_on": _matching(r".*", "a text", 500),
    "tuning_runs": partial(checks.count, minimum=0),
    "seeds_tuned_on": _seeds,
    "machine": _matching(r".*", "a text"),
    "isolation": partial(checks.choice, known=(NAMESPACES, PROCESS)),
    "wall_seconds": _number,
    "cells_sha256": _DIGEST,
    "key": _matching(r"([0-9a-f]{64})?", "a public key in hexadecimal, or empty"),
    "signature": _matching(r"([0-9a-f]{128})?", "a signature in hexadecimal, or empty"),
}
_NEEDED = (
    *("name", "agent", "code_url", "code_commit", "code_sha256", "suite", "plan", "version"),
    *("protocol", "machine", "isolation", "wall_seconds", "cells_sha256"),
)
