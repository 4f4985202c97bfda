"""The RL recipes: order-independent networks, reproducible training, files that resume and play.

Trainings take a few hundred steps; what they reach is measured by the `rl` suite, not here.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.utils import obs_as_tensor

import llmqueue_gym  # noqa: F401 - registers the environments
from baselines import DeployProblem, QueueProblem, ServeProblem, load_agent, make_agent
from baselines.models import CARD
from baselines.rl import RECIPES, Progress, read_card, recipe, train
from baselines.rl.agents import TrainedQueueAgent, queue_spaces, stage_spaces
from baselines.rl.networks import (
    MaskableSetPolicy,
    RecurrentSetPolicy,
    SetPolicy,
    SetQPolicy,
)
from baselines.rl.serving import LearnedReward, MaskableServePolicy
from llmqueue_gym.adapters.dispatches import QUEUE_KEYS, DispatchesVector
from llmqueue_gym.adapters.sb3 import make_vec_env
from llmqueue_gym.adapters.wrappers import DiscreteActionsVector, PreviousDecision

PROBLEM = QueueProblem(
    num_llms=3, assortment_size=2, context_dim=5, window=6, arrival_rate=0.5, horizon=60
)
QUEUE: dict[str, Any] = {"num_llms": 3, "window": 6, "load": 0.7, "instance_seed": 0}
STAGE: dict[str, Any] = {"num_stages": 6}
SERVE: dict[str, Any] = {"preset": "tiny-pair", "load": 0.7}
TASKS = {"LLMQueue-v0": QUEUE, "LLMDeployStage-v0": STAGE, "LLMServe-v0": SERVE}
TINY: dict[tuple[str, str], dict[str, Any]] = {
    ("PPO", "LLMQueue-v0"): {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    ("MaskablePPO", "LLMQueue-v0"): {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    ("MaskablePPO-memory", "LLMQueue-v0"): {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    ("RecurrentPPO", "LLMQueue-v0"): {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    ("A2C", "LLMQueue-v0"): {},
    ("DQN", "LLMQueue-v0"): {"learning_starts": 50, "buffer_size": 500, "batch_size": 16},
    ("PPO", "LLMDeployStage-v0"): {"n_steps": 6, "batch_size": 12, "n_epochs": 2},
    ("SAC", "LLMDeployStage-v0"): {"learning_starts": 20, "buffer_size": 500, "batch_size": 16},
    ("MaskablePPO", "LLMServe-v0"): {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    ("RecurrentPPO", "LLMServe-v0"): {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    ("DQN", "LLMServe-v0"): {"buffer_size": 500, "batch_size": 16},
}
quiet = pytest.mark.filterwarnings("ignore:loading the model file:UserWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_temporary_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    assert [path.name for path in temporary.iterdir() if "torchinductor" not in path.name] == []


def train_tiny(name: str, env_id: str, out: Path, steps: int = 160, **more: Any) -> dict[str, Any]:
    settings = {**TINY[name, env_id], **more.pop("settings", {})}
    return train(
        name,
        env_id,
        TASKS[env_id],
        steps=steps,
        out=out,
        horizon=60,
        num_envs=2,
        settings=settings,
        **more,
    )


# --- the set networks -----------------------------------------------------------------------------

POLICIES = (SetPolicy, MaskableSetPolicy, RecurrentSetPolicy, SetQPolicy)


def observations(batch: int, waiting: int, seed: int = 0) -> dict[str, Any]:
    """Random queues with ``waiting`` queries each."""
    rng = np.random.default_rng(seed)
    window, dim = PROBLEM.window, PROBLEM.context_dim
    shown = np.arange(window) < waiting
    counts = {
        key: (rng.integers(0, 9, (batch, window)) * shown).astype(np.float32)
        for key in ("retrials", "age", "wait")
    }
    contexts = rng.normal(size=(batch, window, dim)) * shown[:, None]
    return {
        "contexts": contexts.astype(np.float32),
        "waiting": np.tile(shown, (batch, 1)).astype(np.int8),
        **counts,
        "queue_length": np.full((batch, 1), waiting, np.float32),
        "feedback": rng.integers(0, 5, batch),
    }


def recalled(batch: int, waiting: int, seed: int = 0) -> dict[str, Any]:
    """Random queues with the decision before."""
    rng = np.random.default_rng([seed, 1])
    return observations(batch, waiting, seed) | {
        "previous_context": rng.normal(size=(batch, PROBLEM.context_dim)).astype(np.float32),
        "previous_llms": np.eye(3, dtype=np.int8)[rng.integers(0, 3, batch)] ^ 1,
    }


def make_policy(cls: Any, problem: QueueProblem = PROBLEM) -> Any:
    torch.manual_seed(0)
    observed, played = queue_spaces(problem, previous=cls is RecurrentSetPolicy)
    shape = {key: getattr(problem, key) for key in ("num_llms", "assortment_size")}
    return cls(observed, played, lambda _: 0.0, **shape)


def random_memory(policy: Any, batch: int) -> tuple[Any, Any]:
    """States after twenty random decisions."""
    memory = policy.lstm_actor
    state = torch.zeros(1, batch, memory.hidden_size)
    for seed in range(20):
        seen = obs_as_tensor(recalled(batch, 0, seed), torch.device("cpu"))  # type: ignore[arg-type]
        features = policy.extract_features(seen)
        _, (state, _) = memory(features[None], (state, state))
    return state.detach(), torch.zeros_like(state)


def logits_of(distribution: Any) -> Any:
    return distribution.distribution.logits


def outputs(policy: Any, observation: dict[str, Any]) -> tuple[Any, Any]:
    """Logits (or Q-values) per slot and set (B, W, sets), and the values (B,)."""
    own = {key: observation[key] for key in policy.observation_space}
    tensors: Any = obs_as_tensor(own, torch.device("cpu"))
    with torch.no_grad():
        if isinstance(policy, SetQPolicy):
            table, value = policy.q_net(tensors), torch.zeros(len(tensors["feedback"]))
        elif isinstance(policy, RecurrentSetPolicy):
            batch = len(tensors["feedback"])
            state, start = random_memory(policy, batch), torch.zeros(batch)
            table = logits_of(policy.get_distribution(tensors, state, start)[0])
            value = policy.predict_values(tensors, state, start)
        else:
            table = logits_of(policy.get_distribution(tensors))
            value = policy.predict_values(tensors)
    return table.reshape(-1, PROBLEM.window, 3), value


@pytest.mark.parametrize("cls", POLICIES)
def test_scores_follow_the_slots_and_values_ignore_their_order(cls: Any) -> None:
    policy = make_policy(cls)
    seen = recalled(7, waiting=5)
    order = np.array([3, 0, 4, 1, 2, 5])
    permuted = {
        key: value[:, order] if value.ndim > 1 and value.shape[1] == 6 else value
        for key, value in seen.items()
    }
    scores, values = outputs(policy, seen)
    moved, same = outputs(policy, permuted)
    assert not torch.allclose(scores[:, order], scores, atol=1e-4)
    torch.testing.assert_close(moved, scores[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(same, values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", POLICIES)
@pytest.mark.parametrize("waiting", [0, 2, 6])
def test_empty_slots_score_alike(cls: Any, waiting: int) -> None:
    policy = make_policy(cls)
    scores, values = outputs(policy, recalled(3, waiting))
    empty = scores[:, waiting:]
    assert torch.isfinite(scores).all()
    assert torch.isfinite(values).all()
    assert (empty == empty[:, :1, :1]).all() if waiting < 6 else empty.numel() == 0


def test_a_set_scores_as_the_sum_of_its_llms() -> None:
    """l(i, {0,1}) - l(i, {0,2}) does not depend on the third LLM: the score is additive."""
    policy = make_policy(SetPolicy, QueueProblem(4, 2, 5, 6, 0.5, 60))
    seen = observations(2, 6) | {"feedback": np.zeros(2, dtype=np.int64)}
    with torch.no_grad():
        tensors: Any = obs_as_tensor(seen, torch.device("cpu"))
        logits = logits_of(policy.get_distribution(tensors)).reshape(2, 6, 6)
    s01, s02, s03, s12, s13, s23 = logits.unbind(-1)
    torch.testing.assert_close(s01 + s23, s02 + s13, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(s01 + s23, s03 + s12, atol=1e-5, rtol=1e-4)


# --- the memory of the recurrent policy -----------------------------------------------------------


def test_the_memory_is_ridge_regression_per_llm() -> None:
    """With the initial weights: targets 1 (kept), -1 (retried), 0 (another's answer kept)."""
    policy = make_policy(RecurrentSetPolicy)
    memory = policy.lstm_actor
    weights = np.array([1.0, np.exp(-2.0), 1.0])
    history = [recalled(1, 0, seed) for seed in range(30)]
    features = torch.cat(
        [policy.extract_features(obs_as_tensor(seen, torch.device("cpu"))) for seen in history]  # type: ignore[arg-type]
    )
    zeros = torch.zeros(1, 1, memory.hidden_size)
    with torch.no_grad():
        _, (state, _) = memory(features[:, None], (zeros, zeros))
        queries = torch.as_tensor(observations(1, 6, 99)["contexts"])
        mean, width = memory.read(state[0], queries)
        embed = memory.embed(torch.as_tensor(np.stack([h["previous_context"][0] for h in history])))
        phi, asked = embed.numpy().astype(float), memory.embed(queries[0]).numpy().astype(float)
    codes = np.array([h["feedback"][0] for h in history])
    for llm in range(3):
        shown = np.array([h["previous_llms"][0, llm] for h in history]) == 1
        kinds = np.select([codes == 2 + llm, codes >= 2, codes == 1], [0, 1, 2], 3)
        used = shown & (kinds < 3)
        w, y = weights[kinds[used]], np.array([1.0, 0.0, -1.0])[kinds[used]]
        gram = np.eye(6) + (phi[used] * w[:, None]).T @ phi[used]
        theta = np.linalg.solve(gram, phi[used].T @ (w * y))
        np.testing.assert_allclose(mean[0, :, llm], asked @ theta, atol=1e-4)
        spread = np.einsum("rk,kl,rl->r", asked, np.linalg.inv(gram), asked)
        np.testing.assert_allclose(width[0, :, llm], np.sqrt(spread), atol=1e-4)


def test_a_sequence_equals_its_steps_and_a_new_episode_forgets() -> None:
    policy = make_policy(RecurrentSetPolicy)
    features = policy.extract_features(
        obs_as_tensor(recalled(8, 3), torch.device("cpu"))  # type: ignore[arg-type]
    )
    zeros = torch.zeros(1, 1, policy.lstm_actor.hidden_size)
    run = policy._process_sequence
    together, _ = run(features, (zeros, zeros), torch.zeros(8), policy.lstm_actor)
    state, single = (zeros, zeros), []
    for row in features:
        out, state = run(row[None], state, torch.zeros(1), policy.lstm_actor)
        single.append(out)
    torch.testing.assert_close(torch.cat(single), together)
    start = torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0])
    restarted, _ = run(features, (zeros, zeros), start, policy.lstm_actor)
    fresh, _ = run(features[4:], (zeros, zeros), torch.zeros(4), policy.lstm_actor)
    torch.testing.assert_close(restarted[4:], fresh)


