"""LLMServe-v0 against a second version of it: plain lists, written from the model's slot alone.

The second version shares no code with the core but the hash that a query's draws come from. It is
given the instance, the stream of arrivals and the key of that hash.
"""

import math

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.serving.dynamics import draws_of

HORIZON = 600
TOKENS, OUTCOME, PATIENCE, RETURN = range(4)
PHASES = ("empty", "loading", "serving", "draining")


def trials(draw, chance):
    """The first success, 1, 2, ..., of trials with this chance, by inverse CDF."""
    return 1 if chance >= 1 else 1 + math.floor(math.log1p(-draw) / math.log1p(-chance))


class Query:
    def __init__(self, row, born):
        self.row, self.born, self.retrials, self.joined, self.leaves = row, born, 0, born, math.inf


class Replica:
    def __init__(self, llm):
        self.llm, self.goal, self.left = llm, llm, 0
        self.phase = "empty" if llm < 0 else "serving"
        self.jobs = []  # [query, iterations given, iterations needed]

    def switch(self, loading):
        self.llm, self.left = self.goal, 0
        self.phase = "empty" if self.goal < 0 else "loading" if loading else "serving"
        self.left = loading if self.phase == "loading" else 0


class SecondVersion:
    """One queue in service order, the users who think, and the replicas."""

    def __init__(self, problem, arrivals, key, day):
        self.problem, self.arrivals, self.key, self.day = problem, arrivals, key[None], day
        self.slot, self.queue, self.away = 0, [], []  # away: [slot of return, -order, query]
        self.replicas = [Replica(int(llm)) for llm in problem.hosts]
        self.told = dict.fromkeys(("kept", "not_kept"), np.zeros(problem.num_llms)), 0, []
        self.order, self.gone = 0, 0

    def draw(self, born, attempt):
        return draws_of(self.key, 0, np.array([0, attempt, born] + [0] * 7, dtype=np.int32))

    def join(self, query):
        query.joined, query.leaves = self.slot, math.inf
        chance = self.problem.impatience[query.row]
        if chance > 0:
            draw = self.draw(query.born, query.retrials)[PATIENCE]
            query.leaves = self.slot + trials(draw, chance)
        self.queue.append(query)

    def step(self, action):
        """Run one slot; return the reward and the entries of ``info``."""
        problem, window = self.problem, self.problem.window
        count = dict.fromkeys(("dispatched", "illegal", "abandoned", "gave_up", "late"), 0)
        updating = problem.update_every > 0 and self.slot % problem.update_every == 0
        self.slot += 1
        # 1. Dispatches in their order, to the window as it was; then targets.
        shown, pairs = self.queue[:window], action[: 2 * problem.dispatches]
        for place, r in zip(pairs[::2], pairs[1::2], strict=True):
            if place < window:
                done = place < len(shown) and self.dispatch(shown[place], r)
                count["dispatched" if done else "illegal"] += 1
        if updating:
            for replica, target in zip(self.replicas, action[len(pairs) :], strict=True):
                count["illegal"] += not self.aim(replica, target)
        # 2. Work and answers; users who have thought come back.
        answers = []
        for r, replica in enumerate(self.replicas):
            self.work(r, replica, answers, count)
        for entry in sorted(entry for entry in self.away if entry[0] == self.slot):
            self.join(entry[2])
        self.away = [entry for entry in self.away if entry[0] != self.slot]
        # 3. Patience.
        count["abandoned"] = sum(query.leaves == self.slot for query in self.queue)
        self.queue = [query for query in self.queue if query.leaves != self.slot]
        # 4. Arrivals.
        arrived = bool(self.arrivals[self.slot - 1] < problem.arrival_rate)
        if arrived:
            draw = self.draw(self.slot, -1)[0]
            row = int(np.searchsorted(problem.share.cumsum(), draw, side="right"))
            self.join(Query(min(row, problem.num_queries - 1), self.slot))
        # 5. The reward.
        by_llm = np.zeros((2, problem.num_llms))
        for _, llm, kept in answers:
            by_llm[kept, llm] += 1
        self.told = {"kept": by_llm[1], "not_kept": by_llm[0]}, count["abandoned"], answers
        serving, weights = sum(len(replica.jobs) for replica in self.replicas), problem.rewards
        price = sum(
            usd
            for usd, replica in zip(problem.price, self.replicas, strict=True)
            if replica.phase != "empty"
        )
        kept, lost = int(by_llm[1].sum()), count["abandoned"] + count["gave_up"]
        self.gone += kept + lost
        reward = weights.kept * kept - weights.holding * (len(self.queue) + serving)
        reward -= weights.lost * lost + weights.late * count["late"] + weights.price * price
        info = {"kept": kept, "not_kept": int(by_llm[0].sum()), "in_service": serving}
        info |= {"queue_length": len(self.queue), "arrived": arrived}
        return reward, info | {name: count[name] for name in ("dispatched", "illegal", "abandoned")}

    def dispatch(self, query, r):
        problem, replica = self.problem, self.replicas[r]
        room = replica.phase == "serving" and len(replica.jobs) < problem.places[r]
        if not room or not any(other is query for other in self.queue):
            return False
        self.queue = [other for other in self.queue if other is not query]
        draw, mean = self.draw(query.born, query.retrials)[TOKENS], problem.mean_tokens[query.row]
        at = int(draw * len(problem.inputs))
        geometric = not len(problem.lengths)
        needed = -mean * math.log1p(-draw) if geometric else mean * problem.lengths[at]
        if problem.chunk[r]:
            needed += math.ceil(problem.inputs[at] / problem.chunk[r])
        replica.jobs.append([query, 0.0, needed])
        return True

    def aim(self, replica, target):
        """Give a replica a target; return whether that is legal."""
        arrives, now = self.problem.llm_arrives, self.slot - 1
        goal = -1 if target == len(arrives) else target
        if goal >= 0 and arrives[goal] > now and goal != replica.goal:
            return False
        replica.goal = goal
        if replica.phase in ("serving", "draining"):
            replica.phase = "serving" if goal == replica.llm else "draining"
        if goal != replica.llm and not replica.jobs:
            replica.switch(self.problem.loading)
        return True

    def work(self, r, replica, answers, count):
        problem = self.problem
        if replica.phase == "loading":
            replica.left -= 1
            replica.phase = "loading" if replica.left else "serving"
        elif replica.jobs:
            lasts = problem.base_seconds[r, replica.llm]
            lasts += problem.each_seconds[r, replica.llm] * len(replica.jobs)
            for job in replica.jobs:
                job[1] += problem.slot_seconds / lasts if lasts else math.inf
            done = [job[1] >= job[2] * (1 - 1e-12) for job in replica.jobs]
            for job, over in zip(replica.jobs, done, strict=True):
                if over:
                    answers.append(self.answer(job[0], replica.llm, count))
            replica.jobs = [job for job, over in zip(replica.jobs, done, strict=True) if not over]
            if replica.phase == "draining" and not replica.jobs:
                replica.switch(problem.loading)

    def answer(self, query, llm, count):
        problem, draws = self.problem, self.draw(query.born, query.retrials)
        late = query.retrials == 0 and self.slot - query.born > problem.rewards.sla
        count["late"] += late
        if draws[OUTCOME] < problem.success[query.row, llm]:
            return query.born, llm, 1
        if draws[RETURN] < problem.give_up:
            count["gave_up"] += 1
            return query.born, llm, 0
        query.retrials += 1
        left = (draws[RETURN] - problem.give_up) / (1 - problem.give_up)
        thinks = trials(left, problem.return_rate)
        if thinks == 1:
            self.join(query)
        else:  # of those who come back in one slot the last to leave is first
            self.order += 1
            self.away.append([self.slot + thinks - 1, -self.order, query])
        return query.born, llm, 0

    def observation(self):
        """What a provider sees."""
        problem, now, every = self.problem, self.slot, self.problem.update_every
        replicas, (by_llm, lost, _) = self.replicas, self.told
        shown = self.queue[: problem.window]
        gap = [0] * (problem.window - len(shown))
        zero = np.zeros(problem.contexts.shape[1], dtype=np.float32)
        there, places = problem.llm_arrives <= now, max(problem.places)
        angle = 2 * math.pi * ((now + 1) % self.day) / self.day if self.day else 0
        jobs = [[job[0].row for job in replica.jobs] for replica in replicas]
        return by_llm | {
            "active": [len(rows) for rows in jobs],
            "age": [now - query.born for query in shown] + gap,
            "wait": [now - query.joined for query in shown] + gap,
            "retrials": [query.retrials for query in shown] + gap,
            "waiting": [1] * len(shown) + gap,
            "contexts": [problem.contexts[query.row] for query in shown] + [zero for _ in gap],
            "arrived": there,
            "list_price": np.where(there, problem.list_price, 0),
            "list_speed": np.where(there, problem.list_speed, 0),
            "day": [math.sin(angle), math.cos(angle)] if self.day else [0, 0],
            "hosts": [[llm == r.llm for llm in range(problem.num_llms)] for r in replicas],
            "phase": [[name == replica.phase for name in PHASES] for replica in replicas],
            "loading_left": [replica.left for replica in replicas],
            "iterations": [
                [job[1] for job in r.jobs] + [0] * (places - len(r.jobs)) for r in replicas
            ],
            "serving": [problem.contexts[rows].mean(axis=0) if rows else zero for rows in jobs],
            "lost": [lost],
            "queue_length": [len(self.queue)],
            "until_update": [(-now % every) / every if every else 1],
        }

    def mask(self):
        """Which choices are legal."""
        problem, legal = self.problem, []
        free = [
            replica.phase == "serving" and len(replica.jobs) < places
            for replica, places in zip(self.replicas, problem.places, strict=True)
        ]
        for _ in range(problem.dispatches):
            legal += [any(free) and i < len(self.queue) for i in range(problem.window)] + [True]
            legal += free if any(free) else [True] + [False] * (len(free) - 1)
        updating = problem.update_every > 0 and self.slot % problem.update_every == 0
        for replica in self.replicas:
            there = [*(problem.llm_arrives <= self.slot).tolist(), True]
            own = replica.goal if replica.goal >= 0 else problem.num_llms
            legal += [(updating and there[llm]) or llm == own for llm in range(len(there))]
        return legal


