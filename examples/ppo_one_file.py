"""PPO in one file: network, training loop and evaluation, on the native vector environment.

Run it with ``python examples/ppo_one_file.py``; it needs torch, but no Stable-Baselines3.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import llmqueue_gym  # noqa: F401 - registers the environments
from llmqueue_gym.adapters.wrappers import DiscreteActionsVector

TASK: dict[str, Any] = {
    "load": 0.9,
    "instance_seed": 0,
}  # one instance: what was learned stays true
Observation = dict[str, Any]
Decide = Callable[[Observation], np.ndarray]


def make_env(lanes: int, **kwargs: Any) -> DiscreteActionsVector:
    """Make lanes whose decisions are one list: action = slot C(N, K) + set of K LLMs."""
    return DiscreteActionsVector(
        gym.make_vec("LLMQueue-v0", lanes, autoreset_mode="SameStep", **TASK, **kwargs)
    )


def slots_of(observation: Observation) -> Tensor:
    """Return the window as B rows of W queries with d + 4 numbers; the last one is ``waiting``."""
    counts = [np.log1p(observation[key]) for key in ("retrials", "age", "wait")]
    columns = [*counts, observation["waiting"]]
    rows = np.concatenate([observation["contexts"], np.stack(columns, axis=-1)], axis=-1)
    return torch.from_numpy(rows.astype(np.float32))


def waiting(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and slot of the queries that wait; the empty slots cost nothing then."""
    rows, places = torch.nonzero(slots[..., -1], as_tuple=True)
    return rows, places


class ActorCritic(nn.Module):
    """One small network for every query: how good it is to serve it now, and how good each LLM is.

    The logit of (query i, LLMs S) is s_i + sum over j in S of l_ij; that of an empty slot is -inf,
    unless all are empty. The value is read from the mean code and the number of waiting queries.

    Parameters
    ----------
    features : int
        Numbers of a query, d + 4.
    num_llms, assortment_size : int
        N and K.
    width : int
        Units of a layer.
    """

    members: Tensor

    def __init__(self, features: int, num_llms: int, assortment_size: int, width: int = 32) -> None:
        super().__init__()
        self.actor = nn.Sequential(
            nn.Linear(features, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, 1 + num_llms),
        )
        self.encode = nn.Sequential(nn.Linear(features, width), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(width + 1, width), nn.Tanh(), nn.Linear(width, 1))
        sets = list(combinations(range(num_llms), assortment_size))
        members = torch.zeros(num_llms, len(sets))
        for column, llms in enumerate(sets):
            members[list(llms), column] = 1.0
        self.register_buffer("members", members)
        with torch.no_grad():  # start near the uniform policy
            self.actor[-1].weight.mul_(0.01)

    def logits(self, slots: Tensor) -> Tensor:
        """Return shape (B, W C(N, K))."""
        rows, places = waiting(slots)
        scores = self.actor(slots[rows, places])
        decisions = scores[:, :1] + scores[:, 1:] @ self.members
        table = torch.full((*slots.shape[:2], len(self.members[0])), -torch.inf)
        table[slots[:, 0, -1] == 0, 0] = 0.0  # an empty queue: slot 0, which serves nobody
        return table.index_put((rows, places), decisions).flatten(1)

    def value(self, slots: Tensor) -> Tensor:
        """Return shape (B,)."""
        rows, places = waiting(slots)
        codes = self.encode(slots[rows, places])
        total = torch.zeros(len(slots), codes.shape[1]).index_add(0, rows, codes)
        count = slots[..., -1].sum(dim=1, keepdim=True)
        queue = torch.cat([total / count.clamp(min=1.0), torch.log1p(count)], dim=1)
        value: Tensor = self.critic(queue).squeeze(1)
        return value

    def greedy(self, observation: Observation) -> np.ndarray:
        """Return the most probable decisions."""
        with torch.no_grad():
            return self.logits(slots_of(observation)).argmax(dim=1).numpy()


