"""LLMQueue-v0 plays the trajectories it has always played, bit for bit.

Each digest covers 10,000 slots: observation, reward, ``info``, and of the hidden state the queries
in the window, the last of the queue and the oracle's choice. Nothing in it depends on how a
machine rounds ``exp`` or a matrix product. A commit that means to change results changes a digest
and says so.
"""

import hashlib
import json

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments

SLOTS = 10_000


def table(path):
    """Write a table of 300 queries, their embeddings and what 6 LLMs make of them."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        names = [f"llm{j}" for j in range(6)]
        quality = dict(zip(names, rng.random(6).round(2).tolist(), strict=True))
        cost = dict(zip(names, (0.1 * rng.random(6)).tolist(), strict=True))
        embedding = rng.uniform(-1, 1, 64).tolist()
        lines.append(json.dumps({"x": embedding, "q": quality, "c": cost}))
    path.write_text("\n".join(lines))
    return {
        "source": "table",
        "path": str(path),
        "embedding": "x",
        "quality": "q",
        "cost": "c",
        "cost_weight": 1,
        "scale": "table",
    }


class Digest:
    """A sha256 of what is seen, in the order of the keys."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, values):
        for _, value in sorted(values.items()):
            if isinstance(value, dict):
                self.add(value)
            else:
                array = np.ascontiguousarray(value)
                self._hash.update(f"{array.dtype}{array.shape}".encode())
                self._hash.update(array.tobytes())

    def __str__(self):
        return self._hash.hexdigest()[:16]


def hidden(dynamics):
    slots, llms = dynamics.best_actions()
    state = {"queries": dynamics.window_queries, "slots": slots, "llms": llms}
    if dynamics.num_lanes == 1 and dynamics.queue_length[0]:
        state["tail"] = dynamics.tail_query()
    return state


def play(env, seed, clever):
    """Play one queue: random actions (empty places, repeated LLMs), some of them the oracle's."""
    digest, rng = Digest(), np.random.default_rng(seed)
    dynamics, nvec = env.unwrapped.dynamics, env.action_space.nvec
    seen, info = env.reset(seed=seed)
    digest.add({"seen": seen, "info": info, "hidden": hidden(dynamics)})
    longest = 0
    for _ in range(SLOTS):
        action = rng.integers(nvec)
        if rng.random() < clever:
            slots, llms = dynamics.best_actions()
            action = np.array([slots[0], *llms[0]])
        seen, reward, _, _, info = env.step(action)
        digest.add({"seen": seen, "reward": np.float64(reward), "info": info})
        digest.add(hidden(dynamics))
        longest = max(longest, int(info["queue_length"]))
    return str(digest), longest


# By setting: arguments, share of the oracle's actions, the longest queue, the digest.
TWO_STATES = {"process": "markov-modulated", "rates": [0.5, 1.5], "sojourns": [200, 200]}
SCALAR = {
    "one LLM shown, the window holds all": (
        {"assortment_size": 1, "load": 0.8, "window": 64},
        1.0,
        13,
        "0b095bb868d403cf",
    ),
    "a table of real queries, a small window": (
        {"workload": table, "assortment_size": 2, "load": 0.95, "window": 4},
        0.7,
        179,
        "8ab1a6ca4a876c32",
    ),
    "arrivals in two states, more than can be served": (
        {"assortment_size": 3, "num_llms": 7, "arrival_rate": 0.6, "arrivals": TWO_STATES}
        | {"window": 9, "reward": "departures", "flat_observation": True},
        0.2,
        113,
        "7c8a242ff449ffe8",
    ),
}


@pytest.mark.parametrize("setting", SCALAR)
def test_a_queue_plays_as_it_always_did(setting, tmp_path):
    arguments, clever, longest, digest = SCALAR[setting]
    if arguments.get("workload") is table:
        arguments = arguments | {"workload": table(tmp_path / "table.jsonl")}
    env = gym.make("LLMQueue-v0", SLOTS, disable_env_checker=True, **arguments)
    assert play(env, 7, clever) == (digest, longest)


@pytest.mark.parametrize(
    ("mode", "instance_seed", "digest"),
    [("NEXT_STEP", None, "d32c66642d702c05"), ("SAME_STEP", 3, "e436782227b608cd")],
)
def test_lanes_play_as_they_always_did(mode, instance_seed, digest):
    """4 lanes of 1,250 slots each, episodes of 300, one lane reset apart from the others."""
    env = gym.make_vec(
        "LLMQueue-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        max_episode_steps=300,
        autoreset_mode=mode,
        instance_seed=instance_seed,
        load=0.9,
        window=5,
    )
    total, rng = Digest(), np.random.default_rng(0)
    env.reset(seed=11)
    for step in range(SLOTS // 8):
        if step == 140:
            seen, info = env.reset(seed=[1, 2, 3, 4], options={"reset_mask": np.arange(4) == 2})
            total.add({"seen": seen, "info": info})
        actions = rng.integers(env.action_space.nvec)
        if step % 2:
            slots, llms = env.dynamics.best_actions()
            actions = np.column_stack([slots, llms])
        seen, reward, _, truncated, info = env.step(actions)
        final = info.pop("final_info", {})
        last = [value for value in info.pop("final_obs", ()) if value is not None]
        total.add({"seen": seen, "reward": reward, "truncated": truncated, "info": info})
        total.add({"final": final} | hidden(env.dynamics))
        for observation in last:
            total.add(observation)
    assert str(total) == digest
