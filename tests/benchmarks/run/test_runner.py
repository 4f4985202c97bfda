"""One cell: the laws of a queue, coupling, the regret's definition, what agents may not do."""

import json
import time
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import tiny_suite
from scipy import stats

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import SuiteError, parse_suite
from benchmarks.problems.kind import measured
from benchmarks.problems.luck import LUCK_LIMIT, outcome_luck
from benchmarks.problems.queueing.metrics import METRICS, Run, Trace
from benchmarks.problems.queueing.play import (
    BrokenLawError,
    Recorder,
    check_laws,
    queue_sums,
)
from benchmarks.run import runner
from benchmarks.run.runner import (
    InvalidActionError,
    agent_seed,
    checked_action,
    curve_steps,
    learning_curve,
    run_cell,
)

SUITE = tiny_suite(agents=["greedy", "Q-UCB"], horizon=400)
CELLS = {
    (cell.spec["agent"]["label"], cell.spec["seed"]): cell
    for cell in make_plan(parse_suite("s", SUITE)).cells
}


def play(label, seed=0):
    cell = CELLS[label, seed]
    return run_cell(cell.spec, cell.kwargs)


def trace(queue, best, rate, departed, retried, sojourn):
    arrays = [np.asarray(a) for a in (queue, best, rate, departed, retried, sojourn)]
    return Trace(*arrays, arrived=np.zeros(len(queue), dtype=bool))


def queue_metrics(recorded, window):
    return measured(METRICS, Run(recorded, window, arrival_rate=0.5, capacity=0.8, usd=None))


def test_metrics_in_closed_form():
    metrics = queue_metrics(
        trace(
            queue=[0, 1, 2, 1, 4],
            best=[0.0, 0.9, 0.9, 0.8, 0.8],
            rate=[0.0, 0.5, 0.9, 0.0, 0.8],
            departed=[False, True, False, False, True],
            retried=[False, False, True, False, False],
            sojourn=[0, 1, 0, 0, 3],
        ),
        window=1,
    )
    assert metrics["mean_queue"] == 1.6
    assert metrics["tail_queue"] == 4.0
    assert metrics["backlog_share"] == 0.4
    assert metrics["routing_regret"] == pytest.approx(0.4 + 0.8)
    assert metrics["mean_sojourn"] == 2.0
    assert metrics["retrials_per_departed"] == 0.5
    variance = 0.25 + 0.09 + 0.16
    luck = outcome_luck(metrics["departures"], np.array([0.0, 0.5, 0.9, 0.0, 0.8]))
    assert luck.figure == pytest.approx((2 - 2.2) / (variance + 0.2 / 3) ** 0.5)


@pytest.mark.parametrize("horizon", [1, 100, 1000, 100_000])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.05, 0.5, 0.9, 0.9999, 1 - 1e-6])
def test_luck_of_independent_outcomes_keeps_its_bound_however_sure_they_are(rate, horizon):
    """The exact binomial tail; (departed - mean) / sd is beyond 6 in 0.5% of some of these."""
    counts = np.arange(horizon + 1)
    deviation = counts - horizon * rate
    values = deviation / np.sqrt(horizon * rate * (1 - rate) + np.abs(deviation) / 3)
    for count in {0, int(horizon * rate), horizon}:
        found = outcome_luck(count, np.full(horizon, rate)).figure
        assert found == pytest.approx(values[count], rel=1e-6, abs=1e-6)
    for limit in (2.0, 4.0, 6.0, LUCK_LIMIT):
        beyond = stats.binom.pmf(counts[np.abs(values) > limit], horizon, rate).sum()
        assert beyond <= 2 * np.exp(-(limit**2) / 2)
    assert 2 * np.exp(-(LUCK_LIMIT**2) / 2) < 1e-8


def test_the_limit_of_luck_holds_for_variances_that_a_policy_chooses():
    """The union over intervals of V that `LUCK_LIMIT` names, at its best ratio."""
    ratio, square = 1.04, LUCK_LIMIT**2
    intervals = np.ceil(np.log(1e9) / np.log(ratio))
    small = np.exp(-((square / 3) ** 2) / (2 * (1 + square / 9)))
    assert 2 * (intervals * np.exp(-square / (2 * ratio)) + small) < 1e-8


