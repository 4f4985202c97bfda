"""The laws of LLMServe-v0: closed forms, limits, conservation, coupled users, windows."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from llmqueue_gym.queueing.env import LLMQueueVectorEnv
from llmqueue_gym.serving import dynamics as core
from llmqueue_gym.serving.dynamics import draws_of
from llmqueue_gym.serving.env import LLMServeVectorEnv
from llmqueue_gym.serving.lanes import ServingDynamics
from llmqueue_gym.serving.presets import PRESETS
from llmqueue_gym.serving.task import ServingTask

LANES = 128


def fleet_of(task, lanes=LANES, seed=0, **changes):
    """Dynamics of a task's only instance, with changes that no setting allows."""
    instance = dataclasses.replace(task.public, **changes)
    dynamics = ServingDynamics(lanes, instance)
    generators = np.random.default_rng(seed).spawn(lanes)
    dynamics.reset(
        range(lanes), [instance] * lanes, [g.spawn(1)[0] for g in generators], generators
    )
    return dynamics


def run(dynamics, policy, slots, warm):
    """Play; return the mean of (waiting after the dispatches, in service, thinking) a lane."""
    total = np.zeros((3, dynamics.num_lanes))
    for slot in range(warm + slots):
        if slot == warm:
            dynamics.totals[:] = 0
        outcome = dynamics.step(policy(dynamics))
        if slot >= warm:
            # Who arrived in this slot could not be dispatched yet.
            total[0] += dynamics.queue_length - outcome.counts[:, core.ARRIVALS]
            total[1] += dynamics.in_service
            total[2] += dynamics.thinking
    return total / slots


def constant(*action):
    return lambda dynamics: np.tile(action, (dynamics.num_lanes, 1))


def agrees(values, expected, slack=0.02):
    """Whether a mean over lanes is what a closed form says, up to what a slot's length costs."""
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4.0 * error + slack * expected, (values.mean(), error)
    assert error < 0.05 * expected  # else the test says nothing


# ------------------------------------------------------------------ closed forms


def test_blocked_calls_in_an_orbit():
    """M/M/1 whose blocked users think: E[orbit] = rho^2 / (1 - rho) + lambda rho / (nu (1 - rho)).

    A second replica gives the busy tone: an answer that nobody keeps.
    """
    slot = 0.04
    task = ServingTask(
        None,
        llms=["answer", "busy"],
        queries=[{"keep": [1.0, 0.0]}],
        replicas=[
            {"hosts": "answer", "base_seconds": 1.0},
            {"hosts": "busy", "finish": 1.0, "places": 4},
        ],
        arrival_rate=0.5 * slot,
        return_rate=0.5 * slot,
        slot_seconds=slot,
        dispatches=4,
        window=4,
    )

    def policy(dynamics):
        free = dynamics.state.replicas[:, 0, core.ACTIVE] == 0
        action = np.tile([0, 1, 1, 1, 2, 1, 3, 1, 0, 0], (dynamics.num_lanes, 1))
        action[:, 1] = np.where(free, 0, 1)
        return action

    waiting, _, thinking = run(fleet_of(task, 256), policy, 4000, 1200)
    agrees(waiting + thinking, 0.5**2 / 0.5 + 0.5 * 0.5 / (0.5 * 0.5), slack=0.03)


@pytest.mark.parametrize("exponential", [True, False])
def test_a_server_that_is_set_up_after_every_idle_time(exponential):
    """M/M/1 with set-up D: E[n] = rho / (1 - rho) + l (2 E D + l E D^2) / 2 (1 + l E D) at rate l.

    For an exponential D of rate alpha that is rho / (1 - rho) + lambda / alpha.
    """
    slot, rate, mean = 0.04, 0.5, 5.0
    task = ServingTask(
        None,
        replicas=[{"hosts": "llm", "base_seconds": 1.0}],
        arrival_rate=rate * slot,
        slot_seconds=slot,
        update_every=1,
        loading=0,
        window=1,
    )
    rng = np.random.default_rng(1)

    def policy(dynamics):
        busy = dynamics.queue_length + dynamics.in_service > 0
        off = dynamics.state.replicas[:, 0, core.PHASE] == core.EMPTY
        wait = rng.random(LANES) >= slot / mean if exponential else np.zeros(LANES, dtype=bool)
        target = np.where(busy & ~(off & wait), 0, 1)
        return np.column_stack([np.zeros((LANES, 2)), target])

    dynamics = fleet_of(task, loading=0 if exponential else round(mean / slot))
    waiting, served, _ = run(dynamics, policy, 5000, 1000)
    square = 2.0 * mean**2 if exponential else mean**2
    extra = rate * (2.0 * mean + rate * square) / (2.0 * (1.0 + rate * mean))
    agrees(waiting + served, rate / (1.0 - rate) + extra)


