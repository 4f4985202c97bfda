"""From judged policies to the one to recommend, or to why a log cannot recommend any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.score.intervals import LEVEL, Floats, Interval
from benchmarks.score.logged import (
    FEW,
    MIN_SUPPORT,
    Evaluation,
    Prepared,
    judge_policy,
    lead,
    under_budget,
)
from llmqueue_gym.workloads.sources.log_file import Log

OWN = "your own router"
"""Label of whoever logged."""

NO_RETRIALS = "warning: no retrial"
"""How the note of a log begins in which nobody can be seen to ask again."""


_SPENT = 0.98
"""Share of a budget that a paced policy aims at where it cannot keep it surely."""

_HALVINGS = 12
"""How often the range is halved in which the share of a paced policy lies."""


class CannotTellError(Exception):
    """A log recommends nothing.

    Attributes
    ----------
    why : str
    requests : int or None
        Requests of the same kind that would do; None if more of them would not.
    """

    def __init__(self, why: str, requests: int | None) -> None:
        super().__init__(why)
        self.why, self.requests = why, requests


class Candidate(NamedTuple):
    """A policy to choose from: what it is called, who plays it, and how it was judged.

    ``paced`` says that it keeps the budget by what it does; ``file`` is the saved agent.
    """

    label: str
    agent: str
    settings: Mapping[str, Any]
    found: Evaluation
    paced: bool = False
    file: Path | None = None


class Choice(NamedTuple):
    """What a log says of its candidates.

    Attributes
    ----------
    best : Candidate
        The policy that comes first.
    stay : bool
        Whether it is not surely better than whoever logged, who keeps the budget.
    leads : Mapping of Interval
        Reward a request of the best beyond every other policy, paired by request; the intervals
        hold 95% together (Bonferroni).
    cheapest : str or None
        The cheapest policy that is not surely worse, the best included; None without costs.
    cheapest_usd : float or None
        What it spends a request.
    may_exceed : tuple of str
        Policies that were passed over: they may or may not keep the budget, and others surely do.
    """

    best: Candidate
    stay: bool
    leads: Mapping[str, Interval]
    cheapest: str | None = None
    cheapest_usd: float | None = None
    may_exceed: tuple[str, ...] = ()

    @property
    def tied(self) -> list[str]:
        """Labels of the policies that are not surely worse than the best, the nearest first."""
        could = [label for label in self.leads if label not in self.may_exceed]
        labels = [label for label in could if not self.leads[label].low > 0.0]
        return sorted(labels, key=lambda label: self.leads[label].value)


def requests_needed(requests: int, effective: float, few: float = FEW) -> int | None:
    """Return how many requests make ``few`` effective ones, if ``requests`` make ``effective``.

    Effective requests are a share of all, whatever their number; a fifth is added where they are
    too few, because that share varies from log to log. None if there are none.
    """
    if effective <= 0.0:
        return None
    return requests if effective >= few else math.ceil(requests * 1.2 * few / effective)


def requests_to_separate(requests: int, found: Interval) -> int | None:
    """Return how many requests would take 0 out of an interval, if its value is the truth.

    Its half width falls with the root of their number. None where no number would do.
    """
    half = found.high - found.value
    if not found.value or not math.isfinite(half):
        return None
    return math.ceil(requests * max(1.0, (half / abs(found.value)) ** 2))


def check_log(log: Log, train_share: float = 0.5) -> None:
    """Refuse a log that recommends nothing whatever is tried on it.

    Raises
    ------
    CannotTellError
        If retrials cannot be told, all answers are alike, or too few LLMs answered often enough.
    """
    for note in log.notes:
        if note.startswith(NO_RETRIALS):
            raise CannotTellError(note.removeprefix("warning: "), None)
    judged = np.bincount(log.llm[round(train_share * len(log)) :], minlength=len(log.llms))
    if len(judged) < 2:
        raise CannotTellError(f"one LLM alone answers ({log.llms[0]})", None)
    first, second = np.argsort(-judged)[:2]
    if judged[second] < MIN_SUPPORT:
        raise CannotTellError(
            f"of the {judged.sum():,} judged requests all but {judged.sum() - judged[first]} are "
            f"{log.llms[first]}'s, too few to tell what another LLM is worth",
            requests_needed(len(log), float(judged[second])),
        )
    if np.ptp(log.reward) == 0.0:
        raise CannotTellError("all answers are alike, so that there is nothing to choose by", None)


def paced(data: Prepared, candidate: Candidate, budget: float) -> Candidate:
    """Return a policy that takes the cheapest LLM in place of another as often as money is short.

    It does so as seldom as keeps the interval of its spending within the budget. (Spending rises
    with the share of its own choices: where this share is larger than the true one at which the
    budget is spent, so is the upper end there below its true value, which happens once in 40.)
    Where the cheapest LLM itself may exceed the budget, it spends 98% of it, by the prices of the
    first part.
    """
    prices = np.where(data.supported, data.price, np.inf)
    cheapest, policy = int(prices.argmin()), candidate.found.policy
    label = f"{candidate.label}, paced"

    def judged(share: float) -> Evaluation:
        mixed = share * policy
        mixed[:, cheapest] += 1.0 - share
        return judge_policy(data, mixed, label, candidate.found.trained_on)

    low, high, found = 0.0, 1.0, judged(0.0)
    if not keeps(found, budget):
        dear, least = float((policy @ data.price).mean()), float(prices[cheapest])
        spare = max(_SPENT * budget - least, 0.0)
        found = judged(spare / (dear - least) if dear > _SPENT * budget else 1.0)
    elif keeps(whole := judged(1.0), budget):
        found = whole
    else:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried = judged(middle)
            if keeps(tried, budget):
                low, found = middle, tried
            else:
                high = middle
    return candidate._replace(label=label, found=found, paced=True)


def keeps(found: Evaluation, budget: float | None) -> bool:
    """Whether a policy surely keeps the budget."""
    return budget is None or under_budget(found, budget)[0] is True


def left_out(data: Prepared, candidate: Candidate, budget: float | None) -> str | None:
    """Why a policy cannot be recommended; None if it can."""
    found = candidate.found
    doubts = [text for text in found.warnings if "no estimate" in text]
    if found.effective < FEW and math.isfinite(found.gain.value):
        needed = requests_needed(len(data.log), found.effective)
        return f"{found.effective:.0f} effective requests; about {needed:,} of yours make {FEW}"
    if doubts:
        return doubts[0]
    if budget is not None and found.usd is not None:
        kept, _ = under_budget(found, budget)
        if kept is False or (not candidate.paced and found.usd.value > budget):
            return f"above the budget, at {found.usd.value:.3g} USD a request"
    return None


def own_spending(data: Prepared) -> float | None:
    """Return what whoever logged spent on a judged request, USD; None without costs."""
    cost = data.log.cost
    return None if cost is None else float(cost[data.judge].mean())


def choose(
    data: Prepared,
    candidates: Sequence[Candidate],
    budget: float | None = None,
    under_load: Mapping[str, float] | None = None,
) -> Choice:
    """Choose the policy to recommend.

    The largest gain comes first, of those that surely keep the budget where there are any. Of those
    that the log does not separate from it, the one of largest score under load, where that is
    known.

    Parameters
    ----------
    data : Prepared
        The log.
    candidates : sequence of Candidate
        Judged policies.
    budget : float, optional
        USD a request.
    under_load : mapping of str to float
        Scores of candidates under load, by label.

    Raises
    ------
    CannotTellError
        If the median candidate has too few effective requests, or none can be recommended.
    """
    reasons = {one.label: left_out(data, one, budget) for one in candidates}
    sure = [math.isfinite(one.found.gain.value) for one in candidates]
    effective = [
        one.found.effective if ok else 0.0 for one, ok in zip(candidates, sure, strict=True)
    ]
    typical = float(np.median(effective))
    if typical < FEW:
        raise CannotTellError(
            f"the typical candidate does what was logged in {typical:.0f} effective requests, and "
            f"an estimate takes {FEW}"
            + ("" if typical else ": your router leaves too little to chance"),
            requests_needed(len(data.log), typical),
        )
    usable = [one for one in candidates if reasons[one.label] is None]
    if not usable:
        causes = "; ".join(f"{label}: {why}" for label, why in reasons.items())
        raise CannotTellError(f"no candidate is left ({causes})", None)
    first_of = [one for one in usable if keeps(one.found, budget)] or usable
    eligible = {one.label for one in first_of}
    may_exceed = tuple(one.label for one in usable if one.label not in eligible)
    spends = {one.label: one.found.usd.value for one in usable if one.found.usd is not None}
    own_usd = own_spending(data)
    policies: dict[str, Floats | None] = {one.label: one.found.policy for one in usable}
    if budget is None or own_usd is None or own_usd <= budget:
        policies[OWN] = None
        spends |= {} if own_usd is None else {OWN: own_usd}
    level = 1.0 - (1.0 - LEVEL) / max(1, len(policies) - 1)

    def compared(best: Candidate) -> Choice:
        leads = {
            label: lead(data, best.found.policy, policy, level)
            for label, policy in policies.items()
            if label != best.label
        }
        stay = OWN in leads and not leads[OWN].low > 0.0
        choice = Choice(best, stay, leads, may_exceed=may_exceed)
        near = [label for label in (best.label, *choice.tied) if label in spends]
        cheapest = min(near, key=spends.__getitem__, default=None)
        return choice._replace(cheapest=cheapest, cheapest_usd=spends.get(cheapest or ""))

    first = compared(max(first_of, key=lambda one: one.found.gain.value))
    near = [one for one in usable if one.label in (first.best.label, *first.tied)]
    scored = [one for one in near if one.label in (under_load or {})]
    if not under_load or not scored or first.stay:
        return first
    best = max(scored, key=lambda one: under_load[one.label])
    again = compared(best)
    return first if again.stay else again
