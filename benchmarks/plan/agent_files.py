"""Files beside an agent's code that it opens while it plays: weights, tables, modules.

A cell's key holds the agent's code, which is known before it runs. What else it reads is known only
afterwards, so the result keeps the digests, and is reused only while the files are the same. Seen
is whatever is opened for reading through Python in the folder of the agent's module, or below it,
and libraries that are loaded from there; what compiled code and other processes open by themselves,
and files elsewhere, are not. Its modules run from their sources: caches of bytecode are not read.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from baselines.interface import AGENT_FOLDERS
from baselines.registry import agent_spec
from llmqueue_gym.workloads.pool import file_sha256

Digests = dict[str, str | None]
"""Path below the agent's folder -> SHA-256; None for a file that is not there."""

_NAMED = {"open": 0, "sqlite3.connect": 0, "ctypes.dlopen": 0, "import": 1}
"""Audit event -> which of its arguments is a file's name."""


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
        if found is None and end == 1:
            found = PathFinder.find_spec(full, AGENT_FOLDERS)
        if found is None:
            return None
        places = found.submodule_search_locations
        if places is None and end < len(parts):
            return None
    return found


def watch_folder(folder: Path) -> Callable[[], Digests]:
    """Note from now on which files of a folder this process reads; call the result for them.

    Modules of the folder run from their sources from now on. Python has no way to end it: for
    processes that run one cell.
    """
    opened: set[str] = set()
    root, installed = f"{folder}{os.sep}", _installed_below(folder)
    _pass_caches_by(folder, installed)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _NAMED:
            return
        name = arguments[_NAMED[event]]
        if not isinstance(name, str | bytes | os.PathLike):  # a handle: noted before
            return
        if event == "open":
            _, mode, flags = arguments
            if not ("r" in mode or "+" in mode if mode else not flags & os.O_WRONLY):
                return
        path = os.path.realpath(os.fsdecode(name))
        if path.startswith(root):
            opened.add(path)

    def found() -> Digests:
        seen = set(opened)  # reading them below notes them again
        modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        seen.update(os.path.realpath(path) for path in modules if isinstance(path, str))
        cached = (path.startswith(installed) and "__pycache__" in Path(path).parts for path in seen)
        kept = (path for path, is_cached in zip(seen, cached, strict=True) if not is_cached)
        names = (path.removeprefix(root) for path in kept if path.startswith(root))
        return digests(folder, sorted(names))

    sys.addaudithook(note)
    return found


def _installed_below(folder: Path) -> tuple[str, ...]:
    """Return where packages are installed in a folder or below it: an environment may lie there."""
    paths = map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    places = {f"{os.path.realpath(path)}{os.sep}" for path in paths}
    return tuple(place for place in places if place.startswith(f"{folder}{os.sep}"))


def _pass_caches_by(folder: Path, installed: tuple[str, ...]) -> None:
    """Have a folder's modules compiled from their sources, whoever loads them; not the installed.

    A cache of Python's unchecked kind would run in their place, and nobody digests it.
    """
    root, with_cache = f"{folder}{os.sep}", SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, fullname: str) -> Any:
        path = os.path.realpath(loader.get_filename(fullname))
        beside = os.path.dirname(path) == str(folder)  # of a module that is installed itself
        if not path.startswith(root) or (path.startswith(installed) and not beside):
            return with_cache(loader, fullname)
        return loader.source_to_code(loader.get_data(path), path)

    setattr(SourceFileLoader, "get_code", get_code)  # noqa: B010 - a method of the library's


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