def test_outcomes_that_cannot_be_are_luck_without_bound():
    assert outcome_luck(0, np.zeros(50)).figure == outcome_luck(50, np.ones(50)).figure == 0.0
    assert outcome_luck(50, np.zeros(50)).figure == pytest.approx(150**0.5)
    assert outcome_luck(0, np.ones(50)).figure == pytest.approx(-(150**0.5))


def test_a_run_without_departures_has_no_waiting_time():
    no = [False] * 2
    metrics = queue_metrics(trace([1, 2], [0.5, 0.5], [0.5, 0.5], no, [True] * 2, [0, 0]), 32)
    assert metrics["wait_p95"] is None
    assert metrics["retrials_per_departed"] is None


def overloaded(window, size, seed=0):
    """A queue that grows: three in four arrive, and what is shown at random fails too often."""
    kwargs = {"assortment_size": size, "arrival_rate": 0.75, "window": window, "slack": None}
    env = gym.make("LLMQueue-v0", disable_env_checker=True, max_episode_steps=600, **kwargs)
    env.reset(seed=seed)
    return env


@pytest.mark.parametrize(("window", "size"), [(1, 1), (3, 2), (32, 3)])
def test_routing_regret_is_over_the_whole_queue_that_a_window_without_end_shows(window, size):
    env, wide = overloaded(window, size), overloaded(1000, size)
    recorder, truth = Recorder(env, 600), wide.unwrapped.dynamics
    rng, sure = np.random.default_rng(1), 0
    for t in range(600):
        action = np.array([rng.integers(window), *rng.integers(0, 5, size)])
        waiting = truth.window_queries[0]
        waiting = waiting[waiting >= 0]
        assert recorder.see() == bool(waiting.size)
        recorder.choose(t, action)
        best = truth.best_rate[waiting].max() if waiting.size else 0.0
        assert recorder.trace.best_rate[t] == best
        sure += waiting.size > window and best > truth.best_rate[waiting[:window]].max()
        chosen = 0.0
        if action[0] < waiting.size:
            odds = truth.odds[waiting[action[0]], np.unique(action[1:])].sum()
            chosen = odds / (1 + odds)
        assert recorder.trace.departure_rate[t] == pytest.approx(chosen)
        wide.step(action)
        recorder.observe(t, action, env.step(action)[4])
    assert sure > 10, "the window must hide the best query now and then"
    metrics = recorder.result()["metrics"]
    assert metrics["backlog_share"] == np.mean(recorder.trace.queue_length > window) > 0.2


@pytest.mark.parametrize("size", [1, 2])
def test_usd_per_query_is_what_the_answers_of_all_attempts_cost(tmp_path, size):
    """LLM j costs 4^j USD: what was paid is a sum over LLMs, what was shown a set."""
    rng = np.random.default_rng(0)
    path = tmp_path / "table.jsonl"
    with path.open("w") as file:
        for _ in range(40):
            scores = dict(zip("abc", rng.random(3).tolist(), strict=True))
            cost = {"a": 1.0, "b": 4.0, "c": 16.0}
            record = {"v": rng.normal(size=2).tolist(), "s": scores, "c": cost}
            file.write(json.dumps(record) + "\n")
    spec = {"source": "table", "path": str(path), "embedding": "v", "quality": "s"}
    paid = []
    for costs in ({"cost": "c"}, {}):
        env = gym.make("LLMQueue-v0", workload=spec | costs, load=0.6, assortment_size=size)
        observation, _ = env.reset(seed=0)
        recorder, usd = Recorder(env, 200), 0
        rng = np.random.default_rng(1)
        for t in range(200):
            action = np.array([0, *rng.integers(0, 3, size)])
            if observation["waiting"].any():
                usd += sum(4 ** int(llm) for llm in set(action[1:].tolist()))
            recorder.choose(t, action)
            observation, *_, info = env.step(action)
            recorder.observe(t, action, info)
        metrics = recorder.result()["metrics"]
        paid.append((metrics["usd_per_query"], usd / metrics["departures"]))
    assert paid[0][0] == pytest.approx(paid[0][1])
    assert paid[1][0] is None  # no costs are recorded


