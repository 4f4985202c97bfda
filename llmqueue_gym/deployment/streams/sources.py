"""Every source of LLMs by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from llmqueue_gym.deployment.streams.catalog import CatalogStream
from llmqueue_gym.deployment.streams.disguised import DisguisedStream
from llmqueue_gym.deployment.streams.routerbench import RouterBenchStream
from llmqueue_gym.deployment.streams.stream import FACTS, StreamSource
from llmqueue_gym.deployment.streams.synthetic import SyntheticStream
from llmqueue_gym.deployment.streams.table import (
    dataset_stream,
    logs_stream,
    paretobandit_stream,
    table_stream,
)
from llmqueue_gym.workloads.datasets import pool_header
from llmqueue_gym.workloads.disguise import DISGUISE, read_disguise
from llmqueue_gym.workloads.pool import file_sha256, read_spec
from llmqueue_gym.workloads.sources import paretobandit, table
from llmqueue_gym.workloads.sources.log_file import log_fingerprint

_SOURCES: dict[str, Callable[..., StreamSource]] = {
    "routerbench": RouterBenchStream,
    "catalog": CatalogStream,
    "synthetic": SyntheticStream,
    "table": table_stream,
    "paretobandit": paretobandit_stream,
    "dataset": dataset_stream,
    "logs": logs_stream,
}


def stream_fingerprint(spec: str | Mapping[str, Any]) -> str:
    """SHA-256 of the data behind a spec; empty for data that follow from the spec alone."""
    source, options = read_spec("instance", "source", spec, _SOURCES, (DISGUISE,))
    read_disguise(options)
    if source == "table":
        return table.table_fingerprint(**options)
    if source == "logs":
        return log_fingerprint(**options)
    if source == "paretobandit":
        return paretobandit.paretobandit_fingerprint()
    if source == "dataset":
        return str(pool_header(options["name"]).parquet["sha256"])
    if source == "synthetic":
        return ""
    path = options.get("path")
    facts = resources.files(FACTS).joinpath(f"{source}_facts.json")
    with resources.as_file(facts) as known:
        return file_sha256(known if path is None else path)


def make_source(spec: str | Mapping[str, Any]) -> StreamSource:
    """Build a source of streams from its spec.

    Parameters
    ----------
    spec : str or mapping
        Name of an instance (``"routerbench"``, ``"catalog"``, ``"synthetic"``, ``"table"``,
        ``"paretobandit"``, ``"dataset"``, ``"logs"``), or a mapping with its name under
        ``"source"`` and its options beside; every source has the option ``disguise``, a number
        (see `llmqueue_gym.deployment.streams.disguised`).

    Raises
    ------
    ValueError
        If the source or an option is unknown (the nearest known name is suggested), or an option
        is out of range.
    ImportError
        If the source needs a package that is not installed.
    """
    source, options = read_spec("instance", "source", spec, _SOURCES, (DISGUISE,))
    disguise = read_disguise(options)
    made = _SOURCES[source](**options)
    return made if disguise is None else DisguisedStream(made, disguise)
