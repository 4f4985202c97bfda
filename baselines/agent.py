"""The earlier path of `baselines.interface` and `baselines.registry`; it keeps working."""

from baselines.interface import *  # noqa: F403
from baselines.registry import *  # noqa: F403
