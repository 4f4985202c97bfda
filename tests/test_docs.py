"""The README's Python blocks and the doctests of the environments run as they stand."""

import doctest
import inspect
import json
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from llmqueue_gym.envs import llm_deploy, llm_queue
from llmqueue_gym.registration import ENVIRONMENTS

ROOT = Path(__file__).resolve().parents[1]


def test_readme_blocks_run_in_order(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the README turns texts into contexts: data extra")
    rng = np.random.default_rng(0)
    with (tmp_path / "my_queries.jsonl").open("w", encoding="utf-8") as file:
        for row in range(400):
            words = " ".join(rng.choice(["sum", "code", "law", "poem", "proof"], 6))
            record = {"prompt": f"{row} {words}", "score_gpt": rng.random(), "score_llama": 0.5}
            file.write(json.dumps(record) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMQUEUE_GYM_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert set(names) >= {"env", "ServeTheHead"}


def test_readme_names_every_environment_and_existing_pictures():
    text = (ROOT / "README.md").read_text("utf-8")
    for env_id in ENVIRONMENTS:
        assert f"`{env_id}`" in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).is_file(), picture


@pytest.mark.parametrize("module", [llm_queue, llm_deploy])
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
