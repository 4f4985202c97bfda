"""Laws of the deployment dynamics, and of the streams of LLMs that feed them."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmqueue_gym.deployment.dynamics import NUM_STREAMS, QueryOutcome
from llmqueue_gym.deployment.instance import NEVER, DeploymentInstance, lognormal_mean
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.deployment.routing import deploy_opt
from llmqueue_gym.deployment.rules import (
    DeploymentRules,
    project_to_capped_simplex,
    stage_plan,
    stage_schedule,
)
from llmqueue_gym.deployment.streams import (
    ModelCatalog,
    PriceChange,
    build_instance,
    cost_range,
    make_source,
    read_price_changes,
    read_retirements,
    stage_verdicts,
    stream_fingerprint,
)


def make_rules(num_llms=4, **changes):
    base = DeploymentRules(
        horizon=90, num_stages=7, max_deployed=2, alpha=(0.7,) * num_llms, budget=1e-3
    )
    return dataclasses.replace(base, **changes)


def make_instance(num_llms=4, arrival=None, mean=None, cost=None, retire=None):
    mean = np.linspace(0.3, 0.8, num_llms) if mean is None else np.array(mean)
    cost = np.geomspace(3e-4, 3e-3, num_llms) if cost is None else np.array(cost)
    zeros = np.zeros((1, num_llms))
    return DeploymentInstance(
        np.zeros(num_llms, dtype=np.int64) if arrival is None else np.array(arrival),
        np.full(num_llms, NEVER) if retire is None else np.array(retire),
        np.zeros(1, dtype=np.int64),
        mean[None],
        cost[None],
        zeros,
        zeros,
        np.full((2, num_llms), 0.6),
        np.array([0.0, 1.0]),
        1.0 - mean[:, None],
        mean,
    )


def start(rules, instance, seed=0, num_lanes=1):
    dynamics = DeploymentDynamics(num_lanes, len(instance.base_reward), rules)
    streams = [np.random.default_rng(seed + lane).spawn(NUM_STREAMS) for lane in range(num_lanes)]
    dynamics.reset(range(num_lanes), [instance] * num_lanes, streams)
    return dynamics


def ask(dynamics, bits, llm):
    """Answer the next query of the only lane: an outcome of plain numbers."""
    outcome = dynamics.step(np.array([bits]) == 1, np.array([llm]))
    return QueryOutcome(*(values[0].item() for values in outcome[:-1]), outcome.arrived_now[0])


def seen_by(dynamics):
    """What the provider of the only lane sees."""
    return {key: values[0] for key, values in dynamics.observe().items()}


def play(dynamics, seed=0, deploy_all=False):
    """Random actions to the end: the actions and the outcomes."""
    rng, n, history = np.random.default_rng(seed), dynamics.num_llms, []
    for _ in range(dynamics.horizon):
        bits, llm = rng.integers(2, size=n) | deploy_all, int(rng.integers(n))
        history.append((bits, llm, ask(dynamics, bits, llm)))
    return history


# --------------------------------------------------------------------- laws


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    budget=st.floats(1e-5, 5e-3),
    switching=st.sampled_from([0.0, 1e-3]),
    delay=st.integers(0, 20),
)
def test_ledger_never_pays_more_than_the_budget(seed, budget, switching, delay):
    rules = make_rules(budget=budget, switching_cost=switching, reward_delay=delay)
    dynamics = start(rules, make_instance(), seed)
    rng = np.random.default_rng(seed)
    charged = paid = score = 0.0
    over = False
    for _ in range(rules.horizon):
        outcome = ask(dynamics, rng.integers(2, size=4).tolist(), int(rng.integers(4)))
        charge = outcome.cost + outcome.switching_cost
        charged += charge
        over = over or paid + charge > budget * rules.horizon * (1 + 1e-12)
        assert outcome.over_budget == over
        paid += 0.0 if over else charge
        score += outcome.ledger_reward
        assert dynamics.ledger_spend == paid <= budget * rules.horizon * (1 + 1e-12)
        if over and not delay:
            assert outcome.ledger_reward == 0.0
    assert dynamics.spend == pytest.approx(charged)
    if not delay:
        assert dynamics.ledger_score == pytest.approx(score)
    assert dynamics.ledger_score <= dynamics.total_reward


@pytest.mark.parametrize(
    ("horizon", "budget"),
    [*itertools.product([1000, 36_000], [1e-4, 3e-4, 5e-4, 0.1, 0.3]), (400_000, 0.1)],
)
def test_a_run_that_costs_exactly_the_budget_stays_within_it(horizon, budget):
    """Adding up T equal costs rounds; the last query must not lose its reward for it."""
    rules = make_rules(
        horizon=horizon, num_stages=2, max_deployed=4, alpha=(1.0,) * 4, budget=budget
    )
    instance = dataclasses.replace(
        make_instance(mean=[1.0] * 4, cost=[budget] * 4), log_sd=np.zeros((2, 4))
    )
    everything = np.ones(4, dtype=np.bool_)
    dynamics = start(rules, instance)
    for length in rules.stage_lengths:
        assert not dynamics.run_stage(everything, np.zeros(length, dtype=np.int64)).over_budget
    assert dynamics.ledger_score == horizon
    if horizon == 1000:
        vector, bits = start(rules, instance, num_lanes=2), np.tile(everything, (2, 1))
        for _ in range(horizon):
            assert not vector.step(bits, np.zeros(2, dtype=np.int64)).over_budget.any()
        assert vector.ledger_score.tolist() == [horizon] * 2
    dear = dataclasses.replace(rules, budget=budget * (1 - 1e-8))
    dynamics = start(dear, instance)
    for length in rules.stage_lengths:
        over = dynamics.run_stage(everything, np.zeros(length, dtype=np.int64)).over_budget
    assert over


def test_equal_choices_meet_equal_draws_whatever_was_done_before():
    one = play(start(make_rules(max_deployed=4), make_instance()), 1, deploy_all=True)
    two = play(start(make_rules(max_deployed=4), make_instance()), 2, deploy_all=True)
    same = [(a[2], b[2]) for a, b in zip(one, two, strict=True) if a[2].llm == b[2].llm]
    assert len(same) > 5
    assert all(a.reward == b.reward and a.cost == b.cost for a, b in same)


def test_observations_do_not_depend_on_llms_that_are_still_to_come():
    rules = make_rules()
    arrival, seen = [0, 0, 60, 60], []
    for mean, cost in (([0.3, 0.5, 0.7, 0.9], 1e-3), ([0.3, 0.5, 0.1, 0.2], 5e-2)):
        instance = make_instance(arrival=arrival, mean=mean, cost=[3e-4, 5e-4, cost, cost])
        dynamics = start(rules, instance)
        seen.append([])
        for query in range(59):
            observation = seen_by(dynamics) | {"mask": dynamics.action_masks()[0]}
            for key in ("arrived", "deployed", "cost_prior", "count", "mean_reward", "mean_cost"):
                assert not observation[key][2:].any()
            assert not observation["throughput_left"][2:].any()
            outcome = ask(dynamics, [1, 1, 1, 1], query % 3)
            seen[-1].append((observation, outcome))
    for (first, done), (second, redone) in zip(*seen, strict=True):
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key])
        assert done[:-1] == redone[:-1]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), delay=st.integers(1, 95))
def test_delayed_rewards_are_the_same_rewards_later(seed, delay):
    now = play(start(make_rules(), make_instance(), seed), seed)
    late = play(start(make_rules(reward_delay=delay), make_instance(), seed), seed)
    shown = [(o.rated_llm, o.reward, o.ledger_reward) for _, _, o in now]
    shifted = [(-1, 0.0, 0.0)] * min(delay, 90) + shown
    assert [(o.rated_llm, o.reward, o.ledger_reward) for _, _, o in late] == shifted[:90]
    assert [o.cost for _, _, o in now] == [o.cost for _, _, o in late]
    assert all(o.rated_llm == o.llm for _, _, o in now)


def test_lanes_may_stand_at_different_queries():
    rules, instance = make_rules(), make_instance(arrival=[0, 0, 20, 40])
    vector = start(rules, instance, 5, num_lanes=3)
    scalars = [start(rules, instance, 5 + lane) for lane in range(3)]
    rng, fresh = np.random.default_rng(0), 100
    for _ in range(300):
        lanes = np.flatnonzero(rng.random(3) < 0.6)
        if not lanes.size:
            continue
        bits, llms = rng.integers(2, size=(len(lanes), 4)) == 1, rng.integers(4, size=len(lanes))
        batch = vector.step(bits, llms, lanes)
        for row, lane in enumerate(lanes):
            single = ask(scalars[lane], bits[row].tolist(), int(llms[row]))
            assert (single.reward, single.cost) == (batch.reward[row], batch.cost[row])
            if vector.ended[lane]:
                fresh += 1
                streams = [np.random.default_rng(fresh).spawn(NUM_STREAMS) for _ in range(2)]
                vector.reset([lane], [instance], streams[:1])
                scalars[lane].reset([0], [instance], streams[1:])
        observation, masks = vector.observe(), vector.action_masks()
        for lane, scalar in enumerate(scalars):
            np.testing.assert_array_equal(scalar.action_masks()[0], masks[lane])
            for key, value in seen_by(scalar).items():
                np.testing.assert_array_equal(observation[key][lane], value, err_msg=key)
    assert fresh > 103


# --------------------------------------------------- schedules and projection


@settings(max_examples=200)
@given(
    action=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    there=st.lists(st.booleans(), min_size=4, max_size=4),
    alpha=st.sampled_from([0.2, 0.5, 0.7, 1.0]),
)
def test_a_stage_plan_deploys_the_best_scores_and_keeps_to_the_caps(action, there, alpha):
    rules, there = make_rules(alpha=(alpha,) * 4), np.array(there)
    values = np.array(action)
    bits, shares = stage_plan(values, there, rules)
    assert not (bits & ~there).any()
    assert bits.sum() == min(rules.max_deployed, there.sum())
    left_out = there & ~bits
    if bits.any() and left_out.any():
        assert values[:4][bits].min() >= values[:4][left_out].max()
    assert shares.sum() == pytest.approx(1.0)
    if not there.any():
        assert shares.tolist() == [1.0, 0.0, 0.0, 0.0]  # refused, whoever it is
        return
    assert not shares[~bits].any()
    if bits.sum() * alpha >= 1.0:
        assert (shares <= alpha + 1e-12).all()


def test_what_the_bits_come_to_is_what_is_deployed():
    instance = make_instance(5, arrival=[0, 40, 0, 0, 0])
    dynamics = start(make_rules(5), instance, num_lanes=2)
    bits = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]], dtype=np.bool_)
    allowed = dynamics.allowed(bits)
    assert allowed.astype(int).tolist() == [[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert not dynamics.deployed.any()
    dynamics.step(bits, np.zeros(2, dtype=np.int64))
    np.testing.assert_array_equal(dynamics.deployed, allowed)


@settings(max_examples=200)
@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    alpha=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**20),
)
def test_projection_is_the_nearest_point_of_the_capped_simplex(weights, alpha, seed):
    w, caps = np.array(weights), np.full(len(weights), alpha)
    p = project_to_capped_simplex(w, caps)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    if caps.sum() <= 1.0:
        np.testing.assert_allclose(p, 1.0 / len(w))
        return
    assert (p >= 0).all()
    assert (p <= alpha + 1e-9).all()
    rng = np.random.default_rng(seed)
    for _ in range(5):  # the variational inequality against other members
        q = project_to_capped_simplex(rng.random(len(w)), caps)
        assert (w - p) @ (q - p) <= 1e-9
    np.testing.assert_allclose(project_to_capped_simplex(p, caps), p, atol=1e-12)


@settings(max_examples=200)
@given(
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any),
    length=st.integers(1, 300),
)
def test_schedule_gives_every_llm_its_share_evenly(weights, length):
    p = np.array(weights) / sum(weights)
    llms = stage_schedule(p, length)
    assert llms.shape == (length,)
    counts = np.bincount(llms, minlength=len(p))
    assert (np.abs(counts - p * length) < 1.0 + 1e-9).all()
    assert (counts <= np.ceil(p * length - 1e-9)).all()
    prefix = np.cumsum(llms[:, None] == np.arange(len(p)), axis=0)
    even = counts * np.arange(1, length + 1)[:, None] / length
    assert (np.abs(prefix - even) <= len(p)).all()


# ------------------------------------------------------------------ instances


def stream_instance(spec, **changes):
    source = make_source(spec)
    usual = source.defaults
    rules = DeploymentRules(
        usual.horizon,
        usual.num_stages,
        usual.max_deployed,
        (usual.alpha,) * len(source.llms),
        usual.budget,
    )
    rules = dataclasses.replace(rules, **changes)
    retire = read_retirements(None, source, rules.horizon)
    rng = np.random.default_rng(0)
    return source, rules, build_instance(source, rules, rng, retire_query=retire)


def sample(instance, rules, llm, length=20_000):
    """Rewards and costs of one LLM, available from the start, over one long stage."""
    n = len(instance.base_reward)
    instance = dataclasses.replace(instance, arrival_query=np.zeros(n, dtype=np.int64))
    rules = dataclasses.replace(rules, horizon=length, num_stages=1, alpha=(1.0,) * n)
    dynamics = start(rules, instance, seed=llm)
    bits, lanes = np.zeros((length, n), dtype=np.bool_), np.zeros(length, dtype=np.int64)
    bits[:, llm] = True
    outcome = dynamics.step(bits, np.full(length, llm), lanes)
    return outcome.reward, outcome.cost


@pytest.mark.parametrize("spec", ["routerbench", "catalog", "synthetic"])
def test_empirical_means_match_the_truth_and_costs_their_range(spec):
    source, rules, instance = stream_instance(spec)
    low, high = cost_range(source, [])
    for llm in range(0, len(source.llms), max(1, len(source.llms) // 11)):
        reward, cost = sample(instance, rules, llm)
        for values, mean in (
            (reward, instance.mean_reward[0, llm]),
            (cost, instance.mean_cost[0, llm]),
        ):
            error = values.std() / math.sqrt(len(values))
            assert abs(values.mean() - mean) <= 4.5 * error + 1e-12
        assert low * (1 - 1e-12) <= cost.min() <= cost.max() <= high * (1 + 1e-12)


def test_routerbench_has_the_published_moments():
    source, rules, instance = stream_instance("routerbench")
    best = source.llms.index("gpt-4-1106-preview")
    assert instance.mean_reward[0, best] == 0.7814
    reward, cost = sample(instance, rules, best)
    assert set(np.unique(reward)) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert reward.std() == pytest.approx(0.357, abs=0.01)
    assert cost.std() == pytest.approx(0.00343, rel=0.1)  # clipping trims the tail
    assert instance.arrival_query.tolist() == [0] * 5 + [36_497 * k // 8 for k in range(1, 7)]
    assert source.llms[0] == "claude-v1"
    assert (np.diff(instance.reward_cdf, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("day", "count", "values"),
    [
        (300, 7, (0.356, 0.370, 0.390)),
        (450, 21, (0.483, 0.542, 0.625)),
        (600, 43, (0.676, 0.706, 0.726)),
        (750, 68, (0.832, 0.846, 0.853)),
        (855, 88, (0.850, 0.857, 0.867)),
    ],
)
def test_catalog_reproduces_the_reference_values(day, count, values):
    source, rules, instance = stream_instance("catalog")
    query = -(-(day - 300) * rules.horizon // 556)
    there = instance.available(query)
    assert there.sum() == count == len(source.catalog.released[:count])
    for budget, value in zip((1e-3, 2e-3, 5e-3), values, strict=True):
        best = deploy_opt(
            instance.mean_reward[0, there], instance.mean_cost[0, there], 0.4, budget, 5
        )
        assert best.status == "optimal"
        assert best.value == pytest.approx(value, abs=6e-4)


def test_catalog_prices_and_dates():
    source, rules, instance = stream_instance("catalog")
    assert len(source.llms) == 88
    llm = source.llms.index("o3-2025-04-16")
    assert instance.list_cost[0, llm] == pytest.approx((1000 * 10 + 300 * 40) / 1e6)
    changes = read_price_changes("recorded", source, rules.horizon)
    assert [change[0] for change in changes] == [llm]
    assert changes[0][2:] == (0.2, 0.2)
    retire = read_retirements(None, source, rules.horizon)
    rng = np.random.default_rng(0)
    cut = build_instance(source, rules, rng, price_changes=changes, retire_query=retire)
    assert cut.change_query.tolist() == [0, source.query_of("2025-06-10", rules.horizon)]
    np.testing.assert_allclose(cut.list_cost[:, llm], [0.022, 0.0044])
    np.testing.assert_array_equal(cut.mean_cost[0], instance.mean_cost[0])
    verdicts = stage_verdicts(instance, dataclasses.replace(rules, budget=3e-4))
    assert set(verdicts) == {"optimal", "over_budget"}
    assert verdicts == sorted(verdicts, reverse=True)  # only early stages are too dear


def test_a_price_cut_scales_the_same_draws():
    source, rules, instance = stream_instance("routerbench", horizon=50, num_stages=1)
    change = [{"llm": source.llms[0], "query": 20, "factor": 0.25}]
    changes = read_price_changes(change, source, rules.horizon)
    retire = read_retirements(None, source, rules.horizon)
    rng = np.random.default_rng(0)
    cut = build_instance(source, rules, rng, price_changes=changes, retire_query=retire)
    costs = []
    for chosen in (instance, cut):
        dynamics = start(rules, chosen)
        costs.append([ask(dynamics, [1] + [0] * 10, 0).cost for _ in range(50)])
    np.testing.assert_allclose(np.divide(*costs), [1.0] * 20 + [4.0] * 30)


def test_drift_moves_the_truth_and_the_rewards_follow():
    source = make_source("routerbench")
    rules = DeploymentRules(60_000, 3, 5, (1.0,) * 11, 1.0)
    retire = read_retirements(None, source, rules.horizon)
    instance = build_instance(
        source, rules, np.random.default_rng(4), retire_query=retire, drift=0.5
    )
    assert instance.mean_reward.shape == (3, 11)
    np.testing.assert_array_equal(instance.mean_reward[0], instance.base_reward)
    for llm in range(3):
        dynamics = start(rules, instance)
        for stage in range(3):
            np.testing.assert_array_equal(dynamics.mean_reward, instance.mean_reward[stage])
            bits = np.arange(11) == llm
            mean = dynamics.run_stage(bits, np.full(20_000, llm)).reward / 20_000
            assert mean == pytest.approx(instance.mean_reward[stage, llm], abs=0.015)
    assert (np.abs(np.diff(instance.mean_reward, axis=0)) > 0.02).any()


def test_late_arrival_hides_one_better_llm_among_the_newcomers():
    spec = {"source": "synthetic", "kind": "late_arrival", "num_llms": 6, "gap": 0.1}
    _, rules, instance = stream_instance(spec)
    assert instance.arrival_query.tolist() == [0] * 3 + [rules.horizon // 2] * 3
    assert instance.mean_reward[0, :3].tolist() == [0.5] * 3
    assert sorted(instance.mean_reward[0, 3:]) == [0.5, 0.5, 0.6]
    assert len(np.unique(instance.mean_cost)) == 1


def test_fixed_gap_does_not_shrink_with_the_horizon_and_its_newcomers_come_one_by_one():
    spec = {"source": "synthetic", "kind": "fixed_gap", "num_llms": 6, "gap": 0.3}
    found = set()
    for seed in range(20):
        source = make_source(spec)
        rules = DeploymentRules(50_000, 37, 4, (1.0,) * 6, 1e-3)
        instance = build_instance(
            source,
            rules,
            np.random.default_rng(seed),
            retire_query=read_retirements(None, source, rules.horizon),
        )
        later = instance.arrival_query[3:]
        assert instance.arrival_query[:3].tolist() == [0] * 3
        assert ((later > 0) & (later < 25_000)).all()
        assert len(set(later.tolist())) == 3
        mean = instance.mean_reward[0]
        assert sorted(mean) == [0.5] * 5 + [0.8]
        assert len(np.unique(instance.mean_cost)) == 1
        found.add(int(mean.argmax()))
    assert found == {3, 4, 5}


def test_clipped_lognormal_has_the_stated_mean():
    z = np.clip(np.random.default_rng(0).standard_normal(1_000_000), -3, 3)
    for s in (0.0, 0.3, 0.9):
        draws = np.exp(s * z)
        error = draws.std() / 1000
        assert abs(draws.mean() - lognormal_mean(np.array(s))) <= 4 * error + 1e-12


# -------------------------------------------------------------------- catalog

GOOD = {
    "id": "a",
    "release_date": "2024-01-01",
    "input_usd_per_mtok": 1.0,
    "output_usd_per_mtok": 2.0,
    "quality": 0.5,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_usd_per_mtok": None}, "price input_usd_per_mtok is missing"),
        ({"output_usd_per_mtok": float("nan")}, "output_usd_per_mtok=nan"),
        ({"output_usd_per_mtok": -1}, r"in \(0, inf\)"),
        ({"quality": 1.5}, r"quality=1.5 must be in \[0, 1\]"),
        ({"quality": None}, "quality=None"),
        ({"release_date": "2024-13-01"}, "release_date='2024-13-01'"),
        ({"release_date": "2023-01-01"}, "out of order"),
        ({"id": "a"}, "'a' appears more than once"),
        ({"id": ""}, "non-empty name"),
    ],
)
def test_catalog_errors_name_the_model(change, message):
    content = {"models": [GOOD, GOOD | {"id": "b"} | change]}
    with pytest.raises(ValueError, match=message):
        ModelCatalog.from_json(content, "mine.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "b"}, "'b' is not known"),
        ({"date": "2023-06-01"}, "before the release"),
        ({"before": [3, 4]}, r"prices are \[1.0, 2.0\]"),
        ({"after": [1]}, "two numbers"),
        ({"after": None}, "two numbers"),
    ],
)
def test_catalog_checks_price_changes(change, message):
    good = {"id": "a", "date": "2024-06-01", "before": [1.0, 2.0], "after": [0.5, 1.0]}
    assert ModelCatalog.from_json({"models": [GOOD], "price_changes": [good]}, "x").price_changes
    with pytest.raises(ValueError, match=message):
        ModelCatalog.from_json({"models": [GOOD], "price_changes": [good | change]}, "x")


def with_changes(*changes):
    """A catalog stream of one LLM at 10 and 20 USD, with (date, before, after) of its prices."""
    listed = [
        {"id": "a", "date": day, "before": [before, 2 * before], "after": [after, 2 * after]}
        for day, before, after in changes
    ]
    base = GOOD | {"input_usd_per_mtok": 10.0, "output_usd_per_mtok": 20.0}
    last = base | {"id": "b", "release_date": "2024-12-31"}
    return {"models": [base, last], "price_changes": listed}


def priced(content, tmp_path, horizon=366):
    """The source of a catalog, the instance with its recorded changes, and those changes."""
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps(content))
    source = make_source({"source": "catalog", "path": str(path), "start_day": 0})
    rules = DeploymentRules(horizon, 4, 2, (1.0, 1.0), 1.0)
    changes = read_price_changes("recorded", source, horizon)
    retire = read_retirements(None, source, horizon)
    rng = np.random.default_rng(0)
    instance = build_instance(source, rules, rng, price_changes=changes, retire_query=retire)
    return source, instance, changes


CUTS = [("2024-03-01", 10.0, 8.0), ("2024-06-01", 8.0, 2.0), ("2024-09-01", 2.0, 30.0)]


@settings(max_examples=20)
@given(order=st.permutations(CUTS))
def test_price_changes_of_one_llm_follow_each_other_in_any_order(order, tmp_path_factory):
    source, instance, changes = priced(with_changes(*order), tmp_path_factory.mktemp("catalog"))
    usd = (1000 * 1 + 300 * 2) / 1e6  # of a query, per USD of the input price
    np.testing.assert_allclose(instance.list_cost[:, 0], np.array([10, 8, 2, 30]) * usd)
    np.testing.assert_allclose(instance.list_cost[:, 1], 10 * usd)
    low, high = source.cost_bounds[0, 0], source.cost_bounds[1, 0]
    assert cost_range(source, changes) == pytest.approx((0.2 * low, 3.0 * high))
    assert instance.max_cost[0] == pytest.approx(3.0 * high)


def test_a_price_change_must_start_from_the_price_of_its_day():
    for changes in ([CUTS[0], ("2024-06-01", 10.0, 2.0)], [CUTS[1]], [CUTS[1], CUTS[2]]):
        with pytest.raises(ValueError, match=r"on 2024-06-01 the model's prices are \[.*\]"):
            ModelCatalog.from_json(with_changes(*changes), "mine.json")


def test_the_cost_range_follows_the_clock_not_the_list():
    source = make_source("routerbench")
    high = source.cost_bounds[1]
    llm = int(high.argmax())
    changes = [PriceChange(llm, 40, 0.1, 0.1), PriceChange(llm, 20, 10.0, 10.0)]
    assert cost_range(source, changes)[1] == pytest.approx(10.0 * high[llm])


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=200)
@given(key=st.sampled_from(sorted(GOOD)), value=JSON, rest=JSON)
def test_a_catalog_is_refused_or_sound(key, value, rest):
    for content in ({"models": [GOOD | {key: value}], "price_changes": rest}, rest):
        try:
            catalog = ModelCatalog.from_json(content, "fuzz")
        except ValueError:
            continue
        assert np.isfinite(catalog.prices).all()
        assert (catalog.prices > 0).all()
        assert ((catalog.quality >= 0) & (catalog.quality <= 1)).all()


def test_catalog_file_round_trip(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"models": [GOOD, GOOD | {"id": "b"}]}))
    source = make_source({"source": "catalog", "path": str(path), "start_day": 0})
    assert source.llms == ("a", "b")
    prints = {stream_fingerprint(name) for name in ("catalog", "routerbench", "synthetic")}
    prints.add(stream_fingerprint({"source": "catalog", "path": str(path)}))
    assert len(prints) == 4
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        ModelCatalog.load(str(path))
    with pytest.raises(ValueError, match="no such file"):
        ModelCatalog.load("nowhere.json")