def test_the_recurrent_policy_does_not_depend_on_the_order_of_the_llms() -> None:
    policy = make_policy(RecurrentSetPolicy)
    order = [2, 0, 1]

    def scores(permuted: bool) -> Any:
        state = torch.zeros(1, 4, policy.lstm_actor.hidden_size)
        for seed in range(10):
            seen = recalled(4, 5, seed)
            if permuted:
                codes = seen["feedback"]
                renamed = 2 + np.argsort(order)[np.maximum(codes - 2, 0)]
                seen["feedback"] = np.where(codes >= 2, renamed, codes)
                seen["previous_llms"] = seen["previous_llms"][:, order]
            tensors: Any = obs_as_tensor(seen, torch.device("cpu"))
            with torch.no_grad():
                distribution, (state, _) = policy.get_distribution(
                    tensors, (state, torch.zeros_like(state)), torch.zeros(4)
                )
        return logits_of(distribution).reshape(4, PROBLEM.window, 3)

    sets = [(0, 1), (0, 2), (1, 2)]  # of the renamed LLMs: the same sets under their old names
    columns = [sets.index(tuple(sorted((order[a], order[b])))) for a, b in sets]
    plain, renamed = scores(permuted=False), scores(permuted=True)
    assert not torch.allclose(plain, renamed, atol=1e-4)
    torch.testing.assert_close(renamed, plain[..., columns], atol=1e-4, rtol=1e-4)


