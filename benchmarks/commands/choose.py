"""``llmqueue-bench choose``: from a log to the policy to run, in three steps and on one page."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress

from baselines.registry import agent_spec
from benchmarks.commands import FAILED, INTERRUPTED
from benchmarks.commands.logs import evaluation_json
from benchmarks.commands.reading import Reading
from benchmarks.commands.run import run
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import load_suite
from benchmarks.report.choice import choice_html, choice_markdown, choice_parts, choice_words
from benchmarks.report.tables import rich_table
from benchmarks.report.words import task_columns, task_lines
from benchmarks.run.engines import LocalEngine
from benchmarks.run.store import Store, write_text
from benchmarks.score.choice import (
    NO_RETRIALS,
    OWN,
    Candidate,
    CannotTellError,
    Choice,
    check_log,
    choose,
    keeps,
    left_out,
    own_spending,
    paced,
    requests_to_separate,
)
from benchmarks.score.logged import Prepared, evaluate, judge_policy, prepare
from benchmarks.score.replay import agent_kind, check_budget, frozen_choices, train
from benchmarks.score.scoring import Board, load_board
from benchmarks.submissions.entry import toml_value
from benchmarks.terminal import make_console, print_json, say, show_table
from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.fit import fit_serving
from llmqueue_gym.workloads.pool import file_sha256
from llmqueue_gym.workloads.sources.log_file import Log
from llmqueue_gym.workloads.sources.logs import describe_log, judge_outcomes

AGENTS = ("fifo-best-mean", "LinTS", "offline-ridge", "knn-guard", "ACQB-OMD")
"""Policies that every log is asked about, besides each LLM alone."""

PACED = ("price-aware-paced", "StageRoute-paced", "TS", "ParetoBandit")
"""Those that are asked about where there is a budget."""

LOAD, MOST_LOAD = 0.8, 0.95
"""The load where the log tells none, and the largest that is taken from one."""

DRAWS = 5
"""Decisions of a policy a request, or runs of one that paces itself."""

_WORTH = 100
"""How many times as many requests are worth naming."""

_ALWAYS, _SAVED = "baselines.queueing.heuristics:Always", "baselines.saving:SavedAgent"


@dataclass(frozen=True)
class Asked:
    """The log, and what the command was asked: see ``llmqueue-bench choose --help``."""

    reading: Reading
    out: Path
    budget: float | None = None
    load: float | None = None
    agents: Sequence[str] = ()
    seeds: int = 5
    horizon: int = 5000
    workers: int = 1


def choose_from_log(asked: Asked, as_json: bool = False) -> int:
    """Judge policies on a log, play them under load, write the page; return the exit code."""
    if asked.out.exists() and not asked.out.is_dir():
        raise UsageError(f"out={str(asked.out)!r} is no folder; name one with --out")
    for name in asked.agents:
        agent_kind(name)  # before a long log is read
    if asked.load is not None:
        checks.number("load", asked.load, "(0, 1)")
    log = asked.reading.read()
    document: dict[str, Any] = {"log": describe_log(log), "budget": asked.budget, "refused": None}
    document["commands"] = [asked.reading.command("logs show")]
    try:
        check_log(log)
        code = _answered(asked, log, document)
    except CannotTellError as error:
        document["refused"] = {"why": error.why, "requests": error.requests}
        code = FAILED
    if code == INTERRUPTED:
        return code
    document["log_more"] = _log_more(log, document)
    document |= choice_words(document)
    _written(document, asked.out, as_json)
    return code


def _answered(asked: Asked, log: Log, document: dict[str, Any]) -> int:
    """Add what the three steps found to the document; return the exit code of the runs."""
    reading, out, budget = asked.reading, asked.out, asked.budget
    contexts = reading.vectors(log)
    document["predictable"] = _predictable(log, contexts)
    data = prepare(log, contexts)
    if budget is not None:
        check_budget(data, budget)
    candidates = _judged(data, asked)
    document["candidates"] = [_candidate_json(data, one, budget) for one in candidates]
    named = [one.agent for one in candidates if one.label == one.agent]
    words = [word for name in named for word in ("--agent", name)]
    words += ["--each-llm", "--draws", str(DRAWS)]
    words += [] if budget is None else ["--budget", f"{budget:g}"]
    document["commands"].append(reading.command("logs evaluate", *words))
    choose(data, candidates, budget)  # nothing is played where nothing can be recommended
    where = _load(log, asked)
    board, code = _played(log, candidates, where, asked)
    if board is None:
        return code
    document["commands"].append(
        f"llmqueue-bench run {shlex.quote(str(out / 'suite.toml'))} "
        f"--data {shlex.quote(f'requests={reading.path}')} "
        f"--results {shlex.quote(str(out / 'results'))} --trust"
    )
    document["load"] = {**where, "tasks": _tasks_json(board)}
    choice = choose(data, candidates, budget, _scores(board))
    document |= _choice_json(data, candidates, choice, budget)
    if (runs := document["runs"]) is not None:
        runs["file"] = str(shutil.copyfile(runs["file"], out / "policy.llmq"))
    return code


def _written(document: dict[str, Any], out: Path, as_json: bool) -> None:
    """Write the page, and show it."""
    out.mkdir(parents=True, exist_ok=True)
    text = choice_markdown(document)
    write_text(out / "choice.md", text)
    write_text(out / "choice.html", choice_html(document))
    if as_json:
        print_json(document)
        return
    console = make_console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        _say_page(document, console)
    policy = out / "policy.llmq"
    said = [str(out / "choice.html"), str(out / "choice.md")]
    ours = document.get("runs") is not None
    say(f"wrote {', '.join([*said, *([str(policy)] if ours else [])])}")
    if policy.exists() and not ours:  # a gateway may start from it: it is not ours to delete
        say(f"{policy} is of an earlier log")


def _say_page(document: Mapping[str, Any], console: Console) -> None:
    """Print the page as plain text."""
    for text in (document["headline"], *document["details"]):
        say(text)
    for part in choice_parts(document):
        say(f"\n{part.title}\n")
        for text in part.notes:
            say(text)
        if part.lines:
            show_table(rich_table("", part.columns, part.lines), ("agent",), console)
        if part.code:
            say(part.code)
    say("")


# --- step 1 and 2: on the log ---------------------------------------------------------------------


def _predictable(log: Log, contexts: Any) -> dict[str, Any] | None:
    """Return how well the outcome model and each LLM's share predict, held out."""
    try:
        found = judge_outcomes(log, contexts)
    except UsageError:
        return None
    return found and {key: found[key] for key in ("turns", "log_loss", "base_log_loss", "ece")}


