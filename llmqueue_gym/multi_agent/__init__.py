"""The problems as PettingZoo games: several learners over the cores of the Gymnasium environments.

Each module has PettingZoo's functions ``env`` and ``raw_env``, the parallel ones ``parallel_env``.
"""

from llmqueue_gym.errors import MissingPackageError

try:
    import pettingzoo  # type: ignore[import-untyped]  # noqa: F401 - a clear error if absent
except ModuleNotFoundError as error:
    raise MissingPackageError(
        'llmqueue_gym.multi_agent needs PettingZoo: pip install "llmqueue_gym[marl]"'
    ) from error

from llmqueue_gym.multi_agent import llm_deploy_v0, llm_queue_v0, llm_servers_v0

__all__ = ["llm_deploy_v0", "llm_queue_v0", "llm_servers_v0"]
