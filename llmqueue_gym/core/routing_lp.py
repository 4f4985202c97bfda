"""Old path of `llmqueue_gym.deployment.routing`."""

from llmqueue_gym.deployment.routing import *  # noqa: F403
