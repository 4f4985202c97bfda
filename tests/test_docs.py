"""The code blocks of the README and of the documentation, and the doctests, run as they stand."""

import doctest
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import SuiteError, parse_suite
from llmqueue_gym.deployment import env as llm_deploy
from llmqueue_gym.deployment import env_mo as llm_deploy_mo
from llmqueue_gym.deployment import stage_env as llm_deploy_stage
from llmqueue_gym.queueing import env as llm_queue
from llmqueue_gym.registration import ENVIRONMENTS
from llmqueue_gym.serving import env as llm_serve

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M)


def pages_with(language):
    return [
        pytest.param(page, id=page.relative_to(ROOT).as_posix())
        for page in PAGES
        if blocks(page, language)
    ]


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Where the pages' own queries and requests lie, and nothing else."""
    rng = np.random.default_rng(0)
    with (tmp_path / "my_queries.jsonl").open("w", encoding="utf-8") as file:
        for row in range(400):
            words = " ".join(rng.choice(["sum", "code", "law", "poem", "proof"], 6))
            record = {"prompt": f"{row} {words}", "score_gpt": rng.random(), "score_llama": 0.5}
            file.write(json.dumps(record) + "\n")
    with (tmp_path / "requests.csv").open("w", encoding="utf-8") as file:
        file.write("query,llm,kept,timestamp\n")
        for second in range(300):
            words = " ".join(rng.choice(["sum", "code", "law", "poem", "proof"], 6))
            file.write(f"{words},{rng.choice(['small', 'large'])},{rng.integers(2)},{second}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMQUEUE_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMQUEUE_GYM_DATA", str(tmp_path))


@pytest.mark.filterwarnings("ignore:loading the model file:UserWarning")
@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run_in_order(page):
    pytest.importorskip("sklearn", reason="the README turns texts into contexts: data extra")
    pytest.importorskip("pettingzoo", reason="the games need the extra marl")
    if page.name in ("train.md", "clients.md"):
        pytest.importorskip("sb3_contrib", reason="training needs the extra rl")
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_exist_with_their_options(page):
    from typer.main import get_command

    from benchmarks.cli import build_app

    app = get_command(build_app())
    context = app.make_context("llmqueue-bench", ["list"])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] != ["llmqueue-bench"]:
            continue
        command, rest = app, words[1:]
        while hasattr(command, "get_command"):
            command, rest = command.get_command(context, rest[0]), rest[1:]
            assert command is not None, line
        # the parser alone: it knows the options, and reads no file
        command.make_parser(type(context)(command, parent=context)).parse_args(list(rest))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("page", pages_with("toml"))
def test_suites_in_the_pages_can_be_run(page):
    for block in blocks(page, "toml"):
        document = tomllib.loads(block)
        if "task" in document:
            assert make_plan(parse_suite("page", document)).cells


def test_a_wrong_suite_would_be_noticed():
    document = {"seeds": 1, "agents": ["ACQB"], "task": [{"name": "x", "wrong": 1}]}
    with pytest.raises(SuiteError, match="wrong"):
        parse_suite("page", document)


def test_readme_names_every_environment_and_existing_pictures():
    text = (ROOT / "README.md").read_text("utf-8")
    for env_id in ENVIRONMENTS:
        assert f"`{env_id}`" in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).is_file(), picture


@pytest.mark.parametrize(
    "module", [llm_queue, llm_deploy, llm_deploy_stage, llm_deploy_mo, llm_serve]
)
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_the_docstring_is_a_page_with_every_argument_and_observation(env_id):
    env = gym.make(env_id).unwrapped
    page = str(type(env).__doc__)
    for title in ("Description", "Action Space", "Observation Space", "Rewards", "Episode End"):
        assert f"## {title}" in page
    if env_id == "LLMDeployStage-v0":  # it refers to the page of LLMDeploy-v0
        page += str(llm_deploy.LLMDeployEnv.__doc__)
    names = [*env.observation_space, *inspect.signature(type(env)).parameters]
    for name in set(names) - {"render_mode"}:
        assert f"| {name} |" in page, f"{env_id}: {name} is in no table"


def test_algorithm_boxes_are_set_off_and_sections_left_alone():
    program = (
        "from hooks import boxed\n"
        "text = 'One line.\\n\\nFor t:\\n  1. act\\n  2. learn\\nMore.\\n\\n"
        "Parameters\\n----------\\nx : int\\n    Words.'\n"
        "print(boxed(text))"
    )
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "docs",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "For t:\n\n      1. act\n      2. learn\n\nMore." in found
    assert found.endswith("Parameters\n----------\nx : int\n    Words.\n")
