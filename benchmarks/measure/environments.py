"""Speed of the environments: steps a second with random actions, and ratios to CartPole-v1.

The loops are those of gymnasium.utils.performance, sampling included, in short rounds that take
turns. Medians of rounds leave out the few in which episodes of 5,000 slots end, so resets are
measured by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np

from llmqueue_gym.registration import QUEUE_EPISODE_STEPS

LANES = 1024
ROUNDS = 12
USUAL = {"B": 256, "W": 32, "N": 5, "d": 5}
VARIED = {"B": (1, 16, 64, 1024), "W": (8, 128), "N": (20, 100), "d": (64, 384)}
"""Lanes, window, LLMs and length of a context, of which one at a time is varied."""
SCALAR, VECTOR = "LLMQueue-v0 / CartPole-v1", f"LLMQueue-v0 x{LANES} / CartPole-v1 x{LANES}"


@dataclass
class Runner:
    """An environment stepped with random actions, as Gymnasium's benchmark steps it.

    Attributes
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
        The environment, reset once.
    clock : callable
        Seconds used so far. CPU time of this process does not count what other programs on the
        machine do.
    """

    env: Any
    clock: Callable[[], float] = process_time

    def __post_init__(self) -> None:
        self.env.reset(seed=0)
        self.env.action_space.seed(0)
        self._vector = isinstance(self.env, gym.vector.VectorEnv)
        self.run(0.0)  # what is set up by the first step is not measured

    def run(self, seconds: float) -> float:
        """Return environment steps per second over a round of at least ``seconds``."""
        clock, step, sample = self.clock, self.env.step, self.env.action_space.sample
        steps, ended, end = 0, 0, 0.0
        start = clock()
        while end - start <= seconds:
            _, _, terminated, truncated, _ = step(sample())
            if self._vector:
                steps += self.env.num_envs - ended  # a lane's reset is no step of it
                ended = int(np.count_nonzero(terminated | truncated))
            else:
                steps += 1
                if terminated or truncated:
                    self.env.reset()
            end = clock()
        return steps / (end - start)

    def reset_seconds(self, times: int = 3) -> float:
        """Return the seconds that a reset of all lanes takes, the median of some."""
        spent = []
        for _ in range(times):
            start = self.clock()
            self.env.reset()
            spent.append(self.clock() - start)
        return median(spent)


@contextmanager
def _vectors(makers: Mapping[str, Callable[[], Any]]) -> Iterator[dict[str, Runner]]:
    """Make the environments, and close them whatever happens."""
    runners: dict[str, Runner] = {}
    try:
        for name, make in makers.items():
            runners[name] = Runner(make())
        yield runners
    finally:
        for runner in runners.values():
            runner.env.close()


def take_turns(
    runners: Mapping[str, Runner], seconds: float, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Return steps per second of each round; the rounds of all runners alternate.

    What else the machine does drifts slowly, so ratios within a round are far steadier than
    ratios of long runs one after the other.
    """
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            speeds[name].append(runner.run(seconds / rounds))
    return speeds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))


def _vector_env(env_id: str, lanes: int, mode: str, **kwargs: Any) -> Any:
    return gym.make_vec(env_id, num_envs=lanes, vectorization_mode=mode, **kwargs)


def cartpole_ratios(seconds: float, lanes: int = LANES) -> dict[str, float]:
    """Speeds of LLMQueue-v0 over CartPole-v1's: scalar, and native vector environments.

    Both with default arguments, so that every lane has an instance of its own.
    """
    native = "vector_entry_point"
    makers: dict[str, Callable[[], Any]] = {
        "queue": lambda: gym.make("LLMQueue-v0"),
        "cartpole": lambda: gym.make("CartPole-v1"),
        "queues": lambda: _vector_env("LLMQueue-v0", lanes, native),
        "cartpoles": lambda: _vector_env("CartPole-v1", lanes, native),
    }
    with _vectors(makers) as runners:
        speeds = take_turns(runners, seconds)
    return {
        SCALAR: median_ratio(speeds["queue"], speeds["cartpole"]),
        VECTOR: median_ratio(speeds["queues"], speeds["cartpoles"]),
    }


def environment_speed(seconds: float, lanes: int = LANES) -> dict[str, float]:
    """Compare LLMQueue-v0 with CartPole-v1, and its vector form with SyncVectorEnv of itself."""
    native = "vector_entry_point"
    makers: dict[str, Callable[[], Any]] = {
        "CartPole-v1": lambda: gym.make("CartPole-v1"),
        "LLMQueue-v0": lambda: gym.make("LLMQueue-v0"),
        f"CartPole-v1 x{lanes}": lambda: _vector_env("CartPole-v1", lanes, native),
        f"LLMQueue-v0 x{lanes}": lambda: _vector_env("LLMQueue-v0", lanes, native),
        f"LLMQueue-v0 x{lanes} (one instance)": lambda: _vector_env(
            "LLMQueue-v0", lanes, native, instance_seed=0
        ),
        f"SyncVectorEnv x{lanes} (one instance)": lambda: _vector_env(
            "LLMQueue-v0", lanes, "sync", instance_seed=0
        ),
    }
    scalar_cart, scalar, cart, own, one, sync = makers
    with _vectors(makers) as runners:
        speeds = take_turns(runners, seconds)
        resets = {name: runners[name].reset_seconds() for name in (own, one)}
    slots = QUEUE_EPISODE_STEPS * lanes
    ratios = [(scalar, scalar_cart), (own, cart), (one, cart), (one, sync)]
    return {
        **{f"{name} steps/s": median(values) for name, values in speeds.items()},
        **{f"{a} / {b}": median_ratio(speeds[a], speeds[b]) for a, b in ratios},
        **{f"{name}, a reset, us a lane": 1e6 * spent / lanes for name, spent in resets.items()},
        **{
            f"{name}, resets counted, steps/s": slots / (slots / median(speeds[name]) + spent)
            for name, spent in resets.items()
        },
    }


def growth_speed(seconds: float) -> dict[str, float]:
    """How a step of the vector environment grows, with one instance: us a lane and step."""
    sizes = [USUAL, *(USUAL | {name: n} for name, many in VARIED.items() for n in many)]
    names = [", ".join(f"{name}={n}" for name, n in size.items()) for size in sizes]

    def maker(size: Mapping[str, int]) -> Callable[[], Any]:
        arguments = {"window": size["W"], "num_llms": size["N"], "context_dim": size["d"]}
        lanes, mode = size["B"], "vector_entry_point"
        return lambda: _vector_env("LLMQueue-v0", lanes, mode, instance_seed=0, **arguments)

    makers = {name: maker(size) for name, size in zip(names, sizes, strict=True)}
    with _vectors(makers) as runners:
        speeds = take_turns(runners, seconds)
    return {f"a lane and step, {name}, us": 1e6 / median(values) for name, values in speeds.items()}
