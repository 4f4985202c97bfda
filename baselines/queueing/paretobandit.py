"""The router of the installed ``paretobandit`` package as a peer, serving the queue in order.

A third-party LinUCB router (package paretobandit, Apache-2.0), run as its users run it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import Pairing, QueueAgent, Served
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError, needing

LEARNED = (
    *("A", "b", "A_inv", "theta", "t", "last_update", "last_played", "regularization_floor"),
    "_rng",
)
"""Attributes of the package's bandit that change while it plays."""


@agent("paretobandit", source="package paretobandit")
class ParetoBanditRouter(QueueAgent):
    """``pareto_bandit.BanditRouter`` with FIFO scheduling and a cold start.

    The router is the package's own, with its default exploration and forgetting, no prior
    (``priors="none"``) and precomputed features: the context and a constant 1, which the package
    expects last. Its reward is 1 when the routed LLM's answer is kept, else 0.

    (R) The router picks one LLM. For K > 1 the others are the next by its own index (mean plus
    exploration width minus cost penalty), and learn from the same answer.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the router's tie-breaking.
    prices : sequence of float, optional
        USD per million tokens of every LLM. By default all prices are equal, so that the
        router's cost penalty changes nothing.

    Raises
    ------
    ImportError
        If the package is not installed.
    ValueError
        If ``prices`` does not hold one positive number per LLM.
    """

    def __init__(
        self, problem: QueueProblem, seed: int, prices: Sequence[float] | None = None
    ) -> None:
        super().__init__(problem, seed)
        prices = [1.0] * problem.num_llms if prices is None else list(prices)
        if len(prices) != problem.num_llms:
            raise UsageError(f"prices={prices!r} must hold one price per LLM, {problem.num_llms}")
        for llm, price in enumerate(prices):
            checks.number(f"prices[{llm}]", price, "(0, inf)")
        self._names = [f"llm-{j}" for j in range(problem.num_llms)]
        self._prices, self._seed = prices, seed
        self._router = self._made_router()
        self._requests: dict[int, str] = {}  # slot -> request, of answers not judged yet

    def _made_router(self) -> Any:
        """Return a router that has learned nothing."""
        with needing('agent "paretobandit"', "the paretobandit package", "data"):
            from pareto_bandit import BanditRouter, FeatureService
        logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
        return BanditRouter.create(
            model_registry={
                name: {"input_cost_per_m": price, "output_cost_per_m": price}
                for name, price in zip(self._names, self._prices, strict=True)
            },
            priors="none",
            feature_service=FeatureService.for_precomputed(self.problem.context_dim + 1),
            bandit_seed=self._seed,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is saved: of the router what it has learned, and requests not judged yet."""
        router = self._router
        return {
            **{name: value for name, value in self.__dict__.items() if name != "_router"},
            "_learned": {name: getattr(router.bandit, name) for name in LEARNED},
            "_unjudged": {
                request: router.context_store.get_context(request)
                for request in self._requests.values()
            },
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the router anew and give it what the saved one knew."""
        learned, unjudged = state.pop("_learned"), state.pop("_unjudged")
        self.__dict__.update(state)
        self._router = self._made_router()
        for name, value in learned.items():
            setattr(self._router.bandit, name, value)
        for request, (features, name) in unjudged.items():
            self._router.context_store.save_context(request, features, name)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Route the head of the queue."""
        features = np.append(observation["contexts"][0].astype(np.float64), 1.0)
        name, log = self._router.route(features)
        self._requests[self.slot_number] = log.request_id
        llms = [self._names.index(name)]
        if self.problem.assortment_size > 1:
            ranked = np.argsort(-self._indices(features), kind="stable").tolist()
            llms += [llm for llm in ranked if llm not in llms]
        return Pairing(0, llms[: self.problem.assortment_size])

    def learn(self, served: Served) -> None:
        """Report the answer to the router."""
        first, *others = served.shown
        request = self._requests[self.judged_slot]
        self._requests = {t: r for t, r in self._requests.items() if t > self.judged_slot}
        self._router.process_feedback(request, float(first == served.kept))
        features = np.append(served.context.astype(np.float64), 1.0)
        for llm in others:
            kept = float(llm == served.kept)
            self._router.update(self._names[llm], features, kept, advance_time=False)

    def _indices(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the router's own index of every LLM, shape (N,)."""
        router, bandit = self._router, self._router.bandit
        return np.array(
            [
                bandit.get_expected_reward(name, features)
                + bandit.alpha * bandit.get_ucb_variance(name, features) ** 0.5
                - router.cost_penalty * router._get_normalized_cost(name)
                for name in self._names
            ]
        )