def test_erlang_a():
    """M/M/c+M: P(abandon) = theta E[queue] / lambda, c = 10, mu = 1, theta = .5, lambda = 9."""
    slot = 0.03
    task = ServingTask(
        None,
        replicas=[{"hosts": "llm", "base_seconds": 1.0, "places": 10}],
        arrival_rate=9.0 * slot,
        impatience=0.5 * slot,
        slot_seconds=slot,
        dispatches=2,
        window=2,
    )
    dynamics = fleet_of(task)
    waiting, served, _ = run(dynamics, constant(0, 0, 1, 0, 0), 4000, 600)
    agrees(waiting, 1.20621, slack=0.05)
    lost = dynamics.totals[:, core.ABANDONED] / dynamics.totals[:, core.ARRIVALS]
    agrees(lost, 0.06701, slack=0.04)
    agrees(served, 9.0 * (1.0 - 0.06701))


@pytest.mark.parametrize(("places", "rate", "expected"), [(8, 5.0, 4.293), (64, 20.0, 19.148)])
def test_continuous_batching(places, rate, expected):
    """With n active ones at rate n / (l (W + H n)): a birth and death process."""
    slot = 0.005
    task = ServingTask(
        None,
        replicas=[
            {"hosts": "llm", "base_seconds": 0.004, "each_seconds": 3.906e-5, "places": places}
        ],
        tokens={"law": "geometric", "mean": 200.0},
        arrival_rate=rate * slot,
        slot_seconds=slot,
        window=1,
    )
    waiting, served, _ = run(fleet_of(task), constant(0, 0, 0), 3000, 2000)
    agrees(waiting + served, expected, slack=0.03)


def test_thinking_users_are_a_jackson_network():
    """Kept with p, else thinking at rate nu: M/M/1 at rate lambda / p beside an M/M/infinity."""
    slot, p, nu = 0.04, 0.5, 0.2
    task = ServingTask(
        None,
        queries=[{"keep": [p]}],
        replicas=[{"hosts": "llm", "base_seconds": 1.0}],
        arrival_rate=0.25 * slot,
        return_rate=nu * slot,
        slot_seconds=slot,
        window=1,
    )
    waiting, served, thinking = run(fleet_of(task), constant(0, 0, 0), 5000, 2000)
    agrees(waiting + served, 1.0, slack=0.03)
    agrees(thinking, 0.25 * (1.0 - p) / p / nu, slack=0.03)


def test_service_of_one_slot_is_llm_queue():
    """R = N replicas of one place, nu = 1, A = 1: LLMQueue-v0 with K = 1 in law."""
    workload = {"source": "synthetic", "pool_size": 64}
    shared = {"window": 16, "instance_seed": 3, "max_episode_steps": -1}
    queue = LLMQueueVectorEnv(
        LANES, workload=workload, num_llms=3, assortment_size=1, load=0.85, **shared
    )
    queue.reset(seed=0)
    llms = ["a", "b", "c"]
    serve = LLMServeVectorEnv(
        LANES,
        preset=None,
        queries=workload,
        llms=llms,
        replicas=[{"hosts": llm, "finish": 1.0} for llm in llms],
        arrival_rate=queue.problem["arrival_rate"],
        **shared,
    )
    serve.reset(seed=1)
    success = serve.task.public.success
    odds = queue.dynamics.odds[:-1]
    np.testing.assert_allclose(success, odds / (1.0 + odds))  # one instance
    best, rate = success.argmax(axis=1), np.append(success.max(axis=1), -1.0)
    lanes, means = np.arange(LANES), np.zeros((2, 2, LANES))
    for slot in range(1500):
        queue.step(np.column_stack(queue.dynamics.best_actions()))
        rows = serve.dynamics.window_queries
        chosen = rate[rows].argmax(axis=1)
        replica = best[rows[lanes, chosen]]
        action = np.column_stack([chosen, replica, np.tile([0, 1, 2], (LANES, 1))])
        info = serve.step(action)[-1]
        if slot >= 300:
            means[0] += queue.dynamics.queue_length, queue.dynamics.feedback == 1
            means[1] += serve.dynamics.queue_length, info["not_kept"]
    means /= 1200
    for mine, other in zip(means[0], means[1], strict=True):
        error = np.sqrt((mine.var() + other.var()) / LANES)
        assert abs(mine.mean() - other.mean()) < 4.0 * error
        assert error < 0.05 * mine.mean()


# ------------------------------------------------------------------ conservation