# --- spaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"num_llms": 4, "assortment_size": 1, "window": 3}])
def test_queue_spaces_have_the_shapes_of_the_environment(kwargs: dict[str, Any]) -> None:
    env: Any = make_vec_env(
        "LLMQueue-v0", 1, wrapper=DiscreteActionsVector, monitor=False, **kwargs
    )
    base: Any = env.venv.unwrapped
    nvec = base.single_action_space.nvec
    problem = QueueProblem(int(nvec[1]), len(nvec) - 1, 5, int(nvec[0]), 0.5, 10)
    observed, played = queue_spaces(problem)
    assert played == env.action_space
    assert isinstance(env.observation_space, gym.spaces.Dict)
    shapes = {key: space.shape for key, space in env.observation_space.items()}
    assert {key: space.shape for key, space in observed.items()} == shapes


# --- training -------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize(("name", "env_id"), RECIPES)
def test_every_recipe_trains_and_plays(name: str, env_id: str, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "model.zip"
    reports: list[Progress] = []
    card = train_tiny(name, env_id, out, on_progress=reports.append)
    assert card["steps"] >= 160
    assert read_card(out) == card
    assert reports[-1].total == 160
    steps = [report.steps for report in reports]
    assert steps == sorted(set(steps))
    assert set(card["curve"]["steps"]) <= set(steps)
    assert len({len(values) for values in card["curve"].values()}) == 1
    if env_id == "LLMQueue-v0":
        env = gym.make("LLMQueue-v0", max_episode_steps=60, **QUEUE)
        if name == "RecurrentPPO":
            env = PreviousDecision(env)
        agent: Any = make_agent(str(out), PROBLEM, 0)
    elif env_id == "LLMServe-v0":
        env = gym.make("LLMServe-v0", max_episode_steps=60, **SERVE)
        env.reset(seed=0)
        agent = make_agent(str(out), ServeProblem(**env.unwrapped.problem, horizon=60), 0)  # type: ignore[attr-defined]
    else:
        env = gym.make("LLMDeploy-v0", horizon=60, **STAGE)
        public = DeployProblem(**env.unwrapped.problem)  # type: ignore[attr-defined]
        agent = make_agent(str(out), public, 0)
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        action = agent.act(observation)
        assert action in env.action_space
        following, reward, _, _, info = env.step(action)
        if env_id == "LLMDeploy-v0":
            assert not info["refused"]
            assert not info["projected"]
        elif env_id == "LLMServe-v0":
            assert not info["illegal"]
        elif name.startswith("MaskablePPO"):
            assert info["served"] == bool(observation["queue_length"][0])
        agent.update(observation, action, float(reward), following, info)
        if name == "RecurrentPPO" and env_id == "LLMQueue-v0":  # it keeps what the wrapper shows
            for key, value in agent._previous.items():
                np.testing.assert_array_equal(value, following[key])
        observation = following


def weights(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "env_id"), RECIPES)
def test_one_seed_gives_equal_weights(name: str, env_id: str, tmp_path: Path) -> None:
    runs = []
    for label, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_tiny(name, env_id, tmp_path / f"{label}.zip", steps=100, seed=seed)
        runs.append(weights(tmp_path / f"{label}.zip"))
    first, second, third = runs
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


