"""Tables of differences: what production routers leave on the table, what breaks, what is tuned.

All are over the headline tasks of a section, with the weights and the bootstrap of its score.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from baselines.registry import agent_spec
from benchmarks.plan.suite import is_ranked
from benchmarks.problems import PROBLEMS, problem_of
from benchmarks.problems.interface import Problem
from benchmarks.report.data import board_data
from benchmarks.report.tables import escaped, markdown_table, origin_text
from benchmarks.report.words import interval_text
from benchmarks.score.bootstrap import SeedBootstrap, family_weights, run_weights
from benchmarks.score.intervals import Floats, Interval, competition_ranks, t_interval
from benchmarks.score.scoring import Board, tidy
from benchmarks.score.standing import FAMILIES, Standing, family_of

CALM = "stationary"
"""Tag of the tasks in which nothing is wrong."""


class Runs:
    """Scores of the agents that played all of some tasks, run by run, and their bootstrap.

    Parameters
    ----------
    table : DataFrame
        ``task``, ``agent``, ``seed`` and ``score``, as `benchmarks.score.scoring.tidy` has them.
    families : Mapping of str
        The tasks, and the family of each.
    """

    def __init__(self, table: pl.DataFrame, families: Mapping[str, str]) -> None:
        part = table.filter(pl.col("task").is_in(list(families))).sort("task", "seed")
        groups = {str(a): own for (a,), own in part.group_by("agent", maintain_order=True)}
        most = max((own.height for own in groups.values()), default=0)
        whole = {label: own for label, own in groups.items() if own.height == most}
        self.scores: dict[str, Floats] = {a: own["score"].to_numpy() for a, own in whole.items()}
        counts = next(iter(whole.values())).group_by("task", maintain_order=True).len()
        self.seeds = dict(zip(counts["task"].to_list(), counts["len"].to_list(), strict=True))
        self._weights = family_weights([families[name] for name in self.seeds])
        self.bootstrap = SeedBootstrap.draw(self.seeds)

    def mean(self, scores: Floats) -> tuple[float, Floats]:
        """Return the mean over families, tasks and seeds of scores (runs,), and its replicates."""
        weights = run_weights(self._weights, self.seeds.values())
        return float(scores @ weights), self.bootstrap.mean(scores[None], self._weights)[0]

    def interval(self, scores: Floats) -> Interval:
        """Return that mean with its interval."""
        return self.bootstrap.interval(*self.mean(scores))

    def tasks_won(self, gaps: Floats) -> tuple[int, int]:
        """Count the tasks on which paired gaps (runs,) are surely above and below 0."""
        ends = np.cumsum(list(self.seeds.values()))[:-1]
        found = [t_interval(own) for own in np.split(gaps, ends)]
        return sum(gap.low > 0 for gap in found), sum(gap.high < 0 for gap in found)


def _table(board: Board, standing: Standing) -> pl.DataFrame:
    """Scores of a section's headline tasks, null where there is none."""
    kind, protocol = standing.section
    cells = [
        cell
        for cell in board.cells
        if problem_of(cell["spec"]["task"]["env"]).kind is kind
        and cell["spec"]["protocol"] == protocol
    ]
    return tidy(cells, kind).filter(pl.col("score").is_not_null())


def _families(board: Board, standing: Standing) -> dict[str, str]:
    tasks = {task.task["name"]: task.task for task in board.tasks_of(standing.section)}
    return {name: family_of(tasks[name]) for name in standing.tasks}


