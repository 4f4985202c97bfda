"""A fourth problem is a folder and two lines: suites, runner, reports and page ask nothing else."""

import re
from collections.abc import Generator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

import benchmarks
from benchmarks.moved import MOVED
from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.problems import PROBLEMS, problem_of, register_problem
from benchmarks.report import board_markdown, board_tables, draw_figure
from benchmarks.report.data import board_json
from benchmarks.report.page import board_page, page_data
from benchmarks.run.engines import Outcome, execute
from benchmarks.run.runner import provenance, run_cell
from benchmarks.run.store import Store
from benchmarks.score.export import export_run, open_results
from benchmarks.score.scoring import load_board

FOLDER = {
    "__init__.py": """
from benchmarks.problems.interface import Problem

GUESSING = Problem(
    name="guessing",
    package=__name__,
    env_ids=("Guess-v0",),
    references={"oracle": "oracle", "random": "guessing.play:Blind"},
    oracle="the best arm",
    horizon_argument="length",
    action_layout="[arm]",
)
""",
    "play.py": """
import gymnasium as gym
import numpy as np
from types import SimpleNamespace


class Guess(gym.Env):
    action_space = gym.spaces.MultiDiscrete([4])
    observation_space = gym.spaces.Discrete(1)

    def __init__(self, length, spread=0.5):
        self.length, self.spread = length, spread

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rates = self.np_random.permutation(np.linspace(0.5, 0.5 - self.spread, 4))
        self.uniform, self.t = self.np_random.random(self.length), 0
        return 0, {}

    def step(self, action):
        won = self.uniform[self.t] < self.rates[action[0]]
        self.t += 1
        return 0, float(won), False, self.t == self.length, {"won": bool(won)}


class Blind:
    kind = "guessing"

    def __init__(self, problem, seed):
        self.rng, self.problem = np.random.default_rng(seed), problem

    def act(self, observation):
        return self.rng.integers(self.problem.arms, size=1)

    def update(self, observation, action, reward, following, info):
        pass


class Careful(Blind):
    def __init__(self, problem, seed):
        super().__init__(problem, seed)
        self.wins, self.tries = np.ones(problem.arms), np.ones(problem.arms)

    def act(self, observation):
        bonus = np.sqrt(np.log(self.tries.sum()) / self.tries)
        return np.array([np.argmax(self.wins / self.tries + 0.3 * bonus)])

    def update(self, observation, action, reward, following, info):
        self.wins[action[0]] += reward
        self.tries[action[0]] += 1


def public_problem(env, horizon, pretrained=False):
    return SimpleNamespace(kind="guessing", arms=4, horizon=horizon)


def make_oracle(env):
    return SimpleNamespace(act=lambda seen: np.array([env.unwrapped.rates.argmax()]))


def assumptions(env, kwargs):
    return ["four arms"]


def fingerprint(kwargs):
    return None


class Recorder:
    def __init__(self, env, horizon):
        self.rates, self.won, self.chosen = env.unwrapped.rates, [], []

    def see(self):
        return True

    def choose(self, t, action):
        self.chosen.append(float(self.rates[action[0]]))

    def observe(self, t, action, info):
        self.won.append(info["won"])

    def truth(self, t):
        return f"truth: {sum(self.won)} won"

    def result(self):
        from benchmarks.problems.luck import outcome_luck

        chosen = np.array(self.chosen)
        regret = np.cumsum(self.rates.max() - chosen)
        luck = outcome_luck(float(sum(self.won)), chosen)
        figures = {"won": sum(self.won) / len(self.won), "regret": float(regret[-1])}
        return {
            "metrics": figures | luck.as_metrics(),
            "curve": {"won": np.cumsum(self.won), "regret": regret},
            "llms": {"LLM": ["a", "b", "c", "d"], "win rate": self.rates.tolist()},
        }
""",
    "board.py": """
import polars as pl

from benchmarks.problems.kind import (
    CLOCK, LUCK, Column, Kind, Panel, Sweeps, TrainingCurve, first_shown, growth_of, interval_of,
)


def _panel(task, name):
    lines = {label: (curves.t, curves.sums[name]) for label, curves in task.curves.items()}
    ends = first_shown(task), float(task.task["horizon"])
    highest = max(float(values.max()) for _, values in lines.values())
    return Panel("guess", name, lines, "linear", "linear", ends, (0.0, highest))


KIND = Kind(
    name="guessing",
    metrics=("won", "regret", *LUCK),
    h=-pl.col("won"),
    h_name="minus the share won",
    luck_name="wins",
    bound=None,
    blind=("oracle", "random"),
    reference=(),
    about=lambda table: "four arms",
    columns=(
        Column("won", "won", interval_of("won"), 3),
        Column("growth", "", growth_of, missing="none"),
        CLOCK,
    ),
    legend="*won*: share of guesses that were right.",
    compared=("won", "regret"),
    picture=("guessing", "wins and regret over time"),
    panels=lambda task: [_panel(task, "won"), _panel(task, "regret")],
    training=TrainingCurve("won", "wins while training"),
    sweeps=Sweeps({"horizon": "guesses, T"}, {}, "regret", "won", "*regret*: of the true rates."),
)
""",
}
TASK = {"name": "g", "env": "Guess-v0", "horizon": 300, "kwargs": {"spread": 0.5}}
SUITE = {"seeds": 3, "agents": ["guessing.play:Careful"]}


