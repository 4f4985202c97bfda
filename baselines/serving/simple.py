"""Rules that look at no estimate, or at p alone: what knowing more is measured against."""

from __future__ import annotations

import numpy as np

from baselines.registry import agent
from baselines.serving.base import Pairs, Ranked, Seen, ServeAgent
from baselines.serving.estimates import Floats, Ints


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
        active, room = seen.active.copy(), seen.room.copy()
        pairs: list[tuple[int, int]] = []
        for slot in range(min(len(seen.contexts), self.problem.dispatches)):
            if not room.any():
                break
            burden = np.where(room > 0, self.burden(seen.hosts, active), np.inf)
            replica = int(self.rng.choice(np.flatnonzero(burden == burden.min())))
            pairs.append((slot, replica))
            active[replica] += 1
            room[replica] -= 1
        return pairs

    def burden(self, hosts: Ints, active: Ints) -> Floats:
        """Return what makes a replica unattractive, shape (R,)."""
        return active.astype(np.float64)


@agent("least-loaded", source="heuristic")
class LeastLoaded(JoinShortestQueue):
    """The head of the queue goes where an answer is soonest: most iterations a query and slot."""

    def burden(self, hosts: Ints, active: Ints) -> Floats:
        """Return the slots of an iteration with one query more."""
        more = np.minimum(active + 1, self.places)
        return np.asarray(1.0 / self.service.speed[np.arange(len(more)), hosts, more])


@agent("known-success-first", source="heuristic with the true p", known=True)
@agent("success-first", source="heuristic")
class SuccessFirst(Ranked):
    """Largest success probability first, however long it takes."""

    def scores(self, seen: Seen) -> Floats:
        """Return p."""
        return self.success_at(seen)
