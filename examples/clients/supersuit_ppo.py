"""SuperSuit: a game whose agents are alike becomes one vector environment, here for SB3."""

from __future__ import annotations

import supersuit
from stable_baselines3 import PPO

from llmqueue_gym.multi_agent import llm_servers_v0


def main(steps: int = 500) -> int:
    """Train one network that bids for all servers; return the steps taken."""
    game = llm_servers_v0.parallel_env(
        load=0.9, reward="shared", max_cycles=50, flat_observation=True
    )
    lanes = supersuit.pettingzoo_env_to_vec_env_v1(game)
    lanes = supersuit.concat_vec_envs_v1(lanes, 2, base_class="stable_baselines3")
    model = PPO("MlpPolicy", lanes, n_steps=25, batch_size=125, device="cpu")
    model.learn(steps)
    return int(model.num_timesteps)


if __name__ == "__main__":
    print(f"{main()} steps")
