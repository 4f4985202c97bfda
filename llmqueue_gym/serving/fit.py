"""The preset `from-log`: the constants of a serving problem, fitted on a user's own log.

`fit_serving` says how good the fit is; what it found are settings of LLMServe-v0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.rows import find_file
from llmqueue_gym.workloads.sources.logs import MIN_ROWS
from llmqueue_gym.workloads.sources.service_log import ServiceLog, read_service_log

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FROM_LOG = "from-log"
PAUSE = 1800.0
"""Seconds after which a user's next request is a new one."""

DAY = 86_400.0
BLOCKS = 30
"""Blocks of time; requests of one block may share what the regression leaves unexplained."""

BUSIEST_SLOT, SERVICE_SLOTS = 0.2, 20.0
"""A slot has at most so many arrivals at the peak, and an answer takes so many slots."""

AT_RISK = 20
"""Observations that must be left for Kaplan and Meier's estimate to judge a fit."""

MANY = 2.0
"""Standard errors from which on a daily cycle or a cost of prompts is one."""


class Estimate(NamedTuple):
    """One fitted parameter.

    Attributes
    ----------
    parameter, of : str
        Its name, and the LLM it is of, if it is of one.
    value, error : float
        Estimate and standard error.
    unit : str
    n : int
        Observations, censored ones included.
    measure : str
        What ``quality`` is: ``"R2"`` of the regression, or ``"KS"``, the largest distance between
        the fitted distribution and the observed one (Kaplan and Meier's where some are censored);
        empty for a plain mean.
    quality : float
    """

    parameter: str
    of: str
    value: float
    error: float
    unit: str
    n: int
    measure: str = ""
    quality: float = math.nan


@dataclass(frozen=True)
class ServingFit:
    """What a log says of a serving problem.

    Attributes
    ----------
    path : str
    estimates : tuple of Estimate
    notes : tuple of str
        What was assumed, or left out.
    """

    path: str
    estimates: tuple[Estimate, ...]
    notes: tuple[str, ...]
    _fleet: tuple[tuple[str, int, int], ...]  # LLM, replicas, most requests at once
    _queries: Mapping[str, Any] | None

    def value(self, parameter: str, of: str = "", missing: float = 0.0) -> float:
        """Return an estimate, ``missing`` where the log tells none."""
        found = (e.value for e in self.estimates if (e.parameter, e.of) == (parameter, of))
        return next(found, missing)

    @staticmethod
    def recipe(log: Any) -> str:
        """Return the line of Python that makes the environment of ``log``."""
        return f'gym.make("LLMServe-v0", preset="{FROM_LOG}", log={log!r})'

    def settings(self, slot_seconds: float | None = None) -> dict[str, Any]:
        """Return settings of LLMServe-v0, JSON-plain.

        By default a slot is so short that at most 0.2 queries arrive in one at the peak, and that
        an answer takes 20 of them.
        """
        mean = self.value("tokens of an answer")
        rate, swing = self.value("arrivals"), self.value("swing of the day")
        replicas, lasts = [], []
        for llm, count, places in self._fleet:
            base, each = self.value("W", llm), self.value("H", llm)
            chunk = round(self.value("chunk", llm))
            speed = {"base_seconds": base, "each_seconds": each, "chunk": chunk}
            replicas.append({"hosts": llm, "places": places, "count": count, **speed})
            lasts.append(mean * (base + each))
        slot = slot_seconds
        if slot is None:
            slot = min(BUSIEST_SLOT / (rate * (1.0 + swing)), min(lasts) / SERVICE_SLOTS)
            slot = float(f"{slot:.2g}")
        slot = checks.number("slot_seconds", slot, "(0, inf)")
        sigma, prompt = self.value("sigma"), self.value("tokens of a prompt")
        law = {"law": "lognormal", "sigma": sigma} if sigma else {"law": "geometric"}
        patience, thinks = self.value("patience"), self.value("time to think")
        keep = [self.value("kept", llm) for llm, _, _ in self._fleet]
        day = {"process": "daily", "day": round(DAY / slot), "swing": swing}
        return {
            "queries": self._queries or [{"name": "query", "keep": keep}],
            "llms": [llm for llm, _, _ in self._fleet],
            "replicas": replicas,
            "tokens": {**law, "mean": mean, "input": prompt},
            "arrivals": day if swing else "bernoulli",
            "arrival_rate": rate * slot,
            "return_rate": slot / (slot + thinks),
            "give_up": self.value("give up"),
            "impatience": -math.expm1(-slot / patience) if patience else 0.0,
            "slot_seconds": slot,
            "dispatches": min(4, sum(count for _, count, _ in self._fleet)),
        }


