"""What both problems share: choices of users and coupled streams of draws; old import paths.

The dynamics stand in `llmqueue_gym.queueing` and `llmqueue_gym.deployment`.
"""
