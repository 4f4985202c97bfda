#!/usr/bin/env python3
"""Print the lowest versions that pyproject.toml declares, as constraints for pip.

    python .ci/floors.py > floors.txt

Only what the project itself asks for is held down; pip chooses the rest. The extras ``dev`` and
``docs`` build and check the project, which runs without them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
NOT_RUN = ("dev", "docs")


def floors() -> list[str]:
    """Return ``name==version`` for each dependency."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        requirements += () if extra in NOT_RUN else wanted
    lowest: dict[str, str] = {}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if name == project["name"]:  # an extra of extras
            continue
        version = re.search(r">=\s*([\w.]+)", requirement)
        if version is None:
            sys.exit(f"{requirement!r} declares no lowest version; write {name}>=...")
        if lowest.setdefault(name, version[1]) != version[1]:
            sys.exit(f"{name} is asked for from {lowest[name]} and from {version[1]}; agree on one")
    return [f"{name}=={version}" for name, version in sorted(lowest.items())]


if __name__ == "__main__":
    print("\n".join(floors()))