def lawful():
    """A recorded run with the ages of those left, its metrics and its curve."""
    env = overloaded(4, 2)
    recorder, rng = Recorder(env, 600), np.random.default_rng(0)
    for t in range(600):
        action = rng.integers(0, [4, 5, 5])
        recorder.choose(t, action)
        recorder.observe(t, action, env.step(action)[4])
    result, run = recorder.result(), recorder.trace
    waiting = run.queue_length.sum() - run.sojourn.sum()
    ages = np.zeros(run.queue_length[-1], dtype=np.int64)
    ages[0] = waiting - ages.size
    return run, ages, result["metrics"], result["curve"]


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda run, ages, metrics, curve: run.sojourn.__setitem__(500, 10**6), "Little's law"),
        (lambda run, ages, metrics, curve: ages.__setitem__(0, 0), "Little's law"),
        (lambda run, ages, metrics, curve: run.queue_length.__setitem__(7, 99), "in slot 8"),
        (lambda run, ages, metrics, curve: run.arrived.fill(True), "in slot"),
        (lambda run, ages, metrics, curve: metrics.update(mean_queue=1.0), "queue curve"),
        (lambda run, ages, metrics, curve: metrics.update(routing_regret=1.0), "regret curve"),
    ],
)
def test_a_run_that_breaks_a_law_is_refused_by_its_name(spoil, law):
    record = lawful()
    check_laws(*record)
    spoil(*record)
    with pytest.raises(BrokenLawError, match=law):
        check_laws(*record)


def test_a_query_that_nobody_recorded_is_found_at_the_end():
    run, ages, metrics, curve = lawful()
    with pytest.raises(BrokenLawError, match="arrivals = departures"):
        check_laws(run, ages[1:], metrics, curve)


@pytest.mark.parametrize(
    "change",
    [
        {"served": False},
        {"departed": True, "retried": False},
        {"departed": False, "retried": True, "kept_llm": 3},
        {"departed": True, "retried": True, "kept_llm": 0},
        {"departed": True, "retried": False, "kept_llm": 4},
    ],
)
def test_feedback_that_is_no_answer_to_the_action_is_refused(change):
    env = overloaded(4, 2)
    recorder, action = Recorder(env, 600), np.array([0, 0, 3])
    for t in range(600):
        recorder.choose(t, action)
        info = env.step(action)[4]
        if info["retried"]:
            break
        recorder.observe(t, action, info)
    with pytest.raises(BrokenLawError, match=f"slot {t + 1}"):
        recorder.observe(t, action, {**info, **change})


def test_a_cell_is_a_function_of_its_seed():
    first, second, other = play("greedy"), play("greedy"), play("greedy", 1)
    assert (first["metrics"], first["curve"]) == (second["metrics"], second["curve"])
    assert first["metrics"] != other["metrics"]


def test_policies_of_one_seed_meet_one_instance():
    runs = [play(label)["metrics"] for label in ("oracle", "random", "greedy", "Q-UCB")]
    assert len({(run["capacity"], run["arrival_rate"]) for run in runs}) == 1
    assert runs[0]["capacity"] != play("oracle", 1)["metrics"]["capacity"]


def test_the_oracle_has_no_routing_regret_and_random_has():
    assert play("oracle")["metrics"]["routing_regret"] == 0.0
    assert play("random")["metrics"]["routing_regret"] > 10.0


def test_the_curve_ends_at_the_horizon_with_the_totals():
    result = play("random")
    curve, metrics = result["curve"], result["metrics"]
    assert curve["t"][0] == 1
    assert curve["t"][-1] == 400
    assert curve["queue"][-1] == pytest.approx(metrics["mean_queue"] * 400)
    assert curve["regret"][-1] == pytest.approx(metrics["routing_regret"])


@given(st.integers(1, 100_000))
def test_curve_steps_are_increasing_and_complete(horizon):
    slots = curve_steps(horizon)
    assert slots[0] == 1
    assert slots[-1] == horizon
    assert (np.diff(slots) > 0).all()
    assert slots.size <= 200


def test_curve_of_a_constant_queue_is_linear():
    zeros = np.zeros(1000)
    flags = zeros.astype(bool)
    curve = learning_curve(queue_sums(trace(np.full(1000, 3), zeros, zeros, flags, flags, zeros)))
    assert curve["queue"] == [3 * t for t in curve["t"]]


