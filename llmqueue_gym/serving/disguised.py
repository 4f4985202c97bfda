"""A held-out variant of a serving problem: rows in a private order, figures a little off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llmqueue_gym.serving.instance import Floats, ServingInstance
from llmqueue_gym.workloads.disguise import llm_order

ODDS_SHIFT = 0.25
"""Most by which the log-odds that a user keeps an answer are moved."""

MOVED = 0.1
"""Largest share by which speeds, shares and patience are moved."""


def disguised(instance: ServingInstance, number: int, drawn: bool) -> ServingInstance:
    """Return a variant of an instance.

    LLMs and replicas stand in a private order; replicas that were alike still are. Kinds of query
    do so too; the contexts of queries that are drawn are rotated, and an LLM is better or worse for
    all of them.

    Parameters
    ----------
    instance : ServingInstance
    number : int
        The disguise; see `llmqueue_gym.workloads.disguise`.
    drawn : bool
        Whether queries are drawn anew with every instance.
    """
    rng = np.random.default_rng([number, 2])
    llm = llm_order(number, instance.num_llms)
    replica = rng.permutation(instance.num_replicas)
    query = np.arange(instance.num_queries) if drawn else rng.permutation(instance.num_queries)
    shape = (1 if drawn else instance.num_queries, instance.num_llms)
    contexts, success = instance.contexts, instance.success[query][:, llm]
    if drawn:
        dim = contexts.shape[1]
        turn, _ = np.linalg.qr(np.random.default_rng([number, dim]).normal(size=(dim, dim)))
        contexts = np.asarray(contexts @ turn, dtype=np.float32)
    odds = np.exp(rng.uniform(-ODDS_SHIFT, ODDS_SHIFT, shape))

    def moved(values: Floats) -> Floats:
        """Move figures, alike ones alike."""
        _, alike = np.unique(values, axis=0, return_inverse=True)
        factors = rng.uniform(1 - MOVED, 1 + MOVED, (alike.max() + 1, *values.shape[1:]))
        return np.asarray(values * factors[alike.ravel()])

    share = moved(instance.share)[query]
    seconds = moved(np.column_stack([instance.base_seconds, instance.each_seconds]))
    base, each = np.split(seconds[replica], 2, axis=1)
    hosts = instance.hosts[replica]
    return replace(
        instance,
        contexts=contexts,
        share=share / share.sum(),
        success=success * odds / (1 - success + success * odds),
        mean_tokens=instance.mean_tokens[query],
        impatience=np.minimum(moved(instance.impatience)[query], 1.0),
        kinds=tuple(instance.kinds[kind] for kind in query) if instance.kinds else (),
        llms=tuple(instance.llms[one] for one in llm),
        llm_arrives=instance.llm_arrives[llm],
        list_price=instance.list_price[llm],
        list_speed=instance.list_speed[llm],
        places=instance.places[replica],
        hosts=np.where(hosts < 0, -1, np.argsort(llm)[hosts]),
        base_seconds=base[:, llm],
        each_seconds=each[:, llm],
        chunk=instance.chunk[replica],
        price=instance.price[replica],
    )
