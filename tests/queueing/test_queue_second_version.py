"""LLMQueue-v0 against a second version of it: plain lists, written from the paper's slot alone.

The second version shares no code with the core. It is given the instance (contexts, and what the
utilities are computed from), lambda, and the three streams of uniform draws.
"""

import json
import math
from itertools import combinations

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from benchmarks.problems.queueing.play import Recorder

HORIZON = 700


def departure_rate(utilities, shown):
    """p(x, S) = sum_S o / (1 + sum_S o) with o = exp(u); S is a set."""
    total = sum(math.exp(utilities[llm]) for llm in set(shown))
    return total / (1 + total)


class SecondVersion:
    """One queue of [query, retrials, slot of arrival, slot of joining] in service order."""

    def __init__(self, contexts, utilities, arrival_rate, size, window, draws, noise):
        self.noise, self.codes = noise, []
        self.contexts, self.utilities, self.arrival_rate = contexts, utilities, arrival_rate
        self.window, self.draws = window, draws
        self.best = [
            max(
                departure_rate(row, shown)
                for count in range(1, size + 1)
                for shown in combinations(range(len(row)), count)
            )
            for row in utilities
        ]
        self.queue, self.slot, self.feedback = [], 0, 0

    def rates(self, place, shown):
        """Best departure rate in the whole queue, and that of an action; 0 where nobody waits."""
        best = max((self.best[entry[0]] for entry in self.queue), default=0.0)
        served = place < min(len(self.queue), self.window)
        own = departure_rate(self.utilities[self.queue[place][0]], shown) if served else 0.0
        return best, own

    def step(self, place, shown):
        """Run one slot; return what is told to have arrived and been kept, and the sojourn."""
        arrival, which, outcome, *heard = (stream[self.slot] for stream in self.draws)
        self.slot += 1
        code, kept, sojourn, missed = 0, -1, 0, False
        if place < min(len(self.queue), self.window):  # 1. one query and one assortment
            query, retrials, came, _ = self.queue.pop(place)
            odds = [(llm, math.exp(self.utilities[query][llm])) for llm in sorted(set(shown))]
            total = 1 + sum(o for _, o in odds)
            upper = 1 / total  # 2. inverse CDF over [retry, S[0], S[1], ...] from one uniform
            code = 1
            if outcome >= upper:
                for llm, o in odds:
                    upper += o / total
                    kept = llm
                    if outcome < upper:
                        break
                code = 2 + kept
                sojourn = self.slot - came
                if heard and heard[0] < self.noise.get("false", 0):
                    code = 1
            else:  # 4. who retries joins the tail again, the age running on
                missed = bool(heard) and heard[0] < self.noise.get("missed", 0)
                code = 2 + shown[0] if missed else 1
                again = [0, self.slot] if missed else [retrials + 1, came]
                self.queue.append([query, *again, self.slot])
            if heard and heard[0] >= 1 - self.noise.get("silent", 0):
                code = 0
        self.codes.append(code)
        told = self.slot - self.noise.get("delay", 0)
        self.feedback = self.codes[told - 1] if told >= 1 else 0
        arrived = arrival < self.arrival_rate
        if arrived:  # 5. it can be served from the next slot on
            query = int(which * len(self.contexts))
            self.queue.append([query, 0, self.slot, self.slot])
        return arrived or missed, self.feedback - 2 if self.feedback >= 2 else -1, sojourn

    def observation(self):
        """What a provider sees: the first W queries, empty places zero."""
        seen = self.queue[: self.window]
        gap = [0] * (self.window - len(seen))
        return {
            "contexts": [self.contexts[q] for q, _, _, _ in seen]
            + [[0.0] * len(self.contexts[0]) for _ in gap],
            "waiting": [1] * len(seen) + gap,
            "retrials": [retrials for _, retrials, _, _ in seen] + gap,
            "age": [self.slot - came for _, _, came, _ in seen] + gap,
            "wait": [self.slot - joined for _, _, _, joined in seen] + gap,
            "queue_length": [len(self.queue)],
            "feedback": self.feedback,
        }


def linear(env, path):
    """Utilities x . theta_j + b, with theta found from as many queries as there are unknowns."""
    truth = env.unwrapped.dynamics
    contexts = truth.contexts[:-1].astype(np.float64)
    rows = np.column_stack([contexts, np.ones(len(contexts))])
    theta = np.linalg.lstsq(rows[:50], np.log(truth.odds[:50]), rcond=None)[0].T.tolist()
    return [
        [sum(a * b for a, b in zip(row, of_llm, strict=True)) for of_llm in theta]
        for row in rows.tolist()
    ]