def present(dynamics, lane):
    """Records in use: the others are on the list of free ones."""
    state = dynamics.state
    ends, queries = state.ends[lane], state.queries[lane]
    free, record = set(), ends[core.FREE]
    while record >= 0:
        free.add(record)
        record = queries[record, core.AFTER]
    return [record for record in range(ends[core.UNUSED]) if record not in free]


@pytest.mark.parametrize("preset", PRESETS)
def test_nobody_is_lost_from_the_books(preset):
    """arrivals = kept + lost + waiting + in service + thinking, and Little's law, in every lane."""
    changes = {"give_up": 0.1, "return_rate": 0.05, "loading": 9, "window": 8}
    if preset != "impatient":
        changes["impatience"] = 0.01
    if preset == "slow-server":
        changes["queries"] = [{"keep": [0.5]}]
    env = gym.make_vec("LLMServe-v0", 4, preset=preset, max_episode_steps=-1, **changes)
    env.action_space.seed(0)
    env.reset(seed=0)
    dynamics, area = env.unwrapped.dynamics, 0
    for _ in range(700):
        *_, info = env.step(env.action_space.sample())
        area = area + dynamics.queue_length + dynamics.in_service + dynamics.thinking
    totals, state = dynamics.totals, dynamics.state
    here = dynamics.queue_length + dynamics.in_service + dynamics.thinking
    lost = totals[:, core.ABANDONED] + totals[:, core.GAVE_UP]
    np.testing.assert_array_equal(totals[:, core.ARRIVALS] - totals[:, core.KEPT] - lost, here)
    assert lost.sum() > 5
    for lane in range(4):
        records = state.queries[lane, present(dynamics, lane)]
        places = np.bincount(records[:, core.PLACE], minlength=3)
        waiting, served, away = places.tolist()
        assert waiting == dynamics.queue_length[lane] == info["queue_length"][lane]
        assert served == dynamics.in_service[lane] == info["in_service"][lane]
        assert away == dynamics.thinking[lane]
        ages = dynamics.slot[lane] - records[:, core.ARRIVED] + 1
        assert area[lane] == totals[lane, core.SOJOURN] + ages.sum()


# ------------------------------------------------------------------ coupled users


def test_the_hash_is_philox():
    """Known answers of Random123 for Philox 4x32-10."""
    zero = np.zeros((1, 2), dtype=np.int64)
    draws = draws_of(zero, 0, np.zeros(core.FIELDS, dtype=np.int32))
    words = [draw * 2**32 - 0.5 for draw in draws]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_two_policies_meet_the_same_users_and_better_llms_keep_them():
    """Tokens and outcome belong to (arrival, attempt); the better LLM keeps whom the worse does."""
    needed, kept = [{}, {}], {}
    for policy, found in enumerate(needed):
        env = gym.make("LLMServe-v0", preset="tiny-pair", load=0.8, return_rate=0.3)
        env.reset(seed=4)
        dynamics, rng, attempt = env.unwrapped.dynamics, np.random.default_rng(policy), {}
        arrived = []
        for _ in range(3000):
            last = min(max(int(dynamics.queue_length[0]) - 1, 0), 31)
            first = [0, last][policy]  # first or last come, to any replica
            *_, info = env.step([first, rng.integers(2), 1, rng.integers(2), 0, 1])
            arrived.append(bool(info["arrived"]))
            state = dynamics.state
            for r in range(2):
                if state.replicas[0, r, core.ACTIVE]:
                    record = state.queries[0, state.served[0, r, 0]]
                    user = record[core.ARRIVED].item(), record[core.RETRIALS].item()
                    found[user] = state.progress[0, r, 0, core.NEEDED]
            for number, llm, keeps in info["answers"][info["answers"][:, 0] >= 0].tolist():
                user = number, attempt.get(number, 0)
                attempt[number] = user[1] + 1
                assert kept.setdefault((*user, llm), keeps) == keeps
        assert needed[0].setdefault("arrivals", arrived) == arrived
    both = needed[0].keys() & needed[1].keys()
    assert len(both) > 500
    assert all(needed[0][user] == needed[1][user] for user in both)
    weak_and_strong = [
        (keeps, kept[number, attempt, 1])
        for (number, attempt, llm), keeps in kept.items()
        if llm == 0 and (number, attempt, 1) in kept
    ]
    assert len(weak_and_strong) > 100
    assert {(0, 0), (0, 1), (1, 1)} == set(weak_and_strong)


# ------------------------------------------------------------------ windows and dispatches


