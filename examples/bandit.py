"""A bandit on the queue: no training, it learns while it serves.

Run it with ``python examples/bandit.py``; it takes a few seconds.
"""

from __future__ import annotations

import gymnasium as gym

from baselines import QueueProblem, make_agent


def mean_queue(name: str, slots: int = 1000, seed: int = 0) -> float:
    """Play an agent for some slots and return the mean number of waiting queries."""
    env = gym.make("llmqueue_gym:LLMQueue-v0", load=0.9, instance_seed=0, max_episode_steps=slots)
    observation, _ = env.reset(seed=seed)
    problem = QueueProblem(**env.unwrapped.problem, horizon=slots)  # type: ignore[attr-defined]
    agent = make_agent(name, problem, seed)
    total = 0
    for _ in range(slots):
        action = agent.act(observation)
        following, reward, _, _, info = env.step(action)
        agent.update(observation, action, float(reward), following, info)
        observation = following
        total += info["queue_length"]
    env.close()
    return total / slots


def main() -> None:
    """Compare a random policy, a heuristic and a contextual queueing bandit on one seed."""
    for name in ("random", "fifo-best-mean", "ACQB"):
        print(f"{name:<16} mean queue {mean_queue(name):.2f}")


if __name__ == "__main__":
    main()
