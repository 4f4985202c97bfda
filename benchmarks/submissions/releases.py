"""Secrets of releases, from which held-out runs are drawn (`benchmarks.plan.held_out`).

The digest is committed when a release is made, the secret itself with the next one, so that
anybody can play the old board again.
"""

from __future__ import annotations

import re
from pathlib import Path
from secrets import token_hex

from benchmarks.plan.held_out import read_held_out
from benchmarks.plan.toml import parse_toml
from benchmarks.run.store import write_text
from benchmarks.score.signing import write_secret
from llmqueue_gym.errors import UsageError

RELEASES = "releases.toml"
"""File of the digests and of the published secrets, beside the submissions."""

_HEAD = "# Secrets of held-out runs: SHA-256 while they are in use, the secret itself afterwards.\n"


def draw_secret(release: str, secret: Path, folder: Path) -> str:
    """Draw the secret of a release into a file of its own; return the digest, which is noted.

    Raises
    ------
    UsageError
        If the release has one, or the file is there.
    """
    _check_name(release)
    known = read_releases(folder)
    if release in known:
        raise UsageError(f"release={release!r} has its secret: {known[release]['sha256']}")
    write_secret(secret, f"{token_hex(32)}\n".encode())
    digest = read_held_out(secret).digest
    _write(folder, {**known, release: {"sha256": digest}})
    return digest


def publish_secret(release: str, secret: Path, folder: Path) -> None:
    """Publish the secret of a release that is over.

    Raises
    ------
    UsageError
        If it is not the one that was noted.
    """
    known, found = read_releases(folder), read_held_out(secret)
    if known.get(release, {}).get("sha256") != found.digest:
        raise UsageError(f"secret={str(secret)!r} is not that of release {release!r}")
    own = {"sha256": found.digest, "secret": found.secret.decode()}
    _write(folder, {**known, release: own})


def read_releases(folder: Path) -> dict[str, dict[str, str]]:
    """Read the releases: ``sha256``, and ``secret`` of those that are over.

    Raises
    ------
    UsageError
        If the file is not what these functions write.
    """
    path = folder / RELEASES
    if not path.is_file():
        return {}
    known = parse_toml(path.read_bytes(), str(path))
    for release, own in known.items():
        if not isinstance(own, dict):
            raise UsageError(f"{path}: {release} = {own!r} must be a table with sha256")
    return {
        release: {name: str(value) for name, value in own.items()} for release, own in known.items()
    }


def _write(folder: Path, releases: dict[str, dict[str, str]]) -> None:
    tables = (
        "".join([f'\n["{release}"]\n', *(f'{name} = "{value}"\n' for name, value in own.items())])
        for release, own in releases.items()
    )
    write_text(folder / RELEASES, _HEAD + "".join(tables))


def _check_name(release: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,40}", release):
        raise UsageError(f"release={release!r} must read like 0.2.0")
