"""Confidence ellipsoids, one per LLM, kept as a factor of the inverse Gram matrix.

Norms and Thompson noise are read off the factor, which rank-one updates keep exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.compiled import summing

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DIRECT_DIM = 64
"""Up to this many dimensions contexts are projected anew each slot; beyond it once a query."""

JITTER = {"float64": 1e-9, "float32": 1e-6}
"""Relative weight added to the diagonal of a covariance before its Cholesky factor is taken."""


@summing
def project(factor: Array, context: Array) -> Array:
    """Return v = B x, shape (d,)."""
    projected = np.empty(len(factor), factor.dtype)
    for k in range(len(factor)):
        total = factor.dtype.type(0.0)
        for a in range(k + 1):
            total += factor[k, a] * context[a]
        projected[k] = total
    return projected


@summing
def shrink(factor: Array, v: Array) -> Array:
    """Set B <- C^{-1} B for the Cholesky factor C of I + v v^T; return what V^{-1} loses.

    It loses p p^T, where p = B^T v / sqrt(1 + |v|^2) with B as it was. Row k of C^{-1} takes
    v_k / s_{k-1} times the sum of v_i B_i over the rows above from B_k, and multiplies by
    sqrt(s_{k-1} / s_k), where s_k = 1 + v_1^2 + ... + v_k^2.
    """
    real = factor.dtype.type
    above, square = np.zeros(len(v), factor.dtype), 1.0
    for k in range(len(v)):
        grown = square + v[k] * v[k]
        part, kept, along = real(v[k]), real(math.sqrt(square / grown)), real(v[k] / square)
        for a in range(k + 1):
            entry = factor[k, a]
            factor[k, a] = kept * (entry - along * above[a])
            above[a] += part * entry
        square = grown
    above /= real(math.sqrt(square))
    return above


@summing
def _update(factor: Array, context: Array, weight: float) -> Array:
    v = project(factor, context)
    if weight != 1.0:
        v *= factor.dtype.type(math.sqrt(weight))
    return shrink(factor, v)


@summing
def _observe(factors: Array, shown: Ints, context: Array) -> Array:
    """Update the LLMs shown; return what each V_j^{-1} loses, shape (K, d)."""
    lost = np.empty((len(shown), len(context)), factors.dtype)
    for place in range(len(shown)):
        lost[place] = _update(factors[shown[place]], context, 1.0)
    return lost


@summing
def _solve(factor: Array, context: Array) -> Array:
    """Return V^{-1} x = B^T (B x), shape (d,): the half factor is read once, four rows at a time.

    Above its diagonal the factor is zero.
    """
    dim, zero = len(context), factor.dtype.type(0.0)
    solved = np.zeros(dim, factor.dtype)
    for k in range(dim % 4):
        along = zero
        for a in range(k + 1):
            along += factor[k, a] * context[a]
        for a in range(k + 1):
            solved[a] += along * factor[k, a]
    for k in range(dim % 4, dim, 4):
        one, two, three, four = factor[k], factor[k + 1], factor[k + 2], factor[k + 3]
        first, second, third, fourth = zero, zero, zero, zero
        for a in range(k + 4):
            first += one[a] * context[a]
            second += two[a] * context[a]
            third += three[a] * context[a]
            fourth += four[a] * context[a]
        for a in range(k + 4):
            solved[a] += first * one[a] + second * two[a] + third * three[a] + fourth * four[a]
    return solved


@summing
def _multiply(
    factors: Array, contexts: Array, waiting: Bools, rows: Ints, products: Floats
) -> None:
    """Set the products x^T V_j^{-1} x' of the contexts in ``rows`` with those ``waiting``."""
    others = np.flatnonzero(waiting)
    for j in range(len(factors)):
        for row in rows:
            solved = _solve(factors[j], contexts[row])
            for q in others:
                product = factors.dtype.type(0.0)
                for a in range(len(solved)):
                    product += solved[a] * contexts[q, a]
                products[j, row, q] = products[j, q, row] = product


@summing
def _follow(products: Floats, contexts: Array, waiting: Bools, shown: Ints, lost: Array) -> None:
    """Keep the products of ``waiting`` contexts current after V_j^{-1} has lost p p^T."""
    along, rows = np.empty(len(contexts)), np.flatnonzero(waiting)
    for place in range(len(shown)):
        for q in rows:
            total = contexts.dtype.type(0.0)
            for a in range(contexts.shape[1]):
                total += contexts[q, a] * lost[place, a]
            along[q] = total
        own = products[shown[place]]
        for q in rows:
            for r in rows:
                own[q, r] -= along[q] * along[r]