def test_agent_seed_differs_from_the_environments():
    assert len({agent_seed(seed) for seed in range(100)} | set(range(100))) == 200


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        3,
        [0],
        [0, 1, 2],
        [0.0, 1.0],
        [0, -1],
        [32, 0],
        [0, 5],
        [2**70, 0],
        "ab",
        [[0], [0, 1]],
        [True, 0.5],
        [True, 1],
        {3: 0, 4: 0},
        np.array([3, 4], dtype=object),
        np.array([3.0, 4.0]),
        np.array([2**63 + 1, 4], dtype=np.uint64),
        np.array([[3, 4]]),
        np.ma.array([3, 4]),
    ],
)
def test_actions_outside_the_space_are_refused_with_agent_step_and_value(garbage):
    with pytest.raises(InvalidActionError) as caught:
        checked_action(garbage, np.array([32, 5]), "my-agent", 17)
    message = str(caught.value)
    assert "'my-agent'" in message
    assert "step 17" in message
    assert repr(garbage) in message


def test_a_valid_action_is_copied():
    action = np.array([3, 4])
    checked = checked_action(action, np.array([32, 5]), "a", 0)
    action[:] = 0
    assert checked.tolist() == [3, 4]


@pytest.mark.parametrize(
    "valid", [(3, 4), [3, 4], [np.int64(3), 4], np.array([3, 4], dtype=np.uint8)]
)
def test_arrays_lists_and_tuples_of_whole_numbers_are_actions(valid):
    checked = checked_action(valid, np.array([32, 5]), "a", 0)
    assert checked.tolist() == [3, 4]
    assert checked.dtype == np.int64


class Lazy:
    """Decides when it is turned into an array, or asked for its entries."""

    asked = 0

    def __array__(self, dtype=None, copy=None):
        Lazy.asked += 1
        return np.array([3, 4])

    def __len__(self):
        Lazy.asked += 1
        return 2

    def __getitem__(self, place):
        Lazy.asked += 1
        return [3, 4][place]

    def __index__(self):
        Lazy.asked += 1
        return 3


class LazyList(list):
    def __iter__(self):
        Lazy.asked += 1
        return iter([3, 4])


class LazyArray(np.ndarray):
    def tolist(self):
        Lazy.asked += 1
        return [3, 4]


class LazyInt(int):
    def __int__(self):
        Lazy.asked += 1
        return 3


@pytest.mark.parametrize(
    "lazy",
    [Lazy(), [Lazy(), 4], LazyList([3, 4]), np.zeros(2, int).view(LazyArray), [LazyInt(3), 4]],
    ids=["object", "entry", "list", "array", "int"],
)
def test_an_object_that_would_do_its_work_when_it_is_read_is_refused_unread(lazy):
    Lazy.asked = 0
    with pytest.raises(InvalidActionError, match=type(lazy).__name__):
        checked_action(lazy, np.array([32, 5]), "a", 0)
    assert Lazy.asked == 0


class Faulty(gym.Wrapper):
    """Warns of several things at its reset, and may fail there."""

    closed = 0

    def __init__(self, env, fails):
        super().__init__(env)
        self.fails = fails

    def reset(self, **arguments):
        for _ in range(2):
            warnings.warn("the instance is odd", UserWarning, stacklevel=1)
        if self.fails:
            raise ValueError("no instance")
        warnings.warn("a library's own affair", FutureWarning, stacklevel=1)
        return super().reset(**arguments)

    def close(self):
        type(self).closed += 1
        super().close()


@pytest.mark.parametrize("fails", [False, True])
def test_warnings_of_an_instance_are_noted_and_others_go_on_and_a_failed_reset_closes(
    monkeypatch, fails
):
    make, cell, warned = gym.make, CELLS["greedy", 0], []
    monkeypatch.setattr(gym, "make", lambda *a, **k: Faulty(make(*a, **k), fails))
    monkeypatch.setattr(Faulty, "closed", 0)
    if fails:
        with pytest.raises(ValueError, match="no instance"):
            runner.set_up(cell.spec, cell.kwargs)
        assert Faulty.closed == 1
        with pytest.raises(SuiteError, match="'tiny' cannot be set up: no instance"):
            runner.check_tasks([cell], print)
        assert Faulty.closed == 2
        return
    with pytest.warns(FutureWarning, match="own affair") as others:
        runner.set_up(cell.spec, cell.kwargs, warned=warned)[0].close()
    assert warned == ["the instance is odd"]
    assert [w.category for w in others] == [FutureWarning]