class Here:
    """Runs cells in this process."""

    def run(self, cells) -> Generator[Outcome]:
        for cell in cells:
            yield Outcome(cell, run_cell(cell.spec, cell.kwargs), failed=False)


@pytest.fixture
def guessing(tmp_path, monkeypatch):
    """Add the problem as its two lines would, and take it away again."""
    folder = tmp_path / "code"
    for name, text in FOLDER.items():
        path = folder / "guessing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(folder)
    from guessing import GUESSING

    register_problem(GUESSING)
    gym.register("Guess-v0", entry_point="guessing.play:Guess")
    yield GUESSING
    del PROBLEMS["guessing"], gym.registry["Guess-v0"]


def test_a_fourth_problem_is_run_reported_and_shown(guessing, tmp_path):
    assert problem_of("somewhere:Guess-v0") is guessing
    horizons = (200, 300, 400)
    tasks = [TASK | {"name": f"guess-{t}", "horizon": t} for t in horizons]
    plan, store, notes = make_plan(parse_suite("g", SUITE | {"task": tasks})), Store(tmp_path), []
    tally = execute(plan, store, Here(), provenance("run"), on_note=notes.append)
    assert (tally.computed, tally.failed) == (3 * 3 * 3, 0)
    assert notes == [f"task guess-{t}: four arms" for t in horizons]
    export_run(store, tmp_path / "g.json.gz")
    for results in (store, open_results(tmp_path / "g.json.gz")):
        board = load_board(results)
        assert not board.violations
        [standing] = board.standings
        assert standing.section.kind is guessing.kind
        assert [row.agent for row in standing.rows] == ["oracle", "guessing.play:Careful", "random"]
        assert standing.rows[0].score.value == 1
        assert 0 < standing.rows[1].score.value < 1
        assert board_json(board)["tasks"][0]["kind"] == "guessing"
        assert {title for title in board_json(board)["tasks"][0]["rows"][0]["figures"]} >= {"won"}
    assert "share of guesses that were right" in board_markdown(board)
    assert "guess-200 (four arms, T = 200)" in str([t.title for t in board_tables(board)])
    names = {picture.path.name for picture in draw_figure(board, tmp_path)}
    assert {"guessing.png", "overall-guessing.png", "sweeps.png"} == names
    [section] = page_data(board)["sections"]
    assert [panel["quantity"] for panel in section["tasks"][0]["panels"]] == ["won", "regret"]
    assert section["tasks"][0]["llms"]["columns"] == ["LLM", "win rate"]
    assert section["sweeps"][0]["across"] == "guesses, T"
    assert '"guessing"' in board_page(board)


def test_what_a_fourth_problem_lacks_is_said(guessing):
    table = TASK | {"shuffled_contexts": ["guessing.play:Careful"]}
    with pytest.raises(ValueError, match="shuffled_contexts needs a task with contexts"):
        parse_suite("g", SUITE | {"task": [table]})
    plain = TASK | {"agents": ["Q-UCB"]}
    plan = make_plan(parse_suite("g", SUITE | {"task": [plain]}))
    assert plan.skipped == {"Q-UCB": "it plays queueing tasks and none of those was chosen"}


def test_import_paths_of_before_the_rooms_lead_to_the_same_modules():
    for old, new in MOVED.items():
        assert find_spec(f"benchmarks.{old}")
        assert find_spec(f"benchmarks.{new}")
    for old in ("runner", "kinds"):  # all go one way, and to import them all takes long
        module = import_module(f"benchmarks.{old}")
        assert module is import_module(f"benchmarks.{MOVED[old]}")
        assert module.__name__ == module.__spec__.name == f"benchmarks.{MOVED[old]}"


def test_only_a_problems_folder_and_the_measuring_scripts_call_one_by_its_name():
    """No comparison with a problem's name, no import of one: everything else asks `problem_of`."""
    root = Path(benchmarks.__file__).parent
    own = ("problems/queueing", "problems/deployment", "problems/serving", "measure", "moved.py")
    own = (*own, "commands/choose.py")  # it writes a suite, which names what is played
    word = r"[\"'](LLM(Queue|Deploy|Serve)|(queueing|deployment|serving)[\"'])"
    name = re.compile(rf"{word}|problems\.(queueing|deployment|serving)")
    found = [
        f"{path.relative_to(root).as_posix()}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if name.search(line) and not line.lstrip().startswith(("#", "A further"))
    ]
    assert [line for line in found if not line.startswith(own)] == [
        "problems/__init__.py: from benchmarks.problems.deployment import DEPLOYMENT",
        "problems/__init__.py: from benchmarks.problems.queueing import QUEUEING",
        "problems/__init__.py: from benchmarks.problems.serving import SERVING",
    ]
