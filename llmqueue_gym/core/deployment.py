"""Old path of `llmqueue_gym.deployment`."""

from llmqueue_gym.deployment.dynamics import *  # noqa: F403
from llmqueue_gym.deployment.instance import *  # noqa: F403
from llmqueue_gym.deployment.lanes import *  # noqa: F403
from llmqueue_gym.deployment.rules import *  # noqa: F403
