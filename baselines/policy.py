"""Policies for routers in other languages: an agent's numbers and its context pipeline as JSON.

The format is described on the page docs/guides/export-policy.md; examples/evaluate_policy.py reads
it in plain Python.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.interface import Agent
from baselines.queueing.base import QueueAgent
from llmqueue_gym.errors import UsageError

FORMAT, VERSION = "llmqueue_gym policy", 1


def policy_of(agent: Agent, llms: Sequence[str] = ()) -> dict[str, Any]:
    """Return what an agent decides on once it explores no longer, JSON-plain.

    Parameters
    ----------
    agent : Agent
        One of `QueueAgent` whose ``policy`` is linear; with an ``encoder`` of TF-IDF contexts, or
        without one if its contexts were vectors.
    llms : sequence of str, optional
        Names of the LLMs in their order; by default llm-0, llm-1, ...

    Raises
    ------
    UsageError
        If the agent's numbers are not linear in the context, or its contexts need a model.
    """
    if not isinstance(agent, QueueAgent):
        raise UsageError(
            f"a {type(agent).__name__} is no routing agent of a queueing task, and only those are "
            "exported: they decide by a number for each LLM"
        )
    policy, problem = agent.policy(), agent.problem
    names = list(llms) or [f"llm-{j}" for j in range(problem.num_llms)]
    if len(set(names)) != problem.num_llms or len(names) != problem.num_llms:
        raise UsageError(
            f"llms={names!r} must be {problem.num_llms} different names, one for each LLM"
        )
    text = None if agent.encoder is None else agent.encoder.as_json()
    return {
        "format": FORMAT,
        "version": VERSION,
        "agent": type(agent).__name__,
        "scale": policy.scale,
        "llms": names,
        "assortment_size": problem.assortment_size,
        "context_dim": problem.context_dim,
        "weights": policy.weights.tolist(),
        "intercept": policy.intercept.tolist(),
        "text": text,
    }


def write_policy(agent: Agent, path: str | Path, llms: Sequence[str] = ()) -> dict[str, Any]:
    """Write `policy_of` an agent to a file, gzipped if its name ends in ``.gz``; return it.

    Raises
    ------
    UsageError
        As `policy_of`, or if the file cannot be written.
    """
    policy = policy_of(agent, llms)
    content = json.dumps(policy, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = content.encode("utf-8", "replace")
    try:
        Path(path).write_bytes(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)
    except OSError as error:
        raise UsageError(f"path={str(path)!r} cannot be written ({error})") from error
    return policy
