"""The environments' classes; they stand beside their problems."""

from llmqueue_gym.deployment.env import LLMDeployEnv, LLMDeployVectorEnv
from llmqueue_gym.deployment.env_mo import LLMDeployMOEnv
from llmqueue_gym.deployment.stage_env import LLMDeployStageEnv
from llmqueue_gym.queueing.env import LLMQueueEnv, LLMQueueVectorEnv

__all__ = [
    "LLMDeployEnv",
    "LLMDeployMOEnv",
    "LLMDeployStageEnv",
    "LLMDeployVectorEnv",
    "LLMQueueEnv",
    "LLMQueueVectorEnv",
]
