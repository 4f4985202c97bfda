"""List prices that change on a date: what answers cost by them, and what agents see of them."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.datasets import import_table, load_pool
from llmqueue_gym.workloads.prices import read_prices
from llmqueue_gym.workloads.sources.log_file import read_log
from llmqueue_gym.workloads.sources.logs import logs_pool
from llmqueue_gym.workloads.sources.table import table_pool

DAY = 86_400
START = 1_777_852_800  # 2026-05-04T00:00:00Z
CUT = [{"from": "2026-05-01", "price": [4.0, 8.0]}, {"from": "2026-05-07", "price": [1.0, 2.0]}]
PRICES: dict[str, Any] = {"a": CUT, "b": 0.002, "unused": 1}
"""LLM a becomes four times cheaper after 3 of the 12 days that the records last."""


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def requests(**changes: Any) -> list[dict[str, Any]]:
    """One request every six hours, for twelve days."""
    return [
        {"query": f"{i} {['sum', 'root', 'poem'][i % 3]}", "llm": "ab"[i % 2], "kept": i % 3 // 2}
        | {"timestamp": START + i * DAY // 4, "input_tokens": 1000, "output_tokens": 500}
        | {key: change[i % len(change)] for key, change in changes.items()}
        for i in range(49)
    ]


def spent(i: int) -> float:
    return 0.002 if i % 2 else 0.008 if i < 12 else 0.002


def test_requests_without_a_cost_cost_their_tokens_at_the_price_of_the_time(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", requests(cost=[None, 0.5]))
    log = read_log(path, prices=PRICES)
    assert log.cost == pytest.approx([0.5 if i % 2 else spent(i) for i in range(49)])
    assert log.notes[0] == "25 requests without a cost cost their tokens at the list price"
    free = write(tmp_path / "free.jsonl", requests())
    assert read_log(free, prices=PRICES).cost == pytest.approx([spent(i) for i in range(49)])
    assert read_log(free).cost is None
    with pytest.raises(UsageError, match="column 'cost' is empty"):
        read_log(path)
    with pytest.raises(UsageError, match="a request to 'a' has no cost, and no price or tokens"):
        read_log(write(tmp_path / "x.jsonl", requests(output_tokens=[None])), prices=PRICES)


def test_a_gateways_null_spend_and_its_cache_cost_the_list_price(tmp_path: Path) -> None:
    rows = [
        {
            "request_id": str(i),
            "spend": [None, 0.0, 0.25][i % 3],
            "cache_hit": str(i % 3 == 1),
            "startTime": START + i * DAY // 4,
            "model": "other" if i == 3 else "a",
            "messages": [{"role": "user", "content": f"question {i}"}],
            "prompt_tokens": None if i == 6 else 1000,
            "completion_tokens": None if i == 6 else 500,
        }
        for i in range(24)
    ]
    log = read_log(write(tmp_path / "spend.jsonl", rows), prices={"a": CUT})
    assert log.cost is not None
    known = [0.25 if i % 3 == 2 else 0.008 if i < 12 else 0.002 for i in range(24)]
    mean = np.mean([usd for i, usd in enumerate(known) if i not in (3, 6)])
    known[3] = known[6] = float(mean)  # neither price nor tokens
    assert log.cost == pytest.approx(known)
    assert "14 calls without spend cost their tokens at the list price" in log.notes
    assert "2 requests without spend count as their LLM's mean" in log.notes


@pytest.mark.parametrize("how", ["mapping", "column"])
def test_agents_of_a_log_see_prices_change_in_its_time(how: str, tmp_path: Path) -> None:
    rows = requests(cost=[None])
    for i, row in enumerate(rows):
        row["cost"] = spent(i)
        if how == "column":
            row["price"] = 0.002 if i % 2 else CUT[i >= 12]["price"]
    path = write(tmp_path / "log.jsonl", rows)
    spec = {"source": "logs", "path": path, "context_dim": 4, "arrivals": {}}
    if how == "mapping":
        spec["prices"] = PRICES
    options = {"max_deployed": 2, "num_stages": 4, "horizon": 100}
    env: Any = gym.make("LLMDeploy-v0", instance=spec, **options)
    assert env.unwrapped.problem["has_prices"]
    observation, _ = env.reset(seed=0)
    seen, paid = [], []
    for _ in range(100):
        seen.append(float(observation["cost_prior"][0]))
        observation, *_, info = env.step(np.array([1, 1, 0]))
        paid.append(info["cost"])
    assert seen == pytest.approx([0.008] * 25 + [0.002] * 75)  # 3 of 12 days
    assert paid == pytest.approx(seen)
    pool, _ = logs_pool(path, context_dim=4, prices=spec.get("prices"))
    assert pool.cost is not None
    assert pool.cost[0] == pytest.approx([0.002, 0.002])  # for others the last price counts
    calm: Any = gym.make("LLMDeploy-v0", instance=spec, price_changes=[], **options)
    steady = [calm.reset(seed=0)[0], *(calm.step(np.array([1, 1, 0]))[0] for _ in range(99))]
    assert {round(float(each["cost_prior"][0]), 6) for each in steady} == {0.008}


def test_a_date_is_a_query_where_the_log_has_times(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", requests(cost=[0.1]))
    spec = {"source": "logs", "path": path, "context_dim": 4, "arrivals": {}}
    options: dict[str, Any] = {"instance": spec, "max_deployed": 2, "num_stages": 4}
    gone = [{"llm": "a", "date": "2026-05-13"}]
    env: Any = gym.make("LLMDeploy-v0", retirements=gone, horizon=120, **options)
    observation, _ = env.reset(seed=0)
    there = [int(observation["arrived"][0])]
    there += [int(env.step(np.array([1, 1, 1]))[0]["arrived"][0]) for _ in range(119)]
    assert there == [1] * 90 + [0] * 30  # 9 of 12 days
    with pytest.raises(UsageError, match="outside the run"):
        gym.make("LLMDeploy-v0", retirements=[{"llm": "a", "date": "2027-01-01"}], **options)


def rows_of_a_table() -> list[dict[str, Any]]:
    return [
        {"x": [float(i % 3), 1.0], "a": i % 2, "b": 0.5, "at": START + i * DAY // 4}
        | {"list": {"a": 0.008 if i < 12 else 0.002, "b": 0.002}, "paid": 2 * spent(0) / (1 + i)}
        for i in range(49)
    ]


QUERY = {"a": [{"from": "2026-05-01", "price": 0.008}, {"from": "2026-05-07", "price": 0.002}]}


@pytest.mark.parametrize("prices", [QUERY | {"b": 0.002}, "list"], ids=["mapping", "column"])
def test_a_table_has_dated_prices_too_and_keeps_them_when_imported(
    prices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMQUEUE_GYM_DATA", str(tmp_path / "data"))
    path = write(tmp_path / "table.jsonl", rows_of_a_table())
    spec = {"embedding": "x", "quality": ["a", "b"], "prices": prices, "timestamp": "at"}
    pool, _ = table_pool(path, **spec)
    assert pool.list_price is not None
    assert pool.list_price.tolist() == [0.002, 0.002]
    assert pool.cost is not None
    assert np.unique(pool.cost).tolist() == [0.002]
    [(llm, share, factor)] = pool.price_changes
    assert (llm, share, factor) == (0, 0.25, pytest.approx(0.25))
    import_table(path, name="mine", **spec)
    kept, _ = load_pool("mine")
    assert kept.price_changes == pool.price_changes
    assert kept.times == pool.times
    for instance in (
        {"source": "table", "path": path, **spec},
        {"source": "dataset", "name": "mine"},
    ):
        env: Any = gym.make(
            "LLMDeploy-v0", instance=instance | {"arrivals": {}}, num_stages=4, horizon=100
        )
        observation, _ = env.reset(seed=0)
        seen = [float(observation["cost_prior"][0])]
        seen += [float(env.step(np.array([1, 0, 0]))[0]["cost_prior"][0]) for _ in range(99)]
        assert seen == pytest.approx([0.008] * 25 + [0.002] * 75)


def test_any_instance_of_recorded_costs_shows_the_list_prices_it_is_given() -> None:
    pytest.importorskip("pareto_bandit")
    pytest.importorskip("sklearn")
    spec = {"source": "paretobandit", "context_dim": 8, "arrivals": {}}
    plain: Any = gym.make("LLMDeploy-v0", instance=spec)
    assert not plain.unwrapped.problem["has_prices"]
    first, *others = plain.unwrapped.llms
    prices = {first: [2.0, 4.0]} | dict.fromkeys(others, 0.01)
    env: Any = gym.make("LLMDeploy-v0", instance=spec | {"prices": prices, "tokens": [1000, 500]})
    assert env.unwrapped.problem["has_prices"]
    seen = env.reset(seed=0)[0]["cost_prior"]
    assert seen == pytest.approx([0.004] + [0.01] * len(others))
    with pytest.raises(UsageError, match="two numbers, those of a usual answer"):
        gym.make("LLMDeploy-v0", instance=spec | {"prices": prices, "tokens": ["in", "out"]})


def test_recorded_costs_stay_what_they_were_beside_list_prices(tmp_path: Path) -> None:
    rows = [row | {"paid": {"a": 0.4, "b": 0.1}} for row in rows_of_a_table()]
    path = write(tmp_path / "table.jsonl", rows)
    spec: dict[str, Any] = {"embedding": "x", "quality": ["a", "b"], "cost": "paid"}
    pool, _ = table_pool(path, **spec, prices={"a": 0.3, "b": 0.2})
    assert pool.cost is not None
    assert pool.list_price is not None
    assert pool.cost[0].tolist() == [0.4, 0.1]
    assert pool.list_price.tolist() == [0.3, 0.2]
    moved, _ = table_pool(path, **spec, prices=QUERY | {"b": 0.2}, timestamp="at")
    assert moved.cost is not None  # at the prices of the end
    assert moved.cost[:, 0] == pytest.approx([0.1] * 12 + [0.4] * 37)
    assert moved.cost[:, 1] == pytest.approx([0.1] * 49)


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ([{"from": "2026-05-07", "price": 1.0}] * 2, "which stands there twice"),
        ([{"from": "soon", "price": 1.0}], "from='soon', expected a date"),
        ([{"since": "2026-05-07", "price": 1.0}], r'expected \{"from": date, "price": price\}'),
        ([{"from": "2026-05-07", "price": -1.0}], "prices from '2026-05-07' has -1.0"),
        ({"a": [*QUERY["a"], {"from": "2026-05-09", "price": [1, 2]}]}, "give all in one way"),
        ({"a": [*QUERY["a"], {"from": "2026-05-09", "price": 0}], "b": 1}, "above 0 before and"),
        ({3: 1.0}, "names no LLM"),
    ],
)
def test_wrong_dated_prices_say_what_is_wrong(prices: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        logs_pool(write(tmp_path / "log.jsonl", requests(cost=[0.1])), context_dim=4, prices=prices)


def test_prices_that_change_need_times_of_their_kind(tmp_path: Path) -> None:
    rows = requests(cost=[0.1])
    untimed = write(
        tmp_path / "a.jsonl",
        [{key: cell for key, cell in row.items() if key != "timestamp"} for row in rows],
    )
    with pytest.raises(UsageError, match="the records say no times; name their column"):
        logs_pool(untimed, context_dim=4, prices=PRICES)
    counted = write(tmp_path / "b.jsonl", [row | {"timestamp": i} for i, row in enumerate(rows)])
    with pytest.raises(UsageError, match="the times of the records are no dates"):
        logs_pool(counted, context_dim=4, prices=PRICES)
    moving = [{"from": 0, "price": 0.1}, {"from": 24, "price": 0.2}]
    pool, _ = logs_pool(counted, context_dim=4, prices=moving)
    assert [step.share for step in pool.price_changes] == [0.5, 0.5]
    with pytest.raises(UsageError, match="what a single answer cost is a cost"):
        read_log(
            write(
                tmp_path / "c.jsonl",
                [row | {"timestamp": i, "price": 1.0 + i} for i, row in enumerate(rows * 6)],
            )
        )
    with pytest.raises(UsageError, match="prices are given, and in column 'price'; drop one"):
        read_log(write(tmp_path / "d.jsonl", [row | {"price": 1.0} for row in rows]), prices=1.0)
    with pytest.raises(UsageError, match="a column 'timestamp' must say when"):
        read_log(
            write(
                tmp_path / "e.jsonl",
                [{"query": "q", "llm": "a", "kept": i % 2, "price": f"[{i}, 1]"} for i in (1, 2)],
            )
        )


def test_a_price_is_found_by_its_time() -> None:
    prices = read_prices(PRICES)
    times = [0.0, START + 3 * DAY - 1.0, START + 3 * DAY, np.inf]
    assert [prices.at("a", time) for time in times] == [(4.0, 8.0)] * 2 + [(1.0, 2.0)] * 2
    assert prices.at("nobody") is None
    assert prices.at("b", 0.0) == (0.002,)
