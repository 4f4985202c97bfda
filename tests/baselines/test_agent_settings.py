"""Numeric settings of every registered agent: what is out of range is refused by name, at once."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

from baselines import DeployProblem, QueueProblem, make_agent, registered_agents
from baselines.estimators import ConfidenceFactors, RidgeMNL
from baselines.interface import ServeProblem
from llmqueue_gym import checks
from llmqueue_gym.serving.env import LLMServeEnv
from llmqueue_gym.workloads.pool import OfflineData

_RNG = np.random.default_rng(0)
QUEUE = QueueProblem(
    *(3, 2, 4, 6, 0.5, 60),
    OfflineData(_RNG.normal(size=(40, 4)).astype(np.float32), _RNG.normal(size=(40, 3))),
    truth=np.ones((5, 3)),
)
DEPLOY = DeployProblem(3, 2, 100, 4, 0.5, (0.6, 0.6, 0.6), 0.1, 1.0, context_dim=2, has_prices=True)
_SERVE = LLMServeEnv("tiny-pair")
_SERVE.reset(seed=0)
SERVE = ServeProblem(**_SERVE.problem, horizon=60, truth=_SERVE.dynamics.instances[0])

NEVER = (float("nan"), float("inf"), -float("inf"), -1, "1", True)
OUT_OF_RANGE: dict[str, tuple[float, ...]] = {
    "ridge": (0,),
    "inverse_ridge": (0,),
    "prior_plays": (0,),
    "learning_rate": (0,),
    "forgetting": (0, 1.1),
    "utilisation": (0, 1.1),
    "level": (0,),
    "growth": (1,),
    "first": (0, 2.5),
    "remembered": (0, 2.5),
    "scenarios": (0, 2.5),
    "slots": (0, 2.5),
    "settle": (0, 2.5),
    "share": (0, 1.1),
    "slack": (0, 1.1),
    "held_out": (1, 1.5),
    "exploration_rate": (1.1,),
    "exploration_fraction": (0, 1.1),
    "exploration_final_eps": (1.1,),
    "gae_lambda": (1.1,),
    "epsilon": (1.1,),
    "hidden": (1, 2.5),
    "neighbours": (0, 2.5),
    "memory": (0, 2.5),
    "doubt": (0,),
    "error": (0, 1),
    "similarity": (1.1,),
    "at": (1.1,),
    "trees": (0, 2.5),
    "min_per_llm": (2.5,),
    "epochs": (2.5,),
    "forced_pulls": (2.5,),
    "batch_size": (0, 2.5),
    "train_freq": (0, 2.5),
    "n_steps": (1, 2.5),
    "n_epochs": (0, 2.5),
}
ZERO_MEANS_SOMETHING = {
    *("alpha", "alpha_coef", "beta_coef", "c1", "cutoff", "exploration_rate", "gamma", "width"),
    *("step", "scale", "optimism", "exploration", "exploration_final_eps", "held_out"),
    *("explore", "surely", "similarity", "at"),
    *("forced_pulls", "min_per_llm", "epochs", "gae_lambda", "epsilon"),
}
FAST = {"ACQB-CL": {"epochs": 0, "hidden": 4}, "offline-boosting": {"trees": 2}}


def numeric_settings() -> list[tuple[str, str]]:
    found = []
    for spec in registered_agents():
        if ".rl." in spec.target and not _has_rl():
            continue
        for name, parameter in inspect.signature(spec.load()).parameters.items():
            number = re.fullmatch(r"(int|float)( \| None)?", str(parameter.annotation))
            if name != "seed" and number:
                found.append((spec.name, name))
    return found


def _has_rl() -> bool:
    try:
        import baselines.rl  # noqa: F401
    except ImportError:
        return False
    return True


def make(agent: str, **settings: Any) -> Any:
    kind = {spec.name: spec.load().kind for spec in registered_agents() if spec.name == agent}
    task = {"deployment": DEPLOY, "queueing": QUEUE, "serving": SERVE}[kind[agent]]
    try:
        return make_agent(agent, task, 0, **{**FAST.get(agent, {}), **settings})
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("agent", "setting"), numeric_settings())
def test_a_setting_out_of_range_is_refused_by_name(agent: str, setting: str) -> None:
    for value in (*NEVER, *OUT_OF_RANGE.get(setting, ())):
        with pytest.raises(ValueError, match=rf"^{setting}={re.escape(repr(value))} .*(in|of) "):
            make(agent, **{setting: value})
    if agent == "epsilon-first":
        with pytest.raises(ValueError, match=r"epsilon=0 .* \(0, 1\]"):
            make(agent, epsilon=0)
    elif setting in ZERO_MEANS_SOMETHING:
        make(agent, **{setting: 0})


def test_every_numeric_setting_is_looked_at() -> None:
    names = {setting for _, setting in numeric_settings()}
    assert {"alpha_coef", "ridge", "gamma", "width", "forced_pulls", "optimism"} <= names
    assert names <= ZERO_MEANS_SOMETHING | set(OUT_OF_RANGE)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_estimators_refuse_a_ridge_that_is_none(ridge: float) -> None:
    for build in (ConfidenceFactors, RidgeMNL):
        with pytest.raises(ValueError, match=rf"ridge={ridge!r} .* \(0, inf\)"):
            build(2, 3, ridge=ridge)


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_every_price_is_looked_at(price: float) -> None:
    with pytest.raises(ValueError, match=rf"prices\[1\]={price!r}"):
        make("paretobandit", prices=[1.0, price, 1.0])


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        ("[0, 1]", (0, 1, 0.5, np.float32(1.0), np.int64(0)), (-1e-9, 1 + 1e-9, 10**400)),
        ("(0, 1)", (1e-300, 0.5), (0, 1)),
        ("[0, inf)", (0, 10**300), (float("inf"), -1)),
        ("(0, inf)", (5e-324,), (0.0, -0.0)),
    ],
)
def test_an_interval_holds_what_it_says(
    allowed: str, inside: tuple[Any, ...], outside: tuple[Any, ...]
) -> None:
    for value in inside:
        checks.number("beta", value, allowed)
    for value in (*outside, float("nan"), None, "0.5", [0.5], True, 0.5j):
        with pytest.raises(ValueError, match=r"^beta=.* must be a number in [\[(]0, "):
            checks.number("beta", value, allowed)


def test_minibatches_of_one_transition_are_refused() -> None:
    pytest.importorskip("sb3_contrib")
    with pytest.raises(ValueError, match=r"batch_size=10 .* n_steps=21"):
        make("PPO-online", n_steps=21, batch_size=10)
    make("PPO-online", n_steps=22, batch_size=10)