def log_probabilities(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return log pi(a | s) and the entropy of pi(. | s), both of shape (B,)."""
    logs = torch.log_softmax(logits, dim=1)
    entropy = -(logs.exp() * logs.clamp(min=-1e9)).sum(dim=1)
    return logs.gather(1, actions.unsqueeze(1)).squeeze(1), entropy


def train(args: argparse.Namespace) -> ActorCritic:
    """Collect ``num_steps`` slots of every lane, then improve the policy on them, again and again.

    The reward is 1 per departure. Arrivals do not depend on the actions, so whoever makes more
    queries depart keeps the queue shorter, and this reward is bounded while a queue is not. A
    discount of 0.5 is enough: what a decision changes shows within a few slots.
    """
    env = make_env(args.num_envs, reward="departures", max_episode_steps=args.episode)
    contexts = env.single_observation_space["contexts"]
    nvec = env.unwrapped.single_action_space.nvec
    net = ActorCritic(contexts.shape[1] + 4, int(nvec[1]), len(nvec) - 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=args.learning_rate, eps=1e-5)
    generator = torch.Generator().manual_seed(args.seed)
    observation, _ = env.reset(seed=args.seed)
    slots = slots_of(observation)
    shape = (args.num_steps, args.num_envs)
    batch = args.num_steps * args.num_envs
    updates = max(args.total_steps // batch, 1)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = args.learning_rate * (1.0 - update / updates)
        seen = torch.zeros(*shape, *slots.shape[1:])
        actions = torch.zeros(shape, dtype=torch.int64)
        old_logs, rewards, values, ends = (torch.zeros(shape) for _ in range(4))
        for step in range(args.num_steps):
            with torch.no_grad():
                logits, value = net.logits(slots), net.value(slots)
                action = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
                old_log, _ = log_probabilities(logits, action)
            seen[step], actions[step], old_logs[step], values[step] = slots, action, old_log, value
            observation, reward, _, truncated, info = env.step(action.numpy())
            slots = slots_of(observation)
            rewards[step] = torch.from_numpy(reward)
            ends[step] = torch.from_numpy(truncated)
            for lane in np.flatnonzero(truncated):  # cut short, not over: the queue would go on
                final = {key: entry[None] for key, entry in info["final_obs"][lane].items()}
                with torch.no_grad():
                    rewards[step, lane] += args.gamma * net.value(slots_of(final))[0]
        with torch.no_grad():
            following = net.value(slots)
        advantages = torch.zeros(shape)
        carried = torch.zeros(args.num_envs)
        for step in reversed(range(args.num_steps)):  # generalised advantage estimation
            goes_on = 1.0 - ends[step]
            error = rewards[step] + args.gamma * goes_on * following - values[step]
            carried = error + args.gamma * args.gae_lambda * goes_on * carried
            advantages[step], following = carried, values[step]
        data = [seen, actions, old_logs, advantages, advantages + values]
        flat = [tensor.flatten(0, 1) for tensor in data]
        for _ in range(args.epochs):
            for rows in torch.randperm(batch, generator=generator).split(args.minibatch):
                some = [tensor[rows] for tensor in flat]
                improve(net, optimiser, some, args)
        if (update + 1) % max(updates // 10, 1) == 0:
            done = (update + 1) * batch
            length = float(seen[..., -1].sum(dim=2).mean())
            print(f"{done:>9,} steps: {length:.2f} queries in the window")
    env.close()
    return net


def improve(
    net: ActorCritic, optimiser: torch.optim.Optimizer, some: list[Tensor], args: argparse.Namespace
) -> None:
    """Take one step of gradient on PPO's clipped objective."""
    slots, actions, old_logs, advantages, returns = some
    logs, entropy = log_probabilities(net.logits(slots), actions)
    ratio = (logs - old_logs).exp()
    scaled = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    clipped = ratio.clamp(1.0 - args.clip, 1.0 + args.clip)
    policy_loss = -torch.minimum(ratio * scaled, clipped * scaled).mean()
    value_loss = (net.value(slots) - returns).square().mean()
    loss = policy_loss + 0.5 * value_loss - args.entropy * entropy.mean()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    optimiser.step()


def mean_queue(decide: Decide, seed: int, slots: int = 2000, lanes: int = 10) -> float:
    """Play in lanes that share their arrivals with every other policy of this seed."""
    env = make_env(lanes, max_episode_steps=slots + 1)
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for _ in range(slots):
        observation, rewards, _, _, _ = env.step(decide(observation))
        total -= float(rewards.mean())
    env.close()
    return total / slots


def main(arguments: list[str] | None = None) -> None:
    """Train, then compare the mean queue with that of random decisions."""
    parser = argparse.ArgumentParser(description="PPO in one file on LLMQueue-v0")
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=32, help="slots a lane between updates")
    parser.add_argument("--episode", type=int, default=500, help="slots of a training episode")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--gamma", type=float, default=0.5)
    parser.add_argument("--gae-lambda", type=float, default=0.9)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--entropy", type=float, default=0.003)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the network is too small for more
    net = train(args)
    rng = np.random.default_rng(args.seed)

    def random(observation: Observation) -> np.ndarray:
        sets = net.members.shape[1]
        legal = np.repeat(observation["waiting"], sets, axis=1).astype(np.float64)
        return (legal * (1.0 - rng.random(legal.shape))).argmax(axis=1)

    print(f"random mean queue {mean_queue(random, seed=1000):.2f}")
    print(f"PPO after {args.total_steps} steps mean queue {mean_queue(net.greedy, seed=1000):.2f}")


if __name__ == "__main__":
    main()
