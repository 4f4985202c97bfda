"""Training behind the command: files that are agents by name, resumed work, and who plays what."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from baselines.models import class_training, read_card
from baselines.registry import agent_spec, registered_agents
from benchmarks.commands import INTERRUPTED
from benchmarks.plan.cells import make_plan
from benchmarks.plan.players import Player
from benchmarks.plan.suite import SuiteError, load_suite, parse_suite
from benchmarks.report import board_markdown, draw_figure
from benchmarks.run.engines import LocalEngine, execute
from benchmarks.run.runner import provenance, run_cell
from benchmarks.run.store import Store
from benchmarks.run.training import train_all
from benchmarks.score.export import export_run, open_results
from benchmarks.score.scoring import load_board

TINY = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
TASK = {
    "name": "tiny",
    "env": "LLMQueue-v0",
    "horizon": 60,
    "kwargs": {"load": 0.8, "num_llms": 3, "window": 6, "instance_seed": 0},
}
PPO = {"name": "PPO", "train": {"steps": 1024, "settings": TINY}}
SUITE = {"seeds": 2, "agents": ["greedy", PPO], "task": [TASK]}
TOML = """
seeds = 1
agents = [
  "greedy",
  { name = "PPO", train = { steps = 1024, settings = { n_steps = 16, batch_size = 32 } } },
]
[[task]]
name = "tiny"
env = "LLMQueue-v0"
horizon = 60
[task.kwargs]
load = 0.8
num_llms = 3
window = 6
instance_seed = 0
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(bench, *arguments):
    fixed = ("train", "PPO", "own.toml:tiny", "--settings", json.dumps(TINY))
    return bench(*fixed, *arguments)


# --- a suite's own trainings ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder of one run of two tasks, a training each; tests change copies of it."""
    folder = tmp_path_factory.mktemp("played")
    other = TOML[TOML.index("[[task]]") :].replace('"tiny"', '"other"').replace("60", "50")
    (folder / "own.toml").write_text(TOML + other)
    suite, models = load_suite(str(folder / "own.toml")), folder / "results" / "own" / "models"
    errors = train_all(make_plan(suite).trainings, models, 2, lambda t, p: None, print)
    plan, store = make_plan(suite, models=models), Store(folder / "results" / "own")
    tally = execute(plan, store, LocalEngine(2), provenance("test"))
    assert (errors, tally.computed, tally.failed) == ({}, 8, 0)
    return folder


@pytest.fixture
def copied(played, tmp_path, monkeypatch):
    here = tmp_path / "copy"
    shutil.copytree(played, here)
    monkeypatch.chdir(here)
    return here


def test_a_run_trains_once_plays_the_model_and_keeps_the_protocols_apart(copied, bench, capsys):
    own, models = Store(copied / "results" / "own"), copied / "results" / "own" / "models"
    plan = make_plan(load_suite("own.toml"), models=models)
    assert plan.trainings == ()
    assert {cell.key for cell in plan.cells} == own.keys()
    board = load_board(own)
    trained = [c["spec"] for c in board.cells if c["spec"]["agent"]["label"] == "PPO"]
    assert {spec["protocol"] for spec in trained} == {"pretrained"}
    facts = next(s["agent"]["training"] for s in trained if s["task"]["name"] == "tiny")
    model = models / f"{facts['key']}.zip"
    assert facts["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["steps"] == 1024
    assert facts["seconds"] > 0
    assert [section.protocol for section in board.sections] == ["online", "pretrained"]
    assert "| 1,024 |" in board_markdown(board)
    curve = {"task": "tiny", "agent": "PPO", **read_card(model)["curve"]}
    assert curve in board.trainings
    pictures = [picture.path.name for picture in draw_figure(board, copied)]
    assert "training-queueing.png" in pictures
    export_run(own, copied / "own.json.gz")
    exported = load_board(open_results(copied / "own.json.gz")).trainings
    [found] = [training for training in exported if training["task"] == "tiny"]
    assert found["queue"] == pytest.approx(curve["queue"], rel=1e-5)
    model.write_bytes(model.read_bytes()[:1000])  # damaged: trained again, its cell with it
    assert bench("run", "own.toml") == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "training it again" in printed
    assert "1 cells computed, 7 taken" in printed


def test_trained_cells_of_an_export_are_verified_where_their_models_are(copied, bench, capsys):
    assert bench("export", "results/own", "own.json.gz") == 0
    verify = ("verify", "own.json.gz", "--sample", "100", "--json")
    (copied / "results/own/models").rename(copied / "kept")
    capsys.readouterr()
    assert bench(*verify) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checked"] == 6
    assert found["skipped"].keys() == {"tiny / PPO", "other / PPO"}
    assert "--models" in found["skipped"]["tiny / PPO"]
    plan = make_plan(load_suite("own.toml"))
    [lost] = [t.path(copied / "kept") for t in plan.trainings if t.task == "tiny"]
    lost.unlink()
    assert bench(*verify, "--models", "kept") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["checked"], found["skipped"].keys()) == (7, {"tiny / PPO"})


