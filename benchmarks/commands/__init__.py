"""Subcommands of ``llmqueue-bench``, a module each."""
