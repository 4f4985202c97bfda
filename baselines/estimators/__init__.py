"""Estimators shared by the agents: ridge likelihoods, mirror descent, confidence, query effects.

Each learns one parameter vector per LLM from contexts and the answers users kept.
"""

from baselines.estimators.confidence import ConfidenceFactors
from baselines.estimators.linear import RidgeRegression
from baselines.estimators.mirror_descent import OnlineMirrorDescentMNL
from baselines.estimators.query_effects import QueryEffects
from baselines.estimators.ridge_mnl import RidgeMNL

__all__ = [
    "ConfidenceFactors",
    "OnlineMirrorDescentMNL",
    "QueryEffects",
    "RidgeMNL",
    "RidgeRegression",
]
