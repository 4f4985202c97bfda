"""What answers cost where rows do not say it: prices of queries or tokens, and the tokens."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.cells import Row, cell_of, json_cell, number_of, show
from llmqueue_gym.workloads.columns import Columns, read_columns

Tokens = tuple[float, float]
"""Of an answer, input and output."""

Price = tuple[float, ...]
"""(USD a query,) or (USD per million input tokens, USD per million output tokens)."""

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
    """Return a finite number of at least 0, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if 0 <= value <= sys.float_info.max else math.nan


def read_prices(value: object, what: str = "prices") -> dict[str, Price] | Price:
    """Read a price of every LLM, or a mapping of LLMs to theirs.

    Raises
    ------
    ValueError
        If a price is not sound; the message names the LLM.
    """
    if not isinstance(value, Mapping):
        return price_of(what, value)
    return {llm: price_of(f"{what}: {llm!r}", price) for llm, price in value.items()}


def load_prices(path: Path) -> Any:
    """Load what a JSON file of prices says; `read_prices` and `price_of` check it.

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


@dataclass(frozen=True)
class Tariff:
    """What answers cost, where the rows do not say it: prices, and where tokens are counted.

    ``prices`` are pairs of an LLM and its price, or one pair without a name for all LLMs.
    """

    prices: tuple[tuple[str | None, Price], ...]
    tokens: tuple[float | Columns, ...]

    def tokens_of(self, row: Row, llms: Sequence[str], place: str) -> list[Tokens | None]:
        """Tokens of each LLM's answer to a row's query; None where its price is of a query."""
        found: list[Tokens | None] = []
        for llm in llms:
            if len(self._price(llm)) == 1:
                found.append(None)
                continue
            read, written = (_tokens(row, llm, where, place) for where in self.tokens)
            found.append((read, written))
        return found

    def costs(self, llms: Sequence[str], tokens: Sequence[Tokens | None]) -> list[float]:
        """Return what an answer of so many tokens costs of each LLM, in USD."""
        return [usd(self._price(llm), own) for llm, own in zip(llms, tokens, strict=True)]

    @cached_property
    def _named(self) -> dict[str | None, Price]:
        return dict(self.prices)

    def _price(self, llm: str) -> Price:
        price = self._named.get(None) or self._named.get(llm)
        if price is None:
            raise UsageError(f"prices: there is no price of LLM {llm!r}; add it")
        return price


def usd(price: Price, tokens: Tokens | None) -> float:
    """Return what an answer of so many tokens costs."""
    if tokens is None:
        return price[0]
    return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6


def read_tariff(prices: Any, tokens: Any) -> Tariff | None:
    """Read the options ``prices`` and ``tokens``."""
    if prices is None:
        if tokens is not None:
            raise UsageError(f"tokens={tokens!r} cost nothing without `prices`; give both")
        return None
    read = read_prices(prices)
    pairs: tuple[tuple[str | None, Price], ...] = ((None, read),) if isinstance(read, tuple) else ()
    if isinstance(read, dict):
        pairs = tuple(sorted(read.items()))
    if not pairs:
        raise UsageError(f"prices={prices!r} names no LLM")
    if tokens is None:
        if any(len(price) == 2 for _, price in pairs):
            raise UsageError(
                f"prices={prices!r} are those of a million tokens; say with `tokens` where they "
                "are counted: [input, output], each a column, a mapping LLM -> column or a number"
            )
        return Tariff(pairs, ())
    if not isinstance(tokens, list | tuple) or len(tokens) != 2:
        raise UsageError(f"tokens={tokens!r} must be two, [input, output]")
    return Tariff(pairs, tuple(_token_source(value) for value in tokens))


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