def settings_from_log(given: Any, slot_seconds: float | None = None) -> dict[str, Any]:
    """Return the settings of preset ``from-log``; ``given`` is what ``log`` takes."""
    options = {"path": given} if isinstance(given, str) else given
    if not isinstance(options, Mapping) or "path" not in options:
        raise UsageError(f"log={given!r} must be the name of a file, or a mapping with 'path'")
    for key in options:
        checks.choice("log: key", key, ("path", "columns", "min_rows", "context_dim"))
    return fit_serving(**options).settings(slot_seconds)


def fit_serving(
    path: str,
    columns: Mapping[str, str] | None = None,
    min_rows: int = MIN_ROWS,
    context_dim: int | None = None,
) -> ServingFit:
    """Fit the constants of a serving problem on a log; see `read_service_log` for its columns.

    * W and H: the time of a token after the first is W + H n, by least squares on n, the requests
      of the same replica from their start to their end, averaged over the tokens of the answer.
      Standard errors allow for what the requests of one of 30 blocks of time share.
    * Chunk: prompt tokens an iteration takes in, from the iterations before the first token.
    * Tokens: lognormal or geometric, whichever is nearer to the observed lengths.
    * Patience: exponential, of the time from asked to start; who is served is censored.
    * Thinking and giving up: a user whose answer was not kept is back after an exponential time, or
      never; nobody is watched for longer than half an hour or than the log lasts.
    * Arrivals: requests that are nobody's return; a daily cycle if the log lasts two days.
    * Kept: a model of the query's context where the log has queries (`OutcomeModel`), else each
      LLM's share.

    Parameters
    ----------
    path, columns
        See `read_service_log`.
    min_rows : int
        Answers an LLM must have; the others are left out.
    context_dim : int, optional
        Length of a context, where the log has queries.

    Raises
    ------
    UsageError
        If the log lacks a column, or has too few rows.
    """
    source = find_file(path)
    named = tuple(sorted((columns or {}).items()))
    stat = source.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    return _fit(str(source), named, checks.count("min_rows", min_rows), context_dim, stamp)


@lru_cache(maxsize=4)
def _fit(
    path: str,
    columns: tuple[tuple[str, str], ...],
    min_rows: int,
    context_dim: int | None,
    _stamp: tuple[int, int],
) -> ServingFit:
    log = read_service_log(path, dict(columns))
    estimates: list[Estimate] = []
    notes: list[str] = []
    fleet = []
    counts = np.bincount(log.llm[log.llm >= 0], minlength=len(log.llms))
    for llm, name in enumerate(log.llms):
        if counts[llm] < min_rows:
            notes.append(f"{name} is left out: {counts[llm]} answers, min_rows is {min_rows}")
            continue
        rows = log.llm == llm
        estimates += _speed(log, name, rows, notes)
        estimates.append(_mean("kept", log.kept[rows], "", name))
        replicas = np.unique(log.replica[rows])
        most = [_at_once(log.start, log.end, log.replica == r).max() for r in replicas]
        fleet.append((name, len(replicas), int(max(most))))
    if not fleet:
        raise UsageError(
            f"{path}: no LLM has min_rows={min_rows} answers (the most has {counts.max(initial=0)})"
            "; give more rows or lower it"
        )
    estimates += [*_tokens(log), *_patience(log, notes), *_users(log, notes)]
    queries = None
    if log.told & {"query", "embedding"}:
        queries = {"source": "logs", "path": path, "min_rows": min_rows}
        queries |= {"columns": dict(columns)} if columns else {}
        queries |= {} if context_dim is None else {"context_dim": context_dim}
    else:
        notes.append("no column query or embedding: every query is like every other")
    return ServingFit(path, tuple(estimates), tuple(notes), tuple(fleet), queries)


# --- service --------------------------------------------------------------------------------------


