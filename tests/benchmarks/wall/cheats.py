"""Agents that cheat. Each plays like `random` unless its cheat works; then it plays the optimum.

They are told where the results lie, and what else they might guess, in ``told.json`` beside them.
"""

import gc
import glob
import json
import os
import socket
import sys
import time
from mmap import mmap
from pathlib import Path

import gymnasium as gym
import numpy as np

from baselines.queueing.heuristics import RandomAgent
from llmqueue_gym.oracles import MyopicOracle

HERE = Path(__file__).parent
TOLD = json.loads((HERE / "told.json").read_text())


class Cheat(RandomAgent):
    """Plays the optimum of a world that shows what is observed, if it finds one."""

    worlds = None

    def find(self):
        """Return candidates."""
        return ()

    def act(self, observation):
        if self.worlds is None and observation["waiting"].any():
            self.worlds = list(self.find())
        self.worlds = self.worlds and [w for w in self.worlds if shows(w, observation)]
        if not self.worlds:
            return super().act(observation)
        slots, llms = self.worlds[0].best_actions()
        return np.array([slots[0], *llms[0]])


def shows(dynamics, observation):
    seen = dynamics.observe()
    return all(np.array_equal(seen[key][0], observation[key]) for key in observation)


class WalksTheStack(Cheat):
    def find(self):
        frame = sys._getframe()
        while frame is not None:
            for value in list(frame.f_locals.values()):
                if isinstance(value, gym.Env):
                    yield value.unwrapped.dynamics
            frame = frame.f_back


class ReadsTheHeap(Cheat):
    def find(self):
        yield from (o for o in gc.get_objects() if type(o).__name__ == "QueueDynamics" and o.ready)


class ImportsTheOracle(Cheat):
    def find(self):
        yield from (o._env.unwrapped.dynamics for o in gc.get_objects() if type(o) is MyopicOracle)


class GuessesSeeds(Cheat):
    """Plays the task, which is public, along with the judge, with the seeds that others use."""

    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        kwargs = {**TOLD["kwargs"], "disable_env_checker": True}
        self.envs = [gym.make("LLMQueue-v0", **kwargs) for _ in range(10)]
        for number, env in enumerate(self.envs):
            env.reset(seed=number)

    def find(self):
        return [env.unwrapped.dynamics for env in self.envs]

    def act(self, observation):
        action = super().act(observation)
        known = [w for w in self.worlds or () if w is not None]
        for env in self.envs:
            if self.worlds is None or env.unwrapped.dynamics in known:
                env.step(action)
        return action


class ScribblesOnArrays(Cheat):
    def act(self, observation):
        self.action = super().act(observation)
        return self.action

    def update(self, observation, action, reward, next_observation, info):
        super().update(observation, action, reward, next_observation, info)
        self.action[:] = action[:] = 0
        for array in (*observation.values(), *info.values()):
            if isinstance(array, np.ndarray):
                array.flags.writeable = True
                array[...] = 0


class ScribblesOnSharedMemory(Cheat):
    """Overwrites what the judge has written for it, and all that lies behind."""

    def act(self, observation):
        action, frame, found = super().act(observation), sys._getframe(), []
        while frame is not None:
            found += [value for value in frame.f_locals.values() if type(value) is mmap]
            frame = frame.f_back
        for memory in found:
            memory[: 1 << 18] = b"\xff" * (1 << 18)
        if not found:
            raise RuntimeError("it finds no shared memory")
        return action


class PatchesModules(Cheat):
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        time.perf_counter_ns = lambda: 0
        np.mean = np.median = lambda values: 0.0
        gym.Env.step = gym.Wrapper.step = None
        from benchmarks.run import runner

        runner.learning_curve = lambda sums: {"t": [1], "queue": [0.0], "regret": [0.0]}


class RewritesResults(Cheat):
    """Overwrites results, and what it finds of them tells it what to play."""

    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        for path in (Path(TOLD["results"]) / "run.json", Path(TOLD["secret"])):
            if path.exists() and path.read_bytes():
                raise RuntimeError(f"it reads {path}")
        for name in ("run.json", "cells/forged.json"):
            path = Path(TOLD["results"]) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("forged")


class RemembersOnDisk(Cheat):
    """Keeps what it learns from seed to seed wherever it can write."""

    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        folders = (HERE, Path.cwd(), Path.home(), *map(Path, ("/tmp", "/var/tmp", "/dev/shm")))
        notes = [folder / "remembered" for folder in folders]
        if there := [str(note) for note in notes if note.exists()]:
            raise RuntimeError(f"it remembers in {there}")
        for note in notes:
            try:
                note.write_text("learned")
            except OSError:
                continue


class Forks(Cheat):
    """A child lives on, and leaves a note of it where it can."""

    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        if os.fork() == 0:
            os.setsid()
            time.sleep(300)
            os._exit(0)


class CallsOut(Cheat):
    """Asks the network, the fork server and other processes."""

    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        for address in (("127.0.0.1", TOLD["port"]), *glob.glob("/tmp/pymp-*/listener-*")):
            family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
            with socket.socket(family) as there:
                if there.connect_ex(address) == 0:
                    raise RuntimeError(f"it reaches {address}")
        others = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        for other in others:
            if TOLD["results"].encode() in Path(f"/proc/{other}/cmdline").read_bytes():
                raise RuntimeError(f"it sees process {other}")
        if len(others) > 2:  # itself, and the one that waits for it
            raise RuntimeError(f"it sees processes {others}")


class Undoes(Cheat):
    """Takes the fence down from inside."""

    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        import ctypes

        libc = ctypes.CDLL(None)
        done = [libc.umount2(path, 2) == 0 for path in (b"/run", b"/tmp", b"/dev")]
        done.append(libc.mount(b"none", b"/", None, 32 | 4096, None) == 0)  # remount, writable
        if any(done):
            raise RuntimeError(f"it undoes {done}")


class SleepsBetweenSteps(Cheat):
    """Works where it hopes that nobody looks at the clock."""

    def update(self, *step):
        super().update(*step)
        time.sleep(0.004)


class PrintsEscapes(Cheat):
    def act(self, observation):
        print("\x1b[2J\x1b]0;owned\x07" * 2_000)
        raise RuntimeError("\x1b[31mred\x07")


class ForgesAnswers(Cheat):
    """Writes a result of its own into every pipe that it has."""

    def act(self, observation):
        forged = b'{"state": "done", "payload": {"metrics": {"mean_queue": 0.0}}}'
        for handle in range(3, 64):
            try:
                os.write(handle, forged)
            except OSError:
                continue
        return super().act(observation)