@quiet
@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("RecurrentPPO", "LLMQueue-v0"),
        ("MaskablePPO-memory", "LLMQueue-v0"),
        ("PPO", "LLMDeployStage-v0"),
        ("RecurrentPPO", "LLMServe-v0"),
    ],
)
def test_a_trained_agent_is_saved_with_its_weights(name: str, env_id: str, tmp_path: Path) -> None:
    model, path = tmp_path / "model.zip", tmp_path / "agent"
    train_tiny(name, env_id, model, steps=32)
    env: Any
    problem: Any
    played = env_id.replace("Stage", "")
    env = gym.make(played, disable_env_checker=True, **TASKS[env_id])
    observation, _ = env.reset(seed=0)
    if env_id == "LLMQueue-v0":
        problem = PROBLEM
    elif env_id == "LLMServe-v0":
        problem = ServeProblem(**env.unwrapped.problem, horizon=60)
    else:
        problem = DeployProblem(**env.unwrapped.problem)
    agents: list[Any] = [make_agent(str(model), problem, 0)]
    for step in range(40):
        if step == 20:
            agents[0].save(path)
            model.unlink()
            agents.append(load_agent(path, problem))
        action, *others = (agent.act(observation) for agent in agents)
        assert all(np.array_equal(action, other) for other in others)
        following, reward, _, _, info = env.step(action)
        for agent in agents:
            agent.update(observation, action, float(reward), following, info)
        observation = following
    online = make_agent("DQN-online", PROBLEM, 0)
    with pytest.raises(ValueError, match=r"learns in the run .* cannot be saved"):
        online.save(path)


