"""Earlier import paths: each leads to the module itself at its present place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

MOVED = {
    "core.choice": "queueing.choice",
    "core.queue": "queueing.lanes",
    "core.routing_lp": "deployment.routing",
    "core.streams": "streams",
    "envs.base": "vector",
    "envs.deploy_rendering": "deployment.picture",
    "envs.flat": "flat",
    "envs.llm_deploy": "envs",
    "envs.llm_deploy_mo": "deployment.env_mo",
    "envs.llm_queue": "queueing.env",
    "envs.rendering": "queueing.picture",
    "multi_agent.base": "adapters.pettingzoo",
    "multi_agent.llm_deploy_v0": "deployment.games.llm_deploy_v0",
    "multi_agent.llm_queue_v0": "queueing.games.llm_queue_v0",
    "multi_agent.llm_servers_v0": "queueing.games.llm_servers_v0",
    "oracles.deployment": "deployment.oracles",
    "oracles.queueing": "queueing.oracles",
    "sb3": "adapters.sb3",
    "workloads.catalog": "deployment.streams",
    "workloads.order": "deployment.streams.order",
    "wrappers": "adapters.wrappers",
}
"""Earlier name in this package -> where it is."""


class _Moved(MetaPathFinder, InspectLoader):
    """Finds the module itself under its earlier path, so that there is one of it."""

    def __init__(self, package: str, moved: Mapping[str, str]) -> None:
        self._new = {f"{package}.{old}": f"{package}.{new}" for old, new in moved.items()}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self._new else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._new[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType | None:
        spec = find_spec(self._new[fullname])  # for python -m
        return spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]

    def get_source(self, fullname: str) -> None:
        return None


def keep_old_paths(package: str, moved: Mapping[str, str]) -> None:
    """Let the earlier paths of a package's modules be imported."""
    sys.meta_path.append(_Moved(package, moved))
