"""Trained agents: a model file plays like any other agent, without learning any more.

Weights are read without unpickling; the network is rebuilt from the recipe.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from baselines.interface import (
    Action,
    Agent,
    DeployAgent,
    DeployProblem,
    Observation,
    QueueProblem,
    ServeProblem,
)
from baselines.models import OWN_FILES, read_card
from baselines.rl.memory import REFUSALS, RefusalCounts
from baselines.rl.recipes import QUEUE_ENV, SERVE_ENV, STAGE_ENV, Recipe, recipe
from baselines.rl.training import load_class, policy_arguments
from llmqueue_gym.adapters.dispatches import CANDIDATES, Dispatches
from llmqueue_gym.adapters.wrappers import assortments, previous_decision
from llmqueue_gym.deployment.rules import DeploymentRules, stage_plan, stage_schedule
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.dynamics import SERVING

_QUERY_ONLY = ("deploy_now", "stage_progress", "context")


class _Saved:
    """What is kept of a trained agent: all but the network, which its file makes again."""

    protocol = "pretrained"
    model: str | None = None
    _policy: Any
    _state: Any = None

    def _read(
        self, model: str | None, sha256: str | None, env_id: str, shape: Mapping[str, Any]
    ) -> NDArray[np.uint8]:
        """Read a model file whole, and check that it plays tasks of this shape."""
        path = model or self.model
        if path is None:
            raise UsageError("model=None: name the file that baselines.rl.train wrote")
        path = str(path)
        card = read_card(path)
        if card["env_id"] != env_id:
            raise UsageError(f"model={path!r} was trained on {card['env_id']}, this is {env_id}")
        other = {key: card["problem"][key] for key in shape if card["problem"][key] != shape[key]}
        if other:
            here = {key: shape[key] for key in other}
            raise UsageError(f"model={path!r} was trained for {other}, the task has {here}")
        content = Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UsageError(
                f"model={path!r} is not the file with sha256={sha256!r}; it was changed"
            )
        warnings.warn(f"loading the model file {path}: {OWN_FILES}", UserWarning, stacklevel=4)
        return np.frombuffer(content, np.uint8)

    @abstractmethod
    def _network(self) -> tuple[Any, Recipe]:
        """Make the network of the file."""

    def __getstate__(self) -> dict[str, Any]:
        hidden = self._state and tuple(tensor.numpy() for tensor in self._state)
        return {**self.__dict__, "_policy": None, "_state": hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state = self._state and tuple(torch.from_numpy(part) for part in self._state)
        self._policy, _ = self._network()


class TrainedQueueAgent(_Saved, Agent):
    """A policy trained on LLMQueue-v0, frozen.

    A decision costs about a millisecond: one pass of the network over the waiting queries.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task; N, K, d and W as in the training.
    seed : int
        Of a recurrent policy's draws, which are how it explores; of others the most probable
        decision is played.
    model : str
        File written by `baselines.rl.train`; load only files of your own. Subclasses may set
        it as a class attribute instead.
    sha256 : str, optional
        Digest the file must have, so that a stored result names the very weights.

    Raises
    ------
    ValueError
        If the file is no such model, or was trained for another shape of task.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, model: str | None = None, sha256: str | None = None
    ) -> None:
        super().__init__(problem, seed)
        keys = ("num_llms", "assortment_size", "context_dim", "window")
        shape = {key: getattr(problem, key) for key in keys}
        self._file = self._read(model, sha256, QUEUE_ENV, shape)
        self._policy, used = self._network()
        self._masked = used.algorithm.endswith(":MaskablePPO")
        self._recurrent = used.recalls
        self._memory = RefusalCounts(1, problem.num_llms) if used.remembers else None
        self._previous: dict[str, NDArray[Any]] = {
            "previous_context": np.zeros(problem.context_dim, dtype=np.float32),
            "previous_llms": np.zeros(problem.num_llms, dtype=np.int8),
        }
        self._sets = assortments(problem.num_llms, problem.assortment_size)

    def _network(self) -> tuple[Any, Recipe]:
        return _make_policy(
            self._file, lambda used: queue_spaces(self.problem, used.recalls, used.remembers)
        )

    def act(self, observation: Observation) -> Action:
        """Return ``[slot, llm_1, ..., llm_K]``, shape (1 + K,)."""
        legal = legal_decisions(observation, len(self._sets))
        if self._recurrent:
            decision = self._sample({**observation, **self._previous}, legal)
        else:
            masks = {"action_masks": legal} if self._masked else {}
            seen = dict(observation)
            if self._memory is not None:
                window = seen["age"][None], seen["waiting"][None]
                seen[REFUSALS] = self._memory.of(*window)[0]
            decision, _ = self._policy.predict(seen, deterministic=True, **masks)
        slot, which = divmod(int(decision), len(self._sets))
        return np.array([slot, *self._sets[which]], dtype=np.int64)

    def _sample(self, seen: Observation, legal: NDArray[np.bool_]) -> int:
        """Draw a legal decision of a recurrent policy: its randomness is how it explores."""
        logits, self._state = recall(self._policy, seen, self._state)
        weights = np.where(legal, np.exp(logits - logits[legal].max()), 0.0)
        return int(self.rng.choice(len(weights), p=weights / weights.sum()))

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Remember what was decided, or refused, for a policy that sees it; no weight changes."""
        if self._memory is not None:
            age, shown = observation["age"][action[:1]], action[None, 1:]
            self._memory.note(age, shown, np.array([info["retried"]]))
        served = bool(observation["waiting"][action[0]])
        self._previous = previous_decision(
            observation["contexts"], action, served, self.problem.num_llms
        )


class TrainedDeployAgent(_Saved, DeployAgent):
    """A policy trained on LLMDeployStage-v0, frozen: it deploys and plans a stage at its start.

    Parameters
    ----------
    problem : DeployProblem
        Public parameters of the task; N as in the training.
    seed : int
        Unused: the mean action is played.
    model : str
        File written by `baselines.rl.train`; load only files of your own. Subclasses may set
        it as a class attribute instead.
    sha256 : str, optional
        Digest the file must have, so that a stored result names the very weights.

    Raises
    ------
    ValueError
        If the file is no such model, or was trained for another number of LLMs.
    """

    def __init__(
        self, problem: DeployProblem, seed: int, model: str | None = None, sha256: str | None = None
    ) -> None:
        super().__init__(problem, seed)
        shape = {"num_llms": problem.num_llms}
        self._file = self._read(model, sha256, STAGE_ENV, shape)
        self._policy, _ = self._network()
        self._rules = DeploymentRules(
            problem.horizon, problem.num_stages, problem.max_deployed, problem.alpha, problem.budget
        )
        self._stage, self._place = -1, 0
        self._plan = np.zeros(0, dtype=np.int64)
        self._bits = np.zeros(problem.num_llms, dtype=np.int64)

    def _network(self) -> tuple[Any, Recipe]:
        return _make_policy(self._file, lambda _: stage_spaces(self.problem))

    def act(self, observation: Observation) -> Action:
        """Return N deployment bits and the LLM that answers, shape (N + 1,)."""
        if observation["deploy_now"] and self._place == len(self._plan):
            self._stage += 1
            self._place = 0
            self._start_stage(observation)
        return np.append(self._bits, self._plan[self._place])

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Move on to the next query of the plan."""
        self._place += 1

    def _start_stage(self, observation: Observation) -> None:
        """Read the action as LLMDeployStage-v0 does, and lay out the queries of the stage."""
        seen = {key: value for key, value in observation.items() if key not in _QUERY_ONLY}
        raw, _ = self._policy.predict(seen, deterministic=True)
        action = np.clip((raw.astype(np.float64) + 1.0) / 2.0, 0.0, 1.0)
        there = observation["arrived"].astype(np.bool_)
        bits, shares = stage_plan(action, there, self._rules)
        self._bits = bits.astype(np.int64)
        length = int(self._rules.stage_lengths[self._stage])
        self._plan = stage_schedule(shares, length)