@summing
def _equal(one: Array, other: Array) -> bool:
    differing = 0
    for k in range(len(one)):
        differing += one[k] != other[k]
    return differing == 0


@summing
def _find(rows: Array, row: Array, start: int) -> int:
    """Return where ``row`` stands in ``rows``, sought from ``start`` on and round; -1: nowhere."""
    for step in range(len(rows)):
        place = start + step
        if place >= len(rows):
            place -= len(rows)
        if rows[place, 0] == row[0] and _equal(rows[place], row):
            return place
    return -1


@summing
def _places(
    known: Array, sums: Floats, waiting: Bools, contexts: Array
) -> tuple[Ints, Ints, Array]:
    """Return where contexts stand among the ``known`` that are ``waiting``, and the new of them.

    A new one has the place -1 - i if it is the i-th of the new, which are numbers of queries. Most
    rows are told apart by a weighted sum of their entries, ``sums`` (R,), which the third array
    has of the contexts: whole rows are compared once a query, or hardly more.
    """
    size, dim = contexts.shape
    places, new, count = np.empty(size, np.int64), np.empty(size, np.int64), 0
    own = np.zeros(size, contexts.dtype)
    for q in range(size):
        for k in range(dim):
            own[q] += contexts[q, k] * contexts.dtype.type(k + 1)
        for place in range(len(known)):
            if waiting[place] and sums[place] == own[q] and _equal(known[place], contexts[q]):
                places[q] = place
                break
        else:
            number = 0
            while number < count:
                other = new[number]
                if own[other] == own[q] and _equal(contexts[other], contexts[q]):
                    break
                number += 1
            if number == count:
                new[number] = q
                count += 1
            places[q] = -1 - number
    return places, new[:count], own


@summing
def _admit(known: Array, sums: Floats, waiting: Bools, contexts: Array) -> tuple[Ints, Ints]:
    """Give new contexts rows of those that wait no longer; return all rows, and the new."""
    places, new, own = _places(known, sums, waiting, contexts)
    waiting[:] = False
    for place in places:
        if place >= 0:
            waiting[place] = True
    rows, row = np.empty(len(new), np.int64), 0
    for number in range(len(new)):
        while waiting[row]:
            row += 1
        known[row], sums[row] = contexts[new[number]], own[new[number]]
        waiting[row], rows[number] = True, row
    for q in range(len(places)):
        if places[q] < 0:
            places[q] = rows[-1 - places[q]]
    return places, rows


@summing
def _distinct(places: Ints, size: int) -> tuple[Ints, Ints]:
    """Return the different places below ``size`` in order, and which of them each one is."""
    number = np.full(size, -1)
    for place in places:
        number[place] = 0
    distinct, count = np.empty(size, np.int64), 0
    for place in range(size):
        if number[place] == 0:
            distinct[count], number[place] = place, count
            count += 1
    return distinct[:count], number[places]


@summing
def _remembered_norms(known: Array, norms: Floats, contexts: Array, factors: Array) -> Floats:
    """Return |B_j x|, shape (Q, N): of contexts that are known as kept, of others anew.

    A queue keeps its order: what comes next mostly stands next in what is known.
    """
    found = np.empty((len(contexts), len(factors)))
    place = -1
    for q in range(len(contexts)):
        same = _find(known, contexts[q], place + 1)
        if same >= 0:
            found[q], place = norms[same], same
            continue
        same = _find(contexts[:q], contexts[q], 0)
        if same >= 0:  # equal contexts have equal norms, bit for bit
            found[q] = found[same]
            continue
        for j in range(len(factors)):
            v, square = project(factors[j], contexts[q]), 0.0
            for k in range(len(v)):
                square += v[k] * v[k]
            found[q, j] = math.sqrt(square)
    return found


@summing
def _lose(known: Array, norms: Floats, shown: Ints, lost: Array) -> None:
    """Keep the norms of the contexts that are known current after V_j^{-1} has lost p p^T."""
    for place in range(len(shown)):
        for q in range(len(known)):
            along = 0.0
            for k in range(known.shape[1]):
                along += known[q, k] * lost[place, k]
            kept = norms[q, shown[place]]
            norms[q, shown[place]] = math.sqrt(max(0.0, kept * kept - along * along))


@summing
def _bounds(theta: Floats, contexts: Array, norms: Floats, width: float) -> Floats:
    """Return x . theta_j + ``width`` times the norm, shape (Q, N)."""
    bounds = np.empty(norms.shape)
    for q in range(len(contexts)):
        for j in range(len(theta)):
            bound = width * norms[q, j]
            for k in range(contexts.shape[1]):
                bound += contexts[q, k] * theta[j, k]
            bounds[q, j] = bound
    return bounds


