"""Earlier import paths of streams, choices and dynamics; see `llmqueue_gym.moved`."""