def _speed(log: ServiceLog, name: str, rows: Bools, notes: list[str]) -> list[Estimate]:
    """W, H and the chunk of an LLM."""
    used = np.flatnonzero(rows & (log.output_tokens > 1.0) & (log.end > log.first_token))
    if len(used) < 3:
        raise UsageError(
            f"{log.path}: LLM {name!r} has {len(used)} answers of two tokens or more that end "
            "after their first token; W and H need 3, of requests that were streamed"
        )
    if len(used) < np.count_nonzero(rows):
        left = int(np.count_nonzero(rows)) - len(used)
        notes.append(f"{name}: {left} answers of one token, or not streamed, tell nothing of W, H")
    tokens = log.output_tokens[used] - 1.0
    seconds = log.end[used] - log.first_token[used]
    found = np.array([1.0, 0.0])
    for _ in range(50):  # n is averaged over tokens, hence by the speed that is sought
        before = found
        mean_n = _over(log, rows, used, log.first_token, log.end, found)[1]
        features = np.column_stack([np.ones(len(used)), mean_n])
        found = _least_squares(features, seconds / tokens, tokens)
        if np.allclose(found, before, rtol=1e-7, atol=0.0):
            break
    errors, r2 = _quality(features, seconds / tokens, tokens, found)
    n = len(used)
    estimates = [
        Estimate("W", name, float(found[0]), errors[0], "s a token", n, "R2", r2),
        Estimate("H", name, float(found[1]), errors[1], "s a token and request", n, "R2", r2),
    ]
    if "input_tokens" not in log.told or not np.ptp(log.input_tokens[used]) > 0.0:
        notes.append(f"{name}: prompts of one length, or none, so they cost no time")
        return estimates
    prefill = _over(log, rows, used, log.start, log.first_token, found)[0]
    features = np.column_stack([log.input_tokens[used], np.ones(n)])
    slope = np.linalg.lstsq(features, prefill, rcond=None)[0]
    errors, r2 = _quality(features, prefill, np.ones(n), slope)
    if slope[0] <= MANY * errors[0]:
        notes.append(f"{name}: longer prompts take no longer, so they cost no time")
        return estimates
    # The line is the way to the staircase, whose steps flatten it a little.
    sizes = np.unique(np.maximum(np.round(np.linspace(0.8, 1.2, 401) / slope[0]), 1.0))
    misses = [float(np.var(prefill - np.ceil(log.input_tokens[used] / size))) for size in sizes]
    chunk = float(sizes[int(np.argmin(misses))])
    error = chunk * errors[0] / float(slope[0])
    return [*estimates, Estimate("chunk", name, chunk, error, "prompt tokens", n, "R2", r2)]


def _over(
    log: ServiceLog, rows: Bools, used: NDArray[np.int64], since: Floats, until: Floats, w: Floats
) -> tuple[Floats, Floats]:
    """Return the iterations that requests were given from one time to another, and n over them."""
    iterations, mean_n = np.zeros(len(used)), np.zeros(len(used))
    for replica in np.unique(log.replica[used]):
        own = np.flatnonzero(log.replica[used] == replica)
        served = rows & (log.replica == replica)
        times = np.sort(np.concatenate([log.start[served], log.end[served]]))
        here = np.maximum(_at_once(log.start, log.end, served)[:-1], 1)
        each = np.diff(times) / (w[0] + w[1] * here)  # iterations between two events
        done = np.concatenate([[0.0], np.cumsum(each)])
        with_n = np.concatenate([[0.0], np.cumsum(each * here)])
        low, high = since[used[own]], until[used[own]]
        iterations[own] = np.interp(high, times, done) - np.interp(low, times, done)
        total = np.interp(high, times, with_n) - np.interp(low, times, with_n)
        mean_n[own] = total / np.maximum(iterations[own], 1e-300)
    return iterations, mean_n


def _at_once(start: Floats, end: Floats, rows: Bools) -> NDArray[np.int64]:
    """Return how many requests are served after each of the sorted starts and ends."""
    times = np.concatenate([end[rows], start[rows]])  # at a tie, who ends goes first
    steps = np.repeat([-1, 1], np.count_nonzero(rows))
    return np.cumsum(steps[np.argsort(times, kind="stable")])


