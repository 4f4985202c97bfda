"""Routers that gateways ship, and nearest neighbours with a guard: they route, nobody schedules.

routing-sampling: vLLM Semantic Router, `pkg/extproc` (github.com/vllm-project/semantic-router),
its default for learning online. litellm-adaptive: `router_strategy/adaptive_router` of the package
litellm, 1.110.2. Nearest neighbours: Li, arXiv 2505.12601; the guard is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baselines.estimators.neighbours import Neighbours, guarded_gains
from baselines.interface import Observation, QueueProblem
from baselines.queueing.base import (
    Contexts,
    LinearPolicy,
    Pairing,
    QueueAgent,
    Served,
    largest_shares,
    top_llms,
)
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.compiled import borrowing

Floats = NDArray[np.float64]

SEED_QUALITY, SEED_WEIGHT = 0.5, 2.0
"""What routing-sampling expects of an LLM without answers (q), and how many answers that is (w)."""

PRIOR_MEAN, PRIOR_MASS, MASS_LIMIT = 0.5, 10.0, 200.0
"""litellm-adaptive: alpha + beta at first and at most, and the prior mean of the middle tier."""

MISALIGNED_BELOW = 0.45
"""Similarity from which on LiteLLM takes a turn for more of the same, not for a correction."""

MIN_TURNS = 3
"""Turns before LiteLLM counts thanks."""

NUM_TYPES = 7
"""Types of request that LiteLLM tells apart."""


@agent("routing-sampling", source="vLLM Semantic Router, routing_sampling")
class RoutingSampling(QueueAgent):
    """routing_sampling of the vLLM Semantic Router: Thompson sampling of each LLM's share of fits.

    The head of the queue goes to the K LLMs of largest

        sample of Beta(w q + good + 1, w (1 - q) + under + 1) - .04 cost / max cost
        - .03 input cost - .03 over / total - .10 failed / total - .02 latency + .02 cache hits,

    q = .5, w = 2, ties to the first; an LLM without outcomes is tried before all others. In a
    queue an answer kept is a "good fit" and one refused "underpowered"; nobody reports on costs,
    failures, latency or caches, so that their terms are 0.

    (R) The paper trail has K = 1. For K > 1 the LLMs shown and not kept are underpowered too.
    (R) Its protection, which holds on to a conversation's LLM, is off.
    """

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._good = np.zeros(problem.num_llms)
        self._under = np.zeros(problem.num_llms)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Serve the head with the largest samples."""
        scores = self.rng.beta(*fit_posterior(self._good, self._under))
        scores[self._good + self._under == 0] = np.inf
        return Pairing(0, top_llms(scores, self.problem.assortment_size))

    def learn(self, served: Served) -> None:
        """Count fits and misfits."""
        for llm in served.shown:
            outcome = self._good if llm == served.kept else self._under
            outcome[llm] += 1

    def policy(self) -> LinearPolicy:
        """Return the posterior means."""
        alpha, beta = fit_posterior(self._good, self._under)
        return self.context_free(alpha / (alpha + beta))


def fit_posterior(good: Floats, under: Floats) -> tuple[Floats, Floats]:
    """Return alpha and beta of routing-sampling's posterior from the counts of both outcomes."""
    prior = SEED_WEIGHT * SEED_QUALITY + 1.0, SEED_WEIGHT * (1.0 - SEED_QUALITY) + 1.0
    return prior[0] + good, prior[1] + under


