"""ACQB carried over: the best optimistic pair of query and LLM, at the least loaded replica.

Bae, Son, Lee, arXiv 2602.02061; see `baselines.queueing.acqb`. It takes service to be one slot.
"""

from __future__ import annotations

import math

import numpy as np

from baselines.estimators import ConfidenceFactors
from baselines.interface import ServeProblem
from baselines.queueing.acqb import (
    SOURCE,
    check_acqb_settings,
    confidence_radius,
    exploration_constant,
)
from baselines.registry import agent
from baselines.serving.base import Pairs, Seen, ServeAgent
from baselines.serving.estimates import Array


@agent("ACQB-least-loaded", source=f"{SOURCE}; replica: least loaded")
class ACQBLeastLoaded(ServeAgent):
    """ACQB with K = 1 over the LLMs that have room, replica by replica.

    With probability eta_t = min(1, c1 / sqrt(t + 1)) the newest query goes to a random LLM with
    room; else the pair with the largest u~ = x . theta-hat + alpha_t |x|_{V^{-1}} g. Of the
    replicas that host it, the one with the most iterations a slot for one query more.

    Parameters
    ----------
    problem, seed
        As `ServeAgent`.
    alpha_coef, exploration_rate : float
        As `baselines.queueing.acqb.ACQB`.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        alpha_coef: float = 0.03,
        exploration_rate: float = 0.01,
    ) -> None:
        super().__init__(problem, seed, explore=0.0)
        check_acqb_settings("mle", alpha_coef, exploration_rate, None, 1.0)
        self.alpha_coef = alpha_coef
        self.c1 = exploration_constant(exploration_rate, problem.arrival_rate, problem.horizon)
        self.confidence = ConfidenceFactors(problem.num_llms, problem.context_dim)

    def dispatch(self, seen: Seen) -> Pairs:
        """Choose pair after pair."""
        t, dim, pairs = self.slot + 1, self.problem.context_dim, []
        alpha = self.alpha_coef * confidence_radius(t, dim, 1)
        mean = np.log(np.clip(self.success.mean(seen.contexts), 1e-9, 1 - 1e-9))
        mean -= np.log1p(-np.exp(mean))
        utilities = mean + alpha * self.confidence.noise(seen.contexts, self.rng, 1)
        room, load = seen.room.copy(), seen.active.copy()
        left = list(range(len(seen.contexts)))
        for _ in range(min(self.problem.dispatches, len(left))):
            open_llms = np.unique(seen.hosts[room > 0])
            if not open_llms.size:
                break
            if self.rng.random() < min(1.0, self.c1 / math.sqrt(t + 1.0)):
                slot, llm = left[-1], int(self.rng.choice(open_llms))
            else:
                row, column = divmod(int(utilities[left][:, open_llms].argmax()), len(open_llms))
                slot, llm = left[row], int(open_llms[column])
            at = np.arange(len(room)), np.full(len(room), llm), np.minimum(load + 1, self.places)
            speed = np.where((seen.hosts == llm) & (room > 0), self.service.speed[at], -1.0)
            replica = int(speed.argmax())
            pairs.append((slot, replica))
            left.remove(slot)
            room[replica] -= 1
            load[replica] += 1
        return pairs

    def learn(self, context: Array, llm: int, kept: bool) -> None:
        """Learn from one answer, and shrink the LLM's ellipsoid."""
        super().learn(context, llm, kept)
        self.confidence.update(llm, context)
