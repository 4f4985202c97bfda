"""The benchmark: tasks x agents x seeds -> stored cells -> leaderboard.

``llmqueue-bench`` is the command. ``plan`` says what is run, ``run`` runs and stores it, ``score``
makes a board of it, ``report`` writes that; ``problems`` holds what differs between problems.
"""

from benchmarks.moved import MOVED
from llmqueue_gym.moved import keep_old_paths

keep_old_paths(__name__, MOVED)
