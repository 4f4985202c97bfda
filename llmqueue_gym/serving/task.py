"""How an instance of LLMServe-v0 is built from its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.deployment.streams import CatalogStream
from llmqueue_gym.errors import UnplayableError, UsageError, first_playable
from llmqueue_gym.registration import SERVE_EPISODE_STEPS
from llmqueue_gym.serving.disguised import disguised
from llmqueue_gym.serving.instance import NEVER, Floats, Rewards, ServingInstance
from llmqueue_gym.serving.presets import (
    CATALOG,
    GPUS,
    GPUS_EACH,
    GRADED,
    LENGTH_OF_H,
    settings_of,
)
from llmqueue_gym.vector import INSTANCE_TAG
from llmqueue_gym.workloads import Workload, make_workload
from llmqueue_gym.workloads.arrivals import make_arrivals
from llmqueue_gym.workloads.rows import find_file, read_rows

QUANTILES = 4096  # equally likely lengths that stand for a lognormal law

Queries = tuple[NDArray[np.float32], Floats]
"""Contexts (P, d) and P(an answer is kept) (P, N)."""


class ServingTask:
    """Validated settings, and the instances that are drawn from them.

    Parameters
    ----------
    preset : str, optional
        One of `PRESETS`, or ``"from-log"``.
    log : str or mapping, optional
        The log that ``"from-log"`` is fitted on; see `llmqueue_gym.serving.fit.fit_serving`.
    instance_seed : int, optional
        Fixes the instance.
    disguise : int, optional
        Number of a held-out variant (`llmqueue_gym.serving.disguised`).
    **given
        Settings of `DEFAULTS`; None leaves one as it is.

    Attributes
    ----------
    drawn : bool
        Whether instances differ: queries come from a workload, and no seed fixes them.
    public : ServingInstance
        An instance that has the public parameters of all; the only one, unless they are drawn.

    Raises
    ------
    UsageError
        If a setting is wrong or contradicts another.
    """

    drawn: bool
    _draw_queries: Callable[[np.random.Generator], Queries]

    def __init__(
        self,
        preset: str | None = None,
        instance_seed: int | None = None,
        log: Any = None,
        disguise: int | None = None,
        **given: Any,
    ) -> None:
        self._disguise = None if disguise is None else checks.count("disguise", disguise, 0)
        settings = settings_of(preset, given, log)
        self.arrivals = make_arrivals(settings["arrivals"])
        self._load, rate = _read_rates(settings)
        slot_seconds = checks.number("slot_seconds", settings["slot_seconds"], "(0, inf)")
        update_every = checks.count("update_every", settings["update_every"], 0)
        loading = checks.count("loading", settings["loading"], 0)
        if 0 < update_every < loading:
            raise UsageError(
                f"update_every={update_every} is shorter than loading={loading}: no LLM would be "
                "ready at the next update point; raise it, or lower loading"
            )
        mean, lengths, inputs = _read_tokens(settings["tokens"])
        llms = _read_llms(settings["llms"])
        queries = self._read_queries(settings, llms, mean)
        fleet = _read_replicas(
            settings["replicas"], llms, slot_seconds, mean, float(inputs.mean()), update_every > 0
        )
        if not update_every and llms.arrives.any():
            late = llms.names[int(llms.arrives.argmax())]
            raise UsageError(
                f"llms: {late!r} arrives at slot {llms.arrives.max()}, and with update_every=0 "
                "nothing is ever loaded; set update_every, or leave it out"
            )
        if len(lengths) and any("finish" in row for row in settings["replicas"]):
            raise UsageError(
                f"tokens: law={settings['tokens']['law']!r} contradicts a replica with 'finish', a "
                "probability a slot, which needs the law 'geometric'; give it 'base_seconds' (W)"
            )
        self._plain = ServingInstance(
            *queries,
            lengths=lengths,
            inputs=inputs,
            return_rate=checks.number("return_rate", settings["return_rate"], "(0, 1]"),
            give_up=checks.number("give_up", settings["give_up"], "[0, 1]"),
            arrival_rate=rate,
            llms=llms.names,
            llm_arrives=llms.arrives,
            list_price=llms.list_price,
            list_speed=llms.list_speed,
            **fleet,
            slot_seconds=slot_seconds,
            update_every=update_every,
            loading=loading,
            dispatches=checks.count("dispatches", settings["dispatches"]),
            window=checks.count("window", settings["window"]),
            rewards=_read_rewards(settings["rewards"]),
            kinds=() if self.drawn else _names(settings["queries"]),
        )
        self.public = self._in_disguise(self._plain)
        if not self.drawn:
            self.public = self._loaded(self.public)
        elif instance_seed is not None:
            # The tag keeps the instance apart from everything else that is seeded with a number.
            seed = checks.count("instance_seed", instance_seed, 0)
            self.public = self.draw(np.random.default_rng([seed, INSTANCE_TAG]))
            self.drawn = False

    def action_sizes(self) -> list[int]:
        """Return the choices of every dimension of an action, [W + 1, R] * A + [N + 1] * R."""
        public = self.public
        dispatches = [public.window + 1, public.num_replicas] * public.dispatches
        return dispatches + [public.num_llms + 1] * public.num_replicas

    def draw(self, rng: np.random.Generator) -> ServingInstance:
        """Return an instance that can be played; always the same one unless they are drawn."""
        return first_playable(lambda: self._draw_once(rng)) if self.drawn else self.public

    def _draw_once(self, rng: np.random.Generator) -> ServingInstance:
        contexts, success = self._draw_queries(rng)
        instance = replace(self._plain, contexts=contexts, success=success)
        return self._loaded(self._in_disguise(instance))

    def _in_disguise(self, instance: ServingInstance) -> ServingInstance:
        if self._disguise is None:
            return instance
        return disguised(instance, self._disguise, self.drawn)

    def _loaded(self, instance: ServingInstance) -> ServingInstance:
        """Set the arrival rate for which the load is the one that was asked for."""
        if self._load is not None:
            rate = self._load / replace(instance, arrival_rate=1.0).load
            instance = replace(instance, arrival_rate=rate)
            if rate > 1.0:
                raise UnplayableError(
                    f"load={self._load:g} takes {rate:.3g} arrivals a slot, and at most one query "
                    "arrives in one; lower slot_seconds"
                )
        self.arrivals.check(instance.arrival_rate)
        return instance

    def _read_queries(
        self, settings: Mapping[str, Any], llms: Llms, mean: float
    ) -> tuple[NDArray[np.float32], Floats, Floats, Floats, Floats]:
        """Return contexts, shares, success, mean tokens and impatience of every query."""
        given, num_llms = settings["queries"], len(llms.names)
        impatience = checks.number("impatience", settings["impatience"], "[0, 1]")
        self.drawn = isinstance(given, str | Mapping)
        if not self.drawn:
            rows = _entries("queries", given, ("name", "share", "keep", "tokens", "impatience"))
            keep = np.array([_chances(row.get("keep"), num_llms) for row in rows])
            share = _column("queries", rows, "share", 1.0, "(0, inf)")
            tokens = _column("queries", rows, "tokens", mean, "(0, inf)")
            theta = _column("queries", rows, "impatience", impatience, "[0, 1]")
            one_each = np.eye(len(rows), dtype=np.float32)
            return one_each, share / share.sum(), keep, tokens, theta
        if isinstance(given, Mapping) and given.get("source") == GRADED:
            (row,) = _entries("queries", [given], ("source", "pool_size", "context_dim"))
            size = checks.count("queries: pool_size", row.get("pool_size", 256))
            dim = checks.count("queries: context_dim", row.get("context_dim", 8), 2)
            self._draw_queries = partial(_draw_graded, size, dim, llms.quality)
        else:
            workload = make_workload(given, num_llms=num_llms, context_dim=None, assortment_size=1)
            self._draw_queries = partial(_draw_workload, workload)
        contexts, success = self._draw_queries(np.random.default_rng(0))
        count = len(contexts)
        share, tokens = np.full(count, 1.0 / count), np.full(count, mean)
        return contexts, share, success, tokens, np.full(count, impatience)


def _draw_workload(workload: Workload, rng: np.random.Generator) -> Queries:
    drawn = workload.draw(rng)
    return drawn.contexts, _kept(drawn.utilities)


def _kept(utilities: Floats) -> Floats:
    """P(an answer is kept), by its utility."""
    return np.asarray(1.0 / (1.0 + np.exp(-utilities)))


class Llms(NamedTuple):
    """The LLMs of a task; arrays of shape (N,)."""

    names: tuple[str, ...]
    size: Floats  # iterations last as many times as long as those of Llama-3-70B
    arrives: NDArray[np.int64]
    list_price: Floats
    list_speed: Floats
    quality: Floats  # P(a typical answer is kept)


def _read_llms(given: Any) -> Llms:
    if given == CATALOG:
        stream = CatalogStream()
        catalog, price = stream.catalog, stream.catalog.prices[:, 1]
        released = [stream.query_of(str(day), SERVE_EPISODE_STEPS) for day in catalog.released]
        # No sizes are published: the price stands in for them (R), Llama-3.1-70B's is the unit.
        size = np.sqrt(price / price[catalog.llms.index("llama-3.1-70b-instruct")])
        arrives = np.maximum(np.array(released, dtype=np.int64), 0)
        unknown = np.zeros(len(price))
        return Llms(catalog.llms, size.clip(0.2, 4.0), arrives, price, unknown, catalog.quality)
    if isinstance(given, list | tuple):
        given = [{"name": llm} if isinstance(llm, str) else llm for llm in given]
    rows = _entries(
        "llms", given, ("name", "size", "arrives", "list_price", "list_speed", "quality")
    )
    names = tuple(str(row.get("name", f"llm-{m}")) for m, row in enumerate(rows))
    if len(set(names)) < len(names):
        raise UsageError(f"llms={given!r} has a name twice; names must differ")
    first = [checks.count("llms: arrives", row.get("arrives", 0), 0) for row in rows]
    return Llms(
        names,
        _column("llms", rows, "size", 1.0, "(0, inf)"),
        np.array(first, dtype=np.int64),
        _column("llms", rows, "list_price", 0.0, "[0, inf)"),
        _column("llms", rows, "list_speed", 0.0, "[0, inf)"),
        _column("llms", rows, "quality", 0.5, "(0, 1)"),
    )


def _draw_graded(size: int, dim: int, quality: Floats, rng: np.random.Generator) -> Queries:
    """Draw queries that LLMs answer as well as their quality says, on some better than on others.

    u_m(x) = logit(quality_m) + v . theta_m with x = (v, 1), E |v|^2 = 1, theta_m ~ N(0, I): a
    linear model of the context can learn it (R).
    """
    contexts = rng.standard_normal((size, dim), dtype=np.float32)
    contexts[:, :-1] /= np.sqrt(np.float32(dim - 1))
    contexts[:, -1] = 1.0
    theta = rng.standard_normal((len(quality), dim))
    theta[:, -1] = np.log(quality / (1.0 - quality))
    return contexts, _kept(contexts @ theta.T)


def _read_replicas(
    given: Any, llms: Llms, slot_seconds: float, mean: float, prompt: float, changes: bool
) -> dict[str, Any]:
    """Return the arrays of `ServingInstance` that describe the replicas."""
    speeds = ("gpu", "finish", "base_seconds")
    known = ("count", "hosts", "places", "price", "chunk", *speeds, "each_seconds")
    found: list[tuple[Any, ...]] = []
    for row in _entries("replicas", given, known):
        if sum(key in row for key in speeds) != 1:
            raise UsageError(f"replicas: {row!r} must have exactly one of {', '.join(speeds)}")
        if "each_seconds" in row and "base_seconds" not in row:
            raise UsageError(f"replicas: {row!r}: each_seconds (H) belongs to base_seconds (W)")
        usd, places, chunk = 0.0, 1, 0
        if "gpu" in row:
            gpu = GPUS[checks.choice("replicas: gpu", row["gpu"], GPUS)]
            usd, places, chunk = GPUS_EACH * gpu.usd, gpu.places, gpu.chunk
            base, each = gpu.base_seconds, gpu.each_seconds * (mean + prompt) / LENGTH_OF_H
        elif "finish" in row:
            chance = checks.number("replicas: finish", row["finish"], "(0, 1]")
            base = slot_seconds / (-mean * math.log1p(-chance)) if chance < 1.0 else 0.0
            each = 0.0
        else:
            base = checks.number("replicas: base_seconds", row["base_seconds"], "[0, inf)")
            each = checks.number("replicas: each_seconds", row.get("each_seconds", 0), "[0, inf)")
        host = -1
        if row.get("hosts") is not None:
            host = llms.names.index(checks.choice("replicas: hosts", row["hosts"], llms.names))
            if llms.arrives[host]:
                raise UsageError(
                    f"replicas: hosts={row['hosts']!r} arrives at slot {llms.arrives[host]} only; "
                    "leave the replica empty until then"
                )
        elif not changes:
            raise UsageError(
                f"replicas: {row!r} hosts nothing, and with update_every=0 nothing is ever "
                "loaded; name an LLM under 'hosts', or set update_every"
            )
        places = checks.count("replicas: places", row.get("places", places))
        chunk = checks.count("replicas: chunk", row.get("chunk", chunk), 0)
        usd = checks.number("replicas: price", row.get("price", usd), "[0, inf)")
        values = (places, host, base * llms.size, each * llms.size, chunk, usd)
        found += [values] * checks.count("replicas: count", row.get("count", 1))
    columns: list[Any] = [np.array(column) for column in zip(*found, strict=True)]
    columns[4], columns[5] = columns[4].astype(np.float64), columns[5] * slot_seconds / 3600.0
    names = ("places", "hosts", "base_seconds", "each_seconds", "chunk", "price")
    return dict(zip(names, columns, strict=True))


def _read_rates(settings: Mapping[str, Any]) -> tuple[float | None, float]:
    """Return the load, if it is given, and the arrival rate."""
    rate, load = settings["arrival_rate"], settings["load"]
    if load is not None:
        if checks.number("load", load, "[0, inf)") >= 1.0:
            raise UsageError(
                f"load={load!r} must be below 1, else no policy is stable; to overload the fleet "
                "on purpose set arrival_rate, which is not limited by capacity"
            )
        return float(load), 1.0
    if rate is None:
        raise UsageError("arrival_rate and load are both missing; give one of them")
    return None, checks.number("arrival_rate", rate, "[0, 1]", " (queries a slot, at most one)")


def _read_tokens(given: Any) -> tuple[float, Floats, Floats]:
    """Return the mean length, equally likely lengths in units of it, and prompts."""
    known = ("law", "mean", "sigma", "input", "path", "length", "prompt")
    (row,) = _entries("tokens", [given], known)
    law = checks.choice("tokens: law", row.get("law"), ("geometric", "lognormal", "trace"))
    if law == "trace":
        places = read_rows(find_file(row.get("path")))
        names = [row.get("length", "GeneratedTokens"), row.get("prompt", "ContextTokens")]
        cells = [[_tokens(place, cells, name) for name in names] for place, cells in places]
        if not cells:
            raise UsageError(f"tokens: path={row['path']!r} has no rows")
        table = np.array(sorted(cells))
        mean = float(table[:, 0].mean())
        return mean, table[:, 0] / mean, np.ascontiguousarray(table[:, 1])
    mean = checks.number("tokens: mean", row.get("mean"), "(0, inf)")
    prompt = checks.number("tokens: input", row.get("input", 0.0), "[0, inf)")
    if law == "geometric":
        return mean, np.zeros(0), np.array([prompt])
    from scipy.special import ndtri

    sigma = checks.number("tokens: sigma", row.get("sigma"), "(0, inf)")
    lengths = np.exp(sigma * ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES))
    return mean, lengths / lengths.mean(), np.full(QUANTILES, prompt)


def _tokens(place: str, cells: Mapping[str, Any], name: str) -> float:
    try:
        value = float(cells[name])
    except (KeyError, TypeError, ValueError):
        value = math.nan
    if not 0.0 < value < math.inf:
        raise UsageError(f"{place}: {name}={cells.get(name)!r} must be a number above 0")
    return value


def _read_rewards(given: Any) -> Rewards:
    (row,) = _entries("rewards", [given], Rewards._fields)
    rewards = Rewards(
        **{key: checks.number(f"rewards: {key}", row[key], "[0, inf)") for key in row}
    )
    if (rewards.late > 0.0) != (rewards.sla < NEVER):
        raise UsageError(
            f"rewards={given!r}: 'late' and 'sla' (slots) belong together; give both or neither"
        )
    return rewards


def _entries(what: str, given: Any, known: Sequence[str]) -> list[Mapping[str, Any]]:
    """Check that a setting is a list of mappings whose keys are known."""
    if not isinstance(given, list | tuple) or not given:
        raise UsageError(f"{what}={given!r} must be a list of mappings, at least one")
    for row in given:
        if not isinstance(row, Mapping):
            raise UsageError(f"{what}: {row!r} must be a mapping with keys {', '.join(known)}")
        for key in row:
            checks.choice(f"{what}: key", key, known)
    return list(given)


def _column(
    what: str, rows: Sequence[Mapping[str, Any]], key: str, default: float, allowed: str
) -> Floats:
    return np.array(
        [checks.number(f"{what}: {key}", row.get(key, default), allowed) for row in rows]
    )


def _names(queries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return names of queries, as many as are different."""
    names = tuple(str(row.get("name", f"query {k + 1}")) for k, row in enumerate(queries))
    return names if len(set(names)) == len(names) > 1 else ()


def _chances(given: Any, num_llms: int) -> list[float]:
    if not isinstance(given, list | tuple) or len(given) != num_llms:
        raise UsageError(
            f"queries: keep={given!r} must be a list of a probability for each of {num_llms} LLMs"
        )
    return [checks.number("queries: keep", chance, "[0, 1]") for chance in given]
