"""LLMServe-v0 plays the trajectories it has always played, bit for bit, compiled or not.

Each digest covers observation, reward and ``info`` of slots under random actions. A commit that
means to change results changes a digest and says so.
"""

import hashlib

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments

SETTINGS = {
    "tiny-pair": {"preset": "tiny-pair", "load": 0.8, "window": 6},
    "users-who-leave": {
        "preset": "fleet",
        "impatience": 0.02,
        "give_up": 0.1,
        "instance_seed": 1,
        "window": 5,
    },
    "windows": {
        "preset": "autoscale",
        "arrivals": {"process": "daily", "day": 2000, "swing": 0.8},
        "update_every": 40,
        "loading": 25,
        "window": 5,
    },
}
DIGESTS = {
    "tiny-pair": "35ba6e4641329461",
    "users-who-leave": "c5785e6b04aa0dcf",
    "windows": "b14812ee25811e2c",
}


def digest_of(settings, slots=500):
    env, digest = gym.make("LLMServe-v0", **settings), hashlib.sha256()
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    reward = 0.0
    for _ in range(slots):
        for _, value in sorted({**observation, **info, "reward": round(reward, 9)}.items()):
            digest.update(np.ascontiguousarray(value).tobytes())
        parts = np.split(info["action_mask"], np.cumsum(env.action_space.nvec)[:-1])
        legal = env.action_space.sample(mask=tuple(parts))
        observation, reward, *_, info = env.step(legal)
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_trajectory_is_the_one_on_record(name):
    assert digest_of(SETTINGS[name]) == DIGESTS[name]
