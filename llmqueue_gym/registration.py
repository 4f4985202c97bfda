"""Every environment id of the package, in one table."""

from __future__ import annotations

import gymnasium as gym

ENVIRONMENTS: dict[str, dict[str, object]] = {
    "LLMQueue-v0": {
        "entry_point": "llmqueue_gym.envs.llm_queue:LLMQueueEnv",
        "vector_entry_point": "llmqueue_gym.envs.llm_queue:LLMQueueVectorEnv",
        "max_episode_steps": 5000,
    },
    # The deployment environments truncate themselves after T queries.
    "LLMDeploy-v0": {
        "entry_point": "llmqueue_gym.envs.llm_deploy:LLMDeployEnv",
        "vector_entry_point": "llmqueue_gym.envs.llm_deploy:LLMDeployVectorEnv",
    },
    "LLMDeployStage-v0": {
        "entry_point": "llmqueue_gym.envs.llm_deploy:LLMDeployStageEnv",
    },
}


def register_all() -> None:
    """Register the environments with Gymnasium; a second call changes nothing."""
    for env_id, spec in ENVIRONMENTS.items():
        if env_id not in gym.registry:
            gym.register(id=env_id, **spec)  # type: ignore[arg-type]
