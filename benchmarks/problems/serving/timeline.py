"""What is kept of a serving run over time: what replicas do, and where users spend their time.

A few dozen bins, and at most about 2,000 slots that are looked at, however long the run is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.serving.dynamics import (
    ACTIVE,
    DRAINING,
    EMPTY,
    IN_SERVICE,
    LLM,
    LOADING,
    PHASE,
    PHASES,
    PLACE,
    QUEUED,
    RETRIALS,
    ROW,
    SERVING,
    THINKING,
    UNUSED,
)
from llmqueue_gym.serving.instance import ServingInstance
from llmqueue_gym.serving.lanes import ServingDynamics

BINS = 60
LOOKS = 2000
ALL = "all users"
ATTEMPTS = ("first attempt", "1st retrial", "2nd retrial", "later retrials")
PLACES = ("waiting", "in service", "thinking")
"""In the order of `WAITS`, `IS_SERVED` and `IS_AWAY`."""

NOTHING, LOADS = -1, -2
MOST_KINDS = 6
"""Kinds of queries up to which each is shown."""


class Timeline:
    """Sums over the bins of a run.

    Parameters
    ----------
    instance : ServingInstance
    horizon : int
        Slots of the run.
    """

    def __init__(self, instance: ServingInstance, horizon: int) -> None:
        self._instance = instance
        self._edges = np.unique(np.linspace(0, horizon, BINS + 1).astype(np.int64))
        bins, replicas = len(self._edges) - 1, instance.num_replicas
        self._bin = np.repeat(np.arange(bins), np.diff(self._edges))
        self._every = max(1, horizon // LOOKS)
        self._looks = np.bincount(self._bin[:: self._every], minlength=bins)
        by_phase = (bins, replicas, len(PHASES), instance.num_llms)
        self._hosts = np.zeros(by_phase, dtype=np.int64)
        self._active = np.zeros((bins, replicas), dtype=np.int64)
        self._people = np.zeros((bins, 4), dtype=np.int64)  # as the dynamics count
        self._kinds = instance.kinds if len(instance.kinds) <= MOST_KINDS else ()
        self._by_attempt = np.zeros(4 * len(ATTEMPTS), dtype=np.int64)
        self._by_kind = np.zeros(4 * len(self._kinds), dtype=np.int64)
        self._each = np.arange(replicas)

    def note(self, t: int, dynamics: ServingDynamics) -> None:
        """Note the end of slot t, if it is one of those that are looked at."""
        if t % self._every:
            return
        state, into = dynamics.state, self._bin[t]
        replicas = state.replicas[0]
        self._hosts[into, self._each, replicas[:, PHASE], replicas[:, LLM]] += 1
        self._active[into] += replicas[:, ACTIVE]
        self._people[into] += state.counts[0]
        queries = state.queries[0, : state.ends[0, UNUSED]]
        attempts = np.minimum(queries[:, RETRIALS], len(ATTEMPTS) - 1)
        codes = queries[:, PLACE] * len(ATTEMPTS) + attempts
        self._by_attempt += np.bincount(codes, minlength=self._by_attempt.size)
        if self._kinds:
            codes = queries[:, PLACE] * len(self._kinds) + queries[:, ROW]
            self._by_kind += np.bincount(codes, minlength=self._by_kind.size)

    def fleet(self) -> dict[str, Any]:
        """Return what `benchmarks.problems.kind.Fleet` holds, JSON-plain."""
        instance, looks = self._instance, self._looks[:, None]
        loads, nothing = (self._hosts[:, :, phase].sum(axis=2) for phase in (LOADING, EMPTY))
        busy = self._hosts[:, :, SERVING] + self._hosts[:, :, DRAINING]
        hosts = np.dstack([busy, loads, nothing]).argmax(axis=2)
        hosts[hosts >= instance.num_llms] -= instance.num_llms + 2  # `LOADS` or `NOTHING`
        load = self._active / (looks * instance.places)
        people = self._people[:, [QUEUED, IN_SERVICE, THINKING]] / looks
        used = sorted(set(hosts[hosts >= 0].tolist()))
        place = {llm: k for k, llm in enumerate(used)} | {NOTHING: NOTHING, LOADS: LOADS}
        return {
            "replicas": [f"replica {r + 1}" for r in range(instance.num_replicas)],
            "llms": [instance.llms[llm] for llm in used],
            "edges": self._edges.tolist(),
            "hosts": [[place[llm] for llm in column] for column in hosts.T.tolist()],
            "load": np.round(load.T, 2).tolist(),
            "people": {
                name: [float(f"{value:.3g}") for value in people[:, k].tolist()]
                for k, name in enumerate(PLACES)
            },
        }

    def spent(self, arrivals: int) -> dict[str, Any]:
        """Return what `benchmarks.problems.kind.Spent` holds, JSON-plain."""
        attempts = self._of(self._by_attempt, len(ATTEMPTS))
        kinds = self._of(self._by_kind, len(self._kinds))
        counts = np.concatenate([attempts.sum(axis=0, keepdims=True), attempts, kinds])
        slots = self._every * counts / max(arrivals, 1)
        return {
            "places": list(PLACES),
            "groups": [ALL, *ATTEMPTS, *self._kinds],
            "slots": [[float(f"{value:.4g}") for value in row] for row in slots.tolist()],
        }

    @staticmethod
    def _of(counts: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
        """Return counts as (groups, places), without those who are gone."""
        return counts.reshape(4, groups)[: len(PLACES)].T