def _least_squares(features: Floats, values: Floats, weights: Floats) -> Floats:
    """Weighted least squares with coefficients of at least 0."""
    from scipy.optimize import nnls

    root = np.sqrt(weights)
    return np.asarray(nnls(features * root[:, None], values * root)[0])


def _quality(
    features: Floats, values: Floats, weights: Floats, found: Floats
) -> tuple[list[float], float]:
    """Return standard errors of coefficients, by blocks of rows that follow each other, and R2."""
    rest = values - features @ found
    bread = np.linalg.pinv((features * weights[:, None]).T @ features)
    scores = features * (weights * rest)[:, None]
    sums = np.array([block.sum(axis=0) for block in np.array_split(scores, BLOCKS)])
    variance = bread @ (sums.T @ sums) @ bread
    spread = weights @ (values - np.average(values, weights=weights)) ** 2
    r2 = 1.0 - float(weights @ rest**2 / spread) if spread > 0.0 else math.nan
    return np.sqrt(np.diag(variance)).tolist(), r2


# --- queries and users ----------------------------------------------------------------------------


def _tokens(log: ServiceLog) -> list[Estimate]:
    """Lengths of answers, lognormal or geometric, and of prompts."""
    from scipy.special import ndtr

    answered = log.llm >= 0
    lengths = np.maximum(log.output_tokens[answered], 1.0)
    n, mean, logs = len(lengths), float(lengths.mean()), np.log(lengths)
    sigma = float(logs.std(ddof=1)) if n > 1 else 0.0
    all_end, center, scale = np.ones(n, dtype=np.bool_), logs.mean(), max(sigma, 1e-9)
    geometric = _distance(lengths, all_end, lambda t: np.exp(-t / mean))
    lognormal = _distance(lengths, all_end, lambda t: ndtr((center - np.log(t)) / scale))
    if geometric <= lognormal:
        error = mean / math.sqrt(n)
        found = [Estimate("tokens of an answer", "", mean, error, "", n, "KS", geometric)]
    else:
        mean = float(np.exp(logs.mean() + sigma**2 / 2.0))
        error = mean * math.sqrt(sigma**2 / n + sigma**4 / (2.0 * n))
        found = [
            Estimate("tokens of an answer", "", mean, error, "", n, "KS", lognormal),
            Estimate("sigma", "", sigma, sigma / math.sqrt(2.0 * n), "", n, "KS", lognormal),
        ]
    if "input_tokens" in log.told:
        found.append(_mean("tokens of a prompt", log.input_tokens[answered]))
    return found


def _patience(log: ServiceLog, notes: list[str]) -> list[Estimate]:
    """Mean patience, of who left and who was answered first."""
    left = log.llm < 0
    if not left.any():
        notes.append("nobody leaves before an answer begins (a row without a start): no impatience")
        return []
    waits = np.where(left, log.end, log.start) - log.asked
    return [_exponential("patience", waits, left)]


def _users(log: ServiceLog, notes: list[str]) -> list[Estimate]:
    """Arrivals, and what users do whose answer was not kept."""
    asked, n = log.asked, len(log.asked)
    new, found = np.ones(n, dtype=np.bool_), []
    if log.session is None:
        notes.append("no column session: every request is a new query, and nobody comes back")
        found.append(Estimate("give up", "", 1.0, 0.0, "", 0))
    else:
        order = np.lexsort((asked, log.session))
        follows = np.full(n, -1)
        same = log.session[order[1:]] == log.session[order[:-1]]
        follows[order[:-1][same]] = order[1:][same]
        refused = np.flatnonzero((log.llm >= 0) & ~log.kept)
        after = follows[refused]
        thought = np.where(after >= 0, asked[after], np.inf) - log.end[refused]
        watched = np.minimum(log.end.max() - log.end[refused], PAUSE)
        back = thought <= watched
        new[after[back]] = False
        found += _returns(np.maximum(np.where(back, thought, watched), 0.0), back, notes)
    times = asked[new]
    span = float(asked.max() - asked.min())
    if span <= 0.0:
        raise UsageError(f"{log.path}: all requests were asked at the same time")
    rate, count = (len(times) - 1) / span, len(times)
    gaps, all_end = np.diff(times), np.ones(count - 1, dtype=np.bool_)
    distance = _distance(gaps, all_end, lambda t: np.exp(-rate * t))
    error = rate / math.sqrt(count)
    found.append(Estimate("arrivals", "", rate, error, "queries a s", count, "KS", distance))
    return found + _cycle(times, notes)


