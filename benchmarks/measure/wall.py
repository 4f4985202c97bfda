"""What the wall costs: cells of a suite inside and behind it, in alternating pairs, best of many.

python -m benchmarks.measure.wall --every 6
python -m benchmarks.measure.wall --every 6 --floor

The floor is what no wall gets below: the agent plays inside, and before every action a byte goes to
another process on its core and back.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.plan.cells import Cell, make_plan
from benchmarks.plan.players import is_walled
from benchmarks.plan.suite import load_suite
from benchmarks.run.engines import LocalEngine
from benchmarks.run.runner import play_cell, set_up
from benchmarks.wall import fence
from llmqueue_gym.errors import UsageError

AGENT_SEED = 1


def in_a_process(engine: LocalEngine, walled: bool, cell: Cell) -> tuple[float, float]:
    """Return the seconds of a cell, its process included, and the median of a decision in us."""
    start = perf_counter()
    [outcome] = engine.run([replace(cell, walled=walled, agent_seed=AGENT_SEED)])
    if outcome.failed:
        raise UsageError(f"{cell} failed: {outcome.payload['error']}")
    return perf_counter() - start, float(outcome.payload["timing"]["decision_us_median"] or 0.0)


class Echoed:
    """An agent that waits for a byte from a process which knows nothing, before every action."""

    def __init__(self, policy: Any) -> None:
        self._policy, self.update = policy, policy.update
        asked, self._asks = os.pipe()
        self._answers, answers = os.pipe()
        if os.fork() == 0:
            os.close(self._asks)
            while byte := os.read(asked, 1):
                os.write(answers, byte)
            os._exit(0)
        os.close(asked)
        os.close(answers)

    def act(self, observation: Any) -> Any:
        """Return the agent's action, after the round trip."""
        os.write(self._asks, b"\0")
        os.read(self._answers, 1)
        return self._policy.act(observation)

    def close(self) -> None:
        """End the other process."""
        os.close(self._asks)
        os.close(self._answers)
        os.wait()


def in_this_process(echoed: bool, cell: Cell) -> tuple[float, float]:
    """Return the seconds of a cell once it is set up, and the median of a decision in us."""
    env, policy, observation, recorder = set_up(cell.spec, cell.kwargs, seed=AGENT_SEED)
    with closing(env), closing(Echoed(policy)) as other:
        start = perf_counter()
        clock = play_cell(cell.spec, env, other if echoed else policy, observation, recorder)
        return perf_counter() - start, float(np.median(clock[clock >= 0])) / 1e3


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the wall adds to a decision, and how many times as long the cells take."""
    parser = argparse.ArgumentParser(description="What the wall costs.")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--every", type=int, default=1, help="take every so many cells only")
    parser.add_argument(
        "--pairs", type=int, default=3, help="pairs a cell; the best of each counts"
    )
    parser.add_argument("--floor", action="store_true", help="a bare round trip, not the wall")
    given = parser.parse_args(arguments)
    plan = make_plan(load_suite(given.suite), seeds=1, trust=True)
    cells = [cell for cell in plan.cells if is_walled(cell.spec["agent"], False)][:: given.every]
    sides: list[Callable[[Cell], tuple[float, float]]]
    if given.floor:
        fence.stay_on_core(fence.this_core())
        sides = [partial(in_this_process, echoed) for echoed in (False, True)]
    else:
        engine = LocalEngine(1)
        sides = [partial(in_a_process, engine, walled) for walled in (False, True)]
    added, totals = [], [0.0, 0.0]
    for cell in cells:
        found = [[side(cell) for side in sides] for _ in range(given.pairs)]
        best = [[min(pair[side][part] for pair in found) for part in (0, 1)] for side in (0, 1)]
        added.append(best[1][1] - best[0][1])
        totals = [total + own[0] for total, own in zip(totals, best, strict=True)]
    print(
        f"{len(cells)} cells of {given.suite}, best of {given.pairs} pairs: a decision takes "
        f"{median(added):.1f} us more (median; {min(added):.1f} to {max(added):.1f}), the cells "
        f"{totals[1] / totals[0]:.2f} times as long ({totals[0]:.1f} and {totals[1]:.1f} s)"
    )


if __name__ == "__main__":
    main()
