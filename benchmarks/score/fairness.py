"""Rule 8: nobody beats the oracle or the bound, and no run is luckier than its choices."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, log10
from typing import NamedTuple

import polars as pl

from benchmarks.plan.suite import REFERENCES
from benchmarks.problems.kind import Kind
from benchmarks.problems.luck import LUCK_LIMIT, Luck
from benchmarks.score.intervals import LEVEL, Interval, t_interval

FALSE_ALARM = 1e-3
"""How often a run accuses a fair agent by its luck beside that of the references, at most."""

LEAST_SEEDS = 5
"""Seeds below which Student's t would lean on normality too much to accuse anybody."""


class Gap(NamedTuple):
    """An agent's paired gap in h to the oracle on a task, over seeds; negative is better."""

    words: str
    single: Interval  # at LEVEL
    corrected: Interval
    level: float  # of the corrected interval


def violations(table: pl.DataFrame, kind: Kind) -> list[str]:
    """Agents that cannot have played fair, or truths that cannot be right.

    * The paired interval over seeds of h(agent) - h(oracle) lies below 0 where the oracle is the
      optimum (`benchmarks.problems.kind.Kind.exact`), or that of h less the
      bound that no policy can expect to pass (`benchmarks.problems.kind.Kind.bound`). The level is
      Bonferroni-corrected for all comparisons of the table, so that a run of hundreds of them does
      not fail by chance. A single run may well be luckier than the oracle's on the same seed, so no
      seed is judged by its h.
    * Outcomes are further from what the choices promised than
      `benchmarks.problems.luck.LUCK_LIMIT` allows, in a run, in an agent's runs of a task
      together, or in all its runs together; only knowing the outcome draws, or a wrong truth, does
      that.
    * An agent is luckier than the references on the same draws, again and again (`_outlucked`).
    """
    return [
        *_too_lucky(table, kind),
        *_outlucked(table, kind),
        *(
            f"{gap.words} beats the oracle: {_gap_words(gap.corrected, gap.level, kind)}"
            for gap in _gaps(table, kind)
            if gap.corrected.high < 0
        ),
        *_beyond_bound(table, kind),
    ]


def warnings(table: pl.DataFrame, kind: Kind) -> list[str]:
    """Agents above the oracle by the interval of their comparison alone, but by no violation.

    Of fair policies as good as the oracle, one in forty is.
    """
    return [
        f"{gap.words} is above the oracle: {_gap_words(gap.single, LEVEL, kind)}; not at the "
        f"{_percent(gap.level)} that allows for all comparisons"
        for gap in _gaps(table, kind)
        if gap.single.high < 0 <= gap.corrected.high
    ]


# --- luck -----------------------------------------------------------------------------------------


def summed_luck(part: pl.DataFrame) -> float | None:
    """Luck of an agent's runs together; None where one of them lacks its parts.

    Runs of different seeds are independent, those of one seed share their outcome draws: over
    tasks the luck of a run is correlated, nearly to 1 between tasks that differ in little. So the
    K runs of a seed are not summed but averaged: if E exp(x D - f(x) V) <= 1 for each, then, by
    Hoelder's inequality, for the means of D and V over the runs of a seed too, however they depend
    on each other; and the product over seeds has expectation 1 at most. The figure keeps the bound
    of a run's.
    """
    parts = part.select("seed", "luck_deviation", "luck_variance")
    if not parts.height or parts.null_count().sum_horizontal().item():
        return None
    runs = int(parts["seed"].value_counts()["count"].max())  # type: ignore[arg-type]
    deviation, variance = (float(parts[name].sum()) / runs for name in parts.columns[1:])
    return Luck(deviation, variance).figure


