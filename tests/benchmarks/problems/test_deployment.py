"""Deployment cells, scores, sweeps and reports: closed forms, and the same rails as queueing."""

import re
import sys
from functools import cache

import made_up
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import board_of, deploy_cell
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import SuiteError, parse_suite
from benchmarks.problems import PROBLEMS, problem_of
from benchmarks.problems.deployment.board import KIND as DEPLOYMENT
from benchmarks.problems.deployment.board import adoption_delays
from benchmarks.problems.deployment.play import served_per_stage
from benchmarks.problems.kind import Traffic, is_stuck
from benchmarks.problems.luck import LUCK_LIMIT
from benchmarks.report import board_markdown, board_summary, draw_figure
from benchmarks.report.draw import draw_legend
from benchmarks.report.page import board_page
from benchmarks.report.series import heat_map
from benchmarks.report.words import sweep_title
from benchmarks.run.runner import run_cell

TASK = {
    "name": "tiny",
    "env": "LLMDeploy-v0",
    "horizon": 400,
    "kwargs": {
        "instance": {"source": "synthetic", "num_llms": 8, "initial": 4},
        "num_stages": 10,
        "max_deployed": 3,
    },
}
QUEUE = {"name": "queue", "env": "LLMQueue-v0", "horizon": 60, "kwargs": {"load": 0.8}}
SUITE = {"seeds": 2, "agents": ["StageRoute", "price-aware"], "task": [TASK]}
CELLS = {
    (cell.spec["agent"]["label"], cell.spec["seed"]): cell
    for cell in make_plan(parse_suite("s", SUITE)).cells
}

OWN_AGENT = """
from baselines.interface import DeployAgent

class First(DeployAgent):
    '''The first M_max LLMs that are there, in turn.'''
    def __init__(self, problem, seed, **settings):
        super().__init__(problem, seed)
        self.turn = 0
    def act(self, observation):
        if observation["deploy_now"]:
            there = [m for m in range(self.problem.num_llms) if observation["arrived"][m]]
            self.llms = there[:self.problem.max_deployed]
        self.turn += 1
        bits = [int(m in self.llms) for m in range(self.problem.num_llms)]
        return [*bits, self.llms[self.turn % len(self.llms)]]

class KnowsTheDraws(First):
    '''Pays for no answer that will be bad: it refuses those queries.'''
    def __init__(self, problem, seed):
        import sys
        super().__init__(problem, seed)
        frame = sys._getframe()
        while "env" not in frame.f_locals:  # up to the runner
            frame = frame.f_back
        self.dynamics = frame.f_locals["env"].unwrapped.dynamics
    def act(self, observation):
        action = super().act(observation)
        rules, stage = self.dynamics.rules, self.dynamics.stage[0]
        position = self.dynamics.query[0] - rules.stage_starts[stage]
        uniform = self.dynamics._draws[0, position, 1]
        if uniform < self.dynamics.instance().reward_cdf[action[-1], 0]:
            action[-1] = next(m for m in range(len(action)) if m not in self.llms)
        return action
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name of a module of third-party agents."""
    (tmp_path / "own_deploy_agents.py").write_text(OWN_AGENT)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_deploy_agents"
    sys.modules.pop("own_deploy_agents", None)


@cache
def play(label, seed=0):
    """Result of a cell that several tests look at."""
    cell = CELLS[label, seed]
    return run_cell(cell.spec, cell.kwargs)


LABELS = ("oracle", "random", "StageRoute", "price-aware")

# --- cells ----------------------------------------------------------------------------------------


def test_the_problem_follows_from_the_id():
    for name, env_id in (("deployment", "LLMDeploy-v0"), ("queueing", "LLMQueue-v0")):
        assert problem_of(env_id) is problem_of(f"llmqueue_gym:{env_id}") is PROBLEMS[name]
    with pytest.raises(ValueError, match="env='LLMQueu-v0' is none that is benchmarked: LLMDep"):
        problem_of("LLMQueu-v0")


@pytest.mark.parametrize("label", LABELS)
def test_no_cell_spends_more_than_the_budget_within_its_ledger(label):
    metrics = play(label)["metrics"]
    assert metrics["ledger_spend"] <= 1.0
    assert metrics["ledger"] <= metrics["reward"]
    if metrics["spend"] <= 1.0:
        assert metrics["ledger"] == metrics["reward"]
        assert metrics["ledger_spend"] == metrics["spend"]


