"""Agents that remember how a query was answered before: ours, the mixed logit on top of others.

See `baselines.estimators.query_effects` for the model.
"""

from __future__ import annotations

from functools import cached_property

from baselines.estimators.query_effects import QueryEffects
from baselines.interface import Observation
from baselines.queueing.acqb import ACQB
from baselines.queueing.base import Contexts, QueueAgent, Served
from baselines.queueing.mle import CQBOpt
from baselines.queueing.offline import OfflineRouter
from baselines.registry import agent


class Remembering(QueueAgent):
    """Adds what earlier answers tell of a query to the utilities that another agent estimates.

    Put it before the agent's class. As long as the answers do not tell that anything persists
    beyond contexts, the decisions are the agent's own, bit for bit.
    """

    @cached_property
    def memory(self) -> QueryEffects:
        """What the answers to each query told beyond its context."""
        return QueryEffects(self.problem.num_llms)

    def estimates(self, observation: Observation, waiting: int) -> Contexts:
        """Estimated utilities of the waiting queries (Q, N), earlier answers considered."""
        utilities = super().estimates(observation, waiting)
        self.memory.add_to(utilities, observation["contexts"][:waiting])
        return utilities

    def learn(self, served: Served) -> None:
        """Learn as the agent does, and remember the answer."""
        context, answer = served.context, (served.shown, served.kept)
        arrival = self.judged_slot - served.age
        self.memory.judge(context, arrival, self.utilities(context[None])[0], *answer)
        super().learn(served)
        self.memory.note(context, arrival, self.utilities(context[None])[0], *answer)


@agent("ACQB-mixed", source="ours")
class MixedACQB(Remembering, ACQB):
    """ACQB with the memory of answers; settings are those of `ACQB`."""


@agent("CQB-Opt-mixed", source="ours")
class MixedCQBOpt(Remembering, CQBOpt):
    """CQB-Opt with the memory of answers; settings are those of `CQBOpt`."""


@agent("offline-ridge-mixed", source="ours", predictor="ridge", heed_retrials=False)
class MixedOfflineRouter(Remembering, OfflineRouter):
    """An offline-trained router with this memory in place of its own; settings as there."""
