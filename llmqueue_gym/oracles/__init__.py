"""Policies and bounds that know the truth; agents never see what is used here.

They stand beside their problems.
"""

from llmqueue_gym.deployment.oracles import (
    LedgerBound,
    LedgerOracle,
    PerQueryOracle,
    StagedOracle,
    fluid_values,
    ledger_bound,
    staged_value,
    static_value,
)
from llmqueue_gym.queueing.oracles import (
    ExactOptimum,
    MyopicOracle,
    OptimalPolicy,
    capacity,
    optimal_queue_length,
)

__all__ = [
    "ExactOptimum",
    "LedgerBound",
    "LedgerOracle",
    "MyopicOracle",
    "OptimalPolicy",
    "PerQueryOracle",
    "StagedOracle",
    "capacity",
    "fluid_values",
    "ledger_bound",
    "optimal_queue_length",
    "staged_value",
    "static_value",
]