def tabular(env, path):
    """Utilities logit(r) of a table's q - lam c, scaled by the smallest and largest of all."""
    table = [json.loads(line) for line in path.read_text().splitlines()]
    value = [[row["q"][m] - 5 * row["c"][m] for m in ("a", "b", "c", "d")] for row in table]
    low, high = min(map(min, value)), max(map(max, value))
    utilities = []
    for context in env.unwrapped.dynamics.contexts[:-1].tolist():
        share = [(v - low) / (high - low) for v in value[int(context[0])]]
        rate = [min(0.99, max(0.1, 0.1 + 0.89 * s)) for s in share]
        utilities.append([math.log(r / (1 - r)) for r in rate])
    return utilities


def written_table(path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(60):
        q, c = rng.random(4).tolist(), (0.1 * rng.random(4)).tolist()
        names = ("a", "b", "c", "d")
        scores = {"q": dict(zip(names, q, strict=True)), "c": dict(zip(names, c, strict=True))}
        lines.append(json.dumps({"x": [i, 1.0], **scores}))
    path.write_text("\n".join(lines))
    return {
        "source": "table",
        "path": str(path),
        "embedding": "x",
        "quality": "q",
        "cost": "c",
        "cost_weight": 5,
        "scale": "table",
    }


@pytest.mark.parametrize("truth", [linear, tabular], ids=["linear", "tabular"])
@pytest.mark.parametrize(
    ("size", "window", "arrivals", "noise"),
    [
        (1, 32, {"load": 0.6}, {}),
        (1, 3, {"arrival_rate": 0.9}, {"missed": 0.5, "delay": 1}),
        (2, 32, {"load": 0.95}, {}),
        (2, 1, {"arrival_rate": 0.7}, {"false": 0.7, "silent": 0.2, "delay": 30}),
        (3, 8, {"arrival_rate": 0.95}, {"missed": 0.4, "false": 0.3, "silent": 0.6}),
    ],
)
@pytest.mark.parametrize("clever", [False, True], ids=["random", "near-the-best"])
def test_both_versions_agree_in_every_slot(truth, size, window, arrivals, noise, clever, tmp_path):
    """Random actions repeat LLMs and choose empty places; half the others are the oracle's."""
    workload = written_table(tmp_path / "t.jsonl")
    if truth is linear:
        workload = {"source": "synthetic", "kind": "specialists", "pool_size": 200, "num_llms": 4}
    seed = 10 * size + window
    kwargs = {"workload": workload, "assortment_size": size, "window": window, **arrivals}
    kwargs |= {"max_episode_steps": HORIZON, "feedback": noise}
    env = gym.make("LLMQueue-v0", disable_env_checker=True, **kwargs)
    seen, _ = env.reset(seed=seed)
    recorder, dynamics = Recorder(env, HORIZON), env.unwrapped.dynamics
    # The first drew the instance; without noise nothing is drawn for it.
    streams = np.random.default_rng(seed).spawn(5 if noise else 4)[1:]
    second = SecondVersion(
        dynamics.contexts[:-1].tolist(),
        truth(env, tmp_path / "t.jsonl"),
        float(dynamics.arrival_rate[0]),
        size,
        window,
        [stream.random(HORIZON).tolist() for stream in streams],
        noise,
    )
    rng = np.random.default_rng(1)
    sojourns, lengths, repeats = [], [], 0
    for t in range(HORIZON):
        for key, value in second.observation().items():
            np.testing.assert_array_equal(seen[key], value, err_msg=f"{key} before slot {t + 1}")
        action = np.array([rng.integers(window), *rng.integers(0, 4, size)])
        if clever and rng.random() < 0.5:
            slots, llms = dynamics.best_actions()
            action = np.array([slots[0], *llms[0]])
        place, *shown = action.tolist()
        repeats += len(set(shown)) < size
        best, own = second.rates(place, shown)
        recorder.choose(t, action)
        seen, _, _, _, info = env.step(action)
        recorder.observe(t, action, info)
        arrived, kept, sojourn = second.step(place, shown)
        assert (info["arrived"], info["kept_llm"]) == (arrived, kept)
        assert info["queue_length"] == len(second.queue)
        assert recorder.trace.best_rate[t] == pytest.approx(best, abs=1e-6)
        assert recorder.trace.departure_rate[t] == pytest.approx(own, abs=1e-6)
        if not noise.get("missed"):
            assert recorder.trace.sojourn[t] == sojourn
        lengths.append(len(second.queue))
        sojourns.append(sojourn)
    waiting = [HORIZON - came + 1 for _, _, came, _ in second.queue]
    if not noise.get("missed"):  # it does not know since when a query waits that nobody saw retry
        assert sum(lengths) == sum(sojourns) + sum(waiting)  # Little's law, exact
    recorder.result()  # it does, and checks the law
    assert sum(map(bool, sojourns)) > 50
    assert size == 1 or repeats > 50
    assert "load" in arrivals or max(lengths) > window
