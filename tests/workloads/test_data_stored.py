"""Stored data sets: written whole or not at all, checked when read, and workloads of them."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmqueue_gym  # noqa: F401 - registers the environments
from benchmarks.cli import build_app
from benchmarks.commands import data
from llmqueue_gym.deployment.streams import stream_fingerprint
from llmqueue_gym.oracles import capacity
from llmqueue_gym.workloads import fingerprint, make_workload, sources, stored
from llmqueue_gym.workloads.datasets import import_dataset

ROWS = 150


@pytest.fixture
def cache(cache: Path) -> Path:
    return cache / "datasets"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A csv in RouterBench's schema: two LLMs that are good at different queries."""
    return write(tmp_path / "table.csv")


def write(path: Path, cost: float = 0.01) -> Path:
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "kappa", "sigma", "omega", "theta"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["sample_id", "prompt", "eval_name", "a", "b", "a|total_cost", "b|total_cost"]
        )
        for i in range(ROWS):
            text = f"{i} " + " ".join(rng.choice(words, 9))
            good = i % 3 == 0
            writer.writerow([i, f"[{text!r}]", "x", int(good), int(not good), cost, cost / 10])
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# --- whole or not at all -------------------------------------------------------------------------


def test_an_import_leaves_a_header_and_a_parquet_file_and_nothing_else(
    table: Path, cache: Path
) -> None:
    header = import_dataset("routerbench", table)
    assert names(cache) == sorted([header.path.name, "routerbench.json"])
    assert stored.read_header("routerbench") == header
    raw = json.loads((cache / "routerbench.json").read_text())
    assert raw["facts"]["llms"] == ["a", "b"]
    assert raw["facts"]["units"] == {"quality": "score in [0, 1]", "cost": "USD per query"}
    assert raw["files"] == [stored.file_facts(table)]
    assert raw["parquet"]["sha256"] == stored.file_facts(header.path)["sha256"]
    assert raw["licence"]
    assert str(table.parent) not in (cache / "routerbench.json").read_text()


def test_importing_again_replaces_and_a_failed_import_does_not(table: Path, cache: Path) -> None:
    first = import_dataset("routerbench", table)
    second = import_dataset("routerbench", write(table, cost=0.02))
    assert second.parquet["sha256"] != first.parquet["sha256"]
    assert names(cache) == sorted([second.path.name, "routerbench.json"])
    table.write_text("sample_id,prompt\n")
    with pytest.raises(ValueError, match="eval_name"):
        import_dataset("routerbench", table)
    assert stored.read_header("routerbench") == second
    assert names(cache) == sorted([second.path.name, "routerbench.json"])


SLOW_IMPORT = """
import sys, time
from pathlib import Path
from llmqueue_gym.workloads.stored import store

def convert(out):
    out.write_bytes(b"half a table")
    print("converting", flush=True)
    time.sleep(120)

store("slow", "routerbench", [], convert, licence="", reference="")
"""


def start_slow_import() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "converting\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_leaves_nothing_behind(number: int, cache: Path) -> None:
    process = start_slow_import()
    assert names(cache) == [".import.part"]
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert names(cache) == []


def test_what_a_killed_import_leaves_is_invisible_and_cleared_away(
    table: Path, cache: Path
) -> None:
    process = start_slow_import()
    process.kill()
    process.communicate(timeout=30)
    assert stored.stored_names() == []
    data.list_datasets()
    assert names(cache) == []
    process = start_slow_import()
    process.kill()
    process.communicate(timeout=30)
    header = import_dataset("routerbench", table)
    assert names(cache) == sorted([header.path.name, "routerbench.json"])


def test_an_import_killed_before_its_header_leaves_a_file_nobody_names(
    table: Path, cache: Path
) -> None:
    header = import_dataset("routerbench", table)
    (cache / "routerbench-0123456789abcdef.parquet").write_bytes(b"orphan")
    stored.clear_leftovers()
    assert names(cache) == sorted([header.path.name, "routerbench.json"])


