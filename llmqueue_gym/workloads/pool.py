"""QueryPool, the one shape every data set becomes, and the workload that draws instances from it.

A pool is a table: one row per real query, one column per LLM, with quality and, if known, cost.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UnplayableError, UsageError
from llmqueue_gym.workloads.cells import MAX_CONTEXT

if TYPE_CHECKING:
    from llmqueue_gym.workloads.prices import Step

Accept = Callable[[NDArray[np.float64]], NDArray[np.bool_]]
"""A predicate on queries: utilities (n, N) -> keep (n,)."""

Options = TypeVar("Options", bound=Callable[..., Any])

SCALES = ("quality", "table", "pool")
"""What may span the success rates of a pool's LLMs; see `PoolWorkload`."""

MIN_ACCEPTED_ROWS = 0.01
"""Smallest share of a table's queries that `draw(accept=...)` may leave."""


def printable(text: str) -> str:
    """Return one line without control characters: names and errors come from other people."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def read_spec(
    what: str,
    key: str,
    spec: object,
    factories: Mapping[str, Callable[..., Any]],
    extra: Iterable[str] = (),
) -> tuple[str, dict[str, Any]]:
    """Split a JSON-plain spec into the name of a factory and its options, and check the names.

    Parameters
    ----------
    what : str
        The argument, for errors.
    key : str
        Key of the name in a mapping; the options stand beside it.
    spec : str or mapping
        A name alone, or a mapping.
    factories : mapping of str to callable
        What can be named; the parameters are the options.
    extra : iterable of str
        Options that every factory may have besides its own.

    Raises
    ------
    ValueError
        If a name is unknown (the nearest known one is suggested), or an option is missing.
    """
    options = {key: spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or key not in options:
        raise UsageError(
            f"{what}={spec!r} must be the name of a {key} or a mapping with the key {key!r}"
        )
    options = dict(options)
    name = options.pop(key)
    if not isinstance(name, str) or name not in factories:
        raise checks.unknown_name(f"{what} {key}", name, factories)
    parameters = inspect.signature(factories[name]).parameters
    for option in options:
        if option not in parameters and option not in extra:
            raise checks.unknown_name(f"option of {what} {name!r}", option, parameters)
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise UsageError(f"{what} {name!r} needs the option {option!r}")
    return name, options


def takes_options_of(inner: Callable[..., Any]) -> Callable[[Options], Options]:
    """Let the signature of a function that hands its ``**options`` on to another one list them."""

    def decorate(function: Options) -> Options:
        own = inspect.signature(function)
        options = [
            option for option in own.parameters.values() if option.kind != option.VAR_KEYWORD
        ]
        options += [
            option.replace(kind=option.KEYWORD_ONLY)
            for name, option in inspect.signature(inner).parameters.items()
            if name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=options)  # type: ignore[attr-defined]
        return function

    return decorate


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises
    ------
    ValueError
        If there is no such file, or it cannot be read.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UsageError(f"path={str(path)!r}: there is no such file") from None
    except OSError as error:
        raise UsageError(f"path={str(path)!r}: the file cannot be read ({error})") from error


def too_few_accepted(kept: int, seen: int) -> UnplayableError:
    """Error for an ``accept`` predicate that (nearly) no query satisfies."""
    return UnplayableError(
        f"slack: only {kept} of {seen} queries have an assortment that departs fast enough; "
        "lower slack or the arrival_rate"
    )


def _first(mask: NDArray[np.bool_]) -> tuple[int, int]:
    row, column = np.argwhere(mask)[0]
    return int(row), int(column)


def check_contexts(name: str, given: Any, contexts: NDArray[np.floating[Any]]) -> None:
    """Insist on contexts (Q, d) that agents can learn from; the error shows what was given.

    Raises
    ------
    UsageError
        If one is not finite, or beyond ``MAX_CONTEXT``; the message names row and coordinate.
    """
    wrong = ~(np.abs(contexts) <= MAX_CONTEXT)
    if wrong.any():
        row, column = _first(wrong)
        raise UsageError(
            f"{name} of row {row}, coordinate {column}, is {given[row][column]}: it must be a "
            f"finite number in [-{MAX_CONTEXT:g}, {MAX_CONTEXT:g}]; scale the coordinate, best to "
            "about 1"
        )


def _check_scores(
    name: str, values: NDArray[np.float64], llms: tuple[str, ...], high: float
) -> None:
    """Check the scores (P, N): finite and in [0, high]."""
    for wrong, rule in (
        (~np.isfinite(values), "must be a finite number"),
        ((values < 0) | (values > high), f"is outside [0, {high:g}]; rescale the column"),
    ):
        if wrong.any():
            row, column = _first(wrong)
            raise UsageError(
                f"{name} of row {row}, LLM {llms[column]!r}, is {values[row, column]}: {rule}"
            )


@dataclass(frozen=True, eq=False)
class QueryPool:
    """Real queries with the quality and cost of every LLM on each.

    The arrays are copied and made read-only, because pools are shared between environments.

    Attributes
    ----------
    contexts : ndarray of float32, shape (P, d)
        Context vector of each query.
    quality : ndarray of float64, shape (P, N)
        Quality q_ij of LLM j's answer to query i, in [0, 1].
    cost : ndarray of float64, shape (P, N), or None
        Cost c_ij in USD, non-negative; None if the source records none.
    llms : tuple of str
        Distinct names of the N LLMs.
    list_price : ndarray of float64, shape (N,), or None
        What a typical query costs by public prices, USD; None if there are none. Where these change
        it is the last one, and so are the costs.
    price_changes : tuple of Step
        Changes of the list prices while the table's records last.
    times : (float, float), optional
        When the first and the last of them were made.

    Raises
    ------
    ValueError
        If shapes disagree, a name repeats, or a number is not finite or out of range; the message
        names the row and the LLM.
    """

    contexts: NDArray[np.float32]
    quality: NDArray[np.float64]
    cost: NDArray[np.float64] | None
    llms: tuple[str, ...]
    list_price: NDArray[np.float64] | None = None
    price_changes: tuple[Step, ...] = ()
    times: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        llms = tuple(self.llms)
        if not llms or not all(isinstance(name, str) and name for name in llms):
            raise UsageError(f"llms={llms!r} must be one or more non-empty names")
        repeated = sorted({name for name in llms if llms.count(name) > 1})
        if repeated:
            raise UsageError(f"llms: {repeated[0]!r} appears more than once; names must differ")
        with np.errstate(over="ignore"):  # an overflow becomes inf and is reported below
            contexts = np.array(self.contexts, dtype=np.float32)
        if contexts.ndim != 2 or 0 in contexts.shape:
            raise UsageError(
                f"contexts has shape {contexts.shape}, expected (queries, d), not empty"
            )
        check_contexts("contexts", self.contexts, contexts)
        object.__setattr__(self, "llms", llms)
        self._freeze("contexts", contexts)
        for name, high in (("quality", 1.0), ("cost", np.inf)):
            given = getattr(self, name)
            if given is None and name == "cost":
                continue
            values = np.array(given, dtype=np.float64)
            if values.shape != (len(contexts), len(llms)):
                raise UsageError(
                    f"{name} has shape {values.shape}, expected {(len(contexts), len(llms))}: "
                    "one row per context, one column per LLM"
                )
            _check_scores(name, values, llms, high)
            self._freeze(name, values)
        if self.list_price is not None:
            self._freeze("list_price", np.array(self.list_price, dtype=np.float64))

    def _freeze(self, name: str, values: NDArray[Any]) -> None:
        values.flags.writeable = False
        object.__setattr__(self, name, values)

    def utilities(
        self,
        cost_weight: float = 0.0,
        r_lo: float = 0.1,
        r_hi: float = 0.99,
        scale: str = "quality",
        rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """MNL utilities u_ij of LLM j for query i, shape (P, N).

        With the value v = q - cost_weight * c, the rate at which j alone satisfies i is
        r = r_lo + (r_hi - r_lo) (v - low) / (high - low), clipped to [r_lo, r_hi]; u = logit(r).

        With ``scale="quality"`` low and high are the smallest and the largest *quality*: a score
        point is worth the same at every cost weight. So no rate rises with the cost weight, that of
        a free answer stays as it is, and no rate depends on another answer's cost; an answer whose
        cost outweighs its quality has the rate r_lo. With ``scale="table"`` (the published scale)
        they are the smallest and the largest v: there one dear answer stretches the scale, and at
        large cost weights all other rates rise towards r_hi.

        Parameters
        ----------
        cost_weight : float
            Quality given up per USD (lambda of the paper), at least 0.
        r_lo, r_hi : float
            Success rates of the worst and the best entry, 0 < r_lo < r_hi < 1.
        scale : {"quality", "table"}
            What spans the success rates.
        rows : ndarray of int, optional
            Only these rows, as if they were the whole table.

        Raises
        ------
        ValueError
            If a parameter is out of range, the pool has no costs to weigh, or what spans the rates
            is constant, so that no scale is defined.
        """
        if not 0.0 < r_lo < r_hi < 1.0:
            raise UsageError(f"r_lo={r_lo!r}, r_hi={r_hi!r} must satisfy 0 < r_lo < r_hi < 1")
        if scale not in ("quality", "table"):
            raise checks.unknown_name("scale", scale, ("quality", "table"))
        taken = slice(None) if rows is None else rows
        quality = value = self.quality[taken]
        if checks.number("cost_weight", cost_weight, "[0, inf)"):
            if self.cost is None:
                raise UsageError(
                    f"cost_weight={cost_weight!r} needs costs, and this table has none; "
                    "name its cost columns with `cost` or leave cost_weight at 0"
                )
            with np.errstate(over="ignore"):
                value = quality - cost_weight * self.cost[taken]
            if not np.isfinite(value).all():
                raise UsageError(
                    f"cost_weight={cost_weight!r} times the costs is not finite; lower it"
                )
        spans = quality if scale == "quality" else value
        low, high = float(spans.min()), float(spans.max())
        if high == low:
            what = "quality" if spans is quality else "quality - cost_weight * cost"
            raise UsageError(
                f"{what} is {low} for every query and LLM (cost_weight={cost_weight!r}, "
                f"scale={scale!r}), so LLMs cannot be told apart; check the columns"
            )
        with np.errstate(over="ignore"):  # quality that hardly varies: the clip says what is meant
            share = (value - low) / (high - low)
        rate = np.clip(r_lo + (r_hi - r_lo) * share, r_lo, r_hi)
        return np.log(rate / (1.0 - rate))


@dataclass(frozen=True, eq=False)
class OfflineData:
    """Queries that never arrive, and how good every LLM is on them: what may be trained on.

    Public in the ``pretrained`` protocol. The utilities are scaled by two numbers of the whole
    table, which therefore show: its smallest and largest quality, or value (``scale``).

    Attributes
    ----------
    contexts : ndarray of float32, shape (n, d)
        Contexts, as those of the queries that arrive.
    utilities : ndarray of float64, shape (n, N)
        MNL utilities u_ij.
    """

    contexts: NDArray[np.float32]
    utilities: NDArray[np.float64]


class Instance(NamedTuple):
    """A problem instance: P queries and the truth about N LLMs on them.

    Attributes
    ----------
    contexts : ndarray of float32, shape (P, d)
    utilities : ndarray of float64, shape (P, N)
        Hidden MNL utilities u_ij.
    cost : ndarray of float64, shape (P, N), or None
        USD that an answer costs; None where the source records none.
    """

    contexts: NDArray[np.float32]
    utilities: NDArray[np.float64]
    cost: NDArray[np.float64] | None = None


class ShuffledContexts:
    """A workload whose contexts are dealt anew among the queries of every instance.

    A query can still be recognised by its context, but contexts say nothing about queries that
    were not served before: what an agent loses by it is what it owes to contexts. Queries,
    utilities and their order are those of the workload drawn by the same generator. So is
    ``offline``, with its contexts dealt anew as well.

    Parameters
    ----------
    workload : Workload
        Where instances come from.
    """

    def __init__(self, workload: Any) -> None:
        self._workload = workload
        self.llms: tuple[str, ...] = workload.llms
        self.context_dim: int = workload.context_dim
        self.pool_size: int = workload.pool_size
        data: OfflineData | None = getattr(workload, "offline", None)
        if data is not None:
            order = np.random.default_rng(0).permutation(len(data.contexts))
            data = OfflineData(data.contexts[order], data.utilities)
        self.offline = data

    def draw(self, rng: np.random.Generator, accept: Accept | None = None) -> Instance:
        """Draw one problem instance; see `Workload.draw`."""
        drawn: Instance = self._workload.draw(rng, accept)
        return drawn._replace(contexts=rng.permutation(drawn.contexts))


class PoolWorkload:
    """Instances made of real queries: each is a fresh subset of the pool's online rows.

    Parameters
    ----------
    pool : QueryPool
        All rows of the table.
    online : ndarray of int, shape (n,), optional
        Rows that may arrive; the others served to fit the text embedding. Default: all.
    cost_weight : float
        Quality given up per USD; see `QueryPool.utilities`.
    pool_size : int
        Queries per instance, drawn without replacement; all online rows if there are fewer.
    scale : {"quality", "table", "pool"}
        What spans the success rates: the whole table's quality, or its quality less the weighted
        cost, as `QueryPool.utilities` explains; or the latter over the drawn rows alone, anew for
        every instance (as the published runs do; ``offline`` then keeps the scale of the table).
    utilities : ndarray, shape (P, N), optional
        Utilities known otherwise, in place of those that follow from quality and cost.
    offline : ndarray of int, optional
        Rows that pretrained agents may train on. Default: all that never arrive.

    Attributes
    ----------
    llms : tuple of str
        Names of the LLMs.
    context_dim : int
        Length of a context, d.
    pool_size : int
        Rows of every drawn instance, P.
    offline : OfflineData or None
        The rows to train on; None if there are none.
    """

    def __init__(
        self,
        pool: QueryPool,
        online: NDArray[np.int64] | None = None,
        *,
        cost_weight: float = 0.0,
        pool_size: int = 1000,
        scale: str = "quality",
        utilities: NDArray[np.float64] | None = None,
        offline: NDArray[np.int64] | None = None,
    ) -> None:
        self._rows = np.arange(len(pool.contexts)) if online is None else online
        if not len(self._rows):
            raise UsageError(
                f"none of the table's {len(pool.contexts)} texts is in the online split "
                "(about 75% of the texts); give more queries"
            )
        if scale not in SCALES:
            raise checks.unknown_name("scale", scale, SCALES)
        self._pool, self._cost_weight = pool, cost_weight
        self._anew = scale == "pool"
        if utilities is None:
            utilities = pool.utilities(cost_weight, scale="table" if self._anew else scale)
        self._utilities = utilities
        self.llms = pool.llms
        self.context_dim: int = pool.contexts.shape[1]
        self.pool_size = min(checks.count("pool_size", pool_size), len(self._rows))
        rows = np.arange(len(pool.contexts)) if offline is None else offline
        others = np.setdiff1d(rows, self._rows)
        self.offline = (
            OfflineData(pool.contexts[others], utilities[others]) if others.size else None
        )

    def draw(self, rng: np.random.Generator, accept: Accept | None = None) -> Instance:
        """Draw one problem instance: ``pool_size`` online rows.

        With ``accept``, only rows that satisfy it. If they are fewer than ``pool_size``, they are
        repeated evenly (counts differ by at most one), so that the size stays constant.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        accept : callable, optional
            Utilities (n, N) -> keep (n,).

        Raises
        ------
        ValueError
            If less than 1% of the online rows are accepted, or ``accept`` is given although the
            utilities follow from the rows drawn (scale "pool").
        """
        rows = self._rows
        if accept is not None:
            if self._anew:
                raise UsageError(
                    "slack selects queries by their utilities, and with scale='pool' these follow "
                    "from the selection; leave slack out or set scale to 'table'"
                )
            rows = rows[accept(self._utilities[rows])]
            if len(rows) < MIN_ACCEPTED_ROWS * len(self._rows) or not len(rows):
                raise too_few_accepted(len(rows), len(self._rows))
        chosen = np.resize(rng.permutation(rows), self.pool_size)
        pool = self._pool
        if self._anew:
            utilities = pool.utilities(self._cost_weight, scale="table", rows=chosen)
        else:
            utilities = self._utilities[chosen]
        cost = None if pool.cost is None else pool.cost[chosen]
        return Instance(pool.contexts[chosen], utilities, cost)