def routers_markdown(board: Board) -> str:
    """Return what production routers leave on the table, in Markdown: a table a family."""
    parts: list[str] = []
    for standing in board.standings:
        problem = PROBLEMS[standing.section.kind.name]
        families = _families(board, standing)
        table = _table(board, standing)
        if standing.section.protocol != "online":
            continue
        there = [f for f in FAMILIES if f in families.values()]
        for family in [None, *(there if len(there) > 1 else [])]:
            chosen = {t: f for t, f in families.items() if family in (None, f)}
            if not chosen or not set(problem.shipped) & set(table["agent"]):
                continue
            runs = Runs(table, chosen)
            name = {None: "All tasks", "real": "Real queries", "synthetic": "Synthetic queries"}
            parts += [f"### {name[family]} ({len(chosen)})\n", _shortfall(runs, problem)]
    return _signed(board, parts) or "No router that gateways ship has played all tasks yet.\n"


def _signed(board: Board, parts: list[str]) -> str:
    """Join the parts of a page and add where they come from; "" if there are none."""
    return "\n".join([*parts, f"{origin_text(board_data(board))}\n"]) if parts else ""


def _shortfall(runs: Runs, problem: Problem) -> str:
    """Return the table of one group of tasks."""
    simple = {*problem.shipped, *problem.controls}
    value = {label: runs.mean(scores)[0] for label, scores in runs.scores.items()}
    others = [label for label in value if label not in simple and is_ranked(label)]
    best = max(others, key=value.__getitem__, default="")
    rivals = [rival for rival in dict.fromkeys((best, *problem.rivals)) if rival in value]
    mix = next((rival for rival in rivals if not is_ranked(rival)), None)
    rows = [label for label in (*problem.shipped, *problem.controls, *rivals) if label in value]
    rows = sorted(dict.fromkeys(rows), key=lambda label: -value[label])
    columns = ["agent", "score", *(f"less {escaped(rival)}" for rival in rivals)]
    lines = []
    for label in rows:
        own = runs.scores[label]
        gaps = [
            "" if label == rival else interval_text(runs.interval(own - runs.scores[rival]), 3)
            for rival in rivals
        ]
        line = [label, interval_text(runs.interval(own), 3), *gaps]
        if mix is not None:
            ahead, behind = runs.tasks_won(own - runs.scores[mix])
            line.append("" if label == mix else f"{ahead} / {behind}")
        lines.append(line)
    if mix is not None:
        columns.append("tasks ahead of / behind the mix")
    return markdown_table(columns, lines)


def breaks_markdown(board: Board) -> str:
    """Return what each thing that is wrong costs an agent, in Markdown: a table a section.

    What is wrong is a tag that no task tagged `CALM` has; its tasks are compared with those of
    `CALM` of the same families. The largest loss that is surely one is bold.
    """
    parts: list[str] = []
    for standing in board.standings:
        tasks = {task.task["name"]: task.task for task in board.tasks_of(standing.section)}
        calm = [name for name in standing.tasks if CALM in tasks[name]["tags"]]
        usual = {tag for name in calm for tag in tasks[name]["tags"]}
        tags = [tag for name in standing.tasks for tag in tasks[name]["tags"] if tag not in usual]
        if calm and tags:
            table, families = _table(board, standing), _families(board, standing)
            pairs = {}
            for tag in dict.fromkeys(tags):
                wrong = {t: families[t] for t in standing.tasks if tag in tasks[t]["tags"]}
                right = {t: families[t] for t in calm if families[t] in wrong.values()}
                wrong = {t: own for t, own in wrong.items() if own in right.values()}
                if right:
                    pairs[tag] = Runs(table, right), Runs(table, wrong)
            parts += [f"### {standing.section.kind.name.capitalize()}\n"]
            parts += [_losses(Runs(table, {t: families[t] for t in calm}), pairs)]
    return _signed(board, parts) or f"No task here is tagged {CALM}.\n"


