"""List prices of queries or tokens, which may change on a date, and what answers cost by them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import EPOCH, Row, cell_of, json_cell, number_of, show, time_of
from llmqueue_gym.workloads.columns import Columns, label_of, read_columns, scores_of

Tokens = tuple[float, float]
"""Of an answer, input and output."""

Price = tuple[float, ...]
"""(USD a query,) or (USD per million input tokens, USD per million output tokens)."""

Dated = tuple[tuple[float, Price], ...]
"""(Time from which on it holds, price), in the order of time; the first also holds before."""

MOST = 1e12
"""No price or number of tokens is larger."""

MOST_CHANGES = 100
"""A column where the price of an LLM changes more often holds no list prices."""

_EXPECTED = "USD a query, or [USD per million input tokens, USD per million output tokens]"


def price_of(what: str, value: object) -> Price:
    """Read a price: a number is one of a query, two are those of a million tokens.

    Raises
    ------
    ValueError
        If it is neither, or negative; the message begins with ``what``.
    """
    pair = isinstance(value, list | tuple)
    numbers = tuple(map(_amount, value)) if isinstance(value, list | tuple) else (_amount(value),)
    if len(numbers) != (2 if pair else 1) or any(map(math.isnan, numbers)):
        raise UsageError(f"{what} has {show(value)}, expected {_EXPECTED}")
    return numbers


def _amount(value: object) -> float:
    """Return a number of at least 0 that leaves room to add up; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if 0 <= value <= MOST else math.nan


def counted_tokens(read: object, written: object) -> Tokens | None:
    """Read input and output tokens; None where they are not counted, as some streams do not."""
    counts = number_of(read), number_of(written)
    return counts if all(0.0 <= count <= MOST for count in counts) and any(counts) else None


def _dated(what: str, value: object) -> Dated:
    """Read a price, or a list of ``{"from": date, "price": price}``."""
    if not isinstance(value, list | tuple) or not any(isinstance(v, Mapping) for v in value):
        return ((-math.inf, price_of(what, value)),)
    found: dict[float, Price] = {}
    for entry in value:
        if not isinstance(entry, Mapping) or set(entry) != {"from", "price"}:
            raise UsageError(f'{what} has {show(entry)}, expected {{"from": date, "price": price}}')
        since = time_of(entry["from"])
        if not math.isfinite(since) or since in found:
            again = "which stands there twice" if since in found else "expected a date (2026-05-04)"
            raise UsageError(f"{what}: from={show(entry['from'])}, {again}")
        found[since] = price_of(f"{what} from {show(entry['from'])}", entry["price"])
    if len({len(price) for price in found.values()}) > 1:
        raise UsageError(f"{what}: a price of a query and one of tokens; give all in one way")
    return tuple(sorted(found.items()))


class Step(NamedTuple):
    """A change of a list price within the time of some records.

    Attributes
    ----------
    llm : int
    share : float
        Of that time, in (0, 1], when it changes.
    factor : float
        New price of a usual answer over the one before.
    """

    llm: int
    share: float
    factor: float


@dataclass(frozen=True)
class PriceList:
    """List prices of LLMs: pairs of a name and its prices, or one pair without a name for all."""

    prices: tuple[tuple[str | None, Dated], ...]

    @cached_property
    def _named(self) -> dict[str | None, Dated]:
        return dict(self.prices)

    @property
    def of_tokens(self) -> bool:
        """Whether some are prices of tokens."""
        return any(len(price) == 2 for _, dated in self.prices for _, price in dated)

    @property
    def changes(self) -> bool:
        """Whether some change."""
        return any(len(dated) > 1 for _, dated in self.prices)

    def at(self, llm: str, time: float = math.inf) -> Price | None:
        """Return the price of an LLM at a time, by default the last one; None if it has none."""
        dated = self._named.get(None) or self._named.get(llm)
        if dated is None:
            return None
        return next((price for since, price in reversed(dated) if since <= time), dated[0][1])

    def of(self, llm: str, time: float = math.inf) -> Price:
        """Return the price of an LLM at a time, which it must have."""
        price = self.at(llm, time)
        if price is None:
            raise UsageError(f"prices: there is no price of LLM {llm!r}; add it")
        return price

    def listed(
        self,
        llms: Sequence[str],
        tokens: Sequence[Tokens | None],
        times: NDArray[np.float64] | None,
    ) -> tuple[list[float], tuple[Step, ...]]:
        """Return what a usual answer costs when some records end, and the changes while they last.

        Parameters
        ----------
        llms : sequence of str
        tokens : sequence of (float, float) or None
            Of the usual answer of each, where prices are of tokens.
        times : ndarray, optional
            Times of the records.

        Raises
        ------
        UsageError
            If prices change and the records have no such times, or one changes from or to 0.
        """
        for llm in llms:
            self.of(llm)
        if not self.changes:
            return self.costs(llms, tokens), ()
        if times is None:
            raise UsageError(
                "prices change on a date, but the records say no times; name their column "
                "(`timestamp`), or give one price for each LLM"
            )
        first, last = float(times.min()), float(times.max())
        dates = [since for _, dated in self.prices for since, _ in dated]
        if last < EPOCH[0] <= max(dates):
            raise UsageError(
                "prices change on dates, but the times of the records are no dates: give `from` as "
                "a number like theirs"
            )
        found = []
        for j, llm in enumerate(llms):
            before = usd(self.of(llm, first), tokens[j])
            for since, price in self._named.get(None) or self._named[llm]:
                after = usd(price, tokens[j])
                if not first < since <= last or after == before:
                    continue
                if not before * after > 0.0:
                    raise UsageError(
                        f"prices: {llm!r} changes from {before:g} to {after:g} USD a query; a "
                        "price that changes must be above 0 before and after"
                    )
                found.append(Step(j, (since - first) / (last - first), after / before))
                before = after
        return self.costs(llms, tokens, last), tuple(sorted(found, key=lambda step: step.share))

    def costs(
        self, llms: Sequence[str], tokens: Sequence[Tokens | None], time: float = math.inf
    ) -> list[float]:
        """Return what an answer of so many tokens costs of each LLM, in USD."""
        return [usd(self.of(llm, time), own) for llm, own in zip(llms, tokens, strict=True)]


