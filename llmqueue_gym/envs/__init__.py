"""Gymnasium environments over the core dynamics, scalar and vector twin in one file."""

from llmqueue_gym.envs.llm_deploy import LLMDeployEnv, LLMDeployStageEnv, LLMDeployVectorEnv
from llmqueue_gym.envs.llm_deploy_mo import LLMDeployMOEnv
from llmqueue_gym.envs.llm_queue import LLMQueueEnv, LLMQueueVectorEnv

__all__ = [
    "LLMDeployEnv",
    "LLMDeployMOEnv",
    "LLMDeployStageEnv",
    "LLMDeployVectorEnv",
    "LLMQueueEnv",
    "LLMQueueVectorEnv",
]
