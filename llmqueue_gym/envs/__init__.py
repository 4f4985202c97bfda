"""Gymnasium environments over the core dynamics, scalar and vector twin in one file."""

from llmqueue_gym.envs.llm_queue import LLMQueueEnv, LLMQueueVectorEnv

__all__ = ["LLMQueueEnv", "LLMQueueVectorEnv"]
