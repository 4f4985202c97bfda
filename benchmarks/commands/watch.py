"""``llmqueue-bench watch``: an agent at play in the terminal, with the truth that scores it.

The loop, the agent and the seed are those of a cell; the picture is the environment's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import gymnasium as gym
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from baselines.interface import Action
from benchmarks.plan.cells import Cell, make_plan
from benchmarks.plan.suite import Suite, find_task
from benchmarks.problems.interface import Recorder
from benchmarks.run.runner import play_cell, set_up
from benchmarks.terminal import make_console
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import printable

FRAMES_A_SECOND = 12


class _EnoughError(Exception):
    """The number of steps asked for has been watched."""


def watched_cell(task: str, agent: str, seed: int, data: Mapping[str, str]) -> Cell:
    """Return the cell that is watched.

    Parameters
    ----------
    task : str
        ``SUITE:TASK`` or a task of a built-in suite.
    agent : str
        A name or ``"module:Class"``, or a label that the task's suite gives one.
    seed : int
        Seed of the run.
    data : Mapping[str, str]
        Data name -> path.

    Raises
    ------
    UsageError
        If there is no such task or agent, the agent plays other tasks, or data are missing.
    """
    found = find_task(task)
    listed = tuple(entry for entry in found.agents if entry.label == agent)
    alone = Suite(found.name, "", 1, (replace(found, agents=listed),))
    plan = make_plan(
        alone, agents=[] if listed or agent == "oracle" else [agent], data=data, trust=True
    )
    for cell in plan.cells:
        if agent in (cell.spec["agent"]["label"], cell.spec["agent"]["name"]):
            return replace(cell, spec={**cell.spec, "seed": seed})
    reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.skipped.items())
    raise UsageError(f"{agent!r} cannot play {found.name!r}: {reasons or 'it has to be trained'}")


def watch(
    cell: Cell, speed: float, steps: int | None = None, console: Console | None = None
) -> None:
    """Show a cell as it is played; only the last frame where the output is no terminal.

    Parameters
    ----------
    cell : Cell
        What is played.
    speed : float
        Steps a second; infinity plays as fast as it can.
    steps : int, optional
        Steps after which to stop; the task's horizon when not given.
    console : rich.console.Console, optional
        Where to; standard output when not given.

    Raises
    ------
    KeyboardInterrupt
        If the user ends it; the last frame stays.
    """
    if not speed > 0:
        raise UsageError(f"speed={speed} must be a positive number of steps a second")
    console = console or make_console()
    kwargs = {**cell.kwargs, "render_mode": "ansi"}
    env, policy, observation, recorder = set_up(cell.spec, kwargs, cell.model)
    try:
        pacer = _Pacer(recorder, speed if console.is_terminal else float("inf"), steps)

        def frame() -> Group:
            picture = Text.from_ansi(str(env.render()))
            return Group(_title(cell, pacer.played), picture, Text(recorder.truth(pacer.played)))

        if not console.is_terminal:
            _play(cell, env, policy, observation, pacer)
            console.print(frame())
            return
        with Live(frame(), console=console, auto_refresh=False, transient=False) as live:
            pacer.draw = lambda: live.update(frame(), refresh=True)
            _play(cell, env, policy, observation, pacer)
            live.update(frame(), refresh=True)
    finally:
        env.close()


def _play(cell: Cell, env: gym.Env[Any, Any], policy: Any, observation: Any, pacer: _Pacer) -> None:
    try:
        play_cell(cell.spec, env, policy, observation, pacer)
    except _EnoughError:
        return


class _Pacer:
    """A recorder that keeps the pace, and draws a frame when one is due."""

    def __init__(self, recorder: Recorder, speed: float, steps: int | None) -> None:
        self._recorder, self._speed, self._steps = recorder, speed, steps
        self._due = self._next = monotonic()
        self.draw: Callable[[], None] = lambda: None
        self.played = 0
        self.see, self.choose = recorder.see, recorder.choose
        self.truth, self.result = recorder.truth, recorder.result

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        self._recorder.observe(t, action, info)
        self.played = t + 1
        now = monotonic()
        if now >= self._due:
            self.draw()
            self._due = now + 1 / FRAMES_A_SECOND
        self._next = max(self._next + 1 / self._speed, monotonic() - 1)  # no racing after a pause
        if (wait := self._next - monotonic()) > 0:
            sleep(wait)
        if self._steps is not None and t + 1 >= self._steps:
            raise _EnoughError


def _title(cell: Cell, played: int) -> Text:
    task, agent = cell.spec["task"], cell.spec["agent"]["label"]
    text = Text(printable(task["name"]), style="bold")
    text.append(f"   {printable(agent)}", style="bold cyan")
    text.append(f"   seed {cell.spec['seed']}", style="dim")
    text.append(f"   step {played:,} of {task['horizon']:,}")
    return text
