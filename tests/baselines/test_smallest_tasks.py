"""Every named agent plays the smallest tasks that there are, and plays them again alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baselines import registered_agents
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.run.runner import run_cell
from llmqueue_gym.errors import UsageError

UNFIT = ("never arrive", "needs queries with contexts", "plans need replicas")
"""Words of agents that refuse a task which lacks what they live on."""

ONE = {"num_llms": 1, "assortment_size": 1, "context_dim": 1, "window": 1}
ALONE: dict[str, Any] = {"source": "synthetic", "num_llms": 1}
THREE: dict[str, Any] = {"source": "synthetic", "num_llms": 3}
FLOOR = {"budget_per_query": 1e-4}  # what the cheapest LLMs of `synthetic` cost
TABLES = "TABLE"

TASKS: list[tuple[str, int, dict[str, Any]]] = [
    ("LLMQueue-v0", 1, {"load": 0.8}),
    ("LLMQueue-v0", 1, {"load": 0.8, **ONE}),
    ("LLMQueue-v0", 20, {"load": 0.8, **ONE}),
    ("LLMQueue-v0", 20, {"arrival_rate": 1.0, **ONE}),
    ("LLMQueue-v0", 2, {"arrival_rate": 0.01}),
    ("LLMQueue-v0", 20, {"load": 0.8, "num_llms": 3, "assortment_size": 3, "window": 1}),
    ("LLMQueue-v0", 20, {"load": 0.5, "assortment_size": 1, "workload": TABLES}),
    ("LLMDeploy-v0", 1, {"num_stages": 1}),
    ("LLMDeploy-v0", 1, {"num_stages": 1, "instance": ALONE, "max_deployed": 1}),
    ("LLMDeploy-v0", 20, {"num_stages": 4, "instance": ALONE, "max_deployed": 1}),
    ("LLMDeploy-v0", 20, {"num_stages": 20}),
    ("LLMDeploy-v0", 20, {"num_stages": 1, "budget": "hard"}),
    ("LLMDeploy-v0", 20, {"num_stages": 4, "instance": THREE, "max_deployed": 3, **FLOOR}),
    (
        "LLMDeploy-v0",
        20,
        {"num_stages": 4, "instance": THREE, "max_deployed": 1, "alpha": 1.0, "budget": "hard"}
        | FLOOR,
    ),
    (
        "LLMDeploy-v0",
        20,
        {"num_stages": 20, "instance": TABLES, "max_deployed": 1, "alpha": 1.0},
    ),
    ("LLMServe-v0", 1, {"preset": "tiny-pair"}),
    ("LLMServe-v0", 20, {"preset": "tiny-pair", "window": 1, "dispatches": 1}),
    ("LLMServe-v0", 20, {"preset": "slow-server", "arrival_rate": 1.0, "window": 1}),
    ("LLMServe-v0", 20, {"preset": "impatient", "window": 1}),
    ("LLMServe-v0", 5, {"preset": "autoscale", "loading": 1, "update_every": 1, "window": 1}),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two queries, of one coordinate, and two LLMs."""
    path: Path = tmp_path_factory.mktemp("table") / "two.jsonl"
    rows = [{"x": [1.0], "a": k, "b": 1 - k, "paid": 0.01 * (1 + k)} for k in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = {"quality": {"a": "a", "b": "b"}, "cost": {"a": "paid", "b": "paid"}}
    return {"source": "table", "path": str(path), "embedding": "x", **columns}


@pytest.mark.parametrize(("env_id", "horizon", "kwargs"), TASKS)
def test_every_agent_plays_the_smallest_tasks_and_repeats_itself(
    env_id: str, horizon: int, kwargs: dict[str, Any], table: dict[str, Any]
) -> None:
    """Of what is played, nothing may be no number; warnings are errors."""
    own = {name: table if value == TABLES else value for name, value in kwargs.items()}
    kind = {"Queue": "queueing", "Deploy": "deployment", "Serve": "serving"}[env_id[3:-3]]
    agents = [s.name for s in registered_agents() if s.kind == kind and ".rl." not in s.target]
    task = {"name": "tiny", "env": env_id, "horizon": horizon, "kwargs": own}
    plan = make_plan(parse_suite("s", {"seeds": 1, "agents": agents, "task": [task]}))
    played = 0
    for cell in plan.cells:
        try:
            first, again = (run_cell(cell.spec, cell.kwargs) for _ in range(2))
        except UsageError as error:
            if not any(words in str(error) for words in UNFIT):
                raise
            continue
        for result in (first, again):
            del result["timing"]
        assert json.dumps(first, allow_nan=False) == json.dumps(again), cell
        played += 1
    assert played > len(agents) // 2
