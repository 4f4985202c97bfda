"""What other libraries need: wrappers, Stable-Baselines3, PettingZoo."""