LEAVING = {"impatience": 0.05, "give_up": 0.2, "window": 6}
ALL_REWARDS = {"kept": 1, "holding": 0.1, "lost": 2, "late": 3, "sla": 4, "price": 7}
GEOMETRIC = {"law": "geometric", "mean": 200, "input": 3000}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"preset": "tiny-pair", "arrival_rate": 0.9, "return_rate": 0.2, **LEAVING, "window": 3},
        {"preset": "slow-server", "arrival_rate": 0.3},
        {"preset": "impatient", "arrival_rate": 0.3},
        {"preset": "autoscale", "update_every": 9, "loading": 4, "rewards": ALL_REWARDS, **LEAVING},
        {"preset": "autoscale", "update_every": 3, "loading": 0, "return_rate": 0.01},
        {"preset": "streaming", "update_every": 60, "dispatches": 4},
        {"tokens": GEOMETRIC, "dispatches": 8, "window": 8, "disguise": 1},
        {"give_up": 1.0, "impatience": 0.3},
    ],
)
def test_both_versions_agree_in_every_slot(kwargs):
    """Under random actions, legal ones and others."""
    seed = 3
    env = gym.make("LLMServe-v0", disable_env_checker=True, **kwargs)
    seen, info = env.reset(seed=seed)
    task, problem = env.unwrapped.task, env.unwrapped.dynamics.instances[0]
    arrivals, (_, stream, key) = np.empty(HORIZON), np.random.default_rng(seed).spawn(3)
    task.arrivals.stream(problem.arrival_rate, stream).random(out=arrivals)
    day = getattr(task.arrivals, "day", 0)
    second = SecondVersion(problem, arrivals, key.integers(2**32, size=2), day)
    rng, came, served = np.random.default_rng(1), 0, 0
    env.action_space.seed(seed)
    splits = np.cumsum(env.action_space.nvec)[:-1]
    for t in range(HORIZON):
        expected = second.observation()
        assert expected.keys() == seen.keys()
        for key, value in expected.items():
            rounded = 1e-6 if key in ("day", "iterations", "serving") else 0
            message = f"{key} before slot {t + 1}"
            np.testing.assert_allclose(
                seen[key], np.asarray(value, np.float32), rounded, rounded, err_msg=message
            )
        np.testing.assert_array_equal(info["action_mask"], second.mask())
        mask = tuple(np.split(info["action_mask"], splits)) if rng.random() < 0.7 else None
        action = env.action_space.sample(mask=mask)
        if rng.random() < 0.5:  # hold nothing back
            first = np.arange(problem.dispatches) % problem.window
            action[: 2 * problem.dispatches : 2] = first
        seen, reward, _, _, info = env.step(action)
        expected_reward, told = second.step(action.tolist())
        assert reward == pytest.approx(expected_reward)
        assert {name: info[name].item() for name in told} == told
        assert [tuple(row) for row in info["answers"].tolist() if row[0] >= 0] == second.told[2]
        came, served = came + told["arrived"], served + told["dispatched"]
        here = told["queue_length"] + told["in_service"] + len(second.away)
        assert came == second.gone + here
    assert served > 40
