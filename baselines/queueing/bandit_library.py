"""A base for bandit libraries as agents: two methods, whatever the library calls its own.

docs/guides/bandit-libraries.md puts MABWiser on it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.interface import Action, Agent, Observation, QueueProblem
from baselines.queueing.base import Answers, top_llms
from llmqueue_gym.errors import UsageError

Context = NDArray[np.float32]


class BanditLibraryAgent(Agent):
    """An agent that scores every waiting query with every LLM; a library does the scoring.

    For every slot:
      1. ask for the scores of the waiting queries, one row each;
      2. serve the query whose K largest scores have the largest sum (the head among equals), with
         the LLMs of those scores;
      3. tell what came of each LLM shown: 1 if its answer was kept, else 0.

    With K > 1 that feedback is censored: a user keeps one answer, so the 0 of an LLM shown beside a
    kept one says that it lost to that answer, not that it would have failed alone. Libraries that
    estimate P(kept | shown alone) are then too pessimistic of the second best. After a retrial all
    zeros are what they seem. ACQB and OFU-MNL+ model the choice among the K instead.
    """

    def __init__(self, problem: QueueProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self._answers = Answers(problem.feedback_delay)
        self._idle = np.array([0, *range(problem.assortment_size)], dtype=np.int64)

    @abstractmethod
    def scores(self, contexts: Context) -> ArrayLike:
        """Return a number for each query and LLM, larger is better.

        Parameters
        ----------
        contexts : ndarray of float32, shape (Q, d)
            Contexts of the waiting queries, Q >= 1, the head of the queue first.

        Returns
        -------
        array_like, shape (Q, N)
        """

    @abstractmethod
    def learn(self, context: Context, llm: int, reward: float) -> None:
        """Learn from one LLM shown for a query with this context (d,): 1.0 kept, 0.0 not."""

    def act(self, observation: Observation) -> Action:
        """Return ``[slot, llm_1, ..., llm_K]``, shape (1 + K,)."""
        waiting = int(np.count_nonzero(observation["waiting"]))
        if waiting == 0:
            return self._idle.copy()
        scores = np.asarray(self.scores(observation["contexts"][:waiting]), dtype=np.float64)
        expected = (waiting, self.problem.num_llms)
        if scores.shape != expected or not np.isfinite(scores).all():
            raise UsageError(
                f"scores() of {type(self).__name__} returned shape {scores.shape} with "
                f"{np.count_nonzero(~np.isfinite(scores))} numbers that are not finite; return "
                f"finite numbers of shape {expected}, (queries, LLMs)"
            )
        count = self.problem.assortment_size
        best = np.sort(scores, axis=1)[:, -count:].sum(axis=1)
        slot = int(best.argmax())
        return np.array([slot, *top_llms(scores[slot], count)], dtype=np.int64)

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Tell the library what came of the LLMs shown; nothing where nobody was served."""
        served = self._answers.read(observation, action, next_observation)
        if served is not None:
            for llm in served.shown:
                self.learn(served.context, llm, float(llm == served.kept))
