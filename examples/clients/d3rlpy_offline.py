"""d3rlpy: learn from what a random policy did, without playing."""

from __future__ import annotations

import d3rlpy
import gymnasium as gym
import numpy as np

from llmqueue_gym.adapters.wrappers import DiscreteActions, FlatObservation


def main(steps: int = 100) -> float:
    """Train for some steps; return the departures of 200 slots played by what was learned."""
    task = {"load": 0.9, "instance_seed": 0, "reward": "departures", "max_episode_steps": 200}
    d3rlpy.seed(0)
    env = FlatObservation(DiscreteActions(gym.make("llmqueue_gym:LLMQueue-v0", **task)))
    env.action_space.seed(0)
    data = []
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        truncated = False
        while not truncated:
            action = env.action_space.sample(info["action_mask"])
            following, reward, _, truncated, info = env.step(action)
            data.append((observation, action, reward, truncated))
            observation = following
    observations, actions, rewards, ends = map(np.array, zip(*data, strict=True))
    dataset = d3rlpy.dataset.MDPDataset(
        observations,
        actions,
        rewards,
        np.zeros(len(ends)),
        ends,
        action_size=int(env.action_space.n),
    )
    model = d3rlpy.algos.DiscreteCQLConfig(gamma=0.5, learning_rate=1e-3).create(device="cpu:0")
    quiet = d3rlpy.logging.NoopAdapterFactory()  # no folder of logs
    model.fit(dataset, n_steps=steps, n_steps_per_epoch=steps, logger_adapter=quiet)
    observation, _ = env.reset(seed=1000)
    departures, truncated = 0.0, False
    while not truncated:
        action = int(model.predict(observation[None])[0])
        observation, reward, _, truncated, _ = env.step(action)
        departures += float(reward)
    return departures


if __name__ == "__main__":
    print(f"{main():.0f} departures in 200 slots")
