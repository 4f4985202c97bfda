"""Time that the router adds to a request of LiteLLM, and what grows with the number of requests.

python -m benchmarks.measure.litellm [--requests 100000]: 20 LLMs, contexts of 128 numbers, 64
requests at a time; the rest of LiteLLM is left out, so the figures are the router's own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from baselines.interface import QueueProblem
from baselines.registry import make_agent

LLMS, DIM, AT_ONCE = 20, 128, 64
WORDS = [
    "poem",
    "rain",
    "proof",
    "prime",
    "python",
    "loop",
    "river",
    "song",
    "theorem",
    "class",
    "integral",
    "verse",
]


async def serve(router: Any, requests: int, texts: list[str], think: float) -> list[float]:
    """Return the seconds that every choice took; callers wait ``think`` seconds for an answer."""
    deployments = [{"litellm_params": {"model": llm}} for llm in router.router.llms]
    taken: list[float] = []

    async def caller(first: int) -> None:
        for i in range(first, requests, AT_ONCE):
            metadata: dict[str, Any] = {"session_id": f"s{i // 2 % 5000}"}
            request: dict[str, Any] = {"metadata": metadata, "model": "auto"}
            messages = [{"role": "user", "content": texts[i % len(texts)]}]
            start = time.perf_counter()
            left = await router.async_filter_deployments("auto", deployments, messages, request)
            taken.append(time.perf_counter() - start)
            metadata["deployment"] = left[0]["litellm_params"]["model"]
            answered = {"litellm_params": {"metadata": metadata}, "response_cost": 0.001}
            await router.async_log_success_event(answered, None, None, None)
            await asyncio.sleep(think)

    await asyncio.gather(*(caller(first) for first in range(AT_ONCE)))
    return taken


def main() -> None:
    """Print the figures."""
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
    encoder = TextEncoder(texts, DIM)
    problem = QueueProblem(LLMS, 1, DIM, 1, 1.0, arguments.requests)
    agent = make_agent(arguments.agent, problem, 0)
    agent.encoder = encoder
    names = [f"maker/llm-{j}" for j in range(LLMS)]
    with tempfile.TemporaryDirectory() as folder:
        router = LearningRouter(
            agent, names, "auto", state=Path(folder) / "state", timeout_ms=10_000.0
        )
        for part in range(5):
            start, cpu = time.perf_counter(), time.process_time()
            taken = asyncio.run(serve(router, arguments.requests // 5, texts, arguments.think))
            seconds = time.perf_counter() - start
            router.settle()
            cpu = 1e3 * (time.process_time() - cpu) / len(taken)
            low, median, high = (1e3 * np.quantile(taken, (0.05, 0.5, 0.95))).tolist()
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            disk = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
            print(
                f"requests {part * len(taken):,} to {(part + 1) * len(taken):,}: median "
                f"{median:.2f} ms, 5% {low:.2f}, 95% {high:.2f}; CPU {cpu:.2f} ms a request with "
                f"its answer; {len(taken) / seconds:,.0f} a second; memory {memory:,.0f} MB at "
                f"most, state {disk:.1f} MB; "
                f"{dict(router.counts)}, {router.router.shared.learned.answers:,} learned"
            )


if __name__ == "__main__":
    main()
