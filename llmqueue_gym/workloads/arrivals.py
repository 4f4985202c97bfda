"""When queries arrive: Bernoulli, Markov-modulated, by the hour, or replayed from a trace.

A process only decides in which slots a query arrives; the mean rate is set apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UnplayableError, UsageError
from llmqueue_gym.streams import Draws
from llmqueue_gym.workloads.pool import file_sha256, read_spec
from llmqueue_gym.workloads.rows import find_file
from llmqueue_gym.workloads.traces import (  # noqa: F401 - three under their earlier path
    Times,
    burstiness,
    dispersion,
    interarrival_cv,
    logged_times,
    read_times,
)

Floats = NDArray[np.float64]

ARRIVAL, NO_ARRIVAL = 0.0, 1.0
"""What a stream writes for a slot: an arrival is a draw below the rate, which is at most 1."""


class ArrivalProcess(Protocol):
    """A stationary process of at most one arrival a slot, for any mean rate."""

    def check(self, rate: float) -> None:
        """Raise a ValueError if the process cannot have this mean rate."""

    def stream(self, rate: float, rng: np.random.Generator) -> Draws:
        """Return the draws of one episode: the slot has an arrival iff its draw is below ``rate``.

        They depend on the generator and the slot only, not on how many are drawn at a time.
        """


class Bernoulli:
    """Independent arrivals: every slot has one with the same probability."""

    def check(self, rate: float) -> None:
        """Accept every rate."""

    def stream(self, rate: float, rng: np.random.Generator) -> Draws:
        """Return the generator itself: its uniform draws are compared with the rate."""
        return rng


class MarkovModulated:
    """Markov-modulated Bernoulli process: the probability of an arrival follows a hidden state.

    State i lasts a geometric number of slots with mean ``sojourns[i]``; the next one is any other,
    uniformly. In state i a query arrives with probability c ``rates[i]``, c such that the mean is
    the wanted rate. An episode starts in a stationary state. With two states this is the switched
    (or, with a rate of 0, the interrupted) Bernoulli process of teletraffic theory.

    Parameters
    ----------
    rates : sequence of float
        Relative rate of every state, at least 0 and not all 0.
    sojourns : sequence of float
        Mean slots in every state, at least 1.

    Raises
    ------
    ValueError
        If there are fewer than two states, or a number is out of range.
    """

    def __init__(
        self, rates: Sequence[float] = (0.5, 1.5), sojourns: Sequence[float] = (500.0, 500.0)
    ) -> None:
        self._rates = _numbers("rates", rates, 0.0)
        self._sojourns = _numbers("sojourns", sojourns, 1.0)
        if len(self._rates) < 2 or len(self._rates) != len(self._sojourns):
            raise UsageError(
                f"arrivals: rates={rates!r} and sojourns={sojourns!r} must have one entry per "
                "state, for two states or more"
            )
        if not self._rates.any():
            raise UsageError(f"arrivals: rates={rates!r} are all 0; give one state a positive rate")
        # Every state is visited equally often, since the next is uniform over the others.
        self._shares = self._sojourns / self._sojourns.sum()
        self._rates /= self._rates @ self._shares

    def check(self, rate: float) -> None:
        """Raise a ValueError if some state would have more than one arrival a slot."""
        peak = rate * float(self._rates.max())
        if peak > 1.0 + 1e-12:
            raise UnplayableError(
                f"arrivals: at a mean rate of {rate:.4g} the busiest state has {peak:.4g} arrivals "
                "a slot, more than 1; lower the rate or load, or bring `rates` closer together"
            )

    def stream(self, rate: float, rng: np.random.Generator) -> Draws:
        """Return the draws of one episode."""
        self.check(rate)
        return _MarkovDraws(rate * self._rates, self._sojourns, self._shares, rng)


class _MarkovDraws:
    """State of one Markov-modulated episode."""

    def __init__(
        self, rates: Floats, sojourns: Floats, shares: Floats, rng: np.random.Generator
    ) -> None:
        # Generators of their own, so that draws do not depend on the length of a block.
        self._uniform, self._switch = rng.spawn(2)
        self._rates, self._leave = rates, 1.0 / sojourns
        self._state = int(self._switch.choice(len(rates), p=shares))
        self._left = int(self._switch.geometric(self._leave[self._state]))

    def random(self, *, out: Floats) -> Floats:
        """Fill ``out`` for the next slots."""
        draws = self._uniform.random(len(out))
        start = 0
        while start < len(out):
            end = min(start + self._left, len(out))
            arrived = draws[start:end] < self._rates[self._state]
            out[start:end] = np.where(arrived, ARRIVAL, NO_ARRIVAL)
            self._left -= end - start
            start = end
            if not self._left:
                other = int(self._switch.integers(len(self._rates) - 1))
                self._state = other + (other >= self._state)
                self._left = int(self._switch.geometric(self._leave[self._state]))
        return out


class Daily:
    """A daily cycle: the rate of slot t = 1, 2, ... is lambda (1 + a sin(2 pi t / day)).

    Parameters
    ----------
    day : int
        Slots of a day.
    swing : float
        a, in [0, 1]: how much more than the mean arrives at the peak, as a share of it.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    def __init__(self, day: int = 2000, swing: float = 0.5) -> None:
        self.day = checks.count("arrivals: day", day, 2)
        self.swing = checks.number("arrivals: swing", swing, "[0, 1]")

    def check(self, rate: float) -> None:
        """Raise a ValueError if the peak has more than one arrival a slot."""
        peak = rate * (1.0 + self.swing)
        if peak > 1.0 + 1e-12:
            raise UnplayableError(
                f"arrivals: at a mean rate of {rate:.4g} the peak has {peak:.4g} arrivals a slot, "
                "more than 1; lower the rate or load, or `swing`"
            )

    def stream(self, rate: float, rng: np.random.Generator) -> Draws:
        """Return the draws of one episode."""
        self.check(rate)
        slots = np.arange(1, self.day + 1)
        rates = rate * (1.0 + self.swing * np.sin(2.0 * np.pi * slots / self.day))
        return _DailyDraws(rates, rng)