@pytest.mark.parametrize("label", LABELS)
def test_the_curve_ends_at_the_horizon_with_the_totals(label):
    result = play(label)
    curve, metrics = result["curve"], result["metrics"]
    assert (curve["t"][0], curve["t"][-1]) == (1, 400)
    assert curve["ledger"][-1] == pytest.approx(400 * metrics["ledger"])
    assert curve["spend"][-1] == pytest.approx(metrics["spend"])
    assert curve["regret"][-1] == pytest.approx(metrics["mean_regret"])
    noise = metrics["mean_regret"] - metrics["regret"]
    most = abs(metrics["luck"]) * (0.25 * 400 + abs(noise) / 3) ** 0.5
    assert abs(noise) <= most + 1e-9
    assert (np.diff(curve["ledger"]) >= 0).all()


@pytest.mark.parametrize("source", ["synthetic", "paretobandit"])
def test_the_curve_counts_rewards_that_the_agent_sees_late_or_never(source):
    if source == "paretobandit":
        pytest.importorskip("pareto_bandit", reason="the table comes with the extra data")
    kwargs = {"instance": {"source": source}, "num_stages": 4, "max_deployed": 3}
    delayed = {**TASK, "horizon": 200, "kwargs": {**kwargs, "reward_delay": 150}}
    plan = make_plan(parse_suite("s", {"seeds": 1, "agents": ["static"], "task": [delayed]}))
    for cell in plan.cells:
        late = run_cell(cell.spec, cell.kwargs)
        assert late["curve"]["ledger"][-1] == pytest.approx(200 * late["metrics"]["ledger"])
        if cell.spec["agent"]["label"] == "random":  # it does not learn
            at_once = run_cell(cell.spec, {**cell.kwargs, "reward_delay": 0})
            assert late["metrics"] == at_once["metrics"]
            assert late["curve"] == at_once["curve"]


@pytest.mark.parametrize("label", LABELS)
def test_a_stages_shares_sum_to_1_and_keep_the_throughput(label):
    result = play(label)
    traffic = result["traffic"]
    served, lengths = np.array(traffic["served"]), np.array(traffic["lengths"])
    assert served.shape == (10, 8) == (len(traffic["starts"]), len(traffic["llms"]))
    assert lengths.sum() == 400
    assert 400 - served.sum() == result["metrics"]["refused"]
    if not result["metrics"]["refused"]:
        np.testing.assert_allclose((served / lengths[:, None]).sum(axis=1), 1.0)
    arrived = np.array(traffic["arrival"])[None] <= np.array(traffic["starts"])[:, None]
    assert (served[~arrived] == 0).all()
    assert ((served > 0).sum(axis=1) <= 3).all()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_served_per_stage_counts_like_a_loop(lengths, num_llms, data):
    total = sum(lengths)
    answers = data.draw(st.lists(st.integers(-1, num_llms - 1), min_size=total, max_size=total))
    expected = np.zeros((len(lengths), num_llms))
    stages = [stage for stage, length in enumerate(lengths) for _ in range(length)]
    for stage, llm in zip(stages, answers, strict=True):
        expected[stage, llm] += llm >= 0
    counted = served_per_stage(np.array(answers), np.array(lengths), num_llms)
    np.testing.assert_array_equal(counted, expected)


def test_policies_of_one_seed_meet_one_instance_and_a_cell_is_a_function_of_its_seed():
    arrivals = {seed: [play(x, seed)["traffic"]["arrival"] for x in LABELS] for seed in (0, 1)}
    assert all(arrival == arrivals[0][0] for arrival in arrivals[0])
    assert arrivals[0][0] != arrivals[1][0]
    cell = CELLS["StageRoute", 0]
    first, second = play("StageRoute"), run_cell(cell.spec, cell.kwargs)
    for part in ("metrics", "curve", "traffic"):
        assert first[part] == second[part]


# --- suites ---------------------------------------------------------------------------------------


def test_agents_play_the_tasks_of_their_kind_only(own):
    both = {"seeds": 1, "agents": ["StageRoute", "greedy"], "task": [TASK, QUEUE]}
    plan = make_plan(parse_suite("s", both), agents=[f"{own}:First", "Q-UCB"])
    played = {"tiny": set(), "queue": set()}
    for cell in plan.cells:
        played[cell.spec["task"]["name"]].add(cell.spec["agent"]["label"])
    assert played == {
        "tiny": {"oracle", "random", "StageRoute", f"{own}:First"},
        "queue": {"oracle", "random", "greedy", "Q-UCB"},
    }
    assert plan.skipped == {}
    alone = make_plan(parse_suite("s", {**both, "task": [TASK]}))
    assert "queueing" in alone.skipped["greedy"]


