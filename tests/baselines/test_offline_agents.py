"""Agents trained on the offline split: what they are given, what they learn, and that it is frozen.

The split is made up: clusters of contexts, each with LLMs of its own.
"""

import json
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from scipy.special import expit, logit

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import QueueProblem, make_agent, registered_agents
from baselines.estimators.confidence import DIRECT_DIM
from baselines.queueing.base import Remembered
from baselines.queueing.contrastive import (
    NEGATIVES,
    TEMPERATURE,
    Projection,
    contrastive_loss,
    profiles,
    train_projection,
    training_rows,
)
from baselines.queueing.offline import fit_knn, fit_logistic, fit_ridge, prior_strength
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.problems.queueing.play import public_problem
from benchmarks.report import board_markdown
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.runner import provenance, run_cell
from benchmarks.run.store import Store
from benchmarks.score.scoring import load_board
from llmqueue_gym.workloads.embeddings import offline_rows
from llmqueue_gym.workloads.pool import OfflineData

ROUTERS = [
    *("offline-knn", "offline-ridge", "offline-logistic", "offline-boosting"),
    "offline-ridge-mixed",
]
SMALL = {"offline-boosting": {"trees": 10}, "ACQB-CL": {"epochs": 3, "hidden": 4}}
NAMES = [*ROUTERS, "ACQB-CL"]


