"""An agent that loses its memory in the middle of a run: what a restart costs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baselines.interface import Action, Agent, Delegate, Observation, QueueProblem
from baselines.registry import agent as named
from baselines.registry import make_agent
from llmqueue_gym import checks


@named("restarted", source="any agent, its memory lost half-way")
class Restarted(Delegate):
    """Play as another agent, which is made anew once a share ``at`` of the slots has passed.

    The queue is as the first one left it.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    agent : str
        Name of the agent.
    at : float
        Share of the horizon after which it starts anew.

    Raises
    ------
    ValueError
        If the name is unknown or ``at`` no share.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, agent: str = "ACQB", at: float = 0.5
    ) -> None:
        super().__init__(problem, seed)
        self._left = round(checks.number("at", at, "[0, 1]") * problem.horizon)
        self._name = agent
        self.agent = self._made()

    def _made(self) -> Agent:
        return make_agent(self._name, self.problem, int(self.rng.integers(2**32)))

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn as the agent does, and forget it all when it is time."""
        super().update(observation, action, reward, next_observation, info)
        self._left -= 1
        if self._left == 0:
            self.agent = self._made()
