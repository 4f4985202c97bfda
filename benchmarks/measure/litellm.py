"""Time that the router adds to a request of LiteLLM, and what grows with the number of requests.

python -m benchmarks.measure.litellm [--requests 100000] [--think 1]: 20 LLMs, contexts of 128
numbers, 64 callers at a time, two questions a session; in one process, without HTTP and without the
rest of LiteLLM, so the figures are the router's own. ``--think`` is how long an LLM takes for an
answer, in seconds: 0 asks as fast as one thread can choose, and every caller then waits for the 63
others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from baselines.interface import QueueProblem
from baselines.registry import make_agent

LLMS, DIM, AT_ONCE = 20, 128, 64
WORDS = ("poem", "rain", "proof", "prime", "python", "loop", "river", "song", "theorem", "class")


async def serve(router: Any, first: int, last: int, texts: list[str], think: float) -> list[float]:
    """Return the seconds that each of the requests first, ..., last - 1 waited for its choice."""
    deployments = [{"litellm_params": {"model": llm}} for llm in router.router.llms]
    waited: list[float] = []

    async def caller(own: int) -> None:
        await asyncio.sleep(think * own / AT_ONCE)
        for i in range(first + own, last, AT_ONCE):
            metadata: dict[str, Any] = {"session_id": f"s{i // (2 * AT_ONCE)}-{own}"}
            request: dict[str, Any] = {"metadata": metadata, "model": "auto"}
            messages = [{"role": "user", "content": texts[i % len(texts)]}]
            start = time.perf_counter()
            left = await router.async_filter_deployments("auto", deployments, messages, request)
            waited.append(time.perf_counter() - start)
            await asyncio.sleep(think)
            metadata["deployment"] = left[0]["litellm_params"]["model"]
            answered = {"litellm_params": {"metadata": metadata}, "response_cost": 0.001}
            await router.async_log_success_event(answered, None, None, None)

    await asyncio.gather(*(caller(own) for own in range(AT_ONCE)))
    return waited


def resident() -> float:
    """Return the MB that this process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Print the figures, for ten times as many requests in every line."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from llmqueue_gym.live.litellm import LearningRouter
    from llmqueue_gym.workloads.encoder import TextEncoder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--agent", default="LinUCB")
    parser.add_argument("--think", type=float, default=0.0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    texts = [f"{' '.join(rng.choice(WORDS, 12))} {i}" for i in range(4000)]
    problem = QueueProblem(LLMS, 1, DIM, 1, 1.0, arguments.requests)
    agent = make_agent(arguments.agent, problem, 0)
    agent.encoder = TextEncoder(texts, DIM)
    names = [f"maker/llm-{j}" for j in range(LLMS)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        router = LearningRouter(
            agent, names, "auto", state=Path(folder) / "state", timeout_ms=10_000.0
        )
        done, most = 0, 1000
        while done < arguments.requests:
            last = min(most, arguments.requests)
            cpu = time.process_time()
            waited = asyncio.run(serve(router, done, last, texts, arguments.think))
            router.settle()
            cpu = 1e3 * (time.process_time() - cpu) / len(waited)
            low, median, high = (1e3 * np.quantile(waited, (0.05, 0.5, 0.95))).tolist()
            disk = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
            print(
                f"requests {done:,} to {last:,}: processor time {cpu:.2f} ms a request with its "
                f"answer; waited {median:.2f} ms at the median, 5% {low:.2f}, 95% {high:.2f}; "
                f"resident {resident():,.0f} MB, state {disk:.1f} MB; "
                f"{dict(router.counts)}, {router.router.shared.learned.answers:,} learned",
                flush=True,
            )
            done, most = last, 10 * most


if __name__ == "__main__":
    main()
