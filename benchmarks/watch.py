"""``llmqueue-bench watch``: an agent at play in the terminal, with the truth that scores it.

The loop, the agent and the seed are those of a cell; the view stands between loop and recorder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from baselines.agent import Action
from benchmarks.plan import Cell, make_plan
from benchmarks.runner import Recorder, play_cell, set_up
from benchmarks.suite import Suite, SuiteError, find_task, kind_of
from benchmarks.terminal import make_console
from llmqueue_gym.workloads.pool import printable

FRAMES_A_SECOND = 12

_BARS = " ▁▂▃▄▅▆▇█"
_RETRIALS = ("#c6dbef", "#6baed6", "#2171b5", "#d94801")  # 0, 1, 2, 3 and more
_KEPT, _RETRIED, _MUTED = "green", "#d94801", "dim"
_LAST = 6  # choices listed
_LLMS = range(4, 13)  # fewest and most LLMs listed, as the height of the terminal allows
_OTHER_LINES = 22  # of a frame


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
    SuiteError
        If there is no such task or agent, the agent plays other tasks, or data are missing.
    """
    found = find_task(task)
    listed = tuple(entry for entry in found.agents if entry.label == agent)
    alone = Suite(found.name, "", 1, (replace(found, agents=listed),))
    plan = make_plan(alone, agents=[] if listed or agent == "oracle" else [agent], data=data)
    for cell in plan.cells:
        if agent in (cell.spec["agent"]["label"], cell.spec["agent"]["name"]):
            return replace(cell, spec={**cell.spec, "seed": seed})
    reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.skipped.items())
    raise SuiteError(f"{agent!r} cannot play {found.name!r}: {reasons or 'it has to be trained'}")


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
        raise ValueError(f"speed={speed} must be a positive number of steps a second")
    console = console or make_console()
    env, policy, observation, recorder = set_up(cell.spec, cell.kwargs, cell.model)
    try:
        view = _view(cell, env, recorder)
        view.fit(console)
        if not console.is_terminal:
            pacer = _Pacer(view, float("inf"), steps, lambda: None)
            _play(cell, env, policy, observation, pacer)
            console.print(view.frame())
            return
        with Live(view.frame(), console=console, auto_refresh=False, transient=False) as live:
            pacer = _Pacer(view, speed, steps, lambda: live.update(view.frame(), refresh=True))
            _play(cell, env, policy, observation, pacer)
            live.update(view.frame(), refresh=True)
    finally:
        env.close()


def _play(cell: Cell, env: gym.Env[Any, Any], policy: Any, observation: Any, pacer: _Pacer) -> None:
    try:
        play_cell(cell.spec, env, policy, observation, pacer)
    except _EnoughError:
        return


