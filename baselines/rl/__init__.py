"""Reinforcement learning: recipes for Stable-Baselines3, training, and trained agents.

Importing this package needs the extra ``rl``. A model in a minute, and how it plays::

    from baselines import make_agent
    from baselines.rl import train

    task = {"load": 0.9, "instance_seed": 0}
    train("MaskablePPO", "LLMQueue-v0", task, steps=200_000, out="mine.zip")
    agent = make_agent("mine.zip", problem, seed=0)

On the command line the file is an agent like any other: ``--agent mine.zip``, or by its name alone,
``--agent mine``, where it lies in the folder ``models``. ``llmqueue-bench train`` writes it there.
"""

from llmqueue_gym.errors import needing

with needing("baselines.rl", "Stable-Baselines3 and sb3-contrib", "rl"):
    import sb3_contrib  # noqa: F401
    import stable_baselines3  # noqa: F401

from baselines.models import read_card
from baselines.rl.agents import TrainedDeployAgent, TrainedQueueAgent, TrainedServeAgent
from baselines.rl.recipes import RECIPES, Recipe, recipe
from baselines.rl.training import Progress, train

__all__ = [
    "RECIPES",
    "Progress",
    "Recipe",
    "TrainedDeployAgent",
    "TrainedQueueAgent",
    "TrainedServeAgent",
    "read_card",
    "recipe",
    "train",
]