@dataclass
class _DailyDraws:
    """State of one episode with a daily cycle."""

    rates: Floats  # of every slot of the day
    rng: np.random.Generator
    slot: int = 0

    def random(self, *, out: Floats) -> Floats:
        """Fill ``out`` for the next slots."""
        rates = self.rates.take(np.arange(self.slot, self.slot + len(out)), mode="wrap")
        out[:] = np.where(self.rng.random(len(out)) < rates, ARRIVAL, NO_ARRIVAL)
        self.slot = (self.slot + len(out)) % len(self.rates)
        return out


class Mapped(NamedTuple):
    """A trace on slots: which have an arrival (L,), and the slots each request waited to enter."""

    arrivals: NDArray[np.bool_]
    delays: NDArray[np.int64]


def map_to_slots(times: Floats, rate: float) -> Mapped:
    """Lay a trace of n requests on a cycle of L = round(n / rate) slots.

    The slot's length is chosen so that the mean rate comes out: the trace lasts n mean interarrival
    times, so a slot is n / L of one. A slot takes one arrival; further requests of the same slot
    spill over and enter one a slot, in order, as soon as a slot is free. So every request enters,
    the mean rate is n / L, and bursts shorter than a slot become runs of arrivals. The cycle closes
    on itself: what spills over its end enters at its start.

    Parameters
    ----------
    times : ndarray, shape (n,)
        Times of the requests, increasing, in any unit.
    rate : float
        Mean arrivals a slot, in (0, 1].
    """
    count = len(times)
    length = max(count, round(count / rate))
    span = float(times[-1] - times[0]) * count / (count - 1)
    slots = np.floor((times - times[0]) * (length / span)).astype(np.int64)
    # The first cycle leaves what waits at its end; from then on the cycles are all alike.
    order = np.arange(2 * count)
    twice = np.concatenate([slots, slots + length])
    entry = order + np.maximum.accumulate(twice - order)
    arrivals = np.zeros(length, dtype=np.bool_)
    arrivals[entry[count:] % length] = True
    return Mapped(arrivals, (entry - twice)[count:])


