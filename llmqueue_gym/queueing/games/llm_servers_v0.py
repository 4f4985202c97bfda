"""llm_servers_v0: every LLM bids for the waiting query, as a parallel game on LLMQueue-v0.

A decentralised platform: no router, but servers that know what an answer is worth to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from llmqueue_gym import checks
from llmqueue_gym.adapters.pettingzoo import (
    AECEnv,
    ParallelEnv,
    Spaces,
    Views,
    described,
    parallel_to_aec,
    parallel_to_aec_wrapper,
)
from llmqueue_gym.queueing.dynamics import FIRST_LLM
from llmqueue_gym.queueing.env import LLMQueueEnv
from llmqueue_gym.queueing.games.parallel import QueueGame
from llmqueue_gym.queueing.task import MAX_COUNT
from llmqueue_gym.vector import Ints, Observation

REWARDS = ("self_interested", "shared")


def head(observation: Observation) -> int:
    """Return the head of the queue."""
    return 0


def tail(observation: Observation) -> int:
    """Return the last visible slot with a query."""
    return max(int(observation["waiting"].sum()) - 1, 0)


def most_retried(observation: Observation) -> int:
    """Return the slot of the most retried query, nearest the head among equals."""
    return int(observation["retrials"].argmax())


SCHEDULES: dict[str, Callable[[Observation], int]] = {
    "fifo": head,
    "lifo": tail,
    "most-retried": most_retried,
}
"""Which window slot is auctioned."""


class LLMServersParallelEnv(QueueGame, ParallelEnv):  # type: ignore[misc]  # PettingZoo has no types
    """LLM servers bid to answer the waiting query; users who are not satisfied retry.

    ## Description

    The queue, the users and the draws are those of `llmqueue_gym.envs.LLMQueueEnv`. In every slot
    one waiting query is auctioned, by default the head of the queue. Every LLM is a server that
    sees the query and bids; the K highest bids are shown to the user, ties to the lower index. The
    user keeps one of the answers and leaves, or retries and joins the tail again.

    The auction is ours; its price rule is Vickrey's (1961) for K equal goods and buyers who want
    one each. Every shown server pays the highest bid that was not shown, p (0 if N = K), and a kept
    answer is worth 1. So a bid is a claim about P(kept), and were that chance independent of who
    else is shown, bidding it would be the best a server can do in a slot. With multinomial logit
    users it is not: each server shown takes users from the others, and a retrial, which costs the
    provider a slot, costs the servers nothing. How far selfish servers lengthen the queue is the
    question the game asks; ``reward="shared"`` is the cooperative counterpart.

    The game plays LLMQueue-v0 with the action [auctioned slot, K highest bidders]: the same bids
    give the same trajectory, and every assortment of K different LLMs can be bid for. A slot costs
    O(N (d + L)): every server gets arrays of its own.

    ## Agents

    ``server_0`` .. ``server_{N-1}``, one per LLM, in the order of ``env.unwrapped.llms``.

    ## Action Spaces

    ``Discrete(L)``: action a bids a / (L - 1), with L = ``bid_levels``. Discrete bids suit every
    algorithm and can be masked.

    ## Observation Spaces

    ``Dict`` of ``action_mask``, int8 of length L, which leaves only bid 0 while nobody waits, and
    ``observation``, a ``Dict``; entries of the query are 0 while nobody waits:

    | Key | Shape | Type | Meaning | Min | Max |
    |-----|-------|------|---------|-----|-----|
    | context | (d,) | float32 | context of the auctioned query | -3.4e38 | 3.4e38 |
    | retrials | (1,) | float32 | times its user has retried | 0 | 2^24 |
    | age | (1,) | float32 | slots since its arrival | 0 | 2^24 |
    | wait | (1,) | float32 | slots since it joined the tail | 0 | 2^24 |
    | queue_length | (1,) | float32 | waiting queries | 0 | 2^24 |
    | feedback | () | int64 | last slot, 0: nothing served, 1: retried, 2 + j: LLM j kept | 0 | N + 1 |
    | shown | () | int64 | 1: this server was shown in the last slot | 0 | 1 |
    | price | (1,) | float32 | p of the last slot, 0 if nobody was served | 0 | 1 |

    A server sees the auction's result, not the other servers' bids. With ``flat_observation`` the
    observation is one float32 vector, and the mask is in ``infos[agent]["action_mask"]``.
    ``state()`` is LLMQueue-v0's observation as such a vector, with ``price`` and ``shown`` (N,).

    ## Rewards

    | reward | Meaning |
    |--------|---------|
    | "self_interested" | shown: 1 if this server's answer is kept, else 0, minus p; not shown: 0 |
    | "shared" | minus the queries that wait after the slot, the same for all |

    Self-interested rewards add up to 1 per departure, minus K p.

    ## Episode End

    Never terminates; truncated for all servers after ``max_episode_steps``.

    ## Information

    ``arrived``, ``served``, ``departed``, ``retried`` (bool), ``kept_llm`` (index or -1),
    ``queue_length`` (int), as in LLMQueue-v0, ``shown`` (bool, this server) and ``price`` (p).
    After a reset the same keys.

    ## Arguments

    | Name | Default | Meaning |
    |------|---------|---------|
    | reward | "self_interested" | or "shared" |
    | schedule | "fifo" | query that is auctioned: the head, "lifo": the tail of the window, "most-retried": the most retried, nearest the head among equals |
    | bid_levels | 11 | bids a server can choose from, L |
    | max_episode_steps | 5000 | slots of an episode |
    | max_cycles | None | PettingZoo's name for it; wins |
    | render_mode | None | "human" (a window), "rgb_array" or "ansi" |
    | flat_observation | False | observe one float32 vector |
    | **kwargs | | other arguments of `LLMQueueEnv` |

    ```python
    >>> from llmqueue_gym.multi_agent import llm_servers_v0
    >>> env = llm_servers_v0.parallel_env(num_llms=3, assortment_size=1, arrival_rate=1.0)
    >>> observations, infos = env.reset(seed=0)
    >>> observations, *_ = env.step({"server_0": 0, "server_1": 0, "server_2": 0})
    >>> observations, rewards, _, _, infos = env.step({"server_0": 4, "server_1": 9, "server_2": 5})
    >>> [bool(infos[agent]["shown"]) for agent in env.agents], float(infos["server_1"]["price"])
    ([False, True, False], 0.5)
    >>> rewards["server_1"] == float(infos["server_1"]["departed"]) - 0.5
    True

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    metadata = described(LLMQueueEnv, "llm_servers_v0", parallel=True)

    played = LLMQueueEnv

    def __init__(
        self,
        reward: str = "self_interested",
        schedule: str = "fifo",
        bid_levels: int = 11,
        **kwargs: Any,
    ) -> None:
        self._is_shared = checks.choice("reward", reward, REWARDS) == "shared"
        self._schedule = SCHEDULES[checks.choice("schedule", schedule, tuple(SCHEDULES))]
        self._top_level = checks.count("bid_levels", bid_levels, minimum=2) - 1
        super().__init__(**kwargs)
        self._forget()

    def _cast(self, single: LLMQueueEnv) -> tuple[Spaces, Spaces, Spaces]:
        num_llms, observed = len(single.llms), _observation_space(single)
        actions = {f"server_{j}": spaces.Discrete(self._top_level + 1) for j in range(num_llms)}
        public = {"price": observed["price"], "shown": spaces.MultiBinary(num_llms)}
        return dict.fromkeys(actions, observed), actions, public

    def _forget(self) -> None:
        """Forget the last auction."""
        self._shown = np.zeros(len(self.possible_agents), dtype=np.bool_)
        self._price = 0.0

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Empty the queue and start the streams of the episode, as LLMQueue-v0 does."""
        self._forget()
        return super().reset(seed, options)

    def _joint_action(self, actions: dict[str, Ints]) -> list[int]:
        """Hold the auction."""
        bids = np.array([int(actions[agent]) for agent in self.possible_agents])
        ranking = np.argsort(-bids, kind="stable")  # ties to the lower index
        winners, losers = np.split(ranking, [self.dynamics.assortment_size])
        self._forget()
        if self._seen["waiting"][0]:
            self._shown[winners] = True
            self._price = bids[losers].max(initial=0).item() / self._top_level
        return [self._schedule(self._seen), *winners.tolist()]

    def _rewards(self, reward: float, info: dict[str, Any]) -> dict[str, float]:
        if self._is_shared:
            return super()._rewards(reward, info)
        return {
            agent: float(llm == info["kept_llm"]) - self._price * float(shown)
            for llm, (agent, shown) in enumerate(zip(self.agents, self._shown, strict=True))
        }

    def _own(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        price = np.float64(self._price)
        return {
            agent: info | {"price": price, "shown": shown}
            for agent, shown in zip(self.possible_agents, self._shown, strict=True)
        }

    def _public(self) -> Observation:
        return {"price": np.array([self._price]), "shown": self._shown}

    def _views(self) -> Views:
        seen = self._seen
        slot = self._schedule(seen)
        public: Observation = {
            "context": seen["contexts"][slot],
            "queue_length": seen["queue_length"],
            "feedback": seen["feedback"],
            "price": np.array([self._price], dtype=np.float32),
        }
        for key in ("retrials", "age", "wait"):
            public[key] = seen[key][slot : slot + 1]
        mask = np.full(self._top_level + 1, seen["waiting"][0])
        mask[0] = 1
        return {
            agent: (public | {"shown": shown}, mask)
            for agent, shown in zip(self.possible_agents, self._shown.astype(np.int64), strict=True)
        }


def _observation_space(single: LLMQueueEnv) -> spaces.Dict:
    """Return the space of what a server sees."""
    largest = float(np.finfo(np.float32).max)
    count = spaces.Box(0.0, MAX_COUNT, (1,), np.float32)
    return spaces.Dict(
        {
            "context": spaces.Box(-largest, largest, (single.dynamics.context_dim,), np.float32),
            "retrials": count,
            "age": count,
            "wait": count,
            "queue_length": count,
            "feedback": spaces.Discrete(FIRST_LLM + len(single.llms)),
            "shown": spaces.Discrete(2),
            "price": spaces.Box(0.0, 1.0, (1,), np.float32),
        }
    )


def parallel_env(**kwargs: Any) -> LLMServersParallelEnv:
    """Make the parallel game; arguments of `LLMServersParallelEnv`."""
    return LLMServersParallelEnv(**kwargs)


def raw_env(**kwargs: Any) -> AECEnv:
    """Make the game with servers bidding in turn, without PettingZoo's checks of the order."""
    return parallel_to_aec_wrapper(parallel_env(**kwargs))


def env(**kwargs: Any) -> AECEnv:
    """Make the game with servers bidding in turn; arguments of `LLMServersParallelEnv`."""
    return parallel_to_aec(parallel_env(**kwargs))