def _returns(times: Floats, back: Bools, notes: list[str]) -> list[Estimate]:
    """P(a user gives up) and the mean time to think, by EM: who is not back yet may come."""
    if not back.any():
        notes.append("nobody whose answer was not kept comes back")
        return [Estimate("give up", "", 1.0, 0.0, "", len(times))]
    gives_up, rate, n = (
        0.5 * float(1.0 - back.mean()),
        1.0 / max(times[back].mean(), 1e-9),
        len(times),
    )
    for _ in range(2000):
        still = (1.0 - gives_up) * np.exp(-rate * times)
        comes = np.where(back, 1.0, still / np.maximum(gives_up + still, 1e-300))
        before = gives_up, rate
        gives_up, rate = float(1.0 - comes.mean()), float(back.sum() / max(comes @ times, 1e-9))
        if abs(gives_up - before[0]) < 1e-10 and abs(rate / before[1] - 1.0) < 1e-10:
            break
    # Observed information of (give up, rate).
    decay = np.exp(-rate * times)
    alive = np.maximum(gives_up + (1.0 - gives_up) * decay, 1e-300)
    scores = np.where(
        back,
        [np.full(n, -1.0 / max(1.0 - gives_up, 1e-9)), 1.0 / rate - times],
        [(1.0 - decay) / alive, -(1.0 - gives_up) * times * decay / alive],
    )
    errors = np.sqrt(np.diag(np.linalg.pinv(scores @ scores.T)))
    distance = _distance(times, back, lambda t: gives_up + (1.0 - gives_up) * np.exp(-rate * t))
    return [
        Estimate("give up", "", gives_up, float(errors[0]), "", n, "KS", distance),
        Estimate("time to think", "", 1 / rate, float(errors[1]) / rate**2, "s", n, "KS", distance),
    ]


def _cycle(times: Floats, notes: list[str]) -> list[Estimate]:
    """Swing of a daily cycle, of as many whole days as the log has."""
    days = int((times[-1] - times[0]) // DAY)
    if days < 2:
        notes.append("the log lasts less than two days: no daily cycle")
        return []
    whole = times[times < times[0] + days * DAY]
    n, turn = len(whole), np.exp(2j * np.pi * whole / DAY)
    error = math.sqrt(2.0 / n)
    swing = math.sqrt(max(4.0 * abs(turn.mean()) ** 2 - 2.0 * error**2, 0.0))
    if swing <= MANY * error:
        notes.append(f"no daily cycle to be seen: swing {swing:.2g}, standard error {error:.2g}")
        return []
    return [Estimate("swing of the day", "", min(swing, 1.0), error, "", n)]


# --- estimates ------------------------------------------------------------------------------------


def _mean(parameter: str, values: NDArray[Any], unit: str = "", of: str = "") -> Estimate:
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(parameter, of, float(values.mean()), error, unit, n)


def _exponential(parameter: str, times: Floats, ended: Bools) -> Estimate:
    """Mean of an exponential time in seconds, of which some are censored; at least one is not."""
    count = int(ended.sum())
    mean = float(times.sum()) / count
    distance = _distance(times, ended, lambda t: np.exp(-t / mean))
    error = mean / math.sqrt(count)
    return Estimate(parameter, "", mean, error, "s", len(times), "KS", distance)


def _distance(times: Floats, ended: Bools, survival: Callable[[Floats], Floats]) -> float:
    """Largest distance between a survival function and Kaplan and Meier's estimate."""
    order = np.lexsort((~ended, times))
    at, ends = times[order], ended[order]
    risk = len(at) - np.arange(len(at))
    after = np.cumprod(1.0 - ends / risk)
    before = np.concatenate([[1.0], after[:-1]])
    fitted = survival(at)
    gaps = np.maximum(np.abs(fitted - after), np.abs(fitted - before))[ends & (risk >= AT_RISK)]
    return float(gaps.max(initial=0.0))
