"""Minari: what an agent saw, did and earned, as a data set for offline learning."""

from __future__ import annotations

import gymnasium as gym
import minari

from baselines import QueueProblem, make_agent


def main(dataset_id: str = "llmqueue/fifo-v0", episodes: int = 3) -> minari.MinariDataset:
    """Record a heuristic for some episodes of 200 slots, with the infos, and store them."""
    env = minari.DataCollector(
        gym.make("llmqueue_gym:LLMQueue-v0", load=0.9, instance_seed=0, max_episode_steps=200),
        record_infos=True,
    )
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        agent = make_agent("fifo-best-mean", QueueProblem(**env.unwrapped.problem, horizon=200), 0)
        truncated = False
        while not truncated:
            action = agent.act(observation)
            following, reward, _, truncated, info = env.step(action)
            agent.update(observation, action, float(reward), following, info)
            observation = following
    dataset = env.create_dataset(
        dataset_id,
        eval_env=env.spec,
        algorithm_name="fifo-best-mean",
        author="you",
        author_email="you@example.org",
        code_permalink="https://example.org",
        description="fifo-best-mean on LLMQueue-v0",
    )
    env.close()
    return dataset


if __name__ == "__main__":
    dataset = main()
    print(f"{dataset.total_episodes} episodes, {dataset.total_steps} steps")