@quiet
def test_training_shortens_the_queue(tmp_path: Path) -> None:
    task: dict[str, Any] = {"load": 0.9, "instance_seed": 0, "num_llms": 5, "window": 16}
    means = []
    for steps in (1, 16_384):
        out = tmp_path / f"{steps}.zip"
        settings = {"n_steps": 16, "batch_size": 512}
        train("MaskablePPO", "LLMQueue-v0", task, steps=steps, out=out, settings=settings)
        env = gym.make("LLMQueue-v0", **task)
        agent: Any = make_agent(str(out), QueueProblem(5, 2, 5, 16, 0.6, 1000), 0)
        observation, _ = env.reset(seed=0)
        lengths = []
        for _ in range(1000):
            observation, _, _, _, info = env.step(agent.act(observation))
            lengths.append(info["queue_length"])
        means.append(np.mean(lengths))
    assert means[1] < 0.7 * means[0]


def test_resume_goes_on_from_the_file(tmp_path: Path) -> None:
    out = tmp_path / "model.zip"
    train_tiny("MaskablePPO", "LLMQueue-v0", out, steps=64)
    before = weights(out)
    again = train_tiny("MaskablePPO", "LLMQueue-v0", out, steps=64, resume=True)
    assert again["steps"] == 64
    assert all(torch.equal(before[key], weights(out)[key]) for key in before)
    card = train_tiny("MaskablePPO", "LLMQueue-v0", out, steps=128, resume=True)
    assert card["steps"] == 128 == read_card(out)["steps"]
    assert card["seconds"] > again["seconds"]
    assert card["curve"]["steps"] == sorted(card["curve"]["steps"])
    assert not all(torch.equal(before[key], weights(out)[key]) for key in before)
    with pytest.raises(ValueError, match="exists"):
        train_tiny("MaskablePPO", "LLMQueue-v0", out, steps=128)
    for change in ({"seed": 7}, {"settings": {"gamma": 0.1}}):
        with pytest.raises(ValueError, match="holds another training"):
            train_tiny("MaskablePPO", "LLMQueue-v0", out, resume=True, **change)


def test_the_optimiser_is_resumed_too(tmp_path: Path) -> None:
    out = tmp_path / "model.zip"
    train_tiny("PPO", "LLMQueue-v0", out, steps=64)
    train_tiny("PPO", "LLMQueue-v0", out, steps=128, resume=True)
    with zipfile.ZipFile(out) as archive:
        state = torch.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)
    updates = {int(entry["step"]) for entry in state["state"].values()}
    # 32 steps a rollout, one minibatch, 2 epochs: 2 updates per 32 steps, 8 in all
    assert updates == {8}


def test_an_interrupted_training_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "model.zip"

    def stop(progress: Progress) -> None:
        if progress.steps > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tiny("PPO", "LLMQueue-v0", out, steps=640, checkpoint_every=64, on_progress=stop)
    assert read_card(out)["steps"] == 192
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert train_tiny("PPO", "LLMQueue-v0", out, steps=640, resume=True)["steps"] == 640


def test_bad_arguments_name_the_fix(tmp_path: Path) -> None:
    out = tmp_path / "model.zip"
    with pytest.raises(ValueError, match=r"did you mean 'MaskablePPO'"):
        recipe("MaskedPPO", "LLMQueue-v0")
    with pytest.raises(ValueError, match="PPO, SAC"):
        recipe("DQN", "LLMDeploy-v0")
    with pytest.raises(ValueError, match="no recipes"):
        recipe("PPO", "CartPole-v1")
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        train("PPO", "LLMQueue-v0", steps=10, out=tmp_path / "model")
    for bad in ({"num_envs": 0}, {"horizon": 0}, {"num_envs": -1}, {"horizon": 2.5}):
        [(name, value)] = bad.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            train("PPO", "LLMQueue-v0", QUEUE, steps=9, out=tmp_path / "model.zip", **bad)
    with pytest.raises(ValueError, match="steps=0"):
        train("PPO", "LLMQueue-v0", steps=0, out=out)
    with pytest.raises(ValueError, match="load=2"):
        train("PPO", "LLMQueue-v0", {"load": 2.0}, steps=10, out=out)
    assert not out.exists()


