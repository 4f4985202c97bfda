"""Names that suites are frozen under: ``quick-1`` stands for one plan and one behaviour, for good.

A suite that has changed gets the next name, so that rows of a name can be compared.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from benchmarks.plan.cells import Cell, Plan, make_plan
from benchmarks.plan.suite import REFERENCES, Suite, canonical, load_suite, spec_key
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError

STEPS = 200
"""Of each task, by which `behaviour_hash` knows the dynamics."""

_RANDOM = REFERENCES[1]
_DIGITS = 6


@dataclass(frozen=True)
class Frozen:
    """A suite as it was when it got its name.

    Attributes
    ----------
    name, suite : str
        The frozen name, ``quick-1``, and that of the suite's file.
    plan, behaviour : str
        Its `plan_hash` and `behaviour_hash`.
    """

    name: str
    suite: str
    plan: str
    behaviour: str


@cache
def frozen_suites() -> Mapping[str, Frozen]:
    """Return all frozen suites by name, the newest of a suite last."""
    text = (files("benchmarks") / "submissions" / "frozen.toml").read_text(encoding="utf-8")
    return {name: Frozen(name, **facts) for name, facts in tomllib.loads(text).items()}


def find_frozen(name: str) -> Frozen:
    """Return a frozen suite.

    Raises
    ------
    UsageError
        If there is none of this name, or a later one has replaced it.
    """
    known = frozen_suites()
    if name not in known:
        raise checks.unknown_name("suite", name, known)
    newest = [one.name for one in known.values() if one.suite == known[name].suite][-1]
    if newest != name:
        raise UsageError(f"suite={name!r} has been replaced by {newest!r}: run the suite again")
    return known[name]


def frozen_name(suite: str, plan: str) -> str:
    """Return the frozen name of a suite with this plan, or its own name if it has none.

    Raises
    ------
    UsageError
        If the suite is frozen, but with another plan.
    """
    own = [one for one in frozen_suites().values() if one.suite == suite]
    if not own:
        return suite
    if own[-1].plan != plan:
        raise UsageError(
            f"suite={suite!r} is not what {own[-1].name!r} stands for: play its own tasks and "
            "data; if the suite was changed on purpose, freeze it anew, under its next name: "
            f"`llmqueue-bench submission freeze {suite}` prints the lines for frozen.toml"
        )
    return own[-1].name


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the tasks of a plan, the content of their queries, and the seeds; of no agent."""
    tasks = sorted(
        canonical([spec["task"], spec["workload"], spec["seed"]])
        for spec in (cell.spec for cell in plan.cells)
        if spec["agent"]["label"] == _RANDOM
    )
    return spec_key(tasks)


def behaviour_hash(suite: Suite) -> str:
    """SHA-256 of what the first steps of `random` earn on each task: another one, other dynamics.

    Figures count to six digits, so that the last bits of another machine do not.
    """
    plan = make_plan(suite, seeds=1, trust=True)
    curves = {
        str(cell.spec["task"]["name"]): _first_steps(cell)
        for cell in plan.cells
        if cell.spec["agent"]["label"] == _RANDOM
    }
    return spec_key(curves)


def _first_steps(cell: Cell) -> dict[str, list[str]]:
    from benchmarks.run.runner import run_cell

    task = cell.spec["task"]
    short = {**task, "horizon": min(STEPS, task["horizon"])}
    curve = run_cell({**cell.spec, "task": short}, cell.kwargs)["curve"]
    return {name: [f"{value:.{_DIGITS}g}" for value in own] for name, own in curve.items()}


def next_frozen(suite: str) -> str:
    """Return the lines for ``frozen.toml`` that freeze a suite as it is under its next name.

    Raises
    ------
    UsageError
        If a task cannot run here: it could not be hashed.
    """
    found = load_suite(suite)
    plan = make_plan(found, trust=True)
    check_whole(found, plan)
    number = 1 + sum(one.suite == suite for one in frozen_suites().values())
    return (
        f'[{suite}-{number}]\nsuite = "{suite}"\nplan = "{plan_hash(plan)}"\n'
        f'behaviour = "{behaviour_hash(found)}"\n'
    )


def check_whole(suite: Suite, plan: Plan) -> None:
    """Insist on a plan that has all tasks of its suite.

    Raises
    ------
    UsageError
        If one was skipped for want of data or packages.
    """
    for task in suite.tasks:
        if task.name in plan.skipped:
            raise UsageError(
                f"task {task.name!r} of {suite.name} cannot run here: {plan.skipped[task.name]}"
            )
