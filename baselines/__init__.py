"""Baseline agents: they see observations, rewards and public parameters, never the truth.

Importing this package registers the names; an agent's module is imported when it is made.
"""

from baselines.agent import (
    Agent,
    AgentSpec,
    DeployAgent,
    DeployProblem,
    QueueProblem,
    agent_spec,
    make_agent,
    register,
    registered_agents,
)

__all__ = [
    "Agent",
    "AgentSpec",
    "DeployAgent",
    "DeployProblem",
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
register("CQB-eps", f"{_QUEUE}.acqb:CQBEps", f"authors' repository of {_ACQB}")
register("CQB-eps-ucb", f"{_QUEUE}.mle:CQBEpsUCB", f"(R) {_CQB}")
register("CQB-Opt", f"{_QUEUE}.mle:CQBOpt", _CQB)
register("CQB-eta-2", f"{_QUEUE}.mle:CQBEta2", "arXiv 2606.09668")
register("OFU-MNL+", f"{_QUEUE}.ofu_mnl:OFUMNLPlus", "Lee, Oh: NeurIPS 2024")
register("ACQB", f"{_QUEUE}.acqb:ACQB", _ACQB)
register("ACQB-OMD", f"{_QUEUE}.acqb:ACQB", _ACQB, estimator="omd")
_OFFLINE = "trained on the workload's offline split, then frozen"
for _predictor in ("knn", "ridge", "logistic", "boosting"):
    register(
        f"offline-{_predictor}", f"{_QUEUE}.offline:OfflineRouter", _OFFLINE, predictor=_predictor
    )
register("ACQB-CL", f"{_QUEUE}.contrastive:ACQBCL", _ACQB)
register("paretobandit", f"{_QUEUE}.paretobandit:ParetoBanditRouter", "package paretobandit")

# Reinforcement learning inside the scored run; what is trained before it comes from a model file.
_SB3 = "Stable-Baselines3"
register("DQN-online", "baselines.rl.online:OnlineDQN", f"{_SB3}, learns in the run")
register("PPO-online", "baselines.rl.online:OnlinePPO", f"{_SB3} (MaskablePPO), learns in the run")

# Deployment agents -----------------------------------------------------------------------------
_DEPLOY = "baselines.deployment"
_STAGEROUTE = "Li, Li: ICLR 2026, arXiv 2506.17254"
_STAGEROUTE_OURS = f"ours, after {_STAGEROUTE}"

register("StageRoute", f"{_DEPLOY}.stageroute:StageRoute", _STAGEROUTE)
register("StageRoute-theory", f"{_DEPLOY}.stageroute:StageRoute", _STAGEROUTE, gamma=None)
register("StageRoute-stage-counts", f"{_DEPLOY}.stageroute:StageRoute", _STAGEROUTE, counts="stage")
register("StageRoute-paced", f"{_DEPLOY}.stageroute:StageRoute", _STAGEROUTE_OURS, paced=True)
register("price-aware", f"{_DEPLOY}.price_aware:PriceAware", _STAGEROUTE_OURS)
register("price-aware-paced", f"{_DEPLOY}.price_aware:PriceAware", _STAGEROUTE_OURS, paced=True)
register("contextual-StageRoute", f"{_DEPLOY}.contextual:ContextualStageRoute", _STAGEROUTE_OURS)
register("top-UCB", f"{_DEPLOY}.stageroute:TopUCB", "heuristic")
register("ratio", f"{_DEPLOY}.stageroute:Ratio", "heuristic")
register("uniform", f"{_DEPLOY}.simple:Uniform", "lower bound of every table")
register("static", f"{_DEPLOY}.simple:Static", "heuristic")
register("epsilon-first", f"{_DEPLOY}.simple:EpsilonFirst", "heuristic")
register("TS", f"{_DEPLOY}.simple:ThompsonSampling", "Agrawal, Goyal: COLT 2012")
register(
    "PrimalDualBwK",
    f"{_DEPLOY}.knapsacks:PrimalDualBwK",
    "Badanidiyuru, Kleinberg, Slivkins: JACM 2018",
)
register("UCB-BwK", f"{_DEPLOY}.knapsacks:UCBBwK", "Agrawal, Devanur: EC 2014")
register(
    "LagrangeBwK",
    f"{_DEPLOY}.knapsacks:LagrangeBwK",
    "Immorlica, Sankararaman, Schapire, Slivkins: JACM 2022",
)
register("ParetoBandit", f"{_DEPLOY}.paretobandit:ParetoBandit", "arXiv 2604.00136")
register(
    "paretobandit-router",
    f"{_DEPLOY}.paretobandit:ParetoBanditPackage",
    "package paretobandit",
)
