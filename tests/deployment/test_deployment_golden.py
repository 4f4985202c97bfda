"""Golden trajectories of the deployment problem: what it shows, pays and hides keeps its bits.

A digest says only that something changed. Change one on purpose, in a commit that says why.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.envs import LLMDeployVectorEnv

QUERIES = 5000  # in each of three forms
LANES = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"budget_per_query": 2e-3},
    "ledger": {
        "instance": "catalog",
        "budget": "hard",
        "budget_per_query": 5e-3,
        "price_changes": "recorded",
        "switching_cost": 1e-2,
    },
    "late": {
        "instance": {"source": "synthetic", "num_llms": 7},
        "drift": 0.3,
        "reward_delay": 37,
        "retirements": [{"llm": "llm_0", "query": 77}, {"llm": "llm_1", "query": 300}],
        "alpha": [0.6, 0.9, 0.5, 0.4, 0.6, 0.5, 1.0],
        "max_deployed": 3,
        "switching_cost": 1e-3,
    },
    "later": {"drift": 0.5, "reward_delay": 400, "alpha": 0.25},
    "table": {"drift": 0.2, "max_deployed": 2, "budget_per_query": 0.06},
}
TOTALS = ("spend", "ledger_spend", "total_reward", "ledger_score")
COUNTERS = ("refused", "violations", "projected")
ARRAYS = ("query", "stage", "deployed", "available", "count", "used", "mean_reward", "mean_cost")

MACHINE = "f68da1501962d90a"
DIGESTS = {
    "plain": {"query": "ae30b6ae867724a3", "lane": "29224f6a6ef963fe", "stage": "d9b0bc6e0934a742"},
    "ledger": {
        "query": "d050fad9099da264",
        "lane": "b67f08d3d737921e",
        "stage": "8ea8218ac008fe93",
    },
    "late": {"query": "6bb20ba86bf67f24", "lane": "636235f7385187af", "stage": "4acb343948145cbb"},
    "later": {"query": "d35391c50aaa2fb9", "lane": "b3977f356223765e", "stage": "5baec00973e5eac9"},
    "table": {"query": "d6382999bf83d243", "lane": "00d7b64c4b6f3b64", "stage": "10f44cce50935064"},
}


def machine() -> str:
    """Digest of NumPy's exp and log, whose last bit depends on the processor."""
    x = np.linspace(-3.0, 3.0, 10_001)
    return hashlib.sha256(np.exp(x).tobytes() + np.log(np.exp(x)).tobytes()).hexdigest()[:16]


class Digest:
    """SHA-256 of what it is shown: names, types and bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def show(self, values: dict[str, Any]) -> None:
        """Add a dict, nested as vector environments nest ``final_info``."""
        for key, value in sorted(values.items()):
            if isinstance(value, dict):
                self.show(value)
            elif isinstance(value, np.ndarray) and value.dtype == object:
                for entry in value:
                    self.show(entry or {})
            else:
                array = np.asarray(value)
                self._hash.update(f"{key}{array.dtype}".encode())
                self._hash.update(array.tobytes())

    def truth(self, dynamics: Any) -> None:
        """Add what is hidden from agents."""
        self.show({name: getattr(dynamics, name) for name in (*TOTALS, *COUNTERS, *ARRAYS)})

    def __str__(self) -> str:
        return self._hash.hexdigest()[:16]


def by_query(arguments: dict[str, Any]) -> str:
    """Play half the LLMs at random and one of them for a while, now and then any."""
    env: Any = gym.make(
        "LLMDeploy-v0", disable_env_checker=True, horizon=QUERIES, num_stages=33, **arguments
    ).unwrapped
    digest, rng, favourite = Digest(), np.random.default_rng(1), 0
    observation, info = env.reset(seed=0)
    digest.show({"seen": observation, "info": info})
    for _ in range(QUERIES):
        if rng.random() < 0.1:
            deployed = np.flatnonzero(observation["deployed"])
            known = deployed.size > 0 and rng.random() < 0.8
            favourite = int(rng.choice(deployed if known else len(env.llms)))
        action = np.append(rng.integers(2, size=len(env.llms)), favourite)
        observation, reward, _, truncated, info = env.step(action)
        digest.show({"seen": observation, "reward": reward, "info": info})
        if rng.random() < 0.1:
            digest.truth(env.dynamics)
    digest.truth(env.dynamics)
    assert truncated
    return str(digest)


def by_lane(arguments: dict[str, Any]) -> str:
    """Random masked actions in lanes that end and start anew at different queries."""
    env: Any = LLMDeployVectorEnv(
        LANES, autoreset_mode="SameStep", horizon=QUERIES // LANES // 2, num_stages=9, **arguments
    )
    digest, rng = Digest(), np.random.default_rng(1)
    observation, info = env.reset(seed=0)
    n = len(env.llms)
    for step in range(QUERIES // LANES):
        legal = info["action_mask"][:, 2 * n :]
        llms = np.argmax(rng.random(legal.shape) * (legal + 0.01), axis=1)
        actions = np.column_stack([rng.integers(2, size=(LANES, n)), llms])
        if step == 100:
            env.reset(seed=9, options={"reset_mask": np.arange(LANES) == 2})
        observation, reward, _, truncated, info = env.step(actions)
        digest.show({"seen": observation, "reward": reward, "ends": truncated, "info": info})
        if step % 10 == 0:
            digest.truth(env.dynamics)
    digest.truth(env.dynamics)
    return str(digest)


def by_stage(arguments: dict[str, Any]) -> str:
    """Random scores and weights."""
    env: Any = gym.make(
        "LLMDeployStage-v0", disable_env_checker=True, horizon=QUERIES, num_stages=50, **arguments
    ).unwrapped
    digest, rng = Digest(), np.random.default_rng(1)
    env.reset(seed=0)
    for _ in range(50):
        observation, reward, _, truncated, info = env.step(rng.random(2 * len(env.llms)))
        digest.show({"seen": observation, "reward": reward, "info": info})
        digest.truth(env.dynamics)
    assert truncated
    return str(digest)


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, Any]:
    """A table of 64 recorded queries for four LLMs."""
    rng, path = np.random.default_rng(2), tmp_path / "table.jsonl"
    with path.open("w") as file:
        for _ in range(64):
            quality = dict(zip("abcd", rng.random(4).tolist(), strict=True))
            cost = dict(zip("abcd", (0.1 * rng.random(4)).tolist(), strict=True))
            json.dump({"x": rng.random(3).tolist(), "q": quality, "c": cost}, file)
            file.write("\n")
    columns = {"embedding": "x", "quality": "q", "cost": "c"}
    return {"source": "table", "path": str(path), **columns}


@pytest.mark.filterwarnings("ignore:budget_per_query", "ignore:retirements")
@pytest.mark.parametrize("name", SETTINGS)
def test_trajectories_keep_their_bits(name: str, recorded: dict[str, Any]) -> None:
    arguments = SETTINGS[name]
    if name == "table":
        arguments = arguments | {"instance": recorded}
    elif machine() != MACHINE:
        pytest.skip("NumPy's exp and log, which make costs, round differently on this processor")
    played = {
        "query": by_query(arguments),
        "lane": by_lane(arguments),
        "stage": by_stage(arguments),
    }
    assert played == DIGESTS[name]
