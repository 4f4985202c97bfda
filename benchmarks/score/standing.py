"""The headline of a section: every agent over several tasks, compared, ranked and by tag.

A score over several tasks is the mean over families of the mean over their tasks of the mean over
seeds: no task can be left out of it, and a family counts the same however many tasks it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.plan.suite import REFERENCES, is_ranked
from benchmarks.score.bootstrap import (
    SeedBootstrap,
    family_weights,
    improvement,
    interquartile_mean,
    run_weights,
)
from benchmarks.score.intervals import Floats, Interval, competition_ranks
from benchmarks.score.task_board import Origin, Record, Section, TaskBoard

FAMILIES = ("synthetic", "real")
"""Kinds of queries; of each kind of task they are two families, which weigh the same."""

PROFILE_THRESHOLDS = np.linspace(0.0, 1.0, 51)
"""Scores at which performance profiles are taken."""


@dataclass(frozen=True)
class OverallRow:
    """An agent's score over its section's headline tasks.

    Attributes
    ----------
    section : Section
    agent : str
        Label.
    rank : int or None
        As in a `TaskRow`, by the bootstrap; None for references and agents with missing cells.
    score : Interval or None
        Mean over families of the mean over their tasks of the mean over seeds.
    decision_us : float or None
        Median over the cells of the median time of a decision, in microseconds.
    cells, planned, expected : int
        Cells scored, planned for the agent, and planned for an agent that plays every task.
    origin : Origin
        Where the scored cells come from.
    families : Mapping of Interval
        Family -> mean over its tasks of the mean over seeds; empty where there is one family.
    iqm : Interval or None
        Interquartile mean over tasks x seeds.
    train_steps, train_seconds : float or None
        Environment steps and wall time of one training for each of these tasks, together; None
        under ``online``.
    trainings : int or None
        Trainings a task that the row stands for, the fewest of a task.
    """

    section: Section
    agent: str
    rank: int | None
    score: Interval | None
    decision_us: float | None
    cells: int
    planned: int
    expected: int
    origin: Origin
    families: Mapping[str, Interval] = field(default_factory=dict)
    iqm: Interval | None = None
    train_steps: float | None = None
    train_seconds: float | None = None
    trainings: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Two ranked agents of a section; the first is listed above the second.

    Attributes
    ----------
    first, second : str
        Labels.
    difference : Interval
        Of their scores over the tasks, paired.
    improvement : Interval
        Probability that a run of the first scores above one of the second, over the tasks with the
        weights of the score.
    """

    first: str
    second: str
    difference: Interval
    improvement: Interval


@dataclass(frozen=True)
class Profile:
    """Performance profile: share of an agent's runs that score above each threshold.

    Families weigh the same, then their tasks: the area under the curve is the score, of runs whose
    scores lie between 0 and 1.

    Attributes
    ----------
    share, low, high : ndarray, shape (L,)
        At `PROFILE_THRESHOLDS`, with the pointwise interval; infinite if a task has one seed.
    """

    share: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Standing:
    """The headline of a section: everything that runs over several tasks.

    Attributes
    ----------
    section : Section
    tasks : tuple of str
        The tasks in it.
    rows : list of OverallRow
        Best first; agents with missing cells are last and unranked.
    comparisons : list of Comparison
        Every pair of ranked agents.
    profiles : dict of Profile
        Per ranked agent, best first.
    tags : dict of dict of Interval
        Tag -> ranked agent -> score over the tasks of the tag. Tags that all tasks have are left
        out.
    families : tuple of str
        Families that the tasks belong to.
    """

    section: Section
    tasks: tuple[str, ...]
    rows: list[OverallRow]
    comparisons: list[Comparison]
    profiles: dict[str, Profile]
    tags: dict[str, dict[str, Interval]]
    families: tuple[str, ...]


def family_of(task: Mapping[str, Any]) -> str:
    """Family of a task, by its tags: ``"real"`` (real queries) or ``"synthetic"``."""
    return FAMILIES["real-data" in task["tags"]]


class _Aggregate(NamedTuple):
    """An agent's figures over several tasks."""

    score: Interval
    families: dict[str, Interval]
    iqm: Interval
    replicates: Floats  # of the score