def test_a_training_is_keyed_by_what_decides_it(monkeypatch):
    def key(suite):
        [training] = make_plan(parse_suite("s", suite)).trainings
        return training.key

    def with_train(**train):
        return {**SUITE, "agents": [{"name": "PPO", "train": {"steps": 1024, **train}}]}

    def with_task(**task):
        return {**with_train(), "task": [{**TASK, **task}]}

    same = key(with_train())
    assert key({**with_train(), "seeds": 7}) == same  # shared by all seeds
    renamed = {**with_train()["agents"][0], "label": "other"}
    assert key({**SUITE, "agents": [renamed]}) == same
    different = [
        with_train(steps=1025),
        with_train(seed=1),
        with_train(settings={"gamma": 0.1}),
        with_task(horizon=61),
        with_task(kwargs={"load": 0.7}),
        {**SUITE, "agents": [{"name": "A2C", "train": {"steps": 1024}}]},
    ]
    assert len({same, *map(key, different)}) == 1 + len(different)


def test_each_of_several_trainings_plays_some_of_the_seeds(monkeypatch):
    several = {**PPO, "train": {**PPO["train"], "seed": 4, "trainings": 3}}
    suite = parse_suite("s", {**SUITE, "seeds": 7, "agents": [several]})
    asked = make_plan(suite).trainings
    assert [t.spec["seed"] for t in asked] == [4, 5, 6]
    alone = {**PPO, "train": {**PPO["train"], "seed": 6}}
    assert make_plan(parse_suite("s", {**SUITE, "agents": [alone]})).trainings == asked[2:]
    assert make_plan(suite, seeds=2).trainings == asked[:2]  # a third would play no seed
    assert [str(t) for t in asked] == [f"tiny / PPO / training {n}" for n in (4, 5, 6)]

    def made(entry, training, kind, models):
        identity = {"name": "PPO", "label": "PPO", "training": {"key": training.key}}
        done = training.spec["seed"] <= latest
        return Player(identity, "pretrained", kind) if done else None

    monkeypatch.setattr("benchmarks.plan.cells.trained_player", made)
    latest = 5
    plan = make_plan(suite)
    assert plan.trainings == asked[2:]
    assert "PPO" not in {cell.spec["agent"]["label"] for cell in plan.cells}  # all or none
    latest = 6
    cells = [c.spec for c in make_plan(suite).cells if c.spec["agent"]["label"] == "PPO"]
    played = {spec["seed"]: spec["agent"]["training"]["key"] for spec in cells}
    assert played == {seed: asked[seed % 3].key for seed in range(7)}


def test_untrained_agents_have_no_cells():
    plan = make_plan(parse_suite("s", SUITE))
    assert [str(training) for training in plan.trainings] == ["tiny / PPO"]
    assert {cell.spec["agent"]["label"] for cell in plan.cells} == {"oracle", "random", "greedy"}


def test_without_sb3_what_is_trained_is_skipped_with_the_extra_to_install(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("benchmarks.plan.cells.distribution", missing)
    plan = make_plan(parse_suite("s", SUITE))
    assert plan.trainings == ()
    assert "llmqueue_gym[rl]" in plan.skipped["PPO"]
    assert {cell.spec["agent"]["label"] for cell in plan.cells} == {"oracle", "random", "greedy"}


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"name": "PPO", "train": {"steps": 0}}, "steps=0"),
        ({"name": "PPO", "train": {"steps": 9, "sed": 1}}, "did you mean 'seed'"),
        ({"name": "PPO", "train": {"steps": 9, "seed": -1}}, "seed=-1"),
        ({"name": "PPO", "train": {"steps": 9, "trainings": 0}}, "trainings=0"),
        ({"name": "PPO", "train": {"steps": 9}, "protocol": "online"}, "not trained before"),
        ({"name": "POP", "train": {"steps": 9}}, "did you mean 'PPO'"),
        ({"name": "SAC", "train": {"steps": 9}}, "recipe for LLMQueue-v0 'SAC' is not known"),
    ],
)
def test_what_is_wrong_with_a_training_is_named(agent, message):
    with pytest.raises(SuiteError, match=message):
        make_plan(parse_suite("s", {**SUITE, "agents": [agent]}))