def _losses(calm: Runs, pairs: Mapping[str, tuple[Runs, Runs]]) -> str:
    """Return the table of one section, best agents first."""
    whole = [label for label in calm.scores if is_ranked(label)]
    whole = [a for a in whole if all(a in runs.scores for pair in pairs.values() for runs in pair)]
    lines = []
    for label in sorted(whole, key=lambda label: -calm.mean(calm.scores[label])[0]):
        losses = []
        for right, wrong in pairs.values():
            (before, drawn), (after, again) = (
                runs.mean(runs.scores[label]) for runs in (right, wrong)
            )
            losses.append(right.bootstrap.interval(after - before, again - drawn))
        sure = [loss.value for loss in losses if loss.high < 0.0]
        texts = [interval_text(loss, 3) for loss in losses]
        cells = [
            f"**{text}**" if sure and loss.value == min(sure) else text
            for loss, text in zip(losses, texts, strict=True)
        ]
        lines.append([label, interval_text(calm.interval(calm.scores[label]), 3), *cells])
    return markdown_table(["agent", CALM, *map(escaped, pairs)], lines)


def tuned_markdown(board: Board) -> str:
    """Return every agent with a knob at its default and at its best value, in Markdown.

    The rule: of the values tried, which are as many for every agent, the one of largest score.
    """
    parts: list[str] = []
    for standing in board.standings:
        if not standing.tasks:
            continue
        runs = Runs(_table(board, standing), _families(board, standing))
        agents = [cell["spec"]["agent"] for cell in board.cells]
        played = {own["label"]: own for own in agents if own["label"] in runs.scores}
        trials: dict[tuple[str, str], dict[Any, str]] = {}  # agent and knob -> value -> label
        for label, own in played.items():
            if len(own["settings"]) == 1:
                [(knob, value)] = own["settings"].items()
                trials.setdefault((own["name"], knob), {})[value] = label
        trials = {key: values for key, values in trials.items() if len(values) > 1}
        if trials:
            parts += [f"### {standing.section.kind.name.capitalize()}\n", _tuned(runs, trials)]
    return _signed(board, parts) or "No agent here is played with several values of a knob.\n"


def _tuned(runs: Runs, trials: Mapping[tuple[str, str], Mapping[Any, str]]) -> str:
    """Return the table of one section, best tuned agents first."""
    value = {label: runs.mean(scores)[0] for label, scores in runs.scores.items()}
    best = {key: max(own.values(), key=value.__getitem__) for key, own in trials.items()}
    usual = {key: own.get(default_of(*key)) for key, own in trials.items()}
    before = _ranks(runs, [label for label in usual.values() if label])
    after = _ranks(runs, list(best.values()))
    lines = []
    for key in sorted(trials, key=lambda key: -value[best[key]]):
        label, tuned = usual[key], best[key]
        scores = {
            own: interval_text(runs.interval(runs.scores[own]), 3) for own in (label, tuned) if own
        }
        settings = {own: str(setting) for setting, own in trials[key].items()}
        line = [key[0], key[1], str(default_of(*key))]
        line += ["", ""] if label is None else [scores[label], str(before[label])]
        line += [settings[tuned], str(len(settings)), scores[tuned], str(after[tuned])]
        gain = None if label is None else runs.scores[tuned] - runs.scores[label]
        lines.append([*line, "" if gain is None else interval_text(runs.interval(gain), 3)])
    columns = ["agent", "knob", "default", "score", "rank"]
    columns += ["best", "of", "its score", "its rank", "gain"]
    return markdown_table(columns, lines)


def default_of(agent: str, setting: str) -> Any:
    """Return what a setting of an agent is unless a suite says otherwise."""
    spec = agent_spec(agent)
    return spec.settings.get(setting, inspect.signature(spec.load()).parameters[setting].default)


def _ranks(runs: Runs, labels: list[str]) -> dict[str, int]:
    """Rank agents; they share one unless a paired interval separates them."""
    order = sorted(labels, key=lambda label: -runs.mean(runs.scores[label])[0])
    ranks = competition_ranks(
        len(order),
        lambda i, j: runs.interval(runs.scores[order[i]] - runs.scores[order[j]]).low > 0.0,
    )
    return dict(zip(order, ranks, strict=True))