def test_a_task_is_set_up_once_before_its_cells_and_says_what_is_assumed(monkeypatch, tmp_path):
    """The order in which a table's LLMs arrive comes from the one reading of the table."""
    table = tmp_path / "scores.csv"
    rows = "\n".join(f"[{i % 3}.5],{i % 2},{(i + 1) % 2},1,0,0.1" for i in range(40))
    table.write_text(f"vector,a,b,c,d,usd\n{rows}\n")
    instance = {"source": "table", "path": str(table), "quality": ["a", "b", "c", "d"]}
    instance |= {"embedding": "vector", "cost": dict.fromkeys("abcd", "usd")}
    task = {"name": "mine", "env": "LLMDeploy-v0", "horizon": 100, "kwargs": {"instance": instance}}
    cells = make_plan(parse_suite("s", {"seeds": 2, "agents": ["uniform"], "task": [task]})).cells
    made, notes, make = [], [], gym.make
    monkeypatch.setattr(gym, "make", lambda *a, **k: made.append(a) or make(*a, **k))
    runner.check_tasks(cells, notes.append)
    assert len(made) == 1
    words = "a (at the start), b (at the start), c (query"
    assert [note[: note.index(words)] for note in notes] == [
        "task mine: the table does not say when LLMs arrive: "
    ]
    known = [replace(c, kwargs={"instance": instance | {"arrivals": list("dcba")}}) for c in cells]
    runner.check_tasks(known, notes.append)
    assert len(notes) == 1


def test_reading_the_action_is_on_the_clock(monkeypatch):
    def slow(*arguments):
        time.sleep(0.001)
        return checked_action(*arguments)

    monkeypatch.setattr(runner, "checked_action", slow)
    assert play("random")["timing"]["decision_us_median"] > 1000


SCRIBBLER = """
import copy
from baselines.registry import make_agent

class Scribbler:
    \"\"\"Plays an agent on copies and overwrites all it has in hand, as soon as it has it.\"\"\"
    kind, protocol, trained_on = {kind!r}, "online", ""
    def __init__(self, problem, seed):
        self.agent = make_agent({name!r}, problem, seed)
    def act(self, observation):
        own = copy.deepcopy(self.seen) if hasattr(self, "seen") else copy.deepcopy(observation)
        scribble(observation)
        self.last = own
        self.chosen = self.agent.act(copy.deepcopy(own))
        return self.chosen
    def update(self, observation, action, reward, following, info):
        self.seen = copy.deepcopy(following)
        self.agent.update(self.last, action.copy(), reward, copy.deepcopy(following), dict(info))
        scribble(observation)
        scribble(following)
        scribble(info)
        action[...] = self.chosen[...] = 0
        info.clear()

def scribble(arrays):
    for array in arrays.values():
        if getattr(array, "ndim", 0): array[...] = 7
"""


@pytest.mark.parametrize(("kind", "name"), [("queueing", "greedy"), ("deployment", "StageRoute")])
def test_an_agent_that_scribbles_on_all_it_is_given_has_the_results_of_one_that_does_not(
    kind, name, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"scribbler_{kind}.py").write_text(SCRIBBLER.format(kind=kind, name=name))
    task = {"name": "tiny", "env": "LLMDeploy-v0", "horizon": 300} if kind != "queueing" else None
    document = {"seeds": 1, "agents": [name], "task": [task] if task else SUITE["task"]}
    label = f"scribbler_{kind}:Scribbler"
    plan = make_plan(parse_suite("s", document), agents=[name, label])
    cells = {cell.spec["agent"]["name"]: cell for cell in plan.cells}
    honest, scribbler = (run_cell(cells[key].spec, cells[key].kwargs) for key in (name, label))
    for part in ("metrics", "curve"):
        assert scribbler[part] == honest[part]