def _judged(data: Prepared, asked: Asked) -> list[Candidate]:
    """Train, save and judge every candidate."""
    budget = asked.budget
    llms = np.flatnonzero(data.supported).tolist()
    encoder = asked.reading.encoder(data.log)
    entries: list[tuple[str, str, dict[str, Any]]] = []
    entries += [(f"always {data.log.llms[llm]}", _ALWAYS, {"llm": llm}) for llm in llms]
    named = (*AGENTS, *(PACED if budget is not None else ()), *asked.agents)
    entries += [(name, name, {}) for name in dict.fromkeys(named)]
    found: list[Candidate] = []
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        bar = progress.add_task("judging", total=len(entries) * len(data.log))
        step = partial(progress.advance, bar)
        for label, name, settings in entries:
            if agent_kind(name) == "deployment":
                row = evaluate(data, name, settings, draws=DRAWS, advance=step, budget=budget)
                found.append(Candidate(label, name, settings, row, paced=True))
                continue
            agent, learned = train(data, name, settings, advance=step)
            agent.encoder = encoder
            file: Path | None = asked.out / "agents" / f"{len(found)}.llmq"
            assert file is not None
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                agent.save(file)
            except UsageError as error:  # an agent from elsewhere
                say(f"{label} is not played under load: {error}", stderr=True)
                file = None
            row = judge_policy(data, frozen_choices(data, agent, DRAWS, step), label, learned)
            one = Candidate(label, name, settings, row, file=file)
            found.append(one)
            found += _paced(data, one, budget)
    return found


