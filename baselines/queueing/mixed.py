"""Agents that remember what a waiting query refused: ours, the mixed logit on top of others.

See `baselines.estimators.refusals` for the model.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from baselines.estimators.refusals import Refusals
from baselines.interface import Observation
from baselines.queueing.acqb import ACQB
from baselines.queueing.base import Contexts, QueueAgent, Served
from baselines.queueing.mle import CQBOpt
from baselines.queueing.offline import OfflineRouter
from baselines.registry import agent


class Remembering(QueueAgent):
    """Adds what refusals tell of a query to the utilities that another agent estimates.

    Put it before the agent's class. As long as the answers do not tell that anything persists
    beyond contexts, the decisions are the agent's own, bit for bit.
    """

    @cached_property
    def memory(self) -> Refusals:
        """What the queries that wait have refused."""
        return Refusals(self.problem.num_llms)

    def estimates(self, observation: Observation, waiting: int) -> Contexts:
        """Estimated utilities of the waiting queries (Q, N), their refusals considered."""
        utilities = super().estimates(observation, waiting)
        ages = observation["age"][:waiting].astype(np.int64)
        self.memory.add_to(utilities, self.slot_number - ages)
        return utilities

    def learn(self, served: Served) -> None:
        """Learn as the agent does, and remember a refusal."""
        arrival, query = self.judged_slot - served.age, served.context[None]
        self.memory.judge(arrival, self.utilities(query)[0], served.shown, served.kept)
        super().learn(served)
        self.memory.note(arrival, self.utilities(query)[0], served.shown, served.kept)


@agent("ACQB-mixed", source="ours")
class MixedACQB(Remembering, ACQB):
    """ACQB with the memory of refusals; settings are those of `ACQB`."""


@agent("CQB-Opt-mixed", source="ours")
class MixedCQBOpt(Remembering, CQBOpt):
    """CQB-Opt with the memory of refusals; settings are those of `CQBOpt`."""


@agent("offline-ridge-mixed", source="ours", predictor="ridge", heed_retrials=False)
class MixedOfflineRouter(Remembering, OfflineRouter):
    """An offline-trained router with this memory in place of its own; settings as there."""
