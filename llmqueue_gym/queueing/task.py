"""LLMQueue-v0's arguments, validated: the spaces, and how an instance is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError, first_playable
from llmqueue_gym.queueing.choice import best_assortment
from llmqueue_gym.queueing.dynamics import FIRST_LLM, NUM_STREAMS
from llmqueue_gym.queueing.feedback import read_feedback
from llmqueue_gym.queueing.lanes import MAX_SLOTS, Population, QueueDynamics
from llmqueue_gym.streams import Draws
from llmqueue_gym.vector import INSTANCE_TAG
from llmqueue_gym.workloads import make_workload
from llmqueue_gym.workloads.arrivals import make_arrivals

REWARDS = ("queue_length", "departures")
MAX_COUNT = float(MAX_SLOTS)
DEFAULT_ARRIVAL_RATE = 0.7
DEFAULT_SLACK = 0.1


class Task:
    """Validated arguments of LLMQueue-v0: the spaces, and how an instance is drawn."""

    def __init__(
        self,
        workload: str | Mapping[str, Any],
        num_llms: int | None,
        assortment_size: int,
        context_dim: int | None,
        arrival_rate: float | None,
        load: float | None,
        slack: float | None,
        window: int,
        reward: str,
        instance_seed: int | None,
        arrivals: str | Mapping[str, Any] = "bernoulli",
        feedback: Mapping[str, Any] | None = None,
    ) -> None:
        self.assortment_size = checks.count("assortment_size", assortment_size)
        self.window = checks.count("window", window)
        if instance_seed is not None:
            checks.count("instance_seed", instance_seed, minimum=0)
        if reward not in REWARDS:
            raise UsageError(f"reward={reward!r} is not known; choose one of {', '.join(REWARDS)}")
        self.reward = reward
        self.noise = read_feedback(feedback)
        self.arrival_rate, self.load, self.slack = self._check_rates(arrival_rate, load, slack)
        self.workload = make_workload(
            workload,
            num_llms=num_llms,
            context_dim=context_dim,
            assortment_size=self.assortment_size,
        )
        self.num_llms = len(self.workload.llms)
        self.arrivals = make_arrivals(arrivals)
        if self.arrival_rate is not None:
            self.arrivals.check(self.arrival_rate)
        self._fixed: tuple[Population, float] | None = None
        if instance_seed is not None:
            # The tag keeps the instance apart from everything else that is seeded with a number.
            self._fixed = self._draw(np.random.default_rng([instance_seed, INSTANCE_TAG]))

    @staticmethod
    def _check_rates(
        arrival_rate: float | None, load: float | None, slack: float | None
    ) -> tuple[float | None, float | None, float | None]:
        if arrival_rate is not None and load is not None:
            raise UsageError(
                f"arrival_rate={arrival_rate!r} and load={load!r} both set the arrivals; "
                "give only one of them"
            )
        if load is not None:
            if slack is not None:
                raise UsageError(
                    f"slack={slack!r} is measured from arrival_rate; give arrival_rate, not load"
                )
            if checks.number("load", load, "[0, inf]") >= 1.0:
                raise UsageError(
                    f"load={load!r} must be below 1, else no policy is stable; to overload the "
                    "queue on purpose set arrival_rate instead, which is not limited by capacity"
                )
            return None, float(load), None
        if arrival_rate is None and slack is None:
            return DEFAULT_ARRIVAL_RATE, None, DEFAULT_SLACK
        rate = DEFAULT_ARRIVAL_RATE if arrival_rate is None else arrival_rate
        rate = checks.number("arrival_rate", rate, "[0, 1]", " (queries per slot)")
        if slack is not None:
            slack = checks.number("slack", slack, "[0, 1]")
            if rate + slack >= 1.0:
                raise UsageError(
                    f"slack={slack!r} with arrival_rate={rate!r} asks for departure rates of at "
                    f"least {rate + slack:g}; their sum must be below 1"
                )
        return rate, None, slack

    def _draw(self, rng: np.random.Generator) -> tuple[Population, float]:
        """Draw an instance that can be played, and its arrival rate."""
        return first_playable(lambda: self._draw_once(rng))

    def _draw_once(self, rng: np.random.Generator) -> tuple[Population, float]:
        size = self.assortment_size
        if self.slack is not None:
            least = (self.arrival_rate or 0.0) + self.slack

            def accept(utilities: NDArray[np.float64]) -> NDArray[np.bool_]:
                return np.asarray(best_assortment(np.exp(utilities), size)[1] >= least)

            drawn = self.workload.draw(rng, accept)
        else:
            drawn = self.workload.draw(rng)
        population = Population(drawn.contexts, drawn.utilities, size, drawn.cost)
        if self.load is not None:
            rate = self.load * population.capacity
            self.arrivals.check(rate)
            return population, rate
        assert self.arrival_rate is not None
        return population, self.arrival_rate

    def start(self, np_random: np.random.Generator) -> tuple[Population, float, list[Draws]]:
        """Draw what one episode needs: population, arrival rate and the streams."""
        instance, arrivals, *others = np_random.spawn(1 + NUM_STREAMS + (self.noise is not None))
        population, rate = self._fixed or self._draw(instance)
        return population, rate, [self.arrivals.stream(rate, arrivals), *others]

    def observation_space(self) -> spaces.Dict:
        """Return the space of what a provider sees."""
        window, dim = self.window, self.workload.context_dim
        largest = float(np.finfo(np.float32).max)
        count = spaces.Box(0.0, MAX_COUNT, (window,), np.float32)
        return spaces.Dict(
            {
                "contexts": spaces.Box(-largest, largest, (window, dim), np.float32),
                "waiting": spaces.MultiBinary(window),
                "retrials": count,
                "age": count,
                "wait": count,
                "queue_length": spaces.Box(0.0, MAX_COUNT, (1,), np.float32),
                "feedback": spaces.Discrete(FIRST_LLM + self.num_llms),
            }
        )

    def action_space(self) -> spaces.MultiDiscrete:
        """Return the space of [slot, K LLMs]."""
        return spaces.MultiDiscrete([self.window] + [self.num_llms] * self.assortment_size)

    def dynamics(self, num_lanes: int) -> QueueDynamics:
        """Return lanes of this problem, not yet reset."""
        dim = self.workload.context_dim
        return QueueDynamics(num_lanes, self.window, self.assortment_size, dim, self.noise)

    def problem(self, dynamics: QueueDynamics, lane: int = 0) -> dict[str, Any]:
        """Public parameters of a lane, JSON-plain: the fields of an agent's queue problem."""
        if not dynamics.ready:
            raise gym.error.ResetNeeded("call reset() before problem is read")
        return {
            "num_llms": self.num_llms,
            "assortment_size": self.assortment_size,
            "context_dim": self.workload.context_dim,
            "window": self.window,
            "arrival_rate": float(dynamics.arrival_rate[lane]),
            "feedback_delay": self.noise.delay if self.noise else 0,
        }

    def mask_table(self) -> NDArray[np.bool_]:
        """Flat action masks by the number of visible queries, shape (W + 1, W + N K)."""
        llm_entries = self.num_llms * self.assortment_size
        table = np.ones((self.window + 1, self.window + llm_entries), dtype=np.bool_)
        table[:, : self.window] = np.tri(self.window + 1, self.window, -1, dtype=np.bool_)
        table[0, 0] = True  # an empty queue keeps one legal action: slot 0, which does nothing
        return table

    def invalid_action(self, action: Any, rows: str = "") -> UsageError:
        """Return the error for an action outside the space."""
        return UsageError(
            f"action={action!r} is not in the action space: it takes {rows}integers [slot, "
            f"{self.assortment_size} LLMs] with slot in [0, {self.window}) and LLMs in "
            f"[0, {self.num_llms})"
        )
