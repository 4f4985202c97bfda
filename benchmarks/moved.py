"""Import paths of before the rooms: ``benchmarks.runner`` is ``benchmarks.run.runner``, ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

MOVED = {
    "agent_files": "plan.agent_files",
    "arrivals": "commands.arrivals",
    "changes": "commands.changes",
    "compare": "commands.compare",
    "completion": "commands.completion",
    "controls": "measure.controls",
    "data": "commands.data",
    "deployment": "problems.deployment.play",
    "engines": "run.engines",
    "export": "score.export",
    "fairness": "score.fairness",
    "intervals": "score.intervals",
    "kinds": "problems.kind",
    "logs": "commands.logs",
    "luck": "problems.luck",
    "off_policy": "score.off_policy",
    "queueing": "problems.queueing.play",
    "ray_engine": "run.ray_engine",
    "runner": "run.runner",
    "scale": "measure.scale",
    "scoring": "score.scoring",
    "speed": "measure.speed",
    "standing": "score.standing",
    "store": "run.store",
    "suite": "plan.suite",
    "table_file": "commands.table_file",
    "task_board": "score.task_board",
    "training": "run.training",
    "verify": "commands.verify",
    "warm": "run.warm",
    "watch": "commands.watch",
}
"""Old name in this package -> where it is."""


class _Moved(MetaPathFinder, InspectLoader):
    """Finds the module itself under its old path, so that there is one of it."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(_new(spec.name))
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own

    def get_code(self, fullname: str) -> CodeType | None:
        spec = find_spec(_new(fullname))  # for python -m
        return spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]

    def get_source(self, fullname: str) -> None:
        return None


def _new(fullname: str) -> str:
    package, _, name = fullname.rpartition(".")
    return f"{package}.{MOVED[name]}"


def keep_old_paths() -> None:
    """Let the old paths be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
