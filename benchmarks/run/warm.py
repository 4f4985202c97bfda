"""Loads kernels and agents' names on import: the fork server does it once, no cell has to.

The kernels are those of the problems whose way of play is loaded already, the others stay out: to
compile all of them takes most of a minute.
"""

import sys

import gymnasium as gym
import numpy as np

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.registry import agent_spec, make_agent
from benchmarks.problems import PROBLEMS

SLOTS = 20

agent_spec("random")  # a look-up imports the files of all agents

for _problem in PROBLEMS.values():
    if f"{_problem.package}.play" not in sys.modules:
        continue
    for _name in _problem.env_ids:
        _env = gym.make(_name, disable_env_checker=True)
        _env.reset(seed=0)
        _env.step(np.zeros_like(_env.action_space.sample()))
        _env.close()
    for _name in _problem.warm:
        _env = gym.make(_problem.env_ids[0], disable_env_checker=True)
        _seen, _start = _env.reset(seed=0)
        _agent = make_agent(_name, _problem.play.public_problem(_env, SLOTS), 0)
        for _slot in range(SLOTS):
            _action = _agent.act(_seen)
            _next, _reward, _end, _cut, _info = _env.step(_action)
            _agent.update(_seen, _action, float(_reward), _next, _info)
            _seen = _next
        _env.close()
