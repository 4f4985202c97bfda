"""Rollout: look one decision further than an index rule, by simulating it on the estimates.

Bertsekas, Castanon, "Rollout algorithms for stochastic scheduling problems", Journal of Heuristics
1999; one dispatch at a time, as in Bertsekas, "Multiagent rollout", 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from baselines.interface import Action, Observation, ServeProblem
from baselines.registry import agent
from baselines.serving.base import Pairs, Seen
from baselines.serving.estimates import LEAST_IMPATIENCE, Array, Floats, Ints
from baselines.serving.index import Threshold
from llmqueue_gym import checks
from llmqueue_gym.compiled import compiled

DRAWS = 65_537

AWAY = 400
"""Slots after which a user who does not come back is taken to have given up."""

FREE, SHUT = -1, -2
"""A place of a replica that serves nobody, and one that takes nobody."""

SOURCE = "Bertsekas, Castanon 1999; Bertsekas 2021"


@agent("known-rollout", source=f"{SOURCE}; true p", known=True)
@agent("rollout", source=f"{SOURCE}, on estimates", explore=0.0)
class Rollout(Threshold):
    """One-step look-ahead by simulation over the threshold rule.

    Each dispatch is the best of: hold back, or for a replica with room the query with the largest
    score there. The best is the one with the least cost over the next slots, if the rule follows,
    on average over scenarios that are the same for all options. In them answers end at the
    estimated rate, users keep them with the estimated probability, and whoever comes is one of the
    last who came.

    Parameters
    ----------
    problem, seed, known, explore
        As `ServeAgent`.
    scenarios, slots : int
        Simulations of an option, and how far each goes.
    surely : float
        Standard errors of the gain by which an option must be better than the rule's own choice.
    """

    def __init__(
        self,
        problem: ServeProblem,
        seed: int,
        known: bool = False,
        explore: float = 0.5,
        scenarios: int = 12,
        slots: int = 60,
        surely: float = 3.0,
    ) -> None:
        super().__init__(problem, seed, known, explore)
        checks.count("scenarios", scenarios)
        checks.count("slots", slots)
        self.depth = scenarios, slots, checks.number("surely", surely, "[0, inf)")
        self._away: dict[int, tuple[Array, int]] = {}  # number -> context, slot of the answer
        self._returned, self._thought = 1.0, 1.0  # users, and slots from answer to return
        self._draws = self.rng.random(DRAWS)

    def dispatch(self, seen: Seen) -> Pairs:
        """Decide dispatch by dispatch."""
        model, waiting, served, away = self._model(seen)
        left, pairs = self.problem.dispatches, []
        offset = int(self.rng.integers(DRAWS))
        while left and len(waiting):
            option = look_ahead(
                waiting, served, away, left, model, self._draws, offset, *self.depth
            )
            if option < 0:
                break
            place, replica = divmod(int(option), len(served))
            pairs.append((int(waiting[place, 1]), replica))
            served[replica, active_of(served[replica])] = waiting[place]
            waiting = np.delete(waiting, place, axis=0)
            left -= 1
        return pairs

    def _model(self, seen: Seen) -> tuple[Model, Ints, Ints, Ints]:
        """Return what is estimated, and who waits, is served, and is away: (row, identity) each."""
        replicas, queries = len(seen.hosts), len(seen.contexts)
        contexts = [*seen.contexts]
        served = np.full((replicas, int(self.places.max()), 2), SHUT)
        for r in range(replicas):
            served[r, : seen.active[r] + seen.room[r]] = FREE
        filled = [0] * replicas
        for context, r in self._sent.values():
            served[r, filled[r]] = len(contexts)
            filled[r] += 1
            contexts.append(context)
        for context, _ in self._away.values():
            contexts.append(context)
        away = np.arange(len(contexts) - len(self._away), len(contexts))
        first = len(contexts)
        every = np.array([*contexts, *self.recent])
        success = np.ascontiguousarray(self.success.sample(every)[:, seen.hosts])
        speed = self.service.speed[np.arange(replicas), seen.hosts]
        rates = -np.expm1(-speed / self.service.mean_length)
        rates[seen.hosts < 0] = 0.0
        level = self.levels(every, success * rates[:, 1])
        kinds = self.kinds_of(every, success * rates[:, 1])
        rewards = self.problem.rewards
        chances = self.problem.arrival_rate, self._returned / self._thought
        weights = rewards["holding"], rewards["kept"]
        numbers = np.array([*chances, *weights, self.problem.dispatches, first, rewards["lost"]])
        saves = self.worth(every, seen.queue)
        theta = self.kinds.impatience()[self.kinds.of(every)]
        if not self.known:
            theta[theta <= LEAST_IMPATIENCE] = 0.0
        model = success, rates, level, kinds, numbers, saves, theta
        waiting = np.arange(queries)
        return model, np.column_stack([waiting, waiting]), served, np.column_stack([away, away])

    def read(self, observation: Observation) -> Seen:
        """Note who comes back."""
        seen = super().read(observation)
        for number in seen.numbers.tolist():
            if number in self._away:
                _, since = self._away.pop(number)
                self._returned += 1.0
                self._thought += 1.0 + self.slot - since
        return seen

    def update(
        self,
        observation: Observation,
        action: Action,
        reward: float,
        next_observation: Observation,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from the slot's answers, and note who will think."""
        for number, _, kept in info["answers"].tolist():
            if number >= 0 and not kept:
                self._away[number] = self._sent[number][0], self.slot + 1
        super().update(observation, action, reward, next_observation, info)
        if self._away:
            first, (_, since) = next(iter(self._away.items()))
            if self.slot - since > AWAY:
                del self._away[first]  # gave up, it seems


