"""What both problems share: choices of users, coupled streams of draws, the routing programme.

The dynamics stand in `llmqueue_gym.queueing` and `llmqueue_gym.deployment`.
"""
