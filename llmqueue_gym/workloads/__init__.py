"""Workloads: where queries and LLMs come from.

`make_workload` builds one from a JSON-plain spec; every source becomes the same finite population.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.disguise import DISGUISE, DisguisedWorkload, read_disguise
from llmqueue_gym.workloads.pool import (
    Accept,
    Instance,
    PoolWorkload,
    QueryPool,
    ShuffledContexts,
    read_spec,
)
from llmqueue_gym.workloads.sources import SOURCES
from llmqueue_gym.workloads.sources.synthetic import Synthetic

__all__ = [
    "Accept",
    "Instance",
    "PoolWorkload",
    "QueryPool",
    "Synthetic",
    "Workload",
    "fingerprint",
    "make_workload",
]


class Workload(Protocol):
    """A distribution over problem instances, each a finite population of queries.

    Arrivals are drawn from an instance's P rows uniformly, with replacement. A finite population,
    also for synthetic queries, gives every workload one shape (a table of contexts and a table of
    utilities), makes the capacity 1/E[1/p*] an exact mean over rows instead of an estimate, and
    turns a step of a vector environment into a gather.
    """

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the N LLMs."""

    @property
    def context_dim(self) -> int:
        """Length of a context, d."""

    @property
    def pool_size(self) -> int:
        """Rows of every drawn instance, P; constant."""

    def draw(self, rng: np.random.Generator, accept: Accept | None = None) -> Instance:
        """Draw one problem instance.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness; equal generators give equal instances.
        accept : callable, optional
            Utilities (n, N) -> keep (n,); only queries that satisfy it enter the instance.

        Raises
        ------
        ValueError
            If (nearly) no query is accepted.
        """


def _stored() -> dict[str, tuple[Callable[..., Workload], Callable[..., str]]]:
    """Workload and fingerprint of every source."""
    from llmqueue_gym.workloads.datasets import dataset_workloads  # which imports every reader

    return dataset_workloads()


class _Factories(Mapping[str, Callable[..., Workload]]):
    """The workload of every source by name; one of its own imports no other source."""

    def __getitem__(self, name: str) -> Callable[..., Workload]:
        own = SOURCES[name].workload if name in SOURCES else None
        return own or _stored()[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(_stored())

    def __len__(self) -> int:
        return len(_stored())


_FACTORIES = _Factories()
_SIZES = ("num_llms", "context_dim")
_SHUFFLE = "shuffle_contexts"
_COMMON = (*_SIZES, _SHUFFLE, DISGUISE)


def make_workload(
    spec: str | Mapping[str, Any],
    *,
    num_llms: int | None,
    context_dim: int | None,
    assortment_size: int,
) -> Workload:
    """Build a workload from its spec.

    Parameters
    ----------
    spec : str or mapping
        Name of a source (``"synthetic"``, ``"paretobandit"``, ``"table"``, or an imported data
        set: ``"routerbench"``, ``"sprout"``, ``"embedllm"``, ``"wildchat"``), or a mapping with
        its name under ``"source"`` and its options beside it, for example
        ``{"source": "synthetic", "kind": "specialists"}``, or ``{"source": "dataset", "name":
        "mine"}`` for whatever was imported under that name. Every source has the option
        ``shuffle_contexts`` (see `llmqueue_gym.workloads.pool.ShuffledContexts`) and ``disguise``,
        a number (see `llmqueue_gym.workloads.disguise`).
    num_llms, context_dim : int or None
        Sizes asked for; None takes the source's own. Both may also stand in the spec.
    assortment_size : int
        LLMs shown at a time, K; at most the number of LLMs.

    Raises
    ------
    ValueError
        If the source or an option is unknown (the nearest known name is suggested), an option is
        out of range, or the sizes contradict the data.
    ImportError
        If the source needs a package that is not installed.
    DatasetMissingError
        If the data set has not been imported on this machine.
    """
    source, options = read_spec("workload", "source", spec, _FACTORIES, _COMMON)
    shuffle = checks.flag(_SHUFFLE, options.pop(_SHUFFLE, False))
    disguise = read_disguise(options)
    sizes = {"num_llms": num_llms, "context_dim": context_dim}
    for name in _SIZES:
        inside = options.pop(name, None)
        if inside is not None and sizes[name] not in (None, inside):
            raise UsageError(f"{name}={sizes[name]!r}, but the workload says {inside!r}; drop one")
        given = inside if sizes[name] is None else sizes[name]
        sizes[name] = None if given is None else checks.count(name, given)
    factory = _FACTORIES[source]
    taken = inspect.signature(factory).parameters
    options |= {name: value for name, value in sizes.items() if name in taken and value is not None}
    workload = factory(**options)
    count = len(workload.llms)
    if sizes["num_llms"] not in (None, count):
        raise UsageError(
            f"num_llms={sizes['num_llms']}, but workload {source!r} has {count} LLMs "
            f"({', '.join(workload.llms)}); leave num_llms out"
        )
    if checks.count("assortment_size", assortment_size) > count:
        raise UsageError(f"assortment_size={assortment_size} exceeds the {count} LLMs; lower it")
    if disguise is not None:
        workload = DisguisedWorkload(workload, disguise)
    return ShuffledContexts(workload) if shuffle else workload


def fingerprint(spec: str | Mapping[str, Any]) -> str:
    """Hash of the data behind a spec; empty for data that follow from the spec alone.

    The SHA-256 of a table's file; of the version and the files of the paretobandit package.
    """
    source, options = read_spec("workload", "source", spec, _FACTORIES, _COMMON)
    for same in (_SHUFFLE, DISGUISE):  # the data are the same
        options.pop(same, None)
    return _stored()[source][1](**options)