class TrainedServeAgent(_Saved, Agent):
    """A policy trained on LLMServe-v0, frozen: it dispatches, and leaves the fleet as it is.

    Parameters
    ----------
    problem : ServeProblem
        Public parameters of the task; N, d, W, A and the places as in the training.
    seed : int
        Unused: the best decision is played.
    model : str
        File written by `baselines.rl.train`; load only files of your own. Subclasses may set
        it as a class attribute instead.
    sha256 : str, optional
        Digest the file must have, so that a stored result names the very weights.

    Raises
    ------
    ValueError
        If the file is no such model, or was trained for another shape of task.
    """

    kind = "serving"
    problem: ServeProblem  # type: ignore[assignment]

    def __init__(
        self, problem: ServeProblem, seed: int, model: str | None = None, sha256: str | None = None
    ) -> None:
        self.problem = problem
        places = list(problem.places)
        keys = ("num_llms", "context_dim", "window", "dispatches")
        shape = {**{key: getattr(problem, key) for key in keys}, "places": places}
        self._file = self._read(model, sha256, SERVE_ENV, shape)
        self._policy, used = self._network()
        self._masked, self._recurrent = used.name == "MaskablePPO", used.recalls

    def _network(self) -> tuple[Any, Recipe]:
        problem = self.problem
        self._dispatches = Dispatches(
            CANDIDATES, problem.window, problem.dispatches, problem.places
        )
        return _make_policy(self._file, lambda used: serve_spaces(problem))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_dispatches": None}

    def act(self, observation: Observation) -> Action:
        """Return ``[slot, replica] * A`` and a target for every replica, shape (2 A + R,)."""
        one = {key: value[None] for key, value in observation.items()}
        order, shown = self._dispatches.choose(one)
        seen = {key: shown[key] for key in self._policy.observation_space.spaces}
        room = (one["phase"][:, :, SERVING] > 0) & (one["active"] < np.array(self.problem.places))
        legal = self._dispatches.legal(one["waiting"] > 0, room, order)
        if self._recurrent:
            logits, self._state = recall(self._policy, seen, self._state)
            number = np.array([np.where(legal[0], logits, -np.inf).argmax()])
        else:
            masks = {"action_masks": legal} if self._masked else {}
            number, _ = self._policy.predict(seen, deterministic=True, **masks)
        action: Action = self._dispatches.decode(number, order)[0]
        return action


