"""Laws of the retrial queue: choice probabilities, streams, coupling, copies.

`test_queue_second_version` holds every slot against lists.
"""

import copy
import pickle
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmqueue_gym.queueing.choice import best_assortment, choice_probabilities, departure_rate
from llmqueue_gym.queueing.lanes import MAX_SLOTS, Population, QueueDynamics
from llmqueue_gym.streams import BLOCK, UniformStreams


def population(num_queries=64, dim=3, num_llms=5, size=2, seed=0):
    rng = np.random.default_rng(seed)
    contexts = rng.uniform(-1, 1, (num_queries, dim)).astype(np.float32)
    return Population(contexts, rng.normal(size=(num_queries, num_llms)), size)


def dynamics(pop, rate, lanes=1, window=8, seed=0):
    queue = QueueDynamics(lanes, window, pop.assortment_size, pop.contexts.shape[1])
    streams = [np.random.default_rng(seed + lane).spawn(3) for lane in range(lanes)]
    queue.reset(range(lanes), [pop] * lanes, [rate] * lanes, streams)
    return queue


def play(queue, slot, llms):
    """Run a slot of the only lane; return arrived, served and the LLM kept."""
    outcome = queue.step(np.array([[slot, *llms]]))
    return outcome.arrived[0], outcome.served[0], outcome.kept_llm[0]


def acted(slots, llms):
    return np.column_stack([slots, llms])


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=6))
def test_choice_probabilities_are_a_distribution_with_the_logit_ratios(utilities):
    p = choice_probabilities(utilities)
    assert p.sum() == pytest.approx(1.0)
    assert np.all(p >= 0)
    moderate = np.clip(utilities, -30, 30)
    q = choice_probabilities(moderate)
    np.testing.assert_allclose(np.log(q[1:] / q[0]), moderate, atol=1e-9)
    assert departure_rate(np.exp(moderate)) == pytest.approx(1 - q[0], abs=1e-12)


def test_best_assortment_equals_enumeration_of_all_subsets():
    odds = np.exp(np.random.default_rng(0).normal(size=(40, 6)))
    for size in (1, 2, 3):
        llms, rate = best_assortment(odds, size)
        subsets = list(combinations(range(6), size))
        values = np.stack([departure_rate(odds[:, list(s)]) for s in subsets], axis=1)
        np.testing.assert_allclose(rate, values.max(axis=1))
        for row, best in zip(llms, values.argmax(axis=1), strict=True):
            assert set(row) == set(subsets[best])


def test_a_best_assortment_has_the_best_first_and_the_lower_index_of_equals():
    odds = np.array([[1.0, 3.0, 1.0, 3.0, 2.0], [4.0, 4.0, 4.0, 4.0, 4.0]])
    for size in range(1, 6):
        llms, _ = best_assortment(odds, size)
        assert llms.tolist() == [[1, 3, 4, 0, 2][:size], [0, 1, 2, 3, 4][:size]]


def draw(streams):
    near, place = streams.advance()
    return near[place].copy()


def test_streams_do_not_depend_on_the_block_or_the_other_lanes():
    streams = UniformStreams(2, 3)
    for lane in range(3):
        streams.reset(lane, np.random.default_rng(lane).spawn(2))
    first = [draw(streams) for _ in range(100)]
    streams.reset(1, np.random.default_rng(9).spawn(2))  # in the middle of a block
    later = [draw(streams) for _ in range(2 * BLOCK)]
    whole = np.array(first + later)  # (slots, streams, lanes)
    for lane in (0, 2):
        for stream, generator in enumerate(np.random.default_rng(lane).spawn(2)):
            np.testing.assert_array_equal(whole[:, stream, lane], generator.random(len(whole)))
    for stream, generator in enumerate(np.random.default_rng(9).spawn(2)):
        np.testing.assert_array_equal(whole[100:, stream, 1], generator.random(2 * BLOCK))


@pytest.mark.parametrize("window", [1, 4, 64])
def test_the_tail_is_the_last_that_a_window_without_end_shows(window):
    queue, wide = (dynamics(population(), 0.9, window=size, seed=3) for size in (window, 2000))
    rng = np.random.default_rng(0)
    for _ in range(1500):
        slot, llms = int(rng.integers(window)), rng.integers(0, 5, 2).tolist()
        play(queue, slot, llms)
        play(wide, slot, llms)
        if length := int(queue.queue_length[0]):
            assert queue.tail_query() == wide.window_queries[0, length - 1]
    assert length > 4


