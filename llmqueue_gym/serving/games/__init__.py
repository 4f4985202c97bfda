"""LLMServe-v0 as a PettingZoo game; `llmqueue_gym.multi_agent` is its door."""
