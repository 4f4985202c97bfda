"""The problems as PettingZoo games: several learners over the cores of the Gymnasium environments.

Each module has PettingZoo's functions ``env`` and ``raw_env``, the parallel ones ``parallel_env``.
This is their door; a game stands beside its problem.
"""

from llmqueue_gym.deployment.games import llm_deploy_v0
from llmqueue_gym.queueing.games import llm_queue_v0, llm_servers_v0
from llmqueue_gym.serving.games import llm_serve_v0

__all__ = ["llm_deploy_v0", "llm_queue_v0", "llm_serve_v0", "llm_servers_v0"]
