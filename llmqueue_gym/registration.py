"""Every environment id of the package, in one table."""

from __future__ import annotations

import gymnasium as gym

QUEUE_EPISODE_STEPS = 5000
"""Slots of an episode of LLMQueue-v0 where nobody says otherwise."""

SERVE_EPISODE_STEPS = 5000
"""Slots of an episode of LLMServe-v0 where nobody says otherwise."""

ENVIRONMENTS: dict[str, dict[str, object]] = {
    "LLMQueue-v0": {
        "entry_point": "llmqueue_gym.queueing.env:LLMQueueEnv",
        "vector_entry_point": "llmqueue_gym.queueing.env:LLMQueueVectorEnv",
        "max_episode_steps": QUEUE_EPISODE_STEPS,
    },
    "LLMServe-v0": {
        "entry_point": "llmqueue_gym.serving.env:LLMServeEnv",
        "vector_entry_point": "llmqueue_gym.serving.env:LLMServeVectorEnv",
        "max_episode_steps": SERVE_EPISODE_STEPS,
    },
    # The deployment environments truncate themselves, after T queries or K stages, and say so in
    # the spec of an environment: both are arguments.
    "LLMDeploy-v0": {
        "entry_point": "llmqueue_gym.deployment.env:LLMDeployEnv",
        "vector_entry_point": "llmqueue_gym.deployment.env:LLMDeployVectorEnv",
    },
    "LLMDeployStage-v0": {
        "entry_point": "llmqueue_gym.deployment.stage_env:LLMDeployStageEnv",
    },
}

VECTOR_REWARDS: dict[str, dict[str, object]] = {
    "LLMDeployMO-v0": {
        "entry_point": "llmqueue_gym.deployment.env_mo:LLMDeployMOEnv",
        "disable_env_checker": True,  # it asks for a number as the reward
    },
}
"""Environments for MO-Gymnasium, whose rewards are vectors."""


def register_all() -> None:
    """Register the environments with Gymnasium; a second call changes nothing."""
    for env_id, spec in (ENVIRONMENTS | VECTOR_REWARDS).items():
        if env_id not in gym.registry:
            gym.register(id=env_id, **spec)  # type: ignore[arg-type]
