"""3,609 real prompts with the reward and USD cost of 3 LLMs, from the `paretobandit` package.

The data stay in the installed package (Apache-2.0); nothing of it is imported, only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import MissingPackageError, UsageError
from llmqueue_gym.workloads.embeddings import ContextMethod, read_contexts, text_pool
from llmqueue_gym.workloads.pool import PoolWorkload, QueryPool
from llmqueue_gym.workloads.rows import read_jsonl
from llmqueue_gym.workloads.sources import Source

_FILES = ("val.jsonl", "test_holdout.jsonl")


def paretobandit_workload(
    *,
    context_dim: int | None = None,
    contexts: str | Mapping[str, Any] | None = None,
    cost_weight: float = 0.0,
    pool_size: int = 1000,
    scale: str = "quality",
) -> PoolWorkload:
    """Workload of the package's example prompts; quality is its ``reward``, LLMs sorted by name.

    Parameters
    ----------
    context_dim : int, optional
        Length of a context, 64 by default.
    contexts : str or mapping, optional
        How texts become contexts; see `llmqueue_gym.workloads.embeddings.read_contexts`.
    cost_weight, pool_size, scale
        See `llmqueue_gym.workloads.pool.PoolWorkload`.

    Raises
    ------
    ImportError
        If the package is not installed.
    ValueError
        If an option is out of range, or its files are not as they should be.
    """
    pool, online = _load(context_dim, read_contexts(contexts))
    return PoolWorkload(pool, online, cost_weight=cost_weight, pool_size=pool_size, scale=scale)


def paretobandit_fingerprint() -> str:
    """Hash of the package's version and data files."""
    paths = _paths()
    digest = hashlib.sha256(version("paretobandit").encode())
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _paths() -> list[Path]:
    spec = find_spec("pareto_bandit")  # locates the package without running its heavy modules
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            'workload "paretobandit" needs the paretobandit package: '
            'pip install "llmqueue_gym[data]"'
        )
    paths = [Path(spec.origin).parent / "data" / "examples" / name for name in _FILES]
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"paretobandit {version('paretobandit')} has no {path}; "
                "reinstall it: pip install --force-reinstall paretobandit"
            )
    return paths


@lru_cache(maxsize=4)
def _load(
    context_dim: int | None, how: ContextMethod | None = None
) -> tuple[QueryPool, NDArray[np.int64]]:
    records: list[dict[str, Any]] = [row for path in _paths() for _, row in read_jsonl(path)]
    try:
        llms = tuple(sorted(records[0]["arms"]))
        texts = [record["prompt"] for record in records]
        quality, cost = (
            np.array(
                [[record["arms"][llm][key] for llm in llms] for record in records], dtype=float
            )
            for key in ("reward", "cost")
        )
    except (IndexError, KeyError, TypeError) as error:
        raise UsageError(
            f"the prompts of paretobandit {version('paretobandit')} have an unknown layout "
            f"({error}); install version 0.1.1"
        ) from error
    return text_pool(texts, quality, cost, llms, context_dim, how)


SOURCE = Source(
    "paretobandit",
    workload=paretobandit_workload,
    fingerprint=lambda **_: paretobandit_fingerprint(),
)
