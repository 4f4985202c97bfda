"""What an agent is: two methods, public problem parameters, and the entry that names it.

An agent sees observations, rewards and what a provider would see; never the hidden truth.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.instance import ServingInstance
from llmqueue_gym.state import write_state
from llmqueue_gym.workloads.pool import OfflineData

if TYPE_CHECKING:
    from llmqueue_gym.workloads.encoder import TextEncoder  # which loads numba

Observation = Mapping[str, NDArray[Any]]
Action = NDArray[np.int64]

AGENT_FOLDERS: list[str] = []
"""Where modules of agents from elsewhere are looked for, after Python's path.

They come onto it where such an agent is loaded, and nowhere else: an import of an optional package
that is not installed must not find a stranger's file of its name.
"""


def open_agent_folders() -> None:
    """Let this process import from ``AGENT_FOLDERS``, as it is about to run what lies there."""
    sys.path += [folder for folder in AGENT_FOLDERS if folder not in sys.path]


@dataclass(frozen=True)
class QueueProblem:
    """Public parameters of a queueing task: what a provider knows before the first slot.

    Attributes
    ----------
    num_llms : int
        Number of LLMs, N.
    assortment_size : int
        LLMs shown to a user at a time, K.
    context_dim : int
        Length of a query's context vector, d.
    window : int
        Visible queue slots, W.
    arrival_rate : float
        Probability that a query arrives in a slot, lambda.
    horizon : int
        Number of slots of the run, T. Anytime policies only set constants from it.
    offline : OfflineData, optional
        Queries that never arrive with the utility of every LLM; only under the protocol
        ``pretrained``, and only where the workload keeps some back.
    truth : ndarray, shape (P, N), optional
        True odds of every LLM for each query that may arrive, for ``known-`` agents: yardsticks
        outside the ranking.
    feedback_delay : int
        Slots until an answer is judged: the feedback after slot t is of slot t - feedback_delay.
    """

    kind: ClassVar[str] = "queueing"

    num_llms: int
    assortment_size: int
    context_dim: int
    window: int
    arrival_rate: float
    horizon: int
    offline: OfflineData | None = field(default=None, compare=False, repr=False)
    truth: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    feedback_delay: int = 0


@dataclass(frozen=True)
class DeployProblem:
    """Public parameters of a deployment task: what a provider knows before the first query.

    Attributes
    ----------
    num_llms : int
        Number of LLMs that exist or will arrive, N.
    max_deployed : int
        Most LLMs deployed at a time, M_max.
    horizon : int
        Number of queries of the run, T.
    num_stages : int
        Stages of the run, K; the deployment is frozen within one.
    budget : float
        Average cost allowed per query, b, USD.
    alpha : tuple of float
        Largest share of the traffic of every LLM, alpha_m in (0, 1], N entries.
    cost_low, cost_high : float
        Range of the cost of a query, [c1, c2], USD.
    context_dim : int
        Length of a query's context vector, d; 0 where queries carry none.
    has_prices : bool
        Whether ``observation["cost_prior"]`` holds list prices of the arrived LLMs.
    truth : DeploymentInstance, optional
        All of the truth, for ``known-`` agents: yardsticks outside the ranking.
    """

    kind: ClassVar[str] = "deployment"

    num_llms: int
    max_deployed: int
    horizon: int
    num_stages: int
    budget: float
    alpha: tuple[float, ...]
    cost_low: float
    cost_high: float
    context_dim: int = 0
    has_prices: bool = False
    truth: DeploymentInstance | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ServeProblem:
    """Public parameters of a serving task: what a provider knows before the first slot.

    Attributes
    ----------
    num_llms, num_replicas : int
        Number of LLMs, N, and of replicas, R.
    context_dim : int
        Length of a query's context vector, d.
    window, dispatches : int
        Visible waiting queries, W, and dispatches a slot, A.
    places : sequence of int
        Queries that a replica serves at once, C_r.
    base_seconds, each_seconds : sequence of sequences of float
        Seconds of an iteration of LLM m at replica r, and further ones for every active query:
        W and H, R rows of N.
    slot_seconds : float
        Seconds of a slot.
    update_every, loading : int
        Slots from one update point to the next, 0: a fixed fleet; slots that a replica loads.
    price : sequence of float
        USD a slot of a replica that is not empty.
    rewards : Mapping of str
        Weights of the reward: ``kept``, ``holding``, ``lost``, ``late``, ``price``, and ``sla``.
    arrival_rate : float
        Mean arrivals a slot, lambda.
    horizon : int
        Number of slots of the run, T.
    truth : ServingInstance, optional
        All of the truth, for ``known-`` agents: yardsticks outside the ranking.
    """

    kind: ClassVar[str] = "serving"

    num_llms: int
    num_replicas: int
    context_dim: int
    window: int
    dispatches: int
    places: Sequence[int]
    base_seconds: Sequence[Sequence[float]]
    each_seconds: Sequence[Sequence[float]]
    slot_seconds: float
    update_every: int
    loading: int
    price: Sequence[float]
    rewards: Mapping[str, float]
    arrival_rate: float
    horizon: int
    truth: ServingInstance | None = field(default=None, compare=False, repr=False)


class Agent(ABC):
    """An online decision maker.

    Subclasses take the problem, a seed and keyword settings with defaults. All of an agent's
    randomness comes from ``self.rng``, so a run is reproduced from its seed.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    """

    kind: ClassVar[str] = "queueing"
    """The family of tasks the agent plays."""

    protocol: ClassVar[str] = "online"
    """``"pretrained"`` if the agent brings what it learned before: it has tables of its own."""

    trained_on: ClassVar[str] = ""
    """What a pretrained agent is given of the task beforehand; a note under its tables says so."""

    training: ClassVar[Mapping[str, Any] | None] = None
    """What a pretrained agent's training cost, for the tables: ``{"steps": 500_000, "seconds":
    420.0}``, with ``"file": "weights.pt"`` if it reads one that lies beside its module."""

    encoder: TextEncoder | None = None
    """What turned texts into the contexts it learned from, if they were texts; saved with it."""

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def act(self, observation: Observation) -> Action:
        """Choose an action for the observation (an element of the environment's action space)."""

    def update(  # noqa: B027 - agents that do not learn have nothing to do here
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from one step: the action taken on ``observation`` and what came of it."""

    def save(self, path: str | Path) -> None:
        """Save the agent as it is now, its random numbers too: arrays and JSON, nothing pickled.

        `baselines.saving.load_agent` reads it back; the two then play alike, bit for bit.

        Raises
        ------
        UsageError
            If the file cannot be written, or the agent holds what cannot be saved.
        """
        write_state(path, self, "agent", kind=self.kind)


class Delegate(Agent):
    """A queueing agent that plays as another one, its attribute ``agent``."""

    agent: Agent

    def act(self, observation: Observation) -> Action:
        """Choose as the other agent does."""
        return self.agent.act(observation)

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn as the other agent does."""
        self.agent.update(observation, action, reward, next_observation, info)


class DeployAgent(Agent):
    """An online decision maker of a deployment task.

    ``act`` returns int64, shape (N + 1,): N deployment bits, read at update points only, and the
    LLM that answers the query.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    """

    kind: ClassVar[str] = "deployment"
    problem: DeployProblem  # type: ignore[assignment]  # each kind of task has its own parameters

    def __init__(self, problem: DeployProblem, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)


@dataclass(frozen=True)
class AgentSpec:
    """A registered agent: where its class lives, its settings and its source.

    Attributes
    ----------
    name : str
        Name on the leaderboard.
    target : str
        ``"module:Class"``, imported when the agent is made.
    settings : Mapping[str, Any]
        Keyword settings passed to the class, JSON-plain.
    source : str
        The paper or package the agent comes from.
    kind : str
        The kind of tasks it plays; "" where only its class tells.
    """

    name: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    kind: str = ""

    def load(self) -> type[Agent]:
        """Import the agent's class.

        Raises
        ------
        ValueError
            If ``target`` names no class with ``act`` and ``update``.
        """
        module_name, _, attribute = self.target.partition(":")
        if module_name.split(".")[0] != __package__:
            open_agent_folders()
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name.split(".")[0] and error.name != module_name:
                raise
            raise UsageError(
                f"agent={self.target!r}: there is no module {module_name!r}; "
                "install it or run from the folder that holds it"
            ) from error
        cls = getattr(module, attribute, None)
        if not callable(cls) or not hasattr(cls, "act") or not hasattr(cls, "update"):
            own = [name for name, found in vars(module).items() if _is_own(found, module_name)]
            there = f"; its classes: {', '.join(own)}" if own else ""
            raise UsageError(
                f"agent={self.target!r}: {attribute!r} in {module_name!r} is not a class "
                f"with act(observation) and update(...){there}"
            )
        return cls  # type: ignore[no-any-return]


def _is_own(found: object, module_name: str) -> bool:
    """Whether it is an agent's class, and not one that the module only imports."""
    mine = isinstance(found, type) and found.__module__ == module_name
    return mine and hasattr(found, "act") and hasattr(found, "update")
