"""Made-up LLMs: random ones, late arrivals after the lower bound, a gap that does not shrink."""

from __future__ import annotations

import numpy as np

from llmqueue_gym import checks
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.feasible import verdict
from llmqueue_gym.deployment.streams.stream import (
    BERNOULLI,
    Defaults,
    Floats,
    LLMStream,
    Undated,
    bernoulli_cdf,
    log_sd_of,
    lognormal_bounds,
)
from llmqueue_gym.errors import UsageError

_SYNTHETIC_KINDS = ("random", "late_arrival", "fixed_gap")


class SyntheticStream(Undated):
    """Made-up LLMs with Bernoulli rewards (R).

    Parameters
    ----------
    kind : {"random", "late_arrival", "fixed_gap"}
        ``"random"``: mean rewards U(0.2, 0.9), mean costs log-uniform on [1e-4, 1e-2] USD with
        coefficient of variation 0.8; ``initial`` LLMs at the start, the others at uniform times.
        Costs are redrawn until the initial ones can serve all traffic within the budget; after a
        hundred draws they are moved towards 1e-4 until they do.
        ``"late_arrival"``, after the lower bound: all mean rewards are 1/2 and all costs 5e-4 USD,
        but one of the LLMs that arrive at T / 2, nobody knows which, is better by ``gap``. With the
        default gap no policy's regret exceeds T^(2/3) / 2: it shows how hard a small gap is, and
        nothing about growth in T.
        ``"fixed_gap"``: the same, but the gap does not shrink with T and the later LLMs arrive one
        by one, at uniform times before T / 2. A policy that never finds the better one pays for it
        on at least T / 2 queries, so here regret may grow as fast as T.
    num_llms : int
        N.
    initial : int, optional
        LLMs at the start; default half of them, rounded up.
    gap : float, optional
        epsilon in (0, 0.5] of ``"late_arrival"`` and ``"fixed_gap"``; default T^(-1/3) and 0.1.
    """

    context_dim = 0
    has_prices = False
    fixed = False

    def __init__(
        self,
        kind: str = "random",
        num_llms: int = 20,
        initial: int | None = None,
        gap: float | None = None,
    ) -> None:
        if kind not in _SYNTHETIC_KINDS:
            raise checks.unknown_name("kind of 'synthetic'", kind, _SYNTHETIC_KINDS)
        self._kind = kind
        self._random = kind == "random"
        self.fixed_costs = kind == "late_arrival"
        size = checks.count("num_llms", num_llms, 1 if self._random else 2)
        self._initial = (size + 1) // 2 if initial is None else checks.count("initial", initial)
        if self._initial > size - (not self._random):
            raise UsageError(f"initial={initial!r} leaves none of {size} LLMs to arrive; lower it")
        if gap is not None and (self._random or checks.number("gap", gap, "(0, inf)") > 0.5):
            raise UsageError(
                f"gap={gap!r} is for kind='late_arrival' or 'fixed_gap' and lies in (0, 0.5]"
            )
        self._gap = 0.1 if gap is None and kind == "fixed_gap" else gap
        self.llms = tuple(f"llm_{k}" for k in range(size))
        self._log_sd = np.zeros((2, size))
        if self._random:
            self._log_sd[0] = log_sd_of(0.8)
            self._range = np.array([1e-4, 1e-2])
        else:
            self._range = np.array([5e-4, 5e-4])
        ends = lognormal_bounds(self._range, self._log_sd[0, :1].repeat(2))
        self.cost_bounds = np.repeat([[ends[0, 0]], [ends[1, 1]]], size, axis=1)
        alpha = 0.4 if self._random else 1.0
        self.defaults = Defaults(10_000, 20, min(4, size), alpha if size > 4 else 1.0, 1e-3)

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Draw the LLMs.

        Raises
        ------
        ValueError
            If the budget is below the least mean cost of ``"random"`` or ``"fixed_gap"``.
        """
        size, early = len(self.llms), self._initial
        least, most = self._range
        if rules.budget < least and not self.fixed_costs:
            raise UsageError(
                f"budget_per_query={rules.budget!r} USD is below the cheapest mixture of LLMs with "
                f"mean costs in [{least:g}, {most:g}]; raise it to {least:g} or more"
            )
        arrival = np.zeros(size, dtype=np.int64)
        if self._random:
            mean = rng.uniform(0.2, 0.9, size)
            arrival[early:] = np.sort(rng.integers(1, max(rules.horizon, 2), size - early))
            cost = self._affordable(rng, rules)
        else:
            mean, cost = np.full(size, 0.5), np.full(size, least)
            arrival[early:] = half = rules.horizon // 2
            if self._kind == "fixed_gap":
                arrival[early:] = np.sort(rng.integers(1, max(half, 2), size - early))
            gap = rules.horizon ** (-1 / 3) if self._gap is None else self._gap
            mean[rng.integers(early, size)] += min(gap, 0.5)
        zero = np.zeros(size)
        return LLMStream(arrival, mean, cost, zero, self._log_sd, BERNOULLI, bernoulli_cdf(mean))

    def _affordable(self, rng: np.random.Generator, rules: DeploymentRules) -> Floats:
        least = self._range[0]
        low, high = np.log(self._range)
        early = self._initial
        alpha = np.array(rules.alpha)[:early]
        for attempt in range(200):
            if attempt < 100:
                cost = np.exp(rng.uniform(low, high, len(self.llms)))
            else:
                cost[:early] = np.sqrt(cost[:early] * least)
            if verdict(cost[:early], alpha, rules) != "over_budget":
                break
        return np.asarray(cost)