class _Pacer:
    """Keeps the pace, and draws a frame when one is due."""

    def __init__(self, view: _View, speed: float, steps: int | None, draw: Any) -> None:
        self._view, self._speed, self._steps, self._draw = view, speed, steps, draw
        self._due = self._next = monotonic()

    def see(self) -> bool:
        return bool(self._view.recorder.see())

    def choose(self, t: int, action: Action) -> None:
        self._view.before(t, action)
        self._view.recorder.choose(t, action)

    def observe(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        self._view.recorder.observe(t, action, info)
        self._view.after(t, action, info)
        now = monotonic()
        if now >= self._due:
            self._draw()
            self._due = now + 1 / FRAMES_A_SECOND
        self._next = max(self._next + 1 / self._speed, monotonic() - 1)  # no racing after a pause
        if (wait := self._next - monotonic()) > 0:
            sleep(wait)
        if self._steps is not None and t + 1 >= self._steps:
            raise _EnoughError

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = self._view.recorder.result()
        return result


def _view(cell: Cell, env: gym.Env[Any, Any], recorder: Recorder) -> _View:
    kinds = {"queueing": _QueueView, "deployment": _DeploymentView}
    return kinds[kind_of(cell.spec["task"]["env"])](cell, env, recorder)


class _View:
    """What both kinds of task show."""

    unit = "step"

    def __init__(self, cell: Cell, env: gym.Env[Any, Any], recorder: Recorder) -> None:
        self.recorder: Any = recorder
        self._spec = cell.spec
        llms: tuple[str, ...] = env.unwrapped.llms  # type: ignore[attr-defined]
        self._llms = tuple(map(printable, llms))
        self._dynamics: Any = env.unwrapped.dynamics  # type: ignore[attr-defined]
        self._t = 0
        self._rows, self._width = _LLMS[-1], 32

    def fit(self, console: Console) -> None:
        """Use the room there is."""
        if console.is_terminal:
            self._rows = min(_LLMS[-1], max(_LLMS[0], console.height - _OTHER_LINES))
        self._width = min(100, max(10, console.width - 58))

    def before(self, t: int, action: Action) -> None:
        """Look at the state in which an action was chosen."""

    def after(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        """Note what came of it."""

    def frame(self) -> RenderableType:
        """Return the picture of now."""
        return Group(self._title(), *self._parts())

    def _parts(self) -> Sequence[RenderableType]:
        raise NotImplementedError

    def _title(self) -> Text:
        task, agent = self._spec["task"], self._spec["agent"]["label"]
        text = Text(printable(task["name"]), style="bold")
        text.append(f"   {printable(agent)}", style="bold cyan")
        text.append(f"   seed {self._spec['seed']}", style=_MUTED)
        text.append(f"   {self.unit} {self._t:,} of {task['horizon']:,}")
        return text


class _QueueView(_View):
    unit = "slot"

    def __init__(self, cell: Cell, env: gym.Env[Any, Any], recorder: Recorder) -> None:
        super().__init__(cell, env, recorder)
        self._last: deque[tuple[int, str, list[int], int, float]] = deque(maxlen=_LAST)
        self._shown = np.zeros(len(self._llms), dtype=np.int64)
        self._kept = np.zeros(len(self._llms), dtype=np.int64)
        self._served = ""

    def before(self, t: int, action: Action) -> None:
        seen = self._dynamics.observe()
        slot = int(action[0])
        if seen["waiting"][0, slot]:
            retrials = int(seen["retrials"][0, slot])
            self._served = f"place {slot + 1}, {retrials} retrial{'s' * (retrials != 1)}"
        else:
            self._served = ""

    def after(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        self._t = t + 1
        trace = self.recorder.trace
        regret = max(0.0, float(trace.best_rate[t] - trace.departure_rate[t]))
        llms = sorted(set(action[1:].tolist()))
        if info["served"]:
            self._shown[llms] += 1
            self._last.append((t, self._served, llms, info["kept_llm"], regret))
        if info["departed"]:
            self._kept[info["kept_llm"]] += 1

    def _parts(self) -> Sequence[RenderableType]:
        seen = self._dynamics.observe()
        waiting = seen["retrials"][seen["waiting"] == 1].astype(np.int64)
        length = int(self._dynamics.queue_length[0])
        queue = Text("")
        for retrials in waiting:
            queue.append("■ ", style=_RETRIALS[min(int(retrials), 3)])
        if length > waiting.size:
            queue.append(f"+ {length - waiting.size:,} beyond the window", style=_MUTED)
        if not length:
            queue.append("nobody waits", style=_MUTED)
        legend = Text.assemble(("retrials: ", _MUTED))
        for count, colour in enumerate(_RETRIALS):
            legend.append("■ ", style=colour)
            legend.append(f"{count}{'+' if count == 3 else ''}  ", style=_MUTED)
        trace, t = self.recorder.trace, self._t
        lengths = trace.queue_length[:t]
        regret = np.maximum(trace.best_rate[:t] - trace.departure_rate[:t], 0.0)
        curves = Table.grid(padding=(0, 2))
        curves.add_row("queue length", sparkline(lengths, self._width), _lengths(lengths))
        curves.add_row(
            "routing regret", sparkline(regret, self._width), Text(f"{regret.sum():,.2f} in all")
        )
        return [
            Panel(Group(queue, legend), title=f"queue: {length:,}", title_align="left"),
            Panel(self._choices(), title="last choices", title_align="left"),
            Panel(self._answers(), title="LLMs", title_align="left"),
            Panel(curves, title="so far", title_align="left"),
        ]

    def _choices(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for justify in ("right", "left", "left", "left", "right"):
            table.add_column(justify=justify, no_wrap=True)
        for t, served, llms, kept, regret in reversed(self._last):
            names = Text(", ").join(
                Text(self._llms[llm], style=f"bold {_KEPT}" if llm == kept else "") for llm in llms
            )
            answer = Text("kept", style=_KEPT) if kept >= 0 else Text("retried", style=_RETRIED)
            table.add_row(
                Text(f"{t + 1:,}", style=_MUTED), Text(served), names, answer, _regret(regret)
            )
        for _ in range(_LAST - len(self._last)):
            table.add_row("")
        return table

    def _answers(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        served = max(1, int(self._shown.sum()))
        for llm in _most(self._shown, self._rows):
            shown, kept = int(self._shown[llm]), int(self._kept[llm])
            table.add_row(
                Text(self._llms[llm]),
                _bar(shown / served, 24),
                f"shown {shown:,}",
                f"kept {kept / shown:.0%}" if shown else "",
            )
        return table


class _DeploymentView(_View):
    unit = "query"

    def __init__(self, cell: Cell, env: gym.Env[Any, Any], recorder: Recorder) -> None:
        super().__init__(cell, env, recorder)
        count = len(self._llms)
        self._served = np.zeros((2, count), dtype=np.int64)  # in this stage and in all
        self._reward, self._cost = np.zeros(count), np.zeros(count)
        self._stage = 0
        self._spent: list[float] = []
        self._rewards: list[float] = []
        self._money = 0.0

    def before(self, t: int, action: Action) -> None:
        stage = int(self._dynamics.stage[0])
        if stage != self._stage:
            self._stage = stage
            self._served[0] = 0

    def after(self, t: int, action: Action, info: Mapping[str, Any]) -> None:
        self._t = t + 1
        llm = info["llm"]
        if llm >= 0:
            self._served[:, llm] += 1
            self._reward[llm] += info["rated_reward"]
            self._cost[llm] += info["cost"]
        self._money += info["cost"] + info["switching_cost"]
        self._spent.append(self._money)
        self._rewards.append(info["rated_reward"])

    def _parts(self) -> Sequence[RenderableType]:
        dynamics, rules, t = self._dynamics, self._dynamics.rules, self._t
        deployed, available = dynamics.deployed[0], dynamics.available[0]
        llms = _llm_table()
        for llm in _most(self._served[1] + deployed * (self._served[1].max() + 1), self._rows):
            llms.add_row(*self._row(llm, bool(deployed[llm]), bool(available[llm])))
        budget = rules.budget * rules.horizon
        pace = self._money / (rules.budget * t) if t else 0.0
        money = Table.grid(padding=(0, 2))
        money.add_row(
            "spend",
            _bar(min(1.0, self._money / budget), self._width, _RETRIED if pace > 1 else _KEPT),
            f"{self._money:.4g} of {budget:.4g} USD, {pace:.2f} x its pace",
        )
        rewards = np.array(self._rewards)
        money.add_row("reward", sparkline(rewards, self._width), f"{_mean(rewards):.3f} a query")
        money.add_row("ledger", "", f"{float(dynamics.ledger_score) / max(1, t):.3f} a query")
        lost = f"{int(dynamics.refused):,} refused, {int(dynamics.throttled):,} throttled, "
        lost += f"{int(dynamics.violations):,} over the cap"
        money.add_row("lost", "", lost)
        stage = f"stage {self._stage + 1} of {rules.num_stages}: {int(deployed.sum())} deployed "
        stage += f"of {int(available.sum())} there (at most {rules.max_deployed})"
        return [
            Panel(llms, title=stage, title_align="left"),
            Panel(money, title="so far", title_align="left"),
        ]

    def _row(self, llm: int, deployed: bool, available: bool) -> list[Text]:
        stage, served = self._served[0].sum(), int(self._served[1, llm])
        share = self._served[0, llm] / stage if stage else 0.0
        mark = Text("● ", style=_KEPT) if deployed else Text("○ " if available else "  ")
        return [
            Text.assemble(mark, (self._llms[llm], "" if available else _MUTED)),
            _bar(share, 24),
            Text(f"{share:.0%}"),
            Text(f"{served:,}"),
            Text(f"{self._reward[llm] / served:.3f}" if served else ""),
            Text(f"{self._cost[llm] / served:.2e}" if served else ""),
        ]


def _llm_table() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=_MUTED)
    table.add_column("LLM", no_wrap=True)
    table.add_column("share of this stage")
    for title in ("", "served", "reward", "USD"):
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _most(weights: NDArray[np.int64], count: int) -> list[int]:
    """Places of the largest weights, in order of place: rows must not jump about."""
    return sorted(np.argsort(-weights, kind="stable")[:count].tolist())


def sparkline(values: NDArray[Any], width: int) -> Text:
    """Means of up to ``width`` equal parts of a series as bars between 0 and the largest."""
    if not values.size:
        return Text("")
    edges = np.linspace(0, values.size, min(width, values.size) + 1).astype(np.int64)
    means = np.add.reduceat(values.astype(np.float64), edges[:-1]) / np.diff(edges)
    top = float(means.max())
    levels = np.ceil(means / top * (len(_BARS) - 1)).astype(int) if top > 0 else means.astype(int)
    return Text("".join(_BARS[level] for level in levels), style=_RETRIALS[1])


def _lengths(values: NDArray[np.int64]) -> Text:
    if not values.size:
        return Text("")
    return Text(f"{values[-1]:,} now, mean {values.mean():,.2f}, most {values.max():,}")


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0


def _bar(share: float, width: int, colour: str = _RETRIALS[1]) -> Text:
    full = round(share * width)
    return Text("█" * full, style=colour) + Text("·" * (width - full), style=_MUTED)


def _regret(regret: float) -> Text:
    return Text(f"regret {regret:.2f}" if regret > 0 else "best", style="" if regret else _MUTED)