def test_content_of_a_table_changes_the_key(tmp_path):
    rows = tmp_path / "rows.csv"
    instance = {
        "source": "table",
        "path": str(rows),
        "text": "q",
        "quality": ["a", "b"],
        "cost": ["ca", "cb"],
    }
    document = {"seeds": 1, "agents": [], "task": [{**TASK, "kwargs": {"instance": instance}}]}

    def keys(cost):
        rows.write_text(f"q,a,b,ca,cb\nhello,0.1,0.9,0.001,{cost}\nyou,0.2,0.8,0.001,0.002\n")
        return {cell.key for cell in make_plan(parse_suite("s", document)).cells}

    assert keys(0.002).isdisjoint(keys(0.003))


def test_an_unknown_instance_is_an_error_of_the_suite():
    document = {**SUITE, "task": [{**TASK, "kwargs": {"instance": "catalogue"}}]}
    with pytest.raises(SuiteError, match=r"task 'tiny'.*catalog"):
        make_plan(parse_suite("s", document))


# --- scores ---------------------------------------------------------------------------------------


def traffic_of(served, arrival, length=100):
    served = np.array(served)
    starts = np.arange(len(served)) * length
    llms = tuple(f"m{j}" for j in range(served.shape[1]))
    return Traffic(llms, np.array(arrival), starts, np.full(len(served), length), served)


def cells_of(ledgers):
    """Deployment cells from {agent: [ledger score a seed]}."""
    return made_up.cells_of(deploy_cell, ledgers)


REFERENCES = {"oracle": [0.60, 0.62, 0.58, 0.61, 0.59], "random": [0.1] * 5}


def test_an_agent_that_knows_the_draws_is_found_within_one_run(own):
    document = {**SUITE, "seeds": 1, "agents": ["StageRoute"]}
    plan = make_plan(parse_suite("s", document), agents=[f"{own}:KnowsTheDraws"])
    luck = {
        c.spec["agent"]["label"]: run_cell(c.spec, c.kwargs)["metrics"]["luck"] for c in plan.cells
    }
    assert luck.pop(f"{own}:KnowsTheDraws") > LUCK_LIMIT
    assert all(abs(value) < 4.0 for value in luck.values())


def test_adoption_delay_of_a_constructed_run():
    """Five stages of 100; the LLMs 1, 2 and 3 arrive at 90, 150 and 150, LLM 3 is not worth it."""
    oracle = traffic_of(
        [[100, 0, 0, 0], [20, 80, 0, 0], [0, 60, 40, 0], [0, 60, 38, 2], [0, 100, 0, 0]],
        [0, 90, 150, 150],
    )
    quick = [[100, 0, 0, 0], [60, 40, 0, 0], [40, 41, 19, 0], [0, 70, 30, 0], [0, 100, 0, 0]]
    never = [[100, 0, 0, 0], [61, 39, 0, 0], [71, 29, 0, 0], [71, 29, 0, 0], [100, 0, 0, 0]]
    arrival = oracle.arrival
    assert adoption_delays(oracle, oracle) == [(10, True), (50, True)]
    assert adoption_delays(traffic_of(quick, arrival), oracle) == [(10, True), (150, True)]
    assert adoption_delays(traffic_of(never, arrival), oracle) == [(410, False), (250, False)]


def test_adoption_stands_in_the_row():
    board = board_of(cells_of({**REFERENCES, "a": [0.5] * 5}))
    [delay] = [i for i, c in enumerate(DEPLOYMENT.columns) if c.short == "delay"]
    figures = {row.agent: row.figures[delay] for row in board.tasks[0].rows}
    assert figures == {"oracle": 0.0, "a": 50.0, "random": 50.0}


def traffic_board(seeds, names):
    """Agents that ran some seeds, of which each has the LLMs that ``names`` says."""
    cells = [
        deploy_cell(a, s, 0.5, kwargs={"num_llms": 2}) for a, own in seeds.items() for s in own
    ]
    for c in cells:
        llms, arrival = names[c["spec"]["seed"]]
        c["traffic"] = {**c["traffic"], "llms": list(llms), "arrival": list(arrival)}
        served = c["spec"]["seed"] * 10
        c["traffic"]["served"] = [[served, 50 - served]] * 2
    return board_of(cells).tasks[0]