def clustered(rows=120, llms=4, dim=6, seed=0):
    """Offline split in which LLM j is good on cluster j and bad elsewhere."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(llms, size=rows)
    contexts = 0.1 * rng.normal(size=(rows, dim)) + np.eye(llms, dim)[cluster]
    rates = np.where(np.arange(llms) == cluster[:, None], 0.9, 0.15)
    return OfflineData(contexts.astype(np.float32), logit(rates)), cluster


def task(data, size=1):
    llms, dim = data.utilities.shape[1], data.contexts.shape[1]
    return QueueProblem(llms, size, dim, 8, 0.5, 200, data)


def observe(contexts, window=8):
    shown = np.zeros((window, contexts.shape[1]), np.float32)
    shown[: len(contexts)] = contexts
    waiting = (np.arange(window) < len(contexts)).astype(np.int8)
    zero = np.zeros(window, np.float32)
    return {
        "contexts": shown,
        "waiting": waiting,
        "retrials": zero,
        "age": np.arange(window, dtype=np.float32)[::-1] * waiting,
        "wait": zero,
        "queue_length": np.array([len(contexts)], np.float32),
        "feedback": np.int64(0),
    }


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_sends_every_cluster_to_its_llm(name):
    data, _ = clustered()
    agent = make_agent(name, task(data), 0, **SMALL.get(name, {}))
    fresh, truth = clustered(seed=1)
    rates = agent.success_rates(fresh.contexts)
    assert rates.shape == fresh.utilities.shape
    assert np.array_equal(rates.argmax(axis=1), truth)
    assert np.mean(np.abs(rates - expit(fresh.utilities))) < (0.35 if "boosting" in name else 0.1)


def test_with_the_truth_as_its_predictions_a_router_is_the_myopic_oracle():
    data, _ = clustered()
    agent = make_agent("offline-knn", task(data, 2), 0, neighbours=1, heed_retrials=False)
    odds = np.exp(data.utilities)
    best = np.sort(odds, axis=1)[:, -2:].sum(axis=1)
    for start in range(0, 100, 7):
        action = agent.act(observe(data.contexts[start : start + 7]))
        row = start + action[0]
        assert best[row] == pytest.approx(best[start : start + 7].max(), rel=1e-6)
        assert odds[row, action[1:]].sum() == pytest.approx(best[row], rel=1e-6)


def test_a_retrial_lowers_the_predictions_of_that_query_until_it_is_kept():
    data, _ = clustered()
    agent = make_agent("offline-ridge", task(data), 0)
    contexts = data.contexts[:2]
    before = agent.success_rates(contexts)
    observation = observe(contexts)
    action = np.array([0, 1])
    agent.update(observation, action, -1.0, observation | {"feedback": np.int64(1)}, {})
    after = agent.success_rates(contexts)
    factor = agent.strength / (agent.strength + 1.0)
    assert after[0, 1] == pytest.approx(before[0, 1] * factor)
    assert np.delete(after, 1, axis=1)[0] == pytest.approx(np.delete(before, 1, axis=1)[0])
    assert after[1] == pytest.approx(before[1])
    agent.update(observation, action, -1.0, observation | {"feedback": np.int64(3)}, {})
    assert agent.success_rates(contexts) == pytest.approx(before)


def test_the_prior_is_as_strong_as_the_predictions_are_good():
    rng = np.random.default_rng(0)
    x = np.ones((4000, 1))
    for strength in (0.5, 8.0):
        rates = rng.beta(0.4 * strength, 0.6 * strength, (4000, 2))
        assert prior_strength(x, rates, fit_ridge) == pytest.approx(strength, rel=0.1)
    assert prior_strength(x, np.full((4000, 2), 0.4), fit_ridge) == 1000.0


def test_models_have_their_closed_forms():
    rng = np.random.default_rng(0)
    contexts, rates = rng.normal(size=(30, 3)), rng.uniform(0.1, 0.9, (30, 2))
    assert fit_knn(contexts, rates, 1)(contexts) == pytest.approx(rates)
    assert fit_knn(contexts, rates, 99)(contexts) == pytest.approx(
        np.tile(rates.mean(axis=0), (30, 1))
    )
    theta = np.array([[1.0, -2.0, 0.5], [0.3, 0.0, 1.0]])
    soft = expit(contexts @ theta.T)
    assert fit_logistic(contexts, soft, 1e6)(contexts) == pytest.approx(soft, abs=1e-3)
    assert fit_ridge(contexts, contexts @ theta.T)(contexts) == pytest.approx(
        contexts @ theta.T, abs=1e-2
    )


@pytest.mark.parametrize("name", NAMES)
def test_play_is_legal_and_follows_the_seed(name):
    if name == "ACQB-CL":
        pytest.importorskip("torch", reason="needs the rl extra")
    data, _ = clustered()
    rng = np.random.default_rng(0)
    waits = [
        data.contexts[rng.integers(len(data.contexts), size=n)] for n in rng.integers(0, 8, 40)
    ]
    runs = []
    for _ in range(2):
        agent = make_agent(name, task(data, 2), 3, **SMALL.get(name, {}))
        actions = []
        for queue, following in pairwise(waits):
            observation = observe(queue)
            action = agent.act(observation)
            slot, *llms = action.tolist()
            assert 0 <= slot < max(1, len(queue))
            assert len(set(llms)) == 2
            assert all(0 <= llm < 4 for llm in llms)
            answer = observe(following) | {"feedback": np.int64(len(queue) > 0)}
            agent.update(observation, action, -1.0, answer, {"arrived": True})
            actions.append(action.tolist())
        runs.append(actions)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", NAMES)
def test_without_an_offline_split_the_agent_says_what_it_needs(name):
    with pytest.raises(ValueError, match="trains on queries that never arrive"):
        make_agent(name, QueueProblem(4, 1, 6, 8, 0.5, 200), 0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("offline-ridge", {"predictor": "rigde"}),
        ("offline-knn", {"neighbours": 0}),
        ("offline-logistic", {"inverse_ridge": 0.0}),
        ("offline-boosting", {"trees": 2.5}),
        ("ACQB-CL", {"share": 0.0}),
        ("ACQB-CL", {"hidden": 1}),
        ("ACQB-CL", {"held_out": 1.0}),
        ("ACQB-CL", {"epochs": -1}),
        ("ACQB-CL", {"estimator": "mlp"}),
    ],
)
def test_bad_settings_are_named(name, settings):
    data, _ = clustered()
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_agent(name, task(data), 0, **{**SMALL.get(name, {}), **settings})


# --- the contrastive projection -------------------------------------------------------------------


def test_profiles_are_centred_unit_rows_and_blind_to_scale():
    rates = np.random.default_rng(0).uniform(0.1, 0.9, (20, 5))
    found = profiles(logit(rates))
    assert found.mean(axis=1) == pytest.approx(np.zeros(20), abs=1e-12)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(20))
    assert profiles(logit(0.2 + 0.5 * rates)) == pytest.approx(found)
    assert not profiles(np.full((3, 4), 0.7)).any()


def test_every_winning_llm_has_its_minimum_of_rows():
    rng = np.random.default_rng(0)
    utilities = rng.normal(size=(400, 4)) + np.array([1.5, 0.0, 0.0, -9.0])
    utilities[:5, 3] = 99.0
    rows = training_rows(utilities, 0.1, 12, np.random.default_rng(1))
    wins = np.bincount(utilities[rows].argmax(axis=1), minlength=4)
    assert (wins[:3] >= 12).all()
    assert wins[3] == 5  # all there are
    assert 40 <= len(rows) <= 40 + 12 + 12 + 5
    assert len(training_rows(utilities, 0.1, 0, np.random.default_rng(1))) == 40


def test_the_loss_is_that_of_the_nearest_positive_against_the_negatives():
    torch = pytest.importorskip("torch", reason="needs the rl extra")
    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(9, 5)), rng.normal(size=(9, 3))
    target = profiles(rng.normal(size=(9, 4)))
    found = contrastive_loss(*(torch.tensor(a, dtype=torch.float64) for a in (z, x, target)))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    scores, alike = unit @ unit.T / TEMPERATURE, target @ target.T
    losses = []
    for i in range(9):
        others = np.delete(np.arange(9), i)
        positive = others[alike[i, others] > 0.7]
        negative = others[alike[i, others] < 0.0][:NEGATIVES]
        if positive.size and negative.size:
            best = positive[alike[i, positive].argmax()]
            total = np.exp(scores[i, best]) + np.exp(scores[i, negative]).sum()
            losses.append(np.log(total) - scores[i, best])
    assert losses
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)


def test_rows_without_a_pair_are_skipped():
    torch = pytest.importorskip("torch", reason="needs the rl extra")
    same = torch.ones((4, 3)) / 3**0.5
    assert contrastive_loss(torch.randn(4, 2), torch.randn(4, 3), same) is None


def test_training_brings_alike_queries_together_and_follows_its_seed():
    pytest.importorskip("torch", reason="needs the rl extra")
    data, cluster = clustered(rows=200, dim=12)
    noise = 1.5 * np.random.default_rng(5).normal(size=(200, 8))  # hides the cluster
    noisy = OfflineData(np.hstack([data.contexts[:, :4], noise]).astype(np.float32), data.utilities)
    settings = {"hidden": 8, "share": 1.0, "seed": 0}
    trained = train_projection(noisy, epochs=150, **settings)
    untrained = train_projection(noisy, epochs=0, **settings)

    def margin(projection):
        z = projection(noisy.contexts)[:, :-1]
        cosine, same = z @ z.T, cluster[:, None] == cluster
        return cosine[same].mean() - cosine[~same].mean()

    assert margin(trained) > 2 * margin(untrained)
    again = train_projection(noisy, epochs=150, **settings)
    assert np.array_equal(trained(noisy.contexts), again(noisy.contexts))
    other = train_projection(noisy, epochs=150, **{**settings, "seed": 1})
    assert not np.array_equal(trained(noisy.contexts), other(noisy.contexts))


def test_the_epoch_that_is_kept_is_the_best_on_the_held_out_rows():
    pytest.importorskip("torch", reason="needs the rl extra")
    rng = np.random.default_rng(0)
    noise = OfflineData(rng.normal(size=(80, 6)).astype(np.float32), rng.normal(size=(80, 4)))
    settings = {"hidden": 8, "share": 1.0, "seed": 0}

    def same(**changes):
        short, long = (train_projection(noise, epochs=n, **settings, **changes) for n in (200, 400))
        return np.array_equal(short(noise.contexts), long(noise.contexts))

    assert same()  # there is nothing to learn: the best epoch is an early one, however long it runs
    assert not same(held_out=0.0)


def test_the_projection_is_the_network_and_has_unit_norm():
    torch = pytest.importorskip("torch", reason="needs the rl extra")
    data, _ = clustered()
    projection = train_projection(data, hidden=4, epochs=2, intercept=False)
    network = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4), torch.nn.LayerNorm(4)
    )
    network.load_state_dict({k: torch.from_numpy(v) for k, v in projection.weights.items()})
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network(torch.from_numpy(data.contexts)))
    np.testing.assert_allclose(projection(data.contexts), expected.numpy(), atol=1e-5)
    with_constant = train_projection(data, hidden=4, epochs=2)(data.contexts)
    assert np.linalg.norm(with_constant, axis=1) == pytest.approx(np.ones(120), rel=1e-5)
    assert with_constant[:, -1] == pytest.approx(np.full(120, 0.5**0.5))
    assert projection.dim == 4


def test_a_query_is_projected_once_and_the_ellipsoids_know_it_again(monkeypatch):
    pytest.importorskip("torch", reason="needs the rl extra")
    data, _ = clustered(dim=70)
    agent = make_agent("ACQB-CL", task(data, 2), 0, epochs=0, exploration_rate=0.0)
    assert agent.projection.model.dim > DIRECT_DIM
    projected, known = [], []
    project, shrink = Projection.__call__, agent.confidence.observe

    def counting(self, contexts):
        projected.extend(context.tobytes() for context in contexts)
        return project(self, contexts)

    def looking(shown, context):
        kept = agent.confidence
        known.append((kept._contexts[kept._waiting] == context).all(axis=1).any())
        shrink(shown, context)

    monkeypatch.setattr(Projection, "__call__", counting)
    monkeypatch.setattr(agent.confidence, "observe", looking)
    for slot in range(60):  # batches of 1 to 6 round differently
        observation = observe(data.contexts[: 1 + slot % 6])
        action = agent.act(observation)
        answer = observation | {"feedback": np.int64(1)}
        agent.update(observation, action, -1.0, answer, {"arrived": True})
    assert sorted(projected) == sorted(context.tobytes() for context in data.contexts[:6])
    assert len(known) == 60
    assert all(known)


def test_what_is_remembered_is_what_the_model_says_and_bounded(monkeypatch):
    pytest.importorskip("torch", reason="needs the rl extra")
    data, _ = clustered(dim=70)
    projection = train_projection(data, epochs=0)
    monkeypatch.setattr("baselines.queueing.base.MAX_REMEMBERED", 10)
    remembered = Remembered(projection)
    for start in [*range(0, 100, 3), 0]:
        contexts = data.contexts[start : start + 7]
        np.testing.assert_allclose(remembered(contexts), projection(contexts), atol=1e-6)
        np.testing.assert_array_equal(remembered(contexts), remembered(contexts.copy()))
        assert len(remembered._rows) <= 10 + 7


def test_training_leaves_the_global_generator_alone():
    torch = pytest.importorskip("torch", reason="needs the rl extra")
    data, _ = clustered()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train_projection(data, hidden=4, epochs=1)
    assert torch.equal(torch.rand(3), expected)


# --- what they are given --------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, own_cache):
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    path = tmp_path / "queries.jsonl"
    with path.open("w") as file:
        for i in range(200):
            text = f"{i} " + " ".join(rng.choice(words, 8))
            scores = dict(zip("abc", rng.uniform(0, 1, 3).tolist(), strict=True))
            file.write(json.dumps({"query": text, "scores": scores}) + "\n")
    return path


def workload(table):
    return {
        "source": "table",
        "path": str(table),
        "text": "query",
        "quality": "scores",
        "context_dim": 8,
    }


def test_the_offline_split_holds_the_offline_texts_only(table):
    env = gym.make("LLMQueue-v0", workload=workload(table), load=0.8, assortment_size=1)
    env.reset(seed=0)
    offline = env.unwrapped.offline
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    kept_back = offline_rows([row["query"] for row in rows])
    assert len(offline.contexts) == len(offline.utilities) == kept_back.sum()
    scores = np.array([[row["scores"][llm] for llm in "abc"] for row in rows])
    assert np.array_equal(offline.utilities.argsort(), scores[kept_back].argsort())
    arriving = {row.tobytes() for row in env.unwrapped.dynamics.contexts[:-1]}
    assert not arriving & {row.tobytes() for row in offline.contexts}
    assert public_problem(env, 10).offline is None
    assert public_problem(env, 10, pretrained=True).offline is offline


def test_synthetic_queries_have_no_offline_split():
    assert gym.make("LLMQueue-v0").unwrapped.offline is None


class Spy:
    """An agent that says what it was given."""

    kind = "queueing"
    given: list[object] = []  # noqa: RUF012 - one process

    def __init__(self, problem, seed):
        Spy.given.append(problem.offline)

    def act(self, observation):
        return np.array([0, 0])

    def update(self, *args):
        pass


def test_only_pretrained_agents_are_given_the_offline_split(table):
    name = f"{__name__}:Spy"
    document = {
        "seeds": 1,
        "agents": [
            {"name": name, "label": "ignorant"},
            {"name": name, "label": "trained", "protocol": "pretrained"},
            *ROUTERS[:2],
        ],
        "task": [
            {
                "name": "t",
                "env": "LLMQueue-v0",
                "horizon": 30,
                "kwargs": {"workload": workload(table), "load": 0.8, "assortment_size": 1},
            }
        ],
    }
    cells = {c.spec["agent"]["label"]: c for c in make_plan(parse_suite("s", document)).cells}
    assert cells["offline-knn"].spec["protocol"] == "pretrained"
    assert "never arrive" in cells["offline-knn"].spec["agent"]["trained_on"]
    assert "trained_on" not in cells["trained"].spec["agent"]
    Spy.given.clear()
    run_cell(cells["ignorant"].spec, cells["ignorant"].kwargs)
    run_cell(cells["trained"].spec, cells["trained"].kwargs)
    assert Spy.given[0] is None
    assert isinstance(Spy.given[1], OfflineData)
    first = run_cell(cells["offline-knn"].spec, cells["offline-knn"].kwargs)
    again = run_cell(cells["offline-knn"].spec, cells["offline-knn"].kwargs)
    assert first["metrics"] == again["metrics"]


def test_a_note_under_the_table_names_the_agents_trained_offline(table, tmp_path):
    arguments = {"workload": workload(table), "load": 0.8, "assortment_size": 1}
    task = {"name": "t", "env": "LLMQueue-v0", "horizon": 20, "kwargs": arguments}
    agents = ["offline-knn", {"name": "greedy", "label": "raw", "protocol": "pretrained"}]
    suite = parse_suite("s", {"seeds": 1, "agents": agents, "task": [task]})
    store = Store(tmp_path / "results")
    execute(make_plan(suite), store, LocalEngine(1), provenance("test"))
    page = board_markdown(load_board(store))
    assert "with the quality of every LLM on them: offline-knn." in page


def test_every_registered_offline_agent_is_tested_here():
    found = {s.name for s in registered_agents() if "offline" in s.name or "contrast" in s.target}
    assert found == set(NAMES)
