"""What the provider knows before the first query, and how a plan for a stage becomes queries.

Source: Li & Li, "Near-Optimal Online Deployment and Routing for Streaming LLMs" (arXiv 2506.17254).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_COUNT = 2.0**24
"""Bound of counts in observations: float32 holds integers exactly up to here."""

_ROUNDING = 1e-9  # rounding in alpha * stage length, far below one query


@dataclass(frozen=True)
class DeploymentRules:
    """What the provider knows before the first query, besides the LLMs.

    Attributes
    ----------
    horizon : int
        Queries of an episode, T.
    num_stages : int
        Stages of (nearly) equal length, K <= T; stage k starts at query floor(k T / K), tau_k.
    max_deployed : int
        Most LLMs deployed at a time, M_max.
    alpha : tuple of float
        Largest share of a stage's queries per LLM, N entries in (0, 1].
    budget : float
        Average cost allowed per query, b, in USD.
    switching_cost : float
        USD charged per LLM that joins the deployment, the first stage excepted (R).
    reward_delay : int
        Queries until a reward is seen.
    """

    horizon: int
    num_stages: int
    max_deployed: int
    alpha: tuple[float, ...]
    budget: float
    switching_cost: float = 0.0
    reward_delay: int = 0

    @cached_property
    def stage_starts(self) -> Ints:
        """First query of every stage, tau_k, shape (K,)."""
        starts = [stage * self.horizon // self.num_stages for stage in range(self.num_stages)]
        return np.array(starts, dtype=np.int64)

    @cached_property
    def stage_lengths(self) -> Ints:
        """Queries of every stage, shape (K,)."""
        ends: Ints = np.append(self.stage_starts[1:], self.horizon)
        lengths: Ints = ends - self.stage_starts
        return lengths

    @cached_property
    def caps(self) -> Ints:
        """Queries an LLM may take in a stage, ceil(alpha_m * stage length), shape (K, N)."""
        load = self.stage_lengths[:, None] * np.array(self.alpha)
        return np.asarray(np.ceil(load - _ROUNDING), dtype=np.int64)


def stage_schedule(p: Floats, length: int) -> Ints:
    """Turn traffic shares into one LLM per query of a stage, evenly interleaved (R).

    LLM m gets p_m * length queries, rounded by largest remainders, so never more than
    ceil(p_m * length). Deterministic, so that a policy can be replayed query by query.

    Parameters
    ----------
    p : ndarray, shape (N,)
        Shares, sum 1.
    length : int
        Queries of the stage, L.

    Returns
    -------
    ndarray of int64, shape (L,)
        Index of the LLM per query.
    """
    quota = p * length
    count = np.floor(quota + _ROUNDING).astype(np.int64)
    remainder = quota - count
    missing = length - int(count.sum())
    count[np.argsort(-remainder, kind="stable")[:missing]] += 1
    llms = np.repeat(np.arange(len(p)), count)
    rank = np.arange(length) - np.repeat(np.cumsum(count) - count, count)
    place = (rank + 0.5) / count[llms]
    return llms[np.argsort(place, kind="stable")]


def project_to_capped_simplex(weights: Floats, caps: Floats) -> Floats:
    """Euclidean projection onto {p : sum p = 1, 0 <= p <= caps}, shapes (M,).

    If the caps sum to less than 1 the result is caps / sum(caps), which breaks them (R).

    Notes
    -----
    p = clip(weights - theta, 0, caps) with the theta that makes it sum to 1: exact, by sorting the
    breakpoints of this piecewise linear function of theta.
    """
    if caps.sum() <= 1.0:
        return np.asarray(caps / caps.sum())
    breaks = np.sort(np.concatenate([weights, weights - caps]))
    mass = np.clip(weights - breaks[:, None], 0.0, caps).sum(axis=1)  # decreases
    right = int(np.searchsorted(-mass, -1.0))
    if mass[right] == 1.0:
        theta = breaks[right]
    else:
        share = (mass[right - 1] - 1.0) / (mass[right - 1] - mass[right])
        theta = breaks[right - 1] + share * (breaks[right] - breaks[right - 1])
    p = np.clip(weights - theta, 0.0, caps)
    return np.asarray(p / p.sum())


def stage_plan(action: Floats, there: Bools, rules: DeploymentRules) -> tuple[Bools, Floats]:
    """Read an action of LLMDeployStage-v0: deployment bits and traffic shares, both (N,).

    The M_max best scores of the LLMs that are there are deployed, ties to the lowest index; the
    weights are projected onto the shares within alpha. With no LLM there all queries go to LLM 0,
    which refuses them.

    Parameters
    ----------
    action : ndarray, shape (2 N,)
        Deployment scores and routing weights, in [0, 1].
    there : ndarray of bool, shape (N,)
        LLMs that can be deployed.
    rules : DeploymentRules
        The public parameters.
    """
    size = len(there)
    rank = np.argsort(np.where(there, -action[:size], 1.0), kind="stable")
    chosen = np.sort(rank[: min(rules.max_deployed, int(there.sum()))])
    bits, shares = np.zeros(size, dtype=np.bool_), np.zeros(size)
    if not chosen.size:
        shares[0] = 1.0
        return bits, shares
    bits[chosen] = True
    caps = np.array(rules.alpha)[chosen]
    shares[chosen] = project_to_capped_simplex(action[size:][chosen], caps)
    return bits, shares
