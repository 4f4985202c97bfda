"""SPROUT (Somerstep et al., CARROT, arXiv 2502.03261): 13 LLMs' scores and token counts by query.

Official files: Parquet, one or more a split (``train-*``, ``validation-*``, ``test-*``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym.errors import UsageError
from llmqueue_gym.workloads.prices import token_prices
from llmqueue_gym.workloads.sources import Source
from llmqueue_gym.workloads.stored import Facts, Tell, reading_parquet, write_pool

if TYPE_CHECKING:
    import polars as pl

FIELDS = ("score", "num_input_tokens", "num_output_tokens")
TEXT_COLUMNS = ("key", "dataset", "prompt")

PRICES: Mapping[str, tuple[float, float]] = {
    "aws-claude-3-5-sonnet-v1": (3.0, 15.0),
    "aws-titan-text-premier-v1": (0.8, 3.2),
    "openai-gpt-4o": (2.5, 10.0),
    "openai-gpt-4o-mini": (0.15, 0.6),
    "wxai-granite-3-2b-instruct-8k-max-tokens": (0.1, 0.1),
    "wxai-granite-3-8b-instruct-8k-max-tokens": (0.2, 0.2),
    "wxai-llama-3-1-70b-instruct": (0.9, 0.9),
    "wxai-llama-3-1-8b-instruct": (0.2, 0.2),
    "wxai-llama-3-2-1b-instruct": (0.06, 0.06),
    "wxai-llama-3-2-3b-instruct": (0.06, 0.06),
    "wxai-llama-3-3-70b-instruct": (0.9, 0.9),
    "wxai-llama-3-405b-instruct": (3.5, 3.5),
    "wxai-mixtral-8x7b-instruct-v01": (0.6, 0.6),
}
"""USD per million input and output tokens: SPROUT_COSTS in ``carrot/constants.py`` of the paper's
code (github.com/somerstep/CARROT, commit c75a41e). The router's demo in the same repository has
(0.5, 1.5) for aws-titan-text-premier-v1."""


def read_sprout(
    files: Sequence[Path], out: Path, prices: Path | None = None, tell: Tell | None = None
) -> Facts:
    """Convert SPROUT's splits; all rows go into one table, with ids ``split/key``.

    The LLMs are the columns of structs with a score and token counts. A missing score is 0, and the
    cost beside it too; the cost of an answer is its tokens at the LLM's price.

    Parameters
    ----------
    files : sequence of Path
        Parquet files.
    out : Path
        Where the Parquet goes.
    prices : Path, optional
        JSON ``{LLM: [USD per million input tokens, output tokens]}`` in place of `PRICES`.
    tell : callable, optional
        Called with the number of rows read so far.

    Raises
    ------
    ValueError
        If a file, column, cell or price is not as it should be.
    """
    table = PRICES if prices is None else token_prices(prices)
    parts = []
    for path in files:
        parts.append(_read(path, table, prices))
        if tell is not None:
            tell(sum(len(texts["key"]) for texts, _, _ in parts))
    llms = sorted(parts[0][1])
    for path, (_, scores, _) in zip(files, parts, strict=True):
        if sorted(scores) != llms:
            odd = sorted(set(scores) ^ set(llms))
            raise UsageError(f"{path}: its LLMs are not those of {files[0].name} ({odd[0]!r})")
    return write_pool(
        out,
        files[0] if len(files) == 1 else files[0].parent,
        ids=[text for texts, _, _ in parts for text in texts["key"]],
        texts=[text for texts, _, _ in parts for text in texts["prompt"]],
        groups=[text for texts, _, _ in parts for text in texts["dataset"]],
        quality={llm: np.concatenate([scores[llm] for _, scores, _ in parts]) for llm in llms},
        cost={llm: np.concatenate([costs[llm] for _, _, costs in parts]) for llm in llms},
        columns={llm: (f"{llm}.score", f"{llm}.num_input_tokens") for llm in llms},
        notes={"prices": {llm: list(table[llm]) for llm in llms}},
    )


Columns = dict[str, NDArray[np.float64]]


def _read(
    path: Path, table: Mapping[str, tuple[float, float]], prices: Path | None
) -> tuple[dict[str, list[str]], Columns, Columns]:
    """Texts, scores and costs of one file."""
    frame, llms = _select(path)
    split = path.name.partition("-")[0].removesuffix(".parquet")
    texts = {name: _texts(frame, name, path) for name in TEXT_COLUMNS}
    texts["key"] = [f"{split}/{key}" for key in texts["key"]]
    scores, costs = {}, {}
    for llm in llms:
        if llm not in table:
            raise UsageError(
                f"{path}: no price for LLM {llm!r}; give a table of all its LLMs with --prices"
                if prices is None
                else f"prices={str(prices)!r}: there is no {llm!r}, which {path.name} has"
            )
        score, read, written = (_numbers(frame, llm, field, path) for field in FIELDS)
        scores[llm] = score
        costs[llm] = (read * table[llm][0] + written * table[llm][1]) / 1e6
        for field, tokens in (("num_input_tokens", read), ("num_output_tokens", written)):
            wrong = np.flatnonzero((tokens < 0) | (np.isnan(tokens) & ~np.isnan(score)))
            if wrong.size:
                raise UsageError(
                    f"{path}, row {wrong[0] + 1}, column '{llm}.{field}': the value is "
                    f"{tokens[wrong[0]]}, expected a number of tokens"
                )
    return texts, scores, costs


def _select(path: Path) -> tuple[pl.DataFrame, list[str]]:
    """Read the columns that matter, and the names of the LLMs."""
    import polars as pl

    with reading_parquet(path):
        schema = pl.read_parquet_schema(path)
        structs = {
            name: {field.name for field in kind.fields}
            for name, kind in schema.items()
            if isinstance(kind, pl.Struct)
        }
        llms = [name for name, fields in structs.items() if fields & set(FIELDS)]
        for name in TEXT_COLUMNS:
            if name not in schema:
                raise UsageError(f"{path}: there is no column {name!r}; is it a SPROUT split?")
        if not llms:
            raise UsageError(f"{path}: no column holds structs of {', '.join(FIELDS)}")
        for llm in llms:
            for field in FIELDS:
                if field not in structs[llm]:
                    raise UsageError(f"{path}: column {llm!r} has no field {field!r}")
        fields = [
            pl.col(llm).struct.field(field).alias(f"{llm}.{field}")
            for llm in llms
            for field in FIELDS
        ]
        frame = pl.scan_parquet(path).select(*TEXT_COLUMNS, *fields).collect(engine="streaming")
    if not len(frame):
        raise UsageError(f"{path}: the file has no rows")
    return frame, llms


def _texts(frame: pl.DataFrame, name: str, path: Path) -> list[str]:
    import polars as pl

    column = frame[name]
    if name != "prompt" and column.dtype.is_integer():
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        raise UsageError(f"{path}: column {name!r} holds {column.dtype}, expected text")
    if column.null_count():
        row = int(column.is_null().arg_max() or 0) + 1
        raise UsageError(f"{path}, row {row}, column {name!r} is empty")
    texts: list[str] = column.to_list()
    return texts


def _numbers(frame: pl.DataFrame, llm: str, field: str, path: Path) -> NDArray[np.float64]:
    import polars as pl

    column = frame[f"{llm}.{field}"]
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise UsageError(f"{path}: column '{llm}.{field}' holds {column.dtype}, expected numbers")
    numbers: Any = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return np.asarray(numbers)


SOURCE = Source(
    "sprout",
    reader=read_sprout,
    suffixes=(".parquet",),
    repository="CARROT-LLM-Routing/SPROUT",
    patterns=("data/*.parquet",),
    licence="not stated on its card",
    reference="Somerstep et al., CARROT, arXiv 2502.03261",
)