def _paced(data: Prepared, one: Candidate, budget: float | None) -> list[Candidate]:
    """Return the paced copy of a policy that may exceed the budget, where that is of use."""
    usd = one.found.usd
    if budget is None or usd is None or not budget < usd.high < np.inf:
        return []
    copy = paced(data, one, budget)
    return [copy] if usd.value > budget or keeps(copy.found, budget) else []


def _candidate_json(data: Prepared, one: Candidate, budget: float | None) -> dict[str, Any]:
    found = evaluation_json(data, one.found, budget)
    found |= {"agent": one.label, "left_out": left_out(data, one, budget), "paced": one.paced}
    return {**found, "file": None if one.file is None else str(one.file)}


# --- step 3: under load ---------------------------------------------------------------------------


def _load(log: Log, asked: Asked) -> dict[str, Any]:
    """Return the load to play at, who says so, and how queries arrive."""
    arrivals = "at random" if log.time is None else "as logged"
    if asked.load is not None:
        return {"load": asked.load, "from": "--load", "arrivals": arrivals}
    try:
        fit = fit_serving(str(asked.reading.path), asked.reading.columns).settings()
    except UsageError:  # no log of service
        return {"load": LOAD, "from": "the log tells none", "arrivals": arrivals}
    mean = fit["tokens"]["mean"]
    places = sum(
        own["count"]
        * own["places"]
        / (mean * (own["base_seconds"] + own["places"] * own["each_seconds"]))
        for own in fit["replicas"]
    )
    arriving = fit["arrival_rate"] / fit["slot_seconds"]
    found = min(MOST_LOAD, arriving / (places * float(log.reward.mean())))
    return {"load": float(f"{found:.2g}"), "from": "the log's service", "arrivals": arrivals}