def test_a_replica_drains_loads_and_serves():
    env = gym.make(
        "LLMServe-v0",
        preset=None,
        llms=["a", "b", {"name": "late", "arrives": 25}],
        queries=[{"keep": [1.0, 1.0, 1.0]}],
        replicas=[{"hosts": "a", "base_seconds": 4.0, "price": 3600.0}],
        tokens={"law": "lognormal", "mean": 1.0, "sigma": 1e-13},
        arrival_rate=1.0,
        update_every=10,
        loading=5,
        rewards={"price": 1.0, "kept": 10.0},
    )
    env.reset(seed=0)
    hosts, phases, rewards, legal = [], [], [], []
    targets = {0: 0, 10: 1, 20: 2, 30: 2, 40: 3}
    for slot in range(50):
        legal.append(env.unwrapped.action_masks()[-4:].tolist())
        target = targets.get(slot, 3)  # between update points it is not read
        observation, reward, *_ = env.step([0, 0, target])
        hosts.append(observation["hosts"][0].argmax() if observation["hosts"].any() else None)
        phases.append(int(observation["phase"][0].argmax()))
        rewards.append(reward)
    # The first query is dispatched in slot 1; each takes four slots, so that slot 10 finds another
    # one half done; slot 20 asks for an LLM that is not there; in slot 30 one has just begun.
    assert hosts == [0] * 12 + [1] * 21 + [2] * 9 + [None] * 8
    drain, load, serve = [core.DRAINING], [core.LOADING] * 5, [core.SERVING]
    assert phases[:18] == serve * 10 + drain * 2 + load + serve
    assert phases[18:] == serve * 12 + drain * 3 + load + serve * 2 + drain * 2 + [core.EMPTY] * 8
    assert legal[1] == [True, False, False, False]  # its own target
    assert legal[20] == [True, True, False, True]  # late has not arrived
    assert legal[30] == [True, True, True, True]
    assert rewards[0] == -1.0
    assert rewards[-1] == 0.0
    assert rewards.count(9.0) + rewards.count(10.0) == env.unwrapped.dynamics.totals[0, core.KEPT]


def test_an_illegal_dispatch_does_nothing_and_is_counted():
    env = gym.make("LLMServe-v0", preset="tiny-pair", arrival_rate=1.0)
    env.reset(seed=0)
    hold = 32
    info = env.step([0, 0, 1, 1, 0, 1])[-1]
    assert (info["dispatched"], info["illegal"]) == (0, 2)  # nobody is there
    info = env.step([0, 0, 0, 1, 0, 1])[-1]
    assert (info["dispatched"], info["illegal"]) == (1, 1)  # the same query twice
    info = env.step([hold, 0, hold, 0, 0, 1])[-1]
    assert (info["dispatched"], info["illegal"]) == (0, 0)
    for _ in range(20):
        *_, info = env.step([0, 1, 1, 1, 0, 1])
        assert info["illegal"] >= 1  # one place
        assert info["in_service"] <= 2
    single = gym.make("LLMServe-v0", preset="autoscale", dispatches=1)
    _, info = single.reset(seed=0)
    single.action_space.seed(0)
    for _ in range(500):
        parts = np.split(info["action_mask"], np.cumsum(single.action_space.nvec)[:-1])
        *_, info = single.step(single.action_space.sample(mask=tuple(parts)))
        assert info["illegal"] == 0


def test_the_reward_is_what_is_told_at_its_weights():
    weights = {"kept": 2.0, "holding": 0.5, "lost": 3.0, "late": 4.0, "price": 5.0, "sla": 9}
    env = gym.make(
        "LLMServe-v0", preset="autoscale", rewards=weights, impatience=0.02, give_up=0.2, loading=20
    )
    env.action_space.seed(1)
    _, info = env.reset(seed=1)
    dynamics, late, lost = env.unwrapped.dynamics, 0, 0
    for _ in range(600):
        before = dynamics.totals[0].copy()
        first = {
            int(row[core.ARRIVED])
            for row in dynamics.state.queries[0, present(dynamics, 0)]
            if row[core.RETRIALS] == 0
        }
        parts = np.split(info["action_mask"], np.cumsum(env.action_space.nvec)[:-1])
        observation, reward, *_, info = env.step(env.action_space.sample(mask=tuple(parts)))
        change = dynamics.totals[0] - before
        numbers = info["answers"][:, 0]
        late = sum(int(n) in first and dynamics.slot[0] - n > 9 for n in numbers if n >= 0)
        assert late == change[core.LATE]
        gone = info["abandoned"] + change[core.GAVE_UP]
        lost += gone
        price = dynamics.instances[0].price[observation["phase"][:, core.EMPTY] == 0].sum()
        here = info["queue_length"] + info["in_service"]
        expected = 2.0 * info["kept"] - 0.5 * here - 3.0 * gone - 4.0 * late - 5.0 * price
        assert reward == pytest.approx(expected)
    assert lost > 20
    assert dynamics.totals[0, core.LATE] > 20
