"""A held-out variant of a serving problem: the same problem for who learns, another by heart."""

import numpy as np
import pytest

from llmqueue_gym.serving.disguised import MOVED, ODDS_SHIFT
from llmqueue_gym.serving.oracles import Optimum, c_mu_theta, max_weight
from llmqueue_gym.serving.presets import PRESETS
from llmqueue_gym.serving.task import ServingTask

CAP = 8
RULES = (max_weight, c_mu_theta)
"""What somebody plays who has learnt the figures."""


def instance(preset, disguise=None):
    return ServingTask(preset, disguise=disguise).draw(np.random.default_rng(0))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_variant_is_the_public_problem_in_another_order_with_figures_a_little_off(preset):
    public, private = instance(preset), instance(preset, 9)
    llm = [public.llms.index(name) for name in private.llms]
    assert sorted(llm) == list(range(public.num_llms))
    assert np.array_equal(public.list_price[llm], private.list_price)
    assert np.array_equal(public.llm_arrives[llm], private.llm_arrives)
    fleets = [
        sorted(zip(one.places, [("", *one.llms)[host + 1] for host in one.hosts], strict=True))
        for one in (public, private)
    ]
    assert fleets[0] == fleets[1]
    for name, bound in (("impatience", MOVED), ("base_seconds", MOVED), ("each_seconds", MOVED)):
        before, after = (np.sort(getattr(one, name).ravel()) for one in (public, private))
        assert np.all(after <= before.max() * (1 + bound) + 1e-12)
        assert np.all(after >= before.min() * (1 - bound) - 1e-12)
    kind = [public.kinds.index(name) for name in private.kinds] or slice(None)
    before, after = public.success[kind][:, llm], private.success
    odds = (after * (1 - before)) / np.maximum(before * (1 - after), 1e-300)
    assert np.all(
        (before == after) | (np.abs(np.log(np.maximum(odds, 1e-300))) <= ODDS_SHIFT + 1e-6)
    )
    assert private.share.sum() == pytest.approx(1.0)
    assert (
        np.unique(private.base_seconds, axis=0).shape
        == np.unique(public.base_seconds, axis=0).shape
    )
    if "load" in PRESETS[preset]:
        assert private.load == pytest.approx(public.load)
    near = [np.asarray(one.contexts @ one.contexts.T) for one in (public, private)]
    np.testing.assert_allclose(near[0], near[1], atol=1e-4)  # rotated: what is alike stays alike


@pytest.mark.parametrize("preset", ["tiny-pair", "slow-server", "impatient"])
def test_who_knows_the_public_table_by_heart_gains_nothing_from_it(preset):
    """The public optimum, played by the numbers of kinds and replicas, costs more than a rule."""
    public = Optimum(instance(preset), CAP)
    costs = []
    for number in range(8):
        private = Optimum(instance(preset, number), CAP)
        rules = [private.chain.evaluate(private.chain.follow(rule))[0] for rule in RULES]
        by_heart = private.chain.evaluate(public.policy)[0]
        assert private.cost <= min(*rules, by_heart) + 1e-9
        costs.append((by_heart, min(rules)))
    assert public.chain.evaluate(public.policy)[0] == pytest.approx(public.cost)
    by_heart, by_rule = np.mean(costs, axis=0)
    assert by_heart > by_rule