def suite_text(candidates: Iterable[Candidate], where: Mapping[str, Any], asked: Asked) -> str:
    """Return the suite that plays the saved candidates on the log's own queries and arrivals."""
    source, columns = asked.reading.source("{requests}"), asked.reading.columns
    times = {"process": "trace", "path": "{requests}"}
    if "timestamp" in columns:
        times["column"] = columns["timestamp"]
    queue = {"load": where["load"], "assortment_size": 1, "workload": {**source, "min_rows": 1}}
    if where["arrivals"] == "as logged":
        queue["arrivals"] = times
    candidates = list(candidates)
    saved = [
        {"name": _SAVED, "label": one.label, "settings": _file_settings(one)}
        for one in candidates
        if one.file is not None and not one.paced
    ]
    tasks: list[tuple[str, str, list[str], dict[str, Any], list[dict[str, Any]]]]
    tasks = [("queue", "LLMQueue-v0", ["queueing"], queue, saved)]
    deployed = [{"name": one.agent} for one in candidates if one.paced and one.label == one.agent]
    if asked.budget is not None and deployed:
        money = {"instance": {**source, "arrivals": {}}, "budget_per_query": asked.budget}
        money |= {"budget": "hard", "num_stages": max(1, asked.horizon // 100)}
        tasks.append(("budget", "LLMDeploy-v0", ["deployment"], money, deployed))
    lines = ['description = "my own requests"', f"seeds = {asked.seeds}", "agents = []"]
    for name, env, tags, kwargs, agents in tasks:
        own = {"name": name, "env": env, "horizon": asked.horizon, "tags": [*tags, "real-data"]}
        own |= {"data": {"requests": "requests.csv"}, "kwargs": kwargs, "agents": agents}
        lines += ["", "[[task]]", *(f"{key} = {toml_value(value)}" for key, value in own.items())]
    return "\n".join(lines) + "\n"


def _file_settings(one: Candidate) -> dict[str, Any]:
    assert one.file is not None
    path = str(one.file.resolve())
    settings: dict[str, Any] = {"path": path, "sha256": file_sha256(path)}
    package = agent_spec(one.agent).target.partition(":")[0].partition(".")[0]
    return settings if package == "baselines" else {**settings, "packages": [package]}


def _played(
    log: Log, candidates: Sequence[Candidate], where: Mapping[str, Any], asked: Asked
) -> tuple[Board | None, int]:
    """Run the suite; return its board and the exit code, or none if it was interrupted."""
    suite, store = asked.out / "suite.toml", Store(asked.out / "results")
    write_text(suite, suite_text(candidates, where, asked))
    plan = make_plan(load_suite(str(suite)), data={"requests": log.path}, trust=True)
    code = run(plan, store, LocalEngine(asked.workers))
    return (None, code) if code == INTERRUPTED else (load_board(store), code)


def _tasks_json(board: Board) -> list[dict[str, Any]]:
    return [
        {
            "task": task.task["name"],
            "agents_start": "trained on the log" if task.section.protocol == "pretrained"
            else "ignorant",
            "columns": task_columns(task, short=True)[1:],
            "lines": [line[1:] for line in task_lines(task, short=True)],
        }
        for task in board.tasks
    ]  # fmt: skip


def _scores(board: Board) -> dict[str, float]:
    """Return the scores of the saved candidates, by label."""
    rows = [row for task in board.tasks if task.task["name"] == "queue" for row in task.rows]
    return {row.agent: row.score.value for row in rows if row.score is not None}


# --- the recommendation ---------------------------------------------------------------------------


def _choice_json(
    data: Prepared, candidates: Sequence[Candidate], choice: Choice, budget: float | None
) -> dict[str, Any]:
    best = _candidate_json(data, choice.best, budget)
    saved = [one for one in candidates if one.file is not None and one.label in choice.leads]
    sure = [one for one in saved if one.label not in choice.may_exceed] or saved
    runs = max(sure, key=lambda one: one.found.gain.value, default=None)
    runs = choice.best if choice.best.file is not None else runs
    rival = OWN if choice.stay else next(iter(choice.tied), None)
    return {
        "recommended": OWN if choice.stay else choice.best.label,
        "best": best,
        "runs": None if runs is None else _candidate_json(data, runs, budget),
        "own": {"value": list(choice.best.found.logged), "usd": own_spending(data)},
        "leads": {label: list(found) for label, found in choice.leads.items()},
        "not_separated": choice.tied,
        "may_exceed": list(choice.may_exceed),
        "cheapest_not_separated": choice.cheapest,
        "cheapest_usd": choice.cheapest_usd,
        "judged": len(data.judge),
        "propensities": "estimated" if data.estimated else "logged",
        "notes": [*data.log.notes, *data.notes],
        "rival": rival,
        "requests_to_separate": None
        if rival is None
        else requests_to_separate(len(data.log), choice.leads[rival]),
        "llms": list(data.log.llms),
        "prices": None if data.log.cost is None else data.price.tolist(),
    }


def _log_more(log: Log, document: Mapping[str, Any]) -> list[str]:
    """Say what to log to know more."""
    more = []
    if any(note.startswith(NO_RETRIALS) for note in log.notes):
        more.append("Sessions: a session_id, or who asks; or a column kept, where you know better")
    if log.propensity is None:
        more.append(
            "Propensities: the probability with which the router chose. Let it choose at random in "
            "5% of the requests; without that the queries are assumed to explain its choices"
        )
    if log.cost is None:
        more.append("Costs: without them nothing is known of what a policy spends")
    if log.time is None:
        more.append("Timestamps: without them queries arrive at random under load, not in bursts")
    for one in document.get("candidates", ()):
        if one["left_out"] and "of yours make" in one["left_out"]:
            more.append(f"More requests: {one['agent']} has {one['left_out']}")
    needed = document.get("requests_to_separate")
    if needed is not None and needed <= _WORTH * len(log):
        more.append(
            f"About {needed:,} requests in place of {len(log):,}: they would tell "
            f"{document['best']['agent']} from {document['rival']}, if the difference seen is the "
            "true one"
        )
    return more
