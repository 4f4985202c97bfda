"""A disguise is a variant of fixed data: the same number makes the same, and nobody knows it."""

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.held_out import HeldOut
from benchmarks.plan.suite import parse_suite
from llmqueue_gym.deployment.streams import make_source
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads import fingerprint, make_workload

SYNTHETIC = {"source": "synthetic", "num_llms": 5, "context_dim": 6}


def drawn(**options):
    workload = make_workload(
        {**SYNTHETIC, **options}, num_llms=None, context_dim=None, assortment_size=1
    )
    return workload, workload.draw(np.random.default_rng(3))


def test_a_disguised_workload_is_the_public_one_but_for_order_rotation_and_noise():
    public, plain = drawn()
    private, moved = drawn(disguise=1)
    order = [public.llms.index(name) for name in private.llms]
    assert sorted(order) == list(range(5))
    assert order != list(range(5))
    for i, j in enumerate(order):  # utilities of the same LLM, a little off
        own = np.corrcoef(moved.utilities[:, i], plain.utilities[:, j])[0, 1]
        assert own > 0.9
    before, after = (np.asarray(one.contexts @ one.contexts.T).ravel() for one in (plain, moved))
    assert np.corrcoef(before, after)[0, 1] > 0.9  # a rotation keeps what is alike alike
    assert np.corrcoef(plain.contexts.ravel(), moved.contexts.ravel())[0, 1] < 0.9
    assert np.abs(moved.utilities).max() <= np.abs(plain.utilities).max()


def test_the_same_number_makes_the_same_variant_and_another_another():
    for again, same in ((1, True), (2, False)):
        first, second = drawn(disguise=1), drawn(disguise=again)
        assert (first[0].llms == second[0].llms) == same
        assert np.array_equal(first[1].contexts, second[1].contexts) == same
        assert np.array_equal(first[1].utilities, second[1].utilities) == same
    assert fingerprint({**SYNTHETIC, "disguise": 1}) == fingerprint(SYNTHETIC)
    with pytest.raises(UsageError, match="disguise=-1"):
        drawn(disguise=-1)


@pytest.mark.parametrize("instance", ["catalog", "routerbench", "synthetic"])
def test_a_disguised_stream_can_be_played_and_has_the_same_llms_elsewhere(instance):
    envs = [
        gym.make("LLMDeploy-v0", instance=one, horizon=200, disable_env_checker=True).unwrapped
        for one in (instance, {"source": instance, "disguise": 5})
    ]
    for env in envs:
        env.reset(seed=0)
    public, private = (env.dynamics.instance() for env in envs)
    order = [envs[0].llms.index(name) for name in envs[1].llms]
    assert order != sorted(order)
    for name in ("arrival_query", "retire_query"):
        assert np.array_equal(getattr(public, name)[order], getattr(private, name))
    assert np.array_equal(public.mean_cost[:, order], private.mean_cost)
    gap = np.abs(public.mean_reward[:, order] - private.mean_reward)
    assert 0 < gap.max() <= 0.03
    # The distribution of rewards and their mean say the same: sum of P(reward > atom) steps.
    steps = np.diff(private.reward_atoms)
    mean = ((1 - private.reward_cdf) * steps).sum(axis=1) + private.reward_atoms[0]
    assert mean == pytest.approx(private.base_reward, abs=1e-6)
    assert private.mean_reward[0] == pytest.approx(private.base_reward)


def test_price_changes_follow_their_llm():
    public, private = (
        make_source(one) for one in ("catalog", {"source": "catalog", "disguise": 3})
    )
    for mine, theirs in zip(
        private.recorded_price_changes(9000), public.recorded_price_changes(9000), strict=True
    ):
        assert private.llms[mine.llm] == public.llms[theirs.llm]
        assert mine._replace(llm=0) == theirs._replace(llm=0)


def test_a_plan_of_held_out_seeds_is_one_of_held_out_variants(tmp_path):
    def plan(secret):
        task = {"env": "LLMDeploy-v0", "horizon": 50, "kwargs": {"instance": "catalog"}}
        tasks = [{**task, "name": name} for name in ("a", "b")]
        tasks.append({"env": "LLMQueue-v0", "horizon": 50, "name": "drawn-anew"})
        serve = {"env": "LLMServe-v0", "horizon": 50, "kwargs": {"preset": "tiny-pair"}}
        tasks.append({**serve, "name": "serve"})
        suite = parse_suite("s", {"seeds": 1, "agents": [], "task": tasks})
        cells = make_plan(suite, held_out=secret and HeldOut(tmp_path / "none", secret)).cells
        return {cell.spec["task"]["name"]: cell.spec["task"]["kwargs"] for cell in cells}

    public, held, again = plan(None), plan(b"x" * 20), plan(b"x" * 20)
    assert held == again
    assert public["a"] == {"instance": "catalog"}
    assert held["drawn-anew"] == public["drawn-anew"]
    numbers = {held[name]["instance"]["disguise"] for name in ("a", "b")}
    assert len(numbers) == 2
    assert held["serve"].keys() - public["serve"].keys() == {"disguise"}
    assert plan(b"y" * 20)["a"] != held["a"]