# --- the simulation -------------------------------------------------------------------------------

# A model is (success, rates, level, kinds, numbers, saves, theta): P(an answer is kept) (rows, R);
# P(an answer ends in a slot) while n queries are active (R, C + 2); how many of its kind must wait
# beside a query, 0 at its best replica (rows, R); kinds (rows,); arrival rate, return rate, cost of
# holding, worth of a kept answer, dispatches a slot, first row of those who may come, and cost of a
# lost user; what it saves to serve a query now, and P(it leaves in a slot if it waits) (rows,).
# A query is (row, identity).
Model = tuple[Floats, Floats, Floats, Ints, Floats, Floats, Floats]


@compiled
def look_ahead(
    waiting: Ints,
    served: Ints,
    away: Ints,
    left: int,
    model: Model,
    draws: Floats,
    offset: int,
    scenarios: int,
    slots: int,
    surely: float,
) -> int:
    """Return place R + replica of the best next dispatch, -1 to hold back for the slot.

    Parameters
    ----------
    waiting, away : ndarray of int, shape (Q, 2), (Z, 2)
        Who waits and who thinks.
    served : ndarray of int, shape (R, C, 2)
        Who is served; rows of `FREE` or `SHUT` where nobody is.
    left : int
        Dispatches left in the slot.
    model : Model
    draws : ndarray
        Uniform draws; ``offset`` says where those of the slot begin.
    scenarios, slots : int
    surely : float
        Standard errors by which an option must be better than the rule's own.
    """
    replicas, places = served.shape[:2]
    size = len(waiting) + len(away) + replicas * places + slots
    queue, busy, out = np.empty((size, 2), np.int64), served.copy(), np.empty((size, 2), np.int64)
    weight = np.zeros(model[3].max() + 1)
    usual_place, usual = pick(waiting, len(waiting), served, model, weight, -1)
    best, most, costs, gains = -1, 0.0, np.zeros(scenarios), np.zeros(scenarios)
    for option in range(-2, replicas):  # the rule's own choice first, then to hold
        place, replica = usual_place, usual
        if option == -1:
            place, replica = -1, -1
        elif option >= 0:
            place, replica = pick(waiting, len(waiting), served, model, weight, option)
        if option >= -1 and (
            (option >= 0 and place < 0) or (place, replica) == (usual_place, usual)
        ):
            continue
        for scenario in range(scenarios):
            queue[: len(waiting)], busy[:], out[: len(away)] = waiting, served, away
            count, allowed = len(waiting), 0
            if place >= 0:
                busy[replica, active_of(served[replica])] = waiting[place]
                queue[place : count - 1] = waiting[place + 1 :]
                count, allowed = count - 1, left - 1
            begin = offset + 7919 * scenario
            cost = simulate(
                queue, count, busy, out, len(away), allowed, model, weight, draws, begin, slots
            )
            if option == -2:
                costs[scenario] = cost
            gains[scenario] = costs[scenario] - cost
        chosen = place * replicas + replica if place >= 0 else -1
        if option == -2:
            best = chosen
            continue
        gain = gains.mean() - surely * gains.std() / np.sqrt(scenarios)
        if gain > most:
            best, most = chosen, gain
    return best


