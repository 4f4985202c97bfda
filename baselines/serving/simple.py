"""Rules that look at no estimate, or at p alone: what knowing more is measured against."""

from __future__ import annotations

import numpy as np

from baselines.registry import agent
from baselines.serving.base import Pairs, Ranked, Seen, ServeAgent
from baselines.serving.estimates import Floats


@agent("random-dispatch", source="lower bound of every table")
class RandomDispatch(ServeAgent):
    """Random waiting queries go to random replicas with room."""

    def dispatch(self, seen: Seen) -> Pairs:
        """Draw queries and places."""
        places = np.repeat(np.arange(len(seen.room)), seen.room)
        queries = self.rng.permutation(len(seen.contexts))[: self.problem.dispatches]
        chosen = self.rng.permutation(places)[: len(queries)]
        return list(zip(queries.tolist(), chosen.tolist(), strict=False))


@agent("join-shortest-queue", source="Winston 1977")
class JoinShortestQueue(ServeAgent):
    """The head of the queue goes to the replica that serves the fewest queries."""

    def dispatch(self, seen: Seen) -> Pairs:
        """Fill up replica by replica; ties at random."""
        active, room, pairs = seen.active.astype(float), seen.room.copy(), []
        for slot in range(min(len(seen.contexts), self.problem.dispatches)):
            if not room.any():
                break
            burden = np.where(room > 0, self.burden(active), np.inf)
            replica = int(self.rng.choice(np.flatnonzero(burden == burden.min())))
            pairs.append((slot, replica))
            active[replica] += 1
            room[replica] -= 1
        return pairs

    def burden(self, active: Floats) -> Floats:
        """Return what makes a replica unattractive, shape (R,)."""
        return active


@agent("least-loaded", source="heuristic")
class LeastLoaded(JoinShortestQueue):
    """The head of the queue goes where an answer is soonest: most iterations a query and slot."""

    def burden(self, active: Floats) -> Floats:
        """Return the slots of an iteration with one query more."""
        more = np.minimum(active.astype(np.int64) + 1, self.places)
        hosts = np.maximum(self._hosts_now, 0)
        return np.asarray(1.0 / self.service.speed[np.arange(len(more)), hosts, more])

    def dispatch(self, seen: Seen) -> Pairs:
        """Fill up replica by replica; ties at random."""
        self._hosts_now = seen.hosts
        return super().dispatch(seen)


@agent("known-success-first", source="heuristic with the true p", known=True)
@agent("success-first", source="heuristic")
class SuccessFirst(Ranked):
    """Largest success probability first, however long it takes."""

    def scores(self, seen: Seen) -> Floats:
        """Return p."""
        return self.success_at(seen)
