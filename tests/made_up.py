"""Made-up suites, and results: cells as a store gives them back, and boards of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.problems.deployment.board import KIND as DEPLOYMENT
from benchmarks.score.scoring import Board, make_board

Record = dict[str, Any]

ORIGIN = {
    "command": "llmqueue-bench run s",
    "version": "0",
    "commit": "none",
    "machine": "m",
    "python": "3",
    "numpy": "2",
    "gymnasium": "1",
}
STEPS = (1, 2, 5, 10, 20, 50, 100)
TRAFFIC = {"llms": ["a", "b"], "arrival": [0, 50], "starts": [0, 50], "lengths": [50, 50]}


TINY_TOML = """
description = "tiny"
seeds = 2
agents = ["greedy", "Q-UCB"]
[[task]]
name = "tiny"
env = "LLMQueue-v0"
horizon = 60
[task.kwargs]
load = 0.8
assortment_size = 1
"""


def tiny_suite(
    horizon: int, agents: Sequence[str | Mapping[str, Any]] = ("greedy",), seeds: int = 2
) -> Record:
    """Return a suite of one short task, as its TOML file would be read."""
    kwargs = {"load": 0.8, "assortment_size": 1}
    task = {"name": "tiny", "env": "LLMQueue-v0", "horizon": horizon, "kwargs": kwargs}
    return {"seeds": seeds, "agents": list(agents), "task": [task]}


def cell(
    env: str,
    task: str,
    agent: str,
    seed: int,
    *,
    kwargs: Mapping[str, Any] | None = None,
    horizon: int = 100,
    tags: Sequence[str] = (),
    headline: bool = True,
    protocol: str = "online",
    control_of: str | None = None,
    decision_us: float = 5.0,
    origin: Mapping[str, Any] = ORIGIN,
    **result: Any,
) -> Record:
    """Return a cell with the given parts of a result."""
    body = {"name": task, "env": env, "kwargs": kwargs or {}, "horizon": horizon}
    body |= {"headline": headline, "tags": list(tags)}
    body |= {"control_of": control_of} if control_of else {}
    return {
        "spec": {
            "task": body,
            "agent": {"name": agent, "label": agent, "settings": {}},
            "seed": seed,
            "protocol": protocol,
        },
        "timing": {"decision_us_median": decision_us, "wall_seconds": 0.5},
        "provenance": origin,
        **result,
    }


def queue_cell(
    agent: str,
    seed: int,
    mean_queue: float,
    task: str = "t",
    *,
    luck: float = 0.0,
    regret: float = 1.0,
    steps: Sequence[int] = STEPS,
    **spec: Any,
) -> Record:
    """Return a queueing cell whose queue does not grow; its regret does, with the root of t."""
    metrics = {
        "mean_queue": mean_queue,
        "tail_queue": mean_queue,
        "wait_p95": 1.0,
        "retrials_per_departed": 0.1,
        "routing_regret": regret,
        "luck": luck,
        "arrival_rate": 0.5,
        "arrival_dispersion": 0.5,
        "capacity": 1.0,
    }
    curve = {
        "t": list(steps),
        "queue": [mean_queue * t for t in steps],
        "regret": [t**0.5 for t in steps],
    }
    return cell("LLMQueue-v0", task, agent, seed, metrics=metrics, curve=curve, **spec)


def deploy_cell(
    agent: str,
    seed: int,
    ledger: float,
    task: str = "t",
    *,
    luck: float = 0.0,
    regret: float = 1.0,
    steps: Sequence[int] = (1, 2, 3),
    traffic: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Record:
    """Return a deployment cell; of two LLMs the oracle alone uses the one that comes later."""
    metrics = {
        **dict.fromkeys(DEPLOYMENT.metrics, 1.0),
        "ledger": ledger,
        "luck": luck,
        "regret": regret,
        "mean_regret": regret,
    }
    served = [[50, 0], [25, 25] if agent == "oracle" else [50, 0]]
    sums = {name: [float(t) for t in steps] for name in ("t", "ledger", "spend", "regret")}
    parts = {"metrics": metrics, "curve": sums, "traffic": traffic or {**TRAFFIC, "served": served}}
    return cell("LLMDeploy-v0", task, agent, seed, **parts, **spec)


def cells_of(
    make: Callable[..., Record], values: Mapping[str, Sequence[float]], **spec: Any
) -> list[Record]:
    """Cells from {agent: [what it got, a seed each]}."""
    return [
        make(agent, seed, value, **spec)
        for agent, own in values.items()
        for seed, value in enumerate(own)
    ]


def board_of(
    cells: Sequence[Record],
    *,
    planned: Sequence[Record] | None = None,
    failures: Sequence[tuple[Record, Record]] = (),
    missing: Sequence[str] = (),
    **run: Any,
) -> Board:
    """Return the board of some cells; ``planned`` are those of the plan if there were more."""
    specs = [c["spec"] for c in (cells if planned is None else planned)]
    specs += [spec for spec, _ in failures]
    plan = {"suite": "s", "cells": specs, "skipped": {}, "provenance": ORIGIN, **run}
    named = [(str(spec), record) for spec, record in failures]
    return make_board(plan, cells, named, list(missing))
