"""Loads kernels and agents' names on import: the fork server does it once, no cell has to.

The kernels are those of the problems whose way of play is loaded already, the others stay out: to
compile all of them takes most of a minute. They are compiled by a child, so that every process of
every run plays with kernels that were loaded (`llmqueue_gym.compiled.NEWLY_KEPT` says why).
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import sleep

import gymnasium as gym
import numpy as np

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines.registry import agent_spec, make_agent
from benchmarks.problems import PROBLEMS
from benchmarks.problems.interface import Problem

SLOTS = 20


def play(problem: Problem) -> None:
    """Play some slots with the environments of a problem, and with the agents it names."""
    for name in problem.env_ids:
        env = gym.make(name, disable_env_checker=True)
        env.reset(seed=0)
        env.step(np.zeros_like(env.action_space.sample()))
        env.close()
    for name in problem.warm:
        env = gym.make(problem.env_ids[0], disable_env_checker=True)
        seen, _ = env.reset(seed=0)
        agent = make_agent(name, problem.play.public_problem(env, SLOTS), 0)
        for _ in range(SLOTS):
            action = agent.act(seen)
            following, reward, _, _, info = env.step(action)
            agent.update(seen, action, float(reward), following, info)
            seen = following
        env.close()


def compile_apart(problems: Sequence[Problem]) -> None:
    """Let a child compile and keep what is not kept yet; where all is, that takes .2 s.

    Without the process that started this one nobody waits for kernels: then both end.
    """
    if not hasattr(os, "fork") or "NUMBA_CACHE_DIR" not in os.environ:
        return
    parent, child = os.getppid(), os.fork()
    if child == 0:
        with suppress(BaseException):  # `play` in the parent fails in the same words
            for problem in problems:
                play(problem)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if os.getppid() != parent:
            os.kill(child, signal.SIGKILL)
            raise SystemExit(1)
        sleep(0.01)


agent_spec("random")  # a look-up imports the files of all agents

_problems = [one for one in PROBLEMS.values() if f"{one.package}.play" in sys.modules]
compile_apart(_problems)
for _problem in _problems:
    play(_problem)
