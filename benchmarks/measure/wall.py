"""What the wall costs: cells of a suite inside and behind it, in alternating pairs, best of many.

python -m benchmarks.measure.wall --every 3
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter

from benchmarks.plan.cells import Cell, make_plan
from benchmarks.plan.players import is_walled
from benchmarks.plan.suite import load_suite
from benchmarks.run.engines import LocalEngine
from llmqueue_gym.errors import UsageError


def seconds_and_decision(engine: LocalEngine, cell: Cell) -> tuple[float, float]:
    """Return the seconds of a cell, its process included, and the median of a decision in us."""
    start = perf_counter()
    [outcome] = engine.run([cell])
    if outcome.failed:
        raise UsageError(f"{cell} failed: {outcome.payload['error']}")
    return perf_counter() - start, float(outcome.payload["timing"]["decision_us_median"] or 0.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the wall adds to a decision, and how many times as long the cells take."""
    parser = argparse.ArgumentParser(description="What the wall costs.")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--every", type=int, default=1, help="take every so many cells only")
    parser.add_argument(
        "--pairs", type=int, default=3, help="pairs a cell; the best of each counts"
    )
    given = parser.parse_args(arguments)
    plan = make_plan(load_suite(given.suite), seeds=1, trust=True)
    cells = [cell for cell in plan.cells if is_walled(cell.spec["agent"], False)][:: given.every]
    engine, added, totals = LocalEngine(1), [], [0.0, 0.0]
    for cell in cells:
        both = [replace(cell, walled=walled, agent_seed=1) for walled in (False, True)]
        found = [[seconds_and_decision(engine, one) for one in both] for _ in range(given.pairs)]
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
