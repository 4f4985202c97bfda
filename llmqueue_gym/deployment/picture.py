"""Text and pictures of LLMDeploy-v0 and its stage twin: deployments, traffic and money over time.

Only what a provider sees: an LLM appears when it is released, with what it earned and cost so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.canvas import (
    BARS,
    FAINT,
    INK,
    MARGIN,
    MEDIUM,
    MUTED,
    NAME_LETTERS,
    RETRY,
    SMALL,
    TRACE,
    WIDTH,
    Canvas,
    Colour,
    Point,
    short_name,
)
from llmqueue_gym.deployment.lanes import DeploymentDynamics
from llmqueue_gym.workloads.pool import printable

MAX_ROWS = 15
"""LLMs shown; of more, the deployed and the most used ones, and a row that sums up the others."""
MAX_COLUMNS = 64
"""Columns of the timeline; with more stages a column holds several."""

_SPEND_POINTS = 400  # of the spend curve, over the horizon

_RELEASED = (150, 158, 166)
# From idle to the largest share an LLM may take: ColorBrewer's Blues, ordered by lightness, so told
# apart with any common colour blindness and in print.
_SHARES: tuple[Colour, ...] = ((208, 225, 242), (158, 202, 225), (66, 146, 198), (8, 48, 107))

_LEGEND_LINE = 74
_LEFT, _RIGHT = 188, 596  # of the timeline and the spend curve
_ROWS_TOP, _ROWS_HEIGHT, _LARGEST_ROW = 102, 204, 30
_NUMBERS = (646, 706, 776)  # right ends of the columns of numbers
_SPEND_BOTTOM = 416


class DeployRenderer:
    """Draws lane 0 of the deployment problem from what the provider sees.

    Names of deployed LLMs are dark, the others grey. Recording a step costs O(N); a picture takes
    about 15 ms, whatever the time.

    Parameters
    ----------
    dynamics : DeploymentDynamics
        The problem; lane 0 is drawn.
    llms : sequence of str, length N
        Names of the LLMs.
    """

    def __init__(self, dynamics: DeploymentDynamics, llms: Sequence[str]) -> None:
        self._dynamics = dynamics
        self._llms = tuple(map(printable, _without_provider(llms)))
        rules = dynamics.rules
        self._budget = rules.budget * rules.horizon
        self._group = -(-rules.num_stages // MAX_COLUMNS)  # stages of a column
        starts = rules.stage_starts[:: self._group]
        self._edges: list[int] = [*starts.tolist(), rules.horizon]
        self.start()

    def start(self) -> None:
        """Forget the past: an episode begins."""
        n, columns = len(self._llms), len(self._edges) - 1
        self._query, self._stage = 0, 0
        self._count = np.zeros(n, dtype=np.int64)
        self._served = np.zeros((n, columns), dtype=np.int64)
        self._deployed = np.zeros((n, columns), dtype=np.bool_)
        self._released = np.where(self._dynamics.available[0], 0, -1)  # query, -1: not yet
        self._gone = np.full(n, -1)
        self._spend: list[tuple[int, float]] = [(0, 0.0)]
        self._reward = self._ledger_score = 0.0
        self._refused = self._throttled = 0
        self._ledger_end: int | None = None

    def record(self, info: Mapping[str, Any]) -> None:
        """Take note of a step that has just run, of one query or of a stage.

        Parameters
        ----------
        info : mapping
            The step's ``info``.
        """
        dynamics, column = self._dynamics, self._stage // self._group
        self._query, self._stage = int(dynamics.query[0]), int(dynamics.stage[0])
        self._served[:, column] += dynamics.count[0] - self._count
        self._count = dynamics.count[0].copy()
        self._deployed[:, column] |= dynamics.deployed[0]
        there, known = dynamics.available[0], self._released >= 0
        self._released[there & ~known] = self._query
        self._gone[known & ~there & (self._gone < 0)] = self._query
        self._reward += info["rated_reward"]
        self._ledger_score += info["ledger_reward"]
        self._refused += int(info["refused"])
        self._throttled += int(info["throttled"])
        if info["over_budget"] and self._ledger_end is None:
            self._ledger_end = self._query
        if self._query - self._spend[-1][0] >= dynamics.horizon / _SPEND_POINTS:
            self._spend.append((self._query, info["spend"]))

    # ------------------------------------------------------- what both show

    def _rows(self) -> tuple[list[int], list[int]]:
        """Return the LLMs with a row of their own and those summed up, by release."""
        released = np.flatnonzero(self._released >= 0)
        order = np.lexsort((released, self._released[released]))
        released = released[order]
        if len(released) <= MAX_ROWS:
            return released.tolist(), []
        deployed = self._dynamics.deployed[0, released]
        rank = np.lexsort((-self._released[released], -self._count[released], ~deployed))
        shown = np.sort(rank[: MAX_ROWS - 1])
        return released[shown].tolist(), np.delete(released, shown).tolist()

    def _shares(self, llms: list[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the traffic share of some LLMs together and whether one is deployed, (C,)."""
        done = np.clip(np.diff(np.minimum(self._edges, self._query)), 1, None)
        shares: NDArray[np.float64] = self._served[llms].sum(axis=0) / done
        return shares, np.asarray(self._deployed[llms].any(axis=0))

    def _total_share(self, llms: list[int]) -> str:
        share = float(self._count[llms].sum()) / max(self._query, 1)
        return "<1%" if 0.0 < share < 0.005 else f"{share:.0%}"

    @property
    def _top_share(self) -> float:
        """Share of the darkest colour: the largest that an LLM may take."""
        return max(self._dynamics.rules.alpha)

    def _headline(self) -> tuple[str, str]:
        """Return where the episode is, and its means and totals."""
        rules = self._dynamics.rules
        clock = (
            f"query {self._query:,} of {rules.horizon:,}    "
            f"stage {self._stage + 1:,} of {rules.num_stages:,}"
        )
        done = max(self._query, 1)
        scores = f"reward {self._reward / done:.3f}    ledger {self._ledger_score / done:.3f}"
        return clock, f"{scores}    refused {self._refused:,}    throttled {self._throttled:,}"

    def _to_come(self) -> str:
        """Return how many LLMs are still to be released, as words."""
        return f"{int((self._released < 0).sum()):,} to come"

    def _money(self) -> tuple[float, str, str]:
        """Return USD spent, and in words the shares of the budget and of the queries."""
        spend = float(np.ravel(self._dynamics.spend)[0])
        ratio = spend / self._budget
        share = f"{ratio:.0%} of" if ratio < 10.0 else f"{_three_digits(ratio)} x"
        elapsed = self._query / self._dynamics.horizon
        return spend, f"{share} the budget", f"{elapsed:.0%} of the queries"

    def _numbers(self, llm: int, seen: Mapping[str, Any]) -> tuple[str, str, str]:
        """Return an LLM's traffic share, mean reward, and mean cost of 1,000 queries."""
        if not self._count[llm]:
            return "-", "-", "-"
        cost = _three_digits(1000.0 * float(seen["mean_cost"][llm]))
        return self._total_share([llm]), f"{float(seen['mean_reward'][llm]):.2f}", cost

    # ------------------------------------------------------------------- text

    def text(self) -> str:
        """Describe the episode so far, a line per LLM.

        Returns
        -------
        str
            Totals; money; per LLM a column per stage (``.`` released, a bar: deployed, as high as
            its share of the stage's traffic) and its share of all traffic, mean reward and mean
            cost of 1,000 queries.
        """
        clock, totals = self._headline()
        spend, spent, elapsed = self._money()
        state = f"; ledger exhausted at query {self._ledger_end:,}" if self._ledger_end else ""
        lines = [
            f"{clock}    {totals}",
            f"spent ${_three_digits(spend)} of ${_three_digits(self._budget)}: {spent} "
            f"in {elapsed}{state}",
        ]
        seen = self._dynamics.observe_first()
        width = max(len(self._edges) - 1, len("stages"))
        lines.append(
            f"{'':{NAME_LETTERS}}  {'stages':{width}}  {'traffic':>7} {'reward':>6} {'$/1k':>9}"
        )
        shown, others = self._rows()
        for llm in shown:
            name = short_name(self._llms[llm])
            share, reward, cost = self._numbers(llm, seen)
            lines.append(
                f"{name:{NAME_LETTERS}} |{self._bars([llm]):{width}}| "
                f"{share:>7} {reward:>6} {cost:>9}"
            )
        if others:
            share, name = self._total_share(others), f"+{len(others)} more"
            lines.append(f"{name:{NAME_LETTERS}} |{self._bars(others):{width}}| {share:>7}")
        if (self._released < 0).any():
            lines.append(self._to_come())
        return "\n".join([*lines, ""])

    def _bars(self, llms: list[int]) -> str:
        shares, deployed = self._shares(llms)
        level = np.ceil(shares / self._top_share * (len(BARS) - 1)).astype(int)
        released = self._released[llms].min()
        gone = self._gone[llms]
        until = self._query if (gone < 0).any() else gone.max()
        marks = []
        for column, start in enumerate(self._edges[:-1]):
            if deployed[column]:
                marks.append(BARS[min(level[column], len(BARS) - 1)])
            else:
                there = released < self._edges[column + 1] and start < until
                marks.append("." if there else " ")
        return "".join(marks)

    # ---------------------------------------------------------------- picture

    def picture(self) -> NDArray[np.uint8]:
        """Draw the timeline of the LLMs and the spend against the budget.

        Returns
        -------
        ndarray of uint8, shape (450, 800, 3)

        Raises
        ------
        gymnasium.error.DependencyNotInstalled
            If pygame is not installed.
        """
        canvas = Canvas()
        clock, totals = self._headline()
        canvas.title("LLMDeploy", clock, totals, SMALL)
        self._draw_legend(canvas)
        bottom = self._draw_rows(canvas)
        self._draw_spend(canvas, bottom + 46)
        return canvas.pixels()

    def _draw_legend(self, canvas: Canvas) -> None:
        y = _LEGEND_LINE
        canvas.text("LLMs", MARGIN, y, size=MEDIUM)
        canvas.line((_LEFT, y), (_LEFT + 20, y), _RELEASED)
        canvas.dot((_LEFT, y), _RELEASED, 2)
        x = canvas.text("released", _LEFT + 26, y, MUTED) + 20
        canvas.box((x, y - 7, 14, 14), _SHARES[0])
        unit = "stage" if self._group == 1 else f"{self._group:,} stages"
        x = canvas.text(f"deployed, per {unit}", x + 20, y, MUTED) + 20
        x = canvas.text("traffic share", x, y, MUTED) + 8
        for step in range(41):
            canvas.box((x + step, y - 7, 1, 14), _shade(step / 40))
        canvas.text(f"{self._top_share:.0%}", x + 47, y, MUTED)
        for right, label in zip(_NUMBERS, ("traffic", "reward", "$ per 1k"), strict=True):
            canvas.text(label, right, y, MUTED, align="right")

    def _draw_rows(self, canvas: Canvas) -> float:
        """Draw a row per LLM; return where the rows end."""
        shown, others = self._rows()
        # The rows keep their places when LLMs are released.
        rows = min(len(self._llms), MAX_ROWS)
        pitch = min(_LARGEST_ROW, _ROWS_HEIGHT / rows)
        seen = self._dynamics.observe_first()
        for row, llm in enumerate(shown):
            y = _ROWS_TOP + (row + 0.5) * pitch - 8
            colour = INK if self._dynamics.deployed[0, llm] else MUTED
            name = canvas.shorten(self._llms[llm], _LEFT - MARGIN - 14)
            canvas.text(name, MARGIN, y, colour)
            self._draw_timeline(canvas, [llm], y, pitch)
            for right, number in zip(_NUMBERS, self._numbers(llm, seen), strict=True):
                canvas.text(number, right, y, colour, align="right")
        if others:
            y = _ROWS_TOP + (rows - 0.5) * pitch - 8
            canvas.text(f"+{len(others):,} more", MARGIN, y, MUTED)
            self._draw_timeline(canvas, others, y, pitch)
            canvas.text(self._total_share(others), _NUMBERS[0], y, MUTED, align="right")
        elif len(shown) < rows:
            y = _ROWS_TOP + (len(shown) + 0.5) * pitch - 8
            canvas.text(self._to_come(), MARGIN, y, _RELEASED)
        return _ROWS_TOP + rows * pitch - 8

    def _draw_timeline(self, canvas: Canvas, llms: list[int], y: float, pitch: float) -> None:
        first, gone = int(self._released[llms].min()), self._gone[llms]
        last = self._query if (gone < 0).any() else int(gone.max())
        canvas.line((self._x(first), y), (self._x(last), y), _RELEASED)
        if first:
            canvas.dot((self._x(first), y), _RELEASED, 2)
        if last < self._query:
            canvas.line((self._x(last), y - 4), (self._x(last), y + 4), _RELEASED)
        shares, deployed = self._shares(llms)
        gap = 1 if (_RIGHT - _LEFT) / len(shares) > 5 else 0
        for column in np.flatnonzero(deployed):
            left = self._x(self._edges[column])
            right = self._x(min(self._edges[column + 1], self._query)) - gap
            colour = _shade(shares[column] / self._top_share)
            height = pitch - 3
            canvas.box((left, y - height / 2, max(right - left, 1.0), height), colour)

    def _x(self, query: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * query / self._dynamics.horizon

    def _draw_spend(self, canvas: Canvas, top: float) -> None:
        spend, spent, elapsed = self._money()
        bottom, highest = _SPEND_BOTTOM, max(self._budget, spend) * 1.05

        def point(query: float, usd: float) -> Point:
            return self._x(query), bottom - usd * (bottom - top) / highest

        canvas.text("Spend", MARGIN, top - 24, size=MEDIUM)
        canvas.line((_LEFT, top - 24), (_LEFT + 20, top - 24), _RELEASED)
        x = canvas.text("the budget, spent evenly", _LEFT + 26, top - 24, MUTED) + 20
        if self._ledger_end is not None:
            canvas.line((x + 2, top - 30), (x + 2, top - 18), RETRY, 2)
            canvas.text("ledger exhausted", x + 10, top - 24, RETRY)
        horizon = self._dynamics.horizon
        for usd in (0.0, self._budget):
            start, end = point(0, usd), point(horizon, usd)
            canvas.line(start, end, FAINT)
            if usd or point(0, self._budget)[1] < bottom - 16:  # else the two would overlap
                canvas.text(f"${_three_digits(usd)}", _LEFT - 8, start[1], MUTED, align="right")
        canvas.curve([point(*at) for at in [*self._spend, (self._query, spend)]], bottom)
        canvas.line(point(0, 0.0), point(horizon, self._budget), _RELEASED)
        canvas.dot(point(self._query, spend), TRACE)
        for query in (0, horizon // 2, horizon):
            canvas.text(f"{query:,}", self._x(query), bottom + 15, MUTED, align="centre")
        canvas.text("query", WIDTH - MARGIN, bottom + 15, MUTED, align="right")
        if self._ledger_end is not None:
            end_x = self._x(self._ledger_end)
            canvas.line((end_x, top), (end_x, bottom), RETRY, 2)
        words = (f"${_three_digits(spend)} spent", spent, elapsed)
        for line, colour in enumerate((TRACE, MUTED, MUTED)):
            canvas.text(words[line], _RIGHT + 24, top + 8 + 18 * line, colour)


def _shade(share: float) -> Colour:
    """Colour of a traffic share, in units of the largest; the shades between are linear."""
    place = min(share, 1.0) * (len(_SHARES) - 1)
    low = min(int(place), len(_SHARES) - 2)
    mix = place - low
    r, g, b = (
        round(a + mix * (z - a)) for a, z in zip(_SHARES[low], _SHARES[low + 1], strict=True)
    )
    return r, g, b


def _three_digits(number: float) -> str:
    """Write at least three digits, with an exponent only where it would be long without."""
    if number == 0.0:
        return "0"
    digits = 2 - math.floor(math.log10(number))
    return f"{number:,.{max(digits, 0)}f}" if -4 <= digits <= 7 else f"{number:.1e}"


def _without_provider(llms: Sequence[str]) -> tuple[str, ...]:
    """Drop what comes before the last slash, if the names stay different."""
    short = tuple(name.rsplit("/", 1)[-1] for name in llms)
    return short if len(set(short)) == len(short) else tuple(llms)
