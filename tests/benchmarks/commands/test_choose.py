"""From a log to a recommendation: decisions against known truth, refusals, the command's page."""

import contextlib
import csv
import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit

from baselines.saving import load_agent
from benchmarks.commands import choose as command
from benchmarks.commands.reading import Reading
from benchmarks.plan.suite import load_suite
from benchmarks.report.choice import choice_words
from benchmarks.run.engines import Outcome
from benchmarks.run.runner import run_cell
from benchmarks.score.choice import (
    OWN,
    Candidate,
    CannotTellError,
    check_log,
    choose,
    left_out,
    paced,
    requests_needed,
    requests_to_separate,
)
from benchmarks.score.intervals import Interval
from benchmarks.score.logged import FEW, judge_policy, prepare
from llmqueue_gym.live.router import Budget, LiveRouter
from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE
from llmqueue_gym.workloads.sources.log_file import Log

PRICES = np.array([0.001, 0.01])
RATES = np.array([[0.9, 0.6], [0.3, 0.7]])  # of queries of two topics; each LLM has one of its own


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def simulate(n, seed=0, share=0.5, rates=RATES):
    """A log of two LLMs, the first of which answers a share of the requests at random."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(2, size=n)
    x = np.column_stack([2.0 * topic - 1.0, np.ones(n)]).astype(np.float32)
    llm = (rng.random(n) > share).astype(int)
    reward = (rng.random(n) < rates[topic, llm]).astype(float)
    propensity = np.where(llm == 0, share, 1.0 - share)
    log = Log("simulated", None, x, ("cheap", "dear"), llm, reward, PRICES[llm], None, propensity)
    return log, topic


def candidates_of(data, policies):
    """Candidates of policies, (len(data.judge), 2) each, by label."""
    return [
        Candidate(label, label, {}, judge_policy(data, policy, label))
        for label, policy in policies.items()
    ]


def usual(n=2000, seed=0, rates=RATES, share=0.5):
    """A log, and the policies that send each topic to its LLM, and all to one of the two."""
    log, topic = simulate(n, seed, share, rates)
    data = prepare(log, log.contexts())
    own = np.eye(2)[topic[data.judge]]
    single = {
        f"always {name}": np.tile(np.eye(2)[j], (len(own), 1)) for j, name in enumerate(log.llms)
    }
    return data, candidates_of(data, {"routed": own, **single})


# --- the decision ---------------------------------------------------------------------------------


def test_the_best_policy_is_recommended_and_leads_all_others():
    data, candidates = usual()
    choice = choose(data, candidates)
    assert choice.best.label == choice.cheapest == "routed"  # the dear LLM is better on average
    assert not choice.stay
    assert choice.tied == []
    assert set(choice.leads) == {"always cheap", "always dear", OWN}
    truth = {"always cheap": 0.2, "always dear": 0.15, OWN: 0.175}  # 0.8 less 0.6, 0.65, 0.625
    for label, found in choice.leads.items():
        assert found.low <= truth[label] <= found.high


def test_where_nothing_is_surely_better_one_stays():
    same = np.full((2, 2), 0.6)
    stays, seeds = 0, 20
    for seed in range(seeds):
        choice = choose(*usual(800, seed, same))
        stays += choice.stay
        assert choice.cheapest == "always cheap" or "always cheap" not in choice.tied
    assert stays >= 17  # of 20 at 95%


def test_of_those_the_log_does_not_separate_the_load_decides():
    data, candidates = usual(800, rates=np.array([[0.9, 0.9], [0.3, 0.7]]))
    routed, cheap, dear = candidates
    plain = choose(data, [routed, cheap, dear])
    assert {plain.best.label, *plain.tied} >= {"routed", "always dear"}
    for first in ("routed", "always dear"):
        scores = {"routed": 0.5, "always dear": 0.5, "always cheap": 9.0, first: 0.7}
        assert choose(data, candidates, under_load=scores).best.label == first


def test_a_budget_rules_out_what_is_above_it_and_pacing_keeps_it():
    data, candidates = usual()
    routed = candidates[0]  # 0.0055 USD a request
    half = paced(data, routed, 0.003)
    assert half.found.policy.sum(axis=1) == pytest.approx(np.ones(len(data.judge)))
    assert half.found.usd.high == pytest.approx(0.003, rel=1e-3)
    assert "above the budget" in left_out(data, routed, 0.003)
    assert left_out(data, half, 0.003) is None
    choice = choose(data, [*candidates, half], 0.003)
    assert choice.best.label == "routed, paced"
    assert OWN not in choice.leads  # it spends too much itself
    assert paced(data, routed, 1.0).found.policy == pytest.approx(routed.found.policy)


@pytest.mark.parametrize("n", [400, 2000, 8000])
def test_a_policy_that_surely_keeps_the_budget_comes_before_one_that_may_exceed_it(n):
    # The paced copy is as dear as can be while it keeps the budget surely; a little dearer, it
    # would earn more, and may not keep it.
    data, candidates = usual(n)
    routed, budget = candidates[0], 0.003
    sure = paced(data, routed, budget)
    assert sure.found.usd.high <= budget
    assert sure.found.usd.value > 0.9 * budget
    dearer = 1.02 * sure.found.policy + 0.02 * (routed.found.policy - sure.found.policy)
    dearer /= dearer.sum(axis=1, keepdims=True)
    found = judge_policy(data, dearer, "dearer")
    assert found.usd.value < budget < found.usd.high
    straddling = Candidate("dearer", "dearer", {}, found, paced=True)
    choice = choose(data, [*candidates, sure, straddling], budget)
    assert (choice.best.label, choice.may_exceed) == ("routed, paced", ("dearer",))
    assert "dearer" in choice.leads  # the table has it
    assert "dearer" not in (*choice.tied, choice.cheapest)
    scores = {"dearer": 9.0, "routed, paced": 0.5}
    assert choose(data, [*candidates, sure, straddling], budget, scores).best is sure
    alone = choose(data, [straddling], budget)
    assert (alone.best.label, alone.may_exceed) == ("dearer", ())


def test_pacing_is_sure_in_truth(monkeypatch):
    # Whichever share keeps the budget by the interval, in truth it does in 97.5% of logs or more.
    prices, kept, logs = np.array([0.001, 0.01]), 0, 200
    for seed in range(logs):
        log, topic = simulate(400, seed)
        data = prepare(log, log.contexts())
        routed = candidates_of(data, {"routed": np.eye(2)[topic[data.judge]]})[0]
        policy = paced(data, routed, 0.003).found.policy
        share = policy[topic[data.judge] == 1, 1].mean()  # of a topic that half of queries have
        kept += 0.5 * share * prices[1] + (1.0 - 0.5 * share) * prices[0] <= 0.003
    assert kept >= 0.945 * logs  # two standard errors


def test_a_paced_copy_is_made_where_it_is_of_use():
    data, (routed, cheap, _) = usual()
    found = command._paced(data, routed, 0.003)
    assert [one.label for one in found] == ["routed, paced"]
    usd = routed.found.usd
    straddled = (usd.value + usd.high) / 2  # within the budget, and not surely
    (sure,) = command._paced(data, routed, straddled)
    assert sure.found.usd.high <= straddled
    assert command._paced(data, routed, usd.high) == []
    assert command._paced(data, routed, None) == []
    may = cheap._replace(found=cheap.found._replace(usd=Interval(0.0009, 0.0007, 0.0011)))
    assert command._paced(data, may, 0.00099) == []  # the cheapest LLM, whose interval straddles
    unknown = routed._replace(found=routed.found._replace(usd=Interval(np.nan, 0.0, np.inf)))
    assert command._paced(data, unknown, 0.003) == []


def test_words_say_who_may_exceed_the_budget_and_who_is_sure():
    data, candidates = usual()
    sure = paced(data, candidates[0], 0.003)
    spends, gains = Interval(0.0029, 0.0027, 0.0031), Interval(0.5, 0.4, 0.6)
    found = sure.found._replace(usd=spends, gain=gains)
    dearer = Candidate("dearer", "dearer", {}, found, paced=True)

    def words(*found):
        choice = choose(data, found, 0.003)
        told = command._choice_json(data, found, choice, 0.003)
        log = {"outcome": "share kept", "queries": "vectors", "seconds": None, "requests": 2000}
        more = {"refused": None, "log": log, "budget": 0.003, "load": {"tasks": []}}
        told["candidates"] = [command._candidate_json(data, one, 0.003) for one in found]
        return choice_words({**told, **more})

    both, alone = words(candidates[1], sure, dearer), words(dearer)
    assert both["headline"].startswith("Route with routed, paced: ")
    assert any("routed, paced keeps the budget" in text for text in both["details"])
    assert any("dearer earns more" in text and "may exceed" in text for text in both["details"])
    assert "may exceed the budget: " in alone["headline"]
    assert any("No policy here surely keeps the budget" in text for text in alone["details"])


# --- refusals -------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.floats(1e-3, 1e6), st.floats(1.0, 1e3))
def test_the_requests_needed_make_enough_effective_ones_and_a_third_less_do_not(n, effective, few):
    assume(effective <= n)
    needed = requests_needed(n, effective, few)
    assert needed >= n
    assert needed / n * effective >= few * (1.0 - 1e-9)
    if needed > n:
        assert 2 / 3 * (needed - 1) / n * effective < few
    assert requests_needed(n, 0.0, few) is None


@given(st.integers(1, 10**6), st.floats(-1.0, 1.0), st.floats(0.0, 1.0))
def test_the_requests_to_separate_take_0_out_of_the_interval(n, value, half):
    assume(value == 0.0 or abs(value) > 1e-6)
    needed = requests_to_separate(n, Interval(value, value - half, value + half))
    if value == 0.0:
        assert needed is None
        return
    assert needed >= n
    assert half * math.sqrt(n / needed) <= abs(value) * (1.0 + 1e-9)
    assert needed == n or half * math.sqrt(n / (needed - 1)) > abs(value) * (1.0 - 1e-9)
    assert requests_to_separate(n, Interval(0.5, -np.inf, np.inf)) is None


def test_a_short_log_is_refused_and_what_it_asks_for_suffices():
    asked = []
    for seed in range(10):
        with pytest.raises(CannotTellError) as caught:
            choose(*usual(60, seed, share=0.7))
        asked.append(caught.value.requests)
    assert 100 < np.median(asked) < 500
    told = []
    for seed in range(10):
        with contextlib.suppress(CannotTellError):
            told.append(choose(*usual(int(np.median(asked)), seed, share=0.7)).best.label)
    assert len(told) >= 6
    assert set(told) <= {"routed", "always dear"}


def test_a_typical_candidate_without_enough_effective_requests_is_a_refusal():
    data, candidates = usual(400)
    few = [one._replace(found=one.found._replace(effective=FEW / 2)) for one in candidates]
    with pytest.raises(CannotTellError) as caught:
        choose(data, few)
    assert caught.value.requests == 960  # twice as many, and a fifth
    assert "25 effective requests; about 960" in left_out(data, few[0], None)
    one_of_three = [few[0], *candidates[1:]]
    assert choose(data, one_of_three).best.label != "routed"


def test_a_log_that_can_never_tell_says_so():
    log, _ = simulate(200)
    note = "warning: no retrial can be told: every session is a new one"
    causes = {
        "no retrial can be told": replace(log, notes=(note,)),
        "one LLM alone": replace(log, llms=("cheap",), llm=np.zeros(200, int)),
        "all answers are alike": replace(log, reward=np.ones(200)),
    }
    for why, own in causes.items():
        with pytest.raises(CannotTellError, match=why) as caught:
            check_log(own)
        assert caught.value.requests is None
    more = command._log_more(causes["no retrial can be told"], {})
    assert any("Sessions" in text for text in more)
    log.llm[100:] = 1
    log.llm[100:105] = 0
    with pytest.raises(CannotTellError, match="all but 5 are dear's") as caught:
        check_log(log)
    assert caught.value.requests == 2400  # 5 of 200 make 60 of 2,400
    data, candidates = usual(400)
    lost = [one._replace(found=one.found._replace(gain=Interval(np.nan, -np.inf, np.inf)))
            for one in candidates]  # fmt: skip
    with pytest.raises(CannotTellError, match="too little to chance") as caught:
        choose(data, lost)
    assert caught.value.requests is None


def test_the_load_is_the_logs_own_where_it_tells_of_service(tmp_path):
    rng = np.random.default_rng(0)
    asked = np.cumsum(rng.exponential(5.0, 400))
    start = np.zeros(400)
    for row in range(400):  # one place, two seconds an answer
        start[row] = max(asked[row], start[row - 1] + 2.0) if row else asked[row]
    kept = (rng.random(400) < 0.8).astype(float)
    columns = ["llm", "kept", "asked", "start", "first_token", "end", "output_tokens"]
    with (tmp_path / "service.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in range(400):
            times = asked[row], start[row], start[row] + 0.1, start[row] + 2.0
            writer.writerow(["one", int(kept[row]), *times, 20])
    log, _ = simulate(400)
    log = replace(log, reward=kept)
    found = command._load(log, command.Asked(Reading(tmp_path / "service.csv"), tmp_path))
    assert found["from"] == "the log's service"
    assert found["load"] == pytest.approx(2.0 / 5.0 / 0.8, rel=0.15)
    given = command._load(log, command.Asked(Reading(tmp_path / "service.csv"), tmp_path, load=0.3))
    assert given == {"load": 0.3, "from": "--load", "arrivals": "at random"}


def test_where_the_best_is_no_agent_for_litellm_the_best_that_is_one_is_pasted():
    data, (routed, cheap, dear) = usual()
    saved = cheap._replace(file=Path("cheap.llmq"))
    choice = choose(data, [routed, saved, dear])
    found = command._choice_json(data, [routed, saved, dear], choice, None)
    assert found["best"]["agent"] == "routed"
    assert found["runs"]["agent"] == "always cheap"
    log = {"outcome": "share kept", "queries": "vectors"}
    words = choice_words(
        {**found, "refused": None, "log": log, "budget": None, "load": {"tasks": []}}
    )
    assert "'cheap.llmq'" in words["paste"]
    assert "contexts=embed" in words["paste"]
    assert any("does not run routed" in text for text in words["details"])
    assert "shadow=True" in words["paste"]  # 0.6 is no gain on the log's 0.625
    better = {**found, "runs": {**found["runs"], "gain": [0.1, 0.05, 0.15]}}
    words = choice_words(
        {**better, "refused": None, "log": log, "budget": None, "load": {"tasks": []}}
    )
    assert "shadow" not in words["paste"]


# --- the command ----------------------------------------------------------------------------------


def write_log(path, n, timed=True, costs=True, seed=0):
    """Write a log of texts: sums go well with one LLM, verses with the other."""
    rng = np.random.default_rng(seed)
    words = np.array([["sum", "root", "matrix", "angle"], ["verse", "rhyme", "moon", "river"]])
    names = ["query", "llm", "kept", "propensity", *(["cost"] if costs else [])]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *(["at"] if timed else [])])
        for row in range(n):
            topic, llm = rng.integers(2, size=2)
            kept = rng.random() < expit(2.0 if llm == topic else -1.0)
            cells = [" ".join([str(row), *rng.choice(words[topic], 6)]), ("cheap", "dear")[llm]]
            cells += [int(kept), 0.5, *([PRICES[llm]] if costs else [])]
            writer.writerow([*cells, *([3.0 * row] if timed else [])])
    return path


SCHEMA = {
    "headline": str,
    "details": list,
    "recommended": str,
    "refused": type(None),
    "best": dict,
    "own": dict,
    "leads": dict,
    "not_separated": list,
    "may_exceed": list,
    "cheapest_not_separated": str,
    "candidates": list,
    "load": dict,
    "log": dict,
    "log_more": list,
    "paste": str,
    "commands": list,
}


class Here:
    """An engine that plays cells in this process."""

    def __init__(self, workers):
        assert workers == 1

    def run(self, cells):
        for cell in cells:
            yield Outcome(cell, run_cell(cell.spec, cell.kwargs), failed=False)


class Nowhere(Here):
    """An engine that has nothing to play."""

    def run(self, cells):
        assert not cells
        yield from ()


@pytest.fixture
def few_agents(monkeypatch):
    monkeypatch.setattr(command, "LocalEngine", Here)
    monkeypatch.setattr(command, "AGENTS", ("fifo-best-mean", "offline-ridge"))
    monkeypatch.setattr(command, "PACED", ("TS",))


def test_the_command_recommends_plays_and_writes_what_it_names(
    tmp_path, bench, capsys, monkeypatch, few_agents
):
    path, out = write_log(tmp_path / "log.csv", 600, costs=False), tmp_path / "out"
    prices = tmp_path / "list prices.json"
    prices.write_text(json.dumps(dict(zip(("cheap", "dear"), PRICES.tolist(), strict=True))))
    asked = ("choose", path, "--out", out, "--horizon", "200", "--seeds", "2", "--workers", "1")
    asked += ("--column", "timestamp=at", "--budget", "0.008")
    asked += ("--prices", prices, "--contexts", "tfidf-svd")
    assert bench(*asked, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for key, kind in SCHEMA.items():
        assert isinstance(found[key], kind), key
    assert found["recommended"] == "offline-ridge"
    assert found["runs"]["agent"] == "offline-ridge"
    assert load_agent(out / "policy.llmq").encoder.encode(["sum root"]).shape == (1, 64)
    assert found["best"]["within_budget"] is True
    assert {one["agent"] for one in found["candidates"]} == {
        *("always cheap", "always dear", "always dear, paced", "fifo-best-mean", "offline-ridge"),
        "TS",
    } | {one["agent"] for one in found["candidates"] if one["agent"] == "fifo-best-mean, paced"}
    assert found["load"]["load"] == 0.8
    assert found["load"]["arrivals"] == "as logged"
    assert [task["task"] for task in found["load"]["tasks"]] == ["queue", "budget"]
    hourly = 3600 * 600 / (3 * 599)
    assert f'budget=Budget(0.008 * {hourly:.3g}, "hour", {{' in found["paste"]
    live = ModuleType("llmqueue_gym.live.litellm")
    live.Budget, live.LearningRouter = Budget, lambda file, **settings: (file, settings)
    monkeypatch.setitem(sys.modules, live.__name__, live)  # LiteLLM need not be installed
    exec(found["paste"], pasted := {})
    file, settings = pasted["router"]
    del settings["model_name"], settings["state"]
    router = LiveRouter(load_agent(file), **settings)
    assert router.llms == tuple(found["llms"])
    suite = load_suite(str(out / "suite.toml"))
    assert suite.tasks[0].kwargs["arrivals"]["column"] == "at"
    for kwargs, name in zip(
        (task.kwargs for task in suite.tasks), ("workload", "instance"), strict=True
    ):
        assert kwargs[name]["prices"] == {"cheap": 0.001, "dear": 0.01}
        assert kwargs[name]["contexts"] == "tfidf-svd"
    page, text = ((out / f"choice.{form}").read_text("utf-8") for form in ("html", "md"))
    assert "<svg" in page
    for part in ("offline-ridge", "Under load: budget", "always dear, paced", "LearningRouter"):
        assert part in page
        assert part in text
    for line in found["commands"]:
        assert str(path) in line
    assert f"--prices '{prices}' --contexts tfidf-svd" in found["commands"][1]
    # The commands on the page give the figures of the page.
    assert bench(*shlex.split(found["commands"][1])[1:], "--json") == 0
    again = {one["agent"]: one for one in json.loads(capsys.readouterr().out)["agents"]}
    for one in found["candidates"]:
        if not one["agent"].endswith(", paced"):
            assert again[one["agent"]]["gain"] == one["gain"], one["agent"]
    # The same command computes nothing anew, and says the same on the terminal.
    monkeypatch.setattr(command, "LocalEngine", Nowhere)
    assert bench(*asked) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(found["headline"] + "\n")
    assert found["paste"] in printed  # its indentation too
    for text in (found["paste"], *found["commands"]):
        printed = printed.replace(text, "")
    for mark in ("\\", "|", "`", "*", "# ", "&"):  # it is no Markdown
        assert mark not in printed
    assert str(out / "policy.llmq") in printed.splitlines()[-1]


def test_the_command_refuses_a_short_log_and_says_how_many_requests_it_needs(
    tmp_path, bench, capsys, few_agents
):
    path = write_log(tmp_path / "log.csv", 60, timed=False, costs=False)
    asked = ("choose", path, "--out", tmp_path / "out", "--json", "--workers", "1")
    assert bench(*asked) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] is None
    assert found["paste"] == ""
    assert 100 < found["refused"]["requests"] < 1000
    assert f"{found['refused']['requests'] - 60:,} more" in found["details"][0]
    assert any("Costs" in text for text in found["log_more"])
    page = (tmp_path / "out" / "choice.html").read_text("utf-8")
    assert "No recommendation" in page
    assert "<svg" not in page
    assert not (tmp_path / "out" / "results").exists()
    # A policy that lies there was recommended for another log.
    (tmp_path / "out" / "policy.llmq").write_bytes(b"of last week")
    assert bench(*asked[:4], "--workers", "1") == 1
    assert "policy.llmq is of an earlier log" in capsys.readouterr().out


def test_a_file_in_place_of_the_folder_is_told_before_the_log_is_read(tmp_path, bench, capsys):
    (tmp_path / "out").write_text("")
    assert bench("choose", tmp_path / "none.csv", "--out", tmp_path / "out") == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "-1"), "--budget"),
        (("--budget", "0.0001"), "below what the cheapest LLM costs, cheap"),
        (("--load", "1.2"), "--load"),
        (("--load", "nan"), "--load"),
        (("--agent", "nobody"), "'nobody' is not known"),
        (("--seeds", "1"), "--seeds"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path, bench, capsys):
    path = write_log(tmp_path / "log.csv", 100)
    assert bench("choose", path, "--column", "timestamp=at", *options) == 2
    assert message in capsys.readouterr().err


def test_a_budget_needs_costs(tmp_path, bench, capsys):
    path = write_log(tmp_path / "log.csv", 100, costs=False)
    assert bench("choose", path, "--column", "timestamp=at", "--budget", "1") == 2
    assert "has none" in capsys.readouterr().err