def read_prices(value: object) -> PriceList:
    """Read one price, or a mapping of LLMs to theirs, each a price or a list of dated ones.

    Raises
    ------
    UsageError
        If a price is not sound; the message names the LLM.
    """
    if not isinstance(value, Mapping):
        return PriceList(((None, _dated("prices", value)),))
    if not value or not all(isinstance(llm, str) for llm in value):
        raise UsageError(f"prices={show(value)} names no LLM")
    named = {llm: _dated(f"prices: {llm!r}", price) for llm, price in value.items()}
    return PriceList(tuple(sorted(named.items())))


def recorded_prices(seen: Mapping[str, Sequence[tuple[float, Price]]]) -> PriceList:
    """Return the list prices that records show: of each LLM, times and prices in any order.

    Raises
    ------
    UsageError
        If a price changes too often to be a list price.
    """
    prices = []
    for llm, pairs in sorted(seen.items()):
        dated: list[tuple[float, Price]] = []
        for pair in sorted(pairs):
            if not dated or dated[-1][1] != pair[1]:
                dated.append(pair)
        if len(dated) > MOST_CHANGES:
            raise UsageError(
                f"prices: that of {llm!r} changes {len(dated):,} times; what a single answer cost "
                "is a cost, not a list price"
            )
        if len({len(price) for _, price in dated}) > 1:
            raise UsageError(f"prices: {llm!r} has prices of queries and of tokens; give one kind")
        prices.append((llm, tuple(dated)))
    return PriceList(tuple(prices))


def usual_tokens(tokens: Sequence[float] | None) -> Tokens | None:
    """Read the option ``tokens`` of records that count none: those of a usual answer."""
    if tokens is None:
        return None
    counts = tuple(number_of(count) for count in tokens)
    if len(counts) != 2 or not all(0.0 <= count < math.inf for count in counts):
        raise UsageError(f"tokens={tokens!r} must be two numbers, those of a usual answer")
    return counts


def price_cell(value: object, what: str) -> Price:
    """Read the price in a cell, which may be text."""
    if isinstance(value, str):
        number = number_of(value)
        if not math.isnan(number):
            value = number
        else:
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value)
    return price_of(what, value)


def load_prices(path: Path) -> Any:
    """Load what a JSON file of prices says; `read_prices` checks it.

    Raises
    ------
    ValueError
        If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"prices={str(path)!r}: not a JSON file ({error})") from error


def token_prices(path: Path) -> dict[str, tuple[float, float]]:
    """Read a file ``{LLM: [USD per million input tokens, USD per million output tokens]}``.

    Raises
    ------
    ValueError
        If the file is not such a table; the message names the LLM.
    """
    what = f"prices={str(path)!r}"
    raw = load_prices(path)
    if not isinstance(raw, dict):
        raise UsageError(f"{what}: expected {{LLM: [input, output]}}")
    table = {}
    for llm, pair in raw.items():
        price = price_of(f"{what}: {llm!r}", pair)
        if len(price) != 2:
            raise UsageError(
                f"{what}: {llm!r} has {pair!r}, expected [USD per million input tokens, "
                "USD per million output tokens]"
            )
        table[llm] = (price[0], price[1])
    return table


# --- costs of rows --------------------------------------------------------------------------------


def now_over_then(
    changes: Sequence[Step], times: NDArray[np.float64], llms: Sequence[str]
) -> NDArray[np.float64]:
    """Return the last list price of each LLM over that at each time, shape (n, N)."""
    shares = (times - times.min()) / max(float(np.ptp(times)), math.ulp(1.0))
    ratio = np.ones((len(times), len(llms)))
    for step in changes:
        ratio[shares < step.share, step.llm] *= step.factor
    return ratio


@dataclass(frozen=True)
class Tariff:
    """List prices of a table's LLMs, and where its tokens are counted.

    ``prices`` is a list, or the columns that hold the prices of each row.
    """

    prices: PriceList | Columns
    tokens: tuple[float | Columns, ...]

    def tokens_of(
        self, row: Row, prices: Sequence[Price], llms: Sequence[str], place: str
    ) -> list[Tokens | None]:
        """Tokens of each LLM's answer to a row's query; None where its price is of a query."""
        found: list[Tokens | None] = []
        for llm, price in zip(llms, prices, strict=True):
            if len(price) == 1:
                found.append(None)
                continue
            if not self.tokens:
                raise UsageError(f"{place}: {_COUNTED}")
            read, written = (_tokens(row, llm, where, place) for where in self.tokens)
            found.append((read, written))
        return found


class Bill(NamedTuple):
    """What a table's answers cost, (rows, N), and the list prices; see `PriceList.listed`."""

    costs: list[list[float]]
    listed: list[float]
    changes: tuple[Step, ...]