def _judged(table: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    """Cells of everybody who must not know the draws."""
    knowing = [name for name in REFERENCES if name not in kind.blind]
    return table.filter(~pl.col("agent").is_in(knowing))


def _too_lucky(table: pl.DataFrame, kind: Kind) -> Iterator[str]:
    judged = _judged(table, kind)
    for row in judged.filter(pl.col("luck").abs() > LUCK_LIMIT).iter_rows(named=True):
        where = f"task {row['task']}: {row['agent']} (seed {row['seed']})"
        yield _luck_words(where, row["luck"], kind)
    for (task, agent), part in judged.group_by(["task", "agent"], maintain_order=True):
        luck = summed_luck(part) if part.height > 1 else None
        if luck is not None and abs(luck) > LUCK_LIMIT:
            yield _luck_words(f"task {task}: {agent} ({part.height} runs together)", luck, kind)
    for (agent,), part in judged.group_by("agent", maintain_order=True):
        luck = summed_luck(part) if part["task"].n_unique() > 1 else None
        if luck is not None and abs(luck) > LUCK_LIMIT:
            yield _luck_words(f"all tasks: {agent} ({part.height} runs together)", luck, kind)


def _luck_words(where: str, luck: float, kind: Kind) -> str:
    return (
        f"{where} had {kind.luck_name} that its choices do not explain (luck {luck:+.1f}, beyond "
        f"{LUCK_LIMIT:g}: p < 1e-8); it knows the outcome draws, or the environment's truth is "
        "wrong"
    )


def _outlucked(table: pl.DataFrame, kind: Kind) -> Iterator[str]:
    """Agents whose luck is not that of the references on the same draws.

    Per seed, the luck of an agent less the mean one of the references in the same task, summed over
    tasks. What all have in common on a seed is gone, so that an agent that peeks seldom stands out;
    of a fair agent the sums are independent and vary around 0, whatever the correlation of tasks.
    They are sums over thousands of outcomes, so that Student's t holds; the level is 1 -
    ``FALSE_ALARM`` over the number of agents.
    """
    own = ["task", "seed"]
    common = (
        table.filter(pl.col("agent").is_in(kind.blind))
        .group_by(own)
        .agg(common=pl.col("luck").mean())
    )
    agents = table.filter(~pl.col("agent").is_in(REFERENCES)).join(common, on=own, how="left")
    beyond = agents.with_columns(luck=pl.col("luck") - pl.col("common").fill_null(0.0))
    groups = list(beyond.drop_nulls("luck").group_by("agent", maintain_order=True))
    level = 1 - FALSE_ALARM / max(1, len(groups))
    for (agent,), part in groups:
        sums = part.group_by("seed").agg(pl.col("luck").sum())["luck"].to_numpy()
        found = t_interval(sums, level)
        if sums.size >= LEAST_SEEDS and not found.low <= 0 <= found.high:
            yield (
                f"all tasks: {agent} ({sums.size} seeds) had {kind.luck_name} that its choices do "
                "not explain: luck summed over tasks, less the references' on the same draws, "
                f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] a seed "
                f"({_percent(level)} interval); it knows the outcome draws, or the environment's "
                "truth is wrong"
            )


# --- oracle and bound -----------------------------------------------------------------------------


def _beyond_bound(table: pl.DataFrame, kind: Kind) -> Iterator[str]:
    """Agents beyond what any policy can expect; on tasks where each of their runs has a bound."""
    if kind.bound is None:
        return
    bounded = table.with_columns(bound=kind.bound)
    groups = [
        pair
        for pair in bounded.group_by(["task", "agent"], maintain_order=True)
        if not pair[1]["bound"].null_count()
    ]
    level = 1 - (1 - LEVEL) / max(1, len(groups))
    for (task, agent), part in groups:
        gap = t_interval((part["h"] - part["bound"]).to_numpy(), level)
        if gap.high < 0:
            words = f"task {task}: {agent} ({part.height} seeds)"
            yield f"{words} is beyond the bound of all policies: {_gap_words(gap, level, kind)}"


def _gaps(table: pl.DataFrame, kind: Kind) -> Iterator[Gap]:
    judged = table.filter(~pl.col("agent").is_in(REFERENCES), pl.col("h_oracle").is_not_null())
    judged = judged if kind.exact is None else judged.filter(kind.exact)
    groups = list(judged.group_by(["task", "agent"], maintain_order=True))
    level = 1 - (1 - LEVEL) / max(1, len(groups))
    for (task, agent), part in groups:
        gaps = (part["h"] - part["h_oracle"]).to_numpy()
        words = f"task {task}: {agent} ({part.height} seeds)"
        yield Gap(words, t_interval(gaps), t_interval(gaps, level), level)


def _gap_words(gap: Interval, level: float, kind: Kind) -> str:
    return (
        f"paired gap in {kind.h_name} {gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] "
        f"({_percent(level)} interval)"
    )


def _percent(level: float) -> str:
    """Write a level with two digits of what is missing to 100%: 95%, 99.983%."""
    return f"{100 * level:.{max(0, 1 - floor(log10(100 * (1 - level))))}f}".removesuffix(".0") + "%"
