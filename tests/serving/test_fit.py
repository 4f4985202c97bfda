"""Preset from-log: what is fitted on the log of a known problem is that problem."""

from __future__ import annotations

import csv
import heapq
import json

import gymnasium as gym
import numpy as np
import pytest

from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.fit import fit_serving

FAST, SLOW, PLACES = (0.01, 0.002), (0.02, 0.004), (6, 6, 4)  # two fast replicas and a slow one
KEEP, CHUNK, THINKS, GIVE_UP, PATIENCE, RATE = (0.5, 0.7), 100, 2.5, 0.3, 5.0, 7.0
SIGMA, MEAN, PROMPT, NOISE = 0.6, 60.0, 300.0, 0.02
HEADER = [
    "llm",
    "replica",
    "session",
    "asked",
    "start",
    "first_token",
    "end",
    "input_tokens",
    "output_tokens",
    "kept",
]


def write(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def simulate(seed, requests):
    """Return the log of a provider in continuous time, whose constants are those above."""
    rng, found, now = np.random.default_rng(seed), [], 0.0
    arrivals = np.cumsum(rng.exponential(1 / RATE, requests)).tolist()
    coming = [(time, user) for user, time in enumerate(arrivals)]  # a heap: it is sorted
    waiting, served = [], [[], [], []]
    while now < arrivals[-1]:
        speed = [(SLOW if r == 2 else FAST) for r in range(3)]
        lasts = [w + h * len(active) for (w, h), active in zip(speed, served, strict=True)]
        # What comes first: a request, the end of somebody's patience, a first token or an end.
        events = [(coming[0][0], 0, 0)]
        events += [(row["until"], 1, i) for i, row in enumerate(waiting)]
        events += [(now + lasts[r] * min(row["left"]), 2, r) for r in range(3) for row in served[r]]
        then, what, which = min(events)
        for r, active in enumerate(served):
            for row in active:
                row["left"] = [left - (then - now) / lasts[r] for left in row["left"]]
        now = then
        if what == 0:
            _, user = heapq.heappop(coming)
            waiting.append(
                {"session": user, "asked": now, "until": now + rng.exponential(PATIENCE)}
            )
        elif what == 1:
            found.append(waiting.pop(which) | {"end": now})
        else:
            row = min(served[which], key=lambda row: min(row["left"]))
            row["left"].remove(min(row["left"]))
            if row["left"]:
                row["first_token"] = now - min(abs(rng.normal(0.0, NOISE)), now - row["start"])
            else:
                served[which].remove(row)
                end = max(now - abs(rng.normal(0.0, NOISE)), row["first_token"])
                found.append(row | {"end": end, "kept": int(rng.random() < KEEP[which == 2])})
                if not found[-1]["kept"] and rng.random() >= GIVE_UP:
                    heapq.heappush(coming, (now + rng.exponential(THINKS), row["session"]))
        room = [places - len(active) for places, active in zip(PLACES, served, strict=True)]
        if waiting and max(room):
            r = room.index(max(room))
            tokens = np.ceil(np.exp(rng.normal(np.log(MEAN) - SIGMA**2 / 2, SIGMA)))
            prompt = rng.integers(1, 2 * PROMPT)
            first = 1 - -prompt // CHUNK
            row = waiting.pop(0) | {"llm": ["fast", "slow"][r == 2], "replica": r, "start": now}
            row |= {"left": [first, first + tokens - 1 + 1e-9]}
            served[r].append(row | {"input_tokens": prompt, "output_tokens": tokens})
    return found


@pytest.fixture(scope="module")
def rows():
    return simulate(0, 1500)


def test_constants_are_recovered_within_their_standard_errors(rows, tmp_path):
    log = write(tmp_path / "log.csv", rows)
    fit = fit_serving(log)
    truth = {
        ("W", "fast"): FAST[0],
        ("H", "fast"): FAST[1],
        ("W", "slow"): SLOW[0],
        ("H", "slow"): SLOW[1],
        ("chunk", "fast"): CHUNK,
        ("chunk", "slow"): CHUNK,
        ("kept", "fast"): KEEP[0],
        ("kept", "slow"): KEEP[1],
        ("tokens of an answer", ""): MEAN,
        ("sigma", ""): SIGMA,
        ("tokens of a prompt", ""): PROMPT,
        ("patience", ""): PATIENCE,
        ("give up", ""): GIVE_UP,
        ("time to think", ""): THINKS,
        ("arrivals", ""): RATE,
    }
    assert {(e.parameter, e.of) for e in fit.estimates} == truth.keys()
    for e in fit.estimates:
        assert abs(e.value - truth[e.parameter, e.of]) < 3.0 * e.error < 0.45 * e.value, e
        assert not e.measure or (e.quality > 0.85 if e.measure == "R2" else e.quality < 0.1), e


def test_the_fitted_problem_is_played(rows, tmp_path):
    log = write(tmp_path / "log.csv", rows)
    fit, slot = fit_serving(log), 0.02
    env = gym.make("LLMServe-v0", preset="from-log", log=log, slot_seconds=slot)
    env.reset(seed=0)
    problem, instance = env.unwrapped.problem, env.unwrapped.dynamics.instances[0]
    assert env.unwrapped.llms == ("fast", "slow")
    assert problem["places"] == list(PLACES)
    assert instance.chunk.tolist() == [CHUNK] * 3
    # What lasts a number of seconds lasts as long in slots of any length.
    assert problem["arrival_rate"] == pytest.approx(slot * fit.value("arrivals"))
    assert slot * (1 / instance.return_rate - 1) == pytest.approx(fit.value("time to think"))
    assert slot / instance.impatience[0] == pytest.approx(fit.value("patience"), rel=0.01)
    assert instance.mean_tokens[0] == fit.value("tokens of an answer")
    loads = [
        gym.make("LLMServe-v0", preset="from-log", log=log, **given).unwrapped.task.public.load
        for given in ({}, {"slot_seconds": slot}, {"load": 0.5})
    ]
    assert loads[0] == pytest.approx(loads[1], rel=0.05)
    assert loads[2] == pytest.approx(0.5)


def test_a_day_and_queries_are_found_in_a_log_that_has_them(tmp_path):
    rng, rows = np.random.default_rng(0), []
    days = rng.uniform(0.0, 3.0, 9000)
    days = days[rng.random(9000) < (1.0 + 0.6 * np.sin(2 * np.pi * days)) / 1.6]
    for k, day in enumerate(np.sort(days)):
        hard, at = k % 2, 86_400 * day + 1e9
        answer = {"start": at, "first_token": at + 1, "end": at + 1 + 0.1 * (k % 9 + 1)}
        kept = int(rng.random() < (0.2 if hard else 0.9))
        answer |= {"output_tokens": k % 9 + 2, "llm": "a", "kept": kept}
        rows.append(answer | {"embedding": [1.0, float(hard)]})
    log = write(tmp_path / "log.csv", rows, list(rows[0]))
    fit = fit_serving(log)
    assert fit.value("swing of the day") == pytest.approx(0.6, abs=0.08)
    assert fit.value("W", "a") == pytest.approx(0.1)
    assert fit.value("H", "a") < 1e-6
    assert fit.value("give up") == 1.0  # no sessions: whoever comes is new, and so is who returns
    env = gym.make("LLMServe-v0", preset="from-log", log=log)
    env.reset(seed=0)
    instance = env.unwrapped.dynamics.instances[0]
    hard = instance.contexts[:, 1] > 0.5
    assert instance.success[hard].mean() == pytest.approx(0.2, abs=0.05)
    assert instance.success[~hard].mean() == pytest.approx(0.9, abs=0.05)
    assert env.unwrapped.task.arrivals.day == round(86_400 / instance.slot_seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {k: v for k, v in row.items() if k != "first_token"}, "no column 'first_tok"),
        (lambda row: {k: v for k, v in row.items() if k != "kept"}, "no column 'kept'"),
        (lambda row: row | {"end": row["asked"] - 1.0}, "column 'first_token' lies after column"),
        (lambda row: row | {"output_tokens": "many"}, "column 'output_tokens' must be a number"),
        (lambda row: row | {"asked": ""}, "row 1: column 'asked' must be a number or an ISO"),
        (lambda row: row | {"first_token": row["end"]}, "end after their first token"),
        (lambda row: row | {"llm": row["session"]}, "no LLM has min_rows=20 answers"),
    ],
)
def test_a_bad_log_has_one_clear_error(rows, tmp_path, change, message):
    answered = [change(row) for row in rows if "start" in row][:40]
    log = write(tmp_path / "log.csv", answered, [name for name in HEADER if name in answered[0]])
    with pytest.raises(UsageError, match=message):
        gym.make("LLMServe-v0", preset="from-log", log=log)


