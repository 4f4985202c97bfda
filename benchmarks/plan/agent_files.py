"""Files beside an agent's code that it opens while it plays: weights, tables, modules.

A cell's key holds the agent's code, which is known before it runs. What else it reads is known only
afterwards, so the result keeps the digests, and is reused only while the files are the same. Seen
is whatever is opened for reading through Python in the folder of the agent's module, or below it;
what compiled code opens by itself, and files elsewhere, are not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from baselines.registry import agent_spec
from llmqueue_gym.workloads.pool import file_sha256

Digests = dict[str, str | None]
"""Path below the agent's folder -> SHA-256; None for a file that is not there."""


def agent_folder(agent: Mapping[str, Any]) -> Path | None:
    """Folder of a third party's agent, None for those of this project.

    Parameters
    ----------
    agent : Mapping[str, Any]
        The ``agent`` of a cell's identity.
    """
    if "code" not in agent:
        return None
    found = find_module(agent_spec(agent["name"]).target.partition(":")[0])
    return Path(found.origin).resolve().parent if found and found.origin else None


def find_module(name: str) -> ModuleSpec | None:
    """Find a module as an import would, and import nothing, not even the packages it lies in."""
    parts = name.split(".")
    places: Sequence[str] | None = None
    found: ModuleSpec | None = None
    for end in range(1, len(parts) + 1):
        full = ".".join(parts[:end])
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find(full, places) for find in finders if find is not None)
        found = next((spec for spec in specs if spec is not None), None)
        if found is None:
            return None
        places = found.submodule_search_locations
        if places is None and end < len(parts):
            return None
    return found


def watch_folder(folder: Path) -> Callable[[], Digests]:
    """Note from now on which files of a folder this process reads; call the result for them.

    Python has no way to end it: for processes that run one cell.
    """
    opened: set[str] = set()
    root = f"{folder}{os.sep}"

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        _, mode, flags = arguments
        if "r" in mode or "+" in mode if mode else not flags & os.O_WRONLY:
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(root):
                opened.add(path)

    def found() -> Digests:
        seen = set(opened)  # reading them below notes them again
        modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        seen.update(os.path.realpath(path) for path in modules if isinstance(path, str))
        names = (path.removeprefix(root) for path in seen if path.startswith(root))
        plain = (name for name in names if "__pycache__" not in Path(name).parts)
        return digests(folder, sorted(plain))

    sys.addaudithook(note)
    return found


def digests(folder: Path, names: list[str]) -> Digests:
    """Digests of some files of a folder as they are now."""
    return {
        Path(name).as_posix(): file_sha256(folder / name) if (folder / name).is_file() else None
        for name in names
    }


def changed_file(agent: Mapping[str, Any], reads: Mapping[str, str | None]) -> str | None:
    """Name a file that a stored result read and that is another one now; None if all are alike."""
    folder = agent_folder(agent)
    if folder is None:
        return None
    now = digests(folder, list(reads))
    return next((name for name, digest in reads.items() if now[name] != digest), None)
