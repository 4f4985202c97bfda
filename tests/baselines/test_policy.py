"""Exported policies: plain Python finds the same contexts, numbers and choices."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from baselines import DeployProblem, QueueProblem, make_agent, registered_agents
from baselines.policy import policy_of
from baselines.queueing.base import Served, top_llms
from baselines.queueing.offline import OfflineRouter
from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.encoder import TextEncoder
from llmqueue_gym.workloads.pool import OfflineData

pytest.importorskip("sklearn", reason="turning texts into contexts needs the extra data")

RNG = np.random.default_rng(0)
WORDS = [
    "alpha",
    "Beta",
    "γάμμα",
    "ÉCOLE",
    "İzmir",
    "数学",
    "\ud800",
    "\u2003\n",
    "naïve",
    "🙂",
    "ẞ",
]
TEXTS = ["", "a", "ab", " \t \x1c ", "\udfff\ud800", "ΌΣΟΣ"] + [
    " ".join(RNG.choice(WORDS, RNG.integers(1, 12))) for _ in range(194)
]
LLMS, DIM = ["small", "large", "other"], 9
LINEAR = {
    *("ACQB", "ACQB-OMD", "CQB-eps", "ACQB-mixed", "CQB-Opt-mixed", "greedy", "eps-greedy"),
    *("CQB-Opt", "CQB-eps-ucb", "CQB-eta-2", "OFU-MNL+", "LinUCB", "LinTS"),
    *("offline-ridge", "offline-logistic", "offline-ridge-mixed"),
    *("fifo-best-mean", "lifo-best-mean", "most-retried-best-mean"),
    *("Q-UCB", "Q-ThS", "routing-sampling"),
}


REFUSED = {
    *("random", "fifo-round-robin", "knn-guard", "litellm-adaptive", "litellm-adaptive-retrials"),
    *("offline-knn", "offline-boosting", "ACQB-CL", "paretobandit", "restarted"),
    "known-static-mix-queue",
}
FAST: dict[str, dict[str, Any]] = {
    "ACQB-CL": {"epochs": 0, "hidden": 4},
    "offline-boosting": {"trees": 2},
}
EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "evaluate_policy.py"))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(TEXTS, DIM)


@pytest.fixture(scope="module")
def pipeline(encoder: TextEncoder) -> Any:
    return json.loads(json.dumps(encoder.as_json()))


@pytest.fixture(scope="module")
def found(pipeline: Any) -> list[list[float]]:
    """Contexts of the evaluator."""
    return [EXAMPLE["context_of"](text, pipeline) for text in TEXTS]


def trained(name: str, encoder: TextEncoder, size: int = 1) -> Any:
    """Return an agent that has learned from made-up answers."""
    rng = np.random.default_rng(1)
    contexts = encoder.encode(TEXTS)
    offline = OfflineData(contexts, rng.normal(size=(len(TEXTS), 3)))
    problem = QueueProblem(3, size, DIM, 8, 0.2, 300, offline, np.ones((5, 3)))
    agent: Any = make_agent(name, problem, 0, **FAST.get(name, {}))
    agent.encoder = encoder
    if name in LINEAR - {"offline-ridge", "offline-logistic", "offline-ridge-mixed"}:
        for row in rng.integers(len(TEXTS), size=60):
            shown = rng.permutation(3)[:size].tolist()
            kept = shown[0] if rng.random() < 0.3 + 0.2 * shown[0] else -1
            agent.learn(Served(contexts[row], shown, kept))
    return agent


def own_numbers(agent: Any, contexts: Any) -> Any:
    """What the agent itself makes of contexts, before anything it adds to explore."""
    x = contexts.astype(np.float64)
    if isinstance(agent, OfflineRouter):
        rates = agent._model._predict(x)
        return logit(rates) if agent._model.predictor == "logistic" else rates
    if hasattr(agent, "regression"):
        return x @ agent.regression.theta.T
    if hasattr(agent, "estimator"):
        np.testing.assert_allclose(
            x @ agent.estimator.theta.T, contexts @ agent.estimator.theta.T, atol=1e-5
        )
        return x @ agent.estimator.theta.astype(np.float64).T
    if hasattr(agent, "_good"):
        shares = (agent._good + 2.0) / (agent._good + agent._under + 4.0)
    else:
        shares = agent._kept / agent._shown
    return np.tile(shares, (len(x), 1))


def test_the_evaluator_finds_the_contexts_of_any_text(encoder: TextEncoder, found: Any) -> None:
    np.testing.assert_allclose(found, encoder.encode(TEXTS).astype(np.float64), rtol=0, atol=1e-9)
    assert found[0] == [0.0] * (DIM - 1) + [1.0]


@given(text=st.text(st.characters(codec=None), max_size=20))
def test_any_characters_are_the_same_features(
    encoder: TextEncoder, pipeline: Any, text: str
) -> None:
    context = EXAMPLE["context_of"](text, pipeline)
    np.testing.assert_allclose(context, encoder(text).astype(np.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", sorted(LINEAR))
def test_numbers_and_choices_are_the_agents_own(
    name: str, size: int, encoder: TextEncoder, found: Any
) -> None:
    agent = trained(name, encoder, size)
    policy = json.loads(json.dumps(policy_of(agent, LLMS) | {"text": None}))
    expected = own_numbers(agent, encoder.encode(TEXTS))
    assert np.ptp(expected) > 0.0
    for context, row in zip(found, expected, strict=True):
        numbers, chosen = EXAMPLE["evaluate"](policy, context)
        np.testing.assert_allclose(numbers, row, rtol=0, atol=1e-9)
        assert chosen == [LLMS[llm] for llm in top_llms(row, size)]


def test_every_agent_of_the_queue_is_exported_or_refused(encoder: TextEncoder) -> None:
    names = {spec.name for spec in registered_agents() if ".queueing." in spec.target}
    assert names == LINEAR | REFUSED
    for name in sorted(REFUSED):
        if name == "ACQB-CL":
            pytest.importorskip("torch")
        with pytest.raises(UsageError, match=r"does not decide|gives no numbers|no routing"):
            policy_of(trained(name, encoder))
    deployment = make_agent("StageRoute", DeployProblem(2, 1, 9, 3, 1.0, (1.0, 1.0), 0.1, 1.0), 0)
    with pytest.raises(UsageError, match="StageRoute is no routing agent of a queueing task"):
        policy_of(deployment)


def test_contexts_that_need_a_model_are_refused(encoder: TextEncoder) -> None:
    agent = trained("greedy", encoder)
    agent.encoder = TextEncoder(TEXTS, DIM, {"method": "tfidf-svd", "reduce": "whiten"})
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        policy_of(agent)
    with pytest.raises(UsageError, match="must be 3 different names"):
        policy_of(trained("greedy", encoder), ["a", "a", "b"])


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_the_command_writes_what_the_example_reads(
    ending: str, bench: Any, encoder: TextEncoder, tmp_path: Path, capsys: Any
) -> None:
    agent = trained("LinUCB", encoder)
    agent.save(tmp_path / "agent.zip")
    out = tmp_path / f"policy.{ending}"
    names = [part for llm in LLMS for part in ("--llm", llm)]
    assert bench("export-policy", tmp_path / "agent.zip", out, *names) == 0
    EXAMPLE["main"](str(out), TEXTS[9])
    printed = capsys.readouterr().out
    best = LLMS[int(own_numbers(agent, encoder.encode(TEXTS[9:10])).argmax())]
    assert printed.splitlines()[-1] == f"choose {best}"