def test_one_import_at_a_time(table: Path, cache: Path) -> None:
    process = start_slow_import()
    try:
        with pytest.raises(BlockingIOError, match="another import is running"):
            import_dataset("routerbench", table)
        data.list_datasets()  # looking is allowed, and clears nothing away meanwhile
        assert names(cache) == [".import.part"]
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_killing_the_command_while_it_unpickles_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    """The real command, killed at some moment of a real import, never shows half a data set."""
    source = Path(__file__).parents[1] / "data" / "routerbench" / "pandas2-protocol4.pkl"
    command = [sys.executable, "-m", "benchmarks.cli", "data", "import", "routerbench", str(source)]
    for delay in (0.5, 0.9, 1.3):
        process = subprocess.Popen(command, stdout=-1, stderr=-1)
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        stored.clear_leftovers()
        if "routerbench" in stored.stored_names():
            assert len(stored.read_table(stored.read_header("routerbench"))) == 4
            stored.remove("routerbench")
        assert not cache.exists() or names(cache) == []


def test_removing_deletes_both_files(table: Path, cache: Path) -> None:
    import_dataset("routerbench", table)
    stored.remove("routerbench")
    assert names(cache) == []


# --- checked when read ---------------------------------------------------------------------------


def test_a_changed_or_missing_table_is_noticed(table: Path) -> None:
    header = import_dataset("routerbench", table)
    header.path.write_bytes(header.path.read_bytes() + b" ")
    for spoil in (lambda: None, header.path.unlink):
        spoil()
        with pytest.raises(ValueError, match="import 'routerbench' again"):
            stored.read_table(header)