class Trace:
    """Arrivals replayed from a file of requests or logged conversations, see `map_to_slots`.

    An episode starts at a slot of the cycle that its seed draws, and goes round if it lasts longer.

    Parameters
    ----------
    path : str, optional
        A file of `llmqueue_gym.workloads.rows.SUFFIXES`, a row a request, in any order.
    column : str, optional
        Column of the times; by default the first there of ``TIMESTAMP`` (Azure LLM traces),
        ``Timestamp`` (BurstGPT, both layouts), ``timestamp`` (Mooncake, Qwen's Bailian, own logs),
        ``startTime`` (LiteLLM).
    unit : str, optional
        ``"s"``, ``"ms"``, ``"us"`` or ``"ns"`` for numbers; by default told by the file: by the
        size of times since 1970, in a file with ``hash_ids`` milliseconds (Mooncake) or seconds
        (Qwen), else seconds. Dates and times in ISO 8601 need none.
    dataset : str, optional
        Imported conversations in place of a file, such as ``"wildchat"``: when new queries came,
        retrials left out. Exactly one of ``path`` and ``dataset`` is given.

    Raises
    ------
    ValueError
        If the file cannot be read, a time is not one (the message names row and column), or there
        are fewer than two different times.
    """

    def __init__(
        self,
        path: str | None = None,
        column: str | None = None,
        unit: str | None = None,
        dataset: str | None = None,
    ) -> None:
        if (path is None) == (dataset is None):
            raise UsageError(
                f"arrivals 'trace': path={path!r}, dataset={dataset!r}; give exactly one of "
                "'path' and 'dataset'"
            )
        self._times = (
            read_times(path, column, unit) if path is not None else logged_times(str(dataset))
        )

    def check(self, rate: float) -> None:
        """Accept every rate up to 1."""

    def stream(self, rate: float, rng: np.random.Generator) -> Draws:
        """Return the draws of one episode."""
        if rate <= 0.0:
            return rng
        draws = _slot_draws(self._times, rate)
        return _CyclicDraws(draws, int(rng.integers(len(draws))))


@lru_cache(maxsize=16)
def _slot_draws(times: Times, rate: float) -> Floats:
    """Draws of the whole cycle, for every lane and reset of one rate."""
    draws = np.where(map_to_slots(times.seconds, rate).arrivals, ARRIVAL, NO_ARRIVAL)
    draws.flags.writeable = False
    return draws


@dataclass
class _CyclicDraws:
    """State of one episode that replays a trace."""

    draws: Floats
    position: int

    def random(self, *, out: Floats) -> Floats:
        """Fill ``out`` for the next slots."""
        out[:] = self.draws.take(np.arange(self.position, self.position + len(out)), mode="wrap")
        self.position = (self.position + len(out)) % len(self.draws)
        return out


_PROCESSES: Mapping[str, type[Bernoulli | MarkovModulated | Daily | Trace]] = {
    "bernoulli": Bernoulli,
    "markov-modulated": MarkovModulated,
    "daily": Daily,
    "trace": Trace,
}


def make_arrivals(spec: str | Mapping[str, Any]) -> ArrivalProcess:
    """Build an arrival process from its spec.

    Parameters
    ----------
    spec : str or mapping
        ``"bernoulli"``, ``"markov-modulated"``, ``"daily"``, or a mapping with the name under
        ``"process"`` and the options beside it, for example ``{"process": "trace", "path":
        "requests.csv"}``.

    Raises
    ------
    ValueError
        If the name or an option is unknown (the nearest known one is suggested), or out of range.
    """
    name, options = _read_spec(spec)
    return _PROCESSES[name](**options)


def arrivals_fingerprint(spec: str | Mapping[str, Any]) -> str:
    """SHA-256 of the file behind a spec; empty where there is none."""
    name, options = _read_spec(spec)
    if name != "trace":
        return ""
    if options.get("dataset") is not None:
        from llmqueue_gym.workloads.sources.conversations import conversations_header

        return str(conversations_header(options["dataset"]).parquet["sha256"])
    return file_sha256(find_file(options["path"]))


def _read_spec(spec: object) -> tuple[str, dict[str, Any]]:
    name, options = read_spec("arrivals", "process", spec, _PROCESSES)
    if name == "trace" and not {"path", "dataset"} & options.keys():
        raise UsageError("arrivals 'trace' needs the option 'path' or 'dataset'")
    return name, options


def _numbers(option: str, values: object, low: float) -> Floats:
    listed: list[Any] = list(values) if isinstance(values, list | tuple) else [None]
    for value in listed:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value < math.inf:
            raise UsageError(
                f"arrivals: {option}={values!r} must be a list of numbers of at least {low:g}"
            )
    return np.array(listed, dtype=np.float64)
