"""Exact solvers of the two budgeted linear programmes of LLM deployment.

RouteOPT shares the traffic among deployed LLMs; DeployOPT picks which LLMs to deploy.
"""

from llmqueue_gym.deployment.routing.deploy import DeploySolution, deploy_opt
from llmqueue_gym.deployment.routing.route import (
    FEASIBILITY_TOL,
    RouteOpt,
    RouteSolution,
    Status,
    route_opt,
)

__all__ = [
    "FEASIBILITY_TOL",
    "DeploySolution",
    "RouteOpt",
    "RouteSolution",
    "Status",
    "deploy_opt",
    "route_opt",
]
