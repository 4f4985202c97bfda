"""A second simulator of the deployment problem, plain and slow, that LLMDeploy-v0 agrees with.

Written from the description of the problem; of the package it reads the drawn instance only.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments

SYNTHETIC: dict[str, Any] = {"instance": {"source": "synthetic", "num_llms": 7}}
SHORT = {**SYNTHETIC, "horizon": 237, "num_stages": 8, "max_deployed": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "routerbench": {"instance": "routerbench"},
    "soft": {"budget_per_query": 2e-3},
    "rich": {"budget_per_query": 0.5, "alpha": 0.35},
    "ledger-reward": {"budget_per_query": 4e-3, "budget": "hard"},
    "unequal-alpha": {"alpha": [0.4, 0.9, 0.5, 0.1, 0.6, 0.3, 1.0]},
    "one-slot": {"max_deployed": 1, "alpha": 1.0},
    "query-stages": {"horizon": 50, "num_stages": 50, "switching_cost": 1e-3},
    "delay": {"reward_delay": 11, "budget_per_query": 4e-3},
    "delay-drift": {"reward_delay": 60, "drift": 0.4},
    "drift": {"instance": "routerbench", "drift": 0.5, "switching_cost": 2e-3, "max_deployed": 5},
    "prices": {"instance": "catalog", "price_changes": "recorded", "budget_per_query": 5e-3},
    "retirements": {"retirements": [{"llm": "llm_0", "query": 100}, {"llm": "llm_1", "query": 99}]},
}


COUNTERS = ("refused", "violations", "projected")


class Simulator:
    """One episode, query by query, in plain Python numbers."""

    def __init__(self, truth: Any, arguments: dict[str, Any], public: Any, seed: int) -> None:
        self.truth, self.n = truth, public["num_llms"]
        self.horizon, self.stages = public["horizon"], public["num_stages"]
        self.slots, self.alpha, self.b = (public[k] for k in ("max_deployed", "alpha", "budget"))
        self.switching = arguments.get("switching_cost", 0.0)
        _, _, rewards, inputs, outputs = np.random.default_rng(seed).spawn(5)
        self.uniform = rewards.random(self.horizon).tolist()
        self.normals = [
            [min(max(z, -3.0), 3.0) for z in stream.standard_normal(self.horizon).tolist()]
            for stream in (inputs, outputs)
        ]
        self.t, self.stage, self.start, self.end = 0, 0, 0, self.horizon // self.stages
        self.deployed: set[int] = set()
        self.used = [0] * self.n
        self.answers, self.rated = [0] * self.n, [0] * self.n
        self.paid, self.earned = [0.0] * self.n, [0.0] * self.n
        self.waiting = deque([(-1, 0.0, 0.0)] * arguments.get("reward_delay", 0))
        self.spend = self.ledger_spend = self.ledger_score = self.total_reward = 0.0
        self.exhausted = False
        self.refused = self.violations = self.projected = 0

    def there(self, llm: int) -> bool:
        return bool(self.truth.arrival_query[llm] <= self.t < self.truth.retire_query[llm])

    def regime(self) -> int:
        return sum(bool(change <= self.t) for change in self.truth.change_query) - 1

    def cap(self, llm: int) -> int:
        return math.ceil(self.alpha[llm] * (self.end - self.start) - 1e-9)

    def outcome(self, llm: int) -> tuple[float, float]:
        truth, regime, u = self.truth, self.regime(), self.uniform[self.t]
        mean, base = truth.mean_reward[regime, llm], truth.base_reward[llm]
        # With the probability that takes the mean from the base to where it has drifted, the
        # reward is 1 (up: the largest draws) or 0 (down: the smallest).
        up = (mean - base) / (1.0 - base) if mean > base else 0.0
        down = (base - mean) / base if mean < base else 0.0
        if u < down or u >= 1.0 - up:
            reward = float(u >= down)
        else:
            x = (u - down) / (1.0 - up - down)
            atom = sum(bool(level <= x) for level in truth.reward_cdf[llm])
            reward = float(truth.reward_atoms[atom])
        cost = 0.0
        for part, price in enumerate((truth.input_cost, truth.output_cost)):
            sd, z = truth.log_sd[part, llm], self.normals[part][self.t]
            cost += price[regime, llm] * math.exp(sd * z) / clipped_lognormal_mean(float(sd))
        return reward, cost

    def step(self, bits: list[int], llm: int) -> dict[str, Any]:
        wanted, projected, switching = {m for m in range(self.n) if bits[m]}, False, 0.0
        if self.t == self.start:
            allowed = set(sorted(m for m in wanted if self.there(m))[: self.slots])
            projected = allowed != wanted
            if self.stage > 0:
                switching = self.switching * len(allowed - self.deployed)
            self.deployed = allowed
        refused = llm not in self.deployed
        above = not refused and self.used[llm] >= self.cap(llm)
        reward = cost = 0.0
        if not refused:
            reward, cost = self.outcome(llm)
            self.used[llm] += 1
            self.answers[llm] += 1
            self.paid[llm] += cost
        charge = switching + cost
        self.spend += charge
        self.total_reward += reward
        self.exhausted |= self.ledger_spend + charge > self.b * self.horizon * (1 + 1e-13)
        ledger_reward = 0.0 if self.exhausted or above else reward
        self.ledger_spend += 0.0 if self.exhausted else charge
        self.ledger_score += ledger_reward
        self.refused += refused
        self.violations += above
        self.projected += projected
        self.waiting.append((-1 if refused else llm, reward, ledger_reward))
        rated, seen, seen_ledger = self.waiting.popleft()
        if rated >= 0:
            self.rated[rated] += 1
            self.earned[rated] += seen
        before = {m for m in range(self.n) if self.there(m)}
        self.t += 1
        if self.t == self.end < self.horizon:
            self.stage += 1
            self.start, self.end = self.end, (self.stage + 1) * self.horizon // self.stages
            self.used = [0] * self.n
        return {
            **{"llm": -1 if refused else llm, "rated_llm": rated},
            **{"rated_reward": seen, "ledger_reward": seen_ledger},
            **{"cost": cost, "switching_cost": switching, "spend": self.spend},
            **{"refused": refused, "throttled": above, "projected": projected},
            "over_budget": self.exhausted,
            "arrived_now": [self.there(m) and m not in before for m in range(self.n)],
        }

    def observe(self) -> dict[str, Any]:
        llms, left = range(self.n), self.horizon - self.t
        length, updating = self.end - self.start, self.t == self.start
        there = [self.there(m) for m in llms]
        spare = [max(self.cap(m) - self.used[m], 0) for m in llms]
        serving = [there[m] or (m in self.deployed and not updating) for m in llms]
        return {
            "arrived": there,
            "deployed": [m in self.deployed for m in llms],
            "cost_prior": [self.truth.list_cost[self.regime(), m] * there[m] for m in llms],
            "count": self.answers,
            "mean_reward": [self.earned[m] / max(self.rated[m], 1) for m in llms],
            "mean_cost": [self.paid[m] / max(self.answers[m], 1) for m in llms],
            "throughput_left": [spare[m] / length * serving[m] for m in llms],
            "deploy_now": updating,
            "stage_progress": [(self.t - self.start) / length],
            "query_progress": [self.t / self.horizon],
            "spent": [self.spend / (self.b * self.horizon)],
            "budget_left": [(self.horizon - self.spend / self.b) / left if left else 0.0],
        }


@cache
def clipped_lognormal_mean(sd: float) -> float:
    """E[exp(sd Z)], Z standard normal clipped at +-3: the integral, by the trapezoidal rule."""
    z = np.linspace(-3.0, 3.0, 20_001)
    density = np.exp(sd * z - z * z / 2.0) / math.sqrt(2.0 * math.pi)
    tail = 0.5 * math.erfc(3.0 / math.sqrt(2.0))
    return float(np.trapezoid(density, z)) + tail * (math.exp(3.0 * sd) + math.exp(-3.0 * sd))


@pytest.mark.filterwarnings("ignore:budget_per_query", "ignore:retirements")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_environment_agrees_with_the_plain_simulator(name: str, seed: int) -> None:
    arguments = {**SHORT, **SETTINGS[name]}
    env: Any = gym.make("LLMDeploy-v0", disable_env_checker=True, **arguments).unwrapped
    observation, _ = env.reset(seed=seed)
    dynamics = env.dynamics
    simulator = Simulator(dynamics.instance(), arguments, env.problem, seed)
    rng, favourite = np.random.default_rng(seed), 0
    for t in range(simulator.horizon):
        for key, value in simulator.observe().items():
            np.testing.assert_allclose(observation[key], value, rtol=2e-6, atol=1e-7, err_msg=key)
        bits = (rng.random(simulator.n) < 0.5).astype(int)
        if rng.random() < 0.1:  # long runs on one LLM reach its cap
            llms = sorted(simulator.deployed) if rng.random() < 0.7 else range(simulator.n)
            favourite = int(rng.choice(llms or [0]))
        action = np.append(bits, favourite)
        observation, reward, terminated, truncated, info = env.step(action)
        for key, value in simulator.step(bits.tolist(), favourite).items():
            np.testing.assert_allclose(info[key], value, rtol=1e-9, atol=1e-15, err_msg=key)
        hard = arguments.get("budget") == "hard"
        assert reward == info["ledger_reward" if hard else "rated_reward"]
        assert (terminated, truncated) == (False, t == simulator.horizon - 1)
    for total in ("total_reward", "ledger_score", "ledger_spend", *COUNTERS):
        assert getattr(dynamics, total) == pytest.approx(getattr(simulator, total)), total