@summing
def _direct_noise(factors: Array, contexts: Array, draws: Floats) -> Floats:
    """Return max_m x^T B_j^T g_{j,m}, shape (Q, N), for draws of shape (N, d, M).

    Four rows at a time are added, in their order: what they are added to is read and written once.
    """
    num_llms, dim, samples = draws.shape
    queries, columns, left = len(contexts), contexts.T.copy(), dim % 4
    largest, most, noise = np.empty((queries, num_llms)), np.empty(queries), np.empty(queries)
    offset = np.empty(dim)  # B_j^T g
    for j in range(num_llms):
        factor, most[:] = factors[j], -np.inf
        for m in range(samples):
            draw = draws[j, :, m]
            offset[:] = 0.0
            for k in range(left):
                for a in range(k + 1):
                    offset[a] += factor[k, a] * draw[k]
            for k in range(left, dim, 4):
                one, two, three, four = draw[k], draw[k + 1], draw[k + 2], draw[k + 3]
                for a in range(k + 4):
                    total = offset[a] + factor[k, a] * one
                    total += factor[k + 1, a] * two
                    total += factor[k + 2, a] * three
                    offset[a] = total + factor[k + 3, a] * four
            noise[:] = 0.0
            for a in range(left):
                for q in range(queries):
                    noise[q] += offset[a] * columns[a, q]
            for a in range(left, dim, 4):
                one, two, three, four = offset[a], offset[a + 1], offset[a + 2], offset[a + 3]
                for q in range(queries):
                    total = noise[q] + one * columns[a, q]
                    total += two * columns[a + 1, q]
                    total += three * columns[a + 2, q]
                    noise[q] = total + four * columns[a + 3, q]
            for q in range(queries):
                most[q] = max(most[q], noise[q])
        for q in range(queries):
            largest[q, j] = most[q]
    return largest


@summing
def _correlated_noise(
    products: Floats, rows: Ints, draws: Floats, jitter: float
) -> tuple[Floats, bool]:
    """Return max_m of Gaussians of covariance ``products[j, rows, rows]``, shape (N, Q).

    And whether every covariance has a Cholesky factor. ``draws`` have shape (N, Q, M). Contexts
    that are nearly equal make it nearly singular: ``jitter`` is added, less than alpha can resolve.
    """
    num_llms, size, samples = draws.shape
    largest = np.empty((num_llms, size))
    most = 0.0
    for j in range(num_llms):
        for row in rows:
            most = max(most, products[j, row, row])
    root, scale, normals = np.empty((size, size)), np.empty(size), np.empty((samples, size))
    for j in range(num_llms):
        normals[:] = draws[j].T
        for q in range(size):
            for r in range(q + 1):
                entry = products[j, rows[q], rows[r]]
                for i in range(r):
                    entry -= root[q, i] * root[r, i]
                root[q, r] = entry * scale[r] if r < q else entry + jitter * most + jitter**2
            if not root[q, q] > 0.0:
                return largest, False
            root[q, q] = math.sqrt(root[q, q])
            scale[q] = 1.0 / root[q, q]
            largest[j, q] = -np.inf
            for m in range(samples):
                noise = 0.0
                for i in range(q + 1):
                    noise += root[q, i] * normals[m, i]
                largest[j, q] = max(largest[j, q], noise)
    return largest, True