def test_a_log_and_its_preset_belong_together(tmp_path):
    for given in ({"preset": "from-log"}, {"log": "log.csv"}, {"preset": "fleet", "log": "x.csv"}):
        with pytest.raises(UsageError, match="belong together"):
            gym.make("LLMServe-v0", **given)
    for log, message in ((3, "must be the name of a file"), ({"path": "x", "row": 1}, "log: key")):
        with pytest.raises(UsageError, match=message):
            gym.make("LLMServe-v0", preset="from-log", log=log)
    with pytest.raises(UsageError, match="there is no such file"):
        gym.make("LLMServe-v0", preset="from-log", log="nowhere.csv")


def test_the_spend_logs_of_litellm_are_read_by_their_own_columns(tmp_path):
    def clock(second):
        return f"2026-05-04T{second // 3600:02.0f}:{second // 60 % 60:02.0f}:{second % 60:06.3f}Z"

    with (tmp_path / "spend.jsonl").open("w") as file:
        for k in range(60):
            user, tokens, start = k // 2, 10 + k % 7, 20 * k
            # Every third user asks the same question again.
            text = f"What is known of the {user} rings of tree {user if user % 3 == 0 else k}?"
            row = {"request_id": f"id-{k}", "spend": 0.001, "model": "maker/a", "model_group": "a"}
            row |= {"startTime": clock(start), "completionStartTime": clock(start + 1)}
            row |= {"endTime": clock(start + 1 + 0.05 * (tokens - 1)), "status": "success"}
            row |= {"prompt_tokens": 9, "completion_tokens": tokens, "session_id": f"user {user}"}
            row |= {"messages": [{"role": "user", "content": text}]}
            file.write(json.dumps(row) + "\n")
    fit = fit_serving(str(tmp_path / "spend.jsonl"))
    assert fit.value("W", "a") == pytest.approx(0.05, rel=1e-3)
    assert fit.value("H", "a") < 1e-6
    assert fit.value("kept", "a") == pytest.approx(50 / 60)
    back = 20.0 - 1.0 - 0.05 * (9 + np.arange(0, 60, 6) % 7)
    assert fit.value("time to think") == pytest.approx(back.mean())
    gym.make("LLMServe-v0", preset="from-log", log=str(tmp_path / "spend.jsonl")).reset(seed=0)
