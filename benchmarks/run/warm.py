"""Loads kernels and agents' names on import: the fork server does it once, no cell has to."""

import gymnasium as gym
import numpy as np

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.registry import agent_spec
from benchmarks.problems import PROBLEMS

agent_spec("random")  # a look-up imports the files of all agents

for _name in (name for problem in PROBLEMS.values() for name in problem.env_ids):
    _env = gym.make(_name, disable_env_checker=True)
    _env.reset(seed=0)
    _env.step(np.zeros_like(_env.action_space.sample()))
    _env.close()