def _aggregates(
    scores: Floats, families: Mapping[str, str], bootstrap: SeedBootstrap
) -> list[_Aggregate]:
    """Aggregate agents that have the same runs, those of the bootstrap.

    Parameters
    ----------
    scores : ndarray, shape (A, runs)
    families : Mapping[str, str]
        Family of every task.
    """
    overall = _scores(scores, families, bootstrap)
    trimmed = bootstrap.iqm(scores)
    parts = {
        family: _means(scores, *bootstrap.select([n for n in families if families[n] == family]))
        for family in FAMILIES
        if family in {families[name] for name in bootstrap.seeds}
    }
    return [
        _Aggregate(
            score,
            {family: intervals[i] for family, intervals in parts.items()},
            bootstrap.interval(float(interquartile_mean(scores[i])), trimmed[i]),
            replicates,
        )
        for i, (score, replicates) in enumerate(overall)
    ]


def _scores(
    scores: Floats, families: Mapping[str, str], bootstrap: SeedBootstrap
) -> list[tuple[Interval, Floats]]:
    """Score of every agent with its replicates; arguments as of `_aggregates`."""
    weights = family_weights([families[name] for name in bootstrap.seeds])
    values = scores @ run_weights(weights, bootstrap.seeds.values())
    return [
        (bootstrap.interval(float(value), sample), sample)
        for value, sample in zip(values, bootstrap.mean(scores, weights), strict=True)
    ]


def _means(scores: Floats, part: SeedBootstrap, runs: NDArray[np.int64]) -> list[Interval]:
    """Means of every agent over some tasks of one family."""
    weights = np.full(len(part.seeds), 1.0 / len(part.seeds))
    own = scores[:, runs]
    values = own @ run_weights(weights, part.seeds.values())
    return [
        part.interval(float(value), sample)
        for value, sample in zip(values, part.mean(own, weights), strict=True)
    ]


def make_standing(
    section: Section,
    boards: Sequence[TaskBoard],
    specs: Sequence[Record],
    table: pl.DataFrame,
    cells: Sequence[Record],
) -> Standing:
    """Aggregate a section's headline tasks; agents with missing cells are not ranked."""
    headline = {b.task["name"]: b for b in boards if b.separates and b.task["headline"]}
    expected = sum(board.seeds for board in headline.values())
    part = table.filter(pl.col("task").is_in(list(headline)) & pl.col("score").is_not_null())
    groups = {str(label): own for (label,), own in part.group_by("agent", maintain_order=True)}
    cells_of: dict[str, list[Record]] = {}
    for cell in cells:
        if cell["spec"]["task"]["name"] in headline:
            cells_of.setdefault(cell["spec"]["agent"]["label"], []).append(cell)
    complete = [label for label, own in groups.items() if own.height == expected]
    scores = {label: own["score"].to_numpy() for label, own in groups.items()}
    families = {name: family_of(task.task) for name, task in headline.items()}
    bootstrap = _draw(groups[complete[0]]) if complete else None
    found: dict[str, _Aggregate] = {}
    if bootstrap is not None:
        own = np.stack([scores[label] for label in complete])
        found = dict(zip(complete, _aggregates(own, families, bootstrap), strict=True))
    for label in groups:
        if label not in found:  # what there is of an incomplete agent
            [found[label]] = _aggregates(scores[label][None], families, _draw(groups[label]))
    several = tuple(family for family in FAMILIES if family in families.values())
    rows = []
    planned: dict[str, int] = {}
    for spec in specs:
        here = spec["task"]["name"] in headline
        planned[spec["agent"]["label"]] = planned.get(spec["agent"]["label"], 0) + here
    for label in planned:
        clock = groups[label]["decision_us"].median() if label in groups else None
        count = groups[label].height if label in groups else 0
        origin = Origin.of(cells_of.get(label, []))
        row = OverallRow(
            section,
            label,
            None,
            None,
            _number(clock),
            count,
            planned[label],
            expected,
            origin,
        )
        if (own_figures := found.get(label)) is not None:
            row = replace(row, score=own_figures.score, iqm=own_figures.iqm)
            if len(several) > 1:
                row = replace(row, families=own_figures.families)
        if section.protocol == "pretrained" and label in groups and label not in REFERENCES:
            steps, seconds, made = _training(groups[label])
            row = replace(row, train_steps=steps, train_seconds=seconds, trainings=made)
        rows.append(row)
    rows.sort(key=lambda r: (r.cells < expected, -r.score.value if r.score else np.inf, r.agent))
    ranked = [row.agent for row in rows if row.agent in complete and is_ranked(row.agent)]
    if bootstrap is None or not ranked:
        return Standing(section, tuple(headline), rows, [], {}, {}, several)
    board = np.stack([scores[label] for label in ranked])
    weights = family_weights([families[name] for name in bootstrap.seeds])
    comparisons = _comparisons(ranked, board, bootstrap, weights, found)
    beaten = {(pair.first, pair.second) for pair in comparisons if pair.difference.low > 0}
    ranks = competition_ranks(len(ranked), lambda i, j: (ranked[i], ranked[j]) in beaten)
    rank_of = dict(zip(ranked, ranks, strict=True))
    return Standing(
        section=section,
        tasks=tuple(headline),
        rows=[replace(row, rank=rank_of.get(row.agent)) for row in rows],
        comparisons=comparisons,
        profiles=_profiles(ranked, board, bootstrap, weights),
        tags=_tags(ranked, board, headline, bootstrap),
        families=several,
    )