ODD = {0: (("x", "y"), (0, 50)), 1: (("u", "v"), (50, 0)), 2: (("s", "t"), (0, 0))}


@pytest.mark.parametrize(
    ("seeds", "names", "shown", "averaged"),
    [
        # The oracle's first seed is not the agent's.
        ({"oracle": [0, 1, 2], "a": [1, 2]}, ODD, {"oracle": 1, "a": 1}, 1),
        (
            {"oracle": [1, 2], "a": [0, 1], "b": [0, 1, 2]},
            ODD,
            dict.fromkeys(("oracle", "a", "b"), 1),
            1,
        ),
        # No seed is everybody's.
        ({"oracle": [1, 2], "a": [0], "b": [1]}, ODD, {"oracle": 1, "b": 1}, 1),
        # The same arrivals under other names are another instance.
        (
            {"oracle": [0, 1], "a": [1]},
            {0: (("x", "y"), (0, 50)), 1: (("u", "v"), (0, 50))},
            {"oracle": 1, "a": 1},
            1,
        ),
        # One instance: all seeds are averaged.
        ({"oracle": [0, 2], "a": [2]}, dict.fromkeys(range(3), ODD[1]), {"oracle": 1, "a": 2}, 2),
    ],
)
def test_a_heat_map_shows_one_instance_under_its_own_names(seeds, names, shown, averaged):
    traffic = heat_map(traffic_board({"random": seeds["oracle"], **seeds}, names))
    llms, arrival = names[shown["oracle"]]
    order = np.argsort(arrival, kind="stable")
    assert traffic.names == tuple(llms[llm] for llm in order)
    assert set(traffic.shares) - {"random"} == set(shown)
    for label, seed in shown.items():
        share = np.array([seed * 10, 50 - seed * 10])[order] / 50
        np.testing.assert_allclose(traffic.shares[label][:, 0], share)
    late = np.array(arrival)[order] > 0
    assert traffic.absent[:, 0].tolist() == late.tolist()
    assert traffic.seeds == averaged


# --- sweeps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 2 / 3, 1.0])
def test_exponent_of_a_horizon_sweep_is_that_of_the_power_law(power):
    cells = [
        deploy_cell(
            agent,
            seed,
            0.5,
            f"x-T{t}",
            regret=(seed + 1) * t**power,
            horizon=t,
            kwargs={"num_stages": round(t**0.3)},
        )
        for agent in ("oracle", "random", "a")
        for seed in range(3)
        for t in (1000, 3000, 10_000, 100_000)
    ]
    [sweep] = board_of(cells).sweeps
    assert (sweep.axis, sweep.name) == ("horizon", "x")
    assert sweep.values.tolist() == [1000, 3000, 10_000, 100_000]
    np.testing.assert_allclose(sweep.exponents["a"], power, atol=1e-9)
    assert sweep.regret["a"][2].tolist() == [3 * t**power for t in sweep.values]


def test_a_run_is_stuck_that_ends_on_other_llms_than_the_oracles():
    """20 stages: the last two count, and of each LLM at most what the oracle gives it."""
    early, oracle = [[100, 0, 0]] * 18, [[0, 60, 40]] * 2
    for last, stuck in (
        ([[0, 60, 40]] * 2, False),
        ([[40, 60, 0], [60, 0, 40]], False),  # 60 + 40 of 200 are shared: just half
        ([[40, 60, 0], [61, 0, 39]], True),
        ([[0, 0, 100], [51, 0, 49]], True),  # 40 + 40
        ([[100, 0, 0]] * 2, True),
    ):
        own = traffic_of(early + last, [0, 50, 50])
        assert is_stuck(own, traffic_of(early + oracle, [0, 50, 50])) == stuck