def test_a_training_that_fails_says_so_and_harms_no_other(tmp_path):
    broken = {"name": "A2C", "train": {"steps": 64, "settings": {"n_steps": "many"}}}
    plan = make_plan(parse_suite("s", {**SUITE, "agents": [broken, PPO]}))
    seen = []
    errors = train_all(plan.trainings, tmp_path, 2, lambda t, p: seen.append((t.label, p)), print)
    assert list(errors) == ["tiny / A2C"]
    assert "integer" in errors["tiny / A2C"]
    assert {label for label, _ in seen} == {"PPO"}
    assert [path.stem for path in tmp_path.iterdir()] == [plan.trainings[1].key]


def test_a_training_that_takes_too_long_is_ended_and_harms_no_other(tmp_path):
    endless = {"name": "A2C", "train": {"steps": 10**8}}
    plan = make_plan(parse_suite("s", {**SUITE, "agents": [endless]}))
    started = time.monotonic()
    errors = train_all(plan.trainings, tmp_path, 1, lambda training, progress: None, print, 0.5)
    assert time.monotonic() - started < 30
    assert "timeout of 0.5 s" in errors["tiny / A2C"]
    with pytest.raises(SuiteError, match=r"train-timeout=0\.0 must be"):
        train_all(plan.trainings, tmp_path, 1, lambda training, progress: None, print, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--train-timeout", "0.5"), "timeout of 0.5 s"), ((), "are refused by PPO")],
    ids=["slow", "broken"],
)
def test_a_failed_training_is_exit_code_1_and_named(here, bench, capsys, arguments, message):
    text = TOML.replace("n_steps = 16", 'n_steps = "many"' if not arguments else "n_steps = 16")
    (here / "own.toml").write_text(text.replace("steps = 1024", "steps = 100_000_000"))
    assert bench("run", "own.toml", "--seeds", "1", "--json", *arguments) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    [failure] = document["failures"]
    assert failure["training"] == "tiny / PPO"
    assert message in failure["error"]
    assert (document["failed"], document["exit_code"], document["computed"]) == (1, 1, 3)
    assert document["skipped"] == {}
    assert "trainings that failed: 1" in " ".join(printed.err.split())
    assert "failed: training tiny / PPO" in " ".join(printed.err.split())


# --- llmqueue-bench train -------------------------------------------------------------------------


def test_a_trained_agent_is_an_agent_by_name_and_by_path(here, monkeypatch, capsys, bench):
    assert train(bench, "--steps", "1024") == 0
    model = here / "models" / "PPO-tiny.zip"
    assert read_card(model)["steps"] == 1024
    assert "load only files of your own" in " ".join(capsys.readouterr().err.split())
    [listed] = [spec for spec in registered_agents() if spec.name == "PPO-tiny"]
    asked_for = agent_spec("PPO-tiny")
    digest = asked_for.settings["sha256"]
    assert asked_for == replace(listed, settings={**listed.settings, "sha256": digest})
    assert listed.source == "PPO, 1,024 steps on LLMQueue-v0"
    suite = {**SUITE, "agents": ["PPO-tiny", "models/PPO-tiny.zip"]}
    for plan in (
        make_plan(parse_suite("s", suite)),
        make_plan(parse_suite("s", {**SUITE, "agents": []}), agents=["PPO-tiny"]),
    ):
        cells = [cell for cell in plan.cells if "PPO-tiny" in cell.spec["agent"]["name"]]
        assert len({cell.key for cell in cells}) == len(cells) > 0
        for cell in cells:
            assert cell.spec["protocol"] == "pretrained"
            assert cell.model == str(model)
            digest = hashlib.sha256(model.read_bytes()).hexdigest()
            assert cell.spec["agent"]["training"]["sha256"] == digest
            assert str(here) not in json.dumps(cell.spec)
    keys = {cell.key for cell in plan.cells if cell.model}
    assert bench("run", "own.toml", "--agent", "PPO-tiny", "--seeds", "1") == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("load only files of your own") == 1  # its own trainings need no warning
    assert train(bench, "--steps", "2048") == 0  # the same command goes on
    assert read_card(model)["steps"] == 2048
    plan = make_plan(parse_suite("s", SUITE), agents=["PPO-tiny"])
    assert keys.isdisjoint({cell.key for cell in plan.cells})  # other weights, other cells


