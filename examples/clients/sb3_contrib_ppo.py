"""sb3-contrib: MaskablePPO never serves an empty slot, RecurrentPPO remembers."""

from __future__ import annotations

from sb3_contrib import MaskablePPO, RecurrentPPO

from llmqueue_gym.adapters.sb3 import make_vec_env

TASK = {"load": 0.9, "instance_seed": 0, "reward": "departures", "max_episode_steps": 50}


def main(steps: int = 512) -> dict[str, float]:
    """Train for some steps; return the departures an episode, of 50 slots, while training."""
    found = {}
    for algorithm, policy in (
        (MaskablePPO, "MultiInputPolicy"),
        (RecurrentPPO, "MultiInputLstmPolicy"),
    ):
        env = make_vec_env("LLMQueue-v0", 8, env_kwargs=TASK)
        model = algorithm(policy, env, n_steps=32, batch_size=128, n_epochs=2, seed=0, device="cpu")
        model.learn(steps)
        returns = [episode["r"] for episode in model.ep_info_buffer]
        found[algorithm.__name__] = sum(returns) / len(returns)
    return found


if __name__ == "__main__":
    for name, departures in main().items():
        print(f"{name}: {departures:.1f} departures an episode")
