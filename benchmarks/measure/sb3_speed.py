"""``python -m benchmarks.measure.sb3_speed``: PPO on native vector lanes against DummyVecEnv.

Both learn in one process with one thread, in turns, on the CPU time of the process: what else the
machine does falls on neither.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from baselines.rl import recipe
from benchmarks.report import insert_between_markers
from benchmarks.run.runner import provenance
from benchmarks.run.store import write_text
from benchmarks.score.task_board import INSTALLED
from llmqueue_gym.sb3 import make_vec_env
from llmqueue_gym.wrappers import DiscreteActions, DiscreteActionsVector

LANES = 64
TASK: Mapping[str, Any] = {"instance_seed": 0, "reward": "departures", "max_episode_steps": 500}


def native() -> VecEnv:
    """All lanes in one object."""
    return make_vec_env("LLMQueue-v0", LANES, wrapper=DiscreteActionsVector, monitor=False, **TASK)


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
    start = process_time()
    for number in range(rounds):
        env.step(actions[number % 16])
    return rounds * LANES / (process_time() - start)


def learning(model: PPO, steps: int) -> float:
    """Return environment steps per second of a learner at work."""
    start, before = process_time(), model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    return (model.num_timesteps - before) / (process_time() - start)


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
        low, high = np.quantile(ratio, (0.25, 0.75))
        results[name] = {
            "native": float(np.median(table[:, 0])),
            "DummyVecEnv": float(np.median(table[:, 1])),
            "ratio": float(np.median(ratio)),
            "low": float(low),
            "high": float(high),
        }
    return results


def markdown(found: Mapping[str, Mapping[str, float]], command: str) -> str:
    """Return the comparison as a table with its origin."""
    lines = [
        f"| x{LANES} | native steps/s | DummyVecEnv steps/s | ratio | quartiles |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['native']:,.0f} | {row['DummyVecEnv']:,.0f} | {row['ratio']:.2f} "
            f"| {row['low']:.2f} to {row['high']:.2f} |"
        )
    source = provenance(command)
    origin = (
        f"llmqueue_gym {source['version']} ({source['commit'] or INSTALLED}), {source['machine']}"
    )
    table = "\n".join(lines)
    return f"""{table}

`{command}`: environment steps per CPU second of the process, learning included, medians of turns
taken alternately; PPO with the recipe's hyperparameters; {origin}.
"""


def main() -> None:
    """Print the comparison as JSON, or put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--steps", type=int, default=8192, help="environment steps a turn")
    parser.add_argument("--page", type=Path, help="page whose marked part takes the table")
    arguments = parser.parse_args()
    command = shlex.join(["python", "-m", "benchmarks.measure.sb3_speed", *sys.argv[1:]])
    found = compare(arguments.rounds, arguments.steps)
    if arguments.page is None:
        print(json.dumps({**found, "provenance": provenance(command)}, indent=2))
        return
    text = arguments.page.read_text(encoding="utf-8")
    text = insert_between_markers(text, "sb3 speed", markdown(found, command))
    write_text(arguments.page, text)


if __name__ == "__main__":
    main()