def recall(policy: Any, seen: Mapping[str, Any], state: Any) -> tuple[NDArray[Any], Any]:
    """Return the logits of a recurrent policy's decisions, and its next state."""
    tensors, _ = policy.obs_to_tensor(seen)
    with torch.no_grad():
        if state is None:
            zeros = torch.zeros(policy.lstm_hidden_state_shape)
            state = (zeros, zeros)
        distribution, state = policy.get_distribution(tensors, state, torch.zeros(1))
    return distribution.distribution.logits[0].double().numpy(), state


def legal_decisions(observation: Observation, num_sets: int) -> NDArray[np.bool_]:
    """Return the mask of the discrete decisions, (W C(N, K),); slot 0 stays legal if all is empty.

    Parameters
    ----------
    observation : Mapping
        Of LLMQueue-v0.
    num_sets : int
        Sets of LLMs, C(N, K).
    """
    legal = observation["waiting"].astype(np.bool_)
    legal[0] = True
    return np.repeat(legal, num_sets)


def queue_spaces(
    problem: QueueProblem, previous: bool = False, refusals: bool = False
) -> tuple[spaces.Dict, spaces.Discrete]:
    """Return the spaces of LLMQueue-v0 with discrete actions; no bounds, networks need none.

    With ``previous`` the observation holds the decision before, with ``refusals`` what waiting
    queries have refused.
    """
    window = problem.window
    sets = len(assortments(problem.num_llms, problem.assortment_size))

    def box(*shape: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    observed: dict[str, spaces.Space[Any]] = {
        "contexts": box(window, problem.context_dim),
        "waiting": spaces.MultiBinary(window),
        "retrials": box(window),
        "age": box(window),
        "wait": box(window),
        "queue_length": box(1),
        "feedback": spaces.Discrete(2 + problem.num_llms),
    }
    if refusals:
        observed[REFUSALS] = box(window, problem.num_llms)
    if previous:
        observed["previous_context"] = box(problem.context_dim)
        observed["previous_llms"] = spaces.MultiBinary(problem.num_llms)
    return spaces.Dict(observed), spaces.Discrete(window * sets)


def stage_spaces(problem: DeployProblem) -> tuple[spaces.Dict, spaces.Box]:
    """Return the spaces of LLMDeployStage-v0 with actions in [-1, 1]; no other bounds."""
    size = problem.num_llms
    observed: dict[str, spaces.Space[Any]] = {
        key: spaces.MultiBinary(size) for key in ("arrived", "deployed")
    }
    for key in ("cost_prior", "count", "mean_reward", "mean_cost", "throughput_left"):
        observed[key] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    for key in ("query_progress", "spent", "budget_left"):
        observed[key] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    return spaces.Dict(observed), spaces.Box(-1.0, 1.0, (2 * size,), np.float32)


def serve_spaces(problem: ServeProblem) -> tuple[spaces.Dict, spaces.Discrete]:
    """Return the spaces of LLMServe-v0 with discrete actions; no bounds, networks need none."""
    window, fleet, llms = problem.window, problem.num_replicas, problem.num_llms
    chosen = Dispatches(CANDIDATES, window, problem.dispatches, problem.places)
    size, dim = chosen.candidates, problem.context_dim
    shapes: dict[str, tuple[int, ...]] = {
        "active": (fleet,),
        "contexts": (size, dim),
        "kept": (llms,),
        "not_kept": (llms,),
        "phase": (fleet, 4),
        "queue_length": (1,),
        "serving": (fleet, dim),
        "total": (dim,),
        **dict.fromkeys(("age", "retrials", "wait", "waiting"), (size,)),
    }
    observed: dict[str, spaces.Space[Any]] = {
        key: spaces.Box(-np.inf, np.inf, shape, np.float32) for key, shape in shapes.items()
    }
    return spaces.Dict(observed), chosen.space


def _make_policy(
    file: NDArray[np.uint8],
    make_spaces: Callable[[Recipe], tuple[spaces.Dict, spaces.Space[Any]]],
) -> tuple[Any, Recipe]:
    """Rebuild the network of a model file and read its weights."""
    content = io.BytesIO(file.tobytes())
    card = read_card(content)
    used = recipe(card["agent"], card["env_id"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
        policy = load_class(used.policy)(
            *make_spaces(used), lambda _: 0.0, **policy_arguments(used, card["problem"])
        )
    with zipfile.ZipFile(content) as archive:
        weights = io.BytesIO(archive.read("policy.pth"))
    policy.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    policy.set_training_mode(False)
    return policy, used
