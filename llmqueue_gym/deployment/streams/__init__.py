"""Where LLMs come from: catalogue, data sets, made-up ones; prices, retirements, arrivals."""

from llmqueue_gym.deployment.streams.catalog import CatalogStream, ModelCatalog
from llmqueue_gym.deployment.streams.feasible import UNSERVED, stage_verdicts
from llmqueue_gym.deployment.streams.routerbench import RouterBenchStream
from llmqueue_gym.deployment.streams.sources import make_source, stream_fingerprint
from llmqueue_gym.deployment.streams.stream import (
    Defaults,
    LLMStream,
    PriceChange,
    StreamSource,
    log_sd_of,
)
from llmqueue_gym.deployment.streams.synthetic import SyntheticStream
from llmqueue_gym.deployment.streams.table import (
    TableStream,
    dataset_stream,
    paretobandit_stream,
    table_stream,
)
from llmqueue_gym.deployment.streams.variants import (
    build_instance,
    cost_range,
    read_price_changes,
    read_retirements,
)

__all__ = [
    "UNSERVED",
    "CatalogStream",
    "Defaults",
    "LLMStream",
    "ModelCatalog",
    "PriceChange",
    "RouterBenchStream",
    "StreamSource",
    "SyntheticStream",
    "TableStream",
    "build_instance",
    "cost_range",
    "dataset_stream",
    "log_sd_of",
    "make_source",
    "paretobandit_stream",
    "read_price_changes",
    "read_retirements",
    "stage_verdicts",
    "stream_fingerprint",
    "table_stream",
]
