"""The LLMs of RouterBench, with the rewards and costs of the published table."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np

from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.stream import (
    FACTS,
    Defaults,
    LLMStream,
    Undated,
    log_sd_of,
    lognormal_bounds,
)


class RouterBenchStream(Undated):
    """The 11 LLMs of RouterBench: real reward distributions, lognormal costs of real mean and sd.

    Facts computed from the published 0-shot table of 36,497 queries (Hu et al., arXiv 2403.12031);
    see ``routerbench_facts.json``. (R) The five reward atoms cover 99.8% of the rows: they
    are renormalised, and less than 0.0003 of the mass moves between 0 and 1 to keep the published
    mean. Costs are clipped at 3 standard deviations of their logarithm, the mean is kept. The first
    five LLMs by release date are there at the start, then one comes every T / 8 (R).
    """

    context_dim = 0
    has_prices = False
    fixed = fixed_costs = True
    defaults = Defaults(36_497, 33, 5, 0.4, 1e-3)

    def __init__(self) -> None:
        text = resources.files(FACTS).joinpath("routerbench_facts.json").read_text("utf-8")
        facts = json.loads(text)
        models = sorted(facts["models"], key=lambda model: model["release_date"])
        self.llms = tuple(model["id"] for model in models)
        self._mean = np.array([model["mean_reward"] for model in models])
        self._cost = np.array([model["mean_cost_usd"] for model in models])
        cv = np.array([model["sd_cost_usd"] for model in models]) / self._cost
        self._log_sd = np.stack([log_sd_of(cv), np.zeros_like(cv)])
        self.cost_bounds = lognormal_bounds(self._cost, self._log_sd[0])
        self._atoms = np.array(facts["reward_atoms"], dtype=np.float64)
        weights = np.array([model["atom_weights"] for model in models])
        weights /= weights.sum(axis=1, keepdims=True)
        weights[:, 0] += weights @ self._atoms - self._mean  # the last atom takes what is left
        self._cdf = np.cumsum(weights, axis=1)[:, :-1]

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Return the stream, always the same."""
        later = np.maximum(np.arange(len(self.llms)) - 4, 0)
        return LLMStream(
            later * rules.horizon // 8,
            self._mean,
            self._cost,
            np.zeros_like(self._cost),
            self._log_sd,
            self._atoms,
            self._cdf,
        )
