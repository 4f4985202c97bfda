"""How long the statistics of a full board take: ``python -m benchmarks.bootstrap_speed``.

79 tasks x 17 agents x 10 seeds, 10,000 repetitions: the size of the queueing suite.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from time import perf_counter

import numpy as np

from benchmarks.intervals import REPETITIONS, StratifiedBootstrap, percentile_limits
from benchmarks.scoring import PROFILE_THRESHOLDS


def measure(tasks: int, agents: int, seeds: int) -> dict[str, float]:
    """Return seconds by step on scores drawn at random."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (agents, 1)) + rng.normal(0, 0.2, (agents, tasks * seeds))
    first, second = np.array(list(combinations(range(agents), 2))).T
    clock = [perf_counter()]
    bootstrap = StratifiedBootstrap.draw({f"task{i}": seeds for i in range(tasks)})
    clock.append(perf_counter())
    samples = bootstrap.iqm(scores)
    percentile_limits(samples)
    clock.append(perf_counter())
    percentile_limits(samples[first] - samples[second])
    clock.append(perf_counter())
    percentile_limits(bootstrap.improvement(scores[first], scores[second]))
    clock.append(perf_counter())
    percentile_limits(bootstrap.profile(scores, PROFILE_THRESHOLDS))
    clock.append(perf_counter())
    names = (
        "samples",
        "interquartile means",
        "paired differences",
        "probabilities of improvement",
        "performance profiles",
    )
    return dict(zip(names, np.diff(clock).tolist(), strict=True))


def main() -> None:
    """Print the seconds of every step and their sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=79)
    parser.add_argument("--agents", type=int, default=17)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    found = measure(given.tasks, given.agents, given.seeds)
    print(
        f"{given.tasks} tasks x {given.agents} agents x {given.seeds} seeds, {REPETITIONS:,} reps"
    )
    for name, seconds in found.items():
        print(f"  {name:<30}{seconds:6.2f} s")
    print(f"  {'all':<30}{sum(found.values()):6.2f} s")


if __name__ == "__main__":
    main()
