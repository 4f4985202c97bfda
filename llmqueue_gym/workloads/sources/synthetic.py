"""Synthetic workloads: linear utilities u_j(x) = x . theta_j + b with drawn contexts.

Five kinds: the published instance, two where routing is hard, one where scheduling matters too, and
one where contexts do not tell all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.pool import (
    Accept,
    Instance,
    too_few_accepted,
)
from llmqueue_gym.workloads.sources import Source

Contexts = NDArray[np.float32]
Linear = tuple[NDArray[np.float64], float, Callable[[int], Contexts]]
"""theta (N, d), intercept b, and a sampler n -> contexts (n, d)."""

_SPREAD = 0.35  # of a cluster of `specialists` and `easy-hard` around its centre
_HARDNESS = 2.5  # what one standard deviation of hardness takes from every utility of `easy-hard`
_LOOKALIKE_SCALE = 1.2  # of what tells the LLMs of `lookalike` apart
_MIXED_SD = 2.5  # of the utilities of an LLM of `mixed` over queries
_MIXED_LLM_SD = 0.5  # of the mean utilities of its LLMs, around 1
_MIXED_SHARED = 1 / 3  # of what contexts leave open there is the same for all LLMs
_MIXED_EXPLAINED = 0.2
_MIN_ACCEPTED = 1e-3  # below this share of accepted queries a draw gives up


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _uniform(rng: np.random.Generator, num_llms: int, dim: int) -> Linear:
    """Entries of contexts and parameters are U(-1, 1)."""
    theta = rng.uniform(-1.0, 1.0, (num_llms, dim))
    return theta, 0.0, lambda n: 2.0 * rng.random((n, dim), dtype=np.float32) - np.float32(1.0)


def _specialists(rng: np.random.Generator, num_llms: int, dim: int) -> Linear:
    """Clusters of contexts with one LLM good at each."""
    centres, sample = _clusters(rng, num_llms, dim)
    return 4.0 * centres - centres.mean(axis=0), -1.0, sample


def _clusters(
    rng: np.random.Generator, count: int, dim: int
) -> tuple[NDArray[np.float64], Callable[[int], Contexts]]:
    """Draw unit centres (count, dim), and make a sampler of unit vectors around them."""
    centres = _unit(rng.standard_normal((count, dim)))

    def sample(n: int) -> Contexts:
        x = rng.standard_normal((n, dim), dtype=np.float32)
        x *= np.float32(_SPREAD / np.sqrt(dim))
        x += centres.astype(np.float32)[rng.integers(count, size=n)]
        return _unit(x).astype(np.float32, copy=False)

    return np.asarray(centres), sample


def _easy_hard(rng: np.random.Generator, num_llms: int, dim: int) -> Linear:
    """Clusters as in `specialists`, and a coordinate that makes a query hard for every LLM."""
    centres, topics = _clusters(rng, num_llms, dim - 2)
    theta = np.empty((num_llms, dim))
    theta[:, :-2], theta[:, -2], theta[:, -1] = centres, -_HARDNESS, 3.0

    def sample(n: int) -> Contexts:
        x = np.ones((n, dim), dtype=np.float32)
        x[:, :-2] = topics(n)
        x[:, -2] = rng.standard_normal(n, dtype=np.float32)
        x *= np.float32(1.0 / np.sqrt(3.0))
        return x

    return np.sqrt(3.0) * theta, 0.0, sample


def _lookalike(rng: np.random.Generator, num_llms: int, dim: int) -> Linear:
    """Parameters of all LLMs scatter around a shared one; the last coordinate is constant."""
    shared = rng.standard_normal(dim)
    theta = shared + _LOOKALIKE_SCALE * rng.standard_normal((num_llms, dim))

    def sample(n: int) -> Contexts:
        x = np.empty((n, dim), dtype=np.float32)
        x[:, :-1] = _unit(rng.standard_normal((n, dim - 1), dtype=np.float32))
        x[:, :-1] *= np.float32(np.sqrt(1.0 - 1.0 / dim))
        x[:, -1] = np.float32(np.sqrt(1.0 / dim))
        return x

    return theta, 0.0, sample


def _mixed(rng: np.random.Generator, num_llms: int, dim: int) -> Linear:
    """Utilities that contexts explain, of standard deviation 2.5 over queries if they did alone."""
    theta = np.empty((num_llms, dim))
    theta[:, :-1] = _unit(rng.standard_normal((num_llms, dim - 1)))
    theta[:, :-1] *= _MIXED_SD * np.sqrt(2.0 * (dim - 1))
    theta[:, -1] = np.sqrt(2.0) * (1.0 + _MIXED_LLM_SD * rng.standard_normal(num_llms))

    def sample(n: int) -> Contexts:
        x = np.ones((n, dim), dtype=np.float32)
        x[:, :-1] = _unit(rng.standard_normal((n, dim - 1), dtype=np.float32))
        x *= np.float32(np.sqrt(0.5))
        return x

    return theta, 0.0, sample


_KINDS: dict[str, Callable[[np.random.Generator, int, int], Linear]] = {
    "uniform": _uniform,
    "specialists": _specialists,
    "lookalike": _lookalike,
    "easy-hard": _easy_hard,
    "mixed": _mixed,
}
_MIN_DIM = {"lookalike": 2, "easy-hard": 3, "mixed": 2}  # of a context; 1 for the others


@dataclass(frozen=True)
class Synthetic:
    """A random linear instance.

    ===========  ==================================================================================
    kind         instance
    ===========  ==================================================================================
    uniform      entries of x and theta_j are U(-1, 1), u_j = x . theta_j (the published instance)
    specialists  N unit centres C_j; x = a centre + 0.35 N(0, I/d), normalised;
                 u_j = 4 x . C_j - x . mean(C) - 1
    lookalike    theta_j = theta_0 + 1.2 N(0, I), theta_0 ~ N(0, I), u_j = x . theta_j;
                 x = (sqrt(1 - 1/d) v, sqrt(1/d)), v uniform on the unit sphere of R^(d-1)
    easy-hard    N unit centres C_j in R^(d-2); v = a centre + 0.35 N(0, I/(d-2)), normalised;
                 z ~ N(0, 1); x = (v, z, 1) / sqrt(3); u_j = 3 + v . C_j - 2.5 z
    mixed        v, t_j uniform on the unit sphere of R^(d-1); x = (v, 1) / sqrt(2);
                 u_j = m_j + 2.5 sqrt(R^2 (d-1)) v . t_j + a + b_j, m_j ~ N(1, 1/4), and of each
                 query a ~ N(0, s_a^2), b_j ~ N(0, s_b^2), s_b^2 = 2 s_a^2 = 2.5^2 (1 - R^2) 2/3
    ===========  ==================================================================================

    The whole vector of `lookalike`, its constant last coordinate included, has norm 1, and
    sqrt(1/d) gives the constant the same mean square as every other coordinate, E[x x^T] = I/d (R).
    The hardness z of `easy-hard` is the same for all LLMs: it decides whom to serve first, not by
    whom. Best departure rates are about 1 / (1 + exp(2.5 z - 4)): .99 at z = -.3, .5 at 1.6, .05 at
    2.8. Near capacity the queue of a policy that serves in turn depends on the load alone (as under
    processor sharing, however the work is spread), while that of the easiest first (the c mu rule)
    is the shorter the wider the work is spread. ``python -m benchmarks.measure.controls``
    measures what the true best LLMs are worth without that order, and that order without them.
    Contexts explain a share R^2 of what tells the queries of `mixed` apart; what they leave open
    belongs to the query, whoever asks it, so that a refusal tells something (R). In tables of real
    queries text explains about a fifth, and a third of the rest is the same for all LLMs.
    The utilities are computed from the float32 contexts the agents see.

    Attributes
    ----------
    kind : str
        One of the above.
    num_llms : int
        Number of LLMs, N.
    context_dim : int
        Length of a context, d; at least 2 for `lookalike` and `mixed`, 3 for `easy-hard`.
    pool_size : int
        Queries per instance, P.
    explained : float, optional
        Share R^2 of `mixed`; default 0.2. The other kinds are explained by contexts.

    Raises
    ------
    ValueError
        If the kind is unknown, a size is not a positive integer, or R^2 is no share.
    """

    kind: str = "uniform"
    num_llms: int = 5
    context_dim: int = 5
    pool_size: int = 4096
    explained: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            raise checks.unknown_name("kind", self.kind, _KINDS)
        checks.count("num_llms", self.num_llms)
        checks.count("context_dim", self.context_dim, _MIN_DIM.get(self.kind, 1))
        checks.count("pool_size", self.pool_size)
        if self.explained is not None:
            checks.number("explained", self.explained, "[0, 1]")
            if self.kind != "mixed":
                raise UsageError(
                    f"explained={self.explained!r} belongs to the kind 'mixed', and this is "
                    f"{self.kind!r}; leave it out"
                )

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs."""
        return tuple(f"llm-{j}" for j in range(self.num_llms))

    def draw(self, rng: np.random.Generator, accept: Accept | None = None) -> Instance:
        """Draw one problem instance: parameters first, then ``pool_size`` contexts.

        With ``accept``, contexts are redrawn until it holds for all of them; the parameters stay.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        accept : callable, optional
            Utilities (n, N) -> keep (n,).

        Raises
        ------
        ValueError
            If fewer than one query in 1000 is accepted.
        """
        theta, intercept, sample = _KINDS[self.kind](rng, self.num_llms, self.context_dim)
        if self.kind == "mixed":
            theta[:, :-1] *= np.sqrt(self._explained)
        if accept is None:
            contexts = sample(self.pool_size)
            return Instance(
                contexts, contexts @ theta.T + intercept + self._persisting(rng, self.pool_size)
            )
        batch = max(self.pool_size, 1024)
        parts: list[tuple[Contexts, NDArray[np.float64]]] = []
        kept = seen = 0
        while kept < self.pool_size:
            contexts = sample(batch)
            utilities = contexts @ theta.T + intercept + self._persisting(rng, batch)
            keep = accept(utilities)
            parts.append((contexts.compress(keep, axis=0), utilities.compress(keep, axis=0)))
            kept += len(parts[-1][0])
            seen += batch
            if seen >= 20 * batch and kept < _MIN_ACCEPTED * seen:
                raise too_few_accepted(kept, seen)
        drawn, values = (
            np.concatenate(column)[: self.pool_size] for column in zip(*parts, strict=True)
        )
        return Instance(drawn, values)

    @property
    def _explained(self) -> float:
        return _MIXED_EXPLAINED if self.explained is None else self.explained

    @property
    def spreads(self) -> tuple[float, float]:
        """(s_a, s_b): what a query's own effect and those of (query, LLM) scatter by."""
        if self.kind != "mixed":
            return 0.0, 0.0
        left = _MIXED_SD**2 * (1.0 - self._explained)
        return math.sqrt(left * _MIXED_SHARED), math.sqrt(left * (1.0 - _MIXED_SHARED))

    def _persisting(self, rng: np.random.Generator, count: int) -> NDArray[np.float64] | float:
        """Draw a + b_j of queries, (count, N); 0 where contexts explain all."""
        s_a, s_b = self.spreads
        if not s_b:
            return 0.0
        own = rng.normal(0.0, s_a, (count, 1))
        return own + rng.normal(0.0, s_b, (count, self.num_llms))


SOURCE = Source("synthetic", workload=Synthetic, fingerprint=lambda **_: "")
