"""llmqueue_gym: Gymnasium environments for routing, scheduling and deploying LLMs.

Importing the package registers its environments with Gymnasium.
"""

from llmqueue_gym.moved import MOVED, keep_old_paths
from llmqueue_gym.registration import register_all

__version__ = "0.1.0"

keep_old_paths(__name__, MOVED)
register_all()
