"""Policies and bounds that know the truth; agents never see what is used here."""

from llmqueue_gym.oracles.queueing import ExactOptimum, MyopicOracle, OptimalPolicy, capacity

__all__ = ["ExactOptimum", "MyopicOracle", "OptimalPolicy", "capacity"]
