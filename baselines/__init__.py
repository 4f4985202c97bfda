"""Baseline agents: they see observations, rewards and public parameters, never the truth.

Importing this package registers the names; an agent's module is imported when it is made.
"""

from baselines.agent import (
    Agent,
    AgentSpec,
    QueueProblem,
    agent_spec,
    make_agent,
    register,
    registered_agents,
)

__all__ = [
    "Agent",
    "AgentSpec",
    "QueueProblem",
    "agent_spec",
    "make_agent",
    "register",
    "registered_agents",
]

_QUEUE = "baselines.queueing"
_ACQB = "Bae, Son, Lee: arXiv 2602.02061"
_CQB = "Bae, Kang, Lee: ICLR 2026, arXiv 2601.19300"
_QUCB = "Krishnasamy et al.: Operations Research 2021"

register("random", f"{_QUEUE}.heuristics:RandomAgent", "lower bound of every table")
for _schedule, _routing in (
    ("fifo", "best-mean"),
    ("lifo", "best-mean"),
    ("most-retried", "best-mean"),
    ("fifo", "round-robin"),
):
    register(
        f"{_schedule}-{_routing}",
        f"{_QUEUE}.heuristics:Scheduled",
        "heuristic",
        schedule=_schedule,
        routing=_routing,
    )
register("Q-UCB", f"{_QUEUE}.qucb:QUCB", _QUCB)
register("Q-ThS", f"{_QUEUE}.qucb:QThS", _QUCB)
register("LinUCB", f"{_QUEUE}.linear:LinUCB", "Li et al.: WWW 2010")
register("LinTS", f"{_QUEUE}.linear:LinTS", "Agrawal, Goyal: ICML 2013")
register("greedy", f"{_QUEUE}.mle:GreedyMLE", "greedy on the ridge MNL estimate")
register("eps-greedy", f"{_QUEUE}.mle:GreedyMLE", "greedy with exploration", epsilon=0.01)
register("CQB-eps", f"{_QUEUE}.mle:CQBEps", _CQB)
register("CQB-Opt", f"{_QUEUE}.mle:CQBOpt", _CQB)
register("CQB-eta-2", f"{_QUEUE}.mle:CQBEta2", "arXiv 2606.09668")
register("OFU-MNL+", f"{_QUEUE}.ofu_mnl:OFUMNLPlus", "Lee, Oh: NeurIPS 2024")
register("ACQB", f"{_QUEUE}.acqb:ACQB", _ACQB)
register("ACQB-OMD", f"{_QUEUE}.acqb:ACQB", _ACQB, estimator="omd")
register("paretobandit", f"{_QUEUE}.paretobandit:ParetoBanditRouter", "PyPI package paretobandit")