class ConfidenceFactors:
    r"""Lower triangular factors B_j with V_j^{-1} = B_j^T B_j, V_j = ridge I + sum of w x x^T.

    B_j is the inverse of V_j's Cholesky factor. With v = B x the rank-one update of the Gram matrix
    is exactly B <- C^{-1} B, where C is the Cholesky factor of I + v v^T, known in closed form
    (`shrink`). Then ||x||_{V^{-1}} = |B x|, and x^T B^T g with g ~ N(0, I) is Gaussian noise of
    covariance x^T V^{-1} x.

    Costs, all flat in the number of updates: an update is O(d^2 + Q d). The norms of a query are
    computed when it is first seen, O(N d^2), and kept current by that update for as long as it
    waits. Up to ``DIRECT_DIM`` dimensions the noise of Q queries is O(N d (d + Q)) a draw. Above
    that so are the products x^T V_j^{-1} x' of the waiting queries, which are kept in the same way,
    and noise is O(N Q^3). What takes the time is reading the factors.

    Parameters
    ----------
    num_llms : int
        Number of LLMs, N.
    dim : int
        Length of a context, d.
    ridge : float
        Weight of the identity in V_j, lambda_0.
    dtype : {"float64", "float32"}
        Storage of the factors. Single precision halves the memory traffic, which is the cost at
        large d; B_j^T B_j stays positive definite whatever the rounding. What is kept of queries
        that wait for 8,000 updates is then off by 3e-5 for contexts of norm 1, by 0.2 for those of
        norm 100: scale such contexts.

    Raises
    ------
    ValueError
        If ``ridge`` is not positive.
    """

    def __init__(self, num_llms: int, dim: int, ridge: float = 1.0, dtype: str = "float64") -> None:
        checks.number("ridge", ridge, "(0, inf)")
        self.factors: Array = np.zeros((num_llms, dim, dim), dtype)  # B_j
        self.factors[:, np.arange(dim), np.arange(dim)] = ridge**-0.5
        self._direct = dim <= DIRECT_DIM
        self._known: Array = np.zeros((0, dim), np.float32)  # contexts whose norms were asked for
        self._norms = np.zeros((0, num_llms))  # theirs, kept current
        self._contexts: Array = np.zeros((0, dim), dtype)  # of the waiting queries
        self._sums = np.zeros(0)  # weighted, of their entries: most are told apart by them
        self._waiting: Bools = np.zeros(0, np.bool_)  # which of them still do
        self._products = np.zeros((num_llms, 0, 0))  # x^T V_j^{-1} x' of the waiting queries

    def update(self, llm: int, context: Array, weight: float = 1.0) -> None:
        """Add ``weight`` x x^T to V_j."""
        self.follow([llm], _update(self.factors[llm], context, weight)[None])

    def observe(self, shown: Sequence[int], context: Array) -> None:
        """Add x x^T to the V_j of the LLMs shown."""
        lost = _observe(self.factors, np.array(shown, np.int64), context)
        self.follow(shown, lost)

    def follow(self, shown: Sequence[int], lost: Array) -> None:
        """Keep what is known of the waiting queries current after V_j^{-1} has lost p p^T.

        ``lost`` holds p of each LLM j shown, shape (K, d).
        """
        llms = np.array(shown, np.int64)
        if len(self._known):
            _lose(self._known, self._norms, llms, lost)
        if len(self._waiting):
            _follow(self._products, self._contexts, self._waiting, llms, lost)

    def norms(self, contexts: Array) -> Floats:
        """Return ||x||_{V_j^{-1}}, shape (Q, N), for contexts of shape (Q, d)."""
        return self._current_norms(contexts).copy()

    def bounds(self, theta: Floats, contexts: Array, width: float) -> Floats:
        """Return x . theta_j + ``width`` ||x||_{V_j^{-1}}, shape (Q, N): upper bounds."""
        return _bounds(theta, contexts, self._current_norms(contexts), width)

    def _current_norms(self, contexts: Array) -> Floats:
        """Return the norms, which `follow` goes on to change."""
        self._norms = _remembered_norms(self._known, self._norms, contexts, self.factors)
        self._known = contexts.copy()
        return self._norms

    def noise(self, contexts: Array, rng: np.random.Generator, samples: int) -> Floats:
        """Draw max_m x^T A_j g_{j,m}, shape (Q, N), for contexts of shape (Q, d).

        The draws g_{j,m} ~ N(0, I_d), m = 1..M, are shared by all the queries. Above
        ``DIRECT_DIM`` dimensions the same Gaussian is drawn from its Q x Q covariance instead.
        """
        num_llms, dim, _ = self.factors.shape
        if self._direct:
            draws = rng.standard_normal((num_llms, dim, samples))
            return _direct_noise(self.factors, contexts, draws)
        jitter = JITTER[self.factors.dtype.name]
        rows, queries = self._places(contexts)
        draws = rng.standard_normal((num_llms, len(rows), samples))
        noise, sound = _correlated_noise(self._products, rows, draws, jitter)
        if not sound:  # rounding has built up in products kept for very long
            self._waiting[:] = False
            rows, queries = self._places(contexts)
            noise, _ = _correlated_noise(self._products, rows, draws, jitter)
        return noise[:, queries].T

    def _places(self, contexts: Array) -> tuple[Ints, Ints]:
        """Return the rows of what is kept of the waiting queries, and which is whose, (Q,)."""
        missing = len(contexts) - len(self._waiting)
        if missing > 0:
            self._contexts = np.pad(self._contexts, ((0, missing), (0, 0)))
            self._products = np.pad(self._products, ((0, 0), (0, missing), (0, missing)))
            self._sums = np.pad(self._sums, (0, missing))
            self._waiting = np.pad(self._waiting, (0, missing))
        places, new = _admit(self._contexts, self._sums, self._waiting, contexts)
        if len(new):
            _multiply(self.factors, self._contexts, self._waiting, new, self._products)
        return _distinct(places, len(self._contexts))