def _draw(own: pl.DataFrame) -> SeedBootstrap:
    """Bootstrap of an agent's seeds, in the order of its scores."""
    runs = own.group_by("task", maintain_order=True).agg("block")
    blocks: dict[str, list[int]] = dict(runs.iter_rows())
    return SeedBootstrap.draw({task: len(b) for task, b in blocks.items()}, blocks=blocks)


def _training(own: pl.DataFrame) -> tuple[float | None, float | None, int | None]:
    """Return steps and seconds of a training, summed over tasks, and the fewest of a task."""
    known = own.drop_nulls(["train_steps", "train_seconds"])
    if not known.height:
        return None, None, None
    cost = pl.col("train_steps", "train_seconds")
    tasks = known.group_by("task").agg(cost.mean(), pl.col("training").n_unique())
    steps, seconds = float(tasks["train_steps"].sum()), float(tasks["train_seconds"].sum())
    return steps, seconds, min(tasks["training"].to_list())


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _comparisons(
    labels: Sequence[str],
    board: Floats,
    bootstrap: SeedBootstrap,
    weights: Floats,
    found: Mapping[str, _Aggregate],
) -> list[Comparison]:
    """Every pair of agents, better first; ``board`` holds their scores, shape (A, runs)."""
    pairs = list(combinations(range(len(labels)), 2))
    if not pairs:
        return []
    first, second = np.array(pairs).T
    sizes = list(bootstrap.seeds.values())
    chances = bootstrap.improvement(board[first], board[second], weights)
    result = []
    for (i, j), chance in zip(pairs, chances, strict=True):
        mine, theirs = found[labels[i]], found[labels[j]]
        difference = bootstrap.interval(
            mine.score.value - theirs.score.value, mine.replicates - theirs.replicates
        )
        value = improvement(board[i], board[j], sizes, weights)
        above = Interval(value, *map(float, bootstrap.share_limits(chance)))
        result.append(Comparison(labels[i], labels[j], difference, above))
    return result


def _profiles(
    labels: Sequence[str], board: Floats, bootstrap: SeedBootstrap, weights: Floats
) -> dict[str, Profile]:
    above = board[:, None, :] > PROFILE_THRESHOLDS[:, None]
    shares = above @ run_weights(weights, bootstrap.seeds.values())
    low, high = bootstrap.share_limits(bootstrap.profile(board, PROFILE_THRESHOLDS, weights))
    return {label: Profile(*parts) for label, *parts in zip(labels, shares, low, high, strict=True)}


def _tags(
    labels: Sequence[str],
    board: Floats,
    headline: Mapping[str, TaskBoard],
    bootstrap: SeedBootstrap,
) -> dict[str, dict[str, Interval]]:
    """Scores over the tasks of each tag that some tasks have and others lack."""
    result = {}
    for tag in dict.fromkeys(tag for task in headline.values() for tag in task.task["tags"]):
        names = [name for name, task in headline.items() if tag in task.task["tags"]]
        if len(names) < len(headline):
            part, runs = bootstrap.select(names)
            families = {name: family_of(headline[name].task) for name in part.seeds}
            found = _scores(board[:, runs], families, part)
            result[tag] = {label: score for label, (score, _) in zip(labels, found, strict=True)}
    return result