def test_a_model_replaced_after_planning_is_not_played(here, bench):
    assert train(bench, "--steps", "1024", "--out", "mine.zip") == 0
    plan = make_plan(parse_suite("s", {**SUITE, "agents": []}), agents=["mine.zip"])
    [cell, *_] = [cell for cell in plan.cells if cell.model]
    assert train(bench, "--steps", "1100", "--out", "mine.zip") == 0
    with pytest.raises(ValueError, match="it was changed"):
        run_cell(cell.spec, cell.kwargs, cell.model)


def test_a_class_with_a_model_file_counts_as_pretrained(here, monkeypatch, bench):
    assert train(bench, "--steps", "1024", "--out", "mine.zip") == 0
    (here / "own_agents.py").write_text(
        "from baselines.rl import TrainedQueueAgent\n"
        "class Mine(TrainedQueueAgent):\n    model = 'mine.zip'\n"
    )
    monkeypatch.syspath_prepend(here)
    suite = parse_suite("s", {**SUITE, "agents": ["own_agents:Mine"]})
    [cell, _] = [cell for cell in make_plan(suite).cells if "Mine" in cell.spec["agent"]["name"]]
    assert cell.spec["protocol"] == "pretrained"
    assert cell.spec["agent"]["training"]["steps"] == 1024
    assert train(bench, "--steps", "1100", "--out", "mine.zip") == 0
    with pytest.raises(SuiteError, match="its model file here is not that of the plan"):
        run_cell(cell.spec, cell.kwargs, cell.model)


DECLARING = """
from baselines.queueing.heuristics import RandomAgent
class Mine(RandomAgent):
    protocol = {protocol!r}
    training = {training!r}
"""
DECLARED = {"steps": 500_000, "seconds": 420.0, "file": "weights.pt"}


def declare(here, monkeypatch, training, protocol="pretrained"):
    (here / "declaring.py").write_text(DECLARING.format(training=training, protocol=protocol))
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "declaring", raising=False)
    return parse_suite("s", {**SUITE, "agents": ["declaring:Mine"]})


def test_a_class_declares_what_its_training_cost(here, monkeypatch):
    weights = here / "weights.pt"
    weights.write_bytes(b"first")
    suite = declare(here, monkeypatch, DECLARED)
    first, _ = [cell for cell in make_plan(suite).cells if "Mine" in cell.spec["agent"]["name"]]
    digest = hashlib.sha256(b"first").hexdigest()
    expected = {"steps": 500_000, "seconds": 420.0, "sha256": digest}
    assert first.spec["agent"]["training"] == expected
    assert run_cell(first.spec, first.kwargs)
    weights.write_bytes(b"second")
    second, _ = [cell for cell in make_plan(suite).cells if "Mine" in cell.spec["agent"]["name"]]
    assert second.key != first.key  # other weights, other cells
    with pytest.raises(SuiteError, match="its model file here is not that of the plan"):
        run_cell(first.spec, first.kwargs)


def test_numbers_of_numpy_declare_the_same_as_plain_ones():
    plain = type("Mine", (), {"protocol": "pretrained", "training": {"steps": 500, "seconds": 4.5}})
    counted = {"steps": np.int64(500), "seconds": np.float64(4.5)}
    numpy = type("Mine", (), {"protocol": "pretrained", "training": counted})
    assert json.dumps(class_training(numpy)) == json.dumps(class_training(plain))


def test_a_declared_training_stands_in_the_table(here, monkeypatch, bench):
    declare(here, monkeypatch, {"steps": 500_000, "seconds": 420.0})
    (here / "own.toml").write_text(TOML.replace('"greedy",', '"declaring:Mine",'))
    assert bench("run", "own.toml", "--seeds", "1") == 0
    table = board_markdown(load_board(Store(here / "results" / "own")))
    assert "| 500,000 | 7" in table


@pytest.mark.parametrize(
    ("training", "protocol", "message"),
    [
        (500, "pretrained", "must be a dict with 'steps'"),
        ({"steps": 5}, "pretrained", "must be a dict with 'steps'"),
        ({"steps": 5, "seconds": 1, "epochs": 3}, "pretrained", "must be a dict with 'steps'"),
        ({"steps": 0, "seconds": 1}, "pretrained", "steps=0 must be a number in"),
        ({"steps": 5, "seconds": True}, "pretrained", "seconds=True must be a number in"),
        ({"steps": 5, "seconds": 1, "file": 3}, "pretrained", "file=3 must be a path"),
        ({"steps": 5, "seconds": 1, "file": "no.pt"}, "pretrained", "there is no such file"),
        ({"steps": 5, "seconds": 1}, "online", "protocol = 'pretrained'"),
    ],
)
def test_a_wrong_declaration_is_named(here, monkeypatch, training, protocol, message):
    suite = declare(here, monkeypatch, training, protocol)
    with pytest.raises(SuiteError, match=message):
        make_plan(suite, trust=True)