@agent(
    "litellm-adaptive-retrials", source="LiteLLM adaptive_router, retrials reworded", similarity=0.4
)
@agent("litellm-adaptive", source="LiteLLM adaptive_router")
class LiteLLMAdaptive(QueueAgent):
    """adaptive_router of LiteLLM: a Beta posterior for each type of request and LLM.

    The head of the queue goes to the K LLMs of largest .7 sample + .3 cheapness; nothing is known
    of prices here, which LiteLLM takes for .5 of cheapness each. alpha + beta = 10 at first with
    mean .5, a middle tier without declared strengths, and what would lift it over 200 is dropped.

    * misalignment, beta + 1: the next turn of a session has a Jaccard similarity of words J to the
      one before with 0 < J < .45. A retrial that repeats the query has J = 1 and is not counted:
      as shipped the router never learns of a refusal. ``litellm-adaptive-retrials`` has users who
      reword their query, so that the same rule counts all.
    * satisfaction, alpha + 1, once a session and in its third turn at the earliest. (R) Who keeps
      an answer says thanks in a turn of its own, so a query counts that has been retried.

    (R) The seven types are told by the nearest of seven centres of contexts, LiteLLM's by key
    words, which there are not. (R) For K > 1 a refusal counts against all LLMs shown.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    similarity : float
        Jaccard similarity of a retrial's words to those of the turn before, in [0, 1].
    """

    def __init__(self, problem: QueueProblem, seed: int, similarity: float = 1.0) -> None:
        super().__init__(problem, seed)
        self.similarity = checks.number("similarity", similarity, "[0, 1]")
        size = NUM_TYPES, problem.num_llms
        self.alpha = np.full(size, PRIOR_MEAN * PRIOR_MASS)
        self.beta = np.full(size, (1.0 - PRIOR_MEAN) * PRIOR_MASS)
        self._types = Types(problem.context_dim)
        self._asked: dict[int, tuple[int, int]] = {}  # slot -> type and retrials, not judged yet

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Serve the head with the largest samples for its type: equal prices change no order."""
        retrials = int(observation["retrials"][0])
        kind = self._types.of(observation["contexts"][0], new=retrials == 0)
        self._asked[self.slot_number] = kind, retrials
        sample = self.rng.beta(self.alpha[kind], self.beta[kind])
        return Pairing(0, top_llms(sample, self.problem.assortment_size))

    def learn(self, served: Served) -> None:
        """Count what the signals of LiteLLM see of the answer."""
        kind, retrials = self._asked[self.judged_slot]
        self._asked = {t: own for t, own in self._asked.items() if t > self.judged_slot}
        if served.kept >= 0:
            if retrials + 2 >= MIN_TURNS:  # the attempts, then the thanks
                self._count(self.alpha, kind, served.kept)
        elif 0.0 < self.similarity < MISALIGNED_BELOW:
            for llm in served.shown:
                self._count(self.beta, kind, llm)

    def _count(self, counts: Floats, kind: int, llm: int) -> None:
        if self.alpha[kind, llm] + self.beta[kind, llm] + 1.0 <= MASS_LIMIT:
            counts[kind, llm] += 1.0


class Types:
    """Types of query by context: sequential k-means from the first different contexts.

    Parameters
    ----------
    dim : int
        Length of a context.
    """

    def __init__(self, dim: int) -> None:
        self._centres = np.zeros((NUM_TYPES, dim))
        self._counts = np.zeros(NUM_TYPES)
        self._used = 0

    def of(self, context: Contexts, new: bool) -> int:
        """Return the type of a query; a new one moves its centre."""
        kind, self._used = _type_of(self._centres, self._counts, self._used, context, new)
        return kind


@borrowing
def _type_of(
    centres: Floats, counts: Floats, used: int, context: Contexts, new: bool
) -> tuple[int, int]:
    """Return the nearest centre, the first of equals, and how many are used now.

    A context that differs from all centres so far becomes one of its own while there is room.
    """
    nearest, least = 0, np.inf
    for row in range(used):
        distance = 0.0
        for k in range(len(context)):
            distance += (centres[row, k] - context[k]) ** 2
        if distance < least:
            nearest, least = row, distance
    if used < len(centres) and least > 0.0:
        nearest, new, used = used, True, used + 1
    if new:
        counts[nearest] += 1.0
        for k in range(len(context)):
            centres[nearest, k] += (context[k] - centres[nearest, k]) / counts[nearest]
    return nearest, used


@agent("knn-guard", source="kNN: Li, arXiv 2505.12601; the guard: ours")
class KnnGuard(QueueAgent):
    """Nearest neighbours that depart from the best single LLM only where a bound says so.

    The head of the queue goes to the K LLMs of the largest share of kept answers, each tried first.
    An LLM comes before all those where it surely does better with such queries: the mean over its k
    answers to the most similar queries, less that of the best LLM, is positive with confidence
    1 - ``error`` (`guarded_gains`).

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task.
    seed : int
        Seed of the agent's own randomness.
    neighbours : int
        k.
    memory : int
        Answers remembered.
    error : float
        Probability that a departure is a mistake, at most.
    explore : float
        Probability of a random assortment, without which neighbours of other LLMs are rare.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        neighbours: int = 16,
        memory: int = 2048,
        error: float = 0.1,
        explore: float = 0.05,
    ) -> None:
        super().__init__(problem, seed)
        checks.count("neighbours", neighbours)
        checks.count("memory", memory)
        self.error = checks.number("error", error, "(0, 1)")
        self.explore = checks.number("explore", explore, "[0, 1]")
        self._near = Neighbours(problem.num_llms, problem.context_dim, neighbours, memory)
        self._kept = np.zeros(problem.num_llms)
        self._shown = np.zeros(problem.num_llms)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Serve the head with the LLMs that are best, or surely better here."""
        count = self.problem.assortment_size
        if self.rng.random() < self.explore:
            return Pairing(0, self.rng.permutation(self.problem.num_llms)[:count].tolist())
        if not self._shown.all():
            return Pairing(0, largest_shares(self._kept, self._shown, count))
        means = self._kept / self._shown
        near, counts = self._near.look_up(observation["contexts"][0])
        gains = guarded_gains(near, counts, int(means.argmax()), self.error)
        return Pairing(0, top_llms(np.where(gains > 0.0, 1.0 + gains, means), count))

    def learn(self, served: Served) -> None:
        """Remember the answer."""
        for llm in served.shown:
            kept = float(llm == served.kept)
            self._shown[llm] += 1.0
            self._kept[llm] += kept
            self._near.observe(served.context, llm, kept)