class Bills:
    """What the answers of a table cost by its tariff, row by row.

    Parameters
    ----------
    tariff : Tariff
    """

    def __init__(self, tariff: Tariff) -> None:
        self._tariff = tariff
        self._tokens: list[list[Tokens | None]] = []
        self._shown: list[list[Price]] = []

    def add(self, row: Row, llms: Sequence[str], place: str) -> None:
        """Count the tokens of a row, and read its prices if they are in columns."""
        prices = self._tariff.prices
        if isinstance(prices, PriceList):
            own = [prices.of(llm) for llm in llms]
        else:
            found = scores_of(row, prices, place)
            own = [
                price_cell(found.get(llm), label_of(llm, prices, place, "price")) for llm in llms
            ]
            self._shown.append(own)
        self._tokens.append(self._tariff.tokens_of(row, own, llms, place))

    def total(self, llms: Sequence[str], times: NDArray[np.float64] | None) -> Bill:
        """Return the bill, once all rows are in."""
        prices = self._tariff.prices
        if not isinstance(prices, PriceList):
            at = np.zeros(len(self._shown)) if times is None else times
            seen = {
                llm: [(float(t), own[j]) for t, own in zip(at, self._shown, strict=True)]
                for j, llm in enumerate(llms)
            }
            prices = recorded_prices(seen)
        rows = [[own for own in row if own is not None] for row in self._tokens]
        means = [_mean(row) for row in rows if row]
        typical = _mean(means) if means else None
        last = math.inf if times is None else float(times.max())
        listed, changes = prices.listed(llms, [typical] * len(llms), times)
        return Bill([prices.costs(llms, row, last) for row in self._tokens], listed, changes)


def _mean(tokens: Sequence[Tokens]) -> Tokens:
    read, written = zip(*tokens, strict=True)
    return math.fsum(read) / len(tokens), math.fsum(written) / len(tokens)


def usd(price: Price, tokens: Tokens | None) -> float:
    """Return what an answer of so many tokens costs."""
    if len(price) == 1:
        return price[0]
    if tokens is None:
        raise UsageError(_COUNTED)
    return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6


_COUNTED = (
    "prices are those of a million tokens; say with `tokens` where they are counted: [input, "
    "output], each a column, a mapping LLM -> column or a number"
)


def read_tariff(prices: Any, tokens: Any) -> Tariff | None:
    """Read the options ``prices`` and ``tokens`` of a table."""
    if prices is None:
        if tokens is not None:
            raise UsageError(f"tokens={tokens!r} cost nothing without `prices`; give both")
        return None
    columns = prices.values() if isinstance(prices, Mapping) else [prices]
    named = bool(columns) and all(isinstance(column, str) for column in columns)
    read = read_columns("prices", prices) if named else read_prices(prices)
    if tokens is None:
        if isinstance(read, PriceList) and read.of_tokens:
            raise UsageError(f"prices={prices!r}: {_COUNTED}")
        return Tariff(read, ())
    if not isinstance(tokens, list | tuple) or len(tokens) != 2:
        raise UsageError(f"tokens={tokens!r} must be two, [input, output]")
    return Tariff(read, tuple(_token_source(value) for value in tokens))


def _token_source(value: Any) -> float | Columns:
    if isinstance(value, int | float):
        if math.isnan(_amount(value)):
            raise UsageError(f"tokens: {value!r} must be a finite number of at least 0")
        return float(value)
    return read_columns("tokens", value)


def _tokens(row: Row, llm: str, where: float | Columns, place: str) -> float:
    """Count the tokens of an LLM's answer to a row's query, input or output."""
    if isinstance(where, float):
        return where
    if isinstance(where, str):
        column = where
        value = json_cell(row, column, place)
        value = value.get(llm) if isinstance(value, dict) else value
    else:
        named = dict(where)
        if llm not in named:
            raise checks.unknown_name("tokens: LLM", llm, named)
        column = named[llm]
        value = cell_of(row, column, place)
    count = number_of(value)
    if not 0 <= count < math.inf:
        raise UsageError(
            f"{place}: tokens of LLM {llm!r} in column {column!r} must be a finite number of at "
            f"least 0, not {show(value)}"
        )
    return count
