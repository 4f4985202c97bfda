"""The named settings of LLMServe-v0, JSON-plain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.serving.fit import FROM_LOG, settings_from_log

CATALOG, GRADED = "catalog", "graded"


class Gpu(NamedTuple):
    """Eight GPUs that run Llama-3-70B: W, H at 8192 tokens, chunk, places, USD a GPU-hour.

    Hand-calibrated constants of fleet-sim, vLLM Semantic Router (Apache-2.0).
    """

    base_seconds: float
    each_seconds: float
    chunk: int
    places: int
    usd: float


GPUS = {
    "H100": Gpu(0.0040, 0.00032, 1024, 256, 4.02),
    "A100": Gpu(0.0080, 0.00065, 512, 128, 2.21),
    "A10G": Gpu(0.0120, 0.00090, 256, 64, 1.01),
}
GPUS_EACH, LENGTH_OF_H = 8, 8192.0

DEFAULTS: dict[str, Any] = {
    "queries": [{"name": "query", "keep": [1.0]}],
    "llms": ["llm"],
    "replicas": [{"hosts": "llm", "finish": 0.5}],
    "tokens": {"law": "geometric", "mean": 1.0},
    "arrivals": "bernoulli",
    "arrival_rate": None,
    "load": None,
    "return_rate": 1.0,
    "give_up": 0.0,
    "impatience": 0.0,
    "slot_seconds": 1.0,
    "update_every": 0,
    "loading": 60,
    "dispatches": 1,
    "window": 32,
    "rewards": {"holding": 1.0},
}
"""Every setting of an instance."""

# The conversations of the Azure LLM inference trace 2023: 211.1 tokens generated of 1154.7 given,
# with the lognormal's sigma that has the coefficient of variation of the former.
_AZURE = {"law": "lognormal", "mean": 211.1, "sigma": 0.683, "input": 1154.7}
_FLEET: dict[str, Any] = {
    "queries": {"source": GRADED, "pool_size": 256, "context_dim": 8},
    "llms": [
        {"name": "small", "size": 0.3, "quality": 0.5},
        {"name": "medium", "size": 1.0, "quality": 0.65},
        {"name": "large", "size": 2.5, "quality": 0.8},
    ],
    "replicas": [
        {"gpu": "A10G", "hosts": "small", "places": 4},
        {"gpu": "A100", "hosts": "medium", "places": 8, "count": 2},
        {"gpu": "H100", "hosts": "large", "places": 8},
    ],
    "tokens": _AZURE,
    "slot_seconds": 0.05,
    "load": 0.8,
    "return_rate": 0.05,
    "dispatches": 2,
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny-pair": {
        "queries": [
            {"name": "easy", "share": 10 / 13, "keep": [0.9, 0.95]},
            {"name": "hard", "share": 3 / 13, "keep": [0.1, 0.9]},
        ],
        "llms": ["fast", "strong"],
        "replicas": [{"hosts": "fast", "finish": 0.5}, {"hosts": "strong", "finish": 0.1}],
        "arrival_rate": 0.26,
        "dispatches": 2,
    },
    "slow-server": {
        "replicas": [{"hosts": "llm", "base_seconds": 1.0}, {"hosts": "llm", "base_seconds": 5.0}],
        "slot_seconds": 0.05,
        "arrival_rate": 0.04,
        "dispatches": 2,
    },
    # One server that may turn to another user in every slot: an answer takes one slot and is kept
    # with probability mu slot_seconds; who is not done waits again at once.
    "impatient": {
        "queries": [
            {"name": "patient", "keep": [0.05], "impatience": 0.0025},
            {"name": "impatient", "keep": [0.06], "impatience": 0.05},
        ],
        "replicas": [{"hosts": "llm", "finish": 1.0}],
        "slot_seconds": 0.05,
        "arrival_rate": 0.07,
    },
    "fleet": _FLEET,
    # An LLM takes a tenth of the day to load, in which the rate changes by up to half of its mean:
    # more than the head room of a fleet that follows what has come so far.
    "autoscale": _FLEET
    | {
        "replicas": [
            {"gpu": "A10G", "hosts": "small", "places": 4},
            {"gpu": "A10G", "places": 4, "count": 3},
        ],
        "arrivals": {"process": "daily", "day": 1000, "swing": 0.8},
        "load": 0.5,
        "update_every": 100,
        "loading": 100,
        "rewards": {"kept": 1.0, "holding": 0.01, "lost": 1.0, "price": 200.0},
    },
    "streaming": _FLEET
    | {
        "llms": CATALOG,
        "replicas": [{"gpu": "A100", "places": 8, "count": 4}],
        "load": 0.6,
        "update_every": 150,
        "rewards": {"kept": 1.0, "holding": 0.01, "lost": 1.0},
    },
}
"""Settings that differ from `DEFAULTS`; every one may be overridden."""


def settings_of(preset: str | None, given: Mapping[str, Any], log: Any = None) -> dict[str, Any]:
    """Return every setting: the given ones before the preset's, before the defaults.

    ``arrival_rate`` and ``load`` replace each other.
    """
    chosen: Mapping[str, Any] = {}
    if (preset == FROM_LOG) != (log is not None):
        raise UsageError(
            f"preset={preset!r}, log={log!r}: preset={FROM_LOG!r} and log=FILE belong together"
        )
    if log is not None:
        chosen = settings_from_log(log, given.get("slot_seconds"))
    elif preset is not None:
        chosen = PRESETS[checks.choice("preset", preset, (*PRESETS, FROM_LOG))]
    for name in given:
        if name not in DEFAULTS:
            raise checks.unknown_name("setting", name, DEFAULTS)
    rate, load = given.get("arrival_rate"), given.get("load")
    if rate is not None and load is not None:
        raise UsageError(
            f"arrival_rate={rate!r} and load={load!r} both set the arrivals; give only one of them"
        )
    settings = DEFAULTS | dict(chosen)
    if rate is not None or load is not None:
        settings |= {"arrival_rate": None, "load": None}
    return settings | {name: value for name, value in given.items() if value is not None}