def test_arrivals_and_populations_do_not_depend_on_the_actions():
    pop = population()
    runs = []
    for action_seed in (0, 1):
        queue = dynamics(pop, 0.5, lanes=8, window=64, seed=0)
        rng = np.random.default_rng(action_seed)
        arrived = []
        for _ in range(50):
            slots, llms = rng.integers(0, 64, 8), rng.integers(0, 5, (8, 2))
            arrived.append(queue.step(acted(slots, llms)).arrived)
        runs.append(np.array(arrived))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_an_outcome_worse_for_one_set_is_a_retrial_for_it_too():
    """One uniform decides: whoever retries with the better set also retries with the worse."""
    pop = population(num_queries=1, seed=4)
    order = np.argsort(pop.utilities[0])
    lanes = 256
    retried = []
    for llms in (order[:2], order[-2:]):
        queue = dynamics(pop, 1.0, lanes, window=1, seed=0)
        slots = np.zeros(lanes, dtype=np.int64)
        queue.step(acted(slots, np.tile(llms, (lanes, 1))))
        retried.append(queue.step(acted(slots, np.tile(llms, (lanes, 1)))).retried)
    worse, better = retried
    assert np.all(worse[better])
    assert worse.sum() > better.sum()


def test_the_oracle_takes_the_best_of_all_visible_pairs_by_enumeration():
    pop = population(size=2)
    queue = dynamics(pop, 0.9, lanes=6, window=5, seed=1)
    rng = np.random.default_rng(0)
    pairs = np.array(list(combinations(range(5), 2)))
    rates = departure_rate(pop.odds[:, pairs])  # (P, pairs)
    for _ in range(200):
        slots, llms = queue.best_actions()
        for lane, queries in enumerate(queue.window_queries):
            if (waiting := queries[queries >= 0]).size:
                chosen = departure_rate(pop.odds[queries[slots[lane]], llms[lane]])
                assert chosen == pytest.approx(rates[waiting].max())
        queue.step(acted(rng.integers(0, 5, 6), rng.integers(0, 5, (6, 2))))
    assert pop.capacity == pytest.approx(1 / np.mean(1 / pop.best[1]))
    np.testing.assert_allclose(queue.load, 0.9 / pop.capacity)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_steps_like_the_original_and_apart_from_it(lanes, duplicate):
    rng = np.random.default_rng(0)
    queue = dynamics(population(), 0.9, lanes, window=4, seed=1)
    actions = [(rng.integers(0, 4, lanes), rng.integers(0, 5, (lanes, 2))) for _ in range(120)]
    for slots, llms in actions[:60]:
        queue.step(acted(slots, llms))
    twin = duplicate(queue)
    before = {key: value.copy() for key, value in queue.observe().items()}
    seen = []
    for slots, llms in actions[60:]:
        twin.step(acted(slots, llms))
        seen.append(twin.observe())
    for key, value in queue.observe().items():
        np.testing.assert_array_equal(value, before[key])
    for (slots, llms), expected in zip(actions[60:], seen, strict=True):
        queue.step(acted(slots, llms))
        for key, value in queue.observe().items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_lanes_may_leave_a_shared_population_one_by_one():
    one, other = population(seed=1), population(seed=2)
    queue = dynamics(one, 0.5, lanes=3)
    assert len(queue.contexts) == 65
    queue.reset([1], [other], [0.5], [np.random.default_rng(0).spawn(3)])
    for lane, pop in enumerate((one, other, one)):
        rows = slice(64 * lane, 64 * (lane + 1))
        np.testing.assert_array_equal(queue.contexts[rows], pop.contexts)
        np.testing.assert_array_equal(queue.odds[rows], pop.odds)
        np.testing.assert_array_equal(queue.best_rate[rows], pop.best[1])
    assert not queue.contexts[-1].any()
    queue.reset([0, 1, 2], [one] * 3, [0.5] * 3, [np.random.default_rng(0).spawn(3)] * 3)
    assert len(queue.contexts) == 65


def test_ages_are_exact_beyond_16_bits():
    queue = dynamics(population(), 1.0, window=2)
    for slot in range(1, 66_001):  # the second query is served always, the first one never
        play(queue, 1, [0, 1])
        if slot % 11_000 == 0:
            assert queue.observe()["age"][0, 0] == queue.slot[0] - 1
            assert queue.observe()["wait"][0, 0] == queue.slot[0] - 1


def test_odds_that_overflow_are_refused():
    with pytest.raises(ValueError, match="utilities"):
        Population(np.zeros((1, 1), dtype=np.float32), np.array([[800.0]]), 1)
    with pytest.raises(ValueError, match="utilities"):
        Population(np.zeros((1, 1), dtype=np.float32), np.array([[np.nan]]), 1)


def test_an_episode_ends_before_stamps_lose_their_exactness():
    queue = dynamics(population(), 1.0)
    queue.slot[0] = MAX_SLOTS - 1
    play(queue, 0, [0, 1])
    with pytest.raises(OverflowError, match="reset"):
        play(queue, 0, [0, 1])
