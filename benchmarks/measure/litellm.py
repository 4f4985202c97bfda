"""Time that the router adds to a request of LiteLLM, and what grows with the number of requests.

python -m benchmarks.measure.litellm [--requests 100000] [--think 1] [--gateway]: 20 LLMs, contexts
of 128 numbers, 64 callers at a time, two questions a session. ``--think`` is how long an LLM takes
for an answer, in seconds: 0 asks as fast as one thread can choose, and every caller then waits for
the 63 others.

The router alone, in one process without HTTP and without the rest of LiteLLM, so the figures are
its own; with ``--gateway`` LiteLLM itself, with answers made up by it, in turns of 256 requests:
without a router, with a callback that does nothing, with the router. Differences of the medians are
what a caller sees.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from baselines.interface import QueueProblem
from baselines.registry import make_agent
from benchmarks.score.intervals import t_interval

LLMS, DIM, AT_ONCE = 20, 128, 64
NAMES = [f"openai/llm-{j}" for j in range(LLMS)]
WORDS = ("poem", "rain", "proof", "prime", "python", "loop", "river", "song", "theorem", "class")
TURN = 4 * AT_ONCE

Ask = Callable[[int, dict[str, Any]], Awaitable[float]]


async def serve(ask: Ask, first: int, last: int, think: float) -> list[float]:
    """Return the seconds that each of the requests first, ..., last - 1 waited, by ``ask``."""
    waited: list[float] = []

    async def caller(own: int) -> None:
        await asyncio.sleep(think * own / AT_ONCE)
        for i in range(first + own, last, AT_ONCE):
            waited.append(await ask(i, {"session_id": f"s{i // (2 * AT_ONCE)}-{own}"}))

    await asyncio.gather(*(caller(own) for own in range(AT_ONCE)))
    return waited


def choices(router: Any, texts: list[str], think: float) -> Ask:
    """Return how a request to the router alone is asked: it waits for its choice."""
    deployments = [{"litellm_params": {"model": llm}} for llm in router.router.llms]

    async def ask(i: int, metadata: dict[str, Any]) -> float:
        request: dict[str, Any] = {"metadata": metadata, "model": "auto"}
        messages = [{"role": "user", "content": texts[i % len(texts)]}]
        start = time.perf_counter()
        left = await router.async_filter_deployments("auto", deployments, messages, request)
        waited = time.perf_counter() - start
        await asyncio.sleep(think)
        metadata["deployment"] = left[0]["litellm_params"]["model"]
        answered = {"litellm_params": {"metadata": metadata}, "response_cost": 0.001}
        await router.async_log_success_event(answered, None, None, None)
        return waited

    return ask


def answers(texts: list[str], think: float) -> Ask:
    """Return how a request to LiteLLM is asked: it waits for all but the LLM."""
    import litellm

    prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    made_up = {"api_key": "none", "mock_response": "fine", "mock_delay": think, **prices}
    models = [{"model_name": "auto", "litellm_params": {"model": n, **made_up}} for n in NAMES]
    gateway = litellm.Router(models, num_retries=0)

    async def ask(i: int, metadata: dict[str, Any]) -> float:
        messages = [{"role": "user", "content": texts[i % len(texts)]}]
        start = time.perf_counter()
        await gateway.acompletion(model="auto", messages=messages, metadata=metadata)
        return time.perf_counter() - start - think

    return ask


def resident() -> float:
    """Return the MB that this process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def quantiles(waited: list[float]) -> str:
    """Return what requests waited, as a line has it."""
    low, median, high = (1e3 * np.quantile(waited, (0.05, 0.5, 0.95))).tolist()
    return f"waited {median:.2f} ms at the median, 5% {low:.2f}, 95% {high:.2f}"


def measure_alone(router: Any, folder: Path, ask: Ask, requests: int, think: float) -> None:
    """Print the router's own figures, for ten times as many requests in every line."""
    done, most = 0, 1000
    while done < requests:
        last = min(most, requests)
        cpu = time.process_time()
        waited = asyncio.run(serve(ask, done, last, think))
        router.settle()
        cpu = 1e3 * (time.process_time() - cpu) / len(waited)
        disk = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        print(
            f"requests {done:,} to {last:,}: processor time {cpu:.2f} ms a request with its "
            f"answer; {quantiles(waited)}; resident {resident():,.0f} MB, state {disk:.1f} MB; "
            f"{dict(router.counts)}, {router.router.shared.learned.answers:,} learned",
            flush=True,
        )
        done, most = last, 10 * most


async def measure_gateway(router: Any, ask: Ask, requests: int, think: float) -> None:
    """Print what LiteLLM's callers wait without, with a mute and with our router, in turns."""
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    class Mute(CustomLogger):  # type: ignore[misc]  # LiteLLM is not type-checked
        """What LiteLLM itself needs for a callback that leaves one deployment."""

        async def async_filter_deployments(self, *_: Any, **request: Any) -> list[Any]:
            deployments: list[Any] = request["healthy_deployments"]
            return deployments[:1]

        async def async_log_success_event(self, *_: Any, **answer: Any) -> None:
            pass

    medians = []
    for first in range(-3 * TURN, requests, 3 * TURN):
        waited = []
        for callbacks in ([], [Mute()], [router]):
            litellm.logging_callback_manager._reset_all_callbacks()
            litellm.callbacks = callbacks
            waited.append(await serve(ask, first + 3 * TURN, first + 4 * TURN, think))
        if first >= 0:  # at first LiteLLM loads things
            medians.append([1e3 * float(np.median(each)) for each in waited])
            names = ("LiteLLM", "with a mute callback", "with the router")
            lines = (f"{n} {quantiles(each)}" for n, each in zip(names, waited, strict=True))
            print("; ".join(lines), flush=True)
    alone, mute, ours = np.array(medians).T
    for name, added in (("LiteLLM alone", ours - alone), ("a mute callback", ours - mute)):
        mean, low, high = t_interval(added)
        print(f"the median over that of {name}: {mean:+.2f} ms [{low:.2f}, {high:.2f}]")
    print(dict(router.counts))


def main() -> None:
    """Print the figures."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from llmqueue_gym.live.litellm import LearningRouter
    from llmqueue_gym.workloads.encoder import TextEncoder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--agent", default="LinUCB")
    parser.add_argument("--think", type=float, default=0.0)
    parser.add_argument("--gateway", action="store_true")
    arguments = parser.parse_args()
    requests, think = arguments.requests, arguments.think
    rng = np.random.default_rng(0)
    texts = [f"{' '.join(rng.choice(WORDS, 12))} {i}" for i in range(4000)]
    agent = make_agent(arguments.agent, QueueProblem(LLMS, 1, DIM, 1, 1.0, requests), 0)
    agent.encoder = TextEncoder(texts, DIM)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        state = Path(folder) / "state"
        router = LearningRouter(agent, NAMES, "auto", state=state, timeout_ms=10_000.0)
        if arguments.gateway:
            asyncio.run(measure_gateway(router, answers(texts, think), requests, think))
        else:
            ask = choices(router, texts, think)
            measure_alone(router, state.parent, ask, requests, think)


if __name__ == "__main__":
    main()