@compiled
def pick(
    queue: Ints, count: int, busy: Ints, model: Model, weight: Floats, only: int
) -> tuple[int, int]:
    """Return the place and replica that the threshold rule takes next, -1 if none.

    With ``only``, the best query for that replica, however few wait.
    """
    success, rates, level, kinds, _, saves, _ = model
    weight[:] = 0.0
    for i in range(count):
        weight[kinds[queue[i, 0]]] += 1.0
    best_place, best_replica, most = -1, -1, 0.0
    for r in range(len(busy)):
        if (only >= 0 and r != only) or not has_room(busy[r]):
            continue
        rate = rates[r, active_of(busy[r]) + 1]
        for i in range(count):
            row = queue[i, 0]
            score = success[row, r] * rate * saves[row]
            if level[row, r] == 0.0:
                score += 1.0
            elif only < 0:
                left = weight[kinds[row]]
                for other in range(len(busy)):
                    if level[row, other] == 0.0 and has_room(busy[other]):
                        left -= 1.0
                        break
                if left < level[row, r]:
                    continue
            if score > most:
                best_place, best_replica, most = i, r, score
    return best_place, best_replica


@compiled
def has_room(places: Ints) -> bool:
    """Whether a replica takes a query more."""
    for c in range(len(places)):  # noqa: SIM110 - a loop is what compiles
        if places[c, 0] == FREE:
            return True
    return False


@compiled
def active_of(places: Ints) -> int:
    """Count who is served: they are the first."""
    active = 0
    while active < len(places) and places[active, 0] >= 0:
        active += 1
    return active


@compiled
def simulate(
    queue: Ints,
    count: int,
    busy: Ints,
    out: Ints,
    thinking: int,
    allowed: int,
    model: Model,
    weight: Floats,
    draws: Floats,
    offset: int,
    slots: int,
) -> float:
    """Return the cost of some slots in which the rule dispatches, ``allowed`` in the first."""
    success, rates, _, _, numbers, _, theta = model
    arrival_rate, return_rate, holding, worth = numbers[0], numbers[1], numbers[2], numbers[3]
    dispatches, first, loss = int(numbers[4]), int(numbers[5]), numbers[6]
    impatient = theta.max() > 0.0
    cost = 0.0
    for slot in range(slots):
        for _ in range(allowed):
            place, r = pick(queue, count, busy, model, weight, -1)
            if place < 0:
                break
            busy[r, active_of(busy[r])] = queue[place]
            queue[place : count - 1] = queue[place + 1 : count]
            count -= 1
        allowed = dispatches
        if impatient:
            left = 0
            for i in range(count):
                if draw(draws, offset, queue[i, 1], slot, 5) < theta[queue[i, 0]]:
                    cost += loss
                else:
                    queue[left] = queue[i]
                    left += 1
            count = left
        in_service, back = 0, thinking
        for r in range(len(busy)):
            active, stay = active_of(busy[r]), 0
            for c in range(active):
                row, who = busy[r, c, 0], busy[r, c, 1]
                here = r * busy.shape[1] + c  # coupled by place: so options differ in little else
                if draw(draws, offset, here, slot, 0) >= rates[r, active]:
                    busy[r, stay, 0], busy[r, stay, 1] = row, who
                    stay += 1
                elif draw(draws, offset, here, slot, 1) < success[row, r]:
                    cost -= worth
                elif return_rate >= 1.0:
                    queue[count, 0], queue[count, 1] = row, who
                    count += 1
                else:
                    out[thinking, 0], out[thinking, 1] = row, who
                    thinking += 1
            busy[r, stay:active, 0] = FREE
            in_service += stay
        stay = 0
        for i in range(thinking):
            if i < back and draw(draws, offset, out[i, 1], slot, 2) < return_rate:
                queue[count] = out[i]
                count += 1
            else:
                out[stay] = out[i]
                stay += 1
        thinking = stay
        new = first + slot
        if first < len(success) and draw(draws, offset, new, 0, 3) < arrival_rate:
            which = int(draw(draws, offset, new, 0, 4) * (len(success) - first))
            queue[count, 0], queue[count, 1] = first + which, new
            count += 1
        cost += holding * (count + in_service)
    return cost


@compiled
def draw(draws: Floats, offset: int, who: int, slot: int, purpose: int) -> float:
    """Return the draw of a place or a query in a slot: the same whatever was decided."""
    place = (offset + 104729 * who + 1299709 * slot + 15485863 * purpose) % len(draws)
    return float(draws[place])
