"""Reinforcement learning: recipes for Stable-Baselines3, training, and trained agents.

Importing this package needs the extra ``rl``. A model in a minute, and how it plays::

    from baselines import make_agent
    from baselines.rl import train, trained_agent

    task = {"load": 0.9, "instance_seed": 0}
    train("MaskablePPO", "LLMQueue-v0", task, steps=200_000, out="mine.zip")
    name, settings = trained_agent("mine.zip")
    agent = make_agent(name, problem, seed=0, **settings)

On the command line a subclass with the file's name is an agent like any other::

    class Mine(TrainedQueueAgent):  # in mymodule.py: --agent mymodule:Mine
        model = "mine.zip"
"""

try:
    import sb3_contrib  # noqa: F401
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError(
        'baselines.rl needs Stable-Baselines3 and sb3-contrib: pip install "llmqueue_gym[rl]"'
    ) from error

from baselines.rl.agents import TrainedDeployAgent, TrainedQueueAgent, trained_agent
from baselines.rl.recipes import RECIPES, Recipe, recipe
from baselines.rl.training import Progress, read_card, train

__all__ = [
    "RECIPES",
    "Progress",
    "Recipe",
    "TrainedDeployAgent",
    "TrainedQueueAgent",
    "read_card",
    "recipe",
    "train",
    "trained_agent",
]
