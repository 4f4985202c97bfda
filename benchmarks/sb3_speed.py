"""``python -m benchmarks.sb3_speed``: PPO on the native vector environment against DummyVecEnv.

Both learn in one process, in turns, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from baselines.rl import recipe
from benchmarks.runner import provenance
from llmqueue_gym.sb3 import make_vec_env
from llmqueue_gym.wrappers import DiscreteActions, DiscreteActionsVector

LANES = 64
TASK: Mapping[str, Any] = {"instance_seed": 0, "reward": "departures", "max_episode_steps": 500}


def native() -> VecEnv:
    """All lanes in one object."""
    return make_vec_env("LLMQueue-v0", LANES, wrapper=DiscreteActionsVector, **TASK)


def one_by_one() -> VecEnv:
    """SB3's own: a list of scalar environments."""

    def make() -> gym.Env[Any, Any]:
        return DiscreteActions(gym.make("LLMQueue-v0", disable_env_checker=True, **TASK))

    return DummyVecEnv([make] * LANES)


def ppo(make: Callable[[], VecEnv], *, set_network: bool) -> PPO:
    """PPO with the recipe's hyperparameters, on SB3's network or on the recipe's."""
    used = recipe("PPO", "LLMQueue-v0")
    network = {"num_llms": 5, "assortment_size": 2, **used.network}
    if set_network:
        from baselines.rl.networks import SetPolicy

        return PPO(SetPolicy, make(), policy_kwargs=network, seed=0, device="cpu", **used.settings)
    return PPO("MultiInputPolicy", make(), seed=0, device="cpu", **used.settings)


def stepping(env: VecEnv, steps: int) -> float:
    """Return steps per second of all lanes under random actions, without a learner."""
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(LANES)]) for _ in range(16)]
    rounds = steps // LANES
    start = perf_counter()
    for number in range(rounds):
        env.step(actions[number % 16])
    return rounds * LANES / (perf_counter() - start)


def learning(model: PPO, steps: int) -> float:
    """Return environment steps per second of a learner at work."""
    start, before = perf_counter(), model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (perf_counter() - start)


def compare(rounds: int, steps: int) -> dict[str, Any]:
    """Median steps per second, and the median of the paired ratios with their quartiles."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    envs = native(), one_by_one()
    cases["random actions"] = (lambda: stepping(envs[0], steps), lambda: stepping(envs[1], steps))
    for name, set_network in (("PPO, MultiInputPolicy", False), ("PPO, SetPolicy", True)):
        models = [ppo(make, set_network=set_network) for make in (native, one_by_one)]
        for model in models:
            model.learn(steps)  # past the first random queues
        ours, theirs = models

        def first(model: PPO = ours) -> float:
            return learning(model, steps)

        def second(model: PPO = theirs) -> float:
            return learning(model, steps)

        cases[name] = (first, second)
    for name, (fast, slow) in cases.items():
        pairs = []
        for number in range(rounds):
            if number % 2:
                pairs.append((fast(), slow()))
            else:
                other = slow()
                pairs.append((fast(), other))
        table = np.array(pairs)
        ratio = table[:, 0] / table[:, 1]
        results[name] = {
            f"native x{LANES} steps/s": float(np.median(table[:, 0])),
            f"DummyVecEnv x{LANES} steps/s": float(np.median(table[:, 1])),
            "ratio": float(np.median(ratio)),
            "ratio quartiles": [float(q) for q in np.quantile(ratio, (0.25, 0.75))],
        }
    return results


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--steps", type=int, default=8192, help="environment steps a turn")
    arguments = parser.parse_args()
    found = compare(arguments.rounds, arguments.steps)
    command = "python -m benchmarks.sb3_speed"
    print(json.dumps({**found, "provenance": provenance(command)}, indent=2))


if __name__ == "__main__":
    main()