def test_some_rows_and_columns_can_be_read_alone(table: Path) -> None:
    header = import_dataset("routerbench", table)
    whole = stored.read_table(header)
    some = stored.read_table(header, ["text", "id"], np.array([7, 3, 120]))
    assert some.equals(whole[[3, 7, 120]].select("text", "id"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "facts": 3}'])
def test_a_damaged_header_is_an_error_that_names_it(text: str, table: Path, cache: Path) -> None:
    import_dataset("routerbench", table)
    (cache / "routerbench.json").write_text(text)
    with pytest.raises(ValueError, match=r"routerbench\.json: not a header"):
        stored.read_header("routerbench")
    assert "damaged: " in run("list").stdout


@pytest.mark.parametrize("name", ["../up", "", "Caps", "a/b", ".hidden", "x" * 80])
def test_a_name_that_is_no_file_name_is_refused(name: str, table: Path) -> None:
    with pytest.raises(ValueError, match="name="):
        import_dataset("routerbench", table, name=name)


def test_wrong_paths_and_sources_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'routerbench'"):
        import_dataset("routerbensh", tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        import_dataset("routerbench", tmp_path / "none.pkl")
    with pytest.raises(ValueError, match=r"no \.pkl or \.csv file"):
        import_dataset("routerbench", tmp_path)
    (tmp_path / "t.txt").touch()
    with pytest.raises(ValueError, match=r"expected a \.pkl or \.csv file"):
        import_dataset("routerbench", tmp_path / "t.txt")


# --- environments --------------------------------------------------------------------------------


def build(spec: Any, **sizes: Any) -> Any:
    given = {"num_llms": None, "context_dim": None, "assortment_size": 1} | sizes
    return make_workload(spec, **given)


def test_a_missing_data_set_says_to_import_it_first() -> None:
    for make in (
        lambda: build("routerbench"),
        lambda: fingerprint("routerbench"),
        lambda: gym.make("LLMQueue-v0", workload="routerbench", load=0.8),
        lambda: gym.make("LLMDeploy-v0", instance={"source": "dataset", "name": "routerbench"}),
    ):
        with pytest.raises(FileNotFoundError, match="llmqueue-bench data import routerbench PATH"):
            make()


@pytest.mark.parametrize(
    ("make", "command"),
    [
        (lambda: build({"source": "routerbench", "name": "rb5"}), "routerbench PATH --name rb5"),
        (lambda: build({"source": "wildchat", "name": "chats"}), "wildchat PATH --name chats"),
        (
            lambda: gym.make("LLMDeploy-v0", instance={"source": "dataset", "name": "rb5"}),
            "SOURCE PATH --name rb5",
        ),
        (lambda: stream_fingerprint({"source": "dataset", "name": "sprout"}), "sprout PATH$"),
    ],
)
def test_a_missing_alias_says_to_import_its_source_under_that_name(make: Any, command: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"llmqueue-bench data import {command}"):
        make()


def test_an_environment_plays_an_imported_data_set_with_its_options(table: Path) -> None:
    header = import_dataset("routerbench", table)
    spec = {"source": "routerbench", "cost_weight": 5, "pool_size": 40, "context_dim": 8}
    env = gym.make("LLMQueue-v0", workload=spec, load=0.8, assortment_size=2)
    observation, _ = env.reset(seed=0)
    assert observation["contexts"].shape[1] == 8
    env.step(env.action_space.sample())
    workload = build(spec)
    contexts, utilities, _ = workload.draw(np.random.default_rng(0))
    assert contexts.shape == (40, 8)
    assert workload.llms == ("a", "b")
    # the best is LLM b where it is right: v = 1 - 5 * 0.001
    assert np.isclose(1 / (1 + np.exp(-utilities.max())), 0.1 + 0.89 * 0.995)
    assert fingerprint(spec) == header.parquet["sha256"]


def test_a_data_set_under_another_name_is_reached_by_it(table: Path) -> None:
    import_dataset("routerbench", table, name="five-shot")
    spec = {"source": "routerbench", "name": "five-shot", "context_dim": 4}
    assert build(spec).llms == ("a", "b")
    with pytest.raises(FileNotFoundError, match="imported: five-shot"):
        build("routerbench")


def test_deployment_plays_a_data_set_with_costs(table: Path) -> None:
    import_dataset("routerbench", table)
    instance = {"source": "dataset", "name": "routerbench", "context_dim": 4}
    env = gym.make(
        "LLMDeploy-v0", instance=instance, horizon=40, num_stages=2, budget_per_query=0.02
    )
    env.reset(seed=0)
    assert env.unwrapped.llms == ("a", "b")  # type: ignore[attr-defined]
    assert len(stream_fingerprint(instance)) == 64


# --- the commands --------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(build_app(), ["data", *arguments])


def test_show_gives_the_closed_forms(table: Path) -> None:
    assert run("import", "routerbench", str(table)).exit_code == 0
    shown = json.loads(run("show", "routerbench", "--json").stdout)
    assert shown["rows"] == ROWS
    assert shown["best_llm"] == "b"
    assert np.isclose(shown["best_quality"], 2 / 3)
    assert shown["oracle"] == 1.0
    assert np.isclose(shown["complementarity"], 1 / 3)
    assert np.isclose(shown["beaten"], 1 / 3)
    assert np.isclose(shown["cost_spread"], 10)
    # every query has one LLM with rate .99 and one with .1
    odds = np.log([[0.99 / 0.01, 0.1 / 0.9]])
    assert np.isclose(shown["capacity"]["1"], 0.99)
    assert np.isclose(shown["capacity"]["2"], capacity(odds, 2))
    text = run("show", "routerbench").stdout
    assert "b (0.6667)" in text
    assert "x10" in text


def test_names_of_others_are_shown_as_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    llm = "[red]x[/] \x1b[2J"
    path.write_text(f"sample_id,prompt,eval_name,{llm},{llm}|total_cost\n1,p,e,1,0\n2,p,e,0,0\n")
    run("import", "routerbench", str(path))
    shown = run("show", "routerbench")
    assert shown.exit_code == 0, shown.output
    assert "[red]x[/]" in shown.stdout
    assert "\x1b[2J" not in shown.stdout


def test_list_names_what_is_there_and_what_is_not(table: Path) -> None:
    assert "not imported: routerbench" in run("list").stdout
    run("import", "routerbench", str(table), "--name", "mine")
    listed = run("list").stdout
    assert "mine" in listed
    assert "not imported: routerbench" in listed


def test_download_fetches_from_the_hub_and_checks_like_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    folder = tmp_path / "hub"
    folder.mkdir()

    def snapshot_download(**arguments: Any) -> str:
        asked.update(arguments)
        return str(folder)

    monkeypatch.setattr(data, "_snapshot_download", lambda: snapshot_download)
    source = Path(__file__).parents[1] / "data" / "routerbench" / "pandas2-protocol4.pkl"
    shutil.copy(source, folder / "routerbench_0shot.pkl")
    data.run_download("routerbench", None, None)
    assert asked["repo_id"] == "withmartian/routerbench"
    assert asked["repo_type"] == "dataset"
    assert asked["allow_patterns"] == ["routerbench_0shot.pkl"]
    assert stored.read_header("routerbench").facts.rows == 4
    (folder / "routerbench_0shot.pkl").write_bytes(b"cposix\nsystem\n(Vid\ntR.")
    with pytest.raises(ValueError, match=r"posix\.system"):
        data.run_download("routerbench", None, None)


def test_a_download_imports_only_what_was_asked_for(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache may hold other files of the repository from earlier."""
    folder = tmp_path / "hub" / "snapshot"
    folder.mkdir(parents=True)
    (folder / "routerbench_0shot.csv").write_text("sample_id\n")
    table.rename(folder / "routerbench_5shot.csv")
    monkeypatch.setattr(data, "_snapshot_download", lambda: lambda **_: str(folder))
    header = data.run_download("routerbench", "five", None, ("routerbench_5shot.csv",))
    assert header.files[0]["name"] == "routerbench_5shot.csv"
    with pytest.raises(ValueError, match=r"no none\.pkl file"):
        data.run_download("routerbench", None, None, ("none.pkl",))


def test_a_folder_gives_its_official_files_before_others(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "prompt_id,model_id,prompt,label,model_name,category\n7,0,two?,1,maker/a,sums\n"
    )
    (tmp_path / "model_order.csv").write_text("model_id,model_name\n1,a\n")
    header = import_dataset("embedllm", tmp_path)
    assert [file["name"] for file in header.files] == ["train.csv"]
    (tmp_path / "train.csv").rename(tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"model_order\.csv"):
        import_dataset("embedllm", tmp_path)


def test_remove_deletes_and_says_so(table: Path) -> None:
    run("import", "routerbench", str(table))
    assert "removed routerbench" in run("remove", "routerbench").stdout
    assert stored.stored_names() == []


def test_download_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "llmqueue_gym\[hub\]"'):
        data.run_download("routerbench", None, None)


def test_the_stub_stands_for_the_real_download_function() -> None:
    import inspect

    hub = pytest.importorskip("huggingface_hub")
    assert data._snapshot_download() is hub.snapshot_download
    parameters = inspect.signature(hub.snapshot_download).parameters
    assert {"repo_id", "repo_type", "allow_patterns"} <= set(parameters)


# --- the registry --------------------------------------------------------------------------------


def test_a_source_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ValueError, match="source 'mine' has no files to import; give it a reader"):
        sources.Source("mine", workload=make_workload)


def test_a_source_has_the_name_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    other = sources.Source("sprout", workload=make_workload, fingerprint=fingerprint)
    monkeypatch.setattr("llmqueue_gym.workloads.sources.wildchat.SOURCE", other)
    with pytest.raises(ValueError, match="its source has the name 'sprout'; use 'wildchat'"):
        list(sources.SOURCES)


def test_a_source_without_a_repository_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = sources.Source("mine", reader=data.SOURCES["sprout"].reader)
    monkeypatch.setitem(data.SOURCES, "mine", entry)
    with pytest.raises(ValueError, match="'mine' is on no hub; get its files yourself"):
        data.run_download("mine", None, None)
