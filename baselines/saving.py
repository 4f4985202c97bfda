"""Saved agents: `Agent.save` writes one, `load_agent` reads it back, and it plays on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from baselines.interface import (
    Agent,
    Delegate,
    DeployProblem,
    QueueProblem,
    ServeProblem,
)
from llmqueue_gym.errors import UsageError
from llmqueue_gym.state import read_state

SHAPE = ("num_llms", "context_dim", "assortment_size", "max_deployed", "num_replicas")
"""Parameters of a problem that an agent's arrays depend on."""

_PROBLEMS = (QueueProblem, DeployProblem, ServeProblem)


def load_agent(
    path: str | Path,
    problem: QueueProblem | DeployProblem | ServeProblem | None = None,
    packages: Sequence[str] = (),
) -> Agent:
    """Read an agent that `Agent.save` wrote; it plays on as the saved one would have, bit for bit.

    Reading builds objects of known classes and unpickles nothing.

    Parameters
    ----------
    path : str or Path
        The file.
    problem : QueueProblem, DeployProblem or ServeProblem, optional
        What it is to play, checked against what it was made for.
    packages : sequence of str
        Your own top-level modules, where the agent's class is in one of them.

    Raises
    ------
    UsageError
        If it is no saved agent, is damaged, was saved by another version, or was made for a problem
        of another kind or shape.
    """
    agent, _ = read_state(path, "agent", packages)
    if not isinstance(agent, Agent):
        raise UsageError(f"path={str(path)!r} holds a {type(agent).__name__}, which is no agent")
    if problem is None:
        return agent
    if not isinstance(getattr(agent, "problem", None), _PROBLEMS):
        raise UsageError(f"path={str(path)!r} is damaged: its agent has no problem")
    if agent.kind != problem.kind:
        raise UsageError(f"path={str(path)!r} plays {agent.kind} tasks, not {problem.kind} ones")
    own, other = vars(agent.problem), vars(problem)
    wrong = {name: own.get(name) for name in SHAPE if own.get(name) != other.get(name)}
    if wrong:
        here = {name: other.get(name) for name in wrong}
        raise UsageError(f"path={str(path)!r} was made for {wrong}, the problem has {here}")
    return agent


class SavedAgent(Delegate):
    """A saved queueing agent as a suite plays it: ``"baselines.saving:SavedAgent"`` and its file.

    It goes on learning, with random numbers of its own for each seed.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    path : str
        The file.
    sha256 : str
        Its digest, so that results of another file are never taken for this one's; not checked.
    packages : sequence of str
        See `load_agent`.
    """

    protocol: ClassVar[str] = "pretrained"

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        path: str,
        sha256: str = "",
        packages: Sequence[str] = (),
    ) -> None:
        super().__init__(problem, seed)
        self.agent = load_agent(path, problem, packages)
        self.agent.rng = np.random.default_rng(seed)
