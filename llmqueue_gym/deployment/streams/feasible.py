"""Whether some deployment can serve all traffic within the budget."""

from __future__ import annotations

import numpy as np

from llmqueue_gym.deployment.instance import DeploymentInstance
from llmqueue_gym.deployment.routing import deploy_opt
from llmqueue_gym.deployment.rules import DeploymentRules
from llmqueue_gym.deployment.streams.stream import Floats

UNSERVED = ("under_capacity", "nobody_there")
"""Verdicts of `stage_verdicts` for a stage in which no policy can serve all traffic."""


def verdict(cost: Floats, alpha: Floats, rules: DeploymentRules) -> str:
    """Whether some deployment of these LLMs serves all traffic within the budget."""
    if not len(cost):
        return "nobody_there"
    # Maximising -cost finds the cheapest mixture.
    return deploy_opt(-cost, cost, alpha, rules.budget, rules.max_deployed).status


def stage_verdicts(instance: DeploymentInstance, rules: DeploymentRules) -> list[str]:
    """Per stage: ``"optimal"`` if a mixture within the budget exists.

    Otherwise ``"over_budget"``, ``"under_capacity"`` (the alpha of the best M_max LLMs that are
    there sum to less than 1) or ``"nobody_there"``.
    """
    verdicts: dict[tuple[bytes, int], str] = {}
    found = []
    for start in rules.stage_starts:
        there = instance.available(int(start))
        regime = int((instance.change_query <= start).sum()) - 1
        key = there.tobytes(), regime
        if key not in verdicts:
            cost, alpha = instance.mean_cost[regime, there], np.array(rules.alpha)[there]
            verdicts[key] = verdict(cost, alpha, rules)
        found.append(verdicts[key])
    return found
