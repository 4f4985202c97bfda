"""A gateway of the real LiteLLM with the router in it; only where LiteLLM is installed."""

import asyncio

import litellm

from baselines.interface import QueueProblem
from baselines.registry import make_agent
from llmqueue_gym.live.litellm import LearningRouter

LLMS = ("openai/small", "openai/large", "openai/coder")


def learning(encoder, name="LinUCB", llms=LLMS, **settings):
    agent = make_agent(name, QueueProblem(len(llms), 1, 8, 1, 1.0, 10_000), 0)
    agent.encoder = encoder
    return LearningRouter(agent, llms, "auto", **{"timeout_ms": 60_000.0, "seed": 0} | settings)


def gateway(server, *callbacks, llms=LLMS, copies=1, **settings):
    params = {
        "api_base": f"http://127.0.0.1:{server.server_port}/v1",
        "api_key": "none",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 1e-6,
    }
    models = [
        {"model_name": "auto", "litellm_params": {"model": llm, "timeout": 30 + i, **params}}
        for llm in llms
        for i in range(copies)
    ]
    litellm.callbacks = list(callbacks)
    return litellm.Router(models, num_retries=0, **settings)


def ask(router, text, **request):
    message = {"role": "user", "content": text}
    return router.acompletion(model="auto", messages=[message], **request)


def run(coroutine):
    async def whole():
        found = await coroutine
        await settled()
        return found

    return asyncio.run(whole())


async def settled():
    """Wait until LiteLLM has run the callbacks of what was answered."""
    await litellm.litellm_core_utils.logging_worker.GLOBAL_LOGGING_WORKER.flush()
    await asyncio.sleep(0.05)
