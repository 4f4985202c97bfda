"""What the benchmark must know of a problem.

`Problem` is light: suites and command lines read it at once. Its two halves are imported when they
are needed, the one by workers and the other by reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import gymnasium as gym

    from baselines.interface import Action
    from benchmarks.problems.kind import Kind

Arguments = Mapping[str, Any]
"""Arguments of an environment."""


@dataclass(frozen=True, eq=False)
class Problem:
    """All that differs between problems.

    Attributes
    ----------
    name : str
        As agents' classes (``kind``), sections of a report and stored results have it.
    package : str
        Package with a module ``play`` (see `Play`) and a module ``board`` that has a ``KIND``.
    env_ids : tuple of str
        Gymnasium ids, without the module, of its tasks.
    references : Mapping of str
        The agent behind each reference, ``oracle`` and ``random``.
    oracle : str
        Words about the oracle.
    horizon_argument : str
        Argument of the environments that takes a task's horizon.
    action_layout : str
        What the entries of an action mean, for an error.
    shuffled : callable, optional
        Arguments -> those of the same task with contexts shuffled among queries, None if its
        queries have no contexts that could be.
    disguised : callable
        Arguments and a number -> those of a held-out variant of fixed data
        (`llmqueue_gym.workloads.disguise`); the same arguments where nothing is fixed.
    new_llms : callable
        Arguments -> whether the LLMs differ from episode to episode.
    warm : tuple of str
        Agents with compiled kernels, which a worker loads before its first cell.
    shipped, controls : tuple of str
        Agents that gateways ship, and simple ones beside which they are shown.
    rivals : tuple of str
        Agents that these are compared with, besides the best of the others.
    """

    name: str
    package: str
    env_ids: tuple[str, ...]
    references: Mapping[str, str]
    oracle: str
    horizon_argument: str
    action_layout: str
    shuffled: Callable[[Arguments], dict[str, Any] | None] = lambda kwargs: None
    disguised: Callable[[Arguments, int], Arguments] = lambda kwargs, number: kwargs
    new_llms: Callable[[Arguments], bool] = lambda kwargs: False
    warm: tuple[str, ...] = ()
    shipped: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    @cached_property
    def play(self) -> Play:
        """How it is played and watched."""
        return cast("Play", import_module(f"{self.package}.play"))

    @cached_property
    def kind(self) -> Kind:
        """What a report shows of it."""
        return cast("Kind", import_module(f"{self.package}.board").KIND)


class BrokenLawError(RuntimeError):
    """A recorded run breaks a law of its problem: there is a bug, or somebody changed the run."""


class Recorder(Protocol):
    """Watches a run from outside, with the hidden truth.

    It is given nothing that an agent has had in hand, which the agent may have changed.
    """

    def see(self) -> bool:
        """Look before the agent does; return whether there is anything to decide."""
        ...

    def choose(self, t: int, action: Action) -> None:
        """Rate the action of step t before it is played."""
        ...

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        """Note what came of it, before the agent is told."""
        ...

    def truth(self, t: int) -> str:
        """Say in a line how the run has gone up to step t, by the truth."""
        ...

    def result(self) -> dict[str, Any]:
        """Return ``metrics``, and ``curve``: cumulative sums of shape (T,) by name.

        Reports know further parts, where there are some: ``llms``, lists by column, and
        ``traffic``, ``fleet``, ``spent`` (`Traffic`, `Fleet`, `Spent` of
        `benchmarks.problems.kind`).
        """
        ...


class Play(Protocol):
    """What the runner must know: a module."""

    def public_problem(self, env: gym.Env[Any, Any], horizon: int, pretrained: bool = False) -> Any:
        """Return what an agent is told of the task, the more so if it may train beforehand."""
        ...

    def told_all(self, env: gym.Env[Any, Any], public: Any) -> Any:
        """Return ``public`` with the truth beside it, for a yardstick."""
        ...

    def make_oracle(self, env: gym.Env[Any, Any]) -> Any:
        """Return the policy that scores 1."""
        ...

    def assumptions(self, env: gym.Env[Any, Any], kwargs: Arguments) -> list[str]:
        """Say what is assumed of an instance that has been set up, not known or asked for."""
        ...

    def fingerprint(self, kwargs: Arguments) -> str | None:
        """Return a hash of the content of the files that a task reads; None if it reads none."""
        ...

    def Recorder(self, env: gym.Env[Any, Any], horizon: int) -> Recorder:  # noqa: N802
        """Return the recorder of a run."""
        ...