def test_tensorboard_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.rl.training.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        train("PPO", "LLMQueue-v0", steps=10, out=tmp_path / "m.zip", tensorboard=tmp_path)


def test_tensorboard_gets_the_logs_of_all_sessions(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, logs = tmp_path / "model.zip", tmp_path / "logs"
    for steps in (64, 128):
        train_tiny("PPO", "LLMQueue-v0", out, steps=steps, resume=True, tensorboard=logs)
    [run] = logs.iterdir()
    steps_seen = []
    for file in sorted(run.iterdir()):
        events = EventAccumulator(str(file))
        events.Reload()
        steps_seen += [event.step for event in events.Scalars("train/loss")]
        assert all(event.value >= 0 for event in events.Scalars("curve/queue"))
    assert steps_seen == [64, 128]  # the losses of a rollout are logged with the next one


def test_names_the_extra_without_sb3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    monkeypatch.delitem(sys.modules, "baselines.rl")
    with pytest.raises(ImportError, match=r"llmqueue_gym\[rl\]"):
        importlib.import_module("baselines.rl")


# --- model files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("model") / "model.zip"
    train_tiny("MaskablePPO", "LLMQueue-v0", out, steps=64)
    return out


@pytest.fixture(scope="module")
def stage_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("model") / "stage.zip"
    train_tiny("PPO", "LLMDeployStage-v0", out, steps=24)
    return out


def test_loading_warns_and_plays_what_sb3_plays(model_file: Path) -> None:
    with pytest.warns(UserWarning, match="only files of your own"):
        agent = TrainedQueueAgent(PROBLEM, 0, model=str(model_file))
    model = MaskablePPO.load(model_file, device="cpu")
    seen = observations(1, waiting=4)
    single = {key: value[0] for key, value in seen.items()}
    mask = np.repeat(single["waiting"].astype(bool), 3)
    expected, _ = model.predict(single, action_masks=mask, deterministic=True)
    slot, which = divmod(int(expected), 3)
    assert agent.act(single).tolist() == [slot, *([0, 1], [0, 2], [1, 2])[which]]


@quiet
def test_a_subclass_names_its_file(model_file: Path) -> None:
    class Mine(TrainedQueueAgent):
        model = str(model_file)

    single = {key: value[0] for key, value in observations(1, 3).items()}
    assert Mine(PROBLEM, 0).act(single).shape == (3,)
    with pytest.raises(ValueError, match="model=None"):
        TrainedQueueAgent(PROBLEM, 0)


def test_files_that_are_no_models_are_refused(model_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.zip"
    text.write_text("hello")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(model_file.read_bytes()[:500])
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(CARD, json.dumps({"format": 99}))
    for path in (text, cut, other, tmp_path / "none.zip"):
        with pytest.raises(ValueError, match=path.name):
            make_agent(str(path), PROBLEM, 0)
    wider = QueueProblem(3, 2, 5, 8, 0.5, 60)
    with pytest.raises(ValueError, match=r"\{'window': 6\}, the task has \{'window': 8\}"):
        TrainedQueueAgent(wider, 0, model=str(model_file))
    with pytest.raises(ValueError, match="it was changed"):
        TrainedQueueAgent(PROBLEM, 0, model=str(model_file), sha256="0" * 64)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import builtins; builtins.llmqueue_owned = True",))


@quiet
def test_a_hostile_file_is_not_executed(model_file: Path, tmp_path: Path) -> None:
    import builtins

    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(model_file) as source, zipfile.ZipFile(hostile, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "policy.pth":
                content = pickle.dumps(_Payload(), protocol=2)
            target.writestr(name, content)
    with pytest.raises(pickle.UnpicklingError):
        TrainedQueueAgent(PROBLEM, 0, model=str(hostile))
    assert not hasattr(builtins, "llmqueue_owned")


# --- learning inside the run ----------------------------------------------------------------------


def play_online(name: str, seed: int, settings: dict[str, Any]) -> tuple[list[Any], Any]:
    env = gym.make("LLMQueue-v0", max_episode_steps=60, **QUEUE)
    agent: Any = make_agent(f"baselines.rl.online:{name}", PROBLEM, seed, **settings)
    observation, _ = env.reset(seed=0)
    actions = []
    for _ in range(60):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        assert info["served"] == bool(observation["queue_length"][0])
        agent.update(observation, action, float(reward), following, info)
        observation = following
        actions.append(action.tolist())
    return actions, agent._model


@pytest.mark.parametrize(
    ("name", "settings", "updates"),
    [
        ("OnlineDQN", {"batch_size": 10, "train_freq": 5}, 10),  # slots 15, 20, ..., 60
        ("OnlinePPO", {"n_steps": 20, "batch_size": 10, "n_epochs": 2}, 3 * 2 * 2),
    ],
)
def test_online_agents_serve_learn_and_repeat(
    name: str, settings: dict[str, Any], updates: int
) -> None:
    actions, model = play_online(name, 1, settings)
    state = model.policy.optimizer.state_dict()["state"]
    assert {int(entry["step"]) for entry in state.values()} == {updates}
    assert play_online(name, 1, settings)[0] == actions
    assert play_online(name, 2, settings)[0] != actions


ONLINE: dict[str, dict[str, Any]] = {
    "OnlineDQN": {"batch_size": 10, "train_freq": 5, "exploration_fraction": 0.2},
    "OnlinePPO": {"n_steps": 20, "batch_size": 10, "n_epochs": 2},
}


def draw_globally() -> tuple[Any, ...]:
    """Draw from every global generator; an odd number of normals leaves NumPy half a pair."""
    return random.random(), *np.random.randn(3), np.random.random(), float(torch.rand(1))  # noqa: NPY002


@pytest.mark.parametrize("name", ONLINE)
def test_online_agents_and_the_host_do_not_share_generators(name: str) -> None:
    def seed_host() -> None:
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)

    def online(seed: int) -> Any:
        return make_agent(f"baselines.rl.online:{name}", PROBLEM, seed, **ONLINE[name])

    def play_among(others: int, draws: bool) -> tuple[list[Any], list[Any]]:
        seed_host()
        drawn = [draw_globally()]
        agents = [online(1)] + [online(2 + other) for other in range(others)]
        rng = np.random.default_rng(0)
        actions = []
        for slot in range(60):
            before, after = (
                {key: value[0] for key, value in observations(1, 1 + n % 6, n).items()}
                for n in (slot, slot + 1)
            )
            after["feedback"] = rng.integers(1, 5)
            for place, agent in enumerate(agents):
                action = agent.act(before)
                if draws:
                    drawn.append(draw_globally())
                agent.update(before, action, -1.0, after, {})
                if draws:
                    drawn.append(draw_globally())
                if place == 0:
                    actions.append(action.tolist())
        drawn.append(draw_globally())
        return actions, drawn

    alone, undisturbed = play_among(0, draws=False)
    disturbed, drawn = play_among(1, draws=True)
    assert disturbed == alone
    assert play_among(2, draws=False)[0] == alone
    seed_host()
    assert undisturbed == [draw_globally() for _ in undisturbed]
    seed_host()
    assert drawn == [draw_globally() for _ in drawn]


@quiet
def test_trained_agents_leave_the_global_generators_alone(
    model_file: Path, stage_file: Path
) -> None:
    def state() -> tuple[Any, ...]:
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        return random.getstate(), str(numpy), torch.get_rng_state().tolist()

    before = state()
    agent: Any = make_agent(str(model_file), PROBLEM, 0)
    agent.act({key: value[0] for key, value in observations(1, 3).items()})
    env = gym.make("LLMDeploy-v0", **STAGE)
    agent = make_agent(str(stage_file), DeployProblem(**env.unwrapped.problem), 0)  # type: ignore[attr-defined]
    agent.act(env.reset(seed=0)[0])
    assert state() == before


# --- serving --------------------------------------------------------------------------------------


def test_serving_scores_follow_the_candidates_and_values_ignore_their_order() -> None:
    venv: Any = gym.make_vec("LLMServe-v0", 4, autoreset_mode="SameStep", **SERVE)
    env = DispatchesVector(venv)
    policy = MaskableServePolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 0.0,
        places=[1, 1],
        dispatches=2,
    )
    env.reset(seed=0)
    for _ in range(30):
        observation, *_ = env.step(np.zeros(4, dtype=np.int64))
    turned = dict(observation)
    for key in QUEUE_KEYS:
        turned[key] = observation[key][:, ::-1].copy()
    sets, size = env.dispatches.sets, env.dispatches.candidates
    candidate, replica = np.divmod(sets, 2)
    moved = np.where(candidate < size, size - 1 - candidate, size) * 2 + replica
    place = {tuple(sorted(row)): i for i, row in enumerate(sets.tolist())}
    order = [place[tuple(sorted(row))] for row in moved.tolist()]
    with torch.no_grad():
        logits, values = [], []
        for seen in (observation, turned):
            tensors, _ = policy.obs_to_tensor(seen)
            logits.append(policy.get_distribution(tensors).distribution.logits.numpy())
            values.append(policy.predict_values(tensors).numpy())
    assert np.ptp(logits[0][0]) > 0.01
    np.testing.assert_allclose(logits[0][:, order], logits[1], atol=1e-4)
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_what_is_learned_from_differs_from_the_reward_by_a_potential(load: float) -> None:
    """Discounted, both differ by what no policy changes: arrivals, and the potential at the end."""
    task, gamma, slots = SERVE | {"load": load}, 0.9, 300
    venv: Any = gym.make_vec("LLMServe-v0", 3, autoreset_mode="SameStep", **task)
    env = LearnedReward(DispatchesVector(venv), gamma)
    env.reset(seed=0)
    rng, rate = np.random.default_rng(0), venv.unwrapped.task.public.arrival_rate
    paid, learned, arrivals = np.zeros((3, 3))
    discount = 1.0
    for _ in range(slots):
        actions = [rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()]
        observation, rewards, _, _, info = env.step(np.array(actions))
        there = observation["queue_length"][:, 0] + observation["active"].sum(axis=1)
        paid -= discount * there
        learned += discount * rewards
        arrivals += discount * (info["arrived"] - rate)
        discount *= gamma
    left = discount * there  # of the potential
    np.testing.assert_allclose(learned, (1 - gamma) * paid + arrivals - left, atol=1e-6)


# --- deployment -----------------------------------------------------------------------------------


@quiet
def test_a_stage_policy_earns_the_same_query_by_query(tmp_path: Path) -> None:
    out = tmp_path / "model.zip"
    task: dict[str, Any] = {"num_stages": 6, "horizon": 300}
    train(
        "PPO",
        "LLMDeployStage-v0",
        task,
        steps=24,
        out=out,
        num_envs=2,
        settings=TINY["PPO", "LLMDeployStage-v0"],
    )
    queries = gym.make("LLMDeploy-v0", **task)
    public = DeployProblem(**queries.unwrapped.problem)  # type: ignore[attr-defined]
    agent: Any = make_agent(str(out), public, 0)
    observation, _ = queries.reset(seed=4)
    total = 0.0
    for _ in range(300):
        action = agent.act(observation)
        following, reward, _, _, info = queries.step(action)
        agent.update(observation, action, float(reward), following, info)
        observation, total = following, total + float(reward)
    stages = gym.make("LLMDeployStage-v0", **task)
    observed, played = stage_spaces(public)
    assert isinstance(stages.observation_space, gym.spaces.Dict)
    assert set(observed) == set(stages.observation_space)
    observation, _ = stages.reset(seed=4)
    staged = 0.0
    for _ in range(6):
        raw, _ = agent._policy.predict(observation, deterministic=True)
        assert raw in played
        observation, reward, _, _, stage_info = stages.step((raw + np.float32(1)) / np.float32(2))
        staged += float(reward)
    assert total == pytest.approx(staged)
    assert info["spend"] == pytest.approx(stage_info["spend"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nonsense": 1}, "setting of PPO 'nonsense'"),
        ({"batch_size": 0}, "'batch_size': 0.*refused by PPO"),
        ({"learning_rate": "fast"}, "'learning_rate': 'fast'.*refused by PPO"),
    ],
)
def test_settings_that_the_algorithm_refuses_are_named(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_tiny("PPO", "LLMQueue-v0", tmp_path / "x.zip", settings=settings)
    assert not list(tmp_path.iterdir())
