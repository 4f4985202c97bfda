"""The old home of `llmqueue_gym.queueing.dynamics`."""

from llmqueue_gym.queueing.dynamics import *  # noqa: F403
