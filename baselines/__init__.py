"""Baseline agents: they see observations, rewards and public parameters, never the truth.

A name stands beside its class; `baselines.registry` finds it there when it is asked for.
"""

from baselines.interface import (
    Agent,
    AgentSpec,
    DeployAgent,
    DeployProblem,
    QueueProblem,
    ServeProblem,
)
from baselines.registry import agent_spec, make_agent, register, registered_agents
from baselines.saving import load_agent

__all__ = [
    "Agent",
    "AgentSpec",
    "DeployAgent",
    "DeployProblem",
    "QueueProblem",
    "ServeProblem",
    "agent_spec",
    "load_agent",
    "make_agent",
    "register",
    "registered_agents",
]
