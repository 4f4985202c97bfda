"""LLMQueue-v0 as PettingZoo games, a module each; `llmqueue_gym.multi_agent` is their door."""
