"""Loads the compiled kernels on import: the fork server does it once, and no cell has to."""

import gymnasium as gym
import numpy as np

import llmqueue_gym  # noqa: F401 - registers the environments

for _name in ("LLMQueue-v0", "LLMDeploy-v0"):
    _env = gym.make(_name, disable_env_checker=True)
    _env.reset(seed=0)
    _env.step(np.zeros_like(_env.action_space.sample()))
    _env.close()