def test_a_horizon_sweep_tells_the_share_of_stuck_seeds():
    cells = [
        deploy_cell(agent, seed, 0.5, f"x-T{t}", horizon=t, regret=t)
        for agent in ("oracle", "random", "a")
        for seed in range(4)
        for t in (100, 200, 400)
    ]
    for record in cells:
        # Agent a stays with LLM a: at the largest T on all seeds but the first, else never.
        spec = record["spec"]
        lost = spec["agent"]["label"] == "a" and spec["task"]["horizon"] == 400 and spec["seed"]
        record["traffic"] = {**record["traffic"], "served": [[50, 0], [50, 0] if lost else [0, 50]]}
    board = board_of(cells)
    [sweep] = board.sweeps
    assert sweep.stuck["a"].mean(axis=0).tolist() == [0.0, 0.0, 0.75]
    assert not sweep.stuck["oracle"].any()
    assert f"**{sweep_title(board.sweeps[0])}**" in board_summary(board, [])
    page = board_markdown(board)
    [line] = [line for line in page.splitlines() if line.startswith("| a | 1.00")]
    assert line.split(" | ")[2] == "0.000 to 0.750"
    alone = board_of([record for record in cells if record["spec"]["agent"]["label"] == "a"])
    assert alone.sweeps[0].stuck == {}


def test_tasks_that_differ_in_two_parameters_or_are_only_two_are_no_sweep():
    def boards(points):
        return board_of(
            [
                deploy_cell("a", 0, 0.5, f"m{m}-b{b}", kwargs={"max_deployed": m, "budget": b})
                for m, b in points
            ]
        ).sweeps

    assert boards([(4, 1), (8, 2), (16, 3)]) == []
    assert boards([(4, 1), (8, 1)]) == []
    [sweep] = boards([(16, 1), (4, 1), (8, 1), (4, 2), (8, 2)])
    assert (sweep.axis, sweep.values.tolist()) == ("max_deployed", [4, 8, 16])
    assert sweep.exponents == {}


@pytest.mark.parametrize("stored", [0, 2])
def test_a_sweep_that_was_interrupted_is_reported_without_it(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda self, stream, **_: None)
    cells = [deploy_cell("a", 0, 0.5, f"x-k{k}", kwargs={"num_stages": k}) for k in (5, 33, 11)]
    board = board_of(cells[:stored], planned=cells, missing=["a cell"])
    assert board.sweeps == []
    draw_figure(board, tmp_path)
    assert not (tmp_path / "sweeps.png").exists()
    assert "Not run" in board_markdown(board)
    board_page(board)


# --- report ---------------------------------------------------------------------------------------

TOML = """
description = "both kinds"
seeds = 2
agents = ["StageRoute", "greedy"]

[[task]]
name = "queue"
env = "LLMQueue-v0"
horizon = 80
kwargs = { load = 0.8, assortment_size = 1 }

[[task]]
name = "deploy-m{slots}"
env = "LLMDeploy-v0"
horizon = 300
matrix = { slots = [2, 3, 4] }

[task.kwargs]
instance = { source = "synthetic", num_llms = 6 }
num_stages = 5
max_deployed = "{slots}"
alpha = 1.0
"""


def test_a_suite_of_both_kinds_has_a_board_and_pictures_of_each(
    tmp_path, monkeypatch, capsys, bench
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.toml").write_text(TOML)
    (tmp_path / "README.md").write_text(
        "<!-- leaderboard both: begin -->\n<!-- leaderboard both: end -->\n"
    )
    assert bench("run", "both.toml") == 0
    assert bench("report", "--readme", "README.md") == 0
    printed = capsys.readouterr().out
    assert "both, queueing: " in printed
    assert "both, deployment: " in printed
    page = (tmp_path / "leaderboard" / "leaderboard.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    for text, folder in ((page, tmp_path / "leaderboard"), (readme, tmp_path)):
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert all((folder / picture).stat().st_size > 5000 for picture in pictures)
        assert len(pictures) == (8 if text is page else 2)
    assert readme.index("### Queueing") < readme.index("### Deployment")
    assert "### deploy: max_deployed from 2 to 4" in page
    assert "| ledger / query |" in page
    for line in re.findall(r"^\|.*StageRoute.*$", readme, re.MULTILINE):
        assert "queue" not in line


@pytest.mark.parametrize("letters", [3, 30, 60])
def test_a_legend_stays_within_the_picture(letters):
    picture = Figure(figsize=(12.5, 4), layout="constrained")
    axis = picture.subplots()
    names = [f"{i}{'W' * letters}" for i in range(6)]
    for name in names:
        axis.plot([0, 1], label=name)
    draw_legend(picture, {name: {} for name in names})
    FigureCanvasAgg(picture).draw()
    [legend] = picture.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= picture.bbox.width
