"""The outside of the project: imports point downwards, pages cite what exists, CI calls scripts."""

from __future__ import annotations

import ast
import graphlib
import gzip
import os
import pickle
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import baselines.agent
import baselines.interface
import baselines.registry
from llmqueue_gym.moved import MOVED
from llmqueue_gym.vector import LaneVectorEnv

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "llmqueue_gym": (),
    "baselines": ("llmqueue_gym",),
    "benchmarks": ("llmqueue_gym", "baselines"),
}
"""What each package may import of this project, besides itself."""


def imported(source: str) -> set[str]:
    """Top-level names of the absolute imports of a module, those within functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", BELOW)
def test_imports_point_downwards(package):
    forbidden = BELOW.keys() - {package, *BELOW[package]} | {"tests"}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {f.relative_to(ROOT): imported(f.read_text("utf-8")) & forbidden for f in files}
    assert not {str(file): names for file, names in found.items() if names}


def test_an_import_within_a_function_would_be_noticed():
    assert imported("def f():\n    from benchmarks.plan import x\n    import baselines.rl") == {
        "benchmarks",
        "baselines",
    }


def module_imports(package: str) -> dict[str, set[str]]:
    """Modules of a package and those of its modules that each imports, within functions too."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= inner & files.keys() or {str(node.module)}
        graph[module] = names & files.keys()
    return graph


def test_baselines_have_no_import_cycle():
    graph = module_imports("baselines")
    assert graph["baselines.interface"] == set()
    assert graph["baselines.models"] == {"baselines.interface"}
    assert graph["baselines.registry"] == {"baselines.interface", "baselines.models"}
    assert graph["baselines.saving"] == {"baselines.interface"}
    graphlib.TopologicalSorter(graph).prepare()  # a cycle is an error that names it


# What each room of the library may import besides itself and the plain modules beside the rooms;
# `envs`, `oracles`, `multi_agent` and `core` are doors, which nobody inside uses.
ROOMS = {
    "adapters": set(),
    "workloads": set(),
    "queueing": {"adapters", "workloads"},
    "deployment": {"adapters", "workloads"},
    "serving": {"adapters", "workloads", "queueing", "deployment"},
    "live": {"workloads", "queueing"},
}
GROUND = {
    *(
        "canvas",
        "checks",
        "compiled",
        "errors",
        "flat",
        "registration",
        "state",
        "streams",
        "vector",
    ),
}


def test_the_librarys_rooms_import_downwards_and_know_no_other_problem():
    graph = module_imports("llmqueue_gym")
    graphlib.TopologicalSorter(graph).prepare()
    for module, names in graph.items():
        room = [*module.split("."), ""][1]
        allowed = ROOMS[room] | {room} if room in ROOMS else set() if room in GROUND else None
        if allowed is not None:
            rooms = {[*name.split("."), ""][1] for name in names} - {""}
            assert rooms <= allowed | GROUND, (module, rooms)


LARGER = {
    "baselines/rl/training.py",
    "benchmarks/commands/run.py",
    "llmqueue_gym/serving/dynamics.py",
}
"""Files that are still too long, or hold a function that is: the list only shrinks."""


def test_a_file_has_at_most_500_lines_and_a_function_80():
    larger = set()
    for file in (file for package in BELOW for file in (ROOT / package).rglob("*.py")):
        source = file.read_text("utf-8")
        functions = ast.FunctionDef, ast.AsyncFunctionDef
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
        lines = max((node.end_lineno - node.lineno + 1 for node in nodes), default=0)
        if len(source.splitlines()) > 500 or lines > 80:
            larger.add(file.relative_to(ROOT).as_posix())
    assert larger <= LARGER


def test_earlier_paths_of_the_library_lead_to_the_same_modules():
    for old, new in MOVED.items():
        if not {"adapters.sb3", "adapters.pettingzoo"} & {new} and "games" not in new:  # extras
            module = import_module(f"llmqueue_gym.{new}")
            assert import_module(f"llmqueue_gym.{old}") is module
            assert module.__name__ == module.__spec__.name == f"llmqueue_gym.{new}"
    # A class that was pickled under its earlier path.
    old = pickle.dumps(LaneVectorEnv, 0).replace(b"llmqueue_gym.vector", b"llmqueue_gym.envs.base")
    assert pickle.loads(old) is LaneVectorEnv


def test_the_earlier_path_of_agents_keeps_working():
    assert baselines.agent.Agent is baselines.interface.Agent
    assert baselines.agent.make_agent is baselines.registry.make_agent


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_link_to_what_exists(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    generated = [link for link in local if "agents/" in link]
    missing = [x for x in local if x not in generated and not (page.parent / x).exists()]
    assert not missing, f"{page} links to {missing}"


def test_workflows_call_scripts_and_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(VENV)", ".venv")
    targets = set(re.findall(r"^([\w./-]+):", makefile, re.M))
    calls = [
        call
        for workflow in sorted((ROOT / ".github/workflows").glob("*.yml"))
        for call in re.findall(r"run: (.*)", workflow.read_text("utf-8"))
    ]
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    for call in (*calls, *hooks, *(ROOT / ".ci/run").read_text("utf-8").splitlines()):
        command, *rest = call.split() or [""]
        if command == "make":
            assert {word for word in rest if not word.startswith("-")} <= targets, call
        elif command.startswith(".ci/"):
            assert os.access(ROOT / command, os.X_OK), call
    assert {".ci/run", ".ci/test_core", ".ci/test_lowest", "make docs"} <= set(calls)


def test_ci_runs_on_every_python_that_is_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    promised = {c.split()[-1] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert matrix is not None
    assert set(re.findall(r"[\d.]+", matrix[1])) == promised


@pytest.mark.parametrize(
    "results", sorted(ROOT.glob("benchmarks/results/*.json.gz")), ids=lambda path: path.stem
)
def test_committed_results_name_no_path_of_a_machine(results):
    found = re.search(
        rb'[ "]/(?:home|root|tmp|work|Users|var|mnt)/[^" ]*', gzip.decompress(results.read_bytes())
    )
    assert found is None, found[0].decode()
