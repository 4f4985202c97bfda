"""The problems that are benchmarked, a folder each; everything else asks them by these names.

A further problem is a folder like `benchmarks.problems.queueing`, an import and a place in the
loop below.
"""

from __future__ import annotations

from benchmarks.problems.deployment import DEPLOYMENT
from benchmarks.problems.interface import Problem
from benchmarks.problems.queueing import QUEUEING
from benchmarks.problems.serving import SERVING
from llmqueue_gym.errors import UsageError

PROBLEMS: dict[str, Problem] = {}
"""Every problem by its name."""


class UnknownProblemError(UsageError):
    """No problem is played on this environment id."""


def register_problem(problem: Problem) -> None:
    """Make a problem known to suites, runner and reports."""
    PROBLEMS[problem.name] = problem


def problem_of(env_id: str) -> Problem:
    """Return the problem of a Gymnasium id, with or without its module.

    Raises
    ------
    UnknownProblemError
        If no problem has it.
    """
    name = env_id.rpartition(":")[2]
    for problem in PROBLEMS.values():
        if name in problem.env_ids:
            return problem
    known = sorted(known for problem in PROBLEMS.values() for known in problem.env_ids)
    raise UnknownProblemError(f"env={env_id!r} is none that is benchmarked: {', '.join(known)}")


for _problem in (QUEUEING, DEPLOYMENT, SERVING):
    register_problem(_problem)
