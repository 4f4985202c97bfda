"""A held-out variant of fixed data: LLMs in another order, queries and qualities a little off.

Whoever knows the public data by heart must not know this one; whoever learns while it plays should
not notice. A disguise is a number: the same one makes the same variant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.workloads.pool import Accept, Instance, OfflineData

DISGUISE = "disguise"
"""Option of every source: the number."""

UTILITY_SD = 0.25
"""Standard deviation of what is added to a utility; those of a data set span some 6."""

QUALITY_SHIFT = 0.03
"""Largest share by which an LLM's mean reward is moved towards 0 or 1."""

CONTEXT_NOISE = 0.1
"""Noise of a context, as a share of the contexts' root mean square."""


def read_disguise(options: dict[str, Any]) -> int | None:
    """Take the option out of a source's options."""
    value = options.pop(DISGUISE, None)
    return None if value is None else checks.count(DISGUISE, value, 0)


def llm_order(number: int, num_llms: int) -> NDArray[np.int64]:
    """Return the place in the public data of each LLM of the variant, shape (N,)."""
    return np.random.default_rng([number, num_llms]).permutation(num_llms)


class DisguisedWorkload:
    """A workload with its LLMs in a private order, rotated contexts and moved utilities.

    Rotated, contexts tell a linear model or a neighbourhood as much as before, and a table of known
    contexts nothing. A query is moved anew whenever it is drawn.

    Parameters
    ----------
    workload : Workload
        Where instances come from.
    number : int
        The disguise.
    """

    def __init__(self, workload: Any, number: int) -> None:
        self._workload = workload
        self.context_dim: int = workload.context_dim
        self.pool_size: int = workload.pool_size
        self._order = llm_order(number, len(workload.llms))
        self.llms: tuple[str, ...] = tuple(workload.llms[llm] for llm in self._order)
        rng = np.random.default_rng([number, self.context_dim])
        self._turn, _ = np.linalg.qr(rng.normal(size=(self.context_dim, self.context_dim)))
        data: OfflineData | None = getattr(workload, "offline", None)
        if data is not None:
            data = OfflineData(*self._moved(data.contexts, data.utilities, rng))
        self.offline = data

    def draw(self, rng: np.random.Generator, accept: Accept | None = None) -> Instance:
        """Draw one problem instance; see `Workload.draw`. Queries are accepted as they were."""
        drawn: Instance = self._workload.draw(rng, accept)
        contexts, utilities = self._moved(drawn.contexts, drawn.utilities, rng)
        cost = None if drawn.cost is None else drawn.cost[:, self._order]
        return Instance(contexts, utilities, cost)

    def _moved(
        self,
        contexts: NDArray[np.float32],
        utilities: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        scale = CONTEXT_NOISE * float(np.sqrt(np.mean(np.square(contexts, dtype=np.float64))))
        noisy = contexts @ self._turn + scale * rng.normal(size=contexts.shape)
        moved = utilities[:, self._order]
        low, high = float(moved.min()), float(moved.max())
        moved = np.clip(moved + UTILITY_SD * rng.normal(size=moved.shape), low, high)
        return noisy.astype(np.float32), moved