@pytest.mark.parametrize(
    ("agent", "kwargs", "told"),
    [
        ("PPO", {"instance_seed": None}, True),
        ("PPO", {}, False),
        ("PPO", {"instance_seed": None, "workload": {"source": "synthetic"}}, True),
        ("RecurrentPPO", {"instance_seed": None}, False),
    ],
)
def test_training_without_a_fixed_instance_is_said(here, bench, capsys, agent, kwargs, told):
    settings = {"n_steps": 4, "batch_size": 32, "n_epochs": 1}
    command = ("train", agent, "own.toml:tiny", "--steps", "256", "--out", "x.zip")
    given = ("--settings", json.dumps(settings), "--kwargs", json.dumps(kwargs))
    assert bench(*command, *given) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert ("the instance changes at every reset" in printed) is told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "models/greedy.zip"), "'greedy' is another agent's name"),
        (("--out", "model"), "must end in .zip"),
        (("--kwargs", "{load"), "is not JSON"),
        (("--kwargs", "[1]"), "must be a JSON object"),
        (("--kwargs", '{"load": 3}'), "load=3"),
        (("--horizon", "9"), "has its own, 60"),
    ],
)
def test_wrong_arguments_are_one_line(here, bench, capsys, arguments, message):
    assert train(bench, "--steps", "1024", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(here.rglob("*.zip"))


def test_unknown_tasks_and_recipes_are_one_line(here, bench, capsys):
    assert bench("train", "PPO", "own.toml:tinny", "--steps", "9") == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
    assert bench("train", "POP", "own.toml:tiny", "--steps", "9") == 2
    assert "did you mean 'PPO'" in capsys.readouterr().err
    assert bench("train", "PPO", "llmqueue_gym:LLMFoo-v0", "--steps", "9") == 2
    assert "LLMQueue-v0" in capsys.readouterr().err


def test_tensorboard_is_asked_for_by_name(here, monkeypatch, capsys, bench):
    monkeypatch.setattr("baselines.rl.training.find_spec", lambda name: None)
    assert train(bench, "--steps", "1024", "--tensorboard", "logs") == 2
    assert "pip install tensorboard" in " ".join(capsys.readouterr().err.split())


@contextmanager
def ctrl_c_once_there_is_a_model(folder):
    """Interrupt this process when the first checkpoint is written."""
    ended = threading.Event()

    def watch():
        while not list(folder.glob("*.zip")):
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    # A shell lets its background jobs ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_in_a_run_keeps_its_trainings_checkpoint(here, monkeypatch, bench, capsys):
    monkeypatch.setattr("benchmarks.run.training._CHECKPOINT_EVERY", 1024)
    (here / "own.toml").write_text(TOML.replace("steps = 1024", "steps = 10_000_000"))
    folder = here / "results" / "own" / "models"
    with ctrl_c_once_there_is_a_model(folder):
        assert bench("run", "own.toml") == INTERRUPTED
    assert "the same command goes on" in " ".join(capsys.readouterr().err.split())
    [model] = folder.glob("*.zip")
    assert 0 < read_card(model)["steps"] < 10_000_000


def test_ctrl_c_before_the_first_checkpoint_promises_none(here, monkeypatch, bench, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.run.training.train_plan", interrupted)
    assert bench("run", "own.toml") == INTERRUPTED
    told = " ".join(capsys.readouterr().err.split())
    assert "training first: tiny / PPO (1,024 steps)" in told  # no bar moves where no terminal is
    assert "0 of 1 trainings have a checkpoint" in told


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_keeps_the_checkpoint_and_the_same_command_goes_on(here, bench, capsys):
    models = here / "models"
    with ctrl_c_once_there_is_a_model(models):
        assert train(bench, "--steps", "10000000", "--checkpoint-every", "1024") == INTERRUPTED
    assert "the same command goes on" in " ".join(capsys.readouterr().err.split())
    [model] = models.iterdir()
    assert read_card(model)["steps"] >= 1024
