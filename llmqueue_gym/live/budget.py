"""What may be spent on answers in an hour or a day."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.live.shared_agent import SharedAgent

PERIODS = {"hour": 3600, "day": 86_400}

AHEAD = 0.1
"""Share of a budget that may be spent ahead of an even pace."""

UNDER_WAY = 600.0
"""Seconds after which a request that nothing was heard of is given up; what was held is booked."""

LAPSED = 16
"""Requests at most that are given up at once."""


class OverBudgetError(RuntimeError):
    """No LLM that could answer costs less than what is left of the budget."""


class Budget(NamedTuple):
    """USD an ``"hour"`` or a ``"day"`` (UTC), and each LLM's usual cost of an answer, USD."""

    usd: float
    per: str
    prices: Mapping[str, float]


class Owed:
    """USD by budget window that were paid and are in no file yet; for any thread."""

    def __init__(self) -> None:
        self._usd: dict[int, float] = {}
        self._lock = threading.Lock()

    def add(self, window: int, usd: float) -> None:
        """Note what was paid."""
        with self._lock:
            self._usd[window] = self._usd.get(window, 0.0) + usd

    def of(self, window: int) -> float:
        """Return what is owed of a window."""
        return self._usd.get(window, 0.0)

    def write(self, booked: Callable[[int, float], object]) -> None:
        """Book all of it; what the call raises on stays."""
        for window, usd in tuple(self._usd.items()):
            booked(window, usd)
            with self._lock:
                self._usd[window] -= usd
                if not self._usd[window]:
                    del self._usd[window]


class Account:
    """What may be spent now: the budget less what was paid and what is under way.

    Attributes
    ----------
    budget : Budget, optional
        None: anything.

    One thread calls `book`, `give_up` and `write_owed`; the others are for any thread.
    """

    def __init__(
        self,
        budget: Budget | None,
        shared: SharedAgent,
        clock: Callable[[], float],
        timer: Callable[[], float],
    ) -> None:
        self.budget = budget
        self._shared = shared
        self._clock, self._timer = clock, timer
        self._held: dict[int, tuple[float, float]] = {}  # number -> USD it may cost, since when
        self._owed = Owed()

    def affordable(self, available: Sequence[int]) -> list[int]:
        """Return the LLMs that the budget allows now.

        While spending is not ahead of an even pace by more than `AHEAD`, these are all whose mean
        cost is left in the budget; else only the cheapest.

        Raises
        ------
        OverBudgetError
            If none fits.
        """
        if self.budget is None or not available:
            return list(available)
        period = PERIODS[self.budget.per]
        window, elapsed = divmod(self._clock(), period)
        spent = self._shared.learned.spent.get(int(window), 0.0) + self._owed.of(int(window))
        committed = spent + sum(usd for usd, _ in tuple(self._held.values()))
        left, ahead = self.budget.usd - committed, committed / self.budget.usd - elapsed / period
        price = {llm: self.price(llm) for llm in available}
        least = min(price.values())
        most = left if ahead <= AHEAD else min(left, least)
        fits = [llm for llm in available if price[llm] <= most]
        if not fits:
            raise OverBudgetError(
                f"{committed:.4g} of {self.budget.usd:.4g} USD a {self.budget.per} are spent"
            )
        return fits

    def price(self, llm: int) -> float:
        """Return the mean cost of an LLM's answers so far, USD; before the first, the budget's."""
        learned = self._shared.learned
        if calls := learned.calls[llm]:
            return learned.usd[llm] / calls
        return self._cost(llm, 0.0)

    def hold(self, number: int, available: Sequence[int]) -> None:
        """Hold back the highest price of the LLMs that a request may go to."""
        if self.budget is not None:
            self._held[number] = max(map(self.price, available), default=0.0), self._timer()

    def give_up(self) -> None:
        """Book requests that nothing was heard of at what was held back: they may have been paid.

        LiteLLM's SDK tells nothing of a stream to which nobody listens to its end.
        """
        now = self._timer()
        for number, (usd, since) in itertools.islice(tuple(self._held.items()), LAPSED):
            if now - since > UNDER_WAY and self._held.pop(number, None) is not None:
                self._owed.add(self._window(), usd)

    def book(self, number: int, llm: int | None, usd: float | None) -> None:
        """Write what a request cost; what cannot be written counts here, and is written later."""
        try:
            if usd is not None and self.budget is not None:
                self.write_owed()
                entry = {"usd": self._cost(llm, usd), "llm": llm, "window": self._window()}
                self._shared.add(entry)
        except Exception:
            self.owe(number, llm, usd)
            raise
        self._held.pop(number, None)

    def owe(self, number: int, llm: int | None, usd: float | None) -> None:
        """Count what a request cost, without a file."""
        if usd is not None and self.budget is not None:
            self._owed.add(self._window(), self._cost(llm, usd))
        self._held.pop(number, None)

    def write_owed(self) -> None:
        """Write what counts here only."""
        self._owed.write(
            lambda window, usd: self._shared.add({"usd": usd, "llm": None, "window": window})
        )

    def _window(self) -> int:
        assert self.budget is not None
        return int(self._clock() // PERIODS[self.budget.per])

    def _cost(self, llm: int | None, usd: float) -> float:
        """Return USD to book: of an answer without a price, what the budget says."""
        if usd or llm is None or self.budget is None:
            return usd
        return float(self.budget.prices[self._shared.learned.llms[llm]])


def checked_budget(budget: Budget, llms: Sequence[str]) -> Budget:
    """Return a budget that has a price for each of the LLMs.

    Raises
    ------
    UsageError
        If a price is missing or a number is out of range.
    """
    usd, per, prices = budget
    checks.number("budget.usd", usd, "(0, inf)")
    checks.choice("budget.per", per, PERIODS)
    for llm in llms:
        if llm not in prices:
            raise UsageError(
                f"budget.prices has no {llm!r}; give the usual cost of an answer in USD of each LLM"
            )
        checks.number(f"budget.prices[{llm!r}]", prices[llm], "[0, inf)")
    return budget
